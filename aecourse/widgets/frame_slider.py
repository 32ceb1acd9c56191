"""A slider over pictures that were drawn beforehand: for what takes too long to compute in a browser.

Training, for example, or a field of arrows for each level of noise. The pictures travel with the page, so
that the slider works in JupyterLab, in Colab and on a published page, which has no kernel.
"""

import io
import struct
from collections.abc import Sequence

import anywidget
import matplotlib.pyplot as plt
import traitlets
from matplotlib.figure import Figure

from aecourse.widgets.files import script, style

DPI = 130  # a little more than the page's 110: frames are few colours, and sharp on a fine screen


class FrameSlider(anywidget.AnyWidget):
    """A slider that moves through figures, with a button that plays them.

    Args:
        name: what the slider changes, with its unit; the slider's label.
        values: the value at each frame, shown beside the slider.
        figures: the frames, of one size; each is drawn once, at its size in inches, and closed.
        descriptions: for each frame what is to be seen in it, in words. It is the picture's alternative text
            and stands below it.
        start: the frame that is shown first.

    Raises:
        ValueError: lists of different lengths or too short, figures of different sizes, a description that is
            missing, a start that is no frame.
    """

    _esm = script("frame_slider")
    _css = style("frame_slider")

    name = traitlets.Unicode().tag(sync=True)
    values = traitlets.List(traitlets.Unicode()).tag(sync=True)
    descriptions = traitlets.List(traitlets.Unicode()).tag(sync=True)
    image_size = traitlets.Tuple(traitlets.Int(), traitlets.Int()).tag(sync=True)
    """Width and height on the page, in CSS pixels."""
    frames = traitlets.Bytes().tag(sync=True)
    """All PNG files, one after the other: one buffer is all that the page's host knows."""
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    """How many bytes each has."""
    index = traitlets.Int().tag(sync=True)
    """The frame that is shown."""

    def __init__(
        self,
        name: str,
        values: Sequence[object],
        figures: Sequence[Figure],
        descriptions: Sequence[str],
        start: int = 0,
    ):
        if not len(values) == len(figures) == len(descriptions):
            raise ValueError(
                f"values, figures and descriptions have {len(values)}, {len(figures)} and "
                f"{len(descriptions)} entries but need one for each frame."
            )
        if len(figures) < 2:
            raise ValueError(f"figures has {len(figures)} entries but a slider needs at least 2.")
        for number, description in enumerate(descriptions):
            if not description.strip():
                raise ValueError(f"descriptions[{number}] is empty but must say what the frame shows.")
        if not 0 <= start < len(figures):
            raise ValueError(f"start is {start} but must be from 0 to {len(figures) - 1}.")
        pictures = [_png(figure) for figure in figures]
        shapes = {struct.unpack(">II", picture[16:24]) for picture in pictures}  # where PNG keeps its size
        if len(shapes) > 1:
            raise ValueError(f"figures have the sizes {sorted(shapes)} in pixels but need one size.")
        width, height = shapes.pop()
        super().__init__(
            name=name,
            values=[str(value) for value in values],
            descriptions=list(descriptions),
            image_size=(round(width * 96 / DPI), round(height * 96 / DPI)),
            frames=b"".join(pictures),
            sizes=[len(picture) for picture in pictures],
            index=start,
        )


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Not bbox_inches="tight": frames of different sizes would make the page jump. No version and no date in
    # the file: the same figure gives the same bytes.
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()
