"""A conversation with the process of one submission, which may die, be late or talk nonsense."""

import socket
import time
from collections.abc import Callable

from aecourse.checks.telling import Place
from aecourse.grading import wire
from aecourse.grading.sandbox import Limits


class Gone(BaseException):
    """The submission's process is gone or does not answer; ``reason`` is "time", "crash" or "nonsense".

    No subclass of Exception: the tests turn those into sentences about the function, and this ends the test.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class StudentError(Exception):
    """An error that the student's code raised: its type's name, its words, and where, if that is known."""

    def __init__(self, kind: str, words: str, place: Place | None):
        super().__init__(words)
        self.kind, self.place = kind, place


class Session:
    """A conversation with the child of one submission."""

    def __init__(self, channel: socket.socket, deadline: float, limits: Limits):
        self.channel, self.deadline, self.limits = channel, deadline, limits
        self.until = deadline
        self.gone = ""
        self.printed: list[str] = []
        self.dropped: list[int] = []  # graphs and modules that nothing here refers to any more
        self.cells: list[str] = []  # the source of all that have been run
        self.random = None  # torch's global random state, as the child knows it
        self.signal = ""

    def begin(self) -> None:
        """Start the clock of a cell or a test."""
        self.until = min(self.deadline, time.monotonic() + self.limits.request_seconds)

    def ask(self, action: str, *arguments, slopes: Callable | None = None):
        """The answer's result.

        slopes: answers what the child asks back, where it may.

        Raises:
            StudentError: the student's code raised.
            Gone: the child is dead, late or talks nonsense; every later call raises it too.
        """
        if self.gone:
            raise Gone(self.gone)
        dropped = self.dropped[:]  # finalizers append to the list at any time
        del self.dropped[: len(dropped)]
        try:
            left = self.until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.channel.settimeout(left)
            wire.send(self.channel, (action, arguments, dropped), placed=True)
            answer = wire.receive(self.channel, self.until)
            while slopes is not None and type(answer) is tuple and answer[:1] == ("slopes",):
                wire.send(self.channel, slopes(*answer[1:]))
                answer = wire.receive(self.channel, self.until)
        except TimeoutError:
            self.gone = "time"
        except (OSError, EOFError):
            self.gone = "crash"
        except wire.WireError:
            self.gone = "nonsense"
        if self.gone:
            raise Gone(self.gone)
        if type(answer) is tuple and len(answer) == 3 and answer[0] == "ok" and type(answer[2]) is str:
            self._keep(answer[2])
            return answer[1]
        if type(answer) is tuple and len(answer) == 5 and type(answer[4]) is str:
            self._keep(answer[4])
            raise self.error(answer[1:4])
        self.gone = "nonsense"
        raise Gone(self.gone)

    def error(self, parts) -> StudentError:
        """The error of which these are kind, words and place.

        Raises:
            Gone: they are not.
        """
        kinds = [type(part) for part in parts] if type(parts) is tuple else []
        if kinds != [str, str, tuple] or [type(number) for number in parts[2]] != [int, int]:
            self.gone = "nonsense"
            raise Gone(self.gone)
        kind, words, (cell, line) = parts
        place = Place.of(line, self.cells[cell - 1]) if 0 < cell <= len(self.cells) else None
        return StudentError(kind[:80], words[:600], place)

    def _keep(self, printed: str) -> None:
        """As much of it as the limits allow; the child may have forgotten them."""
        left = self.limits.output + 20 - sum(map(len, self.printed))
        if printed and left > 0:
            self.printed.append(printed[:left])

    def take_printed(self) -> str:
        text, self.printed = "".join(self.printed), []
        return text
