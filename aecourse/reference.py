"""Reference models: trained once by this repository, shipped with it, the same in every build.

Each is two files in ``aecourse/weights``: the tensors (safetensors, which holds data and no code) and a
model card, both written by the training command that the card names.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from aecourse import data
from aecourse.extras import needs
from aecourse.train import fit, mean_loss
from aecourse.vae import VAE

# Everything that decides what is trained; the card quotes it.
RECIPES = {
    "mnist_vae": {
        "dataset": "mnist",
        "latent_dim": 2,
        "hidden": [256, 256],
        "epochs": 60,
        "batch_size": 256,
        "lr": 1e-3,
        "seed": 0,
    },
}
CODES = 1000  # test images whose codes travel with the weights, for the picture of the latent plane


class Reference(NamedTuple):
    """A trained model and what is needed to look at it without its data."""

    vae: VAE
    codes: Tensor
    """``(1000, latent_dim)``, the encoder's means for the first test images."""

    labels: Tensor
    """``(1000,)``, their labels."""

    card: str
    """The model card, Markdown."""


def load(name: str = "mnist_vae") -> Reference:
    """Load a reference model that ships with the package.

    Raises:
        ValueError: an unknown name.
        ImportError: safetensors is not installed.
    """
    _check_name(name)
    with needs("book", "The weights are a safetensors file"):
        from safetensors import safe_open
    folder = files("aecourse") / "weights"
    with safe_open(str(folder / f"{name}.safetensors"), framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    codes, labels = tensors.pop("codes").float(), tensors.pop("labels")
    vae = _build(recipe)
    vae.load_state_dict({key: value.float() for key, value in tensors.items()})
    return Reference(vae.eval(), codes, labels, (folder / f"{name}.md").read_text(encoding="utf-8"))


def train(name: str, folder: Path, progress: bool = True) -> dict[str, float]:
    """Train a reference model from its recipe and write weights and card into ``folder``.

    Returns:
        The loss and its parts on the test images, from the weights as they are stored (float16).
    """
    _check_name(name)
    with needs("book", "The weights become a safetensors file"):
        from safetensors.torch import save_file

    recipe = RECIPES[name]
    images = data.load(recipe["dataset"])
    torch.manual_seed(recipe["seed"])
    vae = _build({**recipe, "image_shape": images.image_shape})
    options = {key: recipe[key] for key in ("epochs", "batch_size", "lr", "seed")}
    history = fit(vae, images.train, test_images=images.test, progress=progress, **options)

    stored = {key: value.half() for key, value in vae.state_dict().items()}
    vae.load_state_dict({key: value.float() for key, value in stored.items()})
    metrics = mean_loss(vae, images.test)
    with torch.no_grad():
        stored["codes"] = vae.encode(images.test[:CODES])[0].half()
    stored["labels"] = images.test_labels[:CODES].to(torch.uint8)

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"recipe": json.dumps({**recipe, "image_shape": list(images.image_shape)})}
    save_file(stored, folder / f"{name}.safetensors", metadata=metadata)
    (folder / f"{name}.md").write_text(_card(name, recipe, images, history, metrics), encoding="utf-8")
    return metrics


def _build(recipe: dict) -> VAE:
    return VAE.mlp(recipe["image_shape"], recipe["latent_dim"], recipe["hidden"])


def _check_name(name: str) -> None:
    if name not in RECIPES:
        raise ValueError(f"There is no reference model {name!r}. Known: {', '.join(RECIPES)}.")


def _card(name, recipe, images, history, metrics) -> str:
    settings = "\n".join(f"| {key} | {value} |" for key, value in recipe.items())
    return f"""# {name}

A variational autoencoder with {recipe["latent_dim"]} latent variables, a Bernoulli likelihood on grey
values, and multi-layer perceptrons with ReLU for encoder and decoder.

**Data.** {images}. The labels were not used in training.

**Made by** `aecourse train-reference {name}` (torch {torch.__version__.split("+")[0]}), in
{sum(history.seconds) / 60:.1f} minutes of training steps.

| setting | value |
|---|---|
{settings}

**On the test images**, in nats per example, one sample of z each, weights as stored (float16):

| quantity | value |
|---|---|
| ELBO | {-metrics["total"]:.2f} |
| reconstruction, -E log p(x given z) | {metrics["reconstruction"]:.2f} |
| KL(q(z given x), p(z)) | {metrics["kl"]:.2f} |

The same on the training images, mean over the last epoch: {-history.train["total"][-1]:.2f}.

**Meant for** the figures and the slider of this course. Grey values are not binary, so these numbers
cannot be compared with likelihoods of binarised MNIST; two latent variables were chosen because a plane
can be looked at, not because they model the data well.
"""
