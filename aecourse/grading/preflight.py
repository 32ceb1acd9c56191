"""``aecourse check-submission``: what a student can find out about a notebook before handing it in.

It is compared with the release, the notebook as students got it, and run from top to bottom in a fresh
kernel and an empty folder, as the grader will, visible checks included. Nothing here knows a hidden test.
"""

import ast
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from aecourse.grading import answers, imports, submission
from aecourse.grading.submission import Assignment
from aecourse.grading.words import in_a_line, listed, shown

SECONDS = 180.0  # what the grader gives a notebook (sandbox.Limits, which only Unix can import)


@dataclass(frozen=True)
class Finding:
    """A sentence for the student. ``kind``: "fine", "note", or "problem", which costs points."""

    kind: str
    words: str


def main(
    notebook: Path,
    assignment: str | None = None,
    release: Path | None = None,
    repair: Path | None = None,
    seconds: float = SECONDS,
) -> int:
    """Print what `check` finds; the exit status: 0 if nothing stands in the way, else 1.

    Args:
        notebook: the student's file.
        assignment: its name; default: the notebook's.
        release: the notebook as students got it; default: ``assignments/NAME/NAME.ipynb`` in this folder
            or one above the notebook.
        repair: where to write a repaired copy.
        seconds: of wall-clock time to run in.

    Raises:
        ValueError: there is no such file, no release to compare it with, or that is no notebook.
    """
    if not notebook.exists():
        raise ValueError(f"There is no file {notebook}.")
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # not every terminal has Greek letters
    name = assignment or notebook.stem
    release = release or _release(notebook, name)
    try:
        text = submission.decoded(release.read_bytes())[0]
        submission.opened(text)
        if not Assignment.of(name, text).known:
            raise ValueError("it has no cell that counts.")
    except (OSError, ValueError) as error:
        raise ValueError(f"The release {release} cannot be read: {error}") from None
    except Exception as error:  # nbformat's are of many kinds
        words = f"{type(error).__name__}: {in_a_line(str(error))}"
        raise ValueError(f"The release {release} is no notebook ({words}).") from None
    problems = 0
    for finding in check(notebook, text, repair, seconds, name):
        print(f"{finding.kind + ':':8} {shown(finding.words)}", flush=True)
        problems += finding.kind == "problem"
    if problems:
        things = "There is one thing" if problems == 1 else f"There are {problems} things"
        print(f"\n{things} to look at. You can still hand the notebook in as it is.")
    else:
        print("\nReady to hand in. The hidden tests look closer than the visible checks do.")
    return int(problems > 0)


def _release(notebook: Path, name: str) -> Path:
    """The release beside the student's notebook; not the notebook itself, if they work in that file."""
    own = notebook.resolve()
    places = [folder / "assignments" / name / f"{name}.ipynb" for folder in (Path.cwd(), *own.parents)]
    releases = [path for path in places if path.is_file()]
    for path in releases:
        if path.resolve() != own:
            return path
    if releases:
        raise ValueError(
            f"You have worked in {notebook} itself, so there is nothing to compare it with. Download the "
            f"assignment {name} once more, into another folder, and name that file with --release."
        )
    raise ValueError(
        f"There is nothing to compare {notebook.name} with. Download the assignment {name} once more and "
        "name that file with --release; if the notebook is not called after its assignment, add --assignment."
    )


def check(
    path: Path, release_text: str, repair: Path | None = None, seconds: float = SECONDS, name: str = ""
) -> Iterator[Finding]:
    """What there is to say about a notebook, one finding after the other, as they are made.

    Args:
        path: the student's file.
        release_text: of the notebook as students got it.
        repair: where to write a copy with lost grading metadata and test cells put back; never over a file.
        seconds: of wall-clock time to run in.
        name: of the assignment; default: the file's.
    """
    name = name or path.stem
    release = Assignment.of(name, release_text)
    try:
        text, remarks = submission.decoded(submission.content(path))
        raw = submission.opened(text)
    except ValueError as error:
        yield Finding("problem", str(error))
        return
    notebook = submission.parsed(raw)
    places, mended = submission.repaired(notebook, release)
    if not places:
        yield Finding("problem", f"{path.name} has no cell of the assignment {name}. Is it the right file?")
        return
    yield Finding("fine", f"{path.name} is a notebook of the assignment {name}.")
    if path.name != f"{name}.ipynb":
        yield Finding("note", f"Hand it in under the name {name}.ipynb.")
    for words in remarks:
        yield Finding("note", f"{words} Save the notebook with Jupyter.")
    yield from _cells(release, places, mended, repair)
    if repair is not None:
        yield _repaired(submission.mended(raw, places, release), repair, name)
    yield from _unwritten(notebook, raw, places, release)
    yield from _imports(notebook, release)
    yield from _run(submission.mended(raw, places, release), seconds)


def _cells(
    release: Assignment, places: dict[int, str], remarks: list[submission.Remark], repair: Path | None
) -> Iterator[Finding]:
    """Are all cells there?"""
    missing = [name for name in release.known if name not in places.values()]
    if not remarks and not missing:
        yield Finding("fine", f"All {len(release.known)} cells that count are there.")
        return
    for remark in remarks:
        yield Finding("problem" if remark.lost else "note", remark.offer)
    if questions := [name for name in missing if name in release.written]:
        yield Finding("note", f"The question {', '.join(questions)} is missing. It can be put back.")
    if gone := [name for name in missing if name in release.tasks]:
        yield Finding("note", f"Copy the cell of {', '.join(gone)} from the assignment and write it there.")
    if repair is None and (remarks or set(missing) != set(gone)):
        yield Finding("note", "To have what can be put back put back: --repair NEW.ipynb")


def _repaired(notebook: dict, target: Path, name: str) -> Finding:
    try:
        with open(target, "x", encoding="utf-8") as file:
            json.dump(notebook, file, ensure_ascii=False, indent=1)
    except FileExistsError:
        return Finding("problem", f"{target} exists already, and was left as it is. Choose a new name.")
    except (OSError, UnicodeError) as error:
        return Finding("problem", f"{target} cannot be written: {error}.")
    return Finding("fine", f"The repaired notebook is {target}. Look at it, then hand it in as {name}.ipynb.")


def _unwritten(notebook, raw: dict, places: dict[int, str], release: Assignment) -> Iterator[Finding]:
    """Which functions and answers are still to be written?"""
    last = {name: notebook.cells[i] for i, name in places.items()}
    left = [name for name in release.tasks if name in last and _raises(last[name])]
    if left:
        yield Finding("problem", f"Still to be written: {', '.join(left)}. Each gets no points as it is.")
    course = submission.originals(notebook, release, places)
    for name in release.written:
        answer = answers.answer(name, notebook.cells, raw["cells"], course, release)
        if not answer.text:
            yield Finding("note", f"The question {name} has no answer yet.")
        yield from (Finding("note", remark) for remark in answer.remarks)


def _raises(cell) -> bool:
    """Whether a cell raises NotImplementedError as the release does."""
    raised = [node.exc for node in submission.nodes(cell) if isinstance(node, ast.Raise)]
    names = [error.func if isinstance(error, ast.Call) else error for error in raised]
    return any(isinstance(name, ast.Name) and name.id == "NotImplementedError" for name in names)


def _imports(notebook, release: Assignment) -> Iterator[Finding]:
    """Is something used that the grader does not have: of the course's library, or of another package?"""
    refused = submission.imported(notebook) - {"aecourse", "aecourse.checks"}
    if used := sorted(name for name in refused if name.startswith("aecourse.")):
        words = f"{', '.join(used)} is not there when your work is graded: of the course, only check is."
        yield Finding("problem", words)
    own = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    modules, _ = imports.looked_into(own, release.imports)
    if modules:
        words = (
            f"{listed(modules)} may be missing where your work is graded. Its import is then passed over, and"
        )
        yield Finding("note", f"{words} what needs it gets no points. Do without it where points are given.")
    for source in own:
        if imports.in_conflict(source):
            yield Finding("problem", f"A merge conflict of git is in the cell {in_a_line(source)}")
        elif imports.NEWER.search(source):
            words = "uses syntax of Python 3.12 or later, which the grader may not be able to read."
            yield Finding("note", f"The cell {in_a_line(source, 50)} {words}")


# --------------------------------------------------------------------------- running it


def _run(notebook: dict, seconds: float) -> Iterator[Finding]:
    """Does it run from top to bottom, in time, and do the visible checks pass?"""
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellTimeoutError, DeadKernelError
    except ImportError:
        words = 'To run the notebook, nbclient is needed: pip install "aecourse[check]".'
        yield Finding("problem", words)
        return
    nodes = nbformat.reads(json.dumps(notebook), as_version=4)  # joins the lines of each source
    where, failed, took = "The first cell", 0, {}  # seconds of each cell
    with tempfile.TemporaryDirectory(prefix="aecourse-check-") as empty:  # only the notebook is handed in
        client = NotebookClient(
            nodes,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": empty}},
            extra_arguments=["--Application.log_level=50"],  # an interrupted kernel's errors are its own
        )
        try:
            with client.setup_kernel():
                start = time.monotonic()
                for i, cell in enumerate(nodes.cells):
                    client.timeout = max(1, math.ceil(seconds - (time.monotonic() - start)))
                    where, begun = _where(cell, i), time.monotonic()
                    client.execute_cell(cell, i)
                    took[where] = time.monotonic() - begun
                    for output in cell.get("outputs", ()):
                        if output.output_type == "error":
                            failed += 1
                            yield Finding("problem", f"{where} fails: {_shown(output)}")
        except CellTimeoutError:
            yield Finding("problem", _too_slow(where, time.monotonic() - begun, took, seconds))
            return
        except DeadKernelError:
            words = f"{where} ended Python itself: by an exit, or because the memory ran out."
            yield Finding("problem", words)
            return
        except Exception as error:  # no kernel of that name, no port, ...
            words = f"The notebook cannot be run here ({type(error).__name__}: {str(error)[:200]})."
            yield Finding("problem", f'{words} Try: pip install "aecourse[check]".')
            return
    if not failed:
        words = f"{time.monotonic() - start:.0f} of {seconds:.0f} seconds"
        yield Finding("fine", f"It runs from top to bottom, in {words}, and the visible checks pass.")


def _too_slow(where: str, own: float, took: dict[str, float], seconds: float) -> str:
    """The sentence on a notebook that was still running when its time was over: whose fault is it?"""
    words = f"{where} was not done after {seconds:.0f} seconds, counted from the first cell."
    if own > seconds / 2:
        return f"{words} Is there an endless loop?"
    slowest = max(took, key=took.get, default=where)
    return (
        f"{words} It had {own:.0f} of them itself, so it need not be the reason: {slowest} took the longest, "
        f"{took.get(slowest, own):.0f}. If that is quick at other times, this computer is busy: try again."
    )


def _where(cell, i: int) -> str:
    name = submission.grade_id(cell)
    if name:
        return f"The cell {name}"
    first = next(iter(cell.source.strip().splitlines()), "")
    return f"Cell {i + 1} ({first[:50]})"


def _shown(output) -> str:
    """An error in a line: the course's own messages as they are."""
    words = " ".join(output.evalue.split())[:400]
    return words if output.ename == "Wrong" else f"{output.ename}: {words}"
