"""The TD-VAE: exact where the state space is, known where it is not, and trained."""

import math

import pytest
import torch
from support.losses import assert_gradient_is_derivative, assert_single_precision_under_autocast
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from aecourse import data, evaluate
from aecourse.bounds import linear_annealing
from aecourse.likelihoods import Likelihood, bernoulli_log_likelihood
from aecourse.linear_gaussian import StateSpace, backward_kernel, kalman_filter, state_space
from aecourse.train import fit, mean_loss
from aecourse.zoo.td_vae import TDVAE, GaussianState, GRUMemory, td_bound

STATE, SEEN, LENGTH = 2, 3, 5
EXACT = {"rtol": 0, "atol": 1e-11}


def double(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact_system() -> StateSpace:
    """A state that turns, and correlated noise everywhere: no covariance of a belief is diagonal."""
    return state_space(
        transition=double([0.9, -0.4], [0.3, 0.8]),
        transition_cov=double([0.3, 0.1], [0.1, 0.2]),
        emission=double([1.0, 0.2], [0.5, -1.0], [-0.3, 0.7]),
        emission_cov=double([0.5, 0.2, 0.0], [0.2, 0.6, 0.1], [0.0, 0.1, 0.4]),
        initial_mean=double(0.5, -1.0),
        initial_cov=double([1.0, 0.3], [0.3, 0.8]),
    )


# ---------------------------------------------- the state space as the five parts of a TD-VAE


class KalmanMemory(nn.Module):
    """What the filter knows: a mean, and the numbers of its covariance behind it."""

    def __init__(self, system: StateSpace):
        super().__init__()
        self.system = system

    def forward(self, x):
        filtered = kalman_filter(self.system, x)
        return torch.cat([filtered.means, filtered.covs.flatten(1).expand(len(x), -1, -1)], dim=2)


def known(b: Tensor) -> tuple[Tensor, Tensor]:
    return b[:, :STATE], b[:, STATE:].unflatten(1, (STATE, STATE))


class KalmanBelief(nn.Module):
    """Exact with its parameters at zero."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(STATE, dtype=torch.float64))
        self.inflation = nn.Parameter(torch.zeros((), dtype=torch.float64))  # of log P

    def forward(self, b):
        mean, cov = known(b)
        return mean + self.shift, torch.linalg.cholesky(self.inflation.exp() * cov)


class BackwardSmoother(nn.Module):
    """Exact with its parameters at zero."""

    def __init__(self, system: StateSpace):
        super().__init__()
        self.system = system
        self.shift = nn.Parameter(torch.zeros(STATE, dtype=torch.float64))
        self.gain = nn.Parameter(torch.zeros(STATE, STATE, dtype=torch.float64))
        self.widening = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z2, b1, b2, k):
        kernels = [backward_kernel(self.system, *known(b1), steps) for steps in range(1, LENGTH + 1)]
        row = torch.arange(len(k))
        mean = torch.stack([kernel.mean(z2) for kernel in kernels])[k - 1, row]
        cov = torch.stack([kernel.cov for kernel in kernels])[k - 1, row]
        return mean + z2 @ self.gain.T + self.shift, self.widening.exp() * torch.linalg.cholesky(cov)


class LinearTransition(nn.Module):
    def __init__(self, system: StateSpace):
        super().__init__()
        self.system = system
        self.weight = nn.Parameter(system.transition.clone())

    def forward(self, z1, k):
        powers = torch.stack([torch.linalg.matrix_power(self.weight, i) for i in range(LENGTH + 1)])
        factors = torch.stack([torch.linalg.cholesky(self.system.jump(i)[1]) for i in range(1, LENGTH + 1)])
        return (powers[k] @ z1.unsqueeze(2)).squeeze(2), factors[k - 1]


class CorrelatedGaussian(Likelihood):
    support = (-math.inf, math.inf)

    def __init__(self, cov: Tensor):
        super().__init__()
        self.cov = cov

    def mean(self, output):
        return output

    def log_prob(self, x, output):
        return MultivariateNormal(output, self.cov).log_prob(x)


def exact_model(system: StateSpace, **options) -> TDVAE:
    decoder = nn.Linear(STATE, SEEN, bias=False, dtype=torch.float64)
    decoder.weight.data.copy_(system.emission)
    return TDVAE(
        KalmanMemory(system),
        KalmanBelief(),
        BackwardSmoother(system),
        LinearTransition(system),
        decoder,
        step_shape=(SEEN,),
        latent_dim=STATE,
        likelihood=CorrelatedGaussian(system.emission_cov),
        **options,
    )


def make_wrong(model: TDVAE, size: float = 0.2) -> None:
    """Every part off by something of its own."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)


def expected_bounds(model: TDVAE, system: StateSpace, x: Tensor, t1: int, t2: int) -> tuple[Tensor, Tensor]:
    """log p(x_t2 | x_<=t1) of the model, and the bound: less KL(q(z1, z2) || p(z1, z2 | x_<=t1, x_t2))."""
    filtered, (power, move) = kalman_filter(system, x), system.jump(t2 - t1)
    power = torch.linalg.matrix_power(model.transition.weight, t2 - t1)
    inflation, see = model.belief.inflation.exp(), model.decoder.weight
    mean1, mean2 = (filtered.means[:, t] + model.belief.shift for t in (t1, t2))
    cov1, cov2 = (inflation * filtered.covs[t] for t in (t1, t2))
    # What the model says before it sees x_t2, and after.
    mean = torch.cat([mean1, mean1 @ power.T], dim=1)
    cov = torch.cat(
        [torch.cat([cov1, cov1 @ power.T], 1), torch.cat([power @ cov1, power @ cov1 @ power.T + move], 1)]
    )
    look = torch.cat([torch.zeros_like(see), see], dim=1)
    seen = look @ cov @ look.T + system.emission_cov
    log_likelihood = MultivariateNormal(mean @ look.T, seen).log_prob(x[:, t2 - 1])
    gain = torch.linalg.solve(seen, look @ cov).T
    mean, cov = mean + (x[:, t2 - 1] - mean @ look.T) @ gain.T, cov - gain @ look @ cov
    # What the TD-VAE draws from: the later state first.
    kernel = backward_kernel(system, filtered.means[:, t1], filtered.covs[t1], t2 - t1)
    back, spread = kernel.gain + model.smoother.gain, (2 * model.smoother.widening).exp() * kernel.cov
    drawn = torch.cat([kernel.offset + mean2 @ back.T + model.smoother.shift, mean2], dim=1)
    drawn_cov = torch.cat(
        [torch.cat([back @ cov2 @ back.T + spread, back @ cov2], 1), torch.cat([cov2 @ back.T, cov2], 1)]
    )
    q, posterior = MultivariateNormal(drawn, drawn_cov), MultivariateNormal(mean, 0.5 * (cov + cov.T))
    return log_likelihood, log_likelihood - kl_divergence(q, posterior)


def symmetric_points(count: int) -> Tensor:
    """``(2 count, count)``: every quadratic has the same mean over these points as under N(0, I)."""
    points = math.sqrt(count) * torch.eye(count, dtype=torch.float64)
    return torch.cat([points, -points])


@pytest.fixture
def exact_means(monkeypatch):
    """With as many samples as there are points, means over samples are means over the noise, exactly."""
    points = symmetric_points(2 * STATE)

    def noise(shape, like, batch_dim):
        assert (shape[0], batch_dim, like.dtype) == (len(points), 1, points.dtype)
        return points.view(-1, 1, 1, 2, STATE).expand(shape)

    monkeypatch.setattr("aecourse.zoo.td_vae.standard_normal", noise)
    return len(points)


@pytest.fixture
def system() -> StateSpace:
    return exact_system()


@pytest.fixture
def x(system) -> Tensor:
    return system.sample(3, LENGTH)[0]


# ------------------------------------------------------------------------- exact, draw by draw


def test_every_draw_of_an_exact_model_is_the_likelihood(system, x):
    model = exact_model(system)
    weights = model.step_weights(x, 20)
    assert weights.shape == (20, 3, LENGTH)
    torch.testing.assert_close(weights, kalman_filter(system, x).log_likelihoods.expand(20, -1, -1), **EXACT)
    torch.testing.assert_close(model.log_weights(x, 20), system.log_likelihood(x).expand(20, -1), **EXACT)
    # So is every estimate of the evidence.
    for estimate in (evaluate.importance_sampling(model, x, 4), evaluate.iwae(model, x, 1, 4)):
        torch.testing.assert_close(estimate.value, system.log_likelihood(x), **EXACT)
        assert estimate.standard_error.max() < 1e-11


@pytest.mark.parametrize("training", [True, False])
def test_the_draws_are_draws(system, x, training):
    """At an exact model nobody could see it."""
    model = exact_model(system).train(training)
    make_wrong(model)
    drawn = model.step_weights(x, 500)
    assert (drawn.std(dim=0) > 0.05).all()
    first, second = (model.loss(x).total for _ in range(2))
    assert first != second


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("k", [1, 2, LENGTH])
def test_the_mean_of_the_weights_is_the_evidence_less_what_q_misses(system, x, exact_means, wrong, k):
    model = exact_model(system, steps=(1, LENGTH))
    if wrong:
        make_wrong(model)
    bounds = model.step_weights(x, exact_means, k).mean(dim=0)
    expected = [expected_bounds(model, system, x, t2 - k, t2)[1] for t2 in range(k, LENGTH + 1)]
    torch.testing.assert_close(bounds, torch.stack(expected, dim=1), **EXACT)


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("steps", [1, 3, (1, 3), (2, 4)])
def test_the_loss_and_its_gradient_are_those_of_the_mean_bound(system, x, exact_means, wrong, steps):
    model = exact_model(system, steps=steps, samples=exact_means)
    if wrong:
        make_wrong(model)
    asked = []
    model.transition.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    loss = model.loss(x)
    least, most = model.steps
    k = asked[0].view(exact_means, 3, -1)
    assert (k == k[0]).all()  # all draws of a jump make the same one
    assert k.shape[2] == LENGTH - least + 1
    bound = 0
    for row, jumps in enumerate(k[0].tolist()):
        for t2, jump in enumerate(jumps, start=least):
            assert least <= jump <= most
            bound = bound + expected_bounds(model, system, x[row : row + 1], t2 - jump, t2)[1].sum() / 3
    torch.testing.assert_close(loss.total, -bound, **EXACT)
    torch.testing.assert_close(sum(loss.parts.values()), loss.total, **EXACT)
    if steps == 1 and not wrong:
        torch.testing.assert_close(loss.total, -system.log_likelihood(x).mean(), **EXACT)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad(loss.total, [*parameters.values()])
    theirs = torch.autograd.grad(-bound, [*parameters.values()])
    for name, a, b in zip(parameters, ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=name)
    assert not wrong or min(gradient.abs().max() for gradient in theirs) > 0.01


def test_the_weights_of_a_wrong_model_have_the_mean_of_its_own_evidence(system, x):
    model = exact_model(system)
    make_wrong(model, 0.05)
    expected = sum(expected_bounds(model, system, x, t - 1, t)[0] for t in range(1, LENGTH + 1))
    found = evaluate.importance_sampling(model, x, 4000)
    assert ((found.value - expected).abs() < 5 * found.standard_error).all()
    assert found.standard_error.max() < 0.1


# ---------------------------------------------------------------------------- jumps are biased


def steady_system() -> StateSpace:
    """The same, with an initial belief that no observation makes any narrower."""
    system = exact_system()
    cov = kalman_filter(system, torch.zeros(1, 200, SEEN, dtype=torch.float64)).covs[-1]
    return system._replace(initial_cov=cov)


def all_sequences(system: StateSpace, length: int) -> Tensor:
    """Sequences over which every quadratic has the mean that it has under the state space."""
    covs = [system.initial_cov, *[system.transition_cov, system.emission_cov] * length]
    noise = symmetric_points(sum(map(len, covs))) @ torch.block_diag(*map(torch.linalg.cholesky, covs)).T
    first, *rest = noise.split([len(cov) for cov in covs], dim=1)
    z, x = system.initial_mean + first, []
    for move, see in zip(rest[::2], rest[1::2]):
        z = z @ system.transition.T + move
        x.append(z @ system.emission.T + see)
    return torch.stack(x, dim=1)


@pytest.mark.parametrize(
    ("k", "gap", "slope", "inflation"),
    [(1, 0, 0, 1), (2, 0.1547, 0.1430, 1.0873), (3, 0.2373, 0.2099, 1.1310), (5, 0.3255, 0.2749, 1.1778)],
)
def test_jumps_pay_a_belief_for_being_vague(exact_means, k, gap, slope, inflation):
    r"""The later belief has seen what lies between, I(z_t2; between | x_<=t1, x_t2) nats, and pays for it.

    With P the belief's covariance at t2 and P' that of somebody who knows x_<=t1 and x_t2 alone, the mean
    bound is low by (log det P' - log det P) / 2; and wider beliefs have a better one, at the rate of
    (dim z - tr P'^-1 P) / 2 nats for each unit of log P, until all are ``inflation`` times as wide.
    """
    system = steady_system()
    model, x = exact_model(system, steps=k, samples=exact_means), all_sequences(system, k)
    prediction = system.predict(system.initial_mean, system.initial_cov, k)
    ignorant = system.update(*prediction, x[:, -1])[1]
    belief = kalman_filter(system, x).covs[-1]
    torch.testing.assert_close(belief, system.initial_cov, **EXACT)
    seen = system.emit(*prediction)[1]
    log_likelihood = -0.5 * torch.logdet(2 * math.pi * math.e * seen)  # the mean, less an entropy

    bound = -model.loss(x).total
    expected = 0.5 * (torch.logdet(ignorant) - torch.logdet(belief))
    torch.testing.assert_close(log_likelihood - bound, expected, **EXACT)
    (found,) = torch.autograd.grad(bound, model.belief.inflation)
    rate = 0.5 * (STATE - torch.linalg.solve(ignorant, belief).trace())
    torch.testing.assert_close(found, rate, **EXACT)
    assert expected.item() == pytest.approx(gap, abs=5e-5)
    assert rate.item() == pytest.approx(slope, abs=5e-5)
    model.belief.inflation.data.fill_(math.log(inflation))
    (found,) = torch.autograd.grad(model.loss(x).total, model.belief.inflation)
    assert found.item() == pytest.approx(0, abs=1e-4)


def test_the_length_of_a_jump_is_drawn_evenly_from_those_that_begin_in_time(system):
    model, asked = exact_model(system, steps=(2, 4)), []
    model.transition.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    model.loss(torch.zeros(3000, LENGTH, SEEN, dtype=torch.float64))
    for t2, k in enumerate(asked[0].view(3000, -1).unbind(dim=1), start=2):
        choices = min(t2, 4) - 1
        shares = k.bincount(minlength=5)[2:] / len(k)
        even = torch.tensor([1.0] * choices + [0.0] * (3 - choices)) / choices
        torch.testing.assert_close(shares, even, rtol=0, atol=0.05 * (choices > 1))


# ------------------------------------------------------------------------- rollouts and samples


def moments_agree(drawn: Tensor, means: Tensor, covs: Tensor) -> None:
    """``(count, time, D)`` against ``(time, D)`` and ``(time, D, D)``, within five standard errors."""
    count, deviation = len(drawn), covs.diagonal(dim1=1, dim2=2).sqrt()
    assert ((drawn.mean(dim=0) - means).abs() / deviation).max() < 5 / math.sqrt(count)
    centred = (drawn - means) / deviation
    found = torch.einsum("nti,ntj->tij", centred, centred) / count
    expected = covs / (deviation.unsqueeze(2) * deviation.unsqueeze(1))
    assert (found - expected).abs().max() < 5 * math.sqrt(2 / count)


def test_rollouts_and_samples_have_the_moments_of_the_state_space(system, x):
    model, count = exact_model(system, steps=(1, 3)), 20_000
    filtered = kalman_filter(system, x)
    see = system.emission

    def decoded(means, covs):  # of the means of x, which do not have its noise
        return means @ see.T, see @ covs @ see.T

    ahead = system.rollout(filtered.means[0, -1], filtered.covs[-1], 6)
    drawn = model.rollout(x[:1].expand(count, -1, -1), 3)
    assert drawn.shape == (count, 3, SEEN)
    moments_agree(drawn, *decoded(ahead[0][:3], ahead[1][:3]))
    moments_agree(
        model.rollout(x[:1].expand(count, -1, -1), 2, jump=3), *decoded(ahead[0][2::3], ahead[1][2::3])
    )
    # From what is known before the first observation, for as long as one likes.
    start = system.rollout(system.initial_mean, system.initial_cov, 4)
    drawn = model.sample(count, 4)
    assert drawn.dtype == torch.float64
    moments_agree(drawn, *decoded(*start))


def test_a_reconstruction_is_what_the_belief_after_it_decodes(system, x):
    expected = kalman_filter(system, x).means[:, 1:] @ system.emission.T
    torch.testing.assert_close(exact_model(system).reconstruct(x), expected, **EXACT)


# -------------------------------------------------------------------------------- its Gaussians


def gaussians(full: bool, seed: int) -> tuple[GaussianState, MultivariateNormal]:
    torch.manual_seed(seed)
    mean, scale = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.3
    if full:
        scale = torch.diag_embed(scale) + torch.randn(4, 3, 3, dtype=torch.float64).tril(-1)
    factor = scale if full else torch.diag_embed(scale)
    return GaussianState(mean, scale), MultivariateNormal(mean, scale_tril=factor)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("other_full", [False, True])
def test_densities_and_divergences_are_those_of_torch(full, other_full):
    (one, same_one), (other, same_other) = gaussians(full, 0), gaussians(other_full, 1)
    z = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(one.log_density(z), same_one.log_prob(z), **EXACT)
    torch.testing.assert_close(one.kl(other), kl_divergence(same_one, same_other), **EXACT)
    torch.testing.assert_close(one.kl(one), torch.zeros(4, dtype=torch.float64), **EXACT)
    noise = torch.eye(3, dtype=torch.float64).repeat_interleave(4, dim=0)
    repeated = GaussianState(*(part.repeat(3, *[1] * (part.dim() - 1)) for part in one))
    columns = (repeated.draw(noise) - repeated.mean).unflatten(0, (3, 4)).movedim(0, 2)
    torch.testing.assert_close(columns @ columns.mT, same_one.covariance_matrix, **EXACT)


def test_the_bound_from_its_terms():
    assert td_bound(*(torch.tensor([value]) for value in (-3.0, 0.5, -1.0, -1.25))).item() == -3.75
    with pytest.raises(ValueError, match=r"^smoothing has shape \(2,\)"):
        td_bound(torch.zeros(3), torch.zeros(2), torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeError, match=r"^log_transition must be a torch\.Tensor"):
        td_bound(torch.zeros(3), torch.zeros(3), torch.zeros(3), 0.0)


# ---------------------------------------------------------------------------------- as built


def small_model(shape=(1, 5, 4), **options) -> TDVAE:
    return TDVAE.build("mlp", shape, 2, **{"memory": 6, "hidden": (7,), **options})


SMALL_SHAPES = [((1, 5, 4), 2, 5), ((2, 9), 2, 9), ((6, 3), 1, 6), ((6, 2, 3), 1, 6), ((2, 3, 4), 3, 4)]


@pytest.mark.parametrize(("shape", "time_dim", "length"), SMALL_SHAPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"likelihood": "categorical", "levels": 3, "steps": (1, 3)}, {"covariance": "full", "samples": 3}],
)
def test_images_series_and_sequences(shape, time_dim, length, options):
    model, x = small_model(shape, time_dim=time_dim, **options), torch.rand(4, *shape)
    model.validate(x)
    loss = model.loss(x)
    assert {value.shape for value in loss.terms.values()} == {()}
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    unused = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert unused == []
    assert model.step_weights(x, 3).shape == (3, 4, length)
    assert model.log_weights(x, 3).shape == (3, 4)
    assert model.reconstruct(x).shape == x.shape
    assert model.sample(4).shape == x.shape
    begun = x.narrow(time_dim, 0, 2)
    assert torch.cat([begun, model.rollout(begun, length - 2)], dim=time_dim).shape == x.shape


def test_the_time_is_where_it_is_said_to_be():
    """The rows of an image are the steps of a sequence."""
    of_images, of_sequences = small_model((2, 5, 4)), small_model((5, 2, 4), time_dim=1)
    of_sequences.load_state_dict(of_images.state_dict())
    x = torch.rand(3, 2, 5, 4)
    values = []
    for model, batch in ((of_images, x), (of_sequences, x.movedim(2, 1))):
        torch.manual_seed(3)
        values.append(model.loss(batch).total)
    assert torch.equal(*values)


def test_a_memory_holds_what_it_has_seen_and_nothing_else():
    model = small_model((5, 3), time_dim=1).double()
    assert isinstance(model.memory, GRUMemory)
    x = torch.rand(1, 5, 3, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(model.memory, x)  # (1, 6, size, 1, 5, 3)
    depends = slopes.abs().amax(dim=(0, 2, 3, 5)) > 0
    assert torch.equal(depends, torch.ones(6, 5).tril(-1).bool())


def test_a_loss_is_a_sum_over_steps_and_a_mean_over_sequences(monkeypatch):
    def no_noise(shape, like, batch_dim):
        return torch.zeros(shape, dtype=like.dtype)

    monkeypatch.setattr("aecourse.zoo.td_vae.standard_normal", no_noise)
    model = small_model(samples=2).double()
    x = torch.rand(3, 1, 5, 4, dtype=torch.float64)
    of_each = torch.stack([model.loss(one).total for one in x.split(1)])
    for batch, expected in ((x, of_each), (x[:2], of_each[:2]), (x.repeat(2, 1, 1, 1), of_each)):
        torch.testing.assert_close(model.loss(batch).total, expected.mean(), **EXACT)
    # The likelihood is that of all steps: with a decoder that does not look, that of the image.
    nn.init.zeros_(model.decoder.net[-1].weight)
    nn.init.zeros_(model.decoder.net[-1].bias)
    assert model.loss(x).parts["reconstruction"].item() == pytest.approx(20 * math.log(2))


def test_the_gradient_of_the_loss_is_its_derivative():
    model = small_model((3, 2), time_dim=1, memory=2, hidden=(), covariance="full", steps=(1, 2)).double()
    x = torch.rand(2, 3, 2, dtype=torch.float64)
    assert_gradient_is_derivative(model, x, fast_mode=True)


def test_bounds_stay_in_single_precision_under_autocast():
    model, x = small_model(covariance="full"), torch.rand(6, 1, 5, 4)
    assert_single_precision_under_autocast(model, x)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_no_network_makes_it_nan(likelihood):
    model = small_model(likelihood=likelihood)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(300)
    x = torch.rand(50, 1, 5, 4).round()
    loss = model.loss(x)
    loss.total.backward()
    assert all(value.isfinite() for value in loss.terms.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ------------------------------------------------------------------------------------ trained


def test_it_learns_the_state_space():
    """To within a tenth of a nat per step of the filter, which is almost a nat above knowing no past."""
    system = exact_system()._replace(emission_cov=0.4 * torch.eye(SEEN, dtype=torch.float64))
    train, test = (system.sample(count, 12)[0] for count in (1500, 500))
    options = {"memory": 16, "hidden": (), "time_dim": 1, "likelihood": "gaussian", "variance": "learned"}
    model = TDVAE.build("mlp", (12, SEEN), STATE, **options)
    settings = {"epochs": 8, "batch_size": 50, "device": "cpu", "progress": False}
    fit(model, train.float(), lr=lambda epoch: 0.03 * (1 - epoch / 8), **settings)
    exact = system.log_likelihood(test).mean() / 12
    assert exact + mean_loss(model, test.float())["total"] / 12 < 0.1
    flat = test.flatten(0, 1)
    without_past = MultivariateNormal(flat.mean(dim=0), flat.T.cov()).log_prob(flat).mean()
    assert exact - without_past > 0.8
    # What it would see next is near what the filter expects, and what it draws is as wide.
    seen = test[:, :6]
    filtered = kalman_filter(system, seen)
    expected = system.emit(*system.predict(filtered.means[:, -1], filtered.covs[-1]))[0]
    found = torch.stack([model.rollout(seen.float(), 1)[:, 0] for _ in range(50)]).mean(dim=0)
    assert (found - expected).square().mean() < 0.15 * expected.var(dim=0).mean()
    later = slice(6, 12)
    deviation = model.sample(2000)[:, later].std(dim=0)
    states = system.sample(5000, 12)[1][:, 1:]
    expected = (states[:, later] @ system.emission.T).std(dim=0)
    assert (deviation / expected - 1).abs().max() < 0.2


def test_it_learns_digits_row_by_row():
    """Better than knowing every pixel's mean, which itself takes a memory of how many rows have passed."""
    digits = data.load("digits")
    train, test = ((images > 0.4).float() for images in (digits.train, digits.test))
    model = TDVAE.build("mlp", digits.image_shape, 8, memory=32, hidden=(32,))
    steps = 10 * math.ceil(len(train) / 50)
    fit(
        model,
        train,
        epochs=10,
        batch_size=50,
        lr=lambda epoch: 0.02 * (1 - epoch / 10),
        beta=lambda step: linear_annealing(step, 0, 0.6 * steps),
        device="cpu",
        progress=False,
    )
    means = train.mean(dim=0, keepdim=True).clamp(0.001, 0.999)
    independent = -bernoulli_log_likelihood(test, means.logit().expand_as(test)).mean()
    assert mean_loss(model, test)["total"] < independent - 0.3
    assert evaluate.negative_log_likelihood(model, test[:20], 20, progress=False).value < 25


def test_full_covariances_begin_as_harmless_as_diagonal_ones():
    """The inverse of a triangular factor with entries of any size grows with every row."""
    x, totals = torch.rand(50, 1, 5, 4), []
    for covariance in ("diagonal", "full"):
        torch.manual_seed(0)
        totals.append(TDVAE.build("mlp", (1, 5, 4), 16, covariance=covariance).loss(x).total.item())
    assert totals[1] == pytest.approx(totals[0], rel=0.3)


def test_beta_weighs_all_but_the_likelihood():
    model, x = small_model(beta=0.25).double(), torch.rand(6, 1, 5, 4, dtype=torch.float64)
    for options, beta in (({}, 0.25), ({"beta": 2.0}, 2.0), ({"beta": torch.tensor(0.5)}, 0.5)):
        loss = model.loss(x, **options)
        expected = loss.parts["reconstruction"] + beta * (loss.parts["kl"] + loss.parts["transition"])
        torch.testing.assert_close(loss.total, expected, **EXACT)


# --------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, r"^steps is 0 but must be at least 1"),
        ({"steps": 1.5}, TypeError, r"^steps is 1\.5 but must be a whole number"),
        ({"steps": (3, 2)}, ValueError, r"^steps is \(3, 2\) but its first number must not be the larger"),
        ({"steps": (1, 2, 3)}, ValueError, r"^steps is \(1, 2, 3\) but must be one number or two"),
        ({"samples": 0}, ValueError, r"^samples is 0 but must be at least 1"),
        ({"memory": 0}, ValueError, r"^memory is 0 but must be at least 1"),
        ({"time_dim": 0}, ValueError, r"^time_dim is 0 but must be at least 1"),
        ({"time_dim": 4}, ValueError, r"^image_shape is \(1, 5, 4\) but needs a time, in dimension 4"),
        ({"shape": (6,)}, ValueError, r"^image_shape is \(6,\) but needs a time, in dimension 2"),
        ({"covariance": "dense"}, ValueError, r"^covariance is 'dense' but must be one of"),
        ({"likelihood": "poisson"}, ValueError, r"^likelihood is 'poisson' but must be one of"),
        ({"beta": -1.0}, ValueError, r"^beta is -1\.0 but must be at least 0"),
        ({"beta": math.inf}, ValueError, r"^beta is inf but must be at least 0 and finite"),
        ({"betta": 2.0}, TypeError, "betta"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        small_model(**options)


X = torch.rand(3, 1, 5, 4)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            X[:, :, :, :3],
            ValueError,
            r"^images has shape \(3, 1, 5, 3\) but this model needs \(batch, 1, time, 4\)",
        ),
        (X[:, 0], ValueError, r"^images has shape \(3, 5, 4\) but this model needs \(batch, 1, time, 4\)"),
        (X[:, :, :1], ValueError, r"^images has 1 steps of time but needs at least 2"),
        (X.round().long(), TypeError, r"^images has dtype torch\.int64"),
        (X.tolist(), TypeError, r"^images must be a torch\.Tensor, not list"),
        (2 * X, ValueError, r"^images has values from .* but needs \[0, 1\]"),
        (X.log2() / 0, ValueError, r"^images holds 60 values that are NaN or infinite"),
    ],
)
def test_sequences_that_cannot_be_trained_on_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        small_model(steps=(2, 3)).validate(images)


def test_a_gaussian_likelihood_takes_any_numbers():
    far = 9 * X - 4
    with pytest.raises(ValueError, match=r"^images has values from"):
        small_model().validate(far)
    assert small_model(likelihood="gaussian").validate(far) is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.loss(X[:, :, :1]), ValueError, r"^x has 1 steps of time but needs at least 2"),
        (lambda m: m.step_weights(X, 0, 2), ValueError, r"^samples is 0"),
        (lambda m: m.step_weights(X, 2, 4), ValueError, r"^k is 4 but this model makes jumps of 2 to 3"),
        (lambda m: m.log_weights(X, 2), ValueError, r"^k is 1 but this model makes jumps of 2 to 3"),
        (lambda m: m.rollout(X, 0), ValueError, r"^steps is 0"),
        (lambda m: m.rollout(X, 2, jump=1), ValueError, r"^jump is 1 but this model makes jumps of 2 to 3"),
        (lambda m: m.rollout(X[:, :, :0], 2), ValueError, r"^x has 0 steps of time but needs at least 1"),
        (lambda m: m.sample(2), ValueError, r"^The jump from one step to the next is 1 but this model"),
        (lambda m: m.sample(0), ValueError, r"^count is 0"),
    ],
)
def test_what_a_model_of_jumps_cannot_do_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(small_model(steps=(2, 3)))


def test_parts_that_do_not_fit_are_refused(system, x):
    model = exact_model(system)
    with pytest.raises(ValueError, match=r"^length is None and the model was made for none"):
        model.sample(2)
    with pytest.raises(ValueError, match=r"^length is 0 but must be at least 1"):
        exact_model(system, length=0)
    with pytest.raises(ValueError, match=r"^time_dim is 3 but a batch of sequences of \(3,\) has the dim"):
        exact_model(system, time_dim=3)
    model.memory = nn.Linear(SEEN, 6, dtype=torch.float64)  # nothing before the first step
    with pytest.raises(ValueError, match=r"^the memory gives the shape \(3, 5, 6\) but needs \(3, 6, size\)"):
        model.loss(x)
    model = exact_model(system)
    model.belief = nn.Sequential(KalmanBelief(), nn.Identity())
    model.latent_dim = 3
    with pytest.raises(ValueError, match=r"^the mean of the belief has shape \(15, 2\) but this model needs"):
        model.loss(x)
