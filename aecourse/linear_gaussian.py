"""The linear-Gaussian state space: filter, smoother, jumps, likelihood and rollouts, all of them exact.

A sequence model whose every belief is a Gaussian that is known: the ground truth for sequence models that
are trained, as probabilistic PCA is for autoencoders. Covariances do not depend on what is observed, so they
are computed once for a batch of sequences. They are computed as sums of squares (Joseph's form), which
rounding leaves symmetric and positive, where the shorter differences of covariances may not be.

Functions take states of any leading dimensions, ``(..., k)`` and ``(..., k, k)``, and are differentiable.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aecourse.contracts import check_count, check_finite, check_shapes


class StateSpace(NamedTuple):
    r"""A hidden state that moves linearly, and noisy linear observations of it.

    .. math:: z_0 \sim N(m, P), \qquad z_t = A z_{t-1} + N(0, Q), \qquad x_t = C z_t + N(0, R),
              \qquad t = 1, 2, \dots

    The first observation is that of time 1: at time 0 nothing has been seen, and the belief is the initial
    one. Build it with :func:`state_space`, which checks the parameters.
    """

    transition: Tensor
    """``(k, k)``, A."""

    transition_cov: Tensor
    """``(k, k)``, Q."""

    emission: Tensor
    """``(D, k)``, C."""

    emission_cov: Tensor
    """``(D, D)``, R."""

    initial_mean: Tensor
    """``(k,)``, m, of the state at time 0."""

    initial_cov: Tensor
    """``(k, k)``, P."""

    def jump(self, steps: int) -> tuple[Tensor, Tensor]:
        r"""The transition over several steps at once, :math:`z_{t+s} = A_s z_t + N(0, Q_s)`.

        .. math:: A_s = A^s, \qquad Q_s = \sum_{i < s} A^i Q A^{i\top}

        Returns:
            :math:`A_s` and :math:`Q_s`, each ``(k, k)``.
        """
        check_count("steps", steps)
        power, cov = self.transition, self.transition_cov
        for _ in range(steps - 1):
            power = self.transition @ power
            cov = _carry(self.transition, cov, self.transition_cov)
        return power, cov

    def predict(self, mean: Tensor, cov: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
        """The belief about the state so many steps later, with nothing observed in between.

        Args:
            mean: ``(..., k)``.
            cov: ``(..., k, k)``, of one state or of each.
            steps: at least 1.

        Returns:
            Mean and covariance, shaped as those given.
        """
        _check_belief(self, mean, cov)
        power, noise = self.jump(steps)
        return mean @ power.T, _carry(power, cov, noise)

    def emit(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        """What will be observed of a state: mean ``(..., D)`` and covariance ``(..., D, D)`` of x."""
        _check_belief(self, mean, cov)
        return mean @ self.emission.T, _carry(self.emission, cov, self.emission_cov)

    def update(self, mean: Tensor, cov: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The belief about a state after an observation of it, and how likely that was.

        Args:
            mean: ``(..., k)``, before.
            cov: ``(..., k, k)``, before.
            x: ``(..., D)``.

        Returns:
            Mean and covariance after; log p(x), nats, ``(...)``.
        """
        expected, expected_cov = self.emit(mean, cov)
        _check_ends(("x", x, (len(self.emission),)))
        factor = torch.linalg.cholesky(expected_cov)
        gain = torch.cholesky_solve(self.emission @ cov, factor).mT
        innovation = x - expected
        white = torch.linalg.solve_triangular(factor, innovation.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        constant = x.shape[-1] * math.log(2 * math.pi)
        kept = _identity(self) - gain @ self.emission
        mean = mean + (gain @ innovation.unsqueeze(-1)).squeeze(-1)
        cov = _carry(kept, cov, _carry(gain, self.emission_cov))
        return mean, cov, -0.5 * (white.square().sum(dim=-1) + log_det + constant)

    def rollout(self, mean: Tensor, cov: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Moments of the states that follow, one after the other, with nothing observed.

        Returns:
            Means ``(..., steps, k)`` and covariances ``(..., steps, k, k)``; :meth:`emit` makes those of the
            observations of them.
        """
        check_count("steps", steps)
        means, covs = [], []
        for _ in range(steps):
            mean, cov = self.predict(mean, cov)
            means.append(mean)
            covs.append(cov)
        return torch.stack(means, dim=-2), torch.stack(covs, dim=-3)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Exact log p(x_1, ..., x_T), ``(batch, time, D)`` to ``(batch,)``, nats per sequence."""
        return kalman_filter(self, x).log_likelihoods.sum(dim=1)

    def sample(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Draw sequences: observations ``(count, length, D)`` and states ``(count, length + 1, k)``.

        There is one state more, the first, of which nothing is seen.
        """
        check_count("count", count)
        check_count("length", length)
        covs = self.initial_cov, self.transition_cov, self.emission_cov
        start, move, see = (torch.linalg.cholesky(cov).T for cov in covs)

        def noise(factor: Tensor) -> Tensor:
            return factor.new_empty(count, len(factor)).normal_() @ factor

        states = [self.initial_mean + noise(start)]
        for _ in range(length):
            states.append(states[-1] @ self.transition.T + noise(move))
        seen = [state @ self.emission.T + noise(see) for state in states[1:]]
        return torch.stack(seen, dim=1), torch.stack(states, dim=1)


def state_space(
    transition: Tensor,
    transition_cov: Tensor,
    emission: Tensor,
    emission_cov: Tensor,
    initial_mean: Tensor,
    initial_cov: Tensor,
) -> StateSpace:
    """A :class:`StateSpace` whose parameters have been checked.

    Args:
        transition: A, ``(k, k)``.
        transition_cov: Q, ``(k, k)``, symmetric and positive definite, like all covariances here.
        emission: C, ``(D, k)``.
        emission_cov: R, ``(D, D)``.
        initial_mean: ``(k,)``, of the state at time 0, before the first transition.
        initial_cov: ``(k, k)``.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, NaN or infinity, or a covariance that is not
            symmetric and positive definite; the message names it.
    """
    check_shapes(
        ("transition", transition, "k k"),
        ("transition_cov", transition_cov, "k k"),
        ("emission", emission, "D k"),
        ("emission_cov", emission_cov, "D D"),
        ("initial_mean", initial_mean, "k"),
        ("initial_cov", initial_cov, "k k"),
    )
    parameters = StateSpace(transition, transition_cov, emission, emission_cov, initial_mean, initial_cov)
    for name, tensor in parameters._asdict().items():
        check_finite(name, tensor)
        if tensor.dtype != transition.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype} but transition has {transition.dtype}.")
    covs = {"transition_cov": transition_cov, "emission_cov": emission_cov, "initial_cov": initial_cov}
    for name, cov in covs.items():
        uneven = (cov - cov.T).abs().amax() > 1e-5 * cov.abs().amax()
        if (uneven | (torch.linalg.cholesky_ex(cov)[1] != 0)).any():
            raise ValueError(f"{name} must be symmetric and positive definite.")
    return parameters


class Filtered(NamedTuple):
    """What is known at each time from the observations until then; made by :func:`kalman_filter`."""

    means: Tensor
    """``(batch, time + 1, k)``, E[z_t | x_1, ..., x_t] for t = 0, 1, ..., T."""

    covs: Tensor
    """``(time + 1, k, k)``, the same for all sequences."""

    log_likelihoods: Tensor
    """``(batch, time)``, log p(x_t | x_1, ..., x_t-1), nats. Their sum over time is log p(x)."""


def kalman_filter(system: StateSpace, x: Tensor) -> Filtered:
    """The belief about the state at each time, given all observations until then.

    Args:
        system: made by :func:`state_space`.
        x: ``(batch, time, D)``.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or no step of time.

    Source: Kalman (1960).
    """
    sizes = check_shapes(("emission", system.emission, "D k"), ("x", x, "batch time D"))
    check_count("the time of x", sizes["time"])
    mean = system.initial_mean.expand(len(x), -1)
    means, covs, log_likelihoods = [mean], [system.initial_cov], []
    for observed in x.unbind(dim=1):
        predicted = system.predict(means[-1], covs[-1])
        mean, cov, log_likelihood = system.update(*predicted, observed)
        means.append(mean)
        covs.append(cov)
        log_likelihoods.append(log_likelihood)
    return Filtered(torch.stack(means, dim=1), torch.stack(covs), torch.stack(log_likelihoods, dim=1))


class BackwardKernel(NamedTuple):
    """p(z_t | z_t+s, x_1, ..., x_t) = N(offset + gain z_t+s, cov); made by :func:`backward_kernel`."""

    gain: Tensor
    """``(..., k, k)``, as many as there were covariances."""

    offset: Tensor
    """``(..., k)``."""

    cov: Tensor
    """``(..., k, k)``; the later state is not in it."""

    def mean(self, later: Tensor) -> Tensor:
        """The mean of the earlier state given the later one, ``(..., k)`` to ``(..., k)``."""
        return self.offset + (self.gain @ later.unsqueeze(-1)).squeeze(-1)


def backward_kernel(system: StateSpace, mean: Tensor, cov: Tensor, steps: int = 1) -> BackwardKernel:
    r"""What is known of a state once a later one is: the step back of the Rauch-Tung-Striebel smoother.

    .. math:: z_t \mid z_{t+s} \sim N\left(m + G (z_{t+s} - A_s m),\;
              (I - G A_s) P (I - G A_s)^\top + G Q_s G^\top\right), \qquad
              G = P A_s^\top (A_s P A_s^\top + Q_s)^{-1}

    What is observed from t + s on adds nothing: the later state says all about the earlier one that it does.

    Args:
        system: made by :func:`state_space`.
        mean: ``(..., k)``, m, the belief at t.
        cov: ``(..., k, k)``, P.
        steps: s, how much later.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or ``steps`` is no count.

    Source: Rauch, Tung & Striebel (1965).
    """
    predicted, predicted_cov = system.predict(mean, cov, steps)
    power, noise = system.jump(steps)
    gain = torch.cholesky_solve(power @ cov, torch.linalg.cholesky(predicted_cov)).mT
    offset = mean - (gain @ predicted.unsqueeze(-1)).squeeze(-1)
    return BackwardKernel(gain, offset, _carry(_identity(system) - gain @ power, cov, _carry(gain, noise)))


class Smoothed(NamedTuple):
    """What is known at each time from all observations; made by :func:`kalman_smoother`."""

    means: Tensor
    """``(batch, time + 1, k)``, E[z_t | x_1, ..., x_T] for t = 0, 1, ..., T."""

    covs: Tensor
    """``(time + 1, k, k)``, the same for all sequences."""

    cross_covs: Tensor
    """``(time, k, k)``, Cov[z_t, z_t+1 | x_1, ..., x_T] for t = 0, ..., T - 1."""


def kalman_smoother(system: StateSpace, x: Tensor) -> Smoothed:
    """The belief about the state at each time, given all observations, earlier and later.

    Args:
        system: made by :func:`state_space`.
        x: ``(batch, time, D)``.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or no step of time.

    Source: Rauch, Tung & Striebel (1965).
    """
    filtered = kalman_filter(system, x)
    means, covs, cross_covs = [filtered.means[:, -1]], [filtered.covs[-1]], []
    for t in range(x.shape[1] - 1, -1, -1):
        kernel = backward_kernel(system, filtered.means[:, t], filtered.covs[t])
        cross_covs.append(kernel.gain @ covs[-1])
        means.append(kernel.mean(means[-1]))
        covs.append(_carry(kernel.gain, covs[-1], kernel.cov))
    return Smoothed(torch.stack(means[::-1], dim=1), torch.stack(covs[::-1]), torch.stack(cross_covs[::-1]))


def _carry(matrix: Tensor, cov: Tensor, noise: Tensor | None = None) -> Tensor:
    """The covariance of ``matrix`` times something, plus noise; exactly symmetric."""
    carried = matrix @ cov @ matrix.mT
    carried = carried if noise is None else carried + noise
    return 0.5 * (carried + carried.mT)


def _identity(system: StateSpace) -> Tensor:
    return torch.eye(len(system.transition), device=system.transition.device).to(system.transition)


def _check_belief(system: StateSpace, mean: Tensor, cov: Tensor) -> None:
    size = len(system.transition)
    _check_ends(("mean", mean, (size,)), ("cov", cov, (size, size)))


def _check_ends(*arguments: tuple[str, Tensor, tuple[int, ...]]) -> None:
    """Raise unless the last dimensions have these sizes; one of 1 would be stretched without a word."""
    for name, tensor, needed in arguments:
        if tuple(tensor.shape[-len(needed) :]) != needed:
            words = ", ".join(map(str, needed))
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} but this system needs (..., {words}).")
