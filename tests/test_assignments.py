"""The assignments, as a class meets them: released, solved in several ways, autograded by nbgrader itself.

test_mutants.py tests what the hidden tests find; here are the notebooks and the pipeline around them.
"""

import html
import os
import re
import shutil
import subprocess
import sys
import sysconfig

import nbformat
import pytest
import release_assignments
from release_assignments import copy_course, nbgrader
from support.notebooks import (
    ASSIGNMENTS,
    AUTOGRADED,
    POINTS,
    ROOT,
    SOURCE,
    WRITTEN,
    grade_id,
    graded,
    read,
    secret_lines,
    solution_cells,
)
from support.submissions import SUBMISSIONS, VERSIONS, solved, tampered

RELEASE_SCRIPT = release_assignments.__file__


# ---- the notebooks as they are in the repository


def files(folder):
    """{path in the folder: content}"""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".ipynb_checkpoints" not in path.parts
    }


@pytest.mark.seconds(8)
def test_release_script_writes_the_release_and_leaves_nothing_behind(tmp_path):
    pytest.importorskip("nbgrader")
    names = (".jupyter", ".nbgrader.log", "autograded", "gradebook.db", "submitted")
    before = [(ROOT / name).exists() for name in names]
    subprocess.run([sys.executable, RELEASE_SCRIPT, "elbo", "--output", tmp_path], check=True)
    assert [(ROOT / name).exists() for name in names] == before
    assert {path.name for path in tmp_path.iterdir()} == {"elbo"}
    assert files(tmp_path / "elbo") == files(ROOT / "assignments" / "elbo")


def test_every_assignment_is_released():
    released = {
        path.relative_to(ROOT / "assignments").parts[0] for path in (ROOT / "assignments").rglob("*.*")
    }
    assert released == set(ASSIGNMENTS)


def test_release_script_refuses_an_unknown_name(tmp_path):
    done = subprocess.run(
        [sys.executable, RELEASE_SCRIPT, "no-such-assignment", "--output", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no-such-assignment" in done.stderr


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_release_gives_nothing_away(name):
    source, release = read("solutions", name), read("assignments", name)
    text = "\n".join(cell.source for cell in release.cells)
    secrets = set(secret_lines(source))
    assert len(secrets) > 10
    assert [secret for secret in secrets if secret in text] == []
    assert not re.search("BEGIN|END|MARK SCHEME", text)
    for cell in solution_cells(release).values():
        assert "raise NotImplementedError" in cell.source
    hidden = {task for task, cell in graded(source).items() if "### BEGIN HIDDEN TESTS" in cell.source}
    assert hidden
    for cell in release.cells:  # a comment says what will be tested, and there is nothing else
        if grade_id(cell) in hidden:
            assert cell.source.startswith("# Hidden tests: ")
            assert all(line.startswith("# ") for line in cell.source.splitlines())


@pytest.mark.parametrize("name", ASSIGNMENTS)
@pytest.mark.parametrize("folder", ["solutions", "assignments"])
def test_notebooks_are_clean(folder, name):
    notebook = read(folder, name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z0-9-]{1,40}", cell.id)
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_rubric_states_the_points_of_the_cells(name):
    rules = next(cell.source for cell in SOURCE[name].cells if "| task |" in cell.source)
    head, _, *rows = re.findall(r"^\|(.+)\|$", rules, flags=re.MULTILINE)
    kinds = ["checks" if word.strip() == "visible checks" else word.strip() for word in head.split("|")[1:-1]]
    table = {}
    for row in rows:
        task, *points = row.replace("*", "").split("|")
        table[re.search(r"\w+", task)[0]] = [float(entry) if entry.strip() else 0.0 for entry in points]
    assert table.pop("total")[-1] == sum(POINTS[name].values())
    for task in WRITTEN[name]:
        assert table.pop(task)[-1] == POINTS[name][task]
    assert set(table) == set(solution_cells(SOURCE[name]))
    for task, row in table.items():
        points = [POINTS[name].get(f"{task}_{kind}", 0) for kind in kinds]
        assert row == [*points, sum(points)]
    assert sum(row[-1] for row in table.values()) == sum(AUTOGRADED[name].values())


# ---- whole submissions, through nbgrader

MESS = """
x = mean = logits = kl = sum = list = warnings = grade = 0
torch.manual_seed(1)
torch.set_default_dtype(torch.float64)
"""


@pytest.fixture(scope="module", params=ASSIGNMENTS)
def name(request):
    """Each assignment in turn, for the tests of its course."""
    return request.param


only_elbo = pytest.mark.parametrize("name", ["elbo"], indirect=True)


@pytest.fixture(scope="module")
def gradebook(tmp_path_factory):
    """An empty one, to copy: nbgrader starts alembic for each that it makes, which takes seconds."""
    pytest.importorskip("nbgrader")
    from nbgrader.api import Gradebook

    path = tmp_path_factory.mktemp("gradebook") / "gradebook.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
        Gradebook(f"sqlite:///{path}", course_id="aecourse").close()
    return path


@pytest.fixture(scope="module")
def course(tmp_path_factory, name, gradebook):
    """A course folder with one assignment: released, solved and untouched, a class for `elbo`; autograded."""
    course = tmp_path_factory.mktemp("course")
    copy_course(course)
    shutil.copy(gradebook, course)
    nbgrader("generate_assignment", name, "--create", "--force", course=course)
    notebooks = {"perfect": solved(name), "untouched": read("assignments", name)}
    if name == "elbo":
        notebooks |= {student: solved(name, versions) for student, (versions, _) in SUBMISSIONS.items()}
        notebooks["right-but-messy"].cells.insert(4, nbformat.v4.new_code_cell(MESS, id="mess"))
        tampered(notebooks["wrong-and-tampered"])
    for student, notebook in notebooks.items():
        folder = course / "submitted" / student / name
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    nbgrader("autograde", name, course=course)
    nbgrader("generate_feedback", name, course=course)
    return course


@pytest.fixture(scope="module")
def scores(course, name):
    """{student: {grade_id: points given by the autograder}}"""
    from nbgrader.api import Gradebook

    found = {}
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for submission in gradebook.assignment_submissions(name):
            assert submission.max_score == sum(POINTS[name].values())
            (notebook,) = submission.notebooks
            found[submission.student.id] = {points.name: points.auto_score for points in notebook.grades}
    return found


def errors(course, student, name):
    """{grade_id: (message, traceback)} of the cells that failed when the submission was run."""
    notebook = nbformat.read(course / "autograded" / student / name / f"{name}.ipynb", as_version=4)
    return {
        grade_id(cell): (output.evalue, "\n".join(output.traceback))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    }


def for_a_person(name):
    return dict.fromkeys(WRITTEN[name])


@pytest.mark.seconds(30)
def test_release_is_what_nbgrader_makes_of_the_solutions(course, name):
    """Byte for byte. When it fails: make assignments."""
    assert files(course / "assignments" / name) == files(ROOT / "assignments" / name)


def test_model_solution_gets_all_points_and_an_untouched_notebook_none(course, scores, name):
    assert scores["perfect"] == AUTOGRADED[name] | for_a_person(name)
    assert scores["untouched"] == dict.fromkeys(AUTOGRADED[name], 0.0) | for_a_person(name)
    assert errors(course, "perfect", name) == {}
    unfinished = [message for message, _ in errors(course, "untouched", name).values()]
    assert sum("is still to be written" in message for message in unfinished) >= len(
        solution_cells(SOURCE[name])
    )


@only_elbo
@pytest.mark.parametrize("student", SUBMISSIONS)
def test_points(scores, student):
    names, elbo = SUBMISSIONS[student]
    lost = {f"{VERSIONS[name].function}_{kind}" for name in names for kind in VERSIONS[name].loses}
    lost |= {f"elbo_{kind}" for kind in elbo.split()}
    expected = {task: 0.0 if task in lost else points for task, points in AUTOGRADED["elbo"].items()}
    assert scores[student] == expected | for_a_person("elbo")


@only_elbo
@pytest.mark.parametrize("student", [student for student in SUBMISSIONS if student.startswith("wrong")])
def test_feedback_names_the_slip(course, student):
    page = (course / "feedback" / student / "elbo" / "elbo.html").read_text()
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))
    for name in SUBMISSIONS[student][0]:
        assert VERSIONS[name].says
        assert VERSIONS[name].says in text
    assert "To read again: https://" in text


@only_elbo
def test_feedback_says_whose_mistake_it_is(course):
    """elbo is right in these, and calls a wrong function."""
    for student in ("wrong-and-tampered", "wrong-2"):
        shown = errors(course, student, "elbo")
        kind = "values" if "elbo_values" in shown else "gradients"
        assert re.search("one of your own functions|Repair these first|no gradient", shown[f"elbo_{kind}"][0])


def test_feedback_and_errors_hold_no_line_of_the_hidden_tests(course, name):
    secrets = {line for line in secret_lines(SOURCE[name]) if not line.startswith("from ")}
    solutions = {line for cell in solution_cells(SOURCE[name]).values() for line in cell.source.splitlines()}
    secrets -= {line.strip() for line in solutions}  # the perfect submission shows these itself
    assert any("seed=" in line for line in secrets)
    for student in {"perfect", "untouched", *(SUBMISSIONS if name == "elbo" else ())}:
        page = (course / "feedback" / student / name / f"{name}.html").read_text()
        text = html.unescape(re.sub(r"<[^>]+>", "", page))
        tracebacks = "\n".join(traceback for _, traceback in errors(course, student, name).values())
        for secret in secrets:
            assert secret not in text
            assert secret not in tracebacks
        assert "HIDDEN TESTS" not in text
        assert "MARK SCHEME" not in text


# ---- the student's side


@pytest.mark.seconds(15)
@pytest.mark.parametrize("name", ["vae"], indirect=True)  # that the checks fail, autograding shows for each
def test_validate_tells_a_finished_notebook_from_an_unfinished_one(course, name):
    """As a student runs it, on the released notebook as it is and solved."""
    report = nbgrader(
        "validate",
        f"assignments/{name}/{name}.ipynb",
        f"submitted/perfect/{name}/{name}.ipynb",
        course=course,
    )
    unfinished, finished = report.split("Success! Your notebook passes all the tests.")
    tasks = len(solution_cells(SOURCE[name]))
    assert (
        f"VALIDATION FAILED ON {tasks} CELL(S)" in unfinished
    )  # the visible checks; the hidden are comments
    assert unfinished.count("is still to be written") >= tasks
    assert "VALIDATION FAILED" not in finished


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_notebook_asks_for_nothing_that_colab_lacks(name):
    source = "\n".join(cell.source for cell in solved(name).cells if cell.cell_type == "code")
    assert "nbgrader" not in source


@pytest.mark.seconds(10)
@pytest.mark.parametrize("name", ["gradients"])  # it has the most code of its own; autograding runs them all
def test_solved_notebook_runs_top_to_bottom_on_plain_python(tmp_path, monkeypatch, name):
    """Colab's layout: no nbgrader, no extension; torch, and the library that the first cell installs."""
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    NotebookClient(solved(name), timeout=120, kernel_name="python3").execute()  # raises at the first error
