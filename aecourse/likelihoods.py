"""Log-likelihoods and Kullback-Leibler divergences as plain functions, and what a decoder's output means.

Every function returns one number per example, in nats: sums over the dimensions of an example, never
means, unless its name says otherwise. What a mean would do instead is a chapter of its own
(implementation pitfalls). The classes at the end say how a decoder's numbers become a distribution of x.

Values and gradients stay finite for logits and log-variances of +-10,000 and beyond, where a network
that has lost its way may end up. An exponential larger than the square root of the largest number of
the dtype (an exponent above 44 in single precision, 354 in double) is continued by its tangent, so that
the gradient still points back. A clamp would have no gradient there. What must fit into the dtype is
the square of each mean and difference, and their sum times the log-variance times that square root.

Half precision, as automatic mixed precision gives it, is computed in single precision.
"""

import math
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.contracts import check_count, check_shapes
from aecourse.distributed import standard_normal

# A decoder that gives its own variances can raise the likelihood of a pixel that never changes without
# limit. The floor, a standard deviation of 1/400, is below the step of 8-bit images.
MIN_LOGVAR = -12.0

VARIANCES = ("learned", "per_pixel", "optimal")


def reparameterize(
    mean: Tensor, logvar: Tensor, samples: int | None = None, noise: Tensor | None = None
) -> Tensor:
    """Draw z ~ N(mean, diag exp logvar) so that gradients reach ``mean`` and ``logvar``.

    The noise is drawn apart from the parameters, so z is a differentiable function of them:
    z = mean + std * noise. The standard deviation is exp(logvar / 2).

    Args:
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``.
        samples: how many draws per example.
        noise: drawn from N(0, I) elsewhere, in the shape of the result.

    Returns:
        ``(samples, batch, k)``, or without ``samples`` one draw per example, ``(batch, k)``.

    Source: Kingma & Welling (2014), section 2.4; Rezende, Mohamed & Wierstra (2014).
    """
    if noise is None:
        leading = () if samples is None else (samples,)
        noise = standard_normal((*leading, *mean.shape), like=mean, batch_dim=len(leading))
    return mean + torch.exp(0.5 * logvar) * noise


def gaussian_log_density(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, diag exp logvar) of codes: summed over the last dimension, the others stay.

    :func:`gaussian_log_likelihood` for several draws from one q: ``mean`` and ``logvar`` are repeated along
    the leading dimensions of z that they lack.

    Args:
        z: ``(..., batch, k)``.
        mean: ``(batch, k)``, or anything that expands to the shape of z.
        logvar: the same.

    Returns:
        ``(..., batch)``, nats.
    """
    rows = [values.expand_as(z).reshape(-1, z.shape[-1]) for values in (z, mean, logvar)]
    return gaussian_log_likelihood(*rows).view(z.shape[:-1])


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_logvar: float = 0.0) -> Tensor:
    r"""KL divergence of N(mean, diag exp logvar) from the prior N(0, exp(prior_logvar) I).

    .. math:: \tfrac12 \sum_j \left(\mu_j^2 / \tau^2 + \sigma_j^2 / \tau^2 - 1
              - \log (\sigma_j^2 / \tau^2)\right)

    with :math:`\tau^2` the variance of the prior, 1 by default.

    Args:
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``, the logarithm of the variance (not of the standard deviation).
        prior_logvar: the logarithm of the prior's variance, a number between -40 and 40.

    Returns:
        ``(batch,)``, nats per example, never negative.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or for ``prior_logvar``.

    Source: Kingma & Welling (2014), appendix B.
    """
    return gaussian_kl_per_dimension(mean, logvar, prior_logvar).sum(dim=1)


def gaussian_kl_per_dimension(mean: Tensor, logvar: Tensor, prior_logvar: float = 0.0) -> Tensor:
    """The terms of :func:`gaussian_kl`, one for each dimension of the code.

    Args, Raises, Source: as there.

    Returns:
        ``(batch, k)``, nats, never negative.
    """
    check_shapes(("mean", mean, "batch k"), ("logvar", logvar, "batch k"))
    if not isinstance(prior_logvar, Real):
        raise TypeError(f"prior_logvar must be a number, not {type(prior_logvar).__name__}.")
    if not -40 <= prior_logvar <= 40:
        raise ValueError(f"prior_logvar is {prior_logvar} but must be between -40 and 40.")
    mean, logvar = _at_least_single(mean, logvar)
    log_ratio = logvar - prior_logvar
    below, excess = _split_exponent(log_ratio)
    # expm1 keeps the digits that exp(logvar) - 1 loses when q is close to the prior.
    return 0.5 * (mean.square() * math.exp(-prior_logvar) + torch.expm1(below) + excess - log_ratio)


def gaussian_kl_between(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    r"""KL divergence of N(mean, diag exp logvar) from N(prior_mean, diag exp prior_logvar).

    In units of the prior's standard deviation it is :func:`gaussian_kl`. For the
    means a deviation below exp(-22) counts as that, so that the square of their difference does not overflow.

    Args:
        mean, logvar, prior_mean, prior_logvar: ``(batch, k)``.

    Returns:
        ``(batch,)``, nats per example, never negative.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.
    """
    distance = (mean - prior_mean) * torch.exp((-0.5 * prior_logvar).clamp(max=22.0))
    return gaussian_kl_per_dimension(distance, logvar - prior_logvar).sum(dim=1)


def full_gaussian_kl(mean: Tensor, cov: Tensor) -> Tensor:
    r"""KL divergence of N(mean, cov) from N(0, I), with a full covariance matrix.

    .. math:: \tfrac12 \left(\operatorname{tr} \Sigma + \mu^\top\mu - k - \log\det\Sigma\right)

    Args:
        mean: ``(batch, k)``.
        cov: ``(batch, k, k)``, symmetric and positive definite; the lower triangle is read.

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.
        ValueError: ``cov`` is not positive definite; the message names the example.

    Source: Kingma & Welling (2014), appendix B; lecture 001 writes this form.
    """
    sizes = check_shapes(("mean", mean, "batch k"), ("cov", cov, "batch k k"))
    mean, cov = _at_least_single(mean, cov)
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed.any():
        example = int(failed.nonzero()[0])
        raise ValueError(f"cov must be positive definite; cov[{example}] is not.")
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    trace = cov.diagonal(dim1=1, dim2=2).sum(dim=1)
    return 0.5 * (trace + mean.square().sum(dim=1) - sizes["k"] - log_det)


def bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    r"""KL divergence between products of independent Bernoulli variables.

    .. math:: \sum_d p_d \log\frac{p_d}{r_d} + (1 - p_d) \log\frac{1 - p_d}{1 - r_d},
              \qquad p_d = 1 / (1 + e^{-l_d}), \quad r_d = 1 / (1 + e^{-m_d})

    Args:
        logits: ``(batch, ...)``, l, of the distribution that the expectation is over.
        prior_logits: the same shape, m.

    Returns:
        ``(batch,)``, nats per example. Between nearly equal distributions rounding can leave a number
        just below zero.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kullback & Leibler (1951); with p a mean activation, the sparsity penalty of Ng's CS294A notes.
    """
    check_shapes(("logits", logits, "batch ..."), ("prior_logits", prior_logits, "batch ..."))
    logits, prior_logits = _at_least_single(logits, prior_logits)
    p = logits.sigmoid()
    # Cross-entropy less entropy: log p(x) is linear in x, so its expectation is its value at p.
    cross_entropy = F.binary_cross_entropy_with_logits(prior_logits, p, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(logits, p, reduction="none")
    return _sum_per_example(cross_entropy - entropy)


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    r"""log p(x) when every dimension is an independent Bernoulli variable.

    .. math:: \sum_d x_d \log p_d + (1 - x_d) \log(1 - p_d), \qquad p_d = 1 / (1 + e^{-l_d})

    Working with the logits :math:`l_d` keeps it finite where ``log(sigmoid(l))`` is not. For grey
    values strictly between 0 and 1 it is not the logarithm of a probability: lower its own maximum
    first, or binarise the images, before you compare it with published likelihoods.
    :func:`continuous_bernoulli_log_likelihood` is a density for such values.

    Args:
        x: ``(batch, ...)`` in [0, 1].
        logits: the same shape.

    Returns:
        ``(batch,)``, nats per example, summed over all other dimensions.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kingma & Welling (2014), appendix C.1.
    """
    check_shapes(("x", x, "batch ..."), ("logits", logits, "batch ..."))
    x, logits = _at_least_single(x, logits)
    return -_sum_per_example(F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def continuous_bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    r"""log density of independent continuous Bernoulli variables: the formula, made a density on [0, 1].

    .. math:: \sum_d x_d l_d - A(l_d), \qquad A(l) = \log \int_0^1 e^{x l} dx = \log\frac{e^l - 1}{l}

    It is what the Bernoulli formula lacks for grey values. The mean of x is not the sigmoid of the
    logit but A'(l) = 1 / (1 - exp(-l)) - 1 / l; see :func:`continuous_bernoulli_mean`.

    Args:
        x: ``(batch, ...)`` in [0, 1].
        logits: the same shape; 0 is the uniform density.

    Returns:
        ``(batch,)``, nats per example, summed over all other dimensions; positive where the density
        is high.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Loaiza-Ganem & Cunningham (2019), section 3, written in the logit.
    """
    check_shapes(("x", x, "batch ..."), ("logits", logits, "batch ..."))
    x, logits = _at_least_single(x, logits)
    near, small, size = _around_zero(logits)
    square = small.square()
    # Twelve digits at 0.3, the edge of the series; beyond it, no term overflows and none cancels.
    series = small / 2 + square * (1 / 24 - square * (1 / 2880 - square * (1 / 181440 - square / 9676800)))
    closed = logits.relu() + torch.log(-torch.expm1(-size) / size)
    return _sum_per_example(x * logits - torch.where(near, series, closed))


def continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    r"""Mean of a continuous Bernoulli variable: what to show of a decoder that gives ``logits``.

    .. math:: A'(l) = \frac{1}{1 - e^{-l}} - \frac1l

    Args:
        logits: ``(batch, ...)``.

    Returns:
        The same shape, in [0, 1]; nearer to 1/2 than the sigmoid of the logit.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Loaiza-Ganem & Cunningham (2019), section 3, written in the logit.
    """
    check_shapes(("logits", logits, "batch ..."))
    (logits,) = _at_least_single(logits)
    near, small, size = _around_zero(logits)
    square = small.square()
    series = 0.5 + small * (1 / 12 - square * (1 / 720 - square * (1 / 30240 - square / 1209600)))
    closed = 0.5 + logits.sign() * (0.5 / torch.tanh(size / 2) - 1 / size)
    return torch.where(near, series, closed)


def gaussian_log_likelihood(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    r"""log N(x; mean, diag exp logvar), constant included.

    .. math:: -\tfrac12 \sum_d \left(\log 2\pi + \log\sigma_d^2 + (x_d - \mu_d)^2 / \sigma_d^2\right)

    The variance divides the *square* of the difference, once: lecture 002 divides inside it.

    Args:
        x: ``(batch, ...)``.
        mean: the same shape.
        logvar: the same shape, or ``()`` for one variance that all dimensions share.

    Returns:
        ``(batch,)``, nats per example, summed over all other dimensions.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kingma & Welling (2014), appendix C.2.
    """
    check_shapes(("x", x, "batch ..."), ("mean", mean, "batch ..."))
    shared = isinstance(logvar, Tensor) and logvar.dim() == 0 and logvar.is_floating_point()
    if not shared:
        check_shapes(("x", x, "batch ..."), ("logvar", logvar, "batch ..."))
    x, mean, logvar = _at_least_single(x, mean, logvar)
    below, excess = _split_exponent(-logvar)
    precision = below.exp() + excess
    terms = math.log(2 * math.pi) + logvar + (x - mean).square() * precision
    return -0.5 * _sum_per_example(terms)


def optimal_logvar(x: Tensor, mean: Tensor) -> Tensor:
    r"""The shared log-variance that makes :func:`gaussian_log_likelihood` largest: the sigma-VAE.

    .. math:: \log \sigma^2 = \log \mathrm{MSE}

    with the mean over the batch and all dimensions. There, and only there, the negative
    log-likelihood per example has its minimum D/2 (log 2 pi MSE + 1). The variance is then no longer a
    setting that trades reconstruction against KL. A mean squared error below the square of the
    dtype's epsilon (1.4e-14 in single precision) is rounding, and counts as that much.

    Args:
        x: ``(batch, ...)``.
        mean: the same shape.

    Returns:
        ``()``, to hand on as ``logvar``.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Rybkin, Daniilidis & Levine (2021), the optimal sigma-VAE.
    """
    check_shapes(("x", x, "batch ..."), ("mean", mean, "batch ..."))
    x, mean = _at_least_single(x, mean)
    error = (x - mean).square().mean()
    return error.clamp(min=torch.finfo(error.dtype).eps ** 2).log()


def categorical_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    r"""log p(x) when every dimension is an independent categorical variable.

    .. math:: \sum_d l_{x_d, d} - \log \sum_c e^{l_{c, d}}

    Args:
        x: ``(batch, ...)``, the classes as int64, from 0 to classes - 1.
        logits: ``(batch, classes, ...)``.

    Returns:
        ``(batch,)``, nats per example, summed over all other dimensions.

    Raises:
        TypeError: ``x`` is not an int64 tensor, or ``logits`` not a floating-point one.
        ValueError: the shapes do not fit.
        RuntimeError: a class is out of range (from torch).
    """
    check_shapes(("logits", logits, "batch classes ..."))
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, not {type(x).__name__}.")
    if x.dtype != torch.int64:
        raise TypeError(f"x has dtype {x.dtype} but needs torch.int64: classes, not probabilities.")
    needed = (logits.shape[0], *logits.shape[2:])
    if tuple(x.shape) != needed:
        raise ValueError(
            f"x has shape {tuple(x.shape)} but needs {needed}, that of logits without its classes."
        )
    (logits,) = _at_least_single(logits)
    # Not cross_entropy: it skips the class -100 without a word.
    log_probabilities = logits.log_softmax(dim=1)
    return _sum_per_example(log_probabilities.gather(1, x.unsqueeze(1)).squeeze(1))


def gaussian_entropy(logvar: Tensor) -> Tensor:
    r"""Differential entropy of N(mean, diag exp logvar), whatever the mean.

    .. math:: \tfrac12 \sum_j \left(\log 2 \pi e + \log \sigma_j^2\right)

    Args:
        logvar: ``(batch, k)``.

    Returns:
        ``(batch,)``, nats per example; negative for a narrow density.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.
    """
    check_shapes(("logvar", logvar, "batch k"))
    (logvar,) = _at_least_single(logvar)
    return 0.5 * (math.log(2 * math.pi) + 1 + logvar).sum(dim=1)


def _sum_per_example(values: Tensor) -> Tensor:
    """``(batch, ...)`` to ``(batch,)``."""
    return values.flatten(1).sum(dim=1) if values.dim() > 1 else values


def _at_least_single(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision as single precision; everything else as it is."""
    return tuple(t.float() if torch.finfo(t.dtype).bits < 32 else t for t in tensors)


def _split_exponent(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """``below`` and ``excess`` such that exp(below) + excess is exp(exponent), a straight line from the
    square root of the largest number on. The two slopes agree where the pieces meet."""
    bound = 0.5 * math.log(torch.finfo(exponent.dtype).max)
    return exponent.clamp(max=bound), math.exp(bound) * (exponent - bound).relu()


def _around_zero(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which logits need a series; themselves where they do; their size where they do not.

    ``torch.where`` lets the gradient of both its branches through, times 0 or 1, and 0 times infinity is
    not a number. So each branch gets harmless values where it is not used.
    """
    near = logits.abs() < 0.3
    return near, logits.where(near, 0.0), logits.abs().where(~near, 1.0)


# ------------------------------------------------------------- what a decoder's output means


class Likelihood(nn.Module):
    """How the numbers that a decoder gives become a distribution of x, every pixel on its own.

    Attributes:
        outputs: numbers per pixel that it needs of the decoder: with one, an output is ``(batch, ...)`` like
            x, with more ``(batch, outputs, ...)``.
        support: the least and the largest value that x may have.
    """

    outputs: int = 1
    support: tuple[float, float] = (0.0, 1.0)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of x: what one looks at. The shape of x."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        """log p(x), nats per example: ``(batch,)``."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Black or white pixels; the output holds logits. See :func:`bernoulli_log_likelihood`."""

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid()

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return bernoulli_log_likelihood(x, output)


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1], for grey values; logits. See :func:`continuous_bernoulli_log_likelihood`."""

    def mean(self, output: Tensor) -> Tensor:
        return continuous_bernoulli_mean(output)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        return continuous_bernoulli_log_likelihood(x, output)


class Gaussian(Likelihood):
    """Any numbers; the output holds means. See :func:`gaussian_log_likelihood`.

    Args:
        variance: a number, the same for all pixels; ``"learned"``, one parameter for all pixels;
            ``"per_pixel"``, a second output of the decoder (at least exp(-12)); or ``"optimal"``, the mean
            squared error of the batch, which maximises its likelihood (Rybkin et al. 2021). The last one
            ties the examples of a batch together: to report likelihoods of single images, set the attribute
            ``variance`` to a number first.

    Raises:
        ValueError: ``variance`` is neither positive nor one of the names.
    """

    support = (-math.inf, math.inf)

    def __init__(self, variance: float | str = 1.0):
        super().__init__()
        if variance not in VARIANCES and (isinstance(variance, str) or not variance > 0):
            raise ValueError(f"variance is {variance!r} but must be positive or one of {VARIANCES}.")
        self.variance = variance
        self.outputs = 2 if variance == "per_pixel" else 1
        if variance == "learned":
            self.logvar = nn.Parameter(torch.zeros(()))

    def mean(self, output: Tensor) -> Tensor:
        return output[:, 0] if self.outputs == 2 else output

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        if self.variance == "per_pixel":
            mean, logvar = output.unbind(dim=1)
            return gaussian_log_likelihood(x, mean, MIN_LOGVAR + F.softplus(logvar - MIN_LOGVAR))
        if self.variance == "optimal":
            return gaussian_log_likelihood(x, output, optimal_logvar(x, output))
        if self.variance == "learned":
            return gaussian_log_likelihood(x, output, self.logvar)
        return gaussian_log_likelihood(x, output, x.new_full((), math.log(self.variance)))

    def extra_repr(self) -> str:
        return f"variance={self.variance!r}"


class Categorical(Likelihood):
    """One of so many grey values from 0 to 1, to which x is rounded; the output holds their logits.

    Args:
        levels: how many grey values, at least 2.

    Raises:
        TypeError, ValueError: ``levels`` is no such number.
    """

    def __init__(self, levels: int = 256):
        super().__init__()
        check_count("levels", levels, least=2)
        self.outputs = levels

    def mean(self, output: Tensor) -> Tensor:
        grey = torch.linspace(0, 1, self.outputs, dtype=output.dtype, device=output.device)
        return (output.softmax(dim=1).movedim(1, -1) * grey).sum(dim=-1)

    def log_prob(self, x: Tensor, output: Tensor) -> Tensor:
        grey = (x * (self.outputs - 1)).round().nan_to_num().long()
        # What is not finite cannot be an index, and shows in the sum instead.
        return categorical_log_likelihood(grey, output) + 0 * x.flatten(1).sum(dim=1)

    def extra_repr(self) -> str:
        return f"levels={self.outputs}"


LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "categorical": Categorical,
}


def as_likelihood(likelihood: str | Likelihood, **settings: float | str | None) -> Likelihood:
    """A likelihood by its name, or one as it is.

    Args:
        likelihood: one of :data:`LIKELIHOODS`, or a :class:`Likelihood`.
        settings: of the class, ``variance`` or ``levels``; None for its default.

    Raises:
        TypeError, ValueError: an unknown name, a setting that it does not have, or settings beside an object.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    if isinstance(likelihood, Likelihood):
        if settings:
            name = next(iter(settings))
            raise ValueError(
                f"{name} is {settings[name]!r} beside a likelihood that is made already: give it there."
            )
        return likelihood
    if likelihood not in LIKELIHOODS:
        names = tuple(LIKELIHOODS)
        raise ValueError(f"likelihood is {likelihood!r} but must be one of {names} or a Likelihood.")
    for name, owner in (("variance", "gaussian"), ("levels", "categorical")):
        if name in settings and likelihood != owner:
            raise ValueError(f"{name} is {settings[name]!r} but likelihood is {likelihood!r}, not {owner!r}.")
    return LIKELIHOODS[likelihood](**settings)


def pop_likelihood(options: dict) -> Likelihood:
    """Take the likelihood out of the options of a model's builder: ``likelihood``, ``variance``, ``levels``.

    Raises:
        TypeError, ValueError: as :func:`as_likelihood`.
    """
    settings = {name: options.pop(name, None) for name in ("variance", "levels")}
    return as_likelihood(options.pop("likelihood", "bernoulli"), **settings)
