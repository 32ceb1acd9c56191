"""The variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aecourse.bounds import Loss, elbo, free_bits
from aecourse.contracts import (
    check_batch,
    check_count,
    check_images,
    check_shapes,
)
from aecourse.likelihoods import (
    Likelihood,
    as_likelihood,
    gaussian_kl_per_dimension,
    gaussian_log_density,
    pop_likelihood,
    reparameterize,
)
from aecourse.nets import build, split_options


class VAE(nn.Module):
    r"""A variational autoencoder over any encoder, decoder and likelihood.

    The generative model draws z from N(0, I) and x from p(x|z), whose parameters the decoder gives.
    The encoder gives q(z|x) = N(mean, diag exp logvar), the approximation to the posterior p(z|x).

    Tighter bounds and other gradients: :class:`aecourse.iwae.IWAE`. Labels as a condition:
    :class:`aecourse.zoo.conditional.ConditionalVAE`.

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``mean`` and ``logvar``, each ``(batch, latent_dim)``.
        decoder: maps ``(batch, latent_dim)`` to ``(batch, *image_shape)``, or to ``(batch, outputs,
            *image_shape)`` if the likelihood needs several numbers per pixel.
        image_shape: for example ``(1, 28, 28)``.
        latent_dim: the number of latent variables.
        likelihood: what the decoder's output means, a :class:`aecourse.likelihoods.Likelihood` or its name:
            ``"bernoulli"``, ``"continuous_bernoulli"``, ``"gaussian"``, ``"categorical"``.
        variance: of a Gaussian likelihood that is given by its name; see
            :class:`aecourse.likelihoods.Gaussian`.
        levels: grey values of a categorical likelihood that is given by its name.
        beta: weight of the KL in the loss (Higgins et al. 2017); 1 gives the evidence lower bound.
        free_bits: spares each latent variable the KL below that many nats (Kingma et al. 2016); 0 for none.
        samples: draws of z per example in the loss.
        prior_temperature: T makes the prior N(0, T I), which is proportional to N(z; 0, I)^(1/T).

    Raises:
        TypeError, ValueError: an unknown name, a number out of range, or options that exclude each other.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        image_shape: Sequence[int],
        latent_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        samples: int = 1,
        prior_temperature: float = 1.0,
    ):
        super().__init__()
        check_count("samples", samples)
        if not beta >= 0:
            raise ValueError(f"beta is {beta} but must be at least 0.")
        if not free_bits >= 0:
            raise ValueError(f"free_bits is {free_bits} but must be at least 0.")
        if not prior_temperature > 0:
            raise ValueError(f"prior_temperature is {prior_temperature} but must be positive.")
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        self.beta = beta
        self.free_bits = free_bits
        self.samples = samples
        self.prior_temperature = prior_temperature

    @classmethod
    def mlp(
        cls, image_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (400,), **options
    ) -> "VAE":
        """A VAE whose encoder and decoder are multi-layer perceptrons, mirror images of each other.

        Args:
            hidden: the encoder's layer sizes.
            options: those of the networks (``activation``, ``batch_norm``, ``dropout``, given to both; see
                :func:`aecourse.nets.mlp`) and those of the class.
        """
        return cls.build("mlp", image_shape, latent_dim, hidden=hidden, **options)

    @classmethod
    def conv(cls, image_shape, latent_dim, channels=(32, 64), hidden=(), **options) -> "VAE":
        """Convolutions, see :class:`aecourse.nets.ConvEncoder`, and the same backwards; options as in mlp."""
        return cls.build("conv", image_shape, latent_dim, channels=channels, hidden=hidden, **options)

    @classmethod
    def conv1d(cls, image_shape, latent_dim, channels=(32, 64), hidden=(), **options) -> "VAE":
        """The same for time series, ``image_shape = (channels, length)``; options as in mlp."""
        return cls.build("conv1d", image_shape, latent_dim, channels=channels, hidden=hidden, **options)

    @classmethod
    def residual(cls, image_shape, latent_dim, channels=(32, 64), hidden=(), **options) -> "VAE":
        """Residual stages, see :class:`aecourse.nets.ResidualEncoder`; options ``blocks``, ``activation``,
        ``batch_norm`` and those of the class."""
        return cls.build("residual", image_shape, latent_dim, channels=channels, hidden=hidden, **options)

    @classmethod
    def build(cls, kind: str, image_shape: Sequence[int], latent_dim: int, **options) -> "VAE":
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class."""
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        encoder, decoder = build(kind, image_shape, latent_dim, outputs=likelihood.outputs, **networks)
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, decoder, likelihood=likelihood, **shapes, **options)

    # ------------------------------------------------------------------------ the model's parts

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, *image_shape)`` to ``mean`` and ``logvar`` of q(z|x), each ``(batch, latent_dim)``."""
        check_batch("x", x, self.image_shape)
        mean, logvar = self.encoder(x)
        check_batch("the encoder's mean", mean, (self.latent_dim,))
        return mean.to(x.dtype), logvar.to(x.dtype)  # networks may compute in half precision, bounds may not

    def decoder_output(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to what the likelihood needs: logits, means, several numbers a pixel."""
        check_batch("z", z, (self.latent_dim,))
        return self.decoder(z).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to the mean of p(x|z), ``(batch, *image_shape)``: what one looks at."""
        return self.likelihood.mean(self.decoder_output(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), nats per example: ``(batch,)``, or ``(samples, batch)`` for z of several draws,
        ``(samples, batch, latent_dim)``."""
        if z.dim() == 3:  # decode all draws as one large batch
            copies = x.expand(len(z), *x.shape).flatten(0, 1)
            return self.log_likelihood(copies, z.flatten(0, 1)).unflatten(0, (len(z), -1))
        return self.likelihood.log_prob(x, self.decoder_output(z))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), nats per example: ``(batch, latent_dim)`` to ``(batch,)``; leading dimensions stay."""
        check_batch("z", z if z.dim() < 3 else z.flatten(0, -2), (self.latent_dim,))
        return gaussian_log_density(z, torch.zeros_like(z), torch.full_like(z, self._prior_logvar))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) = log p(x|z) + log p(z), shaped as :meth:`log_likelihood`."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) for draws z ~ q(z|x): the logarithms of importance weights.

        Gradients reach the encoder through the draws and through q's density.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws per example, decoded as one batch.

        Returns:
            ``(samples, batch)``. The mean of their exponentials is an unbiased estimate of p(x).
        """
        check_count("samples", samples)
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, samples)
        return self.log_joint(x, z) - gaussian_log_density(z, mean, logvar)

    def kl_per_dimension(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z_j|x) || p(z_j)), nats: ``(batch, latent_dim)`` twice to ``(batch, latent_dim)``."""
        return gaussian_kl_per_dimension(mean, logvar, self._prior_logvar)

    @property
    def _prior_logvar(self) -> float:
        return math.log(self.prior_temperature)

    # --------------------------------------------------------------------------- the objective

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """Negative ELBO of a batch, with its two parts; see :class:`aecourse.bounds.Loss`.

        ``beta`` stands in for the model's own, as annealing needs it.
        """
        beta = self.beta if beta is None else beta
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, self.samples)
        log_likelihood = self.log_likelihood(x, z).mean()  # over draws and examples
        kl = self.kl_per_dimension(mean, logvar)
        # With no bits free: summed over latent dimensions, averaged over examples.
        bound = log_likelihood - beta * free_bits(kl, self.free_bits)
        parts = {"reconstruction": -log_likelihood, "kl": kl.sum(dim=1).mean()}
        return Loss(total=-bound, parts=parts)

    @torch.no_grad()
    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        """The evidence lower bound (beta = 1) of each example, averaged over draws of z.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws of z per example; more of them lower the noise, not the bound.

        Returns:
            ``(batch,)``, nats per example.
        """
        check_count("samples", samples)
        mean, logvar = self.encode(x)
        draws = [self.log_likelihood(x, reparameterize(mean, logvar)) for _ in range(samples)]
        return elbo(torch.stack(draws).mean(dim=0), self.kl_per_dimension(mean, logvar).sum(dim=1))

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mean of q(z|x), the deterministic reconstruction, ``(batch, *image_shape)``."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, count: int, temperature: float | None = None) -> Tensor:
        """Draw z from the prior and return the mean of p(x|z), ``(count, *image_shape)``.

        Args:
            count: how many.
            temperature: T of z ~ N(0, T I), the model's ``prior_temperature`` by default. Below 1 samples
                are more typical and less diverse. It scales the variance: papers that quote the factor
                of the standard deviation, as NVAE does (Vahdat & Kautz 2020), mean its square root.
        """
        check_count("count", count)
        temperature = self.prior_temperature if temperature is None else temperature
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature} but must be at least 0.")
        like = next(self.parameters())
        z = torch.randn(count, self.latent_dim, device=like.device, dtype=like.dtype)
        return self.decode(math.sqrt(temperature) * z)

    @torch.no_grad()
    def interpolate(self, x0: Tensor, x1: Tensor, steps: int) -> Tensor:
        """Decode the straight line between the codes of two images, both ends included.

        Args:
            x0: ``(batch, *image_shape)``, where each line starts.
            x1: the same shape, where it ends.
            steps: points on each line, at least 2.

        Returns:
            ``(steps, batch, *image_shape)``.
        """
        check_shapes(("x0", x0, "batch ..."), ("x1", x1, "batch ..."))
        if steps < 2:
            raise ValueError(f"steps is {steps} but must be at least 2: both ends are shown.")
        start, end = self.encode(x0)[0], self.encode(x1)[0]
        return torch.stack([self.decode(torch.lerp(start, end, i / (steps - 1))) for i in range(steps)])

    @torch.no_grad()
    def traverse(self, z: Tensor, dimension: int, values: Sequence[float]) -> Tensor:
        """Decode codes with one latent variable set to each of ``values`` and the others left as they are.

        Args:
            z: ``(batch, latent_dim)``, for example ``vae.encode(x)[0]``.
            dimension: which latent variable, from 0.
            values: to set it to; between -3 and 3 lies most of the prior.

        Returns:
            ``(len(values), batch, *image_shape)``.
        """
        check_batch("z", z, (self.latent_dim,))
        if not 0 <= dimension < self.latent_dim:
            raise ValueError(f"dimension is {dimension} but must be between 0 and {self.latent_dim - 1}.")
        frames = []
        for value in values:
            moved = z.clone()
            moved[:, dimension] = value
            frames.append(self.decode(moved))
        return torch.stack(frames)

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] under any likelihood
                but the Gaussian.
        """
        check_images("images", images, self.image_shape, self.likelihood.support)
