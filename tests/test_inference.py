"""Inference against linear Gaussian models and Gaussian mixtures, where every answer is known."""

import math
import warnings

import pytest
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture

from aecourse.inference import (
    _anneal,
    ais,
    em_step,
    fit_mixture,
    fit_posterior,
    inference_gaps,
    mixture_bound,
    variational_em,
)
from aecourse.likelihoods import gaussian_log_likelihood
from aecourse.linear import PPCA, LinearVAE, fit_ppca
from aecourse.mixtures import GaussianMixture
from aecourse.vae import VAE

# Columns that are not orthogonal: the posterior's covariance is then not diagonal.
WEIGHT = torch.tensor([[1.0, 0.8], [0.5, 0.9], [-0.3, 0.5]], dtype=torch.float64)
VARIANCE = 0.5
PRECISION = WEIGHT.T @ WEIGHT + VARIANCE * torch.eye(2, dtype=torch.float64)
GAP = 0.5 * (PRECISION.diagonal().log().sum() - torch.logdet(PRECISION))


class ShiftedVAE(LinearVAE):
    """A linear VAE with the best diagonal encoder, but for a shift of its means."""

    shift = torch.zeros(2, dtype=torch.float64)

    def __init__(self, weight=WEIGHT, variance=VARIANCE):
        dim, k = weight.shape
        super().__init__(dim, k, torch.linspace(-1, 1, dim, dtype=torch.float64), variance)
        precision = weight.T @ weight + variance * torch.eye(k).to(weight)
        with torch.no_grad():
            self.decoder.weight.copy_(weight)
            self.encoder.weight.copy_(torch.linalg.solve(precision, weight.T))
            self.logvar.copy_((variance / precision.diagonal()).log())

    def encode(self, x):
        mean, logvar = super().encode(x)
        return mean + self.shift, logvar


def data(model, count):
    """Draws from the model, some of them pushed far away."""
    return model.ppca().sample(count) * torch.linspace(0.5, 4, count, dtype=torch.float64).unsqueeze(1)


def exact_elbo(model, x, mean, logvar):
    """log p(x) - KL(q || posterior), both in closed form."""
    ppca = model.ppca()
    centre, cov = ppca.posterior(x)
    posterior = torch.distributions.MultivariateNormal(centre, cov)
    q = torch.distributions.MultivariateNormal(mean, torch.diag_embed(logvar.exp()))
    return ppca.log_likelihood(x) - torch.distributions.kl_divergence(q, posterior)


# ---------------------------------------------------------------- one example at a time


def test_the_best_diagonal_posterior_is_found_for_every_example():
    """Oracle 4: the posterior's mean, variances sigma^2 / M_jj, and the gap that is left."""
    model = ShiftedVAE()
    x = data(model, 12)
    start = torch.randn(12, 2, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    mean, logvar = fit_posterior(x, model.log_joint, *start, steps=400, lr=0.1, samples=8)
    best_mean = model.ppca().posterior(x)[0]
    best_logvar = (VARIANCE / PRECISION.diagonal()).log().expand(12, -1)
    # What is left of the noise of the draws, for one example and, less, for their mean.
    torch.testing.assert_close(mean, best_mean, rtol=0, atol=0.1)
    torch.testing.assert_close(logvar, best_logvar, rtol=0, atol=0.2)
    torch.testing.assert_close((mean - best_mean).mean(dim=0), torch.zeros(2).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(logvar.mean(dim=0), best_logvar[0], rtol=0, atol=0.05)
    lost = model.ppca().log_likelihood(x) - exact_elbo(model, x, mean, logvar)
    assert (lost > GAP - 1e-9).all()  # nothing diagonal is better
    torch.testing.assert_close(lost, GAP.expand(12), rtol=0, atol=0.01)


def test_fitting_a_posterior_touches_neither_its_start_nor_the_model():
    model = ShiftedVAE()
    x, mean, logvar = data(model, 4), torch.zeros(4, 2).double(), torch.zeros(4, 2).double().requires_grad_()
    fitted = fit_posterior(x, model.log_joint, mean, logvar, steps=3)
    assert torch.equal(mean, torch.zeros_like(mean))
    assert logvar.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(t.requires_grad for t in fitted)
    with torch.no_grad():  # as in an analysis, where nobody thinks of gradients
        again = fit_posterior(x, model.log_joint, mean, logvar, steps=3)
    assert again[0].shape == (4, 2)


def test_the_noise_comes_from_the_generator_and_examples_do_not_meet():
    model = ShiftedVAE()
    x, zeros = data(model, 4), torch.zeros(4, 2, dtype=torch.float64)

    def fit(x):
        state = torch.get_rng_state()
        generator = torch.Generator().manual_seed(3)
        mean, _ = fit_posterior(x, model.log_joint, zeros, zeros, steps=20, generator=generator)
        assert torch.equal(torch.get_rng_state(), state)
        return mean

    other = x.clone()
    other[1:] += 10
    assert torch.equal(fit(x), fit(x))
    assert torch.equal(fit(x)[0], fit(other)[0])
    assert not torch.equal(fit(x)[1], fit(other)[1])


def test_annealing_from_the_exact_posterior_gives_the_evidence_without_error():
    """Oracle 3: with an exact q all intermediate densities are the posterior, and all weights p(x)."""
    weight = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64)).Q * torch.tensor([2.0, 0.7]).double()
    model = ShiftedVAE(weight, 0.3)
    x = data(model, 7)
    value, error = ais(model, x, chains=3, temperatures=6, leapfrog=2)
    torch.testing.assert_close(value, model.ppca().log_likelihood(x), rtol=1e-9, atol=1e-9)
    assert error.max() < 1e-8


def shifted_and_wide():
    """An encoder that is wrong but wide: the weights have a finite variance, and z-scores mean something.

    (The best diagonal q is too narrow along the diagonal of these loadings: 2 M - diag M is not positive.)
    """
    model = ShiftedVAE()
    model.shift = torch.tensor([0.5, -0.5], dtype=torch.float64)
    with torch.no_grad():
        model.logvar.add_(1.0)
    return model


@pytest.mark.parametrize(("start", "largest"), [("posterior", 0.03), ("prior", 0.06)])
def test_annealed_estimates_agree_with_the_evidence(start, largest):
    """Oracle 3: 50 different examples as z-scores, from a shifted encoder and from the prior."""
    model = shifted_and_wide()
    x = model.ppca().sample(50)
    value, error = ais(model, x, chains=500, temperatures=20, leapfrog=5, start=start)
    assert error.mean() < largest
    scores = (value + error.square() / 2 - model.ppca().log_likelihood(x)) / error
    assert scores.abs().max() < 4.5
    assert abs(scores.mean()) < 4 / math.sqrt(50)
    assert scores.std() == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("step_size", [0.1, 1.5])
@pytest.mark.seconds(6)
def test_annealed_weights_are_unbiased_even_when_the_chains_do_not_mix(step_size):
    """Neal (2001): few temperatures and short trajectories cost variance, not correctness.

    The second step size is so long that many moves are rejected; without the rejections the mean is wrong.
    320,000 chains show an error of 1 % of p(x).
    """
    model = shifted_and_wide()
    x = model.ppca().sample(3)
    value, error = ais(model, x, chains=320_000, temperatures=4, leapfrog=1, step_size=step_size)
    assert 4 * error.max() < 0.01
    assert ((value - model.ppca().log_likelihood(x)) / error).abs().max() < 4


class Parabola:
    """z ~ N(0, 1), x ~ N(z^2, 0.05): for x > 0 a posterior with two separate modes."""

    latent_dim = 1

    def encode(self, x):
        return torch.full_like(x, 0.3), torch.zeros_like(x)

    def log_joint(self, x, z):
        normal = torch.distributions.Normal(0, 1)
        likelihood = torch.distributions.Normal(z.square(), math.sqrt(0.05)).log_prob(x)
        return (likelihood + normal.log_prob(z)).sum(dim=1)


def test_annealing_finds_both_modes_of_a_posterior():
    model, x = Parabola(), torch.tensor([[-0.1], [1.0], [2.5]], dtype=torch.float64)
    grid = torch.linspace(-6, 6, 40_001, dtype=torch.float64).unsqueeze(1)
    joint = torch.stack([model.log_joint(row.expand_as(grid), grid) for row in x]).exp()
    exact = torch.trapezoid(joint, grid.squeeze(1), dim=1).log()
    for start in ("prior", "posterior"):
        value, error = ais(model, x, chains=2000, temperatures=30, leapfrog=5, start=start)
        assert error.max() < 0.05
        assert ((value - exact) / error).abs().max() < 4


@pytest.mark.parametrize("first", [0.01, 50.0])
def test_a_step_that_is_far_too_short_or_too_long_is_tuned(first):
    """In units of q the steepest direction allows steps of up to 2 / sqrt(1.55) = 1.6."""
    model = ShiftedVAE()
    x = data(model, 5).repeat(50, 1)
    with torch.no_grad():
        mean, logvar = model.encode(x)
    step_sizes = torch.full((81, 5), first, dtype=torch.float64)
    _anneal(model, x, mean, logvar, 5, step_sizes, tune=True)
    assert step_sizes[0].tolist() == [first] * 5
    last = step_sizes[-20:].mean(dim=0)
    assert 0.5 < last.min() < last.max() < 1.9


@torch.no_grad()
def test_every_example_moves_by_the_step_size_that_was_tuned_for_it():
    """Chains that do not move keep the weight of plain importance sampling; three chains, two examples."""
    model = ShiftedVAE()
    x = data(model, 2).repeat(3, 1)
    mean, logvar = model.encode(x)
    step_sizes = torch.tensor([[0.0, 0.5]], dtype=torch.float64).repeat(6, 1)
    torch.manual_seed(1)
    annealed = _anneal(model, x, mean, logvar, 2, step_sizes, tune=False)
    torch.manual_seed(1)
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    plain = (model.log_joint(x, z) - gaussian_log_likelihood(z, mean, logvar)).view(3, 2)
    torch.testing.assert_close(annealed[:, 0], plain[:, 0], rtol=1e-10, atol=1e-10)
    assert (annealed[:, 1] - plain[:, 1]).abs().min() > 1e-6


# --------------------------------------------------------------- what amortisation costs


@pytest.mark.parametrize(
    "options", [{"chains": 40, "temperatures": 30, "leapfrog": 5}, {"reference": "importance"}]
)
def test_both_gaps_have_their_closed_form(options):
    """Oracle 4 for the approximation gap; a shift d of the mean costs d' M d / 2 sigma^2 nats."""
    model = ShiftedVAE()
    model.shift = torch.tensor([0.4, 0.3], dtype=torch.float64)
    x = data(model, 16)
    gaps = inference_gaps(model, x, steps=400, lr=0.05, samples=200, **options)
    assert gaps.log_px.shape == gaps.elbo_best.shape == gaps.elbo_amortized.shape == (16,)
    shift = 0.5 * model.shift @ PRECISION @ model.shift / VARIANCE
    assert GAP > 0.05
    assert shift > 0.3
    # 200 draws, common to both ELBOs: a standard error below 0.01 nats for the mean over examples.
    assert gaps.approximation.mean().item() == pytest.approx(GAP.item(), abs=0.06)
    assert gaps.amortization.mean().item() == pytest.approx(shift.item(), abs=0.06)
    total = gaps.log_px - gaps.elbo_amortized
    torch.testing.assert_close(gaps.approximation + gaps.amortization, total)
    assert (gaps.log_px - model.ppca().log_likelihood(x)).abs().max() < 0.15


def test_gaps_of_a_neural_vae_in_training_mode():
    model = VAE.mlp((1, 4, 4), 2, hidden=(8,), batch_norm=True, dropout=0.5)
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = (torch.rand(6, 1, 4, 4) < 0.5).float()
    gaps = inference_gaps(model, x, steps=300, samples=200, chains=50, temperatures=20, leapfrog=3)
    assert gaps.amortization.mean() > 0
    assert gaps.approximation.mean() > -0.05
    assert all(part.training for part in model.modules())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert gaps.log_px.dtype == torch.float32


# ------------------------------------------------------- expectation maximisation: mixtures


@pytest.fixture
def points() -> torch.Tensor:
    """Three overlapping clusters of different shape, (300, 2)."""
    roots = torch.tensor(
        [[[1.0, 0.0], [0.8, 0.4]], [[0.5, 0.0], [0.0, 1.5]], [[0.7, 0.0], [-0.6, 0.7]]]
    ).double()
    centres = torch.tensor([[0.0, 0.0], [3.0, 1.0], [-1.0, 3.0]]).double()
    component = torch.arange(300) % 3
    noise = torch.randn(300, 2, 1, dtype=torch.float64)
    return centres[component] + (roots[component] @ noise).squeeze(2)


def some_mixture(k=3, dim=2):
    roots = torch.randn(k, dim, dim, dtype=torch.float64)
    covs = roots @ roots.mT + torch.eye(dim, dtype=torch.float64)
    return GaussianMixture(torch.rand(k).double().softmax(dim=0), torch.randn(k, dim).double(), covs)


def test_expectation_maximisation_agrees_with_sklearn_from_the_same_start(points):
    start = some_mixture()
    theirs = SklearnMixture(
        3,
        reg_covar=0,
        max_iter=25,
        tol=0,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=torch.linalg.inv(start.covs).numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 25 steps are too few to converge
        theirs.fit(points.numpy())
    ours, history = fit_mixture(points, 3, 25, start=start, floor=1e-12)
    for mine, other in zip(ours, (theirs.weights_, theirs.means_, theirs.covariances_)):
        torch.testing.assert_close(mine, torch.from_numpy(other), rtol=1e-9, atol=1e-10)
    assert history[-1].item() == pytest.approx(theirs.score(points.numpy()), rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_the_likelihood_never_falls(points, seed):
    generator = torch.Generator().manual_seed(seed)
    mixture, history = fit_mixture(points, 4, 60, generator=generator)
    assert history.shape == (61,)
    assert (history.diff() > -1e-12).all()
    assert history[-1] > history[0] + 0.1
    torch.testing.assert_close(mixture.log_density(points).mean(), history[-1], rtol=1e-12, atol=0)
    torch.testing.assert_close(mixture.weights.sum(), torch.ones(()).double())


def test_a_converged_mixture_has_no_gradient(points):
    mixture, _ = fit_mixture(points, 2, 600)
    means = mixture.means.clone().requires_grad_()
    covs = mixture.covs.clone().requires_grad_()
    GaussianMixture(mixture.weights, means, covs).log_density(points).mean().backward()
    assert means.grad.abs().max() < 1e-6
    assert covs.grad.abs().max() < 1e-6


def test_one_component_is_fitted_in_one_step(points):
    mixture = em_step(points, some_mixture(1))
    torch.testing.assert_close(mixture.means[0], points.mean(dim=0))
    torch.testing.assert_close(mixture.covs[0], torch.cov(points.T, correction=0))


def test_the_default_start_is_an_example_with_the_covariance_of_the_data(points):
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    history = fit_mixture(points, 1, 1, floor=0.01, generator=seeds[0]).history
    chosen = torch.randperm(300, generator=seeds[1])[:1]
    cov = torch.cov(points.T, correction=0) + 0.01 * torch.eye(2).double()
    start = torch.distributions.MultivariateNormal(points[chosen], cov)
    torch.testing.assert_close(history[0], start.log_prob(points).mean(), rtol=1e-12, atol=0)


def test_a_component_on_a_single_point_stops_at_the_floor(points):
    """Without a floor its variance, and with it the likelihood, has no limit."""
    alone = torch.cat([points, torch.tensor([[50.0, 50.0]]).double()])
    covs = torch.eye(2, dtype=torch.float64).expand(2, -1, -1)
    means = torch.stack([points.mean(dim=0), alone[-1]])
    start = GaussianMixture(torch.full((2,), 0.5).double(), means, covs)
    mixture, history = fit_mixture(alone, 2, 30, start=start, floor=0.01)
    torch.testing.assert_close(mixture.covs[1], 0.01 * torch.eye(2).double())
    assert (history.diff() > -1e-12).all()
    assert history.isfinite().all()


def test_the_floor_holds_in_every_direction_and_the_likelihood_still_never_falls():
    """Data on a line, turned by 45 degrees: no entry of the covariance is small, but an eigenvalue is 0."""
    x = torch.randn(100, 1, dtype=torch.float64).expand(-1, 2)
    mixture, history = fit_mixture(x, 2, 40, floor=0.05)
    assert torch.linalg.eigvalsh(mixture.covs).min() > 0.05 - 1e-12
    assert (history.diff() > -1e-12).all()


def test_a_component_that_nobody_belongs_to_is_left_alone(points):
    lost = torch.full((1, 2), 1e6, dtype=torch.float64)
    start = GaussianMixture(
        torch.tensor([0.5, 0.5]).double(),
        torch.cat([points[:1], lost]),
        torch.eye(2, dtype=torch.float64).expand(2, -1, -1),
    )
    mixture, history = fit_mixture(points, 2, 5, start=start)
    assert mixture.weights.tolist() == [1.0, 0.0]
    assert torch.equal(mixture.means[1], lost[0])
    assert torch.equal(mixture.covs[1], torch.eye(2).double())
    assert history.isfinite().all()
    assert mixture_bound(points, mixture.responsibilities(points), mixture).isfinite().all()


def test_the_bound_touches_the_likelihood_at_the_exact_responsibilities(points):
    mixture = some_mixture()
    exact, log_px = mixture.responsibilities(points), mixture.log_density(points)
    torch.testing.assert_close(mixture_bound(points, exact, mixture), log_px, rtol=1e-10, atol=1e-10)
    other = torch.rand(300, 3, dtype=torch.float64).softmax(dim=1)
    kl = (other * (other / exact).log()).sum(dim=1)
    torch.testing.assert_close(mixture_bound(points, other, mixture), log_px - kl, rtol=1e-9, atol=1e-9)
    hard = torch.eye(3, dtype=torch.float64)[torch.arange(300) % 3]
    assert (mixture_bound(points, hard, mixture) <= log_px).all()


def test_the_m_step_maximises_the_bound(points):
    mixture = some_mixture()
    r = mixture.responsibilities(points)
    best = em_step(points, mixture)
    bound = mixture_bound(points, r, best).mean()
    assert bound > mixture_bound(points, r, mixture).mean()
    for _ in range(20):
        root = torch.linalg.cholesky(best.covs) + 0.01 * torch.randn(3, 2, 2).double().tril()
        weights = (best.weights.log() + 0.01 * torch.randn(3).double()).softmax(dim=0)
        moved = GaussianMixture(weights, best.means + 0.01 * torch.randn(3, 2).double(), root @ root.mT)
        assert mixture_bound(points, r, moved).mean() < bound


def test_mixtures_keep_single_precision_and_work_in_one_dimension(points):
    mixture, history = fit_mixture(points[:, :1].float(), 2, 10)
    assert {t.dtype for t in (*mixture, history)} == {torch.float32}
    assert mixture.covs.shape == (2, 1, 1)


# ------------------------------------------- expectation maximisation: probabilistic PCA


@pytest.fixture
def cloud() -> torch.Tensor:
    scales = torch.tensor([3.0, 2.0, 1.0, 0.6, 0.5], dtype=torch.float64)
    return (
        torch.randn(400, 5, dtype=torch.float64) * scales @ torch.linalg.qr(torch.randn(5, 5).double()).Q + 2
    )


def small_start(k=2):
    return PPCA(torch.zeros(5).double(), torch.randn(5, k).double(), torch.ones(()).double())


@pytest.mark.parametrize("posterior", ["exact", "diagonal"])
def test_both_kinds_of_em_end_at_the_maximum_likelihood(cloud, posterior):
    """Oracle 2, and for the diagonal q the optimum of the linear VAE: no rotation is left."""
    best = fit_ppca(cloud, 2)
    model, history = variational_em(cloud, small_start(), 2000, posterior=posterior)
    assert history.shape == (2001,)
    assert (history.diff() > -1e-12).all()
    torch.testing.assert_close(history[-1], best.log_likelihood(cloud).mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(model.mean, best.mean)
    torch.testing.assert_close(model.variance, best.variance, rtol=1e-7, atol=0)
    product = best.weight @ best.weight.T
    torch.testing.assert_close(model.weight @ model.weight.T, product, rtol=0, atol=1e-5)
    gram = model.weight.T @ model.weight
    if posterior == "diagonal":
        assert gram[0, 1].abs() < 1e-4
        order = gram.diagonal().argsort(descending=True)
        torch.testing.assert_close((model.weight[:, order].abs()), best.weight.abs(), rtol=0, atol=1e-4)
    else:
        assert gram[0, 1].abs() > 0.1


@pytest.mark.parametrize("posterior", ["exact", "diagonal"])
def test_one_step_by_hand(cloud, posterior):
    """Oracles 3 and 4 for the E-step; then the regression of x on z, with the moments of z under q.

    A diagonal q with the *marginal* variances would end at the same maximum, so the end shows nothing.
    """
    start = small_start()._replace(variance=torch.tensor(0.7, dtype=torch.float64))
    model = variational_em(cloud, start, 1, posterior=posterior).model
    centred, w = cloud - cloud.mean(dim=0), start.weight
    m = w.T @ w + 0.7 * torch.eye(2).double()
    mean = torch.linalg.solve(m, w.T @ centred.T).T
    cov = 0.7 * (torch.linalg.inv(m) if posterior == "exact" else torch.diag(1 / m.diagonal()))
    second, cross = mean.T @ mean + 400 * cov, centred.T @ mean
    weight = cross @ torch.linalg.inv(second)
    torch.testing.assert_close(model.weight, weight, rtol=1e-10, atol=1e-10)
    error = centred.square().sum() - 2 * (weight * cross).sum() + torch.trace(weight @ second @ weight.T)
    torch.testing.assert_close(model.variance, error / 2000, rtol=1e-10, atol=0)


def test_the_history_is_the_bound_right_after_the_e_step(cloud):
    """Oracle 4: log p(x) of the model so far, less the gap of the diagonal q."""
    start = small_start()
    exact = variational_em(cloud, start, 3).history
    diagonal = variational_em(cloud, start, 3, posterior="diagonal").history
    centred = start._replace(mean=cloud.mean(dim=0))
    torch.testing.assert_close(exact[0], centred.log_likelihood(cloud).mean())
    m = start.weight.T @ start.weight + torch.eye(2).double()
    gap = 0.5 * (m.diagonal().log().sum() - torch.logdet(m))
    assert gap > 0.01
    torch.testing.assert_close(exact[0] - diagonal[0], gap)
    model = variational_em(cloud, start, 3).model
    torch.testing.assert_close(exact[-1], model.log_likelihood(cloud).mean())


# ------------------------------------------------------------------------ what is refused

MODEL = ShiftedVAE()
X, Q = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
MIXTURE = GaussianMixture(torch.ones(1).double(), X[:1], torch.eye(3, dtype=torch.float64).unsqueeze(0))
R = torch.ones(2, 1, dtype=torch.float64)
START = PPCA(torch.zeros(3).double(), WEIGHT, torch.ones(()).double())
TWO = GaussianMixture(*(torch.cat([t, t]) for t in MIXTURE))
NAN = torch.full_like(X, math.nan)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_posterior(X, MODEL.log_joint, Q, Q[:, :1]), ValueError, r"^logvar has shape \(2, 1\)"),
        (
            lambda: fit_posterior(X, MODEL.log_joint, Q[:1], Q[:1]),
            ValueError,
            r"^mean has 1 rows but x has 2",
        ),
        (lambda: fit_posterior(X, MODEL.log_joint, Q, Q, steps=0), ValueError, r"^steps is 0 but must be at"),
        (lambda: fit_posterior(X, MODEL.log_joint, Q, Q, lr=0), ValueError, r"^lr is 0 but must be positive"),
        (lambda: fit_posterior(X, MODEL.log_joint, Q, Q, samples=1.5), TypeError, r"^samples is 1\.5 but"),
        (
            lambda: fit_posterior(X, lambda x, z: MODEL.log_joint(x, z).sum(), Q, Q),
            ValueError,
            r"^log_joint has shape \(\) but needs \(batch,\)",
        ),
        (lambda: ais(MODEL, X, chains=1), ValueError, r"^chains is 1 but must be at least 2"),
        (lambda: ais(MODEL, X, temperatures=0), ValueError, r"^temperatures is 0 but must be at least 1"),
        (lambda: ais(MODEL, X, start="encoder"), ValueError, r"^start is 'encoder' but must be 'posterior'"),
        (lambda: ais(MODEL, X, step_size=math.nan), ValueError, r"^step_size is nan but must be positive"),
        (lambda: ais(MODEL, X.long()), TypeError, r"^x has dtype torch\.int64"),
        (lambda: ais(MODEL, X, leapfrog=0), ValueError, r"^leapfrog is 0 but must be at least 1"),
        (lambda: fit_posterior(X.long(), MODEL.log_joint, Q, Q), TypeError, r"^x has dtype torch\.int64"),
        (lambda: inference_gaps(MODEL, X.tolist()), TypeError, r"^x must be a torch\.Tensor, not list"),
        (lambda: fit_mixture(NAN, 1), ValueError, r"^x holds 6 values that are NaN"),
        (lambda: fit_mixture(X, 1, floor=math.nan), ValueError, r"^floor is nan but must be positive"),
        (lambda: fit_mixture(X, 1.0), TypeError, r"^k is 1\.0 but must be a whole number"),
        (
            lambda: mixture_bound(X, torch.tensor([[1.5, -0.5]] * 2).double(), TWO),
            ValueError,
            r"^responsibilities must not be negative",
        ),
        (lambda: inference_gaps(MODEL, X, reference="iwae"), ValueError, r"^reference is 'iwae' but must be"),
        (lambda: inference_gaps(MODEL, X, samples=0), ValueError, r"^samples is 0 but must be at least 1"),
        (lambda: em_step(X[:, :2], MIXTURE), ValueError, r"^mixture\.means has shape \(1, 3\) but needs"),
        (lambda: em_step(NAN, MIXTURE), ValueError, r"^x holds 6 values that are NaN"),
        (lambda: em_step(X, MIXTURE, floor=0), ValueError, r"^floor is 0 but must be positive"),
        (lambda: fit_mixture(X, 3), ValueError, r"^k is 3 but x has only 2 examples"),
        (lambda: fit_mixture(X, 2, start=MIXTURE), ValueError, r"^start has 1 components but k is 2"),
        (lambda: fit_mixture(X, 1, 0), ValueError, r"^steps is 0 but must be at least 1"),
        (lambda: mixture_bound(X, R * 0.5, MIXTURE), ValueError, r"^responsibilities must not be negative"),
        (lambda: mixture_bound(X, R[:1], MIXTURE), ValueError, r"^responsibilities has shape \(1, 1\)"),
        (lambda: variational_em(X[:, :2], START), ValueError, r"^start\.weight has shape \(3, 2\) but needs"),
        (lambda: variational_em(X, START, posterior="full"), ValueError, r"^posterior is 'full' but must be"),
        (lambda: variational_em(X, START, steps=True), TypeError, r"^steps is True but must be a whole num"),
        (lambda: variational_em(NAN, START), ValueError, r"^x holds 6 values that are NaN"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
