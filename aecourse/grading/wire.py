"""What crosses between the trusted process and a student's: numbers, strings, tensors, and trees of these.

A message is two lengths, a JSON header and the raw bytes of its tensors; nothing is ever unpickled or
evaluated, and a reader takes no size on trust.
"""

import json
import math
import socket
import struct
import time

import torch

from aecourse.checks import parts
from aecourse.checks.calling import memory_of, overlapping

LARGEST = 256 * 2**20  # bytes of the tensors of one message
SIZES = 2**26  # numbers in them, where a dimension of size 0 counts as one of size 1
LONGEST = 16 * 2**20  # bytes of its header, which takes twenty times as much when it is read
MOST = 100_000  # tensors, or items of a list
LENGTHS = struct.Struct("<II")  # of the header and of the bytes after it
ALIGNED = 8  # every tensor begins at a multiple of this, from the header's first byte
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
encode = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":")).encode


class WireError(ValueError):
    """A value that cannot cross, or a message that is none."""


def describe(value, found: dict):
    """A JSON description of a value.

    found: for each tensor and generator that is in it its number and the tensor to send; it is added to, and
    what is there already is sent once.

    Raises:
        WireError: the value holds something that does not cross.
        RecursionError: it is nested too deeply.
    """
    kind = type(value)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        if value.layout is not torch.strided or value.device.type != "cpu" or value.dtype not in NAMES:
            raise WireError(f"a tensor of type {value.dtype} on {value.device} ({value.layout})")
        return {"tensor": found.setdefault(id(value), (len(found), value, value))[0]}
    if value is None or kind is bool:
        return value
    if kind is int:
        if abs(value) > 2**62:
            raise WireError("an integer is too large")
        return value
    if kind is float:  # JSON has no infinities
        return {"float": value.hex() if math.isfinite(value) else str(value)}
    if (kind is str and len(value) > LONGEST) or (kind in (tuple, list, dict) and len(value) > MOST):
        raise WireError("too much data")
    if kind is str:
        return value
    if kind is torch.Generator:
        if id(value) not in found:
            found[id(value)] = len(found), value.get_state(), value  # itself, to keep its number taken
        return {"generator": found[id(value)][0]}
    if kind is list:
        return {"list": [describe(item, found) for item in value]}
    if isinstance(value, tuple):  # those with names, too, whose own methods play no part
        return {"tuple": [describe(item, found) for item in tuple.__iter__(value)]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: describe(item, found) for key, item in value.items()}}
    if kind.__name__ in PARTS and isinstance(value, parts.Part):
        inside = [describe(tensor, found) for tensor in value.tensors]
        return {"part": kind.__name__, "of": inside, "training": bool(value.training)}
    raise WireError(f"a {kind.__name__}")


def restore(description, tensors: list):
    """The value of a description, from its tensors, among which those of generators become these.

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
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float.fromhex(content)
    if kind == "generator":
        if type(tensors[content]) is not torch.Generator:
            tensors[content] = torch.Generator().set_state(plausible(tensors[content]))
        return tensors[content]
    if kind in ("tuple", "list") and len(content) <= MOST:
        items = [restore(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {_text(key): restore(item, tensors) for key, item in content.items()}
    if kind == "part":
        part = PARTS[content](*[restore(item, tensors) for item in description["of"]])
        return part.train(description["training"] is True)
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


def send(channel: socket.socket, value, placed: bool = False) -> None:
    """Send a value.

    placed: the strides of its tensors cross, too, and what memory they share.

    Raises:
        WireError: it holds something that does not cross, or too much of it.
    """
    found: dict = {}
    description = describe(value, found)
    tensors = [tensor for _, tensor, _ in found.values()]
    kinds = [[NAMES[t.dtype], list(t.shape), t.requires_grad, t.is_leaf] for t in tensors]
    blocks = _placed(tensors, kinds) if placed else tensors
    header = encode({"value": description, "tensors": kinds}).encode()
    header += b" " * (-len(header) % ALIGNED)
    size = sum(_padded(tensor.numel() * tensor.itemsize) for tensor in blocks)
    if len(header) > LONGEST or size > LARGEST or _too_many([tensor.shape for tensor in tensors]):
        raise WireError("too much data")
    channel.sendall(b"".join([LENGTHS.pack(len(header), size), header, *map(_bytes, blocks)]))


def _placed(tensors: list[torch.Tensor], kinds: list[list]) -> list[torch.Tensor]:
    """What to send of tensors: themselves, but for those that are not contiguous or overlap, whose memory.

    To their kinds are added strides, the first place, and the length of the memory, or the number of a
    tensor before it, counted from -1 backwards, that has brought the memory along.
    """
    blocks: list[torch.Tensor | None] = [*tensors]
    for number, tensor in enumerate(tensors):
        if not tensor.is_contiguous():
            copy = tensor.detach().clone()  # without holes
            blocks[number] = copy.as_strided((copy.numel(),), (1,))
            kinds[number] += [copy.stride(), 0, copy.numel()]
    for group in overlapping(tensors):
        memory, starts = memory_of([tensors[number] for number in group])
        for number, start in zip(group, starts):
            first = number == group[0]
            blocks[number] = memory if first else None
            length = len(memory) if first else -1 - group[0]
            kinds[number][4:] = [tensors[number].stride(), start, length]
    return [block for block in blocks if block is not None]


def receive(channel: socket.socket, until: float | None = None, trusted: bool = False):
    """The next value from the other side.

    until: when to stop waiting, on the clock of ``time.monotonic``, however slowly the bytes come. trusted:
    the other side is; what is no leaf there becomes a copy of a leaf here, and memory is as it is there.
    Otherwise all that requires gradients is a leaf, and no two tensors have memory in common.

    Raises:
        WireError: what arrived is no message.
        EOFError: the other side is gone.
        TimeoutError: nothing arrived within the channel's time limit.
    """
    length, size = LENGTHS.unpack(_exactly(channel, LENGTHS.size, until))
    if length > LONGEST or size > LARGEST or length % ALIGNED:
        raise WireError("too much data")
    content = _exactly(channel, length + size, until)
    try:
        header = json.loads(content[:length])
        kinds = [(DTYPES[name], _shape(shape), *marks) for name, shape, *marks in header["tensors"]]
        if _too_many([shape for _, shape, *_ in kinds]):
            raise WireError("too much data")
        tensors, memories, place = [], [], length
        for dtype, shape, required, leaf, *where in kinds:
            if where and not trusted:
                raise WireError(NONE)
            strides, start, count = where or (None, 0, math.prod(shape))
            if count < 0:
                memories.append(memories[-1 - count])
            else:
                memories.append(_tensor(content, place, count, dtype))
                place += _padded(count * dtype.itemsize)
            tensor = memories[-1].as_strided(shape, strides, start) if where else memories[-1].reshape(shape)
            if required is True and (tensor.is_floating_point() or tensor.is_complex()):
                tensor.requires_grad_()
                tensor = tensor if leaf or not trusted else tensor.clone()
            tensors.append(tensor)
        return restore(header["value"], tensors)
    except BROKEN as error:
        raise error if isinstance(error, WireError) else WireError(NONE) from None


def _too_many(shapes: list) -> bool:
    """Whether these are more tensors, or have more numbers, than a message may hold."""
    return len(shapes) > MOST or sum(math.prod(max(size, 1) for size in shape) for shape in shapes) > SIZES


def _shape(shape) -> list[int]:
    if type(shape) is not list or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError("a tensor whose shape is none")
    return shape


def _padded(size: int) -> int:
    return size + -size % ALIGNED


def _bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.bfloat16:  # which NumPy does not know
        plain = plain.view(torch.int16)
    content = plain.numpy().tobytes()
    return content + bytes(-len(content) % ALIGNED)


def _tensor(content: bytearray, place: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The numbers whose bytes begin at a place. It is a view of them: no two have any in common."""
    if not count:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # any byte but 0 and 1 would be no bool
        return torch.frombuffer(content, dtype=torch.uint8, count=count, offset=place) != 0
    return torch.frombuffer(content, dtype=dtype, count=count, offset=place)


def _exactly(channel: socket.socket, count: int, until: float | None) -> bytearray:
    content = bytearray(count)
    left = memoryview(content)
    while left:
        if until is not None:
            seconds = until - time.monotonic()
            if seconds <= 0:  # however steadily the bytes come
                raise TimeoutError
            channel.settimeout(seconds)
        got = channel.recv_into(left)
        if not got:
            raise EOFError("the other side is gone")
        left = left[got:]
    return content
