"""Linear models: principal components, the linear autoencoder, probabilistic PCA.

Everything here has an exact answer, which makes it the place to check ideas that later chapters use
where no exact answer exists. Covariances are those of the sample itself (divided by N, not N - 1).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aecourse.bounds import Loss
from aecourse.contracts import check_finite, check_shapes


class PCA(NamedTuple):
    """Principal components of a data set; made by :func:`pca`."""

    mean: Tensor
    """``(D,)``, the mean of the data."""

    components: Tensor
    """``(k, D)``, orthonormal rows, by falling eigenvalue."""

    eigenvalues: Tensor
    """``(k,)``, the variance along each component."""

    def encode(self, x: Tensor) -> Tensor:
        """Coordinates along the components, ``(N, D)`` to ``(N, k)``."""
        return (x - self.mean) @ self.components.T

    def decode(self, z: Tensor) -> Tensor:
        """The point with these coordinates, ``(N, k)`` to ``(N, D)``."""
        return self.mean + z @ self.components

    def reconstruct(self, x: Tensor) -> Tensor:
        """Projection onto the components, ``(N, D)`` to ``(N, D)``: the best rank-k approximation."""
        return self.decode(self.encode(x))


def pca(x: Tensor, k: int | None = None) -> PCA:
    """The k directions of largest variance, which are also those of least reconstruction error.

    The mean squared error of ``reconstruct``, summed over dimensions, is the sum of the eigenvalues
    that were left out (Eckart & Young 1936).

    Args:
        x: ``(N, D)``.
        k: how many components; all D by default.

    Returns:
        A :class:`PCA` in the dtype of ``x``. Each component's largest entry is positive, so that the
        result does not depend on the eigensolver's choice of sign.

    Raises:
        ValueError: ``k`` is not in 1..D, or ``x`` holds NaN.
    """
    dim = check_shapes(("x", x, "N D"))["D"]
    check_finite("x", x)
    k = dim if k is None else k
    if not 1 <= k <= dim:
        raise ValueError(f"k is {k} but must be between 1 and D = {dim}, the dimension of x.")
    # Double precision: the covariance squares the data, and with it the relative rounding error.
    data = x.double()
    mean = data.mean(dim=0)
    centred = data - mean
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(data))
    components = vectors.T.flip(0)[:k]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    eigenvalues = eigenvalues.flip(0)[:k].clamp(min=0)
    return PCA(mean.to(x), (components * largest.sign()).to(x), eigenvalues.to(x))


class LinearAutoencoder(nn.Module):
    r"""x_hat = offset + U V (x - offset): one linear layer in, one out, trained by gradient descent.

    The loss is the squared error, summed over dimensions. Its minimum is the subspace of the first k
    principal components, but not the components themselves: any invertible A gives the same output
    through (U A^-1)(A V). A penalty with a different weight for each code dimension,

    .. math:: \sum_i \lambda_i \left(\lVert v_i\rVert^2 + \lVert u_i\rVert^2\right)

    over the rows of V and the columns of U, breaks that symmetry and recovers the components; equal
    weights leave every rotation free (Bao et al. 2020, sections 3 and 4; Kunin et al. 2019).

    Args:
        dim: D, the dimension of the data.
        code_dim: k, the dimension of the code.
        offset: ``(D,)``, subtracted before encoding and added after decoding; zeros by default. Give
            it the mean of the data to compare with PCA.
        penalty: ``(k,)``, the weights lambda; none by default.

    Raises:
        ValueError: ``offset`` or ``penalty`` has the wrong shape, or a weight is negative.
    """

    def __init__(self, dim: int, code_dim: int, offset: Tensor | None = None, penalty: Tensor | None = None):
        super().__init__()
        offset = torch.zeros(dim) if offset is None else offset
        penalty = torch.zeros(code_dim) if penalty is None else penalty
        for name, value, size in (("offset", offset, dim), ("penalty", penalty, code_dim)):
            if tuple(value.shape) != (size,):
                raise ValueError(f"{name} has shape {tuple(value.shape)} but needs ({size},).")
        if (penalty < 0).any():
            raise ValueError(f"penalty has the weight {penalty.min():g} but needs them all >= 0.")
        self.encoder = nn.Linear(dim, code_dim, bias=False)
        self.decoder = nn.Linear(code_dim, dim, bias=False)
        self.register_buffer("offset", offset.clone())
        self.register_buffer("penalty", penalty.clone())

    def encode(self, x: Tensor) -> Tensor:
        """``(batch, D)`` to ``(batch, k)``."""
        return self.encoder(x - self.offset)

    def decode(self, z: Tensor) -> Tensor:
        """``(batch, k)`` to ``(batch, D)``."""
        return self.offset + self.decoder(z)

    def loss(self, x: Tensor) -> Loss:
        """Squared error per example, summed over dimensions, plus the penalty."""
        check_shapes(("offset", self.offset, "D"), ("x", x, "batch D"))
        error = (self.decode(self.encode(x)) - x).square().sum(dim=1).mean()
        norms = self.encoder.weight.square().sum(dim=1) + self.decoder.weight.square().sum(dim=0)
        penalty = (self.penalty * norms).sum()
        return Loss(total=error + penalty, parts={"reconstruction": error, "penalty": penalty})

    def validate(self, images: Tensor) -> None:
        """Refuse data of the wrong width or with NaN; ``fit`` asks once, before the first step."""
        check_shapes(("offset", self.offset, "D"), ("images", images, "batch D"))
        check_finite("images", images)


@torch.no_grad()
def axis_distance(components: Tensor, decoder: Tensor) -> float:
    r"""How far the columns of a decoder are from the principal axes, one by one; 0 is perfect.

    .. math:: \frac1k \sum_i \left(1 - \max_j \cos^2(u_i, w_j)\right)

    Args:
        components: ``(k, D)``, orthonormal rows u.
        decoder: ``(D, k)``, columns w of any length.

    Source: Bao et al. (2020), section 6.
    """
    check_shapes(("components", components, "k D"), ("decoder", decoder, "D k"))
    cosines = components @ nn.functional.normalize(decoder, dim=0)
    return float((1 - cosines.square().amax(dim=1)).mean())


@torch.no_grad()
def subspace_distance(components: Tensor, decoder: Tensor) -> float:
    r"""How far the column space of a decoder is from the principal subspace; 0 is perfect.

    .. math:: 1 - \operatorname{tr}(U U^\top Q Q^\top) / k

    with Q an orthonormal basis of the decoder's column space. A decoder with dead or parallel columns
    spans less than k dimensions, and what it does not span counts as missed.

    Args:
        components: ``(k, D)``, orthonormal rows.
        decoder: ``(D, k)``.

    Source: Bao et al. (2020), section 6.
    """
    code_dim = check_shapes(("components", components, "k D"), ("decoder", decoder, "D k"))["k"]
    # Not QR: for a column that is zero or depends on the others it invents a direction.
    basis, lengths, _ = torch.linalg.svd(decoder, full_matrices=False)
    spanned = lengths > lengths[0] * max(decoder.shape) * torch.finfo(decoder.dtype).eps
    return float(1 - (components @ basis[:, spanned]).square().sum() / code_dim)


class PPCA(NamedTuple):
    """Probabilistic PCA: z ~ N(0, I), x ~ N(mean + W z, variance I); made by :func:`fit_ppca`.

    A linear VAE whose evidence and posterior are known exactly, and so the yardstick for every bound
    in this course.
    """

    mean: Tensor
    """``(D,)``."""

    weight: Tensor
    """``(D, k)``, the loading matrix W."""

    variance: Tensor
    """``()``, of the noise, the same for every dimension."""

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Exact log p(x), ``(batch, D)`` to ``(batch,)``, nats per example.

        Inverts the k x k matrix M = W'W + variance I instead of the D x D covariance.
        """
        sizes = check_shapes(("weight", self.weight, "D k"), ("x", x, "batch D"))
        dim, code_dim = sizes["D"], sizes["k"]
        centred = x - self.mean
        factor = torch.linalg.cholesky(self._precision())
        projected = torch.linalg.solve_triangular(factor, self.weight.T @ centred.T, upper=False)
        mahalanobis = (centred.square().sum(dim=1) - projected.square().sum(dim=0)) / self.variance
        log_det = (dim - code_dim) * self.variance.log() + 2 * factor.diagonal().log().sum()
        return -0.5 * (dim * math.log(2 * math.pi) + log_det + mahalanobis)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact p(z|x) = N(mean, cov): ``(batch, D)`` to ``(batch, k)`` and ``(k, k)``, shared by all x."""
        check_shapes(("weight", self.weight, "D k"), ("x", x, "batch D"))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._precision()))
        return (x - self.mean) @ self.weight @ inverse, self.variance * inverse

    def sample(self, count: int) -> Tensor:
        """Draw x from the model, ``(count, D)``."""
        z = self.weight.new_empty(count, self.weight.shape[1]).normal_()
        noise = self.weight.new_empty(count, self.weight.shape[0]).normal_()
        return self.mean + z @ self.weight.T + self.variance.sqrt() * noise

    def _precision(self) -> Tensor:
        """``(k, k)``, M = W'W + variance I."""
        identity = torch.eye(self.weight.shape[1]).to(self.weight)
        return self.weight.T @ self.weight + self.variance * identity


def fit_ppca(x: Tensor, k: int) -> PPCA:
    """Maximum-likelihood probabilistic PCA, in closed form.

    The noise variance is the mean of the D - k eigenvalues that were left out, and W spans the first k
    components, each shortened to what the noise does not explain.

    Args:
        x: ``(N, D)``.
        k: the dimension of z, less than D.

    Raises:
        ValueError: ``k`` is not in 1..D-1, or the data already lie in a k-dimensional subspace, where
            the likelihood has no maximum.

    Source: Tipping & Bishop (1999), equations 7 and 8.
    """
    dim = check_shapes(("x", x, "N D"))["D"]
    if not 1 <= k < dim:
        raise ValueError(f"k is {k} but must be between 1 and D - 1 = {dim - 1}.")
    mean, components, eigenvalues = pca(x)
    variance = eigenvalues[k:].mean()
    if variance <= 1e-12 * eigenvalues[0]:
        raise ValueError(
            f"x lies in a subspace of at most k = {k} dimensions, so no noise is left to model: "
            "the likelihood grows without bound. Take a smaller k."
        )
    # The difference is never negative, but rounding can make it so where all eigenvalues are equal.
    lengths = (eigenvalues[:k] - variance).clamp(min=0).sqrt()
    return PPCA(mean, components[:k].T * lengths, variance)
