"""Who is in the class: `students.csv` and `groups.csv` in the course's folder, and which names can be ids."""

import csv
import io
from pathlib import Path

from aecourse.grading.words import UNSHOWN, in_a_line, listed

LONGEST_ID = 128  # characters that nbgrader's database keeps of an id
LONGEST_NAME = 200  # bytes of a file's name; a verdict's has some more, and 255 is the limit


def objection(name: str) -> str:
    """Why the name of a folder cannot be a student's id, to go on after "its name"; empty if it can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is no UTF-8 text"
    if name.startswith("."):
        return "begins with a full stop, as hidden files do"
    if UNSHOWN.search(name) or "\n" in name or "\t" in name:
        return "holds characters that cannot be shown"
    if "/" in name:
        return "holds a slash, as the path of several folders does"
    if name != name.strip():
        return "begins or ends with a space"
    if size > LONGEST_NAME or len(name) > LONGEST_ID:
        return f"is longer than {LONGEST_ID} characters or {LONGEST_NAME} bytes"
    return ""


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as spreadsheets write it: with or without a byte-order mark; commas, semicolons,
    tabs.

    Raises:
        ValueError: it is none; in words for the instructor.
    """
    data = path.read_bytes()
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not in UTF-8. Save it as CSV UTF-8.") from None
    head = next(iter(text.splitlines()), "")
    separator = max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        raise ValueError(f"{path.name} is no table: {error}.") from None
    names = [name.strip().lower().replace(" ", "_") for name in (rows or [[]])[0]]
    return [
        dict(zip(names, [cell.strip() for cell in row] + [""] * len(names)))
        for row in rows[1:]
        if any(cell.strip() for cell in row)
    ]


def students(root: Path) -> dict[str, dict[str, str]]:
    """The class by id, as ``students.csv`` has it; empty without that file.

    Raises:
        ValueError: a row has no id, one that another has, or one that cannot be the name of a folder.
    """
    path = root / "students.csv"
    if not path.is_file():
        return {}
    found = {}
    for number, row in enumerate(table(path), 2):
        student = row.get("id", "")
        if not student:
            raise ValueError(
                f"students.csv has no id in row {number}. Its first line is to name the column id."
            )
        if why := objection(student):
            raise ValueError(
                f"students.csv, row {number}: the id {in_a_line(student)} cannot be used: it {why}."
            )
        if student in found:
            raise ValueError(f"students.csv has the id {student} twice.")
        found[student] = row
    return found


def groups(root: Path, assignment: str) -> dict[str, list[str]]:
    """The groups that hand in together: {name: students}, as ``groups.csv`` has it; empty without that file.

    Its columns are ``group`` and ``student``; with a column ``assignment``, a row is for that one alone.

    Raises:
        ValueError: a row is not whole, or a student is in two groups.
    """
    path = root / "groups.csv"
    if not path.is_file():
        return {}
    found: dict[str, list[str]] = {}
    for number, row in enumerate(table(path), 2):
        if row.get("assignment") not in (None, "", assignment):
            continue
        group, student = row.get("group", ""), row.get("student", "")
        if not group or not student:
            raise ValueError(f"groups.csv, row {number}: it needs a group and a student.")
        if why := objection(student):
            raise ValueError(
                f"groups.csv, row {number}: the id {in_a_line(student)} cannot be used: it {why}."
            )
        found.setdefault(group, []).append(student)
    everybody = [student for members in found.values() for student in members]
    if twice := sorted({student for student in everybody if everybody.count(student) > 1}):
        raise ValueError(f"groups.csv has {listed(twice)} more than once.")
    return found
