"""Scores for spreadsheets and learning platforms, as text of CSV files.

What students can choose (their names) could be a formula to the program that opens the file: an apostrophe in
front makes it text again.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable
from csv import QUOTE_NONNUMERIC, writer

from aecourse.grading.pages import function_of
from aecourse.grading.submission import Assignment
from aecourse.grading.words import shown

Marks = dict[str, tuple[float | None, str]]

# At the start, and after what some locale takes for the end of a cell. The wide forms are East Asian.
FORMULA = re.compile(r"(^|[;,])(\s*)(?=[=+\-@＝＋－＠])")


def csv(
    assignment: Assignment,
    verdicts: Iterable,
    marks: dict[str, Marks] | None = None,
    late: dict[str, tuple[int, float]] | None = None,
) -> str:
    """One row per student: status, points of each task, total and the points there are.

    Args:
        assignment: the instructor's notebook.
        verdicts: the `worker.Verdict` of each student.
        marks: by student, what a person gave for written questions. A question not yet marked stays empty.
        late: by student, days and points taken off; without it there are no such columns.
    """
    points = assignment.points()
    functions = list(dict.fromkeys(function_of(name) for name in assignment.tests))
    questions = list(assignment.written)
    head = ["student", "status", *functions, *questions]
    rows = [[*head, *(["late_days", "taken_off"] if late else []), "total", "out_of"]]
    for verdict in sorted(verdicts, key=lambda verdict: verdict.student):
        got = Counter()
        for test in verdict.tests:
            got[function_of(test.name)] += test.points
        given = (marks or {}).get(verdict.student, {})
        by_hand = [given.get(question, (None, ""))[0] for question in questions]
        total = sum(got.values()) + sum(mark or 0 for mark in by_hand)
        days, taken_off = (late or {}).get(verdict.student, (0, 0.0))
        row = [got[function] for function in functions] + by_hand + ([days, taken_off] if late else [])
        row += [total - taken_off, sum(points.values())]
        rows.append([verdict.student, verdict.status, *map(_number, row)])
    return _text(rows)


def canvas(
    scores: dict[str, float | None], people: dict[str, dict[str, str]], column: str, out_of: float
) -> str:
    """A file for Canvas: Grades, Import.

    Canvas knows a student by ``id``, ``sis_user_id`` or ``sis_login_id`` where ``people`` has these, else by
    the course's name of the student as login, and at last by "last name, first name". Names that two students
    share are not left to this last resort: Canvas then asks.

    Args:
        scores: points by student; None leaves what Canvas has.
        people: {student: {"first_name", "last_name", ...}}; whoever is missing goes by the student's id.
        column: the title of the assignment in Canvas, "elbo (4711)" in its exports. Another makes a new one.
        out_of: the points of the assignment.
    """
    keys = {student: _name(people, student) for student in scores}
    twice = {name for name, count in Counter(keys.values()).items() if count > 1}
    rows = [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", column],
        ["    Points Possible", "", "", "", "", _number(out_of)],
    ]
    for student, score in sorted(scores.items()):
        person = people.get(student, {})
        name = f"{keys[student]} ({student})" if keys[student] in twice else keys[student]
        ids = [person.get("id"), person.get("sis_user_id"), person.get("sis_login_id") or student]
        rows.append([name, *(key or "" for key in ids), person.get("section") or "", _number(score)])
    return _text(rows)


MOODLE = {"email": "Email address", "username": "Username", "idnumber": "ID number"}


def moodle(
    scores: dict[str, float | None],
    people: dict[str, dict[str, str]],
    column: str,
    identifier: str = "email",
) -> str:
    """A file for Moodle: Grades, Import, CSV file; there, map the first column to the same field of the user.

    Args:
        scores: points by student; None is written as "-", Moodle's word for no grade.
        people: {student: {"email", ...}}.
        column: the heading of the grades.
        identifier: "email" from ``people``; or "username" or "idnumber", if these are the course's
            ids of students.

    Raises:
        ValueError: another identifier, or students without an email address; Moodle would refuse the file.
    """
    if identifier not in MOODLE:
        raise ValueError(f"identifier must be one of {', '.join(MOODLE)}, and is {identifier!r}.")
    keys = {student: student for student in scores}
    if identifier == "email":
        keys = {student: people.get(student, {}).get("email") or "" for student in scores}
        if lost := sorted(student for student, key in keys.items() if not key):
            raise ValueError(
                f"There is no email address of {', '.join(lost[:10])}{' and others' if lost[10:] else ''}. "
                "Add it (nbgrader db student add NAME --email=...) and run the command again: what is graded "
                "stays."
            )
    rows = [[MOODLE[identifier], column]]
    rows += [
        [keys[student], "-" if score is None else _number(score)] for student, score in sorted(scores.items())
    ]
    return _text(rows, plain=("-",))


def _name(people: dict[str, dict[str, str]], student: str) -> str:
    person = people.get(student, {})
    names = [person.get("last_name") or "", person.get("first_name") or ""]
    return ", ".join(name for name in names if name) or student


def _number(value: float | None) -> float | int | str:
    """Rounded as platforms do, and 3 rather than 3.0; nothing for no number."""
    if value is None:
        return ""
    value = round(float(value), 2)
    return int(value) if value.is_integer() else value


def _text(rows: list[list], plain: tuple[str, ...] = ()) -> str:
    file = io.StringIO()
    out = writer(file, quoting=QUOTE_NONNUMERIC, lineterminator="\r\n")
    for row in rows:
        out.writerow([cell if cell in plain or not isinstance(cell, str) else _safe(cell) for cell in row])
    return file.getvalue()


def _safe(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, on one line."""
    return FORMULA.sub(r"\1\2'", shown(cell).replace("\n", " ").replace("\t", " "))
