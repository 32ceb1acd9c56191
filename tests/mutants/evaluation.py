"""Wrong and right versions of the five functions of the assignment `evaluation`, for test_assignments.py.

The slips come from public issue threads (-log K missing or with the wrong sign: scVI-dev#8; the analytic KL
with several samples, and softmax weights that are not detached: PyTorch-VAE#34; exp(logvar) as standard
deviation: keras#3283), and from what the formulas invite.
"""

from mutants import versions_of

# The start of every version, with names that its body may use.
STARTS = {
    "log_mean_exp": """def log_mean_exp(log_w, dim):
    count = log_w.shape[dim]
""",
    "iwae_bound": """def iwae_bound(log_w):
    count, batch = log_w.shape
""",
    "log_likelihood": """def log_likelihood(x, encode, decode, samples, generator):
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    mean, logvar = encode(x)
    std, var, k = (0.5 * logvar).exp(), logvar.exp(), mean.shape[1]

    def normal(z, mean, std):
        return torch.distributions.Normal(mean, std, validate_args=False).log_prob(z).sum(-1)

    def bernoulli(logits):
        return -bce(logits, x.expand_as(logits), reduction="none").sum(-1)

    def randn(*size):
        return torch.randn(*size, generator=generator, dtype=x.dtype)

    def done(log_w):
        return torch.logsumexp(log_w, 0) - math.log(samples)

    one, full = torch.ones_like(mean), (samples, *mean.shape)
    kl = 0.5 * (mean**2 + var - logvar - 1).sum(1)
""",
    "active_units": "def active_units(mean, threshold=0.01):\n",
    "linear_annealing": "def linear_annealing(step, start, end):\n",
}
versions = versions_of(STARTS)

WRONG = [
    *versions(
        "log_mean_exp",
        """
# lme_no_log_k | checks values stability zeros | -log K is missing
return torch.logsumexp(log_w, dim)
# lme_log_k_added | checks values stability zeros | log K is added
return torch.logsumexp(log_w, dim) + math.log(count)
# lme_minus_k | checks values stability zeros | K is subtracted, not log K
return torch.logsumexp(log_w, dim) - count
# lme_over_k | checks values gradients stability zeros | divided by K
return torch.logsumexp(log_w, dim) / count
# lme_size_of_first | values stability zeros | size of the first dimension
return torch.logsumexp(log_w, dim) - math.log(len(log_w))
# lme_size_of_last | checks values stability zeros | size of the last dimension
return torch.logsumexp(log_w, dim) - math.log(log_w.shape[-1])
# lme_numel | checks values stability zeros | number of all entries
return torch.logsumexp(log_w, dim) - math.log(log_w.numel())
# lme_mean_of_logs | values gradients stability zeros | logs are averaged
return log_w.mean(dim)
# lme_sum_of_logs | checks values gradients stability zeros | logs are summed
return log_w.sum(dim)
# lme_max | checks values gradients stability zeros | largest weight stands
return log_w.amax(dim)
# lme_no_log | checks values gradients stability zeros | log is missing
return log_w.exp().mean(dim)
# lme_log_of_mean_of_logs | checks values gradients stability zeros | exponential is missing
return log_w.mean(dim).log()
# lme_softmax_weighted | values gradients stability zeros | normalised weights
return (log_w.softmax(dim) * log_w).sum(dim)
# lme_dim_zero | checks values gradients stability zeros | dimension 0 is taken
return torch.logsumexp(log_w, 0) - math.log(len(log_w))
# lme_last_dim | checks values gradients stability zeros | last dimension is taken
return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])
# lme_all | checks values gradients stability zeros | all dimensions are taken
return torch.logsumexp(log_w.flatten(), 0) - math.log(log_w.numel())
# lme_keepdim | checks values gradients stability zeros | size 1 is left
return torch.logsumexp(log_w, dim, keepdim=True) - math.log(count)
# lme_squeeze | values gradients stability | a single mean
return (torch.logsumexp(log_w, dim, keepdim=True) - math.log(count)).squeeze()
# lme_shift_not_added | checks values gradients stability zeros | not put back
largest = log_w.amax(dim, keepdim=True)
return (log_w - largest).exp().mean(dim).log()
# lme_shift_twice | checks values gradients stability zeros | put back twice
largest = log_w.amax(dim, keepdim=True)
return torch.logsumexp(log_w, dim) - math.log(count) + largest.squeeze(dim)
# lme_shift_subtracted | checks values gradients stability zeros | wrong sign
largest = log_w.amax(dim, keepdim=True)
return (log_w - largest).exp().mean(dim).log() - largest.squeeze(dim)
# lme_log1p | checks values gradients stability zeros | a 1 is added
return torch.log1p(log_w.exp().sum(dim)) - math.log(count)
# lme_bits | checks values gradients stability zeros | bits
return (torch.logsumexp(log_w, dim) - math.log(count)) / math.log(2)
# lme_sign | checks values gradients stability zeros | sign is flipped
return math.log(count) - torch.logsumexp(log_w, dim)
# lme_no_shift | stability | rounded to 0, or has overflowed
return log_w.exp().mean(dim).log()
# lme_epsilon | stability zeros | add no epsilon
return torch.log(log_w.exp().mean(dim) + 1e-20)
# lme_one_less | values stability zeros | off by the same
return torch.logsumexp(log_w, dim) - math.log(max(count - 1, 1))
# lme_clamp | stability zeros | log_w is limited (clamped)
return log_w.clamp(-80, 80).exp().mean(dim).log()
# lme_global_max | stability zeros | of each mean its own
largest = log_w.max()
return (log_w - largest).exp().mean(dim).log() + largest
# lme_mean_shift | stability zeros | rounded to 0, or has overflowed
shift = log_w.mean(dim, keepdim=True)
return (log_w - shift).exp().mean(dim).log() + shift.squeeze(dim)
# lme_nan_for_nothing | zeros | -inf - (-inf)
largest = log_w.amax(dim, keepdim=True)
return (log_w - largest).exp().mean(dim).log() + largest.squeeze(dim)
# lme_zeros_left_out | zeros | the mean of zeros is zero
alive = log_w.isfinite().sum(dim).to(log_w.dtype)
return torch.logsumexp(log_w, dim) - alive.log()
# lme_minimum_for_zero | zeros | mean of zeros is zero
log_w = log_w.clamp(min=torch.finfo(log_w.dtype).min)
return torch.logsumexp(log_w, dim) - math.log(count)
# lme_nan_to_num | zeros | mean of zeros is zero
return torch.nan_to_num(torch.logsumexp(log_w, dim) - math.log(count), neginf=-1e4)
# lme_max_undone | gradients zeros | graph is cut
largest = log_w.amax(dim, keepdim=True)
return (log_w - largest.detach()).exp().mean(dim).log() + largest.squeeze(dim)
# lme_detach | gradients stability zeros | no gradient reaches
return torch.logsumexp(log_w.detach(), dim) - math.log(count)
# lme_in_place | checks values gradients stability zeros | changed in place
log_w -= 1
return torch.logsumexp(log_w, dim) - math.log(count) + 1
# lme_float64 | values | Keep the type
return torch.logsumexp(log_w.double(), dim) - math.log(count)
# lme_random | checks values gradients stability zeros | Two calls
return torch.logsumexp(log_w, dim) - math.log(count) + 0.1 * torch.rand(())
# lme_logcumsumexp | zeros | its gradient is not
return log_w.logcumsumexp(dim).select(dim, -1) - math.log(count)
# lme_library | checks values gradients stability zeros | ready-made
from aecourse.bounds import log_mean_exp as ready

return ready(log_w, dim)
# lme_smallest_first | stability zeros | rounded to 0, or has overflowed
low = log_w.min(dim, keepdim=True).values
return ((log_w - low).exp().mean(dim)).log() + low.squeeze(dim)
# lme_clamped_weights | stability zeros | limited (clamped)
return log_w.clamp(min=-50).logsumexp(dim) - math.log(count)
""",
    ),
    *versions(
        "iwae_bound",
        """
# iwae_no_log_k | values | -log K is missing
return torch.logsumexp(log_w, 0)
# iwae_log_k_added | values | log K is added
return torch.logsumexp(log_w, 0) + math.log(count)
# iwae_log_batch | values | size of the last dimension
return torch.logsumexp(log_w, 0) - math.log(batch)
# iwae_elbo | checks values gradients | logs are averaged
return log_w.mean(0)
# iwae_best | values gradients | largest weight
return log_w.amax(0)
# iwae_sum_of_logs | checks values gradients | logs are summed
return log_w.sum(0)
# iwae_dim1 | checks values gradients | over the batch, not over the samples
return log_mean_exp(log_w, 1)
# iwae_scalar | checks values gradients | mean over the batch is taken
return log_mean_exp(log_w, 0).mean()
# iwae_scalar_sum | checks values gradients | sum over the batch is taken
return log_mean_exp(log_w, 0).sum()
# iwae_everything | checks values gradients | samples and batch together
return log_mean_exp(log_w.flatten(), 0)
# iwae_loss | checks values gradients | this is a loss
return -log_mean_exp(log_w, 0)
# iwae_softmax | values gradients | normalised weights
return (log_w.softmax(0) * log_w).sum(0)
# iwae_softmax_detached | values gradients | normalised weights
return (log_w.softmax(0).detach() * log_w).sum(0)
# iwae_over_k | values gradients | divided by K
return torch.logsumexp(log_w, 0) / count
# iwae_twice_log_k | checks values | subtracted twice
return log_mean_exp(log_w, 0) - math.log(count)
# iwae_mean_weight | values gradients | log is missing
return log_w.exp().mean(0)
# iwae_no_shift | values gradients | look at what is special
return log_w.exp().mean(0).log()
# iwae_detached | gradients | no gradient reaches
return log_mean_exp(log_w.detach(), 0)
# iwae_keepdim | checks values gradients | size 1 is left
return log_mean_exp(log_w, 0).unsqueeze(0)
""",
    ),
    *versions(
        "log_likelihood",
        """
# ll_means_of_chunks | weights draws | mean of logs of parts
parts = []
for start in range(0, samples, 100):
    n = min(100, samples - start)
    z = mean + std * randn(n, *mean.shape)
    log_w = bernoulli(decode(z)) + normal(z, 0 * one, one) - normal(z, mean, std)
    parts.append(log_w.logsumexp(0) - math.log(n))
return torch.stack(parts).mean(0)
# ll_at_most_50 | draws |
samples = min(samples, 50)
z = mean + std * randn(samples, *mean.shape)
log_w = bernoulli(decode(z)) + normal(z, 0 * one, one) - normal(z, mean, std)
return torch.logsumexp(log_w, 0) - math.log(samples)
# ll_generator_reset | draws | repeats the first
generator.manual_seed(generator.initial_seed())
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0 * one, one) - normal(z, mean, std))
# ll_no_log_k | values weights stability | -log K is missing
z = mean + std * randn(*full)
return torch.logsumexp(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std), 0)
# ll_log_k_added | values weights stability | log K is added
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)) + 2 * math.log(samples)
# ll_log_batch | values weights bound stability | batch size is taken for K
z = mean + std * randn(*full)
log_w = bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)
return torch.logsumexp(log_w, 0) - math.log(len(x))
# ll_mean_of_logs | weights draws | logs of the weights are averaged
z = mean + std * randn(*full)
return (bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).mean(0)
# ll_best_weight | weights draws | largest weight
z = mean + std * randn(*full)
return (bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).amax(0)
# ll_softmax | weights draws | normalised weights
z = mean + std * randn(*full)
log_w = bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)
return (log_w.softmax(0) * log_w).sum(0)
# ll_no_shift | stability | rounded to 0, or has overflowed
z = mean + std * randn(*full)
return (bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).exp().mean(0).log()
# ll_product_of_probabilities | stability | rounded to 0, or has overflowed
z = mean + std * randn(*full)
p = decode(z).sigmoid()
ratio = (normal(z, 0, one) - normal(z, mean, std)).exp()
return ((p**x * (1 - p) ** (1 - x)).prod(-1) * ratio).mean(0).log()
# ll_log_of_sigmoid | stability | stay with log weights and logits
z = mean + std * randn(*full)
p = decode(z).sigmoid()
ll = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_epsilon_in_log | stability | stay with log weights and logits
z = mean + std * randn(*full)
p = decode(z).sigmoid()
ll = (x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()).sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_epsilon_in_std | stability | an epsilon is added to a variance or another exponential
std = std + 1e-6
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_clamped_logvar | stability | not precise
std = (0.5 * logvar.clamp(-10, 10)).exp()
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_batch_mean | checks values weights bound draws stability | mean over the batch is taken
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).mean()
# ll_batch_sum | checks values weights bound draws stability | sum over the batch is taken
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).sum()
# ll_dim1 | checks values weights bound draws stability | over the batch, not over the samples
z = mean + std * randn(*full)
log_w = bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)
return torch.logsumexp(log_w, 1) - math.log(len(x))
# ll_not_averaged | checks values weights bound draws stability | samples are not averaged
z = mean + std * randn(*full)
return bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)
# ll_batch_mean_expanded | values stability weights draws | mean over the batch is taken
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).mean().expand(len(x))
# ll_pixel_mean | values weights bound draws stability | averaged over the pixels
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) / x.shape[1] + normal(z, 0, one) - normal(z, mean, std))
# ll_loss | checks values weights bound draws stability | this is a loss
z = mean + std * randn(*full)
return -done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_cross_entropy | checks values weights bound draws stability | this is a loss
z = mean + std * randn(*full)
return done(-bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_bits | values weights bound draws stability | bits
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)) / math.log(2)
# ll_no_q | values weights bound draws stability | is left out
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one))
# ll_no_prior | checks values stability weights bound draws | log prior is left out
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) - normal(z, mean, std))
# ll_likelihood_alone | weights bound draws stability | likelihood alone
z = mean + std * randn(*full)
return done(bernoulli(decode(z)))
# ll_q_added | values weights bound draws stability | added, not subtracted
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) + normal(z, mean, std))
# ll_prior_and_q_swapped | weights bound draws stability | changed places
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) - normal(z, 0, one) + normal(z, mean, std))
# ll_analytic_kl | weights draws | KL in closed form
z = mean + std * randn(*full)
return done(bernoulli(decode(z))) - kl
# ll_elbo | weights draws | that is the ELBO
z = mean + std * randn(*full)
return bernoulli(decode(z)).mean(0) - kl
# ll_kl_too | weights bound stability | KL is subtracted although
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)) - kl
# ll_constant_of_prior | values weights bound stability | constant of the prior
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) - 0.5 * z.square().sum(-1) - normal(z, mean, std))
# ll_constant_of_q | values weights bound stability | constant of q
z = mean + std * randn(*full)
log_q = -0.5 * (logvar + (z - mean) ** 2 / var).sum(-1)
return done(bernoulli(decode(z)) + normal(z, 0, one) - log_q)
# ll_no_log_std | weights bound stability | log of the standard deviation is missing
z = mean + std * randn(*full)
log_ratio = 0.5 * (((z - mean) / std) ** 2 - z**2).sum(-1)
return done(bernoulli(decode(z)) + log_ratio)
# ll_logvar_not_halved | weights bound stability | not halved
z = mean + std * randn(*full)
log_ratio = (logvar + 0.5 * ((z - mean) / std) ** 2 - 0.5 * z**2).sum(-1)
return done(bernoulli(decode(z)) + log_ratio)
# ll_latent_mean | weights bound draws stability | averaged over the latents
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + (normal(z, 0, one) - normal(z, mean, std)) / k)
# ll_divided_by_std | stability weights bound | divided by the standard deviation
z = mean + std * randn(*full)
log_q = -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 / std).sum(-1)
log_prior = -0.5 * (math.log(2 * math.pi) + z**2).sum(-1)
return done(bernoulli(decode(z)) + log_prior - log_q)
# ll_prior_at_mean | values weights bound draws stability | prior's density is taken at the mean
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(mean, 0, one) - normal(z, mean, std))
# ll_q_at_mean | values weights bound draws stability | q's density is taken at its mean
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(mean, mean, std))
# ll_decodes_mean | weights bound draws | mean of q is decoded
z = mean + std * randn(*full)
return done(bernoulli(decode(mean.expand(full))) + normal(z, 0, one) - normal(z, mean, std))
# ll_no_noise | checks stability weights bound draws | mean of q
z = mean.expand(full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_draws_exp_logvar | weights bound draws stability | draws have the standard deviation exp(logvar)
z = mean + var * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_density_exp_logvar | weights bound stability | has the standard deviation exp(logvar)
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, var))
# ll_both_exp_logvar | bound draws stability | the draws and log q
z = mean + var * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, var))
# ll_logvar_as_std | checks values weights bound draws stability | logvar is taken as the standard deviation
z = mean + logvar * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, logvar))
# ll_unit_std | bound draws stability | standard deviation is 1
z = mean + randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, one))
# ll_no_mean | weights bound | mean of q is left out
z = std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_prior_draws | bound draws stability | encoder is not used
return done(bernoulli(decode(randn(*full))))
# ll_prior_draws_as_q | weights bound draws stability | weighted as if from q
z = randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_uniform_noise | weights bound draws stability | uniform
z = mean + std * torch.rand(*full, generator=generator, dtype=x.dtype)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_noise_of_batch | draws | shared in the batch
z = mean + std * randn(samples, 1, k)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_noise_of_samples | draws | same for all samples
z = (mean + std * randn(*mean.shape)).expand(full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_single_sample | draws | same for all samples
z = mean + std * randn(*mean.shape)
return bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)
# ll_one_too_few | draws | scatter more
samples = max(1, samples - 1)
z = mean + std * randn(samples, *mean.shape)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_fixed_number | stability bound draws | number of samples is fixed
samples = 50
z = mean + std * randn(samples, *mean.shape)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_noise_of_latents | weights draws | same for all latents
z = mean + std * randn(samples, len(x), 1)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_global_generator | checks draws | global state
z = mean + std * torch.randn(full, dtype=x.dtype)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_positive_noise | weights bound draws | 
z = mean + std * randn(*full).abs()
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_half_the_samples | draws | scatter more
z = mean + std * randn(*full)
log_w = bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)
some = (samples + 1) // 2
return torch.logsumexp(log_w[:some], 0) - math.log(some)
# ll_logits_averaged | weights draws | 
z = mean + std * randn(*full)
return bernoulli(decode(z).mean(0)) + done(normal(z, 0, one) - normal(z, mean, std))
# ll_examples_mixed_up | weights bound | 
z = mean + std * randn(*full)
return done(bernoulli(decode(z.flip(1))) + normal(z, 0, one) - normal(z, mean, std))
# ll_rsample | checks draws | global state
q = torch.distributions.Normal(mean, std)
z = q.rsample((samples,))
return done(bernoulli(decode(z)) + normal(z, 0, one) - q.log_prob(z).sum(-1))
# ll_seeded | checks draws | different seeds, equal results
own = torch.Generator().manual_seed(0)
z = mean + std * torch.randn(full, generator=own, dtype=x.dtype)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_reseeded_globally | draws | global state
torch.manual_seed(generator.initial_seed())
z = mean + std * torch.randn(full, dtype=x.dtype)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_reseeded_for_each_sample | draws | repeats the first
rows = []
for _ in range(samples):
    z = mean + std * randn(*mean.shape)
    generator.manual_seed(generator.initial_seed())
    rows.append(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
return done(torch.stack([rows[-1]] * samples))
# ll_probabilities | values stability weights bound draws | taken for probabilities
z = mean + std * randn(*full)
p = decode(z).clamp(1e-6, 1 - 1e-6)
ll = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_double_sigmoid | values weights bound draws stability | sigmoid is taken twice
z = mean + std * randn(*full)
return done(bernoulli(decode(z).sigmoid()) + normal(z, 0, one) - normal(z, mean, std))
# ll_rounded | values stability weights bound draws | rounded
z = mean + std * randn(*full)
logits = decode(z)
ll = -bce(logits, x.round().expand_as(logits), reduction="none").sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_squared_error | values weights bound draws stability | squared error
z = mean + std * randn(*full)
ll = -0.5 * (x - decode(z).sigmoid()).square().sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_bright_only | values stability weights bound draws | (1 - x) log(1 - p) is missing
z = mean + std * randn(*full)
ll = (x * torch.nn.functional.logsigmoid(decode(z))).sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_changes_x | checks values stability weights bound draws | changed in place
x.round_()
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_float64 | values | Keep the type
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std)).double()
# ll_library | checks values weights bound draws stability | ready-made
from aecourse.bounds import iwae_bound as ready

z = mean + std * randn(*full)
return ready(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
""",
    ),
    *versions(
        "active_units",
        """
# units_not_below | values |
return int((mean.var(0) >= threshold).sum())
# units_std | values | standard deviation is compared
return int((mean.std(0) > threshold).sum())
# units_over_latents | checks values | examples are counted
return int((mean.var(1) > threshold).sum())
# units_second_moment | checks values | not subtracted
return int((mean.square().mean(0) > threshold).sum())
# units_threshold_unused | checks values | threshold is not used
return int((mean.var(0) > 0.01).sum())
# units_falsy_threshold | values | threshold of 0
return int((mean.var(0) > (threshold or 0.01)).sum())
# units_threshold_squared | values | standard deviation is compared
return int((mean.var(0) > threshold**2).sum())
# units_threshold_on_std_squared | values | square root of the threshold
return int((mean.var(0) > threshold**0.5).sum())
# units_twice_the_threshold | values | 
return int((mean.var(0) > 2 * threshold).sum())
# units_relative | values | what is special
return int((mean.var(0) / mean.var(0).max() > threshold).sum())
# units_inactive | checks values | inactive units are counted
return int((mean.var(0) < threshold).sum())
# units_sum_of_squares | values | summed, not averaged
return int((((mean - mean.mean(0)) ** 2).sum(0) > threshold).sum())
# units_range | values | range
return int((mean.amax(0) - mean.amin(0) > threshold).sum())
# units_size_of_mean | checks values | size of the mean
return int((mean.mean(0).abs() > threshold).sum())
# units_mean_size | checks values | size of the means
return int((mean.abs().mean(0) > threshold).sum())
# units_entries | checks values | entries are counted
return int((mean.abs() > threshold).sum())
# units_total_variance | values | all entries together
return int((mean.var() > threshold).sum())
# units_fraction | checks values | a fraction is returned
return float((mean.var(0) > threshold).double().mean())
# units_total | checks values | sum of the variances
return float(mean.var(0, correction=0).sum())
# units_mask | checks values | reported, not counted
return mean.var(0) > threshold
# units_any | checks values | whether there is one
return bool((mean.var(0) > threshold).any())
# units_all | checks values | all latents are counted
return mean.shape[1]
# units_keyword_only | values | positional | raised
def active_units(mean, *, threshold=0.01):
    return int((mean.var(0) > threshold).sum())
# units_other_default | values | default of threshold
def active_units(mean, threshold=0.001):
    return int((mean.var(0) > threshold).sum())
# units_tensor | checks | expected an int
return (mean.var(0) > threshold).sum()
""",
    ),
    *versions(
        "linear_annealing",
        """
# annealing_one_step_at_least | values |
if step >= end:
    return 1.0
return (step - start) / max(1, end - start) if step > start else 0.0
# annealing_not_held | checks values | not held at 0 before the start and at 1
return (step - start) / (end - start) if end > start else float(step >= end)
# annealing_grows_on | checks values | not held at 1
return max(0.0, (step - start) / (end - start)) if end > start else float(step >= end)
# annealing_negative | checks values | not held at 0
return min(1.0, (step - start) / (end - start)) if end > start else float(step >= end)
# annealing_division_by_zero | values | division by zero | raised
return min(max((step - start) / (end - start), 0.0), 1.0)
# annealing_nan | values | not finite
ratio = torch.tensor(float(step - start)) / (end - start)
return float(ratio.clamp(0, 1))
# annealing_falls | checks values | falls from 1 to 0
return 1.0 - min(max((step - start) / max(end - start, 1e-9), 0.0), 1.0)
# annealing_no_start | values | start is not used
return min(step / end, 1.0) if end > 0 else 1.0
# annealing_end_as_length | checks values | takes end steps
return min(max((step - start) / end, 0.0), 1.0) if end > start else float(step >= end)
# annealing_step_over_length | values | rise begins at step 0
return min(step / (end - start), 1.0) if end > start else float(step >= end)
# annealing_jump_at_start | values | jumps at the start
return 0.0 if step < start else min(step / end, 1.0) if end > 0 else 1.0
# annealing_step_function | values | jumps from 0 to 1
return float(step >= end)
# annealing_whole_numbers | values | jumps from 0 to 1
return float(min(max((step - start) // (end - start), 0), 1)) if end > start else float(step >= end)
# annealing_parabola | values | parabola
return min(max((step - start) / (end - start), 0.0), 1.0) ** 2 if end > start else float(step >= end)
# annealing_cosine | values | cosine
t = min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)
return 0.5 - 0.5 * math.cos(math.pi * t)
# annealing_per_cent | checks values | per cent
return 100 * (min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end))
# annealing_one_step_off | values | one step off
return min(max((step - start + 1) / (end - start), 0.0), 1.0) if end > start else float(step >= end)
# annealing_epsilon | values | what is special
return min(max((step - start) / (end - start + 1e-8), 0.0), 1.0)
# annealing_late_step | values | what is special
if step <= start:
    return 0.0
return 1.0 if step >= end else (step - start) / (end - start)
# annealing_restarts | checks values | starts again
return max((step - start) / (end - start), 0.0) % 1 if end > start else float(step >= end)
# annealing_tensor | checks | expected a float
t = min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= end)
return torch.tensor(t, dtype=torch.float64)
""",
    ),
]

RIGHT = [
    *versions(
        "log_mean_exp",
        """
# lme_logsumexp
return torch.logsumexp(log_w, dim) - math.log(count)
# lme_shift
largest = log_w.amax(dim, keepdim=True).detach()
largest = largest.masked_fill(largest == -math.inf, 0.0)
return (log_w - largest).exp().mean(dim).log() + largest.squeeze(dim)
# lme_log_softmax
log_w = log_w.movedim(dim, 0)
return torch.logaddexp(log_w[0], torch.full_like(log_w[0], -math.inf)) - math.log(count) if count == 1 else (
    torch.logsumexp(log_w - math.log(count), 0)
)
# lme_logaddexp
total, *rest = log_w.unbind(dim)
for row in rest:
    total = torch.logaddexp(total, row)
return total - math.log(count)
# lme_double_inside
return (torch.logsumexp(log_w.double(), dim) - math.log(count)).to(log_w.dtype)
# lme_max_with_gradient
largest = log_w.max(dim, keepdim=True).values.clamp(min=torch.finfo(log_w.dtype).min)
return largest.squeeze(dim) + torch.log(torch.exp(log_w - largest).mean(dim))
# lme_median_of_halves
top = log_w.amax(dim, keepdim=True)
top = torch.where(top > -math.inf, top, 0.0)
weights = torch.exp(log_w - top)
return torch.log(weights.sum(dim) / count) + top.squeeze(dim)
""",
    ),
    *versions(
        "iwae_bound",
        """
# iwae_logsumexp
return torch.logsumexp(log_w, dim=0) - math.log(count)
# iwae_transposed
return log_mean_exp(log_w.T, -1)
# iwae_loops
return torch.stack([torch.logsumexp(column, 0) - math.log(count) for column in log_w.unbind(1)])
# iwae_shifted
m = log_w.max(0).values.detach()
return m + (log_w - m).exp().mean(0).log()
""",
    ),
    *versions(
        "log_likelihood",
        """
# ll_log_prob
z = mean + std * randn(*full)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_samples_last
z = mean.unsqueeze(1) + std.unsqueeze(1) * randn(len(x), samples, k)
logits = decode(z.transpose(0, 1)).transpose(0, 1)
ll = -bce(logits, x.unsqueeze(1).expand_as(logits), reduction="none").sum(-1)
log_w = ll + (normal(z, 0, torch.ones_like(z)) - normal(z, mean.unsqueeze(1), std.unsqueeze(1)))
return torch.logsumexp(log_w, 1) - math.log(samples)
# ll_loop_over_samples
rows = []
for _ in range(samples):
    z = mean + std * randn(*mean.shape)
    rows.append(bernoulli(decode(z.unsqueeze(0))[0]) + normal(z, 0, one) - normal(z, mean, std))
return torch.logsumexp(torch.stack(rows), 0) - math.log(samples)
# ll_loop_over_examples
found = []
for i in range(len(x)):
    m, s = mean[i], std[i]
    eps = torch.randn(samples, k, generator=generator, dtype=x.dtype)
    z = m + s * eps
    logits = decode(z.unsqueeze(1)).squeeze(1)
    ll = (x[i] * logits - torch.nn.functional.softplus(logits)).sum(-1)
    log_ratio = (s.log() + 0.5 * eps**2 - 0.5 * z**2).sum(-1)
    found.append(torch.logsumexp(ll + log_ratio, 0) - math.log(samples))
return torch.stack(found)
# ll_running_logaddexp
total = torch.full_like(mean[:, 0], -math.inf)
for _ in range(samples):
    z = mean + std * randn(*mean.shape)
    log_w = bernoulli(decode(z.unsqueeze(0))[0]) + normal(z, 0, one) - normal(z, mean, std)
    total = torch.logaddexp(total, log_w)
return total - math.log(samples)
# ll_torch_normal
z = torch.normal(mean.expand(full), std.expand(full), generator=generator)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_multivariate
z = mean + std * randn(*full)
q = torch.distributions.MultivariateNormal(mean, scale_tril=torch.diag_embed(std))
p = torch.distributions.MultivariateNormal(torch.zeros_like(mean), torch.eye(k, dtype=x.dtype))
return done(bernoulli(decode(z)) + p.log_prob(z) - q.log_prob(z))
# ll_default_type
eps = torch.randn(full, generator=generator).to(x.dtype)
z = mean + std * eps
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_double_inside
mean, std = mean.double(), std.double()
z = mean + std * torch.randn(full, generator=generator, dtype=torch.float64)
log_ratio = normal(z, 0, torch.ones_like(z)) - normal(z, mean, std)
ll = bernoulli(decode(z.to(x.dtype))).double()
return done(ll + log_ratio).to(x.dtype)
# ll_seed_from_generator
own = torch.Generator().manual_seed(torch.randint(2**40, (), generator=generator).item())
z = mean + std * torch.randn(full, generator=own, dtype=x.dtype)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
# ll_einsum
z = torch.einsum("bk,sbk->sbk", std, randn(*full)) + mean
logits = decode(z)
ll = torch.einsum("bd,sbd->sb", x, logits) - torch.nn.functional.softplus(logits).sum(-1)
return done(ll + normal(z, 0, one) - normal(z, mean, std))
# ll_no_grad_and_chunks
with torch.no_grad():
    parts, left = [], samples
    while left:
        size = min(left, 7)
        eps = torch.empty(size, *mean.shape, dtype=x.dtype).normal_(generator=generator)
        z = torch.addcmul(mean, std, eps)
        log_q = -0.5 * (eps.square() + logvar).sum(-1)
        parts.append(bernoulli(decode(z)) - 0.5 * z.square().sum(-1) - log_q)
        left -= size
    return log_mean_exp(torch.cat(parts), 0)
# ll_bernoulli_distribution
z = mean + std * randn(*full)
p = torch.distributions.Bernoulli(logits=decode(z), validate_args=False)
return done(p.log_prob(x).sum(-1) + normal(z, 0, one) - normal(z, mean, std))
# ll_uniform_through_inverse
u = torch.rand(full, generator=generator, dtype=torch.float64).clamp(1e-15, 1 - 1e-15)
z = mean + std * torch.special.ndtri(u).to(x.dtype)
return done(bernoulli(decode(z)) + normal(z, 0, one) - normal(z, mean, std))
""",
    ),
    *versions(
        "active_units",
        """
# units_unbiased
return int((mean.var(0) > threshold).sum())
# units_centred
centred = mean - mean.mean(0, keepdim=True)
return int((centred.square().mean(0) > threshold).sum().item())
# units_loops
count = 0
for j in range(mean.shape[1]):
    if mean[:, j].var(unbiased=False).item() > threshold:
        count += 1
return count
# units_moments
return int(((mean.double() ** 2).mean(0) - mean.double().mean(0) ** 2 > threshold).sum())
# units_covariance
cov = torch.atleast_2d(torch.cov(mean.T))
return torch.count_nonzero(cov.diagonal() > threshold).item()
# units_std_and_root
return int((mean.std(0) > math.sqrt(threshold)).sum())
""",
    ),
    *versions(
        "linear_annealing",
        """
# annealing_branches
if step < start:
    return 0.0
if step >= end:
    return 1.0
return (step - start) / (end - start)
# annealing_clamped
if start == end:
    return float(step >= end)
return min(1.0, max(0.0, (step - start) / (end - start)))
# annealing_whole_edges
if step >= end:
    return 1
return 0 if step <= start else (step - start) / (end - start)
# annealing_torch
if end == start:
    return 1.0 if step >= end else 0.0
return torch.tensor((step - start) / (end - start), dtype=torch.float64).clamp(0, 1).item()
# annealing_other_side
return 1.0 if step >= end else max(0.0, 1 - (end - step) / (end - start)) if end > start else 0.0
""",
    ),
]
