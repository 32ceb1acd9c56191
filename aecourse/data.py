"""Data sets: toys with a known shape, generated images with known factors, real images, and corruption.

Nothing here falls back silently. ``load("mnist")`` either returns MNIST or says how to get it, and
``print(load())`` names what it found.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aecourse import downloads
from aecourse.contracts import check_shapes
from aecourse.downloads import DOWNLOADED
from aecourse.extras import needs
from aecourse.mixtures import GaussianMixture, gaussian_mixture
from aecourse.sprites import Sprites, draw_sprites, sprites

__all__ = [
    "DOWNLOADED",
    "NAMES",
    "Dataset",
    "Sprites",
    "TimeSeries",
    "add_gaussian_noise",
    "binarize",
    "chosen_name",
    "circle",
    "data_root",
    "downsample",
    "draw_sprites",
    "fetch",
    "line",
    "load",
    "mask",
    "mixture_grid",
    "mixture_ring",
    "pinwheel",
    "salt_and_pepper",
    "spiral",
    "sprites",
    "time_series",
]

NAMES = ("digits", "faces", *DOWNLOADED)


class Dataset(NamedTuple):
    """Images in [0, 1] with their labels, split into training and test."""

    name: str
    source: str
    """Where the images come from, in a few words."""

    train: Tensor
    """``(N, channels, height, width)``, float32."""

    train_labels: Tensor
    """``(N,)``, int64."""

    test: Tensor
    test_labels: Tensor

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(channels, height, width)``."""
        return tuple(self.train.shape[1:])

    def __str__(self) -> str:
        channels, height, width = self.image_shape
        return (
            f"{self.name} ({self.source}): {len(self.train):,} training and {len(self.test):,} test "
            f"images of {channels} x {height} x {width}"
        )


def line(count: int, noise: float = 0.0) -> Tensor:
    """Points near (2a, a) with a ~ N(0, 1): two numbers that are worth one (lecture 004).

    Args:
        count: N.
        noise: standard deviation of the Gaussian noise on both coordinates.

    Returns:
        ``(N, 2)``.
    """
    _check_toy(count, noise)
    a = torch.randn(count, 1)
    return a * torch.tensor([2.0, 1.0]) + noise * torch.randn(count, 2)


def circle(count: int, noise: float = 0.0) -> Tensor:
    """Points near (sin t, cos t), t uniform: one number again, but no line through it (lecture 004).

    Arguments and result as for :func:`line`.
    """
    _check_toy(count, noise)
    t = 2 * math.pi * torch.rand(count, 1)
    return torch.cat([t.sin(), t.cos()], dim=1) + noise * torch.randn(count, 2)


def spiral(count: int, noise: float = 0.0, turns: float = 1.5) -> Tensor:
    """Points near a spiral that winds out of the origin to radius 1 (lecture 000; Alain & Bengio 2014).

    The points are uniform along the curve's angle squared, which makes them nearly so along its length.

    Args:
        count: N.
        noise: standard deviation of the Gaussian noise on both coordinates.
        turns: how often it winds round, positive.

    Returns:
        ``(N, 2)``.
    """
    _check_toy(count, noise)
    if not turns > 0:
        raise ValueError(f"turns is {turns} but must be positive.")
    radius = torch.rand(count, 1).sqrt()
    angle = 2 * math.pi * turns * radius
    return radius * torch.cat([angle.cos(), angle.sin()], dim=1) + noise * torch.randn(count, 2)


def pinwheel(
    count: int, arms: int = 5, radial: float = 0.3, tangential: float = 0.05, twist: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Blobs on a circle, drawn out along their radius and twisted: clusters with no straight axis.

    Args:
        count: N.
        arms: how many blobs.
        radial: standard deviation along the radius, before the twist.
        tangential: standard deviation across it.
        twist: how much an arm is bent: it turns by ``twist * exp(radius)`` radians.

    Returns:
        Points ``(N, 2)`` and the arm of each, ``(N,)`` int64.

    Source: Johnson et al. (2016), section 6.
    """
    _check_toy(count, radial)
    _check_toy(count, tangential)
    if arms < 1:
        raise ValueError(f"arms is {arms} but must be at least 1.")
    arm = torch.randint(arms, (count,))
    x = 1 + radial * torch.randn(count)
    y = tangential * torch.randn(count)
    angle = 2 * math.pi * arm / arms + twist * x.exp()
    return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], dim=1), arm


def mixture_ring(modes: int = 8, radius: float = 2.0, std: float = 0.2) -> GaussianMixture:
    """Equal Gaussians on a circle: a density in two dimensions that is known, with its score.

    Args:
        modes: how many.
        radius: of the circle, positive.
        std: of each Gaussian in every direction, positive.

    Returns:
        A :class:`aecourse.mixtures.GaussianMixture`; draw points with its ``sample``.
    """
    if modes < 1 or not radius > 0 or not std > 0:
        raise ValueError(f"modes, radius, std are {modes}, {radius}, {std} but must be positive.")
    angle = 2 * math.pi * torch.arange(modes) / modes
    return _equal_mixture(radius * torch.stack([angle.cos(), angle.sin()], dim=1), std)


def mixture_grid(side: int = 5, spacing: float = 1.0, std: float = 0.1) -> GaussianMixture:
    """Equal Gaussians on a square grid around the origin, ``side`` of them in each direction.

    Arguments as for :func:`mixture_ring`; ``spacing`` is the distance between neighbours.
    """
    if side < 1 or not spacing > 0 or not std > 0:
        raise ValueError(f"side, spacing, std are {side}, {spacing}, {std} but must be positive.")
    ticks = spacing * (torch.arange(side) - (side - 1) / 2)
    return _equal_mixture(torch.cartesian_prod(ticks, ticks), std)


def _equal_mixture(means: Tensor, std: float) -> GaussianMixture:
    count = len(means)
    return gaussian_mixture(torch.ones(count), means, (std**2 * torch.eye(2)).expand(count, 2, 2))


class TimeSeries(NamedTuple):
    """Signals and the numbers they were made from; see :func:`time_series`."""

    signals: Tensor
    """``(N, 1, length)``, float32."""

    factors: Tensor
    """``(N, 4)``: frequency in cycles per series, phase in radians, amplitude, slope over the series."""


def time_series(count: int, length: int = 128, noise: float = 0.05) -> TimeSeries:
    """Noisy waves on a slope: one-dimensional signals made of four numbers each.

    A signal is ``amplitude * sin(2 pi frequency t + phase) + slope * (t - 1/2) + noise`` at times t from 0 to
    1, with a frequency from 1 to 8, a phase from -pi to pi, an amplitude from 0.3 to 1 and a slope from -1 to
    1, all uniform.

    Args:
        count: N.
        length: samples of each signal, at least 32, so that the fastest wave has four per cycle.
        noise: standard deviation of the Gaussian noise.

    Returns:
        The signals with their factors.
    """
    _check_toy(count, noise)
    if length < 32:
        raise ValueError(f"length is {length} but must be at least 32, four samples for each cycle.")
    low, high = torch.tensor([1.0, -math.pi, 0.3, -1.0]), torch.tensor([8.0, math.pi, 1.0, 1.0])
    factors = low + (high - low) * torch.rand(count, 4)
    frequency, phase, amplitude, slope = factors.unsqueeze(2).unbind(dim=1)
    t = torch.arange(length) / length
    clean = amplitude * torch.sin(2 * math.pi * frequency * t + phase) + slope * (t - 0.5)
    return TimeSeries((clean + noise * torch.randn(count, length)).unsqueeze(1), factors)


def _check_toy(count: int, noise: float) -> None:
    if count < 1:
        raise ValueError(f"count is {count} but must be at least 1.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is {noise} but must be at least 0: it is a standard deviation.")


def data_root() -> Path:
    """The folder that holds downloaded data: ``AECOURSE_DATA``, else ``aecourse`` in the user's cache.

    Raises:
        FileNotFoundError: ``AECOURSE_DATA`` names a folder that does not exist.
    """
    if named := os.environ.get("AECOURSE_DATA"):
        root = Path(named).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(
                f"AECOURSE_DATA is {named!r}, which is not a folder. Create it, or unset the variable."
            )
        return root
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aecourse"


def chosen_name() -> str:
    """The data set the chapters use: ``AECOURSE_DATASET``, else mnist where its files are, else digits."""
    if named := os.environ.get("AECOURSE_DATASET"):
        return named
    return "mnist" if downloads.any_file("mnist", data_root()) else "digits"


def load(name: str | None = None, root: Path | None = None) -> Dataset:
    """Load a data set by name; without one, the one :func:`chosen_name` gives.

    ``root`` holds the downloaded ones; by default :func:`data_root`.

    ==================  ================================================================
    ``digits``          1,797 handwritten digits, 8 x 8, inside scikit-learn
    ``faces``           100 faces, 25 x 25, inside scikit-image (a part of LFW)
    ``mnist``           70,000 handwritten digits, 28 x 28, after ``aecourse fetch mnist``
    ``fashion-mnist``   70,000 pieces of clothing, 28 x 28, after ``aecourse fetch fashion-mnist``
    ``cifar10``         60,000 colour photographs, 32 x 32, after ``aecourse fetch cifar10``
    ==================  ================================================================

    Raises:
        ValueError: an unknown name, or a file whose checksum is wrong.
        FileNotFoundError: the files are not under :func:`data_root`; the message says how to get them.
    """
    name = chosen_name() if name is None else name
    if name == "digits":
        return _digits()
    if name == "faces":
        return _faces()
    if name in DOWNLOADED:
        source = "32 x 32 colour" if name == "cifar10" else "28 x 28 grey values"
        return Dataset(name, source, *downloads.read(name, data_root() if root is None else Path(root)))
    raise ValueError(f"There is no data set {name!r}. Known: {', '.join(NAMES)}.")


def fetch(name: str, root: Path | None = None) -> Path:
    """Download a data set into ``root`` (by default :func:`data_root`) and verify its checksums.

    Returns:
        The folder. Files that are there already are verified, not downloaded again.

    Raises:
        ValueError: ``name`` is not one that is downloaded, or a file's checksum is wrong.
    """
    if name not in DOWNLOADED:
        inside = [n for n in NAMES if n not in DOWNLOADED]
        hint = " It ships inside a Python package: just load it." if name in inside else ""
        raise ValueError(f"{name!r} cannot be fetched.{hint} These can: {', '.join(DOWNLOADED)}.")
    root = data_root() if root is None else Path(root)
    downloads.download(name, root)
    load(name, root)
    return root


def _digits() -> Dataset:
    with needs("book", "digits ship inside scikit-learn"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return _split("digits", "from scikit-learn", images, torch.from_numpy(bunch.target))


def _faces() -> Dataset:
    with needs("book", "faces ship inside scikit-image"):
        from skimage.data import lfw_subset
    # The first hundred are faces; the second hundred are background and are left out.
    images = torch.from_numpy(lfw_subset()[:100]).float().unsqueeze(1)
    return _split("faces", "from scikit-image", images, torch.zeros(100, dtype=torch.int64, device="cpu"))


def _split(name: str, source: str, images: Tensor, labels: Tensor) -> Dataset:
    """A fifth of the images to the test set: the same on every machine, with no seed to agree on.

    Multiples of the golden ratio, taken modulo 1, fall evenly and resonate with no period. The digits
    stand in the file in the order 0 to 9 again and again, and every fifth image would favour some.
    """
    golden = (math.sqrt(5) - 1) / 2
    test = torch.arange(len(images), dtype=torch.float64, device="cpu") * golden % 1 < 0.2
    return Dataset(name, source, images[~test], labels[~test], images[test], labels[test])


# ------------------------------------------------------------------------------ corruption
#
# Pure functions from images to corrupted images of the same shape, for denoising autoencoders. They run
# at every step of training, so what they check are their settings, not the images.


def add_gaussian_noise(x: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """``x`` plus independent Gaussian noise of standard deviation ``sigma``; not clipped to [0, 1]."""
    check_shapes(("x", x, "batch ..."))
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is {sigma} but must be at least 0: it is a standard deviation.")
    return x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def mask(x: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """``x`` with each value set to 0 with this probability (Vincent et al. 2008)."""
    _check_probability(x, probability)
    return x * (_uniform(x, generator) >= probability)


def salt_and_pepper(x: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """``x`` with each value replaced, with this probability, by 0 or 1, whichever a fair coin says."""
    _check_probability(x, probability)
    u = _uniform(x, generator)
    # One draw decides both: below half the probability it is pepper, below all of it salt.
    return torch.where(u < probability, (u >= probability / 2).to(x), x)


def downsample(x: Tensor, factor: int) -> Tensor:
    """``x`` at a lower resolution, in its old shape: each block of pixels shows its mean.

    Args:
        x: ``(batch, channels, height, width)``; where the blocks do not fit, the last ones are smaller.
        factor: side of a block, at least 1.
    """
    check_shapes(("x", x, "batch channels height width"))
    if factor < 1:
        raise ValueError(f"factor is {factor} but must be at least 1.")
    small = F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False)
    large = small.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return large[:, :, : x.shape[2], : x.shape[3]]


def binarize(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw each pixel black or white, with its grey value as the probability of 1.

    Drawn anew in each epoch this is dynamic binarisation: the images that published likelihoods of MNIST are
    about (Salakhutdinov & Murray 2008; Burda et al. 2016). Give it to ``fit`` as ``transform``.
    """
    check_shapes(("x", x, "batch ..."))
    return (_uniform(x, generator) < x).to(x)


def _uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _check_probability(x: Tensor, probability: float) -> None:
    check_shapes(("x", x, "batch ..."))
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability} but must be between 0 and 1.")
