"""Mixtures of Gaussians: a density, its score and its denoiser, all exact.

The one family in this course that has more than one mode and whose every quantity is known. It is the
ground truth for the score of a denoising autoencoder, and the model that EM fits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aecourse.contracts import check_shapes


class GaussianMixture(NamedTuple):
    r"""p(x) = sum_i weights_i N(x; means_i, covs_i).

    Build it with :func:`gaussian_mixture`, which checks the parameters.
    """

    weights: Tensor
    """``(k,)``, positive, with the sum 1."""

    means: Tensor
    """``(k, D)``."""

    covs: Tensor
    """``(k, D, D)``, symmetric and positive definite."""

    def log_components(self, x: Tensor) -> Tensor:
        """log weights_i + log N(x; means_i, covs_i), ``(N, D)`` to ``(N, k)``, nats."""
        check_shapes(("means", self.means, "k D"), ("x", x, "N D"))
        normal = torch.distributions.MultivariateNormal(self.means, self.covs, validate_args=False)
        return self.weights.log() + normal.log_prob(x.unsqueeze(1))

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), ``(N, D)`` to ``(N,)``, nats."""
        return self.log_components(x).logsumexp(dim=1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(component | x), ``(N, D)`` to ``(N, k)``; each row has the sum 1 (Bishop 2006, equation 9.13)."""
        return self.log_components(x).softmax(dim=1)

    def score(self, x: Tensor) -> Tensor:
        r"""The gradient of log p(x) by x, ``(N, D)`` to ``(N, D)``.

        .. math:: \nabla \log p(x) = \sum_i p(i | x)\, \Sigma_i^{-1} (\mu_i - x)
        """
        shares = self.responsibilities(x)
        differences = self.means - x.unsqueeze(1)
        pulls = torch.linalg.solve(self.covs, differences.unsqueeze(3)).squeeze(3)
        return (shares.unsqueeze(2) * pulls).sum(dim=1)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw points and say which component each comes from: ``(count, D)`` and ``(count,)`` int64."""
        if count < 1:
            raise ValueError(f"count is {count} but must be at least 1.")
        component = torch.multinomial(self.weights, count, replacement=True)
        noise = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, device=self.means.device)
        factors = torch.linalg.cholesky(self.covs)[component]
        return self.means[component] + (factors @ noise.unsqueeze(2)).squeeze(2), component

    def smoothed(self, sigma: float) -> "GaussianMixture":
        """The density of x plus Gaussian noise of standard deviation sigma: wider components."""
        _check_sigma(sigma)
        identity = torch.eye(self.means.shape[1], dtype=self.covs.dtype, device=self.covs.device)
        return self._replace(covs=self.covs + sigma**2 * identity)

    def denoise(self, noisy: Tensor, sigma: float) -> Tensor:
        r"""E[x | x + noise]: the best denoiser there is, ``(N, D)`` to ``(N, D)``.

        .. math:: \sum_i p(i|\tilde x) \left(\mu_i
                  + \Sigma_i (\Sigma_i + \sigma^2 I)^{-1} (\tilde x - \mu_i)\right)

        Within each component it is the linear denoiser; the noisy point decides how much each component
        counts. Tweedie's formula says that it must equal
        :math:`\tilde x + \sigma^2 \nabla \log p_\sigma(\tilde x)`, with the score of the smoothed density.

        Args:
            noisy: ``(N, D)``.
            sigma: standard deviation of the noise, positive.

        Source: Robbins (1956), Efron (2011) for Tweedie's formula.
        """
        wide = self.smoothed(sigma)
        shares = wide.responsibilities(noisy)
        differences = (noisy.unsqueeze(1) - self.means).unsqueeze(3)
        shrunk = (self.covs @ torch.linalg.solve(wide.covs, differences)).squeeze(3)
        return (shares.unsqueeze(2) * (self.means + shrunk)).sum(dim=1)


def gaussian_mixture(weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
    """A :class:`GaussianMixture` whose parameters have been checked.

    Args:
        weights: ``(k,)``, positive; they are divided by their sum.
        means: ``(k, D)``.
        covs: ``(k, D, D)``, symmetric and positive definite.

    Raises:
        TypeError, ValueError: shapes that do not fit, a weight that is not positive, or a matrix that is
            not symmetric and positive definite; the message names the component.
    """
    check_shapes(("weights", weights, "k"), ("means", means, "k D"), ("covs", covs, "k D D"))
    if not (weights > 0).all():
        raise ValueError(f"weights has the entry {weights.min():g} but needs them all positive.")
    uneven = (covs - covs.transpose(1, 2)).abs().amax(dim=(1, 2)) > 1e-5 * covs.abs().amax(dim=(1, 2))
    bad = uneven | (torch.linalg.cholesky_ex(covs)[1] != 0)
    if bad.any():
        component = int(bad.nonzero()[0])
        raise ValueError(
            f"covs must be symmetric and positive definite; covs[{component}] is {covs[component].tolist()}."
        )
    return GaussianMixture(weights / weights.sum(), means, covs)


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma is {sigma} but must be positive: it is a standard deviation.")
