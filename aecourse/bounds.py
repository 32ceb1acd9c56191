"""Bounds on the log evidence, and the named result that every model's loss returns."""

from dataclasses import dataclass

from torch import Tensor

from aecourse.contracts import check_shapes


@dataclass(frozen=True)
class Loss:
    """What ``model.loss(batch)`` returns: the number to minimise, and the parts it is made of.

    One training loop, one history and one plot serve every model because they only know this.
    """

    total: Tensor
    """A scalar: the mean over the batch of the loss per example."""

    parts: dict[str, Tensor]
    """Scalars by name, means over the batch: ``reconstruction``, ``kl``, ... For the models with a
    likelihood they are in nats per example and *unweighted*, so that runs with different ``beta`` can
    be compared part by part."""


def elbo(log_likelihood: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    r"""Evidence lower bound of each example, from its two terms.

    .. math:: \mathrm{ELBO}(x) = \mathbb{E}_{q(z|x)}[\log p(x|z)]
              - \beta\, \mathrm{KL}(q(z|x)\,\|\,p(z)) \;\le\; \log p(x)

    With one sample z from q(z|x) in ``log_likelihood`` this is an unbiased estimate of the bound.
    It bounds log p(x) for ``beta >= 1`` only; below 1 it is a training objective and nothing more.

    Args:
        log_likelihood: ``(batch,)``, log p(x|z) in nats.
        kl: ``(batch,)``, KL(q(z|x) || p(z)) in nats.
        beta: weight of the KL (Higgins et al. 2017); a number, at least 0.

    Returns:
        ``(batch,)``, nats per example.

    Raises:
        ValueError: ``beta`` is negative, or the two terms have different shapes.

    Source: Kingma & Welling (2014), equation 3.
    """
    check_shapes(("log_likelihood", log_likelihood, "batch"), ("kl", kl, "batch"))
    if beta < 0:
        raise ValueError(f"beta is {beta} but must be at least 0: it weighs a penalty.")
    return log_likelihood - beta * kl
