"""Bounds are tested on probabilistic PCA, where log p(x) and the posterior are known exactly."""

import dataclasses
import math

import pytest
import torch

from aecourse.bounds import Loss, elbo
from aecourse.likelihoods import full_gaussian_kl, gaussian_kl, gaussian_log_likelihood
from aecourse.linear import PPCA

DIM, CODE_DIM, COUNT = 6, 3, 50


@pytest.fixture
def model() -> PPCA:
    """Loadings that are not orthogonal: the posterior's covariance is then not diagonal."""
    weight = torch.randn(DIM, CODE_DIM, dtype=torch.float64)
    return PPCA(torch.randn(DIM, dtype=torch.float64), weight, torch.tensor(0.3, dtype=torch.float64))


@pytest.fixture
def x() -> torch.Tensor:
    """Points the model never saw, some of them far away: the identities hold for every one."""
    return torch.randn(COUNT, DIM, dtype=torch.float64) * torch.logspace(-1, 2, COUNT).unsqueeze(1)


def gap_matrix(model):
    """M = W'W + variance I."""
    return model.weight.T @ model.weight + model.variance * torch.eye(CODE_DIM, dtype=torch.float64)


def log_likelihood(model, x, z):
    return gaussian_log_likelihood(x, model.mean + z @ model.weight.T, model.variance.log().expand_as(x))


def expected_log_likelihood(model, x, mean, cov):
    """E log p(x|z) under z ~ N(mean, cov), exactly.

    The log-likelihood is quadratic in z, and for a quadratic the mean over the 2k points
    mean +- sqrt(k) l_j, with l_j the columns of a root of cov, is the expectation.
    """
    offsets = math.sqrt(CODE_DIM) * torch.linalg.cholesky(cov).mT
    points = [mean + sign * offsets[..., j, :] for j in range(CODE_DIM) for sign in (1, -1)]
    return torch.stack([log_likelihood(model, x, z) for z in points]).mean(dim=0)


def assert_equal_to_ten_digits(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_with_the_exact_posterior_the_elbo_is_the_log_evidence_of_every_example(model, x):
    mean, cov = model.posterior(x)
    bound = elbo(
        expected_log_likelihood(model, x, mean, cov), full_gaussian_kl(mean, cov.expand(COUNT, -1, -1))
    )
    assert_equal_to_ten_digits(bound, model.log_likelihood(x))


def test_the_best_diagonal_posterior_misses_by_the_same_gap_everywhere(model, x):
    mean, _ = model.posterior(x)
    precision = gap_matrix(model)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.01  # else this test could not tell the diagonal from the full posterior

    def bound(variances):
        kl = gaussian_kl(mean, variances.log().expand(COUNT, -1))
        return elbo(expected_log_likelihood(model, x, mean, torch.diag(variances)), kl)

    best = model.variance / precision.diagonal()
    assert_equal_to_ten_digits(model.log_likelihood(x) - bound(best), gap.expand(COUNT))
    for j in range(CODE_DIM):
        for factor in (0.9, 1.1):
            other = best.clone()
            other[j] *= factor
            assert (bound(other) < bound(best)).all()


def test_the_expected_squared_error_has_a_variance_term(model, x):
    # E |x - W z|^2 - |x - W mean|^2 = tr(W diag(s^2) W')
    mean, variances = model.posterior(x)[0], torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    expected = expected_log_likelihood(model, x, mean, torch.diag(variances))
    missed = log_likelihood(model, x, mean) - expected
    trace = torch.trace(model.weight @ torch.diag(variances) @ model.weight.T)
    torch.testing.assert_close(missed, (trace / (2 * model.variance)).expand(COUNT), rtol=1e-8, atol=1e-8)


def test_a_bound_at_the_posterior_mean_is_no_bound(model, x):
    mean, cov = model.posterior(x)
    fake = elbo(log_likelihood(model, x, mean), full_gaussian_kl(mean, cov.expand(COUNT, -1, -1)))
    assert (fake > model.log_likelihood(x) + 0.1).all()


def test_elbo_is_the_difference_of_its_two_terms():
    got = elbo(torch.tensor([-80.0, -90.0]), torch.tensor([20.0, 5.0]))
    assert got.tolist() == [-100.0, -95.0]


@pytest.mark.parametrize(("beta", "expected"), [(0, -80.0), (0.5, -90.0), (4.0, -160.0)])
def test_beta_weighs_the_kl(beta, expected):
    assert elbo(torch.tensor([-80.0]), torch.tensor([20.0]), beta).item() == expected


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"^beta is -1 but must be at least 0"):
        elbo(torch.zeros(3), torch.zeros(3), beta=-1)
    with pytest.raises(ValueError, match=r"^kl has shape \(4,\)"):
        elbo(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"^kl has shape \(\)"):
        elbo(torch.zeros(3), torch.zeros(3).mean())
    with pytest.raises(ValueError, match=r"^log_likelihood has shape \(3, 5\)"):
        elbo(torch.zeros(3, 5), torch.zeros(3))


def test_a_loss_cannot_be_changed_by_accident():
    loss = Loss(total=torch.tensor(1.0), parts={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.total = torch.tensor(2.0)
