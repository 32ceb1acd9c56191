"""The aecourse command, as a user types it."""

import subprocess
import sys

import pytest

from aecourse import cli, reference


def test_info_names_what_a_maintainer_asks_for(capsys):
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "aecourse",
        "python",
        "torch",
        "nbgrader",
        "device",
        "data root",
        "data set of the chapters",
    ):
        assert word in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "imagenet"], "'imagenet' cannot be fetched. These can: mnist, fashion-mnist."),
        (["fetch", "digits"], "It ships inside a Python package: just load it."),
        (["train-reference", "nope"], "There is no reference model 'nope'. Known: mnist_vae."),
    ],
)
def test_user_errors_are_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_fetch_verifies_files_that_are_there(mnist_root, tmp_path, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (mnist_root / "MNIST" / "raw").glob("*.gz"):
        (raw / path.name).write_bytes(path.read_bytes())
    assert cli.main(["fetch", "mnist", "--root", str(tmp_path)]) == 0
    assert f"mnist is ready in {tmp_path}" in capsys.readouterr().out
    damaged = raw / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert cli.main(["fetch", "mnist", "--root", str(tmp_path)]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_train_reference_reports_what_it_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(
        reference.RECIPES, "mnist_vae", {**reference.RECIPES["mnist_vae"], "dataset": "digits", "epochs": 1}
    )
    assert cli.main(["train-reference", "mnist_vae", "--folder", str(tmp_path)]) == 0
    assert "'reconstruction'" in capsys.readouterr().out
    assert (tmp_path / "mnist_vae.safetensors").is_file()


def test_installed_command_explains_itself():
    done = subprocess.run([sys.executable, "-m", "aecourse.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "fetch" in done.stdout
