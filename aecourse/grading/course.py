"""Grading a class: find the submissions, have them graded, keep what came out, fill the gradebook.

One process, the coordinator, reads and writes the course's folder and the gradebook; workers are pure
functions (`worker.grade`) in a pool of processes or on a Dask cluster. Every verdict is kept in
``.aecourse/`` as soon as it is there, so that a run that was killed goes on where it was.
"""

import concurrent.futures
import contextlib
import copy
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
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import nbgrader.api
from alembic.script import ScriptDirectory
from nbgrader.api import (
    Gradebook,
    MissingEntry,
    Student,
)
from nbgrader.coursedir import CourseDirectory
from nbgrader.dbutil import ALEMBIC_DIR
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm
from traitlets.config.loader import PyFileConfigLoader

from aecourse.extras import needs
from aecourse.grading import export, late, pages, people, places, similar, submission, worker
from aecourse.grading.late import Due, Late
from aecourse.grading.ledger import Ledger, patiently, read, write
from aecourse.grading.sandbox import Limits, Sandbox
from aecourse.grading.submission import Assignment, grade_id
from aecourse.grading.words import in_a_line, listed
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
        try:
            config = PyFileConfigLoader("nbgrader_config.py", path=str(self.root)).load_config()
            config.CourseDirectory.root = str(self.root)
            self.config = config
            self.folders = CourseDirectory(config=config)
            # Which driver a bare postgresql: stands for depends on the version of SQLAlchemy.
            database = self.database or self.folders.db_url
            self.database = re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", database)
        except (Exception, SystemExit) as error:  # it is a program of the instructor's
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            words = f"{type(error).__name__}: {in_a_line(str(error), 200)}{line}"
            raise CourseError(f"nbgrader_config.py of {self.root} cannot be used ({words}).") from None

    def source(self, name: str) -> str:
        """The text of the instructor's notebook."""
        folder = self.root / self.folders.source_directory
        path = folder / name / f"{name}.ipynb"
        if not path.is_file():
            known = sorted(notebook.parent.name for notebook in folder.glob("*/*.ipynb"))
            raise CourseError(f"{path} is missing. There are: {', '.join(known) or 'no assignments'}.")
        if unnamed := people.objection(name):
            raise CourseError(f"{in_a_line(name)} cannot be the name of an assignment: it {unnamed}.")
        if others := [other.name for other in path.parent.glob("*.ipynb") if other != path]:
            raise CourseError(f"{name} has several notebooks ({', '.join(others)}), and may have one.")
        try:
            text = path.read_text(encoding="utf-8")
            _check(Assignment.of(name, text))
        except CourseError as error:
            raise CourseError(f"{path} {error}") from None
        except Exception as error:  # nbformat's are of many kinds
            words = f"{type(error).__name__}: {in_a_line(str(error), 120)}"
            raise CourseError(f"{path} is no notebook of an assignment ({words}).") from None
        return text

    @property
    def submitted(self) -> Path:
        return self.root / self.folders.submitted_directory

    def students(self, name: str) -> dict[str, Path]:
        """{student: folder} of those who handed something in, and can be named."""
        return places.students(self.submitted, name)

    def misplaced(self, only: tuple[str, ...] = ()) -> list[str]:
        """A sentence for everything below ``submitted/`` that is no submission; of these students alone."""
        return list(places.misplaced(self.submitted, self.assignments, only))

    @property
    def assignments(self) -> list[str]:
        source = self.root / self.folders.source_directory
        return sorted(f.name for f in source.glob("*") if (f / f"{f.name}.ipynb").is_file())

    def works(self, name: str) -> dict[str, "Work"]:
        """What each student is graded for: their own folder, or that of one in their group."""
        due, folders, works = late.kept(self.keep(name) / "due.json"), self.students(name), {}
        for student, folder in folders.items():
            record = self.keep(name) / "collected" / f"{student}.json"
            time, marked = late.handed_in(_notebook(folder, name), record)
            works[student] = Work(folder, student, time, late.lateness(due, time, marked))
        known = people.students(self.root)
        for group, members in people.groups(self.root, name).items():
            if strange := [member for member in members if known and member not in {*known, *folders}]:
                raise CourseError(f"groups.csv names {listed(strange)}, whom students.csv does not know.")
            if not (there := [member for member in members if member in folders]):
                continue
            begin = datetime.min.replace(tzinfo=timezone.utc)
            by = max(there, key=lambda member: (works[member].time or begin, member))
            words = f"This is the work of the group {group} ({', '.join(members)}), handed in by {by}."
            differ = len({_fingerprint(folders[member], name) for member in there}) > 1
            if differ:
                words += f" Others of the group handed in, too: {listed(sorted({*there} - {by}))}."
            work = replace(works[by], words=in_a_line(words, 500), human=differ)
            works |= dict.fromkeys(members, work)
        return dict(sorted(works.items()))

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
            raise CourseError(f"The gradebook cannot be opened: {_plain(error)}") from None
        except subprocess.SubprocessError as error:  # of a gradebook that is older than nbgrader
            raise CourseError(f"The gradebook cannot be brought up to date: {error}") from None

    def prepare(self, name: str, source: str) -> None:
        """Make the gradebook know the assignment as the source is now."""
        points = Assignment.of(name, source).points()
        with self.gradebook() as gradebook, contextlib.suppress(MissingEntry):
            known = gradebook.find_notebook(name, name)
            if points == {cell.name: cell.max_score for cell in [*known.grade_cells, *known.task_cells]}:
                return
        from nbgrader.apps import NbGraderAPI  # takes seconds to import, and is needed here only

        self.config.CourseDirectory.db_url = self.database
        config = copy.deepcopy(self.config)
        with tempfile.TemporaryDirectory(prefix="aecourse-release-") as elsewhere:
            # nbgrader does nothing, and says nothing, where there is a students' version already.
            if (self.root / self.folders.release_directory / name).exists():
                config.CourseDirectory.release_directory = elsewhere
            result = NbGraderAPI(CourseDirectory(config=config), config=config).generate_assignment(name)
        if not result["success"]:
            lines = str(result.get("log") or result.get("error") or "").strip().splitlines() or [""]
            why = next((line for line in lines if "ERROR" in line), lines[-1])
            why = in_a_line(re.sub(r"^\[.*?\] *(ERROR \| *)?", "", why), 300)
            raise CourseError(f"nbgrader could not make {name} known to the gradebook: {why}")

    def enrol(self) -> None:
        """Make the gradebook know the class, if ``students.csv`` names it."""
        listed_there = people.students(self.root)
        if not listed_there:
            return
        fields = ("first_name", "last_name", "email")

        def add() -> None:
            known = {student.id: student for student in gradebook.students}
            for student, row in listed_there.items():
                if student not in known:
                    gradebook.db.add(known.setdefault(student, Student(id=student)))
                for name in fields:
                    if row.get(name) and getattr(known[student], name) != row[name]:
                        setattr(known[student], name, row[name])
            gradebook.db.commit()

        with self.gradebook() as gradebook:
            patiently(gradebook, add)


@dataclass(frozen=True)
class Work:
    """What a student is graded for.

    Attributes:
        folder: with the notebook.
        by: the student whose folder it is, who may be another one of the group.
        time: when it was handed in, if that is known.
        late: what follows from that.
        words: a sentence about the group, if there is one.
        human: whether somebody should look at what the group handed in.
    """

    folder: Path
    by: str
    time: datetime | None = None
    late: Late = field(default_factory=Late)
    words: str = ""
    human: bool = False


def _notebook(folder: Path, name: str) -> Path | None:
    try:
        return submission.find(folder, name)[0]
    except ValueError:
        return None


def _fingerprint(folder: Path, name: str) -> str:
    """Of what was handed in, or of why it cannot be read."""
    try:
        return hashlib.sha256(submission.content(submission.find(folder, name)[0])).hexdigest()
    except ValueError as error:
        return str(error)


def _check(assignment: Assignment) -> None:
    """Refuse a source that nothing can be graded by.

    Raises:
        CourseError: in words that go on after its path.
    """
    names = [grade_id(cell) for cell in assignment.notebook.cells if grade_id(cell)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CourseError(f"has more than one cell with the grade id {listed(twice)}.")
    if not assignment.tests and not assignment.written:
        raise CourseError("has no cell with points: is it the instructor's version?")
    for name, cell in (assignment.tests | assignment.written).items():
        points = cell.metadata.nbgrader.get("points")
        if isinstance(points, bool) or not isinstance(points, int | float) or not 0 <= points < 1e6:
            raise CourseError(f"gives the cell {name} no points: {in_a_line(str(points), 20)}.")


def _plain(error: SQLAlchemyError) -> str:
    """What a database says. Its address, which may hold a password, is not in the first line."""
    return in_a_line(str(error).partition("\n")[0], 200)


# --------------------------------------------------------------------------- files that are there or not


def _kept(path: Path) -> Verdict | None:
    """The verdict in a file; none if it is not whole."""
    try:
        verdict = Verdict.of(read(path))
        return verdict if all(isinstance(test.points, int | float) for test in verdict.tests) else None
    except (TypeError, KeyError, AttributeError):
        return None


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
        with _ending(pool):
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
def _ending(pool: concurrent.futures.Executor) -> Iterator[None]:
    """Wait for the pool's end, or else Python's own stumbles over it; but when the coordinator stops, after
    Ctrl-C for example, begin nothing more and wait for nothing."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


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
        due: when it is due, from now on; "" for never. Default: as it was.
        progress: show a progress bar.
    """

    workers: int = 0
    scheduler: str = ""
    students: tuple[str, ...] = ()
    force: bool = False
    sandbox: str = "bubblewrap"
    sandboxes: tuple[Sandbox, ...] = ()
    limits: Limits = field(default_factory=Limits)
    due: Due | str | None = None
    progress: bool = True


def grade(course: Course, name: str, options: Options) -> dict[str, Verdict]:
    """Grade the submissions of an assignment, fill the gradebook and write feedback: {student: verdict}.

    Raises:
        CourseError: the course's folder, in words for the instructor.
        SandboxError: there is no sandbox.
    """
    source, keep = course.source(name), course.keep(name)
    with alone(keep):
        if options.due is not None:
            write(keep / "due.json", late.text(options.due) if options.due else "{}")
        works = course.works(name)
        if unknown := [student for student in options.students if student not in works]:
            names = listed([in_a_line(student) for student in unknown])
            raise CourseError(f"Nothing was handed in for {name} by {names}.")
        works = {student: work for student, work in works.items() if student in (options.students or works)}
        try:
            return _run(course, name, source, works, options)
        except SQLAlchemyError as error:
            raise CourseError(
                f"The gradebook cannot be written ({_plain(error)}). What was graded is kept: give the "
                "command again when this is mended."
            ) from None


def _run(
    course: Course, name: str, source: str, works: dict[str, Work], options: Options
) -> dict[str, Verdict]:
    """Grade what has not been graded, and settle all."""
    course.prepare(name, source)
    course.enrol()
    folder = course.keep(name) / "verdicts"
    groups: dict[str, list[str]] = {}  # of a group one is graded for all
    for student, work in works.items():
        groups.setdefault(work.by, []).append(student)
    bundles = {by: bundle(name, by, source, works[each[0]].folder, options) for by, each in groups.items()}
    keys = {by: bundles[by].key() for by in bundles}
    kept = {} if options.force else {student: _kept(folder / f"{student}.json") for student in works}
    verdicts = {s: v for s, v in kept.items() if v is not None and v.key == keys[works[s].by]}
    todo = [bundles[by] for by, each in groups.items() if any(student not in verdicts for student in each)]
    ledger = Ledger(course, name, source)
    # Whatever stops this, Ctrl-C in the middle of a verdict too: workers end before their sandboxes do.
    with ledger, contextlib.closing(_graded(todo, options)) as graded:
        verdicts = {
            student: ledger.settled_for(verdict, works[student]) for student, verdict in verdicts.items()
        }
        for verdict in graded:
            for student in groups[verdict.student]:
                own = replace(verdict, student=student)
                write(folder / f"{student}.json", json.dumps(own.as_dict()), sync=True)
                verdicts[student] = ledger.settled_for(own, works[student])
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
        names = listed([in_a_line(student) for student in human], 10)
        lines.append(f"{len(human)} need a human eye: {names}.")
    return "\n".join(lines)


def exported(kind: str, course: Course, name: str, verdicts: dict[str, Verdict]) -> str:
    """The text of a report ("report") or of a file for other programs ("csv", "canvas", "moodle")."""
    assignment, works = Assignment.of(name, course.source(name)), course.works(name)
    with Ledger(course, name, course.source(name)) as ledger:
        marked = {student: ledger.marked(verdict, works[student]) for student, verdict in verdicts.items()}
        students = {
            student.id: {
                "first_name": student.first_name or "",
                "last_name": student.last_name or "",
                "email": student.email or "",
            }
            for student in ledger.gradebook.students
        }
    scores = {student: found.score for student, found in marked.items()}
    shown = [found.verdict for found in marked.values()]
    days = {student: works[student].late.days for student in marked}
    deductions = {student: found.deduction for student, found in marked.items()}
    if kind == "csv":
        timed = {student: (days[student], deductions[student]) for student in marked}
        marks = {student: found.marks for student, found in marked.items()}
        return export.csv(assignment, shown, marks, timed if any(days.values()) else None)
    if kind == "canvas":
        return export.canvas(scores, students, name, sum(assignment.points().values()))
    if kind == "moodle":
        return export.moodle(scores, students, name)
    stubs = {task: SOLUTION.sub("", cell.source) for task, cell in assignment.tasks.items()}
    sources = {
        works[student].by: verdict.sources for student, verdict in verdicts.items()
    }  # one of each group
    overdue = [(s, days[s], deductions[s], works[s].late.words) for s in marked if works[s].late.words]
    return pages.report_page(assignment, shown, scores, similar.pairs(sources, stubs), overdue)
