r"""Monte Carlo gradients of expectations under a Gaussian, and of the multi-sample bounds.

The first half differentiates E f(z) with z ~ N(mean, diag exp logvar) in the two ways there are: through
the sample (pathwise) and through its density (score function). The second half is about bounds: the
plain log weights, whose gradient autograd gives; an estimator for the ELBO that leaves out a part of that
gradient whose expectation is zero; and one for bounds of several samples, where it is not, which writes
that part anew through the samples.

Nothing here touches the ``.grad`` of its arguments, and the noise is always an argument, so that
estimators can be compared on the same draws.
"""

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from aecourse.bounds import iwae_bound
from aecourse.contracts import check_shapes
from aecourse.likelihoods import reparameterize


def pathwise_gradient(
    f: Callable[[Tensor], Tensor], mean: Tensor, logvar: Tensor, eps: Tensor, *, per_sample: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Gradient of E f(z) through the sample: the reparameterisation trick.

    .. math:: z = \mu + \sigma\epsilon, \qquad
              \frac{\partial}{\partial\mu} = \frac1S \sum_s f'(z_s), \qquad
              \frac{\partial}{\partial\log\sigma^2} = \frac1S \sum_s f'(z_s)\, \tfrac12 \sigma\epsilon_s

    Unbiased where f is the integral of its slope along the path of each sample: kinks are allowed, jumps are
    not, and continuity alone is not enough (the Cantor function has slope 0 almost everywhere).

    Args:
        f: maps ``(samples, k)`` to ``(samples,)``, each row on its own.
        mean: ``(k,)``.
        logvar: ``(k,)``.
        eps: ``(samples, k)``, draws from N(0, I).
        per_sample: give the terms of the means instead, to measure their variance.

    Returns:
        The gradients for ``mean`` and ``logvar``, each ``(k,)``, or ``(samples, k)`` per sample.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, also for what f returns.
        ValueError: f(z) does not depend on z in a way that autograd can follow.

    Source: Kingma & Welling (2014), section 2.4; Rezende, Mohamed & Wierstra (2014).
    """
    _check_expectation(f, mean, logvar, "eps", eps)
    std = torch.exp(0.5 * logvar.detach())
    z = (mean.detach() + std * eps.detach()).requires_grad_()
    with torch.enable_grad():
        total = _call(f, z).sum()
    if not total.requires_grad:
        raise ValueError(
            "f(z) has no gradient for z: it is constant, or cut off by detach or no_grad. "
            "Only score_function_gradient can do without it."
        )
    (slope,) = torch.autograd.grad(total, z)
    return _mean_unless(per_sample, slope, slope * 0.5 * std * eps.detach())


@torch.no_grad()
def score_function_gradient(
    f: Callable[[Tensor], Tensor],
    mean: Tensor,
    logvar: Tensor,
    z: Tensor,
    baseline: float | Tensor | None = None,
    *,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Gradient of E f(z) through the density: the score-function estimator, or REINFORCE.

    .. math:: \frac1S \sum_s \left(f(z_s) - b_s\right) \nabla \log q(z_s), \qquad
              \frac{\partial \log q}{\partial\mu} = \frac{z - \mu}{\sigma^2}, \qquad
              \frac{\partial \log q}{\partial\log\sigma^2}
              = \tfrac12 \left(\frac{(z - \mu)^2}{\sigma^2} - 1\right)

    It needs the values of f only, so f may be a reward, a step function, or discrete inside. The price
    is its variance. The score has mean zero, so any baseline that does not depend on its own sample
    leaves the estimate unbiased and may make it far less noisy.

    Args:
        f: maps ``(samples, k)`` to ``(samples,)``.
        mean: ``(k,)``.
        logvar: ``(k,)``.
        z: ``(samples, k)``, draws from N(mean, diag exp logvar); no gradient passes through them.
        baseline: b: a number or a ``()`` tensor for all samples, such as ``RunningBaseline.value``, or
            ``(samples,)``, such as from :func:`leave_one_out_baseline`; none by default.
        per_sample: give the terms of the means instead, to measure their variance.

    Returns:
        The gradients for ``mean`` and ``logvar``, each ``(k,)``, or ``(samples, k)`` per sample.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or for ``baseline``.

    Source: Williams (1992); Ranganath, Gerrish & Blei (2014).
    """
    _check_expectation(f, mean, logvar, "z", z)
    values = _call(f, z)
    if isinstance(baseline, Tensor) and baseline.dim() > 0:
        check_shapes(("z", z, "samples k"), ("baseline", baseline, "samples"))
    elif baseline is not None and not isinstance(baseline, Real | Tensor):
        raise TypeError(f"baseline must be a number, a tensor or None, not {type(baseline).__name__}.")
    advantage = (values if baseline is None else values - baseline).unsqueeze(1)
    # Divided by the deviation twice: a precision would overflow at half the log-variance.
    std = torch.exp(0.5 * logvar)
    standardised = (z - mean) / std
    score_mean = standardised / std
    score_logvar = 0.5 * (standardised.square() - 1)
    return _mean_unless(per_sample, advantage * score_mean, advantage * score_logvar)


@torch.no_grad()
def leave_one_out_baseline(values: Tensor) -> Tensor:
    r"""For each sample the mean of the others: a baseline that costs nothing more.

    .. math:: b_s = \frac{1}{S - 1} \sum_{t \ne s} f(z_t)

    The mean of all samples would contain f(z_s) itself, and shrink the gradient by (S - 1) / S.

    Args:
        values: ``(samples,)``, f(z), at least two of them.

    Returns:
        ``(samples,)``, without gradient.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or fewer than two samples.

    Source: Salimans & Knowles (2014); Mnih & Rezende (2016); Kool, van Hoof & Welling (2019).
    """
    count = check_shapes(("values", values, "samples"))["samples"]
    if count < 2:
        raise ValueError(
            f"values has {count} samples but needs at least 2: each is compared with the others."
        )
    return (values.sum() - values) / (count - 1)


class RunningBaseline:
    """An exponential moving average of past values of f, for use as a baseline.

    Subtract ``value`` first and ``update`` afterwards. The other way round, the baseline contains the
    values it is subtracted from, and the gradient shrinks: by the factor ``decay`` for a single
    sample, and to nothing in the first step.

    >>> baseline = RunningBaseline(decay=0.9)
    >>> for _ in range(100):
    ...     z = mean + std * torch.randn(samples, k)
    ...     gradients = score_function_gradient(f, mean, logvar, z, baseline.value)
    ...     baseline.update(f(z))

    Args:
        decay: the share that the past keeps in each update, at least 0 and less than 1.

    Raises:
        TypeError, ValueError: ``decay`` is not a number or out of its range.

    Source: Williams (1992), section 4, "reinforcement comparison".
    """

    def __init__(self, decay: float = 0.9):
        if not isinstance(decay, Real):
            raise TypeError(f"decay must be a number, not {type(decay).__name__}.")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay} but must be at least 0 and less than 1.")
        self.decay = decay
        self.value: float | Tensor = 0.0
        """The baseline: 0 at first, then a ``()`` tensor."""
        self._updated = False

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take in new values, ``(samples,)``. The first replace the 0, which no one has measured."""
        count = check_shapes(("values", values, "samples"))["samples"]
        if count == 0:
            raise ValueError("values has 0 samples but needs at least 1.")
        new = values.mean()
        self.value = self.decay * self.value + (1 - self.decay) * new if self._updated else new
        self._updated = True


def log_weights(
    log_joint: Callable[[Tensor], Tensor],
    mean: Tensor,
    logvar: Tensor,
    eps: Tensor,
    beta: float | Tensor = 1.0,
) -> Tensor:
    r"""Log importance weights of reparameterised samples, with their plain gradient.

    .. math:: \log w = \log p(x, z) - \log q(z|x), \qquad z = \mu + \sigma\epsilon

    The mean over samples is an estimate of the ELBO; :func:`aecourse.bounds.iwae_bound` takes them as
    they are.

    Args:
        log_joint: maps z, ``(samples, batch, k)``, to log p(x, z), ``(samples, batch)``, in nats.
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``.
        eps: ``(samples, batch, k)``, draws from N(0, I).
        beta: weight of log q(z|x), for objectives that weigh the KL; ``log_joint`` must weigh log p(z) alike.

    Returns:
        ``(samples, batch)``, nats.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, also for what ``log_joint``
            returns.

    Source: Burda, Grosse & Salakhutdinov (2016), section 3.
    """
    _check_weights(log_joint, mean, logvar, eps)
    z = reparameterize(mean, logvar, noise=eps)
    # (z - mean) / std is the noise: log q needs no subtraction, which would lose digits.
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + eps.square()).sum(dim=-1)
    return _call_joint(log_joint, z) - beta * log_q


def path_log_weights(
    log_joint: Callable[[Tensor], Tensor],
    mean: Tensor,
    logvar: Tensor,
    eps: Tensor,
    beta: float | Tensor = 1.0,
) -> Tensor:
    r"""Log importance weights whose gradient reaches ``mean`` and ``logvar`` through z alone.

    .. math:: \nabla \log w = \frac{\partial z}{\partial(\mu, \sigma)}
              \frac{\partial}{\partial z} \left(\log p(x, z) - \log q(z|x)\right)

    The values are those of :func:`log_weights`. What is left out is the score of q at its own sample,
    whose expectation is zero. So the mean over samples still has an unbiased gradient, that of the
    ELBO. At the exact posterior log w is the same for every z, and this gradient is zero for every
    sample, not only on average: it "sticks the landing".

    With several samples in :func:`aecourse.bounds.iwae_bound` the score no longer averages to zero, as
    each sample changes its own weight: the gradient is biased. Take :func:`dreg_bound` there.

    Args, Returns, Raises: as for :func:`log_weights`.

    Source: Roeder, Wu & Duvenaud (2017); the bias with several samples, Tucker et al. (2019).
    """
    _check_weights(log_joint, mean, logvar, eps)
    return _path_log_weights(log_joint, mean, logvar, reparameterize(mean, logvar, noise=eps), beta)


def dreg_bound(
    log_joint: Callable[[Tensor], Tensor],
    mean: Tensor,
    logvar: Tensor,
    eps: Tensor,
    beta: float | Tensor = 1.0,
) -> Tensor:
    r"""The importance weighted bound with its doubly reparameterised gradient.

    .. math:: \nabla_\phi = \sum_i \tilde w_i^2 \frac{\partial z_i}{\partial \phi}
              \frac{\partial \log w_i}{\partial z_i}, \qquad
              \nabla_\theta = \sum_i \tilde w_i \nabla_\theta \log w_i, \qquad
              \tilde w_i = \frac{w_i}{\sum_j w_j}

    The value is that of ``iwae_bound(log_weights(...))``. So is the gradient for the parameters theta of
    ``log_joint``. The gradient for ``mean`` and ``logvar``, phi, is unbiased as well, but it gets
    clearer with more samples, while that of the plain bound drowns in noise.

    Maximise its mean. Do not use it where the gradient of a gradient is needed.

    Args:
        log_joint, mean, logvar, eps, beta: as for :func:`log_weights`; ``log_joint`` must depend on phi
            through z alone.

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError, ValueError: as for :func:`log_weights`.

    Source: Tucker et al. (2019).
    """
    _check_weights(log_joint, mean, logvar, eps)
    z = reparameterize(mean, logvar, noise=eps)
    weights = _path_log_weights(log_joint, mean, logvar, z, beta)
    # The bound sends w~ d log w / dz back to z. One factor w~ more is applied there, on the way to the
    # encoder, where it cannot reach the decoder.
    normalised = weights.detach().softmax(dim=0).unsqueeze(-1)
    if z.requires_grad:
        z.register_hook(lambda gradient: normalised * gradient)
    return iwae_bound(weights)


def gradient_snr(gradients: Tensor) -> Tensor:
    r"""Signal-to-noise ratio of a gradient estimator, parameter by parameter.

    .. math:: \mathrm{SNR} = \left|\mathbb{E} \Delta\right| / \sqrt{\operatorname{Var} \Delta}

    Below 1, a single estimate has hardly a sign.

    Args:
        gradients: ``(replicates, parameters)``, independent estimates of the same gradient, at least 2.
            R of them resolve a ratio no smaller than about 1 / sqrt(R).

    Returns:
        ``(parameters,)``; infinite where the estimates agree, NaN where they are all zero.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or fewer than 2 replicates.

    Source: Rainforth et al. (2018).
    """
    count = check_shapes(("gradients", gradients, "replicates parameters"))["replicates"]
    if count < 2:
        raise ValueError(f"gradients has {count} replicates but needs at least 2 to see any noise.")
    return gradients.mean(dim=0).abs() / gradients.std(dim=0)


def _path_log_weights(log_joint, mean: Tensor, logvar: Tensor, z: Tensor, beta: float | Tensor) -> Tensor:
    mean, logvar = mean.detach(), logvar.detach()
    # Divided before it is squared: a precision would overflow at half the log-variance.
    standardised = (z - mean) * torch.exp(-0.5 * logvar)
    terms = math.log(2 * math.pi) + logvar + standardised.square()
    return _call_joint(log_joint, z) + 0.5 * beta * terms.sum(dim=-1)


def _mean_unless(per_sample: bool, *terms: Tensor) -> tuple[Tensor, ...]:
    return terms if per_sample else tuple(term.mean(dim=0) for term in terms)


def _check_expectation(f, mean: Tensor, logvar: Tensor, name: str, draws: Tensor) -> None:
    if not callable(f):
        raise TypeError(f"f must be a function of z, not {type(f).__name__}.")
    sizes = check_shapes(("mean", mean, "k"), ("logvar", logvar, "k"), (name, draws, "samples k"))
    if sizes["samples"] == 0:
        raise ValueError(f"{name} has shape {tuple(draws.shape)} but needs at least one sample.")


def _call(f, z: Tensor) -> Tensor:
    values = f(z)
    check_shapes(("z", z, "samples k"), ("f(z)", values, "samples"))
    return values


def _check_weights(log_joint, mean: Tensor, logvar: Tensor, eps: Tensor) -> None:
    if not callable(log_joint):
        raise TypeError(f"log_joint must be a function of z, not {type(log_joint).__name__}.")
    check_shapes(("mean", mean, "batch k"), ("logvar", logvar, "batch k"), ("eps", eps, "samples batch k"))


def _call_joint(log_joint, z: Tensor) -> Tensor:
    values = log_joint(z)
    check_shapes(("z", z, "samples batch k"), ("log_joint(z)", values, "samples batch"))
    return values
