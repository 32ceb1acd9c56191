"""Small models with several players, for tests of training and of devices."""

import torch
from torch import nn
from torch.nn import functional as F

from aecourse.bounds import Loss
from aecourse.distributed import all_sum, standard_normal


class Adversarial(nn.Module):
    """A small adversarial autoencoder. The critic looks at codes from a centre that follows them.

    Nothing is detached: whose gradient goes where is up to ``fit`` alone.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
        self.critic = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def validate(self, images):
        pass

    def loss(self, x):
        codes = self.encoder(x).to(x.dtype)  # it may have computed in half precision
        self.seen = codes.detach()
        reconstruction = (self.decoder(codes) - x).square().sum(dim=1).mean()
        of_codes = self.critic(codes - self.centre)
        of_prior = self.critic(standard_normal(codes.shape, like=codes))
        betrayed = F.softplus(-of_codes).mean()
        told_apart = F.softplus(of_codes).mean() + F.softplus(-of_prior).mean()
        parts = {"reconstruction": reconstruction, "betrayed": betrayed}
        return Loss(total=reconstruction + betrayed, parts=parts, own={"critic": told_apart})

    @torch.no_grad()
    def after_step(self):
        count = all_sum(self.seen.new_full((), len(self.seen)))
        self.centre.lerp_(all_sum(self.seen.sum(dim=0)) / count, 0.1)
        self.steps += 1


class Grouped(Adversarial):
    """The same with settings of their own for the critic."""

    def parameter_groups(self):
        critic = {"params": self.critic.parameters(), "lr_scale": 0.3, "betas": (0.5, 0.9), "eps": 1e-6}
        return [critic, {"params": [self.decoder[0].weight], "weight_decay": 0.01}]


class ThreePlayers(nn.Module):
    """An encoder, a decoder that fools the critic as well, and the critic (Larsen et al. 2016)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.critic = nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.nets = nn.ModuleDict({"decoder": nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6))})
        self.verdict = nn.Linear(5, 1)

    def validate(self, images):
        pass

    def losses(self, x):
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + torch.expm1(logvar) - logvar).sum(dim=1).mean()
        decoded, drawn = self.nets["decoder"](z), self.nets["decoder"](torch.randn_like(z))
        alike = 0.5 * (self.critic(decoded) - self.critic(x)).square().sum(dim=1).mean()
        true, made = self.verdict(self.critic(x)), self.verdict(self.critic(drawn))
        judged = F.softplus(-true).mean() + F.softplus(made).mean()
        return kl, alike, judged

    def loss(self, x):
        kl, alike, judged = self.losses(x)
        own = {"nets.decoder": 0.1 * alike - judged, "critic": judged, "verdict": judged}
        return Loss(total=kl + alike, parts={"kl": kl, "alike": alike}, own=own)
