"""A variational autoencoder of images given their labels (Sohn, Lee & Yan 2015)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss
from aecourse.contracts import check_count, check_labels
from aecourse.likelihoods import Likelihood, as_likelihood
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
        settings = {name: options.pop(name, None) for name in ("variance", "levels")}
        likelihood = as_likelihood(options.pop("likelihood", "bernoulli"), **settings)
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
