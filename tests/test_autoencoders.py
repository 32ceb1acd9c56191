"""Autoencoders against closed forms: sparsity, contraction, the linear denoiser, principal components."""

import math

import pytest
import torch
from support.losses import assert_gradient_is_derivative, assert_single_precision_under_autocast
from torch import nn

from aecourse import data
from aecourse.autoencoders import (
    Autoencoder,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    SparseAutoencoder,
    contractive_penalty,
    kl_sparsity,
    l1_sparsity,
    top_k,
)
from aecourse.linear import pca
from aecourse.nets import ConvEncoder, MLPDecoder, MLPEncoder
from aecourse.train import fit

IMAGE_SHAPE, CODE_DIM, BATCH = (1, 4, 5), 3, 6


def noise(x):
    return x + 0.3 * torch.randn_like(x)


def mask(x):
    return x * (torch.rand_like(x) > 0.4)


# One of each kind; the same options serve every test that must hold for all of them.
KINDS = {
    "plain": lambda *a, **o: Autoencoder.mlp(*a, **o),
    "cross-entropy": lambda *a, **o: Autoencoder.mlp(*a, error="cross_entropy", **o),
    "l1": lambda *a, **o: SparseAutoencoder.mlp(*a, weight=0.1, **o),
    "kl": lambda *a, **o: SparseAutoencoder.mlp(*a, penalty="kl", rho=0.1, weight=0.7, **o),
    "top-k": lambda *a, **o: SparseAutoencoder.mlp(*a, penalty="top_k", k=2, **o),
    "denoising": lambda *a, **o: DenoisingAutoencoder.mlp(*a, sigma=0.3, **o),
    "masking": lambda *a, **o: DenoisingAutoencoder.mlp(*a, corruption=mask, **o),
    "sparse denoising": lambda *a, **o: SparseAutoencoder.mlp(*a, corruption=mask, weight=0.1, **o),
    "contractive": lambda *a, **o: ContractiveAutoencoder.mlp(*a, weight=0.5, **o),
}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(BATCH, *IMAGE_SHAPE)


def seeded_loss(model, x, seed=3):
    torch.manual_seed(seed)
    return model.loss(x)


def assert_equal_to_ten_digits(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------- sparsity


def test_l1_is_the_sum_of_absolute_values_and_its_gradient_the_signs():
    codes = torch.tensor([[1.0, -2.0, 0.5], [0.25, 0.0, -4.0]], requires_grad=True)
    assert l1_sparsity(codes).tolist() == [3.5, 4.25]
    l1_sparsity(codes).sum().backward()
    assert codes.grad.tolist() == [[1, -1, 1], [1, 0, -1]]


@pytest.mark.parametrize("rho", [0.01, 0.2, 0.9])
def test_kl_sparsity_is_that_of_bernoulli_variables_and_has_its_known_gradient(rho):
    """Oracle 14: dKL/drho^ = -rho/rho^ + (1 - rho)/(1 - rho^), here divided by the batch size."""
    codes = torch.rand(5, 4, dtype=torch.float64).requires_grad_()
    mean = codes.mean(dim=0).detach()
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(torch.full_like(mean, rho)), bernoulli(mean))
    value = kl_sparsity(codes, rho)
    assert_equal_to_ten_digits(value.detach(), expected.sum())
    (gradient,) = torch.autograd.grad(value, codes)
    assert_equal_to_ten_digits(gradient, ((-rho / mean + (1 - rho) / (1 - mean)) / 5).expand(5, -1))
    assert torch.autograd.gradcheck(lambda c: kl_sparsity(c, rho), codes)


def test_kl_sparsity_is_zero_only_where_every_unit_has_the_target_activity():
    codes = torch.tensor([[0.9, 0.05], [0.1, 0.95]], dtype=torch.float64)
    assert kl_sparsity(codes, 0.5).item() == pytest.approx(0, abs=1e-14)
    assert kl_sparsity(codes, 0.4) > 0


def test_the_mean_activity_is_that_of_the_batch():
    # Fully active for one example of four and silent for the others is as good as a quarter for all.
    one_hot, quarters = torch.eye(4, dtype=torch.float64), torch.full((4, 4), 0.25, dtype=torch.float64)
    assert_equal_to_ten_digits(kl_sparsity(one_hot, 0.1), kl_sparsity(quarters, 0.1))
    each = torch.stack([kl_sparsity(code.unsqueeze(0), 0.1) for code in one_hot]).mean()
    assert each > 10 * kl_sparsity(one_hot, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [0.05, 1e-6])
def test_kl_sparsity_of_dead_and_saturated_units_is_finite(dtype, rho):
    logits = torch.tensor([[-1e4, 1e4, 0.0, -60.0, 40.0]], dtype=dtype).expand(3, -1).clone().requires_grad_()
    value = kl_sparsity(logits.sigmoid(), rho)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    # A unit that is nearly dead is pulled up with all the force of the target: d/dlogit = rho^ - rho.
    assert logits.grad[0, 3].item() == pytest.approx(-rho / 3, rel=1e-5)


def test_top_k_keeps_the_largest_entries_where_they_are():
    codes = torch.tensor([[3.0, -5.0, 1.0, 2.0], [-4.0, -1.0, -3.0, -2.0]], requires_grad=True)
    kept = top_k(codes, 2)
    assert kept.tolist() == [[3, 0, 0, 2], [0, -1, 0, -2]]
    (kept * torch.arange(1.0, 5.0)).sum().backward()
    assert codes.grad.tolist() == [[1, 0, 0, 4], [0, 2, 0, 4]]
    assert torch.equal(top_k(codes, 4), codes)


def test_a_top_k_autoencoder_has_exactly_k_active_units(x):
    model = SparseAutoencoder.mlp(IMAGE_SHAPE, 12, hidden=(7,), penalty="top_k", k=4)
    codes = model.encode(x)
    assert (codes != 0).sum(dim=1).tolist() == [4] * BATCH
    assert_close_to_top(codes, model.encoder(x))
    assert model.loss(x).parts.keys() == {"reconstruction"}


def assert_close_to_top(codes, outputs):
    threshold = outputs.sort(dim=1, descending=True).values[:, 3:4]
    torch.testing.assert_close(codes, torch.where(outputs >= threshold, outputs, 0))


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({"penalty": "l1"}, lambda h: h.relu().abs().sum(dim=1).mean()),
        ({"penalty": "l1", "code": "linear"}, lambda h: h.abs().sum(dim=1).mean()),
        ({"penalty": "kl", "rho": 0.1}, lambda h: kl_sparsity(h.sigmoid(), 0.1)),
    ],
)
def test_the_sparse_loss_is_error_plus_weighted_penalty_of_the_code_alone(x, options, by_hand):
    model = SparseAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(7,), weight=0.3, **options)
    loss = model.loss(x)
    assert loss.parts.keys() == {"reconstruction", "penalty"}
    torch.testing.assert_close(loss.parts["penalty"], by_hand(model.encoder(x)))
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 0.3 * loss.parts["penalty"])
    torch.testing.assert_close(
        loss.parts["reconstruction"], (x - model.reconstruct(x)).square().sum(dim=(1, 2, 3)).mean()
    )


def test_training_makes_the_mean_activity_approach_its_target():
    torch.manual_seed(1)
    images = torch.rand(100, 9)
    model = SparseAutoencoder.mlp((9,), 6, hidden=(), penalty="kl", rho=0.1, weight=20.0)
    before = (model.encode(images).mean(dim=0) - 0.1).abs().max()
    fit(model, images, epochs=150, batch_size=50, lr=0.02, progress=False)
    after = (model.encode(images).mean(dim=0) - 0.1).abs().max()
    assert before > 0.2
    assert after < 0.03


# ---------------------------------------------------------------------------------- contraction


def sigmoid_layer(dim=5, code_dim=3):
    linear = nn.Linear(dim, code_dim).double()
    return linear, lambda x: linear(x).sigmoid()


def closed_form(linear, x):
    h = linear(x).sigmoid()
    return ((h * (1 - h)).square() * linear.weight.square().sum(dim=1)).sum(dim=1)


def test_the_contractive_penalty_of_a_sigmoid_layer_has_a_closed_form():
    """Oracle 14: sum_j (h_j (1 - h_j))^2 sum_d W_jd^2, its value and its gradient."""
    linear, encoder = sigmoid_layer()
    x = torch.randn(4, 5, dtype=torch.float64)
    assert_equal_to_ten_digits(contractive_penalty(encoder, x), closed_form(linear, x))
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)  # of the examples: they differ
    got = torch.autograd.grad(weights @ contractive_penalty(encoder, x), list(linear.parameters()))
    expected = torch.autograd.grad(weights @ closed_form(linear, x), list(linear.parameters()))
    for mine, theirs in zip(got, expected):
        assert theirs.abs().max() > 1e-3
        assert_equal_to_ten_digits(mine, theirs)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (MLPEncoder((5,), 3, (7, 6), activation=nn.Tanh, gaussian=False), (5,)),
        (ConvEncoder((2, 4, 5), 3, (4,), activation=nn.ELU, gaussian=False), (2, 4, 5)),
    ],
)
def test_the_contractive_penalty_of_any_encoder_is_the_norm_of_its_jacobian(encoder, shape):
    encoder, x = encoder.double(), torch.randn(4, *shape, dtype=torch.float64)
    got = contractive_penalty(encoder, x)
    for example, penalty in zip(x, got):
        jacobian = torch.autograd.functional.jacobian(lambda one: encoder(one.unsqueeze(0)), example)
        assert_equal_to_ten_digits(penalty.detach(), jacobian.square().sum())


def test_the_contractive_penalty_needs_no_graph_around_it():
    linear, encoder = sigmoid_layer()
    x = torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        value = contractive_penalty(encoder, x)
    assert not value.requires_grad
    assert_equal_to_ten_digits(value, closed_form(linear, x).detach())


def test_the_contractive_loss_is_error_plus_weighted_penalty(x):
    model = ContractiveAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(), weight=0.3)
    loss = model.loss(x)
    linear = model.encoder.net[0]
    torch.testing.assert_close(loss.parts["penalty"], closed_form(linear, x.flatten(1)).mean())
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + 0.3 * loss.parts["penalty"])
    plain = Autoencoder(model.encoder, model.decoder, image_shape=IMAGE_SHAPE, code_dim=3, code="sigmoid")
    torch.testing.assert_close(loss.parts["reconstruction"], plain.loss(x).total)


def test_the_contractive_penalty_reaches_the_encoders_weights_and_contracts():
    images = torch.rand(60, 9)
    norms = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = ContractiveAutoencoder.mlp((9,), 6, hidden=(), weight=weight)
        fit(model, images, epochs=60, batch_size=30, lr=0.02, progress=False)
        norms.append(contractive_penalty(model.encode, images).mean().item())
    assert norms[1] < 0.5 * norms[0]


# ------------------------------------------------------------------------------------- denoising


def linear_denoiser(matrix, sigma) -> DenoisingAutoencoder:
    """r(x) = matrix x: as wide a code as the input, and two linear maps."""
    dim = len(matrix)
    model = DenoisingAutoencoder.mlp((dim,), dim, hidden=(), output="linear", sigma=sigma).double()
    with torch.no_grad():
        model.encoder.net[0].weight.copy_(matrix)
        model.decoder.net[0].weight.copy_(torch.eye(dim))
        model.encoder.net[0].bias.zero_()
        model.decoder.net[0].bias.zero_()
    return model


@pytest.fixture
def gaussian():
    """Covariance of three-dimensional data, standard deviation of the noise, and the best linear denoiser."""
    root = torch.randn(3, 3, dtype=torch.float64)
    cov, sigma = root @ root.T, 0.7
    return cov, sigma, cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(3, dtype=torch.float64))


def test_the_linear_denoiser_has_its_exact_loss_and_stationary_point(gaussian):
    """Oracle 8: A = S (S + sigma^2 I)^-1 is the minimum, and the loss there sum_i l s^2 / (l + s^2)."""
    cov, sigma, best = gaussian
    eigenvalues = torch.linalg.eigvalsh(cov)
    expected = (eigenvalues * sigma**2 / (eigenvalues + sigma**2)).sum()
    # 400,000 draws: the standard error is below 0.3 % of the loss.
    clean = torch.randn(400_000, 3, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    model = linear_denoiser(best, sigma)
    codes = model.encode(model.corrupt(clean))
    errors = model.reconstruction_error(clean, codes)
    standard_error = errors.std() / math.sqrt(len(clean))
    assert standard_error < 0.003 * expected
    assert abs((errors.mean() - expected) / standard_error) < 4
    assert abs((model.loss(clean).total - expected) / standard_error) < 5
    model.loss(clean).total.backward()
    assert model.encoder.net[0].weight.grad.abs().max() < 0.03
    worse = linear_denoiser(
        torch.eye(3, dtype=torch.float64), sigma
    )  # copies its input: the error is all of the noise
    assert worse.loss(clean).total.item() == pytest.approx(3 * sigma**2, rel=0.01)


def test_the_score_of_the_best_linear_denoiser_is_that_of_the_smoothed_gaussian(gaussian):
    """Oracle 9, Tweedie: (E[clean | x] - x) / sigma^2 = grad log N(x; 0, S + sigma^2 I), exactly."""
    cov, sigma, best = gaussian
    x = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    smoothed = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64), cov + sigma**2 * torch.eye(3, dtype=torch.float64)
    )
    (expected,) = torch.autograd.grad(smoothed.log_prob(x).sum(), x)
    assert_equal_to_ten_digits(linear_denoiser(best, sigma).score(x.detach()), expected)


def test_the_target_is_the_clean_input_and_the_encoder_sees_the_corrupted_one(x):
    seen = []

    def corruption(batch):
        seen.append(batch)
        return torch.zeros_like(batch)

    model = DenoisingAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(7,), corruption=corruption)
    blind = model.reconstruct(torch.zeros_like(x))
    torch.testing.assert_close(model.loss(x).total, (blind - x).square().sum(dim=(1, 2, 3)).mean())
    assert len(seen) == 1  # reconstruct does not corrupt
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_corrupts_in_both_modes_and_reconstruct_in_none(x, training):
    model = DenoisingAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(7,), sigma=0.5).train(training)
    assert seeded_loss(model, x, 1).total != seeded_loss(model, x, 2).total
    assert torch.equal(model.reconstruct(x), model.reconstruct(x))
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)))
    torch.manual_seed(3)
    corrupted = x + 0.5 * torch.randn_like(x)
    torch.testing.assert_close(
        seeded_loss(model, x, 3).total,
        (model.reconstruct(corrupted) - x).square().sum(dim=(1, 2, 3)).mean(),
    )


def test_sparse_and_denoising_go_together(x):
    model = SparseAutoencoder.mlp(IMAGE_SHAPE, 30, hidden=(), weight=0.2, corruption=noise)
    loss = seeded_loss(model, x)
    torch.manual_seed(3)
    codes = model.encode(noise(x))
    error = (model.decode(codes) - x).square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(loss.parts["reconstruction"], error)
    torch.testing.assert_close(loss.parts["penalty"], codes.abs().sum(dim=1).mean())


def test_the_contractive_penalty_is_taken_where_the_encoder_looks(x):
    model = ContractiveAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(), corruption=lambda x: 0 * x)
    at_zero = closed_form(model.encoder.net[0], torch.zeros(1, 20))[0]
    torch.testing.assert_close(model.loss(x).parts["penalty"], at_zero)


# ------------------------------------------------------------------------------- all of them


def test_the_linear_autoencoder_at_the_principal_components_loses_the_other_eigenvalues():
    """Oracle 1: the residual is the sum of the discarded eigenvalues, and the point is stationary."""
    points = torch.randn(200, 6, dtype=torch.float64) * torch.arange(1.0, 7.0)
    points = points - points.mean(dim=0)
    found = pca(points)
    model = Autoencoder.mlp((6,), 2, hidden=(), output="linear").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.encoder.net[0].weight.copy_(found.components[:2])
        model.decoder.net[0].weight.copy_(found.components[:2].T)
    loss = model.loss(points).total
    assert_equal_to_ten_digits(loss.detach(), found.eigenvalues[2:].sum())
    loss.backward()
    assert max(parameter.grad.abs().max() for parameter in model.parameters()) < 1e-10
    # Copying: with as wide a code as the input nothing is lost.
    wide = Autoencoder.mlp((6,), 6, hidden=(), output="linear").double()
    with torch.no_grad():
        wide.decoder.net[0].weight.copy_(torch.linalg.inv(wide.encoder.net[0].weight))
        wide.decoder.net[0].bias.copy_(-wide.decoder.net[0].weight @ wide.encoder.net[0].bias)
    assert wide.loss(points).total < 1e-20


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_every_loss_is_its_derivative(kind):
    model = KINDS[kind]((4,), CODE_DIM, (3,), activation=nn.Tanh).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    for gradient in assert_gradient_is_derivative(model, x):
        assert gradient.abs().max() > 0


def test_the_cross_entropy_is_that_of_the_decoded_probabilities(x):
    model = Autoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(7,), error="cross_entropy")
    p = model.reconstruct(x)
    by_hand = -(x * p.log() + (1 - x) * (1 - p).log()).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(model.loss(x).total, by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_something_about_digits(kind):
    images = data.load("digits").train[:512]
    model = KINDS[kind]((1, 8, 8), 32, (64,))
    history = fit(model, images, epochs=10, batch_size=64, lr=3e-3, progress=False).train
    assert history["total"][-1] < 0.8 * history["total"][0]


@pytest.mark.parametrize(
    ("builder", "shape"),
    [("mlp", (3, 8, 9)), ("mlp", (2,)), ("conv", (3, 8, 9)), ("conv1d", (2, 13)), ("residual", (1, 8, 9))],
)
@pytest.mark.parametrize(
    "make",
    [
        (Autoencoder, {}),
        (SparseAutoencoder, {"penalty": "top_k", "k": 1}),
        (DenoisingAutoencoder, {"sigma": 0.1}),
        (ContractiveAutoencoder, {}),
    ],
)
def test_every_class_has_every_builder(builder, shape, make):
    kind, options = make
    model = getattr(kind, builder)(shape, 2, **options)
    x = torch.rand(4, *shape)
    assert type(model) is kind
    assert model.encode(x).shape == (4, 2)
    assert model.decode(torch.randn(4, 2)).shape == (4, *shape)
    assert model.reconstruct(x).shape == x.shape
    assert not model.reconstruct(x).requires_grad
    assert model.loss(x).total.shape == ()
    model.validate(x)


def test_the_deep_autoencoder_of_hinton_and_salakhutdinov():
    model = Autoencoder.mlp((1, 28, 28), 30, hidden=(1000, 500, 250), activation=nn.Sigmoid)
    sizes = [
        [(layer.in_features, layer.out_features) for layer in net.net if isinstance(layer, nn.Linear)]
        for net in (model.encoder, model.decoder)
    ]
    assert sizes[0] == [(784, 1000), (1000, 500), (500, 250), (250, 30)]
    assert sizes[1] == [(30, 250), (250, 500), (500, 1000), (1000, 784)]
    assert sum(isinstance(layer, nn.Sigmoid) for layer in model.encoder.net) == 3
    assert model.encode(torch.rand(2, 1, 28, 28)).shape == (2, 30)


@pytest.mark.parametrize("code", ["linear", "relu", "sigmoid"])
@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_code_and_output_go_through_their_functions(x, code, output):
    model = Autoencoder.mlp(IMAGE_SHAPE, CODE_DIM, hidden=(7,), code=code, output=output)
    functions = {"linear": lambda v: v, "relu": torch.relu, "sigmoid": torch.sigmoid}
    assert torch.equal(model.encode(x), functions[code](model.encoder(x)))
    codes = 10 * torch.randn(4, CODE_DIM)
    assert torch.equal(model.decode(codes), functions[output](model.decoder(codes)))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_stay_in_single_precision_under_autocast(x, kind):
    model = KINDS[kind](IMAGE_SHAPE, CODE_DIM, (7,))
    assert_single_precision_under_autocast(model, x).total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# --------------------------------------------------------------------------------- what is refused


def plain(**options):
    return Autoencoder.mlp(IMAGE_SHAPE, CODE_DIM, (7,), **options)


def sparse(**options):
    return SparseAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, (7,), **options)


GAUSSIAN_ENCODER = (MLPEncoder(IMAGE_SHAPE, CODE_DIM), MLPDecoder(CODE_DIM, IMAGE_SHAPE))
OTHER_SHAPE = (MLPEncoder(IMAGE_SHAPE, CODE_DIM, gaussian=False), MLPDecoder(CODE_DIM, (20,)))
SHAPES = {"image_shape": IMAGE_SHAPE, "code_dim": CODE_DIM}
IMAGES = torch.zeros(2, *IMAGE_SHAPE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plain(output="tanh"), ValueError, r"^output is 'tanh' but must be one of \('sigmoid', 'lin"),
        (lambda: plain(error="mse"), ValueError, r"^error is 'mse' but must be one of \('squared', 'cross_"),
        (lambda: plain(code="tanh"), ValueError, r"^code is 'tanh' but must be one of \('linear', 'relu',"),
        (lambda: plain(error="cross_entropy", output="linear"), ValueError, r"needs output='sigmoid'"),
        (lambda: plain(corruption=0.3), TypeError, r"^corruption is 0\.3 but needs a function"),
        (lambda: plain(latent_dim=3), TypeError, r"latent_dim"),
        (
            lambda: plain(corruption=lambda x: x[:1]).loss(IMAGES),
            ValueError,
            r"^the corrupted x has shape \(1",
        ),
        (
            lambda: plain().loss(IMAGES.mT),
            ValueError,
            r"^x has shape \(2, 1, 5, 4\) but this model needs \(bat",
        ),
        (lambda: plain().encode([0.0]), TypeError, r"^x must be a torch\.Tensor, not list"),
        (lambda: plain().decode(torch.zeros(2, 4)), ValueError, r"^codes has shape \(2, 4\) .* \(batch, 3\)"),
        (lambda: plain().validate(255 + IMAGES), ValueError, r"needs \[0, 1\]\. Divide 8-bit images"),
        (lambda: plain().validate(math.nan + IMAGES), ValueError, r"^images holds 40 values that are NaN"),
        (lambda: plain().validate(IMAGES.int()), TypeError, r"^images has dtype torch\.int32"),
        (lambda: plain().validate(IMAGES[0]), ValueError, r"^images has shape \(1, 4, 5\) but this model"),
        (
            lambda: Autoencoder(*GAUSSIAN_ENCODER, **SHAPES).encode(IMAGES),
            TypeError,
            r"^the encoder's code is a tuple .* make the encoder with gaussian=False",
        ),
        (
            lambda: Autoencoder(*OTHER_SHAPE, **SHAPES).loss(IMAGES),
            ValueError,
            r"^the decoder's output has shape \(2, 20\)",
        ),
        (
            lambda: sparse(penalty="l0"),
            ValueError,
            r"^penalty is 'l0' but must be one of \('l1', 'kl', 'top_k",
        ),
        (lambda: sparse(weight=-1), ValueError, r"^weight is -1 but must be at least 0"),
        (lambda: sparse(weight=math.nan), ValueError, r"^weight is nan but must be at least 0"),
        (lambda: sparse(penalty="kl", rho=1.0), ValueError, r"^rho is 1\.0 but must lie between 0 and 1"),
        (lambda: sparse(penalty="kl", code="relu"), ValueError, r"code is 'relu', not 'sigmoid'"),
        (lambda: sparse(penalty="top_k"), ValueError, r"^k is None with penalty='top_k'"),
        (lambda: sparse(penalty="l1", k=2), ValueError, r"^k is 2 with penalty='l1'"),
        (lambda: sparse(penalty="top_k", k=4), ValueError, r"^k is 4 but must be between 1 and 3"),
        (lambda: kl_sparsity(IMAGES.flatten(1), 0), ValueError, r"^rho is 0 but must lie between 0 and 1"),
        (
            lambda: kl_sparsity(IMAGES, 0.1),
            ValueError,
            r"^codes has shape \(2, 1, 4, 5\) but needs \(batch, k\)",
        ),
        (lambda: l1_sparsity(torch.ones(3)), ValueError, r"^codes has shape \(3,\) but needs \(batch, k\)"),
        (lambda: top_k(torch.ones(2, 3), 0), ValueError, r"^k is 0 but must be between 1 and 3"),
        (
            lambda: contractive_penalty(nn.Identity(), torch.ones(2, 3).int()),
            TypeError,
            r"^x has dtype torch\.",
        ),
        (
            lambda: DenoisingAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM),
            ValueError,
            r"^A denoising autoencoder needs a corruption, or sigma",
        ),
        (
            lambda: DenoisingAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, sigma=0.0),
            ValueError,
            r"^sigma is 0\.0 but must be positive",
        ),
        (
            lambda: DenoisingAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, corruption=mask).score(IMAGES),
            ValueError,
            r"^score needs Gaussian noise: make the model with sigma",
        ),
        (
            lambda: ContractiveAutoencoder.mlp(IMAGE_SHAPE, CODE_DIM, weight=-0.1),
            ValueError,
            r"^weight is -0\.1 but must be at least 0",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_linear_output_takes_any_finite_values():
    plain(output="linear").validate(-300 + IMAGES)
    with pytest.raises(ValueError, match="NaN"):
        plain(output="linear").validate(math.nan + IMAGES)
