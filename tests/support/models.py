"""One small model of every kind, for tests of what all models have in common.

To add a model is one line in ``MODELS``.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aecourse import data, evaluate
from aecourse.autoencoders import (
    Autoencoder,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    SparseAutoencoder,
)
from aecourse.evaluate import feature_network
from aecourse.iwae import IWAE
from aecourse.linear import LinearAutoencoder, LinearDenoisingAutoencoder, LinearVAE
from aecourse.vae import VAE
from aecourse.zoo.adversarial import GAN, VAEGAN, AdversarialAutoencoder
from aecourse.zoo.conditional import ConditionalVAE, StructuredOutputVAE
from aecourse.zoo.factor_vae import BetaTCVAE, FactorVAE
from aecourse.zoo.flows import FlowVAE
from aecourse.zoo.ladder_vae import LadderVAE
from aecourse.zoo.lossy_vae import LossyVAE, receptive_field
from aecourse.zoo.td_vae import TDVAE
from aecourse.zoo.two_stage_vae import TwoStageVAE
from aecourse.zoo.vqvae import VQVAE
from support.players import Adversarial, ThreePlayers

IMAGE, SERIES, POINT = (1, 8, 8), (1, 8), (6,)
SMALL = {"hidden": (5,)}
LAYERS = {"hidden": (5, 4)}
CODES = {"codes": 6, "channels": (2, 3), "fsq_levels": (2, 3), "prior_channels": 3, "prior_layers": 1}


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    labels: int = 0  # how many classes, for a conditional model
    looks: Callable[..., Iterable[Tensor]] | None = None  # of (model, x, **labels): what one does besides


def discrete(model: VQVAE, x: Tensor) -> Iterable[Tensor]:
    """What one does with a model of discrete codes; on the fake GPU no prior ever says that it was fitted."""
    model.train()
    model.loss(x)
    model.after_step()
    model.fit_histogram(x)
    yield from (*model.parameters(), *model.buffers())
    yield from (model.indices(x), model.bound(x), model.reconstruct(x), model.sample(3, "uniform"))
    for prior in model.priors.values():
        yield model.decode(prior.sample(3))
        yield prior.log_prob(prior.sample(3))


def of_layers(model: LadderVAE, x: Tensor) -> Iterable[Tensor]:
    """A hierarchy has no one code: its layers."""
    for layer in model.encode(x):
        yield from (*layer, layer.kl(), layer.log_ratio())
    yield model.log_weights(x, 3)
    yield model.reconstruct(x)
    yield model.sample(3)
    yield evaluate.importance_sampling(model, x, 2).value
    yield model.loss(x, beta=x.new_ones(())).total


def looks_at_sequences(model: TDVAE, x: Tensor) -> Iterable[Tensor]:
    yield from (model.reconstruct(x), model.rollout(x, 2), model.sample(3), model.log_weights(x, 3))
    yield model.step_weights(x, 2)


def looks_of_a_flow(model: FlowVAE, x: Tensor) -> Iterable[Tensor]:
    yield from (*model.posterior(x, 3), model.codes(x), model.reconstruct(x), model.elbo(x, samples=2))
    yield from (model.log_weights(x, 3), model.sample(3), model.interpolate(x, x.flip(0), 4))
    yield from model.flow.inverse(*model.base(x)[::2])


def looks_of_a_window(model: LossyVAE, x: Tensor) -> Iterable[Tensor]:
    mean, _ = model.encode(x)
    yield from (model.sample(2), model.reconstruct(x), model.next_pixel_means(x, mean))
    yield from (model.elbo(x, samples=2), model.log_weights(x, 3), model.log_joint(x, mean))
    yield receptive_field(model.decoder, model.image_shape[1:])


MODELS = {
    "mlp": Case(lambda: Autoencoder.mlp(IMAGE, 2, batch_norm=True, dropout=0.1, **SMALL)),
    "conv": Case(lambda: Autoencoder.conv(IMAGE, 2, channels=(2, 3), batch_norm=True)),
    "conv1d": Case(lambda: Autoencoder.conv1d(SERIES, 2, channels=(2,), output="linear"), SERIES),
    "residual": Case(lambda: Autoencoder.residual(IMAGE, 2, channels=(2, 3), error="cross_entropy")),
    "sparse l1": Case(lambda: SparseAutoencoder.mlp(IMAGE, 3, **SMALL)),
    "sparse kl": Case(lambda: SparseAutoencoder.mlp(IMAGE, 3, penalty="kl", **SMALL)),
    "sparse top_k": Case(lambda: SparseAutoencoder.mlp(IMAGE, 3, penalty="top_k", k=2, **SMALL)),
    "denoising sigma": Case(lambda: DenoisingAutoencoder.mlp(IMAGE, 3, sigma=0.5, **SMALL)),
    "denoising mask": Case(
        lambda: DenoisingAutoencoder.mlp(IMAGE, 3, corruption=lambda x: data.mask(x, 0.3), **SMALL)
    ),
    "contractive": Case(lambda: ContractiveAutoencoder.mlp(IMAGE, 3, **SMALL)),
    "linear": Case(lambda: LinearAutoencoder(6, 2, offset=torch.ones(6)), POINT),
    "linear denoising": Case(lambda: LinearDenoisingAutoencoder(6, 2, noise=0.5), POINT),
    "linear VAE": Case(lambda: LinearVAE(6, 2, learn_variance=True), POINT),
    "VAE bernoulli": Case(lambda: VAE.mlp(IMAGE, 2, **SMALL)),
    "VAE continuous bernoulli": Case(lambda: VAE.mlp(IMAGE, 2, likelihood="continuous_bernoulli", **SMALL)),
    "VAE categorical": Case(lambda: VAE.mlp(IMAGE, 2, likelihood="categorical", levels=4, **SMALL)),
    "VAE gaussian": Case(lambda: VAE.conv(IMAGE, 2, channels=(2,), likelihood="gaussian")),
    "VAE learned": Case(lambda: VAE.mlp(IMAGE, 2, likelihood="gaussian", variance="learned", **SMALL)),
    "VAE per pixel": Case(lambda: VAE.mlp(IMAGE, 2, likelihood="gaussian", variance="per_pixel", **SMALL)),
    "VAE optimal": Case(lambda: VAE.mlp(IMAGE, 2, likelihood="gaussian", variance="optimal", **SMALL)),
    "VAE free bits": Case(lambda: VAE.mlp(IMAGE, 2, free_bits=0.1, samples=3, beta=2.0, **SMALL)),
    "IWAE": Case(lambda: IWAE.mlp(IMAGE, 2, samples=3, prior_temperature=2.0, **SMALL)),
    "IWAE stl": Case(lambda: IWAE.mlp(IMAGE, 2, bound="elbo", gradient="stl", **SMALL)),
    "IWAE dreg": Case(lambda: IWAE.mlp(IMAGE, 2, gradient="dreg", samples=3, **SMALL)),
    "conditional VAE": Case(lambda: ConditionalVAE.build("mlp", IMAGE, 2, classes=3, **SMALL), labels=3),
    "structured output": Case(
        lambda: StructuredOutputVAE.build("mlp", IMAGE, 2, given=2, alpha=0.5, samples=2, **SMALL),
        looks=lambda model, x: (model.complete(x, 3), model.log_weights(x, 3), *model.prior(x)),
    ),
    "two stages": Case(
        lambda: TwoStageVAE.build("mlp", IMAGE, 2, second_hidden=(4,), **SMALL),
        looks=lambda model, x: (model.codes(x), model.log_weights(x, 3), model.draw_codes(3)),
    ),
    "features": Case(
        lambda: feature_network(IMAGE, 3, features=4, **SMALL),
        labels=3,
        looks=lambda model, x, labels: (model(x), model.features(x)),
    ),
    "VQVAE ema": Case(lambda: VQVAE.build("conv", IMAGE, 2, **CODES), looks=discrete),
    "VQVAE gradient": Case(
        lambda: VQVAE.build("conv", IMAGE, 2, quantizer="gradient", **CODES), looks=discrete
    ),
    "VQVAE fsq": Case(lambda: VQVAE.build("conv", IMAGE, 2, quantizer="fsq", **CODES), looks=discrete),
    "prior over codes": Case(lambda: VQVAE.build("conv", IMAGE, 2, **CODES).stages()[1]),
    "factor VAE": Case(lambda: FactorVAE.mlp(IMAGE, 2, critic_hidden=(4,), samples=2, **SMALL)),
    "beta-TC VAE": Case(lambda: BetaTCVAE.mlp(IMAGE, 2, data_size=10, samples=2, **SMALL)),
    "beta-TC VAE weighted": Case(lambda: BetaTCVAE.mlp(IMAGE, 2, data_size=10, sampling="weighted", **SMALL)),
    "ladder": Case(lambda: LadderVAE.build("mlp", IMAGE, (3, 2), **LAYERS), looks=of_layers),
    "ladder bottom up": Case(
        lambda: LadderVAE.build("conv", IMAGE, 3, channels=(2,), inference="bottom_up", **LAYERS),
        looks=of_layers,
    ),
    "adversarial": Case(
        lambda: AdversarialAutoencoder.build("mlp", IMAGE, 2, critic_hidden=(4,), **SMALL),
        looks=lambda model, x: (model.draw_codes(x), model.sample(3), model.reconstruct(x)),
    ),
    "adversarial gaussian": Case(
        lambda: AdversarialAutoencoder.build("mlp", IMAGE, 2, posterior="gaussian", **SMALL),
        looks=lambda model, x: (model.draw_codes(x), model.log_weights(x, 3), model.reconstruct(x)),
    ),
    "adversarial noise": Case(
        lambda: AdversarialAutoencoder.build("mlp", IMAGE, 2, posterior="noise", **SMALL)
    ),
    "GAN": Case(
        lambda: GAN.build("conv", IMAGE, 2, channels=(2,), batch_norm=True),
        looks=lambda model, x: (model.judge(x), model.sample(3)),
    ),
    "VAEGAN": Case(
        lambda: VAEGAN.build("mlp", IMAGE, 2, features=4, **SMALL),
        looks=lambda model, x: (*model.encode(x), model.judge(x), model.reconstruct(x), model.sample(3)),
    ),
    "TD-VAE": Case(lambda: TDVAE.build("mlp", IMAGE, 2, memory=4, **SMALL), looks=looks_at_sequences),
    "TD-VAE jumps": Case(
        lambda: TDVAE.build(
            "mlp", SERIES, 2, memory=4, likelihood="gaussian", steps=(1, 3), covariance="full", **SMALL
        ),
        SERIES,
        looks=looks_at_sequences,
    ),
    "lossy VAE": Case(
        lambda: LossyVAE.build("mlp", (1, 3, 4), 2, masked_layers=2, features=3, progress=False, **SMALL),
        (1, 3, 4),
        looks=looks_of_a_window,
    ),
    "lossy categorical": Case(
        lambda: LossyVAE.build(
            "mlp", (1, 2, 3), 2, likelihood="categorical", levels=3, progress=False, **SMALL
        ),
        (1, 2, 3),
        looks=looks_of_a_window,
    ),
    "flow posterior": Case(
        lambda: FlowVAE.build("mlp", IMAGE, 2, flow_hidden=(4,), context=3, samples=2, **SMALL),
        looks=looks_of_a_flow,
    ),
    "two players": Case(Adversarial, POINT),
    "three players": Case(ThreePlayers, POINT),
}
