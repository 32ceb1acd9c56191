"""Two models that share a name: images given labels, and a part of an image given the rest of it.

:class:`ConditionalVAE` draws z from N(0, I) whatever the label (Kingma et al. 2014, their model M2 with the
label known). :class:`StructuredOutputVAE` draws it from a network that looks at the condition (Sohn, Lee &
Yan 2015). Both are called "conditional VAE", and where papers differ on "the prior", this is why.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss, log_mean_exp
from aecourse.contracts import (
    check_batch,
    check_count,
    check_images,
    check_labels,
)
from aecourse.likelihoods import (
    Likelihood,
    as_likelihood,
    gaussian_kl_between,
    gaussian_log_density,
    pop_likelihood,
    reparameterize,
)
from aecourse.nets import build, split_options
from aecourse.vae import VAE


class ConditionalVAE(nn.Module):
    r"""A VAE of p(x|y) for every label y, all of them with the same weights.

    .. math:: \log p(x|y) \ge \mathbb{E}_{q(z|x,y)}\left[\log p(x|y,z)\right]
              - \mathrm{KL}\left(q(z|x,y)\,\|\,p(z)\right)

    Both networks see the label: the encoder as ``classes`` more channels, each zero or one, the decoder as a
    one-hot vector behind z. What the label says, z need not say again.

    For fixed labels this *is* a VAE: ``model.given(labels)`` is one, and has all its methods::

        model.given(labels).elbo(images)
        model.given(torch.tensor([3])).sample(10)  # ten threes

    Args:
        encoder: maps ``(batch, channels + classes, ...)`` to ``mean`` and ``logvar``, each ``(batch,
            latent_dim)``.
        decoder: maps ``(batch, latent_dim + classes)`` to what the likelihood needs.
        classes: how many labels there are.
        image_shape, latent_dim, likelihood, variance, levels, beta, free_bits, samples: as for
            :class:`aecourse.vae.VAE`.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`, or ``classes`` is no count.

    Source: Sohn, Lee & Yan (2015), equation 4, with a prior that does not look at the label.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        classes: int,
        image_shape: Sequence[int],
        latent_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        samples: int = 1,
    ):
        super().__init__()
        check_count("classes", classes)
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        self.classes = classes
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.beta = beta
        self.free_bits = free_bits
        self.samples = samples
        self.given(torch.zeros(1, dtype=torch.int64, device="cpu"))  # refuses what a VAE refuses

    @classmethod
    def build(cls, kind: str, image_shape: Sequence[int], latent_dim: int, *, classes: int, **options):
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class."""
        check_count("classes", classes)
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        networks |= {"outputs": likelihood.outputs, "condition": classes}
        encoder, decoder = build(kind, image_shape, latent_dim, **networks)
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, decoder, classes=classes, likelihood=likelihood, **shapes, **options)

    def given(self, labels: Tensor) -> VAE:
        """The VAE of p(x|y) for these labels, over the same weights.

        Args:
            labels: ``(batch,)`` int64, one for each example that its methods get; a single one, ``(1,)``, is
                that of all.

        Raises:
            TypeError, ValueError: ``labels`` is no such tensor.
        """
        check_labels("labels", labels, (labels.numel() if isinstance(labels, Tensor) else 1,))
        one_hot = F.one_hot(labels, self.classes)
        return VAE(
            _Labelled(self.encoder, one_hot, draws=False),
            _Labelled(self.decoder, one_hot, draws=True),
            image_shape=self.image_shape,
            latent_dim=self.latent_dim,
            likelihood=self.likelihood,
            beta=self.beta,
            free_bits=self.free_bits,
            samples=self.samples,
        ).train(self.training)

    def loss(self, x: Tensor, labels: Tensor, beta: float | Tensor | None = None) -> Loss:
        """Negative ELBO of a batch given its labels, ``(batch,)``; see :meth:`aecourse.vae.VAE.loss`."""
        return self.given(labels).loss(x, beta)

    def log_weights(self, x: Tensor, samples: int, labels: Tensor) -> Tensor:
        """log p(x, z|y) - log q(z|x, y) for draws z; see :meth:`aecourse.vae.VAE.log_weights`."""
        return self.given(labels).log_weights(x, samples)

    @torch.no_grad()
    def class_log_likelihoods(self, x: Tensor, samples: int) -> Tensor:
        """log p(x|y) of every label y, from importance weights.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws of z per example and label. Few of them put every label too low, and those most
                whose q is poor.

        Returns:
            ``(batch, classes)``, nats; each a lower bound on average (Burda, Grosse & Salakhutdinov 2016).
        """
        columns = []
        for label in range(self.classes):
            labels = torch.full((len(x),), label, device=x.device)
            columns.append(log_mean_exp(self.log_weights(x, samples, labels)))
        return torch.stack(columns, dim=1)

    def classify(self, x: Tensor, samples: int, log_class_prior: Tensor | None = None) -> Tensor:
        r"""The label that Bayes' rule finds most probable, for a model that was never trained to classify.

        .. math:: \arg\max_y \left[\log p(x|y) + \log p(y)\right]

        Args:
            x, samples: as for :meth:`class_log_likelihoods`.
            log_class_prior: ``(classes,)``, log p(y), up to a constant; all labels alike by default.

        Returns:
            ``(batch,)`` int64.

        Raises:
            TypeError, ValueError: ``log_class_prior`` is no tensor, or has another shape.
        """
        scores = self.class_log_likelihoods(x, samples)
        if log_class_prior is not None:
            if not isinstance(log_class_prior, Tensor):
                kind = type(log_class_prior).__name__
                raise TypeError(f"log_class_prior must be a torch.Tensor, not {kind}.")
            if tuple(log_class_prior.shape) != (self.classes,):
                shape = tuple(log_class_prior.shape)
                raise ValueError(f"log_class_prior has shape {shape} but needs ({self.classes},).")
            scores = scores + log_class_prior.to(scores)
        return scores.argmax(dim=1)

    def validate(self, images: Tensor, labels: Tensor) -> None:
        """Refuse images and labels this model cannot be trained on; ``fit`` asks once.

        Raises:
            TypeError, ValueError: as :meth:`aecourse.vae.VAE.validate`; labels of another type, number or
                range.
        """
        check_labels("labels", labels, (len(images),), self.classes)
        self.given(labels).validate(images)


class _Labelled(nn.Module):
    """A network that sees the labels beside its input: as planes of an image, as numbers behind a code."""

    def __init__(self, network: nn.Module, one_hot: Tensor, draws: bool):
        super().__init__()
        self.network, self.one_hot, self.draws = network, one_hot, draws

    def forward(self, inputs: Tensor):
        count, labels = len(inputs), len(self.one_hot)
        several = self.draws and count % labels == 0  # all examples once, then all again, ...
        if not (labels in (1, count) or several):
            raise ValueError(f"labels has shape ({labels},) but needs ({count},), one for each example.")
        one_hot = self.one_hot.to(inputs.dtype).repeat(count // labels, 1)
        planes = one_hot.reshape(*one_hot.shape, *[1] * (inputs.dim() - 2)).expand(-1, -1, *inputs.shape[2:])
        return self.network(torch.cat([inputs, planes], dim=1))


class StructuredOutputVAE(nn.Module):
    r"""Fills in images: p(y|x) for the pixels y that are missing, given the pixels x that are there.

    .. math:: \log p(y|x) \ge \mathbb{E}_{q(z|x,y)}\left[\log p(y|x,z)\right]
              - \mathrm{KL}\left(q(z|x,y)\,\|\,p(z|x)\right)

    Three networks: the recognition network q(z|x, y) sees the whole image, the prior network p(z|x) only what
    is given, and the decoder p(y|x, z) gets the given pixels behind z. Where pixels are missing is a rule of
    the model, so that whole images are all it is trained on, and nothing but missing pixels is ever scored.

    In training z comes from the recognition network, and in use from the prior network. The hybrid objective
    trains for both:

    .. math:: \alpha\, \mathcal{L}_\text{bound}
              + (1 - \alpha)\, \mathbb{E}_{p(z|x)}\left[\log p(y|x,z)\right]

    Its second term alone is a Gaussian stochastic network, a regression with noise inside. By Jensen's
    inequality it is a bound on log p(y|x) too, and a loose one.

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``mean`` and ``logvar`` of q(z|x, y), each ``(batch,
            latent_dim)``.
        prior_encoder: the same of p(z|x). It gets images whose missing pixels are 0.
        decoder: maps ``(batch, latent_dim + given pixels)`` to what the likelihood needs for whole images.
            What it says of given pixels is not used.
        given: a boolean ``(*image_shape)`` that is true where pixels are given; or how many quadrants of an
            image are, 1 to 3, in the order bottom left, top left, top right.
        image_shape, latent_dim, likelihood, variance, levels, beta, samples: as for
            :class:`aecourse.vae.VAE`.
        alpha: the weight of the bound in the hybrid objective, from 0 to 1; with 1 it is the bound alone.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`; ``given`` is no such mask or number, gives
            nothing or everything; ``alpha`` is out of range.

    Source: Sohn, Lee & Yan (2015), equations 4 to 6 and section 5.1 for the quadrants.
    """

    def __init__(
        self,
        encoder: nn.Module,
        prior_encoder: nn.Module,
        decoder: nn.Module,
        *,
        given: int | Tensor,
        image_shape: Sequence[int],
        latent_dim: int,
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        beta: float = 1.0,
        alpha: float = 1.0,
        samples: int = 1,
    ):
        super().__init__()
        check_count("samples", samples)
        if not beta >= 0:
            raise ValueError(f"beta is {beta} but must be at least 0.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha} but must be between 0 and 1: it is the weight of the bound.")
        self.encoder = encoder
        self.prior_encoder = prior_encoder
        self.decoder = decoder
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.beta = beta
        self.alpha = alpha
        self.samples = samples
        mask = _mask(given, self.image_shape)
        # Numbers of pixels in the flat image: to pick by a mask, a GPU would have to ask the host how many.
        self.register_buffer("given", torch.tensor(np.flatnonzero(mask).tolist()))
        self.register_buffer("missing", torch.tensor(np.flatnonzero(~mask).tolist()))

    @classmethod
    def build(
        cls, kind: str, image_shape: Sequence[int], latent_dim: int, *, given: int | Tensor = 1, **options
    ) -> "StructuredOutputVAE":
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class."""
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        pixels = int(_mask(given, tuple(image_shape)).sum())
        encoder, _ = build(kind, image_shape, latent_dim, **networks)
        prior_encoder, _ = build(kind, image_shape, latent_dim, **networks)
        _, decoder = build(kind, image_shape, latent_dim + pixels, outputs=likelihood.outputs, **networks)
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, prior_encoder, decoder, given=given, likelihood=likelihood, **shapes, **options)

    # ------------------------------------------------------------------------ the model's parts

    def hide(self, x: Tensor) -> Tensor:
        """The image as the prior network sees it: missing pixels are 0."""
        check_batch("x", x, self.image_shape)
        return x.flatten(1).index_fill(1, self.missing, 0.0).view(x.shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, *image_shape)`` to ``mean`` and ``logvar`` of q(z|x, y), each ``(batch, latent_dim)``."""
        check_batch("x", x, self.image_shape)
        return self._gaussian("encoder", x)

    def prior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same of p(z|x), from the given pixels of ``x`` alone."""
        return self._gaussian("prior_encoder", self.hide(x))

    def decoder_output(self, x: Tensor, z: Tensor) -> Tensor:
        """The given pixels of ``x`` and z, ``(batch, latent_dim)``, to what the likelihood needs."""
        check_batch("x", x, self.image_shape)
        check_batch("z", z, (self.latent_dim,))
        condition = x.flatten(1).index_select(1, self.given)
        return self.decoder(torch.cat([z, condition], dim=1)).to(z.dtype)

    def decode(self, x: Tensor, z: Tensor) -> Tensor:
        """The image with its missing pixels at the mean of p(y|x, z): ``(batch, *image_shape)``."""
        filled = self.likelihood.mean(self.decoder_output(x, z)).flatten(1)
        return x.flatten(1).index_copy(1, self.missing, filled.index_select(1, self.missing)).view(x.shape)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(y|x, z) of the missing pixels, nats per example: ``(batch,)``, or ``(samples, batch)`` for z
        of several draws, ``(samples, batch, latent_dim)``."""
        if z.dim() == 3:  # decode all draws as one large batch
            copies = x.expand(len(z), *x.shape).flatten(0, 1)
            return self.log_likelihood(copies, z.flatten(0, 1)).unflatten(0, (len(z), -1))
        output = self.decoder_output(x, z).flatten(-len(self.image_shape))
        missing = x.flatten(1).index_select(1, self.missing)
        return self.likelihood.log_prob(missing, output.index_select(-1, self.missing))

    def log_prior(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(z|x), nats per example, shaped as :meth:`log_likelihood`."""
        return gaussian_log_density(z, *self.prior(x))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(y, z|x), shaped as :meth:`log_likelihood`."""
        return self.log_likelihood(x, z) + self.log_prior(x, z)

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(y, z|x) - log q(z|x, y) for draws z ~ q: the logarithms of importance weights for p(y|x).

        Args:
            x: ``(batch, *image_shape)``, whole images.
            samples: draws per example, decoded as one batch.

        Returns:
            ``(samples, batch)``.
        """
        check_count("samples", samples)
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, samples)
        return self.log_joint(x, z) - gaussian_log_density(z, mean, logvar)

    # --------------------------------------------------------------------------- the objective

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """Negative hybrid objective of a batch of whole images; see :class:`aecourse.bounds.Loss`.

        Its parts are those of the bound, and with ``alpha`` below 1 ``prediction``, -log p(y|x, z) for z from
        the prior network. ``beta`` stands in for the model's own, as annealing needs it.
        """
        beta = self.beta if beta is None else beta
        mean, logvar = self.encode(x)
        prior_mean, prior_logvar = self.prior(x)
        z = reparameterize(mean, logvar, self.samples)
        reconstruction = -self.log_likelihood(x, z).mean()  # over draws and examples
        kl = gaussian_kl_between(mean, logvar, prior_mean, prior_logvar).mean()
        bound, parts = reconstruction + beta * kl, {"reconstruction": reconstruction, "kl": kl}
        if self.alpha == 1:
            return Loss(total=bound, parts=parts)
        z = reparameterize(prior_mean, prior_logvar, self.samples)
        prediction = -self.log_likelihood(x, z).mean()
        total = self.alpha * bound + (1 - self.alpha) * prediction
        return Loss(total=total, parts={**parts, "prediction": prediction})

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def complete(self, x: Tensor, count: int) -> Tensor:
        """Fill in images, each several times: z from the prior network, then the mean of p(y|x, z).

        Args:
            x: ``(batch, *image_shape)``; what stands at missing pixels does not matter.
            count: how many completions of each.

        Returns:
            ``(count, batch, *image_shape)``, given pixels as they are.
        """
        check_count("count", count)
        z = reparameterize(*self.prior(x), count)
        copies = x.expand(count, *x.shape).flatten(0, 1)
        return self.decode(copies, z.flatten(0, 1)).unflatten(0, (count, -1))

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: as :meth:`aecourse.vae.VAE.validate`.
        """
        check_images("images", images, self.image_shape, self.likelihood.support)

    def _gaussian(self, network: str, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = getattr(self, network)(x)
        check_batch(f"the mean of {network}", mean, (self.latent_dim,))
        return mean.to(x.dtype), logvar.to(x.dtype)  # networks may compute in half precision, bounds may not


def _mask(given: int | Tensor, image_shape: tuple[int, ...]) -> np.ndarray:
    """Where pixels are given, ``(*image_shape)``."""
    if isinstance(given, Tensor):
        if given.dtype != torch.bool or tuple(given.shape) != image_shape:
            kind = f"{given.dtype} of shape {tuple(given.shape)}"
            raise ValueError(f"given is {kind} but needs torch.bool of shape {image_shape}, the image's.")
        mask = given.cpu().numpy()
    else:
        check_count("given", given)
        if given > 3 or len(image_shape) != 3 or min(image_shape[1:]) < 2:
            raise ValueError(
                f"given is {given} for images of shape {image_shape} but needs 1 to 3, the quadrants of "
                "(channels, height, width), height and width at least 2; or a boolean mask of that shape."
            )
        mask = np.zeros(image_shape, dtype=bool)
        middle, centre = image_shape[1] // 2, image_shape[2] // 2
        for rows, columns in (
            (slice(middle, None), slice(None, centre)),
            (slice(None, middle), slice(None, centre)),
            (slice(None, middle), slice(centre, None)),
        )[:given]:
            mask[:, rows, columns] = True
    if mask.all() or not mask.any():
        raise ValueError(f"given is {mask.sum()} of {mask.size} pixels but needs some, and not all.")
    return mask
