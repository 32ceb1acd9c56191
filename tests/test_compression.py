"""The coder is exact, and the length of what it writes is the bound."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aecourse import data
from aecourse.compression import ANS, BitsBack, integer_cdf
from aecourse.iwae import IWAE
from aecourse.train import fit
from aecourse.vae import VAE
from aecourse.zoo.conditional import ConditionalVAE, StructuredOutputVAE

SHAPE = (1, 8, 8)


# ------------------------------------------------------------------------------- the stack


@st.composite
def shares(draw):
    """Cumulative shares of a few symbols, from rare to certain, and one of the symbols."""
    precision = draw(st.integers(1, 32))
    inner = draw(st.sets(st.integers(1, 2**precision - 1), max_size=5))
    cumulative = [0, *sorted(inner), 2**precision]
    return cumulative, draw(st.integers(0, len(cumulative) - 2))


@given(st.lists(shares(), max_size=12), st.integers(0, 99))
def test_push_and_pop_undo_each_other_in_either_order(steps, seed):
    message = ANS.random(600, seed)
    before = message.copy()
    for cumulative, symbol in steps:
        message.push(symbol, cumulative)
        assert 2**32 <= message.head < 2**64
        assert all(0 <= word < 2**32 for word in message.words)
    assert [message.pop(cumulative) for cumulative, _ in reversed(steps)] == [s for _, s in reversed(steps)]
    assert message == before
    popped = [message.pop(cumulative) for cumulative, _ in steps]
    for (cumulative, _), symbol in reversed(list(zip(steps, popped))):
        message.push(symbol, cumulative)
    assert message == before


@pytest.mark.parametrize("head", [2**32, 2**32 + 1, 2**64 - 1, 2**63, 2**56 - 1, 2**56])
@pytest.mark.parametrize("share", [1, 2, 255, 256])
def test_nothing_overflows_at_the_ends_of_the_head(head, share):
    message = ANS.random(64)
    message.head = head
    before, cumulative = message.copy(), [0, share, 256] if share < 256 else [0, 256]
    message.push(0, cumulative)
    assert 2**32 <= message.head < 2**64
    assert message.pop(cumulative) == 0
    assert message == before


def test_a_symbol_of_probability_p_takes_its_bits():
    """20,000 symbols; the head's rounding costs less than a bit in all."""
    cumulative = [0, 1, 60, 256, 1024]
    probabilities = [1 / 1024, 59 / 1024, 196 / 1024, 768 / 1024]
    symbols = random.Random(0).choices(range(4), probabilities, k=20_000)
    message = ANS()
    assert message.bits == 0
    for symbol in symbols:
        message.push(symbol, cumulative)
    assert message.bits == pytest.approx(-sum(math.log2(probabilities[s]) for s in symbols), abs=1)
    # The bytes hold the whole head, of 64 bits, of which the first 32 count for nothing.
    assert 8 * len(message.to_bytes()) - message.bits < 64


def test_random_bits_pop_as_symbols_of_the_distribution():
    message, cumulative = ANS.random(40_000, seed=3), [0, 100, 256, 1024]
    popped = torch.tensor([message.pop(cumulative) for _ in range(20_000)])
    expected = torch.tensor([100, 156, 768]) / 1024
    torch.testing.assert_close(popped.bincount() / 20_000, expected, atol=0.012, rtol=0)


def test_a_message_becomes_bytes_and_comes_back():
    message = ANS()
    message.head, message.words = 0x0102030405060708, [0xAA, 0xDEADBEEF]
    written = bytes([8, 7, 6, 5, 4, 3, 2, 1, 0xEF, 0xBE, 0xAD, 0xDE, 0xAA, 0, 0, 0])
    assert message.to_bytes() == written
    assert ANS.from_bytes(written) == message
    for bits in (1, 33, 500):
        message = ANS.random(bits, seed=bits)
        assert bits <= message.bits < bits + 33
        assert ANS.from_bytes(message.to_bytes()) == message
    assert ANS.from_bytes(ANS().to_bytes()) == ANS()
    assert ANS.random(64, 0) != ANS.random(64, 1)
    assert ANS.random(64) != 64


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: ANS().pop([0, 1, 4]), ValueError, r"come to its end.*ANS\.random\(bits\)"),
        (lambda: ANS().push(2, [0, 1, 4]), ValueError, r"^symbol is 2 but must be between 0 and 1"),
        (lambda: ANS().push(-1, [0, 1, 4]), ValueError, r"^symbol is -1 but must be between 0 and 1"),
        (lambda: ANS().push(1, [0, 2, 2, 4]), ValueError, r"^symbol is 1, whose share is 0"),
        (
            lambda: ANS().push(0, [0, 1, 3]),
            ValueError,
            r"^cumulative ends at 3 but must end at a power of two",
        ),
        (lambda: ANS().push(0, [0]), ValueError, r"^cumulative ends at 0 but must end at a power of two"),
        (lambda: ANS.random(64).pop([2, 4]), ValueError, r"^cumulative starts at 2 but must start at 0"),
        (
            lambda: ANS().push(1, integer_cdf(torch.tensor([0.2, 0.5]), 8)),
            TypeError,
            r"^cumulative is of type Tensor but must hold .* \.tolist\(\)",
        ),
        (lambda: ANS().pop(range(2**33 + 1)), ValueError, r"^cumulative ends at 8589934592 but"),
        (lambda: ANS.random(0), ValueError, r"^bits is 0 but must be at least 1"),
        (lambda: ANS.from_bytes("no"), TypeError, r"^content must be bytes, not str"),
        (lambda: ANS.from_bytes(b"123456789"), ValueError, r"^content has 9 bytes but needs 8, and 4 more"),
        (lambda: ANS.from_bytes(bytes(8)), ValueError, r"^content begins with 0 but no message does"),
    ],
)
def test_what_the_stack_refuses(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_a_message_that_ends_is_left_as_it_was():
    message = ANS.random(20)
    while True:
        before = message.copy()
        try:
            message.pop(range(2**20 + 1))
        except ValueError:
            break
    assert message == before


# ------------------------------------------------------------------------- whole probabilities


def test_shares_by_hand():
    # 16 shares for three symbols: one for each, and the other 13 by probability, rounded at the borders.
    cdf = torch.tensor([[0.25, 0.75], [0.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[0, 4, 12, 16], [0, 1, 2, 16], [0, 14, 15, 16]])
    assert integer_cdf(cdf, 4).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_symbol_has_a_share_and_they_are_right(dtype):
    probabilities = (8 * torch.randn(20, 50, dtype=dtype)).softmax(dim=1)
    cumulative = integer_cdf(probabilities.cumsum(dim=1)[:, :-1], 24)
    share = cumulative.diff(dim=1)
    assert share.min() >= 1
    assert (cumulative[:, 0] == 0).all()
    assert (cumulative[:, -1] == 2**24).all()
    torch.testing.assert_close(share.double() / 2**24, probabilities.double(), atol=1e-5, rtol=0)


def test_a_distribution_function_that_dips_by_rounding_still_increases():
    half = 0.5 / (2**20 - 3)
    cumulative = integer_cdf(torch.tensor([[1 + 1e-9, 1 - 1e-9]], dtype=torch.float64) * 7 * half, 20)
    assert cumulative.tolist() == [[0, 5, 6, 2**20]]


@pytest.mark.parametrize(
    ("cdf", "precision", "words"),
    [
        (torch.rand(3), 33, r"^precision is 33 but must be at most 32, and 2\^precision over 4"),
        (torch.rand(3), 2, r"^precision is 2 but must be at most 32, and 2\^precision over 4"),
        (torch.tensor([0.1, math.nan]), 8, r"^cdf holds 1 values that are NaN"),
        ([0.1, 0.5], 8, r"^cdf must be a torch\.Tensor, not list"),
    ],
)
def test_what_has_no_shares(cdf, precision, words):
    with pytest.raises((TypeError, ValueError), match=words):
        integer_cdf(cdf, precision)


# ------------------------------------------------------------------------------- bits back


@pytest.fixture(scope="module")
def trained():
    """A VAE of binarised digits with 6 latent variables, and 250 test images."""
    torch.manual_seed(0)
    digits = data.load("digits")
    vae = VAE.mlp(SHAPE, 6, hidden=(48,))
    fit(vae, (digits.train > 0.5).float(), epochs=20, batch_size=64, lr=4e-3, progress=False)
    return vae, (digits.test[:250] > 0.5).float()


def test_the_length_of_the_message_is_the_bound_and_nothing_is_lost(trained):
    """About 27.44 bits an image for an ELBO of -27.65; without bits back over 80."""
    vae, images = trained
    coder, start = BitsBack(vae), ANS.random(1000)
    message = coder.encode(images, start, progress=False)
    assert start == ANS.random(1000)
    decoded, rest = coder.decode(ANS.from_bytes(message.to_bytes()), 250, progress=False)
    assert decoded.equal(images)
    assert rest == start
    bits = (message.bits - start.bits) / 250
    bound = -vae.elbo(images, samples=100).mean().item() / math.log(2)
    assert bound < 32  # of 64 pixels: it has learned
    assert bits == pytest.approx(bound, rel=0.01)


def test_images_come_in_their_order_and_messages_can_be_chained(trained):
    vae, images = trained
    coder, start = BitsBack(vae), ANS.random(300)
    first = coder.encode(images[5:12], start, progress=False)
    both = coder.encode(images[:5], first, progress=False)
    assert both == coder.encode(images[:12], start, progress=False)
    decoded, rest = coder.decode(both, 5, progress=False)
    assert decoded.equal(images[:5])
    assert rest == first


class Constant(nn.Module):
    """A network that says the same of everything."""

    def __init__(self, *outputs, dtype=torch.float64):
        super().__init__()
        self.outputs = nn.ParameterList([nn.Parameter(torch.tensor(o, dtype=dtype)) for o in outputs])

    def forward(self, x):
        rows = [output.expand(len(x), *output.shape) for output in self.outputs]
        return tuple(rows) if len(rows) > 1 else rows[0]


LOGITS = [[[2.0, -1.0], [0.3, -4.0]]]


def constant_vae(mean, logvar, logits=LOGITS, **options):
    shape = (1, 2, 2)
    return VAE(Constant(mean, logvar), Constant(logits), image_shape=shape, latent_dim=len(mean), **options)


def images_of(logits, count, levels=2):
    """Images that the constant decoder might have made, ``(count, 1, 2, 2)``."""
    logits = torch.tensor(logits, dtype=torch.float64)
    if levels == 2:
        return torch.bernoulli(logits.sigmoid().expand(count, -1, -1, -1))
    pixels = torch.distributions.Categorical(logits=logits.movedim(0, -1)).sample((count,))
    return pixels.double() / (levels - 1)


GREYS = [[[[2.0, -1.0], [0.3, -4.0]]], [[[0.0, 1.0], [2.0, 1.0]]], [[[-2.0, 0.0], [0.5, 1.0]]]]


@pytest.mark.parametrize("levels", [2, 3])
def test_where_q_is_the_posterior_every_image_takes_the_bits_of_its_probability(levels):
    """A decoder that ignores z: log p(x, z) - log q(z|x) is log p(x) whatever z is; no Monte Carlo error."""
    options = {"likelihood": "categorical", "levels": 3} if levels == 3 else {}
    logits = GREYS if levels == 3 else LOGITS
    vae = constant_vae([0.0, 0.0], [0.0, 0.0], logits, **options)
    images = images_of(logits, 50, levels)
    coder, start = BitsBack(vae), ANS.random(100)
    exact = -vae.log_likelihood(images, torch.zeros(50, 2).double()) / math.log(2)
    for image, bits in zip(images.unsqueeze(1), exact):
        message = coder.encode(image, start, progress=False)
        assert message.bits - start.bits == pytest.approx(bits.item(), abs=0.01)
        assert coder.decode(message, 1, progress=False)[0].equal(image)


@pytest.mark.parametrize("temperature", [1.0, 2.25])
def test_a_q_that_is_not_the_posterior_costs_its_divergence(temperature):
    """600 images: -log p(x) + KL(q || p) in closed form, with a standard error of 0.6 %."""
    vae = constant_vae([1.0, -0.5, 0.0], [-4.0, -3.0, -5.0], prior_temperature=temperature)
    images = images_of(LOGITS, 600)
    mean, logvar = vae.encode(images)
    kl = vae.kl_per_dimension(mean, logvar).sum(dim=1)
    exact = (kl - vae.log_likelihood(images, mean)).mean() / math.log(2)
    start = ANS.random(300)
    message = BitsBack(vae).encode(images, start, progress=False)
    assert (message.bits - start.bits) / 600 == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize(("side", "temperature"), [(5.0, 1.0), (-5.0, 1.0), (5.0, 4.0)])
def test_a_code_stands_for_the_middle_of_its_bin(side, temperature):
    """With one bit z is the upper or the lower quartile: 0.6745 standard deviations of the prior."""

    class Slope(nn.Module):
        def forward(self, z):
            return 3 * z.view(-1, 1, 1, 1)

    encoder = Constant([side], [-6.0])
    vae = VAE(encoder, Slope(), image_shape=(1, 1, 1), latent_dim=1, prior_temperature=temperature)
    z = math.copysign(0.6744897501960817 * math.sqrt(temperature), side)
    start = ANS.random(100)
    message = BitsBack(vae, latent_bits=1).encode(torch.ones(1, 1, 1, 1).double(), start, progress=False)
    expected = 1 + math.log2(1 + math.exp(-3 * z))
    assert message.bits - start.bits == pytest.approx(expected, abs=1e-3)


def grey(count, levels, dtype=torch.float32):
    return torch.randint(levels, (count, *SHAPE)).to(dtype) / (levels - 1)


CASES = {
    "binary": (lambda: VAE.mlp(SHAPE, 3, hidden=(5,)), 2, None),
    "17 levels": (lambda: VAE.mlp(SHAPE, 3, hidden=(5,), likelihood="categorical", levels=17), 17, None),
    "256 levels": (lambda: VAE.mlp(SHAPE, 2, hidden=(5,), likelihood="categorical"), 256, None),
    "2 levels": (lambda: VAE.mlp(SHAPE, 2, hidden=(5,), likelihood="categorical", levels=2), 2, None),
    "convolutions": (lambda: VAE.conv(SHAPE, 3, channels=(2, 3), batch_norm=True), 2, None),
    "dropout": (lambda: VAE.mlp(SHAPE, 3, hidden=(5,), dropout=0.5, batch_norm=True), 2, None),
    "float64": (lambda: VAE.mlp(SHAPE, 3, hidden=(5,)).double(), 2, None),
    "no latent variable is used": (lambda: VAE.mlp(SHAPE, 1, hidden=(5,), free_bits=0.5, beta=3.0), 2, None),
    "IWAE": (lambda: IWAE.mlp(SHAPE, 3, hidden=(5,), prior_temperature=2.0), 2, None),
    "labels": (lambda: ConditionalVAE.build("mlp", SHAPE, 3, hidden=(5,), classes=3), 2, 3),
    "one label": (lambda: conditional().given(torch.tensor([2])), 2, None),
    "grey with labels": (lambda: conditional(likelihood="categorical", levels=5), 5, 3),
}


def conditional(**options):
    return ConditionalVAE.build("conv", SHAPE, 2, channels=(3,), classes=3, **options)


@pytest.mark.parametrize(("make", "levels", "classes"), CASES.values(), ids=CASES)
def test_nothing_is_lost_with_any_model(make, levels, classes):
    """Networks as they were made, in training mode, and images of noise."""
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # codes and pixels that matter
    images = grey(6, levels, next(model.parameters()).dtype)
    labels = {"labels": torch.arange(6) % classes} if classes else {}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    coder, start = BitsBack(model, latent_bits=8), ANS.random(200)
    message = coder.encode(images, start, progress=False, **labels)
    decoded, rest = coder.decode(message, 6, progress=False, **labels)
    assert decoded.equal(images)
    assert decoded.dtype == images.dtype
    assert rest == start
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    if classes:
        other = coder.encode(images, start, labels["labels"].flip(0), progress=False)
        assert other != message  # the labels are looked at


@pytest.mark.parametrize("logvar", [-1e4, -80.0, 80.0, 1e4])
@pytest.mark.parametrize("mean", [0.0, 1e8])
def test_nothing_is_lost_where_networks_have_lost_their_way(mean, logvar):
    vae = constant_vae([mean, -mean], [logvar, 1.0], [[[1e4, -1e4], [1e30, 0.0]]])
    images, start = images_of(LOGITS, 3), ANS.random(300)
    coder = BitsBack(vae)
    message = coder.encode(images, start, progress=False)
    decoded, rest = coder.decode(message, 3, progress=False)
    assert decoded.equal(images)
    assert rest == start


def test_the_coder_does_not_care_about_the_default_device():
    vae, images = VAE.mlp(SHAPE, 3, hidden=(5,)), grey(2, 2)
    torch.set_default_device("meta")
    try:
        coder = BitsBack(vae)
        decoded, _ = coder.decode(coder.encode(images, ANS.random(99), progress=False), 2, progress=False)
    finally:
        torch.set_default_device("cpu")
    assert decoded.equal(images)


def test_the_progress_bars_count_images(capsys):
    coder = BitsBack(VAE.mlp(SHAPE, 3, hidden=(5,)))
    message = coder.encode(grey(4, 2), ANS.random(99))
    assert "encode: 100%" in (shown := capsys.readouterr().err)
    assert "4/4" in shown
    coder.decode(message, 4)
    assert "decode: 100%" in capsys.readouterr().err


def plain(**options):
    return VAE.mlp(SHAPE, 3, hidden=(5,), **options)


class OwnDensity(VAE):
    def log_likelihood(self, x, z):
        return super().log_likelihood(x, z) / 2


class Nan(nn.Module):
    def forward(self, x):
        return torch.full((len(x), 3), math.nan), torch.zeros(len(x), 3)


def broken():
    vae = plain()
    vae.encoder = Nan()
    return vae


ZERO = torch.zeros(2, *SHAPE)
LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: BitsBack(plain(), latent_bits=17), ValueError, r"^latent_bits is 17 but must be at most 16"),
        (lambda: BitsBack(plain(), latent_bits=2.0), TypeError, r"^latent_bits is 2\.0 but must be a whole"),
        (
            lambda: BitsBack(plain(), precision=10),
            ValueError,
            r"^precision is 10 but must be over latent_bits",
        ),
        (
            lambda: BitsBack(plain(), precision=33),
            ValueError,
            r"^precision is 33 but must be over latent_bits",
        ),
        (
            lambda: BitsBack(plain(likelihood="categorical"), latent_bits=4, precision=8),
            ValueError,
            r"^precision is 8 but needs 2\^precision over 256 levels",
        ),
        (lambda: BitsBack(nn.Linear(2, 2)), TypeError, r"^model is of type Linear but must be a VAE"),
        (
            lambda: BitsBack(StructuredOutputVAE.build("mlp", SHAPE, 3, hidden=(5,))),
            TypeError,
            r"^model is of type StructuredOutputVAE but must be a VAE",
        ),
        (lambda: BitsBack("vae"), TypeError, r"^model is of type str but must be a VAE"),
        (lambda: BitsBack(OwnDensity.mlp(SHAPE, 3)), TypeError, r"^model is of type OwnDensity but must be"),
        (
            lambda: BitsBack(plain(likelihood="gaussian")),
            ValueError,
            r"^likelihood is Gaussian but must be Bernoulli or Categorical",
        ),
        (
            lambda: BitsBack(plain(likelihood="continuous_bernoulli")),
            ValueError,
            r"^likelihood is ContinuousBernoulli but must be",
        ),
        (
            lambda: BitsBack(plain()).encode(ZERO + 0.25, ANS.random(99)),
            ValueError,
            r"^images has the value 0\.25 at \(0, 0, 0, 0\), .* 2 values only, 0 and 1: binarise them",
        ),
        (
            lambda: BitsBack(plain()).encode(ZERO - 1, ANS.random(99)),
            ValueError,
            r"^images has the value -1 at",
        ),
        (
            lambda: BitsBack(plain(likelihood="categorical", levels=17)).encode(
                ZERO + 1.0625, ANS.random(99)
            ),
            ValueError,
            r"^images has the value 1\.0625 at .* 17 values only, k / 16 of whole k",
        ),
        (
            # One unit in the last place away from 1/3, which would come back as 1/3.
            lambda: BitsBack(plain(likelihood="categorical", levels=4)).encode(
                torch.nextafter(ZERO + 1 / 3, torch.ones(())), ANS.random(99)
            ),
            ValueError,
            r"^images has the value 0\.3333333\d* at",
        ),
        (
            lambda: BitsBack(plain()).encode(ZERO * math.nan, ANS.random(99)),
            ValueError,
            r"^images holds 128 values that are NaN",
        ),
        (
            lambda: BitsBack(plain()).encode(torch.zeros(2, 1, 8, 7), ANS.random(99)),
            ValueError,
            r"^images has shape \(2, 1, 8, 7\) but this model needs",
        ),
        (
            lambda: BitsBack(plain()).encode(ZERO.double(), ANS.random(99)),
            TypeError,
            r"^images has dtype torch\.float64 but the model's parameters have torch\.float32",
        ),
        (lambda: BitsBack(plain()).encode(ZERO, b""), TypeError, r"^message must be an ANS, not bytes"),
        (lambda: BitsBack(plain()).decode(b"", 2), TypeError, r"^message must be an ANS, not bytes"),
        (lambda: BitsBack(plain()).decode(ANS(), 0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda: BitsBack(plain()).encode(ZERO, ANS()), ValueError, r"come to its end.*random bits to begin"),
        (lambda: BitsBack(plain()).decode(ANS.random(60), 9), ValueError, r"come to its end"),
        (lambda: BitsBack(broken()).encode(ZERO, ANS.random(99)), ValueError, r"^the encoder's mean holds 3"),
        (
            lambda: BitsBack(conditional()).encode(ZERO, ANS.random(99)),
            ValueError,
            r"^model of type ConditionalVAE needs labels",
        ),
        (
            lambda: BitsBack(plain()).encode(ZERO, ANS.random(99), LABELS),
            ValueError,
            r"^model of type VAE takes no labels",
        ),
        (
            lambda: BitsBack(conditional()).encode(ZERO, ANS.random(99), LABELS + 3),
            ValueError,
            r"^labels go from 3 to 3 but need 0 to 2",
        ),
        (
            lambda: BitsBack(conditional()).decode(ANS.random(99), 3, LABELS),
            ValueError,
            r"^labels has shape \(2,\) but needs \(3,\)",
        ),
    ],
)
def test_what_cannot_be_coded_is_refused_in_words(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
