"""Assignment `vae`: encoder, decoder, the model, its loss and its training; and a broken one to mend.

Modules are handled through `ModuleProxy`, by method and by state_dict. Each test sets the parameters itself
and compares with the same network written as plain matrix products, or with the module's own parts where
another task has tested these, so that one mistake costs one cell.
"""

import functools
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
    f32,
    f64,
    finite,
    prepared,
    remembered,
    same,
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


def needs(condition, words: str, **others) -> None:
    """Raise ``Wrong(words, **others)`` unless the condition holds."""
    if not condition:
        raise Wrong(words, **others)


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


MEANS = torch.tensor([2.0, -1.5, 0.5, 3.0], dtype=f64)
LOG_VARIANCES = torch.tensor([-3.0, -0.7, 0.9, 1.6], dtype=f64)

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
    ("5 rows, large weights", (6, 8, 3), 5, 5.0),
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
        module, before = loaded(student, sizes, state, dtype), x.clone()
        got, want = forward(module, x, label), network(state, x.to(f64))
        needs(torch.equal(x, before), "the input is changed in place. Leave it as it is.", case=where)
        if shape(got) != shape(want):
            raise Wrong(f"forward returns {shape(got)}, not {' and '.join(heads)}.", case=where)
        if not same(got, want, 1e-4, 1e-4):
            raise Wrong("wrong.", network_mistake(task, student, draw, cases), case=where)
    if task.name == "Decoder":
        network_gradients(task, student, draw)


def network_mistake(task: Task, student: Student, draw: Draw, cases) -> Cause:
    def slips_of() -> list[Candidates]:
        return [Candidates(network_slips(state, HEADS[task.name], x)) for _, _, state, x in cases]

    slips = remembered(slips_of, task, draw, "slips of the cases that were drawn before")
    return explain([forward(loaded(student, sizes, state), x) for _, sizes, state, x in cases], slips)


def network_gradients(task: Task, student: Student, draw: Draw) -> None:
    heads = HEADS[task.name]
    for label, sizes, state, x in network_cases(draw, heads):
        module = loaded(student, sizes, state)
        leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
        result = network(leaves, x)
        parts = result if isinstance(result, tuple) else (result,)
        right = dict(zip(leaves, torch.autograd.grad(weighted_sum(parts), list(leaves.values()))))
        same_value = same(module.call("forward", x, where=label), result, 1e-3, 1e-3)
        got = module.parameter_gradients("forward", x)
        for name, slope in reversed(right.items()):  # from the end: where the graph is cut
            if same(got.get(name), slope, 1e-3, 1e-3):
                continue
            where = label
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
                same(got_z, z_slope, 1e-3, 1e-3),
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
    good = isinstance(z, Tensor) and z.shape == (4, 3)
    yield "sample_latent: one z per row", "" if good else f"expected shape (4, 3), got {shape(z)}"
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
    for label, sizes, batch in (("4 rows", (7, 6, 3), 4), ("a batch of one", (5, 4, 2), 1)):
        state = vae_state(draw, *sizes)
        # Alive wherever z falls: with all units off, the logits would not depend on z.
        state["decoder.hidden.bias"] += 2.0
        vae, x = loaded(student, sizes, state, f32), draw(batch, sizes[0]).to(f32)
        mean, logvar = own_encoding(vae, x)
        where, decoded = label, vae.call("decoder", mean)
        got = vae.call("reconstruct", x, where=label)
        if not same(got, decoded.sigmoid(), 1e-4, 1e-5):
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
            raise Wrong("reconstruct is wrong.", cause, case=where)
        for mode in (True, False):
            vae.training(mode)
            results = vae.call("forward", x, draw.seed(), where=label)
            good = isinstance(results, tuple | list) and len(results) == 3
            needs(good, f"forward returns {shape(results)}, not logits, mean and logvar.", case=where)
            logits, *rest = results
            swapped = same(tuple(rest), (logvar, mean), 1e-5, 1e-6)
            needs(not swapped, "forward returns logvar and mean in the wrong order.", case=where)
            good = same(tuple(rest), (mean, logvar), 1e-5, 1e-6)
            needs(good, "forward does not return the mean and logvar of the encoder.", case=where)
            others = (vae.call("forward", x, draw.seed())[0] for _ in range(20))
            if same(logits, decoded, 1e-5, 1e-6) and all(same(again, logits, 1e-5, 1e-6) for again in others):
                when = "" if mode else " in evaluation mode"
                raise Wrong(f"forward decodes the mean{when}, where a draw of q(z|x) is asked.", case=where)
        _forward_is_composed(student, vae, x, draw, where)


def _forward_is_composed(student: Student, vae: ModuleProxy, x: Tensor, draw: Draw, where: str) -> None:
    """forward is decoder(sample_latent(encoder)) in values and gradients, be sample_latent right or wrong."""
    seed = draw.seed()

    def seeded(method, *arguments):  # whoever draws from the global state loses `noise`, not this
        torch.manual_seed(seed.number + 1)
        return vae.call(method, *arguments)

    x, own = (x.clone().requires_grad_() for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        posterior = own_encoding(vae, own)
        logits = vae.call("decoder", seeded("sample_latent", *posterior, seed))
        results = seeded("forward", x, seed)
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


def own_encoding(vae: ModuleProxy, x: Tensor) -> tuple[Tensor, Tensor]:
    encoded = vae.call("encoder", x)
    if not isinstance(encoded, tuple | list) or len(encoded) != 2:
        raise Wrong("its encoder does not return mean and logvar. Repair Encoder first.", reason=FOLLOWS)
    return tuple(encoded)


def _forward_draws(vae: ModuleProxy, x: Tensor, draw: Draw, where: str) -> None:
    """The logits of many draws have the first two moments that the model's own sample_latent leads to."""
    many = x.expand(4000, -1)
    logits = vae.call("forward", many, draw.seed())[0]
    z = vae.call("sample_latent", *own_encoding(vae, many), draw.seed())
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
    uses_generator(student, lambda generator: vae.call("sample_latent", mean, logvar, generator))
    for mode in (True, False):
        vae.training(mode)
        z = vae.call("sample_latent", mean, logvar, draw.seed())
        needs(shape(z) == shape(mean), f"sample_latent returns {shape(z)}, not a z like mean.")
        when = "" if mode else " in evaluation mode"
        needs(not same(z, mean, 1e-6, 1e-6), f"sample_latent returns the mean{when}: nothing is drawn.")
    vae.training(True)
    _noise_is_right(vae, draw)
    far = torch.tensor([-30.0, 30.0], dtype=f64).expand(200, -1)
    z = vae.call("sample_latent", 0 * far, far, draw.seed()).to(f64)
    spread = (z / (far / 2).exp()).std(0)
    needs(
        ((spread > 0.5) & (spread < 2)).all(),
        "sample_latent is right for moderate logvar, and its spread is wrong for logvar = -30 or 30. "
        "Is logvar limited (clamped), or is something added to the standard deviation?",
    )
    _noise_is_differentiable(vae, mean, logvar, draw)


def _noise_is_right(vae: ModuleProxy, draw: Draw) -> None:
    n = 4000
    mean, logvar = MEANS.expand(n, -1), LOG_VARIANCES.expand(n, -1)
    z = vae.call("sample_latent", mean, logvar, draw.seed(), where="4000 equal rows").detach().to(f64)
    noise = (z - mean) / (logvar / 2).exp()
    if (noise - noise[:1]).abs().max() < 1e-4:
        raise Wrong(
            "sample_latent gives all rows of a batch the same noise. Each example needs its own: draw "
            "as many numbers as mean has."
        )
    if (noise - noise[:, :1]).abs().max() < 1e-4:
        raise Wrong("sample_latent gives all latents of an example the same noise.")
    variances, right = (z - mean).var(0), LOG_VARIANCES.exp()
    sd = right.sqrt()
    if max(abs(z_score(column, 0.0)) for column in noise.T) > LIMIT:
        slips = [
            ("the mean is left out", 0 * MEANS),
            ("the mean is counted twice", 2 * MEANS),
            ("mean and logvar change places", LOG_VARIANCES),
            ("the noise is uniform (torch.rand), not normal (torch.randn)", MEANS + sd / 2),
            ("the noise is uniform (torch.rand), not normal (torch.randn)", MEANS + right / 2),
        ]
        raise Wrong("the draws of sample_latent do not average to mean.", closest(z.mean(0), slips))
    if max(abs(z_score(column.square(), 1.0)) for column in noise.T) > LIMIT:
        slips = [
            ("exp(logvar), the variance, is taken as the standard deviation", right**2),
            ("logvar is taken as the standard deviation", LOG_VARIANCES**2),
            ("the noise is not scaled at all", 1.0),
            ("the root of the standard deviation scales the noise", sd),
            ("the noise is divided by the standard deviation", 1 / right),
            ("the noise is uniform, not normal", right / 3),
            ("a softplus stands where exp(logvar / 2) belongs", F.softplus(LOG_VARIANCES) ** 2),
            ("a softplus of logvar is taken as the variance", F.softplus(LOG_VARIANCES)),
        ]
        cause = closest((variances / right).log(), [(c, (v / right).log()) for c, v in slips])
        raise Wrong("the spread of the draws of sample_latent is not exp(logvar / 2).", cause)
    if max(abs(z_score(column**4, 3.0)) for column in noise.T) > 2 * LIMIT:  # a heavy tail, hence twice
        raise Wrong("the noise of sample_latent has the right spread, but is not normal.")
    neighbours = [noise[1:] * noise[:-1], noise[n // 2 :] * noise[: n // 2]]
    pairs = [(column * neighbour)[:, None] for column, neighbour in pairwise(noise.T)]
    if max(abs(z_score(c, 0.0)) for products in neighbours + pairs for c in products.T) > LIMIT:
        raise Wrong("the noise of sample_latent is not independent for each example and latent.")


def _noise_is_differentiable(vae: ModuleProxy, mean: Tensor, logvar: Tensor, draw: Draw) -> None:
    """For the same noise, z moves with the mean one to one and with logvar by (z - mean) / 2."""
    leaves = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    z = vae.call("sample_latent", *leaves, draw.seed())
    slopes = (None, None)
    if z.requires_grad:
        slopes = torch.autograd.grad(z.sum(), leaves, allow_unused=True)
    want = torch.ones_like(mean), (z - mean).detach() / 2
    for name, slope, right in zip(("mean", "logvar"), slopes, want):
        cut = "the graph is cut, for example by .detach(), .data, torch.no_grad() or torch.normal(...)."
        needs(slope is not None, f"no gradient of sample_latent reaches {name}: {cut}")
        needs(same(slope, right, 1e-4, 1e-5), f"the gradient of sample_latent for {name} is wrong: {cut}")


def vae_samples(task: Task, student: Student, draw: Draw) -> None:
    """sample: probabilities, one independent standard normal z for each, by the model's own decoder."""
    sizes = (6, 7, 3)
    vae = loaded(student, sizes, vae_state(draw, *sizes, scale=1.5), f32)
    uses_generator(student, lambda generator: vae.call("sample", 5, generator))
    image = vae.call("sample", 1, draw.seed(), where="n = 1")
    needs(shape(image) == shape(torch.ones(1, 6)), f"sample(1) returns {shape(image)}, not (1, dim).")
    n = 40_000
    p = vae.call("sample", n, draw.seed(), where=f"n = {n}")
    needs(shape(p) == shape(torch.ones(n, 6)), f"sample({n}) returns {shape(p)}, not ({n}, dim).")
    needs((p - p[:1]).abs().max() > 1e-5, "all images of sample are the same: draw one z for each.")
    z = draw(5 * n, 3).to(f32)
    logits = vae.call("decoder", z)

    def moments(q):
        return torch.cat([q, q**2], 1).to(f64)

    def scores(q):
        inner = q.to(f64).clamp(1e-7, 1 - 1e-7).logit()
        right = logits.to(f64).clamp(-16, 16)
        return two_samples(*(torch.cat([a, (a - right.mean(0)) ** 2], 1) for a in (right, inner)))

    if not ((p >= 0) & (p <= 1)).all() or (scores(p).abs() > LIMIT).any():
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
    centred = (p - p.mean(0)).detach().to(f64)
    pairs = [centred[1:] * centred[:-1], centred[n // 2 :] * centred[: n // 2]]
    if max(abs(z_score(c, 0.0)) for products in pairs for c in products.T) > LIMIT:
        raise Wrong("the images of one call of sample are not independent.")


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
    pairs = [(3, 10), (7, 10), (10, 10), (11, 10), (25, 10), (0, 10), (0, 0), (5, 0), (1, 3), (1, 1), (0, 1)]
    return [Case(f"step {s}, warmup {w}", (s, w)) for s, w in [*pairs, (333, 1000), (999, 1000)]]


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
    for step, warmup, exact in ((0, 7, 0), (7, 7, 1), (8, 7, 1), (10**6, 7, 1), (0, 0, 1), (3, 0, 1)):
        got = float(student(step, warmup))
        needs(got == exact, f"step {step}, warmup {warmup}: close, but not exactly 0 or 1.")


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
    yield "the log-variance is decoded", (_nll(x, model.decoder(logvar)) + b * d).mean()
    zero = model.decoder(torch.zeros_like(mean))
    yield "the decoder is given zeros, not z", (_nll(x, zero) + b * d).mean()
    for clause, terms in list(bernoulli_slips(x, logits))[1:]:
        yield f"in the reconstruction, {clause}", (b * d - terms.sum(1)).mean()
    for clause, terms in list(gaussian_kl_slips(mean, logvar))[1:]:
        yield f"in the KL, {clause}", (nll + b * terms.sum(1)).mean()


DECODER_IGNORES = "a decoder that ignores z"


def affine_vae(draw: Draw, dim: int, k: int, kind: str) -> AffineVAE:
    """A model for negative_elbo: "blind" has a decoder that ignores z, "sure" an encoder without noise."""
    sure, blind, bold = kind == "sure", kind in ("blind", "bold"), kind == "bold"
    spread = 0.1 if sure else 0.8
    return AffineVAE(
        draw(k, dim) / dim**0.5,
        0.7 * draw(k),
        spread * draw(k, dim) / dim**0.5,
        0.4 * draw(k) - (80.0 if sure else 0.6),
        torch.zeros(dim, k, dtype=f64) if blind else 1.2 * draw(dim, k),
        draw(dim).sign() * 40.0 if bold else draw(dim),
    )


def negative_elbo_cases(draw: Draw):
    def case(label, batch, dim, k, kind, beta, grey=True):
        x = draw(batch, dim, low=0, high=1)
        model = affine_vae(draw, dim, k, kind)
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
    ]


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
    for batch, dim, k, beta in ((4, 6, 3, 1.0), (3, 5, 1, 0.5), (1, 4, 2, 3.0)):
        x, seed = draw(batch, dim, low=0, high=1), draw.seed()
        leaves = [tensor.clone().requires_grad_() for tensor in affine_vae(draw, dim, k, "").tensors]
        where = f"beta {beta:g}, {batch} rows"
        value = _seeded_loss(student, leaves, x, beta, seed, where)
        good = isinstance(value, Tensor) and value.dim() == 0
        needs(good, f"{shape(value)} is returned, not one number.", case=where)
        cut = "the graph is cut, for example by .detach(), .data, .item() or torch.no_grad()"
        keep = "the result is not float64, as the inputs are. Keep the type of the inputs."
        needs(value.dtype == f64, keep, case=where)
        needs(value.requires_grad, f"the result has no gradient: {cut}.", case=where)
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        for i, of_kl in enumerate(_kl_slopes(leaves, x, beta)):
            along = draw(*leaves[i].shape)  # a direction, in which both are compared
            right = _difference(student, leaves, i, along, (x, beta, seed, where))
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
    return abs(slope - expected) < 1e-5 * (1 + abs(expected))


def _seeded_loss(student: Student, tensors, x, beta, seed: Seed, where: str):
    # Whoever draws from the global state loses other points than these.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed.number)
        generator = torch.Generator().manual_seed(seed.number)
        return student(AffineVAE(*tensors), x.clone(), beta, generator, where=where)


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

    first, second = call(torch.Generator().manual_seed(1)), call(torch.Generator().manual_seed(2))
    if same(first, second, 1e-9, 1e-9):
        raise Wrong(
            "two seeds give the same number. Nothing is drawn; is the mean of q(z|x) decoded? "
            "That is no bound: decode a draw."
        )
    uses_generator(student, call)
    x = few.repeat(rows // 5, 1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(calls)]
    losses = student.each([((model, x, 1.0, generator), {}, "") for generator in generators])
    results = torch.stack([torch.as_tensor(loss) for loss in losses]).to(f64).detach()
    needs(results.dim() == 1, "the result is not one number.")
    # What the student takes for the KL, right or wrong, is seen with a decoder that ignores z.
    blind = AffineVAE(*model.tensors[:4], torch.zeros_like(model.tensors[4]), model.tensors[5])
    seeded = (torch.Generator().manual_seed(number) for number in (1, 2))
    kl, again = (float(torch.as_tensor(student(blind, x, 1.0, each)).detach()) for each in seeded)
    needs(
        abs(kl - again) < 1e-6 * (1 + abs(kl)),
        "with a decoder that ignores z the result still depends on the draw. Is the KL "
        "estimated from z, or are the pixels drawn? Take the closed form, and x as it is.",
    )
    kl -= float(_nll(few, blind.tensors[5].expand_as(few)).mean())

    def right_moments() -> tuple[float, float]:
        return float(expected_nll(model, few, torch.exp).mean()), _variance_of_one(model, few, draw)

    mean, variance_of_one = remembered(right_moments, task, draw, "moments of the reconstruction")
    right = kl + mean
    if abs(z_score(results, right)) > LIMIT:
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
        ratio < 1 + 5.5 * math.sqrt(2 / calls),
        "the average over many draws is right, but one result scatters too much: each example "
        "of a batch needs its own noise.",
    )
    needs(
        ratio > 1 - 5.5 * math.sqrt(2 / calls),
        "a result scatters less than with one draw of z per example. Draw one, not several.",
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


@functools.lru_cache(maxsize=64)
def _vae_sizes(dim: int, latent_dim: int, encoding: int, decoding: int) -> dict[str, tuple]:
    """The shapes of a VAE's parameters, by name, for these numbers of hidden units."""
    decoder = shapes_of(network_state(Draw(0), ("logits",), latent_dim, decoding, dim))
    return {
        **shapes_of(vae_state(Draw(0), dim, encoding, latent_dim)),
        **{f"decoder.{name}": size for name, size in decoder.items()},
    }


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


def train_properties(student: Student):
    images = spots(60, torch.Generator().manual_seed(0))
    before = images.clone()
    vae, end = trained(student, images, 2, 1, 0, where="60 images, 1 epoch")
    yield "a VAE with the right sizes", ""
    yield "images unchanged", "" if torch.equal(images, before) else "the images are changed in place"
    mode = vae.training()
    yield "in evaluation mode", "call .eval() on the model before it is returned" if mode else ""
    same_again = equal_states(end, trained(student, images, 2, 1, 0)[1])
    yield "the same for the same seed", "" if same_again else "two runs with the same seed differ"
    start = trained(student, images, 2, 0, 0, where="0 epochs")[1]
    yield "changed by one epoch", "one epoch changes nothing" if equal_states(start, end) else ""


def train_seed(task: Task, student: Student, draw: Draw) -> None:
    """The seed decides everything, and the global random state is as it was."""
    images = spots(60, draw.generator)
    before, seed = images.clone(), 1000 + draw.seed().number % 1000
    runs = []
    with torch.random.fork_rng(devices=[]):
        for number, moment in ((seed, 1), (seed, 2), (seed + 1, 1)):
            torch.manual_seed(moment)
            state = torch.random.get_rng_state()
            runs.append(trained(student, images, 2, 2, number)[1])
            untouched = torch.equal(state, torch.random.get_rng_state())
            needs(torch.equal(images, before), "the images are changed in place.")
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
        untouched,
        "torch's global random state is another one afterwards. Whoever calls it should not "
        "notice: put back the state that was there.",
    )


def train_updates(task: Task, student: Student, draw: Draw) -> None:
    """Every parameter moves, and every image has a say in every epoch, whatever the batch size."""
    for count, size in ((70, (8, 8)), (7, (4, 6))):
        images = draw(count, *size, low=0, high=1).to(f32)
        start = trained(student, images, 3, 0, 5, where="no epochs")[1]
        end = trained(student, images, 3, 2, 5, where=f"{count} images of {size[0]} x {size[1]}")[1]
        still = [name for name in start if torch.equal(start[name], end[name])]
        if len(still) == len(start):
            small = "; with fewer images than a batch holds, is the only batch dropped" if count < 10 else ""
            raise Wrong(f"two epochs on {count} images change no parameter{small}.")
        needs(
            not still,
            f"{', '.join(still)} did not move in two epochs. Are all parameters in the optimiser, "
            "and does the loss reach all of them?",
        )
    images = draw(131, 3, 4, low=0, high=1).to(f32)  # a prime: a short last batch for the usual sizes
    untrained = [trained(student, x, 2, 0, 3, where="no epochs")[1] for x in (images, 1 - images)]
    needs(
        equal_states(*untrained),
        "with epochs=0 the parameters depend on the images: is there an epoch too many?",
    )
    base = trained(student, images, 2, 1, 3)[1]
    idle = []
    for i in range(len(images)):
        changed = images.clone()
        changed[i] = 1 - changed[i]
        state = trained(student, changed, 2, 1, 3)[1]
        idle += [i] if all(torch.equal(base[name], state[name]) for name in base) else []
    needs(
        not idle,
        f"of {len(images)} images, {len(idle)} had no influence on the first epoch. Every epoch goes "
        "through all images, in batches, and a short last batch counts too.",
    )


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
    if gain > GAIN and kl < 5:
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

# ---- MendedVAE: seven faults, each tested where the other six cannot be felt


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


def mended_a(task: Task, student: Student, draw: Draw) -> None:
    """The reconstruction: a sum over the pixels, one number per example."""
    for batch, dim in ((3, 7), (1, 5), (4, 2)):
        vae, _ = patient(student, draw, dim, 6, 3)
        x, logits = draw(batch, dim, low=0, high=1), 2 * draw(batch, dim)
        got, right = vae.call("reconstruction", x, logits), _nll(x, logits)
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


def _log_loss(x, p):
    return -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)


def mended_b(task: Task, student: Student, draw: Draw) -> None:
    """The spread of z, from batches of one, where it does not matter who shares the noise."""
    vae, calls = ModuleProxy.construct(student, 6, 5, 4), 1500
    mean, logvar = MEANS[None], LOG_VARIANCES[None]
    start = draw.seed().number
    draws = vae.each("sample_latent", [(mean, logvar, Seed(start + i)) for i in range(calls)])
    z = torch.cat(draws).detach().to(f64)
    needs(
        shape(z) == shape(MEANS.expand(calls, 4)),
        "`sample_latent` returns another shape than mean.",
    )
    noise = (z - mean) / (logvar / 2).exp()
    if max(abs(z_score(column, 0.0)) for column in noise.T) > LIMIT:
        raise Wrong("symptom B: the draws of `sample_latent` do not average to mean.")
    if max(abs(z_score(column.square(), 1.0)) for column in noise.T) > LIMIT:
        ratio = noise.var(0).log()
        slips = [
            ("exp(logvar), the variance, is taken as the standard deviation", LOG_VARIANCES),
            ("the noise is not scaled at all", -LOG_VARIANCES),
            ("the root of the standard deviation scales the noise", -LOG_VARIANCES / 2),
        ]
        near = (clause for clause, v in slips if torch.allclose(ratio, v, atol=0.25))
        cause = Cause.of(tuple(near)[:1], SO_ONE_GETS)
        raise Wrong(
            "symptom B is there still: the codes of `sample_latent` scatter by another amount "
            "than logvar says, for which the KL is charged.",
            cause,
        )


def mended_c(task: Task, student: Student, draw: Draw) -> None:
    """Noise of its own for every example. At logvar 0 every reading of logvar has the same spread."""
    vae, n = ModuleProxy.construct(student, 6, 5, 3), 3000
    mean = torch.zeros(n, 3, dtype=f64)
    uses_generator(student, lambda generator: vae.call("sample_latent", mean[:4], mean[:4], generator))
    z = vae.call("sample_latent", mean, mean, draw.seed()).detach().to(f64)
    needs(shape(z) == shape(mean), "`sample_latent` returns another shape than mean.")
    alone = (z - z[:1]).abs().max() > 1e-6
    needs(
        alone,
        "symptom C is there still: all examples of a batch share their noise, so that a large "
        "batch is as noisy as a single example. Draw as many numbers as mean has.",
    )
    products = [z[1:] * z[:-1], z[n // 2 :] * z[: n // 2], (z[:, 1:] * z[:, :-1])]
    if max(abs(z_score(c, 0.0)) for product_ in products for c in product_.T) > LIMIT:
        raise Wrong("symptom C: the noise is not independent for each example and each latent.")


def mended_d(task: Task, student: Student, draw: Draw) -> None:
    """What beta adds to the loss and to its gradients: the KL, with all of its graph."""
    for batch, sizes in ((4, (6, 5, 3)), (1, (5, 7, 2))):
        vae, state = patient(student, draw, *sizes)
        x, seed = draw(batch, sizes[0], low=0, high=1), draw.seed()
        leaves = {name: value.clone().requires_grad_() for name, value in state.items()}
        h = (x @ leaves["trunk.0.weight"].mT + leaves["trunk.0.bias"]).clamp_min(0)
        mean, logvar = (h @ leaves[f"{n}.weight"].mT + leaves[f"{n}.bias"] for n in ("mean", "logvar"))
        kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).mean()
        right = dict(zip(leaves, torch.autograd.grad(kl, list(leaves.values()), allow_unused=True)))
        losses = []
        with torch.random.fork_rng(devices=[]):  # whoever draws from there loses C and F, not this
            for beta in (2.0, 0.0):
                torch.manual_seed(0)
                losses.append(vae.call("loss", x, beta, seed))
        good = all(isinstance(value, Tensor) and value.dim() == 0 for value in losses)
        needs(good, f"symptom D: `loss` returns {shape(losses[0])}, not one number.")
        good = same(losses[0] - losses[1], 2 * kl, 1e-4, 1e-5)
        needs(good, "symptom D: beta does not add beta times the mean KL to `loss`.")
        slopes = []
        with torch.random.fork_rng(devices=[]):
            for beta in (2.0, 0.0):
                torch.manual_seed(0)
                slopes.append(vae.parameter_gradients("loss", x, beta, seed))
        for name, slope in right.items():
            pair = [torch.zeros_like(state[name]) if s[name] is None else s[name] for s in slopes]
            slope = torch.zeros_like(state[name]) if slope is None else slope
            if not same(pair[0] - pair[1], 2 * slope, 1e-4, 1e-5):
                raise Wrong(
                    "symptom D is there still: the KL is in the value of `loss`, but its gradient "
                    f"for {name} is not. A number out of the graph (.item(), .detach()) trains nothing."
                )


def mended_e(task: Task, student: Student, draw: Draw) -> None:
    """fit moves every parameter."""
    vae, state = patient(student, draw, 6, 8, 3)
    x = draw(5, 6, low=0, high=1)
    vae.call("fit", x, 3, 0.01, draw.seed())
    after = vae.state()
    still = [name for name in state if torch.equal(state[name], after[name])]
    needs(
        not still,
        f"symptom E is there still: after three steps of `fit`, {', '.join(still)} "
        "did not move. Count what the optimiser is given.",
    )
    vae.load(state).call("fit", x, 1, 0.01, draw.seed())
    first = vae.state()
    odd = [n for n in state if abs(float((state[n] - first[n]).abs().max()) - 0.01) > 5e-4]
    needs(
        not odd,
        f"symptom E: the first step of Adam with lr 0.01 moves a parameter by 0.01, and not so "
        f"{', '.join(odd)}. `fit` gives all parameters to one Adam with the lr it is called with.",
    )
    far = [n for n in state if (state[n] - after[n]).abs().max() > 0.1]
    needs(not far, "symptom E: three steps of Adam with lr 0.01 cannot move a parameter by 0.1.")


def mended_f(task: Task, student: Student, draw: Draw) -> None:
    """elbo draws z in either mode, and is on average what the model's own parts lead to."""
    vae, _ = patient(student, draw, 6, 8, 3)
    x, calls, start = draw(4, 6, low=0, high=1), 400, draw.seed().number
    for mode in (False, True):
        vae.training(mode)
        first, second, again = (vae.call("elbo", x, Seed(seed)) for seed in (start, start + 1, start))
        when = "training" if mode else "evaluation"
        needs(
            not same(first, second, 1e-9, 1e-9),
            f"symptom F is there still: in {when} mode two draws give the same `elbo`. The mean "
            "is decoded, which is too good: a bound is an average over draws of q(z|x).",
        )
        needs(same(first, again, 0, 0), "symptom F: `elbo` draws from elsewhere than its generator.")
        mean, logvar = vae.call("encode", x)
        kl = vae.call("kl", mean, logvar)
        seeds = [Seed(start + i) for i in range(2, 2 * calls)]
        codes = vae.each("sample_latent", [(mean, logvar, seed) for seed in seeds[::2]])
        logits = vae.each("decode", [(z,) for z in codes])
        ours = [-error - kl for error in vae.each("reconstruction", [(x, each) for each in logits])]
        theirs = vae.each("elbo", [(x, seed) for seed in seeds[1::2]])
        needs(shape(theirs[0]) == shape(x[:, 0]), f"symptom F: `elbo` is {shape(theirs[0])}.")
        needs(vae.training() == mode, "symptom F: `elbo` switches the mode of the model.")
        ours, theirs = torch.stack(ours), torch.stack(theirs)
        ours, theirs = (torch.cat([t, (t - ours.mean(0)) ** 2], 1) for t in (ours, theirs))
        scores = two_samples(ours, theirs)
        needs(
            (scores.abs() < LIMIT).all(),
            "symptom F: `elbo` is not, on average, what `reconstruction`, `kl` and draws of "
            "`sample_latent` lead to.",
        )


def mended_g(task: Task, student: Student, draw: Draw) -> None:
    """decode returns logits."""
    for batch, sizes, scale in ((4, (6, 8, 3), 1), (1, (5, 4, 1), 1), (4, (6, 8, 3), 50)):
        vae, state = patient(student, draw, *sizes)
        z = scale * draw(batch, sizes[2])
        h = (z @ state["decoder.0.weight"].mT + state["decoder.0.bias"]).clamp_min(0)
        right = h @ state["decoder.2.weight"].mT + state["decoder.2.bias"]
        got = vae.call("decode", z)
        if same(got, right, 1e-4, 1e-5):
            continue
        slips = [
            ((), right),
            ("it ends in a sigmoid, and the loss and `sample` apply another", right.sigmoid()),
            ("it ends in a ReLU", right.clamp_min(0)),
        ]
        cause = explain([got], [slips])
        raise Wrong("symptom G is there still: `decode` does not return the logits.", cause)
    vae = loaded(student, (6, 8, 3), {n: v for n, v in sick_state(draw, 6, 8, 3).items()}, f32)
    p = vae.call("sample", 4000, draw.seed())
    ours = vae.call("decode", draw(20_000, 3).to(f32)).sigmoid()
    good = shape(p) == shape(ours[:4000]) and ((p >= 0) & (p <= 1)).all()
    good = good and (two_samples(ours, p).abs() < LIMIT).all()
    needs(good, "symptom G: `sample` does not return the probabilities, one sigmoid of `decode`.")


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
