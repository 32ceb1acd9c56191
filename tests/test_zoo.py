"""What training promises, kept by every further model: each case of ``support/models.py`` in turn.

What a model computes is the business of its own test file; that everything stays on its device, of
``test_devices.py``.
"""

import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import MODELS
from torch import nn

from aecourse import evaluate, models
from aecourse.train import fit, mean_loss

KINDS = {name: type(case.make()).__name__ for name, case in MODELS.items()}
ZOO = [name for name, kind in KINDS.items() if models.MODELS.get(kind, "").startswith("zoo.")]
COUNT = 21  # in batches of 8: three steps an epoch, the last of them with five
SETTINGS = {"batch_size": 8, "lr": 3e-3, "device": "cpu", "progress": False}
every_model = pytest.mark.parametrize("name", ZOO)


class Killed(Exception):
    pass


def made(name: str, seed: int = 0, count: int = COUNT) -> tuple[nn.Module, torch.Tensor, dict]:
    """A model with its own first weights, the same data for every seed, and labels where it needs them."""
    case = MODELS[name]
    torch.manual_seed(1)
    x = torch.rand(count, *case.shape)
    torch.manual_seed(seed)
    labels = {"labels": torch.arange(count) % case.labels} if case.labels else {}
    return case.make(), x, labels


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at_step(model: nn.Module, number: int, act) -> nn.Module:
    """Call ``act(batch)`` in place of the batch of one step; what it returns is trained on."""
    plain, calls = model.loss, 0

    def loss(x, *rest, **options):
        nonlocal calls
        calls += torch.is_grad_enabled()
        return plain(act(x) if calls == number else x, *rest, **options)

    model.loss = loss
    return model


def killed(batch):
    raise Killed


# -------------------------------------------------------------------------------------- training


@every_model
def test_it_learns_and_says_what_it_is_made_of(name):
    model, x, labels = made(name)
    model = model.double()
    before = state(model)
    history = fit(model, x.double(), **labels, epochs=2, **SETTINGS)
    assert not same(state(model), before)
    assert history.train.keys() >= {"total"}
    assert all(
        len(curve) == 2 and all(map(torch.isfinite, torch.tensor(curve))) for curve in history.train.values()
    )
    assert not model.training


@every_model
def test_killed_at_any_step_it_ends_where_it_would_have_ended(name, tmp_path):
    whole, x, labels = made(name)
    fit(whole, x, **labels, epochs=2, **SETTINGS)
    options = {**labels, "epochs": 2, "checkpoint_steps": 1, **SETTINGS}
    for step in (2, 4):  # within an epoch, and at the start of the next
        file = tmp_path / f"{step}.pt"
        with pytest.raises(Killed):
            fit(at_step(made(name)[0], step, killed), x, checkpoint=file, **options)
        resumed, _, _ = made(name, seed=99)  # all that matters has to come from the file
        if hasattr(resumed, "first"):  # a stage that this run holds constant
            resumed.first.load_state_dict(whole.first.state_dict())
        fit(resumed, x, checkpoint=file, **options)
        assert same(state(resumed), state(whole)), step


@every_model
def test_looking_changes_nothing(name):
    model, x, labels = made(name)
    fit(model, x, **labels, epochs=1, **SETTINGS)
    before, mode = state(model), torch.get_rng_state()
    first = mean_loss(model, x, **labels, batch_size=COUNT)
    assert first == mean_loss(model, x, **labels, batch_size=COUNT)
    assert same(state(model), before)
    assert torch.equal(torch.get_rng_state(), mode)

    watched, plain = made(name)[0], made(name)[0]
    tested = {"test_images": x[:5], "test_labels": labels["labels"][:5]} if labels else {"test_images": x[:5]}
    fit(watched, x, **labels, **tested, epochs=2, **SETTINGS)
    fit(plain, x, **labels, epochs=2, **SETTINGS)
    assert same(state(watched), state(plain))


@every_model
def test_a_batch_that_is_not_finite_stops_it_and_spoils_no_weight(name):
    model, x, labels = made(name)
    at_step(model, 2, lambda batch: batch * float("nan"))
    with pytest.raises((FloatingPointError, ValueError)):
        fit(model, x, **labels, epochs=1, **SETTINGS)
    # Running averages of batch normalisation are made on the way, before anybody can know.
    learned = {part: value for part, value in model.state_dict().items() if ".running_" not in part}
    assert all(value.isfinite().all() for value in learned.values())


@every_model
def test_mixed_precision_trains_it_with_other_numbers(name):
    mixed, x, labels = made(name)
    plain, _, _ = made(name)
    curves = [
        fit(model, x, **labels, epochs=2, precision=precision, **SETTINGS).train
        for model, precision in ((mixed, "bfloat16"), (plain, "float32"))
    ]
    assert all(value.dtype != torch.bfloat16 for value in mixed.state_dict().values())
    assert not same(state(mixed), state(plain))
    for term in curves[0]:
        assert curves[0][term] == pytest.approx(curves[1][term], rel=0.2, abs=0.5), term


# ------------------------------------------------------------------------------ several processes

TEAM = """
import json, os, sys, torch
sys.path[:0] = sys.argv[2:]
from test_zoo import SETTINGS, TOGETHER, made, fit
torch.set_num_threads(1)
results = {}
rank = os.environ.get("RANK", "alone")
for name in TOGETHER:
    model, x, labels = made(name, seed=5 if rank == "1" else 0)  # rank 0's weights are the team's
    history = fit(model, x, **labels, epochs=2, **SETTINGS)
    results[name] = [history.train, {n: w.tolist() for n, w in model.state_dict().items()}]
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(results, file)
"""
# The statistics of batch normalisation are each process's own.
TOGETHER = [
    name
    for name in ZOO
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in MODELS[name].make().modules())
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process makes of every model, and two."""
    folder, here = tmp_path_factory.mktemp("zoo"), Path(__file__).parent
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = []
    for ranked in (
        {},
        {"RANK": "0", "LOCAL_RANK": "0", **joined},
        {"RANK": "1", "LOCAL_RANK": "1", **joined},
    ):
        command = [sys.executable, "-c", TEAM, str(folder), str(here.parent), str(here)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **ranked}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=240)[1] for process in running]
    assert not any(process.returncode for process in running), "\n".join(said)
    return [json.loads((folder / f"{who}.json").read_text()) for who in ("alone", "0", "1")]


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.seconds(12)
def test_two_processes_train_it_as_one_does(trained, name):
    alone, first, second = (results[name] for results in trained)
    assert alone[0].keys() == first[0].keys()
    for term, curve in alone[0].items():
        assert first[0][term] == second[0][term] == pytest.approx(curve, rel=1e-4, abs=1e-5), term
    for part, weight in alone[1].items():
        assert first[1][part] == second[1][part], part
        torch.testing.assert_close(torch.tensor(first[1][part]), torch.tensor(weight), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------ using a model


@every_model
def test_counts_are_checked(name):
    model, x, labels = made(name)
    model.eval()
    calls = {"sample": lambda count: model.sample(count)}
    if hasattr(model, "log_weights"):
        calls["log_weights"] = lambda count: model.log_weights(x, count, **labels)
    for method, call in calls.items():
        if not hasattr(model, method):
            # A conditional model draws by model.given(labels).sample(count), or by model.complete(x, count).
            assert labels or hasattr(model, "complete"), f"{name} has no {method}"
            continue
        for wrong in (0, 1.5, True):
            with pytest.raises((TypeError, ValueError), match=r"count|samples"):
                call(wrong)


@pytest.mark.parametrize("name", [name for name in ZOO if hasattr(MODELS[name].make(), "log_weights")])
def test_every_estimator_works_on_it(name):
    model, x, labels = made(name, count=4)
    if getattr(model, "posterior", None) in ("deterministic", "noise"):  # of adversarial autoencoders
        with pytest.raises(ValueError, match=r"log_weights needs 'gaussian': no other has a density"):
            model.log_weights(x, 3)
        return
    weights = model.log_weights(x, 3, **labels)
    assert weights.shape == (3, 4)
    assert weights.dtype == x.dtype
    one = {"labels": labels["labels"]} if labels else {}
    sampled = evaluate.importance_sampling(model, x, 50, **one)
    bound = evaluate.iwae(model, x, k=1, repeats=50, **one)
    assert sampled.value.shape == bound.value.shape == (4,)
    assert (bound.value <= sampled.value + 5 * bound.standard_error).all()  # Jensen
    total = evaluate.negative_log_likelihood(model, x, 20, progress=False, **one)
    assert torch.isfinite(total.value)


@every_model
def test_its_class_is_documented(name):
    kind = type(MODELS[name].make())
    text = inspect.getdoc(kind)
    for word in ("Args:", "Raises:", "Source:"):
        assert word in text, f"{kind.__name__} has no {word}"
