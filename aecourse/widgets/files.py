"""The browser's halves of the widgets, as they travel: each with the parts that all share before it."""

from pathlib import Path

FOLDER = Path(__file__).parent


def script(name: str) -> str:
    """One ES module: the shared controls, then the widget's own code."""
    return _together(f"{name}.js", "controls.js")


def style(name: str) -> str:
    """One style sheet."""
    return _together(f"{name}.css", "controls.css")


def _together(own: str, shared: str) -> str:
    return (FOLDER / shared).read_text(encoding="utf-8") + (FOLDER / own).read_text(encoding="utf-8")
