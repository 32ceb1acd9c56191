"""How fast is ``aecourse.fit``, against its peers and against the bare matrix products of the same step?

One VAE (784-400-20, Bernoulli likelihood on grey values, Adam) is trained for one epoch of MNIST by each
contender in turn, several times over; the medians go to ``results/speed-*.json``. All run with the same
number of threads, on the same images, in one process, and each as a reader would call it: ``aecourse.fit``
with its progress bar, history and NaN check, pythae with its own trainer.

    pip install -e '.[book]' pythae pyro-ppl
    AECOURSE_DATA=<folder with MNIST/raw> python benchmarks/speed.py --batch-size 128
    AECOURSE_DATA=<folder with MNIST/raw> python benchmarks/speed.py --model conv --images 12800
"""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse import VAE, data, fit

LATENT, HIDDEN = 20, 400
RESULTS = Path(__file__).parent / "results"


def conv_encoder() -> nn.Sequential:
    """Two strided convolutions: about 30 million floating-point operations an image, with the decoder."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
    )  # fmt: skip


def conv_decoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(LATENT, 64 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
    )  # fmt: skip


def networks(model: str) -> tuple[nn.Module, int, nn.Module]:
    """A body, the number of its features, and a decoder that gives logits: the same for every contender."""
    if model == "conv":
        return conv_encoder(), 64 * 7 * 7, conv_decoder()
    body = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU())
    decoder = nn.Sequential(
        nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784), nn.Unflatten(1, (1, 28, 28))
    )
    return body, HIDDEN, decoder


class GaussianHead(nn.Module):
    """A body with a linear layer that gives mean and log variance."""

    def __init__(self, body: nn.Module, features: int):
        super().__init__()
        self.body, self.head = body, nn.Linear(features, 2 * LATENT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.head(self.body(x)).chunk(2, dim=1)
        return mean, logvar


def ours(model: str, images: Tensor, batch_size: int, **options) -> Callable[[], None]:
    """``aecourse.fit`` as a reader calls it."""
    if model == "mlp":
        vae = VAE.mlp((1, 28, 28), LATENT, hidden=(HIDDEN,))
    else:
        vae = VAE.conv((1, 28, 28), LATENT, channels=(32, 64))
    return lambda: fit(vae, images, epochs=1, batch_size=batch_size, device="cpu", **options)


def negative_elbo(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    """The loss as one writes it by hand, per example."""
    mean, logvar = encoder(x)
    z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
    reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
    return (reconstruction + kl) / len(x)


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Denormal numbers are zero, as in ``fit``."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def tight(model: str, images: Tensor, batch_size: int, compile: bool = False) -> Callable[[], None]:
    """The shortest eager loop: data in memory, fused Adam; no bar, no history, no watch over the numbers."""
    body, features, decoder = networks(model)
    encoder = GaussianHead(body, features)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    loss_of = torch.compile(negative_elbo, dynamic=False) if compile else negative_elbo

    @flushed()
    def run() -> None:
        for rows in torch.randperm(len(images)).split(batch_size):
            loss = loss_of(encoder, decoder, images.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def tutorial(model: str, images: Tensor, batch_size: int) -> Callable[[], None]:
    """The loop of most tutorials: torchvision's data set, image by image through a DataLoader."""
    from torchvision import datasets, transforms

    mnist = datasets.MNIST(str(data.data_root()), train=True, transform=transforms.ToTensor())
    subset = torch.utils.data.Subset(mnist, range(len(images)))
    loader = torch.utils.data.DataLoader(subset, batch_size=batch_size, shuffle=True)
    body, features, decoder = networks(model)
    encoder = GaussianHead(body, features)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)

    def run() -> None:
        running = 0.0
        for x, _ in loader:
            mean, logvar = encoder(x)
            z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
            probabilities = torch.sigmoid(decoder(z))
            reconstruction = F.binary_cross_entropy(probabilities, x, reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
            loss = reconstruction + kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()

    return run


def pythae(model: str, images: Tensor, batch_size: int) -> Callable[[], None]:
    """pythae's VAE and trainer, with the same networks."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.Module):
            BaseEncoder.__init__(self)
            self.net = net

        def forward(self, x: Tensor) -> ModelOutput:
            mean, logvar = self.net(x)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.Module):
            BaseDecoder.__init__(self)
            self.net = net

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))

    body, features, decoder = networks(model)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    vae = PythaeVAE(config, Encoder(GaussianHead(body, features)), Decoder(decoder))
    examples = BaseDataset(images, torch.zeros(len(images)))

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            settings = BaseTrainerConfig(
                output_dir=folder,
                num_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=1e-3,
                no_cuda=True,
            )
            trainer = BaseTrainer(model=vae, train_dataset=examples, training_config=settings)
            trainer.prepare_training()
            trainer.train_step(1)  # the epoch itself: no evaluation and no files

    return run


def pyro_svi(model: str, images: Tensor, batch_size: int) -> Callable[[], None]:
    """Pyro's stochastic variational inference on tensors that are in memory already."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam

    body, features, decoder = networks(model)
    encoder = GaussianHead(body, features)

    def generate(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("batch", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)).to_event(1)
            logits = decoder(pyro.sample("z", prior))
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(3), obs=x)

    def infer(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("batch", len(x)):
            mean, logvar = encoder(x)
            pyro.sample("z", dist.Normal(mean, torch.exp(0.5 * logvar)).to_event(1))

    pyro.clear_param_store()
    svi = SVI(generate, infer, Adam({"lr": 1e-3}), Trace_ELBO())
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images), batch_size=batch_size, shuffle=True
    )

    def run() -> None:
        running = 0.0
        for (x,) in loader:
            running += svi.step(x)

    return run


def floor(images: Tensor, batch_size: int) -> Callable[[], None]:
    """The matrix products of the MLP's step, forward and backward, and nothing else."""
    x, hidden = torch.randn(batch_size, 784), torch.randn(batch_size, HIDDEN)
    heads, z = torch.randn(batch_size, 2 * LATENT), torch.randn(batch_size, LATENT)
    w1, w2 = torch.randn(HIDDEN, 784), torch.randn(2 * LATENT, HIDDEN)
    w3, w4 = torch.randn(HIDDEN, LATENT), torch.randn(784, HIDDEN)
    products = [(x, w1.T), (hidden, w2.T), (z, w3.T), (hidden, w4.T)]
    # Backward: the gradient of every weight, and of every layer's input but that of the images.
    products += [(x.T, hidden), (hidden.T, heads), (z.T, hidden), (hidden.T, x)]
    products += [(x, w4), (hidden, w3), (heads, w2)]
    results = [a @ b for a, b in products]

    def run() -> None:
        for _ in range(len(images) // batch_size):
            for (a, b), result in zip(products, results):
                torch.mm(a, b, out=result)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("mlp", "conv"), default="mlp")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch; by default one for each core")
    parser.add_argument("--compile", action="store_true", help="time compiled runs as well")
    parser.add_argument("--only", nargs="+", help="these contenders alone; nothing is written")
    options = parser.parse_args()

    if options.threads:
        torch.set_num_threads(options.threads)
    images = data.load("mnist").train[: options.images]
    torch.manual_seed(0)
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "aecourse.fit": lambda: ours(options.model, images, options.batch_size),
        "tight eager loop": lambda: tight(options.model, images, options.batch_size),
        "pythae": lambda: pythae(options.model, images, options.batch_size),
        "Pyro SVI": lambda: pyro_svi(options.model, images, options.batch_size),
        "DataLoader tutorial": lambda: tutorial(options.model, images, options.batch_size),
    }
    if options.compile:
        makers["aecourse.fit, compiled"] = lambda: ours(
            options.model, images, options.batch_size, compile=True
        )
        makers["tight loop, compiled"] = lambda: tight(
            options.model, images, options.batch_size, compile=True
        )
    if options.model == "mlp":
        makers["matrix products"] = lambda: floor(images, options.batch_size)
    runs = {name: make() for name, make in makers.items() if not options.only or name in options.only}

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(options.repeats + 1):
        for name, run in runs.items():
            with contextlib.redirect_stderr(io.StringIO()):  # bars are drawn, and not shown
                began, began_cpu = time.perf_counter(), time.process_time()
                run()
                taken, taken_cpu = time.perf_counter() - began, time.process_time() - began_cpu
            if repeat > 0:  # the first round warms up
                seconds[name].append(taken)
                cpu_seconds[name].append(taken_cpu)
            print(f"{repeat} {name:24} {len(images) / taken:10,.0f} images/s", file=sys.stderr, flush=True)

    medians = {name: len(images) / statistics.median(values) for name, values in seconds.items()}
    result = {
        "model": options.model,
        "batch_size": options.batch_size,
        "images": len(images),
        "images_per_second": {name: round(value) for name, value in medians.items()},
        "ours_is_faster_by": {
            name: round(medians["aecourse.fit"] / value, 2)
            for name, value in medians.items()
            if name != "aecourse.fit" and "aecourse.fit" in medians
        },
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "cpu_seconds": {name: [round(value, 3) for value in values] for name, values in cpu_seconds.items()},
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, load {os.getloadavg()[0]:.2f}",
        "versions": {name: version(name) for name in ("torch", "pythae", "pyro-ppl")},
    }
    print(json.dumps(result, indent=2))
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"speed-{options.model}-{options.batch_size}.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
