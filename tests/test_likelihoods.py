"""Against torch.distributions in double precision, and where those lose their digits against mathematics."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from aecourse.likelihoods import (
    bernoulli_log_likelihood,
    full_gaussian_kl,
    gaussian_kl,
    gaussian_log_likelihood,
)

# Shapes with a batch and any further dimensions: (batch,), (batch, D), images, ...
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def arrays(draw, shape, low, high, count=1):
    elements = st.floats(low, high)
    return [torch.from_numpy(draw(hnp.arrays(np.float64, shape, elements=elements))) for _ in range(count)]


def assert_equal_to_ten_digits(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def sum_per_example(values):
    return values.reshape(len(values), -1).sum(dim=1)


@given(st.data())
def test_gaussian_kl_agrees_with_torch(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    (mean,), (logvar,) = arrays(data.draw, shape, -5, 5), arrays(data.draw, shape, -10, 5)
    q = Independent(Normal(mean, (logvar / 2).exp()), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert_equal_to_ten_digits(gaussian_kl(mean, logvar), kl_divergence(q, p))


@given(st.data())
def test_full_gaussian_kl_agrees_with_torch(data):
    batch, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    (mean,), (root,) = arrays(data.draw, (batch, k), -5, 5), arrays(data.draw, (batch, k, k), -2, 2)
    cov = root @ root.mT + 0.1 * torch.eye(k)
    p = MultivariateNormal(torch.zeros(batch, k).double(), torch.eye(k).double().expand(batch, k, k))
    expected = kl_divergence(MultivariateNormal(mean, cov), p)
    assert_equal_to_ten_digits(full_gaussian_kl(mean, cov), expected)


@given(st.data())
def test_full_gaussian_kl_of_a_diagonal_covariance_is_gaussian_kl(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    (mean,), (logvar,) = arrays(data.draw, shape, -5, 5), arrays(data.draw, shape, -8, 5)
    got = full_gaussian_kl(mean, torch.diag_embed(logvar.exp()))
    assert_equal_to_ten_digits(got, gaussian_kl(mean, logvar))


@given(st.data())
def test_bernoulli_agrees_with_the_formula(data):
    # torch.distributions.Bernoulli calls the same kernel as the library, so it would be no witness.
    shape = data.draw(SHAPES)
    (x,), (logits,) = arrays(data.draw, shape, 0, 1), arrays(data.draw, shape, -12, 12)
    p, q = 1 / (1 + (-logits).exp()), 1 / (1 + logits.exp())
    expected = sum_per_example(x * p.log() + (1 - x) * q.log())
    assert_equal_to_ten_digits(bernoulli_log_likelihood(x, logits), expected)


@given(st.data())
def test_gaussian_log_likelihood_agrees_with_torch(data):
    shape = data.draw(SHAPES)
    x, mean = arrays(data.draw, shape, -5, 5, count=2)
    (logvar,) = arrays(data.draw, shape, -5, 5)
    expected = sum_per_example(Normal(mean, (logvar / 2).exp()).log_prob(x))
    assert_equal_to_ten_digits(gaussian_log_likelihood(x, mean, logvar), expected)


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 1, 4, 4), (3, 3, 4, 5)])
def test_each_example_gets_its_own_number(shape):
    x, a, b = torch.rand(3, *shape)
    for got, one in (
        (bernoulli_log_likelihood(x, a), lambda i: bernoulli_log_likelihood(x[i : i + 1], a[i : i + 1])),
        (
            gaussian_log_likelihood(x, a, b),
            lambda i: gaussian_log_likelihood(x[i : i + 1], a[i : i + 1], b[i : i + 1]),
        ),
    ):
        assert got.shape == (3,)
        torch.testing.assert_close(got, torch.cat([one(i) for i in range(3)]))


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (gaussian_kl, lambda: (doubles(3, 4), doubles(3, 4))),
        # The lower triangle alone is read, so only a symmetric cov has a meaningful gradient.
        (
            lambda mean, root: full_gaussian_kl(mean, root @ root.mT + torch.eye(4)),
            lambda: (doubles(3, 4), doubles(3, 4, 4)),
        ),
        (
            lambda u, logits: bernoulli_log_likelihood(u.sigmoid(), logits),
            lambda: (doubles(3, 2, 2), doubles(3, 2, 2)),
        ),
        (gaussian_log_likelihood, lambda: (doubles(3, 2, 2), doubles(3, 2, 2), doubles(3, 2, 2))),
    ],
    ids=["gaussian_kl", "full_gaussian_kl", "bernoulli", "gaussian"],
)
def test_gradients(function, arguments):
    assert gradcheck(function, arguments())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_of_the_prior_from_itself_is_exactly_zero(dtype):
    zeros, identity = torch.zeros(2, 4, dtype=dtype), torch.eye(4, dtype=dtype).expand(2, 4, 4)
    assert gaussian_kl(zeros, zeros).tolist() == [0.0, 0.0]
    assert full_gaussian_kl(zeros, identity).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1, 1])
def test_gaussian_kl_is_never_negative_not_even_by_rounding(dtype, sign):
    logvar = sign * torch.logspace(-30, 1, 100_000, dtype=dtype).unsqueeze(1)
    assert gaussian_kl(torch.zeros_like(logvar), logvar).min() >= 0


def test_gaussian_kl_keeps_its_digits_near_the_prior():
    # exp(l) - 1 - l in place of expm1(l) - l is wrong by 19 % at the median of these values.
    logvar = torch.linspace(-1e-3, 1e-3, 40).unsqueeze(1)
    exact = logvar.double()
    exact = 0.5 * (exact**2 / 2 + exact**3 / 6 + exact**4 / 24).squeeze(1)
    got = gaussian_kl(torch.zeros_like(logvar), logvar).double()
    torch.testing.assert_close(got, exact, rtol=1e-2, atol=0)


def test_bernoulli_is_right_for_certain_logits():
    x = torch.tensor([[1.0], [0.0], [1.0], [0.0], [0.5]])
    logits = torch.tensor([[1e4], [-1e4], [-1e4], [1e4], [1e4]], requires_grad=True)
    got = bernoulli_log_likelihood(x, logits)
    assert got.tolist() == [0.0, 0.0, -1e4, -1e4, -5e3]
    got.sum().backward()
    # d log p / d logit = x - p, with p = 1 or 0.
    assert logits.grad.flatten().tolist() == [0.0, 0.0, 1.0, -1.0, -0.5]


@pytest.mark.parametrize("extreme", [-60.0, 60.0])
def test_gaussians_are_right_for_extreme_log_variances(extreme):
    x, mean, logvar = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[extreme]])
    expected = -0.5 * (math.log(2 * math.pi) + extreme + math.exp(-extreme))
    assert gaussian_log_likelihood(x, mean, logvar).item() == pytest.approx(expected, rel=1e-6)
    expected = 0.5 * (1 + math.exp(extreme) - 1 - extreme)
    assert gaussian_kl(x, logvar).item() == pytest.approx(expected, rel=1e-6)


def test_full_gaussian_kl_is_right_for_a_nearly_singular_covariance():
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    variances = torch.tensor([2.0, 1.0, 1e-9], dtype=torch.float64)
    cov = rotation @ torch.diag(variances) @ rotation.T
    expected = 0.5 * (variances - 1 - variances.log()).sum()
    got = full_gaussian_kl(torch.zeros(1, 3, dtype=torch.float64), cov.unsqueeze(0))
    # The smallest eigenvalue of cov carries 1e-16 / 1e-9 of relative rounding.
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


def test_full_gaussian_kl_names_the_example_whose_covariance_is_not_positive_definite():
    cov = torch.eye(2).repeat(4, 1, 1)
    cov[2] = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"^cov must be positive definite; cov\[2\] is not\.$"):
        full_gaussian_kl(torch.zeros(4, 2), cov)
    with pytest.raises(ValueError, match="positive definite"):
        full_gaussian_kl(torch.zeros(4, 2), torch.full((4, 2, 2), math.nan))


def test_full_gaussian_kl_reads_the_lower_triangle():
    cov = torch.tensor([[[2.0, 0.3], [0.3, 1.0]]])
    lower = torch.tensor([[[2.0, 99.0], [0.3, 1.0]]])
    mean = torch.zeros(1, 2)
    assert full_gaussian_kl(mean, lower) == full_gaussian_kl(mean, cov)


@pytest.mark.parametrize(
    ("call", "blamed"),
    [
        (lambda: gaussian_kl(torch.zeros(3, 2), torch.zeros(3, 1)), "logvar"),
        (lambda: gaussian_kl(torch.zeros(2), torch.zeros(2)), "mean"),
        (lambda: full_gaussian_kl(torch.zeros(3, 2), torch.ones(3, 2)), "cov"),
        (lambda: full_gaussian_kl(torch.zeros(3, 2), torch.eye(2)), "cov"),
        (lambda: bernoulli_log_likelihood(torch.zeros(3, 1), torch.zeros(3, 4)), "logits"),
        (lambda: gaussian_log_likelihood(torch.zeros(3, 4), torch.zeros(3, 1), torch.zeros(3, 4)), "mean"),
        # A scalar variance would broadcast without a word.
        (lambda: gaussian_log_likelihood(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(1)), "logvar"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call, blamed):
    with pytest.raises(ValueError, match=rf"^{blamed} has shape"):
        call()
