"""Variational autoencoders trained on importance weights: tighter bounds, and clearer gradients."""

from torch import Tensor, nn

from aecourse.bounds import Loss, iwae_bound
from aecourse.distributed import standard_normal
from aecourse.gradients import dreg_bound, log_weights, path_log_weights
from aecourse.vae import VAE

OBJECTIVES = {
    ("iwae", "pathwise"): lambda *draws: iwae_bound(log_weights(*draws)),
    ("iwae", "dreg"): dreg_bound,
    ("elbo", "pathwise"): lambda *draws: log_weights(*draws).mean(dim=0),
    ("elbo", "stl"): lambda *draws: path_log_weights(*draws).mean(dim=0),
}
"""What is maximised, ``(batch,)``, by bound and gradient."""


class IWAE(VAE):
    r"""The importance weighted autoencoder: a :class:`aecourse.vae.VAE` with another loss.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}\left[\log \frac1K \sum_{i=1}^K
              \frac{p(x, z_i)}{q(z_i|x)}\right], \qquad z_i \sim q(z|x)

    The gradient of this bound for the encoder drowns in noise as K grows, if it is that of the
    reparameterised draws (``"pathwise"``; Rainforth et al. 2018). ``"dreg"`` is unbiased as well, and gets
    clearer with more draws. With ``bound="elbo"`` the weights' logarithms are averaged: the ELBO with its KL
    estimated from the same draws. There ``gradient="stl"`` leaves out the score of q, which is zero on
    average; what remains is zero for every draw, not only on average, where q is the posterior.

    ``gradient="stl"`` with ``bound="iwae"`` is refused: what it leaves out is not zero on average there, for
    each draw changes its own weight, so that the encoder would climb something else than the bound.

    Args:
        encoder, decoder, options: those of :class:`aecourse.vae.VAE`, but for ``free_bits``.
        bound: ``"iwae"`` or ``"elbo"``.
        gradient: ``"pathwise"``; ``"dreg"`` with the first bound, ``"stl"`` with the second.
        samples: K, draws of z per example; the papers use 5 and 50.

    Raises:
        ValueError: a bound and a gradient that do not go together.

    Source: Burda, Grosse & Salakhutdinov (2016); Roeder et al. (2017) for ``"stl"``; Tucker et al. (2019) for
    ``"dreg"`` and the bias.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        bound: str = "iwae",
        gradient: str = "pathwise",
        samples: int = 5,
        **options,
    ):
        for name, value, known in (
            ("bound", bound, ("elbo", "iwae")),
            ("gradient", gradient, ("pathwise", "stl", "dreg")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r} but must be one of {known}.")
        if (bound, gradient) == ("elbo", "dreg"):
            raise ValueError("gradient='dreg' needs bound='iwae'; of the ELBO, 'stl' is the same estimator.")
        if (bound, gradient) == ("iwae", "stl"):
            raise ValueError("gradient='stl' is biased for bound='iwae': take 'dreg' (Tucker et al. 2019).")
        if options.get("free_bits"):
            raise ValueError("free_bits needs the KL in closed form, which this loss has not: take a VAE.")
        super().__init__(encoder, decoder, samples=samples, **options)
        self.bound = bound
        self.gradient = gradient

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """The negative bound of a batch; its parts are those of the ELBO, the KL in closed form.

        ``beta`` weighs log p(z) - log q(z|x), and stands in for the model's own.
        """
        beta = self.beta if beta is None else beta
        mean, logvar = self.encode(x)
        noise = standard_normal((self.samples, *mean.shape), like=mean, batch_dim=1)
        reconstruction = []

        def log_joint(z: Tensor) -> Tensor:
            log_likelihood = self.log_likelihood(x, z)
            reconstruction.append(-log_likelihood.mean())
            return log_likelihood + beta * self.log_prior(z)

        bound = OBJECTIVES[self.bound, self.gradient](log_joint, mean, logvar, noise, beta)
        kl = self.kl_per_dimension(mean, logvar).sum(dim=1).mean()
        return Loss(total=-bound.mean(), parts={"reconstruction": reconstruction[0], "kl": kl})
