"""The VAE against hand computations with torch.distributions, and against linear VAEs with exact answers."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from aecourse.linear import fit_ppca
from aecourse.nets import MLPDecoder, MLPEncoder
from aecourse.vae import VAE, reparameterize

IMAGE_SHAPE = (1, 4, 5)
LATENT_DIM = 3


def small_vae(**options) -> VAE:
    return VAE.mlp(IMAGE_SHAPE, LATENT_DIM, hidden=(7,), **options)


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


# ------------------------------------------------------------------------------- the loss


def by_hand(vae, x, seed):
    """(log p(x|z), KL), each (batch,), with the noise that the seed gives."""
    mean, logvar = vae.encoder(x)
    q = Normal(mean, (logvar / 2).exp())
    torch.manual_seed(seed)
    output = vae.decoder(q.mean + q.stddev * torch.randn(mean.shape))
    if vae.likelihood == "bernoulli":
        p = Bernoulli(logits=output, validate_args=False)
    else:
        p = Normal(output, math.sqrt(vae.variance))
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
        return vae.loss(x).total - x[0].numel() / 2 * math.log(2 * math.pi * vae.variance)

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


# ----------------------------------------------------------- decoding, sampling, shapes


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
        (torch.full((2, *IMAGE_SHAPE), 255.0), ValueError, r"needs \[0, 1\]\. Divide 8-bit images by 255\."),
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
            r"^likelihood is 'bernouli' but must be one of \('bernoulli', 'gaussian'\)",
        ),
        ({"variance": 0.0}, r"^variance is 0\.0 but must be positive"),
        ({"variance": math.nan}, r"^variance is nan but must be positive"),
        ({"beta": -1}, r"^beta is -1 but must be at least 0"),
    ],
)
def test_the_constructor_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        small_vae(**options)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="betta"):
        small_vae(betta=4.0)


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
    with pytest.raises(ValueError, match=r"^z has shape \(3,\) but needs \(batch, latent_dim\)"):
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
