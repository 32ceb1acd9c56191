"""The two-stage VAE (Dai & Wipf 2019): a second VAE, of the codes of the first, is its prior."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aecourse.bounds import Loss
from aecourse.contracts import check_count, check_shapes
from aecourse.likelihoods import Gaussian, gaussian_log_density, reparameterize
from aecourse.nets import split_options
from aecourse.vae import VAE
from aecourse.zoo.stages import Stage


class TwoStageVAE(Stage):
    r"""A VAE whose decoder's variance is learned, and a second VAE that learns where its codes are.

    Data near a surface of fewer dimensions than the images have pixels pull the variance gamma of the decoder
    towards 0: reconstructions become sharp, and the aggregate posterior q(z), the average of q(z|x) over the
    data, stops being N(0, I). Codes drawn from N(0, I) then decode to what no data look like. The second VAE
    models q(z). It has as many latent variables as z, there is no surface left to find, and its own gamma_z
    stays positive. To draw,

    .. math:: u \sim \mathcal{N}(0, I), \qquad z = f_2(u) + \sqrt{\gamma_z}\,\varepsilon, \qquad x = f_1(z)

    with the noise of the second stage and without that of the first. It is trained by two calls::

        for stage in model.stages():
            fit(stage, images)

    The first of them is ``model.first``, a :class:`aecourse.vae.VAE`. The second is the model itself: its
    ``loss`` is the second VAE's, for codes drawn afresh from q(z|x) at every step. To it the first stage is a
    constant: in evaluation mode, without gradients, and among the buffers instead of the parameters, so that
    a checkpoint of the second stage is refused where the first stage has other weights.

    Args:
        first: the VAE of images, with a Gaussian likelihood.
        second: the VAE of codes, its ``image_shape`` being ``(latent_dim,)`` and its ``latent_dim`` that of
            ``first``; with a Gaussian likelihood of one variance, learned or given.

    Raises:
        TypeError, ValueError: the two do not fit together, or have other likelihoods.

    Source: Dai & Wipf (2019), section 4. Their code's ``gamma_x`` is a standard deviation, the square root of
    the paper's.
    """

    constant = ("first",)

    def __init__(self, first: VAE, second: VAE):
        super().__init__()
        for name, stage in (("first", first), ("second", second)):
            if not isinstance(stage, VAE):
                raise TypeError(f"{name} is {type(stage).__name__} but must be a VAE.")
            if not isinstance(stage.likelihood, Gaussian):
                kind = type(stage.likelihood).__name__
                raise ValueError(
                    f"{name} has the likelihood {kind} but needs a Gaussian, its variance learned."
                )
        if second.likelihood.variance in ("per_pixel", "optimal"):
            raise ValueError(
                f"second has the variance {second.likelihood.variance!r} but must be able to draw codes: it "
                "needs 'learned' or a number."
            )
        if second.image_shape != (first.latent_dim,) or second.latent_dim != first.latent_dim:
            raise ValueError(
                f"second turns {second.latent_dim} latent variables into data of shape {second.image_shape} "
                f"but needs {first.latent_dim} and ({first.latent_dim},), the size of the first one's codes."
            )
        self.first = first.eval()
        self.second = second
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # of the second stage

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        variance: float | str = "learned",
        start_variance: float = 0.1,
        second_variance: float = 0.1,
        second_hidden: Sequence[int] = (400, 400),
        output: str = "linear",
        **options,
    ) -> "TwoStageVAE":
        """A first stage over networks of :func:`aecourse.nets.build`, and multi-layer perceptrons of codes.

        Args:
            kind, image_shape, latent_dim: of the first stage. More latent variables than it needs do no harm.
            variance: of its decoder, ``"learned"``, ``"optimal"`` or a number; see
                :class:`aecourse.likelihoods.Gaussian`.
            start_variance: where a learned one starts. Give it the variance of the data,
                ``images.var(dim=0).mean()``: Adam moves its logarithm by at most ``lr`` per step, from 1 to
                0.01 in 4,600 steps of 1e-3.
            second_variance: where gamma_z starts. At 1, the variance of codes, a second stage that ignores u
                is at rest already, and hardly leaves.
            second_hidden: the layer sizes of the second stage's encoder.
            output: ``"sigmoid"`` for images in [0, 1], so that their means stay there, or ``"linear"``.
            options: of the first stage's networks, and ``beta`` and ``samples`` as for
                :class:`aecourse.vae.VAE`.

        Raises:
            TypeError, ValueError: an option that there is not, or out of range.
        """
        for name, start in (("start_variance", start_variance), ("second_variance", second_variance)):
            if not 0 < start < math.inf:
                raise ValueError(f"{name} is {start} but must be positive and finite.")
        if output not in ("linear", "sigmoid"):
            raise ValueError(f"output is {output!r} but must be 'linear' or 'sigmoid'.")
        if output == "sigmoid" and variance == "per_pixel":
            raise ValueError(
                "output is 'sigmoid' but must be 'linear' with the variance 'per_pixel': it would "
                "squeeze the log-variances into [0, 1] too."
            )
        networks, options = split_options(options)
        if unknown := sorted({*options} - {"beta", "samples"}):
            raise TypeError(f"{unknown[0]} is no option of a TwoStageVAE.")
        settings = {"likelihood": "gaussian", "variance": variance}
        first = VAE.build(kind, image_shape, latent_dim, **settings, **networks, **options)
        if output == "sigmoid":
            first.decoder = nn.Sequential(first.decoder, nn.Sigmoid())
        if variance == "learned":
            nn.init.constant_(first.likelihood.logvar, math.log(start_variance))
        settings = {"likelihood": "gaussian", "variance": "learned", "hidden": second_hidden}
        second = VAE.build("mlp", (latent_dim,), latent_dim, **settings)
        nn.init.constant_(second.likelihood.logvar, math.log(second_variance))
        return cls(first, second)

    # ------------------------------------------------------------------------------ the two stages

    def stages(self) -> list[nn.Module]:
        """What to fit, one after the other and on the same images: the first VAE, then this model."""
        return [self.first, self]

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """What the second stage learns from: one draw z ~ q(z|x) for each image, ``(batch, latent_dim)``.

        Draws and not means: a latent variable that the first stage does not use has q(z|x) = N(0, 1), and a
        mean of 0 throughout.
        """
        return reparameterize(*self.first.encode(x))

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """Negative ELBO of the second stage for codes of these images, in nats; see
        :meth:`aecourse.vae.VAE.loss`. It is a bound on -log p(z), a density, and may be negative."""
        return self.second.loss(self.codes(x), beta)

    def after_step(self) -> None:
        """Note that the second stage has learned something."""
        self.updates += 1

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; see :meth:`aecourse.vae.VAE.validate`."""
        self.first.validate(images)

    # ------------------------------------------------------------------------- both stages together

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z, u) - log q(z|x) - log q(u|z) for draws of both: importance weights for p(x).

        This is the density of the whole model, p(u) p(z|u) p(x|z), *with* the noise of the first stage.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws of z and u per example.

        Returns:
            ``(samples, batch)``, nats.
        """
        check_count("samples", samples)
        mean, logvar = self.first.encode(x)
        z = reparameterize(mean, logvar, samples)
        log_prior = self.second.log_weights(z.flatten(0, 1), 1).view(samples, -1)
        return self.first.log_likelihood(x, z) + log_prior - gaussian_log_density(z, mean, logvar)

    @torch.no_grad()
    def draw_codes(self, count: int) -> Tensor:
        """z from the second stage, its noise gamma_z included: ``(count, latent_dim)``."""
        check_count("count", count)
        mean = self.second.sample(count)
        likelihood = self.second.likelihood
        learned = likelihood.variance == "learned"
        deviation = torch.exp(0.5 * likelihood.logvar) if learned else math.sqrt(likelihood.variance)
        return mean + deviation * torch.randn_like(mean)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draw through both stages: ``(count, *image_shape)``, the means of p(x|z).

        Raises:
            RuntimeError: the second stage was not fitted: it is the prior.
        """
        check_count("count", count)
        if self.updates == 0:
            raise RuntimeError(
                "The second stage is the prior, and was not fitted: for stage in model.stages(): fit(stage, "
                "images). To draw from N(0, I), as if there were one stage, take model.first.sample(count)."
            )
        return self.first.decode(self.draw_codes(count))


def scale_factor(mean: Tensor, logvar: Tensor, per_dimension: bool = False) -> Tensor:
    r"""One over the standard deviation of the aggregate posterior: what makes codes ready for a second stage.

    .. math:: \operatorname{Var}[z_j] = \mathbb{E}_x[\sigma_j^2(x)] + \operatorname{Var}_x[\mu_j(x)]

    A second stage that starts from noise of variance 1, as diffusion does, needs codes of that size. The KL
    pulls the variance of codes to 1, as strongly as it is weighed: with a weight of 1e-6 training is over
    long before they are there. Latent diffusion multiplies all codes by one number, which keeps their shape:
    its 0.18215 is this number for one autoencoder.

    Args:
        mean, logvar: ``(N, latent_dim)`` or ``(N, ...)``, of q(z|x) for N images.
        per_dimension: one factor for each latent variable, about its own mean, instead of one for all.

    Returns:
        ``()``, or the shape of one code.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Rombach et al. (2022), appendix G, who estimate it from one batch of draws.
    """
    check_shapes(("mean", mean, "N ..."), ("logvar", logvar, "N ..."))
    if per_dimension:
        return (logvar.exp().mean(dim=0) + mean.var(dim=0, unbiased=False)).rsqrt()
    return (logvar.exp().mean() + mean.var(unbiased=False)).rsqrt()
