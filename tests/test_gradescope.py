"""The autograder for Gradescope, as its container runs it, and the workflow for GitHub Classroom."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("nbgrader")
pytest.importorskip("resource", reason="grading is for Linux and macOS")

import nbformat
import yaml
from packaging.requirements import Requirement
from support import container
from support.notebooks import AUTOGRADED, ROOT, SOURCE, grade_id, secret_lines
from support.sandbox import needs_sandbox
from support.submissions import solved

import aecourse.grading
from aecourse.cli import main
from aecourse.grading import gradescope

NAME = "elbo"
TARGET = "full_gaussian_kl"
POINTS = {name: points for name, points in AUTOGRADED[NAME].items() if name.rpartition("_")[0] == TARGET}
TEMPLATES = Path(aecourse.grading.__file__).parent / "templates"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """What the command writes; of an assignment with the tests of one function, which take a second."""
    course = tmp_path_factory.mktemp("gradescope")
    shutil.copy(ROOT / "nbgrader_config.py", course)
    notebook = nbformat.from_dict(SOURCE[NAME])
    notebook.cells = [c for c in SOURCE[NAME].cells if grade_id(c) not in set(AUTOGRADED[NAME]) - set(POINTS)]
    (course / "solutions" / NAME).mkdir(parents=True)
    nbformat.write(notebook, course / "solutions" / NAME / f"{NAME}.ipynb")
    path = course / "autograder.zip"
    command = ["gradescope", NAME, "--course", str(course), "--output", str(path)]
    assert main([*command, "--hidden-tests", "after_published"]) == 0
    return path


@pytest.fixture
def autograder(archive, tmp_path) -> Path:
    """Gradescope's folder, with the archive where its container has it."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "source")
    (tmp_path / "submission").mkdir()
    return tmp_path


def test_archive_holds_what_the_container_needs_and_no_more(archive):
    with zipfile.ZipFile(archive) as file:
        names, modes = file.namelist(), {e.filename: e.external_attr >> 16 for e in file.infolist()}
        assert json.loads(file.read("autograder.json")) == {"assignment": NAME, "hidden": "after_published"}
        requirements = file.read("requirements.txt").decode().split()
    assert [name for name in names if not re.fullmatch(r"aecourse/[\w/]+\.py", name)] == [
        *("setup.sh", "run_autograder", "requirements.txt", "autograder.json", f"{NAME}.ipynb"),
    ]
    assert "aecourse/checks/elbo.py" in names
    assert modes["setup.sh"] == modes["run_autograder"] == 0o755
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in map(str, map(Requirement, requirements)):
        assert f'"{requirement}"' in text  # the bounds of the package's own


@pytest.mark.parametrize("script", ["setup.sh", "run_autograder"])
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", TEMPLATES / script], check=True)
    text = (TEMPLATES / script).read_text()
    assert "chmod" in text
    assert "/autograder/source" in text


def checked(results: dict) -> dict:
    """{test: points} of results in Gradescope's form."""
    assert set(results) == {
        *("tests", "output", "output_format", "visibility", "stdout_visibility", "execution_time"),
        "extra_data",
    }
    assert results["stdout_visibility"] == "hidden"
    assert [test["name"] for test in results["tests"]] == list(POINTS)
    for test in results["tests"]:
        assert test["max_score"] == POINTS[test["name"]]
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
        hidden = not test["name"].endswith("_checks")
        assert test["visibility"] == ("after_published" if hidden else "visible")
        assert test["output_format"] == "text"
        assert bool(test["extra_data"]["misconceptions"]) <= (test["status"] == "failed")
    return {test["name"]: test["score"] for test in results["tests"]}


def graded(autograder: Path) -> None:
    """Run the archive's program; where there is root, as Gradescope does: by the script, in a container that
    can make no sandbox."""
    command, own = [sys.executable, "-m", "aecourse.grading.gradescope", str(autograder)], {}
    if container.POSSIBLE:
        python = Path(sys.executable)
        for name in ("results", "bin"):
            (autograder / name).mkdir()
        script = f'#!/bin/sh\nexec {python.parent.resolve() / python.name} "$@"\n'
        (autograder / "bin" / "python").write_text(script)
        (autograder / "bin" / "python").chmod(0o755)
        places = {f"/autograder/{name}": autograder / name for name in ("submission", "results")}
        places |= {"/opt/aecourse/bin": autograder / "bin", container.CLOSED: autograder / "source"}
        script = f"{container.CLOSED}/run_autograder"
        command = container.inside("bash", script, landlock=False, folders=places)
    else:
        own = {"PYTHONPATH": str(autograder / "source")}
    done = subprocess.run(
        command, cwd=autograder / "source", env=os.environ | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_sandbox
@pytest.mark.seconds(8)
def test_grades_a_submission(autograder):
    nbformat.write(solved(NAME, ["full_logdet_sign"]), autograder / "submission" / f"{NAME}.ipynb")
    graded(autograder)
    results = json.loads((autograder / "results" / "results.json").read_text())
    points = checked(results)
    lost = {name for name, score in points.items() if score < POINTS[name]}
    assert lost == set(POINTS)
    failed = next(test for test in results["tests"] if test["name"] == f"{TARGET}_values")
    assert failed["extra_data"]["misconceptions"]
    assert failed["extra_data"]["misconceptions"][0] in failed["output"]
    assert results["extra_data"] == {"status": "graded", "needs_a_person": False}
    secrets = [line for line in secret_lines(SOURCE[NAME]) if line in json.dumps(results)]
    assert secrets == []


def test_nothing_handed_in(autograder):
    """There are results all the same, and they say what is missing."""
    results = gradescope.main(autograder)
    assert set(checked(results).values()) == {0.0}
    assert f"{NAME}.ipynb is missing" in results["output"]


# --------------------------------------------------------------------------- GitHub Classroom


@pytest.mark.seconds(10)
def test_workflow_of_github_classroom(tmp_path):
    """Its last command, in a repository as it says: a right notebook passes, a missing one does not."""
    workflow = yaml.safe_load((TEMPLATES / "classroom.yml").read_text())
    assert "push" in workflow[True]  # which YAML makes of `on`
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["check-submission"]["steps"]
    assert "aecourse[check]" in steps[-2]["run"]
    release = ROOT / "assignments" / NAME / f"{NAME}.ipynb"
    (tmp_path / ".as_given").mkdir()
    (tmp_path / ".as_given" / f"{NAME}.ipynb").write_bytes(release.read_bytes())
    own = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def run() -> subprocess.CompletedProcess:
        command = ["bash", "-e", "-c", steps[-1]["run"]]
        return subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)

    nbformat.write(solved(NAME), tmp_path / f"{NAME}.ipynb")
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the visible checks pass" in done.stdout
    (tmp_path / f"{NAME}.ipynb").unlink()
    done = run()
    assert done.returncode == 1
    assert f"There is no file {NAME}.ipynb" in done.stderr
