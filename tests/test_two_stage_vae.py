"""The two-stage VAE: what each stage does where the answer is known, and that the second leaves the first."""

import math
from itertools import pairwise

import pytest
import torch
from support.losses import assert_single_precision_under_autocast
from torch import nn
from torch.distributions import MultivariateNormal

from aecourse import data, evaluate
from aecourse.bounds import log_mean_exp
from aecourse.train import fit, mean_loss
from aecourse.vae import VAE
from aecourse.zoo.two_stage_vae import TwoStageVAE, scale_factor

EIGENVALUES = (4.0, 1.5)  # of data on a plane in six dimensions
SETTINGS = {"batch_size": 16, "device": "cpu", "progress": False}


def small_model(image_shape=(1, 4, 5), latent_dim=3, **options) -> TwoStageVAE:
    return TwoStageVAE.build(
        "mlp", image_shape, latent_dim, **{"hidden": (7,), "second_hidden": (6,), **options}
    )


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(40, 1, 4, 5)


@pytest.fixture
def plus_and_minus(monkeypatch):
    """Eight draws with mean 0 and covariance I: the exact mean over noise of whatever is quadratic in it."""
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])

    def noise(shape, like, batch_dim=0):
        assert shape[0] == 8
        return torch.cat([signs, -signs])[:, None, : shape[2]].expand(shape).to(like)

    monkeypatch.setattr("aecourse.likelihoods.standard_normal", noise)


def linear(model: VAE, weight: torch.Tensor, variance: torch.Tensor, mean: torch.Tensor) -> None:
    """Make a VAE without hidden layers p(x|z) = N(weight z, .) and q(z|x) = N(mean x, diag variance)."""
    (encoder,), (decoder,) = model.encoder.net, model.decoder.net
    size = len(mean)
    with torch.no_grad():
        for layer in (encoder, decoder):
            layer.weight.zero_()
            layer.bias.zero_()
        decoder.weight[:] = weight
        encoder.weight[:size] = mean
        encoder.bias[size:] = variance.log()


def axes() -> torch.Tensor:
    """``(6, 2)``, the plane."""
    torch.manual_seed(2)
    return torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64))[0]


def plane(gamma: float, latent_dim: int = 4, **options) -> TwoStageVAE:
    """At the optimum of the first stage for data on the plane, with more latent variables than needed."""
    options = {"hidden": (), "second_hidden": (), "start_variance": gamma, "samples": 8, **options}
    model = TwoStageVAE.build("mlp", (6,), latent_dim, **options).double()
    with torch.no_grad():  # in double precision
        if model.first.likelihood.variance == "learned":
            model.first.likelihood.logvar.fill_(math.log(gamma))
    eigenvalues = torch.zeros(latent_dim, dtype=torch.float64)
    eigenvalues[:2] = torch.tensor(EIGENVALUES)
    active = eigenvalues > gamma
    weight = torch.zeros(6, latent_dim, dtype=torch.float64)
    weight[:, :2] = axes()
    weight = weight * (eigenvalues - gamma).clamp(min=0).sqrt()
    shrunk = eigenvalues.where(active, 1.0)
    variance = torch.where(active, gamma / shrunk, 1.0)
    linear(model.first, weight, variance, weight.T / shrunk[:, None])
    return model


def points() -> torch.Tensor:
    """Four points with exactly those eigenvalues."""
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    return signs * torch.tensor(EIGENVALUES, dtype=torch.float64).sqrt() @ axes().T


# ------------------------------------------------------------------------ the first stage's variance


def test_the_bound_rises_without_end_as_the_decoders_variance_falls(plus_and_minus):
    """4 of 6 dimensions hold no data: (6 - 2) / 2 log 10 nats for each factor of ten."""
    losses = []
    for gamma in (0.1, 0.01, 0.001):
        model = plane(gamma)
        loss = model.first.loss(points())
        losses.append(loss.total.item())
        mean, logvar = model.first.encode(points())
        kl = model.first.kl_per_dimension(mean, logvar).mean(dim=0)
        expected = [0.5 * math.log(value / gamma) for value in EIGENVALUES] + [0.0, 0.0]
        torch.testing.assert_close(kl, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
        # Nothing is left to learn but the variance, whose optimum is 0.
        names, parameters = zip(*model.first.named_parameters())
        for name, gradient in zip(names, torch.autograd.grad(loss.total, parameters)):
            rest = gradient - 2.0 if name == "likelihood.logvar" else gradient
            assert rest.abs().max() < 1e-11, name
    for one, next_one in pairwise(losses):
        assert one - next_one == pytest.approx(4.605170186, abs=1e-8)


def constant_model(variance: float) -> tuple[TwoStageVAE, torch.Tensor]:
    """Its decoders give 0, and its mean squared error is 0.37 per dimension."""
    model = small_model((6,), 4, hidden=(), second_hidden=()).double()
    for stage in (model.first, model.second):
        nn.init.zeros_(stage.decoder.net[0].weight)
        nn.init.zeros_(stage.decoder.net[0].bias)
        nn.init.constant_(stage.likelihood.logvar, math.log(variance))
    x = torch.randn(5, 6, dtype=torch.float64)
    return model, x * (0.37 / x.square().mean()).sqrt()


@pytest.mark.parametrize("variance", [0.37, 0.8, 0.1])
def test_the_best_variance_is_the_mean_squared_error(variance):
    model, x = constant_model(variance)
    loss = model.first.loss(x)
    expected = 3 * (math.log(2 * math.pi * variance) + 0.37 / variance)
    assert loss.parts["reconstruction"].item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.total, model.first.likelihood.logvar)
    assert gradient.item() == pytest.approx(3 * (1 - 0.37 / variance), abs=1e-12)


@pytest.mark.parametrize("variance", [0.37, 0.8, 2.0])
@pytest.mark.parametrize("count", [2, 5])
def test_so_is_that_of_the_second_stage_for_its_codes(variance, count):
    model, x = constant_model(variance)
    torch.manual_seed(3)
    error = model.codes(x[:count]).square().mean()
    torch.manual_seed(3)
    loss = model.loss(x[:count])
    expected = 2 * (math.log(2 * math.pi * variance) + error / variance)
    assert loss.parts["reconstruction"].item() == pytest.approx(expected.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.total, model.second.likelihood.logvar)
    assert gradient.item() == pytest.approx(2 * (1 - error.item() / variance), abs=1e-12)


def test_a_learned_variance_moves_slowly_so_it_starts_at_the_datas():
    x = 0.1 * torch.randn(160, 6)
    ends = {}
    for start in (1.0, float(x.var(dim=0).mean())):
        torch.manual_seed(0)
        model = small_model((6,), 2, start_variance=start)
        assert model.first.likelihood.logvar.exp().item() == pytest.approx(start)
        fit(model.first, x, epochs=3, lr=1e-3, **SETTINGS)  # 30 steps
        ends[start] = model.first.likelihood.logvar.item()
    far, near = ends.values()
    assert -0.031 < far < -0.02
    assert near < -4
    assert small_model(second_variance=0.3).second.likelihood.logvar.exp().item() == pytest.approx(0.3)


# ------------------------------------------------------------------------ what the second stage is for


@pytest.mark.parametrize("gamma", [1.0, 0.1, 0.001])
def test_moments_of_codes_are_those_of_the_prior_at_every_variance(gamma):
    mean, logvar = plane(gamma).first.encode(points())
    ones = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(scale_factor(mean, logvar, per_dimension=True), ones, rtol=0, atol=1e-12)
    assert scale_factor(mean, logvar).item() == pytest.approx(1, abs=1e-12)


def uniform(gamma: float) -> TwoStageVAE:
    """Two independent uniform coordinates of variance 4, with the best linear first stage."""
    model = TwoStageVAE.build("mlp", (2,), 2, hidden=(), variance=gamma, second_hidden=(32,))
    eye = torch.eye(2) * math.sqrt(4 - gamma)
    linear(model.first, eye, torch.full((2,), gamma / 4), eye / 4)
    return model


@pytest.mark.parametrize(("gamma", "missed"), [(1, 0.0193), (0.1, 0.1056), (0.01, 0.1516), (1e-4, 0.1739)])
def test_the_mismatch_that_moments_do_not_show(gamma, missed):
    """KL(q(z_j) || N(0, 1)) of uniform coordinates by quadrature; in the end their negentropy, 0.1765."""
    first = uniform(gamma).double().first
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)[:, None].expand(-1, 2) * math.sqrt(12)
    mean, logvar = (values[:, 0] for values in first.encode(x))
    z = torch.linspace(-4, 4, 401, dtype=torch.float64)
    q = torch.zeros_like(z)
    for i, value in enumerate(z):
        q[i] = torch.exp(-0.5 * ((value - mean).square() / logvar.exp() + logvar)).mean()
    q = q / math.sqrt(2 * math.pi)
    step = z[1] - z[0]
    assert (q.sum() * step).item() == pytest.approx(1, abs=1e-3)
    p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    kl = (q * (q.clamp(min=1e-300).log() - p)).sum() * step
    assert kl.item() == pytest.approx(missed, abs=2e-3)


def test_the_second_stage_learns_part_of_it():
    torch.manual_seed(0)
    model, x = uniform(0.01), (torch.rand(2000, 2) * 2 - 1) * math.sqrt(12)
    torch.manual_seed(1)
    fit(
        model, x, epochs=25, lr=lambda epoch: 0.01 if epoch < 16 else 0.002, **{**SETTINGS, "batch_size": 100}
    )
    gained = math.log(2 * math.pi * math.e) - mean_loss(model, x)["total"]
    assert 0.07 < gained < 2 * 0.1516 + 0.03
    kurtosis = [(x / x.std(dim=0)).pow(4).mean() for x in (x, model.first.sample(4000), model.sample(4000))]
    assert kurtosis[0] < 1.9  # uniform
    assert kurtosis[1] > 2.7  # the first stage alone: Gaussian
    assert kurtosis[2] < 2.4


# ------------------------------------------------------------------- both stages, all Gaussian


def gaussian(second_variance: float) -> tuple[TwoStageVAE, MultivariateNormal]:
    """PPCA in six dimensions as the first stage; a second one whose p(z) is N(0, I), as q(z) is."""
    model = TwoStageVAE.build("mlp", (6,), 2, hidden=(), variance=0.3, second_hidden=()).double()
    model.second.samples = 8
    weight = axes() * torch.tensor([1.5, 0.8], dtype=torch.float64)
    precision = 1 + weight.square().sum(dim=0) / 0.3
    linear(model.first, weight, 1 / precision, weight.T / 0.3 / precision[:, None])
    with torch.no_grad():
        model.second.likelihood.logvar.fill_(math.log(second_variance))
    eye = torch.eye(2, dtype=torch.float64) * math.sqrt(1 - second_variance)
    linear(model.second, eye, torch.full((2,), second_variance, dtype=torch.float64), eye)
    evidence = MultivariateNormal(
        torch.zeros(6, dtype=torch.float64), weight @ weight.T + 0.3 * torch.eye(6, dtype=torch.float64)
    )
    return model, evidence


@pytest.mark.parametrize("second_variance", [0.999, 0.5, 0.01])
def test_with_exact_posteriors_every_weight_is_the_evidence(second_variance):
    model, evidence = gaussian(second_variance)
    x = evidence.sample((5,))
    expected = evidence.log_prob(x)
    torch.testing.assert_close(model.log_weights(x, 7), expected.expand(7, 5), rtol=0, atol=1e-12)
    estimate = evaluate.importance_sampling(model, x, 3)
    torch.testing.assert_close(estimate.value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_with_a_wrong_posterior_of_either_stage_the_mean_weight_misses_its_kl(stage):
    model, evidence = gaussian(0.5)
    x = evidence.sample((3,))
    encoder = getattr(model, stage).encoder.net[0]
    variance = encoder.bias[2:].exp()
    shift = torch.tensor([0.5, -0.7], dtype=torch.float64)
    with torch.no_grad():
        encoder.bias[:2] += shift
    expected = evidence.log_prob(x) - 0.5 * (shift.square() / variance).sum()
    weights = model.log_weights(x, 20_000).detach()
    error = weights.std(dim=0) / math.sqrt(len(weights))
    assert ((weights.mean(dim=0) - expected).abs() < 4 * error).all()
    assert error.max() < 0.02
    together = log_mean_exp(weights)
    assert ((together - evidence.log_prob(x)).abs() < 0.15).all()


@pytest.mark.parametrize("second_variance", [0.999, 0.5, 0.1, 1e-4])
def test_codes_that_are_gaussian_leave_the_second_stage_nothing_to_do(plus_and_minus, second_variance):
    """Every gamma_z is an optimum there, with f2(u) = sqrt(1 - gamma_z) u: in the limit the identity."""
    model, _ = gaussian(second_variance)
    codes = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    for batch in (codes, torch.cat([codes] * 3)):  # exact moments in both
        model.codes = lambda x, batch=batch: batch
        loss = model.loss(batch)
        assert loss.total.item() == pytest.approx(math.log(2 * math.pi * math.e), abs=1e-10)
        for gradient in torch.autograd.grad(loss.total, [*model.parameters()]):
            assert gradient.abs().max() < 1e-9


def test_samples_have_the_noise_of_the_second_stage_and_not_that_of_the_first():
    model, _ = gaussian(0.5)
    mixing = torch.tensor([[0.9, 0.3], [-0.2, 0.5]], dtype=torch.float64)
    offset = torch.tensor([1.0, -2.0], dtype=torch.float64)
    with torch.no_grad():
        model.second.decoder.net[0].weight[:], model.second.decoder.net[0].bias[:] = mixing, offset
        model.updates += 1
    weight = model.first.decoder.net[0].weight.detach()
    for variance in ("learned", 0.2):
        if variance != "learned":
            model.second.likelihood.variance = variance
        expected = mixing @ mixing.T + (0.5 if variance == "learned" else 0.2) * torch.eye(2)
        x = model.sample(40_000)
        z = x @ weight / weight.square().sum(dim=0)
        torch.testing.assert_close(z.T.cov(), expected, rtol=0, atol=0.03)
        torch.testing.assert_close(z.mean(dim=0), offset, rtol=0, atol=0.03)
        assert (x - z @ weight.T).abs().max() < 1e-12


def test_codes_are_fresh_draws_also_of_variables_that_are_not_used():
    model = plane(0.01)
    x = points().repeat(5000, 1)
    z = model.codes(x)
    assert not torch.equal(z, model.codes(x))
    torch.testing.assert_close(z.T.cov(), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.04)
    mean, logvar = model.first.encode(x)
    torch.testing.assert_close((z - mean).var(dim=0), logvar[0].exp(), rtol=0.05, atol=0)


# --------------------------------------------------------------------------- scale of a latent space


def test_the_scale_factor_is_one_over_the_deviation_of_all_codes():
    torch.manual_seed(0)
    mean = torch.randn(3000, 4, 2, 2) * torch.tensor([6.0, 5, 4, 1]).view(4, 1, 1) + 0.7
    logvar = torch.full_like(mean, -3.0)
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    scale = scale_factor(mean, logvar)
    assert scale.shape == ()
    assert scale.item() == pytest.approx(1 / z.std().item(), rel=1e-2)
    each = scale_factor(mean, logvar, per_dimension=True)
    assert each.shape == (4, 2, 2)
    torch.testing.assert_close(each, 1 / z.std(dim=0), rtol=0.02, atol=0)
    # A mean that all codes share is no variance of its dimension, and variance of all of them together.
    mean[:, 0] += 100
    torch.testing.assert_close(scale_factor(mean, logvar, per_dimension=True), each, rtol=1e-3, atol=0)
    assert scale_factor(mean, logvar) < 0.15 * scale
    # Codes are drawn: the width of q counts.
    assert scale_factor(torch.zeros(3, 2), torch.zeros(3, 2)).item() == 1
    assert scale_factor(torch.zeros(3, 2), torch.full((3, 2), math.log(4.0))).item() == pytest.approx(0.5)


@pytest.mark.parametrize("beta", [1.0, 1e-3, 1e-6])
def test_the_pull_towards_codes_of_variance_one_is_as_weak_as_the_kls_weight(plus_and_minus, beta):
    """Codes s times as large, with a decoder that divides by s, cost beta (s^2 / 2 - 1 / 2 - log s) each."""
    model = plane(0.1 * beta, 2, variance=0.1, beta=beta)  # at its optimum: beta gamma acts as the variance
    encoder, decoder = model.first.encoder.net[0], model.first.decoder.net[0]
    assert scale_factor(*model.first.encode(points())).item() == pytest.approx(1, abs=1e-12)
    before, scale = model.first.loss(points()).total, 1 / 0.18215
    with torch.no_grad():
        encoder.weight *= scale
        encoder.bias[2:] += 2 * math.log(scale)
        decoder.weight /= scale
    assert scale_factor(*model.first.encode(points())).item() == pytest.approx(0.18215, abs=1e-12)
    cost = model.first.loss(points()).total - before
    assert cost.item() == pytest.approx(2 * beta * (0.5 * scale**2 - 0.5 - math.log(scale)), rel=1e-6)


# ------------------------------------------------------- the second fit leaves the first stage alone


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_second_stage_does_not_touch_the_first(x):
    model = small_model(batch_norm=True, dropout=0.3)
    first, second = model.stages()
    assert first is model.first
    fit(first, x, epochs=1, **SETTINGS)
    before = state(model)
    for parameter in first.parameters():
        parameter.grad = None
    fit(second, x, epochs=2, test_images=x, **SETTINGS)
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"updates", *(f"second.{name}" for name, _ in model.second.named_parameters())}
    assert model.updates == 6
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in first.parameters())  # it can be trained on
    fit(first, x, epochs=1, **SETTINGS)
    changed = {name for name in before if not torch.equal(after[name], model.state_dict()[name])}
    assert {name for name, _ in first.named_parameters(prefix="first")} <= changed


def test_the_first_stage_is_in_evaluation_mode_while_the_second_learns(x):
    model, modes = small_model(batch_norm=True, dropout=0.3), []
    plain = model.loss
    model.loss = lambda x: (
        modes.append((model.training, model.second.training, model.first.training)) or plain(x)
    )
    fit(model, x, epochs=1, **SETTINGS)
    assert modes == [(True, True, False)] * 3
    model.train()
    assert not any(module.training for module in model.first.modules())
    # With the same noise, the same codes: no dropout, no statistics of a batch.
    torch.manual_seed(0)
    codes = model.codes(x)
    torch.manual_seed(0)
    model.eval()
    assert torch.equal(model.codes(x), codes)
    assert not codes.requires_grad


def test_what_there_is_to_train_is_the_second_stage(x):
    model = small_model()
    assert [*model.parameters()] == [*model.second.parameters()]
    assert {*model.buffers()} == {model.updates, *model.first.parameters()}
    model.loss(x).total.backward()
    assert all(parameter.grad is None for parameter in model.first.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert {name.split(".")[0] for name in model.state_dict()} == {"first", "second", "updates"}
    assert {p.dtype for p in model.double().first.parameters()} == {torch.float64}


class Killed(Exception):
    """Stands for anything that ends a run from outside."""


def fitted(tmp_path, x, seed=0, kill=None, epochs=3) -> TwoStageVAE:
    """Both stages with a checkpoint each, as the command line does; perhaps killed in the second."""
    torch.manual_seed(seed)
    model = small_model(batch_norm=True)
    plain, calls = model.loss, []

    def loss(x):
        calls.append(1)
        if len(calls) == kill:
            raise Killed
        return plain(x)

    model.loss = loss
    for i, stage in enumerate(model.stages()):
        fit(stage, x, epochs=epochs, checkpoint=tmp_path / f"{i}.pt", checkpoint_steps=1, **SETTINGS)
    return model


@pytest.mark.parametrize("kill", [1, 2, 5, 9])
def test_a_killed_second_stage_ends_where_it_would_have_ended(x, tmp_path, kill):
    whole = state(fitted(tmp_path / "whole", x))
    with pytest.raises(Killed):
        fitted(tmp_path / "killed", x, kill=kill)
    # Other first weights, as in a new process: all that matters comes from the files.
    resumed = state(fitted(tmp_path / "killed", x, seed=99 if kill > 1 else 0))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_the_second_stage_belongs_to_its_first_stage(x, tmp_path):
    fitted(tmp_path, x)
    other = small_model(batch_norm=True)
    with pytest.raises(ValueError, match=r"whose first\.\S+ holds other values than this model's"):
        fit(other, x, epochs=4, checkpoint=tmp_path / "1.pt", checkpoint_steps=1, **SETTINGS)
    # With its own it goes on, and nothing in the file says that the first stage was trained.
    model = fitted(tmp_path, x)
    before = state(model.first)
    fit(model, x, epochs=4, checkpoint=tmp_path / "1.pt", checkpoint_steps=1, **SETTINGS)
    assert model.updates == 12
    assert all(torch.equal(value, before[name]) for name, value in model.first.state_dict().items())
    file = torch.load(tmp_path / "1.pt", weights_only=True)
    assert {f"first.{name}" for name in before} == {*file["constants"]}
    assert len(file["optimizer"]["state"]) == len([*model.second.parameters()])


def test_digits_are_more_likely_under_both_stages():
    digits = data.load("digits")
    torch.manual_seed(0)
    start = float(digits.train.var(dim=0).mean())
    model = TwoStageVAE.build("mlp", (1, 8, 8), 8, start_variance=start, hidden=(64,), second_hidden=(64,))
    for stage in model.stages():
        fit(stage, digits.train, epochs=25, **{**SETTINGS, "batch_size": 64}, lr=3e-3)
    assert 0.01 < model.first.likelihood.logvar.exp() < 0.03
    assert 0.03 < model.second.likelihood.logvar.exp() < 0.3
    with torch.no_grad():
        one, both = (log_mean_exp(m.log_weights(digits.test, 20)).mean() for m in (model.first, model))
    assert one > 20
    assert both > one + 0.3


# ------------------------------------------------------------------------------- the rest, and refusals


def test_beta_of_a_schedule_weighs_the_second_stages_kl(x):
    model = small_model()
    loss = model.loss(x, beta=torch.tensor(0.25))
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 0.25 * loss.parts["kl"])


@pytest.mark.parametrize("variance", ["learned", "optimal", "per_pixel", 0.2])
def test_any_gaussian_first_stage_will_do(x, variance):
    model = TwoStageVAE.build("conv", (1, 4, 5), 3, variance=variance, channels=(4,))
    for stage in model.stages():
        fit(stage, x, epochs=1, **SETTINGS)
    assert model.sample(7).shape == (7, 1, 4, 5)
    assert model.log_weights(x, 2).shape == (2, 40)


def test_means_of_images_stay_in_their_interval_if_asked_to(x):
    model = TwoStageVAE.build("mlp", (1, 4, 5), 3, output="sigmoid", hidden=(6,))
    far = torch.full((2, 3), 1e4)
    means = model.first.decode(torch.cat([far, -far]))
    assert 0 <= means.min() <= means.max() <= 1
    fit(model.first, x, epochs=1, **SETTINGS)
    assert TwoStageVAE.build("mlp", (1, 4, 5), 3, hidden=(6,)).first.decode(far).abs().max() > 1


def test_bounds_stay_in_single_precision_under_autocast(x):
    model = small_model()
    assert_single_precision_under_autocast(model, x)


def test_samples_need_the_second_stage(x):
    model = small_model()
    fit(model.first, x, epochs=1, **SETTINGS)
    with pytest.raises(
        RuntimeError, match=r"^The second stage is the prior, and was not fitted: for stage in"
    ):
        model.sample(3)
    fit(model, x, epochs=1, **SETTINGS)
    model.sample(3)
    other = small_model()
    other.load_state_dict(model.state_dict())
    other.sample(3)


def vae(**options) -> VAE:
    return VAE.mlp((6,), 3, **{"likelihood": "gaussian", "variance": "learned", **options})


def codes_vae(size=3, latent_dim=3, **options) -> VAE:
    return VAE.mlp((size,), latent_dim, **{"likelihood": "gaussian", "variance": "learned", **options})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: TwoStageVAE(vae(likelihood="bernoulli", variance=None), codes_vae()),
            ValueError,
            r"^first has the likelihood Bernoulli but needs a Gaussian",
        ),
        (
            lambda: TwoStageVAE(vae(), codes_vae(likelihood="bernoulli", variance=None)),
            ValueError,
            r"^second has the likelihood Bernoulli but needs a Gaussian",
        ),
        (
            lambda: TwoStageVAE(vae(), codes_vae(variance="optimal")),
            ValueError,
            r"^second has the variance 'optimal' but must be able to draw codes",
        ),
        (
            lambda: TwoStageVAE(vae(), codes_vae(4)),
            ValueError,
            r"^second turns 3 latent variables into data of shape \(4,\) but needs 3 and \(3,\)",
        ),
        (
            lambda: TwoStageVAE(vae(), codes_vae(3, 2)),
            ValueError,
            r"^second turns 2 latent variables into data of shape \(3,\) but needs 3 and \(3,\)",
        ),
        (lambda: TwoStageVAE(nn.Linear(2, 2), codes_vae()), TypeError, r"^first is Linear but must be a VAE"),
        (lambda: small_model(start_variance=0), ValueError, r"^start_variance is 0 but must be positive"),
        (lambda: small_model(second_variance=-1), ValueError, r"^second_variance is -1 but must be positive"),
        (
            lambda: small_model(output="sigmoid", variance="per_pixel"),
            ValueError,
            r"^output is 'sigmoid' but must be 'linear' with the variance 'per_pixel'",
        ),
        (lambda: small_model(output="tanh"), ValueError, r"^output is 'tanh' but must be 'linear' or 'sig"),
        (lambda: small_model(variance=-1), ValueError, r"^variance is -1 but must be positive or one of"),
        (
            lambda: small_model(likelihood="bernoulli"),
            TypeError,
            r"^likelihood is no option of a TwoStageVAE",
        ),
        (
            lambda: small_model().validate(torch.zeros(3, 5)),
            ValueError,
            r"^images has shape \(3, 5\) but this",
        ),
        (
            lambda: small_model().validate(torch.full((3, 1, 4, 5), math.nan)),
            ValueError,
            r"^images holds 60 values that are NaN",
        ),
        (lambda: small_model().loss(torch.zeros(3, 5)), ValueError, r"^x has shape \(3, 5\) but this model"),
        (lambda: small_model().log_weights(torch.zeros(3, 1, 4, 5), 0), ValueError, r"^samples is 0 but"),
        (lambda: small_model().draw_codes(0), ValueError, r"^count is 0 but must be at least 1"),
        (
            lambda: scale_factor(torch.zeros(3, 2), torch.zeros(3, 1)),
            ValueError,
            r"^logvar has shape \(3, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
