"""The grader with a container for a sandbox, where somebody has one: AECOURSE_TEST_CONTAINER=podman:IMAGE.

The image needs Python, torch and IPython, and nothing of the course.

And the grader within a container that can make no sandbox, where another user takes its place. Root can have
such a container from bubblewrap (support/container.py); the tests of this file are then run in there.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("nbformat")
pytest.importorskip("resource", reason="grading is for Linux and macOS")

import nbformat
from support import attacks, container
from support.attacks import ATTACKS, HOST, NAME
from support.notebooks import AUTOGRADED, ROOT
from support.sandbox import WHOLE
from support.submissions import solved

from aecourse.grading import submission, worker
from aecourse.grading.sandbox import Limits, Sandbox, SandboxError
from aecourse.grading.worker import Bundle

KIND = os.environ.get("AECOURSE_TEST_CONTAINER", "")
needs_kind = pytest.mark.skipif(
    not KIND, reason="needs a container: set AECOURSE_TEST_CONTAINER to podman:IMAGE or docker:IMAGE"
)
needs_image = pytest.mark.skipif(":" not in KIND, reason=needs_kind.kwargs["reason"])

SOURCE = (ROOT / "solutions" / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8")
PROXY = "http://tutor:geheim@proxy:1"
FINDS = """
import os
for walk in (os.walk("/"), os.walk("/tmp")):
    for top, folders, files in walk:
        folders[:] = [folder for folder in folders if os.path.join(top, folder) != "/proc"]
        places = [top, *(os.path.join(top, file) for file in files)]
        print(*(p for p in places if os.access(p, os.W_OK) and not os.path.islink(p)), sep="\\n")
"""


@pytest.fixture(scope="module")
def grader():
    """With secrets in its environment, as an instructor's has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOST, "secret")
        patch.setenv("https_proxy", PROXY)
        yield
        worker.close()


def graded(data: bytes | None, limits: Limits = Limits(), remarks=(), problem="") -> dict:  # noqa: B008
    return worker.grade(Bundle(NAME, "eve", SOURCE, data, tuple(remarks), problem, limits, KIND))


def points(verdict: dict) -> dict:
    return {test["name"]: test["points"] for test in verdict["tests"]}


@needs_kind
def test_a_right_submission_gets_all_points_and_finds_nothing_to_write_to(grader):
    notebook = solved(NAME)
    look = FINDS + "print(os.environ)"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(look))
    verdict = graded(nbformat.writes(notebook).encode())
    assert points(verdict) == AUTOGRADED[NAME]
    (output,) = nbformat.reads(verdict["notebook"], as_version=4).cells[0].outputs
    *places, environment = [line for line in output["text"].splitlines() if line]
    assert "/tmp" in places
    assert {place for place in places if not place.startswith(("/tmp", "/dev/"))} == set()
    assert PROXY not in environment
    assert HOST not in environment


@needs_kind
@pytest.mark.parametrize("attack", ATTACKS, ids=attacks.names())
def test_attack(attack, grader, tmp_path):
    if attack.name == "reads-everything":
        pytest.skip("finds the image's own /etc/passwd")
    folder = tmp_path / "submitted" / "eve" / NAME
    folder.mkdir(parents=True)
    attack.hand_in(folder)
    try:
        path, remarks = submission.find(folder, NAME)
        verdict = graded(submission.content(path), attack.limits, remarks)
    except ValueError as error:
        verdict = graded(None, problem=str(error))
    assert points(verdict) == attack.points
    assert (verdict["status"], verdict["human"]) == (attack.status, attack.human)


@pytest.mark.skipif(KIND != "user", reason="run by test_another_user_in_a_container")
def test_nothing_is_left_of_a_user(grader):
    """No process and no file, wherever everybody may write."""
    notebook = solved(NAME)
    write = """
import os, time, threading
for folder in ("/tmp", "/var/tmp", "/dev/shm", os.getcwd()):
    try:
        os.makedirs(folder + "/left/behind")
        os.chmod(folder + "/left", 0o777)
    except OSError:
        pass
threading.Thread(target=time.sleep, args=(1000,)).start()
"""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(write))
    assert points(graded(nbformat.writes(notebook).encode())) == AUTOGRADED[NAME]
    sandbox = worker._sandbox(KIND, submission.Assignment.of(NAME, SOURCE).imports)
    assert sandbox.user not in (0, None)
    for place in ("/tmp", "/var/tmp", "/dev/shm"):
        for folder, folders, files in os.walk(place):
            names = [os.path.join(folder, name) for name in (*folders, *files)]
            assert [name for name in names if os.lstat(name).st_uid == sandbox.user] in (
                [],
                [f"{sandbox.scratch.name}/own"],
            )
    running = [path for path in Path("/proc").glob("[0-9]*") if path.stat().st_uid == sandbox.user]
    assert running == [Path(f"/proc/{sandbox.process.pid}")]


FEW = "kills-the-others or reads-the-solutions or opens-sockets or fork-bomb or of_a_user or limits-the-first"


@pytest.mark.skipif(not container.POSSIBLE, reason="needs root, who makes the container, and bubblewrap")
@pytest.mark.skipif(bool(KIND), reason="is within one")
@pytest.mark.parametrize("landlock", [False, True], ids=["old-kernel", "landlock"] if WHOLE else None)
@pytest.mark.seconds(15)
def test_another_user_in_a_container(landlock):
    """All of this file's tests, with a sandbox of kind `user` where no namespace can be made."""
    if landlock and not WHOLE:
        pytest.skip("the weekly run")
    file = f"{container.CLOSED}/tests/test_grading_container.py"
    command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    command += [] if WHOLE else ["-k", FEW]
    done = subprocess.run(
        container.inside(*command, landlock=landlock),
        env=os.environ | {"AECOURSE_TEST_CONTAINER": "user"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@needs_image
def test_an_image_that_is_not_there_is_not_fetched():
    tool = KIND.partition(":")[0]
    with pytest.raises(SandboxError, match="did not start"):
        Sandbox(f"{tool}:localhost/no-such-image").ready()


@needs_image
def test_a_container_ends_with_its_grader():
    tool = KIND.partition(":")[0]

    def running() -> set[str]:
        command = [tool, "ps", "--quiet", "--no-trunc"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    before = running()
    make = f"from aecourse.grading.sandbox import Sandbox; sandbox = Sandbox({KIND!r}).ready()"
    script = f"{make}; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        began = running() - before
        process.send_signal(signal.SIGKILL)
    assert len(began) == 1
    deadline = time.monotonic() + 20
    while began & running() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not began & running()
