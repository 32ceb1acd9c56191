"""Every model and its module: what the package, ``aecourse train``, the assignments' bans and the tests go by."""

MODELS = {
    "Autoencoder": "autoencoders",
    "SparseAutoencoder": "autoencoders",
    "DenoisingAutoencoder": "autoencoders",
    "ContractiveAutoencoder": "autoencoders",
    "LinearAutoencoder": "linear",
    "LinearVAE": "linear",
    "VAE": "vae",
    "IWAE": "iwae",
    "ConditionalVAE": "zoo.conditional",
}
