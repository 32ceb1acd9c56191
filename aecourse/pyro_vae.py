"""The variational autoencoder a second time, in Pyro: a check of the first, and a way to compare notations.

Pyro asks for two programs, the *model* that generates x and the *guide* that guesses z, and derives the
bound and its gradients from them. Here both are written around the networks of an existing
:class:`aecourse.vae.VAE`, so that the two implementations share their weights and nothing else.

Source: Bingham et al. (2019), Pyro; lecture 003 names it.
"""

import torch
from torch import Tensor

from aecourse.extras import needs
from aecourse.likelihoods import Bernoulli
from aecourse.vae import VAE

with needs("book", "The second implementation is in Pyro"):
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, TraceMeanField_ELBO
    from pyro.optim import Adam


def model(vae: VAE, x: Tensor) -> None:
    """p(x, z): z from N(0, I), every pixel of x a Bernoulli variable whose logit the decoder gives."""
    pyro.module("decoder", vae.decoder)
    with pyro.plate("batch", len(x)):
        prior = dist.Normal(x.new_zeros(len(x), vae.latent_dim), 1.0).to_event(1)
        logits = vae.decoder(pyro.sample("z", prior)).flatten(1)
        # Grey values are no outcomes of a coin; the formula is used for them all the same.
        pixels = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
        pyro.sample("x", pixels, obs=x.flatten(1))


def guide(vae: VAE, x: Tensor) -> None:
    """q(z|x): the Gaussian whose mean and log variance the encoder gives."""
    pyro.module("encoder", vae.encoder)
    with pyro.plate("batch", len(x)):
        mean, logvar = vae.encoder(x)
        pyro.sample("z", dist.Normal(mean, torch.exp(0.5 * logvar)).to_event(1))


@torch.no_grad()
def bound(vae: VAE, x: Tensor, samples: int = 1) -> float:
    """Pyro's evidence lower bound, with the KL in closed form: the mean over the batch, in nats per example.

    Args:
        vae: with a Bernoulli likelihood.
        x: ``(batch, *image_shape)``.
        samples: draws of z per example.

    Raises:
        ValueError: the likelihood is another one.
    """
    _check(vae)
    return -TraceMeanField_ELBO(num_particles=samples).loss(model, guide, vae, x) / len(x)


def train(vae: VAE, images: Tensor, epochs: int = 1, batch_size: int = 128, lr: float = 1e-3) -> list[float]:
    """Train a VAE with Pyro's stochastic variational inference.

    Returns:
        The bound of each epoch, averaged over the examples as they were trained on, nats per example.

    Raises:
        ValueError: the likelihood is not Bernoulli, or the images do not suit the model.
    """
    _check(vae)
    vae.validate(images)
    pyro.clear_param_store()
    svi = SVI(model, guide, Adam({"lr": lr}), TraceMeanField_ELBO())
    bounds = []
    for _ in range(epochs):
        losses = [svi.step(vae, batch) for batch in images[torch.randperm(len(images))].split(batch_size)]
        bounds.append(-sum(losses) / len(images))
    return bounds


def _check(vae: VAE) -> None:
    if not isinstance(vae.likelihood, Bernoulli):
        raise ValueError(f"vae has the likelihood {vae.likelihood} but needs Bernoulli().")
