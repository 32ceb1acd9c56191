"""The VAE against hand computations with torch.distributions, and against linear VAEs with exact answers."""

import math

import pytest
import torch
from support.losses import assert_gradient_is_derivative, assert_single_precision_under_autocast
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from aecourse import data, gradients, likelihoods
from aecourse.bounds import iwae_bound
from aecourse.iwae import IWAE
from aecourse.likelihoods import reparameterize
from aecourse.linear import fit_ppca
from aecourse.nets import MLPDecoder, MLPEncoder
from aecourse.train import fit
from aecourse.vae import VAE

IMAGE_SHAPE = (1, 4, 5)
LATENT_DIM = 3


def kind(options: dict) -> type[VAE]:
    """The class that has these options."""
    return IWAE if {"bound", "gradient"} & options.keys() else VAE


def small_vae(**options) -> VAE:
    return kind(options).mlp(IMAGE_SHAPE, LATENT_DIM, hidden=(7,), **options)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(6, *IMAGE_SHAPE)


class Fixed(nn.Module):
    """An encoder that gives the same, chosen q for every x."""

    def __init__(self, mean, logvar):
        super().__init__()
        self.mean, self.logvar = mean, logvar

    def forward(self, x):
        return self.mean.expand(len(x), -1), self.logvar.expand(len(x), -1)


class Affine(nn.Module):
    """z -> offset + W z."""

    def __init__(self, weight, offset):
        super().__init__()
        self.weight, self.offset = nn.Parameter(weight), offset

    def forward(self, z):
        return self.offset + z @ self.weight.T


def assert_equal_to_ten_digits(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


# -------------------------------------------------------------------- reparameterisation


def test_samples_have_the_mean_and_variance_of_q():
    count = 200_000
    mean = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64).expand(count, -1)
    logvar = torch.tensor([0.0, 1.5, -3.0], dtype=torch.float64).expand(count, -1)
    z, variance = reparameterize(mean, logvar), logvar[0].exp()
    scores = (z.mean(dim=0) - mean[0]) / (variance / count).sqrt()
    assert scores.abs().max() < 4
    scores = (z.var(dim=0) - variance) / (variance * math.sqrt(2 / count))
    assert scores.abs().max() < 4
    off_diagonal = torch.corrcoef(z.T) - torch.eye(3)
    assert off_diagonal.abs().max() * math.sqrt(count) < 4


def test_gradients_reach_mean_and_logvar():
    mean = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    logvar = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    z = reparameterize(mean, logvar)
    to_mean, to_logvar = torch.autograd.grad(z.sum(), (mean, logvar))
    torch.testing.assert_close(to_mean, torch.ones_like(mean))
    torch.testing.assert_close(to_logvar, 0.5 * (z - mean).detach())  # z - mean = exp(logvar / 2) noise


def test_several_draws_share_their_distribution_and_not_their_noise():
    mean, logvar = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.0, 1.5, -3.0]])
    z = reparameterize(mean.expand(2, -1), logvar.expand(2, -1), samples=100_000)
    assert z.shape == (100_000, 2, 3)
    scores = (z.mean(dim=0) - mean) / (logvar.exp() / 100_000).sqrt()
    assert scores.abs().max() < 4
    scores = (z.var(dim=0) / logvar.exp() - 1) * math.sqrt(100_000 / 2)
    assert scores.abs().max() < 4
    assert torch.corrcoef(z.flatten(1).T).fill_diagonal_(0).abs().max() * math.sqrt(100_000) < 4


# ------------------------------------------------------------------------------- the loss


def by_hand(vae, x, seed):
    """(log p(x|z), KL), each (batch,), with the noise that the seed gives."""
    mean, logvar = vae.encoder(x)
    q = Normal(mean, (logvar / 2).exp())
    torch.manual_seed(seed)
    output = vae.decoder(q.mean + q.stddev * torch.randn(mean.shape))
    if isinstance(vae.likelihood, likelihoods.Bernoulli):
        p = Bernoulli(logits=output, validate_args=False)
    else:
        p = Normal(output, math.sqrt(vae.likelihood.variance))
    kl = kl_divergence(q, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    return p.log_prob(x).sum(dim=(1, 2, 3)), kl.sum(dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 4.0},
        {"beta": 0},
        {"likelihood": "gaussian", "variance": 0.05},
        {"likelihood": "gaussian", "beta": 2.0},
    ],
)
def test_the_loss_agrees_with_torch_distributions(x, options):
    vae = small_vae(**options)
    log_likelihood, kl = by_hand(vae, x, seed=3)
    torch.manual_seed(3)
    loss = vae.loss(x)
    assert loss.parts.keys() == {"reconstruction", "kl"}
    torch.testing.assert_close(loss.parts["reconstruction"], -log_likelihood.mean())
    torch.testing.assert_close(loss.parts["kl"], kl.mean())
    torch.testing.assert_close(loss.total, (-log_likelihood + vae.beta * kl).mean())
    # beta = 1 always: the bound does not depend on what the model was trained with.
    torch.manual_seed(3)
    torch.testing.assert_close(vae.elbo(x), log_likelihood - kl)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_weight_gets_the_gradient_of_the_hand_computation(x, likelihood):
    vae = small_vae(likelihood=likelihood, beta=2.0)
    log_likelihood, kl = by_hand(vae, x, seed=3)
    expected = torch.autograd.grad((-log_likelihood + 2 * kl).mean(), list(vae.parameters()))
    torch.manual_seed(3)
    got = torch.autograd.grad(vae.loss(x).total, list(vae.parameters()))
    for mine, theirs in zip(got, expected):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs)


def test_beta_is_a_larger_variance_in_disguise(x):
    # With a Gaussian likelihood, beta KL + SSE / (2 v) = beta (KL + SSE / (2 beta v)): up to constants
    # and the factor beta, a VAE with weight beta and variance v is a VAE with variance beta v.
    beta, variance = 3.0, 0.2
    one = small_vae(likelihood="gaussian", beta=beta, variance=variance)
    other = small_vae(likelihood="gaussian", variance=beta * variance)
    other.load_state_dict(one.state_dict())

    def without_constant(vae):
        torch.manual_seed(3)
        return vae.loss(x).total - x[0].numel() / 2 * math.log(2 * math.pi * vae.likelihood.variance)

    torch.testing.assert_close(without_constant(one), beta * without_constant(other))


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.0])
def test_a_linear_vae_keeps_what_varies_more_than_beta_times_the_noise(beta):
    # The optimum has |w_i|^2 = max(0, lambda_i - beta variance) along the i-th principal component. A sum
    # that is a mean somewhere in the loss shifts that threshold.
    # Six seeds came within 0.03.
    eigenvalues = torch.tensor([3.0, 1.5])
    data = torch.randn(500, 2)
    data = (data - data.mean(dim=0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(data.T, correction=0))
    ).T
    data = data * eigenvalues.sqrt()
    vae = VAE.mlp((2,), 2, hidden=(), likelihood="gaussian", variance=1.0, beta=beta)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        vae.loss(data).total.backward()
        optimizer.step()
        schedule.step()
    found = torch.linalg.svdvals(vae.decoder.net[0].weight.detach()).square()
    torch.testing.assert_close(found, (eigenvalues - beta).clamp(min=0), rtol=0, atol=0.1)


# ------------------------------------------------------------------ exact linear models


def linear_vae():
    """A VAE with a linear decoder and a fixed q, one example x, and its exact ELBO.

    E |x - b - W z|^2 = |x - b - W mean|^2 + tr(W diag(s^2) W'): with it every term is known.
    """
    dim, variance = 5, 0.4
    weight, offset, x = torch.randn(dim, LATENT_DIM), torch.randn(dim), torch.randn(dim)
    mean, logvar = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([-2.0, 0.0, 0.7])
    vae = VAE(
        Fixed(mean, logvar),
        Affine(weight, offset),
        image_shape=(dim,),
        latent_dim=LATENT_DIM,
        likelihood="gaussian",
        variance=variance,
    )
    squared = (x - offset - weight @ mean).square().sum()
    squared = squared + torch.trace(weight @ torch.diag(logvar.exp()) @ weight.T)
    expected = -0.5 * (dim * math.log(2 * math.pi * variance) + squared / variance)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
    return vae, x, (expected - kl).item()


def test_elbo_estimates_the_exact_bound_without_bias():
    vae, x, exact = linear_vae()
    count = 100_000
    estimates = vae.elbo(x.expand(count, -1))
    error = estimates.std() / math.sqrt(count)
    assert error < 0.01 * abs(exact) / 4  # enough draws to see an error of one per cent
    assert abs(estimates.mean().item() - exact) < 4 * error
    # The loss is the same estimate with the other sign.
    assert abs(-vae.loss(x.expand(count, -1)).total.item() - exact) < 4 * error


def test_more_samples_lower_the_noise_and_not_the_bound():
    vae, x, exact = linear_vae()
    count = 20_000
    one, four = vae.elbo(x.expand(count, -1)), vae.elbo(x.expand(count, -1), samples=4)
    assert one.shape == four.shape == (count,)
    assert four.var() / one.var() == pytest.approx(1 / 4, rel=0.1)
    assert abs(four.mean().item() - exact) < 4 * four.std().item() / math.sqrt(count)


def test_the_elbo_of_probabilistic_pca_is_its_log_likelihood():
    # Maximum-likelihood loadings are orthogonal, so the exact posterior is diagonal and a VAE can hold it.
    data = torch.randn(500, 5) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5])
    model = fit_ppca(data, 2)
    x = data[:1]
    mean, cov = model.posterior(x)
    torch.testing.assert_close(cov, torch.diag(cov.diagonal()), atol=1e-6, rtol=0)
    vae = VAE(
        Fixed(mean[0], cov.diagonal().log()),
        Affine(model.weight, model.mean),
        image_shape=(5,),
        latent_dim=2,
        likelihood="gaussian",
        variance=model.variance.item(),
    )
    estimates = vae.elbo(x.expand(20_000, -1))
    score = (estimates.mean() - model.log_likelihood(x)[0]) / (estimates.std() / math.sqrt(20_000))
    assert abs(score.item()) < 4


class Row(nn.Module):
    """An encoder that gives the mean of the exact posterior of a linear model, and one log-variance."""

    def __init__(self, gain, offset, logvar):
        super().__init__()
        self.gain, self.offset, self.logvar = nn.Parameter(gain), offset, nn.Parameter(logvar)

    def forward(self, x):
        return (x - self.offset) @ self.gain.T, self.logvar.expand(len(x), -1)


def linear_gaussian(weight, offset, variance, **options):
    """p(x|z) = N(offset + W z, variance I), with q the best diagonal Gaussian: the exact mean of the
    posterior and variances variance / M_jj, M = W'W + variance I. In double precision."""
    precision = weight.T @ weight + variance * torch.eye(weight.shape[1], dtype=weight.dtype)
    return kind(options)(
        Row(torch.linalg.solve(precision, weight.T), offset, (variance / precision.diagonal()).log()),
        Affine(weight, offset),
        image_shape=(len(weight),),
        latent_dim=weight.shape[1],
        likelihood="gaussian",
        variance=variance,
        **options,
    )


def exact_model(**options):
    """A linear VAE whose columns are orthogonal, so that q is the exact posterior; data; log p(x)."""
    dim, variance = 5, 0.4
    basis = torch.linalg.qr(torch.randn(dim, LATENT_DIM, dtype=torch.float64)).Q
    weight = basis * torch.tensor([2.0, 1.0, 0.5])
    offset, x = torch.randn(dim, dtype=torch.float64), torch.randn(4, dim, dtype=torch.float64)
    cov = weight @ weight.T + variance * torch.eye(dim, dtype=torch.float64)
    return (
        linear_gaussian(weight, offset, variance, **options),
        x,
        MultivariateNormal(offset, cov).log_prob(x),
    )


def sigma_points(mean, logvar):
    """``(2 k, batch, k)``: points whose plain average is the expectation under q of any quadratic."""
    k = mean.shape[1]
    steps = math.sqrt(k) * torch.exp(logvar / 2).unsqueeze(0) * torch.eye(k, dtype=mean.dtype).unsqueeze(1)
    return torch.cat([mean + steps, mean - steps])


def test_the_expected_error_is_that_of_the_mean_plus_the_trace():
    """Oracle 16: E|x - Wz|^2 - |x - W mean|^2 = tr(W diag(s^2) W'); a bound at the mean is too high by it."""
    vae, x, _ = exact_model()
    mean, logvar = vae.encode(x)
    weight = vae.decoder.weight
    at_draws = vae.log_likelihood(x, sigma_points(mean, logvar)).mean(dim=0)
    at_mean = vae.log_likelihood(x, mean)
    trace = torch.trace(weight @ torch.diag(logvar[0].exp()) @ weight.T)
    assert_equal_to_ten_digits(at_mean - at_draws, (trace / (2 * vae.likelihood.variance)).expand(4))


def test_with_the_exact_posterior_every_draw_weighs_the_evidence():
    """Oracle 3: p(x, z) / q(z|x) = p(x) for every z, so the ELBO and every IWAE bound are log p(x)."""
    vae, x, evidence = exact_model()
    assert_equal_to_ten_digits(vae.log_weights(x, 7), evidence.expand(7, -1))
    mean, logvar = vae.encode(x)
    exact_elbo = vae.log_likelihood(x, sigma_points(mean, logvar)).mean(dim=0)
    exact_elbo = exact_elbo - vae.kl_per_dimension(mean, logvar).sum(dim=1)
    assert_equal_to_ten_digits(exact_elbo, evidence)
    for options in ({"bound": "iwae"}, {"bound": "iwae", "samples": 5}, {"bound": "elbo", "gradient": "stl"}):
        vae, x, evidence = exact_model(**options)
        assert_equal_to_ten_digits(vae.loss(x).total, -evidence.mean())


def test_the_gap_of_the_best_diagonal_posterior_has_its_closed_form():
    """Oracle 4: 1/2 (sum log M_jj - log det M), the same for every x."""
    weight = torch.randn(5, LATENT_DIM, dtype=torch.float64)
    offset, x, variance = torch.randn(5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64), 0.4
    vae = linear_gaussian(weight, offset, variance)
    mean, logvar = vae.encode(x)
    bound = vae.log_likelihood(x, sigma_points(mean, logvar)).mean(dim=0)
    bound = bound - vae.kl_per_dimension(mean, logvar).sum(dim=1)
    evidence = MultivariateNormal(
        offset, weight @ weight.T + variance * torch.eye(5, dtype=torch.float64)
    ).log_prob(x)
    precision = weight.T @ weight + variance * torch.eye(LATENT_DIM, dtype=torch.float64)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert gap > 0.1
    assert_equal_to_ten_digits(evidence - bound, gap.expand(4))


@pytest.mark.parametrize(
    "options",
    [{"bound": "elbo", "gradient": "stl", "samples": 1}, {"bound": "iwae", "gradient": "dreg", "samples": 4}],
)
def test_with_the_exact_posterior_the_path_gradient_of_the_encoder_is_zero(options):
    """Oracle 12: not small on average, but zero for every draw; the reparameterised gradient is not."""

    def largest(**options):
        torch.manual_seed(0)
        vae, x, _ = exact_model(**options)
        vae.loss(x).total.backward()
        assert vae.decoder.weight.grad.abs().max() > 1e-3
        return max(parameter.grad.abs().max() for parameter in vae.encoder.parameters())

    assert largest(**options) < 1e-12
    assert largest(**{**options, "gradient": "pathwise"}) > 1e-3


# --------------------------------------------------------------------------- many samples, IWAE


def test_log_weights_are_joint_less_posterior_in_the_layout_samples_batch(x):
    vae = small_vae()
    torch.manual_seed(3)
    weights = vae.log_weights(x, 4)
    assert weights.shape == (4, 6)
    mean, logvar = vae.encoder(x)
    q = Normal(mean, (logvar / 2).exp())
    torch.manual_seed(3)
    z = q.mean + q.stddev * torch.randn(4, *mean.shape)
    expected = torch.stack(
        [
            Bernoulli(logits=vae.decoder(draw), validate_args=False).log_prob(x).sum(dim=(1, 2, 3))
            + Normal(0.0, 1.0).log_prob(draw).sum(dim=1)
            - q.log_prob(draw).sum(dim=1)
            for draw in z
        ]
    )
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(vae.log_joint(x, z) - q.log_prob(z).sum(dim=2), expected)
    # Differentiable through the draws and through the density of q.
    got = torch.autograd.grad(weights.sum(), list(vae.parameters()))
    for mine, theirs in zip(got, torch.autograd.grad(expected.sum(), list(vae.parameters()))):
        torch.testing.assert_close(mine, theirs)


def test_the_loss_with_more_samples_averages_log_likelihoods_over_draws(x):
    vae = small_vae(samples=5)
    mean, logvar = vae.encode(x)
    torch.manual_seed(3)
    draws = reparameterize(mean, logvar, 5)
    expected = torch.stack([vae.log_likelihood(x, z) for z in draws]).mean(dim=0)
    torch.manual_seed(3)
    loss = vae.loss(x)
    torch.testing.assert_close(loss.parts["reconstruction"], -expected.mean())
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + loss.parts["kl"])
    torch.testing.assert_close(loss.parts["kl"], by_hand(vae, x, 3)[1].mean())


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_iwae_loss_is_the_log_of_the_mean_weight(x, beta):
    vae = small_vae(bound="iwae", samples=5, beta=beta)
    torch.manual_seed(3)
    mean, logvar = vae.encode(x)
    z, q = reparameterize(mean, logvar, 5), Normal(mean, (logvar / 2).exp())
    ratio = vae.log_prior(z) - q.log_prob(z).sum(dim=2)
    weights = (vae.log_likelihood(x, z) + beta * ratio).exp()
    expected = -weights.mean(dim=0).log().mean()
    torch.manual_seed(3)
    loss = vae.loss(x)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["reconstruction"], -vae.log_likelihood(x, z).mean())
    torch.testing.assert_close(loss.parts["kl"], by_hand(vae, x, 3)[1].mean())
    if beta == 1:
        torch.manual_seed(3)
        torch.testing.assert_close(vae.log_weights(x, 5).exp().mean(dim=0).log().mean(), -expected)


def probe(**options) -> tuple[VAE, torch.Tensor, float]:
    """p(z) = N(0, 1), p(x|z) = N(z, 1), q(z|x) = N(0.4, 1), x = 1.5: the model, x, log p(x)."""
    one = torch.ones(1, dtype=torch.float64)
    vae = IWAE(
        Fixed(nn.Parameter(0.4 * one), 0 * one),
        Affine(one.unsqueeze(1), 0 * one),
        image_shape=(1,),
        latent_dim=1,
        likelihood="gaussian",
        **options,
    )
    return vae, 1.5 * one.unsqueeze(0), Normal(0.0, math.sqrt(2)).log_prob(torch.tensor(1.5)).item()


@pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
def test_the_iwae_bound_of_the_probe_and_its_gradient(gradient):
    # By quadrature (oracles): -1.856 and, with respect to the mean of q, 0.069. Without -log K the
    # value is -0.247, with the mean of logs -2.103; undetached or unsquared weights change the gradient.
    vae, x, evidence = probe(bound="iwae", samples=5, gradient=gradient)
    count, repeats = 20_000, 50
    values, slopes = [], []
    for _ in range(repeats):
        vae.zero_grad()
        total = vae.loss(x.expand(count, -1)).total
        total.backward()
        values.append(-total.item())
        slopes.append(-vae.encoder.mean.grad.item())
    for found, expected in ((values, -1.856), (slopes, 0.069)):
        found = torch.tensor(found)
        error = found.std().item() / math.sqrt(repeats)
        assert error < 0.001
        assert abs(found.mean().item() - expected) < 0.0005 + 4 * error  # three decimals are known
    assert max(values) < evidence


def test_the_iwae_bound_grows_with_the_samples_towards_the_evidence():
    bounds = []
    for samples in (1, 3, 10, 100, 1000):
        vae, x, evidence = probe(bound="iwae", samples=samples)
        bounds.append(-vae.loss(x.expand(200_000 // samples, -1)).total.item())
    assert bounds == sorted(bounds)
    assert evidence - bounds[0] > 0.2
    assert abs(evidence - bounds[-1]) < 0.02


def grads(vae, total):
    return torch.autograd.grad(total, list(vae.parameters()))


def test_sticking_the_landing_leaves_out_the_density_of_q(x):
    vae = small_vae(bound="elbo", gradient="stl", samples=3)
    mean, logvar = vae.encode(x)
    torch.manual_seed(3)
    z = reparameterize(mean, logvar, 3)
    frozen = Normal(mean.detach(), (logvar / 2).exp().detach())
    expected = -(vae.log_joint(x, z) - frozen.log_prob(z).sum(dim=2)).mean()
    torch.manual_seed(3)
    loss = vae.loss(x)
    torch.testing.assert_close(loss.total, expected)
    for mine, theirs in zip(grads(vae, loss.total), grads(vae, expected)):
        torch.testing.assert_close(mine, theirs)


def test_doubly_reparameterised_gradients_square_the_weights_of_the_encoder_alone(x):
    vae = small_vae(bound="iwae", gradient="dreg", samples=4)
    encoder, decoder = list(vae.encoder.parameters()), list(vae.decoder.parameters())
    mean, logvar = vae.encode(x)
    torch.manual_seed(3)
    z = reparameterize(mean, logvar, 4)
    frozen = Normal(mean.detach(), (logvar / 2).exp().detach())
    log_weights = vae.log_joint(x, z) - frozen.log_prob(z).sum(dim=2)
    weights = log_weights.detach().softmax(dim=0)
    batch = len(x)
    to_decoder = torch.autograd.grad(-(weights * log_weights).sum() / batch, decoder, retain_graph=True)
    (to_z,) = torch.autograd.grad(log_weights.sum(), z, retain_graph=True)
    to_encoder = torch.autograd.grad((-(weights.square().unsqueeze(2) * to_z) * z).sum() / batch, encoder)
    torch.manual_seed(3)
    loss = vae.loss(x)
    torch.testing.assert_close(loss.total, -(log_weights.exp().mean(dim=0).log()).mean())
    for mine, theirs in zip(grads(vae, loss.total), [*to_encoder, *to_decoder]):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        assert vae.loss(x).total.shape == ()  # evaluation has no gradient to weigh


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"bound": "iwae"}, lambda *terms: iwae_bound(gradients.log_weights(*terms))),
        ({"bound": "iwae", "gradient": "dreg"}, gradients.dreg_bound),
        ({"bound": "elbo"}, lambda *terms: gradients.log_weights(*terms).mean(dim=0)),
        (
            {"bound": "elbo", "gradient": "stl"},
            lambda *terms: gradients.path_log_weights(*terms).mean(dim=0),
        ),
    ],
)
def test_the_estimators_are_those_of_the_gradients_chapter(options, bound):
    vae, x = small_vae(samples=4, **options).double(), torch.rand(6, *IMAGE_SHAPE, dtype=torch.float64)
    torch.manual_seed(3)
    eps = torch.randn(4, 6, LATENT_DIM, dtype=torch.float64)
    expected = -bound(lambda z: vae.log_joint(x, z), *vae.encode(x), eps).mean()
    torch.manual_seed(3)
    total = vae.loss(x).total
    assert_equal_to_ten_digits(total, expected)
    for mine, theirs in zip(grads(vae, total), grads(vae, expected)):
        assert_equal_to_ten_digits(mine, theirs)


# ------------------------------------------------------------------- likelihoods of all kinds


@pytest.mark.parametrize(
    ("name", "settings", "made"),
    [
        ("bernoulli", {}, likelihoods.Bernoulli()),
        ("continuous_bernoulli", {}, likelihoods.ContinuousBernoulli()),
        ("gaussian", {"variance": 0.3}, likelihoods.Gaussian(variance=0.3)),
        ("gaussian", {"variance": "per_pixel"}, likelihoods.Gaussian("per_pixel")),
        ("categorical", {"levels": 5}, likelihoods.Categorical(levels=5)),
    ],
)
def test_a_likelihood_is_an_object_or_its_name(x, name, settings, made):
    by_name, by_object = small_vae(likelihood=name, **settings), small_vae(likelihood=made)
    assert by_object.likelihood is made
    assert repr(by_name.likelihood) == repr(made)
    by_object.load_state_dict(by_name.state_dict())
    z = torch.randn(6, LATENT_DIM)
    output = by_name.decoder_output(z)
    assert output.shape == ((6, *IMAGE_SHAPE) if made.outputs == 1 else (6, made.outputs, *IMAGE_SHAPE))
    assert torch.equal(by_name.log_likelihood(x, z), made.log_prob(x, output))
    assert torch.equal(by_name.decode(z), made.mean(output))
    torch.testing.assert_close(by_name.log_likelihood(x, z), by_object.log_likelihood(x, z))


def test_a_likelihood_of_ones_own_is_enough():
    """Laplace noise, which the library has not: outputs, mean, log_prob and support are all a VAE asks."""

    class Laplace(likelihoods.Likelihood):
        support = (-math.inf, math.inf)

        def mean(self, output):
            return output

        def log_prob(self, x, output):
            return torch.distributions.Laplace(output, 0.5).log_prob(x).flatten(1).sum(dim=1)

    images = data.load("digits").train[:512] - 0.5  # values below 0, which its support allows
    vae = VAE.mlp((1, 8, 8), 4, (64,), likelihood=Laplace())
    history = fit(vae, images, epochs=4, batch_size=64, lr=5e-3, progress=False).train
    assert history["total"][-1] < history["total"][0] - 3  # nats


def outputs_by_hand(vae, z):
    """p(x|z) by torch.distributions, from what the decoder gives."""
    output = vae.decoder(z)
    if isinstance(vae.likelihood, likelihoods.Bernoulli):
        return Bernoulli(logits=output, validate_args=False)
    if isinstance(vae.likelihood, likelihoods.ContinuousBernoulli):
        return ContinuousBernoulli(logits=output)
    if isinstance(vae.likelihood, likelihoods.Categorical):
        return Categorical(logits=output.movedim(1, -1))
    if vae.likelihood.variance == "per_pixel":
        floor = math.exp(-12)  # softplus above -12, as the docstring says
        return Normal(output[:, 0], ((1 + output[:, 1].exp() / floor) * floor).sqrt())
    if vae.likelihood.variance == "learned":
        return Normal(output, (vae.likelihood.logvar / 2).exp())
    return Normal(output, math.sqrt(vae.likelihood.variance))


ALL_LIKELIHOODS = [
    {},
    {"likelihood": "continuous_bernoulli"},
    {"likelihood": "categorical", "levels": 5},
    {"likelihood": "gaussian"},
    {"likelihood": "gaussian", "variance": 0.2},
    {"likelihood": "gaussian", "variance": "learned"},
    {"likelihood": "gaussian", "variance": "per_pixel"},
]
OPTIMAL = {"likelihood": "gaussian", "variance": "optimal"}


@pytest.mark.parametrize("options", ALL_LIKELIHOODS)
def test_every_likelihood_is_that_of_torch_distributions(x, options):
    vae = small_vae(**options).double()
    if hasattr(vae.likelihood, "logvar"):
        nn.init.constant_(vae.likelihood.logvar, -0.7)
    x, z = (x * 4).round().double() / 4, 3 * torch.randn(6, LATENT_DIM, dtype=torch.float64)
    p = outputs_by_hand(vae, z)
    values = x * 4 if isinstance(vae.likelihood, likelihoods.Categorical) else x
    expected = p.log_prob(values).sum(dim=(1, 2, 3))
    torch.testing.assert_close(vae.log_likelihood(x, z), expected, rtol=1e-9, atol=1e-9)
    if isinstance(vae.likelihood, likelihoods.Categorical):
        mean = (p.probs * torch.linspace(0, 1, 5, dtype=torch.float64)).sum(dim=-1)
    else:
        mean = p.mean
    assert_close_means = {"rtol": 1e-9, "atol": 1e-9}
    if isinstance(vae.likelihood, likelihoods.ContinuousBernoulli):  # torch's mean: few terms near 1/2
        assert_close_means = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(vae.decode(z), mean, **assert_close_means)


@pytest.mark.parametrize("options", ALL_LIKELIHOODS)
def test_draws_are_decoded_like_single_batches(x, options):
    vae = small_vae(**options).double()
    x, z = x.double(), torch.randn(3, 6, LATENT_DIM, dtype=torch.float64)
    together = vae.log_likelihood(x, z)
    assert_equal_to_ten_digits(together, torch.stack([vae.log_likelihood(x, draw) for draw in z]))
    joint = vae.log_joint(x, z)
    assert_equal_to_ten_digits(joint, together + Normal(0.0, 1.0).log_prob(z).sum(dim=2))


def test_two_grey_values_are_a_bernoulli_variable(x):
    two, one = small_vae(likelihood="categorical", levels=2), small_vae()
    x, z = x.round(), torch.randn(6, LATENT_DIM)
    logits = two.decoder(z)
    one.decoder = Fixed((logits[:, 1] - logits[:, 0]), None)
    one.decoder.forward = lambda z: one.decoder.mean
    torch.testing.assert_close(two.log_likelihood(x, z), one.log_likelihood(x, z))
    torch.testing.assert_close(two.decode(z), one.decode(z))


def test_every_8_bit_grey_value_finds_its_class():
    # k / 255 * 255 is not always k in single precision: rounding must not be left out.
    vae = VAE.mlp((256,), 1, hidden=(), likelihood="categorical")
    vae.decoder.forward = lambda z: 100 * torch.eye(256).unsqueeze(0)
    x = (torch.arange(256) / 255).unsqueeze(0)
    assert vae.log_likelihood(x, torch.zeros(1, 1)).abs() < 1e-4
    torch.testing.assert_close(vae.decode(torch.zeros(1, 1)), x)


def test_the_optimal_variance_is_the_mean_squared_error():
    """Oracle 14: the sigma-VAE's minimum D/2 (log 2 pi MSE + 1), at variance = MSE."""
    x = torch.rand(6, *IMAGE_SHAPE, dtype=torch.float64)
    z = torch.randn(6, LATENT_DIM, dtype=torch.float64)
    vae = small_vae(**OPTIMAL).double()
    mse, dim = (vae.decode(z) - x).square().mean(), x[0].numel()
    best = vae.log_likelihood(x, z).mean()
    assert_equal_to_ten_digits(-best, dim / 2 * (math.log(2 * math.pi) + mse.log() + 1))
    # Fixed variances are worse, and a learned one has its stationary point there.
    for factor in (0.9, 1.1):
        vae.likelihood.variance = factor * mse.item()
        assert vae.log_likelihood(x, z).mean() < best
    learned = small_vae(likelihood="gaussian", variance="learned").double()
    learned.decoder = vae.decoder
    with torch.no_grad():
        learned.likelihood.logvar.copy_(mse.log())
    value = learned.log_likelihood(x, z).mean()
    assert_equal_to_ten_digits(value, best)
    (slope,) = torch.autograd.grad(value, learned.likelihood.logvar)
    assert slope.abs() < 1e-10


def test_the_variance_of_a_pixel_that_never_changes_stays_above_its_floor():
    vae = VAE.mlp((2,), 1, hidden=(), likelihood="gaussian", variance="per_pixel")
    with torch.no_grad():
        vae.decoder.net[0].weight.zero_()
        vae.decoder.net[0].bias.copy_(torch.tensor([0.5, 0.5, -1000.0, -1000.0]))
    value = vae.log_likelihood(torch.full((1, 2), 0.5), torch.zeros(1, 1))
    assert value.item() == pytest.approx(2 * -0.5 * (math.log(2 * math.pi) - 12), rel=1e-6)


def test_a_learned_variance_is_a_parameter_and_the_others_are_not():
    learned = small_vae(likelihood="gaussian", variance="learned")
    assert set(learned.state_dict()) - set(small_vae(**OPTIMAL).state_dict()) == {"likelihood.logvar"}


TRAINED = [
    *ALL_LIKELIHOODS[:3],
    {"likelihood": "gaussian", "variance": 0.05},
    *ALL_LIKELIHOODS[5:],
    OPTIMAL,
    {"samples": 3},
    {"bound": "iwae", "samples": 5},
    {"bound": "iwae", "samples": 5, "gradient": "dreg"},
    {"bound": "elbo", "gradient": "stl", "samples": 1},
    {"free_bits": 0.3, "beta": 2.0},
    {"prior_temperature": 2.0},
]


@pytest.mark.parametrize("options", TRAINED)
def test_every_objective_learns_something_about_digits(options):
    images = data.load("digits").train[:512]
    if options.get("likelihood") == "categorical":
        options = {**options, "levels": 17}
    vae = kind(options).mlp((1, 8, 8), 4, (64,), **options)
    history = fit(vae, images, epochs=6, batch_size=64, lr=5e-3, progress=False).train
    assert history["total"][-1] < history["total"][0] - 3  # nats
    assert set(history) == {"total", "reconstruction", "kl"}


# --------------------------------------------------------------- beta, free bits, the prior


@pytest.mark.parametrize(
    "options", [{}, {"samples": 2}, {"bound": "iwae", "samples": 3}, {"bound": "elbo", "gradient": "stl"}]
)
def test_beta_can_be_handed_to_the_loss(x, options):
    fixed, free = small_vae(beta=0.25, **options), small_vae(**options)
    free.load_state_dict(fixed.state_dict())
    torch.manual_seed(3)
    expected = fixed.loss(x)
    for beta in (0.25, torch.tensor(0.25)):
        torch.manual_seed(3)
        loss = free.loss(x, beta=beta)
        torch.testing.assert_close(loss.total, expected.total)
        torch.testing.assert_close(loss.parts["kl"], expected.parts["kl"])  # the parts stay unweighted
    torch.manual_seed(3)
    assert not torch.isclose(free.loss(x).total, expected.total, rtol=1e-4)


def test_free_bits_floor_the_kl_of_each_latent_variable_after_the_mean_over_the_batch():
    # The second variable is above the floor for one example and below it on average.
    means = torch.tensor([[2.0, 1.2, 0.0], [-2.0, 0.3, 0.0], [2.0, 0.2, 0.0], [2.0, 0.0, 0.1]])
    vae = small_vae(free_bits=0.5, beta=2.0)
    logvar = torch.zeros(4, 3)
    given = nn.Parameter(means)
    vae.encoder = nn.Identity()
    vae.encoder.forward = lambda x: (given, logvar)
    loss = vae.loss(torch.rand(4, *IMAGE_SHAPE))
    per_dimension = (0.5 * means.square()).mean(dim=0)  # 2.0, 0.19625, 0.00125
    torch.testing.assert_close(loss.parts["kl"], per_dimension.sum())
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 2 * (2.0 + 0.5 + 0.5))
    # Only the first variable's KL pulls at the encoder.
    vae.decoder = Fixed(torch.zeros(20), None)
    vae.decoder.forward = lambda z: 0 * z.sum() + torch.zeros(len(z), *IMAGE_SHAPE)
    (pull,) = torch.autograd.grad(vae.loss(torch.rand(4, *IMAGE_SHAPE)).total, given)
    torch.testing.assert_close(pull, torch.cat([2 * means[:, :1] / 4, torch.zeros(4, 2)], dim=1))


def test_a_floor_below_every_kl_changes_nothing(x):
    plain, floored = small_vae(), small_vae(free_bits=1e-9)
    floored.load_state_dict(plain.state_dict())
    totals = []
    for vae in (plain, floored):
        torch.manual_seed(3)
        totals.append(vae.loss(x).total)
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_tempered_prior_is_the_same_in_kl_density_and_samples(x, temperature):
    vae = small_vae(prior_temperature=temperature).double()
    prior = Normal(torch.tensor(0.0, dtype=torch.float64), math.sqrt(temperature))
    mean, logvar = torch.randn(2, 6, LATENT_DIM, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), prior)
    assert_equal_to_ten_digits(vae.kl_per_dimension(mean, logvar), expected)
    z = torch.randn(4, 6, LATENT_DIM, dtype=torch.float64)
    assert_equal_to_ten_digits(vae.log_prior(z), prior.log_prob(z).sum(dim=2))
    assert_equal_to_ten_digits(vae.log_prior(z[0]), prior.log_prob(z[0]).sum(dim=1))
    # It is proportional to the standard prior to the power 1 / T.
    standard = small_vae().double()
    difference = vae.log_prior(z) - standard.log_prior(z) / temperature
    assert_equal_to_ten_digits(difference, difference[0, 0].expand_as(difference))
    torch.manual_seed(3)
    loss, bound = vae.loss(x.double()), vae.elbo(x.double())
    q = vae.encode(x.double())
    assert_equal_to_ten_digits(loss.parts["kl"], vae.kl_per_dimension(*q).sum(dim=1).mean())
    torch.manual_seed(3)
    vae.loss(x.double())
    log_likelihood = vae.log_likelihood(x.double(), reparameterize(*q))
    assert_equal_to_ten_digits(bound, log_likelihood - vae.kl_per_dimension(*q).sum(dim=1))


def test_a_tempered_prior_is_a_wider_decoder():
    # z ~ N(0, T) into W z is z ~ N(0, 1) into sqrt(T) W z: the same p(x).
    weight, offset = torch.randn(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    vae = linear_gaussian(weight, offset, 0.3, prior_temperature=4.0)
    x = torch.randn(3, 5, dtype=torch.float64)
    # The evidence by importance sampling from a q wide enough; 200,000 draws, within 1 %.
    with torch.no_grad():
        vae.encoder.logvar.add_(0.5)
    weights = vae.log_weights(x, 200_000).detach()
    evidence = MultivariateNormal(
        offset, 4 * weight @ weight.T + 0.3 * torch.eye(5, dtype=torch.float64)
    ).log_prob(x)
    ratios = (weights - evidence).exp()
    error = ratios.std(dim=0) / math.sqrt(200_000)
    assert error.max() < 0.01
    assert ((ratios.mean(dim=0) - 1) / error).abs().max() < 4


def test_the_temperature_of_samples_scales_their_variance():
    vae = VAE(
        Fixed(torch.zeros(2), torch.zeros(2)),
        Affine(torch.eye(2), torch.zeros(2)),
        image_shape=(2,),
        latent_dim=2,
        likelihood="gaussian",
        prior_temperature=4.0,
    )
    count = 100_000
    for temperature, variance in ((None, 4.0), (0.25, 0.25), (1.0, 1.0)):
        draws = vae.sample(count, temperature)
        assert (draws.var(dim=0) / variance - 1).abs().max() / math.sqrt(2 / count) < 4
    assert vae.sample(3, temperature=0.0).abs().max() == 0


# ------------------------------------------------- what people really get wrong, and the probe

# Each is the loss of a real program (oracles, section 3), from log p(x_d|z) of each pixel, (batch, D),
# and the mean and logvar of q. The probe has batch 5, 3 latent variables, 20 pixels: no two are equal.


def wrong(name, vae, x, noise):
    mean, logvar = vae.encoder(x)
    std, batch = (logvar / 2).exp(), len(x)
    z = mean + std * noise
    if name == "variance as standard deviation":
        z = mean + logvar.exp() * noise
    elif name == "the mean as the sample":
        z = mean
    elif name == "detached sample":
        z = z.detach()
    elif name == "softplus of the log-variance":
        z = mean + nn.functional.softplus(logvar).sqrt() * noise
    pixels = Bernoulli(logits=vae.decoder(z), validate_args=False).log_prob(x).flatten(1)
    if name == "double sigmoid":
        pixels = Bernoulli(logits=vae.decoder(z).sigmoid(), validate_args=False).log_prob(x).flatten(1)
    elif name == "squared error":
        pixels = -(vae.decoder(z).sigmoid() - x).square().flatten(1)
    terms = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    reconstruction, kl = -pixels.sum(dim=1).mean(), terms.sum(dim=1).mean()
    return {
        "KL averaged over latent variables": reconstruction + terms.mean(),
        "KL without dim": reconstruction + terms.sum(),
        "KL over batch and pixels": reconstruction + terms.sum() / (batch * x[0].numel()),
        "no half": reconstruction + 2 * kl,
        "squared log-variance": reconstruction
        + 0.5 * (mean.square() + logvar.square().exp() - 1 - logvar).sum(dim=1).mean(),
        "standard deviation in the KL": reconstruction
        + 0.5 * (mean.square() + std - 1 - logvar).sum(dim=1).mean(),
        "no KL": reconstruction,
        "sign of the KL": reconstruction - kl,
        "reconstruction averaged over pixels": reconstruction / x[0].numel() + kl,
        "sum over the batch": batch * (reconstruction + kl),
    }.get(name, reconstruction + kl)


WRONG = [
    "KL averaged over latent variables",
    "KL without dim",
    "KL over batch and pixels",
    "no half",
    "squared log-variance",
    "standard deviation in the KL",
    "no KL",
    "sign of the KL",
    "reconstruction averaged over pixels",
    "sum over the batch",
    "variance as standard deviation",
    "the mean as the sample",
    "detached sample",
    "softplus of the log-variance",
    "double sigmoid",
    "squared error",
]


@pytest.mark.parametrize("name", ["nothing", *WRONG])
def test_the_loss_is_none_of_those_that_people_wrote_by_mistake(name):
    x, vae = torch.rand(5, *IMAGE_SHAPE, dtype=torch.float64), small_vae().double()
    with torch.no_grad():
        vae.encoder.net[-1].bias.add_(torch.tensor([0.5, -0.4, 0.3, -1.0, -0.5, 0.6]))
    torch.manual_seed(3)
    noise = torch.randn(5, LATENT_DIM, dtype=torch.float64)
    other = wrong(name, vae, x, noise)
    torch.manual_seed(3)
    total = vae.loss(x).total
    distance = (total - other).abs() / total
    slopes = [torch.autograd.grad(value, list(vae.parameters())) for value in (total, other)]
    slope_distance = max((a - b).abs().max() / a.abs().max() for a, b in zip(*slopes))
    if name == "nothing":
        assert distance < 1e-10
        assert slope_distance < 1e-10
    else:
        assert max(distance, slope_distance) > 0.01
        assert slope_distance > 0.01  # a value test alone misses the detached sample


@pytest.mark.parametrize(
    "options",
    [
        *ALL_LIKELIHOODS,
        OPTIMAL,
        {"samples": 2, "beta": 0.5},
        {"free_bits": 0.01},
        {"prior_temperature": 2.0},
        {"bound": "iwae", "samples": 3},
    ],
)
def test_the_gradient_of_every_loss_is_its_derivative(options):
    vae = kind(options).mlp((4,), 2, (3,), activation=nn.Tanh, **options).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    for gradient in assert_gradient_is_derivative(vae, x):
        assert gradient.abs().max() > 0


# ----------------------------------------------------------------- half precision, compilation


@pytest.mark.parametrize("options", TRAINED)
def test_bounds_stay_in_single_precision_under_autocast(x, options):
    vae = small_vae(**options)
    loss = assert_single_precision_under_autocast(vae, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vae.elbo(x).dtype == torch.float32
        assert vae.reconstruct(x).dtype == torch.float32
    loss.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in vae.parameters())


@pytest.mark.parametrize("options", [{}, {"bound": "iwae", "samples": 3, "gradient": "dreg"}])
def test_a_compiled_loss_is_the_same_in_one_graph(x, options):
    vae = small_vae(**options)
    compiled = torch.compile(vae.loss, backend="aot_eager", fullgraph=True)
    results = []
    for loss_of in (vae.loss, compiled):
        torch.manual_seed(3)
        total = loss_of(x).total
        results.append([total, *grads(vae, total)])
    for eager, fused in zip(*results):
        torch.testing.assert_close(eager, fused)


# ----------------------------------------------------------- decoding, sampling, shapes


@pytest.mark.parametrize(
    ("builder", "shape"),
    [("mlp", (3, 8, 9)), ("conv", (3, 25, 25)), ("conv1d", (2, 13)), ("residual", (1, 8, 9))],
)
@pytest.mark.parametrize("options", [*ALL_LIKELIHOODS, OPTIMAL])
def test_builders_know_how_many_numbers_a_likelihood_needs(builder, shape, options):
    vae = getattr(VAE, builder)(shape, 2, **options)
    x = torch.rand(4, *shape)
    loss = vae.loss(x)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    for images in (vae.reconstruct(x), vae.sample(4), vae.decode(torch.randn(4, 2))):
        assert images.shape == x.shape
        if not isinstance(vae.likelihood, likelihoods.Gaussian):
            assert images.min() >= 0
            assert images.max() <= 1


def test_network_options_reach_both_networks():
    vae = VAE.mlp((7,), 2, (6,), activation=nn.Tanh, batch_norm=True, dropout=0.1)
    for net in (vae.encoder, vae.decoder):
        assert [type(m) for m in net.net[1:4]] == [nn.BatchNorm1d, nn.Tanh, nn.Dropout]
    deep = VAE.residual((1, 8, 8), 2, (4, 8), (6,), blocks=2)
    assert [deep.encoder.net[0].out_channels, deep.decoder.net[-1].in_channels] == [4, 4]


def test_interpolation_goes_straight_from_one_code_to_the_other(x):
    vae = small_vae()
    start, end = vae.encode(x)[0], vae.encode(x.flip(0))[0]
    frames = vae.interpolate(x, x.flip(0), 5)
    assert frames.shape == (5, *x.shape)
    assert not frames.requires_grad
    for frame, weight in zip(frames, (0, 0.25, 0.5, 0.75, 1)):
        torch.testing.assert_close(frame, vae.decode((1 - weight) * start + weight * end))
    torch.testing.assert_close(frames[0], vae.reconstruct(x))


def test_a_traversal_changes_one_latent_variable():
    vae, z = small_vae(), torch.randn(6, LATENT_DIM)
    before = z.clone()
    frames = vae.traverse(z, 1, torch.linspace(-2, 2, 5))
    assert frames.shape == (5, 6, *IMAGE_SHAPE)
    assert torch.equal(z, before)
    for frame, value in zip(frames, (-2.0, -1.0, 0.0, 1.0, 2.0)):
        moved = torch.stack([z[:, 0], torch.full((6,), value), z[:, 2]], dim=1)
        torch.testing.assert_close(frame, vae.decode(moved))


@pytest.mark.parametrize("image_shape", [(7,), (1, 8, 8), (3, 5, 4)])
def test_everything_works_for_any_image_shape(image_shape):
    vae = VAE.mlp(image_shape, 2, hidden=(6, 4))
    x = torch.rand(5, *image_shape)
    assert vae.image_shape == image_shape
    assert vae.loss(x).total.shape == ()
    assert vae.elbo(x).shape == (5,)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.sample(9).shape == (9, *image_shape)
    assert vae.decode(torch.zeros(2, 2)).shape == (2, *image_shape)


def test_the_decoder_is_the_encoder_in_reverse():
    vae = VAE.mlp((7,), 2, hidden=(6, 4))
    sizes = [[(m.in_features, m.out_features) for m in net.net[::2]] for net in (vae.encoder, vae.decoder)]
    assert sizes == [[(7, 6), (6, 4), (4, 4)], [(2, 4), (4, 6), (6, 7)]]


def test_decode_gives_probabilities_for_bernoulli_and_means_for_gaussian():
    z = 100 * torch.randn(50, LATENT_DIM)
    bernoulli, gaussian = small_vae(), small_vae(likelihood="gaussian")
    pixels = bernoulli.decode(z)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    torch.testing.assert_close(pixels, 1 / (1 + (-bernoulli.decoder(z)).exp()))
    assert torch.equal(gaussian.decode(z), gaussian.decoder(z))


def test_reconstruction_decodes_the_posterior_mean_without_noise(x):
    vae = small_vae()
    first = vae.reconstruct(x)
    assert torch.equal(first, vae.reconstruct(x))
    assert torch.equal(first, vae.decode(vae.encoder(x)[0]))
    assert not first.requires_grad


def test_samples_come_from_the_prior():
    vae = VAE(
        Fixed(torch.zeros(2), torch.zeros(2)),
        Affine(torch.eye(2), torch.zeros(2)),
        image_shape=(2,),
        latent_dim=2,
        likelihood="gaussian",
    )
    count = 100_000
    draws = vae.sample(count)  # the decoder is the identity: these are the latent variables
    assert not draws.requires_grad
    assert draws.mean(dim=0).abs().max() * math.sqrt(count) < 4
    assert (draws.var(dim=0) - 1).abs().max() / math.sqrt(2 / count) < 4


def test_the_dtype_of_the_weights_is_kept(x):
    vae = small_vae().double()
    assert vae.sample(2).dtype == torch.float64
    assert vae.loss(x.double()).total.dtype == torch.float64


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.full((2, *IMAGE_SHAPE), math.nan), ValueError, r"^images holds 40 values that are NaN"),
        (torch.full((2, *IMAGE_SHAPE), math.inf), ValueError, r"^images holds 40 values that are NaN or inf"),
        (torch.full((2, *IMAGE_SHAPE), 255.0), ValueError, r"needs \[0, 1\]\. Divide 8-bit images by 255, "),
        (torch.full((2, *IMAGE_SHAPE), -0.1), ValueError, r"^images has values from -0\.1 to -0\.1"),
        (
            torch.zeros(2, 20),
            ValueError,
            r"^images has shape \(2, 20\) but this model needs \(batch, 1, 4, 5\)",
        ),
        (
            torch.zeros(IMAGE_SHAPE),
            ValueError,
            r"^images has shape \(1, 4, 5\) but this model needs \(batch, 1,",
        ),
        (
            torch.zeros(2, *IMAGE_SHAPE, dtype=torch.uint8),
            TypeError,
            r"^images has dtype torch\.uint8 .*images\.float\(\)",
        ),
        ([[0.0]], TypeError, r"^images must be a torch\.Tensor, not list"),
    ],
)
def test_unsuitable_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        small_vae().validate(images)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "categorical"])
def test_all_other_likelihoods_need_values_in_the_unit_interval(likelihood):
    vae = small_vae(likelihood=likelihood)
    vae.validate(torch.ones(2, *IMAGE_SHAPE))
    with pytest.raises(ValueError, match=r"^images has values from 1\.5 to 1\.5 but needs \[0, 1\]"):
        vae.validate(torch.full((2, *IMAGE_SHAPE), 1.5))


def test_a_gaussian_likelihood_takes_any_finite_values():
    vae = small_vae(likelihood="gaussian")
    vae.validate(torch.full((2, *IMAGE_SHAPE), -300.0))
    with pytest.raises(ValueError, match="NaN"):
        vae.validate(torch.full((2, *IMAGE_SHAPE), math.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"likelihood": "bernouli"},
            r"^likelihood is 'bernouli' but must be one of \('bernoulli', .*'gaussian', 'categorical'\)",
        ),
        (
            {"likelihood": "gaussian", "variance": "lerned"},
            r"^variance is 'lerned' but must be positive or one of \('learned', 'per_pixel', 'optimal'\)",
        ),
        ({"likelihood": "gaussian", "levels": 4}, r"^levels is 4 but likelihood is 'gaussian', not 'cat"),
        (
            {"likelihood": likelihoods.Gaussian(0.1), "variance": 0.1},
            r"^variance is 0\.1 beside a likelihood that is made already",
        ),
        ({"variance": "learned"}, r"^variance is 'learned' but likelihood is 'bernoulli', not 'gaussian'"),
        ({"variance": 0.5}, r"^variance is 0\.5 but likelihood is 'bernoulli', not 'gaussian'"),
        ({"beta": math.nan}, r"^beta is nan but must be at least 0"),
        ({"free_bits": -0.5}, r"^free_bits is -0\.5 but must be at least 0"),
        ({"prior_temperature": 0.0}, r"^prior_temperature is 0\.0 but must be positive"),
        ({"samples": 0}, r"^samples is 0 but must be at least 1"),
        ({"likelihood": "categorical", "levels": 1}, r"^levels is 1 but must be at least 2"),
        ({"bound": "iwea"}, r"^bound is 'iwea' but must be one of \('elbo', 'iwae'\)"),
        ({"gradient": "score"}, r"^gradient is 'score' but must be one of \('pathwise', 'stl', 'dreg'\)"),
        ({"bound": "elbo", "gradient": "dreg"}, r"^gradient='dreg' needs bound='iwae'"),
        ({"bound": "iwae", "gradient": "stl"}, r"^gradient='stl' is biased for bound='iwae'"),
        ({"bound": "iwae", "free_bits": 0.1}, r"^free_bits needs the KL in closed form"),
        ({"bound": "elbo", "gradient": "stl", "free_bits": 0.1}, r"^free_bits needs the KL in closed form"),
        ({"likelihood": "gaussian", "variance": 0.0}, r"^variance is 0\.0 but must be positive"),
        ({"likelihood": "gaussian", "variance": math.nan}, r"^variance is nan but must be positive"),
        ({"beta": -1}, r"^beta is -1 but must be at least 0"),
    ],
)
def test_the_constructor_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        small_vae(**options)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="betta"):
        small_vae(betta=4.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda vae, x: vae.elbo(x, samples=0), ValueError, r"^samples is 0 but must be at least 1"),
        (lambda vae, x: vae.log_weights(x, 0), ValueError, r"^samples is 0 but must be at least 1"),
        (lambda vae, x: vae.log_weights(x, 2.5), TypeError, r"^samples is 2\.5 but must be a whole number"),
        (lambda vae, x: vae.sample(0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda vae, x: vae.sample(2, -1.0), ValueError, r"^temperature is -1\.0 but must be at least 0"),
        (lambda vae, x: vae.interpolate(x, x, 1), ValueError, r"^steps is 1 but must be at least 2"),
        (lambda vae, x: vae.interpolate(x, x[:2], 3), ValueError, r"^x1 has shape \(2, 1, 4, 5\)"),
        (lambda vae, x: vae.traverse(torch.zeros(2, 3), 3, [0]), ValueError, r"^dimension is 3 .* 0 and 2\."),
        (lambda vae, x: vae.traverse(torch.zeros(2, 4), 0, [0]), ValueError, r"^z has shape \(2, 4\)"),
        (
            lambda vae, x: vae.log_prior(torch.zeros(2, 4)),
            ValueError,
            r"^z has shape \(2, 4\) .* \(batch, 3\)",
        ),
        (lambda vae, x: vae.log_prior(torch.zeros(5, 2, 4)), ValueError, r"^z has shape \(10, 4\)"),
        (lambda vae, x: vae.log_likelihood(x, torch.zeros(2, 5, 3)), ValueError, r"\(10, 1, 4, 5\)"),
        (
            lambda vae, x: vae.kl_per_dimension(x, x),
            ValueError,
            r"^mean has shape .* needs \(batch, k\)",
        ),
        (lambda vae, x: vae.loss(x.int()), TypeError, r"^x has dtype torch\.int32"),
        (lambda vae, x: small_vae(samples=True), TypeError, r"^samples is True but must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(x, call, error, message):
    with pytest.raises(error, match=message):
        call(small_vae(), x)


def test_wrong_shapes_are_refused_where_they_enter(x):
    vae = small_vae()
    for method in (vae.loss, vae.elbo, vae.encode, vae.reconstruct):
        with pytest.raises(
            ValueError, match=r"^x has shape \(6, 1, 5, 4\) but this model needs \(batch, 1, 4, 5\)"
        ):
            method(x.mT)
    for z in (torch.zeros(6, 2), torch.zeros(6, 4)):
        for call in (lambda z=z: vae.decode(z), lambda z=z: vae.log_likelihood(x, z)):
            with pytest.raises(ValueError, match=rf"^z has shape \(6, {z.shape[1]}\) .* \(batch, 3\)"):
                call()
    with pytest.raises(ValueError, match=r"^z has shape \(3,\) but this model needs \(batch, 3\)"):
        vae.decode(torch.zeros(3))


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (
            MLPEncoder(IMAGE_SHAPE, 2),
            MLPDecoder(3, IMAGE_SHAPE),
            r"^the encoder's mean has shape \(6, 2\) .* \(batch, 3\)",
        ),
        (Fixed(torch.zeros(3), torch.zeros(1)), MLPDecoder(3, IMAGE_SHAPE), r"^logvar has shape \(6, 1\)"),
        (MLPEncoder(IMAGE_SHAPE, 3), MLPDecoder(3, (20,)), r"^logits has shape \(6, 20\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused(x, encoder, decoder, message):
    vae = VAE(encoder, decoder, image_shape=IMAGE_SHAPE, latent_dim=3)
    with pytest.raises(ValueError, match=message):
        vae.loss(x)
