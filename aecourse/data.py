"""Data sets: toys with a known shape, real images that need no download, and MNIST.

Nothing here falls back silently. ``load("mnist")`` either returns MNIST or says how to get it, and
``print(load())`` names what it found.
"""

import gzip
import hashlib
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("digits", "faces", "mnist", "fashion-mnist")
DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}  # our name: torchvision's

# MD5 of the idx files as they are once unpacked. torchvision knows the sums of the archives alone,
# and reads an unpacked file that is damaged without a word.
UNPACKED_MD5 = {
    "MNIST/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    "FashionMNIST/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "FashionMNIST/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "FashionMNIST/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


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
    a = torch.randn(count, 1)
    return a * torch.tensor([2.0, 1.0]) + noise * torch.randn(count, 2)


def circle(count: int, noise: float = 0.0) -> Tensor:
    """Points near (sin t, cos t), t uniform: one number again, but no line through it (lecture 004).

    Args:
        count: N.
        noise: standard deviation of the Gaussian noise on both coordinates.

    Returns:
        ``(N, 2)``.
    """
    t = 2 * math.pi * torch.rand(count, 1)
    return torch.cat([t.sin(), t.cos()], dim=1) + noise * torch.randn(count, 2)


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
    raw = data_root() / "MNIST" / "raw"
    return "mnist" if raw.is_dir() and any(raw.iterdir()) else "digits"


def load(name: str | None = None, root: Path | None = None) -> Dataset:
    """Load a data set by name; without one, the one :func:`chosen_name` gives.

    ``root`` holds the downloaded ones; by default :func:`data_root`.

    ==================  ================================================================
    ``digits``          1,797 handwritten digits, 8 x 8, inside scikit-learn
    ``faces``           100 faces, 25 x 25, inside scikit-image (a part of LFW)
    ``mnist``           70,000 handwritten digits, 28 x 28, after ``aecourse fetch mnist``
    ``fashion-mnist``   70,000 pieces of clothing, 28 x 28, after ``aecourse fetch fashion-mnist``
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
        return _mnist(name, data_root() if root is None else Path(root))
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
    root.mkdir(parents=True, exist_ok=True)
    _torchvision_class(name)(str(root), download=True)
    load(name, root)
    return root


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits ship inside scikit-learn: pip install scikit-learn.") from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return _split("digits", "from scikit-learn", images, torch.from_numpy(bunch.target))


def _faces() -> Dataset:
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise ImportError("faces ship inside scikit-image: pip install scikit-image.") from error
    # The first hundred are faces; the second hundred are background and are left out.
    images = torch.from_numpy(lfw_subset()[:100]).float().unsqueeze(1)
    return _split("faces", "from scikit-image", images, torch.zeros(100, dtype=torch.int64))


def _split(name: str, source: str, images: Tensor, labels: Tensor) -> Dataset:
    """A fifth of the images to the test set: the same on every machine, with no seed to agree on.

    Multiples of the golden ratio, taken modulo 1, fall evenly and resonate with no period. The digits
    stand in the file in the order 0 to 9 again and again, and every fifth image would favour some.
    """
    golden = (math.sqrt(5) - 1) / 2
    test = torch.arange(len(images), dtype=torch.float64) * golden % 1 < 0.2
    return Dataset(name, source, images[~test], labels[~test], images[test], labels[test])


def _mnist(name: str, root: Path) -> Dataset:
    tensors = []
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            tensors.append(_read_idx(name, root, f"{split}-{kind}-ubyte"))
    train, train_labels, test, test_labels = tensors
    return Dataset(
        name,
        "28 x 28 grey values",
        train.unsqueeze(1).float().div(255),
        train_labels.long(),
        test.unsqueeze(1).float().div(255),
        test_labels.long(),
    )


def _read_idx(name: str, root: Path, file: str) -> Tensor:
    """One idx file, checksum verified, from the unpacked file or straight from the archive.

    torchvision would unpack the archive beside itself, which fails in a folder that is read-only, and
    would not look at the checksum of a file that is unpacked.
    """
    folder = DOWNLOADED[name]
    raw = root / folder / "raw"
    unpacked, archive = raw / file, raw / f"{file}.gz"
    if unpacked.is_file():
        path, content = unpacked, unpacked.read_bytes()
        expected, found = UNPACKED_MD5[f"{folder}/{file}"], hashlib.md5(content).hexdigest()
    elif archive.is_file():
        path, content = archive, archive.read_bytes()
        sums = dict(_torchvision_class(name).resources)
        expected, found = sums[archive.name], hashlib.md5(content).hexdigest()
    else:
        raise FileNotFoundError(
            f"{name} is not under {root}: no {folder}/raw/{file} (nor .gz). Run 'aecourse "
            f"fetch {name}', or set AECOURSE_DATA to a folder that holds {folder}/raw, or use "
            "load('digits'), which needs no download."
        )
    if found != expected:
        raise ValueError(
            f"{path} is damaged: its MD5 checksum is {found} but should be {expected}. Delete it and "
            f"run 'aecourse fetch {name}'."
        )
    if path is archive:
        content = gzip.decompress(content)
    # Header: two zero bytes, the type (8 is uint8), the number of dimensions, then each as a
    # big-endian 32-bit number.
    dims = content[3]
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * dims).view(shape)


def _torchvision_class(name: str) -> type:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ImportError(f"{name} needs torchvision: pip install torchvision.") from error
    return getattr(datasets, DOWNLOADED[name])
