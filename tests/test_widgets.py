"""The latent viewer's Python half; tests/test_site.py tests the browser's."""

import numpy as np
import pytest
import torch
from torch import nn

from aecourse import VAE, reference
from aecourse.widgets import LatentViewer
from aecourse.widgets.latent_viewer import pack_layers


def unpack(packed, sizes):
    """What latent_viewer.js does, in NumPy: the layers as float matrices and biases."""
    offset, scales, biases = 0, [], []
    for size in sizes[1:]:
        scales.append(np.frombuffer(packed, "<f4", size, offset))
        biases.append(np.frombuffer(packed, "<f4", size, offset + 4 * size))
        offset += 8 * size
    layers = []
    for inputs, outputs, scale, bias in zip(sizes[:-1], sizes[1:], scales, biases):
        weight = np.frombuffer(packed, np.int8, inputs * outputs, offset).reshape(outputs, inputs)
        offset += inputs * outputs
        layers.append((weight * scale[:, None], bias))
    assert offset == len(packed)
    return layers


def test_packed_weights_come_back_to_half_a_step():
    torch.manual_seed(0)
    layers = [nn.Linear(2, 5), nn.Linear(5, 7)]
    for layer, (weight, bias) in zip(layers, unpack(pack_layers(layers), [2, 5, 7])):
        original = layer.weight.detach().numpy()
        step = np.abs(original).max(axis=1, keepdims=True) / 127
        assert (np.abs(weight - original) <= 0.5001 * step).all()
        np.testing.assert_array_equal(bias, layer.bias.detach().numpy())


def test_a_row_of_zeros_is_packed_as_zeros():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    weight, _ = unpack(pack_layers([layer]), [3, 2])[0]
    assert (weight == 0).all()


def test_reference_decoder_survives_eight_bits():
    vae = reference.load().vae
    viewer = LatentViewer(vae)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    values = z.numpy()
    layers = unpack(viewer.weights, viewer.layer_sizes)
    for number, (weight, bias) in enumerate(layers):
        values = values @ weight.T + bias
        if number < len(layers) - 1:
            values = np.maximum(values, 0)
    error = np.abs(1 / (1 + np.exp(-values)) - vae.decode(z).detach().flatten(1).numpy())
    assert error.max() < 0.12  # at the edge of a stroke, where the sigmoid is steepest
    assert error.mean() < 0.004


def test_python_reads_and_sets_z():
    viewer = LatentViewer(VAE.mlp((1, 4, 4), 3), z=[0.5, 0, -1])
    assert viewer.z == [0.5, 0.0, -1.0]
    seen = []
    viewer.observe(lambda change: seen.append(change["new"]), "z")
    viewer.z = [1.0, 1.0, 1.0]
    assert seen == [[1.0, 1.0, 1.0]]


def test_codes_travel_with_their_labels():
    codes = torch.randn(7, 2)
    viewer = LatentViewer(VAE.mlp((1, 4, 4), 2), codes, torch.arange(7))
    np.testing.assert_array_equal(np.frombuffer(viewer.codes, "<f4").reshape(7, 2), codes.numpy())
    assert list(viewer.labels) == list(range(7))


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (
            ValueError,
            "z has 3 values but vae has 2",
            lambda: LatentViewer(VAE.mlp((1, 4, 4), 2), z=[0, 0, 0]),
        ),
        (ValueError, "images of 3 channels", lambda: LatentViewer(VAE.mlp((3, 4, 4), 2))),
        (ValueError, "need the shapes", lambda: LatentViewer(VAE.mlp((1, 4, 4), 2), torch.zeros(5, 2))),
        (
            ValueError,
            "need the shapes",
            lambda: LatentViewer(VAE.mlp((1, 4, 4), 2), torch.zeros(5, 3), torch.zeros(5)),
        ),
    ],
)
def test_refuses(error, message, make):
    with pytest.raises(error, match=message):
        make()


def test_refuses_layers_the_browser_does_not_know():
    vae = VAE.mlp((1, 4, 4), 2)
    vae.decoder.net.append(nn.Tanh())
    with pytest.raises(TypeError, match="other than Linear and ReLU"):
        LatentViewer(vae)
