"""The linear-Gaussian state space against the joint Gaussian of all states and observations."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from aecourse.linear_gaussian import (
    StateSpace,
    backward_kernel,
    kalman_filter,
    kalman_smoother,
    state_space,
)

STATE, SEEN, LENGTH = 2, 3, 6
EXACT = {"rtol": 0, "atol": 1e-11}


def covariance(size: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T / size + 0.2 * torch.eye(size, dtype=torch.float64)


def parameters(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    turn = torch.tensor([[0.9, -0.4], [0.3, 0.8]], dtype=torch.float64)
    return {
        "transition": turn,
        "transition_cov": covariance(STATE, 1),
        "emission": torch.randn(SEEN, STATE, dtype=torch.float64),
        "emission_cov": covariance(SEEN, 2),
        "initial_mean": torch.tensor([0.5, -1.0], dtype=torch.float64),
        "initial_cov": covariance(STATE, 3),
    }


@pytest.fixture
def system() -> StateSpace:
    return state_space(**parameters())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, LENGTH, SEEN, dtype=torch.float64)


def joint(system: StateSpace, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (z_0, ..., z_T, x_1, ..., x_T), as a linear map of all the noise."""
    transition, move, emission, see, start, begin = system
    root = [torch.linalg.cholesky(cov) for cov in (begin, move, see)]
    noise = torch.block_diag(root[0], *[root[1]] * length, *[root[2]] * length)
    states = [noise[:STATE]]
    means = [start]
    for t in range(length):
        rows = slice(STATE * (t + 1), STATE * (t + 2))
        states.append(transition @ states[-1] + noise[rows])
        means.append(transition @ means[-1])
    seen = noise[STATE * (length + 1) :].unflatten(0, (length, -1))
    observed = [emission @ state + own for state, own in zip(states[1:], seen)]
    both = torch.cat([*states, *observed])
    return torch.cat([*means, *(emission @ mean for mean in means[1:])]), both @ both.T


def of_states(first: int, last: int | None = None) -> list[int]:
    return [*range(STATE * first, STATE * ((first if last is None else last) + 1))]


def of_observations(count: int, length: int = LENGTH) -> list[int]:
    """Where x_1, ..., x_count are."""
    begin = STATE * (length + 1)
    return [*range(begin, begin + SEEN * count)]


def conditioned(mean: Tensor, cov: Tensor, wanted: list[int], given: list[int], values: Tensor):
    """Moments of some numbers of a Gaussian given others, ``(batch, given)``."""
    gain = torch.linalg.solve(cov[given][:, given], cov[given][:, wanted]).T if given else cov[wanted][:, []]
    centre = mean[wanted] + (values - mean[given]) @ gain.T
    return centre, cov[wanted][:, wanted] - gain @ cov[given][:, wanted]


# --------------------------------------------------------------------------------- likelihood


def test_the_likelihood_is_that_of_the_joint_gaussian(system, x):
    mean, cov = joint(system)
    seen = of_observations(LENGTH)
    expected = MultivariateNormal(mean[seen], cov[seen][:, seen]).log_prob(x.flatten(1))
    torch.testing.assert_close(system.log_likelihood(x), expected, **EXACT)


def test_each_observation_is_as_likely_as_the_joint_gaussian_says(system, x):
    mean, cov = joint(system)
    terms = kalman_filter(system, x).log_likelihoods
    for t in range(1, LENGTH + 1):
        here = of_observations(t)[-SEEN:]
        centre, spread = conditioned(mean, cov, here, of_observations(t - 1), x[:, : t - 1].flatten(1))
        expected = MultivariateNormal(centre, spread).log_prob(x[:, t - 1])
        torch.testing.assert_close(terms[:, t - 1], expected, **EXACT)


def test_the_gradient_of_the_likelihood_is_that_of_the_joint_gaussian(x):
    values = {name: value.requires_grad_() for name, value in parameters().items()}
    system = state_space(**values)
    ours = torch.autograd.grad(system.log_likelihood(x).sum(), [*values.values()])
    mean, cov = joint(system)
    seen = of_observations(LENGTH)
    log_likelihood = MultivariateNormal(mean[seen], cov[seen][:, seen]).log_prob(x.flatten(1)).sum()
    theirs = torch.autograd.grad(log_likelihood, [*values.values()])
    for name, a, b in zip(values, ours, theirs):
        if name.endswith("_cov"):  # one reads the lower triangle, the other both: the symmetric part counts
            a, b = a + a.T, b + b.T
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


# ---------------------------------------------------------------------------- filter, smoother


def test_the_filter_knows_what_the_observations_until_then_say(system, x):
    mean, cov = joint(system)
    found = kalman_filter(system, x)
    assert found.means.shape == (4, LENGTH + 1, STATE)
    assert found.covs.shape == (LENGTH + 1, STATE, STATE)
    for t in range(LENGTH + 1):
        centre, spread = conditioned(mean, cov, of_states(t), of_observations(t), x[:, :t].flatten(1))
        torch.testing.assert_close(found.means[:, t], centre.expand(4, -1), **EXACT)
        torch.testing.assert_close(found.covs[t], spread, **EXACT)


def test_the_smoother_knows_what_all_observations_say(system, x):
    mean, cov = joint(system)
    found = kalman_smoother(system, x)
    assert found.means.shape == (4, LENGTH + 1, STATE)
    for t in range(LENGTH):
        two = of_states(t, t + 1)
        centre, spread = conditioned(mean, cov, two, of_observations(LENGTH), x.flatten(1))
        torch.testing.assert_close(found.means[:, t : t + 2].flatten(1), centre, **EXACT)
        torch.testing.assert_close(found.covs[t], spread[:STATE, :STATE], **EXACT)
        torch.testing.assert_close(found.covs[t + 1], spread[STATE:, STATE:], **EXACT)
        torch.testing.assert_close(found.cross_covs[t], spread[:STATE, STATE:], **EXACT)


def test_a_random_walk_ends_at_the_golden_ratio():
    """All numbers one: the predicted variance p = p / (p + 1) + 1 at the end, (1 + sqrt 5) / 2."""
    one = torch.ones(1, 1, dtype=torch.float64)
    walk = state_space(one, one, one, one, torch.zeros(1, dtype=torch.float64), one)
    found = kalman_filter(walk, torch.zeros(1, 40, 1, dtype=torch.float64))
    golden = (1 + math.sqrt(5)) / 2
    assert walk.predict(found.means[:, -1], found.covs[-1])[1].item() == pytest.approx(golden, rel=1e-14)
    assert found.covs[-1].item() == pytest.approx(1 / golden, rel=1e-14)
    assert found.covs[0].item() == 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_backward_kernel_is_the_earlier_state_given_the_later_one(system, x, steps):
    mean, cov = joint(system)
    filtered = kalman_filter(system, x)
    later = torch.randn(4, STATE, dtype=torch.float64)
    kernel = backward_kernel(system, filtered.means[:, 1], filtered.covs[1], steps)
    given = of_states(1 + steps) + of_observations(1)
    values = torch.cat([later, x[:, 0]], dim=1)
    centre, spread = conditioned(mean, cov, of_states(1), given, values)
    torch.testing.assert_close(kernel.mean(later), centre, **EXACT)
    torch.testing.assert_close(kernel.cov, spread, **EXACT)
    # What is seen from then on says nothing more about the earlier state.
    after = of_observations(LENGTH)[SEEN * steps :]
    given, values = given + after, torch.cat([values, x[:, steps:].flatten(1)], dim=1)
    centre, spread = conditioned(mean, cov, of_states(1), given, values)
    torch.testing.assert_close(kernel.mean(later), centre, **EXACT)
    torch.testing.assert_close(kernel.cov, spread, **EXACT)


def test_every_state_may_have_a_covariance_of_its_own(system):
    means = torch.randn(5, STATE, dtype=torch.float64)
    covs = torch.stack([covariance(STATE, seed) for seed in range(5)])
    x = torch.randn(5, SEEN, dtype=torch.float64)
    later = torch.randn(5, STATE, dtype=torch.float64)

    def everything(mean, cov, x, later):
        kernel = backward_kernel(system, mean, cov, 3)
        moments = (*system.predict(mean, cov, 2), *system.emit(mean, cov), *system.update(mean, cov, x))
        return *moments, *system.rollout(mean, cov, 3), kernel.mean(later), kernel.cov

    together = everything(means, covs, x, later)
    for i, each in enumerate(zip(means, covs, x, later)):
        for one, all_of_them in zip(everything(*each), together):
            torch.testing.assert_close(all_of_them[i], one, **EXACT)


# ------------------------------------------------------------------------- jumps and rollouts


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_jump_is_a_power_and_the_noise_of_every_step(system, steps):
    power, cov = system.jump(steps)
    powers = [torch.linalg.matrix_power(system.transition, i) for i in range(steps + 1)]
    torch.testing.assert_close(power, powers[steps], **EXACT)
    expected = sum(powers[i] @ system.transition_cov @ powers[i].T for i in range(steps))
    torch.testing.assert_close(cov, expected, **EXACT)


def test_rollouts_are_predictions_and_those_are_of_the_joint_gaussian(system, x):
    mean, cov = joint(system)
    filtered = kalman_filter(system, x)
    means, covs = system.rollout(filtered.means[:, 2], filtered.covs[2], LENGTH - 2)
    seen = system.emit(means, covs)
    for t in range(3, LENGTH + 1):
        centre, spread = conditioned(mean, cov, of_states(t), of_observations(2), x[:, :2].flatten(1))
        for found in (
            (means[:, t - 3], covs[t - 3]),
            system.predict(filtered.means[:, 2], filtered.covs[2], t - 2),
        ):
            torch.testing.assert_close(found[0], centre, **EXACT)
            torch.testing.assert_close(found[1], spread, **EXACT)
        wanted = of_observations(t)[-SEEN:]
        centre, spread = conditioned(mean, cov, wanted, of_observations(2), x[:, :2].flatten(1))
        torch.testing.assert_close(seen[0][:, t - 3], centre, **EXACT)
        torch.testing.assert_close(seen[1][t - 3], spread, **EXACT)


def test_samples_have_the_moments_of_the_joint_gaussian(system):
    count = 40_000
    x, z = system.sample(count, 3)
    assert x.shape == (count, 3, SEEN)
    assert z.shape == (count, 4, STATE)
    drawn = torch.cat([z.flatten(1), x.flatten(1)], dim=1)
    mean, cov = joint(system, 3)
    deviation = cov.diagonal().sqrt()
    assert ((drawn.mean(dim=0) - mean).abs() / deviation).max() < 5 / math.sqrt(count)
    scaled = (drawn.T.cov() - cov) / (deviation.unsqueeze(1) * deviation)
    assert scaled.abs().max() < 5 * math.sqrt(2 / count)


# ----------------------------------------------------------------------------------- rounding


def test_covariances_keep_their_digits_in_single_precision():
    """Precise observations of a wide state: P - K C P would be wrong by half, Joseph's sum is not."""
    precise = {
        "transition": torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64),
        "transition_cov": 1e-7 * torch.eye(2, dtype=torch.float64),
        "emission": torch.eye(2, dtype=torch.float64),
        "emission_cov": 1e-5 * torch.eye(2, dtype=torch.float64),
        "initial_mean": torch.zeros(2, dtype=torch.float64),
        "initial_cov": 100 * torch.eye(2, dtype=torch.float64),
    }
    exact = state_space(**precise)
    x = exact.sample(2, 60)[0]
    single = state_space(**{name: value.float() for name, value in precise.items()})
    for estimate in (kalman_filter, kalman_smoother):
        found, expected = estimate(single, x.float()).covs, estimate(exact, x).covs
        assert torch.equal(found, found.mT)
        least = expected.diagonal(dim1=1, dim2=2).amin(dim=1).view(-1, 1, 1)
        assert ((found - expected).abs() / least).max() < 1e-3
        assert torch.linalg.eigvalsh(found.double()).min() > 0


# --------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"transition": torch.eye(3)},
            ValueError,
            r"^transition_cov has shape \(2, 2\) but needs \(k, k\) = \(3, 3\)",
        ),
        ({"emission": torch.ones(3, 3)}, ValueError, r"^emission has shape \(3, 3\) but needs \(D, k\)"),
        (
            {"initial_mean": torch.zeros(1, 2)},
            ValueError,
            r"^initial_mean has shape \(1, 2\) but needs \(k\)",
        ),
        ({"initial_mean": [0.0, 0.0]}, TypeError, r"^initial_mean must be a torch\.Tensor, not list"),
        ({"emission_cov": torch.eye(3).long()}, TypeError, r"^emission_cov has dtype torch\.int64"),
        ({"emission": torch.ones(3, 2)}, TypeError, r"^emission has dtype torch\.float32 but transition has"),
        (
            {"transition": torch.full((2, 2), math.nan).double()},
            ValueError,
            r"^transition holds 4 values that are NaN",
        ),
        (
            {"initial_cov": -torch.eye(2).double()},
            ValueError,
            r"^initial_cov must be symmetric and positive definite",
        ),
        (
            {"transition_cov": torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double()},
            ValueError,
            r"^transition_cov must be symmetric and positive definite",
        ),
        (
            {"emission_cov": torch.ones(3, 3).double()},
            ValueError,
            r"^emission_cov must be symmetric and positive definite",
        ),
    ],
)
def test_bad_parameters_are_refused(changed, error, message):
    with pytest.raises(error, match=message.replace(r"\(k\)", r"\(k,\)")):
        state_space(**{**parameters(), **changed})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: kalman_filter(s, torch.ones(4, 3).double()), ValueError, r"^x has shape \(4, 3\)"),
        (lambda s: kalman_smoother(s, torch.ones(4, 5, 2).double()), ValueError, r"^x has shape \(4, 5, 2\)"),
        (lambda s: s.log_likelihood(torch.ones(4, 5, 3).long()), TypeError, r"^x has dtype torch\.int64"),
        (lambda s: s.log_likelihood(torch.ones(4, 0, 3).double()), ValueError, r"^the time of x is 0"),
        (
            lambda s: s.update(s.initial_mean, s.initial_cov, torch.ones(4, 1).double()),
            ValueError,
            r"^x has shape \(4, 1\) but this system needs \(\.\.\., 3\)",
        ),
        (lambda s: s.jump(0), ValueError, r"^steps is 0 but must be at least 1"),
        (lambda s: s.sample(0, 3), ValueError, r"^count is 0"),
        (lambda s: s.sample(2, 1.5), TypeError, r"^length is 1\.5"),
        (lambda s: s.rollout(s.initial_mean, s.initial_cov, 0), ValueError, r"^steps is 0"),
        (lambda s: s.predict(torch.zeros(4, 3), s.initial_cov), ValueError, r"^mean has shape \(4, 3\) but"),
        (
            lambda s: s.emit(s.initial_mean, torch.eye(3)),
            ValueError,
            r"^cov has shape \(3, 3\) but this system",
        ),
        (
            lambda s: backward_kernel(s, s.initial_mean, s.initial_mean),
            ValueError,
            r"^cov has shape \(2,\) but this system needs \(\.\.\., 2, 2\)",
        ),
    ],
)
def test_bad_arguments_are_refused(system, call, error, message):
    with pytest.raises(error, match=message):
        call(system)
