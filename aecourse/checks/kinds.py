"""The tests that any task of their kind may use: values, gradients, stability; and statistics for others."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from aecourse.checks.core import (
    FOLLOWS,
    UNKNOWN,
    Case,
    Cause,
    Draw,
    Task,
    Wrong,
    dtype_name,
    f32,
    f64,
    finite,
    misshapen,
    prepared,
    remembered,
    same,
    same_shape,
    tensors,
)
from aecourse.checks.modules import weighted_sum
from aecourse.checks.naming import ELSEWHERE, call, diagnose
from aecourse.checks.precision import Look, lost_digits, right_answer
from aecourse.checks.student import Student
from aecourse.checks.telling import hidden, place_of

STEP = 1e-6  # of a finite difference


def _in_types(cases: list[Case]) -> list[tuple[Case, torch.dtype]]:
    """Each case in float64; in float32, where only the type can be wrong, the first three."""
    return [(c, dtype) for n, c in enumerate(cases) for dtype in ((f64, f32) if n < 3 else (f64,))]


def values(task: Task, student: Student, draw: Draw) -> None:
    """Is the formula right? All cases in float64, some in float32; shape and type; inputs unchanged."""

    def looks_of() -> list[tuple]:
        return [(c, dtype, right_answer(task, c, dtype)) for c, dtype in _in_types(list(task.cases(draw)))]

    _look_at(task, student, draw, remembered(looks_of, task, draw, "values"))


def values_in_evaluation(task: Task, student: Student, draw: Draw) -> None:
    """The values, also under torch.no_grad(): a function that looks at it would be another in evaluation."""

    def looks_of() -> list[tuple]:
        cases = [replace(c, label=f"{c.label}, under torch.no_grad()") for c in list(task.cases(draw))[:2]]
        return [(case, f64, right_answer(task, case, f64)) for case in cases]

    values(task, student, draw)
    with torch.no_grad():
        _look_at(task, student, draw, remembered(looks_of, task, draw, "values in evaluation"))


def _look_at(task: Task, student: Student, draw: Draw, looks: list[tuple]) -> None:
    """Raise `Wrong` unless the answers of all looks, each (case, type, right answer), are right."""
    given = [task.build(*prepared(case.arguments, dtype)) for case, dtype, _ in looks]
    results = student.each([call(a, case, dtype) for a, (case, dtype, _) in zip(given, looks)])
    for (case, dtype, want), arguments, got in zip(looks, given, results):
        where = f"{case.label}, {dtype_name(dtype)}"
        student.refuse_changes(arguments, where)
        if not same_shape(got, want):
            raise _wrong(misshapen(got, want), diagnose(task, student, draw), where)
        if not same(task.canonical(got), want, rtol=1e-4, atol=1e-4):
            nan = "" if finite(got) else f" Not all numbers are finite.{_others_are_right(got, want)}"
            raise _wrong(f"wrong.{nan}", diagnose(task, student, draw), where)
        for part in tensors(got):
            if part.dtype != dtype and part.is_floating_point():
                raise Wrong("the result is of another dtype. Keep the type of the inputs.", case=where)


def _others_are_right(got, want) -> str:
    """What to add where some numbers are not finite."""
    pairs = [(a, b[a.isfinite()]) for a, b in zip(tensors(got), tensors(want)) if a.isfinite().any()]
    right = pairs and all(same(a[a.isfinite()], b, rtol=1e-4, atol=1e-4) for a, b in pairs)
    return " Those that are finite are right." if right else ""


def _wrong(words: str, cause: Cause, where: str) -> Wrong:
    """A report files by its inputs what is wrong for these alone."""
    return Wrong(
        words, cause, case=where, brief=f"{where}: {words}{cause.words}" if cause == ELSEWHERE else ""
    )


def _leaves(task: Task, case: Case, dtype: torch.dtype) -> tuple:
    """Copies of a case's arguments, of which those to differentiate require gradients."""
    arguments = prepared(case.arguments, dtype)
    for position in task.differentiate:
        arguments[position].requires_grad_()
    return arguments


def _slopes(task: Task, results: list, leaves: list[tuple]) -> list[list[Tensor | None]]:
    """Gradients of the `weighted_sum` of each result with respect to its own leaves, in one pass."""
    parts = [[part for part in tensors(result) if part.requires_grad] for result in results]
    count = len(task.differentiate)
    wanted = [own[position] for _, own in zip(results, leaves) for position in task.differentiate]
    if not any(parts) or not wanted:
        return [[None] * count for _ in results]
    try:
        slopes = torch.autograd.grad([weighted_sum(p) for p in parts if p], wanted, allow_unused=True)
    except Exception as error:  # a tensor of the graph was changed in place, for example
        why = "" if hidden() else f": {str(error).split(': [')[0][:200]}"
        where = f", {place}" if (place := place_of(error)) else ""
        raise Wrong(f"the backward pass fails{why}{where}.", brief="the backward pass fails.") from None
    return [list(slopes[i : i + count]) for i in range(0, len(slopes), count)]


def _right_slopes(task: Task, looks: list[tuple[Case, torch.dtype]]) -> list[tuple]:
    """For each look the right answer and its gradients in float64, at the numbers of the look's type."""
    leaves = [_leaves(task, case, f64) for case, _ in looks]
    with torch.no_grad():  # the very numbers that the student gets
        for own, (_, dtype) in zip(leaves, looks):
            for position in task.differentiate:
                own[position].copy_(own[position].to(dtype))
    answers = [task.reference(*task.build(*own), **case.keywords) for own, (case, _) in zip(leaves, looks)]
    slopes = _slopes(task, answers, leaves)
    return [
        (tuple(p.detach() for p in answer) if isinstance(answer, tuple) else answer.detach(), right)
        for answer, right in zip(answers, slopes)
    ]


def gradients(task: Task, student: Student, draw: Draw) -> None:
    """Against the reference's gradients, in float32 too, then against finite differences."""

    def looks_of() -> tuple:
        cases = list(task.cases(draw))
        looks = _in_types(cases)
        directions = [draw(*cases[0].arguments[position].shape) for position in task.differentiate]
        return looks, _right_slopes(task, looks), [direction / direction.norm() for direction in directions]

    looks, right, directions = remembered(looks_of, task, draw, "gradients")
    names = task.reference.__code__.co_varnames
    leaves = [_leaves(task, case, dtype) for case, dtype in looks]
    calls = [call(task.build(*own), case, dtype) for own, (case, dtype) in zip(leaves, looks)]
    first = looks[0][0]
    for position, direction in zip(task.differentiate, directions):
        for sign in (1, -1):
            moved = prepared(first.arguments, f64)
            moved[position].add_(sign * STEP * direction)
            calls.append(call(task.build(*moved), first, f64))
    results = student.each(calls)
    answers = []
    for (case, dtype), (given, _, _), (want, _), got in zip(looks, calls, right, results):
        where = f"{case.label}, {dtype_name(dtype)}"
        if not same_shape(got, want):
            raise Wrong(f"{misshapen(got, want)} Repair the values first.", case=where, reason=FOLLOWS)
        if student.effects.slopes(given):
            raise Wrong(
                ".backward() is called inside, and leaves its slopes in the .grad of the parameters, where "
                "the optimiser takes them for the loss's. Use torch.autograd.grad.",
                case=where,
            )
        answers.append(got)
    slopes = _slopes(task, answers, leaves)
    for (case, dtype), got, own_slopes, (want, right_slopes) in zip(looks, answers, slopes, right):
        for position, slope, right_slope in zip(task.differentiate, own_slopes, right_slopes):
            if right_slope is None:
                continue
            if same(torch.zeros_like(right_slope) if slope is None else slope, right_slope, 1e-3, 1e-3):
                continue
            where, name = f"{case.label}, {dtype_name(dtype)}", names[position]
            if not same(task.canonical(got), task.canonical(want), 1e-3, 1e-3):
                words = f"the gradient for {name} is wrong, and so are the values. Repair these first."
                raise Wrong(words, case=where, reason=FOLLOWS)
            raise Wrong(_about_slope(name, slope, right_slope), case=where)
    for slope, direction in zip(slopes[0], directions):
        ahead, behind = (float(weighted_sum(tensors(next(results)))) for _ in range(2))
        along = 0.0 if slope is None else float((slope * direction).sum())
        # the last digits of float64, divided by the step
        close = 1e-5 + 1e-3 * abs(along) + 1e-7 * abs(ahead)
        if not abs((ahead - behind) / (2 * STEP) - along) <= close:
            raise Wrong("finite differences do not agree with the gradient. Is float64 kept all the way?")


def _about_slope(name: str, slope: Tensor | None, right: Tensor) -> str:
    """What is wrong with a gradient when the values are right."""
    if slope is None:
        return (
            f"no gradient reaches {name}. The graph is cut, for example by .detach(), .item(), .numpy(), "
            "torch.tensor(...) or torch.no_grad(), or by a derivative that is taken without "
            "create_graph=True."
        )
    if right.isfinite().all() and not slope.isfinite().all():
        return (
            f"the values are right, but the gradient for {name} is not finite. A root or a norm has no slope "
            "at 0, and squaring it afterwards does not bring it back; nor have the eigenvectors of equal "
            "eigenvalues (eigh, svd)."
        )
    return (
        f"the values are right, but the gradient for {name} is not: a part of the graph is cut, for example "
        "by .detach(), .item(), .data, torch.no_grad() or a clamp of the inputs."
    )


def stability(task: Task, student: Student, draw: Draw) -> None:
    """Ordinary inputs to the last digits, then extreme ones, with finite gradients."""

    def looks_of() -> list[Look]:
        ordinary = [
            (replace(case, label=f"{case.label}, to the last digits"), f64, 1e-9) for case in task.cases(draw)
        ]
        looks = []
        for number, (case, dtype, rtol, *atol) in enumerate([*ordinary, *task.extremes(draw)]):
            # From 20 on, torch's softplus is linear: 2e-9 off, and no mistake of the student's.
            close = (rtol, *(atol or [10 * rtol]))
            want = right_answer(task, case, dtype)
            looks.append(Look(case, dtype, *close, want, number < len(ordinary)))
        return looks

    looks = remembered(looks_of, task, draw, "stability")
    leaves = [_leaves(task, look.case, look.dtype) for look in looks]
    calls = [call(task.build(*own), look.case, look.dtype) for own, look in zip(leaves, looks)]
    results, trouble = [], None
    for look, got in zip(looks, student.each(calls)):
        if not same(task.canonical(got), look.want, look.rtol, look.atol):
            trouble = imprecise(task, _where(look), lost_digits(task, student, look, got))
            break
        results.append(got)
    for look, slopes in zip(looks, _slopes(task, results, leaves)):
        if any(slope is None or not slope.isfinite().all() for slope in slopes):
            words = "the value is right, but its gradient is missing or not finite."
            raise Wrong(words, case=_where(look))
    if trouble is not None:
        raise trouble


def _where(look: Look) -> str:
    return f"{look.case.label}, {dtype_name(look.dtype)}"


def imprecise(task: Task, where: str, cause: Cause = UNKNOWN) -> Wrong:
    """The message when digits are lost: what leads to it; where that is not known, the task's hint."""
    return Wrong("not precise.", cause or Cause(f" If ordinary values are right: {task.hint}."), case=where)


# --------------------------------------------------------------------------- random results

# A right answer is refused when a standard normal number is beyond this: once in 500 million times.
LIMIT = 6.0


def z_score(results: Tensor, expected: float) -> float:
    """How many standard errors the mean of independent results (n,) lies from what it should be; infinitely
    many where one of them is no number."""
    if not results.isfinite().all():
        return math.inf
    error = results.std() / math.sqrt(len(results))
    return float((results.mean() - expected) / error.clamp_min(1e-12 * max(1.0, abs(expected))))
