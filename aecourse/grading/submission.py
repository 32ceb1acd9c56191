"""What a student handed in, as far as it can be trusted: files, then cells.

Nothing here runs anything. Every way in which a submission can be broken ends in a sentence, for the student
and for the instructor; what can be mended without guessing is mended, and said.
"""

import ast
import contextlib
import functools
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

LARGEST = 100 * 2**20  # bytes of a notebook, its outputs included: reading it can take twenty times as much
MOST_CELLS = 2_000
LONGEST = 1_000_000  # characters of a cell
# No links, no waiting for a pipe's other end; Windows has neither, and binary files instead.
CAREFULLY = sum(getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "BINARY"))


@dataclass
class Submission:
    """A notebook to grade.

    Attributes:
        steps: what to do from top to bottom: ("cell", source) for code of the student's, ("test", grade id)
            where one of the instructor's tests belongs.
        answers: the student's text of each written question, by grade id.
        sources: the source of each solution cell, by grade id.
        remarks: sentences about the submission as a whole.
        unreadable: why there is nothing to grade; empty if there is.
        human: whether somebody should look at it.
    """

    steps: list[tuple[str, str]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
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


def find(folder: Path, name: str) -> tuple[Path | None, list[str]]:
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
    others = [name for name in names if name.endswith(".ipynb") and not name.startswith(".")]
    if not others:
        raise ValueError(f"There is no notebook: {name}.ipynb is missing.")
    if len(others) > 1:
        listed = ", ".join(_text(other[:60]) for other in others[:5])
        raise ValueError(f"There is no {name}.ipynb, and which of {listed} is meant cannot be told.")
    called = f"The notebook is called {_text(others[0][:80])} and not {name}.ipynb."
    return folder / others[0], [f"{called} It was graded all the same."]


def content(path: Path) -> bytes:
    """A regular file's bytes.

    Raises:
        ValueError: it is a link, no file or too large; in words for the student.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | CAREFULLY)
    except OSError as error:
        raise ValueError(
            f"{_text(path.name)} cannot be read: it is a link or protected ({error.strerror}). Hand in the "
            "notebook itself."
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError(f"{_text(path.name)} is no file. Hand in the notebook itself.")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > LARGEST:
            raise ValueError(
                f"{_text(path.name)} is larger than {LARGEST // 2**20} MB. Clear the outputs of its cells."
            )
        return file.read(LARGEST)


def decoded(data: bytes) -> tuple[str, list[str]]:
    """The text of a file, and remarks about its encoding.

    Raises:
        ValueError: it is no text; in words for the student.
    """
    if not data.strip():
        raise ValueError("The file is empty.")
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
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(
            "The file is no notebook: its JSON is broken, as after a download that was cut off."
        ) from None
    if isinstance(raw, dict) and "cells" not in raw and isinstance(raw.get("worksheets"), list):
        try:
            raw = nbformat.reads(text, as_version=4)
        except Exception:
            raise ValueError(
                "The notebook is of an old version that cannot be read. Save it with Jupyter."
            ) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
        raise ValueError("The file is no notebook: it has no cells.")
    return raw


def parsed(raw: dict) -> NotebookNode:
    """The notebook of `opened` JSON, cell by cell, with what may be trusted of each."""
    return new_notebook([_cell(cell) for cell in raw["cells"][:MOST_CELLS]])


def _cell(raw) -> NotebookNode:
    """A cell's kind, source and grade id; everything else a student may have put there is dropped.

    What is no cell becomes an empty one.
    """
    if not isinstance(raw, dict) or raw.get("cell_type") not in ("code", "markdown", "raw"):
        return new_cell("raw", "", {}, "")
    source = raw.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str):
        source = ""
    metadata = raw.get("metadata")
    flags = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    kept = {}
    if isinstance(flags, dict) and isinstance(flags.get("grade_id"), str):
        kept = {"nbgrader": {"grade_id": flags["grade_id"]}}
    name = raw["id"] if isinstance(raw.get("id"), str) else ""
    return new_cell(raw["cell_type"], _text(source[:LONGEST]), kept, name)


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
    all stand. A cell that defines a function stands for no test, whatever it is called.
    """
    known = assignment.known
    places = {
        i: grade_id(cell)
        for i, cell in enumerate(notebook.cells)
        if grade_id(cell) in known and not (grade_id(cell) in assignment.tests and _tasks(cell, assignment))
    }
    taken, mended = set(places.values()), []
    for i, cell in enumerate(notebook.cells):
        if i not in places:
            candidates = (name for name in _candidates(cell, assignment) if name not in taken)
            name = next(candidates, None)
            if name is not None and known[name].cell_type == cell.cell_type:
                places[i] = name
                taken.add(name)
                mended.append(name)
    remarks = []
    if mended:
        start = f"The grading metadata of {_listed(mended)} were lost. They"
        remarks.append(
            Remark(f"{start} were recognised and put back.", f"{start} can be recognised and put back.")
        )
    counts = {name: list(places.values()).count(name) for name in known}
    if twice := [name for name, count in counts.items() if count > 1]:
        words = f"There is more than one cell {_listed(twice)}. The last one counts."
        remarks.append(Remark(words, words))
    if missing := [name for name in assignment.tasks if not counts[name]]:
        words = f"The cell of {_listed(missing)} is missing."
        remarks.append(Remark(words, words, lost=True))
    if missing := [name for name in assignment.tests if not counts[name]]:
        start = f"The test cell {_listed(missing)} was deleted or renamed. It"
        remarks.append(Remark(f"{start} was put back.", f"{start} can be put back."))
    return places, remarks


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
    notebook = _mended(raw["cells"], places, release)
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError:
        notebook = _mended(parsed(raw).cells, places, release)
    return notebook


def _mended(given: list, places: dict[int, str], release: Assignment) -> dict:
    last = {name: i for i, name in places.items()}
    cells, position = [], {}  # where the cell of a grade id is now
    for i, cell in enumerate(given):
        if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
            continue
        metadata = cell["metadata"] if isinstance(cell.get("metadata"), dict) else {}
        name = places.get(i)
        if name is not None and last[name] == i:
            original = release.known[name]
            metadata = metadata | original.metadata
            if name not in release.tasks:
                cell = cell | {"source": original.source}
            position[name] = len(cells)
        else:
            metadata = {key: value for key, value in metadata.items() if key != "nbgrader"}
        cells.append(cell | {"metadata": metadata})
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


def _candidates(cell: NotebookNode, assignment: Assignment) -> Iterator[str]:
    """The grade ids that a cell without one may have had, the surest first."""
    yield from (name for name, known in assignment.known.items() if cell.id and cell.id == known.get("id"))
    yield from _tasks(cell, assignment)
    if text := cell.source.strip():  # a release has what is above the hidden part
        given = assignment.tests | assignment.written
        yield from (name for name, cell in given.items() if cell.source.startswith(text))


def _tasks(cell: NotebookNode, assignment: Assignment) -> list[str]:
    """The tasks whose functions or classes a cell defines."""
    if cell.cell_type != "code" or not ("def" in cell.source or "class" in cell.source):
        return []  # to parse every test of every student would take as long as some of the tests
    try:
        body = ast.parse(cell.source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
    return [name for name in names if name in assignment.tasks]


def nodes(*cells: NotebookNode) -> Iterator[ast.AST]:
    """The parts of the code of these cells; none of one that is no Python, as those with magics."""
    for cell in cells:
        if cell.cell_type == "code":
            with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                yield from ast.walk(ast.parse(cell.source))


def imported(notebook: NotebookNode) -> set[str]:
    """The modules that a notebook's code imports."""
    modules = set()
    for node in nodes(*notebook.cells):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return modules


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def prepare(data: bytes, assignment: Assignment) -> Submission:
    """From a file's bytes to the steps of grading it; never raises for what a student can put there."""
    try:
        text, remarks = decoded(data)
        raw = opened(text)
    except ValueError as error:
        return Submission(unreadable=str(error), human=True)
    notebook = parsed(raw)
    if len(raw["cells"]) > MOST_CELLS:
        remarks.append(f"There are {len(raw['cells'])} cells. Only the first {MOST_CELLS} were read.")
    places, mended = repaired(notebook, assignment)
    remarks += [remark.words for remark in mended]
    submission = Submission(remarks=remarks, human=bool(remarks))
    last = {name: i for i, name in places.items()}  # the last of several
    tests = assignment.tests
    order, done = list(tests), set()
    for i, cell in enumerate(notebook.cells):
        name = places.get(i)
        if name in tests:
            if last[name] == i:
                submission.steps.append(("test", name))
                done.add(name)
        elif cell.cell_type == "code":
            submission.steps.append(("cell", cell.source))
            if name:
                submission.sources[name] = cell.source
        if name in assignment.written:
            answer = notebook.cells[i + 1].source if i + 1 < len(notebook.cells) else ""
            submission.answers[name] = answer[:20_000]
    submission.steps += [("test", name) for name in order if name not in done]
    return submission
