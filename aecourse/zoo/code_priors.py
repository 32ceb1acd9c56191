"""Priors over discrete codes: how likely is a grid of whole numbers, and how to draw one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aecourse.bounds import Loss
from aecourse.contracts import check_count
from aecourse.zoo.lossy_vae import MaskedConv2d
from aecourse.zoo.stages import Stage


def occurrences(indices: Tensor, codes: int) -> Tensor:
    """How often each code occurs, ``(codes,)`` int64: whole numbers add up alike in any order."""
    flat = indices.flatten()
    return torch.zeros(codes, dtype=torch.int64, device=flat.device).scatter_add(
        0, flat, torch.ones_like(flat)
    )


class HistogramPrior(nn.Module):
    """All positions independent and alike; uniform until :meth:`fit_` has counted.

    Args:
        codes: how many.
        grid: the positions.
    """

    def __init__(self, codes: int, grid: Sequence[int]):
        super().__init__()
        self.codes, self.grid = codes, tuple(grid)
        self.register_buffer("logits", torch.zeros(codes))
        self.register_buffer("fitted", torch.tensor(False))

    def fit_(self, indices: Tensor, smoothing: float = 0.5) -> None:
        """Count the codes of ``(N, *grid)``. Each gets ``smoothing`` occurrences more than it has, so that
        one that occurs later only is not impossible (Krichevsky & Trofimov 1981)."""
        if not 0 <= smoothing < math.inf:
            raise ValueError(f"smoothing is {smoothing} but must be at least 0 and finite.")
        n = occurrences(indices, self.codes).to(self.logits.dtype) + smoothing
        self.logits.copy_(n.log())
        self.fitted.fill_(True)

    def log_prob(self, indices: Tensor) -> Tensor:
        """log p(k), nats per example: ``(batch, *grid)`` to ``(batch,)``."""
        return self.logits.log_softmax(dim=0)[indices].flatten(1).sum(dim=1)

    def sample(self, count: int) -> Tensor:
        """``(count, *grid)``."""
        draws = self.logits.softmax(dim=0).multinomial(count * math.prod(self.grid), replacement=True)
        return draws.view(count, *self.grid)


class AutoregressivePrior(nn.Module):
    r"""log p(k) is the sum of log p(k_t | k_1, ..., k_{t-1}) over positions in raster order.

    A first convolution that does not see its own position, residual blocks that do, and K logits at each; a
    position has a vector of its own beside, because images differ from place to place.

    Args:
        codes: how many.
        grid: the positions: ``(height, width)``, or ``(length,)``.
        channels: of the hidden layers.
        layers: residual blocks.

    Raises:
        TypeError, ValueError: a count that is none, a grid of more dimensions.

    Source: van den Oord, Kalchbrenner & Kavukcuoglu (2016), section 3.
    """

    def __init__(self, codes: int, grid: Sequence[int], channels: int = 64, layers: int = 3):
        super().__init__()
        check_count("channels", channels)
        check_count("layers", layers, least=0)
        if len(grid) not in (1, 2):
            raise ValueError(f"grid is {tuple(grid)} but needs (height, width), or (length,).")
        self.codes, self.grid = codes, tuple(grid)
        self.plane = (1, *grid) if len(grid) == 1 else tuple(grid)
        self.embedding = nn.Embedding(codes, channels)
        self.first = MaskedConv2d(channels, channels, 5, centre=False)
        self.place = nn.Parameter(torch.zeros(channels, *self.plane))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                MaskedConv2d(channels, channels, 3, centre=True),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
            )
            for _ in range(layers)
        )
        self.head = nn.Conv2d(channels, codes, 1)
        self.register_buffer("fitted", torch.tensor(False))

    def logits(self, indices: Tensor) -> Tensor:
        """Of each position given those before it: ``(batch, *grid)`` to ``(batch, codes, *grid)``."""
        embedded = self.embedding(indices.view(-1, *self.plane)).movedim(-1, 1)
        hidden = self.first(embedded) + self.place
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits = self.head(hidden.relu()).to(self.place.dtype)
        return logits.view(len(indices), self.codes, *self.grid)

    def log_prob(self, indices: Tensor) -> Tensor:
        """log p(k), nats per example: ``(batch, *grid)`` to ``(batch,)``."""
        log_probabilities = self.logits(indices).log_softmax(dim=1)
        return log_probabilities.gather(1, indices.unsqueeze(1)).flatten(1).sum(dim=1)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Position by position, each drawn given the ones before: ``(count, *grid)``."""
        positions = math.prod(self.grid)
        indices = torch.zeros(count, positions, dtype=torch.int64, device=self.place.device)
        for position in range(positions):
            logits = self.logits(indices.view(count, *self.grid)).flatten(2)[:, :, position]
            indices[:, position] = logits.softmax(dim=1).multinomial(1).squeeze(1)
        return indices.view(count, *self.grid)


class PriorStage(Stage):
    """The training of a model's autoregressive prior: its loss is -log p(k) of the codes of images, nats.

    Encoder and quantiser are constants to it: they are its own, so that they go where it goes and its
    checkpoints know them, and only the prior is learned.

    Args:
        model: a :class:`aecourse.zoo.vqvae.VQVAE`.
    """

    constant = ("encoder", "quantizer")

    def __init__(self, model: nn.Module):
        super().__init__()
        self.prior = model.priors["autoregressive"]
        self.encoder, self.quantizer = model.encoder.eval(), model.quantizer.eval()
        self._model = (model,)  # in a tuple, so that it is no part of this module

    def loss(self, x: Tensor) -> Loss:
        """``(batch, *image_shape)`` to the rate: the mean over the batch of -log p(k), nats per example."""
        rate = -self.prior.log_prob(self._model[0].indices(x)).mean()
        return Loss(total=rate, parts={"rate": rate})

    @torch.no_grad()
    def after_step(self) -> None:
        """Note that the prior has learned something."""
        self.prior.fitted.fill_(True)

    def validate(self, images: Tensor) -> None:
        """As of the model."""
        self._model[0].validate(images)
