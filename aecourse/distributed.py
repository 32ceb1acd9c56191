"""Several processes that train one model: who takes part, which examples each takes, and whose noise."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Team:
    """The processes of a run. Alone, it is rank 0 of 1 and its methods cost nothing.

    Args:
        rank: the number of this process.
        size: how many there are.
        seed: of the noise they share.
        device: where they compute.
    """

    def __init__(self, rank: int, size: int, seed: int, device: torch.device):
        self.rank, self.size = rank, size
        # Alone, noise comes from the global generator, seeded alike: the two draw the same numbers.
        self.generator = torch.Generator(device).manual_seed(seed) if size > 1 else None
        self.whole = self.count = 0

    def share(self, rows: Tensor) -> tuple[Tensor, int]:
        """This process's part of a batch, and how many of its examples count.

        Parts differ in size by one at most. In a batch with fewer examples than processes some compute
        on one that is not theirs, because all must take part in the average, and it counts nothing.
        """
        own = rows if self.size == 1 else rows[self.rank :: self.size]
        self.whole, self.count = len(rows), len(own)
        return (own, len(own)) if len(own) else (rows[:1], 0)

    def noise(self):
        """A context in which ``randn_like`` and its kin give this process its rows of the batch's noise.

        Every process draws the noise of the whole batch, and so the team trains on the very numbers that
        one process would. Dropout draws for itself.
        """
        return nullcontext() if self.size == 1 else _SharedNoise(self)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in every process; NaN anywhere is NaN everywhere."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def join(device: torch.device, seed: int) -> Iterator[Team]:
    """The team this process belongs to: all that ``torchrun`` started, or this one alone.

    A process group that exists is used and left open; one that is made here is closed here.
    """
    started_here = False
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        started_here = True
    together = dist.is_available() and dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    try:
        yield Team(rank, size, seed, device)
    finally:
        if started_here:
            dist.destroy_process_group()


class _SharedNoise(TorchFunctionMode):
    def __init__(self, team: Team):
        super().__init__()
        self.team = team

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        team = self.team
        if function in (torch.randn_like, torch.rand_like):
            like = args[0]
            sizes, kwargs = like.shape, {"dtype": like.dtype, "device": like.device, **kwargs}
            function = torch.randn if function is torch.randn_like else torch.rand
        elif function in (torch.randn, torch.rand):
            sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        else:
            return function(*args, **kwargs)
        rows = max(team.count, 1)
        if kwargs.get("generator") is not None or rows not in sizes[:2]:
            return function(sizes, **kwargs)
        dim = tuple(sizes).index(rows)  # 0, or 1 where samples come first
        whole = function((*sizes[:dim], team.whole, *sizes[dim + 1 :]), **kwargs, generator=team.generator)
        start = team.rank if team.count else 0
        return whole.index_select(dim, torch.arange(start, team.whole, team.size, device=whole.device)[:rows])


def standard_normal(shape, like: Tensor, batch_dim: int | None = 0) -> Tensor:
    """N(0, 1) with the dtype and device of ``like``; stands in until the team's version is merged."""
    return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)
