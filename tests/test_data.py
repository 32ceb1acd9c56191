"""The toys against their geometry, the files against published facts, the errors against a beginner."""

import gzip
import math
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
    with pytest.raises(ImportError, match=rf"^{name} ship inside {package}: pip install {package}\.$"):
        data.load(name)


def test_fetch_names_torchvision_when_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"^mnist needs torchvision: pip install torchvision\.$"):
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
    (raw / "train-images-idx3-ubyte.gz").touch()
    assert data.chosen_name() == "mnist"
    environment.setenv("AECOURSE_DATASET", "faces")
    assert data.chosen_name() == "faces"
    assert data.load().name == "faces"


def test_without_files_or_variables_load_gives_digits(environment):
    assert data.load().name == "digits"


def test_an_unknown_name_is_refused_with_the_known_ones(environment):
    expected = r"^There is no data set 'minst'\. Known: digits, faces, mnist, fashion-mnist\.$"
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


def test_fetch_refuses_what_it_cannot_download(tmp_path):
    with pytest.raises(ValueError, match=r"'digits' cannot be fetched\. It ships inside a Python package"):
        data.fetch("digits", tmp_path)
    with pytest.raises(ValueError, match=r"'minst' cannot be fetched\. These can: mnist, fashion-mnist"):
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
