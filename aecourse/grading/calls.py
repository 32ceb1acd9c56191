"""The child of one submission at work, inside the sandbox: it runs cells, calls functions, differentiates.

It reads requests from its own socket: run this cell, call that function, give me a vector-Jacobian product.
The tests are not here; a child sees their inputs when it is called, and no more. It asks back in one case:
where what it has been given is a function of something else that it has been given, and it differentiates it.
"""

import contextlib
import functools
import io
import re
import socket
import sys
import traceback

import torch

from aecourse.checks.bans import banned, settings_kept, settled
from aecourse.checks.calling import Calls, Copies, given_in
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

    def __init__(self, shell, channel: socket.socket):
        self.shell, self.channel = shell, channel
        self.graphs, self.modules, self.count, self.cells = {}, {}, 0, 0

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

    def call(self, target: list, calls: list, forbidden: tuple, state, above: list | None) -> tuple:
        """Call a function by name, or a method of a module by number, once for each of ``calls``.

        target: [name] or [number, method]. calls: pairs of positional and keyword arguments. forbidden: the
        names of ready-made answers. state: of torch's global random numbers and gradient mode. above: for
        each call which of its tensors are functions of which, where any are: see `Graph`.
        Returns (result, effects on its tensors, generators) of each call, the number of their graph, whether
        torch's global random state has moved, and (kind, words, place) of the error that ended them early.
        """
        made, results, failure = Calls(), [], None
        with self._surroundings(forbidden, state) as moved:
            if len(target) == 1:
                function = self.shell.user_ns[target[0]]
            else:
                function = getattr(self.modules[target[0]].module, target[1])
            for number, (arguments, keywords) in enumerate(calls):
                mine = {int(n): others for n, others in above[number].items()} if above else {}
                try:
                    results.append(self._call(made, function, arguments, keywords, number, mine))
                except BaseException as error:  # SystemExit and KeyboardInterrupt of a student included
                    failure = _words(error)
                    break
        number = 0
        if made.outputs and made.sources:
            number = self.number()
            self.graphs[number] = made
        return results, number, moved(), failure

    def _call(
        self, made: Calls, function, arguments: tuple, keywords: dict, number: int, above: dict
    ) -> tuple:
        """One call: what crosses of its result, and of its effects."""
        copies = Copies(given_in((arguments, keywords)), above, functools.partial(self._slopes, number))
        result = made.make(function, arguments, keywords, copies)
        effects = {str(n): tuple(effect) for n, effect in copies.effects().items()}
        generators = [a for a in (*arguments, *keywords.values()) if type(a) is torch.Generator]
        if isinstance(result, torch.nn.Module):
            number = self.number()
            self.modules[number] = Held(result)
            result = {"module": number}
        elif not isinstance(result, wire.KNOWN):
            result = {"object": type(result).__name__[:80]}
        try:  # what cannot cross is this call's error, not that of all
            wire.describe(result, {})
        except (AttributeError, RuntimeError, TypeError) as error:
            raise wire.WireError("something that cannot be read") from error
        return result, effects, generators

    def _slopes(self, call: int, number: int, slope: torch.Tensor) -> list:
        """`Graph.slopes` of the present call's tensors, whose graph is on the other side."""
        wire.send(self.channel, ("slopes", call, number, slope))
        return wire.receive(self.channel, trusted=True)

    @contextlib.contextmanager
    def _surroundings(self, forbidden: tuple, state):
        """Those of a student's code; with a function that says whether the global random state has moved."""
        random, differentiable = state
        if random is not None:
            torch.set_rng_state(random)
        before = torch.get_rng_state()
        with settings_kept(), torch.set_grad_enabled(differentiable), banned(forbidden):
            yield lambda: not torch.equal(before, torch.get_rng_state())

    def pull(self, number: int, gradients: list) -> list:
        """The vector-Jacobian product of calls: a gradient, or None, for each differentiable input."""
        return self.graphs[number].pull(gradients)

    def module(self, number: int, operation: str, arguments: tuple, forbidden: tuple, state) -> tuple:
        """The result of an operation of `Held`, and whether torch's global random state has moved."""
        with self._surroundings(forbidden, state) as moved:
            result = getattr(self.modules[number], operation)(*arguments)
        return result, moved()

    def drop(self, numbers: list) -> None:
        for number in numbers:
            self.graphs.pop(number, None)
            self.modules.pop(number, None)


def serve(shell, channel: socket.socket, most_output: int) -> None:
    """Answer requests until the socket closes."""
    output, child = Output(most_output), Child(shell, channel)
    settled()
    while True:
        try:
            action, arguments, dropped = wire.receive(channel, trusted=True)
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
