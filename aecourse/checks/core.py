"""How a student's function is called, compared, and told what is wrong with it.

A `Task` says what is right (`reference`), which mistakes people make (`slips`) and on which inputs to look.
`values`, `gradients` and `stability` test any task of that kind; a task may bring tests of its own. A test
returns nothing when all is well and raises `Wrong` with a sentence for the student otherwise.

No message holds an expected value, and no traceback is shown: either would give hidden tests away.
"""

import contextlib
import importlib
import io
import math
import os
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

from aecourse.checks.bans import ASSIGNMENTS, REFUSED, banned
from aecourse.checks.modules import Held, weighted_sum

f32, f64 = torch.float32, torch.float64

STEP = 1e-6  # of a finite difference
ELSEWHERE = " Other inputs give the right values, so look at what is special about these."


class Wrong(AssertionError):
    """A failed check, in words for the student."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, which would quote the test."""
        return [str(self)]


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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A function that students write.

    Attributes:
        name: its name in the notebook.
        read: where the book explains it, ``page#anchor``.
        reference: the right answer, for float64 arguments; by another road than the model solution's.
        slips: called like the function; yields ``(clauses, result)``: what to tell (a string or several) and
            what the mistake leads to. The first has no clauses and is right. `spread` combines formulas with
            the usual wrong reductions and scales. A result of None explains nothing.
        properties: visible checks. Called with a `Student`; yields ``(what, why)`` pairs, where why is ""
            when the property holds. They must not give the answer away.
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
        forbidden: dotted names of ready-made answers, besides the library itself.
        tests: the hidden tests by kind.
    """

    name: str
    read: str
    reference: Callable
    slips: Callable
    properties: Callable
    cases: Callable
    probes: Callable | None = None
    extremes: Callable = lambda draw: []
    differentiate: tuple[int, ...] = ()
    build: Callable = lambda *arguments: arguments
    canonical: Callable = lambda result: result
    own: tuple[str, ...] = ()
    composed: Callable | None = None
    hint: str = ""
    forbidden: tuple[str, ...] = ()
    tests: dict[str, Callable] = field(default_factory=dict)


# --------------------------------------------------------------------------- what a notebook calls


def find(name: str) -> Task:
    """The task of this name, from any assignment."""
    for assignment in ASSIGNMENTS:
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(f"aecourse.checks.{assignment}")
            if name in module.TASKS:
                return module.TASKS[name]
    raise ValueError(f"There is no task {name!r}.")


def check(name: str, function: Callable) -> None:
    """Run the visible checks of a task and print what holds; raise `Wrong` at the first that does not.

    Args:
        name: the task, for example ``"gaussian_kl"``.
        function: your function.

    Raises:
        Wrong: a property does not hold; the message says which, and names the mistake where it can.
        ValueError: there is no such task.
    """
    task = find(name)
    student = Student(task, {name: function}, quiet=False)
    try:
        for what, why in task.properties(student):
            if why:
                print(f"  ✗ {what}")
                words = diagnose(task, student, Draw(0))
                raise Wrong(f"{name}: {why}.{'' if words == ELSEWHERE else words}")
            print(f"  ✓ {what}")
    except Wrong as wrong:
        raise Wrong(_with_link(str(wrong), task)) from None
    print(f"{name} passes its visible checks. The hidden tests look closer: see the comments in their cells.")


def grade(name: str, kind: str, namespace: dict, *, seed: int) -> None:
    """Run one hidden test of a task on the function in a notebook's namespace.

    Args:
        name: the task.
        kind: which of its tests, for example ``"values"``.
        namespace: the notebook's ``globals()``.
        seed: of the inputs; this is the secret.

    Raises:
        Wrong: with a sentence for the student, which holds no expected value.
        ValueError: there is no such task or kind of test.
    """
    task = find(name)
    if kind not in task.tests:
        raise ValueError(f"{name} has the tests {', '.join(task.tests)}, and no {kind!r}.")
    try:
        task.tests[kind](task, Student(task, namespace), Draw(seed))
    except Wrong as wrong:
        raise Wrong(_with_link(str(wrong), task)) from None


def book() -> str:
    """Where the book is, without a slash at the end; AECOURSE_BOOK names another place."""
    return os.environ.get("AECOURSE_BOOK", "https://aecourse.github.io/aecourse").rstrip("/")


def _with_link(message: str, task: Task) -> str:
    page, _, anchor = task.read.partition("#")
    return f"{message} To read again: {book()}/{page}.html#{anchor}"


# --------------------------------------------------------------------------- calling a student's function


class Student:
    """A student's function, to be called safely.

    A call converts the case's tensors, keeps warnings (which nbgrader takes for failures) and, when quiet,
    prints to itself, refuses ready-made answers, and turns every error into `Wrong`.
    """

    def __init__(self, task: Task, namespace: dict, quiet: bool = True):
        self.task, self.namespace, self.quiet = task, namespace, quiet
        self.function = namespace.get(task.name)
        if not callable(self.function):
            raise Wrong(f"{task.name} is not defined. Run its cell, and keep the name.")

    def __call__(self, *arguments, where: str = "", **keywords):
        """The result: a plain tensor, a number, or a tuple or list of these."""
        if self.quiet:
            return _plain(self.raw(*arguments, where=where, **keywords), self._at(where))
        before = copies(arguments)  # in a visible check; the hidden test of the values looks for itself
        result = _plain(self.raw(*arguments, where=where, **keywords), self._at(where))
        self.refuse_changes(arguments, before, where)
        return result

    def each(self, calls: list[tuple[tuple, dict, str]]) -> Iterator:
        """The results of many calls, for (arguments, keywords, where) of each, or the error at its turn.

        A function that lives in another process is asked only once.
        """
        if not getattr(self.function, "elsewhere", False):
            for arguments, keywords, where in calls:
                yield self(*arguments, where=where, **keywords)
            return
        with self.running():
            results, error = self.function.each([(arguments, keywords) for arguments, keywords, _ in calls])
        for result, (_, _, where) in zip(results, calls):
            yield _plain(result, self._at(where))
        if error is not None:
            with self.running(calls[len(results)][2]):
                raise error

    def refuse_changes(self, arguments: tuple, before: tuple, where: str) -> None:
        """Raise `Wrong` if a call has changed its arguments."""
        for one, other in zip(arguments, before):
            if isinstance(one, Tensor) and not torch.equal(one, other):
                raise Wrong(f"{self._at(where)}: an input is changed in place. Leave the inputs as they are.")

    def raw(self, *arguments, where: str = "", **keywords):
        """The result as it is; for classes, whose result is a module."""
        with self.running(where):
            return self.function(*arguments, **keywords)

    @contextlib.contextmanager
    def running(self, where: str = "") -> Iterator[None]:
        """The surroundings of any call of a student's code, for tests that call methods."""
        try:
            elsewhere = getattr(self.function, "elsewhere", False)  # in a process that bans for itself
            ban = contextlib.nullcontext() if elsewhere else banned(self.task.forbidden)
            with _surroundings(self.quiet), ban:
                yield
        except Wrong:
            raise
        except NotImplementedError as error:
            raise Wrong(f"{_raised_in(error, self.task.name)} is still to be written.") from None
        except Exception as error:
            words = str(error).strip().split("\n")[0][:300]
            if words.endswith(REFUSED):
                raise Wrong(f"{self.task.name}: {words}") from None
            raise Wrong(f"{self._at(where)} raised {type(error).__name__}: {words}") from None

    def _at(self, where: str) -> str:
        return f"{self.task.name} ({where})" if where else self.task.name

    def other(self, name: str) -> "Student":
        """Another function of the same notebook, under the same rules."""
        return Student(find(name), self.namespace, self.quiet)


@contextlib.contextmanager
def _surroundings(quiet: bool) -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if quiet:  # hidden inputs are not for printing
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _raised_in(error: Exception, default: str) -> str:
    """The function of a task that raised; it may be another one, which the student's function calls."""
    step = error.__traceback__
    while step.tb_next:
        step = step.tb_next
    name = step.tb_frame.f_code.co_name
    with contextlib.suppress(ValueError):
        return find(name).name
    return default


def _plain(result, where: str):
    """The result itself if it is made of plain real tensors, numbers, tuples and lists.

    A subclass of Tensor may answer any question as it likes, so none is accepted.
    """
    if type(result) in (Tensor, torch.nn.Parameter) and result.is_complex():
        raise Wrong(
            f"{where}: complex numbers are returned. A symmetric matrix has real eigenvalues: "
            "torch.linalg.eigh is made for these, torch.linalg.eig for any."
        )
    if type(result) in (Tensor, torch.nn.Parameter, int, float, bool, types.NoneType):
        return result
    if type(result) in (tuple, list):
        return type(result)(_plain(part, where) for part in result)
    if isinstance(result, tuple):  # a named tuple; its own methods are not trusted
        return tuple(_plain(part, where) for part in tuple.__iter__(result))
    raise Wrong(f"{where}: a {type(result).__name__} is returned, not a tensor (or a tuple of tensors).")


def copies(arguments: tuple) -> tuple:
    """The arguments, with copies of the tensors."""
    return tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in arguments)


def prepared(arguments: tuple, dtype: torch.dtype) -> tuple:
    """Copies of a case's arguments in this type, with fresh generators."""

    def one(argument):
        if isinstance(argument, Tensor):
            copy = argument.detach().clone()
            return copy.to(dtype) if copy.is_floating_point() else copy
        if isinstance(argument, Seed):
            return torch.Generator().manual_seed(argument.number)
        return argument.to(dtype) if hasattr(argument, "to") else argument

    return tuple(one(argument) for argument in arguments)


class ModuleProxy:
    """A student's ``torch.nn.Module``, handled by name only: methods are called with plain arguments, and
    parameters are read and set as plain tensors. So the module itself may live in another process.

    ``student`` is the class, or the function that made the module. Arguments are tensors, numbers, `Seed`s.
    """

    def __init__(self, student: Student, module):
        if not isinstance(module, torch.nn.Module | Held):
            raise Wrong(
                f"{student.task.name}: a {type(module).__name__} is made, not a module. Derive the class "
                "from torch.nn.Module."
            )
        self.student = student
        self.held = module if isinstance(module, Held) else Held(module)

    @classmethod
    def construct(cls, student: Student, *numbers) -> "ModuleProxy":
        """The student's class, called with these numbers."""
        return cls(student, student.raw(*numbers, where=f"made with {', '.join(map(str, numbers))}"))

    def call(self, method: str, *arguments, where: str = ""):
        """The plain result of a method, or of a submodule."""
        return self.each(method, [arguments], where)[0]

    def each(self, method: str, calls: list[tuple], where: str = "") -> list:
        """The results of many calls, one for each tuple of arguments; quicker than one at a time."""
        where = f"{method}, {where}" if where else method
        with self.student.running(where):
            results = self.held.each(method, [_generators(arguments) for arguments in calls])
        return [_plain(result, f"{self.student.task.name} ({where})") for result in results]

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, by name."""
        with self.student.running("state_dict"):
            return self.held.state()

    def load(self, state: dict[str, Tensor]) -> "ModuleProxy":
        """Set all parameters; the module takes their dtype. Refused when names or shapes differ."""
        own = {name: tuple(value.shape) for name, value in self.state().items()}
        new = {name: tuple(value.shape) for name, value in state.items()}
        for words, one, other in (("misses", new, own), ("has an unexpected", own, new)):
            if odd := [name for name in one if name not in other]:
                raise Wrong(f"{self.student.task.name}: the state_dict {words} {', '.join(odd)}.")
        if odd := [name for name in new if new[name] != own[name]]:
            shapes = "; ".join(f"{name} is {own[name]}, not {new[name]}" for name in odd)
            raise Wrong(f"{self.student.task.name}: parameters have another shape than asked: {shapes}.")
        with self.student.running("load_state_dict"):
            self.held.load(state)
        return self

    def training(self, mode: bool | None = None) -> bool:
        """Whether the module is in training mode; with an argument, after switching to it."""
        with self.student.running("train"):
            return self.held.training(mode)

    def parameter_gradients(self, method: str, *arguments) -> dict[str, Tensor | None]:
        """Gradients, by parameter, of a method's scalar result (of several: of their `weighted_sum`)."""
        with self.student.running(method):
            return self.held.parameter_gradients(method, _generators(arguments))


def _generators(arguments: tuple) -> tuple:
    return tuple(
        torch.Generator().manual_seed(argument.number) if isinstance(argument, Seed) else argument
        for argument in arguments
    )


# --------------------------------------------------------------------------- comparing


def same(got, want, rtol: float, atol: float) -> bool:
    """Whether two results have equal shapes and, within the tolerance, equal numbers."""
    if isinstance(want, tuple):
        return (
            isinstance(got, tuple | list)
            and len(got) == len(want)
            and all(same(one, other, rtol, atol) for one, other in zip(got, want))
        )
    if isinstance(got, tuple | list) or got is None or want is None:
        return False
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    return got.shape == want.shape and torch.allclose(got.to(f64), want.to(f64), rtol, atol, equal_nan=True)


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


def _tensors(result) -> list[Tensor]:
    return [
        part
        for part in (result if isinstance(result, tuple | list) else (result,))
        if isinstance(part, Tensor)
    ]


# --------------------------------------------------------------------------- naming the mistake

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
    for (clause, terms), (reduced, reduce), (scaled, scale) in product(formulas, reductions, scales):
        try:
            result = scale * reduce(terms)
        except (RuntimeError, IndexError):
            result = None
        yield tuple(words for words in (clause, reduced, scaled) if words), result


def diagnose(task: Task, student: Student, draw: Draw) -> str:
    """What to add about wrong values: the mistake that leads to the student's numbers, if one does."""
    probes = list((task.probes or task.cases)(draw))
    if not probes:  # the task's own tests name mistakes by themselves
        return ""
    try:
        calls = [_call(task.build(*prepared(case.arguments, f64)), case, f64) for case in [*probes, *probes]]
        results = [task.canonical(result) for result in student.each(calls)]
        outputs, again = results[: len(probes)], results[len(probes) :]
    except Wrong:
        return ""
    if not all(map(_repeats, again, outputs)):
        if any(isinstance(argument, Seed) for case in probes for argument in case.arguments):
            return " Two generators with the same seed give different results: draw from the generator only."
        return " Two calls with the same inputs give different results: nothing random is needed here."
    slips = [list(task.slips(*task.build(*prepared(c.arguments, f64)), **c.keywords)) for c in probes]
    if task.own:
        for case, found in zip(probes, slips):
            clause = ("one of your own functions that it calls is wrong",)
            found.insert(1, (clause, _composed(task, student, case)))
    right = [task.canonical(found[0][1]) for found in slips]
    return explain(outputs, slips, task.canonical) or _ratio(outputs, right)


def explain(outputs: list, slips: list, canonical: Callable = lambda result: result) -> str:
    """The mistake that leads to all of these results, for a student; "" when none does.

    outputs: one (canonical) result per probe.
    slips: for each probe the list of ``(clauses, result)``, in the same order; the right one has no clauses.
    """
    candidates = sorted(range(len(slips[0])), key=lambda index: len(_clauses(slips[0][index][0])))
    for index in candidates:
        if all(
            same(output, canonical(found[index][1]), rtol=1e-4, atol=1e-6)
            for output, found in zip(outputs, slips)
        ):
            clauses = _clauses(slips[0][index][0])
            if not clauses:
                wanted = [found[index][1] for found in slips]
                if any(isinstance(o, int | float) and isinstance(w, Tensor) for o, w in zip(outputs, wanted)):
                    return " A plain number carries no gradient: return the tensor, without .item()."
                return ELSEWHERE
            return f" These are the numbers that one gets when {'; '.join(clauses)}."
    return ""


def _repeats(one, other) -> bool:
    """Whether two results are equal, those of a wrong kind included."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_repeats, one, other))
    return (one is None and other is None) or same(one, other, 0, 0)


def _clauses(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return ((words,) if words else ()) if isinstance(words, str) else words


def _composed(task: Task, student: Student, case: Case):
    """What the student's own functions lead to; None if they fail."""
    try:
        own = [student.other(name) for name in task.own]
        return task.composed(own, *task.build(*prepared(case.arguments, f64)), **case.keywords)
    except Wrong:
        return None


def _ratio(outputs: list, right: list) -> str:
    """The last resort: a constant factor or a constant offset says much, and gives no value away."""
    if any(map(_refused_shape, outputs, right)):
        return ""
    try:
        got = torch.cat([part.reshape(-1).to(f64) for output in outputs for part in _tensors(output)])
        want = torch.cat([part.reshape(-1).to(f64) for output in right for part in _tensors(output)])
        ratio, offset = got / want, got - want
    except (RuntimeError, ValueError):  # ValueError: numbers, not tensors
        return ""
    if len(got) < 3 or not got.isfinite().all():
        return ""
    if torch.allclose(ratio, ratio[:1], rtol=1e-4, atol=0):
        return f" All your numbers are {float(ratio[0]):.4g} times the right ones."
    if torch.allclose(offset, offset[:1], rtol=1e-4, atol=1e-8):
        return f" All your numbers are off by the same {float(offset[0]):.4g}."
    return ""


# --------------------------------------------------------------------------- the tests


def _call(arguments: tuple, case: Case, dtype: torch.dtype) -> tuple[tuple, dict, str]:
    """A call for `Student.each`."""
    return arguments, case.keywords, f"{case.label}, {_name(dtype)}"


def _expected(task: Task, arguments: tuple, keywords: dict):
    arguments = (a.to(f64) if hasattr(a, "to") and not _integers(a) else a for a in arguments)
    return task.canonical(task.reference(*arguments, **keywords))


def _integers(argument) -> bool:
    return isinstance(argument, Tensor) and not argument.is_floating_point()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def values(task: Task, student: Student, draw: Draw) -> None:
    """Is the formula right? All cases in float64 and float32; shape and type; inputs unchanged."""
    looks = list(product(task.cases(draw), (f64, f32)))
    given = [task.build(*prepared(case.arguments, dtype)) for case, dtype in looks]
    before = [copies(arguments) for arguments in given]
    results = student.each([_call(a, case, dtype) for a, (case, dtype) in zip(given, looks)])
    for (case, dtype), arguments, then, got in zip(looks, given, before, results):
        where = f"{task.name} ({case.label}, {_name(dtype)})"
        student.refuse_changes(arguments, then, f"{case.label}, {_name(dtype)}")
        fresh = task.build(*prepared(case.arguments, dtype))  # generators as they were
        want = _expected(task, fresh, case.keywords)
        if _refused_shape(got, want):
            raise Wrong(
                f"{where}: {shape(got)} is returned, not {shape(want)}.{diagnose(task, student, draw)}"
            )
        if not same(task.canonical(got), want, rtol=1e-4, atol=1e-4):
            nan = "" if finite(got) else " Not all numbers are finite."
            raise Wrong(f"{where}: wrong.{nan}{diagnose(task, student, draw)}")
        for part in _tensors(got):
            if part.dtype != dtype and part.is_floating_point():
                raise Wrong(f"{where}: the result is {_name(part.dtype)}. Keep the type of the inputs.")


def _refused_shape(got, want) -> bool:
    if isinstance(want, tuple):
        return (
            not isinstance(got, tuple | list) or len(got) != len(want) or any(map(_refused_shape, got, want))
        )
    if isinstance(want, Tensor) and want.dim():
        return not isinstance(got, Tensor) or got.shape != want.shape
    return isinstance(got, tuple | list) or got is None or torch.as_tensor(got).dim() > 0


def _leaves(task: Task, case: Case, dtype: torch.dtype) -> tuple:
    arguments = prepared(case.arguments, dtype)
    for position in task.differentiate:
        arguments[position].requires_grad_()
    return arguments


def _slopes(task: Task, results: list, leaves: list[tuple]) -> list[list[Tensor | None]]:
    """Gradients of the `weighted_sum` of each result with respect to its own leaves, in one pass."""
    parts = [[part for part in _tensors(result) if part.requires_grad] for result in results]
    count = len(task.differentiate)
    wanted = [own[position] for _, own in zip(results, leaves) for position in task.differentiate]
    if not any(parts) or not wanted:
        return [[None] * count for _ in results]
    try:
        found = torch.autograd.grad([weighted_sum(p) for p in parts if p], wanted, allow_unused=True)
    except Exception as error:  # a tensor of the graph was changed in place, for example
        raise Wrong(f"{task.name}: the backward pass fails: {str(error).split(': [')[0][:200]}.") from None
    return [list(found[i : i + count]) for i in range(0, len(found), count)]


def gradients(task: Task, student: Student, draw: Draw) -> None:
    """Against the reference's gradients in both types, then against finite differences."""
    names = task.reference.__code__.co_varnames
    cases = list(task.cases(draw))
    looks = list(product(cases, (f64, f32)))
    leaves = [_leaves(task, case, dtype) for case, dtype in looks]
    right = [_leaves(task, case, f64) for case, _ in looks]
    with torch.no_grad():  # the very numbers that the student gets
        for one, other in zip(right, leaves):
            for position in task.differentiate:
                one[position].copy_(other[position])
    steps = _steps(task, cases[0], draw)
    calls = [_call(task.build(*a), case, dtype) for a, (case, dtype) in zip(leaves, looks)]
    calls += [_call(task.build(*a), cases[0], f64) for _, *both in steps for a in both]
    results = student.each(calls)
    answers = []
    for (case, dtype), own, exact, got in zip(looks, leaves, right, results):
        where = f"{task.name} ({case.label}, {_name(dtype)})"
        want = task.reference(*task.build(*exact), **case.keywords)
        if _refused_shape(got, want):
            raise Wrong(f"{where}: without {shape(want)} there is no gradient to check.")
        if any(own[position].grad is not None for position in task.differentiate):
            raise Wrong(
                f"{where}: .backward() is called inside, and leaves its slopes in the .grad of the "
                "parameters, where the optimiser takes them for the loss's. Use torch.autograd.grad."
            )
        answers.append((where, got, want))
    slopes = _slopes(task, [got for _, got, _ in answers], leaves)
    right_slopes = _slopes(task, [want for *_, want in answers], right)
    for (where, got, want), found, expected in zip(answers, slopes, right_slopes):
        for position, slope, right_slope in zip(task.differentiate, found, expected):
            if right_slope is None:
                continue
            if same(torch.zeros_like(right_slope) if slope is None else slope, right_slope, 1e-3, 1e-3):
                continue
            name = names[position]
            if not same(task.canonical(got), task.canonical(want), 1e-3, 1e-3):
                raise Wrong(
                    f"{where}: the gradient for {name} is wrong, and so are the values. Repair these first."
                )
            if slope is None:
                raise Wrong(
                    f"{where}: no gradient reaches {name}. The graph is cut, for example by .detach(), "
                    ".item(), .numpy(), torch.tensor(...) or torch.no_grad(), or by a derivative that is "
                    "taken without create_graph=True."
                )
            if right_slope.isfinite().all() and not slope.isfinite().all():
                raise Wrong(
                    f"{where}: the values are right, but the gradient for {name} is not finite. A root or "
                    "a norm has no slope at 0, and squaring it afterwards does not bring it back; nor have "
                    "the eigenvectors of equal eigenvalues (eigh, svd)."
                )
            raise Wrong(
                f"{where}: the values are right, but the gradient for {name} is not: a part of the graph is "
                "cut, for example by .detach(), .item(), .data, torch.no_grad() or a clamp of the inputs."
            )
    for slope, (direction, *_) in zip(slopes[0], steps):
        ahead, behind = (float(weighted_sum(_tensors(next(results)))) for _ in range(2))
        along = 0.0 if slope is None else float((slope * direction).sum())
        close = (
            1e-5 + 1e-3 * abs(along) + 1e-7 * abs(ahead)
        )  # the last digits of float64, divided by the step
        if not abs((ahead - behind) / (2 * STEP) - along) <= close:
            raise Wrong(
                f"{task.name}: finite differences do not agree with the gradient. Is float64 kept all the "
                "way?"
            )


def _steps(task: Task, case: Case, draw: Draw) -> list[tuple[Tensor, tuple, tuple]]:
    """For each argument to differentiate a random direction, and the arguments a small step along it, ahead
    and behind."""
    found = []
    for position in task.differentiate:
        direction = draw(*case.arguments[position].shape)
        direction = direction / direction.norm()
        both = [prepared(case.arguments, f64) for _ in range(2)]
        for arguments, sign in zip(both, (1, -1)):
            arguments[position].add_(sign * STEP * direction)
        found.append((direction, *both))
    return found


def stability(task: Task, student: Student, draw: Draw) -> None:
    """Ordinary inputs to the last digits, then extreme ones, with finite gradients."""
    ordinary = [
        (replace(case, label=f"{case.label}, to the last digits"), f64, 1e-9) for case in task.cases(draw)
    ]
    looks = [*ordinary, *task.extremes(draw)]
    leaves = [_leaves(task, case, dtype) for case, dtype, *_ in looks]
    calls = [_call(task.build(*a), case, dtype) for a, (case, dtype, *_) in zip(leaves, looks)]
    results, trouble = [], ""
    for (case, dtype, rtol, *atol), got in zip(looks, student.each(calls)):
        where = f"{task.name} ({case.label}, {_name(dtype)})"
        fresh = task.build(*_leaves(task, case, dtype))  # the student may have changed those above
        want = _expected(task, fresh, case.keywords)
        # From 20 on, torch's softplus is linear: 2e-9 off, and no mistake of the student's.
        if not same(task.canonical(got), want, rtol, *(atol or [10 * rtol])):
            trouble = f"{where}: not precise. If ordinary values are right: {task.hint}."
            break
        results.append(got)
    for (case, dtype, *_), slopes in zip(looks, _slopes(task, results, leaves)):
        if any(slope is None or not slope.isfinite().all() for slope in slopes):
            where = f"{task.name} ({case.label}, {_name(dtype)})"
            raise Wrong(f"{where}: the value is right, but its gradient is missing or not finite.")
    if trouble:
        raise Wrong(trouble)


# --------------------------------------------------------------------------- random results

# A right answer is refused when a standard normal number is beyond this: once in 500 million times.
LIMIT = 6.0


def z_score(results: Tensor, expected: float) -> float:
    """How many standard errors the mean of independent results (n,) lies from what it should be."""
    error = results.std() / math.sqrt(len(results))
    return float((results.mean() - expected) / error.clamp_min(1e-12 * max(1.0, abs(expected))))


def uses_generator(student: Student, call: Callable[[torch.Generator], Tensor]) -> None:
    """Raise `Wrong` unless `call` draws from the generator it is given, and from nothing else."""
    state = torch.random.get_rng_state()
    one, other, third = (call(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    if not torch.equal(state, torch.random.get_rng_state()):
        raise Wrong(f"{student.task.name} draws from torch's global state. Pass `generator=generator` on.")
    if not same(one, other, 0, 0):
        raise Wrong(f"{student.task.name}: two generators with the same seed give different results.")
    if same(one, third, 0, 0):
        raise Wrong(f"{student.task.name} does not draw from the generator: different seeds, equal results.")
    generator = torch.Generator().manual_seed(1)
    if same(call(generator), call(generator), 0, 0):
        raise Wrong(
            f"{student.task.name}: a second call with the same generator repeats the first. Draw from the "
            "generator itself, and do not set its seed."
        )
