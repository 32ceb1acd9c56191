"""The child of one submission at work, inside the sandbox: it runs cells, calls functions, differentiates.

It reads requests from its own socket: run this cell, call that function, give me a vector-Jacobian product.
The tests are not here; a child sees their inputs when it is called, and no more.
"""

import contextlib
import io
import re
import socket
import sys
import traceback

import torch

from aecourse.checks.bans import banned, settings_kept
from aecourse.checks.modules import Held
from aecourse.grading import wire

CELL = re.compile(r"<cell (\d+)>")
NOWHERE = (0, 0)


class Output(io.TextIOBase):
    """What a submission prints, up to a number of characters."""

    def __init__(self, most: int):
        self.most, self.left, self.pieces = most, most, []

    def write(self, text: str) -> int:
        if self.left > 0:
            self.pieces.append(text[: self.left])
        self.left -= len(text)
        return len(text)

    def writable(self) -> bool:
        return True

    def take(self) -> str:
        text = "".join(self.pieces) + (" … (and more)" if self.left < 0 else "")
        self.pieces, self.left = [], self.most
        return text


class Child:
    """Answers requests about one submission.

    A request is (action, arguments); an answer is ("ok", result, printed) or ("error", kind, words, place,
    printed), with the place (cell, line).
    Graphs of results and modules are kept under numbers until the trusted side says that they may go.
    """

    def __init__(self, shell):
        self.shell, self.graphs, self.modules, self.count, self.cells = shell, {}, {}, 0, 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def cell(self, source: str) -> tuple[tuple | None, dict[str, str]]:
        """Run a cell of the notebook; its error if there is one, as `_words`, and `names`."""
        self.cells += 1
        name = f"<cell {self.cells}>"  # by which `_place` knows it
        self.shell.compile.get_code_name = lambda *of: name
        done = self.shell.run_cell(source, store_history=False)
        error = done.error_before_exec or done.error_in_exec
        failure = None if error is None else (_words(error)[0], _last_line(error), _place(error))
        return failure, self.names()

    def names(self) -> dict[str, str]:
        """What the notebook has defined: for each name "callable" or "data"."""
        hidden = self.shell.user_ns_hidden
        return {
            str(name): "callable" if callable(thing) else "data"
            for name, thing in self.shell.user_ns.items()
            if not name.startswith("_") and hidden.get(name) is not thing and type(thing) is not type(sys)
        }

    def value(self, name: str):
        return self.shell.user_ns[name]

    def call(self, target: list, calls: list, forbidden: tuple, state) -> tuple:
        """Call a function by name, or a method of a module by number, once for each of ``calls``.

        target: [name] or [number, method]. calls: pairs of positional and keyword arguments. forbidden: the
        names of ready-made answers. state: of torch's global random numbers and gradient mode.
        Returns (result, effects on its arguments) of each call, the number of their graph, the random state
        if it is another, and (kind, words, place) of the error that ended them early.
        """
        random, differentiable = state
        if random is not None:
            torch.set_rng_state(random)
        before = torch.get_rng_state()
        with settings_kept(), torch.set_grad_enabled(differentiable), banned(forbidden):
            if len(target) == 1:
                function = self.shell.user_ns[target[0]]
            else:
                function = getattr(self.modules[target[0]].module, target[1])
            results, outputs, leaves, failure = [], [], [], None
            for arguments, keywords in calls:
                try:
                    results.append(self._call(function, arguments, keywords, outputs, leaves))
                except BaseException as error:  # SystemExit and KeyboardInterrupt of a student included
                    failure = _words(error)
                    break
        number = 0
        if outputs and leaves:
            number = self.number()
            self.graphs[number] = (outputs, leaves)
        after = torch.get_rng_state()
        return results, number, None if torch.equal(before, after) else after, failure

    def _call(self, function, arguments: tuple, keywords: dict, outputs: list, leaves: list) -> tuple:
        """One call: what crosses of its result, and of its effects. Its graph goes to outputs and leaves."""
        given = wire.tensors_of((arguments, keywords))
        before = [(tensor.detach().clone(), tensor.requires_grad) for tensor in given]
        leaf_of = [_leaf(tensor) for tensor in given]
        own = [leaf for leaf in leaf_of if leaf.requires_grad]
        result = function(*arguments, **keywords)
        each = (_effect(now, leaf.grad, *then) for now, leaf, then in zip(given, leaf_of, before))
        effects = {str(i): effect for i, effect in enumerate(each) if effect is not None}
        generators = [a for a in (*arguments, *keywords.values()) if type(a) is torch.Generator]
        if isinstance(result, torch.nn.Module):
            number = self.number()
            self.modules[number] = Held(result)
            result = {"module": number}
        elif not isinstance(result, wire.KNOWN):
            result = {"object": type(result).__name__[:80]}
        tensors = []
        try:  # what cannot cross is this call's error, not that of all
            wire.describe(result, tensors)
        except (AttributeError, RuntimeError, TypeError) as error:
            raise wire.WireError("something that cannot be read") from error
        leaves += own
        outputs += [tensor for tensor in tensors if tensor.requires_grad]
        return result, effects, generators

    def pull(self, number: int, gradients: list) -> list:
        """The vector-Jacobian product of a call: a gradient, or None, for each differentiable input."""
        outputs, leaves = self.graphs[number]
        pairs = [(output, slope) for output, slope in zip(outputs, gradients) if slope is not None]
        if not pairs:
            return [None] * len(leaves)
        outputs, slopes = zip(*pairs)
        return list(torch.autograd.grad(outputs, leaves, slopes, retain_graph=True, allow_unused=True))

    def module(self, number: int, operation: str, arguments: tuple, forbidden: tuple):
        """An operation of `Held` on a module."""
        with banned(forbidden):
            return getattr(self.modules[number], operation)(*arguments)

    def drop(self, numbers: list) -> None:
        for number in numbers:
            self.graphs.pop(number, None)
            self.modules.pop(number, None)


def serve(shell, channel: socket.socket, most_output: int) -> None:
    """Answer requests until the socket closes."""
    output, child = Output(most_output), Child(shell)
    while True:
        try:
            action, arguments, dropped = wire.receive(channel, graphs=True)
        except EOFError:
            return
        child.drop(dropped)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                answer = ("ok", getattr(child, action)(*arguments), output.take())
            except BaseException as error:
                answer = ("error", *_words(error), output.take())
        try:
            wire.send(channel, answer)
        except wire.WireError as error:
            wire.send(channel, ("error", *_words(error), ""))
        except (AttributeError, RuntimeError, TypeError, ValueError):  # nothing has been sent yet
            wire.send(channel, ("error", "Returned", "something that cannot be read", NOWHERE, ""))


def _last_line(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(error))[:2000]
    except BaseException:  # an error may be of a student's own kind
        return "an error that cannot be shown"


def _leaf(tensor):
    """The tensor itself, or the leaf that it is a copy of."""
    return tensor if tensor.is_leaf else tensor.grad_fn.next_functions[0][0].variable


def _effect(now, slope, then, required: bool) -> tuple | None:
    """What a call did to a tensor: its numbers, whether it requires gradients, its slope; or nothing."""
    changed = now.shape == then.shape and not torch.equal(now, then) and not (now != now).any()
    if slope is None and now.requires_grad == required and not changed:
        return None
    return now.detach(), now.requires_grad, slope


def _words(error: BaseException) -> tuple[str, str, tuple[int, int]]:
    """The kind, the words and the place of an error; "Returned" stands for a result that cannot cross."""
    try:
        kind = "Returned" if type(error) is wire.WireError else type(error).__name__[:80]
        return kind, str(error)[:600], _place(error)
    except BaseException:
        return "Exception", "an error that cannot be shown", NOWHERE


def _place(error: BaseException) -> tuple[int, int]:
    """Where an error left the notebook's own code: the numbers of the cell and of its line, from 1 on."""
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        lines.append((str(error.filename), error.lineno or 0))
    places = [(int(cell[1]), line) for name, line in lines if (cell := CELL.fullmatch(name))]
    return places[-1] if places else NOWHERE
