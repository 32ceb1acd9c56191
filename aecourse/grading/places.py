"""What stands below `submitted/`, and where it should: submitted/STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb."""

import os
from collections.abc import Iterator
from pathlib import Path

from aecourse.grading.people import objection
from aecourse.grading.words import in_a_line

# What operating systems and Jupyter leave behind.
LEFT_BEHIND = {
    ".ds_store",
    "thumbs.db",
    "desktop.ini",
    "__macosx",
    ".ipynb_checkpoints",
    ".directory",
    ".gitkeep",
}


def students(submitted: Path, assignment: str) -> dict[str, Path]:
    """{student: folder} of those who handed something in for an assignment, and can be named."""
    return {
        folder.name: folder / assignment
        for folder in sorted(submitted.iterdir() if submitted.is_dir() else ())
        if not objection(folder.name) and os.path.lexists(folder / assignment)
    }


def misplaced(submitted: Path, assignments: list[str], only: tuple[str, ...] = ()) -> Iterator[str]:
    """A sentence for everything that is no submission, with the place where it should stand.

    Args:
        assignments: all of the course.
        only: look at these students alone.
    """
    known = {name.casefold(): name for name in assignments}
    for entry in _entries(submitted):
        if only and entry.name not in only:
            continue
        shown = f"{submitted.name}/{in_a_line(entry.name)}"
        if not entry.is_dir(follow_symlinks=False) and not entry.is_symlink():
            name = _assignment_of(entry.name, known) or "ASSIGNMENT"
            place = f"{submitted.name}/STUDENT/{name}/{name}.ipynb"
            if entry.name.lower().endswith((".zip", ".gz", ".tar", ".rar", ".7z")):
                yield f"{shown} is an archive: aecourse collect files what is in it."
            elif entry.name not in ("students.csv", "groups.csv"):
                yield f"{shown} is in no folder of a student. A notebook should stand at {place}."
        elif entry.name.casefold() in known and not _has_assignment(entry, known):
            name = known[entry.name.casefold()]
            for inner in _entries(entry.path):
                student = in_a_line(Path(inner.name).stem if inner.is_file() else inner.name)
                place = f"{submitted.name}/{student}/{name}/{name}.ipynb"
                yield f"{shown}/{in_a_line(inner.name)} should stand at {place}."
        elif why := objection(entry.name):
            yield f"{shown} cannot be graded: its name {why}. Give the folder the id of a student."
        elif entry.is_symlink():
            if not any(os.path.lexists(Path(entry.path, name)) for name in assignments):
                yield f"{shown} is a link, and leads nowhere. Put the folder itself there."
        else:
            yield from _of_student(entry, shown, known)


def _of_student(folder: os.DirEntry, shown: str, known: dict[str, str]) -> Iterator[str]:
    """What a student's folder holds beside the folders of assignments."""
    for entry in _entries(folder.path):
        here = f"{shown}/{in_a_line(entry.name)}"
        if entry.name in known.values():
            if entry.is_dir(follow_symlinks=False):
                yield from _of_assignment(entry, here)
            elif not entry.is_symlink():
                yield f"{here} is no folder. A notebook should stand at {here}/{entry.name}.ipynb."
            continue
        name = _assignment_of(entry.name, known)
        if name is not None:
            ending = "" if entry.is_dir() else f"/{name}.ipynb"
            yield f"{here} should stand at {shown}/{name}{ending}."
        elif entry.is_dir():
            yield f"{here} is no assignment of this course: {', '.join(sorted(known.values()))}."
        else:
            yield f"{here} belongs into the folder of an assignment, {shown}/ASSIGNMENT/."


def _of_assignment(folder: os.DirEntry, shown: str) -> Iterator[str]:
    """Notebooks that are not the one that counts. Other files may be there: pictures, data."""
    entries = list(_entries(folder.path))
    notebooks = [entry.name for entry in entries if entry.name.lower().endswith(".ipynb")]
    wanted = f"{folder.name}.ipynb"
    for entry in entries:
        here = f"{shown}/{in_a_line(entry.name)}"
        if entry.is_dir(follow_symlinks=False) and entry.name != wanted:
            for inner in _entries(entry.path):
                if inner.name.lower().endswith(".ipynb"):
                    yield f"{here}/{in_a_line(inner.name)} should stand at {shown}/{wanted}."
        elif wanted in notebooks and entry.name in notebooks and entry.name != wanted:
            yield f"{here} was not looked at: {wanted}, beside it, was."


def _assignment_of(name: str, known: dict[str, str]) -> str | None:
    """The assignment that a name is likely to mean: another case, a copy's number or an ending aside."""
    plain = name.casefold().strip()
    for ending in (".zip", ".txt", ".json", ".ipynb"):
        plain = plain.removesuffix(ending)
    if plain in known:
        return known[plain]
    stem = plain.rstrip("0123456789()-_. ").removesuffix("copy").rstrip("-_. ")
    return known.get(stem)


def _has_assignment(folder: os.DirEntry, known: dict[str, str]) -> bool:
    return any(entry.name in known.values() for entry in _entries(folder.path))


def _entries(folder: str | Path) -> Iterator[os.DirEntry]:
    """What is in a folder, in the order of names, what programs leave behind aside."""
    try:
        with os.scandir(folder) as entries:
            yield from sorted(
                (e for e in entries if e.name.lower() not in LEFT_BEHIND and not e.name.startswith("._")),
                key=lambda entry: entry.name,
            )
    except OSError:
        return
