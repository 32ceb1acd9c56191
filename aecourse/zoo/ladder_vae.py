"""The ladder variational autoencoder: layers of latent variables, inferred from the top down."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss, free_bits
from aecourse.contracts import (
    check_batch,
    check_count,
    check_images,
    check_shapes,
)
from aecourse.distributed import standard_normal
from aecourse.likelihoods import (
    Likelihood,
    as_likelihood,
    gaussian_kl_between,
    gaussian_log_density,
    pop_likelihood,
    reparameterize,
)
from aecourse.nets import MLPEncoder, build, split_options

INFERENCES = ("top_down", "bottom_up", "mean_field")

MIN_VARIANCE = 1e-5  # of every layer, so that no message drowns all others and no KL explodes


def merge_gaussians(
    mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor
) -> tuple[Tensor, Tensor]:
    r"""The product of two Gaussian densities, normalised: precisions add, means are weighted by them.

    .. math:: \sigma^{-2} = \sigma_1^{-2} + \sigma_2^{-2}, \qquad
              \mu = \sigma^2 \left(\mu_1 / \sigma_1^2 + \mu_2 / \sigma_2^2\right)

    With a prior and a likelihood message it is Bayes' rule. It is computed from logarithms: the sum as
    ``logaddexp`` and the first weight as a sigmoid of their difference, so that nothing overflows, divides
    by zero or loses its gradient to infinity, whatever the log-variances.

    Args:
        mean, logvar: of one Gaussian, any shape; dimensions are independent.
        other_mean, other_logvar: of the other one, the same shape.

    Returns:
        ``mean`` and ``logvar`` of the product, the same shape.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Sønderby et al. (2016), the inference model of the ladder.
    """
    check_shapes(
        ("mean", mean, "..."),
        ("logvar", logvar, "..."),
        ("other_mean", other_mean, "..."),
        ("other_logvar", other_logvar, "..."),
    )
    weight = torch.sigmoid(other_logvar - logvar)  # precision / (precision + other_precision)
    return torch.lerp(other_mean, mean, weight), -torch.logaddexp(-logvar, -other_logvar)


class Layer(NamedTuple):
    """One layer's posterior, the prior that it is held against, and a draw; each ``(rows, k)``.

    Several draws of a batch are ``samples * batch`` rows, all examples of the first draw first.
    """

    z: Tensor
    """Drawn from q, or its mean."""

    mean: Tensor
    """Of q(z_n | ...)."""

    logvar: Tensor

    prior_mean: Tensor
    """Of p(z_n | z_{n+1}), at the z_{n+1} that was drawn."""

    prior_logvar: Tensor

    def kl(self) -> Tensor:
        """KL(q(z_n | ...) || p(z_n | z_{n+1})) for the neighbours that were drawn, nats, ``(rows,)``."""
        return gaussian_kl_between(self.mean, self.logvar, self.prior_mean, self.prior_logvar)

    def log_ratio(self) -> Tensor:
        """log q(z_n | ...) - log p(z_n | z_{n+1}) of the draw, nats, ``(rows,)``."""
        log_q = gaussian_log_density(self.z, self.mean, self.logvar)
        return log_q - gaussian_log_density(self.z, self.prior_mean, self.prior_logvar)


class LadderVAE(nn.Module):
    r"""A VAE with a hierarchy of latent variables.

    .. math:: p(x, z_{1..L}) = p(x|z_1)\, p(z_1|z_2) \cdots p(z_{L-1}|z_L)\, \mathcal N(z_L; 0, I)

    **Top down**, the ladder: :math:`q(z|x) = q(z_L|x) \prod_n q(z_n|z_{n+1}, x)`. A deterministic way up,
    :math:`d_n = f_n(d_{n-1})` from :math:`d_0 = x`, gives every layer a message, a Gaussian factor
    :math:`N(\hat\mu_n, \hat\sigma_n^2)`. The top posterior is its message. On the way down, each layer merges
    the message with its prior, :func:`merge_gaussians`; that prior is the generative model's own, at the
    z above that was *drawn*. So a layer that has nothing to say has the KL 0 by construction, and one
    posterior follows the other: a correction of p(z_n|z_{n+1}) is all that is learned. (NVAE learns
    it as a shift and a factor relative to the prior instead, Vahdat & Kautz 2020: another parametrisation of
    the same chain.)

    **Bottom up**, for comparison: :math:`q(z|x) = q(z_1|x) \prod_n q(z_n|z_{n-1})`, as a stack of VAEs has
    it, with the same generative model; f_n sees the draw z_{n-1} in place of d_{n-1}. **Mean field**:
    :math:`q(z|x) = \prod_n q(z_n|x)`, the ladder's messages without the merging.

    Modules give log-variances; to be safe in single precision, they should keep them between -80 and 80, as
    those of :meth:`build` do.

    Args:
        encoders: f_1, ..., f_L; f_1 takes ``(batch, *image_shape)``, the others what the one below gives
            (bottom up: z of the layer below).
        messages: for each layer from the bottom, maps what its encoder gives to ``mean`` and ``logvar``,
            each ``(batch, latent_dims[n])``.
        priors: L - 1 of them, from the bottom; each maps ``(batch, latent_dims[n + 1])`` to ``mean`` and
            ``logvar`` of p(z_n|z_{n+1}).
        decoder: maps z_1, ``(batch, latent_dims[0])``, to what the likelihood needs.
        image_shape: for example ``(1, 28, 28)``.
        latent_dims: sizes of the layers, z_1 first.
        inference: ``"top_down"``, ``"bottom_up"`` or ``"mean_field"``.
        likelihood, variance, levels, beta, samples: as for :class:`aecourse.vae.VAE`.
        free_bits: spares each *layer* the KL below that many nats; 0 for none. Not with bottom-up inference.

    Raises:
        TypeError, ValueError: numbers of modules and sizes that do not fit, an unknown name, a number out of
            range.

    Source: Sønderby, Raiko, Maaløe, Sønderby & Winther (2016).
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        messages: Sequence[nn.Module],
        priors: Sequence[nn.Module],
        decoder: nn.Module,
        *,
        image_shape: Sequence[int],
        latent_dims: Sequence[int],
        inference: str = "top_down",
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        samples: int = 1,
    ):
        super().__init__()
        layers = len(latent_dims)
        if layers < 1:
            raise ValueError("latent_dims is empty but needs the size of at least one layer.")
        for size in latent_dims:
            check_count("a size in latent_dims", size)
        wanted = {"encoders": layers, "messages": layers, "priors": layers - 1}
        for (name, count), modules in zip(wanted.items(), (encoders, messages, priors)):
            if len(modules) != count:
                raise ValueError(
                    f"{name} holds {len(modules)} modules but needs {count} for the {layers} of latent_dims."
                )
        if inference not in INFERENCES:
            raise ValueError(f"inference is {inference!r} but must be one of {INFERENCES}.")
        check_count("samples", samples)
        for name, value in (("beta", beta), ("free_bits", free_bits)):
            if not value >= 0:
                raise ValueError(f"{name} is {value} but must be at least 0.")
        if free_bits and inference == "bottom_up":
            raise ValueError(
                f"free_bits is {free_bits} but bottom-up inference has no KL of a single layer (what it adds "
                "can be negative): take inference='top_down', or 0."
            )
        self.encoders, self.messages = nn.ModuleList(encoders), nn.ModuleList(messages)
        self.priors, self.decoder = nn.ModuleList(priors), decoder
        self.image_shape, self.latent_dims = tuple(image_shape), tuple(latent_dims)
        self.inference = inference
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        self.beta, self.free_bits, self.samples = beta, free_bits, samples

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int | Sequence[int],
        *,
        hidden: Sequence[int] | None = None,
        inference: str = "top_down",
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        batch_norm: bool = True,
        **options,
    ) -> "LadderVAE":
        """Over networks with one deterministic layer for each layer of latent variables.

        The first encoder and the decoder are those of :func:`aecourse.nets.build`, all others linear maps
        and perceptrons. Variances are a softplus and at least 1e-5: a network that has lost its
        way makes them large, not infinite.

        Args:
            kind: ``"mlp"``, ``"conv"``, ``"conv1d"`` or ``"residual"``, the networks next to the image.
            image_shape: for example ``(1, 28, 28)``.
            latent_dim: size of each layer, z_1 first; or that of z_1 alone, which is halved from layer to
                layer: 64 with two layers is ``(64, 32)``.
            hidden: units of each deterministic layer, the lowest first: as many as there are layers. By
                default 400, halved from layer to layer, and two layers if ``latent_dim`` does not say more.
            inference: see the class.
            activation: a class; leaky rectifiers are the paper's.
            batch_norm: normalise the deterministic layers, which the paper finds crucial for a deep
                hierarchy. In training a batch then needs two examples or more.
            options: of the first networks (``channels``, ``blocks``, ``dropout``), and those of the class.

        Raises:
            TypeError, ValueError: from the networks or the class; ``hidden`` and ``latent_dim`` of different
                lengths.
        """
        sizes, hidden = _sizes(latent_dim, hidden)
        networks, options = split_options(options)
        networks |= {"activation": activation, "batch_norm": batch_norm}
        perceptron = {name: value for name, value in networks.items() if name not in ("channels", "blocks")}
        likelihood = pop_likelihood(options)
        lowest, _ = build(kind, image_shape, hidden[0], gaussian=False, hidden=(), **networks)
        _, decoder = build(
            kind, image_shape, sizes[0], outputs=likelihood.outputs, hidden=hidden[:1], **networks
        )
        below = sizes if inference == "bottom_up" else hidden
        maps = [lowest, *(nn.Linear(inputs, units) for inputs, units in zip(below, hidden[1:]))]
        between = [nn.BatchNorm1d(units) if batch_norm else nn.Identity() for units in hidden]
        encoders = [nn.Sequential(*layer, activation()) for layer in zip(maps, between)]
        messages = [_Gaussian(units, size, ()) for units, size in zip(hidden, sizes)]
        down = zip(sizes[1:], sizes, hidden[1:])
        priors = [_Gaussian(above, size, (units,), **perceptron) for above, size, units in down]
        shapes = {"image_shape": image_shape, "latent_dims": sizes}
        modules = encoders, messages, priors, decoder
        return cls(*modules, inference=inference, likelihood=likelihood, **shapes, **options)

    # ------------------------------------------------------------------------ the model's parts

    def infer(self, x: Tensor, samples: int = 1, *, noise: bool = True) -> list[Layer]:
        """All layers of q(z|x) with draws, z_1 first, each of ``samples * batch`` rows.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws per example; the deterministic way up is gone once for all of them.
            noise: False takes the mean of each layer, given the means before it, in place of a draw.
        """
        check_batch("x", x, self.image_shape)
        check_count("samples", samples)

        def draw(mean: Tensor, logvar: Tensor) -> Tensor:
            if not noise:
                return mean
            shape = (samples, len(x), mean.shape[1])
            return reparameterize(mean, logvar, noise=standard_normal(shape, mean, batch_dim=1).flatten(0, 1))

        way = self._bottom_up if self.inference == "bottom_up" else self._top_down
        return way(x, samples, draw)

    def _top_down(self, x: Tensor, samples: int, draw: Callable[..., Tensor]) -> list[Layer]:
        features, messages = x, []
        for n, encoder in enumerate(self.encoders):
            features = encoder(features)
            messages.append([values.repeat(samples, 1) for values in self._message(n, features, x)])
        layers: list[Layer] = []
        for n in reversed(range(len(messages))):
            prior = self.prior(n, layers[0].z) if layers else self._top_prior(messages[n][0])
            merged = layers and self.inference == "top_down"
            posterior = merge_gaussians(*messages[n], *prior) if merged else messages[n]
            layers.insert(0, Layer(draw(*posterior), *posterior, *prior))
        return layers

    def _bottom_up(self, x: Tensor, samples: int, draw: Callable[..., Tensor]) -> list[Layer]:
        z, drawn = x, []
        for n, encoder in enumerate(self.encoders):
            mean, logvar = self._message(n, encoder(z), x)
            if n == 0:
                mean, logvar = mean.repeat(samples, 1), logvar.repeat(samples, 1)
            z = draw(mean, logvar)
            drawn.append((z, mean, logvar))
        priors = [self.prior(n, above[0]) for n, above in enumerate(drawn[1:])]
        return [Layer(*own, *prior) for own, prior in zip(drawn, [*priors, self._top_prior(z)])]

    def _message(self, n: int, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.messages[n](features)
        check_batch(f"the mean of message {n + 1}", mean, (self.latent_dims[n],))
        return mean.to(x.dtype), logvar.to(x.dtype)  # networks may compute in half precision, bounds may not

    def prior(self, n: int, above: Tensor) -> tuple[Tensor, Tensor]:
        """``mean`` and ``logvar`` of p(z|above) for the layer with index n, 0 the lowest: ``(batch,
        latent_dims[n + 1])`` to ``(batch, latent_dims[n])`` twice."""
        mean, logvar = self.priors[n](above)
        check_batch(f"the mean of prior {n + 1}", mean, (self.latent_dims[n],))
        return mean.to(above.dtype), logvar.to(above.dtype)

    @staticmethod
    def _top_prior(like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(like), torch.zeros_like(like)

    def decoder_output(self, z: Tensor) -> Tensor:
        """z_1, ``(batch, latent_dims[0])``, to what the likelihood needs."""
        check_batch("z", z, self.latent_dims[:1])
        return self.decoder(z).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """z_1, ``(batch, latent_dims[0])``, to the mean of p(x|z_1), ``(batch, *image_shape)``."""
        return self.likelihood.mean(self.decoder_output(z))

    def _log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        copies = x.expand(len(z) // len(x), *x.shape).flatten(0, 1)
        return self.likelihood.log_prob(copies, self.decoder_output(z))

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z_1, ..., z_L) - log q(z_1, ..., z_L|x) for draws from q.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws per example, decoded as one batch.

        Returns:
            ``(samples, batch)``, nats. The mean of their exponentials is an unbiased estimate of p(x).
        """
        layers = self.infer(x, samples)
        log_ratio = sum(layer.log_ratio() for layer in layers)
        return (self._log_likelihood(x, layers[0].z) - log_ratio).unflatten(0, (samples, -1))

    # --------------------------------------------------------------------------- the objective

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        r"""Negative ELBO of a batch; ``beta`` weighs all KLs and stands in for the model's own.

        Parts: ``reconstruction``; ``kl``, and what each layer adds to it, ``kl_1``, ``kl_2``, ... Top down,

        .. math:: \mathrm{KL}_n = \mathbb{E}_{q(z_{n+1}|x)} \mathrm{KL}(q(z_n|z_{n+1}, x) \| p(z_n|z_{n+1}))

        in closed form for each z_{n+1} that was drawn, so that even the exact posterior leaves it some noise
        (:meth:`log_weights` has none there). Bottom up, the z above is drawn *from* z_n, and a
        lower layer adds the mean of log q(z_n|z_{n-1}) - log p(z_n|z_{n+1}), no divergence for itself: it
        can be negative, and only the sum cannot.
        """
        beta = self.beta if beta is None else beta
        layers = self.infer(x, self.samples)
        log_likelihood = self._log_likelihood(x, layers[0].z).mean()  # over draws and examples
        closed = layers[-1:] if self.inference == "bottom_up" else layers
        terms = [layer.log_ratio() for layer in layers[: len(layers) - len(closed)]]
        terms += [layer.kl() for layer in closed]
        kl = torch.stack(terms, dim=1)  # (rows, layers)
        means = kl.mean(dim=0)
        rate = free_bits(kl, self.free_bits) if self.free_bits else means.sum()
        parts = {"reconstruction": -log_likelihood, "kl": means.sum()}
        parts |= {f"kl_{n}": value for n, value in enumerate(means.unbind(), 1)}
        return Loss(total=-(log_likelihood - beta * rate), parts=parts)

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def encode(self, x: Tensor) -> list[Layer]:
        """The posterior of every layer, z_1 first, at the means of those that it depends on."""
        return self.infer(x, noise=False)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode z_1 with every layer at its mean, ``(batch, *image_shape)``."""
        return self.decode(self.encode(x)[0].z)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draw z_L from N(0, I) and each layer from the one above; the mean of p(x|z_1), ``(count,
        *image_shape)``."""
        check_count("count", count)
        z = standard_normal((count, self.latent_dims[-1]), like=next(self.parameters()))
        for n in reversed(range(len(self.priors))):
            z = reparameterize(*self.prior(n, z))
        return self.decode(z)

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] under any likelihood
                but the Gaussian.
        """
        check_images("images", images, self.image_shape, self.likelihood.support)


class _Gaussian(nn.Module):
    """A perceptron from vectors to a mean and a log-variance that is bounded from below and grows slowly."""

    def __init__(self, inputs: int, size: int, hidden: Sequence[int], **options):
        super().__init__()
        self.net = MLPEncoder((inputs,), size, hidden, **options)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.net(inputs)
        if torch.finfo(spread.dtype).bits < 32:  # three digits are too few for what follows
            spread = spread.float()
        return mean, torch.log(F.softplus(spread) + MIN_VARIANCE)


def _sizes(
    latent_dim: int | Sequence[int], hidden: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the layers' latent variables and of their deterministic units; see :meth:`LadderVAE.build`."""

    def halved(first: int, layers: int) -> tuple[int, ...]:
        return tuple(max(first >> n, 1) for n in range(layers))

    single = not isinstance(latent_dim, Sequence)
    if single:
        check_count("latent_dim", latent_dim)
    if hidden is None:
        hidden = halved(400, 2 if single else len(latent_dim))
    if not isinstance(hidden, Sequence):
        raise TypeError(f"hidden is {hidden!r} but needs a size for each layer, such as (400, 200).")
    sizes = halved(latent_dim, len(hidden)) if single else tuple(latent_dim)
    if len(sizes) != len(hidden) or not sizes:
        raise ValueError(
            f"hidden is {tuple(hidden)} and latent_dim {sizes}, but both need one size for each layer."
        )
    return sizes, tuple(hidden)
