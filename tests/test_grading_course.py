"""`aecourse grade` on a course: the gradebook, resuming after a kill, other workers, other databases."""

import contextlib
import io
import json
import os
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

pytestmark = needs_sandbox


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
        command("--workers", 2), cwd=course, start_new_session=True, stdout=subprocess.DEVNULL
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
