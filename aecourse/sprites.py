"""Sprites: pictures whose five factors are known, for measuring disentanglement.

A white shape on black, in the manner of dSprites (Matthey et al. 2017), with the same factors and as many
values of each, but drawn when it is asked for: nothing is downloaded, and any picture can be had.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FACTORS = ("shape", "scale", "rotation", "x", "y")
SIZES = (3, 6, 40, 32, 32)
"""How many values each factor has: 737,280 pictures in all."""

SHAPES = ("square", "ellipse", "heart")
# A square that is turned by 90 degrees is the same square. Rotations run through each shape's own period,
# so that no two are the same picture; dSprites turns every shape by 360 degrees, and some of its pictures
# have several labels.
PERIODS = (math.pi / 2, math.pi, 2 * math.pi)
RADIUS = 0.17  # half the width of the largest square, as a share of the image's
LOW, HIGH = 0.25, 0.75  # between these the centre moves, so that a shape never leaves the picture


class Sprites(NamedTuple):
    """Pictures with the factors they were drawn from; made by :func:`sprites`."""

    images: Tensor
    """``(N, 1, size, size)``, float32 in [0, 1], with smooth edges."""

    factors: Tensor
    """``(N, 5)``, int64: the index of shape, scale, rotation, x and y, as :data:`FACTORS` names them."""

    values: Tensor
    """``(N, 5)``: the shape's index, scale from 0.5 to 1, angle in radians, and the centre in [0, 1]."""


def sprites(count: int, size: int = 64) -> Sprites:
    """Draw sprites with random factors, each independent and uniform.

    Args:
        count: N.
        size: height and width of the pictures, at least 8.

    Returns:
        The pictures with their factors.

    Raises:
        ValueError: ``count`` or ``size`` is too small.
    """
    if count < 1:
        raise ValueError(f"count is {count} but must be at least 1.")
    factors = torch.stack([torch.randint(values, (count,)) for values in SIZES], dim=1)
    return Sprites(draw_sprites(factors, size), factors, sprite_values(factors))


def sprite_values(factors: Tensor) -> Tensor:
    """What the indices mean: ``(N, 5)`` int64 to ``(N, 5)``; see :class:`Sprites`.

    Raises:
        TypeError, ValueError: another dtype or shape, or an index that its factor does not have.
    """
    if not isinstance(factors, Tensor) or factors.dtype != torch.int64:
        kind = factors.dtype if isinstance(factors, Tensor) else type(factors).__name__
        raise TypeError(f"factors must be a torch.Tensor of torch.int64, not {kind}.")
    if factors.dim() != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(f"factors has shape {tuple(factors.shape)} but needs (N, {len(FACTORS)}).")
    for name, values, column in zip(FACTORS, SIZES, factors.unbind(dim=1)):
        low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
        if low < 0 or high >= values:
            raise ValueError(f"factors has a {name} from {low} to {high} but needs 0 to {values - 1}.")
    shape, scale, rotation, x, y = factors.unbind(dim=1)
    period = torch.tensor(PERIODS, device=factors.device)[shape]
    return torch.stack(
        [
            shape.float(),
            0.5 + 0.5 * scale / (SIZES[1] - 1),
            period * rotation / SIZES[2],
            LOW + (HIGH - LOW) * x / (SIZES[3] - 1),
            LOW + (HIGH - LOW) * y / (SIZES[4] - 1),
        ],
        dim=1,
    )


def draw_sprites(factors: Tensor, size: int = 64) -> Tensor:
    """Draw the sprites with these factors: ``(N, 5)`` int64 to ``(N, 1, size, size)``, float32 in [0, 1].

    A metric that holds one factor fixed draws its own pictures with it.

    Raises:
        TypeError, ValueError: as for :func:`sprite_values`, or ``size`` is below 8.
    """
    if size < 8:
        raise ValueError(f"size is {size} but must be at least 8, or the shapes cannot be told apart.")
    values = sprite_values(factors)
    if len(values) == 0:
        return values.new_zeros(0, 1, size, size)
    # Drawn with 64 pixels or more and then averaged: on coarser ones the heart's distance is too rough, and
    # leaves a grey halo.
    finer = math.ceil(64 / size)
    parts = [F.avg_pool2d(_draw(part, finer * size), finer) for part in values.split(500)]
    return torch.cat(parts).unsqueeze(1)


def _draw(values: Tensor, size: int) -> Tensor:
    """``(N, 5)`` values to ``(N, size, size)``; rows of the picture run downwards, y too."""
    shape, scale, angle, x, y = values.view(-1, 5, 1, 1).unbind(dim=1)
    centres = (torch.arange(size, device=values.device) + 0.5) / size
    right, down = centres.view(1, 1, size) - x, centres.view(1, size, 1) - y
    # Into the shape's own frame: turned back, and with the largest square from -1 to 1.
    radius = RADIUS * scale
    u = (right * angle.cos() + down * angle.sin()) / radius
    v = (down * angle.cos() - right * angle.sin()) / radius
    distances = (_square(u, v), _ellipse(u, v), _heart(u, -v))  # v up: hearts stand on their tip
    distance = torch.where(shape == 0, distances[0], torch.where(shape == 1, distances[1], distances[2]))
    # A pixel is as white as its share inside, if the edge is straight there: half at distance 0.
    return (0.5 - distance * radius * size).clamp(0, 1)


# Distances to each outline, negative inside: exact for the square, to first order (value of an implicit
# function over the length of its gradient) for the others, which is all that the edge needs.


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 1


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    a, b = 1.2, 0.65
    value = (u / a).square() + (v / b).square() - 1
    return value / (2 * torch.hypot(u / a**2, v / b**2)).clamp(min=1e-6)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """The curve (u^2 + v^2 - 1)^3 = u^2 v^3, a little smaller and lifted into the middle."""
    u, v = 1.15 * u, 1.15 * v + 0.15
    p = u.square() + v.square() - 1
    value = p**3 - u.square() * v**3
    slope = torch.hypot(6 * u * p.square() - 2 * u * v**3, 6 * v * p.square() - 3 * u.square() * v.square())
    return value / (1.15 * slope).clamp(min=1e-6)
