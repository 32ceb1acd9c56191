"""The numbers in the right answers of the self-tests, computed by the library or by brute force."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from aecourse import questions
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
    "design how-many-units": lambda: {3: "Three,"}[
        optimum(1.0, 0.5, 4, 2, 0.9, 0.3).active.sum().item()
    ],  # the sum of squares has variance 1/2
    "elbo too-narrow": lambda: f"{conditional_deviation(0.8):.1f} of the right one",
    "em half-or-double": lambda: (
        f"costs {kl(0, 4.0):.2f} nats for a dimension where the other costs {kl(0, 0.25):.2f}"
    ),
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


def test_the_blend_of_the_list_costs_five_thirds():
    (question,) = (question for question in questions.show("deep").questions if question.name == "list")
    (right,) = (option for option in question.options if option.right)
    assert "$5v/3$" in right.reason
    assert blend_of_two() == pytest.approx(5 / 3, rel=0.02)
