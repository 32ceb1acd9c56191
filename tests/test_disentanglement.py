"""Disentanglement scores on codes whose score is known: one to one, mixed, and pure noise."""

import math
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from aecourse.disentanglement import (
    _table_information,
    beta_vae_score,
    dci,
    factor_vae_score,
    mutual_information_gap,
)

SIZES = (3, 4, 5)


def disentanglement(codes, factors):
    return dci(codes, factors).disentanglement


def completeness(codes, factors):
    return dci(codes, factors).completeness


SCORES = [beta_vae_score, factor_vae_score, mutual_information_gap, disentanglement, completeness]
STRICT = SCORES[1:]  # a rotation lowers these


@pytest.fixture
def factors() -> torch.Tensor:
    """Every combination of three independent factors, ten times: (600, 3)."""
    return torch.cartesian_prod(*(torch.arange(n) for n in SIZES)).repeat(10, 1)


def centred(factors):
    """The factors as numbers of mean 0 and variance 1."""
    codes = factors.double() - factors.double().mean(dim=0)
    return codes / codes.std(dim=0)


@pytest.mark.parametrize("score", SCORES)
def test_a_code_that_is_the_factors_scores_one(score, factors):
    assert score(centred(factors), factors) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_further_dimensions_that_never_vary_change_nothing(score, factors):
    codes = torch.cat([centred(factors), torch.zeros(len(factors), 2).double()], dim=1)
    assert score(codes, factors) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_a_constant_code_scores_nothing(score, factors):
    # The classifier of the beta-VAE score can then do no better than to name one factor always.
    assert score(torch.ones(len(factors), 4), factors) <= 1 / 3 + 1e-9


@pytest.mark.parametrize("score", STRICT)
def test_a_rotated_code_scores_low(score, factors):
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert score(centred(factors) @ rotation, factors) < 0.8
    # Every factor in every dimension, by the same amount: rows of a Hadamard matrix.
    signs = torch.tensor([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]]).double()
    assert score(centred(factors) @ signs.T / 2, factors) < (0.8 if score is factor_vae_score else 0.5)


@pytest.mark.parametrize("score", SCORES)
def test_noise_scores_near_chance(score, factors):
    chance = 1 / 3 if score in (beta_vae_score, factor_vae_score) else 0
    # 500 test votes: a standard error of 0.021. Majority votes of pure noise add a little to chance.
    assert score(torch.randn(len(factors), 5), factors) < chance + 0.1


@pytest.mark.parametrize("score", SCORES)
def test_order_sign_and_scale_of_the_dimensions_do_not_matter(score, factors):
    codes = centred(factors) @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    codes = codes + 0.3 * torch.randn_like(codes)
    # Forests break ties, and solvers stop, a little differently.
    tolerance = 0.03 if score in (disentanglement, completeness) else 0.01
    for other in (codes[:, [2, 0, 1]], -codes, codes * torch.tensor([1e-3, 7.0, 400.0]) + 5):
        assert score(other, factors) == pytest.approx(score(codes, factors), abs=tolerance)


@pytest.mark.parametrize("score", SCORES)
def test_scores_do_not_depend_on_the_names_of_the_values_or_on_the_global_generators(score, factors):
    codes = centred(factors) + 0.7 * torch.randn(len(factors), 3)
    first = score(codes, factors)
    np.random.seed(1)
    torch.manual_seed(7)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert score(codes, factors * 10 - 100) == first
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_mutual_information_of_a_table_agrees_with_sklearn():
    a, b = np.random.default_rng(0).integers(6, size=(2, 400))
    for other in (b, a // 2, a):
        assert _table_information(a, other) == pytest.approx(
            mutual_info_score(a, other), rel=1e-12, abs=1e-15
        )
    entropy = -sum(p * math.log(p) for p in np.bincount(a) / 400)
    assert _table_information(a, a) == pytest.approx(entropy, rel=1e-12)


def test_the_mutual_information_gap_by_hand(factors):
    # The first factor twice: no gap. The other two once: gaps of 1. Their mean is 2/3.
    codes = torch.cat([centred(factors), centred(factors)[:, :1]], dim=1)
    assert mutual_information_gap(codes, factors) == pytest.approx(2 / 3, abs=1e-12)
    # A dimension that tells only whether the second factor is above its middle holds log 2 of log 4.
    halves = torch.stack([factors[:, 0], factors[:, 1] // 2, factors[:, 2]], dim=1).double()
    assert mutual_information_gap(halves, factors) == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-12)


def test_the_mutual_information_gap_of_one_dimension_is_its_share_of_the_entropy(factors):
    """There is no second best, so it knows nothing."""
    codes = centred(factors)[:, 1:2]
    assert mutual_information_gap(codes, factors[:, 1:2]) == pytest.approx(1, abs=1e-12)
    assert mutual_information_gap(codes, factors) == pytest.approx(1 / 3, abs=1e-12)


def test_the_largest_code_is_in_the_last_bin_and_not_beyond_it(factors):
    """Two bins of a code with four values hold log 2 of log 4."""
    codes = factors[:, 1:2].double()
    assert mutual_information_gap(codes, factors[:, 1:2], bins=2) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("score", [beta_vae_score, factor_vae_score])
def test_votes_are_tested_on_others_than_they_were_learnt_from(score, factors):
    """Noise in so many dimensions that 120 votes can be learnt by heart: near 1/3 on other votes."""
    codes = torch.randn(len(factors), 60)
    values = [score(codes, factors, votes=180, batch_size=16, seed=seed) for seed in range(10)]
    # 600 test votes in all: a standard error of 0.02.
    assert np.mean(values) < 1 / 3 + 0.08


def test_two_factors_in_one_dimension_are_complete_but_not_disentangled(factors):
    both = (factors[:, 0] * 4 + factors[:, 1]).double()
    result = dci(torch.stack([both, factors[:, 2].double()], dim=1), factors)
    assert result.completeness == pytest.approx(1, abs=1e-9)
    assert result.informativeness == 1
    # Row 1 has two equal importances: one minus log 2 / log 3, with weight 2 of 3.
    assert result.disentanglement == pytest.approx((2 * (1 - math.log(2) / math.log(3)) + 1) / 3, abs=1e-9)


def test_one_factor_in_two_dimensions_is_disentangled_but_not_complete():
    factors = torch.cartesian_prod(torch.arange(4), torch.arange(3)).repeat(20, 1)
    bits = torch.stack([factors[:, 0] // 2, factors[:, 0] % 2, factors[:, 1]], dim=1).double()
    result = dci(bits, factors)
    assert result.disentanglement == pytest.approx(1, abs=1e-9)
    assert result.completeness == pytest.approx((1 - math.log(2) / math.log(3) + 1) / 2, abs=0.02)
    assert result.importance.shape == (3, 2)
    torch.testing.assert_close(result.importance.sum(dim=0), torch.ones(2).double())


def test_noise_is_not_informative(factors):
    assert dci(torch.randn(len(factors), 4), factors).informativeness < (1 / 3 + 1 / 4 + 1 / 5) / 3 + 0.06


def test_scores_that_count_votes_forgive_a_rotation_that_the_others_do_not(factors):
    c, s = math.cos(math.pi / 5), math.sin(math.pi / 5)
    codes = centred(factors) @ torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]).double()
    assert beta_vae_score(codes, factors) > 0.95
    assert factor_vae_score(codes, factors) > 0.95
    assert mutual_information_gap(codes, factors) < 0.7
    assert disentanglement(codes, factors) < 0.8


CODES, FACTORS = torch.randn(60, 3), torch.stack([torch.arange(60) % 3, torch.arange(60) % 4], dim=1)
BAD = torch.full((60, 3), math.nan)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dci(CODES.long(), FACTORS), TypeError, r"^codes has dtype torch\.int64"),
        (
            lambda: dci(CODES, FACTORS.float()),
            TypeError,
            r"^factors must be .* torch\.int64, not torch\.float32",
        ),
        (lambda: dci(CODES, FACTORS.tolist()), TypeError, r"^factors must be .* not list"),
        (lambda: dci(CODES[0], FACTORS), ValueError, r"^codes has shape \(3,\) but needs \(N, k\)"),
        (
            lambda: dci(CODES, FACTORS[:, 0]),
            ValueError,
            r"^factors has shape \(60,\) but needs \(N, f\) = \(60, f\)",
        ),
        (lambda: dci(CODES[:50], FACTORS), ValueError, r"^factors has shape \(60, 2\) but needs \(50, 2\)"),
        (lambda: dci(CODES[:, :1], FACTORS), ValueError, r"^codes has 1 dimensions and factors 2; dci needs"),
        (lambda: dci(CODES, FACTORS[:, :1]), ValueError, r"^codes has 3 dimensions and factors 1; dci needs"),
        (lambda: dci(CODES, FACTORS, trees=0), ValueError, r"^trees is 0 but must be at least 1"),
        (lambda: beta_vae_score(BAD, FACTORS), ValueError, r"^codes holds 180 values that are NaN"),
        (lambda: beta_vae_score(CODES, FACTORS, votes=2), ValueError, r"^votes is 2 but must be at least 30"),
        (lambda: factor_vae_score(CODES, FACTORS * 0), ValueError, r"^factors\[:, 0\] never varies"),
        (lambda: factor_vae_score(CODES, FACTORS, batch_size=1), ValueError, r"^batch_size is 1 but must be"),
        (
            lambda: factor_vae_score(CODES, FACTORS, votes=1e3),
            TypeError,
            r"^votes is 1000\.0 but must be a wh",
        ),
        (lambda: mutual_information_gap(BAD, FACTORS), ValueError, r"^codes holds 180 values that are NaN"),
        (lambda: mutual_information_gap(CODES, FACTORS * 0), ValueError, r"^factors\[:, 0\] never varies"),
        (
            lambda: mutual_information_gap(CODES[:0], FACTORS[:0]),
            ValueError,
            r"^codes has shape \(0, 3\) and",
        ),
        (lambda: mutual_information_gap(CODES, FACTORS, bins=1), ValueError, r"^bins is 1 but must be at le"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("score", "module"), [(beta_vae_score, "sklearn.linear_model"), (dci, "sklearn.ensemble")]
)
def test_scores_that_need_sklearn_say_what_to_install(score, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"^{score.__name__} needs scikit-learn: pip install"):
        score(CODES, FACTORS)
