"""Wrong and right versions of the five functions of the assignment `elbo`, for test_assignments.py.

The slips come from public issue threads (averaged KL: keras-io#270; (log s)^2: model-zoo#147; exp(logvar)
as standard deviation: keras#3283; KL over batch times pixels: pytorch/examples#290), from a lecture's slide
(the squared variance), and from what the formulas invite.
"""

from mutants import versions_of

# The start of every version, with names that its body may use.
STARTS = {
    "gaussian_kl": "def gaussian_kl(mean, logvar):\n",
    "full_gaussian_kl": """def full_gaussian_kl(mean, cov):
    trace, square = cov.diagonal(dim1=1, dim2=2).sum(1), (mean**2).sum(1)
    k, logdet = mean.shape[1], torch.logdet(cov)
""",
    "bernoulli_log_likelihood": """def bernoulli_log_likelihood(x, logits):
    bce = torch.nn.functional.binary_cross_entropy_with_logits
""",
    "gaussian_log_likelihood": """def gaussian_log_likelihood(x, mean, logvar):
    c, var = math.log(2 * math.pi), logvar.exp()
""",
    "elbo": """def elbo(x, logits, mean, logvar, beta=1.0):
    ll, kl = bernoulli_log_likelihood(x, logits), gaussian_kl(mean, logvar)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
""",
}
versions = versions_of(STARTS)

WRONG = [
    *versions(
        "gaussian_kl",
        """
# kl_mean | SOME | averaged, not summed
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).mean(1)
# kl_not_summed | ALL | not summed
return 0.5 * (mean**2 + logvar.exp() - logvar - 1)
# kl_sum_all | ALL | batch too
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum()
# kl_mean_all | ALL | mean runs over everything
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).mean()
# kl_batch_mean | ALL | mean over the batch is taken
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).mean()
# kl_sum_dim0 | ALL | over the batch, not
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(0)
# kl_over_batch_size | SOME | divided by the batch size
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1) / len(mean)
# kl_keepdim | ALL | size 1 is left
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1, keepdim=True)
# kl_squeeze | SOME | a batch of one
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).squeeze()
# kl_lost_half | SOME | half in front is missing
return (mean**2 + logvar.exp() - logvar - 1).sum(1)
# kl_quarter | SOME | half too many
return 0.25 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
# kl_half_of_first | SOME | part of the bracket
return (0.5 * mean**2 + logvar.exp() - logvar - 1).sum(1)
# kl_half_of_last | ALL | part of the bracket
return (mean**2 + logvar.exp() - 0.5 * (1 + logvar)).sum(1)
# kl_sign | ALL | sign is flipped
return 0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1)
# kl_mean_and_sign | ALL | averaged, not summed; the sign
return 0.5 * (1 + logvar - mean**2 - logvar.exp()).mean(1)
# kl_logvar_as_std | ALL | logvar is taken as the standard deviation
return 0.5 * (mean**2 + logvar**2 - 2 * logvar.log() - 1).sum(1)
# kl_logvar_as_std_log_square | ALL | logvar is taken as the standard deviation
return 0.5 * (mean**2 + logvar**2 - (logvar**2).log() - 1).sum(1)
# kl_logvar_as_variance | ALL | logvar is taken as the variance
return 0.5 * (mean**2 + logvar - logvar.log() - 1).sum(1)
# kl_exp_as_std | SOME | taken as the standard deviation
std = logvar.exp()
return 0.5 * (mean**2 + std**2 - 2 * std.log() - 1).sum(1)
# kl_variance_squared | SOME | variance is squared
return 0.5 * (mean**2 + logvar.exp() ** 2 - logvar - 1).sum(1)
# kl_std_for_variance | SOME | standard deviation stands where
std = (0.5 * logvar).exp()
return 0.5 * (mean**2 + std - logvar - 1).sum(1)
# kl_log_std | ALL | log of the standard deviation
std = (0.5 * logvar).exp()
return 0.5 * (mean**2 + std**2 - std.log() - 1).sum(1)
# kl_log_squared | ALL | logarithm is squared
std = (0.5 * logvar).exp()
return 0.5 * (mean**2 + std**2 - std.log() ** 2 - 1).sum(1)
# kl_one_missing | checks values stability | -1 of each latent is missing
return 0.5 * (mean**2 + logvar.exp() - logvar).sum(1)
# kl_one_once | checks values stability | subtracted once
return 0.5 * ((mean**2 + logvar.exp() - logvar).sum(1) - 1)
# kl_plus_one | checks values stability | 1 has the wrong sign
return 0.5 * (mean**2 + logvar.exp() - logvar + 1).sum(1)
# kl_logvar_sign | ALL | log-variance has the wrong sign
return 0.5 * (mean**2 + logvar.exp() + logvar - 1).sum(1)
# kl_no_log | ALL | log-variance term is missing
return 0.5 * (mean**2 + logvar.exp() - 1).sum(1)
# kl_mean_not_squared | ALL | mean is not squared
return 0.5 * (mean + logvar.exp() - logvar - 1).sum(1)
# kl_no_mean | SOME | mean is missing
return 0.5 * (logvar.exp() - logvar - 1).sum(1)
# kl_reversed | SOME | swapped
return 0.5 * ((1 + mean**2) / logvar.exp() + logvar - 1).sum(1)
# kl_arguments_swapped | SOME | mean and logvar are swapped
return 0.5 * (logvar**2 + mean.exp() - mean - 1).sum(1)
# kl_bits | SOME | bits
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1) / math.log(2)
# kl_epsilon | stability | an epsilon is added before the log is taken
var = logvar.exp()
return 0.5 * (mean**2 + var - torch.log(var + 1e-8) - 1).sum(1)
# kl_clamp | stability | clamp
logvar = logvar.clamp(-10, 10)
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
# kl_float32 | gradients stability | float64 | a part of it is computed in single precision (float32)
m, s = mean.float(), logvar.float()
return (0.5 * (m**2 + s.exp() - s - 1).sum(1)).to(mean.dtype)
# kl_float64 | values | Keep the type
m, s = mean.double(), logvar.double()
return 0.5 * (m**2 + s.exp() - s - 1).sum(1)
# kl_detach | gradients stability | no gradient reaches
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1).detach()
# kl_detach_logvar | gradients | graph is cut
return 0.5 * (mean**2 + logvar.detach().exp() - logvar - 1).sum(1)
# kl_data | gradients stability | no gradient reaches logvar
return 0.5 * (mean**2 + logvar.data.exp() - logvar.data - 1).sum(1)
# kl_no_grad | gradients stability | no gradient reaches
with torch.no_grad():
    return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
# kl_item | gradients stability | .item()
rows = [0.5 * (m**2 + s.exp() - s - 1).sum().item() for m, s in zip(mean, logvar)]
return torch.tensor(rows, dtype=mean.dtype)
# kl_numpy | gradients stability | .numpy()
m, s = mean.detach().numpy(), logvar.detach().numpy()
return torch.from_numpy(0.5 * (m**2 + __import__("numpy").exp(s) - s - 1).sum(1))
# kl_list | ALL | a list is returned | expected one number per example, a tensor of shape
return [0.5 * (m**2 + s.exp() - s - 1).sum() for m, s in zip(mean, logvar)]
# kl_inputs_clamped | stability | no log | limited (clamped)
with torch.no_grad():
    logvar.clamp_(-20, 20)
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
# kl_from_the_checks | ALL | ready-made
from aecourse.checks.elbo import gaussian_kl as ready

return ready(mean, logvar)
# kl_in_place | ALL | changed in place
return 0.5 * (mean.square_() + logvar.exp() - logvar - 1).sum(1)
# kl_ready_made | ALL | ready-made
q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
return torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
# kl_sampled | ALL | Two calls
z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
q, p = torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
return (q.log_prob(z) - p.log_prob(z)).sum(1)
""",
    ),
    *versions(
        "full_gaussian_kl",
        """
# full_logdet_sign | ALL | log-determinant has the wrong sign
return 0.5 * (trace + square - k + logdet)
# full_no_logdet | ALL | log-determinant is missing
return 0.5 * (trace + square - k)
# full_no_trace | ALL | trace is missing
return 0.5 * (square - k - logdet)
# full_no_k | checks values stability | k is missing
return 0.5 * (trace + square - logdet)
# full_one_for_k | checks values stability | 1 stands in place of k
return 0.5 * (trace + square - 1 - logdet)
# full_batch_for_k | checks values stability | batch size stands
return 0.5 * (trace + square - len(mean) - logdet)
# full_no_mean | SOME | mean is missing
return 0.5 * (trace - k - logdet)
# full_lost_half | SOME | half in front is missing
return trace + square - k - logdet
# full_half_of_first | ALL | part of the bracket
return 0.5 * (trace + square) - k - logdet
# full_sign | ALL | sign is flipped
return -0.5 * (trace + square - k - logdet)
# full_over_k | SOME | averaged, not summed
return 0.5 * (trace + square - k - logdet) / k
# full_batch_mean | ALL | mean over the batch is taken
return (0.5 * (trace + square - k - logdet)).mean()
# full_trace_of_batch | ALL | trace is summed over the batch
return 0.5 * (torch.einsum("bii->", cov) + square - k - logdet)
# full_square_of_batch | SOME | squared mean is summed over the batch
return 0.5 * (trace + (mean**2).sum() - k - logdet)
# full_determinant | ALL | determinant stands in place of its log
return 0.5 * (trace + square - k - torch.det(cov))
# full_sign_of_det | ALL | sign of the determinant
return 0.5 * (trace + square - k - torch.linalg.slogdet(cov)[0])
# full_first_cov | SOME | first covariance
return 0.5 * (trace[0] + square - k - logdet[0])
# full_half_cholesky | ALL | log-determinant is halved
return 0.5 * (trace + square - k - torch.linalg.cholesky(cov).diagonal(dim1=1, dim2=2).log().sum(1))
# full_diagonal_only | SOME | only the diagonal
return 0.5 * (trace + square - k - cov.diagonal(dim1=1, dim2=2).log().sum(1))
# full_sum_of_entries | SOME | all entries of cov
return 0.5 * (cov.sum((1, 2)) + square - k - logdet)
# full_cov_as_std | SOME | cov is taken as a standard deviation
return 0.5 * ((cov @ cov.mT).diagonal(dim1=1, dim2=2).sum(1) + square - k - 2 * logdet)
# full_frobenius | SOME | squared in the trace
return 0.5 * ((cov**2).sum((1, 2)) + square - k - logdet)
# full_mahalanobis | SOME | inverse of cov
return 0.5 * (trace + (mean * torch.linalg.solve(cov, mean)).sum(1) - k - logdet)
# full_reversed | SOME | swapped
inverse = torch.linalg.inv(cov)
mahalanobis = torch.einsum("bi,bij,bj->b", mean, inverse, mean)
return 0.5 * (inverse.diagonal(dim1=1, dim2=2).sum(1) + mahalanobis - k + logdet)
# full_mean_not_squared | ALL | mean is not squared
return 0.5 * (trace + mean.sum(1) - k - logdet)
# full_log_det | stability | rounded to 0, or has overflowed
return 0.5 * (trace + square - k - torch.det(cov).log())
# full_small_eigenvalues_clamped | stability | a clamp changes what the log is taken of
values = torch.linalg.eigvalsh(cov).clamp(min=1e-6)
return 0.5 * ((values - values.log() - 1).sum(-1) + square)
# full_tiny_jitter | stability | jitter
return 0.5 * (trace + square - k - torch.logdet(cov + 1e-10 * torch.eye(k, dtype=cov.dtype)))
# full_squared_determinant | stability | jitter
return 0.5 * (trace + square - k - 0.5 * torch.logdet(cov @ cov))
# full_jitter | stability | jitter
return 0.5 * (trace + square - k - torch.logdet(cov + 1e-6 * torch.eye(k, dtype=cov.dtype)))
# full_detached_logdet | gradients | graph is cut
return 0.5 * (trace + square - k - logdet.detach())
# full_detached_trace | gradients | graph is cut
return 0.5 * (trace.data + square - k - logdet)
# full_ready_made | ALL | ready-made
from torch.distributions import MultivariateNormal
from torch.distributions.kl import kl_divergence

k = mean.shape[1]
prior = MultivariateNormal(torch.zeros(k, dtype=mean.dtype), torch.eye(k, dtype=mean.dtype))
return kl_divergence(MultivariateNormal(mean, cov), prior)
# full_product_of_eigenvalues | stability | rounded to 0, or has overflowed
return 0.5 * (trace + square - k - torch.linalg.eigvalsh(cov).prod(-1).log())
# full_epsilon_in_log | stability | a jitter is added to the diagonal
return 0.5 * (trace + square - k - (torch.linalg.eigvalsh(cov) + 1e-9).log().sum(-1))
""",
    ),
    *versions(
        "bernoulli_log_likelihood",
        """
# bernoulli_mean | SOME | averaged, not summed
return -bce(logits, x, reduction="none").flatten(1).mean(1)
# bernoulli_default_reduction | ALL | mean runs over everything
return -bce(logits, x)
# bernoulli_sum_all | ALL | batch too
return -bce(logits, x, reduction="sum")
# bernoulli_over_batch_size | SOME | divided by the batch size
return -bce(logits, x, reduction="none").flatten(1).sum(1) / len(x)
# bernoulli_last_dim | ALL | last dimension only
return -bce(logits, x, reduction="none").sum(-1)
# bernoulli_dim1 | ALL | dimension 1 only
return -bce(logits, x, reduction="none").sum(1)
# bernoulli_not_summed | ALL | not summed
return -bce(logits, x, reduction="none")
# bernoulli_loss | ALL | this is a loss
return bce(logits, x, reduction="none").flatten(1).sum(1)
# bernoulli_loss_mean | ALL | mean runs over everything
return bce(logits, x)
# bernoulli_double_sigmoid | SOME | sigmoid is taken twice
return -bce(torch.sigmoid(logits), x, reduction="none").flatten(1).sum(1)
# bernoulli_probabilities | ALL | taken as probabilities
return (x * logits.log() + (1 - x) * (1 - logits).log()).flatten(1).sum(1)
# bernoulli_probabilities_clamped | ALL | taken as probabilities
p = logits.clamp(1e-6, 1 - 1e-6)
return (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
# bernoulli_bright_only | ALL | (1 - x) log(1 - p) is missing
return (x * torch.nn.functional.logsigmoid(logits)).flatten(1).sum(1)
# bernoulli_no_normaliser | ALL | normaliser of the logits
return (x * logits).flatten(1).sum(1)
# bernoulli_swapped | ALL | swapped
return -bce(-logits, x, reduction="none").flatten(1).sum(1)
# bernoulli_arguments_swapped | ALL | x and logits are swapped
return -bce(x, logits, reduction="none").flatten(1).sum(1)
# bernoulli_sign_inside | ALL | second term has the wrong sign
log_p, log_q = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
return (x * log_p - (1 - x) * log_q).flatten(1).sum(1)
# bernoulli_rounded | SOME | rounded
return -bce(logits, (x > 0.5).to(x.dtype), reduction="none").flatten(1).sum(1)
# bernoulli_squared_error | SOME | squared error
return -((x - logits.sigmoid()) ** 2).flatten(1).sum(1)
# bernoulli_continuous | SOME | continuous Bernoulli
return torch.distributions.ContinuousBernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
# bernoulli_bits | SOME | bits
return -bce(logits, x, reduction="none").flatten(1).sum(1) / math.log(2)
# bernoulli_log_of_sigmoid | stability | a sigmoid has been rounded to 0 or 1 before its log is taken
p = logits.sigmoid()
return (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
# bernoulli_epsilon | stability | an epsilon is added before the log is taken
p = logits.sigmoid()
return (x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()).flatten(1).sum(1)
# bernoulli_bce_of_sigmoid | stability | a sigmoid has been rounded to 0 or 1 before its log is taken
loss = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), x, reduction="none")
return -loss.flatten(1).sum(1)
# bernoulli_naive_softplus | stability | an exponential leaves the range of numbers
return (x * logits - torch.log(1 + logits.exp())).flatten(1).sum(1)
# bernoulli_clamped_logits | stability | logits is limited (clamped)
return -bce(logits.clamp(-30, 30), x, reduction="none").flatten(1).sum(1)
# bernoulli_where | stability | gradient is missing or not finite
small, large = -torch.log1p(logits.exp()), -logits - torch.log1p((-logits).exp())
return (x * logits + torch.where(logits > 0, large, small)).flatten(1).sum(1)
# bernoulli_no_grad | gradients stability | no gradient reaches logits
with torch.no_grad():
    return -bce(logits, x, reduction="none").flatten(1).sum(1)
# bernoulli_detached_normaliser | gradients | graph is cut
return (x * logits - torch.nn.functional.softplus(logits).detach()).flatten(1).sum(1)
# bernoulli_new_tensor | gradients stability | torch.tensor
return torch.tensor([-bce(a, b, reduction="sum").item() for a, b in zip(logits, x)], dtype=x.dtype)
# bernoulli_log1p_exp | stability | an exponential leaves the range
return (x * logits - torch.log1p(logits.exp())).flatten(1).sum(1)
""",
    ),
    *versions(
        "gaussian_log_likelihood",
        """
# gaussian_variance_squared | SOME | variance is squared too
return (-0.5 * (c + logvar + ((x - mean) / var) ** 2)).flatten(1).sum(1)
# gaussian_lost_half | SOME | half in front is missing
return (-(c + logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_half_of_constant | SOME | part of the bracket
return (-0.5 * c - logvar - (x - mean) ** 2 / var).flatten(1).sum(1)
# gaussian_square_not_halved | SOME | part of the bracket
return (-0.5 * (c + logvar) - (x - mean) ** 2 / var).flatten(1).sum(1)
# gaussian_no_constant | values stability | constant with log 2 pi is missing
return (-0.5 * (logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_constant_not_halved | values stability | half before log 2 pi
return (-c - 0.5 * (logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_constant_once | values stability | constant is counted once
return (-0.5 * (c / x[0].numel() + logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_constant_per_channel | values stability | counted per channel
return (-0.5 * (c * x.shape[1] / x[0].numel() + logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_log_pi | values stability | log pi
return (-0.5 * (math.log(math.pi) + logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_logvar_as_std | ALL | logvar is taken as the standard deviation
return (-0.5 * (c + 2 * logvar.log() + (x - mean) ** 2 / logvar**2)).flatten(1).sum(1)
# gaussian_logvar_as_variance | ALL | logvar is taken as the variance
return (-0.5 * (c + logvar.log() + (x - mean) ** 2 / logvar)).flatten(1).sum(1)
# gaussian_exp_as_std | SOME | taken as the standard deviation
return (torch.distributions.Normal(mean, var).log_prob(x)).flatten(1).sum(1)
# gaussian_divided_by_std | SOME | standard deviation stands where
return (-0.5 * (c + logvar + (x - mean) ** 2 / var.sqrt())).flatten(1).sum(1)
# gaussian_log_std | SOME | log of the standard deviation
return (-0.5 * (c + var.sqrt().log() + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_no_logvar | SOME | log-variance term is missing
return (-0.5 * (c + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_logvar_sign | SOME | log-variance has the wrong sign
return (-0.5 * (c - logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_multiplied | SOME | multiplies where it should divide
return (-0.5 * (c + logvar + (x - mean) ** 2 * var)).flatten(1).sum(1)
# gaussian_squared_error | SOME | plain squared error
return (-((x - mean) ** 2)).flatten(1).sum(1)
# gaussian_ignores_variance | SOME | variance is ignored
return (-0.5 * (c + (x - mean) ** 2)).flatten(1).sum(1)
# gaussian_absolute | SOME | not squared
return (-0.5 * (c + logvar + (x - mean).abs() / var)).flatten(1).sum(1)
# gaussian_loss | ALL | this is a loss
return (0.5 * (c + logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_mean | SOME | averaged, not summed
return (-0.5 * (c + logvar + (x - mean) ** 2 / var)).flatten(1).mean(1)
# gaussian_last_dim | ALL | last dimension only
return (-0.5 * (c + logvar + (x - mean) ** 2 / var)).sum(-1)
# gaussian_sum_all | ALL | batch too
return (-0.5 * (c + logvar + (x - mean) ** 2 / var)).sum()
# gaussian_channel_sum | ALL | Dimension out of range | raised
return (-0.5 * (c + logvar + (x - mean) ** 2 / var)).sum((1, 2, 3))
# gaussian_epsilon | stability | an epsilon is added to a variance or another exponential
return (-0.5 * (c + logvar + (x - mean) ** 2 / (var + 1e-6))).flatten(1).sum(1)
# gaussian_rounded_constant | stability | a constant is rounded
return (-0.91894 - 0.5 * (logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_log_of_density | stability | no log need be taken
return torch.log(torch.exp(-((x - mean) ** 2) / (2 * var)) / torch.sqrt(2 * math.pi * var)).flatten(1).sum(1)
# gaussian_detached_square | gradients stability | no gradient reaches mean
return (-0.5 * (c + logvar + ((x - mean) ** 2).detach() / var)).flatten(1).sum(1)
# gaussian_detached_log | gradients | graph is cut
return (-0.5 * (c + logvar.detach() + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_constant_float32 | stability | in single precision
c = torch.tensor(2 * math.pi).log().to(x.dtype)
return (-0.5 * (c + logvar + (x - mean) ** 2 / var)).flatten(1).sum(1)
# gaussian_variance_floor | stability | clamp
return (-0.5 * (c + logvar + (x - mean) ** 2 / var.clamp_min(1e-6))).flatten(1).sum(1)
""",
    ),
    *versions(
        "elbo",
        """
# elbo_kl_added | checks values gradients | KL is added
return ll + beta * kl
# elbo_loss | checks values gradients | this is a loss
return beta * kl - ll
# elbo_beta_unused | checks values gradients | beta is not used
return ll - kl
# elbo_beta_on_likelihood | checks values gradients | multiplies the log-likelihood
return beta * ll - kl
# elbo_beta_on_both | checks values gradients | whole bound
return beta * (ll - kl)
# elbo_beta_divides | checks values gradients | beta divides
return ll - kl / beta
# elbo_beta_squared | values gradients | beta is squared
return ll - beta**2 * kl
# elbo_default_beta | checks values gradients | default of beta
def elbo(x, logits, mean, logvar, beta=4.0):
    return bernoulli_log_likelihood(x, logits) - beta * gaussian_kl(mean, logvar)
# elbo_falsy_beta | values gradients | beta=0
return ll - (beta or 1.0) * kl
# elbo_keyword_only | values gradients | positional | raised
def elbo(x, logits, mean, logvar, *, beta=1.0):
    return bernoulli_log_likelihood(x, logits) - beta * gaussian_kl(mean, logvar)
# elbo_no_kl | checks values gradients | KL is left out
return ll
# elbo_no_likelihood | values gradients | log-likelihood is left out
return -beta * kl
# elbo_scalar_mean | checks values gradients | mean over the batch is taken
return (ll - beta * kl).mean()
# elbo_scalar_sum | checks values gradients | batch too
return (ll - beta * kl).sum()
# elbo_kl_of_batch | values gradients | KL is summed over the batch
return ll - beta * kl.sum()
# elbo_kl_batch_mean | values gradients | KL is averaged over the batch
return ll - beta * kl.mean()
# elbo_pixel_mean | values gradients | averaged over the pixels
return ll / x[0].numel() - beta * kl
# elbo_latent_mean | values gradients | averaged over the latents
return ll - beta * kl / mean.shape[1]
# elbo_lost_half | values gradients | half of the KL
return ll - beta * (mean**2 + logvar.exp() - logvar - 1).sum(1)
# elbo_squared_error | values gradients | squared error
return -((x - logits.sigmoid()) ** 2).flatten(1).sum(1) - beta * kl
# elbo_double_sigmoid | values gradients | sigmoid is taken twice
return bernoulli_log_likelihood(x, logits.sigmoid()) - beta * kl
# elbo_exp_logvar | checks values gradients | given the variance
return ll - beta * gaussian_kl(mean, logvar.exp())
# elbo_detached_kl | gradients | no gradient reaches mean
return ll - beta * kl.detach()
# elbo_detached_likelihood | gradients | no gradient reaches logits
return ll.detach() - beta * kl
# elbo_annealed | checks values gradients | 
return ll - min(beta, 1.0) * kl
""",
    ),
]

RIGHT = [
    *versions(
        "gaussian_kl",
        """
# kl_einsum
var = logvar.exp()
return 0.5 * (torch.einsum("bk,bk->b", mean, mean) + var.sum(-1) - logvar.sum(-1) - mean.shape[-1])
# kl_paper
return -0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp(), dim=-1)
# kl_loops
result = []
for m, s in zip(mean, logvar):
    total = 0.0
    for j in range(len(m)):
        total = total + 0.5 * (m[j] ** 2 + torch.exp(s[j]) - s[j] - 1)
    result.append(total)
return torch.stack(result)
# kl_std
std = (0.5 * logvar).exp()
return (0.5 * (mean**2 + std**2) - std.log() - 0.5).sum(1)
# kl_entropy
q = torch.distributions.Normal(mean, (logvar / 2).exp())
cross_entropy = 0.5 * (math.log(2 * math.pi) + mean**2 + q.variance)
return (cross_entropy - q.entropy()).sum(1)
# kl_double_inside
m, s = mean.double(), logvar.double()
return (0.5 * (m**2 + s.exp() - s - 1).sum(1)).to(mean.dtype)
# kl_vmap
return torch.vmap(lambda m, s: 0.5 * (m @ m + (s.exp() - s - 1).sum()))(mean, logvar)
# kl_expm1
return 0.5 * (mean**2 + torch.expm1(logvar) - logvar).sum(1)
# kl_warns_and_prints
import warnings

warnings.warn("a deprecated way to transpose")
print("shape", mean.shape)
return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)
""",
    ),
    *versions(
        "full_gaussian_kl",
        """
# full_cholesky
factor = torch.linalg.cholesky(cov)
logdet = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
return 0.5 * ((factor**2).sum((-2, -1)) + (mean**2).sum(-1) - mean.shape[-1] - logdet)
# full_logdet
return 0.5 * (trace + square - k - logdet)
# full_eigenvalues
values = torch.linalg.eigvalsh(cov)
return 0.5 * ((values - values.log() - 1).sum(-1) + mean.square().sum(-1))
# full_qr
factor = torch.linalg.qr(cov).R
return 0.5 * (trace + square - k - factor.diagonal(dim1=1, dim2=2).abs().log().sum(1))
# full_loop_trace
rows = [torch.trace(c) + m @ m - len(m) - torch.slogdet(c)[1] for m, c in zip(mean, cov)]
return 0.5 * torch.stack(rows)
# full_einsum_singular_values
trace, square = torch.einsum("bii->b", cov), torch.einsum("bi,bi->b", mean, mean)
return 0.5 * (trace + square - mean.size(1) - torch.linalg.svdvals(cov).log().sum(1))
# full_entropy
q = torch.distributions.MultivariateNormal(mean, cov)
second_moment = torch.einsum("bii->b", cov) + (mean**2).sum(1)
return 0.5 * (second_moment + mean.shape[1] * math.log(2 * math.pi)) - q.entropy()
""",
    ),
    *versions(
        "bernoulli_log_likelihood",
        """
# bernoulli_softplus
return (x * logits - torch.nn.functional.softplus(logits)).flatten(1).sum(-1)
# bernoulli_bce
return -bce(logits, x, reduction="none").sum(tuple(range(1, x.dim())))
# bernoulli_log_prob
p = torch.distributions.Bernoulli(logits=logits, validate_args=False)
return p.log_prob(x).reshape(len(x), -1).sum(1)
# bernoulli_logaddexp
return (x * logits - torch.logaddexp(logits, torch.zeros_like(logits))).reshape(x.shape[0], -1).sum(1)
# bernoulli_loops
return torch.stack([-bce(a, b, reduction="sum") for a, b in zip(logits, x)])
# bernoulli_by_hand
return (x * logits - logits.clamp(min=0) - torch.log1p(torch.exp(-logits.abs()))).flatten(1).sum(1)
# bernoulli_log_softmax
off, on = torch.stack([torch.zeros_like(logits), logits]).log_softmax(0)
return (x * on + (1 - x) * off).flatten(1).sum(1)
""",
    ),
    *versions(
        "gaussian_log_likelihood",
        """
# gaussian_log_prob
return torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(x).flatten(1).sum(1)
# gaussian_independent
q = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
return torch.distributions.Independent(q, x.dim() - 1).log_prob(x)
# gaussian_nll_loss
nll = torch.nn.functional.gaussian_nll_loss
terms = nll(mean, x, logvar.exp(), full=True, eps=1e-40, reduction="none")
return -terms.flatten(1).sum(1)
# gaussian_standardised
d = x[0].numel()
z = (x - mean) / (logvar / 2).exp()
return -0.5 * (d * math.log(2 * math.pi) + (logvar + z**2).flatten(1).sum(1))
# gaussian_double_inside
terms = math.log(2 * math.pi) + logvar.double() + (x.double() - mean) ** 2 / logvar.double().exp()
return -0.5 * terms.flatten(1).sum(1).to(x.dtype)
""",
    ),
    *versions(
        "elbo",
        """
# elbo_by_hand
by_hand = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1)
return -bce(logits, x, reduction="none").flatten(1).sum(1) - beta * by_hand
# elbo_negative_loss
loss = beta * kl - ll
return -loss
# elbo_torch_beta
return torch.sub(ll, torch.as_tensor(beta, dtype=x.dtype) * kl)
# elbo_loops
return torch.stack([a - beta * b for a, b in zip(ll, kl)])
""",
    ),
]
