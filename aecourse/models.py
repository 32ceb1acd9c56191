"""Every model and its module: the package's names, ``aecourse train``, the bans of the assignments and the tests
all go by this list."""

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
