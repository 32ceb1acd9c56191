"""What makes a training step faster than the tight eager loop of ``speed.py``? What each idea alone gave.

Every variant makes the same steps on the same images, a few of each in turn, many times over. Its gain
is the median over the rounds of the tight loop's time over its own, in CPU seconds of one thread, which other
work on the machine disturbs least. On several threads the matrix products weigh less, and the rest more.

    AECOURSE_DATA=<folder with MNIST/raw> python benchmarks/steps.py
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import speed
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse import data, train

BATCH = 128
Step = Callable[[], None]


class ByDefinition(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` (without groups and dilation); to one channel, on a CPU, in 0.6 of the time.

    PyTorch's own is made for many channels. Here, where it gives one, it does what the definition says:
    each pixel is multiplied by the kernel, and ``fold`` adds up the windows where they overlap.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.out_channels > 1 or x.device.type != "cpu":
            return super().forward(x)
        size = [
            (n - 1) * stride - 2 * padding + kernel + missing
            for n, stride, padding, kernel, missing in zip(
                x.shape[2:], self.stride, self.padding, self.kernel_size, self.output_padding
            )
        ]
        windows = self.weight.flatten(1).T @ x.flatten(2)
        image = F.fold(windows, size, self.kernel_size, padding=self.padding, stride=self.stride)
        return image + self.bias.view(-1, 1, 1)


class Likelihood(torch.autograd.Function):
    """The Bernoulli log-likelihood with its gradient, x - sigmoid(logits), written out."""

    @staticmethod
    def forward(ctx, x: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(x, logits)
        return torch.addcmul(F.logsigmoid(logits), x - 1, logits).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        x, logits = ctx.saved_tensors
        return None, (x - logits.sigmoid()).mul_(gradient)


class NoValue(Likelihood):
    """The same gradient and no value: more than any rewriting of the likelihood can give."""

    @staticmethod
    def forward(ctx, x: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(x, logits)
        return logits.new_zeros(())


class Divergence(torch.autograd.Function):
    """The KL divergence of q(z|x) from the prior with its gradient written out."""

    @staticmethod
    def forward(ctx, mean: Tensor, logvar: Tensor) -> Tensor:
        ctx.save_for_backward(mean, logvar)
        return 0.5 * torch.addcmul(logvar.expm1() - logvar, mean, mean).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = ctx.saved_tensors
        return mean * gradient, 0.5 * logvar.expm1() * gradient


class Run:
    """One model in training, whose step is put together from exchangeable parts."""

    def __init__(self, model: str, images: Tensor, optimizer: type = torch.optim.Adam, **options):
        torch.manual_seed(0)
        body, features, self.decoder = speed.networks(model)
        self.encoder = speed.GaussianHead(body, features)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = optimizer(self.parameters, lr=1e-3, **({"fused": True} | options))
        self.batches = torch.randperm(len(images)).split(BATCH)
        self.images, self.step = images, 0

    def rows(self) -> Tensor:
        self.step = (self.step + 1) % (len(self.batches) - 1)  # the last one is short
        return self.batches[self.step]

    def gather(self) -> Tensor:
        return self.images.index_select(0, self.rows())

    def loss(self, x: Tensor, log_likelihood: Callable | None = None, kl: Callable | None = None) -> Tensor:
        if log_likelihood is None and kl is None:
            return speed.negative_elbo(self.encoder, self.decoder, x)
        mean, logvar = self.encoder(x)
        logits = self.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))
        if kl is None:
            divergence = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
            return (divergence - log_likelihood(x, logits)) / len(x)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (cross_entropy + kl(mean, logvar)) / len(x)

    def eager(self, gather: Callable | None = None, loss: Callable | None = None) -> Step:
        gather, loss = gather or self.gather, loss or self.loss

        def step() -> None:
            value = loss(gather())
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()

        return step

    def short_adam(self, loss: Callable | None = None) -> Step:
        loss = loss or self.loss

        def step() -> None:
            value = loss(self.gather())
            self.optimizer.forget_gradients()
            value.backward()
            self.optimizer.update()

        return step

    def whole_step(self) -> Step:
        """Loss, gradient and Adam's update as one compiled graph."""
        network = nn.ModuleList([self.encoder, self.decoder])
        names = [f"network.{name}" for name, _ in network.named_parameters()]
        weights = [p.detach() for p in network.parameters()]
        first, second = ([torch.zeros_like(p) for p in weights] for _ in range(2))
        count = torch.zeros(())

        class Loss(nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def forward(self, x: Tensor) -> Tensor:
                return speed.negative_elbo(*self.network, x)

        module = Loss()

        def update(weights, first, second, count, x) -> Tensor:
            def loss(weights: list[Tensor]) -> Tensor:
                return torch.func.functional_call(module, dict(zip(names, weights)), (x,))

            gradients, value = torch.func.grad_and_value(loss)(weights)
            count.add_(1)
            rate, scale = 1e-3 / (1 - 0.9**count), (1 - 0.999**count).sqrt()
            for p, m, v, g in zip(weights, first, second, gradients):
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                p.sub_(rate * m / (v.sqrt() / scale + 1e-8))
            return value

        compiled = torch.compile(update, dynamic=False)

        def step() -> None:
            with torch.no_grad():
                compiled(weights, first, second, count, self.gather())

        return step


def mlp_steps(images: Tensor, compile: bool) -> dict[str, Step]:
    buffer, bytes_ = torch.empty(BATCH, 1, 28, 28), (255 * images).to(torch.uint8)
    run = partial(Run, "mlp", images)
    written, valueless, divergence, gathered, narrow = (run() for _ in range(5))
    steps = {
        "tight eager loop": run().eager(),
        "Adam's fused kernel, without zero_grad and step around it": run(optimizer=train._Adam).short_adam(),
        "Adam with foreach": run(fused=False, foreach=True).eager(),
        "likelihood as one function, gradient written out": written.eager(
            loss=lambda x: written.loss(x, log_likelihood=Likelihood.apply)
        ),
        "no value of the likelihood at all, gradient alone (a bound)": valueless.eager(
            loss=lambda x: valueless.loss(x, log_likelihood=NoValue.apply)
        ),
        "KL as one function, gradient written out": divergence.eager(
            loss=lambda x: divergence.loss(x, kl=Divergence.apply)
        ),
        "images gathered into one buffer": gathered.eager(
            lambda: torch.index_select(images, 0, gathered.rows(), out=buffer)
        ),
        "images kept as bytes": narrow.eager(lambda: bytes_.index_select(0, narrow.rows()) / 255),
    }
    if compile:
        compiled = torch.compile(speed.negative_elbo, dynamic=False)
        plain, short = run(), run(optimizer=train._Adam)
        steps["loss compiled"] = plain.eager(loss=lambda x: compiled(plain.encoder, plain.decoder, x))
        steps["loss compiled, and Adam's kernel alone"] = short.short_adam(
            lambda x: compiled(short.encoder, short.decoder, x)
        )
        steps["whole step compiled"] = run().whole_step()
    steps["matrix products alone (a bound)"] = speed.floor(images[:BATCH], BATCH)
    return steps


def conv_steps(images: Tensor, compile: bool) -> dict[str, Step]:
    def last_by_definition(run: Run) -> Run:
        run.decoder[-1].__class__ = ByDefinition
        return run

    def innermost(run: Run, order: Callable[[Tensor], Tensor]) -> Run:
        for parameter in run.parameters:
            if parameter.dim() == 4:
                parameter.data = order(parameter.data)
        return run

    def contiguous(kernel: Tensor) -> Tensor:
        return kernel.contiguous(memory_format=torch.channels_last)

    def ordered(kernel: Tensor) -> Tensor:
        return torch.empty_like(kernel, memory_format=torch.channels_last).copy_(kernel)

    run = partial(Run, "conv", images)
    steps = {
        "tight eager loop": run().eager(),
        "kernels with channels innermost, by contiguous()": innermost(run(), contiguous).eager(),
        "kernels with channels innermost, those for one channel as well": innermost(run(), ordered).eager(),
        "last transposed convolution by its definition": last_by_definition(run()).eager(),
        "these two": last_by_definition(innermost(run(), ordered)).eager(),
        "these two, and Adam's kernel alone": last_by_definition(
            innermost(run(optimizer=train._Adam), ordered)
        ).short_adam(),
    }
    if compile:
        steps["whole step compiled"] = run().whole_step()
        both = last_by_definition(innermost(run(), ordered))
        steps["whole step compiled, with these two"] = both.whole_step()
    return steps


@speed.flushed()
def measure(steps: dict[str, Step], rounds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time a step, and the gain over the first of the variants."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for name, step in steps.items():
        began = time.perf_counter()
        for _ in range(3):
            step()
        print(f"{name}: ready in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    for _ in range(rounds):
        for name, step in random.sample(list(steps.items()), len(steps)):
            began = time.thread_time()
            for _ in range(repeats):
                step()
            taken[name].append((time.thread_time() - began) / repeats)
    first = next(iter(taken.values()))
    return {
        name: {
            "cpu_ms": round(1000 * statistics.median(values), 2),
            "gain": round(statistics.median(a / b for a, b in zip(first, values)), 3),
        }
        for name, values in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = data.load("mnist").train
    result = {
        "batch_size": BATCH,
        "mlp": measure(mlp_steps(images, options.compile), options.rounds, repeats=6),
        "conv": measure(conv_steps(images, options.compile), max(options.rounds // 4, 1), repeats=2),
        "machine": f"1 thread, {platform.machine()}",
        "versions": {"torch": version("torch")},
    }
    print(json.dumps(result, indent=2))
    speed.RESULTS.mkdir(exist_ok=True)
    path = speed.RESULTS / "speed-steps.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
