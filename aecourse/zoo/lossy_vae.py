"""The variational lossy autoencoder: a decoder that sees a few earlier pixels (Chen et al. 2017)."""

import torch
from torch import Tensor, nn

from aecourse.contracts import check_count


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
