"""One training loop for every model of the course.

A model takes part by having two methods: ``validate(images)``, which refuses unsuitable data before
the first step, and ``loss(batch)``, which returns a :class:`aecourse.bounds.Loss`. A conditional model
takes ``labels`` in both. A model with several players, such as an adversarial one, names in ``Loss.own``
who minimises what. Two more methods are called where a model has them: ``parameter_groups()``, for step
sizes and other settings of Adam that differ between parameters (see :func:`fit`), and ``after_step()``,
after each update, for what is learned without a gradient, such as the moving averages of a codebook.
"""

import copy
import inspect
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
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
from aecourse.contracts import check_count
from aecourse.distributed import Team, all_sum, join

PRECISIONS = ("float32", "tf32", "bfloat16")
GROUP_SETTINGS = ("params", "lr_scale", "betas", "eps", "weight_decay")

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

    def add(self, train: dict[str, float], test: dict[str, float], seconds: float) -> None:
        """Append one epoch."""
        for curves, means in ((self.train, train), (self.test, test)):
            for name, value in means.items():
                curves.setdefault(name, []).append(value)
        self.seconds.append(seconds)


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
    process up to rounding. (Dropout, the statistics of batch normalisation and the noise of a compiled loss
    are each process's own. After each step all take over the buffers of the first process: the running
    averages of batch normalisation are those of its parts, and what ``after_step`` adds up over the batch
    needs :func:`aecourse.distributed.all_sum`.)

    A model's ``parameter_groups()`` returns a list of dictionaries, each with ``params``, a list of
    parameters, and any of ``lr_scale``, which multiplies ``lr``, and Adam's ``betas``, ``eps`` and
    ``weight_decay``. Parameters in no group have Adam's defaults.

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
        TypeError, ValueError: an argument of another kind or out of range, data the model refuses, images of
            another precision than the weights, a batch of one for batch normalisation, a checkpoint of
            another model, other data or other settings, parameter groups or players of a loss that do not
            fit the model.
        FloatingPointError: the loss or its gradient became NaN or infinite; the message says at which
            step and in which term. The weights are those before that step, and the last checkpoint is kept.
    """
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    if not callable(lr) and not lr > 0:
        raise ValueError(f"lr is {lr} but must be positive.")
    if beta is not None and not callable(beta):
        raise TypeError(
            f"beta is {beta!r} but must be a function of the step, as annealing schedules are. A weight that "
            "stays the same belongs to the model: beta is an option of its class."
        )
    if transform is not None and not callable(transform):
        raise TypeError(f"transform is {transform!r} but must be a function of a batch.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model is a {type(model).__name__} without a parameter that can be trained.")
    if beta is not None and not _takes(model.loss, "beta"):
        raise ValueError(f"beta is given but the loss of {type(model).__name__} has no KL to weigh.")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r} but must be one of {PRECISIONS}.")
    if checkpoint_steps is not None:
        check_count("checkpoint_steps", checkpoint_steps)
        if checkpoint is None:
            raise ValueError(
                f"checkpoint_steps is {checkpoint_steps} but there is no checkpoint to write to."
            )
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint is {str(checkpoint)!r}, a folder, but must name a file.")
    _check_data(model, "images", images, "labels", labels, transform)
    if test_images is not None:
        _check_data(model, "test_images", test_images, "test_labels", test_labels, transform)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if (len(images) % batch_size or batch_size) < 2 * processes:  # some process gets a single example
        _check_single(model, images, labels, transform, batch_size)

    home = next(model.parameters()).device
    target = pick_device(device)
    precision = precision or ("tf32" if target.type == "cuda" else "float32")
    steps = math.ceil(len(images) / batch_size)
    if compile is None:
        compile = target.type == "cuda" and epochs * steps >= 10_000 and find_spec("triton") is not None
    # Not NumPy's numbers, which would make a checkpoint unreadable.
    options = {"batch_size": int(batch_size), "lr": lr if callable(lr) else float(lr), "seed": int(seed)}
    options |= {"beta": beta, "transform": transform, "precision": precision}

    groups = _parameter_groups(model)
    if hasattr(model, "parameter_groups"):
        names = {parameter: name for name, parameter in model.named_parameters()}
        options["parameter_groups"] = str([{**g, "params": [names[p] for p in g["params"]]} for g in groups])

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
        team.agree([*model.parameters(), *model.buffers()])
        # One fused kernel for all parameters: most of what a small model's step costs is Adam's update.
        optimizer = _Adam(groups, fused=target.type in ("cpu", "cuda"))
        history, watch, players = History(), _Watch(model, optimizer, team), None
        if checkpoint is not None:
            file = checkpoints.Checkpoint(checkpoint, model, optimizer, team, run)
            if (state := file.load(target)) is not None:
                history = History(**state[0])
                watch.resume(history.epochs, **state[1])
        loss_of = _loss_function(model, target, precision, compile)
        after_step = getattr(model, "after_step", None)
        bar = stack.enter_context(
            tqdm(
                total=epochs * steps,
                initial=history.epochs * steps + len(watch.losses),
                disable=not progress or team.rank > 0,
                unit="step",
                mininterval=0.2,
            )
        )
        while (epoch := history.epochs) < epochs:
            order = _order(len(images), int(seed), epoch).to(target)
            rate = float(lr(epoch) if callable(lr) else lr)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            began = time.perf_counter()
            for step in range(len(watch.losses), steps):
                rows, count = team.share(order[step * batch_size : (step + 1) * batch_size])
                extras = {} if labels is None else {"labels": labels[rows]}
                if beta is not None:
                    extras["beta"] = torch.full((), float(beta(epoch * steps + step)), device=target)
                batch = images.index_select(0, rows)  # half the time of images[rows] on a CPU
                with nullcontext() if compile else team.noise():
                    loss = loss_of(batch if transform is None else transform(batch), **extras)
                optimizer.forget_gradients()
                if not loss.own:
                    loss.total.backward()
                else:
                    players = players or _players(model, loss.own)
                    _backward_of_each(players, loss)
                team.average_gradients(model.parameters())
                watch.record(loss, count)
                optimizer.update()
                if after_step is not None:
                    after_step()
                team.agree(model.buffers())
                bar.update()
                if checkpoint_steps and (step + 1) % checkpoint_steps == 0:
                    watch.vouch()
                    file.save(asdict(history), watch.state())
            seconds, means, tested = time.perf_counter() - began, watch.finish_epoch(), {}
            if test_images is not None:
                tested = mean_loss(model, test_images, labels=test_labels, transform=transform, seed=seed)
            history.add(means, tested, seconds)
            if checkpoint is not None:
                watch.vouch()
                file.save(asdict(history), watch.state())
            bar.set_postfix({name: f"{value:.4g}" for name, value in (tested or means).items()})
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
    """The loss, its parts and the players' own on ``images``, ``(N, ...)``: means over all examples.

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
            for name, value in loss.terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch)
    model.train(was_training)
    return {name: value / len(images) for name, value in sums.items()}


class _Watch:
    """The numbers that the steps of an epoch gave, and an eye on them: NaN and infinity end the run."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, team: Team):
        self.model, self.team = model, team
        self.epochs = 0  # finished ones
        self.names: list[str] = []
        self.losses: list[list[float] | Tensor] = []  # of each step of this epoch
        self.counts: list[int] = []  # and over how many examples they are means
        # The parameters whose gradients are watched: a NaN in the backward pass reaches every bias below
        # it, and to look at all weights as well would be felt. What is missed shows a step later.
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.watched = [p for p in parameters if p.dim() < 2] or [min(parameters, key=Tensor.numel)]
        self.like, self.stopped = parameters[0], None
        if self.like.device.type in ASYNCHRONOUS:
            # Fused Adam leaves the weights alone where this is 1, without telling the host.
            self.stopped = optimizer.found_inf = torch.zeros((), device=self.like.device)
        # On a CPU, four numbers take a fifth of the time of one small tensor.
        self.cheap = self.like.device.type == "cpu" and self.stopped is None and team.size == 1

    def record(self, loss: Loss, count: int) -> None:
        """Note the losses of a step between its backward pass and its update; stop at NaN or infinity."""
        terms, total = loss.terms, loss.total
        self.names = self.names or [*terms]
        if self.names != [*terms]:
            raise ValueError(f"The loss has the terms {[*terms]} at this step but had {self.names} before.")
        gradients = [p.grad.flatten() for p in self.watched if p.grad is not None]
        gradient = torch.cat(gradients).sum() if gradients else torch.zeros_like(total)
        values = [*terms.values(), gradient]
        if self.cheap:
            values = [value.item() for value in values]
            probe = sum(values)
        else:
            values = torch.stack([value.detach().to(total) for value in values])
            probe = all_sum(values.sum())
        self.losses.append(values)
        self.counts.append(count)
        if self.stopped is not None:
            self.stopped.copy_(torch.maximum(self.stopped, (~torch.isfinite(probe)).to(self.stopped)))
        elif not math.isfinite(probe):
            self.check()

    def rows(self) -> Tensor:
        """The losses of the steps, ``(steps, terms + 1)``; in float64, so on the CPU: others may lack it."""
        if self.cheap:
            return torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        return torch.stack(self.losses).cpu().double()

    def check(self) -> None:
        """Raise ``FloatingPointError`` if a step of this epoch was not finite: the first is reported."""
        rows = self.rows()
        finite = torch.isfinite(rows)
        first = (~finite.all(dim=1)).nonzero()[:1].flatten().tolist()
        mine = [(step, finite[step].tolist(), float(rows[step, 0])) for step in first]
        steps = [entry for entries in self.team.gather(mine) for entry in entries]
        if not steps:
            return
        step, fine, total = min(steps)
        bad = [name for name, good in zip(self.names, fine) if not good]
        where = f"at epoch {self.epochs + 1}, step {step + 1}"
        if not fine[0]:
            what = f"The loss is {total} {where}, through its term {' and '.join(bad[1:] or bad)}"
        elif bad:
            what = f"The term {' and '.join(bad)} is not finite {where}, though the loss is {total:g}"
        else:
            what = f"The gradient of the loss is not finite {where}, though the loss is {total:g}"
        state = "the weights before this step are unharmed"
        if spoiled := self.spoiled():
            state = f"the gradient of the step before had spoiled {spoiled} (the last checkpoint is whole)"
        raise FloatingPointError(
            f"{what}; {state}. Try a smaller lr first; a log variance that runs away is the usual cause, "
            "a value the likelihood cannot explain the next."
        )

    def vouch(self) -> None:
        """Raise ``FloatingPointError`` if the weights are not fit to be saved."""
        if self.stopped is not None and self.losses:
            self.check()
        if spoiled := self.spoiled():
            raise FloatingPointError(
                f"The last step spoiled {spoiled}: its gradient was not finite, though the loss was. The "
                "checkpoint is kept as it was before. Look for a square root or a logarithm of zero."
            )

    def spoiled(self) -> str:
        """The names of the parameters that are not finite; empty if all is well."""
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        return " and ".join(bad)

    def finish_epoch(self) -> dict[str, float]:
        """The means over the examples of the epoch, of all processes, by name."""
        if self.stopped is not None:
            self.check()
        counts = torch.tensor(self.counts, dtype=torch.float64, device="cpu")
        sums = (self.rows() * counts.unsqueeze(1)).sum(dim=0)
        sums, count = zip(*self.team.gather((sums[:-1], float(counts.sum()))))
        self.epochs, self.losses, self.counts = self.epochs + 1, [], []
        return {name: value / sum(count) for name, value in zip(self.names, sum(sums).tolist())}

    def state(self) -> dict[str, list]:
        """What a run needs to go on in the middle of an epoch; see :meth:`resume`."""
        losses = self.rows().tolist() if self.losses else []
        return {"names": self.names, "losses": losses, "counts": self.counts}

    def resume(self, epochs: int, names: list[str], losses: list[list[float]], counts: list[int]) -> None:
        """Go on after so many epochs and, in the next one, after these steps."""
        self.epochs, self.names, self.counts = epochs, names if losses else [], counts
        self.losses = losses if self.cheap else [self.like.new_tensor(row) for row in losses]


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


def _players(model: nn.Module, names: Iterable[str]) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each of these submodules, and under "" those of none of them.

    Raises:
        ValueError: there is no such submodule, or two of them share a parameter.
    """
    modules, owners, players = dict(model.named_modules()), {}, {}
    for name in names:
        if not name or name not in modules:
            known = ", ".join(child for child, _ in model.named_children())
            raise ValueError(f"own names {name!r}, which is no submodule of the model; it has {known}.")
        players[name] = [p for p in modules[name].parameters() if p.requires_grad]
        for parameter in players[name]:
            if (other := owners.setdefault(parameter, name)) != name:
                raise ValueError(f"own names {other!r} and {name!r}, which share a parameter: whose is it?")
    return {**players, "": [p for p in model.parameters() if p.requires_grad and p not in owners]}


def _backward_of_each(players: dict[str, list[nn.Parameter]], loss: Loss) -> None:
    """Give the parameters of each player the gradient of its own loss, all others that of the total.

    The passes share one graph, and all come before the update, which changes what the graph refers to.

    Raises:
        ValueError: a player's loss does not depend on its parameters.
    """
    for name, parameters in players.items():
        if not parameters:
            continue  # frozen, or nobody is left for the total
        own = loss.own[name] if name else loss.total
        if own.requires_grad:
            own.backward(inputs=parameters, retain_graph=name != "")
        if all(parameter.grad is None for parameter in parameters):
            which = f"own[{name!r}] does not depend on its player's" if name else "total depends on no other"
            raise ValueError(f"The loss's {which} parameters: there is no gradient. Is something detached?")


def _parameter_groups(model: nn.Module) -> list[dict]:
    """The groups that the model wants, and one of all other parameters, as Adam takes them.

    Raises:
        ValueError: an unknown setting, a parameter in two groups, or one that is not the model's.
    """
    names, groups, grouped = {p: name for name, p in model.named_parameters()}, [], set()
    for group in model.parameter_groups() if hasattr(model, "parameter_groups") else []:
        if unknown := [key for key in group if key not in GROUP_SETTINGS]:
            raise ValueError(f"parameter_groups has the setting {unknown[0]!r} but knows {GROUP_SETTINGS}.")
        if "params" not in group:
            raise ValueError("parameter_groups has a group without 'params', the list of its parameters.")
        groups.append({"lr_scale": 1.0, **group, "params": [*group["params"]]})
        for parameter in groups[-1]["params"]:
            if parameter not in names:
                raise ValueError("parameter_groups holds a parameter that is not one of the model's.")
            if parameter in grouped:
                raise ValueError(f"parameter_groups has {names[parameter]} twice, but once is allowed.")
            grouped.add(parameter)
        if not groups[-1]["lr_scale"] > 0:
            raise ValueError(f"lr_scale is {groups[-1]['lr_scale']} but must be positive.")
    rest = [parameter for parameter in names if parameter not in grouped]
    return [*groups, {"lr_scale": 1.0, "params": rest}] if rest else groups


def _loss_function(
    model: nn.Module, device: torch.device, precision: str, compile: bool
) -> Callable[..., Loss]:
    """``model.loss`` as it is to be run: compiled, in mixed precision."""
    function: Callable[..., Loss] = model.loss
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
    flushing = bool(torch.full((1,), 2e-38, dtype=torch.float32, device="cpu") / 4 == 0)
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
    generator = torch.Generator("cpu").manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator, device="cpu")


def _takes(function: Callable, name: str) -> bool:
    """Whether a function takes an argument of this name."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check_data(
    model: nn.Module,
    name: str,
    images: Tensor,
    labels_name: str,
    labels: Tensor | None,
    transform: Callable[[Tensor], Tensor] | None,
) -> None:
    if len(images) == 0:
        raise ValueError(f"{name} holds no examples.")
    required = inspect.signature(model.validate).parameters
    if labels is None:
        if "labels" in required and required["labels"].default is inspect.Parameter.empty:
            raise ValueError(
                f"{labels_name} is missing: {type(model).__name__} needs a label of each example."
            )
        model.validate(images)
    elif len(labels) != len(images):
        raise ValueError(f"{labels_name} has {len(labels)} entries but {name} holds {len(images)} examples.")
    elif not _takes(model.validate, "labels"):
        raise ValueError(f"{labels_name} is given but {type(model).__name__} has no use for labels.")
    else:
        model.validate(images, labels)
    types = {parameter.dtype for parameter in model.parameters()}
    if images.dtype not in types and _first(images, transform).dtype not in types:
        need = ", ".join(sorted(map(str, types)))
        cure = f"{name}.float()" if torch.float32 in types else f"{name}.to({need})"
        raise TypeError(f"{name} has dtype {images.dtype} but the model's weights are {need}: take {cure}.")


def _check_single(
    model: nn.Module, images: Tensor, labels: Tensor | None, transform: Callable | None, batch_size: int
) -> None:
    """Raise if the model cannot learn from a batch of one example, and will get one."""
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
        return
    probe = copy.deepcopy(model).train()
    extras = {} if labels is None else {"labels": labels[:1]}
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            probe.loss(_first(images, transform).to(device), **{k: v.to(device) for k, v in extras.items()})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch_size is {batch_size}, so that a batch holds one of the {len(images)} images, and batch "
            "normalisation needs two. Take another size, or leave out an image: images[:-1]."
        ) from error


def _first(images: Tensor, transform: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The first image as the model will see it, ``(1, ...)``. The caller's generators stay as they are."""
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        return images[:1] if transform is None else transform(images[:1])
