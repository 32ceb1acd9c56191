"""Inference: what can be done for one example at a time, and what an encoder loses by doing it for all.

Per-datapoint variational inference, annealed importance sampling, the two gaps of amortised inference, and
expectation maximisation: exact for Gaussian mixtures, exact or variational for probabilistic PCA.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from aecourse.bounds import elbo_from_joint
from aecourse.contracts import check_count, check_finite, check_shapes
from aecourse.evaluate import Estimate, evaluation_mode, importance_sampling, log_mean_weight
from aecourse.likelihoods import gaussian_entropy, gaussian_log_likelihood, reparameterize
from aecourse.linear import PPCA
from aecourse.mixtures import GaussianMixture

LogJoint = Callable[[Tensor, Tensor], Tensor]

# ---------------------------------------------------------------- one example at a time


def fit_posterior(
    x: Tensor,
    log_joint: LogJoint,
    mean: Tensor,
    logvar: Tensor,
    *,
    steps: int = 500,
    lr: float = 0.02,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The best N(mean, diag exp logvar) for each example by itself, found by gradient ascent.

    Maximises the ELBO of every example, the log joint averaged over reparameterised draws plus the entropy
    in closed form,

    .. math:: \mathbb{E}_{\epsilon}\left[\log p(x, \mu + \sigma\epsilon)\right]
              + \tfrac12 \sum_j \log 2\pi e\,\sigma_j^2

    with Adam. The examples do not influence each other. The step size falls linearly to zero, so that the
    noise of the draws averages out at the end.

    Args:
        x: ``(batch, ...)``.
        log_joint: log p(x, z) of ``(batch, ...)`` and ``(batch, k)``, ``(batch,)``: ``model.log_joint``.
        mean: ``(batch, k)``, where to start: at the encoder's answer, say. Left as it is.
        logvar: ``(batch, k)``, the same.
        steps: of Adam.
        lr: its step size at first.
        samples: draws per step and example.
        generator: of the draws; torch's global one by default.

    Returns:
        ``mean`` and ``logvar``, each ``(batch, k)``, without gradients. Those of the model are not touched.

    Raises:
        TypeError, ValueError: shapes that do not fit, counts below 1, a step size that is not positive.

    Source: Jordan et al. (1999) for the idea; Cremer, Li & Duvenaud (2018), section 5.2, for its use here.
    """
    sizes = check_shapes(("x", x, "batch ..."))
    check_shapes(("mean", mean, "batch k"), ("logvar", logvar, "batch k"))
    if len(mean) != sizes["batch"]:
        raise ValueError(f"mean has {len(mean)} rows but x has {sizes['batch']}: one q for each example.")
    check_count("steps", steps)
    check_count("samples", samples)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr is {lr} but must be positive.")
    with torch.enable_grad():
        q = [mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()]
        adam = torch.optim.Adam(q, lr=lr)
        for step in range(steps):
            adam.param_groups[0]["lr"] = lr * (1 - step / steps)
            bound = 0
            for _ in range(samples):
                noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
                value = log_joint(x, reparameterize(*q, noise=noise))
                bound = bound + elbo_from_joint(value, gaussian_entropy(q[1])).sum() / samples
            # Gradients of q alone: backward() would add to those of the model's weights as well.
            for parameter, gradient in zip(q, torch.autograd.grad(-bound, q)):
                parameter.grad = gradient
            adam.step()
    return q[0].detach(), q[1].detach()


def ais(
    model,
    x: Tensor,
    *,
    chains: int = 16,
    temperatures: int = 100,
    leapfrog: int = 10,
    start: str = "posterior",
    step_size: float = 0.1,
) -> Estimate:
    r"""log p(x) by annealed importance sampling: from q(z|x) or N(0, I) to the posterior in small steps.

    Between the start :math:`q_0` and the joint lie the densities

    .. math:: \log f_t(z) = (1 - \beta_t) \log q_0(z) + \beta_t \log p(x, z),
              \qquad 0 = \beta_0 < \dots < \beta_T = 1

    with a sigmoid schedule. A chain starts in :math:`q_0`; at every step its weight gains
    :math:`f_t(z) / f_{t-1}(z)`, and z then moves by Hamiltonian Monte Carlo, which leaves :math:`f_t` as it
    is. The weights have mean p(x), for any number of steps and however badly the chains mix, and a far
    smaller variance than those of plain importance sampling where q is not good.

    Step sizes are tuned for each example and temperature to accept about two moves in three, in a first run
    with chains of its own, whose weights are thrown away. The second run's moves then do not depend on
    its own past, which the argument for the mean needs.

    Args:
        model: a latent variable model: ``log_joint``, differentiable in z, and ``latent_dim``; to start from
            q(z|x), an ``encode`` that gives its mean and logvar.
        x: ``(batch, ...)``. The chains of all examples run together, on copies of x.
        chains: per example, at least two.
        temperatures: T, the number of steps.
        leapfrog: steps along each Hamiltonian trajectory.
        start: ``"posterior"``, the encoder's q(z|x), or ``"prior"``, N(0, I).
        step_size: where tuning starts, in units of the standard deviations of :math:`q_0`.

    Returns:
        An :class:`aecourse.evaluate.Estimate` of ``(batch,)``, in nats, with the standard error over chains.
        Like every logarithm of a mean it is low on average, by half the square of the standard error.

    Raises:
        TypeError, ValueError: ``x`` is no batch of floats, a count is too small, ``start`` is unknown.

    Source: Neal (2001); Wu et al. (2017), section 3 and appendix, for decoders.
    """
    batch = check_shapes(("x", x, "batch ..."))["batch"]
    check_count("temperatures", temperatures)
    check_count("leapfrog", leapfrog)
    check_count("chains", chains, least=2)
    if start not in ("posterior", "prior"):
        raise ValueError(f"start is {start!r} but must be 'posterior' or 'prior'.")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size is {step_size} but must be positive.")
    with evaluation_mode(model):
        with torch.no_grad():
            mean = logvar = x.new_zeros(batch, model.latent_dim)
            if start == "posterior":
                mean, logvar = model.encode(x)
        x, mean, logvar = (t.repeat(chains, *[1] * (t.dim() - 1)) for t in (x, mean, logvar))
        tuned = x.new_full((temperatures + 1, batch), step_size)
        _anneal(model, x, mean, logvar, leapfrog, tuned, tune=True)
        return log_mean_weight(_anneal(model, x, mean, logvar, leapfrog, tuned, tune=False))


def _anneal(model, x, mean, logvar, leapfrog: int, step_sizes: Tensor, tune: bool) -> Tensor:
    """One run of annealed importance sampling: log weights, ``(chains, batch)``.

    Rows are chains times examples. ``step_sizes``, ``(T + 1, batch)``, are used; with ``tune`` they are set
    on the way, each from the one before it.
    """
    steps, batch = len(step_sizes) - 1, step_sizes.shape[1]
    schedule = torch.sigmoid(torch.linspace(-4, 4, steps + 1, dtype=x.dtype, device=x.device))
    betas = (schedule - schedule[0]) / (schedule[-1] - schedule[0])
    std = torch.exp(0.5 * logvar)

    def log_densities(z: Tensor) -> tuple[Tensor, Tensor]:
        return gaussian_log_likelihood(z, mean, logvar), model.log_joint(x, z)

    def energy(z: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """-log f(z) and its gradient, in units of the standard deviations of the start."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_start, log_joint = log_densities(z)
            value = -(1 - beta) * log_start - beta * log_joint
            gradient = torch.autograd.grad(value.sum(), z)[0]
        return value.detach(), gradient * std

    z = mean + std * torch.randn_like(mean)
    log_weights = torch.zeros_like(z[:, 0])
    for t in range(1, steps + 1):
        with torch.no_grad():
            log_start, log_joint = log_densities(z)
        log_weights = log_weights + (betas[t] - betas[t - 1]) * (log_joint - log_start)
        if t == steps:
            break  # a last move would change no weight
        size = step_sizes[t].repeat(len(z) // batch).unsqueeze(1)
        momentum = torch.randn_like(z)
        before, gradient = energy(z, betas[t])
        before = before + 0.5 * momentum.square().sum(dim=1)
        proposal = z
        for _ in range(leapfrog):
            momentum = momentum - 0.5 * size * gradient
            proposal = proposal + size * std * momentum
            after, gradient = energy(proposal, betas[t])
            momentum = momentum - 0.5 * size * gradient
        after = after + 0.5 * momentum.square().sum(dim=1)
        # A trajectory that ran off to NaN compares as False, and is rejected.
        accepted = torch.rand_like(before).log() < before - after
        z = torch.where(accepted.unsqueeze(1), proposal, z)
        if tune:
            rate = accepted.view(-1, batch).to(x.dtype).mean(dim=0)
            step_sizes[t + 1] = (step_sizes[t] * torch.exp(0.5 * (rate - 0.65))).clamp(max=2.0)
    return log_weights.view(-1, batch)


# --------------------------------------------------------------- what amortisation costs


class InferenceGaps(NamedTuple):
    """How far the ELBO is from log p(x), and why; made by :func:`inference_gaps`. All ``(batch,)``, nats."""

    log_px: Tensor
    """log p(x), or the best estimate of it."""

    elbo_best: Tensor
    """The ELBO with the best q of the family for each example by itself."""

    elbo_amortized: Tensor
    """The ELBO with the encoder's q."""

    @property
    def approximation(self) -> Tensor:
        """log p(x) - best ELBO: what the family of q cannot express."""
        return self.log_px - self.elbo_best

    @property
    def amortization(self) -> Tensor:
        """Best ELBO - encoder's ELBO: what is lost by one network answering for all x."""
        return self.elbo_best - self.elbo_amortized


def inference_gaps(
    model,
    x: Tensor,
    *,
    reference: str = "ais",
    steps: int = 500,
    lr: float = 0.02,
    samples: int = 500,
    **options,
) -> InferenceGaps:
    r"""Split the gap between log p(x) and the ELBO into approximation and amortisation.

    .. math:: \log p(x) - \mathcal{L}[q_\phi]
              = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}}
              + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q_\phi]}_{\text{amortisation}}

    q* is found with :func:`fit_posterior`, started at the encoder's answer; both ELBOs are then averaged
    over the same draws, so that most of their noise cancels in the difference. Where q* was not reached,
    the amortisation gap is too small and the approximation gap too large by as much.

    Args:
        model: a latent variable model.
        x: ``(batch, ...)``.
        reference: how log p(x) is found: ``"ais"``, or ``"importance"`` sampling from the encoder's q. Both
            are low on average, and the approximation gap with them.
        steps, lr: of :func:`fit_posterior`, which takes 10 draws per step here.
        samples: draws for the ELBOs.
        options: of :func:`ais`, or of :func:`aecourse.evaluate.importance_sampling`, there with 5,000
            samples unless named ``importance_samples``.

    Returns:
        :class:`InferenceGaps`; report the means of its properties over the batch.

    Raises:
        TypeError, ValueError: an unknown reference, and what the functions named above raise.

    Source: Cremer, Li & Duvenaud (2018), section 3.
    """
    check_shapes(("x", x, "batch ..."))
    check_count("samples", samples)
    if reference not in ("ais", "importance"):
        raise ValueError(f"reference is {reference!r} but must be 'ais' or 'importance'.")
    if reference == "ais":
        log_px = ais(model, x, **options).value
    else:
        log_px = importance_sampling(model, x, options.pop("importance_samples", 5000), **options).value
    with evaluation_mode(model), torch.no_grad():
        encoded = model.encode(x)
        best = fit_posterior(x, model.log_joint, *encoded, steps=steps, lr=lr, samples=10)
        bounds = torch.zeros(2, len(x), dtype=log_px.dtype, device=x.device)
        for _ in range(samples):
            noise = torch.randn_like(encoded[0])
            for bound, (mean, logvar) in zip(bounds, (best, encoded)):
                value = model.log_joint(x, reparameterize(mean, logvar, noise=noise))
                bound += elbo_from_joint(value, gaussian_entropy(logvar)) / samples
    return InferenceGaps(log_px, bounds[0], bounds[1])


# ------------------------------------------------------- expectation maximisation: mixtures


def em_step(x: Tensor, mixture: GaussianMixture, *, floor: float = 1e-6) -> GaussianMixture:
    r"""One step of expectation maximisation for a Gaussian mixture; log p(x) never falls.

    E-step: the responsibilities r, which are the exact posterior of the component. M-step: the weights,
    means and covariances that maximise the bound of :func:`mixture_bound` for these,

    .. math:: \pi_k = \frac{N_k}{N}, \quad m_k = \frac{1}{N_k} \sum_n r_{nk} x_n, \quad
              S_k = \frac{1}{N_k} \sum_n r_{nk} (x_n - m_k)(x_n - m_k)^\top, \quad N_k = \sum_n r_{nk}

    A component that shrinks to a single point would raise the likelihood without limit. So the
    eigenvalues of every covariance are kept at or above a floor. What results is the exact maximum under
    this condition, and if the mixture that it starts from meets it, the likelihood still never falls, as it
    can if the floor is added instead. A component that no example belongs to keeps its mean and covariance,
    with the weight 0 that it has earned.

    Args:
        x: ``(N, D)``.
        mixture: where to start from.
        floor: least variance in any direction, in the squared units of x; positive.

    Returns:
        A new :class:`aecourse.mixtures.GaussianMixture`.

    Raises:
        TypeError, ValueError: shapes that do not fit, NaN, or a floor that is not positive.

    Source: Dempster, Laird & Rubin (1977); Bishop (2006), section 9.2.2.
    """
    check_shapes(("x", x, "N D"), ("mixture.means", mixture.means, "k D"))
    check_finite("x", x)
    _check_floor(floor)
    r = mixture.responsibilities(x)
    counts = r.sum(dim=0)
    kept = counts > torch.finfo(x.dtype).tiny
    shares = r / torch.where(kept, counts, 1)
    means = shares.T @ x
    centred = x - means.unsqueeze(1)  # (k, N, D)
    covs = (shares.T.unsqueeze(2) * centred).mT @ centred
    values, vectors = torch.linalg.eigh(covs)
    covs = vectors * values.clamp(min=floor).unsqueeze(1) @ vectors.mT
    return GaussianMixture(
        counts / len(x),
        torch.where(kept.unsqueeze(1), means, mixture.means),
        torch.where(kept.view(-1, 1, 1), covs, mixture.covs),
    )


class MixtureFit(NamedTuple):
    """A fitted mixture and how it got there; made by :func:`fit_mixture`."""

    mixture: GaussianMixture

    history: Tensor
    """``(steps + 1,)``, the mean of log p(x) over the examples, nats: at the start and after each step."""


def fit_mixture(
    x: Tensor,
    k: int,
    steps: int = 100,
    *,
    start: GaussianMixture | None = None,
    floor: float = 1e-6,
    generator: torch.Generator | None = None,
) -> MixtureFit:
    """Fit a Gaussian mixture by expectation maximisation.

    It climbs to a maximum near its start, not to the best one: try several.

    Args:
        x: ``(N, D)``.
        k: number of components, at most N.
        steps: how many times :func:`em_step`.
        start: a mixture of k components; by default k examples, drawn at random, are the means, with equal
            weights and the covariance of all the data.
        floor: see :func:`em_step`.
        generator: of that draw; torch's global one by default.

    Returns:
        :class:`MixtureFit`, whose history never falls.

    Raises:
        TypeError, ValueError: as :func:`em_step`; counts that are too small, ``k`` above N, a start with
            another number of components.
    """
    sizes = check_shapes(("x", x, "N D"))
    check_finite("x", x)
    check_count("k", k)
    check_count("steps", steps)
    _check_floor(floor)
    if k > sizes["N"]:
        raise ValueError(f"k is {k} but x has only {sizes['N']} examples.")
    if start is None:
        device = None if generator is None else generator.device
        chosen = torch.randperm(sizes["N"], generator=generator, device=device)[:k].to(x.device)
        cov = torch.cov(x.T, correction=0).view(sizes["D"], sizes["D"])
        cov = cov + floor * torch.eye(sizes["D"]).to(x)
        start = GaussianMixture(x.new_full((k,), 1 / k), x[chosen], cov.expand(k, -1, -1))
    elif len(start.means) != k:
        raise ValueError(f"start has {len(start.means)} components but k is {k}.")
    mixture, history = start, [start.log_density(x).mean()]
    for _ in range(steps):
        mixture = em_step(x, mixture, floor=floor)
        history.append(mixture.log_density(x).mean())
    return MixtureFit(mixture, torch.stack(history))


def mixture_bound(x: Tensor, responsibilities: Tensor, mixture: GaussianMixture) -> Tensor:
    r"""The lower bound on log p(x) that expectation maximisation climbs, for any q and any parameters.

    .. math:: \sum_k r_k \left(\log \pi_k + \log \mathcal{N}(x; m_k, S_k) - \log r_k\right)
              = \log p(x) - \mathrm{KL}(r \,\|\, p(k|x))

    With the responsibilities held and the parameters varied it is one of the curves under the likelihood
    in Bishop's figure 9.14; it touches it where they are the exact ones.

    Args:
        x: ``(N, D)``.
        responsibilities: ``(N, k)``, q(k|x): not negative, rows that add up to 1.
        mixture: the parameters.

    Returns:
        ``(N,)``, nats.

    Raises:
        TypeError, ValueError: shapes that do not fit, or rows that are no distributions.

    Source: Neal & Hinton (1998); Bishop (2006), section 9.4.
    """
    check_shapes(
        ("x", x, "N D"),
        ("mixture.means", mixture.means, "k D"),
        ("responsibilities", responsibilities, "N k"),
    )
    sums = responsibilities.sum(dim=1)
    if (responsibilities < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise ValueError("responsibilities must not be negative and must add up to 1 in every row.")
    terms = responsibilities * mixture.log_components(x) - torch.xlogy(responsibilities, responsibilities)
    return torch.where(responsibilities > 0, terms, 0).sum(dim=1)  # 0 times log 0 is 0


# ------------------------------------------- expectation maximisation: probabilistic PCA


class PPCAFit(NamedTuple):
    """A fitted probabilistic PCA and how it got there; made by :func:`variational_em`."""

    model: PPCA

    history: Tensor
    """``(steps + 1,)``, the mean over the examples of the bound right after each E-step, nats."""


def variational_em(x: Tensor, start: PPCA, steps: int = 100, *, posterior: str = "exact") -> PPCAFit:
    r"""Fit probabilistic PCA by expectation maximisation, with the exact posterior or a diagonal one.

    E-step: q(z|x) = N(m(x), S) with m the exact posterior mean, and S the exact covariance
    :math:`\sigma^2 M^{-1}`, or the best diagonal one, :math:`\sigma^2 / M_{jj}`, where :math:`M = W^\top W +
    \sigma^2 I`. M-step: W and :math:`\sigma^2` that maximise the bound for this q. (The mean of the data is
    the best mean, whatever the rest.)

    Neither bound ever falls. With the exact posterior it is log p(x), and the end is the maximum likelihood,
    with columns of W that are any rotation of each other. The diagonal one adds the gap
    :math:`\tfrac12(\sum_j \log M_{jj} - \log\det M)`, which is zero only for orthogonal columns: the end
    is the same maximum, with the rotation gone. That is the optimum of the linear VAE, whose encoder is such
    a q for all x at once: amortisation costs nothing here, since the best q is linear in x.

    Args:
        x: ``(N, D)``.
        start: W, ``(D, k)``, and the noise variance to start from; small random numbers and 1 will do. Zeros
            stay zeros.
        steps: E-steps and M-steps.
        posterior: ``"exact"`` or ``"diagonal"``.

    Returns:
        :class:`PPCAFit`.

    Raises:
        TypeError, ValueError: shapes that do not fit, NaN, no steps, an unknown posterior.

    Source: Tipping & Bishop (1999), appendix B; Lucas et al. (2019) for the diagonal case.
    """
    sizes = check_shapes(("x", x, "N D"), ("start.weight", start.weight, "D k"))
    check_finite("x", x)
    check_count("steps", steps)
    if posterior not in ("exact", "diagonal"):
        raise ValueError(f"posterior is {posterior!r} but must be 'exact' or 'diagonal'.")
    model = PPCA(x.mean(dim=0), start.weight, start.variance)
    centred = x - model.mean
    history = []
    for step in range(steps + 1):
        # E-step, and the bound it reaches: log p(x) less the KL from q to the posterior.
        mean, cov = model.posterior(x)
        gap = torch.zeros_like(model.variance)
        if posterior == "diagonal":
            precision = torch.linalg.inv(cov)
            cov = torch.diag(1 / precision.diagonal())
            gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        history.append(model.log_likelihood(x).mean() - gap)
        if step == steps:
            break
        # M-step: linear regression of x on z, where z is known up to q.
        second_moment = mean.T @ mean / sizes["N"] + cov
        weight = torch.linalg.solve(second_moment, mean.T @ centred / sizes["N"]).T
        error = (centred - mean @ weight.T).square().sum(dim=1).mean()
        variance = (error + torch.trace(weight @ cov @ weight.T)) / sizes["D"]
        model = PPCA(model.mean, weight, variance)
    return PPCAFit(model, torch.stack(history))


# -------------------------------------------------------------------------------- inner parts


def _check_floor(floor: float) -> None:
    if not 0 < floor < math.inf:
        raise ValueError(f"floor is {floor} but must be positive.")
