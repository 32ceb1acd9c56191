"""Do the comparisons in the chapters on autoencoders hold for other seeds than the one on the page?

Each experiment repeats what its chapter does, with the same sizes and steps, for each seed. First weights
and draws follow the seed, and within a seed all contenders see the same: differences are taken in pairs.

    python benchmarks/autoencoder_seeds.py generating            (about ten minutes on a core)
    AECOURSE_DATASET=mnist python benchmarks/autoencoder_seeds.py few_labels --seeds 10

The result is ``results/seeds-EXPERIMENT-DATASET.json``, with one row for each seed. It is written after every
row, and a run that was stopped goes on where it was.
"""

import argparse
import json
import math
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.nn.functional import normalize

from aecourse import VAE, Autoencoder, DenoisingAutoencoder, SparseAutoencoder, data, fit
from aecourse.bounds import Loss
from aecourse.evaluate import probe_accuracy
from aecourse.inference import fit_mixture
from aecourse.linear import fit_logistic_pca, pca

RESULTS = Path(__file__).parent / "results"


# ------------------------------------------------------------------------------------ generating


def ones_and_eights(pictures, labels, most):
    chosen = (labels == 1) | (labels == 8)
    return pictures[chosen][:most], labels[chosen][:most]


def covered(samples, real, neighbour=3):
    """% of real images to which some of as many samples are nearer than their third nearest real image."""
    real = real.flatten(1)
    apart = torch.cdist(real, real)
    apart.fill_diagonal_(float("inf"))
    radius = apart.sort(dim=1).values[:, neighbour - 1]
    shares = [
        (torch.cdist(real, some).amin(dim=1) < radius).float().mean()
        for some in samples.flatten(1).split(len(real))
        if len(some) == len(real)
    ]
    return 100 * torch.stack(shares).mean().item()


class Generating:
    """Codes of ones and eights, drawn in several ways and judged: the chapter "generating"."""

    draws = 2000
    sizes = (2, 4, 8)

    def __init__(self, images):
        self.images = images
        self.small = len(images.train) < 5000
        self.x, self.labels = ones_and_eights(images.train[:10_000], images.train_labels[:10_000], 2000)
        self.x_test, _ = ones_and_eights(images.test, images.test_labels, 500)
        self.judge = MLPClassifier((128,), max_iter=300 if self.small else 30, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may stop before it has converged
            self.judge.fit(images.train[:6000].flatten(1).numpy(), images.train_labels[:6000].numpy())

    def invalid(self, pictures):
        certainty, label = torch.from_numpy(self.judge.predict_proba(pictures.flatten(1).numpy())).max(dim=1)
        return 100 * ((label != 1) & (label != 8) | (certainty < 0.8)).float().mean().item()

    def train(self, model_class, size, seed):
        torch.manual_seed(seed)
        model = model_class.mlp(self.images.image_shape, size, hidden=(128, 64))
        epochs = (1200 if self.small else 1800) * 50 // len(self.x)
        fit(model, self.x, epochs=epochs, batch_size=50, lr=2e-3, seed=seed, progress=False)
        return model

    def nearest(self, pictures):
        return torch.cdist(pictures.flatten(1), self.x.flatten(1)).amin(dim=1).median().item()

    def fixed(self):
        """What does not depend on a seed."""
        torch.manual_seed(0)
        one_picture = self.x[self.labels == 8].mean(dim=0).expand(self.draws, *self.images.image_shape)
        order = torch.randint(len(self.x), (self.draws,))
        return {
            "real": {"invalid": self.invalid(self.x_test), "covered": covered(self.x[order], self.x_test)},
            "one picture": {
                "invalid": self.invalid(one_picture),
                "covered": covered(one_picture, self.x_test),
            },
            "nearest training image to a test image": self.nearest(self.x_test),
        }

    @torch.no_grad()
    def row(self, seed):
        result = {}
        for size in self.sizes:
            with torch.enable_grad():
                model, vae = self.train(Autoencoder, size, seed), self.train(VAE, size, seed)
            torch.manual_seed(1000 + seed)
            codes = model.encode(self.x)
            low, high = codes.amin(dim=0), codes.amax(dim=0)
            spread = torch.linalg.cholesky(torch.cov(codes.T))
            fitted = codes.mean(dim=0) + torch.randn(self.draws, size) @ spread.T
            drawn = {
                "standard normal": torch.randn(self.draws, size),
                "box around the codes": low + (high - low) * torch.rand(self.draws, size),
                "Gaussian fitted to codes": fitted,
                "mixture fitted to codes": fit_mixture(codes, 10).mixture.sample(self.draws)[0],
            }
            pictures = {name: model.decode(z) for name, z in drawn.items()}
            pictures["VAE"] = vae.sample(self.draws)
            rebuilt = model.reconstruct(self.x_test)
            distance = torch.cdist(fitted, codes).amin(dim=1)
            quarters = [self.invalid(model.decode(part)) for part in fitted[distance.argsort()].chunk(4)]
            result[str(size)] = {
                "error": (rebuilt - self.x_test).square().flatten(1).sum(dim=1).mean().item(),
                "invalid": {name: self.invalid(p) for name, p in pictures.items()}
                | {"reconstructions": self.invalid(rebuilt)},
                "covered": {name: covered(p, self.x_test) for name, p in pictures.items()},
                "quarters": quarters,  # of the fitted Gaussian's draws, from near to far from a code
                "nearest": {
                    "mixture": self.nearest(pictures["mixture fitted to codes"]),
                    "reconstructions": self.nearest(rebuilt),
                },
            }
        return result


# ------------------------------------------------------------------------------------ few labels


class FewLabels:
    """A classifier on codes or on pixels, with few labels: the chapter "why"."""

    sizes = (1, 2, 4, 8, 16, 32)
    per_class = (1, 2, 5, 10, 50)

    def __init__(self, images):
        self.images = images
        self.x, self.labels = images.train[:2000], images.train_labels[:2000]
        self.x_test, self.labels_test = images.test[:1000], images.test_labels[:1000]

    def fixed(self):
        return {}

    def row(self, seed):
        result = {"error": {}, "training error": {}, "pixels": {}, "codes": {}}
        for size in self.sizes:
            torch.manual_seed(seed)
            model = Autoencoder.mlp(self.images.image_shape, size, hidden=(128, 64))
            fit(model, self.x, epochs=60, batch_size=100, lr=3e-3, seed=seed, progress=False)
            for name, x in (("error", self.x_test), ("training error", self.x)):
                rebuilt = model.reconstruct(x)
                result[name][str(size)] = (rebuilt - x).square().flatten(1).sum(dim=1).mean().item()
            if size == 16:
                with torch.no_grad():
                    codes = model.encode(self.x), model.encode(self.x_test)
        pixels = self.x.flatten(1), self.x_test.flatten(1)
        for name, (known, asked) in (("pixels", pixels), ("codes", codes)):
            for count in self.per_class:
                result[name][str(count)] = self.accuracy(known, asked, count, seed)
        return result

    def accuracy(self, known, asked, count, seed):
        """In %. A seed draws the same labelled images for all contenders."""
        options = {"per_class": count, "repeats": 10, "seed": seed}
        return 100 * probe_accuracy(known, self.labels, asked, self.labels_test, **options).value.item()


class NoisyCodes(FewLabels):
    """The same with and without noise in training: an exercise of the chapter "why"."""

    def row(self, seed):
        result = {}
        for name, sigma in (("plain", 0.0), ("noise", 0.3)):
            torch.manual_seed(seed)
            corruption = partial(data.add_gaussian_noise, sigma=sigma) if sigma else None
            model = Autoencoder.mlp(self.images.image_shape, 16, hidden=(128, 64), corruption=corruption)
            fit(model, self.x, epochs=60, batch_size=100, lr=3e-3, seed=seed, progress=False)
            rebuilt = model.reconstruct(self.x_test)
            with torch.no_grad():
                codes = model.encode(self.x), model.encode(self.x_test)
            result[name] = {"error": (rebuilt - self.x_test).square().flatten(1).sum(dim=1).mean().item()}
            for count in (1, 10, 50):
                result[name][str(count)] = self.accuracy(*codes, count, seed)
        return result


# ---------------------------------------------------------------------------------------- sparse


def bars(count, size=8):
    """Images of random rows and columns, (count, 1, size, size)."""
    on = torch.rand(count, 2 * size) < 1 / size
    rows = on[:, :size, None].expand(-1, size, size)
    columns = on[:, None, size:].expand(-1, size, size)
    return (rows | columns).float().unsqueeze(1)


class OtherDirection(SparseAutoencoder):
    """The KL price in the direction of lecture 004: of the mean activity from the target."""

    def loss(self, x):
        codes = self.encode(x)
        active = codes.mean(dim=0).clamp(1e-12, 1 - 1e-7)
        price = active * (active / self.rho).log() + (1 - active) * ((1 - active) / (1 - self.rho)).log()
        error = self.reconstruction_error(x, codes).mean()
        return Loss(total=error + self.weight * price.sum(), parts={"reconstruction": error})


class Sparse:
    """Which prices find the parts of crossing bars: the chapter "sparse"."""

    def __init__(self, images):
        torch.manual_seed(0)
        self.x, self.x_test = bars(2000), bars(500)
        one = torch.eye(8)
        self.parts = torch.cat([one[:, :, None].expand(-1, 8, 8), one[:, None].expand(-1, 8, 8)])
        plain = {"image_shape": (1, 8, 8), "code_dim": 32, "hidden": (), "output": "linear"}
        kl = {"penalty": "kl", "weight": 1.0, "rho": 1 / 16}
        self.kinds = {
            "no penalty": partial(Autoencoder.mlp, **plain, code="relu"),
            "L1": partial(SparseAutoencoder.mlp, **plain, penalty="l1", weight=0.5),
            "KL": partial(SparseAutoencoder.mlp, **plain, **kl),
            "KL, other direction": partial(OtherDirection.mlp, **plain, **kl),
            "top 3": partial(SparseAutoencoder.mlp, **plain, penalty="top_k", k=3),
        }

    def fixed(self):
        return {}

    @torch.no_grad()
    def row(self, seed):
        result = {}
        for name, make in self.kinds.items():
            torch.manual_seed(seed)
            model = make()
            with torch.enable_grad():
                fit(model, self.x, epochs=50, batch_size=100, lr=5e-3, seed=seed, progress=False)
            codes = model.encode(self.x_test)
            rebuilt = model.decode(codes)
            columns = model.decoder.net[-1].weight.T
            found, true = (
                normalize(p.flatten(1) - p.flatten(1).mean(dim=1, keepdim=True), dim=1)
                for p in (columns, self.parts)
            )
            result[name] = {
                "error": (rebuilt - self.x_test).square().flatten(1).sum(dim=1).mean().item(),
                "active": (codes > 0.1 * codes.max()).float().sum(dim=1).mean().item(),
                "parts": int(((found @ true.T).amax(dim=0) > 0.9).sum()),
                "never above 0.01": int((codes.amax(dim=0) < 0.01).sum()),
                "never above half": int((codes.amax(dim=0) < 0.5 * codes.max()).sum()),
            }
        return result


# ------------------------------------------------------------------------------------------ deep


class Deep:
    """Two and eight numbers for a digit: the chapter "deep". All seeds share the page's split."""

    def __init__(self, images):
        self.shape = images.image_shape
        self.epochs = 40 if len(images.train) > 10_000 else 60
        torch.manual_seed(0)
        order = torch.randperm(len(images.train[:2000]))
        self.x, self.labels = images.train[order[300:]], images.train_labels[order[300:]]
        self.valid = images.train[order[:300]]
        self.x_test, self.labels_test = images.test[:1000], images.test_labels[:1000]

    def error(self, rebuilt):
        return (rebuilt.view_as(self.x_test) - self.x_test).square().flatten(1).sum(dim=1).mean().item()

    def fixed(self):
        flat, flat_test = self.x.flatten(1), self.x_test.flatten(1)
        return {
            "mean image, validation": (self.valid - self.x.mean(dim=0)).square().sum().item()
            / len(self.valid),
            "PCA, 2": self.error(pca(flat, 2).reconstruct(flat_test)),
            "PCA, 8": self.error(pca(flat, 8).reconstruct(flat_test)),
            "best codes, 8": self.error(fit_logistic_pca(flat, 8, iterations=50).reconstruct(flat_test)),
        }

    def plane(self, seed, hidden, gain, code):
        """A network of sigmoids with two code numbers: its record and its error on test images."""
        torch.manual_seed(seed)
        network = Autoencoder.mlp(self.shape, 2, hidden, activation=nn.Sigmoid, code=code)
        if gain is not None:
            for layer in network.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight, gain=gain)
                    nn.init.zeros_(layer.bias)
        options = {"batch_size": 100, "lr": 3e-3, "test_images": self.valid, "progress": False}
        curve = fit(network, self.x, epochs=self.epochs, seed=seed, **options).test["total"]
        baseline = self.fixed_numbers["mean image, validation"]
        result = {
            "stuck": sum(error > 0.95 * baseline for error in curve),
            "error": self.error(network.reconstruct(self.x_test)),
        }
        with torch.no_grad():
            known, asked = network.encode(self.x), network.encode(self.x_test)
        accuracy = probe_accuracy(known, self.labels, asked, self.labels_test, seed=seed)
        return result | {"accuracy": 100 * accuracy.value.item()}

    def row(self, seed):
        if not hasattr(self, "fixed_numbers"):
            self.fixed_numbers = self.fixed()
        result = {}
        for name, hidden, code in (
            ("ten layers", (256, 128, 64, 32), "linear"),
            ("eight layers", (256, 128, 64), "sigmoid"),
            ("eight layers, linear code", (256, 128, 64), "linear"),
        ):
            result[name] = {
                start: self.plane(seed, hidden, gain, code)
                for start, gain in (("default", None), ("rescaled", 4))
            }
        flat, flat_test = self.x.flatten(1), self.x_test.flatten(1)
        probe = probe_accuracy(
            pca(flat, 2).encode(flat),
            self.labels,
            pca(flat, 2).encode(flat_test),
            self.labels_test,
            seed=seed,
        )
        result["PCA accuracy"] = 100 * probe.value.item()

        torch.manual_seed(seed)
        shallow = Autoencoder.mlp(self.shape, 8, hidden=(), error="cross_entropy")
        fit(shallow, self.x, epochs=50, batch_size=100, lr=falling(2e-2, 50), seed=seed, progress=False)
        torch.manual_seed(seed)
        options = {"activation": nn.SiLU, "batch_norm": True, "hidden": (256, 128)}
        deep = Autoencoder.mlp(self.shape, 8, **options)
        fit(deep, self.x, epochs=30, batch_size=200, lr=falling(1e-2, 30), seed=seed, progress=False)
        result["linear encoder, 8"] = self.error(shallow.reconstruct(self.x_test))
        result["deep, 8"] = self.error(deep.reconstruct(self.x_test))
        return result


# ------------------------------------------------------------------------------------- denoising


def falling(lr, epochs):
    """A step size that falls from lr to zero as half a cosine."""
    return lambda epoch: lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


class Denoising:
    """A network against the best linear map, noise with and without sparsity: the chapter "denoising"."""

    def __init__(self, images):
        self.shape = images.image_shape
        self.x, self.x_test = images.train[:10_000], images.test[:1000]
        self.large = len(self.x) > 5000
        self.corruptions = {
            "noise": partial(data.add_gaussian_noise, sigma=0.5),
            "masking": partial(data.mask, probability=0.5),
            "resolution": partial(data.downsample, factor=max(2, self.shape[1] // 7)),
        }

    def fixed(self):
        return {}

    def error(self, rebuilt):
        return (rebuilt.view_as(self.x_test) - self.x_test).square().flatten(1).sum(dim=1).mean().item()

    def linear(self, corruption, damaged):
        """The best affine map, from corrupted copies of the training images, on these."""
        clean = self.x.repeat(math.ceil(10_000 / len(self.x)), 1, 1, 1)
        corrupted, clean = corruption(clean).flatten(1).double(), clean.flatten(1).double()
        shift, offset = corrupted.mean(dim=0), clean.mean(dim=0)
        inverse = torch.linalg.pinv((corrupted - shift).T @ (corrupted - shift), hermitian=True, rtol=1e-6)
        matrix = inverse @ (corrupted - shift).T @ (clean - offset)
        return ((damaged.flatten(1).double() - shift) @ matrix + offset).float()

    def row(self, seed):
        result = {"tasks": {}, "pressures": {}}
        units, steps = (400, 900) if self.large else (256, 600)
        epochs = math.ceil(100 * steps / len(self.x))
        for name, corruption in self.corruptions.items():
            torch.manual_seed(seed)
            damaged = corruption(self.x_test)
            by_linear = self.linear(corruption, damaged)
            options = {"hidden": (units,), "code": "relu", "corruption": corruption}
            model = DenoisingAutoencoder.mlp(self.shape, units, **options)
            settings = {"epochs": epochs, "batch_size": 100, "lr": falling(0.003, epochs)}
            fit(model, self.x, **settings, seed=seed, progress=False)
            result["tasks"][name] = [self.error(found) for found in (by_linear, model.reconstruct(damaged))]
        noise = self.corruptions["noise"]
        torch.manual_seed(seed)
        damaged = noise(self.x_test)
        epochs = 6 if self.large else 35
        settings = {"epochs": epochs, "batch_size": 100, "lr": falling(0.005, epochs)}
        for name, weight, corruption in (
            ("neither", 0.0, None),
            ("sparse", 0.05, None),
            ("denoising", 0.0, noise),
            ("both", 0.05, noise),
        ):
            torch.manual_seed(seed)
            options = {"hidden": (), "weight": weight, "corruption": corruption}
            model = SparseAutoencoder.mlp(self.shape, 256, **options)
            fit(model, self.x, **settings, seed=seed, progress=False)
            with torch.no_grad():
                active = (model.encode(damaged) > 0).float().sum(dim=1).mean().item()
            result["pressures"][name] = {"noisy": self.error(model.reconstruct(damaged)), "active": active}
        return result


# ------------------------------------------------------------------------------------------ main

EXPERIMENTS = {
    "generating": Generating,
    "few_labels": FewLabels,
    "noisy_codes": NoisyCodes,
    "sparse": Sparse,
    "deep": Deep,
    "denoising": Denoising,
}


def main(experiments: dict, description: str) -> None:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("experiment", choices=experiments)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()

    name = data.chosen_name()
    images = data.load(name)
    path = RESULTS / f"seeds-{options.experiment.replace('_', '-')}-{name}.json"
    experiment = experiments[options.experiment](images)
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seeds": {}}
    result |= {"data": str(images), "versions": {"torch": version("torch")}}
    result |= {"fixed": experiment.fixed(), "seeds": result["seeds"]}
    for seed in range(options.seeds):
        if str(seed) not in result["seeds"]:
            result["seeds"][str(seed)] = rounded(experiment.row(seed))
            path.write_text(json.dumps(rounded(result), indent=1) + "\n", encoding="utf-8")
            print(f"{options.experiment} on {name}: seed {seed}", flush=True)


def rounded(value):
    """Floats with five digits, everywhere inside."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main(EXPERIMENTS, __doc__.split("\n")[0])
