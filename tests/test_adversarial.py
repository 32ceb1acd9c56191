"""Adversarial models: the game's exact values and gradients, who learns from what, and that they learn."""

import itertools
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aecourse import data, evaluate
from aecourse.likelihoods import Gaussian
from aecourse.train import fit, mean_loss
from aecourse.vae import VAE
from aecourse.zoo import adversarial
from aecourse.zoo.adversarial import (
    GAN,
    VAEGAN,
    AdversarialAutoencoder,
    critic_loss,
    generator_loss,
    gradient_penalty,
)

KINDS = ("logit", "saturating", "non_saturating")
DOUBLE = {"dtype": torch.float64}


def double(*values) -> torch.Tensor:
    return torch.tensor(values, **DOUBLE)


def gradients(value: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    """Of a value for all parameters of a module, zero where it does not depend on them."""
    parameters = [*module.parameters()]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


class Quadratic(nn.Module):
    """A critic with x'Qx + w'x + c for a logit: the best one between any two Gaussians."""

    def __init__(self, size: int):
        super().__init__()
        self.q, self.w = nn.Parameter(torch.zeros(size, size)), nn.Parameter(torch.zeros(size))
        self.c = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return ((x @ self.q * x).sum(dim=1) + x @ self.w + self.c).unsqueeze(1)

    @torch.no_grad()
    def between(self, mean: torch.Tensor, cov: torch.Tensor) -> "Quadratic":
        """The best critic between N(0, I), which is real, and N(mean, cov): a difference of log densities."""
        precision = torch.linalg.inv(cov)
        self.q.copy_(0.5 * (precision - torch.eye(len(mean), **DOUBLE)))
        self.w.copy_(-precision @ mean)
        self.c.copy_(0.5 * (mean @ precision @ mean + torch.logdet(cov)))
        return self


# -------------------------------------------------------------- the game between two known densities

M, S = 0.7, 1.6  # of the fakes, N(M, S^2); real is N(0, 1)
NOISE = torch.linspace(-12, 12, 4001, **DOUBLE)  # the sums below are exact to 13 digits
WEIGHT = torch.exp(-0.5 * NOISE.square()) / math.sqrt(2 * math.pi) * (NOISE[1] - NOISE[0])


def log_density(x, mean, std):
    return -0.5 * ((x - mean) / std).square() - math.log(std) - 0.5 * math.log(2 * math.pi)


def best_logit(x):
    return log_density(x, 0, 1) - log_density(x, M, S)


def jensen_shannon(mean, std):
    """JSD(p, q) of p = N(0, 1) and q = N(mean, std^2), by what it is: two KLs to the mixture."""
    total = 0.0
    for x, own, other in (
        (NOISE, (0.0, 1.0), (mean, std)),
        (mean + std * NOISE, (mean, std), (0.0, 1.0)),
    ):
        log_own, log_other = (-0.5 * ((x - m) / s) ** 2 - torch.as_tensor(s).log() for m, s in (own, other))
        total += 0.5 * (WEIGHT * (math.log(2) + log_own - torch.logaddexp(log_own, log_other))).sum()
    return total


def of_each(function, *logits, **options):
    """A loss of each logit alone: what it is the mean of."""
    return torch.stack([function(*(one.view(1) for one in ones), **options) for ones in zip(*logits)])


def test_the_best_critic_pays_2_log_2_less_2_jsd():
    # The losses are means; over a grid with weights, vmap asks for each point's own.
    logits_of_real = best_logit(NOISE).unsqueeze(1).requires_grad_()
    logits_of_fake = best_logit(M + S * NOISE).unsqueeze(1)
    loss = (WEIGHT * torch.func.vmap(critic_loss)(logits_of_real, logits_of_fake)).sum()
    expected = 2 * math.log(2) - 2 * jensen_shannon(double(M), double(S))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert loss.item() == pytest.approx(1.2351435, abs=1e-7)
    # Least there: a critic that is tilted or shifted a little either way pays the same to first order.
    for change in (lambda x: torch.ones_like(x), lambda x: x, torch.sin):
        step = torch.zeros((), **DOUBLE, requires_grad=True)
        real, fake = ((best_logit(x) + step * change(x)).unsqueeze(1) for x in (NOISE, M + S * NOISE))
        moved = (WEIGHT * torch.func.vmap(critic_loss)(real, fake)).sum()
        assert abs(torch.autograd.grad(moved, step)[0]) < 1e-12


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("logit", (M, S - 1 / S)),
        ("saturating", (0.155477, 0.157436)),
        ("non_saturating", (0.544523, 0.817564)),
    ],
)
def test_three_generator_losses_have_three_divergences_for_gradients(kind, numbers):
    mean, std = double(M).squeeze().requires_grad_(), double(S).squeeze().requires_grad_()
    logits = best_logit(mean + std * NOISE).unsqueeze(1)  # the critic's own M and S are constants
    loss = (WEIGHT * torch.func.vmap(lambda one: generator_loss(one, kind))(logits)).sum()
    found = torch.stack(torch.autograd.grad(loss, (mean, std)))
    kl = 0.5 * (mean.square() + std.square() - 1) - std.log()
    twice = 2 * jensen_shannon(mean, std)
    divergence = {"logit": kl, "saturating": twice, "non_saturating": kl - twice}[kind]
    expected = torch.stack(torch.autograd.grad(divergence, (mean, std), retain_graph=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.tolist() == pytest.approx(numbers, abs=1e-6)
    # The values, which differ from the divergences by what the critic holds fixed.
    x = (mean + std * NOISE).detach()
    p, q = log_density(x, 0, 1).exp(), log_density(x, M, S).exp()
    value = {
        "logit": (q / p).log(),
        "saturating": (q / (p + q)).log(),
        "non_saturating": -(p / (p + q)).log(),
    }
    torch.testing.assert_close(loss, (WEIGHT * value[kind]).sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_means_that_any_batch_size_leaves_alone(kind):
    real, fake = torch.randn(5, **DOUBLE), torch.randn(7, **DOUBLE)
    critic = torch.stack([F.softplus(-r) + F.softplus(f) for r in real for f in fake]).mean()
    torch.testing.assert_close(critic_loss(real, fake), critic, rtol=0, atol=1e-14)
    for times in (2, 3):  # more fakes than real ones do not weigh more
        torch.testing.assert_close(critic_loss(real, fake.repeat(times)), critic_loss(real, fake))
        torch.testing.assert_close(generator_loss(fake.repeat(times), kind), generator_loss(fake, kind))
    assert critic_loss(torch.zeros(3), torch.zeros(2)).item() == pytest.approx(2 * math.log(2))


def test_losses_are_finite_at_any_logit_and_one_fades_where_the_critic_is_sure():
    for kind in KINDS:
        logits = double(-1e4, -30.0, 0.0, 30.0, 1e4).requires_grad_()
        loss = generator_loss(logits, kind) + critic_loss(logits, -logits)
        (slope,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()
    slopes = {}
    for kind in KINDS:
        logits = double(-30.0).requires_grad_()
        slopes[kind] = torch.autograd.grad(generator_loss(logits, kind), logits)[0].item()
    assert slopes == pytest.approx({"logit": -1, "saturating": 0, "non_saturating": -1}, abs=1e-12)


def test_the_gradient_penalty_of_a_quadratic_critic_and_its_gradient():
    torch.manual_seed(0)
    critic, x = Quadratic(3).double(), torch.randn(6, 3, **DOUBLE)
    with torch.no_grad():
        critic.q.copy_(torch.randn(3, 3)), critic.w.copy_(torch.randn(3))
    slope = x @ (critic.q + critic.q.T) + critic.w
    expected = slope.square().sum(dim=1).mean()
    penalty = gradient_penalty(critic, x)
    torch.testing.assert_close(penalty, expected, rtol=1e-14, atol=0)
    for ours, theirs in zip(gradients(penalty, critic), gradients(expected, critic)):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    assert norm(gradients(penalty, critic)) > 1
    torch.testing.assert_close(gradient_penalty(critic, x.repeat(3, 1)), penalty)
    with torch.no_grad():
        watched = gradient_penalty(critic, x)
    torch.testing.assert_close(watched, penalty.detach(), rtol=0, atol=0)
    assert not watched.requires_grad


# ------------------------------------------------------------------------------- exact toy models


class Point(nn.Module):
    """A decoder that makes one thing whatever the code."""

    def __init__(self, *values):
        super().__init__()
        self.value = nn.Parameter(double(*values))

    def forward(self, z):
        return self.value.expand(len(z), -1)


def dirac_gan(**options) -> GAN:
    critic = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(critic.weight)
    return GAN(Point(0.0), critic, image_shape=(1,), latent_dim=1, output="linear", **options)


def field(gan: GAN, players=("decoder", "critic")) -> torch.Tensor:
    """The Jacobian, at the equilibrium, of what the named players do: minus their own loss's gradient."""
    weights = [gan.decoder.value, gan.critic.weight]
    loss = gan.loss(torch.zeros(4, 1, **DOUBLE))
    rows = []
    for name, weight, own in zip(("decoder", "critic"), weights, (loss.total, loss.own["critic"])):
        (slope,) = torch.autograd.grad(own, weight, create_graph=True)
        rows.append([-g.item() for g in torch.autograd.grad(slope.sum(), weights, retain_graph=True)])
        if name not in players:
            rows[-1] = [0.0, 0.0]
    return torch.tensor(rows, **DOUBLE)


def modulus(steps: torch.Tensor) -> list[float]:
    return torch.linalg.eigvals(steps).abs().tolist()


@pytest.mark.parametrize("kind", ["saturating", "non_saturating"])
def test_dirac_gan_spirals_outwards_with_simultaneous_steps_and_circles_with_alternating_ones(kind):
    h, eye = 0.2, torch.eye(2, **DOUBLE)
    gan = dirac_gan(generator_loss=kind, r1=0.0)
    outwards = math.sqrt(1 + h**2 / 4)  # the slope of log sigmoid at 0 is 1/2
    assert modulus(eye + h * field(gan)) == pytest.approx([outwards] * 2, abs=1e-12)
    assert outwards == pytest.approx(1.00498756, abs=1e-8)
    in_turn = (eye + h * field(gan, ("decoder",))) @ (eye + h * field(gan, ("critic",)))
    assert modulus(in_turn) == pytest.approx([1, 1], abs=1e-12)


@pytest.mark.parametrize("r1", [0.04, 0.06, 0.3, 1.0])
def test_dirac_gan_comes_to_rest_with_a_gradient_penalty(r1):
    h = 0.2
    step = torch.eye(2, **DOUBLE) + h * field(dirac_gan(r1=r1))
    torch.testing.assert_close(step, double(1, h / 2, -h / 2, 1 - h * r1).view(2, 2), rtol=0, atol=1e-15)
    assert modulus(step)[0] == pytest.approx(math.sqrt(1 - h * r1 + h**2 / 4), abs=1e-12)
    assert (modulus(step)[0] < 1) == (r1 > h / 4)


@pytest.fixture
def exact_noise(monkeypatch):
    """Noise of six rows whose mean is exactly 0 and whose covariance exactly I."""
    points = math.sqrt(3) * torch.cat([torch.eye(3, **DOUBLE), -torch.eye(3, **DOUBLE)])
    monkeypatch.setattr(adversarial, "standard_normal", lambda shape, like: points[: shape[0], : shape[1]])


def test_a_quadratic_critic_rests_where_a_linear_generator_is_the_maximum_likelihood_gaussian(exact_noise):
    torch.manual_seed(2)
    x = torch.randn(6, 3, **DOUBLE) @ torch.randn(3, 3, **DOUBLE) + torch.randn(3, **DOUBLE)
    decoder = nn.Linear(3, 3).double()
    gan = GAN(decoder, Quadratic(3).double(), image_shape=(3,), latent_dim=3, output="linear", r1=0.0)
    with torch.no_grad():
        decoder.bias.copy_(x.mean(dim=0))
        decoder.weight.copy_(torch.linalg.cholesky(torch.cov(x.T, correction=0)))
    assert norm(gradients(gan.loss(x).own["critic"], gan.critic)) < 1e-14
    with torch.no_grad():
        decoder.weight.copy_(decoder.weight @ torch.linalg.qr(torch.randn(3, 3, **DOUBLE))[0])
    assert norm(gradients(gan.loss(x).own["critic"], gan.critic)) < 1e-14  # a rotation changes nothing
    for parameter, change in ((decoder.bias, lambda b: b + 0.1), (decoder.weight, lambda w: 1.1 * w)):
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(change(before))
        assert norm(gradients(gan.loss(x).own["critic"], gan.critic)) > 0.01
        with torch.no_grad():
            parameter.copy_(before)


def linear_aae(size: int, latent_dim: int, **options) -> AdversarialAutoencoder:
    networks = nn.Linear(size, latent_dim), nn.Linear(latent_dim, size), Quadratic(latent_dim)
    shapes = {"image_shape": (size,), "latent_dim": latent_dim}
    return AdversarialAutoencoder(*networks, likelihood=Gaussian(1.0), **shapes, **options).double()


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_pca_is_the_optimum_of_both_losses_of_a_linear_autoencoder(kind):
    torch.manual_seed(0)
    x = torch.randn(200, 5, **DOUBLE) @ torch.randn(5, 5, **DOUBLE) + 1
    mean, cov = x.mean(dim=0), torch.cov(x.T, correction=0)
    values, axes = torch.linalg.eigh(cov)
    kept, scale = axes[:, 3:], values[3:].sqrt()
    model = linear_aae(5, 2, generator_loss=kind)

    def put(rotation: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        """Whitened PCA, turned and stretched; the critic at its best against it. The codes."""
        with torch.no_grad():
            to_code = factor * rotation @ (kept / scale).T
            model.encoder.weight.copy_(to_code)
            model.encoder.bias.copy_(-to_code @ mean)
            model.decoder.weight.copy_(kept * scale @ rotation.T / factor)
            model.decoder.bias.copy_(mean)
            codes = model.encode(x)
            model.critic.between(codes.mean(dim=0), torch.cov(codes.T, correction=0))
        return codes

    for rotation in (torch.eye(2, **DOUBLE), torch.linalg.qr(torch.randn(2, 2, **DOUBLE))[0]):
        codes = put(rotation)
        torch.testing.assert_close(
            torch.cov(codes.T, correction=0), torch.eye(2, **DOUBLE), rtol=0, atol=4e-15
        )
        parts = model.loss(x).parts
        error = 2 * parts["reconstruction"] - 5 * math.log(2 * math.pi)
        assert error.item() == pytest.approx(values[:3].sum().item(), rel=1e-12)
        for network in (model.encoder, model.decoder):
            assert norm(gradients(parts["reconstruction"], network)) < 1e-12
        assert norm(gradients(parts["generator"], model.encoder)) < 1e-12
    # Stretched codes are decoded as well, and it is the game that does not like them.
    put(rotation, 1.3)
    parts = model.loss(x).parts
    assert norm(gradients(parts["reconstruction"], model.encoder)) < 1e-12
    assert norm(gradients(parts["generator"], model.encoder)) > 0.1
    if kind == "logit":  # and its gradient is that of KL(q(z) || N(0, I))
        codes = model.encode(x)
        moments = torch.cov(codes.T, correction=0)
        kl = 0.5 * (codes.mean(dim=0).square().sum() + moments.trace() - 2 - torch.logdet(moments))
        for ours, theirs in zip(gradients(parts["generator"], model.encoder), gradients(kl, model.encoder)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_a_quadratic_critic_is_blind_to_all_but_mean_and_covariance(exact_noise):
    # Uniform codes of variance 1 pass it; a critic that sees more finds the nats that are left.
    codes = torch.linspace(-1, 1, 10_001, **DOUBLE).unsqueeze(1)
    codes = codes / codes.std(correction=0)
    critic = Quadratic(1).double()
    on_real = critic(double(-1.0, 1.0).unsqueeze(1)).squeeze(1)  # mean 0, variance 1
    assert norm(gradients(critic_loss(on_real, critic(codes).squeeze(1)), critic)) < 1e-12
    best = log_density(codes.squeeze(1), 0, 1) + math.log(2 * math.sqrt(3))
    left = generator_loss(best, "logit").item()
    assert left == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 12), abs=1e-12)
    assert left == pytest.approx(0.1765, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "expected"), [("logit", (M, S - 1 / S)), ("saturating", (0.155477, 0.157436))]
)
def test_an_encoder_against_the_best_critic_of_codes_follows_that_divergence(kind, expected):
    # Whole model: real is the prior, fakes are codes, and the weight multiplies the game alone.
    x = torch.special.ndtri((torch.arange(20_000, **DOUBLE) + 0.5) / 20_000).unsqueeze(1)
    x = x / x.std(correction=0)
    encoder = nn.Linear(1, 1).double()
    nn.init.constant_(encoder.weight, S), nn.init.constant_(encoder.bias, M)
    critic = Quadratic(1).double().between(double(M), double(S**2).view(1, 1))
    settings = {"image_shape": (1,), "latent_dim": 1, "likelihood": Gaussian(1.0)}
    model = AdversarialAutoencoder(encoder, Point(0.0), critic, weight=2.0, generator_loss=kind, **settings)
    std, mean = (g.item() for g in gradients(model.loss(x).total, encoder))
    assert (mean / 2, std / 2) == pytest.approx(expected, abs=1e-12 if kind == "logit" else 1e-4)


class Encoder(nn.Module):
    def __init__(self, size: int, latent_dim: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, 2 * latent_dim))

    def forward(self, x):
        return self.net(x).chunk(2, dim=1)


def test_with_the_image_itself_for_features_a_vae_gan_is_a_gaussian_vae():
    torch.manual_seed(0)
    encoder, decoder = Encoder(6, 2), nn.Linear(2, 6)
    shapes = {"image_shape": (6,), "latent_dim": 2}
    model = VAEGAN(
        encoder, decoder, nn.Identity(), nn.Linear(6, 1), output="linear", feature_variance=1.0, **shapes
    ).double()
    vae = VAE(encoder, decoder, likelihood=Gaussian(1.0), **shapes)
    for count in (3, 8):
        x, losses = torch.randn(count, 6, **DOUBLE), []
        for one in (model, vae):
            torch.manual_seed(1)
            losses.append(one.loss(x).total)
        torch.testing.assert_close(*losses, rtol=0, atol=1e-14)
        torch.manual_seed(1)
        mean, logvar = encoder(x)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        squares = 0.5 * (decoder(z) - x).square().sum(dim=1).mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
        constant = 3 * math.log(2 * math.pi)  # D/2 log 2 pi; without it the value is lower by 5.51363
        torch.testing.assert_close(losses[0], squares + kl + constant, rtol=0, atol=1e-13)
        assert constant == pytest.approx(5.51363, abs=1e-5)
        ours, theirs = (gradients(loss, encoder) for loss in losses)
        assert norm(ours) > 0.1
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------- who learns from what

ROUTES = {
    "AdversarialAutoencoder": {
        "encoder": "reconstruction + weight * generator",
        "decoder": "reconstruction",
        "critic": "critic + r1/2 * gradient_penalty",
    },
    "GAN": {"decoder": "generator", "critic": "critic + r1/2 * gradient_penalty"},
    "VAEGAN": {
        "encoder": "kl + features",
        "decoder": "gamma * features + generator",
        "critic": "critic + r1/2 * gradient_penalty",
    },
}

COUNT, BATCH, SHAPE = 20, 8, (6,)  # three steps an epoch, the last of them with four examples
GAME = {"r1": 0.7, "critic_lr_scale": 0.5}
SMALL = {"hidden": (5,), "activation": nn.Tanh, **GAME}
SMALL_MODELS = {
    "AdversarialAutoencoder": lambda: AdversarialAutoencoder.build(
        "mlp", SHAPE, 2, critic_hidden=(5, 4), likelihood="gaussian", weight=3.0, **SMALL
    ),
    "GAN": lambda: GAN.build("mlp", SHAPE, 2, output="linear", **SMALL),
    "VAEGAN": lambda: VAEGAN.build(
        "mlp", SHAPE, 2, features=4, gamma=0.3, feature_variance=0.4, output="linear", **SMALL
    ),
}
each_model = pytest.mark.parametrize("name", SMALL_MODELS)


def small(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SMALL_MODELS[name]().double()


@pytest.fixture
def points() -> torch.Tensor:
    torch.manual_seed(7)
    return torch.randn(COUNT, *SHAPE, **DOUBLE)


def trained(model: nn.Module, points, note, **options) -> None:
    """Fit a model; ``note()`` is called after every step, while the gradients are there."""
    model.after_step = note
    settings = {"epochs": 1, "batch_size": COUNT, "device": "cpu", "progress": False}
    fit(model, points, **settings | options)


def rows(epoch: int, size: int = BATCH) -> tuple[torch.Tensor, ...]:
    """Of each batch, as ``fit`` takes them with seed 0."""
    return torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch)).split(size)


def test_the_table_is_printed_where_the_models_are():
    table, model = {}, ""
    for line in adversarial.__doc__.split("::\n", 1)[1].split("Watch")[0].splitlines():
        if line:
            named, network, formula = re.fullmatch(r"    (\S*)\s+(\S+)\s{2,}(\S.*)", line).groups()
            model = named or model
            table.setdefault(model, {})[network] = formula
    assert table == ROUTES


@each_model
def test_every_network_learns_from_its_row_of_the_table_and_from_nothing_else(name, points):
    ours, theirs, received = small(name), small(name), {}

    def note():
        for network in ROUTES[name]:
            received[network] = [p.grad.clone() for p in getattr(ours, network).parameters()]

    trained(ours, points, note)
    torch.manual_seed(0)
    loss = theirs.loss(points[rows(0, COUNT)[0]])
    assert {network.partition(".")[0] for network, _ in theirs.named_parameters()} == {*ROUTES[name]}
    for network, formula in ROUTES[name].items():
        known = {key: value for key, value in vars(theirs).items() if isinstance(value, float)}
        expected = gradients(eval(formula, {}, {**known, **loss.parts}), getattr(theirs, network))
        difference = norm([a - b for a, b in zip(received[network], expected)])
        assert difference < 1e-15 * max(norm(expected), 1), network
        for term in loss.parts.keys() & re.findall(r"\w+", formula):  # none of them is there in vain
            assert norm(gradients(loss.parts[term], getattr(theirs, network))) > 1e-4, (network, term)


@pytest.mark.parametrize(
    ("name", "term", "network"),
    [
        ("AdversarialAutoencoder", "critic", "encoder"),
        ("AdversarialAutoencoder", "generator", "critic"),
        ("GAN", "critic", "decoder"),
        ("GAN", "generator", "critic"),
        ("VAEGAN", "features", "critic"),
        ("VAEGAN", "generator", "encoder"),
        ("VAEGAN", "critic", "encoder"),
        ("VAEGAN", "critic", "decoder"),
    ],
)
def test_what_the_table_keeps_apart_would_mix(name, term, network, points):
    # So that the test above can fail: these terms have a gradient there, and nobody takes it.
    model = small(name)
    assert norm(gradients(model.loss(points).parts[term], getattr(model, network))) > 1e-3
    assert term not in re.findall(r"\w+", ROUTES[name][network])


def cross_entropy(on_real, on_fake):
    return -F.logsigmoid(on_real).mean() - F.logsigmoid(-on_fake).mean()


def penalised(model, real, value):
    real = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.critic(real).sum(), real, create_graph=True)
    return value + model.r1 / 2 * slope.square().sum(dim=1).mean()


def squared(a, b, variance=1.0):
    return 0.5 * ((a - b).square() / variance + math.log(2 * math.pi * variance)).sum(dim=1).mean()


def textbook_aae(model, x):
    """Makhzani et al., phase by phase, each with its own forward pass and constants where they belong."""
    prior = torch.randn(len(x), 2, **DOUBLE)
    reconstruction = squared(model.decoder(model.encoder(x)), x)
    yield ("encoder", "decoder"), reconstruction
    codes = model.encoder(x).detach()
    yield ("critic",), penalised(model, prior, cross_entropy(model.critic(prior), model.critic(codes)))
    yield ("encoder",), -model.weight * F.logsigmoid(model.critic(model.encoder(x))).mean()


def textbook_gan(model, x):
    z = torch.randn(len(x), 2, **DOUBLE)
    fakes = model.decoder(z).detach()
    yield ("critic",), penalised(model, x, cross_entropy(model.critic(x), model.critic(fakes)))
    yield ("decoder",), -F.logsigmoid(model.critic(model.decoder(z))).mean()


def textbook_vae_gan(model, x):
    """Larsen et al., algorithm 1, with real and fake halves of one weight as in the authors' program."""
    noise, drawn = torch.randn(len(x), 2, **DOUBLE), torch.randn(len(x), 2, **DOUBLE)
    features, verdict = model.critic
    mean, logvar = model.encoder(x)
    z = mean + torch.exp(0.5 * logvar) * noise
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
    alike = squared(features(x).detach(), features(model.decoder(z)), 0.4)
    yield ("encoder",), kl + alike
    fakes = [model.decoder(z.detach()), model.decoder(drawn)]
    alike = squared(features(x).detach(), features(fakes[0]), 0.4)
    fooled = sum(-F.logsigmoid(verdict(features(one))).mean() for one in fakes)
    yield ("decoder",), model.gamma * alike + 0.5 * fooled
    judged = -F.logsigmoid(model.critic(x)).mean()
    judged = judged - sum(0.5 * F.logsigmoid(-model.critic(one.detach())).mean() for one in fakes)
    yield ("critic",), penalised(model, x, judged)


TEXTBOOKS = {"AdversarialAutoencoder": textbook_aae, "GAN": textbook_gan, "VAEGAN": textbook_vae_gan}


@each_model
@pytest.mark.parametrize("count", [3, 20])
def test_the_gradients_are_those_of_the_papers_algorithm(name, count, points):
    points, ours, theirs, received = points[:count], small(name), small(name), {}
    trained(ours, points, lambda: received.update((n, p.grad.clone()) for n, p in ours.named_parameters()))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    sums = {parameter: torch.zeros_like(parameter) for parameter in theirs.parameters()}
    for networks, value in TEXTBOOKS[name](theirs, points[order]):
        for network in networks:
            module = getattr(theirs, network)
            for parameter, gradient in zip(module.parameters(), gradients(value, module)):
                sums[parameter] += gradient
    for place, parameter in theirs.named_parameters():
        torch.testing.assert_close(received[place], sums[parameter], rtol=0, atol=2e-15, msg=place)


@each_model
def test_training_is_that_of_separate_optimisers_whatever_the_order_of_evaluation(name, points):
    ours, trace = small(name), []
    trained(
        ours,
        points,
        lambda: trace.append([(p.detach().clone(), p.grad.clone()) for p in ours.parameters()]),
        epochs=2,
        batch_size=BATCH,
        lr=0.01,
    )
    assert len(trace) == 6
    players = ("total", *small(name).loss(points).own)
    for order in itertools.permutations(players):
        theirs = small(name)
        networks = {player: [player] for player in players}
        networks["total"] = [network for network in ROUTES[name] if network not in players]
        aae = name == "AdversarialAutoencoder"
        optimisers = {}
        for network in ROUTES[name]:
            betas = (0.9, 0.999) if aae and network != "critic" else theirs.betas
            rate = 0.01 * (theirs.critic_lr_scale if network == "critic" else 1)
            optimisers[network] = torch.optim.Adam(
                getattr(theirs, network).parameters(), lr=rate, betas=betas, fused=True
            )
        assert aae == (theirs.betas == (0.5, 0.9))
        torch.manual_seed(0)
        steps = iter(trace)
        for batch in (*rows(0), *rows(1)):
            loss = theirs.loss(points[batch])
            for player in order:
                value = loss.total if player == "total" else loss.own[player]
                for network in networks[player]:
                    for p, g in zip(
                        getattr(theirs, network).parameters(), gradients(value, getattr(theirs, network))
                    ):
                        p.grad = g
            for optimiser in optimisers.values():
                optimiser.step()
            for p, (weight, gradient) in zip(theirs.parameters(), next(steps)):
                assert torch.equal(p.grad, gradient)
                assert torch.equal(p, weight)


@each_model
def test_real_is_the_prior_or_the_image_and_the_prior_is_a_standard_normal(name):
    model, seen = small(name), []
    x = torch.randn(20_000, *SHAPE, **DOUBLE) + 3
    model.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    if name == "VAEGAN":
        model.critic[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    drawn = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[0]))
    with torch.no_grad():
        model.loss(x)
        codes = drawn[0]
        if name == "AdversarialAutoencoder":
            prior = next(tensor for tensor in seen if not torch.equal(tensor, codes))
        else:
            assert any(torch.equal(tensor, x) for tensor in seen)
            prior = codes[-len(x) :]  # of a VAE-GAN, behind those of the images
            assert len(codes) == len(x) * (2 if name == "VAEGAN" else 1)
        model.sample(20_000)
    for z in (prior, drawn[-1]):
        assert z.mean(dim=0).abs().max() < 0.04
        torch.testing.assert_close(torch.cov(z.T), torch.eye(2, **DOUBLE), rtol=0, atol=0.05)
        assert z.square().square().mean() == pytest.approx(3, abs=0.15)


# ------------------------------------------------------------------------- what else they must do


@each_model
def test_looking_changes_nothing_and_sees_the_penalty(name, points):
    model = small(name)
    torch.manual_seed(1)
    learning = model.eval().loss(points)
    torch.manual_seed(1)
    with torch.no_grad():
        looking = model.loss(points)
    assert learning.own["critic"].requires_grad
    for term, value in looking.terms.items():
        assert torch.equal(value, learning.terms[term]), term
        assert not value.requires_grad
    assert looking.parts["gradient_penalty"] > 0
    model.r1 = 0.0
    assert "gradient_penalty" not in model.loss(points).parts


@pytest.mark.parametrize("model", [GAN, VAEGAN, AdversarialAutoencoder])
@pytest.mark.parametrize(
    ("kind", "shape", "sizes"),
    [("mlp", (1, 8, 8), {"hidden": (5,)}), ("conv", (1, 8, 9), {"channels": (2, 3)})],
)
def test_batch_norm_is_for_who_makes_the_images_and_moves_in_training_only(model, kind, shape, sizes):
    made, x = model.build(kind, shape, 2, batch_norm=True, **sizes), torch.rand(4, *shape)
    layers = {n: m for n, m in made.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert any(name.startswith("decoder") for name in layers)
    assert not any(name.startswith("critic") for name in layers)
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    assert mean_loss(made, x) == mean_loss(made, x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in made.named_buffers())
    made.train().loss(x)
    layer = next(m for n, m in made.named_modules() if n.startswith("decoder") and n in layers)
    assert layer.num_batches_tracked == 1  # all fakes of a step together
    assert not torch.equal(layer.running_mean, torch.zeros_like(layer.running_mean))


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("mlp", (6,), {}),
        ("conv", (3, 8, 9), {"channels": (2, 3)}),
        ("conv1d", (2, 9), {"channels": (2,)}),
        ("residual", (1, 8, 9), {"channels": (2,), "blocks": 2}),
    ],
)
def test_any_network_will_do(kind, shape, options):
    x = torch.rand(4, *shape)
    gan, vae_gan = GAN.build(kind, shape, 2, **options), VAEGAN.build(kind, shape, 2, features=3, **options)
    models = [gan, vae_gan]
    for posterior in ("deterministic", "gaussian", "noise"):
        settings = {"likelihood": "gaussian", "variance": "per_pixel", "critic_hidden": (4,), **options}
        models.append(AdversarialAutoencoder.build(kind, shape, 2, posterior=posterior, **settings))
    for model in models:
        model.validate(x)
        fit(model, x, epochs=1, batch_size=3, device="cpu", progress=False)
        assert model.sample(3).shape == (3, *shape)
        assert all(math.isfinite(value) for value in mean_loss(model, x).values())
        if model is not gan:
            assert model.reconstruct(x).shape == x.shape
    assert gan.judge(x).shape == (4,)
    assert gan.sample(3).min() > 0
    assert gan.sample(3).max() < 1


def test_an_encoder_may_be_certain_gaussian_or_fed_with_noise(points):
    x = points[:1].expand(5000, -1).float()
    settings = {"hidden": (5,), "likelihood": "gaussian"}
    for posterior in ("deterministic", "gaussian", "noise"):
        torch.manual_seed(0)
        model = AdversarialAutoencoder.build("mlp", SHAPE, 2, posterior=posterior, **settings)
        codes = model.draw_codes(x).detach()
        spread = codes.std(dim=0)
        if posterior == "deterministic":
            assert spread.max() < 1e-6
            assert torch.equal(codes, model.encode(x))
        elif posterior == "gaussian":
            mean, logvar = model.encode(x[:1])
            assert torch.equal(model.reconstruct(x[:1]), model.decode(mean))
            torch.testing.assert_close(codes.mean(dim=0), mean[0].detach(), rtol=0, atol=0.06)
            torch.testing.assert_close(spread.log(), 0.5 * logvar[0].detach(), rtol=0, atol=0.05)
        else:
            assert spread.min() > 0.01
            images = torch.rand(4, 3, 8, 8)
            model = AdversarialAutoencoder.build("conv", (3, 8, 8), 2, posterior=posterior)
            model.encoder, model.latent_dim = nn.Flatten(), 4 * 64
            seen = model.encode(images).view(4, 4, 8, 8)
            assert torch.equal(seen[:, :3], images)
            assert seen[:, 3].std().item() == pytest.approx(1, abs=0.2)


class Proportional(nn.Module):
    """An encoder of numbers: N(factor x, exp logvar)."""

    def __init__(self, factor: float, logvar: float):
        super().__init__()
        self.factor, self.logvar = factor, logvar

    def forward(self, x):
        return self.factor * x, torch.full_like(x, self.logvar)


@pytest.mark.parametrize(("factor", "logvar"), [(0.4, -math.log(5)), (0.2, -1.0)])
def test_importance_weights_of_a_gaussian_posterior_are_exact(factor, logvar):
    # p(x|z) = N(2z, 1) and z ~ N(0, 1): p(x) = N(0, 5), and the posterior at x is N(2x/5, 1/5).
    x, decoder = double(1.5, -3.0).unsqueeze(1), nn.Linear(1, 1).double()
    nn.init.constant_(decoder.weight, 2.0), nn.init.zeros_(decoder.bias)
    settings = {"image_shape": (1,), "latent_dim": 1, "likelihood": Gaussian(1.0), "posterior": "gaussian"}
    model = AdversarialAutoencoder(Proportional(factor, logvar), decoder, Quadratic(1), **settings)
    evidence = log_density(x.squeeze(1), 0, math.sqrt(5))
    torch.manual_seed(0)
    draws = model.log_weights(x, 40_000)
    assert draws.shape == (40_000, 2)
    excess = 5 * math.exp(logvar)  # of q's variance over the posterior's
    gap = 0.5 * (5 * ((factor - 0.4) * x.squeeze(1)).square() + excess - 1 - math.log(excess))
    if factor == 0.4:  # every draw is right; elsewhere their mean misses KL(q || posterior)
        assert gap.abs().max() < 1e-12
        assert (draws - evidence).abs().max() < 1e-12
        return
    assert gap.min() > 0.3
    assert ((draws.mean(dim=0) - (evidence - gap)).abs() < 4 * draws.std(dim=0) / 200).all()
    torch.testing.assert_close(evaluate.iwae(model, x, 50, 200).value, evidence, rtol=0, atol=0.05)
    estimate = evaluate.prior_monte_carlo(model, x, 20_000).value
    torch.testing.assert_close(estimate, evidence, rtol=0, atol=0.08)


@each_model
def test_losses_stay_in_single_precision_under_autocast(name, points):
    model, x = small(name).float(), points.float()
    torch.manual_seed(3)
    exact = model.loss(x)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(x)
    for term, value in loss.terms.items():
        assert value.dtype == torch.float32, term
        torch.testing.assert_close(value, exact.terms[term], rtol=0.1, atol=0.1)
    ours, theirs = (gradients(one.own["critic"], model.critic) for one in (loss, exact))
    assert norm([a - b for a, b in zip(ours, theirs)]) < 0.1 * norm(theirs)
    fit(model, x, epochs=1, precision="bfloat16", device="cpu", progress=False)


def test_a_stopped_run_ends_where_it_would_have_ended(points, tmp_path):
    torch.manual_seed(0)
    models = [VAEGAN.build("mlp", SHAPE, 2, features=3, batch_norm=True, output="linear") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"batch_size": BATCH, "device": "cpu", "progress": False}
    x = points.float()
    whole = fit(models[0], x, epochs=3, **settings)
    fit(models[1], x, epochs=1, checkpoint=tmp_path / "run.pt", **settings)
    history = fit(models[1], x, epochs=3, checkpoint=tmp_path / "run.pt", **settings)
    assert history.train == whole.train
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --------------------------------------------------------------------------------- that they learn


def test_a_gan_with_a_regularised_critic_finds_all_modes():
    ring = data.mixture_ring()
    torch.manual_seed(0)
    x, _ = ring.sample(2560)
    model = GAN.build("mlp", (2,), 4, hidden=(32, 32), output="linear", r1=0.1)
    history = fit(model, x, epochs=60, batch_size=256, lr=3e-3, device="cpu", progress=False)
    torch.manual_seed(0)
    samples = model.sample(4000)
    nearest = (samples.unsqueeze(1) - ring.means).norm(dim=2).min(dim=1)
    close = nearest.values < 0.6  # three standard deviations
    shares = torch.bincount(nearest.indices[close], minlength=8) / 4000
    assert (shares >= 0.01).sum() == 8
    assert shares.min() > 0.03
    assert close.float().mean() > 0.55  # a disc with all modes in it: 0.37
    assert 1.3 < history.train["critic"][-1] < 2 * math.log(2)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_an_adversarial_autoencoder_shapes_its_codes(digits):
    torch.manual_seed(0)
    settings = {"hidden": (64,), "critic_hidden": (32, 32), "weight": 3.0}
    model = AdversarialAutoencoder.build("mlp", (1, 8, 8), 4, **settings)
    fit(model, digits.train, epochs=25, batch_size=100, lr=3e-3, device="cpu", progress=False)
    codes = model.draw_codes(digits.test).detach()
    spread = torch.linalg.eigvalsh(torch.cov(codes.T))
    assert spread.min() > 0.4  # with weight 0: from 1.8 to 6.8, around a mean of norm 4
    assert spread.max() < 1.6
    assert codes.mean(dim=0).norm() < 0.4
    error = (model.reconstruct(digits.test) - digits.test).square().flatten(1).sum(dim=1).mean()
    assert error < 2.2  # the mean image: 4.7


def test_a_vae_gan_learns_to_reconstruct_by_what_its_critic_sees(digits):
    torch.manual_seed(0)
    options = {"hidden": (64,), "features": 32, "feature_variance": 0.01, "gamma": 0.5, "batch_norm": True}
    model = VAEGAN.build("mlp", (1, 8, 8), 4, **options)
    history = fit(model, digits.train, epochs=20, batch_size=100, lr=5e-3, device="cpu", progress=False)
    error = (model.reconstruct(digits.test) - digits.test).square().flatten(1).sum(dim=1).mean()
    assert error < 3.4  # the mean image: 4.7; no pixel was compared
    assert history.train["kl"][-1] > 3
    assert 1.2 < history.train["critic"][-1] < 2 * math.log(2)


# ----------------------------------------------------------------------------------- refused in words


@pytest.mark.parametrize("model", [AdversarialAutoencoder, GAN, VAEGAN])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"generator_loss": "wgan"},
            ValueError,
            r"^generator_loss is 'wgan' but must be one of \('logit', 'sat",
        ),
        ({"r1": -1.0}, ValueError, r"^r1 is -1\.0 but must be at least 0"),
        ({"r1": math.nan}, ValueError, r"^r1 is nan but must be at least 0"),
        ({"critic_lr_scale": 0.0}, ValueError, r"^critic_lr_scale is 0\.0 but must be positive"),
        ({"betta": 2}, TypeError, "betta"),
        ({"hidden": 5}, TypeError, r"^hidden is 5 but needs a sequence of sizes"),
    ],
)
def test_bad_options_are_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        model.build("mlp", (6,), 2, **options)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (GAN, {"output": "tanh"}, r"^output is 'tanh' but must be one of \('sigmoid', 'linear'\)"),
        (VAEGAN, {"gamma": -0.1}, r"^gamma is -0\.1 but must be at least 0"),
        (VAEGAN, {"feature_variance": 0.0}, r"^feature_variance is 0\.0 but must be positive"),
        (VAEGAN, {"features": 0}, r"has the size 0|latent_dim has the size 0"),
        (AdversarialAutoencoder, {"weight": -1}, r"^weight is -1 but must be at least 0"),
        (
            AdversarialAutoencoder,
            {"posterior": "flow"},
            r"^posterior is 'flow' but must be one of \('determin",
        ),
        (AdversarialAutoencoder, {"likelihood": "poisson"}, r"^likelihood is 'poisson' but must be one of"),
        (AdversarialAutoencoder, {"levels": 3}, r"^levels is 3 but likelihood is 'bernoulli'"),
    ],
)
def test_bad_options_of_one_model_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.build("mlp", (6,), 2, **options)


@pytest.mark.parametrize("model", [AdversarialAutoencoder, GAN, VAEGAN])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(4, 5), ValueError, r"^images has shape \(4, 5\) but this model needs \(batch, 6\)"),
        (torch.rand(4, 6) * 255, ValueError, r"^images has values .* but needs \[0, 1\].*Divide 8-bit"),
        (torch.full((4, 6), math.nan), ValueError, r"^images holds 24 values that are NaN or infinite"),
        (torch.zeros(4, 6, dtype=torch.int64), TypeError, r"^images has dtype torch\.int64"),
        (None, TypeError, r"^images must be a torch\.Tensor, not NoneType"),
    ],
)
def test_images_that_cannot_be_learned_from_are_refused(model, images, error, message):
    with pytest.raises(error, match=message):
        model.build("mlp", (6,), 2).validate(images)


def test_arguments_that_do_not_fit_are_refused(points):
    x = points.float()
    gan, vae_gan = GAN.build("mlp", SHAPE, 2, output="linear"), VAEGAN.build("mlp", SHAPE, 2, output="linear")
    aae = AdversarialAutoencoder.build("mlp", SHAPE, 2, likelihood="gaussian")
    for model in (gan, vae_gan, aae):
        model.validate(x)  # any numbers will do for these
        with pytest.raises(ValueError, match=r"^x has shape \(20, 5\) but this model needs \(batch, 6\)"):
            model.loss(x[:, :5])
        with pytest.raises(ValueError, match=r"^z has shape \(4, 3\) but this model needs \(batch, 2\)"):
            model.decode(torch.zeros(4, 3))
        with pytest.raises(ValueError, match=r"^count is 0 but must be at least 1"):
            model.sample(0)
    for posterior in ("deterministic", "noise"):
        model = AdversarialAutoencoder.build("mlp", SHAPE, 2, likelihood="gaussian", posterior=posterior)
        with pytest.raises(
            ValueError, match=rf"^posterior is '{posterior}' but log_weights needs 'gaussian'"
        ):
            model.log_weights(x, 3)
    with pytest.raises(ValueError, match=r"^samples is 0 but must be at least 1"):
        aae.log_weights(x, 0)
    shapes = {"image_shape": SHAPE, "latent_dim": 2, "output": "linear"}
    with pytest.raises(ValueError, match=r"^the critic's output has shape \(20, 2\) .* needs \(batch, 1\)"):
        GAN(nn.Linear(2, 6), nn.Linear(6, 2), **shapes).loss(x)
    with pytest.raises(ValueError, match=r"^the decoder's output has shape \(20, 5\) .* needs \(batch, 6\)"):
        GAN(nn.Linear(2, 5), nn.Linear(6, 1), **shapes).loss(x)
    with pytest.raises(ValueError, match=r"^the encoder's mean has shape \(20, 3\) .* needs \(batch, 2\)"):
        VAEGAN(Encoder(6, 3), nn.Linear(2, 6), nn.Linear(6, 4), nn.Linear(4, 1), **shapes).loss(x)
    with pytest.raises(ValueError, match=r"^the encoder's output has shape \(20, 3\) .* needs \(batch, 2\)"):
        AdversarialAutoencoder(
            nn.Linear(6, 3), nn.Linear(2, 6), nn.Linear(2, 1), image_shape=SHAPE, latent_dim=2
        ).loss(x)
    with pytest.raises(ValueError, match=r"^latent_dim is 0 but must be at least 1"):
        GAN(nn.Linear(2, 6), nn.Linear(6, 1), image_shape=SHAPE, latent_dim=0)
    with pytest.raises(ValueError, match=r"^kind is 'hinge' but must be one of \('logit', 'saturating'"):
        generator_loss(torch.zeros(3), "hinge")
    with pytest.raises(ValueError, match=r"^logits has shape \(3, 1\) but needs \(batch,\)"):
        generator_loss(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"^fake has shape \(3, 1\) but needs"):
        critic_loss(torch.zeros(3), torch.zeros(3, 1))
