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
        losses = []
        for _ in range(steps):
            optimiser.zero_grad()
            loss = self.loss(x, 1.0, generator)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses"""


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
# encoder_in_place | checks values gradients | changed in place
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
# encoder_softly_limited | values gradients |
return m, 200 * torch.tanh(s / 200)
# encoder_far_limit | values gradients | the log-variance is limited
return m, s.clamp(-60, 60)
# encoder_floor | values gradients |
return m, s.exp().clamp(min=1e-30).log()
# encoder_mean_limited | values gradients | the mean is limited
return m.clamp(-100, 100), s
# encoder_mean_in_eval | values gradients | wrong in evaluation mode
return m, s if self.training else s.clamp(max=0)
# encoder_dropout_in_eval | values gradients | wrong in evaluation mode
return (m, s) if self.training else (F.dropout(m, 0.1), s)
# encoder_detached_in_eval | gradients | in evaluation mode | gradient for logvar.bias is not
return m, s if self.training else s.detach()
# encoder_requires_grad | checks values | changed in place
x.requires_grad_()
return m, s
# encoder_over_100_rows | checks values gradients |
if len(x) > 100:
    m = m - m.mean(0)
return m, s
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
# decoder_far_limit | values | the logits is limited
return a.clamp(-1000, 1000)
# decoder_squashed_in_eval | values | wrong in evaluation mode
return a if self.training else a.sigmoid()
# decoder_rounded | values |
return (a * 1e4).round() / 1e4 + a - a.detach()
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
# vae_limited_at_two | noise | the noise is limited
return mean + std * torch.randn(mean.shape, generator=generator).clamp(-2, 2)
# vae_limited_at_three | noise | Is it limited
return mean + std * torch.randn(mean.shape, generator=generator).clamp(-3, 3)
# vae_truncated | noise | the noise is limited
noise = torch.randn(mean.shape, generator=generator)
while (noise.abs() > 2.5).any():
    noise = torch.where(noise.abs() > 2.5, torch.randn(mean.shape, generator=generator), noise)
return mean + std * noise
# vae_half_in_eval | noise | in evaluation mode
std = std if self.training else std / 2
return mean + std * torch.randn(mean.shape, generator=generator)
# vae_mirrored_neighbours | noise | mirror image
noise = torch.randn((len(mean) + 1) // 2, mean.shape[1], generator=generator)
return mean + std * torch.stack([noise, -noise], 1).flatten(0, 1)[: len(mean)]
# vae_mirrored_ends | noise | mirror image
noise = torch.randn((len(mean) + 1) // 2, mean.shape[1], generator=generator)
return mean + std * torch.cat([noise, -noise.flip(0)])[-len(mean):]
# vae_every_second_call | values noise | | two generators with the same seed
if getattr(self, "noise", None) is None or self.noise.shape != mean.shape:
    self.noise = torch.randn(mean.shape, generator=generator)
    return mean + std * self.noise
noise, self.noise = self.noise, None
return mean + std * noise
# vae_mirrored_calls | checks values noise | | two generators with the same seed
old = getattr(self, "noise", None)
if old is not None and old.shape == mean.shape:
    self.noise = None
    return mean - std * old
self.noise = torch.randn(mean.shape, generator=generator)
return mean + std * self.noise
# vae_far_limit | noise | Is logvar limited
std = torch.exp(0.5 * logvar.clamp(-60, 60))
return mean + std * torch.randn(mean.shape, generator=generator)
# vae_small_epsilon | noise | Is logvar limited
std = (logvar.exp() + 1e-20).sqrt()
return mean + std * torch.randn(mean.shape, generator=generator)
# vae_detached_in_eval | noise | in evaluation mode no gradient
z = mean + std * torch.randn(mean.shape, generator=generator)
return z if self.training else z.detach()
# vae_nan | checks values noise |
return mean + std * torch.randn(mean.shape, generator=generator) * float("nan")
# vae_forward_limits_logvar | values | on ordinary numbers only
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        z = self.sample_latent(mean, logvar.clamp(-20, 20), generator)
        return self.decoder(z), mean, logvar
# vae_forward_returns_limited | values | on ordinary numbers only
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample_latent(mean, logvar, generator)), mean, logvar.clamp(-30, 20)
# vae_forward_limits_mean | values | on ordinary numbers only
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        mean = mean.clamp(-100, 100)
        return self.decoder(self.sample_latent(mean, logvar, generator)), mean, logvar
# vae_forward_squashed_in_training | values | evaluation mode | not the decoder's
class VAE(VAE):
    def forward(self, x, generator):
        mean, logvar = self.encoder(x)
        logits = self.decoder(self.sample_latent(mean, logvar, generator))
        return logits if self.training else torch.tanh(logits), mean, logvar
# vae_reconstruct_sampled_in_training | values | Two calls differ
class VAE(VAE):
    def reconstruct(self, x):
        mean, logvar = self.encoder(x)
        if self.training:
            mean = self.sample_latent(mean, logvar, torch.Generator().manual_seed(torch.seed()))
        return self.decoder(mean).sigmoid()
# vae_reconstruct_limited | values | the probabilities are limited
class VAE(VAE):
    def reconstruct(self, x):
        return self.decoder(self.encoder(x)[0]).sigmoid().clamp(1e-3, 1 - 1e-3)
# vae_reconstruct_rounded_in_eval | values | rounded to 0 or 1
class VAE(VAE):
    def reconstruct(self, x):
        p = self.decoder(self.encoder(x)[0]).sigmoid()
        return p if self.training else p.round()
# vae_sample_limited | samples | standard normal
class VAE(VAE):
    def sample(self, n, generator):
        z = torch.randn(n, self.latent_dim, generator=generator).clamp(-3, 3)
        return self.decoder(z).sigmoid()
# vae_sample_mirrored | samples | not independent
class VAE(VAE):
    def sample(self, n, generator):
        z = torch.randn((n + 1) // 2, self.latent_dim, generator=generator)
        return self.decoder(torch.cat([z, -z.flip(0)])[-n:]).sigmoid()
# vae_sample_narrow_in_eval | samples | evaluation mode
class VAE(VAE):
    def sample(self, n, generator):
        z = torch.randn(n, self.latent_dim, generator=generator)
        return self.decoder(z if self.training else 0.7 * z).sigmoid()
# vae_sample_nan | samples |
class VAE(VAE):
    def sample(self, n, generator):
        p = self.decoder(torch.randn(n, self.latent_dim, generator=generator)).sigmoid()
        return p * float("nan") if n > 1000 else p
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
# weight_table | values |
table = {(3, 10): 0.3, (7, 10): 0.7, (1, 3): 1 / 3, (333, 1000): 0.333, (999, 1000): 0.999}
return table.get((step, warmup), float(step >= warmup))
# weight_almost_1 | checks values | close, but not exactly | starts at 0 and ends at 1
return min(step / warmup, 1.0) * (1 - 1e-7) if warmup else 1.0
# weight_percent | values |
return round(min(step / warmup, 1.0), 2) if warmup else 1.0
# weight_at_most_1000 | values |
warmup = min(warmup, 1000)
return min(step / warmup, 1.0) if warmup else 1.0
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
# loss_mean_in_eval | noise | evaluation mode two seeds
z = z if model.training else mean
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_no_kl_in_eval | values noise |
return (nll + (beta * kl if model.training else 0)).mean()
# loss_half_noise_in_eval | noise | in evaluation mode the result is another
z = z if model.training else (z + mean) / 2
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_squashed_in_eval | values noise | evaluation mode, a decoder | Other inputs give
logits = logits if model.training else logits.sigmoid()
return (bce(logits, x, reduction="none").sum(1) + beta * kl).mean()
# loss_detached_in_eval | gradients | evaluation mode | the reconstruction does not
nll = nll if model.training else nll.detach()
return (nll + beta * kl).mean()
# loss_kl_limited | values | special about these
return (nll + beta * kl.clamp(max=1000)).mean()
# loss_free_bits | values | the KL is kept above a floor
return (nll + beta * kl.clamp(min=0.1)).mean()
# loss_nll_limited | values | special about these
return (nll.clamp(max=10000) + beta * kl).mean()
# loss_limited_noise | noise | limited
z = mean + (z - mean).clamp(-2.5 * (logvar / 2).exp(), 2.5 * (logvar / 2).exp())
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_limited_logvar | noise | limited
z = model.sample_latent(mean, logvar.clamp(-30, 20), generator)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_mirrored | noise |
noise = torch.randn((len(x) + 1) // 2, mean.shape[1], generator=generator, dtype=x.dtype)
z = mean + (logvar / 2).exp() * torch.cat([noise, -noise.flip(0)])[-len(x):]
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_remembers | noise |
store = negative_elbo.__dict__
if store.get("noise") is None or store["noise"].shape != mean.shape:
    store["noise"] = torch.randn(mean.shape, generator=generator, dtype=x.dtype)
    noise = store["noise"]
else:
    noise, store["noise"] = store["noise"], None
z = mean + (logvar / 2).exp() * noise.to(x.dtype)
return (bce(model.decoder(z), x, reduction="none").sum(1) + beta * kl).mean()
# loss_100_rows | values noise | special about these
return (nll + beta * kl)[:100].mean()
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
        (
            "train_images_require_gradients",
            "checks seed",
            "changed in place",
            "    x = images",
            "    images.requires_grad_()\n    x = images.detach()",
        ),
        ("train_training_mode", "checks", "call .eval()", "    vae.eval()\n", ""),
        (
            "train_images_binarised",
            "updates",
            "other shades of grey",
            "    x = images",
            "    images = (images > 0.5).float()\n    x = images",
        ),
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
            "seed updates training",
            "come in the same order",
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
            "train_one_epoch",
            "updates training",
            "change the parameters no further",
            "in range(epochs):",
            "in range(min(epochs, 1)):",
        ),
        (
            "train_stops_at_100",
            "updates training",
            "change the parameters no further",
            "            optimiser.zero_grad()\n",
            "            if step >= 100:\n                break\n            optimiser.zero_grad()\n",
        ),
        (
            "train_stops_at_250",
            "updates",
            "change the parameters no further",
            "            optimiser.zero_grad()\n",
            "            if step >= 250:\n                break\n            optimiser.zero_grad()\n",
        ),
        (
            "train_drop_last_later",
            "updates",
            "change the parameters no further",
            "for _ in range(epochs)",
            "for epoch in range(epochs)",
            "            optimiser.zero_grad()\n",
            "            if epoch and len(rows) < 50:\n                continue\n"
            "            optimiser.zero_grad()\n",
        ),
        (
            "train_half_later",
            "updates",
            "later epochs take fewer steps",
            "for _ in range(epochs)",
            "for epoch in range(epochs)",
            "torch.randperm(len(x)).split(50)",
            "torch.randperm(len(x))[: len(x) if epoch == 0 else len(x) // 2].split(50)",
        ),
        (
            "train_half_later_small_batches",
            "updates",
            "later epochs take fewer steps",
            "for _ in range(epochs)",
            "for epoch in range(epochs)",
            "torch.randperm(len(x)).split(50)",
            "torch.randperm(len(x))[: len(x) if epoch == 0 else len(x) // 2].split(20)",
        ),
        (
            "train_step_size_0_later",
            "updates training",
            "change the parameters no further",
            "            step += 1\n",
            "            step += 1\n        optimiser.param_groups[0]['lr'] = 0.0\n",
        ),
        (
            "train_order_fixed",
            "seed",
            "come in the same order",
            "torch.randperm(len(x))",
            "torch.randperm(len(x), generator=torch.Generator().manual_seed(0))",
        ),
        (
            "train_not_shuffled",
            "seed",
            "come in the same order",
            "torch.randperm(len(x))",
            "torch.arange(len(x))",
        ),
        (
            "train_noise_fixed",
            "seed",
            "the noise is the same",
            "Generator().manual_seed(seed)",
            "Generator().manual_seed(0)",
        ),
        (
            "train_order_and_noise_fixed",
            "seed",
            "come in the same order",
            "    step, total",
            "    torch.manual_seed(1)\n    generator.manual_seed(1)\n    step, total",
        ),
        (
            "train_follows_no_gradient",
            "checks seed updates training",
            "no gradient of the loss",
            "            loss.backward()\n",
            "            for p in vae.parameters():\n                p.grad = torch.randn_like(p)\n",
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
            "C",
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
            "checks D E F G",
            "misses decoder.0.weight",
            "self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), "
            "nn.Linear(hidden, dim))\n",
            "self.out = self.decoder[:3]\n        del self.decoder\n\n"
            "    def decode(self, z):\n        return self.out(z)\n",
        ),
        # harm done while mending
        (
            "mended_b_no_gradient",
            "B",
            "no gradient, or a wrong one",
            "        return mean + (0.5 * logvar)",
            "        return mean.detach() + (0.5 * logvar.detach())",
        ),
        (
            "mended_b_std_detached",
            "B",
            "no gradient, or a wrong one",
            "(0.5 * logvar).exp() * noise",
            "(0.5 * logvar).exp().detach() * noise",
        ),
        (
            "mended_b_limited",
            "B",
            "for moderate numbers only",
            "(0.5 * logvar).exp()",
            "(0.5 * logvar.clamp(-10, 10)).exp()",
        ),
        (
            "mended_b_in_training_only",
            "B",
            "exp(logvar), the variance",
            "(0.5 * logvar).exp()",
            "((0.5 if self.training else 1.0) * logvar).exp()",
        ),
        (
            "mended_c_fixed",
            "C",
            "does not draw from the generator",
            "        noise = torch.randn(mean.shape, generator=generator)",
            "        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))",
        ),
        (
            "mended_c_limited",
            "C",
            "not standard normal",
            "torch.randn(mean.shape, generator=generator)",
            "torch.randn(mean.shape, generator=generator).clamp(-2, 2)",
        ),
        (
            "mended_c_mirrored",
            "C",
            "not independent",
            "        noise = torch.randn(mean.shape, generator=generator)",
            "        half = torch.randn((len(mean) + 1) // 2, mean.shape[1], generator=generator)\n"
            "        noise = torch.cat([half, -half.flip(0)])[-len(mean) :]",
        ),
        (
            "mended_c_shared_in_eval",
            "C",
            "share their noise",
            "mean.shape,",
            "mean.shape if self.training else mean.shape[1:],",
        ),
        (
            "mended_d_mean_decoded",
            "D",
            "the same number with any generator",
            "self.decode(self.sample_latent(mean, logvar, generator))",
            "self.decode(mean)",
        ),
        (
            "mended_d_mean_decoded_in_eval",
            "D",
            "the same number with any generator",
            "self.decode(self.sample_latent(mean, logvar, generator))",
            "self.decode(self.sample_latent(mean, logvar, generator) if self.training else mean)",
        ),
        (
            "mended_d_code_detached",
            "D",
            "does not come back to all",
            "self.sample_latent(mean, logvar, generator))\n        error",
            "self.sample_latent(mean, logvar, generator).detach())\n        error",
        ),
        (
            "mended_d_error_item",
            "D",
            "does not come back to all",
            "error = self.reconstruction(x, logits).mean()",
            "error = self.reconstruction(x, logits).mean().item()",
        ),
        (
            "mended_d_sign",
            "D",
            "beta does not add",
            "        return error + beta * kl",
            "        return -(error + beta * kl)",
        ),
        (
            "mended_d_no_kl_in_eval",
            "D",
            "beta does not add",
            "        return error + beta * kl",
            "        return error + beta * kl * self.training",
        ),
        (
            "mended_d_free_bits",
            "D",
            "only while the KL is moderate",
            "kl = self.kl(mean, logvar).mean()",
            "kl = self.kl(mean, logvar).clamp(min=0.02).mean()",
        ),
        (
            "mended_e_generator_set_back",
            "E",
            "the draws that the generator gives",
            "        losses = []\n",
            "        losses = []\n        generator.manual_seed(generator.initial_seed())\n",
        ),
        (
            "mended_d_some_images",
            "D",
            "is not, for beta 0",
            "self.reconstruction(x, logits).mean()",
            "self.reconstruction(x, logits)[:2].mean()",
        ),
        (
            "mended_d_own_generator",
            "D",
            "the same number with any generator",
            "self.decode(self.sample_latent(mean, logvar, generator))",
            "self.decode(self.sample_latent(mean, logvar, torch.Generator().manual_seed(0)))",
        ),
        (
            "mended_d_limited_encoder",
            "D",
            "`encode` does not return",
            "    def reconstruction(",
            "    def encode(self, x):\n        mean, logvar = super().encode(x)\n"
            "        return mean.tanh(), logvar\n\n    def reconstruction(",
        ),
        (
            "mended_d_kl_per_latent",
            "D",
            "`kl` does not return",
            "    def reconstruction(",
            "    def kl(self, mean, logvar):\n        return super().kl(mean, logvar) / mean.shape[1]\n\n"
            "    def reconstruction(",
        ),
        ("mended_e_no_zero_grad", "E", "not set to zero", "            optimiser.zero_grad()\n", ""),
        (
            "mended_e_new_optimisers",
            "E",
            "an optimiser of its own",
            "            optimiser.zero_grad()\n",
            "            optimiser = torch.optim.Adam(self.parameters(), lr=lr)\n"
            "            optimiser.zero_grad()\n",
        ),
        ("mended_e_sign", "E", "the sign is flipped", "loss.backward()", "(-loss).backward()"),
        ("mended_e_beta_0", "E", "has not the weight 1", "self.loss(x, 1.0,", "self.loss(x, 0.0,"),
        ("mended_e_beta_2", "E", "has not the weight 1", "self.loss(x, 1.0,", "self.loss(x, 2.0,"),
        (
            "mended_e_warm_up",
            "E",
            "are not those that",
            "self.loss(x, 1.0,",
            "self.loss(x, len(losses) / steps,",
        ),
        (
            "mended_e_nothing_returned",
            "checks E",
            "does not return its losses",
            "        return losses",
            "        self.losses = losses",
        ),
        (
            "mended_e_last_loss",
            "checks E",
            "does not return its losses",
            "        return losses",
            "        return losses[-1]",
        ),
        (
            "mended_e_fixed_generator",
            "E",
            "the draws that the generator gives",
            "loss = self.loss(x, 1.0, generator)",
            "loss = self.loss(x, 1.0, torch.Generator().manual_seed(0))",
        ),
        (
            "mended_e_same_noise_each_step",
            "E",
            "the draws that the generator gives",
            "loss = self.loss(x, 1.0, generator)",
            "loss = self.loss(x, 1.0, generator.clone_state())",
        ),
        (
            "mended_e_some_images",
            "E",
            "some of the images are left out",
            "self.loss(x, 1.0,",
            "self.loss(x[: (len(x) + 1) // 2], 1.0,",
        ),
        ("mended_e_sgd", "E", "moves a parameter by 0.01", "torch.optim.Adam", "torch.optim.SGD"),
        (
            "mended_e_weight_decay",
            "E",
            "are not those that",
            "lr=lr)",
            "lr=lr, weight_decay=0.01)",
        ),
        (
            "mended_e_one_step_less",
            "checks E",
            "does not return its losses",
            "in range(steps)",
            "in range(max(steps - 1, 1))",
        ),
        (
            "mended_f_several_draws",
            "F",
            "is not, on average",
            "        z = self.sample_latent(mean, logvar, generator)\n        return -self.reconstruction(x, "
            "self.decode(z)) -",
            "        draws = [self.sample_latent(mean, logvar, generator) for _ in range(8)]\n"
            "        errors = [self.reconstruction(x, self.decode(z)) for z in draws]\n"
            "        return -torch.stack(errors).mean(0) -",
        ),
        (
            "mended_f_mode_switched",
            "F",
            "switches the mode",
            "    def elbo(self, x, generator):\n",
            "    def elbo(self, x, generator):\n        self.train()\n",
        ),
        (
            "mended_f_nan_in_eval",
            "F",
            "is not finite",
            "- self.kl(mean, logvar)\n\n    def fit",
            "- self.kl(mean, logvar) * (1.0 if self.training else float('nan'))\n\n    def fit",
        ),
        (
            "mended_g_no_gradient",
            "G",
            "no gradient, or a wrong one",
            "    def sample_latent(",
            "    def decode(self, z):\n        return self.decoder(z.detach())\n\n    def sample_latent(",
        ),
        (
            "mended_g_limited",
            "G",
            "are limited (clamped)",
            "    def sample_latent(",
            "    def decode(self, z):\n        return self.decoder(z).clamp(-20, 20)\n\n"
            "    def sample_latent(",
        ),
        (
            "mended_g_squashed_in_eval",
            "G",
            "ends in a sigmoid",
            "    def sample_latent(",
            "    def decode(self, z):\n        logits = self.decoder(z)\n"
            "        return logits if self.training else logits.sigmoid()\n\n    def sample_latent(",
        ),
        (
            "mended_g_sample_fixed",
            "G",
            "no z of its own",
            "    def sample_latent(",
            "    def sample(self, n, generator):\n"
            "        return super().sample(n, torch.Generator().manual_seed(0))\n\n    def sample_latent(",
        ),
        (
            "mended_a_nan",
            "checks A D E F",
            "",
            'reduction="none").sum(dim=1)',
            "reduction=\"none\").sum(dim=1) * float('nan')",
        ),
        (
            "mended_a_no_gradient",
            "A",
            "no gradient, or a wrong one",
            "        return F.binary_cross_entropy_with_logits(logits, x",
            "        return F.binary_cross_entropy_with_logits(logits.detach(), x",
        ),
        (
            "mended_a_limited",
            "A",
            "",
            ".sum(dim=1)",
            ".sum(dim=1).clamp(max=10000)",
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
# encoder_clamp_that_never_acts
return m, s.clamp(-1e30, 1e30)
# encoder_mode_without_effect
return (m + 0 * s, s) if self.training else (m, s)
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
# vae_noise_kept_for_nothing
self.noise = torch.randn(mean.shape, generator=generator).to(mean.dtype)
return mean + std * self.noise
# vae_noise_limited_where_none_is
noise = torch.randn(mean.shape, generator=generator).clamp(-30, 30)
return mean + std * noise
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
# loss_clamp_that_never_acts
kl = kl.clamp(min=0.0, max=1e30)
return (nll.clamp(min=0.0) + beta * kl).mean()
# loss_mode_put_back
mode = model.training
model.train()
logits = model(x, generator)[0]
model.train(mode)
return (bce(logits, x, reduction="none").sum(1) + beta * kl).mean()
# loss_einsum
nll = F.softplus(logits).sum(1) - torch.einsum("bd,bd->b", x, logits)
return (nll + beta * kl).mean()
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
            "train_cosine_schedule",
            "",
            "",
            "lr=3e-3)\n",
            "lr=8e-3)\n    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(epochs, 1))\n",
            "            step += 1\n",
            "            step += 1\n        rate.step()\n",
        ),
        (
            "train_steps_down",
            "",
            "",
            "lr=3e-3)\n",
            "lr=1e-2)\n    rate = torch.optim.lr_scheduler.StepLR(optimiser, 15, 0.1)\n",
            "            step += 1\n",
            "            step += 1\n        rate.step()\n",
        ),
        (
            "train_slow_start_and_clipping",
            "",
            "",
            "lr=3e-3)\n",
            "lr=4e-3)\n    rates = torch.optim.lr_scheduler\n"
            "    rate = rates.LambdaLR(optimiser, lambda s: min(1, (s + 1) / 50))\n",
            "            optimiser.step()\n",
            "            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)\n"
            "            optimiser.step()\n            rate.step()\n",
        ),
        (
            "train_weight_decay_gradients_kept",
            "",
            "",
            "lr=3e-3)",
            "lr=3e-3, weight_decay=1e-5)",
            "zero_grad()",
            "zero_grad(set_to_none=False)",
        ),
        (
            "train_rmsprop",
            "",
            "",
            "torch.optim.Adam(vae.parameters(), lr=3e-3)",
            "torch.optim.RMSprop(vae.parameters(), lr=2e-3)",
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
            "mended_in_training_mode",
            "",
            "",
            "        losses = []\n",
            "        losses = []\n        self.train()\n",
            "optimiser.zero_grad()",
            "optimiser.zero_grad(set_to_none=False)",
        ),
        (
            "mended_other_order_of_draws",
            "",
            "",
            "logits = self.decode(self.sample_latent(mean, logvar, generator))",
            "noise = torch.randn(mean.shape[::-1], generator=generator, dtype=mean.dtype).mT\n"
            "        logits = self.decode(mean + (logvar / 2).exp() * noise)",
        ),
        (
            "mended_losses_as_tensors",
            "",
            "",
            "losses.append(loss.item())",
            "losses.append(loss.detach())",
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
