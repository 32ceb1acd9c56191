"""The aecourse command, as a user types it."""

import json
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
        (["fetch", "imagenet"], "'imagenet' cannot be fetched. These can: mnist, fashion-mnist, cifar10."),
        (["fetch", "digits"], "It ships inside a Python package: just load it."),
        (
            ["train-reference", "nope"],
            "There is no reference model 'nope'. Known: mnist_vae, mnist_features, ",
        ),
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


TRAIN = ["--data", "digits", "--epochs", "2", "--device", "cpu", "--quiet", "--code-dim", "3"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["vae", "--hidden", "16"],
        [
            "vae",
            "--network",
            "conv",
            "--channels",
            "4",
            "8",
            "--likelihood",
            "gaussian",
            "--variance",
            "optimal",
        ],
        ["iwae", "--hidden", "16", "--bound", "iwae", "--samples", "3", "--gradient", "dreg", "--binarize"],
        ["vae", "--hidden", "16", "--likelihood", "categorical", "--levels", "3", "--samples", "2"],
        ["conditional", "--network", "conv", "--channels", "4", "--beta", "0.5"],
        ["vae", "--hidden", "16", "--warmup", "10", "--beta", "2"],
        ["autoencoder", "--network", "residual", "--channels", "4", "--error", "cross_entropy"],
        ["sparse", "--penalty", "top_k", "--k", "2"],
        ["sparse", "--penalty", "kl", "--rho", "0.1", "--weight", "0.5"],
        ["denoising", "--sigma", "0.3", "--hidden", "16"],
        ["contractive", "--weight", "0.2", "--hidden", "16"],
        ["factor", "--hidden", "16", "--critic-hidden", "8", "--gamma", "2"],
        ["beta-tc", "--hidden", "16", "--sampling", "weighted"],
        ["ladder", "--hidden", "16", "8", "--inference", "bottom_up"],
        ["lossy", "--hidden", "16", "--kernel-size", "3", "--binarize"],
        ["flow", "--hidden", "16", "--flow-hidden", "8", "--steps", "1"],
        ["structured-output", "--hidden", "16", "--given", "2", "--alpha", "0.5"],
        ["td", "--hidden", "16", "--memory", "8", "--binarize"],
        ["adversarial", "--hidden", "16", "--critic-hidden", "8", "--posterior", "gaussian"],
    ],
    ids=" ".join,
)
def test_train_trains_every_model_and_reports(arguments, tmp_path, capsys):
    assert cli.main(["train", *arguments, *TRAIN, "--folder", str(tmp_path)]) == 0
    assert "2 epochs; on the test images: total" in capsys.readouterr().out
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["train"]["total"][1] < history["train"]["total"][0]
    assert len(history["test"]["total"]) == 2
    assert (tmp_path / "checkpoint.pt").is_file()


@pytest.mark.parametrize("name", ["gan", "vaegan"])
def test_train_plays_games(name, tmp_path):
    arguments = [name, "--hidden", "16", "--batch-norm", *TRAIN, "--folder", str(tmp_path)]
    assert cli.main(["train", *arguments]) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["train"].keys() >= {"total", "generator", "critic", "own.critic"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["vq", "--network", "conv", "--channels", "4", "--codes", "8", "--prior-channels", "4"],
        ["two-stage", "--hidden", "16", "--second-hidden", "8", "--start-variance", "0.1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_train_goes_from_stage_to_stage(arguments, tmp_path, capsys):
    for _ in range(2):  # the second time there is nothing left to do
        assert cli.main(["train", *arguments, *TRAIN, "--folder", str(tmp_path)]) == 0
        assert "2 epochs; on the test images: total" in capsys.readouterr().out
    stages = json.loads((tmp_path / "history.json").read_text())["stages"]
    assert [len(stage["train"]["total"]) for stage in stages] == [2, 2]
    assert stages[1]["train"]["total"][1] < stages[1]["train"]["total"][0]
    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    assert files.keys() == {"checkpoint.pt", "checkpoint-2.pt"}
    # A first stage that was trained on would leave the second without what it learnt from.
    assert cli.main(["train", *arguments, *TRAIN, "--folder", str(tmp_path), "--epochs", "3"]) == 1
    assert "holds a second stage, which learnt from a first one of 2 epochs" in capsys.readouterr().err
    assert files == {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}


def test_train_again_goes_on_and_ends_at_the_same_numbers(tmp_path):
    def train(folder, epochs):
        arguments = ["vae", "--hidden", "16", *TRAIN, "--folder", str(folder), "--epochs", str(epochs)]
        assert cli.main(["train", *arguments]) == 0
        return json.loads((folder / "history.json").read_text())

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 1)
    parts = train(tmp_path / "parts", 4)
    assert parts["train"] == whole["train"]
    assert parts["test"] == whole["test"]


def test_warmup_weighs_the_kl_less_at_first(tmp_path):
    for name, extra in (("cold", []), ("warm", ["--warmup", "1000000"])):
        arguments = ["vae", "--hidden", "16", *TRAIN, "--folder", str(tmp_path / name), *extra]
        assert cli.main(["train", *arguments]) == 0
    cold, warm = (
        json.loads((tmp_path / name / "history.json").read_text())["train"] for name in ("cold", "warm")
    )
    total = [cold["reconstruction"][0] + cold["kl"][0], warm["reconstruction"][0]]
    assert cold["total"][0] == pytest.approx(total[0], rel=1e-5)
    assert warm["total"][0] == pytest.approx(total[1], rel=1e-2)


@pytest.mark.parametrize(("given", "weight"), [([], 6.0), (["--beta", "2"], 2.0)])
def test_warmup_ends_at_the_weight_that_the_model_has(given, weight, tmp_path):
    """Which need not be 1: that of the beta-TCVAE is 6."""
    arguments = ["beta-tc", "--hidden", "16", *TRAIN, *given]
    for name, extra in (("cold", []), ("warm", ["--warmup", "1"])):  # only the first step has another weight
        assert cli.main(["train", *arguments, *extra, "--folder", str(tmp_path / name)]) == 0
    for name in ("cold", "warm"):
        train = json.loads((tmp_path / name / "history.json").read_text())["train"]
        kl, correlation = train["kl"][1], train["total_correlation"][1]
        expected = train["reconstruction"][1] + kl + (weight - 1) * correlation
        assert train["total"][1] == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["autoencoder", "--beta", "2"], "--beta is no option of autoencoder with --network mlp."),
        (["vae", "--bound", "iwae"], "--bound is no option of vae with --network mlp."),
        (["conditional", "--bound", "iwae"], "--bound is no option of conditional"),
        (["vae", "--channels", "4"], "--channels is no option of vae with --network mlp."),
        (["sparse", "--warmup", "5"], "--warmup is no option of sparse"),
        (["vae", "--warmup", "-5"], "warmup is -5 but must be at least 0"),
        (["vae", "--likelihood", "poisson"], "likelihood is 'poisson' but must be one of"),
        (["vae", "--batch-size", "0"], "batch_size is 0 but must be at least 1"),
        (["vae", "--precision", "float16"], "precision is 'float16'"),
        (["vae", "--data", "imagenet"], "There is no data set 'imagenet'"),
    ],
)
def test_train_refuses_in_one_line(arguments, message, tmp_path, capsys):
    assert cli.main(["train", *TRAIN, *arguments, "--folder", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.seconds(8)
def test_train_runs_on_two_processes(tmp_path):
    arguments = ["-m", "aecourse.cli", "train", "vae", "--hidden", "16", *TRAIN, "--folder"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for folder, start in (("one", [sys.executable]), ("two", launch)):
        run = subprocess.run([*start, *arguments, str(tmp_path / folder)], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("on the test images") == 1
    one, two = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two"))
    assert two["train"]["total"] == pytest.approx(one["train"]["total"], rel=1e-4)


def test_installed_command_explains_itself():
    done = subprocess.run([sys.executable, "-m", "aecourse.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "fetch" in done.stdout
