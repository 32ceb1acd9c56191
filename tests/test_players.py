"""Models with several players: each parameter learns from one loss, and all else is as for one player."""

import math

import pytest
import torch
from support.players import Adversarial, Grouped, ThreePlayers
from torch import nn
from torch.nn import functional as F

from aecourse.bounds import Loss
from aecourse.train import fit, mean_loss

COUNT, BATCH = 50, 16  # four steps an epoch, the last of them with two examples
SETTINGS = {"batch_size": BATCH, "device": "cpu", "progress": False}


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(COUNT, 6)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Equal to the last bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def each_step(model: nn.Module, note) -> None:
    """Call ``note()`` after every step, ahead of what the model does there."""
    plain = getattr(model, "after_step", lambda: None)

    def after_step():
        note()
        plain()

    model.after_step = after_step


def batches(epoch: int, size: int = BATCH) -> tuple[torch.Tensor, ...]:
    """The rows of each batch, as ``fit`` takes them with seed 0."""
    return torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)).split(size)


# -------------------------------------------------------------------- whose gradient is whose


@pytest.mark.parametrize("kind", [Adversarial, Grouped])
def test_two_players_are_two_optimisers_step_by_step(points, kind):
    # Exactly: the same numbers in the same order, with the gradients of two losses by autograd.grad.
    points = points.double()
    ours, theirs = kind().double(), kind().double()
    rates, trace = [3e-3, 1e-3, 2e-3], []
    each_step(ours, lambda: trace.append((gradients(ours), state(ours))))
    fit(ours, points, epochs=3, lr=lambda epoch: rates[epoch] if epoch < 3 else 1e-3, **SETTINGS)

    critic = [*theirs.critic.parameters()]
    rest = [*theirs.encoder.parameters(), *theirs.decoder.parameters()]
    options = {"betas": (0.5, 0.9), "eps": 1e-6} if kind is Grouped else {}
    decayed = [p for p in rest if kind is Grouped and p is theirs.decoder[0].weight]
    plain = [p for p in rest if not any(p is d for d in decayed)]
    groups = [{"params": plain}] + ([{"params": decayed, "weight_decay": 0.01}] if decayed else [])
    first = torch.optim.Adam(groups, fused=True)
    second = torch.optim.Adam(critic, fused=True, **options)
    torch.manual_seed(0)
    steps = iter(trace)
    for epoch in range(3):
        for group in first.param_groups:
            group["lr"] = rates[epoch]
        second.param_groups[0]["lr"] = rates[epoch] * (0.3 if kind is Grouped else 1.0)
        for rows in batches(epoch):
            loss = theirs.loss(points[rows])
            of_total = torch.autograd.grad(loss.total, rest, retain_graph=True)
            of_critic = torch.autograd.grad(loss.own["critic"], critic)
            for parameter, gradient in zip([*rest, *critic], [*of_total, *of_critic]):
                parameter.grad = gradient
            first.step()
            second.step()
            seen_gradients, seen_state = next(steps)
            for name, parameter in theirs.named_parameters():
                assert torch.equal(seen_gradients[name], parameter.grad), name
            for name, value in theirs.state_dict().items():
                assert torch.equal(seen_state[name], value), name
            theirs.after_step()
    assert next(steps, None) is None
    assert same(ours, theirs)


def test_three_players_each_learn_from_their_own_loss(points):
    points, seen = points.double(), []
    ours, theirs = ThreePlayers().double(), ThreePlayers().double()
    each_step(ours, lambda: seen.append(gradients(ours)))
    history = fit(ours, points, epochs=1, batch_size=COUNT, device="cpu", progress=False)
    torch.manual_seed(0)
    kl, alike, judged = theirs.losses(points[batches(0, size=COUNT)[0]])
    routes = {"encoder": kl + alike, "nets": 0.1 * alike - judged, "critic": judged, "verdict": judged}
    for name, value in routes.items():
        for place, parameter in getattr(theirs, name).named_parameters(prefix=name):
            expected = torch.autograd.grad(value, parameter, retain_graph=True)[0]
            torch.testing.assert_close(seen[0][place], expected, rtol=0, atol=1e-15)
    own = [f"own.{name}" for name in ("nets.decoder", "critic", "verdict")]
    assert [*history.train] == ["total", "kl", "alike", *own]
    assert history.train["own.critic"] == pytest.approx([judged.item()], rel=1e-12)
    assert [*mean_loss(ours, points)] == ["total", "kl", "alike", *own]


def test_one_sum_with_the_others_as_constants_has_the_same_gradients(points):
    # The other way to write it, see Loss: twice the work, and the same numbers.
    points, model = points.double(), Adversarial().double()
    torch.manual_seed(0)
    loss, expected = model.loss(points), {}
    for name, parameter in model.named_parameters():
        value = loss.own["critic"] if name.startswith("critic") else loss.total
        expected[name] = torch.autograd.grad(value, parameter, retain_graph=True)[0]
    torch.manual_seed(0)
    codes = model.encoder(points)
    constant = {name: parameter.detach() for name, parameter in model.critic.named_parameters()}
    betrayed = F.softplus(-torch.func.functional_call(model.critic, constant, codes - model.centre)).mean()
    told_apart = F.softplus(model.critic(codes.detach() - model.centre)).mean()
    told_apart = told_apart + F.softplus(-model.critic(torch.randn_like(codes))).mean()
    reconstruction = (model.decoder(codes) - points).square().sum(dim=1).mean()
    (reconstruction + betrayed + told_apart).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-15)


def test_a_frozen_player_stays_as_it_is_and_so_does_everybody_else_without_gradient(points):
    model = Adversarial()
    model.critic.requires_grad_(False)
    before = state(model)
    fit(model, points, epochs=1, **SETTINGS)
    after = state(model)
    frozen = [name for name in before if torch.equal(before[name], after[name])]
    assert frozen == [name for name in before if name.startswith("critic")]


class Everything(nn.Module):
    """All parameters belong to players; the total is only reported."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 1), nn.Linear(6, 1)

    def validate(self, images):
        pass

    def loss(self, x):
        a, b = self.a(x).square().mean(), (self.b(x) - 1).square().mean()
        return Loss(total=(a + b).detach(), parts={}, own={"a": a, "b": b})


def test_nothing_need_be_left_for_the_total(points):
    history = fit(Everything(), points, epochs=20, lr=0.05, **SETTINGS)
    assert history.train["own.a"][-1] < 0.1 * history.train["own.a"][0]
    assert history.train["own.b"][-1] < history.train["own.b"][0]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            lambda m, x: {"critics": m.critic(x[:, :2]).mean()},
            r"own names 'critics', .*encoder, decoder, crit",
        ),
        (lambda m, x: {"": m.critic(x[:, :2]).mean()}, r"own names '', which is no submodule"),
        (
            lambda m, x: {"critic": m.critic(x[:, :2]).mean(), "critic.0": m.critic(x[:, :2]).mean()},
            r"own names 'critic' and 'critic\.0', which share a parameter",
        ),
        (lambda m, x: {"critic": m.encoder(x).mean()}, r"own\['critic'\] does not depend on its player's"),
        (lambda m, x: {"critic": x.mean()}, r"own\['critic'\] does not depend on its player's parameters"),
    ],
    ids=["unknown", "whole model", "overlap", "another's", "constant"],
)
def test_players_that_do_not_fit_are_refused(points, own, message):
    model, plain = Adversarial(), Adversarial.loss
    before = state(model)
    model.loss = lambda x: Loss(plain(model, x).total, {}, own(model, x))
    with pytest.raises(ValueError, match=message):
        fit(model, points, epochs=1, **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_a_total_that_reaches_nobody_is_refused(points):
    model, plain = Adversarial(), Adversarial.loss
    model.loss = lambda x: Loss(plain(model, x).total.detach(), {}, plain(model, x).own)
    with pytest.raises(ValueError, match=r"total depends on no other parameters"):
        fit(model, points, epochs=1, **SETTINGS)


def test_the_terms_of_a_loss_stay_the_same(points):
    model, plain, calls = Adversarial(), Adversarial.loss, []

    def loss(x):
        calls.append(1)
        whole = plain(model, x)
        return whole if len(calls) < 3 else Loss(whole.total, whole.parts)

    model.loss = loss
    with pytest.raises(
        ValueError, match=r"has the terms \['total', 'reconstruction', 'betrayed'\] .* but had"
    ):
        fit(model, points, epochs=1, **SETTINGS)


# ---------------------------------------------------------------- settings of each player's Adam


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda m: [{"params": m.critic.parameters(), "lr": 1e-4}], r"has the setting 'lr' but knows"),
        (
            lambda m: [{"params": m.critic.parameters()}, {"params": [m.critic[0].bias]}],
            r"has critic\.0\.bias twice",
        ),
        (
            lambda m: [{"params": [nn.Parameter(torch.zeros(2))]}],
            r"a parameter that is not one of the model's",
        ),
        (lambda m: [{"params": m.critic.parameters(), "lr_scale": 0.0}], r"lr_scale is 0\.0 but must be pos"),
        (lambda m: [{"lr_scale": 0.1}], r"parameter_groups has a group without 'params'"),
    ],
    ids=["unknown", "twice", "stranger", "lr_scale", "no params"],
)
def test_parameter_groups_that_do_not_fit_are_refused(points, groups, message):
    model = Adversarial()
    model.parameter_groups = lambda: groups(model)
    with pytest.raises(ValueError, match=message):
        fit(model, points, epochs=1, **SETTINGS)


def test_a_checkpoint_with_other_groups_is_refused(points, tmp_path):
    file = tmp_path / "run.pt"
    fit(Grouped(), points, epochs=1, checkpoint=file, **SETTINGS)
    other = Grouped()
    other.parameter_groups = lambda: [{"params": other.critic.parameters(), "lr_scale": 0.5}]
    with pytest.raises(ValueError, match=r"a run with parameter_groups = .*'lr_scale': 0\.3.*, not .*0\.5"):
        fit(other, points, epochs=2, checkpoint=file, **SETTINGS)


# -------------------------------------------------------------------- what follows every step


class Noting(Adversarial):
    """It notes what is called, and how many of its 12 weights and biases have changed since the loss."""

    def loss(self, x):
        if self.training:
            self.before = state(self)
            self.events.append("loss")
        return super().loss(x)

    def after_step(self):
        changed = [n for n, p in self.named_parameters() if not torch.equal(p, self.before[n])]
        self.events.append(f"{len(changed)} changed")
        assert torch.equal(self.centre, self.before["centre"])
        super().after_step()


def test_after_step_is_called_once_after_each_update(points):
    model = Noting()
    model.events = []
    fit(model, points, epochs=2, test_images=points, **SETTINGS)
    assert model.events == ["loss", "12 changed"] * 8  # the test images call for neither
    assert model.steps == 8
    assert model.centre.abs().max() > 0


# ------------------------------------------------------- stopping, resuming, NaN, mixed precision


class Killed(Exception):
    """Stands for anything that ends a run from outside."""


def kill_at(model: nn.Module, call: int) -> nn.Module:
    plain, calls = model.loss, []

    def loss(x):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return plain(x)

    model.loss = loss
    return model


@pytest.mark.parametrize("checkpoint_steps", [None, 1, 3])
def test_a_killed_run_of_two_players_ends_where_it_would_have_ended(points, tmp_path, checkpoint_steps):
    file = tmp_path / "run.pt"
    options = {**SETTINGS, "epochs": 3, "test_images": points[:7], "lr": lambda epoch: 0.01 / (1 + epoch)}
    options |= {"checkpoint": file, "checkpoint_steps": checkpoint_steps}
    whole = Grouped()
    expected = fit(whole, points, **options)
    for call in (2, 5, 6, 9, 12, 14):
        file.unlink()
        with pytest.raises(Killed):
            fit(kill_at(Grouped(), call), points, **options)
        # Other first weights: all that matters has to come from the file, once there is one.
        resumed = Grouped(seed=99 if file.exists() else 0)
        history = fit(resumed, points, **options)
        assert same(resumed, whole), f"killed at call {call}"  # its buffers as well
        assert resumed.steps == 12
        assert (history.train, history.test) == (expected.train, expected.test)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_players_loss_that_is_not_finite_stops_the_run(points, tmp_path, monkeypatch, asynchronous):
    # On a GPU the host looks once an epoch; until then no weight changes.
    monkeypatch.setattr("aecourse.train.ASYNCHRONOUS", ("cpu",) if asynchronous else ())
    file, model, calls, before = tmp_path / "run.pt", Adversarial(), [], {}
    plain = model.loss

    def loss(x):
        calls.append(1)
        whole = plain(x)
        if len(calls) != 6:
            return whole
        before.update({name: p.detach().clone() for name, p in model.named_parameters()})
        return Loss(whole.total, whole.parts, {"critic": whole.own["critic"] * math.nan})

    model.loss = loss
    message = r"^The term own\.critic is not finite at epoch 2, step 2, though the loss is \d.*unharmed"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, points, epochs=3, checkpoint=file, **SETTINGS)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    whole, resumed = Adversarial(), Adversarial(seed=99)
    fit(whole, points, epochs=3, **SETTINGS)
    fit(resumed, points, epochs=3, checkpoint=file, **SETTINGS)
    assert same(whole, resumed)


def test_a_players_gradient_that_is_not_finite_stops_the_run(points):
    model, calls, before = Adversarial(), [], {}
    plain = model.loss

    def loss(x):
        calls.append(1)
        before.update(state(model))
        whole = plain(x)
        zero = (model.critic[0].bias * 0).abs().sum().sqrt() if len(calls) == 3 else 0
        return Loss(whole.total, whole.parts, {"critic": whole.own["critic"] + zero})

    model.loss = loss
    with pytest.raises(
        FloatingPointError, match=r"^The gradient of the loss is not finite at epoch 1, step 3"
    ):
        fit(model, points, epochs=1, **SETTINGS)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_two_players_in_mixed_precision(points):
    one, other = Adversarial(), Adversarial()
    plain = fit(one, points, epochs=5, **SETTINGS)
    mixed = fit(other, points, epochs=5, precision="bfloat16", **SETTINGS)
    for name in ("total", "own.critic"):
        assert mixed.train[name] == pytest.approx(plain.train[name], rel=0.02)
        assert mixed.train[name] != plain.train[name]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in other.parameters())
