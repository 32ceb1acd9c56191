"""Letters that mean different things on different pages: the table of the notation page names them all."""

import json
import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parent.parent / "book"
PAGES = sorted(path.stem for path in BOOK.glob("*.ipynb"))


def mathematics(text: str) -> str:
    """All that stands between dollars."""
    return "\n".join(
        display or inline for display, inline in re.findall(r"(?s)\$\$(.*?)\$\$|\$([^$]*)\$", text)
    )


def uses(letter: str, text: str) -> bool:
    """Whether the bare letter, without an index, is in the mathematics of a text."""
    return bool(re.search(rf"(?<![A-Za-z\\]){re.escape(letter)}(?![A-Za-z_])", mathematics(text)))


def prose(name: str) -> str:
    cells = json.loads((BOOK / f"{name}.ipynb").read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def tables() -> tuple[str, list[tuple[str, str]]]:
    """The mathematics of the first table, and the letters and pages of the second."""
    text = (BOOK / "notation.md").read_text()
    first, second = re.findall(r"(?s)```\{list-table\}(.*?)```", text)
    rows = re.findall(r"\* - \$(.+?)\$\n  - (.+)\n  - .+", second)
    local = [(letter, page) for letter, pages in rows for page in re.findall(r"\]\(([\w-]+)\.ipynb\)", pages)]
    return first, local


EVERYWHERE, LOCAL = tables()


@pytest.mark.parametrize(("letter", "page"), LOCAL, ids=lambda value: value.strip("\\"))
def test_a_page_uses_its_own_letter(letter, page):
    assert uses(letter, prose(page))


@pytest.mark.parametrize("letter", sorted({letter for letter, _ in LOCAL if not uses(letter, EVERYWHERE)}))
def test_every_page_with_such_a_letter_is_named(letter):
    """A letter that no other page gives a meaning to needs one from each page that uses it."""
    assert {page for page in PAGES if uses(letter, prose(page))} == {page for a, page in LOCAL if a == letter}


def test_a_new_meaning_would_be_seen():
    assert uses(r"\lambda", r"Let $\lambda$ be new.")
    assert not uses(r"\lambda", r"The eigenvalue $\lambda_1$ and the word \lambda outside.")
    assert uses("D", "$$\nD = 1\n$$ (eq)")
    assert not uses("D", r"$\mathrm{DKL}$")
