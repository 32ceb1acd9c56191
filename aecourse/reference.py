"""Reference models: trained once by this repository, shipped with it, the same in every build.

Each is two files in ``aecourse/weights``: the tensors (safetensors, which holds data and no code) and a
model card, both written by the training command that the card names.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aecourse import data
from aecourse.data import Dataset
from aecourse.evaluate import FeatureNetwork, feature_network, frechet_distance, frechet_floor
from aecourse.extras import needs
from aecourse.train import History, fit, mean_loss
from aecourse.vae import VAE

# Everything that decides what is trained; the card quotes it. A name ends with the kind of the model.
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
    "mnist_features": {
        "dataset": "mnist",
        "features": 64,
        "hidden": [128],
        "dropout": 0.2,
        "epochs": 14,
        "batch_size": 128,
        "lr": 2e-3,
        "decay": "linear",
        "seed": 0,
    },
    "digits_features": {
        "dataset": "digits",
        "features": 64,
        "hidden": [64],
        "dropout": 0.2,
        "epochs": 60,
        "batch_size": 64,
        "lr": 2e-3,
        "decay": "linear",
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


class Features(NamedTuple):
    """A trained classifier, for :func:`aecourse.evaluate.frechet_distance`, and the floor of what it sees."""

    network: FeatureNetwork
    floor: float
    """Frechet distance between two random halves of the test set."""

    card: str
    """The model card, Markdown."""


def load(name: str = "mnist_vae") -> Reference:
    """Load a reference VAE that ships with the package.

    Raises:
        ValueError: an unknown name.
        ImportError: safetensors is not installed.
    """
    vae, extras, card = _load(name, "vae")
    return Reference(vae, extras["codes"].float(), extras["labels"], card)


def load_features(name: str = "mnist_features") -> Features:
    """Load a reference classifier that ships with the package, in evaluation mode::

        network, floor, card = reference.load_features()
        frechet_distance(network.features(vae.sample(10_000)), network.features(images.test))

    Raises:
        ValueError: an unknown name.
        ImportError: safetensors is not installed.
    """
    network, extras, card = _load(name, "features")
    return Features(network, float(extras["floor"]), card)


def train(name: str, folder: Path, progress: bool = True) -> dict[str, float]:
    """Train a reference model from its recipe and write weights and card into ``folder``.

    Returns:
        What the card says of the test images, from the weights as they are stored (float16): the loss and its
        parts, and for a classifier its Frechet distances.
    """
    kind = _kind(name)
    with needs("book", "The weights become a safetensors file"):
        from safetensors.torch import save_file

    recipe = RECIPES[name]
    images = data.load(recipe["dataset"])
    shapes = {"image_shape": list(images.image_shape)}
    torch.manual_seed(recipe["seed"])
    model = BUILD[kind]({**recipe, **shapes})
    options = {key: recipe[key] for key in ("epochs", "batch_size", "lr", "seed")}
    if recipe.get("decay") == "linear":
        options["lr"] = lambda epoch: recipe["lr"] * (1 - epoch / recipe["epochs"])
    labels = {}
    if kind == "features":
        labels = {"labels": images.train_labels, "test_labels": images.test_labels}
    history = fit(model, images.train, test_images=images.test, progress=progress, **labels, **options)

    stored = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() for key, value in stored.items()})
    metrics, extras, text = LOOK[kind](model.eval(), images, history)

    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"recipe": json.dumps({**recipe, **shapes})}
    save_file(stored | extras, folder / f"{name}.safetensors", metadata=metadata)
    (folder / f"{name}.md").write_text(_card(name, recipe, images, history, text), encoding="utf-8")
    return metrics


# ------------------------------------------------------------------------------ either kind


def _build_vae(recipe: dict) -> VAE:
    return VAE.mlp(recipe["image_shape"], recipe["latent_dim"], recipe["hidden"])


def _build_features(recipe: dict) -> FeatureNetwork:
    sizes = {key: recipe[key] for key in ("features", "hidden", "dropout")}
    return feature_network(recipe["image_shape"], **sizes)


@torch.no_grad()
def _look_at_vae(vae: VAE, images: Dataset, history: History):
    """Numbers, tensors that go with the weights, and what the card says."""
    metrics = mean_loss(vae, images.test)
    codes = vae.encode(images.test[:CODES])[0].half()
    extras = {"codes": codes, "labels": images.test_labels[:CODES].to(torch.uint8)}
    about = f"""A variational autoencoder with {vae.latent_dim} latent variables, a Bernoulli likelihood on
grey values, and multi-layer perceptrons with ReLU for encoder and decoder."""
    numbers = f"""**On the test images**, in nats per example, one sample of z each, weights as stored
(float16):

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
    return (
        metrics,
        extras,
        {"about": about, "labels": "The labels were not used in training.", "rest": numbers},
    )


@torch.no_grad()
def _look_at_features(network: FeatureNetwork, images: Dataset, history: History):
    """The same, for a classifier."""
    metrics = mean_loss(network, images.test, labels=images.test_labels)
    count = len(images.test)
    test, training = network.features(images.test), network.features(images.train[:count])
    floor = frechet_floor(test)
    halves = frechet_distance(test[: count // 2], test[count // 2 :])
    metrics |= {"floor": float(floor.value), "ordered halves": float(halves)}
    metrics["training images"] = float(frechet_distance(training, test))
    extras = {"floor": floor.value}
    about = f"""A classifier, a multi-layer perceptron with ReLU, whose last hidden layer has
{test.shape[1]} features: what `evaluate.frechet_distance` and `evaluate.coverage` look through."""
    numbers = f"""**On the test images**, weights as stored (float16):

| quantity | value |
|---|---|
| accuracy | {100 * (1 - metrics["error"]):.2f} % |
| cross-entropy, nats | {metrics["total"]:.3f} |
| Frechet distance: floor, between random halves of them | {floor.value:.3f} +- {floor.standard_error:.3f} |
| Frechet distance: from {len(training):,} training images | {metrics["training images"]:.3f} |
| Frechet distance: their first half in the file from the second | {halves:.2f} |

Frechet distances are in squared units of the features; the floor is the mean of ten divisions. Where the last
row is far above the floor, the file is ordered: never divide it in order.

**Meant for** comparing samples of this course's models with each other. It is no Inception network: these
distances cannot be compared with published ones, nor with those of another network. A set of N images has a
higher distance than one of 2 N from the same source, so take as many of each model.
"""
    return metrics, extras, {"about": about, "labels": "It was trained on the labels.", "rest": numbers}


BUILD = {"vae": _build_vae, "features": _build_features}
LOOK = {"vae": _look_at_vae, "features": _look_at_features}


def _kind(name: str) -> str:
    """The last word of a name that is known."""
    if name not in RECIPES:
        raise ValueError(f"There is no reference model {name!r}. Known: {', '.join(RECIPES)}.")
    return name.rpartition("_")[2]


def _load(name: str, kind: str) -> tuple[nn.Module, dict[str, Tensor], str]:
    """A model of this kind in evaluation mode, the tensors that travel with it, and its card."""
    if (found := _kind(name)) != kind:
        known = ", ".join(known for known in RECIPES if _kind(known) == kind)
        raise ValueError(f"{name!r} is a model of the kind {found!r}, not {kind!r}. Known: {known}.")
    with needs("book", "The weights are a safetensors file"):
        from safetensors import safe_open
    folder = files("aecourse") / "weights"
    with safe_open(str(folder / f"{name}.safetensors"), framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    model = BUILD[kind](recipe)
    model.load_state_dict({key: tensors.pop(key).float() for key in model.state_dict()})
    return model.eval(), tensors, (folder / f"{name}.md").read_text(encoding="utf-8")


def _card(name: str, recipe: dict, images: Dataset, history: History, text: dict[str, str]) -> str:
    settings = "\n".join(f"| {key} | {value} |" for key, value in recipe.items())
    return f"""# {name}

{text["about"]}

**Data.** {images}. {text["labels"]}

**Made by** `aecourse train-reference {name}` (torch {torch.__version__.split("+")[0]}), in
{sum(history.seconds) / 60:.1f} minutes of training steps.

| setting | value |
|---|---|
{settings}

{text["rest"]}"""
