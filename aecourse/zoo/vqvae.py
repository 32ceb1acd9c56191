"""Discrete codes: the vector-quantised autoencoder (van den Oord, Vinyals & Kavukcuoglu 2017)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse import nets
from aecourse.bounds import Loss
from aecourse.contracts import (
    check_batch,
    check_count,
    check_images,
    check_shapes,
)
from aecourse.distributed import Team, all_sum
from aecourse.likelihoods import Likelihood, as_likelihood, pop_likelihood
from aecourse.zoo.code_priors import AutoregressivePrior, HistogramPrior, PriorStage, occurrences

FORGOTTEN = 1e-6  # with fewer points than that, a mean is rounding
LEARNING = ("ema", "gradient")
STARTS = ("k-means", "random")
PRIORS = ("autoregressive", "histogram", "uniform")

# ---------------------------------------------------------------------------- quantisation


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """The index of the code that is nearest to each point, the first of several.

    From differences, one by one: the usual shortcut by a matrix product, |z|^2 - 2 z e + |e|^2, cancels, and
    far from the origin single precision then picks another code.

    Args:
        z: ``(points, dim)``.
        codes: ``(codes, dim)``.

    Returns:
        ``(points,)`` int64; no gradient passes.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: van den Oord et al. (2017), equation 1.
    """
    check_shapes(("z", z, "points dim"), ("codes", codes, "codes dim"))
    differences = "donot_use_mm_for_euclid_dist"
    return torch.cdist(z.detach(), codes.detach(), compute_mode=differences).argmin(dim=1)


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q, to the last bit, with the gradient of z: as if quantisation had changed nothing.

    Args:
        z: any shape.
        q: the same shape; no gradient reaches it.

    Source: Bengio, Leonard & Courville (2013); van den Oord et al. (2017), section 3.2.
    """
    return q.detach() + (z - z.detach())


def ema_step(counts: Tensor, sums: Tensor, z: Tensor, indices: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    r"""Moving averages of how many points each code gets per batch, and of their sum; their quotient is the
    code.

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \qquad
              m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{i: k_i = k} z_i, \qquad e_k = m_k / N_k

    Where several processes train one model, the sums are over the points of all. With ``decay`` 0 it is
    Lloyd's step of k-means.

    Args:
        counts: ``(codes,)``, N.
        sums: ``(codes, dim)``, m: at the start the codes *times* ``counts``.
        z: ``(points, dim)``.
        indices: ``(points,)`` int64, the code of each point.
        decay: gamma, in [0, 1).

    Returns:
        New ``counts`` and ``sums``.

    Source: van den Oord et al. (2017), appendix A.1.
    """
    check_shapes(("counts", counts, "codes"), ("sums", sums, "codes dim"), ("z", z, "points dim"))
    n = all_sum(occurrences(indices, len(counts)).to(counts.dtype))
    total = all_sum(torch.zeros_like(sums).index_add(0, indices, z))
    return decay * counts + (1 - decay) * n, decay * sums + (1 - decay) * total


def k_means(z: Tensor, codes: Tensor, steps: int = 10) -> Tensor:
    """Lloyd's algorithm from these ``codes``, ``(codes, dim)``: each becomes the mean of its points, so many
    times. A code without points stays where it is."""
    for _ in range(steps):
        nothing = torch.zeros_like(codes[:, 0]), torch.zeros_like(codes)
        codes = _means(*ema_step(*nothing, z, nearest(z, codes), decay=0.0), codes)
    return codes


def fsq(z: Tensor, levels: Sequence[int] | Tensor) -> Tensor:
    r"""Finite scalar quantisation: every number to the nearest of L equal steps from -1 to 1.

    .. math:: q = \frac{2}{L - 1} \operatorname{round}\left((L - 1) \frac{\tanh z + 1}{2}\right) - 1

    The gradient is that of tanh z. For odd L it is the function of the paper. For even L the paper shifts z,
    so that 0 is a level; here the levels are symmetric about 0 (as in Parker et al. 2024), which needs no
    shift and works for L = 2, where the paper's is infinite.

    Args:
        z: ``(..., dim)``.
        levels: L of each dimension, at least 2.

    Returns:
        The shape of z, values in [-1, 1].

    Source: Mentzer et al. (2024), section 3.1.
    """
    if len(levels) != z.shape[-1]:
        raise ValueError(f"levels holds {len(levels)} numbers but z has {z.shape[-1]} dimensions.")
    bounded, levels = z.tanh(), torch.as_tensor(levels, dtype=z.dtype, device=z.device)
    return straight_through(bounded, _fsq_values(_fsq_digits(bounded, levels), levels))


def usage(indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """How well a codebook is used: the perplexity exp H(k) of these indices, and how many codes occur.

    Neither can exceed the number of indices. So a batch says little about a large codebook; ask for a whole
    data set with :meth:`VQVAE.usage`.

    Args:
        indices: int64, any shape.
        codes: how many there are.

    Returns:
        The perplexity, between 1 and ``codes``, and the number of codes in use: scalars.
    """
    n = all_sum(occurrences(indices, codes))
    return torch.special.entr(n / n.sum()).sum().exp(), (n > 0).sum()


def _means(counts: Tensor, sums: Tensor, codes: Tensor) -> Tensor:
    """The codes that counts and sums say; those of next to no points stay."""
    counts = counts.unsqueeze(1)
    return torch.where(counts > FORGOTTEN, sums / counts, codes)


def _drawn(z: Tensor, lots: Tensor, count: int) -> Tensor:
    """So many points of the batch of all processes: those with the highest lots, all of them in turn if there
    are too few. The same in every process, and whatever their number."""
    best = lots.topk(min(count, len(lots)))
    rows = F.pad(torch.cat([best.values.unsqueeze(1), z[best.indices]], dim=1), (0, 0, 0, count))[:count]
    team = Team.joined
    if team is not None and team.size > 1:
        everybody = rows.new_zeros(team.size, *rows.shape)
        everybody[team.rank] = rows
        rows = all_sum(everybody).flatten(0, 1)
    rows = rows[rows[:, 0].argsort(descending=True, stable=True)]
    there = (rows[:, 0] > 0).sum()
    return rows[torch.arange(count, device=z.device) % there, 1:]


def _fsq_digits(bounded: Tensor, levels: Tensor) -> Tensor:
    """Values in [-1, 1] to the number of the nearest level, from 0: int64."""
    digits = ((levels - 1) * (bounded.detach() + 1) / 2).round()
    return digits.nan_to_num().long()  # what is not finite shows in the values, and must not in an index


def _fsq_values(digits: Tensor, levels: Tensor) -> Tensor:
    """The way back."""
    return 2 * digits / (levels - 1) - 1


class Quantized(NamedTuple):
    """What a quantiser makes of ``(batch, *grid, dim)``."""

    values: Tensor
    """The codes, same shape, with the gradient of the input (straight through)."""

    indices: Tensor
    """Which codes: ``(batch, *grid)`` int64."""

    penalty: Tensor
    """What the quantiser adds to the loss, ``(batch,)``."""

    distance: Tensor
    """Squared distance to the codes, summed over an example: ``(batch,)``, in squares of the code's units."""


class VectorQuantizer(nn.Module):
    r"""Each vector becomes the nearest of K learned codes.

    .. math:: \|\operatorname{sg}(z) - e_k\|^2 + \beta \|z - \operatorname{sg}(e_k)\|^2

    The first term draws the codes to their points. It is not in the penalty of ``learning="ema"``, where they
    are moving averages of their points, made in :meth:`after_step`. The second, the commitment, draws the
    encoder's output to the codes.

    In training mode, the first step only looks where its points are; then the codes start by k-means on them.
    After every step, a code that gets less than ``restart`` of the points it would get if all were used
    equally is dead, and takes a random point of this batch as its place. Its average starts at twice that
    threshold: it has time to find points, and gives way to them fast.

    Args:
        codes: K.
        dim: numbers in a code.
        learning: ``"ema"`` or ``"gradient"``.
        commitment: beta.
        decay: of the moving averages.
        start: ``"k-means"`` on the first batch, or ``"random"``, draws from N(0, 1).
        restart: what share of the mean usage makes a code dead; 0 lets them die.

    Raises:
        TypeError, ValueError: an unknown name, or a number out of range.

    Source: van den Oord et al. (2017), equation 3 and appendix A.1; restarts as in Dhariwal et al. (2020).
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        learning: str = "ema",
        commitment: float = 0.25,
        decay: float = 0.99,
        start: str = "k-means",
        restart: float = 0.03,
    ):
        super().__init__()
        check_count("codes", codes)
        check_count("dim", dim)
        for name, value, known in (("learning", learning, LEARNING), ("start", start, STARTS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r} but must be one of {known}.")
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment is {commitment} but must be at least 0 and finite.")
        for name, value in (("decay", decay), ("restart", restart)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value} but must be at least 0 and less than 1.")
        self.count, self.dim = codes, dim
        self.learning, self.commitment, self.decay = learning, commitment, decay
        self.start, self.restart = start, restart
        codebook = torch.randn(codes, dim)
        if learning == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook.clone())
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("started", torch.tensor(start == "random"))
        self._unsure = True  # whether `started` must be looked at: once, because a GPU makes one wait
        self._seen = None

    def forward(self, z: Tensor) -> Quantized:
        """``(batch, *grid, dim)`` to its codes; see :class:`Quantized`."""
        points = z.detach().flatten(0, -2)
        indices = nearest(points, self.codebook).view(z.shape[:-1])
        if self.training and torch.is_grad_enabled():  # looking changes nothing
            lots = 1 - torch.rand_like(z.detach()[..., 0])  # in (0, 1], of the noise that processes share
            self._seen = points, indices.flatten(), lots.flatten()
        codes = F.embedding(indices, self.codebook)
        distance = (z - codes.detach()).square().flatten(1).sum(dim=1)
        penalty = self.commitment * distance
        if self.learning == "gradient":
            penalty = penalty + (z.detach() - codes).square().flatten(1).sum(dim=1)
        return Quantized(straight_through(z, codes), indices, penalty, distance)

    def lookup(self, indices: Tensor) -> Tensor:
        """``(...)`` int64 to codes, ``(..., dim)``."""
        return F.embedding(indices, self.codebook)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the averages, and the codes with them, by what the last loss in training mode saw; k-means at
        the first time; restarts. Nothing happens without such a loss."""
        if self._seen is None:
            return
        (z, indices, lots), self._seen = self._seen, None
        drawn = _drawn(z, lots, self.count)
        decay, codes = self.decay, self.codebook
        if self._unsure and not self.started:
            decay, codes = 0.0, k_means(z, drawn)
            indices = nearest(z, codes)
            self.started.fill_(True)
        self._unsure = False
        counts, sums = ema_step(self.counts, self.sums, z, indices, decay)
        if self.learning == "ema":
            codes = _means(counts, sums, codes)
        least = self.restart * counts.mean()
        dead = counts < least
        codes = torch.where(dead.unsqueeze(1), drawn, codes)
        counts = torch.where(dead, 2 * least, counts)
        sums = torch.where(dead.unsqueeze(1), codes * counts.unsqueeze(1), sums)
        for old, new in ((self.codebook, codes), (self.counts, counts), (self.sums, sums)):
            old.copy_(new)


class FiniteScalarQuantizer(nn.Module):
    """Each number becomes one of a few fixed levels: see :func:`fsq`. In place of a :class:`VectorQuantizer`.

    The codebook is the grid of all combinations. Nothing is learned, so nothing can die, and no penalty is
    needed. The index of a code is a number whose digits are its levels, that of the first dimension the
    lowest.

    Args:
        levels: of each dimension; their product is the number of codes. The paper advises 5 at least.

    Raises:
        TypeError, ValueError: fewer than 2 levels, or no dimension.

    Source: Mentzer et al. (2024), with the levels of :func:`fsq`.
    """

    def __init__(self, levels: Sequence[int] = (8, 5, 5)):
        super().__init__()
        if not isinstance(levels, Sequence) or not levels:
            raise TypeError(f"levels is {levels!r} but needs a sequence of whole numbers, such as (8, 5, 5).")
        for level in levels:
            check_count("a level", level, least=2)
        self.count, self.dim = math.prod(levels), len(levels)
        if self.count > 2**31:
            raise ValueError(
                f"levels is {tuple(levels)} and makes {self.count:,} codes, but 2^31 are the most."
            )
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.get_default_dtype()))
        strides = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides))

    def forward(self, z: Tensor) -> Quantized:
        """``(batch, *grid, dim)`` to its codes; see :class:`Quantized`. The distance is that of tanh z."""
        bounded = z.tanh()
        indices = (_fsq_digits(bounded, self.levels) * self.strides).sum(dim=-1)
        values = fsq(z, self.levels)
        distance = (bounded - values.detach()).square().flatten(1).sum(dim=1)
        return Quantized(values, indices, torch.zeros_like(distance), distance)

    def lookup(self, indices: Tensor) -> Tensor:
        """``(...)`` int64 to codes, ``(..., dim)``."""
        return _fsq_values(indices.unsqueeze(-1) // self.strides % self.levels.long(), self.levels)


# ---------------------------------------------------------------------------- the model


class VQVAE(nn.Module):
    r"""An autoencoder whose code is a grid of whole numbers.

    The encoder gives a vector at each position of the grid, the quantiser replaces it by a code, the decoder
    gets the codes. It is a latent variable model with q(k|x) all on one k, so that the bound has no sample:

    .. math:: \log p(x) \ge \log p(x|k) + \log p(k), \qquad k = k(x)

    Training takes the uniform prior, whose log p(k) = -T log K (T positions, K codes) is a constant. A better
    prior is fitted afterwards, with which the bound rises, and samples look like images::

        model = VQVAE.build("conv", (1, 28, 28), 16, codes=64, channels=(24, 48))
        for stage in model.stages():
            fit(stage, images)
        model.sample(10)

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``(batch, dim, *grid)``.
        decoder: maps ``(batch, dim, *grid)`` to what the likelihood needs.
        quantizer: a :class:`VectorQuantizer` or a :class:`FiniteScalarQuantizer`, with its ``dim``.
        image_shape: for example ``(1, 28, 28)``.
        grid: the positions, for example ``(7, 7)``.
        likelihood, variance, levels: as for :class:`aecourse.vae.VAE`.
        prior_channels, prior_layers: of the :class:`AutoregressivePrior`.

    Raises:
        TypeError, ValueError: an unknown name, or a number out of range.

    Source: van den Oord, Vinyals & Kavukcuoglu (2017); with the other quantiser Mentzer et al. (2024).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantizer: VectorQuantizer | FiniteScalarQuantizer,
        *,
        image_shape: Sequence[int],
        grid: Sequence[int],
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        prior_channels: int = 64,
        prior_layers: int = 3,
    ):
        super().__init__()
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer
        self.image_shape, self.grid = tuple(image_shape), tuple(grid)
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        network = AutoregressivePrior(quantizer.count, grid, prior_channels, prior_layers)
        counted, uniform = (HistogramPrior(quantizer.count, grid) for _ in range(2))
        self.priors = nn.ModuleDict(dict(zip(PRIORS, (network, counted, uniform))))

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        quantizer: str = "ema",
        codes: int = 64,
        commitment: float = 0.25,
        decay: float = 0.99,
        start: str = "k-means",
        restart: float = 0.03,
        fsq_levels: Sequence[int] = (8, 5, 5),
        positions: int = 16,
        **options,
    ) -> "VQVAE":
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class.

        Convolutions keep their grid: where the networks have fully connected layers, here a 1 x 1 convolution
        gives the vectors of the codes. An MLP has a row of ``positions``.

        Args:
            latent_dim: numbers in a code. With ``quantizer="fsq"``, as many as ``fsq_levels`` has.
            quantizer: ``"ema"`` or ``"gradient"``, which say how the codes of a :class:`VectorQuantizer`
                learn, or ``"fsq"``.
            codes, commitment, decay, start, restart: see :class:`VectorQuantizer`.
            fsq_levels: see :class:`FiniteScalarQuantizer`.
            positions: codes per image of an MLP.
        """
        if quantizer not in (*LEARNING, "fsq"):
            raise ValueError(f"quantizer is {quantizer!r} but must be one of {(*LEARNING, 'fsq')}.")
        if quantizer == "fsq":
            quantize = FiniteScalarQuantizer(fsq_levels)
            if latent_dim != quantize.dim:
                raise ValueError(
                    f"latent_dim is {latent_dim} but fsq_levels is {tuple(fsq_levels)}: a code needs "
                    f"{quantize.dim} numbers, one for each."
                )
        else:
            settings = {"commitment": commitment, "decay": decay, "start": start, "restart": restart}
            quantize = VectorQuantizer(codes, latent_dim, learning=quantizer, **settings)
        networks, options = nets.split_options(options)
        likelihood = pop_likelihood(options)
        networks |= {"outputs": likelihood.outputs}
        encoder, decoder, grid = _grid_networks(kind, image_shape, latent_dim, positions, **networks)
        shapes = {"image_shape": image_shape, "grid": grid}
        return cls(encoder, decoder, quantize, likelihood=likelihood, **shapes, **options)

    # ------------------------------------------------------------------------ the model's parts

    def encode(self, x: Tensor) -> Tensor:
        """``(batch, *image_shape)`` to a vector at each position, ``(batch, *grid, dim)``."""
        check_batch("x", x, self.image_shape)
        z = self.encoder(x)
        check_batch("the encoder's output", z, (self.quantizer.dim, *self.grid))
        return z.to(x.dtype).movedim(1, -1)  # networks may compute in half precision, bounds may not

    @torch.no_grad()
    def indices(self, x: Tensor) -> Tensor:
        """The codes of images: ``(batch, *image_shape)`` to ``(batch, *grid)`` int64."""
        return self.quantizer(self.encode(x)).indices

    def decoder_output(self, values: Tensor) -> Tensor:
        """``(batch, *grid, dim)`` to what the likelihood needs: logits, means, several numbers a pixel."""
        return self.decoder(values.movedim(-1, 1)).to(values.dtype)

    def decode(self, indices: Tensor) -> Tensor:
        """``(batch, *grid)`` int64 to the mean of p(x|k), ``(batch, *image_shape)``: what one looks at."""
        return self.likelihood.mean(self.decoder_output(self.quantizer.lookup(indices)))

    def log_likelihood(self, x: Tensor, indices: Tensor) -> Tensor:
        """log p(x|k), nats per example: ``(batch, *image_shape)`` and ``(batch, *grid)`` to ``(batch,)``."""
        return self.likelihood.log_prob(x, self.decoder_output(self.quantizer.lookup(indices)))

    def log_prior(self, indices: Tensor, prior: str | None = None) -> Tensor:
        """log p(k), nats per example: ``(batch, *grid)`` to ``(batch,)``; ``prior`` as in :meth:`bound`."""
        return self._prior(prior).log_prob(indices)

    # --------------------------------------------------------------------------- the objective

    def loss(self, x: Tensor) -> Loss:
        """-log p(x|k) and what the quantiser adds.

        Parts: ``reconstruction``, -log p(x|k) in nats per example; ``distance``, the squared distance between
        the encoder's output and the codes, summed over an example, without a weight; ``perplexity`` and
        ``codes_used`` of the batch, see :func:`usage`. The rate T log K of the uniform prior is a constant
        and is left out.
        """
        quantized = self.quantizer(self.encode(x))
        output = self.decoder_output(quantized.values)
        reconstruction = -self.likelihood.log_prob(x, output).mean()
        perplexity, used = usage(quantized.indices, self.quantizer.count)
        parts = {"reconstruction": reconstruction, "distance": quantized.distance.mean()}
        parts |= {"perplexity": perplexity.to(x.dtype), "codes_used": used.to(x.dtype)}
        return Loss(total=reconstruction + quantized.penalty.mean(), parts=parts)

    def after_step(self) -> None:
        """Moving averages and restarts of a :class:`VectorQuantizer`; ``fit`` calls it after each update."""
        if isinstance(self.quantizer, VectorQuantizer):
            self.quantizer.after_step()

    @torch.no_grad()
    def bound(self, x: Tensor, prior: str | None = None) -> Tensor:
        """log p(x|k) + log p(k), a lower bound on log p(x), for each example.

        Args:
            x: ``(batch, *image_shape)``.
            prior: ``"autoregressive"``, ``"histogram"`` or ``"uniform"``; by default the first of them that
                was fitted, and so before any was, the uniform one of training.

        Returns:
            ``(batch,)``, nats per example.

        Raises:
            RuntimeError: the prior asked for was not fitted.
        """
        indices = self.indices(x)
        return self.log_likelihood(x, indices) + self.log_prior(indices, prior)

    # ------------------------------------------------------------------------ priors over codes

    def stages(self) -> list[nn.Module]:
        """What to ``fit``, one after the other, on the same images: this model, then its prior over codes."""
        return [self, PriorStage(self)]

    def fit_histogram(self, images: Tensor, smoothing: float = 0.5) -> None:
        """Count the codes of images, ``(N, *image_shape)``: the best prior that takes all positions as
        independent and alike. Its rate is T H(k), the entropy of a code times the number of positions."""
        self.priors["histogram"].fit_(self._all_indices(images), smoothing)

    def usage(self, images: Tensor) -> tuple[float, int]:
        """Perplexity and number of codes in use over all images, ``(N, *image_shape)``; see :func:`usage`."""
        perplexity, used = usage(self._all_indices(images), self.quantizer.count)
        return float(perplexity), int(used)

    @torch.no_grad()
    def sample(self, count: int, prior: str | None = None) -> Tensor:
        """Draw codes from the prior and return the mean of p(x|k), ``(count, *image_shape)``.

        Args:
            count: how many.
            prior: as in :meth:`bound`, but the uniform prior only when asked for: its samples are noise.

        Raises:
            RuntimeError: no prior was fitted, or not the one asked for.
        """
        check_count("count", count)
        if prior is None and self._prior(None) is self.priors["uniform"]:
            raise RuntimeError(
                "No prior over codes was fitted, and codes at random decode to noise. Fit one: "
                "fit(model.stages()[1], images), or model.fit_histogram(images)."
            )
        return self.decode(self._prior(prior).sample(count))

    def _prior(self, name: str | None) -> HistogramPrior | AutoregressivePrior:
        if name is None:
            return next(p for n, p in self.priors.items() if n == "uniform" or p.fitted)
        if name not in PRIORS:
            raise ValueError(f"prior is {name!r} but must be one of {PRIORS}.")
        if name != "uniform" and not self.priors[name].fitted:
            how = "fit(model.stages()[1], images)" if name == PRIORS[0] else "model.fit_histogram(images)"
            raise RuntimeError(f"The {name} prior over codes was not fitted: {how} does it.")
        return self.priors[name]

    def _all_indices(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        """The codes of a data set, in evaluation mode."""
        self.validate(images)
        was_training = self.training
        self.eval()
        indices = torch.cat([self.indices(batch) for batch in images.split(batch_size)])
        self.train(was_training)
        return indices

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the codes of images, ``(batch, *image_shape)``."""
        return self.decode(self.indices(x))

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] under any likelihood
                but the Gaussian.
        """
        check_images("images", images, self.image_shape, self.likelihood.support)


def _grid_networks(
    kind: str, image_shape: Sequence[int], latent_dim: int, positions: int, **options
) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """Networks of :func:`aecourse.nets.build` between images and ``(batch, latent_dim, *grid)``; the grid."""
    check_count("positions", positions)
    if kind == "mlp":
        encoder, decoder = nets.build(kind, image_shape, latent_dim * positions, gaussian=False, **options)
        encoder = nn.Sequential(encoder, nn.Unflatten(1, (latent_dim, positions)))
        return encoder, nn.Sequential(nn.Flatten(), decoder), (positions,)
    if options.get("hidden"):
        raise ValueError(f"hidden is {options['hidden']} but {kind!r} has no fully connected layers here.")
    encoder, decoder = nets.build(kind, image_shape, latent_dim, gaussian=False, **options)
    cut = next(i for i, layer in enumerate(encoder.net) if isinstance(layer, nn.Flatten))
    start = next(i for i, layer in enumerate(decoder.net) if isinstance(layer, nn.Unflatten))
    channels, *grid = decoder.net[start].unflattened_size
    convolution = nn.Conv1d if len(grid) == 1 else nn.Conv2d
    encoder.net = nn.Sequential(*encoder.net[:cut], convolution(channels, latent_dim, 1))
    decoder.net = nn.Sequential(convolution(latent_dim, channels, 1), *decoder.net[start + 1 :])
    return encoder, decoder, tuple(grid)
