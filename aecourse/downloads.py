"""Downloaded data sets: fetched by torchvision, read from files whose checksums are right.

A damaged file is reported and never read: half a data set trains as quietly as a whole one.
"""

import gzip
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from aecourse.extras import needs

DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}  # ours: torchvision's

IDX_FILES = tuple(
    f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)

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


def download(name: str, root: Path) -> None:
    """Fetch a data set into ``root`` with torchvision, which leaves files that are there and whole."""
    root.mkdir(parents=True, exist_ok=True)
    reader = _torchvision_class(name)
    try:
        reader(str(root), download=True)
    except RuntimeError as error:
        # CIFAR-10's batches.meta is the one file that is verified but not downloaded anew.
        if name == "cifar10" and (root / reader.base_folder).is_dir():
            raise _damaged(root / reader.base_folder) from error
        raise


def read(name: str, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels of one of :data:`DOWNLOADED`.

    Returns:
        Images ``(N, channels, height, width)``, float32 in [0, 1], and labels ``(N,)``, int64; twice.

    Raises:
        FileNotFoundError: the files are not under ``root``; the message says how to get them.
        ValueError: a file is damaged.
        ImportError: torchvision is missing and needed.
    """
    if name == "cifar10":
        (train, train_labels), (test, test_labels) = (_read_cifar(root, split) for split in (True, False))
    else:
        train, train_labels, test, test_labels = (_read_idx(name, root, file) for file in IDX_FILES)
        train, test = train.unsqueeze(1), test.unsqueeze(1)
    return train.float().div(255), train_labels.long(), test.float().div(255), test_labels.long()


def any_file(name: str, root: Path) -> bool:
    """Whether ``root`` holds any file of MNIST or Fashion-MNIST under its right name, packed or not.

    One is enough: whoever put it there wants this data set, and should hear that the others are missing.
    """
    raw = root / DOWNLOADED[name] / "raw"
    return any((raw / f"{file}{packed}").is_file() for file in IDX_FILES for packed in ("", ".gz"))


def _read_cifar(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """One half of CIFAR-10 through torchvision, which knows the checksums of the unpacked files here."""
    reader = _torchvision_class("cifar10")
    folder = root / reader.base_folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"cifar10 is not under {root}: no {reader.base_folder}. Run 'aecourse fetch cifar10', or set "
            "AECOURSE_DATA to a folder that holds it."
        )
    try:
        half = reader(str(root), train=train)
    except RuntimeError as error:
        raise _damaged(folder) from error
    return torch.from_numpy(half.data).permute(0, 3, 1, 2), torch.tensor(half.targets, device="cpu")


def _damaged(folder: Path) -> ValueError:
    return ValueError(
        f"{folder} is damaged or incomplete: a checksum is wrong. Delete it and run 'aecourse fetch cifar10'."
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
        there = sorted(path.name for path in raw.iterdir()) if raw.is_dir() else []
        alike = [
            other for other in there if other.replace(".", "-").startswith(file)
        ]  # another mirror's name
        found = f" There is {alike[0]}: rename it." if alike else ""
        raise FileNotFoundError(
            f"{name} is not under {root}: no {folder}/raw/{file} (nor .gz).{found} Run 'aecourse "
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
    with needs("book", f"{name} needs torchvision"):
        from torchvision import datasets
    return getattr(datasets, DOWNLOADED[name])
