"""Against torch.distributions in double precision, and where those lose their digits against mathematics."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.nn import functional as F

from aecourse.likelihoods import (
    bernoulli_kl,
    bernoulli_log_likelihood,
    categorical_log_likelihood,
    continuous_bernoulli_log_likelihood,
    continuous_bernoulli_mean,
    full_gaussian_kl,
    gaussian_entropy,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_kl_per_dimension,
    gaussian_log_density,
    gaussian_log_likelihood,
    optimal_logvar,
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
    """Oracle 14."""
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    (mean,), (logvar,) = arrays(data.draw, shape, -5, 5), arrays(data.draw, shape, -10, 5)
    prior_logvar = data.draw(st.floats(-5, 5))
    q = Independent(Normal(mean, (logvar / 2).exp()), 1)
    p = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    assert_equal_to_ten_digits(gaussian_kl(mean, logvar), kl_divergence(q, p))
    p = Independent(Normal(torch.zeros_like(mean), torch.full_like(mean, math.exp(prior_logvar / 2))), 1)
    assert_equal_to_ten_digits(gaussian_kl(mean, logvar, prior_logvar), kl_divergence(q, p))


def test_the_kl_between_gaussians():
    m, v, m0, v0 = torch.randn(4, 5, 3, dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(m, (v / 2).exp()), torch.distributions.Normal(m0, (v0 / 2).exp())
    ).sum(dim=1)
    torch.testing.assert_close(gaussian_kl_between(m, v, m0, v0), expected, rtol=0, atol=1e-12)
    zero = torch.zeros_like(m)
    torch.testing.assert_close(
        gaussian_kl_between(m, v, zero, zero), gaussian_kl_per_dimension(m, v).sum(dim=1)
    )


@pytest.mark.parametrize("logvar", [-10_000.0, 10_000.0])
@pytest.mark.parametrize("prior_logvar", [-10_000.0, 0.0, 10_000.0])
def test_the_kl_between_gaussians_is_finite_wherever_a_network_may_end_up(logvar, prior_logvar):
    given = [torch.full((2, 3), value, requires_grad=True) for value in (50.0, logvar, -50.0, prior_logvar)]
    kl = gaussian_kl_between(*given)
    kl.sum().backward()
    assert (kl >= 0).all()
    assert all(torch.isfinite(values).all() for values in (kl, *(value.grad for value in given)))


def test_the_terms_of_the_kl_are_those_of_each_dimension():
    mean, logvar = torch.randn(2, 4, 3, dtype=torch.float64)
    terms = gaussian_kl_per_dimension(mean, logvar, 0.7)
    prior = Normal(torch.zeros((), dtype=torch.float64), math.exp(0.35))
    assert_equal_to_ten_digits(terms, kl_divergence(Normal(mean, (logvar / 2).exp()), prior))
    # Far out, too, where exp(logvar) overflows single precision: finite, and the gradient points back.
    far = torch.full((1, 1), 1000.0, requires_grad=True)
    gaussian_kl_per_dimension(torch.zeros(1, 1), far).sum().backward()
    assert 0 < far.grad.item() < math.inf


def test_the_density_of_several_draws_is_that_of_each():
    mean, logvar = torch.randn(2, 4, 3, dtype=torch.float64)
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    expected = Normal(mean, (logvar / 2).exp()).log_prob(z).sum(dim=-1)
    assert_equal_to_ten_digits(gaussian_log_density(z, mean, logvar), expected)
    assert_equal_to_ten_digits(gaussian_log_density(z[0], mean, logvar), expected[0])


@given(st.data())
def test_full_gaussian_kl_agrees_with_torch(data):
    """Oracle 14."""
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
def test_bernoulli_kl_agrees_with_torch(data):
    """Oracle 14."""
    shape = data.draw(SHAPES)
    logits, prior_logits = arrays(data.draw, shape, -12, 12, count=2)
    expected = sum_per_example(kl_divergence(Bernoulli(logits=logits), Bernoulli(logits=prior_logits)))
    assert_equal_to_ten_digits(bernoulli_kl(logits, prior_logits), expected)


@given(st.data())
def test_gaussian_log_likelihood_agrees_with_torch(data):
    shape = data.draw(SHAPES)
    x, mean = arrays(data.draw, shape, -5, 5, count=2)
    (logvar,) = arrays(data.draw, shape, -5, 5)
    expected = sum_per_example(Normal(mean, (logvar / 2).exp()).log_prob(x))
    assert_equal_to_ten_digits(gaussian_log_likelihood(x, mean, logvar), expected)
    shared = logvar.flatten()[0]
    expected = gaussian_log_likelihood(x, mean, shared.expand_as(x))
    assert_equal_to_ten_digits(gaussian_log_likelihood(x, mean, shared), expected)


@given(st.data())
def test_gaussian_entropy_agrees_with_torch(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=5))
    mean, logvar = arrays(data.draw, shape, -5, 5, count=2)
    expected = Independent(Normal(mean, (logvar / 2).exp()), 1).entropy()
    assert_equal_to_ten_digits(gaussian_entropy(logvar), expected)


@given(st.data())
def test_continuous_bernoulli_agrees_with_torch(data):
    shape = data.draw(SHAPES)
    (x,), (logits,) = arrays(data.draw, shape, 0, 1), arrays(data.draw, shape, -12, 12)
    reference = ContinuousBernoulli(logits=logits)
    # torch works from the probability, which has lost digits of the logit by the time it is near 0 or 1.
    got, expected = continuous_bernoulli_log_likelihood(x, logits), sum_per_example(reference.log_prob(x))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(continuous_bernoulli_mean(logits), reference.mean, rtol=1e-9, atol=1e-9)


# Around both edges of the series, 0.3, and zero itself.
CONTINUOUS_LOGITS = [-300.0, -9.0, -0.30001, -0.29999, -1e-9, 0.0, 1e-4, 0.2, 0.29999, 0.30001, 4.0, 300.0]


@pytest.mark.parametrize("logit", CONTINUOUS_LOGITS)
def test_continuous_bernoulli_is_a_density_with_the_stated_mean(logit):
    """By numerical integration: Gauss-Legendre on panels that crowd where the density does."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(40))
    edges = torch.cat([torch.zeros(1), torch.logspace(-4, 0, 9)]).double()
    x = (edges[:-1, None] + edges.diff()[:, None] * (nodes + 1) / 2).flatten()
    weights = (edges.diff()[:, None] * weights / 2).flatten()
    # The panels crowd at 0, so a density that crowds at 1 is turned round.
    x = 1 - x if logit > 0 else x
    logits = torch.full_like(x, logit, requires_grad=True)
    log_density = continuous_bernoulli_log_likelihood(x, logits)
    (slope,) = torch.autograd.grad(log_density.sum(), logits)
    density, mean = log_density.exp() * weights, continuous_bernoulli_mean(logits)[0].item()
    assert density.sum().item() == pytest.approx(1, rel=1e-11)
    assert (density * x).sum().item() == pytest.approx(mean, rel=1e-11)
    # d log p / d logit = x - mean, so this one sees the derivative of the normaliser.
    torch.testing.assert_close(slope, x - mean, rtol=0, atol=1e-11)


def test_continuous_bernoulli_is_smooth_where_its_formulas_meet_in_single_precision():
    logits = torch.linspace(-1, 1, 4001).unsqueeze(1).requires_grad_()
    x = torch.full_like(logits, 0.3)
    values = continuous_bernoulli_log_likelihood(x, logits)
    (slopes,) = torch.autograd.grad(values.sum(), logits)
    exact = logits.detach().double().requires_grad_()
    expected = continuous_bernoulli_log_likelihood(x.double(), exact)
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=3e-7)
    (expected,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(slopes.double(), expected, rtol=0, atol=1e-6)


@given(st.data())
def test_categorical_agrees_with_torch(data):
    batch, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    rest = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    (logits,) = arrays(data.draw, (batch, classes, *rest), -12, 12)
    x = torch.from_numpy(
        data.draw(hnp.arrays(np.int64, (batch, *rest), elements=st.integers(0, classes - 1)))
    )
    got = categorical_log_likelihood(x, logits)
    expected = Categorical(logits=logits.movedim(1, -1)).log_prob(x)
    assert_equal_to_ten_digits(got, sum_per_example(expected))
    assert_equal_to_ten_digits(got, -sum_per_example(F.cross_entropy(logits, x, reduction="none")))


def test_the_categorical_of_two_classes_is_the_bernoulli():
    logits, x = torch.randn(5, 3, 4, dtype=torch.float64), torch.randint(2, (5, 3, 4))
    both = torch.stack([torch.zeros_like(logits), logits], dim=1)
    got = categorical_log_likelihood(x, both)
    assert_equal_to_ten_digits(got, bernoulli_log_likelihood(x.double(), logits))


def test_at_the_optimal_variance_the_gaussian_has_its_known_minimum():
    """Oracle 14: D/2 (log 2 pi MSE + 1) at sigma2 = MSE, the sigma-VAE."""
    x, mean = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64)
    error = (x - mean).square().mean()
    best = optimal_logvar(x, mean)
    assert best.shape == ()
    assert best.exp().item() == pytest.approx(error.item(), rel=1e-12)

    def loss(logvar):
        return -gaussian_log_likelihood(x, mean, logvar).mean()

    minimum = 3 * 4 * 5 / 2 * (math.log(2 * math.pi * error.item()) + 1)
    assert loss(best).item() == pytest.approx(minimum, rel=1e-12)
    assert min(loss(best + 1e-3), loss(best - 1e-3)) > loss(best)
    logvar = best.clone().requires_grad_()
    loss(logvar).backward()
    assert abs(logvar.grad) < 1e-11
    # At the minimum the loss does not feel a small change of the variance, so it does not matter to the
    # gradient for the mean whether one passes through the variance.
    gradients = []
    for detach in (False, True):
        leaf = mean.clone().requires_grad_()
        logvar = optimal_logvar(x, leaf)
        (-gaussian_log_likelihood(x, leaf, logvar.detach() if detach else logvar).mean()).backward()
        gradients.append(leaf.grad)
    assert_equal_to_ten_digits(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_reconstruction_has_a_finite_optimal_variance(dtype):
    x = torch.rand(4, 6, dtype=dtype)
    mean = x.clone().requires_grad_()
    logvar = optimal_logvar(x, mean)
    assert logvar.item() == pytest.approx(2 * math.log(torch.finfo(dtype).eps), rel=1e-6)
    likelihood = gaussian_log_likelihood(x, mean, logvar)
    likelihood.sum().backward()
    assert likelihood.isfinite().all()
    assert mean.grad.eq(0).all()


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
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


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
        (gaussian_log_likelihood, lambda: (doubles(3, 2, 2), doubles(3, 2, 2), doubles())),
        (lambda mean, logvar: gaussian_kl(mean, logvar, -1.5), lambda: (doubles(3, 4), doubles(3, 4))),
        (bernoulli_kl, lambda: (doubles(3, 2, 2), doubles(3, 2, 2))),
        (
            lambda u, logits: continuous_bernoulli_log_likelihood(u.sigmoid(), logits),
            lambda: (doubles(3, 2, 2), doubles(3, 2, 2)),
        ),
        (continuous_bernoulli_mean, lambda: (doubles(3, 2, 2),)),
        (optimal_logvar, lambda: (doubles(3, 2, 2), doubles(3, 2, 2))),
        (
            lambda logits: categorical_log_likelihood(torch.tensor([[0, 2], [1, 1], [2, 0]]), logits),
            lambda: (doubles(3, 3, 2),),
        ),
        (gaussian_entropy, lambda: (doubles(3, 4),)),
    ],
    ids=[
        "gaussian_kl",
        "full_gaussian_kl",
        "bernoulli",
        "gaussian",
        "gaussian with a shared variance",
        "gaussian_kl from another prior",
        "bernoulli_kl",
        "continuous_bernoulli",
        "continuous_bernoulli_mean",
        "optimal_logvar",
        "categorical",
        "gaussian_entropy",
    ],
)
def test_gradients(function, arguments):
    assert gradcheck(function, arguments())
    assert gradgradcheck(function, arguments())


@pytest.mark.parametrize("logit", [0.0, 1e-8, -0.29, 0.29, -0.31, 0.31, 50.0])
def test_gradients_of_the_continuous_bernoulli_around_zero(logit):
    # Steps of 1e-6 must not cross the edge of the series, so gradcheck gets one logit at a time.
    logits = torch.full((1,), logit, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.3], dtype=torch.float64)
    assert gradcheck(continuous_bernoulli_log_likelihood, (x, logits))
    assert gradcheck(continuous_bernoulli_mean, (logits,))


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


@pytest.mark.parametrize("extreme", [-40.0, 40.0])
def test_gaussians_are_right_for_extreme_log_variances(extreme):
    x, mean, logvar = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[extreme]])
    expected = -0.5 * (math.log(2 * math.pi) + extreme + math.exp(-extreme))
    assert gaussian_log_likelihood(x, mean, logvar).item() == pytest.approx(expected, rel=1e-6)
    expected = 0.5 * (1 + math.exp(extreme) - 1 - extreme)
    assert gaussian_kl(x, logvar).item() == pytest.approx(expected, rel=1e-6)


SIZES = [30.0, 100.0, 1e4, 1e6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_lost_log_variances_have_finite_gradients_that_lead_back(dtype, size, sign):
    def descent(loss, logvar):
        (gradient,) = torch.autograd.grad(loss.sum(), logvar)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        return -gradient.sign().unique().item()

    logvar = torch.full((3, 784), sign * size, dtype=dtype, requires_grad=True)
    x, mean = torch.rand(3, 784, dtype=dtype), 10 * torch.ones(3, 784, dtype=dtype)
    mean.requires_grad_()
    assert descent(gaussian_kl(mean, logvar), logvar) == -sign
    assert descent(gaussian_kl(mean, logvar, 3.0), logvar) == -sign
    assert descent(-gaussian_log_likelihood(x, mean, logvar), logvar) == -sign
    # The mean of the decoder is pulled to the data, by less the larger the variance.
    (gradient,) = torch.autograd.grad(-gaussian_log_likelihood(x, mean, logvar).sum(), mean)
    assert gradient.isfinite().all()
    assert (gradient >= 0).all()
    shared = torch.tensor(sign * size, dtype=dtype, requires_grad=True)
    assert descent(-gaussian_log_likelihood(x, mean, shared), shared) == -sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tangent_takes_over_at_the_stated_exponent_without_a_jump(dtype):
    bound = 0.5 * math.log(torch.finfo(dtype).max)
    logvar = (bound + torch.tensor([[-1.0], [-1e-4], [1e-4], [1.0]], dtype=dtype)).requires_grad_()
    kl = gaussian_kl(torch.zeros_like(logvar), logvar)
    (slope,) = torch.autograd.grad(kl.sum(), logvar)
    scale = 0.5 * math.exp(bound)
    relative = pytest.approx([math.exp(-1), 1, 1, 2], rel=1e-3)
    assert (kl.detach() / scale).tolist() == relative
    assert (slope.flatten() / scale).tolist() == pytest.approx([math.exp(-1), 1, 1, 1], rel=1e-3)
    x = torch.ones_like(logvar)
    likelihood = gaussian_log_likelihood(x, torch.zeros_like(x), -logvar)
    assert (-likelihood.detach() / scale).tolist() == relative


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_of_a_thousand_trillion_has_a_finite_kl(dtype):
    mean = torch.full((2, 50), 1e15, dtype=dtype, requires_grad=True)
    kl = gaussian_kl(mean, torch.zeros_like(mean))
    kl.sum().backward()
    assert kl.tolist() == pytest.approx([25e30, 25e30], rel=1e-6)
    assert mean.grad.eq(mean).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_lost_logits_have_finite_gradients_that_lead_back(dtype, size, sign):
    logits = torch.full((3, 784), sign * size, dtype=dtype, requires_grad=True)
    wrong = torch.full_like(logits, 0.0 if sign > 0 else 1.0)  # the logits are sure of the contrary
    other, rest = torch.zeros_like(logits), torch.zeros_like(logits)
    both = torch.stack([logits, rest], dim=1)  # the class 0 has these logits
    losses = {
        "bernoulli": -bernoulli_log_likelihood(wrong, logits),
        "continuous": -continuous_bernoulli_log_likelihood(wrong, logits),
        "categorical": -categorical_log_likelihood(torch.full((3, 784), int(sign > 0)), both),
        "prior": bernoulli_kl(other, logits),
        "opposite": bernoulli_kl(-logits.detach(), logits),
        "posterior": bernoulli_kl(logits, other),
    }
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert loss.isfinite().all(), name
        assert gradient.isfinite().all(), name
        # A sigmoid so sure of itself has no gradient left in the first argument of the KL: it is the
        # derivative of p, and p is 0 or 1.
        weakest = 0 if name == "posterior" else 0.3
        assert (gradient * sign >= weakest).all(), name
    assert losses["opposite"].tolist() == pytest.approx([784 * 2 * size / 2] * 3, rel=1e-5)
    assert losses["posterior"].tolist() == pytest.approx([784 * math.log(2)] * 3, rel=1e-5)


def test_the_bernoulli_kl_of_equal_distributions_is_zero():
    logits = torch.tensor([[-1e4, -30.0, -1.0, 0.0, 0.1, 30.0, 1e4]])
    assert bernoulli_kl(logits, logits.clone()).tolist() == [0.0]


HALF_PRECISION = [
    (gaussian_kl, lambda: (torch.randn(3, 50), torch.randn(3, 50))),
    (bernoulli_kl, lambda: (torch.randn(3, 784), torch.randn(3, 784))),
    (bernoulli_log_likelihood, lambda: (torch.rand(3, 784), torch.randn(3, 784))),
    (continuous_bernoulli_log_likelihood, lambda: (torch.rand(3, 784), torch.randn(3, 784))),
    (gaussian_log_likelihood, lambda: (torch.rand(3, 784), torch.randn(3, 784), torch.randn(3, 784))),
    (gaussian_log_likelihood, lambda: (torch.rand(3, 784), torch.randn(3, 784), torch.randn(()))),
    (optimal_logvar, lambda: (torch.rand(3, 784), torch.randn(3, 784))),
    (gaussian_entropy, lambda: (torch.randn(3, 50),)),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("function", "arguments"), HALF_PRECISION)
def test_half_precision_is_computed_in_single_precision(function, arguments, dtype):
    rounded = [t.to(dtype) for t in arguments()]
    expected = function(*(t.float() for t in rounded))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for got in (function(*rounded), function(*(t.float() for t in rounded))):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("function", "arguments"), HALF_PRECISION)
def test_functions_map_over_a_further_dimension(function, arguments):
    several = [torch.stack(ts) for ts in zip(*(arguments() for _ in range(4)))]
    got = torch.func.vmap(function)(*several)
    torch.testing.assert_close(got, torch.stack([function(*ts) for ts in zip(*several)]))
    gradient = torch.func.grad(lambda *ts: function(*ts).sum())
    torch.testing.assert_close(
        torch.func.vmap(gradient)(*several), torch.stack([gradient(*ts) for ts in zip(*several)])
    )


@pytest.mark.parametrize(("function", "arguments"), HALF_PRECISION)
def test_functions_compile_into_one_graph(function, arguments):
    tensors = [t.requires_grad_() for t in arguments()]
    expected = function(*tensors)
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(values.sum(), tensors) for values in (got, expected)]
    torch.testing.assert_close(*gradients)


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
        (lambda: gaussian_log_likelihood(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(4)), "logvar"),
        (lambda: bernoulli_kl(torch.zeros(3, 4), torch.zeros(4)), "prior_logits"),
        (lambda: continuous_bernoulli_log_likelihood(torch.zeros(3, 4), torch.zeros(3, 1)), "logits"),
        (lambda: continuous_bernoulli_mean(torch.zeros(())), "logits"),
        (lambda: optimal_logvar(torch.zeros(3, 4), torch.zeros(4)), "mean"),
        (lambda: gaussian_entropy(torch.zeros(3)), "logvar"),
        (lambda: categorical_log_likelihood(torch.zeros(3).long(), torch.zeros(3)), "logits"),
        (lambda: categorical_log_likelihood(torch.zeros(3, 1).long(), torch.zeros(3, 5, 4)), "x"),
        (lambda: categorical_log_likelihood(torch.zeros(3, 5).long(), torch.zeros(3, 5)), "x"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call, blamed):
    with pytest.raises(ValueError, match=rf"^{blamed} has shape"):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: gaussian_kl(z, z, math.inf), ValueError, "^prior_logvar is inf but must be between"),
        (lambda z: gaussian_kl(z, z, math.nan), ValueError, "^prior_logvar is nan but must be between"),
        (lambda z: gaussian_kl(z, z, -41), ValueError, "^prior_logvar is -41 but must be between"),
        (lambda z: gaussian_kl(z, z, z), TypeError, "^prior_logvar must be a number, not Tensor"),
        (lambda z: gaussian_kl(z, z, "0"), TypeError, "^prior_logvar must be a number, not str"),
        (lambda z: gaussian_kl([[0.0]], z), TypeError, "^mean must be a torch.Tensor, not list"),
        (lambda z: bernoulli_kl(z.long(), z), TypeError, "^logits has dtype torch.int64"),
        (lambda z: bernoulli_log_likelihood(z.byte(), z), TypeError, "^x has dtype torch.uint8"),
        (lambda z: continuous_bernoulli_log_likelihood(z.bool(), z), TypeError, "^x has dtype torch.bool"),
        (
            lambda z: gaussian_log_likelihood(z, z, 0.0),
            TypeError,
            "^logvar must be a torch.Tensor, not float",
        ),
        (
            lambda z: gaussian_log_likelihood(z, z, torch.tensor(0)),
            TypeError,
            "^logvar has dtype torch.int64",
        ),
        (lambda z: optimal_logvar(z, 0.0), TypeError, "^mean must be a torch.Tensor, not float"),
        (lambda z: categorical_log_likelihood(z, z), TypeError, "^x has dtype torch.float32 but needs"),
        (lambda z: categorical_log_likelihood([0], z), TypeError, "^x must be a torch.Tensor, not list"),
        (lambda z: gaussian_entropy(None), TypeError, "^logvar must be a torch.Tensor, not NoneType"),
        # cross_entropy would skip this class without a word.
        (
            lambda z: categorical_log_likelihood(torch.tensor([0, -100, 0]), z),
            (RuntimeError, IndexError),
            "out of bounds",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(3, 4))
