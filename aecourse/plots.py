"""Figures of the course: one style, and the few pictures that every chapter draws.

Each function draws into the axes it is given, or makes them, and returns them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from aecourse.contracts import check_shapes
from aecourse.extras import needs
from aecourse.train import History
from aecourse.vae import VAE

with needs("book", "Figures need matplotlib"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.facecolor": "white",  # a white card, so that figures stay readable on a dark page
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.grid": False,
    "image.cmap": "gray_r",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    # Ten colours that stay apart under the common colour-vision deficiencies (Petroff 2021).
    "axes.prop_cycle": plt.cycler(
        color=[
            "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
            "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
        ]
    ),
}  # fmt: skip


def use_style() -> None:
    """Use the course's matplotlib style from here on."""
    plt.rcParams.update(STYLE)


def images(
    pictures: Tensor,
    columns: int = 10,
    titles: Sequence[str] | None = None,
    ax: Axes | None = None,
    symmetric: bool = False,
) -> Axes:
    """Draw pictures on one grid, row by row.

    Args:
        pictures: ``(N, channels, height, width)``, one or three channels, in [0, 1] unless ``symmetric``.
        columns: pictures per row.
        titles: one for each *row*, written at its left.
        ax: where to draw; by default a new figure of fitting size.
        symmetric: blue below zero, red above, white at zero: for weights and components.
    """
    check_shapes(("pictures", pictures, "N channels height width"))
    count, channels, height, width = pictures.shape
    if channels not in (1, 3):
        raise ValueError(f"pictures have {channels} channels but need 1 or 3.")
    rows = math.ceil(count / columns)
    if titles is not None and len(titles) != rows:
        raise ValueError(f"titles has {len(titles)} entries but needs {rows}, one for each row.")
    gap = max(1, width // 14)
    blank = 0.0 if symmetric or channels == 1 else 1.0
    canvas = torch.full((channels, rows * (height + gap), columns * (width + gap)), blank)
    for i, picture in enumerate(pictures.detach().cpu()):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[:, top : top + height, left : left + width] = picture
    if ax is None:
        size = min(7.0 / columns, 1.0)
        _, ax = plt.subplots(figsize=(columns * size + 0.9 * bool(titles), rows * size * height / width))
    limit = float(pictures.abs().max()) if symmetric else 1.0
    ax.imshow(
        canvas.permute(1, 2, 0).squeeze(-1).numpy(),
        cmap="RdBu_r" if symmetric else "gray_r",
        vmin=-limit if symmetric else 0.0,
        vmax=limit,
        interpolation="nearest",
    )
    ax.set_xticks([])
    ax.set_yticks([])
    if titles is not None:
        ax.set_yticks([row * (height + gap) + height / 2 for row in range(rows)], titles)
        ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def history(
    record: History,
    names: Sequence[str] = ("total",),
    ax: Axes | None = None,
    unit: str = "nats per example",
) -> Axes:
    """Draw parts of a training history against the epoch: training dashed, test solid."""
    ax = plt.subplots(figsize=(5.5, 3.2))[1] if ax is None else ax
    for number, name in enumerate(names):
        epochs = range(1, record.epochs + 1)
        ax.plot(epochs, record.train[name], "--", color=f"C{number}", label=f"{name}, training")
        if record.test:
            ax.plot(epochs, record.test[name], color=f"C{number}", label=f"{name}, test")
    ax.set_xlabel("epoch")
    ax.set_ylabel(unit)
    ax.legend()
    return ax


def codes(points: Tensor, labels: Tensor, ax: Axes | None = None) -> Axes:
    """Scatter two-dimensional codes, ``(N, 2)``, coloured and lettered by label, ``(N,)``.

    The digit stands at the median of its class, so that colour is not the only clue.
    """
    check_shapes(("points", points, "N two"))
    if points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(
            f"points and labels have the shapes {tuple(points.shape)} and {tuple(labels.shape)} but need "
            "(N, 2) and (N,)."
        )
    ax = plt.subplots(figsize=(4.6, 4.2))[1] if ax is None else ax
    points, labels = points.detach().cpu(), labels.cpu()
    for label in labels.unique().tolist():
        chosen = points[labels == label]
        ax.scatter(*chosen.T, s=6, alpha=0.5, color=f"C{label}", linewidths=0)
        x, y = chosen.median(dim=0).values.tolist()
        box = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": f"C{label}"}
        ax.text(x, y, str(label), ha="center", va="center", fontsize="small", bbox=box)
    ax.set_xlabel("$z_1$")
    ax.set_ylabel("$z_2$")
    ax.set_aspect("equal")
    return ax


@torch.no_grad()
def manifold(vae: VAE, per_side: int = 15, ax: Axes | None = None) -> Axes:
    """Decode a square grid over a two-dimensional latent space.

    The grid is spaced by quantiles of the prior N(0, 1), so that every picture stands for the same
    share of the model's samples (Kingma & Welling 2014, appendix A).
    """
    if vae.latent_dim != 2:
        raise ValueError(f"vae has {vae.latent_dim} latent variables but a manifold needs 2.")
    quantiles = torch.special.ndtri((torch.arange(per_side) + 0.5) / per_side)
    # Rows run downwards on a page and z_2 upwards in a plot: flip, so that both agree.
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    z = torch.stack([z1.flatten(), z2.flatten()], dim=1).to(next(vae.parameters()))
    return images(vae.decode(z), columns=per_side, ax=ax)
