"""The isolated grader against the submissions of support/attacks.py, in the real sandbox.

A submission gets exactly its points and a sentence, and the next one finds nothing of it.
"""

import functools
import json
import os
import shutil
import socket
import sqlite3
import time
from pathlib import Path

import pytest

pytest.importorskip("nbformat")
pytest.importorskip("resource", reason="grading is for Linux and macOS")

import nbformat
from support import attacks
from support.attacks import ATTACKS, COURSE, GRADEBOOK, HOST, MARK, NAME, PORT, TARGET
from support.notebooks import AUTOGRADED, ROOT, grade_id
from support.sandbox import INSTALLED, WHOLE, needs_sandbox
from support.submissions import solved

from aecourse.grading import submission, worker
from aecourse.grading.sandbox import Limits, Sandbox, SandboxError
from aecourse.grading.worker import Bundle

pytestmark = needs_sandbox

TEXT = (ROOT / "solutions" / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8")
KINDS = ("checks", "values", "gradients", "stability")
OTHERS = ("gaussian_kl_checks", "bernoulli_log_likelihood_values", "elbo_checks")


def only(notebook, tests):
    """The notebook with these of its tests. All of them would take a second for each submission."""
    away = set(AUTOGRADED[NAME]) - set(tests)
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) not in away]
    return notebook


def source(*tests) -> str:
    return nbformat.writes(only(nbformat.reads(TEXT, as_version=4), tests))


SOURCE = TEXT if WHOLE else source(*(f"{TARGET}_{kind}" for kind in KINDS), *OTHERS)
SHORT = source(f"{TARGET}_checks", f"{TARGET}_values")


def test_sandbox_is_there():
    """Where CI or AECOURSE_TEST_SANDBOX is set, its absence is a failure and no reason to skip."""
    assert INSTALLED, "bubblewrap is not installed, so nothing here was tested: apt install bubblewrap"


def the_sandbox() -> Sandbox:
    return worker._sandbox("bubblewrap", submission.Assignment.of(NAME, TEXT).imports)


def graded(folder: Path, limits: Limits) -> dict:
    data, remarks, problem = None, [], ""
    try:
        path, remarks = submission.find(folder, NAME)
        data = submission.content(path)
    except ValueError as error:
        problem = str(error)
    return worker.grade(Bundle(NAME, "eve", SOURCE, data, tuple(remarks), problem, limits))


# ---- the next submission: a right one, short, that says what it finds

FINDS = """
import os, resource, sys, threading
print([os.listdir(folder) for folder in ("/tmp", "/dev/shm", "/inside", os.getcwd())])
print([process for process in os.listdir("/proc") if process.isdigit()][:-1], threading.active_count())
print([resource.getrlimit(kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)])
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), os.umask(0o22), os.getpid())
print(sorted(os.environ), sys.path, os.statvfs("/tmp").f_bfree)
"""


@functools.cache
def next_notebook() -> bytes:
    notebook = only(solved(NAME), (f"{TARGET}_checks", f"{TARGET}_values"))
    notebook.cells = [cell for cell in notebook.cells if "torch.manual_seed" not in cell.source]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FINDS))
    return nbformat.writes(notebook).encode()


def next_one() -> tuple[dict, str]:
    """The verdict on a right submission, and what it found around it."""
    found = worker.grade(Bundle(NAME, "good", SHORT, next_notebook()))
    first = nbformat.reads(found["notebook"], as_version=4).cells[0]
    return found, "\n".join(output.get("text", output.get("evalue")) for output in first.outputs)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """The sandbox as it is before any attack: what a submission finds, and a gradebook to leave alone."""
    os.environ[HOST] = "secret"
    COURSE.mkdir()
    with sqlite3.connect(GRADEBOOK) as base:
        base.execute("create table grade (auto_score)")
        base.execute("insert into grade values (1)")
    worker.warm()
    next_one()
    verdict, found = next_one()
    assert verdict["status"] == "graded"
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        listener.settimeout(0)
        yield found, the_sandbox(), listener
    worker.close()
    shutil.rmtree(COURSE)
    del os.environ[HOST]


def everything_in(verdict: dict) -> str:
    """All that is said to the student."""
    return "\n".join([*verdict["remarks"], *(test["message"] for test in verdict["tests"])])


@pytest.mark.parametrize("attack", ATTACKS, ids=attacks.names())
@pytest.mark.seconds(0.2)
def test_attack(attack, surroundings, tmp_path):
    before, sandbox, listener = surroundings
    folder = tmp_path / "submitted" / "eve" / NAME
    folder.mkdir(parents=True)
    attack.hand_in(folder)

    start = time.monotonic()
    verdict = graded(folder, attack.limits)
    assert time.monotonic() - start < 60

    words = everything_in(verdict)
    expected = {test["name"]: attack.points[test["name"]] for test in verdict["tests"]}
    assert {test["name"]: test["points"] for test in verdict["tests"]} == expected, words
    assert set(expected) == set(submission.Assignment.of(NAME, SOURCE).tests)
    assert (verdict["status"], verdict["human"]) == (attack.status, attack.human), words
    for test in verdict["tests"]:
        assert bool(test["message"]) == (test["points"] < test["out_of"])
        if test["message"]:
            assert attacks.matches(attack.says, test["message"]), words
    if attack.says and not attack.lost:
        assert attacks.matches(attack.says, "\n".join(verdict["remarks"])), words
    assert words.replace("\n", "").isprintable() or words == ""
    text = json.dumps(verdict, ensure_ascii=False).encode()  # no half characters
    assert len(text) < 3_000_000
    assert b"seed=" not in "\n".join([words, *(t["shown"] for t in verdict["tests"])]).encode()

    # Nothing has reached this machine, or the next submission.
    assert the_sandbox() is sandbox
    verdict, found = next_one()
    assert all(test["points"] == test["out_of"] for test in verdict["tests"]), everything_in(verdict)
    assert len(verdict["tests"]) == 2
    assert (verdict["status"], verdict["remarks"]) == ("graded", [])
    assert found == before
    with pytest.raises(BlockingIOError):
        listener.accept()
    with sqlite3.connect(GRADEBOOK) as base:
        assert base.execute("select auto_score from grade").fetchall() == [(1,)]
    for place in (Path("/tmp"), Path("/dev/shm"), Path.home(), Path.cwd(), ROOT, COURSE, folder.parent):
        assert not (place / MARK).exists()


def test_no_two_attacks_have_one_name():
    assert len(set(attacks.names())) == len(attacks.names())


def test_refuses_to_start_without_a_sandbox(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        Sandbox()
    with pytest.raises(SandboxError, match="docker is not installed"):
        Sandbox("docker:torch")
    with pytest.raises(SandboxError, match=r"There is no sandbox 'docker': .* docker:IMAGE"):
        Sandbox("docker")
    with pytest.raises(SandboxError, match="There is no sandbox 'chroot'"):
        Sandbox("chroot")


def test_a_lost_sandbox_is_replaced(surroundings):
    """Whoever kills it from outside, the kernel included."""
    the_sandbox().process.kill()
    the_sandbox().process.wait()
    verdict, _ = next_one()
    assert (verdict["status"], verdict["remarks"]) == ("graded", [])


@pytest.mark.parametrize("name", ["endless-loop", "goes-on-after-the-verdict", "memory"])
def test_unsafe_has_limits_all_the_same(name, surroundings, tmp_path):
    """Without a sandbox a submission still ends when its limits say so, and leaves no process behind."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    folder = tmp_path / "submitted" / "eve" / NAME
    folder.mkdir(parents=True)
    attack.hand_in(folder)
    data = (folder / f"{NAME}.ipynb").read_bytes()
    bundle = Bundle(NAME, "eve", SHORT, data, limits=attack.limits, sandbox="unsafe")
    verdict = worker.grade(bundle)
    assert verdict["status"] == attack.status
    assert all(attack.points[test["name"]] == test["points"] for test in verdict["tests"])
    verdict = worker.grade(Bundle(NAME, "good", SHORT, next_notebook(), sandbox="unsafe"))
    assert all(test["points"] == test["out_of"] for test in verdict["tests"])
