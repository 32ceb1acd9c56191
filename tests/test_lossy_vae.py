"""The lossy VAE: who sees which pixel, what a window leaves for z, and drawing pixel by pixel."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from support.losses import assert_gradient_is_derivative, assert_single_precision_under_autocast
from torch import nn

from aecourse import data, evaluate, vae
from aecourse.bounds import linear_annealing
from aecourse.likelihoods import gaussian_kl
from aecourse.train import fit, mean_loss
from aecourse.zoo.lossy_vae import AutoregressiveDecoder, LossyVAE, MaskedConv2d, raster_mask, receptive_field

# Kernel size, masked layers, pointwise layers.
DECODERS = [(3, 1, 1), (3, 2, 0), (5, 1, 2), (3, 3, 1), (1, 1, 1)]
SHAPES = {"kernel_size": 3, "features": 4, "planes": 2, "hidden": (5,)}


def small_model(image_shape=(1, 2, 3), latent_dim=2, seed=0, spread=1.0, **options) -> LossyVAE:
    """In float64, and with weights so large that it is far from independent pixels."""
    torch.manual_seed(seed)
    model = LossyVAE.build("mlp", image_shape, latent_dim, progress=False, **(SHAPES | options)).double()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.copy_(spread * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return model.eval()


def decoder(kernel_size, masked_layers, pointwise_layers, image_shape=(1, 5, 6), **options):
    """Wide enough for a way through its rectifiers to every pixel that it can see."""
    sizes = {"kernel_size": kernel_size, "masked_layers": masked_layers, "pointwise_layers": pointwise_layers}
    return small_model(image_shape, features=16, activation=nn.Tanh, **sizes, **options).decoder


def all_images(image_shape, levels=2) -> torch.Tensor:
    values = torch.tensor([*product(range(levels), repeat=math.prod(image_shape))], dtype=torch.float64)
    return values.view(-1, *image_shape) / (levels - 1)


def gauss_hermite(nodes=24, dimensions=2):
    """Points and logarithms of weights of the expectation under N(0, I)."""
    points, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[points] * dimensions)
    return grid, torch.cartesian_prod(*[(weights / weights.sum()).log()] * dimensions).sum(dim=1)


# ---------------------------------------------------------------------- who sees which pixel


def test_the_mask_is_what_comes_earlier_in_reading_order():
    assert raster_mask(3, centre=False).tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert raster_mask(3, centre=True).tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert raster_mask(5, centre=True).tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0], [0] * 5, [0] * 5]
    assert (raster_mask(1, centre=False).tolist(), raster_mask(1, centre=True).tolist()) == ([[0]], [[1]])


def seen_by_offsets(kernel_size, masked_layers, height, width) -> torch.Tensor:
    """The same as `receptive_field`, by adding up steps from pixel to pixel one after the other."""
    half = kernel_size // 2
    steps = {(i, j) for i in range(-half, 1) for j in range(-half, half + 1) if i < 0 or j < 0}
    pixels = [*product(range(height), range(width))]
    seen = torch.zeros(len(pixels), len(pixels), dtype=torch.bool)
    for row, pixel in enumerate(pixels):
        frontier = {pixel}  # of the last layer, then of the one before, ...
        for layer in range(masked_layers):
            first = layer == masked_layers - 1
            moves = steps if first else steps | {(0, 0)}
            frontier = {(i + a, j + b) for i, j in frontier for a, b in moves}
            frontier &= {*pixels}
        for other in frontier:
            seen[row, pixels.index(other)] = True
    return seen


@pytest.mark.parametrize("sizes", DECODERS)
def test_the_receptive_field_is_the_window_and_no_more(sizes):
    field = receptive_field(decoder(*sizes), (5, 6))
    assert field.shape == (30, 30)
    assert torch.equal(field, seen_by_offsets(*sizes[:2], 5, 6))
    assert not field.triu().any()


def test_published_numbers_of_pixels_seen():
    assert receptive_field(decoder(5, 1, 2), (28, 28)).sum(dim=1).max() == 12
    assert receptive_field(decoder(3, 2, 0), (3, 3)).sum() == 34  # of 36: the blind spot
    # Of a row of pixels, what stands to the left.
    for window in (0, 1, 2, 4, 11):
        row = receptive_field(MaskedConv2d(1, 1, 2 * window + 1, centre=False), (1, 12))
        assert row.sum(dim=1).tolist() == [min(i, window) for i in range(12)]


@pytest.mark.parametrize("sizes", DECODERS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_jacobian_has_exactly_the_pattern_of_the_receptive_field(sizes, outputs):
    """All channels of the pixels seen, none of any other."""
    network = decoder(*sizes, image_shape=(2, 5, 6), likelihood="categorical", levels=outputs + 1)
    depends = torch.zeros(30, 2, 30, dtype=torch.bool)
    reached = torch.zeros(30, dtype=torch.bool)
    for _ in range(8):
        x, z = torch.randn(1, 2, 5, 6, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
        by_x, by_z = torch.autograd.functional.jacobian(network, (x, z), vectorize=True)
        # The logits of any class of either channel, by both channels of each pixel.
        by_x = by_x.reshape(-1, 30, 2, 30)
        depends |= (by_x != 0).any(dim=0)
        reached |= (by_z != 0).reshape(-1, 30, 2).any(dim=0).all(dim=1)
    field = receptive_field(network, (5, 6))
    for channel in range(2):
        assert torch.equal(depends[:, channel], field)
    assert reached.all()  # z, everywhere


@pytest.mark.parametrize("sizes", DECODERS)
def test_probabilities_of_all_images_sum_to_one(sizes):
    names = ("kernel_size", "masked_layers", "pointwise_layers")
    model = small_model((1, 3, 3), spread=3.0, **dict(zip(names, sizes)))
    images = all_images((1, 3, 3))
    for z in torch.randn(2, 1, 2, dtype=torch.float64):
        log_p = model.log_likelihood(images, z.expand(len(images), 2))
        assert abs(log_p.exp().sum() - 1) < 1e-12
        assert log_p.std() > 1  # far from uniform


@pytest.mark.parametrize(
    ("image_shape", "options", "levels"),
    [((2, 2, 2), {}, 2), ((1, 2, 3), {"likelihood": "categorical", "levels": 3}, 3)],
)
def test_they_do_with_several_channels_and_levels(image_shape, options, levels):
    model = small_model(image_shape, spread=3.0, **options)
    images = all_images(image_shape, levels)
    z = torch.randn(1, 2, dtype=torch.float64).expand(len(images), 2)
    assert abs(model.log_likelihood(images, z).exp().sum() - 1) < 1e-12


def test_pixels_that_a_categorical_likelihood_rounds_are_seen_rounded():
    model = small_model((1, 3, 3), likelihood="categorical", levels=3)
    images = all_images((1, 3, 3), 2) / 2 + 0.25  # 0.25 and 0.75
    images = images + 0.2 * torch.rand_like(images) - 0.1
    z = torch.randn(len(images), 2, dtype=torch.float64)
    torch.testing.assert_close(
        model.log_likelihood(images, z), model.log_likelihood((2 * images).round() / 2, z)
    )


# --------------------------------------------------------------------------------- the bound


def test_log_p_of_every_image_is_known_and_sums_to_one():
    """On a grid of z; with the exact posterior the bound is log p(x)."""
    model, images = small_model(), all_images((1, 2, 3))
    grid, log_weights = gauss_hermite()
    z = grid.unsqueeze(1).expand(-1, len(images), -1)
    log_joint = model.log_joint(images, z) - model.log_prior(z) + log_weights.unsqueeze(1)
    log_p = log_joint.logsumexp(dim=0)
    assert abs(log_p.exp().sum() - 1) < 1e-12
    posterior = (log_joint - log_p).exp()
    bound = (posterior * (log_joint - (log_joint - log_p))).sum(dim=0)
    torch.testing.assert_close(bound, log_p, rtol=0, atol=1e-12)
    # The estimators find the same.
    torch.manual_seed(1)
    value, error = evaluate.importance_sampling(model, images[::9], 4000)
    assert ((value - log_p[::9]).abs() / error).max() < 4
    assert error.max() < 0.05


def test_the_loss_at_a_wrong_q_is_off_by_its_divergence_from_the_posterior():
    model, images = small_model(samples=2000), all_images((1, 2, 3))[[5, 40, 63]]
    grid, log_weights = gauss_hermite()
    mean, logvar = model.encode(images)
    z = mean + torch.exp(logvar / 2) * grid.unsqueeze(1)  # q's own grid
    expected = (log_weights.exp().unsqueeze(1) * model.log_likelihood(images, z)).sum(dim=0)
    loss = model.loss(images)
    assert abs(loss.parts["reconstruction"] + expected.mean()) < 0.02
    torch.testing.assert_close(loss.parts["kl"], gaussian_kl(mean, logvar).mean())
    torch.testing.assert_close(loss.total, loss.parts["reconstruction"] + loss.parts["kl"])
    assert abs(model.elbo(images, samples=2000).mean() + loss.total) < 0.02


@pytest.mark.parametrize("samples", [1, 3])
def test_a_batch_has_the_mean_of_its_examples(samples, monkeypatch):
    """Of the sums over pixels, each given the true earlier ones: by hand, pixel by pixel."""
    model, x = small_model(samples=samples, beta=0.7), all_images((1, 2, 3))[[5, 40, 63, 22]]
    noise = torch.randn(samples, 4, 2, dtype=torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(vae, "reparameterize", lambda m, v, n: m + torch.exp(v / 2) * noise[:, : len(m)])
        several = model.loss(x).total
        first = model.loss(x[:1]).total
    losses = []
    for n in range(4):
        mean, logvar = model.encode(x[n : n + 1])
        losses.append(0.7 * gaussian_kl(mean, logvar))
        for draw in noise[:, n : n + 1]:
            logits = model.decoder(x[n : n + 1], mean + torch.exp(logvar / 2) * draw).flatten()
            for logit, pixel in zip(logits, x[n].flatten()):
                log_p = torch.sigmoid(logit if pixel else -logit).log()
                losses[-1] = losses[-1] - log_p / samples
    torch.testing.assert_close(several, torch.stack(losses).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(first, losses[0].squeeze(), rtol=0, atol=1e-12)


def test_the_gradient_of_the_loss_is_its_derivative():
    model = small_model((1, 2, 2), activation=nn.Tanh, features=2, planes=1, hidden=(3,))
    x = all_images((1, 2, 2))[[3, 9, 14]]
    assert_gradient_is_derivative(model, x)


def test_bounds_stay_in_single_precision_under_autocast():
    model, x = small_model().float(), all_images((1, 2, 3)).float()
    assert_single_precision_under_autocast(model, x)


# ---------------------------------------------------------------------------- what is left for z


class Textures:
    """Strings of 12 pixels from one of two Markov chains, both equally likely; all of it by enumeration."""

    strings = all_images((1, 1, 12))
    chains = torch.tensor([[0.2, 0.8], [0.8, 0.2]], dtype=torch.float64)  # P(1|0) and P(1|1) of each

    def __init__(self):
        bits = self.strings.flatten(1).long()
        one = self.chains[:, bits[:, :-1]]  # (class, string, place): that the next pixel is 1
        of_each = torch.where(bits[:, 1:] == 1, one, 1 - one).prod(dim=2) / 2  # p(x|class)
        self.of_class = of_each.view(2, *[2] * 12)
        self.mixture = self.of_class.mean(dim=0)

    @staticmethod
    def entropy(p, places):
        """Of the pixels at these places, nats."""
        others = [i for i in range(12) if i not in places]
        return torch.special.entr(p.sum(dim=others) if others else p).sum()

    def best_reconstruction(self, p, field):
        """The sum over pixels of the entropy given the pixels that a decoder sees."""
        seen = [row.nonzero().flatten().tolist() for row in field]
        return sum(self.entropy(p, [*s, i]) - self.entropy(p, s) for i, s in enumerate(seen))


@pytest.fixture(scope="module")
def textures() -> Textures:
    return Textures()


def test_the_textures_are_what_the_table_says(textures):
    assert abs(textures.mixture.sum() - 1) < 1e-12
    assert abs(textures.entropy(textures.mixture, range(12)) - 6.8556) < 5e-5


@pytest.mark.parametrize(
    ("window", "without_z", "with_z", "information"),
    [
        (0, 8.3178, 8.3178, 0.6580),
        (1, 8.3178, 6.1976, 0.6580),
        (2, 7.6550, 6.1976, 0.6580),
        (4, 7.1470, 6.1976, 0.6580),
        (11, 6.8556, 6.1976, 0.6580),
    ],
)
def test_what_is_left_for_z_exactly(textures, window, without_z, with_z, information):
    """The whole paper in one table: z = the class costs what it knows, and buys what the window hides.

    With all pixels in sight it is a tie. With none, knowing the class buys nothing either.
    """
    field = receptive_field(MaskedConv2d(1, 1, 2 * window + 1, centre=False), (1, 12))
    best = textures.best_reconstruction(textures.mixture, field)
    given = sum(textures.best_reconstruction(p, field) for p in textures.of_class) / 2
    entropy = textures.entropy(textures.mixture, range(12))
    kl = entropy - sum(textures.entropy(p, range(12)) for p in textures.of_class) / 2
    for value, stated in ((best, without_z), (given, with_z), (kl, information)):
        assert abs(value - stated) < 5e-5
    if window == 0:
        assert given + kl > best + 0.6  # z does not pay
    elif window < 11:
        assert given + kl < best - 0.29  # it does,
        assert abs(given + kl - entropy) < 1e-12  # and the bound is tight
    else:
        assert abs(given + kl - best) < 1e-12


def test_training_finds_what_is_left_for_z(textures):
    """Two VAEs that differ in their windows alone. Where the neighbour alone is in sight, z says more than
    the class; where all pixels are, the KL goes down, though the warm-up had let z in."""
    p = textures.mixture.flatten()
    found = {}
    for kernel_size, masked_layers in ((3, 1), (9, 3)):
        torch.manual_seed(0)
        images = textures.strings[torch.multinomial(p, 3000, replacement=True)].float()
        window = {"kernel_size": kernel_size, "masked_layers": masked_layers}
        model = LossyVAE.build("mlp", (1, 1, 12), 1, hidden=(32,), features=8, **window, progress=False)
        assert receptive_field(model.decoder, (1, 12)).sum(dim=1)[-1] == (1 if masked_layers == 1 else 11)
        loop = {"batch_size": 100, "lr": 0.01, "beta": lambda step: linear_annealing(step, 60, 120)}
        fit(model, images, epochs=10, **loop, device="cpu", progress=False)
        strings = textures.strings.float()
        kl = (p * gaussian_kl(*model.encode(strings))).sum()
        bound = (p * model.elbo(strings, samples=2)).sum()
        assert bound < -6.85  # the entropy: nothing is better
        found[masked_layers] = kl, bound
    (kl, bound), (kl_of_wide, bound_of_wide) = found[1], found[3]
    assert bound > -7.8  # without z, nothing is better than -8.3178
    assert kl > 0.658
    assert bound_of_wide > -7.3  # with two neighbours in sight, and no z, at best -7.655
    assert kl_of_wide < kl / 2


# ------------------------------------------------------------------------------ drawing images


def chi_square_is_plausible(counts, probabilities) -> bool:
    """Within five standard deviations of what it is on average, its number of degrees of freedom."""
    expected = counts.sum() * probabilities
    rare = expected < 10  # these count as one
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    assert len(counts) > 20
    freedom = len(counts) - 1
    chi_square = ((counts - expected).square() / expected.clamp(min=1)).sum()
    return abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def counted(images, levels=2):
    digits = (images.flatten(1) * (levels - 1)).round().long()
    index = (digits * levels ** torch.arange(digits.shape[1] - 1, -1, -1)).sum(dim=1)
    return torch.bincount(index, minlength=levels ** digits.shape[1]).double()


@pytest.mark.parametrize(
    ("image_shape", "levels", "options"),
    [
        ((1, 2, 3), 2, {}),
        ((2, 1, 3), 2, {}),
        ((1, 2, 2), 3, {"likelihood": "categorical", "levels": 3}),
    ],
)
def test_images_are_drawn_with_their_probabilities(image_shape, levels, options):
    model, images = small_model(image_shape, spread=0.8, **options), all_images(image_shape, levels)
    z = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    p = model.log_likelihood(images, z.expand(len(images), 2)).exp()
    torch.manual_seed(5)
    assert chi_square_is_plausible(counted(model.decode(z.expand(30_000, 2)), levels), p)
    # Of codes from the prior, and not from a wider one.
    grid, log_weights = gauss_hermite(16)
    log_p = model.log_likelihood(images, grid.unsqueeze(1).expand(-1, len(images), -1))
    p = (log_p + log_weights.unsqueeze(1)).logsumexp(dim=0).exp()
    torch.manual_seed(5)
    assert chi_square_is_plausible(counted(model.sample(30_000), levels), p)
    assert not chi_square_is_plausible(counted(model.sample(30_000, temperature=9.0), levels), p)


@pytest.mark.parametrize("sizes", DECODERS)
@pytest.mark.parametrize("options", [{}, {"likelihood": "categorical", "levels": 3}])
def test_drawing_uses_the_logits_that_the_likelihood_uses(sizes, options, monkeypatch):
    """Though it computes them from the window alone, and before later pixels are known."""
    names = ("kernel_size", "masked_layers", "pointwise_layers")
    model = small_model((2, 6, 7), **dict(zip(names, sizes)), **options)
    used, draw = [], model._draw
    monkeypatch.setattr(model, "_draw", lambda logits: used.append(logits) or draw(logits))
    z = torch.randn(3, 2, dtype=torch.float64)
    images = model.decode(z)
    logits = torch.stack(used, dim=-1).unflatten(-1, (6, 7))
    torch.testing.assert_close(logits, model.decoder_output(images, z), rtol=0, atol=1e-12)
    assert images.std() > 0.1
    model.validate(images)


def test_a_reconstruction_knows_x_through_z_alone():
    model = small_model((1, 4, 4), spread=3.0)

    class Blind(nn.Module):
        def forward(self, x):
            return 0.3 * x.new_ones(len(x), 2), x.new_zeros(len(x), 2)

    model.encoder = Blind()
    x, other = (torch.rand(2, 50, 1, 4, 4, dtype=torch.float64) > 0.5).double()
    torch.manual_seed(0)
    first = model.reconstruct(x)
    torch.manual_seed(0)
    assert torch.equal(model.reconstruct(other), first)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    # What the likelihood looks at is another thing: the true earlier pixels are in it.
    z = model.encode(x)[0]
    means, others = model.next_pixel_means(x, z), model.next_pixel_means(other, z)
    assert torch.equal(means, model.decoder_output(x, z).sigmoid())
    assert torch.equal(means[..., 0, 0], others[..., 0, 0])
    assert (means != others).flatten(1).any(dim=1).all()


def test_a_bar_counts_the_pixels(capsys):
    model, z = small_model(), torch.zeros(1, 2, dtype=torch.float64)
    model.decode(z)
    assert capsys.readouterr().err == ""
    model.progress = True
    model.decode(z)
    assert "/6" in capsys.readouterr().err


def test_all_that_a_vae_can_do():
    model, x = small_model((1, 4, 5), likelihood="categorical", levels=3), torch.rand(6, 1, 4, 5).double()
    assert model.log_weights(x, 3).shape == (3, 6)
    assert model.interpolate(x, x.flip(0), 3).shape == (3, *x.shape)
    assert model.traverse(model.encode(x)[0], 1, [-1.0, 1.0]).shape == (2, *x.shape)
    assert model.sample(4).shape == (4, 1, 4, 5)
    for kind in ("conv", "residual"):
        other = LossyVAE.build(kind, (1, 8, 9), 2, channels=(3,), planes=1, progress=False)
        assert other.sample(2).shape == (2, 1, 8, 9)
        assert other.loss(torch.rand(2, 1, 8, 9)).total > 0


# ------------------------------------------------------------------------------------ training


def test_training_on_digits():
    """A window explains black and white digits better than none, and needs less of z."""
    digits, tested = data.load("digits"), {}
    for kernel_size in (1, 5):
        torch.manual_seed(0)
        sizes = {"hidden": (64,), "kernel_size": kernel_size, "features": 8, "planes": 2}
        model = LossyVAE.build("mlp", (1, 8, 8), 6, **sizes, progress=False)
        loop = {"epochs": 12, "batch_size": 64, "lr": 5e-3, "device": "cpu", "progress": False}
        fit(model, digits.train.round(), **loop)
        tested[kernel_size] = mean_loss(model, digits.test.round())
    assert tested[5]["total"] < 19.5  # 19.0 measured; 20.0 without a window
    assert tested[5]["kl"] < 3 < tested[1]["kl"]  # 2.3 and 4.0


# ---------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, r"^kernel_size is 4 but must be odd"),
        ({"kernel_size": 0}, ValueError, r"^kernel_size is 0 but must be at least 1"),
        ({"kernel_size": 3.0}, TypeError, r"^kernel_size is 3\.0 but must be a whole number"),
        ({"masked_layers": 0}, ValueError, r"^masked_layers is 0 but must be at least 1"),
        ({"pointwise_layers": -1}, ValueError, r"^pointwise_layers is -1 but must be at least 0"),
        ({"features": 0}, ValueError, r"^features is 0 but must be at least 1"),
        ({"planes": 0}, ValueError, r"planes|outputs"),
        ({"beta": -1}, ValueError, r"^beta is -1 but must be at least 0"),
        ({"likelihood": "gaussian"}, ValueError, r"^likelihood is Gaussian but must be Bernoulli or Cat"),
        ({"likelihood": "continuous_bernoulli"}, ValueError, r"^likelihood is ContinuousBernoulli but must"),
        ({"betta": 2}, TypeError, "betta"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        LossyVAE.build("mlp", (1, 4, 4), 2, **options)


def test_bad_inputs_are_refused():
    model, z = small_model(), torch.zeros(4, 2, dtype=torch.float64)
    x = all_images((1, 2, 3))[:4]
    for call, error, message in (
        (lambda: LossyVAE.build("conv1d", (1, 8), 2), ValueError, r"^image_shape is \(1, 8\) but needs \(ch"),
        (
            lambda: model.log_likelihood(x[..., :2], z),
            ValueError,
            r"^x has shape \(4, 1, 2, 2\) but this mod",
        ),
        (lambda: model.log_likelihood(x, z[:, :1]), ValueError, r"^z has shape \(4, 1\) but this model"),
        (lambda: model.decode(z[:, :1]), ValueError, r"^z has shape \(4, 1\) but this model needs"),
        (lambda: model.decode(z.long()), TypeError, r"^z has dtype torch\.int64"),
        (lambda: model.next_pixel_means(x[0], z), ValueError, r"^x has shape \(1, 2, 3\)"),
        (lambda: model.sample(0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda: model.sample(2, temperature=-1), ValueError, r"^temperature is -1"),
        (lambda: model.validate(2 * x), ValueError, r"^images has values from 0 to 2"),
        (lambda: model.validate(x * math.nan), ValueError, r"^images holds 24 values that are NaN"),
        (lambda: receptive_field(nn.Conv2d(1, 1, 3), (4, 4)), ValueError, r"^decoder is a Conv2d without"),
        (lambda: receptive_field(model.decoder, (1, 4, 4)), ValueError, r"^shape is \(1, 4, 4\) but needs"),
        (
            lambda: AutoregressiveDecoder(nn.Linear(2, 9), (9,)),
            ValueError,
            r"^image_shape is \(9,\) but needs \(channels, height, width\)",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
