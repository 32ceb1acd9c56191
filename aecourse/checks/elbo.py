"""Assignment `elbo`: two KL divergences, two log-likelihoods, and the bound. Nats, one number per example."""

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import ContinuousBernoulli, MultivariateNormal, Normal, kl

from aecourse.checks.core import Case, Draw, Task, Wrong, f32, f64, finite, prepared, same, shape
from aecourse.checks.kinds import gradients, stability, values_in_evaluation
from aecourse.checks.naming import BOUND_SCALES, KL_SCALES, REDUCTIONS, call, spread
from aecourse.checks.parts import line
from aecourse.checks.student import Student

# ---- shared by several tasks
# Slips yield what to tell and the terms (batch, ...) that it leads to, before any sum; the first is right.
# `partial` combines them with the usual reductions and scales.

READY_MADE = ("torch.distributions.kl",)
TESTS = {"values": values_in_evaluation, "gradients": gradients, "stability": stability}


def partly_halved(*terms):
    """The sums in which the half in front reaches some of the terms only."""
    for halves in product((0.5, 1.0), repeat=len(terms)):
        if len(set(halves)) == 2:
            total = sum(half * term for half, term in zip(halves, terms))
            yield "the half multiplies only a part of the bracket", total


def partial(slips, scales):
    """The slips of a task, with every usual reduction and these scales."""
    return lambda *arguments: spread(slips(*arguments), scales=scales)


def latents(draw, batch, k):
    return 1.3 * draw(batch, k), 0.9 * draw(batch, k) - 0.4


def grey(draw, *size):
    return draw(*size, low=0, high=1), 2 * draw(*size)


# For naming mistakes: logits in (0, 1) and positive log-variances, so that taking them for probabilities or
# for variances leads to numbers and not to NaN.
def likely(draw, *size):
    return draw(*size, low=0.1, high=0.9)


def positive(draw, *size):
    return draw(*size, low=0.3, high=1.7)


def rows(*examples):
    """Extreme inputs, one kind per row: a huge number must not drown the others of its sum."""
    return torch.tensor(examples, dtype=f64)


LOG_VARIANCES = rows([-60, -60, -60], [60, 60, 60], [-60, 0, 0], [60, 0, 0], [-25, 8, -8], [-60, -30, 0])
OFFSETS = rows([0, 1, -2], [0, 1, -2], [0.5, 0.3, 0], [100, 1, -1], [1, -30, 0.1], [1e-6, 1, 0])
# Where variances are ordinary: nothing, and the same of every size.
FAR = rows([0, 0, 0], [1e-3, -1e-6, 0], [1e3, -1, 1], [-1e6, 1, 0], [1e6, 1e3, 1])
NO_LOG = "the log-variance is given: no log need be taken, and no epsilon, clamp or root is needed"


def per_example(result, batch: int) -> str:
    """Why a result is not one number per example; "" when it is."""
    right = isinstance(result, Tensor) and result.shape == (batch,)
    return (
        ""
        if right
        else f"expected one number per example, a tensor of shape ({batch},), and got {shape(result)}"
    )


# ---- gaussian_kl(mean, logvar): of a diagonal Gaussian from the prior


def gaussian_kl(mean, logvar):
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return kl.kl_divergence(Normal(mean, (logvar / 2).exp()), prior).sum(-1)


def gaussian_kl_slips(m, s):
    v, sd, mm = s.exp(), (s / 2).exp(), m**2
    yield "", 0.5 * (mm + v - s - 1)
    yield "logvar is taken as the standard deviation", 0.5 * (mm + s**2 - 2 * s.log() - 1)
    yield "logvar is taken as the variance", 0.5 * (mm + s - s.log() - 1)
    yield "logvar stands where the variance belongs", 0.5 * (mm + s - s - 1)
    yield "logvar stands where the standard deviation belongs", 0.5 * (mm + s**2 - s - 1)
    yield "exp(logvar), the variance, is taken as the standard deviation", 0.5 * (mm + v**2 - 2 * s - 1)
    yield "the variance is squared", 0.5 * (mm + v**2 - s - 1)
    yield "the standard deviation stands where the variance belongs", 0.5 * (mm + sd - s - 1)
    yield "the standard deviation stands where the variance belongs", 0.5 * (mm + sd - s / 2 - 1)
    yield (
        "the log of the standard deviation is taken, not that of the variance",
        0.5 * (mm + v - s / 2 - 1),
    )
    yield "the log-variance is counted twice", 0.5 * (mm + v - 2 * s - 1)
    yield "a logarithm is squared: (log s)^2 is not log s^2", 0.5 * (mm + v - (s / 2) ** 2 - 1)
    yield "a logarithm is squared: (log s)^2 is not log s^2", 0.5 * (mm + v - s**2 - 1)
    yield "a log is taken of logvar, which is a log already", 0.5 * (mm + v - s.log() - 1)
    yield "the -1 of each latent is missing", 0.5 * (mm + v - s)
    yield "the 1 is subtracted once, not once per latent", 0.5 * (mm + v - s - 1 / m.shape[1])
    yield "the 1 has the wrong sign", 0.5 * (mm + v - s + 1)
    yield "the log-variance has the wrong sign", 0.5 * (mm + v + s - 1)
    yield "the log-variance term is missing", 0.5 * (mm + v - 1)
    yield "the variance term is missing", 0.5 * (mm - s - 1)
    yield "the variance has the wrong sign", 0.5 * (mm - v - s - 1)
    yield "the variance is inverted", 0.5 * (mm + 1 / v - s - 1)
    yield "the mean is missing", 0.5 * (v - s - 1)
    yield "the mean is not squared", 0.5 * (m + v - s - 1)
    yield "the mean is not squared", 0.5 * (m.abs() + v - s - 1)
    yield "the squared mean has the wrong sign", 0.5 * (-mm + v - s - 1)
    yield "the squared mean is divided by the variance", 0.5 * (mm / v + v - s - 1)
    yield "the distributions are swapped: KL(prior || q)", 0.5 * ((1 + mm) / v + s - 1)
    yield "mean and logvar are swapped", 0.5 * (s**2 + m.exp() - m - 1)
    yield from partly_halved(mm, v, -s, -1)


def kl_cases(draw):
    return [
        Case("5 examples of 3 latents", latents(draw, 5, 3)),
        Case("a batch of one", latents(draw, 1, 4)),
        Case("a single latent", latents(draw, 4, 1)),
        Case("3 examples of 20 latents", latents(draw, 3, 20)),
        Case("130 examples of 2 latents", latents(draw, 130, 2)),
        Case("2 examples of 130 latents", latents(draw, 2, 130)),
    ]


def kl_extremes(draw):
    near = 1e-4 * draw(4, 3), 1e-4 * draw(4, 3)
    return [
        (Case("log-variances up to 600", (OFFSETS, 10 * LOG_VARIANCES)), f64, 1e-9),
        (Case("means up to 1000000", (FAR, 0.5 * draw(5, 3))), f64, 1e-9),
        # 1e-9 nats, which the formula knows to its last digits, of terms near 1.
        (Case("next to the prior", near), f64, 1e-4, 1e-14),
        (Case("the prior itself", (torch.zeros(2, 3, dtype=f64), torch.zeros(2, 3, dtype=f64))), f64, 1e-9),
        (Case("log-variances up to 60", (OFFSETS, LOG_VARIANCES)), f32, 1e-4),
        (Case("means up to 1000000", (FAR, 0.5 * draw(5, 3))), f32, 1e-4),
    ]


def positive_everywhere(d: Tensor) -> str:
    return "" if (d > 0).all() else "a divergence is positive when q is not the prior"


def zero(d: Tensor) -> str:
    return "" if (d.abs() < 1e-5).all() else "the divergence of the prior from itself is 0"


def kl_properties(student: Student):
    d = student(line(-2, 2, 5, 3), line(1, -3, 5, 3))
    yield "one number per example", per_example(d, 5)
    again = student(line(-2, 2, 5, 3), line(1, -3, 5, 3))
    yield "the same at a second call", "" if torch.equal(d, again) else "two calls give different numbers"
    yield "finite", "" if finite(d) else "some divergences are not finite"
    yield "never negative", positive_everywhere(d)
    prior = student(torch.zeros(4, 3), torch.zeros(4, 3))
    yield "zero at the prior", zero(prior)


GAUSSIAN_KL = Task(
    name="gaussian_kl",
    read="vae#the-price-of-a-code-kl-between-gaussians",
    reference=gaussian_kl,
    slips=partial(gaussian_kl_slips, KL_SCALES),
    properties=kl_properties,
    cases=kl_cases,
    probes=lambda draw: [Case("", (draw(5, 3), positive(draw, 5, 3)))],
    extremes=kl_extremes,
    differentiate=(0, 1),
    hint=NO_LOG,
    forbidden=READY_MADE,
    tests=TESTS,
)

# ---- full_gaussian_kl(mean, cov): of a Gaussian with a full covariance from the prior


def full_gaussian_kl(mean, cov):
    prior = MultivariateNormal(torch.zeros_like(mean), torch.eye(mean.shape[1], dtype=cov.dtype))
    return kl.kl_divergence(MultivariateNormal(mean, cov), prior)


def full_gaussian_kl_slips(m, cov):
    def trace(matrix):
        return matrix.diagonal(dim1=1, dim2=2).sum(1)

    def formulas():
        t, mm, k, d = trace(cov), (m**2).sum(1), m.shape[1], torch.linalg.slogdet(cov)[1]
        inverse, factor = torch.linalg.inv(cov), torch.linalg.cholesky(cov)
        weighted = torch.einsum("bi,bi->b", m, torch.einsum("bij,bj->bi", inverse, m))
        yield "", 0.5 * (t + mm - k - d)
        yield "the log-determinant has the wrong sign", 0.5 * (t + mm - k + d)
        yield "the log-determinant is missing", 0.5 * (t + mm - k)
        yield "the log-determinant is halved", 0.5 * (t + mm - k - d / 2)
        yield "the log-determinant is counted twice", 0.5 * (t + mm - k - 2 * d)
        yield "the log-determinant is summed over the batch", 0.5 * (t + mm - k - d.sum())
        yield "the determinant stands in place of its log", 0.5 * (t + mm - k - d.exp())
        yield "the sign of the determinant is taken, not its log", 0.5 * (t + mm - k - 1)
        yield "the first covariance serves for the whole batch", 0.5 * (t[0] + mm - k - d[0])
        yield "the trace is missing", 0.5 * (mm - k - d)
        yield "the trace is averaged over the latents", 0.5 * (t / k + mm - k - d)
        yield "the trace is summed over the batch", 0.5 * (t.sum() + mm - k - d)
        yield "the trace is that of the inverse of cov", 0.5 * (trace(inverse) + mm - k - d)
        yield "the trace is that of the Cholesky factor", 0.5 * (trace(factor) + mm - k - d)
        yield "all entries of cov are summed, not its diagonal", 0.5 * (cov.sum((1, 2)) + mm - k - d)
        yield "the k is missing", 0.5 * (t + mm - d)
        yield "the k has the wrong sign", 0.5 * (t + mm + k - d)
        yield "a 1 stands in place of k", 0.5 * (t + mm - 1 - d)
        yield "the batch size stands in place of k", 0.5 * (t + mm - len(m) - d)
        yield "k is squared", 0.5 * (t + mm - k**2 - d)
        yield "the mean is missing", 0.5 * (t - k - d)
        yield "the mean is not squared", 0.5 * (t + m.sum(1) - k - d)
        yield "the norm of the mean is not squared", 0.5 * (t + mm.sqrt() - k - d)
        yield "the squared mean is averaged over the latents", 0.5 * (t + mm / k - k - d)
        yield "the squared mean is summed over the batch", 0.5 * (t + mm.sum() - k - d)
        yield "the squared mean has the wrong sign", 0.5 * (t - mm - k - d)
        yield "the mean is weighted by the inverse of cov", 0.5 * (t + weighted - k - d)
        yield "cov is taken as a standard deviation", 0.5 * (trace(cov @ cov) + mm - k - 2 * d)
        yield "cov is squared in the trace", 0.5 * (trace(cov @ cov) + mm - k - d)
        yield "the diagonal of cov is squared", 0.5 * (trace(cov**2) + mm - k - d)
        yield "only the diagonal of cov is used", 0.5 * (t + mm - k - trace(cov.abs().log()))
        yield "the distributions are swapped: KL(prior || q)", 0.5 * (trace(inverse) + weighted - k + d)
        yield from partly_halved(t, mm, -k, -d)

    for clause, value in formulas():
        yield clause, (value[:, None] / m.shape[1]).expand_as(m)  # so that a mean over latents shows


def covariance(root, floor=0.3):
    """A symmetric positive definite matrix for each (k, k) root: gradients are taken through it.

    No eigenvalue lies below the floor.
    """
    matrix = root @ root.mT
    return (matrix + matrix.mT) / 2 + floor * torch.eye(root.shape[-1], dtype=root.dtype)


def roots(draw, batch, k):
    return draw(batch, k), draw(batch, k, k) / k**0.5


def full_cases(draw):
    return [
        Case("5 examples of 3 latents", roots(draw, 5, 3)),
        Case("a batch of one", roots(draw, 1, 4)),
        Case("a single latent", roots(draw, 4, 1)),
        Case("3 examples of 8 latents", roots(draw, 3, 8)),
        Case("130 examples of 2 latents", roots(draw, 130, 2)),
        Case("2 examples of 30 latents", roots(draw, 2, 30)),
    ]


SPREAD = torch.linspace(1, 2, 64, dtype=f64)


def rotated(draw, eigenvalues):
    """The roots of three full covariances with these eigenvalues."""
    return torch.linalg.qr(draw(3, len(eigenvalues), len(eigenvalues)))[0] * eigenvalues.sqrt()


def full_extremes(draw):
    nothing = torch.zeros(3, 4, dtype=f64)
    return [
        (Case("64 latents of small variance", (draw(3, 64), rotated(draw, 1e-30 * SPREAD), 0.0)), f64, 1e-9),
        (Case("64 latents of large variance", (draw(3, 64), rotated(draw, 1e30 * SPREAD), 0.0)), f64, 1e-9),
        (Case("means up to 1000000", (FAR, draw(5, 3, 3))), f64, 1e-9),
        (Case("the prior itself", (nothing, torch.eye(4, dtype=f64).repeat(3, 1, 1), 0.0)), f64, 1e-9),
        (Case("equal variances", (draw(3, 4), rotated(draw, rows(2, 2, 0.5, 0.5)), 0.0)), f64, 1e-9),
        # A nearly singular matrix does not determine its own determinant to more than this.
        (
            Case("nearly singular covariances", (draw(3, 4), rotated(draw, rows(2, 1, 0.5, 3e-10)), 0.0)),
            f64,
            1e-6,
        ),
    ]


def full_properties(student: Student):
    eye = torch.eye(3).repeat(5, 1, 1)
    d = student(line(-2, 2, 5, 3), covariance(line(-1, 1, 5, 3, 3)))
    yield "one number per example", per_example(d, 5)
    yield "finite", "" if finite(d) else "some divergences are not finite"
    yield "never negative", positive_everywhere(d)
    prior = student(torch.zeros(5, 3), eye)
    yield "zero at the prior", zero(prior)


FULL_GAUSSIAN_KL = Task(
    name="full_gaussian_kl",
    read="elbo#the-kl-between-gaussians",
    reference=full_gaussian_kl,
    slips=partial(full_gaussian_kl_slips, KL_SCALES),
    properties=full_properties,
    cases=full_cases,
    probes=lambda draw: [Case("", roots(draw, 5, 3))],
    extremes=full_extremes,
    differentiate=(0, 1),
    build=lambda mean, root, floor=0.3: (mean, covariance(root, floor)),
    hint="a determinant under- or overflows where its log does not; a jitter or a floor changes the answer, "
    "and so does a root of what may be 0",
    forbidden=READY_MADE,
    tests=TESTS,
)

# ---- bernoulli_log_likelihood(x, logits): of grey values too


def bernoulli(x, logits):
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def bernoulli_slips(x, a):
    p, log_p, log_q = a.sigmoid(), F.logsigmoid(a), F.logsigmoid(-a)
    yield "", x * log_p + (1 - x) * log_q
    yield "the sigmoid is taken twice", x * F.logsigmoid(p) + (1 - x) * F.logsigmoid(-p)
    yield "the logits are taken as probabilities", x * a.log() + (1 - x) * (1 - a).log()
    yield "x and 1 - x are swapped", (1 - x) * log_p + x * log_q
    yield "x and p are swapped", p * x.log() + (1 - p) * (1 - x).log()
    yield "x and logits are swapped", a * F.logsigmoid(x) + (1 - a) * F.logsigmoid(-x)
    yield "the term (1 - x) log(1 - p) is missing", x * log_p
    yield "the term x log p is missing", (1 - x) * log_q
    yield "the second term has the wrong sign", x * log_p - (1 - x) * log_q
    yield "a factor x or 1 - x is missing", log_p + (1 - x) * log_q
    yield "a factor x or 1 - x is missing", x * log_p + log_q
    yield "x is rounded to 0 or 1", x.round() * log_p + (1 - x.round()) * log_q
    yield "the normaliser of the logits is missing", x * a
    yield "the log is missing", x * p + (1 - x) * (1 - p)
    yield "the log is taken of a sum", (x * p + (1 - x) * (1 - p)).log()
    yield "it is a squared error, not a Bernoulli likelihood", -((x - p) ** 2)
    yield "it is a squared error, not a Bernoulli likelihood", -0.5 * (x - p) ** 2
    yield "it is a squared error, not a Bernoulli likelihood", -((x - a) ** 2)
    yield "x is taken to be 0 or 1, as in log sigmoid((2x - 1) a)", F.logsigmoid((2 * x - 1) * a)
    yield "it is the continuous Bernoulli, with a normaliser", ContinuousBernoulli(logits=a).log_prob(x)


def binary(draw, *size):
    return draw(*size, low=0, high=1).round(), 2 * draw(*size)


def bernoulli_cases(draw):
    return [
        Case("grey images (4, 2, 3, 5)", grey(draw, 4, 2, 3, 5)),
        Case("grey vectors (5, 7)", grey(draw, 5, 7)),
        Case("black and white vectors (5, 7)", binary(draw, 5, 7)),
        Case("a batch of one", grey(draw, 1, 6)),
        Case("one pixel (4, 1)", grey(draw, 4, 1)),
        Case("images (2, 3, 28, 28)", grey(draw, 2, 3, 28, 28)),
        Case("130 vectors of 3 pixels", grey(draw, 130, 3)),
    ]


INK = rows([1, 0.3, 0], [0, 1, 0.7], [0, 1, 0.5], [0.25, 0.75, 0], [1, 0, 1], [1, 0, 0.5], [0, 0.5, 1e-6])
SURE = rows(
    *([1e4, 1, -1], [-1e4, 1, -1], [1e4, -1e4, 0], [-1e4, 1e4, 0], [30, -30, 90], [-45, 45, -200]),
    [1e6, 1, -1e6],
)


def bernoulli_properties(student: Student):
    for size in ((5, 8), (5, 1, 4, 2)):
        x, logits = line(0, 1, *size), line(3, -2, *size)
        log_p = student(x, logits)
        yield f"{size}: one number per example", per_example(log_p, 5)
        yield f"{size}: finite", "" if finite(log_p) else "some values are not finite"
        yield (
            f"{size}: never positive",
            "" if (log_p < 0).all() else "the log of a probability is not positive",
        )
        closer = student(x, logits + 0.1 * (x - logits.sigmoid()))
        why = "" if (closer > log_p).all() else "logits that lean more to x should make x more likely"
        yield f"{size}: better when the logits lean to x", why


BERNOULLI_LOG_LIKELIHOOD = Task(
    name="bernoulli_log_likelihood",
    read="design#bernoulli-on-grey-values",
    reference=bernoulli,
    slips=partial(bernoulli_slips, BOUND_SCALES),
    properties=bernoulli_properties,
    cases=bernoulli_cases,
    probes=lambda draw: [
        Case("", (draw(*size, low=0, high=1), likely(draw, *size))) for size in ((5, 7), (5, 2, 3, 4))
    ],
    extremes=lambda draw: [
        (Case("logits up to 1000000", (INK, SURE)), f32, 1e-4),
        (Case("logits up to 1000000", (INK, SURE)), f64, 1e-9),
    ],
    differentiate=(1,),
    hint="stay with the logits, and limit nothing: once a sigmoid has rounded to 0 or 1, its log "
    "cannot be saved",
    tests=TESTS,
)

# ---- gaussian_log_likelihood(x, mean, logvar): with a variance for each dimension


def gaussian(x, mean, logvar):
    return Normal(mean, (logvar / 2).exp()).log_prob(x).flatten(1).sum(1)


def gaussian_slips(x, m, s):
    v, sd, e, c = s.exp(), (s / 2).exp(), (x - m) ** 2, math.log(2 * math.pi)
    yield "", -0.5 * (c + s + e / v)
    yield "the square is taken after the division: the variance is squared too", -0.5 * (c + s + e / v**2)
    yield "logvar is taken as the standard deviation", -0.5 * (c + 2 * s.log() + e / s**2)
    yield "logvar is taken as the variance", -0.5 * (c + s.log() + e / s)
    yield "logvar stands where the variance belongs", -0.5 * (c + s + e / s)
    yield "exp(logvar), the variance, is taken as the standard deviation", -0.5 * (c + 2 * s + e / v**2)
    yield "the standard deviation stands where the variance belongs", -0.5 * (c + s + e / sd)
    yield "the standard deviation stands where the variance belongs", -0.5 * (c + s / 2 + e / sd)
    yield (
        "the log of the standard deviation is taken, not that of the variance",
        -0.5 * (c + s / 2 + e / v),
    )
    yield "the variance stands where its log belongs", -0.5 * (c + v + e / v)
    yield "a logarithm is squared: (log s)^2 is not log s^2", -0.5 * (c + s**2 / 4 + e / v)
    yield "the variance multiplies where it should divide", -0.5 * (c + s + e * v)
    yield "the log-variance has the wrong sign", -0.5 * (c - s + e / v)
    yield "the log-variance term is missing", -0.5 * (c + e / v)
    yield "the constant with log 2 pi is missing", -0.5 * (s + e / v)
    yield "the constant and the log-variance are missing", -0.5 * (e / v)
    yield "the constant is counted once, not once per dimension", -0.5 * (c / x[0].numel() + s + e / v)
    yield "the constant is counted per channel", -0.5 * (c * x.shape[1] / x[0].numel() + s + e / v)
    yield "the half before log 2 pi is missing", -0.5 * (2 * c + s + e / v)
    yield "log 2 pi is halved twice", -0.5 * (c / 2 + s + e / v)
    yield (
        "the constant is counted per entry of the last dimension",
        -0.5 * (c * x.shape[-1] / x[0].numel() + s + e / v),
    )
    yield "the constant has the wrong sign", -0.5 * (-c + s + e / v)
    yield "the constant has log pi, not log 2 pi", -0.5 * (math.log(math.pi) + s + e / v)
    yield "the log of 2 pi is missing", -0.5 * (2 * math.pi + s + e / v)
    yield "the quadratic term has the wrong sign", -0.5 * (c + s - e / v)
    yield "the quadratic term is missing", -0.5 * (c + s)
    yield "the difference is not squared", -0.5 * (c + s + (x - m) / v)
    yield "the difference is not squared", -0.5 * (c + s + (x - m).abs() / v)
    yield "the variance is ignored", -0.5 * (c + e)
    yield "the variance is ignored", -0.5 * (c + s + e)
    yield "it is a plain squared error", -e
    yield "it is a plain squared error", -0.5 * e
    yield "the half in front is missing", -(c + s + e / v)
    yield from partly_halved(-c, -s, -e / v)


def real(draw, *size):
    # Near enough to the mean for the density itself, not only its log, to be a float32.
    return 0.7 * draw(*size), 0.7 * draw(*size), 0.5 * draw(*size) - 0.2


def gaussian_cases(draw):
    return [
        Case("images (4, 2, 3, 5)", real(draw, 4, 2, 3, 5)),
        Case("vectors (5, 7)", real(draw, 5, 7)),
        Case("a batch of one", real(draw, 1, 6)),
        Case("one dimension (4, 1)", real(draw, 4, 1)),
        Case("images (1, 1, 33, 33)", real(draw, 1, 1, 33, 33)),
        Case("130 vectors of 3 dimensions", real(draw, 130, 3)),
    ]


def gaussian_extremes(draw):
    ones = torch.ones_like(OFFSETS)
    return [
        # In float32 up to 40: beyond, a gradient through 1 / variance overflows in code that is right.
        (Case("log-variances up to 40", (OFFSETS + 1, ones, LOG_VARIANCES * 2 / 3)), f32, 1e-4),
        (Case("log-variances up to 90", (OFFSETS + 1, ones, LOG_VARIANCES * 1.5)), f64, 1e-9),
        (Case("log-variances up to 90, x at the mean", (ones, ones, LOG_VARIANCES * 1.5)), f64, 1e-9),
        (Case("errors up to 1000000", (FAR, torch.zeros_like(FAR), 0.5 * draw(5, 3))), f64, 1e-9),
        (Case("errors up to 1000000", (FAR, torch.zeros_like(FAR), 0.5 * draw(5, 3))), f32, 1e-4),
    ]


def gaussian_properties(student: Student):
    for size in ((5, 8), (5, 2, 2, 2)):
        x, mean, logvar = line(-1, 2, *size), line(1, -1, *size), line(-2, 1, *size)
        log_p = student(x, mean, logvar)
        yield f"{size}: one number per example", per_example(log_p, 5)
        yield f"{size}: finite", "" if finite(log_p) else "some values are not finite"
        moved = student(x + 2, mean + 2, logvar)
        why = "" if torch.allclose(moved, log_p, rtol=1e-4) else "only the difference x - mean should matter"
        yield f"{size}: unchanged when x and mean move together", why
        peak = student(mean, mean, logvar)
        yield f"{size}: largest at the mean", "" if (peak > log_p).all() else "the density peaks at its mean"


GAUSSIAN_LOG_LIKELIHOOD = Task(
    name="gaussian_log_likelihood",
    read="design#squared-error-is-a-gaussian-likelihood",
    reference=gaussian,
    slips=partial(gaussian_slips, BOUND_SCALES),
    properties=gaussian_properties,
    cases=gaussian_cases,
    probes=lambda draw: [
        Case("", (draw(*size), draw(*size), positive(draw, *size))) for size in ((5, 7), (5, 2, 3, 4))
    ],
    extremes=gaussian_extremes,
    differentiate=(1, 2),
    hint=f"{NO_LOG}; and a rounded constant is not log 2 pi",
    tests=TESTS,
)

# ---- elbo(x, logits, mean, logvar, beta): composed of bernoulli_log_likelihood and gaussian_kl


def elbo(x, logits, mean, logvar, beta=1.0):
    return bernoulli(x, logits) - beta * gaussian_kl(mean, logvar)


def elbo_slips(x, a, m, s, beta=None):
    def formulas(b):
        ll, d, n, k = bernoulli(x, a), gaussian_kl(m, s), x[0].numel(), m.shape[1]
        yield "", ll - b * d
        yield "the KL is added to the log-likelihood, not subtracted", ll + b * d
        yield "beta is not used", ll - d
        yield "beta multiplies the log-likelihood, not the KL", b * ll - d
        yield "beta multiplies the whole bound, not the KL alone", b * (ll - d)
        yield "beta divides the KL", ll - d / b
        yield "beta is squared", ll - b**2 * d
        yield "beta is added, not multiplied", ll - (b + d)
        yield "the weight of the KL is 1 + beta", ll - (1 + b) * d
        yield "the log-likelihood has the weight 1 - beta", (1 - b) * ll - b * d
        yield "the default of beta is not 1", ll - (4.0 if beta is None else b) * d
        yield "the default of beta is not 1", ll - (0.0 if beta is None else b) * d
        yield "the KL is left out", ll
        yield "the log-likelihood is left out", -b * d
        yield "the KL is given the variance, not its log", ll - b * gaussian_kl(m, s.exp())
        yield "the KL is given half the log-variance", ll - b * gaussian_kl(m, s / 2)
        yield "the half of the KL is missing", ll - 2 * b * d
        yield "the KL is halved once more", ll - b * d / 2
        yield "the log-likelihood is averaged over the pixels", ll / n - b * d
        yield "the KL is averaged over the latents", ll - b * d / k
        yield "both terms are averaged over their dimensions", ll / n - b * d / k
        yield "the KL is divided by the number of pixels", ll - b * d / n
        yield "the KL is summed over the batch", ll - b * d.sum()
        yield "the KL is averaged over the batch", ll - b * d.mean()
        yield "the log-likelihood is summed over the batch", ll.sum() - b * d
        yield "the log-likelihood is averaged over the batch", ll.mean() - b * d
        for clause, terms in list(bernoulli_slips(x, a))[1:]:
            yield f"in the log-likelihood, {clause}", terms.flatten(1).sum(1) - b * d
        for clause, terms in list(gaussian_kl_slips(m, s))[1:]:
            yield f"in the KL, {clause}", ll - b * terms.sum(1)

    for clause, value in formulas(1.0 if beta is None else beta):
        yield clause, value[:, None]


# The terms of the bound are sums already: (batch, 1). What is not summed of them is a dimension of size 1.
WHOLE_BOUND = [(words, reduce) for words, reduce in REDUCTIONS if not words.endswith("are not summed")]


def elbo_cases(draw):
    return [
        Case("beta left out", (*grey(draw, 3, 7), *latents(draw, 3, 5))),
        Case("images, beta=4", (*grey(draw, 4, 1, 3, 5), *latents(draw, 4, 2)), {"beta": 4.0}),
        Case("a batch of one, beta=0", (*grey(draw, 1, 6), *latents(draw, 1, 4)), {"beta": 0.0}),
        Case("beta=0.25", (*grey(draw, 3, 7), *latents(draw, 3, 5)), {"beta": 0.25}),
        Case("4 as fifth argument", (*grey(draw, 3, 7), *latents(draw, 3, 5), 4)),
        Case("beta=1000", (*grey(draw, 3, 7), *latents(draw, 3, 5)), {"beta": 1000.0}),
        Case("130 examples", (*grey(draw, 130, 3), *latents(draw, 130, 2))),
        Case("a KL near zero", (*grey(draw, 3, 7), *(0.1 * part for part in latents(draw, 3, 5)))),
    ]


def far_bounds(draw):
    """Large terms, of logits that a float64 still knows from 0 and 1 after a sigmoid; and small ones."""

    def case(label, pixels, size, keywords):
        x, logits = (
            draw(6, pixels, low=0, high=1),
            draw(6, pixels, low=0.9, high=1.1) * draw(6, pixels).sign(),
        )
        mean, logvar = 4 * size * draw(6, 3), size * draw(6, 3).clamp(-1, 1)
        return Case(label, (x, size * logits, mean, logvar), keywords)

    return [
        case("logits and log-variances up to 25", 2000, 24.0, {}),
        case("logits and log-variances up to 25, beta=1e-6", 4, 24.0, {"beta": 1e-6}),
        case("logits and log-variances up to 12, beta=0.1", 4, 12.0, {"beta": 0.1}),
        case("logits and log-variances up to 6, beta=1e-3", 4, 6.0, {"beta": 1e-3}),
        case("q next to the prior", 4, 1e-3, {}),
    ]


def bound_values(task: Task, student: Student, draw: Draw) -> None:
    """The values, and terms that are large: what the student's own functions make of these is right here."""
    values_in_evaluation(task, student, draw)
    cases = far_bounds(draw)
    right = [task.reference(*prepared(case.arguments, f64), **case.keywords) for case in cases]
    results = student.each([call(prepared(case.arguments, f64), case, f64) for case in cases])
    for case, want, got in zip(cases, right, results):
        if same(got, want, 1e-8, 1e-8):
            continue
        own = task.composed(
            [student.fellow(name) for name in task.own], *prepared(case.arguments, f64), **case.keywords
        )
        if not same(got, own, 1e-8, 1e-8):
            raise Wrong(
                "wrong where terms are large or small, and right elsewhere. Is one of them, an argument or "
                "beta limited (clamped), rounded, or put in single precision?",
                case=case.label,
            )


def elbo_properties(student: Student):
    x, logits = line(0, 1, 5, 1, 4, 2), line(3, -2, 5, 1, 4, 2)
    mean, logvar, prior = line(-2, 2, 5, 3), line(1, -3, 5, 3), torch.zeros(5, 3)
    bound = student(x, logits, mean, logvar)
    yield "one number per example", per_example(bound, 5)
    yield "finite", "" if finite(bound) else "some values are not finite"
    free = student(x, logits, prior, prior)
    again = student(x, logits, prior, prior, beta=4.0)
    yield "no effect of beta at the prior", "" if torch.allclose(again, free) else "at the prior the KL is 0"
    why = "" if (bound < free).all() else "a code that differs from the prior must cost something"
    yield "a price for the code", why
    dearer = student(x, logits, mean, logvar, beta=4.0)
    yield "a larger beta costs more", "" if (dearer < bound).all() else "a larger beta must cost more"


ELBO = Task(
    name="elbo",
    read="elbo#first-route-an-average-of-the-evidence",
    reference=elbo,
    slips=lambda *arguments, **keywords: spread(
        elbo_slips(*arguments, **keywords), WHOLE_BOUND, BOUND_SCALES
    ),
    properties=elbo_properties,
    cases=elbo_cases,
    probes=lambda draw: [
        Case(
            "",
            (draw(5, 7, low=0, high=1), likely(draw, 5, 7), draw(5, 3), positive(draw, 5, 3)),
            keywords,
        )
        for keywords in ({}, {"beta": 0.25}, {"beta": 4.0})
    ],
    differentiate=(1, 2, 3),
    own=("bernoulli_log_likelihood", "gaussian_kl"),
    composed=lambda own, x, a, m, s, beta=1.0: own[0](x, a) - beta * own[1](m, s),
    forbidden=READY_MADE,
    tests={"values": bound_values, "gradients": gradients},
)

TASKS = {
    task.name: task
    for task in (GAUSSIAN_KL, FULL_GAUSSIAN_KL, BERNOULLI_LOG_LIKELIHOOD, GAUSSIAN_LOG_LIKELIHOOD, ELBO)
}
