"""Filling in images: exact where everything is Gaussian, and nobody sees or scores what they should not."""

import itertools
import math

import pytest
import torch
from support.losses import assert_single_precision_under_autocast
from torch import nn
from torch.distributions import MultivariateNormal

from aecourse import data, evaluate
from aecourse.bounds import log_mean_exp
from aecourse.likelihoods import (
    bernoulli_log_likelihood,
    gaussian_kl,
    gaussian_log_density,
)
from aecourse.train import fit, mean_loss
from aecourse.zoo.conditional import StructuredOutputVAE

GIVEN = torch.tensor([False, True, True, False, False, True, False])  # of the points of the exact model
VARIANCE = 0.3
IMAGE_SHAPE = (1, 4, 5)


def small_model(image_shape=IMAGE_SHAPE, latent_dim=3, **options) -> StructuredOutputVAE:
    return StructuredOutputVAE.build("mlp", image_shape, latent_dim, **{"hidden": (7,), **options})


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(6, *IMAGE_SHAPE)


class Exact:
    """z|x ~ N(A x + a, diag s), y|x, z ~ N(W z + B x + b, v I) with orthogonal columns of W, and its q."""

    def __init__(self, **options):
        torch.manual_seed(1)
        here = {"dtype": torch.float64}
        self.A, self.a, self.s = (
            torch.randn(2, 3, **here),
            torch.randn(2, **here),
            torch.rand(2, **here) + 0.4,
        )
        self.W = torch.linalg.qr(torch.randn(4, 2, **here))[0] * torch.tensor([1.5, 0.6], **here)
        self.B, self.b = torch.randn(4, 3, **here), torch.randn(4, **here)
        options = {"likelihood": "gaussian", "variance": VARIANCE, "hidden": (), **options}
        self.model = StructuredOutputVAE.build("mlp", (7,), 2, given=GIVEN, **options).double()
        encoder, prior, decoder = (
            network.net[0] for network in (self.model.encoder, self.model.prior_encoder, self.model.decoder)
        )
        precision = 1 / self.s + self.W.square().sum(dim=0) / VARIANCE
        with torch.no_grad():
            for layer in (encoder, prior, decoder):
                layer.weight.zero_()
                layer.bias.zero_()
            prior.weight[:2, GIVEN], prior.bias[:2], prior.bias[2:] = self.A, self.a, self.s.log()
            decoder.weight[~GIVEN] = torch.cat([self.W, self.B], dim=1)
            decoder.bias[~GIVEN] = self.b
            ofy = self.W.T / VARIANCE
            encoder.weight[:2, ~GIVEN] = ofy / precision[:, None]
            encoder.weight[:2, GIVEN] = (self.A / self.s[:, None] - ofy @ self.B) / precision[:, None]
            encoder.bias[:2] = (self.a / self.s - ofy @ self.b) / precision
            encoder.bias[2:] = -precision.log()
        self.precision = precision

    def draw(self, count: int) -> torch.Tensor:
        x = torch.randn(count, 7, dtype=torch.float64)
        x[:, ~GIVEN] = self.evidence(x, log_prob=False).sample()
        return x

    def evidence(self, x: torch.Tensor, log_prob: bool = True):
        """log p(y|x), or the distribution."""
        mean = (x[:, GIVEN] @ self.A.T + self.a) @ self.W.T + x[:, GIVEN] @ self.B.T + self.b
        cov = self.W * self.s @ self.W.T + VARIANCE * torch.eye(4, dtype=torch.float64)
        y = MultivariateNormal(mean, cov)
        return y.log_prob(x[:, ~GIVEN]) if log_prob else y


# ----------------------------------------------------------------- exact where all is Gaussian


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    exact = Exact()
    x = exact.draw(5)
    log_weights = exact.model.log_weights(x, 9)
    assert log_weights.shape == (9, 5)
    torch.testing.assert_close(log_weights, exact.evidence(x).expand(9, 5), rtol=0, atol=1e-12)
    # The same through the evaluators, with nothing left to estimate.
    estimate = evaluate.importance_sampling(exact.model, x, 4)
    torch.testing.assert_close(estimate.value, exact.evidence(x), rtol=0, atol=1e-12)
    assert estimate.standard_error.max() < 1e-12


def test_with_a_wrong_posterior_the_bound_misses_the_kl():
    """At the exact q the weight is the same wherever z was drawn: only a wrong one shows that."""
    exact = Exact(samples=2000)
    x = exact.draw(3)
    mean, _ = exact.model.encode(x)
    with torch.no_grad():
        exact.model.encoder.net[0].bias += torch.tensor([0.5, -0.3, 0.7, -0.4], dtype=torch.float64)
    shifted, logvar = exact.model.encode(x)
    variance = 1 / exact.precision
    kl = gaussian_kl((shifted - mean) / variance.sqrt(), logvar - variance.log())
    assert kl.min() > 0.3
    expected = exact.evidence(x) - kl
    weights = exact.model.log_weights(x, 20_000)
    error = weights.std(dim=0) / math.sqrt(20_000)
    assert ((weights.mean(dim=0) - expected).abs() < 4 * error).all()
    # The loss has its KL in closed form: another estimate of the same number.
    one = torch.stack([exact.model.loss(x).total for _ in range(10)]).detach()
    assert abs(one.mean() + expected.mean()) < 4 * one.std() / math.sqrt(10)
    assert one.std() < 0.1


def test_the_bound_at_the_exact_parameters_has_no_gradient_for_q():
    exact = Exact(samples=20_000)
    loss = exact.model.loss(exact.draw(3))
    wanted = [*exact.model.encoder.parameters(), *exact.model.prior_encoder.parameters()]
    of_encoder, of_prior = torch.autograd.grad(loss.total, wanted)[::2]
    assert of_encoder.abs().max() < 0.05
    assert of_prior.abs().max() > 0.1  # three points do not have the model's mean


def test_the_gradient_of_the_joint_averages_to_that_of_the_evidence():
    """Under the posterior, d log p(y, z|x) / d theta averages to d log p(y|x) / d theta (Fisher)."""
    exact = Exact()
    x = exact.draw(4)
    with torch.no_grad():
        mean, logvar = exact.model.encode(x)
    z = mean + (0.5 * logvar).exp() * torch.randn(100_000, 4, 2, dtype=torch.float64)
    prior = exact.model.prior_encoder.net[0].weight
    (gradient,) = torch.autograd.grad(exact.model.log_joint(x, z).mean(dim=0).sum(), prior)
    A, s = exact.A.clone().requires_grad_(), exact.s.log().clone().requires_grad_()
    exact.A, exact.s = A, s.exp()
    (expected,) = torch.autograd.grad(exact.evidence(x).sum(), A)
    torch.testing.assert_close(gradient[:2, GIVEN], expected, rtol=0, atol=0.05)
    assert torch.equal(gradient[:, ~GIVEN], torch.zeros(4, 4, dtype=torch.float64))
    assert expected.abs().max() > 0.5


def test_completions_are_draws_of_the_prior_network():
    exact = Exact()
    x = exact.draw(2)
    completed = exact.model.complete(x, 20_000)
    assert torch.equal(completed[..., GIVEN], x[:, GIVEN].expand(20_000, 2, 3))
    y = completed[..., ~GIVEN]
    expected = exact.evidence(x, log_prob=False)
    # The means of p(y|x, z), as the samples of every model: without the noise of the pixels.
    cov = exact.W * exact.s @ exact.W.T
    torch.testing.assert_close(y.mean(dim=0), expected.mean, rtol=0, atol=0.05)
    for i in range(2):
        torch.testing.assert_close(y[:, i].T.cov(), cov, rtol=0, atol=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_hybrid_objective_adds_predictions_from_the_prior_network(alpha):
    """E under p(z|x) of log p(y|x, z) in closed form, a looser bound than the other."""
    exact = Exact(alpha=alpha, samples=20_000)
    x = exact.draw(5)
    y = exact.evidence(x, log_prob=False)
    squares = (x[:, ~GIVEN] - y.mean).square().sum(dim=1) + (exact.W.square() @ exact.s).sum()
    prediction = (2 * math.log(2 * math.pi * VARIANCE) + squares / (2 * VARIANCE)).mean()
    loss = exact.model.loss(x)
    assert loss.parts["prediction"].item() == pytest.approx(prediction.item(), abs=0.05)
    bound = loss.parts["reconstruction"] + loss.parts["kl"]
    assert bound.item() == pytest.approx(-exact.evidence(x).mean().item(), abs=0.02)
    assert prediction > bound + 1
    expected = alpha * bound + (1 - alpha) * loss.parts["prediction"]
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-12)
    recognition = torch.autograd.grad(loss.total, exact.model.encoder.net[0].weight, retain_graph=True)[0]
    prior = torch.autograd.grad(loss.total, exact.model.prior_encoder.net[0].weight)[0]
    assert (recognition.abs().max() == 0) == (alpha == 0)
    assert prior.abs().max() > 0.1


def test_the_loss_is_its_formula_and_so_is_its_gradient():
    """Written out with the networks alone; two sizes of the batch, and three draws."""
    model = small_model(alpha=0.4, beta=0.7, samples=3, given=2).double()
    names = [name for name, _ in model.named_parameters()]
    for count in (2, 5):
        x = torch.rand(count, *IMAGE_SHAPE, dtype=torch.float64)
        torch.manual_seed(3)
        loss = model.loss(x)
        gradients = torch.autograd.grad(loss.total, [*model.parameters()])
        torch.manual_seed(3)
        total = 0
        noise = [torch.randn(3, count, 3, dtype=torch.float64) for _ in range(2)]
        seen = torch.cat([torch.ones(4, 2), torch.zeros(4, 3)], dim=1)  # the left of five columns: two
        mean, logvar = model.encoder(x)
        prior_mean, prior_logvar = model.prior_encoder(x * seen)
        for of_prior, (m, v) in enumerate([(mean, logvar), (prior_mean, prior_logvar)]):
            for draw in range(3):
                z = m + (0.5 * v).exp() * noise[of_prior][draw]
                logits = model.decoder(torch.cat([z, x[:, 0, :, :2].flatten(1)], dim=1))
                likelihood = bernoulli_log_likelihood(x[..., 2:], logits[..., 2:]).sum()
                total = total - (0.6 if of_prior else 0.4) * likelihood / (3 * count)
        kl = 0.5 * (
            prior_logvar - logvar + (logvar.exp() + (mean - prior_mean) ** 2) / prior_logvar.exp() - 1
        )
        total = total + 0.4 * 0.7 * kl.sum() / count
        torch.testing.assert_close(loss.total, total, rtol=0, atol=1e-12)
        expected = torch.autograd.grad(total, [*model.parameters()])
        for name, one, other in zip(names, gradients, expected):
            torch.testing.assert_close(
                one, other, rtol=0, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
            )
            assert one.abs().max() > 0, name


def test_beta_of_a_schedule_stands_in_for_the_models(x):
    model = small_model(beta=3.0)
    torch.manual_seed(0)
    loss = model.loss(x, beta=torch.tensor(0.25))
    expected = loss.parts["reconstruction"] + 0.25 * loss.parts["kl"]
    torch.testing.assert_close(loss.total, expected)
    assert loss.parts["kl"] > 0.01


# ---------------------------------------------------------------- the divergence of two Gaussians


# --------------------------------------------------------------------- who sees and scores what


QUADRANTS = {
    1: ["00000", "00000", "11000", "11000"],
    2: ["11000", "11000", "11000", "11000"],
    3: ["11111", "11111", "11000", "11000"],
}


@pytest.mark.parametrize("given", [1, 2, 3])
def test_quadrants_come_in_the_papers_order(given):
    model = small_model((2, 4, 5), given=given)
    expected = torch.tensor([[digit == "1" for digit in row] for row in QUADRANTS[given]]).expand(2, 4, 5)
    ones = torch.ones(1, 2, 4, 5)
    assert torch.equal(model.hide(ones)[0] == 1, expected)
    assert model.given.tolist() == expected.flatten().nonzero().flatten().tolist()
    assert sorted([*model.given.tolist(), *model.missing.tolist()]) == [*range(40)]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, IMAGE_SHAPE),
        ({"likelihood": "categorical", "levels": 3}, (2, 4, 5)),
        ({"likelihood": "gaussian", "variance": "per_pixel"}, IMAGE_SHAPE),
    ],
)
def test_given_pixels_are_not_scored_and_missing_ones_not_seen(options, shape):
    model = small_model(shape, given=2, alpha=0.5, **options).double()
    x = torch.rand(3, *shape, dtype=torch.float64)
    z = torch.randn(3, 3, dtype=torch.float64)
    other = x.clone()
    other[..., 2:] = torch.rand_like(other[..., 2:])  # the missing pixels
    assert not torch.equal(model.encode(x)[0], model.encode(other)[0])
    for one, two in zip(model.prior(x), model.prior(other)):
        assert torch.equal(one, two)
    assert torch.equal(model.decoder_output(x, z), model.decoder_output(other, z))
    assert torch.equal(model.log_prior(x, z), model.log_prior(other, z))
    torch.manual_seed(0)
    first = model.complete(x, 4)
    torch.manual_seed(0)
    second = model.complete(other, 4)
    assert torch.equal(first, second)
    assert torch.equal(first[..., :2], x[..., :2].expand(4, *x[..., :2].shape))
    # The decoder's last bias is one number for each output: those of given pixels get no gradient.
    model.loss(x).total.backward()
    outputs = model.decoder.net[-1].bias.grad.view(-1, *shape)
    assert (outputs[..., :2] == 0).all()
    assert (outputs[..., 2:] != 0).all()
    changed = x.clone()
    changed[..., :2] = 1 - changed[..., :2]  # the given ones are seen by all three
    assert not torch.equal(model.prior(changed)[0], model.prior(x)[0])
    assert not torch.equal(model.decoder_output(changed, z), model.decoder_output(x, z))


@pytest.mark.parametrize(
    ("kind", "shape", "given"),
    [
        ("mlp", (1, 8, 9), 1),
        ("conv", (3, 8, 9), 3),
        ("conv1d", (2, 9), torch.arange(18).view(2, 9) % 3 == 0),
        ("residual", (1, 8, 9), 2),
    ],
)
@pytest.mark.parametrize("likelihood", [{}, {"likelihood": "categorical", "levels": 3}])
def test_any_network_can_fill_in(kind, shape, given, likelihood):
    model = StructuredOutputVAE.build(kind, shape, 2, given=given, **likelihood)
    x = torch.rand(5, *shape)
    model.validate(x)
    assert model.loss(x).total.shape == ()
    assert model.log_weights(x, 3).shape == (3, 5)
    assert model.complete(x, 4).shape == (4, 5, *shape)
    assert model.log_joint(x, torch.zeros(5, 2)).shape == (5,)


def test_all_completions_together_have_probability_one():
    """The sum over the 2^4 missing parts, with z on a fine grid; for any weights."""
    mask = torch.tensor([[[True, False, False], [True, False, False]]])
    model = StructuredOutputVAE.build("mlp", (1, 2, 3), 1, given=mask, hidden=(5,)).double()
    z = torch.linspace(-12, 12, 2001, dtype=torch.float64)[:, None]
    total = 0
    for values in itertools.product([0.0, 1.0], repeat=4):
        image = torch.tensor([[1.0, *values[:2]], [0.0, *values[2:]]], dtype=torch.float64).view(1, 1, 2, 3)
        total += torch.exp(model.log_joint(image.expand(len(z), 1, 2, 3), z)).sum() * 24 / 2000
    assert total.item() == pytest.approx(1, abs=1e-10)


def test_several_draws_keep_the_condition_of_their_examples(x):
    model, z = small_model().double(), torch.randn(4, 6, 3, dtype=torch.float64)
    x = x.double()
    for method in (model.log_likelihood, model.log_prior, model.log_joint):
        together = method(x, z)
        torch.testing.assert_close(together, torch.stack([method(x, draw) for draw in z]))


def test_weights_are_the_joint_over_q(x):
    model, x = small_model().double(), x.double()
    torch.manual_seed(0)
    weights = model.log_weights(x, 4)
    torch.manual_seed(0)
    mean, logvar = model.encode(x)
    z = mean + (0.5 * logvar).exp() * torch.randn(4, 6, 3, dtype=torch.float64)
    expected = model.log_likelihood(x, z) + gaussian_log_density(z, *model.prior(x))
    torch.testing.assert_close(weights, expected - gaussian_log_density(z, mean, logvar))


# -------------------------------------------------------------------------- training, and refusals


@pytest.fixture(scope="module")
def digits():
    images = data.load("digits")
    return images.train, images.test


def test_it_fills_in_digits_and_knows_more_than_without_the_condition(digits):
    """Missing quadrants of 8 x 8 digits, against a model whose given pixels are all the same."""
    test = digits[1]
    bounds = {}
    for name in ("seen", "hidden"):
        torch.manual_seed(0)
        model = StructuredOutputVAE.build("mlp", (1, 8, 8), 8, given=2, hidden=(64,))
        known = model.given.unsqueeze(0)
        pictures = [
            x if name == "seen" else x.flatten(1).index_fill(1, known[0], 0).view_as(x) for x in digits
        ]
        fit(model, pictures[0], epochs=12, batch_size=64, lr=3e-3, progress=False)
        bounds[name] = mean_loss(model, pictures[1])["total"]
        if name == "seen":
            weights = model.log_weights(pictures[1][:100], 100).detach()
            nll = -log_mean_exp(weights).mean()
            error = (model.complete(test, 5) - test).square().sum(dim=(2, 3, 4)).mean()
    assert bounds["seen"] < 12.3
    assert bounds["hidden"] > bounds["seen"] + 1.2
    assert nll < bounds["seen"]
    assert error < 2.4


def test_a_hybrid_model_predicts_better_from_its_prior_network(digits):
    predictions = {}
    for alpha in (0.1, 0.999):
        torch.manual_seed(0)
        model = StructuredOutputVAE.build("mlp", (1, 8, 8), 8, given=1, hidden=(64,), alpha=alpha)
        fit(model, digits[0], epochs=8, batch_size=64, lr=3e-3, progress=False)
        predictions[alpha] = mean_loss(model, digits[1])["prediction"]
    assert predictions[0.1] < predictions[0.999] - 0.25


def test_bounds_stay_in_single_precision_under_autocast(x):
    model = small_model(alpha=0.5)
    assert_single_precision_under_autocast(model, x)


def test_a_checkpoint_of_other_quadrants_is_refused(x, tmp_path):
    options = {"epochs": 1, "checkpoint": tmp_path / "run.pt", "progress": False}
    mask = torch.zeros(IMAGE_SHAPE, dtype=torch.bool)
    for rule in (slice(0, 2), slice(2, 4)):
        given = mask.clone()
        given[:, rule] = True
        model = small_model(given=given)
        if rule.start == 0:
            fit(model, x, **options)
        else:
            with pytest.raises(ValueError, match=r"whose (given|missing) holds other values"):
                fit(model, x, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"given": 4}, ValueError, r"^given is 4 for images of shape \(1, 4, 5\) but needs 1 to 3, the quad"),
        ({"given": 0}, ValueError, r"^given is 0 but must be at least 1"),
        ({"given": 1.5}, TypeError, r"^given is 1\.5 but must be a whole number"),
        (
            {"given": torch.ones(4, 5, dtype=torch.bool)},
            ValueError,
            r"^given is torch\.bool of shape \(4, 5\) but needs torch\.bool of shape \(1, 4, 5\)",
        ),
        (
            {"given": torch.ones(1, 4, 5)},
            ValueError,
            r"^given is torch\.float32 of shape .* needs torch\.bool",
        ),
        (
            {"given": torch.ones(1, 4, 5, dtype=torch.bool)},
            ValueError,
            r"^given is 20 of 20 pixels but needs some, and not all",
        ),
        (
            {"given": torch.zeros(1, 4, 5, dtype=torch.bool)},
            ValueError,
            r"^given is 0 of 20 pixels but needs some, and not all",
        ),
        ({"alpha": 1.5}, ValueError, r"^alpha is 1\.5 but must be between 0 and 1"),
        ({"alpha": math.nan}, ValueError, r"^alpha is nan but must be between 0 and 1"),
        ({"beta": -1}, ValueError, r"^beta is -1 but must be at least 0"),
        ({"samples": 0}, ValueError, r"^samples is 0 but must be at least 1"),
        ({"likelihood": "poisson"}, ValueError, r"^likelihood is 'poisson' but must be one of"),
        ({"classes": 3}, TypeError, "classes"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        small_model(**options)


@pytest.mark.parametrize("shape", [(20,), (2, 9), (1, 1, 5)])
def test_what_has_no_quadrants_needs_a_mask(shape):
    with pytest.raises(
        ValueError, match=r"^given is 1 for images of shape .*or a boolean mask of that shape"
    ):
        small_model(shape)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m.validate(x * 255), ValueError, r"^images has values from .*Divide 8-bit"),
        (lambda m, x: m.validate(x / 0), ValueError, r"^images holds .*NaN or infinite"),
        (lambda m, x: m.validate(x[:, 0]), ValueError, r"^images has shape \(6, 4, 5\) but this model needs"),
        (lambda m, x: m.loss(x[..., 1:]), ValueError, r"^x has shape \(6, 1, 4, 4\) but this model needs"),
        (lambda m, x: m.complete(x[..., 1:], 2), ValueError, r"^x has shape \(6, 1, 4, 4\) but this mod"),
        (lambda m, x: m.complete(x, 0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda m, x: m.log_weights(x, 0), ValueError, r"^samples is 0 but must be at least 1"),
        (lambda m, x: m.decode(x, torch.zeros(6, 2)), ValueError, r"^z has shape \(6, 2\) but this model"),
        (lambda m, x: m.loss(x.long()), TypeError, r"^x has dtype torch\.int64 but needs a floating-point"),
        (
            lambda m, x: setattr(m, "prior_encoder", nn.Linear(5, 5)) or m.prior(x),
            ValueError,
            r"too many values|the mean of prior_encoder",
        ),
    ],
)
def test_bad_input_is_refused(x, call, error, message):
    with pytest.raises(error, match=message):
        call(small_model(), x)
