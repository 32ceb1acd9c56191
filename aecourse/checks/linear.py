"""Assignment `linear`: principal components, reconstruction, Pythagoras, and a loss that finds components.

The sign of a component is free, and so is the choice among directions of equal variance: the first is taken
out before a comparison, and the second has a test of its own, `ties`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations, product

import torch
from torch import Tensor

from aecourse.checks.core import Case, Draw, Task, Wrong, f32, f64, finite, prepared, same, shape
from aecourse.checks.kinds import gradients, stability, values_in_evaluation
from aecourse.checks.naming import REDUCTIONS, diagnose
from aecourse.checks.student import Student

# ---- shared by several tasks

TESTS = {"values": values_in_evaluation, "gradients": gradients, "stability": stability}
BEST = "linear#the-best-subspace"


def mixed(*slots, most: int = 2) -> Iterator[tuple]:
    """One entry ``(clause, thing, ...)`` of each slot; of more than `most` mistakes nobody could tell which.

    Yields the clauses and the things of every slot."""
    for chosen in product(*slots):
        clauses = tuple(clause for clause, *_ in chosen if clause)
        if len(clauses) <= most:
            yield clauses, [things[0] if len(things) == 1 else things for _, *things in chosen]


def spectral(draw, n: int, eigenvalues: Tensor, dim: int, offset: float = 2.0) -> Tensor:
    """Data (n, dim) whose covariance has these eigenvalues, at most n - 1 and dim of them, and zeros."""
    raw = draw(n, len(eigenvalues))
    codes = torch.linalg.qr(raw - raw.mean(0)).Q * (n * eigenvalues).sqrt()
    axes = torch.linalg.qr(draw(dim, len(eigenvalues))).Q
    return offset * draw(dim) + codes @ axes.mT


def falling(draw, count: int) -> Tensor:
    """Well separated: no component could be taken for a mixture of two."""
    return 6 * 0.55 ** torch.arange(count, dtype=f64) * draw(count, low=0.9, high=1.1)


def example(n: int, dim: int, seed: int = 5) -> Tensor:
    draw = Draw(seed)
    return spectral(draw, n, falling(draw, min(n - 1, dim)), dim).to(f32)


def near(result, expected, tolerance: float = 1e-4) -> bool:
    return same(result, expected, tolerance, tolerance)


def triple(result, shapes) -> str:
    """Why a result is not three tensors of these shapes; "" when it is."""
    result = tuple(result) if isinstance(result, list) else result
    right = (
        isinstance(result, tuple)
        and len(result) == 3
        and all(isinstance(part, Tensor) for part in result)
        and [tuple(part.shape) for part in result] == shapes
    )
    if not right:
        wanted = ", ".join(map(str, shapes))
        return f"expected three tensors of shapes {wanted}, and got {shape(result)}"
    return ""


SHIFT = torch.tensor([3.0, -2.0, 1.0, 5.0])

# Of data; a limit or a floor that nobody needs shows at some of them.
SCALES = (1e-6, 1e-3, 1e3, 1e6)

# ---- principal_components(X, k): the mean, the first k components and their variances


def principal_components(X, k):
    mean = X.sum(0) / len(X)
    _, singular, directions = torch.linalg.svd(X - mean, full_matrices=False)
    return mean, directions[:k], singular[:k] ** 2 / len(X)


def scaled(power: float) -> Callable:
    return lambda components, eigenvalues: components * eigenvalues.clamp_min(1e-300)[:, None] ** power


def root(eigenvalues, _=None):
    return eigenvalues.clamp_min(0).sqrt()


def principal_components_slips(X, k):
    n, dim = X.shape
    mean, std = X.mean(0), X.std(0, correction=0)
    correlation = (
        "the data are divided by their standard deviations: these are the components of the correlation"
    )
    centres = [
        ("", X - mean),
        ("the data are not centred", X),
        (correlation, (X - mean) / std),
        (correlation, (X - mean) / X.std(0)),
        ("the mean runs over the dimensions, not over the examples", X - X.mean(1, keepdim=True)),
        ("one mean of all numbers is subtracted", X - X.mean()),
    ]
    solved = [(clause, *torch.linalg.eigh(data.mT @ data / n)) for clause, data in centres]
    # As they come from eigh: smallest first, eigenvectors in columns.
    ascending = "eigh returns the smallest eigenvalue first, and the order is not reversed"
    unlike = "eigenvalues and components are ordered differently"
    smallest = "the k smallest eigenvalues are taken: eigh returns these first"

    def last(t):
        return t[..., -k:]

    def first(t):
        return t[..., :k]

    def top(t):
        return last(t).flip(-1)

    orders = [
        ("", top, top),
        (smallest, first, first),
        (smallest, lambda t: first(t).flip(-1), lambda t: first(t).flip(-1)),
        (ascending, last, last),
        (unlike, top, first),
        (unlike, top, last),
        (unlike, first, top),
        (unlike, last, top),
        (unlike, first, last),
        (unlike, last, first),
        ("the largest component is left out", *[lambda t: t[..., -k - 1 : -1].flip(-1)] * 2),
        ("k is not used: all components are returned", *[lambda t: t.flip(-1)] * 2),
        ("k is not used: all components are returned", *[lambda t: t] * 2),
    ]
    divisors = [
        ("", 1.0),
        ("the covariance is divided by N - 1, as torch.cov does by default", n / (n - 1)),
        ("the covariance is not divided by N: it is a sum over the examples", float(n)),
        ("the covariance is divided by D, not by N", n / dim),
        ("the covariance is divided by N twice", 1 / n),
    ]
    scales = [
        ("", lambda c, e: c),
        ("the components are not of length 1: they are scaled by the standard deviation", scaled(0.5)),
        ("the components are not of length 1: they are scaled by the eigenvalue", scaled(1.0)),
        ("the components are not of length 1: they are divided by the standard deviation", scaled(-0.5)),
        ("the components are not of length 1: they are scaled", lambda c, e: scaled(0.5)(c, n * e)),
    ]
    forms = [
        ("", lambda e, _: e),
        ("square roots of the eigenvalues are returned, standard deviations and not variances", root),
        ("the singular values of the data are returned, not the eigenvalues", lambda e, _: root(n * e)),
        ("the singular values are divided by N without being squared", lambda e, _: root(n * e) / n),
        ("the singular values are divided by the root of N - 1", lambda e, _: root(e * n / (n - 1))),
        (
            "the singular values are divided by N - 1 without being squared",
            lambda e, _: root(n * e) / (n - 1),
        ),
        ("the eigenvalues are squared", lambda e, _: e**2),
        ("shares of the variance are returned, not the eigenvalues", lambda e, full: e / full.sum()),
        ("shares of the variance are returned, not the eigenvalues", lambda e, _: e / e.sum()),
        ("the eigenvalues are summed up", lambda e, _: e.cumsum(0)),
    ]
    means = [
        ("", mean),
        ("a mean of zeros is returned", 0 * mean),
        ("the mean that is returned runs over the dimensions, not over the examples", X.mean(1)),
        ("the mean that is returned is one number", X.mean()),
        ("the mean that is returned is the sum", X.sum(0)),
    ]
    for clauses, (solution, order, divisor, scale, form, centre) in mixed(
        solved, orders, divisors, scales, forms, means
    ):
        spectrum = solution[0] * divisor
        components, eigenvalues = order[1](solution[1]).mT, order[0](spectrum)
        yield clauses, (centre, scale(components, eigenvalues), form(eigenvalues, spectrum))
    spectrum, vectors = solved[0][1:]
    right = mean, top(vectors).mT, top(spectrum)
    yield "the components are columns here; they should be rows", (right[0], right[1].mT, right[2])
    # The eigenvectors are columns, and Vh of an SVD holds them in rows. The other way round it looks alike.
    other_way = torch.linalg.svd(X - mean, full_matrices=False)[2].mT
    turned = "the coordinates of every component are reversed: flip along the other axis"
    yield turned, (mean, top(vectors).mT.flip(1), right[2])
    yield turned, (mean, last(vectors).mT.flip(1), right[2])
    yield turned, (mean, first(vectors).mT.flip(1), right[2])
    squared = "the covariance's own singular values are squared: they are its eigenvalues already"
    for divisor in (n, n - 1):
        yield squared, (mean, right[1], right[2] ** 2 / divisor)
    for matrix in (vectors, vectors.flip(1), vectors.flip(0), other_way):
        for eigenvalues in (right[2], last(spectrum), first(spectrum)):
            clause = "rows of the matrix of eigenvectors are taken, but its columns are the eigenvectors"
            yield clause, (mean, matrix[:k], eigenvalues)
        yield clause, (mean, matrix[-k:], right[2])
    for order in list(permutations(range(3)))[1:]:
        yield "the three results are in another order", tuple(right[i] for i in order)
    yield "the mean is not returned", right[1:]


def unsigned(result):
    """The same components with their largest entry positive. Only what looks like an answer is changed."""
    if not (isinstance(result, tuple | list) and len(result) == 3):
        return result
    mean, components, eigenvalues = result
    if not all(isinstance(part, Tensor) for part in result):
        return result
    if components.dim() != 2 or 0 in components.shape:
        return result
    along = 1 if components.shape[0] == eigenvalues.numel() else 0  # columns: they have signs, too
    largest = components.gather(along, components.abs().argmax(along, keepdim=True))
    return mean, components * torch.where(largest < 0, -1.0, 1.0).to(components), eigenvalues


def pca_cases(draw):
    def case(label, n, dim, k):
        return Case(label, (spectral(draw, n, falling(draw, min(n - 1, dim)), dim), k))

    return [
        case("12 examples of 5 dimensions, k=3", 12, 5, 3),
        case("k=1", 10, 4, 1),
        case("k=D=4", 9, 4, 4),
        case("6 examples of 15 dimensions, k=4", 6, 15, 4),
        case("6 examples of 6 dimensions, k=2", 6, 6, 2),
        case("2 examples of 3 dimensions, k=1", 2, 3, 1),
        case("100 examples of 20 dimensions, k=4", 100, 20, 4),
        case("300 examples of 30 dimensions, k=3", 300, 30, 3),
        case("30 examples of 130 dimensions, k=3", 30, 130, 3),
    ]


def pca_extremes(draw):
    return [
        (Case(f"means near {offset:g}", (spectral(draw, 50, falling(draw, 5), 5, offset), 3)), dtype, rtol)
        for offset, dtype, rtol in ((1e3, f32, 1e-4), (1e6, f64, 1e-9))
    ]


def pca_scales(draw):
    cases = []
    for size in SCALES:
        data = size * spectral(draw, 40, falling(draw, 6), 6)
        cases.append((Case(f"data of size {size:g}", (data, 4)), f64, 1e-9))
    return cases


def relative(result):
    """`unsigned`, with logs of the mean's length and of the eigenvalues, which show a small one's digits."""
    result = unsigned(result)
    if not isinstance(result, tuple) or not all(isinstance(part, Tensor) for part in result):
        return result
    if len(result) != 3:
        return result
    mean, components, eigenvalues = result
    return mean / mean.norm(), mean.norm().log(), components, eigenvalues.log()


def pca_stability(task: Task, student: Student, draw: Draw) -> None:
    """The last digits, means far from the origin, and data of any size."""
    stability(task, student, draw)
    sized = replace(task, cases=lambda draw: pca_cases(draw)[:1], extremes=pca_scales, canonical=relative)
    stability(sized, student, draw)


def pca_properties(student: Student):
    for n, dim, k in ((9, 4, 2), (4, 7, 3)):
        X = example(n, dim)
        result = student(X.clone(), k)
        label = f"{n} examples of {dim} dimensions"
        yield f"{label}: three results", triple(result, [(dim,), (k, dim), (k,)])
        yield f"{label}: finite", "" if finite(result) else "some numbers are not finite"
        _, components, eigenvalues = result
        why = "" if near(components.square().sum(1), torch.ones(k)) else "each component should have length 1"
        yield f"{label}: components of length 1", why
        right = near(components @ components.mT, torch.eye(k), 1e-3)
        why = "" if right else "the rows of components should be at right angles to each other"
        yield f"{label}: at right angles", why
        right = (eigenvalues.diff() <= 1e-5).all() and (eigenvalues > -1e-5).all()
        why = "" if right else "the eigenvalues should fall, and variances are never negative"
        yield f"{label}: eigenvalues fall", why
    X = example(9, 4)
    before, after = unsigned(student(X.clone(), 2)), unsigned(student(X + SHIFT, 2))
    why = (
        ""
        if near(after[0], before[0] + SHIFT, 1e-3)
        else "move all data by a vector, and their mean moves by it"
    )
    yield "data moved: the mean moves along", why
    right = near(tuple(after[1:]), tuple(before[1:]), 1e-3)
    yield "data moved: the rest stays", "" if right else "only differences from the mean should matter"


def tied_cases(draw):
    def case(label, n, eigenvalues, dim, k):
        return Case(label, (spectral(draw, n, torch.tensor(eigenvalues, dtype=f64), dim), k))

    constant = spectral(draw, 9, torch.tensor([3.0, 1.0], dtype=f64), 2)
    return [
        case("two pairs of equal eigenvalues, k=2", 12, (3, 3, 1, 1), 4, 2),
        case("two pairs of equal eigenvalues, k=4", 12, (3, 3, 1, 1), 4, 4),
        case("k=3 cuts a pair of equal eigenvalues", 15, (4, 2, 1, 1, 0.3), 5, 3),
        case("all eigenvalues equal", 20, (2,) * 6, 6, 4),
        Case(
            "a dimension that is constant, k=D", (torch.cat((constant, constant[:1, :1].expand(9, 1)), 1), 3)
        ),
        case("all examples on a line, k=3", 10, (2,), 5, 3),
        case("5 examples of 8 dimensions, k=5", 5, (4, 2, 1, 0.5), 8, 5),
    ]


def ties(task: Task, student: Student, draw: Draw) -> None:
    """Equal eigenvalues, and zeros: components are no longer unique, but what makes them components is."""
    looks = list(product(tied_cases(draw), (f64, f32)))
    given = [prepared(case.arguments, dtype) for case, dtype in looks]
    exacts = [X.to(f64, copy=True) for X, _ in given]
    results = student.each([(a, {}, case.label) for a, (case, _) in zip(given, looks)])
    for (case, dtype), (X, k), exact, got in zip(looks, given, exacts, results):
        where = f"{case.label}, {str(dtype).removeprefix('torch.')}"
        why = triple(got, [(X.shape[1],), (k, X.shape[1]), (k,)])
        if why:
            raise Wrong(f"{why}.", diagnose(task, student, draw), case=where)
        mean, components, eigenvalues = (part.detach().to(f64) for part in got)
        close = 1e-5 if dtype == f64 else 2e-3  # the last digits are for `stability`
        covariance = torch.cov(exact.mT, correction=0).reshape(X.shape[1], -1)
        if not finite(got):
            raise Wrong(
                "not all numbers are finite. Is something divided by an eigenvalue that is 0?", case=where
            )
        if not same(mean, exact.mean(0), close, close):
            raise Wrong("the mean is wrong.", diagnose(task, student, draw), case=where)
        if not same(eigenvalues, torch.linalg.eigvalsh(covariance).flip(0)[:k], close, close):
            raise Wrong("the eigenvalues are wrong.", diagnose(task, student, draw), case=where)
        if not same(components @ components.mT, torch.eye(k, dtype=f64), close, close):
            raise Wrong(
                "the components are not orthonormal. Where eigenvalues are equal or zero, not "
                "every way to eigenvectors gives orthonormal ones; a solver for symmetric matrices does.",
                diagnose(task, student, draw),
                case=where,
            )
        if not same(components @ covariance, eigenvalues[:, None] * components, close, close):
            raise Wrong(
                "the components are orthonormal, but they are no eigenvectors of the covariance "
                "with these eigenvalues.",
                diagnose(task, student, draw),
                case=where,
            )


PRINCIPAL_COMPONENTS = Task(
    name="principal_components",
    read=BEST,
    reference=principal_components,
    slips=principal_components_slips,
    properties=pca_properties,
    cases=pca_cases,
    probes=lambda draw: [
        Case("", (spectral(draw, n, falling(draw, dim), dim), k)) for n, dim, k in ((12, 5, 3), (9, 4, 2))
    ],
    extremes=pca_extremes,
    canonical=unsigned,
    hint="subtract the mean before anything is squared, keep the type, add nothing and limit nothing",
    forbidden=(
        "torch.pca_lowrank",
        "sklearn.decomposition.PCA",
        "sklearn.decomposition.IncrementalPCA",
        "sklearn.decomposition.KernelPCA",
        "sklearn.decomposition.TruncatedSVD",
    ),
    tests={"values": values_in_evaluation, "ties": ties, "stability": pca_stability},
)

# ---- reconstruct(X, mean, components): the projection of each example on the subspace


def reconstruct(X, mean, components):
    outside = torch.eye(len(mean), dtype=X.dtype) - torch.einsum("ki,kj->ij", components, components)
    return X - (X - mean) @ outside


def reconstruct_slips(X, mean, C):
    inside, own, away = C.mT @ C, X.mean(0), X - mean
    right = mean + away @ inside
    yield "", right
    yield "the mean is not added back", away @ inside
    yield "the mean is not subtracted before the projection", mean + X @ inside
    yield "the mean is left out: X itself is projected", X @ inside
    yield "the mean of these X is used, not the mean that is given", own + (X - own) @ inside
    yield "X is centred with its own mean, not with the mean that is given", mean + (X - own) @ inside
    yield "the mean of these X is added back, not the mean that is given", own + away @ inside
    yield "X is centred with its own mean, and no mean is added back", (X - own) @ inside
    yield "the code is returned, not its reconstruction", away @ C.mT
    yield "the code is returned, not its reconstruction", X @ C.mT
    yield "the part outside the subspace is returned, not the part inside it", away - away @ inside
    yield "the part outside the subspace is kept, and the part inside it is lost", X - away @ inside
    yield "the sign of the projection is flipped", mean - away @ inside
    yield "the mean is added, where it should be subtracted first", mean + (X + mean) @ inside
    yield "the mean is subtracted at the end, where it should be added", away @ inside - mean
    yield "the mean is added twice", 2 * mean + away @ inside
    yield "only the first component is used", mean + away @ C[:1].mT @ C[:1]
    yield "only the last component is used", mean + away @ C[-1:].mT @ C[-1:]
    yield "all codes of an example are summed", mean + (away @ C.mT).sum(1, keepdim=True) * C.sum(0)
    yield "the result is divided by the number of components", mean + away @ inside / len(C)
    yield "the result is divided by the number of examples", mean + away @ inside / len(X)
    yield "the result is divided by the number of dimensions", mean + away @ inside / X.shape[1]
    yield "one mean of all dimensions is used", mean.mean() + (X - mean.mean()) @ inside
    yield "each example loses the mean of its own dimensions", mean + (X - X.mean(1, keepdim=True)) @ inside
    yield "nothing is projected: X is returned", X
    yield "the mean is returned for every example", mean.expand_as(X)
    yield "the mean is added to X", mean + X
    yield "the reconstructions are averaged over the examples", right.mean(0)
    yield "only the first example is rebuilt", right[0]
    yield "only the first example is rebuilt", right[:1]
    yield "the result is transposed", right.mT
    yield "a dimension of size 1 is left", right.unsqueeze(0)
    yield "a dimension of size 1 is left", right.unsqueeze(1)
    yield "the reconstruction error is returned, not the reconstruction", (X - right).square().sum(1)


def basis(X, mean, square_root):
    """Orthonormal rows (k, D) from any (D, k): gradients are taken within the orthonormal ones."""
    return X, mean, torch.linalg.qr(square_root).Q.mT


def directions(draw, dim: int, k: int) -> Tensor:
    """A (D, k) matrix for `basis`, far from singular: a gradient through it keeps its digits in float32."""
    return torch.linalg.qr(draw(dim, k)).Q * draw(k, low=0.7, high=1.5)


def reconstruct_cases(draw):
    def case(label, n, dim, k):
        mean = 2 * draw(dim)
        return Case(label, (mean + 1 + 1.5 * draw(n, dim), mean, directions(draw, dim, k)))

    return [
        case("7 examples of 5 dimensions, k=2", 7, 5, 2),
        case("one example", 1, 4, 2),
        case("k=1", 6, 3, 1),
        case("k=D=4", 5, 4, 4),
        case("5 examples of 5 dimensions, k=3", 5, 5, 3),
        case("one dimension", 4, 1, 1),
        case("3 examples of 30 dimensions, k=6", 3, 30, 6),
        case("130 examples of 4 dimensions, k=2", 130, 4, 2),
        case("2 examples of 130 dimensions, k=3", 2, 130, 3),
    ]


def reconstruct_extremes(draw):
    # One dimension with a huge mean: a code of uncentred data drags its rounding into all the others.
    def far(offset):
        mean = draw(6)
        mean[2] = offset
        return mean + draw(8, 6), mean, directions(draw, 6, 2)

    def sized(size):
        mean = size * draw(5)
        return mean + size * draw(30, 5), mean, directions(draw, 5, 2)

    mean = draw(4)
    at_mean = torch.cat((mean.expand(2, 4), mean + draw(1, 4)))
    return [
        *(
            (Case(f"a dimension with a mean of {offset:g}", far(offset)), dtype, rtol)
            for offset, dtype, rtol in ((1e6, f32, 1e-4), (1e10, f64, 1e-9))
        ),
        *((Case(f"data of size {size:g}", sized(size)), f64, 1e-9, 1e-9 * size) for size in SCALES),
        (Case("examples that are the mean", (at_mean, mean, directions(draw, 4, 2))), f64, 1e-9),
    ]


def reconstruct_properties(student: Student):
    X = example(6, 4)
    mean, components = X[0] - 0.5, torch.eye(4)[:2].roll(1, 0) @ torch.linalg.qr(example(4, 4, 6)).Q

    def call(X):
        return student(X.clone(), mean.clone(), components.clone())

    rebuilt = call(X)
    right = isinstance(rebuilt, Tensor) and rebuilt.shape == (6, 4)
    yield "the shape of X", "" if right else f"expected a tensor of shape (6, 4), and got {shape(rebuilt)}"
    yield "finite", "" if finite(rebuilt) else "some numbers are not finite"
    alone = call(mean[None])
    right = isinstance(alone, Tensor) and alone.shape == (1, 4)
    why = (
        ""
        if right
        else f"one example, (1, 4), should give a tensor of shape (1, 4), and gives {shape(alone)}"
    )
    yield "the shape of one example", why
    why = "" if near(alone, mean[None]) else "the mean lies in the subspace: it comes back as it is"
    yield "the mean comes back", why
    why = "" if near(call(rebuilt), rebuilt, 1e-3) else "what is in the subspace already should stay there"
    yield "a reconstruction comes back", why


RECONSTRUCT = Task(
    name="reconstruct",
    read=BEST,
    reference=reconstruct,
    slips=reconstruct_slips,
    properties=reconstruct_properties,
    cases=reconstruct_cases,
    extremes=reconstruct_extremes,
    probes=lambda draw: [reconstruct_cases(draw)[0], reconstruct_cases(draw)[0]],
    differentiate=(0, 1, 2),
    build=basis,
    hint="subtract the mean before the projection, as a code of uncentred data loses its last digits; and "
    "add nothing, limit nothing",
    tests=TESTS,
)

# ---- variance_split(X, X_hat): three squared distances per example, between X, X_hat and the mean


def variance_split(X, X_hat):
    mean = X.sum(0) / len(X)
    pairs = (X, mean), (X_hat, mean), (X, X_hat)
    return tuple(torch.einsum("nd,nd->n", start - end, start - end) for start, end in pairs)


LEGS = [
    *REDUCTIONS,
    ("distances are returned, not squared distances", lambda t: t.sum(1).sqrt()),
    ("the sum is divided by D - 1", lambda t: t.sum(1) / max(t.shape[1] - 1, 1)),
    ("there is a half in front", lambda t: 0.5 * t.sum(1)),
    ("the squares of an example are not summed, their largest is taken", lambda t: t.amax(1)),
]


def shifted(X, X_hat, centre):
    return (X - centre) ** 2, (X_hat - centre) ** 2, (X - X_hat) ** 2


def variance_split_slips(X, X_hat):
    mean, hat_mean = X.mean(0), X_hat.mean(0)
    error = (X - X_hat) ** 2
    t, p = (X - mean) ** 2, (X_hat - mean) ** 2
    overall, rows = X.mean(), X.mean(1, keepdim=True)
    minus = "the error is computed as total - projected: so it cannot show that X_hat is no projection"
    legs = [
        ("", t, p, error),
        ("the mean is not subtracted", X**2, X_hat**2, error),
        ("the mean is not subtracted from X", X**2, p, error),
        ("the mean is not subtracted from X_hat", t, X_hat**2, error),
        ("the mean of X_hat is subtracted from X_hat, not the mean of X", t, (X_hat - hat_mean) ** 2, error),
        ("the mean of X_hat is used throughout", (X - hat_mean) ** 2, (X_hat - hat_mean) ** 2, error),
        ("one mean of all dimensions is used", (X - overall) ** 2, (X_hat - overall) ** 2, error),
        ("the mean of an example's own dimensions is used", (X - rows) ** 2, (X_hat - rows) ** 2, error),
        ("the data are divided by N - 1 for the mean", *shifted(X, X_hat, X.sum(0) / max(len(X) - 1, 1))),
        ("the sum of the data is subtracted, not their mean", *shifted(X, X_hat, X.sum(0))),
        ("the median of the data is subtracted, not their mean", *shifted(X, X_hat, X.median(0).values)),
        (minus, t, p, t - p),
        (minus, t, p, (t - p).abs()),
        ("projected is computed as total - error: measure each by itself", t, t - error, error),
        ("total is computed as projected + error: measure each by itself", p + error, p, error),
        ("absolute values stand in place of squares", *((s.sqrt()) for s in (t, p, error))),
        ("the differences are not squared", X - mean, X_hat - mean, X - X_hat),
        ("the error is measured from the mean", t, p, (X - X_hat - mean) ** 2),
        ("total is the distance between X and X_hat", error, p, error),
        ("projected is the distance along X only", t, (X - mean) * (X_hat - mean), error),
        ("total and projected are both those of X", t, t, error),
        ("the error is that of the means", t, p, ((mean - hat_mean) ** 2).expand_as(t)),
    ]
    orders = [("", (0, 1, 2))]
    orders += [("the three results are in another order", o) for o in list(permutations(range(3)))[1:]]
    for clauses, (three, reduce, order) in mixed(legs, LEGS, orders):
        try:
            reduced = [reduce(leg) for leg in three]
        except (RuntimeError, IndexError):  # a dimension that is not there
            yield clauses, None
            continue
        yield clauses, tuple(reduced[i] for i in order)
    roots = [s.sum(1) for s in (t, p)]
    yield minus, (*roots, (roots[0] - roots[1]).abs())
    yield minus, (*roots, (roots[0] - roots[1]).clamp_min(0))
    rest, sums = (roots[0] - error.sum(1)).clamp_min(0), error.sum(1)
    yield "projected is computed as total - error: measure each by itself", (roots[0], rest, sums)
    yield (
        "distances are returned, not squared distances, and the error is their difference",
        (roots[0].sqrt(), roots[1].sqrt(), (roots[0] - roots[1]).abs().sqrt()),
    )
    yield "the three are stacked into one tensor: return a tuple", torch.stack([*roots, error.sum(1)])


def split_cases(draw):
    def case(label, n, dim):
        X = 2 * draw(dim) + 1.5 * draw(n, dim)
        return Case(label, (X, X + 0.3 + 0.6 * draw(n, dim)))

    X = spectral(draw, 9, falling(draw, 4), 4)
    mean, components, _ = principal_components(X, 2)
    return [
        case("7 examples of 4 dimensions", 7, 4),
        case("one example", 1, 5),
        case("one dimension", 6, 1),
        case("4 examples of 4 dimensions", 4, 4),
        case("3 examples of 30 dimensions", 3, 30),
        case("130 examples of 3 dimensions", 130, 3),
        case("4 examples of 130 dimensions", 4, 130),
        Case("X_hat is the best projection", (X, reconstruct(X, mean, components))),
        Case("X_hat = X", (X, X.clone())),
    ]


def split_extremes(draw):
    # Of a mean of 1000 a float32 knows four digits behind the point.
    def far(offset):
        X = offset * (1 + 0.1 * draw(16)) + draw(130, 16)  # from 26 rows on, torch.cdist multiplies matrices
        return X, X + 0.3 + 0.5 * draw(130, 16)

    def sized(size, error=0.5):
        X = size * (draw(4) + draw(30, 4))
        return X, X + size * error * draw(30, 4)

    def projected(size):
        X = spectral(draw, 30, torch.tensor([3.0, 1.0, size**2], dtype=f64), 5)
        mean, components, _ = principal_components(X, 2)
        return X, reconstruct(X, mean, components)

    return [
        (Case("means near 1000", far(1e3)), f32, 1e-3),
        (Case("means near 10000000", far(1e7)), f64, 1e-6),
        # Every number to a relative precision.
        *((Case(f"data of size {size:g}", sized(size)), f64, 1e-9, 0.0) for size in SCALES),
        (Case("errors of size 1e-6", sized(1.0, 1e-6)), f64, 1e-6, 0.0),
        (Case("the best projection, with errors of size 1e-5", projected(1e-5)), f64, 1e-6, 0.0),
    ]


def split_properties(student: Student):
    X = example(6, 4)
    X_hat = X.roll(1, 0) + 0.1

    def call(X, X_hat):
        return student(X.clone(), X_hat.clone())

    split = call(X, X_hat)
    yield "three tensors, one number per example", triple(split, [(6,)] * 3)
    yield "finite", "" if finite(split) else "some numbers are not finite"
    why = "" if all((part >= 0).all() for part in split) else "squared distances are never negative"
    yield "never negative", why
    total, projected, error = call(X, X)
    right = near(error, torch.zeros(6)) and near(total, projected)
    why = "" if right else "where X_hat is X, the error is 0, and total and projected are equal"
    yield "no error where X_hat is X", why
    moved = call(X + SHIFT, X_hat + SHIFT)
    right = near(tuple(moved), tuple(split), 1e-3)
    yield "X and X_hat moved together: the same", "" if right else "only differences should matter"


VARIANCE_SPLIT = Task(
    name="variance_split",
    read=BEST,
    reference=variance_split,
    slips=variance_split_slips,
    properties=split_properties,
    cases=split_cases,
    probes=lambda draw: [split_cases(draw)[0], split_cases(draw)[0]],
    extremes=split_extremes,
    hint="subtract first and square then: squares of large numbers drown their difference; and measure each "
    "of the three by itself, without a floor or a limit",
    tests={"values": values_in_evaluation, "stability": stability},
)

# ---- regularised_loss(X, W1, W2, lam): a squared error and a price for each code number


def regularised_loss(X, W1, W2, lam):
    left_over = X - torch.einsum("ij,nj->ni", torch.einsum("ik,kj->ij", W2, W1), X)
    root = lam.sqrt()
    penalty = (root.unsqueeze(1) * W1).square().sum() + (W2 * root).square().sum()
    return left_over.square().sum() / len(X) + penalty


def cross(W1, W2, lam):
    encoder, decoder = lam.sqrt() @ W1, W2 @ lam.sqrt()
    return encoder @ encoder + decoder @ decoder


def regularised_loss_slips(X, W1, W2, lam):
    (n, dim), k = X.shape, len(lam)
    # Squared lengths: of the encoder's rows, of the decoder's columns.
    a, b = W1.square().sum(1), W2.square().sum(0)
    plain = "lam is given per code number, but one weight serves for all"
    every = "a column (k, 1) meets lam (k,) and becomes (k, k): every length meets every weight"

    def squares(x, x_hat):
        return (x - x_hat) ** 2

    e, centred = squares(X, X @ W1.mT @ W2.mT), X - X.mean(0)
    total = e.sum() / n
    errors = [
        ("", total),
        ("the squared error is averaged over the dimensions, not summed", e.mean()),
        ("the squared error is summed over the examples, not averaged", e.sum()),
        ("the squared error is divided by D, not by N", e.sum() / dim),
        ("the squared error is divided by N - 1", e.sum() / max(n - 1, 1)),
        ("the squared error is divided by the size of the code", total / k),
        ("the distance of x from its reconstruction is not squared", e.sum(1).sqrt().mean()),
        ("the root of the mean squared error is taken", total.sqrt()),
        ("the root of the squared error is taken", e.sum().sqrt()),
        ("absolute errors stand in place of squared ones", e.sqrt().sum() / n),
        ("the squared error is halved", total / 2),
        ("the squared error is left out", 0 * total),
        ("X is centred once more", squares(centred, centred @ W1.mT @ W2.mT).sum() / n),
        ("X is centred before it is encoded", squares(X, centred @ W1.mT @ W2.mT).sum() / n),
        (
            "the transposes are swapped: with examples in rows, it is X W1' W2'",
            squares(X, X @ W2 @ W1).sum() / n,
        ),
        ("the encoder decodes, too: W2 is not in the reconstruction", squares(X, X @ W1.mT @ W1).sum() / n),
        ("the decoder encodes, too: W1 is not in the reconstruction", squares(X, X @ W2 @ W2.mT).sum() / n),
        ("the reconstruction is added to x, not subtracted", squares(X, -X @ W1.mT @ W2.mT).sum() / n),
        ("the reconstruction is not compared with x", squares(0 * X, X @ W1.mT @ W2.mT).sum() / n),
        ("only the first example is used", e[0].sum()),
        ("one number per example is returned", e.sum(1)),
    ]
    penalties = [
        ("", lam @ (a + b)),
        (f"{plain}: their mean", lam.mean() * (a + b).sum()),
        (f"{plain}: their sum", lam.sum() * (a + b).sum()),
        (f"{plain}: the first", lam[0] * (a + b).sum()),
        (f"{plain}: the last", lam[-1] * (a + b).sum()),
        (f"{plain}: the largest", lam.max() * (a + b).sum()),
        ("lam is not used", (a + b).sum()),
        ("lam is squared: it multiplies the rows before they are squared", lam**2 @ (a + b)),
        ("the root of lam is taken", lam.sqrt() @ (a + b)),
        ("lam multiplies the encoder before, the decoder after squaring", lam**2 @ a + lam @ b),
        ("lam multiplies the decoder before, the encoder after squaring", lam @ a + lam**2 @ b),
        ("lam weighs the decoder only", a.sum() + lam @ b),
        ("lam weighs the encoder only", lam @ a + b.sum()),
        ("the lengths of rows and columns are not squared", lam @ (a.sqrt() + b.sqrt())),
        ("absolute entries stand in place of squared ones", lam @ (W1.abs().sum(1) + W2.abs().sum(0))),
        ("the Frobenius norms are not squared", lam.mean() * (a.sum().sqrt() + b.sum().sqrt())),
        ("the Frobenius norms are not squared", lam.sum() * (a.sum().sqrt() + b.sum().sqrt())),
        ("the Frobenius norms are not squared", (lam @ a).sqrt() + (lam @ b).sqrt()),
        ("the Frobenius norms are not squared", (lam**2 @ a).sqrt() + (lam**2 @ b).sqrt()),
        (f"{every} in the encoder", lam.sum() * a.sum() + lam @ b),
        (f"{every} in the decoder", lam @ a + lam.sum() * b.sum()),
        (every, lam.sum() * a.sum() + k * lam @ b),
        (every, k * lam @ a + lam.sum() * b.sum()),
        ("the lengths of row and column multiply each other", lam @ (a * b)),
        ("the lengths of row and column multiply each other", lam @ (a * b).sqrt()),
        ("row and column are added before they are squared", lam @ (W1 + W2.mT).square().sum(1)),
        ("the decoder's columns are not in the penalty", lam @ a),
        ("the encoder's rows are not in the penalty", lam @ b),
        ("the encoder's rows are counted twice, the decoder's columns not at all", 2 * lam @ a),
        ("the decoder's columns are counted twice, the encoder's rows not at all", 2 * lam @ b),
        ("the penalty is left out", 0 * lam.sum()),
        ("the penalty is halved", lam @ (a + b) / 2),
        ("the penalty is subtracted", -lam @ (a + b)),
        ("the penalty is averaged over the code numbers, not summed", lam @ (a + b) / k),
        ("the squares of a row or column are averaged, not summed", lam @ (a + b) / dim),
        ("all terms of the penalty are averaged, not summed", lam @ (a + b) / dim / k),
        ("the penalty is divided by the number of examples", lam @ (a + b) / n),
        ("the penalty is multiplied by the number of examples", lam @ (a + b) * n),
        ("lam is in the reverse order", lam.flip(0) @ (a + b)),
        ("lam weighs the decoder's columns in the reverse order", lam @ a + lam.flip(0) @ b),
        ("lam divides", (1 / lam) @ (a + b)),
        ("the penalty is one number per code number, not their sum", lam * (a + b)),
        (f"each row's length meets every weight: {plain}", torch.outer(lam, a + b).mean()),
        ("the penalty holds the products of different rows, too", cross(W1, W2, lam)),
    ]
    ends = [
        ("", lambda t: t),
        ("a dimension of size 1 is left", lambda t: t.reshape(-1, 1)[0]),
        ("the whole is halved", lambda t: t / 2),
        ("the sign is flipped", lambda t: -t),
    ]
    for clauses, (error, penalty, end) in mixed(errors, penalties, ends):
        try:
            yield clauses, end(error + penalty)
        except RuntimeError:
            yield clauses, None


def weights(draw, dim: int, k: int):
    return draw(k, dim) / dim**0.5, draw(dim, k) / k**0.5, draw(k, low=0.1, high=1.5)


def loss_cases(draw):
    def case(label, n, dim, k):
        return Case(label, (0.4 + draw(n, dim), *weights(draw, dim, k)))

    W1, W2, lam = weights(draw, 5, 3)
    return [
        case("7 examples of 5 dimensions, k=3", 7, 5, 3),
        case("one example", 1, 4, 2),
        case("k=1", 6, 4, 1),
        case("k=D=4", 6, 4, 4),
        case("all sizes 3", 3, 3, 3),
        case("one dimension", 5, 1, 1),
        case("a code larger than the input", 6, 2, 5),
        Case("no penalty", (draw(6, 5), W1, W2, 0 * lam)),
        *(
            Case(
                f"lam is zero but for entry {entries}", (draw(6, 5), W1, W2, lam * torch.eye(3)[kept].sum(0))
            )
            for entries, kept in (
                ("1", [0]),
                ("2", [1]),
                ("3", [2]),
                ("1 and 2", [0, 1]),
                ("2 and 3", [1, 2]),
            )
        ),
        case("40 examples of 20 dimensions, k=6", 40, 20, 6),
        case("130 examples of 3 dimensions, k=2", 130, 3, 2),
        case("a code of 130 numbers", 4, 3, 130),
    ]


def loss_extremes(draw):
    # Large codes, rebuilt well; a part of ordinary size lies outside the subspace.
    def far(size):
        axes = torch.linalg.qr(draw(12, 3)).Q
        X = size * (1 + draw(9, 3)) @ axes.mT + draw(9, 12) @ (torch.eye(12) - axes @ axes.mT)
        return X, axes.mT.clone(), axes.clone(), draw(3, low=0.1, high=1.5)

    def perfect(size):
        """Nothing but the penalty is left: the code rebuilds all inputs."""
        axes = torch.linalg.qr(draw(5, 2)).Q
        return draw(30, 2) @ axes.mT, axes.mT.clone(), axes.clone(), size * draw(2, low=0.5, high=1.5)

    def unpriced(size):
        W1, W2, lam = weights(draw, 5, 2)
        return size * draw(30, 5), W1, W2, 0 * lam

    def dead(*which):
        """Weights of some code numbers are zero, in the encoder, in the decoder or in both."""
        W1, W2, lam = weights(draw, 4, 3)
        for row, column in which:
            W1[row], W2[:, column] = 0, 0
        return draw(5, 4), W1, W2, lam

    every = slice(None)
    return [
        (Case("inputs near 1000 with errors near 1", far(1e3)), f32, 1e-3),
        (Case("inputs near 1000000 with errors near 1", far(1e6)), f64, 1e-7),
        *((Case(f"nothing but a penalty, lam near {s:g}", perfect(s)), f64, 1e-8, 1e-24) for s in SCALES),
        *((Case(f"no penalty, inputs of size {s:g}", unpriced(s)), f64, 1e-9, 0.0) for s in SCALES),
        (Case("a code number whose weights are zero", dead((0, 0))), f64, 1e-9),
        (Case("two code numbers whose weights are zero", dead((0, 0), (1, 1))), f64, 1e-9),
        (Case("all weights are zero", dead((every, every))), f64, 1e-9),
        (Case("inputs that are rebuilt exactly", (0 * draw(3, 4), *weights(draw, 4, 2))), f64, 1e-9),
    ]


def loss_properties(student: Student):
    X, draw = example(6, 4), Draw(7)
    W1, W2, lam = (t.to(f32) for t in weights(draw, 4, 2))

    def call(X=X, W1=W1, W2=W2, lam=lam):
        return student(X.clone(), W1.clone(), W2.clone(), lam.clone())

    loss = call()
    right = isinstance(loss, Tensor) and loss.dim() == 0
    yield "one number", "" if right else f"expected a tensor of shape (), and got {shape(loss)}"
    yield "finite", "" if finite(loss) else "the loss is not finite"
    yield "positive", "" if loss > 0 else "squares and positive weights have a positive sum"
    perfect = call(W1=torch.eye(4), W2=torch.eye(4), lam=torch.zeros(4))
    why = "" if abs(perfect) < 1e-5 else "the identity rebuilds X, and without a penalty its loss is 0"
    yield "zero for the identity without a penalty", why
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    why = "" if near(call(X=X[order]), loss) else "the order of the examples must not matter"
    yield "examples in another order: the same", why
    renamed = call(W1=W1.flip(0), W2=W2.flip(1), lam=lam.flip(0))
    why = "" if near(renamed, loss) else "swap two code numbers with their weights, and the loss is the same"
    yield "code numbers in another order, with their weights: the same", why


REGULARISED_LOSS = Task(
    name="regularised_loss",
    read="linear#unequal-weights-leave-the-signs",
    reference=regularised_loss,
    slips=regularised_loss_slips,
    properties=loss_properties,
    cases=loss_cases,
    probes=lambda draw: [loss_cases(draw)[0] for _ in range(4)],
    extremes=loss_extremes,
    differentiate=(1, 2),
    hint="subtract the reconstruction from X first and square then; no floor, limit or root is needed",
    tests=TESTS,
)

TASKS = {task.name: task for task in (PRINCIPAL_COMPONENTS, RECONSTRUCT, VARIANCE_SPLIT, REGULARISED_LOSS)}
