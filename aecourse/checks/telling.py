"""What a message may say of a student's code.

A visible check says everything. What a function does in a hidden test, its errors and results, could be made
of the hidden inputs, so there nothing is told that the function has chosen, but for the line where an error
left the student's own cell: a number, and a text that was handed in before any input was seen.
"""

import builtins
import contextlib
import linecache
import os
import re
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from aecourse.checks.bans import LIBRARY, REFUSED

_hiding: ContextVar[bool] = ContextVar("hiding", default=False)


@contextlib.contextmanager
def hiding(yes: bool = True) -> Iterator[None]:
    """While this lasts messages hold nothing that a student's code has chosen: no words and kind of an error,
    no type and shape of a result, no name of a parameter."""
    before = _hiding.set(yes or _hiding.get())
    try:
        yield
    finally:
        _hiding.reset(before)


def hidden() -> bool:
    """Whether messages are to hold nothing that a student's code has chosen."""
    return _hiding.get()


# What is said instead.
SOMETHING, AN_ERROR = "something else", "raised an error"


def withheld(message: str) -> bool:
    """Whether a message would say more where nothing is hidden."""
    return SOMETHING in message or AN_ERROR in message


class Made(str):
    """Words for what a student's code has made. They compare as they are; a hidden test says others."""

    def __format__(self, specification: str) -> str:
        return SOMETHING if hidden() else super().__format__(specification)


MOST_LINES = 200  # of a cell; the number of a line of a longer one could tell much


@dataclass(frozen=True)
class Place:
    """Where an error left the notebook's own code: the number of the line in its cell, its text, and the
    shapes of the tensors that it names, where these are known."""

    line: int
    text: str
    shapes: str = ""

    @classmethod
    def of(cls, line: int, source: str) -> "Place | None":
        """The place of a line of a cell; nothing where there is no such line, or there are too many."""
        lines = source.splitlines()
        if not 0 < line <= len(lines) <= MOST_LINES or not (text := lines[line - 1].strip()):
            return None
        return cls(line, text if len(text) <= 80 else f"{text[:80]} …")

    def __str__(self) -> str:
        return f"in line {self.line} of its cell, at `{self.text}`"


def place_of(error: Exception) -> Place | None:
    """The place of an error: what a stand-in was told, or the last line of a cell on the error's way here."""
    place = getattr(error, "place", None)
    if isinstance(place, Place):
        return place
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if (lines := linecache.getlines(name)) and not os.path.exists(name):  # a cell is no file
            place = Place.of(line, "".join(lines))
            if place is not None and (shapes := _shapes(place.text, frame.f_locals)):
                place = Place(place.line, place.text, shapes)
    return place


def _shapes(text: str, names: dict) -> str:
    """The shapes of the tensors that a line names."""
    there = [name for name in dict.fromkeys(re.findall(r"[^\W\d]\w*", text)) if name in names]
    sizes = [f"{n} is {tuple(names[n].shape)}" for n in there if isinstance(names[n], Tensor)]
    return ", ".join(sizes[:5])


# {what has happened: what Python or torch say then}. A hidden test tells the one, and not the other.
CAUSES = {
    "it does not take what it is called with": r"positional argument|unexpected keyword|required argument",
    "a number is divided by zero": r"division by zero",
    "a dimension or an entry is not there": r"Dimension out of range|too many indices|index .*out of",
    "the shapes of two tensors do not fit": r"must match the|cannot be multiplied|size mismatch|equal size",
    "a tensor cannot have this shape": r"is invalid for input|inconsistent tensor",
    "a gradient is asked for what the result does not depend on": r"used in the graph",
    "a gradient is asked of what has no graph": r"does not require grad|have a grad_fn",
    "a tensor with a graph is taken out of torch": r"requires grad",
    "an optimiser is given what is computed from other tensors": r"non-leaf",
    "a tensor that a gradient needs is changed in place": r"inplace|in-place",
    "a tensor of several numbers is asked whether it is true": r"ambiguous",
    "a tensor of several numbers is taken for one": r"a Tensor with|converted to Scalar|one element",
    "something is not what it is taken for": r"has no attribute|not callable|not subscriptable|__init__",
    "a name is used before it has a value": r"is not defined|referenced before|not associated",
    "a distribution cannot have such a parameter": r"satisfy the constraint",
    "two types of numbers meet": r"same dtype|expected scalar type|must have the same",
    "it calls itself without end": r"recursion",
    "memory runs out": r"memory",
}


def cause_of(error: Exception) -> str:
    """What has led to an error, if it is one of `CAUSES`; with a space in front."""
    words = first_line(error)
    return next((f" ({cause})" for cause, pattern in CAUSES.items() if re.search(pattern, words)), "")


def raised(error: Exception) -> dict[str, str]:
    """The words of a `Wrong` for an error of a student's code, and the brief for a report."""
    kind, place, cause = type(error).__name__, place_of(error), cause_of(error)
    brief = f"raised {known_kind(error) or 'an error'}{cause}"
    if hidden():
        return {"words": f"{AN_ERROR}{cause}{f' {place}' if place else ''}.", "brief": brief}
    where = f", {place}" if place else ""
    shapes = f", where {place.shapes}" if place and place.shapes else ""
    return {"words": f"raised {kind}: {first_line(error)}{where}{shapes}", "brief": brief}


def known_kind(error: Exception) -> str:
    """The name of its type if that is one of Python's own; a student's could be any words."""
    kind = type(error).__name__
    return kind if hasattr(builtins, kind) else ""


def refusal(error: Exception, forbidden: tuple[str, ...]) -> str:
    """What to say when a ready-made answer has refused: its name, if it is one of those that do."""
    names = (*(f"aecourse.{module}" for module in LIBRARY), *forbidden)
    known = (name for name in names if str(error) == f"{name} {REFUSED}")
    return f"{next(known, 'The library')} {REFUSED}"


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
