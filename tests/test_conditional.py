"""The conditional VAE: what labels change, that both networks see them, and that it is a VAE given them."""

import math

import pytest
import torch
from support.losses import assert_gradient_is_derivative, assert_single_precision_under_autocast
from torch import nn
from torch.distributions import MultivariateNormal

from aecourse import data, evaluate
from aecourse.likelihoods import gaussian_kl
from aecourse.nets import MLPDecoder, MLPEncoder
from aecourse.train import fit
from aecourse.vae import VAE
from aecourse.zoo.conditional import ConditionalVAE

IMAGE_SHAPE = (1, 4, 5)
LATENT_DIM = 3
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


def small_model(**options) -> ConditionalVAE:
    return ConditionalVAE.build("mlp", IMAGE_SHAPE, LATENT_DIM, hidden=(7,), classes=4, **options)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(6, *IMAGE_SHAPE)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("mlp", (1, 8, 9)), ("mlp", (5,)), ("conv", (3, 8, 9)), ("conv1d", (2, 9)), ("residual", (1, 8, 9))],
)
@pytest.mark.parametrize("options", [{}, {"likelihood": "categorical", "levels": 3}, {"samples": 2}])
def test_any_network_can_be_conditioned_on_labels(kind, shape, options):
    model = ConditionalVAE.build(kind, shape, 2, classes=4, **options)
    x = torch.rand(6, *shape)
    vae = model.given(LABELS)
    mean, logvar = vae.encode(x)
    assert mean.shape == logvar.shape == (6, 2)
    assert model.loss(x, LABELS).total.shape == ()
    assert vae.elbo(x, samples=2).shape == (6,)
    assert model.log_weights(x, 3, LABELS).shape == (3, 6)
    assert vae.log_joint(x, mean).shape == (6,)
    assert vae.reconstruct(x).shape == x.shape
    assert vae.sample(6).shape == x.shape
    assert vae.interpolate(x, x.flip(0), 3).shape == (3, *x.shape)
    assert vae.traverse(mean, 1, [-1.0, 1.0]).shape == (2, *x.shape)
    model.validate(x, LABELS)
    # Both networks look at the labels.
    other = LABELS.roll(1)
    assert (model.given(other).encode(x)[0] != mean).any(dim=1).tolist() == (other != LABELS).tolist()
    z = torch.zeros(6, 2)
    changed = (model.given(other).decode(z) != vae.decode(z)).flatten(1).any(dim=1)
    assert changed.tolist() == (other != LABELS).tolist()


def test_labels_are_planes_for_the_encoder_and_a_one_hot_vector_behind_the_code(x):
    model = small_model()
    seen = {}
    for name in ("encoder", "decoder"):
        getattr(model, name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
    z = torch.randn(6, LATENT_DIM)
    vae = model.given(LABELS)
    vae.encode(x)
    vae.decode(z)
    one_hot = torch.eye(4)[LABELS]
    assert torch.equal(seen["decoder"], torch.cat([z, one_hot], dim=1))
    assert torch.equal(seen["encoder"][:, :1], x)
    assert torch.equal(seen["encoder"][:, 1:], one_hot[:, :, None, None].expand(-1, -1, 4, 5))


def test_several_draws_keep_the_labels_of_their_examples(x):
    vae, z = small_model().double().given(LABELS), torch.randn(3, 6, LATENT_DIM, dtype=torch.float64)
    x = x.double()
    together = vae.log_likelihood(x, z)
    torch.testing.assert_close(together, torch.stack([vae.log_likelihood(x, draw) for draw in z]))


def test_one_label_is_that_of_all():
    model, z = small_model(), torch.randn(5, LATENT_DIM)
    one, all_of_them = model.given(torch.tensor([2])), model.given(torch.full((5,), 2))
    assert torch.equal(one.decode(z), all_of_them.decode(z))


def test_given_labels_it_is_the_vae_of_these_weights(x):
    """With one class the label says nothing: the loss is that of a VAE with one more channel of ones."""
    torch.manual_seed(0)
    model = ConditionalVAE.build(
        "mlp", IMAGE_SHAPE, LATENT_DIM, hidden=(7,), classes=1, beta=0.5, free_bits=0.1
    )

    class Encoder(nn.Module):
        def forward(self, x):
            return model.encoder(torch.cat([x, torch.ones_like(x)], dim=1))

    class Decoder(nn.Module):
        def forward(self, z):
            return model.decoder(torch.cat([z, torch.ones(len(z), 1)], dim=1))

    vae = VAE(Encoder(), Decoder(), image_shape=IMAGE_SHAPE, latent_dim=LATENT_DIM, beta=0.5, free_bits=0.1)
    for labels in (torch.zeros(6, dtype=torch.int64), torch.tensor([0])):
        torch.manual_seed(3)
        loss = model.loss(x, labels)
        torch.manual_seed(3)
        expected = vae.loss(x)
        assert torch.equal(loss.total, expected.total)
        assert loss.parts == expected.parts


def test_training_and_evaluation_get_each_image_its_own_label():
    """The class alone decides the image; the code has nothing to add, and its KL dies out."""
    prototypes = torch.rand(4, 6).round()
    labels = torch.arange(400) % 4
    images = prototypes[labels]
    model = ConditionalVAE.build("mlp", (6,), 2, hidden=(16,), classes=4)
    history = fit(model, images, labels=labels, epochs=40, batch_size=100, lr=0.02, progress=False)
    assert torch.equal(model.given(torch.arange(4)).sample(4).round(), prototypes)
    assert history.train["kl"][-1] < 0.1
    # The right labels make the images likely, wrong ones next to impossible.
    few = slice(0, 8)
    right = evaluate.importance_sampling(model, images[few], 20, labels=labels[few]).value
    wrong = evaluate.importance_sampling(model, images[few], 20, labels=labels[few].roll(1)).value
    assert right.min() > -0.5
    assert (right - wrong).min() > 1


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, TypeError, r"^labels must be a torch\.Tensor of torch\.int64, not NoneType"),
        (LABELS[:5], ValueError, r"^labels has shape \(5,\) but needs \(6,\), one for each example"),
        (LABELS.unsqueeze(1), ValueError, r"^labels has shape \(6, 1\) but needs \(6,\)"),
        (LABELS.float(), TypeError, r"^labels must be a torch\.Tensor of torch\.int64, not torch\.float32"),
        (LABELS.tolist(), TypeError, r"^labels must be a torch\.Tensor of torch\.int64, not list"),
    ],
)
def test_wrong_labels_are_refused_everywhere(x, labels, error, message):
    model, z = small_model(), torch.zeros(6, LATENT_DIM)
    for call in (
        lambda: model.loss(x, labels),
        lambda: model.log_weights(x, 2, labels),
        lambda: model.validate(x, labels),
        lambda: model.given(labels).encode(x),
        lambda: model.given(labels).decode(z),
        lambda: model.given(labels).sample(6),
    ):
        with pytest.raises(error, match=message):
            call()


def test_labels_are_needed(x):
    with pytest.raises(ValueError, match=r"^labels is missing: ConditionalVAE needs"):
        fit(small_model(), x, epochs=1, progress=False)


def test_labels_out_of_range_are_refused_before_training(x):
    with pytest.raises(ValueError, match=r"^labels go from 1 to 4 but need 0 to 3"):
        small_model().validate(x, LABELS + 1)
    with pytest.raises(ValueError, match=r"^labels go from -1 to 2 but need 0 to 3"):
        small_model().validate(x, LABELS - 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 0}, ValueError, r"^classes is 0 but must be at least 1"),
        ({"classes": 2.0}, TypeError, r"^classes is 2\.0 but must be a whole number"),
        ({"classes": 2, "beta": -1}, ValueError, r"^beta is -1 but must be at least 0"),
        ({"classes": 2, "likelihood": "poisson"}, ValueError, r"^likelihood is 'poisson' but must be one of"),
        ({"classes": 2, "betta": 2}, TypeError, "betta"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ConditionalVAE.build("mlp", (6,), 2, **options)


def test_networks_without_room_for_labels_are_refused(x):
    networks = MLPEncoder(IMAGE_SHAPE, 3), MLPDecoder(3, IMAGE_SHAPE)
    model = ConditionalVAE(*networks, classes=4, image_shape=IMAGE_SHAPE, latent_dim=3)
    with pytest.raises(RuntimeError):
        model.loss(x, LABELS)


def test_the_gradient_of_the_loss_is_its_derivative():
    model = ConditionalVAE.build("mlp", (4,), 2, hidden=(3,), classes=2, activation=nn.Tanh).double()
    x, labels = torch.rand(3, 4, dtype=torch.float64), torch.tensor([0, 1, 1])
    assert_gradient_is_derivative(model, x, labels)


def test_bounds_stay_in_single_precision_under_autocast(x):
    model = small_model()
    assert_single_precision_under_autocast(model, x, LABELS)


# ------------------------------------------------------------ exact where everything is Gaussian


class Exact:
    """x|z, y ~ N(W z + b_y, v I) with orthogonal columns of W, and the posterior, set by public names."""

    variance = 0.4

    def __init__(self):
        torch.manual_seed(1)
        here = {"dtype": torch.float64}
        self.W = torch.linalg.qr(torch.randn(6, 2, **here))[0] * torch.tensor([1.4, 0.7], **here)
        self.b = torch.randn(3, 6, **here)
        self.precision = 1 + self.W.square().sum(dim=0) / self.variance
        self.model = ConditionalVAE.build(
            "mlp", (6,), 2, classes=3, hidden=(), likelihood="gaussian", variance=self.variance
        ).double()
        with torch.no_grad():
            (encoder,), (decoder,) = self.model.encoder.net, self.model.decoder.net
            posterior = self.W.T / self.variance / self.precision[:, None]
            encoder.weight[:] = torch.cat([torch.cat([posterior, -posterior @ self.b.T], dim=1)] * 2)
            encoder.weight[2:], encoder.bias[:2], encoder.bias[2:] = 0, 0, -self.precision.log()
            decoder.weight[:], decoder.bias[:] = torch.cat([self.W, self.b.T], dim=1), 0

    def given(self, labels: torch.Tensor) -> MultivariateNormal:
        cov = self.W @ self.W.T + self.variance * torch.eye(6, dtype=torch.float64)
        return MultivariateNormal(self.b[labels], cov)


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    exact, labels = Exact(), torch.tensor([0, 1, 2, 1, 0])
    x = exact.given(labels).sample()
    expected = exact.given(labels).log_prob(x)
    weights = exact.model.log_weights(x, 7, labels)
    torch.testing.assert_close(weights, expected.expand(7, 5), rtol=0, atol=1e-12)
    estimate = evaluate.importance_sampling(exact.model, x, 3, labels=labels)
    torch.testing.assert_close(estimate.value, expected, rtol=0, atol=1e-12)


def test_the_wrong_label_in_the_encoder_costs_the_kl_of_two_gaussians_of_equal_variance():
    exact, labels, wrong = Exact(), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    x = exact.given(labels).sample()
    right, misled = exact.model.given(labels), exact.model.given(wrong)
    variance = 1 / exact.precision
    shift = (exact.b[labels] - exact.b[wrong]) @ exact.W / exact.variance * variance
    kl = gaussian_kl(shift / variance.sqrt(), torch.zeros_like(shift))
    assert kl.min() > 0.5
    mean, logvar = misled.encode(x)
    z = mean + (0.5 * logvar).exp() * torch.randn(100_000, 3, 2, dtype=torch.float64)
    reconstruction = right.log_likelihood(x, z)  # the decoder gets the right one
    bound = reconstruction.mean(dim=0) - right.kl_per_dimension(mean, logvar).sum(dim=1)
    error = reconstruction.std(dim=0) / math.sqrt(len(z))
    assert ((bound - (exact.given(labels).log_prob(x) - kl)).abs() < 4 * error).all()
    assert error.max() < 0.02


def test_bayes_rule_makes_it_the_linear_discriminant_classifier():
    exact = Exact()
    x = exact.given(torch.arange(60) % 3).sample()
    scores = exact.model.class_log_likelihoods(x, 2)
    expected = torch.stack([exact.given(torch.tensor(label)).log_prob(x) for label in range(3)], dim=1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-12)
    # Equal covariances: what differs between classes is linear in x.
    cov = exact.given(torch.tensor(0)).covariance_matrix
    weight = torch.linalg.solve(cov, exact.b.T)
    for prior in (None, torch.tensor([0.05, 0.9, 0.05], dtype=torch.float64).log()):
        linear = x @ weight - 0.5 * (exact.b.T * weight).sum(dim=0) + (0 if prior is None else prior)
        assert torch.equal(exact.model.classify(x, 2, prior), linear.argmax(dim=1))
    assert not torch.equal(exact.model.classify(x, 2, prior), exact.model.classify(x, 2))


def test_classes_are_scored_by_the_mean_weight_not_by_the_mean_of_logarithms():
    """Where q is not the posterior, the importance weighted bound and the ELBO differ."""
    model, x = small_model().double(), torch.rand(6, *IMAGE_SHAPE, dtype=torch.float64)
    torch.manual_seed(0)
    scores = model.class_log_likelihoods(x, 5)
    torch.manual_seed(0)
    weights = [model.log_weights(x, 5, torch.full((6,), label)) for label in range(4)]
    expected = torch.stack([w.exp().mean(dim=0).log() for w in weights], dim=1)
    torch.testing.assert_close(scores, expected)
    assert not scores.requires_grad


def test_codes_say_nothing_about_the_class_that_the_decoder_is_told():
    """At the optimum E[z|x, y] has mean 0 in every class; without labels the classes are far apart."""
    exact, labels = Exact(), torch.arange(3).repeat(400)
    x = exact.given(labels).sample()
    for label in range(3):  # exact class means, so that chance is exactly chance
        x[labels == label] += exact.b[label] - x[labels == label].mean(dim=0)
    codes = exact.model.given(labels).encode(x)[0]
    unconditional = (x - exact.b.mean(dim=0)) @ exact.W / exact.variance / exact.precision
    for z, informative in ((codes, False), (unconditional, True)):
        means = torch.stack([z[labels == label].mean(dim=0) for label in range(3)])
        spread = (means - means.mean(dim=0)).abs().max()
        assert spread > 0.3 if informative else spread < 1e-12
        nearest = torch.cdist(z, means + 1e-9 * exact.b[:, :2]).argmin(dim=1)
        accuracy = (nearest == labels).double().mean()
        assert accuracy > 0.45 if informative else abs(accuracy - 1 / 3) < 0.06


def test_two_sizes_of_a_batch_have_the_same_loss_per_example():
    exact, labels = Exact(), torch.arange(12) % 3
    exact.model.samples = 4000
    x = exact.given(labels).sample()
    for rows in (slice(0, 2), slice(0, 12)):
        loss = exact.model.loss(x[rows], labels[rows]).total
        assert loss.item() == pytest.approx(
            -exact.given(labels[rows]).log_prob(x[rows]).mean().item(), abs=0.05
        )


def test_it_classifies_digits_that_it_was_never_trained_to_classify():
    digits = data.load("digits")
    torch.manual_seed(0)
    model = ConditionalVAE.build("mlp", (1, 8, 8), 2, classes=10, hidden=(64,))
    fit(model, digits.train, labels=digits.train_labels, epochs=15, batch_size=64, lr=5e-3, progress=False)
    classified = model.classify(digits.test, 10)
    assert (classified == digits.test_labels).double().mean() > 0.88


def test_a_class_prior_of_another_shape_is_refused(x):
    with pytest.raises(ValueError, match=r"^log_class_prior has shape \(3,\) but needs \(4,\)"):
        small_model().classify(x, 2, torch.zeros(3))
    with pytest.raises(ValueError, match=r"^samples is 0 but must be at least 1"):
        small_model().classify(x, 0)


def test_a_class_prior_that_is_no_tensor_is_refused():
    model = ConditionalVAE.build("mlp", (1, 4, 4), 2, classes=3)
    with pytest.raises(TypeError, match=r"^log_class_prior must be a torch\.Tensor, not list"):
        model.classify(torch.rand(2, 1, 4, 4), 2, [0.0, 0.0, 0.0])
