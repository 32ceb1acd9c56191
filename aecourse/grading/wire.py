"""What crosses between the trusted process and a student's: numbers, strings, tensors, and trees of these.

A message is a JSON header and the raw bytes of its tensors; nothing is ever unpickled or evaluated, and a
reader takes no size on trust.
"""

import json
import math
import socket
import struct
import time
from collections.abc import Iterator

import torch

from aecourse.checks import parts

LARGEST = 256 * 2**20  # bytes of the tensors of one message
LONGEST = 16 * 2**20  # bytes of its header, which takes twenty times as much when it is read
MOST = 100_000  # tensors, or items of a list
NONE = "a message that is none"
BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float32 float64 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 bool".split()
    )
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
KNOWN = (torch.Tensor, torch.Generator, tuple, list, dict, str, bool, int, float, type(None))
PARTS = {name: part for name, part in vars(parts).items() if isinstance(part, type)}


class WireError(ValueError):
    """A value that cannot cross, or a message that is none."""


def describe(value, tensors: list):
    """A JSON description of a value; its tensors are appended to ``tensors``.

    Raises:
        WireError: the value holds something that does not cross.
        RecursionError: it is nested too deeply.
    """
    kind = type(value)
    if (kind is str and len(value) > LONGEST) or (kind in (tuple, list, dict) and len(value) > MOST):
        raise WireError("too much data")
    if value is None or kind in (bool, int, str):
        if kind is int and abs(value) > 2**62:
            raise WireError("an integer is too large")
        return value
    if kind is float:  # JSON has no infinities
        return {"float": value.hex() if math.isfinite(value) else str(value)}
    if kind in (torch.Tensor, torch.nn.Parameter):
        if value.layout is not torch.strided or value.device.type != "cpu" or value.dtype not in NAMES:
            raise WireError(f"a tensor of type {value.dtype} on {value.device} ({value.layout})")
        tensors.append(value)
        return {"tensor": None}
    if kind is torch.Generator:
        tensors.append(value.get_state())
        return {"generator": None}
    if kind is list:
        return {"list": [describe(item, tensors) for item in value]}
    if isinstance(value, tuple):  # those with names, too, whose own methods play no part
        return {"tuple": [describe(item, tensors) for item in tuple.__iter__(value)]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: describe(item, tensors) for key, item in value.items()}}
    if kind.__name__ in PARTS and isinstance(value, parts.Part):
        return {"part": kind.__name__, "of": [describe(tensor, tensors) for tensor in value.tensors]}
    raise WireError(f"a {kind.__name__}")


def restore(description, tensors: Iterator[torch.Tensor]):
    """The value of a description, from its tensors in order.

    Raises:
        Exception: one of `BROKEN`: the description is none of those that `describe` makes.
    """
    if description is None or type(description) is bool:
        return description
    if type(description) is int and abs(description) <= 2**62:
        return description
    if type(description) is str:
        return _text(description)
    kind, content = next(iter(description.items()))
    if kind == "float":
        return float.fromhex(content)
    if kind == "tensor":
        return next(tensors)
    if kind == "generator":
        return torch.Generator().set_state(plausible(next(tensors)))
    if kind in ("tuple", "list") and len(content) <= MOST:
        items = [restore(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {_text(key): restore(item, tensors) for key, item in content.items()}
    if kind == "part":
        return PARTS[content](*[restore(item, tensors) for item in description["of"]])
    raise WireError(NONE)


def _text(text: str) -> str:
    """The text without half characters, which JSON knows and no file can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def plausible(state: torch.Tensor) -> torch.Tensor:
    """A state of random numbers on the CPU, if it is one: torch reads beyond its end otherwise.

    Raises:
        WireError: it is none.
    """
    if state.dtype != torch.uint8 or state.dim() != 1 or len(state) < 24:
        raise WireError(NONE)
    _, left, _, done = struct.unpack("<QiiQ", state[:24].numpy().tobytes())
    if left != 1 and left + done != 625:
        raise WireError(NONE)
    return state


def tensors_of(tree) -> list[torch.Tensor]:
    """The tensors of a value, in the order in which they cross."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, parts.Part):
        tree = tree.tensors
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, tuple | list):
        return [tensor for item in tree for tensor in tensors_of(item)]
    return []


def send(channel: socket.socket, value) -> None:
    """Send a value.

    Raises:
        WireError: it holds something that does not cross, or too much of it.
    """
    tensors: list[torch.Tensor] = []
    description = describe(value, tensors)
    kinds = [[NAMES[t.dtype], list(t.shape), t.requires_grad, t.is_leaf] for t in tensors]
    header = json.dumps({"value": description, "tensors": kinds}, allow_nan=False).encode()
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    if len(header) > LONGEST or len(tensors) > MOST or size > LARGEST:
        raise WireError("too much data")
    bodies = [_bytes(tensor) for tensor in tensors]
    channel.sendall(struct.pack("<I", len(header)) + header + b"".join(bodies))


def receive(channel: socket.socket, until: float | None = None, graphs: bool = False):
    """The next value from the other side.

    until: when to stop waiting, on the clock of ``time.monotonic``, however slowly the bytes come. graphs:
    what is no leaf there becomes a copy of a leaf here; otherwise all that requires gradients is a leaf.

    Raises:
        WireError: what arrived is no message.
        EOFError: the other side is gone.
        TimeoutError: nothing arrived within the channel's time limit.
    """
    (length,) = struct.unpack("<I", _exactly(channel, 4, until))
    if length > LONGEST:
        raise WireError("a message that is none (its header is too long)")
    header = _exactly(channel, length, until)
    try:
        header = json.loads(header)
        kinds = [(DTYPES[name], _shape(shape), *marks) for name, shape, *marks in header["tensors"]]
        sizes = [math.prod(shape) * dtype.itemsize for dtype, shape, *_ in kinds]
        if sum(sizes) > LARGEST or len(sizes) > MOST:
            raise WireError("too much data")
        tensors = []
        for (dtype, shape, required, leaf), size in zip(kinds, sizes):
            tensor = _tensor(_exactly(channel, size, until), dtype, shape)
            if required is True and (tensor.is_floating_point() or tensor.is_complex()):
                tensor.requires_grad_()
                tensor = tensor.clone() if graphs and not leaf else tensor
            tensors.append(tensor)
        return restore(header["value"], iter(tensors))
    except BROKEN as error:
        raise error if isinstance(error, WireError) else WireError(NONE) from None


def _shape(shape) -> list[int]:
    if type(shape) is not list or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError("a tensor whose shape is none")
    return shape


def _bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.bfloat16:  # which NumPy does not know
        plain = plain.view(torch.int16)
    return plain.numpy().tobytes()


def _tensor(content: bytes, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    flat = raw != 0 if dtype == torch.bool else raw.view(dtype)  # any other byte would be no bool
    return flat.reshape(shape)


def _exactly(channel: socket.socket, count: int, until: float | None) -> bytes:
    chunks = []
    while count:
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:  # however steadily the bytes come
                raise TimeoutError
            channel.settimeout(left)
        chunk = channel.recv(min(count, 2**20))
        if not chunk:
            raise EOFError("the other side is gone")
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)
