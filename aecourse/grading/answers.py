"""What a student wrote in words: the text and the pictures of answers, wherever they stand."""

import base64
import binascii
import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from aecourse.grading.words import in_a_line, listed

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from aecourse.grading.submission import Assignment

LONGEST = 100_000  # characters of an answer
MOST = 100  # attachments of a cell
LARGEST = 20 * 2**20  # characters of all pictures of a cell
NO_PICTURE = "(a picture that cannot be shown)"

# The kinds of pictures that hold no program, and how each begins.
PICTURES = {"png": b"\x89PNG", "jpeg": b"\xff\xd8", "gif": b"GIF8", "webp": b"RIFF"}
IN_TEXT = re.compile(r"data:image/([\w.+-]{1,20})[^,\s\"')>]{0,40};base64,([A-Za-z0-9+/=]+(?:%3D)*)")


def joined(source) -> str:
    """The text of a notebook's field, which may be a list of lines; empty if it is something else."""
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _picture(kind, data) -> tuple[str, str] | None:
    """The kind and base64 text of a picture, if it is one and can be shown."""
    kind, data = str(kind).removeprefix("image/"), "".join(joined(data).split())
    kind = "jpeg" if kind == "jpg" else kind
    if kind not in PICTURES or len(data) > LARGEST:
        return None
    try:
        start = base64.b64decode(data, validate=True)[:4]
    except (ValueError, binascii.Error):
        return None
    return (kind, data) if start.startswith(PICTURES[kind]) else None


def pictures(raw: dict, source: str) -> tuple[str, dict]:
    """A text cell's source, and its pictures as the format attaches them, under names of ours.

    Pictures are attached to a cell, or stand in its text as Colab writes them. What is none is left out, and
    the text says so.
    """
    found, left = {}, LARGEST

    def named(kind, data) -> str:
        nonlocal left
        picture = _picture(kind, data)
        if picture is None or len(picture[1]) > left:
            return ""
        left -= len(picture[1])
        name = f"picture-{len(found) + 1}.{picture[0]}"
        found[name] = {f"image/{picture[0]}": picture[1]}
        return f"attachment:{name}"

    def in_text(match: re.Match) -> str:
        return named(match[1], match[2].replace("%3D", "=")) or NO_PICTURE

    given, new, used = raw.get("attachments"), {}, set()
    given = list(given.items()) if isinstance(given, dict) else []
    for old, kinds in given[:MOST]:
        each = kinds.items() if isinstance(kinds, dict) else ()
        name = next(filter(None, (named(kind, data) for kind, data in each)), "")
        new[old] = new[quote(old, errors="replace")] = name or f"{NO_PICTURE} {in_a_line(old, 60)}"
    if new:  # all at once: an old name may be a new one, of another picture
        names = "|".join(map(re.escape, sorted(new, key=len, reverse=True)))

        def renamed(match: re.Match) -> str:
            used.add(new[match[1]])
            return new[match[1]]

        source = re.sub(rf"attachment:({names})(?=[\s)\"'>]|$)", renamed, source)
    for name in dict.fromkeys(new.values()):
        if name not in used:
            source += f"\n\n![]({name})" if name.startswith("attachment:") else f"\n\n{name}"
    if len(given) > MOST:
        source += f"\n\n{NO_PICTURE}"
    source = IN_TEXT.sub(in_text, source)
    for name in found:  # in HTML, or named elsewhere in the text
        if f"](attachment:{name})" not in source:
            source += f"\n\n![](attachment:{name})"
    return source, found


def typed(given: str, original: str) -> str:
    """What was written into a text of the course, word by word; empty if only its layout has changed."""
    if given == original:
        return ""
    words, known = given[:LONGEST].split(), original.split()
    if words == known:
        return ""
    pieces = re.findall(r"\S+\s*", given[:LONGEST])
    changes = difflib.SequenceMatcher(None, known, words, autojunk=False).get_opcodes()
    runs = ["".join(pieces[k:m]).strip() for kind, _, _, k, m in changes if kind in ("insert", "replace")]
    if runs and 2 * sum(j - i for kind, i, j, _, _ in changes if kind == "equal") < len(known):
        return given.strip()  # written in its place: words that both have are the student's
    return "\n".join(runs) + given[LONGEST:]


# --------------------------------------------------------------------------- the answer to a question


@dataclass
class Answer:
    """What a student wrote about a question: text, pictures as addresses that hold them, and remarks."""

    text: str = ""
    pictures: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def answer(
    question: str,
    cells: "list[NotebookNode]",
    raw: list,
    course: "dict[int, NotebookNode]",
    assignment: "Assignment",
) -> Answer:
    """All that was written from a question to the next cell of the course, and in the answer's own cell.

    Args:
        cells, raw: of the student's notebook, as read and as handed in.
        course: the course's cell that each comes from, by position.
    """
    original, place = assignment.written[question], assignment.places[question]
    at = max((i for i, cell in course.items() if cell is original), default=None)
    own = max((i for i, cell in course.items() if place is not None and cell is place), default=None)
    pieces: dict[int, str] = {}
    where = []
    if at is not None:
        pieces[at] = typed(cells[at].source, assignment.public(question))
        if assignment.typed_into(question):
            pieces[at] = cells[at].source if pieces[at] else ""
        elif pieces[at] or cells[at].get("attachments"):
            where.append("in the question itself")
    start = at if at is not None else (len(cells) if own is None else own - 1)
    for i in range(start + 1, len(cells)):
        given = course.get(i)
        if given is None or given is place:
            pieces[i] = cells[i].source if place is None or not _same(cells[i], place) else ""
            if pieces[i].strip() and (cells[i].cell_type == "code" or (given is None and i > start + 1)):
                where.append("in cells below")
            continue
        if "nbgrader" not in given.metadata and given.cell_type != "code":
            pieces[i] = typed(cells[i].source, given.source)
            where += ["in a text of the course"] if pieces[i] else []
        break
    for i in (i for i, cell in course.items() if place is not None and cell is place):  # copies, too
        if i not in pieces and not _same(cells[i], place):
            pieces[i] = cells[i].source
            where.append("elsewhere")
    found, texts = Answer(), []
    for i, text in sorted(pieces.items()):
        if text.strip():
            texts.append(f"```\n{text}\n```" if cells[i].cell_type == "code" else text)
        found.pictures += _shown_by(cells[i], raw[i] if text.strip() else None)
    found.text = "\n\n".join(texts)
    about = f"The answer to {question}"
    if where:
        also = " and ".join(dict.fromkeys(where))
        found.remarks.append(f"{about} stands not only in its own cell but {also}. All of it was kept.")
    elif place is not None and own is None and not texts:
        found.remarks.append(f"The cell for the answer to {question} was deleted, and no other was found.")
    while sum(map(len, found.pictures)) > LARGEST:
        found.pictures.pop()
        found.text += f"\n\n{NO_PICTURE}"
    if NO_PICTURE in found.text:
        found.remarks.append(
            f"{about} has a picture that cannot be shown. It is in the file that was handed in."
        )
    if elsewhere := [
        in_a_line(match[1] or match[2], 40) for match in ELSEWHERE.finditer(found.text[:LONGEST])
    ]:
        found.remarks.append(f"{about} shows pictures that are not in the notebook: {listed(elsewhere)}.")
    if len(found.text) > LONGEST:
        found.text = found.text[:LONGEST]
        found.remarks.append(f"{about} is cut after {LONGEST} characters. The rest is in the file.")
    return found


ELSEWHERE = re.compile(
    r"(?i)!\[[^\[\]]*\]\((?!attachment:|\(a picture)([^()\s]+)"
    r"|<img\b[^<>]*?\bsrc=[\"']?(?!attachment:)([^\"'>\s]+)"
)


def _same(cell: "NotebookNode", original: "NotebookNode") -> bool:
    return cell.source.split() == original.source.split() and not cell.get("attachments")


def _shown_by(cell: "NotebookNode", raw) -> list[str]:
    """The pictures of a cell: attached to text, or put out by code."""
    if cell.cell_type != "code":
        kinds = cell.get("attachments", {}).values()
        return [f"data:{kind};base64,{data}" for each in kinds for kind, data in each.items()]
    outputs = raw.get("outputs") if isinstance(raw, dict) else None
    found = []
    for output in outputs[:20] if isinstance(outputs, list) else ():
        data = output.get("data") if isinstance(output, dict) else None
        for kind, content in data.items() if isinstance(data, dict) else ():
            if picture := _picture(kind, content):
                found.append(f"data:image/{picture[0]};base64,{picture[1]}")
    return found
