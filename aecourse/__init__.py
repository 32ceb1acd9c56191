"""aecourse: the reference library of the course on autoencoders and variational autoencoders.

One module per chapter. Everything is in nats per example: sums over the dimensions of an example,
means over the batch, unless a name says otherwise.
"""

from aecourse import bounds, data, likelihoods, linear, nets
from aecourse.bounds import Loss
from aecourse.linear import LinearAutoencoder, fit_ppca, pca
from aecourse.train import History, evaluate, fit
from aecourse.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "History",
    "LinearAutoencoder",
    "Loss",
    "bounds",
    "data",
    "evaluate",
    "fit",
    "fit_ppca",
    "likelihoods",
    "linear",
    "nets",
    "pca",
]
