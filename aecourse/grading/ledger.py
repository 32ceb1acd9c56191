"""What is settled of a class: each verdict in gradebook, notebook and feedback, and what people made of it.

A verdict is settled in all three or will be by the next run: what was done is noted in ``.aecourse/`` last.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from nbgrader.api import (
    Comment,
    Grade,
    Gradebook,
    MissingEntry,
    Student,
    SubmittedAssignment,
    SubmittedNotebook,
)
from sqlalchemy import insert
from sqlalchemy.exc import OperationalError

from aecourse.grading import late, pages
from aecourse.grading.submission import Assignment
from aecourse.grading.words import in_a_line, listed
from aecourse.grading.worker import Verdict

if TYPE_CHECKING:
    from aecourse.grading.course import Course, Work

PATIENCE = 120.0  # seconds to wait for a gradebook that another program is writing to


def patiently(gradebook: Gradebook, action: Callable):
    """The result of an action, which can be done again, on a gradebook that another program may be writing
    to. (nbgrader's own functions would print a traceback each time.)"""
    start, said = time.monotonic(), False
    while True:
        try:
            return action()
        except OperationalError as error:
            gradebook.db.rollback()
            if "locked" not in str(error) or time.monotonic() - start > PATIENCE:
                raise
            if not said:
                words = f"The gradebook is in use by another program: waiting for it, up to {PATIENCE:.0f} s."
                print(words, file=sys.stderr)
            said = True
            time.sleep(0.5)


def write(path: Path, text: str, sync: bool = False) -> None:
    """Write a file so that it is there as a whole or not at all; with ``sync`` even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}.half")
    with open(half, "w", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(half, path)


def read(path: Path) -> dict:
    """The JSON object in a file; empty when there is none, or something else that we never wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


class Ledger:
    """The gradebook, the autograded notebooks and the feedback of an assignment: a verdict is settled in all
    three or will be by the next run. A context manager."""

    def __init__(self, course: "Course", name: str, source: str):
        self.course, self.name = course, name
        self.assignment = Assignment.of(name, source)
        self.settled = course.keep(name) / "settled"
        self.due = late.kept(course.keep(name) / "due.json")

    def __enter__(self) -> "Ledger":
        self.gradebook = self.course.gradebook()
        known = self.gradebook.find_notebook(self.name, self.name)
        self.ids = known.assignment_id, known.id
        names = {  # to ask each grade for its name takes a query
            kind: {cell.id: cell.name for cell in getattr(known, f"{kind}_cells")}
            for kind in ("grade", "solution", "task")
        }
        self.graded, self.commented = names["grade"] | names["task"], names["solution"] | names["task"]
        self.cells = self.graded | self.commented
        if (self.course.keep(self.name) / "due.json").exists():
            assignment = self.gradebook.find_assignment(self.name)
            date = self.due and self.due.when.astimezone(timezone.utc).replace(tzinfo=None)
            if assignment.duedate != date:
                assignment.duedate = date
                self.gradebook.db.commit()
        return self

    def __exit__(self, *_) -> None:
        self.gradebook.close()

    def settled_for(self, verdict: Verdict, work: "Work") -> Verdict:
        """`settle`, and the verdict with what there is to say besides. What stands in the way of one
        student's pages costs nobody else anything."""
        try:
            return patiently(self.gradebook, lambda: self.settle(verdict, work))
        except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            words = f"The pages cannot be written: {error.strerror}: {in_a_line(str(error.filename), 200)}."
            return replace(verdict, human=True, trouble=words)

    def settle(self, verdict: Verdict, work: "Work") -> Verdict:
        """Bring a verdict, and what a person has marked since, to gradebook, notebook and feedback.

        Returns:
            the verdict with remarks on group, time and marks; its points are those of the tests.
        """
        marker = self.settled / verdict.student
        done, lost, there = self._done(verdict.student), [], True
        if done.get("key") != verdict.key or not (there := self._recorded(verdict)):
            lost = self._record(verdict, done)
        marked = self.marked(verdict, work, done)
        when = work.time.astimezone(timezone.utc).replace(tzinfo=None) if self.due and work.time else None
        clock = [str(when or ""), round(marked.deduction, 6)]
        if clock != (done.get("clock", ["", 0]) if there else ["", 0]):
            self._record_time(verdict, when, marked.deduction)
        if lost:
            words = (
                f"The gradebook had lost this submission. It has it again, without marks of {listed(lost)}."
            )
            marked = replace(marked, verdict=replace(marked.verdict, human=True, trouble=words))
        shown = [marked.verdict.as_dict(), marked.marks, marked.deduction]
        state = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
        page = self.course.place("feedback", verdict.student, self.name) / f"{self.name}.html"
        new = {"key": verdict.key, "state": state, "page": _hash(page), "clock": clock}
        new |= {"written": self._written(verdict), "changed": marked.changed, "marked": marked.by_hand}
        if done != new:
            if verdict.notebook:
                path = self.course.place("autograded", verdict.student, self.name) / f"{self.name}.ipynb"
                write(path, verdict.notebook)
            write(page, pages.feedback_page(marked.verdict, self.assignment, marked.marks, marked.deduction))
            write(marker, json.dumps(new | {"page": _hash(page)}))
        return replace(marked.verdict, tests=verdict.tests)

    def _done(self, student: str) -> dict:
        """What the last run has left about a student; empty if that is not what it was."""
        done = read(self.settled / student)
        names = [done.get("changed", []), done.get("marked", [])]
        sound = all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names)
        return done if sound and isinstance(done.get("written", {}), dict) else {}

    def _written(self, verdict: Verdict) -> dict[str, str]:
        """{question or test: a fingerprint of what the student wrote for it}."""
        parts = {name: [text, verdict.pictures.get(name, [])] for name, text in verdict.answers.items()}
        parts |= {test.name: verdict.sources.get(test.name.rpartition("_")[0], "") for test in verdict.tests}
        return {n: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for n, part in parts.items()}

    def _submitted(self, verdict: Verdict) -> SubmittedNotebook:
        return self.gradebook.find_submission_notebook(self.name, self.name, verdict.student)

    def _recorded(self, verdict: Verdict) -> bool:
        """Whether the gradebook has these points."""
        try:
            submitted = self._submitted(verdict)
        except MissingEntry:
            return False
        scores = {self.cells[grade.cell_id]: grade.auto_score for grade in submitted.grades}
        return all(scores.get(test.name) == test.points for test in verdict.tests)

    def _record(self, verdict: Verdict, done: dict) -> list[str]:
        """Write the points of the tests. What was marked by hand stays; a person is asked where something
        else was handed in since.

        Returns:
            names of what was marked by hand and is lost with a gradebook that is not there any more.
        """
        points = {test.name: test.points for test in verdict.tests}
        try:
            self._submitted(verdict)
        except MissingEntry:
            self._add(verdict, points)
            return done.get("marked") or []
        changed = self._changed(verdict, done)
        for grade in self._submitted(verdict).grades:
            name = self.cells[grade.cell_id]
            if name in points:
                grade.auto_score = points[name]
                grade.needs_manual_grade = grade.manual_score is not None or verdict.human
            else:
                waits = grade.needs_manual_grade and name in (done.get("changed") or ())
                grade.needs_manual_grade = grade.manual_score is None or name in changed or waits
        self.gradebook.db.commit()
        return []

    def _changed(self, verdict: Verdict, done: dict) -> set[str]:
        """Questions and tests for which there is something else than when ``done`` was written."""
        before = done.get("written") or {}
        return {name for name, mark in self._written(verdict).items() if before.get(name, mark) != mark}

    def _record_time(self, verdict: Verdict, when: datetime | None, deduction: float) -> None:
        """When it was handed in, and what that costs, where nbgrader keeps it."""
        submitted = self._submitted(verdict)
        submitted.late_submission_penalty = deduction
        submitted.assignment.timestamp = when
        self.gradebook.db.commit()

    def _add(self, verdict: Verdict, points: dict[str, float]) -> None:
        """What nbgrader's `add_submission` makes, with the points in it: in one transaction and not in three,
        and without an object for each of its rows."""
        db, (assignment, notebook) = self.gradebook.db, self.ids
        if db.get(Student, verdict.student) is None:
            db.add(Student(id=verdict.student))
        ids = {"assignment_id": assignment, "student_id": verdict.student}
        submission = db.query(SubmittedAssignment).filter_by(**ids).first()
        if submission is None:  # or it has lost its notebook
            submission = SubmittedAssignment(**ids)
            db.add(submission)
            db.flush()
        submitted = SubmittedNotebook(assignment_id=submission.id, notebook_id=notebook)
        db.add(submitted)
        db.flush()
        rows = [
            {
                "notebook_id": submitted.id,
                "cell_id": cell,
                "auto_score": points.get(name),
                "needs_manual_grade": verdict.human or name not in points,
            }
            for cell, name in self.graded.items()
        ]
        db.execute(insert(Grade), rows)
        if self.commented:
            db.execute(insert(Comment), [{"notebook_id": submitted.id, "cell_id": c} for c in self.commented])
        db.commit()

    def marked(self, verdict: Verdict, work: "Work", done: dict | None = None) -> "Marked":
        """The verdict with the points that a person changed or added, and what else is to be said.

        Args:
            done: what `settle` has left, the last time; default: what there is.
        """
        done = self._done(verdict.student) if done is None else done
        submitted = self._submitted(verdict)
        grades = {self.cells[grade.cell_id]: grade for grade in submitted.grades}
        by_hand = {name: (grade.manual_score, grade.extra_credit or 0.0) for name, grade in grades.items()}
        waiting = {name for name, grade in grades.items() if grade.needs_manual_grade}
        comments = {self.cells[c.cell_id]: c.comment for c in submitted.comments if c.comment}
        self.gradebook.db.rollback()  # nothing was changed; a server's transactions should be short
        given = [name for name, (points, _) in by_hand.items() if points is not None]
        changed = self._changed(verdict, done) | set(done.get("changed") or ())
        changed = sorted(changed & set(given) & waiting)  # until somebody gives the mark again
        tests = []
        for test in verdict.tests:
            points, extra = by_hand.get(test.name, (None, 0.0))
            tests.append(replace(test, points=(test.points if points is None else points) + extra))
        marks = {name: (None, comments[name]) for name in self.assignment.tasks if name in comments}
        for name in self.assignment.written:
            points, extra = by_hand.get(name, (None, 0.0))
            marks[name] = None if points is None else points + extra, comments.get(name, "")
        words = [work.words, work.late.words]
        words += [
            f"{name} was changed after it was marked. Its points are those given before." for name in changed
        ]
        total = sum(test.points for test in tests) + sum(points or 0 for points, _ in marks.values())
        verdict = replace(
            verdict,
            tests=tests,
            remarks=list(dict.fromkeys([*verdict.remarks, *filter(None, words)])),
            human=verdict.human or work.human or work.late.human or bool(changed),
        )
        return Marked(verdict, marks, work.late.share * max(0.0, total), changed, given)


@dataclass(frozen=True)
class Marked:
    """A verdict with what people and the clock have made of it.

    Attributes:
        verdict: with the points that a person changed, and remarks on group, time and marks.
        marks: {name: (points, comment)} of written questions, and of tasks with a comment.
        deduction: points taken off for being late.
        changed: names of what was marked by hand and changed by the student since.
        by_hand: names of what was marked by hand.
    """

    verdict: Verdict
    marks: dict[str, tuple[float | None, str]]
    deduction: float
    changed: list[str]
    by_hand: list[str]

    @property
    def score(self) -> float:
        return self.verdict.points + sum(points or 0 for points, _ in self.marks.values()) - self.deduction
