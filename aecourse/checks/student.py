"""A student's function, class or module, called safely: every failure of a call becomes a `Wrong`."""

import contextlib
import io
import re
import types
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from aecourse.checks.bans import Refused, banned, settings_kept
from aecourse.checks.core import UNWRITTEN, Seed, Task, Wrong, find, same, undefined
from aecourse.checks.modules import Held


class Student:
    """A student's function, to be called safely.

    A call converts the case's tensors, keeps warnings (which nbgrader takes for failures) and, when quiet,
    prints to itself, refuses ready-made answers, and turns every error into `Wrong`.
    """

    def __init__(self, task: Task, namespace: dict, quiet: bool = True):
        self.task, self.namespace, self.quiet = task, namespace, quiet
        self.function = namespace.get(task.name)
        if not callable(self.function):
            raise undefined(task.name, self.function)

    def __call__(self, *arguments, where: str = "", **keywords):
        """The result: a plain tensor, a number, or a tuple or list of these."""
        if self.quiet:
            return self.plain(self.raw(*arguments, where=where, **keywords), where)
        before = copies(arguments)  # in a visible check; the hidden test of the values looks for itself
        result = self.plain(self.raw(*arguments, where=where, **keywords), where)
        self.refuse_changes(arguments, before, where)
        return result

    def each(self, calls: list[tuple[tuple, dict, str]]) -> Iterator:
        """The results of many calls, for (arguments, keywords, where) of each, or the error at its turn.

        All are called at once, as the surroundings of a call may cost more than itself, and so does the way
        to a function that lives in another process.
        """
        if not self.quiet:  # each call is looked at by itself
            for arguments, keywords, where in calls:
                yield self(*arguments, where=where, **keywords)
            return
        each = getattr(self.function, "each", None) if getattr(self.function, "elsewhere", False) else None
        with self.running():
            results, error = (each or self._each)([(given, keywords) for given, keywords, _ in calls])
        for result, (_, _, where) in zip(results, calls):
            yield self.plain(result, where)
        if error is not None:
            with self.running(calls[len(results)][2]):
                raise error

    def _each(self, calls: list[tuple[tuple, dict]]) -> tuple[list, Exception | None]:
        """The results of (arguments, keywords), and the error that ended them early."""
        results = []
        for arguments, keywords in calls:
            try:
                results.append(self.function(*arguments, **keywords))
            except Exception as error:
                return results, error
        return results, None

    def refuse_changes(self, arguments: tuple, before: tuple, where: str) -> None:
        """Raise `Wrong` if a call has changed its arguments."""
        for now, then in zip(arguments, before):
            if isinstance(now, Tensor) and not torch.equal(now, then):
                raise self.wrong("an input is changed in place. Leave the inputs as they are.", where)

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
            name = _raised_in(error, self.task.name)
            raise Wrong("is still to be written.", function=name, joint=" ", reason=UNWRITTEN) from None
        except Refused as error:
            raise self.wrong(_first_line(error)) from None
        except Exception as error:
            words = f"raised {type(error).__name__}: {_first_line(error)}"
            brief = re.sub(r"-?\d[\d.]*", "…", words)  # one mistake raises with many sizes
            raise self.wrong(words, where, joint=" ", brief=brief) from None

    def wrong(self, words: str, case: str = "", **others) -> Wrong:
        """A `Wrong` about this function, which may be another than the one that is tested."""
        return Wrong(words, case=case, function=self.task.name, **others)

    def plain(self, result, where: str = ""):
        """The result itself if it is made of plain real tensors, numbers, tuples and lists.

        A subclass of Tensor may answer any question as it likes, so none is accepted.
        """
        if type(result) in (Tensor, torch.nn.Parameter) and result.is_complex():
            raise self.wrong(
                "complex numbers are returned. A symmetric matrix has real eigenvalues: "
                "torch.linalg.eigh is made for these, torch.linalg.eig for any.",
                where,
            )
        if type(result) in (Tensor, torch.nn.Parameter, int, float, bool, types.NoneType):
            return result
        if type(result) in (tuple, list):
            return type(result)(self.plain(part, where) for part in result)
        if isinstance(result, tuple):  # a named tuple; its own methods are not trusted
            return tuple(self.plain(part, where) for part in tuple.__iter__(result))
        words = f"a {type(result).__name__} is returned, not a tensor (or a tuple of tensors)."
        raise self.wrong(words, where)

    def fellow(self, name: str) -> "Student":
        """Another function of the same notebook, under the same rules."""
        return Student(find(name), self.namespace, self.quiet)


@contextlib.contextmanager
def _surroundings(quiet: bool) -> Iterator[None]:
    with settings_kept(), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        if quiet:  # hidden inputs are not for printing
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _raised_in(error: Exception, default: str) -> str:
    """The function of a task that raised; it may be another one, which the student's function calls."""
    step = error.__traceback__
    while step.tb_next:
        step = step.tb_next
    name = step.tb_frame.f_code.co_name
    with contextlib.suppress(ValueError):
        return find(name).name
    return default


def copies(arguments: tuple) -> tuple:
    """The arguments, with copies of the tensors."""
    return tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in arguments)


class ModuleProxy:
    """A student's ``torch.nn.Module``, handled by name only: methods are called with plain arguments, and
    parameters are read and set as plain tensors. So the module itself may live in another process.

    ``student`` is the class, or the function that made the module. Arguments are tensors, numbers, `Seed`s.
    """

    def __init__(self, student: Student, module):
        if not isinstance(module, torch.nn.Module | Held):
            raise student.wrong(
                f"a {type(module).__name__} is made, not a module. Derive the class from torch.nn.Module."
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
        return [self.student.plain(result, where) for result in results]

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, by name."""
        with self.student.running("state_dict"):
            return self.held.state()

    def load(self, state: dict[str, Tensor]) -> "ModuleProxy":
        """Set all parameters; the module takes their dtype. Refused when names or shapes differ."""
        sizes = {name: tuple(value.shape) for name, value in state.items()}
        if why := self.misnamed(sizes):
            raise self.student.wrong(f"{why}.")
        with self.student.running("load_state_dict"):
            self.held.load(state)
        return self

    def misnamed(self, sizes: dict[str, tuple], state: dict[str, Tensor] | None = None) -> str:
        """Why the parameters are not those of these names and shapes; "" when they are.

        state: the parameters, where they have been asked for before."""
        own = {name: tuple(value.shape) for name, value in (state or self.state()).items()}
        if missing := [name for name in sizes if name not in own]:
            return f"the state_dict misses {', '.join(missing)}"
        if odd := [name for name in own if name not in sizes]:
            return f"the state_dict has an unexpected {', '.join(odd)}"
        misshapen = [
            f"{name} is {own[name]}, not {size}" for name, size in sizes.items() if own[name] != size
        ]
        return f"parameters have another shape than asked: {'; '.join(misshapen)}" if misshapen else ""

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


def uses_generator(student: Student, call: Callable[[torch.Generator], Tensor]) -> None:
    """Raise `Wrong` unless `call` draws from the generator it is given, and from nothing else."""
    state = torch.random.get_rng_state()
    first, again, otherwise = (call(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    if not torch.equal(state, torch.random.get_rng_state()):
        raise student.wrong("draws from torch's global state. Pass `generator=generator` on.", joint=" ")
    if not same(first, again, 0, 0):
        raise student.wrong("two generators with the same seed give different results.")
    if same(first, otherwise, 0, 0):
        raise student.wrong("does not draw from the generator: different seeds, equal results.", joint=" ")
    generator = torch.Generator().manual_seed(1)
    if same(call(generator), call(generator), 0, 0):
        raise student.wrong(
            "a second call with the same generator repeats the first. Draw from the generator itself, and do "
            "not set its seed."
        )
