"""How likely does a VAE find MNIST? The 784-200-200-50 model of Burda et al. (2016), by 5000 samples.

Dynamic binarisation, tanh units, Adam; bounds in nats on the 10,000 test images. Table 1 of the paper has
86.76 for the VAE and 84.78 for the IWAE with 50 samples, after 3280 epochs with batches of 20 in eight stages
of falling step size. ``--schedule paper`` is that schedule, meant for a GPU; ``--schedule hour`` has the same
stages, shortened to what two CPU cores do in less than an hour, with batches of 100.

    AECOURSE_DATA=<folder with MNIST/raw> python benchmarks/iwae.py --schedule hour
    AECOURSE_DATA=<folder with MNIST/raw> python benchmarks/iwae.py --schedule paper --samples 50 --bound iwae

Results go to ``results/iwae-*.json``. A run that was stopped goes on from its checkpoint.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from aecourse import IWAE, VAE, data, evaluate, fit
from aecourse.train import mean_loss, pick_device

STAGES = range(8)
PAPER_EPOCHS = [3**stage for stage in STAGES]  # 3280 in all
PAPER_RATES = [1e-4 * round(10 ** (1 - stage / 7), 1) for stage in STAGES]
SCHEDULES = {
    # Epochs of each stage. The short one spends them more evenly: with few epochs the small steps of the
    # last stages, which are two thirds of the paper's schedule, would leave too little for the large ones.
    "paper": {"stages": PAPER_EPOCHS, "rates": PAPER_RATES, "batch_size": 20},
    "hour": {
        "stages": [60, 60, 40, 40, 30, 30, 20, 20],
        "rates": [2 * rate for rate in PAPER_RATES],
        "batch_size": 100,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--schedule", choices=SCHEDULES, default="hour")
    parser.add_argument("--bound", choices=("elbo", "iwae"), default="elbo")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--evaluation-samples", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path("_build/benchmarks"))
    options = parser.parse_args()
    schedule = SCHEDULES[options.schedule]
    rates = [rate for rate, epochs in zip(schedule["rates"], schedule["stages"]) for _ in range(epochs)]
    name = f"iwae-{options.schedule}-{options.bound}-{options.samples}"

    images = data.load("mnist")
    torch.manual_seed(0)
    build = IWAE.mlp if options.bound == "iwae" else VAE.mlp
    vae = build(images.image_shape, 50, hidden=(200, 200), activation=nn.Tanh, samples=options.samples)
    # The output starts at the mean image, as in the paper: its logits are the decoder's last biases.
    with torch.no_grad():
        pixels = images.train.mean(dim=0).flatten().clamp(1e-3, 1 - 1e-3)
        vae.decoder.net[-1].bias.copy_(pixels.logit())
    history = fit(
        vae,
        images.train,
        epochs=len(rates),
        batch_size=schedule["batch_size"],
        lr=lambda epoch: rates[min(epoch, len(rates) - 1)],
        transform=data.binarize,
        test_images=images.test,
        checkpoint=options.folder / f"{name}.pt",
    )

    torch.manual_seed(1)
    device = pick_device()
    vae.to(device)
    test = data.binarize(images.test).to(device)
    terms = mean_loss(vae, test)
    nll = evaluate.negative_log_likelihood(vae, test, options.evaluation_samples)
    with torch.no_grad():
        means = torch.cat([vae.encode(batch)[0] for batch in test.split(1000)])
    result = {
        "model": "784-200-200-50, tanh, dynamic binarisation",
        "bound": options.bound,
        "samples": options.samples,
        "schedule": options.schedule,
        "epochs": len(rates),
        "batch_size": schedule["batch_size"],
        "training_minutes": round(sum(history.seconds) / 60, 1),
        "test_bound": round(-terms["total"], 2),
        "test_nll": round(float(nll.value), 2),
        "test_nll_standard_error": round(float(nll.standard_error), 2),
        "evaluation_samples": options.evaluation_samples,
        "active_units": evaluate.active_units(means),
        "published_nll": {"VAE": 86.76, "IWAE, 50 samples": 84.78},
        "test_bound_curve": [round(-value, 3) for value in history.test["total"]],
        "versions": {"torch": version("torch")},
    }
    print(json.dumps({key: value for key, value in result.items() if key != "test_bound_curve"}, indent=2))
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
