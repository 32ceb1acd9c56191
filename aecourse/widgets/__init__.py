"""Interactive figures that work in JupyterLab, in Colab and on a static page with no kernel."""

from aecourse.extras import needs

with needs("book", "The widgets need anywidget and matplotlib"):
    from aecourse.widgets.frame_slider import FrameSlider
    from aecourse.widgets.gaussian_fit import GaussianFit
    from aecourse.widgets.latent_viewer import LatentViewer

__all__ = ["FrameSlider", "GaussianFit", "LatentViewer"]
