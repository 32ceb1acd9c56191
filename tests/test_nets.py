"""Shapes in, shapes out, and networks that compute what their docstrings say."""

import pytest
import torch
from torch import nn

from aecourse.nets import (
    Conv1dDecoder,
    Conv1dEncoder,
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    ResidualBlock,
    ResidualDecoder,
    ResidualEncoder,
    build,
    mlp,
)

PAIRS = {
    "mlp": (MLPEncoder, MLPDecoder, (1, 8, 9)),
    "conv": (ConvEncoder, ConvDecoder, (3, 8, 9)),
    "conv1d": (Conv1dEncoder, Conv1dDecoder, (2, 9)),
    "residual": (ResidualEncoder, ResidualDecoder, (1, 8, 9)),
}


def test_mlp_has_a_relu_between_layers_and_none_after_the_last():
    layers = list(mlp([5, 4, 3, 2]))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(4, 5), (3, 4), (2, 3)]


@pytest.mark.parametrize("image_shape", [(7,), (1, 8, 8), (3, 5, 4)])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_encoder_and_decoder_work_for_any_image_shape(image_shape, hidden):
    encoder, decoder = MLPEncoder(image_shape, 2, hidden), MLPDecoder(2, image_shape, hidden)
    mean, logvar = encoder(torch.rand(4, *image_shape))
    assert mean.shape == logvar.shape == (4, 2)
    assert decoder(mean).shape == (4, *image_shape)


def test_the_first_half_of_the_outputs_is_the_mean_and_the_second_the_log_variance():
    # Weights that were saved depend on it.
    encoder, x = MLPEncoder((7,), 2, ()), torch.rand(4, 7)
    mean, logvar = encoder(x)
    outputs = encoder.net(x)
    assert torch.equal(mean, outputs[:, :2])
    assert torch.equal(logvar, outputs[:, 2:])


def test_examples_of_a_batch_do_not_mix():
    encoder, decoder = MLPEncoder((1, 4, 4), 2, (6,)), MLPDecoder(2, (1, 4, 4), (6,))
    x = torch.rand(3, 1, 4, 4)
    together = decoder(encoder(x)[0])
    alone = torch.cat([decoder(encoder(one)[0]) for one in x.split(1)])
    torch.testing.assert_close(together, alone)


# ------------------------------------------------------------------- options that all of them have


def test_mlp_puts_batch_norm_before_and_dropout_after_the_activation():
    layers = list(mlp([5, 4, 3, 2], nn.Tanh, batch_norm=True, dropout=0.3))
    between = [nn.BatchNorm1d, nn.Tanh, nn.Dropout]
    assert [type(layer) for layer in layers] == [nn.Linear, *between, nn.Linear, *between, nn.Linear]
    assert layers[3].p == 0.3


def test_the_weights_of_a_default_mlp_keep_their_names():
    # Files of trained weights depend on them.
    assert list(MLPEncoder((7,), 2, (6,)).state_dict()) == [
        f"net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    ]
    assert list(MLPDecoder(2, (7,), (6,)).state_dict()) == list(MLPEncoder((7,), 2, (6,)).state_dict())


@pytest.mark.parametrize("pair", PAIRS)
def test_every_encoder_gives_a_gaussian_or_one_code(pair):
    make, _, shape = PAIRS[pair]
    x = torch.rand(4, *shape)
    gaussian = make(shape, 3)
    mean, logvar = gaussian(x)
    assert mean.shape == logvar.shape == (4, 3)
    assert make(shape, 3, gaussian=False)(x).shape == (4, 3)
    # The two halves of one output, the mean first.
    last = list(gaussian.net)[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(6.0))
    mean, logvar = gaussian(x)
    assert torch.equal(mean, torch.arange(3.0).expand(4, -1))
    assert torch.equal(logvar, torch.arange(3.0, 6.0).expand(4, -1))


@pytest.mark.parametrize("pair", PAIRS)
def test_every_decoder_gives_one_number_per_pixel_or_several(pair):
    _, make, shape = PAIRS[pair]
    z = torch.randn(4, 3)
    assert make(3, shape)(z).shape == (4, *shape)
    assert make(3, shape, outputs=2)(z).shape == (4, 2, *shape)
    assert make(3, shape, outputs=5)(z).shape == (4, 5, *shape)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_weight_has_an_influence(pair, batch_norm):
    encode, decode, shape = PAIRS[pair]
    encoder, decoder = encode(shape, 3, batch_norm=batch_norm), decode(3, shape, batch_norm=batch_norm)
    mean, logvar = encoder(torch.rand(5, *shape))
    (decoder(mean + logvar) * torch.randn(5, *shape)).sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        # A bias before batch norm is the exception: its mean is subtracted again.
        assert batch_norm or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pair", PAIRS)
def test_without_batch_norm_examples_do_not_mix_and_with_it_they_do_in_training_alone(pair):
    make, _, shape = PAIRS[pair]
    x = torch.rand(4, *shape)
    for batch_norm in (False, True):
        encoder = make(shape, 3, gaussian=False, batch_norm=batch_norm)
        encoder(x)
        for training in (False, True):
            encoder.train(training)
            differs = not torch.allclose(encoder(x)[:2], encoder(x[:2]), atol=1e-5)
            assert differs == (batch_norm and training)


@pytest.mark.parametrize("pair", ["mlp", "conv", "conv1d"])
def test_dropout_is_noise_in_training_alone(pair):
    make, _, shape = PAIRS[pair]
    encoder, x = make(shape, 3, gaussian=False, dropout=0.5), torch.rand(4, *shape)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("pair", ["conv", "conv1d", "residual"])
def test_fully_connected_layers_may_follow_the_convolutions(pair):
    encode, decode, shape = PAIRS[pair]
    encoder, decoder = encode(shape, 3, (4, 5), (7, 6)), decode(3, shape, (5, 4), (6, 7))
    linear = [
        [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
        for net in (encoder, decoder)
    ]
    features = linear[0][0][0]
    assert linear == [[(features, 7), (7, 6), (6, 6)], [(3, 6), (6, 7), (7, features)]]
    assert decoder(encoder(torch.rand(2, *shape))[0]).shape == (2, *shape)


# ---------------------------------------------------------------------- convolutions of any size

SIZES = [(4, 4), (5, 4), (5, 7), (8, 8), (9, 11), (25, 25), (28, 28), (28, 20), (32, 32), (33, 64), (64, 64)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("encode", "decode"), [PAIRS["conv"][:2], PAIRS["residual"][:2]])
def test_the_decoder_returns_to_any_size(size, encode, decode):
    for image_shape in ((1, *size), (3, *size)):
        mean, _ = encode(image_shape, 2, (4, 5))(torch.rand(2, *image_shape))
        assert decode(2, image_shape, (5, 4))(mean).shape == (2, *image_shape)


@pytest.mark.parametrize("length", [8, *range(9, 17), 100, 127])
def test_the_decoder_of_series_returns_to_any_length(length):
    for channels in (1, 3):
        mean, _ = Conv1dEncoder((channels, length), 2, (4, 5, 6))(torch.rand(2, channels, length))
        assert Conv1dDecoder(2, (channels, length), (6, 5, 4))(mean).shape == (2, channels, length)


@pytest.mark.parametrize("size", [(28, 28), (25, 25), (5, 7)])
def test_the_stages_of_the_decoder_are_those_of_the_encoder_backwards(size):
    seen = {"encoder": [size], "decoder": []}
    encoder, decoder = ConvEncoder((1, *size), 2), ConvDecoder(2, (1, *size))
    for name, net in (("encoder", encoder), ("decoder", decoder)):
        for layer in net.net:
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Unflatten)):
                layer.register_forward_hook(lambda _, __, y, name=name: seen[name].append(tuple(y.shape[2:])))
    decoder(encoder(torch.rand(2, 1, *size))[0])
    assert seen["decoder"] == seen["encoder"][::-1]
    assert seen["encoder"] == [size, (size[0] // 2, size[1] // 2), (size[0] // 4, size[1] // 4)]


@pytest.mark.parametrize("size", [(25, 25), (28, 28), (5, 7)])
@pytest.mark.parametrize("decode", [ConvDecoder, ResidualDecoder])
def test_every_output_pixel_depends_on_the_code(size, decode):
    # Rows that output_padding adds could be nothing but bias.
    decoder = decode(3, (1, *size), (5, 4))
    images = decoder(torch.randn(50, 3))
    assert images.var(dim=0).min() > 0


def test_every_pixel_reaches_the_code_where_the_sides_are_even():
    x = torch.rand(2, 1, 28, 20, requires_grad=True)
    ConvEncoder((1, 28, 20), 3, gaussian=False)(x).square().sum().backward()
    assert (x.grad[0] != 0).all()


def test_an_encoder_of_series_sees_shifts_of_whole_strides_as_shifts():
    # Before the fully connected layer, shifting the input by 4 steps shifts two stages' output by one.
    encoder = Conv1dEncoder((1, 64), 2)
    convolutions = encoder.net[:4]
    x = torch.zeros(1, 1, 64)
    x[..., 20:30] = torch.rand(10)
    shifted = convolutions(x.roll(4, dims=2))
    torch.testing.assert_close(shifted[..., 2:-2], convolutions(x).roll(1, dims=2)[..., 2:-2])


def test_a_residual_block_whose_last_convolution_is_zero_is_the_identity():
    block, x = ResidualBlock(4), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        block.net[-1].weight.zero_()
        block.net[-1].bias.zero_()
    assert torch.equal(block(x), x)


def test_a_residual_block_computes_the_pre_activation_form():
    block, x = ResidualBlock(4), torch.randn(2, 4, 5, 6)
    first, second = (layer for layer in block.net if isinstance(layer, nn.Conv2d))
    torch.testing.assert_close(block(x), x + second(first(x.relu()).relu()))
    types = [type(layer) for layer in ResidualBlock(4, nn.ELU, batch_norm=True).net]
    assert types == 2 * [nn.BatchNorm2d, nn.ELU, nn.Conv2d]


@pytest.mark.parametrize("blocks", [1, 3])
def test_residual_networks_have_the_blocks_they_are_asked_for(blocks):
    for net in (
        ResidualEncoder((1, 8, 8), 2, (4, 5, 6), blocks=blocks),
        ResidualDecoder(2, (1, 8, 8), (6, 5, 4), blocks=blocks),
    ):
        assert sum(isinstance(module, ResidualBlock) for module in net.modules()) == 3 * blocks
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


# ------------------------------------------------------------------------- both at once


@pytest.mark.parametrize("kind", PAIRS)
def test_build_makes_the_pair_with_the_widths_of_the_decoder_reversed(kind):
    encoder_class, decoder_class, shape = PAIRS[kind]
    widths = {"hidden": (7, 5)} if kind == "mlp" else {"channels": (4, 6), "hidden": (7, 5)}
    torch.manual_seed(3)
    encoder, decoder = build(kind, shape, 2, outputs=3, activation=nn.ELU, **widths)
    torch.manual_seed(3)
    reversed_widths = {name: sizes[::-1] for name, sizes in widths.items()}
    expected = encoder_class(shape, 2, activation=nn.ELU, **widths)
    assert repr(encoder) == repr(expected)
    assert all(map(torch.equal, encoder.parameters(), expected.parameters()))
    expected = decoder_class(2, shape, activation=nn.ELU, outputs=3, **reversed_widths)
    assert repr(decoder) == repr(expected)
    assert all(map(torch.equal, decoder.parameters(), expected.parameters()))


@pytest.mark.parametrize("kind", PAIRS)
def test_build_leaves_room_for_a_condition_and_gives_plain_codes(kind):
    shape = PAIRS[kind][2]
    encoder, decoder = build(kind, shape, 2, gaussian=False, condition=3)
    assert encoder(torch.rand(4, shape[0] + 3, *shape[1:])).shape == (4, 2)
    assert decoder(torch.randn(4, 2 + 3)).shape == (4, *shape)


def test_a_perceptron_reads_each_number_of_a_condition_once():
    """As hundreds of equal inputs it would learn hundreds of times faster than a pixel does."""
    encoder, _ = build("mlp", (2, 3, 4), 2, hidden=(6,), condition=3)
    assert encoder.net[0].in_features == 2 * 3 * 4 + 3
    x = torch.rand(5, 5, 3, 4)
    x[:, 2:] = x[:, 2:, :1, :1]
    numbers = x[:, 2:, 0, 0]
    mean, _ = encoder(x)
    by_hand = encoder.net(torch.cat([x[:, :2].flatten(1), numbers], dim=1))[:, :2]
    assert torch.equal(mean, by_hand)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mlp([5]), ValueError, r"^sizes is \(5,\) but needs at least an input and an output"),
        (lambda: mlp([5, 0, 2]), ValueError, r"^sizes has the size 0 but needs at least 1"),
        (lambda: mlp([5, 2.5, 2]), TypeError, r"^sizes has the size 2\.5 but needs whole numbers"),
        (lambda: mlp([5, 4, 2], nn.ReLU()), TypeError, r"^activation is ReLU\(\), a module, .* class such"),
        (
            lambda: mlp([5, 4, 2], dropout=1.0),
            ValueError,
            r"^dropout is 1\.0 but must be at least 0 and less",
        ),
        (lambda: mlp([5, 4, 2], dropout=-0.1), ValueError, r"^dropout is -0\.1 but must be"),
        (lambda: MLPEncoder((7,), 2, 400), TypeError, r"^hidden is 400 but needs a sequence .* \(400,\)"),
        (lambda: MLPEncoder(28, 2), TypeError, r"^image_shape is 28 but needs a sequence"),
        (lambda: MLPEncoder((), 2), ValueError, r"^image_shape is \(\) but needs at least one dimension"),
        (lambda: MLPEncoder((1, 0), 2), ValueError, r"^image_shape has the size 0"),
        (lambda: MLPEncoder((7,), 0), ValueError, r"^latent_dim has the size 0"),
        (lambda: MLPDecoder((7,), 2), TypeError, r"^image_shape is 2 but needs a sequence"),
        (lambda: MLPDecoder(2, (7,), outputs=0), ValueError, r"^outputs has the size 0"),
        (lambda: ConvEncoder((28, 28), 2), ValueError, r"^image_shape is \(28, 28\) but needs \(channels, h"),
        (lambda: ConvDecoder(2, (28,)), ValueError, r"^image_shape is \(28,\) but needs \(channels, height"),
        (lambda: Conv1dEncoder((1, 28, 28), 2), ValueError, r"^image_shape .* needs \(channels, length\)"),
        (lambda: Conv1dDecoder(2, (28,)), ValueError, r"^image_shape is \(28,\) but needs \(channels, len"),
        (lambda: ConvEncoder((1, 3, 8), 2), ValueError, r"\(1, 3, 8\).*2 stages.*shorter than 4\.$"),
        (lambda: ConvDecoder(2, (1, 8, 7), (8, 4, 2)), ValueError, r"3 stages.*shorter than 8\.$"),
        (lambda: ConvEncoder((1, 8, 8), 2, ()), ValueError, r"channels has 0 stages, which must be at least"),
        (lambda: ConvEncoder((1, 8, 8), 2, (4, -1)), ValueError, r"^channels has the size -1"),
        (lambda: build("mpl", (7,), 2), ValueError, r"^kind is 'mpl' but must be one of \('mlp', 'conv',"),
        (lambda: build("mlp", 7, 2), TypeError, r"^image_shape is 7 but needs a sequence"),
        (lambda: build("mlp", (7,), 2, hidden=400), TypeError, r"^hidden is 400 but needs a sequence"),
        (lambda: build("conv", (1, 8, 8), 2, channels=4), TypeError, r"^channels is 4 but needs a sequence"),
        (lambda: build("mlp", (7,), 2, channels=(4,)), TypeError, r"channels"),
        (lambda: build("mlp", (7,), 2, condition=-1), ValueError, r"^condition is -1 but must be at least 0"),
        (lambda: ResidualEncoder((1, 8, 8), 2, blocks=0), ValueError, r"^blocks has the size 0"),
        (lambda: ResidualDecoder(2, (1, 8, 3)), ValueError, r"2 stages.*shorter than 4"),
        (lambda: ResidualDecoder(2, (8, 8)), ValueError, r"^image_shape is \(8, 8\) but needs \(channels, h"),
    ],
)
def test_bad_sizes_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
