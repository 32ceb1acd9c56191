"""Assignment `vae`: encoder, decoder, the model, its loss and its training; and a broken one to mend.

Modules are handled through `ModuleProxy`, by method and by state_dict. Each test sets the parameters itself
and compares with the same network written as plain matrix products, or with the module's own parts where
another task has tested these, so that one mistake costs one cell.
"""

import math
from collections.abc import Iterator
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor

from aecourse.checks.core import (
    FOLLOWS,
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
    remembered,
    same,
    same_shape,
    shape,
)
from aecourse.checks.elbo import bernoulli_slips, gaussian_kl_slips
from aecourse.checks.kinds import LIMIT, values, z_score
from aecourse.checks.modules import weighted_sum
from aecourse.checks.naming import Candidates, diagnose, explain
from aecourse.checks.parts import AffineVAE
from aecourse.checks.student import ModuleProxy, Student, uses_generator

# ---- shared by several tasks

READY_MADE = ("torch.distributions.kl",)


SO_ONE_GETS = "That is what one gets when"
MODES = {"training mode": True, "evaluation mode": False}


def needs(condition, words: str, **others) -> None:
    """Raise ``Wrong(words, **others)`` unless the condition holds."""
    if not condition:
        raise Wrong(words, **others)


def untouched(student: Student, *given) -> bool:
    """Whether the last call left what it was given as it was."""
    return not student.effects.changed(given) and not student.effects.required(given)


def closest(observed: Tensor, candidates) -> Cause:
    """The slip whose statistics (n,) the observed ones match to a tenth; none when none of them do."""
    for clause, expected in candidates:
        expected = torch.as_tensor(expected, dtype=f64).expand_as(observed)
        if torch.allclose(observed, expected, rtol=0.12, atol=0.05):
            return Cause.of((clause,), SO_ONE_GETS)
    return UNKNOWN


def two_samples(ours: Tensor, theirs: Tensor) -> Tensor:
    """z-scores (...) of the difference of the means of two independent samples, (n, ...) and (m, ...)."""
    ours, theirs = ours.detach().to(f64), theirs.detach().to(f64)
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    return (ours.mean(0) - theirs.mean(0)) / error.clamp_min(1e-7)


def loaded(student: Student, sizes, state: dict, dtype=f64) -> ModuleProxy:
    return ModuleProxy.construct(student, *sizes).load({n: v.to(dtype) for n, v in state.items()})


def shapes_of(state: dict) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _nll(x, logits):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def posterior(draw: Draw) -> tuple[Tensor, Tensor]:
    """The mean and the log-variance of four latents, each (4,), far enough apart to tell slips by them."""
    mean, logvar = torch.tensor([[2.0, -1.5, 0.5, 3.0], [-3.0, -0.7, 0.9, 1.6]], dtype=f64)
    return mean + draw(4, low=-0.2, high=0.2), logvar + draw(4, low=-0.1, high=0.1)


def limited(got, want) -> bool:
    """Whether results are the right ones as far as to some lower and upper limit, and those beyond it."""
    if isinstance(want, tuple):
        parts = [(g, w) for g, w in zip(got, want) if not same(g, w, 1e-4, 1e-4)]
        return bool(parts) and all(limited(g, w) for g, w in parts)
    got = got.detach().to(f64)
    return finite(got) and same(got, want.clamp(got.min(), got.max()), 1e-4, 1e-4)


def far_apart(numbers: Tensor) -> bool:
    """Whether hardly any two of these, up to 10,000, have the same size: none is used again, nor its mirror
    image. Looked at to six digits, which is what float32 leaves of them."""
    sizes = (numbers.detach().to(f64).abs() * 1e6).round().flatten()
    return at_least(len(sizes.unique()) / len(sizes), 0.93)  # noise with a limit has some that are equal


def tails(noise: Tensor) -> float:
    """The largest of the z-scores of how many of these numbers, of many thousands, lie how far from 0, for
    standard normal ones."""
    noise = noise.detach().to(f64).flatten()
    scores = []
    for reach in (0.27, 1.04, 1.96, 2.47, 2.93, 3.46):  # where nobody puts a limit
        share = math.erfc(reach / math.sqrt(2))
        expected = share * len(noise)
        if expected < 36:  # so that none at all is six standard deviations
            break
        found = float((noise.abs() > reach).sum())
        scores.append(abs(found - expected) / math.sqrt(expected * (1 - share)))
    return max(scores) if finite(noise) else math.inf


STEPS = 1e-5, 1e-6, 1e-7


def is_slope(value, at: Tensor, slope: Tensor | None, draw: Draw) -> bool:
    """Whether a slope is that of ``value(at)``, one number, along a random direction, by finite differences;
    with a smaller step where a ReLU has its kink in the way."""
    along = draw(*at.shape)
    got = 0.0 if slope is None else float((slope * along).sum())
    for step in STEPS:
        ahead, behind = (float(value(at + sign * step * along)) for sign in (1, -1))
        if at_most(abs((ahead - behind) / (2 * step) - got), 1e-5 * (1 + abs(got))):
            return True
    return False


# ---- Encoder and Decoder: Class(inputs, hidden, outputs), a hidden layer with a ReLU, linear heads

HEADS = {"Encoder": ("mean", "logvar"), "Decoder": ("logits",)}


def network_state(draw: Draw, heads, inputs: int, hidden: int, outputs: int, scale: float = 1.0) -> dict:
    sizes = {"hidden": (hidden, inputs), **{head: (outputs, hidden) for head in heads}}
    state = {}
    for name, (rows, columns) in sizes.items():
        state[f"{name}.weight"] = scale * 1.5 * draw(rows, columns) / columns**0.5
        state[f"{name}.bias"] = scale * 0.5 * draw(rows)
    return state


def network(state: dict, x: Tensor, prefix: str = "") -> Tensor | tuple[Tensor, ...]:
    """What the network with these parameters makes of x."""
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    h = (x @ weights["hidden.weight"].mT + weights["hidden.bias"]).clamp_min(0)
    heads = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    outputs = tuple(h @ weights[f"{n}.weight"].mT + weights[f"{n}.bias"] for n in heads if n != "hidden")
    return outputs if len(outputs) > 1 else outputs[0]


ACTIVATIONS = [
    ("", lambda a: a.clamp_min(0)),
    ("the hidden layer has no ReLU", lambda a: a),
    ("the hidden layer has a tanh, not a ReLU", torch.tanh),
    ("the hidden layer has a sigmoid, not a ReLU", torch.sigmoid),
    ("the hidden layer has another activation, not a ReLU", F.leaky_relu),
    ("the hidden layer has another activation, not a ReLU", F.softplus),
    ("the hidden layer has another activation, not a ReLU", F.gelu),
    ("the hidden layer has another activation, not a ReLU", F.silu),
    ("the hidden layer has another activation, not a ReLU", F.elu),
]
OUTPUTS = [
    ("a ReLU is put on {}", F.relu),
    ("a tanh is put on {}", torch.tanh),
    ("a sigmoid is put on {}", torch.sigmoid),
    ("a softplus is put on {}", F.softplus),
    ("a softmax is put on {}", lambda a: a.softmax(-1)),
    ("{} is limited (clamped)", lambda a: a.clamp(-10, 10)),
    ("{} is limited (clamped)", lambda a: a.clamp(-5, 5)),
    ("{} is limited (clamped)", lambda a: a.clamp(-20, 20)),
    ("{} is limited (clamped)", lambda a: a.clamp(-20, 2)),
    ("{} is limited (clamped)", lambda a: a.clamp(-6, 2)),
    ("the exponential of {} is returned", torch.exp),
    ("the exponential of {} is returned", lambda a: (a / 2).exp()),
    ("{} is doubled, as if the layer put out its half", lambda a: 2 * a),
    ("{} is halved", lambda a: a / 2),
    ("a softplus and a logarithm are put on {}", lambda a: F.softplus(a).log()),
    ("the absolute value of {} is taken", torch.abs),
]
NAMES = {"mean": "the mean", "logvar": "the log-variance", "logits": "the logits"}


def network_slips(state: dict, heads, x: Tensor) -> Iterator[tuple]:
    """What to tell, and the outputs that it leads to; one wrong hidden layer or at most one slip per head."""
    a = x @ state["hidden.weight"].mT + state["hidden.bias"]
    for clause, activation in ACTIVATIONS:
        h = activation(a)
        plain = {n: h @ state[f"{n}.weight"].mT + state[f"{n}.bias"] for n in heads}
        options = []
        for name in heads:
            of_head = [((), plain[name])]
            of_head += [((words.format(NAMES[name]),), change(plain[name])) for words, change in OUTPUTS]
            of_head += [
                ((f"{NAMES[name]} comes from the head of {NAMES[other]}",), plain[other])
                for other in heads
                if other != name
            ]
            options.append(of_head)
        for parts in product(*options):
            clauses = ((clause,) if clause else ()) + sum((words for words, _ in parts), ())
            results = tuple(result for _, result in parts)
            yield clauses, results if len(results) > 1 else results[0]


NETWORK_CASES = [
    ("4 rows, sizes 6, 5, 3", (6, 5, 3), 4, 1.0),
    ("a batch of one, sizes 7, 9, 2", (7, 9, 2), 1, 1.0),
    ("sizes 5, 4, 1", (5, 4, 1), 3, 1.0),
    ("130 rows", (4, 6, 2), 130, 1.0),
    ("5 rows, large weights", (6, 8, 3), 5, 5.0),
    ("5 rows, small weights", (6, 8, 3), 5, 1e-3),
    ("5 rows, huge weights", (6, 8, 3), 5, 1e3),
]


def network_cases(draw: Draw, heads):
    for label, sizes, batch, scale in NETWORK_CASES:
        yield label, sizes, network_state(draw, heads, *sizes, scale), draw(batch, sizes[0])


def forward(module: ModuleProxy, x: Tensor, where: str = ""):
    """The result, a list as a tuple."""
    result = module.call("forward", x, where=where)
    return tuple(result) if isinstance(result, list) else result


def network_properties(student: Student):
    heads, draw = HEADS[student.task.name], Draw(1)
    module = ModuleProxy.construct(student, 6, 5, 3)
    right = shapes_of(network_state(draw, heads, 6, 5, 3))
    yield "parameters with the names and shapes of the table", module.misnamed(right)
    x = draw(200, 6).float()
    got, want = forward(module, x), " and ".join([str((200, 3))] * len(heads))
    yield "the input unchanged", "" if untouched(student, x) else "the input is changed in place"
    parts = got if isinstance(got, tuple) else (got,)
    good = len(parts) == len(heads) and all(
        isinstance(part, Tensor) and part.shape == (200, 3) for part in parts
    )
    yield f"for 200 rows, {want}", "" if good else f"expected {want}, got {shape(got)}"
    yield "finite", "" if finite(got) else "not all numbers are finite"
    alone = forward(module, x[:50])
    first = alone if isinstance(alone, tuple) else (alone,)
    near = all(torch.allclose(rows, part[:50], atol=1e-5) for rows, part in zip(first, parts))
    why = "" if near else "a row's result depends on the other rows, or on chance"
    yield "a row gives the same in any batch", why


def network_values(task: Task, student: Student, draw: Draw) -> None:
    heads = HEADS[task.name]
    cases = list(network_cases(draw, heads))
    x = draw(200, 6)
    module = loaded(student, (6, 5, 3), network_state(draw, heads, 6, 5, 3), f32)
    first, second = (forward(module, x.to(f32)) for _ in range(2))
    needs(same(first, second, 0, 0), "two calls differ. Nothing is drawn here: no dropout.")
    for (label, sizes, state, x), dtype in product(cases, (f64, f32)):
        where, x = label, x.to(dtype)
        module = loaded(student, sizes, state, dtype)
        want = network(state, x.to(f64))
        got = forward(module, x, label)
        needs(untouched(student, x), "the input is changed in place. Leave it as it is.", case=where)
        if shape(got) != shape(want):
            raise Wrong(f"forward returns {shape(got)}, not {' and '.join(heads)}.", case=where)
        if not close(got, want):
            raise Wrong("wrong.", network_mistake(task, student, draw, cases, got, want), case=where)
        module.training(False)
        needs(
            close(forward(module, x, label), want),
            "right in training mode, and wrong in evaluation mode. The mode makes no difference here.",
            case=where,
        )
    if task.name == "Decoder":
        network_gradients(task, student, draw)


def close(got, want) -> bool:
    """Whether results are right to four digits of the largest: what cancels is lost in float32."""
    parts = want if isinstance(want, tuple) else (want,)
    return same(got, want, 1e-4, 1e-4 * max(float(part.detach().abs().max()) for part in parts))


def network_mistake(task: Task, student: Student, draw: Draw, cases, got, want) -> Cause:
    """The slip that leads to all results; or what is special about the result (got) that was not right."""

    def slips_of() -> list[Candidates]:
        return [Candidates(network_slips(state, HEADS[task.name], x)) for _, _, state, x in cases]

    slips = remembered(slips_of, task, draw, "slips of the cases that were drawn before")
    cause = explain([forward(loaded(student, sizes, state), x) for _, sizes, state, x in cases], slips)
    if not cause and limited(got, want):
        wrong = [
            NAMES[head]
            for head, g, w in zip(HEADS[task.name], *map(as_parts, (got, want)))
            if not close(g, w)
        ]
        return Cause.of(tuple(f"{name} is limited (clamped)" for name in wrong), SO_ONE_GETS)
    return cause


def as_parts(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


def network_gradients(task: Task, student: Student, draw: Draw) -> None:
    heads = HEADS[task.name]
    for label, sizes, state, x in network_cases(draw, heads):
        module = loaded(student, sizes, state)
        leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
        result = network(leaves, x)
        parts = as_parts(result)
        right = dict(zip(leaves, torch.autograd.grad(weighted_sum(parts), list(leaves.values()))))
        same_value = close(module.call("forward", x, where=label), result)
        got = module.parameter_gradients("forward", x)
        module.training(False)
        other = module.parameter_gradients("forward", x)
        for name, slope in reversed(right.items()):  # from the end: where the graph is cut
            here, there = (
                slopes.get(name) is not None and close(slopes[name], slope) for slopes in (got, other)
            )
            if here and there:
                continue
            where = label if here == there else f"{label}, in {'evaluation' if here else 'training'} mode"
            needs(
                same_value,
                f"the gradient for {name} is wrong, and so are the values: repair these.",
                case=where,
                reason=FOLLOWS,
            )
            raise Wrong(
                f"the values are right, but the gradient for {name} is not: the graph is cut, for "
                "example by .detach(), .data, torch.tensor(...) or torch.no_grad().",
                case=where,
            )
        if task.name == "Decoder" and same_value:
            code, own = (x.clone().requires_grad_() for _ in range(2))
            z_slope = torch.autograd.grad(weighted_sum((network(state, own),)), own)[0]
            logits = module.call("forward", code, where=label)
            got_z = None
            if logits.requires_grad:
                got_z = torch.autograd.grad(weighted_sum((logits,)), code, allow_unused=True)[0]
            needs(
                got_z is not None and close(got_z, z_slope),
                "the values are right, but the gradient for the code z is not: nothing "
                "could reach the encoder. The graph is cut, by .detach(), .data or torch.no_grad().",
                case=label,
            )


ENCODER = Task(
    name="Encoder",
    read="design#the-encoder-s-variance",
    properties=network_properties,
    forbidden=READY_MADE,
    tests={"values": network_values, "gradients": network_gradients},
)

DECODER = Task(
    name="Decoder",
    read="vae#a-model-with-a-latent-variable",
    properties=network_properties,
    forbidden=READY_MADE,
    tests={"values": network_values},
)

# ---- VAE(dim, hidden, latent_dim): forward, sample_latent, reconstruct and sample


def vae_state(draw: Draw, dim: int, hidden: int, latent_dim: int, scale: float = 1.0) -> dict:
    parts = {
        "encoder": network_state(draw, HEADS["Encoder"], dim, hidden, latent_dim),
        "decoder": network_state(draw, HEADS["Decoder"], latent_dim, hidden, dim, scale),
    }
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


def vae_properties(student: Student):
    draw = Draw(2)
    vae = ModuleProxy.construct(student, 8, 5, 3)
    right = shapes_of(vae_state(draw, 8, 5, 3))
    yield "parameters of an Encoder and a Decoder, and no others", vae.misnamed(right)
    x = draw(4, 8, low=0, high=1).float()
    results = vae.call("forward", x, Seed(1))
    good = isinstance(results, tuple | list) and [getattr(r, "shape", None) for r in results] == [
        (4, 8),
        (4, 3),
        (4, 3),
    ]
    why = "" if good else f"expected logits (4, 8), mean (4, 3) and logvar (4, 3), got {shape(results)}"
    yield "forward: logits, mean and logvar", why
    z = vae.call("sample_latent", results[1], results[2], Seed(1))
    good = isinstance(z, Tensor) and z.shape == (4, 3) and finite(z)
    yield "sample_latent: one z per row", "" if good else f"expected finite (4, 3), got {shape(z)}"
    again = vae.call("sample_latent", results[1], results[2], Seed(1))
    why = "" if same(again, z, 0, 0) else "two generators with the same seed give different draws"
    yield "the same draw from the same generator", why
    for method, arguments in (("reconstruct", (x,)), ("sample", (4, Seed(1)))):
        p = vae.call(method, *arguments)
        good = isinstance(p, Tensor) and p.shape == (4, 8)
        yield f"{method}: shape (4, 8)", "" if good else f"expected shape (4, 8), got {shape(p)}"
        good = (p >= 0).all() and (p <= 1).all()
        yield f"{method}: probabilities", "" if good else "a probability lies between 0 and 1"


def vae_values(task: Task, student: Student, draw: Draw) -> None:
    """forward and reconstruct, against the model's own encoder, decoder and sample_latent."""
    for label, sizes, batch in (
        ("4 rows", (7, 6, 3), 4),
        ("a batch of one", (5, 4, 2), 1),
        ("130 rows", (5, 4, 2), 130),
    ):
        state = vae_state(draw, *sizes)
        # Alive wherever z falls: with all units off, the logits would not depend on z.
        state["decoder.hidden.bias"] += 2.0
        vae, x = loaded(student, sizes, state, f32), draw(batch, sizes[0]).to(f32)
        for mode, training in MODES.items():
            vae.training(training)
            where = f"{label}, {mode}"
            mean, logvar = own_encoding(vae, x)
            _reconstruct_is_right(vae, x, mean, logvar, where)
            results = vae.call("forward", x, draw.seed(), where=where)
            good = isinstance(results, tuple | list) and len(results) == 3
            needs(good, f"forward returns {shape(results)}, not logits, mean and logvar.", case=where)
            logits, *rest = results
            swapped = same(tuple(rest), (logvar, mean), 1e-5, 1e-6)
            needs(not swapped, "forward returns logvar and mean in the wrong order.", case=where)
            good = same(tuple(rest), (mean, logvar), 1e-5, 1e-6)
            needs(good, "forward does not return the mean and logvar of the encoder.", case=where)
            decoded = vae.call("decoder", mean)
            others = (vae.call("forward", x, draw.seed())[0] for _ in range(20))
            if same(logits, decoded, 1e-5, 1e-6) and all(same(again, logits, 1e-5, 1e-6) for again in others):
                raise Wrong(
                    f"forward decodes the mean in {mode}, where a draw of q(z|x) is asked.", case=label
                )
            _forward_is_composed(student, vae, x, draw, where)
    _nothing_is_limited(student, draw)


def _reconstruct_is_right(vae: ModuleProxy, x: Tensor, mean: Tensor, logvar: Tensor, where: str) -> None:
    decoded, got = vae.call("decoder", mean), vae.call("reconstruct", x, where=where)
    if same(got, decoded.sigmoid(), 1e-4, 1e-5):
        return
    candidates = [
        ((), decoded.sigmoid()),
        ("the logits are returned, without a sigmoid", decoded),
        ("the sigmoid is taken twice", decoded.sigmoid().sigmoid()),
        ("the probabilities are rounded to 0 or 1", decoded.sigmoid().round()),
        ("the log-variance is decoded, not the mean", vae.call("decoder", logvar).sigmoid()),
    ]
    cause = explain([got], [candidates])
    if not cause and not same(got, vae.call("reconstruct", x), 0, 0):
        cause = Cause(" Two calls differ: z is drawn, where its mean is to be decoded.")
    if not cause and shape(got) == shape(decoded) and limited(got, decoded.sigmoid()):
        cause = Cause.of(("the probabilities are limited (clamped)",), SO_ONE_GETS)
    raise Wrong("reconstruct is wrong.", cause, case=where)


def _forward_is_composed(student: Student, vae: ModuleProxy, x: Tensor, draw: Draw, where: str) -> None:
    """forward is decoder(sample_latent(encoder)) in values and gradients, be sample_latent right or wrong."""
    seed = draw.seed()
    x, own = (x.clone().requires_grad_() for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        posterior = own_encoding(vae, own)
        logits = vae.call("decoder", seeded(vae, "sample_latent", *posterior, seed))
        results = seeded(vae, "forward", x, seed)
    if not same(results[0], logits, 1e-4, 1e-5):  # another order of the same draws, or another draw
        uses_generator(student, lambda generator: vae.call("forward", x.detach(), generator)[0])
        _forward_draws(vae, x[:1].detach(), draw, where)
        return
    for name, ours, theirs in zip(("logits", "mean", "logvar"), (logits, *posterior), results):
        right = got = None
        if ours.requires_grad:
            right = torch.autograd.grad(weighted_sum((ours,)), own, retain_graph=True, allow_unused=True)[0]
        if right is not None:
            if theirs.requires_grad:
                got = torch.autograd.grad(weighted_sum((theirs,)), x, retain_graph=True, allow_unused=True)[0]
            needs(
                same(got, right, 1e-3, 1e-3),
                f"the values of forward are right, but no gradient, or a wrong one, comes back "
                f"through its {name}: the graph is cut, by .detach(), .data or torch.no_grad().",
                case=where,
            )


def seeded(vae: ModuleProxy, method: str, *arguments):
    """A call whose last argument is a `Seed`, which fixes torch's global state, too: whoever draws from there
    loses the points of the generator, not these. The caller puts the global state back."""
    torch.manual_seed((arguments[-1].number + 1) % 2**31)
    return vae.call(method, *arguments)


def _nothing_is_limited(student: Student, draw: Draw) -> None:
    """Means, log-variances and logits far from 0 go through forward and reconstruct as they are."""
    sizes, x = (5, 4, 1), draw(400, 5)
    for label, changes in {
        **{
            f"log-variances near {level}": {
                "encoder.logvar.bias": level,
                **dict.fromkeys(("encoder.mean.weight", "encoder.mean.bias", "encoder.logvar.weight"), 0.0),
                **dict.fromkeys(("decoder.hidden.bias", "decoder.logits.bias"), 0.0),
            }
            for level in (-300.0, -50.0, 50.0, 300.0)
        },
        "means near 10000": {"encoder.mean.bias": 1e4, "decoder.hidden.weight": 1e-4},
        "logits near -12": {"decoder.logits.bias": -12.0, "decoder.logits.weight": 0.01},
        "logits near 12": {"decoder.logits.bias": 12.0, "decoder.logits.weight": 0.01},
    }.items():
        state = vae_state(draw, *sizes)
        for name, level in changes.items():
            state[name] = state[name] * 0 + level
        if "decoder.logits.weight" not in changes:  # both signs of z have units that are on
            state["decoder.hidden.weight"] = draw(4, 1).abs() * torch.tensor(
                [[1.0], [1], [-1], [-1]], dtype=f64
            )
            state["decoder.hidden.weight"] *= changes.get("decoder.hidden.weight", 1.0)
        vae = loaded(student, sizes, state)
        limits = "Is something limited (clamped), or added?"
        for training in MODES.values():
            vae.training(training)
            mean, logvar = own_encoding(vae, x)
            p, right = vae.call("reconstruct", x, where=label), vae.call("decoder", mean).sigmoid()
            needs(
                same(p, right, 1e-4, 1e-6),
                f"reconstruct is right on ordinary numbers only. {limits}",
                case=label,
            )
            seed = draw.seed()
            with torch.random.fork_rng(devices=[]):
                ours = vae.call("decoder", seeded(vae, "sample_latent", mean, logvar, seed))
                logits, *rest = seeded(vae, "forward", x, seed)
            good = same(tuple(rest), (mean, logvar), 1e-5, 0)
            words = f"the mean and logvar of forward are right on ordinary numbers only. {limits}"
            needs(good, words, case=label)
            if not same(logits, ours, 1e-5, 0):  # another order of draws: by their size
                sizes_of = [a.detach().abs().clamp_min(1e-200).log().mean() for a in (logits, ours)]
                good = at_most(abs(sizes_of[0] - sizes_of[1]), 0.7)
                needs(good, f"the logits of forward are right on ordinary numbers only. {limits}", case=label)


def own_encoding(vae: ModuleProxy, x: Tensor) -> tuple[Tensor, Tensor]:
    encoded = vae.call("encoder", x)
    if not isinstance(encoded, tuple | list) or len(encoded) != 2:
        raise Wrong("its encoder does not return mean and logvar. Repair Encoder first.", reason=FOLLOWS)
    return tuple(encoded)


def _forward_draws(vae: ModuleProxy, x: Tensor, draw: Draw, where: str) -> None:
    """The logits of many draws have the first two moments that the model's own sample_latent leads to."""
    many = x.expand(4000, -1)
    logits = vae.call("forward", many.clone(), draw.seed())[0]
    z = vae.call("sample_latent", *own_encoding(vae, many.clone()), draw.seed())
    ours = vae.call("decoder", z)
    needs(shape(logits) == shape(ours), f"the logits are {shape(logits)}.", case=where)
    if (two_samples(torch.cat([ours, ours**2], 1), torch.cat([logits, logits**2], 1)).abs() < LIMIT).all():
        return
    cause = closest(
        logits.to(f64).mean(0), [("probabilities are returned, not logits", ours.sigmoid().mean(0))]
    )
    raise Wrong("the logits are not the decoder's at a draw of sample_latent.", cause, case=where)


def vae_noise(task: Task, student: Student, draw: Draw) -> None:
    """sample_latent: its distribution, its generator and its gradients."""
    vae = ModuleProxy.construct(student, 6, 5, 4)
    mean, logvar = draw(5, 4), draw(5, 4)
    uses_generator(
        student, lambda generator: vae.call("sample_latent", mean.clone(), logvar.clone(), generator)
    )
    seed, drawn = draw.seed(), {}
    for mode, training in MODES.items():
        vae.training(training)
        z = drawn[mode] = vae.call("sample_latent", mean.clone(), logvar.clone(), seed)
        needs(shape(z) == shape(mean), f"sample_latent returns {shape(z)}, not a z like mean.")
        needs(not same(z, mean, 1e-6, 1e-6), f"sample_latent returns the mean in {mode}: nothing is drawn.")
    needs(
        same(*drawn.values(), 1e-6, 1e-6),
        "in evaluation mode sample_latent draws something else than in training mode, where both are alike.",
    )
    vae.training(True)
    _noise_is_fresh(vae, draw)
    _noise_is_right(vae, draw)
    n = 2000
    for level in (-300.0, -30.0, 30.0, 300.0):
        far = torch.full((n, 1), level, dtype=f64)
        z = vae.call("sample_latent", 0 * far, far.clone(), draw.seed()).detach().to(f64)
        spread = float((z / (far / 2).exp()).square().mean())
        needs(
            at_most(abs(spread - 1), LIMIT * math.sqrt(2 / n)),
            "sample_latent is right for moderate logvar, and its spread is wrong for large ones, positive or "
            "negative. Is logvar limited (clamped), or is something added to the standard deviation?",
        )
    _noise_is_differentiable(vae, mean, logvar, draw)


def _noise_is_fresh(vae: ModuleProxy, draw: Draw) -> None:
    """Nothing is drawn twice, nor used again with another sign, in one call or in those that follow."""
    mean, logvar, seeds = draw(300, 4), draw(300, 4), [draw.seed() for _ in range(3)]
    order = [seeds[i] for i in (0, 1, 0, 2, 2, 1, 1)]
    drawn = vae.each("sample_latent", [(mean.clone(), logvar.clone(), seed) for seed in order])
    good = all(same(z, drawn[order.index(seed)], 0, 0) for z, seed in zip(drawn, order))
    needs(
        good, "sample_latent remembers earlier calls: with the same seed a later call gives something else."
    )
    generator = torch.Generator().manual_seed(draw.seed().number)
    drawn = [vae.call("sample_latent", mean.clone(), logvar.clone(), generator) for _ in range(8)]
    noise = [((z - mean) / (logvar / 2).exp()).detach() for z in drawn]
    if far_apart(torch.stack(noise)):
        return
    if not far_apart(noise[0][0]):
        raise Wrong("sample_latent gives all latents of an example the same noise.")
    if not far_apart(noise[0]):
        raise Wrong(
            "sample_latent gives rows of a batch the same noise, or its mirror image, so that it is not "
            "independent. Each example needs its own: draw as many numbers as mean has."
        )
    raise Wrong("sample_latent uses the noise of one call again in the next. Every call draws anew.")


def _noise_is_right(vae: ModuleProxy, draw: Draw) -> None:
    n, (means, log_variances) = 25_000, posterior(draw)
    mean, logvar = (t.expand(n, -1).clone() for t in (means, log_variances))
    z = vae.call("sample_latent", mean, logvar, draw.seed(), where=f"{n} equal rows").detach().to(f64)
    noise = (z - means) / (log_variances / 2).exp()
    needs(finite(noise), "sample_latent gives numbers that are not finite.")
    variances, right = (z - means).var(0), log_variances.exp()
    sd = right.sqrt()
    if max(abs(z_score(column, 0.0)) for column in noise.T) > LIMIT:
        slips = [
            ("the mean is left out", 0 * means),
            ("the mean is counted twice", 2 * means),
            ("mean and logvar change places", log_variances),
            ("the noise is uniform (torch.rand), not normal (torch.randn)", means + sd / 2),
            ("the noise is uniform (torch.rand), not normal (torch.randn)", means + right / 2),
        ]
        raise Wrong("the draws of sample_latent do not average to mean.", closest(z.mean(0), slips))
    if max(abs(z_score(column.square(), 1.0)) for column in noise.T) > LIMIT:
        slips = [
            ("exp(logvar), the variance, is taken as the standard deviation", right**2),
            ("logvar is taken as the standard deviation", log_variances**2),
            ("the noise is not scaled at all", 1.0),
            ("the root of the standard deviation scales the noise", sd),
            ("the noise is divided by the standard deviation", 1 / right),
            ("the noise is uniform, not normal", right / 3),
            ("a softplus stands where exp(logvar / 2) belongs", F.softplus(log_variances) ** 2),
            ("a softplus of logvar is taken as the variance", F.softplus(log_variances)),
        ]
        cause = closest((variances / right).log(), [(c, (v / right).log()) for c, v in slips])
        if not cause and at_most(noise.abs().max(), 3.7):
            cause = Cause.of(("the noise is limited (clamped)",), SO_ONE_GETS)
        raise Wrong("the spread of the draws of sample_latent is not exp(logvar / 2).", cause)
    neighbours = [noise[1:] * noise[:-1], noise[n // 2 :] * noise[: n // 2], noise * noise.flip(0)]
    pairs = [(column * neighbour)[:, None] for column, neighbour in pairwise(noise.T)]
    if max(abs(z_score(c, 0.0)) for products in neighbours + pairs for c in products.T) > LIMIT:
        raise Wrong("the noise of sample_latent is not independent for each example and latent.")
    if not at_most(tails(noise), LIMIT):
        limit = " Is it limited (clamped)?" if at_most(noise.abs().max(), 3.7) else ""
        raise Wrong(f"the noise of sample_latent has the right spread, but is not normal.{limit}")


def _noise_is_differentiable(vae: ModuleProxy, mean: Tensor, logvar: Tensor, draw: Draw) -> None:
    """For the same noise, z moves with the mean one to one and with logvar by (z - mean) / 2."""
    for mode, training in MODES.items():
        vae.training(training)
        leaves = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
        z = vae.call("sample_latent", *leaves, draw.seed())
        slopes = (None, None)
        if z.requires_grad:
            slopes = torch.autograd.grad(z.sum(), leaves, allow_unused=True)
        want = torch.ones_like(mean), (z - mean).detach() / 2
        for name, slope, right in zip(("mean", "logvar"), slopes, want):
            cut = "the graph is cut, for example by .detach(), .data, torch.no_grad() or torch.normal(...)."
            needs(slope is not None, f"in {mode} no gradient of sample_latent reaches {name}: {cut}")
            good = same(slope, right, 1e-4, 1e-5)
            needs(good, f"in {mode} the gradient of sample_latent for {name} is wrong: {cut}")


def vae_samples(task: Task, student: Student, draw: Draw) -> None:
    """sample: probabilities, one independent standard normal z for each, by the model's own decoder."""
    sizes = (6, 7, 3)
    vae = loaded(student, sizes, vae_state(draw, *sizes, scale=1.5), f32)
    uses_generator(student, lambda generator: vae.call("sample", 5, generator))
    image = vae.call("sample", 1, draw.seed(), where="n = 1")
    needs(shape(image) == shape(torch.ones(1, 6)), f"sample(1) returns {shape(image)}, not (1, dim).")
    seed = draw.seed()
    few = [vae.training(mode) is mode and vae.call("sample", 5, seed) for mode in MODES.values()]
    needs(same(*few, 1e-6, 1e-6), "sample gives something else in evaluation mode than in training mode.")
    n = 40_000
    p = vae.call("sample", n, draw.seed(), where=f"n = {n}").detach()
    needs(shape(p) == shape(torch.ones(n, 6)), f"sample({n}) returns {shape(p)}, not ({n}, dim).")
    needs(at_least((p - p[:1]).abs().max(), 1e-5), "all images of sample are the same: draw one z for each.")
    z = draw(5 * n, 3).to(f32)
    logits = vae.call("decoder", z.clone())

    def moments(q):
        return torch.cat([q, q**2], 1).to(f64)

    def scores(q):
        inner = q.to(f64).clamp(1e-7, 1 - 1e-7).logit()
        right = logits.to(f64).clamp(-16, 16)
        return two_samples(*(torch.cat([a, (a - right.mean(0)) ** 2], 1) for a in (right, inner)))

    if not ((p >= 0) & (p <= 1)).all() or not (scores(p).abs() <= LIMIT).all():
        uniform = draw(5 * n, 3, low=0, high=1).to(f32)
        slips = [
            ("the logits are returned, without a sigmoid", logits),
            ("the sigmoid is taken twice", logits.sigmoid().sigmoid()),
            ("z is uniform (torch.rand), not normal (torch.randn)", vae.call("decoder", uniform).sigmoid()),
            ("z has not the spread of the prior, 1", vae.call("decoder", 2 * z).sigmoid()),
            ("z has not the spread of the prior, 1", vae.call("decoder", z / 2).sigmoid()),
            ("z is not centred at 0", vae.call("decoder", z + 1).sigmoid()),
        ]
        names = [(clause, moments(q).mean(0)) for clause, q in slips]
        if ((p == 0) | (p == 1)).all():
            names = [("pixels are drawn or rounded, where their probabilities are asked", moments(p).mean(0))]
        else:
            names = [pair for pair in names if torch.allclose(pair[1], moments(p).mean(0), 0.05, 0.02)]
        raise Wrong("sample is not the model's.", closest(moments(p).mean(0), names))
    centred = (p - p.mean(0)).to(f64)
    pairs = [centred[1:] * centred[:-1], centred[n // 2 :] * centred[: n // 2], centred * centred.flip(0)]
    if max(abs(z_score(c, 0.0)) for products in pairs for c in products.T) > LIMIT:
        raise Wrong("the images of one call of sample are not independent.")
    _prior_is_sampled(student, draw)


def _prior_is_sampled(student: Student, draw: Draw) -> None:
    """With a decoder whose logits are z itself the draws are read off: normal, far from 0 too, and fresh."""
    state = vae_state(draw, 3, 6, 3)
    halves = torch.cat([torch.eye(3, dtype=f64), -torch.eye(3, dtype=f64)])
    state |= {"decoder.hidden.weight": halves, "decoder.logits.weight": halves.mT.clone()}
    state |= {f"decoder.{name}.bias": 0 * state[f"decoder.{name}.bias"] for name in ("hidden", "logits")}
    vae = loaded(student, (3, 6, 3), state, f32)
    z = draw(20, 3).to(f32)
    if not same(vae.call("decoder", z.clone()), z, 1e-4, 1e-5):
        return  # a decoder that is wrong, as another task says
    generator = torch.Generator().manual_seed(draw.seed().number)
    parts = [vae.call("sample", n, generator).detach().to(f64).logit() for n in (1000, 1000, 1000, 40_000)]
    if not far_apart(torch.cat(parts[:3])):
        one = "one image again" if not far_apart(parts[0]) else "one call again in the next"
        raise Wrong(f"sample uses the noise of {one}, or its mirror image. Every image has its own z.")
    if not at_most(tails(parts[-1]), LIMIT):
        raise Wrong(
            "the z of sample are not standard normal, seen far from 0. Is something limited (clamped)?"
        )


VAE = Task(
    name="VAE",
    read="vae#the-algorithm",
    properties=vae_properties,
    forbidden=READY_MADE,
    tests={"values": vae_values, "noise": vae_noise, "samples": vae_samples},
)

# ---- kl_weight(step, warmup): a weight that rises from 0 to 1


def kl_weight(step, warmup):
    return float(torch.tensor(step, dtype=f64).div(max(warmup, 1)).clamp(max=1.0)) if warmup else 1.0


STEP = "it is 0 during the whole warm-up: a step, not a line (by an integer division, perhaps)"


def kl_weight_slips(step, warmup):
    w = max(warmup, 1)
    ready = warmup == 0
    t = 1.0 if ready else min(step / w, 1.0)
    yield "", t
    yield "the weight grows beyond 1", 1.0 if ready else step / w
    yield STEP, 1.0 if ready else float(min(step // w, 1))
    yield STEP, 1.0 if ready else float(step // w)
    yield "counting is off by one step", 1.0 if ready else min((step + 1) / w, 1.0)
    yield "counting is off by one step", 1.0 if ready else min(step / (w + 1), 1.0)
    yield "counting is off by one step", 1.0 if ready else min((step + 1) / (w + 1), 1.0)
    yield "counting is off by one step", 1.0 if ready else min(max(step - 1, 0) / w, 1.0)
    yield "it falls, where it should rise", 1.0 - t
    yield STEP, 1.0 if step >= warmup else 0.0
    yield "there is no warm-up", 1.0
    yield "it is a cosine, not a line", 1.0 if ready else 0.5 - 0.5 * math.cos(math.pi * t)
    yield "it is squared, not linear", t**2
    yield "step and warmup change places", min(w / max(step, 1), 1.0)
    yield "it starts again after the warm-up: cyclical", 1.0 if ready else (step % w) / w


def kl_weight_cases(draw: Draw):
    def number(low: int, high: int) -> int:
        return int(draw(1, low=low, high=high))

    w, many = number(10, 20), number(500, 2000)
    after = w + number(2, 9)
    return [
        Case("on the way", (number(3, w // 2), w)),
        Case("beyond the middle", (number(w // 2 + 2, w), w)),
        Case("at the end of the warm-up", (w, w)),
        Case("one step after the warm-up", (w + 1, w)),
        Case("after the warm-up", (after, w)),
        Case("long after the warm-up", (after * w * 1000 + 3, w)),
        Case("the first step", (0, w)),
        Case("no warm-up, the first step", (0, 0)),
        Case("no warm-up, a later step", (number(2, 9), 0)),
        Case("a short warm-up", (1, number(3, 6))),
        Case("a warm-up of one step, the first step", (0, 1)),
        Case("a warm-up of one step, the second step", (1, 1)),
        Case("a long warm-up", (number(3, many // 2), many)),
        Case("one step before the end of a long warm-up", (many - 1, many)),
        Case("a warm-up of millions of steps", (many * 1000 + number(1, 900), many * 3000)),
    ]


def kl_weight_properties(student: Student):
    weights = [student(step, 8) for step in range(20)]
    numbers = all(torch.as_tensor(w).dim() == 0 for w in weights if w is not None) and None not in weights
    yield "a number", "" if numbers else "expected one number"
    weights = [float(w) for w in weights]
    yield "between 0 and 1", "" if all(0 <= w <= 1 for w in weights) else "the weight leaves [0, 1]"
    yield "never falls", "" if weights == sorted(weights) else "the weight must not fall"
    why = "" if weights[0] == 0 and weights[-1] == 1 else "it starts at 0 and ends at 1"
    yield "from 0 to 1", why
    yield "no warm-up", "" if float(student(0, 0)) == 1 else "with warmup 0 the weight is 1 from the start"


def kl_weight_values(task: Task, student: Student, draw: Draw) -> None:
    for case in kl_weight_cases(draw):
        got = student(*case.arguments, where=case.label)
        number = got is not None and not isinstance(got, tuple | list) and torch.as_tensor(got).dim() == 0
        needs(number, f"{shape(got)} is returned, not a number.", case=case.label)
        if not same(float(got), kl_weight(*case.arguments), 1e-5, 1e-6):
            raise Wrong("wrong.", diagnose(task, student, draw), case=case.label)
    w = int(draw(1, low=5, high=3000))
    edges = {
        "the first step": (0, w, 0),
        "the end of the warm-up": (w, w, 1),
        "one step after the warm-up": (w + 1, w, 1),
        "long after the warm-up": (w * 10**6, w, 1),
        "no warm-up, the first step": (0, 0, 1),
        "no warm-up, a later step": (w, 0, 1),
    }
    for label, (step, warmup, exact) in edges.items():
        needs(float(student(step, warmup)) == exact, "close, but not exactly 0 or 1.", case=label)


KL_WEIGHT = Task(
    name="kl_weight",
    read="pitfalls#p17-beta-never-reaches-the-loss",
    reference=kl_weight,
    slips=kl_weight_slips,
    properties=kl_weight_properties,
    cases=kl_weight_cases,
    tests={"values": kl_weight_values},
)

# ---- negative_elbo(model, x, beta, generator): one draw of z per example, and the mean over the batch


def negative_elbo(x, model, beta):
    """With the mean in place of a draw: exact for the models of the cases."""
    mean, logvar = model.encoder(x)
    logits = model.decoder(mean)
    log_p = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(1)
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    q = torch.distributions.Normal(mean, (logvar / 2).exp())
    return (beta * torch.distributions.kl_divergence(q, prior).sum(1) - log_p).mean()


def negative_elbo_slips(model, x, beta, generator):
    mean, logvar = model.encoder(x)
    logits, b, (n, dim), k = model.decoder(mean), beta, x.shape, mean.shape[1]
    nll = _nll(x, logits)
    d = next(iter(gaussian_kl_slips(mean, logvar)))[1].sum(1)
    loss = nll + b * d
    yield "", loss.mean()
    yield "the sign is flipped: this is the ELBO, to be made large", -loss.mean()
    yield "the KL is subtracted from the loss, not added", (nll - b * d).mean()
    yield "the log-likelihood has the wrong sign", (b * d - nll).mean()
    yield "the result is not averaged over the batch", loss
    yield "the result is summed over the batch, not averaged", loss.sum()
    yield "beta multiplies the reconstruction, not the KL", (b * nll + d).mean()
    yield "beta multiplies the whole loss, not the KL alone", (b * (nll + d)).mean()
    yield "beta is not used", (nll + d).mean()
    yield "beta = 0 is taken for a beta that was left out", (nll + (b or 1.0) * d).mean()
    yield "beta divides the KL", (nll + d / b).mean() if b else torch.tensor(math.inf)
    yield "the weight of the KL is 1 + beta", (nll + (1 + b) * d).mean()
    yield "the reconstruction has the weight 1 - beta", ((1 - b) * nll + b * d).mean()
    yield "beta is limited to 1", (nll + min(b, 1) * d).mean()
    yield "the KL is left out", nll.mean()
    yield "the reconstruction is left out", (b * d).mean()
    yield "the KL is averaged over the latents", (nll + b * d / k).mean()
    yield "the reconstruction is averaged over the pixels", (nll / dim + b * d).mean()
    yield "both terms are averaged over everything", (nll / dim + b * d / k).mean()
    yield "the whole loss is averaged over the pixels", (loss / dim).mean()
    yield "the KL is divided by the number of pixels", (nll + b * d / dim).mean()
    yield "the KL is summed over the batch", nll.mean() + b * d.sum()
    yield "the reconstruction is summed over the batch", nll.sum() + b * d.mean()
    yield "the KL is divided by the batch size twice", nll.mean() + b * d.mean() / n
    yield "the half of the KL is missing", (nll + 2 * b * d).mean()
    yield "the KL is halved once more", (nll + b * d / 2).mean()
    yield "the unit is bits, not nats", loss.mean() / math.log(2)
    for floor in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 3.0):
        yield "the KL is kept above a floor", (nll + b * d.clamp_min(floor)).mean()
        each = 0.5 * (mean**2 + logvar.exp() - logvar - 1)
        yield "the KL is kept above a floor", (nll + b * each.clamp_min(floor).sum(1)).mean()
    yield "the log-variance is decoded", (_nll(x, model.decoder(logvar)) + b * d).mean()
    zero = model.decoder(torch.zeros_like(mean))
    yield "the decoder is given zeros, not z", (_nll(x, zero) + b * d).mean()
    for clause, terms in list(bernoulli_slips(x, logits))[1:]:
        yield f"in the reconstruction, {clause}", (b * d - terms.sum(1)).mean()
    for clause, terms in list(gaussian_kl_slips(mean, logvar))[1:]:
        yield f"in the KL, {clause}", (nll + b * terms.sum(1)).mean()


DECODER_IGNORES = "a decoder that ignores z"


def affine_vae(draw: Draw, dim: int, k: int, kind: str) -> AffineVAE:
    """A model for negative_elbo: "blind" has a decoder that ignores z, "sure" an encoder without noise. Blind
    are also "bold", with large logits, "far", its q far from the prior, and "near", its q the prior."""
    sure, blind, bold, far, near = (kind == name for name in ("sure", "blind", "bold", "far", "near"))
    spread, size = 0.1 if sure else 0.8, 1000.0 if far else 0.0 if near else 1.0
    return AffineVAE(
        size * draw(k, dim) / dim**0.5,
        0.7 * size * draw(k),
        spread * (0.0 if near else 1.0) * draw(k, dim) / dim**0.5,
        torch.zeros(k, dtype=f64) if near else 0.4 * draw(k) - (80.0 if sure else -20.0 if far else 0.6),
        torch.zeros(dim, k, dtype=f64) if blind or bold or far or near else 1.2 * draw(dim, k),
        draw(dim).sign() * 40.0 if bold else draw(dim),
    )


def negative_elbo_cases(draw: Draw):
    def case(label, batch, dim, k, kind, beta, grey=True, training=True):
        x = draw(batch, dim, low=0, high=1)
        model = affine_vae(draw, dim, k, kind).train(training)
        return Case(label, (model, x if grey else x.round(), beta, draw.seed()))

    return [
        case(DECODER_IGNORES, 5, 7, 3, "blind", 1.0),
        case("an encoder without noise", 5, 7, 3, "sure", 1.0),
        case(f"{DECODER_IGNORES}, beta 4", 4, 6, 2, "blind", 4.0),
        case("an encoder without noise, beta 0.25", 3, 9, 4, "sure", 0.25),
        case(f"{DECODER_IGNORES}, beta 0", 3, 5, 2, "blind", 0.0),
        case("a batch of one", 1, 6, 3, "sure", 1.0),
        case("large logits", 4, 6, 2, "bold", 1.0),
        case("one latent, black and white pixels", 6, 5, 1, "blind", 2, grey=False),
        case("one latent, no noise", 4, 5, 1, "sure", 1, grey=False),
        case("3000 pixels, large logits", 2, 3000, 2, "bold", 1.0),
        case("130 examples", 130, 5, 2, "blind", 1.0),
        case("q far from the prior", 3, 5, 2, "far", 1.0),
        case("q is the prior", 3, 5, 2, "near", 1.0),
        case("evaluation mode, a decoder that ignores z", 4, 6, 3, "blind", 1.5, training=False),
        case("evaluation mode, an encoder without noise", 4, 6, 3, "sure", 0.5, training=False),
    ]


def negative_elbo_probes(draw: Draw):
    """Ordinary ones: on the others many slips are the same."""
    return negative_elbo_cases(draw)[:9]


def negative_elbo_properties(student: Student):
    draw = Draw(3)
    x = draw(5, 7, low=0, high=1)
    arguments = (affine_vae(draw, 7, 3, ""), x, 1.0, Seed(1))

    def loss(seed, beta=1.0):
        model, x, _, generator = prepared((*arguments[:3], Seed(seed)), f32)
        return student(model, x, beta, generator)

    value = loss(1)
    good = isinstance(value, Tensor) and value.dim() == 0
    yield "one number for a batch", "" if good else f"expected a tensor of shape (), got {shape(value)}"
    yield "finite", "" if finite(value) else "the loss is not finite"
    yield "positive", "" if value > 0 else "-log p(x|z) of pixels and a KL are never negative"
    yield "the same for the same seed", "" if same(loss(1), value, 0, 0) else "the same seed, another loss"
    yield "a larger beta costs more", "" if loss(1, 4.0) > value else "a larger beta must cost more"


PARAMETERS = ["the encoder's mean"] * 2 + ["the encoder's log-variance"] * 2 + ["the decoder"] * 2


def negative_elbo_gradients(task: Task, student: Student, draw: Draw) -> None:
    """For one seed the loss is a function of the model's parameters: autograd against differences."""
    for batch, dim, k, beta, mode in (
        (4, 6, 3, 1.0, "training mode"),
        (4, 6, 2, 1.0, "evaluation mode"),
        (3, 5, 1, 0.5, "training mode"),
        (1, 4, 2, 3.0, "evaluation mode"),
    ):
        x, seed = draw(batch, dim, low=0, high=1), draw.seed()
        leaves = [tensor.clone().requires_grad_() for tensor in affine_vae(draw, dim, k, "").tensors]
        where = f"beta {beta:g}, {batch} rows, {mode}"
        value = _seeded_loss(student, leaves, x, beta, seed, where, MODES[mode])
        good = isinstance(value, Tensor) and value.dim() == 0
        needs(good, f"{shape(value)} is returned, not one number.", case=where)
        cut = "the graph is cut, for example by .detach(), .data, .item() or torch.no_grad()"
        keep = "the result is not float64, as the inputs are. Keep the type of the inputs."
        needs(value.dtype == f64, keep, case=where)
        needs(value.requires_grad, f"the result has no gradient: {cut}.", case=where)
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        for i, of_kl in enumerate(_kl_slopes(leaves, x, beta)):
            along = draw(*leaves[i].shape)  # a direction, in which both are compared
            right = _difference(student, leaves, i, along, (x, beta, seed, where, MODES[mode]))
            got, of_kl = (0.0 if s is None else float((s * along).sum()) for s in (slopes[i], of_kl))
            if _near(got, right):
                continue
            cause = Cause(f": {cut}.")
            if slopes[i] is not None and _near(got, of_kl):
                cause = Cause(
                    ". The KL reaches it, and the reconstruction does not: is z cut off by .detach(), .data, "
                    "torch.no_grad() or a draw without a gradient, as `sample` instead of `rsample`?"
                )
            elif of_kl and _near(got, right - of_kl):
                cause = Cause(f". The reconstruction reaches it, and the KL does not: {cut}.")
            raise Wrong(f"the gradient for {PARAMETERS[i]} is wrong", cause, case=where)


def _near(slope: float, expected: float) -> bool:
    return at_most(abs(slope - expected), 1e-5 * (1 + abs(expected)))


def _seeded_loss(student: Student, tensors, x, beta, seed: Seed, where: str, training: bool = True):
    # Whoever draws from the global state loses other points than these.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed.number % 2**31)
        generator = torch.Generator().manual_seed(seed.number)
        model = AffineVAE(*tensors).train(training)
        return student(model, x.clone(), beta, generator, where=where)


def _difference(student: Student, leaves, i: int, along: Tensor, rest: tuple, step: float = 1e-5) -> float:
    """The derivative of the loss along a direction of parameter i, by central differences."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = [t + sign * step * along if j == i else t.clone() for j, t in enumerate(leaves)]
        ends.append(float(_seeded_loss(student, moved, *rest)))
    return (ends[0] - ends[1]) / (2 * step)


def _kl_slopes(leaves, x, beta):
    """The gradients of the KL term alone."""
    mean, logvar = AffineVAE(*leaves).encoder(x)
    kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).mean()
    return torch.autograd.grad(beta * kl, leaves, allow_unused=True)


def expected_nll(model: AffineVAE, x: Tensor, variance) -> Tensor:
    """E[-log p(x|z)], (batch,), by quadrature: the logits are normal, for z with this variance of logvar."""
    mean, logvar = model.encoder(x)
    weight = model.tensors[4]
    centre, spread = model.decoder(mean), (variance(logvar) @ weight.square().mT).sqrt()
    # Gauss-Hermite nodes and weights, for the standard normal (Golub and Welsch).
    off = torch.arange(1, 80, dtype=f64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    logits = centre + spread * nodes[:, None, None]
    terms = F.softplus(logits) - x * logits
    return torch.einsum("s,sbd->b", vectors[0] ** 2, terms)


def negative_elbo_noise(task: Task, student: Student, draw: Draw) -> None:
    """One draw of z per example: the generator, the mean over draws, and how far a result scatters."""
    k, dim, rows, calls = 3, 6, 200, 900
    model, few = affine_vae(draw, dim, k, ""), draw(5, dim, low=0, high=1)
    seed = draw.seed().number

    def call(generator):
        return student(model, few, 1.0, generator)

    for mode, training in MODES.items():
        model.train(training)
        first, second = call(torch.Generator().manual_seed(1)), call(torch.Generator().manual_seed(2))
        if same(first, second, 1e-9, 1e-9):
            raise Wrong(
                f"in {mode} two seeds give the same number. Nothing is drawn; is the mean of q(z|x) decoded? "
                "That is no bound: decode a draw."
            )
        uses_generator(student, call)
    _modes_agree(student, model, few, draw)
    model.train()
    x = few.repeat(rows // 5, 1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(calls)]
    losses = student.each([((model, x, 1.0, generator), {}, "") for generator in generators])
    results = torch.stack([torch.as_tensor(loss) for loss in losses]).to(f64).detach()
    needs(results.dim() == 1, "the result is not one number.")
    # What the student takes for the KL, right or wrong, is seen with a decoder that ignores z.
    blind = AffineVAE(*model.tensors[:4], torch.zeros_like(model.tensors[4]), model.tensors[5])
    generators = (torch.Generator().manual_seed(number) for number in (1, 2))
    kl, again = (float(torch.as_tensor(student(blind, x, 1.0, each)).detach()) for each in generators)
    needs(
        at_most(abs(kl - again), 1e-6 * (1 + abs(kl))),
        "with a decoder that ignores z the result still depends on the draw. Is the KL "
        "estimated from z, or are the pixels drawn? Take the closed form, and x as it is.",
    )
    kl -= float(_nll(few, blind.tensors[5].expand_as(few)).mean())

    def right_moments() -> tuple[float, float]:
        return float(expected_nll(model, few, torch.exp).mean()), _variance_of_one(model, few, draw)

    mean, variance_of_one = remembered(right_moments, task, draw, "moments of the reconstruction")
    right = kl + mean
    if not at_most(abs(z_score(results, right)), LIMIT):
        names = {
            "exp(logvar), the variance, is taken as the standard deviation": lambda s: (2 * s).exp(),
            "the noise is not scaled by the standard deviation": torch.ones_like,
            "logvar is taken as the standard deviation": torch.square,
        }
        cause = UNKNOWN
        for clause, variance in names.items():
            if abs(z_score(results, kl + float(expected_nll(model, few, variance).mean()))) < LIMIT:
                cause = Cause.of((clause,), SO_ONE_GETS)
        raise Wrong("its reconstruction, averaged over many draws, is wrong.", cause)
    ratio = float(results.var()) * rows / variance_of_one
    needs(
        at_most(ratio, 1 + 5.5 * math.sqrt(2 / calls)),
        "the average over many draws is right, but one result scatters too much: each example "
        "of a batch needs its own noise.",
    )
    needs(
        at_least(ratio, 1 - 5.5 * math.sqrt(2 / calls)),
        "a result scatters less than with one draw of z per example. Draw one, not several.",
    )
    _noise_is_read_off(student, draw)


def _modes_agree(student: Student, model: AffineVAE, x: Tensor, draw: Draw) -> None:
    """The mode makes no difference, nor do the calls before."""
    seeds, results = [draw.seed().number for _ in range(3)], {}
    for number, training, beta in product((0, 1, 0, 2, 2, 1), MODES.values(), (1.0, 0.3)):
        generator = torch.Generator().manual_seed(seeds[number])
        loss = student(model.train(training), x, beta, generator)
        first, mode = results.setdefault((number, beta), (loss, training))
        if same(loss, first, 1e-9, 1e-9):
            continue
        words = "with the same seed a later call gives another number: something is kept from call to call."
        if training != mode:
            words = "in evaluation mode the result is another than in training mode. It is the same in both."
        raise Wrong(words)


def _noise_is_read_off(student: Student, draw: Draw) -> None:
    """The noise of every example. Each has a pixel of its own, and with it a column of the encoder's weights;
    its slopes for mean and log-variance, without those of the KL, differ by the factor std * noise / 2."""
    rows, beta = 100, 1e-3
    levels = torch.tensor([-60.0, 0.0, 22.0], dtype=f64)
    x, k, offset = torch.eye(rows, dtype=f64), len(levels), draw(rows)
    logvar = 0.1 * draw(k, rows)
    std = ((logvar.mT + levels) / 2).exp()
    mean = draw(k, rows) * std.mT

    def slopes(decoder: Tensor, generator, training: bool) -> tuple:
        leaves = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
        parts = leaves[0], 0 * levels, leaves[1], levels.clone(), decoder.clone(), offset.clone()
        loss = student(AffineVAE(*parts).train(training), x.clone(), beta, generator)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return 0 * mean.mT, 0 * mean.mT
        given = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        return tuple(0 * mean.mT if slope is None else slope.mT for slope in given)

    generator, noise = torch.Generator().manual_seed(draw.seed().number), []
    of_kl = slopes(torch.zeros(rows, k, dtype=f64), generator, True)
    for call in range(60):
        decoder = draw(rows, k) * (-levels / 2).exp()
        for_mean, for_logvar = (a - b for a, b in zip(slopes(decoder, generator, call % 2 == 0), of_kl))
        if not at_least(min(float(slope[:, 1].abs().max()) for slope in (for_mean, for_logvar)), 1e-9):
            return  # the graph is cut, as another test says
        noise.append(2 * for_logvar / for_mean / std)
    noise = torch.stack(noise)  # (calls, examples, latents)
    needs(finite(noise), "the gradients for the encoder are not those of one draw of z per example.")
    ordinary = noise[..., 1]
    if not far_apart(ordinary):
        who = "calls one after the other" if far_apart(ordinary[0]) else "examples of a batch"
        raise Wrong(f"{who} share their noise, or have it mirrored. Every draw is a new one.")
    for numbers in (*noise.unbind(-1), noise):
        needs(
            at_most(tails(numbers), LIMIT),
            "the noise is not standard normal, of every size and for log-variances of every size. Is noise "
            "or logvar limited (clamped)?",
        )


def _variance_of_one(model: AffineVAE, few: Tensor, draw: Draw) -> float:
    """Of -log p(x|z) over draws of z, averaged over the examples."""
    many = few.repeat_interleave(20_000, 0)
    mean, logvar = model.encoder(many)
    nll = _nll(many, model.decoder(mean + (logvar / 2).exp() * draw(*mean.shape)))
    return float(nll.reshape(5, -1).var(1).mean())


NEGATIVE_ELBO = Task(
    name="negative_elbo",
    read="vae#the-algorithm",
    reference=lambda model, x, beta, generator: negative_elbo(x, model, beta),
    slips=negative_elbo_slips,
    properties=negative_elbo_properties,
    cases=negative_elbo_cases,
    probes=negative_elbo_probes,
    forbidden=READY_MADE,
    tests={
        "values": values,
        "gradients": negative_elbo_gradients,
        "noise": negative_elbo_noise,
    },
)

# ---- train(images, latent_dim, epochs, seed): a trained VAE, judged by its ELBO on new images

EPOCHS, GAIN = 40, 6.5


def spots(count: int, generator: torch.Generator) -> Tensor:
    """(count, 8, 8) in [0, 1]: one round spot each, of random place and size. The notebook has the same."""
    centre = 1 + 5 * torch.rand(count, 1, 1, 2, generator=generator)
    radius = 1 + 1.5 * torch.rand(count, 1, 1, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    distance = (torch.stack([rows, columns], -1) - centre).square().sum(-1).sqrt()
    return torch.sigmoid(4 * (radius - distance))


def _vae_sizes(dim: int, latent_dim: int, encoding: int, decoding: int) -> dict[str, tuple]:
    """The shapes of a VAE's parameters, by name, for these numbers of hidden units.

    They are a student's, and no tensor is made of them here.
    """
    layers = {
        "encoder.hidden": (encoding, dim),
        **{f"encoder.{head}": (latent_dim, encoding) for head in HEADS["Encoder"]},
        "decoder.hidden": (decoding, latent_dim),
        **{f"decoder.{head}": (dim, decoding) for head in HEADS["Decoder"]},
    }
    sizes = {}
    for name, (rows, columns) in layers.items():
        sizes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return sizes


def trained(student: Student, *arguments, where: str = "") -> tuple[ModuleProxy, dict]:
    """The student's trained VAE and its parameters, which must be those of a VAE of task 3."""
    images, latent_dim = arguments[:2]
    vae = ModuleProxy(student, student.raw(*arguments, where=where))
    state = vae.state()
    hidden = (len(state.get(f"{part}.hidden.weight", torch.zeros(1))) for part in ("encoder", "decoder"))
    if why := vae.misnamed(_vae_sizes(images[0].numel(), latent_dim, *hidden), state):
        raise Wrong(f"what is returned is not a VAE of task 3: {why}.")
    needs(finite(list(state.values())), "some parameters are not finite after training.")
    return vae, state


def elbo_and_kl(state: dict, images: Tensor, seed: int, draws: int = 10) -> tuple[float, float]:
    """The mean ELBO of images and its KL, in nats, of the network that these parameters stand for."""
    x = images.flatten(1).to(f64)
    state = {name: value.to(f64) for name, value in state.items()}
    mean, logvar = network(state, x, "encoder.")
    noise = torch.randn((draws, *mean.shape), generator=torch.Generator().manual_seed(seed), dtype=f64)
    logits = network(state, mean + (logvar / 2).exp() * noise, "decoder.")
    nll = (F.softplus(logits) - x * logits).sum(-1).mean()
    kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).mean()
    return float(-nll - kl), float(kl)


def mean_image_elbo(images: Tensor, others: Tensor) -> float:
    """Of a model that shows the mean of `images` whatever z is: what `others` get, in nats."""
    x, mean = others.flatten(1).to(f64), images.flatten(1).to(f64).mean(0).clamp(1e-4, 1 - 1e-4)
    return float((x * mean.log() + (1 - x) * (1 - mean).log()).sum(1).mean())


def equal_states(left: dict, right: dict) -> bool:
    return all(torch.allclose(left[name], right[name], rtol=1e-5, atol=1e-7) for name in left)


def framed(images: Tensor) -> Tensor:
    """The images with their first row white and their last one black."""
    images = images.clone()
    images[:, 0], images[:, -1] = 1.0, 0.0
    return images


def learns(start: dict, end: dict, white, black) -> bool:
    """Whether the logits of pixels that are always white go one way, and those of black ones the other: every
    step along a gradient does that, of whichever sign, and noise does not."""
    moves = end["decoder.logits.bias"] - start["decoder.logits.bias"]
    if not moves.any():  # not in the optimiser, as another test says
        return True
    return any(bool((sign * moves[white] > 0).all() and (sign * moves[black] < 0).all()) for sign in (1, -1))


def train_properties(student: Student):
    images = framed(spots(60, torch.Generator().manual_seed(0)))
    vae, end = trained(student, images, 2, 1, 0, where="60 images, 1 epoch")
    unchanged = untouched(student, images)
    yield "a VAE with the right sizes", ""
    yield "images unchanged", "" if unchanged else "the images are changed in place"
    mode = vae.training()
    yield "in evaluation mode", "call .eval() on the model before it is returned" if mode else ""
    same_again = equal_states(end, trained(student, images, 2, 1, 0)[1])
    yield "the same for the same seed", "" if same_again else "two runs with the same seed differ"
    start = trained(student, images, 2, 0, 0, where="0 epochs")[1]
    yield "changed by one epoch", "one epoch changes nothing" if equal_states(start, end) else ""
    good = learns(start, end, slice(0, 8), slice(56, 64))
    why = "pixels that are white in all images, or black in all, do not become so: no gradient is followed"
    yield "changed along the gradient", "" if good else why


def train_seed(task: Task, student: Student, draw: Draw) -> None:
    """The seed decides everything, and the global random state is as it was."""
    images = framed(spots(60, draw.generator))
    seed = 1000 + draw.seed().number % 1000
    runs, restored = [], []
    with torch.random.fork_rng(devices=[]):
        for number, moment in ((seed, 1), (seed, 2), (seed + 1, 1)):
            torch.manual_seed(moment)
            state = torch.random.get_rng_state()
            runs.append(trained(student, images, 2, 2, number)[1])
            restored.append(torch.equal(state, torch.random.get_rng_state()))
            needs(untouched(student, images), "the images are changed in place.")
    needs(
        not equal_states(runs[0], runs[2]),
        "two seeds give the same parameters: the seed is ignored, or another one is fixed inside.",
    )
    needs(
        equal_states(runs[0], runs[1]),
        "two runs with the same seed differ. Something is drawn from elsewhere: the initial "
        "weights, the order of the images or the noise.",
    )
    starts = [trained(student, images, 2, 0, number, where="no epochs")[1] for number in (seed, seed + 1)]
    needs(
        not equal_states(*starts),
        "with epochs=0 two seeds give the same parameters: the initial weights ignore the seed.",
    )
    needs(
        all(restored),
        "torch's global random state is another one afterwards. Whoever calls it should not "
        "notice: put back the state that was there.",
    )
    for start, end in zip(starts, runs[::2]):
        needs(
            learns(start, end, slice(0, 8), slice(56, 64)),
            "pixels that are white in all images, or black in all, do not become so. What changes the "
            "parameters is no gradient of the loss.",
        )
    _order_of_the_seed(student, draw, seed)
    _noise_of_the_seed(student, seed)


def _order_of_the_seed(student: Student, draw: Draw, seed: int) -> None:
    """Weights of a pixel that few images have move from the step on that these images are in. With Adam by
    amounts that say which step that was."""
    pixels, runs = 44, 4
    images = torch.zeros(3 * pixels, 64)  # 10 pixels white in all, 10 black in all
    images[:, :10] = 1.0
    images[:, 20:] = torch.eye(pixels)[torch.randperm(3 * pixels, generator=draw.generator) % pixels]
    images, patterns = images.reshape(-1, 8, 8), []
    for number in range(seed, seed + runs):
        start, end = (trained(student, images, 2, epochs, number)[1] for epochs in (0, 1))
        moves = _moves_of_pixels(start, end, slice(10, 20))
        if moves is None:
            return
        patterns.append(moves[20:])
    patterns = torch.stack(patterns)
    if not at_least(float(patterns.std(1).min() / patterns.mean()), 1e-3):
        return  # a single batch, or an optimiser that does not tell
    correlation = (torch.corrcoef(patterns).sum() - runs) / (runs * (runs - 1))
    needs(
        at_most(correlation, 0.6),
        "the images come in the same order whatever the seed is. Every epoch has a new order, by the seed.",
    )


def _moves_of_pixels(start: dict, end: dict, black: slice) -> Tensor | None:
    """How far training has moved the encoder's weights of each pixel, (dim,), without what moves those of
    `black` pixels, which no image has: a decay of the weights. None where it does more than scale these."""
    before, after = (state["encoder.hidden.weight"].to(f64) for state in (start, end))
    decay = float((before[:, black] * after[:, black]).sum() / before[:, black].square().sum())
    rest = (after - decay * before).abs().amax(0)
    return rest * (rest > 3e-7 * before.abs().max()) if at_most(rest[black].max(), 1e-7) else None


def _noise_of_the_seed(student: Student, seed: int) -> None:
    """The first step on a single image shows the signs of the code: the slope for a weight of the decoder is
    the code times the slope for the bias."""
    k, signs = 100, []
    image = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    for number in (seed, seed + 1):
        start, end = (trained(student, image, k, epochs, number)[1] for epochs in (0, 1))
        weight, bias = (
            end[f"decoder.hidden.{part}"] - start[f"decoder.hidden.{part}"] for part in ("weight", "bias")
        )
        if not weight.any():
            return  # no step is taken, as another test says
        signs.append((weight.sign() * bias.sign()[:, None]).sum(0).sign())
    needs(
        at_most((signs[0] == signs[1]).double().mean(), 0.8),
        "the noise is the same whatever the seed is. It comes from a generator with the seed.",
    )


def train_updates(task: Task, student: Student, draw: Draw) -> None:
    """Every parameter moves, and every image has a say in every epoch, whatever the batch size."""
    shared, own = 16, 131  # a prime: a short last batch for the usual sizes
    images = torch.zeros(
        own, shared + own
    )  # 8 pixels white in all, 8 black in all, and one of its own for each
    images[:, :8] = 1.0
    images[:, shared:] = torch.eye(own)[torch.randperm(own, generator=draw.generator)]
    images = images.reshape(own, 7, 21)
    few = draw(7, 4, 6, low=0, high=1).to(f32)
    for some, where in ((images, "131 images of 7 x 21"), (few, "7 images of 4 x 6")):
        start = trained(student, some, 3, 0, 5, where="no epochs")[1]
        end = trained(student, some, 3, 2, 5, where=where)[1]
        still = [name for name in start if torch.equal(start[name], end[name])]
        if len(still) == len(start):
            small = "; with fewer images than a batch holds, is the only batch dropped" if some is few else ""
            raise Wrong(f"two epochs on {len(some)} images change no parameter{small}.")
        needs(
            not still,
            f"{', '.join(still[:1])} did not move in two epochs. Are all parameters in the optimiser, "
            "and does the loss reach all of them?",
        )
    shaded = torch.where(few > 0.5, (1 + few) / 2, few / 2)  # the same on each side of one half
    other = trained(student, shaded, 3, 2, 5)[1]
    needs(
        any(not torch.equal(end[name], other[name]) for name in end),
        "other shades of grey give the same parameters. A pixel may be anything from 0 to 1, and is trained "
        "on as it is.",
    )
    untrained = [trained(student, x, 2, 0, 3, where="no epochs")[1] for x in (images, 1 - images)]
    needs(
        equal_states(*untrained),
        "with epochs=0 the parameters depend on the images: is there an epoch too many?",
    )
    start, end = untrained[0], trained(student, images, 2, 1, 3)[1]
    needs(
        learns(start, end, slice(0, 8), slice(8, 16)),
        "pixels that are white in all images, or black in all, do not become so. What changes the "
        "parameters is no gradient of the loss.",
    )
    moves = _moves_of_pixels(start, end, slice(8, 16))
    idle = _without_influence(student, images, end) if moves is None else not moves[shared:].all()
    needs(
        not idle,
        "some images had no influence on the first epoch. Every epoch goes "
        "through all images, in batches, and a short last batch counts too.",
    )
    _every_epoch_counts(student, images)


def _without_influence(student: Student, images: Tensor, base: dict) -> bool:
    """Whether one of the images may be changed, and the first epoch gives the same parameters."""
    for i in range(len(images)):
        changed = images.clone()
        changed[i] = 1 - changed[i]
        state = trained(student, changed, 2, 1, 3)[1]
        if all(torch.equal(base[name], state[name]) for name in base):
            return True
    return False


def _every_epoch_counts(student: Student, images: Tensor) -> None:
    """As many steps in the last epoch as in the first: the logits of white pixels go up at every step, and by
    how much is compared with runs on three images, where a step is an epoch.

    A schedule of the step size may go by steps or by epochs, and one of the two comparisons must hold."""
    known: dict[tuple, float] = {}

    def path(count: int, epochs: int) -> float:
        if (count, epochs) not in known:
            states = (trained(student, images[:count], 2, e, 3)[1] for e in (0, epochs))
            start, end = (state["decoder.logits.bias"][:8].to(f64) for state in states)
            known[count, epochs] = float((end - start).mean().abs())
        return known[count, epochs]

    everything, epochs = len(images), 5
    further = "more epochs change the parameters no further. Every epoch takes its steps, to the last one."
    needs(at_least(path(3, epochs), 1.3 * path(3, 1)), further)
    low, high = 1, 2  # how many steps an epoch of all images has, by how far it goes
    while high < everything and path(3, high) < path(everything, 1):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if path(3, middle) <= path(everything, 1) else (low, middle)
    steps = min((low, high), key=lambda number: abs(path(3, number) - path(everything, 1)))
    by_epochs = path(everything, epochs) / path(everything, 1) / (path(3, epochs) / path(3, 1))
    by_steps = path(everything, epochs) / path(3, epochs * steps)
    needs(
        max(by_epochs, by_steps) > 0.87,
        "later epochs take fewer steps than the first. Every epoch goes through all images, the last too.",
    )
    many, batch = images.repeat(4, 1, 1), everything // steps

    def stands_still(count: int, epochs: int) -> bool:
        """Whether one epoch more, too few steps for another warm-up, changes no bit."""
        first, second = (trained(student, many[:count], 2, number, 3)[1] for number in (epochs, epochs + 1))
        return all(torch.equal(first[name], second[name]) for name in first)

    # Of two steps an epoch, so after 300, unless it is the step size that goes down from epoch to epoch.
    if stands_still(2 * batch, 150) and (stands_still(4 * batch, 45) or not stands_still(3, 150)):
        raise Wrong(further)


def train_training(task: Task, student: Student, draw: Draw) -> None:
    """The ELBO on new images, evaluated from the parameters, against that of the mean image."""
    images, new = spots(500, draw.generator), spots(500, draw.generator)
    vae, state = trained(student, images, 2, EPOCHS, draw.seed().number % 10_000, where="500 spots")
    x = new[:5].flatten(1)
    right = network(state, x, "encoder.")
    good = same(vae.call("encoder", x), right, 1e-3, 1e-3) and same(
        vae.call("decoder", right[0]), network(state, right[0], "decoder."), 1e-3, 1e-3
    )
    words = "its VAE does not compute what tasks 1 and 2 ask. Repair these first."
    needs(good, words, reason=FOLLOWS)
    bound, kl = elbo_and_kl(state, new, seed=0)
    gain = bound - mean_image_elbo(images, new)
    if at_least(gain, GAIN) and at_most(kl, 5.0):
        return
    if kl < 0.3:
        words = (
            "The KL is nearly zero: the code is not used. Is the reconstruction averaged over the pixels, "
            "the KL summed over the batch, its weight beyond 1, or the optimisation too slow (plain SGD)?"
        )
    elif kl >= 5:
        words = "The KL is large: is it in the loss, and does its weight reach 1?"
    else:
        words = (
            "The KL is neither zero nor huge, so look at the optimisation: is the gradient set to zero "
            "before each step, is a step taken per mini-batch, does the weight of the KL end at 1, and is a "
            "draw of z decoded, not its mean?"
        )
    what = "the ELBO of new images is too low" if gain <= GAIN else "the KL of new images is too large"
    raise Wrong(f"after {EPOCHS} epochs on 500 spots {what}. {words}")


TRAIN = Task(
    name="train",
    read="vae#training-watched",
    properties=train_properties,
    forbidden=READY_MADE,
    tests={"seed": train_seed, "updates": train_updates, "training": train_training},
)

# ---- MendedVAE: seven faults, each tested where the other six cannot be felt, and harm done while mending


def sick_state(draw: Draw, dim: int, hidden: int, latent_dim: int) -> dict:
    sizes = {
        "trunk.0": (hidden, dim),
        "mean": (latent_dim, hidden),
        "logvar": (latent_dim, hidden),
        "decoder.0": (hidden, latent_dim),
        "decoder.2": (dim, hidden),
    }
    state = {}
    for name, (rows, columns) in sizes.items():
        state[f"{name}.weight"] = 1.5 * draw(rows, columns) / columns**0.5
        state[f"{name}.bias"] = 0.5 * draw(rows)
    return state


def patient(student: Student, draw: Draw, *sizes: int) -> tuple[ModuleProxy, dict]:
    state = sick_state(draw, *sizes)
    return loaded(student, sizes, state), state


def mended_properties(student: Student):
    draw = Draw(4)
    vae = ModuleProxy.construct(student, 8, 5, 3)
    why = vae.misnamed(shapes_of(sick_state(draw, 8, 5, 3)))
    yield "the parameters of SickVAE, by name", why
    x = draw(4, 8, low=0, high=1).float()
    encoded = vae.call("encode", x)
    good = isinstance(encoded, tuple | list) and [getattr(e, "shape", None) for e in encoded] == [(4, 3)] * 2
    yield (
        "encode: mean and logvar",
        "" if good else f"expected two tensors of shape (4, 3), got {shape(encoded)}",
    )
    mean, logvar = encoded
    calls = {
        "sample_latent": ((mean, logvar, Seed(1)), (4, 3)),
        "decode": ((mean,), (4, 8)),
        "reconstruction": ((x, x), (4,)),
        "kl": ((mean, logvar), (4,)),
        "loss": ((x, 1.0, Seed(1)), ()),
        "elbo": ((x, Seed(1)), (4,)),
        "sample": ((4, Seed(1)), (4, 8)),
    }
    for method, (arguments, size) in calls.items():
        result = vae.call(method, *arguments)
        good = isinstance(result, Tensor) and result.shape == size and bool(result.isfinite().all())
        yield f"{method}: shape {size}", "" if good else f"expected finite {size}, got {shape(result)}"
    losses = vae.call("fit", x, 3, 0.01, Seed(1))
    good = isinstance(losses, tuple | list) and len(losses) == 3 and finite(losses)
    yield "fit: a loss for each step", "" if good else f"expected 3 numbers for 3 steps, got {shape(losses)}"


# Each letter has methods of its own: A reconstruction, B and C sample_latent, D encode, kl and loss, E fit, F
# elbo, G decode and sample. These are compared with what the student's other methods lead to, right or wrong,
# so that one mistake costs one letter.


def keeps_graph(vae: ModuleProxy, method: str, arguments: tuple, draw: Draw) -> bool:
    """Whether the slopes of a method for its floating-point arguments are those of its values."""

    def value(*given) -> Tensor:
        result = seeded(vae, method, *given) if isinstance(given[-1], Seed) else vae.call(method, *given)
        return weighted_sum((result,))

    with torch.random.fork_rng(devices=[]):
        given = [a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
        leaves = [a for a in given if isinstance(a, Tensor)]
        result = value(*given)
        slopes = [None] * len(leaves)
        if result.requires_grad:
            slopes = torch.autograd.grad(result, leaves, allow_unused=True)
        for i, slope in enumerate(slopes):

            def moved(at: Tensor, i=i) -> Tensor:
                return value(*arguments[:i], at, *arguments[i + 1 :])

            if not is_slope(moved, arguments[i], slope, draw):
                return False
    return True


def odd_parameters(vae: ModuleProxy, state: dict, method: str, arguments: tuple, draw: Draw) -> list[str]:
    """The parameters whose slopes, of a method's result, are not those of its values."""
    slopes, odd = vae.parameter_gradients(method, *arguments), []
    for name, at in state.items():

        def value(now: Tensor, name=name) -> Tensor:
            return weighted_sum((vae.load({**state, name: now}).call(method, *arguments),))

        if not is_slope(value, at, slopes.get(name), draw):
            odd.append(name)
    vae.load(state)
    return odd


def mended_a(task: Task, student: Student, draw: Draw) -> None:
    """The reconstruction: a sum over the pixels, one number per example."""
    vae = ModuleProxy.construct(student, 6, 5, 3)
    for (batch, dim, scale), training in product(
        ((3, 7, 2.0), (1, 5, 2.0), (4, 2, 2.0), (130, 5, 2.0), (2, 3000, 40.0)), MODES.values()
    ):
        vae.training(training)
        x, logits = draw(batch, dim, low=0, high=1), scale * draw(batch, dim)
        right = _nll(x, logits)
        got = vae.call("reconstruction", x.clone(), logits.clone())
        if same(got, right, 1e-4, 1e-5):
            continue
        slips = [
            ((), right),
            ("the pixels are averaged, not summed", right / dim),
            ("the mean over the batch is taken", right.mean()),
            ("the sum runs over the batch too", right.sum()),
            ("the sign is flipped", -right),
            ("the logits are taken as probabilities", _log_loss(x, logits)),
            ("the sigmoid is taken twice", _nll(x, logits.sigmoid())),
        ]
        raise Wrong(
            "symptom A is there still: `reconstruction` is not -log p(x|z) in nats, one number per example.",
            explain([got], [slips]),
        )
    x, logits = draw(3, 5, low=0, high=1), draw(3, 5)
    needs(
        keeps_graph(vae, "reconstruction", (x, logits), draw),
        "symptom A: the values of `reconstruction` are right, but no gradient, or a wrong one, comes back.",
    )


def _log_loss(x, p):
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)


def mended_b(task: Task, student: Student, draw: Draw) -> None:
    """The spread of z, from batches of one, where it does not matter who shares the noise; and its graph."""
    vae, calls = ModuleProxy.construct(student, 6, 5, 4), 300
    means, log_variances = posterior(draw)
    mean, logvar = means[None], log_variances[None]
    start = draw.seed().number
    for training in MODES.values():
        vae.training(training)
        given = [(mean.clone(), logvar.clone(), Seed(start + i)) for i in range(calls)]
        z = torch.cat(vae.each("sample_latent", given)).detach().to(f64)
        needs(
            shape(z) == shape(mean.expand(calls, 4)),
            "`sample_latent` returns another shape than mean.",
        )
        if at_most((z - z[:1]).abs().max(), 1e-9):  # always the same noise, which is C's affair: many latents
            given = (mean.repeat(1, calls), logvar.repeat(1, calls), Seed(start))
            z = vae.call("sample_latent", *given).detach().to(f64).reshape(calls, 4)
        noise = (z - mean) / (logvar / 2).exp()
        if not at_most(max(abs(z_score(column, 0.0)) for column in noise.T), LIMIT):
            raise Wrong("symptom B: the draws of `sample_latent` do not average to mean.")
        if not at_most(max(abs(z_score(column.square(), 1.0)) for column in noise.T), LIMIT):
            ratio = noise.var(0).log()
            slips = [
                ("exp(logvar), the variance, is taken as the standard deviation", log_variances),
                ("the noise is not scaled at all", -log_variances),
                ("the root of the standard deviation scales the noise", -log_variances / 2),
            ]
            near = (clause for clause, v in slips if torch.allclose(ratio, v, atol=0.4))
            cause = Cause.of(tuple(near)[:1], SO_ONE_GETS)
            raise Wrong(
                "symptom B is there still: the codes of `sample_latent` scatter by another amount "
                "than logvar says, for which the KL is charged.",
                cause,
            )
    for level in (-60.0, -30.0, 30.0, 60.0):
        far = torch.full((1, 4), level, dtype=f64)
        given = [(0 * far, far.clone(), Seed(start + i)) for i in range(50)]
        size = (torch.cat(vae.each("sample_latent", given)).detach() / (far / 2).exp()).square().mean()
        needs(
            at_least(size, 0.2) and at_most(size, 4.0),
            "symptom B: the codes of `sample_latent` scatter as logvar says for moderate numbers only. Is "
            "something limited (clamped), or added?",
        )
    for training in MODES.values():
        vae.training(training)
        needs(
            keeps_graph(vae, "sample_latent", (mean, logvar, draw.seed()), draw),
            "symptom B: the draws of `sample_latent` are right, but no gradient, or a wrong one, comes back "
            "through them to mean and logvar: the graph is cut, by .detach(), .data, torch.no_grad() or a "
            "draw without a gradient.",
        )


def mended_c(task: Task, student: Student, draw: Draw) -> None:
    """Noise of its own for every example, whatever its spread."""
    vae, n = ModuleProxy.construct(student, 6, 5, 3), 20_000
    few, level = draw(4, 3), torch.ones(4, 3, dtype=f64)
    for training in MODES.values():
        vae.training(training)

        def call(generator):
            return vae.call("sample_latent", few.clone(), level.clone(), generator)

        uses_generator(student, call)
        mean, logvar = torch.zeros(n, 3, dtype=f64), torch.ones(n, 3, dtype=f64)
        generator = torch.Generator().manual_seed(draw.seed().number)
        z = vae.call("sample_latent", mean.clone(), logvar.clone(), generator).detach().to(f64)
        needs(shape(z) == shape(mean), "`sample_latent` returns another shape than mean.")
        needs(
            at_least((z - z[:1]).abs().max(), 1e-6),
            "symptom C is there still: all examples of a batch share their noise, so that a large "
            "batch is as noisy as a single example. Draw as many numbers as mean has.",
        )
        half = n // 2
        products = [z[1:] * z[:-1], z[half:] * z[:half], z * z.flip(0), z[:, 1:] * z[:, :-1]]
        again = [vae.call("sample_latent", mean[:500], logvar[:500], generator).detach() for _ in range(5)]
        good = at_most(max(abs(z_score(c, 0.0)) for product_ in products for c in product_.T), LIMIT)
        needs(
            good and far_apart(again[0]),
            "symptom C: the noise is not independent for each example and each latent.",
        )
        needs(far_apart(torch.stack(again)), "symptom C: the noise of one call is used again in the next.")
        needs(
            at_most(tails((z - z.mean(0)) / z.std(0)), LIMIT),
            "symptom C: the noise is not standard normal. Is it limited (clamped), or of another kind?",
        )


# Of the log-variance -80 so little noise comes that nobody's draws matter.
CALM = {"logvar.weight": 0.0, "logvar.bias": -80.0}


def calmed(state: dict) -> dict:
    return {name: value * 0 + CALM[name] if name in CALM else value for name, value in state.items()}


def mended_d(task: Task, student: Student, draw: Draw) -> None:
    """The loss, of its parts, be these right or wrong; and its gradients, those of the KL above all."""
    for (batch, sizes), training in product(((4, (6, 5, 3)), (1, (5, 7, 2))), MODES.values()):
        vae, state = patient(student, draw, *sizes)
        vae.training(training)
        x, seed = draw(batch, sizes[0], low=0, high=1), draw.seed()
        mean, logvar, kl = _healthy_encoding(state, x)
        encoded = vae.call("encode", x.clone())
        good = same(tuple(encoded) if isinstance(encoded, list) else encoded, (mean, logvar), 1e-5, 1e-6)
        needs(good, "symptom D: `encode` does not return what SickVAE's does, which is healthy.")
        far = [40 * draw(3, 4) for _ in range(2)]
        for given in ((mean, logvar), tuple(far)):
            right = 0.5 * (given[0] ** 2 + given[1].exp() - given[1] - 1).sum(1)
            good = same(vae.call("kl", *(part.clone() for part in given)), right, 1e-4, 1e-5)
            needs(good, "symptom D: `kl` does not return what SickVAE's does, which is healthy.")
        losses = []
        with torch.random.fork_rng(devices=[]):  # whoever draws from there loses C, not this
            for beta in (2.0, 0.0):
                torch.manual_seed(0)
                losses.append(vae.call("loss", x.clone(), beta, seed))
        good = all(isinstance(value, Tensor) and value.dim() == 0 for value in losses)
        needs(good, f"symptom D: `loss` returns {shape(losses[0])}, not one number.")
        good = same(losses[0] - losses[1], 2 * kl.mean(), 1e-4, 1e-5)
        needs(good, "symptom D: beta does not add beta times the mean KL to `loss`.")
        _loss_is_composed(vae, x, draw)
        for level in (0.0, 20.0):  # q is the prior, or far from it: no floor, no limit
            far = {f"{head}.bias": state[f"{head}.bias"] * 0 + level for head in ("mean", "logvar")}
            far |= {f"{head}.weight": 0 * state[f"{head}.weight"] for head in ("mean", "logvar")}
            vae.load({**state, **far})
            kl = 0.5 * sizes[2] * (level**2 + math.exp(level) - level - 1)
            with torch.random.fork_rng(devices=[]):
                some, none = (seeded(vae, "loss", x.clone(), beta, seed) for beta in (2.0, 0.0))
            good = same(some - none, torch.tensor(2 * kl, dtype=f64), 1e-4, 1e-5)
            needs(
                good, "symptom D: beta adds beta times the mean KL to `loss` only while the KL is moderate."
            )
        vae.load(state)
        if batch > 1:
            _slopes_of_loss(vae, calmed(state), x, draw)


def _healthy_encoding(state: dict, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log-variance and KL of every example."""
    h = (x @ state["trunk.0.weight"].mT + state["trunk.0.bias"]).clamp_min(0)
    mean, logvar = (h @ state[f"{n}.weight"].mT + state[f"{n}.bias"] for n in ("mean", "logvar"))
    return mean, logvar, 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)


def _loss_is_composed(vae: ModuleProxy, x: Tensor, draw: Draw) -> None:
    """Without the KL, the mean of the student's reconstruction of what is decoded from a draw."""
    words = (
        "symptom D: `loss` is not, for beta 0, the mean over the batch of the `reconstruction` of a draw "
        "that is decoded."
    )
    seeds, encoded = [draw.seed() for _ in range(3)], vae.call("encode", x)
    with torch.random.fork_rng(devices=[]):
        got = [seeded(vae, "loss", x.clone(), 0.0, seed).detach() for seed in seeds]
        codes = [seeded(vae, "sample_latent", *encoded, seed) for seed in seeds]
    errors = [vae.call("reconstruction", x, vae.call("decode", z)).detach().mean() for z in codes]
    if all(same(loss, error, 1e-6, 1e-9) for loss, error in zip(got, errors)):
        return
    needs(
        not same(got[0], got[1], 1e-9, 1e-9),
        "symptom D: `loss` gives the same number with any generator. The mean is decoded: decode a draw.",
    )
    # Another order of the same draws, or another draw: by their averages and their scatter.
    start = draw.seed().number
    seeds = [Seed(start + i) for i in range(1200)]
    codes = vae.each("sample_latent", [(*encoded, seed) for seed in seeds[::2]])
    ours = vae.each("reconstruction", [(x, logits) for logits in vae.each("decode", [(z,) for z in codes])])
    theirs = vae.each("loss", [(x, 0.0, seed) for seed in seeds[1::2]])
    needs(_alike(torch.stack([error.mean() for error in ours]), torch.stack(theirs)), words)


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether independent results (n, ...) have the same mean and scatter."""
    ours, theirs = (t.detach().reshape(len(t), -1) for t in (ours, theirs))
    ours, theirs = (torch.cat([t, (t - ours.mean(0)) ** 2], 1) for t in (ours, theirs))
    return bool((two_samples(ours, theirs).abs() < LIMIT).all())


def _slopes_of_loss(vae: ModuleProxy, state: dict, x: Tensor, draw: Draw) -> None:
    """Where there is hardly any noise: the slopes of the KL; and those of the rest, as far as the parts that
    are the affair of other letters let them through."""
    vae.load(state)
    seed = draw.seed()
    leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
    kl = _healthy_encoding(leaves, x)[2].mean()
    right = dict(zip(leaves, torch.autograd.grad(kl, list(leaves.values()), allow_unused=True)))
    slopes = [vae.parameter_gradients("loss", x, beta, seed) for beta in (2.0, 0.0)]
    for name, slope in right.items():
        pair = [torch.zeros_like(state[name]) if s[name] is None else s[name] for s in slopes]
        slope = torch.zeros_like(state[name]) if slope is None else slope
        if not same(pair[0] - pair[1], 2 * slope, 1e-4, 1e-5):
            raise Wrong(
                "symptom D is there still: the KL is in the value of `loss`, but its gradient "
                f"for {name} is not. A number out of the graph (.item(), .detach()) trains nothing."
            )
    mean, logvar, _ = _healthy_encoding(state, x)
    z = vae.call("sample_latent", mean, logvar, seed).detach()
    logits = vae.call("decode", z).detach()
    parts = {"decode": (z,), "reconstruction": (x, logits)}
    if not all(keeps_graph(vae, method, given, draw) for method, given in parts.items()):
        return
    through = keeps_graph(vae, "sample_latent", (mean, 0 * logvar, seed), draw)
    cut_in_decode = odd_parameters(vae, state, "decode", (z,), draw)
    odd = odd_parameters(vae, state, "loss", (x, 0.0, seed), draw)
    odd = [name for name in odd if name not in cut_in_decode and (through or name.startswith("decoder"))]
    needs(
        not odd,
        "symptom D: the reconstruction is in the value of `loss`, but its gradient does not come back to all "
        "parameters: the graph is cut, by .detach(), .data, .item() or torch.no_grad().",
    )


def mended_e(task: Task, student: Student, draw: Draw) -> None:
    """fit moves every parameter, as Adam does with the slopes of the student's own loss, right or wrong."""
    vae, state = patient(student, draw, 6, 8, 3)
    x = draw(5, 6, low=0, high=1)
    slopes = vae.parameter_gradients("loss", x.clone(), 1.0, draw.seed())
    reached = [name for name in state if slopes.get(name) is not None and slopes[name].any()]
    vae.call("fit", x.clone(), 3, 0.01, draw.seed())
    after = vae.state()
    still = [name for name in reached if torch.equal(state[name], after[name])]
    needs(
        not still,
        f"symptom E is there still: after three steps of `fit`, {', '.join(still)} "
        "did not move. Count what the optimiser is given.",
    )
    vae.load(state).call("fit", x.clone(), 1, 0.01, draw.seed())
    first = vae.state()
    odd = [n for n in reached if not at_most(abs(float((state[n] - first[n]).abs().max()) - 0.01), 5e-4)]
    needs(
        not odd,
        f"symptom E: the first step of Adam with lr 0.01 moves a parameter by 0.01, and not so "
        f"{', '.join(odd)}. `fit` gives all parameters to one Adam with the lr it is called with.",
    )
    # Step by step, where there is hardly any noise; then the noise, with steps so small that nothing moves.
    x, steps = draw(6, 6, low=0, high=1), 6
    for training in MODES.values():
        start, seed = calmed(state), draw.seed()
        end = _healthy_fit(vae, start, training, x, steps, 0.1, seed)
        vae = loaded(student, (6, 8, 3), start)
        vae.training(training)
        _check_losses(vae.call("fit", x.clone(), steps, 0.1, seed), steps)
        if not _same_states(vae.state(), end):
            raise Wrong(
                f"symptom E: after {steps} steps of `fit` the parameters are not those that {steps} steps of "
                "Adam on `loss`, of all of x and with beta 1, lead to.",
                _cause_of_fit(vae, start, training, x, steps, 0.1, seed),
            )
        vae.load(state).training(training)
        generator, other = (torch.Generator().manual_seed(seed.number) for _ in range(2))
        for each in (generator, other):  # one that has been drawn from is not where its seed began
            torch.randn(8, generator=each)
        with torch.random.fork_rng(devices=[]):  # whoever draws from there loses C, not this
            torch.manual_seed(steps)
            right = [float(vae.call("loss", x.clone(), 1.0, generator)) for _ in range(steps)]
            torch.manual_seed(steps)
            losses = _check_losses(vae.call("fit", x.clone(), steps, 1e-13, other), steps)
        needs(
            same(losses, torch.tensor(right), 1e-4, 1e-5),
            "symptom E: what `fit` returns is not its losses: `loss` of all of x with beta 1, one for each "
            "step, with the draws that the generator gives one after the other.",
        )


def _check_losses(losses, steps: int) -> Tensor:
    """What fit returns, as a tensor (steps,)."""
    found = (
        list(losses)
        if isinstance(losses, tuple | list) or (isinstance(losses, Tensor) and losses.dim())
        else []
    )
    good = len(found) == steps and all(same_shape(loss, 0.0) for loss in found)
    needs(good, "symptom E: `fit` does not return its losses, one for each step.")
    return torch.tensor([float(loss) for loss in found])


def _same_states(left: dict, right: dict) -> bool:
    return all(same(left.get(name), value, 1e-6, 1e-6) for name, value in right.items())


def _healthy_fit(
    vae: ModuleProxy,
    start: dict,
    training: bool,
    x: Tensor,
    steps: int,
    lr: float,
    seed: Seed,
    beta: float = 1.0,
    sign: float = 1.0,
    zero: bool = True,
    renewed: bool = False,
    optimiser=torch.optim.Adam,
) -> dict:
    """The parameters after these steps on the student's own loss; or with a slip in it."""
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam, generator = optimiser(leaves.values(), lr=lr), torch.Generator().manual_seed(seed.number)
    for _ in range(steps):
        adam = optimiser(leaves.values(), lr=lr) if renewed else adam
        vae.load({name: leaf.detach() for name, leaf in leaves.items()}).training(training)
        draws_of_this = torch.Generator().set_state(generator.get_state())
        vae.call("loss", x.clone(), beta, generator)  # which goes on to the draws of the next step
        for name, slope in vae.parameter_gradients("loss", x.clone(), beta, draws_of_this).items():
            before = leaves[name].grad if not zero else None
            leaves[name].grad = None if slope is None else sign * slope + (0 if before is None else before)
        adam.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


def _cause_of_fit(vae: ModuleProxy, start: dict, training: bool, x: Tensor, steps: int, *rest) -> Cause:
    end = vae.state()
    slips = [
        ("the gradient is not set to zero before each step", {"zero": False}),
        ("every step has an optimiser of its own, which has forgotten the steps before", {"renewed": True}),
        ("the sign is flipped: the loss is made large", {"sign": -1.0}),
        *(("the KL has not the weight 1", {"beta": beta}) for beta in (0.0, 0.5, 2.0, 4.0)),
        ("the optimiser is another than Adam", {"optimiser": torch.optim.SGD}),
        ("the optimiser is another than Adam", {"optimiser": torch.optim.AdamW}),
    ]
    for clause, slip in slips:
        if _same_states(end, _healthy_fit(vae, start, training, x, steps, *rest, **slip)):
            return Cause.of((clause,), SO_ONE_GETS)
    for some in range(1, len(x)):
        if _same_states(end, _healthy_fit(vae, start, training, x[:some], steps, *rest)):
            return Cause.of(("some of the images are left out",), SO_ONE_GETS)
    return UNKNOWN


def mended_f(task: Task, student: Student, draw: Draw) -> None:
    """elbo draws z in either mode, and is what the model's own parts lead to, be these right or wrong."""
    vae, _ = patient(student, draw, 6, 8, 3)
    x, start = draw(4, 6, low=0, high=1), draw.seed().number
    for when, training in MODES.items():
        vae.training(training)
        with torch.random.fork_rng(devices=[]):  # whoever draws from there loses C, not this
            seeds = [Seed(start), Seed(start + 1), Seed(start)]
            bounds = [seeded(vae, "elbo", x.clone(), seed) for seed in seeds]
            first, second, again = bounds
            mean, logvar = vae.call("encode", x)
            kl = vae.call("kl", mean, logvar)
            codes = [seeded(vae, "sample_latent", mean, logvar, seed) for seed in seeds]
        needs(shape(first) == shape(x[:, 0]), f"symptom F: `elbo` is {shape(first)}.")
        needs(finite(bounds), f"symptom F: in {when} `elbo` is not finite.")
        needs(
            not same(first, second, 1e-9, 1e-9) or same(*codes[:2], 1e-9, 1e-9),
            f"symptom F is there still: in {when} two draws give the same `elbo`. The mean "
            "is decoded, which is too good: a bound is an average over draws of q(z|x).",
        )
        needs(same(first, again, 0, 0), "symptom F: `elbo` draws from elsewhere than its generator.")
        needs(vae.training() == training, "symptom F: `elbo` switches the mode of the model.")
        errors = [vae.call("reconstruction", x, vae.call("decode", z)) for z in codes]
        if all(same(bound, -error - kl, 1e-6, 1e-9) for bound, error in zip(bounds, errors)):
            continue
        # Another order of the same draws, or another draw: by their averages and their scatter.
        seeds = [Seed(start + i) for i in range(2, 1000)]
        codes = vae.each("sample_latent", [(mean, logvar, seed) for seed in seeds[::2]])
        logits = vae.each("decode", [(z,) for z in codes])
        ours = [-error - kl for error in vae.each("reconstruction", [(x, each) for each in logits])]
        theirs = vae.each("elbo", [(x, seed) for seed in seeds[1::2]])
        needs(
            _alike(torch.stack(ours), torch.stack(theirs)),
            "symptom F: `elbo` is not, on average, what `reconstruction`, `kl` and draws of "
            "`sample_latent` lead to.",
        )


def mended_g(task: Task, student: Student, draw: Draw) -> None:
    """decode returns logits, and sample their sigmoids for draws of the prior."""
    for (batch, sizes, scale), training in product(
        ((4, (6, 8, 3), 1), (1, (5, 4, 1), 1), (4, (6, 8, 3), 50), (130, (5, 4, 2), 1)), MODES.values()
    ):
        vae, state = patient(student, draw, *sizes)
        vae.training(training)
        z = scale * draw(batch, sizes[2])
        h = (z @ state["decoder.0.weight"].mT + state["decoder.0.bias"]).clamp_min(0)
        right = h @ state["decoder.2.weight"].mT + state["decoder.2.bias"]
        got = vae.call("decode", z.clone())
        if same(got, right, 1e-4, 1e-5):
            continue
        slips = [
            ((), right),
            ("it ends in a sigmoid, and the loss and `sample` apply another", right.sigmoid()),
            ("it ends in a ReLU", right.clamp_min(0)),
        ]
        cause = explain([got], [slips])
        if not cause and shape(got) == shape(right) and limited(got, right):
            cause = Cause.of(("the logits are limited (clamped)",), SO_ONE_GETS)
        raise Wrong("symptom G is there still: `decode` does not return the logits.", cause)
    vae, state = patient(student, draw, 6, 8, 3)
    z = draw(4, 3)
    odd = odd_parameters(vae, state, "decode", (z,), draw)
    needs(
        keeps_graph(vae, "decode", (z,), draw) and not odd,
        "symptom G: the values of `decode` are right, but no gradient, or a wrong one, comes back.",
    )
    vae = loaded(student, (6, 8, 3), sick_state(draw, 6, 8, 3), f32)
    for training in MODES.values():
        vae.training(training)
        p = vae.call("sample", 4000, draw.seed())
        few = [vae.call("sample", 50, draw.seed()) for _ in range(2)]
        ours = vae.call("decode", draw(20_000, 3).to(f32)).sigmoid()
        good = shape(p) == shape(ours[:4000]) and ((p >= 0) & (p <= 1)).all()
        good = good and (two_samples(*(torch.cat([t, t**2], 1) for t in (ours, p))).abs() < LIMIT).all()
        needs(good, "symptom G: `sample` does not return the probabilities, one sigmoid of `decode`.")
        good = at_least((few[0] - few[1]).abs().max(), 1e-5) and at_least((p[1:] - p[:-1]).abs().max(), 1e-5)
        needs(good, "symptom G: `sample` draws no z of its own for every image and every generator.")


MENDED_VAE = Task(
    name="MendedVAE",
    read="pitfalls#common-mistakes-from-the-symptom",
    properties=mended_properties,
    forbidden=READY_MADE,
    tests={
        "A": mended_a,
        "B": mended_b,
        "C": mended_c,
        "D": mended_d,
        "E": mended_e,
        "F": mended_f,
        "G": mended_g,
    },
)

TASKS = {task.name: task for task in (ENCODER, DECODER, VAE, KL_WEIGHT, NEGATIVE_ELBO, TRAIN, MENDED_VAE)}
