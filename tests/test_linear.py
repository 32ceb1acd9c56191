"""Linear models have exact answers: eigenvalues, matrix inverses and Gaussian conditioning."""

import math

import pytest
import torch
from sklearn.decomposition import PCA as SklearnPCA
from torch.distributions import MultivariateNormal

from aecourse.linear import (
    PPCA,
    LinearAutoencoder,
    axis_distance,
    fit_ppca,
    pca,
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


# ----------------------------------------------------------------------------------- PCA


def test_pca_leaves_the_discarded_singular_values_as_error(x):
    # Eckart & Young: no rank-k approximation of the centred data is better.
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
    # Baldi & Hornik: (0, 1, 2) is the minimum, all other sets are saddles.
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
