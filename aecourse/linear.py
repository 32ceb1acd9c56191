"""Linear models: principal components, linear autoencoders, probabilistic PCA, the linear VAE, logistic PCA.

All but the last have an exact answer, which makes this the place to check ideas that later chapters use
where no exact answer exists. Covariances are those of the sample itself (divided by N, not N - 1), and
eigenvalues lambda and eigenvectors q are theirs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aecourse.bounds import Loss, elbo
from aecourse.contracts import check_count, check_finite, check_shapes, check_unit_interval
from aecourse.likelihoods import (
    bernoulli_log_likelihood,
    gaussian_kl,
    gaussian_kl_per_dimension,
    gaussian_log_density,
    gaussian_log_likelihood,
    reparameterize,
)


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

    .. math:: \sum_i \gamma_i \left(\lVert u_i\rVert^2 + \lVert v_i\rVert^2\right)

    over the columns of U and the rows of V, breaks that symmetry and recovers the components; equal
    weights leave every rotation free (Bao et al. 2020, sections 3 and 4; Kunin et al. 2019). The exact
    minimum is :func:`regularised_optimum`.

    Args:
        dim: D, the dimension of the data.
        code_dim: k, the dimension of the code.
        offset: ``(D,)``, subtracted before encoding and added after decoding; zeros by default. Give
            it the mean of the data to compare with PCA.
        penalty: ``(k,)``, the weights gamma; none by default.

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


def regularised_optimum(x: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Where the loss of a :class:`LinearAutoencoder` with a penalty is smallest, in closed form.

    .. math:: u_i = v_i = \sqrt{1 - \gamma_i / \lambda_i}\; q_i, \qquad
              \min = \sum_{i \le k} \left(2\gamma_i - \gamma_i^2 / \lambda_i\right) + \sum_{j > k} \lambda_j

    for rising weights below their eigenvalues. In whatever order the weights come, the smallest takes the
    largest eigenvalue. One that is not below its eigenvalue switches its code dimension off: u and v are
    zero, and the eigenvalue takes the place of the bracket. With different weights the minimum is unique
    up to the sign of each pair (u, v). Equal ones leave any orthogonal O free: (U O^T)(O V).

    Args:
        x: ``(N, D)``; the model's offset is its mean.
        penalty: ``(k,)``, the weights gamma, not negative.

    Returns:
        V ``(k, D)``, U ``(D, k)`` and the minimum, a scalar.

    Raises:
        ValueError: a weight is negative, or there are more than D.

    Source: Bao et al. (2020), theorem 2; Kunin et al. (2019) for equal weights.
    """
    dim = check_shapes(("x", x, "N D"))["D"]
    code_dim = check_shapes(("penalty", penalty, "k"))["k"]
    if not 1 <= code_dim <= dim:
        raise ValueError(f"penalty has {code_dim} weights but needs between 1 and D = {dim}.")
    if not (penalty >= 0).all():
        raise ValueError(f"penalty has the weight {penalty.min():g} but needs them all >= 0.")
    found = pca(x)
    rank = penalty.argsort().argsort()  # weight i takes eigenvalue rank[i]
    # Where lambda is zero, so is the excess: then the share is 0 / tiny = 0.
    excess = (found.eigenvalues[rank] - penalty).clamp(min=0)
    share = excess / found.eigenvalues[rank].clamp(min=torch.finfo(x.dtype).tiny)
    encoder = share.sqrt().unsqueeze(1) * found.components[rank]
    # A dimension in use saves (lambda - gamma)^2 / lambda of its eigenvalue.
    return encoder, encoder.T, found.eigenvalues.sum() - (excess * share).sum()


def optimal_linear_denoiser(x: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""The affine map that best rebuilds x from x plus Gaussian noise of standard deviation sigma.

    .. math:: A = \Sigma \left(\Sigma + \sigma^2 I\right)^{-1}, \qquad
              \mathbb{E}\,\lVert A(x + \varepsilon) - x\rVert^2
              = \sum_i \lambda_i \sigma^2 / (\lambda_i + \sigma^2)

    for centred x with covariance Sigma. For Gaussian data no denoiser is better, linear or not (Wiener).

    Args:
        x: ``(N, D)``, clean.
        sigma: positive, in the units of ``x``.

    Returns:
        The mean of the data ``(D,)``, the symmetric matrix A ``(D, D)`` and the squared error that is left,
        a scalar. A noisy batch is denoised by ``mean + (noisy - mean) @ A``.

    Raises:
        ValueError: ``sigma`` is not positive.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma} but must be positive: it is a standard deviation.")
    mean, components, eigenvalues = pca(x)
    shrink = eigenvalues / (eigenvalues + sigma**2)
    return mean, components.T * shrink @ components, (sigma**2 * shrink).sum()


class LinearDenoisingAutoencoder(LinearAutoencoder):
    """A linear autoencoder that rebuilds the clean input from a noisy one (Vincent et al. 2008).

    With k = D and the mean as offset, U V ends at the matrix of :func:`optimal_linear_denoiser`; with
    k < D, at its part along the first k components. The noise alone keeps it from copying.

    Args:
        dim, code_dim, offset: as for :class:`LinearAutoencoder`.
        noise: the standard deviation of the Gaussian noise, positive.

    Raises:
        ValueError: ``noise`` is not positive, or ``offset`` has the wrong shape.
    """

    def __init__(self, dim: int, code_dim: int, noise: float, offset: Tensor | None = None):
        super().__init__(dim, code_dim, offset)
        if not 0 < noise < math.inf:
            raise ValueError(f"noise is {noise} but must be positive: it is a standard deviation.")
        self.noise = noise

    def loss(self, x: Tensor) -> Loss:
        """Squared error to the clean input, with one draw of the noise per example."""
        check_shapes(("offset", self.offset, "D"), ("x", x, "batch D"))
        noisy = x + self.noise * torch.randn_like(x)
        error = (self.decode(self.encode(noisy)) - x).square().sum(dim=1).mean()
        return Loss(total=error, parts={"reconstruction": error})

    def expected_loss(self, x: Tensor) -> Tensor:
        r"""The exact mean of :meth:`loss` over the noise, a scalar.

        The clean error plus :math:`\sigma^2 \lVert UV\rVert_F^2`: noise is weight decay (Bishop 1995).
        """
        error = super().loss(x).parts["reconstruction"]
        return error + self.noise**2 * (self.decoder.weight @ self.encoder.weight).square().sum()


@torch.no_grad()
def axis_distance(components: Tensor, decoder: Tensor) -> float:
    r"""How far the columns of a decoder are from the principal axes, one by one; 0 is perfect.

    .. math:: \frac1k \sum_i \left(1 - \max_j \cos^2(q_i, u_j)\right)

    Each component looks for the column nearest to it, in any order and with either sign.

    Args:
        components: ``(k, D)``, orthonormal rows q.
        decoder: ``(D, k)``, columns u of any length.

    Returns:
        Between 0 and 1.

    Source: Bao et al. (2020), section 6.
    """
    check_shapes(("components", components, "k D"), ("decoder", decoder, "D k"))
    cosines = components @ nn.functional.normalize(decoder, dim=0)
    # Rounding can make a cosine larger than 1.
    return float((1 - cosines.square().amax(dim=1)).mean().clamp(min=0))


@torch.no_grad()
def subspace_distance(components: Tensor, decoder: Tensor) -> float:
    r"""How far the column space of a decoder is from the principal subspace; 0 is perfect.

    .. math:: 1 - \operatorname{tr}(Q Q^\top B B^\top) / k

    with the components as columns of Q, and in B an orthonormal basis of the decoder's column space. A
    decoder with dead or parallel columns spans less than k dimensions, and what it misses counts.

    Args:
        components: ``(k, D)``, orthonormal rows.
        decoder: ``(D, k)``.

    Returns:
        Between 0 and 1.

    Source: Bao et al. (2020), section 6.
    """
    code_dim = check_shapes(("components", components, "k D"), ("decoder", decoder, "D k"))["k"]
    # Not QR: for a column that is zero or depends on the others it invents a direction.
    basis, lengths, _ = torch.linalg.svd(decoder, full_matrices=False)
    spanned = lengths > lengths[0] * max(decoder.shape) * torch.finfo(decoder.dtype).eps
    return float((1 - (components @ basis[:, spanned]).square().sum() / code_dim).clamp(min=0))


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

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) = log p(x|z) + log p(z), ``(batch, D)`` and ``(batch, k)`` to ``(batch,)``, nats."""
        check_shapes(("weight", self.weight, "D k"), ("x", x, "batch D"), ("z", z, "batch k"))
        mean, zero = self.mean + z @ self.weight.T, torch.zeros_like(z)
        log_likelihood = gaussian_log_likelihood(x, mean, self.variance.log())
        return log_likelihood + gaussian_log_likelihood(z, zero, zero)

    def best_diagonal_posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The Gaussian with a diagonal covariance that is nearest to p(z|x) in KL(q || p).

        It has the exact mean, and the variances :math:`\sigma^2 / M_{jj}`: the *conditional* variances of
        the posterior, which are smaller than its marginal ones.

        Returns:
            ``mean`` and ``logvar``, each ``(batch, k)``.
        """
        mean, _ = self.posterior(x)
        return mean, (self.variance / self._precision().diagonal()).log().expand_as(mean)

    def diagonal_gap(self) -> Tensor:
        r"""What a diagonal q costs at least: log p(x) minus its best ELBO, the same for every x.

        .. math:: \tfrac12 \left(\sum_j \log M_{jj} - \log\det M\right), \qquad M = W^\top W + \sigma^2 I

        A scalar in nats. It is zero if and only if the columns of W are orthogonal, as :func:`fit_ppca`
        makes them.
        """
        precision = self._precision()
        return 0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision).logabsdet)

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
    r"""Maximum-likelihood probabilistic PCA, in closed form.

    The noise variance is the mean of the D - k eigenvalues that were left out, and W spans the first k
    components, each shortened to what the noise does not explain. The mean log likelihood is then

    .. math:: -\tfrac12 \Big(D \log 2\pi + \sum_{i \le k} \log\lambda_i + (D - k) \log\sigma^2 + D\Big)

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


class LinearVAE(nn.Module):
    r"""A variational autoencoder without hidden layers, and without sampling: its ELBO is exact.

    The model is that of :class:`PPCA`, z ~ N(0, I) and x ~ N(offset + W z, variance I). The encoder is
    q(z|x) = N(V (x - offset), diag exp logvar) with one logvar for all x: the exact posterior of such a
    model is of this form, if the columns of W are orthogonal. What an optimum looks like, and which
    latent variables collapse, is known: :func:`linear_vae_optimum`.

    Args:
        dim: D, the dimension of the data.
        latent_dim: k, the number of latent variables.
        offset: ``(D,)``; zeros by default, the mean of the data is best. The parameters have its dtype.
        variance: of the noise, positive.
        learn_variance: whether it is a parameter, that starts from ``variance``.
        beta: weight of the KL in the loss. The minimum is that of a VAE whose noise has the variance
            beta times ``variance``, so a wrong reduction of either term amounts to a wrong variance.

    Raises:
        ValueError: ``offset`` has the wrong shape, ``variance`` is not positive, ``beta`` is negative.

    Source: Lucas et al. (2019), section 4; Dai et al. (2018).
    """

    def __init__(
        self,
        dim: int,
        latent_dim: int,
        offset: Tensor | None = None,
        variance: float = 1.0,
        learn_variance: bool = False,
        beta: float = 1.0,
    ):
        super().__init__()
        offset = torch.zeros(dim) if offset is None else offset
        if tuple(offset.shape) != (dim,):
            raise ValueError(f"offset has shape {tuple(offset.shape)} but needs ({dim},).")
        if not 0 < variance < math.inf:
            raise ValueError(f"variance is {variance} but must be positive.")
        if not beta >= 0:
            raise ValueError(f"beta is {beta} but must be at least 0: it weighs a penalty.")
        self.latent_dim = latent_dim
        self.beta = beta
        self.encoder = nn.Linear(dim, latent_dim, bias=False, dtype=offset.dtype)
        self.decoder = nn.Linear(latent_dim, dim, bias=False, dtype=offset.dtype)
        self.logvar = nn.Parameter(torch.zeros(latent_dim, dtype=offset.dtype))
        log_variance = torch.tensor(math.log(variance), dtype=offset.dtype)
        self.log_variance = nn.Parameter(log_variance, requires_grad=learn_variance)
        self.register_buffer("offset", offset.clone())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, D)`` to ``mean`` and ``logvar`` of q(z|x), each ``(batch, k)``."""
        check_shapes(("offset", self.offset, "D"), ("x", x, "batch D"))
        mean = self.encoder(x - self.offset)
        return mean, self.logvar.expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        """``(batch, k)`` to the mean of p(x|z), ``(batch, D)``."""
        check_shapes(("logvar", self.logvar, "k"), ("z", z, "batch k"))
        return self.offset + self.decoder(z)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), ``(batch, k)`` to ``(batch,)``, nats."""
        check_shapes(("logvar", self.logvar, "k"), ("z", z, "batch k"))
        return gaussian_log_likelihood(z, torch.zeros_like(z), torch.zeros_like(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), ``(batch, D)`` and ``(batch, k)`` to ``(batch,)``, nats."""
        return gaussian_log_likelihood(x, self.decode(z), self.log_variance)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z), ``(batch,)``, nats."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    def expected_log_likelihood(self, x: Tensor) -> Tensor:
        r"""E[log p(x|z)] over q(z|x), exactly: ``(batch, D)`` to ``(batch,)``, nats.

        .. math:: \mathbb{E}\,\lVert x - Wz\rVert^2
                  = \lVert x - W\mu\rVert^2 + \operatorname{tr}(W \operatorname{diag}(s^2) W^\top)

        The trace is what is lost when one decodes the mean of q and calls the result an ELBO.
        """
        mean, logvar = self.encode(x)
        trace = (logvar.exp() * self.decoder.weight.square().sum(dim=0)).sum(dim=1)
        return self.log_likelihood(x, mean) - 0.5 * trace * torch.exp(-self.log_variance)

    def kl_per_dimension(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z_j|x) || p(z_j)) for every latent variable, ``(batch, k)``, nats."""
        return gaussian_kl_per_dimension(mean, logvar)

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """The exact negative ELBO of a batch; ``beta`` takes the place of the model's own."""
        log_likelihood = self.expected_log_likelihood(x)
        kl = gaussian_kl(*self.encode(x))
        return Loss(
            total=-elbo(log_likelihood, kl, self.beta if beta is None else beta).mean(),
            parts={"reconstruction": -log_likelihood.mean(), "kl": kl.mean()},
        )

    @torch.no_grad()
    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        """The evidence lower bound (beta = 1), ``(batch,)``, nats; exact, whatever ``samples`` is."""
        return elbo(self.expected_log_likelihood(x), gaussian_kl(*self.encode(x)))

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) for draws z from q(z|x), ``(samples, batch)``, nats.

        Gradients reach every parameter, through the draws as well.
        """
        check_count("samples", samples)
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, samples)
        log_joint = self.log_joint(x.repeat(samples, 1), z.flatten(0, 1)).view(samples, len(x))
        return log_joint - gaussian_log_density(z, mean, logvar)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draw z from the prior and return the mean of p(x|z), ``(count, D)``."""
        return self.decode(torch.randn(count, self.latent_dim, device=self.offset.device).to(self.offset))

    @torch.no_grad()
    def ppca(self) -> PPCA:
        """The same model as a :class:`PPCA`, for its exact evidence and posterior."""
        return PPCA(self.offset.clone(), self.decoder.weight.clone(), self.log_variance.exp())

    def validate(self, images: Tensor) -> None:
        """Refuse data of the wrong width or with NaN; ``fit`` asks once, before the first step."""
        check_shapes(("offset", self.offset, "D"), ("images", images, "batch D"))
        check_finite("images", images)


class LinearVAEOptimum(NamedTuple):
    """The exact optimum of a linear VAE's loss; made by :func:`linear_vae_optimum`."""

    weight: Tensor
    """``(D, k)``, the decoder W; the column of a collapsed latent variable is zero."""

    encoder: Tensor
    """``(k, D)``, the encoder V."""

    logvar: Tensor
    """``(k,)``, of q(z|x); 0 where collapsed, as in the prior."""

    active: Tensor
    """``(k,)``, bool: which latent variables did not collapse."""

    kl: Tensor
    """``(k,)``, means over the data, nats. Their sum is the mutual information of x and z if x is
    Gaussian, for then the mean of q(z|x) over the data is the prior."""

    distortion: Tensor
    """``()``, the mean over the data of -E[log p(x|z)], nats."""

    minimum: Tensor
    """``()``, of the loss: distortion plus beta times the sum of ``kl``."""


def linear_vae_optimum(x: Tensor, k: int, variance: float, beta: float = 1.0) -> LinearVAEOptimum:
    r"""Where the loss of a :class:`LinearVAE` is smallest, in closed form, for a fixed noise variance.

    .. math:: w_j = \sqrt{(\lambda_j - \beta\sigma^2)_+}\; q_j, \qquad v_j = w_j / \lambda_j, \qquad
              s_j^2 = \beta\sigma^2 / \lambda_j, \qquad
              \mathrm{KL}_j = \tfrac12 \log \frac{\lambda_j}{\beta\sigma^2}

    A latent variable is active if and only if its eigenvalue is above :math:`\beta\sigma^2`: posterior
    collapse is the best this model can do, no accident of training. The optimum is unique up to signs and
    the order of the latent variables if the active eigenvalues differ. A *learned* variance at beta = 1 ends
    at that of :func:`fit_ppca`, and the minimum is then minus the maximum log likelihood.

    Args:
        x: ``(N, D)``; the model's offset is its mean.
        k: the number of latent variables, at most D.
        variance: of the noise, positive.
        beta: weight of the KL, positive.

    Raises:
        ValueError: ``k`` is not in 1..D, or ``variance`` or ``beta`` is not positive.

    Source: Lucas et al. (2019), section 4 and appendix; for beta, substitute beta sigma^2 for sigma^2.
    """
    if not 0 < variance < math.inf:
        raise ValueError(f"variance is {variance} but must be positive.")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta} but must be positive: without a KL there is no optimum.")
    mean, components, eigenvalues = pca(x, k)
    noise = beta * variance
    active = eigenvalues > noise
    # The eigenvalues of the *model's* covariance: where the data vary less than the noise, the noise.
    modelled = eigenvalues.clamp(min=noise)
    weight = components.T * (modelled - noise).sqrt()
    kl = 0.5 * (modelled / noise).log()
    # An active direction is left with the error beta sigma^2, any other with all its variance.
    error = (x - mean).square().sum(dim=1).mean() - (eigenvalues[active] - noise).sum()
    distortion = 0.5 * (x.shape[1] * math.log(2 * math.pi * variance) + error / variance)
    logvar = (noise / modelled).log()
    encoder = (weight / modelled).T
    return LinearVAEOptimum(weight, encoder, logvar, active, kl, distortion, distortion + beta * kl.sum())


class LogisticPCA(NamedTuple):
    """Principal components of probabilities, on the scale of their logits; made by :func:`fit_logistic_pca`.

    The decoder is that of a Bernoulli VAE without hidden layers: logits = offset + W z. There is no
    encoder network. The code of an example is what explains it best, found by optimisation.
    """

    offset: Tensor
    """``(D,)``, logits."""

    weight: Tensor
    """``(D, k)``, the loading matrix W; orthogonal columns, by falling length."""

    ridge: float
    """Weight of the squared lengths of codes, loadings and offset."""

    history: list[float]
    """What the fit minimised, at the start and after every tenth step; it never rises."""

    def objective(self, x: Tensor, z: Tensor) -> Tensor:
        """What a code minimises: -log p(x|z) + ridge/2 |z|^2, ``(batch,)``, nats per example."""
        check_shapes(("weight", self.weight, "D k"), ("x", x, "batch D"), ("z", z, "batch k"))
        log_likelihood = bernoulli_log_likelihood(x, self.offset + z @ self.weight.T)
        return 0.5 * self.ridge * z.square().sum(dim=1) - log_likelihood

    @torch.no_grad()
    def encode(self, x: Tensor, steps: int = 50) -> Tensor:
        """The best code of each example, ``(batch, D)`` in [0, 1] to ``(batch, k)``.

        The objective is convex in z. Newton's method from z = 0, with a step that is halved until the
        objective of the example falls, needs about 15 of at most ``steps`` iterations.
        """
        check_shapes(("weight", self.weight, "D k"), ("x", x, "batch D"))
        check_unit_interval("x", x)
        return torch.cat([self._newton(part, steps) for part in x.split(1000)])

    def decode(self, z: Tensor) -> Tensor:
        """Probabilities, ``(batch, k)`` to ``(batch, D)``."""
        check_shapes(("weight", self.weight, "D k"), ("z", z, "batch k"))
        return torch.sigmoid(self.offset + z @ self.weight.T)

    def reconstruct(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``, ``(batch, D)``."""
        return self.decode(self.encode(x))

    def _newton(self, x: Tensor, steps: int) -> Tensor:
        """The codes of a part of the data, all examples at once, ``(batch, k)``."""
        weight, code_dim = self.weight, self.weight.shape[1]
        z = x.new_zeros(len(x), code_dim)
        value = self.objective(x, z)
        # The Hessians of all examples in one product: sum_d p_d (1 - p_d) w_d w_d' + ridge I.
        outer = (weight.unsqueeze(2) * weight.unsqueeze(1)).flatten(1)
        ridge = self.ridge * torch.eye(code_dim).to(weight)
        rounding = 4 * torch.finfo(x.dtype).eps * value
        for _ in range(steps):
            p = self.decode(z)
            gradient = (p - x) @ weight + self.ridge * z
            hessian = ((p * (1 - p)) @ outer).unflatten(1, (code_dim, code_dim)) + ridge
            direction = torch.linalg.solve(hessian, gradient)
            if ((gradient * direction).sum(dim=1) <= rounding).all():  # twice what is left to gain
                return z - direction
            length = torch.ones_like(value)
            for _ in range(60):
                trial = z - length.unsqueeze(1) * direction
                new = self.objective(x, trial)
                worse = new > value + rounding
                if not worse.any():
                    break
                length = torch.where(worse, length / 2, length)
            z = torch.where(worse.unsqueeze(1), z, trial)
            value = torch.where(worse, value, new)
        return z


@torch.enable_grad()  # also for a caller who has switched gradients off
def fit_logistic_pca(x: Tensor, k: int, ridge: float = 1e-3, iterations: int = 100) -> LogisticPCA:
    r"""Find codes and loadings together, by L-BFGS: PCA with a Bernoulli likelihood.

    .. math:: \min_{b, W, z} \frac1N \sum_n \left(-\log p(x_n | z_n) + \tfrac r2 \lVert z_n\rVert^2\right)
              + \tfrac r2 \left(\lVert W\rVert^2 + \lVert b\rVert^2\right)

    What falls is the cross-entropy; the squared error follows. Without the ridge r there is no minimum: the
    logit of a pixel that is never on runs to minus infinity.

    Each example has the best of all codes, which no encoder network can beat. On MNIST with k = 30 the
    squared error of test images is therefore far below the 8.01 of the "logistic PCA" of Hinton &
    Salakhutdinov (2006, figure 2). A linear *encoder* with this decoder, trained on the same cross-entropy,
    comes out next to their number, which is probably of that kind.

    Args:
        x: ``(N, D)`` in [0, 1].
        k: the dimension of the codes, at most D.
        ridge: r, positive.
        iterations: of L-BFGS, a multiple of 10.

    Raises:
        ValueError: values outside [0, 1], ``k`` not in 1..D, ``ridge`` not positive, ``iterations`` not a
            positive multiple of 10, or data that vary in fewer than k directions.

    Source: Collins, Dasgupta & Schapire (2001); Schein, Saul & Ungar (2003).
    """
    check_shapes(("x", x, "N D"))
    check_unit_interval("x", x)
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge is {ridge} but must be positive: without it logits run to infinity.")
    if iterations < 10 or iterations % 10:
        raise ValueError(f"iterations is {iterations} but must be a multiple of 10.")
    start = pca(x, k)
    if start.eigenvalues[-1] <= 1e-12 * start.eigenvalues[0]:
        raise ValueError(f"x varies in fewer than k = {k} directions. Take a smaller k.")
    # PCA, carried over to logits: at p = 1/2 a probability rises a quarter as fast as its logit.
    deviations = start.eigenvalues.sqrt()
    codes = start.encode(x) / deviations
    weight = 4 * start.components.T * deviations
    offset = torch.logit(start.mean.clamp(0.001, 0.999))
    # Loadings feel all N examples, a code the D pixels of one. In this unit both are equally curved.
    unit = float(codes.norm() / weight.norm())
    variables = [offset * unit, (weight * unit).contiguous(), codes]
    for variable in variables:
        variable.requires_grad_()
    optimizer = torch.optim.LBFGS(
        variables, max_iter=10, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    history: list[float] = []

    def model() -> LogisticPCA:
        return LogisticPCA(variables[0] / unit, variables[1] / unit, ridge, history)

    def closure() -> float:
        """The objective. Its gradient is gathered over parts of the data, which saves memory."""
        optimizer.zero_grad()
        terms = [0.5 * ridge * (model().offset.square().sum() + model().weight.square().sum())]
        terms[0].backward()
        for part, codes in zip(x.split(2000), variables[2].split(2000)):
            terms.append(model().objective(part, codes).sum() / len(x))
            terms[-1].backward()
        return sum(term.item() for term in terms)

    for _ in range(0, iterations, 10):
        history.append(optimizer.step(closure))  # the value before its ten steps
    history.append(closure())
    # Any rotation of the codes fits as well. This one makes the columns of W orthogonal.
    axes, lengths, _ = torch.linalg.svd(model().weight.detach(), full_matrices=False)
    return LogisticPCA(model().offset.detach(), axes * lengths, ridge, history)
