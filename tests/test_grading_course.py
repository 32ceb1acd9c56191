"""`aecourse grade` on a course: the gradebook, resuming after a kill, other workers, other databases."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("nbgrader")
pytest.importorskip("fcntl", reason="grading is for Linux and macOS")

import nbformat
from support.notebooks import AUTOGRADED, ROOT, SOURCE, WRITTEN, solution_cells
from support.sandbox import NEEDED, needs_sandbox
from support.submissions import SUBMISSIONS, VERSIONS, course_with, scores, solved, tampered

from aecourse import cli
from aecourse.grading import course as grading
from aecourse.grading import ledger, submission, worker
from aecourse.grading.late import Due
from aecourse.grading.submission import Assignment

pytestmark = needs_sandbox
QUESTION = "lost_half"
TESTS, ALL = sum(AUTOGRADED["elbo"].values()), sum(AUTOGRADED["elbo"].values()) + 2


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "aecourse.cli", "grade", "elbo", "--quiet", *map(str, arguments)]


def run(course: Path, *arguments) -> subprocess.CompletedProcess:
    """What the command does, in this process, which has imported all that it needs."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        options = ["grade", "elbo", "--quiet", "--course", course, *arguments]
        status = cli.main([str(option) for option in options])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())


def expected(student: str) -> dict:
    names, also = SUBMISSIONS[student]
    lost = {f"{VERSIONS[name].function}_{kind}" for name in names for kind in VERSIONS[name].loses}
    lost |= {f"elbo_{kind}" for kind in also.split()}
    points = {task: 0.0 if task in lost else points for task, points in AUTOGRADED["elbo"].items()}
    return points | dict.fromkeys(WRITTEN["elbo"])


@pytest.fixture(scope="module")
def class_of_ten(tmp_path_factory):
    """The class of test_assignments, which nbgrader grades there, and one without a notebook."""
    students = {name: solved("elbo", versions) for name, (versions, _) in SUBMISSIONS.items()}
    tampered(students["wrong-and-tampered"])
    course = course_with(tmp_path_factory.mktemp("course"), students | {"nobody": None})
    (course / "gradebook.db").unlink()  # the command makes it
    (course / "submitted" / "nobody" / "elbo" / "notes.txt").write_text("sorry")
    whole = command("--report", "report.html", "--csv", "points.csv", "--workers", 2)
    done = subprocess.run(whole, cwd=course, capture_output=True, text=True, timeout=300)
    return course, done


@pytest.mark.seconds(40)
def test_the_gradebook_has_the_points_that_nbgrader_gives(class_of_ten):
    course, done = class_of_ten
    assert done.returncode == 2, done.stderr  # somebody needs a human eye
    found = scores(course)
    assert {student: found[student] for student in SUBMISSIONS} == {
        student: expected(student) for student in SUBMISSIONS
    }
    assert set(found["nobody"].values()) == {0.0, None}
    assert "need a human eye: nobody, wrong-and-tampered" in done.stdout


def test_feedback_report_and_exports_are_there(class_of_ten):
    course, _ = class_of_ten
    for student in (*SUBMISSIONS, "nobody"):
        page = (course / "feedback" / student / "elbo" / "elbo.html").read_text()
        assert student in page
        assert not any(other in page for other in SUBMISSIONS if other != student and other not in student)
        assert "globals()" not in page
    assert "wrong-1" in (course / "report.html").read_text()
    assert len((course / "points.csv").read_text().splitlines()) == 1 + len(SUBMISSIONS) + 1
    notebook = nbformat.read(course / "autograded" / "wrong-1" / "elbo" / "elbo.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert {*solution_cells(SOURCE["elbo"])} <= {
        cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells
    }


def test_a_second_run_grades_nothing_and_brings_marks_into_the_feedback(class_of_ten):
    from nbgrader.api import Gradebook

    course, _ = class_of_ten
    verdicts = course / ".aecourse" / "elbo" / "verdicts"
    before = {path.name: path.stat().st_mtime_ns for path in verdicts.iterdir()}
    (question,) = WRITTEN["elbo"]
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        grade = gradebook.find_grade(question, "elbo", "elbo", "right-einsum")
        grade.manual_score, grade.needs_manual_grade = 1.5, False
        gradebook.find_comment(
            question, "elbo", "elbo", "right-einsum"
        ).manual_comment = "Half a point short."
        gradebook.db.commit()
    assert run(course).returncode == 2
    assert {path.name: path.stat().st_mtime_ns for path in verdicts.iterdir()} == before
    page = (course / "feedback" / "right-einsum" / "elbo" / "elbo.html").read_text()
    assert "1.5" in page
    assert "Half a point short." in page
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        assert gradebook.find_grade(question, "elbo", "elbo", "right-einsum").manual_score == 1.5


def test_a_new_submission_is_graded_and_the_others_are_not(class_of_ten):
    course, _ = class_of_ten
    verdicts = course / ".aecourse" / "elbo" / "verdicts"
    before = {path.name: path.stat().st_mtime_ns for path in verdicts.iterdir()}
    nbformat.write(solved("elbo"), course / "submitted" / "nobody" / "elbo" / "elbo.ipynb")
    run(course)
    after = {path.name: path.stat().st_mtime_ns for path in verdicts.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"nobody.json"}
    assert sum(points or 0 for points in scores(course)["nobody"].values()) == sum(
        AUTOGRADED["elbo"].values()
    )


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def descendants(process: int) -> set[int]:
    found = set()
    with contextlib.suppress(FileNotFoundError):  # it may have ended meanwhile
        for child in children(process):
            found |= {child} | descendants(child)
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def program(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()


def kill(process: int, whom: str) -> None:
    """Kill the coordinator, one of its workers or the whole process group without warning; or type Ctrl-C."""
    if whom == "worker":
        workers = [child for child in children(process) if program(child) != "bwrap"]  # which are sandboxes
        os.kill(workers[0], signal.SIGKILL)
    elif whom == "coordinator":
        os.kill(process, signal.SIGKILL)
    else:
        os.killpg(process, signal.SIGINT if whom == "Ctrl-C" else signal.SIGKILL)


@pytest.mark.parametrize("whom", ["coordinator", "worker", "group", "Ctrl-C"])
@pytest.mark.seconds(20)
def test_a_killed_run_loses_nothing_and_grades_nothing_twice(tmp_path, whom):
    course = course_with(tmp_path, {f"student-{i}": solved("elbo") for i in range(6)})
    verdicts = course / ".aecourse" / "elbo" / "verdicts"
    process = subprocess.Popen(
        command("--workers", 2),
        cwd=course,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        # Tests that a shell runs in the background would hand down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(verdicts.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    kept = {path.name: path.read_text() for path in verdicts.glob("*.json")}
    assert kept
    begun = descendants(process.pid)
    assert len(begun) >= 4  # two workers and two sandboxes, each of several processes
    kill(process.pid, whom)
    status = process.wait(timeout=120)
    if whom == "worker":
        assert status == 0  # the run itself goes on
    if whom == "Ctrl-C":
        assert status == 130
    assert not list(course.rglob("*.half")) or whom != "worker"
    for text in kept.values():
        json.loads(text)  # whole
    done = run(course)
    assert done.returncode == 0, done.stderr
    assert {name: (verdicts / name).read_text() for name in kept} == kept  # not graded again
    found = scores(course)
    assert set(found) == {f"student-{i}" for i in range(6)}
    full = AUTOGRADED["elbo"] | dict.fromkeys(WRITTEN["elbo"])
    assert all(points == full for points in found.values())
    for student in found:
        page = (course / "feedback" / student / "elbo" / "elbo.html").read_text()
        assert page.rstrip().endswith("</html>")
    deadline = time.monotonic() + 20
    while any(map(alive, begun)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, begun))


def test_two_runs_at_once_are_refused(tmp_path):
    import fcntl

    course = course_with(tmp_path, {"one": solved("elbo")})
    (course / ".aecourse" / "elbo").mkdir(parents=True)
    with open(course / ".aecourse" / "elbo" / "lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # a lock is a process's own: this needs another one
        done = subprocess.run(command(), cwd=course, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Another `aecourse grade` is at work" in done.stderr


@pytest.mark.seconds(8)
def test_bad_input_gets_one_line(tmp_path):
    course = course_with(tmp_path, {"one": solved("elbo")})
    for arguments, words in (
        (("--course", tmp_path / "nowhere"), "holds no nbgrader_config.py"),
        (("--students", "two"), "Nothing was handed in for elbo by two"),
        (("--sandbox", "paper"), "There is no sandbox 'paper'"),
    ):
        done = run(course, *arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2


@pytest.mark.seconds(12)
def test_a_dask_cluster_grades_as_the_pool_does(tmp_path):
    distributed = pytest.importorskip("distributed")
    students = {name: solved("elbo", SUBMISSIONS[name][0]) for name in ("wrong-1", "right-einsum")}
    course = course_with(tmp_path, students)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        done = run(course, "--scheduler", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    assert scores(course) == {student: expected(student) for student in students}


@pytest.fixture
def postgresql():
    """The address of an empty database, in a PostgreSQL server that is there for one test."""
    if (initdb := _of_postgresql("initdb")) is None:
        assert not NEEDED, "PostgreSQL is not installed, so it was not tested: apt install postgresql"
        pytest.skip("needs PostgreSQL: apt install postgresql")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # short: the socket's path may have 107 bytes
        if user:
            shutil.chown(folder, user)

        def call(*command) -> None:
            done = subprocess.run(
                command, user=user, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr

        control = [_of_postgresql("pg_ctl"), "--pgdata", f"{folder}/data", "--wait"]
        call(initdb, "--pgdata", f"{folder}/data", "--username", "tutor", "--auth", "trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        call(*control, "--log", f"{folder}/log", "--options", options, "start")
        try:
            yield f"postgresql://tutor@/postgres?host={folder}"
        finally:
            call(*control, "--mode", "immediate", "stop")


def _of_postgresql(name: str) -> str | None:
    """The path of one of its programs, which Debian keeps off the search path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.mark.seconds(15)
def test_postgresql_holds_what_sqlite_does(tmp_path, postgresql):
    pytest.importorskip("psycopg2", reason='needs psycopg2: pip install "aecourse[postgres]"')
    from nbgrader.api import Gradebook

    names = ("wrong-1", "wrong-2", "right-einsum", "right-log-prob")
    students = {name: solved("elbo", SUBMISSIONS[name][0]) for name in names}
    course = course_with(tmp_path, students)
    (course / "gradebook.db").unlink()
    url = postgresql.replace("postgresql:", "postgresql+psycopg2:")
    verdicts = course / ".aecourse" / "elbo" / "verdicts"
    process = subprocess.Popen(command("--workers", 2, "--db", postgresql), cwd=course)
    deadline = time.monotonic() + 120
    while not list(verdicts.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    while process.poll() is None:  # somebody looks at it meanwhile, and sees all points of a student or none
        time.sleep(0.02)
        for student, points in scores(course, url).items():
            assert points in (expected(student), dict.fromkeys(points))
    assert process.wait() == 0
    assert not (course / "gradebook.db").exists()
    found = scores(course, url)
    assert found == {student: expected(student) for student in students}

    before = {path.name: path.stat().st_mtime_ns for path in verdicts.iterdir()}
    (question,) = WRITTEN["elbo"]
    with Gradebook(url) as gradebook:
        grade = gradebook.find_grade(question, "elbo", "elbo", "right-einsum")
        grade.manual_score, grade.needs_manual_grade = 1.5, False
        gradebook.db.commit()
    again = grading.Options(progress=False)
    assert set(grading.grade(grading.Course(course, postgresql), "elbo", again)) == set(students)
    assert scores(course, url) == found
    with Gradebook(url) as gradebook:
        assert gradebook.find_grade(question, "elbo", "elbo", "right-einsum").manual_score == 1.5
    assert "1.5" in (course / "feedback" / "right-einsum" / "elbo" / "elbo.html").read_text()

    grading.grade(grading.Course(course), "elbo", again)
    assert scores(course) == found
    assert {path.name: path.stat().st_mtime_ns for path in verdicts.iterdir()} == before  # graded once


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("grades", "Could not parse"),
        ("sqlite:////nowhere/grades.db", "unable to open database file"),
        ("postgresql://tutor:secret@127.0.0.1:1/grades", "Connection refused|aecourse.postgres"),
    ],
)
def test_a_gradebook_that_cannot_be_opened_is_one_line(url, words):
    with pytest.raises(grading.CourseError, match=words) as caught:
        grading.Course(ROOT, url).gradebook()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- the coordinator, with workers that give all points at once


@pytest.fixture
def at_once(monkeypatch):
    """Whoever can be read gets all points. {student: how often it was graded}."""
    count = {}

    def graded(bundles, options):
        for bundle in bundles:
            count[bundle.student] = count.get(bundle.student, 0) + 1
            assignment = Assignment.of(bundle.assignment, bundle.source)
            found = submission.prepare(bundle.data, assignment) if bundle.data else submission.Submission()
            points = assignment.points()
            tests = [worker.Test(name, points[name], points[name]) for name in assignment.tests]
            yield worker.Verdict(
                bundle.assignment,
                bundle.student,
                bundle.key(),
                tests=tests,
                remarks=found.remarks,
                human=found.human,
                sources=found.sources,
                answers=found.answers,
            )

    monkeypatch.setattr(grading, "_graded", graded)
    return count


def answering(words):
    notebook = solved("elbo")
    next(cell for cell in notebook.cells if cell.id == "lost-half-answer").source = words
    return notebook


def hand_in(course, student, notebook):
    place = course / "submitted" / student / "elbo"
    place.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, place / "elbo.ipynb")
    return place / "elbo.ipynb"


@contextlib.contextmanager
def grade_of(course, student, name=QUESTION):
    """A row of the gradebook, to look at and to change."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        yield gradebook.find_grade(name, "elbo", "elbo", student)
        gradebook.db.commit()


def mark(course, student, points, name=QUESTION):
    """As the formgrader does."""
    with grade_of(course, student, name) as grade:
        grade.manual_score, grade.needs_manual_grade = points, False


def feedback(course, student):
    return (course / "feedback" / student / "elbo" / "elbo.html").read_text()


CHANGED = "{} was changed after it was marked. Its points are those given before."


def test_an_answer_that_was_changed_after_it_was_marked_is_flagged(tmp_path, at_once):
    course = course_with(tmp_path, {s: answering("Half.") for s in ("ash", "brown")})
    assert run(course).returncode == 0
    mark(course, "ash", 2.0)
    mark(course, "ash", 0.5, "elbo_values")
    mark(course, "brown", 2.0)
    assert run(course).returncode == 0
    assert "was changed" not in feedback(course, "ash")

    changed = answering("No idea.")
    solution_cells(changed)["elbo"].source += "\n# again"
    hand_in(course, "ash", changed)
    for _ in range(2):  # it stays so until somebody looks
        done = run(course, "--report", tmp_path / "report.html")
        assert (done.returncode, done.stderr) == (2, "")
        assert "1 need a human eye: ash." in done.stdout
        for page in (feedback(course, "ash"), (tmp_path / "report.html").read_text()):
            assert CHANGED.format(QUESTION) in page
            assert CHANGED.format("elbo_values") in page
        with grade_of(course, "ash") as grade:
            assert (grade.manual_score, grade.needs_manual_grade) == (2.0, True)
    mark(course, "ash", 0.0)
    mark(course, "ash", 0.5, "elbo_values")
    assert run(course, "--force").returncode == 0
    assert "was changed" not in feedback(course, "ash") + feedback(course, "brown")


def test_the_flag_outlives_a_kill(tmp_path, at_once, monkeypatch):
    """At any moment between the verdict's record and its pages."""
    course = course_with(tmp_path, {"ash": answering("Half.")})
    run(course)
    mark(course, "ash", 2.0)
    hand_in(course, "ash", answering("No idea."))
    for place in ("_record", "marked"):
        with monkeypatch.context() as patch:
            patch.setattr(grading.Ledger, place, lambda *arguments: exec("raise KeyboardInterrupt"))
            assert run(course).returncode == 130
    assert run(course).returncode == 2
    assert CHANGED.format(QUESTION) in feedback(course, "ash")


def test_late_work_costs_what_is_said(tmp_path, at_once):
    course = course_with(tmp_path, {s: solved("elbo") for s in ("soon", "grace", "late", "never")})
    due = 1_764_500_000
    for student, after in (("soon", -60), ("grace", 500), ("late", 90_000), ("never", 40 * 86_400)):
        os.utime(course / "submitted" / student / "elbo" / "elbo.ipynb", (0, due + after))
    date = grading.datetime.fromtimestamp(due).isoformat()
    options = (
        "--csv",
        tmp_path / "points.csv",
        "--canvas",
        tmp_path / "canvas.csv",
        "--report",
        tmp_path / "r",
    )
    done = run(course, "--due", date, "--grace", 10, "--per-day", 10, *options)
    assert (done.returncode, done.stderr) == (0, "")
    for _ in range(2):  # the date is kept
        rows = [row.split(",") for row in (tmp_path / "points.csv").read_text().splitlines()]
        assert rows[0][-4:] == ['"late_days"', '"taken_off"', '"total"', '"out_of"']
        found = {row[0].strip('"'): [float(cell) for cell in row[-4:-1]] for row in rows[1:]}
        assert found == {
            "soon": [0, 0, TESTS],
            "grace": [0, 0, TESTS],
            "late": [2, round(0.2 * TESTS, 2), round(0.8 * TESTS, 2)],
            "never": [40, TESTS, 0],
        }
        assert f'"late","",{0.8 * TESTS:g}' in (tmp_path / "canvas.csv").read_text()
        assert "Late submissions" in (tmp_path / "r").read_text()
        page = feedback(course, "late")
        assert "Handed in 1 day and 1 hour late" in page
        assert "20 % of the points are taken off." in page
        assert f"{0.8 * TESTS:g} of {ALL} points" in page
        assert run(course, *options).returncode == 0
    with grade_of(course, "late") as grade:
        assert grade.notebook.late_submission_penalty == pytest.approx(0.2 * TESTS)
        assert grade.notebook.assignment.total_seconds_late == pytest.approx(90_000)
    mark(course, "late", 2.0)
    run(course)
    with grade_of(course, "late") as grade:
        assert grade.notebook.late_submission_penalty == pytest.approx(0.2 * ALL)
    assert run(course, "--due", "none", *options).returncode == 0
    assert "late_days" not in (tmp_path / "points.csv").read_text()
    assert f"{ALL} of {ALL} points" in feedback(course, "late")
    with grade_of(course, "late") as grade:
        assert grade.notebook.late_submission_penalty == 0


def test_a_date_alone_is_its_end():
    assert Due.of("2026-11-30").when.isoformat()[:19] == "2026-11-30T23:59:59"
    assert Due.of("2026-11-30T18:00+02:00").when == grading.datetime.fromisoformat("2026-11-30T18:00+02:00")
    for arguments in (
        ("tomorrow",),
        ("2026-11-30", -1),
        ("2026-11-30", float("nan")),
        ("2026-11-30", 0, 101),
    ):
        with pytest.raises(ValueError, match=r"--(due|grace|per-day) is"):
            Due.of(*arguments)


def test_a_group_hands_in_one_notebook(tmp_path, at_once):
    course = course_with(tmp_path, {"ash": answering("Half."), "coe": solved("elbo")})
    (course / "groups.csv").write_text("\ufeffgroup;student\nred;ash\nred;brown\n")
    done = run(course, "--csv", tmp_path / "points.csv")
    assert (done.returncode, done.stderr, at_once) == (0, "", {"ash": 1, "coe": 1})
    assert {
        student: sum(points.values()) - TESTS for student, points in scores_of(course).items()
    } == dict.fromkeys(("ash", "brown", "coe"), 0)
    for student in ("ash", "brown"):
        assert "This is the work of the group red (ash, brown), handed in by ash." in feedback(
            course, student
        )
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 4
    run(course)
    assert at_once == {"ash": 1, "coe": 1}

    late = hand_in(course, "brown", answering("Another half."))
    os.utime(late, (4e9, 4e9))
    done = run(course)
    assert (done.returncode, at_once) == (2, {"ash": 1, "coe": 1, "brown": 1})
    words = "handed in by brown. Others of the group handed in, too: ash."
    assert words in feedback(course, "ash")
    assert words in feedback(course, "brown")

    for text, words in (
        ("group,student\nred,ash\nblue,ash\n", "groups.csv has ash more than once."),
        ("group,student\nred,\n", "groups.csv, row 2: it needs a group and a student."),
    ):
        (course / "groups.csv").write_text(text)
        assert_one_line(run(course), words)
    (course / "groups.csv").write_text("group,student\nred,ash\nred,typo\n")
    (course / "students.csv").write_text("id\nash\n")
    assert_one_line(run(course), "groups.csv names typo, whom students.csv does not know.")


def scores_of(course):
    return {s: {n: p or 0 for n, p in points.items()} for s, points in scores(course).items()}


def assert_one_line(done, words):
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_the_class_list_is_read_as_spreadsheets_write_it(tmp_path, at_once):
    course = course_with(tmp_path, {"ash": solved("elbo")})
    (course / "students.csv").write_bytes(
        "\ufeffID;First name;Last_Name;Email\r\nash;Alice;Äsh;a@example.org\r\ncoe;;Coe;\r\n".encode()
    )
    assert run(course, "--canvas", tmp_path / "canvas.csv").returncode == 0
    assert '"Äsh, Alice","","","ash"' in (tmp_path / "canvas.csv").read_text()
    for text, words in (
        ("name\nash\n", "students.csv has no id in row 2."),
        ("id\nash\nash\n", "students.csv has the id ash twice."),
        ("id\n.ash\n", "the id .ash cannot be used: it begins with a full stop"),
    ):
        (course / "students.csv").write_text(text)
        assert_one_line(run(course), words)
    (course / "students.csv").write_bytes(b"id,first_name\nash,\xc4\n")
    assert_one_line(run(course), "students.csv is not in UTF-8. Save it as CSV UTF-8.")


def made(top, *paths):
    for path in paths:
        place = Path(
            os.fsdecode(os.fsencode(top) + b"/" + (path if isinstance(path, bytes) else path.encode()))
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x")


def test_everything_below_submitted_is_graded_or_named(tmp_path, at_once):
    """And no name reaches the terminal as it is, or costs anybody else the verdict."""
    course = course_with(
        tmp_path, {"ash": solved("elbo"), "ünï" * 30: solved("elbo"), "x" * 120: solved("elbo")}
    )
    top = course / "submitted"
    notebook = "elbo/elbo.ipynb"
    escape, turned, bad = "red\x1b[31m", "abc\u202efdp", b"\xff\xfe"
    made(
        top,
        "elbo.ipynb",
        "all.zip",
        "flat/elbo.ipynb",
        "flat/notes.txt",
        "case/ELBO/elbo.ipynb",
        "elbo/brown/elbo.ipynb",
    )
    made(
        top, "elbo/coe.ipynb", "copy/elbo (1)/elbo.ipynb", "other/hw1/hw1.ipynb", "deep/elbo/mine/elbo.ipynb"
    )
    made(
        top, "ash/elbo/elbo (1).ipynb", "ash/elbo/photo.jpg", ".DS_Store", "ash/.ipynb_checkpoints/elbo.ipynb"
    )
    made(
        top, *(f"{name}/{notebook}" for name in (".hidden", "...", "y" * 210, "z" * 130, escape, turned, " "))
    )
    made(top, bad + b"/elbo/elbo.ipynb")
    (top / "lost").symlink_to("nowhere")
    found = grading.Course(course).misplaced()
    expected = {
        "elbo.ipynb is in no folder of a student. A notebook should stand at "
        "submitted/STUDENT/elbo/elbo.ipynb.",
        "all.zip is an archive: aecourse collect files what is in it.",
        "flat/elbo.ipynb should stand at submitted/flat/elbo/elbo.ipynb.",
        "flat/notes.txt belongs into the folder of an assignment, submitted/flat/ASSIGNMENT/.",
        "case/ELBO should stand at submitted/case/elbo.",
        "elbo/brown should stand at submitted/brown/elbo/elbo.ipynb.",
        "elbo/coe.ipynb should stand at submitted/coe/elbo/elbo.ipynb.",
        "copy/elbo (1) should stand at submitted/copy/elbo.",
        "other/hw1 is no assignment of this course: elbo.",
        "deep/elbo/mine/elbo.ipynb should stand at submitted/deep/elbo/elbo.ipynb.",
        "ash/elbo/elbo (1).ipynb was not looked at: elbo.ipynb, beside it, was.",
        "lost is a link, and leads nowhere. Put the folder itself there.",
    }
    assert {
        words.removeprefix("submitted/") for words in found if "cannot be graded" not in words
    } == expected
    assert sum("cannot be graded: its name" in words for words in found) == 8
    done = run(course)
    assert done.returncode == 2
    assert done.stderr == ""
    assert set(scores(course)) == {"ash", "ünï" * 30, "x" * 120, "deep"}
    assert "should stand at submitted/brown/elbo/elbo.ipynb" in done.stdout
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", done.stdout)
    assert run(course, "--students", "x" * 120).returncode == 0


def test_nothing_but_misplaced_work_is_no_success(tmp_path, at_once):
    course = course_with(tmp_path, {})
    made(course / "submitted", "elbo/brown/elbo.ipynb")
    done = run(course)
    assert done.returncode == 2
    assert done.stdout == (
        "Nothing was handed in.\nsubmitted/elbo/brown should stand at submitted/brown/elbo/elbo.ipynb.\n"
    )


def test_what_stands_in_the_way_of_one_student_costs_the_others_nothing(tmp_path, at_once):
    course = course_with(tmp_path, {s: solved("elbo") for s in ("ash", "brown", "coe")})
    made(course / "feedback", "ash")
    done = run(course, "--report", tmp_path / "report.html")
    assert (done.returncode, done.stderr) == (2, "")
    assert "1 need a human eye: ash." in done.stdout
    assert "The pages cannot be written" in (tmp_path / "report.html").read_text()
    assert len(scores(course)) == 3
    assert feedback(course, "coe")


@pytest.mark.parametrize("junk", ["", "[]", '{"key": 3, "tests": [3], "changed": 3}'])
def test_a_store_that_is_something_else_is_made_anew(tmp_path, at_once, junk):
    course = course_with(tmp_path, {"ash": solved("elbo")})
    run(course)
    for path in (course / ".aecourse" / "elbo").rglob("*"):
        if path.is_file():
            path.write_text(junk)
    (course / ".aecourse" / "elbo" / "due.json").write_text(junk)
    assert run(course).returncode == 0
    assert at_once == {"ash": 2}


def test_a_verdict_that_lacks_a_part_is_made_anew_or_done_without(tmp_path, at_once):
    course = course_with(tmp_path, {"ash": solved("elbo")})
    run(course)
    path = course / ".aecourse" / "elbo" / "verdicts" / "ash.json"
    whole = json.loads(path.read_text())
    for name in ("assignment", "tests", "human", "pictures"):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        done = run(course)
        assert (done.returncode, done.stderr) == (0, ""), name
    path.write_text(json.dumps(whole | {"tests": [{"name": "x"}]}))
    assert run(course).returncode == 0
    assert json.loads(path.read_text()) == whole


@pytest.mark.seconds(8)
def test_a_gradebook_that_was_deleted_is_filled_again_and_lost_marks_are_named(tmp_path, at_once):
    course = course_with(tmp_path, {"ash": solved("elbo"), "brown": solved("elbo")})
    assert run(course).returncode == 0
    mark(course, "ash", 2.0)
    assert run(course).returncode == 0
    (course / "gradebook.db").unlink()
    assert (course / "assignments").exists()  # where nbgrader alone would do nothing
    done = run(course, "--report", tmp_path / "report.html")
    assert (done.returncode, done.stderr) == (2, "")
    assert "1 need a human eye: ash." in done.stdout
    words = "The gradebook had lost this submission. It has it again, without marks of lost_half."
    assert words in (tmp_path / "report.html").read_text()
    assert scores_of(course)["brown"] == scores_of(course)["ash"]
    assert sum(scores_of(course)["ash"].values()) == TESTS


@pytest.mark.seconds(8)
def test_a_gradebook_without_the_notebook_gets_it_again(tmp_path, at_once):
    from nbgrader.api import Gradebook

    course = course_with(tmp_path, {"ash": solved("elbo")})

    def without_notebook():
        with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
            gradebook.remove_notebook("elbo", "elbo")
        return run(course)

    done = without_notebook()
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(scores_of(course)["ash"].values()) == TESTS
    words = "Cannot modify existing assignment 'Assignment<elbo>' because there are submissions"  # nbgrader's
    assert_one_line(without_notebook(), words)


def test_a_locked_gradebook_is_waited_for(tmp_path, at_once, capsys):
    import sqlite3
    import threading

    course = course_with(tmp_path, {"ash": solved("elbo")})
    hurried = grading.Course(course, f"sqlite:///{course / 'gradebook.db'}?timeout=0.1")
    hurried.prepare("elbo", hurried.source("elbo"))
    options = grading.Options(progress=False)
    other = sqlite3.connect(course / "gradebook.db", check_same_thread=False)
    other.execute("begin immediate")
    timer = threading.Timer(1.5, other.rollback)
    timer.start()
    assert grading.grade(hurried, "elbo", options)["ash"].points == TESTS
    timer.join()
    assert capsys.readouterr().err.count("The gradebook is in use by another program") == 1
    without = solved("elbo")
    del without.cells[6]  # a test, so that a person is to look at it
    hand_in(course, "ash", without)
    other.execute("begin immediate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "PATIENCE", 0.3)
        with pytest.raises(
            grading.CourseError, match=r"cannot be written \(.*locked.*What was graded is kept"
        ):
            grading.grade(hurried, "elbo", options)
    other.rollback()
    other.close()
    assert run(course).returncode == 2
    assert at_once == {"ash": 2}  # not a third time


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c = (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("c = get_config()\nc.CourseDirectory.submitted_directory = 3", "TraitError"),
        ("c = get_config()\nc.CourseDirectory.db_url = []", "TraitError"),
    ],
)
def test_a_configuration_that_fails_is_one_line(tmp_path, text, words):
    (tmp_path / "nbgrader_config.py").write_text(text)
    assert_one_line(run(tmp_path), words)


def of_list(notebook):
    return [1]


def without_points(notebook):
    for cell in notebook["cells"]:
        cell["metadata"].get("nbgrader", {}).pop("points", None)


def without_flags(notebook):
    for cell in notebook["cells"]:
        cell["metadata"] = {}


def twice_the_same(notebook):
    notebook["cells"] += [cell for cell in notebook["cells"] if cell["metadata"].get("nbgrader")][:1]


def with_points_that_are_none(notebook):
    for cell in notebook["cells"]:
        if "points" in cell["metadata"].get("nbgrader", {}):
            cell["metadata"]["nbgrader"]["points"] = "two"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_list, "is no notebook of an assignment"),
        (without_points, "gives the cell gaussian_kl_checks no points"),
        (without_flags, "has no cell with points"),
        (twice_the_same, "has more than one cell with the grade id gaussian_kl."),
        (with_points_that_are_none, "gives the cell gaussian_kl_checks no points: two."),
    ],
)
def test_a_source_that_nothing_can_be_graded_by_is_one_line(tmp_path, change, words):
    shutil.copy(ROOT / "nbgrader_config.py", tmp_path)
    place = tmp_path / "solutions" / "elbo" / "elbo.ipynb"
    place.parent.mkdir(parents=True)
    notebook = json.loads((ROOT / "solutions" / "elbo" / "elbo.ipynb").read_text())
    place.write_text(json.dumps(change(notebook) or notebook))
    assert_one_line(run(tmp_path), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seconds", "nan"), "--seconds is nan but must be a number from 1 to 86400."),
        (("--seconds=-1",), "--seconds is -1"),
        (("--test-seconds", "0"), "--test-seconds is 0"),
        (("--memory=-1",), "--memory is -1"),
        (("--memory", "1e12"), "--memory is 1e+12"),
        (("--memory", "inf"), "--memory is inf"),
        (("--memory", "0.001"), "--memory is 0.001 but must be a number from 0.25 to 1024."),
        (("--workers=-1",), "--workers is -1"),
        (("--sandbox", "unsafe"), "say --unsafe"),
        (("--grace", "5"), "--grace and --per-day need --due DATE."),
        (("--due", "soon"), "--due is 'soon' but must be a date"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, arguments, words):
    assert_one_line(run(tmp_path, *arguments), words)


def test_no_more_sandboxes_than_submissions(tmp_path, monkeypatch):
    from aecourse.grading import sandbox

    course, asked = course_with(tmp_path, {"ash": None, "brown": None}), []
    monkeypatch.setattr(
        sandbox, "early", lambda kind, count: asked.append(count) or contextlib.nullcontext(())
    )
    monkeypatch.setattr(cli, "_grade", lambda *arguments: 0)
    shutil.rmtree(course / ".aecourse", ignore_errors=True)
    run(course, "--workers", 40)
    run(course, "--workers", 40, "--students", "ash")
    assert asked == [2, 1]
