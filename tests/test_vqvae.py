"""Discrete codes: the quantisers against closed forms, the bound against enumeration."""

import functools
import itertools
import math
import multiprocessing
import os

import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from aecourse import data
from aecourse.distributed import join
from aecourse.train import fit, mean_loss
from aecourse.zoo.code_priors import AutoregressivePrior, HistogramPrior
from aecourse.zoo.vqvae import (
    PRIORS,
    VQVAE,
    FiniteScalarQuantizer,
    VectorQuantizer,
    ema_step,
    fsq,
    k_means,
    nearest,
    straight_through,
    usage,
)

IMAGE = (1, 8, 8)
SMALL = {"channels": (4, 6), "prior_channels": 8, "prior_layers": 1}
SETTINGS = {"device": "cpu", "progress": False}


def small_model(quantizer: str = "ema", **options) -> VQVAE:
    """A grid of 2 x 2 codes of three numbers, one of 8 codes (of 12 with levels)."""
    options = {"codes": 8, "fsq_levels": (2, 3, 2)} | SMALL | options
    return VQVAE.build("conv", IMAGE, 3, quantizer=quantizer, **options).double()


def doubles(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64)


def squares(points: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Squared distances, ``(points, codes)``, in float64."""
    return (points.double().unsqueeze(1) - codes.double()).square().sum(dim=2)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


# ------------------------------------------------------------------------------ which code


def test_the_nearest_code_is_that_of_brute_force():
    z, codes = doubles(200, 5), doubles(30, 5)
    assert torch.equal(nearest(z, codes), squares(z, codes).argmin(dim=1))


def test_the_nearest_code_is_found_in_single_precision_far_from_the_origin():
    # The expanded square is wrong for most of these points.
    z, codes = torch.randn(200, 8) + 1e4, torch.randn(64, 8) + 1e4
    assert torch.equal(nearest(z, codes), squares(z, codes).argmin(dim=1))


def test_the_nearest_code_is_found_under_autocast():
    z, codes = torch.randn(200, 8), torch.randn(64, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(z, codes), squares(z, codes).argmin(dim=1))


def test_straight_through_is_the_value_of_one_with_the_gradient_of_the_other():
    z, q = (1e4 * torch.randn(3, 4)).requires_grad_(), torch.randn(3, 4, requires_grad=True)
    through = straight_through(z, q)
    assert torch.equal(through, q)  # z + (q - z) is rounded
    weights = torch.randn(3, 4)
    (through.square() * weights).sum().backward()
    assert torch.equal(z.grad, 2 * q.detach() * weights)
    assert q.grad is None


def test_positions_keep_their_place():
    """With a 1 x 1 encoder, exchanged positions exchange their indices, and the codes go to their places."""
    encoder, quantizer = nn.Conv2d(1, 3, 1), VectorQuantizer(50, 3)
    model = VQVAE(encoder, nn.Conv2d(3, 1, 1), quantizer, image_shape=(1, 3, 4), grid=(3, 4))
    x = torch.rand(5, 1, 3, 4)
    order = torch.randperm(12)
    moved = x.flatten(2)[:, :, order].view_as(x)
    indices = model.indices(x)
    assert torch.equal(model.indices(moved).flatten(1), indices.flatten(1)[:, order])
    row, column = 2, 1
    alone = quantizer.codebook[nearest(encoder(x)[:, :, row, column], quantizer.codebook)]
    assert torch.equal(quantizer.lookup(indices)[:, row, column], alone)
    expected = model.decoder(alone[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(model.decoder_output(quantizer.lookup(indices))[:, :, row, column], expected)


# ------------------------------------------------------------------------ who gets which gradient


@pytest.mark.parametrize("learning", ["ema", "gradient"])
@pytest.mark.parametrize("batch", [4, 7])
def test_the_commitment_draws_the_encoder_and_the_codebook_term_the_codes(learning, batch):
    quantizer = VectorQuantizer(6, 3, learning=learning, commitment=0.25).double()
    z = doubles(batch, 2, 5, 3).requires_grad_()
    quantized = quantizer(z)
    codes = quantizer.codebook.detach()
    points, k = z.detach().reshape(-1, 3), quantized.indices.flatten()
    distance = squares(points, codes).min(dim=1).values.view(batch, 10).sum(dim=1)
    torch.testing.assert_close(quantized.distance, distance)
    torch.testing.assert_close(quantized.penalty, (1.25 if learning == "gradient" else 0.25) * distance)
    quantized.penalty.mean().backward()
    torch.testing.assert_close(z.grad.reshape(-1, 3), 0.5 * (points - codes[k]) / batch, rtol=0, atol=1e-14)
    if learning == "gradient":
        n = F.one_hot(k, 6).double()
        expected = 2 * (n.sum(dim=0).unsqueeze(1) * codes - n.T @ points) / batch
        torch.testing.assert_close(quantizer.codebook.grad, expected, rtol=0, atol=1e-13)
    else:
        assert not [*quantizer.parameters()]


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "fsq"])
def test_the_reconstruction_reaches_the_encoder_as_if_nothing_were_quantised(quantizer):
    model = small_model(quantizer)
    z = model.encode(torch.rand(4, *IMAGE).double()).detach().requires_grad_()
    x = torch.rand(4, *IMAGE).double()
    through = model.quantizer(z).values
    model.likelihood.log_prob(x, model.decoder_output(through)).mean().backward()
    q = model.quantizer.lookup(model.quantizer(z).indices).detach().requires_grad_()
    model.likelihood.log_prob(x, model.decoder_output(q)).mean().backward()
    slope = 1 - z.detach().tanh().square() if quantizer == "fsq" else 1
    assert q.grad.abs().max() > 1e-4
    torch.testing.assert_close(z.grad, slope * q.grad, rtol=1e-12, atol=1e-16)
    assert all(parameter.grad is None for parameter in model.quantizer.parameters())


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "fsq"])
@pytest.mark.parametrize("batch", [3, 5])
def test_the_gradient_of_the_loss_is_that_of_its_terms(quantizer, batch):
    """The whole loss, put together by hand from the codes: its value, and what every weight gets."""
    model = small_model(quantizer, commitment=0.3)
    x = torch.rand(batch, *IMAGE).double()
    loss = model.loss(x)
    loss.total.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    z = model.encode(x)
    q = model.quantizer.lookup(model.indices(x)).detach().requires_grad_()
    reconstruction = -model.likelihood.log_prob(x, model.decoder(q.movedim(-1, 1))).mean()
    reconstruction.backward(retain_graph=True)
    at_z, beta = q.grad, 0.3
    if quantizer == "fsq":
        q, at_z, beta = q.detach(), (1 - z.detach().tanh().square()) * q.grad, 0
        torch.testing.assert_close(loss.parts["distance"], (z.tanh() - q).square().sum() / batch)
    else:
        torch.testing.assert_close(loss.parts["distance"], (z - q).square().sum() / batch)
    z.backward(at_z + 2 * beta * (z - q).detach() / batch)
    if quantizer == "gradient":
        codes = F.embedding(model.indices(x), model.quantizer.codebook)
        ((z.detach() - codes).square().sum() / batch).backward()
    penalty = {"ema": 0.3, "gradient": 1.3, "fsq": 0.0}[quantizer] * loss.parts["distance"]
    torch.testing.assert_close(loss.parts["reconstruction"], reconstruction)
    torch.testing.assert_close(loss.total, reconstruction + penalty)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    assert {name.split(".")[0] for name in got} >= {"encoder", "decoder"}
    assert ("quantizer.codebook" in got) == (quantizer == "gradient")
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "fsq"])
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_examples(quantizer):
    model, x = small_model(quantizer), torch.rand(6, *IMAGE).double()
    singles = [model.loss(example) for example in x.split(1)]
    for size in (3, 6):
        loss = model.loss(x[:size])
        for name in ("total", "reconstruction", "distance"):
            mean = sum(single.terms[name] for single in singles[:size]) / size
            torch.testing.assert_close(loss.terms[name], mean, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------- moving averages


def test_without_memory_the_moving_averages_are_k_means():
    z = doubles(300, 3) + 2 * torch.randint(3, (300, 1))
    start = z[:7].clone()
    theirs = KMeans(7, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0).fit(z.numpy())
    assert theirs.n_iter_ < 50
    ours = k_means(z, start, steps=50)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.cluster_centers_), rtol=0, atol=1e-12)
    one = k_means(z, start, steps=1)
    theirs = torch.stack([z[nearest(z, start) == k].mean(dim=0) for k in range(7)])
    torch.testing.assert_close(one, theirs, rtol=0, atol=1e-13)
    far = torch.full((1, 3), 1e3, dtype=torch.float64)
    assert torch.equal(k_means(z, torch.cat([start, far]))[-1:], far)  # no points: it stays


def test_moving_averages_have_a_closed_form_while_the_assignment_stays():
    z, k = doubles(40, 2), torch.arange(40) % 4
    counts, codes = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double(), doubles(5, 2)
    start, decay = codes.clone(), 0.9
    n0, sums = counts.clone(), codes * counts.unsqueeze(1)
    for t in range(1, 6):
        counts, sums = ema_step(counts, sums, z, k, decay)
        n = 10 * (1 - decay**t)
        weight = n / (n + decay**t * n0[:4])
        torch.testing.assert_close(counts[:4], n + decay**t * n0[:4], rtol=1e-13, atol=0)
        means = torch.stack([z[k == code].mean(dim=0) for code in range(4)])
        expected = torch.lerp(start[:4], means, weight.unsqueeze(1))
        torch.testing.assert_close((sums / counts.unsqueeze(1))[:4], expected, rtol=0, atol=1e-13)
        # A code without points keeps its place, and forgets its count.
        torch.testing.assert_close((sums / counts.unsqueeze(1))[4], start[4], rtol=0, atol=1e-14)
        torch.testing.assert_close(counts[4], 5 * torch.tensor(decay, dtype=torch.float64) ** t)


def test_the_quantiser_takes_moving_averages_of_what_the_loss_saw():
    quantizer = VectorQuantizer(4, 2, start="random", decay=0.8, restart=0.0).double().train()
    z = doubles(6, 5, 2)
    codebook, counts = quantizer.codebook.clone(), torch.ones(4).double()
    sums = codebook.clone()
    for _ in range(3):
        quantized = quantizer(z)
        # The code and its index are of the same codebook: that before this step.
        assert torch.equal(quantized.values, codebook[quantized.indices])
        quantizer.after_step()
        counts, sums = ema_step(counts, sums, z.view(-1, 2), quantized.indices.flatten(), 0.8)
        codebook = sums / counts.unsqueeze(1)
        torch.testing.assert_close(quantizer.codebook, codebook, rtol=0, atol=1e-14)
        torch.testing.assert_close(quantizer.counts, counts, rtol=0, atol=1e-14)
        codebook = quantizer.codebook.clone()


def clustered() -> torch.Tensor:
    """1,024 points in 40 clusters of 64 dimensions."""
    return doubles(40, 64)[torch.arange(1024) % 40] + 0.1 * doubles(1024, 64)


def test_codes_without_points_keep_their_size_and_others_come_in():
    z = clustered().view(16, 64, 64)
    quantizer = VectorQuantizer(512, 64, start="random", restart=0.0).double()
    before = quantizer.codebook.clone()
    used = []
    for step in range(20):
        indices = quantizer(z).indices
        used.append(usage(indices, 512)[1])
        quantizer.after_step()
        if step == 0:
            unused = torch.ones(512, dtype=torch.bool).index_fill(0, indices.flatten(), False)
            assert unused.sum() > 400
            torch.testing.assert_close(quantizer.codebook[unused], before[unused], rtol=1e-12, atol=1e-12)
    assert used[-1] > 25  # a start that spoils the averages leaves one, soon


def test_codes_that_get_no_points_for_long_stay_finite():
    quantizer = VectorQuantizer(8, 2, restart=0.0, decay=0.5, start="random")
    quantizer.codebook[0] = torch.tensor([100.0, 100.0])
    quantizer.sums[0] = quantizer.codebook[0]
    z = torch.randn(10, 3, 2)
    for _ in range(400):  # 2^-400 is zero in single precision
        quantizer(z)
        quantizer.after_step()
    torch.testing.assert_close(quantizer.codebook[0], torch.tensor([100.0, 100.0]))
    assert torch.isfinite(quantizer.codebook).all()


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_the_codes_start_by_k_means_on_the_first_batch(learning):
    centres = 10 * doubles(5, 3)
    z = (centres[torch.arange(60) % 5] + 0.01 * doubles(60, 3)).view(10, 6, 3)
    quantizer = VectorQuantizer(30, 3, learning=learning, restart=0.0).double()
    quantizer(z)
    quantizer.after_step()
    means = quantizer.codebook.detach()
    k = nearest(z.view(-1, 3), means)
    n = torch.bincount(k, minlength=30).double()
    # Each is the mean of its points; counts are those of the batch, sums are codes times counts.
    for code in n.nonzero().flatten().tolist():
        torch.testing.assert_close(means[code], z.view(-1, 3)[k == code].mean(dim=0), rtol=0, atol=1e-6)
    torch.testing.assert_close(quantizer.counts, n)
    torch.testing.assert_close(quantizer.sums, means * n.unsqueeze(1), rtol=1e-5, atol=1e-5)
    assert (n > 0).sum() > 15
    # It happens once, and nothing of it is undone.
    before = means.clone()
    for _ in range(5):
        assert usage(quantizer(z).indices, 30)[1] == (n > 0).sum()
        quantizer.after_step()
    torch.testing.assert_close(quantizer.codebook.detach()[n > 0], before[n > 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_a_code_that_is_dead_takes_a_point_and_keeps_it(learning):
    quantizer = VectorQuantizer(4, 2, start="random", restart=0.1, learning=learning, decay=0.9).double()
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0], [10, 10], [500, 500], [-500, 500]]))
        quantizer.counts.copy_(torch.tensor([10.0, 10, 0.3, 0.7]))
        quantizer.sums.copy_(quantizer.codebook * quantizer.counts.unsqueeze(1))
    z = (torch.tensor([[0.0, 0], [10, 10]]).double()[torch.arange(20) % 2] + doubles(20, 2)).view(5, 4, 2)
    quantizer(z)
    quantizer.after_step()
    # The fair share is 5: the third code is below a tenth of it, the fourth, at 0.63, is not.
    assert quantizer.codebook[3].tolist() == [-500, 500]
    point = quantizer.codebook[2].clone()
    assert ((z.view(-1, 2) - point).abs().sum(dim=1) == 0).sum() == 1
    assert quantizer.counts[2] > 0.1 * quantizer.counts.mean()
    torch.testing.assert_close(quantizer.sums[2], point.detach() * quantizer.counts[2])
    # Where nobody comes near it, it stays for a while: neither pulled back nor restarted.
    elsewhere = torch.tensor([[0.0, -9], [30, 20]]).double()[torch.arange(20) % 2].view(5, 4, 2)
    for _ in range(3):
        assert 2 not in quantizer(elsewhere).indices
        quantizer.after_step()
        torch.testing.assert_close(quantizer.codebook[2], point, rtol=1e-12, atol=1e-12)


def test_restarts_take_different_points_and_all_of_them_if_there_are_too_few():
    for codes, points in ((4, 6), (9, 6)):
        quantizer = VectorQuantizer(codes + 1, 2, start="random", restart=0.5).double()
        quantizer.counts[1:] = 0
        z = doubles(points, 2) + 100 * torch.eye(2, dtype=torch.float64)[0]
        quantizer.codebook[0] = z.mean(dim=0)
        quantizer.codebook[1:] = -100
        quantizer(z)
        quantizer.after_step()
        taken = {tuple(code) for code in quantizer.codebook[1:].tolist()}
        assert taken <= {tuple(point) for point in z.tolist()}
        assert len(taken) == min(codes, points)


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
def test_looking_moves_nothing(quantizer):
    model, x = small_model(quantizer), torch.rand(6, *IMAGE).double()
    fit(model, x, epochs=1, batch_size=3, **SETTINGS)
    before = state(model)
    mean_loss(model, x)
    model.after_step()  # the loss in evaluation mode left it nothing to do
    model.train()
    for look in (model.bound, model.indices, model.reconstruct, model.usage):
        look(x)
    model.after_step()
    assert changed(before, model) == set()
    model.loss(x)
    model.after_step()
    moved = {"quantizer.counts", "quantizer.sums", "quantizer.codebook"}
    assert changed(before, model) - {"quantizer.codebook"} == moved - {"quantizer.codebook"}
    assert ("quantizer.codebook" in changed(before, model)) == (quantizer == "ema")


def test_gradient_descent_on_the_codebook_term_ends_where_every_code_is_the_mean_of_its_points():
    quantizer, z = VectorQuantizer(5, 2, learning="gradient", commitment=0.0).double(), doubles(60, 2)
    with torch.no_grad():
        quantizer.codebook.copy_(z[:5])
    for _ in range(150):
        (gradient,) = torch.autograd.grad(quantizer(z).penalty.sum(), quantizer.codebook)
        with torch.no_grad():
            quantizer.codebook -= 0.02 * gradient
    k = nearest(z, quantizer.codebook)
    means = torch.stack([z[k == code].mean(dim=0) for code in range(5)])
    torch.testing.assert_close(quantizer.codebook.detach(), means, rtol=0, atol=1e-4)


# ------------------------------------------------------------------- several processes, a kill

ROWS = {"start": range(9), "step": range(5, 12), "one": range(1)}  # uneven parts; one row for two processes


def states_after_each_batch(learning: str, rank: int, size: int, images: torch.Tensor) -> list[dict]:
    torch.manual_seed(rank)
    quantizer = VectorQuantizer(6, 2, learning=learning, restart=0.9, decay=0.5).double()
    states = []
    with join(torch.device("cpu"), seed=3) as team:
        assert team.size == size
        team.agree([*quantizer.parameters(), *quantizer.buffers()])
        torch.manual_seed(3 + 7919 * rank)
        for rows in ROWS.values():
            own, _ = team.share(torch.tensor(rows))
            with team.noise():
                quantizer(images[own])
            quantizer.after_step()
            states.append(state(quantizer))
    return states


def one_of_two(rank: int, folder: str) -> None:
    """In a process of its own."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    images = torch.load(f"{folder}/images.pt")
    result = {
        learning: states_after_each_batch(learning, rank, 2, images) for learning in ("ema", "gradient")
    }
    torch.save(result, f"{folder}/{rank}.pt")
    os._exit(0)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What two processes came to; copies of this one, which costs nothing, and has no backward pass."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(1)
    torch.save(doubles(12, 3, 2), folder / "images.pt")
    copies = multiprocessing.get_context("fork")
    running = [copies.Process(target=one_of_two, args=(rank, str(folder))) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=60)
        assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_two_processes_have_the_codes_of_one(of_two, learning):
    first, second = (torch.load(of_two / f"{rank}.pt")[learning] for rank in range(2))
    alone = states_after_each_batch(learning, 0, 1, torch.load(of_two / "images.pt"))
    for ours, one, other in zip(alone, first, second):
        for name, value in ours.items():
            assert torch.equal(one[name], other[name]), name
            torch.testing.assert_close(one[name], value, rtol=1e-12, atol=1e-12, msg=name)
    # Codes were restarted: they are points of the batch.
    points = {tuple(point) for point in torch.load(of_two / "images.pt")[5:12].flatten(0, 1).tolist()}
    assert points & {tuple(code) for code in alone[1]["codebook"].tolist()}


@pytest.mark.parametrize("quantizer", ["ema", "gradient"])
@pytest.mark.parametrize("killed", [1, 4])
def test_a_run_that_was_killed_goes_on_to_the_same_numbers(quantizer, killed, tmp_path):
    x = torch.rand(20, *IMAGE).double()
    settings = {"epochs": 3, "batch_size": 8, "lr": 0.01} | SETTINGS
    options = {"restart": 0.9, "decay": 0.5}  # something restarts at every step

    torch.manual_seed(1)
    whole = small_model(quantizer, **options)
    history = fit(whole, x, **settings)
    torch.manual_seed(1)
    model = small_model(quantizer, **options)
    steps, plain = itertools.count(1), model.after_step

    def after_step():
        if next(steps) == killed + 1:
            raise KeyboardInterrupt
        plain()

    model.after_step = after_step
    file = {"checkpoint": tmp_path / "run.pt", "checkpoint_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        fit(model, x, **settings, **file)
    torch.manual_seed(5)
    model = small_model(quantizer, **options)
    resumed = fit(model, x, **settings, **file)
    assert resumed.train == history.train
    assert changed(state(whole), model) == set()


# ----------------------------------------------------------------------------------- FSQ


def as_in_the_paper(z: torch.Tensor, odd: int) -> torch.Tensor:
    """For an odd number of levels, where the paper's shift is zero."""
    half = (odd - 1) / 2
    return (half * z.tanh()).round() / half


def test_levels_are_those_of_the_paper_where_they_are_odd():
    z = 3 * doubles(100, 2)
    torch.testing.assert_close(fsq(z, (5, 5)), as_in_the_paper(z, 5), rtol=0, atol=1e-15)
    torch.testing.assert_close(fsq(z, (7, 7)), as_in_the_paper(z, 7), rtol=0, atol=1e-15)


@pytest.mark.parametrize("level", [2, 3, 4, 7, 8])
def test_every_level_is_reached_and_they_are_symmetric(level):
    z = torch.linspace(-9, 9, 1000, dtype=torch.float64).unsqueeze(1).requires_grad_()
    values = fsq(z, (level,))
    expected = torch.linspace(-1, 1, level, dtype=torch.float64)
    torch.testing.assert_close(values.unique(), expected)
    torch.testing.assert_close(fsq(-z, (level,)), -values)
    # The nearest level, with the slope of tanh.
    chosen = expected[nearest(z.tanh(), expected.unsqueeze(1))].unsqueeze(1)
    torch.testing.assert_close((values - z.tanh()).abs(), (chosen - z.tanh()).abs())
    values.sum().backward()
    torch.testing.assert_close(z.grad, 1 - z.detach().tanh().square(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_indices_and_codes_are_one_to_one(dtype):
    quantizer = FiniteScalarQuantizer((8, 5, 3, 5)).to(dtype)
    assert (quantizer.count, quantizer.dim) == (600, 4)
    every = torch.arange(600)
    codes = quantizer.lookup(every)
    assert len(codes.unique(dim=0)) == 600
    # Far inside the range of the level, so that rounding is not asked.
    quantized = quantizer((codes * 0.99).atanh().unsqueeze(0))
    assert torch.equal(quantized.indices[0], every)
    assert quantized.values.dtype == dtype
    assert torch.equal(quantized.values[0], codes)
    drawn = quantizer((torch.randn(500, 9, 4)).to(dtype))
    assert 0 <= drawn.indices.min() < drawn.indices.max() < 600
    assert torch.equal(quantizer.lookup(drawn.indices), drawn.values)
    assert len(drawn.indices.unique()) > 500


def test_extreme_numbers_are_quantised_to_the_ends():
    z = torch.tensor([[1e30, -1e30], [math.inf, -math.inf]])
    for levels in ((2, 8), (5, 4)):
        quantized = FiniteScalarQuantizer(levels)(z)
        assert quantized.values.tolist() == [[1, -1], [1, -1]]
        assert quantized.indices.tolist() == [levels[0] - 1] * 2


def test_finite_scalars_have_no_penalty():
    z = doubles(4, 3, 2)
    quantized = FiniteScalarQuantizer((3, 4)).double()(z)
    assert quantized.penalty.tolist() == [0] * 4
    torch.testing.assert_close(quantized.distance, (z.tanh() - quantized.values).square().sum(dim=(1, 2)))


# ------------------------------------------------------------------- the bound, exactly


class Tiny(nn.Module):
    """Three positions from six pixels; and back, six logits from three codes."""

    def __init__(self, inputs: int, outputs: tuple[int, ...]):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, math.prod(outputs))
        )
        self.outputs = outputs

    def forward(self, values):
        return self.net(values).unflatten(1, self.outputs)


@pytest.fixture
def tiny() -> VQVAE:
    """K = 4 codes, T = 3 positions, 6 binary pixels."""
    model = VQVAE(
        Tiny(6, (2, 3)),
        Tiny(6, (6,)),
        VectorQuantizer(4, 2),
        image_shape=(6,),
        grid=(3,),
        prior_channels=6,
        prior_layers=2,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # images that differ in probability
        model.priors["autoregressive"].place.normal_()
    return model.eval()


def every(options: int, places: int) -> torch.Tensor:
    return torch.tensor([*itertools.product(range(options), repeat=places)])


@pytest.mark.parametrize("prior", PRIORS)
def test_the_bound_is_the_best_that_one_code_can_do(tiny, prior):
    """log p(x) by all 64 codes: all images sum to 1, and the gap is -log p(k|x) of the encoder's code."""
    for fitted in ("histogram", "autoregressive"):
        tiny.priors[fitted].fitted.fill_(True)
    tiny.priors["histogram"].logits.copy_(doubles(4))
    codes, images = every(4, 3), every(2, 6).double()
    log_joint = torch.stack(
        [
            tiny.log_likelihood(images, code.expand(64, 3)) + tiny.log_prior(code.expand(64, 3), prior)
            for code in codes
        ]
    )
    evidence = log_joint.logsumexp(dim=0)
    torch.testing.assert_close(evidence.exp().sum(), torch.ones(()).double(), rtol=0, atol=1e-12)
    indices, bound = tiny.indices(images), tiny.bound(images, prior)
    place = (indices.unsqueeze(0) == codes.unsqueeze(1)).all(dim=2).int().argmax(dim=0)
    log_posterior = log_joint - evidence
    expected = evidence + log_posterior.gather(0, place.unsqueeze(0)).squeeze(0)
    torch.testing.assert_close(bound, expected, rtol=0, atol=1e-12)
    assert (bound <= evidence).all()
    best = log_joint.max(dim=0).values
    assert (bound <= best + 1e-12).all()
    assert len(place.unique()) > 1
    if prior == "uniform":  # what training leaves out is a constant
        reconstruction = torch.stack([tiny.loss(image).parts["reconstruction"] for image in images.split(1)])
        torch.testing.assert_close(bound, -reconstruction - 3 * math.log(4), rtol=0, atol=1e-12)


def test_the_best_independent_prior_is_the_histogram(tiny):
    indices = torch.randint(4, (50, 3)) * torch.randint(2, (50, 3))
    prior = HistogramPrior(4, (3,)).double()
    torch.testing.assert_close(prior.log_prob(indices), torch.full((50,), -3 * math.log(4)).double())
    prior.fit_(indices, smoothing=0.0)
    n = torch.bincount(indices.flatten(), minlength=4).double()
    entropy = torch.special.entr(n / n.sum()).sum()
    rate = -prior.log_prob(indices).mean()
    torch.testing.assert_close(rate, 3 * entropy)
    torch.testing.assert_close(usage(indices, 4)[0].double(), entropy.exp(), rtol=1e-6, atol=0)
    # Any other is worse.
    for _ in range(5):
        other = (n.log() + 0.3 * doubles(4)).log_softmax(dim=0)
        assert -other[indices].sum(dim=1).mean() > rate
    prior.fit_(torch.zeros(5, 3, dtype=torch.int64))  # smoothed by one half each: nothing is impossible
    expected = torch.tensor([15.5, 0.5, 0.5, 0.5]).double() / 17
    torch.testing.assert_close(prior.logits.softmax(dim=0), expected)


def test_fitting_the_histogram_counts_the_codes_of_all_images(tiny):
    images = every(2, 6).double()
    tiny.fit_histogram(images, smoothing=0.0)
    n = torch.bincount(tiny.indices(images).flatten(), minlength=4).double()
    torch.testing.assert_close(tiny.priors["histogram"].logits.softmax(dim=0), n / n.sum())
    perplexity, used = tiny.usage(images)
    assert used == (n > 0).sum()
    assert perplexity == pytest.approx(float(torch.special.entr(n / n.sum()).sum().exp()), rel=1e-6)
    rate = -tiny.log_prior(tiny.indices(images)).mean()
    torch.testing.assert_close(rate, 3 * torch.tensor(math.log(perplexity)).double(), rtol=1e-6, atol=0)


def test_usage_lies_between_one_and_what_there_is():
    perplexity, used = usage(torch.arange(6).view(2, 3), 6)
    assert (float(perplexity), int(used)) == (pytest.approx(6), 6)
    perplexity, used = usage(torch.full((2, 3), 5), 6)
    assert (float(perplexity), int(used)) == (1, 1)
    # A batch of six positions can show six codes at most, whatever the book.
    perplexity, used = usage(torch.arange(6), 512)
    assert (float(perplexity), int(used)) == (pytest.approx(6), 6)
    model, x = small_model(codes=64), torch.rand(2, *IMAGE).double()
    parts = model.loss(x).parts
    expected = usage(model.indices(x), 64)
    assert parts["perplexity"] == pytest.approx(float(expected[0]))
    assert parts["codes_used"] == expected[1]
    assert parts["codes_used"] <= 8


# --------------------------------------------------------------------- the autoregressive prior


@pytest.mark.parametrize("grid", [(3,), (2, 2)])
def test_the_prior_over_codes_sums_to_one(grid):
    prior = AutoregressivePrior(3, grid, channels=5, layers=2).double()
    codes = every(3, math.prod(grid)).view(-1, *grid)
    total = prior.log_prob(codes).exp().sum()
    torch.testing.assert_close(total, torch.ones(()).double(), rtol=0, atol=1e-12)
    # It is one model of them together: the codes of an image depend on each other.
    flat = codes.flatten(1)
    probability = prior.log_prob(codes).exp()
    first, last = (
        torch.zeros(3).double().index_add(0, flat[:, place], probability) for place in (0, len(flat[0]) - 1)
    )
    joint = torch.zeros(9).double().index_add(0, 3 * flat[:, 0] + flat[:, -1], probability).view(3, 3)
    assert (joint - first.outer(last)).abs().max() > 1e-3


def test_each_code_depends_on_all_that_come_before_it_and_on_no_other():
    height, width = 3, 4
    prior = AutoregressivePrior(3, (height, width), channels=6, layers=2).double()
    embedded = doubles(1, height, width, 6).requires_grad_()
    prior.embedding = nn.Identity()
    prior.plane = (height, width, 6)
    logits = prior.logits(embedded).flatten(2)[0]
    seen = torch.stack(
        [torch.autograd.grad(logits[:, t].square().sum(), embedded, retain_graph=True)[0] for t in range(12)]
    )
    seen = seen.abs().sum(dim=-1).view(12, 12) > 0
    assert not seen.triu().any()
    # Three layers of 5 and 3 rows reach every earlier position, but for what lies far to the right above.
    assert seen[-1].tolist() == [True] * 11 + [False]
    assert seen[1:, 0].tolist()[:3] == [True] * 3
    assert all(seen[t, t - 1] for t in range(1, 12) if t % width)
    assert all(seen[t, t - width] for t in range(width, 12))
    # Behind the first layer, a position's own vector is no secret, and goes through every block.
    hidden = doubles(1, 6, height, width).requires_grad_()
    for block in prior.blocks:
        (own,) = torch.autograd.grad(block(hidden)[..., 1, 2].square().sum(), hidden)
        assert own[..., 1, 2].abs().max() > 0


@pytest.mark.parametrize("name", ["histogram", "autoregressive"])
def test_draws_from_a_prior_have_its_probabilities(name):
    if name == "histogram":
        prior = HistogramPrior(3, (2,))
        prior.fit_(torch.tensor([0, 0, 0, 0, 1, 1, 2]))
    else:
        prior = AutoregressivePrior(3, (2,), channels=8, layers=1)
        with torch.no_grad():
            for layer in (prior.embedding, prior.first, prior.head):
                layer.weight.mul_(4)  # far from independent
    draws = prior.sample(4000)
    found = torch.bincount(3 * draws[:, 0] + draws[:, 1], minlength=9) / 4000
    exact = prior.log_prob(every(3, 2)).exp().detach()
    exact_joint = exact.view(3, 3)
    dependence = (exact_joint - exact_joint.sum(dim=1).outer(exact_joint.sum(dim=0))).abs().max()
    assert (dependence > 0.06) == (name == "autoregressive")
    assert (found - exact).abs().max() < 4 * 0.5 / math.sqrt(4000)


# ------------------------------------------------------------------------------- stages


def test_the_second_stage_trains_the_prior_alone_on_the_codes_of_a_frozen_encoder():
    torch.manual_seed(0)
    model = small_model(batch_norm=True)
    x = torch.rand(30, *IMAGE).double()
    first, second = model.stages()
    assert first is model
    fit(first, x, epochs=2, batch_size=10, **SETTINGS)
    before = state(model)
    names = {name for name, _ in second.named_parameters()}
    assert names == {f"prior.{name}" for name, _ in model.priors["autoregressive"].named_parameters()}
    history = fit(second, x, epochs=5, batch_size=10, lr=0.01, **SETTINGS)
    moved = changed(before, model)
    assert moved
    assert all(name.startswith("priors.autoregressive.") for name in moved)
    assert history.train["total"] == history.train["rate"]
    assert history.train["rate"][-1] < history.train["rate"][0] < 1.2 * 4 * math.log(8)
    second.train()
    assert not model.encoder.training
    assert not model.quantizer.training
    rate = -model.priors["autoregressive"].log_prob(model.indices(x)).mean()
    assert torch.equal(second.loss(x).total, rate)
    assert torch.equal(model.bound(x), model.bound(x, "autoregressive"))
    torch.testing.assert_close(model.bound(x).mean(), model.log_likelihood(x, model.indices(x)).mean() - rate)


def test_the_stage_takes_the_encoder_along():
    model = small_model().float()
    stage = model.stages()[1].to(torch.float64)
    assert {value.dtype for value in model.encoder.parameters()} == {torch.float64}
    assert model.quantizer.codebook.dtype == torch.float64
    assert stage.loss(torch.rand(2, *IMAGE).double()).total.dtype == torch.float64


def test_sampling_says_that_no_prior_was_fitted():
    model, x = small_model(), torch.rand(8, *IMAGE).double()
    with pytest.raises(RuntimeError, match=r"^No prior over codes was fitted.*fit\(model\.stages\(\)\[1\]"):
        model.sample(3)
    for name in ("histogram", "autoregressive"):
        for call in (model.sample, model.bound):
            with pytest.raises(RuntimeError, match=f"^The {name} prior over codes was not fitted: .*fit"):
                call(3 if call == model.sample else x, name)
    assert model.sample(3, "uniform").shape == (3, *IMAGE)
    assert torch.equal(model.bound(x), model.bound(x, "uniform"))
    model.fit_histogram(x)
    assert torch.equal(model.bound(x), model.bound(x, "histogram"))
    assert model.sample(3).shape == (3, *IMAGE)
    # What was fitted is kept with the weights.
    other = small_model()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.bound(x), model.bound(x))
    other.sample(1)


def test_samples_are_decoded_codes_of_the_prior_that_is_asked_for(tiny):
    drawn = {name: torch.full((2, 3), place) for place, name in enumerate(PRIORS)}
    for name, prior in tiny.priors.items():
        prior.fitted.fill_(True)
        prior.sample = functools.partial(lambda name, count: drawn[name], name)
        assert torch.equal(tiny.sample(2, name), tiny.decode(drawn[name]))
    assert torch.equal(tiny.sample(2), tiny.decode(drawn["autoregressive"]))
    tiny.priors["autoregressive"].fitted.fill_(False)
    assert torch.equal(tiny.sample(2), tiny.decode(drawn["histogram"]))


# ------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    images = data.load("digits")
    return (images.train > 0.5).float(), (images.test > 0.5).float()


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "fsq"])
def test_digits(digits, quantizer):
    """Four codes of 16 an image. All are in use, and the bound rises with each prior."""
    train, test = digits
    torch.manual_seed(0)
    options = {"codes": 16, "positions": 4, "hidden": (64,), "activation": nn.Tanh}
    options |= {"fsq_levels": (4, 4), "prior_channels": 16, "prior_layers": 1}
    dim = 2 if quantizer == "fsq" else 4
    model = VQVAE.build("mlp", IMAGE, dim, quantizer=quantizer, **options)
    first, second = model.stages()
    history = fit(first, train, epochs=12, batch_size=32, lr=5e-3, **SETTINGS)
    fit(second, train, epochs=5, batch_size=64, lr=0.01, **SETTINGS)
    model.fit_histogram(train)
    uniform, histogram, best = (model.bound(test, name).mean() for name in reversed(PRIORS))
    perplexity, used = model.usage(train)
    assert history.train["reconstruction"][-1] < (14 if quantizer == "fsq" else 12.5)
    assert used == 16
    assert perplexity > 13.5
    assert histogram > uniform + 0.1
    assert best > histogram + 0.6
    assert best > -23


# ------------------------------------------------------------------------- shapes, refusals


@pytest.mark.parametrize(
    ("kind", "shape", "grid", "options"),
    [
        ("mlp", (1, 8, 9), (5,), {"positions": 5, "hidden": (7,)}),
        ("mlp", (6,), (16,), {}),
        ("conv", (3, 8, 9), (2, 2), {"channels": (4, 5)}),
        ("conv1d", (2, 9), (4,), {"channels": (4,)}),
        ("residual", (1, 8, 9), (4, 4), {"channels": (4,), "batch_norm": True}),
    ],
)
@pytest.mark.parametrize("quantizer", ["ema", "gradient", "fsq"])
def test_any_network_gives_a_grid_of_codes(kind, shape, grid, options, quantizer):
    options = options | {"fsq_levels": (3, 4), "prior_channels": 4, "prior_layers": 1}
    for likelihood in ({}, {"likelihood": "categorical", "levels": 3}):
        model = VQVAE.build(kind, shape, 2, quantizer=quantizer, codes=12, **options, **likelihood)
        x = torch.rand(4, *shape)
        model.validate(x)
        assert model.grid == grid
        assert model.encode(x).shape == (4, *grid, 2)
        assert model.indices(x).shape == (4, *grid)
        if not likelihood:
            assert model.loss(x).total.shape == ()
            assert model.bound(x).shape == (4,)
        assert model.reconstruct(x).shape == x.shape
        assert model.sample(3, "uniform").shape == (3, *shape)


@pytest.mark.parametrize("quantizer", ["ema", "gradient", "fsq"])
def test_bounds_stay_in_single_precision_under_autocast(quantizer):
    model, x = small_model(quantizer).float(), torch.rand(6, *IMAGE)
    exact = model.loss(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(x)
        stage = model.stages()[1].loss(x)
        bound = model.bound(x)
    assert {value.dtype for value in (*loss.terms.values(), stage.total, bound)} == {torch.float32}
    assert bound.isfinite().all()
    torch.testing.assert_close(loss.total, exact.total, rtol=0.05, atol=0.1)


def quantizer_of(**options):
    return lambda: VectorQuantizer(**{"codes": 4, "dim": 2} | options)


def model_of(**options):
    return lambda: VQVAE.build("conv", IMAGE, 3, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (quantizer_of(codes=0), ValueError, r"^codes is 0 but must be at least 1"),
        (quantizer_of(codes=2.5), TypeError, r"^codes is 2\.5 but must be a whole number"),
        (quantizer_of(dim=0), ValueError, r"^dim is 0 but must be at least 1"),
        (quantizer_of(learning="sgd"), ValueError, r"^learning is 'sgd' but must be one of \('ema'"),
        (quantizer_of(start="zeros"), ValueError, r"^start is 'zeros' but must be one of \('k-means'"),
        (lambda: fsq(torch.zeros(3, 2), (5, 5, 5)), ValueError, r"^levels holds 3 numbers but z has 2 dim"),
        (lambda: FiniteScalarQuantizer((10,) * 30), ValueError, r"^levels is .* but 2\^31 are the most"),
        (quantizer_of(commitment=math.inf), ValueError, r"^commitment is inf but must be at least 0 and fin"),
        (
            lambda: small_model().fit_histogram(torch.rand(2, *IMAGE).double(), smoothing=-1),
            ValueError,
            r"^smoothing is -1 but must be at least 0",
        ),
        (quantizer_of(commitment=-1), ValueError, r"^commitment is -1 but must be at least 0"),
        (quantizer_of(decay=1.0), ValueError, r"^decay is 1\.0 but must be at least 0 and less than 1"),
        (quantizer_of(restart=-0.1), ValueError, r"^restart is -0\.1 but must be at least 0 and less than 1"),
        (lambda: FiniteScalarQuantizer((5, 1)), ValueError, r"^a level is 1 but must be at least 2"),
        (lambda: FiniteScalarQuantizer(()), TypeError, r"^levels is \(\) but needs a sequence"),
        (lambda: FiniteScalarQuantizer(8), TypeError, r"^levels is 8 but needs a sequence"),
        (model_of(quantizer="vq"), ValueError, r"^quantizer is 'vq' but must be one of \('ema'"),
        (model_of(quantizer="fsq", fsq_levels=(5, 5)), ValueError, r"^latent_dim is 3 but fsq_levels is"),
        (model_of(hidden=(5,)), ValueError, r"^hidden is \(5,\) but 'conv' has no fully connected layers"),
        (model_of(positions=0), ValueError, r"^positions is 0 but must be at least 1"),
        (model_of(likelihood="poisson"), ValueError, r"^likelihood is 'poisson' but must be one of"),
        (model_of(betta=2), TypeError, "betta"),
        (lambda: AutoregressivePrior(3, (2, 2, 2)), ValueError, r"^grid is \(2, 2, 2\) but needs"),
        (lambda: nearest(torch.ones(3, 2), torch.ones(4, 3)), ValueError, r"^codes has shape \(4, 3\)"),
        (lambda: small_model().sample(0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda: small_model().bound(torch.rand(2, *IMAGE).double(), "gaussian"), ValueError, "^prior is 'g"),
        (lambda: small_model().loss(torch.rand(2, 1, 4, 4)), ValueError, r"^x has shape \(2, 1, 4, 4\)"),
        (lambda: small_model().validate(torch.rand(2, 1, 4, 4)), ValueError, r"^images has shape"),
        (lambda: small_model().validate(torch.full((2, *IMAGE), math.nan)), ValueError, r"^images holds 128"),
        (
            lambda: small_model().validate(torch.full((2, *IMAGE), 9.0)),
            ValueError,
            r"^images has values from",
        ),
        (lambda: small_model().stages()[1].validate(torch.rand(2, 3)), ValueError, r"^images has shape"),
        (lambda: small_model().fit_histogram(torch.rand(2, 3)), ValueError, r"^images has shape"),
    ],
)
def test_bad_input_is_refused_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_networks_that_give_another_grid_are_refused():
    model = VQVAE(
        nn.Conv2d(1, 3, 2, 2), nn.Conv2d(3, 1, 1), VectorQuantizer(4, 3), image_shape=IMAGE, grid=(2, 2)
    )
    with pytest.raises(
        ValueError, match=r"^the encoder's output has shape \(2, 3, 4, 4\) but this model needs"
    ):
        model.loss(torch.rand(2, *IMAGE))


def test_any_numbers_suit_a_gaussian_likelihood():
    far = torch.full((2, *IMAGE), 9.0)
    with pytest.raises(ValueError, match=r"^images has values from"):
        small_model().validate(far)
    assert small_model(likelihood="gaussian").validate(far) is None
