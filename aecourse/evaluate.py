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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from aecourse.bounds import Loss, log_mean_exp
from aecourse.contracts import check_batch, check_count, check_finite, check_labels, check_shapes
from aecourse.extras import needs
from aecourse.likelihoods import gaussian_kl_per_dimension, gaussian_log_density, reparameterize
from aecourse.nets import MLPEncoder


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
    holds about z. The standard error does not show it: it never exceeds 1, however far off the estimate is.
    Under another prior, the weights put it right.

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
    scores = torch.tensor(accuracies, dtype=torch.float64, device="cpu")
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


# ------------------------------------------------------------------------- how samples look


class FeatureNetwork(nn.Module):
    """A classifier whose last hidden layer says what is in an image: the eyes of :func:`frechet_distance`.

    Published Frechet distances look through an Inception network of photographs, which is not part of this
    course: theirs cannot be compared with those here, nor those of two networks of this class.
    :func:`aecourse.reference.load_features` has trained ones.

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``(batch, features)``; a ReLU follows.
        image_shape: for example ``(1, 28, 28)``.
        features: how many.
        classes: how many labels there are.

    Raises:
        TypeError, ValueError: ``features`` or ``classes`` is no such count.
    """

    def __init__(self, encoder: nn.Module, *, image_shape: Sequence[int], features: int, classes: int):
        super().__init__()
        check_count("features", features)
        check_count("classes", classes, least=2)
        self.encoder = encoder
        self.head = nn.Linear(features, classes)
        self.image_shape = tuple(image_shape)
        self.classes = classes

    def features(self, x: Tensor) -> Tensor:
        """What the last hidden layer holds: ``(batch, *image_shape)`` to ``(batch, features)``."""
        check_batch("x", x, self.image_shape)
        return F.relu(self.encoder(x).to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """p(class | x), ``(batch, *image_shape)`` to ``(batch, classes)``; each row has the sum 1."""
        return self._logits(x).softmax(dim=1)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).to(x.dtype)

    def loss(self, x: Tensor, labels: Tensor) -> Loss:
        """Cross-entropy in nats, and the share of images that are classified wrongly."""
        check_labels("labels", labels, (len(x),))
        logits = self._logits(x)
        error = (logits.argmax(dim=1) != labels).to(x.dtype).mean()
        return Loss(total=F.cross_entropy(logits, labels), parts={"error": error})

    def validate(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Refuse images and labels this network cannot be trained on; ``fit`` asks once.

        Raises:
            TypeError, ValueError: another shape, NaN or infinity, labels of another type, number or range,
                or none at all.
        """
        check_batch("images", images, self.image_shape)
        check_finite("images", images)
        if labels is None:
            raise ValueError("labels is missing: a classifier cannot be trained without them.")
        check_labels("labels", labels, (len(images),), self.classes)


def feature_network(
    image_shape: Sequence[int],
    classes: int = 10,
    *,
    features: int = 64,
    hidden: Sequence[int] = (128,),
    dropout: float = 0.2,
) -> FeatureNetwork:
    """A small :class:`FeatureNetwork`, a multi-layer perceptron, not trained yet: ``fit`` it with labels.

    Args:
        image_shape, features, classes: as for the class.
        hidden: sizes of the layers before the last hidden one.
        dropout: the probability to set one of their units to zero in training.

    Raises:
        TypeError, ValueError: sizes that are no such counts, a dropout outside [0, 1).
    """
    check_count("features", features)
    encoder = MLPEncoder(image_shape, features, hidden, dropout=dropout, gaussian=False)
    return FeatureNetwork(encoder, image_shape=image_shape, features=features, classes=classes)


def frechet_distance(features: Tensor, others: Tensor) -> Tensor:
    r"""How far apart two sets of images are: the Frechet distance of Gaussians fitted to their features.

    It compares means and covariances and nothing else. Both sets being finite, it is above 0 even for two
    sets from one source, and the higher the smaller they are. Compare sets of equal sizes only, and with
    :func:`frechet_floor`.

    Args:
        features: ``(N, k)``, for example of samples from a model, :meth:`FeatureNetwork.features`.
        others: ``(M, k)``, for example of test images.

    Returns:
        ``()``, float64, in squared units of the features; see :func:`gaussian_frechet_distance`. The
        covariances are divided by N - 1 and M - 1.

    Raises:
        TypeError, ValueError: shapes that do not fit, fewer than two rows, NaN or infinity.

    Source: Heusel et al. (2017), equation 6.
    """
    sizes = check_shapes(("features", features, "N k"), ("others", others, "M k"))
    moments = []
    for name, values, count in (("features", features, sizes["N"]), ("others", others, sizes["M"])):
        check_count(f"the number of rows of {name}", count, least=2)
        check_finite(name, values)
        values = values.double()
        mean = values.mean(dim=0)
        centred = values - mean
        moments += [mean, centred.T @ centred / (count - 1)]
    return gaussian_frechet_distance(*moments)


def frechet_floor(features: Tensor, *, repeats: int = 10, seed: int = 0) -> Estimate:
    """The Frechet distance between two random halves of a set: what nobody can be expected to beat.

    The halves are drawn at random and not taken in order, for files are sorted more often than one thinks:
    the first half of MNIST's test images was written by other people than the second.

    Args:
        features: ``(N, k)``, for example of test images; the floor is that of sets of N / 2.
        repeats: how often the set is divided, at least two.
        seed: of the divisions.

    Returns:
        An :class:`Estimate` of ``()``, float64: the mean over divisions of this one set, and its standard
        error.

    Raises:
        TypeError, ValueError: as in :func:`frechet_distance`, fewer than four rows, ``repeats`` no count.
    """
    count = check_shapes(("features", features, "N k"))["N"]
    check_count("the number of rows of features", count, least=4)
    check_count("repeats", repeats, least=2)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    distances = []
    for _ in range(repeats):
        order = torch.randperm(count, generator=generator, device="cpu").to(features.device)
        first, second = features[order[: count // 2]], features[order[count // 2 :]]
        distances.append(frechet_distance(first, second))
    distances = torch.stack(distances)
    return Estimate(distances.mean(), distances.std() / math.sqrt(repeats))


def gaussian_frechet_distance(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    r"""The squared 2-Wasserstein distance between two Gaussians, in closed form.

    .. math:: \|\mu_1 - \mu_2\|^2 + \operatorname{tr} \Sigma_1 + \operatorname{tr} \Sigma_2
              - 2 \operatorname{tr} \left(\Sigma_1^{1/2} \Sigma_2\, \Sigma_1^{1/2}\right)^{1/2}

    The last trace is the sum of the singular values of :math:`\Sigma_1^{1/2} \Sigma_2^{1/2}`, which takes
    the root of each covariance once: nothing is lost where they are singular, and they commute or not.

    Args:
        mean: ``(k,)``.
        cov: ``(k, k)``, symmetric and positive semidefinite.
        other_mean: ``(k,)``.
        other_cov: ``(k, k)``.

    Returns:
        ``()``, float64, in squared units; 0 for equal Gaussians, never negative.

    Raises:
        TypeError, ValueError: shapes that do not fit, NaN or infinity, a matrix that is not symmetric or
            has a negative eigenvalue.

    Source: Dowson & Landau (1982), equation 4.
    """
    patterns = {"mean": "k", "cov": "k k", "other_mean": "k", "other_cov": "k k"}
    arguments = (mean, cov, other_mean, other_cov)
    check_shapes(*((name, tensor, patterns[name]) for name, tensor in zip(patterns, arguments)))
    for name, tensor in zip(patterns, arguments):
        check_finite(name, tensor)
    root, other_root = _symmetric_root("cov", cov), _symmetric_root("other_cov", other_cov)
    overlap = torch.linalg.svdvals(root @ other_root).sum()
    apart = (mean.double() - other_mean.double()).square().sum()
    spread = root.square().sum() + other_root.square().sum()  # the traces, of what the roots are roots of
    return apart + (spread - 2 * overlap).clamp(min=0)


class Coverage(NamedTuple):
    """Which classes a set of samples falls into."""

    shares: Tensor
    """``(classes,)``, the share of samples in each class, float64."""

    kl: Tensor
    """``()``, nats: KL of the shares from those that they should have, 0 where they agree."""

    confidence: Tensor
    """``()``: how sure it is on average that a sample belongs to any class; low where samples lie between."""

    hit: int
    """Classes in which there is a sample."""


def coverage(probabilities: Tensor) -> Coverage:
    r"""Do samples show all classes, equally often, and clearly?

    .. math:: \mathrm{KL}(h \,\|\, \mathrm{uniform}) = \log C + \sum_c h_c \log h_c

    with h the histogram of each sample's most probable class. It lies between 0 and log C, where all samples
    are of one class. Of N samples from the uniform distribution it is (C - 1) / 2N on average.

    Args:
        probabilities: ``(N, classes)``, p(class | sample) from a classifier such as :class:`FeatureNetwork`;
            each row has the sum 1.

    Returns:
        A :class:`Coverage`. Its confidence is the mean probability of the most probable class.

    Raises:
        TypeError, ValueError: another shape, no samples, fewer than two classes, rows that are no
            probabilities.
    """
    sizes = check_shapes(("probabilities", probabilities, "N classes"))
    check_count("N, the number of samples,", sizes["N"])
    check_count("classes", sizes["classes"], least=2)
    probabilities = probabilities.double()
    sums = probabilities.sum(dim=1)
    if not ((probabilities >= 0).all() and ((sums - 1).abs() < 1e-2).all()):
        raise ValueError(
            f"probabilities has values from {probabilities.min():g} and sums of rows from {sums.min():g} to "
            f"{sums.max():g}, but needs values of at least 0 and sums of 1: apply softmax to logits."
        )
    confidence, classes = probabilities.max(dim=1)
    uniform = torch.full_like(probabilities[0], 1 / sizes["classes"])
    return _coverage(classes, uniform, confidence.mean())


def mode_coverage(mixture, points: Tensor, *, radius: float = 3.0) -> Coverage:
    """The same for points and a density whose modes are known: which of them did a model find?

    Args:
        mixture: an :class:`aecourse.mixtures.GaussianMixture`, such as ``data.mixture_ring()``.
        points: ``(N, D)``.
        radius: how many standard deviations from its mean a component reaches.

    Returns:
        A :class:`Coverage` whose classes are the components: each point belongs to the nearest, in its
        standard deviations. The KL is that from the weights of the mixture; the confidence is the share of
        points within ``radius``; and only these hit a component.

    Raises:
        TypeError, ValueError: ``points`` has another shape, no rows, NaN; ``radius`` is not positive.
    """
    sizes = check_shapes(("the mixture's means", mixture.means, "k D"), ("points", points, "N D"))
    check_count("N, the number of points,", sizes["N"])
    check_finite("points", points)
    if not radius > 0:
        raise ValueError(f"radius is {radius} but must be positive: it counts standard deviations.")
    factors = torch.linalg.cholesky(mixture.covs.double())
    differences = (points.double().unsqueeze(1) - mixture.means.double()).unsqueeze(3)
    distances = torch.linalg.solve_triangular(factors, differences, upper=False).squeeze(3).norm(dim=2)
    nearest, components = distances.min(dim=1)
    near = nearest <= radius
    found = _coverage(components, mixture.weights.double(), near.double().mean())
    return found._replace(hit=len(components[near].unique()))


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


def _symmetric_root(name: str, cov: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix, in double precision."""
    eps = torch.finfo(cov.dtype).eps
    cov = cov.double()
    tolerance = math.sqrt(eps) * cov.abs().max()  # half the digits that it was made with
    if (cov - cov.T).abs().max() > tolerance:
        raise ValueError(f"{name} must be symmetric; it differs from its transpose.")
    eigenvalues, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    if eigenvalues[0] < -tolerance:
        raise ValueError(f"{name} has the eigenvalue {eigenvalues[0]:g} but must be positive semidefinite.")
    # An eigenvalue that is 0 but for rounding, 1e-16, would have the root 1e-8.
    kept = eigenvalues.where(eigenvalues > len(cov) * eps * eigenvalues[-1], 0.0)
    return vectors * kept.sqrt() @ vectors.T


def _coverage(classes: Tensor, expected: Tensor, confidence: Tensor) -> Coverage:
    """Of the class of each sample, ``(N,)``, and the shares that the classes should have."""
    counts = torch.zeros_like(expected).index_add_(0, classes, torch.ones_like(classes, dtype=expected.dtype))
    shares = counts / len(classes)
    kl = (torch.xlogy(shares, shares) - torch.xlogy(shares, expected)).sum()
    return Coverage(shares, kl.clamp(min=0), confidence, int((counts > 0).sum()))
