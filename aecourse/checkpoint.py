"""Checkpoints of a training run: written whole or not at all, and refused by a run they do not belong to."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def describe(model: nn.Module, data: dict[str, Tensor | None], options: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides what a run computes, in a form that can be written and compared.

    Args:
        model: its plain attributes (``beta``, ``likelihood``, ...) are part of the run.
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
    for name, value in vars(model).items():
        plain = isinstance(value, (int, float, str, tuple, np.generic))
        if plain and name != "training" and not name.startswith("_"):
            run[f"model.{name}"] = value.item() if isinstance(value, np.generic) else value
    return run


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


def _checksum(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(content.numpy()).hexdigest()[:16]
