"""What costs a nearly right result its digits, recognised by the numbers that each cause would have given.

Rounding errors jump when the inputs move a little: those of float64 however little they move, those of
float32 only when they move by more than its last digit. What is smooth is an epsilon, a clamp or a rounded
constant: the right formula is computed again with each of these, operation by operation. And where a result
ceases to be finite says which function left the range of numbers.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from aecourse.checks.core import (
    UNKNOWN,
    Case,
    Cause,
    Draw,
    Task,
    Wrong,
    f32,
    f64,
    prepared,
    remembered,
    same_shape,
    tensors,
)
from aecourse.checks.naming import TWO_CALLS, call
from aecourse.checks.student import Student

SINGLE = "a part of it is computed in single precision (float32)"
CANCELLED = "digits cancel: large, nearly equal numbers are subtracted"
OVERFLOWS = "an exponential leaves the range of numbers: it overflows, or is rounded to 0"
UNDERFLOWS = "a number has been rounded to 0, or has overflowed, before its log is taken"
SATURATES = "a sigmoid has been rounded to 0 or 1 before its log is taken"


def right_answer(task: Task, case: Case, dtype: torch.dtype):
    """The canonical right answer in float64, for a case's numbers in this type."""
    arguments = task.build(*prepared(case.arguments, dtype))
    exact = (a if not hasattr(a, "to") or _whole(a) else a.to(f64) for a in arguments)
    return task.canonical(task.reference(*exact, **case.keywords))


def _whole(argument) -> bool:
    return isinstance(argument, Tensor) and not argument.is_floating_point()


@dataclass(frozen=True)
class Look:
    """A case in a type, how close a result must be to the right one, and whether these are ordinary inputs,
    on which a right formula is nearly right at least."""

    case: Case
    dtype: torch.dtype
    rtol: float
    atol: float
    want: object
    ordinary: bool


def lost_digits(task: Task, student: Student, look: Look, got) -> Cause:
    """What has cost a result its digits; nothing where it is not known, or where more than these is wrong."""
    if not same_shape(task.canonical(got), look.want):
        return UNKNOWN
    got, want = _row(task.canonical(got)), _row(look.want)
    if got is None or want is None:
        return UNKNOWN
    near = got.isfinite().all() and (got - want).abs().max() < 0.01 * want.abs().max()
    if look.ordinary and not near:
        return UNKNOWN
    try:
        (again,), _ = _answers(task, student, [look.case], look.dtype)
        if not torch.allclose(again, got, 0, 0, equal_nan=True):  # of chance, no digits tell
            return TWO_CALLS
        slip = (
            _lost_to_the_log(look.dtype, got, want)
            or _smooth_or_not(task, student, look, got, want)
            or ("" if look.ordinary else _out_of_range(task, student, look.dtype))
        )
    except Wrong:  # a call fails, as another test says, or is not answered as the first was
        return UNKNOWN
    return Cause.of((slip,), "That is what one gets when") if slip else Cause()


def _row(result) -> Tensor | None:
    """All numbers of a result in float64."""
    parts = tensors(result)
    return torch.cat([part.detach().reshape(-1).to(f64) for part in parts]) if parts else None


def _answers(
    task: Task, student: Student, cases: list[Case], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """A student's answers and the right ones."""
    right = [right_answer(task, case, dtype) for case in cases]
    calls = [call(task.build(*prepared(case.arguments, dtype)), case, dtype) for case in cases]
    rows = []
    for result, exact in zip(student.each(calls), right):
        if not same_shape(task.canonical(result), exact):
            raise student.wrong("another shape is returned.")
        rows.append(_row(task.canonical(result)))
    return rows, [_row(exact) for exact in right]


def _lost_to_the_log(dtype: torch.dtype, got: Tensor, want: Tensor) -> str:
    """Whether the only logs that are wrong are infinite, and those of numbers out of this type's range."""
    lost = got.isinf()
    if not lost.any() or not torch.allclose(got[~lost], want[~lost], 1e-3, 1e-3):
        return ""
    beyond = (want.abs() > (690.0 if dtype == f64 else 85.0)) & (want.abs() < 1e7)
    return UNDERFLOWS if beyond[lost].all() and (got.sign() == want.sign())[lost].all() else ""


def _smooth_or_not(task: Task, student: Student, look: Look, got: Tensor, want: Tensor) -> str:
    """The cause of an error that jumps, as rounding does, or of one that an alteration of the formula has."""
    case = look.case
    if got.isfinite().all() and _jumps(task, student, look, 1e-13 if look.dtype == f64 else 3e-7):
        return CANCELLED
    if look.dtype != f64:  # look again where an epsilon can be told from rounding
        (got,), (want,) = _answers(task, student, [case], f64)
    error = (got - want).abs().nan_to_num(math.inf)
    if not (error > 1e-11 * want.abs()).any():
        return ""
    usual = _usual(task)
    right = _row(right_answer(task, usual, f64))
    for name, formula in (("first slip", _first_slip(task)), ("reference", task.reference)):
        alterations = remembered(
            lambda formula=formula: list(_alterations(task, formula)), task, Draw(0), f"alterations: {name}"
        )
        for words, sizes, altered in alterations:
            for size in _nearest(sizes, lambda size, altered=altered: altered(size, case), got, want):
                # Where ordinary inputs give what is right, they must do so with this alteration, too.
                if _explains(altered(size, case), got, want) and (
                    look.ordinary or _near(altered(size, usual), right)
                ):
                    return words
    # In float64, and on ordinary inputs: these show single precision, and come first.
    return SINGLE if look.ordinary and _jumps(task, student, look, 3e-7) else ""


def _usual(task: Task) -> Case:
    """Ordinary inputs, the same ones at every call."""
    return remembered(lambda: next(iter(task.cases(Draw(0)))), task, Draw(0), "usual")


def _first_slip(task: Task) -> Callable:
    """The right formula as the slips have it."""
    return lambda *arguments, **keywords: next(iter(task.slips(*arguments, **keywords)))[1]


def _once(altered: Callable) -> Callable:
    """``altered(size, case)``, computed once for each: in a class many lose their digits to the same."""
    made: dict[tuple, tuple] = {}

    def computed(size, case: Case) -> Tensor | None:
        key = size, id(case)
        if key not in made:
            if len(made) >= 500:
                made.clear()
            made[key] = altered(size, case), case  # which is kept, and so its id is nobody else's
        return made[key][0]

    return computed


def _nearest(sizes: list, altered: Callable, got: Tensor, want: Tensor) -> list:
    """The sizes, of many that are sorted by their effect, with which an altered formula may be as wrong."""
    there = got.isfinite() & want.isfinite()
    if len(sizes) < 12 or not there.any():
        return sizes if len(sizes) < 12 else []
    scale = want[there].abs().clamp_min(1e-30)  # relative, so that no entry drowns the others
    error = float(((got - want)[there].abs() / scale).sum())
    first, last = 0, len(sizes) - 1
    while first < last:
        middle = (first + last) // 2
        row = altered(sizes[middle])
        fits = row is not None and row.shape == want.shape
        if fits and float(((row - want)[there].abs() / scale).sum()) <= error:
            last = middle
        else:
            first = middle + 1
    return sizes[max(0, first - 1) : first + 2]


def _near(row: Tensor | None, right: Tensor) -> bool:
    return row is not None and torch.allclose(row, right, 1e-9, 1e-8)


def _jumps(task: Task, student: Student, look: Look, size: float) -> bool:
    """Whether the error, where it is too large, is another at inputs that differ by this relative size."""
    factors = [1 - step * size for step in range(6)]  # downwards: what must lie in [0, 1] stays there
    cases = [
        replace(look.case, arguments=tuple(_scaled(a, factor) for a in look.case.arguments))
        for factor in factors
    ]
    rows, right = map(torch.stack, _answers(task, student, cases, look.dtype))
    errors = rows - right
    affected = (errors.abs() > look.atol + look.rtol * right.abs()).any(0)
    errors = errors[:, affected]
    spread, steps = (errors.amax(0) - errors.amin(0)) / errors.abs().amax(0), errors.diff(dim=0)
    up_and_down = (steps > 0).any(0) & (steps < 0).any(0)
    return bool(affected.any() and (up_and_down & (spread > 0.1)).double().mean() >= 0.5)


def _scaled(argument, factor: float):
    return argument * factor if isinstance(argument, Tensor) and not _whole(argument) else argument


def _explains(altered: Tensor | None, got: Tensor, want: Tensor) -> bool:
    """Whether an altered formula gives a student's numbers, much nearer than the right ones do."""
    if altered is None or altered.shape != got.shape or not torch.equal(altered.isfinite(), got.isfinite()):
        return False
    there = got.isfinite()
    if not there.all() and not torch.equal(altered[~there].nan_to_num(), got[~there].nan_to_num()):
        return False
    rest, error = (altered - got)[there].abs(), (got - want)[there].abs()
    rounding = 1e-14 * want[there].abs().max() if there.any() else 0.0
    return bool((rest <= 1e-4 * error + rounding).all()) and bool((error > rounding).any() or not there.all())


# --------------------------------------------------------------------------- the formula with an alteration


class _Altered(TorchFunctionMode):
    """While it is on, some operations of torch, or only the one at a site, are replaced by `change`."""

    def __init__(self, operations: tuple[str, ...], change: Callable, site: int | None):
        self.operations, self.change, self.site, self.seen = operations, change, site, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "").strip("_")
        if not self.operations or name in self.operations:
            self.seen += 1
            if self.site in (None, self.seen - 1):
                return self.change(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


EPSILONS = [digit * 10.0**-k for k in range(3, 17) for digit in (5, 2, 1)]
BOUNDS = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 20, 25, 30, 40, 50, 60, 80, 100]
QUOTIENTS = ("truediv", "div", "rtruediv")
LOGS = ("log", "logsigmoid", "log_sigmoid")
MATRICES = (
    *("linalg_cholesky", "linalg_slogdet", "slogdet", "logdet", "cholesky", "linalg_inv", "linalg_eigh"),
    *("linalg_eigvalsh", "linalg_solve", "inverse"),
)


def _of_log(change: Callable) -> Callable:
    """An alteration of what the log is taken of, also where a log-sigmoid is taken at once."""

    def altered(function, a, *rest, **keywords):
        plain = function.__name__ == "log"
        return torch.log(change(a if plain else torch.sigmoid(a)))

    return altered


def _rounded(round_: Callable) -> Callable:
    def altered(function, *arguments, **keywords):
        return function(*(round_(a) if type(a) is float else a for a in arguments), **keywords)

    return altered


def _with_pi(pi: float) -> Callable:
    """Another pi in the constants of a Gaussian density."""
    constants = {
        math.log(2 * math.pi): math.log(2 * pi),
        math.log(math.sqrt(2 * math.pi)): math.log(2 * pi) / 2,
    }

    def altered(number: float) -> float:
        near = (new for old, new in constants.items() if math.isclose(number, old, rel_tol=1e-12))
        return next(near, number)

    return _rounded(altered)


def _log_of_determinant(function, matrix):
    determinant = torch.linalg.det(matrix)
    return (
        determinant.log() if function.__name__ == "logdet" else (determinant.sign(), determinant.abs().log())
    )


def _single(number: float, _=None) -> float:
    return float(torch.tensor(number, dtype=f32))


# The bounds of a clamp of an argument, from a size, and the sizes.
LIMITS = [
    (lambda size: (-size, size), BOUNDS),
    (lambda size: (-size, None), BOUNDS),
    (lambda size: (None, size), BOUNDS),
    (lambda size: (size, 1 - size), EPSILONS),
    (lambda size: (size, None), EPSILONS),
]

# What to tell, the operations, and how a size changes them: change(size)(function, *arguments).
CHANGES = [
    (
        "an epsilon is added before the log is taken",
        LOGS,
        lambda size: _of_log(lambda a: a + size),
        EPSILONS,
    ),
    (
        "a clamp changes what the log is taken of",
        LOGS,
        lambda size: _of_log(lambda a: a.clamp_min(size)),
        EPSILONS,
    ),
    (
        "a clamp changes what the log is taken of",
        LOGS,
        lambda size: _of_log(lambda a: a.clamp(size, 1 - size)),
        EPSILONS,
    ),
    (
        "an epsilon is added to a variance or another exponential",
        ("exp",),
        lambda size: lambda exp, a: exp(a) + size,
        EPSILONS,
    ),
    (
        "an epsilon is added to a variance or another exponential",
        ("exp",),
        lambda size: lambda exp, a: (exp(2 * a) + size).sqrt(),
        EPSILONS,
    ),
    (
        "a clamp changes a variance or another exponential",
        ("exp",),
        lambda size: lambda exp, a: exp(a).clamp_min(size),
        EPSILONS,
    ),
    (
        "a clamp changes a variance or another exponential",
        ("exp",),
        lambda size: lambda exp, a: exp(2 * a).clamp_min(size).sqrt(),
        EPSILONS,
    ),
    (
        "an epsilon is added to a divisor",
        QUOTIENTS,
        lambda size: (
            lambda divide, a, b: (b / (a + size)) if divide.__name__ == "__rtruediv__" else a / (b + size)
        ),
        EPSILONS,
    ),
    (
        "a mean is limited (clamped)",
        ("mean",),
        lambda size: lambda mean, *a, **k: mean(*a, **k).clamp(size, 1 - size),
        EPSILONS,
    ),
    ("an epsilon is added inside a root", ("sqrt",), lambda size: lambda f, a: f(a + size), EPSILONS),
    (
        "an epsilon smooths the absolute value",
        ("abs",),
        lambda size: lambda f, a: (a * a + size).sqrt(),
        EPSILONS,
    ),
    (
        "a jitter is added to the diagonal of a matrix",
        MATRICES,
        lambda size: lambda f, a, *rest, **k: f(a + size * torch.eye(a.shape[-1], dtype=a.dtype), *rest, **k),
        EPSILONS,
    ),
    (
        "the log of a determinant is taken, which under- or overflows",
        ("linalg_slogdet", "slogdet", "logdet"),
        lambda _: _log_of_determinant,
        [None],
    ),
    (UNDERFLOWS, ("sum",), lambda _: lambda f, a, *r, **k: f(a.exp().log(), *r, **k), [None]),
    ("a constant is rounded", (), lambda n: _rounded(lambda a: round(a, n)), range(2, 9)),
    ("pi is rounded", (), lambda n: _with_pi(round(math.pi, n)), range(2, 9)),
    ("a constant is in single precision (float32)", (), lambda _: _rounded(_single), [None]),
]


def _computed(
    task: Task, formula: Callable, case: Case, operations: tuple[str, ...] = (), change=None, site=None
) -> tuple[Tensor | None, int]:
    """What the formula gives with an alteration, None where it cannot be computed; and how often the
    operations occur."""
    arguments = task.build(*prepared(case.arguments, f64))
    with _Altered(operations, change or (lambda function, *a, **k: function(*a, **k)), site) as mode:
        try:
            result = formula(*arguments, **case.keywords)
        except Exception:  # a matrix that is singular, a log of what is no tensor, ...
            return None, mode.seen
    return (None if result is None else _row(task.canonical(result))), mode.seen


def _alterations(task: Task, formula: Callable) -> Iterator[tuple[str, list, Callable]]:
    """What to tell, the sizes, and what the formula gives with an alteration of a size, for a case."""
    usual = _usual(task)
    for words, operations, change, sizes in CHANGES:
        seen = _computed(task, formula, usual, operations)[1]
        sites = [None, *range(min(seen, 8))] if operations and seen > 1 else [None] * min(seen, 1)
        for site in sites:

            def computed(size, case, operations=operations, change=change, site=site):
                return _computed(task, formula, case, operations, change(size), site)[0]

            yield words, sizes, _once(computed)
    names = task.reference.__code__.co_varnames
    for i, argument in enumerate(usual.arguments):
        if type(argument) is float:
            yield f"{names[i]} is put in single precision (float32)", [None], _with(task, formula, i, _single)
            yield f"{names[i]} is limited (clamped)", EPSILONS, _with(task, formula, i, max)
        if type(argument) is float or (isinstance(argument, Tensor) and not _whole(argument)):
            added = _with(task, formula, i, lambda a, size: a + size)
            yield f"an epsilon is added to {names[i]}", EPSILONS, added
        if isinstance(argument, Tensor) and not _whole(argument):
            for limits, sizes in LIMITS:
                limited = _with(task, formula, i, lambda a, size, limits=limits: a.clamp(*limits(size)))
                yield f"{names[i]} is limited (clamped)", sizes, limited


def _with(task: Task, formula: Callable, i: int, change: Callable) -> Callable:
    """What the formula gives when argument i is changed by ``change(argument, size)``."""

    def computed(size, case: Case) -> Tensor | None:
        given = (*case.arguments[:i], change(case.arguments[i], size), *case.arguments[i + 1 :])
        return _computed(task, formula, replace(case, arguments=given))[0]

    return _once(computed)


# --------------------------------------------------------------------------- the range of numbers

# Arguments between which a function ceases to be finite: exp and its inverse at 709 and 745 (in float32 at 88
# and 104), or at half of these where its argument is doubled; a sigmoid is 1 from 37 (17) on.
RANGES = {
    f64: [((36.0, 38.5), SATURATES), ((350.0, 375.0), OVERFLOWS), ((705.0, 750.0), OVERFLOWS)],
    f32: [((16.0, 18.0), SATURATES), ((43.5, 52.5), OVERFLOWS), ((87.0, 105.0), OVERFLOWS)],
}


def _out_of_range(task: Task, student: Student, dtype: torch.dtype) -> str:
    """Which function has left the range of numbers: found with all entries of one argument the same."""
    case = _usual(task)
    for i in task.differentiate or range(len(case.arguments)):
        if isinstance(case.arguments[i], Tensor) and not _whole(case.arguments[i]):
            with contextlib.suppress(Wrong):  # an argument that may not be so large
                if slip := _ceases(task, student, case, i, dtype):
                    return slip
    return ""


def _ceases(task: Task, student: Student, case: Case, i: int, dtype: torch.dtype) -> str:
    """The function of `RANGES` between whose bounds for argument i a result ceases to be right."""
    looks = []
    for (bounds, _), sign in product(RANGES[dtype], (1, -1)):
        for bound in bounds:
            full = torch.full_like(case.arguments[i], sign * bound)
            looks.append(replace(case, arguments=(*case.arguments[:i], full, *case.arguments[i + 1 :])))
    rows, right = _answers(task, student, looks, dtype)
    near = [torch.allclose(row, exact, 0.02, 0.02) for row, exact in zip(rows, right)]
    slips = [slip for _, slip in RANGES[dtype] for _ in range(2)]
    for slip, below, beyond, row, exact in zip(slips, near[::2], near[1::2], rows[1::2], right[1::2]):
        if (
            below
            and not beyond
            and exact.isfinite().all()
            and (slip == SATURATES or not row.isfinite().all())
        ):
            return slip
    return ""
