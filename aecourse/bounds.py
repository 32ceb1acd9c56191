"""Bounds on the log evidence, and the named result that every model's loss returns."""

import math
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor

from aecourse.contracts import check_shapes


@dataclass(frozen=True)
class Loss:
    """What ``model.loss(batch)`` returns: the number to minimise, and the parts it is made of.

    One training loop, one history and one plot serve every model because they only know this.

    **Several players.** In an adversarial model a submodule minimises something of its own: ``own`` names it
    and its loss, and each parameter takes its gradient from one loss alone. Another way would be to add all
    losses into ``total``, with every player seeing copies of the others whose parameters are constants; but
    then ``loss`` is about copies, and a forgotten one mixes two players' gradients and changes no value.
    Here an adversarial autoencoder's ``loss`` reads as its algorithm: who minimises what.
    """

    total: Tensor
    """A scalar: the mean over the batch of the loss per example."""

    parts: dict[str, Tensor]
    """Scalars by name, means over the batch: ``reconstruction``, ``kl``, ... For the models with a
    likelihood they are in nats per example and *unweighted*, so that runs with different ``beta`` can
    be compared part by part."""

    own: dict[str, Tensor] = field(default_factory=dict)
    """Scalars by the name of a submodule, such as ``critic`` or ``decoder.head``, means over the batch: what
    the submodule minimises *in place of* ``total``. All other parameters minimise ``total``. The same names
    at every step."""

    @property
    def terms(self) -> dict[str, Tensor]:
        """All numbers by the names they have in a history: ``total``, the parts, ``own.critic``, ..."""
        return {"total": self.total, **self.parts, **{f"own.{name}": own for name, own in self.own.items()}}


def elbo(log_likelihood: Tensor, kl: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    r"""Evidence lower bound of each example, from its two terms.

    .. math:: \mathrm{ELBO}(x) = \mathbb{E}_{q(z|x)}[\log p(x|z)]
              - \beta\, \mathrm{KL}(q(z|x)\,\|\,p(z)) \;\le\; \log p(x)

    With one sample z from q(z|x) in ``log_likelihood`` this is an unbiased estimate of the bound.
    It bounds log p(x) for ``beta >= 1`` only; below 1 it is a training objective and nothing more.
    :func:`elbo_from_joint` and :func:`elbo_from_evidence` are the same bound from other terms.

    Args:
        log_likelihood: ``(batch,)``, log p(x|z) in nats.
        kl: ``(batch,)``, KL(q(z|x) || p(z)) in nats.
        beta: weight of the KL (Higgins et al. 2017), at least 0: a number, or a ``()`` tensor such as
            an annealing schedule fills in step by step (its value is not checked).

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError: ``beta`` is neither a number nor a tensor.
        ValueError: ``beta`` is negative or not a scalar, or the two terms have different shapes.

    Source: Kingma & Welling (2014), equation 3.
    """
    check_shapes(("log_likelihood", log_likelihood, "batch"), ("kl", kl, "batch"))
    if isinstance(beta, Tensor):
        if beta.dim() > 0:
            raise ValueError(f"beta has shape {tuple(beta.shape)} but needs (), one weight for all examples.")
    else:
        _check_number("beta", beta)
        if not beta >= 0:
            raise ValueError(f"beta is {beta} but must be at least 0: it weighs a penalty.")
    return log_likelihood - beta * kl


def elbo_from_joint(log_joint: Tensor, entropy: Tensor) -> Tensor:
    r"""The evidence lower bound as negative free energy: expected log-joint plus entropy.

    .. math:: \mathrm{ELBO}(x) = \mathbb{E}_{q(z|x)}[\log p(x, z)] + \mathbb{H}[q(z|x)]

    Args:
        log_joint: ``(batch,)``, log p(x, z) in nats, its expectation under q or one sample of it.
        entropy: ``(batch,)``, of q(z|x), as from :func:`aecourse.likelihoods.gaussian_entropy`.

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Neal & Hinton (1998), who call it the negative free energy.
    """
    check_shapes(("log_joint", log_joint, "batch"), ("entropy", entropy, "batch"))
    return log_joint + entropy


def elbo_from_evidence(log_evidence: Tensor, posterior_kl: Tensor) -> Tensor:
    r"""The evidence lower bound as what q misses: log-evidence less the KL to the true posterior.

    .. math:: \mathrm{ELBO}(x) = \log p(x) - \mathrm{KL}(q(z|x)\,\|\,p(z|x))

    Only models with a known posterior have these terms. The others are compared with them.

    Args:
        log_evidence: ``(batch,)``, log p(x) in nats.
        posterior_kl: ``(batch,)``, KL(q(z|x) || p(z|x)) in nats.

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Jordan et al. (1999).
    """
    check_shapes(("log_evidence", log_evidence, "batch"), ("posterior_kl", posterior_kl, "batch"))
    return log_evidence - posterior_kl


def elbo_over_classes(class_bounds: Tensor, log_q: Tensor, log_prior: Tensor) -> Tensor:
    r"""The evidence lower bound of a model with a class, which is summed over and not drawn.

    .. math:: \sum_c q(c|x) \left(\mathcal{L}_c(x) + \log p(c) - \log q(c|x)\right) \le \log p(x),
              \qquad \mathcal{L}_c(x) \le \log p(x|c)

    The best q(c|x) is proportional to p(c) exp L_c(x), and reaches log sum_c p(c) exp L_c(x).

    Args:
        class_bounds: ``(batch, classes)``, log p(x|c), or a bound on it, for each class.
        log_q: ``(batch, classes)``, log q(c|x), as from ``log_softmax``; -inf for a class that is ruled out.
        log_prior: ``(classes,)``, log p(c).

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kingma et al. (2014), equation 7.
    """
    check_shapes(
        ("class_bounds", class_bounds, "batch classes"),
        ("log_q", log_q, "batch classes"),
        ("log_prior", log_prior, "classes"),
    )
    ruled_out = log_q == -math.inf
    inside = class_bounds + log_prior - log_q.masked_fill(ruled_out, 0.0)
    return (log_q.exp() * inside.masked_fill(ruled_out, 0.0)).sum(dim=1)


def log_mean_exp(log_weights: Tensor, dim: int = 0) -> Tensor:
    r"""The logarithm of the mean of numbers that are given by their logarithms.

    .. math:: \log \frac1K \sum_i e^{l_i} = m + \log \sum_i e^{l_i - m} - \log K, \qquad m = \max_i l_i

    The largest is taken out before the exponential, so nothing overflows and not everything vanishes.
    The gradient is the softmax of ``log_weights``; a weight of zero (-inf) takes no part.

    Args:
        log_weights: any shape, ``(samples, batch)`` for the bounds.
        dim: the dimension to take the mean over; it disappears.

    Returns:
        The shape without ``dim``; -inf, and no gradient, where all weights are zero.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.
        ValueError: there is no dimension ``dim``, or nothing along it.
    """
    check_shapes(("log_weights", log_weights, "..."))
    if not -log_weights.dim() <= dim < log_weights.dim():
        raise ValueError(f"log_weights has shape {tuple(log_weights.shape)}, so there is no dimension {dim}.")
    count = log_weights.shape[dim]
    if count == 0:
        raise ValueError(f"log_weights has shape {tuple(log_weights.shape)} but needs at least one sample.")
    largest = log_weights.detach().amax(dim, keepdim=True)
    largest = largest.where(largest.isfinite(), 0.0)
    # logsumexp takes the largest out as well, but not for its gradient exp(l - result), which from
    # results of a few thousand on has lost digits and no longer sums to one.
    return torch.logsumexp(log_weights - largest, dim) - math.log(count) + largest.squeeze(dim)


def iwae_bound(log_weights: Tensor) -> Tensor:
    r"""Importance weighted bound: a tighter lower bound from K samples of each example.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}\left[\log \frac1K \sum_{i=1}^K w_i\right] \le \log p(x),
              \qquad w_i = \frac{p(x, z_i)}{q(z_i|x)}, \quad z_i \sim q(z|x)

    This is an unbiased estimate of it: the ELBO for K = 1, log p(x) in the limit. It is as good a bound
    with any weights whose mean is p(x), so it takes them ready made. For its gradient see
    :mod:`aecourse.gradients`.

    Args:
        log_weights: ``(samples, batch)``, log w in nats; the KL is in them, and must not be taken off again.

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or no samples.

    Source: Burda, Grosse & Salakhutdinov (2016), equation 8.
    """
    check_shapes(("log_weights", log_weights, "samples batch"))
    return log_mean_exp(log_weights, dim=0)


def free_bits(kl_per_dimension: Tensor, minimum: float) -> Tensor:
    r"""A KL that is free of charge up to a minimum per latent dimension, against posterior collapse.

    .. math:: \sum_j \max\left(\lambda, \frac1B \sum_b \mathrm{KL}_{bj}\right)

    The maximum is taken after the mean over the batch: a dimension may be used for some examples only.
    Below the minimum a dimension has no gradient.

    Args:
        kl_per_dimension: ``(batch, k)``, nats.
        minimum: lambda, nats per dimension, at least 0. Published values are 0.125 to 0.25 and higher.

    Returns:
        ``()``, nats per example: to put in place of the mean KL, never less than k times the minimum.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or for ``minimum``.

    Source: Kingma et al. (2016), appendix C.8.
    """
    check_shapes(("kl_per_dimension", kl_per_dimension, "batch k"))
    _check_number("minimum", minimum)
    if not 0 <= minimum < math.inf:
        raise ValueError(f"minimum is {minimum} but must be at least 0 and finite.")
    return kl_per_dimension.mean(dim=0).clamp(min=minimum).sum()


def linear_annealing(step: float, start: float, end: float) -> float:
    """Weight of the KL that is 0 until ``start``, 1 from ``end`` on, and rises evenly between them.

    Args:
        step: the number of updates made so far, at least 0.
        start: the last step with weight 0, at least 0.
        end: the first step with weight 1, after ``start``.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError, ValueError: something is not a number or out of its range.

    Source: Sønderby et al. (2016), who call it warm-up.
    """
    _check_step(step)
    _check_number("start", start)
    _check_number("end", end)
    if not 0 <= start < end < math.inf:
        raise ValueError(f"start is {start} and end is {end} but they need 0 <= start < end.")
    return min(max((step - start) / (end - start), 0.0), 1.0)


def sigmoid_annealing(step: float, midpoint: float, width: float) -> float:
    r"""Weight of the KL that rises along a logistic curve.

    .. math:: 1 / (1 + e^{-(t - m) / w})

    Args:
        step: t, the number of updates made so far, at least 0.
        midpoint: m, the step with weight 1/2, at least 0.
        width: w, positive; the weight is 0.007 and 0.993 five widths before and after the midpoint.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError, ValueError: something is not a number or out of its range.

    Source: Bowman et al. (2016), section 3.1 and figure 2.
    """
    _check_step(step)
    _check_number("midpoint", midpoint)
    _check_number("width", width)
    if not 0 <= midpoint < math.inf:
        raise ValueError(f"midpoint is {midpoint} but must be at least 0 and finite.")
    if not 0 < width < math.inf:
        raise ValueError(f"width is {width} but must be positive and finite.")
    # The same function as a hyperbolic tangent, which cannot overflow.
    return 0.5 + 0.5 * math.tanh((step - midpoint) / (2 * width))


def cyclical_annealing(step: float, period: float, ratio: float = 0.5) -> float:
    """Weight of the KL that rises evenly from 0 to 1, stays there, and starts again every period.

    Args:
        step: the number of updates made so far, at least 0.
        period: steps per cycle, positive. For M cycles in a training it is the training's steps / M.
        ratio: the share of each period spent rising, more than 0 and at most 1.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError, ValueError: something is not a number or out of its range.

    Source: Fu et al. (2019); they use M = 4 and a ratio of 0.5.
    """
    _check_step(step)
    _check_number("period", period)
    _check_number("ratio", ratio)
    if not 0 < period < math.inf:
        raise ValueError(f"period is {period} but must be positive and finite.")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio} but must be more than 0 and at most 1.")
    return min(step % period / (period * ratio), 1.0)


def _check_step(step: float) -> None:
    _check_number("step", step)
    if not 0 <= step < math.inf:
        raise ValueError(f"step is {step} but must be at least 0 and finite.")


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}.")
