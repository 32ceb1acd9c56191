"""While a student's function is tested ready-made answers refuse; then torch's settings are put back."""

import contextlib
import functools
import sys
import types
from collections.abc import Iterator

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


@contextlib.contextmanager
def banned(names: tuple[str, ...]) -> Iterator[None]:
    """Make ready-made answers refuse, under whatever name a notebook imported them.

    The body of each function is exchanged for one that raises, so that an alias does not help. ``names`` are
    dotted: a function, a class (all its methods) or a module (everything that is defined in it).
    """
    exchanges = _refusals(names, len(sys.modules))  # an import may bring more of them
    codes = [function.__code__ for function, _ in exchanges]
    try:
        for function, refusal in exchanges:
            function.__code__ = refusal
        yield
    finally:
        for (function, _), code in zip(exchanges, codes):
            function.__code__ = code


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


@functools.lru_cache(maxsize=64)
def _refusals(names: tuple[str, ...], loaded: int) -> list[tuple[types.FunctionType, types.CodeType]]:
    """The functions that `banned` exchanges, each once, and what for; looked up once for many calls."""
    found = {}
    for name in (*(f"aecourse.{module}" for module in LIBRARY), *names):
        for function in _functions(name):
            found[function] = _refusal(name, function.__code__.co_freevars)
    return list(found.items())


def _functions(name: str) -> Iterator[types.FunctionType]:
    """The Python functions behind a dotted name, if what it names has been imported."""
    words = name.split(".")
    depth = max((i for i in range(1, len(words) + 1) if ".".join(words[:i]) in sys.modules), default=0)
    thing = sys.modules.get(".".join(words[:depth]))
    for word in words[depth:]:
        thing = getattr(thing, word, None)
    if isinstance(thing, types.ModuleType):
        things = [
            value for value in vars(thing).values() if getattr(value, "__module__", "") == thing.__name__
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
