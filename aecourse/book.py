"""What the chapters need to be a book: numbers in prose, and source shown instead of copied."""

import inspect
import textwrap
from typing import Any

import torch

from aecourse.extras import needs


def glue(name: str, value: Any) -> None:
    """Hand a number (or a word) to the text of the page, which shows it with ``{glue:text}``.

    One-element tensors are passed on as plain numbers. Outside the website, on Colab for instance,
    MyST-NB may be missing; then there is no page to hand anything to, and this does nothing.
    """
    try:
        from myst_nb import glue as hand_over
    except ImportError:
        return
    hand_over(name, value.item() if isinstance(value, torch.Tensor) else value, display=False)


def source(thing: Any):
    """Show the source of a function or class of the library as it is installed."""
    with needs("book", "To show source, a notebook needs IPython"):
        from IPython.display import Code

    return Code(textwrap.dedent(inspect.getsource(thing)), language="python")
