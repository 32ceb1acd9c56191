"""While a student's function is tested ready-made answers refuse; then torch's settings are put back.

In the sandbox the library itself is not there, and what refuses are functions of torch. A function that
somebody makes of the same code refuses, too, and so does a second copy of the module among those that are
loaded. Who goes further, and runs the source of torch's function as their own, could as well have copied the
formula from there, or from a book: no ban can tell that from writing it. Nor is there a ban in the process of
a student's code that cannot be taken apart there by whoever studies how it is made.
"""

import contextlib
import functools
import gc
import sys
import types
from collections.abc import Iterator
from itertools import islice

import torch

from aecourse.models import MODELS

REFUSED = "holds the ready-made answer. Please write it yourself: that is the task."


class Refused(AssertionError, ImportError):
    """Raised where a ready-made answer is called, or imported."""


ASSIGNMENTS = ("linear", "autoencoders", "elbo", "gradients", "amortization", "vae", "evaluation")

# The library is the answer to nearly every task, and so are the references of the tests themselves.
LIBRARY = (
    *dict.fromkeys(MODELS.values()),
    *("bounds", "disentanglement", "evaluate", "gradients", "inference", "likelihoods", "mixtures"),
    *(f"checks.{assignment}" for assignment in ASSIGNMENTS),
)


_loaded = 0


def settled() -> None:
    """Say that no module has been loaded twice so far: in a fork even to look at them would copy them all."""
    global _loaded
    _loaded = len(sys.modules)


@contextlib.contextmanager
def banned(names: tuple[str, ...]) -> Iterator[None]:
    """Make ready-made answers refuse, under whatever name a notebook imported them.

    The body of each function is exchanged for one that raises, so that an alias does not help. ``names`` are
    dotted: a function, a class (all its methods) or a module (everything that is defined in it).

    Raises:
        Refused: at the end, if something has been put back in the meantime.
    """
    library, named = _refusals(names, len(sys.modules))  # an import may bring more of them
    exchanges = [*library, *named, *_copies(names, named)]
    codes = [function.__code__ for function, _ in exchanges]
    try:
        for function, refusal in exchanges:
            function.__code__ = refusal
        yield
    finally:
        lifted = [function for function, refusal in exchanges if function.__code__ is not refusal]
        for (function, _), code in zip(exchanges, codes):
            function.__code__ = code
        if lifted:
            raise Refused(f"{lifted[0].__module__} {REFUSED}")


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Put torch's global settings back: what one function leaves behind reaches no other.

    The first ``torch.compile`` of a process, too, ends the validation of arguments by every distribution.
    """
    validated = torch.distributions.Distribution._validate_args
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(validated)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


Exchanges = list[tuple[types.FunctionType, types.CodeType]]


@functools.lru_cache(maxsize=64)
def _refusals(names: tuple[str, ...], loaded: int) -> tuple[Exchanges, Exchanges]:
    """The functions that `banned` exchanges, each once, and what for: those of the library, then those of
    these names. Looked up once for many calls."""
    library = {f: r for module in LIBRARY for f, r in _refused(f"aecourse.{module}")}
    named = {f: r for name in names for f, r in _refused(name)}
    return list(library.items()), list(named.items())


def _refused(name: str) -> Iterator[tuple[types.FunctionType, types.CodeType]]:
    for function in _functions(name):
        yield function, _refusal(name, function.__code__.co_freevars)


_last_copies: dict[tuple[str, ...], tuple[list[int], Exchanges]] = {}


def _copies(names: tuple[str, ...], exchanges: Exchanges) -> Exchanges:
    """Other functions that somebody has made of the code of these, and what to exchange it for.

    Who has one holds on to the code, which shows in its count of references; else nothing is looked for. The
    usual count is that of a function that nobody else knows. (Nothing here may keep a code for longer than a
    call: that would add to some counts and not to others.)
    """

    def unknown() -> None:
        pass

    usual = sys.getrefcount(unknown.__code__) - 1  # this function's constants hold it, too
    counts = [sys.getrefcount(function.__code__) for function, _ in exchanges]
    if max(counts, default=usual) <= usual:
        return []
    before, found = _last_copies.get(names, ([], []))
    if counts != before:
        refusals = {function.__code__: refusal for function, refusal in exchanges}
        known = {function for function, _ in exchanges}
        found = [
            (other, refusals[other.__code__])
            for other in gc.get_referrers(*refusals)
            if isinstance(other, types.FunctionType) and other not in known and other.__code__ in refusals
        ]
        _last_copies[names] = counts, found
    return found


def _functions(name: str) -> Iterator[types.FunctionType]:
    """The Python functions behind a dotted name, if what it names has been imported."""
    words = name.split(".")
    depth = max((i for i in range(1, len(words) + 1) if ".".join(words[:i]) in sys.modules), default=0)
    thing = sys.modules.get(".".join(words[:depth]))
    for word in words[depth:]:
        thing = getattr(thing, word, None)
    if isinstance(thing, types.ModuleType):
        file = vars(thing).get("__file__")
        new = islice(reversed(sys.modules.values()), max(0, len(sys.modules) - _loaded))
        others = [m for m in new if isinstance(m, types.ModuleType) and m is not thing]
        modules = [thing, *(m for m in others if file and vars(m).get("__file__") == file)]
        things = [
            value
            for module in modules
            for value in list(vars(module).values())
            if getattr(value, "__module__", "") == vars(module).get("__name__")
        ]
    else:
        things = [thing]
    for thing in things:
        members = [thing, *vars(thing).values()] if isinstance(thing, type) else [thing]
        for member in members:
            member = getattr(member, "__func__", member)  # a class method or a static one
            while isinstance(member, types.FunctionType):
                yield member
                member = getattr(member, "__wrapped__", None)  # what a decorator hides


def _refusal(name: str, free: tuple[str, ...]) -> types.CodeType:
    """The code of a function that raises; it takes the place of any other's code."""

    def refuse(*arguments, **keywords):
        kind = "kind"  # a constant: the function may have no builtins, as those of a named tuple
        raise kind("refused")

    new = {"refused": f"{name} {REFUSED}", "kind": Refused}
    code = refuse.__code__
    constants = tuple(new.get(constant, constant) for constant in code.co_consts)
    return code.replace(co_consts=constants, co_freevars=free)
