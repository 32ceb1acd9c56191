"""Stand-ins for the functions, classes and modules of a student: called here, computed in the sandbox.

A stand-in sends its arguments over the wire and gives the results back as tensors of this process. Where the
student's result has a graph, the tensor here has one too, whose backward asks the sandbox for the
vector-Jacobian product; so a test that differentiates needs no change. What a call does to its arguments, to
its generators and to torch's global random state happens here as well.
"""

import weakref

import torch
from torch import Tensor

from aecourse.checks.bans import Refused
from aecourse.checks.core import Wrong
from aecourse.checks.modules import Held
from aecourse.checks.telling import Made
from aecourse.grading.session import Gone, Session, StudentError
from aecourse.grading.wire import BROKEN, plausible, tensors_of

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
        results, error = self.each([(arguments, keywords)])
        if error is not None:
            raise error
        return results[0]

    def each(self, calls: list[tuple]) -> tuple[list, Exception | None]:
        """The results for each pair of arguments and keywords, up to the first error; and that."""
        return call(self, self.target, calls)


class RemoteModule(Held):
    """A module of the student's, under its number in the sandbox."""

    def __init__(self, session: Session, number: int, forbidden: tuple[str, ...]):
        self.session, self.number, self.forbidden = session, number, forbidden
        weakref.finalize(self, session.dropped.append, number)

    def each(self, method: str, calls: list[tuple]) -> list:
        results, error = call(self, [self.number, method], [(arguments, {}) for arguments in calls])
        if error is not None:
            raise error
        return results

    def _ask(self, operation: str, *arguments):
        return _asked(self.session, "module", self.number, operation, arguments, self.forbidden)

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


def call(
    target_of: RemoteFunction | RemoteModule, target: list, calls: list[tuple]
) -> tuple[list, Exception | None]:
    """The results of calling a function, or a module's method, with each pair of arguments and keywords, up
    to the first error; and that."""
    session = target_of.session
    state = torch.get_rng_state()
    known = session.random is not None and torch.equal(state, session.random)
    surroundings = (None if known else state, torch.is_grad_enabled())
    answer = _asked(session, "call", target, list(calls), target_of.forbidden, surroundings)
    answers, graph, random, failure = _checked(session, answer, tuple, 4)
    session.random = state if random is None else random
    try:
        if random is not None:
            torch.set_rng_state(plausible(random))
        error = None if failure is None else _error(session.error(failure), target[-1])
        _checked(session, answers, list, len(calls) if error is None else min(len(answers), len(calls) - 1))
        leaves = [tensor for tensor in tensors_of(list(calls[: len(answers)])) if tensor.requires_grad]
        for parts, (arguments, keywords) in zip(answers, calls):
            _, effects, generators = _checked(session, parts, tuple, 3)
            _repeat(effects, generators, arguments, keywords)
    except BROKEN:
        raise _nonsense(session) from None
    results = [_stand_in(target_of, result) for result, _, _ in answers]
    outputs = [tensor.detach() for tensor in tensors_of(results) if tensor.requires_grad]
    if graph and leaves and outputs:
        outputs = _Remote.apply(session, graph, outputs, *leaves)
    return _replaced(results, iter(outputs)), error


def _asked(session: Session, action: str, *arguments):
    """`Session.ask`, with the student's errors raised under their own names."""
    try:
        return session.ask(action, *arguments)
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


def _repeat(effects: dict, generators: list, arguments: tuple, keywords: dict) -> None:
    """What a call in the sandbox did to its arguments, done to those here.

    Raises:
        Exception: one of `BROKEN`: these are no effects on such arguments.
    """
    given = tensors_of((arguments, keywords)) if effects else []
    with torch.no_grad():
        for index, (now, required, slope) in effects.items():
            mine = given[int(index)]
            if not torch.equal(mine, now):
                mine.data.copy_(now)
            if mine.is_leaf and mine.is_floating_point():
                mine.requires_grad_(required is True)
            if slope is not None:  # a backward pass there went on to what this comes from
                mine.backward(slope.detach(), retain_graph=True)
    ours = [a for a in (*arguments, *keywords.values()) if type(a) is torch.Generator]
    for mine, theirs in zip(ours, generators, strict=True):
        mine.set_state(theirs.get_state())


def _stand_in(target_of: RemoteFunction | RemoteModule, result):
    """For a module in the sandbox its stand-in, for another object one that has its type's name and no more;
    otherwise the result."""
    kind, content = next(iter(result.items())) if type(result) is dict and len(result) == 1 else ("", None)
    if kind == "module" and type(content) is int:
        return RemoteModule(target_of.session, content, target_of.forbidden)
    if kind == "object" and type(content) is str and content.isidentifier():
        return type(content, (), {})()
    return result


class _Graph:
    """The number of a graph in the sandbox, which is dropped there when this is gone."""

    def __init__(self, session: Session, number: int):
        self.number = number
        weakref.finalize(self, session.dropped.append, number)


class _Remote(torch.autograd.Function):
    """Results of the sandbox, with a backward that asks it."""

    @staticmethod
    def forward(context, session, number, outputs, *leaves):
        context.session, context.graph = session, _Graph(session, number)
        context.shapes = [leaf.shape for leaf in leaves]
        context.set_materialize_grads(False)  # an output that is not used asks for nothing
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, *gradients):
        gradients = [None if g is None else g.contiguous() for g in gradients]
        slopes = _asked(context.session, "pull", context.graph.number, gradients)
        if type(slopes) is not list or len(slopes) != len(context.shapes):
            raise _nonsense(context.session)
        for slope, shape in zip(slopes, context.shapes):
            if slope is not None and (not isinstance(slope, Tensor) or slope.shape != shape):
                raise _nonsense(context.session)
        return None, None, None, *slopes


def _replaced(tree, tensors):
    """The tree with those of its tensors that require gradients replaced, in order."""
    if isinstance(tree, Tensor):
        return next(tensors) if tree.requires_grad else tree
    if isinstance(tree, tuple | list):
        return type(tree)(_replaced(item, tensors) for item in tree)
    return tree
