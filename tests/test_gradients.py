"""Estimators against exact gradients: by quadrature where that is possible, else as z-scores.

The models are so small that everything is known: z ~ N(theta, 1), x | z ~ N(z, 1), and a Gaussian q.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import Normal

from aecourse.bounds import elbo, iwae_bound
from aecourse.gradients import (
    RunningBaseline,
    dreg_bound,
    gradient_snr,
    leave_one_out_baseline,
    log_weights,
    path_log_weights,
    pathwise_gradient,
    score_function_gradient,
)
from aecourse.likelihoods import gaussian_kl, gaussian_log_likelihood
from aecourse.linear import PPCA

DOUBLE = torch.float64


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def assert_equal_to_ten_digits(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def z_score(estimates: Tensor, expected: float) -> float:
    """How many standard errors the mean of independent estimates is from where it should be."""
    error = estimates.std() / math.sqrt(len(estimates))
    # Else the estimates could not show an error of 1 %, and a z-score would prove little.
    assert 4 * error < 0.01 * abs(expected)
    return float((estimates.mean() - expected) / error)


# Expectations of a function of z ~ N(mean, diag exp logvar)


def square(z: Tensor) -> Tensor:
    return z.square().sum(dim=1)


def quadrature(nodes: int = 12) -> tuple[Tensor, Tensor]:
    """``(nodes, 1)`` and ``(nodes, 1)``: E g(eps) = sum of weight * g(node), exactly for a polynomial g of
    degree up to 2 nodes - 1."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points, weights = torch.from_numpy(points), torch.from_numpy(weights / weights.sum())
    return points.unsqueeze(1), weights.unsqueeze(1)


@pytest.mark.parametrize(("mu", "variance"), [(1.0, 1.0), (-2.0, 0.3), (0.5, 4.0)])
def test_the_variances_of_both_estimators_are_those_of_the_closed_forms(mu, variance):
    """Oracle 10, with the variances for d/dsigma of the score function added; no sampling error."""
    mean, logvar, sigma = doubles(mu), doubles(math.log(variance)), math.sqrt(variance)
    eps, weights = quadrature()
    z = mean + sigma * eps
    best = mu**2 + 3 * variance
    cases = {
        "pathwise": (
            pathwise_gradient(square, mean, logvar, eps, per_sample=True),
            4 * variance,
            4 * mu**2 + 8 * variance,
        ),
        "score function": (
            score_function_gradient(square, mean, logvar, z, per_sample=True),
            mu**4 / variance + 14 * mu**2 + 15 * variance,
            2 * mu**4 / variance + 60 * mu**2 + 74 * variance,
        ),
        "score function with the best baseline": (
            score_function_gradient(square, mean, logvar, z, best, per_sample=True),
            8 * mu**2 + 6 * variance,
            None,
        ),
    }
    for name, ((for_mean, for_logvar), variance_mean, variance_sigma) in cases.items():
        for_sigma = for_logvar * 2 / sigma  # d logvar / d sigma
        for terms, exact, spread in (
            (for_mean, 2 * mu, variance_mean),
            (for_sigma, 2 * sigma, variance_sigma),
        ):
            assert terms.shape == eps.shape
            first = (weights * terms).sum().item()
            assert first == pytest.approx(exact, rel=1e-10, abs=1e-10), name
            if spread is not None:
                second = (weights * (terms - first).square()).sum().item()
                assert second == pytest.approx(spread, rel=1e-10), name
    # No other baseline does better than the best one.
    for other in (0.9 * best, 1.1 * best):
        terms, _ = score_function_gradient(square, mean, logvar, z, other, per_sample=True)
        assert (weights * (terms - 2 * mu).square()).sum() > 8 * mu**2 + 6 * variance


def test_the_variances_are_those_of_random_draws_too():
    """Oracle 10 as a z-score on the variance; 4 million draws put 1 % of it at 4 standard errors."""
    mean, logvar, eps = doubles(1.0), doubles(math.log(0.04)), torch.randn(4_000_000, 1, dtype=DOUBLE)
    pathwise, _ = pathwise_gradient(square, mean, logvar, eps, per_sample=True)
    z = mean + 0.2 * eps
    score, _ = score_function_gradient(square, mean, logvar, z, 1.12, per_sample=True)
    assert abs(z_score((pathwise - 2).square(), 4 * 0.04)) < 4
    assert abs(z_score((score - 2).square(), 8 + 6 * 0.04)) < 4


def wave(z: Tensor) -> Tensor:
    return torch.sin(z[:, 0]) + z[:, 0] * z[:, 1].square()


@pytest.mark.parametrize("baseline", [None, 2.4])
def test_gradients_of_an_expectation_are_unbiased(baseline):
    """Against E f = sin(m1) exp(-v1/2) + m1 (m2^2 + v2), on a grid of nodes, to ten digits."""
    mean, logvar = doubles(0.8, 1.2).requires_grad_(), doubles(-0.5, -0.2).requires_grad_()
    variance = logvar.exp()
    expectation = torch.sin(mean[0]) * torch.exp(-variance[0] / 2) + mean[0] * (
        mean[1].square() + variance[1]
    )
    exact = torch.autograd.grad(expectation, (mean, logvar))
    points, weights = quadrature(24)
    eps = torch.cartesian_prod(points.squeeze(1), points.squeeze(1))
    weights = (weights * weights.T).reshape(-1, 1)
    z = mean + (logvar / 2).exp() * eps
    for estimates in (
        pathwise_gradient(wave, mean, logvar, eps, per_sample=True),
        score_function_gradient(wave, mean, logvar, z, baseline, per_sample=True),
    ):
        for got, expected in zip(estimates, exact):
            assert_equal_to_ten_digits((weights * got).sum(dim=0), expected)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_leave_one_out_baseline_is_unbiased(samples):
    """Exactly: the mean over the grid of all combinations of nodes."""
    mean, logvar = doubles(1.5), doubles(0.4)
    eps, weights = quadrature(5)
    total, shrunk = torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    for index in np.ndindex(*[len(eps)] * samples):
        z = mean + (logvar / 2).exp() * eps[list(index)]
        values = square(z)
        weight = weights[list(index)].prod()
        gradients = score_function_gradient(square, mean, logvar, z, leave_one_out_baseline(values))
        total += weight * torch.cat(gradients)
        # The mistake: the mean of all values, one's own among them.
        shrunk += weight * torch.cat(score_function_gradient(square, mean, logvar, z, values.mean()))
    exact = torch.stack([2 * mean, logvar.exp()]).flatten()
    assert_equal_to_ten_digits(total, exact)
    assert_equal_to_ten_digits(shrunk, exact * (samples - 1) / samples)


def test_the_running_baseline_is_unbiased_if_it_is_updated_afterwards():
    """Exactly: all combinations of nodes in two steps of one sample each."""
    mean, logvar, decay = doubles(1.5), doubles(0.4), 0.8
    eps, weights = quadrature(5)
    right, wrong = torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    for first, second in np.ndindex(5, 5):
        baseline = RunningBaseline(decay)
        baseline.update(square(mean + (logvar / 2).exp() * eps[[first]]))
        z = mean + (logvar / 2).exp() * eps[[second]]
        weight = (weights[first] * weights[second]).squeeze()
        right += weight * torch.cat(score_function_gradient(square, mean, logvar, z, baseline.value))
        baseline.update(square(z))
        wrong += weight * torch.cat(score_function_gradient(square, mean, logvar, z, baseline.value))
    exact = torch.stack([2 * mean, logvar.exp()]).flatten()
    assert_equal_to_ten_digits(right, exact)
    assert_equal_to_ten_digits(wrong, decay * exact)


def test_the_running_baseline_forgets_at_the_stated_rate():
    baseline = RunningBaseline(decay=0.75)
    assert baseline.value == 0
    baseline.update(doubles(3.0, 5.0).requires_grad_())
    assert baseline.value.item() == 4
    assert not baseline.value.requires_grad
    baseline.update(doubles(8.0))
    assert baseline.value.item() == 5


def test_baselines_leave_no_more_noise_than_they_should():
    mean, logvar = doubles(2.0), doubles(0.0)
    z = mean + torch.randn(200_000, 1, dtype=DOUBLE)
    values, running = square(z), RunningBaseline()
    running.update(values)
    spread = {
        name: score_function_gradient(square, mean, logvar, z, b, per_sample=True)[0].var().item()
        for name, b in {
            "none": None,
            "number": 7.0,
            "tensor": torch.tensor(7.0, dtype=DOUBLE),
            "leave one out": leave_one_out_baseline(values),
            "running": running.value,
        }.items()
    }
    # E f = 5 is not the best baseline, 7, but near it: (7 - 5)^2 / variance is added to 38.
    assert spread["none"] == pytest.approx(16 + 56 + 15, rel=0.05)
    assert spread["number"] == spread["tensor"] == pytest.approx(38, rel=0.05)
    assert spread["leave one out"] == pytest.approx(42, rel=0.05)
    assert spread["running"] == pytest.approx(42, rel=0.05)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradients_leave_their_arguments_alone(requires_grad):
    arguments = [torch.randn(3), torch.randn(3), torch.randn(50, 3)]
    scale = torch.tensor(2.0, requires_grad=True)
    for t in arguments:
        t.requires_grad_(requires_grad)
    before = [t.detach().clone() for t in arguments]

    def f(z):
        return scale * square(z)

    with torch.set_grad_enabled(requires_grad):  # works under no_grad as well
        results = pathwise_gradient(f, *arguments) + score_function_gradient(f, *arguments)
    for t, old in zip(arguments, before):
        assert t.requires_grad is requires_grad
        assert t.grad is None
        assert t.equal(old)
    assert scale.grad is None
    assert [r.shape for r in results] == [(3,)] * 4
    assert not any(r.requires_grad for r in results)


def test_means_are_means_of_the_terms():
    arguments = [torch.randn(3, dtype=DOUBLE), torch.randn(3, dtype=DOUBLE), torch.randn(50, 3, dtype=DOUBLE)]
    for estimator in (pathwise_gradient, score_function_gradient):
        terms, means = estimator(square, *arguments, per_sample=True), estimator(square, *arguments)
        for term, mean in zip(terms, means):
            assert_equal_to_ten_digits(term.mean(dim=0), mean)


def test_the_score_function_needs_no_derivative():
    """P(z > 1) for z ~ N(0, 1): its derivative for the mean is the density at 1, and f has none at all."""

    def above(z):
        return (z[:, 0] > 1).to(z)

    mean, logvar, eps = doubles(0.0), doubles(0.0), torch.randn(4_000_000, 1, dtype=DOUBLE)
    terms, _ = score_function_gradient(above, mean, logvar, eps, per_sample=True)
    assert abs(z_score(terms, math.exp(-0.5) / math.sqrt(2 * math.pi))) < 4
    with pytest.raises(ValueError, match=r"^f\(z\) has no gradient for z.*score_function_gradient"):
        pathwise_gradient(above, mean, logvar, eps)


# Bounds of several samples


class Toy:
    """z ~ N(theta, 1), x | z ~ N(z, 1), of k independent dimensions; x and theta are ``(batch, k)``."""

    def __init__(self, x: Tensor, theta: Tensor):
        self.x, self.theta = x, theta

    def log_joint(self, z: Tensor) -> Tensor:
        return (Normal(self.theta, 1).log_prob(z) + Normal(z, 1).log_prob(self.x)).sum(dim=-1)

    def log_evidence(self) -> Tensor:
        return Normal(self.theta, math.sqrt(2)).log_prob(self.x).sum(dim=-1)


def exact_bound(samples: int, x: float, theta: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    r"""The importance weighted bound of the one-dimensional toy, to ten digits and differentiable.

    log S is the integral of (exp(-t) - exp(-t S)) / t over t > 0 (Frullani), and for S the mean of K
    independent weights, E exp(-t S) is the K-th power of E exp(-t w / K): two integrals in one dimension.
    """
    eps = torch.linspace(-10, 10, 401, dtype=DOUBLE)
    density = torch.exp(-eps.square() / 2)
    log_w = log_weights(
        Toy(torch.full((1, 1), x), theta.reshape(1, 1)).log_joint,
        *((mean.reshape(1, 1), logvar.reshape(1, 1), eps.reshape(-1, 1, 1))),
    ).squeeze(1)
    # log t, up to where even the smallest weight has decayed.
    u = torch.arange(-36, 5 - log_w.min().item(), 0.04, dtype=DOUBLE).unsqueeze(1)
    laplace = (density * torch.exp(-torch.exp(u + log_w - math.log(samples)))).sum(dim=1) / density.sum()
    return (torch.exp(-torch.exp(u.squeeze(1))) - laplace**samples).sum() * 0.04


def test_the_exact_bound_is_the_elbo_for_one_sample_and_rises_to_the_evidence():
    theta, mean, logvar = doubles(0.2), doubles(0.4), doubles(0.3)
    evidence = Toy(torch.full((1, 1), 1.5, dtype=DOUBLE), theta.reshape(1, 1)).log_evidence()
    for logvar in (doubles(-1.0), doubles(1.0), doubles(0.3)):
        gap = 0.5 * (2 * logvar.exp() + 2 * (mean - 0.85).square() - 1 - math.log(2) - logvar)
        assert_equal_to_ten_digits(exact_bound(1, 1.5, theta, mean, logvar), (evidence - gap).squeeze())
    values = [exact_bound(k, 1.5, theta, mean, logvar).item() for k in (1, 2, 5, 20, 100)]
    assert values == sorted(values)
    assert values[-1] < evidence.item() < values[-1] + 0.01


def repeated(count: int, *values: float) -> list[Tensor]:
    """Leaves of shape (count, 1): one parameter per replicate, so that each gets its own gradient."""
    return [torch.full((count, 1), v, dtype=DOUBLE, requires_grad=True) for v in values]


def test_log_weights_are_the_differences_of_log_densities():
    mean, logvar, theta = torch.randn(3, 4, 2, dtype=DOUBLE)
    x, eps = torch.randn(4, 2, dtype=DOUBLE), torch.randn(5, 4, 2, dtype=DOUBLE)
    std, toy = (logvar / 2).exp(), Toy(x, theta)
    z = mean + std * eps
    expected = toy.log_joint(z) - Normal(mean, std).log_prob(z).sum(dim=-1)
    assert expected.shape == (5, 4)
    for function in (log_weights, path_log_weights):
        assert_equal_to_ten_digits(function(toy.log_joint, mean, logvar, eps), expected)
    bound = dreg_bound(toy.log_joint, mean, logvar, eps)
    assert_equal_to_ten_digits(bound, iwae_bound(expected))


def test_gradients_of_the_log_weights():
    def leaf(*shape):
        return torch.randn(shape, dtype=DOUBLE, requires_grad=True)

    x, eps = torch.randn(4, 2, dtype=DOUBLE), torch.randn(5, 4, 2, dtype=DOUBLE)

    def plain(theta, mean, logvar):
        return log_weights(Toy(x, theta).log_joint, mean, logvar, eps)

    assert gradcheck(plain, (leaf(4, 2), leaf(4, 2), leaf(4, 2)))
    assert gradcheck(lambda *args: iwae_bound(plain(*args)), (leaf(4, 2), leaf(4, 2), leaf(4, 2)))
    # The other two leave out a part of the gradient for q on purpose; that for the model is complete.
    mean, logvar = torch.randn(2, 4, 2, dtype=DOUBLE)
    for function in (path_log_weights, dreg_bound):
        assert gradcheck(
            lambda theta, f=function: f(Toy(x, theta).log_joint, mean, logvar, eps), (leaf(4, 2),)
        )


def test_dreg_is_what_its_formula_says_draw_by_draw():
    theta, mean, logvar = (torch.randn(4, 2, dtype=DOUBLE, requires_grad=True) for _ in range(3))
    toy, eps = Toy(torch.randn(4, 2, dtype=DOUBLE), theta), torch.randn(6, 4, 2, dtype=DOUBLE)
    got = torch.autograd.grad(dreg_bound(toy.log_joint, mean, logvar, eps).sum(), (theta, mean, logvar))
    std = (logvar.detach() / 2).exp()
    z = mean.detach() + std * eps
    precision = 1 / std.square()
    # d log w / dz by hand: prior, likelihood, and q at fixed parameters.
    slope = (theta.detach() - z) + (toy.x - z) + (z - mean.detach()) * precision
    weights = log_weights(toy.log_joint, mean, logvar, eps).detach().softmax(dim=0).unsqueeze(-1)
    assert_equal_to_ten_digits(got[0], (weights * (z - theta.detach())).sum(dim=0))
    assert_equal_to_ten_digits(got[1], (weights.square() * slope).sum(dim=0))
    assert_equal_to_ten_digits(got[2], (weights.square() * slope * 0.5 * std * eps).sum(dim=0))
    plain = iwae_bound(log_weights(toy.log_joint, mean, logvar, eps)).sum()
    assert_equal_to_ten_digits(got[0], torch.autograd.grad(plain, theta)[0])


ESTIMATORS = {
    "plain": lambda toy, *args: iwae_bound(log_weights(toy.log_joint, *args)),
    "path": lambda toy, *args: iwae_bound(path_log_weights(toy.log_joint, *args)),
    "dreg": lambda toy, *args: dreg_bound(toy.log_joint, *args),
}


@pytest.mark.parametrize(
    ("estimator", "samples"), [("plain", 1), ("path", 1), ("dreg", 1), ("plain", 3), ("dreg", 3)]
)
def test_gradients_of_the_bounds_are_unbiased(estimator, samples):
    """Values and gradients against the exact bound; enough replicates to see an error of 1 %."""
    point = {"theta": 1.0, "mean": -0.5, "logvar": 0.5}
    leaves = [doubles(v).requires_grad_() for v in point.values()]
    value = exact_bound(samples, 2.0, *leaves)
    exact = torch.autograd.grad(value, leaves)
    count = 1_800_000 if samples == 1 else 800_000
    theta, mean, logvar = repeated(count, *point.values())
    toy = Toy(torch.full((count, 1), 2.0, dtype=DOUBLE), theta)
    bound = ESTIMATORS[estimator](toy, mean, logvar, torch.randn(samples, count, 1, dtype=DOUBLE))
    assert abs(z_score(bound.detach(), value.item())) < 4
    gradients = torch.autograd.grad(bound.sum(), (theta, mean, logvar))
    for name, got, expected in zip(point, gradients, exact):
        assert abs(z_score(got.squeeze(1), expected.item())) < 4, name


def test_path_gradients_of_several_samples_are_biased():
    """Which is why dreg_bound exists (Tucker et al. 2019)."""
    count = 100_000
    leaves = [doubles(v).requires_grad_() for v in (1.0, -0.5, 0.5)]
    exact = torch.autograd.grad(exact_bound(3, 2.0, *leaves), leaves[1])[0].item()
    theta, mean, logvar = repeated(count, 1.0, -0.5, 0.5)
    toy = Toy(torch.full((count, 1), 2.0, dtype=DOUBLE), theta)
    bound = ESTIMATORS["path"](toy, mean, logvar, torch.randn(3, count, 1, dtype=DOUBLE))
    gradient = torch.autograd.grad(bound.sum(), mean)[0]
    assert gradient.mean().item() > 1.2 * exact


def test_the_gap_of_the_bound_is_the_chi_square_over_twice_the_samples():
    """Oracle 11: chi2 / 2K - (mu3 / 3 - 3/4 chi2^2) / K^2, exactly and by 400,000 replicates."""
    variance, posterior = 0.75, 0.5
    chi2 = variance / math.sqrt(posterior * (2 * variance - posterior)) - 1
    third = variance / (posterior**1.5 * math.sqrt(3 / posterior - 2 / variance))  # E w^3
    mu3 = third - 3 * (chi2 + 1) + 2
    theta, mean, logvar = doubles(0.2), doubles(0.85), doubles(math.log(variance))
    evidence = Toy(torch.full((1, 1), 1.5, dtype=DOUBLE), theta.reshape(1, 1)).log_evidence().item()
    for samples in (20, 100):
        expansion = chi2 / (2 * samples) - (mu3 / 3 - 0.75 * chi2**2) / samples**2
        gap = evidence - exact_bound(samples, 1.5, theta, mean, logvar).item()
        assert gap == pytest.approx(expansion, rel=0.5 / samples**2)
        assert abs(gap - chi2 / (2 * samples)) > 20 * abs(gap - expansion)  # the second term is seen
    count, samples = 400_000, 20
    toy = Toy(torch.full((count, 1), 1.5, dtype=DOUBLE), torch.full((count, 1), 0.2, dtype=DOUBLE))
    arguments = [t.detach() for t in repeated(count, 0.85, math.log(variance))]
    bound = iwae_bound(log_weights(toy.log_joint, *arguments, torch.randn(samples, count, 1, dtype=DOUBLE)))
    # The mean weight has expectation 1, so taking it off changes no expectation, only most of the noise.
    ratio = bound - evidence
    assert abs(z_score(ratio.exp() - 1 - ratio, chi2 / (2 * samples) - (mu3 / 3 - 0.75 * chi2**2) / 400)) < 4


def test_at_the_exact_posterior_the_path_gradient_is_zero_for_every_draw():
    """Oracle 12, on probabilistic PCA with orthogonal loadings: its posterior is diagonal."""
    axes = torch.linalg.qr(torch.randn(6, 3, dtype=DOUBLE)).Q
    model = PPCA(torch.randn(6, dtype=DOUBLE), axes * doubles(3.0, 1.0, 0.2), doubles(0.3).squeeze())
    x, eps = 3 * torch.randn(20, 6, dtype=DOUBLE), torch.randn(7, 20, 3, dtype=DOUBLE)
    mean, cov = model.posterior(x)
    logvar = cov.diagonal().log().expand(20, 3)
    assert_equal_to_ten_digits(cov, torch.diag(cov.diagonal()))

    def log_joint(z):
        flat = z.flatten(0, 1)
        output = model.mean + flat @ model.weight.T
        likelihood = gaussian_log_likelihood(x.repeat(7, 1), output, model.variance.log())
        return (likelihood + Normal(0, 1).log_prob(flat).sum(dim=1)).unflatten(0, (7, 20))

    def gradient(bound_of):
        leaves = [t.detach().clone().requires_grad_() for t in (mean, logvar)]
        weights = bound_of(log_joint, *leaves, eps)
        # Every weight is the evidence itself.
        torch.testing.assert_close(weights, model.log_likelihood(x).expand_as(weights), rtol=1e-9, atol=1e-9)
        return torch.cat(torch.autograd.grad(weights.mean(dim=0).sum(), leaves))

    assert gradient(path_log_weights).abs().max() < 1e-11
    assert gradient(dreg_bound).abs().max() < 1e-11
    assert gradient(log_weights).abs().max() > 0.1


@pytest.mark.seconds(6)
def test_more_samples_help_the_decoder_and_drown_the_plain_encoder_gradient():
    """Oracle 13: slopes of log SNR over log K, from K = 10 to 1000; +1/2, -1/2 and, doubly
    reparameterised, +1/2 (Rainforth et al. 2018; Tucker et al. 2019).

    The smallest ratio, 0.024, is seen with an error of 0.006 by 30,000 replicates: 0.05 of a slope.
    """
    ratios = []
    for samples in (10, 1000):
        gradients = []
        for count in [2000] * 15:
            theta, mean, logvar = repeated(count, 0.3, 1.35, math.log(2 / 3))
            toy = Toy(torch.ones(count, 1, dtype=DOUBLE), theta)
            eps = torch.randn(samples, count, 1, dtype=DOUBLE)
            plain = ESTIMATORS["plain"](toy, mean, logvar, eps).sum()
            doubly = ESTIMATORS["dreg"](toy, mean, logvar, eps).sum()
            found = torch.autograd.grad(plain, (theta, mean)) + torch.autograd.grad(doubly, mean)
            gradients.append(torch.cat(found, dim=1))
        ratios.append(gradient_snr(torch.cat(gradients)))
    decoder, encoder, doubly = ((ratios[1] / ratios[0]).log() / math.log(100)).tolist()
    assert decoder == pytest.approx(0.5, abs=0.1)
    assert encoder == pytest.approx(-0.5, abs=0.15)
    assert doubly == pytest.approx(0.5, abs=0.1)


def test_signal_to_noise_is_the_mean_over_the_standard_deviation():
    gradients = torch.tensor([[1.0, -3.0, 2.0, 0.0], [3.0, -1.0, 2.0, 0.0]])
    got = gradient_snr(gradients).tolist()
    assert got[:3] == pytest.approx([math.sqrt(2), math.sqrt(2), math.inf])
    assert math.isnan(got[3])


# The probe of the bug list: x = 1.5, q = N(0.4, 1), z ~ N(0, 1), K = 5. Some mistakes show in the value
# only, some in the gradient only.


def undetached(weights: Tensor) -> Tensor:
    return (weights.softmax(dim=0) * weights).sum(dim=0)


def analytic_kl(toy: Toy, mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    z = mean + (logvar / 2).exp() * eps
    return iwae_bound(Normal(z, 1).log_prob(toy.x).sum(dim=-1)) - gaussian_kl(mean, logvar)


def sampled_without_gradient(toy: Toy, mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    z = (mean + (logvar / 2).exp() * eps).detach()
    return iwae_bound(toy.log_joint(z) - Normal(mean, (logvar / 2).exp()).log_prob(z).sum(dim=-1))


PROBE = {
    "correct": (ESTIMATORS["plain"], -1.856, 0.069),
    "doubly reparameterised": (ESTIMATORS["dreg"], -1.856, 0.069),
    "no log K": (lambda toy, *args: log_weights(toy.log_joint, *args).logsumexp(dim=0), -0.247, 0.069),
    "mean of logs": (lambda toy, *args: log_weights(toy.log_joint, *args).mean(dim=0), -2.103, 0.699),
    "analytic KL": (analytic_kl, -1.696, None),
    "weights not detached": (
        lambda toy, *args: undetached(log_weights(toy.log_joint, *args)),
        -1.705,
        -0.266,
    ),
    "sample for rsample": (sampled_without_gradient, -1.856, -0.315),
}


def test_the_exact_bound_gives_the_numbers_of_the_probe():
    mean = doubles(0.4).requires_grad_()
    value = exact_bound(5, 1.5, doubles(0.0), mean, doubles(0.0))
    assert value.item() == pytest.approx(-1.856, abs=6e-4)
    assert torch.autograd.grad(value, mean)[0].item() == pytest.approx(0.069, abs=6e-4)


@pytest.mark.parametrize("version", PROBE)
def test_the_probe_tells_right_from_wrong_by_value_or_by_gradient(version):
    """Section 3 of the oracles: neither a test of values nor one of gradients is enough."""
    function, value, slope = PROBE[version]
    count = 400_000
    theta, mean, logvar = repeated(count, 0.0, 0.4, 0.0)
    toy = Toy(torch.full((count, 1), 1.5, dtype=DOUBLE), theta)
    bound = function(toy, mean, logvar, torch.randn(5, count, 1, dtype=DOUBLE))
    gradient = torch.autograd.grad(bound.sum(), mean)[0]
    got, got_slope = bound.mean().item(), gradient.mean().item()
    # Half a unit of the last digit, and four standard errors.
    assert got == pytest.approx(value, abs=5e-4 + 4 * bound.std().item() / math.sqrt(count))
    tolerance = 5e-4 + 4 * gradient.std().item() / math.sqrt(count)
    assert tolerance < 0.01
    assert slope is None or got_slope == pytest.approx(slope, abs=tolerance)
    seen_by_value = abs(got - PROBE["correct"][1]) > 0.01
    seen_by_gradient = abs(got_slope - PROBE["correct"][2]) > 0.01
    assert (seen_by_value, seen_by_gradient) == {
        "correct": (False, False),
        "doubly reparameterised": (False, False),
        "no log K": (True, False),
        "sample for rsample": (False, True),
    }.get(version, (True, True))


def test_the_mean_log_weight_is_the_elbo():
    """E log p(x|z) - KL, with 400,000 draws."""
    count = 400_000
    _, mean, logvar = repeated(count, 0.0, 0.4, -0.3)
    toy = Toy(torch.full((count, 1), 1.5, dtype=DOUBLE), torch.zeros(count, 1, dtype=DOUBLE))
    got = log_weights(toy.log_joint, mean, logvar, torch.randn(1, count, 1, dtype=DOUBLE))[0].detach()
    likelihood = -0.5 * (math.log(2 * math.pi) + 1.1**2 + math.exp(-0.3))
    expected = elbo(doubles(likelihood), gaussian_kl(mean[:1], logvar[:1]).detach())
    assert abs(z_score(got, expected.item())) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_keeps_its_dtype(dtype):
    mean, logvar, eps = torch.randn(4, 2, dtype=dtype), torch.randn(4, 2, dtype=dtype), torch.randn(5, 4, 2)
    toy, eps = Toy(torch.zeros(4, 2, dtype=dtype), torch.zeros(4, 2, dtype=dtype)), eps.to(dtype)
    for function in (log_weights, path_log_weights, dreg_bound):
        assert function(toy.log_joint, mean, logvar, eps).dtype == dtype
    for function in (pathwise_gradient, score_function_gradient):
        assert all(g.dtype == dtype for g in function(square, mean[0], logvar[0], eps[:, 0]))
    assert leave_one_out_baseline(mean[0]).dtype == gradient_snr(mean).dtype == dtype


@pytest.mark.parametrize("size", [-150.0, 150.0])
def test_log_variances_of_150_have_finite_values_and_gradients_in_single_precision(size):
    """Where exp(-logvar) is infinite and z - mean is rounded to zero, their product must not be NaN."""
    mean, theta = torch.ones(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    logvar, eps = torch.full((4, 2), size, requires_grad=True), torch.randn(5, 4, 2)

    def log_joint(z):  # as flat as the samples are far apart: its square must fit into the dtype
        return -(z - theta).abs().sum(dim=-1)

    for function in (log_weights, path_log_weights, dreg_bound):
        values = function(log_joint, mean, logvar, eps)
        assert values.isfinite().all()
        for gradient in torch.autograd.grad(values.sum(), (mean, logvar, theta)):
            assert gradient.isfinite().all()
    z = (mean + torch.exp(0.5 * logvar) * eps[0]).detach()
    for gradients in (
        pathwise_gradient(lambda z: z.abs().sum(dim=1), mean[0], logvar[0], eps[:, 0]),
        score_function_gradient(lambda z: z.tanh().sum(dim=1), mean[0], logvar[0], z),
    ):
        assert all(gradient.isfinite().all() for gradient in gradients)


K2, S52, B42, S542 = (torch.zeros(s) for s in ((2,), (5, 2), (4, 2), (5, 4, 2)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pathwise_gradient(3, K2, K2, S52), TypeError, "^f must be a function of z, not int"),
        (lambda: pathwise_gradient(square, K2, S52, S52), ValueError, "^logvar has shape"),
        (lambda: pathwise_gradient(square, K2, K2, K2), ValueError, "^eps has shape"),
        (lambda: pathwise_gradient(square, K2, K2, S52[:0]), ValueError, "^eps .* at least one sample"),
        (lambda: pathwise_gradient(lambda z: z, K2, K2, S52), ValueError, r"^f\(z\) has shape \(5, 2\)"),
        (lambda: pathwise_gradient(lambda z: z.sum(), K2, K2, S52), ValueError, r"^f\(z\) has shape \(\)"),
        (lambda: pathwise_gradient(lambda z: 1.0, K2, K2, S52), TypeError, r"^f\(z\) must be a torch.Tensor"),
        (lambda: pathwise_gradient(lambda z: z[:, 0].detach(), K2, K2, S52), ValueError, "cut off by detach"),
        (lambda: score_function_gradient(None, K2, K2, S52), TypeError, "^f must be a function of z"),
        (lambda: score_function_gradient(square, K2, K2, S52.long()), TypeError, "^z has dtype torch.int64"),
        (lambda: score_function_gradient(square, K2, K2, S52, K2), ValueError, "^baseline has shape"),
        (lambda: score_function_gradient(square, K2, K2, S52, S52), ValueError, "^baseline has shape"),
        (lambda: score_function_gradient(square, K2, K2, S52, "1"), TypeError, "^baseline must be a number"),
        (lambda: leave_one_out_baseline(torch.zeros(1)), ValueError, "^values has 1 samples but needs"),
        (lambda: leave_one_out_baseline(S52), ValueError, "^values has shape"),
        (lambda: RunningBaseline(1.0), ValueError, "^decay is 1.0 but must be at least 0 and less than 1"),
        (lambda: RunningBaseline(math.nan), ValueError, "^decay is nan"),
        (lambda: RunningBaseline("0.9"), TypeError, "^decay must be a number, not str"),
        (lambda: RunningBaseline().update(3.0), TypeError, "^values must be a torch.Tensor, not float"),
        (lambda: RunningBaseline().update(torch.zeros(0)), ValueError, "^values has 0 samples"),
        (lambda: log_weights(S542, B42, B42, S542), TypeError, "^log_joint must be a function of z"),
        (lambda: log_weights(torch.sum, B42, B42, S542), ValueError, r"^log_joint\(z\) has shape \(\)"),
        (lambda: log_weights(torch.sum, B42, B42[:1], S542), ValueError, "^logvar has shape"),
        (lambda: path_log_weights(torch.sum, B42, B42, S52), ValueError, "^eps has shape"),
        (lambda: path_log_weights(lambda z: z, B42, B42, S542), ValueError, r"^log_joint\(z\) has shape"),
        (lambda: dreg_bound(lambda z: z.sum(-1), B42, B42, S542[:0]), ValueError, "at least one sample"),
        (lambda: dreg_bound(lambda z: z[0, :, 0], B42, B42, S542), ValueError, r"^log_joint\(z\) has shape"),
        (lambda: gradient_snr(torch.zeros(1, 3)), ValueError, "^gradients has 1 replicates but needs"),
        (lambda: gradient_snr(torch.zeros(3)), ValueError, "^gradients has shape"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
