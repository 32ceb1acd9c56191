"""Encoders and decoders: networks that turn images into the parameters of distributions and back."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given sizes with a ReLU between each two; the last one is bare."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class MLPEncoder(nn.Module):
    """q(z|x): ``(batch, *image_shape)`` to the ``mean`` and ``logvar`` of z, each ``(batch, latent_dim)``.

    Source: Kingma & Welling (2014), appendix C.2, with ReLU for tanh.
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (400,)):
        super().__init__()
        self.net = mlp([math.prod(image_shape), *hidden, 2 * latent_dim])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.net(x.flatten(1)).chunk(2, dim=1)
        return mean, logvar


class MLPDecoder(nn.Module):
    """p(x|z): ``(batch, latent_dim)`` to ``(batch, *image_shape)``, logits or means as the likelihood asks.

    Source: Kingma & Welling (2014), appendix C.1, with ReLU for tanh.
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int], hidden: Sequence[int] = (400,)):
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.net = mlp([latent_dim, *hidden, math.prod(image_shape)])

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).unflatten(1, self.image_shape)
