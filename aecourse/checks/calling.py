"""How a student's function is called, in whichever process it lives: on copies, which are looked at after it.

A call gets copies of all tensors, in memory that nobody else has, and as related to each other as what they
are copies of: one tensor given twice is one copy, what shares memory goes on sharing it, and what is a
function of another one remains it. What the call does to the copies is recorded in `Effects`; nothing is ever
done to what was given. Results are copies as well, with a graph of one node that leads to what was given.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aecourse.checks.parts import Part

PLAIN = (Tensor, torch.nn.Parameter)  # a subclass may answer any question as it likes
MOST_NUMBERS = 2**26  # of a result that is looked at


# --------------------------------------------------------------------------- trees of tensors


def tensors_of(tree) -> Iterator[Tensor]:
    """The tensors of arguments or results, in order."""
    if type(tree) in PLAIN:
        yield tree
        return
    if isinstance(tree, Part):
        tree = tree.tensors
    elif type(tree) is dict:
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return
    for item in tree:
        yield from tensors_of(item)


def given_in(arguments) -> list[Tensor]:
    """The tensors of arguments, each once. (A tensor's hash is its identity.)"""
    return list(dict.fromkeys(tensors_of(arguments)))


def exchanged(tree, other: Callable[[Tensor], Tensor]):
    """The tree with each of its tensors exchanged for another. Its lists, dictionaries and parts are new."""
    if type(tree) in PLAIN:
        return other(tree)
    if isinstance(tree, Part):
        return tree.of(*map(other, tree.tensors))
    if type(tree) in (tuple, list):
        return type(tree)(exchanged(item, other) for item in tree)
    if type(tree) is dict:
        return {key: exchanged(item, other) for key, item in tree.items()}
    return tree


# --------------------------------------------------------------------------- memory that tensors share


def extent(tensor: Tensor) -> int:
    """How many numbers there are from a tensor's first place in its memory to its last."""
    if tensor.is_contiguous():
        return tensor.numel()
    return 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride())) if tensor.numel() else 0


def places(tensor: Tensor) -> Tensor:
    """The places of a tensor's numbers in its memory."""
    numbers = torch.arange(extent(tensor)).as_strided(tensor.shape, tensor.stride())
    return numbers.flatten() + tensor.storage_offset()


def whole(tensor: Tensor) -> bool:
    """Whether it has all of its memory, which may be taken away from below it: reading it then is the end."""
    count = extent(tensor)
    return (
        not count or tensor.untyped_storage().nbytes() >= (tensor.storage_offset() + count) * tensor.itemsize
    )


def overlapping(tensors: list[Tensor]) -> list[list[int]]:
    """The numbers of those that have numbers in common, in groups."""
    memories: dict[tuple, list[int]] = {}
    for number, tensor in enumerate(tensors):
        if tensor.numel():
            key = tensor.untyped_storage().data_ptr(), tensor.dtype
            memories.setdefault(key, []).append(number)
    return [group for numbers in memories.values() if len(numbers) > 1 for group in _groups(tensors, numbers)]


def _groups(tensors: list[Tensor], numbers: list[int]) -> list[list[int]]:
    """Of tensors in one memory those that overlap."""
    where = {number: places(tensors[number]) for number in numbers}
    owner = torch.full((1 + max(int(w.max()) for w in where.values()),), -1)
    groups: dict[int, list[int]] = {}  # by the first of each
    group_of: dict[int, int] = {}
    for number in numbers:
        groups[number], group_of[number] = [number], number
        for other in owner[where[number]].unique().tolist():
            if other >= 0 and group_of[other] != group_of[number]:
                joined = groups.pop(group_of[number])
                groups[group_of[other]] += joined
                group_of.update(dict.fromkeys(joined, group_of[other]))
        owner[where[number]] = number
    return [sorted(group) for group in groups.values() if len(group) > 1]


def memory_of(tensors: list[Tensor]) -> tuple[Tensor, list[int]]:
    """New memory for tensors that overlap, with nothing else in it, and the place where each begins."""
    where = [places(tensor) for tensor in tensors]
    first, last = min(int(w.min()) for w in where), max(int(w.max()) for w in where)
    memory = torch.zeros(last - first + 1, dtype=tensors[0].dtype)
    for tensor, place in zip(tensors, where):
        memory[place - first] = tensor.detach().flatten()
    return memory, [tensor.storage_offset() - first for tensor in tensors]


def copied(tensors: list[Tensor]) -> list[Tensor]:
    """Copies without a graph, of which those overlap whose originals do."""
    copies = [tensor.detach().clone() for tensor in tensors]
    for group in overlapping(tensors):
        memory, starts = memory_of([tensors[number] for number in group])
        for number, start in zip(group, starts):
            copies[number] = memory.as_strided(tensors[number].shape, tensors[number].stride(), start)
    return copies


# --------------------------------------------------------------------------- functions of each other


class Graph:
    """Which of some tensors are functions of which others, as autograd has it.

    above: for a tensor's number those of the others that it is computed from, the nearest ones alone.
    """

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors
        inner = {t: n for n, t in enumerate(tensors) if t.requires_grad and not t.is_leaf}
        self.above: dict[int, list[int]] = {}
        if inner:
            ends = {(tensor.grad_fn, tensor.output_nr): number for tensor, number in inner.items()}
            leaves = {t: n for n, t in enumerate(tensors) if t.requires_grad and t.is_leaf}
            for tensor, number in inner.items():
                self.above[number] = sorted(_nearest(tensor.grad_fn, ends, leaves))

    def slopes(self, number: int, slope: Tensor) -> list[Tensor | None]:
        """The vector-Jacobian product of a tensor for each of those above it, the way through others of them
        left out."""
        above = [self.tensors[other] for other in self.above[number]]
        hooks = [
            tensor.grad_fn.register_prehook(_stop(tensor.output_nr)) for tensor in above if not tensor.is_leaf
        ]
        try:
            found = torch.autograd.grad(
                self.tensors[number], above, slope, retain_graph=True, allow_unused=True
            )
        finally:
            for hook in hooks:
                hook.remove()
        return list(found)


def _nearest(start, ends: dict, leaves: dict) -> set[int]:
    """The numbers of the tensors at which one arrives first on the ways up from a node."""
    found, seen, left = set(), set(), [start]
    while left:
        for node, output in left.pop().next_functions:
            leaf = getattr(node, "variable", None)
            if (node, output) in ends:
                found.add(ends[node, output])
            elif leaf is not None:
                found.update(number for number in (leaves.get(leaf),) if number is not None)
            elif node is not None and node not in seen:
                seen.add(node)
                left.append(node)
    return found


def _stop(output: int) -> Callable:
    """A hook that lets nothing through a node from one of its outputs."""
    return lambda slopes: tuple(None if n == output else slope for n, slope in enumerate(slopes))


# --------------------------------------------------------------------------- one call


class Effect(NamedTuple):
    """What a call did to a tensor that it was given.

    changed: it has other numbers, another shape or another type. required: it requires gradients and did not,
    or the other way round. slopes: a backward pass has left something in its .grad, or in that of tensors
    that it is a function of.
    """

    changed: bool = False
    required: bool = False
    slopes: bool = False


class Effects:
    """What calls did to tensors that they were given."""

    def __init__(self):
        self._of: dict[Tensor, Effect] = {}

    def add(self, tensor: Tensor, effect: Effect) -> None:
        before = self._of.get(tensor, Effect())
        self._of[tensor] = Effect(*map(max, before, effect))

    def changed(self, *given) -> bool:
        """Whether one of the tensors in these arguments has been changed in place."""
        return any(effect.changed for effect in self._on(given))

    def required(self, *given) -> bool:
        """Whether one of them requires gradients since then, or does not any more."""
        return any(effect.required for effect in self._on(given))

    def slopes(self, *given) -> bool:
        """Whether a backward pass has left slopes in one of them, or in what one is a function of."""
        return any(effect.slopes for effect in self._on(given))

    def _on(self, given: tuple) -> list[Effect]:
        return [self._of[tensor] for tensor in tensors_of(given) if tensor in self._of] if self._of else []


class Copies:
    """What a call is given in place of some tensors.

    sources: of the copies that require gradients, by number; of one that is no leaf the leaf behind it.
    slopes: as of a `Graph`; asked when the call itself differentiates one copy with respect to another.
    """

    def __init__(self, tensors: list[Tensor], above: dict[int, list[int]], slopes: Callable):
        self.tensors, self.above, self.slopes = tensors, above, slopes
        self.through = True  # whether a slope goes on from a copy to those above it
        self.sources: dict[int, Tensor] = {}
        self._new = copied(tensors)
        self._handed: dict[Tensor, Tensor] = {}
        with torch.enable_grad():
            for tensor, copy in zip(tensors, self._new):
                if tensor.requires_grad:
                    copy.requires_grad_()
            for number in range(len(tensors)):
                self._hand(number)

    def _hand(self, number: int) -> Tensor:
        tensor, copy = self.tensors[number], self._new[number]
        if tensor not in self._handed:
            if tensor.requires_grad:
                self.sources[number] = copy
                if not tensor.is_leaf:
                    above = [self._hand(other) for other in self.above.get(number, ())]
                    copy = _Between.apply(self, number, copy, *above) if above else copy.clone()
            self._handed[tensor] = copy
        return self._handed[tensor]

    def of(self, tree):
        """The arguments with the copies in them."""
        return exchanged(tree, self._handed.__getitem__)

    def effects(self) -> dict[int, Effect]:
        """What has been done to the copies, by number, as far as anything has."""
        found = {}
        for number, tensor in enumerate(self.tensors):
            now = self._handed[tensor]
            source = self.sources.get(number, now)
            changed = not _same_numbers(now, tensor)
            required = now.requires_grad != tensor.requires_grad
            slopes = source.is_leaf and source.grad is not None
            if changed or required or slopes:
                found[number] = Effect(changed, required, slopes)
        return found


def _same_numbers(now: Tensor, then: Tensor) -> bool:
    try:
        if now.shape != then.shape or now.dtype != then.dtype or not whole(now):
            return False
        return torch.equal(now, then) or bool(((now == then) | ((now != now) & (then != then))).all())
    except Exception:  # of a tensor that has been made into something odd
        return False


class _Between(torch.autograd.Function):
    """A copy of a tensor that is a function of others, with a backward that asks for the slopes."""

    @staticmethod
    def forward(context, copies, number, source, *above):
        context.copies, context.number, context.count = copies, number, len(above)
        return source.clone()

    @staticmethod
    @once_differentiable
    def backward(context, slope):
        copies, slopes = context.copies, [None] * context.count
        if copies.through:
            if copies.slopes is None:
                raise RuntimeError("an input of an earlier call is differentiated")
            slopes = copies.slopes(context.number, slope)
        return None, None, slope, *slopes


# --------------------------------------------------------------------------- many calls


class Calls:
    """Calls of a student's code, and what it takes to differentiate their results."""

    def __init__(self):
        self.copies: list[Copies] = []
        self.outputs: list[Tensor] = []

    def make(self, function: Callable, arguments: tuple, keywords: dict, copies: Copies):
        """The result of a call with these copies in its arguments, detached."""
        try:
            result = function(*copies.of(arguments), **copies.of(keywords))
        finally:
            copies.slopes = None
        outputs: list[Tensor] = []
        result = _kept(result, outputs)
        self.copies.append(copies)
        self.outputs += outputs
        return result

    @property
    def sources(self) -> list[Tensor]:
        return [source for copies in self.copies for _, source in sorted(copies.sources.items())]

    def pull(self, gradients: list) -> list:
        """The vector-Jacobian product of all results: a gradient, or None, for each of the sources."""
        pairs = [(output, slope) for output, slope in zip(self.outputs, gradients) if slope is not None]
        sources = self.sources
        if not pairs or not sources:
            return [None] * len(sources)
        outputs, slopes = zip(*pairs)
        for copies in self.copies:
            copies.through = False  # the originals have a graph of their own, which goes on from there
        try:
            return list(torch.autograd.grad(outputs, sources, slopes, retain_graph=True, allow_unused=True))
        finally:
            for copies in self.copies:
                copies.through = True


def _kept(tree, outputs: list[Tensor]):
    """The result with copies of its tensors, which a later call cannot change. Those that have a graph go to
    ``outputs``; their copies require gradients, too."""
    plain = type(tree) in PLAIN and tree.layout is torch.strided and not tree.is_nested
    if plain and tree.numel() <= MOST_NUMBERS:
        if not whole(tree):
            raise ValueError("the numbers of a result are no longer there: its storage was made smaller")
        copy = tree.detach().clone()
        if tree.requires_grad:
            outputs.append(tree)
            copy.requires_grad_()
        return copy
    if type(tree) in (tuple, list):
        return type(tree)(_kept(item, outputs) for item in tree)
    if type(tree) is dict:
        return {key: _kept(item, outputs) for key, item in tree.items()}
    if isinstance(tree, tuple):  # one with names, whose own methods play no part
        return tuple(_kept(item, outputs) for item in tuple.__iter__(tree))
    return tree


class _Results(torch.autograd.Function):
    """Results of calls, with a backward that asks for the slopes of what was given."""

    @staticmethod
    def forward(context, pull, outputs, *given):
        context.pull = pull
        context.set_materialize_grads(False)  # an output that is not used asks for nothing
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(context, *gradients):
        return None, None, *context.pull(list(gradients))


def connected(results: list, pull: Callable, given: list[Tensor]) -> list:
    """The results with a graph that leads to what was given.

    pull: gives for the gradients of those that require one a gradient, or None, for each of the given.
    """
    outputs = [tensor.detach() for tensor in tensors_of(results) if tensor.requires_grad]
    if not outputs:
        return results
    if given:
        made = iter(_Results.apply(pull, outputs, *given))
    else:  # a graph that leads to nothing here, as that of a student's own parameters
        nothing = torch.empty(0, requires_grad=True)
        made = iter(_Results.apply(lambda _: [None], outputs, nothing))
    return exchanged(results, lambda tensor: next(made) if tensor.requires_grad else tensor)


class Answers(NamedTuple):
    """The results of calls up to the first error, that error if there is one, and what the calls did."""

    results: list
    error: Exception | None
    effects: Effects


def call_here(function: Callable, calls: list[tuple[tuple, dict]]) -> Answers:
    """Call a function of this process with each pair of arguments and keywords."""
    made, results, effects, error = Calls(), [], Effects(), None
    for arguments, keywords in calls:
        graph = Graph(given_in((arguments, keywords)))
        copies = Copies(graph.tensors, graph.above, graph.slopes)
        try:
            results.append(made.make(function, arguments, keywords, copies))
        except Exception as raised:
            error = raised
            break
        for number, effect in copies.effects().items():
            effects.add(graph.tensors[number], effect)
    given = [tensor for copies in made.copies for tensor in copies.tensors if tensor.requires_grad]
    return Answers(connected(results, made.pull, given), error, effects)
