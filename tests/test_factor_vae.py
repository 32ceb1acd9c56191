"""FactorVAE and beta-TCVAE: the total correlation against closed forms, and who learns from what."""

import itertools
import math
from functools import partial

import pytest
import torch
from support.losses import assert_single_precision_under_autocast
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.func import functional_call
from torch.nn import functional as F

from aecourse import data, evaluate
from aecourse.linear import linear_vae_optimum
from aecourse.nets import mlp
from aecourse.train import fit, mean_loss
from aecourse.vae import VAE
from aecourse.zoo import factor_vae
from aecourse.zoo.factor_vae import (
    BetaTCVAE,
    FactorVAE,
    critic_loss,
    kl_parts,
    permute_dims,
    total_correlation,
)

IMAGE_SHAPE = (1, 4, 5)
LATENT_DIM = 3
SMALL = {"hidden": (7,)}
SETTINGS = {"device": "cpu", "progress": False}
CLASSES = {"FactorVAE": partial(FactorVAE.build, critic_hidden=(6,)), "BetaTCVAE": BetaTCVAE.build}
OPTIONS = {"FactorVAE": {}, "BetaTCVAE": {"data_size": 12}}
on_both = pytest.mark.parametrize("name", CLASSES)


def small(name: str, **options):
    return CLASSES[name]("mlp", IMAGE_SHAPE, LATENT_DIM, **SMALL, **OPTIONS[name] | options).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(6, *IMAGE_SHAPE, dtype=torch.float64)


def seeded(model, x, **options):
    torch.manual_seed(3)
    return model.loss(x, **options)


# ------------------------------------------------------- exact expectations of linear models


class LinearEncoder(nn.Module):
    def __init__(self, weight: torch.Tensor, logvar: torch.Tensor):
        super().__init__()
        self.weight, self.logvar = nn.Parameter(weight.clone()), nn.Parameter(logvar.clone())

    def forward(self, x):
        return x @ self.weight.T, self.logvar.expand(len(x), -1)


class GaussianCritic(nn.Module):
    """The best critic for codes from N(0, S): log N(z; 0, S) - sum_j log N(z_j; 0, S_jj)."""

    def __init__(self, cov: torch.Tensor):
        super().__init__()
        self.precision = nn.Parameter(torch.diag(1 / cov.diagonal()) - torch.linalg.inv(cov))
        self.constant = nn.Parameter(0.5 * (cov.diagonal().log().sum() - torch.logdet(cov)))

    def forward(self, z):
        return 0.5 * ((z @ self.precision) * z).sum(dim=1, keepdim=True) + self.constant


COV = torch.tensor([[4.0, 1.2, 0.3], [1.2, 2.0, -0.4], [0.3, -0.4, 0.7]], dtype=torch.float64)


def exact_moments(monkeypatch, latent_dim: int, count: int = 40) -> torch.Tensor:
    """Data with the covariance COV and noise with the covariance I, uncorrelated in the sample itself.

    Losses of linear Gaussian models are quadratic in both, so one batch gives their expectation.
    """
    white = torch.randn(count, len(COV) + latent_dim, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(dim=0)).Q * math.sqrt(count)
    noise = white[:, len(COV) :]
    monkeypatch.setattr("aecourse.likelihoods.standard_normal", lambda shape, **_: noise.view(shape))
    return white[:, : len(COV)] @ torch.linalg.cholesky(COV).T


def linear_model(weight, encoder, logvar, *, variance, **options) -> FactorVAE:
    encoder = LinearEncoder(encoder, logvar)
    decoder = nn.Linear(*weight.shape[::-1], bias=False, dtype=torch.float64)
    decoder.weight.data.copy_(weight)
    cov = encoder.weight @ COV @ encoder.weight.T + torch.diag(logvar.exp())
    settings = {"image_shape": (len(weight),), "latent_dim": len(logvar), "likelihood": "gaussian"}
    critic = GaussianCritic(cov.detach())
    return FactorVAE(encoder, decoder, critic=critic, variance=variance, **settings, **options)


def gradients(loss: torch.Tensor, *modules: nn.Module) -> list[torch.Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return [*torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)]


def anywhere(monkeypatch, **options) -> tuple[FactorVAE, torch.Tensor]:
    """A linear model far from its optimum, and its data."""
    weight, encoder = torch.randn(2, 3, 2, dtype=torch.float64)
    logvar = torch.tensor([-0.3, 0.4], dtype=torch.float64)
    x = exact_moments(monkeypatch, latent_dim=2)
    return linear_model(weight, encoder.T, logvar, variance=0.5, **options), x


def test_the_critics_best_logit_is_the_log_ratio_and_its_mean_the_total_correlation(monkeypatch):
    root = torch.linalg.cholesky(COV)
    z = exact_moments(monkeypatch, latent_dim=1)
    joint = MultivariateNormal(torch.zeros_like(z[0]), scale_tril=root).log_prob(z)
    product = Normal(0.0, COV.diagonal().sqrt()).log_prob(z).sum(dim=1)
    logits = GaussianCritic(COV)(z).squeeze(1)
    torch.testing.assert_close(logits, joint - product, rtol=0, atol=1e-12)
    exact = 0.5 * (COV.diagonal().log().sum() - torch.logdet(COV))
    assert exact > 0.1
    torch.testing.assert_close(total_correlation(logits), exact, rtol=0, atol=1e-12)


def test_with_the_best_critic_the_gradient_is_that_of_the_total_correlation(monkeypatch):
    model, x = anywhere(monkeypatch, gamma=3.0)
    with_it, loss = model.loss(x), model.loss(x)
    exact = evaluate.gaussian_total_correlation(*model.encode(x))
    torch.testing.assert_close(loss.parts["total_correlation"], exact, rtol=0, atol=1e-12)
    model.gamma = 0.0
    without = model.loss(x)
    torch.testing.assert_close(with_it.total - without.total, 3 * exact, rtol=0, atol=1e-12)
    expected = gradients(3 * exact, model.encoder, model.decoder)
    found = gradients(with_it.total - without.total, model.encoder, model.decoder)
    assert expected[0].norm() > 0.1
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("gamma", [0.0, 6.4, 40.0])
def test_at_the_optimum_of_the_linear_vae_gamma_costs_nothing(monkeypatch, gamma):
    """There q(z) is N(0, I), and its latent variables are independent. Beta moves the optimum."""
    x = exact_moments(monkeypatch, latent_dim=2)
    best = linear_vae_optimum(x, 2, variance=0.5)
    parameters = (best.weight, best.encoder, best.logvar)
    model = linear_model(*parameters, variance=0.5, gamma=gamma)
    loss = model.loss(x)
    torch.testing.assert_close(loss.total, best.minimum, rtol=0, atol=1e-11)
    for gradient in gradients(loss.total, model.encoder, model.decoder):
        assert gradient.abs().max() < 1e-11
    moved = gradients(model.loss(x, beta=4.0).total, model.encoder, model.decoder)
    assert max(gradient.abs().max() for gradient in moved) > 0.1


# --------------------------------------------------------------------------- permute_dims


def test_every_latent_variable_keeps_its_values_and_loses_its_company():
    z = torch.randn(500, 1, dtype=torch.float64) + torch.tensor([0.0, 10.0, 20.0])
    permuted = permute_dims(z.requires_grad_())
    assert permuted.dtype == z.dtype
    assert not permuted.requires_grad
    assert torch.equal(permuted.sort(dim=0).values, z.sort(dim=0).values)
    assert torch.corrcoef(z.T)[0, 1:].min() > 0.999
    correlations = torch.corrcoef(permuted.T)
    assert correlations[0, 1:].abs().max() < 0.15  # three standard errors
    assert correlations[1, 2].abs() < 0.15
    assert not torch.equal(permuted, permute_dims(z))


def test_over_all_permutations_the_mean_product_is_the_product_of_means(monkeypatch):
    z, moments, kept = torch.randn(4, 2, dtype=torch.float64), [], []
    for first, second in itertools.product(itertools.permutations(range(4)), repeat=2):
        noise = torch.tensor([first, second], dtype=torch.float64).T
        monkeypatch.setattr(factor_vae, "standard_normal", lambda *_, noise=noise, **__: noise)
        permuted = permute_dims(z)
        moments.append((permuted[:, 0] * permuted[:, 1]).mean())
        kept.append((permuted[:, None] == z).all(dim=2).any(dim=1).double().mean())
    expected = z[:, 0].mean() * z[:, 1].mean()
    torch.testing.assert_close(torch.stack(moments).mean(), expected, rtol=0, atol=1e-14)
    assert torch.stack(kept).mean().item() == pytest.approx(1 / 4, abs=1e-14)


def test_all_pairs_of_permutations_are_equally_likely():
    pairs = permute_dims(torch.arange(3.0).unsqueeze(1).expand(3, 7200)).unflatten(1, (-1, 2))
    digits = torch.tensor([9.0, 3.0, 1.0]).view(3, 1, 1)
    counts = (pairs * digits).sum(dim=0).long().mul(torch.tensor([27, 1])).sum(dim=1).bincount()
    counts = counts[counts > 0]
    assert len(counts) == 36
    assert (counts - 100).abs().max() < 45  # of 3600, with a standard deviation of 10


# ----------------------------------------------------------- the critic's loss and its estimate


def test_the_critics_loss_is_the_cross_entropy_of_equally_frequent_classes():
    joint, permuted = torch.randn(2, 50, dtype=torch.float64)
    told = torch.cat([joint, permuted])
    which = torch.cat([torch.ones(50), torch.zeros(50)]).double()
    expected = F.binary_cross_entropy_with_logits(told, which)
    torch.testing.assert_close(critic_loss(joint, permuted), expected, rtol=0, atol=1e-14)
    twice = critic_loss(joint.repeat(2), permuted)
    torch.testing.assert_close(twice, expected, rtol=0, atol=1e-14)  # each kind is half, whatever its number
    torch.testing.assert_close(total_correlation(joint.repeat(2)), joint.mean(), rtol=0, atol=1e-14)
    always_zero = critic_loss(torch.zeros(5), torch.zeros(3))
    assert always_zero.item() == pytest.approx(math.log(2), abs=1e-7)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(critic_loss(far, far), far)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("rho", [0.0, -0.787])
def test_logistic_regression_on_permuted_codes_finds_the_total_correlation(rho):
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    z = torch.randn(40_000, 2, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    shuffled, best = permute_dims(z), GaussianCritic(cov)

    def features(z):
        a, b = z.T
        return torch.stack([a * a, b * b, a * b, a, b, torch.ones_like(a)], dim=1)

    joint, permuted = features(z), features(shuffled)
    critic = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([critic], max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = critic_loss(joint @ critic, permuted @ critic)
        value.backward()
        return value

    optimizer.step(loss)
    exact = -0.5 * math.log(1 - rho**2)
    assert total_correlation(joint @ critic).item() == pytest.approx(exact, abs=0.02)
    # A little better on these draws than the critic that is best for all, which is no better than chance if
    # there is nothing to find.
    least = critic_loss(best(z).squeeze(1), best(shuffled).squeeze(1)).item()
    assert least - 1e-3 < loss().item() < least + 1e-6
    assert least == pytest.approx(math.log(2), abs=1e-12) if rho == 0 else least < 0.58


# ------------------------------------------------------------------ two players, and who learns what


def test_the_critic_sees_draws_and_the_same_draws_permuted(x):
    model, seen = small("FactorVAE", samples=2), []
    model.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    seeded(model, x)
    torch.manual_seed(3)
    mean, logvar = model.encode(x)
    draws = mean + (0.5 * logvar).exp() * torch.randn(2, *mean.shape, dtype=torch.float64)
    for_vae, joint, permuted = seen
    assert torch.equal(for_vae, draws[0])
    assert torch.equal(joint, draws[0])
    assert not torch.equal(permuted, draws[0])
    assert torch.equal(permuted.sort(dim=0).values, draws[0].sort(dim=0).values)


def test_no_gradient_leaks_from_one_player_to_the_other(x):
    for names in (("total", "own"), ("own", "total")):
        model = small("FactorVAE")
        loss = model.loss(x)
        for name in names:
            model.zero_grad()
            (loss.total if name == "total" else loss.own["critic"]).backward(retain_graph=True)
            players = {"critic": [], "vae": []}
            for place, parameter in model.named_parameters():
                players["critic" if place.startswith("critic") else "vae"].append(parameter.grad)
            learns, waits = ("vae", "critic") if name == "total" else ("critic", "vae")
            assert all(gradient is not None for gradient in players[learns])
            assert max(gradient.norm() for gradient in players[learns]) > 1e-3
            assert all(gradient is None for gradient in players[waits])


def test_two_optimisers_may_step_one_after_the_other(x):
    """Forward once, step the VAE, then go backward through the critic: no graph has been changed in place."""
    results = []
    for one_after_the_other in (True, False):
        torch.manual_seed(0)
        model = small("FactorVAE")
        rest = [*model.encoder.parameters(), *model.decoder.parameters()]
        vae, critic = torch.optim.Adam(rest), torch.optim.Adam(model.critic.parameters())
        loss = seeded(model, x)
        if one_after_the_other:
            for player, value in ((vae, loss.total), (critic, loss.own["critic"])):
                player.zero_grad()
                value.backward()
                player.step()
        else:
            loss.total.backward(inputs=rest, retain_graph=True)
            loss.own["critic"].backward(inputs=[*model.critic.parameters()])
            vae.step()
            critic.step()
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_fit_is_two_optimisers_step_by_step():
    images = torch.rand(20, *IMAGE_SHAPE, dtype=torch.float64)
    torch.manual_seed(0)
    ours = small("FactorVAE", critic_lr=0.3)
    theirs = small("FactorVAE", critic_lr=0.3)
    theirs.load_state_dict(ours.state_dict())
    trace = []
    ours.after_step = lambda: trace.append({n: p.clone() for n, p in ours.state_dict().items()})
    fit(ours, images, epochs=2, batch_size=8, lr=1e-2, **SETTINGS)

    vae = torch.optim.Adam([*theirs.encoder.parameters(), *theirs.decoder.parameters()], 1e-2, fused=True)
    settings = {"lr": 0.3e-2, "betas": (0.5, 0.9), "fused": True}
    critic = torch.optim.Adam(theirs.critic.parameters(), **settings)
    torch.manual_seed(0)
    steps = iter(trace)
    for epoch in range(2):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(8):
            mean, logvar = theirs.encode(images[rows])
            z = mean + torch.exp(0.5 * logvar) * torch.randn(1, *mean.shape, dtype=torch.float64)
            order = torch.randn(len(rows), LATENT_DIM, dtype=torch.float64).argsort(dim=0)
            bound = theirs.log_likelihood(images[rows], z).mean()
            bound = bound - theirs.kl_per_dimension(mean, logvar).mean(dim=0).sum()
            codes = z[0].detach()
            permuted = torch.stack([codes[order[:, j], j] for j in range(LATENT_DIM)], dim=1)
            theirs.zero_grad()
            (10.0 * theirs.critic(z[0]).squeeze(1).mean() - bound).backward()
            theirs.critic.zero_grad()
            told = F.softplus(-theirs.critic(codes)).mean() + F.softplus(theirs.critic(permuted)).mean()
            (0.5 * told).backward()
            vae.step()
            critic.step()
            ours_then = next(steps)
            for name, value in theirs.state_dict().items():
                assert torch.equal(ours_then[name], value), name
    assert next(steps, None) is None


def test_without_gamma_it_is_the_vae(x):
    for options in ({}, {"beta": 0.5, "free_bits": 0.1, "samples": 3, "prior_temperature": 2.0}):
        model = small("FactorVAE", gamma=0.0, **options)
        settings = {"image_shape": IMAGE_SHAPE, "latent_dim": LATENT_DIM}
        vae = VAE(model.encoder, model.decoder, **settings, **options)
        for batch in (x, x[:2]):
            for beta in (None, 0.3):
                loss, expected = seeded(model, batch, beta=beta), seeded(vae, batch, beta=beta)
                assert torch.equal(loss.total, expected.total)
                assert {name: loss.parts[name] for name in expected.parts} == expected.parts
    model.gamma = 7.0
    more = seeded(model, x)
    expected = seeded(model, x).parts["total_correlation"]
    torch.testing.assert_close(more.total - seeded(vae, x).total, 7 * expected, rtol=0, atol=1e-12)


def test_a_batch_twice_is_no_other_loss(x, monkeypatch):
    """Means over the examples: of six and of these six twice, with the same noise."""
    noise = torch.randn(1, 6, LATENT_DIM, dtype=torch.float64)
    places = torch.arange(12.0).unsqueeze(1).expand(-1, LATENT_DIM)

    def repeated(shape, **_):
        return noise.repeat(1, shape[1] // 6, 1)

    monkeypatch.setattr("aecourse.likelihoods.standard_normal", repeated)
    monkeypatch.setattr(factor_vae, "standard_normal", lambda shape, **_: places[: shape[0]])
    for name, twice in (("FactorVAE", {}), ("BetaTCVAE", {"data_size": 12})):
        torch.manual_seed(0)
        model = small(name, **({"data_size": 6} if twice else {}))
        once = model.loss(x)
        for option, value in twice.items():  # the data set twice, too
            setattr(model, option, value)
        for term, value in model.loss(x.repeat(2, 1, 1, 1)).terms.items():
            torch.testing.assert_close(value, once.terms[term], rtol=0, atol=1e-12)


@on_both
def test_one_example_has_a_finite_loss(x, name):
    """The last batch of an epoch may be that small."""
    model = small(name)
    loss = model.loss(x[:1])
    for value in loss.terms.values():
        assert value.isfinite()
    for value in (loss.total, *loss.own.values()):
        value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@on_both
def test_the_gradient_of_the_loss_is_its_derivative(name):
    settings = {"hidden": (2,), "activation": nn.Tanh, **OPTIONS[name]}
    model = CLASSES[name]("mlp", (3,), 2, **settings).double()
    x = torch.rand(3, 3, dtype=torch.float64)
    players = {"total": "encoder decoder"} | ({"critic": "critic"} if name == "FactorVAE" else {})
    for player, modules in players.items():

        class WithLossAsForward(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, player=player):
                torch.manual_seed(3)  # the noise is the same at every call
                loss = self.model.loss(x)
                return loss.total if player == "total" else loss.own[player]

        whole = WithLossAsForward()
        names = [n for n, _ in whole.named_parameters() if n.split(".")[1] in modules.split()]
        values = [whole.get_parameter(n).detach().clone().requires_grad_() for n in names]

        def value(*values, whole=whole, names=names):
            return functional_call(whole, dict(zip(names, values)), ())

        assert torch.autograd.gradcheck(value, values)


# ------------------------------------------------------------------- FactorVAE is ICA in closed form


def test_it_finds_the_axes_of_independent_factors():
    """Two uniform factors of variance 1, turned by 0.6 rad. Nothing in the VAE's own bound sees that, as
    both variances are 1. The total correlation does: it is 2 log cos + tan of the angle, without noise.

    Training starts at the optimum of the linear VAE, and has to turn the code.
    """
    turn = torch.tensor([[math.cos(0.6), -math.sin(0.6)], [math.sin(0.6), math.cos(0.6)]])
    x = (2 * torch.rand(5120, 2) - 1) * math.sqrt(3) @ turn.T
    scale, noise = math.sqrt(0.95) * torch.eye(2), torch.full((2,), math.log(0.05))
    encoder, decoder = LinearEncoder(scale, noise), nn.Linear(2, 2, bias=False)
    decoder.weight.data.copy_(scale)
    critic = mlp([2, 32, 32, 1], activation=partial(nn.LeakyReLU, 0.2))
    settings = {"image_shape": (2,), "latent_dim": 2, "likelihood": "gaussian", "variance": 0.05}
    model = FactorVAE(encoder, decoder, critic=critic, gamma=5.0, **settings)

    def angles():
        sizes = (encoder.weight @ turn).detach().abs()
        return torch.rad2deg(torch.atan2(sizes.amin(dim=1), sizes.amax(dim=1)))

    torch.testing.assert_close(angles(), torch.rad2deg(torch.full((2,), 0.6)))
    start = mean_loss(model, x)
    fit(model, x, epochs=25, batch_size=256, lr=lambda epoch: 0.01 * (1 - epoch / 25), **SETTINGS)
    end = mean_loss(model, x)
    assert angles().max() < 2
    # And it costs the bound nothing.
    bounds = [terms["reconstruction"] + terms["kl"] for terms in (start, end)]
    assert bounds[1] == pytest.approx(bounds[0], abs=0.05)
    assert abs(end["total_correlation"]) < 0.01
    assert end["own.critic"] == pytest.approx(math.log(2), abs=2e-3)


# --------------------------------------------------------------------------- beta-TCVAE


def codes(count: int = 5, k: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, logvar = torch.randn(2, count, k, dtype=torch.float64)
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean), mean, logvar


def mixtures(mean, logvar):
    """log q(z) and sum_j log q(z_j) of the mixture of all q(z|x), as functions of z."""
    weights = Categorical(torch.ones(len(mean), dtype=mean.dtype))
    scale = (0.5 * logvar).exp()
    joint = MixtureSameFamily(weights, Independent(Normal(mean, scale), 1))
    each = [MixtureSameFamily(weights, Normal(mean[:, j], scale[:, j])) for j in range(mean.shape[1])]
    return joint.log_prob, lambda z: sum(q.log_prob(z[:, j]) for j, q in enumerate(each))


@pytest.mark.parametrize("sampling", factor_vae.SAMPLINGS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_three_parts_add_up_to_the_kl_of_each_draw(sampling, count):
    z, mean, logvar = codes(count, 3)
    parts = kl_parts(z, mean, logvar, 50, sampling=sampling, prior_logvar=0.3)
    assert {values.shape for values in parts} == {(count,)}
    posterior = Normal(mean, (0.5 * logvar).exp()).log_prob(z).sum(dim=1)
    prior = Normal(z.new_zeros(()), math.exp(0.15)).log_prob(z).sum(dim=1)
    torch.testing.assert_close(sum(parts), posterior - prior, rtol=0, atol=1e-12)


def test_of_the_whole_data_set_the_parts_are_exact_and_so_are_their_gradients():
    values = [tensor.requires_grad_() for tensor in codes(6, 3)]
    z, mean, logvar = values
    parts = kl_parts(z, mean, logvar, 6)
    log_q, log_product = (function(z) for function in mixtures(mean, logvar))
    posterior = Normal(mean, (0.5 * logvar).exp()).log_prob(z).sum(dim=1)
    prior = Normal(z.new_zeros(()), 1.0).log_prob(z).sum(dim=1)
    expected = (posterior - log_q, log_q - log_product, log_product - prior)
    for name, part, exact in zip(parts._fields, parts, expected):
        torch.testing.assert_close(part, exact, rtol=0, atol=1e-12, msg=name)
        found, wanted = (torch.autograd.grad(p.mean(), values, retain_graph=True) for p in (part, exact))
        for one, other in zip(found, wanted):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_codes_on_a_grid_have_no_total_correlation_and_on_a_diagonal_all_of_it():
    places = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64)
    for mean, correlation in (
        (torch.cartesian_prod(places, places + 5), 0.0),
        (torch.stack([places, -places], dim=1), math.log(3)),
    ):
        logvar = torch.full_like(mean, 0.2)
        z = mean + math.exp(0.1) * torch.randn_like(mean)
        parts = kl_parts(z, mean, logvar, len(mean))
        # They do not overlap: the code says which example it was.
        torch.testing.assert_close(parts.information, z.new_full((len(z),), math.log(len(z))))
        expected = z.new_full((len(z),), correlation)
        torch.testing.assert_close(parts.total_correlation, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_over_all_batches_the_stratified_estimate_has_the_right_mean(batch):
    """All batches of one example of five and others; of one latent variable, so that this holds for both."""
    z, mean, logvar = codes(5, 1)
    log_q, _ = mixtures(mean, logvar)
    own = Normal(mean, (0.5 * logvar).exp()).log_prob(z).squeeze(1)
    others = (5 * log_q(z).exp() - own.exp()) / 4  # the mean density under the four
    for place in range(5):
        estimates = {"stratified": [], "weighted": []}
        for company in itertools.combinations([n for n in range(5) if n != place], batch - 1):
            rows = [*company, place]
            for sampling, found in estimates.items():
                parts = kl_parts(z[rows], mean[rows], logvar[rows], 5, sampling=sampling)
                found.append((own[place] - parts.information[-1]).exp())
                assert abs(parts.total_correlation[-1]) < 1e-12  # there is one latent variable
        stratified, weighted = (torch.stack(found).mean() for found in estimates.values())
        torch.testing.assert_close(stratified, log_q(z)[place].exp(), rtol=1e-12, atol=0)
        expected = (own[place].exp() + (batch - 1) * others[place]) / (5 * batch)
        torch.testing.assert_close(weighted, expected, rtol=1e-12, atol=0)


def test_weighted_values_are_shifted_by_what_the_weights_lack():
    """With the whole data set, by log N for each sum: and gradients do not depend on N."""
    z, mean, logvar = codes(6, 3)
    exact = kl_parts(z, mean, logvar, 6)
    weighted = kl_parts(z, mean, logvar, 6, sampling="weighted")
    for name, times in (("information", 1), ("total_correlation", 2), ("dimension_wise", -3)):
        shift = getattr(weighted, name) - getattr(exact, name)
        torch.testing.assert_close(shift, torch.full_like(shift, times * math.log(6)), rtol=0, atol=1e-12)
    found = []
    for size in (6, 6000):
        values = [tensor.clone().requires_grad_() for tensor in (z, mean, logvar)]
        parts = kl_parts(*values, size, sampling="weighted")
        found.append(torch.autograd.grad(parts.total_correlation.mean(), values))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_the_parts_of_a_gaussian_code_have_closed_forms():
    """mean KL = I + TC + the rest; at the optimum of the linear VAE all of it is information."""
    count = 1000
    white = torch.randn(count, 3, dtype=torch.float64)
    white = torch.linalg.qr(white - white.mean(dim=0)).Q * math.sqrt(count)
    x = white @ torch.linalg.cholesky(COV).T
    best = linear_vae_optimum(x, 2, variance=0.5)
    tilted = torch.tensor([[0.6, 0.5, 0.1], [0.3, 0.7, -0.4]], dtype=torch.float64)
    for weight, logvar in ((best.encoder, best.logvar), (tilted, best.logvar + 0.3)):
        mean, logvar = x @ weight.T, logvar.expand(count, -1)
        cov = weight @ COV @ weight.T + torch.diag(logvar[0].exp())
        log_det, variances = torch.logdet(cov), cov.diagonal()
        exact = {
            "information": 0.5 * (log_det - logvar[0].sum()),
            "total_correlation": 0.5 * (variances.log().sum() - log_det),
            "dimension_wise": 0.5 * (variances - 1 - variances.log()).sum(),
        }
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        parts = kl_parts(z, mean, logvar, count)
        for name, value in exact.items():
            assert getattr(parts, name).mean().item() == pytest.approx(value.item(), abs=0.05), name
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
        torch.testing.assert_close(sum(exact.values()), kl, rtol=0, atol=1e-12)
        if weight is best.encoder:
            torch.testing.assert_close(exact["information"], best.kl.sum(), rtol=0, atol=1e-12)
        else:
            assert exact["total_correlation"] > 0.2


@pytest.mark.parametrize("sampling", factor_vae.SAMPLINGS)
def test_with_beta_one_it_is_the_vae_and_beta_weighs_the_total_correlation_alone(x, sampling):
    for options in ({}, {"free_bits": 0.1, "samples": 3, "prior_temperature": 2.0}):
        model = small("BetaTCVAE", beta=1.0, sampling=sampling, **options)
        settings = {"image_shape": IMAGE_SHAPE, "latent_dim": LATENT_DIM}
        vae = VAE(model.encoder, model.decoder, **settings, **options)
        for batch in (x, x[:2]):
            loss, expected = seeded(model, batch), seeded(vae, batch)
            assert torch.equal(loss.total, expected.total)
            assert {name: loss.parts[name] for name in expected.parts} == expected.parts
            torch.manual_seed(3)
            mean, logvar = model.encode(batch)
            z = mean + (0.5 * logvar).exp() * torch.randn(model.samples, *mean.shape, dtype=torch.float64)
            prior = math.log(model.prior_temperature)
            parts = kl_parts(z[0], mean, logvar, 12, sampling=sampling, prior_logvar=prior)
            for name, values in parts._asdict().items():
                torch.testing.assert_close(loss.parts[name], values.mean(), rtol=0, atol=1e-12)
            for beta in (0.0, 6.0):
                more = seeded(model, batch, beta=beta).total - loss.total
                expected = (beta - 1) * loss.parts["total_correlation"]
                torch.testing.assert_close(more, expected, rtol=0, atol=1e-12)
        model.beta = 6.0
        assert torch.equal(seeded(model, batch).total, seeded(model, batch, beta=6.0).total)


# ----------------------------------------------------------------------------- both as VAEs


@on_both
@pytest.mark.parametrize(("kind", "shape"), [("mlp", (5,)), ("conv", (3, 8, 9)), ("residual", (1, 8, 9))])
def test_they_have_all_that_a_vae_has(name, kind, shape):
    model = CLASSES[name](kind, shape, 2, likelihood="gaussian", **OPTIONS[name])
    x = torch.rand(6, *shape)
    model.validate(x)
    mean, _ = model.encode(x)
    assert model.loss(x).total.shape == ()
    assert model.elbo(x, samples=2).shape == (6,)
    assert model.log_weights(x, 3).shape == (3, 6)
    assert model.log_joint(x, mean).shape == (6,)
    assert model.sample(4).shape == (4, *shape)
    assert model.reconstruct(x).shape == x.shape
    assert model.traverse(mean, 1, [-1.0, 1.0]).shape == (2, *x.shape)
    assert evaluate.importance_sampling(model, x, 5).value.shape == (6,)


def test_settings_reach_the_model():
    model = FactorVAE.mlp((1, 4, 4), 2, critic_hidden=(5, 4), gamma=3.5, critic_lr=0.5, variance=None)
    assert (model.gamma, model.critic_lr) == (3.5, 0.5)
    assert [tuple(layer.weight.shape) for layer in model.critic[::2]] == [(5, 2), (4, 5), (1, 4)]
    (group,) = model.parameter_groups()
    assert group["params"] == [*model.critic.parameters()]
    assert (group["lr_scale"], group["betas"]) == (0.5, (0.5, 0.9))
    model = BetaTCVAE.mlp((1, 4, 4), 2, data_size=60, beta=2.0, sampling="weighted")
    assert (model.data_size, model.beta, model.sampling) == (60, 2.0, "weighted")


@on_both
def test_losses_stay_in_single_precision_under_autocast(x, name):
    model, x = small(name).float(), x.float()
    assert_single_precision_under_autocast(model, x)


@on_both
def test_far_codes_have_a_finite_loss(x, name):
    """A network that has lost its way gives log-variances of thousands."""

    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.logvar = nn.Parameter(torch.tensor([-3000.0, 0.0, 40.0]))

        def forward(self, x):
            return x.flatten(1)[:, :3] * 100, self.logvar.expand(len(x), -1)

    model = small(name).float()
    model.encoder = Lost()
    loss = model.loss(x.float())
    loss.total.backward()
    assert all(value.isfinite() for value in loss.terms.values())
    assert model.encoder.logvar.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [("FactorVAE", {"critic_hidden": (32, 32)}, 0.09), ("BetaTCVAE", {"data_size": 1436}, 0.04)],
)
def test_codes_of_digits_are_nearly_uncorrelated_at_little_cost(name, options, most):
    """A VAE with these settings has 0.14 and 0.17 nats of total correlation, and a bound of 26.1 and 25.7."""
    digits = data.load("digits")
    model = CLASSES[name]("mlp", digits.image_shape, 6, hidden=(64,), **options)
    fit(model, digits.train, epochs=10, batch_size=100, lr=3e-3, **SETTINGS)
    with torch.no_grad():
        correlation = evaluate.gaussian_total_correlation(*model.encode(digits.train))
    tested = mean_loss(model, digits.test)
    assert correlation < most
    assert tested["reconstruction"] + tested["kl"] < 26.6
    assert tested["kl"] > 0.7  # and not because there is nothing in them
    assert abs(tested["total_correlation"]) < 0.1


# ----------------------------------------------------------------------------- bad input

CODES = torch.randn(6, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: permute_dims(CODES[0]), ValueError, r"^z has shape \(3,\) but needs \(batch, k\)"),
        (lambda: permute_dims(CODES.long()), TypeError, r"^z has dtype torch\.int64 but needs a float"),
        (lambda: critic_loss(CODES, CODES[:, 0]), ValueError, r"^joint has shape \(6, 3\) but needs \(batch"),
        (lambda: critic_loss(CODES[:, 0], CODES), ValueError, r"^permuted has shape \(6, 3\) but needs"),
        (lambda: total_correlation(CODES), ValueError, r"^logits has shape \(6, 3\) but needs \(batch"),
        (lambda: kl_parts(CODES, CODES[:5], CODES, 9), ValueError, r"^mean has shape \(5, 3\) but needs"),
        (lambda: kl_parts(CODES, CODES, CODES, 1), ValueError, r"^data_size is 1 but must be at least 2"),
        (lambda: kl_parts(CODES, CODES, CODES, 9.5), TypeError, r"^data_size is 9\.5 but must be a whole"),
        (
            lambda: kl_parts(CODES, CODES, CODES, 9, sampling="mws"),
            ValueError,
            r"^sampling is 'mws' but must be one of \('stratified', 'weighted'\)",
        ),
        (lambda: FactorVAE.mlp((4,), 1), ValueError, r"^latent_dim is 1 but must be at least 2"),
        (lambda: FactorVAE.mlp((4,), 2, gamma=-1), ValueError, r"^gamma is -1 but must be at least 0"),
        (lambda: FactorVAE.mlp((4,), 2, gamma=math.inf), ValueError, r"^gamma is inf but must be at least 0"),
        (lambda: FactorVAE.mlp((4,), 2, critic_lr=0), ValueError, r"^critic_lr is 0 but must be positive"),
        (lambda: FactorVAE.mlp((4,), 2, critic_hidden=(5, 0)), ValueError, r"^a size in critic_hidden is 0"),
        (lambda: FactorVAE.mlp((4,), 2, beta=-1), ValueError, r"^beta is -1 but must be at least 0"),
        (lambda: FactorVAE.mlp((4,), 2, gama=1), TypeError, "gama"),
        (lambda: BetaTCVAE.mlp((4,), 2), TypeError, "data_size"),
        (lambda: BetaTCVAE.mlp((4,), 2, data_size=0), ValueError, r"^data_size is 0 but must be at least 2"),
        (lambda: BetaTCVAE.mlp((4,), 2, data_size=9, beta=-1), ValueError, r"^beta is -1 but must be at"),
        (lambda: BetaTCVAE.mlp((4,), 2, data_size=9, sampling=1), ValueError, r"^sampling is 1 but must"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@on_both
def test_data_that_cannot_be_trained_on_are_refused(x, name):
    model = small(name)
    with pytest.raises(ValueError, match=r"^images has values from 0 to 2 but needs \[0, 1\]"):
        fit(model, torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, *IMAGE_SHAPE).double(), **SETTINGS)
    with pytest.raises(ValueError, match=r"^images has shape \(6, 4, 5\) but this model needs"):
        fit(model, x[:, 0], **SETTINGS)
    with pytest.raises(ValueError, match=r"^images holds 120 values that are NaN"):
        fit(model, x * math.nan, **SETTINGS)


def test_one_image_has_nobody_to_exchange_with(x):
    with pytest.raises(ValueError, match=r"^images holds 1 example but needs at least 2"):
        fit(small("FactorVAE"), x[:1], **SETTINGS)


def test_a_critic_of_another_shape_is_refused(x):
    model = small("FactorVAE")
    model.critic = nn.Linear(LATENT_DIM, 2, dtype=torch.float64)  # two logits, as in the paper
    with pytest.raises(ValueError, match=r"^the critic's output has shape \(6, 2\) but .* \(batch, 1\)"):
        model.loss(x)
