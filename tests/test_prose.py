"""The words of the book, the assignments and the guides, against a British dictionary.

Names and terms that no dictionary has are listed in book/words.txt. Debian's hunspell and
hunspell-en-gb do the work; CI installs them.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXTS = sorted(
    path
    for pattern in (
        *("*.md", "book/*.md", "book/*.ipynb", "solutions/*/*.ipynb", "benchmarks/*.md"),
        "aecourse/questions/*.md",
    )
    for path in ROOT.glob(pattern)
)

# What is not prose, in the order in which it is taken out.
NOT_PROSE = [
    r"(?m)^:[\w-]+:.*$",  # options of directives
    r"(?m)^\s*\([\w-]+\)=\s*$",  # labels
    r"(?s)\$\$.*?\$\$(\s*\([\w-]+\))?",
    r"\$[^$]*\$",
    r"\{[\w:-]+\}`[^`]*`",  # roles
    r"`[^`]*`",
    r"\]\([^)]*\)",  # where links lead
    r"<[^>]*>",
    r"https?://\S+",
    r"\S*[@_/\\=]\S*",  # addresses, names and paths
]


def without_code(text: str) -> str:
    """Fenced code goes; what stands in a fenced directive, a box or a theorem, stays."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)  # settings at the head of a page
    kept, fences = [], []
    for line in text.splitlines():
        fence = re.match(r"(`{3,}|:{3,})(.*)", line)
        if fence is None:
            if not any(code for _, code in fences):
                kept.append(line)
        elif not fence[2].strip() and fences and fences[-1][0] == fence[1]:
            fences.pop()
        else:
            directive = re.match(r"\{([\w:-]+)\}(.*)", fence[2])
            code = directive is None or directive[1] in ("code-cell", "math")
            fences.append((fence[1], code))
            kept.append("" if code else directive[2])
    return "\n".join(kept)


def prose(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return strip(text)


def strip(text: str) -> str:
    text = without_code(text)
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text)
    return text


def unknown_words(text: str) -> set[str]:
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.replace("’", "'"))
    words = {word.removesuffix("'s") for word in words}
    known = (ROOT / "book" / "words.txt").read_text(encoding="utf-8").split()
    command = ["hunspell", "-l", "-d", "en_GB", "-i", "utf-8"]
    found = subprocess.run(command, input="\n".join(words), capture_output=True, text=True, check=True)
    return set(found.stdout.split()) - set(known)


needs_hunspell = pytest.mark.skipif(
    shutil.which("hunspell") is None, reason="no hunspell found: install hunspell and hunspell-en-gb"
)


@needs_hunspell
@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_are_spelt_as_in_britain(path):
    assert not sorted(unknown_words(prose(path)))


@needs_hunspell
def test_a_slip_would_be_seen():
    text = (
        "The autoencodr's color, but not $\\colr$ or `colr` or [colour](colr.md) or\n```python\ncolr\n```\n"
    )
    path = ROOT / "book" / "words.txt"
    assert path.is_file()
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text)
    assert unknown_words(text) == {"autoencodr", "color"}


def test_the_list_of_words_is_in_order():
    words = (ROOT / "book" / "words.txt").read_text(encoding="utf-8").split()
    assert words == sorted(set(words))
