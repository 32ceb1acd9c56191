"""The anchors that Sphinx gives a page's headings. Nothing but the standard library: tests use it, too."""

import json
import re
from pathlib import Path


def anchors(folder: Path, name: str) -> dict[str, str]:
    """{anchor: heading without mark-up} of a page of the book, ``name.md`` or ``name.ipynb``."""
    path = folder / f"{name}.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    titles = map(plain, re.findall(r"(?m)^#{1,4} (.+)$", text))
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"): title for title in titles}


def plain(heading: str) -> str:
    """Without formulas' dollars, emphasis and roles: of ``{ref}`text <target>` `` the text is left."""
    heading = re.sub(r"\{[\w:]+\}`([^`<]*)[^`]*`", r"\1", heading)
    return re.sub(r"[$`*\\{}]", "", heading)
