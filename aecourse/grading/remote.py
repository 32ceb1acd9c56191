"""Stand-ins for the functions, classes and modules of a student: called here, computed in the sandbox.

A stand-in sends its arguments over the wire and gives the results back as tensors of this process. Where the
student's result has a graph, the tensor here has one too, whose backward asks the sandbox for the
vector-Jacobian product; so a test that differentiates needs no change. What a call does to its arguments is
told and not repeated here: only its generators, which are made for it, are advanced.
"""

import functools
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from aecourse.checks.bans import Refused
from aecourse.checks.calling import Answers, Effect, Effects, Graph, connected, given_in
from aecourse.checks.core import Wrong
from aecourse.checks.modules import Held
from aecourse.checks.telling import Made
from aecourse.grading.session import Gone, Session, StudentError
from aecourse.grading.wire import BROKEN, NONE, WireError

# What may be said in a hidden test, too, of a result that cannot cross.
UNREADABLE = ("too much data", "an integer is too large", "something that cannot be read")


class RemoteFunction:
    """A function or a class of the student's notebook.

    forbidden: dotted names of ready-made answers that refuse while it runs.
    """

    elsewhere = True  # the sandbox bans for itself

    def __init__(self, session: Session, name: str, forbidden: tuple[str, ...] = ()):
        self.session, self.forbidden, self.target = session, forbidden, [name]
        self.__name__ = name

    def __call__(self, *arguments, **keywords):
        results, error, _ = self.each([(arguments, keywords)])
        if error is not None:
            raise error
        return results[0]

    def each(self, calls: list[tuple[tuple, dict]]) -> Answers:
        """The results for each pair of arguments and keywords."""
        return call(self, self.target, calls)


class RemoteModule(Held):
    """A module of the student's, under its number in the sandbox."""

    def __init__(self, session: Session, number: int, forbidden: tuple[str, ...]):
        self.session, self.number, self.forbidden = session, number, forbidden
        weakref.finalize(self, session.dropped.append, number)

    def each(self, method: str, calls: list[tuple[tuple, dict]]) -> Answers:
        return call(self, [self.number, method], calls)

    def _ask(self, operation: str, *arguments):
        session, state = self.session, _state(self.session)
        answer = _asked(session, "module", self.number, operation, arguments, self.forbidden, state)
        result, moved = _checked(session, answer, tuple, 2)
        _notice(session, moved)
        return result

    def state(self) -> dict[str, Tensor]:
        state = self._ask("state")
        if type(state) is not dict or not all(isinstance(value, Tensor) for value in state.values()):
            raise RuntimeError("state_dict holds something else than tensors")
        return {name: value.detach() for name, value in state.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        self._ask("load", state)

    def training(self, mode: bool | None = None) -> bool:
        return self._ask("training", mode) is True

    def parameter_gradients(self, method: str, arguments: tuple) -> dict[str, Tensor | None]:
        slopes = self._ask("parameter_gradients", method, arguments)
        if type(slopes) is not dict or not all(v is None or isinstance(v, Tensor) for v in slopes.values()):
            raise RuntimeError("the gradients are no tensors")
        return slopes


def call(target_of: RemoteFunction | RemoteModule, target: list, calls: list[tuple[tuple, dict]]) -> Answers:
    """The results of calling a function, or a module's method, with each pair of arguments and keywords."""
    session, effects = target_of.session, Effects()
    graphs = [Graph(given_in(each)) for each in calls]
    above = [{str(n): others for n, others in graph.above.items()} for graph in graphs]
    answer = _asked(
        session,
        *("call", target, list(calls), target_of.forbidden, _state(session), above if any(above) else None),
        slopes=functools.partial(_slopes, graphs),
    )
    answers, number, moved, failure = _checked(session, answer, tuple, 4)
    _notice(session, moved)
    try:
        error = None if failure is None else _error(session.error(failure), target[-1])
        _checked(session, answers, list, len(calls) if error is None else min(len(answers), len(calls) - 1))
        for parts, each, graph in zip(answers, calls, graphs):
            _, done, generators = _checked(session, parts, tuple, 3)
            for place, effect in done.items():
                effects.add(graph.tensors[int(place)], Effect(*(mark is True for mark in effect)))
            _advance(each, generators)
    except BROKEN:
        raise _nonsense(session) from None
    results = [_stand_in(target_of, result) for result, _, _ in answers]
    given = [t for graph in graphs[: len(answers)] for t in graph.tensors if t.requires_grad]
    return Answers(connected(results, _Pull(session, number, given), given), error, effects)


def _state(session: Session) -> tuple:
    """What a student's code finds of torch's global state: random numbers, unless they are as the child left
    them, and whether there are to be gradients."""
    state = torch.get_rng_state()
    known = session.random is not None and torch.equal(state, session.random)
    session.random = state
    return None if known else state, torch.is_grad_enabled()


def _notice(session: Session, moved) -> None:
    """When the child has drawn from its global random state, one number is drawn from the one here: it moves,
    for all who look at it, and is still none that a student has chosen."""
    if moved is True:
        torch.rand(())
        session.random = torch.get_rng_state()


def _slopes(graphs: list[Graph], *question) -> list[Tensor | None]:
    """What the child asks back in the middle of a call: `Graph.slopes` of a tensor that it has been given.

    question: the number of the call among those that were sent, and the arguments.

    Raises:
        WireError: it has been given none of the kind.
    """
    try:
        call, number, slope = question
        graph = graphs[call]
        tensor = graph.tensors[number]
        if number in graph.above and slope.shape == tensor.shape and slope.dtype == tensor.dtype:
            return graph.slopes(number, slope.detach())
    except BROKEN:
        pass
    raise WireError(NONE)


def _advance(arguments: tuple, generators: list) -> None:
    """The generators of a call, as the call in the sandbox has left them.

    Raises:
        Exception: one of `BROKEN`: these are no generators, or not as many.
    """
    positional, keywords = arguments
    ours = [a for a in (*positional, *keywords.values()) if type(a) is torch.Generator]
    for mine, theirs in zip(ours, generators, strict=True):
        mine.set_state(theirs.get_state())


def _asked(session: Session, action: str, *arguments, slopes: Callable | None = None):
    """`Session.ask`, with the student's errors raised under their own names."""
    try:
        return session.ask(action, *arguments, slopes=slopes)
    except StudentError as error:
        raise _error(error, action) from None


def _error(error: StudentError, who: str | int) -> Exception:
    """The student's error under its own name; a `Wrong` where what is returned cannot cross."""
    words = str(error)
    if error.kind == "Returned":
        what = words if words in UNREADABLE else Made(words)
        words = f"{what} is returned, not a tensor (or a tuple of tensors)."
        return Wrong(words, function=str(who), brief="what is returned is no tensor.")
    name = error.kind if error.kind.isidentifier() else "Error"
    known = {"NotImplementedError": NotImplementedError, "Refused": Refused}
    raised = (known.get(name) or type(name, (Exception,), {}))(words)
    raised.place = error.place
    return raised


def _checked(session: Session, answer, kind: type, length: int):
    if type(answer) is not kind or len(answer) != length:
        raise _nonsense(session)
    return answer


def _nonsense(session: Session) -> Gone:
    session.gone = "nonsense"
    return Gone("nonsense")


def _stand_in(target_of: RemoteFunction | RemoteModule, result):
    """For a module in the sandbox its stand-in, for another object one that has its type's name and no more;
    otherwise the result."""
    kind, content = next(iter(result.items())) if type(result) is dict and len(result) == 1 else ("", None)
    if kind == "module" and type(content) is int:
        return RemoteModule(target_of.session, content, target_of.forbidden)
    if kind == "object" and type(content) is str and content.isidentifier():
        return type(content, (), {})()
    return result


class _Pull:
    """The backward of results whose graph has this number in the sandbox, where it goes when this is gone."""

    def __init__(self, session: Session, number: int, given: list[Tensor]):
        self.session, self.number, self.shapes = session, number, [tensor.shape for tensor in given]
        weakref.finalize(self, session.dropped.append, number)

    def __call__(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        if not self.number:  # nothing that was given has a part in it
            return [None] * len(self.shapes)
        gradients = [None if g is None else g.contiguous() for g in gradients]
        slopes = _asked(self.session, "pull", self.number, gradients)
        _checked(self.session, slopes, list, len(self.shapes))
        for slope, shape in zip(slopes, self.shapes):
            if slope is not None and (not isinstance(slope, Tensor) or slope.shape != shape):
                raise _nonsense(self.session)
        return slopes
