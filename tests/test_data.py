"""The toys against their geometry, the files against published facts, the errors against a beginner."""

import gzip
import hashlib
import math
import pickle
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from aecourse import data

COUNT = 100_000
FILES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """No AECOURSE_ variables and an empty cache; gives monkeypatch to set some."""
    for name in ("AECOURSE_DATA", "AECOURSE_DATASET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def linked(root: Path, source: Path, folder: str = "MNIST") -> Path:
    """A root of our own whose archives are links to the real ones; gives its raw folder."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for file in FILES:
        (raw / f"{file}.gz").symlink_to(archive(source, file, folder))
    return raw


def archive(root: Path, file: str, folder: str = "MNIST") -> Path:
    path = root / folder / "raw" / f"{file}.gz"
    if not path.is_file():
        pytest.skip(f"needs the archive {folder}/raw/{file}.gz under {root}")
    return path.resolve()


# ----------------------------------------------------------------------------------- toys


def test_points_of_the_line_lie_on_it_and_spread_like_a_standard_normal():
    points = data.line(COUNT)
    assert points.shape == (COUNT, 2)
    assert torch.equal(points[:, 0], 2 * points[:, 1])
    a = points[:, 1]
    assert abs(a.mean().item()) * math.sqrt(COUNT) < 4
    assert abs(a.var().item() - 1) / math.sqrt(2 / COUNT) < 4


def test_points_of_the_circle_lie_on_it_and_are_spread_evenly():
    points = data.circle(COUNT)
    assert points.shape == (COUNT, 2)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(COUNT))
    # Every harmonic of a uniform angle has mean 0 and variance 1/2.
    angle = torch.atan2(points[:, 0], points[:, 1])
    for n in (1, 2, 3, 4):
        for harmonic in ((n * angle).sin(), (n * angle).cos()):
            assert abs(harmonic.mean().item()) * math.sqrt(2 * COUNT) < 4


@pytest.mark.parametrize("shape", [data.line, data.circle])
def test_noise_is_added_to_both_coordinates_with_the_standard_deviation_asked_for(shape):
    torch.manual_seed(1)
    clean = shape(COUNT)
    torch.manual_seed(1)
    noise = (shape(COUNT, noise=0.3) - clean).double()
    assert noise.mean(dim=0).abs().max() / (0.3 / math.sqrt(COUNT)) < 4
    assert (noise.var(dim=0) / 0.09 - 1).abs().max() / math.sqrt(2 / COUNT) < 4
    assert torch.corrcoef(noise.T)[0, 1].abs() * math.sqrt(COUNT) < 4


def uniform(values):
    """Whether values in [0, 1] are uniform, by the distance of Kolmogorov and Smirnov."""
    values = values.double().flatten().sort().values
    assert values[0] >= 0
    assert values[-1] <= 1
    ranks = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = torch.maximum(values - ranks[:-1], ranks[1:] - values).max().item()
    return distance * math.sqrt(len(values)) < 2.4  # larger once in 50,000


@pytest.mark.parametrize("turns", [0.25, 1.5, 4.0])
def test_points_of_the_spiral_lie_on_it(turns):
    """Oracle: at radius r the angle is 2 pi turns r; its square is uniform. 100,000 draws, seed 0."""
    points = data.spiral(COUNT, turns=turns)
    assert points.shape == (COUNT, 2)
    radius = points.norm(dim=1)
    assert radius.max() <= 1 + 1e-6
    angle = 2 * math.pi * turns * radius
    expected = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], dim=1)
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-5)
    assert uniform((radius**2).clamp(max=1))


def test_points_of_the_spiral_are_nearly_uniform_along_its_length():
    """Oracle: the length of r = a t up to t is a/2 (t sqrt(1 + t^2) + asinh t)."""
    angle = 3 * math.pi * data.spiral(COUNT).double().norm(dim=1)
    end = torch.tensor(3 * math.pi, dtype=torch.float64)

    def length(t):
        return t * (1 + t**2).sqrt() + t.asinh()

    share = (length(angle) / length(end)).sort().values
    ranks = (torch.arange(COUNT) + 0.5).double() / COUNT
    assert (share - ranks).abs().max() < 0.03  # a uniform radius is off by 0.25


def test_arms_of_the_pinwheel_are_one_blob_turned():
    """Oracle: turned back and untwisted, every arm is N(1, radial^2) by N(0, tangential^2), as z-scores."""
    points, arm = data.pinwheel(COUNT, arms=3, radial=0.2, tangential=0.1, twist=0.0)
    assert points.shape == (COUNT, 2)
    assert points.dtype == torch.float32
    assert arm.shape == (COUNT,)
    assert arm.dtype == torch.int64
    counts = arm.bincount()
    assert len(counts) == 3
    assert ((counts - COUNT / 3) / math.sqrt(COUNT * 2 / 9)).abs().max() < 5
    for i in range(3):
        blob = turned(points[arm == i], -2 * math.pi * i / 3)
        for values, mean, std in ((blob.real, 1, 0.2), (blob.imag, 0, 0.1)):
            assert abs(values.mean() - mean) / (std / math.sqrt(len(values))) < 5
            assert abs(values.var() / std**2 - 1) / math.sqrt(2 / len(values)) < 5
        assert abs(torch.corrcoef(torch.view_as_real(blob).T)[0, 1]) * math.sqrt(len(blob)) < 5


def turned(points, angle):
    """Points of the plane as complex numbers, turned by an angle (of each, or of all)."""
    angle = torch.as_tensor(angle, dtype=torch.float64)
    return torch.view_as_complex(points.double()) * torch.polar(torch.ones_like(angle), angle)


def test_the_pinwheel_twists_by_the_exponential_of_the_radius():
    """Oracle: the same draw without a twist, each point turned by twist * exp(radius)."""
    torch.manual_seed(2)
    straight, arm = data.pinwheel(500, arms=4, twist=0.0)
    torch.manual_seed(2)
    bent, same = data.pinwheel(500, arms=4, twist=0.4)
    assert torch.equal(arm, same)
    radius = turned(straight, -2 * math.pi * arm / 4).real
    expected = torch.view_as_real(turned(straight, 0.4 * radius.exp()))
    torch.testing.assert_close(bent.double(), expected, rtol=0, atol=1e-5)


def test_the_pinwheel_looks_the_same_after_a_turn_by_one_arm():
    """Oracle: of the moments E z^n only those with n a multiple of the arms are not 0; as z-scores."""
    points, _ = data.pinwheel(COUNT, arms=5, twist=0.25)
    z = turned(points, 0.0)
    for n in range(1, 6):
        parts = torch.view_as_real(z**n)
        score = (parts.mean(dim=0) / parts.std(dim=0) * math.sqrt(COUNT)).abs().max()
        assert score > 50 if n == 5 else score < 5


def test_the_ring_is_a_mixture_of_equal_gaussians_on_a_circle():
    """Oracle: the roots of unity, and the density written out."""
    p = data.mixture_ring(6, radius=3.0, std=0.5)
    roots = torch.polar(torch.tensor(3.0), 2 * math.pi * torch.arange(6) / 6)
    torch.testing.assert_close(p.means, torch.view_as_real(roots), rtol=0, atol=1e-5)
    assert_isotropic(p, 6, 0.5)
    assert data.mixture_ring().means.shape == (8, 2)
    assert_isotropic(data.mixture_ring(), 8, 0.2)
    torch.testing.assert_close(data.mixture_ring().means.norm(dim=1), torch.full((8,), 2.0))


def test_the_grid_is_a_mixture_of_equal_gaussians_on_a_grid():
    """Oracle: the grid written out, and the density."""
    p = data.mixture_grid(3, spacing=2.0, std=0.4)
    expected = {(x, y) for x in (-2.0, 0.0, 2.0) for y in (-2.0, 0.0, 2.0)}
    assert {tuple(mean) for mean in p.means.tolist()} == expected
    assert_isotropic(p, 9, 0.4)
    even = data.mixture_grid(2).means
    assert {tuple(mean) for mean in even.tolist()} == {(x, y) for x in (-0.5, 0.5) for y in (-0.5, 0.5)}
    assert data.mixture_grid().means.shape == (25, 2)
    assert_isotropic(data.mixture_grid(), 25, 0.1)


def assert_isotropic(p, count, std):
    assert p.means.dtype == p.covs.dtype == p.weights.dtype == torch.float32
    torch.testing.assert_close(p.weights, torch.full((count,), 1 / count))
    x = (2 * torch.randn(20, 2)).double()
    squares = (x.unsqueeze(1) - p.means.double()).square().sum(dim=2)
    density = (-squares / (2 * std**2)).exp().sum(dim=1) / (count * 2 * math.pi * std**2)
    torch.testing.assert_close(p.log_density(x.float()).exp().double(), density, rtol=1e-3, atol=1e-6)
    points, component = p.sample(2000)
    scaled = (points - p.means[component]) / std
    assert abs(scaled.var().item() - 1) / math.sqrt(2 / 4000) < 5


@pytest.mark.parametrize("length", [32, 100])
def test_a_time_series_without_noise_is_its_formula(length):
    """Oracle: the formula of the docstring, in float64, from the factors that come with the signals."""
    signals, factors = data.time_series(200, length, noise=0.0)
    assert signals.shape == (200, 1, length)
    assert factors.shape == (200, 4)
    assert signals.dtype == factors.dtype == torch.float32
    frequency, phase, amplitude, slope = (column.unsqueeze(1) for column in factors.double().T)
    t = torch.tensor([i / length for i in range(length)], dtype=torch.float64)
    expected = amplitude * (2 * math.pi * frequency * t + phase).sin() + slope * (t - 0.5)
    torch.testing.assert_close(signals[:, 0].double(), expected, rtol=0, atol=1e-4)


def test_factors_of_a_time_series_are_uniform_and_independent():
    """Oracle: the ranges of the docstring. 100,000 draws, seed 0."""
    factors = data.time_series(COUNT, 32).factors.double()
    low, high = torch.tensor([[1, -math.pi, 0.3, -1], [8, math.pi, 1, 1]]).double()
    shares = (factors - low) / (high - low)
    for share in shares.T:
        assert uniform(share.clamp(0, 1))
    assert shares.min() > -1e-6
    assert shares.max() < 1 + 1e-6
    correlation = torch.corrcoef(shares.T) - torch.eye(4).double()
    assert correlation.abs().max() * math.sqrt(COUNT) < 5


def test_noise_of_a_time_series_is_white_with_the_standard_deviation_asked_for():
    torch.manual_seed(1)
    clean = data.time_series(2000, 50, noise=0.0)
    torch.manual_seed(1)
    noisy = data.time_series(2000, 50, noise=0.2)
    assert torch.equal(clean.factors, noisy.factors)
    noise = (noisy.signals - clean.signals).double()[:, 0]
    assert abs(noise.mean().item()) / (0.2 / math.sqrt(COUNT)) < 5
    assert abs(noise.var().item() / 0.04 - 1) / math.sqrt(2 / COUNT) < 5
    assert abs((noise[:, 1:] * noise[:, :-1]).mean().item()) / 0.04 * math.sqrt(2000 * 49) < 5


@pytest.mark.parametrize(
    "draw",
    [
        lambda: data.spiral(20),
        lambda: data.pinwheel(20)[0],
        lambda: data.time_series(20).signals,
        lambda: data.mixture_ring().sample(20)[0],
    ],
)
def test_the_seed_decides_a_toy(draw):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.line(0), r"^count is 0 but must be at least 1"),
        (lambda: data.circle(3, noise=-0.1), r"^noise is -0\.1 but must be at least 0"),
        (lambda: data.spiral(0), r"^count is 0 but"),
        (lambda: data.spiral(3, noise=math.inf), r"^noise is inf but"),
        (lambda: data.spiral(3, turns=0), r"^turns is 0 but must be positive"),
        (lambda: data.spiral(3, turns=math.nan), r"^turns is nan but must be positive"),
        (lambda: data.pinwheel(0), r"^count is 0 but"),
        (lambda: data.pinwheel(3, arms=0), r"^arms is 0 but must be at least 1"),
        (lambda: data.pinwheel(3, radial=-1.0), r"is -1\.0 but must be at least 0"),
        (lambda: data.pinwheel(3, tangential=math.nan), r"is nan but must be at least 0"),
        (lambda: data.mixture_ring(0), r"^modes, radius, std are 0, 2\.0, 0\.2 but must be positive"),
        (lambda: data.mixture_ring(radius=-2.0), r"^modes, radius, std are 8, -2\.0, 0\.2 but"),
        (lambda: data.mixture_ring(std=0.0), r"^modes, radius, std are 8, 2\.0, 0\.0 but"),
        (lambda: data.mixture_grid(0), r"^side, spacing, std are 0, 1\.0, 0\.1 but must be positive"),
        (lambda: data.mixture_grid(spacing=0.0), r"^side, spacing, std are 5, 0\.0, 0\.1 but"),
        (lambda: data.mixture_grid(std=math.nan), r"^side, spacing, std are 5, 1\.0, nan but"),
        (lambda: data.time_series(0), r"^count is 0 but"),
        (lambda: data.time_series(3, length=31), r"^length is 31 but must be at least 32"),
        (lambda: data.time_series(3, noise=-1.0), r"^noise is -1\.0 but"),
    ],
)
def test_bad_settings_of_a_toy_are_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------- corruption

RANDOM = {
    "noise": lambda x, **g: data.add_gaussian_noise(x, 0.3, **g),
    "mask": lambda x, **g: data.mask(x, 0.3, **g),
    "salt and pepper": lambda x, **g: data.salt_and_pepper(x, 0.3, **g),
    "binarize": lambda x, **g: data.binarize(x, **g),
}
CORRUPTIONS = RANDOM | {"downsample": lambda x: data.downsample(x, 2)}


def greys(*shape, dtype=torch.float32):
    """Grey values from 0.1 to 0.9: no corruption mistakes them for black or white."""
    return 0.1 + 0.8 * torch.rand(shape, dtype=dtype)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_corruption_keeps_shape_and_dtype_and_leaves_its_input(name, dtype):
    x = greys(4, 3, 6, 6, dtype=dtype)
    before = x.clone()
    corrupted = CORRUPTIONS[name](x)
    assert corrupted.shape == x.shape
    assert corrupted.dtype == dtype
    assert torch.equal(x, before)
    assert not torch.equal(corrupted, x)


@pytest.mark.parametrize("name", RANDOM)
def test_a_corruption_draws_from_the_generator_or_else_from_the_seed(name):
    x, corrupt = greys(5, 40), RANDOM[name]

    def drawn(seed):
        return corrupt(x, generator=torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert torch.equal(torch.get_rng_state(), state)
    first = corrupt(x)
    assert not torch.equal(corrupt(x), first)  # anew in each epoch
    torch.set_rng_state(state)
    assert torch.equal(corrupt(x), first)


@pytest.mark.parametrize("name", RANDOM)
def test_every_value_is_corrupted_by_its_own_draw(name):
    """Oracle: no two rows or columns of the same grey are corrupted alike."""
    corrupted = RANDOM[name](torch.full((30, 1, 40, 40), 0.5))
    assert len(corrupted.flatten(1).unique(dim=0)) == 30
    assert len(corrupted[0, 0].unique(dim=0)) == 40
    assert len(corrupted[0, 0].unique(dim=1).T) == 40


def test_gaussian_noise_has_the_standard_deviation_asked_for_and_is_not_clipped():
    """Oracle: mean 0, variance sigma^2, kurtosis 3, as z-scores; 100,000 draws, seed 0."""
    x = greys(COUNT, 1, dtype=torch.float64)
    corrupted = data.add_gaussian_noise(x, 0.7)
    noise = (corrupted - x) / 0.7
    assert abs(noise.mean().item()) * math.sqrt(COUNT) < 5
    assert abs(noise.var().item() - 1) / math.sqrt(2 / COUNT) < 5
    assert abs((noise**4).mean().item() - 3) / math.sqrt(96 / COUNT) < 5
    assert corrupted.min() < -0.5
    assert corrupted.max() > 1.5
    assert torch.equal(data.add_gaussian_noise(x, 0.0), x)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_a_mask_sets_its_share_of_the_values_to_zero(probability):
    """Oracle: a binomial count, as a z-score; 100,000 draws, seed 0. The rest is untouched."""
    x = greys(100, 1000)
    corrupted = data.mask(x, probability)
    gone = corrupted == 0
    assert torch.equal(corrupted[~gone], x[~gone])
    std = math.sqrt(probability * (1 - probability) / COUNT)
    assert abs(gone.double().mean().item() - probability) / std < 5


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_salt_and_pepper_are_half_of_the_share_each(probability):
    """Oracle: two binomial counts, as z-scores; 100,000 draws, seed 0. The rest is untouched."""
    x = greys(100, 1000)
    corrupted = data.salt_and_pepper(x, probability)
    salt, pepper = corrupted == 1, corrupted == 0
    rest = ~(salt | pepper)
    assert torch.equal(corrupted[rest], x[rest])
    half = probability / 2
    std = math.sqrt(half * (1 - half) / COUNT)
    for share in (salt, pepper):
        assert abs(share.double().mean().item() - half) / std < 5


def test_probabilities_zero_and_one_are_exact():
    x = greys(100, 1000)
    assert torch.equal(data.mask(x, 0.0), x)
    assert torch.equal(data.salt_and_pepper(x, 0.0), x)
    assert data.mask(x, 1.0).abs().max() == 0
    all_replaced = data.salt_and_pepper(x, 1.0)
    assert all_replaced.unique().tolist() == [0, 1]


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7, 10])
def test_downsampling_shows_the_mean_of_each_block(factor):
    """Oracle: the blocks cut out one by one; 7 x 5 pixels, so that the last ones are smaller."""
    x = greys(2, 3, 7, 5, dtype=torch.float64)
    corrupted = data.downsample(x, factor)
    assert corrupted.shape == x.shape
    expected = torch.empty_like(x)
    for top in range(0, 7, factor):
        for left in range(0, 5, factor):
            block = ..., slice(top, top + factor), slice(left, left + factor)
            expected[block] = x[block].mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(corrupted, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(data.downsample(corrupted, factor), corrupted, rtol=0, atol=1e-12)


def test_gradients_flow_through_what_a_corruption_keeps():
    """Oracle: by hand. Noise passes all, mask and salt what they keep, a block shares its gradient out."""
    x = greys(6, 1, 4, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, 1, 4, 4, dtype=torch.float64)

    def gradient(y):
        (found,) = torch.autograd.grad((weight * y).sum(), x)
        return found

    assert torch.equal(gradient(data.add_gaussian_noise(x, 0.5)), weight)
    for corrupted in (data.mask(x, 0.5), data.salt_and_pepper(x, 0.5)):
        assert torch.equal(gradient(corrupted), weight * (corrupted == x))
    torch.testing.assert_close(
        gradient(data.downsample(x, 2)), data.downsample(weight, 2), rtol=0, atol=1e-12
    )
    assert not data.binarize(x).requires_grad


def test_binarize_draws_each_pixel_with_its_grey_value():
    """Oracle: a binomial count for each of 40 grey values, as z-scores; 5,000 draws of each, seed 0."""
    grey = torch.linspace(0.02, 0.98, 40)
    drawn = data.binarize(grey.expand(5000, 40))
    assert drawn.unique().tolist() == [0, 1]
    z = (drawn.mean(dim=0) - grey) / (grey * (1 - grey) / 5000).sqrt()
    assert z.abs().max() < 5
    assert 0.5 < z.std() < 1.5  # neither frozen nor too even
    ends = torch.tensor([0.0, 1.0]).expand(5000, 2)
    assert torch.equal(data.binarize(ends), ends)
    assert torch.equal(data.binarize(drawn), drawn)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: data.add_gaussian_noise(x, -0.1), ValueError, r"^sigma is -0\.1 but must be at least 0"),
        (lambda x: data.add_gaussian_noise(x, math.nan), ValueError, r"^sigma is nan but"),
        (lambda x: data.add_gaussian_noise(x, math.inf), ValueError, r"^sigma is inf but"),
        (lambda x: data.add_gaussian_noise(x.byte(), 0.1), TypeError, r"^x has dtype torch\.uint8"),
        (lambda x: data.mask(x, 1.1), ValueError, r"^probability is 1\.1 but must be between 0 and 1"),
        (lambda x: data.mask(x, math.nan), ValueError, r"^probability is nan but"),
        (lambda x: data.mask(x.tolist(), 0.5), TypeError, r"^x must be a torch\.Tensor, not list"),
        (lambda x: data.salt_and_pepper(x, -0.5), ValueError, r"^probability is -0\.5 but"),
        (lambda x: data.salt_and_pepper(x, 2), ValueError, r"^probability is 2 but"),
        (lambda x: data.salt_and_pepper(x.long(), 0.5), TypeError, r"^x has dtype torch\.int64"),
        (lambda x: data.downsample(x, 0), ValueError, r"^factor is 0 but must be at least 1"),
        (lambda x: data.downsample(x[0], 2), ValueError, r"^x has shape \(1, 4, 4\) but needs \(batch, ch"),
        (lambda x: data.downsample(x.int(), 2), TypeError, r"^x has dtype torch\.int32"),
        (lambda x: data.binarize(x.bool()), TypeError, r"^x has dtype torch\.bool"),
        (
            lambda x: data.binarize(x[0, 0, 0, 0]),
            ValueError,
            r"^x has shape \(\) but needs \(batch, \.\.\.\)",
        ),
    ],
)
def test_bad_settings_of_a_corruption_are_refused_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call(greys(2, 1, 4, 4))


# --------------------------------------------------------------- data sets inside packages


@pytest.mark.parametrize(
    ("name", "image_shape", "train", "test"),
    [("digits", (1, 8, 8), 1436, 361), ("faces", (1, 25, 25), 79, 21)],
)
def test_shapes_types_and_range(name, image_shape, train, test):
    found = data.load(name)
    assert found.name == name
    assert found.image_shape == image_shape
    assert found.train.shape == (train, *image_shape)
    assert found.test.shape == (test, *image_shape)
    assert found.train_labels.shape == (train,)
    assert found.test_labels.shape == (test,)
    for images, labels in ((found.train, found.train_labels), (found.test, found.test_labels)):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.min() >= 0
        assert images.max() <= 1
        assert images.max() > 0.9  # scaled to the whole range, not further
    assert str(found).startswith(f"{name} (from scikit-")
    assert f"{train:,} training and {test:,} test" in str(found)


def chosen_for_testing(count):
    """A fifth, spread evenly: where the multiples of the golden ratio fall into [0, 0.2) modulo 1."""
    return torch.tensor([i * (math.sqrt(5) - 1) / 2 % 1 < 0.2 for i in range(count)])


def test_digits_are_those_of_sklearn_and_a_fifth_is_for_testing():
    from sklearn.datasets import load_digits

    bunch, found = load_digits(), data.load("digits")
    is_test = chosen_for_testing(1797)
    images, labels = torch.from_numpy(bunch.images / 16).float(), torch.from_numpy(bunch.target)
    assert torch.equal(found.test[:, 0], images[is_test])
    assert torch.equal(found.train[:, 0], images[~is_test])
    assert torch.equal(found.test_labels, labels[is_test])
    assert torch.equal(found.train_labels, labels[~is_test])
    # The file runs through 0 ... 9 again and again, so a split by position could favour some digits:
    # every fifth image would, with a chi-squared of 25 on these 9 degrees of freedom.
    expected = labels.bincount() / 5
    assert ((found.test_labels.bincount() - expected) ** 2 / (0.8 * expected)).sum() < 10


def test_faces_are_faces_and_not_the_backgrounds_in_the_same_file():
    from skimage.data import lfw_subset

    faces, found = torch.from_numpy(lfw_subset()[:100]).float(), data.load("faces")
    is_test = chosen_for_testing(100)
    assert torch.equal(found.test[:, 0], faces[is_test])
    assert torch.equal(found.train[:, 0], faces[~is_test])


@pytest.mark.parametrize("name", ["digits", "faces"])
def test_loading_is_deterministic_and_draws_no_random_numbers(name):
    state = torch.get_rng_state()
    first, second = data.load(name), data.load(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.test, second.test)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("digits", "sklearn.datasets", "scikit-learn"),
        ("faces", "skimage.data", "scikit-image"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ImportError, match=rf'^{name} ship inside {package}: pip install "aecourse\[book\]"\.$'
    ):
        data.load(name)


def test_fetch_names_torchvision_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r'^mnist needs torchvision: pip install "aecourse\[book\]"\.$'):
        data.fetch("mnist", tmp_path)


# ------------------------------------------------------------------- where data come from


def test_data_root_is_the_variable_or_else_the_cache(environment, tmp_path):
    assert data.data_root() == tmp_path / "cache" / "aecourse"
    environment.setenv("AECOURSE_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    environment.setenv("AECOURSE_DATA", "")
    environment.setenv("XDG_CACHE_HOME", "")
    environment.setattr(Path, "home", lambda: tmp_path / "home")
    assert data.data_root() == tmp_path / "home" / ".cache" / "aecourse"


def test_a_variable_that_names_no_folder_is_an_error_and_not_the_cache(environment, tmp_path):
    missing = tmp_path / "mising"
    environment.setenv("AECOURSE_DATA", str(missing))
    for call in (data.data_root, data.chosen_name, lambda: data.load("mnist")):
        with pytest.raises(FileNotFoundError, match=r"^AECOURSE_DATA is .*mising.* not a folder\. Create it"):
            call()
    # What needs no files is not held up.
    assert data.load("digits").name == "digits"


def test_the_chapters_use_mnist_where_its_files_are_and_digits_elsewhere(environment, tmp_path):
    environment.setenv("AECOURSE_DATA", str(tmp_path))
    assert data.chosen_name() == "digits"
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    assert data.chosen_name() == "digits"
    for other in (".DS_Store", "train-images.idx3-ubyte", "readme.txt"):
        (raw / other).touch()
    assert data.chosen_name() == "digits"
    (raw / "train-images-idx3-ubyte.gz").touch()
    assert data.chosen_name() == "mnist"
    environment.setenv("AECOURSE_DATASET", "faces")
    assert data.chosen_name() == "faces"
    assert data.load().name == "faces"


def test_without_files_or_variables_load_gives_digits(environment):
    assert data.load().name == "digits"


def test_an_unknown_name_is_refused_with_the_known_ones(environment):
    expected = r"^There is no data set 'minst'\. Known: digits, faces, mnist, fashion-mnist, cifar10\.$"
    with pytest.raises(ValueError, match=expected):
        data.load("minst")
    environment.setenv("AECOURSE_DATASET", "minst")
    with pytest.raises(ValueError, match=expected):
        data.load()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_missing_files_are_reported_with_the_command_that_gets_them(environment, tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{name} is not under {tmp_path}: no ")
    assert "train-images-idx3-ubyte" in message
    assert f"aecourse fetch {name}" in message.replace("'aecourse fetch", "aecourse fetch")
    assert "load('digits'), which needs no download" in message
    assert list(tmp_path.iterdir()) == []  # looking for files creates none


@pytest.mark.parametrize("other", ["train-images.idx3-ubyte", "train-images.idx3-ubyte.gz"])
def test_a_file_under_another_mirrors_name_is_told(tmp_path, other):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / other).touch()
    message = rf"no MNIST/raw/train-images-idx3-ubyte \(nor \.gz\)\. There is {re.escape(other)}: rename it\."
    with pytest.raises(FileNotFoundError, match=message):
        data.load("mnist", tmp_path)


def test_fetch_refuses_what_it_cannot_download(tmp_path):
    with pytest.raises(ValueError, match=r"'digits' cannot be fetched\. It ships inside a Python package"):
        data.fetch("digits", tmp_path)
    with pytest.raises(
        ValueError, match=r"'minst' cannot be fetched\. These can: mnist, fashion-mnist, cifar10\.$"
    ):
        data.fetch("minst", tmp_path)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_a_damaged_file_is_named(tmp_path, file):
    path = tmp_path / "MNIST" / "raw" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an error page of some proxy")
    with pytest.raises(ValueError, match="is damaged: its MD5 checksum is") as caught:
        data.load("mnist", tmp_path)
    assert str(caught.value).startswith(str(path))
    assert "Delete it and run 'aecourse fetch mnist'" in str(caught.value)


@pytest.mark.parametrize("unpacked", [False, True])
def test_one_flipped_bit_in_real_files_is_noticed(mnist_root, tmp_path, unpacked):
    raw = linked(tmp_path, mnist_root)
    packed = raw / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(packed.read_bytes())
    packed.unlink()
    path = packed
    if unpacked:
        content, path = bytearray(gzip.decompress(content)), packed.with_suffix("")
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as caught:
        data.load("mnist", tmp_path)
    assert str(caught.value).startswith(str(path))


def test_one_missing_file_of_the_four_is_named(mnist_root, tmp_path):
    raw = linked(tmp_path, mnist_root)
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no MNIST/raw/t10k-labels-idx1-ubyte"):
        data.load("mnist", tmp_path)


# --------------------------------------------------------------------------- the real files


@pytest.fixture(scope="module")
def mnist(mnist_root) -> data.Dataset:
    return data.load("mnist", mnist_root)


def test_mnist_is_mnist(mnist):
    assert mnist.image_shape == (1, 28, 28)
    assert mnist.train.shape == (60_000, 1, 28, 28)
    assert mnist.test.shape == (10_000, 1, 28, 28)
    assert mnist.train.dtype == mnist.test.dtype == torch.float32
    assert mnist.train_labels.dtype == mnist.test_labels.dtype == torch.int64
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.train_labels.bincount().tolist() == train
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    for images in (mnist.train, mnist.test):
        assert (images.min(), images.max()) == (0, 1)
    assert mnist.train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert "60,000 training and 10,000 test images of 1 x 28 x 28" in str(mnist)


def test_images_stand_upright(mnist):
    # A transposed 1 leans the wrong way: rows of an upright one hold few dark pixels, columns many.
    ones = mnist.train[mnist.train_labels == 1][:, 0].mean(dim=0)
    assert ones.mean(dim=0).max() > 2 * ones.mean(dim=1).max()


def test_fashion_mnist_is_fashion_mnist(mnist_root):
    archive(mnist_root, FILES[0], "FashionMNIST")
    fashion = data.load("fashion-mnist", mnist_root)
    assert fashion.train_labels.bincount().tolist() == [6000] * 10
    assert fashion.test_labels.bincount().tolist() == [1000] * 10
    assert fashion.train.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert fashion.train.std().item() == pytest.approx(0.3530, abs=5e-5)


def test_the_environment_leads_to_the_files(environment, mnist_root):
    environment.setenv("AECOURSE_DATA", str(mnist_root))
    assert data.load().name == "mnist"


def test_fetch_verifies_files_that_are_there_without_a_network(mnist, mnist_root, tmp_path, no_network):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in FILES:
        shutil.copy(archive(mnist_root, file), raw)
    assert data.fetch("mnist", tmp_path) == tmp_path
    assert {path.name for path in raw.iterdir()} >= set(FILES)
    # Unpacked files and archives give the same tensors.
    for path in raw.glob("*.gz"):
        path.unlink()
    unpacked = data.load("mnist", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(mnist[2:], unpacked[2:]))
    # A file that was damaged since is not passed over.
    labels = raw / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        data.fetch("mnist", tmp_path)


def test_fetch_without_files_or_a_network_fails_loudly(tmp_path, no_network):
    with pytest.raises(RuntimeError, match="Error downloading"):
        data.fetch("mnist", tmp_path / "new")


def test_loading_writes_nothing_so_that_a_shared_folder_may_be_read_only(mnist_root, tmp_path):
    raw = linked(tmp_path, mnist_root)
    raw.chmod(0o555)
    try:
        data.load("mnist", tmp_path)
        assert sorted(path.name for path in raw.iterdir()) == sorted(f"{file}.gz" for file in FILES)
    finally:
        raw.chmod(0o755)


# ------------------------------------------------------------------------------- CIFAR-10

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """Small batches in the format of the real ones, whose checksums torchvision is made to expect.

    Rows of 3,072 bytes: the red plane, the green one, the blue one, each from the top left by rows.
    """
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums, images, labels = {}, {}, {}
    for number, name in enumerate(BATCHES):
        images[name] = torch.randint(256, (4 + number, 3, 32, 32), dtype=torch.uint8)
        labels[name] = [(3 * i + number) % 10 for i in range(4 + number)]
        rows = torch.stack([torch.cat([row.flatten() for row in image]) for image in images[name]]).numpy()
        entry = {"batch_label": name, "labels": labels[name], "data": rows, "filenames": []}
        sums[name] = written(folder / name, entry)
    words = "airplane automobile bird cat deer dog frog horse ship truck".split()
    meta = written(folder / "batches.meta", {"label_names": words, "num_vis": 3072})
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name in BATCHES[5:]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    return folder, images, labels


def written(path, entry):
    path.write_bytes(pickle.dumps(entry, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_is_read_as_it_was_written(cifar, tmp_path):
    """Oracle: the pixels and labels of the files, batch after batch."""
    _, images, labels = cifar
    found = data.load("cifar10", tmp_path)
    assert found.name == "cifar10"
    assert found.image_shape == (3, 32, 32)
    train = torch.cat([images[name] for name in BATCHES[:5]])
    assert torch.equal(found.train, train.float() / 255)
    assert torch.equal(found.test, images["test_batch"].float() / 255)
    assert found.train_labels.tolist() == [i for name in BATCHES[:5] for i in labels[name]]
    assert found.test_labels.tolist() == labels["test_batch"]
    assert found.train.dtype == found.test.dtype == torch.float32
    assert found.train_labels.dtype == found.test_labels.dtype == torch.int64
    assert str(found) == "cifar10 (32 x 32 colour): 30 training and 9 test images of 3 x 32 x 32"


def test_cifar10_channels_rows_and_columns_are_not_mixed_up(cifar, tmp_path, monkeypatch):
    """Oracle: one picture with a single pixel of each colour, at the byte the format puts it."""
    from torchvision.datasets import CIFAR10

    folder, _, _ = cifar
    row = torch.zeros(1, 3072, dtype=torch.uint8)
    row[0, 5 * 32 + 9] = 255  # red: row 5, column 9
    row[0, 1024 + 31] = 51  # green: row 0, column 31
    row[0, 2048 + 31 * 32] = 102  # blue: row 31, column 0
    checksum = written(folder / "test_batch", {"labels": [7], "data": row.numpy()})
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksum]])
    image = data.load("cifar10", tmp_path).test[0]
    assert image.nonzero().tolist() == [[0, 5, 9], [1, 0, 31], [2, 31, 0]]
    torch.testing.assert_close(image[image > 0], torch.tensor([1.0, 0.2, 0.4]))


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_or_missing_file_of_cifar10_is_noticed(cifar, tmp_path, file, missing):
    path = cifar[0] / file
    content = bytearray(path.read_bytes())
    path.unlink()
    if not missing:
        content[-2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or incomplete: a checksum is wrong") as caught:
        data.load("cifar10", tmp_path)
    assert str(caught.value).startswith(str(cifar[0]))
    assert "Delete it and run 'aecourse fetch cifar10'" in str(caught.value)


def test_missing_cifar10_is_reported_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar10", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"cifar10 is not under {tmp_path}: no cifar-10-batches-py.")
    assert "Run 'aecourse fetch cifar10', or set AECOURSE_DATA" in message
    assert list(tmp_path.iterdir()) == []


def test_the_environment_leads_to_cifar10(environment, cifar, tmp_path):
    environment.setenv("AECOURSE_DATA", str(tmp_path))
    environment.setenv("AECOURSE_DATASET", "cifar10")
    assert data.load().name == "cifar10"


def test_fetch_verifies_cifar10_that_is_there_without_a_network(cifar, tmp_path, no_network):
    assert data.fetch("cifar10", tmp_path) == tmp_path
    (cifar[0] / "batches.meta").write_bytes(b"an error page of some proxy")
    with pytest.raises(ValueError, match="is damaged or incomplete"):
        data.fetch("cifar10", tmp_path)


def test_cifar10_names_torchvision_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r'^cifar10 needs torchvision: pip install "aecourse\[book\]"\.$'):
        data.load("cifar10", tmp_path)
