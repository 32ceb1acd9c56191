"""Disentanglement scores: does each dimension of a code hold one factor of the data, and only that one?

All of them need the true factors, and so data that were made rather than found. All take ``codes``,
``(N, k)``, which should be the means of q(z|x), and ``factors``, ``(N, f)`` int64, the classes of each
factor. Where a definition asks for examples that share the value of a factor, they are drawn, with
replacement, from those of the N that do. None changes if dimensions of the code are permuted, flipped or
scaled. A code that mixes the factors should score low, but the two that count votes forgive a rotation that
leaves each factor more to one dimension than to the others.

They measure different things and disagree about the same code (Locatello et al. 2019): report more than one.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aecourse.contracts import check_count, check_finite, check_labels, check_shapes
from aecourse.extras import needs


def beta_vae_score(
    codes: Tensor, factors: Tensor, *, votes: int = 1500, batch_size: int = 64, seed: int = 0
) -> float:
    r"""Accuracy of a linear classifier that must say which factor a batch of pairs has in common.

    For each vote a factor is drawn, and ``batch_size`` pairs of examples that agree in it. The mean over
    the pairs of :math:`|z - z'|` is small in the dimensions that hold this factor. Two thirds of the
    votes train the classifier, the others test it. 1/f is chance. The classifier may use all dimensions for
    one factor, and finds the factor that the code leaves out by the others' being absent: two weaknesses
    that :func:`factor_vae_score` mends.

    Args:
        codes: ``(N, k)``.
        factors: ``(N, f)``, int64.
        votes: in all.
        batch_size: pairs for each vote.
        seed: of the draws.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, NaN, a factor that never varies.
        ImportError: scikit-learn is missing.

    Source: Higgins et al. (2017), algorithm 1.
    """
    with needs("book", "beta_vae_score needs scikit-learn"):
        from sklearn.linear_model import LogisticRegression
    z, y = _check_codes(codes, factors, votes=votes, batch_size=batch_size)
    random = np.random.default_rng(seed)
    chosen = _every_factor_in_turn(y.shape[1], votes)
    features = np.empty((votes, z.shape[1]))
    groups = [_Groups(y[:, j]) for j in range(y.shape[1])]
    for vote, factor in enumerate(chosen):
        first = random.integers(len(z), size=batch_size)
        second = groups[factor].partners(first, random)
        features[vote] = np.abs(z[first] - z[second]).mean(axis=0)
    train = 2 * votes // 3
    mean, std = features[:train].mean(axis=0), features[:train].std(axis=0)
    features = (features - mean) / np.where(std > 0, std, 1)
    classifier = LogisticRegression(max_iter=2000).fit(features[:train], chosen[:train])
    return float(classifier.score(features[train:], chosen[train:]))


def factor_vae_score(
    codes: Tensor, factors: Tensor, *, votes: int = 1500, batch_size: int = 64, seed: int = 0
) -> float:
    """Accuracy of a majority vote: the dimension that varies least tells which factor was held fixed.

    For each vote a factor is drawn, and ``batch_size`` examples that share one value of it. In these, the
    dimension whose variance is smallest, relative to its variance over all data, votes for the factor. Two
    thirds of the votes decide which factor each dimension stands for, the others test it. About 1/f is
    chance. Dimensions that never vary take no part; a code without any other scores 0.

    Args:
        codes: ``(N, k)``.
        factors: ``(N, f)``, int64.
        votes: in all.
        batch_size: examples for each vote.
        seed: of the draws.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, NaN, a factor that never varies.

    Source: Kim & Mnih (2018), section 4.
    """
    z, y = _check_codes(codes, factors, votes=votes, batch_size=batch_size)
    random = np.random.default_rng(seed)
    z = z[:, z.std(axis=0) > 0]
    if z.shape[1] == 0:
        return 0.0
    variances = z.var(axis=0)
    chosen = _every_factor_in_turn(y.shape[1], votes)
    groups = [_Groups(y[:, j]) for j in range(y.shape[1])]
    steadiest = np.empty(votes, dtype=int)
    for vote, factor in enumerate(chosen):
        one = np.full(batch_size, random.integers(len(z)))
        batch = z[groups[factor].partners(one, random)]
        steadiest[vote] = (batch.var(axis=0) / variances).argmin()
    train = 2 * votes // 3
    table = np.zeros((z.shape[1], y.shape[1]), dtype=int)
    np.add.at(table, (steadiest[:train], chosen[:train]), 1)
    return float((table.argmax(axis=1)[steadiest[train:]] == chosen[train:]).mean())


def mutual_information_gap(codes: Tensor, factors: Tensor, *, bins: int = 20) -> float:
    r"""By how much the best dimension for a factor knows more about it than the second best.

    .. math:: \mathrm{MIG} = \frac1f \sum_j \frac{I(z_{(1)}; v_j) - I(z_{(2)}; v_j)}{H(v_j)}

    Each dimension of the code is cut into ``bins`` of equal width, and the mutual information is that of
    the table of counts. It is too high by about (bins - 1)(values - 1) / 2N nats for each pair, which
    the difference removes in part; have N well above that product. A code with several factors in one
    dimension can still score 1: that is left to :func:`dci`.

    Args:
        codes: ``(N, k)``.
        factors: ``(N, f)``, int64.
        bins: for each dimension, at least two.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, NaN, a factor that never varies.

    Source: Chen et al. (2018), section 4.1, with bins for their density, as Locatello et al. (2019) do.
    """
    z, y = _check_codes(codes, factors, bins=bins)
    low, high = z.min(axis=0), z.max(axis=0)
    width = np.where(high > low, high - low, 1) / bins
    cells = np.minimum(((z - low) / width).astype(int), bins - 1)
    gaps = []
    for factor in y.T:
        shared = np.sort([_table_information(cell, factor) for cell in cells.T] + [0.0])
        gaps.append((shared[-1] - shared[-2]) / _table_information(factor, factor))
    return float(np.mean(gaps))


class DCI(NamedTuple):
    """Disentanglement, completeness, informativeness; made by :func:`dci`."""

    disentanglement: float
    """In [0, 1]; 1 if each dimension of the code is important for one factor only."""

    completeness: float
    """In [0, 1]; 1 if each factor is held by one dimension of the code only."""

    informativeness: float
    """The accuracy with which the factors can be told from the code, averaged over factors."""

    importance: Tensor
    """``(k, f)``, float64: how much each dimension matters for each factor; columns add up to 1."""


def dci(codes: Tensor, factors: Tensor, *, trees: int = 20, seed: int = 0) -> DCI:
    r"""Train a random forest to tell each factor from the code, and look at what it used.

    With :math:`R_{ij}` the importance of dimension i for factor j (by how much splits on it reduce the
    impurity), disentanglement is one minus the entropy of each row, in units of log f and weighted by the
    row's sum; completeness is one minus the entropy of each column, in units of log k.

    Half of the examples, drawn at random, train the forests; informativeness is measured on the others.

    Args:
        codes: ``(N, k)``, at least two dimensions.
        factors: ``(N, f)``, int64, at least two factors.
        trees: in each forest.
        seed: of the split and of the forests.

    Returns:
        A :class:`DCI`.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, NaN, a factor that never varies, or only
            one dimension or factor, for which neither entropy has a unit.
        ImportError: scikit-learn is missing.

    Source: Eastwood & Williams (2018), section 2, with accuracy for their regression error.
    """
    with needs("book", "dci needs scikit-learn"):
        from sklearn.ensemble import RandomForestClassifier
    z, y = _check_codes(codes, factors, trees=trees)
    if z.shape[1] < 2 or y.shape[1] < 2:
        raise ValueError(
            f"codes has {z.shape[1]} dimensions and factors {y.shape[1]}; dci needs at least 2 each."
        )
    order = np.random.default_rng(seed).permutation(len(z))
    train, test = order[: len(z) // 2], order[len(z) // 2 :]
    importance, accuracies = np.zeros((z.shape[1], y.shape[1])), []
    for j, factor in enumerate(y.T):
        # Every split sees all dimensions: with a random subset it would often have to use a useless one.
        forest = RandomForestClassifier(trees, max_features=None, random_state=seed)
        forest.fit(z[train], factor[train])
        importance[:, j] = forest.feature_importances_
        accuracies.append(forest.score(z[test], factor[test]))
    rows, total = importance.sum(axis=1), importance.sum()
    disentanglement = (rows * (1 - _normalised_entropy(importance))).sum() / total if total > 0 else 0.0
    completeness = (1 - _normalised_entropy(importance.T)).mean()
    return DCI(
        float(disentanglement), float(completeness), float(np.mean(accuracies)), torch.from_numpy(importance)
    )


# -------------------------------------------------------------------------------- inner parts


class _Groups:
    """The examples sorted by the value of one factor, to draw others that share it."""

    def __init__(self, factor: np.ndarray):
        _, self.value, self.size = np.unique(factor, return_inverse=True, return_counts=True)
        self.members = np.argsort(self.value, kind="stable")
        self.start = np.cumsum(self.size) - self.size

    def partners(self, examples: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """For each example a random one, itself not excluded, with the same value."""
        value = self.value[examples]
        return self.members[self.start[value] + random.integers(self.size[value])]


def _every_factor_in_turn(factors: int, votes: int) -> np.ndarray:
    """``(votes,)``, as many votes for each factor as can be: less noise than drawing the factors."""
    return np.arange(votes) % factors


def _table_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information in nats of two columns of classes, from their table of counts."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1 / len(a))
    product = table.sum(axis=1, keepdims=True) * table.sum(axis=0)
    seen = table > 0
    return float((table[seen] * np.log(table[seen] / product[seen])).sum())


def _normalised_entropy(importance: np.ndarray) -> np.ndarray:
    """Entropy of each row, scaled to sum to 1, in units of the largest possible; 1 for a row of zeros."""
    sums = importance.sum(axis=1, keepdims=True)
    shares = np.divide(
        importance, sums, out=np.full_like(importance, 1 / importance.shape[1]), where=sums > 0
    )
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1) / np.log(importance.shape[1])


def _check_codes(codes: Tensor, factors: Tensor, **counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and factors as arrays, the values of each factor as 0, 1, 2, ..., once they are found to fit."""
    check_shapes(("codes", codes, "N k"))
    if isinstance(factors, Tensor) and factors.dim() != 2:
        raise ValueError(f"factors has shape {tuple(factors.shape)} but needs (N, f) = ({len(codes)}, f).")
    check_labels("factors", factors, (len(codes), factors.shape[1] if isinstance(factors, Tensor) else 1))
    for name, value in counts.items():
        check_count(name, value, least={"votes": 30, "bins": 2, "batch_size": 2}.get(name, 1))
    if codes.numel() == 0 or factors.numel() == 0:
        raise ValueError(
            f"codes has shape {tuple(codes.shape)} and factors {tuple(factors.shape)}: nothing in them."
        )
    check_finite("codes", codes)
    y = np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T.cpu().numpy()], axis=1)
    constant = np.flatnonzero(y.max(axis=0) == 0)
    if len(constant) > 0:
        raise ValueError(f"factors[:, {constant[0]}] never varies: leave this factor out.")
    return codes.detach().cpu().double().numpy(), y
