"""Wrong and right versions of the four functions of the assignment `linear`, for test_assignments.py.

The slips come from the chapter's list of common mistakes (not centred, the smallest eigenvalues, N - 1), from
reimplementations of regularised linear autoencoders (one weight for all, Lambda for its root), and from what
the formulas invite.
"""

from mutants import versions_of

# The start of every version, with names that its body may use.
STARTS = {
    "principal_components": """def principal_components(X, k):
    n, d = X.shape
    mean = X.mean(dim=0)
    A = X - mean
    eigh, svd = torch.linalg.eigh, torch.linalg.svd
""",
    "reconstruct": """def reconstruct(X, mean, components):
    C = components
""",
    "variance_split": """def variance_split(X, X_hat):
    mean = X.mean(dim=0)
    total, projected = (X - mean).square().sum(1), (X_hat - mean).square().sum(1)
    error = (X - X_hat).square().sum(1)
""",
    "regularised_loss": """def regularised_loss(X, W1, W2, lam):
    error = (X - X @ W1.T @ W2.T).square().sum(1).mean()
    rows, columns = W1.square().sum(1), W2.square().sum(0)
    penalty = (lam * (rows + columns)).sum()
""",
}
versions = versions_of(STARTS)

WRONG = [
    *versions(
        "principal_components",
        """
# pca_not_centred | checks values ties stability | data are not centred
e, V = eigh(X.T @ X / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_not_centred_svd | checks values ties stability | data are not centred
U, S, Vh = svd(X, full_matrices=False)
return mean, Vh[:k], S[:k] ** 2 / n
# pca_unbiased | values ties stability | N - 1
e, V = eigh(A.T @ A / max(n - 1, 1))
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_torch_cov | values ties stability | N - 1
e, V = eigh(torch.cov(X.T).reshape(d, d))
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_scatter | values ties stability | not divided by N
e, V = eigh(A.T @ A)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_over_dimensions | values ties stability | divided by D
e, V = eigh(A.T @ A / d)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_smallest | checks values ties stability | k smallest eigenvalues
e, V = eigh(A.T @ A / n)
return mean, V[:, :k].T, e[:k]
# pca_smallest_falling | values ties stability | k smallest eigenvalues
e, V = eigh(A.T @ A / n)
return mean, V[:, :k].flip(1).T, e[:k].flip(0)
# pca_ascending | checks values ties stability | order is not reversed
e, V = eigh(A.T @ A / n)
return mean, V[:, -k:].T, e[-k:]
# pca_only_values_sorted | values ties stability | ordered differently
e, V = eigh(A.T @ A / n)
return mean, V[:, :k].T, e.sort(descending=True).values[:k]
# pca_only_vectors_sorted | checks values ties stability | ordered differently
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T, e[-k:]
# pca_rows_for_columns | values ties stability | rows of the matrix of eigenvectors
e, V = eigh(A.T @ A / n)
return mean, V[:k], e.flip(0)[:k]
# pca_rows_for_columns_flipped | values ties stability | rows of the matrix of eigenvectors
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:k], e.flip(0)[:k]
# pca_svd_columns | values ties stability | rows of the matrix of eigenvectors
U, S, Vh = svd(A, full_matrices=True)
return mean, Vh.T[:k], S[:k] ** 2 / n
# pca_transposed | checks values ties stability | columns here; they should be rows
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k], e.flip(0)[:k]
# pca_left_vectors | checks values ties stability | is returned | and got a tuple of 3: a tensor of shape
U, S, Vh = svd(A, full_matrices=False)
return mean, U[:, :k].T, S[:k] ** 2 / n
# pca_singular_values | values ties stability | singular values of the data are returned
U, S, Vh = svd(A, full_matrices=False)
return mean, Vh[:k], S[:k]
# pca_singular_over_n | values ties stability | without being squared
U, S, Vh = svd(A, full_matrices=False)
return mean, Vh[:k], S[:k] / n
# pca_singular_unbiased | values ties stability | N - 1
U, S, Vh = svd(A, full_matrices=False)
return mean, Vh[:k], S[:k] ** 2 / (n - 1)
# pca_squared_singular | values ties stability | not divided by N
U, S, Vh = svd(A, full_matrices=False)
return mean, Vh[:k], S[:k] ** 2
# pca_standard_deviations | values ties stability | square roots
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k].clamp(min=0).sqrt()
# pca_eigenvalues_squared | values ties stability | eigenvalues are squared
U, S, Vh = svd(A.T @ A / n)
return mean, Vh[:k], S[:k] ** 2
# pca_shares | values ties stability | shares of the variance
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k] / e.sum()
# pca_loadings | checks values ties stability | not of length 1
e, V = eigh(A.T @ A / n)
e, V = e.flip(0)[:k], V.flip(1)[:, :k]
return mean, (V * e.clamp(min=0).sqrt()).T, e
# pca_whitened | checks values ties stability | not of length 1
e, V = eigh(A.T @ A / n)
e, V = e.flip(0)[:k], V.flip(1)[:, :k]
return mean, (V / e.clamp(min=1e-12).sqrt()).T, e
# pca_from_data | checks values ties stability |
return mean, A[:k], A[:k].square().sum(1)
# pca_correlation | values ties stability | components of the correlation
B = A / X.std(0, correction=0).clamp(min=1e-12)
e, V = eigh(B.T @ B / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_mean_of_rows | checks values ties stability | over the dimensions
A = X - X.mean(dim=1, keepdim=True)
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_one_mean | checks values ties stability | one mean of all numbers
A = X - X.mean()
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_zero_mean | checks values ties stability | mean of zeros
X = X - mean
e, V = eigh(X.T @ X / n)
return X.mean(0), V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_all_components | checks values ties stability | k is not used
e, V = eigh(A.T @ A / n)
return mean, V.flip(1).T, e.flip(0)
# pca_other_order | checks values ties stability | another order
e, V = eigh(A.T @ A / n)
return mean, e.flip(0)[:k], V.flip(1)[:, :k].T
# pca_no_mean_returned | checks values ties stability | mean is not returned
e, V = eigh(A.T @ A / n)
return V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_squeezed | values stability | k=1
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T.squeeze(), e.flip(0)[:k]
# pca_low_rank_svd | checks values ties stability | nothing random is needed
U, S, V = torch.svd_lowrank(A, q=k)
return mean, V.T, S**2 / n
# pca_few_iterations | values ties stability |
S, Q = A.T @ A / n, torch.eye(d, dtype=X.dtype)[:, :k]
for _ in range(20):
    Q = torch.linalg.qr(S @ Q).Q
return mean, Q.T, (S @ Q * Q).sum(0)
# pca_complex | checks values ties stability | complex numbers
e, V = torch.linalg.eig(A.T @ A / n)
order = e.real.argsort(descending=True)[:k]
return mean, V[:, order].T, e[order]
# pca_general_solver | ties | not orthonormal
e, V = torch.linalg.eig(A.T @ A / n)
order = e.real.argsort(descending=True)[:k]
return mean, V.real[:, order].T, e.real[order]
# pca_unsorted | values ties stability |
e, V = torch.linalg.eig(A.T @ A / n)
return mean, V.real[:, :k].T, e.real[:k]
# pca_gram | ties | not orthonormal
e, U = eigh(A @ A.T / n)
e, U = e.flip(0)[:k], U.flip(1)[:, :k]
return mean, U.T @ A / (n * e).sqrt().unsqueeze(1), e
# pca_one_pass | stability | digits cancel: large, nearly equal numbers are subtracted
e, V = eigh(X.T @ X / n - torch.outer(mean, mean))
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_one_pass_float64 | stability | digits cancel: large, nearly equal numbers are subtracted
Y, m = X.double(), X.double().mean(0)
e, V = eigh(Y.T @ Y / n - torch.outer(m, m))
return mean, V.flip(1)[:, :k].T.to(X.dtype), e.flip(0)[:k].to(X.dtype)
# pca_jitter | stability | a jitter is added to the diagonal of a matrix
e, V = eigh(A.T @ A / n + 1e-6 * torch.eye(d, dtype=X.dtype))
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_float32 | stability | a part of it is computed in single precision (float32)
B = A.float()
e, V = eigh(B.T @ B / n)
return mean, V.flip(1)[:, :k].T.to(X.dtype), e.flip(0)[:k].to(X.dtype)
# pca_float64 | values | Keep the type
A = A.double()
e, V = eigh(A.T @ A / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_in_place | checks values | changed in place
X -= mean
e, V = eigh(X.T @ X / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_ready_made | checks values ties stability | ready-made
U, S, V = torch.pca_lowrank(X, q=k)
return mean, V.T, S**2 / n
# pca_from_the_checks | checks values ties stability | ready-made
from aecourse.checks.linear import principal_components as ready

return ready(X, k)
# pca_reversed_coordinates | values ties stability | other axis
e, V = eigh(A.T @ A / n)
return mean, V.flip(0, 1)[:, :k].T, e.flip(0)[:k]
# pca_spectrum_squared | values ties stability | eigenvalues already
U, S, Vh = svd(A.T @ A / n)
return mean, U.T[:k], S[:k] ** 2 / n
# pca_from_library | checks values ties stability | ready-made
from aecourse.linear import pca

return tuple(pca(X, k))
# pca_deflation_forgotten | checks values ties stability |
S = A.T @ A / n
found = []
for i in range(k):
    v = torch.ones(d, dtype=X.dtype)
    for _ in range(300):
        v = torch.nn.functional.normalize(S @ v, dim=0)
    found.append(v)
V = torch.stack(found)
return mean, V, (V @ S * V).sum(1)
# pca_mean_in_float32 | stability | single precision
mean = X.float().mean(0).to(X.dtype)
e, V = eigh((X - mean).T @ (X - mean) / n)
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
# pca_differences_of_products | stability | digits cancel
e, V = eigh(torch.einsum("ni,nj->ij", X, X) / n - torch.outer(mean, mean))
return mean, V.flip(1)[:, :k].T, e.flip(0)[:k]
""",
    ),
    *versions(
        "reconstruct",
        """
# rebuild_mean_not_added | ALL | mean is not added back
return (X - mean) @ C.T @ C
# rebuild_mean_not_subtracted | ALL | not subtracted before the projection
return X @ C.T @ C + mean
# rebuild_no_mean | ALL | X itself is projected
return X @ C.T @ C
# rebuild_own_mean | SOME | mean of these X is used
mean = X.mean(dim=0)
return (X - mean) @ C.T @ C + mean
# rebuild_own_mean_subtracted | SOME | centred with its own mean
return (X - X.mean(dim=0)) @ C.T @ C + mean
# rebuild_own_mean_added | ALL | mean of these X is added back
return (X - mean) @ C.T @ C + X.mean(dim=0)
# rebuild_code | ALL | code is returned
return (X - mean) @ C.T
# rebuild_outside | ALL | outside the subspace
A = X - mean
return A - A @ C.T @ C
# rebuild_lost_inside | SOME | the part inside it is lost
return X - (X - mean) @ C.T @ C
# rebuild_sign | ALL | sign of the projection
return mean - (X - mean) @ C.T @ C
# rebuild_mean_twice | ALL | the mean is added twice
return 2 * mean + (X - mean) @ C.T @ C
# rebuild_mean_sign | ALL | should be subtracted first
return (X + mean) @ C.T @ C + mean
# rebuild_mean_subtracted_at_end | ALL | at the end
return (X - mean) @ C.T @ C - mean
# rebuild_first_component | SOME | only the first component
return (X - mean) @ C[:1].T @ C[:1] + mean
# rebuild_summed_codes | ALL | codes of an example are summed
return mean + ((X - mean) @ C.T).sum(1, keepdim=True) * C.sum(0)
# rebuild_averaged | ALL | divided by the number of components
return mean + (X - mean) @ C.T @ C / len(C)
# rebuild_over_examples | ALL | divided by the number of examples
return mean + (X - mean) @ C.T @ C / len(X)
# rebuild_columns | ALL | shapes cannot be multiplied | raised
return mean + (X - mean) @ C @ C.T
# rebuild_own_mean_in_batches | SOME | mean of these X is used
m = X.mean(0) if len(X) > 1 else mean
return m + (X - m) @ C.T @ C
# rebuild_copy | SOME | X is returned
return X + 0 * mean + 0 * C.sum()
# rebuild_squeezed | ALL | a tensor of shape
return (mean + (X - mean) @ C.T @ C).squeeze()
# rebuild_only_one | ALL |
return mean + C.T @ (C @ (X[0] - mean))
# rebuild_uncentred_code | stability | digits cancel: large, nearly equal numbers are subtracted
return X @ C.T @ C + (mean - mean @ C.T @ C)
# rebuild_float32 | gradients stability | float64 | a part of it is computed in single precision (float32)
A = (X - mean).float()
return mean + (A @ C.T.float() @ C.float()).to(X.dtype)
# rebuild_float64 | values | Keep the type
return mean.double() + (X - mean).double() @ C.T.double() @ C.double()
# rebuild_no_grad | gradients stability | no gradient reaches
with torch.no_grad():
    return mean + (X - mean) @ C.T @ C
# rebuild_detached_mean | gradients stability | no gradient reaches mean
mean = mean.detach()
return mean + (X - mean) @ C.T @ C
# rebuild_detached_components | gradients stability | no gradient reaches components
C = C.detach()
return mean + (X - mean) @ C.T @ C
# rebuild_detached_code | gradients stability | gradient
return mean + ((X - mean) @ C.T).detach() @ C
# rebuild_half_detached | gradients | graph is
return mean + (X - mean) @ C.T.detach() @ C
# rebuild_numpy | gradients stability | .numpy()
m, c = mean.detach().numpy(), C.detach().numpy()
return torch.from_numpy(m + (X.detach().numpy() - m) @ c.T @ c)
# rebuild_in_place | checks values gradients | changed in place
with torch.no_grad():
    X -= mean
return mean + X @ C.T @ C
""",
    ),
    *versions(
        "variance_split",
        """
# split_difference | ALL | total - projected
return total, projected, total - projected
# split_projected_from_rest | checks values stability | total - error
return total, total - error, error
# split_total_from_rest | values stability | projected + error
return projected + error, projected, error
# split_not_centred | checks values stability | mean is not subtracted
return X.square().sum(1), X_hat.square().sum(1), error
# split_hat_not_centred | checks values stability | not subtracted from X_hat
return total, X_hat.square().sum(1), error
# split_own_mean | values stability | mean of X_hat is subtracted from X_hat
return total, (X_hat - X_hat.mean(0)).square().sum(1), error
# split_hat_mean | values stability | mean of X_hat is used throughout
m = X_hat.mean(0)
return (X - m).square().sum(1), (X_hat - m).square().sum(1), error
# split_variance | values stability | mean of X_hat is subtracted from X_hat
return total, (X_hat - X_hat.mean(dim=0)).pow(2).sum(dim=1), (X_hat - X).pow(2).sum(dim=1)
# split_mean_of_dimensions | values stability | averaged, not summed
return tuple(t / X.shape[1] for t in (total, projected, error))
# split_scalars | checks values stability | mean over the batch is taken
return total.mean(), projected.mean(), error.mean()
# split_sums | checks values stability | sum runs over the batch too
return total.sum(), projected.sum(), error.sum()
# split_scalar_means | checks values stability | mean runs over everything
return (X - mean).square().mean(), (X_hat - mean).square().mean(), (X - X_hat).square().mean()
# split_per_dimension | checks values stability | mean runs over the batch, not over the dimensions
return tuple(t.square().mean(0) for t in (X - mean, X_hat - mean, X - X_hat))
# split_not_summed | checks values stability | not summed
return (X - mean).square(), (X_hat - mean).square(), (X - X_hat).square()
# split_distances | values stability | distances are returned
return (X - mean).norm(dim=1), (X_hat - mean).norm(dim=1), (X - X_hat).norm(dim=1)
# split_absolute | values stability | absolute values
return tuple(t.abs().sum(1) for t in (X - mean, X_hat - mean, X - X_hat))
# split_not_squared | checks values stability | not squared
return tuple(t.sum(1) for t in (X - mean, X_hat - mean, X - X_hat))
# split_over_batch_size | values stability | divided by the batch size
return total / len(X), projected / len(X), error / len(X)
# split_order | checks values stability | another order
return total, error, projected
# split_order_of_all | checks values stability | another order
return error, projected, total
# split_row_means | checks values stability | an example's own dimensions
m = X.mean(1, keepdim=True)
return (X - m).square().sum(1), (X_hat - m).square().sum(1), error
# split_one_mean | checks values stability | one mean of all dimensions
m = X.mean()
return (X - m).square().sum(1), (X_hat - m).square().sum(1), error
# split_keepdim | checks values stability | size 1 is left
return tuple(t.square().sum(1, keepdim=True) for t in (X - mean, X_hat - mean, X - X_hat))
# split_stacked | checks values stability | return a tuple
return torch.stack([total, projected, error])
# split_only_two | checks values stability | a tuple of 2
return projected, error
# split_squeezed | values stability | one example
return total.squeeze(), projected.squeeze(), error.squeeze()
# split_numbers | checks values stability |
return total.tolist(), projected.tolist(), error.tolist()
# split_expanded | stability | digits cancel: large, nearly equal numbers are subtracted
total = X.square().sum(1) - 2 * X @ mean + mean @ mean
projected = X_hat.square().sum(1) - 2 * X_hat @ mean + mean @ mean
return total, projected, error
# split_expanded_error | stability | digits cancel: large, nearly equal numbers are subtracted
return total, projected, X.square().sum(1) + X_hat.square().sum(1) - 2 * (X * X_hat).sum(1)
# split_cdist | stability | digits cancel: large, nearly equal numbers are subtracted
centre = mean.unsqueeze(0)
fast = torch.cdist(X, centre, compute_mode="use_mm_for_euclid_dist")
return fast.square().squeeze(1), projected, error
# split_float64 | values | Keep the type
return total.double(), projected.double(), error.double()
# split_float32 | stability | a part of it is computed in single precision (float32)
return tuple(t.float().to(X.dtype) for t in (total, projected, error))
# split_in_place | checks values | changed in place
X -= mean
X_hat -= mean
return X.square().sum(1), X_hat.square().sum(1), (X - X_hat).square().sum(1)
# split_cosine | checks values stability |
return total, ((X - mean) * (X_hat - mean)).sum(1), error
# split_binomial | stability | digits cancel
total = X.square().sum(1) - 2 * X @ mean + mean @ mean
return total, projected, error
""",
    ),
    *versions(
        "regularised_loss",
        """
# loss_mean_of_dimensions | SOME | averaged over the dimensions
return torch.nn.functional.mse_loss(X @ W1.T @ W2.T, X) + penalty
# loss_sum_of_examples | SOME | summed over the examples
return (X - X @ W1.T @ W2.T).square().sum() + penalty
# loss_over_dimensions | SOME | divided by D
return (X - X @ W1.T @ W2.T).square().sum() / X.shape[1] + penalty
# loss_norm_not_squared | SOME | not squared
return (X - X @ W1.T @ W2.T).norm(dim=1).mean() + penalty
# loss_frobenius_norm | SOME | root of the squared error
return (X - X @ W1.T @ W2.T).norm() + penalty
# loss_root | SOME | root of the mean squared error
return error.sqrt() + penalty
# loss_absolute | SOME | absolute errors
return (X - X @ W1.T @ W2.T).abs().sum(1).mean() + penalty
# loss_half | SOME | squared error is halved
return 0.5 * error + penalty
# loss_centred_again | SOME | centred once more
A = X - X.mean(0)
return (A - A @ W1.T @ W2.T).square().sum(1).mean() + penalty
# loss_transposes | SOME | transposes are swapped
return (X - X @ W2 @ W1).square().sum(1).mean() + penalty
# loss_tied | SOME | W2 is not in the reconstruction
return (X - X @ W1.T @ W1).square().sum(1).mean() + penalty
# loss_tied_decoder | SOME | W1 is not in the reconstruction
return (X - X @ W2 @ W2.T).square().sum(1).mean() + penalty
# loss_no_transposes | ALL | shapes cannot be multiplied | raised
return (X - X @ W1 @ W2).square().sum(1).mean() + penalty
# loss_per_example | ALL | one number per example
return (X - X @ W1.T @ W2.T).square().sum(1) + penalty
# loss_uniform_mean | SOME | one weight serves for all: their mean
return error + lam.mean() * (rows + columns).sum()
# loss_uniform_sum | SOME | one weight serves for all: their sum
return error + lam.sum() * (W1.square().sum() + W2.square().sum())
# loss_uniform_first | checks values gradients stability | one weight serves for all: the first
return error + lam[0] * (W1.square().sum() + W2.square().sum())
# loss_outer | SOME | one weight serves for all: their sum
return error + torch.outer(lam, rows + columns).sum()
# loss_not_weighted | ALL | lam is not used
return error + (rows + columns).sum() + 0 * lam.sum()
# loss_broadcast_rows | ALL | must match the size | raised
return error + (lam * W1.square()).sum() + (lam * W2.square()).sum()
# loss_rows_columns_swapped | ALL | must match the size | raised
return error + (lam * (W1.square().sum(0) + W2.square().sum(1))).sum()
# loss_lam_squared | SOME | lam is squared
return error + (torch.diag(lam) @ W1).square().sum() + (W2 @ torch.diag(lam)).square().sum()
# loss_lam_squared_encoder | SOME | encoder before
return error + (lam.unsqueeze(1) * W1).square().sum() + (lam * W2.square()).sum()
# loss_lam_root | SOME | root of lam is taken
return error + (lam.sqrt() * (rows + columns)).sum()
# loss_lengths_not_squared | SOME | lengths of rows and columns are not squared
return error + (lam * (W1.norm(dim=1) + W2.norm(dim=0))).sum()
# loss_lasso | SOME | absolute entries
return error + (lam * (W1.abs().sum(1) + W2.abs().sum(0))).sum()
# loss_frobenius_not_squared | SOME | Frobenius norms are not squared
return error + lam.sum() * (W1.norm() + W2.norm())
# loss_encoder_only | SOME | decoder's columns are not
return error + (lam * rows).sum()
# loss_decoder_only | SOME | encoder's rows are not
return error + (lam * columns).sum()
# loss_encoder_twice | SOME | counted twice
return error + (lam * rows).sum() + (lam @ W1.square()).sum()
# loss_product | SOME | multiply each other
return error + (lam * rows * columns).sum()
# loss_penalty_mean | SOME | averaged over the code numbers
return error + (lam * (rows + columns)).mean()
# loss_penalty_entry_mean | SOME | row or column are averaged
return error + (lam * (W1.square().mean(1) + W2.square().mean(0))).sum()
# loss_penalty_per_example | SOME | divided by the number of examples
return error + penalty / len(X)
# loss_penalty_times_examples | SOME | multiplied by the number of examples
return error + penalty * len(X)
# loss_everything_over_examples | SOME | All your numbers
return 3 * error + 3 * penalty
# loss_half_penalty | SOME | penalty is halved
return error + penalty / 2
# loss_two_slips | SOME | averaged over the dimensions, not summed; lam
mse = torch.nn.functional.mse_loss(X @ W1.T @ W2.T, X)
return mse + lam.mean() * (rows + columns).sum()
# loss_no_penalty | SOME | penalty is left out
return error + 0 * penalty
# loss_no_error | SOME | squared error is left out
return penalty + 0 * error
# loss_penalty_subtracted | SOME | subtracted
return error - penalty
# loss_reversed | values gradients stability | reverse order
return error + (lam.flip(0) * (rows + columns)).sum()
# loss_sorted | ALL |
return error + (lam.sort().values * (rows + columns)).sum()
# loss_mixed_rows | SOME | products of different rows
return error + (lam.sqrt() @ W1).square().sum() + (W2 @ lam.sqrt()).square().sum()
# loss_vector_penalty | ALL | one number per code number
return error + lam * (rows + columns)
# loss_reshaped | ALL | size 1 is left
return (error + penalty).reshape(1)
# loss_number | gradients stability | .item()
return torch.tensor(error.item() + penalty.item(), dtype=X.dtype)
# loss_detached_penalty | gradients | graph is
return error + penalty.detach()
# loss_detached_decoder | gradients stability | W2
return (X - X @ W1.T @ W2.detach().T).square().sum(1).mean() + (lam * (rows + columns.detach())).sum()
# loss_detached_code | gradients | graph is
return (X - (X @ W1.T).detach() @ W2.T).square().sum(1).mean() + penalty
# loss_float32 | gradients stability | float64
return (error.float() + penalty.float()).to(X.dtype)
# loss_float64 | values | Keep the type
return error.double() + penalty.double()
# loss_expanded | stability | digits cancel: large, nearly equal numbers are subtracted
A = X @ W1.T
inner = X.square().sum() - 2 * (X @ W2 * A).sum() + (A @ W2.T).square().sum()
return inner / len(X) + penalty
# loss_through_covariance | stability | digits cancel: large, nearly equal numbers are subtracted
R = torch.eye(X.shape[1], dtype=X.dtype) - W2 @ W1
return torch.trace(R @ (X.T @ X / len(X)) @ R.T) + penalty
# loss_in_place | checks values gradients | in place
with torch.no_grad():
    W1 *= lam.sqrt().unsqueeze(1)
return error + W1.square().sum() + (lam * columns).sum()
""",
    ),
]

RIGHT = [
    *versions(
        "principal_components",
        """
# pca_named_tuple
from collections import namedtuple

e, V = eigh(A.T @ A / n)
return namedtuple("PCA", "mean components eigenvalues")(mean, V.flip(1)[:, :k].T, e.flip(0)[:k])
# pca_eigh
e, V = eigh(A.T @ A / n)
return mean, V[:, -k:].flip(1).T, e[-k:].flip(0)
# pca_svd
U, S, Vh = svd(A, full_matrices=False)
return mean, Vh[:k], S[:k] ** 2 / n
# pca_svd_of_covariance
U, S, Vh = svd(A.T @ A / n)
return mean, U.T[:k], S[:k]
# pca_cov
e, V = eigh(torch.cov(X.T, correction=0).reshape(d, d))
order = e.argsort(descending=True)[:k]
return mean, V[:, order].T, e[order]
# pca_scaled_svd_list
S, Vh = svd(A / n**0.5)[1:]
return [mean, -Vh[:k, :], S[:k] ** 2]
# pca_double_inside
Y = X.double()
m = Y.mean(0)
e, V = eigh((Y - m).T @ (Y - m) / n)
e, V = e.flip(0)[:k].clamp(min=0), V.T.flip(0)[:k]
return m.to(X.dtype), V.to(X.dtype), e.to(X.dtype)
# pca_orthogonal_iteration
S = A.T @ A / n
Q = torch.linalg.qr(torch.randn(d, k, dtype=X.dtype, generator=torch.Generator().manual_seed(0))).Q
for _ in range(200):
    Q = torch.linalg.qr(S @ Q).Q
return mean, Q.T, (S @ Q * Q).sum(0)
# pca_outer_products
S = torch.zeros(d, d, dtype=X.dtype)
for row in A:
    S += torch.outer(row, row) / n
e, V = eigh(S)
rows = [V[:, d - 1 - i] for i in range(k)]
return mean, torch.stack(rows), torch.stack([e[d - 1 - i] for i in range(k)])
# pca_rayleigh
V = svd(A, full_matrices=False)[2][:k]
return X.sum(0) / n, V, ((X - mean) @ V.T).square().mean(0)
# pca_variances_of_codes
V = eigh(torch.einsum("ni,nj->ij", A, A))[1].flip(1)[:, :k]
return mean, V.T.contiguous(), (A @ V).var(0, correction=0)
# pca_negative_covariance
e, V = eigh(-A.T @ A / n)
return mean, V[:, :k].T, -e[:k]
# pca_numpy
B = A.numpy()
e, V = __import__("numpy").linalg.eigh(B.T @ B / n)
return mean, torch.from_numpy(V[:, ::-1][:, :k].T.copy()), torch.from_numpy(e[::-1][:k].copy())
# pca_uncentred_shift
Y = X - X[0]
shift = Y.mean(0)
e, V = eigh(Y.T @ Y / n - torch.outer(shift, shift))
return X[0] + shift, V.flip(1)[:, :k].T, e.flip(0)[:k]
""",
    ),
    *versions(
        "reconstruct",
        """
# rebuild_two_steps
code = torch.einsum("nd,kd->nk", X - mean, C)
return torch.einsum("nk,kd->nd", code, C) + mean
# rebuild_projector
return mean + (X - mean) @ (C.T @ C)
# rebuild_loops
rows = []
for x in X:
    row = mean
    for c in C:
        row = row + torch.dot(c, x - mean) * c
    rows.append(row)
return torch.stack(rows)
# rebuild_less_the_rest
A = X - mean
return X - (A - A @ C.T @ C)
# rebuild_linear
code = torch.nn.functional.linear(X - mean, C)
return torch.nn.functional.linear(code, C.T, mean)
# rebuild_pseudoinverse
return mean + (X - mean) @ C.T @ torch.linalg.pinv(C.T)
# rebuild_new_basis
Q = torch.linalg.qr(C.T).Q
return mean + (X - mean) @ Q @ Q.T
# rebuild_vmap
return torch.vmap(lambda x: mean + C.T @ (C @ (x - mean)))(X)
# rebuild_double_inside
m, c = mean.double(), C.double()
return (m + (X.double() - m) @ c.T @ c).to(X.dtype)
# rebuild_addmm
return torch.addmm(mean, (X - mean) @ C.T, C)
# rebuild_in_place_buffer
buffer = mean.repeat(len(X), 1)
buffer += (X - mean) @ C.T @ C
return buffer
""",
    ),
    *versions(
        "variance_split",
        """
# split_plain
return total, projected, error
# split_einsum
A, B, E = X - mean, X_hat - mean, X_hat - X
return tuple(torch.einsum("nd,nd->n", t, t) for t in (A, B, E))
# split_loops
rows = [[(a - mean) @ (a - mean), (b - mean) @ (b - mean), (a - b) @ (a - b)] for a, b in zip(X, X_hat)]
return [torch.stack(list(column)) for column in zip(*rows)]
# split_norms
return tuple(torch.linalg.vector_norm(t, dim=1) ** 2 for t in (X - mean, X_hat - mean, X - X_hat))
# split_mse
mse = torch.nn.functional.mse_loss
centre = mean.expand_as(X)
pairs = ((X, centre), (X_hat, centre), (X_hat, X))
return tuple(mse(a, b, reduction="none").sum(-1) for a, b in pairs)
# split_double_inside
Y, Z = X.double(), X_hat.double()
m = Y.mean(0)
return tuple(t.square().sum(1).to(X.dtype) for t in (Y - m, Z - m, Y - Z))
# split_stack_unbound
return torch.stack([X - mean, X_hat - mean, X - X_hat]).square().sum(-1).unbind()
# split_identity
A, E = X - mean, X_hat - X
total, error = A.square().sum(1), E.square().sum(1)
return total, (A + E).square().sum(1), error
""",
    ),
    *versions(
        "regularised_loss",
        """
# loss_plain
return error + penalty
# loss_paper
root = torch.diag(lam.sqrt())
return error + torch.linalg.matrix_norm(root @ W1) ** 2 + torch.linalg.matrix_norm(W2 @ root) ** 2
# loss_einsum
x_hat = torch.einsum("dk,kj,nj->nd", W2, W1, X)
return torch.einsum("nd,nd->", X - x_hat, X - x_hat) / len(X) + torch.dot(lam, rows + columns)
# loss_loops
total = X.new_zeros(())
for x in X:
    left = x - W2 @ (W1 @ x)
    total = total + left @ left / len(X)
for i in range(len(lam)):
    total = total + lam[i] * (W1[i] @ W1[i] + W2[:, i] @ W2[:, i])
return total
# loss_mse
x_hat = torch.nn.functional.linear(torch.nn.functional.linear(X, W1), W2)
return torch.nn.functional.mse_loss(x_hat, X, reduction="sum") / X.shape[0] + lam @ rows + lam @ columns
# loss_traces
R = X @ (torch.eye(X.shape[1], dtype=X.dtype) - W2 @ W1).T
return R.square().sum() / len(X) + torch.trace(torch.diag(lam) @ (W1 @ W1.T + W2.T @ W2))
# loss_scaled_columns
return error + (lam.unsqueeze(1) * W1.square()).sum() + (W2.square() * lam).sum()
# loss_mean_times_dimensions
return (X @ W1.T @ W2.T - X).pow(2).mean() * X.shape[1] + penalty
# loss_double_inside
Y, A, B, g = (t.double() for t in (X, W1, W2, lam))
squares = (Y - Y @ A.T @ B.T).square().sum(1).mean()
return (squares + (g * (A.square().sum(1) + B.square().sum(0))).sum()).to(X.dtype)
# loss_norms_squared
return error + (lam * (torch.linalg.vector_norm(torch.cat((W1, W2.T), dim=1), dim=1) ** 2)).sum()
# loss_modules
encoder, decoder = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
code = torch.func.functional_call(encoder, {"weight": W1}, (X,))
x_hat = torch.func.functional_call(decoder, {"weight": W2}, (code,))
return (x_hat - X).square().sum(-1).mean() + penalty
""",
    ),
]
