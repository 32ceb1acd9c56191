"""Variational Bayes for a mixture of Gaussians: its weights, means and precisions are latent, too.

The priors are conjugate, so both steps of coordinate ascent and the bound itself are closed formulas.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aecourse.contracts import check_count, check_finite, check_shapes
from aecourse.mixtures import GaussianMixture


class MixturePrior(NamedTuple):
    r"""What is believed of a mixture's parameters before any data; build it with :func:`mixture_prior`.

    .. math:: \pi \sim \text{Dirichlet}(\alpha), \quad \Lambda_k \sim \text{Wishart}(\Lambda_0, \nu), \quad
              \mu_k | \Lambda_k \sim \mathcal{N}(0, (\beta\Lambda_k)^{-1})
    """

    concentration: float
    r""":math:`\alpha` of every component. Below 1, weights near zero are likely."""

    scale: Tensor
    r""":math:`\Lambda_0`, ``(D, D)``: the mean of a precision matrix is :math:`\nu \Lambda_0`."""

    dof: float
    r""":math:`\nu > D - 1`."""

    mean_precision: float
    r""":math:`\beta`: how many examples at the origin the prior of a mean counts for."""


def mixture_prior(
    dim: int,
    *,
    concentration: float = 1.0,
    scale: Tensor | None = None,
    dof: float | None = None,
    mean_precision: float = 1.0,
) -> MixturePrior:
    """A :class:`MixturePrior` whose numbers have been checked.

    Args:
        dim: D.
        concentration, mean_precision: positive.
        scale: ``(D, D)``, symmetric and positive definite; the identity in double precision by default.
        dof: above D - 1; D by default.

    Raises:
        TypeError, ValueError: a number out of its range, or a scale that is no such matrix.
    """
    check_count("dim", dim)
    dof = float(dim) if dof is None else float(dof)
    scale = torch.eye(dim, dtype=torch.float64) if scale is None else scale
    check_shapes(("scale", scale, "D D"))
    for name, value in {"concentration": concentration, "mean_precision": mean_precision}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value} but must be positive.")
    if not dim - 1 < dof < math.inf:
        raise ValueError(f"dof is {dof} but must be above D - 1 = {dim - 1}: no such Wishart has a density.")
    if len(scale) != dim or not torch.allclose(scale, scale.T) or torch.linalg.cholesky_ex(scale)[1] != 0:
        raise ValueError(
            f"scale must be symmetric, positive definite and {dim} x {dim}; it is {scale.tolist()}."
        )
    return MixturePrior(float(concentration), scale, dof, float(mean_precision))


class MixturePosterior(NamedTuple):
    r"""q over a mixture's parameters: Dirichlet, and for each component Gaussian times Wishart.

    .. math:: q(\pi) = \text{Dirichlet}(\alpha_{1:K}), \quad
              q(\mu_k, \Lambda_k) = \mathcal{N}(\mu_k; m_k, (\beta_k\Lambda_k)^{-1})\,
              \text{Wishart}(\Lambda_k; W_k, \nu_k)
    """

    concentrations: Tensor
    r""":math:`\alpha_k`, ``(k,)``."""

    means: Tensor
    r""":math:`m_k`, ``(k, D)``."""

    mean_precisions: Tensor
    r""":math:`\beta_k`, ``(k,)``."""

    scales: Tensor
    r""":math:`W_k`, ``(k, D, D)``."""

    dofs: Tensor
    r""":math:`\nu_k`, ``(k,)``."""

    def expected_log_components(self, x: Tensor) -> Tensor:
        """E log weight_k + E log N(x; mu_k, Lambda_k^-1) under q, ``(N, D)`` to ``(N, k)``, nats.

        Source: Bishop (2006), equations 10.46 and 10.64 to 10.66.
        """
        check_shapes(("means", self.means, "k D"), ("x", x, "N D"))
        dim = x.shape[1]
        log_weights = self.concentrations.digamma() - self.concentrations.sum().digamma()
        away = x.unsqueeze(1) - self.means  # (N, k, D)
        distance = torch.einsum("nkd,kde,nke->nk", away, self.scales, away) * self.dofs
        distance = distance + dim / self.mean_precisions
        return log_weights + 0.5 * (_expected_log_det(self.scales, self.dofs) - dim * _LOG_2PI - distance)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The best q(component | x) for this q of the parameters, ``(N, D)`` to ``(N, k)``."""
        return self.expected_log_components(x).softmax(dim=1)

    def mean_mixture(self) -> GaussianMixture:
        """One mixture in the middle of q: expected weights, means, and inverses of expected precisions."""
        covs = torch.linalg.inv(self.scales * self.dofs.view(-1, 1, 1))
        return GaussianMixture(self.concentrations / self.concentrations.sum(), self.means, covs)

    def log_predictive(self, x: Tensor) -> Tensor:
        """log of the density of a new example, averaged over q, ``(N, D)`` to ``(N,)``, nats.

        A mixture of Student t densities (Bishop 2006, equation 10.81): components with few examples have
        heavy tails, since little is known of them.
        """
        check_shapes(("means", self.means, "k D"), ("x", x, "N D"))
        dim = x.shape[1]
        freedom = self.dofs + 1 - dim
        factor = freedom * self.mean_precisions / (1 + self.mean_precisions)
        away = x.unsqueeze(1) - self.means
        distance = torch.einsum("nkd,kde,nke->nk", away, self.scales, away) * factor
        log_t = (
            torch.lgamma(0.5 * (freedom + dim))
            - torch.lgamma(0.5 * freedom)
            + 0.5 * (torch.logdet(self.scales) + dim * (factor / freedom / math.pi).log())
            - 0.5 * (freedom + dim) * torch.log1p(distance / freedom)
        )
        log_weights = (self.concentrations / self.concentrations.sum()).log()
        return (log_weights + log_t).logsumexp(dim=1)


def mixture_posterior(x: Tensor, responsibilities: Tensor, prior: MixturePrior) -> MixturePosterior:
    r"""The best q of a mixture's parameters for given responsibilities: the prior, updated by soft counts.

    With :math:`N_k = \sum_n r_{nk}` and :math:`s_k = \sum_n r_{nk} x_n`,

    .. math:: \alpha_k = \alpha + N_k, \quad \beta_k = \beta + N_k, \quad \nu_k = \nu + N_k, \quad
              m_k = s_k / \beta_k, \\
              W_k^{-1} = \Lambda_0^{-1} + \sum_n r_{nk}\, x_n x_n^\top - \beta_k\, m_k m_k^\top

    Args:
        x: ``(N, D)``.
        responsibilities: ``(N, k)``: not negative, rows that add up to 1.
        prior: of D dimensions.

    Raises:
        TypeError, ValueError: shapes that do not fit, NaN, or rows that are no distributions.

    Source: Bishop (2006), equations 10.57 to 10.63, with a prior mean of zero.
    """
    check_shapes(
        ("x", x, "N D"), ("responsibilities", responsibilities, "N k"), ("scale", prior.scale, "D D")
    )
    check_finite("x", x)
    sums = responsibilities.sum(dim=1)
    if (responsibilities < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise ValueError("responsibilities must not be negative and must add up to 1 in every row.")
    counts = responsibilities.sum(dim=0)
    mean_precisions = prior.mean_precision + counts
    # Centred at the weighted means: the formula above subtracts large numbers where x is far from zero.
    centres = responsibilities.T @ x / counts.clamp(min=torch.finfo(x.dtype).tiny).unsqueeze(1)
    away = x - centres.unsqueeze(1)  # (k, N, D)
    scatter = (responsibilities.T.unsqueeze(2) * away).mT @ away
    pull = prior.mean_precision * counts / mean_precisions
    outer = centres.unsqueeze(2) * centres.unsqueeze(1)
    inverse = torch.linalg.inv(prior.scale) + scatter + pull.view(-1, 1, 1) * outer
    scales = torch.linalg.inv(inverse)
    return MixturePosterior(
        prior.concentration + counts,
        centres * (counts / mean_precisions).unsqueeze(1),
        mean_precisions,
        0.5 * (scales + scales.mT),
        prior.dof + counts,
    )


def mixture_evidence_bound(
    x: Tensor, responsibilities: Tensor, posterior: MixturePosterior, prior: MixturePrior
) -> Tensor:
    r"""The lower bound on log p(all x), weights, means and precisions integrated out; exact, for any q.

    .. math:: \sum_{n,k} r_{nk} \left(\mathbb{E}\log\pi_k + \mathbb{E}\log\mathcal{N}(x_n; \mu_k,
              \Lambda_k^{-1}) - \log r_{nk}\right) - \mathrm{KL}(q(\theta)\,\|\,p(\theta))

    Args:
        x: ``(N, D)``.
        responsibilities: ``(N, k)``, q of the components.
        posterior: q of the parameters.
        prior: their prior.

    Returns:
        ``()``, nats for *all* examples together, since they share the parameters.

    Source: Bishop (2006), equations 10.70 to 10.77.
    """
    check_shapes(
        ("x", x, "N D"), ("means", posterior.means, "k D"), ("responsibilities", responsibilities, "N k")
    )
    terms = posterior.expected_log_components(x)
    return _bound(terms, responsibilities, parameter_kl(posterior, prior))


def _bound(terms: Tensor, r: Tensor, kl: Tensor) -> Tensor:
    return (r * terms - torch.xlogy(r, r)).sum() - kl


def parameter_kl(posterior: MixturePosterior, prior: MixturePrior) -> Tensor:
    """KL(q(parameters) || prior), nats, ``()``: what a mixture pays for departing from its prior."""
    a, dim = posterior.concentrations, posterior.means.shape[1]
    a0 = torch.full_like(a, prior.concentration)
    weights = (
        torch.lgamma(a.sum())
        - torch.lgamma(a0.sum())
        - (torch.lgamma(a) - torch.lgamma(a0)).sum()
        + ((a - a0) * (a.digamma() - a.sum().digamma())).sum()
    )
    b, m, w, v = posterior.mean_precisions, posterior.means, posterior.scales, posterior.dofs
    ratio = prior.mean_precision / b
    lengths = prior.mean_precision * v * torch.einsum("kd,kde,ke->k", m, w, m)
    means = 0.5 * (dim * (ratio - 1 - ratio.log()) + lengths)
    more = v - prior.dof
    precisions = (
        0.5 * more * _expected_log_det(w, v)
        - 0.5 * v * dim
        + 0.5 * v * (torch.linalg.inv(prior.scale) * w).sum(dim=(1, 2))
        - 0.5 * v * torch.logdet(w)
        + 0.5 * prior.dof * torch.logdet(prior.scale)
        - 0.5 * more * dim * math.log(2)
        - torch.mvlgamma(0.5 * v, dim)
        + torch.mvlgamma(torch.full_like(v, 0.5 * prior.dof), dim)
    )
    return weights + (means + precisions).sum()


class BayesianMixtureFit(NamedTuple):
    """A fitted q and how it got there; made by :func:`fit_bayesian_mixture`."""

    posterior: MixturePosterior

    responsibilities: Tensor
    """``(N, k)``, those that the posterior was made from."""

    history: Tensor
    """``(2 * steps + 1,)``, the bound on log p(all x), nats: at the start, and after every half of a step."""

    @property
    def counts(self) -> Tensor:
        """How many examples each component answers for, ``(k,)``."""
        return self.responsibilities.sum(dim=0)


def fit_bayesian_mixture(
    x: Tensor,
    k: int,
    prior: MixturePrior,
    steps: int = 100,
    *,
    responsibilities: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> BayesianMixtureFit:
    """Variational Bayes for a Gaussian mixture, by coordinate ascent; the bound never falls.

    A step is two: the best responsibilities for q of the parameters, and the best q of the parameters for
    those. Where the data need fewer than k components and the concentration is small, some end with no
    example: then q of their parameters is the prior.

    Args:
        x: ``(N, D)``.
        k: number of components to start with, at most N.
        prior: see :func:`mixture_prior`.
        steps: how many.
        responsibilities: ``(N, k)``, where to start; by default each example belongs to the nearest of k
            examples drawn at random.
        generator: of that draw; torch's global one by default.

    Raises:
        TypeError, ValueError: as :func:`mixture_posterior`; counts that are too small, ``k`` above N.

    Source: Bishop (2006), section 10.2.
    """
    sizes = check_shapes(("x", x, "N D"))
    check_count("k", k)
    check_count("steps", steps)
    if k > sizes["N"]:
        raise ValueError(f"k is {k} but x has only {sizes['N']} examples.")
    r = responsibilities
    if r is None:
        device = "cpu" if generator is None else generator.device
        chosen = torch.randperm(sizes["N"], generator=generator, device=device)[:k].to(x.device)
        nearest = torch.cdist(x, x[chosen]).argmin(dim=1)
        r = torch.nn.functional.one_hot(nearest, k).to(x)
    elif r.shape != (sizes["N"], k):
        raise ValueError(f"responsibilities has shape {tuple(r.shape)} but needs {(sizes['N'], k)}.")
    history = []
    for step in range(steps + 1):
        posterior = mixture_posterior(x, r, prior)
        terms, kl = posterior.expected_log_components(x), parameter_kl(posterior, prior)
        history.append(_bound(terms, r, kl))
        if step < steps:
            r = terms.softmax(dim=1)
            history.append(_bound(terms, r, kl))
    return BayesianMixtureFit(posterior, r, torch.stack(history))


_LOG_2PI = math.log(2 * math.pi)


def _expected_log_det(scales: Tensor, dofs: Tensor) -> Tensor:
    """E log det of a Wishart matrix, ``(k, D, D)`` and ``(k,)`` to ``(k,)`` (Bishop 2006, equation B.81)."""
    dim = scales.shape[1]
    steps = torch.arange(dim, dtype=scales.dtype, device=scales.device)
    halves = 0.5 * (dofs.unsqueeze(1) - steps)
    return halves.digamma().sum(dim=1) + dim * math.log(2) + torch.logdet(scales)
