"""Every model and its module: the package, the command line, the assignments' bans and tests go by this."""

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
    "LossyVAE": "zoo.lossy_vae",
    "FlowVAE": "zoo.flows",
}
