"""Shape contracts: say once what a function needs, and refuse the rest in words.

Every public function of the course states the shapes of its arguments in its docstring. This module
lets it enforce the same line, so that a mistake is reported where it was made::

    >>> check_shapes(("mean", torch.zeros(3, 5), "batch k"), ("logvar", torch.zeros(3, 4), "batch k"))
    Traceback (most recent call last):
    ...
    ValueError: logvar has shape (3, 4) but needs (batch, k) = (3, 5), the sizes that mean has.
"""

import math
from collections.abc import Sequence
from functools import cache
from numbers import Integral

import torch
from torch import Tensor


def check_shapes(*arguments: tuple[str, Tensor, str]) -> dict[str, int]:
    """Check that tensors have the shapes a function needs and agree with each other.

    Args:
        arguments: triples ``(name, tensor, pattern)``. A pattern lists the dimensions by name, as in
            ``"batch k"``; the same name must have the same size wherever it stands. A last word
            ``...`` matches any further dimensions, which must agree as well.

    Returns:
        The size of each named dimension.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: a shape does not fit; the message says which, what it is and what it should be.
    """
    sizes: dict[str, int] = {}
    trailing: tuple[int, ...] | None = None
    for name, tensor, pattern in arguments:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}.")
        if not tensor.is_floating_point():
            convert = f"{name}.float()" + " / 255" * (tensor.dtype == torch.uint8)  # 8-bit grey values
            raise TypeError(
                f"{name} has dtype {tensor.dtype} but needs a floating-point one: convert it with {convert}."
            )
        named, open_ended = _parse(pattern)
        shape = tuple(tensor.shape)
        fits = len(shape) >= len(named) if open_ended else len(shape) == len(named)
        for word, size in zip(named, shape):
            fits = fits and sizes.setdefault(word, size) == size
        if fits and open_ended:
            trailing = shape[len(named) :] if trailing is None else trailing
            fits = shape[len(named) :] == trailing
        if not fits:
            _refuse(name, shape, pattern, sizes, trailing, first=arguments[0][0])
    return sizes


@cache
def _parse(pattern: str) -> tuple[tuple[str, ...], bool]:
    """The names in a pattern, and whether it ends in ``...``; losses are checked at every step of a training
    run, so this is done once."""
    words = tuple(pattern.split())
    return (words[:-1], True) if words[-1] == "..." else (words, False)


def _refuse(name, shape, pattern, sizes, trailing, first) -> None:
    """Say what is wrong with a shape: it lists the sizes that are known by then."""
    named, open_ended = _parse(pattern)
    known = [str(sizes.get(w, w)) for w in named]
    if open_ended:
        known += ["..."] if trailing is None else [str(n) for n in trailing]
    needs, needed = _tuple(pattern.split()), _tuple(known)
    because = "" if needs == needed else f" = {needed}"
    because += "" if needs == needed or name == first else f", the sizes that {first} has"
    raise ValueError(f"{name} has shape {shape} but needs {needs}{because}.")


def check_batch(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raise unless ``tensor`` is a batch of floats of this shape: ``(batch, *shape)``.

    Raises:
        TypeError, ValueError: from :func:`check_shapes`, or another shape; the message says which.
    """
    check_shapes((name, tensor, "batch ..."))
    if tuple(tensor.shape[1:]) != tuple(shape):
        needed = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} but this model needs (batch, {needed}).")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number, and at least ``least``.

    Raises:
        TypeError: something else than a whole number, ``True`` included.
        ValueError: less than ``least``.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r} but must be a whole number.")
    if value < least:
        raise ValueError(f"{name} is {value} but must be at least {least}.")


def check_labels(name: str, labels: Tensor, shape: Sequence[int], classes: int | None = None) -> None:
    """Raise unless ``labels`` is an int64 tensor of this shape, ``(N,)`` or ``(N, factors)``.

    With ``classes`` every label must lie between 0 and ``classes - 1``, which costs a pass over the data.

    Raises:
        TypeError: something else than a tensor of int64.
        ValueError: another shape, or a label out of range.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be a torch.Tensor of torch.int64, not {kind}.")
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)} but needs {tuple(shape)}, one for each example."
        )
    if classes is not None and labels.numel() > 0:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"{name} go from {low} to {high} but need 0 to {classes - 1}.")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` if ``tensor`` holds NaN or infinity, saying how many and where.

    One pass over the data: meant for the border of a program (a data set, a batch of new images),
    not for the inside of a training loop.
    """
    # The extremes are NaN or infinite if any value is: one fast pass, and a slow one only to explain.
    if tensor.numel() > 0 and not all(map(math.isfinite, map(float, torch.aminmax(tensor.detach())))):
        bad = ~torch.isfinite(tensor)
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} holds {int(bad.sum()):,} values that are NaN or infinite, the first at {where}. "
            "Remove or repair these examples first: one of them is enough to spoil every weight."
        )


def check_unit_interval(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError``, with the cure that fits, unless every value of ``tensor`` lies in [0, 1]."""
    if tensor.numel() == 0:
        return
    low, high = map(float, torch.aminmax(tensor.detach()))
    if low >= 0 and high <= 1:
        return
    if -0.5 <= low < -0.25 and high <= 0.5:
        cure = f" Images in [-0.5, 0.5] become {name} + 0.5."
    elif low >= -0.5 and high <= 1.5:  # resized by interpolation, or rounded
        cure = f" Interpolation overshoots: take {name}.clamp(0, 1)."
    elif low >= -1.5 and high <= 1.5:
        cure = f" Images in [-1, 1] become ({name} + 1) / 2."
    elif low >= 0 and high <= 255:
        cure = " Divide 8-bit images by 255, others by the largest value that there can be."
    else:  # among them NaN
        cure = ""
    raise ValueError(f"{name} has values from {_digits(low)} to {_digits(high)} but needs [0, 1].{cure}")


def check_images(name: str, images: Tensor, shape: Sequence[int], support: tuple[float, float]) -> None:
    """Raise unless ``images`` can be trained on: ``(batch, *shape)``, finite, and within the model's support.

    Args:
        name: of the argument.
        images: the batch.
        shape: of one image.
        support: the least and the largest value; only [0, 1] is looked at, any other holds all numbers.

    Raises:
        TypeError, ValueError: as the other checks of this module; the message says which.
    """
    check_batch(name, images, shape)
    check_finite(name, images)
    if support == (0.0, 1.0):
        check_unit_interval(name, images)


def _digits(value: float) -> str:
    """A number in as many digits as tell it from 0 and 1."""
    short = f"{value:g}"
    return short if float(short) == value or float(short) not in (0, 1) else f"{value:.9g}"


def _tuple(words: list[str]) -> str:
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"
