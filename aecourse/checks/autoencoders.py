"""Assignment `autoencoders`: two prices for a code, noise and the loss with it, the contractive penalty, and
the best linear denoiser. All but `corrupt` are summed over dimensions and averaged over the batch.
"""

import contextlib
import math
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from aecourse.checks import parts
from aecourse.checks.core import (
    UNKNOWN,
    Case,
    Cause,
    Draw,
    Task,
    Wrong,
    at_least,
    at_most,
    f32,
    f64,
    finite,
    prepared,
    same,
    shape,
)
from aecourse.checks.kinds import LIMIT, gradients, stability, values, values_in_evaluation
from aecourse.checks.naming import BITS, spread
from aecourse.checks.parts import line
from aecourse.checks.student import Student, uses_generator

# ---- shared by several tasks: in each list of slips the first is right

READY_MADE_NOISE = ("aecourse.data.add_gaussian_noise",)

# From terms (batch, units) to a number.
TO_A_NUMBER = [
    ("", lambda t: t.sum(1).mean()),
    ("the mean runs over the units too, not over the batch alone", lambda t: t.mean()),
    ("the batch is summed, not averaged", lambda t: t.sum()),
    ("the units are averaged and the batch is summed: it is the other way round", lambda t: t.mean(1).sum()),
    ("the mean over the batch is missing: one number per example is left", lambda t: t.sum(1)),
    ("one number per unit is left: the units are to be summed", lambda t: t.mean(0)),
    ("one number per unit is left: the units are to be summed", lambda t: t.sum(0)),
    ("the terms are neither summed nor averaged", lambda t: t),
    ("a dimension of size 1 is left", lambda t: t.sum(1).mean(0, keepdim=True)),
    ("a dimension of size 1 is left", lambda t: t.sum(1, keepdim=True).mean(0, keepdim=True)),
    ("it is divided by the batch size twice", lambda t: t.sum(1).mean() / len(t)),
    ("only the first example is used", lambda t: t[0].sum()),
]
HALVED = [("", 1.0), ("there is a half too many", 0.5), ("it is doubled", 2.0), ("the sign is flipped", -1.0)]

# At sigma = 0 there is nothing random, so that these are ordinary slips.
ALL_BUT_NOISE = (
    "all is right for ordinary inputs without noise: look at what is special about these, or at the noise "
    "(its size, where it goes, which generator it is drawn from)"
)
UNIFORM = "the noise is uniform: torch.rand draws from [0, 1), torch.randn from the normal distribution"


def layer(kind, weights):
    """A part of one layer from (out, in + 1) weights, the last column of which is the bias."""
    return getattr(parts, kind)(weights[:, :-1], weights[:, -1])


def weights_of(draw, k, d):
    return torch.cat([0.9 * draw(k, d), 0.5 * draw(k, 1)], 1)


def scalar(student: Student, result) -> str:
    """Why a result is not one number; "" when it is."""
    if isinstance(result, float):
        raise Wrong("return a tensor, not a Python number, which has lost its gradient.")
    right = isinstance(result, Tensor) and result.dim() == 0
    return "" if right else f"expected one number, a tensor of shape (), and got {shape(result)}"


def close(result, expected) -> bool:
    result, expected = (torch.as_tensor(value).detach().to(f64) for value in (result, expected))
    return torch.allclose(result, expected, rtol=1e-4, atol=1e-6)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SIZES = (1e-6, 1e-3, 1e3, 1e6)  # a limit or a floor shows at some of them


# ---- l1_sparsity(codes): the absolute values


def l1_sparsity(codes):
    return F.l1_loss(codes, torch.zeros_like(codes), reduction="sum") / len(codes)


def l1_slips(codes):
    k, ones = codes.shape[1], torch.ones_like(codes)
    formulas = [
        ("", codes.abs()),
        ("the absolute value is missing", codes),
        ("the absolute value is taken of the sum, not of each entry", codes.sum(1).abs()[:, None] / k * ones),
        ("the entries are squared: that is the L2 price", codes**2),
        ("the norm of the code is taken: that is the L2 norm", codes.norm(dim=1)[:, None] / k * ones),
        ("the root is taken of the absolute values", codes.abs().sqrt()),
        ("negative entries are left out", codes.relu()),
        ("the largest entry stands for all", codes.abs().amax(1)[:, None] / k * ones),
        ("entries are counted, not added: that is the L0 price, without a slope", (codes != 0).to(codes)),
        ("the mean of the batch is subtracted first", (codes - codes.mean(0)).abs()),
        ("the batch is averaged before the absolute value is taken", codes.mean(0).abs() * ones),
    ]
    yield from spread(formulas, TO_A_NUMBER, HALVED)
    yield "the largest column sum is taken: that is a norm of matrices", torch.linalg.matrix_norm(codes, 1)
    yield (
        "the largest row sum is taken: that is a norm of matrices",
        torch.linalg.matrix_norm(codes, math.inf),
    )


def l1_cases(draw):
    return [
        Case("5 codes of 3 units", (draw(5, 3),)),
        Case("a batch of one", (draw(1, 4),)),
        Case("a single unit", (draw(4, 1),)),
        Case("3 codes of 20 units", (draw(3, 20),)),
        # None of so many is near 0 by chance, where a smoothed absolute value has another slope.
        Case("130 codes of 2 units", (draw(130, 2).sign() * draw(130, 2, low=0.1, high=2),)),
        Case("2 codes of 130 units", (draw(2, 130).sign() * draw(2, 130, low=0.1, high=2),)),
    ]


def l1_extremes(draw):
    sparse = draw(5, 6).relu()
    sparse[2], sparse[:, :2] = 0, 0
    return [
        *((Case(f"entries of size {size:g}", (size * draw(4, 3),)), f64, 1e-9, 0.0) for size in SIZES),
        (Case("codes with entries that are exactly 0", (sparse,)), f32, 1e-4),
        (Case("codes with entries that are exactly 0", (sparse,)), f64, 1e-9),
        (Case("codes of nothing but zeros", (torch.zeros(3, 2, dtype=f64),)), f64, 1e-9),
        (Case("entries near 1e25", (1e25 * draw(3, 4),)), f32, 1e-4),
    ]


def l1_properties(student: Student):
    codes = line(-2, 3, 4, 5)
    price = student(codes)
    yield "one number", scalar(student, price)
    yield "finite", "" if finite(price) else "the price is not finite"
    yield (
        "zero for codes of zeros",
        "" if student(torch.zeros(4, 5)) == 0 else "a code of zeros costs nothing",
    )
    flipped = student(-codes)
    yield "the same when all signs are flipped", "" if close(price, flipped) else "signs should not matter"
    why = "" if close(student(3 * codes), 3 * price) else "codes 3 times as large should cost 3 times as much"
    yield "proportional to the codes", why
    twice = student(torch.cat([codes, codes]))
    why = "" if close(twice, price) else "a batch that holds each example twice has the same mean"
    yield "the same for the batch and two copies of it", why


L1_SPARSITY = Task(
    name="l1_sparsity",
    read="sparse#l1-the-price-that-still-has-a-slope",
    reference=l1_sparsity,
    slips=l1_slips,
    properties=l1_properties,
    cases=l1_cases,
    probes=lambda draw: [Case("", (1.3 * draw(5, 3),)), Case("", (draw(4, 6),))],
    extremes=l1_extremes,
    differentiate=(0,),
    hint="take the absolute value itself, with nothing added or limited, and not the root of a square, which "
    "has no slope at 0",
    tests={"values": values_in_evaluation, "gradients": gradients, "stability": stability},
)

# ---- kl_sparsity(codes, rho): the divergence of each unit's mean activity from its target

READY_MADE_KL = ("torch.distributions.kl",)


def kl_sparsity(codes, rho):
    rate = codes.mean(0)
    on, off = rho * (math.log(rho) - rate.log()), (1 - rho) * (math.log1p(-rho) - torch.log1p(-rate))
    return on.sum() + off.sum()


def bernoulli_kl(p, q):
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


# From terms (units,), where the batch is gone already.
OF_UNITS = [
    ("", lambda t: t.sum()),
    ("the units are averaged, not summed", lambda t: t.mean()),
    ("one number per unit is left: the units are to be summed", lambda t: t),
    ("a dimension of size 1 is left", lambda t: t.sum(0, keepdim=True)),
    ("only the first unit is used", lambda t: t[0]),
    ("only the worst unit is used", lambda t: t.max()),
]


def _swapped(p, codes, dim):
    return bernoulli_kl(codes.mean(dim), p)


def kl_slips(codes, rho):
    p = torch.tensor(rho, dtype=codes.dtype)
    m, size = codes.mean(0), len(codes)
    formulas = [
        ("", bernoulli_kl(p, m)),
        ("rho and the mean activity are swapped: the KL has the other direction", bernoulli_kl(m, p)),
        ("the term with 1 - rho is missing", p * (p / m).log()),
        ("the KL has the other direction, and its second term is missing", m * (m / p).log()),
        ("the term with rho is missing", (1 - p) * ((1 - p) / (1 - m)).log()),
        ("the second term has the wrong sign", p * (p / m).log() - (1 - p) * ((1 - p) / (1 - m)).log()),
        ("the weights rho and 1 - rho are missing", (p / m).log() + ((1 - p) / (1 - m)).log()),
        (
            "the weights rho and 1 - rho are swapped",
            (1 - p) * (p / m).log() + p * ((1 - p) / (1 - m)).log(),
        ),
        (
            "the mean activity weighs the terms, not rho",
            m * (p / m).log() + (1 - m) * ((1 - p) / (1 - m)).log(),
        ),
        ("it is the cross-entropy: the entropy of rho is missing", -p * m.log() - (1 - p) * (1 - m).log()),
        ("the log is missing", p * p / m + (1 - p) * (1 - p) / (1 - m)),
        ("it is a squared difference, not a divergence", (p - m) ** 2),
        ("it is a difference, not a divergence", (p - m).abs()),
        ("it is a difference, not a divergence", p - m),
        ("rho is not used", bernoulli_kl(torch.full_like(p, 0.05), m)),
        ("1 - rho is taken for rho", bernoulli_kl(1 - p, m)),
        ("the activities are summed over the batch, not averaged", bernoulli_kl(p, codes.sum(0))),
        ("the largest activity over the batch is taken, not the mean", bernoulli_kl(p, codes.amax(0))),
        ("the median over the batch is taken, not the mean", bernoulli_kl(p, codes.median(0)[0])),
        ("the codes go through a sigmoid once more", bernoulli_kl(p, codes.sigmoid().mean(0))),
        ("the codes are squared before the mean", bernoulli_kl(p, (codes**2).mean(0))),
        ("the mean activity runs over all units together", bernoulli_kl(p, codes.mean()).expand_as(m)),
        ("the sum over the batch is divided by the number of units", bernoulli_kl(p, codes.sum(0) / len(m))),
        ("the mean is divided by the batch size once more", bernoulli_kl(p, m / size)),
        (
            "the batch has lost one example in the mean: it is divided by its size - 1",
            bernoulli_kl(p, codes.sum(0) / (size - 1)),
        ),
        ("the divergence is multiplied by the batch size", size * bernoulli_kl(p, m)),
        ("the divergence is divided by the batch size", bernoulli_kl(p, m) / size),
        (
            "the divergence is symmetric: the direction rho to mean activity alone is asked for",
            bernoulli_kl(p, m) + bernoulli_kl(m, p),
        ),
        (
            "the divergence is symmetric: the direction rho to mean activity alone is asked for",
            (bernoulli_kl(p, m) + bernoulli_kl(m, p)) / 2,
        ),
    ]
    slips = list(spread(formulas, OF_UNITS, [*HALVED, BITS]))
    across = "the mean activity is that of an example over its units, not that of a unit over the batch"
    each = "the divergence is taken of each activity, before the mean over the batch"
    slips += spread(
        [(across, bernoulli_kl(p, codes.mean(1))), (f"{across}; the KL is reversed", _swapped(p, codes, 1))],
        [("", Tensor.sum), ("", Tensor.mean), ("one number per example is left", lambda t: t)],
    )
    slips += spread([(each, bernoulli_kl(p, codes))], TO_A_NUMBER)
    for clause, result in slips:
        # One NaN is like another, and explains nothing.
        yield clause, result if result is not None and finite(result) else None


def activities(draw, *size):
    return draw(*size, low=0.02, high=0.9)


def binary(draw, batch, k):
    """Zeros and ones, with both in every column."""
    codes = (draw(batch, k) > 0.6).to(f64)
    codes[0], codes[1] = 0, 1
    return codes


def kl_cases(draw):
    return [
        Case("5 codes of 3 units, rho=0.05", (activities(draw, 5, 3), 0.05)),
        Case("a batch of one, rho=0.3", (activities(draw, 1, 4), 0.3)),
        Case("a single unit, rho=0.5", (activities(draw, 4, 1), 0.5)),
        Case("3 codes of 20 units, rho by keyword", (activities(draw, 3, 20),), {"rho": 0.1}),
        Case("activities that are exactly 0 or 1", (binary(draw, 8, 5), 0.2)),
        Case("130 codes of 2 units, rho=0.1", (activities(draw, 130, 2), 0.1)),
        Case("2 codes of 130 units, rho=0.1", (activities(draw, 2, 130), 0.1)),
        Case("rho=0.001", (activities(draw, 5, 3), 0.001)),
        Case("rho=0.99", (activities(draw, 5, 3), 0.99)),
    ]


def kl_extremes(draw):
    rare = activities(draw, 6, 3)
    rare[:, 0], rare[:, 1] = 1e-5, 3e-5
    often = rare.clone()
    often[:, 1] = 1 - 1e-5
    rarest = rare.clone()
    rarest[:, 0], rarest[:, 1] = 1.2e-6, 1 - 1.2e-6
    return [
        (Case("a unit with the mean activity 1e-5", (rare, 0.05)), f32, 1e-4),
        (Case("units with the mean activities 1e-5 and 1 - 1e-5", (often, 0.05)), f64, 1e-9),
        (Case("units with the mean activities 1.2e-6 and 1 - 1.2e-6", (rarest, 0.05)), f64, 1e-9),
        (Case("mean activities near 0.001, rho=0.0001", (1e-3 * activities(draw, 5, 3), 1e-4)), f64, 1e-9),
        # 1e-9 nats, which the formula knows to its last digits, of terms near 0.1.
        (Case("mean activities next to rho", (0.3 + 1e-4 * draw(5, 3), 0.3)), f64, 1e-4, 1e-14),
    ]


def kl_properties(student: Student):
    codes = line(0.1, 0.8, 4, 5)
    price = student(codes, 0.2)
    yield "one number", scalar(student, price)
    yield "finite", "" if finite(price) else "the price is not finite"
    yield "positive", "" if price > 0 else "a divergence is positive when the activities miss the target"
    why = "" if abs(student(torch.full((4, 5), 0.2), 0.2)) < 1e-4 else "units at the target cost nothing"
    yield "zero at the target", why
    by_turns = torch.tensor([[0.8, 0.0], [0.0, 0.0], [0.0, 0.5], [0.0, 0.3]])
    why = (
        ""
        if abs(student(by_turns, 0.2)) < 1e-4
        else "a unit that is active for a few examples, and at rest for the others, may be on target"
    )
    yield "zero where the target is met on average", why
    twice = student(torch.cat([codes, codes]), 0.2)
    why = "" if close(twice, price) else "a batch that holds each example twice has the same mean activity"
    yield "the same for the batch and two copies of it", why


def kl_stability(task: Task, student: Student, draw: Draw) -> None:
    """The last digits, rare activities, and finite numbers for units that are always 0 or always 1."""
    stability(task, student, draw)
    codes = activities(draw, 6, 3)
    edges = [("never active", 0.0, 1e-5), ("always 1", 1.0, 1 - 1e-5)]
    for (name, value, nearly), units in product(edges, ([1], [0, 1], [0, 1, 2])):
        for rho, dtype in product((0.05, 0.5), (f64, f32)):
            edge, near = codes.clone(), codes.clone()
            edge[:, units], near[:, units] = value, nearly
            count = "a unit that is" if len(units) == 1 else f"{len(units)} units that are"
            where = f"{count} {name}, {str(dtype).removeprefix('torch.')}"
            (leaf,) = prepared((edge,), dtype)
            got = student(leaf.requires_grad_(), rho, where=where)
            if not isinstance(got, Tensor) or not finite(got):
                words = "the price is not a finite number. Clamp the mean activity before the logarithm."
                if dtype is f32:
                    words += " Mind that in float32 the number 1 - 1e-8 is 1."
                raise Wrong(words, case=where)
            if not at_least(got, task.reference(near, rho) - 1e-3):
                raise Wrong(
                    "this costs less than a unit that is nearly so. It must not be let off.", case=where
                )
            if not got.requires_grad:
                raise Wrong("no gradient reaches codes.", case=where)
            (slope,) = torch.autograd.grad(got, leaf)
            if not finite(slope):
                raise Wrong(
                    "the price is finite and its gradient is not. What a later step "
                    "discards still has a slope: clamp before the logarithm, not after.",
                    case=where,
                )


KL_SPARSITY = Task(
    name="kl_sparsity",
    read="sparse#a-target-for-the-mean-activity",
    reference=kl_sparsity,
    slips=kl_slips,
    properties=kl_properties,
    cases=kl_cases,
    # Small activities, of which even the sum over the batch is less than 1.
    probes=lambda draw: [
        Case("", (draw(5, 3, low=0.01, high=0.16), 0.12)),
        Case("", (draw(4, 6, low=0.01, high=0.2), 0.3)),
    ],
    extremes=kl_extremes,
    differentiate=(0,),
    hint="clamp the mean activity, no further than to 1e-6 from 0 and 1. An epsilon added, and "
    "a clamp of the codes themselves, change other values too",
    forbidden=READY_MADE_KL,
    tests={"values": values_in_evaluation, "gradients": gradients, "stability": kl_stability},
)

# ---- corrupt(x, sigma, generator): x and normal noise, which is tested by its moments


def corrupt(x, sigma, generator):
    """For sigma = 0 only: what is random is tested by its moments."""
    return x.clone()


def corrupt_slips(x, sigma, generator):
    yield ALL_BUT_NOISE, x
    yield "x is lost: the noise is to be added to it", torch.zeros_like(x)
    yield "x is clipped to [0, 1]", x.clamp(0, 1)
    yield "x is clipped to [-1, 1]", x.clamp(-1, 1)
    yield "x is standardised", (x - x.mean()) / x.std()
    yield "the mean is subtracted from x", x - x.mean(0)


def corrupt_cases(draw):
    def case(words, *size):
        return Case(f"{words}, sigma=0", (2 * draw(*size), 0.0, draw.seed()))

    return [
        case("vectors (5, 7)", 5, 7),
        case("images (3, 2, 4, 5)", 3, 2, 4, 5),
        case("a batch of one", 1, 6),
        case("one dimension (4, 1)", 4, 1),
    ]


def corrupt_properties(student: Student):
    for size in ((6, 5), (3, 2, 4, 4)):
        x = line(-1, 2, *size)
        noisy = student(x, 0.5, seeded(1))
        right = isinstance(noisy, Tensor) and noisy.shape == x.shape
        why = "" if right else f"expected a tensor of shape {size}, like x, and got {shape(noisy)}"
        yield f"{size}: the shape of x", why
        yield f"{size}: finite", "" if finite(noisy) else "some numbers are not finite"
        why = "" if torch.equal(x, line(-1, 2, *size)) else "x itself is changed: make a new tensor"
        yield f"{size}: x is left as it is", why
        why = "" if close(student(x, 0.0, seeded(1)), x) else "without noise, x should come back"
        yield f"{size}: x itself when sigma is 0", why
        again, reseeded = student(x, 0.5, seeded(1)), student(x, 0.5, seeded(2))
        why = (
            ""
            if torch.equal(noisy, again)
            else "two generators with the same seed should draw the same noise"
        )
        yield f"{size}: the same noise from the same seed", why
        why = "" if not torch.equal(noisy, reseeded) else "another seed should draw other noise"
        yield f"{size}: other noise from another seed", why


def corrupt_values(task: Task, student: Student, draw: Draw) -> None:
    """Without noise the input; with noise the right moments, independent of x and between all entries."""
    values_in_evaluation(task, student, draw)
    means, largest = [], 0.0
    looks = [
        ((300, 2, 6, 8), f64, (0.4, 1.7), True),
        ((16_000, 14), f32, (0.4, 1.7), True),
        ((400, 8), f64, (1e-5, 300.0), True),
        ((400, 8), f64, (0.4, 1.7), False),
    ]
    for size, dtype, sigmas, graphs in looks:
        where = f"shape {size}, {str(dtype).removeprefix('torch.')}"
        where = where if graphs else f"{where}, under torch.no_grad()"
        x = 3 * draw(*size) * (draw(*size) > 0)  # half of the entries are 0
        sizes = {}
        for sigma in sigmas:
            arguments = prepared((x, sigma, draw.seed()), dtype)
            before = arguments[0]
            with torch.set_grad_enabled(graphs):
                got = student(*arguments, where=f"{where}, sigma={sigma}")
            if not isinstance(got, Tensor) or got.shape != x.shape or not finite(got):
                raise Wrong(f"{shape(got)} is returned, or not all numbers are finite.", case=where)
            student.refuse_changes(arguments, where)
            if got.dtype != dtype:
                raise Wrong("the result is of another dtype. Keep the type of x.", case=where)
            noise = (got.detach().to(f64) - before.to(f64)) / sigma
            _refuse_dependent(where, noise, before.to(f64))
            sizes[sigma] = noise
            means.append(float(noise.mean().abs()) * math.sqrt(noise.numel()))
            largest = max(largest, float(noise.abs().max()))
        _refuse_size(where, sizes)
        exact = [noise[x == 0][:1000] for noise in sizes.values()]  # without the rounding of a sum
        if dtype is f64 and any(len(noise.unique()) < 0.97 * len(noise) for noise in exact):
            raise Wrong(
                "the noise takes few different values: it is rounded, or in half precision.", case=where
            )
    if not at_least(largest, 4.05):  # by chance once in 10^11 times, among 500 000 numbers
        raise Wrong("the noise has no large values: it is cut off, or not normal.")
    if not at_least(max(means), 1e-3):  # by chance once in 10^12 times
        raise Wrong(
            "the noise of a call has the mean 0 exactly, so that its entries depend on each "
            "other. Do not standardise it."
        )


def _refuse_copies(where: str, noise: Tensor) -> None:
    """Raise `Wrong` if entries at some distance, or around some centre, are alike or opposite."""
    row = noise.flatten() / noise.square().mean().sqrt()
    spectrum = torch.fft.rfft(row)
    count, width = len(row), row.numel() // len(noise)
    ahead = torch.fft.irfft(spectrum.abs() ** 2, count)[1:].abs() / math.sqrt(count)
    around = torch.fft.irfft(spectrum**2, count).abs() / math.sqrt(2 * count)
    if at_most(ahead.max(), 9.0) and at_most(
        around.max(), 9.0
    ):  # of 500 000 numbers, by chance once in 10^12 times
        return
    near = 1 + int(ahead.argmax()) < width and bool(ahead.max() > 9)
    what = "other entries of the same example" if near else "other examples"
    raise Wrong(
        f"some entries have the noise of {what}, or its mirror image: draw as many numbers as x has.",
        case=where,
    )


def _refuse_dependent(where: str, noise: Tensor, x: Tensor) -> None:
    """Raise `Wrong` if the entries of the noise depend on each other or on the input."""
    if (noise == 0).all():
        raise Wrong("no noise is added, though sigma is not 0.", case=where)
    centred = noise - noise.mean()
    variance = centred.square().mean()
    shared, far = [], []
    for dim in range(noise.dim()):
        ahead, behind = (centred.narrow(dim, start, noise.shape[dim] - 1) for start in (0, 1))
        shared.append(float((ahead * behind).mean() / variance))
        far.append(abs(shared[-1]) * math.sqrt(ahead.numel()))
    if not max(far) < LIMIT:
        # Noise that is shared along one dimension seems to be shared along others too, but less so.
        dim = max(range(noise.dim()), key=lambda dim: abs(shared[dim]))
        among = "the examples of the batch" if dim == 0 else f"the entries along dimension {dim}"
        raise Wrong(f"{among} share their noise: draw for each of them.", case=where)
    half = len(centred) // 2
    for rows, partners in ((centred[:half], centred[half : 2 * half]), (centred, centred.flip(0))):
        z = (rows * partners)[:half].mean() / variance * math.sqrt(rows[:half].numel())
        if not abs(z) < LIMIT:
            raise Wrong(
                "one half of the batch has the noise of the other: draw for each example.", case=where
            )
    _refuse_copies(where, centred)
    z = (centred * x).mean() / variance.sqrt() / x.square().mean().sqrt() * math.sqrt(x.numel())
    if not abs(z) < LIMIT:
        raise Wrong("the noise is correlated with x, as when x is scaled, clipped or replaced.", case=where)
    zero = x == 0
    off, on = noise[zero].square(), noise[~zero].square()
    z = (off.mean() - on.mean()) / noise.square().mean() / math.sqrt(2 / len(off) + 2 / len(on))
    if not abs(z) < LIMIT:
        raise Wrong("the size of the noise depends on x. It is to be added, and not to multiply.", case=where)


# What a student may have used as the standard deviation.
STANDARD_DEVIATIONS = [
    ("sigma is squared: it is a standard deviation already", lambda s: s**2),
    ("sigma is taken for the variance: its root is taken", lambda s: s**0.5),
    ("sigma is not used", lambda s: 1.0),
    ("sigma is halved", lambda s: s / 2),
    ("sigma is doubled", lambda s: 2 * s),
    ("noise is added twice", lambda s: math.sqrt(2) * s),
    ("sigma divides the noise", lambda s: 1 / s),
    ("sigma is taken for the log of the standard deviation", math.exp),
    ("sigma is taken for the log of the variance", lambda s: math.exp(s / 2)),
]


def _refuse_size(where: str, noises: dict[float, Tensor]) -> None:
    """Raise `Wrong` unless the noise over sigma is standard normal."""
    if any(abs(noise.mean()) * math.sqrt(noise.numel()) > LIMIT for noise in noises.values()):
        middle = all(0.45 < noise.mean() < 0.55 for noise in noises.values())
        cause = Cause.of((UNIFORM,), "Probably") if middle else UNKNOWN
        raise Wrong("the noise does not have the mean 0.", cause, case=where)
    wrong = [
        abs(noise.square().mean() - 1) > LIMIT * math.sqrt(2 / noise.numel()) for noise in noises.values()
    ]
    if any(wrong):
        for clause, deviation in STANDARD_DEVIATIONS:
            if all(
                abs(noise.square().mean().sqrt() * sigma / deviation(sigma) - 1) < 0.03
                for sigma, noise in noises.items()
            ):
                cause = Cause(f", as it has when {clause}.", (clause,))
                raise Wrong("the noise has the wrong size", cause, case=where)
        # A bounded distribution is no normal one, whatever its size.
        narrow = all(noise.abs().max() < 2 * noise.square().mean().sqrt() for noise in noises.values())
        cause = Cause(" It is not normal either: torch.randn is.") if narrow else UNKNOWN
        raise Wrong("the standard deviation of the noise is not sigma.", cause, case=where)
    for noise in noises.values():
        # The mean of a cosine tells distributions of the same variance apart, and is itself bounded.
        spread_ = math.sqrt((1 + math.exp(-2)) / 2 - math.exp(-1))
        z = (noise.cos().mean() - math.exp(-0.5)) / spread_ * math.sqrt(noise.numel())
        peaked = (noise**4).mean() / noise.square().mean() ** 2 - 3
        if not abs(z) < LIMIT or not abs(peaked) * math.sqrt(noise.numel() / 24) < 8:
            raise Wrong("the noise has the right variance and is not normal.", case=where)


def corrupt_generator(task: Task, student: Student, draw: Draw) -> None:
    """All noise from the generator as it stands, and from nothing that an earlier call has left."""
    x, where = draw(4, 5), "a generator of our own"

    def call(generator):
        return student(x.clone(), 0.8, generator, where=where)

    uses_generator(student, call)
    numbers = [1, 2, 2, 3, 1, 3]
    results = [call(seeded(number)) for number in numbers]
    for one, first in product(range(len(numbers)), repeat=2):
        if same(results[one], results[first], 0, 0) != (numbers[one] == numbers[first]):
            raise Wrong(
                "the noise depends on earlier calls: it is to come from the generator alone.",
                case=where,
            )
    generator = seeded(1)
    for _ in range(4):
        fresh = torch.Generator()
        fresh.set_state(generator.get_state())
        if not same(call(fresh), call(generator), 0, 0):
            raise Wrong(
                "the noise depends on earlier calls: it is to come from the generator alone.",
                case=where,
            )


CORRUPT = Task(
    name="corrupt",
    read="denoising#four-ways-to-damage-an-image",
    reference=corrupt,
    slips=corrupt_slips,
    properties=corrupt_properties,
    cases=corrupt_cases,
    forbidden=READY_MADE_NOISE,
    tests={"values": corrupt_values, "generator": corrupt_generator},
)

# ---- denoising_loss(model, x, sigma, generator): the error of the model that is given noisy x


def denoising_loss(model, x, sigma, generator):
    """For sigma = 0 only."""
    return F.mse_loss(model(x), x, reduction="sum") / len(x)


# The same as TO_A_NUMBER for errors (batch, dimensions).
OF_ERRORS = [
    (clause.replace("the units", "the dimensions").replace("per unit", "per dimension"), reduce)
    for clause, reduce in TO_A_NUMBER
]


def loss_slips(model, x, sigma, generator):
    out = model(x)
    d = x.shape[1]
    formulas = [
        (ALL_BUT_NOISE, (out - x) ** 2),
        ("the difference is not squared", (out - x).abs()),
        ("the difference is not squared", out - x),
        ("the norm is not squared", (out - x).norm(dim=1)[:, None] / d * torch.ones_like(x)),
        ("the output is compared with the noise, or added to its input: it is to be x itself", out**2),
        ("the model is given the noise alone", (model(torch.zeros_like(x)) - x) ** 2),
        ("the model is used twice", (model(out) - x) ** 2),
        ("the output is compared with another output, or the input with x", (x - x) ** 2),
        ("it is the cross-entropy, not the squared error", -(x * out.log() + (1 - x) * (1 - out).log())),
    ]
    for clauses, result in spread(formulas, OF_ERRORS, HALVED):
        several = len(clauses) > 1  # then the noise is not all that is wrong
        kept = tuple(clause for clause in clauses if not (several and clause == ALL_BUT_NOISE))
        yield kept, result if result is not None and finite(result) else None
    yield "the root of the mean is taken", ((out - x) ** 2).sum(1).mean().sqrt()


def built_loss(weights, x, sigma, generator, kind):
    return layer(kind, weights), x, sigma, generator


def loss_cases(draw):
    def case(words, batch, d, kind):
        inside = draw(batch, d, low=0.05, high=0.95) if kind == "Logistic" else 1.5 * draw(batch, d)
        arguments = (weights_of(draw, d, d), inside, 0.0, draw.seed(), kind)
        return Case(f"{words}, sigma=0", arguments)

    return [
        case("5 examples of 3 dimensions", 5, 3, "Affine"),
        case("4 examples of 6 dimensions", 4, 6, "Logistic"),
        case("a batch of one", 1, 4, "Tanh"),
        case("one dimension", 4, 1, "Affine"),
        case("130 examples of 2 dimensions", 130, 2, "Affine"),
        case("2 examples of 130 dimensions", 2, 130, "Tanh"),
        Case("a model that copies, sigma=0", (copying(3), draw(4, 3), 0.0, draw.seed(), "Affine")),
    ]


def copying(d: int) -> Tensor:
    """Weights of a layer that returns what it is given."""
    return torch.cat([torch.eye(d, dtype=f64), torch.zeros(d, 1, dtype=f64)], 1)


def loss_properties(student: Student):
    eye = torch.cat([torch.eye(3), torch.zeros(3, 1)], 1)
    copy, x = layer("Affine", eye), line(-1, 2, 5, 3)
    smooth = layer("Affine", 0.5 * eye)
    loss = student(smooth, x, 0.5, seeded(1))
    yield "one number", scalar(student, loss)
    yield "finite and positive", "" if finite(loss) and loss > 0 else "the loss is a sum of squares"
    free = student(copy, x, 0.0, seeded(1))
    yield "zero for a copy, without noise", "" if abs(free) < 1e-8 else "without noise, a copy makes no error"
    paid = student(copy, x, 0.5, seeded(1))
    why = "" if paid > 0.01 else "a model that copies its input hands the noise on, and has to pay for it"
    yield "not zero for a copy, with noise", why
    again = student(smooth, x, 0.5, seeded(1))
    why = "" if torch.equal(loss, again) else "two generators with the same seed should give the same loss"
    yield "the same loss from the same seed", why
    reseeded = student(smooth, x, 0.5, seeded(2))
    why = "" if not torch.equal(loss, reseeded) else "another seed should draw other noise"
    yield "another loss from another seed", why


def losses_of_slips(model, x, sigma, generator):
    """``(clause, loss)`` for what one may do wrong with the noise, each with one draw of it."""

    def draw(like):
        return torch.randn(like.shape, generator=generator, dtype=x.dtype)

    def loss(output, target):
        return (output - target).square().sum(1).mean()

    e, second = draw(x), draw(x)
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    clean, noisy = model(x), x + sigma * e
    right = model(noisy)
    yield "the model is given the clean input", loss(clean, x)
    yield "the target is the corrupted input: it is to be the clean one", loss(right, noisy)
    yield (
        "the noise is added to the output or to the target, and not to the input",
        loss(clean + sigma * e, x),
    )
    yield "the output or the target is corrupted too, by another draw", loss(right + sigma * second, x)
    yield "sigma is squared: it is a standard deviation already", loss(model(x + sigma**2 * e), x)
    yield "sigma is taken for the variance: its root is taken", loss(model(x + sigma**0.5 * e), x)
    yield "sigma is not used", loss(model(x + e), x)
    yield "the examples of the batch share their noise", loss(model(x + sigma * e[:1]), x)
    yield "the dimensions of an example share their noise", loss(model(x + sigma * e[:, :1]), x)
    yield "one number is drawn for the whole batch", loss(model(x + sigma * e[0, 0]), x)
    yield "the noise multiplies the input: it is to be added", loss(model(x * (1 + sigma * e)), x)
    yield "the noise multiplies the input: it is to be added", loss(model(x * sigma * e), x)
    yield "the model is given the noise alone", loss(model(sigma * e), x)
    yield UNIFORM, loss(model(x + sigma * u), x)
    yield UNIFORM, loss(model(x + sigma * (u - 0.5)), x)
    yield UNIFORM, loss(model(x + sigma * (2 * u - 1)), x)
    yield "the input is corrupted twice", loss(model(noisy + sigma * second), x)
    yield "the corrupted input is clipped to [0, 1]", loss(model(noisy.clamp(0, 1)), x)
    yield "the target is the model's output for the clean input", loss(right, clean)
    yield "the target is the noise: the model is to return the clean input", loss(right, sigma * e)
    yield "the target is the noise: the model is to return the clean input", loss(right, e)
    yield "the output is taken for a correction, added to its input", loss(noisy + right, x)
    yield "the model is not used", loss(noisy, x)
    yield "the model is applied twice", loss(model(right), x)
    yield "the mean of several draws goes into the model", loss(model(x + sigma * (e + second) / 2), x)
    yield "the errors of several draws are added", loss(right, x) + loss(model(x + sigma * second), x)
    yield "it is divided by sigma^2", loss(right, x) / sigma**2
    yield "the output for the clean input is compared as well", loss(right, x) + loss(clean, x)
    yield "the error for the clean input is averaged in", (loss(right, x) + loss(clean, x)) / 2


def loss_values(task: Task, student: Student, draw: Draw) -> None:
    """Without noise the squared error; with noise its exact expectation, and its variance over draws."""
    values_in_evaluation(task, student, draw)
    calls, cases = 24, []
    # Also a model in evaluation mode, and no gradients: the loss is the same there.
    for batch, d, sigma, dtype, training, graphs in (
        (1000, 4, 0.6, f64, True, True),
        (600, 7, 1.5, f32, True, True),
        (1500, 1, 0.8, f64, True, True),
        (300, 3, 300.0, f64, True, True),
        (300, 3, 0.7, f64, False, True),
        (300, 3, 0.7, f64, True, False),
    ):
        weights, x = weights_of(draw, d, d), draw(batch, d) + 0.5 * draw(d)
        seeds = [draw.seed() for _ in range(calls)]
        cases.append((weights, x, sigma, dtype, seeds, training, graphs))
    looks = []
    for weights, x, sigma, dtype, seeds, training, graphs in cases:
        where = f"{len(x)} examples of {x.shape[1]} dimensions, sigma={sigma}"
        where += "" if training else ", a model in evaluation mode"
        where += "" if graphs else ", under torch.no_grad()"
        with torch.set_grad_enabled(graphs):
            got = _losses(student, where, weights, x, sigma, dtype, seeds, training)
        looks.append((where, got, *_misses(got, weights, x, sigma)))
    for where, _, z, ratio in looks:
        if not _plausible(z, ratio):
            words = (
                "right on average over many calls, but far too different from call to call."
                if abs(z) < LIMIT
                else "without noise all is right; with noise the loss is not what it is on average."
            )
            elsewhere = all(_plausible(*other) for _, _, *other in looks[:3])
            cause = UNKNOWN if elsewhere else _about_noise(student, looks[:3], cases[:3])
            raise Wrong(words, cause, case=where)
    _spread_of_losses(task, student, draw)
    _large_noise(student, draw)


def _misses(got: Tensor, weights: Tensor, x: Tensor, sigma: float) -> tuple[float, float]:
    """Of losses of an affine model: by how many standard errors their mean is off, and their variance over
    the right one. Both moments are known exactly."""
    error, weight = layer("Affine", weights)(x) - x, weights[:, :-1]
    expected = error.square().sum(1).mean() + sigma**2 * weight.square().sum()
    each = 4 * sigma**2 * (error @ weight).square().sum(1)
    each = each + 2 * sigma**4 * (weight.mT @ weight).square().sum()
    variance = each.mean() / len(x)
    z = (got.mean() - expected) / (variance / len(got)).sqrt()
    return float(z), float(got.var() / variance)


def _plausible(z: float, ratio: float) -> bool:
    # The variance is that of 24 draws: by chance it is 6 times too large once in 10^14 times.
    return abs(z) < LIMIT and ratio < 6


def _large_noise(student: Student, draw: Draw) -> None:
    """How often the noise is beyond a bound, from a model that says so."""
    batch, d = 16_000, 5
    for bound in (0.5, 1.0, 2.0, 3.1):
        given = (
            parts.Beyond(torch.tensor(0.9 * bound, dtype=f64)),
            torch.zeros(batch, d, dtype=f64),
            0.9,
            draw.seed(),
        )
        where = "the number of large values in the noise"
        got = student(*prepared(given, f64), where=where)
        if scalar(student, got):
            raise Wrong(f"{scalar(student, got)}.", case=where)
        share = float(got) / d if finite(got) and 0 <= float(got) <= d else math.nan
        expected = math.erfc(bound / math.sqrt(2))
        if not at_most(
            2 * math.sqrt(batch * d) * abs(math.asin(math.sqrt(share)) - math.asin(math.sqrt(expected))), 7
        ):
            raise Wrong(
                "the noise is not normal: it is cut off, or of another kind (torch.randn).", case=where
            )


def _spread_of_losses(task: Task, student: Student, draw: Draw) -> None:
    """In the variance a copying model shows the noise's squares, one with an offset the noise itself."""
    batch, sigma, calls = 48, 0.9, 600
    x = draw(batch, 2)
    for offset in (0.0, 4.0):
        weights = torch.cat([torch.eye(2, dtype=f64), torch.full((2, 1), offset, dtype=f64)], 1)
        seeds = [draw.seed() for _ in range(calls)]
        got = _losses(student, "a model that copies", weights, x, sigma, f64, seeds)
        if got.max() == got.min():
            raise Wrong("all generators give the same loss.", case="a model that copies")
        variance = (4 * sigma**2 * 2 * offset**2 + 2 * sigma**4 * 2) / batch
        if not abs(got.var() / variance - 1) < LIMIT * math.sqrt(2 / calls):
            raise Wrong(
                "the loss differs from call to call by another amount than with one draw of independent "
                "normal noise per number.",
                case="a model that copies",
            )


def _losses(student: Student, where: str, weights, x, sigma, dtype, seeds, training: bool = True) -> Tensor:
    losses, model = [], layer("Affine", weights).train(training)
    given = [prepared((model, x, sigma, seed), dtype) for seed in seeds]
    results = student.each([(arguments, {}, where) for arguments in given])
    for arguments, got in zip(given, results):
        student.refuse_changes(arguments, where)
        if not isinstance(got, Tensor) or got.dim() or not finite(got):
            raise Wrong(f"{shape(got)} is returned, or it is not finite.", case=where)
        losses.append(got.detach().to(f64))
    return torch.stack(losses)


OWN_CORRUPT = "your own corrupt, which it calls, is wrong"


def _about_noise(student: Student, looks, cases) -> Cause:
    """What is wrong with the noise: the slip whose losses have the student's mean and variance."""
    scores: dict[tuple[int, str], list[float]] = {}
    generator = torch.Generator().manual_seed(0)
    for (_, got, _, _), (weights, x, sigma, _, seeds, _, _) in zip(looks, cases):
        model = layer("Affine", weights)
        for index, (clause, losses) in enumerate(_in_many_draws(model, x, sigma, generator, len(seeds))):
            scores.setdefault((index, clause), []).append(_distance(got, losses))
        with contextlib.suppress(Wrong, RuntimeError):
            own = student.fellow("corrupt")
            noisy = [own(*prepared((x, sigma, seed), f64)) for seed in seeds]
            losses = torch.stack([(model(corrupted) - x).square().sum(1).mean() for corrupted in noisy])
            if _plausible(*_misses(losses, weights, x, sigma)):
                continue  # it is right, and not to blame
            scores.setdefault((-1, OWN_CORRUPT), []).append(_distance(got, losses))
    worst = {slip: max(distances) for slip, distances in scores.items()}
    close_ones = sorted(slip for slip, score in worst.items() if score < 30)
    if not close_ones:
        same_each_time = all(got.max() == got.min() for _, got, _, _ in looks)
        return Cause(" All generators give the same loss.") if same_each_time else UNKNOWN
    # The student's own function comes first, since that is where to look.
    _, clause = close_ones[0] if close_ones[0][1] == OWN_CORRUPT else min(close_ones, key=worst.get)
    return Cause.of((clause,), "These are the losses that one gets when")


def _in_many_draws(model, x, sigma, generator, calls: int) -> list[tuple[str, Tensor]]:
    rows = [list(losses_of_slips(model, x, sigma, generator)) for _ in range(calls)]
    return [(column[0][0], torch.stack([loss for _, loss in column])) for column in zip(*rows)]


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """How far two sets of losses are apart in mean and spread: about chi-square with 2 degrees of freedom."""
    tiny = 1e-5 * ours.mean().abs()
    z = (ours.mean() - theirs.mean()) / (((ours.var() + theirs.var()) / len(ours)).sqrt() + tiny)
    ratio = ((ours.std() + tiny) / (theirs.std() + tiny)).log() * math.sqrt(len(ours) - 1)
    return float((z**2 + ratio**2).nan_to_num(math.inf))


def loss_gradients(task: Task, student: Student, draw: Draw) -> None:
    """Without noise against the true ones; with noise against finite differences under the same draw."""
    gradients(task, student, draw)
    step = 1e-6
    for kind, training in (("Affine", True), ("Tanh", False)):
        weights, x, seed = weights_of(draw, 3, 3), draw(20, 3), draw.seed()
        direction = draw(3, 4)
        where = f"{'a model in evaluation mode, ' * (not training)}sigma=0.7"

        def loss(leaf, kind=kind, x=x, seed=seed, training=training, where=where):
            model = layer(kind, leaf).train(training)
            return student(model, x.clone(), 0.7, prepared((seed,), f64)[0], where=where)

        if not same(loss(weights), loss(weights), 0, 0):
            continue  # not by its generator alone, as another test says
        leaf = weights.clone().requires_grad_()
        got = loss(leaf)
        if not isinstance(got, Tensor) or not got.requires_grad:
            raise Wrong("with noise, no gradient reaches model. The graph is cut.", case=where)
        (slope,) = torch.autograd.grad(got, leaf)
        ahead, behind = (float(loss(weights + sign * step * direction)) for sign in (1, -1))
        along = float((slope * direction).sum())
        if not at_most(abs((ahead - behind) / (2 * step) - along), 1e-5 + 1e-4 * abs(along)):
            raise Wrong(
                "with noise, the gradient for model is not that of the loss: the graph is cut.", case=where
            )


def loss_generator(task: Task, student: Student, draw: Draw) -> None:
    for training in (True, False):
        model, x = layer("Affine", weights_of(draw, 4, 4)).train(training), draw(6, 4)

        def call(generator, model=model, x=x):
            return student(model.to(f64), x.clone(), 0.8, generator, where="a generator of our own")

        uses_generator(student, call)


DENOISING_LOSS = Task(
    name="denoising_loss",
    read="denoising#the-target-is-the-clean-input",
    reference=denoising_loss,
    slips=loss_slips,
    properties=loss_properties,
    cases=loss_cases,
    probes=lambda draw: loss_cases(draw)[:2],
    differentiate=(0,),
    build=built_loss,
    forbidden=READY_MADE_NOISE,
    tests={"values": loss_values, "gradients": loss_gradients, "generator": loss_generator},
)

# ---- contractive_penalty(encoder, x): the squared slopes of the code


def contractive_penalty(encoder, x):
    """By the chain rule, for one layer: the slope of the unit's function times its weights."""
    codes, weight = encoder(x), encoder.tensors[0]
    if type(encoder) is parts.Mixed:
        t = parts.Tanh(*encoder.tensors)(x)
        inner = (1 - t**2)[:, :, None] * weight
        mixed = inner * (1 + 0.5 * t.roll(1, 1))[:, :, None] + 0.5 * t[:, :, None] * inner.roll(1, 1)
        return mixed.square().sum((1, 2)).mean()
    slopes = {
        parts.Logistic: codes * (1 - codes),
        parts.Tanh: 1 - codes**2,
        parts.Affine: torch.ones_like(codes),
    }
    return (slopes[type(encoder)] ** 2 @ (weight**2).sum(1)).mean()


def contractive_slips(encoder, x):
    def code_of(example):
        return encoder(example[None])[0]

    j, codes, weight = torch.vmap(torch.func.jacrev(code_of))(x), encoder(x), encoder.tensors[0]
    n = len(j)
    square = j**2

    def formulas():
        yield "", square.sum((1, 2))
        yield "the Frobenius norm is not squared", square.sum((1, 2)).sqrt()
        yield "the derivatives are not squared", j.abs().sum((1, 2))
        yield "the derivatives are not squared", j.sum((1, 2))
        yield "the sum of the derivatives is squared, not each of them", j.sum((1, 2)) ** 2
        yield "the derivative is that of the sum over the units, in which they mix", j.sum(1).pow(2).sum(1)
        yield "the derivative is that of the mean over the units", j.mean(1).pow(2).sum(1)
        yield "the derivatives are summed over the input before they are squared", j.sum(2).pow(2).sum(1)
        yield "only the first unit is differentiated", square[:, 0].sum(1)
        yield "only the last unit is differentiated", square[:, -1].sum(1)
        yield "only the derivatives by the first input are used", square[:, :, 0].sum(1)
        yield "only the diagonal of the Jacobian is used", square.diagonal(dim1=1, dim2=2).sum(1)
        yield "the mean runs over the units, not the sum", square.sum(2).mean(1)
        yield "the mean runs over the inputs, not the sum", square.mean(2).sum(1)
        yield "the mean runs over all entries of the Jacobian, not the sum", square.mean((1, 2))
        yield "the largest singular value stands for all", torch.linalg.matrix_norm(j, 2) ** 2
        yield "the singular values are summed, not their squares", torch.linalg.svdvals(j).sum(1)
        yield "the Jacobian is averaged over the batch before it is squared", j.mean(0).pow(2).sum().expand(n)
        yield "the Jacobian is divided by the batch size before it is squared", square.sum((1, 2)) / n**2
        yield "the Jacobian of the first example serves for all", square[0].sum().expand(n)
        yield "the square is taken twice", square.pow(2).sum((1, 2))
        yield "it is the size of the code, not of its slopes", codes.pow(2).sum(1)
        yield "it is the size of the weights, not of the slopes", weight.pow(2).sum().expand(n)
        bends = codes * (1 - codes)
        yield "the slope of the sigmoid is used for every encoder", bends**2 @ (weight**2).sum(1)
        yield "the slope of the sigmoid is used, and not squared", bends @ (weight**2).sum(1)
        yield (
            "the weights are missing: h (1 - h) is the slope by the unit's input, not by x",
            bends.pow(2).sum(1),
        )
        yield (
            "1 - h^2, the slope of tanh, is used for every encoder",
            (1 - codes**2) ** 2 @ (weight**2).sum(1),
        )

    reductions = [
        ("", lambda t: t.mean()),
        ("the batch is summed, not averaged", lambda t: t.sum()),
        ("the mean over the batch is missing: one number per example is left", lambda t: t),
        ("a dimension of size 1 is left", lambda t: t.mean(0, keepdim=True)),
        ("it is divided by the batch size twice", lambda t: t.mean() / n),
    ]
    scales = [("", 1.0), ("there is a half too many", 0.5), ("the sign is flipped", -1.0)]
    yield from spread(formulas(), reductions, scales)
    yield "the root is taken of the mean over the batch", square.sum((1, 2)).mean().sqrt()
    yield "the root is taken of the sum over the batch", square.sum().sqrt()
    yield "the Jacobian is that of the sum over the batch, squared too late", j.sum(0).pow(2).sum()


def built_encoder(weights, x, kind):
    return layer(kind, weights), x


def contractive_cases(draw):
    def case(words, batch, d, k, kind):
        return Case(words, (weights_of(draw, k, d), draw(batch, d), kind))

    return [
        case("sigmoid encoder, 5 examples of 4 dimensions, 3 units", 5, 4, 3, "Logistic"),
        case("tanh encoder, 4 examples of 3 dimensions, 6 units", 4, 3, 6, "Tanh"),
        case("affine encoder, 6 examples of 5 dimensions, 2 units", 6, 5, 2, "Affine"),
        case("a batch of one", 1, 4, 2, "Tanh"),
        case("a single unit", 5, 3, 1, "Logistic"),
        case("one dimension", 4, 1, 3, "Tanh"),
        case("another encoder, 5 examples of 3 dimensions, 4 units", 5, 3, 4, "Mixed"),
        Case("affine encoder, inputs near 1e8", (weights_of(draw, 3, 4), 1e8 * draw(5, 4), "Affine")),
        case("130 examples", 130, 3, 2, "Tanh"),
        case("60 dimensions", 3, 60, 2, "Tanh"),
        case("60 units", 3, 2, 60, "Logistic"),
        *(
            Case(
                f"weights that are zero: {which}",
                (_without(weights_of(draw, 3, 4), *where), draw(5, 4), "Tanh"),
            )
            for which, where in (
                ("all, a constant code", (slice(None), slice(None))),
                ("those of the first two inputs", (slice(None), slice(2))),
                ("those of the first two units", (slice(2), slice(None))),
                ("those of the first unit for the first two inputs", (0, slice(2))),
                ("those of the last unit", (-1, slice(None))),
            )
        ),
    ]


def _without(weights: Tensor, units, inputs) -> Tensor:
    weights[units, inputs] = 0
    return weights


def contractive_values(task: Task, student: Student, draw: Draw) -> None:
    """The values, for an encoder in evaluation mode as well, and slopes of every size."""

    def evaluated(weights, x, kind):
        return layer(kind, weights).eval(), x

    def cases(draw):
        found = contractive_cases(draw)[:3]
        return [replace(case, label=f"{case.label}, in evaluation mode") for case in found]

    values(task, student, draw)
    values(replace(task, build=evaluated, cases=cases), student, draw)
    looks = [(size, size * weights_of(draw, 3, 4), draw(5, 4)) for size in SIZES]
    right = [contractive_penalty(layer("Affine", weights), x) for _, weights, x in looks]
    calls = [((layer("Affine", weights), x), {}, f"slopes of size {size:g}") for size, weights, x in looks]
    for (size, _, _), want, got in zip(looks, right, student.each(calls)):
        if not same(got, want, 1e-6, 0.0):
            raise Wrong(
                "right for ordinary slopes, and wrong for these. Is something limited (clamped), added, or "
                "found by differences in place of derivatives?",
                case=f"affine encoder, slopes of size {size:g}",
            )


def contractive_gradients(task: Task, student: Student, draw: Draw) -> None:
    """The gradients, for an encoder in evaluation mode as well."""
    gradients(task, student, draw)

    def evaluated(weights, x, kind):
        return layer(kind, weights).eval(), x

    def cases(draw):
        found = contractive_cases(draw)[:2]
        return [replace(case, label=f"{case.label}, in evaluation mode") for case in found]

    gradients(replace(task, build=evaluated, cases=cases), student, draw)


KINDS = ("Affine", "Logistic", "Tanh")


def contractive_properties(student: Student):
    weights, x = line(-1, 1.5, 2, 4), line(-1, 2, 5, 3)
    for kind in KINDS:
        price = student(layer(kind, weights), x)
        yield f"{kind}: one number", scalar(student, price)
        right = finite(price) and price > 0
        yield f"{kind}: finite and positive", "" if right else "this is a sum of squares that are not all 0"
        rest = student(layer(kind, 0 * weights), x)
        yield f"{kind}: zero for a constant code", "" if abs(rest) < 1e-8 else "a constant code has no slope"
    twice = student(layer("Tanh", weights), torch.cat([x, x]))
    price = student(layer("Tanh", weights), x)
    why = "" if close(twice, price) else "a batch that holds each example twice has the same mean"
    yield "the same for the batch and two copies of it", why
    affine, moved = student(layer("Affine", weights), x), student(layer("Affine", weights), x + 1)
    why = "" if close(affine, moved) else "the slope of an affine encoder does not depend on x"
    yield "an affine encoder has the same slope everywhere", why
    doubled = student(layer("Affine", 2 * weights), x)
    why = "" if close(doubled, 4 * affine) else "a code twice as steep should cost 4 times as much"
    yield "quadratic in the code", why
    trained = student(layer("Tanh", weights.requires_grad_()), x)
    if not trained.requires_grad:
        raise Wrong(
            "no gradient reaches the encoder, so that training would ignore this. Is "
            "the graph of the first derivative kept?"
        )
    yield "it has a gradient for the encoder", ""


CONTRACTIVE_PENALTY = Task(
    name="contractive_penalty",
    read="denoising#contractive-autoencoders",
    reference=contractive_penalty,
    slips=contractive_slips,
    properties=contractive_properties,
    cases=contractive_cases,
    probes=lambda draw: contractive_cases(draw)[:3],
    differentiate=(0,),
    build=built_encoder,
    tests={"values": contractive_values, "gradients": contractive_gradients},
)

# ---- optimal_linear_denoiser(X, sigma): A and b of the best affine map from noisy to clean data


def optimal_linear_denoiser(X, sigma):
    mean = X.mean(0)
    scale, axes = torch.linalg.svd(X - mean)[1:]
    variances = torch.zeros(X.shape[1], dtype=X.dtype)
    variances[: len(scale)] = scale**2 / len(X)
    kept = (axes.mT * variances / (variances + sigma**2)) @ axes
    lost = (axes.mT * sigma**2 / (variances + sigma**2)) @ axes
    return kept, lost @ mean


def _cov(centred):
    return centred.mT @ centred / len(centred)


def _solve(matrix, right):
    return torch.linalg.lstsq(matrix, right).solution


def denoiser_slips(X, sigma):
    n, d = X.shape
    mean, eye = X.mean(0), torch.eye(d, dtype=X.dtype)
    centred = X - mean
    cov, second = centred.mT @ centred / n, X.mT @ X / n
    spreads = cov.diagonal().sqrt()
    covariances = [
        ("", cov),
        ("the covariance is divided by N - 1, not by N", cov * n / max(n - 1, 1)),
        ("the covariance is not divided by N, or sigma^2 is", cov * n),
        ("the covariance is divided by D, not by N", cov * n / d),
        ("the data are not centred before the covariance is taken", second),
        ("the data are not centred, and N is missing", second * n),
        ("only the variances are used: the dimensions vary together", cov.diagonal().diag()),
        ("the correlations are used, not the covariances", cov / spreads / spreads[:, None]),
        ("one mean is taken over everything, not one per dimension", _cov(X - X.mean())),
        ("the mean of each example is subtracted, not that of each dimension", _cov(X - X.mean(1, True))),
    ]
    noises = [
        ("", sigma**2),
        ("sigma is not squared: it is a standard deviation", sigma),
        ("sigma is squared twice", sigma**4),
        ("sigma is not used", 1.0),
        ("the root of sigma is taken", math.sqrt(sigma)),
        ("the covariance is divided by N twice, or sigma^2 is multiplied by N", sigma**2 * n),
        ("sigma^2 is divided by D", sigma**2 / d),
        ("sigma^2 is halved", sigma**2 / 2),
    ]
    maps = [
        ("", lambda s, v: torch.linalg.solve(s + v * eye, s)),
        (
            "A is the part that is taken away, sigma^2 (S + sigma^2 I)^-1",
            lambda s, v: torch.linalg.solve(s + v * eye, v * eye),
        ),
        (
            "S is missing: A is the inverse of S + sigma^2 I alone",
            lambda s, v: torch.linalg.inv(s + v * eye),
        ),
        ("the fraction is upside down", lambda s, v: torch.linalg.solve(s, s + v * eye)),
        ("sigma^2 is added to all entries of S: the identity is missing", lambda s, v: _solve(s + v, s)),
        ("sigma^2 is added to all entries of S: the identity is missing", lambda s, v: _solve(s + v, s).mT),
        ("the division is done entry by entry", lambda s, v: s / (s + v * eye)),
        ("the division is done entry by entry", lambda s, v: s / (s + v)),
        ("sigma^2 is subtracted", lambda s, v: torch.linalg.solve(s - v * eye, s)),
        ("the inverse is missing", lambda s, v: s @ (s + v * eye)),
        ("the noise is left out of the inverse, so that nothing is removed", lambda s, v: eye),
    ]
    offsets = [
        ("", lambda a: mean - a @ mean),
        ("b is zero", lambda a: torch.zeros_like(mean)),
        ("b is the mean itself: (I - A) is missing", lambda a: mean),
        ("b is A times the mean, which should be subtracted", lambda a: a @ mean),
        ("b has the wrong sign", lambda a: a @ mean - mean),
        ("the sign of A is wrong in b", lambda a: mean + a @ mean),
        ("b is minus A times the mean: the mean itself is missing", lambda a: -a @ mean),
        ("b is a row, not a vector", lambda a: (mean - a @ mean)[None]),
        ("b is a column, not a vector", lambda a: (mean - a @ mean)[:, None]),
    ]
    for (c1, cov_), (c2, noise), (c3, fit), (c4, offset) in product(covariances, noises, maps, offsets):
        clauses = tuple(clause for clause in (c1, c2, c3, c4) if clause)
        if len(clauses) > 2:
            continue
        try:
            matrix = fit(cov_, noise)
        except RuntimeError:  # singular
            matrix = None
        right = matrix is not None and finite(matrix)
        yield clauses, (matrix, offset(matrix)) if right else None
        if not clauses:
            yield "A and b are returned in the wrong order", (offset(matrix), matrix)
            yield "b is missing: return A and b", matrix
            yield "the mean is returned first, as the library does: return A and b", (mean, matrix)


def data_with_mean(draw, n, d):
    return draw(n, d) @ (draw(d, d) / d**0.5) + 2 * draw(d) + 1


def denoiser_cases(draw):
    return [
        Case("12 examples of 3 dimensions", (data_with_mean(draw, 12, 3), 0.7)),
        Case("fewer examples than dimensions", (data_with_mean(draw, 4, 6), 1.6)),
        Case("one dimension", (data_with_mean(draw, 9, 1), 0.5)),
        Case("a single example", (data_with_mean(draw, 1, 4), 0.5)),
        Case("40 examples of 5 dimensions, sigma=2 as an int", (data_with_mean(draw, 40, 5), 2)),
        Case("300 examples of 3 dimensions", (data_with_mean(draw, 300, 3), 0.7)),
        Case("30 examples of 60 dimensions", (data_with_mean(draw, 30, 60), 0.7)),
    ]


def denoiser_extremes(draw):
    far = data_with_mean(draw, 20, 3) + 1e5 * torch.tensor([1.0, -2.0, 3.0], dtype=f64)
    return [
        (Case("data far from the origin", (far, 0.8)), f64, 1e-7),
        *(
            (
                Case(
                    f"data of size {size:g}, sigma={size / 2:g}",
                    (size * data_with_mean(draw, 9, 3), size / 2),
                ),
                *(f64, 1e-9, 1e-9 * min(size, 1)),
            )
            for size in SIZES
        ),
        (Case("next to no noise: sigma=0.0001", (data_with_mean(draw, 9, 3), 1e-4)), f64, 1e-6),
        (Case("much noise: sigma=10000", (data_with_mean(draw, 9, 3), 1e4)), f64, 1e-9, 1e-14),
    ]


def denoiser_properties(student: Student):
    x = torch.stack([line(-2, 3, 8).sin(), line(1, 4, 8), line(0, 9, 8).cos() + 2], 1)
    for sigma in (0.5, 2.0):
        result = student(x, sigma)
        right = isinstance(result, tuple | list) and len(result) == 2
        yield f"sigma={sigma}: two results", "" if right else f"expected A and b, and got {shape(result)}"
        right = [getattr(part, "shape", None) for part in result] == [(3, 3), (3,)]
        why = "" if right else f"expected A (3, 3) and b (3,), and got {shape(tuple(result))}"
        yield f"sigma={sigma}: their shapes", why
        yield f"sigma={sigma}: finite", "" if finite(result) else "some numbers are not finite"
        a, b = (part.to(x) for part in result)
        yield f"sigma={sigma}: A is symmetric", "" if close(a, a.mT) else "A should be symmetric"
        scales = torch.linalg.eigvalsh((a + a.mT) / 2)
        inside = (scales > -1e-5).all() and (scales < 1).all()
        why = "" if inside else "A should shrink in every direction, and turn none around"
        yield f"sigma={sigma}: A shrinks", why
        mean = x.mean(0)
        why = "" if close(a @ mean + b, mean) else "the mean of the data should be left where it is"
        yield f"sigma={sigma}: the mean stays", why


OPTIMAL_LINEAR_DENOISER = Task(
    name="optimal_linear_denoiser",
    read="denoising#the-best-linear-denoiser",
    reference=optimal_linear_denoiser,
    slips=denoiser_slips,
    properties=denoiser_properties,
    cases=denoiser_cases,
    probes=lambda draw: [
        Case("", (data_with_mean(draw, 12, 3), 0.7)),
        Case("", (data_with_mean(draw, 9, 4), 1.6)),
    ],
    extremes=denoiser_extremes,
    hint="subtract the mean before products are formed: a difference of two large matrices loses its "
    "digits. A jitter changes the answer",
    tests={"values": values_in_evaluation, "stability": stability},
)

TASKS = {
    task.name: task
    for task in (
        L1_SPARSITY,
        KL_SPARSITY,
        CORRUPT,
        DENOISING_LOSS,
        CONTRACTIVE_PENALTY,
        OPTIMAL_LINEAR_DENOISER,
    )
}
