"""Assignment `evaluation`: log p(x) by importance sampling, the tighter bound, active units, and a schedule.

`log_likelihood` draws at random. What is exact about it is tested: with q equal to the posterior every weight
is p(x); the mean of the weights is p(x) for any q; one sample gives the ELBO on average; the scatter of the
estimates falls as 1 / K. The true values come from quadrature over one or two latents.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from aecourse.checks.core import (
    UNKNOWN,
    Case,
    Cause,
    Draw,
    Seed,
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
from aecourse.checks.elbo import per_example
from aecourse.checks.kinds import LIMIT, gradients, imprecise, stability, values, z_score
from aecourse.checks.naming import diagnose
from aecourse.checks.parts import Affine, GaussianEncoder
from aecourse.checks.student import Student, uses_generator
from aecourse.checks.vae import far_apart, tails

# ---- shared by several tasks


def averages(log_w, dims):
    """What people write for the log of a mean over these dimensions."""
    count = math.prod(log_w.shape[dim] for dim in dims)
    total, share = torch.logsumexp(log_w, dims), torch.exp(log_w - torch.logsumexp(log_w, dims, keepdim=True))
    right, largest = total - math.log(count), log_w.amax(dims)
    yield "", right
    yield "-log K is missing: that is the log of a sum, not of a mean", total
    yield "log K is added, not subtracted", total + math.log(count)
    yield "log K is subtracted twice", total - 2 * math.log(count)
    yield "K is subtracted, not log K", total - count
    yield "1/K stands where log(1/K) belongs", total + 1 / count
    yield "the log of the sum is divided by K", total / count
    yield "the log of the sum is divided by log K", total / math.log(count) if count > 1 else None
    yield "the size of the first dimension is taken for K", total - math.log(len(log_w))
    yield "the size of the last dimension is taken for K", total - math.log(log_w.shape[-1])
    yield "the number of all entries is taken for K", total - math.log(log_w.numel())
    yield "the logs are averaged: it is the mean that must be taken first, then the log", log_w.mean(dims)
    yield "the logs are summed: that is the log of a product", log_w.sum(dims)
    yield "the largest weight stands in place of the mean", largest
    yield "the logs are averaged with the normalised weights", (share * log_w).sum(dims)
    yield "the log is missing: this is the mean of the weights itself", right.exp()
    yield "the log is missing: this is the sum of the weights itself", total.exp()
    yield "the exponential is missing: the log is taken of a mean of logs", log_w.mean(dims).log()
    yield "the exponential is missing: the log is taken of a sum of logs", log_w.sum(dims).log()
    yield "the largest was taken out and is not put back", right - largest
    yield "the largest was taken out and is put back twice", right + largest
    yield "the largest was taken out and is put back with the wrong sign", right - 2 * largest
    yield "a 1 is added under the log", total.exp().log1p() - math.log(count)
    yield "a 1 is added under the log", right.exp().log1p()
    yield "the sign is flipped: this is a loss, to be made small", -right
    yield "the sign of log_w is flipped", torch.logsumexp(-log_w, dims) - math.log(count)
    yield "the unit is bits, not nats", right / math.log(2)


def over(places, log_w):
    """The slips of `averages` in each place: ``(clause, dimensions)`` pairs, the right one first."""
    for where, dims in places:
        for clause, result in averages(log_w, dims):
            yield tuple(words for words in (clause, where) if words), result


def rough(draw, *size):
    """Log weights as a model gives them, on a small scale."""
    return 1.5 * draw(*size) - 2


def held(good, why: str) -> str:
    """What `Task.properties` yields: "" when all is well."""
    return "" if good else why


# ---- log_mean_exp(log_w, dim): the log of the mean of the weights along dim


def log_mean_exp(log_w, dim):
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def log_mean_exp_slips(log_w, dim):
    everything = tuple(range(log_w.dim()))
    others = tuple(d for d in everything if d != dim % log_w.dim())
    places = [("", (dim,)), ("dimension 0 is taken, whatever dim says", (0,))]
    places += [
        ("dimension 1 is taken, whatever dim says", (1,)),
        ("the last dimension is taken, whatever dim says", (-1,)),
    ]
    places += [("all dimensions are taken", everything), ("all dimensions but dim are taken", others)]
    yield from over(places, log_w)
    right = log_mean_exp(log_w, dim)
    yield "a dimension of size 1 is left", right.unsqueeze(dim)
    yield "the mean over what is left is taken", right.mean()
    yield "the sum over what is left is taken", right.sum()


def log_mean_exp_cases(draw):
    return [
        Case("(6, 4), dim=0", (rough(draw, 6, 4), 0)),
        Case("(6, 4), dim=1", (rough(draw, 6, 4), 1)),
        Case("(6, 4), dim=-1", (rough(draw, 6, 4), -1)),
        Case("(3, 5, 2), dim=1", (rough(draw, 3, 5, 2), 1)),
        Case("(3, 5, 2), dim=-3", (rough(draw, 3, 5, 2), -3)),
        Case("a vector of 7", (rough(draw, 7), 0)),
        Case("a single weight", (rough(draw, 1, 4), 0)),
        Case("a single mean, (6, 1), dim=0", (rough(draw, 6, 1), 0)),
        Case("(3, 130), dim=1", (rough(draw, 3, 130), 1)),
    ]


def log_mean_exp_probes(draw):
    return [Case("", (rough(draw, 4, 3, 5), 1)), Case("", (rough(draw, 4, 3, 5), -2))]


def log_mean_exp_extremes(draw):
    for dtype, rtol in ((f32, 1e-5), (f64, 1e-9)):
        for level in (-1e4, -300, 300, 1e4, -1e6, 1e6):
            yield Case(f"log weights near {level:g}", (level + rough(draw, 6, 4), 0)), dtype, rtol
        levels = torch.tensor([[-2000.0], [0.0], [2000.0]], dtype=f64)
        yield (
            Case("log weights near -2000, 0 and 2000, each row its own", (levels + draw(3, 5), 1)),
            dtype,
            rtol,
        )
        yield Case("log weights near -2000, 0 and 2000 in one mean", (levels + draw(3, 5), 0)), dtype, rtol


def log_mean_exp_properties(student: Student):
    log_w = torch.linspace(-3, 2, 24).reshape(4, 3, 2).sin()
    for dim, want in ((0, (3, 2)), (1, (4, 2)), (2, (4, 3)), (-1, (4, 3))):
        result = student(log_w.clone(), dim)
        right = isinstance(result, Tensor) and result.shape == want
        why = f"for a tensor of shape (4, 3, 2) expected one of shape {want}, and got {shape(result)}"
        yield f"dim={dim}: this dimension is gone", held(right, why)
    result = student(log_w.clone(), 0)
    yield "finite", held(finite(result), "some numbers are not finite")
    between = (result > log_w.amin(0)) & (result < log_w.amax(0))
    yield (
        "between the smallest and the largest",
        held(between.all(), "a mean lies between the smallest and the largest"),
    )
    moved = student(log_w + 0.5, 0)
    yield (
        "moves with its input",
        held(
            torch.allclose(moved, result + 0.5, atol=1e-5),
            "a constant added to log_w must be added to the result",
        ),
    )
    turned = student(log_w.flip(0), 0)
    yield "blind to the order", held(torch.allclose(turned, result, atol=1e-5), "the order must not matter")


def zeros(task: Task, student: Student, draw: Draw) -> None:
    """Weights of zero, given as -inf: some of a mean, or all of them."""
    for dtype in (f32, f64):
        some, every, runs = rough(draw, 5, 3), rough(draw, 5, 3), rough(draw, 6, 12)
        some[1, 0] = some[3, 0] = some[0, 2] = -math.inf
        every[:, 1] = -math.inf
        # The first two, three, ... five, the last ones, and those in the middle.
        for column, (first, last) in enumerate([(0, n) for n in range(1, 6)] + [(n, 6) for n in range(1, 6)]):
            runs[first:last, column] = -math.inf
        runs[1:5, 10] = runs[::2, 11] = -math.inf
        cases = [
            ("some weights are zero", some, 0),
            ("some weights are zero, dim=1", some.T, 1),
            ("the first or the last weights are zero", runs, 0),
            ("the first or the last weights are zero, dim=-1", runs.T, -1),
            ("all weights of a mean are zero", every, 0),
            ("all weights of a mean are zero, dim=-1", every.T, -1),
            ("the only weight is zero", torch.full((1, 2), -math.inf, dtype=f64), 0),
        ]
        for label, log_w, dim in cases:
            (leaf,) = prepared((log_w,), dtype)
            leaf.requires_grad_()
            got = student(leaf, dim, where=label)
            want = log_mean_exp(leaf.detach().to(f64), dim)
            if not same(got, want, 1e-4, 1e-4):
                nan = " A NaN often comes from -inf - (-inf)." if _any_nan(got) else ""
                raise Wrong(
                    "wrong. If ordinary values are right: a weight of zero has the log -inf, counts among "
                    f"the K and adds nothing; the mean of zeros is zero, its log -inf.{nan}",
                    case=label,
                )
            alive = want.isfinite()
            if not alive.any():
                continue
            if not got.requires_grad:
                raise Wrong("the value is right, but no gradient reaches log_w.", case=label)
            (slope,) = torch.autograd.grad(got[alive].sum(), leaf)
            # Where every weight is zero there is no gradient to be right or wrong about.
            slope, share = slope.movedim(dim, 0)[:, alive], leaf.detach().movedim(dim, 0)[:, alive].softmax(0)
            if not same(slope, share, 1e-3, 1e-3):
                raise Wrong(
                    "the value is right, but its gradient is not. A weight of zero "
                    "gets the gradient 0, and the others theirs.",
                    case=label,
                )


def _any_nan(result) -> bool:
    return isinstance(result, Tensor) and bool(result.isnan().any())


LOG_MEAN_EXP = Task(
    name="log_mean_exp",
    read="estimation#averaging-numbers-too-small-to-write-down",
    reference=log_mean_exp,
    slips=log_mean_exp_slips,
    properties=log_mean_exp_properties,
    cases=log_mean_exp_cases,
    probes=log_mean_exp_probes,
    extremes=log_mean_exp_extremes,
    differentiate=(0,),
    hint="take the largest along dim, of each mean its own, out before exp, and add no epsilon",
    tests={"values": values, "gradients": gradients, "stability": stability, "zeros": zeros},
)

# ---- iwae_bound(log_w): the same over the samples of each example


def iwae_bound(log_w):
    return log_mean_exp(log_w, 0)


def iwae_bound_slips(log_w):
    bound = log_mean_exp(log_w, 0)
    yield from over(
        [
            ("", (0,)),
            ("it runs over the batch, not over the samples", (1,)),
            ("it runs over samples and batch together", (0, 1)),
        ],
        log_w,
    )
    yield "the mean over the batch is taken", bound.mean()
    yield "the sum over the batch is taken", bound.sum()
    yield "a dimension of size 1 is left", bound.unsqueeze(0)
    yield "the result is divided by the number of samples", bound / len(log_w)
    yield "the result is divided by the batch size", bound / log_w.shape[1]


def iwae_bound_cases(draw):
    return [
        Case("6 samples of 4 examples", (rough(draw, 6, 4),)),
        Case("3 samples of 5 examples", (rough(draw, 3, 5),)),
        Case("a batch of one", (rough(draw, 5, 1),)),
        Case("a single sample", (rough(draw, 1, 4),)),
        Case("images, log weights near -500", (100 * draw(5, 3) - 500,)),
        Case("130 samples of 30 examples", (rough(draw, 130, 30),)),
        Case("large images, log weights near -100000", (100 * draw(5, 3) - 1e5,)),
    ]


def iwae_bound_properties(student: Student):
    log_w = 2 * torch.linspace(-3, 3, 15).reshape(5, 3).sin() - 4
    bounds = student(log_w.clone())
    yield "one number per example", per_example(bounds, 3)
    yield "finite", held(finite(bounds), "some bounds are not finite")
    better = student(log_w + torch.linspace(0, 1, 5).unsqueeze(1))
    yield "higher when weights grow", held((better > bounds).all(), "larger weights must give a higher bound")
    yield (
        "at least the ELBO of the same samples",
        held((bounds > log_w.mean(0)).all(), "the bound must be above the mean of the log weights"),
    )


IWAE_BOUND = Task(
    name="iwae_bound",
    read="estimation#the-importance-weighted-bound",
    reference=iwae_bound,
    slips=iwae_bound_slips,
    properties=iwae_bound_properties,
    cases=iwae_bound_cases,
    probes=lambda draw: [Case("", (rough(draw, 4, 3),)), Case("", (rough(draw, 3, 5),))],
    differentiate=(0,),
    own=("log_mean_exp",),
    composed=lambda own, log_w: own[0](log_w, 0),
    tests={"values": values, "gradients": gradients},
)

# ---- log_likelihood(x, encode, decode, samples, generator): what is right, by quadrature


def bernoulli(x, logits):
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


def nodes(k):
    """The trapezoidal rule for a standard normal: noise (nodes, 1, k) and weights (nodes, 1) of sum 1."""
    line = torch.linspace(-10, 10, 201, dtype=f64)
    grid = torch.cartesian_prod(*[line] * k).reshape(-1, 1, k)
    return grid, (Normal(0, 1).log_prob(grid) + math.log(line[1] - line[0])).sum(-1).exp()


def log_weights(x, mean, logvar, decode, noise):
    q = Normal(mean, (logvar / 2).exp())
    z = mean + q.stddev * noise
    return bernoulli(x, decode(z)) + (Normal(0, 1).log_prob(z) - q.log_prob(z)).sum(-1)


def log_likelihood(x, encode, decode, samples, generator):
    """By quadrature, so for one or two latents only."""
    prior = torch.zeros_like(encode(x)[0])
    noise, mass = nodes(prior.shape[-1])
    return torch.logsumexp(log_weights(x, prior, prior, decode, noise) + mass.log(), 0)


def elbo(x, encode, decode):
    """The bound that one sample gives on average."""
    mean, logvar = encode(x)
    noise, mass = nodes(mean.shape[-1])
    return (mass * log_weights(x, mean, logvar, decode, noise)).sum(0)


def chi_square(x, encode, decode):
    """The variance of w / p(x)."""
    mean, logvar = encode(x)
    noise, mass = nodes(mean.shape[-1])
    log_r = log_weights(x, mean, logvar, decode, noise) - log_likelihood(x, encode, decode, 1, None)
    return (mass * log_r.exp().square()).sum(0) - 1


# -- slips of log_likelihood: the estimator with one thing changed


def std(mean, logvar):
    return (logvar / 2).exp()


def variance(mean, logvar):
    return logvar.exp()


def log_normal(z, mean, spread):
    return (-0.5 * ((z - mean) / spread) ** 2 - spread.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def whole(size):
    """The shape of the noise, (samples, batch, k), as it should be."""
    return size


def estimate(
    x,
    encode,
    decode,
    samples,
    generator,
    *,
    centre: Callable = lambda mean: mean,
    spread: Callable = std,
    density_spread: Callable = std,
    count: Callable = lambda samples: samples,
    size: Callable = whole,
    draw: Callable = torch.randn,
    decoded: Callable = lambda z, mean: z,
    likelihood: Callable = bernoulli,
    weight: Callable = lambda t: t.likelihood + t.prior - t.q,
    average: Callable = iwae_bound,
):
    """The importance-sampling estimate, right or with some part exchanged."""
    mean, logvar = encode(x)
    full = (count(samples), *mean.shape)
    noise = draw(size(full), generator=generator, dtype=mean.dtype).expand(full)
    z = centre(mean) + spread(mean, logvar) * noise
    ones = torch.ones_like(mean)
    terms = SimpleNamespace(
        likelihood=likelihood(x, decode(decoded(z, mean))),
        prior=log_normal(z, 0, ones),
        q=log_normal(z, mean, density_spread(mean, logvar)),
        kl=0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(-1),
        prior_at_mean=log_normal(mean, 0, ones),
        q_of_noise=-0.5 * (noise**2 + logvar + math.log(2 * math.pi)).sum(-1),
        q_at_mean=log_normal(mean, mean, std(mean, logvar)),
        log_std=0.5 * logvar.sum(-1),
        half_square=0.5 * ((z - mean) / std(mean, logvar)).square().sum(-1),
        z_square=z.square().sum(-1),
        constant=0.5 * mean.shape[-1] * math.log(2 * math.pi),
        # What log q gains when the square is divided by the standard deviation, or by nothing.
        by_std=(-0.5 * (z - mean) ** 2 * ((-logvar / 2).exp() - (-logvar).exp())).sum(-1),
        by_nothing=(-0.5 * (z - mean) ** 2 * (1 - (-logvar).exp())).sum(-1),
        k=mean.shape[-1],
        x=x,
    )
    return average(weight(terms))


def likely(formula):
    """A slip in the likelihood: terms (samples, batch, D) before their sum."""
    return {"likelihood": lambda x, logits: formula(x.expand_as(logits), logits).sum(-1)}


WAYS = [
    ("", {}),
    ("-log K is missing: the weights are summed, not averaged", {"average": lambda w: w.logsumexp(0)}),
    ("log K is added, not subtracted", {"average": lambda w: w.logsumexp(0) + math.log(len(w))}),
    ("the batch size is taken for K", {"average": lambda w: w.logsumexp(0) - math.log(w.shape[1])}),
    ("the logs of the weights are averaged: that is the ELBO", {"average": lambda w: w.mean(0)}),
    ("the logs of the weights are summed", {"average": lambda w: w.sum(0)}),
    ("the largest weight stands in place of the mean", {"average": lambda w: w.amax(0)}),
    (
        "the logs are averaged with the normalised weights",
        {"average": lambda w: (w.softmax(0) * w).sum(0)},
    ),
    ("the sign is flipped: this is a loss, to be made small", {"average": lambda w: -iwae_bound(w)}),
    ("the unit is bits, not nats", {"average": lambda w: iwae_bound(w) / math.log(2)}),
    ("the log is missing", {"average": lambda w: iwae_bound(w).exp()}),
    ("the result is divided by the number of samples", {"average": lambda w: iwae_bound(w) / len(w)}),
    ("the mean over the batch is taken", {"average": lambda w: iwae_bound(w).mean()}),
    ("the mean over the batch is taken", {"average": lambda w: iwae_bound(w).mean().expand(w.shape[1])}),
    ("the sum over the batch is taken", {"average": lambda w: iwae_bound(w).sum()}),
    ("the mean runs over the batch, not over the samples", {"average": lambda w: iwae_bound(w.mT)}),
    ("the mean runs over samples and batch together", {"average": lambda w: iwae_bound(w.reshape(-1, 1))[0]}),
    ("the samples are not averaged", {"average": lambda w: w}),
    ("log q(z|x) is left out", {"weight": lambda t: t.likelihood + t.prior}),
    ("the log prior is left out", {"weight": lambda t: t.likelihood - t.q}),
    (
        "log p(z) and log q(z|x) are left out: for draws from q the likelihood alone is no weight",
        {"weight": lambda t: t.likelihood},
    ),
    ("the likelihood is left out", {"weight": lambda t: t.prior - t.q}),
    ("log q(z|x) is added, not subtracted", {"weight": lambda t: t.likelihood + t.prior + t.q}),
    ("the log prior is subtracted, not added", {"weight": lambda t: t.likelihood - t.prior - t.q}),
    ("the prior and q(z|x) have changed places", {"weight": lambda t: t.likelihood - t.prior + t.q}),
    (
        "the KL in closed form stands where log p(z) - log q(z|x) of each sample belongs",
        {"weight": lambda t: t.likelihood - t.kl},
    ),
    (
        "the logs of the weights are averaged, with the KL in closed form: that is the ELBO",
        {"weight": lambda t: t.likelihood - t.kl, "average": lambda w: w.mean(0)},
    ),
    (
        "the KL is subtracted although log p(z) - log q(z|x) is in the weights",
        {"weight": lambda t: t.likelihood + t.prior - t.q - t.kl},
    ),
    (
        "the constant of the prior's density is missing",
        {"weight": lambda t: t.likelihood + t.prior - t.q + t.constant},
    ),
    (
        "the constant of q's density is missing",
        {"weight": lambda t: t.likelihood + t.prior - t.q - t.constant},
    ),
    (
        "the log of the standard deviation is missing in log q(z|x)",
        {"weight": lambda t: t.likelihood + t.prior - t.q - t.log_std},
    ),
    (
        "the log-variance is not halved in log q(z|x)",
        {"weight": lambda t: t.likelihood + t.prior - t.q + t.log_std},
    ),
    (
        "the log of the standard deviation has the wrong sign in log q(z|x)",
        {"weight": lambda t: t.likelihood + t.prior - t.q - 2 * t.log_std},
    ),
    (
        "in log q(z|x) the square is divided by the standard deviation, not by the variance",
        {"weight": lambda t: t.likelihood + t.prior - t.q - t.by_std},
    ),
    (
        "in log q(z|x) the square is not divided by the variance",
        {"weight": lambda t: t.likelihood + t.prior - t.q - t.by_nothing},
    ),
    (
        "the densities of z are averaged over the latents, not summed",
        {"weight": lambda t: t.likelihood + (t.prior - t.q) / t.k},
    ),
    (
        "the likelihood is averaged over the pixels, not summed",
        {"weight": lambda t: t.likelihood / t.x.shape[1] + t.prior - t.q},
    ),
    (
        "the prior's density is taken at the mean of q, not at z, or the half before a square is missing",
        {"weight": lambda t: t.likelihood + t.prior_at_mean - t.q},
    ),
    (
        "q's density is taken at its mean, not at z",
        {"weight": lambda t: t.likelihood + t.prior - t.q_at_mean},
    ),
    (
        "both densities of z are taken at the mean of q, not at z",
        {"weight": lambda t: t.likelihood + t.prior_at_mean - t.q_at_mean},
    ),
    (
        "in log q(z|x) the half before the square is missing",
        {"weight": lambda t: t.likelihood + t.prior - t.q + t.half_square},
    ),
    (
        "in log p(z) the half before the square is missing",
        {"weight": lambda t: t.likelihood + t.prior - 0.5 * t.z_square - t.q},
    ),
    (
        "the half before the squares is missing in both densities of z",
        {"weight": lambda t: t.likelihood + t.prior - 0.5 * t.z_square - t.q + t.half_square},
    ),
    ("the mean of q is decoded, not z", {"decoded": lambda z, mean: mean.expand_as(z)}),
    ("the draws have the standard deviation exp(logvar), which is the variance", {"spread": variance}),
    (
        "log q(z|x) has the standard deviation exp(logvar), which is the variance",
        {"density_spread": variance},
    ),
    (
        "the draws and log q(z|x) have the standard deviation exp(logvar), which is the variance",
        {"spread": variance, "density_spread": variance},
    ),
    (
        "the draws have the standard deviation exp(logvar), which is the variance",
        {"spread": variance, "weight": lambda t: t.likelihood + t.prior - t.q_of_noise},
    ),
    ("logvar is taken as the standard deviation of the draws", {"spread": lambda m, s: s}),
    (
        "logvar is taken as the standard deviation",
        {"spread": lambda m, s: s.abs(), "density_spread": lambda m, s: s.abs()},
    ),
    (
        "logvar is halved twice: exp(logvar / 4) is no standard deviation",
        {"spread": lambda m, s: (s / 4).exp(), "density_spread": lambda m, s: (s / 4).exp()},
    ),
    (
        "the sign of logvar is flipped",
        {"spread": lambda m, s: (-s / 2).exp(), "density_spread": lambda m, s: (-s / 2).exp()},
    ),
    ("the draws have the standard deviation 1, not that of q", {"spread": lambda m, s: torch.ones_like(s)}),
    (
        "the standard deviation is 1, not that of q",
        {"spread": lambda m, s: torch.ones_like(s), "density_spread": lambda m, s: torch.ones_like(s)},
    ),
    (
        "the noise is left out: the mean of q stands for every draw",
        {"spread": lambda m, s: torch.zeros_like(s)},
    ),
    ("the mean of q is left out of the draws", {"centre": torch.zeros_like}),
    (
        "the draws come from the prior, and are weighted as if from q",
        {"centre": torch.zeros_like, "spread": lambda m, s: torch.ones_like(s)},
    ),
    (
        "the draws come from the prior, so that the encoder is not used",
        {
            "centre": torch.zeros_like,
            "spread": lambda m, s: torch.ones_like(s),
            "weight": lambda t: t.likelihood,
        },
    ),
    ("the noise is uniform, not normal", {"draw": torch.rand}),
    (
        "the noise is uniform, not normal",
        {"draw": lambda *a, **k: math.sqrt(12) * (torch.rand(*a, **k) - 0.5)},
    ),
    ("the noise is uniform, not normal", {"draw": lambda *a, **k: 2 * torch.rand(*a, **k) - 1}),
    ("the noise is limited (clamped)", {"draw": lambda *a, **k: torch.randn(*a, **k).clamp(-1, 1)}),
    ("only positive noise is drawn", {"draw": lambda *a, **k: torch.randn(*a, **k).abs()}),
    ("the number of samples is fixed", {"count": lambda samples: 10}),
    ("the number of samples is fixed", {"count": lambda samples: 50}),
    ("the number of samples is fixed", {"count": lambda samples: 100}),
    ("the noise is the same for all samples of an example", {"size": lambda n: (1, *n[1:])}),
    ("the noise is the same for all latents", {"size": lambda n: (*n[:-1], 1)}),
    (
        "the decoder's output is taken for probabilities, and it is logits",
        likely(lambda x, a: x * a.log() + (1 - x) * (1 - a).log()),
    ),
    (
        "the decoder's output is taken for probabilities, and it is logits",
        likely(lambda x, a: -F.binary_cross_entropy(a.clamp(1e-6, 1 - 1e-6), x, reduction="none")),
    ),
    (
        "the sigmoid is taken twice",
        likely(lambda x, a: -F.binary_cross_entropy_with_logits(a.sigmoid(), x, reduction="none")),
    ),
    (
        "x is rounded to 0 or 1",
        likely(lambda x, a: -F.binary_cross_entropy_with_logits(a, x.round(), reduction="none")),
    ),
    (
        "x and 1 - x have changed places",
        likely(lambda x, a: -F.binary_cross_entropy_with_logits(a, 1 - x, reduction="none")),
    ),
    ("the term (1 - x) log(1 - p) is missing", likely(lambda x, a: x * F.logsigmoid(a))),
    ("the normaliser of the logits is missing", likely(lambda x, a: x * a)),
    (
        "it is a squared error, not a Bernoulli likelihood",
        likely(lambda x, a: -((x - a.sigmoid()) ** 2)),
    ),
    (
        "it is a squared error, not a Bernoulli likelihood",
        likely(lambda x, a: -0.5 * (x - a.sigmoid()) ** 2),
    ),
    (
        "the cross-entropy is added: its negative is the log-likelihood",
        likely(lambda x, a: F.binary_cross_entropy_with_logits(a, x, reduction="none")),
    ),
]


def log_likelihood_slips(x, encode, decode, samples, generator):
    state = generator.get_state()
    for clause, way in WAYS:
        generator.set_state(state)
        yield clause, estimate(x, encode, decode, samples, generator, **way)


# -- inputs of log_likelihood: models whose p(x) is known exactly, and others


def greys(draw, batch, size):
    return draw(batch, size, low=0, high=1)


def posterior(draw, decode, low, high):
    """An encoder whose means are roughly right and whose variances depend on x and lie near low to high.

    Weights of bounded variance need both: hence no encoder at random.
    """
    weight, offset = decode.tensors
    size, k = weight.shape
    mean = 0.5 * weight.mT
    logvar = torch.linspace(math.log(low), math.log(high), k, dtype=f64)
    return GaussianEncoder(mean, 0.4 - mean @ offset.sigmoid(), 0.1 * draw(k, size), logvar)


def prior(size, k):
    """An encoder that always returns the prior."""
    nothing = torch.zeros(k, size, dtype=f64)
    return GaussianEncoder(nothing, nothing[:, 0], nothing, nothing[:, 0])


def picture(draw, size, k):
    return Affine(0.7 * draw(size, k), 0.7 * draw(size))


def blind(logits, k):
    """A decoder that ignores z: the prior is the posterior."""
    return Affine(torch.zeros(len(logits), k, dtype=f64), logits)


def exact_cases(draw):
    def case(label, batch, size, k, samples):
        decode = blind(1.5 * draw(size), k)
        return Case(label, (greys(draw, batch, size), prior(size, k), decode, samples, draw.seed()))

    return [
        case("q is the posterior, 4 samples", 5, 7, 2, 4),
        case("q is the posterior, one sample", 3, 6, 1, 1),
        case("q is the posterior, a batch of one", 1, 4, 2, 6),
        case("q is the posterior, one pixel", 4, 1, 2, 3),
    ]


def exact_probes(draw):
    decode = blind(draw(7, low=0.1, high=0.9), 2)
    return [Case("", (greys(draw, 5, 7), prior(7, 2), decode, 4, draw.seed()))]


def exact_extremes(draw):
    many, sure = 1.5 * draw(3000), torch.tensor([1e4, -1e4, 50, -200, 0.3], dtype=f64)
    all_sure = 1e4 * draw(3000).sign()
    x = torch.tensor([[0, 1, 0.25, 1, 0.5], [1, 0, 1, 0, 0.5], [0.5, 0, 0, 0.1, 0]], dtype=f64)
    for dtype, rtol in ((f32, 1e-5), (f64, 1e-9)):
        arguments = (greys(draw, 3, 3000), prior(3000, 1), blind(many, 1), 3, draw.seed())
        yield Case("3000 pixels", arguments), dtype, rtol
        arguments = (greys(draw, 3, 3000), prior(3000, 1), blind(all_sure, 1), 3, draw.seed())
        yield Case("3000 pixels, all logits 10000 or -10000", arguments), dtype, rtol
        # In float32 a sum of such numbers is good to about 0.001, in whatever order it is taken.
        close = max(rtol, 3e-4) if dtype == f32 else rtol
        yield Case("logits up to 10000", (x, prior(5, 1), blind(sure, 1), 3, draw.seed())), dtype, close


def log_likelihood_properties(student: Student):
    draw = Draw(1)
    x, decode = greys(draw, 5, 6), picture(draw, 6, 2)
    for label, encode in (("a given encoder", posterior(draw, decode, 0.6, 1.2)), ("the prior", prior(6, 2))):
        estimates = student(*prepared((x, encode, decode, 7, Seed(0)), f32), where=f"q is {label}")
        yield f"q is {label}: one number per example", per_example(estimates, 5)
        yield f"q is {label}: finite", held(finite(estimates), "some estimates are not finite")
    yield (
        "q is the prior: never positive",
        held(
            (estimates <= 0).all(), "with q equal to the prior the weights are probabilities of x, at most 1"
        ),
    )
    again, reseeded = (student(*prepared((x, encode, decode, 7, Seed(seed)), f32)) for seed in (0, 1))
    yield (
        "the same generator state, the same numbers",
        held(same(again, estimates, 0, 0), "two generators with the same seed give different results"),
    )
    yield (
        "another seed, other numbers",
        held(
            not same(reseeded, estimates, 0, 0),
            "the generator's seed makes no difference, so it is not drawn from",
        ),
    )


# -- tests of log_likelihood: what is exact about random estimates


def run(student: Student, case: Case, dtype: torch.dtype = f64) -> Tensor:
    """The estimates of one call, one finite number per example."""
    estimates = student(*prepared(case.arguments, dtype), where=case.label)
    batch = len(case.arguments[0])
    if not isinstance(estimates, Tensor) or estimates.shape != (batch,):
        raise Wrong(f"{shape(estimates)} is returned, not a tensor of shape ({batch},).", case=case.label)
    if not finite(estimates):
        raise Wrong("not all numbers are finite.", case=case.label)
    return estimates.detach().to(f64)


def random_case(draw: Draw, label: str, samples: int, k: int, low: float, high: float) -> Case:
    x = greys(draw, 3, 4)
    decode = picture(draw, 4, k)
    encode = posterior(draw, decode, low, high)
    return Case(label, (x, encode, decode, samples, draw.seed()))


def repeated(student: Student, case: Case, count: int) -> Tensor:
    """Independent estimates (count, batch) for the examples of a case.

    Each row of a batch has draws of its own, so one call with the examples again and again is many.
    Should a student's rows share their noise, that is for `draws` to say, and many calls are made.
    """
    x, *parts, seed = case.arguments
    estimates = run(student, replace(case, arguments=(x.repeat(count, 1), *parts, seed))).reshape(
        count, len(x)
    )
    if len(estimates[:, 0].unique()) > count / 2:
        return estimates
    calls = (replace(case, arguments=(x, *parts, Seed(seed.number + i))) for i in range(count))
    return torch.stack([run(student, call) for call in calls])


def moments(numbers: Tensor) -> tuple[float, float, float, float]:
    """The mean and the standard deviation of independent numbers, each with its standard error."""
    n, mean, spread = len(numbers), numbers.mean(), numbers.std()
    kurtosis = ((numbers - mean) / spread.clamp_min(1e-12)).pow(4).mean()
    error = spread * ((kurtosis - 1).clamp_min(0) / (4 * n)).sqrt()
    return float(mean), float(spread) / math.sqrt(n), float(spread), float(error)


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two sets of estimates have the same mean and scatter, as far as their number lets one say."""
    (a, da, sa, ea), (b, db, sb, eb) = moments(ours), moments(theirs)
    return abs(a - b) <= 5 * math.hypot(da, db) + 1e-6 and abs(sa - sb) <= 5 * math.hypot(ea, eb) + 1e-6


@functools.cache
def _slip_cases() -> list[Case]:
    """Inputs, always the same, on which `slip_of` looks."""
    draw = Draw(0)
    return [
        random_case(draw, "", samples, 2, low, high)
        for samples, (low, high) in product((1, 5), ((0.4, 0.6), (1.4, 2.2)))
    ]


@functools.cache
def _guess(way: int, case: int) -> Tensor:
    """500 estimates for each example of one of the `_slip_cases`, in one of the `WAYS`."""
    x, *parts, seed = _slip_cases()[case].arguments
    generator = torch.Generator().manual_seed(seed.number + 1)
    return estimate(x.repeat(500, 1), *parts, generator, **WAYS[way][1])


def slip_of(student: Student) -> Cause:
    """What to add about wrong estimates: the mistake whose estimates have the student's mean and scatter."""
    cases = _slip_cases()
    try:
        estimates = [
            run(student, replace(case, arguments=(case.arguments[0].repeat(500, 1), *case.arguments[1:])))
            for case in cases
        ]
    except Wrong:
        return UNKNOWN
    for way, (clause, _) in enumerate(WAYS):
        for case, observed in enumerate(estimates):
            guess = _guess(way, case)
            if guess.shape != observed.shape or not guess.isfinite().all() or not alike(guess, observed):
                break
        else:
            return Cause.of((clause,) if clause else ())
    return UNKNOWN


def weights(task: Task, student: Student, draw: Draw) -> None:
    """The mean of exp(estimate) is p(x), for any number of samples and any q."""
    for samples, k, low, high in ((4, 1, 1.3, 1.3), (8, 2, 1.3, 2.0), (3, 2, 1.6, 1.3)):
        case = random_case(draw, f"{samples} samples, latents: {k}", samples, k, low, high)
        ratio = (repeated(student, case, 1000) - log_likelihood(*case.arguments)).exp()
        score = z_score(ratio.mean(1), 1)
        if not abs(score) <= LIMIT:
            way = "low" if score < 0 else "high"
            raise Wrong(
                f"the mean weight is not p(x). Over many repetitions the "
                f"estimates of p(x) itself, not of its log, come out too {way}.",
                slip_of(student),
                case=case.label,
            )
    # From the prior, with a decoder so steep that few draws count: the log must be taken last, of all 300.
    x, decode = (greys(draw, 1, 15) > 0.5).to(f64), Affine(4 * draw(15, 2), draw(15))
    case = Case("300 samples, q far too wide", (x, prior(15, 2), decode, 300, draw.seed()))
    ratio = (repeated(student, case, 1000) - log_likelihood(*case.arguments)).exp()
    if not abs(z_score(ratio.mean(1), 1)) <= LIMIT:
        raise Wrong(
            "the mean weight is not p(x), with many samples. If the other cases "
            "are right: is it one mean of all samples, with one log, or a mean of logs of parts?",
            case=case.label,
        )


def bound(task: Task, student: Student, draw: Draw) -> None:
    """With one sample the mean of the estimates is the ELBO of the encoder that was given."""
    for k, low, high in ((1, 0.3, 0.3), (2, 0.25, 0.5), (2, 1.8, 2.5)):
        case = random_case(draw, f"one sample, latents: {k}", 1, k, low, high)
        score = z_score((repeated(student, case, 800) - elbo(*case.arguments[:3])).mean(1), 0)
        if not abs(score) <= LIMIT:
            way = "low" if score < 0 else "high"
            raise Wrong(
                f"with one sample the mean of the estimates is the ELBO, and "
                f"over many repetitions yours come out too {way}.",
                slip_of(student),
                case=case.label,
            )


def draws(task: Task, student: Student, draw: Draw) -> None:
    """From the generator, anew for every example and every sample, and as many as were asked for."""
    small = random_case(draw, "the draws", 3, 2, 1.4, 2.0)
    uses_generator(student, lambda generator: student(*prepared(small.arguments[:-1], f64), generator))
    noise_is_read_off(student, draw)
    for samples, q in product((2, 20, 120), ("wide", "prior")):
        x, decode = greys(draw, 1, 4), picture(draw, 4, 2)
        encode = posterior(draw, decode, 1.6, 2.4) if q == "wide" else prior(4, 2)
        case = Case(
            f"{samples} samples of one example, repeated",
            (x.repeat(1500, 1), encode, decode, samples, draw.seed()),
        )
        estimates = run(student, case)
        if len(estimates.unique()) < 1000:
            raise Wrong(
                "equal examples get equal estimates, so the noise or the result is shared in "
                "the batch. Draw noise of shape (samples, batch, k), and average over the samples alone."
            )
        weight = (estimates - estimates.max()).exp()
        scatter = (weight.var() / weight.mean() ** 2) / (chi_square(x, encode, decode).item() / samples)
        if not 1 / 1.4 < scatter < 1.4:
            way = "more" if scatter > 1 else "less"
            raise Wrong(
                f"the estimates scatter {way} than the mean of that many independent weights does.",
                slip_of(student),
                case=case.label,
            )
    samples_are_independent(student, draw)


def noise_is_read_off(student: Student, draw: Draw) -> None:
    """With a decoder that ignores z and a q of the prior's variance the log weight is log p(x) - mean^2 / 2 -
    mean * noise: the estimate from one sample shows its noise."""
    size, logits = 4, draw(4)
    flat, image = torch.zeros(2, size, dtype=f64), greys(draw, 1, size)
    generator = torch.Generator().manual_seed(draw.seed().number)

    def noise(latent: int, rows: int) -> Tensor:
        means, x = flat[:, 0].clone(), image.expand(rows, size)
        means[latent] = 1.0
        arguments = x, GaussianEncoder(flat, means, flat, flat[:, 0]), blind(logits, 2), 1
        estimates = student(*prepared(arguments, f64), generator, where="q of the prior's variance")
        if not isinstance(estimates, Tensor) or estimates.shape != (rows,) or not finite(estimates):
            raise Wrong("not one finite number for each example is returned.")
        return bernoulli(x, logits.expand_as(x)) - 0.5 - estimates.detach().to(f64)

    calls = [
        noise(latent, rows) for latent, rows in ((0, 3000), (1, 3000), (0, 3000), (0, 35_000), (1, 35_000))
    ]
    for drawn in calls:
        if not at_least(drawn.std(), 1e-6) or not at_most(abs(z_score(drawn, 0.0)), LIMIT):
            return  # a weight is wrong, or the noise is shared, as other tests find
    if not far_apart(torch.cat(calls[:3])):
        who = "calls one after the other" if far_apart(calls[0]) else "examples of a batch"
        raise Wrong(f"{who} share their noise, or have it mirrored. Draw it anew for every example.")
    everything = torch.cat(calls)
    if not at_most(tails(everything / everything.std()), LIMIT):
        raise Wrong(
            "the noise is not standard normal: it is limited (clamped), or of another kind.",
            Cause("", ("the noise is not standard normal",)),
        )


def samples_are_independent(student: Student, draw: Draw) -> None:
    """As `noise_is_read_off`, for several samples: their estimates are those of independent noise."""
    size, rows, mean, logits = 4, 3000, 8.0, draw(4)
    x, flat = greys(draw, 1, size).expand(rows, size), torch.zeros(1, size, dtype=f64)
    encode = GaussianEncoder(flat, flat[:, 0] + mean, flat, flat[:, 0])
    for samples in (2, 7):
        arguments = x, encode, blind(logits, 1), samples, draw.seed()
        estimates = run(student, Case(f"{samples} samples of one example", arguments))
        right = log_mean_exp(-mean * draw(samples, 10 * rows), 0)
        if not alike(
            right - right.mean(), estimates - estimates.mean()
        ):  # what is added is not looked at here
            raise Wrong(
                "the samples of one example are not independent: they share their noise, or have it "
                "mirrored. Draw it anew for every sample."
            )


def precise(task: Task, student: Student, draw: Draw) -> None:
    """Exact cases to the last digits, and extreme ones; then proposals of tiny and of huge variance."""
    stability(task, student, draw)
    logits, flat = draw(5), torch.zeros(2, 5, dtype=f64)
    for level in (-40, -100, 40, 100):
        logvar = torch.full((2,), level, dtype=f64)
        x, encode, decode = (
            greys(draw, 3, 5),
            GaussianEncoder(flat, flat[:, 0], flat, logvar),
            blind(logits, 2),
        )
        case = Case(f"log-variances of {level}", (x, encode, decode, 1, draw.seed()))
        kl = 0.5 * float((logvar.exp() - logvar - 1).sum())
        right = bernoulli(x, logits.expand_as(x)) - kl
        off = (repeated(student, case, 500) - right) / max(1.0, float(logvar.exp().sum()))
        if not abs(z_score(off.mean(1), 0)) <= LIMIT:
            raise imprecise(task, case.label)


LOG_LIKELIHOOD = Task(
    name="log_likelihood",
    read="estimation#importance-sampling",
    reference=log_likelihood,
    slips=log_likelihood_slips,
    properties=log_likelihood_properties,
    cases=exact_cases,
    probes=exact_probes,
    extremes=exact_extremes,
    hint="stay with log weights and logits, take the largest out before exp, add no epsilon, and "
    "draw in the dtype of the inputs",
    tests={
        "values": values,
        "weights": weights,
        "bound": bound,
        "draws": draws,
        "stability": precise,
    },
)

# ---- active_units(mean, threshold): how many latents vary over the data


def active_units(mean, threshold=0.01):
    return sum(float(((column - column.mean()) ** 2).mean()) > threshold for column in mean.unbind(1))


def active_units_slips(mean, threshold=None):
    def counted(statistic, above=None):
        return int((statistic > (level if above is None else above)).sum())

    level = 0.01 if threshold is None else threshold
    variance, k = mean.var(0, correction=0), mean.shape[1]
    second = mean.square().mean(0)
    yield "", counted(variance)
    yield "the standard deviation is compared with the threshold, not the variance", counted(variance.sqrt())
    yield (
        "the variance runs over the latents, not over the data: examples are counted",
        counted(mean.var(1, correction=0)),
    )
    yield "the second moment is taken: the mean over the data is not subtracted", counted(second)
    yield "the threshold is not used", counted(variance, 0.01)
    yield "a threshold of 0 is taken for none", counted(variance, level or 0.01)
    for default in (0.0, 0.001, 0.1):
        yield (
            "the default of threshold is not 0.01",
            counted(variance, default if threshold is None else level),
        )
    yield "the square root of the threshold is taken", counted(variance, level**0.5)
    yield "inactive units are counted", int((variance <= level).sum())
    yield "the squared differences are summed, not averaged", counted(variance * len(mean))
    yield "the range over the data is taken, not the variance", counted(mean.amax(0) - mean.amin(0))
    yield "the size of the mean counts, not its variance", counted(mean.mean(0))
    yield "the size of the mean counts, not its variance", counted(mean.mean(0).abs())
    yield "the size of the means counts, not their variance", counted(mean.abs().mean(0))
    yield "entries are counted, not latents", counted(mean)
    yield "entries are counted, not latents", counted(mean.abs())
    yield "entries are counted, not latents", counted((mean - mean.mean(0)).square())
    yield "one variance is taken of all entries together", counted(mean.var(correction=0))
    yield "a fraction is returned, not a number", counted(variance) / k
    yield "the sum of the variances is returned, not their number", float(variance[variance > level].sum())
    yield "the sum of the variances is returned, not their number", float(variance.sum())
    yield "all latents are counted", k
    yield "all examples are counted", len(mean)
    yield "only whether there is one is returned", counted(variance) > 0
    yield "latents are reported, not counted", (variance > level)
    yield "the variances are returned, not their number", variance


def columns(draw, examples, spreads):
    """Posterior means (examples, k) with these (standard deviation, mean) over the data, in any order."""
    noise = draw(examples, len(spreads))
    noise = (noise - noise.mean(0)) / noise.std(0, correction=0)
    spread, offset = torch.tensor(spreads, dtype=f64).T
    return (offset + spread * noise)[:, draw(len(spreads)).argsort()]


# Near 0.01, but never so near that it would matter whether a variance is divided by N or N - 1.
CLEAR = [(1.0, 0.0), (0.8, 2.0), (0.3, -1.0), (0.115, 0.4)]
QUIET = [(0.04, 0.0), (0.05, 1.5), (0.03, -0.2), (0.002, 0.0), (0.003, -2.0), (0.088, -0.7)]


def collapsed(draw, examples, levels=(0.0, 1.5, -2.0)):
    """Posterior means of which three do not depend on x at all.

    Where all are 0 their variance is 0 to the last bit; elsewhere that depends on the order of a sum."""
    still = torch.tensor(levels, dtype=f64).expand(examples, 3)
    return torch.cat([columns(draw, examples, CLEAR), still], 1)


def active_units_cases(draw):
    return [
        Case("200 examples of 10 latents", (columns(draw, 200, CLEAR + QUIET),)),
        Case("6 examples of 16 latents", (columns(draw, 6, CLEAR + 2 * QUIET),)),
        Case("means near 1000", (1000 + columns(draw, 150, 4 * (CLEAR + QUIET)),)),  # in float32, too
        Case("threshold=0.25", (columns(draw, 30, CLEAR + QUIET),), {"threshold": 0.25}),
        Case("0.0001 as second argument", (columns(draw, 30, CLEAR + QUIET), 1e-4)),
        Case("threshold=0", (columns(draw, 30, CLEAR + QUIET),), {"threshold": 0.0}),
        Case("threshold=0, three latents 0 for all", (collapsed(draw, 30, (0.0,) * 3),), {"threshold": 0.0}),
        Case("three latents the same for all", (collapsed(draw, 7),)),
        Case("tiny means", (1e-6 * columns(draw, 40, CLEAR + QUIET),), {"threshold": 1e-14}),
        Case("huge means", (1e3 * columns(draw, 40, CLEAR + QUIET),), {"threshold": 1e4}),
        Case("all active", (columns(draw, 50, 2 * CLEAR),)),
        Case("none active", (columns(draw, 50, QUIET),)),
        Case("one latent, active", (columns(draw, 20, CLEAR[1:2]),)),
        Case("one latent, not active", (columns(draw, 20, QUIET[1:2]),)),
    ]


def active_units_probes(draw):
    spreads = 2 * CLEAR + QUIET + [(0.04, -0.5), (0.02, 0.7)]
    return [
        Case("", (columns(draw, 40, spreads),)),
        Case("", (columns(draw, 19, spreads),), {"threshold": 0.25}),
        Case("", (columns(draw, 23, spreads),), {"threshold": 0.0}),
        Case("", (columns(draw, 17, CLEAR + 3 * QUIET),), {"threshold": 1e-4}),
        Case("", (columns(draw, 12, [(0.5, -4.0), (0.5, 4.0), (0.3, 1.0)]),), {"threshold": 1.0}),
    ]


def active_units_properties(student: Student):
    draw = Draw(2)
    mean = columns(draw, 60, CLEAR + QUIET).to(f32)
    active = student(mean.clone())
    yield "a Python int", held(type(active) is int, f"expected an int, and got {shape(active)}")
    yield "from 0 to the number of latents", held(0 <= active <= 10, "there are at most as many as latents")
    moved = student(mean + 1)
    yield "blind to a constant", held(moved == active, "a constant added to all means changes no variance")
    doubled = student(torch.cat([mean, mean]))
    yield (
        "blind to a repeated data set",
        held(doubled == active, "the data twice over have the same variance"),
    )
    fewer = student(mean.clone(), threshold=100.0)
    yield "none above a huge threshold", held(fewer == 0, "with threshold=100 no unit is active here")


ACTIVE_UNITS = Task(
    name="active_units",
    read="collapse#forty-latent-variables-and-how-many-are-used",
    reference=active_units,
    slips=active_units_slips,
    properties=active_units_properties,
    cases=active_units_cases,
    probes=active_units_probes,
    tests={"values": values},
)

# ---- linear_annealing(step, start, end): a weight that rises from 0 to 1


def linear_annealing(step, start, end):
    if step >= end:
        return 1.0
    return 0.0 if step <= start else (step - start) / (end - start)


def linear_annealing_slips(step, start, end):
    rise = (step - start) / (end - start)
    clamped = min(max(rise, 0.0), 1.0)
    yield "", clamped
    yield "the weight is not held at 0 before the start and at 1 after the end", rise
    yield "the weight is not held at 1 after the end", max(rise, 0.0)
    yield "the weight is not held at 0 before the start", min(rise, 1.0)
    yield "the weight falls from 1 to 0", 1 - clamped
    yield "start is not used: the rise begins at step 0", min(max(step / end, 0.0), 1.0)
    yield "the rise begins at step 0", min(max(step / (end - start), 0.0), 1.0)
    yield "the rise takes end steps, not end - start", min(max((step - start) / end, 0.0), 1.0)
    yield "the weight jumps at the start", 0.0 if step < start else min(step / end, 1.0)
    yield "the weight jumps from 0 to 1 at the end", float(step >= end)
    yield "the weight jumps from 0 to 1 at the start", float(step >= start)
    yield "the weight jumps from 0 to 1 at the start", float(step > start)
    yield "the weight jumps from 0 to 1 half-way", float(round(clamped))
    yield "the weight is rounded to whole numbers", float((step - start) // (end - start))
    yield "the weight is rounded to whole numbers", float(min(max((step - start) // (end - start), 0), 1))
    yield "the weight is in per cent", 100 * clamped
    yield "the rise is one step off", min(max((step - start + 1) / (end - start), 0.0), 1.0)
    yield "the rise is one step off", min(max((step - start) / (end - start + 1), 0.0), 1.0)
    yield "the rise is one step off", min(max((step - start) / (end - start - 1), 0.0), 1.0)
    yield "the rise is a parabola, not a straight line", clamped**2
    yield "the rise is a cosine, not a straight line", 0.5 - 0.5 * math.cos(math.pi * clamped)
    yield "the rise is a smooth step, not a straight line", 3 * clamped**2 - 2 * clamped**3
    yield "the weight falls back to 0 after the end", rise if 0 <= rise <= 1 else 0.0
    yield "the weight starts again after the end", max(rise, 0.0) % 1


def linear_annealing_cases(draw):
    first, length = int(draw(1, low=20, high=60)), int(draw(1, low=100, high=300))
    last = first + length
    return [
        Case("step 0", (0, first, last)),
        Case("before the start", (first - 7, first, last)),
        Case("at the start", (first, first, last)),
        Case("one step after the start", (first + 1, first, last)),
        Case("on the way", (first + length // 3, first, last)),
        Case("one step before the end", (last - 1, first, last)),
        Case("at the end", (last, first, last)),
        Case("one step after the end", (last + 1, first, last)),
        Case("long after the end", (5 * last, first, last)),
        Case("start is 0", (length // 4, 0, length)),
        Case("start is 0, step 0", (0, 0, length)),
        Case("numbers with fractions", (first + 0.7, first + 0.2, first + 2.9)),
        Case("a rise of less than one step", (first + 0.5, first + 0.2, first + 0.8)),
        Case("start and end are one, before", (first - 1, first, first)),
        Case("start and end are one, at it", (first, first, first)),
        Case("start and end are one, after", (first + 1, first, first)),
        Case("start and end are 0, step 0", (0, 0, 0)),
        Case("start and end are 0, later", (first, 0, 0)),
        Case("millions of steps", (10**6 * first + length, 10**6 * first, 10**6 * first + 3 * length)),
        Case("a rise over a thousandth of a step", (first + 0.0004, first, first + 0.001)),
    ]


def linear_annealing_probes(draw):
    steps = (0, 10, 20, 21, 27, 36, 41, 59, 60, 61, 85, 130)
    return [Case("", (step, 20, 60)) for step in steps]


def linear_annealing_properties(student: Student):
    weights = [student(step, 100, 300) for step in range(0, 400, 25)]
    numbers = all(type(weight) in (int, float) for weight in weights)
    yield "a number", held(numbers, f"expected a float, and got {shape(weights[0])}")
    inside = all(0 <= weight <= 1 for weight in weights)
    yield "from 0 to 1", held(inside, "a weight must be from 0 to 1")
    rising = all(a <= b for a, b in pairwise(weights))
    yield "never falling", held(rising, "the weight must not fall")
    yield (
        "0 at first, 1 at last",
        held((weights[0], weights[-1]) == (0, 1), "it must begin at 0 and end at 1"),
    )


def numbers(task: Task, student: Student, draw: Draw) -> None:
    """Is the number right? Of no matter which type: that it be a float is for the visible checks."""
    for case in task.cases(draw):
        got = student(*case.arguments, where=case.label, **case.keywords)
        if not same(got, task.reference(*case.arguments, **case.keywords), 1e-6, 1e-6):
            nan = "" if finite(got) else " It is not finite."
            raise Wrong(f"wrong.{nan}", diagnose(task, student, draw), case=case.label)


LINEAR_ANNEALING = Task(
    name="linear_annealing",
    read="collapse#remedies-and-what-they-buy",
    reference=linear_annealing,
    slips=linear_annealing_slips,
    properties=linear_annealing_properties,
    cases=linear_annealing_cases,
    probes=linear_annealing_probes,
    tests={"values": numbers},
)

TASKS = {
    task.name: task for task in (LOG_MEAN_EXP, IWAE_BOUND, LOG_LIKELIHOOD, ACTIVE_UNITS, LINEAR_ANNEALING)
}
