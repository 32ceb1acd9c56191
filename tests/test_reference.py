"""The shipped models: what their cards say is what they do."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from aecourse import data, mean_loss, reference


def test_loads_offline_and_makes_digits():
    model = reference.load("mnist_vae")
    assert model.vae.image_shape == (1, 28, 28)
    assert not model.vae.training
    assert model.codes.shape == (1000, 2)
    assert sorted(model.labels.unique().tolist()) == list(range(10))
    pictures = model.vae.sample(20)
    assert ((pictures > 0.5).flatten(1).sum(dim=1) > 20).all()  # strokes, not a grey mean


def test_card_and_weights_were_made_by_todays_recipe():
    model = reference.load("mnist_vae")
    path = reference.files("aecourse") / "weights" / "mnist_vae.safetensors"
    with safe_open(str(path), framework="pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert recipe == {**reference.RECIPES["mnist_vae"], "image_shape": [1, 28, 28]}
    for key, value in reference.RECIPES["mnist_vae"].items():
        assert f"| {key} | {value} |" in model.card


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


def test_unknown_model():
    with pytest.raises(ValueError, match=r"no reference model 'imagenet'\. Known: mnist_vae"):
        reference.load("imagenet")
