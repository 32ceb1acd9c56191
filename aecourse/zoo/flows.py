"""Posteriors that are no diagonal Gaussian: the inverse autoregressive flow (Kingma et al. 2016)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss
from aecourse.contracts import check_batch, check_count, check_shapes
from aecourse.likelihoods import gaussian_log_density, pop_likelihood, reparameterize
from aecourse.nets import build, split_options
from aecourse.vae import VAE

# -------------------------------------------------------------------------------- the flow


class MaskedLinear(nn.Linear):
    """A linear layer of which only the weights where ``mask``, ``(outputs, inputs)``, is true count."""

    def __init__(self, mask: Tensor):
        super().__init__(*mask.shape[::-1])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight * self.mask, self.bias)


class AutoregressiveNetwork(nn.Module):
    """A network whose outputs i see the inputs before i only, all of them in one pass.

    Every unit has a number and sees inputs up to it; a layer may look at units with at most its own. A
    context, where there is one, is seen by all.

    Args:
        dim: the number of inputs.
        hidden: sizes of the hidden layers, each at least ``dim``; with none the network is linear.
        context: the size of the context, 0 for none.

    Raises:
        TypeError, ValueError: something is no count, or a hidden layer is too narrow for its units to have
            all numbers.

    Source: Germain et al. (2015), section 4, with the numbers dealt out in turn; ELU as Kingma et al. (2016).
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64,), context: int = 0):
        super().__init__()
        check_count("dim", dim)
        check_count("context", context, least=0)
        for size in hidden:
            check_count("hidden", size)
            if size < dim:
                raise ValueError(f"hidden is {tuple(hidden)} but needs at least {dim} units in each layer.")
        numbers = [torch.arange(1, dim + 1), *(torch.arange(size) % dim for size in hidden)]
        masks = [after[:, None] >= before for before, after in pairwise(numbers)]
        masks.append((numbers[0][:, None] > numbers[-1]).repeat(2, 1))
        self.layers = nn.ModuleList(MaskedLinear(mask) for mask in masks)
        self.from_context = nn.Linear(context, len(masks[0]), bias=False) if context else None

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(..., dim)`` to ``m`` and ``s``, both of this shape."""
        h = self.layers[0](z)
        if self.from_context is not None:
            h = h + self.from_context(context)
        for layer in self.layers[1:]:
            h = layer(F.elu(h))
        m, s = h.to(z.dtype).chunk(2, dim=-1)  # it may have computed in half precision
        return m, s


class InverseAutoregressiveFlow(nn.Module):
    r"""Steps that each mix a variable with what an autoregressive network says of those before it.

    .. math:: z_t = \sigma_t z_{t-1} + (1 - \sigma_t)\, m_t, \qquad \sigma_t = \mathrm{sigmoid}(s_t), \qquad
              (m_t, s_t) = \mathrm{net}_t(z_{t-1}, h)

    The Jacobian of a step is triangular and has sigma on its diagonal, so the logarithm of its determinant is
    the sum of log sigma. Drawing takes one pass. So does the density of a draw; that of any other z takes
    ``inverse``, one pass for each of its numbers.

    Between steps the order is turned round, so that the first variables see the others as well. At first
    sigma is about 0.8: a step that changes little.

    Args:
        latent_dim: the number of latent variables.
        steps: how many.
        hidden: sizes of the hidden layers of each network, at least ``latent_dim``; with none it is linear.
        context: the size of h, 0 for none.

    Raises:
        TypeError, ValueError: something is no count, or a hidden layer is narrower than z.

    Source: Kingma et al. (2016), algorithm 1 and equations 13 and 14.
    """

    def __init__(self, latent_dim: int, *, steps: int = 2, hidden: Sequence[int] = (64,), context: int = 0):
        super().__init__()
        check_count("latent_dim", latent_dim)
        check_count("steps", steps)
        self.latent_dim, self.context = latent_dim, context
        self.nets = nn.ModuleList(AutoregressiveNetwork(latent_dim, hidden, context) for _ in range(steps))
        for net in self.nets:
            nn.init.constant_(net.layers[-1].bias[latent_dim:], 1.5)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Send draws through all steps.

        Args:
            z: ``(batch, latent_dim)`` or ``(samples, batch, latent_dim)``.
            context: ``(batch, context)``.

        Returns:
            z after the last step, and the logarithm of the determinant of its Jacobian, ``(batch,)`` or
            ``(samples, batch)``. The density of the result is that of the argument divided by it.

        Raises:
            TypeError, ValueError: other shapes.
        """
        self._check(z, context)
        log_det = 0.0
        for t, net in enumerate(self.nets):
            z = z if t == 0 else z.flip(-1)
            m, s = net(z, context)
            sigma = torch.sigmoid(s)
            z = sigma * z + (1 - sigma) * m
            log_det = log_det + F.logsigmoid(s).sum(dim=-1)
        return z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` makes into ``z``, and the same logarithm as there; shapes as there."""
        self._check(z, context)
        places, log_det = torch.arange(self.latent_dim, device=z.device), 0.0
        for t, net in reversed([*enumerate(self.nets)]):
            before = torch.zeros_like(z)
            for i in range(self.latent_dim):  # each from those that are known by then
                m, s = net(before, context)
                sigma = torch.sigmoid(s)
                before = torch.where(places <= i, (z - (1 - sigma) * m) / sigma, 0.0)
            _, s = net(before, context)
            log_det = log_det + F.logsigmoid(s).sum(dim=-1)
            z = before if t == 0 else before.flip(-1)
        return z, log_det

    def _check(self, z: Tensor, context: Tensor | None) -> None:
        check_batch("z", z if z.dim() < 3 else z.flatten(0, -2), (self.latent_dim,))
        if self.context:
            check_shapes(("context", context, "batch h"))
            check_batch("context", context, (self.context,))
            if len(context) != z.shape[-2]:
                raise ValueError(f"context is of {len(context)} examples but z of {z.shape[-2]}.")


# --------------------------------------------------------------------------------- the model


class FlowVAE(VAE):
    r"""A VAE whose posterior is a Gaussian sent through a flow.

    .. math:: z_0 \sim N(\mu(x), \mathrm{diag}\, \sigma^2(x)), \quad z = \mathrm{flow}(z_0, h(x)), \quad
              \log q(z|x) = \log q(z_0|x) - \sum_t \sum_j \log \sigma_{t,j}

    It can be correlated, skewed and bent where a :class:`aecourse.vae.VAE`'s is a diagonal Gaussian, so that
    less is lost to the approximation. Its KL has no closed form: it is estimated from the draws, as the
    logarithm of the posterior's density less that of the prior's. Decoder, prior and likelihood are a VAE's.

    There is no ``encode``: ``posterior`` draws codes with their density, ``codes`` gives one of each example.

    Args:
        encoder: maps ``(batch, *image_shape)`` to ``(batch, 2 * latent_dim + flow.context)``: mean and logvar
            of z_0, and h, the context.
        decoder: as for :class:`aecourse.vae.VAE`.
        flow: an :class:`InverseAutoregressiveFlow` of ``latent_dim`` variables.
        image_shape, latent_dim, likelihood, variance, levels, beta, samples, prior_temperature: as for
            :class:`aecourse.vae.VAE`.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`, a flow of another size, or ``free_bits``,
            which needs a KL for each latent variable.

    Source: Kingma et al. (2016), section 4 and algorithm 1.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, flow: InverseAutoregressiveFlow, **options):
        if options.get("free_bits"):
            raise ValueError("free_bits needs the KL of each latent variable, which a flow has not.")
        super().__init__(encoder, decoder, **options)
        if flow.latent_dim != self.latent_dim:
            raise ValueError(f"flow has {flow.latent_dim} variables but latent_dim is {self.latent_dim}.")
        self.flow = flow

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        steps: int = 2,
        flow_hidden: Sequence[int] = (64,),
        context: int = 16,
        **options,
    ) -> "FlowVAE":
        """Over networks of :func:`aecourse.nets.build`; options are theirs, those of the class, and the
        ``steps``, ``hidden`` layers and ``context`` of the flow."""
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        flow = InverseAutoregressiveFlow(latent_dim, steps=steps, hidden=flow_hidden, context=context)
        encoder, _ = build(kind, image_shape, 2 * latent_dim + context, gaussian=False, **networks)
        _, decoder = build(kind, image_shape, latent_dim, outputs=likelihood.outputs, **networks)
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, decoder, flow, likelihood=likelihood, **shapes, **options)

    def base(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(batch, *image_shape)`` to the mean and the logvar of z_0, each ``(batch, latent_dim)``, and the
        context h, ``(batch, context)``."""
        check_batch("x", x, self.image_shape)
        encoded = self.encoder(x).to(x.dtype)
        check_batch("the encoder's output", encoded, (2 * self.latent_dim + self.flow.context,))
        return encoded.split([self.latent_dim, self.latent_dim, self.flow.context], dim=1)

    def posterior(self, x: Tensor, samples: int | None = None) -> tuple[Tensor, Tensor]:
        """Draws z ~ q(z|x) and log q(z|x), nats: ``(samples, batch, latent_dim)`` and ``(samples, batch)``,
        or without ``samples`` one draw each, ``(batch, latent_dim)`` and ``(batch,)``."""
        mean, logvar, context = self.base(x)
        z0 = reparameterize(mean, logvar, samples)
        z, log_det = self.flow(z0, context)
        return z, gaussian_log_density(z0, mean, logvar) - log_det

    def codes(self, x: Tensor) -> Tensor:
        """Where the flow takes the mean of z_0, one code for each example: ``(batch, latent_dim)``."""
        mean, _, context = self.base(x)
        return self.flow(mean, context)[0]

    def encode(self, x: Tensor):
        """Refused: such a posterior has more to it than a mean and a logvar."""
        raise NotImplementedError(
            "q(z|x) of a FlowVAE has no mean and logvar that say it all: posterior(x) draws from it and "
            "gives its density, codes(x) gives one code for each example."
        )

    # --------------------------------------------------------------------------- the objective

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """Negative ELBO of a batch, from draws; see :class:`aecourse.bounds.Loss`.

        ``beta`` stands in for the model's own, as annealing needs it. The part ``kl`` is an estimate, and may
        be negative.
        """
        beta = self.beta if beta is None else beta
        z, log_q = self.posterior(x, self.samples)
        log_likelihood = self.log_likelihood(x, z).mean()  # over draws and examples
        kl = (log_q - self.log_prior(z)).mean()
        return Loss(total=beta * kl - log_likelihood, parts={"reconstruction": -log_likelihood, "kl": kl})

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) for draws z, ``(samples, batch)``; see
        :meth:`aecourse.vae.VAE.log_weights`."""
        check_count("samples", samples)
        z, log_q = self.posterior(x, samples)
        return self.log_joint(x, z) - log_q

    @torch.no_grad()
    def elbo(self, x: Tensor, samples: int = 1) -> Tensor:
        """The evidence lower bound (beta = 1) of each example, averaged over draws of z: ``(batch,)``."""
        return self.log_weights(x, samples).mean(dim=0)

    # ------------------------------------------------------------------------ looking at a model

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the codes of images, ``(batch, *image_shape)``."""
        return self.decode(self.codes(x))

    @torch.no_grad()
    def interpolate(self, x0: Tensor, x1: Tensor, steps: int) -> Tensor:
        """Decode the straight line between the codes of two images; see
        :meth:`aecourse.vae.VAE.interpolate`."""
        check_shapes(("x0", x0, "batch ..."), ("x1", x1, "batch ..."))
        check_count("steps", steps, least=2)
        start, end = self.codes(x0), self.codes(x1)
        return torch.stack([self.decode(torch.lerp(start, end, i / (steps - 1))) for i in range(steps)])
