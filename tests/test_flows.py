"""Flow posteriors: the Jacobian, the density, and a gap that is known exactly and closed."""

import math

import pytest
import torch
from support.losses import assert_gradient_is_derivative, assert_single_precision_under_autocast
from torch import nn

from aecourse import data, evaluate
from aecourse.likelihoods import gaussian_log_density
from aecourse.train import fit, mean_loss
from aecourse.vae import VAE
from aecourse.zoo import flows
from aecourse.zoo.flows import AutoregressiveNetwork, FlowVAE, InverseAutoregressiveFlow
from aecourse.zoo.lossy_vae import AutoregressiveDecoder, LossyVAE

NETWORKS = [(1, ()), (1, (3,)), (4, ()), (4, (4,)), (5, (9, 7))]


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def spread(module: nn.Module, scale=1.0, seed=0) -> nn.Module:
    """In float64 with weights large enough to be far from the identity."""
    torch.manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * normal(*parameter.shape) / parameter.shape[-1] ** 0.5)
    return module.eval()


def small_flow(latent_dim=3, scale=1.0, **options) -> InverseAutoregressiveFlow:
    return spread(InverseAutoregressiveFlow(latent_dim, **({"hidden": (6,), "context": 2} | options)), scale)


def small_model(image_shape=(1, 2, 3), latent_dim=2, scale=1.0, **options) -> FlowVAE:
    sizes = {"hidden": (5,), "flow_hidden": (6,), "context": 3}
    return spread(FlowVAE.build("mlp", image_shape, latent_dim, **(sizes | options)), scale)


# -------------------------------------------------------------------------------- the flow


@pytest.mark.parametrize(("dim", "hidden"), NETWORKS)
def test_outputs_see_exactly_the_inputs_before_them(dim, hidden):
    net = spread(AutoregressiveNetwork(dim, hidden, context=2))
    seen, context = torch.zeros(2, dim, dim, dtype=torch.bool), torch.zeros(2, dim, 2, dtype=torch.bool)
    for _ in range(5):
        jacobians = torch.autograd.functional.jacobian(net, (normal(dim), normal(2)))
        for output, (by_z, by_h) in enumerate(jacobians):  # m and s
            seen[output] |= by_z != 0
            context[output] |= by_h != 0
    assert torch.equal(seen, torch.ones(dim, dim).tril(-1).bool().expand(2, -1, -1))
    assert context.all()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("hidden", [(), (6,), (8, 7)])
def test_the_log_determinant_is_that_of_the_jacobian(steps, hidden):
    flow = small_flow(steps=steps, hidden=hidden)
    z, context = normal(4, 3), normal(4, 2)
    after, log_det = flow(z, context)
    assert after.shape == z.shape
    assert log_det.shape == (4,)
    for n in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, n=n: flow(one[None], context[n : n + 1])[0][0], z[n]
        )
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(log_det[n], expected, rtol=0, atol=1e-12)
        assert jacobian.triu(1).any() == (steps > 1)  # the order is turned round
        if steps > 1:
            assert (jacobian != 0).all()
    assert log_det.std() > 0.1
    # Several draws at once are the same as one after the other.
    draws = normal(5, 4, 3)
    together, log_dets = flow(draws, context)
    for draw, one, log_det in zip(draws, together, log_dets):
        torch.testing.assert_close(flow(draw, context), (one, log_det), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_inverse_undoes_the_flow(steps):
    flow, z, context = small_flow(4, steps=steps, scale=0.7), normal(3, 5, 4), normal(5, 2)
    after, log_det = flow(z, context)
    before, same = flow.inverse(after, context)
    torch.testing.assert_close(before, z, rtol=0, atol=1e-10)
    torch.testing.assert_close(same, log_det, rtol=0, atol=1e-10)
    assert (after - z).abs().mean() > 0.3


def test_a_new_flow_changes_little_and_nothing_is_infinite():
    torch.manual_seed(0)
    flow = InverseAutoregressiveFlow(3, steps=1)
    _, log_det = flow(torch.randn(100, 3))
    assert ((log_det / 3).exp() - torch.sigmoid(torch.tensor(1.5))).abs().max() < 0.1
    with torch.no_grad():
        for s in (-1e4, 1e4):
            flow.nets[0].layers[-1].bias[3:] = s
            z, log_det = flow(torch.randn(5, 3))
            assert z.isfinite().all()
            assert log_det.isfinite().all()


# ------------------------------------------------------------------ the gap that is known exactly


class Affine(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return x @ self.weight.T + self.bias


class LinearGaussian:
    """x = W z + noise. The precision of z given x is I + W'W, the same for all x, and far from diagonal."""

    def __init__(self):
        r = 3.5235
        self.weight = torch.tensor(
            [[2.0, r / 2], [0.0, math.sqrt(4 - r**2 / 4)], [0.0, 0.0]], dtype=torch.float64
        )
        self.precision = torch.eye(2, dtype=torch.float64) + self.weight.T @ self.weight
        self.to_mean = torch.linalg.solve(self.precision, self.weight.T)  # E[z|x] = to_mean x
        cov = torch.eye(3, dtype=torch.float64) + self.weight @ self.weight.T
        self.evidence = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), cov)
        self.x = self.evidence.sample((5,))
        self.gap = 0.5 * (self.precision.diagonal().log().sum() - self.precision.logdet())
        self.best_logvar = -self.precision.diagonal().log()  # of a diagonal q

    def model(self, flow=None, logvar=None) -> VAE:
        """With the exact mean of z_0, and the logvar of the best diagonal q, or this one."""
        logvar = self.best_logvar if logvar is None else logvar
        bias = torch.cat([torch.zeros(2, dtype=torch.float64), logvar])
        encoder = Affine(torch.cat([self.to_mean, torch.zeros_like(self.to_mean)]), bias)
        decoder = Affine(self.weight.clone(), torch.zeros(3, dtype=torch.float64)).requires_grad_(False)
        shapes = {"image_shape": (3,), "latent_dim": 2, "likelihood": "gaussian"}
        if flow is not None:
            return FlowVAE(encoder, decoder, flow, **shapes)

        class Chunks(nn.Module):
            def forward(self, x):
                return encoder(x).chunk(2, dim=1)

        return VAE(Chunks(), decoder, **shapes)


@pytest.fixture(scope="module")
def linear() -> LinearGaussian:
    torch.manual_seed(0)
    return LinearGaussian()


def test_a_linear_step_closes_the_gap(linear):
    """Cholesky: the weights become constant, log p(x) for every draw."""
    assert abs(linear.gap - 0.3432) < 5e-5
    log_p = linear.evidence.log_prob(linear.x)
    # The best diagonal q loses it: E_q[log p(x, z)] + entropy, which is the mean of these up to their noise.
    torch.manual_seed(0)
    weights = linear.model().log_weights(linear.x, 20_000)
    error = weights.std(dim=0) / 20_000**0.5
    assert ((log_p - weights.mean(dim=0) - linear.gap).abs() / error).max() < 4
    assert error.max() < 0.01

    flow = InverseAutoregressiveFlow(2, steps=1, hidden=()).double()
    triangle = torch.linalg.cholesky(torch.linalg.inv(linear.precision))
    std = 2 * triangle.diagonal()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()  # sigma is 1/2, and a step z = (z_0 + m) / 2
        flow.nets[0].layers[0].weight[1, 0] = 2 * triangle[1, 0] / std[0]
        model = linear.model(flow, logvar=2 * std.log())
        step = (torch.eye(2, dtype=torch.float64) + flow.nets[0].layers[0].weight[:2]) / 2
        model.encoder.weight[:2] = torch.linalg.solve(step, linear.to_mean)  # so that the mean arrives right
    weights = model.log_weights(linear.x, 50)
    torch.testing.assert_close(weights, log_p.expand(50, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.elbo(linear.x, 3), log_p, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.loss(linear.x).total, -log_p.mean(), rtol=0, atol=1e-12)
    value, error = evaluate.importance_sampling(model, linear.x, 10)
    torch.testing.assert_close(value, log_p, rtol=0, atol=1e-12)
    assert error.max() < 1e-12


def test_training_closes_the_gap(linear):
    """From the best diagonal q, with the decoder as it is."""
    torch.manual_seed(0)
    x = linear.evidence.sample((1000,))
    model = linear.model(InverseAutoregressiveFlow(2, steps=1, hidden=()).double())
    log_p = linear.evidence.log_prob(x)
    assert (log_p - model.elbo(x, 20)).mean() > 0.3432
    loop = {"batch_size": 200, "device": "cpu", "progress": False}
    fit(model, x, epochs=60, lr=lambda epoch: 0.1 * 0.93**epoch, **loop)
    assert -0.001 < (log_p - model.elbo(x, 20)).mean() < 0.01  # 0.0005 measured


def grid(size=261, limit=9.0):
    """Points of a plane, and the logarithm of the area that each stands for."""
    line = torch.linspace(-limit, limit, size, dtype=torch.float64)
    return torch.cartesian_prod(line, line), 2 * math.log(float(line[1] - line[0]))


def test_the_density_is_one_and_a_wrong_q_loses_its_divergence_from_the_posterior():
    """Where the weights vary, and a mistake in where z is drawn shows."""
    model, x = small_model(scale=0.8, steps=2), (torch.rand(2, 1, 2, 3) > 0.5).double()
    with torch.no_grad():
        for net in model.flow.nets:
            net.layers[-1].bias[2:] += 3  # q is wide enough for importance weights
    z, log_area = grid()
    mean, logvar, context = model.base(x)
    for n in range(2):
        context_n = context[n : n + 1].expand(len(z), -1)
        with torch.no_grad():
            z0, log_det = model.flow.inverse(z, context_n)
            log_q = gaussian_log_density(z0, mean[n : n + 1], logvar[n : n + 1]) - log_det
            log_joint = model.log_joint(x[n : n + 1].expand(len(z), -1, -1, -1), z)
            log_p = (log_joint + log_area).logsumexp(dim=0)
            q = (log_q + log_area).exp()
            there = q > 0  # far away it is too small for a number
            bound = (q * (log_joint - log_q))[there].sum()
        assert abs(q.sum() - 1) < 1e-3
        assert log_p - bound > 0.2  # a wrong q indeed
        torch.manual_seed(n)
        weights = model.log_weights(x[n : n + 1], 20_000)
        assert abs(weights.mean() - bound) < 4 * weights.std() / 20_000**0.5
        assert weights.std() / 20_000**0.5 < 0.02
        assert abs(model.elbo(x[n : n + 1], 20_000) - bound).max() < 0.05
        value, error = evaluate.importance_sampling(model, x[n : n + 1], 20_000)
        assert abs(value - log_p) < 4 * error + 1e-3
        model.samples = 20_000
        loss = model.loss(x[n : n + 1])
        assert abs(loss.total + bound) < 0.05
        kl = (q * (log_q - model.log_prior(z)))[there].sum()
        assert abs(loss.parts["kl"] - kl) < 0.05


def test_a_flow_as_prior_is_the_same_flow_as_posterior():
    """A change of variables: a Gaussian posterior under a prior made by a flow f, p(z) = N(f^-1(z)) / |det|,
    is a flow posterior under N(0, I) whose decoder starts with f. Exact for any weights."""
    torch.manual_seed(0)
    flow, x = small_flow(2, scale=0.6, context=0), (torch.rand(4, 6) > 0.5).double()
    plain = spread(VAE.mlp((6,), 2, hidden=(5,)))

    class Encoder(nn.Module):
        def forward(self, x):
            return torch.cat(plain.encoder(x), dim=1)

    class Decoder(nn.Module):
        def forward(self, noise):
            return plain.decoder(flow.inverse(noise)[0])  # f is the flow's inverse: drawing is sequential

    model = FlowVAE(Encoder(), Decoder(), flow, image_shape=(6,), latent_dim=2)
    torch.manual_seed(1)
    weights = model.log_weights(x, 7)

    torch.manual_seed(1)
    mean, logvar = plain.encode(x)
    z = mean + torch.exp(logvar / 2) * normal(7, 4, 2)
    noise, log_det = flow(z)
    log_prior = plain.log_prior(noise) + log_det
    expected = plain.log_likelihood(x, z) + log_prior - gaussian_log_density(z, mean, logvar)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-10)
    assert weights.std() > 0.1


# --------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("samples", [1, 3])
def test_the_loss_reads_as_the_algorithm_and_a_batch_has_the_mean_of_its_examples(samples, monkeypatch):
    """Algorithm 1 of the paper, one example and one draw after the other."""
    model, x = small_model(samples=samples, beta=0.7), (torch.rand(4, 1, 2, 3) > 0.5).double()
    noise = normal(samples, 4, 2)
    with monkeypatch.context() as patch:
        draw = lambda mean, logvar, n: mean + torch.exp(logvar / 2) * noise[:, : len(mean)]  # noqa: E731
        patch.setattr(flows, "reparameterize", draw)
        several, first = model.loss(x), model.loss(x[:1])
    nets, losses, kls = model.flow.nets, [], []
    for n in range(4):
        encoded = model.encoder(x[n : n + 1])[0]
        mean, logvar, h = encoded[:2], encoded[2:4], encoded[4:]
        of_draws, of_kl = [], []
        for e in noise[:, n]:
            z = torch.exp(logvar / 2) * e + mean
            log_q = -(logvar / 2 + e**2 / 2 + math.log(2 * math.pi) / 2).sum()
            for t, net in enumerate(nets):
                z = z.flip(0) if t else z
                m, s = net(z, h)
                z = torch.sigmoid(s) * z + torch.sigmoid(-s) * m
                log_q = log_q - torch.sigmoid(s).log().sum()
            log_prior = -(z**2 / 2 + math.log(2 * math.pi) / 2).sum()
            logits = model.decoder(z[None])[0]
            log_p = torch.where(x[n] > 0, torch.sigmoid(logits).log(), torch.sigmoid(-logits).log()).sum()
            of_kl.append(log_q - log_prior)
            of_draws.append(0.7 * of_kl[-1] - log_p)
        losses.append(torch.stack(of_draws).mean())
        kls.append(torch.stack(of_kl).mean())
    torch.testing.assert_close(several.total, torch.stack(losses).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(several.parts["kl"], torch.stack(kls).mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(first.total, losses[0], rtol=0, atol=1e-12)
    # With a weight of its own in place of the model's.
    torch.manual_seed(0)
    loss = model.loss(x, beta=torch.tensor(2.0))
    torch.testing.assert_close(
        loss.total, (loss.parts["reconstruction"] + 2 * loss.parts["kl"]), rtol=0, atol=1e-12
    )


def test_the_gradient_of_the_loss_is_its_derivative():
    model = small_model((4,), hidden=(3,), flow_hidden=(2,), context=1, activation=nn.Tanh, samples=2)
    x = (torch.rand(3, 4) > 0.5).double()
    for gradient in assert_gradient_is_derivative(model, x):
        assert gradient.any()  # no parameter is idle but masked weights


def test_bounds_stay_in_single_precision_under_autocast():
    model, x = small_model().float(), (torch.rand(6, 1, 2, 3) > 0.5).float()
    assert_single_precision_under_autocast(model, x)


# ------------------------------------------------------------------------- what it can do


@pytest.mark.parametrize(("kind", "shape"), [("mlp", (5,)), ("conv", (3, 8, 9)), ("residual", (1, 8, 8))])
@pytest.mark.parametrize("options", [{}, {"likelihood": "categorical", "levels": 3}, {"context": 0}])
def test_all_that_a_vae_can_do(kind, shape, options):
    model, x = FlowVAE.build(kind, shape, 2, **options), torch.rand(6, *shape)
    z, log_q = model.posterior(x, 3)
    assert z.shape == (3, 6, 2)
    assert log_q.shape == model.log_weights(x, 3).shape == (3, 6)
    assert model.posterior(x)[0].shape == model.codes(x).shape == (6, 2)
    assert model.elbo(x, samples=2).shape == (6,)
    assert model.loss(x).total.shape == ()
    assert model.reconstruct(x).shape == x.shape
    assert model.sample(4).shape == (4, *shape)
    assert model.interpolate(x, x.flip(0), 3).shape == (3, *x.shape)
    assert model.traverse(model.codes(x), 1, [-1.0, 1.0]).shape == (2, *x.shape)
    model.validate(x)


def test_codes_are_the_flow_at_the_mean_of_its_base():
    model, x = small_model(), torch.rand(4, 1, 2, 3).double()
    mean, _, context = model.base(x)
    assert torch.equal(model.codes(x), model.flow(mean, context)[0])
    assert torch.equal(model.reconstruct(x), model.decode(model.codes(x)))
    ends = model.interpolate(x, x.flip(0), 2)
    torch.testing.assert_close(ends, torch.stack([model.reconstruct(x), model.reconstruct(x.flip(0))]))


def test_it_is_the_posterior_of_any_vae():
    """Of a decoder with a window, for one: two lines."""

    class FlowLossyVAE(FlowVAE, LossyVAE):
        pass

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(9, 2 * 2 + 3))
    decoder = AutoregressiveDecoder(
        nn.Sequential(nn.Linear(2, 9), nn.Unflatten(1, (1, 3, 3))), (1, 3, 3), planes=1
    )
    flow = InverseAutoregressiveFlow(2, context=3)
    model = FlowLossyVAE(encoder, decoder, flow, image_shape=(1, 3, 3), latent_dim=2, progress=False)
    x = (torch.rand(5, 1, 3, 3) > 0.5).float()
    model.loss(x).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.log_weights(x, 4).shape == (4, 5)
    assert set(model.reconstruct(x).unique().tolist()) <= {0.0, 1.0}
    assert model.sample(2).shape == (2, 1, 3, 3)


def test_training_on_digits():
    digits = data.load("digits")
    torch.manual_seed(0)
    model = FlowVAE.build("mlp", (1, 8, 8), 6, hidden=(64,))
    fit(model, digits.train.round(), epochs=10, batch_size=64, lr=5e-3, device="cpu", progress=False)
    tested = mean_loss(model, digits.test.round())
    assert 19 < tested["total"] < 20.9  # 20.5 measured
    assert 2.5 < tested["kl"] < 4.5


# ---------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, r"^steps is 0 but must be at least 1"),
        ({"steps": 1.5}, TypeError, r"^steps is 1\.5 but must be a whole number"),
        ({"context": -1}, ValueError, r"^context is -1 but must be at least 0"),
        ({"flow_hidden": (2,)}, ValueError, r"^hidden is \(2,\) but needs at least 3 units in each layer"),
        ({"free_bits": 0.1}, ValueError, r"^free_bits needs the KL of each latent variable"),
        ({"beta": -1}, ValueError, r"^beta is -1 but must be at least 0"),
        ({"samples": 0}, ValueError, r"^samples is 0 but must be at least 1"),
        ({"likelihood": "poisson"}, ValueError, r"^likelihood is 'poisson' but must be one of"),
        ({"betta": 2}, TypeError, "betta"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        FlowVAE.build("mlp", (6,), 3, **options)


def test_bad_inputs_are_refused():
    model, x, z, h = small_model(), torch.rand(4, 1, 2, 3).double(), normal(4, 2), normal(4, 3)
    other = InverseAutoregressiveFlow(3)
    for call, error, message in (
        (lambda: model.encode(x), NotImplementedError, r"^q\(z\|x\) of a FlowVAE has no mean and logvar"),
        (
            lambda: model.loss(x[0]),
            ValueError,
            r"^x has shape \(1, 2, 3\) but this model needs \(batch, 1, 2",
        ),
        (lambda: model.log_weights(x, 0), ValueError, r"^samples is 0 but must be at least 1"),
        (lambda: model.elbo(x, 2.0), TypeError, r"^samples is 2\.0 but must be a whole number"),
        (lambda: model.sample(0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda: model.interpolate(x, x, 1), ValueError, r"^steps is 1 but must be at least 2"),
        (lambda: model.validate(x * math.nan), ValueError, r"^images holds 24 values that are NaN"),
        (lambda: model.flow(z[:, :1], h), ValueError, r"^z has shape \(4, 1\) but this model needs"),
        (lambda: model.flow(z), TypeError, r"^context must be a torch\.Tensor, not NoneType"),
        (lambda: model.flow(z, h[:, :2]), ValueError, r"^context has shape \(4, 2\) but this model needs"),
        (lambda: model.flow(z, h[:3]), ValueError, r"^context is of 3 examples but z of 4"),
        (
            lambda: FlowVAE(model.encoder, model.decoder, other, image_shape=(1, 2, 3), latent_dim=2),
            ValueError,
            r"^flow has 3 variables but latent_dim is 2",
        ),
        (
            lambda: FlowVAE(
                nn.Flatten(), model.decoder, model.flow, image_shape=(1, 2, 3), latent_dim=2
            ).loss(x),
            ValueError,
            r"^the encoder's output has shape \(4, 6\) but this model needs \(batch, 7\)",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
