"""The latent slider: move z, and see what the decoder makes of it.

The decoder itself travels to the browser, as 8-bit weights, and runs there. So the same object works
in JupyterLab and Colab, where Python can also read and set ``z``, and on a published page, which has no
kernel to ask.
"""

from collections.abc import Sequence

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor, nn

from aecourse.autoencoders import Autoencoder
from aecourse.contracts import check_shapes
from aecourse.likelihoods import Bernoulli
from aecourse.vae import VAE
from aecourse.widgets.files import script, style


class LatentViewer(anywidget.AnyWidget):
    """Sliders for the code of a VAE or an autoencoder, and the image they decode to.

    With two latent variables and ``codes``, the plane of codes is drawn beside it and can be clicked.

    Args:
        model: one whose decoder is an :class:`aecourse.nets.MLPDecoder` of one-channel images.
        codes: ``(N, latent_dim)``, codes of real images, to show where the data are.
        labels: ``(N,)``, their labels, whole numbers from 0 to 9.
        z: where the sliders start; zeros by default.
        limit: the sliders run from ``-limit`` to ``limit``.

    Raises:
        TypeError: the decoder has layers that the browser does not know.
        ValueError: shapes that do not fit.
    """

    _esm = script("latent_viewer")
    _css = style("latent_viewer")

    z = traitlets.List(traitlets.Float()).tag(sync=True)
    limit = traitlets.Float().tag(sync=True)
    image_size = traitlets.Tuple(traitlets.Int(), traitlets.Int()).tag(sync=True)
    """Height and width."""
    layer_sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    """Of the decoder: latent_dim, hidden sizes, number of pixels."""
    sigmoid = traitlets.Bool().tag(sync=True)
    """Whether the decoder's outputs are logits."""
    has_prior = traitlets.Bool().tag(sync=True)
    """Whether there is a prior to draw z from."""
    weights = traitlets.Bytes().tag(sync=True)
    """See :func:`pack_layers`."""
    codes = traitlets.Bytes().tag(sync=True)
    """``(N, latent_dim)`` float32."""
    labels = traitlets.Bytes().tag(sync=True)
    """``(N,)`` uint8."""

    def __init__(
        self,
        model: VAE | Autoencoder,
        codes: Tensor | None = None,
        labels: Tensor | None = None,
        z: Sequence[float] | None = None,
        limit: float = 3.0,
    ):
        is_vae = isinstance(model, VAE)
        latent_dim = model.latent_dim if is_vae else model.code_dim
        channels, height, width = model.image_shape
        if channels != 1:
            raise ValueError(f"model makes images of {channels} channels but the viewer shows 1.")
        if not 0 < limit < float("inf"):
            raise ValueError(f"limit is {limit} but must be positive.")
        z = [0.0] * latent_dim if z is None else [float(value) for value in z]
        if len(z) != latent_dim:
            raise ValueError(f"z has {len(z)} values but model has {latent_dim} latent variables.")
        codes = torch.zeros(0, latent_dim) if codes is None else codes
        labels = torch.zeros(0, dtype=torch.uint8) if labels is None else labels
        check_shapes(("codes", codes, "N latent_dim"))
        if len(labels) != len(codes) or codes.shape[1] != latent_dim:
            raise ValueError(
                f"codes {tuple(codes.shape)} and labels {tuple(labels.shape)} need the shapes "
                f"(N, {latent_dim}) and (N,)."
            )
        layers = [layer for layer in model.decoder.net if isinstance(layer, nn.Linear)]
        if any(not isinstance(layer, nn.Linear | nn.ReLU) for layer in model.decoder.net):
            raise TypeError(
                "model.decoder has layers other than Linear and ReLU, which the browser cannot run."
            )
        super().__init__(
            z=z,
            limit=limit,
            image_size=(height, width),
            layer_sizes=[latent_dim, *(layer.out_features for layer in layers)],
            sigmoid=isinstance(model.likelihood, Bernoulli) if is_vae else (model.output == "sigmoid"),
            has_prior=is_vae,
            weights=pack_layers(layers),
            codes=codes.detach().float().cpu().numpy().tobytes(),
            labels=labels.to(torch.uint8).cpu().numpy().tobytes(),
        )


def pack_layers(layers: Sequence[nn.Linear]) -> bytes:
    """Weights of linear layers as 8-bit integers with one scale for each output.

    The bytes are, in little-endian order and one layer after the other: all scales and biases (float32:
    ``out`` scales, then ``out`` biases), then all matrices (int8, ``out`` rows of ``in``). The floats
    come first so that a browser can lay a typed array over them: it wants multiples of four.
    """
    floats, integers = [], []
    for layer in layers:
        weight = layer.weight.detach().cpu().numpy()
        scale = np.maximum(np.abs(weight).max(axis=1), 1e-12) / 127
        floats += [scale.astype("<f4"), layer.bias.detach().cpu().numpy().astype("<f4")]
        integers.append(np.round(weight / scale[:, None]).astype(np.int8))
    return b"".join(array.tobytes() for array in floats + integers)
