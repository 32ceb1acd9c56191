"""Everything computes on the device it is given. Mixing devices is an error, and no GPU is needed to see it.

Two machines that are not there find it. On a **fake GPU** tensors have a shape, a dtype and a device, but no
values: nothing is computed, and what a real GPU refuses is refused. And with **"meta" as the default device**
real tensors on the CPU meet whatever the library made without naming a device.

To add a model is one line in ``support/models.py``; a function, one in ``FUNCTIONS``.
"""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from support.models import MODELS, POINT, Case
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from aecourse import (
    autoencoders,
    bayesian_mixtures,
    bounds,
    data,
    disentanglement,
    evaluate,
    gradients,
    inference,
    likelihoods,
    linear,
    linear_gaussian,
    mixtures,
    models,
    sprites,
)
from aecourse.autoencoders import DenoisingAutoencoder
from aecourse.linear import LinearVAE
from aecourse.train import fit, mean_loss
from aecourse.vae import VAE

BATCH = 4
LATENT = [n for n in MODELS if ("VAE" in n.split() or "IWAE" in n) and not MODELS[n].labels]


# ------------------------------------------------------------------ the machines that are not there


class FakeGPU(FakeTensorMode):
    """A GPU on which nothing has a value. Where the program asks for one, it is told something harmless.

    "All" is true and every other question is answered with no; a number is one half, a whole number 0 or 1 in
    turn; nothing is found, and masks let everything through. Backward passes do not run: gradients are zero.
    """

    turn = 1

    def dispatch(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        packet = function.overloadpacket
        if packet is aten._local_scalar_dense:
            if args[0].dtype == torch.bool:
                return getattr(args[0], "says_yes", False)
            self.turn = 1 - self.turn
            return 0.5 if args[0].dtype.is_floating_point else self.turn
        if packet in (aten.allclose, aten.equal):
            assert args[0].device == args[1].device, "Expected all tensors to be on the same device"
            return True
        if packet is aten.nonzero:
            return self.empty(0, args[0].dim(), device=args[0].device)
        if packet in (aten._unique2, aten.unique_dim):
            places = self.empty(*args[0].shape, device=args[0].device)
            with self:
                return args[0].flatten()[:2], places, places.flatten()[:2]
        if packet is aten.index:
            here, places = args[0], args[1]
            for place in places:
                if place is not None and place.device.type == "cuda" and here.device.type == "cpu":
                    raise RuntimeError("indices should be either on cpu or on the same device")
            if any(place is not None and place.dtype == torch.bool for place in places):
                # As if all were chosen.
                assert len(places) == sum(place is None for place in places) + 1
                return here
        result = super().dispatch(function, types, args, kwargs)
        if packet is aten.all:
            result.says_yes = True
        return result

    def empty(self, *size, device):
        with self:
            return torch.empty(size, dtype=torch.int64, device=device)


def no_gradients(outputs, inputs, *args, **kwargs):
    """In place of ``torch.autograd.grad``."""
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
    assert any(output.requires_grad for output in outputs)
    return tuple(torch.zeros_like(tensor) for tensor in inputs)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """In place of ``Tensor.numpy``: random numbers of the same shape."""
    if tensor.device.type != "cpu":
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    random = np.random.default_rng(0)
    if tensor.dtype.is_floating_point:
        return random.random(tuple(tensor.shape))
    return random.integers(3, size=tuple(tensor.shape))


@contextmanager
def fake_gpu():
    to, swap, gpu = nn.Module.to, torch.utils.swap_tensors, FakeGPU()

    def forgetful_swap(first, second):
        # A tensor that something remembers weakly cannot be exchanged; the machine remembers those it made.
        gpu.fake_tensor_converter.meta_converter.tensor_memo.clear()
        gpu.fake_tensor_converter.constant_storage_mapping.clear()
        swap(first, second)

    def one_way(model, device):
        # Back from the GPU is no way either: by then an optimiser holds the parameters.
        return model if torch.device(device).type == "cpu" else to(model, device)

    # Recurrent networks compute their steps one by one: cuDNN would ask for a driver.
    with pytest.MonkeyPatch.context() as patch, torch.backends.cudnn.flags(enabled=False), gpu:
        patch.setattr(torch.autograd, "grad", no_gradients)
        patch.setattr(torch.Tensor, "numpy", as_numpy)
        patch.setattr(torch.utils, "swap_tensors", forgetful_swap)
        patch.setattr(nn.Module, "to", one_way)
        yield torch.device("cuda")


@contextmanager
def meta_by_default():
    """The CPU, where everything that names no device ends up on one without storage."""
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        yield torch.device("cpu")
    finally:
        torch.set_default_device(before)


MACHINES = {"fake GPU": fake_gpu, "meta by default": meta_by_default}
on_both = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


def made(case: Case, device: torch.device, count: int = BATCH):
    """A model and what its loss takes, all on one device."""
    with device:
        model, x = case.make(), torch.rand(count, *case.shape)
        labels = {"labels": torch.arange(count) % case.labels} if case.labels else {}
    return model, x, labels


# --------------------------------------------------------------------- that they find what they should


def forgets_its_device(x):
    return x * torch.ones(x.shape[1:])


FORGETFUL = {
    "a tensor": forgets_its_device,
    "a constant's shape": lambda x: torch.cat([x, torch.zeros(1, *x.shape[1:])]),
    "noise": lambda x: x + torch.randn(x.shape),
    "a network": lambda x: nn.Linear(x.shape[1], 2)(x),
}
UNNOTICED_BY_META = {
    "rows": lambda x: x.index_select(0, torch.arange(2)),
    "rows of something else": lambda x: torch.ones(5, 6)[torch.arange(len(x), device=x.device)],
}
CANARIES = {f"{name}, {on}": (MACHINES[on], FORGETFUL[name]) for name in FORGETFUL for on in MACHINES}
CANARIES |= {name: (fake_gpu, wrong) for name, wrong in UNNOTICED_BY_META.items()}


@pytest.mark.parametrize(("machine", "wrong"), CANARIES.values(), ids=CANARIES)
def test_a_forgotten_device_is_an_error(machine, wrong):
    with machine() as device:
        x = torch.rand(BATCH, *POINT, device=device)
        assert x.device.type == device.type
        with pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
            wrong(x)


def test_a_fake_tensor_on_a_gpu_is_no_array():
    with fake_gpu() as device, pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        torch.rand(3, device=device).numpy()


# ---------------------------------------------------------------------------------- the models


def test_every_model_is_in_the_table():
    assert {type(case.make()).__name__ for case in MODELS.values()} >= set(models.MODELS)


@on_both
@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_every_loss_is_where_its_model_is(machine, case):
    with machine() as device:
        model, x, labels = made(case, device)
        model.validate(x, **labels)
        loss = model.loss(x, **labels)
        for name, term in loss.terms.items():
            assert term.device.type == device.type, name
            assert term.shape == (), name
        if device.type == "cpu":
            for term in (loss.total, *loss.own.values()):
                term.backward(retain_graph=True)
            assert any(parameter.grad is not None for parameter in model.parameters())
        # The same beta as an annealing schedule gives it, where there is one.
        if isinstance(model, VAE | LinearVAE):
            model.loss(x, beta=torch.ones((), device=device), **labels)


def looks(model, x, labels=None):
    """What one does with a model besides training it, as far as it can."""
    model = model if labels is None else model.given(labels[:1])
    if hasattr(model, "encode"):
        codes = model.encode(x)
        yield model.decode(codes if isinstance(codes, torch.Tensor) else codes[0])
    if hasattr(model, "reconstruct"):
        yield model.reconstruct(x)
    if isinstance(model, DenoisingAutoencoder) and model.sigma:
        yield model.score(x)
    if isinstance(model, VAE | LinearVAE):
        mean, logvar = model.encode(x)
        yield model.elbo(x, samples=2)
        yield model.log_weights(x, 3)
        yield model.kl_per_dimension(mean, logvar)
        yield model.log_prior(mean)
        yield model.log_joint(x, mean)
        yield model.sample(3)
    if isinstance(model, VAE):
        yield model.interpolate(x, x.flip(0), 4)
        yield model.traverse(mean, 0, [-1, 0, 1])
    if isinstance(model, LinearVAE):
        yield from model.ppca()
        yield model.expected_log_likelihood(x)


@on_both
@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_what_one_looks_at_is_where_its_model_is(machine, case):
    with machine() as device:
        model, x, labels = made(case, device)
        results = case.looks(model, x, **labels) if case.looks else looks(model, x, **labels)
        for result in results:
            assert result.device.type == device.type


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_fit_moves_its_data_to_the_gpu(case, monkeypatch):
    # All of fit but the compiler: data, order, schedules, loss, Adam, the watch, the history.
    def backward(total, inputs=None, retain_graph=False):
        assert total.device.type == "cuda"
        for parameter in model.parameters() if inputs is None else inputs:
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    for context in ("_number_format", "_channels_last"):  # they ask for values, or move memory
        monkeypatch.setattr(f"aecourse.train.{context}", lambda argument: nullcontext())
    with fake_gpu() as device:
        model, x, labels = made(case, torch.device("cpu"), count=2 * BATCH + 2)
        options = {"beta": lambda step: 0.5} if isinstance(model, VAE | LinearVAE) else {}
        if labels:
            options |= {**labels, "test_labels": labels["labels"]}
        seen, plain = [], model.loss

        def loss(batch, **extras):
            assert all(tensor.device.type == "cuda" for tensor in (batch, *extras.values()))
            seen.append(len(batch))
            return plain(batch, **extras)

        model.loss = loss
        options |= {"test_images": x, "transform": data.binarize, "progress": False}
        history = fit(model, x, epochs=2, batch_size=BATCH, device=str(device), **options)
        assert all(parameter.device.type == "cuda" for parameter in model.parameters())
    assert seen == [BATCH, BATCH, 2, 2 * BATCH + 2] * 2
    assert history.epochs == 2


@pytest.mark.parametrize("name", ["VAE bernoulli", "conditional VAE", "conv", "linear", "two players"])
def test_fit_does_not_care_about_the_default_device(name, tmp_path):
    case, histories, trained = MODELS[name], [], []
    for machine in (lambda: nullcontext(torch.device("cpu")), meta_by_default):
        file = tmp_path / f"{len(trained)}.pt"
        with machine() as device:
            torch.manual_seed(0)
            model, x, labels = made(case, device, count=2 * BATCH + 1)
            options = {"test_images": x, "transform": data.binarize, "checkpoint": file, "progress": False}
            options |= {**labels, "test_labels": labels["labels"]} if labels else {}
            options |= {"batch_size": BATCH, "checkpoint_steps": 2, "device": "cpu"}
            fit(model, x, epochs=1, **options)
            with device:
                model = case.make()  # resumed from the file
            history = fit(model, x, epochs=3, **options)
            tested = mean_loss(model, x, **labels)
        histories.append((history.train, history.test, tested))
        trained.append(model)
    assert histories[0] == histories[1]
    first, second = (model.state_dict() for model in trained)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------- evaluation, inference and the rest


@on_both
@pytest.mark.parametrize("name", LATENT)
def test_every_estimate_of_the_evidence(machine, name):
    with machine() as device:
        model, x, _ = made(MODELS[name], device, count=2)
        gaps = inference.inference_gaps(
            model, x, steps=1, samples=1, chains=2, temperatures=2, leapfrog=1, start="prior"
        )
        estimates = [
            evaluate.prior_monte_carlo(model, x, 3, chunk=2),
            evaluate.importance_sampling(model, x, 2),
            evaluate.iwae(model, x, 1, 2),
            evaluate.negative_log_likelihood(model, x, 2, batch_size=1, progress=False),
            inference.ais(model, x, chains=2, temperatures=2, leapfrog=1),
            (*gaps, gaps.approximation, gaps.amortization),
        ]
        for values in estimates:
            assert all(value.device.type == device.type for value in values)


def codes_of(device, count=60):
    """Means and log variances of codes, and classes of three factors."""
    mean, logvar = torch.randn(count, 2, device=device), torch.randn(count, 2, device=device)
    factors = torch.stack([torch.arange(count, device=device) // 2**i % 2 for i in range(3)], dim=1)
    return mean, logvar, factors


def mixture_on(device):
    eye = torch.eye(2, device=device).expand(3, 2, 2)
    return mixtures.gaussian_mixture(
        torch.ones(3, device=device), torch.rand(3, 2, device=device).cumsum(dim=0), eye
    )


def square(z):
    return z.square().sum(dim=-1)


FUNCTIONS = {
    "evaluate.kl_per_dimension": lambda m, v, f: evaluate.kl_per_dimension(m, v),
    "evaluate.active_units": lambda m, v, f: evaluate.active_units(m),
    "evaluate.mutual_information": lambda m, v, f: evaluate.mutual_information(m, v, chunk=25),
    "evaluate.gaussian_total_correlation": lambda m, v, f: evaluate.gaussian_total_correlation(m, v),
    "evaluate.probe_accuracy": lambda m, v, f: evaluate.probe_accuracy(
        m, f[:, 0], m, f[:, 0], per_class=1, repeats=2
    ),
    "evaluate.auroc": lambda m, v, f: evaluate.auroc(m[:, 0].contiguous(), v[:, 0]),
    "evaluate.log_mean_weight": lambda m, v, f: evaluate.log_mean_weight(m),
    "evaluate.frechet_distance": lambda m, v, f: evaluate.frechet_distance(m, v),
    "evaluate.frechet_floor": lambda m, v, f: evaluate.frechet_floor(m, repeats=2),
    "evaluate.gaussian_frechet_distance": lambda m, v, f: evaluate.gaussian_frechet_distance(
        m[0], mixture_on(m.device).covs[0], v[0], mixture_on(m.device).covs[1]
    ),
    "evaluate.coverage": lambda m, v, f: evaluate.coverage(m.softmax(dim=1)),
    "evaluate.mode_coverage": lambda m, v, f: evaluate.mode_coverage(mixture_on(m.device), m),
    "disentanglement.beta_vae_score": lambda m, v, f: disentanglement.beta_vae_score(m, f, votes=30),
    "disentanglement.factor_vae_score": lambda m, v, f: disentanglement.factor_vae_score(m, f, votes=30),
    "disentanglement.mutual_information_gap": lambda m, v, f: disentanglement.mutual_information_gap(m, f),
    "disentanglement.dci": lambda m, v, f: disentanglement.dci(m, f, trees=2).informativeness,
    "bounds.elbo": lambda m, v, f: bounds.elbo(m[:, 0], v[:, 0], 0.5),
    "bounds.elbo_from_joint": lambda m, v, f: bounds.elbo_from_joint(m[:, 0], v[:, 0]),
    "bounds.elbo_from_evidence": lambda m, v, f: bounds.elbo_from_evidence(m[:, 0], v[:, 0]),
    "bounds.elbo_over_classes": lambda m, v, f: bounds.elbo_over_classes(m, v.log_softmax(dim=1), m[0]),
    "bounds.iwae_bound": lambda m, v, f: bounds.iwae_bound(m),
    "bounds.free_bits": lambda m, v, f: bounds.free_bits(m, 0.1),
    "gradients.pathwise_gradient": lambda m, v, f: gradients.pathwise_gradient(square, m[0], v[0], m),
    "gradients.score_function_gradient": lambda m, v, f: gradients.score_function_gradient(
        square, m[0], v[0], m, gradients.leave_one_out_baseline(square(m))
    ),
    "gradients.RunningBaseline": lambda m, v, f: running_baseline(m[:, 0]),
    "gradients.log_weights": lambda m, v, f: gradients.log_weights(square, m, v, torch.stack([m, v])),
    "gradients.path_log_weights": lambda m, v, f: gradients.path_log_weights(
        square, m, v, torch.stack([m, v])
    ),
    "gradients.dreg_bound": lambda m, v, f: gradients.dreg_bound(
        square, m.clone().requires_grad_(), v, torch.stack([m, v])
    ),
    "gradients.gradient_snr": lambda m, v, f: gradients.gradient_snr(m),
    "likelihoods.full_gaussian_kl": lambda m, v, f: likelihoods.full_gaussian_kl(
        m, mixture_on(m.device).covs[:1].expand(len(m), 2, 2)
    ),
    "likelihoods.bernoulli_kl": lambda m, v, f: likelihoods.bernoulli_kl(m, v),
    "likelihoods.gaussian_entropy": lambda m, v, f: likelihoods.gaussian_entropy(v),
    "inference.em_step": lambda m, v, f: inference.em_step(m, mixture_on(m.device)).covs,
    "inference.fit_mixture": lambda m, v, f: inference.fit_mixture(m, 2, steps=2).history,
    "inference.mixture_bound": lambda m, v, f: inference.mixture_bound(
        m, mixture_on(m.device).responsibilities(m), mixture_on(m.device)
    ),
    "inference.variational_em": lambda m, v, f: (
        inference.variational_em(m, linear.fit_ppca(m, 1), steps=2, posterior="diagonal").history
    ),
    "bayesian_mixtures": lambda m, v, f: bayesian_mixture(m),
    "mixtures": lambda m, v, f: (
        *mixture_on(m.device).sample(5),
        mixture_on(m.device).score(m),
        mixture_on(m.device).denoise(m, 0.5),
    ),
    "linear.pca": lambda m, v, f: linear.pca(m),
    "linear.optimal_linear_denoiser": lambda m, v, f: linear.optimal_linear_denoiser(m, 0.5),
    "linear.distances": lambda m, v, f: (
        linear.axis_distance(linear.pca(m)[1], m[:2]) + linear.subspace_distance(linear.pca(m)[1], m[:2])
    ),
    "linear.PPCA": lambda m, v, f: ppca(linear.fit_ppca(m, 1), m),
    "linear_gaussian": lambda m, v, f: state_space(m),
    "linear.linear_vae_optimum": lambda m, v, f: linear.linear_vae_optimum(m, 1, 0.5),
    "autoencoders.contractive_penalty": lambda m, v, f: autoencoders.contractive_penalty(torch.tanh, m),
    "data.add_gaussian_noise": lambda m, v, f: data.add_gaussian_noise(m, 0.5),
    "data.mask": lambda m, v, f: data.mask(m, 0.5),
    "data.salt_and_pepper": lambda m, v, f: data.salt_and_pepper(m, 0.5),
    "data.downsample": lambda m, v, f: data.downsample(m.view(-1, 1, 2, 1), 2),
    "data.binarize": lambda m, v, f: data.binarize(m),
    "sprites": lambda m, v, f: sprites.draw_sprites(torch.zeros(2, 5, dtype=torch.int64, device=m.device), 8),
}


def running_baseline(values):
    baseline = gradients.RunningBaseline()
    baseline.update(values)
    baseline.update(values)
    return baseline.value


def bayesian_mixture(x):
    prior = bayesian_mixtures.mixture_prior(2, scale=torch.eye(2, device=x.device))
    fit = bayesian_mixtures.fit_bayesian_mixture(x, 3, prior, steps=2)
    q, r = fit.posterior, fit.responsibilities
    again = bayesian_mixtures.mixture_posterior(x, r, prior)
    bound = bayesian_mixtures.mixture_evidence_bound(x, r, again, prior)
    return *q, *q.mean_mixture(), q.log_predictive(x), fit.history, fit.counts, bound


def state_space(x):
    x, eye = x.unflatten(0, (4, -1)), torch.eye(2, device=x.device)
    system = linear_gaussian.state_space(eye, eye, eye, eye, x[0, 0], eye)
    filtered, smoothed = (
        estimate(system, x) for estimate in (linear_gaussian.kalman_filter, linear_gaussian.kalman_smoother)
    )
    last = filtered.means[:, -1], filtered.covs[-1]
    kernel = linear_gaussian.backward_kernel(system, *last, 2)
    moments = *system.rollout(*last, 3), *system.emit(*last), *system.sample(3, 4), system.log_likelihood(x)
    return *filtered, *smoothed, *kernel, *moments


def ppca(model, x):
    mean, cov = model.posterior(x)
    draws = model.sample(3), model.log_likelihood(x), model.log_joint(x, mean), model.diagonal_gap()
    return *draws, cov, *model.best_diagonal_posterior(x)


@on_both
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_every_function_stays_on_its_device(machine, function):
    with machine() as device:
        results = function(*codes_of(device))
        for result in results if isinstance(results, tuple) else (results,):
            # Scores that are measured by scikit-learn or NumPy, and their errors, are on the CPU.
            assert not isinstance(result, torch.Tensor) or result.device.type in (device.type, "cpu")


@on_both
def test_pyro(machine, monkeypatch):
    pyro_vae = pytest.importorskip("aecourse.pyro_vae")
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)  # it asks for values
    with machine() as device:
        model, x, _ = made(MODELS["VAE bernoulli"], device)
        bound = pyro_vae.bound(model, x)
        if device.type == "cpu":  # the fake GPU has no values
            assert -100 < bound < 0
            before = [parameter.clone() for parameter in model.parameters()]
            (trained,) = pyro_vae.train(model, x, batch_size=2)
            assert -100 < trained < 0
            assert not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("name", ["digits", "faces"])
def test_data_sets_are_loaded_to_the_cpu(name):
    with meta_by_default():
        images = data.load(name)
    assert {images.train.device, images.train_labels.device} == {torch.device("cpu")}


def test_plots_draw_what_is_on_the_cpu():
    pytest.importorskip("matplotlib")
    from aecourse import plots

    with meta_by_default() as device:
        model, x, _ = made(MODELS["VAE bernoulli"], device)
        for axes in (plots.images(x), plots.manifold(model, 3)):
            drawn = np.asarray(axes.images[0].get_array(), dtype=float)
            assert np.isfinite(drawn).any()
            assert np.nanmax(drawn) > np.nanmin(drawn)
