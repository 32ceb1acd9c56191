"""aecourse: the reference library of the course on autoencoders and variational autoencoders.

One module per chapter. Everything is in nats per example: sums over the dimensions of an example,
means over the batch, unless a name says otherwise.

Modules are imported when they are first used, so that ``import aecourse`` costs next to nothing.
"""

from importlib import import_module

from aecourse.models import MODELS

__version__ = "0.1.0"

_MODULES = (
    "autoencoders bayesian_mixtures bounds compression contracts data disentanglement evaluate gradients "
    "inference iwae likelihoods linear linear_gaussian mixtures nets plots reference train vae zoo"
).split()
_NAMES = MODELS | {
    "Loss": "bounds",
    "fit_ppca": "linear",
    "pca": "linear",
    "History": "train",
    "fit": "train",
    "mean_loss": "train",
}

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"aecourse.{name}")
    if name in _NAMES:
        value = getattr(import_module(f"aecourse.{_NAMES[name]}"), name)
        globals()[name] = value  # found at once the next time
        return value
    raise AttributeError(f"module 'aecourse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
