"""A second implementation, written in Pyro, gives the same bound (row 41 of the course's coverage)."""

import pytest
import torch

from aecourse import VAE, data, fit

pyro_vae = pytest.importorskip("aecourse.pyro_vae", reason="needs pyro-ppl", exc_type=ImportError)


@pytest.fixture
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture
def vae(digits) -> VAE:
    """Trained a little, so that q depends on x and the two terms of the bound differ."""
    torch.manual_seed(0)
    model = VAE.mlp(digits.image_shape, 3, hidden=(32,))
    fit(model, digits.train, epochs=3, lr=3e-3, device="cpu", progress=False)
    return model


def test_with_the_same_draws_the_bound_is_the_same_number(vae, digits, monkeypatch):
    # Pyro draws through torch.normal and the VAE through torch.randn: give both the same noise.
    x = digits.test[:50]
    noise, other = torch.randn(50, 3), torch.randn(50, 3)
    monkeypatch.setattr(torch, "randn", lambda shape, **_: noise)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda shape, dtype, device: noise)
    ours = -vae.loss(x).total.item()
    assert pyro_vae.bound(vae, x) == pytest.approx(ours, rel=1e-6)
    # And it is the draws that make it so: with others the two differ by far more than rounding.
    monkeypatch.setattr(torch, "randn", lambda shape, **_: other)
    assert pyro_vae.bound(vae, x) != pytest.approx(-vae.loss(x).total.item(), rel=1e-4)


def test_averaged_over_draws_the_bounds_agree(vae, digits):
    # A z-score over independent repeats; the standard error is near 0.004 nats of about 27.
    x = digits.test[:100]
    ours = torch.tensor([vae.elbo(x, samples=20).mean() for _ in range(30)])
    theirs = torch.tensor([pyro_vae.bound(vae, x, samples=20) for _ in range(30)])
    error = ((ours.var() + theirs.var()) / 30).sqrt()
    assert error < 0.001 * ours.mean().abs()
    assert abs(ours.mean() - theirs.mean()) < 4.5 * error


def test_training_with_pyro_reaches_what_fit_reaches(digits):
    options = {"epochs": 8, "batch_size": 64, "lr": 3e-3}
    torch.manual_seed(1)
    one = VAE.mlp(digits.image_shape, 3, hidden=(32,))
    torch.manual_seed(1)
    other = VAE.mlp(digits.image_shape, 3, hidden=(32,))
    history = fit(one, digits.train, device="cpu", progress=False, **options)
    bounds = pyro_vae.train(other, digits.train, **options)
    assert bounds == pytest.approx([-total for total in history.train["total"]], rel=0.02)
    assert bounds[-1] > bounds[0] + 5


def test_other_likelihoods_and_unsuitable_images_are_refused(digits):
    gaussian = VAE.mlp(digits.image_shape, 3, likelihood="gaussian")
    with pytest.raises(
        ValueError, match=r"^vae has the likelihood Gaussian\(variance=1\.0\) but needs Bernoulli"
    ):
        pyro_vae.bound(gaussian, digits.test)
    with pytest.raises(
        ValueError, match=r"^vae has the likelihood Gaussian\(variance=1\.0\) but needs Bernoulli"
    ):
        pyro_vae.train(gaussian, digits.test)
    with pytest.raises(ValueError, match=r"needs \[0, 1\]"):
        pyro_vae.train(VAE.mlp(digits.image_shape, 3), 255 * digits.test)
