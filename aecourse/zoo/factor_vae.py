r"""Variational autoencoders whose latent variables are made independent: FactorVAE and beta-TCVAE.

The KL of the ELBO, averaged over the data, is a sum of three. With q(z) for the mean of q(z|x) over the data:

.. math:: \mathbb{E}_x\,\mathrm{KL}\left(q(z|x)\,\|\,p(z)\right) = I(x; z)
          + \mathrm{KL}\Big(q(z)\,\Big\|\,\prod_j q(z_j)\Big)
          + \sum_j \mathrm{KL}\left(q(z_j)\,\|\,p(z_j)\right)

Both models weigh the second more, the total correlation. q(z) has no usable density. FactorVAE trains a
critic to estimate the ratio (Kim & Mnih 2018); beta-TCVAE estimates q(z) from the other examples of the
batch (Chen et al. 2018).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from aecourse.bounds import Loss, free_bits
from aecourse.contracts import check_batch, check_count, check_shapes
from aecourse.distributed import standard_normal, whole_batch
from aecourse.likelihoods import gaussian_log_density, reparameterize
from aecourse.nets import mlp
from aecourse.vae import VAE

SAMPLINGS = ("stratified", "weighted")

# ------------------------------------------------------------------------------------ FactorVAE


def permute_dims(z: Tensor) -> Tensor:
    r"""Shuffle every latent variable over the batch, each on its own: draws from :math:`\prod_j q(z_j)`.

    By chance a row can stay as it was: of two latent variables each pair stays with probability 1 / batch.
    Small batches therefore make q(z) and the product look more alike than they are.

    Where several processes train one model, the permutations are those of the whole batch, as one process
    would draw them, and this is the process's part of the result. (In a compiled loss each process permutes
    its own part.)

    Args:
        z: ``(batch, k)``, draws from q(z), one for each example; not their means.

    Returns:
        ``(batch, k)``. No gradient goes back: these are draws for the critic, and constant to it.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kim & Mnih (2018), algorithm 1.
    """
    check_shapes(("z", z, "batch k"))
    whole, own = whole_batch(z.detach())
    order = standard_normal(whole.shape, like=whole, batch_dim=None).argsort(dim=0)
    return whole.gather(0, order.index_select(0, own))


def critic_loss(joint: Tensor, permuted: Tensor) -> Tensor:
    r"""Cross-entropy of a critic that tells codes from permuted codes, which are as frequent.

    .. math:: \tfrac12\,\mathbb{E}_{q(z)}\left[\log(1 + e^{-l(z)})\right]
              + \tfrac12\,\mathbb{E}_{\prod_j q(z_j)}\left[\log(1 + e^{l(z)})\right]

    It is smallest for the critic :math:`l(z) = \log q(z) - \sum_j \log q(z_j)`. That smallest value is log 2
    if and only if the latent variables are independent: no critic is then better than one that always says 0.

    Args:
        joint: ``(batch,)``, l of draws from q(z).
        permuted: ``(batch,)``, l of draws from :func:`permute_dims`.

    Returns:
        ``()``, nats.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kim & Mnih (2018), algorithm 2, whose critic has two outputs; l is their difference.
    """
    check_shapes(("joint", joint, "batch"), ("permuted", permuted, "permuted"))
    return 0.5 * (F.softplus(-joint).mean() + F.softplus(permuted).mean())


def total_correlation(logits: Tensor) -> Tensor:
    r"""Estimate of the total correlation from a critic's logits of draws from q(z).

    .. math:: \mathrm{KL}\Big(q(z)\,\Big\|\,\prod_j q(z_j)\Big) = \mathbb{E}_{q(z)}\left[l(z)\right]

    for the best critic, see :func:`critic_loss`. Any other gives another number, and below 0 as well.
    :func:`aecourse.evaluate.gaussian_total_correlation` is what correlations alone show.

    Args:
        logits: ``(batch,)``.

    Returns:
        ``()``, nats.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`.

    Source: Kim & Mnih (2018), equation 3.
    """
    check_shapes(("logits", logits, "batch"))
    return logits.mean()


class FactorVAE(VAE):
    r"""A :class:`aecourse.vae.VAE` that also keeps the total correlation of its code small.

    .. math:: \mathcal{L}(x) = -\mathrm{ELBO}(x) + \gamma\,\mathrm{KL}\Big(q(z)\,\Big\|\,\prod_j q(z_j)\Big)

    Two players: the critic learns to tell codes from permuted codes; encoder and decoder minimise the loss
    with the critic's estimate in it. The paper takes the permuted codes from a second batch, here they are
    from the same one: the critic's loss is a sum of two means, so that its expectation stays as it is. And
    both players step at once, the critic with the codes from before the encoder's step, not after it.

    Args:
        encoder, decoder, options: those of :class:`aecourse.vae.VAE`; ``latent_dim`` must be at least 2. With
            several ``samples`` the critic sees the first draw of each example.
        critic: maps ``(batch, latent_dim)`` to ``(batch, 1)``, the logarithm of q(z) over the product.
        gamma: weight of the total correlation. The paper tries 10 to 100 on 64 x 64 images.
        critic_lr: the critic's step size as a multiple of that of the others; 1 in the paper.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`, or a number out of range.

    Source: Kim & Mnih (2018), equation 2 and algorithm 2.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        critic: nn.Module,
        latent_dim: int,
        gamma: float = 10.0,
        critic_lr: float = 1.0,
        **options,
    ):
        check_count("latent_dim", latent_dim, least=2)
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma is {gamma} but must be at least 0 and finite.")
        if not 0 < critic_lr < math.inf:
            raise ValueError(f"critic_lr is {critic_lr} but must be positive and finite.")
        super().__init__(encoder, decoder, latent_dim=latent_dim, **options)
        self.critic = critic
        self.gamma = gamma
        self.critic_lr = critic_lr

    @classmethod
    def build(
        cls,
        kind: str,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        critic_hidden: Sequence[int] = (400, 400),
        **options,
    ) -> "FactorVAE":
        """Over networks of :func:`aecourse.nets.build`, with a critic of leaky ReLU units.

        Args:
            critic_hidden: its layer sizes; in the paper six of 1,000.
            options: those of the networks and of the class.
        """
        check_count("latent_dim", latent_dim, least=2)
        for size in critic_hidden:
            check_count("a size in critic_hidden", size)
        critic = mlp([latent_dim, *critic_hidden, 1], activation=partial(nn.LeakyReLU, 0.2))
        return super().build(kind, image_shape, latent_dim, critic=critic, **options)

    def logits(self, z: Tensor, frozen: bool = False) -> Tensor:
        """The critic's logit of each code, an estimate of log q(z) - sum_j log q(z_j).

        Args:
            z: ``(batch, latent_dim)``.
            frozen: whether the critic is constant: its weights get no gradient then, and z does.

        Returns:
            ``(batch,)``.
        """
        check_batch("z", z, (self.latent_dim,))
        weights = {name: p.detach() if frozen else p for name, p in self.critic.named_parameters()}
        logits = functional_call(self.critic, weights, (z,)).to(z.dtype)
        check_batch("the critic's output", logits, (1,))
        return logits.squeeze(1)

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """What encoder and decoder minimise, its three parts, and what the critic minimises.

        ``beta`` stands in for the model's own, the weight of the KL.
        """
        beta = self.beta if beta is None else beta
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, self.samples)
        log_likelihood = self.log_likelihood(x, z).mean()  # over draws and examples
        kl = self.kl_per_dimension(mean, logvar)
        bound = log_likelihood - beta * free_bits(kl, self.free_bits)
        # Constant to each player is what the other one does, also for those who use two optimisers.
        correlation = total_correlation(self.logits(z[0], frozen=True))
        told_apart = critic_loss(self.logits(z[0].detach()), self.logits(permute_dims(z[0])))
        parts = {
            "reconstruction": -log_likelihood,
            "kl": kl.sum(dim=1).mean(),
            "total_correlation": correlation,
        }
        return Loss(total=-bound + self.gamma * correlation, parts=parts, own={"critic": told_apart})

    def parameter_groups(self) -> list[dict]:
        """The critic's settings of Adam, those of the paper; ``fit`` asks for them."""
        return [{"params": [*self.critic.parameters()], "lr_scale": self.critic_lr, "betas": (0.5, 0.9)}]

    def validate(self, images: Tensor) -> None:
        """As for :class:`aecourse.vae.VAE`; a single image is refused too: there is nothing to permute."""
        super().validate(images)
        if len(images) < 2:
            raise ValueError("images holds 1 example but needs at least 2: codes are permuted among them.")


# ------------------------------------------------------------------------------------ beta-TCVAE


class KLParts(NamedTuple):
    """The three parts of log q(z|x) - log p(z) for one draw z of each example; made by :func:`kl_parts`.

    Their means over the data are never negative; an example's, and an estimate from a batch, can be.
    """

    information: Tensor
    """``(batch,)``, log q(z|x) - log q(z), nats. Its mean is the mutual information of x and z."""

    total_correlation: Tensor
    """``(batch,)``, log q(z) - sum_j log q(z_j), nats."""

    dimension_wise: Tensor
    """``(batch,)``, sum_j log q(z_j) - log p(z_j), nats."""


def kl_parts(
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    data_size: int,
    *,
    sampling: str = "stratified",
    prior_logvar: float = 0.0,
) -> KLParts:
    r"""Split log q(z|x) - log p(z) in three, with q(z) estimated from a batch.

    q(z) is the mean of q(z|x_n) over all N examples, of which a batch has B. Both estimates are weighted sums
    over the batch, of densities of z for q(z) and of z_j for each q(z_j):

    - ``"stratified"``: z's own example has the weight 1 / N, the others share the rest. It is unbiased, and
      exact if the batch is the data set. (The paper gives one of the others a smaller weight. This is the
      mean of that over all orders of the batch.)
    - ``"weighted"``: all have the weight 1 / (N B). Its gradients do not depend on N. Its values mean little,
      for the weights sum to 1 / N: where many examples overlap, the information is too large by log N, the
      total correlation too large by (k - 1) log N, and the last part too small by k log N.

    The logarithm of an unbiased estimate is too small on average; more so the smaller the batch. Where
    several processes train one model, the batch is that of all (in a compiled loss, of each).

    Args:
        z: ``(batch, k)``, one draw from q(z|x) of each example.
        mean: ``(batch, k)``.
        logvar: ``(batch, k)``.
        data_size: N, at least 2.
        sampling: ``"stratified"`` or ``"weighted"``.
        prior_logvar: logarithm of the prior's variance.

    Returns:
        :class:`KLParts`. Their sum is log q(z|x) - log p(z), whatever the estimates.

    Raises:
        TypeError, ValueError: from :func:`aecourse.contracts.check_shapes`, or for ``data_size`` or
            ``sampling``.

    Source: Chen et al. (2018), equations 2 and 5 and appendix C.
    """
    check_shapes(("z", z, "batch k"), ("mean", mean, "batch k"), ("logvar", logvar, "batch k"))
    _check_sampling(data_size, sampling)
    means, own = whole_batch(mean)
    logvars, _ = whole_batch(logvar)
    batch = len(means)
    share = (data_size - 1) / max(batch - 1, 1) if sampling == "stratified" else 1 / batch
    weights = z.new_full((len(z), batch), math.log(share / data_size))
    if sampling == "stratified":
        weights = weights.scatter(1, own.unsqueeze(1), -math.log(data_size))
    # log q(z_ij|x_n) at [i, n, j]: the density of each row's latent variables under each example.
    pairs = z[:, None, :, None].expand(-1, batch, -1, 1)
    pairs = gaussian_log_density(pairs, means.unsqueeze(2), logvars.unsqueeze(2))
    log_joint = torch.logsumexp(pairs.sum(dim=2) + weights, dim=1)
    log_product = torch.logsumexp(pairs + weights.unsqueeze(2), dim=1).sum(dim=1)
    log_prior = gaussian_log_density(z, torch.zeros_like(z), torch.full_like(z, prior_logvar))
    return KLParts(
        information=gaussian_log_density(z, mean, logvar) - log_joint,
        total_correlation=log_joint - log_product,
        dimension_wise=log_product - log_prior,
    )


class BetaTCVAE(VAE):
    r"""A :class:`aecourse.vae.VAE` that weighs the total correlation in its KL by beta, and nothing else.

    .. math:: \mathcal{L}(x) = -\mathrm{ELBO}(x)
              + (\beta - 1)\,\mathrm{KL}\Big(q(z)\,\Big\|\,\prod_j q(z_j)\Big)

    What FactorVAE minimises, without a critic: see :func:`kl_parts`. The KL of the ELBO is in closed form, so
    that with beta = 1 this is the VAE, number by number. Of the parts, the last three add up to the KL as
    one draw estimates it.

    Args:
        encoder, decoder, options: those of :class:`aecourse.vae.VAE`. With several ``samples`` the parts are
            estimated from the first draw of each example.
        data_size: N, how many examples it is trained on.
        beta: weight of the total correlation; the information and the KL of each dimension have the weight 1.
        sampling: how q(z) is estimated, ``"stratified"`` or ``"weighted"``.

    Raises:
        TypeError, ValueError: as for :class:`aecourse.vae.VAE`, or an unknown ``sampling``, or ``data_size``
            is no count of at least 2.

    Source: Chen et al. (2018), equation 4 with alpha = gamma = 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_size: int,
        beta: float = 6.0,
        sampling: str = "stratified",
        **options,
    ):
        _check_sampling(data_size, sampling)
        super().__init__(encoder, decoder, beta=beta, **options)
        self.data_size = data_size
        self.sampling = sampling

    def loss(self, x: Tensor, beta: float | Tensor | None = None) -> Loss:
        """The loss of a batch, and its parts unweighted; ``beta`` stands in for the model's own."""
        beta = self.beta if beta is None else beta
        mean, logvar = self.encode(x)
        z = reparameterize(mean, logvar, self.samples)
        log_likelihood = self.log_likelihood(x, z).mean()  # over draws and examples
        kl = self.kl_per_dimension(mean, logvar)
        settings = {"sampling": self.sampling, "prior_logvar": self._prior_logvar}
        estimates = kl_parts(z[0], mean, logvar, self.data_size, **settings)
        estimates = {name: values.mean() for name, values in estimates._asdict().items()}
        bound = log_likelihood - free_bits(kl, self.free_bits)
        parts = {"reconstruction": -log_likelihood, "kl": kl.sum(dim=1).mean(), **estimates}
        return Loss(total=-bound + (beta - 1) * estimates["total_correlation"], parts=parts)


def _check_sampling(data_size: int, sampling: str) -> None:
    check_count("data_size", data_size, least=2)
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r} but must be one of {SAMPLINGS}.")
