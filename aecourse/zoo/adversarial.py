"""Three models with a critic: the GAN, the VAE-GAN and the adversarial autoencoder.

A critic is a classifier that tells real from fake; its logit is high where it takes something for real. The
best one has the logit log p - log q, for p the density of what is real and q that of the fakes. So whoever
is trained against a critic is trained against a density ratio that nobody has to write down.

Who learns from what. Each row of parameters is moved by the gradient of these terms alone, times what stands
there, and all rows by the same step of ``fit``: the simultaneous update, as if by separate optimisers::

    AdversarialAutoencoder   encoder    reconstruction + weight * generator
                             decoder    reconstruction
                             critic     critic + r1/2 * gradient_penalty
    GAN                      decoder    generator
                             critic     critic + r1/2 * gradient_penalty
    VAEGAN                   encoder    kl + features
                             decoder    gamma * features + generator
                             critic     critic + r1/2 * gradient_penalty

Watch the part ``critic``: it is 2 log 2 = 1.386 where the critic can only guess, and 0 where nothing fools
it.
"""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aecourse.bounds import Loss
from aecourse.contracts import (
    check_batch,
    check_count,
    check_images,
    check_shapes,
)
from aecourse.distributed import standard_normal
from aecourse.likelihoods import (
    Gaussian,
    Likelihood,
    as_likelihood,
    gaussian_kl,
    gaussian_log_density,
    pop_likelihood,
    reparameterize,
)
from aecourse.nets import build, mlp, split_options

GENERATOR_LOSSES = {
    "logit": torch.neg,
    "saturating": lambda logits: -F.softplus(logits),
    "non_saturating": lambda logits: F.softplus(-logits),
}
"""What a fake costs whoever made it, from the critic's logit."""

OUTPUTS = {"sigmoid": torch.sigmoid, "linear": lambda values: values}
POSTERIORS = ("deterministic", "gaussian", "noise")


# ---------------------------------------------------------------------------- the mathematics


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    r"""The cross-entropy of a critic: what it pays for telling real from fake, both equally likely.

    .. math:: \mathbb{E}_p[-\log D] + \mathbb{E}_q[-\log(1 - D)], \qquad D = \mathrm{sigmoid}(\text{logit})

    It is least at D = p / (p + q), where it is 2 log 2 - 2 JSD(p, q), the Jensen-Shannon divergence.

    Args:
        real: ``(n,)``, logits of what is real.
        fake: ``(m,)``, logits of fakes; their mean has the weight of the real ones' mean, however many.

    Returns:
        A scalar, in nats.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Goodfellow et al. (2014), equation 1, with the sign of a loss.
    """
    check_shapes(("real", real, "n"), ("fake", fake, "m"))
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(logits: Tensor, kind: str = "non_saturating") -> Tensor:
    r"""What fakes cost whoever made them: three ways to fool the same critic.

    With D the critic's probability and the best critic held fixed, their gradients are those of

    ==================  ==================================  =====================================
    ``kind``            loss                                gradient of
    ==================  ==================================  =====================================
    ``logit``           :math:`\log(1 - D) - \log D`        KL(q || p)
    ``saturating``      :math:`\log(1 - D)`                 2 JSD(p, q)
    ``non_saturating``  :math:`-\log D`                     KL(q || p) - 2 JSD(p, q)
    ==================  ==================================  =====================================

    The second one is minus the critic's loss, and fades where the critic is sure, which is where it is
    needed. The third one is what nearly everybody trains with.

    Args:
        logits: ``(batch,)``, the critic's logits of fakes.
        kind: one of :data:`GENERATOR_LOSSES`.

    Returns:
        A scalar, in nats.

    Raises:
        TypeError, ValueError: an unknown kind, or from :func:`aecourse.contracts.check_shapes`.

    Source: Goodfellow et al. (2014), section 3; Arjovsky & Bottou (2017), theorem 2.5: the third gradient.
    """
    check_shapes(("logits", logits, "batch"))
    _check_kind("kind", kind, GENERATOR_LOSSES)
    return GENERATOR_LOSSES[kind](logits).mean()


def gradient_penalty(critic: nn.Module, real: Tensor) -> Tensor:
    r"""How steep a critic is where things are real, :math:`\mathbb{E}_p \lVert \nabla_x f(x) \rVert^2`: R1.

    Without it two players circle around the equilibrium and drift outwards: the critic has no reason to come
    to rest. Half of this times a weight r1 is one. In the smallest GAN, where both players have a single
    number, steps of size h spiral inwards where r1 > h / 4.

    Args:
        critic: maps ``(batch, ...)`` to logits, each example for itself (no batch norm).
        real: ``(batch, ...)``.

    Returns:
        A scalar. It can be minimised: its gradient for the critic's weights differentiates twice.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Mescheder, Geiger & Nowozin (2018), equation 9.
    """
    check_shapes(("real", real, "batch ..."))
    # The sum's gradient for an example is that of its own logit; torch.func takes it under no_grad as well.
    slope = torch.func.grad(lambda x: critic(x).to(x.dtype).sum())(real)
    return slope.flatten(1).square().sum(dim=1).mean()


# ----------------------------------------------------------------------------------- the models


class _Adversarial(nn.Module):
    """What the three models have in common: the critic, its loss, and the prior N(0, I) of the codes."""

    with_betas = ("critic",)  # the players to whom `betas` are given

    def __init__(
        self,
        critic: nn.Module,
        *,
        image_shape: Sequence[int],
        latent_dim: int,
        generator_loss: str = "non_saturating",
        r1: float = 1.0,
        critic_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.5, 0.99),
    ):
        super().__init__()
        check_count("latent_dim", latent_dim)
        _check_kind("generator_loss", generator_loss, GENERATOR_LOSSES)
        if not 0 <= r1 < math.inf:
            raise ValueError(f"r1 is {r1} but must be at least 0 and finite.")
        if not 0 < critic_lr_scale < math.inf:
            raise ValueError(f"critic_lr_scale is {critic_lr_scale} but must be positive and finite.")
        if not (isinstance(betas, Sequence) and len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"betas is {betas!r} but must be two numbers of at least 0 and less than 1.")
        self.critic = critic
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.generator_loss = generator_loss
        self.r1 = r1
        self.critic_lr_scale = critic_lr_scale
        self.betas = tuple(betas)

    def judge(self, x: Tensor) -> Tensor:
        """The critic's logits, ``(batch,)``: above 0 for what it takes for real."""
        return self._logits(self.critic(x), x)

    def _logits(self, output: Tensor, x: Tensor) -> Tensor:
        check_batch("the critic's output", output, (1,))
        return output.squeeze(1).to(x.dtype)  # networks may compute in half precision, losses may not

    def _game(self, real: Tensor, on_real: Tensor, on_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the critic minimises, and the unweighted parts of the game, from its logits."""
        critic = critic_loss(on_real, on_fake)
        parts = {"generator": generator_loss(on_fake, self.generator_loss), "critic": critic}
        if self.r1 > 0:
            parts["gradient_penalty"] = gradient_penalty(self.critic, real)
            critic = critic + 0.5 * self.r1 * parts["gradient_penalty"]
        return critic, parts

    def parameter_groups(self) -> list[dict]:
        """Adam's settings: little momentum, for what a player descends moves while it does."""
        scales = {"critic": self.critic_lr_scale}
        return [
            {
                "params": [*getattr(self, name).parameters()],
                "lr_scale": scales.get(name, 1.0),
                "betas": self.betas,
            }
            for name in self.with_betas
        ]

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Decode draws from the prior N(0, I), ``(count, *image_shape)``."""
        check_count("count", count)
        like = next(self.parameters())
        return self.decode(torch.randn(count, self.latent_dim, device=like.device, dtype=like.dtype))


class GAN(_Adversarial):
    r"""A generative adversarial network: a decoder learns to make what a critic takes for real.

    There is no encoder, no likelihood and no bound: samples are all there is, and a decoder that makes one
    good image for every z fools many critics.

    Args:
        decoder: the generator, ``(batch, latent_dim)`` to ``(batch, *image_shape)``.
        critic: ``(batch, *image_shape)`` to a logit, ``(batch, 1)``. Without batch norm: what it thinks of
            an image must not depend on the others.
        image_shape, latent_dim: as for :class:`aecourse.vae.VAE`.
        output: ``"sigmoid"`` for images in [0, 1], or ``"linear"`` for any numbers.
        generator_loss: see :func:`generator_loss`.
        r1: weight of the critic's regularisation, r1/2 times :func:`gradient_penalty`, at every step. On
            average it is the same as k times this weight at every k-th step, which costs less.
        critic_lr_scale: the critic's step size as a multiple of ``lr``.
        betas: of Adam, for both players.

    Raises:
        TypeError, ValueError: an unknown name or a number out of range.

    Source: Goodfellow et al. (2014), algorithm 1, with one simultaneous step of both players.
    """

    with_betas = ("critic", "decoder")

    def __init__(self, decoder: nn.Module, critic: nn.Module, *, output: str = "sigmoid", **options):
        super().__init__(critic, **options)
        _check_kind("output", output, OUTPUTS)
        self.decoder = decoder
        self.output = output

    @classmethod
    def build(cls, kind: str, image_shape: Sequence[int], latent_dim: int, **options) -> "GAN":
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class.

        ``batch_norm``, ``dropout`` and ``activation`` are for the decoder, and the sizes for both: the critic
        has leaky rectifiers and nothing that ties examples together.
        """
        networks, options = split_options(options)
        _, decoder = build(kind, image_shape, latent_dim, **networks)
        critic = _critic(kind, image_shape, 1, networks)
        return cls(decoder, critic, image_shape=image_shape, latent_dim=latent_dim, **options)

    def decode(self, z: Tensor) -> Tensor:
        """Codes ``(batch, latent_dim)`` to images, ``(batch, *image_shape)``."""
        check_batch("z", z, (self.latent_dim,))
        images = OUTPUTS[self.output](self.decoder(z).to(z.dtype))
        check_batch("the decoder's output", images, self.image_shape)
        return images

    def loss(self, x: Tensor) -> Loss:
        """What the decoder minimises; the critic's own is ``own["critic"]``. A fake for each example."""
        check_batch("x", x, self.image_shape)
        fakes = self.decode(standard_normal((len(x), self.latent_dim), like=x))
        critic, parts = self._game(x, self.judge(x), self.judge(fakes))
        return Loss(total=parts["generator"], parts=parts, own={"critic": critic})

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: wrong shape, NaN or infinity, values outside [0, 1] with sigmoid output.
        """
        support = (0.0, 1.0) if self.output == "sigmoid" else (-math.inf, math.inf)
        check_images("images", images, self.image_shape, support)


class VAEGAN(GAN):
    r"""A VAE whose decoder is a GAN's generator: images are compared by what the critic sees in them.

    With f(x) the values of the critic's hidden layer, reconstruction is a Gaussian likelihood of f(x) in
    place of x, whose mean is f of the decoded image:

    .. math:: -\log \mathcal{N}\left(f(x);\, f(\mathrm{decode}(z)),\, \sigma^2 I\right), \qquad z \sim q(z|x)

    The encoder minimises this and the KL; the decoder gamma times this and what its fakes cost, which are
    decoded codes *and* decoded draws from the prior; the critic its cross-entropy alone: trained on the
    comparison it would see nothing, and find all images equal. There is no likelihood of x.

    With ``generator_loss="saturating"`` it is algorithm 1 of the paper, whose sum of three terms weighs fakes
    twice as much; here, as in its authors' program, all fakes together weigh as much as the real images.

    Args:
        encoder: ``(batch, *image_shape)`` to ``mean`` and ``logvar``, each ``(batch, latent_dim)``.
        decoder: ``(batch, latent_dim)`` to ``(batch, *image_shape)``.
        features: the critic up to its hidden layer, ``(batch, *image_shape)`` to ``(batch, ...)``.
        verdict: the rest of it, to a logit, ``(batch, 1)``.
        gamma: weight of the comparison in the decoder's loss.
        feature_variance: sigma squared; the paper has 1, and a decoder that then ignores small features.
        options: those of :class:`GAN`.

    Raises:
        TypeError, ValueError: an unknown name or a number out of range.

    Source: Larsen et al. (2016), algorithm 1.
    """

    with_betas = ("critic", "decoder", "encoder")

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        features: nn.Module,
        verdict: nn.Module,
        *,
        gamma: float = 0.1,
        feature_variance: float = 0.05,
        **options,
    ):
        super().__init__(decoder, nn.Sequential(features, verdict), **options)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma is {gamma} but must be at least 0 and finite.")
        if not 0 < feature_variance < math.inf:
            raise ValueError(f"feature_variance is {feature_variance} but must be positive and finite.")
        self.encoder = encoder
        self.gamma = gamma
        self.feature_likelihood = Gaussian(feature_variance)

    @classmethod
    def build(
        cls, kind: str, image_shape: Sequence[int], latent_dim: int, *, features: int = 200, **options
    ) -> "VAEGAN":
        """As :meth:`GAN.build`, with so many ``features`` in one more hidden layer of the critic."""
        networks, options = split_options(options)
        encoder, decoder = build(kind, image_shape, latent_dim, **networks)
        body = nn.Sequential(_critic(kind, image_shape, features, networks), _leaky())
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, decoder, body, nn.Linear(features, 1), **shapes, **options)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, *image_shape)`` to ``mean`` and ``logvar`` of q(z|x), each ``(batch, latent_dim)``."""
        check_batch("x", x, self.image_shape)
        mean, logvar = self.encoder(x)
        check_batch("the encoder's mean", mean, (self.latent_dim,))
        return mean.to(x.dtype), logvar.to(x.dtype)

    def loss(self, x: Tensor) -> Loss:
        """What the encoder minimises; ``own`` has what ``decoder`` and ``critic`` do."""
        features, verdict = self.critic
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar)
        # Together, so that batch norm sees in training what it has to be right for afterwards.
        fakes = self.decode(torch.cat([z, standard_normal(z.shape, like=z)]))
        of_x, of_fakes = features(x), features(fakes)
        critic, game = self._game(x, self._logits(verdict(of_x), x), self._logits(verdict(of_fakes), x))
        of_x, of_decoded = of_x.to(x.dtype), of_fakes[: len(x)].to(x.dtype)
        alike = -self.feature_likelihood.log_prob(of_x, of_decoded).mean()
        kl = gaussian_kl(mean, logvar).mean()
        own = {"decoder": self.gamma * alike + game["generator"], "critic": critic}
        return Loss(total=kl + alike, parts={"kl": kl, "features": alike, **game}, own=own)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the mean of q(z|x), ``(batch, *image_shape)``."""
        return self.decode(self.encode(x)[0])


class AdversarialAutoencoder(_Adversarial):
    r"""An autoencoder whose codes a critic cannot tell from draws of the prior.

    In place of a VAE's KL it has a divergence between the aggregate posterior q(z) and N(0, I). In

    .. math:: \mathbb{E}_x\,\mathrm{KL}(q(z|x)\,\|\,p(z)) = I(x; z) + \mathrm{KL}(q(z)\,\|\,p(z))

    the information term is no longer charged. So the code may be deterministic, and then no bound on log p(x)
    is left.

    Args:
        encoder: ``(batch, *image_shape)`` to codes, ``(batch, latent_dim)``; to ``mean`` and ``logvar`` of
            them if ``posterior="gaussian"``; with one more channel if ``posterior="noise"``.
        decoder: ``(batch, latent_dim)`` to what the likelihood needs.
        critic: ``(batch, latent_dim)`` to a logit, ``(batch, 1)``; real is what comes from the prior.
        image_shape, latent_dim, likelihood, variance, levels: as for :class:`aecourse.vae.VAE`.
        posterior: q(z|x): ``"deterministic"``, ``"gaussian"``, or ``"noise"``, whose encoder gets a channel
            of noise beside the image and makes of it what it likes.
        weight: of the generator loss against the reconstruction.
        generator_loss, r1, critic_lr_scale: as for :class:`GAN`.
        betas: of the critic's Adam.

    Raises:
        TypeError, ValueError: an unknown name or a number out of range.

    Source: Makhzani et al. (2015), section 2, with one simultaneous step for its two phases.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        critic: nn.Module,
        *,
        posterior: str = "deterministic",
        likelihood: str | Likelihood = "bernoulli",
        variance: float | str | None = None,
        levels: int | None = None,
        weight: float = 1.0,
        betas: tuple[float, float] = (0.5, 0.9),
        **options,
    ):
        super().__init__(critic, betas=betas, **options)
        _check_kind("posterior", posterior, POSTERIORS)
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight is {weight} but must be at least 0 and finite.")
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = as_likelihood(likelihood, variance=variance, levels=levels)
        self.posterior = posterior
        self.weight = weight

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        critic_hidden: Sequence[int] = (128, 128),
        **options,
    ) -> "AdversarialAutoencoder":
        """Over networks of :func:`aecourse.nets.build`; options are theirs and those of the class.

        The critic of codes is a multi-layer perceptron with ``critic_hidden`` units in its layers.
        """
        networks, options = split_options(options)
        likelihood = pop_likelihood(options)
        posterior = options.get("posterior", "deterministic")
        channels, *size = image_shape
        seen = (channels + (posterior == "noise"), *size)
        encoder, _ = build(kind, seen, latent_dim, gaussian=posterior == "gaussian", **networks)
        _, decoder = build(kind, image_shape, latent_dim, outputs=likelihood.outputs, **networks)
        critic = mlp([latent_dim, *critic_hidden, 1], activation=_leaky)
        shapes = {"image_shape": image_shape, "latent_dim": latent_dim}
        return cls(encoder, decoder, critic, likelihood=likelihood, **shapes, **options)

    def encode(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """``(batch, *image_shape)`` to codes, ``(batch, latent_dim)``, or to ``mean`` and ``logvar`` of them
        if the posterior is Gaussian. With a posterior of noise each call gives other codes."""
        check_batch("x", x, self.image_shape)
        seen = x
        if self.posterior == "noise":
            seen = torch.cat([x, standard_normal(x[:, :1].shape, like=x)], dim=1)
        codes = self.encoder(seen)
        codes = codes if self.posterior == "gaussian" else (codes,)
        for code in codes:
            check_batch("the encoder's output", code, (self.latent_dim,))
        codes = tuple(code.to(x.dtype) for code in codes)
        return codes if self.posterior == "gaussian" else codes[0]

    def draw_codes(self, x: Tensor) -> Tensor:
        """One z ~ q(z|x) for each example, ``(batch, latent_dim)``: over all x, draws from q(z)."""
        codes = self.encode(x)
        return reparameterize(*codes) if self.posterior == "gaussian" else codes

    def decoder_output(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to what the likelihood needs: logits, means, several numbers a pixel."""
        check_batch("z", z, (self.latent_dim,))
        return self.decoder(z).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """``(batch, latent_dim)`` to the mean of p(x|z), ``(batch, *image_shape)``."""
        return self.likelihood.mean(self.decoder_output(z))

    def loss(self, x: Tensor) -> Loss:
        """What encoder and decoder minimise; the critic's own is ``own["critic"]``."""
        z = self.draw_codes(x)
        prior = standard_normal(z.shape, like=z)
        reconstruction = -self.likelihood.log_prob(x, self.decoder_output(z)).mean()
        critic, game = self._game(prior, self.judge(prior), self.judge(z))
        total = reconstruction + self.weight * game["generator"]
        return Loss(total=total, parts={"reconstruction": reconstruction, **game}, own={"critic": critic})

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) + log p(z), nats: ``(batch,)``."""
        log_prior = gaussian_log_density(z, torch.zeros_like(z), torch.zeros_like(z))
        return self.likelihood.log_prob(x, self.decoder_output(z)) + log_prior

    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) for draws z, ``(samples, batch)``, as :class:`aecourse.vae.VAE` has it.

        Raises:
            ValueError: the posterior is not Gaussian: it has no density.
        """
        check_count("samples", samples)
        if self.posterior != "gaussian":
            raise ValueError(
                f"posterior is {self.posterior!r} but log_weights needs 'gaussian': no other has a density "
                "q(z|x). prior_monte_carlo and ais estimate log p(x) without one."
            )
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, samples)
        copies = x.expand(samples, *x.shape).flatten(0, 1)
        log_joint = self.log_joint(copies, z.flatten(0, 1)).unflatten(0, (samples, -1))
        return log_joint - gaussian_log_density(z, mean, logvar)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the code of each image, of a Gaussian posterior its mean, ``(batch, *image_shape)``."""
        codes = self.encode(x)
        return self.decode(codes[0] if self.posterior == "gaussian" else codes)

    def validate(self, images: Tensor) -> None:
        """Refuse images this model cannot be trained on; ``fit`` asks once, before the first step.

        Raises:
            TypeError, ValueError: as :meth:`aecourse.vae.VAE.validate`.
        """
        check_images("images", images, self.image_shape, self.likelihood.support)


def _leaky() -> nn.Module:
    """What critics have between their layers: a rectifier that is flat nowhere."""
    return nn.LeakyReLU(0.2)


def _critic(kind: str, image_shape: Sequence[int], outputs: int, networks: dict) -> nn.Module:
    """An encoder of images that gives ``outputs`` numbers, with the sizes of the networks' options alone."""
    sizes = {name: networks[name] for name in ("hidden", "channels", "blocks") if name in networks}
    critic, _ = build(kind, image_shape, outputs, gaussian=False, activation=_leaky, **sizes)
    return critic


def _check_kind(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r} but must be one of {tuple(known)}.")
