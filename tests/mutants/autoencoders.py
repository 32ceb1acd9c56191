"""Wrong and right versions of the six functions of the assignment `autoencoders`, for test_assignments.py.

The slips come from public code (mean activation per example, penalties without a gradient, noisy targets,
a Frobenius norm without its square, np.cov's N - 1), and from what the formulas invite.
"""

from mutants import versions_of

# The start of every version, with names that its body may use.
STARTS = {
    "l1_sparsity": "def l1_sparsity(codes):\n",
    "kl_sparsity": """def kl_sparsity(codes, rho):
    p = torch.tensor(rho, dtype=codes.dtype)
    m = codes.mean(0).clamp(1e-7, 1 - 1e-7)

    def price(p, q):
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()

""",
    "corrupt": """def corrupt(x, sigma, generator):
    def randn(*size):
        return torch.randn(size, generator=generator, dtype=x.dtype)

""",
    "denoising_loss": """def denoising_loss(model, x, sigma, generator):
    def noise(like=x):
        return sigma * torch.randn(like.shape, generator=generator, dtype=x.dtype)

""",
    "contractive_penalty": """def contractive_penalty(encoder, x):
    def jacobian():
        return torch.vmap(torch.func.jacrev(lambda one: encoder(one[None])[0]))(x)

    def slopes(create_graph=True):
        leaf = x.detach().clone().requires_grad_()
        codes = encoder(leaf)
        options = {"create_graph": create_graph, "retain_graph": True}
        return torch.stack([torch.autograd.grad(c.sum(), leaf, **options)[0] for c in codes.T], 1)

""",
    "optimal_linear_denoiser": """def optimal_linear_denoiser(X, sigma):
    mean, eye = X.mean(0), torch.eye(X.shape[1], dtype=X.dtype)
    S = (X - mean).T @ (X - mean) / len(X)

    def fit(S, variance):
        return S @ torch.linalg.inv(S + variance * eye)

""",
}
versions = versions_of(STARTS)

WRONG = [
    *versions(
        "l1_sparsity",
        """
# l1_mean | SOME | over the units too
return codes.abs().mean()
# l1_sum | ALL | batch is summed
return codes.abs().sum()
# l1_per_example | ALL | one number per example
return codes.abs().sum(1)
# l1_per_unit | ALL | one number per unit
return codes.abs().mean(0)
# l1_dims_swapped | ALL | other way round
return codes.abs().sum(0).mean()
# l1_keepdim | ALL | size 1 is left
return codes.abs().sum(1).mean(0, keepdim=True)
# l1_no_abs | ALL | absolute value is missing
return codes.sum(1).mean()
# l1_abs_of_sum | SOME | of the sum, not of each
return codes.sum(1).abs().mean()
# l1_squared | ALL | L2 price
return codes.square().sum(1).mean()
# l1_norm | SOME | L2 norm
return codes.norm(dim=1).mean()
# l1_linalg_norm | ALL | norm of matrices
return torch.linalg.norm(codes, 1)
# l1_count | ALL | entries are counted
return (codes != 0).to(codes.dtype).sum(1).mean()
# l1_relu | ALL | negative entries are left out
return codes.relu().sum(1).mean()
# l1_batch_first | SOME | batch is averaged before
return codes.mean(0).abs().sum()
# l1_largest | SOME | largest entry
return codes.abs().amax(1).mean()
# l1_half | SOME | half too many
return 0.5 * codes.abs().sum(1).mean()
# l1_detached | gradients stability | no gradient reaches codes
return codes.detach().abs().sum(1).mean()
# l1_item | checks gradients stability | no gradient reaches codes | not a Python number
return codes.abs().sum(1).mean().item()
# l1_root_of_square | stability | the value is right, but its gradient is missing or not finite.
return codes.square().sqrt().sum(1).mean()
# l1_smoothed | checks stability | an epsilon smooths the absolute value
return (codes.square() + 1e-8).sqrt().sum(1).mean()
# l1_norm_p1_no_dim | ALL | batch is summed
return codes.norm(p=1)
# l1_in_place | ALL | changed in place
return codes.abs_().sum(1).mean()
""",
    ),
    *versions(
        "kl_sparsity",
        """
# kl_clamped_early | stability |
m = m.clamp(2e-6, 1 - 2e-6)
return price(p, m).sum()
# kl_reversed | SOME | swapped
return price(m, p).sum()
# kl_per_example | ALL | that of an example over its units
return price(p, codes.mean(1)).mean()
# kl_per_example_sum | ALL | that of an example over its units
return price(p, codes.mean(1)).sum()
# kl_each_activity | ALL | of each activity
return price(p, codes).sum(1).mean()
# kl_global_mean | SOME | all units together
return codes.shape[1] * price(p, codes.mean())
# kl_sum_over_batch | ALL | summed over the batch, not averaged
return price(p, codes.sum(0)).sum()
# kl_mean_units | SOME | averaged, not summed
return price(p, m).mean()
# kl_not_summed | ALL | one number per unit
return price(p, m)
# kl_first_term | ALL | term with 1 - rho is missing
return (p * (p / m).log()).sum()
# kl_second_term | SOME | term with rho is missing
return ((1 - p) * ((1 - p) / (1 - m)).log()).sum()
# kl_second_sign | ALL | second term has the wrong sign
return (p * (p / m).log() - (1 - p) * ((1 - p) / (1 - m)).log()).sum()
# kl_inverted | ALL | sign is flipped
return (p * (m / p).log() + (1 - p) * ((1 - m) / (1 - p)).log()).sum()
# kl_cross_entropy | checks values stability | entropy of rho is missing
return -(p * m.log() + (1 - p) * (1 - m).log()).sum()
# kl_bce_only | checks values stability | entropy of rho is missing
return torch.nn.functional.binary_cross_entropy(m, p.expand_as(m), reduction="sum")
# kl_no_weights | ALL | weights rho and 1 - rho are missing
return ((p / m).log() + ((1 - p) / (1 - m)).log()).sum()
# kl_weighed_by_mean | ALL | mean activity weighs
return (m * (p / m).log() + (1 - m) * ((1 - p) / (1 - m)).log()).sum()
# kl_squared_difference | SOME | squared difference
return (m - p).square().sum()
# kl_fixed_rho | ALL | rho is not used
return price(torch.tensor(0.05, dtype=m.dtype), m).sum()
# kl_bits | SOME | bits
return price(p, m).sum() / math.log(2)
# kl_sigmoid_again | ALL | sigmoid once more
return price(p, codes.sigmoid().mean(0)).sum()
# kl_times_batch | ALL | multiplied by the batch size
return len(codes) * price(p, m).sum()
# kl_over_batch | ALL | divided by the batch size
return price(p, m).sum() / len(codes)
# kl_largest_activity | ALL | largest activity over the batch
return price(p, codes.amax(0).clamp(1e-7, 1 - 1e-7)).sum()
# kl_binary | ALL |
return price(p, (codes > 0.5).to(codes.dtype).mean(0).clamp(1e-7, 1 - 1e-7)).sum()
# kl_symmetric | SOME | symmetric
return (price(p, m) + price(m, p)).sum()
# kl_no_clamp | stability | not a finite number
return price(p, codes.mean(0)).sum()
# kl_clamp_rounds_to_1 | stability | the number 1 - 1e-8 is 1
return price(p, codes.mean(0).clamp(1e-8, 1 - 1e-8)).sum()
# kl_wide_clamp | stability | a mean is limited (clamped)
return price(p, codes.mean(0).clamp(1e-3, 1 - 1e-3)).sum()
# kl_epsilon | stability | an epsilon is added to a divisor
m = codes.mean(0)
return (p * (p / (m + 1e-8)).log() + (1 - p) * ((1 - p) / (1 - m + 1e-8)).log()).sum()
# kl_clamped_codes | gradients stability | graph is cut | codes is limited (clamped)
return price(p, codes.clamp(1e-6, 1 - 1e-6).mean(0)).sum()
# kl_nan_to_num | stability | clamp before the logarithm, not after
return price(p, codes.mean(0)).nan_to_num(100, 100, 100).sum()
# kl_dead_are_free | stability | let off
m = codes.mean(0)
living = (m > 0) & (m < 1)
return (price(p, torch.where(living, m, 0.5)) * living).sum()
# kl_detached | gradients stability | no gradient reaches codes
return price(p, m.detach()).sum()
# kl_wrong_graph | gradients | graph is cut
return price(p, codes.detach().mean(0).clamp(1e-7, 1 - 1e-7) + 0 * m).sum()
# kl_running_mean | SOME |
return price(p, 0.9 * p + 0.1 * m).sum()
# kl_ready_made | ALL | ready-made
from torch.distributions import Bernoulli, kl_divergence

return kl_divergence(Bernoulli(p), Bernoulli(m)).sum()
# kl_half_wide_clamp | stability | limited (clamped)
return price(p, m.clamp(5e-5, 1 - 5e-5)).sum()
""",
    ),
    *versions(
        "corrupt",
        """
# corrupt_variance | values | sigma is taken for the variance
return x + sigma**0.5 * randn(*x.shape)
# corrupt_squared | values | sigma is squared
return x + sigma**2 * randn(*x.shape)
# corrupt_normal_squared | values | sigma is squared
return torch.normal(x, sigma**2, generator=generator)
# corrupt_no_sigma | checks values | wrong | without noise, x should come back
return x + randn(*x.shape)
# corrupt_half | values | sigma is halved
return x + sigma / 2 * randn(*x.shape)
# corrupt_shared_batch | values | batch share their noise
return x + sigma * randn(*x.shape[1:])
# corrupt_shared_dimensions | values | share their noise
return x + sigma * randn(*x.shape[:-1], 1)
# corrupt_shared_channels | values | dimension 1 share
return x + sigma * (randn(len(x), 1, *x.shape[2:]) if x.dim() > 2 else randn(*x.shape))
# corrupt_one_number | values | share their noise
return x + sigma * randn(1)
# corrupt_uniform | values | uniform
return x + sigma * torch.rand(x.shape, generator=generator, dtype=x.dtype)
# corrupt_uniform_centred | values | not normal
return x + sigma * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)
# corrupt_uniform_right_variance | values | right variance and is not normal
return x + sigma * math.sqrt(12) * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)
# corrupt_standardised | values | standardise
e = randn(*x.shape)
return x + sigma * ((e - e.mean()) / e.std() if e.numel() > 1 else e)
# corrupt_antithetic | values | one half of the batch
half = randn((len(x) + 1) // 2, *x.shape[1:])
return x + sigma * torch.cat([half, -half])[: len(x)]
# corrupt_exponential | values | mean 0
return x + sigma * torch.empty_like(x).exponential_(generator=generator)
# corrupt_truncated | values | standard deviation of the noise is not sigma
return x + sigma * randn(*x.shape).clamp(-2, 2)
# corrupt_unit_length | values | standard deviation of the noise is not sigma
e = randn(*x.shape)
return x + sigma * e / e.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
# corrupt_signs | values | not normal
return x + sigma * randn(*x.shape).sign()
# corrupt_multiplied | values | depends on x
return x * (1 + sigma * randn(*x.shape))
# corrupt_multiplied_only | checks values | x is lost
return x * sigma * randn(*x.shape)
# corrupt_noise_alone | checks values | x is lost
return sigma * randn(*x.shape)
# corrupt_clipped | checks values | clipped to [0, 1]
return (x + sigma * randn(*x.shape)).clamp(0, 1)
# corrupt_mask | values | correlated with x
return x * (torch.rand(x.shape, generator=generator, dtype=x.dtype) >= sigma / 2)
# corrupt_scaled_by_std | values | Not all numbers are finite
return x + sigma * x.std(0) * randn(*x.shape)
# corrupt_scaled_by_overall_std | values |
return x + sigma * x.std() * randn(*x.shape)
# corrupt_absolute | values | mean 0
return x + sigma * randn(*x.shape).abs()
# corrupt_log_sigma | checks values |
return x + math.exp(sigma) * randn(*x.shape)
# corrupt_global | checks generator | global state
return x + sigma * torch.randn(x.shape, dtype=x.dtype)
# corrupt_randn_like | checks generator | global state
return x + sigma * torch.randn_like(x)
# corrupt_fixed_seed | checks generator | does not draw from the generator
own = torch.Generator().manual_seed(0)
return x + sigma * torch.randn(x.shape, generator=own, dtype=x.dtype)
# corrupt_seeds_global | generator | global state
torch.manual_seed(generator.initial_seed())
return x + sigma * torch.randn(x.shape, dtype=x.dtype)
# corrupt_reseeded | checks generator | does not draw from the generator
generator.manual_seed(0)
return x + sigma * randn(*x.shape)
# corrupt_generator_reset | generator | repeats the first
generator.manual_seed(generator.initial_seed())
return x + sigma * randn(*x.shape)
# corrupt_cut_off | values | no large values
return x + sigma * randn(*x.shape).clamp(-3, 3)
# corrupt_in_place | checks values | changed in place
return x.add_(sigma * randn(*x.shape))
# corrupt_float64 | values | Keep the type
return x + sigma * torch.randn(x.shape, generator=generator, dtype=torch.float64)
# corrupt_flattened | checks values |
return (x + sigma * randn(*x.shape)).flatten(1)
# corrupt_ready_made | checks values generator | ready-made
from aecourse.data import add_gaussian_noise

return add_gaussian_noise(x, sigma, generator)
""",
    ),
    *versions(
        "denoising_loss",
        """
# loss_uniform_noise | values | independent normal noise
noisy = x + sigma * math.sqrt(12) * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)
return (model(noisy) - x).square().sum(1).mean()
# loss_antithetic | values |
once = noise()
return sum((model(x + e) - x).square().sum(1).mean() for e in (once, -once)) / 2
# loss_generator_reset | generator | repeats the first
generator.manual_seed(generator.initial_seed())
return (model(x + noise()) - x).square().sum(1).mean()
# loss_noisy_target | checks values | target is the corrupted input
noisy = x + noise()
return (model(noisy) - noisy).square().sum(1).mean()
# loss_clean_input | checks values generator | given the clean input
return (model(x) - x).square().sum(1).mean()
# loss_clean_input_noisy_target | values | to the output or to the target
return (model(x) - (x + noise())).square().sum(1).mean()
# loss_two_draws | values | by another draw
return (model(x + noise()) - (x + noise())).square().sum(1).mean()
# loss_noise_on_output | values | to the output or to the target
return (model(x) + noise() - x).square().sum(1).mean()
# loss_shuffled_target | checks values gradients |
order = torch.randperm(len(x), generator=generator)
return (model(x + noise()) - x[order]).square().sum(1).mean()
# loss_bias_corrected | checks values |
return (model(x + noise()) - x).square().sum(1).mean() - sigma**2 * x.shape[1]
# loss_shared_noise | values | batch share their noise
return (model(x + noise(x[0])) - x).square().sum(1).mean()
# loss_shared_dimensions | values | dimensions of an example share
return (model(x + noise(x[:, :1])) - x).square().sum(1).mean()
# loss_variance | values | sigma is taken for the variance
return (model(x + noise() / sigma**0.5 if sigma else x) - x).square().sum(1).mean()
# loss_sigma_squared | values | sigma is squared
return (model(x + sigma * noise()) - x).square().sum(1).mean()
# loss_multiplied | values | multiplies the input
return (model(x * (1 + noise())) - x).square().sum(1).mean()
# loss_noise_alone | checks values gradients | noise alone
return (model(noise()) - x).square().sum(1).mean()
# loss_uniform | values | uniform
u = torch.rand(x.shape, generator=generator, dtype=x.dtype)
return (model(x + sigma * u) - x).square().sum(1).mean()
# loss_clipped | values checks gradients |
return (model((x + noise()).clamp(0, 1)) - x).square().sum(1).mean()
# loss_corrupted_twice | values | corrupted twice
return (model(corrupt(corrupt(x, sigma, generator), sigma, generator)) - x).square().sum(1).mean()
# loss_own_output | values gradients | with another output
return (model(x + noise()) - model(x)).square().sum(1).mean()
# loss_predicts_noise | checks values gradients | compared with the noise
e = noise()
return (model(x + e) - e).square().sum(1).mean()
# loss_residual | checks values gradients | added to its input
noisy = x + noise()
return (noisy + model(noisy) - x).square().sum(1).mean()
# loss_dimension_mean | values gradients | runs over the dimensions too
return (model(x + noise()) - x).square().mean()
# loss_mse | values gradients | runs over the dimensions too
return torch.nn.functional.mse_loss(model(x + noise()), x)
# loss_batch_sum | values gradients | batch is summed
return (model(x + noise()) - x).square().sum()
# loss_per_example | checks values gradients | one number per example
return (model(x + noise()) - x).square().sum(1)
# loss_half | values gradients | half too many
return 0.5 * (model(x + noise()) - x).square().sum(1).mean()
# loss_norm | values gradients | not squared
return (model(x + noise()) - x).norm(dim=1).mean()
# loss_absolute | values gradients | not squared
return (model(x + noise()) - x).abs().sum(1).mean()
# loss_root | values gradients | root of the mean
return (model(x + noise()) - x).square().sum(1).mean().sqrt()
# loss_negative | checks values gradients | sign is flipped
return -(model(x + noise()) - x).square().sum(1).mean()
# loss_over_variance | values gradients |
return (model(x + noise()) - x).square().sum(1).mean() / (sigma**2 + 1e-8)
# loss_detached | gradients | no gradient reaches model
with torch.no_grad():
    output = model(x + noise())
return (output - x).square().sum(1).mean()
# loss_new_tensor | gradients | no gradient reaches model
return torch.tensor((model(x + noise()) - x).square().sum(1).mean().item(), dtype=x.dtype)
# loss_global | checks generator | global state
return (model(x + sigma * torch.randn_like(x)) - x).square().sum(1).mean()
# loss_fixed_seed | checks values generator | the same loss | all is right for ordinary inputs
return (model(corrupt(x, sigma, torch.Generator().manual_seed(0))) - x).square().sum(1).mean()
# loss_in_place | checks values | changed in place
noisy = x.add_(noise())
return (model(noisy) - x).square().sum(1).mean()
# loss_two_draws_averaged | values | several draws
output = (model(x + noise()) + model(x + noise())) / 2
return (output - x).square().sum(1).mean()
# loss_first_example_clean | values gradients |
noisy = x + noise()
return (model(noisy)[1:] - x[1:]).square().sum(1).sum() / len(x)
""",
    ),
    *versions(
        "contractive_penalty",
        """
# contractive_backward_inside | gradients | .backward() is called inside
leaf = x.detach().clone().requires_grad_()
codes, total = encoder(leaf), 0
for j in range(codes.shape[1]):
    leaf.grad = None
    codes[:, j].sum().backward(create_graph=True)
    total = total + leaf.grad.square().sum()
return total / len(x)
# contractive_looks_inside | values gradients | raised
codes, weight = encoder(x), encoder.tensors[0]
slope = {"Affine": 1, "Logistic": codes * (1 - codes), "Tanh": 1 - codes**2}[type(encoder).__name__]
return (slope**2 * weight.square().sum(1) + 0 * codes).sum(1).mean()
# contractive_differences | values gradients |
steps = (1e-5 if x.dtype == torch.float64 else 1e-2) * torch.eye(x.shape[1], dtype=x.dtype)
parts = [(encoder(x + s) - encoder(x - s)) / (2 * s.sum()) for s in steps]
return sum(part.square().sum() for part in parts) / len(x)
# contractive_not_squared | checks values gradients | norm is not squared
return slopes().square().sum((1, 2)).sqrt().mean()
# contractive_batch_sum | checks values gradients | batch is summed
return slopes().square().sum()
# contractive_per_example | checks values gradients | one number per example
return slopes().square().sum((1, 2))
# contractive_mean_all | values gradients | mean runs over all entries
return slopes().square().mean()
# contractive_mean_units | values gradients | mean runs over the units
return slopes().square().sum(2).mean()
# contractive_mean_inputs | values gradients | mean runs over the inputs
return slopes().square().mean(2).sum(1).mean()
# contractive_no_graph | checks gradients | no gradient reaches encoder | no gradient reaches the encoder
return slopes(create_graph=False).square().sum((1, 2)).mean()
# contractive_detached | checks gradients | no gradient reaches encoder | no gradient reaches the encoder
return slopes().detach().square().sum((1, 2)).mean()
# contractive_sum_of_units | values gradients | sum over the units
leaf = x.clone().requires_grad_()
(slope,) = torch.autograd.grad(encoder(leaf).sum(), leaf, create_graph=True)
return slope.square().sum(1).mean()
# contractive_backward_ones | values gradients | sum over the units
leaf = x.clone().requires_grad_()
codes = encoder(leaf)
codes.backward(torch.ones_like(codes), create_graph=True)
return leaf.grad.square().sum(1).mean()
# contractive_half_detached | gradients | graph is cut
J = jacobian()
return (J.detach() * J).sum((1, 2)).mean()
# contractive_centred | checks values gradients |
J = slopes()
return (J - J.mean(0)).square().sum((1, 2)).mean()
# contractive_first_unit | values gradients | first unit
return slopes()[:, 0].square().sum(1).mean()
# contractive_first_example | values gradients | first example serves
return jacobian()[0].square().sum()
# contractive_mean_loss_graph | checks values gradients | divided by the batch size
leaf = x.clone().requires_grad_()
columns = [torch.autograd.grad(c.mean(), leaf, create_graph=True)[0] for c in encoder(leaf).T]
return torch.stack(columns).square().sum()
# contractive_mean_jacobian | values gradients | averaged over the batch before
return jacobian().mean(0).square().sum()
# contractive_absolute | checks values gradients | not squared
return jacobian().abs().sum((1, 2)).mean()
# contractive_square_of_sum | values gradients | the sum of the derivatives is squared
return jacobian().sum((1, 2)).square().mean()
# contractive_spectral | values gradients | largest singular value
return torch.linalg.matrix_norm(jacobian(), 2).square().mean()
# contractive_diagonal | values gradients | diagonal
return jacobian().diagonal(dim1=1, dim2=2).square().sum(1).mean()
# contractive_code_norm | checks values gradients | size of the code
return encoder(x).square().sum(1).mean()
# contractive_sigmoid_formula | checks values gradients | sigmoid is used for every encoder
h, W = encoder(x), encoder.tensors[0]
return ((h * (1 - h)).square() @ W.square().sum(1)).mean()
# contractive_sigmoid_not_squared | checks values gradients | and not squared
h, W = encoder(x), encoder.tensors[0]
return ((h * (1 - h)) @ W.square().sum(1)).mean()
# contractive_weight_decay | values gradients | size of the weights
return encoder.tensors[0].square().sum() * x.new_ones(())
# contractive_half | values gradients | half too many
return 0.5 * slopes().square().sum((1, 2)).mean()
# contractive_finite_differences | checks values gradients |
total = 0.0
for shift in 1e-3 * torch.eye(x.shape[1], dtype=x.dtype):
    total = total + ((encoder(x + shift) - encoder(x)) / 1e-3).square().sum(1).mean()
return total
# contractive_full_jacobian_no_graph | checks gradients | no gradient reaches
return torch.autograd.functional.jacobian(encoder, x).square().sum() / len(x)
# contractive_full_jacobian_sum | checks values gradients | batch is summed
return torch.autograd.functional.jacobian(encoder, x, create_graph=True).square().sum()
# contractive_random_direction | checks values gradients |
leaf = x.clone().requires_grad_()
codes = encoder(leaf)
(slope,) = torch.autograd.grad(codes, leaf, torch.randn_like(codes), create_graph=True)
return slope.square().sum(1).mean()
# contractive_no_leaf | checks values gradients | does not require grad | raised
(slope,) = torch.autograd.grad(encoder(x.detach()).sum(), x, create_graph=True)
return slope.square().sum(1).mean()
# contractive_root_of_mean | checks values gradients | root is taken of the mean
return slopes().square().sum((1, 2)).mean().sqrt()
""",
    ),
    *versions(
        "optimal_linear_denoiser",
        """
# denoiser_n_minus_1 | SOME | N - 1
S = (X - mean).T @ (X - mean) / (len(X) - 1)
A = fit(S, sigma**2)
return A, mean - A @ mean
# denoiser_torch_cov | SOME | N - 1
S = torch.cov(X.T).reshape(eye.shape)
A = fit(S, sigma**2)
return A, mean - A @ mean
# denoiser_scatter | SOME | covariance is not divided by N
A = fit(len(X) * S, sigma**2)
return A, mean - A @ mean
# denoiser_not_centred | SOME | not centred
A = fit(X.T @ X / len(X), sigma**2)
return A, mean - A @ mean
# denoiser_not_centred_no_b | ALL | not centred before the covariance is taken; b is zero
return fit(X.T @ X / len(X), sigma**2), torch.zeros_like(mean)
# denoiser_no_b | ALL | b is zero
return fit(S, sigma**2), torch.zeros_like(mean)
# denoiser_b_is_mean | ALL | b is the mean itself
return fit(S, sigma**2), mean
# denoiser_b_removed | ALL | should be subtracted
A = fit(S, sigma**2)
return A, A @ mean
# denoiser_b_sign | ALL | wrong sign
A = fit(S, sigma**2)
return A, A @ mean - mean
# denoiser_b_row | ALL | row, not a vector
A = fit(S, sigma**2)
return A, (X.mean(0, keepdim=True) - X.mean(0, keepdim=True) @ A)
# denoiser_only_a | ALL | b is missing
return fit(S, sigma**2)
# denoiser_order | ALL | wrong order
A = fit(S, sigma**2)
return mean - A @ mean, A
# denoiser_like_library | ALL | as the library does
return mean, fit(S, sigma**2)
# denoiser_sigma | SOME | sigma is not squared
A = fit(S, sigma)
return A, mean - A @ mean
# denoiser_sigma_fourth | SOME | squared twice
A = fit(S, sigma**4)
return A, mean - A @ mean
# denoiser_sigma_over_n | SOME | divided by N
A = fit(S, sigma**2 / len(X))
return A, mean - A @ mean
# denoiser_removed_part | SOME | taken away
A = eye - fit(S, sigma**2)
return A, mean - A @ mean
# denoiser_no_s | ALL | S is missing
A = torch.linalg.inv(S + sigma**2 * eye)
return A, mean - A @ mean
# denoiser_no_inverse | ALL | inverse is missing
A = S @ (S + sigma**2 * eye)
return A, mean - A @ mean
# denoiser_upside_down | ALL | upside down
A = torch.linalg.pinv(S) @ (S + sigma**2 * eye)
return A, mean - A @ mean
# denoiser_no_identity | ALL | identity is missing
A = S @ torch.linalg.inv(S + sigma**2)
return A, mean - A @ mean
# denoiser_entrywise | ALL | entry by entry
A = S / (S + sigma**2 * eye)
return A, mean - A @ mean
# denoiser_variances_only | SOME | only the variances
A = fit(S.diagonal().diag(), sigma**2)
return A, mean - A @ mean
# denoiser_rows_for_columns | SOME | mean of each example
C = X - X.mean(1, keepdim=True)
A = fit(C.T @ C / len(X), sigma**2)
return A, mean - A @ mean
# denoiser_gram | ALL |
C = X - mean
G = C @ C.T / len(X)
A = G @ torch.linalg.inv(G + sigma**2 * torch.eye(len(X), dtype=X.dtype))
return A, mean - A @ mean
# denoiser_overall_mean | SOME | over everything
C = X - X.mean()
A = fit(C.T @ C / len(X), sigma**2)
return A, mean - A @ mean
# denoiser_identity | ALL |
return eye, torch.zeros_like(mean)
# denoiser_subtracts | ALL |
A = S @ torch.linalg.inv(S - sigma**2 * eye)
return A, mean - A @ mean
# denoiser_pseudo_inverse_no_noise | ALL |
A = S @ torch.linalg.pinv(S)
return A, mean - A @ mean
# denoiser_sampled | ALL | Two calls
noisy = X + sigma * torch.randn_like(X)
C = noisy - noisy.mean(0)
A = (X - mean).T @ C @ torch.linalg.pinv(C.T @ C)
return A, mean - A @ noisy.mean(0)
# denoiser_jitter | stability | jitter
A = S @ torch.linalg.inv(S + sigma**2 * eye + 1e-6 * eye)
return A, mean - A @ mean
# denoiser_moments | stability | digits cancel: large, nearly equal numbers are subtracted
A = fit(X.T @ X / len(X) - torch.outer(mean, mean), sigma**2)
return A, mean - A @ mean
# denoiser_float64 | values | Keep the type
X = X.double()
mean, eye = X.mean(0), torch.eye(X.shape[1], dtype=X.dtype)
S = (X - mean).T @ (X - mean) / len(X)
A = torch.linalg.solve(S + sigma**2 * eye, S)
return A, mean - A @ mean
# denoiser_centres_in_place | checks values | changed in place
X -= mean
A = fit(S, sigma**2)
return A, mean - A @ mean
# denoiser_sigma_in_float32 | stability | single precision
noise = torch.tensor(sigma).to(X.dtype) ** 2
cov = (X - mean).T @ (X - mean) / len(X)
A = torch.linalg.solve(cov + noise * eye, cov)
return A, mean - A @ mean
# denoiser_outer_products | stability | digits cancel
cov = (X[:, :, None] * X[:, None]).mean(0) - mean[:, None] * mean
A = torch.linalg.solve(cov + sigma**2 * eye, cov)
return A, mean - A @ mean
""",
    ),
]

RIGHT = [
    *versions(
        "l1_sparsity",
        """
# l1_norm_p1
return codes.norm(p=1, dim=1).mean()
# l1_loops
return sum(entry.abs() for code in codes for entry in code) / len(codes)
# l1_where
return torch.where(codes > 0, codes, -codes).sum() / codes.shape[0]
# l1_two_relus
return (codes.relu() + (-codes).relu()).sum(1).mean()
# l1_vector_norm
return torch.linalg.vector_norm(codes, ord=1, dim=-1).mean()
# l1_loss
return torch.nn.functional.l1_loss(codes, torch.zeros_like(codes), reduction="sum") / len(codes)
# l1_sign
return torch.einsum("bk,bk->", codes, codes.sign()) / codes.size(0)
# l1_mean_times_k
return codes.shape[1] * codes.abs().mean()
""",
    ),
    *versions(
        "kl_sparsity",
        """
# kl_fractions
return price(p, m).sum()
# kl_tiny
tiny = torch.finfo(codes.dtype).tiny
mean = codes.mean(dim=0)
active, resting = mean.clamp(min=tiny), (1 - mean).clamp(min=tiny)
return (rho * (math.log(rho) - active.log()) + (1 - rho) * (math.log(1 - rho) - resting.log())).sum()
# kl_bce
m, target = codes.mean(0), p.expand(codes.shape[1])
entropy = -(rho * math.log(rho) + (1 - rho) * math.log(1 - rho))
bce = torch.nn.functional.binary_cross_entropy(m, target, reduction="sum")
return bce - codes.shape[1] * entropy
# kl_loops
total = 0.0
for j in range(codes.shape[1]):
    q = codes[:, j].mean().clamp(1e-6, 1 - 1e-6)
    total = total + rho * torch.log(rho / q) + (1 - rho) * torch.log((1 - rho) / (1 - q))
return total
# kl_torch_kl_div
m = codes.mean(0).clamp(1e-6, 1 - 1e-6)
logs = torch.stack([m, 1 - m]).log()
target = torch.stack([p, 1 - p])[:, None].expand_as(logs)
return torch.nn.functional.kl_div(logs, target, reduction="sum")
# kl_log_clamped
m = codes.mean(0)
on, off = m.clamp(min=1e-7).log(), (1 - m).clamp(min=1e-7).log()
return (p * (p.log() - on) + (1 - p) * ((1 - p).log() - off)).sum()
# kl_double_inside
m = codes.double().mean(0).clamp(1e-12, 1 - 1e-12)
return price(torch.tensor(rho, dtype=m.dtype), m).sum().to(codes.dtype)
# kl_straight_through_clamp
m = codes.mean(0)
m = m + (m.clamp(1e-7, 1 - 1e-7) - m).detach()
return (torch.special.xlogy(p, p / m) + torch.special.xlogy(1 - p, (1 - p) / (1 - m))).sum()
# kl_maximum
m = codes.sum(0) / len(codes)
low = torch.tensor(1e-6, dtype=m.dtype)
return price(p, torch.minimum(torch.maximum(m, low), 1 - low)).sum()
# kl_penalty_for_the_dead
m = codes.mean(0)
living = (m > 1e-7) & (m < 1 - 1e-7)
inner = torch.where(living, m, 0.5)
return torch.where(living, price(p, inner), 1e3 + 0 * m).sum()
""",
    ),
    *versions(
        "corrupt",
        """
# corrupt_torch_normal
return torch.normal(x, sigma, generator=generator)
# corrupt_normal_in_place
noise = torch.empty_like(x).normal_(0.0, 1.0, generator=generator)
return x + noise * sigma
# corrupt_backwards
noise = randn(*x.shape[::-1]).permute(*range(x.dim() - 1, -1, -1))
return x.add(noise, alpha=sigma)
# corrupt_example_by_example
return torch.stack([example + sigma * randn(*example.shape) for example in x])
# corrupt_box_muller
u, v = torch.rand((2, *x.shape), generator=generator, dtype=torch.float64)
noise = torch.sqrt(-2 * torch.log1p(-u)) * torch.cos(2 * math.pi * v)
return x + sigma * noise.to(x.dtype)
# corrupt_float32_noise
return (x + sigma * torch.randn(x.shape, generator=generator)).to(x.dtype)
# corrupt_one_draw_too_many
randn(3)
return x + sigma * randn(*x.shape)
# corrupt_in_pieces
flat = torch.empty(x.numel(), dtype=x.dtype)
for i in range(0, len(flat), 1000):
    flat[i : i + 1000] = randn(min(1000, len(flat) - i))
return x + flat.reshape(x.shape) * sigma
# corrupt_inverse_cdf
u = torch.rand(x.shape, generator=generator, dtype=torch.float64)
return x + sigma * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12)).to(x.dtype)
# corrupt_sum_of_two
return x + sigma * (0.6 * randn(*x.shape) + 0.8 * randn(*x.shape))
""",
    ),
    *versions(
        "denoising_loss",
        """
# loss_by_hand
return (model(x + noise()) - x).pow(2).sum(-1).mean()
# loss_mse_times_d
output = model(corrupt(x, sigma, generator))
return x.shape[1] * torch.nn.functional.mse_loss(output, x)
# loss_loops
total = 0.0
for example in x:
    noisy = corrupt(example[None], sigma, generator)
    total = total + (model(noisy) - example).square().sum()
return total / len(x)
# loss_norm_squared
return torch.linalg.vector_norm(model(x + noise()) - x, dim=1).square().mean()
# loss_einsum
error = x - model(x + noise())
return torch.einsum("bd,bd->", error, error) / len(x)
# loss_columns_drawn_one_by_one
drawn = torch.stack([noise(column) for column in x.T.contiguous()], 1)
return (model(x + drawn) - x).square().sum(1).mean()
# loss_shuffled_pairs
order = torch.randperm(len(x), generator=generator)
y = x[order]
return (model(y - noise()) - y).square().sum(1).mean()
# loss_keyword
return (model(corrupt(x=x, sigma=sigma, generator=generator)) - x.clone()).square().sum(dim=1).mean(dim=0)
""",
    ),
    *versions(
        "contractive_penalty",
        """
# contractive_jacrev
return jacobian().square().sum((1, 2)).mean()
# contractive_jacfwd
one = torch.func.jacfwd(lambda example: encoder(example[None])[0])
return torch.vmap(one)(x).square().sum() / len(x)
# contractive_slopes
return slopes().pow(2).sum() / x.shape[0]
# contractive_full_jacobian
full = torch.autograd.functional.jacobian(encoder, x, create_graph=True)
return full.square().sum() / len(x)
# contractive_summed_jacobian
total = torch.autograd.functional.jacobian(lambda v: encoder(v).sum(0), x, create_graph=True)
return total.square().sum((0, 2)).mean()
# contractive_loops
values = []
for example in x:
    leaf = example.clone().requires_grad_()
    for unit in encoder(leaf[None])[0]:
        values.append(torch.autograd.grad(unit, leaf, create_graph=True)[0].square().sum())
return torch.stack(values).sum() / len(x)
# contractive_forward_mode
total = 0.0
for direction in torch.eye(x.shape[1], dtype=x.dtype):
    _, change = torch.func.jvp(encoder, (x,), (direction.expand_as(x).clone(),))
    total = total + change.square().sum(1)
return total.mean()
# contractive_double_backward
pushes = []
for e in torch.eye(x.shape[1], dtype=x.dtype):
    along = e.expand_as(x).contiguous()
    pushes.append(torch.autograd.functional.jvp(encoder, x, along, create_graph=True)[1])
return torch.stack(pushes).square().sum((0, 2)).mean()
# contractive_frobenius
return torch.linalg.matrix_norm(slopes()).square().mean()
# contractive_marks_input
x.requires_grad_()
codes = encoder(x)
rows = [torch.autograd.grad(codes[:, j].sum(), x, create_graph=True)[0] for j in range(codes.shape[1])]
return sum(row.square().sum() for row in rows) / len(x)
# contractive_batched_grad
leaf = x.clone().requires_grad_()
codes = encoder(leaf)
each = torch.eye(codes.shape[1], dtype=x.dtype)[:, None].expand(-1, len(x), -1)
(found,) = torch.autograd.grad(codes, leaf, each, create_graph=True, is_grads_batched=True)
return found.square().sum((0, 2)).mean()
""",
    ),
    *versions(
        "optimal_linear_denoiser",
        """
# denoiser_inverse_on_the_right
A = fit(S, sigma**2)
return A, (eye - A) @ mean
# denoiser_inverse_on_the_left
A = torch.linalg.inv(S + sigma**2 * eye) @ S
return A, mean - A @ mean
# denoiser_complement
lost = sigma**2 * torch.linalg.inv(S + sigma**2 * eye)
return eye - lost, lost @ mean
# denoiser_eigenvectors
values, vectors = torch.linalg.eigh(S)
A = vectors * (values / (values + sigma**2)) @ vectors.T
return A, mean - A @ mean
# denoiser_cov
S = torch.cov(X.T, correction=0).reshape(eye.shape)
A = torch.linalg.solve(S + sigma**2 * eye, S)
return [A, mean - A @ mean]
# denoiser_ridge
C = X - mean
A = torch.linalg.lstsq(
    torch.cat([C, math.sqrt(len(X)) * sigma * eye]), torch.cat([C, torch.zeros_like(eye)])
).solution.T
return A, mean - A @ mean
# denoiser_cholesky
factor = torch.linalg.cholesky(S + sigma**2 * eye)
A = torch.cholesky_solve(S, factor)
return A, mean - A @ mean
# denoiser_signal_to_noise
A = torch.linalg.solve(eye + S / sigma**2, S / sigma**2)
return A, mean @ (eye - A)
# denoiser_einsum
C = X - X.mean(0, keepdim=True)
S = torch.einsum("nd,ne->de", C, C).div(C.size(0))
A = torch.linalg.solve(S + sigma * sigma * torch.eye(len(S)).to(S), S, left=False)
return A, X.mean(0) - torch.mv(A, X.mean(0))
# denoiser_double_inside
Z = X.double()
C = Z - Z.mean(0)
S = C.T @ C / len(Z)
A = torch.linalg.solve(S + sigma**2 * torch.eye(len(S)).double(), S)
return A.to(X.dtype), (Z.mean(0) - A @ Z.mean(0)).to(X.dtype)
""",
    ),
]
