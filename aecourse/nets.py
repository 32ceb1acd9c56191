"""Encoders and decoders: networks that turn images into the parameters of distributions and back.

All of them share one form. An encoder is made as ``Encoder(image_shape, latent_dim, widths)`` and gives
the mean and the log-variance of q(z|x), or with ``gaussian=False`` one code, as a plain autoencoder needs.
A decoder is made as ``Decoder(latent_dim, image_shape, widths)``, with the widths in the order in which
data pass them, and gives one number per pixel, ``(batch, *image_shape)``, or with ``outputs=n`` several,
``(batch, n, *image_shape)``: a mean and a log-variance, or the logits of n grey values. :func:`build` makes
an encoder and the decoder that mirrors it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn

from aecourse.contracts import check_count

NETWORK_OPTIONS = ("hidden", "channels", "activation", "batch_norm", "dropout", "blocks")
"""What the networks of :func:`build` may be told, besides sizes."""


def build(
    kind: str,
    image_shape: Sequence[int],
    latent_dim: int,
    *,
    gaussian: bool = True,
    outputs: int = 1,
    condition: int = 0,
    **options,
) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder that mirror each other.

    Args:
        kind: ``"mlp"``, ``"conv"``, ``"conv1d"`` (time series) or ``"residual"``.
        image_shape: for example ``(1, 28, 28)``.
        latent_dim: the size of the code.
        gaussian: whether the encoder gives a ``mean`` and a ``logvar``, or one code.
        outputs: numbers that the decoder gives for each pixel.
        condition: how many more channels the encoder gets, and how many more numbers the decoder gets beside
            the code: those of a condition that both are to see.
        options: of the networks, as :data:`NETWORK_OPTIONS` lists them: ``hidden`` and ``channels`` in the
            order of the encoder, and what both get.

    Raises:
        TypeError, ValueError: an unknown kind, an option that it does not have, sizes that do not fit.
    """
    if kind not in NETWORKS:
        raise ValueError(f"kind is {kind!r} but must be one of {tuple(NETWORKS)}.")
    _check_networks(image_shape, latent_dim, options.get("hidden", ()), outputs)
    _check_sizes("channels", options.get("channels", ()))
    check_count("condition", condition, least=0)
    encoder, decoder = NETWORKS[kind]
    channels, *size = image_shape
    planes = {"condition": condition} if encoder is MLPEncoder else {}  # for the others channels like any
    reversed_widths = {name: options[name][::-1] for name in ("hidden", "channels") if name in options}
    return (
        encoder((channels + condition, *size), latent_dim, gaussian=gaussian, **planes, **options),
        decoder(latent_dim + condition, image_shape, outputs=outputs, **options | reversed_widths),
    )


def split_options(options: dict) -> tuple[dict, dict]:
    """Options of a model's builder in two: those of its networks, and those of the model itself."""
    networks = {name: value for name, value in options.items() if name in NETWORK_OPTIONS}
    return networks, {name: value for name, value in options.items() if name not in networks}


def mlp(
    sizes: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between each two; the last one is bare.

    Args:
        sizes: of the input, of each hidden layer and of the output.
        activation: a class such as ``nn.ReLU`` or ``nn.Sigmoid``.
        batch_norm: normalise before each activation (Ioffe & Szegedy 2015). In training mode the
            examples of a batch then depend on each other.
        dropout: the probability to set a hidden unit to zero in training (Srivastava et al. 2014).

    Raises:
        TypeError, ValueError: fewer than two sizes, a size below 1, an activation that is no class, a
            dropout outside [0, 1).
    """
    _check_sizes("sizes", sizes)
    if len(sizes) < 2:
        raise ValueError(f"sizes is {tuple(sizes)} but needs at least an input and an output size.")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers.append(nn.Linear(inputs, outputs))
        layers += _between_layers(nn.BatchNorm1d(outputs) if batch_norm else None, activation, dropout)
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class MLPEncoder(nn.Module):
    """q(z|x): ``(batch, *image_shape)`` to the ``mean`` and ``logvar`` of z, each ``(batch, latent_dim)``.

    Args:
        image_shape: any shape; the images are flattened.
        latent_dim: the size of the code.
        hidden: the sizes of the hidden layers.
        activation, batch_norm, dropout: see :func:`mlp`.
        gaussian: give ``mean`` and ``logvar``; False gives one code, ``(batch, latent_dim)``.
        condition: how many of the channels, the last ones, hold one number at all of their pixels. It enters
            once: as hundreds of equal inputs it would have that many times its gradient, and at a learning
            rate that suits pixels its weights would jump about.

    Raises:
        TypeError, ValueError: from :func:`mlp`.

    Source: Kingma & Welling (2014), appendix C.2, with ReLU for tanh.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        dropout: float = 0.0,
        gaussian: bool = True,
        condition: int = 0,
    ):
        super().__init__()
        _check_networks(image_shape, latent_dim, hidden)
        self.gaussian = gaussian
        self.condition = condition
        pixels = (image_shape[0] - condition) * math.prod(image_shape[1:])
        sizes = [pixels + condition, *hidden, 2 * latent_dim if gaussian else latent_dim]
        self.net = mlp(sizes, activation, batch_norm, dropout)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.condition:
            images, planes = x[:, : -self.condition], x[:, -self.condition :]
            x = torch.cat([images.flatten(1), planes.flatten(1)[:, :: math.prod(x.shape[2:])]], dim=1)
        outputs = self.net(x.flatten(1))
        return outputs.chunk(2, dim=1) if self.gaussian else outputs


class MLPDecoder(nn.Module):
    """p(x|z): ``(batch, latent_dim)`` to ``(batch, *image_shape)``, logits or means as the likelihood asks.

    Args:
        latent_dim: the size of the code.
        image_shape: any shape.
        hidden: the sizes of the hidden layers, the one next to the code first.
        activation, batch_norm, dropout: see :func:`mlp`.
        outputs: numbers per pixel; more than one gives ``(batch, outputs, *image_shape)``.

    Raises:
        TypeError, ValueError: from :func:`mlp`.

    Source: Kingma & Welling (2014), appendix C.1, with ReLU for tanh.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        hidden: Sequence[int] = (400,),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        dropout: float = 0.0,
        outputs: int = 1,
    ):
        super().__init__()
        _check_networks(image_shape, latent_dim, hidden, outputs)
        self.output_shape = tuple(image_shape) if outputs == 1 else (outputs, *image_shape)
        self.net = mlp([latent_dim, *hidden, math.prod(self.output_shape)], activation, batch_norm, dropout)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).unflatten(1, self.output_shape)


class ConvEncoder(nn.Module):
    """q(z|x) by strided convolutions: each stage halves the height and the width.

    A stage has a 4 x 4 kernel, stride 2 and padding 1, which takes a length n to floor(n / 2).

    Args:
        image_shape: ``(channels, height, width)``, height and width at least 2 to the number of stages.
        latent_dim: the size of the code.
        channels: of each stage.
        hidden: sizes of fully connected layers between the last stage and the code; none by default.
        activation, batch_norm, dropout: as in :func:`mlp`.
        gaussian: give ``mean`` and ``logvar``; False gives one code, ``(batch, latent_dim)``.

    Raises:
        TypeError, ValueError: an image that is too small for the stages, or of another dimension.

    Source: with ``channels=(32, 32, 32, 32)`` and ``hidden=(256, 256)``, Burgess et al. (2018), appendix.
    """

    dimensions = 2

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        dropout: float = 0.0,
        gaussian: bool = True,
    ):
        super().__init__()
        _check_networks(image_shape, latent_dim, hidden)
        smallest = _stage_sizes(image_shape, channels, self.dimensions)[-1]
        convolution, normalisation = _CONVOLUTIONS[self.dimensions], _NORMALISATIONS[self.dimensions]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([image_shape[0], *channels]):
            layers.append(convolution(inputs, outputs, 4, stride=2, padding=1))
            layers += _between_layers(normalisation(outputs) if batch_norm else None, activation, dropout)
        self.gaussian = gaussian
        sizes = [channels[-1] * math.prod(smallest), *hidden, 2 * latent_dim if gaussian else latent_dim]
        self.net = nn.Sequential(*layers, nn.Flatten(), *mlp(sizes, activation, batch_norm, dropout))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        outputs = self.net(x)
        return outputs.chunk(2, dim=1) if self.gaussian else outputs


class ConvDecoder(nn.Module):
    """p(x|z) by transposed convolutions: :class:`ConvEncoder` backwards, to exactly ``image_shape``.

    Each stage goes from floor(n / 2) back to n. A kernel of 4 with stride 2 gives 2 floor(n / 2); where n
    is odd, ``output_padding`` adds the row that the encoder's stage did not need.

    Args:
        latent_dim: the size of the code.
        image_shape: ``(channels, height, width)``, height and width at least 2 to the number of stages.
        channels: of the input of each stage, the one next to the code first.
        hidden: sizes of fully connected layers between the code and the first stage; none by default.
        activation, batch_norm, dropout: as in :func:`mlp`.
        outputs: numbers per pixel; more than one gives ``(batch, outputs, *image_shape)``.

    Raises:
        TypeError, ValueError: an image that is too small for the stages, or of another dimension.
    """

    dimensions = 2

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        dropout: float = 0.0,
        outputs: int = 1,
    ):
        super().__init__()
        _check_networks(image_shape, latent_dim, hidden, outputs)
        sizes = _stage_sizes(image_shape, channels, self.dimensions)[::-1]  # the smallest first
        convolution, normalisation = _TRANSPOSED[self.dimensions], _NORMALISATIONS[self.dimensions]
        start = (channels[0], *sizes[0])
        layers = [*mlp([latent_dim, *hidden, math.prod(start)], activation, batch_norm, dropout)]
        layers.append(nn.Unflatten(1, start))
        widths = pairwise([*channels, outputs * image_shape[0]])
        for (incoming, outgoing), (small, large) in zip(widths, pairwise(sizes)):
            layers += _between_layers(normalisation(incoming) if batch_norm else None, activation, dropout)
            missing = [n - 2 * m for m, n in zip(small, large)]  # 1 where n is odd
            layers.append(convolution(incoming, outgoing, 4, stride=2, padding=1, output_padding=missing))
        self.output_shape = tuple(image_shape) if outputs == 1 else (outputs, *image_shape)
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).reshape(len(z), *self.output_shape)


class Conv1dEncoder(ConvEncoder):
    """:class:`ConvEncoder` for time series, ``(batch, channels, length)``: kernels of 4 time steps."""

    dimensions = 1


class Conv1dDecoder(ConvDecoder):
    """:class:`ConvDecoder` for time series, ``(batch, channels, length)``: kernels of 4 time steps."""

    dimensions = 1


class ResidualBlock(nn.Module):
    """x + f(x), with f two 3 x 3 convolutions, each behind its activation ("pre-activation").

    Nothing stands between the sums, so that a signal and its gradient pass any number of blocks unchanged.

    Source: He et al. (2016), "Identity mappings in deep residual networks", figure 4 (e).
    """

    def __init__(
        self, channels: int, activation: Callable[[], nn.Module] = nn.ReLU, batch_norm: bool = False
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += _between_layers(nn.BatchNorm2d(channels) if batch_norm else None, activation)
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class ResidualEncoder(nn.Module):
    """q(z|x) by residual stages: a strided convolution that halves the image, then residual blocks.

    Args:
        image_shape: ``(channels, height, width)``, height and width at least 2 to the number of stages.
        latent_dim: the size of the code.
        channels: of each stage.
        hidden: sizes of fully connected layers between the last stage and the code; none by default.
        blocks: residual blocks in each stage.
        activation, batch_norm: as in :func:`mlp`. Without batch norm the examples of a batch stay
            independent, which is what the bound assumes.
        gaussian: give ``mean`` and ``logvar``; False gives one code, ``(batch, latent_dim)``.

    Raises:
        TypeError, ValueError: an image that is too small for the stages, or fewer than one block.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        *,
        blocks: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        gaussian: bool = True,
    ):
        super().__init__()
        _check_networks(image_shape, latent_dim, hidden)
        _check_sizes("blocks", [blocks])
        smallest = _stage_sizes(image_shape, channels)[-1]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([image_shape[0], *channels]):
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
            layers += [ResidualBlock(outputs, activation, batch_norm) for _ in range(blocks)]
        layers += _between_layers(nn.BatchNorm2d(channels[-1]) if batch_norm else None, activation)
        self.gaussian = gaussian
        sizes = [channels[-1] * math.prod(smallest), *hidden, 2 * latent_dim if gaussian else latent_dim]
        self.net = nn.Sequential(*layers, nn.Flatten(), *mlp(sizes, activation, batch_norm))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        outputs = self.net(x)
        return outputs.chunk(2, dim=1) if self.gaussian else outputs


class ResidualDecoder(nn.Module):
    """p(x|z) by residual stages: residual blocks, then a transposed convolution that doubles the image.

    Args:
        latent_dim: the size of the code.
        image_shape: ``(channels, height, width)``, height and width at least 2 to the number of stages.
        channels: of the input of each stage, the one next to the code first.
        hidden: sizes of fully connected layers between the code and the first stage; none by default.
        blocks: residual blocks in each stage.
        activation, batch_norm: as in :func:`mlp`.
        outputs: numbers per pixel; more than one gives ``(batch, outputs, *image_shape)``.

    Raises:
        TypeError, ValueError: an image that is too small for the stages, or fewer than one block.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        hidden: Sequence[int] = (),
        *,
        blocks: int = 1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        batch_norm: bool = False,
        outputs: int = 1,
    ):
        super().__init__()
        _check_networks(image_shape, latent_dim, hidden, outputs)
        _check_sizes("blocks", [blocks])
        sizes = _stage_sizes(image_shape, channels)[::-1]  # the smallest first
        start = (channels[0], *sizes[0])
        layers = [*mlp([latent_dim, *hidden, math.prod(start)], activation, batch_norm)]
        layers.append(nn.Unflatten(1, start))
        widths = pairwise([*channels, outputs * image_shape[0]])
        for (incoming, outgoing), (small, large) in zip(widths, pairwise(sizes)):
            layers += [ResidualBlock(incoming, activation, batch_norm) for _ in range(blocks)]
            layers += _between_layers(nn.BatchNorm2d(incoming) if batch_norm else None, activation)
            missing = [n - 2 * m for m, n in zip(small, large)]  # 1 where n is odd
            layers.append(nn.ConvTranspose2d(incoming, outgoing, 4, 2, padding=1, output_padding=missing))
        self.output_shape = tuple(image_shape) if outputs == 1 else (outputs, *image_shape)
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).reshape(len(z), *self.output_shape)


NETWORKS = {
    "mlp": (MLPEncoder, MLPDecoder),
    "conv": (ConvEncoder, ConvDecoder),
    "conv1d": (Conv1dEncoder, Conv1dDecoder),
    "residual": (ResidualEncoder, ResidualDecoder),
}
"""An encoder and its decoder by the name that :func:`build` takes."""

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
_NORMALISATIONS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def _between_layers(normalisation, activation, dropout: float = 0.0) -> list[nn.Module]:
    """What stands between two linear maps: normalisation, activation, dropout."""
    if isinstance(activation, nn.Module):
        raise TypeError(f"activation is {activation}, a module, but needs a class such as nn.ReLU.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout} but must be at least 0 and less than 1.")
    layers = [] if normalisation is None else [normalisation]
    layers.append(activation())
    return layers if dropout == 0 else [*layers, nn.Dropout(dropout)]


def _stage_sizes(
    image_shape: Sequence[int], channels: Sequence[int], dimensions: int = 2
) -> list[tuple[int, ...]]:
    """The image's size, without channels, before the first stage and after each of them."""
    _check_sizes("channels", channels)
    expected = "(channels, height, width)" if dimensions == 2 else "(channels, length)"
    if len(image_shape) != dimensions + 1:
        raise ValueError(f"image_shape is {tuple(image_shape)} but needs {expected}.")
    stages = len(channels)
    if stages < 1 or min(image_shape[1:]) < 2**stages:
        raise ValueError(
            f"image_shape is {tuple(image_shape)}, but channels has {stages} stages, which must be at least "
            f"1, and each of them halves the image: no side may be shorter than {2**stages}."
        )
    return [tuple(n >> stage for n in image_shape[1:]) for stage in range(stages + 1)]


def _check_networks(image_shape, latent_dim, hidden, outputs: int = 1) -> None:
    """Refuse sizes that no network can have."""
    _check_sizes("image_shape", image_shape)
    if len(image_shape) == 0:
        raise ValueError("image_shape is () but needs at least one dimension.")
    _check_sizes("latent_dim", [latent_dim])
    _check_sizes("hidden", hidden)
    _check_sizes("outputs", [outputs])


def _check_sizes(name: str, sizes: Sequence[int]) -> None:
    if not isinstance(sizes, Sequence):
        raise TypeError(f"{name} is {sizes!r} but needs a sequence of sizes, such as (400,).")
    for size in sizes:
        if not isinstance(size, Integral):
            raise TypeError(f"{name} has the size {size!r} but needs whole numbers.")
        if size < 1:
            raise ValueError(f"{name} has the size {size} but needs at least 1.")
