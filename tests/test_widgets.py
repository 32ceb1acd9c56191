"""The widgets' Python halves; tests/test_site.py tests the browser's."""

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from aecourse import VAE, Autoencoder, reference
from aecourse.widgets import FrameSlider, GaussianFit, LatentViewer
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
            "z has 3 values but model has 2",
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


def test_an_autoencoder_has_no_prior_to_draw_from():
    assert LatentViewer(VAE.mlp((1, 4, 4), 2)).has_prior
    viewer = LatentViewer(Autoencoder.mlp((1, 4, 4), 3), z=[5, 0, 0], limit=10)
    assert not viewer.has_prior
    assert viewer.layer_sizes == [3, 400, 16]
    assert viewer.sigmoid
    assert not LatentViewer(Autoencoder.mlp((1, 4, 4), 3, output="linear")).sigmoid


def test_each_widget_travels_with_the_shared_controls_once():
    for widget in (FrameSlider, GaussianFit, LatentViewer):
        assert widget._esm.count("function slider(") == 1
        assert widget._esm.count("export default") == 1
        assert widget._css.count(".aecourse-widget button {") == 1


# ------------------------------------------------------------------------- FrameSlider


def frames(count=3, size=(2.0, 1.0)):
    figures = []
    for number in range(count):
        figure, ax = plt.subplots(figsize=size)
        ax.plot([0, number])
        figures.append(figure)
    return figures


WORDS = [f"A line that rises to {number}." for number in range(3)]


def test_frames_travel_as_pictures_and_their_figures_are_closed():
    before = plt.get_fignums()
    slider = FrameSlider("slope", [0, 1, 2], frames(), WORDS, start=1)
    assert plt.get_fignums() == before
    assert slider.values == ["0", "1", "2"]
    assert slider.index == 1
    assert slider.image_size == (192, 96)  # inches at 96 CSS pixels each
    ends = np.cumsum([0, *slider.sizes])
    assert ends[-1] == len(slider.frames)
    pictures = [plt.imread(io.BytesIO(slider.frames[a:b])) for a, b in pairwise(ends)]
    assert {picture.shape[:2] for picture in pictures} == {(130, 260)}
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_same_figures_give_the_same_bytes():
    first, second = (FrameSlider("slope", [0, 1, 2], frames(), WORDS) for _ in range(2))
    assert first.frames == second.frames


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("have 2, 3 and 3 entries", lambda: FrameSlider("slope", [0, 1], frames(), WORDS)),
        ("have 3, 3 and 2 entries", lambda: FrameSlider("slope", [0, 1, 2], frames(), WORDS[:2])),
        ("figures has 1 entries", lambda: FrameSlider("slope", [0], frames(1), WORDS[:1])),
        (r"descriptions\[1\] is empty", lambda: FrameSlider("slope", [0, 1], frames(2), ["a", " "])),
        ("start is 3", lambda: FrameSlider("slope", [0, 1, 2], frames(), WORDS, start=3)),
        (
            "need one size",
            lambda: FrameSlider("slope", [0, 1], [*frames(1), *frames(1, (3, 1))], WORDS[:2]),
        ),
    ],
)
def test_frame_slider_refuses(message, make):
    with pytest.raises(ValueError, match=message):
        make()
    plt.close("all")


# ------------------------------------------------------------------------- GaussianFit


def test_gaussian_fit_normalises_the_weights_and_spans_the_components():
    fit = GaussianFit([1, 3], [-1, 2], [0.5, 1.0], start=(0.5, 2.0))
    assert fit.weights == [0.25, 0.75]
    assert fit.range == (-3.0, 6.0)
    assert fit.std_range[0] < 0.5 < 2.0 <= fit.std_range[1]
    assert (fit.mean, fit.std, fit.log_evidence) == (0.5, 2.0, None)
    seen = []
    fit.observe(lambda change: seen.append(change["new"]), "mean")
    fit.mean = 1.0
    assert seen == [1.0]


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("have 2, 1 and 2 entries", lambda: GaussianFit([1, 1], [0], [1, 1])),
        ("have 0, 0 and 0 entries", lambda: GaussianFit([], [], [])),
        ("weights has the values", lambda: GaussianFit([1, 0], [0, 1], [1, 1])),
        ("stds has the values", lambda: GaussianFit([1, 1], [0, 1], [1, -1])),
        ("the std in start", lambda: GaussianFit([1], [0], [1], start=(0, 0))),
        ("must be finite", lambda: GaussianFit([1], [0], [1], log_evidence=float("nan"))),
        ("p's axis runs from -4 to 4", lambda: GaussianFit([1], [0], [1], start=(9, 1))),
    ],
)
def test_gaussian_fit_refuses(message, make):
    with pytest.raises(ValueError, match=message):
        make()
