"""Callables that tests hand to a student's function: an encoder, a decoder, an integrand, a joint density.

Each is a name and a few tensors, nothing else, so that a grader can send it to another process as data.
`line` makes inputs of visible checks.
"""

import math

import torch
from torch import Tensor


class Part:
    """A function of fixed tensors. ``to(dtype)`` returns a converted copy, as for tensors.

    It has a mode, as a module has; none of them computes anything else in evaluation mode.
    """

    training = True

    def __init__(self, *tensors: Tensor):
        self.tensors = tensors

    def train(self, mode: bool = True) -> "Part":
        self.training = mode
        return self

    def eval(self) -> "Part":
        return self.train(False)

    def of(self, *tensors: Tensor) -> "Part":
        """The same function of other tensors, in the same mode."""
        return type(self)(*tensors).train(self.training)

    def to(self, dtype: torch.dtype) -> "Part":
        return self.of(*(tensor.detach().clone().to(dtype) for tensor in self.tensors))


class Affine(Part):
    """x (..., in) to W x + b (..., out), from W (out, in) and b (out,)."""

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.tensors
        return x @ weight.mT + bias


class Mixed(Affine):
    """x (..., in) to t + t * (t of the next unit) / 2 (..., out), with t = tanh(W x + b)."""

    def __call__(self, x: Tensor) -> Tensor:
        t = super().__call__(x).tanh()
        return t + 0.5 * t * t.roll(1, -1)


class Logistic(Affine):
    """x (..., in) to sigmoid(W x + b) (..., out)."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).sigmoid()


class Tanh(Affine):
    """x (..., in) to tanh(W x + b) (..., out)."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).tanh()


class Quadratic(Part):
    """z (..., k) to z'Mz + v'z + c (...), from M (k, k), v (k,) and c ()."""

    def __call__(self, z: Tensor) -> Tensor:
        matrix, vector, constant = self.tensors
        return ((z @ matrix) * z).sum(-1) + z @ vector + constant


class Sine(Part):
    """z (..., k) to sin(v'z + c) (...), from v (k,) and c ()."""

    def __call__(self, z: Tensor) -> Tensor:
        vector, phase = self.tensors
        return torch.sin(z @ vector + phase)


class GaussianEncoder(Part):
    """x (..., D) to mean and logvar (..., k) of q(z|x), each affine: from W, b, W', b'."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, logvar_weight, logvar_bias = self.tensors
        return x @ weight.mT + bias, x @ logvar_weight.mT + logvar_bias


class LinearJoint(Part):
    """log p(x, z) (...) in nats of probabilistic PCA: x (..., D), z (..., k); from W (D, k), b (D,), s2."""

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        weight, offset, variance = self.tensors
        error = (x - z @ weight.mT - offset).square().sum(-1) / variance
        constants = x.shape[-1] * torch.log(2 * math.pi * variance) + z.shape[-1] * math.log(2 * math.pi)
        return -0.5 * (error + z.square().sum(-1) + constants)


class CountJoint(Part):
    """log p(x, z) (...) in nats of counts x (..., k) with the log rates z (..., k): x_j is Poisson(exp z_j),
    and the prior of exp z_j is a gamma distribution; from its shapes a (k,) and rates r (k,)."""

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        a, r = self.tensors
        constants = a * r.log() - torch.lgamma(a) - torch.lgamma(x + 1)
        return ((x + a) * z - (1 + r) * z.exp() + constants).sum(-1)


class Step(Part):
    """z (..., k) to 1 where v'z + c > 0 and 0 elsewhere (...), from v (k,) and c (): no slope to follow."""

    def __call__(self, z: Tensor) -> Tensor:
        vector, offset = self.tensors
        return (z @ vector + offset > 0).to(z.dtype)


class Beyond(Part):
    """x to 1 where it is larger than c or smaller than -c, and 0 elsewhere, of the same shape; from c ()."""

    def __call__(self, x: Tensor) -> Tensor:
        (bound,) = self.tensors
        return (x.abs() > bound).to(x.dtype)


class First(Part):
    """z (..., k) to its first coordinate (...): a view, so whoever changes the values in place changes z."""

    def __call__(self, z: Tensor) -> Tensor:
        return z[..., 0]


class AffineVAE(Part):
    """A VAE whose encoder and decoder are affine, with the methods of a student's VAE.

    From W, b, W', b' of the encoder's mean and logvar, and V (D, k), c (D,) of the decoder's logits.
    """

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return GaussianEncoder(*self.tensors[:4])(x)

    def decoder(self, z: Tensor) -> Tensor:
        return Affine(*self.tensors[4:])(z)

    def sample_latent(self, mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + torch.exp(0.5 * logvar) * noise

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample_latent(mean, logvar, generator)), mean, logvar

    __call__ = forward


def line(start: float, stop: float, *size: int) -> Tensor:
    """Evenly spaced numbers from start to stop as a float32 tensor of this size: inputs of visible checks."""
    return torch.linspace(start, stop, math.prod(size)).reshape(size)
