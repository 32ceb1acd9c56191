"""Variational Bayes for mixtures, against closed forms, sums over all labels, and scikit-learn."""

import itertools
import math
import warnings

import pytest
import torch
from sklearn.mixture import BayesianGaussianMixture
from torch.distributions import Dirichlet, MultivariateNormal, Wishart, kl_divergence

from aecourse.bayesian_mixtures import (
    MixturePosterior,
    fit_bayesian_mixture,
    mixture_evidence_bound,
    mixture_posterior,
    mixture_prior,
    parameter_kl,
)

DOUBLE = torch.float64
SCALE = torch.tensor([[0.8, 0.2], [0.2, 0.5]], dtype=DOUBLE)
PRIOR = mixture_prior(2, concentration=0.7, scale=SCALE, dof=3.5, mean_precision=0.4)


def clusters(count=60, seed=0):
    """Three clusters in the plane, none of them at the origin."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[3.0, 1.0], [-2.0, 2.0], [1.0, -3.0]], dtype=DOUBLE)
    noise = torch.randn(count, 2, generator=generator, dtype=DOUBLE)
    return centres[torch.arange(count) % 3] + 0.5 * noise


def some_posterior():
    scales = torch.tensor([[[1.0, 0.3], [0.3, 0.8]], [[0.5, 0.0], [0.0, 2.0]]], dtype=DOUBLE)
    return MixturePosterior(
        torch.tensor([4.0, 1.5], dtype=DOUBLE),
        torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=DOUBLE),
        torch.tensor([3.0, 0.9], dtype=DOUBLE),
        scales,
        torch.tensor([6.0, 4.2], dtype=DOUBLE),
    )


def log_normaliser(q):
    """Of Dirichlet times Gauss-Wishart densities."""
    a, b, v = q.concentrations, q.mean_precisions, q.dofs
    dim = q.means.shape[1]
    parts = 0.5 * dim * (2 * math.pi / b).log() + 0.5 * v * dim * math.log(2)
    parts = parts + torch.mvlgamma(0.5 * v, dim) + 0.5 * v * torch.logdet(q.scales)
    return torch.lgamma(a).sum() - torch.lgamma(a.sum()) + parts.sum()


def as_posterior(prior, k):
    """The prior, written as a q."""
    dim = len(prior.scale)
    full = [torch.full((k,), value, dtype=DOUBLE) for value in (prior.concentration, prior.mean_precision)]
    scales = prior.scale.expand(k, dim, dim)
    return MixturePosterior(
        full[0], torch.zeros(k, dim, dtype=DOUBLE), full[1], scales, torch.full((k,), prior.dof, dtype=DOUBLE)
    )


def log_joint_of_labels(x, labels, k, prior):
    """log p(x, labels), the parameters integrated out: a ratio of normalisers."""
    r = torch.nn.functional.one_hot(labels, k).to(DOUBLE)
    ratio = log_normaliser(mixture_posterior(x, r, prior)) - log_normaliser(as_posterior(prior, k))
    return ratio - 0.5 * x.numel() * math.log(2 * math.pi)


def test_with_one_component_the_bound_is_the_evidence():
    """The posterior of one Gaussian is of q's family. Its evidence, in turn, is a product of predictions."""
    x = clusters(9)
    r = torch.ones(9, 1, dtype=DOUBLE)
    q = mixture_posterior(x, r, PRIOR)
    bound = mixture_evidence_bound(x, r, q, PRIOR)
    torch.testing.assert_close(bound, log_joint_of_labels(x, torch.zeros(9).long(), 1, PRIOR))
    turns = as_posterior(PRIOR, 1).log_predictive(x[:1]).sum()
    for n in range(1, 9):
        turns = turns + mixture_posterior(x[:n], r[:n], PRIOR).log_predictive(x[n : n + 1]).sum()
    torch.testing.assert_close(bound, turns)


def test_the_bound_lies_below_the_sum_over_all_labels_by_a_divergence():
    x, k = clusters(7), 2
    labels = torch.tensor(list(itertools.product(range(k), repeat=7)))
    joints = torch.stack([log_joint_of_labels(x, row, k, PRIOR) for row in labels])
    evidence = joints.logsumexp(dim=0)
    for seed in range(5):
        torch.manual_seed(seed)
        r = torch.rand(7, k, dtype=DOUBLE)
        r = r / r.sum(dim=1, keepdim=True)
        q = mixture_posterior(x, r, PRIOR)
        log_q = torch.stack([r[torch.arange(7), row].log().sum() for row in labels])
        # With the best q of the parameters, the bound integrates exp E log p over them.
        soft = log_normaliser(q) - log_normaliser(as_posterior(PRIOR, k)) - 7 * math.log(2 * math.pi)
        entropy = -(log_q.exp() * log_q).sum()
        torch.testing.assert_close(mixture_evidence_bound(x, r, q, PRIOR), soft + entropy)
        assert mixture_evidence_bound(x, r, q, PRIOR) < evidence
    # All mass on one labelling: the bound is the log joint with it.
    row = labels[37]
    r = torch.nn.functional.one_hot(row, k).to(DOUBLE)
    hard = mixture_evidence_bound(x, r, mixture_posterior(x, r, PRIOR), PRIOR)
    torch.testing.assert_close(hard, joints[37])


def test_the_divergence_of_the_parameters_is_that_of_torch():
    q = some_posterior()
    expected = kl_divergence(Dirichlet(q.concentrations), Dirichlet(torch.full((2,), 0.7, dtype=DOUBLE)))
    for k in range(2):
        one, other = (
            Wishart(df=v, covariance_matrix=w)
            for v, w in ((q.dofs[k], q.scales[k]), (torch.tensor(PRIOR.dof, dtype=DOUBLE), PRIOR.scale))
        )
        expected = expected + kl_divergence(one, other)
        # Of the mean, for the precision L: depends on L through m' L m alone, whose expectation is known.
        ratio = PRIOR.mean_precision / q.mean_precisions[k]
        length = q.dofs[k] * q.means[k] @ q.scales[k] @ q.means[k]
        expected = expected + 0.5 * (2 * (ratio - 1 - ratio.log()) + PRIOR.mean_precision * length)
    torch.testing.assert_close(parameter_kl(q, PRIOR), expected)
    torch.testing.assert_close(parameter_kl(as_posterior(PRIOR, 3), PRIOR), torch.zeros((), dtype=DOUBLE))


def test_expected_log_components_are_averages_over_the_parameters():
    torch.manual_seed(0)
    q, x, draws = some_posterior(), clusters(4), 20_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precisions = Wishart(df=q.dofs, covariance_matrix=q.scales).sample((draws,))
    means = MultivariateNormal(
        q.means, precision_matrix=q.mean_precisions.view(2, 1, 1) * precisions
    ).sample()
    weights = Dirichlet(q.concentrations).sample((draws,))
    normal = MultivariateNormal(means, precision_matrix=precisions)
    terms = weights.log().unsqueeze(1) + torch.stack([normal.log_prob(point) for point in x], dim=1)
    z = (terms.mean(dim=0) - q.expected_log_components(x)) / (terms.std(dim=0) / math.sqrt(draws))
    assert z.abs().max() < 4.5
    density = (weights.unsqueeze(1) * (terms - weights.log().unsqueeze(1)).exp()).sum(dim=2)
    z = (density.mean(dim=0) - q.log_predictive(x).exp()) / (density.std(dim=0) / math.sqrt(draws))
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("concentration", [0.01, 1.0, 10.0])
def test_no_half_step_lowers_the_bound_and_a_small_concentration_empties_components(concentration):
    x = clusters(60)
    prior = mixture_prior(2, concentration=concentration, mean_precision=0.05)
    fit = fit_bayesian_mixture(x, 8, prior, steps=60, generator=torch.Generator().manual_seed(0))
    assert len(fit.history) == 121
    assert (fit.history.diff() > -1e-9).all()
    assert fit.history[-1] > fit.history[0] + 1
    used = int((fit.counts > 1).sum())
    assert used == {0.01: 3, 1.0: used, 10.0: 8}[concentration]
    if concentration == 0.01:  # of an empty component q is the prior
        empty = int(fit.counts.argmin())
        assert fit.counts[empty] < 1e-6
        torch.testing.assert_close(fit.posterior.scales[empty], torch.eye(2, dtype=DOUBLE), rtol=0, atol=1e-5)


def test_neither_step_can_be_improved():
    x = clusters(30)
    fit = fit_bayesian_mixture(x, 3, PRIOR, steps=40, generator=torch.Generator().manual_seed(1))
    r, q = fit.responsibilities, fit.posterior
    best = mixture_evidence_bound(x, r, q, PRIOR)
    closely = {"rtol": 0, "atol": 1e-8}
    torch.testing.assert_close(mixture_evidence_bound(x, q.responsibilities(x), q, PRIOR), best, **closely)
    for field in ("concentrations", "means", "mean_precisions", "scales", "dofs"):
        for factor in (0.97, 1.03):
            worse = q._replace(**{field: factor * getattr(q, field)})
            assert mixture_evidence_bound(x, r, worse, PRIOR) < best - 1e-6
    for shift in (0.02, 0.1):
        moved = r * (1 - shift) + shift / 3
        assert mixture_evidence_bound(x, moved, q, PRIOR) < best - 1e-6


def test_scikit_learn_ends_at_a_point_that_our_steps_leave_alone():
    x = clusters(90)
    settings = {"weight_concentration_prior_type": "dirichlet_distribution", "reg_covar": 0.0, "tol": 1e-12}
    theirs = BayesianGaussianMixture(
        n_components=5,
        weight_concentration_prior=PRIOR.concentration,
        mean_prior=[0.0, 0.0],
        mean_precision_prior=PRIOR.mean_precision,
        degrees_of_freedom_prior=PRIOR.dof,
        covariance_prior=torch.linalg.inv(PRIOR.scale).numpy(),  # its name for the inverse scale
        max_iter=2000,
        random_state=0,
        **settings,
    ).fit(x.numpy())
    r = torch.from_numpy(theirs.predict_proba(x.numpy()))
    q = mixture_posterior(x, r, PRIOR)
    closely = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(q.means, torch.from_numpy(theirs.means_), **closely)
    torch.testing.assert_close(q.concentrations, torch.from_numpy(theirs.weight_concentration_), **closely)
    torch.testing.assert_close(q.dofs, torch.from_numpy(theirs.degrees_of_freedom_), **closely)
    torch.testing.assert_close(q.mean_mixture().covs, torch.from_numpy(theirs.covariances_), **closely)
    torch.testing.assert_close(q.responsibilities(x), r, **closely)


def test_far_from_the_origin_nothing_cancels():
    x = clusters(20)
    weak = mixture_prior(2, mean_precision=1e-20)
    r = torch.full((20, 2), 0.5, dtype=DOUBLE)
    near, far = (mixture_posterior(x + shift, r, weak) for shift in (0.0, 1e5))
    torch.testing.assert_close(near.scales, far.scales, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: mixture_prior(2, concentration=0.0), ValueError, "concentration is 0.0"),
        (lambda: mixture_prior(2, mean_precision=-1.0), ValueError, "mean_precision is -1.0"),
        (lambda: mixture_prior(3, dof=2.0), ValueError, "dof is 2.0"),
        (lambda: mixture_prior(2, scale=-torch.eye(2)), ValueError, "positive definite"),
        (lambda: mixture_prior(3, scale=torch.eye(2)), ValueError, "3 x 3"),
        (lambda: fit_bayesian_mixture(clusters(3), 4, PRIOR), ValueError, "k is 4"),
        (
            lambda: fit_bayesian_mixture(clusters(3), 2, PRIOR, responsibilities=torch.ones(3, 3).double()),
            ValueError,
            "responsibilities has shape",
        ),
        (lambda: mixture_posterior(clusters(3), torch.ones(3, 2).double(), PRIOR), ValueError, "add up to 1"),
        (
            lambda: mixture_posterior(clusters(3) * math.nan, torch.ones(3, 1).double(), PRIOR),
            ValueError,
            "x",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
