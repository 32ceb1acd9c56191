"""The shipped models: what their cards say is what they do."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from aecourse import data, evaluate, mean_loss, reference


def test_loads_offline_and_makes_digits():
    model = reference.load("mnist_vae")
    assert model.vae.image_shape == (1, 28, 28)
    assert not model.vae.training
    assert model.codes.shape == (1000, 2)
    assert sorted(model.labels.unique().tolist()) == list(range(10))
    pictures = model.vae.sample(20)
    assert ((pictures > 0.5).flatten(1).sum(dim=1) > 20).all()  # strokes, not a grey mean


FEATURES = [name for name in reference.RECIPES if name.endswith("_features")]


def test_networks_of_features_load_offline_and_know_their_floor():
    assert FEATURES == ["mnist_features", "digits_features"]
    for name, shape in zip(FEATURES, [(1, 28, 28), (1, 8, 8)]):
        network, floor, card = reference.load_features(name)
        assert network.image_shape == shape
        assert not network.training
        images = torch.rand(5, *shape)
        assert network.features(images).shape == (5, 64)
        assert network(images).shape == (5, 10)
        assert f"between random halves of them | {floor:.3f} +-" in card
        assert "no Inception network" in card
    assert reference.load_features()[1:] == reference.load_features("mnist_features")[1:]


def test_the_weights_are_small():
    folder = reference.files("aecourse") / "weights"
    assert all((folder / f"{name}.safetensors").stat().st_size < 250_000 for name in FEATURES)


@pytest.mark.parametrize("name", reference.RECIPES)
def test_card_and_weights_were_made_by_todays_recipe(name):
    folder = reference.files("aecourse") / "weights"
    with safe_open(str(folder / f"{name}.safetensors"), framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    image_shape = [1, 8, 8] if name.startswith("digits") else [1, 28, 28]
    assert recipe == {**reference.RECIPES[name], "image_shape": image_shape}
    card = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")
    assert f"`aecourse train-reference {name}`" in card
    for key, value in reference.RECIPES[name].items():
        assert f"| {key} | {value} |" in card


def stated(card, row):
    return float(re.search(rf"\| {re.escape(row)}[^|]*\| (-?[\d.]+) ", card).group(1))


def check_card_of_features(name, images):
    """Accuracy, floor and distances on the card, computed again from the weights that ship."""
    network, floor, card = reference.load_features(name)
    with torch.no_grad():
        test, training = network.features(images.test), network.features(images.train[: len(images.test)])
        right = (network(images.test).argmax(dim=1) == images.test_labels).double().mean().item()
    assert stated(card, "accuracy") == pytest.approx(100 * right, abs=0.02)
    again = evaluate.frechet_floor(test)
    assert floor == pytest.approx(again.value.item(), rel=2e-3)
    half = len(test) // 2
    for row, value in {
        "Frechet distance: floor": again.value,
        "Frechet distance: from": evaluate.frechet_distance(training, test),
        "Frechet distance: their first half": evaluate.frechet_distance(test[:half], test[half:]),
    }.items():
        assert stated(card, row) == pytest.approx(value.item(), abs=0.01), row
    return network, test


def test_the_card_of_the_features_of_small_digits_tells_the_truth():
    images = data.load("digits")
    network, test = check_card_of_features("digits_features", images)
    accuracy = stated(reference.load_features("digits_features").card, "accuracy")
    assert accuracy > 95
    # Noise is far away, and so is one digit without the others.
    floor = evaluate.frechet_floor(test).value
    with torch.no_grad():
        noise, ones = (
            network.features(x) for x in (torch.rand(361, 1, 8, 8), images.train[images.train_labels == 1])
        )
    assert evaluate.frechet_distance(noise, test) > 10 * floor
    assert evaluate.frechet_distance(ones, test) > 10 * floor


def test_the_card_of_the_features_of_mnist_tells_the_truth(mnist_root):
    """Random halves are 0.6 apart, and the halves of the file as it is ordered 12."""
    _, test = check_card_of_features("mnist_features", data.load("mnist", mnist_root))
    assert stated(reference.load_features().card, "accuracy") > 97.9
    assert evaluate.frechet_distance(test[:5000], test[5000:]) > 15 * evaluate.frechet_floor(test).value


def test_card_tells_the_truth(mnist_root):
    """The metrics on the card, computed again from the weights that ship."""
    model = reference.load("mnist_vae")
    images = data.load("mnist", mnist_root)
    terms = mean_loss(model.vae, images.test)
    for name, value in {
        "ELBO": -terms["total"],
        "reconstruction": terms["reconstruction"],
        "KL": terms["kl"],
    }.items():
        stated = float(re.search(rf"\| {name}[^|]*\| (-?[\d.]+) \|", model.card).group(1))
        assert stated == pytest.approx(value, abs=0.02)
    codes = model.vae.encode(images.test[:1000])[0].detach()
    torch.testing.assert_close(model.codes, codes, atol=5e-3, rtol=2e-3)
    assert (model.labels == images.test_labels[:1000]).all()


def test_training_writes_weights_and_a_card(tmp_path, monkeypatch, capsys):
    """The real path from data to file, on a recipe small enough for a test."""
    recipe = {**reference.RECIPES["mnist_vae"], "dataset": "digits", "epochs": 2}
    monkeypatch.setitem(reference.RECIPES, "mnist_vae", recipe)
    metrics = reference.train("mnist_vae", tmp_path, progress=False)
    card = (tmp_path / "mnist_vae.md").read_text()
    assert f"| ELBO | {-metrics['total']:.2f} |" in card
    assert "1,436 training" in card
    monkeypatch.setattr(reference, "files", lambda _: tmp_path.parent)
    (tmp_path.parent / "weights").symlink_to(tmp_path)
    model = reference.load("mnist_vae")
    again = mean_loss(model.vae, data.load("digits").test)
    assert again["total"] == pytest.approx(metrics["total"], abs=1e-4)
    assert len(model.codes) == 361


def test_training_a_network_of_features_writes_weights_and_a_card(tmp_path, monkeypatch):
    """The labels are trained on, the step falls to nothing, and what is stored is what was measured."""
    recipe = {**reference.RECIPES["digits_features"], "epochs": 12, "features": 24, "lr": 6e-3}
    monkeypatch.setitem(reference.RECIPES, "digits_features", recipe)
    steps = {}
    plain = reference.fit

    def fit(*arguments, lr, epochs, **options):
        steps.update(enumerate(map(lr, range(epochs))))
        return plain(*arguments, lr=lr, epochs=epochs, **options)

    monkeypatch.setattr(reference, "fit", fit)
    weights = tmp_path / "weights"
    metrics = reference.train("digits_features", weights, progress=False)
    assert steps[0] == 6e-3
    assert steps[11] == pytest.approx(6e-3 / 12)
    assert metrics["error"] < 0.12
    card = (weights / "digits_features.md").read_text()
    assert f"| accuracy | {100 * (1 - metrics['error']):.2f} % |" in card
    assert "1,436 training" in card
    monkeypatch.setattr(reference, "files", lambda _: tmp_path)
    network, floor, text = reference.load_features("digits_features")
    assert text == card
    assert floor == metrics["floor"]
    digits = data.load("digits")
    again = mean_loss(network, digits.test, labels=digits.test_labels)
    assert again["total"] == pytest.approx(metrics["total"], abs=1e-5)


@pytest.mark.parametrize("load", [reference.load, reference.load_features])
def test_unknown_model(load):
    with pytest.raises(ValueError, match=r"no reference model 'imagenet'\. Known: mnist_vae, mnist_features"):
        load("imagenet")


def test_a_model_of_the_other_kind():
    with pytest.raises(
        ValueError, match=r"'mnist_features' is .* 'features', not 'vae'\. Known: mnist_vae\."
    ):
        reference.load("mnist_features")
    with pytest.raises(
        ValueError, match=r"'mnist_vae' is .* 'vae', not 'features'\. Known: mnist_features, d"
    ):
        reference.load_features("mnist_vae")
