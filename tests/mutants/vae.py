"""Wrong and right versions of the classes and functions of the assignment `vae`, for test_assignments.py.

The slips come from public issue threads (exp(logvar) as standard deviation: keras#3283; softplus on a
log-variance: lecture 002; averaged KL: keras-io#270; the mean decoded in a bound: pytorch/examples#419), from
the pitfalls chapter of the book, and from what the tasks invite.
"""

from mutants import versions_of

# The start of every version. A class inherits from the model solution of its name and changes one method.
STARTS = {
    "Encoder": """class Encoder(Encoder):
    def forward(self, x):
        return encode(self, x)


def encode(self, x):
    h = torch.relu(self.hidden(x))
    m, s = self.mean(h), self.logvar(h)
""",
    "Decoder": """class Decoder(Decoder):
    def forward(self, z):
        return decode(self, z)


def decode(self, z):
    a = self.logits(torch.relu(self.hidden(z)))
""",
    "VAE": """class VAE(VAE):
    def sample_latent(self, mean, logvar, generator):
        return draw_latent(self, mean, logvar, generator)


def draw_latent(self, mean, logvar, generator):
    std = torch.exp(0.5 * logvar)
""",
    "kl_weight": "def kl_weight(step, warmup):\n",
    "negative_elbo": """def negative_elbo(model, x, beta, generator):
    mean, logvar = model.encoder(x)
    z = model.sample_latent(mean, logvar, generator)
    logits = model.decoder(z)
    bce = F.binary_cross_entropy_with_logits
    nll = bce(logits, x, reduction="none").sum(1)
    kl = 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
""",
}
versions = versions_of(STARTS)

TRAIN = """def train(images, latent_dim, epochs, seed):
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x = images.reshape(len(images), -1)
    vae = VAE(x.shape[1], 64, latent_dim)
    optimiser = torch.optim.Adam(vae.parameters(), lr=3e-3)
    step, total = 0, epochs * -(-len(x) // 50)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            optimiser.zero_grad()
            beta = kl_weight(step, total // 5)
            loss = negative_elbo(vae, x[rows], beta, generator)
            loss.backward()
            optimiser.step()
            step += 1
    torch.set_rng_state(state)
    vae.eval()
    return vae"""


def trainers(*changes) -> list:
    """Versions of TRAIN: (name, loses, says, old, new), several old and new lines in turn."""
    blocks = []
    for name, loses, says, *pairs in changes:
        source = TRAIN
        for old, new in zip(pairs[::2], pairs[1::2]):
            assert source.count(old) == 1, (name, old)
            source = source.replace(old, new)
        blocks.append(f"# {name} | {loses} | {says}\n{source}")
    return versions("train", "\n".join(blocks))


MENDED = """class MendedVAE(SickVAE):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__(dim, hidden, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def sample_latent(self, mean, logvar, generator):
        noise = torch.randn(mean.shape, generator=generator)
        return mean + (0.5 * logvar).exp() * noise

    def reconstruction(self, x, logits):
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=1)

    def loss(self, x, beta, generator):
        mean, logvar = self.encode(x)
        logits = self.decode(self.sample_latent(mean, logvar, generator))
        error = self.reconstruction(x, logits).mean()
        kl = self.kl(mean, logvar).mean()
        return error + beta * kl

    def elbo(self, x, generator):
        mean, logvar = self.encode(x)
        z = self.sample_latent(mean, logvar, generator)
        return -self.reconstruction(x, self.decode(z)) - self.kl(mean, logvar)

    def fit(self, x, steps, lr, generator):
        parts = (self.trunk, self.mean, self.logvar, self.decoder)
        optimiser = torch.optim.Adam([w for part in parts for w in part.parameters()], lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            self.loss(x, 1.0, generator).backward()
            optimiser.step()"""


def patients(*changes) -> list:
    """Versions of MENDED: (name, loses, says, old, new), several old and new lines in turn."""
    blocks = []
    for name, loses, says, *pairs in changes:
        source = MENDED
        for old, new in zip(pairs[::2], pairs[1::2]):
            assert source.count(old) == 1, (name, old)
            source = source.replace(old, new)
        blocks.append(f"# {name} | {loses} | {says}\n{source}")
    return versions("MendedVAE", "\n".join(blocks))


WRONG = [
    *versions(
        "Encoder",
        """
# encoder_softplus | values gradients | a softplus is put on the log-variance
return m, F.softplus(s)
# encoder_relu_mean | values gradients | a ReLU is put on the mean
return m.relu(), s
# encoder_relu_both | values gradients | a ReLU is put on the mean; a ReLU is put on the log-variance
return m.relu(), s.relu()
# encoder_tanh_mean | values gradients | a tanh is put on the mean
return m.tanh(), s
# encoder_clamped | values gradients | the log-variance is limited
return m, s.clamp(-10, 10)
# encoder_variance | values gradients | the exponential of the log-variance is returned
return m, s.exp()
# encoder_std | values gradients | the exponential of the log-variance is returned
return m, (s / 2).exp()
# encoder_swapped | values | the mean comes from the head of the log-variance
return s, m
# encoder_one_head | values gradients | the log-variance comes from the head of the mean
return m, m
# encoder_no_relu | values gradients | the hidden layer has no ReLU
h = self.hidden(x)
return self.mean(h), self.logvar(h)
# encoder_tanh_hidden | values gradients | the hidden layer has a tanh
h = torch.tanh(self.hidden(x))
return self.mean(h), self.logvar(h)
# encoder_leaky | values gradients | another activation
h = F.leaky_relu(self.hidden(x))
return self.mean(h), self.logvar(h)
# encoder_joined | checks values gradients | forward returns something else | got a tensor of shape
return torch.cat([m, s], dim=1)
# encoder_dropout | checks values gradients | two calls differ | depends on the other rows
h = F.dropout(h, 0.2)
return self.mean(h), self.logvar(h)
# encoder_detached | gradients | gradient for logvar.bias is not
return m, s.detach()
# encoder_detached_hidden | gradients | gradient for hidden.bias is not
return m, self.logvar(h.detach())
# encoder_in_place | checks values gradients | changed in place | depends on the other rows
x -= 0.5
h = torch.relu(self.hidden(x))
return self.mean(h), self.logvar(h)
# encoder_shared_heads | values gradients | the mean comes from the head of the log-variance
class Encoder(torch.nn.Module):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__()
        self.hidden = torch.nn.Linear(dim, hidden)
        self.mean = torch.nn.Linear(hidden, latent_dim)
        self.logvar = self.mean

    def forward(self, x):
        h = torch.relu(self.hidden(x))
        return self.mean(h), self.logvar(h)
# encoder_one_layer | checks values gradients | the state_dict misses hidden.weight
class Encoder(torch.nn.Module):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(dim, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2 * latent_dim)
        )

    def forward(self, x):
        return self.net(x).chunk(2, dim=1)
# encoder_batch_norm | checks values gradients | unexpected parameter | unexpected norm.weight
class Encoder(Encoder):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__(dim, hidden, latent_dim)
        self.norm = torch.nn.BatchNorm1d(hidden)

    def forward(self, x):
        h = torch.relu(self.norm(self.hidden(x)))
        return self.mean(h), self.logvar(h)
# encoder_arguments | checks values gradients | another shape than asked
class Encoder(Encoder):
    def __init__(self, dim, latent_dim, hidden):
        super().__init__(dim, hidden, latent_dim)
# encoder_not_a_module | checks values gradients | not a module
class Encoder:
    def __init__(self, dim, hidden, latent_dim):
        self.hidden = torch.nn.Linear(dim, hidden)
        self.mean = torch.nn.Linear(hidden, latent_dim)
        self.logvar = torch.nn.Linear(hidden, latent_dim)

    def forward(self, x):
        h = torch.relu(self.hidden(x))
        return self.mean(h), self.logvar(h)
# encoder_no_super | checks values gradients | raised an error | raised AttributeError
class Encoder(torch.nn.Module):
    def __init__(self, dim, hidden, latent_dim):
        self.hidden = torch.nn.Linear(dim, hidden)
""",
    ),
    *versions(
        "Decoder",
        """
# decoder_sigmoid | values | a sigmoid is put on the logits
return a.sigmoid()
# decoder_relu | values | a ReLU is put on the logits
return a.relu()
# decoder_tanh | values | a tanh is put on the logits
return torch.tanh(a)
# decoder_clamped | values | the logits is limited
return a.clamp(-10, 10)
# decoder_no_relu | values | the hidden layer has no ReLU
return self.logits(self.hidden(z))
# decoder_softmax | values | a softmax is put on the logits
return a.softmax(dim=1)
# decoder_detached | values | gradient for hidden.bias is not
return self.logits(torch.relu(self.hidden(z)).detach())
# decoder_over_batch | checks values | 
return a - a.mean(0)
# decoder_arguments | checks values | another shape than asked
class Decoder(Decoder):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__(latent_dim, hidden, dim)
""",
    ),
    *versions(
        "VAE",
        """
# vae_variance_as_std | noise | exp(logvar), the variance, is taken as the standard deviation
return mean + logvar.exp() * torch.randn(mean.shape, generator=generator)
# vae_logvar_as_std | noise | logvar is taken as the standard deviation
return mean + logvar * torch.randn(mean.shape, generator=generator)
# vae_unscaled | noise | the noise is not scaled at all
return mean + torch.randn(mean.shape, generator=generator)
# vae_divided | noise | divided by the standard deviation
return mean + torch.randn(mean.shape, generator=generator) / std
# vae_softplus_std | noise | a softplus stands where
return mean + F.softplus(logvar) * torch.randn(mean.shape, generator=generator)
# vae_root_of_std | noise | the root of the standard deviation
return mean + std.sqrt() * torch.randn(mean.shape, generator=generator)
# vae_uniform | noise | the noise is uniform
return mean + std * torch.rand(mean.shape, generator=generator)
# vae_uniform_standard | noise | not normal
return mean + std * math.sqrt(12) * (torch.rand(mean.shape, generator=generator) - 0.5)
# vae_no_mean | noise | the mean is left out
return std * torch.randn(mean.shape, generator=generator)
# vae_randn_like | checks noise | global state
return mean + std * torch.randn_like(mean)
# vae_global_state | checks noise | global state
return mean + std * torch.randn(mean.shape)
# vae_normal_sample | checks noise | global state
return torch.distributions.Normal(mean, std).rsample()
# vae_own_seed | noise | does not draw from the generator
generator = torch.Generator().manual_seed(0)
return mean + std * torch.randn(mean.shape, generator=generator)
# vae_shared_noise | noise |
return mean + std * torch.randn(mean.shape[1], generator=generator)
# vae_clamped | noise | Is logvar limited
return mean + torch.exp(0.5 * logvar.clamp(-10, 10)) * torch.randn(mean.shape, generator=generator)
# vae_one_noise_per_row | noise | all latents of an example the same noise
return mean + std * torch.randn(len(mean), 1, generator=generator)
# vae_antithetic | noise | not independent
half = torch.randn((len(mean) + 1) // 2, mean.shape[1], generator=generator)
return mean + std * torch.cat([half, -half])[: len(mean)]
# vae_mean_in_eval | values noise | the mean in evaluation mode
if not self.training:
    return mean
return mean + std * torch.randn(mean.shape, generator=generator)
# vae_torch_normal | noise | no gradient of sample_latent reaches mean
return torch.normal(mean.detach(), std.detach(), generator=generator)
# vae_detached_std | noise | reaches logvar
return mean + std.detach() * torch.randn(mean.shape, generator=generator)
# vae_no_grad | noise | reaches mean
with torch.no_grad():
    return mean + std * torch.randn(mean.shape, generator=generator)
# vae_extra_gradient | noise | gradient of sample_latent for logvar
z = mean + std * torch.randn(mean.shape, generator=generator)
return z + std - std.detach()
# vae_forward_detached | values | comes back through its logits
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample_latent(mean, logvar, generator).detach()), mean, logvar
# vae_forward_own_generator | values | global state
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        z = self.sample_latent(mean, logvar, torch.default_generator)
        return self.decoder(z), mean, logvar
# vae_forward_mean | values | decodes the mean
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        return self.decoder(mean), mean, logvar
# vae_forward_mean_in_eval | values | decodes the mean in evaluation mode
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        z = self.sample_latent(mean, logvar, generator) if self.training else mean
        return self.decoder(z), mean, logvar
# vae_forward_probabilities | values | probabilities are returned, not logits
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample_latent(mean, logvar, generator)).sigmoid(), mean, logvar
# vae_forward_order | values | wrong order
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample_latent(mean, logvar, generator)), logvar, mean
# vae_forward_logits_only | checks values | forward returns something else | got a tensor of shape
class VAE(VAE):
    def forward(self, x, generator):
        return self.decoder(self.sample_latent(*self.encoder(x), generator))
# vae_forward_variance | values | not the decoder's at a draw of sample_latent
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        z = mean + logvar.exp() * torch.randn(mean.shape, generator=generator)
        return self.decoder(z), mean, logvar
# vae_reconstruct_logits | checks values | the logits are returned, without a sigmoid
class VAE(VAE):
    def reconstruct(self, x):
        return self.decoder(self.encoder(x)[0])
# vae_reconstruct_sampled | values | Two calls differ
class VAE(VAE):
    def reconstruct(self, x):
        return self(x, torch.default_generator)[0].sigmoid()
# vae_reconstruct_rounded | values | rounded to 0 or 1
class VAE(VAE):
    def reconstruct(self, x):
        return self.decoder(self.encoder(x)[0]).sigmoid().round()
# vae_sample_logits | checks samples | the logits are returned, without a sigmoid
class VAE(VAE):
    def sample(self, n, generator):
        return self.decoder(torch.randn(n, self.latent_dim, generator=generator))
# vae_sample_two_sigmoids | samples | the sigmoid is taken twice
class VAE(VAE):
    def sample(self, n, generator):
        return self.decoder(torch.randn(n, self.latent_dim, generator=generator)).sigmoid().sigmoid()
# vae_sample_black_and_white | samples | pixels are drawn or rounded
class VAE(VAE):
    def sample(self, n, generator):
        p = self.decoder(torch.randn(n, self.latent_dim, generator=generator)).sigmoid()
        return torch.bernoulli(p, generator=generator)
# vae_sample_uniform | samples | z is uniform
class VAE(VAE):
    def sample(self, n, generator):
        return self.decoder(torch.rand(n, self.latent_dim, generator=generator)).sigmoid()
# vae_sample_one_z | samples | all images of sample are the same
class VAE(VAE):
    def sample(self, n, generator):
        return self.decoder(torch.randn(1, self.latent_dim, generator=generator)).sigmoid().expand(n, -1)
# vae_sample_global | samples | global state
class VAE(VAE):
    def sample(self, n, generator):
        return self.decoder(torch.randn(n, self.latent_dim)).sigmoid()
# vae_sample_wide | samples | not the spread of the prior
class VAE(VAE):
    def sample(self, n, generator):
        return self.decoder(2 * torch.randn(n, self.latent_dim, generator=generator)).sigmoid()
# vae_encoder_arguments | checks values samples | another shape than asked
class VAE(VAE):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__(hidden, dim, latent_dim)
""",
    ),
    *versions(
        "kl_weight",
        """
# weight_beyond_1 | checks values | grows beyond 1
return step / warmup if warmup else 1.0
# weight_floor | values | a step, not a line
return min(step // warmup, 1) if warmup else 1.0
# weight_late | checks values | off by one step
return min((step + 1) / warmup, 1.0) if warmup else 1.0
# weight_early | values | off by one step
return min(step / (warmup + 1), 1.0) if warmup else 1.0
# weight_no_zero | checks values | divided by zero
return min(step / warmup, 1.0)
# weight_epsilon | checks values | ZERO
return min(step / (warmup + 1e-8), 1.0)
# weight_epsilon_guarded | values | not exactly 0 or 1
return min(step / (warmup + 1e-8), 1.0) if warmup else 1.0
# weight_falls | checks values | it falls
return max(1 - step / warmup, 0.0) if warmup else 0.0
# weight_step | values | a step, not a line
return 1.0 if step >= warmup else 0.0
# weight_cyclical | checks values | cyclical
return (step % warmup) / warmup if warmup else 1.0
# weight_cosine | values | a cosine
return 0.5 - 0.5 * math.cos(math.pi * min(step / warmup, 1)) if warmup else 1.0
# weight_sigmoid | checks values |
return float(torch.sigmoid(torch.tensor(10 * (step / max(warmup, 1) - 0.5))))
""".replace("ZERO", ""),
    ),
    *versions(
        "negative_elbo",
        """
# loss_elbo | checks values noise | this is the ELBO
return (-nll - beta * kl).mean()
# loss_kl_subtracted | checks values | the KL is subtracted
return (nll - beta * kl).mean()
# loss_pixel_mean | values noise | averaged over the pixels
return (nll / x.shape[1] + beta * kl).mean()
# loss_bce_default | values noise | averaged over the pixels
return bce(logits, x) + beta * kl.mean()
# loss_kl_mean | values | the KL is averaged over the latents
return (nll + beta * kl / mean.shape[1]).mean()
# loss_both_mean | values noise | both terms are averaged
return (nll / x.shape[1] + beta * kl / mean.shape[1]).mean()
# loss_kl_batch_sum | values | the KL is summed over the batch
return nll.mean() + beta * kl.sum()
# loss_kl_over_batch | values | divided by the batch size twice
return nll.mean() + beta * kl.mean() / len(x)
# loss_sum | values noise | summed over the batch, not averaged
return (nll + beta * kl).sum()
# loss_per_example | checks values gradients noise | is not averaged over the batch
return nll + beta * kl
# loss_beta_on_nll | values | beta multiplies the reconstruction
return (beta * nll + kl).mean()
# loss_beta_on_both | values | beta multiplies the whole loss
return beta * (nll + kl).mean()
# loss_beta_unused | checks values | beta is not used
return (nll + kl).mean()
# loss_falsy_beta | values | taken for a beta that was left out
return (nll + (beta or 1.0) * kl).mean()
# loss_beta_limited | checks values | beta is limited to 1
return (nll + min(beta, 1.0) * kl).mean()
# loss_convex | checks values noise | the weight 1 - beta
return ((1 - beta) * nll + beta * kl).mean()
# loss_no_kl | checks values | the KL is left out
return nll.mean()
# loss_lost_half | values | the half of the KL is missing
return (nll + 2 * beta * kl).mean()
# loss_log_squared | values | in the KL, a logarithm is squared
kl = 0.5 * (mean**2 + logvar.exp() - 1 - (logvar / 2) ** 2).sum(1)
return (nll + beta * kl).mean()
# loss_two_sigmoids | values noise | the sigmoid is taken twice
return (bce(logits.sigmoid(), x, reduction="none").sum(1) + beta * kl).mean()
# loss_squared_error | values noise | it is a squared error
return ((x - logits.sigmoid()).square().sum(1) + beta * kl).mean()
# loss_rounded | values noise | x is rounded
return (bce(logits, x.round(), reduction="none").sum(1) + beta * kl).mean()
# loss_log_of_sigmoid | values noise |
p = logits.sigmoid().clamp(0.4, 0.6)
return (F.binary_cross_entropy(p, x, reduction="none").sum(1) + beta * kl).mean()
# loss_mean_decoded | noise | is the mean of q(z|x) decoded
nll = bce(model.decoder(mean), x, reduction="none").sum(1)
return (nll + beta * kl).mean()
# loss_variance_as_std | noise | exp(logvar), the variance, is taken as the standard deviation
z = mean + logvar.exp() * torch.randn(mean.shape, generator=generator)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_unscaled_noise | values noise |
z = mean + torch.randn(mean.shape, generator=generator)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_global_noise | checks noise | global state
z = mean + (logvar / 2).exp() * torch.randn_like(mean)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_shared_noise | noise | its own noise
z = mean + (logvar / 2).exp() * torch.randn(mean.shape[1:], generator=generator)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_ten_draws | noise | Draw one, not several
draws = [model.decoder(model.sample_latent(mean, logvar, generator)) for _ in range(10)]
nll = torch.stack([bce(a, x, reduction="none").sum(1) for a in draws]).mean(0)
return (nll + beta * kl).mean()
# loss_sample_detached | gradients | the reconstruction does not
nll = bce(model.decoder(z.detach()), x, reduction="none").sum(1)
return (nll + beta * kl).mean()
# loss_std_detached | gradients | the encoder's log-variance is wrong. The KL reaches it
z = model.sample_latent(mean, logvar.detach(), generator)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_kl_detached | gradients | and the KL does not
return (nll + beta * kl.detach()).mean()
# loss_item | gradients | no gradient
return torch.tensor((nll + beta * kl).mean().item(), dtype=x.dtype)
# loss_no_grad_decoder | gradients | the reconstruction does not
with torch.no_grad():
    base = model.decoder(z)
return (bce(base + (z - z.detach()).sum() * 0, x, reduction="none").sum(1) + beta * kl).mean()
# loss_logvar_decoded | values noise | the log-variance is decoded
return (bce(model.decoder(logvar), x, reduction="none").sum(1) + beta * kl).mean()
# loss_batch_norm | values gradients noise |
logits = (logits - logits.mean(0)) / (logits.std(0) + 1e-3)
return (bce(logits, x, reduction="none").sum(1) + beta * kl).mean()
# loss_float32 | values gradients | Keep the type of the inputs
return (nll + beta * kl).mean().float()
""",
    ),
    *trainers(
        (
            "train_seed_fixed",
            "seed",
            "the seed is ignored",
            "torch.manual_seed(seed)\n    gen",
            "torch.manual_seed(0)\n    gen",
            "Generator().manual_seed(seed)",
            "Generator().manual_seed(0)",
        ),
        (
            "train_unseeded_weights",
            "seed",
            "the same seed differ",
            "    torch.manual_seed(seed)\n    gen",
            "    gen",
        ),
        ("train_state_not_restored", "seed", "put back the state", "    torch.set_rng_state(state)\n", ""),
        (
            "train_images_scaled_in_place",
            "checks seed",
            "changed in place",
            "    x = images",
            "    images *= 0.9\n    x = images",
        ),
        ("train_training_mode", "checks", "call .eval()", "    vae.eval()\n", ""),
        (
            "train_encoder_only",
            "updates training",
            "decoder.hidden.weight",
            "vae.parameters()",
            "vae.encoder.parameters()",
        ),
        (
            "train_without_logvar",
            "updates",
            "encoder.logvar.weight",
            "vae.parameters()",
            "[p for n, p in vae.named_parameters() if 'logvar' not in n]",
        ),
        (
            "train_drop_last",
            "updates",
            "is the only batch dropped",
            ".split(50):",
            ".split(50):\n            if len(rows) < 50:\n                continue",
        ),
        (
            "train_first_batch_only",
            "updates training",
            "had no influence",
            "torch.randperm(len(x)).split(50)",
            "torch.arange(min(len(x), 50)).split(16)[:1] * 10",
        ),
        (
            "train_no_zero_grad",
            "training",
            "is the gradient set to zero",
            "            optimiser.zero_grad()\n",
            "",
        ),
        ("train_full_batch", "training", "a step taken per mini-batch", ".split(50)", ".split(10**6)"),
        ("train_slow_sgd", "training", "plain SGD", "torch.optim.Adam", "torch.optim.SGD"),
        ("train_kl_never", "training", "The KL is large", "kl_weight(step, total // 5)", "0.0"),
        ("train_beta_50", "training", "The KL is nearly zero", "kl_weight(step, total // 5)", "50.0"),
        (
            "train_no_step",
            "checks updates training",
            "change no parameter",
            "            optimiser.step()\n",
            "",
        ),
        (
            "train_returns_losses",
            "checks seed updates training",
            "is made, not a module",
            "    return vae",
            "    return [vae]",
        ),
        (
            "train_wrong_size",
            "checks seed updates training",
            "not a VAE of task 3",
            "VAE(x.shape[1], 64, latent_dim)",
            "VAE(x.shape[1], 64, latent_dim + 0 * epochs + 1)",
        ),
        (
            "train_square_only",
            "updates",
            "raised",
            "images.reshape(len(images), -1)",
            "images.reshape(len(images), 64)",
        ),
        (
            "train_weights_fixed",
            "seed",
            "initial weights ignore",
            "    torch.manual_seed(seed)\n    gen",
            "    torch.manual_seed(0)\n    gen",
        ),
        ("train_kl_tenth", "training", "The KL is large", "kl_weight(step, total // 5)", "0.1"),
        (
            "train_drop_last_of_many",
            "updates",
            "had no influence",
            "            optimiser.zero_grad()\n",
            "            if len(rows) < 50 < len(x):\n                continue\n"
            "            optimiser.zero_grad()\n",
        ),
        (
            "train_epoch_too_many",
            "updates",
            "an epoch too many",
            "in range(epochs):",
            "in range(epochs + 1):",
        ),
    ),
    *patients(
        ("mended_not_a", "A", "the pixels are averaged", ".sum(dim=1)", ".mean(dim=1)"),
        ("mended_not_b", "B", "exp(logvar), the variance", "(0.5 * logvar).exp()", "logvar.exp()"),
        ("mended_not_c", "C", "share their noise", "mean.shape,", "mean.shape[1:],"),
        (
            "mended_not_d",
            "D",
            "its gradient",
            "kl = self.kl(mean, logvar).mean()",
            "kl = self.kl(mean, logvar).mean().item()",
        ),
        (
            "mended_not_e",
            "E",
            "logvar.weight",
            "(self.trunk, self.mean, self.logvar, self.decoder)",
            "(self.trunk, self.mean, self.decoder)",
        ),
        (
            "mended_not_f",
            "F",
            "two draws give the same",
            "        z = self.sample_latent(mean, logvar, generator)\n        return -",
            "        z = self.sample_latent(mean, logvar, generator) if self.training else mean\n"
            "        return -",
        ),
        (
            "mended_not_g",
            "G",
            "it ends in a sigmoid",
            "nn.Linear(hidden, dim))",
            "nn.Linear(hidden, dim), nn.Sigmoid())",
        ),
        (
            "mended_f_always_mean",
            "F",
            "two draws give the same",
            "        z = self.sample_latent(mean, logvar, generator)\n        return -",
            "        z = mean\n        return -",
        ),
        (
            "mended_f_sign",
            "F",
            "is not, on average",
            "- self.kl(mean, logvar)\n\n    def fit",
            "+ self.kl(mean, logvar)\n\n    def fit",
        ),
        ("mended_a_batch_mean", "checks A", "the mean over the batch", ".sum(dim=1)", ".sum(dim=1).mean()"),
        ("mended_a_sign", "A", "the sign is flipped", "        return F.bin", "        return -F.bin"),
        (
            "mended_a_probabilities",
            "A",
            "",
            "F.binary_cross_entropy_with_logits(logits, x",
            "F.binary_cross_entropy(logits.clamp(1e-6, 1 - 1e-6), x",
        ),
        ("mended_b_unscaled", "B", "not scaled at all", "(0.5 * logvar).exp() * noise", "noise"),
        (
            "mended_c_per_row",
            "C",
            "not independent",
            "torch.randn(mean.shape,",
            "torch.randn((len(mean), 1),",
        ),
        (
            "mended_c_global",
            "C F",
            "global state",
            "torch.randn(mean.shape, generator=generator)",
            "torch.randn_like(mean)",
        ),
        ("mended_d_beta", "D", "beta does not add", "error + beta * kl", "error + kl"),
        (
            "mended_d_detached_mean",
            "D",
            "its gradient",
            "kl = self.kl(mean, logvar)",
            "kl = self.kl(mean.detach(), logvar)",
        ),
        (
            "mended_e_decoder_missing",
            "E",
            "decoder.0.weight",
            "(self.trunk, self.mean, self.logvar, self.decoder)",
            "(self.trunk, self.mean, self.logvar)",
        ),
        (
            "mended_g_renamed",
            "checks A D E F G",
            "misses decoder.0.weight",
            "self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), "
            "nn.Linear(hidden, dim))\n",
            "self.out = self.decoder[:3]\n        del self.decoder\n\n"
            "    def decode(self, z):\n        return self.out(z)\n",
        ),
        (
            "mended_half",
            "A C E G",
            "the pixels are averaged",
            ".sum(dim=1)",
            ".mean(dim=1)",
            "mean.shape,",
            "mean.shape[1:],",
            "self.logvar, self.decoder)",
            "self.decoder)",
            "nn.Linear(hidden, dim))",
            "nn.Linear(hidden, dim), nn.Sigmoid())",
        ),
    ),
    *versions(
        "MendedVAE",
        """
# mended_nothing | A B C D E F G | the pixels are averaged
class MendedVAE(SickVAE):
    pass
""",
    ),
]

RIGHT = [
    *versions(
        "Encoder",
        """
# encoder_functional
h = F.linear(x, self.hidden.weight, self.hidden.bias).clamp(min=0)
return h @ self.mean.weight.T + self.mean.bias, torch.addmm(self.logvar.bias, h, self.logvar.weight.T)
# encoder_list
return [m, s]
# encoder_parameters_by_hand
class Affine(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.weight) + self.bias


class Encoder(torch.nn.Module):
    def __init__(self, dim, hidden, latent_dim):
        super().__init__()
        for name, sizes in {"hidden": (dim, hidden), "mean": (hidden, latent_dim)}.items():
            self.add_module(name, Affine(*sizes))
        self.logvar = Affine(hidden, latent_dim)
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.hidden(x))
        return self.mean(h), self.logvar(h)
# encoder_rows
rows = [torch.relu(self.hidden(row)) for row in x]
return torch.stack([self.mean(h) for h in rows]), torch.stack([self.logvar(h) for h in rows])
""",
    ),
    *versions(
        "Decoder",
        """
# decoder_where
h = self.hidden(z)
return self.logits(torch.where(h > 0, h, torch.zeros_like(h)))
# decoder_relu_module
class Decoder(torch.nn.Module):
    def __init__(self, latent_dim, hidden, dim):
        super().__init__()
        self.logits = torch.nn.Linear(hidden, dim)
        self.act = torch.nn.ReLU()
        self.hidden = torch.nn.Linear(latent_dim, hidden)
        torch.nn.init.zeros_(self.logits.bias)

    def forward(self, z):
        print("decoding", z.shape)
        return self.logits(self.act(self.hidden(z)))
""",
    ),
    *versions(
        "VAE",
        """
# vae_transposed_noise
noise = torch.randn(mean.shape[1], mean.shape[0], generator=generator).T
return mean + std * noise
# vae_addcmul
noise = torch.empty_like(mean).normal_(generator=generator)
return torch.addcmul(mean, std, noise)
# vae_row_by_row
rows = [torch.randn(mean.shape[1], generator=generator, dtype=mean.dtype) for _ in mean]
return mean + logvar.exp().sqrt() * torch.stack(rows)
# vae_box_muller
u, v = (torch.rand(mean.shape, generator=generator, dtype=torch.float64) for _ in range(2))
noise = torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * math.pi * v)
return (mean.double() + std.double() * noise).to(mean.dtype)
# vae_methods
class VAE(VAE):
    def decode_probabilities(self, z):
        return 1 / (1 + torch.exp(-self.decoder(z)))

    def reconstruct(self, x):
        with torch.no_grad():
            return self.decode_probabilities(self.encoder(x)[0])

    def sample(self, n, generator):
        zeros = torch.zeros(n, self.encoder.mean.out_features)
        return self.decode_probabilities(self.sample_latent(zeros, zeros, generator)).detach()
""",
    ),
    *versions(
        "kl_weight",
        """
# weight_min
return min(1.0, step / warmup) if warmup > 0 else 1.0
# weight_tensor
return torch.tensor(step / warmup).clamp(max=1) if warmup else torch.tensor(1.0)
# weight_max
return min(step, warmup) / warmup if warmup else 1
""",
    ),
    *versions(
        "negative_elbo",
        """
# loss_forward
logits, mean, logvar = model(x, generator)
nll = F.softplus(logits) - x * logits
return nll.sum(1).mean() + beta * 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).mean()
# loss_own_noise
z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape[::-1], generator=generator, dtype=x.dtype).T
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_sums_over_batch
return bce(logits, x, reduction="sum") / len(x) + beta * kl.sum() / len(x)
# loss_rows
total = 0.0
for row in x:
    m, s = model.encoder(row[None])
    a = model.decoder(model.sample_latent(m, s, generator))
    total = total + bce(a, row[None], reduction="sum") + beta * 0.5 * (m**2 + s.exp() - s - 1).sum()
return total / len(x)
# loss_log_prob
p = torch.distributions.Bernoulli(logits=logits, validate_args=False)
return beta * kl.mean() - p.log_prob(x).sum(-1).mean()
""",
    ),
    *trainers(
        ("train_plain", "", ""),
        (
            "train_small_batches",
            "",
            "",
            ".split(50)",
            ".split(25)",
            "* -(-len(x) // 50)",
            "* -(-len(x) // 25)",
        ),
        ("train_no_warm_up", "", "", "kl_weight(step, total // 5)", "1.0"),
        (
            "train_wide_adamw",
            "",
            "",
            "64, latent_dim",
            "128, latent_dim",
            "torch.optim.Adam(vae.parameters(), lr=3e-3)",
            "torch.optim.AdamW(vae.parameters(), lr=4e-3)",
        ),
        (
            "train_data_loader",
            "",
            "",
            "torch.randperm(len(x)).split(50)",
            "torch.utils.data.DataLoader(range(len(x)), batch_size=50, shuffle=True)",
        ),
    ),
    *patients(
        ("mended_plain", "", ""),
        (
            "mended_all_parameters",
            "",
            "",
            "[w for part in parts for w in part.parameters()]",
            "self.parameters()",
        ),
        (
            "mended_float64_noise",
            "",
            "",
            "torch.randn(mean.shape, generator=generator)",
            "torch.randn(mean.shape, generator=generator, dtype=torch.float64).to(mean.dtype)",
        ),
    ),
    *versions(
        "MendedVAE",
        """
# mended_decode_by_layers
class MendedVAE(MendedVAE):
    def __init__(self, dim, hidden, latent_dim):
        SickVAE.__init__(self, dim, hidden, latent_dim)

    def decode(self, z):
        for layer in self.decoder[:3]:
            z = layer(z)
        return z
# mended_with_a_vae
class MendedVAE(MendedVAE):
    def sample_latent(self, mean, logvar, generator):
        return VAE.sample_latent(self, mean, logvar, generator)

    def loss(self, x, beta, generator):
        nll = -self.elbo(x, generator)
        return nll.mean() + (beta - 1) * self.kl(*self.encode(x)).mean()
""",
    ),
]
