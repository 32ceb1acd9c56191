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
    "VQVAE": "zoo.vqvae",
    "FactorVAE": "zoo.factor_vae",
    "BetaTCVAE": "zoo.factor_vae",
    "LadderVAE": "zoo.ladder_vae",
    "AdversarialAutoencoder": "zoo.adversarial",
    "GAN": "zoo.adversarial",
    "VAEGAN": "zoo.adversarial",
    "TDVAE": "zoo.td_vae",
    "LossyVAE": "zoo.lossy_vae",
    "FlowVAE": "zoo.flows",
}
