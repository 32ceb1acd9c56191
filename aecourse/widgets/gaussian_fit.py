"""A Gaussian q to drag against a fixed density p: the two divergences, or the bound, as it moves.

The browser integrates by itself, so it works in JupyterLab, in Colab and on a published page.
"""

import math
from collections.abc import Sequence

import anywidget
import traitlets

from aecourse.widgets.files import script, style


class GaussianFit(anywidget.AnyWidget):
    """A one-dimensional mixture of Gaussians p, and a Gaussian q with sliders for mean and std.

    Shows KL(p || q) and KL(q || p), in nats; with ``log_evidence``, p is the posterior p(z|x) of one example
    and what is shown is log p(x), the ELBO and the gap between them, KL(q || p(z|x)). Buttons walk from where
    q stands to the nearest minimum.

    Args:
        weights: ``(k,)``, of p's components, positive; they are divided by their sum.
        means: ``(k,)``.
        stds: ``(k,)``, positive.
        start: mean and standard deviation of q at first.
        log_evidence: log p(x), where p is a posterior.

    Raises:
        ValueError: lists of different lengths, numbers that are not finite, or not positive where they
            must be.
    """

    _esm = script("gaussian_fit")
    _css = style("gaussian_fit")

    weights = traitlets.List(traitlets.Float()).tag(sync=True)
    means = traitlets.List(traitlets.Float()).tag(sync=True)
    stds = traitlets.List(traitlets.Float()).tag(sync=True)
    range = traitlets.Tuple(traitlets.Float(), traitlets.Float()).tag(sync=True)
    """Ends of the axis, between which the mean moves."""
    std_range = traitlets.Tuple(traitlets.Float(), traitlets.Float()).tag(sync=True)
    log_evidence = traitlets.Float(allow_none=True).tag(sync=True)
    mean = traitlets.Float().tag(sync=True)
    """Of q."""
    std = traitlets.Float().tag(sync=True)
    """Of q."""

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[float],
        stds: Sequence[float],
        start: tuple[float, float] = (0.0, 1.0),
        log_evidence: float | None = None,
    ):
        weights, means, stds = ([float(value) for value in values] for values in (weights, means, stds))
        if not 0 < len(weights) == len(means) == len(stds):
            raise ValueError(
                f"weights, means and stds have {len(weights)}, {len(means)} and {len(stds)} entries but need "
                "one for each component."
            )
        for name, values in (("weights", weights), ("stds", stds), ("the std in start", [start[1]])):
            if any(not 0 < value < math.inf for value in values):
                raise ValueError(f"{name} has the values {values} but they must be positive.")
        others = [*means, start[0], *([] if log_evidence is None else [log_evidence])]
        if not all(map(math.isfinite, others)):
            raise ValueError(f"means, start and log_evidence are {others} but must be finite.")
        ends = [(mean - 4 * std, mean + 4 * std) for mean, std in zip(means, stds)]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if not low <= start[0] <= high:
            raise ValueError(f"start has the mean {start[0]} but p's axis runs from {low:g} to {high:g}.")
        super().__init__(
            weights=[weight / sum(weights) for weight in weights],
            means=means,
            stds=stds,
            range=(low, high),
            std_range=(min(*stds, start[1]) / 4, max((high - low) / 3, start[1])),
            log_evidence=log_evidence,
            mean=float(start[0]),
            std=float(start[1]),
        )
