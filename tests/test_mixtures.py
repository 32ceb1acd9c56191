"""Mixtures of Gaussians against torch.distributions, autograd, integrals on a grid and Tweedie's formula."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from aecourse.linear import optimal_linear_denoiser
from aecourse.mixtures import GaussianMixture, gaussian_mixture

SIGMAS = [1e-4, 0.05, 0.5, 2.0, 30.0, 1e3]


def mixture(dim=3, k=3, dtype=torch.float64):
    """Unequal weights, and covariances that are neither diagonal nor alike."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.tensor([5.0, 3.0, 2.0, 1.0], dtype=torch.float64)[:k]
    means = 2 * torch.randn(k, dim, generator=generator, dtype=torch.float64)
    root = torch.randn(k, dim, dim, generator=generator, dtype=torch.float64)
    covs = root @ root.mT + 0.3 * torch.eye(dim, dtype=torch.float64)
    covs = (covs + covs.mT) / 2
    return gaussian_mixture(weights.to(dtype), means.to(dtype), covs.to(dtype))


def points(count=40, dim=3):
    return 3 * torch.randn(count, dim, dtype=torch.float64)


def torchs(p):
    """The same density, by PyTorch."""
    return MixtureSameFamily(Categorical(p.weights), MultivariateNormal(p.means, p.covs))


def line_mixture(mean=2.0, variances=(1.0, 1.0), weights=(1.0, 1.0)):
    """Two components at -mean and mean, in one dimension."""
    return gaussian_mixture(
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor([[-mean], [mean]], dtype=torch.float64),
        torch.tensor(variances, dtype=torch.float64).view(2, 1, 1),
    )


# -------------------------------------------------------------------------------- density


@pytest.mark.parametrize(("dim", "k"), [(1, 1), (1, 4), (2, 3), (3, 3), (5, 2)])
def test_log_density_is_that_of_torch_distributions(dim, k):
    """Oracle: MixtureSameFamily, in float64."""
    p, x = mixture(dim, k), points(dim=dim)
    torch.testing.assert_close(p.log_density(x), torchs(p).log_prob(x), rtol=1e-12, atol=1e-12)
    each = MultivariateNormal(p.means, p.covs).log_prob(x.unsqueeze(1)) + p.weights.log()
    assert p.log_components(x).shape == (len(x), k)
    torch.testing.assert_close(p.log_components(x), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [None, 0.7])
def test_the_density_integrates_to_one(sigma):
    """Oracle: the trapezium rule, which is exact to rounding for smooth functions that vanish at the ends."""
    p = mixture(dim=2)
    p = p if sigma is None else p.smoothed(sigma)
    ticks = torch.arange(-16, 16, 0.08, dtype=torch.float64)
    total = p.log_density(torch.cartesian_prod(ticks, ticks)).exp().sum() * 0.08**2
    assert total.item() == pytest.approx(1, abs=1e-9)


def test_responsibilities_by_hand():
    """Oracle: Bayes' rule on paper. With unit variances the log odds are log(w2 / w1) + 2 mean x."""
    p = line_mixture(mean=2.0, weights=(1.0, 3.0))
    x = torch.tensor([[-1.0], [0.0], [0.3], [5.0]], dtype=torch.float64)
    second = torch.sigmoid(math.log(3) + 4 * x[:, 0])
    expected = torch.stack([1 - second, second], dim=1)
    torch.testing.assert_close(p.responsibilities(x), expected, rtol=0, atol=1e-12)
    assert p.responsibilities(x)[1, 1].item() == pytest.approx(0.75, abs=1e-12)  # in the middle: the weights


def test_responsibilities_see_the_variances():
    """Oracle: at the middle of two equally heavy components the odds are those of N(2; 0, v)."""
    p = line_mixture(mean=2.0, variances=(1.0, 4.0))
    odds = 2 * math.exp(-2 * (1 - 1 / 4))  # narrow to wide
    found = p.responsibilities(torch.zeros(1, 1, dtype=torch.float64))[0]
    assert (found[0] / found[1]).item() == pytest.approx(odds, rel=1e-12)


def test_responsibilities_are_shares():
    p, x = mixture(), points()
    shares = p.responsibilities(x)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(40).double(), rtol=0, atol=1e-12)
    expected = (p.log_components(x) - p.log_density(x).unsqueeze(1)).exp()
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------- score


@pytest.mark.parametrize(("dim", "k"), [(1, 1), (1, 4), (3, 3), (5, 2)])
def test_the_score_is_the_gradient_of_the_log_density(dim, k):
    """Oracle: autograd, through PyTorch's own density."""
    p, x = mixture(dim, k), points(dim=dim).requires_grad_()
    (gradient,) = torch.autograd.grad(torchs(p).log_prob(x).sum(), x)
    torch.testing.assert_close(p.score(x.detach()), gradient, rtol=1e-10, atol=1e-10)
    (own,) = torch.autograd.grad(p.log_density(x).sum(), x)
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-10)


def test_the_score_is_the_slope_of_the_log_density():
    """Oracle: central differences, whose error is of the order of the step squared."""
    p, x, step = mixture(), points(), 1e-5
    slopes = torch.stack(
        [
            (p.log_density(x + step * e) - p.log_density(x - step * e)) / (2 * step)
            for e in torch.eye(3, dtype=torch.float64)
        ],
        dim=1,
    )
    torch.testing.assert_close(p.score(x), slopes, rtol=1e-7, atol=1e-7)


def test_the_score_of_two_equal_components_by_hand():
    """Oracle: p proportional to N(x; -m, 1) + N(x; m, 1) has the score m tanh(m x) - x."""
    p, x = line_mixture(mean=1.5), torch.linspace(-4, 4, 17, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(p.score(x), 1.5 * torch.tanh(1.5 * x) - x, rtol=1e-12, atol=1e-12)


def test_the_score_has_mean_zero_under_the_density():
    """Oracle: the integral of a density's gradient is 0."""
    p = mixture(dim=2)
    ticks = torch.arange(-16, 16, 0.08, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    mean = (p.log_density(grid).exp().unsqueeze(1) * p.score(grid)).sum(dim=0) * 0.08**2
    torch.testing.assert_close(mean, torch.zeros(2).double(), rtol=0, atol=1e-9)


def test_far_away_the_density_and_the_score_are_finite():
    """Oracle: far out one component is left, and log p falls like its square. Densities there are 0."""
    p = mixture()
    x = 1e6 * points(20)
    density, score = p.log_density(x), p.score(x)
    assert p.log_density(x).exp().max() == 0
    assert density.isfinite().all()
    assert score.isfinite().all()
    first = p.log_components(x).argmax(dim=1)
    alone = torch.linalg.solve(p.covs[first], (p.means[first] - x).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(score, alone, rtol=1e-9, atol=0)
    torch.testing.assert_close(p.denoise(x, 0.5).isfinite(), torch.ones(20, 3, dtype=torch.bool))
    small = mixture(dtype=torch.float32)
    far = 1e4 * points(20).float()
    assert small.log_density(far).isfinite().all()
    assert small.score(far).isfinite().all()


# ------------------------------------------------------------------------------ denoising


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_denoiser_obeys_tweedie(sigma):
    """Oracle 9: E[x | x~] = x~ + sigma^2 grad log p_sigma(x~), exact at every sigma."""
    for dim, k in ((1, 4), (2, 3), (5, 2)):
        p = mixture(dim, k)
        noisy = p.sample(200)[0] + sigma * torch.randn(200, dim, dtype=torch.float64)
        expected = noisy + sigma**2 * p.smoothed(sigma).score(noisy)
        scale = max(1.0, sigma)  # of the terms that cancel
        torch.testing.assert_close(p.denoise(noisy, sigma), expected, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_the_denoiser_is_the_mean_of_the_posterior(sigma):
    """Oracle: Bayes' rule on a grid, with no formula of a Gaussian mixture's posterior."""
    p = line_mixture(mean=1.2, variances=(0.3, 0.9), weights=(2.0, 1.0))
    clean = torch.arange(-12, 12, 0.002, dtype=torch.float64)
    noisy = torch.linspace(-3, 3, 13, dtype=torch.float64)
    joint = torchs(p).log_prob(clean.unsqueeze(1)) - (noisy.unsqueeze(1) - clean) ** 2 / (2 * sigma**2)
    expected = (joint.softmax(dim=1) * clean).sum(dim=1)
    found = p.denoise(noisy.unsqueeze(1), sigma)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 10.0])
def test_one_component_gives_the_linear_denoiser(sigma):
    """Oracle 8: mean + Sigma (Sigma + sigma^2 I)^-1 (x~ - mean), as aecourse.linear finds it from data."""
    data = points(60) @ torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.5, -0.7], [0.0, 0.0, 0.2]]).double() + 1
    mean, matrix, _ = optimal_linear_denoiser(data, sigma)
    cov = torch.cov(data.T, correction=0)
    p = gaussian_mixture(torch.ones(1).double(), data.mean(dim=0).unsqueeze(0), cov.unsqueeze(0))
    noisy = points(25)
    torch.testing.assert_close(p.denoise(noisy, sigma), mean + (noisy - mean) @ matrix, rtol=0, atol=1e-10)


def test_no_noise_keeps_the_points_and_much_noise_leaves_the_mean():
    p, x = mixture(), points()
    torch.testing.assert_close(p.denoise(x, 1e-7), x, rtol=0, atol=1e-10)
    mean = (p.weights.unsqueeze(1) * p.means).sum(dim=0)
    torch.testing.assert_close(p.denoise(x, 1e7), mean.expand(40, 3), rtol=0, atol=1e-4)


def test_smoothed_adds_the_noise_to_every_covariance_and_nothing_else():
    """Oracle: N(mu, S) plus N(0, sigma^2 I) is N(mu, S + sigma^2 I)."""
    p = mixture()
    before = p.covs.clone()
    wide = p.smoothed(1.5)
    assert isinstance(wide, GaussianMixture)
    torch.testing.assert_close(wide.covs, before + 2.25 * torch.eye(3).double(), rtol=0, atol=1e-14)
    assert torch.equal(wide.weights, p.weights)
    assert torch.equal(wide.means, p.means)
    assert torch.equal(p.covs, before)  # not in place
    twice = p.smoothed(0.9).smoothed(1.2)  # 0.81 + 1.44 = 2.25
    torch.testing.assert_close(twice.covs, wide.covs, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------- sampling


def test_samples_have_the_weights_means_and_covariances():
    """Oracle: the parameters, as z-scores; 200,000 draws, seed 0."""
    p, count = mixture(), 200_000
    x, component = p.sample(count)
    assert x.shape == (count, 3)
    assert component.shape == (count,)
    assert component.dtype == torch.int64
    sizes = component.bincount(minlength=3).double()
    z = (sizes - count * p.weights) / (count * p.weights * (1 - p.weights)).sqrt()
    assert z.abs().max() < 5
    half = component[: count // 2].bincount(minlength=3).double()  # components come in no order
    z = (half - count / 2 * p.weights) / (count / 2 * p.weights * (1 - p.weights)).sqrt()
    assert z.abs().max() < 5
    for i in range(3):
        mine, cov = x[component == i], p.covs[i]
        variances = cov.diagonal()
        z = (mine.mean(dim=0) - p.means[i]) / (variances / len(mine)).sqrt()
        assert z.abs().max() < 5
        # The variance of an entry of the sample covariance: (S_ii S_jj + S_ij^2) / n.
        z = (torch.cov(mine.T) - cov) / ((torch.outer(variances, variances) + cov**2) / len(mine)).sqrt()
        assert z.abs().max() < 5


def test_the_mean_log_density_of_samples_is_minus_the_entropy():
    """Oracle: the entropy as an integral on a grid, as a z-score; 20,000 draws, seed 0."""
    p = line_mixture(mean=1.2, variances=(0.3, 0.9), weights=(2.0, 1.0))
    grid = torch.arange(-12, 12, 0.002, dtype=torch.float64).unsqueeze(1)
    expected = (p.log_density(grid).exp() * p.log_density(grid)).sum() * 0.002
    found = p.log_density(p.sample(20_000)[0])
    assert abs((found.mean() - expected) / (found.std() / math.sqrt(20_000))) < 5


def test_the_seed_decides_the_samples():
    p = mixture()
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(p.sample(50))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[2][0])
    assert not torch.equal(p.sample(50)[0], p.sample(50)[0])


# ---------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_and_shapes_are_kept(dtype):
    p, x = mixture(dtype=dtype), points(7).to(dtype)
    exact = mixture()
    for found, shape in [
        (p.log_components(x), (7, 3)),
        (p.log_density(x), (7,)),
        (p.responsibilities(x), (7, 3)),
        (p.score(x), (7, 3)),
        (p.denoise(x, 0.5), (7, 3)),
        (p.sample(7)[0], (7, 3)),
        (p.smoothed(0.5).covs, (3, 3, 3)),
    ]:
        assert found.dtype == dtype
        assert found.shape == shape
    wide = x.double()
    torch.testing.assert_close(p.score(x).double(), exact.score(wide), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(p.denoise(x, 0.5).double(), exact.denoise(wide, 0.5), rtol=1e-3, atol=1e-4)
    assert p.log_density(x[:0]).shape == (0,)


def test_weights_are_divided_by_their_sum():
    p = mixture()
    torch.testing.assert_close(
        p.weights, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_a_row_of_a_batch_does_not_depend_on_the_others():
    p, x = mixture(), points(6)
    for call in (p.log_density, p.score, lambda x: p.denoise(x, 0.5)):
        torch.testing.assert_close(call(x)[2:3], call(x[2:3]), rtol=0, atol=1e-12)


ONES, EYE = torch.ones(2), torch.eye(2).expand(2, 2, 2)
MEANS = torch.zeros(2, 2)


def with_second(matrix):
    return torch.stack([torch.eye(2), torch.tensor(matrix)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: gaussian_mixture([1.0], MEANS, EYE),
            TypeError,
            r"^weights must be a torch\.Tensor, not list",
        ),
        (lambda: gaussian_mixture(ONES.long(), MEANS, EYE), TypeError, r"^weights has dtype torch\.int64"),
        (
            lambda: gaussian_mixture(torch.ones(3), MEANS, EYE),
            ValueError,
            r"^means has shape \(2, 2\) but needs \(k, D\) = \(3, D\)",
        ),
        (
            lambda: gaussian_mixture(ONES, MEANS[0], EYE),
            ValueError,
            r"^means has shape \(2,\) but needs \(k, D\)",
        ),
        (
            lambda: gaussian_mixture(ONES, MEANS, EYE[0]),
            ValueError,
            r"^covs has shape \(2, 2\) but needs \(k, D, D\)",
        ),
        (
            lambda: gaussian_mixture(ONES, torch.zeros(2, 3), EYE),
            ValueError,
            r"^covs has shape \(2, 2, 2\).*\(2, 3, 3\)",
        ),
        (
            lambda: gaussian_mixture(torch.tensor([1.0, 0.0]), MEANS, EYE),
            ValueError,
            r"^weights has the entry 0 but needs them all positive",
        ),
        (
            lambda: gaussian_mixture(torch.tensor([1.0, -0.5]), MEANS, EYE),
            ValueError,
            r"^weights has the entry -0\.5 but",
        ),
        (
            lambda: gaussian_mixture(torch.tensor([1.0, math.nan]), MEANS, EYE),
            ValueError,
            r"^weights has the entry nan but",
        ),
        (
            lambda: gaussian_mixture(ONES, MEANS, with_second([[1.0, 0.5], [0.0, 1.0]])),
            ValueError,
            r"^covs must be symmetric and positive definite; covs\[1\] is \[\[1\.0, 0\.5\], \[0\.0, 1\.0\]\]",
        ),
        (
            lambda: gaussian_mixture(ONES, MEANS, with_second([[1.0, 2.0], [2.0, 1.0]])),
            ValueError,
            r"^covs must be symmetric and positive definite; covs\[1\]",
        ),
        (
            lambda: gaussian_mixture(ONES, MEANS, with_second([[1.0, 0.0], [0.0, 0.0]])),
            ValueError,
            r"covs\[1\] is \[\[1\.0, 0\.0\], \[0\.0, 0\.0\]\]",
        ),
        (
            lambda: gaussian_mixture(ONES, MEANS, with_second([[1.0, 0.0], [0.0, math.nan]])),
            ValueError,
            r"covs\[1\] is .*nan",
        ),
        (lambda: mixture().sample(0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda: mixture().smoothed(0.0), ValueError, r"^sigma is 0\.0 but must be positive"),
        (lambda: mixture().smoothed(math.inf), ValueError, r"^sigma is inf but must be positive"),
        (lambda: mixture().denoise(points(), -1.0), ValueError, r"^sigma is -1\.0 but must be positive"),
        (lambda: mixture().denoise(points(), math.nan), ValueError, r"^sigma is nan but must be positive"),
        (
            lambda: mixture().denoise(points(dim=2), 1.0),
            ValueError,
            r"^x has shape \(40, 2\) but needs \(N, D\)",
        ),
        (lambda: mixture().log_density(points()[0]), ValueError, r"^x has shape \(3,\) but needs \(N, D\)"),
        (lambda: mixture().score(points(dim=4)), ValueError, r"^x has shape \(40, 4\) but needs \(N, D\)"),
        (lambda: mixture().log_density([[0.0]]), TypeError, r"^x must be a torch\.Tensor, not list"),
    ],
)
def test_bad_inputs_are_refused_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()
