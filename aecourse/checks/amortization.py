"""Assignment `amortization`: exact inference where it is possible, a search per example, and the two gaps.

The model is probabilistic PCA. Its evidence and posterior are known exactly, and so is the best diagonal q
for each example. So even a stochastic search has a definite place where it should end.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from aecourse.checks.core import (
    UNKNOWN,
    Case,
    Cause,
    Seed,
    Task,
    Wrong,
    at_most,
    f32,
    f64,
    finite,
    prepared,
    same,
    shape,
)
from aecourse.checks.elbo import per_example
from aecourse.checks.kinds import gradients, stability, values_in_evaluation
from aecourse.checks.naming import BITS, BOUND_SCALES, REDUCTIONS, spread
from aecourse.checks.parts import CountJoint, LinearJoint, line
from aecourse.checks.student import Student, uses_generator

# ---- shared by several tasks

DENSITY = "em#variational-em"


def model(draw, dim: int, k: int, sigma2: float):
    """W, b and sigma2 as a 0-d tensor; the columns of W are not orthogonal."""
    return draw(dim, k), 1.5 * draw(dim), torch.tensor(sigma2, dtype=f64)


def drawn(draw, batch: int, W: Tensor, b: Tensor, sigma2) -> Tensor:
    """Examples of the model."""
    return draw(batch, W.shape[1]) @ W.mT + b + sigma2**0.5 * draw(batch, len(b))


def ppca(draw, batch: int, dim: int, k: int, sigma2: float):
    parameters = model(draw, dim, k, sigma2)
    return drawn(draw, batch, *parameters), *parameters


def ppca_cases(draw):
    return [
        Case("5 examples, D=4, k=3", ppca(draw, 5, 4, 3, 0.4)),
        Case("6 examples, D=7, k=2, loud noise", ppca(draw, 6, 7, 2, 2.5)),
        Case("a batch of one", ppca(draw, 1, 5, 2, 0.3)),
        Case("one latent", ppca(draw, 4, 3, 1, 0.7)),
        Case("one dimension of x", ppca(draw, 4, 1, 1, 0.5)),
        Case("3 examples, D=3, k=3", ppca(draw, 3, 3, 3, 0.6)),
        Case("more latents than dimensions", ppca(draw, 4, 2, 5, 0.8)),
        Case("130 examples, D=3, k=2", ppca(draw, 130, 3, 2, 0.5)),
        Case("4 examples, D=14, k=12", ppca(draw, 4, 14, 12, 0.5)),
    ]


def number_cases(draw):
    """The same, and sigma2 as a number."""

    def case(label, sigma2):
        *rest, _ = ppca(draw, 5, 4, 3, float(sigma2))
        return Case(label, (*rest, sigma2))

    return [*ppca_cases(draw), case("sigma2=0.3, a number", 0.3), case("sigma2=2, an integer", 2)]


def with_numbers(task: Task, student: Student, draw) -> None:
    """The values, with sigma2 as a tensor and as a number."""
    values_in_evaluation(replace(task, cases=number_cases), student, draw)


def blind(draw, batch: int, dim: int, k: int):
    """A model some of whose latents x does not depend on."""
    x, W, b, sigma2 = ppca(draw, batch, dim, k, 0.5)
    W[:, :2] = 0
    return x, W, b, sigma2


# Of data and loadings, with sigma2 in proportion; a limit or a floor shows at some of them.
SCALES = (1e-6, 1e-3, 1e3, 1e6)


def scaled(draw, size: float, k: int = 3):
    """The same in another unit. Codes and their variances do not depend on it."""
    x, W, b, sigma2 = ppca(draw, 5, 6, k, 0.4)
    return size * x, size * W, size * b, size**2 * sigma2


# Small whole numbers whose columns are neither orthogonal nor of equal length.
WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.0, 2.0], [1.5, 0.0]])
OFFSET = torch.tensor([0.5, -1.0, 2.0, 0.0])
NOISE = torch.tensor(0.5)
POINTS = line(-2, 3, 5, 4)

# ---- ppca_posterior(x, W, b, sigma2): a mean for each example, one covariance


def ppca_posterior(x, W, b, sigma2):
    _, lengths, directions = torch.linalg.svd(W, full_matrices=True)
    d = torch.cat((lengths, lengths.new_zeros(W.shape[1] - len(lengths))))
    scaled = (x - b) @ W @ directions.mT / (d**2 + sigma2)
    return scaled @ directions, (directions.mT * (sigma2 / (d**2 + sigma2))) @ directions


def posterior_slips(x, W, b, s):
    k, xt, gram = W.shape[1], x - b, W.mT @ W
    eye = torch.eye(k, dtype=W.dtype)
    M = gram + s * eye
    inverse = torch.linalg.inv(M)
    right = xt @ W @ inverse, s * inverse
    yield "", right

    def means():
        yield "b is not subtracted", x @ W @ inverse
        yield "b is added, not subtracted", (x + b) @ W @ inverse
        yield "the mean of the batch is subtracted, not b", (x - x.mean(0)) @ W @ inverse
        yield "b is subtracted after the multiplication, from the codes", x @ W @ inverse - b @ W
        yield "W'(x - b) is divided by sigma2 with M, which holds no 1/sigma2", xt @ W @ inverse / s
        yield "the mean is the covariance times W'(x - b), without 1/sigma2", s * xt @ W @ inverse
        yield "the inverse of M is missing", xt @ W
        yield "the inverse of M is missing", xt @ W / s
        yield "M multiplies where its inverse belongs", xt @ W @ M
        yield "only the diagonal of M is used", xt @ W / M.diagonal()
        yield (
            "W'W stands in place of M: this is least squares, without the prior",
            xt @ torch.linalg.pinv(W).mT,
        )
        yield "the sign is flipped", -right[0]
        yield "the mean is scaled as if the codes had no noise", right[0] / right[0].std(0)
        yield "W m + b, the reconstruction, is returned in place of the mean", right[0] @ W.mT + b
        yield "the mean is returned as (k, batch)", right[0].mT
        yield "only the first example is used", right[0][0]
        yield "the mean over the batch is taken", right[0].mean(0)

    def covs():
        yield "sigma2 is missing from the covariance", inverse
        yield "the covariance is divided by sigma2, not multiplied", inverse / s
        yield "sigma2 is squared in the covariance", s**2 * inverse
        yield "its square root stands in place of sigma2 in the covariance", s**0.5 * inverse
        yield "the precision, its inverse, is returned in place of the covariance", M / s
        yield "M is returned in place of the covariance", M
        yield "M is returned in place of the covariance", s * M
        best = (s / M.diagonal()).diag()
        yield "it is the covariance of the best diagonal q, not of the posterior", best
        yield "the variances of the best diagonal q are returned, not the covariance", best.diagonal()
        kept = s * inverse.diagonal()
        yield "the covariance has its diagonal only", kept.diag()
        yield "the variances are returned, not the covariance", kept
        yield (
            "every example gets a copy of the covariance, which is the same for all",
            right[1].expand(len(x), k, k),
        )
        yield "the Cholesky factor is returned, not the covariance", torch.linalg.cholesky(right[1])
        yield "the covariance is that of x, not that of z", W @ W.mT + s * torch.eye(len(W), dtype=W.dtype)
        yield "the covariance is that of the prior", eye
        yield "the covariance is that of the means over the batch", torch.cov(right[0].mT).reshape(k, k)
        yield "sigma2 I stands in place of the covariance", s * eye

    def wholes():
        """Mistakes in M itself, which reach both."""
        for clause, matrix, noise in (
            ("sigma2 is taken as the standard deviation and squared", gram + s**2 * eye, s**2),
            ("sigma2 is taken as the standard deviation and squared", gram + s**2 * eye, s),
            ("the square root of sigma2 is taken", gram + s**0.5 * eye, s**0.5),
            ("the square root of sigma2 is taken", gram + s**0.5 * eye, s),
            ("the identity in M lacks its sigma2", gram + eye, s),
            ("the identity in M lacks its sigma2", gram + eye, 1.0),
            ("sigma2 is added to every entry of W'W, not to the diagonal", gram + s, s),
            ("sigma2 is subtracted in M, not added", gram - s * eye, s),
            ("M has I / sigma2 in place of sigma2 I", gram + eye / s, s),
            ("W'W is divided by sigma2 in M", gram / s + s * eye, s),
            ("W'W is divided by the number of dimensions", gram / len(W) + s * eye, s),
            ("sigma2 is divided by the number of dimensions", gram + s / len(W) * eye, s),
            ("only the diagonal of M is used", M.diagonal().diag(), s),
            ("M is inverted entry by entry", None, s),
        ):
            inverted = 1 / M if matrix is None else torch.linalg.pinv(matrix)
            yield clause, (xt @ W @ inverted, noise * inverted)
        least = torch.linalg.pinv(gram)
        yield (
            "W'W stands in place of M: this is least squares, without the prior",
            (xt @ W @ least, s * least),
        )

    yield from wholes()
    yield "mean and covariance are returned in the wrong order", right[::-1]
    yield "the mean alone is returned", right[0]
    yield "the covariance alone is returned", right[1]
    for (of_mean, mean), (of_cov, cov) in product([("", right[0]), *means()], [("", right[1]), *covs()]):
        if of_mean or of_cov:
            yield tuple(words for words in (of_mean, of_cov) if words), (mean, cov)


def posterior_extremes(draw):
    return [
        (Case("D=200, sigma2=1e-10", ppca(draw, 3, 200, 5, 1e-10)), f64, 1e-6),
        (Case("D=200, sigma2=1e6", ppca(draw, 3, 200, 5, 1e6)), f64, 1e-9),
        (Case("D=2, k=5, sigma2=1e-6", ppca(draw, 3, 2, 5, 1e-6)), f64, 1e-6),
        *((Case(f"x, b and W of size {size:g}", scaled(draw, size)), f64, 1e-9) for size in SCALES),
        (Case("outliers: x near 1000000", (1e6 * draw(4, 5), *model(draw, 5, 2, 0.5))), f64, 1e-9),
        (Case("two columns of W are 0", blind(draw, 4, 5, 4)), f64, 1e-9),
        (Case("D=200, sigma2=1e-5", ppca(draw, 3, 200, 5, 1e-5)), f32, 1e-3),
    ]


def posterior_properties(student: Student):
    def call(x=POINTS, W=WEIGHT, sigma2=NOISE):
        return student(x.clone(), W.clone(), OFFSET.clone(), sigma2)

    result = call()
    right = isinstance(result, tuple | list) and len(result) == 2
    right = right and [getattr(part, "shape", None) for part in result] == [(5, 2), (2, 2)]
    why = f"expected a mean of shape (5, 2) and a covariance of shape (2, 2), and got {shape(result)}"
    yield "a mean for each example, one covariance", "" if right else why
    yield "finite", "" if finite(result) else "some numbers are not finite"
    cov = result[1]
    symmetric = torch.allclose(cov, cov.mT, atol=1e-5) and bool((torch.linalg.eigvalsh(cov) > 0).all())
    yield "a covariance", "" if symmetric else "a covariance is symmetric with positive eigenvalues"
    why = (
        ""
        if same(call(sigma2=0.5), tuple(result), 1e-4, 1e-5)
        else "sigma2=0.5 and torch.tensor(0.5) are the same"
    )
    yield "sigma2 may be a number", why
    why = "" if call(OFFSET.repeat(3, 1))[0].abs().max() < 1e-5 else "at x = b, z = 0 explains all there is"
    yield "no surprise at x = b", why
    blind = call(W=torch.zeros(4, 2))
    right = blind[0].abs().max() < 1e-5 and torch.allclose(blind[1], torch.eye(2), atol=1e-5)
    yield "the prior when W = 0", "" if right else "when x does not depend on z, nothing is learnt from it"


def precise(task: Task, student: Student, draw) -> None:
    """Stability, with covariances compared entry by entry, however small they are."""
    stability(replace(task, canonical=relative), student, draw)


def relative(result):
    """Log variances on the diagonal of the covariance, correlations off it."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        return result
    mean, cov = result
    if not isinstance(cov, Tensor) or cov.dim() != 2 or cov.shape[0] != cov.shape[1]:
        return result
    std = cov.diagonal().sqrt()
    scaled = cov / std / std[:, None]
    return mean, scaled - scaled.diagonal().diag() + 2 * std.log().diag()


PPCA_POSTERIOR = Task(
    name="ppca_posterior",
    read=DENSITY,
    reference=ppca_posterior,
    slips=posterior_slips,
    properties=posterior_properties,
    cases=ppca_cases,
    probes=lambda draw: [
        Case("", ppca(draw, 5, 4, 3, 0.4)),
        Case("", ppca(draw, 6, 7, 2, 2.5)),
    ],
    extremes=posterior_extremes,
    hint="solve with the k x k matrix M, and add and limit nothing; subtracting from I what is nearly I "
    "leaves no digits",
    tests={"values": with_numbers, "stability": precise},
)

# ---- ppca_log_likelihood(x, W, b, sigma2): log p(x) of each example


def ppca_log_likelihood(x, W, b, sigma2):
    # By the k x k matrix M; the squared distances are sums of positive terms, so nothing cancels.
    dim, k = W.shape
    sigma2 = torch.as_tensor(sigma2, dtype=W.dtype)
    M = W.mT @ W + sigma2 * torch.eye(k, dtype=W.dtype)
    mean = torch.linalg.solve(M, ((x - b) @ W).mT).mT
    square = ((x - b - mean @ W.mT) ** 2).sum(1) / sigma2 + (mean**2).sum(1)
    logdet = (dim - k) * sigma2.log() + torch.linalg.slogdet(M)[1]
    return -0.5 * (dim * math.log(2 * math.pi) + logdet + square)


def likelihood_slips(x, W, b, s):
    dim, k = W.shape
    s = torch.as_tensor(s, dtype=W.dtype)
    xt, eye, gram = x - b, torch.eye(dim, dtype=W.dtype), W.mT @ W
    C, M, c = W @ W.mT + s * eye, gram + s * torch.eye(k, dtype=W.dtype), math.log(2 * math.pi)

    def logdet(matrix):
        return torch.linalg.slogdet(matrix)[1]

    def square(matrix, centred=xt):
        return ((centred @ torch.linalg.pinv(matrix)) * centred).sum(1)

    def formulas():
        d, e, n = logdet(C), square(C), dim * c
        mean = xt @ W @ torch.linalg.inv(M)
        left = (xt - mean @ W.mT).square().sum(1)
        yield "", -0.5 * (n + d + e)
        yield "b is not subtracted", -0.5 * (n + d + square(C, x))
        yield "b is added, not subtracted", -0.5 * (n + d + square(C, x + b))
        yield "the mean of the batch is subtracted, not b", -0.5 * (n + d + square(C, x - x.mean(0)))
        yield "the half in front is missing", -(n + d + e)
        yield "the half multiplies a part of the bracket only", -0.5 * (n + d) - e
        yield "the half multiplies a part of the bracket only", -0.5 * n - d - e
        yield "the half multiplies a part of the bracket only", -0.5 * (d + e) - n
        yield "the half multiplies a part of the bracket only", -0.5 * (n + e) - d
        yield "the half multiplies a part of the bracket only", -0.5 * e - n - d
        yield "the half multiplies a part of the bracket only", -0.5 * d - n - e
        yield "the constant with log 2 pi is missing", -0.5 * (d + e)
        yield "the constant is counted once, not once per dimension", -0.5 * (c + d + e)
        yield "the constant is counted k times, not once per dimension of x", -0.5 * (k * c + d + e)
        yield "the constant has the wrong sign", -0.5 * (-n + d + e)
        yield "the log of 2 pi is missing", -0.5 * (2 * math.pi * dim + d + e)
        yield "the constant has log pi, not log 2 pi", -0.5 * (dim * math.log(math.pi) + d + e)
        yield "the log-determinant has the wrong sign", -0.5 * (n - d + e)
        yield "the log-determinant is missing", -0.5 * (n + e)
        factor = "the log-determinant is halved: that of a Cholesky factor is half that of its matrix"
        yield factor, -0.5 * (n + d / 2 + e)
        yield "the log-determinant is counted twice", -0.5 * (n + 2 * d + e)
        yield "the log-determinant is multiplied by the dimension", -0.5 * (n + dim * d + e)
        yield "the determinant stands in place of its log", -0.5 * (n + d.exp() + e)
        yield "the sign of the determinant is taken, not its log", -0.5 * (n + 1 + e)
        yield "the log of the trace stands in place of the log-determinant", -0.5 * (n + C.trace().log() + e)
        short = "log det M stands for the log-determinant of the covariance of x"
        yield short, -0.5 * (n + logdet(M) + e)
        yield "k powers of sigma2 too many are in the determinant", -0.5 * (n + logdet(M) + dim * s.log() + e)
        yield "the quadratic term is missing", -0.5 * (n + d + 0 * e)
        yield "the quadratic term has the wrong sign", -0.5 * (n + d - e)
        yield "the quadratic term is halved", -0.5 * (n + d + e / 2)
        yield "the quadratic term is not squared: it is a distance", -0.5 * (n + d + e.sqrt())
        bare = "the covariance stands in the quadratic term, not its inverse"
        yield bare, -0.5 * (n + d + ((xt @ C) * xt).sum(1))
        yield "the covariance is squared in the quadratic term", -0.5 * (n + d + square(C @ C))
        factor = "the Cholesky factor stands where the covariance belongs"
        yield factor, -0.5 * (n + d + square(torch.linalg.cholesky(C)))
        yield "the quadratic term ignores the covariance", -0.5 * (n + d + xt.square().sum(1))
        yield "the quadratic term ignores W", -0.5 * (n + d + xt.square().sum(1) / s)
        yield "the quadratic term is summed over the batch", -0.5 * (n + d + e.sum() + 0 * e)
        for clause, matrix in (
            ("sigma2 is taken as the standard deviation and squared", W @ W.mT + s**2 * eye),
            ("the square root of sigma2 is taken", W @ W.mT + s.sqrt() * eye),
            ("the identity lacks its sigma2", W @ W.mT + eye),
            ("sigma2 is added to every entry of W W', not to the diagonal", W @ W.mT + s),
            ("sigma2 multiplies W W' too", s * (W @ W.mT + eye)),
            ("W W' is divided by sigma2", W @ W.mT / s + eye),
            ("W W' is divided by sigma2", W @ W.mT / s + s * eye),
            ("the noise is left out", W @ W.mT + 1e-6 * eye),
            ("only the diagonal of the covariance is used", C.diagonal().diag()),
            ("sigma2 / D stands in place of sigma2", W @ W.mT + s / dim * eye),
            ("the covariance is taken from the batch, not from the model", torch.cov(x.mT).reshape(dim, dim)),
        ):
            yield clause, -0.5 * (n + logdet(matrix) + square(matrix))
        plugged = -0.5 * (n + dim * s.log() + left / s)
        at_mean = "z is set to its posterior mean, not integrated out"
        yield f"{at_mean}: this is log p(x|z) there", plugged
        joint = plugged - 0.5 * (k * c + mean.square().sum(1))
        yield f"{at_mean}: this is the log joint there", joint
        origin = "W is not used: this is log p(x|z) at z = 0"
        yield origin, -0.5 * (n + dim * s.log() + xt.square().sum(1) / s)
        expected = plugged - 0.5 * (gram @ torch.linalg.inv(M)).trace()
        yield "it is the average of log p(x|z) over the posterior, without the KL", expected
        gap = 0.5 * (M.diagonal().log().sum() - logdet(M))
        yield "it is the bound of the best diagonal q, below log p(x)", -0.5 * (n + d + e) - gap
        yield "the density is returned, not its log", (-0.5 * (n + d + e)).exp()

    for clause, value in formulas():
        yield clause, (value[:, None] / dim).expand(len(x), dim)  # so that a mean over dimensions shows


def likelihood_extremes(draw):
    # Where a D x D covariance has condition 1e9, its inverse is known to 1e-6, by any road.
    return [
        (Case("D=200, sigma2=1e-6", ppca(draw, 3, 200, 5, 1e-6)), f64, 1e-5),
        (Case("D=200, sigma2=1e4", ppca(draw, 3, 200, 5, 1e4)), f64, 1e-9),
        *((Case(f"x, b and W of size {size:g}", scaled(draw, size)), f64, 1e-9) for size in SCALES),
        (Case("outliers: x near 1000000", (1e6 * draw(4, 5), *model(draw, 5, 2, 0.5))), f64, 1e-9),
        (Case("two columns of W are 0", blind(draw, 4, 5, 4)), f64, 1e-9),
        (Case("D=200, sigma2=0.01", ppca(draw, 3, 200, 5, 0.01)), f32, 3e-3),
    ]


def likelihood_properties(student: Student):
    def call(x=POINTS, W=WEIGHT, sigma2=NOISE):
        return student(x.clone(), W.clone(), OFFSET.clone(), sigma2)

    log_p = call()
    yield "one number per example", per_example(log_p, 5)
    yield "finite", "" if finite(log_p) else "some values are not finite"
    why = "" if torch.allclose(call(sigma2=0.5), log_p) else "sigma2=0.5 and torch.tensor(0.5) are the same"
    yield "sigma2 may be a number", why
    peak = call(OFFSET.repeat(5, 1))
    yield "largest at x = b", "" if (peak > log_p).all() else "the density peaks at its mean"
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    why = "" if torch.allclose(call(W=WEIGHT @ turn), log_p, rtol=1e-4) else "the prior is round: so W R is W"
    yield "a rotation of the latents changes nothing", why


PPCA_LOG_LIKELIHOOD = Task(
    name="ppca_log_likelihood",
    read=DENSITY,
    reference=ppca_log_likelihood,
    slips=lambda *arguments: spread(likelihood_slips(*arguments), REDUCTIONS, BOUND_SCALES),
    properties=likelihood_properties,
    cases=ppca_cases,
    probes=lambda draw: [
        Case("", ppca(draw, 5, 4, 3, 0.4)),
        Case("", ppca(draw, 6, 7, 2, 2.5)),
    ],
    extremes=likelihood_extremes,
    differentiate=(0, 1, 2, 3),
    hint="a determinant under- or overflows where its log does not; a jitter, a floor or a limit changes the "
    "answer",
    tests={"values": with_numbers, "gradients": gradients, "stability": stability},
)

# ---- fit_posterior(x, log_joint, mean, logvar, steps, lr, generator): a search, tested by where it ends


def best_posterior(x, log_joint, *rest):
    """Mean and logvar of the best diagonal Gaussian for each example: variances sigma2 / M_jj."""
    mean, _ = ppca_posterior(x, *log_joint.tensors)
    return mean, -precision(log_joint).diagonal().log().expand_as(mean)


def precision(log_joint: LinearJoint) -> Tensor:
    """The inverse of the posterior's covariance, (k, k)."""
    weight, _, variance = log_joint.tensors
    return weight.mT @ weight / variance + torch.eye(weight.shape[1], dtype=weight.dtype)


def bound(log_joint: LinearJoint, x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """The exact ELBO of N(mean, diag exp logvar) for each example, (batch,)."""
    spent = (precision(log_joint).diagonal() * logvar.exp()).sum(-1)
    return log_joint(x, mean) - 0.5 * spent + 0.5 * (logvar + math.log(2 * math.pi) + 1).sum(-1)


def search(draw, batch: int, k: int, dim: int = 6):
    """x, log_joint and a start (mean, logvar). Variances of the best q near 1/2, 1/5 and 1/13, correlated."""
    variance = torch.tensor(0.5, dtype=f64)
    gains = torch.tensor([1.0, 4.0, 12.0], dtype=f64)[:k] * draw(k, low=0.9, high=1.1)
    signs = draw(k).sign()
    correlation = 0.4 * torch.eye(k, dtype=f64) + 0.6 * signs[:, None] * signs
    gram = correlation * (gains[:, None] * gains).sqrt() * variance
    weight = torch.linalg.qr(draw(dim, k)).Q @ torch.linalg.cholesky(gram).mT
    offset = draw(dim)
    x = drawn(draw, batch, weight, offset, variance)
    return x, LinearJoint(weight, offset, variance), draw(batch, k), 0.5 * draw(batch, k) - 3


def is_posterior(result, batch: int, k: int) -> str:
    """Why a result is not a pair (mean, logvar); "" when it is."""
    right = (
        isinstance(result, tuple | list)
        and len(result) == 2
        and all(isinstance(part, Tensor) and part.shape == (batch, k) for part in result)
    )
    return (
        ""
        if right
        else f"expected mean and logvar, two tensors of shape {(batch, k)}, and got {shape(result)}"
    )


def search_properties(student: Student):
    problem = POINTS, LinearJoint(WEIGHT, OFFSET, NOISE), line(-1, 1, 5, 2), line(-2, 0, 5, 2)

    def call(steps=150, seed=0):
        return student(*prepared(problem, f32), steps, 0.05, torch.Generator().manual_seed(seed))

    def detached(result):
        return tuple(part.detach().to(f32) for part in result)

    arguments = prepared(problem, f32)
    result = student(*arguments, 150, 0.05, torch.Generator().manual_seed(0))
    yield "mean and logvar of every example", is_posterior(result, 5, 2)
    result = detached(result)
    yield "finite", "" if finite(result) else "some numbers are not finite"
    unchanged = all(torch.equal(arguments[i], problem[i]) for i in (0, 2, 3))
    yield "the start is left as it was", "" if unchanged else "an input is changed in place: optimise copies"
    why = (
        ""
        if same(detached(call()), result, 0, 0)
        else "two generators with the same seed give different results"
    )
    yield "the same from the same seed", why
    why = (
        ""
        if not same(detached(call(seed=1)), result, 0, 0)
        else "another seed gives the same: draw from the generator"
    )
    yield "another from another seed", why
    before, after = (bound(problem[1], problem[0], *q) for q in (problem[2:], result))
    why = "the bound of some example is lower after 150 steps than at the start"
    yield "every example's bound rises", "" if (after > before).all() else why
    # Of 60 examples the averages are known to a few hundredths.
    x, joint, mean, logvar = (POINTS.repeat(12, 1), problem[1], torch.zeros(60, 2), torch.full((60, 2), -2.0))
    end = detached(student(x, joint, mean, logvar, 300, 0.05, torch.Generator().manual_seed(0)))
    right = best_posterior(x, joint)
    off_mean, off_logvar = ((part - best).mean(0).abs().max() for part, best in zip(end, right))
    why = "averaged over the examples, the means are not the posterior's own, which the best q has"
    yield "300 steps: the means arrive", "" if at_most(off_mean, 0.3) else why
    why = (
        "averaged over the examples, the log-variances are not those of sigma2 / M_jj. Look at the entropy, "
        "at its half, and at the standard deviation of the noise"
    )
    yield "300 steps: the log-variances arrive", "" if at_most(off_logvar, 0.3) else why


# Adam climbs this far and fluctuates little there; so does plain gradient ascent. With as many examples,
# noise drawn step by step uses a generator as noise drawn all at once does: torch fills 16 numbers at a time.
STEPS, RATE, EXAMPLES = 600, 0.04, 208


def searched(student: Student, arguments: tuple, generator, where: str = "", dtype=f64, detach: bool = True):
    """The student's (mean, logvar), finite and of the right shape."""
    mean = arguments[2]
    result = student(*prepared(arguments, dtype), generator, where=where)
    refuse_what_is_none(result, *mean.shape, where)
    return tuple(part.detach() for part in result) if detach else tuple(result)


def refuse_what_is_none(result, batch: int, k: int, where: str) -> None:
    why = is_posterior(result, batch, k)
    if why:
        raise Wrong(f"{why}.", case=where)
    if not finite(result):
        raise Wrong("not all numbers are finite.", RUNAWAY, case=where)


def seeded(draw) -> torch.Generator:
    return torch.Generator().manual_seed(draw.seed().number)


CUT = Cause.of(
    ("z is cut from the graph (by sample(), detach() or no_grad()), and the entropy alone is left",)
)
GIVEN_THE_MEAN = Cause.of(("log_joint is given the mean, not a sample: nothing but the entropy sees logvar",))
ONE_MEAN = Cause.of(("all examples share one mean, though each has a q of its own",))
STILL = Cause(" They are where they started: does anything climb?")
RUNAWAY = Cause(
    " Does the climb run away? Check the sign of the loss, and that logvar enters as the log of the variance."
)
SURE = (CUT, GIVEN_THE_MEAN, ONE_MEAN, STILL, RUNAWAY)  # these need no second look at the noise


def optimum(task: Task, student: Student, draw) -> None:
    """Does the search end at the best diagonal Gaussian? Averaged over many examples, against the noise."""
    problem, where, seed = search(draw, EXAMPLES, 3), f"{EXAMPLES} examples, 3 latents", draw.seed()
    generator = torch.Generator().manual_seed(seed.number)
    end = searched(student, (*problem, STEPS, RATE), generator, where)
    missed = miss(problem, end)
    words, cause = missed or ("", UNKNOWN)
    if cause not in SURE:
        all_steps(task, student, problem, seed, generator, end)
    if missed:
        if cause not in SURE:
            name_noise(task, student, draw)
        raise Wrong(words, cause, case=where)
    counts(task, student, draw)
    far_starts(student, draw)


def name_noise(task: Task, student: Student, draw) -> None:
    """Raise `Wrong` if the mistake is one of the noise."""
    freshness(task, student, draw)
    independence(task, student, draw)


def all_steps(task: Task, student: Student, problem: tuple, seed: Seed, generator, end: tuple) -> None:
    """Raise `Wrong` if the search has taken fewer steps than asked, as far as the generator tells: how much
    one draws is seen when there is only one. Noise that serves twice is for another test."""

    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(seed.number)

    after, once, size = generator.get_state(), fresh(), problem[2].numel()
    end_of_one = searched(student, (*problem, 1, RATE), once, "steps=1")
    if torch.equal(once.get_state(), after):
        if same(end, end_of_one, 0, 0):
            raise Wrong(f"1 step and {STEPS} steps end at the same place: `steps` is not used.")
        return
    for samples, dtype in product(range(1, 11), (f64, f32)):
        again = fresh()
        torch.randn(samples * size, generator=again, dtype=dtype)
        if torch.equal(again.get_state(), once.get_state()):
            break
    else:
        return
    for _ in range(STEPS - 2):
        if torch.equal(again.get_state(), after) and not stale(student, problem, seed):
            raise Wrong("the search takes fewer steps than `steps` says, and stops early. Take them all.")
        torch.randn(samples * size, generator=again, dtype=dtype)


def stale(student: Student, problem: tuple, seed: Seed) -> bool:
    """Whether there is a step among the first that moves and draws no noise."""
    ends, states = [], []
    for steps in range(1, 7):
        generator = torch.Generator().manual_seed(seed.number)
        ends.append(searched(student, (*problem, steps, RATE), generator, f"{steps} steps"))
        states.append(generator.get_state())
    pairs = zip(ends, ends[1:], states, states[1:])
    return any(torch.equal(s, later) and not same(e, next_e, 0, 0) for e, next_e, s, later in pairs)


def axes(draw, precisions: Tensor) -> tuple[Tensor, LinearJoint]:
    """An x (D,) and a model in which its posterior is N(0, diag(1 / precisions)); these are larger than 1."""
    variance, offset = torch.tensor(0.5, dtype=f64), draw(len(precisions) + 2)
    weight = torch.eye(len(offset), len(precisions), dtype=f64) * ((precisions - 1) * variance).sqrt()
    return offset, LinearJoint(weight, offset, variance)


def far_starts(student: Student, draw) -> None:
    """One step from far away: whatever the noise, it is known which way is up."""
    far = [
        ("a start with log-variances of 25", 2.0, 0.0, 25.0, (None, -1)),
        ("a start with log-variances of -25, where the best are lower", 1e18, 0.0, -25.0, (None, -1)),
        ("a start with log-variances of -25, where the best are higher", 2.0, 0.0, -25.0, (None, 1)),
        ("a start with means of 1000000", 2.0, 1e6, 0.0, (-1, None)),
        ("a start with means of -1000", 2.0, -1e3, 0.0, (1, None)),
    ]
    for where, precision_, mean, logvar, ways in far:
        x, joint = axes(draw, torch.full((2,), precision_, dtype=f64))
        start = torch.full((4, 2), mean, dtype=f64), torch.full((4, 2), logvar, dtype=f64)
        end = searched(student, (x.repeat(4, 1), joint, *start, 1, 0.01), seeded(draw), where)
        if same(end, start, 0, 0):
            return  # one step is none: another test counts them
        for name, then, now, way in zip(("means", "log-variances"), start, end, ways):
            if way is not None and not (way * (now - then) > 0).all():
                raise Wrong(
                    f"the search ends well from an ordinary start, but from here the {name} do not move "
                    "towards the best. Is something limited (clamped) on the way?",
                    case=where,
                )


def counts(task: Task, student: Student, draw) -> None:
    """The same on a model whose posterior is not Gaussian, and whose best variances differ by example.

    The expected log joint of a N(m, s) is (x + a) m - (1 + r) exp(m + s / 2), so the best has s = 1 / (x + a)
    and exp(m + s / 2) = (x + a) / (1 + r). The mode, log((x + a) / (1 + r)), lies s / 2 above its mean.
    """
    a, r = torch.tensor([1.2, 2.0, 4.0], dtype=f64), torch.tensor([0.5, 0.7, 1.0], dtype=f64)
    x = (6 * draw(EXAMPLES, 3, low=0, high=1) ** 2).floor()
    start = 0.5 * draw(EXAMPLES, 3), 0.5 * draw(EXAMPLES, 3) - 3
    where = f"{EXAMPLES} examples, a posterior that is not Gaussian"
    problem = (x, CountJoint(a, r), *start, STEPS, RATE)
    mean, logvar = searched(student, problem, seeded(draw), where)
    right_logvar = -(x + a).log()
    mode = ((x + a) / (1 + r)).log()
    std = torch.exp(right_logvar / 2)
    off_mean, off_logvar = (mean - mode) / std + std / 2, logvar - right_logvar
    if not finite((mean, logvar)):
        raise Wrong("not all numbers are finite.", case=where)
    far_mean = off_mean.mean(0).abs().max() > 0.15
    far_logvar = off_logvar.mean(0).abs().max() > 0.12 or off_logvar.square().mean(0).max() > 0.45**2
    if far_mean or far_logvar:
        which = " and ".join(["means"] * bool(far_mean) + ["log-variances"] * bool(far_logvar))
        cause = UNKNOWN
        if ((mean - mode) / std).mean(0).abs().max() < 0.1:
            cause = Cause(
                " The means are at the mode of the posterior, where only those of a Gaussian posterior "
                "belong. Both mean and logvar are to get their gradients from log_joint at the sample."
            )
        elif logvar.std(0).max() < 0.2:
            cause = Cause(" All examples have the same log-variances, though each has a q of its own.")
        if not cause:
            name_noise(task, student, draw)
        raise Wrong(f"the {which} are not those of the best diagonal Gaussian.", cause, case=where)


def miss(problem: tuple, q: tuple[Tensor, Tensor]) -> tuple[str, Cause] | None:
    """Why this q, a (mean, logvar), is not where the search should end, and the cause; None when it is.

    A right search with Adam misses the averages by less than 0.06, of logvar and of means in units of the
    standard deviation, and single examples by 0.3. One with plain gradient ascent misses single means by 0.7.
    """
    x, joint, *_ = problem
    mean, logvar = q
    if not finite(q):
        return "not all numbers are finite.", RUNAWAY
    right_mean, right_logvar = best_posterior(x, joint)
    off_mean, off_logvar = (mean - right_mean) * torch.exp(-right_logvar / 2), logvar - right_logvar
    far_mean = off_mean.mean(0).abs().max() > 0.5 or off_mean.square().mean(0).max() > 1.5**2
    slope = (mean * right_mean).sum(0) / right_mean.square().sum(0)
    far_mean |= (slope - 1).abs().max() > 0.2
    far_logvar = off_logvar.mean(0).abs().max() > 0.16 or off_logvar.square().mean(0).max() > 0.5**2
    if not far_mean and not far_logvar:
        return None
    which = "means and log-variances" if far_mean and far_logvar else "means" if far_mean else "log-variances"
    return f"the {which} are not those of the best diagonal Gaussian.", reason(problem, q)


ENTROPY = "the entropy weighs {} against log_joint"


def other_ends(joint: LinearJoint, batch: int) -> Iterator[tuple[str, Tensor]]:
    """Where the log-variances (k,) of a wrong search end, or what it returns in their place."""
    full = precision(joint)
    d, k = full.diagonal(), len(full)
    right = -d.log()
    log_std = "logvar is taken as the log of the standard deviation: exp(logvar) is the variance"
    yield "", right
    yield ENTROPY.format("twice what it should (a missing half?)"), right + math.log(2)
    yield ENTROPY.format("half what it should: it is logvar.sum() / 2 plus a constant"), right - math.log(2)
    yield log_std, right / 2
    yield log_std, -(2 * d).log() / 2
    yield "the standard deviation is exp(2 logvar), not exp(logvar / 2)", right / 4
    yield "the standard deviation is exp(2 logvar), not exp(logvar / 2)", -(4 * d).log() / 4
    yield "the standard deviation is exp(logvar / 4), not exp(logvar / 2)", 2 * (2 / d).log()
    yield "logvar is a standard deviation: it is taken as one, or one is returned in its place", 1 / d.sqrt()
    yield "logvar is taken as the standard deviation", 1 / (2 * d)
    yield "the variance is returned, not logvar", 1 / d
    yield "the sign of logvar is flipped: this is the log of the precision", d.log()
    yield "the prior counts twice: log_joint holds it already, so no KL from it belongs here", -(d + 1).log()
    yield "the entropy is averaged over the latents, and log_joint is a sum", right - math.log(k)
    if batch > 1:
        yield "the entropy is averaged over the batch, and log_joint is summed", right - math.log(batch)
        yield "log_joint is averaged over the batch, and the entropy is summed", right + math.log(batch)
    yield "these are the variances of the exact posterior, not of q", torch.linalg.inv(full).diagonal().log()
    yield "the noise is uniform (torch.rand), not normal (torch.randn)", right + math.log(12)
    # Half of all steps go either way where z^2 has its median.
    yield "the optimiser is made anew at each step, so that every step has the same size", right + 0.788
    yield "logvar is averaged over the latents", right.mean().expand_as(right)
    yield "all latents share one variance", (k / d.sum()).log().expand_as(right)
    shared = torch.ones_like(d) / d.sqrt()
    for _ in range(200):  # one noise for all latents: std_i sum_j P_ij std_j = 1
        shared = (shared / (full @ shared).clamp_min(1e-3)).sqrt()
    yield "one noise serves for all latents of an example", 2 * shared.log()


def reason(problem: tuple, q: tuple[Tensor, Tensor]) -> Cause:
    """What to add: the mistake that ends where this search did, if one does."""
    x, joint, start_mean, start_logvar = problem
    mean, logvar = q
    right_mean, right_logvar = best_posterior(x, joint)
    moved = [(end - start).abs().mean() > 0.05 for end, start in ((mean, start_mean), (logvar, start_logvar))]

    if not any(moved):
        return STILL
    if not moved[0]:
        if (logvar - right_logvar).mean() > 3:
            return CUT
        return Cause.of(("the mean stays where it started: both tensors are to be optimised",))
    if not moved[1]:
        return Cause.of(("logvar stays where it started: both tensors are to be optimised",))
    if len(mean) > 1 and mean.std(0).max() < 1e-9:
        return ONE_MEAN
    std = torch.exp(right_logvar / 2)
    if ((logvar - right_mean) / std).abs().mean() < 1 < ((mean - right_mean) / std).abs().mean():
        return Cause.of(("mean and logvar are returned in the wrong order",))
    if (mean - right_mean).square().mean() > 4 * (start_mean - right_mean).square().mean() + 1:
        return Cause(
            " The search runs away. Does it go downhill (an optimiser makes its loss small, so that is "
            "minus the bound), or are the gradients not set to zero before each step?"
        )
    average = logvar.mean(0)
    distances = [((average - end).abs().max().item(), clause) for clause, end in other_ends(joint, len(mean))]
    distance, clause = min(distances)
    if logvar.std(0).max() < 0.6 and distance < 0.12:
        if clause:
            return Cause.of((clause,))
        if mean.std(0).max() < 0.3 * right_mean.std(0).max():
            return ONE_MEAN
        return Cause(" The log-variances are right: so look at what the means get.")
    off = average - right_logvar[0]
    if off.max() < -2:
        return Cause.of(
            ("the entropy is missing or has the wrong sign, or hardly any weight, and q shrinks to a point",)
        )
    if off.min() > 2:
        residual = (mean - right_mean) * torch.exp(-logvar / 2)
        if residual.square().mean() > 0.3:
            return Cause.of(
                ("the noise is drawn once and serves for every step: q spreads and aims with it",)
            )
        return GIVEN_THE_MEAN
    if len(off) > 1 and off.std() < 0.06:
        return Cause.of(
            ("log_joint and entropy are weighed differently, for example one summed and one averaged",)
        )
    if logvar.std(0).max() > 0.5:
        return Cause(
            " Single examples scatter far more than they should: is the noise fresh at every step, are the "
            "gradients set to zero before each, and is lr the step size given?"
        )
    before, after = ((part - right_logvar).abs().mean() for part in (start_logvar, logvar))
    if after < before:
        return Cause(
            " The search is on its way and does not arrive: run all steps of Adam, with lr as given."
        )
    return UNKNOWN


def noise(task: Task, student: Student, draw) -> None:
    """From the generator, normal, and fresh for every step, example and latent?"""
    problem = search(draw, 5, 3)
    uses_generator(student, lambda generator: searched(student, (*problem, 4, 0.05), generator))
    freshness(task, student, draw)
    independence(task, student, draw)


def freshness(task: Task, student: Student, draw) -> None:
    """Is the noise drawn anew for every step, example and latent?"""
    problem = search(draw, 5, 3)
    states, ends = [], []
    for steps in (1, 2, 3, 4, 5, 6):
        generator = torch.Generator().manual_seed(7)
        ends.append(searched(student, (*problem, steps, 0.05), generator, f"{steps} steps"))
        states.append(generator.get_state())
    for state, following, end, next_end in zip(states, states[1:], ends, ends[1:]):
        if not torch.equal(state, following):
            continue
        if same(end, next_end, 0, 0):
            raise Wrong(
                "one more step changes nothing: the search ends where it did before. Is `steps` used?"
            )
        raise Wrong(
            "one more step draws no more noise, so the same noise serves for several steps. Draw anew at "
            "each."
        )
    # Nothing but noise can tell equal examples apart, or the latents of this model.
    weight = 1.5 * torch.linalg.qr(draw(6, 4)).Q
    offset = draw(6)
    twins = (
        offset.repeat(7, 1),
        LinearJoint(weight, offset, torch.tensor(0.5, dtype=f64)),
        torch.full((7, 4), 0.5, dtype=f64),
        torch.full((7, 4), -1.0, dtype=f64),
    )
    mean, logvar = searched(student, (*twins, 12, 0.05), seeded(draw), "equal examples")
    for what, first in (("examples", (mean[:1], logvar[:1])), ("latents", (mean[:, :1], logvar[:, :1]))):
        if same((mean, logvar), tuple(part.expand_as(mean) for part in first), 0, 1e-6):
            raise Wrong(f"one noise serves for all {what}. Draw as many numbers as mean has.")


# From a start at the posterior mean a mean moves against its noise, and logvar upwards where the noise is
# below a bound, which is another for each latent here. So the direction of one step, whatever its size, tells
# the sign of every number drawn and how large it is.
BOUNDS_OF_NOISE = torch.tensor([0.3, 0.7, 1.2, 1.5, 2.0, 2.5, 3.1], dtype=f64)
PROBED = 16_000  # examples
FAR_OUT = 8.0  # standard deviations: of 200 000 numbers, one is beyond by chance once in 10^9 times


def independence(task: Task, student: Student, draw) -> None:
    """Are the numbers drawn for a step normal, and independent of each other and of the step before?"""
    logvar, where = -8.0, "one step of many equal examples"
    x, joint = axes(draw, 1 / (BOUNDS_OF_NOISE**2 * math.exp(logvar)))
    size = PROBED, len(BOUNDS_OF_NOISE)
    start = torch.zeros(size, dtype=f64), torch.full(size, logvar, dtype=f64)
    seed = draw.seed()

    def end(steps: int, examples: int):
        generator = torch.Generator().manual_seed(seed.number)
        problem = x.repeat(examples, 1), joint, *(part[:examples] for part in start)
        return searched(student, (*problem, steps, 1e-3), generator, where)

    mean_moves, logvar_moves = (now - then for now, then in zip(end(1, PROBED), start))
    told = (
        mean_moves.abs().median() > 1e-6 * logvar_moves.abs().median()
    )  # antithetic noise cancels in the means
    for move in (mean_moves, logvar_moves) if told else (logvar_moves,):
        if (move != 0).any() and not (move != 0).all():
            raise Wrong(
                "some examples, or latents, are left where they are. Search for all of them.", case=where
            )
    symmetric = (mean_moves > 0).to(f64)
    told = bool(told and ((symmetric.mean(0) - 0.5).abs() < 0.45).all())
    signs = symmetric if told else (logvar_moves > 0).to(f64)
    if told and not at_most((symmetric.mean(0) - 0.5).abs().max() * 2 * math.sqrt(PROBED), FAR_OUT):
        raise Wrong("the noise is not as often positive as negative: is it normal (torch.randn)?", case=where)
    refuse_dependent(signs, where)
    refuse_unusual((logvar_moves > 0).to(f64), where)
    steps = [end(number, 200) for number in (1, 2)]
    ratios = [
        (second - first) / (first - then[:200])
        for first, second, then in zip(*steps, start)
        if (first != then[:200]).all()
    ]
    if ratios and all(bool((ratio.std() < 1e-3 * ratio.mean().abs()).all()) for ratio in ratios):
        raise Wrong("the second step has the noise of the first, or its mirror image. Draw anew at each.")


def refuse_dependent(signs: Tensor, where: str) -> None:
    """Raise `Wrong` if some of these (examples, latents), ones and zeros, depend on each other."""
    centred = signs - signs.mean(0)
    spread_ = centred.square().mean(0).sqrt()
    kept = spread_ > 0.14  # the others are nearly all ones, or zeros
    if not kept.any():
        return
    row = (centred[:, kept] / spread_[kept]).flatten()
    latents, count = int(kept.sum()), len(row)
    spectrum = torch.fft.rfft(row)
    # For every distance, and for every centre, the sum of the products of the pairs at it, or around it.
    ahead = torch.fft.irfft(spectrum.abs() ** 2, count)[1:].abs() / math.sqrt(count)
    around = torch.fft.irfft(spectrum**2, count).abs() / math.sqrt(2 * count)
    if at_most(ahead.max(), FAR_OUT) and at_most(around.max(), FAR_OUT):
        return
    distance = 1 + int(ahead.argmax())
    what = "latents of an example" if distance < latents and ahead.max() > FAR_OUT else "examples"
    raise Wrong(
        f"the noise of some {what} is that of others, its mirror image, or depends on it. Draw as many "
        "independent numbers as mean has.",
        case=where,
    )


def refuse_unusual(up: Tensor, where: str) -> None:
    """Raise `Wrong` unless these ones and zeros (examples, latents) are those of normal noise.

    The bounds may be multiplied by an unknown factor, as when entropy or standard deviation are wrong, and a
    step may average over several draws, or over all there are.
    """
    chance = up.mean(0)
    if chance.max() - chance.min() < 0.05 or (up == up[:, :1]).all():
        return  # it is not the noise that decides, or the latents share one variance
    factors = torch.logspace(-1.7, 1.7, 500, dtype=f64)[:, None] * BOUNDS_OF_NOISE
    found = chance.sqrt().asin()
    for draws in (*range(1, 21), math.inf):
        if draws == math.inf:
            chances = (factors > 1).to(f64)
        else:
            chances = torch.special.gammainc(torch.tensor(draws / 2, dtype=f64), draws * factors**2 / 2)
        for expected in (chances, 1 - chances):
            misses = 2 * math.sqrt(len(up)) * (found - expected.sqrt().asin())
            if (misses.abs().max(1).values < FAR_OUT).any():
                return
    raise Wrong(
        "the noise is not normal: it is cut off, uniform or of another kind. Draw it with torch.randn.",
        case=where,
    )


def inputs(task: Task, student: Student, draw) -> None:
    """Are the arguments used, and the tensors left as they are; is the result free of any graph?"""
    for label, batch, k in (("4 examples, 3 latents", 4, 3), ("one example", 1, 2), ("one latent", 3, 1)):
        for dtype in (f64, f32):
            where = f"{label}, {str(dtype).removeprefix('torch.')}"
            problem = search(draw, batch, k)
            x, joint, mean, logvar = prepared(problem, dtype)
            mean.requires_grad_()
            logvar.requires_grad_()
            q = student(x, joint, mean, logvar, 5, 0.05, seeded(draw), where=label)
            refuse_what_is_none(q, batch, k, where)
            if student.effects.changed(x, joint, mean, logvar):
                raise Wrong("an input is changed in place. Optimise copies: x.detach().clone().", case=where)
            student.refuse_changes((x, joint, mean, logvar), where)
            if student.effects.slopes(x, joint, mean, logvar):
                raise Wrong(
                    "backward() leaves slopes in the .grad of what was given, where the next step of a "
                    "training adds to them. Optimise detached copies.",
                    case=where,
                )
            if any(part.requires_grad for part in q):
                raise Wrong("the result still has a graph. Return detached tensors.", case=where)
            if any(part.dtype != dtype for part in q):
                raise Wrong("the result has another type than the start. Keep it.", case=where)
    problem = search(draw, 6, 3)
    start = problem[2:]
    q = searched(student, (*problem, 0, 0.05), seeded(draw), "steps=0")
    if not same(q, start, 0, 1e-12):
        hint = " Or are mean and logvar in the wrong order?" if same(q[::-1], start, 0, 1e-12) else ""
        raise Wrong(
            f"with steps=0 the start is not returned. Is steps used, and are the given mean and "
            f"logvar the start?{hint}"
        )
    generator = seeded(draw)
    before = generator.get_state()
    searched(student, (*problem, 1, 0.05), generator, "steps=1")
    if torch.equal(before, generator.get_state()):
        raise Wrong("with steps=1 no noise is drawn. Count the steps.")
    q = searched(student, (*problem, 20, 1e-6), seeded(draw), "lr=1e-6")
    if not same(q, start, 0, 0.01):
        raise Wrong("with lr=1e-6 the tensors move far in 20 steps. Is lr the step size?")
    x, *rest = problem
    changed = x.clone()
    changed[0] += 3
    seed = draw.seed().number
    q, q_changed = (
        searched(student, (data, *rest, 20, 0.05), torch.Generator().manual_seed(seed), "one example changed")
        for data in (x, changed)
    )
    if not all(same(a[1:], b[1:], 1e-6, 1e-6) for a, b in zip(q, q_changed)):
        raise Wrong("when one example changes, so does the q of the others. Each has its own.")
    if same(q[0][0], q_changed[0][0], 0, 1e-6):
        raise Wrong("when an example changes, its q does not. Is x given to log_joint?")


FIT_POSTERIOR = Task(
    name="fit_posterior",
    read="em#what-one-pass-saves",
    reference=best_posterior,
    slips=lambda *arguments: iter(()),
    properties=search_properties,
    cases=lambda draw: [],
    tests={"optimum": optimum, "noise": noise, "inputs": inputs},
)

# ---- inference_gaps(log_px, elbo_best, elbo_amortized): two differences per example


def inference_gaps(log_px, elbo_best, elbo_amortized):
    return torch.sub(log_px, elbo_best), torch.sub(elbo_best, elbo_amortized)


GAP_REDUCTIONS = [
    ("the mean over the batch is taken", lambda t: t.mean(0)),
    ("the sum over the batch is taken", lambda t: t.sum(0)),
    ("the mean over the batch is given to every example", lambda t: t.mean(0).expand_as(t)),
    ("a dimension of size 1 is left", lambda t: t.unsqueeze(-1)),
    ("the result is divided by the batch size", lambda t: t / len(t)),
]


def shares(pair):
    return tuple(gap / (pair[0] + pair[1]) for gap in pair)


def clamped(pair):
    return tuple(gap.clamp_min(0) for gap in pair)


def absolute(pair):
    return tuple(gap.abs() for gap in pair)


def gap_slips(top, best, encoder):
    right = top - best, best - encoder
    ways = [("", lambda t: t), *(way for way in GAP_REDUCTIONS)]
    negative = "negative gaps are set to zero: keep them, they tell of a poor estimate"
    for (clause, pair), (reduced, reduce), (scaled, scale) in product(
        [
            ("", right),
            ("the two gaps are returned in the wrong order", right[::-1]),
            ("the second is the whole gap: amortisation starts at the best ELBO", (right[0], top - encoder)),
            ("the first is the whole gap: approximation ends at the best ELBO", (top - encoder, right[1])),
            ("the first gap is missing its second term", (top, right[1])),
            (
                "the first goes down to the encoder's ELBO, the second from log p(x)",
                (top - encoder, right[0]),
            ),
            ("one of the two has the wrong sign", (right[0], -right[1])),
            ("one of the two has the wrong sign", (-right[0], right[1])),
            ("gaps are divided by the whole gap: these are shares, not nats", shares(right)),
            ("the gaps are relative to log p(x)", tuple(gap / top for gap in right)),
            ("the gaps are relative to log p(x)", tuple(gap / top.abs() for gap in right)),
            ("exp is taken: these are ratios, not differences of logarithms", tuple(g.exp() for g in right)),
            ("the gaps are squared", tuple(gap**2 for gap in right)),
            (negative, clamped(right)),
            (negative, (clamped(right)[0], right[1])),
            (negative, (right[0], clamped(right)[1])),
            ("the absolute value is taken: keep the sign, it tells of a poor estimate", absolute(right)),
            ("the two are added", right[0] + right[1]),
            ("the two are stacked in one tensor", torch.stack(right)),
            ("the two are stacked in one tensor", torch.stack(right, 1)),
        ],
        ways,
        [("", 1.0), ("the sign is flipped", -1.0), BITS],
    ):
        clauses = tuple(words for words in (clause, reduced, scaled) if words)
        if isinstance(pair, tuple):
            yield clauses, tuple(scale * reduce(part) for part in pair)
        else:
            yield clauses, scale * reduce(pair)


def gap_cases(draw):
    def case(label, batch, noise=0.0):
        top = -90 + 5 * draw(batch)
        best = top - draw(batch, low=0.1, high=3) + noise * draw(batch)
        return Case(label, (top, best, best - draw(batch, low=0.1, high=4) + noise * draw(batch)))

    return [
        case("7 examples", 7),
        case("one example", 1),
        case("2 examples", 2),
        case("estimates, whose noise can make a gap negative", 40, 3.0),
        case("130 estimates", 130, 3.0),
    ]


def gap_values(task: Task, student: Student, draw) -> None:
    """The values, and gaps of every size and either sign."""
    values_in_evaluation(task, student, draw)
    looks = []
    for size in (1e-6, 1e-3, 1e3, 1e6):
        top = -90 + draw(7)
        best = top - size * draw(7)
        looks.append((f"gaps of size {size:g}", size, (top, best, best - size * draw(7))))
    right = [inference_gaps(*given) for _, _, given in looks]
    results = student.each([(prepared(given, f64), {}, where) for where, _, given in looks])
    for (where, size, _), want, got in zip(looks, right, results):
        if not same(got, want, 1e-6, 1e-6 * size):
            raise Wrong(
                "right for ordinary gaps, and wrong for these. Is something limited (clamped), rounded, or "
                "set to 0 where it is small?",
                case=where,
            )


def gap_properties(student: Student):
    top = torch.tensor([-90.0, -85.0, -101.0])
    gaps = student(top.clone(), top - 1.5, top - 4)
    right = isinstance(gaps, tuple | list) and len(gaps) == 2
    right = right and [getattr(part, "shape", None) for part in gaps] == [(3,), (3,)]
    yield (
        "two numbers per example",
        "" if right else f"expected two tensors of shape (3,), and got {shape(gaps)}",
    )
    yield "finite", "" if finite(gaps) else "some numbers are not finite"
    positive = all((part > 0).all() for part in gaps)
    yield (
        "positive for bounds in their order",
        "" if positive else "these bounds leave no gap negative or zero",
    )
    perfect = student(top.clone(), top.clone(), top.clone())
    right = all((part.abs() < 1e-5).all() for part in perfect)
    yield "zero for a perfect encoder", "" if right else "when all three are equal there is no gap"


INFERENCE_GAPS = Task(
    name="inference_gaps",
    read="em#from-one-posterior-per-example-to-one-network",
    reference=inference_gaps,
    slips=gap_slips,
    properties=gap_properties,
    cases=gap_cases,
    tests={"values": gap_values},
)

TASKS = {task.name: task for task in (PPCA_POSTERIOR, PPCA_LOG_LIKELIHOOD, FIT_POSTERIOR, INFERENCE_GAPS)}
