"""Does a larger beta disentangle? beta-VAE against beta-TCVAE on sprites whose factors are independent.

Each seed draws 10,000 sprites with random factors. All contenders see the same pictures and start from the
same weights, so that differences are taken in pairs. They are scored on 3,000 fresh sprites.

    python benchmarks/disentanglement_seeds.py             (about 20 minutes on a core)

The result is ``results/seeds-disentanglement.json``: a row for each seed and contender. It is written after
every row, and a run that was stopped goes on where it was.
"""

import argparse
import json
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from autoencoder_seeds import rounded

from aecourse import VAE, fit, mean_loss
from aecourse.disentanglement import beta_vae_score, dci, factor_vae_score, mutual_information_gap
from aecourse.evaluate import gaussian_total_correlation
from aecourse.likelihoods import reparameterize
from aecourse.sprites import draw_sprites
from aecourse.zoo.factor_vae import BetaTCVAE

PATH = Path(__file__).parent / "results" / "seeds-disentanglement.json"
IMAGE_SHAPE, LATENT_DIM = (1, 16, 16), 6
TRAIN, TEST, EPOCHS, BATCH_SIZE, STEP = 10_000, 3_000, 40, 100, 2e-3
FACTORS = ("shape", "scale", "x", "y")

# Name, the weight beta, and whether the shape varies as well. FactorVAE can join them here.
CONTENDERS = [
    *[("VAE", beta, False) for beta in (1, 4, 8, 16)],
    *[("BetaTCVAE", beta, False) for beta in (4, 8, 16)],
    *[("VAE", beta, True) for beta in (1, 8)],
]


def title(contender) -> str:
    name, beta, with_shape = contender
    return f"{name} {beta}" + (", shape too" if with_shape else "")


def sprites(count: int, with_shape: bool):
    """Pictures and their factors, each drawn at random and independently."""
    sizes = (3 if with_shape else 1, 6, 1, 16, 16)
    factors = torch.stack([torch.randint(size, (count,)) for size in sizes], dim=1)
    # The library's positions run from 0 to 31; every second one is taken.
    pictures = draw_sprites(factors * torch.tensor([1, 1, 1, 2, 2]), size=16)
    return pictures, factors[:, [0, 1, 3, 4] if with_shape else [1, 3, 4]]


@cache
def data(seed: int, with_shape: bool):
    """The pictures to train on, and those to be scored on with their factors."""
    torch.manual_seed(seed)
    x, _ = sprites(TRAIN, with_shape)
    return x, *sprites(TEST, with_shape)


def falling(epoch: int) -> float:
    """The step size: constant for 60 % of the epochs, then linear to zero."""
    return STEP * min(1.0, (EPOCHS - epoch) / (0.4 * EPOCHS))


def true_total_correlation(mean, logvar, draws: int = 1000):
    """Of q(z), the mixture over all of these examples; its mean over draws and the standard error."""
    order = torch.randperm(len(mean))[:draws]
    mean, logvar = mean.double(), logvar.double()
    ratios = []
    for z in reparameterize(mean[order], logvar[order]).split(100):
        squares = (z[:, None] - mean).square() / logvar.exp() + logvar
        joint = torch.logsumexp(-0.5 * squares.sum(dim=2), dim=1)
        product = torch.logsumexp(-0.5 * squares, dim=1).sum(dim=1)
        # Each of the densities is a mean over examples: log N is subtracted once, and k times.
        shift = (mean.shape[1] - 1) * torch.tensor(float(len(mean))).log()
        ratios.append(joint - product + shift)
    ratios = torch.cat(ratios)
    return ratios.mean().item(), (ratios.std() / draws**0.5).item()


def row(contender, seed: int) -> dict:
    name, beta, with_shape = contender
    x, x_test, factors = data(seed, with_shape)
    torch.manual_seed(seed)
    if name == "VAE":
        model = VAE.mlp(IMAGE_SHAPE, LATENT_DIM, hidden=(256,), beta=beta)
    else:
        model = BetaTCVAE.build("mlp", IMAGE_SHAPE, LATENT_DIM, hidden=(256,), beta=beta, data_size=TRAIN)
    start = time.process_time()
    fit(model, x, epochs=EPOCHS, batch_size=BATCH_SIZE, lr=falling, seed=seed, progress=False)
    seconds = time.process_time() - start
    with torch.no_grad():
        mean, logvar = model.encode(x_test)
        tc, tc_error = true_total_correlation(*model.encode(x))
        gaussian_tc = gaussian_total_correlation(*model.encode(x)).item()
        terms = mean_loss(model, x_test)
        kl = model.kl_per_dimension(mean, logvar).mean(dim=0)
        used = kl > 0.05
        samples = reparameterize(mean, logvar)
    forests = dci(mean, factors, trees=5)
    names = FACTORS if with_shape else FACTORS[1:]
    pairs = torch.cat([mean.T, factors.T])
    return {
        "reconstruction": terms["reconstruction"],
        "kl": terms["kl"],
        "kl per dimension": kl.tolist(),
        "used": int(used.sum()),
        "total correlation": tc,
        "its standard error": tc_error,
        "Gaussian total correlation": gaussian_tc,
        "β-VAE": beta_vae_score(mean, factors, votes=900),
        "FactorVAE": factor_vae_score(mean, factors, votes=1500),
        "MIG": mutual_information_gap(mean, factors),
        "MIG of": {one: mutual_information_gap(mean, factors[:, [j]]) for j, one in enumerate(names)},
        "DCI": forests.disentanglement,
        "DCI, used only": dci(mean[:, used], factors, trees=5).disentanglement if used.sum() > 1 else None,
        "informed by means": forests.informativeness,
        "informed by samples": dci(samples, factors, trees=5).informativeness,
        "squared correlations": torch.corrcoef(pairs)[:LATENT_DIM, LATENT_DIM:].square().tolist(),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    result = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {"seeds": {}}
    settings = {"examples": TRAIN, "epochs": EPOCHS, "batch_size": BATCH_SIZE, "latent_dim": LATENT_DIM}
    result = {"settings": settings, "versions": {"torch": version("torch")}, "seeds": result["seeds"]}
    for seed in range(options.seeds):
        rows = result["seeds"].setdefault(str(seed), {})
        for contender in CONTENDERS:
            if title(contender) not in rows:
                rows[title(contender)] = rounded(row(contender, seed))
                PATH.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                print(f"seed {seed}: {title(contender)}", flush=True)


if __name__ == "__main__":
    main()
