"""What the tests are made of: a task, its inputs, and the message of a failed test.

A `Task` says what is right (`reference`), which mistakes people make (`slips`) and on which inputs to look.
``student`` calls a student's function, ``naming`` and ``precision`` name the mistake, and ``kinds`` holds the
tests that any task may use. A test returns nothing when all is well and raises `Wrong` otherwise.

No message holds an expected value, and no traceback is shown: either would give hidden tests away.
"""

import contextlib
import importlib
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aecourse.checks.bans import ASSIGNMENTS

f32, f64 = torch.float32, torch.float64


# --------------------------------------------------------------------------- what is said of a failed test

# Why a test fails; all but the first say nothing about a mistake.
WRONG, UNWRITTEN, UNDEFINED, FOLLOWS = "wrong", "unwritten", "undefined", "follows"


SIZES = re.compile(r"\(\d+(?:, ?\d+)*,?\)")


@dataclass(frozen=True)
class Cause:
    """What leads to a wrong result: the slips, each under its own name, and the sentence that tells them."""

    words: str = ""
    slips: tuple[str, ...] = ()

    @classmethod
    def of(cls, slips: tuple[str, ...], start: str = "These are the numbers that one gets when") -> "Cause":
        """``start``, then the slips; nothing when there are none."""
        return cls(f" {start} {'; '.join(slips)}.", tuple(slips)) if slips else cls()

    def __bool__(self) -> bool:
        return bool(self.words)


UNKNOWN = Cause()


class Wrong(AssertionError):
    """A failed check, in words for the student, and in parts for whoever counts and sorts such words.

    Args:
        words: a sentence or more, without the function and the inputs.
        cause: what leads to it, where that is known.
        case: on which inputs.
        function: whom the words are about. Default: the task that is tested.
        joint: what stands between these and the words: a blank where they make one sentence.
        brief: what a report that counts files it under when there is no slip. Default: the words, but for
            the sizes of tensors in them.
        reason: one of the four above. FOLLOWS: another failure is behind it, and to be mended first.
    """

    def __init__(
        self,
        words: str,
        cause: Cause = UNKNOWN,
        *,
        case: str = "",
        function: str = "",
        joint: str = ": ",
        brief: str = "",
        reason: str = WRONG,
    ):
        super().__init__(words)
        self.words, self.cause, self.case, self.function = words, cause, case, function
        self.joint, self.brief, self.reason = joint, brief or SIZES.sub("(…)", words + cause.words), reason
        self.read = ""

    def about(self, task: "Task") -> "Wrong":
        """The same, known to be about a task."""
        self.function, self.read = self.function or task.name, task.read
        return self.with_traceback(None)  # whose frames hold what is compared

    @property
    def sentence(self) -> str:
        """All but where to read again."""
        case = f" ({self.case})" if self.case else ""
        start = f"{self.function}{case}{self.joint}" if self.function or case else ""
        return f"{start}{self.words}{self.cause.words}"

    def __str__(self) -> str:
        return with_link(self.sentence, self.read)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, which would quote the test."""
        return [str(self)]


def undefined(name: str, found: object = None) -> Wrong:
    """The message when a notebook does not define a function, or gives its name to something else."""
    if found is not None:
        words = (
            f"is no function any more: the notebook gives that name another value, as {name} = {name}(...) "
            "would do. Take another name there."
        )
        return Wrong(words, function=name, joint=" ", reason=UNDEFINED)
    return Wrong(
        "is not defined. Run its cell, and keep the name.", function=name, joint=" ", reason=UNDEFINED
    )


def book() -> str:
    """Where the book is, without a slash at the end; AECOURSE_BOOK names another place."""
    return os.environ.get("AECOURSE_BOOK", "https://aecourse.github.io/aecourse").rstrip("/")


def address(read: str) -> str:
    """The address of ``page#anchor`` in the book."""
    page, _, anchor = read.partition("#")
    return f"{book()}/{page}.html#{anchor}"


def with_link(sentence: str, read: str) -> str:
    """A message and where to read again, as a notebook shows it."""
    return f"{sentence} To read again: {address(read)}" if read else sentence


# --------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Case:
    """Inputs of one call. Tensors are in float64; a call converts them, and draws from its own generator.

    arguments: tensors, numbers, `Seed`s, and callables from `parts`.
    """

    label: str
    arguments: tuple
    keywords: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Seed:
    """An argument that becomes a fresh ``torch.Generator`` with this seed at every call."""

    number: int


class Draw:
    """Random inputs from a seed of their own; the notebook's random state plays no part.

    ``draw(2, 3)`` is standard normal of shape (2, 3) in float64; with ``low`` and ``high`` it is uniform.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, low: float | None = None, high: float | None = None) -> Tensor:
        if low is None or high is None:
            return torch.randn(shape, generator=self.generator, dtype=f64)
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=f64)

    def seed(self) -> Seed:
        return Seed(int(torch.randint(2**31, (), generator=self.generator)))


def prepared(arguments: tuple, dtype: torch.dtype) -> tuple:
    """Copies of a case's arguments in this type, with fresh generators."""

    def fresh(argument):
        if isinstance(argument, Tensor):
            copy = argument.detach().clone()
            return copy.to(dtype) if copy.is_floating_point() else copy
        if isinstance(argument, Seed):
            return torch.Generator().manual_seed(argument.number)
        return argument.to(dtype) if hasattr(argument, "to") else argument

    return tuple(fresh(argument) for argument in arguments)


# --------------------------------------------------------------------------- tasks


@dataclass(frozen=True, kw_only=True)
class Task:
    """A function or a class that students write. One whose tests are all its own needs no slips and cases.

    Attributes:
        name: its name in the notebook.
        read: where the book explains it, ``page#anchor``.
        properties: visible checks. Called with a `Student`; yields ``(what, why)`` pairs, where why is ""
            when the property holds. They must not give the answer away.
        tests: the hidden tests by kind, each called with the task, a `Student` and a `Draw`.
        forbidden: dotted names of ready-made answers, besides the library itself.
        reference: the right answer, for float64 arguments; by another road than the model solution's.
        slips: called like the function; yields ``(clauses, result)``: what to tell (a string or several) and
            what the mistake leads to. The first has no clauses and is right. `spread` combines formulas with
            the usual wrong reductions and scales. A result of None explains nothing.
        cases: ordinary inputs, from a `Draw`.
        probes: inputs on which every slip gives another result, for naming it. Default: the cases.
        extremes: ``(case, dtype, relative tolerance)`` for `stability`, and an absolute one if it is not ten
            times that.
        differentiate: positions of the arguments whose gradients are tested.
        build: makes the arguments from those of a case (for example a covariance from its root), so that
            gradients are taken with respect to the latter.
        canonical: maps a result to one that does not depend on choices left open (signs of components).
        own: names of the student's other functions that this one may call, and `composed`, what the answer
            would be with theirs: ``composed(own, *arguments)``. Tells whose mistake it is.
        hint: what to add when precision is lost.
    """

    name: str
    read: str
    properties: Callable
    tests: dict[str, Callable]
    forbidden: tuple[str, ...] = ()
    reference: Callable | None = None
    slips: Callable | None = None
    cases: Callable = lambda draw: []
    probes: Callable | None = None
    extremes: Callable = lambda draw: []
    differentiate: tuple[int, ...] = ()
    build: Callable = lambda *arguments: arguments
    canonical: Callable = lambda result: result
    own: tuple[str, ...] = ()
    composed: Callable | None = None
    hint: str = ""


def find(name: str) -> Task:
    """The task of this name, from any assignment."""
    for assignment in ASSIGNMENTS:
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(f"aecourse.checks.{assignment}")
            if name in module.TASKS:
                return module.TASKS[name]
    raise ValueError(f"There is no task {name!r}.")


_memory: dict[tuple, tuple] = {}


def remembered(make: Callable, task: Task, draw: Draw, what: str):
    """What ``make()`` returns, made once for a task and the state of ``draw``: a class has the same inputs.

    ``draw`` is left as ``make`` leaves it. What is kept is to compare with, and never handed to a student's
    function: that gets copies, from `prepared`.
    """
    before = draw.generator.get_state().numpy().tobytes()
    functions = task.reference, task.slips, task.cases, task.probes, task.extremes, task.canonical, task.build
    key = (
        what,
        task.name,
        task.differentiate,
        *functions,
        before,
    )  # a test may have replaced some of the task's functions
    if key not in _memory:
        if len(_memory) >= 500:
            _memory.clear()
        made = make()
        _memory[key] = made, draw.generator.get_state()
    made, after = _memory[key]
    draw.generator.set_state(after)
    return made


# --------------------------------------------------------------------------- comparing


def same(got, want, rtol: float, atol: float) -> bool:
    """Whether two results have equal shapes and, within the tolerance, equal numbers."""
    if isinstance(want, tuple):
        return (
            isinstance(got, tuple | list)
            and len(got) == len(want)
            and all(same(part, right, rtol, atol) for part, right in zip(got, want))
        )
    if isinstance(got, tuple | list) or got is None or want is None:
        return False
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    return got.shape == want.shape and torch.allclose(got.to(f64), want.to(f64), rtol, atol, equal_nan=True)


def at_most(number, limit: float) -> bool:
    """Whether a number that comes from a student is finite, real and no larger than the limit.

    Written the other way round, ``number > limit`` is false for NaN, which would pass.
    """
    if isinstance(number, Tensor):
        number = number.item() if number.numel() == 1 and not number.is_complex() else math.nan
    real = isinstance(number, int | float)
    return bool(real and math.isfinite(number) and number <= limit)


def at_least(number, limit: float) -> bool:
    """Whether a number that comes from a student is finite, real and no smaller than the limit."""
    return at_most(number, math.inf) and bool(number >= limit)


def same_shape(got, want) -> bool:
    """Whether a result has the shape of another; a number stands for a tensor of shape ()."""
    if isinstance(want, tuple):
        return isinstance(got, tuple | list) and len(got) == len(want) and all(map(same_shape, got, want))
    if isinstance(want, Tensor) and want.dim():
        return isinstance(got, Tensor) and got.shape == want.shape
    return not isinstance(got, tuple | list) and got is not None and torch.as_tensor(got).dim() == 0


def shape(result) -> str:
    """The shape of a result in words."""
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)}"
    if isinstance(result, tuple):
        return f"a tuple of {len(result)}: {', '.join(map(shape, result))}"
    return f"a {type(result).__name__}"


def finite(result) -> bool:
    if isinstance(result, tuple | list):
        return all(map(finite, result))
    return bool(torch.as_tensor(result).isfinite().all())


def tensors(result) -> list[Tensor]:
    """The tensors of a result."""
    parts = result if isinstance(result, tuple | list) else (result,)
    return [part for part in parts if isinstance(part, Tensor)]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
