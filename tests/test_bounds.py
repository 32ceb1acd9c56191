"""Bounds are tested on probabilistic PCA, where log p(x) and the posterior are known exactly."""

import dataclasses
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from aecourse.bounds import (
    Loss,
    cyclical_annealing,
    elbo,
    elbo_from_evidence,
    elbo_from_joint,
    elbo_over_classes,
    free_bits,
    iwae_bound,
    linear_annealing,
    log_mean_exp,
    sigmoid_annealing,
)
from aecourse.likelihoods import full_gaussian_kl, gaussian_entropy, gaussian_kl, gaussian_log_likelihood
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


def test_the_three_forms_of_the_elbo_are_one_number(model, x):
    """Oracle 3 and its neighbours: for a q that is not the posterior, exactly and for every x."""
    mean, cov = model.posterior(x)
    q_mean, q_logvar = mean + 0.3, torch.tensor([-1.0, 0.2, 0.7], dtype=torch.float64).expand(COUNT, -1)
    q_cov = torch.diag(q_logvar[0].exp())
    likelihood = expected_log_likelihood(model, x, q_mean, q_cov)
    # E log p(z) under q, for a standard normal prior.
    log_prior = -0.5 * (math.log(2 * math.pi) + q_mean.square() + q_logvar.exp()).sum(dim=1)
    to_posterior = kl_divergence(MultivariateNormal(q_mean, q_cov), MultivariateNormal(mean, cov))
    from_terms = elbo(likelihood, gaussian_kl(q_mean, q_logvar))
    from_joint = elbo_from_joint(likelihood + log_prior, gaussian_entropy(q_logvar))
    from_evidence = elbo_from_evidence(model.log_likelihood(x), to_posterior)
    assert (to_posterior > 0.1).all()
    torch.testing.assert_close(from_joint, from_terms, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(from_evidence, from_terms, rtol=1e-9, atol=1e-9)


def test_a_sum_over_classes_is_a_mixture_of_probabilistic_pcas(model, x):
    """Three models that share all but their means, exact posteriors within: only q of the class can lose."""
    shifts = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    log_prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    within = torch.stack([model._replace(mean=model.mean + s).log_likelihood(x) for s in shifts], dim=1)
    evidence = (within + log_prior).logsumexp(dim=1)
    posterior = (within + log_prior).log_softmax(dim=1)
    assert_equal_to_ten_digits(elbo_over_classes(within, posterior, log_prior), evidence)
    log_q = torch.randn(COUNT, 3, dtype=torch.float64).log_softmax(dim=1)
    kl = (log_q.exp() * (log_q - posterior)).sum(dim=1)
    assert (kl > 1e-4).any()
    assert_equal_to_ten_digits(elbo_over_classes(within, log_q, log_prior), evidence - kl)


def test_a_class_that_is_ruled_out_takes_no_part():
    values = torch.tensor([[-3.0, -math.inf, -5.0]], requires_grad=True)
    logits = torch.tensor([[0.5, -math.inf, 0.5]], requires_grad=True)
    log_prior = torch.full((3,), 1 / 3).log()
    bound = elbo_over_classes(values, logits.log_softmax(dim=1), log_prior)
    torch.testing.assert_close(bound, torch.tensor([-4 + math.log(2) - math.log(3)]))
    bound.sum().backward()
    assert values.grad.tolist() == [[0.5, 0.0, 0.5]]
    assert logits.grad.isfinite().all()


def test_elbo_is_the_difference_of_its_two_terms():
    got = elbo(torch.tensor([-80.0, -90.0]), torch.tensor([20.0, 5.0]))
    assert got.tolist() == [-100.0, -95.0]


@pytest.mark.parametrize(("beta", "expected"), [(0, -80.0), (0.5, -90.0), (4.0, -160.0)])
def test_beta_weighs_the_kl(beta, expected):
    assert elbo(torch.tensor([-80.0]), torch.tensor([20.0]), beta).item() == expected


def test_beta_may_be_a_tensor_that_a_schedule_fills_in():
    beta = torch.tensor(0.5)
    got = elbo(torch.tensor([-80.0, -60.0]), torch.tensor([20.0, 10.0]), beta)
    assert got.tolist() == [-90.0, -65.0]
    beta.fill_(4.0)
    assert elbo(torch.tensor([-80.0]), torch.tensor([20.0]), beta).tolist() == [-160.0]


@given(st.data())
def test_log_mean_exp_agrees_with_its_definition(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    log_weights = torch.from_numpy(data.draw(hnp.arrays(np.float64, shape, elements=st.floats(-20, 20))))
    assert_equal_to_ten_digits(log_mean_exp(log_weights, dim), log_weights.exp().mean(dim).log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_weights", "value", "gradient"),
    [
        ([-math.inf, -3.0, -math.inf], -3 - math.log(3), [0.0, 1.0, 0.0]),
        ([-math.inf, -3.0, -3.0, -math.inf], -3 - math.log(2), [0.0, 0.5, 0.5, 0.0]),
        ([1e30, 1e30, -1e30], 1e30, [0.5, 0.5, 0.0]),
        ([-1e4, -1e4 - 200, -1e4], -1e4 + math.log(2 / 3), [0.5, 0.0, 0.5]),
        ([-7000.1, -7000.1, -7000.1], -7000.1, [1 / 3, 1 / 3, 1 / 3]),
        ([1e4, 0.0], 1e4 - math.log(2), [1.0, 0.0]),
        ([-123.25], -123.25, [1.0]),
    ],
)
def test_log_mean_exp_is_right_for_extreme_weights(log_weights, value, gradient, dtype):
    log_weights = torch.tensor(log_weights, dtype=dtype, requires_grad=True)
    got = log_mean_exp(log_weights)
    got.backward()
    assert got.item() == pytest.approx(value, rel=1e-6)
    assert log_weights.grad.tolist() == pytest.approx(gradient, abs=1e-6)


def test_log_mean_exp_of_nothing_but_zeros_is_the_logarithm_of_zero():
    assert log_mean_exp(torch.full((3, 2), -math.inf)).tolist() == [-math.inf, -math.inf]


def test_the_bound_of_one_sample_is_its_weight_and_more_of_the_same_change_nothing():
    log_weights = torch.randn(1, 5)
    assert iwae_bound(log_weights).equal(log_weights[0])
    torch.testing.assert_close(iwae_bound(log_weights.expand(7, 5)), log_weights[0])


def test_the_bound_takes_the_mean_over_samples_not_over_the_batch():
    got = iwae_bound(torch.tensor([[0.0, 1.0, 5.0], [math.log(3), 1.0, -math.inf]]))
    assert got.tolist() == pytest.approx([math.log(2), 1.0, 5 - math.log(2)])


def test_the_bound_is_tighter_with_more_samples_and_exact_at_the_posterior(model, x):
    """Oracle 3: at the exact posterior every weight is p(x)."""
    mean, cov = model.posterior(x)
    posterior = MultivariateNormal(mean, cov)

    def log_weights(q, samples):
        z = q.sample((samples,))
        likelihood = torch.stack([log_likelihood(model, x, one) for one in z])
        return likelihood + Normal(0, 1).log_prob(z).sum(dim=2) - q.log_prob(z)

    evidence = model.log_likelihood(x)
    exact = log_weights(posterior, 3)
    torch.testing.assert_close(exact, evidence.expand(3, -1), rtol=1e-8, atol=1e-8)
    wide = log_weights(MultivariateNormal(mean, 2 * cov), 20_000)
    bounds = [iwae_bound(wide.view(k, -1, COUNT).flatten(1)).view(-1, COUNT) for k in (1, 10, 100)]
    gaps = [(evidence - b.mean(dim=0)).mean().item() for b in bounds]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


# Arguments away from the corner of the maximum in free_bits.
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (elbo, ((3,), (3,), ())),
        (elbo_from_joint, ((3,), (3,))),
        (elbo_from_evidence, ((3,), (3,))),
        (log_mean_exp, ((4, 3),)),
        (lambda w: log_mean_exp(w, dim=1), ((4, 3),)),
        (iwae_bound, ((4, 3),)),
        (lambda kl: free_bits(kl.exp(), 1.0), ((4, 5),)),
    ],
)
def test_gradients(function, arguments):
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in arguments]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def test_free_bits_charge_each_dimension_after_the_mean_over_the_batch():
    kl = torch.tensor([[0.0, 3.0, 0.1], [2.0, 1.0, 0.1]], requires_grad=True)
    got = free_bits(kl, 0.5)
    assert got.shape == ()
    assert got.item() == 1.0 + 2.0 + 0.5  # example by example it would be 1.25 + 2 + 0.5
    got.backward()
    assert kl.grad.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]
    assert free_bits(kl, 0).item() == pytest.approx(kl.sum(dim=1).mean().item())
    assert free_bits(kl, 10.0).item() == 30.0


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (100, 0.0), (150, 0.25), (200.0, 0.5), (300, 1.0), (10**9, 1.0)]
)
def test_linear_annealing(step, expected):
    assert linear_annealing(step, start=100, end=300) == expected


@pytest.mark.parametrize(("step", "expected"), [(500, 0.5), (550, 1 / (1 + math.exp(-1))), (450, 0.26894)])
def test_sigmoid_annealing(step, expected):
    assert sigmoid_annealing(step, midpoint=500, width=50) == pytest.approx(expected, abs=1e-5)
    for distance in (0, 1, 37, 400):
        both = [sigmoid_annealing(500 + d, 500, 50) for d in (distance, -distance)]
        assert sum(both) == pytest.approx(1, rel=1e-12)


def test_sigmoid_annealing_does_not_overflow():
    assert sigmoid_annealing(0, midpoint=10**6, width=1e-3) == 0.0
    assert sigmoid_annealing(10**9, midpoint=0, width=1e-3) == 1.0


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (10, 0.4), (25, 1.0), (99, 1.0), (100, 0.0), (110, 0.4), (925, 1.0)]
)
def test_cyclical_annealing(step, expected):
    assert cyclical_annealing(step, period=100, ratio=0.25) == pytest.approx(expected)


def test_cyclical_annealing_that_rises_all_the_time():
    assert [cyclical_annealing(t, period=4, ratio=1) for t in range(6)] == [0, 0.25, 0.5, 0.75, 0, 0.25]
    assert cyclical_annealing(3, period=8) == 0.75


@given(st.floats(0, 1e12), st.floats(0, 1e9), st.floats(1e-3, 1e9), st.floats(1e-3, 1))
def test_annealing_stays_between_0_and_1_and_rises(step, start, length, ratio):
    for schedule in (
        lambda t: linear_annealing(t, start, start + length + 1),
        lambda t: sigmoid_annealing(t, start, length),
    ):
        assert 0 <= schedule(step) <= schedule(step + 0.1 * length) <= 1
    assert 0 <= cyclical_annealing(step, length, ratio) <= 1


ZEROS = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: elbo(ZEROS, ZEROS, beta=-1), ValueError, r"^beta is -1 but must be at least 0"),
        (lambda: elbo(ZEROS, ZEROS, beta=math.nan), ValueError, r"^beta is nan but must be at least 0"),
        (lambda: elbo(ZEROS, ZEROS, beta=ZEROS), ValueError, r"^beta has shape \(3,\) but needs \(\)"),
        (lambda: elbo(ZEROS, ZEROS, beta="1"), TypeError, r"^beta must be a number, not str"),
        (lambda: elbo(ZEROS, ZEROS, beta=None), TypeError, r"^beta must be a number, not NoneType"),
        (lambda: elbo(ZEROS, torch.zeros(4)), ValueError, r"^kl has shape \(4,\)"),
        (lambda: elbo(ZEROS, ZEROS.mean()), ValueError, r"^kl has shape \(\)"),
        (lambda: elbo(torch.zeros(3, 5), ZEROS), ValueError, r"^log_likelihood has shape \(3, 5\)"),
        (lambda: elbo(ZEROS, 0.0), TypeError, r"^kl must be a torch.Tensor, not float"),
        (lambda: elbo_from_joint(ZEROS, torch.zeros(3, 1)), ValueError, r"^entropy has shape \(3, 1\)"),
        (lambda: elbo_from_joint(ZEROS, torch.zeros(())), ValueError, r"^entropy has shape \(\)"),
        (lambda: elbo_from_evidence(ZEROS, torch.zeros(2)), ValueError, r"^posterior_kl has shape \(2,\)"),
        (lambda: elbo_from_evidence(ZEROS.long(), ZEROS), TypeError, r"^log_evidence has dtype torch.int64"),
        (lambda: log_mean_exp(3.0), TypeError, r"^log_weights must be a torch.Tensor, not float"),
        (lambda: log_mean_exp(ZEROS.long()), TypeError, r"^log_weights has dtype torch.int64"),
        (lambda: log_mean_exp(ZEROS, dim=1), ValueError, r"^log_weights .* there is no dimension 1"),
        (lambda: log_mean_exp(ZEROS[0]), ValueError, r"^log_weights .* there is no dimension 0"),
        (lambda: log_mean_exp(torch.zeros(0, 3)), ValueError, r"^log_weights .* at least one sample"),
        (lambda: iwae_bound(ZEROS), ValueError, r"^log_weights has shape \(3,\) but needs"),
        (lambda: iwae_bound(torch.zeros(2, 3, 4)), ValueError, r"^log_weights has shape \(2, 3, 4\)"),
        (lambda: iwae_bound(torch.zeros(0, 3)), ValueError, r"^log_weights .* at least one sample"),
        (lambda: free_bits(ZEROS, 0.1), ValueError, r"^kl_per_dimension has shape \(3,\)"),
        (lambda: free_bits(torch.zeros(3, 2), -0.1), ValueError, r"^minimum is -0.1 but must be"),
        (lambda: free_bits(torch.zeros(3, 2), math.nan), ValueError, r"^minimum is nan but must be"),
        (lambda: free_bits(torch.zeros(3, 2), ZEROS), TypeError, r"^minimum must be a number, not Tensor"),
        (lambda: linear_annealing(-1, 0, 10), ValueError, r"^step is -1 but must be"),
        (lambda: linear_annealing(math.nan, 0, 10), ValueError, r"^step is nan but must be"),
        (lambda: linear_annealing(1, 10, 10), ValueError, r"^start is 10 and end is 10 but they need"),
        (lambda: linear_annealing(1, -1, 10), ValueError, r"^start is -1 and end is 10"),
        (lambda: linear_annealing(ZEROS, 0, 1), TypeError, r"^step must be a number, not Tensor"),
        (lambda: linear_annealing(1, 0, "10"), TypeError, r"^end must be a number, not str"),
        (lambda: sigmoid_annealing(1, 5, 0), ValueError, r"^width is 0 but must be positive"),
        (lambda: sigmoid_annealing(1, -5, 1), ValueError, r"^midpoint is -5 but must be"),
        (lambda: sigmoid_annealing(1, None, 1), TypeError, r"^midpoint must be a number, not NoneType"),
        (lambda: cyclical_annealing(1, 0), ValueError, r"^period is 0 but must be positive"),
        (lambda: cyclical_annealing(1, 10, 0), ValueError, r"^ratio is 0 but must be more than 0"),
        (lambda: cyclical_annealing(1, 10, 1.5), ValueError, r"^ratio is 1.5 but must be"),
        (lambda: cyclical_annealing("1", 10), TypeError, r"^step must be a number, not str"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_loss_cannot_be_changed_by_accident():
    loss = Loss(total=torch.tensor(1.0), parts={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.total = torch.tensor(2.0)
