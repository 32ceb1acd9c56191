"""One training loop for every model of the course.

A model takes part by having two methods: ``validate(images)``, which refuses unsuitable data before
the first step, and ``loss(batch)``, which returns a :class:`aecourse.bounds.Loss`. A conditional model
takes ``labels`` in both.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from tqdm import tqdm

from aecourse import checkpoint as checkpoints
from aecourse.bounds import Loss
from aecourse.distributed import Team, join

PRECISIONS = ("float32", "tf32", "bfloat16")

# On these, asking for a number makes the host wait for the device: the loss is looked at once an epoch.
ASYNCHRONOUS = ("cuda",)


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
    """The device to train on: the one named, else a GPU where there is one, else the CPU.

    Of several GPUs a process that ``torchrun`` started takes its own.
    """
    if name is not None:
        return torch.device(name)
    if torch.cuda.is_available():
        own = os.environ.get("LOCAL_RANK")
        return torch.device("cuda" if own is None else f"cuda:{own}")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fit(
    model: nn.Module,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float | Callable[[int], float] = 1e-3,
    beta: Callable[[int], float] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    test_images: Tensor | None = None,
    test_labels: Tensor | None = None,
    device: str | None = None,
    precision: str | None = None,
    compile: bool | None = None,
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

    Under ``torchrun`` all processes train one model: each takes its part of every batch of
    ``batch_size`` and of its noise, and the gradients are averaged, so that the result is that of one
    process up to rounding. (Dropout, batch normalisation and a compiled loss are each process's own.)

    Args:
        model: anything with ``loss(batch)`` and ``validate(images)``; see the module's docstring.
        images: ``(N, ...)``, the training examples. All are kept on the device.
        labels: ``(N,)``, for a conditional model: handed to ``model.loss`` as ``labels``.
        epochs: passes over the data in all, those before a resumed checkpoint included.
        batch_size: examples per step; the last step of an epoch takes what is left.
        lr: Adam's step size: a number, or a function of the epoch, counted from 0.
        beta: weight of the KL as a function of the step, counted from 0, as the annealing schedules of
            :mod:`aecourse.bounds` are; handed to ``model.loss``. On test images the model's own is used.
        transform: what is done to every batch, afresh each time: ``data.binarize``, for example.
        seed: of the order of examples and of the noise.
        test_images: ``(M, ...)``, evaluated after each epoch with the same noise every time.
        test_labels: ``(M,)``, with ``labels``.
        device: ``"cpu"``, ``"cuda"``, ...; by default :func:`pick_device` chooses.
        precision: of the matrix products: ``"float32"``; ``"tf32"``, the default on a GPU; or
            ``"bfloat16"``, mixed precision, where weights, sums and likelihoods stay float32.
        compile: compile the loss (on a GPU, into CUDA graphs). By default only on a GPU and for runs of
            10,000 steps and more: compiling takes about a minute.
        checkpoint: file to write and to resume from.
        checkpoint_steps: write every so many steps as well as after every epoch.
        progress: show a progress bar.

    Returns:
        The :class:`History` of all epochs, in nats per example for models with a likelihood.

    Raises:
        ValueError: an argument out of range, data the model refuses, or a checkpoint of another model,
            other data or other settings.
        FloatingPointError: the loss or its gradient became NaN or infinite; the message says at which
            step and in which term. The weights are those before that step, and the last checkpoint is kept.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value} but must be at least 1.")
    if not callable(lr) and not lr > 0:
        raise ValueError(f"lr is {lr} but must be positive.")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r} but must be one of {PRECISIONS}.")
    if checkpoint_steps is not None and (checkpoint_steps < 1 or checkpoint is None):
        raise ValueError("checkpoint_steps must be at least 1 and needs a checkpoint to write to.")
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint is {str(checkpoint)!r}, a folder, but must name a file.")
    _check_data(model, "images", images, "labels", labels)
    if test_images is not None:
        _check_data(model, "test_images", test_images, "test_labels", test_labels)

    home = next(model.parameters()).device
    target = pick_device(device)
    precision = precision or ("tf32" if target.type == "cuda" else "float32")
    steps = math.ceil(len(images) / batch_size)
    if compile is None:
        compile = target.type == "cuda" and epochs * steps >= 10_000 and find_spec("triton") is not None
    # Not NumPy's numbers, which would make a checkpoint unreadable.
    options = {"batch_size": int(batch_size), "lr": lr if callable(lr) else float(lr), "seed": int(seed)}
    options |= {"beta": beta, "transform": transform, "precision": precision}

    with ExitStack() as stack:
        team = stack.enter_context(join(target, int(seed)))
        if checkpoint is not None:
            checkpoint, data = Path(checkpoint), {"data": images, "labels": labels}
            run = checkpoints.describe(model, data, {**options, "processes": team.size})
        # Also after an error or an interrupt a notebook goes on with the model where it was.
        stack.callback(lambda: model.to(home).eval())
        stack.enter_context(_channels_last(model))
        stack.enter_context(torch.random.fork_rng([target] if target.type == "cuda" else []))
        stack.enter_context(_number_format(precision))
        torch.manual_seed(int(seed) + 7919 * team.rank)  # no two processes draw the same noise
        model.to(target).train()
        images, test_images = images.to(target), None if test_images is None else test_images.to(target)
        labels, test_labels = (None if one is None else one.to(target) for one in (labels, test_labels))
        # One fused kernel for all parameters: most of what a small model's step costs is Adam's update.
        optimizer = _Adam(model.parameters(), fused=target.type in ("cpu", "cuda"))
        state = _State(model, optimizer, team)
        if checkpoint is not None and checkpoint.is_file():
            state.load(checkpoints.read(checkpoint, model, run, target))
        history, loss_of = state.history, _loss_function(model, team, target, precision, compile)
        bar = stack.enter_context(
            tqdm(
                total=epochs * steps,
                initial=history.epochs * steps + len(state.losses),
                disable=not progress or team.rank > 0,
                unit="step",
                mininterval=0.2,
            )
        )
        while (epoch := history.epochs) < epochs:
            order = _order(len(images), int(seed), epoch).to(target)
            for group in optimizer.param_groups:
                group["lr"] = float(lr(epoch)) if callable(lr) else float(lr)
            began = time.perf_counter()
            for step in range(len(state.losses), steps):
                whole = order[step * batch_size : (step + 1) * batch_size]
                rows, count = team.share(whole)
                extras = {} if labels is None else {"labels": labels[rows]}
                if beta is not None:
                    extras["beta"] = torch.full((), float(beta(epoch * steps + step)), device=target)
                batch = images.index_select(0, rows)  # half the time of images[rows] on a CPU
                with nullcontext() if compile else team.noise():
                    loss = loss_of(batch if transform is None else transform(batch), **extras)
                optimizer.forget_gradients()
                # In a team the gradients are averaged: weighted so, they are those of the whole batch.
                (loss.total if team.size == 1 else loss.total * (team.size * count / len(whole))).backward()
                state.record(loss, count)
                optimizer.update()
                bar.update()
                if checkpoint_steps and (step + 1) % checkpoint_steps == 0:
                    state.save(checkpoint, run)
            state.finish_epoch(time.perf_counter() - began)
            if test_images is not None:
                terms = mean_loss(model, test_images, labels=test_labels, transform=transform, seed=seed)
                for name, value in terms.items():
                    history.test.setdefault(name, []).append(value)
            if checkpoint is not None:
                state.save(checkpoint, run)
            latest = history.test or history.train
            bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in latest.items()})
    return history


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """The loss and its parts on ``images``, ``(N, ...)``: means over all examples.

    The noise of the model and of ``transform`` is seeded, so two calls with the same weights give the
    same numbers, and the model is put into evaluation mode for the time of the call.
    """
    if len(images) == 0:
        raise ValueError("images holds no examples.")
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {}
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        for rows in torch.arange(len(images), device=images.device).split(batch_size):
            batch = images[rows] if transform is None else transform(images[rows])
            loss = model.loss(batch) if labels is None else model.loss(batch, labels=labels[rows])
            for name, value in {"total": loss.total, **loss.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
    model.train(was_training)
    return {name: value / len(images) for name, value in sums.items()}


class _State:
    """What a run has done so far: all that a checkpoint must hold, and the watch over its numbers."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, team: Team):
        self.model, self.optimizer, self.team = model, optimizer, team
        self.history = History()
        self.names: list[str] = []
        self.losses: list[Tensor] = []  # of each step of this epoch, kept where they were computed
        self.counts: list[int] = []  # and over how many examples they are means
        self.buffers = checkpoints.buffer_checksums(model)
        # The parameters whose gradients are watched: a NaN in the backward pass reaches every bias below
        # it, and to look at all weights as well would be felt. What is missed shows a step later.
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.watched = [p for p in parameters if p.dim() < 2] or [min(parameters, key=Tensor.numel)]
        self.device = parameters[0].device
        self.asynchronous = self.device.type in ASYNCHRONOUS
        if self.asynchronous:
            # Fused Adam leaves the weights alone where this is 1, without telling the host.
            optimizer.found_inf = torch.zeros((), device=self.device)

    def record(self, loss: Loss, count: int) -> None:
        """Note the losses of a step between its backward pass and its update; stop at NaN or infinity."""
        gradients = [p.grad.flatten() for p in self.watched if p.grad is not None]
        total = loss.total.detach()
        gradient = torch.cat(gradients).sum().to(total) if gradients else torch.zeros_like(total)
        values = torch.stack([total, *(part.detach().to(total) for part in loss.parts.values()), gradient])
        self.names = ["total", *loss.parts]
        self.losses.append(values)
        self.counts.append(count)
        probe = self.team.sum(values.sum())
        if self.asynchronous:
            stopped = self.optimizer.found_inf
            stopped.copy_(torch.maximum(stopped, (~torch.isfinite(probe)).to(stopped)))
        elif not math.isfinite(probe):
            self.check()

    def check(self) -> None:
        """Raise ``FloatingPointError`` if a step of this epoch was not finite: the first is reported."""
        finite = torch.isfinite(torch.stack(self.losses)).cpu()
        mine = (~finite.all(dim=1)).nonzero()[:1].flatten().tolist()
        mine = (mine[0], finite[mine[0]].tolist(), float(self.losses[mine[0]][0])) if mine else None
        found = [one for one in self.team.gather(mine) if one is not None]
        if not found:
            return
        step, fine, total = min(found)
        bad = [name for name, good in zip(self.names[1:], fine[1:-1]) if not good]
        where = f"at epoch {self.history.epochs + 1}, step {step + 1}"
        what = f"The loss is {total} {where}, through its term {' and '.join(bad or ['total'])}"
        if fine[0]:
            what = f"The gradient of the loss is not finite {where}, though the loss is {total:g}"
        state = "the weights before this step are unharmed"
        if spoiled := self.spoiled():
            state = f"the gradient of the step before had spoiled {spoiled} (the last checkpoint is whole)"
        raise FloatingPointError(
            f"{what}; {state}. Try a smaller lr first; a log variance that runs away is the usual cause, "
            "a value the likelihood cannot explain the next."
        )

    def spoiled(self) -> str:
        """The names of the parameters that are not finite; empty if all is well."""
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        return " and ".join(bad)

    def finish_epoch(self, seconds: float) -> None:
        """Turn the losses of the steps into one line of the history."""
        if self.asynchronous:
            self.check()
        counts = torch.tensor(self.counts, dtype=torch.float64)
        # In double precision, and so on the CPU: not every device has it.
        sums = (torch.stack(self.losses).cpu().double() * counts.unsqueeze(1)).sum(dim=0)
        sums, count = zip(*self.team.gather((sums[:-1], float(counts.sum()))))
        for name, value in zip(self.names, sum(sums).tolist()):
            self.history.train.setdefault(name, []).append(value / sum(count))
        self.history.seconds.append(seconds)
        self.losses, self.counts = [], []

    def save(self, path: Path, run: dict) -> None:
        """Write the checkpoint: one process does, with the generators and the losses of all."""
        if self.asynchronous and self.losses:
            self.check()
        if spoiled := self.spoiled():
            raise FloatingPointError(
                f"The last step spoiled {spoiled}: its gradient was not finite, though the loss was. The "
                "checkpoint is kept as it was before. Look for a square root or a logarithm of zero."
            )
        own = {"rng": torch.get_rng_state(), "counts": self.counts}
        own["rng_cuda"] = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        own["rng_team"] = None if self.team.size == 1 else self.team.generator.get_state()
        own["losses"] = [loss.cpu() for loss in self.losses]
        processes = self.team.gather(own)
        if self.team.rank > 0:
            return
        now = checkpoints.buffer_checksums(self.model)
        state = {
            "model": self.model.state_dict(),
            "model_class": type(self.model).__name__,
            # What training does not change must be the same in the model that goes on.
            "constants": {name: value for name, value in self.buffers.items() if now[name] == value},
            "run": run,
            "optimizer": self.optimizer.state_dict(),
            "history": asdict(self.history),
            "names": self.names,
            "processes": processes,
        }
        checkpoints.write(path, state)

    def load(self, state: dict) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
        self.names = state["names"]
        own = state["processes"][self.team.rank]
        self.counts, self.losses = own["counts"], [loss.to(self.device) for loss in own["losses"]]
        torch.set_rng_state(own["rng"].cpu())
        if self.device.type == "cuda" and own["rng_cuda"] is not None:
            torch.cuda.set_rng_state(own["rng_cuda"].cpu())
        if self.team.size > 1:
            self.team.generator.set_state(own["rng_team"].cpu())


class _Adam(torch.optim.Adam):
    """Adam without what ``zero_grad`` and ``step`` do around their work: hooks, profiling, checks of options.

    The numbers and the state are the same. On a small model, what is left out takes 3 to 5 % of a step.
    """

    def forget_gradients(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def update(self) -> None:
        fused = all(group["fused"] for group in self.param_groups)
        given = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not fused or not all(self.state[p] for params in given for p in params):
            self.step()  # it also makes the averages, at the first gradient of a parameter
            return
        for group, params in zip(self.param_groups, given):
            states = [self.state[p] for p in params]
            adam(
                params,
                [p.grad for p in params],
                *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
                [],  # the maxima of AMSGrad
                [state["step"] for state in states],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                **{name: group[name] for name in ("lr", "eps", "weight_decay", "maximize", "amsgrad")},
                fused=True,
                found_inf=getattr(self, "found_inf", None),
            )


class _LossModule(nn.Module):
    """A model seen as a function of its batch, which is how PyTorch's data parallelism wants it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor, **extras: Tensor) -> Loss:
        return self.model.loss(*batch, **extras)


def _loss_function(
    model: nn.Module, team: Team, device: torch.device, precision: str, compile: bool
) -> Callable[..., Loss]:
    """``model.loss`` as it is to be run: compiled, in mixed precision, with averaged gradients."""
    function: Callable[..., Loss] = model.loss
    if team.size > 1:
        own = [device] if device.type == "cuda" else None
        function = nn.parallel.DistributedDataParallel(_LossModule(model), device_ids=own)
    if compile:
        # Whole CUDA graphs on a GPU; the short last batch of an epoch gets a graph of its own.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        function = torch.compile(function, mode=mode, dynamic=False)
    if precision == "bfloat16":
        function = torch.autocast(device.type, dtype=torch.bfloat16)(function)
    return function


@contextmanager
def _number_format(precision: str) -> Iterator[None]:
    """How numbers are treated during training; on leaving, all is as it was.

    Adam's averages of weights that get no more gradient, those of pixels that are always black, shrink
    until they are denormal, and a CPU adds denormal numbers many times slower: here they become zero.
    """
    matmul = torch.get_float32_matmul_precision()
    flushing = bool(torch.full((1,), 2e-38, dtype=torch.float32) / 4 == 0)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else matmul)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.set_flush_denormal(flushing)


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """During training, keep the kernels of two-dimensional convolutions with channels innermost in memory.

    It is the order that convolutions compute in; from any other they are copied at each step.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    try:
        _reorder(kernels, torch.channels_last)
        yield
    finally:
        _reorder(kernels, torch.contiguous_format)


def _reorder(tensors: list[Tensor], order: torch.memory_format) -> None:
    """Lay tensors out in memory in that order, also those with one channel: ``contiguous`` calls them ordered
    either way, and the results of such a kernel then lie in another order than those of the next."""
    for tensor in tensors:
        tensor.data = torch.empty_like(tensor.data, memory_format=order).copy_(tensor.data)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the examples in an epoch: a function of the seed and the epoch alone.

    So a checkpoint taken in the middle of an epoch need not hold the permutation.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def _check_data(model: nn.Module, name: str, images: Tensor, labels_name: str, labels: Tensor | None) -> None:
    if len(images) == 0:
        raise ValueError(f"{name} holds no examples.")
    if labels is None:
        model.validate(images)
        return
    if len(labels) != len(images):
        raise ValueError(f"{labels_name} has {len(labels)} entries but {name} holds {len(images)} examples.")
    model.validate(images, labels)
