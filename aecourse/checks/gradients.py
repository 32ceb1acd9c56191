"""Assignment `gradients`: the reparameterised sample, two Monte Carlo gradients, and a baseline without bias.

The noise is always an argument, so every answer is a definite number and can be compared exactly: an
estimator that agrees with the right one on any samples has its mean and its variance, too.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.distributions import Normal

from aecourse.checks.core import Case, Task, Wrong, at_most, f32, f64, finite, prepared, same, shape
from aecourse.checks.kinds import gradients, stability, values, values_in_evaluation
from aecourse.checks.naming import diagnose
from aecourse.checks.parts import First, Part, Quadratic, Sine, Step, line
from aecourse.checks.student import Student

# ---- shared by several tasks

PATHWISE = "gradients#the-pathwise-gradient-move-the-samples"
SIZES = (1e-6, 1e-3, 1e3, 1e6)  # of what is averaged: a limit or a floor shows at some of them
NOT_RANDOM = "nothing random is needed: the noise, or the samples, are given"


def slope(f: Part, z: Tensor) -> Tensor:
    """The gradient of a part by each row of z, in closed form; zero for a step."""
    if isinstance(f, Quadratic):
        matrix, vector, _ = f.tensors
        return z @ (matrix + matrix.mT) + vector
    if isinstance(f, Sine):
        vector, phase = f.tensors
        return torch.cos(z @ vector + phase).unsqueeze(-1) * vector
    return torch.zeros_like(z)


def scores(weights, m, s, z):
    """The terms of the score-function estimator, from weights (samples, 1)."""
    e = (z - m) / (s / 2).exp()
    return weights * e / (s / 2).exp(), weights * 0.5 * (e**2 - 1)


REDUCTIONS = [
    ("", lambda t: t.mean(0)),
    ("the samples are summed, not averaged", lambda t: t.sum(0)),
    ("the terms of the samples are returned, not their average", lambda t: t),
    ("the average runs over the latents too", lambda t: t.mean()),
    ("the sum runs over the latents too", lambda t: t.sum()),
    ("the average runs over the latents, not over the samples", lambda t: t.mean(1)),
    ("the sum runs over the latents, not over the samples", lambda t: t.sum(1)),
    ("the result is divided by the number of latents too", lambda t: t.mean(0) / t.shape[1]),
    ("the sum is divided by the number of latents, not of samples", lambda t: t.sum(0) / t.shape[1]),
    ("the result is divided by the number of samples twice", lambda t: t.mean(0) / len(t)),
    ("the sum is divided by samples - 1", lambda t: t.sum(0) / (len(t) - 1)),
    ("only the first sample is used, or its noise serves for all", lambda t: t[0]),
    ("only the last sample is used", lambda t: t[-1]),
    ("a dimension of size 1 is left", lambda t: t.mean(0, keepdim=True)),
]


def pairs(formulas, most: int = 2) -> Iterator[tuple[tuple[str, ...], tuple[Tensor, Tensor]]]:
    """Slips from the terms (samples, k) of both gradients, with every reduction, sign and order.

    Of more than `most` mistakes at once nobody could tell which they are; they are left out.
    """
    returned = [
        (tuple(words for words in (reduced, signed, ordered) if words), reduce, sign, step)
        for (reduced, reduce), (signed, sign), (ordered, step) in product(
            REDUCTIONS,
            (("", 1.0), ("the sign is flipped", -1.0)),
            (("", 1), ("the two gradients are returned in the wrong order", -1)),
        )
    ]
    for clauses, *terms in formulas:
        told = tuple(words for words in clauses if words)
        for ways, reduce, sign, step in returned:
            if len(told) + len(ways) <= most:
                yield told + ways, tuple(sign * reduce(term) for term in terms)[::step]


def gaussian(draw, *size):
    return 1.2 * draw(*size), 0.9 * draw(*size) - 0.4


# For naming mistakes: positive log-variances, so that taking them for variances leads to numbers, not to NaN.
def positive(draw, *size):
    return 1.2 * draw(*size), draw(*size, low=0.3, high=1.7)


def quadratic(draw, k):
    return Quadratic(draw(k, k) / k**0.5, draw(k), 1 + draw().abs())


def sine(draw, k):
    return Sine(1.5 * draw(k) / k**0.5, draw())


def zero(result) -> bool:
    return bool((result.abs() < 1e-5).all())


def is_pair(result, k: int) -> str:
    """Why a result is not a gradient for mean and one for logvar; "" when it is."""
    right = (
        isinstance(result, tuple | list)
        and len(result) == 2
        and all(isinstance(part, Tensor) and part.shape == (k,) for part in result)
    )
    return "" if right else f"expected two tensors of shape ({k},), and got {shape(result)}"


def plain(pair):
    """A pair of gradients without their graph."""
    return tuple(part.detach() for part in pair)


def parameters(task: Task, student: Student, draw) -> None:
    """Are the numbers the same when the inputs are parts of a graph, as they are in training?"""
    for case in list(task.cases(draw))[:3]:
        f, mean, logvar, noise = prepared(case.arguments, f64)
        where = case.label
        want = task.reference(f, mean, logvar, noise)
        got = student(f, mean, logvar, noise, where=case.label)
        if student.effects.required(f, mean, logvar, noise):
            raise Wrong(
                "an input requires gradients after the call, and did not before. Leave the inputs "
                "as they are: work on detached copies.",
                case=where,
            )
        if not same(got, want, 1e-4, 1e-4):
            raise Wrong(
                "wrong already without required gradients; repair that first.",
                diagnose(task, student, draw),
                case=where,
            )
        mean.requires_grad_()
        logvar.requires_grad_()
        samples = task.name == "score_function_gradient"
        if samples:  # the fourth is one, as reparameterize returns it
            noise = mean + torch.exp(logvar / 2) * ((noise - mean) / torch.exp(logvar / 2)).detach()
        got = student(f, mean, logvar, noise, where=f"{case.label}, inputs that require gradients")
        if isinstance(got, tuple | list) and any(part is None for part in got):
            raise Wrong(
                "None is returned when the inputs require gradients already. Only leaves of a "
                "graph have a .grad, and a clone of such an input is no leaf: detach it first, or use "
                "torch.autograd.grad.",
                case=where,
            )
        if student.effects.slopes(mean, logvar, noise):
            raise Wrong(
                "backward() leaves gradients in mean.grad or logvar.grad, where the next call, or "
                "the training loop, adds to them. Work on detached copies, or use torch.autograd.grad.",
                case=where,
            )
        if not same(got, want, 1e-4, 1e-4):
            raise Wrong(
                "right for plain tensors, wrong when mean and logvar require gradients and the "
                "samples come with a graph that leads back to them. Detach what must not be differentiated.",
                case=where,
            )
        if samples:
            zero = mean.sum() - mean.detach().sum()
            got, plainly = (
                student(f, mean, logvar, noise, baseline, where=f"{case.label}, a baseline")
                for baseline in (zero, zero.detach())
            )
            if same(plainly, want, 1e-4, 1e-4) and not same(got, want, 1e-4, 1e-4):
                raise Wrong(
                    "wrong when the baseline comes with a graph, as from a network that is trained along. It "
                    "is a constant: detach it.",
                    case=where,
                )


# ---- reparameterize(mean, logvar, eps): z from the noise


def reparameterize(mean, logvar, eps):
    return torch.addcmul(mean, logvar.div(2).exp(), eps)


def reparameterize_slips(m, s, eps):
    v, sd = s.exp(), (s / 2).exp()
    right = m + sd * eps
    yield "", right
    yield "exp(logvar), the variance, is taken as the standard deviation", m + v * eps
    yield "logvar is taken as the standard deviation", m + s * eps
    yield "logvar is taken as the variance", m + s.sqrt() * eps
    yield "the half in the exponent is outside it: exp(logvar) / 2 is not exp(logvar / 2)", m + 0.5 * v * eps
    yield "the half in the exponent is a 2: the variance is squared", m + (2 * s).exp() * eps
    yield "the standard deviation is inverted", m + eps / sd
    yield "the standard deviation is inverted", m + eps / v
    yield "the square root is taken twice", m + (s / 4).exp() * eps
    yield "a softplus stands in place of the exponential", m + torch.nn.functional.softplus(s) * eps
    yield "the standard deviation is not used", m + eps + 0 * s
    yield "the noise is not used: this is the mean", m + 0 * sd * eps
    yield "the noise is not used", m + sd + 0 * eps
    yield "the noise is subtracted; the distribution is the same, but these are not the samples", m - sd * eps
    yield "the noise is squared", m + sd * eps**2
    yield "the mean is not added", sd * eps + 0 * m
    yield "the mean is scaled along with the noise", sd * (m + eps)
    yield "the standard deviation multiplies the mean, not the noise", m * sd + eps
    yield "a sum stands in place of the product with the noise", m + sd + eps
    yield "mean and logvar are swapped", s + (m / 2).exp() * eps
    yield "mean and noise are swapped", eps + sd * m
    yield "the first noise serves for all", m + sd * eps[:1].expand_as(right)
    yield "the noise is averaged over the samples", m + sd * eps.mean(0, keepdim=True).expand_as(right)
    yield "one noise serves for all latents", m + sd * eps[..., :1]
    yield "one noise serves for all latents", m + sd * eps.mean(-1, keepdim=True)
    yield "the log-variance is averaged over the latents", m + sd.log().mean(-1, keepdim=True).exp() * eps
    yield "the samples are averaged", right.mean(0)
    yield "the samples are summed", right.sum(0)
    yield "only the first sample is returned", right[0]


def reparameterize_cases(draw):
    return [
        Case("(7, 3) from (3,)", (*gaussian(draw, 3), draw(7, 3))),
        Case("(5, 4) from (5, 4)", (*gaussian(draw, 5, 4), draw(5, 4))),
        Case("(6, 5, 2) from (5, 2)", (*gaussian(draw, 5, 2), draw(6, 5, 2))),
        Case("one sample, (1, 4) from (4,)", (*gaussian(draw, 4), draw(1, 4))),
        Case("one latent, (6, 1) from (1,)", (*gaussian(draw, 1), draw(6, 1))),
        Case("(3, 3) from (3,)", (*gaussian(draw, 3), draw(3, 3))),
        Case("(300, 2) from (2,)", (*gaussian(draw, 2), draw(300, 2))),
        Case("(3, 130, 2) from (130, 2)", (*gaussian(draw, 130, 2), draw(3, 130, 2))),
        Case("(2, 130) from (130,)", (*gaussian(draw, 130), draw(2, 130))),
    ]


def reparameterize_extremes(draw):
    # Beyond 88 exp(logvar) leaves float32, beyond -104 it is zero there; half of it stays well inside.
    # Around a mean of zero, and to a relative precision: a mean would hide what a tiny variance is.
    mean, far = torch.zeros(3, dtype=f64), [torch.tensor([-s, s, 0.3], dtype=f64) for s in (120, 1200)]
    # Noise is never limited: at 5 standard deviations, too, and so little that nobody sees it.
    sizes = torch.tensor([[5, -5, 4], [-1e-3, 1e-6, 8], [1e3, -1e-9, -3]], dtype=f64)
    return [
        (Case("log-variances of -120 and 120", (mean, far[0], draw(4, 3))), f32, 1e-4, 0.0),
        (Case("log-variances of -1200 and 1200", (mean, far[1], draw(4, 3))), f64, 1e-9, 0.0),
        (Case("noise of every size", (mean, draw(3), sizes)), f64, 1e-9, 0.0),
        *(
            (Case(f"means near {size:g}", (size * (1 + draw(3).abs()), draw(3), draw(4, 3))), f64, 1e-9)
            for size in (1e3, 1e6)
        ),
    ]


def reparameterize_properties(student: Student):
    mean, logvar, eps = line(-2, 2, 3), line(-1, 1, 3), line(-1.5, 2, 5, 3)

    def call(mean=mean, logvar=logvar, eps=eps):
        return student(mean.clone(), logvar.clone(), eps.clone())

    z = call()
    right = isinstance(z, Tensor) and z.shape == (5, 3)
    yield "the shape of eps", "" if right else f"expected a tensor of shape (5, 3), and got {shape(z)}"
    codes = student(line(-2, 2, 4, 2), line(-1, 1, 4, 2), line(-1, 1, 6, 4, 2))
    right = isinstance(codes, Tensor) and codes.shape == (6, 4, 2)
    yield (
        "samples of a batch",
        "" if right else f"expected a tensor of shape (6, 4, 2), and got {shape(codes)}",
    )
    again = call()
    yield "the same at a second call", "" if torch.equal(z, again) else "eps is the only noise; draw no more"
    still = call(eps=torch.zeros(5, 3))
    yield "without noise, the mean", "" if zero(still - mean) else "where eps is 0, z is the mean"
    why = "" if torch.allclose(call(mean=mean + 1), z + 1) else "a step of the mean must carry z along"
    yield "the mean moves z along", why
    wider = call(logvar=logvar + 1)
    why = "" if ((wider - mean).abs() >= (z - mean).abs()).all() else "a larger logvar must spread z further"
    yield "a larger logvar spreads z further", why


REPARAMETERIZE = Task(
    name="reparameterize",
    read=PATHWISE,
    reference=reparameterize,
    slips=reparameterize_slips,
    properties=reparameterize_properties,
    cases=reparameterize_cases,
    probes=lambda draw: [
        Case("", (*positive(draw, 3), draw(7, 3))),
        Case("", (*positive(draw, 5, 2), draw(6, 5, 2))),
    ],
    extremes=reparameterize_extremes,
    differentiate=(0, 1),
    hint="halve the log-variance before the exponential; no epsilon, clamp or square root is needed",
    tests={"values": values_in_evaluation, "gradients": gradients, "stability": stability},
)

# ---- pathwise_gradient(f, mean, logvar, eps): of the average of f, through the samples


def pathwise_gradient(f, mean, logvar, eps):
    half = torch.exp(logvar / 2)
    per_sample = slope(f, mean + half * eps)
    return per_sample.mean(0), (per_sample * eps).mean(0) * half / 2


def pathwise_slips(f, m, s, eps):
    v, sd = s.exp(), (s / 2).exp()
    z = m + sd * eps

    def formulas():
        g, at_mean, value = slope(f, z), slope(f, m.expand_as(eps)), f(z).unsqueeze(1).expand_as(eps)
        yield "", g, g * 0.5 * sd * eps
        yield "the second gradient is that for the standard deviation, not for logvar", g, g * eps
        yield "the half in d std / d logvar = std / 2 is missing", g, g * sd * eps
        yield "the second gradient is that for the variance, not for logvar", g, g * eps / (2 * sd)
        yield "there is a half too many in the chain rule for logvar", g, g * 0.25 * sd * eps
        for clause, std, chains in (
            ("exp(logvar), the variance, is taken as the standard deviation", v, (v, v / 2, sd / 2)),
            ("logvar is taken as the standard deviation", s, (torch.ones_like(s), sd / 2)),
            ("logvar is taken as the variance", s.sqrt(), (0.5 / s.sqrt(),)),
            ("the standard deviation is inverted", 1 / sd, (-0.5 / sd,)),
            ("the half in the exponent is outside it", v / 2, (v / 2,)),
            ("a softplus stands in place of the exponential", (1 + v).log(), (s.sigmoid(), sd / 2)),
            ("the noise is subtracted", -sd, (-sd / 2, sd / 2)),
        ):
            for chain in chains:
                wrong = slope(f, m + std * eps)
                yield clause, wrong, wrong * chain * eps
        yield "the variance stands in the chain rule, not the standard deviation", g, g * 0.5 * v * eps
        yield "the standard deviation is missing from the chain rule for logvar", g, g * 0.5 * eps
        yield "the noise is missing from the chain rule for logvar", g, g * 0.5 * sd
        yield "the noise is missing from the chain rule for logvar", g, g * sd
        yield "the noise is squared in the chain rule for logvar", g, g * 0.5 * sd * eps**2
        yield "z stands in the chain rule for logvar where z - mean belongs", g, g * 0.5 * z
        yield "the chain rule for logvar is missing: both gradients are those for z", g, g
        yield "the gradient for logvar is zero: its path is cut, for example by detach", g, 0 * g
        yield "the gradient for the mean is multiplied by the standard deviation", g * sd, g * 0.5 * sd * eps
        yield "the gradients are those for the noise", g * sd, g * sd
        yield "the slope is taken at the mean, not at the samples", at_mean, at_mean * 0.5 * sd * eps
        at_first = slope(f, m + sd * eps[:1]).expand_as(eps)
        yield "the first noise serves for all samples", at_first, at_first * 0.5 * sd * eps[:1]
        yield "the first noise serves for all samples", at_first, at_first * 0.5 * sd * eps
        centre = slope(f, z.mean(0, keepdim=True)).expand_as(eps)
        yield "the samples are averaged before f sees them", centre, centre * 0.5 * sd * eps
        around_zero = slope(f, sd * eps)
        for first in (around_zero, 0 * around_zero):
            yield "the mean is missing from the samples", first, around_zero * 0.5 * sd * eps
        alone = slope(f, eps)
        yield "f is given the noise, not the samples", alone, alone * 0.5 * sd * eps
        yield (
            "slope and noise are averaged one by one: an average of products is no product of averages",
            g,
            g.mean(0, keepdim=True) * 0.5 * sd * eps,
        )
        yield "the value of f is taken, not its slope", value, value * 0.5 * sd * eps
        yield "it is the score-function estimator, not the pathwise one", *scores(value, m, s, z)
        yield (
            "the slope of log q is in it, as if f held -log q",
            g + eps / sd,
            (g + eps / sd) * 0.5 * sd * eps,
        )
        yield "a log density is in it, as if f held -log q", g, g * 0.5 * sd * eps + 0.5

    return pairs(((clause,), *terms) for clause, *terms in formulas())


def pathwise_cases(draw):
    def case(label, f, samples, k):
        return Case(label, (f(draw, k), *gaussian(draw, k), draw(samples, k)))

    return [
        case("7 samples of 3 latents, a quadratic f", quadratic, 7, 3),
        case("6 samples of 4 latents, a sine", sine, 6, 4),
        case("one sample", sine, 1, 4),
        case("one latent", quadratic, 6, 1),
        case("5 samples of 5 latents", sine, 5, 5),
        case("40 samples of 20 latents", quadratic, 40, 20),
        case("130 samples of 2 latents", sine, 130, 2),
        case("4 samples of 130 latents", sine, 4, 130),
    ]


def pathwise_probes(draw):
    return [Case("", (f(draw, 3), *positive(draw, 3), draw(7, 3))) for f in (quadratic, sine)]


def pathwise_extremes(draw):
    # A linear f, so that nothing but the sample itself could overflow.
    def linear(far):
        logvar = torch.tensor([-far, far, 0.3], dtype=f64)
        f = Quadratic(torch.zeros(3, 3, dtype=f64), 1 + draw(3).abs(), draw())
        noise = draw(4, 3).abs()  # of one sign: nothing cancels in their sum
        return f, torch.zeros(3, dtype=f64), logvar, noise

    def sized(size):
        """An f of this size, whose gradients are of the same."""
        matrix, vector, constant = quadratic(draw, 3).tensors
        return Quadratic(size * matrix, size * vector, constant), *gaussian(draw, 3), draw(5, 3)

    noiseless = sine(draw, 3), *gaussian(draw, 3), draw(4, 3) * torch.tensor([0.0, 1.0, 5.0])
    return [
        (Case("log-variances of -120 and 120", linear(120)), f32, 1e-4, 0.0),
        (Case("log-variances of -1200 and 1200", linear(1200)), f64, 1e-9, 0.0),
        *((Case(f"f of size {size:g}", sized(size)), f64, 1e-9, 1e-9 * size) for size in SIZES),
        (Case("a latent whose noise is 0, and one with much", noiseless), f64, 1e-9),
    ]


def pathwise_properties(student: Student):
    mean, logvar, eps = line(-2, 2, 3), line(-1, 1, 3), line(-1.5, 2, 5, 3).roll(1, 0)
    f = Quadratic(line(-1, 1, 3, 3), line(0.5, 1, 3), torch.tensor(2.0))

    def call(f=f, eps=eps):
        return student(f, mean.clone(), logvar.clone(), eps.clone())

    pair = call()
    yield "two gradients of shape (k,)", is_pair(pair, 3)
    yield "finite", "" if finite(pair) else "some numbers are not finite"
    yield "the same at a second call", "" if same(call(), plain(pair), 0, 0) else NOT_RANDOM
    flat = Quadratic(torch.zeros(3, 3), torch.zeros(3), torch.tensor(2.0))
    why = "" if all(map(zero, call(f=flat))) else "the average of a constant does not move"
    yield "no gradient for a constant f", why
    why = "" if zero(call(eps=0 * eps)[1]) else "where eps is 0, z does not depend on logvar"
    yield "no gradient for logvar without noise", why


def composed(own, f, mean, logvar, eps):
    """The pathwise gradient through the student's own samples; None where no gradient comes through."""
    leaves = [mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()]
    try:
        total = f(own[0](*leaves, eps)).mean()
        slopes = torch.autograd.grad(total, leaves, allow_unused=True)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return tuple(torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes))


PATHWISE_GRADIENT = Task(
    name="pathwise_gradient",
    read=PATHWISE,
    reference=pathwise_gradient,
    slips=pathwise_slips,
    properties=pathwise_properties,
    cases=pathwise_cases,
    probes=pathwise_probes,
    extremes=pathwise_extremes,
    own=("reparameterize",),
    composed=composed,
    hint="differentiate exactly, in the type of the inputs, and halve logvar before the exponential",
    tests={"values": values, "parameters": parameters, "stability": stability},
)

# ---- score_function_gradient(f, mean, logvar, z, baseline): the same from values of f alone


def score_function_gradient(f, mean, logvar, z, baseline=None):
    leaves = [mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()]
    log_density = Normal(leaves[0], (leaves[1] / 2).exp()).log_prob(z.detach()).sum(1)
    weights = f(z).detach() - (0.0 if baseline is None else baseline)
    return torch.autograd.grad(log_density, leaves, weights / len(z))


def score_slips(f, m, s, z, baseline=None):
    v, sd, b = s.exp(), (s / 2).exp(), 0.0 if baseline is None else baseline
    value = f(z)
    e, d = (z - m) / sd, z - m

    def weights():
        none = baseline is None
        yield "", value - b
        yield "the baseline is added, not subtracted", value + b
        yield "the baseline is not used", value
        number = not none and not isinstance(baseline, Tensor)
        yield "a baseline that is a number is not used", value if number else value - b
        yield "a baseline that is a number is cut to an integer", value - (int(b) if number else b)
        yield "f is subtracted from the baseline, not the other way round", value if none else b - value
        yield "the baseline multiplies", value if none else value * b
        yield "the baseline divides", value if none else value / b
        yield "the baseline is averaged over the samples first", value - torch.as_tensor(b, dtype=f64).mean()
        first = torch.as_tensor(b, dtype=f64).reshape(-1)[0]
        yield "the first baseline serves for all samples", value - first
        yield "f is averaged before it weighs the samples", (value - b).mean().expand_as(value)
        yield "f is summed before it weighs the samples", (value - b).sum().expand_as(value)
        yield "f is summed before it weighs the samples", value.sum() - b + 0 * value
        late = value if none else value.mean() - b + 0 * value
        yield "the baseline is subtracted after f was averaged", late
        yield "the baseline is counted twice", value - 2 * b
        yield "the baseline is divided by the number of samples", value - b / len(z)
        yield "the baseline is squared", value - b**2
        centred = value - value.mean()
        yield "the mean of all values, each one's own included, is subtracted unasked", centred
        yield "the mean of all values, each one's own included, is subtracted unasked", centred - b
        late = value - b - (value - b).mean()
        yield "the mean of all values, each one's own included, is subtracted unasked", late
        unasked = value - (value.sum() - value) / (len(value) - 1)
        yield "a leave-one-out baseline is subtracted unasked", unasked
        yield "a leave-one-out baseline is subtracted unasked", unasked - b
        yield "the values are standardised", centred / value.std()
        yield "the values are standardised", (value - b - (value - b).mean()) / (value - b).std()
        yield "the values are divided by their standard deviation", (value - b) / value.std()
        yield "f is not used", torch.ones_like(value)
        yield "f is not used", torch.ones_like(value) - b
        yield "f is evaluated at the mean, not at the samples", f(m).expand_as(value) - b
        yield "f is evaluated at the standardised samples", f(e) - b
        yield "the absolute value of f - baseline is taken", (value - b).abs()
        yield "f - baseline is squared", (value - b) ** 2

    def densities():
        yield "", e / sd, 0.5 * (e**2 - 1)
        yield "the score for the mean has the wrong sign", -e / sd, 0.5 * (e**2 - 1)
        yield "the score for logvar has the wrong sign", e / sd, 0.5 * (1 - e**2)
        yield "the score is that for the standard deviation, not for logvar", e / sd, (e**2 - 1) / sd
        yield "the half in the score for logvar is missing (or it is that for log std)", e / sd, e**2 - 1
        yield "the score is that for the variance, not for logvar", e / sd, 0.5 * (e**2 - 1) / v
        yield "the score for the mean is divided by the standard deviation once only", e, 0.5 * (e**2 - 1)
        yield "the score for the mean is not divided by the variance", d, 0.5 * (e**2 - 1)
        yield "the score for the mean is divided by the variance squared", d / v**2, 0.5 * (e**2 - 1)
        yield "(z - mean) is not divided by the variance in the score for logvar", e / sd, 0.5 * (d**2 - 1)
        yield "(z - mean)^2 is divided by the standard deviation only", e / sd, 0.5 * (d**2 / sd - 1)
        yield "(z - mean) is not squared in the score for logvar", e / sd, 0.5 * (e - 1)
        wide = d / v
        variance = "exp(logvar), the variance, is taken as the standard deviation"
        yield variance, wide / v, wide**2 - 1
        yield variance, wide / v, 0.5 * (wide**2 - 1)
        yield variance, e / sd, 0.5 * (wide**2 - 1)
        yield "logvar is taken as the standard deviation", d / s**2, d**2 / s**3 - 1 / s
        yield "logvar is taken as the standard deviation", d / s**2, 0.5 * (d**2 / s**2 - 1)
        yield "logvar is taken as the variance", d / s, 0.5 * (d**2 / s**2 - 1 / s)
        yield "logvar is taken as the variance", d / s, 0.5 * (d**2 / s - 1)
        narrow = "the standard deviation is taken as the variance"
        yield narrow, d / sd, 0.25 * (d**2 / sd - 1)
        yield narrow, d / sd, 0.5 * (d**2 / sd - 1)
        yield "the variance multiplies where it should divide", d * v, 0.5 * (d**2 * v - 1)
        yield "the -1 in the score for logvar is missing: log q has a term -logvar / 2", e / sd, 0.5 * e**2
        yield "the 1 in the score for logvar has the wrong sign", e / sd, 0.5 * (e**2 + 1)
        yield "the half in log q reaches a part of it only", e / sd, 0.5 * e**2 - 1
        yield "the half in log q reaches a part of it only", e / sd, e**2 - 0.5
        yield "the half in log q reaches a part of it only", 2 * e / sd, e**2 - 0.5
        yield "the half in log q is missing", 2 * e / sd, e**2 - 1
        yield "the density is differentiated, not its logarithm", *dense()
        yield (
            "log q is not summed over the latents: its own average divides it",
            *(term / z.shape[1] for term in (e / sd, 0.5 * (e**2 - 1))),
        )
        yield "the gradient is that of log q for z, not for the mean", -e / sd, -0.5 * (e * e)
        yield "only log q for the mean is differentiated, and logvar gets nothing", e / sd, 0 * e
        yield "the score is that of the standard normal: mean and logvar are not in it", z, 0.5 * (z**2 - 1)
        yield "the mean is missing from the score", z / v, 0.5 * (z**2 / v - 1)

    def dense():
        density = Normal(m, sd).log_prob(z).sum(1, keepdim=True).exp()
        return density * e / sd, density * 0.5 * (e**2 - 1)

    def formulas():
        for (weighed, weight), (clause, *terms) in product(list(weights()), list(densities())):
            weight = weight.unsqueeze(1)
            yield (weighed, clause), *(weight * term for term in terms)
        path = slope(f, z)
        path = path, path * 0.5 * sd * e
        log_q = Normal(m, sd).log_prob(z).sum(1, keepdim=True)
        for weighed, weight in (("", value - b), ("the baseline is not used", value)):
            weight = weight.unsqueeze(1).expand_as(z)
            if baseline is None:
                half_way = scores(weight, m, s, z), scores(weight, m, s, z)
            else:
                with_b, without = (
                    scores((value - b).unsqueeze(1), m, s, z),
                    scores(value.unsqueeze(1), m, s, z),
                )
                half_way = (with_b[0], without[1]), (without[0], with_b[1])
            for terms in half_way:
                yield ("the baseline is subtracted for one of the two gradients only",), *terms
            kept, right = (0 * z, -0.5 * weight), scores(weight, m, s, z)
            cut = "z is rebuilt from mean and logvar and not detached in log q, so that log q moves with it"
            yield (weighed, cut), *kept
            undetached = "a pathwise term is mixed in: neither the sample nor f(z) is detached"
            yield (weighed, undetached), *(term + log_q * path_term for term, path_term in zip(kept, path))
            added = (
                "a pathwise term is added: f(z) is differentiated too, where its value alone should appear"
            )
            yield (weighed, added), *(term + log_q * path_term for term, path_term in zip(right, path))
            yield (weighed, added), *(term + path_term for term, path_term in zip(right, path))
            yield ("it is the pathwise estimator, not the score function's", weighed), *path
            late = "the baseline is subtracted from the gradient, not from f"
            unweighed = scores(value.unsqueeze(1), m, s, z)
            baselines = torch.as_tensor(b, dtype=f64).reshape(-1, 1)
            yield (weighed, late), *(term - baselines for term in unweighed)

    return pairs(formulas())


def sampled(draw, f, samples, k, parameters=gaussian):
    """f, mean, logvar and z, which is drawn from them."""
    mean, logvar = parameters(draw, k)
    return f(draw, k), mean, logvar, reparameterize(mean, logvar, draw(samples, k))


def stepped(draw, samples, k):
    """The same with a step between two samples, so that no rounding can take one across."""
    _, mean, logvar, z = sampled(draw, sine, samples, k)
    vector = draw(k)
    heights = (z @ vector).sort().values
    middle = (heights[samples // 2 - 1] + heights[samples // 2]) / 2
    return Step(vector, -middle), mean, logvar, z


def score_cases(draw):
    return [
        Case("7 samples of 3 latents, a quadratic f", sampled(draw, quadratic, 7, 3)),
        Case("6 samples of 4 latents, a sine", sampled(draw, sine, 6, 4)),
        Case("one sample", sampled(draw, quadratic, 1, 4)),
        Case("one latent", sampled(draw, sine, 6, 1)),
        Case("5 samples of 5 latents", sampled(draw, quadratic, 5, 5)),
        Case("40 samples of 20 latents", sampled(draw, quadratic, 40, 20)),
        Case("130 samples of 2 latents", sampled(draw, sine, 130, 2)),
        Case("4 samples of 130 latents", sampled(draw, sine, 4, 130)),
        Case("baseline=None", sampled(draw, quadratic, 8, 2), {"baseline": None}),
        Case("a step function", stepped(draw, 9, 3)),
    ]


def score_probes(draw):
    return [Case("", sampled(draw, f, 7, 3, positive)) for f in (quadratic, sine)]


def score_extremes(draw):
    # Around a mean of zero, where z is known to its last digit however small the variance.
    def flat(far):
        mean, logvar = torch.zeros(3, dtype=f64), torch.tensor([-far, far, 0.3], dtype=f64)
        f = Sine(torch.tensor([0, 0, 1], dtype=f64), draw())
        return f, mean, logvar, reparameterize(mean, logvar, draw(6, 3))

    def far(distance):
        mean, logvar = distance + draw(3), draw(3) - 10
        return sine(draw, 3), mean, logvar, reparameterize(mean, logvar, draw(6, 3))

    def sized(size):
        matrix, vector, constant = quadratic(draw, 3).tensors
        f, (mean, logvar) = Quadratic(size * matrix, size * vector, size * constant), gaussian(draw, 3)
        return f, mean, logvar, reparameterize(mean, logvar, draw(5, 3))

    def away(*distances):
        """Samples at the mean, and so many standard deviations from it."""
        mean, logvar = gaussian(draw, 3)
        noise = torch.tensor([distances, distances[::-1]], dtype=f64)
        return sine(draw, 3), mean, logvar, reparameterize(mean, logvar, noise)

    return [
        (Case("log-variances of -60 and 60", flat(60)), f32, 1e-4),
        (Case("log-variances of -60 and 60", flat(60)), f64, 1e-9),
        (Case("means near 10000, log-variances near -10", far(10_000)), f64, 1e-9),
        *((Case(f"f of size {size:g}", sized(size)), f64, 1e-9, 1e-9 * size) for size in SIZES),
        (Case("samples at the mean, and far from it", away(0.0, 6.0, 40.0)), f64, 1e-9),
    ]


def score_properties(student: Student):
    mean, logvar, z = line(-2, 2, 3), line(-1, 1, 3), line(-3, 4, 5, 3).roll(1, 0)
    f = Quadratic(line(-1, 1, 3, 3), line(0.5, 1, 3), torch.tensor(2.0))

    def call(*baseline, f=f, z=z):
        return student(f, mean.clone(), logvar.clone(), z.clone(), *baseline)

    pair = call()
    yield "two gradients of shape (k,)", is_pair(pair, 3)
    yield "finite", "" if finite(pair) else "some numbers are not finite"
    yield "the same at a second call", "" if same(call(), plain(pair), 0, 0) else NOT_RANDOM
    centre = call(z=mean.repeat(4, 1))
    why = "" if zero(centre[0]) else "at its mean a Gaussian is flat: the score for the mean is zero there"
    yield "no gradient for the mean from samples at the mean", why
    why = is_pair(call(torch.linspace(0, 1, 5)), 3)
    yield "the same shapes with a baseline (samples,)", why
    flat = Quadratic(torch.zeros(3, 3), torch.zeros(3), torch.tensor(2.0))
    why = "f equals its baseline for every sample here; subtract the baseline from f, for both gradients"
    why = "" if all(map(zero, call(2.0, f=flat))) else why
    yield "no gradient when f equals its baseline", why


def baseline_cases(draw):
    return [
        Case("baseline=2.5", sampled(draw, quadratic, 7, 3), {"baseline": 2.5}),
        Case("the integer 3 as fifth argument", (*sampled(draw, sine, 6, 4), 3)),
        Case("a tensor () as baseline", (*sampled(draw, quadratic, 7, 3), draw() - 2)),
        Case("a tensor (samples,) as baseline", (*sampled(draw, quadratic, 7, 3), 2 * draw(7))),
        Case("a tensor (samples,) with as many latents", (*sampled(draw, quadratic, 4, 4), 2 * draw(4))),
        Case("one sample with a tensor (1,) as baseline", (*sampled(draw, quadratic, 1, 3), draw(1))),
        Case("baseline=0", sampled(draw, sine, 7, 3), {"baseline": 0}),
        Case("a step function, baseline=0.5", stepped(draw, 9, 3), {"baseline": 0.5}),
        Case("baseline=1000000", sampled(draw, sine, 7, 3), {"baseline": 1e6}),
        Case("130 samples with a tensor (130,) as baseline", (*sampled(draw, sine, 130, 2), 2 * draw(130))),
        Case("f(z) = z[:, 0], baseline=0.5", (First(), *sampled(draw, sine, 6, 3)[1:]), {"baseline": 0.5}),
    ]


def baseline_probes(draw):
    # One of them without, to tell a sign that is wrong throughout from b - f.
    return [
        Case("", (*sampled(draw, f, 7, 3, positive), baseline))
        for f, baseline in ((quadratic, 2.5), (sine, 2 * draw(7)), (quadratic, None))
    ]


def baseline(task: Task, student: Student, draw) -> None:
    """The values again, with every kind of baseline."""
    values(replace(task, cases=baseline_cases, probes=baseline_probes), student, draw)


SCORE_FUNCTION_GRADIENT = Task(
    name="score_function_gradient",
    read="gradients#the-score-function-reweight-the-samples",
    reference=score_function_gradient,
    slips=score_slips,
    properties=score_properties,
    cases=score_cases,
    probes=score_probes,
    extremes=score_extremes,
    hint="subtract the mean and divide by the standard deviation before squaring; no epsilon, clamp "
    "or density is needed",
    tests={"values": values, "baseline": baseline, "parameters": parameters, "stability": stability},
)

# ---- leave_one_out_baseline(values): for each sample the mean of the others


def leave_one_out_baseline(values):
    others = ~torch.eye(len(values), dtype=torch.bool)
    return torch.stack([values[row].mean() for row in others])


def loo_slips(x):
    n, total = len(x), x.sum()
    right = (total - x) / (n - 1)
    yield "", right
    own = "the mean of all values is taken: each baseline contains its own value"
    yield own, (total / n).expand_as(x)
    yield own, total / n
    yield "the sum of the others is divided by samples, not by samples - 1", (total - x) / n
    yield (
        "the sum of all values, the own one included, is divided by samples - 1",
        (total / (n - 1)).expand_as(x),
    )
    yield "the own value stays in the sum: it must leave the sum, not the mean", total / n - x
    yield "the own value is subtracted from the mean before the sum is divided", total / (n - 1) - x
    yield "the own value is subtracted once too often", (total - 2 * x) / (n - 1)
    yield "the others are summed, not averaged", total - x
    yield "the difference f - baseline is returned, not the baseline", x - right
    yield "the sign is flipped", -right
    yield "the difference baseline - f is returned, not the baseline", right - x
    yield "the values themselves are returned", x
    yield "the baselines are averaged over the samples", right.mean()
    yield "it is the median of all values", x.median().expand_as(x)
    others = [torch.cat((x[:i], x[i + 1 :])) for i in range(n)]
    yield "the median of the others is taken, not their mean", torch.stack([o.median() for o in others])
    yield "the largest of the others is taken, not their mean", torch.stack([o.max() for o in others])
    neighbour = "the value of one neighbour is taken, not the mean of all others"
    yield neighbour, x.roll(1)
    yield neighbour, x.roll(-1)
    yield "one sample is left out for all: the last", x[:-1].mean().expand_as(x)
    yield "one sample is left out for all: the first", x[1:].mean().expand_as(x)
    earlier = torch.stack([x[:i].sum() / max(i, 1) for i in range(n)])
    yield "only the samples before it are averaged, not all others", earlier
    through = torch.stack([x[: i + 1].mean() for i in range(n)])
    yield "it is a running mean, which contains the own value", through
    yield "a dimension of size 1 is left", right.unsqueeze(1)
    yield "a dimension of size 1 is left", right.unsqueeze(0)
    yield "the square of the values is averaged", ((x**2).sum() - x**2) / (n - 1)
    yield "only the first baseline is returned", right[0]
    yield "zeros are returned: no baseline at all", 0 * x


def loo_cases(draw):
    return [
        Case("7 values", (3 + draw(7),)),
        Case("2 values", (draw(2),)),
        Case("3 values", (-5 * draw(3).abs(),)),
        Case("500 values", (10 + draw(500),)),
        Case("3000 values", (draw(3000),)),
        Case("values whose sum is 0", (torch.tensor([1.5, -2.0, 2.5, -2.0], dtype=f64),)),
        Case("zeros among the values", (torch.cat((draw(4), torch.zeros(3, dtype=f64))),)),
        Case("equal values and another", (torch.cat((torch.full((4,), 1.5, dtype=f64), draw(1))),)),
    ]


def per_sample(result, samples: int) -> str:
    """Why a result is not one number per sample; "" when it is."""
    right = isinstance(result, Tensor) and result.shape == (samples,)
    return "" if right else f"expected one number per sample, shape ({samples},), and got {shape(result)}"


def loo_properties(student: Student):
    values = torch.tensor([1.0, -2.0, 4.0, 0.5, 3.0])
    baselines = student(values.clone())
    yield "one number per sample", per_sample(baselines, 5)
    yield "finite", "" if finite(baselines) else "some numbers are not finite"
    order = torch.tensor([3, 0, 4, 1, 2])
    why = (
        ""
        if torch.allclose(student(values[order]), baselines[order], atol=1e-5)
        else "the order must not matter"
    )
    yield "values in another order, baselines in that order", why
    why = (
        ""
        if torch.allclose(student(values + 10), baselines + 10, atol=1e-4)
        else "all values 10 higher: so are these"
    )
    yield "higher with the values", why
    equal = student(torch.full((4,), 2.5))
    why = "" if zero(equal - 2.5) else "when all values are equal, each is the mean of the others"
    yield "equal values are their own baselines", why


def loo_values(task: Task, student: Student, draw) -> None:
    """The values, and values of every size, which a limit or a floor would change."""
    values_in_evaluation(task, student, draw)
    looks = [(size, size * (3 + draw(7))) for size in SIZES]
    right = [leave_one_out_baseline(given) for _, given in looks]
    results = student.each([((given,), {}, f"values of size {size:g}") for size, given in looks])
    for (size, _), want, got in zip(looks, right, results):
        if not same(got, want, 1e-4, 0.0):
            raise Wrong(
                "right for ordinary values, and wrong for these. Is something limited (clamped), rounded or "
                "added?",
                case=f"values of size {size:g}",
            )


def independence(task: Task, student: Student, draw) -> None:
    """Does the baseline of a sample stay where it is when the sample's own value moves?"""
    for samples in (2, 3, 8, 130):
        where = f"{samples} values, one of them moved"
        before = draw(samples)
        old = student(before.clone(), where=where)
        why = per_sample(old, samples)
        if why:
            raise Wrong(f"{why}.", diagnose(task, student, draw), case=where)
        moves = [index for index in range(samples) if index < 8 or index == samples - 1]
        given = [before + 100 * (torch.arange(samples) == index) for index in moves]
        for index, new in zip(moves, student.each([((after,), {}, where) for after in given])):
            moved = math.inf if per_sample(new, samples) else float((new[index] - old[index]).abs())
            if 1e-8 < moved < 1e-4:
                raise Wrong(
                    "a baseline moves by a rounding error of single precision when "
                    "its own value does. Stay in the type of the inputs.",
                    case=where,
                )
            if not at_most(moved, 1e-8):
                raise Wrong(
                    "the baseline of a sample moves when its own value does, and the estimate is biased.",
                    diagnose(task, student, draw),
                    case=where,
                )


LEAVE_ONE_OUT_BASELINE = Task(
    name="leave_one_out_baseline",
    read="gradients#baselines-that-you-can-compute",
    reference=leave_one_out_baseline,
    slips=loo_slips,
    properties=loo_properties,
    cases=loo_cases,
    probes=lambda draw: [Case("", (2 + draw(7).abs(),)), Case("", (draw(5),))],
    tests={"values": loo_values, "independence": independence},
)

TASKS = {
    task.name: task
    for task in (REPARAMETERIZE, PATHWISE_GRADIENT, SCORE_FUNCTION_GRADIENT, LEAVE_ONE_OUT_BASELINE)
}
