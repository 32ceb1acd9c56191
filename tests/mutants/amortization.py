"""Wrong and right versions of the four functions of the assignment `amortization`, for test_assignments.py.

The slips come from public issue threads (exp(logvar) as standard deviation: keras#3283, ibp_vae#3; samples
that cut the graph: deepdow#106; averages against sums: keras-io#270; the mean decoded in place of a sample:
pytorch/examples#419), from the chapter's list of common mistakes, and from what the formulas invite.
"""

from mutants import versions_of

# The start of every version, with names that its body may use. A body of fit_posterior is the loss of a step
# as a function of m, v (leaves), noise, z and the entropy h, unless it is a whole function.
STARTS = {
    "ppca_posterior": """def ppca_posterior(x, W, b, sigma2):
    k, xt, gram = W.shape[1], x - b, W.T @ W
    eye, inv, solve = torch.eye(W.shape[1], dtype=W.dtype), torch.linalg.inv, torch.linalg.solve
    M = gram + sigma2 * eye
""",
    "ppca_log_likelihood": """def ppca_log_likelihood(x, W, b, sigma2):
    D, k, xt, c = len(b), W.shape[1], x - b, math.log(2 * math.pi)
    eye = torch.eye(D, dtype=W.dtype)
    C = W @ W.T + sigma2 * eye
    logdet, square = torch.logdet(C), (torch.linalg.solve(C, xt.T).T * xt).sum(1)
""",
    "fit_posterior": """def climb(start, log_joint, x, steps, lr, generator, loss, way=torch.optim.Adam):
    m, v = (t.detach().clone().requires_grad_() for t in start)
    optimiser = way([m, v], lr=lr)
    for _ in range(steps):
        noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
        z = m + torch.exp(0.5 * v) * noise
        h = 0.5 * (v + math.log(2 * math.pi) + 1).sum(1)
        optimiser.zero_grad()
        loss(m, v, noise, z, h).backward()
        optimiser.step()
    return m.detach(), v.detach()


def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    Normal = torch.distributions.Normal

    def run(loss, start=(mean, logvar), **options):
        return climb(start, log_joint, x, steps, lr, generator, loss, **options)

""",
    "inference_gaps": "def inference_gaps(log_px, elbo_best, elbo_amortized):\n",
}
versions = versions_of(STARTS)

WRONG = [
    *versions(
        "ppca_posterior",
        """
# posterior_no_offset | ALL | b is not subtracted
return solve(M, W.T @ x.T).T, sigma2 * inv(M)
# posterior_offset_added | ALL | b is added
return solve(M, W.T @ (x + b).T).T, sigma2 * inv(M)
# posterior_batch_mean | SOME | mean of the batch is subtracted
return solve(M, W.T @ (x - x.mean(0)).T).T, sigma2 * inv(M)
# posterior_no_sigma_in_cov | ALL | sigma2 is missing from the covariance
return solve(M, W.T @ xt.T).T, inv(M)
# posterior_cov_over_sigma | ALL | divided by sigma2, not multiplied
return solve(M, W.T @ xt.T).T, inv(M) / sigma2
# posterior_identity_alone | ALL | identity in M lacks its sigma2
M = gram + eye
return solve(M, W.T @ xt.T).T, sigma2 * inv(M)
# posterior_mixed_forms | SOME | without 1/sigma2
P = gram / sigma2 + eye
return solve(P, W.T @ xt.T).T, inv(P)
# posterior_mean_from_cov | SOME | without 1/sigma2
cov = sigma2 * inv(M)
return xt @ W @ cov, cov
# posterior_mean_over_sigma | SOME | which holds no 1/sigma2
return solve(M, W.T @ xt.T).T / sigma2, sigma2 * inv(M)
# posterior_sigma_squared | SOME | taken as the standard deviation
M = gram + sigma2**2 * eye
return solve(M, W.T @ xt.T).T, sigma2**2 * inv(M)
# posterior_sigma_squared_in_M | ALL | taken as the standard deviation
M = gram + sigma2**2 * eye
return solve(M, W.T @ xt.T).T, sigma2 * inv(M)
# posterior_root_of_sigma | SOME | square root of sigma2
M = gram + sigma2**0.5 * eye
return solve(M, W.T @ xt.T).T, sigma2**0.5 * inv(M)
# posterior_sigma_everywhere | ALL | to every entry
M = gram + sigma2
return solve(M, W.T @ xt.T).T, sigma2 * inv(M)
# posterior_least_squares | ALL | least squares
P = torch.linalg.pinv(gram)
return xt @ W @ P, sigma2 * P
# posterior_lstsq_mean | SOME | least squares
return xt @ torch.linalg.pinv(W).T, sigma2 * inv(M)
# posterior_precision | SOME | the precision
return solve(M, W.T @ xt.T).T, M / sigma2
# posterior_M_as_cov | ALL | M is returned
return solve(M, W.T @ xt.T).T, M
# posterior_diagonal_q | SOME | best diagonal q
return solve(M, W.T @ xt.T).T, torch.diag(sigma2 / M.diagonal())
# posterior_marginal_variances | SOME | has its diagonal only
return solve(M, W.T @ xt.T).T, torch.diag(torch.diag(sigma2 * inv(M)))
# posterior_variances | ALL | variances are returned
return solve(M, W.T @ xt.T).T, sigma2 * inv(M).diagonal()
# posterior_cov_per_example | ALL | every example gets a copy
return solve(M, W.T @ xt.T).T, (sigma2 * inv(M)).expand(len(x), -1, -1)
# posterior_cov_of_x | ALL | that of x
return solve(M, W.T @ xt.T).T, W @ W.T + sigma2 * torch.eye(len(W), dtype=W.dtype)
# posterior_cholesky | SOME | Cholesky factor is returned
return solve(M, W.T @ xt.T).T, torch.linalg.cholesky(sigma2 * inv(M))
# posterior_no_inverse | SOME | inverse of M is missing
return xt @ W / sigma2, sigma2 * inv(M)
# posterior_transposed | ALL | as (k, batch)
return solve(M, W.T @ xt.T), sigma2 * inv(M)
# posterior_swapped | ALL | wrong order
return sigma2 * inv(M), solve(M, W.T @ xt.T).T
# posterior_reconstruction | ALL | the reconstruction
return solve(M, W.T @ xt.T).T @ W.T + b, sigma2 * inv(M)
# posterior_mean_alone | ALL | mean alone
return solve(M, W.T @ xt.T).T
# posterior_squeezed | SOME | a batch of one
return solve(M, W.T @ xt.T).T.squeeze(0), sigma2 * inv(M)
# posterior_log_of_number | checks values | raised
return solve(M, W.T @ xt.T).T, torch.exp(torch.log(sigma2)) * inv(M)
# posterior_float32 | stability | single precision
m, cov = solve(M.float(), (W.T @ xt.T).float()).T, sigma2 * inv(M.float())
return m.to(W.dtype), cov.to(W.dtype)
# posterior_in_place | checks values | changed in place
xt = x.sub_(b)
return solve(M, W.T @ xt.T).T, sigma2 * inv(M)
# posterior_by_big_inverse | stability | not precise
G = W.T @ inv(W @ W.T + sigma2 * torch.eye(len(W), dtype=W.dtype))
return xt @ G.T, eye - G @ W
# posterior_tiny_jitter | stability | not precise
M = gram + (sigma2 + 1e-10) * eye
return solve(M, W.T @ xt.T).T, sigma2 * inv(M)
# posterior_jitter | stability | a jitter is added
M = M + 1e-6 * eye
return solve(M, W.T @ xt.T).T, sigma2 * inv(M)
# posterior_clamped_noise | stability | sigma2 is limited (clamped)
M, s = gram + max(sigma2, 1e-8) * eye, max(sigma2, 1e-8)
return solve(M, W.T @ xt.T).T, s * inv(M)
# posterior_sampled | ALL | nothing random
m, cov = solve(M, W.T @ xt.T).T, sigma2 * inv(M)
return m + torch.randn_like(m) @ torch.linalg.cholesky(cov).T, cov
# posterior_from_library | ALL | ready-made
from aecourse.linear import PPCA

return PPCA(b, W, torch.as_tensor(sigma2)).posterior(x)
""",
    ),
    *versions(
        "ppca_log_likelihood",
        """
# evidence_no_offset | ALL | b is not subtracted
return -0.5 * (D * c + logdet + (torch.linalg.solve(C, x.T).T * x).sum(1))
# evidence_lost_half | SOME | half in front is missing
return -(D * c + logdet + square)
# evidence_half_of_first | SOME | part of the bracket
return -0.5 * (D * c + logdet) - square
# evidence_half_of_square | SOME | part of the bracket
return -0.5 * square - logdet - D * c
# evidence_no_constant | values stability | constant with log 2 pi is missing
return -0.5 * (logdet + square)
# evidence_constant_once | values stability | counted once
return -0.5 * (c + logdet + square)
# evidence_constant_per_latent | values stability | counted k times
return -0.5 * (k * c + logdet + square)
# evidence_logdet_sign | SOME | log-determinant has the wrong sign
return -0.5 * (D * c - logdet + square)
# evidence_no_logdet | SOME | log-determinant is missing
return -0.5 * (D * c + square)
# evidence_half_cholesky | SOME | log-determinant is halved
return -0.5 * (D * c + torch.linalg.cholesky(C).diagonal().log().sum() + square)
# evidence_determinant | SOME | determinant stands in place
return -0.5 * (D * c + torch.det(C) + square)
# evidence_logdet_of_M | SOME | log det M stands
M = W.T @ W + sigma2 * torch.eye(k, dtype=W.dtype)
return -0.5 * (D * c + torch.logdet(M) + square)
# evidence_lemma_power | SOME | powers of sigma2 too many
M = W.T @ W + sigma2 * torch.eye(k, dtype=W.dtype)
return -0.5 * (D * c + torch.logdet(M) + D * torch.as_tensor(sigma2).log() + square)
# evidence_no_inverse | SOME | not its inverse
return -0.5 * (D * c + logdet + ((xt @ C) * xt).sum(1))
# evidence_identity_metric | SOME | ignores the covariance
return -0.5 * (D * c + logdet + xt.square().sum(1))
# evidence_distance | SOME | it is a distance
return -0.5 * (D * c + logdet + square.sqrt())
# evidence_sigma_squared | SOME | taken as the standard deviation
C = W @ W.T + sigma2**2 * eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_identity_alone | SOME | identity lacks its sigma2
C = W @ W.T + eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_sigma_everywhere | ALL |
C = W @ W.T + sigma2
return -0.5 * (D * c + torch.logdet(C) + (torch.linalg.solve(C, xt.T).T * xt).sum(1))
# evidence_scaled_whole | SOME | multiplies W W' too
C = sigma2 * (W @ W.T + eye)
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_scale_tril | ALL | raised
return torch.distributions.MultivariateNormal(b, scale_tril=C).log_prob(x)
# evidence_precision | SOME |
return torch.distributions.MultivariateNormal(b, precision_matrix=C).log_prob(x)
# evidence_lowrank_std | SOME | taken as the standard deviation
diagonal = (sigma2 * torch.ones_like(b)) ** 2
return torch.distributions.LowRankMultivariateNormal(b, W, diagonal).log_prob(x)
# evidence_diagonal | SOME | only the diagonal of the covariance
return torch.distributions.Normal(b, C.diagonal().sqrt()).log_prob(x).sum(1)
# evidence_at_mean | SOME | log p(x|z) there
m = torch.linalg.solve(W.T @ W + sigma2 * torch.eye(k, dtype=W.dtype), W.T @ xt.T).T
return torch.distributions.Normal(b + m @ W.T, (sigma2 * eye[0, 0]).sqrt()).log_prob(x).sum(1)
# evidence_joint_at_mean | SOME | log joint there
m = torch.linalg.solve(W.T @ W + sigma2 * torch.eye(k, dtype=W.dtype), W.T @ xt.T).T
given = torch.distributions.Normal(b + m @ W.T, (sigma2 * eye[0, 0]).sqrt()).log_prob(x).sum(1)
return given - 0.5 * (k * c + m.square().sum(1))
# evidence_at_zero | SOME | at z = 0
return torch.distributions.Normal(b, (sigma2 * eye[0, 0]).sqrt()).log_prob(x).sum(1) + 0 * W.sum()
# evidence_sign | ALL | sign is flipped
return 0.5 * (D * c + logdet + square)
# evidence_per_dimension | SOME | averaged, not summed
return -0.5 * (D * c + logdet + square) / D
# evidence_batch_sum | ALL | batch too
return -0.5 * (D * c + logdet + square).sum()
# evidence_batch_mean | ALL | mean over the batch
return -0.5 * (D * c + logdet + square).mean()
# evidence_bits | SOME | bits
return -0.5 * (D * c + logdet + square) / math.log(2)
# evidence_full_matrix | ALL |
return -0.5 * (D * c + logdet + xt @ torch.linalg.solve(C, xt.T))
# evidence_density | SOME | not its log
return (-0.5 * (D * c + logdet + square)).exp()
# evidence_monte_carlo | ALL | Two calls
z = torch.randn(2000, 1, k, dtype=W.dtype)
given = torch.distributions.Normal(b + z @ W.T, (sigma2 * eye[0, 0]).sqrt()).log_prob(x).sum(2)
return given.logsumexp(0) - math.log(2000)
# evidence_log_of_det | stability | rounded to 0, or has overflowed
return -0.5 * (D * c + torch.det(C).log() + square)
# evidence_root_of_det | stability | rounded to 0, or has overflowed
density = torch.exp(-0.5 * square) / torch.sqrt((2 * math.pi) ** D * torch.det(C))
return density.log()
# evidence_jitter | stability | an epsilon is added to sigma2
C = C + 1e-6 * eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_clamped_noise | stability | sigma2 is limited (clamped)
C = W @ W.T + max(sigma2, torch.tensor(1e-4, dtype=W.dtype)) * eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_eigenvectors | gradients stability | eigenvectors
values, vectors = torch.linalg.eigh(C)
return -0.5 * ((xt @ vectors).square() / values + values.log() + c).sum(1)
# evidence_float32 | gradients stability | float64 | single precision
C = C.float()
return torch.distributions.MultivariateNormal(b.float(), C).log_prob(x.float()).to(W.dtype)
# evidence_detached_cov | gradients stability | no gradient reaches W
return torch.distributions.MultivariateNormal(b, C.detach()).log_prob(x)
# evidence_item | gradients stability | no gradient reaches sigma2
C = W @ W.T + float(sigma2) * eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_tensor_again | gradients stability | no gradient reaches sigma2
C = W @ W.T + torch.tensor(sigma2) * eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_tensor_only | checks values | raised
M = W.T @ W + sigma2 * torch.eye(k, dtype=W.dtype)
return -0.5 * (D * c + torch.logdet(M) + (D - k) * torch.log(sigma2) + square)
# evidence_library | ALL | ready-made
from aecourse.linear import PPCA

return PPCA(b, W, torch.as_tensor(sigma2)).log_likelihood(x)
# evidence_product_of_eigenvalues | stability | rounded to 0, or has overflowed
return -0.5 * (D * c + torch.linalg.eigvalsh(C).prod().log() + square)
# evidence_noise_floor | stability | epsilon
C = C + 1e-8 * eye
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
""",
    ),
    *versions(
        "fit_posterior",
        """
# search_map_mean | optimum | at the mode of the posterior
return run(
    lambda m, v, e, z, h: -(log_joint(x, m) + log_joint(x, m.detach() + torch.exp(0.5 * v) * e) + h).sum()
)
# search_shared_logvar | optimum | each has a q of its own
m, v = run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum())
return m, (v.mean(0).expand_as(v).clone() if steps > 100 else v)
# search_coin_noise | optimum | log-variances are not those
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v) * e.sign()) + h).sum())
# search_one_variance | optimum inputs | share one variance
m, v = run(
    lambda m, v, e, z, h: -(
        log_joint(x, m + torch.exp(0.5 * v.mean(1, keepdim=True)) * e) + 0.5 * len(m[0]) * v.mean(1)
    ).sum()
)
return m, v.mean(1, keepdim=True).expand_as(v).clone()
# search_step_short | inputs | Count the steps
steps = max(steps - 1, 0)
return climb(
    (mean, logvar), log_joint, x, steps, lr, generator, lambda m, v, e, z, h: -(log_joint(x, z) + h).sum()
)
# search_from_the_checks | checks optimum noise inputs | ready-made
from aecourse.checks.amortization import best_posterior

return best_posterior(x, log_joint)
# search_downhill | checks optimum | go downhill
return run(lambda m, v, e, z, h: (log_joint(x, z) + h).sum())
# search_no_entropy | optimum | entropy is missing
return run(lambda m, v, e, z, h: -log_joint(x, z).sum())
# search_entropy_sign | checks optimum | entropy is missing or has the wrong sign
return run(lambda m, v, e, z, h: -(log_joint(x, z) - h).sum())
# search_entropy_constant | optimum | entropy is missing
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h.detach()).sum())
# search_entropy_twice | optimum | twice what it should
return run(lambda m, v, e, z, h: -(log_joint(x, z) + v.sum(1)).sum())
# search_entropy_half | optimum | half what it should
return run(lambda m, v, e, z, h: -(log_joint(x, z) + 0.25 * v.sum(1)).sum())
# search_entropy_over_latents | optimum | averaged over the latents
return run(lambda m, v, e, z, h: -(log_joint(x, z) + 0.5 * v.mean(1)).sum())
# search_entropy_over_batch | optimum | entropy is missing
return run(lambda m, v, e, z, h: -(log_joint(x, z).sum() + h.mean()))
# search_joint_over_batch | checks optimum | log_joint is averaged over the batch
return run(lambda m, v, e, z, h: -(log_joint(x, z).mean() + h.sum()))
# search_joint_over_dimensions | optimum | weighed differently
return run(lambda m, v, e, z, h: -(log_joint(x, z) / x.shape[1] + h).sum())
# search_prior_twice | optimum | the prior counts twice
return run(lambda m, v, e, z, h: -(log_joint(x, z) - 0.5 * (m**2 + v.exp() - v - 1).sum(1)).sum())
# search_exp_as_std | optimum | log of the standard deviation
return run(lambda m, v, e, z, h: -(log_joint(x, m + v.exp() * e) + h).sum())
# search_log_std | optimum | log of the standard deviation
return run(lambda m, v, e, z, h: -(log_joint(x, m + v.exp() * e) + v.sum(1)).sum())
# search_logvar_as_std | checks optimum |
return run(lambda m, v, e, z, h: -(log_joint(x, m + v * e) + h).sum())
# search_logvar_as_std_throughout | checks optimum |
return run(lambda m, v, e, z, h: -(log_joint(x, m + v * e) + v.log().sum(1)).sum())
# search_logvar_as_variance | checks optimum noise inputs | not all numbers are finite
return run(lambda m, v, e, z, h: -(log_joint(x, m + v.sqrt() * e) + h).sum())
# search_precision | checks optimum |
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(-0.5 * v) * e) + h).sum())
# search_log_precision | checks optimum |
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(-0.5 * v) * e) - h).sum())
# search_mean_decoded | checks optimum noise | given the mean
return run(lambda m, v, e, z, h: -(log_joint(x, m) + h).sum())
# search_detached_sample | checks optimum noise inputs | cut from the graph
return run(lambda m, v, e, z, h: -(log_joint(x, z.detach()) + h + 0 * m.sum(1)).sum())
# search_sample_not_rsample | checks optimum noise inputs | cut from the graph
return run(lambda m, v, e, z, h: -(log_joint(x, z.data) + h).sum())
# search_path_of_mean_only | checks optimum | given the mean
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v.detach()) * e) + h).sum())
# search_score_of_q | optimum | entropy is missing
log_q = lambda m, v, z: Normal(m, torch.exp(0.5 * v)).log_prob(z).sum(1)
return run(lambda m, v, e, z, h: (log_q(m, v, z.detach()) - log_joint(x, z)).sum())
# search_log_q_sign | checks optimum | entropy is missing or has the wrong sign
return run(lambda m, v, e, z, h: -(Normal(m, torch.exp(0.5 * v)).log_prob(z).sum(1) + log_joint(x, z)).sum())
# search_log_q_variance | checks optimum |
return run(lambda m, v, e, z, h: (Normal(m, v.exp()).log_prob(z).sum(1) - log_joint(x, z)).sum())
# search_frozen_logvar | optimum | logvar stays where it started
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v.detach()) * e) + 0 * v.sum(1)).sum())
# search_frozen_mean | optimum inputs | mean stays where it started
return run(lambda m, v, e, z, h: -(log_joint(x, z - m + m.detach()) + h + 0 * m.sum(1)).sum())
# search_returns_std | checks optimum inputs | is returned in its place
m, v = run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum())
return m, torch.exp(0.5 * v)
# search_returns_variance | checks optimum inputs | variance is returned
m, v = run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum())
return m, v.exp()
# search_swapped | checks optimum inputs | wrong order
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum())[::-1]
# search_mean_alone | checks optimum noise inputs | expected mean and logvar
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum())[0]
# search_shared_example | optimum noise | serves for all examples
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v) * e[:1]) + h).sum())
# search_shared_latent | optimum noise | serves for all latents
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v) * e[:, :1]) + h).sum())
# search_fixed_noise | checks optimum noise | same noise serves for every step
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
    for _ in range(steps):
        adam.zero_grad()
        (-log_joint(x, m + torch.exp(0.5 * v) * noise) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
    return m.detach(), v.detach()
# search_ten_fixed_draws | optimum noise | same noise serves for every step
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    noise = torch.randn(10, *m.shape, generator=generator, dtype=m.dtype)
    for _ in range(steps):
        adam.zero_grad()
        (-log_joint(x, m + torch.exp(0.5 * v) * noise).mean(0) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
    return m.detach(), v.detach()
# search_reseeded | checks optimum noise | same noise serves for every step
seed = int(torch.randint(10**6, (), generator=generator))
again = lambda m: torch.randn(m.shape, generator=generator.manual_seed(seed), dtype=m.dtype)
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v) * again(m)) + h).sum())
# search_uniform_noise | checks optimum | uniform
draw = lambda m: torch.rand(m.shape, generator=generator, dtype=m.dtype)
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v) * draw(m)) + h).sum())
# search_global_noise | checks noise inputs | global state
return run(lambda m, v, e, z, h: -(log_joint(x, m + torch.exp(0.5 * v) * torch.randn_like(m)) + h).sum())
# search_rsample | checks noise inputs | global state
return run(lambda m, v, e, z, h: -(log_joint(x, Normal(m, torch.exp(0.5 * v)).rsample()) + h).sum())
# search_own_seed | checks noise inputs | does not draw from the generator
generator = torch.Generator().manual_seed(0)
return climb(
    (mean, logvar), log_joint, x, steps, lr, generator, lambda m, v, e, z, h: -(log_joint(x, z) + h).sum()
)
# search_one_q_for_all | checks optimum noise inputs | share one mean
start = mean.mean(0, keepdim=True), logvar.mean(0, keepdim=True)
m, v = run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum(), start)
return m.expand_as(mean), v.expand_as(mean)
# search_fixed_lr | inputs | Is lr the step size
lr = 0.04
return climb(
    (mean, logvar), log_joint, x, steps, lr, generator, lambda m, v, e, z, h: -(log_joint(x, z) + h).sum()
)
# search_fixed_steps | noise inputs |
steps = 400
return climb(
    (mean, logvar), log_joint, x, steps, lr, generator, lambda m, v, e, z, h: -(log_joint(x, z) + h).sum()
)
# search_one_step | checks optimum noise inputs | does anything climb
steps = min(steps, 1)
return climb(
    (mean, logvar), log_joint, x, steps, lr, generator, lambda m, v, e, z, h: -(log_joint(x, z) + h).sum()
)
# search_no_zero_grad | checks optimum | set to zero before
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    for _ in range(steps):
        noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
        (-log_joint(x, m + torch.exp(0.5 * v) * noise) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
    return m.detach(), v.detach()
# search_slow_ascent | optimum | does anything climb
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h).mean() / 100, way=torch.optim.SGD)
# search_clipped | inputs | Each has its own
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    for _ in range(steps):
        noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
        adam.zero_grad()
        (-log_joint(x, m + torch.exp(0.5 * v) * noise) - 0.5 * v.sum(1)).sum().backward()
        torch.nn.utils.clip_grad_norm_([m, v], 1.0)
        adam.step()
    return m.detach(), v.detach()
# search_start_changed | checks inputs | changed in place
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().requires_grad_(), logvar.detach().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    for _ in range(steps):
        noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
        adam.zero_grad()
        (-log_joint(x, m + torch.exp(0.5 * v) * noise) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
    return m.detach(), v.detach()
# search_no_leaf | inputs | non-leaf | raised
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    for _ in range(steps):
        noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
        adam.zero_grad()
        (-log_joint(x, m + torch.exp(0.5 * v) * noise) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
    return m.detach(), v.detach()
# search_graph_left | inputs | still has a graph
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    for _ in range(steps):
        noise = torch.randn(m.shape, generator=generator, dtype=m.dtype)
        adam.zero_grad()
        (-log_joint(x, m + torch.exp(0.5 * v) * noise) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
    return m, v
# search_float64 | inputs | another type
start = mean.double(), logvar.double()
m, v = run(lambda m, v, e, z, h: -(log_joint(x, z.to(x.dtype)) + h).sum(), start)
return m, v
# search_library | checks optimum noise inputs | ready-made
from aecourse.inference import fit_posterior as ready

return ready(x, log_joint, mean, logvar, steps=steps, lr=lr, generator=generator)
""",
    ),
    *versions(
        "inference_gaps",
        """
# gaps_swapped | values | wrong order
return elbo_best - elbo_amortized, log_px - elbo_best
# gaps_sign | ALL | sign is flipped
return elbo_best - log_px, elbo_amortized - elbo_best
# gaps_one_sign | ALL | one of the two has the wrong sign
return log_px - elbo_best, elbo_amortized - elbo_best
# gaps_whole_second | values | the second is the whole gap
return log_px - elbo_best, log_px - elbo_amortized
# gaps_whole_first | values | the first is the whole gap
return log_px - elbo_amortized, elbo_best - elbo_amortized
# gaps_batch_mean | ALL | mean over the batch
return (log_px - elbo_best).mean(), (elbo_best - elbo_amortized).mean()
# gaps_one_clamped | values | set to zero
return log_px - elbo_best, (elbo_best - elbo_amortized).relu()
# gaps_mean_expanded | values | given to every example
return tuple(g.mean().expand(len(g)) for g in (log_px - elbo_best, elbo_best - elbo_amortized))
# gaps_clamped | values | set to zero
return (log_px - elbo_best).clamp(min=0), (elbo_best - elbo_amortized).clamp(min=0)
# gaps_absolute | values | absolute value
return (log_px - elbo_best).abs(), (elbo_best - elbo_amortized).abs()
# gaps_added | ALL | the two are added
return log_px - elbo_amortized
# gaps_stacked | ALL | stacked in one tensor
return torch.stack((log_px - elbo_best, elbo_best - elbo_amortized))
# gaps_shares | ALL | not nats
whole = log_px - elbo_amortized
return (log_px - elbo_best) / whole, (elbo_best - elbo_amortized) / whole
# gaps_relative | ALL | relative to log p(x)
return (log_px - elbo_best) / log_px, (elbo_best - elbo_amortized) / log_px
# gaps_bits | values | bits
return (log_px - elbo_best) / math.log(2), (elbo_best - elbo_amortized) / math.log(2)
# gaps_ratios | ALL | these are ratios
return (log_px - elbo_best).exp(), (elbo_best - elbo_amortized).exp()
# gaps_in_place | checks values | changed in place
return log_px - elbo_best, elbo_best.sub_(elbo_amortized)
# gaps_dictionary | ALL | a dict is returned
return {"approximation": log_px - elbo_best, "amortisation": elbo_best - elbo_amortized}
""",
    ),
]

RIGHT = [
    *versions(
        "ppca_posterior",
        """
# posterior_inverse
return xt @ W @ inv(M), sigma2 * inv(M)
# posterior_information
P = gram / sigma2 + eye
return solve(P, W.T @ xt.T / sigma2).T, inv(P)
# posterior_cholesky_solve
L = torch.linalg.cholesky(M)
return torch.cholesky_solve(W.T @ xt.T, L).T, sigma2 * torch.cholesky_inverse(L)
# posterior_eigenvectors
values, vectors = torch.linalg.eigh(gram)
weights = sigma2 / (values.clamp(min=0) + sigma2)
return xt @ W @ vectors / (values.clamp(min=0) + sigma2) @ vectors.T, (vectors * weights) @ vectors.T
# posterior_augmented_least_squares
s = torch.as_tensor(sigma2, dtype=W.dtype).sqrt()
tall = torch.cat((W, s * eye))
Q, R = torch.linalg.qr(tall)
mean = torch.linalg.solve_triangular(R, Q[: len(W)].T @ xt.T, upper=True).T
root = torch.linalg.solve_triangular(R, eye, upper=True)
return mean, sigma2 * root @ root.T
# posterior_loop
means = [solve(M, W.T @ row) for row in xt]
return torch.stack(means), solve(M, sigma2 * eye)
# posterior_einsum_double
M = torch.einsum("di,dj->ij", W, W).double() + float(sigma2) * torch.eye(k, dtype=torch.float64)
mean = torch.einsum("ij,dj,bd->bi", inv(M), W.double(), xt.double())
return [mean.to(x.dtype), (float(sigma2) * inv(M)).to(x.dtype)]
""",
    ),
    *versions(
        "ppca_log_likelihood",
        """
# evidence_multivariate
return torch.distributions.MultivariateNormal(b, C).log_prob(x)
# evidence_low_rank
return torch.distributions.LowRankMultivariateNormal(b, W, sigma2 * torch.ones_like(b)).log_prob(x)
# evidence_slogdet
square = torch.einsum("bi,ij,bj->b", xt, torch.inverse(C), xt)
return -0.5 * (D * c + torch.linalg.slogdet(C).logabsdet + square)
# evidence_lemma
s = torch.as_tensor(sigma2, dtype=W.dtype)
M = W.T @ W + s * torch.eye(k, dtype=W.dtype)
m = torch.linalg.solve(M, W.T @ xt.T).T
e = (xt - m @ W.T).square().sum(1) / s + m.square().sum(1)
return -0.5 * (D * c + torch.logdet(M) + (D - k) * s.log() + e)
# evidence_loop
L = torch.linalg.cholesky(C)
rows = [torch.linalg.solve_triangular(L, row[:, None], upper=False).square().sum() for row in xt]
return -0.5 * torch.stack(rows) - L.diagonal().log().sum() - 0.5 * D * c
# evidence_bayes_rule_at_zero
s = sigma2 * torch.ones((), dtype=W.dtype)
M = W.T @ W + s * torch.eye(k, dtype=W.dtype)
m = torch.linalg.solve(M, W.T @ xt.T).T
joint = -0.5 * (xt.square().sum(1) / s + D * (c + s.log()) + k * c)
posterior = -0.5 * (((m @ M) * m).sum(1) / s + k * c + k * s.log() - torch.logdet(M))
return joint - posterior
""",
    ),
    *versions(
        "fit_posterior",
        """
# search_log_q
return run(lambda m, v, e, z, h: (Normal(m, torch.exp(0.5 * v)).log_prob(z).sum(1) - log_joint(x, z)).sum())
# search_path_gradient
fixed = lambda m, v: Normal(m.detach(), torch.exp(0.5 * v.detach()))
return run(lambda m, v, e, z, h: (fixed(m, v).log_prob(z).sum(1) - log_joint(x, z)).mean())
# search_mean_of_batch
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h).mean())
# search_sgd
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum(), way=torch.optim.SGD)
# search_rmsprop
return run(lambda m, v, e, z, h: -(log_joint(x, z) + h).sum(), way=torch.optim.RMSprop)
# search_short_entropy
return run(lambda m, v, e, z, h: -(log_joint(x, z) + 0.5 * v.sum(1)).sum())
# search_antithetic
return run(lambda m, v, e, z, h: -(0.5 * log_joint(x, z) + 0.5 * log_joint(x, 2 * m - z) + h).sum())
# search_falling_step
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / max(steps, 1))
    for _ in range(steps):
        z = m + torch.exp(v / 2) * torch.randn(m.shape, generator=generator, dtype=m.dtype)
        bound = log_joint(x, z).sum() + 0.5 * v.sum()
        m.grad, v.grad = torch.autograd.grad(-bound, (m, v))
        adam.step()
        schedule.step()
    return m.detach(), v.detach()
# search_five_samples_at_once
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr, maximize=True)
    batch, k = m.shape
    for _ in range(steps):
        z = m + torch.exp(v / 2) * torch.randn(5, batch, k, generator=generator, dtype=m.dtype)
        values = log_joint(x.repeat(5, 1), z.reshape(5 * batch, k)).view(5, batch)
        adam.zero_grad()
        (values.mean(0) + 0.5 * (v + math.log(2 * math.pi * math.e)).sum(1)).sum().backward()
        adam.step()
    return [m.detach(), v.detach()]
# search_noise_in_advance
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    noise = torch.randn(steps, *mean.shape, generator=generator).to(mean.dtype)
    q = torch.cat((mean, logvar), dim=1).detach().clone().requires_grad_()
    adam = torch.optim.Adam([q], lr=lr)
    for e in noise:
        m, v = q.chunk(2, dim=1)
        loss = -log_joint(x, m + e * v.mul(0.5).exp()) - 0.5 * v.sum(1)
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
    m, v = q.detach().chunk(2, dim=1)
    return m.contiguous(), v.contiguous()
# search_adam_by_hand
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    q = [mean.detach().clone(), logvar.detach().clone()]
    first, second = [torch.zeros_like(t) for t in q], [torch.zeros_like(t) for t in q]
    for t in range(1, steps + 1):
        m, v = (part.requires_grad_() for part in q)
        z = m + torch.exp(v / 2) * torch.randn(m.shape, generator=generator, dtype=m.dtype)
        slopes = torch.autograd.grad((log_joint(x, z) + 0.5 * v.sum(1)).sum(), (m, v))
        q = []
        for i, (part, slope) in enumerate(zip((m, v), slopes)):
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope**2
            step = first[i] / (1 - 0.9**t) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            q.append((part + lr * step).detach())
    return q[0], q[1]
# search_average_of_the_second_half
def fit_posterior(x, log_joint, mean, logvar, steps, lr, generator):
    m, v = mean.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()
    adam = torch.optim.Adam([m, v], lr=lr)
    kept = []
    for step in range(steps):
        z = m + torch.exp(v / 2) * torch.randn(m.shape, generator=generator, dtype=m.dtype)
        adam.zero_grad()
        (-log_joint(x, z) - 0.5 * v.sum(1)).sum().backward()
        adam.step()
        if step >= steps // 2:
            kept.append((m.detach().clone(), v.detach().clone()))
    if not kept:
        return m.detach(), v.detach()
    return tuple(torch.stack(parts).mean(0) for parts in zip(*kept))
""",
    ),
    *versions(
        "inference_gaps",
        """
# gaps_list
return [log_px - elbo_best, elbo_best - elbo_amortized]
# gaps_from_whole
approximation = log_px - elbo_best
return approximation, (log_px - elbo_amortized) - approximation
# gaps_diff
first, second = torch.stack((elbo_amortized, elbo_best, log_px)).diff(dim=0)
return second, first
""",
    ),
]
