"""Interactive figures that work in JupyterLab, in Colab and on a static page with no kernel."""

from aecourse.widgets.latent_viewer import LatentViewer

__all__ = ["LatentViewer"]
