"""Log-likelihoods and Kullback-Leibler divergences, as plain functions.

Everything here returns one number per example, in nats: sums over the dimensions of an example,
never means. What a mean would do instead is a chapter of its own (implementation pitfalls).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aecourse.contracts import check_shapes


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    r"""KL divergence of N(mean, diag exp logvar) from the prior N(0, I).

    .. math:: \tfrac12 \sum_j \left(\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2\right)

    Args:
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``, the logarithm of the variance (not of the standard deviation).

    Returns:
        ``(batch,)``, nats per example, never negative.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kingma & Welling (2014), appendix B.
    """
    check_shapes(("mean", mean, "batch k"), ("logvar", logvar, "batch k"))
    # expm1 keeps the digits that exp(logvar) - 1 loses when q is close to the prior.
    return 0.5 * (mean.square() + torch.expm1(logvar) - logvar).sum(dim=1)


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
    factor, failed = torch.linalg.cholesky_ex(cov)
    if failed.any():
        example = int(failed.nonzero()[0])
        raise ValueError(f"cov must be positive definite; cov[{example}] is not.")
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    trace = cov.diagonal(dim1=1, dim2=2).sum(dim=1)
    return 0.5 * (trace + mean.square().sum(dim=1) - sizes["k"] - log_det)


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    r"""log p(x) when every dimension is an independent Bernoulli variable.

    .. math:: \sum_d x_d \log p_d + (1 - x_d) \log(1 - p_d), \qquad p_d = 1 / (1 + e^{-l_d})

    Working with the logits :math:`l_d` keeps it finite where ``log(sigmoid(l))`` is not. For grey
    values strictly between 0 and 1 it is not the logarithm of a probability: lower its own maximum
    first, or binarise the images, before you compare it with published likelihoods.

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
    return -_sum_per_example(F.binary_cross_entropy_with_logits(logits, x, reduction="none"))


def gaussian_log_likelihood(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    r"""log N(x; mean, diag exp logvar), constant included.

    .. math:: -\tfrac12 \sum_d \left(\log 2\pi + \log\sigma_d^2 + (x_d - \mu_d)^2 / \sigma_d^2\right)

    The variance divides the *square* of the difference, once: lecture 002 divides inside it.

    Args:
        x: ``(batch, ...)``.
        mean: the same shape.
        logvar: the same shape.

    Returns:
        ``(batch,)``, nats per example, summed over all other dimensions.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kingma & Welling (2014), appendix C.2.
    """
    check_shapes(("x", x, "batch ..."), ("mean", mean, "batch ..."), ("logvar", logvar, "batch ..."))
    terms = math.log(2 * math.pi) + logvar + (x - mean).square() * torch.exp(-logvar)
    return -0.5 * _sum_per_example(terms)


def _sum_per_example(values: Tensor) -> Tensor:
    """``(batch, ...)`` to ``(batch,)``."""
    return values.flatten(1).sum(dim=1) if values.dim() > 1 else values
