"""Grading a class: find the submissions, have them graded, keep what came out, fill the gradebook.

One process, the coordinator, reads and writes the course's folder and the gradebook; workers are pure
functions (`worker.grade`) in a pool of processes or on a Dask cluster. Every verdict is kept in
``.aecourse/`` as soon as it is there, so that a run that was killed goes on where it was.
"""

import concurrent.futures
import contextlib
import ctypes
import fcntl
import hashlib
import json
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import statistics
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

import nbgrader.api
from alembic.script import ScriptDirectory
from nbgrader.api import Comment, Grade, Gradebook, MissingEntry, SubmittedAssignment, SubmittedNotebook
from nbgrader.coursedir import CourseDirectory
from nbgrader.dbutil import ALEMBIC_DIR
from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm
from traitlets.config.loader import PyFileConfigLoader

from aecourse.extras import needs
from aecourse.grading import export, pages, similar, submission, worker
from aecourse.grading.sandbox import Limits, Sandbox
from aecourse.grading.submission import Assignment
from aecourse.grading.worker import Bundle, Verdict

# For the version of a new gradebook nbgrader starts `alembic` by its bare name. That takes seconds, and is
# found only where the environment is activated: here the same library is asked.
nbgrader.api.get_alembic_version = lambda: ScriptDirectory(ALEMBIC_DIR).get_current_head()

TRIES = 2  # of a submission whose worker died
SOLUTION = re.compile(r"### BEGIN SOLUTION.*?### END SOLUTION", re.DOTALL)


class CourseError(ValueError):
    """The course folder is not as it should be; in words for the instructor."""


@dataclass
class Course:
    """nbgrader's folder layout, as the configuration in it says.

    Attributes:
        root: the folder that holds ``nbgrader_config.py``.
        database: URL of the gradebook; default: as configured.
    """

    root: Path
    database: str = ""
    folders: CourseDirectory = field(init=False)

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        if not (self.root / "nbgrader_config.py").is_file():
            raise CourseError(f"{self.root} holds no nbgrader_config.py: is it the folder of a course?")
        config = PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config()
        config.CourseDirectory.root = str(self.root)
        self.config = config
        self.folders = CourseDirectory(config=config)
        # Which driver a bare postgresql: stands for depends on the version of SQLAlchemy.
        database = self.database or self.folders.db_url
        self.database = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", database)

    def source(self, name: str) -> str:
        """The text of the instructor's notebook."""
        folder = self.root / self.folders.source_directory
        path = folder / name / f"{name}.ipynb"
        if not path.is_file():
            known = sorted(notebook.parent.name for notebook in folder.glob("*/*.ipynb"))
            raise CourseError(f"{path} is missing. There are: {', '.join(known) or 'no assignments'}.")
        if others := [other.name for other in path.parent.glob("*.ipynb") if other != path]:
            raise CourseError(f"{name} has several notebooks ({', '.join(others)}), and may have one.")
        return path.read_text(encoding="utf-8")

    def students(self, name: str) -> dict[str, Path]:
        """{student: folder} of those who handed something in."""
        submitted = self.root / self.folders.submitted_directory
        return {
            folder.parent.name: folder
            for folder in sorted(submitted.glob(f"*/{name}"))
            if not folder.parent.name.startswith(".")
        }

    def place(self, kind: str, student: str, name: str) -> Path:
        """The folder of ``kind`` ("autograded", "feedback") of a student's assignment."""
        return self.root / getattr(self.folders, f"{kind}_directory") / student / name

    def keep(self, name: str) -> Path:
        folder = self.root / ".aecourse" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def gradebook(self) -> Gradebook:
        """The gradebook, opened.

        Raises:
            CourseError: its address is none, a driver is missing, or nothing answers there.
        """
        try:
            return Gradebook(self.database, self.folders.course_id)
        except ModuleNotFoundError as error:
            raise CourseError(f'{error}. For PostgreSQL: pip install "aecourse[postgres]".') from None
        except SQLAlchemyError as error:
            words = str(error).partition("\n")[0]  # the address, which may hold a password, is not in it
            raise CourseError(f"The gradebook cannot be opened: {words}") from None

    def prepare(self, name: str, source: str) -> None:
        """Make the gradebook know the assignment as the source is now."""
        points = Assignment.of(name, source).points()
        with self.gradebook() as gradebook, contextlib.suppress(MissingEntry):
            known = gradebook.find_notebook(name, name)
            if points == {cell.name: cell.max_score for cell in [*known.grade_cells, *known.task_cells]}:
                return
        from nbgrader.apps import NbGraderAPI  # takes seconds to import, and is needed here only

        self.config.CourseDirectory.db_url = self.database
        folders = CourseDirectory(config=self.config)
        result = NbGraderAPI(folders, config=self.config).generate_assignment(name)
        if not result["success"]:
            raise CourseError(f"nbgrader could not make {name} known to the gradebook:\n{result['log']}")


# --------------------------------------------------------------------------- files that are there or not


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
    """The JSON object in a file; empty when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one coordinator at a time; the lock goes with the process, however it ends."""
    with open(folder / "lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # this process's own: no worker inherits it
        except OSError:
            raise CourseError(f"Another `aecourse grade` is at work on {folder.name}. Wait for it.") from None
        yield


# --------------------------------------------------------------------------- workers


def local(
    bundles: list[Bundle], workers: int, sandboxes: tuple[Sandbox, ...] = ()
) -> Iterator[tuple[Bundle, dict | Exception]]:
    """Grade in a pool of processes, forked from this one, which has imported torch.

    A worker that dies takes nothing with it: what it had is tried again, once. Each takes over one of the
    ``sandboxes``, and makes its own where there is none.
    """
    worker.warm()
    context = multiprocessing.get_context("fork")
    left = {bundle.student: bundle for bundle in bundles}
    tries = dict.fromkeys(left, 0)
    while left:
        count = min(workers, len(left))
        numbers = context.SimpleQueue()
        for number in range(count):
            numbers.put(number)
        pool = concurrent.futures.ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(numbers, sandboxes)
        )
        with pool, _cancelling(pool):
            jobs = {pool.submit(worker.grade, bundle): bundle for bundle in left.values()}
            for sandbox in sandboxes:  # the processes have been forked; a new pool makes its own
                sandbox.leave()
            sandboxes = ()
            for job in concurrent.futures.as_completed(jobs):
                bundle = jobs[job]
                try:
                    result = job.result()
                except BrokenProcessPool:
                    # Who killed it cannot be told: all that were begun are tried once more.
                    continue
                except Exception as error:
                    result = error
                del left[bundle.student]
                yield bundle, result
        for student in list(left):
            tries[student] += 1
            if tries[student] > TRIES + len(bundles) // max(1, workers):
                yield left.pop(student), RuntimeError("its worker died again and again")


@contextlib.contextmanager
def _cancelling(pool: concurrent.futures.Executor) -> Iterator[None]:
    """What has not begun is not begun when the coordinator stops, after Ctrl-C for example."""
    try:
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(numbers, sandboxes: tuple[Sandbox, ...]) -> None:
    """In a worker: Ctrl-C is for the coordinator, and where that ends, however it ends, this does too. Of the
    sandboxes it takes the one whose number it draws from the queue."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    multiprocessing.util.Finalize(None, worker.close, exitpriority=0)
    with contextlib.suppress(OSError, AttributeError):  # Linux; elsewhere there is no bubblewrap either
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    mine = numbers.get()
    for number, sandbox in enumerate(sandboxes):
        if number == mine:
            worker.adopt(sandbox)
        else:
            sandbox.leave()


def cluster(bundles: list[Bundle], scheduler: str) -> Iterator[tuple[Bundle, dict | Exception]]:
    """Grade on a Dask cluster. Its workers need this package, bubblewrap, and nothing of the course."""
    with needs("cluster", "A cluster needs distributed, of Dask"):
        from distributed import Client, as_completed

    with Client(scheduler) as client:
        jobs = {}
        for bundle in bundles:
            key = f"aecourse-{bundle.assignment}-{bundle.student}-{bundle.key()}"
            jobs[client.submit(worker.grade, bundle, key=key, retries=TRIES)] = bundle
        for job in as_completed(jobs):
            bundle = jobs[job]
            yield bundle, job.exception() if job.status == "error" else job.result()


# --------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Options:
    """How `grade` goes about it.

    Attributes:
        workers: processes; default: one per core.
        scheduler: address of a Dask scheduler, in place of processes here.
        students: only these; default: all.
        force: grade again what was graded before.
        sandbox: see `sandbox.Sandbox`.
        sandboxes: some of these that have been started already, for the first to come.
        progress: show a progress bar.
    """

    workers: int = 0
    scheduler: str = ""
    students: tuple[str, ...] = ()
    force: bool = False
    sandbox: str = "bubblewrap"
    sandboxes: tuple[Sandbox, ...] = ()
    limits: Limits = field(default_factory=Limits)
    progress: bool = True


def grade(course: Course, name: str, options: Options) -> dict[str, Verdict]:
    """Grade the submissions of an assignment, fill the gradebook and write feedback: {student: verdict}.

    Raises:
        CourseError: the course's folder, in words for the instructor.
        SandboxError: there is no sandbox.
    """
    source = course.source(name)
    folders = course.students(name)
    if unknown := [student for student in options.students if student not in folders]:
        raise CourseError(f"Nothing was handed in for {name} by {', '.join(unknown)}.")
    chosen = {s: f for s, f in folders.items() if s in (options.students or folders)}
    keep = course.keep(name)
    with alone(keep):
        course.prepare(name, source)
        bundles = [bundle(name, student, source, folder, options) for student, folder in chosen.items()]
        kept = {
            b.student: read(keep / "verdicts" / f"{b.student}.json") for b in bundles if not options.force
        }
        todo = [b for b in bundles if kept.get(b.student, {}).get("key") != b.key()]
        verdicts = {b.student: Verdict.of(kept[b.student]) for b in bundles if b not in todo}
        ledger = Ledger(course, name, source)
        # Whatever stops this, Ctrl-C in the middle of a verdict too: workers end before their sandboxes do.
        with ledger, contextlib.closing(_graded(todo, options)) as graded:
            for verdict in verdicts.values():
                ledger.settle(verdict)
            for verdict in graded:
                write(keep / "verdicts" / f"{verdict.student}.json", json.dumps(verdict.as_dict()), sync=True)
                verdicts[verdict.student] = verdict
                ledger.settle(verdict)
    return dict(sorted(verdicts.items()))


def bundle(name: str, student: str, source: str, folder: Path, options: Options) -> Bundle:
    """What a worker needs of a submission."""
    data, remarks, problem = None, [], ""
    try:
        path, remarks = submission.find(folder, name)
        data = submission.content(path)
    except ValueError as error:
        problem = str(error)
    return Bundle(name, student, source, data, tuple(remarks), problem, options.limits, options.sandbox)


def _graded(bundles: list[Bundle], options: Options) -> Iterator[Verdict]:
    """Verdicts as they come, with a progress bar. A worker's own failure is a verdict, too."""
    if options.scheduler:
        results = cluster(bundles, options.scheduler)
    else:
        results = local(bundles, options.workers or os.cpu_count() or 1, options.sandboxes)
    failed = 0
    bar = tqdm(total=len(bundles), unit="submission", disable=not options.progress)
    with contextlib.closing(results), bar:
        for bundle, result in results if bundles else ():
            if isinstance(result, worker.SandboxError):
                raise result
            verdict = _failed(bundle, result) if isinstance(result, Exception) else Verdict.of(result)
            failed += verdict.status != "graded"
            bar.set_postfix(failed=failed)
            bar.update()
            yield verdict


def _failed(bundle: Bundle, error: Exception) -> Verdict:
    """What is to be said of a submission that the grader itself could not grade: a person must."""
    words = (
        "Grading this submission failed, through no fault of its author that is known. It will be looked at."
    )
    tests = Assignment.of(bundle.assignment, bundle.source)
    return Verdict(
        bundle.assignment,
        bundle.student,
        bundle.key(),
        status="crash",
        tests=[worker.Test(name, 0.0, tests.points()[name], words) for name in tests.tests],
        remarks=[words],
        trouble=f"{type(error).__name__}: {error}"[:500],
        human=True,
    )


class Ledger:
    """The gradebook, the autograded notebooks and the feedback of an assignment: a verdict is settled in all
    three or will be by the next run. A context manager."""

    def __init__(self, course: Course, name: str, source: str):
        self.course, self.name = course, name
        self.assignment = Assignment.of(name, source)
        self.settled = course.keep(name) / "settled"

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
        return self

    def __exit__(self, *_) -> None:
        self.gradebook.close()

    def settle(self, verdict: Verdict) -> None:
        """Bring a verdict, and what a person has marked since, to gradebook, notebook and feedback."""
        marker = self.settled / verdict.student
        done = read(marker)
        if done.get("key") != verdict.key or not self._recorded(verdict):
            self._record(verdict)
        marked, marks = self.marked(verdict)
        state = hashlib.sha256(json.dumps([marked.as_dict(), marks], sort_keys=True).encode()).hexdigest()
        page = self.course.place("feedback", verdict.student, self.name) / f"{self.name}.html"
        if done == {"key": verdict.key, "state": state, "page": _hash(page)}:
            return
        if verdict.notebook:
            path = self.course.place("autograded", verdict.student, self.name) / f"{self.name}.ipynb"
            write(path, verdict.notebook)
        write(page, pages.feedback_page(marked, self.assignment, marks))
        write(marker, json.dumps({"key": verdict.key, "state": state, "page": _hash(page)}))

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

    def _record(self, verdict: Verdict) -> None:
        self.gradebook.update_or_create_student(verdict.student)
        points = {test.name: test.points for test in verdict.tests}
        try:
            self.gradebook.find_submission(self.name, verdict.student)
        except MissingEntry:
            return self._add(verdict, points)
        for grade in self._submitted(verdict).grades:
            name = self.cells[grade.cell_id]
            if name in points:
                grade.auto_score = points[name]
                grade.needs_manual_grade = grade.manual_score is not None or verdict.human
            else:
                grade.needs_manual_grade = grade.manual_score is None
        self.gradebook.db.commit()

    def _add(self, verdict: Verdict, points: dict[str, float]) -> None:
        """What nbgrader's `add_submission` makes, with the points in it: in one transaction and not in three,
        and without an object for each of its rows."""
        db, (assignment, notebook) = self.gradebook.db, self.ids
        submission = SubmittedAssignment(assignment_id=assignment, student_id=verdict.student)
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

    def marked(self, verdict: Verdict) -> tuple[Verdict, dict[str, tuple[float | None, str]]]:
        """The verdict with the points that a person changed or added, and {name: (points, comment)} of
        written questions, and of tasks with a comment."""
        submitted = self._submitted(verdict)
        by_hand = {self.cells[g.cell_id]: (g.manual_score, g.extra_credit or 0.0) for g in submitted.grades}
        comments = {self.cells[c.cell_id]: c.comment for c in submitted.comments if c.comment}
        self.gradebook.db.rollback()  # nothing was changed; a server's transactions should be short
        tests = []
        for test in verdict.tests:
            points, extra = by_hand.get(test.name, (None, 0.0))
            tests.append(replace(test, points=(test.points if points is None else points) + extra))
        marks = {name: (None, comments[name]) for name in self.assignment.tasks if name in comments}
        for name in self.assignment.written:
            points, extra = by_hand.get(name, (None, 0.0))
            marks[name] = None if points is None else points + extra, comments.get(name, "")
        return replace(verdict, tests=tests), marks


# --------------------------------------------------------------------------- what comes out of it


def summary(verdicts: dict[str, Verdict]) -> str:
    """A few lines for the terminal."""
    if not verdicts:
        return "Nothing was handed in."
    scores = sorted(verdict.points for verdict in verdicts.values())
    out_of = sum(test.out_of for test in next(iter(verdicts.values())).tests)
    human = [student for student, verdict in verdicts.items() if verdict.human]
    lines = [
        f"{len(scores)} submissions; points of the tests: median {statistics.median(scores):g}, "
        f"{scores[0]:g} to {scores[-1]:g} of {out_of:g}."
    ]
    if human:
        more = f" and {len(human) - 10} more" if len(human) > 10 else ""
        lines.append(f"{len(human)} need a human eye: {', '.join(human[:10])}{more}.")
    return "\n".join(lines)


def exported(kind: str, course: Course, name: str, verdicts: dict[str, Verdict]) -> str:
    """The text of a report ("report") or of a file for other programs ("csv", "canvas", "moodle")."""
    assignment = Assignment.of(name, course.source(name))
    with Ledger(course, name, course.source(name)) as ledger:
        marked = {student: ledger.marked(verdict) for student, verdict in verdicts.items()}
        people = {
            student.id: {
                "first_name": student.first_name or "",
                "last_name": student.last_name or "",
                "email": student.email or "",
            }
            for student in ledger.gradebook.students
        }
    marks = {student: by_hand for student, (_, by_hand) in marked.items()}
    scores = {
        student: verdict.points + sum(points or 0 for points, _ in by_hand.values())
        for student, (verdict, by_hand) in marked.items()
    }
    shown = [verdict for verdict, _ in marked.values()]
    if kind == "csv":
        return export.csv(assignment, shown, marks)
    if kind == "canvas":
        return export.canvas(scores, people, name, sum(assignment.points().values()))
    if kind == "moodle":
        return export.moodle(scores, people, name)
    stubs = {task: SOLUTION.sub("", cell.source) for task, cell in assignment.tasks.items()}
    alike = similar.pairs({student: verdict.sources for student, verdict in verdicts.items()}, stubs)
    return pages.report_page(assignment, shown, scores, alike)
