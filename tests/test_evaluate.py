"""Estimators against linear Gaussian models, whose log p(x), posterior and weights are known."""

import math
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from aecourse import data
from aecourse.evaluate import (
    active_units,
    auroc,
    coverage,
    evaluation_mode,
    feature_network,
    frechet_distance,
    frechet_floor,
    gaussian_frechet_distance,
    gaussian_total_correlation,
    importance_sampling,
    iwae,
    kl_per_dimension,
    log_mean_weight,
    mode_coverage,
    mutual_information,
    negative_log_likelihood,
    prior_monte_carlo,
    probe_accuracy,
)
from aecourse.likelihoods import gaussian_kl
from aecourse.linear import LinearVAE, linear_vae_optimum
from aecourse.mixtures import gaussian_mixture
from aecourse.train import fit
from aecourse.vae import VAE


def linear_vae(weight, variance, stretch=1.0):
    """A linear VAE in double precision whose encoder is the best diagonal one, its variances stretched.

    It is the exact posterior if the columns of ``weight`` are orthogonal and nothing is stretched.
    """
    dim, k = weight.shape
    model = LinearVAE(dim, k, torch.linspace(-1, 1, dim, dtype=torch.float64), variance)
    precision = weight.T @ weight + variance * torch.eye(k).to(weight)
    with torch.no_grad():
        model.decoder.weight.copy_(weight)
        model.encoder.weight.copy_(torch.linalg.solve(precision, weight.T))
        model.logvar.copy_((stretch * variance / precision.diagonal()).log())
    return model


def orthogonal(dim, *lengths):
    basis = torch.linalg.qr(torch.randn(dim, len(lengths), dtype=torch.float64)).Q
    return basis * torch.tensor(lengths, dtype=torch.float64)


# Columns that are not orthogonal: q is then not the posterior, and the weights vary, but not wildly.
CORRELATED = torch.tensor([[1.0, 0.4], [0.2, 0.8], [-0.3, 0.5]], dtype=torch.float64)


# ------------------------------------------------------------------------------- log p(x)


def test_the_log_of_the_mean_weight_by_hand():
    weights = torch.tensor([[1.0, 3.0], [2.0, 3.0], [6.0, 3.0]], dtype=torch.float64)
    value, error = log_mean_weight(weights.log() - 1000)
    torch.testing.assert_close(value, torch.tensor([3.0, 3.0]).double().log() - 1000)
    spread = math.sqrt((4 + 1 + 9) / 2) / 3 / math.sqrt(3)
    torch.testing.assert_close(
        error, torch.tensor([spread, 0.0], dtype=torch.float64), rtol=1e-10, atol=1e-12
    )


def test_one_heavy_weight_gives_the_largest_possible_standard_error():
    log_weights = torch.zeros(1000, 1)
    log_weights[7] = 500.0
    assert log_mean_weight(log_weights).standard_error.item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_with_the_exact_posterior_every_weight_is_the_evidence(scale):
    """Oracle 3: an exact q gives log p(x) for every x, also far from the data, and no error at all."""
    model = linear_vae(orthogonal(5, 2.0, 0.7), 0.3)
    x = scale * torch.randn(20, 5, dtype=torch.float64)
    exact = model.ppca().log_likelihood(x)
    for value, error in (importance_sampling(model, x, 7), iwae(model, x, 3, 2)):
        torch.testing.assert_close(value, exact, rtol=1e-10, atol=1e-10)
        assert error.max() < 1e-9


@pytest.mark.parametrize("estimator", [prior_monte_carlo, importance_sampling])
def test_estimates_agree_with_the_evidence_within_calibrated_errors(estimator):
    """Oracle 3 for a q that is not exact. 400 estimates of one point, as z-scores.

    The standard deviation of z is known to 0.035, so a standard error that is wrong by a fifth is seen.
    """
    model = linear_vae(CORRELATED, 0.5)
    x = torch.tensor([[0.5, 0.3, 1.5]], dtype=torch.float64)
    value, error = estimator(model, x.expand(400, -1), 1000)
    assert 0.003 < error.mean() < 0.1
    bias = error.square().mean() / 2  # what the module's docstring says
    scores = (value + bias - model.ppca().log_likelihood(x)) / error
    assert abs(scores.mean()) < 4 / math.sqrt(400)
    assert scores.std() == pytest.approx(1, abs=0.14)


def test_estimates_agree_with_the_evidence_for_every_example():
    """Oracle 3: points of their own; 30,000 samples give a standard error below 0.01 nats."""
    model = linear_vae(CORRELATED, 0.5)
    x = model.ppca().sample(40)
    value, error = importance_sampling(model, x, 30_000, chunk=10_000)
    assert error.max() < 0.01
    assert ((value - model.ppca().log_likelihood(x)) / error).abs().max() < 4.5


def gaussian_moment(n, s2, t2):
    """E_q[(p / q)^n] for p = N(m, s2), q = N(m, t2)."""
    return s2 ** (-n / 2) * t2 ** ((n - 1) / 2) / math.sqrt(n / s2 - (n - 1) / t2)


def test_the_gap_of_the_iwae_bound_has_its_closed_form():
    """Oracle 11: chi^2 / 2K - (mu_3 / 3 - 3/4 chi^4) / K^2. 1,000,000 bounds show 1 % of the gap."""
    k, repeats, stretch = 8, 1_000_000, 2.0
    model = linear_vae(torch.tensor([[1.5]], dtype=torch.float64), 0.5, stretch=stretch)
    x = torch.tensor([[0.7]], dtype=torch.float64)
    s2 = 0.5 / (1.5**2 + 0.5)
    t2 = stretch * s2
    m2, m3 = gaussian_moment(2, s2, t2), gaussian_moment(3, s2, t2)
    chi2, mu3 = m2 - 1, m3 - 3 * m2 + 2
    assert chi2 == pytest.approx(t2 / math.sqrt(s2 * (2 * t2 - s2)) - 1, rel=1e-12)
    gap = chi2 / (2 * k) - (mu3 / 3 - 3 / 4 * chi2**2) / k**2
    value, error = iwae(model, x, k, repeats, chunk=500_000)
    assert error < 0.015 * gap
    assert abs(model.ppca().log_likelihood(x) - gap - value) < 4 * error


def test_the_iwae_bound_with_one_sample_is_the_elbo():
    model = linear_vae(CORRELATED, 0.5, stretch=1.7)
    x = torch.randn(30, 3, dtype=torch.float64)
    value, error = iwae(model, x, 1, 4000)
    scores = (value - model.elbo(x)) / error
    assert scores.abs().max() < 4.5
    assert scores.std() == pytest.approx(1, abs=0.5)


def test_more_repetitions_of_the_bound_lower_the_noise_and_not_the_gap():
    model = linear_vae(CORRELATED, 0.5, stretch=3.0)
    x = torch.zeros(1, 3, dtype=torch.float64)
    few, many = iwae(model, x, 2, 2000), iwae(model, x, 2, 32_000)
    assert (few.standard_error / many.standard_error).item() == pytest.approx(4, rel=0.15)
    assert many.value + 10 * many.standard_error < model.ppca().log_likelihood(x)
    assert abs(few.value - many.value) < 4 * few.standard_error


def test_the_standard_error_of_the_bound_is_the_spread_of_its_repetitions():
    """400 bounds of one point: their spread is known to 3.5 %, a fourth of what is tolerated."""
    model = linear_vae(CORRELATED, 0.5, stretch=1.7)
    x = torch.tensor([[0.5, 0.3, 1.5]], dtype=torch.float64)
    value, error = iwae(model, x.expand(400, -1), 4, 50)
    assert (value.std() / error.mean()).item() == pytest.approx(1, abs=0.14)


def test_prior_monte_carlo_blows_up_with_the_dimension():
    """The relative variance of p(x|z) under the prior is (1 + chi^2)^k - 1 for k equal dimensions."""
    a, variance, samples = 1.5, 0.3, 100_000
    evidence = 1 / math.sqrt(2 * math.pi * (a**2 + variance))
    second = 1 / (2 * math.sqrt(math.pi * variance)) / math.sqrt(2 * math.pi * (a**2 + variance / 2))
    for k in (1, 2, 4):
        model = linear_vae(a * torch.eye(k, dtype=torch.float64), variance)
        x = model.offset.unsqueeze(0)
        value, error = prior_monte_carlo(model, x, samples, chunk=samples)
        expected = math.sqrt(((second / evidence**2) ** k - 1) / samples)
        assert error.item() == pytest.approx(expected, rel=0.1)
        assert abs(value - model.ppca().log_likelihood(x)) < 4 * error
    # With twenty dimensions as many draws say nothing, and the standard error says so.
    model = linear_vae(a * torch.eye(20, dtype=torch.float64), variance)
    x = model.ppca().sample(1)
    assert prior_monte_carlo(model, x, samples, chunk=samples).standard_error > 0.3
    assert importance_sampling(model, x, 2).standard_error < 1e-9


def test_prior_monte_carlo_accounts_for_a_prior_that_is_not_standard():
    """log p(x) of z ~ N(0, 0.5), x ~ N(2 z, 1) by hand."""
    model = VAE(
        nn.Identity(), nn.Linear(1, 1).double(), image_shape=(1,), latent_dim=1, likelihood="gaussian"
    )
    model.prior_temperature = 0.5
    with torch.no_grad():
        model.decoder.weight.fill_(2.0)
        model.decoder.bias.zero_()
    value, error = prior_monte_carlo(model, torch.ones(1, 1, dtype=torch.float64), 40_000, chunk=40_000)
    exact = -0.5 * (math.log(2 * math.pi * 3) + 1 / 3)
    assert error < 0.01
    assert abs(value.item() - exact) < 4 * error.item()


class Recorder:
    """A model that notes what it is asked for. Its weights are all 1."""

    latent_dim = 2

    def __init__(self):
        self.seen = []

    def log_weights(self, x, samples):
        self.seen.append((x.expand(samples, *x.shape[1:]), torch.randn(samples, 2)))
        return x.new_zeros(samples, len(x))

    def log_joint(self, x, z):
        self.seen.append((x, z))
        return torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1)


@pytest.mark.parametrize("estimator", [prior_monte_carlo, importance_sampling])
def test_images_are_not_copied_and_samples_come_in_chunks(estimator):
    model, x = Recorder(), torch.rand(3, 4, 5)
    estimator(model, x, 7, chunk=3)
    assert [len(z) for _, z in model.seen] == 3 * [3, 3, 1]
    for i, (image, _) in enumerate(model.seen):
        assert image.shape[1:] == (4, 5)
        assert image.data_ptr() == x[i // 3].data_ptr()  # a view of the right example
        assert len(image) == 1 or image.stride(0) == 0
    draws = torch.cat([z for _, z in model.seen])
    assert len(draws.unique(dim=0)) == 21  # nobody gets the same noise twice


def test_a_vae_decodes_many_draws_against_one_image_without_copying_it(monkeypatch):
    vae, x = VAE.mlp((4, 5), 2, hidden=(3,)), torch.rand(3, 4, 5)
    seen = []
    log_prob = vae.likelihood.log_prob
    monkeypatch.setattr(vae.likelihood, "log_prob", lambda x, output: seen.append(x) or log_prob(x, output))
    importance_sampling(vae, x, 7, chunk=4)
    assert [tuple(images.shape) for images in seen] == 3 * [(4, 4, 5), (3, 4, 5)]
    assert [images.stride(0) for images in seen] == 6 * [0]
    assert [images.data_ptr() for images in seen] == [x[i].data_ptr() for i in (0, 0, 1, 1, 2, 2)]


@pytest.mark.parametrize("estimate", [importance_sampling, negative_log_likelihood])
def test_a_conditional_model_gets_the_label_of_each_image(estimate):
    """Its weights say which label came with which image."""

    class Labelled:
        def log_weights(self, x, samples, labels):
            assert len(labels) == len(x)
            return (10.0 * labels - x.flatten(1).sum(dim=1)).expand(samples, -1)

    x, labels = torch.arange(5.0).unsqueeze(1), torch.tensor([4, 0, 1, 2, 3])
    options = {} if estimate is importance_sampling else {"batch_size": 2, "progress": False}
    values = 10.0 * labels - x.squeeze(1)
    exact = values if estimate is importance_sampling else -values.mean()
    torch.testing.assert_close(estimate(Labelled(), x, 3, labels=labels, **options).value, exact)
    with pytest.raises(ValueError, match=r"^labels has shape \(4,\) but needs \("):
        estimate(Labelled(), x, 3, labels=labels[:4], **options)


def test_the_negative_log_likelihood_uses_every_image_once():
    """The last batch is smaller than the others, and the images differ much."""
    model = linear_vae(orthogonal(4, 1.0, 0.5), 0.3)
    x = torch.randn(23, 4, dtype=torch.float64) * torch.arange(23).unsqueeze(1)
    value, error = negative_log_likelihood(model, x, 2, batch_size=5, progress=False)
    exact = -model.ppca().log_likelihood(x)
    assert value.shape == error.shape == ()
    torch.testing.assert_close(value, exact.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(error, exact.std() / math.sqrt(23), rtol=1e-10, atol=0)


def test_the_progress_bar_counts_images(capsys):
    model = linear_vae(orthogonal(4, 1.0), 0.3)
    negative_log_likelihood(model, torch.randn(6, 4, dtype=torch.float64), 2, batch_size=4)
    assert "6/6" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: prior_monte_carlo(m, x, 4),
        lambda m, x: importance_sampling(m, x, 4),
        lambda m, x: iwae(m, x, 2, 2),
        lambda m, x: negative_log_likelihood(m, x, 4, progress=False),
    ],
)
def test_batch_norm_and_dropout_are_in_evaluation_mode_and_come_back(call):
    model = VAE.mlp((1, 4, 4), 2, hidden=(8,), batch_norm=True, dropout=0.5).double()
    model.train()
    model.decoder.eval()  # a part that the caller froze stays frozen
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(9, 1, 4, 4, dtype=torch.float64)
    torch.manual_seed(1)
    values = [call(model, x)]
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    torch.manual_seed(1)
    values.append(call(model.eval(), x))
    assert torch.equal(values[0].value, values[1].value)
    assert not values[0].value.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_comes_back_after_an_error_too():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    inside = []

    def fail():
        inside.extend(part.training for part in model.modules())
        raise KeyError

    with pytest.raises(KeyError), evaluation_mode(model):
        fail()
    assert not any(inside)
    assert all(part.training for part in model.modules())


def test_single_precision_gives_single_precision():
    model = VAE.mlp((3,), 2, hidden=(8,))
    for result in (
        prior_monte_carlo(model, torch.rand(4, 3), 5),
        importance_sampling(model, torch.rand(4, 3), 5),
    ):
        assert {t.dtype for t in result} == {torch.float32}
        assert {tuple(t.shape) for t in result} == {(4,)}


def test_the_same_seed_gives_the_same_estimate():
    model = linear_vae(CORRELATED, 0.5)
    x = torch.zeros(2, 3, dtype=torch.float64)
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(importance_sampling(model, x, 10).value)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert values[0][0] != values[0][1]  # equal examples, noise of their own


# ---------------------------------------------------------------------- what the code holds


def test_kl_per_dimension_sums_to_the_mean_kl():
    mean, logvar = torch.randn(2, 50, 4, dtype=torch.float64)
    kl = kl_per_dimension(mean, logvar)
    assert kl.shape == (4,)
    torch.testing.assert_close(kl.sum(), gaussian_kl(mean, logvar).mean(), rtol=1e-12, atol=0)
    single = gaussian_kl(mean[:, 2:3], logvar[:, 2:3]).mean()
    torch.testing.assert_close(kl[2], single, rtol=1e-12, atol=0)


def test_active_units_by_hand():
    # Variances over the data, divided by N: 0.04, 0.0081, 0, and 0 at a mean that is far from 0.
    mean = torch.tensor([[0.2, 0.09, 0.0, 5.0], [-0.2, -0.09, 0.0, 5.0]], dtype=torch.float64)
    assert active_units(mean) == 1
    assert active_units(mean, threshold=0.008) == 2
    assert active_units(mean, threshold=0.05) == 0
    assert isinstance(active_units(mean), int)


def aligned_codes(count):
    """Codes of ``count`` fresh examples from the optimal linear VAE, and that optimum."""
    scales = torch.tensor([3.0, 2.0, 0.7, 0.5], dtype=torch.float64)
    data = torch.randn(2000, 4, dtype=torch.float64) * scales
    data = data - data.mean(dim=0)
    best = linear_vae_optimum(data, 3, variance=1.0)
    cov = data.T @ data / 2000
    x = torch.randn(count, 4, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    return x @ best.encoder.T, best.logvar.expand(count, -1), best, torch.linalg.eigvalsh(cov).flip(0)


def test_active_units_and_mutual_information_at_the_aligned_optimum():
    """Oracle 5: variances 1 - sigma^2 / lambda_j, I(x; z) = sum 1/2 log(lambda_j / sigma^2), sigma^2 = 1."""
    mean, logvar, best, eigenvalues = aligned_codes(6000)
    assert active_units(mean) == 2 == int(best.active.sum())
    variances = mean.var(dim=0, correction=0)[:2]
    torch.testing.assert_close(variances, 1 - 1 / eigenvalues[:2], rtol=0.08, atol=0)
    exact = 0.5 * eigenvalues[:2].log().sum()
    value, error = mutual_information(mean, logvar)
    assert error < 0.015 * exact
    assert abs(value - exact) < 4 * error
    # The code's distribution is then the prior, and the rate is all information.
    assert abs(value - kl_per_dimension(mean, logvar).sum()) < 0.05


def test_mutual_information_of_three_examples_agrees_with_quadrature():
    mean = torch.tensor([[-1.0], [0.3], [1.2]], dtype=torch.float64)
    logvar = torch.tensor([[0.0], [-1.0], [-2.5]], dtype=torch.float64)
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    densities = torch.distributions.Normal(mean, (0.5 * logvar).exp()).log_prob(grid).exp()
    mixture = densities.mean(dim=0)
    integrand = torch.where(densities > 0, densities * (densities / mixture).log(), 0).mean(dim=0)
    exact = torch.trapezoid(integrand, grid)
    draws = torch.stack([mutual_information(mean, logvar).value for _ in range(5000)])
    error = draws.std() / math.sqrt(5000)
    assert error < 0.01 * exact
    assert abs(draws.mean() - exact) < 4 * error


def test_mutual_information_lies_between_nothing_and_log_n():
    same = torch.zeros(50, 3), torch.zeros(50, 3)
    value, error = mutual_information(*same)
    assert abs(value) < 1e-12
    assert error < 1e-12
    apart = 100.0 * torch.arange(50).unsqueeze(1).expand(-1, 3), torch.full((50, 3), -20.0)
    assert mutual_information(*apart).value.item() == pytest.approx(math.log(50), rel=1e-9)


def test_mutual_information_does_not_depend_on_the_chunk():
    mean, logvar = torch.randn(2, 37, 3)
    values = []
    for chunk in (1, 10, 1000):
        torch.manual_seed(0)
        values.append(mutual_information(mean, logvar, chunk=chunk).value)
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(values[0], values[2], rtol=1e-12, atol=0)


def test_the_total_correlation_of_a_gaussian_has_its_closed_form():
    """Oracle 14: 1/2 (sum log S_ii - log det S); for two dimensions -1/2 log(1 - rho^2)."""
    white = torch.linalg.qr(torch.randn(100, 4, dtype=torch.float64).sub(0)).Q
    white = torch.linalg.qr(white - white.mean(dim=0)).Q * 10  # mean 0, covariance the identity
    root = torch.randn(4, 4, dtype=torch.float64)
    logvar = torch.randn(100, 4, dtype=torch.float64)
    cov = root @ root.T + torch.diag(logvar.exp().mean(dim=0))
    expected = 0.5 * (cov.diagonal().log().sum() - torch.linalg.slogdet(cov)[1])
    value = gaussian_total_correlation(white @ root.T + 7, logvar)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    rho, little = 0.8, torch.full((100, 2), -60.0, dtype=torch.float64)
    pair = torch.stack([white[:, 0], rho * white[:, 0] + math.sqrt(1 - rho**2) * white[:, 1]], dim=1)
    assert gaussian_total_correlation(3 * pair, little).item() == pytest.approx(-0.5 * math.log(1 - rho**2))
    assert gaussian_total_correlation(white, logvar).item() == pytest.approx(0, abs=1e-12)


# ---------------------------------------------------------------------- what it is good for


def clusters(count, spread):
    labels = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    return centres[labels] + spread * torch.randn(count, 2), labels


def test_the_probe_tells_clusters_apart_and_noise_not():
    codes, labels = clusters(300, 0.3)
    test_codes, test_labels = clusters(150, 0.3)
    value, error = probe_accuracy(codes, labels, test_codes, test_labels, per_class=3)
    assert value == 1
    assert error == 0
    value, error = probe_accuracy(torch.randn(300, 2), labels, torch.randn(150, 2), test_labels)
    assert value.item() == pytest.approx(1 / 3, abs=0.1)
    assert 0 < error < 0.05


def test_the_probe_improves_with_labels_and_ignores_the_scale_of_the_codes():
    codes, labels = clusters(600, 2.0)
    test = clusters(600, 2.0)
    accuracies = [probe_accuracy(codes, labels, *test, per_class=n).value for n in (1, 5, 100)]
    assert accuracies[0] < accuracies[1] < accuracies[2]
    scale = torch.tensor([1e-3, 500.0])
    other = probe_accuracy(codes * scale - 9, labels, test[0] * scale - 9, test[1], per_class=5).value
    assert other.item() == pytest.approx(accuracies[1].item(), abs=0.003)


def test_the_probes_error_is_that_of_its_mean_over_draws():
    codes, labels = clusters(600, 2.0)
    test = clusters(300, 2.0)
    results = [probe_accuracy(codes, labels, *test, per_class=2, repeats=8, seed=s) for s in range(40)]
    means = torch.stack([result.value for result in results])
    errors = torch.stack([result.standard_error for result in results])
    assert (errors.square().mean().sqrt() / means.std()).item() == pytest.approx(1, abs=0.35)
    again = probe_accuracy(codes, labels, *test, per_class=2, repeats=8, seed=3)
    assert again.value == results[3].value


def test_a_code_that_never_varies_does_not_stop_the_probe():
    codes, labels = clusters(60, 0.3)
    codes = torch.cat([codes, torch.full((60, 1), 7.0)], dim=1)
    assert probe_accuracy(codes, labels, codes, labels, per_class=3).value == 1


def test_auroc_agrees_with_sklearn_with_ties_and_without():
    random = np.random.default_rng(0)
    for inside, outside in (
        (random.normal(size=50), random.normal(size=70) - 0.5),
        (random.integers(4, size=50) + 0.0, random.integers(5, size=70) + 0.0),
    ):
        truth = np.r_[np.ones(50), np.zeros(70)]
        expected = roc_auc_score(truth, np.r_[inside, outside])
        got = auroc(torch.from_numpy(inside), torch.from_numpy(outside))
        assert got == pytest.approx(expected, rel=1e-12)
        assert auroc(torch.from_numpy(outside), torch.from_numpy(inside)) == pytest.approx(1 - expected)


def test_auroc_at_its_ends():
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0, math.inf * -1])) == 1
    assert auroc(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5
    assert auroc(torch.tensor([0.0]), torch.tensor([1.0])) == 0


# ------------------------------------------------------------------------ what is refused

MODEL = linear_vae(CORRELATED, 0.5)
X = torch.zeros(2, 3, dtype=torch.float64)
CODES, LABELS = torch.zeros(6, 2), torch.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: log_mean_weight(torch.zeros(1, 3)), ValueError, r"^samples is 1 but must be at least 2"),
        (lambda: log_mean_weight(torch.zeros(5)), ValueError, r"^log_weights has shape \(5,\) but needs"),
        (lambda: prior_monte_carlo(MODEL, X, 1), ValueError, r"^samples is 1 but must be at least 2"),
        (lambda: prior_monte_carlo(MODEL, X.long(), 5), TypeError, r"^x has dtype torch\.int64"),
        (lambda: importance_sampling(MODEL, X, 2.5), TypeError, r"^samples is 2\.5 but must be a whole n"),
        (
            lambda: importance_sampling(MODEL, X, 5, chunk=0),
            ValueError,
            r"^chunk is 0 but must be at least 1",
        ),
        (
            lambda: importance_sampling(MODEL, X.tolist(), 5),
            TypeError,
            r"^x must be a torch\.Tensor, not list",
        ),
        (lambda: importance_sampling(MODEL, X[:, :2], 5), ValueError, r"^x has shape \(1, 2\) but needs"),
        (lambda: iwae(MODEL, X, 0, 5), ValueError, r"^k is 0 but must be at least 1"),
        (lambda: iwae(MODEL, X, 5, 1), ValueError, r"^repeats is 1 but must be at least 2"),
        (lambda: iwae(MODEL, X, True, 5), TypeError, r"^k is True but must be a whole number"),
        (lambda: negative_log_likelihood(MODEL, X[:1]), ValueError, r"^N, the number of images, is 1 but"),
        (lambda: negative_log_likelihood(MODEL, X, batch_size=0), ValueError, r"^batch_size is 0 but must"),
        (lambda: kl_per_dimension(CODES, CODES[:, :1]), ValueError, r"^logvar has shape \(6, 1\) but needs"),
        (lambda: active_units(CODES[0]), ValueError, r"^mean has shape \(2,\) but needs \(N, k\)"),
        (lambda: active_units(CODES, -1), ValueError, r"^threshold is -1 but must be at least 0"),
        (lambda: active_units(CODES[:0]), ValueError, r"^N, the number of examples, is 0 but"),
        (lambda: mutual_information(CODES[:1], CODES[:1]), ValueError, r"^N, the number of examples, is 1"),
        (lambda: mutual_information(CODES, CODES[:, :1]), ValueError, r"^logvar has shape \(6, 1\) but"),
        (lambda: mutual_information(CODES, CODES, chunk=0), ValueError, r"^chunk is 0 but must be at least"),
        (lambda: log_mean_weight(3.0), TypeError, r"^log_weights must be a torch\.Tensor, not float"),
        (lambda: gaussian_total_correlation(CODES.long(), CODES), TypeError, r"^mean has dtype torch\.int64"),
        (lambda: gaussian_total_correlation(CODES, CODES[:5]), ValueError, r"^logvar has shape \(5, 2\)"),
        (
            lambda: probe_accuracy(CODES, LABELS, CODES, LABELS),
            ValueError,
            r"^labels holds 2 classes, the sm",
        ),
        (
            lambda: probe_accuracy(CODES, LABELS[:5], CODES, LABELS),
            ValueError,
            r"^labels has shape \(5,\) but",
        ),
        (
            lambda: probe_accuracy(CODES, LABELS, CODES, LABELS.float()),
            TypeError,
            r"^test_labels must be a torch\.Tensor of torch\.int64, not torch\.float32",
        ),
        (
            lambda: probe_accuracy(CODES, LABELS, CODES * math.nan, LABELS),
            ValueError,
            r"^test_codes holds 12 values that are NaN",
        ),
        (
            lambda: probe_accuracy(CODES, LABELS * 0, CODES, LABELS, per_class=1),
            ValueError,
            r"^labels holds 1 classes",
        ),
        (
            lambda: probe_accuracy(CODES, LABELS, CODES, LABELS, per_class=0),
            ValueError,
            r"^per_class is 0 but must be at least 1",
        ),
        (
            lambda: probe_accuracy(CODES, LABELS, CODES, LABELS, per_class=1, repeats=1),
            ValueError,
            r"^repeats is 1 but must be at least 2",
        ),
        (lambda: auroc([0.0], torch.zeros(3)), TypeError, r"^scores_in must be a torch\.Tensor, not list"),
        (lambda: auroc(torch.zeros(3), torch.zeros(3, 1)), ValueError, r"^scores_out has shape \(3, 1\)"),
        (lambda: auroc(torch.zeros(0), torch.zeros(3)), ValueError, r"^the length of scores_in is 0 but"),
        (lambda: auroc(torch.zeros(3), torch.full((2,), math.nan)), ValueError, r"^scores_out holds NaN"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_probe_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"^probe_accuracy needs scikit-learn: pip install"):
        probe_accuracy(CODES, LABELS, CODES, LABELS, per_class=1)


# ------------------------------------------------------------------------- how samples look


def with_moments(count, mean, cov):
    """Points with exactly this mean and covariance (divided by N - 1), in no order."""
    k = len(mean)
    white = torch.linalg.qr(
        torch.randn(count, k + 1, dtype=torch.float64).index_fill(1, torch.tensor(0), 1)
    ).Q
    eigenvalues, vectors = torch.linalg.eigh(cov)
    root = vectors * eigenvalues.clamp(min=0).sqrt()
    return math.sqrt(count - 1) * white[:, 1:] @ root.T + mean


def random_cov(k, rank=None):
    root = torch.randn(k, rank or k, dtype=torch.float64)
    return root @ root.T


def pair_distance(mean, cov, other_mean, other_cov):
    """In two dimensions tr (A^1/2 B A^1/2)^1/2 has a closed form: its square is tr AB + 2 sqrt(det AB)."""
    overlap = math.sqrt((cov @ other_cov).trace() + 2 * math.sqrt(torch.det(cov) * torch.det(other_cov)))
    return (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * overlap


def test_the_frechet_distance_of_two_gaussians_that_do_not_commute():
    for _ in range(20):
        (mean, other), covs = torch.randn(2, 2).double(), [random_cov(2), random_cov(2)]
        expected = pair_distance(mean, covs[0], other, covs[1])
        got = gaussian_frechet_distance(mean, covs[0], other, covs[1])
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        features = with_moments(9, mean, covs[0]), with_moments(7, other, covs[1])
        torch.testing.assert_close(frechet_distance(*features), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(frechet_distance(*features[::-1]), expected, rtol=1e-9, atol=1e-9)


def test_the_frechet_distance_of_gaussians_with_the_same_axes():
    """The sum of the squares of the differences of means and of standard deviations."""
    means, stds = torch.randn(2, 64).double(), torch.rand(2, 64).double()
    axes = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q
    covs = [axes * std.square() @ axes.T for std in stds]
    expected = (means[0] - means[1]).square().sum() + (stds[0] - stds[1]).square().sum()
    got = gaussian_frechet_distance(means[0], covs[0], means[1], covs[1])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_frechet_distance_of_covariances_without_full_rank(scale):
    """Of rank 1, u u^T and v v^T: |u|^2 + |v|^2 - 2 |u v|. Where axes do not meet, the sum of traces."""
    u, v = scale * torch.randn(2, 10, dtype=torch.float64)
    none = torch.zeros(10, dtype=torch.float64)
    expected = u @ u + v @ v - 2 * (u @ v).abs()
    got = gaussian_frechet_distance(none, u.outer(u), none, v.outer(v))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)
    first, second = (scale**2 * torch.diag(torch.tensor(d).double()) for d in ([2.0, 0, 0], [0, 3.0, 0]))
    got = gaussian_frechet_distance(none[:3], first, none[:3], second)
    torch.testing.assert_close(got.item(), 5 * scale**2, rtol=1e-12, atol=0)
    got = gaussian_frechet_distance(none[:3], first, none[:3], torch.zeros_like(first))
    torch.testing.assert_close(got.item(), 2 * scale**2, rtol=1e-12, atol=0)


def test_covariances_that_share_no_direction_are_the_sum_of_their_traces_apart():
    """60 dimensions, half of them each: roots of rounding errors would add up to 1e-7."""
    axes = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    first, second = (part @ part.T for part in axes.split(30, dim=1))
    got = gaussian_frechet_distance(torch.zeros(60).double(), first, torch.zeros(60).double(), second)
    assert got.item() == pytest.approx(60, abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [5, 200])
def test_a_set_has_no_distance_from_itself(count, dtype):
    """Also with fewer points than features, and features that never vary; in double precision always."""
    features = (10 + torch.randn(count, 30)).to(dtype)
    features[:, 3] = 7
    same = frechet_distance(features, features[torch.randperm(count)])
    assert same.dtype == torch.float64
    assert 0 <= same < 1e-9
    assert frechet_distance(features, features + 1).item() == pytest.approx(
        30, rel=2e-2 if count == 5 else 1e-2
    )


def test_single_precision_does_not_spoil_the_distance():
    """Features whose mean is large against their spread: squares in single precision would lose the rest."""
    features = (torch.randn(300, 8) + 3000).float()
    others = features + torch.linspace(0, 1, 8)
    expected = frechet_distance(features.double(), others.double())
    torch.testing.assert_close(frechet_distance(features, others), expected, rtol=1e-9, atol=1e-12)
    assert expected == pytest.approx(torch.linspace(0, 1, 8).square().sum().item(), rel=1e-3)


def test_the_floor_is_that_of_random_halves_and_not_of_ordered_ones():
    """For N points of one Gaussian in k dimensions, halves of n = N/2 have means 2 tr / n apart."""
    ordered = torch.randn(400, 3, dtype=torch.float64) + torch.linspace(-3, 3, 400).unsqueeze(1)
    halves = frechet_distance(ordered[:200], ordered[200:])
    value, error = frechet_floor(ordered)
    assert halves > 20
    assert value < 0.5
    assert 0 < error < 0.1
    assert frechet_floor(ordered).value == value  # seeded
    assert frechet_floor(ordered, seed=1).value != value
    # Halves of a set are a little further apart than its subsets from others: without replacement.
    shift = torch.stack([frechet_floor(torch.randn(200, 1).double(), repeats=2).value for _ in range(400)])
    # Means differ by sqrt(2 / n) and standard deviations by sqrt(1 / n): 3 / n on average, n = 100.
    assert shift.mean().item() == pytest.approx(3 / 100, rel=0.12)


def test_each_row_is_in_one_half():
    """Four numbers can be divided in three ways, whose distances are 100, 1 and 2."""
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    sums = {round(2 * frechet_floor(features, repeats=2, seed=s).value.item(), 6) for s in range(20)}
    assert sums <= {200, 101, 102, 2, 3, 4}
    assert len(sums) > 2


def test_the_floors_error_is_that_of_its_mean_over_divisions():
    features = torch.randn(40, 2)
    floors = [frechet_floor(features, repeats=8, seed=s) for s in range(40)]
    values, errors = (torch.stack(parts) for parts in zip(*floors))
    assert (errors.square().mean().sqrt() / values.std()).item() == pytest.approx(1, abs=0.35)


def test_coverage_by_hand():
    probabilities = torch.tensor(
        [[0.9, 0.1, 0.0, 0.0], [0.6, 0.2, 0.2, 0.0], [0.5, 0.5, 0.0, 0.0], [0, 0, 0, 1]]
    )
    found = coverage(probabilities)
    assert found.shares.tolist() == [0.75, 0, 0, 0.25]
    expected = math.log(4) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert found.kl.item() == pytest.approx(expected, rel=1e-12)
    assert found.confidence.item() == pytest.approx(0.75, abs=1e-7)
    assert found.hit == 2


def test_coverage_of_all_classes_and_of_one():
    labels = torch.arange(10).repeat(7)
    every = coverage(torch.eye(10)[labels])
    assert (every.kl, every.confidence, every.hit) == (0, 1, 10)
    one = coverage(torch.eye(10)[[3] * 5])
    assert one.kl.item() == pytest.approx(math.log(10), rel=1e-12)
    assert one.hit == 1


def test_samples_of_the_uniform_distribution_have_the_divergence_that_is_promised():
    draws = [coverage(torch.eye(10)[torch.randint(10, (500,))]).kl for _ in range(300)]
    assert torch.stack(draws).mean().item() == pytest.approx(9 / 1000, rel=0.12)


@pytest.mark.parametrize("mixture", [data.mixture_ring(), data.mixture_grid(3)])
def test_modes_that_are_known_are_found(mixture):
    """A model that makes all modes, and one that makes two."""
    k = len(mixture.means)
    points, components = mixture.sample(3000)
    every = mode_coverage(mixture, points)
    assert every.hit == k
    assert every.kl < 3 * (k - 1) / 6000
    # Within three standard deviations of its mean lie 1 - exp(-9/2) of a Gaussian in two dimensions.
    assert every.confidence.item() == pytest.approx(1 - math.exp(-4.5), abs=0.006)
    two = mode_coverage(mixture, points[components < 2])
    assert two.hit == 2
    assert two.kl.item() == pytest.approx(math.log(k / 2), abs=0.02)
    torch.testing.assert_close(every.shares, components.bincount().double() / 3000, atol=0.01, rtol=0)


def test_points_far_from_every_mode_hit_none():
    ring = data.mixture_ring(4, radius=2.0, std=0.2)
    points = torch.tensor([[0.0, 2.0 + 0.59], [0.0, -2.0 - 0.61], [0.1, 0.0]])
    found = mode_coverage(ring, points)
    assert found.hit == 1
    assert found.confidence.item() == pytest.approx(1 / 3)
    assert mode_coverage(ring, points, radius=3.1).hit == 2
    assert mode_coverage(ring, 0 * points).hit == 0


def test_distances_from_modes_are_in_their_own_standard_deviations():
    """A long component and a round one: the nearest by its own measure, not by the ruler."""
    covs = torch.stack([torch.diag(torch.tensor([4.0, 0.01])), 0.01 * torch.eye(2)])
    mixture = gaussian_mixture(torch.tensor([3.0, 1.0]), torch.tensor([[0.0, 0.0], [3.0, 0.5]]), covs)
    found = mode_coverage(mixture, torch.tensor([[3.0, 0.1], [1.0, 0.4], [3.0, 0.45], [0.0, 0.0]]))
    assert found.shares.tolist() == [0.75, 0.25]
    assert found.kl == 0  # the weights of the mixture are these
    assert found.hit == 2


# -------------------------------------------------------------------------- a feature network


def test_a_feature_network_is_a_classifier_of_its_features():
    network = feature_network((1, 4, 4), 3, features=5, hidden=(6,), dropout=0.5).eval()
    x, labels = torch.rand(7, 1, 4, 4), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    features = network.features(x)
    assert features.shape == (7, 5)
    assert features.min() == 0  # ReLU
    probabilities = network(x)
    torch.testing.assert_close(probabilities, network.head(features).softmax(dim=1))
    loss = network.loss(x, labels)
    torch.testing.assert_close(loss.total, -probabilities[range(7), labels].log().mean())
    wrong = (probabilities.argmax(dim=1) != labels).float().mean()
    assert loss.parts["error"] == wrong
    # Two batch sizes: a mean over examples.
    twice = network.loss(torch.cat([x, x]), torch.cat([labels, labels]))
    torch.testing.assert_close(twice.total, loss.total)
    network.train()
    assert not network.features(x).equal(network.features(x))  # dropout


def test_a_feature_network_learns_digits_and_sees_what_is_missing():
    """Trained on the fly: 95 % of the test digits, and samples without half of the classes are far away."""
    digits = data.load("digits")
    network = feature_network((1, 8, 8), features=32, hidden=(64,))
    labels = {"labels": digits.train_labels, "test_labels": digits.test_labels}
    options = {"epochs": 12, "batch_size": 64, "lr": 4e-3, "progress": False}
    history = fit(network, digits.train, test_images=digits.test, **labels, **options)
    assert history.test["error"][-1] < 0.06
    network.eval()
    with torch.no_grad():
        features, kept = (
            network.features(digits.train),
            network.features(digits.train)[digits.train_labels < 5],
        )
        found = coverage(network(digits.train[digits.train_labels < 5]))
        every = coverage(network(digits.train))
    floor = frechet_floor(features).value
    assert frechet_distance(kept, features) > 20 * floor
    assert 0.5 < found.kl < math.log(2)  # log 2 if no image were taken for one of another half
    assert every.kl < 0.01
    assert every.confidence > 0.9


PICTURES, CLASSES = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda n: n.features(torch.rand(3, 1, 4, 5)), ValueError, r"^x has shape \(3, 1, 4, 5\) but this"),
        (lambda n: n.loss(PICTURES, CLASSES[:2]), ValueError, r"^labels has shape \(2,\) but needs \(3,\)"),
        (lambda n: n.validate(PICTURES), ValueError, r"^labels is missing"),
        (lambda n: n.validate(PICTURES, CLASSES + 1), ValueError, r"^labels go from 1 to 3 but need 0 to 2"),
        (lambda n: n.validate(PICTURES, CLASSES.float()), TypeError, r"^labels must be a torch\.Tensor of"),
        (lambda n: n.validate(PICTURES / 0, CLASSES), ValueError, r"^images holds \d+ values that are NaN"),
        (lambda n: n.validate(torch.rand(3, 16), CLASSES), ValueError, r"^images has shape \(3, 16\) but"),
        (lambda n: feature_network((1, 4, 4), 1), ValueError, r"^classes is 1 but must be at least 2"),
        (lambda n: feature_network((1, 4, 4), features=0), ValueError, r"^features is 0 but must be at"),
        (lambda n: frechet_distance(torch.rand(4, 2), torch.rand(4, 3)), ValueError, r"^others has shape"),
        (
            lambda n: frechet_distance(torch.rand(1, 2), torch.rand(4, 2)),
            ValueError,
            r"^the number of rows of features is 1 but must be at least 2",
        ),
        (
            lambda n: frechet_distance(torch.rand(4, 2), torch.full((4, 2), math.nan)),
            ValueError,
            r"^others holds 8 values that are NaN",
        ),
        (lambda n: frechet_floor(torch.rand(3, 2)), ValueError, r"^the number of rows of features is 3 but"),
        (lambda n: frechet_floor(torch.rand(9, 2), repeats=1), ValueError, r"^repeats is 1 but must be"),
        (
            lambda n: gaussian_frechet_distance(ZEROS, EYE, ZEROS, EYE + torch.tensor([[0, 0.1], [0, 0]])),
            ValueError,
            r"^other_cov must be symmetric",
        ),
        (
            lambda n: gaussian_frechet_distance(ZEROS, -EYE, ZEROS, EYE),
            ValueError,
            r"^cov has the eigenvalue -1 but must be positive semidefinite",
        ),
        (
            lambda n: gaussian_frechet_distance(ZEROS, EYE, ZEROS, torch.eye(3)),
            ValueError,
            r"^other_cov has shape \(3, 3\) but needs \(k, k\) = \(2, 2\)",
        ),
        (lambda n: coverage(torch.randn(4, 3)), ValueError, r"^probabilities has values from -.*softmax"),
        (lambda n: coverage(torch.ones(4, 3)), ValueError, r"^probabilities has .*sums of rows from 3 to 3"),
        (lambda n: coverage(torch.ones(4, 1)), ValueError, r"^classes is 1 but must be at least 2"),
        (lambda n: coverage(torch.ones(0, 3)), ValueError, r"^N, the number of samples, is 0 but"),
        (lambda n: coverage(torch.full((2, 2), math.nan)), ValueError, r"^probabilities has values from nan"),
        (
            lambda n: mode_coverage(data.mixture_ring(), torch.rand(3, 3)),
            ValueError,
            r"^points has shape \(3, 3\) but needs \(N, D\) = \(3, 2\)",
        ),
        (
            lambda n: mode_coverage(data.mixture_ring(), torch.rand(3, 2), radius=0),
            ValueError,
            r"^radius is 0 but must be positive",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(call, kind, words):
    with pytest.raises(kind, match=words):
        call(feature_network((1, 4, 4), 3, features=5, hidden=(6,)))


ZEROS, EYE = torch.zeros(2), torch.eye(2)
