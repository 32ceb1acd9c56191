"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ["MPLBACKEND"] = "Agg"  # before anything imports pyplot: a test machine has no screen

# The same examples in every run, so that a failure on one machine is a failure on all.
settings.register_profile("aecourse", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("aecourse")

# The models here are too small to gain from threads, and a shared machine is slowed down by them.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """A file's tests share costly fixtures (the site, a course) and stay in one process; the versions of the
    assignments' functions share nothing, are many, and go wherever there is room."""
    for item in items:
        if item.path.name != "test_mutants.py":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True)
def seeded():
    """A test's random numbers do not depend on the tests that ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that holds ``MNIST/raw``; tests that need the real files are skipped without it."""
    named = os.environ.get("AECOURSE_TEST_DATA") or os.environ.get("AECOURSE_DATA")
    if not named:
        pytest.skip("needs MNIST: set AECOURSE_TEST_DATA to a folder that holds MNIST/raw")
    root = Path(named)
    if not list((root / "MNIST" / "raw").glob("train-images-idx3-ubyte*")):
        pytest.skip(f"needs MNIST: there is no MNIST/raw/train-images-idx3-ubyte(.gz) under {root}")
    return root
