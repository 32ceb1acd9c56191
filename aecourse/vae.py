"""The variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014)."""

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss, elbo, free_bits, iwae_bound
from aecourse.contracts import check_finite, check_shapes, check_unit_interval
from aecourse.distributed import standard_normal
from aecourse.likelihoods import (
    bernoulli_log_likelihood,
    categorical_log_likelihood,
    continuous_bernoulli_log_likelihood,
    continuous_bernoulli_mean,
    gaussian_kl,
    gaussian_log_likelihood,
    optimal_logvar,
)
from aecourse.nets import (
    NETWORK_OPTIONS,
    Conv1dDecoder,
    Conv1dEncoder,
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
)

LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian", "categorical")
VARIANCES = ("learned", "per_pixel", "optimal")
BOUNDS = ("elbo", "iwae")
GRADIENTS = ("pathwise", "stl", "dreg")

# A decoder that gives its own variances can raise the likelihood of a pixel that never changes without
# limit. The floor, a standard deviation of 1/400, is below the step of 8-bit images.
MIN_LOGVAR = -12.0


def reparameterize(mean: Tensor, logvar: Tensor, samples: int | None = None) -> Tensor:
    """Draw z ~ N(mean, diag exp logvar) so that gradients reach ``mean`` and ``logvar``.

    The noise is drawn apart from the parameters, so z is a differentiable function of them:
    z = mean + std * noise. The standard deviation is exp(logvar / 2).

    Args:
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``.
        samples: how many draws per example.

    Returns:
        ``(samples, batch, k)``, or without ``samples`` one draw per example, ``(batch, k)``.
    """
    shape = mean.shape if samples is None else (samples, *mean.shape)
    noise = standard_normal(shape, like=mean, batch_dim=0 if samples is None else 1)
    return mean + torch.exp(0.5 * logvar) * noise


class VAE(nn.Module):
    r"""A variational autoencoder over any encoder and decoder.

    The generative model draws z from N(0, I) and x from p(x|z), whose parameters the decoder gives.
    The encoder gives q(z|x) = N(mean, diag exp logvar), the approximation to the posterior p(z|x).

    **Likelihoods.** ``"bernoulli"``, ``"continuous_bernoulli"`` (a density on [0, 1], for grey values),
    ``"gaussian"``, and ``"categorical"``: one of ``levels`` grey values, to which pixels in [0, 1] are
    rounded. The ``variance`` of a Gaussian is a number, the same for all pixels, or ``"learned"``, one
    parameter for all pixels; ``"per_pixel"``, a second output of the decoder (at least exp(-12));
    ``"optimal"``, the mean squared error of the batch, which maximises its likelihood (Rybkin et al.
    2021). The last one ties the examples of a batch together: to report likelihoods of single images,
    set ``vae.variance`` to a number first.

    **Objectives.** The ELBO with its KL in closed form, averaged over ``samples`` draws of z; or with
    ``bound="iwae"`` the tighter bound of Burda et al. (2016). The gradient is that of the
    reparameterised draws, or ``"stl"`` (Roeder et al. 2017), which leaves out the part that is zero on
    average and vanishes where q is exact, or for the IWAE bound ``"dreg"`` (Tucker et al. 2019), which
    stays unbiased there and keeps its signal with more samples. ``free_bits`` spares each latent
    variable the KL below that many nats (Kingma et al. 2016).

    **Conditional.** With ``classes`` > 0 every method takes ``labels``, ``(batch,)`` int64. The encoder
    sees them as ``classes`` more channels, each zero or one, the decoder as a one-hot vector behind z
    (Sohn et al. 2015).

    Args:
        encoder: maps ``(batch, *image_shape)``, with ``classes`` more channels if conditional, to ``mean``
            and ``logvar``, each ``(batch, latent_dim)``.
        decoder: maps ``(batch, latent_dim + classes)`` to ``(batch, *image_shape)``: logits for a
            Bernoulli likelihood, means for a Gaussian one. ``"per_pixel"`` needs ``(batch, 2,
            *image_shape)``, ``"categorical"`` ``(batch, levels, *image_shape)``.
        image_shape: for example ``(1, 28, 28)``.
        latent_dim: the number of latent variables.
        likelihood: see above.
        variance: of the Gaussian likelihood; see above.
        beta: weight of the KL in the loss; 1 gives the evidence lower bound.
        free_bits: nats per latent variable, 0 for none.
        samples: draws of z per example in the loss.
        bound: ``"elbo"`` or ``"iwae"``.
        gradient: ``"pathwise"``, ``"stl"`` or ``"dreg"``.
        prior_temperature: T makes the prior N(0, T I), which is proportional to N(z; 0, I)^(1/T).
        classes: number of classes of a conditional VAE.
        levels: number of grey values of the categorical likelihood.

    Raises:
        TypeError, ValueError: an unknown name, a number out of range, or options that exclude each other.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        image_shape: Sequence[int],
        latent_dim: int,
        likelihood: str = "bernoulli",
        variance: float | str = 1.0,
        beta: float = 1.0,
        free_bits: float = 0.0,
        samples: int = 1,
        bound: str = "elbo",
        gradient: str = "pathwise",
        prior_temperature: float = 1.0,
        classes: int = 0,
        levels: int = 256,
    ):
        super().__init__()
        _check_names(likelihood=likelihood, bound=bound, gradient=gradient)
        _check_counts(samples=samples, classes=classes, levels=levels)
        if variance not in VARIANCES and (isinstance(variance, str) or not variance > 0):
            raise ValueError(f"variance is {variance!r} but must be positive or one of {VARIANCES}.")
        if variance != 1.0 and likelihood != "gaussian":
            raise ValueError(f"variance is {variance!r} but likelihood is {likelihood!r}, not 'gaussian'.")
        if not beta >= 0:
            raise ValueError(f"beta is {beta} but must be at least 0.")
        if not free_bits >= 0:
            raise ValueError(f"free_bits is {free_bits} but must be at least 0.")
        if not prior_temperature > 0:
            raise ValueError(f"prior_temperature is {prior_temperature} but must be positive.")
        if gradient == "dreg" and bound != "iwae":
            raise ValueError("gradient='dreg' needs bound='iwae'; of the ELBO, 'stl' is the same estimator.")
        if free_bits > 0 and (bound, gradient) != ("elbo", "pathwise"):
            raise ValueError("free_bits needs the KL in closed form: bound='elbo' and gradient='pathwise'.")
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.variance = variance
        self.beta = beta
        self.free_bits = free_bits
        self.samples = samples
        self.bound = bound
        self.gradient = gradient
        self.prior_temperature = prior_temperature
        self.classes = classes
        self.levels = levels
        if variance == "learned":
            self.output_logvar = nn.Parameter(torch.zeros(()))

    @classmethod
    def mlp(
        cls, image_shape: Sequence[int], latent_dim: int, hidden: Sequence[int] = (400,), **options
    ) -> "VAE":
        """A VAE whose encoder and decoder are multi-layer perceptrons, mirror images of each other.

        Args:
            hidden: the encoder's layer sizes.
            options: those of the networks (``activation``, ``batch_norm``, ``dropout``, given to both; see
                :func:`aecourse.nets.mlp`) and those of :class:`VAE`.
        """
        return cls._mirrored(MLPEncoder, MLPDecoder, image_shape, latent_dim, [hidden], options)

    @classmethod
    def conv(
        cls,
        image_shape: Sequence[int],
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        **options,
    ) -> "VAE":
        """Convolutions, see :class:`aecourse.nets.ConvEncoder`, and the same backwards; options as in mlp."""
        return cls._mirrored(ConvEncoder, ConvDecoder, image_shape, latent_dim, [channels, hidden], options)

    @classmethod
    def conv1d(
        cls,
        image_shape: Sequence[int],
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        **options,
    ) -> "VAE":
        """The same for time series, ``image_shape = (channels, length)``; options as in mlp."""
        widths = [channels, hidden]
        return cls._mirrored(Conv1dEncoder, Conv1dDecoder, image_shape, latent_dim, widths, options)

    @classmethod
    def residual(
        cls,
        image_shape: Sequence[int],
        latent_dim: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        **options,
    ) -> "VAE":
        """Residual stages, see :class:`aecourse.nets.ResidualEncoder`; options ``blocks``, ``activation``,
        ``batch_norm`` and those of the class."""
        widths = [channels, hidden]
        return cls._mirrored(ResidualEncoder, ResidualDecoder, image_shape, latent_dim, widths, options)

    @classmethod
    def _mirrored(cls, encoder, decoder, image_shape, latent_dim, widths, options) -> "VAE":
        settings = {name: options.pop(name) for name in NETWORK_OPTIONS if name in options}
        classes, levels = options.get("classes", 0), options.get("levels", 256)
        _check_counts(classes=classes, levels=levels)
        outputs = 1
        if options.get("likelihood") == "categorical":
            outputs = levels
        elif options.get("variance") == "per_pixel":
            outputs = 2
        channels, *size = image_shape
        return cls(
            encoder((channels + classes, *size), latent_dim, *widths, **settings),
            decoder(
                latent_dim + classes, image_shape, *(w[::-1] for w in widths), outputs=outputs, **settings
            ),
            image_shape=image_shape,
            latent_dim=latent_dim,
            **options,
        )

    # ------------------------------------------------------------------------ the model's parts

    def encode(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(batch, *image_shape)`` to ``mean`` and ``logvar`` of q(z|x), each ``(batch, latent_dim)``."""
        self._check_images("x", x)
        one_hot = self._one_hot(labels, x)
        if one_hot is None:
            mean, logvar = self.encoder(x)
        else:
            planes = one_hot.reshape(*one_hot.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
            mean, logvar = self.encoder(torch.cat([x, planes], dim=1))
        self._check_codes("the encoder's mean", mean)
        return mean.to(x.dtype), logvar.to(x.dtype)  # networks may compute in half precision, bounds may not

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """``(batch, latent_dim)`` to the mean of p(x|z), ``(batch, *image_shape)``: what one looks at."""
        output = self._decoder_output(z, labels)
        if self.likelihood == "bernoulli":
            return output.sigmoid()
        if self.likelihood == "continuous_bernoulli":
            return continuous_bernoulli_mean(output)
        if self.likelihood == "categorical":
            grey = torch.linspace(0, 1, self.levels, dtype=output.dtype, device=output.device)
            return (output.softmax(dim=1).movedim(1, -1) * grey).sum(dim=-1)
        return output[:, 0] if self.variance == "per_pixel" else output

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x|z), nats per example: ``(batch,)``, or ``(samples, batch)`` for z of several draws,
        ``(samples, batch, latent_dim)``."""
        if z.dim() == 3:  # decode all draws as one large batch
            samples = len(z)
            copies = x.expand(samples, *x.shape).flatten(0, 1)
            labels = None if labels is None else labels.repeat(samples)
            return self.log_likelihood(copies, z.flatten(0, 1), labels).unflatten(0, (samples, -1))
        output = self._decoder_output(z, labels)
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(x, output)
        if self.likelihood == "continuous_bernoulli":
            return continuous_bernoulli_log_likelihood(x, output)
        if self.likelihood == "categorical":
            return categorical_log_likelihood((x * (self.levels - 1)).round().long(), output)
        if self.variance == "per_pixel":
            mean, logvar = output.unbind(dim=1)
            return gaussian_log_likelihood(x, mean, MIN_LOGVAR + F.softplus(logvar - MIN_LOGVAR))
        if self.variance == "optimal":
            return gaussian_log_likelihood(x, output, optimal_logvar(x, output))
        if self.variance == "learned":
            return gaussian_log_likelihood(x, output, self.output_logvar)
        return gaussian_log_likelihood(x, output, x.new_full((), math.log(self.variance)))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), nats per example: ``(batch, latent_dim)`` to ``(batch,)``; leading dimensions stay."""
        self._check_codes("z", z if z.dim() < 3 else z.flatten(0, -2))
        return _log_normal(z, torch.zeros_like(z), z.new_full(z.shape, math.log(self.prior_temperature)))

    def log_joint(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x, z) = log p(x|z) + log p(z), shaped as :meth:`log_likelihood`."""
        return self.log_likelihood(x, z, labels) + self.log_prior(z)

    def log_weights(self, x: Tensor, samples: int, labels: Tensor | None = None) -> Tensor:
        """log p(x, z) - log q(z|x) for draws z ~ q(z|x): the logarithms of importance weights.

        Gradients reach the encoder through the draws and through q's density.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws per example, decoded as one batch.
            labels: ``(batch,)`` int64, for a conditional VAE.

        Returns:
            ``(samples, batch)``. The mean of their exponentials is an unbiased estimate of p(x).
        """
        _check_counts(samples=samples)
        mean, logvar = self.encode(x, labels)
        z = reparameterize(mean, logvar, samples)
        return self.log_joint(x, z, labels) - _log_normal(z, mean, logvar)

    def kl_per_dimension(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """KL(q(z_j|x) || p(z_j)), nats: ``(batch, latent_dim)`` twice to ``(batch, latent_dim)``."""
        check_shapes(("mean", mean, "batch latent_dim"), ("logvar", logvar, "batch latent_dim"))
        columns = mean.reshape(-1, 1), logvar.reshape(-1, 1)
        return gaussian_kl(*columns, math.log(self.prior_temperature)).view_as(mean)

    # --------------------------------------------------------------------------- the objectives

    def loss(self, x: Tensor, labels: Tensor | None = None, beta: float | Tensor | None = None) -> Loss:
        """Negative ELBO of a batch, with its two parts; see :class:`aecourse.bounds.Loss`.

        ``beta`` stands in for the model's own, as annealing needs it.
        """
        beta = self.beta if beta is None else beta
        if self.bound == "iwae" or self.gradient != "pathwise":
            return self._loss_of_weights(x, labels, beta)
        mean, logvar = self.encode(x, labels)
        if self.samples == 1:
            log_likelihood = self.log_likelihood(x, reparameterize(mean, logvar), labels)
        else:
            draws = reparameterize(mean, logvar, self.samples)
            log_likelihood = self.log_likelihood(x, draws, labels).mean(dim=0)
        kl = gaussian_kl(mean, logvar, math.log(self.prior_temperature))
        bound = elbo(log_likelihood, kl, beta).mean()
        if self.free_bits > 0:
            floored = free_bits(self.kl_per_dimension(mean, logvar), self.free_bits)
            bound = log_likelihood.mean() - beta * floored
        return Loss(total=-bound, parts={"reconstruction": -log_likelihood.mean(), "kl": kl.mean()})

    def _loss_of_weights(self, x: Tensor, labels: Tensor | None, beta: float | Tensor) -> Loss:
        """The losses that need log q(z|x) at the draws: the IWAE bound, and STL and DReG gradients."""
        mean, logvar = self.encode(x, labels)
        z = reparameterize(mean, logvar, self.samples)
        log_likelihood = self.log_likelihood(x, z, labels)  # (samples, batch)
        if self.gradient == "pathwise":
            log_q = _log_normal(z, mean, logvar)
        else:  # the encoder is reached through the draws alone
            log_q = _log_normal(z, mean.detach(), logvar.detach())
        log_weights = log_likelihood + beta * (self.log_prior(z) - log_q)
        if self.gradient == "dreg" and z.requires_grad:
            # The bound's own gradient weighs a draw by its normalised weight; squared, it is DReG.
            weights = log_weights.detach().softmax(dim=0).unsqueeze(2)
            z.register_hook(lambda gradient: weights * gradient)
        bound = iwae_bound(log_weights) if self.bound == "iwae" else log_weights.mean(dim=0)
        kl = gaussian_kl(mean, logvar, math.log(self.prior_temperature))
        parts = {"reconstruction": -log_likelihood.mean(), "kl": kl.mean()}
        return Loss(total=-bound.mean(), parts=parts)

    @torch.no_grad()
    def elbo(self, x: Tensor, samples: int = 1, labels: Tensor | None = None) -> Tensor:
        """The evidence lower bound (beta = 1) of each example, averaged over draws of z.

        Args:
            x: ``(batch, *image_shape)``.
            samples: draws of z per example; more of them lower the noise, not the bound.
            labels: ``(batch,)`` int64, for a conditional VAE.

        Returns:
            ``(batch,)``, nats per example.
        """
        _check_counts(samples=samples)
        mean, logvar = self.encode(x, labels)
        draws = [self.log_likelihood(x, reparameterize(mean, logvar), labels) for _ in range(samples)]
        return elbo(
            torch.stack(draws).mean(dim=0), gaussian_kl(mean, logvar, math.log(self.prior_temperature))
        )

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def reconstruct(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode the mean of q(z|x), the deterministic reconstruction, ``(batch, *image_shape)``."""
        return self.decode(self.encode(x, labels)[0], labels)

    @torch.no_grad()
    def sample(self, count: int, temperature: float | None = None, labels: Tensor | None = None) -> Tensor:
        """Draw z from the prior and return the mean of p(x|z), ``(count, *image_shape)``.

        Args:
            count: how many.
            temperature: T of z ~ N(0, T I), the model's ``prior_temperature`` by default. Below 1 samples
                are more typical and less diverse. It scales the variance: papers that quote the factor
                of the standard deviation, as NVAE does (Vahdat & Kautz 2020), mean its square root.
            labels: ``(count,)`` int64, for a conditional VAE.
        """
        _check_counts(count=count)
        temperature = self.prior_temperature if temperature is None else temperature
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature} but must be at least 0.")
        like = next(self.parameters())
        z = torch.randn(count, self.latent_dim, device=like.device, dtype=like.dtype)
        return self.decode(math.sqrt(temperature) * z, labels)

    @torch.no_grad()
    def interpolate(self, x0: Tensor, x1: Tensor, steps: int, labels: Tensor | None = None) -> Tensor:
        """Decode the straight line between the codes of two images, both ends included.

        Args:
            x0: ``(batch, *image_shape)``, where each line starts.
            x1: the same shape, where it ends.
            steps: points on each line, at least 2.
            labels: ``(batch,)`` int64, for a conditional VAE: the same along the line.

        Returns:
            ``(steps, batch, *image_shape)``.
        """
        check_shapes(("x0", x0, "batch ..."), ("x1", x1, "batch ..."))
        if steps < 2:
            raise ValueError(f"steps is {steps} but must be at least 2: both ends are shown.")
        start, end = self.encode(x0, labels)[0], self.encode(x1, labels)[0]
        weights = torch.linspace(0, 1, steps, device="cpu").tolist()
        return torch.stack([self.decode(torch.lerp(start, end, weight), labels) for weight in weights])

    @torch.no_grad()
    def traverse(
        self, z: Tensor, dimension: int, values: Sequence[float], labels: Tensor | None = None
    ) -> Tensor:
        """Decode codes with one latent variable set to each of ``values`` and the others left as they are.

        Args:
            z: ``(batch, latent_dim)``, for example ``vae.encode(x)[0]``.
            dimension: which latent variable, from 0.
            values: to set it to; between -3 and 3 lies most of the prior.
            labels: ``(batch,)`` int64, for a conditional VAE.

        Returns:
            ``(len(values), batch, *image_shape)``.
        """
        self._check_codes("z", z)
        if not 0 <= dimension < self.latent_dim:
            raise ValueError(f"dimension is {dimension} but must be between 0 and {self.latent_dim - 1}.")
        frames = []
        for value in values:
            moved = z.clone()
            moved[:, dimension] = value
            frames.append(self.decode(moved, labels))
        return torch.stack(frames)

    def validate(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] under any likelihood
                but the Gaussian; labels of another type, number or range.
        """
        self._check_images("images", images)
        check_finite("images", images)
        if self.likelihood != "gaussian":
            check_unit_interval("images", images)
        if labels is not None:
            self._check_labels(labels, len(images))
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.classes:
                raise ValueError(f"labels go from {low} to {high} but need 0 to {self.classes - 1}.")

    # -------------------------------------------------------------------------------- inner parts

    def _decoder_output(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What the decoder gives: logits, means, or several numbers per pixel."""
        self._check_codes("z", z)
        one_hot = self._one_hot(labels, z)
        output = self.decoder(z if one_hot is None else torch.cat([z, one_hot], dim=1))
        return output.to(z.dtype)

    def _one_hot(self, labels: Tensor | None, like: Tensor) -> Tensor | None:
        """``(batch,)`` labels to ``(batch, classes)`` zeros and ones; None if the model has no classes."""
        self._check_labels(labels, len(like))
        return F.one_hot(labels, self.classes).to(like.dtype) if self.classes else None

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        if labels is None and self.classes == 0:
            return
        if labels is None:
            raise ValueError(f"labels are missing: this VAE is conditional, with {self.classes} classes.")
        if self.classes == 0:
            raise ValueError("labels were given to a VAE without classes: make it with classes=10, say.")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be a torch.Tensor of torch.int64, not {kind}.")
        if tuple(labels.shape) != (count,):
            raise ValueError(f"labels has shape {tuple(labels.shape)} but needs ({count},), one per example.")

    def _check_images(self, name: str, x: Tensor) -> None:
        check_shapes((name, x, "batch ..."))
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} but this model needs (batch, "
                f"{', '.join(map(str, self.image_shape))})."
            )

    def _check_codes(self, name: str, z: Tensor) -> None:
        check_shapes((name, z, "batch latent_dim"))
        if z.shape[1] != self.latent_dim:
            raise ValueError(
                f"{name} has shape {tuple(z.shape)} but this model needs (batch, {self.latent_dim})."
            )


def _log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, diag exp logvar), summed over the last dimension: z may be several draws from one q."""
    rows = [values.expand_as(z).reshape(-1, z.shape[-1]) for values in (z, mean, logvar)]
    return gaussian_log_likelihood(*rows).view(z.shape[:-1])


def _check_names(likelihood: str, bound: str, gradient: str) -> None:
    for name, value, known in (
        ("likelihood", likelihood, LIKELIHOODS),
        ("bound", bound, BOUNDS),
        ("gradient", gradient, GRADIENTS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r} but must be one of {known}.")


def _check_counts(**counts: int) -> None:
    """Whole numbers with a least value of their own."""
    least = {"classes": 0, "levels": 2}
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r} but must be a whole number.")
        if value < least.get(name, 1):
            raise ValueError(f"{name} is {value} but must be at least {least.get(name, 1)}.")
