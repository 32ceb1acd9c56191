"""How good is a model, in numbers: log p(x) with error bars, what its code holds, and what it is good for.

The estimators of log p(x) take any latent variable model: they ask ``model.log_weights(x, samples)`` for
log p(x, z) - log q(z|x) of draws from q, ``(samples, batch)``, and know nothing of z or of q. (Estimating
from the prior takes ``log_joint(x, z)`` and ``latent_dim``.) A model of p(x|y) gets its ``labels`` as well.
Each estimator works on one example at a time and keeps one number per sample. The model must treat the rows
of a batch independently; batch norm and dropout are therefore switched to evaluation, and back afterwards.

All of them underestimate log p(x) on average, since the logarithm of a mean of K weights does (Jensen). For
weights with finite variance they are low by about :math:`\\chi^2 / 2K`, with :math:`\\chi^2` the variance of
w / p(x), and their standard error is about :math:`\\sqrt{\\chi^2 / K}`: the bias is half the square of the
standard error, and small where that is.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from aecourse.bounds import log_mean_exp
from aecourse.contracts import check_count, check_finite, check_labels, check_shapes
from aecourse.extras import needs
from aecourse.likelihoods import gaussian_kl_per_dimension, gaussian_log_density, reparameterize


class Estimate(NamedTuple):
    """A number that was estimated from random draws, and how far to trust it."""

    value: Tensor
    """``(batch,)``, or ``()`` for a mean over examples."""

    standard_error: Tensor
    """The same shape: the standard deviation of ``value`` over repetitions, itself estimated."""


# ------------------------------------------------------------------------------- log p(x)


def log_mean_weight(log_weights: Tensor) -> Estimate:
    r"""log p(x) from independent weights whose mean is p(x), with a standard error.

    .. math:: \log \hat p = \log \frac1K \sum_i w_i, \qquad
              \mathrm{s.e.} = \frac{1}{\sqrt K}\, \mathrm{sd}\!\left(\frac{w_i}{\hat p}\right)

    The standard error is that of the mean, carried through the logarithm (delta method). It can never
    exceed 1: where it comes near, one weight is as large as all others together and neither number
    means anything. A heavy tail of weights that were never drawn does not show in it.

    Args:
        log_weights: ``(samples, batch)``, log w, at least two samples.

    Returns:
        An :class:`Estimate` of ``(batch,)``, in nats.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or fewer than two samples.
    """
    count = check_shapes(("log_weights", log_weights, "samples batch"))["samples"]
    check_count("samples", count, least=2)
    value = log_mean_exp(log_weights, dim=0)
    relative = torch.exp(log_weights - value)
    return Estimate(value, relative.std(dim=0) / math.sqrt(count))


@torch.no_grad()
def prior_monte_carlo(model, x: Tensor, samples: int, *, chunk: int = 500) -> Estimate:
    r"""log p(x) as the logarithm of the mean likelihood of codes that are drawn from N(0, I).

    The mean is unbiased for p(x), and useless beyond a few latent dimensions: hardly any code from the
    prior explains x, and the variance of the weights grows exponentially with the information that x
    holds about z. The standard error shows it. Under another prior, the weights put it right.

    Args:
        model: a latent variable model; see the module's docstring.
        x: ``(batch, ...)``.
        samples: draws of z per example, at least two.
        chunk: how many of them are decoded at once; bounds the memory.

    Returns:
        An :class:`Estimate` of ``(batch,)``, in nats.

    Raises:
        TypeError, ValueError: ``x`` is no batch of floats, or ``samples`` or ``chunk`` no count.
    """
    check_shapes(("x", x, "batch ..."))
    check_count("samples", samples, least=2)

    def log_weights(image: Tensor, count: int) -> Tensor:
        z = torch.randn(count, model.latent_dim, dtype=x.dtype, device=x.device)
        copies = image.expand(count, *image.shape[1:])  # views
        log_q = gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z))
        return (model.log_joint(copies, z) - log_q).unsqueeze(1)

    with evaluation_mode(model):
        return _per_example(log_weights, x, None, samples, chunk, log_mean_weight)


@torch.no_grad()
def importance_sampling(
    model, x: Tensor, samples: int, *, labels: Tensor | None = None, chunk: int = 500
) -> Estimate:
    r"""log p(x) from codes that the encoder proposes, each weighted by p(x, z) / q(z|x).

    Its expectation is the bound of :func:`iwae` with k = ``samples``, which lies below log p(x) by about
    half the square of the standard error. If q is narrower than the posterior, the weights have a heavy
    tail and the truth can be further away than that.

    Args:
        model: a latent variable model; see the module's docstring.
        x: ``(batch, ...)``.
        samples: draws of z per example, at least two; 5,000 is the custom.
        labels: ``(batch,)``, for a model of p(x|y).
        chunk: how many of them are decoded at once; bounds the memory.

    Returns:
        An :class:`Estimate` of ``(batch,)``, in nats.

    Raises:
        TypeError, ValueError: ``x`` is no batch of floats, or ``samples`` or ``chunk`` no count.

    Source: Rezende, Mohamed & Wierstra (2014), appendix E; Burda et al. (2016), section 5.
    """
    check_shapes(("x", x, "batch ..."))
    check_count("samples", samples, least=2)
    with evaluation_mode(model):
        return _per_example(model.log_weights, x, labels, samples, chunk, log_mean_weight)


@torch.no_grad()
def iwae(
    model, x: Tensor, k: int, repeats: int, *, labels: Tensor | None = None, chunk: int = 500
) -> Estimate:
    r"""The importance weighted bound with k samples, as the mean of ``repeats`` independent estimates.

    .. math:: \mathcal{L}_k(x) = \mathbb{E}\left[\log \frac1k \sum_{i=1}^k w_i\right] \le \log p(x)

    The standard error is that of the *bound*. How far the bound itself lies below log p(x) it does not
    say: about :math:`\chi^2 / 2k`, however many ``repeats`` there are.

    Args:
        model: a latent variable model; see the module's docstring.
        x: ``(batch, ...)``.
        k: samples of each estimate; 1 gives the ELBO.
        repeats: how many estimates, at least two.
        labels: ``(batch,)``, for a model of p(x|y).
        chunk: how many samples are decoded at once; bounds the memory.

    Returns:
        An :class:`Estimate` of ``(batch,)``, in nats.

    Raises:
        TypeError, ValueError: ``x`` is no batch of floats, or ``k``, ``repeats`` or ``chunk`` no count.

    Source: Burda, Grosse & Salakhutdinov (2016), equation 8.
    """
    check_shapes(("x", x, "batch ..."))
    check_count("k", k)
    check_count("repeats", repeats, least=2)

    def bound(log_weights: Tensor) -> Estimate:
        estimates = log_mean_exp(log_weights.view(k, repeats, -1), dim=0)
        return Estimate(estimates.mean(dim=0), estimates.std(dim=0) / math.sqrt(repeats))

    with evaluation_mode(model):
        return _per_example(model.log_weights, x, labels, k * repeats, chunk, bound)


def negative_log_likelihood(
    model,
    images: Tensor,
    samples: int = 5000,
    *,
    labels: Tensor | None = None,
    batch_size: int = 100,
    chunk: int = 500,
    progress: bool = True,
) -> Estimate:
    """The number that papers report: the mean of -log p(x) over images, by importance sampling.

    The estimate of every image is low in log p, so this number is too high, by about half the mean of
    the squared standard errors that :func:`importance_sampling` gives.

    Args:
        model: a latent variable model; see the module's docstring.
        images: ``(N, ...)``, at least two, on the device of the model. Published Bernoulli likelihoods
            are those of binarised images.
        samples: draws of z per image.
        labels: ``(N,)``, for a model of p(x|y).
        batch_size: images between two movements of the progress bar.
        chunk: samples that are decoded at once.
        progress: show a progress bar.

    Returns:
        An :class:`Estimate` of ``()``, in nats per image. The standard error is that of the mean over
        images; the noise of each image's own estimate is part of what it measures.

    Raises:
        TypeError, ValueError: as in :func:`importance_sampling`, or fewer than two images.
    """
    count = check_shapes(("images", images, "N ..."))["N"]
    check_count("N, the number of images,", count, least=2)
    check_count("batch_size", batch_size)
    if labels is not None:
        check_labels("labels", labels, (count,))
    values = []
    with tqdm(total=count, desc="log p(x)", unit="image", disable=not progress) as bar:
        for rows in torch.arange(count, device=images.device).split(batch_size):
            given = None if labels is None else labels[rows]
            values.append(importance_sampling(model, images[rows], samples, labels=given, chunk=chunk).value)
            bar.update(len(rows))
    losses = -torch.cat(values)
    return Estimate(losses.mean(), losses.std() / math.sqrt(count))


@contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """Switch batch norm and dropout to evaluation, and every part of the model back to what it was."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes):
            part.training = mode


# ---------------------------------------------------------------------- what the code holds


def kl_per_dimension(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z_j|x) || N(0, 1)) of every latent dimension, averaged over the data.

    A dimension whose KL is near 0 has collapsed: it says the same, namely nothing, for every x.

    Args:
        mean: ``(N, k)``, from ``model.encode``.
        logvar: ``(N, k)``.

    Returns:
        ``(k,)``, nats. Their sum is the rate: the mean over the data of KL(q(z|x) || p(z)).

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.
    """
    return gaussian_kl_per_dimension(mean, logvar).mean(dim=0)


def active_units(mean: Tensor, threshold: float = 0.01) -> int:
    """How many latent dimensions have a mean that varies over the data by more than a threshold.

    Args:
        mean: ``(N, k)``, E[z|x] for each example.
        threshold: on the variance over the data (divided by N).

    Returns:
        A number from 0 to k.

    Raises:
        TypeError, ValueError: ``mean`` has another shape or no examples, or ``threshold`` is negative.

    Source: Burda, Grosse & Salakhutdinov (2016), section 5.1.
    """
    check_count("N, the number of examples,", check_shapes(("mean", mean, "N k"))["N"])
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold} but must be at least 0: it bounds a variance.")
    return int((mean.var(dim=0, correction=0) > threshold).sum())


@torch.no_grad()
def mutual_information(mean: Tensor, logvar: Tensor, *, chunk: int = 1000) -> Estimate:
    r"""How much the code tells which example it came from, I(x; z) under q(z|x) and the data.

    .. math:: I = \mathbb{E}_{x}\,\mathbb{E}_{q(z|x)}\left[\log q(z|x) - \log q(z)\right], \qquad
              q(z) = \frac1N \sum_{n=1}^N q(z|x_n)

    The rate splits into it and the mismatch with the prior: mean KL(q(z|x) || p(z)) = I + KL(q(z) || p(z)).
    One z is drawn per example and compared with all N of them. For the N examples as they are, this is
    unbiased. As an estimate for the population they come from it is low, for every z finds its own
    example among too few others, and it can never exceed log N: trust values well below that.

    Args:
        mean: ``(N, k)``, from ``model.encode``, at least two examples.
        logvar: ``(N, k)``.
        chunk: draws that are compared with all examples at once; bounds the memory.

    Returns:
        An :class:`Estimate` of ``()``, in nats. The standard error is over examples.

    Raises:
        TypeError, ValueError: wrong shapes, fewer than two examples, or ``chunk`` is no count.

    Source: Hoffman & Johnson (2016).
    """
    sizes = check_shapes(("mean", mean, "N k"), ("logvar", logvar, "N k"))
    check_count("N, the number of examples,", sizes["N"], least=2)
    check_count("chunk", chunk)
    # The squares of all pairs are multiplied out into matrix products; double precision keeps what
    # cancels between them.
    mean, logvar = mean.double(), logvar.double()
    z = reparameterize(mean, logvar)
    precision = torch.exp(-logvar)
    scaled = mean * precision
    constant = -0.5 * (math.log(2 * math.pi) + logvar + mean * scaled).sum(dim=1)
    information = []
    for start, rows in zip(range(0, len(z), chunk), z.split(chunk)):
        log_densities = constant + rows @ scaled.T - 0.5 * rows.square() @ precision.T
        information.append(log_densities.diagonal(start) - log_mean_exp(log_densities, dim=1))
    information = torch.cat(information)
    return Estimate(information.mean(), information.std() / math.sqrt(sizes["N"]))


def gaussian_total_correlation(mean: Tensor, logvar: Tensor) -> Tensor:
    r"""How far the dimensions of the code are from independent, as far as their correlations show it.

    .. math:: \mathrm{TC} = \mathrm{KL}\left(q(z) \,\Big\|\, \prod_j q(z_j)\right)
              = \tfrac12 \left(\sum_j \log S_{jj} - \log\det S\right)

    for a Gaussian q(z) with the covariance S of the code: that of the means plus the mean variance.

    Args:
        mean: ``(N, k)``, from ``model.encode``.
        logvar: ``(N, k)``.

    Returns:
        ``()``, nats; 0 if and only if no two dimensions are correlated.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Watanabe (1960); for the Gaussian case, Locatello et al. (2019), section 5.3.
    """
    count = check_shapes(("mean", mean, "N k"), ("logvar", logvar, "N k"))["N"]
    centred = mean - mean.mean(dim=0)
    cov = centred.T @ centred / count + torch.diag(logvar.exp().mean(dim=0))
    return 0.5 * (cov.diagonal().log().sum() - torch.logdet(cov))


# ---------------------------------------------------------------------- what it is good for


def probe_accuracy(
    codes: Tensor,
    labels: Tensor,
    test_codes: Tensor,
    test_labels: Tensor,
    *,
    per_class: int = 10,
    repeats: int = 10,
    seed: int = 0,
) -> Estimate:
    """Accuracy of a linear classifier that sees few labels: how well do the codes represent the classes?

    A logistic regression is fitted to ``per_class`` labelled codes of each class, drawn at random, and
    tested on all test codes; again for every repetition. The codes are scaled to mean 0 and variance 1
    first, with the statistics of all ``codes``, for which no label is needed.

    Args:
        codes: ``(N, k)``, codes or, to compare with, flattened images.
        labels: ``(N,)``, int64.
        test_codes: ``(M, k)``.
        test_labels: ``(M,)``, int64.
        per_class: labels of each class.
        repeats: draws of labels, at least two.
        seed: of the draws.

    Returns:
        An :class:`Estimate` of ``()``, float64: the mean accuracy in [0, 1], and its standard error over
        draws of labels, the test set being what it is.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit, a class with too few examples, NaN.
        ImportError: scikit-learn is missing.
    """
    with needs("book", "probe_accuracy needs scikit-learn"):
        from sklearn.linear_model import LogisticRegression
    check_shapes(("codes", codes, "N k"), ("test_codes", test_codes, "M k"))
    check_labels("labels", labels, (len(codes),))
    check_labels("test_labels", test_labels, (len(test_codes),))
    check_finite("codes", codes)
    check_finite("test_codes", test_codes)
    check_count("per_class", per_class)
    check_count("repeats", repeats, least=2)
    classes, counts = labels.unique(return_counts=True)
    if len(classes) < 2 or counts.min() < per_class:
        raise ValueError(
            f"labels holds {len(classes)} classes, the smallest of {int(counts.min())} examples, but needs "
            f"at least 2 classes of per_class = {per_class} each."
        )
    mean, std = codes.mean(dim=0), codes.std(dim=0)
    std = torch.where(std > 0, std, 1.0)
    train, test = (((c - mean) / std).cpu().double().numpy() for c in (codes, test_codes))
    y, test_y = labels.cpu().numpy(), test_labels.cpu().numpy()
    random = np.random.default_rng(seed)
    accuracies = []
    for _ in range(repeats):
        rows = [random.permutation(np.flatnonzero(y == c))[:per_class] for c in classes.tolist()]
        chosen = np.concatenate(rows)
        classifier = LogisticRegression(max_iter=2000).fit(train[chosen], y[chosen])
        accuracies.append(classifier.score(test, test_y))
    scores = torch.tensor(accuracies, dtype=torch.float64)
    return Estimate(scores.mean(), scores.std() / math.sqrt(repeats))


def auroc(scores_in: Tensor, scores_out: Tensor) -> float:
    """Probability that an example from inside scores higher than one from outside; a tie counts half.

    1/2 is chance. Below it the score points the wrong way, as log p(x) can: a model of complicated
    images often gives simple ones from another data set a *higher* likelihood (Nalisnick et al. 2019).

    Args:
        scores_in: ``(N,)``, for example log p(x) of test images.
        scores_out: ``(M,)``, the same of images from elsewhere.

    Returns:
        The area under the ROC curve, exactly, by comparing all pairs through their ranks.

    Raises:
        TypeError, ValueError: another shape, no scores, NaN.
    """
    sizes = check_shapes(("scores_in", scores_in, "N"), ("scores_out", scores_out, "M"))
    for name, scores in (("scores_in", scores_in), ("scores_out", scores_out)):
        check_count(f"the length of {name}", len(scores))
        if scores.isnan().any():
            raise ValueError(f"{name} holds NaN, which has no rank.")
    ranked = scores_out.to(scores_in.dtype).sort().values
    below = torch.searchsorted(ranked, scores_in)
    not_above = torch.searchsorted(ranked, scores_in, right=True)
    return int((below + not_above).sum()) / (2 * sizes["N"] * sizes["M"])


# -------------------------------------------------------------------------------- inner parts


def _per_example(
    log_weights: Callable[..., Tensor],
    x: Tensor,
    labels: Tensor | None,
    samples: int,
    chunk: int,
    estimate: Callable[[Tensor], Estimate],
) -> Estimate:
    """Estimate from log weights, ``(samples, 1)`` for one example after the other, drawn in chunks."""
    check_count("chunk", chunk)
    if labels is not None:
        check_labels("labels", labels, (len(x),))
    counts = [chunk] * (samples // chunk) + [samples % chunk] * (samples % chunk > 0)
    estimates = []
    for i in range(len(x)):
        given = {} if labels is None else {"labels": labels[i : i + 1]}
        estimates.append(estimate(torch.cat([log_weights(x[i : i + 1], n, **given) for n in counts])))
    return Estimate(*(torch.cat(parts) for parts in zip(*estimates)))
