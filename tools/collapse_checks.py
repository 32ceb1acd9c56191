"""Collapse the cells of checks and of numbers for the text: a reader on Colab or in JupyterLab sees one line.

    python tools/collapse_checks.py [NOTEBOOK ...]     (all of book/ where none is named)

The website leaves these cells out (tag remove-cell). JupyterLab closes a cell by its metadata; Colab needs
metadata and a title in the first line. Nothing else of a notebook changes, and a second run changes nothing.
"""

import ast
import json
import re
import sys
from pathlib import Path

BOOK = Path(__file__).resolve().parent.parent / "book"
HEADING = re.compile(r"# (?P<title>(?:Checks|Numbers|The solutions, run)\b[^.:]*)(?P<end>[.:] *)(?P<more>.*)")


def calls(tree: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == name for node in ast.walk(tree))


def title(source: str) -> str:
    """What a cell without a heading holds."""
    tree = ast.parse(source)
    checks = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    if not checks:
        return "Numbers for the text"
    return "Checks, and numbers for the text" if calls(tree, "glue") else "Checks"


def collapsed(cell: dict) -> dict:
    """The same cell, closed; its source begins with ``# @title``."""
    source = "".join(cell["source"])
    if not source.startswith("# @title "):
        first, *rest = source.split("\n")
        heading = HEADING.fullmatch(first)
        if heading is None:
            lines = [f"# @title {title(source)}", first, *rest]
        else:
            more = [f"# {heading['more'][0].upper()}{heading['more'][1:]}"] if heading["more"] else []
            lines = [f"# @title {heading['title']}", *more, *rest]
        source = "\n".join(lines)
    metadata = cell["metadata"]
    jupyter = {**metadata.get("jupyter", {}), "source_hidden": True}
    metadata = dict(sorted({**metadata, "cellView": "form", "jupyter": jupyter}.items()))
    return {**cell, "metadata": metadata, "source": source.splitlines(keepends=True)}


def closes(cell: dict) -> bool:
    """Whether the website leaves the cell out. The one that installs the library stays open on Colab."""
    removed = cell["cell_type"] == "code" and "remove-cell" in cell["metadata"].get("tags", [])
    return removed and "google.colab" not in "".join(cell["source"])


def main(paths: list[str]) -> None:
    for path in map(Path, paths or sorted(BOOK.glob("*.ipynb"))):
        text = path.read_text(encoding="utf-8")
        notebook = json.loads(text)
        notebook["cells"] = [collapsed(cell) if closes(cell) else cell for cell in notebook["cells"]]
        new = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path.name} changed")


if __name__ == "__main__":
    main(sys.argv[1:])
