"""The variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aecourse.bounds import Loss, elbo
from aecourse.contracts import check_finite, check_shapes, check_unit_interval
from aecourse.likelihoods import bernoulli_log_likelihood, gaussian_kl, gaussian_log_likelihood
from aecourse.nets import MLPDecoder, MLPEncoder

LIKELIHOODS = ("bernoulli", "gaussian")


def reparameterize(mean: Tensor, logvar: Tensor) -> Tensor:
    """Draw z ~ N(mean, diag exp logvar) so that gradients reach ``mean`` and ``logvar``.

    The noise is drawn apart from the parameters, so z is a differentiable function of them:
    z = mean + std * noise. The standard deviation is exp(logvar / 2).

    Args:
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``.

    Returns:
        ``(batch, k)``, one sample per example.
    """
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


class VAE(nn.Module):
    """A variational autoencoder over any encoder and decoder.

    The generative model draws z from N(0, I) and x from p(x|z), whose parameters the decoder gives.
    The encoder gives q(z|x) = N(mean, diag exp logvar), the approximation to the posterior p(z|x).

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``mean`` and ``logvar``, each ``(batch, latent_dim)``.
        decoder: maps ``(batch, latent_dim)`` to ``(batch, *image_shape)``: logits for a Bernoulli
            likelihood, means for a Gaussian one.
        image_shape: for example ``(1, 28, 28)``.
        latent_dim: the number of latent variables.
        likelihood: ``"bernoulli"`` (images in [0, 1]) or ``"gaussian"``.
        variance: of the Gaussian likelihood, the same for every pixel.
        beta: weight of the KL in the loss; 1 gives the evidence lower bound.

    Raises:
        ValueError: an unknown likelihood, a variance that is not positive, a negative beta.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        image_shape: Sequence[int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        variance: float = 1.0,
        beta: float = 1.0,
    ):
        super().__init__()
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood is {likelihood!r} but must be one of {LIKELIHOODS}.")
        if not variance > 0:
            raise ValueError(f"variance is {variance} but must be positive.")
        if beta < 0:
            raise ValueError(f"beta is {beta} but must be at least 0.")
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.variance = variance
        self.beta = beta

    @classmethod
    def mlp(
        cls, image_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (400,), **options
    ) -> "VAE":
        """A VAE whose encoder and decoder are multi-layer perceptrons, mirror images of each other.

        ``hidden`` lists the encoder's layer sizes; ``options`` are those of :class:`VAE`.
        """
        return cls(
            MLPEncoder(image_shape, latent_dim, hidden),
            MLPDecoder(latent_dim, image_shape, tuple(reversed(hidden))),
            image_shape=image_shape,
            latent_dim=latent_dim,
            **options,
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, *image_shape)`` to ``mean`` and ``logvar`` of q(z|x), each ``(batch, latent_dim)``."""
        self._check_images("x", x)
        mean, logvar = self.encoder(x)
        self._check_codes("the encoder's mean", mean)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to the mean of p(x|z), ``(batch, *image_shape)``: what one looks at."""
        self._check_codes("z", z)
        output = self.decoder(z)
        return output.sigmoid() if self.likelihood == "bernoulli" else output

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), ``(batch,)``, nats per example."""
        self._check_codes("z", z)
        output = self.decoder(z)
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(x, output)
        return gaussian_log_likelihood(x, output, torch.full_like(x, math.log(self.variance)))

    def loss(self, x: Tensor) -> Loss:
        """Negative one-sample ELBO of a batch, with its two parts; see :class:`aecourse.bounds.Loss`."""
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar)
        log_likelihood = self.log_likelihood(x, z)
        kl = gaussian_kl(mean, logvar)
        return Loss(
            total=-elbo(log_likelihood, kl, self.beta).mean(),
            parts={"reconstruction": -log_likelihood.mean(), "kl": kl.mean()},
        )

    @torch.no_grad()
    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        """The evidence lower bound (beta = 1) of each example, averaged over draws of z.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws of z per example; more of them lower the noise, not the bound.

        Returns:
            ``(batch,)``, nats per example.
        """
        mean, logvar = self.encode(x)
        draws = [self.log_likelihood(x, reparameterize(mean, logvar)) for _ in range(samples)]
        return elbo(torch.stack(draws).mean(dim=0), gaussian_kl(mean, logvar))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mean of q(z|x), the deterministic reconstruction, ``(batch, *image_shape)``."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draw z from the prior and return the mean of p(x|z), ``(count, *image_shape)``."""
        like = next(self.parameters())
        z = torch.randn(count, self.latent_dim, device=like.device, dtype=like.dtype)
        return self.decode(z)

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] under a
                Bernoulli likelihood.
        """
        self._check_images("images", images)
        check_finite("images", images)
        if self.likelihood == "bernoulli":
            check_unit_interval("images", images)

    def _check_images(self, name: str, x: Tensor) -> None:
        check_shapes((name, x, "batch ..."))
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} but this model needs (batch, "
                f"{', '.join(map(str, self.image_shape))})."
            )

    def _check_codes(self, name: str, z: Tensor) -> None:
        check_shapes((name, z, "batch latent_dim"))
        if z.shape[1] != self.latent_dim:
            raise ValueError(
                f"{name} has shape {tuple(z.shape)} but this model needs (batch, {self.latent_dim})."
            )
