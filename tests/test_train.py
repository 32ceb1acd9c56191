"""One training loop: the same numbers every time, also after it was killed, and errors that help."""

import ast
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from aecourse import data
from aecourse.autoencoders import Autoencoder
from aecourse.bounds import Loss
from aecourse.checkpoint import epochs_done
from aecourse.distributed import Team, all_sum, standard_normal
from aecourse.likelihoods import reparameterize
from aecourse.linear import LinearAutoencoder
from aecourse.train import History, _Adam, _check_single, _first, fit, mean_loss, pick_device
from aecourse.vae import VAE
from aecourse.zoo.conditional import ConditionalVAE

COUNT, BATCH = 50, 16  # four steps an epoch, the last of them with two examples
SETTINGS = {"batch_size": BATCH, "device": "cpu", "progress": False}


def make(seed: int = 0, **options) -> VAE:
    torch.manual_seed(seed)
    return VAE.mlp((1, 4, 4), 2, hidden=(8,), **options)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(COUNT, 1, 4, 4)


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "run" / "vae.pt"  # the folder is made when it is needed


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b) -> bool:
    """Equal to the last bit."""
    a, b = (weights(m) if isinstance(m, nn.Module) else m for m in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    """Stands for anything that ends a run from outside."""


def watch(model, before):
    """Call ``before(n, batch)`` ahead of the n-th call of the model's loss, counted from 1."""
    plain, calls = model.loss, []

    def loss(batch):
        calls.append(batch)
        before(len(calls), batch)
        return plain(batch)

    model.loss = loss
    return model


def kill_at(model, step):
    def before(n, batch):
        if n == step:
            raise Killed

    return watch(model, before)


class Mean(nn.Module):
    """A model whose loss does not depend on its one weight: the mean of the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def validate(self, images):
        pass

    def loss(self, x):
        return Loss(total=x.mean() + 0 * self.weight, parts={"twice": 2 * x.mean()})


# ---------------------------------------------------------------------------- what is done


def test_it_is_adam_and_nothing_else():
    # One batch holds all examples, so that their order does not matter.
    x = torch.randn(30, 5, dtype=torch.float64)
    torch.manual_seed(0)
    ours = LinearAutoencoder(5, 2).double()
    torch.manual_seed(0)
    theirs = LinearAutoencoder(5, 2).double()
    fit(ours, x, epochs=20, batch_size=30, lr=0.01, device="cpu", progress=False)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        theirs.loss(x).total.backward()
        optimizer.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-9)


def test_every_example_is_used_once_per_epoch_and_in_a_new_order_each_time():
    seen = []
    model = watch(Mean(), lambda n, batch: seen.append(batch))
    fit(model, torch.arange(10.0), epochs=3, batch_size=4, device="cpu", progress=False)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    orders = [torch.cat(seen[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(10)]}) == 4


def test_history_weighs_the_last_batch_by_its_size():
    # The mean of the batch means would be 17 / 3 here.
    images = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    history = fit(
        Mean(), images, epochs=2, batch_size=4, test_images=images[:7], device="cpu", progress=False
    )
    assert history.train == {"total": pytest.approx([4.5, 4.5]), "twice": pytest.approx([9.0, 9.0])}
    assert history.test == {"total": pytest.approx([3.0, 3.0]), "twice": pytest.approx([6.0, 6.0])}
    assert history.epochs == len(history.seconds) == 2
    assert all(seconds > 0 for seconds in history.seconds)


def test_without_test_images_there_is_no_test_history(images):
    history = fit(make(), images, epochs=1, **SETTINGS)
    assert history.test == {}
    assert history.train.keys() == {"total", "reconstruction", "kl"}


def test_a_vae_learns_digits():
    # A model without latent variables, every pixel with its own probability, reaches 27.0 nats on the test
    # images. Six seeds reached 24.7 to 25.0, with a KL above 2: the latent variables carry something.
    digits = data.load("digits")
    torch.manual_seed(0)
    vae = VAE.mlp(digits.image_shape, 4, hidden=(64,))
    history = fit(
        vae,
        digits.train,
        epochs=20,
        batch_size=64,
        lr=3e-3,
        test_images=digits.test,
        device="cpu",
        progress=False,
    )
    pixels = digits.train.mean(dim=0).clamp(1e-6, 1 - 1e-6)
    alone = -(digits.test * pixels.log() + (1 - digits.test) * (1 - pixels).log()).sum(dim=(1, 2, 3)).mean()
    assert alone.item() == pytest.approx(27.0, abs=0.1)
    assert history.test["total"][-1] < 25.6
    assert history.test["kl"][-1] > 1.5


# -------------------------------------------------------------------------- reproducibility


def test_the_same_seed_gives_the_same_result_and_another_seed_another(images):
    def run(seed, callers_seed):
        model = make()
        torch.manual_seed(callers_seed)  # what the caller drew before must not matter
        history = fit(model, images, epochs=3, seed=seed, test_images=images[:7], **SETTINGS)
        return model, history

    (first, one), (second, two), (third, three) = run(1, 10), run(1, 20), run(2, 10)
    assert same(first, second)
    assert one.train == two.train
    assert one.test == two.test
    assert not same(first, third)
    assert one.train != three.train


def test_the_seed_sets_the_order_and_the_noise(images):
    def run(seed, model, x):
        seen = []
        fit(watch(model, lambda n, batch: seen.append(batch)), x, epochs=1, seed=seed, **SETTINGS)
        return torch.cat(seen)

    assert not torch.equal(run(1, make(), images), run(2, make(), images))
    # Equal images have no order: what differs is the noise.
    equal = images[:1].repeat(COUNT, 1, 1, 1)
    one, two = make(), make()
    run(1, one, equal)
    run(2, two, equal)
    assert not same(one, two)


def test_the_callers_generator_is_left_as_it_was(images):
    model = make()
    state = torch.get_rng_state()
    fit(model, images, epochs=2, test_images=images, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(Killed):
        fit(kill_at(model, 3), images, epochs=2, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)
    mean_loss(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    model, state = make(batch_norm=True), torch.get_rng_state()
    with pytest.raises(ValueError, match="batch normalisation needs two"):  # it was tried
        fit(model, images, epochs=1, transform=data.binarize, **{**SETTINGS, "batch_size": 7})
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generator_of_a_gpu_is_left_alone_as_well(monkeypatch):
    """Where the first image is looked at; on a GPU that is not there."""
    kept = []

    def fork_rng(devices):
        kept.append([device.type for device in devices])
        return nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    monkeypatch.setattr("copy.deepcopy", lambda model: model)
    with FakeTensorMode(), torch.device("cuda"):
        model, on_gpu = nn.Sequential(nn.BatchNorm1d(1)), torch.rand(3, 1)
        _first(on_gpu, data.binarize)
        model.loss = lambda x: None
        _check_single(model, on_gpu, None, None, 1)
    assert kept == [["cuda"], ["cuda"], ["cuda"]]


@pytest.mark.parametrize(
    "options",
    [
        {"test_images": torch.full((9, 1, 4, 4), 0.5)},
        {"progress": True},
        {"checkpoint": "vae.pt"},
        {"checkpoint": "vae.pt", "checkpoint_steps": 1},
    ],
    ids=lambda options: " ".join(options),
)
def test_looking_does_not_change_what_is_trained(images, options, tmp_path):
    if "checkpoint" in options:
        options = {**options, "checkpoint": tmp_path / options["checkpoint"]}
    plain, watched = make(), make()
    fit(plain, images, epochs=3, **SETTINGS)
    fit(watched, images, epochs=3, **{**SETTINGS, **options})
    assert same(plain, watched)


# ------------------------------------------------------------------- stopping and resuming


@pytest.mark.parametrize("checkpoint_steps", [None, 1, 3])
def test_a_run_killed_at_any_step_ends_where_it_would_have_ended(images, file, checkpoint_steps):
    options = {
        **SETTINGS,
        "epochs": 3,
        "seed": 5,
        "test_images": images[:7],
        "checkpoint_steps": checkpoint_steps,
    }
    whole = make()
    expected = fit(whole, images, **options, checkpoint=file)
    for step in range(1, 13):
        file.unlink(missing_ok=True)
        with pytest.raises(Killed):
            fit(kill_at(make(), step), images, **options, checkpoint=file)
        # Other first weights: all that matters has to come from the file, once there is one.
        resumed = make(seed=99 if file.exists() else 0)
        history = fit(resumed, images, **options, checkpoint=file)
        assert same(resumed, whole), f"killed at step {step}"
        assert history.train == expected.train
        assert history.test == expected.test
        assert history.epochs == 3


def test_a_convolutional_run_resumes_exactly_and_its_weights_lie_as_they_did(images, file):
    def conv(seed):
        torch.manual_seed(seed)
        return VAE.conv((1, 4, 4), 2, channels=(3, 5))

    whole, resumed = conv(0), conv(99)
    layout = {name: weight.stride() for name, weight in whole.named_parameters()}
    fit(whole, images, epochs=3, **SETTINGS)
    with pytest.raises(Killed):
        fit(kill_at(conv(0), 7), images, epochs=3, checkpoint=file, checkpoint_steps=1, **SETTINGS)
    fit(resumed, images, epochs=3, checkpoint=file, checkpoint_steps=1, **SETTINGS)
    assert same(whole, resumed)
    assert {name: weight.stride() for name, weight in whole.named_parameters()} == layout


def test_resuming_repeats_no_step_that_is_in_the_checkpoint(images, file):
    with pytest.raises(Killed):
        fit(kill_at(make(), 8), images, epochs=3, checkpoint=file, checkpoint_steps=2, **SETTINGS)
    calls = []
    model = watch(make(), lambda n, batch: calls.append(n))
    fit(model, images, epochs=3, checkpoint=file, checkpoint_steps=2, **SETTINGS)
    assert len(calls) == 12 - 6  # killed at the eighth step, written after the sixth


@pytest.mark.seconds(8)
def test_a_process_killed_by_the_system_resumes_to_the_same_numbers(images, tmp_path):
    script = """
import sys, time, torch
from aecourse import VAE, fit
torch.set_num_threads(1)
torch.manual_seed(0)
model = VAE.mlp((1, 4, 4), 2, hidden=(8,))
plain, calls = model.loss, 0
def loss(batch):
    global calls
    calls += 1
    print(calls, flush=True)
    time.sleep(0.01 if calls < 30 else 60)
    return plain(batch)
model.loss = loss
fit(model, torch.load("images.pt"), epochs=10, batch_size=16, device="cpu", progress=False,
    checkpoint="vae.pt", checkpoint_steps=2)
"""
    torch.save(images, tmp_path / "images.pt")
    repository = Path(__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        for printed in child.stdout:
            if printed.strip() == "11":  # in the third epoch
                break
        child.kill()
        assert child.wait() != 0, child.stderr.read()
    assert (tmp_path / "vae.pt").is_file()
    whole, resumed = make(), make(seed=99)
    expected = fit(whole, images, epochs=10, **SETTINGS)
    calls = []
    watch(resumed, lambda n, batch: calls.append(n))
    history = fit(resumed, images, epochs=10, checkpoint=tmp_path / "vae.pt", checkpoint_steps=2, **SETTINGS)
    assert len(calls) <= 30
    assert same(resumed, whole)
    assert history.train == expected.train


def test_more_epochs_train_on(images, file):
    whole = make()
    expected = fit(whole, images, epochs=4, **SETTINGS)
    fit(make(), images, epochs=2, checkpoint=file, **SETTINGS)
    longer = make(seed=99)
    history = fit(longer, images, epochs=4, checkpoint=file, **SETTINGS)
    assert same(longer, whole)
    assert history.train == expected.train


def test_a_finished_run_is_loaded_and_not_trained_on(images, file):
    finished = make()
    expected = fit(finished, images, epochs=2, checkpoint=file, **SETTINGS)
    loaded = kill_at(make(seed=99), 1)  # a first step would be an error
    history = fit(loaded, images, epochs=2, checkpoint=file, **SETTINGS)
    assert same(loaded, finished)
    assert history == expected


def test_numbers_from_numpy_are_as_good_as_others(images, file):
    options = {**SETTINGS, "lr": np.float64(1e-3), "seed": np.int64(3), "checkpoint": file}
    fit(make(beta=np.float64(4.0)), images, epochs=1, **options)
    history = fit(make(beta=4), images, epochs=2, **{**options, "lr": 1e-3, "seed": 3})
    assert history.epochs == 2


def test_a_checkpoint_outlives_a_failure_to_write_the_next(images, file, monkeypatch):
    whole = make()
    fit(whole, images, epochs=3, **SETTINGS)
    fit(make(), images, epochs=1, checkpoint=file, **SETTINGS)
    before = file.read_bytes()

    def full(state, path):
        Path(path).write_bytes(before[:100])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            fit(make(), images, epochs=3, checkpoint=file, **SETTINGS)
    assert file.read_bytes() == before
    resumed = make(seed=99)
    fit(resumed, images, epochs=3, checkpoint=file, **SETTINGS)
    assert same(resumed, whole)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


OTHER_RUNS = {
    "other sizes": (
        lambda: VAE.mlp((1, 4, 4), 3, hidden=(8,)),
        {},
        r"a VAE, not one of these sizes; encoder\.net\.2\.weight is \(4, 8\) there, \(6, 8\) here",
    ),
    "another depth": (
        lambda: VAE.mlp((1, 4, 4), 2, hidden=(8, 8)),
        {},
        r"a VAE, not one of these sizes; encoder\.net\.2\.weight is \(4, 8\) there, \(8, 8\) here",
    ),
    "another class": (
        lambda: type("BetterVAE", (VAE,), {}).mlp((1, 4, 4), 2, hidden=(8,)),
        {},
        r"another model: a VAE, not this BetterVAE\.",
    ),
    "beta": (lambda: make(beta=4.0), {}, r"a run with model\.beta = 1\.0, not 4\.0"),
    "likelihood": (
        lambda: make(likelihood="gaussian"),
        {},
        r"a run with model\.likelihood = Bernoulli, not Gaussian",
    ),
    "activation": (
        lambda: make(activation=nn.Tanh),
        {},
        r"a run with model\.encoder\.net\.1 = ReLU, not Tanh",
    ),
    "free_bits": (lambda: make(free_bits=0.1), {}, r"a run with model\.free_bits = 0\.0, not 0\.1"),
    "lr": (make, {"lr": 0.1}, r"a run with lr = 0\.001, not 0\.1"),
    "batch_size": (make, {"batch_size": 10}, r"a run with batch_size = 16, not 10"),
    "seed": (make, {"seed": 1}, r"a run with seed = 0, not 1"),
    "fewer examples": (
        make,
        {"images": slice(0, 40)},
        r"a run with data = \(50, 1, 4, 4\) .*, not \(40, 1, 4, 4\)",
    ),
    "other examples": (make, {"images": [*range(1, COUNT), 0]}, r"a run with data = \(50, 1, 4, 4\)"),
    "precision": (make, {"precision": "bfloat16"}, r"a run with precision = float32, not bfloat16"),
    "annealing": (make, {"beta": lambda step: 1.0}, r"a run with beta = None, not \(1\.0, 1\.0"),
    "transform": (make, {"transform": torch.abs}, r"a run with transform = None, not abs"),
}


@pytest.mark.parametrize(("other", "changed", "message"), OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_the_checkpoint_of_another_run_is_refused(images, file, other, changed, message):
    fit(make(), images, epochs=1, checkpoint=file, **SETTINGS)
    content, model = file.read_bytes(), other()
    before, changed = weights(model), dict(changed)
    images = images[changed.pop("images", slice(None))]
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, images, epochs=2, checkpoint=file, **{**SETTINGS, **changed})
    assert str(caught.value).startswith(f"{file} is the checkpoint of ")
    assert str(caught.value).endswith("Give this run a file of its own.")
    # Neither the file nor the model was touched.
    assert file.read_bytes() == content
    assert same(model, before)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda p: {"dropout": p}, r"a run with model\.encoder\.net\.2\.p = 0\.1, not 0\.2"),
        (
            lambda slope: {"activation": lambda: nn.LeakyReLU(slope)},
            r"a run with model\.encoder\.net\.1\.negative_slope = 0\.1, not 0\.2",
        ),
        (
            lambda variance: {"likelihood": "gaussian", "variance": variance},
            r"a run with model\.likelihood\.variance = 0\.1, not 0\.2",
        ),
    ],
    ids=["dropout", "activation", "likelihood"],
)
def test_a_setting_inside_a_part_of_the_model_belongs_to_the_run(images, file, setting, message):
    fit(make(**setting(0.1)), images, epochs=1, checkpoint=file, **SETTINGS)
    with pytest.raises(ValueError, match=message):
        fit(make(**setting(0.2)), images, epochs=2, checkpoint=file, **SETTINGS)
    fit(make(seed=5, **setting(0.1)), images, epochs=2, checkpoint=file, **SETTINGS)


def test_a_checkpoint_with_other_constants_is_refused(file):
    x = torch.randn(50, 6)
    fit(LinearAutoencoder(6, 2, offset=torch.ones(6)), x, epochs=1, checkpoint=file, **SETTINGS)
    with pytest.raises(ValueError, match=r"a model whose offset holds other values"):
        fit(LinearAutoencoder(6, 2), x, epochs=2, checkpoint=file, **SETTINGS)
    fit(LinearAutoencoder(6, 2, offset=torch.ones(6)), x, epochs=2, checkpoint=file, **SETTINGS)


def test_running_statistics_come_from_the_checkpoint(images, file):
    def normalised(seed):
        torch.manual_seed(seed)
        model = make(seed)
        model.encoder = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(16), nn.Unflatten(1, (1, 4, 4)), model.encoder
        )
        return model

    whole, resumed = normalised(0), normalised(1)
    fit(whole, images, epochs=3, **SETTINGS)
    fit(normalised(0), images, epochs=1, checkpoint=file, **SETTINGS)
    fit(resumed, images, epochs=3, checkpoint=file, **SETTINGS)
    assert same(whole, resumed)


def truncated(path, model):
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


def test_a_checkpoint_says_how_many_epochs_are_done(images, file):
    assert epochs_done(file) == 0
    with pytest.raises(Killed):
        fit(kill_at(make(), 7), images, epochs=3, checkpoint=file, checkpoint_steps=1, **SETTINGS)
    assert epochs_done(file) == 1  # killed in the second
    fit(make(), images, epochs=3, checkpoint=file, checkpoint_steps=1, **SETTINGS)
    assert epochs_done(file) == 3
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"vae\.pt is not a checkpoint that fit wrote"):
        epochs_done(file)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, model: path.write_bytes(b""),
        lambda path, model: path.write_text("lr: 0.001"),
        truncated,
        lambda path, model: torch.save(model, path),
        lambda path, model: torch.save(model.state_dict(), path),
        lambda path, model: torch.save({"model": model.state_dict(), "epoch": 3}, path),
    ],
    ids=["empty", "text", "truncated", "whole model", "state_dict", "another loop's"],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_kept(images, tmp_path, write):
    path = tmp_path / "file.pt"
    write(path, make())
    content = path.read_bytes()
    with pytest.raises(ValueError, match="is not a checkpoint that fit wrote, or it is damaged") as caught:
        fit(make(), images, epochs=1, checkpoint=path, **SETTINGS)
    assert str(caught.value).startswith(str(path))
    assert "Give this run a file of its own, or delete that one" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert path.read_bytes() == content


# ------------------------------------------------------------------------------ divergence


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("call", "epoch", "step"), [(3, 1, 3), (5, 2, 1)])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(
    images, file, value, call, epoch, step
):
    model = make()
    plain, calls, before = model.loss, [], {}

    def loss(batch):
        result = plain(batch)
        calls.append(1)
        if len(calls) < call:
            return result
        before.update(weights(model))
        kl = value * result.parts["kl"]
        return Loss(total=result.total + kl, parts={**result.parts, "kl": kl})

    model.loss = loss
    message = rf"^The loss is {value} at epoch {epoch}, step {step}, through its term kl; .* smaller lr"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, images, epochs=3, checkpoint=file, checkpoint_steps=1, **SETTINGS)
    assert same(model, before)
    assert all(torch.isfinite(w).all() for w in weights(model).values())
    assert not model.training
    # The last checkpoint is from before, and a loss that behaves goes on from it.
    saved = torch.load(file, weights_only=True)
    assert same(saved["model"], before)
    whole, resumed = make(), make(seed=99)
    fit(whole, images, epochs=3, **SETTINGS)
    fit(resumed, images, epochs=3, checkpoint=file, checkpoint_steps=1, **SETTINGS)
    assert same(whole, resumed)


def test_a_term_that_is_not_named_is_called_total(images):
    model = make()
    model.loss = lambda batch: Loss(total=model.decoder.net[0].weight.sum() * math.nan, parts={})
    with pytest.raises(FloatingPointError, match="through its term total"):
        fit(model, images, epochs=1, **SETTINGS)


def test_a_learning_rate_that_is_far_too_large_is_reported_so(images):
    with pytest.raises(FloatingPointError, match="Try a smaller lr first"):
        fit(make(), images, epochs=20, lr=1e4, **SETTINGS)


def root_of_zero(model, parameter, call):
    """From a certain call on, add a term of value zero whose derivative by ``parameter`` is NaN."""
    plain, calls = model.loss, []

    def loss(batch):
        calls.append(weights(model))
        result = plain(batch)
        zero = (parameter(model) * 0).abs().sum().sqrt() if len(calls) >= call else 0
        return Loss(total=result.total + zero, parts=result.parts)

    model.loss = loss
    return calls


def test_a_gradient_that_is_not_finite_stops_the_run_although_the_loss_is_finite(images):
    model = make()
    before = root_of_zero(model, lambda m: m.encoder.net[0].bias, call=6)
    message = r"^The gradient of the loss is not finite at epoch 2, step 2, .* before this step are unharmed"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, images, epochs=3, **SETTINGS)
    assert same(model, before[-1])


@pytest.mark.parametrize("checkpoint_steps", [None, 1])
def test_a_gradient_that_escapes_the_watch_is_named_a_step_later_and_never_saved(
    images, file, checkpoint_steps
):
    # Only the gradients of biases are watched; this NaN reaches none of them.
    model = make()
    root_of_zero(model, lambda m: m.decoder.net[0].weight, call=6)
    message = r"at epoch 2, step 3.* had spoiled decoder\.net\.0\.weight"
    if checkpoint_steps:
        message = r"^The last step spoiled decoder\.net\.0\.weight: its gradient was not finite"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, images, epochs=3, checkpoint=file, checkpoint_steps=checkpoint_steps, **SETTINGS)
    saved = torch.load(file, weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in saved["model"].values())
    whole, resumed = make(), make(seed=99)
    fit(whole, images, epochs=3, **SETTINGS)
    fit(resumed, images, epochs=3, checkpoint=file, checkpoint_steps=checkpoint_steps, **SETTINGS)
    assert same(whole, resumed)


def test_where_the_host_looks_once_an_epoch_the_weights_wait_for_it(images, file, monkeypatch):
    # What is done on a GPU: no question to the device inside an epoch, and no update after a NaN.
    monkeypatch.setattr("aecourse.train.ASYNCHRONOUS", ("cpu",))
    whole, other = make(), make()
    fit(whole, images, epochs=3, **SETTINGS)
    monkeypatch.undo()
    fit(other, images, epochs=3, **SETTINGS)
    assert same(whole, other)

    monkeypatch.setattr("aecourse.train.ASYNCHRONOUS", ("cpu",))
    model = make()
    plain, calls, before = model.loss, [], {}

    def loss(batch):
        calls.append(1)
        result = plain(batch)
        if len(calls) != 6:
            return result
        before.update(weights(model))
        kl = math.nan * result.parts["kl"]
        return Loss(total=result.total + kl, parts={**result.parts, "kl": kl})

    model.loss = loss
    with pytest.raises(FloatingPointError, match="at epoch 2, step 2, through its term kl"):
        fit(model, images, epochs=3, checkpoint=file, **SETTINGS)
    assert len(calls) == 8  # the epoch was finished, and changed nothing
    assert same(model, before)
    resumed = make(seed=99)
    fit(resumed, images, epochs=3, checkpoint=file, **SETTINGS)
    assert same(whole, resumed)


# ------------------------------------------------------------- the model before and after


def test_the_model_trains_in_training_mode_and_comes_back_ready_for_use(images):
    modes = []
    model = watch(make().eval(), lambda n, batch: modes.append(model.training))
    fit(model, images, epochs=1, test_images=images[:5], **SETTINGS)
    assert modes == [True] * 4 + [False]
    assert not model.training
    with pytest.raises(Killed):
        fit(kill_at(model, 1), images, epochs=1, **SETTINGS)
    assert not model.training


def test_the_model_returns_to_the_device_it_came_from(images, monkeypatch):
    # A second device is not everywhere, so this looks at where the model is sent.
    sent = []
    plain = VAE.to
    monkeypatch.setattr(VAE, "to", lambda self, device: sent.append(str(device)) or plain(self, device))
    fit(make(), images, epochs=1, **SETTINGS)
    assert sent == ["cpu", "cpu"]
    sent.clear()
    with pytest.raises(Killed):
        fit(kill_at(make(), 2), images, epochs=1, **SETTINGS)
    assert sent == ["cpu", "cpu"]


def test_the_callers_images_are_not_changed(images):
    before = images.clone()
    fit(make(), images, epochs=1, **SETTINGS)
    assert torch.equal(images, before)


def test_the_device_is_the_one_named_or_else_the_best(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device() == torch.device(expected)


# ------------------------------------------------------------------------------ evaluation


def test_evaluate_weighs_the_last_batch_by_its_size():
    images = torch.arange(10.0)
    for batch_size in (1, 3, 4, 10, 1000):
        found = mean_loss(Mean(), images, batch_size=batch_size)
        assert found == {"total": pytest.approx(4.5), "twice": pytest.approx(9.0)}


def test_evaluate_is_deterministic_and_leaves_the_mode_alone(images):
    model = make()
    for mode in (True, False):
        model.train(mode)
        modes = []
        first = mean_loss(watch(model, lambda n, batch, modes=modes: modes.append(model.training)), images)
        assert first == mean_loss(model, images)
        assert modes == [False] * len(modes)
        assert model.training is mode
    assert first != mean_loss(model, images, seed=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_last_test_entry_is_what_evaluate_gives(images):
    model = make()
    history = fit(model, images, epochs=2, seed=3, test_images=images[:9], **SETTINGS)
    assert {name: values[-1] for name, values in history.test.items()} == mean_loss(model, images[:9], seed=3)


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"^epochs is 0 but must be at least 1"),
        ({"batch_size": 0}, r"^batch_size is 0 but must be at least 1"),
        ({"lr": 0.0}, r"^lr is 0\.0 but must be positive"),
        ({"lr": math.nan}, r"^lr is nan but must be positive"),
        ({"checkpoint_steps": 5}, r"^checkpoint_steps is 5 but there is no checkpoint to write to"),
        ({"checkpoint_steps": 0, "checkpoint": "vae.pt"}, r"^checkpoint_steps is 0 but must be at least 1"),
        ({"batch_size": 64.0}, r"^batch_size is 64\.0 but must be a whole number"),
        ({"epochs": 1.5}, r"^epochs is 1\.5 but must be a whole number"),
        ({"beta": 4.0}, r"^beta is 4\.0 but must be a function of the step.* beta is an option of its class"),
        ({"transform": "binarize"}, r"^transform is 'binarize' but must be a function of a batch"),
        ({"labels": torch.zeros(50)}, r"^labels is given but VAE has no use for labels"),
        ({"precision": "float16"}, r"^precision is 'float16' but must be one of"),
        ({"labels": torch.zeros(3)}, r"^labels has 3 entries but images holds 50 examples"),
        (
            {"test_images": torch.rand(4, 1, 4, 4), "test_labels": torch.zeros(3)},
            r"^test_labels has 3 entries but test_images holds 4 examples",
        ),
        ({"checkpoint": "."}, r"^checkpoint is '\.', a folder, but must name a file"),
    ],
)
def test_arguments_out_of_range_are_refused(images, options, message):
    model = kill_at(make(), 1)  # none of these gets as far as a first step
    with pytest.raises((TypeError, ValueError), match=message):
        fit(model, images, **{**SETTINGS, **options})


def test_data_are_checked_before_the_first_step(images):
    bad = images.clone()
    bad[-1] = math.nan
    for wrong in ({"images": bad}, {"images": images, "test_images": bad}):
        model = kill_at(make(), 1)
        with pytest.raises(ValueError, match=r"^images holds 16 values that are NaN"):
            fit(model, **wrong, epochs=1, **SETTINGS)
    for name in ("images", "test_images"):
        with pytest.raises(ValueError, match=rf"^{name} holds no examples"):
            fit(make(), **{"images": images, name: images[:0]}, epochs=1, **SETTINGS)
    with pytest.raises(ValueError, match=r"^images holds no examples"):
        mean_loss(make(), images[:0])


def test_what_a_model_cannot_use_is_refused_by_name(images):
    frozen = make().requires_grad_(False)
    with pytest.raises(ValueError, match=r"^model is a VAE without a parameter that can be trained"):
        fit(frozen, images, epochs=1, **SETTINGS)
    plain = Autoencoder.mlp((1, 4, 4), 2, hidden=(8,))
    with pytest.raises(ValueError, match=r"^beta is given but the loss of Autoencoder has no KL to weigh"):
        fit(plain, images, epochs=1, beta=lambda step: 1.0, **SETTINGS)
    conditional = ConditionalVAE.build("mlp", (1, 4, 4), 2, classes=3, hidden=(8,))
    with pytest.raises(ValueError, match=r"^labels is missing: ConditionalVAE needs a label of each"):
        fit(conditional, images, epochs=1, **SETTINGS)


@pytest.mark.parametrize("name", ["images", "test_images"])
def test_images_of_another_precision_are_refused_with_the_cure(images, name):
    data = {"images": images, "test_images": images[:5]}
    data[name] = torch.from_numpy(data[name].numpy().astype("float64"))
    message = rf"^{name} has dtype torch\.float64 but .* are torch\.float32: take {name}\.float\(\)\.$"
    with pytest.raises(TypeError, match=message):
        fit(kill_at(make(), 1), **data, epochs=1, **SETTINGS)
    message = r"^images has dtype torch\.float32 .* take images\.to\(torch\.float64\)"
    with pytest.raises(TypeError, match=message):
        fit(kill_at(make().double(), 1), images, epochs=1, **SETTINGS)
    # What the transform makes of them is what counts.
    fit(make(), **data, epochs=1, transform=lambda x: x.float(), **SETTINGS)


def test_a_last_batch_of_one_is_refused_where_batch_norm_cannot_learn_from_it(images, monkeypatch):
    def normalised(kind, **options):
        torch.manual_seed(0)
        return VAE.build(kind, (1, 4, 4), 2, batch_norm=True, **options)

    model = normalised("mlp", hidden=(8,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^batch_size is 7, .* one of the 50 images, and batch norm"):
        fit(model, images, epochs=1, **{**SETTINGS, "batch_size": 7})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fit(normalised("mlp", hidden=(8,)), images[:49], epochs=1, **{**SETTINGS, "batch_size": 7})
    # Convolutions have enough numbers in one image; to look whether that is so changes nothing.
    looked, plain = normalised("conv", channels=(3,)), normalised("conv", channels=(3,))
    fit(looked, images, epochs=1, **{**SETTINGS, "batch_size": 7})
    monkeypatch.setattr("aecourse.train._check_single", lambda *arguments: None)
    fit(plain, images, epochs=1, **{**SETTINGS, "batch_size": 7})
    assert same(looked, plain)


# ------------------------------------------------------- schedules, transforms and labels


class Listener(nn.Module):
    """A model that notes what it is given; its loss is the mean of the batch times the weight beta."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.heard = []

    def validate(self, images, labels=None):
        pass

    def loss(self, x, labels=None, beta=None):
        self.heard.append((x.clone(), labels, None if beta is None else beta.clone()))
        return Loss(total=self.weight * x.mean(), parts={})


def test_the_weight_of_the_kl_follows_its_schedule_step_by_step():
    model = Listener()
    fit(
        model,
        torch.rand(10),
        epochs=3,
        batch_size=4,
        beta=lambda step: step / 9,
        device="cpu",
        progress=False,
    )
    found = torch.stack([beta for _, _, beta in model.heard])
    torch.testing.assert_close(found, torch.arange(9) / 9)


def test_annealing_changes_what_a_vae_is_trained_on_and_not_how_it_is_tested(images):
    weighed = fit(make(), images, epochs=1, beta=lambda step: 4.0, test_images=images, **SETTINGS)
    assert weighed.train == fit(make(beta=4.0), images, epochs=1, **SETTINGS).train
    assert weighed.test["total"][0] == pytest.approx(
        weighed.test["reconstruction"][0] + weighed.test["kl"][0], rel=1e-5
    )


def test_a_schedule_of_the_step_size_is_that_of_the_epochs(images):
    # The same as one run for each epoch with Adam's memory carried over: here by hand.
    model, theirs = make(), make()
    rates = [3e-3, 1e-3, 1e-4]
    order = images.clone()
    fit(model, order, epochs=3, lr=lambda epoch: rates[epoch] if epoch < 3 else 1e-4, **SETTINGS)
    optimizer = torch.optim.Adam(theirs.parameters(), fused=True)
    torch.manual_seed(0)
    theirs.train()
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = rates[epoch]
        permutation = torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch))
        for rows in permutation.split(BATCH):
            optimizer.zero_grad()
            theirs.loss(images[rows]).total.backward()
            optimizer.step()
    assert same(model, theirs)


def test_the_short_way_to_adams_step_is_adams_step():
    # Two groups, and a parameter that gets its first gradient in the third step.
    ours, theirs = ([torch.ones(size, requires_grad=True) for size in (3, 5, 2)] for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.01}
    optimizers = [
        kind([{"params": ps[:1]}, {"params": ps[1:], **settings}], lr=0.01, fused=True)
        for kind, ps in ((_Adam, ours), (torch.optim.Adam, theirs))
    ]
    for step in range(5):
        for optimizer, parameters in zip(optimizers, (ours, theirs)):
            optimizer.forget_gradients() if optimizer is optimizers[0] else optimizer.zero_grad()
            used = parameters if step >= 2 else parameters[:2]
            sum((p.cos() * (step + 1)).sum() for p in used).backward()
            optimizer.update() if optimizer is optimizers[0] else optimizer.step()
    assert all(map(torch.equal, ours, theirs))
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert all(not torch.equal(p, torch.ones_like(p)) for p in ours)


def test_a_transform_is_applied_afresh_to_every_batch_and_to_the_test_images_alike(images):
    def noisy(batch):
        return batch + torch.randn_like(batch)

    model = Listener()
    history = fit(model, images, epochs=2, transform=noisy, test_images=images, **SETTINGS)
    first, second = (sum(len(x) for x, _, _ in model.heard[i : i + 5]) for i in (0, 5))
    assert first == second == 2 * COUNT
    drawn = [torch.cat([x for x, _, _ in model.heard[i : i + 4]]).std().item() for i in (0, 5)]
    assert drawn[0] != drawn[1]
    assert min(drawn) > 1.0  # the images alone have 0.29
    assert torch.equal(model.heard[4][0], model.heard[9][0])  # the same noise for the test images
    assert len(history.test["total"]) == 2


def test_labels_go_with_their_images():
    model, images = Listener(), torch.arange(10.0)
    options = {"epochs": 2, "batch_size": 3, "device": "cpu", "progress": False}
    fit(model, images, labels=10 * images, test_images=images, test_labels=10 * images, **options)
    assert len(model.heard) == 2 * (4 + 1)
    assert all(torch.equal(labels, 10 * x) for x, labels, _ in model.heard)


def test_a_conditional_vae_learns_from_labels_and_refuses_unknown_ones():
    digits = data.load("digits")
    torch.manual_seed(0)
    vae = ConditionalVAE.build("mlp", digits.image_shape, 2, hidden=(32,), classes=10)
    options = {"test_images": digits.test, "test_labels": digits.test_labels, **SETTINGS}
    history = fit(vae, digits.train, labels=digits.train_labels, epochs=3, lr=3e-3, **options)
    assert history.test["total"][-1] < history.test["total"][0]
    shuffled = digits.test_labels.roll(1)
    right, wrong = (
        mean_loss(vae, digits.test, labels=labels)["total"] for labels in (digits.test_labels, shuffled)
    )
    assert right < wrong
    with pytest.raises(ValueError, match="labels"):
        fit(vae, digits.train, labels=digits.train_labels + 1, epochs=1, **SETTINGS)
    with pytest.raises(ValueError, match="labels is missing"):
        fit(vae, digits.train, epochs=1, **SETTINGS)


# --------------------------------------------------------------- what the device computes in


def test_mixed_precision_trains_to_the_same_place_with_other_numbers(images):
    one, other = make(), make()
    plain = fit(one, images, epochs=5, lr=3e-3, **SETTINGS)
    mixed = fit(other, images, epochs=5, lr=3e-3, precision="bfloat16", **SETTINGS)
    assert mixed.train["total"] == pytest.approx(plain.train["total"], rel=0.01)
    assert mixed.train["total"] != plain.train["total"]
    assert all(w.dtype == torch.float32 for w in weights(other).values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs a C++ compiler")
@pytest.mark.seconds(20)
def test_a_compiled_loss_gives_the_same_numbers(images, tmp_path):
    # In a process of its own: the compiler keeps threads and caches.
    script = """
import functools, torch, torch._inductor.config
from aecourse import LinearAutoencoder, fit
from support.players import Grouped
torch._inductor.config.fallback_random = True  # the same noise as without the compiler
torch.manual_seed(0)
x = torch.randn(50, 6)
for make in (lambda: LinearAutoencoder(6, 2), Grouped):
    for compile in (False, True):
        torch.manual_seed(1)
        model = make()
        history = fit(model, x, epochs=3, batch_size=25, device="cpu", progress=False, compile=compile)
        print(history.train["total"] + history.train.get("own.critic", []))
    # C++ takes a compiler most of the time, and is there once: this keeps the graphs, backwards too.
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here}", "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    curves = [ast.literal_eval(line) for line in run.stdout.splitlines()]
    assert list(map(len, curves)) == [3, 3, 6, 6]  # the critic's as well
    for eager, compiled in zip(curves[::2], curves[1::2]):
        assert compiled == pytest.approx(eager, rel=1e-5)


def test_the_settings_of_the_machine_are_left_as_they_were(images):
    tiny = torch.full((1,), 2e-38)
    assert tiny / 4 != 0
    inside = []
    model = watch(make(), lambda n, batch: inside.append(bool(tiny / 4 == 0)))
    matmul = torch.get_float32_matmul_precision()
    fit(model, images, epochs=1, precision="tf32", **SETTINGS)
    assert all(inside)
    assert tiny / 4 != 0
    assert torch.get_float32_matmul_precision() == matmul


# ---------------------------------------------------------------------- several processes

TEAM = """
import json, os, sys, torch
from aecourse import VAE, LinearAutoencoder, data, fit
from aecourse.bounds import Loss
from aecourse.zoo.factor_vae import BetaTCVAE, FactorVAE
torch.set_num_threads(1)
kinds, folder = sys.argv[1].split(), sys.argv[2]
def train(kind):
    images = torch.load(folder + "/images.pt")
    seed = 0 if int(os.environ.get("RANK", 0)) == 0 else 1  # rank 0's weights are the team's
    torch.manual_seed(seed)
    if kind == "linear":
        model, images = LinearAutoencoder(16, 3), images.flatten(1)
    elif kind == "players":
        from support.players import Grouped
        images = images.flatten(1)[:, :6]
        def players(seed):
            model = Grouped(seed)
            model.never, model.sometimes = torch.nn.Linear(2, 2), torch.nn.Linear(1, 1)
            groups = model.parameter_groups()
            groups.append({"params": model.never.parameters(), "weight_decay": 0.1})
            model.parameter_groups = lambda: groups
            return model
        model = players(seed)
    elif kind == "samples":
        model = VAE.mlp((1, 4, 4), 2, hidden=(8,), samples=8)  # as many as each process has examples
    elif kind == "factor":  # it permutes codes over the whole batch
        model = FactorVAE.mlp((1, 4, 4), 2, hidden=(8,), critic_hidden=(8,))
    elif kind == "tc":  # it compares each code with those of the whole batch
        model = BetaTCVAE.mlp((1, 4, 4), 2, hidden=(8,), data_size=49)
    else:
        model = VAE.mlp((1, 4, 4), 2, hidden=(8,))
    calls, plain = 0, model.loss
    def loss(batch):
        nonlocal calls
        calls += 1
        if kind == "players" and os.environ.get("RANK") == "1":
            # Of one parameter only this process has a gradient, and no value shows it.
            loss, extra = plain(batch), model.sometimes.weight.sum()
            return Loss(loss.total + extra - extra.detach(), loss.parts, loss.own)
        if kind == "nan" and calls == 6 and os.environ.get("RANK") == "1":
            batch = batch * float("nan")
        if kind == "killed" and calls == 6:
            os._exit(9)
        return plain(batch)
    model.loss = loss
    options = {"epochs": 3, "batch_size": 16, "lr": 3e-3, "device": "cpu", "progress": False}
    if kind == "tc":
        options["batch_size"] = 15  # parts of 8 and 7: gradients that cross over have to be weighed
    if kind in ("killed", "resumed") or kind == "players" and "RANK" in os.environ:
        options |= {"checkpoint": folder + "/team.pt", "checkpoint_steps": 2}
    if kind == "players" and "RANK" in os.environ:
        # Interrupted in the second epoch; a model with other weights goes on.
        plain_after_step, steps = model.after_step, 0
        def after_step():
            nonlocal steps
            steps += 1
            if steps == 7:
                raise KeyboardInterrupt
            plain_after_step()
        model.after_step = after_step
        try:
            fit(model, images, **options)
        except KeyboardInterrupt:
            model = players(5)
            plain, model.loss = model.loss, loss
    history = fit(model, images, **options)
    with open(f"{folder}/{kind}-{os.environ.get('RANK', 'alone')}.json", "w") as file:
        json.dump([history.train, {n: w.tolist() for n, w in model.state_dict().items()}], file)
for kind in kinds:
    train(kind)
"""


def team(kinds: str, folder: Path, processes: int = 2) -> None:
    """Start processes that together train these kinds, one after the other; wait for them all.

    Raises:
        subprocess.CalledProcessError: if one fails; its ``stderr`` has what all say.
    """
    (folder / "team.py").write_text(TEAM)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here}", "OMP_NUM_THREADS": "1"}
    if processes > 1:  # as torchrun does, which test_cli.py starts; it takes longer than this training
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        environment |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = []
    for rank in range(processes):
        ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, str(folder / "team.py"), kinds, str(folder)]
        running.append(subprocess.Popen(command, env=environment | ranked, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=120)[1] for process in running]  # one that waits for nobody hangs
    for process in running:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, kinds, stderr="\n".join(said))


def result(folder: Path, name: str) -> tuple[dict, dict]:
    return json.loads((folder / f"{name}.json").read_text())


KINDS = ["linear", "vae", "players", "samples", "factor", "tc"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with the results of one process and of two, for every kind."""
    folder = tmp_path_factory.mktemp("team")
    # 49 images in batches of 16: uneven parts, and a last batch of one image for two processes.
    torch.manual_seed(0)
    torch.save(torch.rand(49, 1, 4, 4), folder / "images.pt")
    for processes in (1, 2):
        team(" ".join(KINDS), folder, processes)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.seconds(8)
def test_two_processes_train_as_one_does(trained, kind):
    alone, first, second = (result(trained, f"{kind}-{who}") for who in ("alone", "0", "1"))
    assert alone[0].keys() == first[0].keys()
    for name, curve in alone[0].items():
        assert first[0][name] == second[0][name] == pytest.approx(curve, rel=1e-5, abs=1e-6)
    for name, weight in alone[1].items():
        assert first[1][name] == second[1][name]
        if name == "sometimes.weight":
            assert first[1][name] != weight
            continue
        exact = {"rtol": 1e-5, "atol": 2e-6} if kind == "tc" else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(torch.tensor(first[1][name]), torch.tensor(weight), **exact)


def parts_of_the_noise(draw, examples: int, processes: int = 2) -> list:
    """What ``draw(n)`` gives each process that has n of so many examples; then, what one process gets.

    No process is started: a team's noise needs none of the others.
    """
    parts = []
    for rank in range(processes):
        team = Team(rank, processes, seed=3, device=torch.device("cpu"))
        rows, _ = team.share(torch.arange(examples))
        torch.manual_seed(100 + rank)
        with team.noise():
            parts.append([draw(len(rows)), draw(len(rows))])
    torch.manual_seed(3)
    return [*parts, [draw(examples), draw(examples)]]


NOISE = {
    "randn": lambda n: torch.randn(n, 3),
    "randn of a tuple": lambda n: torch.randn((n, 2, 4), dtype=torch.float64),
    "rand of a size": lambda n: torch.rand(size=(n,)),
    "randn_like": lambda n: torch.randn_like(torch.zeros(n, 3, dtype=torch.float64)),
    "rand_like": lambda n: torch.rand_like(torch.zeros(n, 5), memory_format=torch.preserve_format),
    "randint": lambda n: torch.randint(10, (n, 2)),
    "randint from 5": lambda n: torch.randint(5, 10, (n,)),
    "randint of names": lambda n: torch.randint(low=5, high=1000, size=(n, 1), dtype=torch.int32),
    "randint_like": lambda n: torch.randint_like(torch.zeros(n, 3), 10),
    "randint_like from 5": lambda n: torch.randint_like(torch.zeros(n, 3), 5, 10),
    "normal_": lambda n: torch.empty(n, 2).normal_(1.0, std=2.0),
    "exponential_": lambda n: torch.empty(n, 2, dtype=torch.float64).exponential_(),
    "distributions": lambda n: torch.distributions.Normal(torch.ones(n, 2), torch.arange(1.0, 3)).rsample(),
    "standard_normal": lambda n: standard_normal((n, 3), torch.zeros(1, dtype=torch.float64)),
    "data.mask": lambda n: data.mask(torch.ones(n, 9), 0.5),
}


@pytest.mark.parametrize("examples", [8, 7, 1])
@pytest.mark.parametrize("draw", NOISE.values(), ids=NOISE)
def test_the_noise_of_two_processes_is_that_of_one(draw, examples):
    *parts, whole = parts_of_the_noise(draw, examples)
    for rank, part in enumerate(parts):
        for mine, all_of_it in zip(part, whole):
            # With one example the second process takes the first one's, and it counts nothing.
            expected = all_of_it[rank if examples > 1 else 0 :: 2]
            assert mine.dtype == expected.dtype
            assert torch.equal(mine, expected)
    assert not torch.equal(whole[0], whole[1])


def test_the_batch_is_the_dimension_that_one_names():
    # Four draws for each of 4 of 8 examples: by its size alone, either dimension could be the batch.
    like = torch.zeros(())
    first, second, whole = parts_of_the_noise(lambda n: standard_normal((4, n, 3), like, batch_dim=1), 8)
    assert torch.equal(torch.stack([first[1], second[1]], dim=2).flatten(1, 2), whole[1])
    first, second, whole = parts_of_the_noise(lambda n: standard_normal((4, n), like, batch_dim=-1), 8)
    assert torch.equal(torch.stack([first[1], second[1]], dim=2).flatten(1), whole[1])
    first, second, whole = parts_of_the_noise(
        lambda n: reparameterize(torch.ones(n, 2), torch.ones(n, 2), 4), 8
    )
    assert torch.equal(torch.stack([first[1], second[1]], dim=2).flatten(1, 2), whole[1])
    # What belongs to no example is the same for all.
    for draw in (lambda n: standard_normal((4, 3), like, batch_dim=None), lambda n: torch.rand(())):
        first, second, whole = parts_of_the_noise(draw, 8)
        assert torch.equal(first[1], whole[1])
        assert torch.equal(second[1], whole[1])


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: torch.randn(5, n),
        lambda n: torch.rand_like(torch.zeros(5, n)),
        lambda n: torch.randint(3, (2 * n,)),
        lambda n: torch.empty(5, n).uniform_(),
        lambda n: torch.randperm(n + 1),
        lambda n: standard_normal((n, 5), torch.zeros(()), batch_dim=1),
    ],
)
def test_noise_whose_batch_is_not_where_it_should_be_is_refused(draw):
    with pytest.raises(
        ValueError, match=r"dimension [01] needs 4, a row .* aecourse\.distributed\.standard_norm"
    ):
        parts_of_the_noise(draw, 8)


def test_a_generator_of_ones_own_is_left_alone():
    def draw(n):
        generator = torch.Generator().manual_seed(5)
        return torch.randn(5, 3, generator=generator), torch.randperm(9, generator=generator)

    first, second, whole = parts_of_the_noise(draw, 8)
    for part in (first, second):
        assert all(map(torch.equal, part[1], whole[1]))


@pytest.mark.parametrize("examples", [8, 7, 1])
def test_each_process_orders_its_own_examples_as_the_whole_order_does(examples):
    *parts, whole = parts_of_the_noise(lambda n: (torch.randperm(n), torch.randn(n)), examples)
    for rank, part in enumerate(parts):
        if examples == 1:
            assert part[1][0].tolist() == [0]
            continue
        for (order, noise), (whole_order, whole_noise) in zip(part, whole):
            assert order.dtype == torch.int64
            assert order.tolist() == [place // 2 for place in whole_order.tolist() if place % 2 == rank]
            assert torch.equal(noise, whole_noise[rank::2])  # also after unequal shares


def test_alone_noise_is_what_torch_draws():
    like = torch.zeros(2, dtype=torch.float64)
    drawn = []
    for draw in (lambda: standard_normal((4, 3), like, 1), lambda: torch.randn(4, 3, dtype=torch.float64)):
        torch.manual_seed(0)
        drawn.append(draw())
    assert torch.equal(*drawn)
    rows = torch.func.vmap(lambda x: x + standard_normal((3,), x), randomness="different")(torch.zeros(4, 3))
    assert len(rows.unique()) == 12
    counts = torch.ones(3)
    assert all_sum(counts) is counts


@pytest.mark.seconds(8)
def test_two_processes_stop_together_and_one_says_why(images, tmp_path):
    torch.save(images, tmp_path / "images.pt")
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        team("nan", tmp_path)
    assert "at epoch 2, step 2, through its term reconstruction" in stopped.value.stderr
    assert not list(tmp_path.glob("nan-*.json"))


@pytest.mark.seconds(8)
def test_two_processes_that_were_killed_go_on_to_the_same_numbers(images, tmp_path):
    torch.save(images, tmp_path / "images.pt")
    with pytest.raises(subprocess.CalledProcessError):
        team("killed", tmp_path)
    assert (tmp_path / "team.pt").is_file()
    team("resumed vae", tmp_path)
    assert result(tmp_path, "resumed-0") == result(tmp_path, "vae-0")
    # One process cannot go on where two stopped: it would train on other parts.
    with pytest.raises(ValueError, match="a run with processes = 2, not 1"):
        fit(
            make(),
            images,
            epochs=4,
            **(SETTINGS | {"batch_size": 16, "lr": 3e-3}),
            checkpoint=tmp_path / "team.pt",
        )


# ---------------------------------------------------------------------------- progress bar


def test_the_progress_bar_is_on_unless_switched_off(images, capsys):
    fit(make(), images, epochs=2, batch_size=BATCH, device="cpu")
    shown = capsys.readouterr()
    assert "8/8" in shown.err
    assert re.search(r"total=\d", shown.err)
    assert shown.out == ""
    fit(make(), images, epochs=2, **SETTINGS)
    shown = capsys.readouterr()
    assert shown.err == shown.out == ""


def test_the_progress_bar_of_a_resumed_run_starts_where_it_stopped(images, file, capsys):
    fit(make(), images, epochs=2, checkpoint=file, **SETTINGS)
    fit(make(), images, epochs=3, checkpoint=file, **{**SETTINGS, "progress": True})
    assert "8/12" in capsys.readouterr().err


def test_an_empty_history_has_no_epochs():
    assert History().epochs == 0
