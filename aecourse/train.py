"""One training loop for every model of the course.

A model takes part by having two methods: ``validate(images)``, which refuses unsuitable data before
the first step, and ``loss(batch)``, which returns a :class:`aecourse.bounds.Loss`.
"""

import hashlib
import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass
class History:
    """What happened in training: for each epoch, the mean of the loss and of each of its parts."""

    train: dict[str, list[float]] = field(default_factory=dict)
    """``total`` and the parts, one number per epoch, averaged over the examples as they were trained on."""

    test: dict[str, list[float]] = field(default_factory=dict)
    """The same on ``test_images`` at the end of each epoch; empty without them."""

    seconds: list[float] = field(default_factory=list)
    """Wall time of each epoch's training steps."""

    @property
    def epochs(self) -> int:
        return len(self.seconds)


def pick_device(name: str | None = None) -> torch.device:
    """The device to train on: the one named, else a GPU where there is one, else the CPU."""
    if name is not None:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fit(
    model: nn.Module,
    images: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    test_images: Tensor | None = None,
    device: str | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int | None = None,
    progress: bool = True,
) -> History:
    """Train a model with Adam and return its history.

    The same seed gives the same result: it sets the order of the examples and the model's noise, and
    the generators of the caller are left as they were. (Create the model after ``torch.manual_seed``
    to fix its first weights as well.) The model is trained on ``device`` and comes back on the device
    it came from.

    With ``checkpoint``, the state is written to that file, and a file that is there is resumed from:
    a run that was killed goes on and ends at the numbers it would have ended at, and calling again
    with more ``epochs`` trains on.

    Args:
        model: anything with ``loss(batch)`` and ``validate(images)``; see the module's docstring.
        images: ``(N, ...)``, the training examples. All are kept on the device.
        epochs: passes over the data in all, those before a resumed checkpoint included.
        batch_size: examples per step; the last step of an epoch takes what is left.
        lr: Adam's step size.
        seed: of the order of examples and of the noise.
        test_images: ``(M, ...)``, evaluated after each epoch with the same noise every time.
        device: ``"cpu"``, ``"cuda"``, ...; by default :func:`pick_device` chooses.
        checkpoint: file to write and to resume from.
        checkpoint_steps: write every so many steps as well as after every epoch.
        progress: show a progress bar.

    Returns:
        The :class:`History` of all epochs, in nats per example for models with a likelihood.

    Raises:
        ValueError: an argument out of range, data the model refuses, or a checkpoint of another model,
            other data or other settings.
        FloatingPointError: the loss became NaN or infinite; the message says at which step and in
            which term. The last checkpoint is kept.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value} but must be at least 1.")
    if not lr > 0:
        raise ValueError(f"lr is {lr} but must be positive.")
    if checkpoint_steps is not None and (checkpoint_steps < 1 or checkpoint is None):
        raise ValueError("checkpoint_steps must be at least 1 and needs a checkpoint to write to.")
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint is {str(checkpoint)!r}, a folder, but must name a file.")
    for name, examples in (("images", images), ("test_images", test_images)):
        if examples is not None and len(examples) == 0:
            raise ValueError(f"{name} holds no examples.")
        if examples is not None:
            model.validate(examples)

    lr, seed = float(lr), int(seed)  # a NumPy number would make the checkpoint unreadable
    home = next(model.parameters()).device
    target = pick_device(device)
    images = images.to(target)
    model.to(target).train()
    # One fused kernel for all parameters: most of what a small model's step costs is Adam's update.
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=target.type in ("cpu", "cuda"))
    settings = {"batch_size": batch_size, "lr": lr, "seed": seed, "data": _fingerprint(images)}
    settings.update(_made_with(model))
    starts = range(0, len(images), batch_size)
    history = History()
    step, sums = 0, {}  # the next step of this epoch, and the losses summed over those before it

    with ExitStack() as stack:
        # Also after an error or an interrupt a notebook goes on with the model where it was.
        stack.callback(lambda: model.to(home).eval())
        stack.enter_context(torch.random.fork_rng([target] if target.type == "cuda" else []))
        torch.manual_seed(seed)
        if checkpoint is not None and Path(checkpoint).is_file():
            step, sums, history = _resume(checkpoint, model, optimizer, settings, target)
        bar = stack.enter_context(
            tqdm(
                total=epochs * len(starts),
                initial=history.epochs * len(starts) + step,
                disable=not progress,
                unit="step",
                mininterval=0.2,
            )
        )
        while history.epochs < epochs:
            order = _order(len(images), seed, history.epochs).to(target)
            began = time.perf_counter()
            for index in range(step, len(starts)):
                batch = images[order[starts[index] : starts[index] + batch_size]]
                loss = model.loss(batch)
                optimizer.zero_grad()
                loss.total.backward()
                _check_loss(loss, history.epochs, index)
                optimizer.step()
                for name, value in {"total": loss.total, **loss.parts}.items():
                    sums[name] = sums.get(name, 0.0) + value.detach() * len(batch)
                bar.update()
                if checkpoint_steps and (index + 1) % checkpoint_steps == 0:
                    _save(checkpoint, model, optimizer, settings, index + 1, sums, history)
            history.seconds.append(time.perf_counter() - began)
            for name, value in sums.items():
                history.train.setdefault(name, []).append(float(value) / len(images))
            if test_images is not None:
                for name, value in evaluate(model, test_images.to(target), seed=seed).items():
                    history.test.setdefault(name, []).append(value)
            step, sums = 0, {}
            if checkpoint is not None:
                _save(checkpoint, model, optimizer, settings, step, sums, history)
            latest = history.test or history.train
            bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in latest.items()})
    return history


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, *, batch_size: int = 1000, seed: int = 0) -> dict[str, float]:
    """The loss and its parts on ``images``, ``(N, ...)``: means over all examples.

    The model's noise is seeded, so two calls with the same weights give the same numbers, and it is put
    into evaluation mode for the time of the call.
    """
    if len(images) == 0:
        raise ValueError("images holds no examples.")
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {}
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        for batch in images.split(batch_size):
            loss = model.loss(batch)
            for name, value in {"total": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
    model.train(was_training)
    return {name: value / len(images) for name, value in sums.items()}


def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch: a function of the seed and the epoch alone.

    So a checkpoint taken in the middle of an epoch need not hold the permutation.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def _check_loss(loss, epoch: int, step: int) -> None:
    if torch.isfinite(loss.total):
        return
    bad = [name for name, value in loss.parts.items() if not torch.isfinite(value)] or ["total"]
    raise FloatingPointError(
        f"The loss is {loss.total.item()} at epoch {epoch + 1}, step {step + 1}, through its term "
        f"{' and '.join(bad)}; the weights before this step are unharmed. Try a smaller lr first; a log "
        "variance that runs away is the usual cause, a value the likelihood cannot explain the next."
    )


def _fingerprint(images: Tensor) -> str:
    """A few bytes that tell one data set from another."""
    sample = images[:: max(1, len(images) // 100)].detach().cpu().contiguous()
    digest = hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]
    return f"{tuple(images.shape)} {images.dtype} {digest}"


def _made_with(model: nn.Module) -> dict[str, object]:
    """The model's own numbers and names (``beta``, ``likelihood``, ...): with others it is another run."""
    return {
        f"model.{name}": value.item() if isinstance(value, np.generic) else value
        for name, value in vars(model).items()
        if isinstance(value, (int, float, str, tuple, np.generic))
        and name != "training"
        and not name.startswith("_")
    }


def _save(path, model, optimizer, settings, step, sums, history) -> None:
    state = {
        "model": model.state_dict(),
        "model_class": type(model).__name__,
        "optimizer": optimizer.state_dict(),
        "settings": settings,
        "step": step,
        "sums": sums,
        "history": asdict(history),
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Write beside the file and rename: a kill in the middle leaves the previous checkpoint whole.
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(path, model, optimizer, settings, target) -> tuple[int, dict, History]:
    try:
        state = torch.load(path, map_location=target, weights_only=True)
        theirs = {name: tuple(value.shape) for name, value in state["model"].items()}
        their_class, their_settings = state["model_class"], state["settings"]
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
        raise ValueError(
            f"{path} is the checkpoint of another model: a {their_class}, not this "
            f"{type(model).__name__}{detail}. Give this run a file of its own."
        )
    for name, value in settings.items():
        if their_settings.get(name) != value:
            raise ValueError(
                f"{path} is the checkpoint of a run with {name} = {their_settings.get(name)}, not "
                f"{value}, so this run cannot continue it. Give this run a file of its own."
            )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"].cpu())
    if target.type == "cuda" and state["rng_cuda"] is not None:
        torch.cuda.set_rng_state(state["rng_cuda"].cpu())
    return state["step"], state["sums"], History(**state["history"])
