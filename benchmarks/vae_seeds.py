"""Do the comparisons in the chapters on design and on collapse hold for other seeds than the page's?

Each experiment repeats what its chapter does, with the same sizes and steps, for each seed, and some of it
with longer training. First weights and draws follow the seed, and within a seed all contenders see the same:
differences are taken in pairs.

    python benchmarks/vae_seeds.py design --seeds 6              (about ten minutes on a core)
    python benchmarks/vae_seeds.py collapse --seeds 6            (about five)

The result is ``results/seeds-EXPERIMENT-DATASET.json``, with one row for each seed. It is written after every
row, and a run that was stopped goes on where it was.
"""

import copy
import math
from functools import partial

import torch
from autoencoder_seeds import main
from sklearn.neighbors import KNeighborsRegressor
from torch import nn
from torch.nn import functional as F

from aecourse import VAE, data, fit, mean_loss
from aecourse.bounds import cyclical_annealing, linear_annealing
from aecourse.evaluate import active_units, kl_per_dimension
from aecourse.likelihoods import bernoulli_log_likelihood, optimal_logvar, reparameterize
from aecourse.linear import linear_vae_optimum, pca
from aecourse.nets import MLPDecoder, MLPEncoder

# ---------------------------------------------------------------------------------------- design


class SoftplusEncoder(MLPEncoder):
    def forward(self, x):
        mean, raw = super().forward(x)
        return mean, torch.log(F.softplus(raw) + 1e-5)


def bound_in_training_mode(vae, x, batch_size):
    state = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.train()
    with torch.no_grad():
        batches = x[: len(x) // batch_size * batch_size].split(batch_size)
        bound = torch.stack([-vae.loss(batch).total for batch in batches]).mean().item()
    vae.load_state_dict(state)
    vae.eval()
    return bound


class Design:
    """What each choice does to the bound: the chapter "design"."""

    levels = (0.01, 0.03, 0.1, 0.3, 1.0)
    sizes = (2, 5, 10, 20, 40)

    def __init__(self, images):
        self.shape = images.image_shape
        self.x, self.x_test = images.train[:2000], images.test[:500]
        self.kinds = {
            "MLP": partial(VAE.mlp, self.shape, 10, hidden=(128,)),
            "convolution": partial(VAE.conv, self.shape, 10, channels=(16, 32)),
            "residual": partial(VAE.residual, self.shape, 10, channels=(16, 32)),
            "residual, narrow": partial(VAE.residual, self.shape, 10, channels=(8, 18)),
        }

    def fixed(self):
        counted = {name: sum(p.numel() for p in make().parameters()) for name, make in self.kinds.items()}
        eigenvalues = pca(self.x.flatten(1).double()).eigenvalues
        above = {str(level): int((eigenvalues > level).sum()) for level in self.levels}
        return {"weights": counted, "eigenvalues above": above}

    def train(self, make, x, epochs, seed):
        torch.manual_seed(seed)
        vae = make()
        fit(vae, x, epochs=epochs, batch_size=100, lr=2e-3, seed=seed, progress=False)
        if vae.likelihood.variance == "optimal":
            with torch.no_grad():
                x_hat = vae.decode(reparameterize(*vae.encode(x)))
            vae.likelihood.variance = float(optimal_logvar(x, x_hat).exp())
        return vae.eval()

    def report(self, vae, x, x_test):
        terms = mean_loss(vae, x_test)
        with torch.no_grad():
            mean, logvar = vae.encode(x_test)
        return {
            "bound": -terms["total"],
            "training bound": -mean_loss(vae, x)["total"],
            "kl": terms["kl"],
            "active": active_units(mean),
            "above 0.1": int((kl_per_dimension(mean, logvar) > 0.1).sum()),
            "variance": float(vae.likelihood.variance),
        }

    def gaussian(self, variance="optimal", latent_dim=10, **options):
        options = {"hidden": (128,), "likelihood": "gaussian", **options}
        return partial(VAE.mlp, self.shape, latent_dim, variance=variance, **options)

    def around(self, kind, **options):
        encoder, decoder = kind(self.shape, 10, (128,), **options), MLPDecoder(10, self.shape, (128,))
        options = {"image_shape": self.shape, "latent_dim": 10, "likelihood": "gaussian"}
        return VAE(encoder, decoder, variance="optimal", **options)

    def encoders(self, seed):
        kinds = {
            "log variance": (MLPEncoder, {}),
            "softplus": (SoftplusEncoder, {}),
            "batch norm": (MLPEncoder, {"batch_norm": True}),
            "dropout": (MLPEncoder, {"dropout": 0.2}),
        }
        result = {}
        for name, (kind, options) in kinds.items():
            for epochs in (20, 100) if name != "softplus" else (20,):
                vae = self.train(partial(self.around, kind, **options), self.x, epochs, seed)
                row = self.report(vae, self.x, self.x_test)
                with torch.no_grad():
                    mean, logvar = vae.encode(self.x_test)
                    kl = vae.kl_per_dimension(mean, logvar).sum(dim=1)
                    row["at the mean"] = (vae.log_likelihood(self.x_test, mean) - kl).mean().item()
                if name == "batch norm":
                    for size in (2, 5, 20, 100):
                        row[f"batches of {size}"] = bound_in_training_mode(vae, self.x_test, size)
                if name == "dropout":
                    bounds = [bound_in_training_mode(vae, self.x_test, 100) for _ in range(20)]
                    row["training mode"] = sum(bounds) / len(bounds)
                result[f"{name}, {epochs}"] = row
        return result

    def variances(self, seed):
        result = {}
        for level in (*self.levels, "optimal"):
            vae = self.train(self.gaussian(level), self.x, 20, seed)
            result[str(level)] = self.report(vae, self.x, self.x_test)
        found = result["optimal"]["variance"]
        vae = self.train(self.gaussian(found), self.x, 20, seed)
        return result | {"the optimal one, fixed": self.report(vae, self.x, self.x_test)}

    def colour(self, seed):
        torch.manual_seed(seed)
        masks, pictures, backs = [], [], []
        for count in (1200, 300):
            masks.append(data.sprites(count, size=16).images)
            front, back = torch.rand(2, count, 3, 1, 1)
            pictures.append(masks[-1] * front + (1 - masks[-1]) * back)
            backs.append(back.flatten(1))
        on_shape = masks[1].expand_as(pictures[1]) > 0.5
        result = {}
        for variance in (1.0, "optimal"):
            options = {"hidden": (256,), "likelihood": "gaussian", "variance": variance}
            vae = self.train(partial(VAE.mlp, (3, 16, 16), 12, **options), pictures[0], 50, seed)
            row = self.report(vae, *pictures)
            error = (vae.reconstruct(pictures[1]) - pictures[1]).square()
            row["error on shapes"] = error[on_shape].mean().item()
            row["background explained"] = self.explained(vae, pictures, backs).tolist()
            result[str(variance)] = row
        return result

    def explained(self, vae, x, factors, neighbours=None):
        """R^2 on the second of two sets, by a linear fit from codes, or by their nearest neighbours."""
        with torch.no_grad():
            codes = [vae.encode(part)[0] for part in x]
        if neighbours:
            search = KNeighborsRegressor(neighbours, weights="distance").fit(codes[0], factors[0])
            found = torch.from_numpy(search.predict(codes[1]))
        else:
            ones = [F.pad(code, (0, 1), value=1.0) for code in codes]
            found = ones[1] @ torch.linalg.lstsq(ones[0], factors[0]).solution
        return 1 - (factors[1] - found).square().mean(dim=0) / factors[1].var(dim=0, correction=0)

    def architectures(self, seed):
        result = {}
        for name, make in self.kinds.items():
            make = partial(make, likelihood="gaussian", variance="optimal")
            for epochs in (12, 60):
                vae = self.train(make, self.x, epochs, seed)
                result[f"{name}, {epochs}"] = self.report(vae, self.x, self.x_test)
        return result

    def latent(self, seed):
        result = {}
        for size in self.sizes:
            for epochs in (20, 100) if size >= 10 else (20,):
                vae = self.train(self.gaussian(latent_dim=size), self.x, epochs, seed)
                result[f"{size}, {epochs}"] = self.report(vae, self.x, self.x_test)
        return result

    def series(self, seed):
        torch.manual_seed(seed)
        made = data.time_series(1800, length=64)
        x = made.signals[:1500], made.signals[1500:]
        frequency, phase, amplitude, slope = made.factors.unbind(dim=1)
        factors = torch.stack([frequency, phase, amplitude, slope, phase.cos(), phase.sin()], dim=1)
        factors = factors[:1500], factors[1500:]
        options = {"likelihood": "gaussian", "variance": "optimal"}
        vae = self.train(partial(VAE.conv1d, (1, 64), 8, (16, 32), (64,), **options), x[0], 30, seed)
        names = ("frequency", "phase", "amplitude", "slope", "cos phase", "sin phase")
        return {
            "linear": dict(zip(names, self.explained(vae, x, factors).tolist())),
            "neighbours": dict(zip(names, self.explained(vae, x, factors, neighbours=10).tolist())),
            "std": math.sqrt(vae.likelihood.variance),
        }

    def row(self, seed):
        return {
            "encoders": self.encoders(seed),
            "variances": self.variances(seed),
            "colour": self.colour(seed),
            "architectures": self.architectures(seed),
            "latent": self.latent(seed),
            "series": self.series(seed),
        }


# -------------------------------------------------------------------------------------- collapse


class AutoregressiveVAE(VAE):
    """A Bernoulli VAE whose logits also see the pixels before."""

    def add_network(self, hidden):
        count = math.prod(self.image_shape)
        pixel = torch.arange(count)
        place = torch.linspace(1, count - 1, hidden).round()
        self.register_buffer("sees", (pixel < place.unsqueeze(1)).float())
        self.register_buffer("reads", (place <= pixel.unsqueeze(1)).float())
        self.inward = nn.Parameter(torch.randn(hidden, count) / math.sqrt(count))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.outward = nn.Parameter(torch.zeros(count, hidden))
        self.direct = nn.Parameter(torch.zeros(count, count))
        return self

    def log_likelihood(self, x, z):
        if z.dim() == 3:
            return super().log_likelihood(x, z)
        x = x.flatten(1)
        hidden = torch.relu(x @ (self.sees * self.inward).T + self.bias)
        logits = self.decoder_output(z).flatten(1) + hidden @ (self.reads * self.outward).T
        return bernoulli_log_likelihood(x, logits + x @ self.direct.tril(-1).T)


class Collapse:
    """How many latent variables are used, and what the remedies do: the chapter "collapse"."""

    def __init__(self, images):
        self.large = len(images.train) > 10_000
        self.shape = images.image_shape
        self.x, self.x_test = images.train[:2000], images.test[:500]
        eigenvalues = pca(self.x.flatten(1), 40).eigenvalues
        above = 12 + int((eigenvalues[11:25] / eigenvalues[12:26]).argmax())
        self.noise = math.sqrt(eigenvalues[above - 1] * eigenvalues[above])

    def fixed(self):
        """The linear VAE's optimum."""
        result = {"variance": self.noise}
        for beta in (0.3, 1.0, 3.0):
            best = linear_vae_optimum(self.x.flatten(1).double(), 40, self.noise, beta)
            result[str(beta)] = {
                "used": int(best.active.sum()),
                "above 0.1": int((best.kl > 0.1).sum()),
                "active": int((1 - best.logvar.exp() > 0.01).sum()),
                "kl": best.kl.sum().item(),
                "largest": best.kl.max().item(),
                "distortion": best.distortion.item(),
            }
        return result

    def deep(self, seed, latent_dim, beta, epochs):
        torch.manual_seed(seed)
        options = {"hidden": (100,), "likelihood": "gaussian", "variance": self.noise, "beta": beta}
        model = VAE.mlp(self.shape, latent_dim, **options)
        fit(model, self.x, epochs=epochs, batch_size=50, lr=3e-3, seed=seed, progress=False)
        with torch.no_grad():
            mean, logvar = model.encode(self.x_test)
            kl = kl_per_dimension(mean, logvar)
        terms, on_test = mean_loss(model, self.x), mean_loss(model, self.x_test)
        return {
            "above 0.1": int((kl > 0.1).sum()),
            "active": active_units(mean),
            "kl": kl.sum().item(),
            "largest": kl.max().item(),
            "rate": terms["kl"],
            "distortion": terms["reconstruction"],
            "test rate": on_test["kl"],
            "test distortion": on_test["reconstruction"],
        }

    def autoregressive(self, seed):
        x, x_test = (self.x > 0.5).float(), (self.x_test > 0.5).float()
        epochs = 12 if self.large else 30
        steps = epochs * math.ceil(len(x) / 64)
        options = {"batch_size": 64, "lr": 2e-3, "seed": seed, "progress": False}

        def run(kind, beta=None, times=1, **settings):
            torch.manual_seed(seed)
            model = kind.mlp(self.shape, 8, hidden=(100,), **settings)
            if kind is AutoregressiveVAE:
                model.add_network(hidden=300 if self.large else 200)
            history = fit(model, x, epochs=times * epochs, beta=beta, **options)
            terms = mean_loss(model, x_test)
            with torch.no_grad():
                mean, logvar = model.encode(x_test)
            return model, {
                "reconstruction": terms["reconstruction"],
                "kl": terms["kl"],
                "bound": -terms["reconstruction"] - terms["kl"],
                "training bound": -mean_loss(model, x)["reconstruction"] - mean_loss(model, x)["kl"],
                "active": active_units(mean),
                "least": kl_per_dimension(mean, logvar).min().item(),
                "kl at half": history.train["kl"][times * epochs // 2],
                "kl at the end": history.train["kl"][-1],
            }

        result = {}
        _, result["independent pixels"] = run(VAE)
        auto, result["autoregressive"] = run(AutoregressiveVAE)
        _, result["z forbidden"] = run(AutoregressiveVAE, beta=lambda step: 100.0)
        _, result["linear"] = run(AutoregressiveVAE, beta=lambda step: linear_annealing(step, 0, steps / 2))
        _, result["cyclical"] = run(AutoregressiveVAE, beta=lambda step: cyclical_annealing(step, steps / 4))
        floor = result["independent pixels"]["kl"] / 8
        _, result["free bits"] = run(AutoregressiveVAE, free_bits=floor)
        _, result["autoregressive, 4 times"] = run(AutoregressiveVAE, times=4)
        _, result["linear, 4 times"] = run(
            AutoregressiveVAE, beta=lambda step: linear_annealing(step, 0, 2 * steps), times=4
        )
        encoder_only = copy.deepcopy(auto).requires_grad_(False)
        encoder_only.encoder.requires_grad_(True)
        fit(encoder_only, x, epochs=epochs // 4, **options)
        before, after = mean_loss(auto, x), mean_loss(encoder_only, x)
        result["encoder alone"] = {
            "gain": before["total"] - after["total"],
            "kl before": before["kl"],
            "kl after": after["kl"],
        }
        return result

    def row(self, seed):
        epochs = 20 if self.large else 30
        result = {"8": self.deep(seed, 8, 1.0, epochs)}
        for beta in (0.3, 1.0, 3.0):
            result[f"40, beta {beta}"] = self.deep(seed, 40, beta, epochs)
        result["40, beta 1.0, 5 times"] = self.deep(seed, 40, 1.0, 5 * epochs)
        return {"deep": result, "autoregressive": self.autoregressive(seed)}


EXPERIMENTS = {"design": Design, "collapse": Collapse}

if __name__ == "__main__":
    main(EXPERIMENTS, __doc__.split("\n")[0])
