"""The numbers in the right answers of the self-tests, computed by the library or by brute force."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.nn.functional import one_hot

from aecourse import questions
from aecourse.bayesian_mixtures import (
    fit_bayesian_mixture,
    mixture_evidence_bound,
    mixture_posterior,
    mixture_prior,
)
from aecourse.bounds import elbo_over_classes
from aecourse.gradients import leave_one_out_baseline, score_function_gradient
from aecourse.likelihoods import gaussian_kl
from aecourse.linear import (
    LinearVAEOptimum,
    linear_vae_optimum,
    optimal_linear_denoiser,
    pca,
    regularised_optimum,
)
from aecourse.questions import formulas


def points(*variances: float) -> torch.Tensor:
    """Two on each axis, so that the covariance is diagonal, with exactly these variances."""
    side = torch.diag(torch.tensor(variances, dtype=torch.float64) * len(variances)).sqrt()
    return torch.cat([side, -side])


def left_out(*kept: int) -> float:
    """The error of the projection onto these components, for the variances 5, 3, 1 and 1."""
    x = points(5, 3, 1, 1)
    components = pca(x).components[[*kept]]
    return (x - x @ components.T @ components).square().sum(dim=1).mean().item()


def kl(mean: float, variance: float) -> float:
    """Of a Gaussian from the standard normal."""
    return gaussian_kl(torch.tensor([[float(mean)]]), torch.tensor([[variance]]).log()).item()


def two_modes(share: float, mean: float, variance: float) -> MixtureSameFamily:
    weights, means = torch.tensor([share, 1 - share]), torch.tensor([mean, -mean])
    return MixtureSameFamily(Categorical(weights), Normal(means, variance**0.5))


def reverse_kl(q: Normal, p: MixtureSameFamily) -> float:
    z = q.sample((200_000,))
    return (q.log_prob(z) - p.log_prob(z)).mean().item()


def soft_threshold(u: float, weight: float) -> float:
    z = torch.linspace(-2, 2, 4001)
    return z[((z - u).square() + weight * z.abs()).argmin()].abs().item()  # of a positive u


def optimum(beta: float, variance: float, *variances: float) -> LinearVAEOptimum:
    return linear_vae_optimum(points(*variances), len(variances), variance, beta)


def of_own_value() -> float:
    """What is left of the gradient of E z^2, which is 2, if two samples share their mean as a baseline."""
    mean, logvar, total = torch.ones(1), torch.zeros(1), 0.0
    for z in torch.randn(2000, 2, 1) + 1:
        values = z.square().sum(dim=1)
        baseline = (values + leave_one_out_baseline(values)) / 2  # of two, the mean of both
        total += score_function_gradient(lambda z: z.square().sum(dim=1), mean, logvar, z, baseline)[0].item()
    return total / 2000 / 2


def conditional_deviation(correlation: float) -> float:
    return torch.tensor([[1.0, correlation], [correlation, 1.0]]).inverse()[0, 0].rsqrt().item()


def first_component() -> int:
    """Which unit is along it, at the optimum with the prices 0.2 and 0.5."""
    encoder, _, _ = regularised_optimum(points(3, 1, 0.5), torch.tensor([0.2, 0.5]).double())
    return encoder[:, 0].abs().argmax().item() + 1


def blend_of_two() -> float:
    """The error of a blend, in variances of an example."""
    example, one, other = torch.randn(3, 100_000)
    share = torch.rand(100_000)
    return (example - share * one - (1 - share) * other).square().mean().item()


def short_of_evidence(k: int) -> float:
    """How far a bound is below the evidence, a sum over labels, of two points in each of k clusters."""
    prior, labels = mixture_prior(2), torch.arange(k).repeat_interleave(2)
    x = 1e4 * torch.randn(k, 2).double()[labels] + torch.randn(2 * k, 2).double()

    def log_joint(labels):
        r = one_hot(labels, k).double()
        return mixture_evidence_bound(x, r, mixture_posterior(x, r, prior), prior)

    ways = torch.cartesian_prod(*[torch.arange(k)] * len(x))
    evidence = torch.stack([log_joint(way) for way in ways]).logsumexp(dim=0)
    bound = fit_bayesian_mixture(x, k, prior, 50, responsibilities=one_hot(labels, k).double()).history[-1]
    return (evidence - bound).item()


def price_of_certainty(classes: int) -> float:
    log_q, log_prior = torch.eye(classes).log()[:1], torch.full((classes,), -math.log(classes))
    return -elbo_over_classes(torch.zeros(1, classes), log_q, log_prior).item()


NUMBERS = {
    "collapse threshold": lambda: (
        f"At β = {max(b / 100 for b in range(1, 999) if optimum(b / 100, 0.2, 0.5).active.any()):.1f}"
    ),
    "collapse double-price": lambda: "{:.2f} and {:.2f} nats".format(
        *optimum(2.0, 1.0, math.exp(6), math.exp(2)).kl.tolist()
    ),
    "collapse record": lambda: f"It is {50 - 0.1 * 50:.0f} nats too good",
    "denoising shrinkage": lambda: "It multiplies by {:.0f}/4 and costs {:.0f}/4".format(
        *(4 * value.sum() for value in optimal_linear_denoiser(points(3.0), 1.0)[1:])
    ),
    "elbo too-narrow": lambda: f"{conditional_deviation(0.8):.1f} of the right one",
    "estimation size-of-the-bias": lambda: f"{0.4**2 / 2:.2f} nats too low",
    "estimation noisy-mixture": lambda: f"By {math.log(100):.1f} nats at most",
    "evidence moments": lambda: f"Mean 0 and variance {two_modes(0.5, 2.0, 0.25).variance:.2f}",
    "evidence one-mode": lambda: f"About {reverse_kl(Normal(20.0, 1.0), two_modes(0.7, 20.0, 1.0)):.2f}",
    "generating shell": lambda: f"About {torch.randn(1000, 100).norm(dim=1).mean():.0f} from the origin",
    "gradients own-value": lambda: {0.5: "Too small by a half"}[round(of_own_value(), 1)],
    "linear few-faces": lambda: (
        f"span just {torch.linalg.matrix_rank(torch.randn(100, 625).T.cov())} dimensions"
    ),
    "linear left-out": lambda: f"It is {left_out(0, 1):.0f}, and then {left_out(0, 2):.0f}",
    "linear prices": lambda: f"Unit {first_component()},",
    "mixtures certain-label": lambda: f"It is {price_of_certainty(10):.2f} nats lower",
    "mixtures copies": lambda: (
        f"The one with three, by {short_of_evidence(3) - 1 - short_of_evidence(2):.1f} nats"
    ),
    "mixtures no-way-back": lambda: f"ψ(0.1) = −{-torch.digamma(torch.tensor(0.1)):.1f}",
    "pitfalls log-k": lambda: f"{math.log(100):.1f} nats too high",
    "sparse threshold": lambda: f"They are {soft_threshold(1.0, 0.6):.1f} and {soft_threshold(0.2, 0.6):.0f}",
    "vae price": lambda: f"{kl(0, 0.01):.2f} and {kl(2, 1.0):.0f}:",
}


@pytest.mark.parametrize("place", NUMBERS)
def test_the_number_in_a_right_answer(place):
    chapter, name = place.split()
    (question,) = (question for question in questions.show(chapter).questions if question.name == name)
    (right,) = (option for option in question.options if option.right)
    assert NUMBERS[place]() in formulas.to_text(right.text).replace("\xa0", " ")


def right_reason(chapter: str, name: str) -> str:
    (question,) = (question for question in questions.show(chapter).questions if question.name == name)
    (right,) = (option for option in question.options if option.right)
    return right.reason


def test_the_blend_of_the_list_costs_five_thirds():
    assert "$5v/3$" in right_reason("deep", "list")
    assert blend_of_two() == pytest.approx(5 / 3, rel=0.02)


def test_the_name_of_one_of_ten_points_pays_though_no_direction_does():
    reason, spread = (
        right_reason("design", "below-the-noise"),
        torch.cov(8**0.5 * torch.eye(10), correction=0),
    )
    assert f"costs {math.log(10):.1f} nats and saves {spread.trace() / 2:.1f}" in reason
    assert f"each eigenvalue is {torch.linalg.eigvalsh(spread)[-1]:.1f} at most" in reason
