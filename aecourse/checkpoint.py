"""Checkpoints of a training run: written whole or not at all, and refused by a run they do not belong to."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aecourse.distributed import Team


class Checkpoint:
    """The file of a run: all that the run needs to go on as if it had never stopped.

    Args:
        path: of the file.
        model: on the device it is trained on.
        optimizer: of its parameters.
        team: the processes of the run. One of them writes, with the generators of all.
        run: what the run is, from :func:`describe`.
    """

    def __init__(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, team: Team, run: dict[str, Any]
    ):
        self.path, self.model, self.optimizer, self.team, self.run = path, model, optimizer, team, run
        self.buffers = buffer_checksums(model)

    def save(self, history: dict[str, Any], epoch: dict[str, Any]) -> None:
        """Write the state of the run.

        Args:
            history: of the epochs that are finished, in built-in types.
            epoch: what this process noted in the one that is not; tensors may be in it.
        """
        own = {"epoch": epoch, "rng": torch.get_rng_state()}
        own["rng_cuda"] = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        own["rng_team"] = None if self.team.size == 1 else self.team.generator.get_state()
        processes = self.team.gather(own)
        if self.team.rank > 0:
            return
        now = buffer_checksums(self.model)
        state = {
            "model": self.model.state_dict(),
            "model_class": type(self.model).__name__,
            # What training does not change must be the same in the model that goes on.
            "constants": {name: value for name, value in self.buffers.items() if now[name] == value},
            "run": self.run,
            "optimizer": self.optimizer.state_dict(),
            "history": history,
            "processes": processes,
        }
        write(self.path, state)

    def load(self, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Bring model, optimiser and generators to where the run stopped, if there is a file.

        Returns:
            ``history`` and ``epoch`` as they were saved; None without a file.

        Raises:
            ValueError: as :func:`read`.
        """
        if not self.path.is_file():
            return None
        state = read(self.path, self.model, self.run, device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        own = state["processes"][self.team.rank]
        torch.set_rng_state(own["rng"].cpu())
        if device.type == "cuda" and own["rng_cuda"] is not None:
            torch.cuda.set_rng_state(own["rng_cuda"].cpu())
        if self.team.size > 1:
            self.team.generator.set_state(own["rng_team"].cpu())
        return state["history"], own["epoch"]


def describe(model: nn.Module, data: dict[str, Tensor | None], options: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides what a run computes, in a form that can be written and compared.

    Args:
        model: the plain attributes of it and of all its parts (``beta``, ``encoder.net.2.p``, ...) belong to
            the run, and so do the classes of the parts.
        data: tensors by name; a checksum of each stands for it.
        options: numbers, names, functions of a step (described by their values at a few steps) and
            other functions (by their names).

    Returns:
        Plain values by name.
    """
    run = {}
    for name, value in options.items():
        if callable(value) and name in ("lr", "beta"):
            value = tuple(float(value(10**power)) for power in range(7))
        elif callable(value):
            value = getattr(value, "__name__", type(value).__name__)
        run[name] = value
    for name, tensor in data.items():
        run[name] = None if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype} {_checksum(tensor)}"
    for place, part in model.named_modules(prefix="model"):
        if place != "model":
            run[place] = type(part).__name__
        for name, value in vars(part).items():
            if name != "training" and not name.startswith("_") and (setting := _plain(value)) is not None:
                run[f"{place}.{name}"] = setting
    return run


def _plain(value: Any) -> Any:
    """A setting in built-in types; None for what is none: a tensor, a function, a module."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        entries = tuple(map(_plain, value))
        return None if None in entries else entries
    return value if type(value) in (bool, int, float, str) else None


def buffer_checksums(model: nn.Module) -> dict[str, str]:
    """A checksum of each of the model's buffers: constants such as an offset, or running statistics."""
    return {name: _checksum(value) for name, value in model.named_buffers()}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, then rename it: a kill in the middle leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def read(path: Path, model: nn.Module, run: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint, and make sure that it is one of this run.

    Raises:
        ValueError: the file is something else, or of another model, other data or other settings; the
            message says what differs. The file and the model are left as they are.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        theirs = {name: tuple(value.shape) for name, value in state["model"].items()}
        their_class, their_run, constants = state["model_class"], state["run"], state["constants"]
    except Exception as error:
        # torch's own advice here is to load the file without its safeguard: keep it out of the message.
        raise ValueError(
            f"{path} is not a checkpoint that fit wrote, or it is damaged. Give this run a file of its "
            "own, or delete that one to start again."
        ) from error
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if their_class != type(model).__name__ or theirs != ours:
        differing = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        detail = "".join(f"; {n} is {theirs.get(n)} there, {ours.get(n)} here" for n in differing[:1])
        this = "one of these sizes" if their_class == type(model).__name__ else f"this {type(model).__name__}"
        raise ValueError(
            f"{path} is the checkpoint of another model: a {their_class}, not {this}{detail}. "
            "Give this run a file of its own."
        )
    for name in {**their_run, **run}:
        if their_run.get(name) != run.get(name):
            raise ValueError(
                f"{path} is the checkpoint of a run with {name} = {their_run.get(name)}, not "
                f"{run.get(name)}, so this run cannot continue it. Give this run a file of its own."
            )
    here = buffer_checksums(model)
    for name, checksum in constants.items():
        if here[name] != checksum:
            raise ValueError(
                f"{path} is the checkpoint of a model whose {name} holds other values than this model's, "
                "so this run cannot continue it. Give this run a file of its own."
            )
    return state


def epochs_done(path: Path) -> int:
    """How many epochs the run has finished whose checkpoint this is; 0 where there is no such file.

    Raises:
        ValueError: the file is no checkpoint.
    """
    if not path.is_file():
        return 0
    try:
        return len(torch.load(path, map_location="cpu", weights_only=True)["history"]["seconds"])
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint that fit wrote, or it is damaged.") from error


def _checksum(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy()).hexdigest()[:16]
