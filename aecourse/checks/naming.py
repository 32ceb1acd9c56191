"""Which mistake leads to a student's numbers: they are compared with those of the mistakes people make."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from aecourse.checks.core import (
    UNKNOWN,
    Case,
    Cause,
    Draw,
    Seed,
    Task,
    Wrong,
    dtype_name,
    f64,
    prepared,
    remembered,
    same,
    same_shape,
    tensors,
)
from aecourse.checks.student import Student
from aecourse.checks.telling import hidden

ELSEWHERE = Cause(" Other inputs give the right values, so look at what is special about these.")
NUMBER = Cause(" A plain number carries no gradient: return the tensor, without .item().")
TWO_SEEDS = Cause(" Two generators with the same seed give different results: draw from the generator only.")
TWO_CALLS = Cause(" Two calls with the same inputs give different results: nothing random is needed here.")
OWN = "one of your own functions that it calls is wrong"

REDUCTIONS = [
    ("", lambda t: t.flatten(1).sum(1)),
    ("the terms of an example are averaged, not summed", lambda t: t.flatten(1).mean(1)),
    ("the terms of an example are not summed", lambda t: t),
    ("the sum runs over the batch too", lambda t: t.sum()),
    ("the mean over the batch is taken", lambda t: t.flatten(1).sum(1).mean()),
    (
        "the mean over the batch is given to every example",
        lambda t: t.flatten(1).sum(1).mean().expand(len(t)),
    ),
    ("the mean runs over everything, the batch too", lambda t: t.mean()),
    ("the sum runs over the last dimension only", lambda t: t.sum(-1)),
    ("the mean runs over the last dimension only", lambda t: t.mean(-1)),
    ("the sum runs over dimension 1 only", lambda t: t.sum(1)),
    ("the sum runs over the last two dimensions only", lambda t: t.sum((-2, -1))),
    ("the result is divided by the batch size", lambda t: t.flatten(1).sum(1) / len(t)),
    ("the sum runs over the batch, not over the dimensions", lambda t: t.sum(0)),
    ("the mean runs over the batch, not over the dimensions", lambda t: t.mean(0)),
    ("a dimension of size 1 is left", lambda t: t.flatten(1).sum(1, keepdim=True)),
]
BITS = ("the unit is bits, not nats", 1 / math.log(2))
KL_SCALES = [
    ("", 1.0),
    ("the half in front is missing", 2.0),
    ("the sign is flipped", -1.0),
    ("there is a half too many", 0.5),
    BITS,
]
BOUND_SCALES = [("", 1.0), ("the sign is flipped: this is a loss, to be made small", -1.0), BITS]
UNSCALED = [("", 1.0)]


def spread(
    formulas, reductions=REDUCTIONS, scales=UNSCALED
) -> Iterator[tuple[tuple[str, ...], Tensor | None]]:
    """Slips from terms: each ``(clause, terms)``, with terms (batch, ...) before any sum, combined with
    every reduction and scale. None stands for a reduction over dimensions that are not there."""
    for clause, terms in formulas:
        for reduced, reduce in reductions:
            try:
                result = reduce(terms)
            except (RuntimeError, IndexError):
                result = None
            for scaled, scale in scales:
                clauses = tuple(words for words in (clause, reduced, scaled) if words)
                yield clauses, None if result is None else scale * result


class Candidates:
    """The slips of one probe, their results kept as one matrix for each shape, to be compared at once.

    slips: ``(clauses, canonical result)``, the right one first.
    """

    def __init__(self, slips: Iterable[tuple]):
        self.clauses: list[tuple[str, ...]] = []
        rows: dict[tuple, tuple[list[int], list[Tensor]]] = {}
        for number, (words, result) in enumerate(slips):
            self.clauses.append(((words,) if words else ()) if isinstance(words, str) else tuple(words))
            if number == 0:
                self.right = result
            signature, row = _flat(result)
            if row is not None:
                numbers, parts = rows.setdefault(signature, ([], []))
                numbers.append(number)
                parts.append(row)
        self.rows = {key: (numbers, torch.stack(parts)) for key, (numbers, parts) in rows.items()}

    def matching(self, output) -> set[int]:
        """The numbers of the slips that lead to this result."""
        signature, row = _flat(output)
        numbers, matrix = self.rows.get(signature, ([], None))
        if row is None or not numbers:
            return set()
        close = torch.isclose(row, matrix, rtol=1e-4, atol=1e-6, equal_nan=True).all(1)
        return {number for number, yes in zip(numbers, close.tolist()) if yes}


def _flat(result) -> tuple[tuple, Tensor | None]:
    """The shapes of a result and its numbers in a row, in float64; no row for what is no result."""
    if isinstance(result, tuple | list):
        shapes, rows = zip(*map(_flat, result)) if result else ((), ())
        if any(row is None for row in rows):
            return (), None
        return ("tuple", *shapes), torch.cat(rows) if rows else torch.empty(0, dtype=f64)
    if result is None:
        return (), None
    tensor = torch.as_tensor(result).detach()
    return tuple(tensor.shape), tensor.reshape(-1).to(f64)


def diagnose(task: Task, student: Student, draw: Draw) -> Cause:
    """What to add about wrong values: the mistake that leads to the student's numbers, if one does."""

    def candidates_of(case: Case) -> Candidates:
        slips = task.slips(*task.build(*prepared(case.arguments, f64)), **case.keywords)
        return Candidates((words, _canonical(task, result)) for words, result in slips)

    def probes_of() -> tuple[list[Case], list[Candidates]]:
        cases = list((task.probes or task.cases)(draw))
        return cases, [candidates_of(case) for case in cases] if task.slips else []

    probes, candidates = remembered(probes_of, task, draw, "probes")
    if not candidates:  # the task's own tests name mistakes by themselves
        return UNKNOWN
    try:
        calls = [call(task.build(*prepared(case.arguments, f64)), case, f64) for case in [*probes, *probes]]
        results = [task.canonical(result) for result in student.each(calls)]
    except Wrong:
        return UNKNOWN
    outputs, again = results[: len(probes)], results[len(probes) :]
    if not all(map(_repeats, again, outputs)):
        random = any(isinstance(argument, Seed) for case in probes for argument in case.arguments)
        return TWO_SEEDS if random else TWO_CALLS
    with_own = [_composed(task, student, case) for case in probes] if task.own else []
    return _named(outputs, candidates, with_own) or _ratio(outputs, [each.right for each in candidates])


def _canonical(task: Task, result):
    return None if result is None else task.canonical(result)


def call(arguments: tuple, case: Case, dtype: torch.dtype) -> tuple[tuple, dict, str]:
    """A call for `Student.each`."""
    return arguments, case.keywords, f"{case.label}, {dtype_name(dtype)}"


def explain(outputs: list, slips: list) -> Cause:
    """The mistake that leads to all of these results.

    outputs: one result per probe.
    slips: for each probe the list of ``(clauses, result)``, in the same order; the right one has no clauses
        and comes first. Or `Candidates` of these, where they serve again.
    """
    candidates = [each if isinstance(each, Candidates) else Candidates(each) for each in slips]
    return _named(outputs, candidates, [])


def _named(outputs: list, candidates: list[Candidates], with_own: list) -> Cause:
    """The matching slip of the fewest clauses. ``with_own``: what the student's own functions lead to."""
    clauses = candidates[0].clauses
    left = set(range(len(clauses)))
    for output, each in zip(outputs, candidates):
        left &= each.matching(output)
        if not left:
            break
    if left and not clauses[first := min(left, key=lambda number: (len(clauses[number]), number))]:
        right = [each.right for each in candidates]
        plain = any(isinstance(o, int | float) and isinstance(r, Tensor) for o, r in zip(outputs, right))
        return NUMBER if plain else ELSEWHERE
    if with_own and all(same(o, w, rtol=1e-4, atol=1e-6) for o, w in zip(outputs, with_own)):
        return Cause.of((OWN,))
    return Cause.of(clauses[first]) if left else Cause()


def _repeats(now, then) -> bool:
    """Whether two results are equal, those included that are no numbers."""
    signatures, rows = zip(_flat(now), _flat(then))
    if None in rows:
        return rows == (None, None)
    return signatures[0] == signatures[1] and torch.allclose(*rows, 0, 0, equal_nan=True)


def _composed(task: Task, student: Student, case: Case):
    """What the student's own functions lead to; None if they fail."""
    try:
        own = [student.fellow(name) for name in task.own]
        result = task.composed(own, *task.build(*prepared(case.arguments, f64)), **case.keywords)
        return _canonical(task, result)
    except Wrong:
        return None


def _ratio(outputs: list, right: list) -> Cause:
    """The last resort: a constant factor or a constant offset says much, and gives no value away."""
    if not all(map(same_shape, outputs, right)):
        return UNKNOWN
    try:
        got = torch.cat([part.reshape(-1).to(f64) for output in outputs for part in tensors(output)])
        want = torch.cat([part.reshape(-1).to(f64) for output in right for part in tensors(output)])
        ratio, offset = got / want, got - want
    except (RuntimeError, ValueError):  # ValueError: numbers, not tensors
        return UNKNOWN
    if len(got) < 3 or not got.isfinite().all():
        return UNKNOWN
    if torch.allclose(ratio, ratio[:1], rtol=1e-4, atol=0):
        return Cause(f" All your numbers are {_constant(float(ratio[0]))} times the right ones.")
    if torch.allclose(offset, offset[:1], rtol=1e-4, atol=1e-8):
        return Cause(f" All your numbers are off by the same {_constant(float(offset[0]))}.")
    return UNKNOWN


# Numbers that formulas are made of. Any other could be one of the inputs, and is told in visible checks only.
CONSTANTS = {
    words: number
    for words, size in (
        *((f"{n}", n) for n in (1, 2, 3, 4, 8)),
        *((f"1/{n}", 1 / n) for n in (2, 3, 4, 8)),
        *(("pi", math.pi), ("2 pi", 2 * math.pi), ("1 / (2 pi)", 0.5 / math.pi)),
        *(("log 2", math.log(2)), ("1 / log 2", 1 / math.log(2)), ("log 2 pi", math.log(2 * math.pi))),
        *(("half of log 2 pi", 0.5 * math.log(2 * math.pi)), ("log pi", math.log(math.pi))),
    )
    for words, number in ((words, size), (f"-{words}", -size))
}


def _constant(number: float) -> str:
    """A factor or an offset in words."""
    if not hidden():
        return f"{number:.4g}"
    near = (words for words, size in CONSTANTS.items() if math.isclose(number, size, rel_tol=1e-3))
    return next(near, "constant")
