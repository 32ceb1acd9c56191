"""Linear models have exact answers: eigenvalues, matrix inverses and Gaussian conditioning."""

import math
from itertools import pairwise

import pytest
import torch
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.linear_model import LogisticRegression
from torch.distributions import MultivariateNormal, kl_divergence
from torch.func import functional_call

from aecourse import data, fit
from aecourse.bounds import log_mean_exp
from aecourse.likelihoods import gaussian_kl
from aecourse.linear import (
    PPCA,
    LinearAutoencoder,
    LinearDenoisingAutoencoder,
    LinearVAE,
    LogisticPCA,
    axis_distance,
    fit_logistic_pca,
    fit_ppca,
    linear_vae_optimum,
    optimal_linear_denoiser,
    pca,
    regularised_optimum,
    subspace_distance,
)

COUNT, DIM, K = 300, 6, 3


@pytest.fixture
def x() -> torch.Tensor:
    """Data with a mean that is not zero and directions of clearly different variance."""
    scales = torch.tensor([3.0, 2.0, 1.4, 0.9, 0.5, 0.3], dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64)).Q
    return torch.randn(COUNT, DIM, dtype=torch.float64) * scales @ mixing + 5


def assert_equal_to_ten_digits(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def minimise(net, objective) -> float:
    """Full-batch L-BFGS to the end, as far as double precision goes; returns the lowest value."""
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=2000,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        total = objective()
        total.backward()
        return total

    optimizer.step(closure)
    return objective().item()


def check_gradient(net, objective):
    """Finite differences against autograd, for every parameter of the module at once."""
    names, values = zip(*net.named_parameters())

    class Objective(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self):
            return objective(self.net)

    def function(*given):
        return functional_call(Objective(), {f"net.{name}": v for name, v in zip(names, given)}, ())

    assert torch.autograd.gradcheck(function, [v.detach().clone().requires_grad_() for v in values])


# ----------------------------------------------------------------------------------- PCA


def test_pca_leaves_the_discarded_singular_values_as_error(x):
    """Oracle 1: Eckart & Young, no rank-k approximation of the centred data is better."""
    singular = torch.linalg.svdvals(x - x.mean(dim=0))
    for k in range(1, DIM + 1):
        error = (pca(x, k).reconstruct(x) - x).square().sum()
        torch.testing.assert_close(error, singular[k:].square().sum(), rtol=1e-10, atol=1e-9)


def test_pca_agrees_with_sklearn(x):
    ours, theirs = pca(x, K), SklearnPCA(K, svd_solver="full").fit(x.numpy())
    assert_equal_to_ten_digits(ours.mean, torch.from_numpy(theirs.mean_))
    # sklearn divides by N - 1, the course by N.
    variances = torch.from_numpy(theirs.explained_variance_) * (COUNT - 1) / COUNT
    assert_equal_to_ten_digits(ours.eigenvalues, variances)
    cosines = (ours.components * torch.from_numpy(theirs.components_)).sum(dim=1)
    assert_equal_to_ten_digits(cosines.abs(), torch.ones(K).double())


def test_components_are_orthonormal_and_ordered_by_variance(x):
    found = pca(x)
    assert found.components.shape == (DIM, DIM)
    assert_equal_to_ten_digits(found.components @ found.components.T, torch.eye(DIM).double())
    assert (found.eigenvalues.diff() < 0).all()
    codes = found.encode(x)
    assert_equal_to_ten_digits(codes.T @ codes / COUNT, torch.diag(found.eigenvalues))


def test_the_sign_of_a_component_does_not_depend_on_the_order_or_sign_of_the_data(x):
    found = pca(x, K)
    largest = found.components.gather(1, found.components.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    for other in (x.flip(0), -x, x + 100):
        torch.testing.assert_close(pca(other, K).components, found.components, rtol=0, atol=1e-8)


def test_decode_inverts_encode_when_nothing_is_left_out(x):
    assert_equal_to_ten_digits(pca(x).reconstruct(x), x)


def test_pca_keeps_the_dtype_and_works_in_double_precision(x):
    # In single precision the square of an offset of 1,000 would drown the small variances.
    single = pca((x + 1000).float())
    assert {tensor.dtype for tensor in single} == {torch.float32}
    expected = pca((x + 1000).float().double()).eigenvalues
    torch.testing.assert_close(single.eigenvalues.double(), expected, rtol=1e-6, atol=0)


def test_eigenvalues_are_not_negative_for_data_of_low_rank():
    found = pca(torch.randn(50, 2) @ torch.randn(2, 8))
    assert (found.eigenvalues >= 0).all()


@pytest.mark.parametrize("k", [0, DIM + 1])
def test_pca_refuses_an_impossible_k(x, k):
    with pytest.raises(ValueError, match=rf"^k is {k} but must be between 1 and D = {DIM}"):
        pca(x, k)


def test_pca_refuses_bad_data(x):
    with pytest.raises(ValueError, match=r"^x has shape \(300, 2, 3\) but needs \(N, D\)"):
        pca(x.view(COUNT, 2, 3))
    x[7, 3] = math.nan
    with pytest.raises(ValueError, match=r"^x holds 1 values that are NaN .* at \(7, 3\)"):
        pca(x)


# ------------------------------------------------------------------- probabilistic PCA


def covariance(model: PPCA) -> torch.Tensor:
    return model.weight @ model.weight.T + model.variance * torch.eye(len(model.mean)).to(model.weight)


@pytest.fixture
def model() -> PPCA:
    weight = torch.randn(DIM, K, dtype=torch.float64)
    return PPCA(torch.randn(DIM, dtype=torch.float64), weight, torch.tensor(0.3, dtype=torch.float64))


@pytest.mark.parametrize("k", range(1, DIM))
def test_the_maximum_likelihood_has_its_closed_form(x, k):
    """Oracle 2."""
    eigenvalues = pca(x).eigenvalues
    variance = eigenvalues[k:].mean()
    expected = -0.5 * (
        DIM * math.log(2 * math.pi) + eigenvalues[:k].log().sum() + (DIM - k) * variance.log() + DIM
    )
    assert_equal_to_ten_digits(fit_ppca(x, k).log_likelihood(x).mean(), expected)


def test_fit_ppca_finds_a_maximum(x):
    best = fit_ppca(x, K)
    highest = best.log_likelihood(x).mean()
    for _ in range(20):
        other = best._replace(weight=best.weight + 0.01 * torch.randn_like(best.weight))
        assert other.log_likelihood(x).mean() < highest
    for factor in (0.98, 1.02):
        assert best._replace(variance=factor * best.variance).log_likelihood(x).mean() < highest
        assert best._replace(mean=factor * best.mean).log_likelihood(x).mean() < highest


def test_log_likelihood_is_that_of_the_full_gaussian(model, x):
    full = MultivariateNormal(model.mean, covariance(model))
    assert_equal_to_ten_digits(model.log_likelihood(x), full.log_prob(x))


def test_log_likelihood_agrees_with_sklearn(x):
    theirs = SklearnPCA(K, svd_solver="full").fit(x.numpy())
    components, variances = torch.from_numpy(theirs.components_), torch.from_numpy(theirs.explained_variance_)
    noise = torch.tensor(theirs.noise_variance_)
    same = PPCA(torch.from_numpy(theirs.mean_), components.T * (variances - noise).sqrt(), noise)
    assert_equal_to_ten_digits(same.log_likelihood(x), torch.from_numpy(theirs.score_samples(x.numpy())))


def test_posterior_is_the_joint_gaussian_conditioned_on_x(model, x):
    # z and x are jointly Gaussian: cov(z) = I, cov(z, x) = W', cov(x) = WW' + variance I.
    gain = model.weight.T @ torch.linalg.inv(covariance(model))
    mean, cov = model.posterior(x)
    assert_equal_to_ten_digits(mean, (x - model.mean) @ gain.T)
    assert_equal_to_ten_digits(cov, torch.eye(K).double() - gain @ model.weight)


def test_samples_have_the_mean_and_covariance_of_the_model(model):
    count = 200_000
    draws, expected = model.sample(count), covariance(model)
    assert draws.dtype == torch.float64
    scores = (draws.mean(dim=0) - model.mean) / (expected.diagonal() / count).sqrt()
    assert scores.abs().max() < 4
    # An entry of the covariance of N Gaussian draws has variance (C_ii C_jj + C_ij^2) / N.
    variances = (torch.outer(expected.diagonal(), expected.diagonal()) + expected.square()) / count
    scores = (torch.cov(draws.T) - expected) / variances.sqrt()
    assert scores.abs().max() < 4


@pytest.mark.parametrize("k", [0, DIM])
def test_fit_ppca_refuses_an_impossible_k(x, k):
    with pytest.raises(ValueError, match=rf"^k is {k} but must be between 1 and D - 1 = {DIM - 1}"):
        fit_ppca(x, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fit_ppca_refuses_data_without_noise(dtype):
    flat = torch.randn(100, 2, dtype=dtype) @ torch.randn(2, DIM, dtype=dtype)
    with pytest.raises(ValueError, match=r"subspace of at most k = 2 dimensions.*Take a smaller k"):
        fit_ppca(flat, 2)


@pytest.mark.parametrize("dim", range(3, 12))
def test_fit_ppca_of_data_with_equal_variances_is_finite(dim):
    # All eigenvalues are equal, so W is zero; rounding must not make it the root of a negative number.
    x = 0.7 * torch.cat([torch.eye(dim), -torch.eye(dim)]).double()
    for k in range(1, dim):
        assert fit_ppca(x, k).weight.abs().max() < 1e-6


def test_a_model_names_the_argument_that_does_not_fit(model):
    for method in (model.log_likelihood, model.posterior):
        with pytest.raises(ValueError, match=r"^x has shape \(4, 5\) but needs \(batch, D\) = \(4, 6\)"):
            method(torch.zeros(4, 5, dtype=torch.float64))


def test_joint_minus_posterior_is_the_evidence_for_every_x_and_z(model, x):
    """Oracle 3: log p(x, z) - log p(z|x) = log p(x) whatever z is, so the exact q has no gap."""
    mean, cov = model.posterior(x)
    for _ in range(3):
        z = 3 * torch.randn(COUNT, K, dtype=torch.float64)
        evidence = model.log_joint(x, z) - MultivariateNormal(mean, cov).log_prob(z)
        assert_equal_to_ten_digits(evidence, model.log_likelihood(x))


def test_the_best_diagonal_posterior_misses_the_exact_one_by_the_gap(model, x):
    """Oracle 4: variances sigma^2 / M_jj, and the same gap for every x."""
    exact = MultivariateNormal(*model.posterior(x))
    mean, logvar = model.best_diagonal_posterior(x)
    assert mean.shape == logvar.shape == (COUNT, K)
    gap = kl_divergence(MultivariateNormal(mean, torch.diag_embed(logvar.exp())), exact)
    assert_equal_to_ten_digits(gap, model.diagonal_gap().expand(COUNT))
    assert model.diagonal_gap() > 0.1


def test_the_best_diagonal_posterior_is_stationary_and_the_lowest(model, x):
    """Oracle 4: gradient zero, and every step away costs."""
    exact = MultivariateNormal(*model.posterior(x))

    def divergence(mean, logvar):
        return kl_divergence(MultivariateNormal(mean, torch.diag_embed(logvar.exp())), exact)

    q = [tensor.clone().requires_grad_() for tensor in model.best_diagonal_posterior(x)]
    for gradient in torch.autograd.grad(divergence(*q).sum(), q):
        assert gradient.abs().max() < 1e-9
    for _ in range(5):
        other = [tensor.detach() + 0.1 * torch.randn_like(tensor) for tensor in q]
        assert (divergence(*other) > model.diagonal_gap()).all()


def test_the_gap_of_the_maximum_likelihood_model_is_zero(x):
    """Oracle 4: the columns of W are orthogonal there."""
    assert fit_ppca(x, K).diagonal_gap().abs() < 1e-12


# ------------------------------------------------------------------ linear autoencoder


def autoencoder(x, encoder, decoder, penalty=None) -> LinearAutoencoder:
    """An autoencoder in double precision with the given weights, centred on the data."""
    net = LinearAutoencoder(DIM, K, offset=x.mean(dim=0), penalty=penalty).double()
    with torch.no_grad():
        net.encoder.weight.copy_(encoder)
        net.decoder.weight.copy_(decoder)
    return net


def gradient_norm(net, x) -> float:
    net.zero_grad()
    net.loss(x).total.backward()
    return max(float(p.grad.abs().max()) for p in net.parameters())


@pytest.mark.parametrize("kept", [(0, 1, 2), (0, 1, 5), (1, 3, 4), (3, 4, 5)])
def test_every_set_of_components_is_stationary_and_loses_the_variance_of_the_others(x, kept):
    """Oracle 1: Baldi & Hornik, (0, 1, 2) is the minimum, all other sets are saddles."""
    found = pca(x)
    chosen = found.components[list(kept)]
    net = autoencoder(x, chosen, chosen.T)
    expected = found.eigenvalues.sum() - found.eigenvalues[list(kept)].sum()
    assert_equal_to_ten_digits(net.loss(x).total.detach(), expected)
    assert gradient_norm(net, x) < 1e-10


def test_any_invertible_change_of_code_gives_the_same_loss(x):
    found = pca(x, K)
    for _ in range(5):
        mixing = torch.randn(K, K, dtype=torch.float64)
        net = autoencoder(x, mixing @ found.components, found.components.T @ torch.linalg.inv(mixing))
        tail = pca(x).eigenvalues[K:].sum()
        assert_equal_to_ten_digits(net.loss(x).total.detach(), tail)
        assert gradient_norm(net, x) < 1e-8
        assert_equal_to_ten_digits(net.decode(net.encode(x)), found.reconstruct(x))


@pytest.fixture
def penalised(x):
    """Weights of the penalty, the exact minimiser of Bao et al. (2020) and the exact minimum."""
    penalty = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    found = pca(x)
    shrunk = (1 - penalty / found.eigenvalues[:K]).sqrt()
    encoder = shrunk.unsqueeze(1) * found.components[:K]
    minimum = (2 * penalty - penalty.square() / found.eigenvalues[:K]).sum() + found.eigenvalues[K:].sum()
    return penalty, encoder, minimum


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_the_penalised_autoencoder_is_stationary_at_its_exact_minimum(x, penalised, signs):
    """Oracle 7: P = diag(+-1) is free."""
    penalty, encoder, minimum = penalised
    encoder = encoder * torch.tensor(signs).unsqueeze(1)
    net = autoencoder(x, encoder, encoder.T, penalty)
    assert gradient_norm(net, x) < 1e-10
    assert_equal_to_ten_digits(net.loss(x).total.detach(), minimum)


def test_training_the_penalised_autoencoder_finds_the_components_themselves(x, penalised):
    penalty, _, minimum = penalised
    net = LinearAutoencoder(DIM, K, offset=x.mean(dim=0), penalty=penalty).double()
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        total = net.loss(x).total
        total.backward()
        return total

    optimizer.step(closure)
    assert net.loss(x).total.item() == pytest.approx(minimum.item(), rel=1e-9)
    assert axis_distance(pca(x, K).components, net.decoder.weight) < 1e-6


def test_equal_weights_leave_every_rotation_free_and_different_weights_do_not(x, penalised):
    penalty, encoder, _ = penalised
    rotation = torch.linalg.qr(torch.randn(K, K, dtype=torch.float64)).Q

    def losses(weights):
        turned = rotation @ encoder
        straight = autoencoder(x, encoder, encoder.T, weights).loss(x)
        return straight.total.item(), autoencoder(x, turned, turned.T, weights).loss(x).total.item()

    same, also = losses(penalty.mean().expand(K))
    assert also == pytest.approx(same, rel=1e-12)
    lowest, higher = losses(penalty)
    assert higher > lowest + 0.01


def test_the_parts_of_the_loss_add_up(x, penalised):
    penalty, encoder, _ = penalised
    loss = autoencoder(x, encoder, 2 * encoder.T, penalty).loss(x)
    assert loss.parts.keys() == {"reconstruction", "penalty"}
    assert_equal_to_ten_digits(loss.total, loss.parts["reconstruction"] + loss.parts["penalty"])
    norms = encoder.square().sum(dim=1) + (2 * encoder).square().sum(dim=1)
    assert_equal_to_ten_digits(loss.parts["penalty"].detach(), (penalty * norms).sum())


def test_without_an_offset_the_code_of_zero_is_zero():
    net = LinearAutoencoder(DIM, K)
    assert net.encode(torch.zeros(1, DIM)).abs().max() == 0
    assert net.loss(torch.ones(2, DIM)).parts["penalty"] == 0


def test_the_regularised_optimum_is_the_closed_form_of_the_fixture(x, penalised):
    """Oracle 7."""
    penalty, encoder, minimum = penalised
    got = regularised_optimum(x, penalty)
    assert_equal_to_ten_digits(got[0], encoder)
    assert_equal_to_ten_digits(got[1], encoder.T)
    assert_equal_to_ten_digits(got[2], minimum)


# Falling weights; one and three that are not below their eigenvalues; zeros; as many as dimensions.
WEIGHTS = [[0.6, 0.1, 0.3], [0.5, 3.0, 0.2], [20.0, 30.0, 40.0], [0.0, 0.0], [0.4], [0.5] * 6, [0.02] * 6]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_regularised_optimum_is_stationary_and_its_minimum_is_the_loss(x, weights):
    """Oracle 7, with collapsed code dimensions and in any order."""
    penalty = torch.tensor(weights, dtype=torch.float64)
    encoder, decoder, minimum = regularised_optimum(x, penalty)
    net = LinearAutoencoder(DIM, len(weights), offset=x.mean(dim=0), penalty=penalty).double()
    with torch.no_grad():
        net.encoder.weight.copy_(encoder)
        net.decoder.weight.copy_(decoder)
    assert gradient_norm(net, x) < 1e-9
    assert_equal_to_ten_digits(net.loss(x).total.detach(), minimum)


@pytest.mark.parametrize("weights", [w for w in WEIGHTS if len(w) < 6])
@pytest.mark.parametrize("seed", [1, 2])
def test_training_from_any_start_ends_at_the_regularised_optimum(x, weights, seed):
    """Oracle 7: nothing lies below, and training gets there."""
    torch.manual_seed(seed)
    penalty = torch.tensor(weights, dtype=torch.float64)
    encoder, _, minimum = regularised_optimum(x, penalty)
    net = LinearAutoencoder(DIM, len(weights), offset=x.mean(dim=0), penalty=penalty).double()
    assert minimise(net, lambda: net.loss(x).total) == pytest.approx(minimum.item(), rel=1e-8)
    lengths = net.encoder.weight.detach().norm(dim=1)
    if penalty.max() > 0:
        torch.testing.assert_close(lengths, encoder.norm(dim=1), rtol=1e-3, atol=1e-3)


def test_equal_weights_are_stationary_at_every_rotation_and_different_ones_are_not(x):
    """Oracle 7: Kunin et al., any orthogonal O."""
    equal = torch.full((K,), 0.3, dtype=torch.float64)
    different = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    for _ in range(3):
        rotation = torch.linalg.qr(torch.randn(K, K, dtype=torch.float64)).Q
        encoder, _, minimum = regularised_optimum(x, equal)
        net = autoencoder(x, rotation @ encoder, (rotation @ encoder).T, equal)
        assert gradient_norm(net, x) < 1e-9
        assert_equal_to_ten_digits(net.loss(x).total.detach(), minimum)
        encoder, _, _ = regularised_optimum(x, different)
        assert gradient_norm(autoencoder(x, rotation @ encoder, (rotation @ encoder).T, different), x) > 0.01


def test_the_regularised_optimum_of_data_without_variance_is_zero_and_finite():
    encoder, _, minimum = regularised_optimum(torch.ones(5, 3), torch.tensor([0.0, 1.0]))
    assert encoder.abs().max() == 0
    assert minimum == 0


def test_the_gradient_of_the_autoencoder_loss(x):
    penalty = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    net = LinearAutoencoder(DIM, K, offset=x.mean(dim=0), penalty=penalty).double()
    check_gradient(net, lambda module: module.loss(x[:5]).total)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset": torch.zeros(3)}, r"^offset has shape \(3,\) but needs \(6,\)"),
        ({"penalty": torch.zeros(6)}, r"^penalty has shape \(6,\) but needs \(3,\)"),
        ({"penalty": torch.tensor([0.1, -0.5, 0.2])}, r"^penalty has the weight -0\.5"),
    ],
)
def test_the_constructor_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinearAutoencoder(DIM, K, **arguments)


def test_bad_data_are_refused():
    net = LinearAutoencoder(DIM, K)
    with pytest.raises(ValueError, match=r"^x has shape \(4, 5\) but needs \(batch, D\) = \(4, 6\)"):
        net.loss(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"^images has shape \(4, 1, 2, 3\)"):
        net.validate(torch.zeros(4, 1, 2, 3))
    with pytest.raises(ValueError, match=r"^images holds 24 values that are NaN"):
        net.validate(torch.full((4, DIM), math.nan))
    with pytest.raises(TypeError, match=r"^images has dtype torch\.int64"):
        net.validate(torch.zeros(4, DIM, dtype=torch.int64))


# ------------------------------------------------------------------ linear denoising

SIGMA = 0.8


def test_the_optimal_denoiser_and_its_loss(x):
    """Oracle 8: A = S (S + sigma^2 I)^-1, and sum lambda sigma^2 / (lambda + sigma^2) is left."""
    mean, matrix, loss = optimal_linear_denoiser(x, SIGMA)
    centred, identity = x - x.mean(dim=0), torch.eye(DIM).double()
    cov = centred.T @ centred / COUNT
    assert_equal_to_ten_digits(mean, x.mean(dim=0))
    assert_equal_to_ten_digits(matrix, cov @ torch.linalg.inv(cov + SIGMA**2 * identity))
    left = (centred @ (matrix - identity)).square().sum(dim=1).mean() + SIGMA**2 * matrix.square().sum()
    assert_equal_to_ten_digits(loss, left)


def test_the_optimal_denoiser_is_the_regression_of_clean_on_noisy():
    # Noise that is exactly uncorrelated with the data turns the mean over the noise into one sample.
    columns = torch.linalg.qr(torch.randn(50, 6, dtype=torch.float64) - 0.5).Q
    columns = torch.linalg.qr(torch.cat([torch.ones(50, 1).double(), columns], dim=1)).Q[:, 1:]
    clean = 50**0.5 * columns[:, :3] @ torch.randn(3, 3, dtype=torch.float64) + 2
    noise = SIGMA * 50**0.5 * columns[:, 3:]
    mean, matrix, loss = optimal_linear_denoiser(clean, SIGMA)
    design = torch.cat([clean + noise, torch.ones(50, 1).double()], dim=1)
    fitted = design @ torch.linalg.lstsq(design, clean).solution
    assert_equal_to_ten_digits(mean + (clean + noise - mean) @ matrix, fitted)
    assert_equal_to_ten_digits(loss, (fitted - clean).square().sum(dim=1).mean())


def denoising(x, code_dim=DIM) -> LinearDenoisingAutoencoder:
    return LinearDenoisingAutoencoder(DIM, code_dim, noise=SIGMA, offset=x.mean(dim=0)).double()


@pytest.mark.parametrize("code_dim", [DIM, K])
def test_the_trained_linear_denoiser_is_the_optimal_one(x, code_dim):
    """Oracle 8; with fewer code dimensions it is the part along the first components."""
    net, found = denoising(x, code_dim), pca(x)
    _, matrix, loss = optimal_linear_denoiser(x, SIGMA)
    kept = found.components[:code_dim]
    kept_lambda, dropped = found.eigenvalues[:code_dim], found.eigenvalues[code_dim:]
    lowest = (kept_lambda * SIGMA**2 / (kept_lambda + SIGMA**2)).sum() + dropped.sum()
    if code_dim == DIM:
        assert_equal_to_ten_digits(lowest, loss)
    assert minimise(net, lambda: net.expected_loss(x)) == pytest.approx(lowest.item(), rel=1e-9)
    product = (net.decoder.weight @ net.encoder.weight).detach()
    torch.testing.assert_close(product, matrix @ kept.T @ kept, rtol=0, atol=1e-4)


def test_training_on_drawn_noise_comes_close_to_the_optimal_denoiser(x):
    """Oracle 8, by stochastic gradient descent: within 1 % of the lowest expected loss."""
    net = denoising(x)
    lowest = optimal_linear_denoiser(x, SIGMA)[2].item()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        net.loss(x).total.backward()
        optimizer.step()
        schedule.step()
    assert lowest < net.expected_loss(x).item() < 1.01 * lowest


def test_the_denoising_loss_is_unbiased_for_its_expectation(x):
    # 2,000 draws of the mean over 300 examples: the standard error is about 0.1 % of the value.
    net = denoising(x, K)
    with torch.no_grad():
        draws = torch.stack([net.loss(x).total for _ in range(2000)])
        score = (draws.mean() - net.expected_loss(x)) / (draws.std() / 2000**0.5)
        assert draws.std() / 2000**0.5 < 0.002 * draws.mean()
        assert score.abs() < 4
        assert net.loss(x).parts.keys() == {"reconstruction"}


def test_the_gradient_of_the_expected_denoising_loss(x):
    check_gradient(denoising(x, K), lambda module: module.expected_loss(x[:5]))


# ----------------------------------------------------------------------------- distances


def plane(angle: float) -> torch.Tensor:
    """Two columns in the plane of the first two of three axes, turned by the angle."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c], [0.0, 0.0]])


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2])
def test_a_rotation_within_the_subspace_is_seen_by_the_axes_alone(angle):
    components = torch.eye(3)[:2]
    expected = 1 - max(math.cos(angle) ** 2, math.sin(angle) ** 2)
    assert axis_distance(components, plane(angle)) == pytest.approx(expected, abs=1e-6)
    assert subspace_distance(components, plane(angle)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 4, math.pi / 2])
def test_a_tilt_out_of_the_subspace_is_seen_by_both(angle):
    components = torch.eye(3)[:2]
    tilted = torch.tensor([[1.0, 0.0], [0.0, math.cos(angle)], [0.0, math.sin(angle)]])
    expected = math.sin(angle) ** 2 / 2
    assert subspace_distance(components, tilted) == pytest.approx(expected, abs=1e-6)
    assert axis_distance(components, tilted) == pytest.approx(expected, abs=1e-6)


def test_distances_do_not_depend_on_the_order_sign_or_length_of_the_columns():
    components = torch.linalg.qr(torch.randn(DIM, K)).Q.T
    decoder = components.T[:, [2, 0, 1]] * torch.tensor([-3.0, 0.01, 5.0])
    assert axis_distance(components, decoder) == pytest.approx(0, abs=1e-6)
    assert subspace_distance(components, decoder) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "decoder",
    [
        [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]],  # a dead column
        [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]],  # parallel columns
    ],
)
def test_a_decoder_that_spans_half_of_the_subspace_is_half_way_from_it(decoder):
    assert subspace_distance(torch.eye(3)[:2], torch.tensor(decoder)) == pytest.approx(0.5, abs=1e-6)
    assert axis_distance(torch.eye(3)[:2], torch.tensor(decoder)) == pytest.approx(0.5, abs=1e-6)


def test_a_decoder_that_spans_nothing_is_as_far_as_can_be():
    assert subspace_distance(torch.eye(3)[:2], torch.zeros(3, 2)) == 1
    assert axis_distance(torch.eye(3)[:2], torch.zeros(3, 2)) == 1


def test_distances_refuse_a_transposed_decoder():
    for distance in (axis_distance, subspace_distance):
        with pytest.raises(ValueError, match=r"^decoder has shape \(2, 3\) but needs \(D, k\) = \(3, 2\)"):
            distance(torch.eye(3)[:2], torch.zeros(2, 3))


@pytest.mark.parametrize("seed", range(20))
def test_distances_are_never_negative(seed):
    # Without a clamp, single precision gives about -1e-7 for some of these.
    torch.manual_seed(seed)
    components = torch.linalg.qr(torch.randn(50, 4)).Q.T
    assert axis_distance(components, 3 * components.T) >= 0
    assert subspace_distance(components, components.T @ torch.randn(4, 4)) >= 0


def test_a_decoder_of_nan_is_not_perfect():
    assert not axis_distance(torch.eye(3)[:2], torch.full((3, 2), math.nan)) < 1


def test_the_axis_distance_asks_for_a_column_for_each_component():
    # Both columns lie near the first axis: the first component is found, the second is not.
    decoder = torch.tensor([[1.0, 1.0], [0.0, 0.1], [0.0, 0.0]]).double()
    expected = (0 + 1 - 0.01 / 1.01) / 2
    assert axis_distance(torch.eye(3)[:2].double(), decoder) == pytest.approx(expected, rel=1e-9)


# ----------------------------------------------------------------------------- linear VAE


@pytest.fixture
def vae(x) -> LinearVAE:
    """A model far from any optimum; nothing in it is zero, one or diagonal."""
    net = LinearVAE(DIM, K, offset=x.mean(dim=0), variance=0.4, learn_variance=True)
    with torch.no_grad():
        net.logvar.copy_(torch.tensor([-1.0, -0.3, 0.4]))
    return net


def optimal(x, k, variance, beta=1.0) -> LinearVAE:
    """A model that stands on its closed-form optimum."""
    best = linear_vae_optimum(x, k, variance, beta)
    net = LinearVAE(DIM, k, offset=x.mean(dim=0), variance=variance, beta=beta)
    with torch.no_grad():
        net.decoder.weight.copy_(best.weight)
        net.encoder.weight.copy_(best.encoder)
        net.logvar.copy_(best.logvar)
    return net


def test_the_expected_log_likelihood_is_exact(vae, x):
    """Oracle 16: for a quadratic, 2k points at +-sqrt(k) standard deviations give the exact mean."""
    mean, logvar = vae.encode(x)
    values = []
    for j in range(K):
        step = torch.zeros_like(mean)
        step[:, j] = K**0.5 * torch.exp(0.5 * logvar[:, j])
        values += [vae.log_likelihood(x, mean + step), vae.log_likelihood(x, mean - step)]
    exact = vae.expected_log_likelihood(x)
    assert_equal_to_ten_digits(exact, torch.stack(values).mean(dim=0))
    # Decoding the mean instead of z leaves out the trace.
    trace = torch.trace(vae.decoder.weight @ torch.diag(vae.logvar.exp()) @ vae.decoder.weight.T)
    missing = vae.log_likelihood(x, mean) - exact
    assert_equal_to_ten_digits(missing, (0.5 * trace / 0.4).expand(COUNT))


def test_the_bound_is_the_evidence_less_the_divergence_from_the_posterior(vae, x):
    exact = vae.ppca()
    mean, logvar = vae.encode(x)
    q = MultivariateNormal(mean, torch.diag_embed(logvar.exp()))
    gap = kl_divergence(q, MultivariateNormal(*exact.posterior(x)))
    assert_equal_to_ten_digits(vae.elbo(x), exact.log_likelihood(x) - gap)
    assert_equal_to_ten_digits(vae.loss(x).total, -vae.elbo(x).mean())


def test_the_bound_is_tight_for_every_x_at_the_maximum_likelihood(x):
    """Oracle 3, and oracle 2 for the mean."""
    best = fit_ppca(x, K)
    net = optimal(x, K, best.variance.item())
    assert_equal_to_ten_digits(net.elbo(x), best.log_likelihood(x))
    assert_equal_to_ten_digits(net.ppca().log_likelihood(x), best.log_likelihood(x))
    assert_equal_to_ten_digits(
        linear_vae_optimum(x, K, best.variance.item()).minimum, -best.log_likelihood(x).mean()
    )


def test_the_best_diagonal_encoder_reaches_the_gap_of_its_decoder(vae, x):
    """Oracle 4: with the decoder fixed, the best bound is the evidence less the gap."""
    exact = vae.ppca()
    mean, logvar = exact.best_diagonal_posterior(x)
    with torch.no_grad():
        vae.encoder.weight.copy_(torch.linalg.lstsq(x - vae.offset, mean).solution.T)
        vae.logvar.copy_(logvar[0])
    assert_equal_to_ten_digits(vae.elbo(x), exact.log_likelihood(x) - exact.diagonal_gap())
    vae.loss(x).total.backward()
    assert max(vae.encoder.weight.grad.abs().max(), vae.logvar.grad.abs().max()) < 1e-10


def test_rate_distortion_and_information_at_the_aligned_optimum(x):
    """Oracle 5: Var E[z_j|x], KL_j, distortion and I(x; z) at the maximum likelihood."""
    eigenvalues, variance = pca(x, K).eigenvalues, fit_ppca(x, K).variance
    best = linear_vae_optimum(x, K, variance.item())
    net = optimal(x, K, variance.item())
    mean, logvar = net.encode(x)
    assert_equal_to_ten_digits(mean.var(dim=0, correction=0).detach(), 1 - variance / eigenvalues)
    kl = net.kl_per_dimension(mean, logvar).mean(dim=0).detach()
    assert_equal_to_ten_digits(kl, 0.5 * (eigenvalues / variance).log())
    assert_equal_to_ten_digits(best.kl, kl)
    distortion = DIM / 2 * ((2 * math.pi * variance).log() + 1)
    assert_equal_to_ten_digits(best.distortion, distortion)
    assert_equal_to_ten_digits(net.loss(x).parts["reconstruction"].detach(), distortion)
    # I(x; z) of jointly Gaussian x and z, from the covariance of the codes and what q adds to it.
    spread = torch.cov(mean.detach().T, correction=0) + torch.diag(logvar[0].detach().exp())
    assert_equal_to_ten_digits(spread, torch.eye(K).double())
    information = 0.5 * (torch.logdet(spread) - logvar[0].detach().sum())
    assert_equal_to_ten_digits(best.kl.sum(), information)


# Variance, beta, and how many of the eigenvalues (about 9, 4, 2) lie above their product.
SETTINGS = [
    (0.3, 1.0, 3),
    (0.3, 4.0, 3),
    (1.5, 1.0, 3),
    (0.5, 5.0, 2),
    (2.5, 2.0, 1),
    (20.0, 1.0, 0),
    (1.5, 0.1, 3),
]


@pytest.mark.parametrize(("variance", "beta", "active"), SETTINGS)
def test_the_optimum_of_the_beta_vae_is_stationary_and_its_parts_are_exact(x, variance, beta, active):
    """Oracle 6: W^2 = (lambda - beta sigma^2)_+, active if and only if lambda > beta sigma^2."""
    best, net = linear_vae_optimum(x, K, variance, beta), optimal(x, K, variance, beta)
    loss = net.loss(x)
    loss.total.backward()
    for parameter in (net.encoder.weight, net.decoder.weight, net.logvar):
        assert parameter.grad.abs().max() < 1e-10
    assert_equal_to_ten_digits(loss.total.detach(), best.minimum)
    assert_equal_to_ten_digits(loss.parts["reconstruction"].detach(), best.distortion)
    assert_equal_to_ten_digits(loss.parts["kl"].detach(), best.kl.sum())
    assert best.active.tolist() == [j < active for j in range(K)]
    lengths = (pca(x, K).eigenvalues - beta * variance).clamp(min=0)
    assert_equal_to_ten_digits(best.weight.square().sum(dim=0), lengths)
    # The same weights as a VAE whose noise is beta times as large.
    other = linear_vae_optimum(x, K, beta * variance)
    assert_equal_to_ten_digits(best.weight, other.weight)
    assert_equal_to_ten_digits(best.encoder, other.encoder)
    assert_equal_to_ten_digits(best.logvar, other.logvar)


@pytest.mark.parametrize(("variance", "beta", "active"), SETTINGS[:6])
def test_training_keeps_exactly_the_latent_variables_above_the_threshold(x, variance, beta, active):
    """Oracle 6: posterior collapse, by training from a random start."""
    net = LinearVAE(DIM, K, offset=x.mean(dim=0), variance=variance, beta=beta)
    best = linear_vae_optimum(x, K, variance, beta)
    assert minimise(net, lambda: net.loss(x).total) == pytest.approx(best.minimum.item(), rel=1e-9)
    kl = net.kl_per_dimension(*net.encode(x)).mean(dim=0).sort(descending=True).values.detach()
    torch.testing.assert_close(kl, best.kl, rtol=1e-3, atol=1e-5)
    assert int((kl > 0.01).sum()) == active
    if active == K:  # no rotation is left: the columns are the principal axes
        assert axis_distance(pca(x, K).components, net.decoder.weight) < 1e-5


def test_a_learned_variance_ends_at_probabilistic_pca(x):
    """Oracle 2: sigma^2 is the mean of the eigenvalues left out."""
    net, best = LinearVAE(DIM, K, offset=x.mean(dim=0), learn_variance=True), fit_ppca(x, K)
    lowest = minimise(net, lambda: net.loss(x).total)
    assert lowest == pytest.approx(-best.log_likelihood(x).mean().item(), rel=1e-9)
    assert net.log_variance.exp().item() == pytest.approx(best.variance.item(), rel=1e-4)


# What people write: weights of the squared error and of the KL, each a sum over dimensions.
REDUCTIONS = {
    "half the sum, sum": (0.5, 1.0, 1.0),
    "sum, sum": (1.0, 1.0, 0.5),
    "mean over D, sum": (1 / DIM, 1.0, DIM / 2),
    "sum, mean over k": (1.0, 1 / K, 1 / (2 * K)),
    "mean over D, mean over k": (1 / DIM, 1 / K, DIM / (2 * K)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_wrong_reduction_is_an_exact_effective_variance(x, name):
    """Oracle 6: with noise of variance 1, the effective variance is the beta of the same loss."""
    error_weight, kl_weight, effective = REDUCTIONS[name]
    net = optimal(x, K, 1.0, beta=effective)
    mean, logvar = net.encode(x)
    error = (net.decode(mean) - x).square().sum(dim=1)
    error = error + (logvar.exp() * net.decoder.weight.square().sum(dim=0)).sum(dim=1)
    wrong = (error_weight * error + kl_weight * gaussian_kl(mean, logvar)).mean()
    for gradient in torch.autograd.grad(wrong, [net.encoder.weight, net.decoder.weight, net.logvar]):
        assert gradient.abs().max() < 1e-10
    # And it is the same loss up to a factor and a constant.
    constant = DIM / 2 * math.log(2 * math.pi)
    assert_equal_to_ten_digits(wrong / (2 * error_weight) + constant, net.loss(x).total)


def test_the_optimum_is_finite_where_the_data_do_not_vary():
    flat = torch.cat([torch.randn(50, 1), torch.zeros(50, 2)], dim=1)
    best = linear_vae_optimum(flat, 3, variance=0.1)
    assert best.active.tolist() == [True, False, False]
    assert all(torch.isfinite(tensor).all() for tensor in best)


def test_the_mean_over_pixels_makes_everything_collapse():
    """Oracle 6: MNIST's 784 pixels give an effective variance of 392, above any of its eigenvalues."""
    images = torch.rand(100, 784, dtype=torch.float64)
    assert not linear_vae_optimum(images, 5, variance=784 / 2).active.any()
    assert linear_vae_optimum(images, 5, variance=0.01).active.all()


def test_beta_can_be_overridden_for_annealing(vae, x):
    parts = vae.loss(x).parts
    for beta in (0.0, 0.3, torch.tensor(2.0, dtype=torch.float64)):
        expected = parts["reconstruction"] + beta * parts["kl"]
        assert_equal_to_ten_digits(vae.loss(x, beta=beta).total, expected)


def test_the_gradient_of_the_linear_vae_loss(vae, x):
    check_gradient(vae, lambda module: module.loss(x[:5], beta=0.7).total)


def test_the_parts_of_the_interface_agree(vae, x):
    mean, logvar = vae.encode(x)
    assert mean.shape == logvar.shape == (COUNT, vae.latent_dim)
    assert_equal_to_ten_digits(vae.kl_per_dimension(mean, logvar).sum(dim=1), gaussian_kl(mean, logvar))
    z = torch.randn(COUNT, K, dtype=torch.float64)
    assert_equal_to_ten_digits(vae.log_joint(x, z), vae.ppca().log_joint(x, z))
    prior = MultivariateNormal(torch.zeros(K).double(), torch.eye(K).double())
    assert_equal_to_ten_digits(vae.log_prior(z), prior.log_prob(z))
    assert_equal_to_ten_digits(vae.log_likelihood(x, z) + vae.log_prior(z), vae.log_joint(x, z))
    assert_equal_to_ten_digits(vae.decode(z), vae.offset + z @ vae.decoder.weight.T)
    assert not vae.elbo(x).requires_grad
    assert vae.loss(x).parts.keys() == {"reconstruction", "kl"}


def test_samples_of_the_linear_vae_have_the_moments_of_its_mean(vae):
    # 20,000 draws: the standard error of a variance is 1 % of it.
    draws, weight = vae.sample(20000), vae.decoder.weight.detach()
    cov = weight @ weight.T
    errors = ((cov.diagonal().outer(cov.diagonal()) + cov.square()) / 20000).sqrt()
    assert ((torch.cov(draws.T) - cov) / errors).abs().max() < 4
    assert ((draws.mean(dim=0) - vae.offset) / (cov.diagonal() / 20000).sqrt()).abs().max() < 4


def test_log_weights_of_the_exact_posterior_are_the_evidence(x):
    """Oracle 3: every single weight is p(x)."""
    best = fit_ppca(x, K)
    weights = optimal(x, K, best.variance.item()).log_weights(x, 4)
    assert weights.shape == (4, COUNT)
    assert_equal_to_ten_digits(weights.detach(), best.log_likelihood(x).expand(4, COUNT))


def test_log_weights_average_to_the_bound_and_their_exponentials_to_the_evidence(vae, x):
    # 20,000 draws for each of 5 examples; a factor of 1.01 in the weights is a shift of many errors.
    with torch.no_grad():
        vae.logvar.copy_(vae.ppca().best_diagonal_posterior(x)[1][0])
        vae.encoder.weight.copy_(torch.linalg.lstsq(x - vae.offset, vae.ppca().posterior(x)[0]).solution.T)
        weights = vae.log_weights(x[:5], 20000)
        score = (weights.mean(dim=0) - vae.elbo(x[:5])) / (weights.std(dim=0) / 20000**0.5)
        assert score.abs().max() < 4
        evidence = vae.ppca().log_likelihood(x[:5])
        relative = (weights - evidence).exp()
        assert ((relative.mean(dim=0) - 1) / (relative.std(dim=0) / 20000**0.5)).abs().max() < 4
        assert (log_mean_exp(weights) - evidence).abs().max() < 0.05


def test_log_weights_are_differentiable_through_the_draws(vae, x):
    # The mean of 400 gradients, of 20 draws each, against the gradient of the exact bound.
    values = list(vae.parameters())
    exact = torch.autograd.grad(vae.loss(x[:20]).total, values)
    draws = [torch.autograd.grad(-vae.log_weights(x[:20], 20).mean(), values) for _ in range(400)]
    for expected, got in zip(exact, zip(*draws)):
        got = torch.stack(got)
        assert ((got.mean(dim=0) - expected) / (got.std(dim=0) / 20)).abs().max() < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_linear_vae_keeps_the_dtype_of_its_offset_and_can_be_fitted(x, dtype):
    x = x.to(dtype)
    net = LinearVAE(DIM, K, offset=x.mean(dim=0))
    before = net.loss(x).total.item()
    fit(net, x, epochs=20, batch_size=100, lr=0.02, progress=False)
    assert net.loss(x).total.dtype == dtype
    assert linear_vae_optimum(x, K, 1.0).minimum < net.loss(x).total.item() < before - 1


# ----------------------------------------------------------------------------- logistic PCA


@pytest.fixture
def greys() -> torch.Tensor:
    """Grey values whose logits lie in a plane: what logistic PCA can rebuild and PCA cannot."""
    logits = 3 * torch.randn(200, 2, dtype=torch.float64) @ torch.randn(2, 12, dtype=torch.float64) - 1
    return logits.sigmoid()


@pytest.fixture
def bits() -> torch.Tensor:
    """Binary data with structure, and two pixels that never change."""
    logits = 2 * torch.randn(150, 3, dtype=torch.float64) @ torch.randn(3, 20, dtype=torch.float64)
    x = torch.bernoulli(logits.sigmoid())
    x[:, 0], x[:, 1] = 0, 1
    return x


def test_the_objective_never_rises(bits):
    history = fit_logistic_pca(bits, 3, iterations=200).history
    assert len(history) == 21
    assert all(later <= earlier for earlier, later in pairwise(history))
    assert history[-1] < 0.7 * history[0]


def test_codes_and_loadings_are_stationary_together(bits):
    """The gradient of the whole objective, written out here, with the codes solved for by encode."""
    model = fit_logistic_pca(bits, 3, ridge=0.02, iterations=1500)
    offset, weight = model.offset.requires_grad_(), model.weight.requires_grad_()
    codes = model.encode(bits).requires_grad_()
    logits = offset + codes @ weight.T
    cross_entropy = -(bits * logits.sigmoid().log() + (1 - bits) * (-logits).sigmoid().log()).sum()
    ridge = codes.square().sum() / len(bits) + weight.square().sum() + offset.square().sum()
    total = cross_entropy / len(bits) + 0.01 * ridge
    assert total.item() == pytest.approx(model.history[-1], rel=1e-9)
    for gradient in torch.autograd.grad(total, [offset, weight, codes]):
        assert gradient.abs().max() < 1e-5


def test_grey_values_with_logits_in_a_plane_are_rebuilt(greys):
    rebuilt = fit_logistic_pca(greys, 2, ridge=1e-7, iterations=500).reconstruct(greys)
    assert (rebuilt - greys).abs().max() < 0.005
    assert (pca(greys, 2).reconstruct(greys) - greys).abs().max() > 0.1


def test_encode_is_a_logistic_regression_of_the_pixels_on_the_loadings(bits):
    weight = torch.randn(20, 3, dtype=torch.float64)
    model = LogisticPCA(torch.zeros(20).double(), weight, 0.1, [])
    regression = LogisticRegression(C=1 / 0.1, fit_intercept=False, tol=1e-12, max_iter=10000)
    for x, z in zip(bits[:5], model.encode(bits[:5])):
        expected = torch.from_numpy(regression.fit(weight.numpy(), x.numpy()).coef_[0])
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("ridge", [1e-4, 1.0])
def test_encode_finds_the_minimum_where_bare_newton_steps_would_overshoot(bits, dtype, scale, ridge):
    weight = scale * torch.randn(20, 3, dtype=dtype)
    model = LogisticPCA(2 * scale * torch.randn(20, dtype=dtype), weight, ridge, [])
    x = bits.to(dtype)
    codes = model.encode(x).requires_grad_()
    assert codes.dtype == dtype
    value = model.objective(x, codes)
    (gradient,) = torch.autograd.grad(value.sum(), codes)
    if dtype == torch.float64:
        assert gradient.abs().max() < 1e-6 * max(scale, 1)
    for size in (0.01, 1.0):
        other = model.objective(x, codes + size * torch.randn_like(codes))
        assert (other >= value * (1 - 1e-5)).all()


def test_pixels_that_never_change_are_learnt_and_stay_finite(bits):
    model = fit_logistic_pca(bits, 3)
    rebuilt = model.reconstruct(bits)
    assert rebuilt[:, 0].max() < 0.02
    assert rebuilt[:, 1].min() > 0.98
    assert all(torch.isfinite(tensor).all() for tensor in (model.offset, model.weight, rebuilt))


def test_the_loadings_are_orthogonal_by_falling_length_and_the_fit_is_repeatable(bits):
    model = fit_logistic_pca(bits, 3)
    products = model.weight.T @ model.weight
    assert (products - torch.diag(products.diagonal())).abs().max() < 1e-9 * products.max()
    assert (products.diagonal().diff() < 0).all()
    assert torch.equal(fit_logistic_pca(bits, 3).weight, model.weight)


def test_parts_of_the_data_do_not_change_the_result():
    # 4,500 examples take three parts in the fit and five in encode.
    logits = 2 * torch.randn(4500, 2, dtype=torch.float64) @ torch.randn(2, 8, dtype=torch.float64)
    x = torch.bernoulli(logits.sigmoid())
    model = fit_logistic_pca(x, 2, iterations=50)
    codes = model.encode(x)
    assert_equal_to_ten_digits(codes[[0, 2500, 4499]], model.encode(x[[0, 2500, 4499]]))
    ridge = 0.5e-3 * (model.weight.square().sum() + model.offset.square().sum())
    # The codes of the fit are not quite those that are best for its loadings.
    best = (model.objective(x, codes).mean() + ridge).item()
    assert 0 <= model.history[-1] - best < 0.02 * best


def test_logistic_pca_beats_pca_on_images_in_both_errors():
    digits = data.load("digits")
    x, test = digits.train[:600].flatten(1), digits.test.flatten(1)
    ours, theirs = fit_logistic_pca(x, 8, ridge=1e-2).reconstruct(test), pca(x, 8).reconstruct(test)
    assert ours.dtype == torch.float32
    squared = [(rebuilt - test).square().sum(dim=1).mean().item() for rebuilt in (ours, theirs)]
    assert squared[0] < 0.95 * squared[1]
    entropy = torch.nn.functional.binary_cross_entropy
    assert entropy(ours, test) < entropy(theirs.clamp(1e-3, 1 - 1e-3), test)


# ----------------------------------------------------------------------------- bad inputs

X = torch.rand(20, 4)
LOGISTIC = LogisticPCA(torch.zeros(4), torch.randn(4, 2), 1e-3, [])
NET = LinearVAE(4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regularised_optimum(X, torch.zeros(5)), r"^penalty has 5 weights but .* 1 and D = 4"),
        (lambda: regularised_optimum(X, torch.tensor([0.1, -1])), r"^penalty has the weight -1 "),
        (lambda: regularised_optimum(X, torch.tensor([math.nan])), r"^penalty has the weight nan "),
        (lambda: optimal_linear_denoiser(X, 0.0), r"^sigma is 0\.0 but must be positive"),
        (lambda: optimal_linear_denoiser(X, math.nan), r"^sigma is nan but must be positive"),
        (lambda: optimal_linear_denoiser(X[0], 1.0), r"^x has shape \(4,\) but needs \(N, D\)"),
        (lambda: LinearDenoisingAutoencoder(4, 2, noise=-1.0), r"^noise is -1\.0 but must be positive"),
        (lambda: LinearDenoisingAutoencoder(4, 2, 0.1).loss(X[:, :3]), r"^x has shape \(20, 3\)"),
        (lambda: LinearVAE(4, 2, offset=torch.zeros(3)), r"^offset has shape \(3,\) but needs \(4,\)"),
        (lambda: LinearVAE(4, 2, variance=0.0), r"^variance is 0\.0 but must be positive"),
        (lambda: LinearVAE(4, 2, beta=-1.0), r"^beta is -1\.0 but must be at least 0"),
        (lambda: NET.loss(X, beta=-0.5), r"^beta is -0\.5 but must be at least 0"),
        (lambda: NET.loss(X[:, :3]), r"^x has shape \(20, 3\) but needs \(batch, D\) = "),
        (
            lambda: NET.decode(torch.zeros(3, 5)),
            r"^z has shape \(3, 5\) but needs \(batch, k\) = \(3, 2\)",
        ),
        (lambda: NET.log_prior(torch.zeros(3, 5)), r"^z has shape \(3, 5\)"),
        (lambda: NET.log_likelihood(X, torch.zeros(3, 2)), r"^mean has shape \(3, 4\)"),
        (lambda: NET.log_weights(X, 0), r"^samples is 0 but must be at least 1"),
        (lambda: NET.validate(X.view(20, 2, 2)), r"^images has shape \(20, 2, 2\)"),
        (lambda: NET.validate(X / 0), r"^images holds 80 values that are NaN or infinite"),
        (lambda: linear_vae_optimum(X, 5, 1.0), r"^k is 5 but must be between 1 and D = 4"),
        (lambda: linear_vae_optimum(X, 2, -1.0), r"^variance is -1\.0 but must be positive"),
        (lambda: linear_vae_optimum(X, 2, 1.0, beta=0.0), r"^beta is 0\.0 but must be positive"),
        (lambda: NET.ppca().log_joint(X, torch.zeros(20, 3)), r"^z has shape \(20, 3\)"),
        (lambda: NET.ppca().best_diagonal_posterior(X[:, :3]), r"^x has shape \(20, 3\)"),
        (lambda: fit_logistic_pca(255 * X, 2), r"^x has values from .* needs \[0, 1\]\. Divide 8-bit"),
        (lambda: fit_logistic_pca(X, 5), r"^k is 5 but must be between 1 and D = 4"),
        (lambda: fit_logistic_pca(X, 2, ridge=0.0), r"^ridge is 0\.0 but must be positive"),
        (lambda: fit_logistic_pca(X, 2, iterations=5), r"^iterations is 5 but must be a multiple of 10"),
        (lambda: fit_logistic_pca(X[:2], 2), r"^x varies in fewer than k = 2 directions"),
        (lambda: fit_logistic_pca(torch.ones(9, 4), 1), r"^x varies in fewer than k = 1 directions"),
        (lambda: LOGISTIC.encode(X - 1), r"^x has values from "),
        (lambda: LOGISTIC.encode(X[:, :3]), r"^x has shape \(20, 3\) but needs"),
        (lambda: LOGISTIC.decode(torch.zeros(3, 4)), r"^z has shape \(3, 4\) but needs"),
        (lambda: LOGISTIC.objective(X, torch.zeros(3, 2)), r"^z has shape \(3, 2\) but needs"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_logistic_pca((255 * X).byte(), 2), r"^x has dtype torch\.uint8 .* x\.float\(\)"),
        (lambda: NET.encode([0.0] * 4), r"^x must be a torch\.Tensor, not list"),
        (lambda: linear_vae_optimum(X.long(), 2, 1.0), r"^x has dtype torch\.int64"),
        (lambda: regularised_optimum(X, torch.tensor([1, 2])), r"^penalty has dtype torch\.int64"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()
