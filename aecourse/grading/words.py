"""Words that students chose, made safe for a terminal, a page, a table and a marker's browser."""

import re

# Control characters, halves of characters, and what turns the direction of writing or is not shown at all.
UNSHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u3164\uffa0"
    "\U0001d173-\U0001d17a\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def shown(text: str) -> str:
    """The text for a terminal, a page or a table: what a student chose cannot command it or hide in it."""
    return UNSHOWN.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def in_a_line(text: str, most: int = 80) -> str:
    """The beginning of it, safe to show, on one line."""
    text = " ".join(shown(text[: 4 * most]).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def harmless(text: str, pictures=()) -> str:
    """Markdown that nobody's browser takes for more than words, formulas, links and these pictures.

    nbgrader's formgrader shows it as a page of the marker's own, with HTML, programs and all. A space behind
    the sign that would begin something takes its meaning and leaves the words.
    """
    text = shown(text)
    text = re.sub(r"[<&](?=[A-Za-z/!?#])", r"\g<0> ", text)  # tags and entities
    text = re.sub(r"(?i)(`{3}|~{3})([ \t]*)(?=mermaid)", r"\1\2text ", text)  # diagrams, drawn by a program
    text = re.sub(
        r"\\(?=(?:href|url|require|style|class|cssId|html\w*|data|mmlToken|includegraphics|special)(?![A-Za-z]))",
        r"\\ ",
        text,
    )
    names = "|".join(map(re.escape, pictures)) or "(?!)"
    image, link = rf"\(attachment:(?:{names})\)", r"\(https?://[\w./~%?=+,;:@#-]+\)"
    text = re.sub(rf"!(?=\[(?![^\[\]]*\]{image}))", "! ", text)  # what another machine would learn of
    return re.sub(rf"\](?=[(:\[])(?!{image}|{link})", "] ", text)


def listed(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
