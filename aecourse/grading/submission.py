"""What a student handed in, as far as it can be trusted: files, then cells.

Nothing here runs anything. Every way in which a submission can be broken ends in a sentence, for the student
and for the instructor; what can be mended without guessing is mended, and said.
"""

import ast
import functools
import json
import os
import re
import stat
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from aecourse.grading import answers, imports
from aecourse.grading.answers import joined
from aecourse.grading.imports import in_conflict, tree_of
from aecourse.grading.words import harmless, in_a_line, listed

LARGEST = 100 * 2**20  # bytes of a notebook, its outputs included
MOST_PARTS = 4_000_000  # of its JSON: each takes some hundred bytes once it is read
MOST_CELLS = 2_000
LONGEST = 200_000  # characters of a cell
MOST_TEXT = 2_000_000  # characters of all cells
# Lines that nbgrader takes out of the students' version.
SECRET = re.compile(r"(?ms)^[^\n]*BEGIN (HIDDEN TESTS|MARK SCHEME).*?(?:END \1[^\n]*\n?|\Z)")
# No links, no waiting for a pipe's other end; Windows has neither, and binary files instead.
CAREFULLY = sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "BINARY"))


@dataclass
class Submission:
    """A notebook to grade.

    Attributes:
        steps: what to do from top to bottom: ("cell", source) for code of the student's, ("test", grade id)
            where one of the instructor's tests belongs.
        between: the cells of text that a marker needs, by the number of the step before which they stand:
            the questions, and all that the student has written. It is safe to show.
        answers: the student's text of each written question, by grade id.
        pictures: the pictures of each answer, by grade id: addresses that hold the picture itself.
        sources: the source of each solution cell, by grade id.
        remarks: sentences about the submission as a whole.
        unreadable: why there is nothing to grade; empty if there is.
        human: whether somebody should look at it.
    """

    steps: list[tuple[str, str]] = field(default_factory=list)
    between: dict[int, list[NotebookNode]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    unreadable: str = ""
    human: bool = False


# --------------------------------------------------------------------------- the instructor's notebook


def grade_id(cell: NotebookNode) -> str | None:
    flags = cell.metadata.get("nbgrader")
    name = flags.get("grade_id") if isinstance(flags, dict) else None
    return name if isinstance(name, str) else None


@dataclass(frozen=True)
class Assignment:
    """An instructor's notebook, by the kind of its cells."""

    name: str
    notebook: NotebookNode

    @classmethod
    def of(cls, name: str, text: str) -> "Assignment":
        return cls(name, nbformat.reads(text, as_version=4))

    def cells(self, **flags: bool) -> dict[str, NotebookNode]:
        """{grade id: cell} of the cells whose nbgrader metadata has these flags."""
        return {
            grade_id(cell): cell
            for cell in self.notebook.cells
            if grade_id(cell)
            and all(bool(cell.metadata.nbgrader.get(flag)) is value for flag, value in flags.items())
        }

    @functools.cached_property
    def tests(self) -> dict[str, NotebookNode]:
        cells = self.cells(grade=True, solution=False)
        return {name: cell for name, cell in cells.items() if cell.cell_type == "code"}

    @functools.cached_property
    def tasks(self) -> dict[str, NotebookNode]:
        """The cells in which the student writes code."""
        cells = self.cells(solution=True)
        return {name: cell for name, cell in cells.items() if cell.cell_type == "code"}

    @functools.cached_property
    def written(self) -> dict[str, NotebookNode]:
        """Questions that a person marks."""
        cells = self.cells(task=True)
        cells |= {n: c for n, c in self.cells(solution=True, grade=True).items() if c.cell_type == "markdown"}
        return cells

    @functools.cached_property
    def known(self) -> dict[str, NotebookNode]:
        """All of these."""
        return self.tests | self.tasks | self.written

    @functools.cached_property
    def others(self) -> list[NotebookNode]:
        """The course's own cells that no point hangs on."""
        return [cell for cell in self.notebook.cells if grade_id(cell) not in self.known]

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """{a cell's own id: its grade id}."""
        return {cell.id: name for name, cell in self.known.items() if cell.get("id")}

    @functools.cached_property
    def texts(self) -> set[str]:
        """What stands in the cells that no point hangs on."""
        return {cell.source.strip() for cell in self.others}

    @functools.cached_property
    def places(self) -> dict[str, NotebookNode | None]:
        """{question: the cell for its answer}; none where that is the question's own."""
        return {question: self._place_for(question) for question in self.written}

    def _place_for(self, question: str) -> NotebookNode | None:
        cells = self.notebook.cells
        after = cells.index(self.written[question]) + 1
        if self.typed_into(question) or after >= len(cells):
            return None
        cell = cells[after]
        return cell if cell.cell_type == "markdown" and grade_id(cell) not in self.known else None

    def public(self, name: str) -> str:
        """What a student sees of a cell: its source without marking scheme and hidden tests."""
        return SECRET.sub("", self.known[name].source)

    def typed_into(self, question: str) -> bool:
        """Whether the answer belongs into the question's own cell: nbgrader's manually graded answers."""
        return bool(self.written[question].metadata.nbgrader.get("solution"))

    @functools.cached_property
    def imports(self) -> tuple[str, ...]:
        """The modules that the instructor's notebook needs, this package's aside."""
        modules = imported(self.notebook)
        attributes = {node.attr for node in nodes(*self.notebook.cells) if isinstance(node, ast.Attribute)}
        if attributes & {"optim", "func", "compile"}:
            modules.add("torch._dynamo")  # torch imports it when it first needs it, and that takes seconds
        return tuple(sorted(name for name in modules if name.partition(".")[0] != "aecourse"))

    def points(self) -> dict[str, float]:
        return {
            name: float(cell.metadata.nbgrader.points) for name, cell in (self.tests | self.written).items()
        }


# --------------------------------------------------------------------------- files


def find(folder: Path, name: str) -> tuple[Path, list[str]]:
    """The notebook of assignment ``name`` in a student's folder, and remarks about it.

    Raises:
        ValueError: there is none; in words for the student.
    """
    if folder.is_symlink() or folder.parent.is_symlink():  # the student's own folder is the parent
        raise ValueError("The folder is a link to another place. Hand in the notebook itself.")
    if not folder.is_dir():
        raise ValueError("No folder was handed in.")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ValueError(f"The folder cannot be read ({error.strerror}).") from None
    if f"{name}.ipynb" in names:
        return folder / f"{name}.ipynb", []
    there = [other for other in names if not other.startswith(".")]
    others = [other for other in there if other.lower().endswith(".ipynb")]
    others = others or [other for other in there if re.search(r"(?i)\.ipynb\.(txt|json)$", other)]
    if not others:
        raise ValueError(f"There is no notebook: {name}.ipynb is missing.{_instead(folder, there)}")
    if len(others) > 1:
        listed = ", ".join(in_a_line(other, 60) for other in others[:5])
        raise ValueError(f"There is no {name}.ipynb, and which of {listed} is meant cannot be told.")
    called = f"The notebook is called {in_a_line(others[0])} and not {name}.ipynb."
    return folder / others[0], [f"{called} It was graded all the same."]


def _instead(folder: Path, names: list[str]) -> str:
    """What there is in place of a notebook, as a sentence with a space in front."""
    if not names:
        return ""
    listed = ", ".join(in_a_line(name, 60) for name in names[:5]) + (" and more" if names[5:] else "")
    cure = ""
    if any(name.lower().endswith((".zip", ".gz", ".rar", ".7z")) for name in names):
        cure = " Unpack the archive, and hand in the notebook itself."
    elif any((folder / name).is_dir() for name in names):
        cure = " Hand in the notebook itself, in no folder of its own."
    return f" What was handed in is {listed}.{cure}"


def content(path: Path) -> bytes:
    """A regular file's bytes.

    Raises:
        ValueError: it is a link, no file or too large; in words for the student.
    """
    name = in_a_line(path.name)
    try:
        descriptor = os.open(path, os.O_RDONLY | CAREFULLY)
    except OSError as error:
        if path.is_dir() and not path.is_symlink():  # Windows opens no folder
            raise ValueError(f"{name} is a folder, no file. Hand in the notebook itself.") from None
        raise ValueError(
            f"{name} cannot be read: it is a link or protected ({error.strerror}). Hand in the notebook "
            "itself."
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "is a folder, no file" if stat.S_ISDIR(status.st_mode) else "is no file"
        raise ValueError(f"{name} {kind}. Hand in the notebook itself.")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > LARGEST:
            raise ValueError(f"{name} is larger than {LARGEST // 2**20} MB. Clear the outputs of its cells.")
        return file.read(LARGEST)


# What is handed in in place of a notebook, by how it begins.
BEGINNINGS = {
    b"PK\3\4": "a zip archive. Unpack it, and hand in the notebook itself",
    b"\x1f\x8b": "a packed archive. Unpack it, and hand in the notebook itself",
    b"Rar!": "a packed archive. Unpack it, and hand in the notebook itself",
    b"7z\xbc\xaf": "a packed archive. Unpack it, and hand in the notebook itself",
    b"%PDF": "a PDF. Hand in the notebook itself, not a print of it",
    b"version https://git-lfs": "a pointer of Git LFS, which stands for the notebook in a repository. "
    "Fetch the notebook itself (git lfs pull)",
}
WEB_PAGE = re.compile(
    rb"(?is)\s*(?:<!--(?:(?!-->).)*-->\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html|head|body)\b"
)


def decoded(data: bytes) -> tuple[str, list[str]]:
    """The text of a file, and remarks about its encoding.

    Raises:
        ValueError: it is no text, or that of something else; in words for the student.
    """
    begins = data[:4096].removeprefix(b"\xef\xbb\xbf")
    if not data.strip() or not begins.strip(b" \t\r\n\0"):
        raise ValueError("The file is empty.")
    for mark, what in BEGINNINGS.items():
        if begins.lstrip().startswith(mark):
            raise ValueError(f"The file is no notebook but {what}.")
    if WEB_PAGE.match(begins):
        raise ValueError(
            "The file is no notebook but a web page: a page to log in, perhaps, or the notebook as a browser "
            "shows it. Download the notebook itself (.ipynb)."
        )
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise ValueError(
            "The file is not UTF-8 text. Save the notebook with Jupyter, not another program."
        ) from None
    return text, [] if encoding == "utf-8" else [
        f"The file is in {encoding} and not in UTF-8. It was read all the same."
    ]


def opened(text: str) -> dict:
    """The JSON of a notebook of version 4, of which nothing is known but that it has a list of cells.

    Raises:
        ValueError: it is none; in words for the student.
    """
    if text.count(",") + text.count("[") > MOST_PARTS:
        raise ValueError("The notebook has too many parts to be read. Clear the outputs of its cells.")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(_broken(text)) from None
    if isinstance(raw, dict) and "cells" not in raw and isinstance(raw.get("worksheets"), list):
        raw = _of_old(raw)
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
        raise ValueError("The file is no notebook: it has no cells.")
    return raw


def _broken(text: str) -> str:
    """What text that is no JSON is instead."""
    if in_conflict(text):
        return (
            "The notebook holds a merge conflict of git (<<<<<<<, =======, >>>>>>>). Decide between the two "
            "versions, and hand in the one that is left."
        )
    if re.match(r"\s*[{\[]", text):
        return "The file is no notebook: its JSON is broken, as after a download that was cut off."
    first = in_a_line(next(iter(text.strip().splitlines()), ""), 60)
    return f'The file is no notebook but other text. It begins with "{first}".'


def _of_old(raw: dict) -> dict:
    """A notebook of version 3 or older as one of version 4, without outputs. (nbformat's own takes a minute
    for two megabytes.)"""
    cells = []
    for sheet in raw["worksheets"]:
        inside = sheet.get("cells") if isinstance(sheet, dict) else None
        for cell in inside if isinstance(inside, list) else ():
            if not isinstance(cell, dict):
                continue
            kind, metadata = cell.get("cell_type"), cell.get("metadata")
            new = {"cell_type": kind, "metadata": metadata, "source": cell.get("source", "")}
            if kind == "code":
                new |= {"source": cell.get("input", ""), "outputs": [], "execution_count": None}
            elif kind == "heading":
                level = cell["level"] if cell.get("level") in range(1, 7) else 1
                new |= {"cell_type": "markdown", "source": f"{'#' * level} {joined(cell.get('source'))}"}
            elif kind == "html":
                new |= {"cell_type": "markdown"}
            cells.append(new)
    if not cells:
        raise ValueError("The file is no notebook: it has no cells.")
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def parsed(raw: dict) -> NotebookNode:
    """The notebook of `opened` JSON, cell by cell, with what may be trusted of each."""
    cells, left = [], MOST_TEXT
    for cell in raw["cells"][:MOST_CELLS]:
        cells.append(_cell(cell))
        if (size := len(cells[-1].source)) > left:
            cells[-1].source = ""
        else:
            left -= size
    return new_notebook(cells)


def left_out(raw: dict, notebook: NotebookNode) -> list[str]:
    """Remarks on what `parsed` did not take, because it is too much."""
    remarks = []
    if len(raw["cells"]) > MOST_CELLS:
        remarks.append(f"There are {len(raw['cells'])} cells. Only the first {MOST_CELLS} were read.")
    long = [str(i + 1) for i, cell in enumerate(notebook.cells) if len(cell.source) >= LONGEST]
    if long:
        remarks.append(f"Of cell {listed(long)} only the first {LONGEST} characters were read.")
    size = sum(len(joined(cell.get("source"))) for cell in raw["cells"] if isinstance(cell, dict))
    if size > MOST_TEXT and sum(len(cell.source) for cell in notebook.cells) > MOST_TEXT - LONGEST:
        remarks.append(f"The cells hold {size} characters. Only {MOST_TEXT} were read.")
    return remarks


def _cell(raw) -> NotebookNode:
    """A cell's kind, source, pictures and grade id; everything else a student may have put there is dropped.

    What is no cell becomes an empty one.
    """
    source, pictures = joined(raw.get("source", "")) if isinstance(raw, dict) else "", {}
    known = isinstance(raw, dict) and raw.get("cell_type") in ("code", "markdown", "raw")
    if not known and not source.strip():
        return new_cell("raw", "", {}, "")
    kind = raw["cell_type"] if known else "markdown"  # a heading of an old format, and what else has words
    if kind != "code":
        source, pictures = answers.pictures(raw, source)
    metadata = raw.get("metadata")
    flags = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    kept = {}
    if isinstance(flags, dict) and isinstance(flags.get("grade_id"), str):
        kept = {"nbgrader": {"grade_id": flags["grade_id"]}}
    name = raw["id"] if isinstance(raw.get("id"), str) else ""
    cell = new_cell(kind, _text(source[:LONGEST]), kept, name)
    if pictures:
        cell["attachments"] = pictures
    return cell


def new_cell(kind: str, source: str, metadata: dict, name: str) -> NotebookNode:
    """A cell with this id. nbformat's own functions validate each, which takes longer than its tests."""
    code = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return nbformat.from_dict(
        {"cell_type": kind, "id": name, "metadata": dict(metadata), "source": source, **code}
    )


def new_notebook(cells: list) -> NotebookNode:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel}
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells})


def _text(text: str) -> str:
    """The text without half characters, which JSON and file names may have and no file can hold."""
    return text.encode("utf-8", "replace").decode()


# --------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Remark:
    """What `repaired` found: the words where it was mended, those before (``offer``), and whether something
    is lost for good, which costs points."""

    words: str
    offer: str
    lost: bool = False


def repaired(notebook: NotebookNode, assignment: Assignment) -> tuple[dict[int, str], list[Remark]]:
    """Which cell stands for which of the assignment's: {position: grade id}, and remarks.

    By nbgrader's metadata; where that is lost, by the cell's own id, which Jupyter keeps; and where that is
    lost too, by the function that the cell defines, or by the text of a test. Of several with one grade id
    all stand. A cell that defines a function stands for no test, whatever it is called. Cells of the course
    whose kind was changed, code made into text for example, get it back in ``notebook``.
    """
    known = assignment.known
    places = {
        i: grade_id(cell)
        for i, cell in enumerate(notebook.cells)
        if grade_id(cell) in known and not (grade_id(cell) in assignment.tests and _tasks(cell, assignment))
    }
    taken, mended, left = set(places.values()), [], imports.MOST
    for i, cell in enumerate(notebook.cells):
        if i not in places and (left := left - len(cell.source)) > 0:
            candidates = (name for name in _candidates(cell, assignment) if name not in taken)
            name = next(candidates, None)
            if name is not None:
                places[i] = name
                taken.add(name)
                mended.append(name)
    remarks = _retyped(notebook, assignment, places)
    if mended:
        start = f"The grading metadata of {listed(mended)} were lost. They"
        remarks.append(
            Remark(f"{start} were recognised and put back.", f"{start} can be recognised and put back.")
        )
    counts = {name: list(places.values()).count(name) for name in known}
    if twice := [name for name, count in counts.items() if count > 1]:
        words = f"There is more than one cell {listed(twice)}. The last one counts."
        remarks.append(Remark(words, words))
    if missing := [name for name in assignment.tasks if not counts[name]]:
        words = f"The cell of {listed(missing)} is missing."
        remarks.append(Remark(words, words, lost=True))
    if missing := [name for name in assignment.tests if not counts[name]]:
        start = f"The test cell {listed(missing)} was deleted or renamed. It"
        remarks.append(Remark(f"{start} was put back.", f"{start} can be put back."))
    if missing := [name for name in assignment.written if not counts[name]]:
        start = f"The question {listed(missing)} was deleted. It"
        remarks.append(Remark(f"{start} was put back.", f"{start} can be put back."))
    return places, remarks


def originals(
    notebook: NotebookNode, assignment: Assignment, places: dict[int, str]
) -> dict[int, NotebookNode]:
    """The course's cell that each cell of a notebook comes from, by position; none for the student's own.

    Those that no point hangs on are known by their ids, or by their text.
    """
    ids = {cell.id: cell for cell in assignment.others if cell.get("id")}
    found = {i: assignment.known[name] for i, name in places.items()}
    found |= {i: ids[cell.id] for i, cell in enumerate(notebook.cells) if i not in found and cell.id in ids}
    left = [cell for cell in assignment.others if not any(cell is other for other in found.values())]
    for i, cell in enumerate(notebook.cells):
        if i not in found and (text := cell.source.strip()):
            alike = [number for number, other in enumerate(left) if other.source.strip() == text]
            if alike:  # of several the first: all places for answers begin with the same words
                found[i] = left.pop(alike[0])
    return found


KINDS = {"code": "code", "markdown": "text", "raw": "raw text"}


def _retyped(notebook: NotebookNode, assignment: Assignment, places: dict[int, str]) -> list[Remark]:
    """Give cells of the course the kind back that they had; a remark for each kind."""
    changed: dict[tuple[str, str], list[str]] = {}
    answers = list(assignment.places.values())
    for i, original in originals(notebook, assignment, places).items():
        cell, kind = notebook.cells[i], original.cell_type
        if cell.cell_type == kind:
            continue
        source = cell.source if kind != "code" or places.get(i) in assignment.tests else as_code(cell.source)
        alike = i in places or original in answers or cell.source.strip() == original.source.strip()
        if not alike and (kind != "code" or tree_of(source) is None):
            continue  # the student has made something else of it
        changed.setdefault((cell.cell_type, kind), []).append(places.get(i) or original.get("id") or "")
        new = new_cell(kind, source, cell.metadata, cell.id)
        if kind != "code" and "attachments" in cell:
            new["attachments"] = cell.attachments
        notebook.cells[i] = new
    remarks = []
    for (was, kind), names in changed.items():
        start = f"The cell of {listed(names)} had become {KINDS[was]}. It"
        again = f"made {KINDS[kind]} again"
        remarks.append(Remark(f"{start} was {again}.", f"{start} can be {again}."))
    return remarks


def as_code(text: str) -> str:
    """The code in a text: all of it, or what stands indented or between fences; the text if there is none."""
    fenced = re.findall(r"(?ms)^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", f"{text.rstrip()}\n")
    inside = "\n".join(code for _, code in fenced)
    for code in (text, textwrap.dedent(text), inside, textwrap.dedent(inside)):
        if code.strip() and tree_of(code) is not None:
            return code.strip("\n")
    return text


def mended(raw: dict, places: dict[int, str], release: Assignment) -> dict:
    """A copy of a notebook's JSON with the grading metadata, the test cells and the questions of the release.

    Args:
        raw: what `opened` gave.
        places: as `repaired` gives them.
        release: the notebook that students get.

    Of several cells with one grade id the last keeps it. Cells of solutions that are missing stay so: what
    the release has in their place would undo a function that was defined elsewhere. Outputs are kept unless
    something in the notebook is not as the format wants it.
    """
    read = parsed(raw)
    repaired(read, release)
    notebook = _mended(raw["cells"], read, places, release)
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError:
        notebook = _mended(read.cells, read, places, release)
    return notebook


def _mended(given: list, notebook: NotebookNode, places: dict[int, str], release: Assignment) -> dict:
    last = {name: i for i, name in places.items()}
    cells, position = [], {}  # where the cell of a grade id is now
    for i, cell in enumerate(given):
        if not isinstance(cell, dict):
            continue
        known = cell.get("cell_type") in ("code", "markdown", "raw")
        if i < len(notebook.cells) and notebook.cells[i].cell_type != cell.get("cell_type"):
            if not known and not notebook.cells[i].source:
                continue
            cell = _of_kind(cell, notebook.cells[i])
        elif not known:
            continue
        metadata = cell["metadata"] if isinstance(cell.get("metadata"), dict) else {}
        name, below = places.get(i), None
        if name is not None and last[name] == i:
            original = release.known[name]
            metadata = metadata | original.metadata
            if name in release.written and not release.typed_into(name):
                typed = answers.typed(joined(cell.get("source")), original.source)
                below = {"cell_type": "markdown", "metadata": {}, "source": typed, "id": f"typed-{i}"}
                below = below if typed else None
            if name in release.tests or (name in release.written and not release.typed_into(name)):
                if below and cell.get("attachments"):
                    below["attachments"] = cell["attachments"]
                cell = {key: value for key, value in cell.items() if key != "attachments" or not below}
                cell = cell | {"source": original.source}
            position[name] = len(cells)
        else:
            metadata = {key: value for key, value in metadata.items() if key != "nbgrader"}
        cells.append(cell | {"metadata": metadata})
        if below:
            cells.append(below)
    before = -1  # the place of the release's previous cell
    for cell in release.notebook.cells:
        name = grade_id(cell)
        if name in position:
            before = position[name]
        elif name in release.known and name not in release.tasks:
            before += 1
            cells.insert(before, json.loads(json.dumps(cell)))
            position = {n: place + (place >= before) for n, place in position.items()}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": release.notebook.metadata}
    fresh = [cell | {"id": f"cell-{i}"} for i, cell in enumerate(cells)]  # two of one id are refused
    ids = [cell.get("id") for cell in cells]
    sound = len(set(map(str, ids))) == len(ids) and all(isinstance(i, str) and i for i in ids)
    return notebook | {"cells": cells if sound else fresh}


def _of_kind(cell: dict, restored: NotebookNode) -> dict:
    """A cell's JSON with the kind and the source that `repaired` has given back to it."""
    kept = {key: value for key, value in cell.items() if key in ("id", "metadata")}
    if restored.cell_type == "code":
        kept |= {"outputs": [], "execution_count": None}
    elif "attachments" in cell:
        kept["attachments"] = cell["attachments"]
    return kept | {"cell_type": restored.cell_type, "source": restored.source}


def _candidates(cell: NotebookNode, assignment: Assignment) -> Iterator[str]:
    """The grade ids that a cell without one may have had, the surest first."""
    if cell.id in assignment.names:
        yield assignment.names[cell.id]
    text = cell.source.strip()
    if text in assignment.texts:
        return
    yield from _tasks(cell, assignment)
    if len(text) > 20:  # a release has what is above the hidden part
        given = assignment.tests | assignment.written
        yield from (name for name, cell in given.items() if cell.source.startswith(text))


def _tasks(cell: NotebookNode, assignment: Assignment) -> list[str]:
    """The tasks whose functions or classes a cell defines, even as text."""
    if not ("def" in cell.source or "class" in cell.source):
        return []  # to parse every test of every student would take as long as some of the tests
    if cell.cell_type != "code" and not any(name in cell.source for name in assignment.tasks):
        return []
    tree = tree_of(cell.source if cell.cell_type == "code" else as_code(cell.source))
    body = tree.body if tree else ()
    names = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
    return [name for name in names if name in assignment.tasks]


def nodes(*cells: NotebookNode) -> Iterator[ast.AST]:
    """The parts of the code of these cells; none of one that is no Python."""
    for cell in cells:
        if cell.cell_type == "code" and (tree := tree_of(cell.source)):
            yield from ast.walk(tree)


def imported(notebook: NotebookNode) -> set[str]:
    """The modules that a notebook's code imports."""
    modules = set()
    for node in nodes(*notebook.cells):
        modules |= imports.modules(node)
    return modules


def prepare(data: bytes, assignment: Assignment) -> Submission:
    """From a file's bytes to the steps of grading it; never raises for what a student can put there."""
    try:
        text, remarks = decoded(data)
        raw = opened(text)
    except ValueError as error:
        return Submission(unreadable=str(error), human=True)
    notebook = parsed(raw)
    remarks += left_out(raw, notebook)
    places, mended = repaired(notebook, assignment)
    remarks += [remark.words for remark in mended]
    course = originals(notebook, assignment, places)
    own = [
        cell.source
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and (i not in course or cell.source != course[i].source)
        if places.get(i) not in assignment.tests
    ]
    modules, found = imports.looked_into(own, assignment.imports)
    submission = Submission(remarks=remarks + found)
    if modules:
        submission.steps.append(("cell", imports.stand_in(modules)))
    last = {name: i for i, name in places.items()}  # the last of several
    done = set()
    for i, cell in enumerate(notebook.cells):
        name = places.get(i)
        if name in assignment.tests:
            if last[name] == i:
                submission.steps.append(("test", name))
                done.add(name)
        elif cell.cell_type == "code":
            submission.steps.append(("cell", cell.source))
            if name:
                submission.sources[name] = cell.source
        else:
            here = submission.between.setdefault(len(submission.steps), [])
            here += _for_marker(cell, course.get(i), name if last.get(name) == i else None, assignment)
    submission.steps += [("test", name) for name in assignment.tests if name not in done]
    for name in assignment.written:
        if name not in last:
            here = submission.between.setdefault(len(submission.steps), [])
            here += _for_marker(None, None, name, assignment)
        answer = answers.answer(name, notebook.cells, raw["cells"], course, assignment)
        submission.answers[name] = answer.text
        submission.pictures[name] = answer.pictures
        submission.remarks += answer.remarks
    submission.human = bool(submission.remarks)
    return submission


def _for_marker(
    cell: NotebookNode | None, original: NotebookNode | None, question: str | None, assignment: Assignment
) -> Iterator[NotebookNode]:
    """What a marker sees of a cell of text: a question as the course has it, and what the student wrote."""
    given = assignment.written[question] if question else None
    if given is not None and not (cell and assignment.typed_into(question)):
        yield new_cell("markdown", given.source, given.metadata, "")
    if cell is None:
        return
    text = cell.source
    if given is not None:
        text = text if assignment.typed_into(question) else answers.typed(text, assignment.public(question))
    elif original is not None and not any(original is place for place in assignment.places.values()):
        text = answers.typed(text, original.source)
    if text.strip() or cell.get("attachments"):
        metadata = given.metadata if given is not None and assignment.typed_into(question) else {}
        pictures = cell.get("attachments", {})
        shown = new_cell("markdown", harmless(text, pictures), metadata, "")
        if pictures:
            shown["attachments"] = pictures
            missing = [name for name in pictures if f"attachment:{name}" not in text]
            shown.source += "".join(f"\n\n![](attachment:{name})" for name in missing)
        yield shown
