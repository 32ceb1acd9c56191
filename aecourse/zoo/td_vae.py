"""The temporal difference VAE: a belief about the present that predicts any later time in one jump.

Source: Gregor, Papamakarios, Besse, Buesing & Weber (2019), with one layer of latent variables.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss
from aecourse.contracts import check_batch, check_count, check_finite, check_shapes, check_unit_interval
from aecourse.distributed import standard_normal
from aecourse.likelihoods import Likelihood, as_likelihood, pop_likelihood
from aecourse.nets import build, mlp, split_options

COVARIANCES = ("diagonal", "full")
MIN_SCALE = 1e-3  # of a learned Gaussian: no density grows without limit


class GaussianState(NamedTuple):
    """A Gaussian of each row, with a covariance that is diagonal or full."""

    mean: Tensor
    """``(rows, k)``."""

    scale: Tensor
    """Standard deviations ``(rows, k)``; or a lower triangular factor L of the covariance L L',
    ``(rows, k, k)``, with a positive diagonal."""

    @property
    def full(self) -> Tensor:
        """L, ``(rows, k, k)``."""
        return self.scale if self.scale.dim() == 3 else torch.diag_embed(self.scale)

    @property
    def log_det(self) -> Tensor:
        """log det L, half of the covariance's, ``(rows,)``."""
        diagonal = self.scale if self.scale.dim() == 2 else self.scale.diagonal(dim1=1, dim2=2)
        return diagonal.log().sum(dim=1)

    def draw(self, noise: Tensor) -> Tensor:
        """mean + L noise for noise from N(0, I), ``(rows, k)``: gradients reach both."""
        if self.scale.dim() == 2:
            return self.mean + self.scale * noise
        return self.mean + (self.scale * noise.unsqueeze(1)).sum(dim=2)

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; mean, L L'), nats, ``(rows,)``."""
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
        return -0.5 * self._whiten(z - self.mean).square().sum(dim=1) - self.log_det - constant

    def kl(self, other: "GaussianState") -> Tensor:
        r"""KL(self || other), nats, ``(rows,)``.

        .. math:: \tfrac12\left(\lVert L_2^{-1} L_1\rVert^2 + \lVert L_2^{-1}(\mu_2 - \mu_1)\rVert^2
                  - k\right) + \log\det L_2 - \log\det L_1
        """
        if self.scale.dim() == other.scale.dim() == 2:
            spread = (self.scale / other.scale).square().sum(dim=1)
        else:
            spread = (
                torch.linalg.solve_triangular(other.full, self.full, upper=False).square().sum(dim=(1, 2))
            )
        distance = other._whiten(other.mean - self.mean).square().sum(dim=1)
        return 0.5 * (spread + distance - self.mean.shape[1]) + other.log_det - self.log_det

    def _whiten(self, offset: Tensor) -> Tensor:
        """The inverse of L times the offset."""
        if self.scale.dim() == 2:
            return offset / self.scale
        return torch.linalg.solve_triangular(self.scale, offset.unsqueeze(2), upper=False).squeeze(2)


def td_bound(log_likelihood: Tensor, smoothing: Tensor, log_belief: Tensor, log_transition: Tensor) -> Tensor:
    r"""The bound on how well a belief predicts an observation some steps later, from its terms.

    .. math:: L = \log p_D(x_{t_2}|z_2)
              - \mathrm{KL}\left(q_S(z_1|z_2, b_{t_1}, b_{t_2})\,\|\,p_B(z_1|b_{t_1})\right)
              - \left[\log p_B(z_2|b_{t_2}) - \log p_T(z_2|z_1)\right]

    for draws of the later state :math:`z_2 \sim p_B(\cdot|b_{t_2})` first, then of the earlier one,
    :math:`z_1 \sim q_S`. The mean over draws is at most log p(x_t2 | x_<=t1) of the model, which is what the
    earlier belief, the transition and the decoder say together. It is equal where q_S is the posterior and
    the later belief is that of somebody who knows x_t2 and what the earlier one knows.

    With a jump, the later belief knows more: what was seen in between. The bound counts that against it,
    so beliefs that are exact are not its optimum, but vaguer ones. Only steps of 1 have no such bias.

    Args:
        log_likelihood: log p_D(x_t2|z2), any shape.
        smoothing: KL(q_S || p_B(.|b_t1)), the same shape; or its estimate from the draw,
            log q_S(z1|...) - log p_B(z1|b_t1), with which an exact model has the same value at every draw.
        log_belief: log p_B(z2|b_t2).
        log_transition: log p_T(z2|z1).

    Returns:
        The same shape, nats.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Gregor et al. (2019), equation 6.
    """
    check_shapes(
        ("log_likelihood", log_likelihood, "..."),
        ("smoothing", smoothing, "..."),
        ("log_belief", log_belief, "..."),
        ("log_transition", log_transition, "..."),
    )
    return log_likelihood - smoothing - (log_belief - log_transition)


class TDVAE(nn.Module):
    r"""A model of sequences that keeps a belief about a hidden state, and jumps ahead from it.

    A memory reads the sequence once: b_t is what it holds after x_1, ..., x_t, and b_0 what it holds before
    the first. One belief network p_B makes a Gaussian of it, at the earlier and at the later end of a jump
    alike. The loss sums the bounds of :func:`td_bound` over all times t2, each predicted once, from the time
    t1 = t2 - k. With ``steps=1`` it is an upper bound on -log p(x), nats per sequence, with
    p(x) the product of the model's p(x_t | x_1, ..., x_t-1); with jumps it is no longer comparable.

    Data are ``(batch, time, *step_shape)``, or with another ``time_dim``, for example an image whose rows are
    the steps, ``(batch, channels, height, width)`` with ``time_dim=2``. Times are counted from 1.

    Args:
        memory: maps ``(batch, time, *step_shape)`` to b, ``(batch, time + 1, size)``; entry t depends on
            the first t steps and on nothing else.
        belief: p_B, maps b ``(rows, size)`` to a :class:`GaussianState` of the state, or its two tensors.
        smoother: q_S, maps z2 ``(rows, latent_dim)``, b_t1, b_t2 and k, ``(rows,)`` int64, to the Gaussian
            of z1.
        transition: p_T, maps z1 and k to the Gaussian of z2.
        decoder: p_D, maps ``(rows, latent_dim)`` to what the likelihood needs of ``(rows, *step_shape)``.
        step_shape: of one step of a sequence.
        latent_dim: the size of the state.
        likelihood, variance, levels: as for :class:`aecourse.vae.VAE`.
        steps: k, the length of a jump, or ``(least, most)``: then every jump's is drawn, evenly from those
            that do not begin before time 0.
        beta: weight in the loss of all terms but the likelihood; 1 gives the bound. A warm-up from 0 keeps
            training from staying where the state says nothing, because nothing predicts it yet.
        samples: draws of the states per jump in the loss.
        time_dim: the dimension of a batch that is the time.
        length: of sequences that are drawn, where ``sample`` is not told.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`, or a number here out of range.

    Source: Gregor et al. (2019).
    """

    def __init__(
        self,
        memory: nn.Module,
        belief: nn.Module,
        smoother: nn.Module,
        transition: nn.Module,
        decoder: nn.Module,
        *,
        step_shape: Sequence[int],
        latent_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        steps: int | tuple[int, int] = 1,
        beta: float = 1.0,
        samples: int = 1,
        time_dim: int = 1,
        length: int | None = None,
    ):
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("samples", samples), ("time_dim", time_dim)):
            check_count(name, value)
        if length is not None:
            check_count("length", length)
        if time_dim > len(step_shape) + 1:
            raise ValueError(
                f"time_dim is {time_dim} but a batch of sequences of {tuple(step_shape)} has the dimensions "
                f"0 to {len(step_shape) + 1}."
            )
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta is {beta} but must be at least 0 and finite.")
        self.memory, self.belief, self.smoother = memory, belief, smoother
        self.transition, self.decoder = transition, decoder
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        self.step_shape, self.latent_dim = tuple(step_shape), latent_dim
        self.steps = _as_range(steps)
        self.beta = beta
        self.samples, self.time_dim, self.length = samples, time_dim, length

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        memory: int = 100,
        hidden: Sequence[int] = (100,),
        covariance: str = "diagonal",
        steps: int | tuple[int, int] = 1,
        time_dim: int = 2,
        **options,
    ) -> "TDVAE":
        """A recurrent memory (GRU) over networks of :func:`aecourse.nets.build` for the single steps.

        Args:
            kind: of the networks for one step.
            image_shape: of a sequence. The time is the dimension behind the channels: the rows of an image
                ``(channels, height, width)``, the samples of a series ``(channels, length)``. Sequences
                ``(time, ...)`` take ``time_dim=1``.
            latent_dim: the size of the state.
            memory: the size of b.
            hidden: layer sizes of all networks; with ``()`` all but the memory are linear.
            covariance: ``"diagonal"`` or ``"full"``, of the belief, the smoother and the transition.
            steps, time_dim: as for the class.
            options: of the networks, and those of the class.
        """
        check_count("memory", memory)
        check_count("time_dim", time_dim)
        if len(image_shape) < max(time_dim, 2):
            raise ValueError(
                f"image_shape is {tuple(image_shape)} but needs a time, in dimension {time_dim} of a batch, "
                "and steps: (channels, length), (channels, height, width), or (time, ...) with time_dim=1."
            )
        length, step_shape = image_shape[time_dim - 1], [*image_shape]
        del step_shape[time_dim - 1]
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        encoder, _ = build(kind, step_shape, memory, gaussian=False, hidden=hidden, **networks)
        _, decoder = build(
            kind, step_shape, latent_dim, outputs=likelihood.outputs, hidden=hidden, **networks
        )
        of_heads = {"hidden": hidden, "covariance": covariance}
        return cls(
            GRUMemory(encoder, memory),
            GaussianHead(memory, latent_dim, **of_heads),
            GaussianHead(latent_dim + 2 * memory, latent_dim, steps=steps, **of_heads),
            GaussianHead(latent_dim, latent_dim, steps=steps, **of_heads),
            decoder,
            step_shape=step_shape,
            latent_dim=latent_dim,
            likelihood=likelihood,
            steps=steps,
            time_dim=time_dim,
            length=length,
            **options,
        )

    # --------------------------------------------------------------------------- the objective

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """The negative sum of the bounds of all jumps, nats per sequence, and its three parts.

        ``transition`` is the mean of log p_B(z2|b_t2) - log p_T(z2|z1), which may be negative. ``beta``
        stands in for the model's own, as annealing needs it.
        """
        beta = self.beta if beta is None else beta
        terms = self._terms(x, self.samples, self.steps)
        log_likelihood, kl, log_belief, log_transition = (term.sum(dim=2).mean() for term in terms)
        parts = {"reconstruction": -log_likelihood, "kl": kl, "transition": log_belief - log_transition}
        weighted = (terms[0], *(beta * term for term in terms[1:]))
        return Loss(total=-td_bound(*weighted).sum(dim=2).mean(), parts=parts)

    def step_weights(self, x: Tensor, samples: int, k: int = 1) -> Tensor:
        """The bound of each jump of length k from one draw: the logarithm of an importance weight.

        Args:
            x: sequences, shaped as the class says.
            samples: draws per jump.
            k: length of all jumps, one of ``steps``.

        Returns:
            ``(samples, batch, time - k + 1)``, for t2 = k, ..., T. The exponentials have the mean
            p(x_t2 | x_<=t2-k) of the model; where q_S and the belief are exact and k is 1, they all equal it.

        Raises:
            TypeError, ValueError: ``samples`` is no count, or ``k`` none of the steps.
        """
        check_count("samples", samples)
        self._check_jump("k", k)
        return td_bound(*self._terms(x, samples, (k, k), closed=False))

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) for draws of all states: the logarithms of importance weights.

        The sum of :meth:`step_weights` over time, for jumps of 1. The draws of different times are
        independent, so the mean of the exponentials is an unbiased estimate of p(x).

        Returns:
            ``(samples, batch)``, nats per sequence.

        Raises:
            TypeError, ValueError: ``samples`` is no count, or 1 none of the ``steps``.
        """
        return self.step_weights(x, samples).sum(dim=2)

    def _terms(self, x: Tensor, samples: int, steps: tuple[int, int], closed: bool = True) -> list[Tensor]:
        """What :func:`td_bound` takes, each ``(samples, batch, jumps)``; the KL closed, or sampled."""
        least, most = steps
        x = self._sequences(x, length=least)
        b = self._read(x)
        t2 = torch.arange(least, x.shape[1] + 1, device=x.device)
        k = torch.full((len(x), len(t2)), least, device=x.device)
        if most > least:
            choices = t2.clamp(max=most) - least + 1  # the jump must not begin before time 0
            k = k + (torch.rand(k.shape, dtype=x.dtype, device=x.device) * choices).long()
        b1 = b.gather(1, (t2 - k).unsqueeze(2).expand(-1, -1, b.shape[2]))
        noise = standard_normal((samples, *k.shape, 2, self.latent_dim), like=x, batch_dim=1)
        # One row for each draw, sequence and jump. The observation at time t is x[:, t - 1].
        of_all = (b1, b[:, least:], k, x[:, least - 1 :])
        b1, b2, k, x2 = (part.expand(samples, *part.shape).flatten(0, 2) for part in of_all)
        noise2, noise1 = noise.flatten(0, 2).unbind(dim=1)

        later = self._gaussian("belief", b2)
        z2 = later.draw(noise2)
        smoothed = self._gaussian("smoother", z2, b1, b2, k)
        z1 = smoothed.draw(noise1)
        earlier = self._gaussian("belief", b1)
        moved = self._gaussian("transition", z1, k)

        log_likelihood = self.likelihood.log_prob(x2, self.decoder(z2).to(x.dtype))
        smoothing = smoothed.kl(earlier) if closed else smoothed.log_density(z1) - earlier.log_density(z1)
        terms = (log_likelihood, smoothing, later.log_density(z2), moved.log_density(z2))
        return [term.unflatten(0, (samples, len(x), len(t2))) for term in terms]

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of x_t for the mean state of the belief at t, which has seen x_t; shaped as x."""
        x = self._sequences(x)
        states = self._gaussian("belief", self._read(x)[:, 1:].flatten(0, 1)).mean
        return self._as_given(self._decode(states).unflatten(0, x.shape[:2]))

    @torch.no_grad()
    def rollout(self, x: Tensor, steps: int, jump: int | None = None) -> Tensor:
        """Go on after x: draw the state at its end from the belief, move it on, and decode.

        Args:
            x: sequences of at least one step, shaped as the class says.
            steps: how many moves.
            jump: the length of each, the least of the model's ``steps`` by default.

        Returns:
            The means of x at ``steps`` later times, each ``jump`` after the one before; time where x has it.

        Raises:
            TypeError, ValueError: x of another shape, ``steps`` no count, ``jump`` none of the model's.
        """
        check_count("steps", steps)
        jump = self.steps[0] if jump is None else jump
        self._check_jump("jump", jump)
        return self._go_on(self._read(self._sequences(x))[:, -1], steps, jump)

    @torch.no_grad()
    def sample(self, count: int, length: int | None = None) -> Tensor:
        """Draw sequences: a rollout from b_0, the belief of somebody who has seen nothing.

        Args:
            count: how many.
            length: of each; by default that which the model was made for.

        Returns:
            The means of x given states that are drawn, ``(count, length, *step_shape)``, or with the time
            in ``time_dim``.

        Raises:
            TypeError, ValueError: no counts; no length is known; or 1 is none of the model's ``steps``.
        """
        check_count("count", count)
        length = self.length if length is None else length
        if length is None:
            raise ValueError("length is None and the model was made for none: say how long a sequence is.")
        check_count("length", length)
        self._check_jump("The jump from one step to the next", 1)
        like = next(self.parameters())
        unseen = torch.zeros(count, 1, *self.step_shape, dtype=like.dtype, device=like.device)
        return self._go_on(self._read(unseen)[:, 0], length, 1)

    def validate(self, images: Tensor) -> None:
        """Refuse sequences this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, shorter than the shortest jump, NaN or infinity, values
                outside [0, 1] under any likelihood but the Gaussian.
        """
        self._sequences(images, "images", length=self.steps[0])
        check_finite("images", images)
        if self.likelihood.support == (0.0, 1.0):
            check_unit_interval("images", images)

    def _go_on(self, b: Tensor, steps: int, jump: int) -> Tensor:
        def drawn(part: str, *inputs: Tensor) -> Tensor:
            gaussian = self._gaussian(part, *inputs)
            return gaussian.draw(torch.randn_like(gaussian.mean))

        z, k, seen = drawn("belief", b), torch.full((len(b),), jump, device=b.device), []
        for _ in range(steps):
            z = drawn("transition", z, k)
            seen.append(self._decode(z))
        return self._as_given(torch.stack(seen, dim=1))

    def _decode(self, z: Tensor) -> Tensor:
        return self.likelihood.mean(self.decoder(z).to(z.dtype))

    def _gaussian(self, part: str, *inputs: Tensor) -> GaussianState:
        """What one of the networks says, in the precision of its input."""
        mean, scale = getattr(self, part)(*inputs)
        check_batch(f"the mean of the {part}", mean, (self.latent_dim,))
        return GaussianState(mean.to(inputs[0].dtype), scale.to(inputs[0].dtype))

    def _read(self, x: Tensor) -> Tensor:
        """b_0, ..., b_T, ``(batch, time + 1, size)``."""
        b = self.memory(x)
        if b.shape[:2] != (len(x), x.shape[1] + 1):
            needs = f"({len(x)}, {x.shape[1] + 1}, size): what it holds before the first step, and after each"
            raise ValueError(f"the memory gives the shape {tuple(b.shape)} but needs {needs}.")
        return b.to(x.dtype)

    def _sequences(self, x: Tensor, name: str = "x", length: int = 1) -> Tensor:
        """``(batch, time, *step_shape)``, from wherever the time is."""
        check_shapes((name, x, "batch ..."))
        step, shape = self.step_shape, tuple(x.shape)
        if x.dim() != 2 + len(step) or x.movedim(self.time_dim, 1).shape[2:] != step:
            words = [*map(str, step)]
            words.insert(self.time_dim - 1, "time")
            raise ValueError(f"{name} has shape {shape} but this model needs (batch, {', '.join(words)}).")
        if shape[self.time_dim] < length:
            raise ValueError(f"{name} has {shape[self.time_dim]} steps of time but needs at least {length}.")
        return x.movedim(self.time_dim, 1)

    def _as_given(self, x: Tensor) -> Tensor:
        return x.movedim(1, self.time_dim)

    def _check_jump(self, name: str, jump: int) -> None:
        check_count(name, jump)
        least, most = self.steps
        if not least <= jump <= most:
            raise ValueError(f"{name} is {jump} but this model makes jumps of {least} to {most}.")


class GRUMemory(nn.Module):
    """A gated recurrent unit over the codes of the steps; what it holds at first is learned.

    Args:
        encoder: maps ``(rows, *step_shape)`` to codes ``(rows, size)``.
        size: of the codes and of what it holds.

    Source: Cho et al. (2014).
    """

    def __init__(self, encoder: nn.Module, size: int):
        super().__init__()
        self.encoder = encoder
        self.gru = nn.GRU(size, size, batch_first=True)
        self.start = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        codes = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        start = self.start.to(codes.dtype).expand(len(x), 1, -1)
        held, _ = self.gru(codes, start.movedim(1, 0).contiguous())
        return torch.cat([start, held], dim=1)


class GaussianHead(nn.Module):
    """Numbers, and for a jump its length, to the :class:`GaussianState` of a state.

    Args:
        inputs: how many numbers.
        latent_dim: the size of the state.
        hidden: layer sizes.
        covariance: ``"diagonal"`` or ``"full"``.
        steps: lengths of jumps, where they come as the last input: each is a one-hot vector for the network.
            Then the first input is the state at the other end of the jump, and the mean is what is added to
            it. Without that, training often stays where the state explains each step and no past.

    Raises:
        ValueError: ``covariance`` is neither.
    """

    def __init__(self, inputs: int, latent_dim: int, *, hidden=(), covariance="diagonal", steps=None):
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance is {covariance!r} but must be one of {COVARIANCES}.")
        self.latent_dim, self.covariance = latent_dim, covariance
        self.steps = None if steps is None else _as_range(steps)
        jumps = 0 if steps is None else self.steps[1] - self.steps[0] + 1
        below = latent_dim * (latent_dim - 1) // 2 if covariance == "full" else 0
        self.net = mlp([inputs + jumps, *hidden, 2 * latent_dim + below])

    def forward(self, *inputs: Tensor) -> GaussianState:
        if self.steps is not None:
            *inputs, k = inputs
            least, most = self.steps
            inputs = (*inputs, F.one_hot(k - least, most - least + 1).to(inputs[0].dtype))
        numbers = self.net(torch.cat(inputs, dim=1)).to(inputs[0].dtype)
        mean, scale, below = numbers.tensor_split([self.latent_dim, 2 * self.latent_dim], dim=1)
        mean = mean if self.steps is None else inputs[0] + mean
        scale = MIN_SCALE + F.softplus(scale)
        if self.covariance == "diagonal":
            return GaussianState(mean, scale)
        row, column = torch.tril_indices(self.latent_dim, self.latent_dim, -1, device=scale.device)
        # In units of the row's scale, and small at first: what undoes a factor of 16 rows would else be huge.
        factor = torch.diag_embed(torch.ones_like(scale))
        factor[:, row, column] = below / self.latent_dim
        return GaussianState(mean, scale.unsqueeze(2) * factor)


def _as_range(steps: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(steps, Sequence) and len(steps) != 2:
        raise ValueError(f"steps is {steps!r} but must be one number or two, the least and the most.")
    least, most = steps if isinstance(steps, Sequence) else (steps, steps)
    check_count("steps", least)
    check_count("steps", most)
    if most < least:
        raise ValueError(f"steps is {(least, most)} but its first number must not be the larger one.")
    return least, most
