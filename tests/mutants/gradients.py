"""Wrong and right versions of the four functions of the assignment `gradients`, for test_assignments.py.

The slips come from public issue threads (exp(logvar) as standard deviation: keras#3283, ibp_vae#3; the
variance passed to Normal: scvi-tools#3789; samples that cut the graph: deepdow#106), from the chapter's
list of common mistakes, and from what the formulas invite.
"""

from mutants import versions_of

# The start of every version, with names that its body may use.
STARTS = {
    "reparameterize": """def reparameterize(mean, logvar, eps):
    std = torch.exp(0.5 * logvar)
""",
    "pathwise_gradient": """def pathwise_gradient(f, mean, logvar, eps):
    m, s = (t.detach().clone().requires_grad_() for t in (mean, logvar))
    grad = torch.autograd.grad
""",
    "score_function_gradient": """def score_function_gradient(f, mean, logvar, z, baseline=None):
    m, s = (t.detach().clone().requires_grad_() for t in (mean, logvar))
    z, given, grad, Normal = z.detach(), z, torch.autograd.grad, torch.distributions.Normal
    std = torch.exp(0.5 * logvar).detach()
    e = (z - mean.detach()) / std
    a = (f(z) if baseline is None else f(z) - baseline).unsqueeze(1)
""",
    "leave_one_out_baseline": """def leave_one_out_baseline(values):
    n = len(values)
""",
}
versions = versions_of(STARTS)

WRONG = [
    *versions(
        "reparameterize",
        """
# sample_small_variance_clamped | stability |
return mean + torch.exp(0.5 * logvar.clamp(min=-40)) * eps
# sample_exp_as_std | SOME | taken as the standard deviation
return mean + torch.exp(logvar) * eps
# sample_logvar_as_std | ALL | logvar is taken as the standard deviation
return mean + logvar * eps
# sample_logvar_as_variance | ALL | logvar is taken as the variance
return mean + torch.sqrt(logvar) * eps
# sample_half_outside | SOME | the half in the exponent is outside
return mean + 0.5 * torch.exp(logvar) * eps
# sample_doubled_exponent | SOME | the half in the exponent is a 2
return mean + torch.exp(2 * logvar) * eps
# sample_precision | ALL | standard deviation is inverted
return mean + torch.exp(-0.5 * logvar) * eps
# sample_root_twice | SOME | root is taken twice
return mean + torch.sqrt(std) * eps
# sample_softplus | SOME | softplus
return mean + torch.nn.functional.softplus(logvar) * eps
# sample_unit_variance | SOME | standard deviation is not used
return mean + eps + 0 * logvar
# sample_mean_only | SOME | the noise is not used
return (mean + 0 * logvar).expand_as(eps)
# sample_subtracted | SOME | noise is subtracted
return mean - std * eps
# sample_noise_squared | SOME | noise is squared
return mean + std * eps**2
# sample_no_mean | ALL | mean is not added
return std * eps + 0 * mean
# sample_scaled_mean | ALL | scaled along with the noise
return std * (mean + eps)
# sample_swapped_product | ALL | multiplies the mean, not the noise
return mean * std + eps
# sample_arguments_swapped | ALL | mean and logvar are swapped
return logvar + torch.exp(0.5 * mean) * eps
# sample_shared_noise | SOME | first noise serves for all
return mean + std * eps[:1].expand_as(eps)
# sample_shared_latents | SOME | one noise serves for all latents
return mean + std * eps[..., :1].expand_as(eps)
# sample_shared_std | SOME |
return mean + std.mean(-1, keepdim=True) * eps
# sample_absolute | ALL | special about these | a larger logvar must spread z further
return mean + torch.exp(0.5 * logvar.abs()) * eps
# sample_own_noise | ALL | nothing random is needed
return mean + std * torch.randn_like(eps)
# sample_rsample | ALL | nothing random is needed
return torch.distributions.Normal(mean, std).rsample(eps.shape[: eps.dim() - mean.dim()])
# sample_own_seed | ALL |
return mean + std * torch.randn(eps.shape, generator=torch.Generator().manual_seed(0), dtype=eps.dtype)
# sample_averaged | ALL | samples are averaged
return (mean + std * eps).mean(0)
# sample_squeezed | SOME | one sample
return (mean + std * eps).squeeze()
# sample_row_by_row | ALL |
return torch.stack([m + s * e for m, s, e in zip(mean, std, eps)])
# sample_detached | gradients stability | no gradient reaches mean
return (mean + std * eps).detach()
# sample_detached_std | gradients stability | no gradient reaches logvar
return mean + std.detach() * eps
# sample_detached_mean | gradients stability | no gradient reaches mean
return mean.detach() + std * eps
# sample_no_grad | gradients stability | no gradient reaches
with torch.no_grad():
    return mean + torch.exp(0.5 * logvar) * eps
# sample_in_place | checks values | changed in place
return eps.mul_(std).add_(mean)
# sample_float32 | gradients stability | float64 | a part of it is computed in single precision (float32)
return (mean.float() + std.float() * eps.float()).to(mean.dtype)
# sample_float64 | values | Keep the type
return mean.double() + std.double() * eps.double()
# sample_root_of_variance | stability | an exponential leaves the range of numbers
return mean + torch.sqrt(torch.exp(logvar)) * eps
# sample_epsilon | stability | an epsilon is added to a variance or another exponential
return mean + torch.sqrt(torch.exp(logvar) + 1e-6) * eps
# sample_clamp | stability | clamp
return mean + torch.exp(0.5 * logvar.clamp(-20, 20)) * eps
# sample_from_library | ALL | ready-made
from aecourse.vae import reparameterize as ready

return ready(mean, logvar)
# sample_floor | stability | clamp
return mean + std.clamp_min(1e-4) * eps
# sample_power_of_variance | stability | an exponential leaves the range
return mean + logvar.exp() ** 0.5 * eps
""",
    ),
    *versions(
        "pathwise_gradient",
        """
# path_summed | values parameters stability | summed, not averaged
return grad(f(m + torch.exp(s / 2) * eps).sum(), (m, s))
# path_terms | checks values parameters stability | terms of the samples are returned
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope, slope * 0.5 * torch.exp(logvar / 2) * eps
# path_over_latents | checks values parameters stability | over the latents
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(1), (slope * 0.5 * torch.exp(logvar / 2) * eps).mean(1)
# path_mean_of_slopes | values parameters stability | divided by the number of samples twice
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).mean(), z)
return slope.mean(0).detach(), (slope * 0.5 * torch.exp(logvar / 2) * eps).mean(0).detach()
# path_mean_over_everything | values parameters stability | divided by the number of latents
return tuple(g / m.numel() for g in grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s)))
# path_scalars | checks values parameters stability | average runs over the latents too
return tuple(g.mean() for g in grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s)))
# path_first_sample | values parameters stability | only the first sample
return grad(f(m + torch.exp(s / 2) * eps)[0], (m, s))
# path_unbiased_divisor | values parameters stability | samples - 1
return grad(f(m + torch.exp(s / 2) * eps).sum() / (len(eps) - 1), (m, s))
# path_exp_as_std | values parameters stability | taken as the standard deviation
return grad(f(m + torch.exp(s) * eps).mean(), (m, s))
# path_logvar_as_std | values parameters stability | logvar is taken as the standard deviation
return grad(f(m + s * eps).mean(), (m, s))
# path_logvar_as_variance | checks values parameters stability | logvar is taken as the variance
return grad(f(m + torch.sqrt(s) * eps).mean(), (m, s))
# path_inverted | values parameters stability | inverted
return grad(f(m + torch.exp(-s / 2) * eps).mean(), (m, s))
# path_lost_half | values parameters stability | the half in d std
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * torch.exp(logvar / 2) * eps).mean(0).detach()
# path_for_std | values parameters stability | for the standard deviation, not for logvar
sd = torch.exp(s / 2).detach().requires_grad_()
return grad(f(m + sd * eps).mean(), (m, sd))
# path_for_variance | values parameters stability | for the variance, not for logvar
var = torch.exp(s).detach().requires_grad_()
return grad(f(m + torch.sqrt(var) * eps).mean(), (m, var))
# path_log_std | values parameters stability | half in d std
log_std = (s / 2).detach().requires_grad_()
return grad(f(m + torch.exp(log_std) * eps).mean(), (m, log_std))
# path_variance_in_chain | values parameters stability | variance stands in the chain rule
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * 0.5 * torch.exp(logvar) * eps).mean(0).detach()
# path_no_std_in_chain | values parameters stability | standard deviation is missing from the chain rule
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * 0.5 * eps).mean(0)
# path_no_noise_in_chain | checks values parameters stability | noise is missing from the chain rule
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * 0.5 * torch.exp(logvar / 2)).mean(0).detach()
# path_z_in_chain | checks values parameters stability | z stands in the chain rule
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * 0.5 * z).mean(0).detach()
# path_averages_apart | values parameters stability | averaged one by one
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope.mean(0) * 0.5 * torch.exp(logvar / 2) * eps.mean(0)).detach()
# path_detached_std | values parameters stability | gradient for logvar is zero
z = m + torch.exp(s / 2).detach() * eps
return grad(f(z).mean(), m)[0], torch.zeros_like(s)
# path_slope_at_mean | values parameters stability | slope is taken at the mean
z = m.detach().expand_as(eps).clone().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * 0.5 * torch.exp(logvar / 2) * eps).mean(0).detach()
# path_samples_averaged_first | values parameters stability | averaged before f sees them
return grad(f((m + torch.exp(s / 2) * eps).mean(0, keepdim=True)).mean(), (m, s))
# path_noise_shared | values parameters stability | first sample is used, or its noise
return grad(f(m + torch.exp(s / 2) * eps[:1].expand_as(eps)).mean(), (m, s))
# path_f_of_noise | values parameters stability | f is given the noise
z = eps.clone().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * 0.5 * torch.exp(logvar / 2) * eps).mean(0).detach()
# path_for_noise | checks values parameters stability | for the noise
z = eps.clone().requires_grad_()
(slope,) = grad(f(mean.detach() + torch.exp(logvar.detach() / 2) * z).mean(), z)
return slope.sum(0), slope.sum(0)
# path_own_noise | checks values parameters stability | nothing random is needed
return grad(f(m + torch.exp(s / 2) * torch.randn_like(eps)).mean(), (m, s))
# path_no_mean | values parameters stability | mean is missing from the samples
return grad(f(torch.exp(s / 2) * eps).mean() + 0 * m.sum(), (m, s))
# path_clipped | values parameters stability |
return tuple(g.clamp(-1, 1) for g in grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s)))
# path_into_the_inputs | checks values parameters stability | a NoneType
f(m + torch.exp(s / 2) * eps).mean().backward()
return mean.grad, logvar.grad
# path_lists | checks values parameters stability | a list is returned | expected two tensors of shape
return [g.tolist() for g in grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s))]
# path_sign | values parameters stability | sign is flipped
return grad(-f(m + torch.exp(s / 2) * eps).mean(), (m, s))
# path_order | checks values parameters stability | in the wrong order
return grad(f(m + torch.exp(s / 2) * eps).mean(), (s, m))
# path_score | checks values parameters stability | score-function estimator
z = (m + torch.exp(s / 2) * eps).detach()
log_q = torch.distributions.Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
return grad((f(z) * log_q).mean(), (m, s))
# path_entropy | checks values parameters stability | as if f held -log q
z = m + torch.exp(s / 2) * eps
log_q = torch.distributions.Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
return grad((f(z) - log_q).mean(), (m, s))
# path_detached_samples | checks values parameters stability | does not require grad | raised
z = (m + torch.exp(s / 2) * eps).detach()
return grad(f(z).mean(), (m, s))
# path_sampled | checks values parameters stability | used in the graph | raised
z = torch.distributions.Normal(m, torch.exp(s / 2)).sample((len(eps),)).requires_grad_()
return grad(f(z).mean(), (m, s))
# path_stacked | checks values parameters stability | a tensor of shape
return torch.stack(grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s)))
# path_only_mean | checks values parameters stability | a tensor of shape
return grad(f(m + torch.exp(s / 2) * eps).mean(), m)[0]
# path_dictionary | checks values parameters stability | a dict is returned
gradients = grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s))
return dict(zip(("mean", "logvar"), gradients))
# path_keepdim | checks values parameters stability | size 1 is left
z = (m + torch.exp(s / 2) * eps).detach().requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0, keepdim=True), (slope * 0.5 * torch.exp(logvar / 2) * eps).mean(0, keepdim=True)
# path_backward_on_inputs | parameters | an input requires gradients after the call
mean.requires_grad_()
logvar.requires_grad_()
f(reparameterize(mean, logvar, eps)).mean().backward()
return mean.grad, logvar.grad
# path_in_place | checks values parameters stability | changed in place
eps *= torch.exp(logvar.detach() / 2)
return grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s))
# path_backward_of_a_clone | parameters | is no leaf
m, s = mean.clone(), logvar.clone()
m, s = (t if t.requires_grad else t.requires_grad_() for t in (m, s))
f(m + torch.exp(s / 2) * eps).mean().backward()
return m.grad, s.grad
# path_numpy | parameters | requires grad | raised
m, s = (torch.from_numpy(t.numpy().copy()).requires_grad_() for t in (mean, logvar))
return grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s))
# path_finite_differences | stability | differentiate exactly
average = lambda m, s: f.to(torch.float64)(m + torch.exp(s / 2) * eps.double()).mean()
m, s, h = mean.detach().double(), logvar.detach().double(), 1e-4 * torch.eye(len(mean)).double()
first = [(average(m + step, s) - average(m - step, s)) / 2e-4 for step in h]
second = [(average(m, s + step) - average(m, s - step)) / 2e-4 for step in h]
return torch.stack(first).to(mean.dtype), torch.stack(second).to(mean.dtype)
# path_float32 | stability | a part of it is computed in single precision (float32)
m, s = (t.detach().float().requires_grad_() for t in (mean, logvar))
found = grad(f.to(torch.float32)(m + torch.exp(s / 2) * eps.float()).mean(), (m, s))
return tuple(g.to(mean.dtype) for g in found)
# path_root_of_variance | stability | an exponential leaves the range of numbers
return grad(f(m + torch.sqrt(torch.exp(s)) * eps).mean(), (m, s))
# path_epsilon | stability | halve logvar before
return grad(f(m + (torch.exp(s / 2) + 1e-6) * eps).mean(), (m, s))
# path_from_library | checks values parameters stability | ready-made
from aecourse.gradients import pathwise_gradient as ready

return ready(f, mean, logvar, eps)
# path_noise_in_float32 | stability | single precision
return grad(f(m + torch.exp(s / 2) * eps.float().to(eps.dtype)).mean(), (m, s))
""",
    ),
    *versions(
        "score_function_gradient",
        """
# score_sign | values baseline parameters stability | sign is flipped
return -(a * e / std).mean(0), -(a * 0.5 * (e**2 - 1)).mean(0)
# score_mean_sign | values baseline parameters stability | score for the mean has the wrong sign
return (a * (mean - z) / std**2).mean(0).detach(), (a * 0.5 * (e**2 - 1)).mean(0)
# score_summed | values baseline parameters stability | summed, not averaged
return (a * e / std).sum(0), (a * 0.5 * (e**2 - 1)).sum(0)
# score_terms | checks values baseline parameters stability | terms of the samples are returned
return a * e / std, a * 0.5 * (e**2 - 1)
# score_mean_over_everything | checks values baseline parameters stability | average runs over the latents too
return (a * e / std).mean(), (a * 0.5 * (e**2 - 1)).mean()
# score_over_latents | checks values baseline parameters stability | over the latents, not over the samples
return (a * e / std).mean(1), (a * 0.5 * (e**2 - 1)).mean(1)
# score_order | checks values baseline parameters stability | in the wrong order
return (a * 0.5 * (e**2 - 1)).mean(0), (a * e / std).mean(0)
# score_log_q_averaged | values baseline parameters stability | number of latents
log_q = Normal(m, torch.exp(s / 2)).log_prob(z)
return grad((a * log_q).mean(), (m, s))
# score_lost_half | values baseline parameters stability | half in the score for logvar
return (a * e / std).mean(0), (a * (e**2 - 1)).mean(0)
# score_for_std | values baseline parameters stability | for the standard deviation, not for logvar
sd = torch.exp(s / 2).detach().requires_grad_()
return grad((a * Normal(m, sd).log_prob(z)).sum(1).mean(), (m, sd))
# score_for_variance | values baseline parameters stability | for the variance, not for logvar
var = torch.exp(s).detach().requires_grad_()
return grad((a * Normal(m, torch.sqrt(var)).log_prob(z)).sum(1).mean(), (m, var))
# score_divided_once | values baseline parameters stability | once only
return (a * e).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_not_divided | values baseline parameters stability | not divided by the variance
return (a * e * std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_normal_of_variance | values baseline parameters stability | taken as the standard deviation
return grad((a * Normal(m, torch.exp(s)).log_prob(z)).sum(1).mean(), (m, s))
# score_variance_for_std | values baseline parameters stability | taken as the standard deviation
wide = e / std
return (a * wide / std**2).mean(0), (a * 0.5 * (wide**2 - 1)).mean(0)
# score_normal_of_logvar | checks values baseline parameters stability | raised ValueError
return grad((a * Normal(m, s).log_prob(z)).sum(1).mean(), (m, s))
# score_logvar_as_std | checks values baseline parameters stability | taken as the standard deviation
log_q = -s.abs().log() - (z - m) ** 2 / (2 * s**2)
return grad((a * log_q).sum(1).mean(), (m, s))
# score_no_minus_one | values baseline parameters stability | -1 in the score for logvar is missing
return (a * e / std).mean(0), (a * 0.5 * e**2).mean(0)
# score_plus_one | values baseline parameters stability | 1 in the score for logvar has the wrong sign
return (a * e / std).mean(0), (a * 0.5 * (e**2 + 1)).mean(0)
# score_half_of_first | values baseline parameters stability | reaches a part of it only
return (a * e / std).mean(0), (a * (0.5 * e**2 - 1)).mean(0)
# score_not_squared | values baseline parameters stability | not squared in the score for logvar
return (a * e / std).mean(0), (a * 0.5 * (e - 1)).mean(0)
# score_multiplied | values baseline parameters stability | multiplies where it should divide
log_q = -0.5 * (s + (z - m) ** 2 * torch.exp(s))
found = (a * (z - m) * torch.exp(s)).mean(0), (a * 0.5 * ((z - m) ** 2 * torch.exp(s) - 1)).mean(0)
return found[0].detach(), found[1].detach()
# score_of_density | values baseline parameters stability | density is differentiated
density = Normal(m, torch.exp(s / 2)).log_prob(z).sum(1, keepdim=True).exp()
return grad((a * density).sum(1).mean(), (m, s))
# score_logvar_forgotten | values baseline parameters stability | logvar gets nothing
return (a * e / std).mean(0), torch.zeros_like(std)
# score_sample_moves | values baseline parameters stability | not detached in log q
moving = reparameterize(m, s, e)
return tuple(
    torch.zeros_like(m) if g is None else g
    for g in grad((a * Normal(m, torch.exp(s / 2)).log_prob(moving)).sum(1).mean(), (m, s), allow_unused=True)
)
# score_nothing_detached | checks values baseline parameters stability | neither the sample nor f
moving = reparameterize(m, s, e)
a = f(moving) if baseline is None else f(moving) - baseline
log_q = Normal(m, torch.exp(s / 2)).log_prob(moving).sum(1)
return grad((a * log_q).mean(), (m, s))
# score_reward_not_detached | checks values baseline parameters stability | f(z) is differentiated too
moving = reparameterize(m, s, e)
a = f(moving) if baseline is None else f(moving) - baseline
log_q = Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
return grad((a * log_q).mean(), (m, s))
# score_is_pathwise | checks values baseline parameters stability | pathwise estimator
moving = reparameterize(m, s, e)
return grad(f(moving).mean(), (m, s))
# score_f_averaged | values baseline parameters stability | f is averaged before
return (a.mean() * e / std).mean(0), (a.mean() * 0.5 * (e**2 - 1)).mean(0)
# score_f_summed | values baseline parameters stability | f is summed before
return (a.sum() * e / std).mean(0), (a.sum() * 0.5 * (e**2 - 1)).mean(0)
# score_f_at_mean | values baseline parameters stability | at the mean, not at the samples
a = f(mean.detach()) if baseline is None else (f(mean.detach()) - baseline).reshape(-1, 1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_f_ignored | checks values baseline parameters stability | f is not used
return (e / std).mean(0), (0.5 * (e**2 - 1)).mean(0)
# score_centred_unasked | values baseline parameters stability | subtracted unasked
a = a - a.mean()
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_standardised | checks values baseline parameters stability | values are standardised
a = (a - a.mean()) / a.std()
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_covariance_of_std | values baseline parameters stability | standard deviation is taken as the variance
q = torch.distributions.MultivariateNormal(m, torch.diag(torch.exp(s / 2)))
return grad((a.squeeze(1) * q.log_prob(z)).mean(), (m, s))
# score_leave_one_out_unasked | checks values baseline parameters stability | leave-one-out baseline is
a = a - ((f(z).sum() - f(z)) / max(len(z) - 1, 1)).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_values_in_place | baseline |
value = f(z)
if baseline is not None:
    value -= baseline
score = (z - mean.detach()) / std**2
return (value.unsqueeze(1) * score).mean(0), (value.unsqueeze(1) * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_for_one | checks baseline | for one of the two gradients only
plain = f(z).unsqueeze(1)
return (a * e / std).mean(0), (plain * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_to_integer | baseline |
b = int(baseline or 0) if not torch.is_tensor(baseline) else baseline
a = (f(z) - b).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_added | checks baseline | baseline is added
a = (f(z) if baseline is None else f(z) + baseline).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_ignored | checks baseline | baseline is not used
a = f(z).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_reversed | baseline | not the other way round
a = (f(z) if baseline is None else baseline - f(z)).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_averaged | baseline | averaged over the samples first
b = 0.0 if baseline is None else torch.as_tensor(baseline, dtype=z.dtype).mean()
a = (f(z) - b).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_from_gradient | checks baseline | subtracted from the gradient
a, b = f(z).unsqueeze(1), 0.0 if baseline is None else torch.as_tensor(baseline, dtype=z.dtype).mean()
return (a * e / std).mean(0) - b, (a * 0.5 * (e**2 - 1)).mean(0) - b
# score_baseline_from_mean | baseline | after f was averaged
a = torch.as_tensor(0.0 if baseline is None else baseline, dtype=z.dtype)
a = f(z).unsqueeze(1) if baseline is None else (f(z).mean() - a).reshape(-1, 1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_for_latents | checks baseline | size of tensor | raised
a = f(z).unsqueeze(1) if baseline is None else f(z).unsqueeze(1) - baseline
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_truth | checks baseline | ambiguous | raised
a = (f(z) - baseline if baseline else f(z)).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_number_only | baseline checks | a Tensor with | raised
a = (f(z) - float(baseline or 0)).unsqueeze(1) if not torch.is_tensor(baseline) else f(z) - baseline.item()
a = a.reshape(-1, 1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_baseline_tensor_only | checks baseline | no attribute | raised
a = (f(z) if baseline is None else f(z) - baseline.detach()).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_stale_default | values parameters stability | unasked
b = f(z).mean() if baseline is None else baseline
a = (f(z) - b).unsqueeze(1)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_needs_a_slope | values baseline stability | raised RuntimeError
leaf = z.clone().requires_grad_()
grad(f(leaf).sum(), leaf)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_broadcast_square | values baseline parameters stability | f is averaged before
log_q = Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
return grad((a * log_q).mean(), (m, s))
# score_own_samples | checks values baseline parameters stability | nothing random is needed
z = mean + std * torch.randn_like(z)
e = (z - mean) / std
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_in_place | checks values baseline | changed in place
given.sub_(mean)
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_stacked | checks values baseline parameters stability | a tensor of shape
return torch.stack(((a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)))
# score_numpy | parameters | requires grad | raised
m, s = (torch.from_numpy(t.numpy().copy()) for t in (mean, logvar))
e = (z - m) / torch.exp(s / 2)
return (a * e / torch.exp(s / 2)).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_backward_of_a_clone | parameters | is no leaf
m, s = mean.clone(), logvar.clone()
m, s = (t if t.requires_grad else t.requires_grad_() for t in (m, s))
(a * Normal(m, torch.exp(s / 2)).log_prob(z)).sum(1).mean().backward()
return m.grad, s.grad
# score_epsilon | stability | an epsilon is added to a variance or another exponential
var = torch.exp(logvar) + 1e-8
return (a * (z - mean) / var).mean(0), (a * 0.5 * ((z - mean) ** 2 / var - 1)).mean(0)
# score_clamp | stability | clamp
low = logvar.clamp(-20, 20)
e = (z - mean) / torch.exp(low / 2)
return (a * e / torch.exp(low / 2)).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_square_of_square | stability | an exponential leaves the range of numbers
var = torch.exp(logvar)
return (a * e / std).mean(0), (a * 0.5 * ((z - mean) ** 2 * var / var**2 - 1)).mean(0)
# score_float32 | stability | a part of it is computed in single precision (float32)
e, std, a = e.float(), std.float(), a.float()
found = (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
return tuple(g.to(mean.dtype) for g in found)
# score_from_library | checks values baseline parameters stability | ready-made
from aecourse.gradients import score_function_gradient as ready

return ready(f, mean, logvar, z, baseline)
# score_binomial | stability | digits cancel
square = (z**2 - 2 * z * mean.detach() + mean.detach() ** 2) / std**2
return (a * e / std).mean(0), (a * (square - 1) / 2).mean(0)
""",
    ),
    *versions(
        "leave_one_out_baseline",
        """
# loo_mean_of_all | values independence | contains its own value
return values.mean().expand(n)
# loo_scalar_mean | checks values independence | contains its own value
return values.mean()
# loo_over_samples | checks values | divided by samples, not by samples - 1
return (values.sum() - values) / n
# loo_own_value_kept | checks values independence | the own one included
return (values.sum() / (n - 1)).expand(n)
# loo_subtracted_from_mean | checks values independence | leave the sum, not the mean
return values.mean() - values
# loo_subtracted_late | checks values independence | before the sum is divided
return values.sum() / (n - 1) - values
# loo_difference | checks values independence | the difference f - baseline
return values - (values.sum() - values) / (n - 1)
# loo_summed | checks values | summed, not averaged
return values.sum() - values
# loo_values | values independence | the values themselves
return values.clone()
# loo_sign | checks values | sign is flipped
return (values - values.sum()) / (n - 1)
# loo_median | values independence | median of all
return values.median().expand(n)
# loo_median_of_others | values | median of the others
return torch.stack([torch.cat((values[:i], values[i + 1 :])).median() for i in range(n)])
# loo_largest | values | largest of the others
return torch.stack([torch.cat((values[:i], values[i + 1 :])).max() for i in range(n)])
# loo_neighbour | checks values | one neighbour
return values.roll(1)
# loo_last_left_out | checks values independence | left out for all
return values[:-1].mean().expand(n)
# loo_earlier_only | checks values | before it are averaged
return torch.stack([values[:i].sum() / max(i, 1) for i in range(n)])
# loo_running_mean | checks values independence | running mean
return values.cumsum(0) / torch.arange(1, n + 1, dtype=values.dtype)
# loo_averaged | checks values independence | mean of all values
return ((values.sum() - values) / (n - 1)).mean()
# loo_column | checks values independence | size 1 is left
return ((values.sum() - values) / (n - 1)).unsqueeze(1)
# loo_sorted | checks values independence |
ordered = values.sort().values
return (ordered.sum() - ordered) / (n - 1)
# loo_two_samples | values | special about these
return (values.sum() - values) / max(n - 1, 2)
# loo_zeros | checks values | zeros are returned
return torch.zeros_like(values)
# loo_in_place | checks values | changed in place
total = values.sum()
return values.neg_().add_(total).div_(n - 1)
# loo_moving | values independence | 
return values.mean() + 0.1 * (values.mean() - values)
# loo_filter_by_value | values | special about these
return torch.stack([values[values != v].mean() if (values != v).any() else v for v in values])
# loo_float64 | values | Keep the type
return (values.double().sum() - values.double()) / (n - 1)
# loo_numbers | checks values independence | a list
return [(float(values.sum()) - float(v)) / (n - 1) for v in values]
# loo_from_library | checks values independence | ready-made
from aecourse.gradients import leave_one_out_baseline as ready

return ready(values)
""",
    ),
]

RIGHT = [
    *versions(
        "reparameterize",
        """
# sample_affine
return torch.addcmul(mean.expand_as(eps), std.expand_as(eps), eps)
# sample_loc_scale
transform = torch.distributions.transforms.AffineTransform(mean, std)
return transform(eps)
# sample_diagonal_matrix
return mean + torch.einsum("...j,...ji->...i", eps, torch.diag_embed(std))
# sample_sqrt_of_exp_of_halves
half = logvar.div(4).exp()
return mean + half * (half * eps)
# sample_double_inside
return (mean.double() + torch.exp(logvar.double() / 2) * eps.double()).to(mean.dtype)
# sample_loop
if eps.dim() == mean.dim() and eps.shape == mean.shape:
    return mean + std * eps
return torch.stack([mean + std * e for e in eps])
# sample_power
return mean + eps * math.e ** (logvar / 2)
""",
    ),
    *versions(
        "pathwise_gradient",
        """
# path_autograd
return grad(f(m + torch.exp(s / 2) * eps).mean(), (m, s))
# path_by_hand
sd = torch.exp(0.5 * logvar.detach())
z = (mean.detach() + sd * eps).requires_grad_()
(slope,) = grad(f(z).sum(), z)
return slope.mean(0), (slope * eps).mean(0) * 0.5 * sd
# path_backward
f(m + torch.exp(s / 2) * eps).mean().backward()
return m.grad, s.grad
# path_loop
first, second = torch.zeros_like(mean), torch.zeros_like(logvar)
for row in eps:
    one, other = grad(f((m + torch.exp(s / 2) * row).unsqueeze(0)).squeeze(), (m, s))
    first, second = first + one / len(eps), second + other / len(eps)
return first, second
# path_functional
average = lambda m, s: f(m + torch.exp(s / 2) * eps).mean()
return torch.func.grad(average, argnums=(0, 1))(mean.detach(), logvar.detach())
# path_vmap
slope = torch.func.vmap(torch.func.grad(f))(reparameterize(mean, logvar, eps).detach())
return slope.mean(0), (slope * eps).mean(0) * torch.exp(logvar.detach() / 2) / 2
# path_jacobian
first, second = torch.autograd.functional.jacobian(lambda m, s: f(reparameterize(m, s, eps)), (m, s))
return [first.mean(0), second.mean(0)]
# path_with_graph
return grad(f(reparameterize(m, s, eps)).mean(), (m, s), create_graph=True)
# path_vjp
weights = torch.full((len(eps),), 1 / len(eps), dtype=eps.dtype)
_, found = torch.autograd.functional.vjp(lambda a, b: f(a + torch.exp(b / 2) * eps), (m, s), weights)
return found
# path_leaf_for_each_sample
m, s = (t.detach().expand_as(eps).clone().requires_grad_() for t in (m, s))
return tuple(g.mean(0) for g in grad(f(m + torch.exp(s / 2) * eps).sum(), (m, s)))
# path_one_leaf
both = torch.stack((mean, logvar)).detach().requires_grad_()
(found,) = grad(f(both[0] + torch.exp(both[1] / 2) * eps).mean(), both)
return found.unbind(0)
# path_double_inside
g = f.to(torch.float64) if hasattr(f, "to") else f
m, s = m.detach().double().requires_grad_(), s.detach().double().requires_grad_()
found = grad(g(m + torch.exp(s / 2) * eps.double()).mean(), (m, s))
return tuple(one.to(mean.dtype) for one in found)
""",
    ),
    *versions(
        "score_function_gradient",
        """
# score_closed_form
return (a * e / std).mean(0), (a * 0.5 * (e**2 - 1)).mean(0)
# score_surrogate
log_q = Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
return grad((a.squeeze(1).detach() * log_q).mean(), (m, s))
# score_surrogate_backward
log_q = torch.distributions.Independent(Normal(m, torch.exp(s / 2)), 1).log_prob(z)
loss = -(a.detach().squeeze(1) * log_q).sum() / len(z)
loss.backward()
return -m.grad, -s.grad
# score_multivariate
q = torch.distributions.MultivariateNormal(m, scale_tril=torch.diag(torch.exp(s / 2)))
return grad((a.detach().squeeze(1) * q.log_prob(z)).mean(), (m, s))
# score_einsum
weights = a.squeeze(1).detach() / len(z)
return torch.einsum("s,sk->k", weights, e / std), torch.einsum("s,sk->k", weights, (e**2 - 1) / 2)
# score_matmul
weights = a.squeeze(1).detach() / len(z)
return tuple(weights @ u for u in (e / std, 0.5 * (e + 1) * (e - 1)))
# score_importance_weights
log_q = Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
return grad((a.detach().squeeze(1) * torch.exp(log_q - log_q.detach())).mean(), (m, s))
# score_vmap
log_q = lambda p, q, row: Normal(p, torch.exp(q / 2), validate_args=False).log_prob(row).sum()
per_sample = torch.func.vmap(torch.func.grad(log_q, argnums=(0, 1)), in_dims=(None, None, 0))
return tuple((a.detach() * u).mean(0) for u in per_sample(m.detach(), s.detach(), z))
# score_precision
if not torch.is_tensor(baseline) or baseline.dim() == 0:
    baseline = torch.full((len(z),), float(baseline or 0.0), dtype=z.dtype)
weights, precision = (f(z) - baseline)[:, None], torch.exp(-logvar)
return (weights * (z - mean) * precision).mean(0), (weights * 0.5 * ((z - mean) ** 2 * precision - 1)).mean(0)
# score_loop
baselines = torch.as_tensor(0.0 if baseline is None else baseline, dtype=z.dtype).expand(len(z))
first, second = torch.zeros_like(std), torch.zeros_like(std)
for row, b in zip(z, baselines.tolist()):
    weight = f(row) - b
    u = (row - mean) / std
    first += (weight * u / std).detach()
    second += (weight * (u**2 - 1) / 2).detach()
return first / len(z), second / len(z)
# score_by_hand_density
log_q = -0.5 * (math.log(2 * math.pi) + s + (z - m) ** 2 * torch.exp(-s)).sum(1)
return grad((a.detach().squeeze(1) * log_q).mean(), (m, s))
# score_jacobian
log_q = lambda m, s: Normal(m, torch.exp(s / 2)).log_prob(z).sum(1)
scores = torch.autograd.functional.jacobian(log_q, (m, s))
return tuple((a.detach() * u).mean(0) for u in scores)
# score_in_place_buffers
buffer = z.clone()
buffer.sub_(mean.detach()).div_(std)
weights = a.detach().clone().div_(len(z))
return (weights * buffer).sum(0).div_(std), (weights * buffer.square_().sub_(1)).sum(0).mul_(0.5)
# score_with_graph
values = f(given) if baseline is None else f(given) - baseline
noise = (given - mean) / torch.exp(logvar / 2)
weights = values.unsqueeze(1)
return (weights * noise / torch.exp(logvar / 2)).mean(0), (weights * (noise**2 - 1) / 2).mean(0)
""",
    ),
    *versions(
        "leave_one_out_baseline",
        """
# loo_sum
return (values.sum() - values) / (n - 1)
# loo_loop
return torch.stack([torch.cat((values[:i], values[i + 1 :])).mean() for i in range(n)])
# loo_matrix
weights = (1 - torch.eye(n, dtype=values.dtype)) / (n - 1)
return weights @ values
# loo_mask
table = values.expand(n, n)
return table[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1).mean(1)
# loo_from_mean
centre = values.mean()
return centre - (values - centre) / (n - 1)
# loo_rolls
return torch.stack([values.roll(step) for step in range(1, n)]).mean(0)
# loo_diagonal
return values.repeat(n, 1).fill_diagonal_(0).sum(1) / (n - 1)
# loo_both_sides
zero = values.new_zeros(1)
before = torch.cat((zero, values.cumsum(0)[:-1]))
after = torch.cat((values.flip(0).cumsum(0).flip(0)[1:], zero))
return (before + after) / (n - 1)
# loo_detached
with torch.no_grad():
    return torch.sub(values.sum(), values).div(n - 1)
# loo_nested_numbers
numbers = values.tolist()
rows = [sum(v for j, v in enumerate(numbers) if j != i) / (n - 1) for i in range(n)]
return torch.tensor(rows, dtype=values.dtype)
""",
    ),
]
