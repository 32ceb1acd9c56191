"""The variational lossy autoencoder: a decoder that sees a few earlier pixels (Chen et al. 2017)."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from aecourse.contracts import check_batch, check_count
from aecourse.likelihoods import Bernoulli, Categorical, pop_likelihood
from aecourse.nets import build, split_options
from aecourse.vae import VAE

# ---------------------------------------------------------------------- who sees which pixel


def raster_mask(size: int, centre: bool) -> Tensor:
    """Which entries of a square kernel lie on pixels that come earlier in reading order.

    Those are all rows above the middle one, and in the middle row what stands to the left of the centre.

    Args:
        size: height and width of the kernel, odd.
        centre: whether the pixel itself is seen as well ("mask B"), or not ("mask A").

    Returns:
        ``(size, size)``, ones and zeros.

    Raises:
        TypeError, ValueError: ``size`` is not a whole number, not positive or even.

    Source: van den Oord, Kalchbrenner & Kavukcuoglu (2016), figure 4.
    """
    check_count("kernel_size", size)
    if size % 2 == 0:
        raise ValueError(f"kernel_size is {size} but must be odd: a kernel needs a centre.")
    before = size * (size // 2) + size // 2  # in reading order
    return (torch.arange(size * size) < before + centre).float().reshape(size, size)


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees earlier pixels only, in raster order: row by row, each from left to right.

    The mask is over positions and the same for all pairs of channels. What such layers compute at a pixel
    depends on all channels of the pixels seen and on no channel of another, so a model made of them takes
    the channels of one pixel as independent of each other given the earlier pixels.

    Args:
        in_channels, out_channels: as for ``nn.Conv2d``.
        kernel_size: height and width, odd. The output has the size of the input: what lies beyond the border
            counts as zero.
        centre: whether the pixel itself is seen too. The first layer of a model that predicts its own input
            must not see it ("mask A"), later ones must ("mask B"), or they lose what it knew.

    Raises:
        TypeError, ValueError: from :func:`raster_mask`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, centre: bool):
        mask = raster_mask(kernel_size, centre)
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def receptive_field(decoder: nn.Module, shape: Sequence[int]) -> Tensor:
    """Which pixels each output of a chain of masked convolutions can depend on, exactly.

    It follows a light through the masks, layer by layer. Whatever skips layers must skip only such as see the
    pixel itself, for then it opens no further way.

    Args:
        decoder: its :class:`MaskedConv2d` are the layers, in the order in which it holds them.
        shape: height and width of the image.

    Returns:
        ``(pixels, pixels)``, bool, pixels in reading order: row i says what output i sees.

    Raises:
        ValueError: ``decoder`` has no such layer, or ``shape`` is not two numbers.
    """
    masks = [layer.mask for layer in decoder.modules() if isinstance(layer, MaskedConv2d)]
    if not masks:
        raise ValueError(f"decoder is a {type(decoder).__name__} without any MaskedConv2d.")
    if len(shape) != 2:
        raise ValueError(f"shape is {tuple(shape)} but needs (height, width).")
    lit = torch.eye(shape[0] * shape[1], device=masks[0].device).unflatten(1, (1, *shape))  # pixel by pixel
    for mask in masks:
        lit = (F.conv2d(lit, mask[None, None].to(lit), padding=len(mask) // 2) > 0).to(lit)
    return lit.flatten(1).T > 0


# --------------------------------------------------------------------------------- the model


class AutoregressiveDecoder(nn.Module):
    r"""p(x|z) as a product over pixels, each given z and a window of earlier pixels.

    .. math:: p(x|z) = \prod_i p\left(x_i | x_{\mathrm{window}(i)}, z\right)

    A masked convolution looks at the window, z enters as feature maps beside it, and layers that see one
    position alone make logits of both. With one masked layer of size k the window is that layer's: (k - 1)/2
    rows above and as much to the left, (k^2 - 1)/2 pixels. Each further one widens it by as much, but for a
    blind spot to the right. ``receptive_field(decoder, image_shape[1:])`` says which pixels it is.

    Args:
        from_code: maps ``(batch, latent_dim)`` to ``(batch, planes, *image_shape)``, or without ``planes``
            if that is 1.
        image_shape: ``(channels, height, width)``. The channels of one pixel are independent of each other
            given z and the earlier pixels.
        kernel_size: of the masked layers, odd; 1 shows no earlier pixel, and this is a VAE's decoder.
        masked_layers: how many of that size.
        pointwise_layers: how many see one position only; each has a skip around it.
        features: width of all these layers.
        planes: feature maps that z gives for each channel of the image.
        outputs: numbers per pixel; more than one gives ``(batch, outputs, *image_shape)``.

    Raises:
        TypeError, ValueError: something is no count, ``kernel_size`` is even, or the shape is another one.

    Source: Chen et al. (2017), sections 3.1 and 4.1; residual layers as van den Oord et al. (2016).
    """

    def __init__(
        self,
        from_code: nn.Module,
        image_shape: Sequence[int],
        *,
        kernel_size: int = 5,
        masked_layers: int = 1,
        pointwise_layers: int = 2,
        features: int = 16,
        planes: int = 4,
        outputs: int = 1,
    ):
        super().__init__()
        if len(image_shape) != 3:
            raise ValueError(f"image_shape is {tuple(image_shape)} but needs (channels, height, width).")
        for name, value in (("masked_layers", masked_layers), ("features", features), ("planes", planes)):
            check_count(name, value)
        check_count("pointwise_layers", pointwise_layers, least=0)
        channels = image_shape[0]
        sizes = [kernel_size] * (masked_layers - 1) + [1] * pointwise_layers
        self.from_code = from_code
        self.from_planes = nn.Conv2d(planes * channels, features, 1)
        self.from_pixels = MaskedConv2d(channels, features, kernel_size, centre=False)
        self.layers = nn.ModuleList(MaskedConv2d(features, features, size, centre=True) for size in sizes)
        self.to_output = MaskedConv2d(features, outputs * channels, 1, centre=True)
        self.reach = masked_layers * (kernel_size // 2)  # in rows and columns
        self.output_shape = (channels,) if outputs == 1 else (outputs, channels)

    def planes(self, z: Tensor) -> Tensor:
        """What z says at each position: ``(batch, latent_dim)`` to ``(batch, planes, height, width)``."""
        return self.from_code(z).flatten(1, -3)

    def output(self, x: Tensor, planes: Tensor) -> Tensor:
        """Logits of every pixel of ``x``, or of a part of it, each from earlier pixels and z's planes."""
        h = self.from_pixels(x) + self.from_planes(planes)
        for layer in self.layers:
            h = h + layer(F.relu(h))
        return self.to_output(F.relu(h)).unflatten(1, self.output_shape)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.output(x, self.planes(z))


class LossyVAE(VAE):
    r"""A VAE whose decoder sees earlier pixels through a window, so that z holds what does not fit into it.

    With all earlier pixels in sight a decoder can do without z, and the best bound has a KL of zero: z costs
    its KL and buys nothing. What the window shows is left to the decoder, textures and strokes; z pays for
    what reaches further. The code is lossy, and the window says what is lost.

    The loss, the bound and the weights are those of a :class:`aecourse.vae.VAE`: log p(x|z) takes all pixels
    at once, each given the *true* earlier ones ("teacher forcing"). Images are drawn pixel by pixel:
    ``decode``, ``reconstruct``, ``interpolate``, ``traverse`` and ``sample`` return draws from p(x|z), in
    which the true image has no part but through z.

    Under ``"bernoulli"`` the bound holds for images of zeros and ones: train with
    ``transform=data.binarize``. Grey pixels in the window tell what a black and white image does not.

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``mean`` and ``logvar``, each ``(batch, latent_dim)``.
        decoder: maps images and codes to what the likelihood needs, every pixel from earlier ones: an
            :class:`AutoregressiveDecoder`.
        image_shape: ``(channels, height, width)``.
        likelihood: ``"bernoulli"``, ``"categorical"`` or such an object.
        progress: show a bar while images are drawn.
        latent_dim, levels, beta, free_bits, samples, prior_temperature: as for :class:`aecourse.vae.VAE`.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`, or another likelihood.

    Source: Chen et al. (2017), section 3.1. Their prior of z is a flow; see :mod:`aecourse.zoo.flows`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, progress: bool = True, **options):
        super().__init__(encoder, decoder, **options)
        if not isinstance(self.likelihood, Bernoulli | Categorical):
            name = type(self.likelihood).__name__
            raise ValueError(f"likelihood is {name} but must be Bernoulli or Categorical: logits per pixel.")
        self.progress = progress

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        kernel_size: int = 5,
        masked_layers: int = 1,
        pointwise_layers: int = 2,
        features: int = 16,
        planes: int = 4,
        **options,
    ) -> "LossyVAE":
        """Over networks of :func:`aecourse.nets.build`; options are theirs, those of the class and of
        :class:`AutoregressiveDecoder`. The decoder among these networks gives z's planes."""
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        encoder, from_code = build(kind, image_shape, latent_dim, outputs=planes, **networks)
        decoder = AutoregressiveDecoder(
            from_code,
            image_shape,
            kernel_size=kernel_size,
            masked_layers=masked_layers,
            pointwise_layers=pointwise_layers,
            features=features,
            planes=planes,
            outputs=likelihood.outputs,
        )
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, decoder, likelihood=likelihood, **shapes, **options)

    def decoder_output(self, x: Tensor, z: Tensor) -> Tensor:
        """Logits of every pixel of x, ``(batch, *image_shape)``, given z, ``(batch, latent_dim)``, and the
        pixels of x that come before it."""
        check_batch("x", x, self.image_shape)
        check_batch("z", z, (self.latent_dim,))
        if isinstance(self.likelihood, Categorical):  # rounds x, and what is finer must not be seen
            x = (x * (self.likelihood.outputs - 1)).round() / (self.likelihood.outputs - 1)
        return self.decoder(x, z).to(z.dtype)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), nats per example: ``(batch,)``, or ``(samples, batch)`` for z of several draws,
        ``(samples, batch, latent_dim)``."""
        if z.dim() == 3:
            return super().log_likelihood(x, z)  # which asks again, with all draws as one large batch
        return self.likelihood.log_prob(x, self.decoder_output(x, z))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Draw an image from p(x|z), pixel by pixel: ``(batch, latent_dim)`` to ``(batch, *image_shape)``.

        One draw and no mean: the mean of p(x|z) is a sum over all images. Each pixel takes one pass through
        the decoder's layers, over what it can see.
        """
        check_batch("z", z, (self.latent_dim,))
        planes, reach = self.decoder.planes(z).to(z.dtype), self.decoder.reach
        x = z.new_zeros(len(z), *self.image_shape)
        pixels = [*product(*map(range, self.image_shape[1:]))]
        for i, j in tqdm(pixels, disable=not self.progress, unit="pixel", leave=False):
            rows, columns = slice(max(i - reach, 0), i + 1), slice(max(j - reach, 0), j + reach + 1)
            logits = self.decoder.output(x[..., rows, columns], planes[..., rows, columns])
            x[..., i, j] = self._draw(logits[..., -1, min(j, reach)].to(z.dtype))
        return x

    def _draw(self, logits: Tensor) -> Tensor:
        """A value for each channel of one pixel, ``(batch, channels)``."""
        if isinstance(self.likelihood, Bernoulli):
            return torch.bernoulli(logits.sigmoid())
        shares = logits.softmax(dim=1).movedim(1, -1)  # of the levels
        levels = torch.multinomial(shares.flatten(0, 1), 1).view(shares.shape[:2])
        return levels.to(logits.dtype) / (self.likelihood.outputs - 1)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Draw an image from p(x|z) at the mean z of q(z|x): what z knows of x, ``(batch, *image_shape)``."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def next_pixel_means(self, x: Tensor, z: Tensor) -> Tensor:
        """The mean of every pixel given z and the *true* earlier pixels, ``(batch, *image_shape)``.

        No reconstruction from z: where z knows nothing it still looks like x, for the window shows x.
        """
        return self.likelihood.mean(self.decoder_output(x, z))
