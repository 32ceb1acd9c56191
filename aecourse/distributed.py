"""Several processes that train one model: who takes part, whose examples, whose noise, and sums over all."""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Team:
    """The processes of a run. Alone, it is rank 0 of 1 and its methods cost nothing.

    Args:
        rank: the number of this process.
        size: how many there are.
        seed: of the noise they share.
        device: where they compute.
    """

    joined: "Team | None" = None
    """The team of the run that is going on."""

    sharing: "Team | None" = None
    """The same while its processes share their noise."""

    def __init__(self, rank: int, size: int, seed: int, device: torch.device):
        self.rank, self.size = rank, size
        # Alone, noise comes from the global generator, seeded alike: the two draw the same numbers.
        self.generator = torch.Generator(device).manual_seed(seed) if size > 1 else None
        self.whole = self.count = 1

    def share(self, rows: Tensor) -> tuple[Tensor, int]:
        """This process's part of a batch, and how many of its examples count.

        Parts differ in size by one at most. In a batch with fewer examples than processes some compute
        on one that is not theirs, because all must take part in the sums, and it counts nothing.
        """
        own = rows if self.size == 1 else rows[self.rank :: self.size]
        self.whole, self.count = len(rows), len(own)
        return (own, len(own)) if len(own) else (rows[:1], 0)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that rank 0 has, in one message."""
        if self.size == 1 or not (tensors := [*tensors]):
            return
        content = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
        message = torch.cat(content)
        dist.broadcast(message, src=0)
        with torch.no_grad():
            for tensor, part in zip(tensors, message.split([len(piece) for piece in content])):
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # a clone is aligned

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Turn the gradients of every process's mean into those of the mean over the batch, in one message.

        A parameter that has a gradient in one process gets one in all; one that has none anywhere, none.
        """
        if self.size == 1:
            return
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        missing = [parameter for parameter in parameters if parameter.grad is None]
        present = [float(parameter.grad is not None) for parameter in parameters]
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        message = torch.cat([gradient.flatten() for gradient in gradients]) * (self.count / self.whole)
        message = torch.cat([message, message.new_tensor(present)])
        dist.all_reduce(message if self.count else message.zero_())  # zero times NaN would be NaN
        *pieces, present = message.split([*map(Tensor.numel, gradients), len(gradients)])
        torch._foreach_copy_(gradients, [piece.view_as(old) for piece, old in zip(pieces, gradients)])
        if missing:
            for parameter, somewhere in zip(parameters, present.tolist()):
                parameter.grad = parameter.grad if somewhere else None

    def noise(self):
        """A context in which ``torch.randn`` and its kin give this process its rows of the batch's noise.

        Every process draws the noise of the whole batch, and so the team trains on the very numbers that
        one process would. That holds for ``randn``, ``rand``, ``randint``, their ``_like``, and the methods
        ``normal_``, ``uniform_``, ``exponential_`` and ``random_``, behind which most of
        ``torch.distributions`` stands. Their first dimension must be the batch, and is checked:
        :func:`standard_normal` is for noise of another layout. ``randperm`` gives the order of this
        process's own examples within an order of the batch. What is drawn with a generator of its own is
        left alone. Dropout, ``normal``, ``bernoulli``, ``multinomial`` and ``poisson`` draw for themselves,
        in each process something else.
        """
        return nullcontext() if self.size == 1 else _SharedNoise(self)

    def draw(self, function: Callable[..., Tensor], size: Sequence[int], batch_dim: int | None, **kwargs):
        """This process's part of noise that every process draws whole: ``function(size=..., generator=...)``.

        Raises:
            ValueError: dimension ``batch_dim`` is not as long as this process's part of the batch.
        """
        size, rows = list(size), max(self.count, 1)
        device = kwargs.pop("device", None) or torch.get_default_device()
        kwargs |= {"device": self.generator.device, "generator": self.generator}
        if batch_dim is None or not size:
            return function(size=size, **kwargs).to(device)
        if size[batch_dim] != rows:
            raise ValueError(
                f"Noise of shape {tuple(size)} was drawn where several processes share that of a batch, but "
                f"dimension {batch_dim} needs {rows}, a row for each example of this process. Say which "
                "dimension is the batch with aecourse.distributed.standard_normal(shape, like, batch_dim), "
                "None for noise that belongs to no example; or pass a generator of your own."
            )
        size[batch_dim] = self.whole
        return function(size=size, **kwargs).index_select(batch_dim, self._places()).to(device)

    def order(self, count: int, **kwargs) -> Tensor:
        """The order of this process's examples in a random order of the whole batch."""

        def places(size: Sequence[int], **options) -> Tensor:
            return torch.randperm(*size, **options).argsort()

        return self.draw(places, [count], 0, **kwargs).argsort()

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def _places(self) -> Tensor:
        """Where in the batch this process's examples are."""
        start = self.rank if self.count else 0
        return torch.arange(start, self.whole, self.size, device=self.generator.device)[: max(self.count, 1)]


@contextmanager
def join(device: torch.device, seed: int) -> Iterator[Team]:
    """The team this process belongs to: all that ``torchrun`` started, or this one alone.

    A process group that exists is used; one that is made here stays open for the next run of this process,
    because the launcher's addresses serve only once.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    together = dist.is_available() and dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    before, Team.joined = Team.joined, Team(rank, size, seed, device)
    try:
        yield Team.joined
    finally:
        Team.joined = before


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes that train together, in every process; alone, the tensor itself.

    It is for sums over the examples of a batch: a process whose example counts nothing, because the batch
    has fewer than there are processes, adds zeros. All processes must call it, equally often. NaN anywhere
    is NaN everywhere.
    """
    team = Team.joined
    if team is None or team.size == 1:
        return tensor
    total = tensor.clone() if team.count else torch.zeros_like(tensor)
    dist.all_reduce(total)
    return total


def whole_batch(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of all processes that train together, in the order of the batch, and where one's own are.

    It is for losses that compare the examples of a batch with each other. A gradient goes back to the process
    that has the row. All processes must call it, and go back through it, equally often.

    Alone, it is the rows themselves; so it is where noise is not shared, as in evaluation, when every process
    has all examples, and in a compiled loss, which then knows its own part of the batch only.

    Args:
        rows: ``(count, ...)``, one for each example of this process.

    Returns:
        ``(batch, ...)``, and the places of ``rows`` in it, ``(count,)`` int64.
    """
    team = Team.sharing
    if team is None:
        return rows, torch.arange(len(rows), device=rows.device)
    own = team._places().to(rows.device)
    return _WholeBatch.apply(rows, own, team), own


def standard_normal(shape: Sequence[int], like: Tensor, batch_dim: int | None = 0) -> Tensor:
    """Draws from N(0, 1), with the dtype and on the device of ``like``: what ``torch.randn`` gives.

    Where several processes train one model, it gives this one's rows of the noise of the whole batch.

    Args:
        shape: of the result.
        like: any tensor of the right dtype and device.
        batch_dim: which dimension holds the examples of the batch; None for noise that belongs to none of
            them, and is the same in every process.

    Raises:
        ValueError: within such a training, ``batch_dim`` is not as long as this process's part of the batch.
    """
    if Team.sharing is None:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    return Team.sharing.draw(torch.randn, shape, batch_dim, dtype=like.dtype, device=like.device)


class _WholeBatch(torch.autograd.Function):
    """See :func:`whole_batch`."""

    @staticmethod
    def forward(ctx, rows: Tensor, own: Tensor, team: Team) -> Tensor:
        ctx.own, ctx.team = own, team
        whole = rows.new_zeros(team.whole, *rows.shape[1:])
        if team.count:
            whole[own] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor):
        # Each process's loss is the mean over its own examples, and so is what its gradient is averaged as.
        count = ctx.team.count
        gradient = gradient * count if count else torch.zeros_like(gradient)
        dist.all_reduce(gradient)
        return gradient[ctx.own] / max(count, 1), None, None


class _SharedNoise(TorchFunctionMode):
    """See :meth:`Team.noise`."""

    LIKE = {  # noqa: RUF012
        torch.randn_like: torch.randn,
        torch.rand_like: torch.rand,
        torch.randint_like: torch.randint,
    }
    METHODS = (Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.random_)

    def __init__(self, team: Team):
        super().__init__()
        self.team = team

    def __enter__(self):
        Team.sharing = self.team
        return super().__enter__()

    def __exit__(self, *error):
        Team.sharing = None
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is not None:
            return function(*args, **kwargs)
        if function is torch.randperm:
            return self.team.order(*args, **kwargs)
        if function in self.METHODS:
            target, *args = args

            def filled(size: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
                empty = torch.empty(size, dtype=target.dtype, device=device)
                return function(empty, *args, **kwargs, generator=generator)

            return target.copy_(self.team.draw(filled, target.shape, 0, device=target.device))
        if function in self.LIKE:
            like, *args = args
            function = self.LIKE[function]
            kwargs = {"size": like.shape, "dtype": like.dtype, "device": like.device, **kwargs}
            kwargs.pop("memory_format", None)
        elif function not in self.LIKE.values():
            return function(*args, **kwargs)
        if "size" in kwargs:
            size = kwargs.pop("size")
        elif function is torch.randint or not isinstance(args[0], int):
            *args, size = args
        else:
            args, size = (), args
        return self.team.draw(partial(function, *args), size, 0, **kwargs)
