"""How close does ``aecourse.fit`` come to what a GPU can do? The MLP VAE 784-400-20, epochs of MNIST.

Four runs in turn: eager and compiled (CUDA graphs), each in TF32 and bfloat16; and the floor, the time of the
step's matrix products and of moving what Adam reads and writes through memory. Also counts the host
synchronisations of an epoch: a few at its end, none for each step.

    AECOURSE_DATA=<folder with MNIST/raw> python benchmarks/gpu.py          (needs a CUDA GPU)

The result is ``results/gpu.json``.
"""

import argparse
import json
import statistics
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from speed import HIDDEN, LATENT, floor

from aecourse import VAE, data, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=12, help="of each run; the first two are not counted")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA GPU, and torch sees none here.")

    images = data.load("mnist").train
    seconds, synchronisations = {}, {}
    for precision in ("tf32", "bfloat16"):
        for compile in (False, True):
            name = f"aecourse.fit, {precision}{', compiled' if compile else ''}"
            torch.manual_seed(0)
            vae = VAE.mlp((1, 28, 28), LATENT, hidden=(HIDDEN,))
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                history = fit(
                    vae,
                    images,
                    epochs=options.epochs,
                    batch_size=options.batch_size,
                    precision=precision,
                    compile=compile,
                    progress=False,
                )
            torch.cuda.set_sync_debug_mode("default")
            seconds[name] = statistics.median(history.seconds[2:])
            synchronisations[name] = sum("synchroniz" in str(w.message) for w in caught) / options.epochs

    torch.set_float32_matmul_precision("high")
    torch.set_default_device("cuda")
    products = floor(images, options.batch_size)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    products()
    start.record()
    products()
    end.record()
    torch.cuda.synchronize()
    seconds["matrix products, tf32"] = start.elapsed_time(end) / 1e3
    parameters = sum(p.numel() for p in vae.parameters())
    # Adam reads weight, gradient and two averages, and writes three of them back.
    moved = torch.empty(7 * parameters // 2)
    other = torch.empty_like(moved)
    steps = len(images) // options.batch_size
    other.copy_(moved)
    start.record()
    for _ in range(steps):
        other.copy_(moved)
    end.record()
    torch.cuda.synchronize()
    seconds["memory traffic of Adam"] = start.elapsed_time(end) / 1e3

    result = {
        "gpu": torch.cuda.get_device_name(),
        "batch_size": options.batch_size,
        "seconds_per_epoch": {name: round(value, 4) for name, value in seconds.items()},
        "host_synchronisations_per_epoch": synchronisations,
        "versions": {"torch": version("torch"), "cuda": torch.version.cuda},
    }
    print(json.dumps(result, indent=2))
    path = Path(__file__).parent / "results" / "gpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
