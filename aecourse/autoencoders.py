"""Autoencoders: deterministic codes, and four ways to keep a wide one from copying.

A plain autoencoder learns a code from which the input can be rebuilt. The narrow bottleneck is what makes
it learn anything; a sparse, denoising or contractive autoencoder puts another pressure in its place, and
its code may then be as wide as the input or wider.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from aecourse.bounds import Loss
from aecourse.contracts import check_batch, check_images, check_shapes
from aecourse.likelihoods import bernoulli_log_likelihood
from aecourse.nets import build, split_options

FUNCTIONS = {"linear": lambda values: values, "relu": torch.relu, "sigmoid": torch.sigmoid}
OUTPUTS = ("sigmoid", "linear")
ERRORS = ("squared", "cross_entropy")
PENALTIES = {"l1": "relu", "kl": "sigmoid", "top_k": "linear"}  # each with the code it is made for


# ---------------------------------------------------------------------------- the mathematics


def l1_sparsity(codes: Tensor) -> Tensor:
    r"""The sum of absolute values of each code, :math:`\sum_j |h_j|`.

    Counting the entries that are not zero (the "L0 norm") is what one means, but its gradient is zero
    wherever it exists. This is the nearest convex function, and its gradient does not fade near zero.

    Args:
        codes: ``(batch, k)``.

    Returns:
        ``(batch,)``.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.
    """
    check_shapes(("codes", codes, "batch k"))
    return codes.abs().sum(dim=1)


def kl_sparsity(codes: Tensor, rho: float) -> Tensor:
    r"""How far the mean activity of each unit is from a small target, summed over units.

    .. math:: \sum_j \mathrm{KL}(\rho \,\|\, \hat\rho_j)
              = \sum_j \rho\log\frac{\rho}{\hat\rho_j} + (1-\rho)\log\frac{1-\rho}{1-\hat\rho_j},
              \qquad \hat\rho_j = \frac1B \sum_b h_{bj}

    The mean is over the *batch*: a unit may be fully active for one example if it rests for the others.

    Args:
        codes: ``(batch, k)``, activities in [0, 1], as a sigmoid gives them.
        rho: the target, between 0 and 1.

    Returns:
        A scalar, in nats. It and its gradient are finite even where a unit is dead (all zeros) or
        saturated (all ones).

    Raises:
        ValueError: ``rho`` is not between 0 and 1.

    Source: Ng (2011), CS294A lecture notes, section 3.
    """
    check_shapes(("codes", codes, "batch k"))
    if not 0 < rho < 1:
        raise ValueError(f"rho is {rho} but must lie between 0 and 1: it is the mean activity of a unit.")
    tiny = torch.finfo(codes.dtype).tiny
    mean = codes.mean(dim=0)
    active, resting = mean.clamp(min=tiny), (1 - mean).clamp(min=tiny)
    terms = rho * (math.log(rho) - active.log()) + (1 - rho) * (math.log(1 - rho) - resting.log())
    return terms.sum()


def top_k(codes: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of each code and set the others to zero.

    Gradients pass through the entries that were kept, and only those.

    Args:
        codes: ``(batch, code_dim)``.
        k: how many to keep, from 1 to ``code_dim``.

    Returns:
        ``(batch, code_dim)``.

    Raises:
        ValueError: ``k`` is out of range.

    Source: Makhzani & Frey (2014), section 2.1.
    """
    code_dim = check_shapes(("codes", codes, "batch code_dim"))["code_dim"]
    if not 1 <= k <= code_dim:
        raise ValueError(f"k is {k} but must be between 1 and {code_dim}, the size of the code.")
    largest, where = codes.topk(k, dim=1)
    return torch.zeros_like(codes).scatter(1, where, largest)


def contractive_penalty(encoder: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    r"""The squared Frobenius norm of the encoder's Jacobian at each example.

    .. math:: \Big\lVert \frac{\partial h}{\partial x} \Big\rVert_F^2
              = \sum_{j, d} \Big(\frac{\partial h_j}{\partial x_d}\Big)^2

    Exact for any encoder, by automatic differentiation: one backward pass for each of the k code
    dimensions, done together. For one layer of sigmoids, :math:`h = \mathrm{sigmoid}(Wx + b)`, it is
    :math:`\sum_j (h_j (1 - h_j))^2 \sum_d W_{jd}^2`. A graph is kept, so it can be minimised.

    Args:
        encoder: maps ``(batch, ...)`` to codes ``(batch, k)``, each example for itself (no batch norm
            in training mode).
        x: ``(batch, ...)``.

    Returns:
        ``(batch,)``.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Rifai et al. (2011), equation 1.
    """
    check_shapes(("x", x, "batch ..."))

    def code(example: Tensor) -> Tensor:
        return encoder(example.unsqueeze(0)).squeeze(0)

    jacobians = vmap(jacrev(code), randomness="different")(x)
    return jacobians.flatten(1).square().sum(dim=1)


# ----------------------------------------------------------------------------------- the models


class Autoencoder(nn.Module):
    """An autoencoder over any encoder and decoder.

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``(batch, code_dim)``: made with ``gaussian=False``.
        decoder: maps ``(batch, code_dim)`` to ``(batch, *image_shape)``, before the output's function.
        image_shape: for example ``(1, 28, 28)``.
        code_dim: the size of the code.
        output: ``"sigmoid"`` for images in [0, 1], ``"linear"`` for any numbers.
        error: ``"squared"``, the squared error summed over dimensions, or ``"cross_entropy"`` between
            pixels and outputs as probabilities (sigmoid outputs only).
        code: ``"linear"``, ``"relu"`` or ``"sigmoid"``, applied to what the encoder gives.
        corruption: a function from ``x`` to a corrupted ``x`` of the same shape, drawn anew at each
            call. The encoder then sees the corrupted input, and the *target is the clean one*.

    Raises:
        ValueError: an unknown output, error or code, or a cross-entropy of linear outputs.

    Source: Hinton & Salakhutdinov (2006).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        image_shape: Sequence[int],
        code_dim: int,
        output: str = "sigmoid",
        error: str = "squared",
        code: str = "linear",
        corruption: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        for name, value, known in (
            ("output", output, OUTPUTS),
            ("error", error, ERRORS),
            ("code", code, tuple(FUNCTIONS)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r} but must be one of {known}.")
        if error == "cross_entropy" and output != "sigmoid":
            raise ValueError("error is 'cross_entropy', which needs output='sigmoid': probabilities.")
        if corruption is not None and not callable(corruption):
            raise TypeError(f"corruption is {corruption!r} but needs a function from x to a corrupted x.")
        self.encoder = encoder
        self.decoder = decoder
        self.image_shape = tuple(image_shape)
        self.code_dim = code_dim
        self.output = output
        self.error = error
        self.code = code
        self.corruption = corruption

    @classmethod
    def mlp(
        cls, image_shape: Sequence[int], code_dim: int, hidden: Sequence[int] = (400,), **options
    ) -> "Autoencoder":
        """Multi-layer perceptrons that mirror each other; ``hidden`` lists the encoder's layer sizes.

        The deep autoencoder of Hinton & Salakhutdinov (2006) is ``hidden=(1000, 500, 250)``,
        ``code_dim=30``, ``activation=nn.Sigmoid``.

        Args:
            options: those of the networks (``activation``, ``batch_norm``, ``dropout``, given to both) and
                those of the class.
        """
        return cls.build("mlp", image_shape, code_dim, hidden=hidden, **options)

    @classmethod
    def conv(cls, image_shape, code_dim, channels=(32, 64), hidden=(), **options) -> "Autoencoder":
        """Convolutions, see :class:`aecourse.nets.ConvEncoder`, and the same backwards; options as in mlp."""
        return cls.build("conv", image_shape, code_dim, channels=channels, hidden=hidden, **options)

    @classmethod
    def conv1d(cls, image_shape, code_dim, channels=(32, 64), hidden=(), **options) -> "Autoencoder":
        """The same for time series, ``image_shape = (channels, length)``; options as in mlp."""
        return cls.build("conv1d", image_shape, code_dim, channels=channels, hidden=hidden, **options)

    @classmethod
    def residual(cls, image_shape, code_dim, channels=(32, 64), hidden=(), **options) -> "Autoencoder":
        """Residual stages, see :class:`aecourse.nets.ResidualEncoder`; options ``blocks``, ``activation``,
        ``batch_norm`` and those of the class."""
        return cls.build("residual", image_shape, code_dim, channels=channels, hidden=hidden, **options)

    @classmethod
    def build(cls, kind: str, image_shape: Sequence[int], code_dim: int, **options) -> "Autoencoder":
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class."""
        networks, options = split_options(options)
        encoder, decoder = build(kind, image_shape, code_dim, gaussian=False, **networks)
        return cls(encoder, decoder, image_shape=image_shape, code_dim=code_dim, **options)

    def encode(self, x: Tensor) -> Tensor:
        """``(batch, *image_shape)`` to codes, ``(batch, code_dim)``."""
        check_batch("x", x, self.image_shape)
        codes = self.encoder(x)
        self._check_codes("the encoder's code", codes)
        return FUNCTIONS[self.code](codes.to(x.dtype))  # it may have computed in half precision

    def decode(self, codes: Tensor) -> Tensor:
        """``(batch, code_dim)`` to images, ``(batch, *image_shape)``."""
        self._check_codes("codes", codes)
        return FUNCTIONS[self.output](self.decoder(codes).to(codes.dtype))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode and decode ``x`` as it is, without corruption: ``(batch, *image_shape)`` to the same."""
        return self.decode(self.encode(x))

    def corrupt(self, x: Tensor) -> Tensor:
        """What the encoder sees in training: ``x`` itself, or a corrupted copy of the same shape."""
        if self.corruption is None:
            return x
        corrupted = self.corruption(x)
        check_shapes(("x", x, "batch ..."), ("the corrupted x", corrupted, "batch ..."))
        return corrupted

    def reconstruction_error(self, x: Tensor, codes: Tensor) -> Tensor:
        """The error of decoding ``codes`` against the target ``x``, summed over dimensions, ``(batch,)``."""
        self._check_codes("codes", codes)
        if self.error == "cross_entropy":
            return -bernoulli_log_likelihood(x, self.decoder(codes).to(x.dtype))
        decoded = self.decode(codes)
        check_shapes(("x", x, "batch ..."), ("the decoder's output", decoded, "batch ..."))
        return (decoded - x).square().flatten(1).sum(dim=1)

    def loss(self, x: Tensor) -> Loss:
        """The mean over the batch of :meth:`reconstruction_error`; see :class:`aecourse.bounds.Loss`."""
        codes = self.encode(self.corrupt(x))
        error = self.reconstruction_error(x, codes).mean()
        return Loss(total=error, parts={"reconstruction": error})

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] under a sigmoid
                output, which could never reach them.
        """
        support = (0.0, 1.0) if self.output == "sigmoid" else (-math.inf, math.inf)
        check_images("images", images, self.image_shape, support)

    def _check_codes(self, name: str, codes: Tensor) -> None:
        if isinstance(codes, tuple):
            raise TypeError(f"{name} is a tuple but needs one tensor: make the encoder with gaussian=False.")
        check_batch(name, codes, (self.code_dim,))


class SparseAutoencoder(Autoencoder):
    """An autoencoder most of whose code units rest for any one example.

    The code may be wider than the input ("overcomplete"). With a ``corruption`` it is a sparse denoising
    autoencoder.

    Args:
        penalty: ``"l1"``, the sum of absolute values of the code (:func:`l1_sparsity`); ``"kl"``, the
            divergence of each unit's mean activity over the batch from ``rho`` (:func:`kl_sparsity`);
            ``"top_k"``, no penalty, but only the ``k`` largest entries of a code are kept.
        weight: of the penalty in the loss; not used by ``"top_k"``.
        rho: the target activity for ``"kl"``.
        k: how many units ``"top_k"`` keeps.
        code: by default ``"relu"`` for ``"l1"`` (its zeros are exact), ``"sigmoid"`` for ``"kl"`` (which
            needs activities in [0, 1]) and ``"linear"`` for ``"top_k"``.
        options: those of :class:`Autoencoder`.

    Raises:
        ValueError: an unknown penalty, a negative weight, ``rho`` outside (0, 1), ``k`` missing, out of
            range or superfluous, a ``"kl"`` penalty of a code that is no sigmoid.

    Source: Ng (2011), CS294A lecture notes; Makhzani & Frey (2014).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        code_dim: int,
        penalty: str = "l1",
        weight: float = 1.0,
        rho: float = 0.05,
        k: int | None = None,
        code: str | None = None,
        **options,
    ):
        if penalty not in PENALTIES:
            raise ValueError(f"penalty is {penalty!r} but must be one of {tuple(PENALTIES)}.")
        if not weight >= 0:
            raise ValueError(f"weight is {weight} but must be at least 0.")
        if not 0 < rho < 1:
            raise ValueError(f"rho is {rho} but must lie between 0 and 1: it is the mean activity of a unit.")
        if (k is not None) != (penalty == "top_k"):
            raise ValueError(f"k is {k} with penalty={penalty!r}: 'top_k' needs it, the others have none.")
        if k is not None and not 1 <= k <= code_dim:
            raise ValueError(f"k is {k} but must be between 1 and {code_dim}, the size of the code.")
        code = PENALTIES[penalty] if code is None else code
        if penalty == "kl" and code != "sigmoid":
            raise ValueError(
                f"penalty='kl' compares activities in [0, 1] but code is {code!r}, not 'sigmoid'."
            )
        super().__init__(encoder, decoder, code_dim=code_dim, code=code, **options)
        self.penalty = penalty
        self.weight = weight
        self.rho = rho
        self.k = k

    def encode(self, x: Tensor) -> Tensor:
        """``(batch, *image_shape)`` to sparse codes, ``(batch, code_dim)``."""
        codes = super().encode(x)
        return top_k(codes, self.k) if self.penalty == "top_k" else codes

    def loss(self, x: Tensor) -> Loss:
        """Reconstruction error plus ``weight`` times the penalty; the parts hold it unweighted."""
        codes = self.encode(self.corrupt(x))
        error = self.reconstruction_error(x, codes).mean()
        if self.penalty == "top_k":
            return Loss(total=error, parts={"reconstruction": error})
        penalty = kl_sparsity(codes, self.rho) if self.penalty == "kl" else l1_sparsity(codes).mean()
        return Loss(total=error + self.weight * penalty, parts={"reconstruction": error, "penalty": penalty})


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder that rebuilds the clean input from a corrupted one.

    :meth:`loss` always corrupts its input, also in evaluation mode: the error on test images is that of
    denoising *them*. On clean test images a denoising autoencoder would be judged for a task it was not
    trained for. :meth:`reconstruct` takes its argument as it is: give it what you want to see denoised.

    Args:
        corruption: a function from ``x`` to a corrupted ``x`` of the same shape, drawn anew at each call.
        sigma: the standard deviation of the corruption if it is Gaussian noise, which :meth:`score`
            needs. Without a ``corruption``, Gaussian noise of this standard deviation is added.
        options: those of :class:`Autoencoder`.

    Raises:
        ValueError: neither ``corruption`` nor ``sigma`` is given, or ``sigma`` is not positive.

    Source: Vincent et al. (2008), section 2.3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        corruption: Callable[[Tensor], Tensor] | None = None,
        sigma: float | None = None,
        **options,
    ):
        if corruption is None and sigma is None:
            raise ValueError("A denoising autoencoder needs a corruption, or sigma for Gaussian noise.")
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma is {sigma} but must be positive: it is a standard deviation.")
        super().__init__(encoder, decoder, corruption=corruption, **options)
        self.sigma = sigma

    def corrupt(self, x: Tensor) -> Tensor:
        """What the encoder sees: a corrupted copy of ``x``."""
        return x + self.sigma * torch.randn_like(x) if self.corruption is None else super().corrupt(x)

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        r"""An estimate of the score of the noisy data's density, from where the autoencoder moves ``x``.

        .. math:: \nabla_x \log p_\sigma(x) = \frac{\mathbb{E}[\text{clean} \mid x] - x}{\sigma^2}
                  \approx \frac{r(x) - x}{\sigma^2}

        The equality holds at every sigma (Tweedie's formula); it is the score of the data *smoothed* with
        the noise, and that of the clean data only as sigma goes to zero.

        Args:
            x: ``(batch, *image_shape)``, noisy points.

        Returns:
            The same shape.

        Raises:
            ValueError: the model was made without ``sigma``: only Gaussian noise has this relation.

        Source: Alain & Bengio (2014), theorem 1; Vincent (2011).
        """
        if self.sigma is None:
            raise ValueError("score needs Gaussian noise: make the model with sigma, its standard deviation.")
        return (self.reconstruct(x) - x) / self.sigma**2


class ContractiveAutoencoder(Autoencoder):
    """An autoencoder whose code changes little when its input does.

    Args:
        weight: of the penalty, the mean over the batch of :func:`contractive_penalty`. It costs a backward
            pass for each code dimension.
        code: ``"sigmoid"`` by default, as in the paper: saturated units are how it contracts.
        options: those of :class:`Autoencoder`.

    Raises:
        ValueError: a negative weight, or an encoder with batch normalisation: there an example's code depends
            on other examples, and has no Jacobian of its own.

    Source: Rifai et al. (2011), equation 5.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        weight: float = 0.1,
        code: str = "sigmoid",
        **options,
    ):
        if not weight >= 0:
            raise ValueError(f"weight is {weight} but must be at least 0.")
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in encoder.modules()):
            raise ValueError(
                "encoder has batch normalisation, which makes each code depend on the whole batch, but the "
                "contractive penalty needs codes of single examples."
            )
        super().__init__(encoder, decoder, code=code, **options)
        self.weight = weight

    def loss(self, x: Tensor) -> Loss:
        """Reconstruction error plus ``weight`` times the penalty; the parts hold it unweighted."""
        inputs = self.corrupt(x)
        error = self.reconstruction_error(x, self.encode(inputs)).mean()
        penalty = contractive_penalty(self.encode, inputs).mean()
        return Loss(total=error + self.weight * penalty, parts={"reconstruction": error, "penalty": penalty})
