"""The assignments, as a class meets them: released, solved in many ways, autograded by nbgrader itself.

Most versions of a function are graded in this process, by running the notebook's own test cells on them.
A few go through the whole pipeline, `nbgrader autograde` included.
"""

import importlib.util
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from submissions.elbo import RIGHT, WRONG

ROOT = Path(__file__).resolve().parent.parent
RELEASE_SCRIPT = ROOT / "tools" / "release_assignments.py"
ASSIGNMENTS = sorted(path.name for path in (ROOT / "solutions").iterdir() if path.is_dir())
KINDS = ("checks", "values", "gradients", "stability")
VERSIONS = {version.name: version for version in WRONG + RIGHT}


def read(folder, name="elbo"):
    return nbformat.read(ROOT / folder / name / f"{name}.ipynb", as_version=4)


def grade_id(cell):
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def graded(notebook):
    """{grade_id: cell} of the cells with points, the written task included."""
    return {
        grade_id(cell): cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("points")
    }


def solution_cells(notebook):
    return {grade_id(c): c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")}


SOURCE = read("solutions")
POINTS = {name: cell.metadata.nbgrader.points for name, cell in graded(SOURCE).items()}
AUTOGRADED = {name: points for name, points in POINTS.items() if name != "lost_half"}


# ---- the notebooks as they are in the repository


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("release_assignments", RELEASE_SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_release_is_what_nbgrader_makes_of_the_solutions(tmp_path):
    """Byte for byte. When it fails: make assignments."""
    pytest.importorskip("nbgrader")
    names = (".jupyter", ".nbgrader.log", "autograded", "gradebook.db", "submitted")
    before = [(ROOT / name).exists() for name in names]
    subprocess.run([sys.executable, RELEASE_SCRIPT, "--output", tmp_path], check=True)
    assert [(ROOT / name).exists() for name in names] == before  # nothing is left behind
    fresh, committed = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path, ROOT / "assignments")
    )
    committed = {path: text for path, text in committed.items() if ".ipynb_checkpoints" not in path.parts}
    assert {path.parts[0] for path in fresh} == set(ASSIGNMENTS)
    assert fresh == committed


def test_release_script_refuses_an_unknown_name(tmp_path):
    done = subprocess.run(
        [sys.executable, RELEASE_SCRIPT, "no-such-assignment", "--output", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "no-such-assignment" in done.stderr


def secret_lines(notebook):
    """The lines between the markers of solutions, hidden tests and marking schemes."""
    for cell in notebook.cells:
        for region in re.findall(r"### BEGIN [A-Z ]+\n(.*?)### END", cell.source, flags=re.DOTALL):
            lines = (line.strip() for line in region.splitlines())
            yield from (line for line in lines if len(line) > 20 and not line.startswith("def "))


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
    hidden = {name for name, cell in graded(source).items() if "### BEGIN HIDDEN TESTS" in cell.source}
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


def test_rubric_states_the_points_of_the_cells():
    table = {}
    for row in re.findall(r"^\|(.+)\|$", SOURCE.cells[1].source, flags=re.MULTILINE)[2:]:
        task, *points = row.replace("*", "").split("|")
        table[re.search(r"\w+", task)[0]] = [float(entry) if entry.strip() else 0.0 for entry in points]
    assert table.pop("total")[-1] == sum(POINTS.values()) == 30
    assert table.pop("lost_half")[-1] == POINTS["lost_half"]
    assert set(table) == set(solution_cells(SOURCE))
    for name, row in table.items():
        points = [POINTS.get(f"{name}_{kind}", 0) for kind in KINDS]
        assert row == [*points, sum(points)]
    assert sum(row[-1] for row in table.values()) == sum(AUTOGRADED.values())


# ---- every version of a function, on the notebook's test cells, in this process


CODE = {cell.id: compile(cell.source, cell.id, "exec") for cell in SOURCE.cells if cell.cell_type == "code"}


def grade(version):
    """{kind: message} of the graded cells that fail when `version` replaces the model solution."""
    lost, namespace = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in SOURCE.cells:
            if cell.cell_type != "code":
                continue
            if grade_id(cell) not in AUTOGRADED:
                exec(CODE[cell.id], namespace)
            if grade_id(cell) == "elbo":  # the last function: all are there, so that elbo may call the others
                exec(version.source, namespace)
        for name in AUTOGRADED:
            function, kind = name.rsplit("_", 1)
            if function == version.function:
                try:
                    exec(CODE[name.replace("_", "-")], namespace)
                except Exception as error:
                    lost[kind] = f"{type(error).__name__}: {error}"
    return lost


def message_of(lost):
    """What the first hidden cell to fail says; the visible checks speak for themselves."""
    return next(message for kind, message in lost.items() if kind != "checks")


@pytest.mark.parametrize("version", WRONG, ids=lambda version: version.name)
def test_wrong_version_loses_its_points_and_hears_why(version):
    lost = grade(version)
    assert set(lost) == version.loses
    assert len(lost) > 0
    message = message_of(lost)
    assert version.says in message
    assert not re.search(r"\d\.\d{3}", message), "a message must not give the right numbers away"


@pytest.mark.parametrize("version", RIGHT, ids=lambda version: version.name)
def test_right_version_loses_nothing(version):
    assert grade(version) == {}


def test_most_slips_are_named():
    """test_wrong_version_... holds each message to `says`; here, that few are left without one."""
    assert len(WRONG) >= 40
    assert len(RIGHT) >= 15
    assert len(VERSIONS) == len(WRONG) + len(RIGHT)
    assert sum(bool(version.says) for version in WRONG) >= 0.8 * len(WRONG)
    assert {version.function for version in WRONG} == set(solution_cells(SOURCE))


# ---- whole submissions, through nbgrader

# student: the versions in place of model solutions, and what elbo loses by calling one of them.
SUBMISSIONS = {
    "perfect": ([], ""),
    "wrong-and-tampered": (["kl_mean", "full_logdet_sign"], "values gradients"),
    "wrong-1": (["kl_logvar_as_std", "gaussian_variance_squared"], "checks values gradients"),
    "wrong-2": (["kl_detach", "full_diagonal_only", "gaussian_lost_half"], "gradients"),
    "wrong-3": (["kl_sum_all", "full_determinant"], "values gradients"),
    "wrong-4": (["bernoulli_mean", "gaussian_no_constant"], "values gradients"),
    "wrong-5": (["bernoulli_last_dim", "kl_ready_made"], "checks values gradients"),
    "wrong-6": (["bernoulli_double_sigmoid", "gaussian_exp_as_std"], "values gradients"),
    "wrong-7": (["bernoulli_log_of_sigmoid", "full_log_det", "elbo_beta_unused"], ""),
    "wrong-8": (["elbo_scalar_mean", "kl_lost_half"], ""),
    "right-einsum": (
        ["kl_einsum", "full_einsum_singular_values", "bernoulli_bce", "gaussian_standardised"],
        "",
    ),
    "right-loops": (["kl_loops", "full_loop_trace", "bernoulli_loops", "elbo_loops"], ""),
    "right-log-prob": (["kl_entropy", "full_entropy", "bernoulli_log_prob", "gaussian_log_prob"], ""),
    "right-float64": (["kl_double_inside", "full_cholesky", "gaussian_double_inside", "elbo_by_hand"], ""),
    "right-but-messy": (["kl_warns_and_prints", "full_eigenvalues", "bernoulli_by_hand"], ""),
}
MESS = """
x = mean = logits = kl = sum = list = warnings = _problem = 0
torch.manual_seed(1)
torch.set_default_dtype(torch.float64)
"""


def solved(release, names=()):
    """The release with the model solutions filled in, and the named versions in place of some of them."""
    notebook, answers = deepcopy(release), solution_cells(SOURCE)
    for function, cell in solution_cells(notebook).items():
        cell.source = answers[function].source
    for name in names:
        solution_cells(notebook)[VERSIONS[name].function].source = VERSIONS[name].source
    return notebook


def tampered(notebook):
    """Without some test cells, with others emptied, and with more points than there are."""
    notebook.cells = [c for c in notebook.cells if grade_id(c) not in ("hidden_helper", "gaussian_kl_values")]
    for cell in graded(notebook).values():
        if cell.cell_type == "code":
            cell.source = "pass"
            cell.metadata.nbgrader.points = 100
    return notebook


@pytest.fixture(scope="module")
def course(tmp_path_factory, tool):
    """A course folder with the assignment released and all submissions autograded."""
    pytest.importorskip("nbgrader")
    course = tmp_path_factory.mktemp("course")
    tool.copy_course(course)
    tool.nbgrader("generate_assignment", "elbo", "--create", "--force", course=course)
    release = nbformat.read(course / "assignments" / "elbo" / "elbo.ipynb", as_version=4)
    notebooks = {student: solved(release, names) for student, (names, _) in SUBMISSIONS.items()}
    notebooks["untouched"] = release
    notebooks["right-but-messy"].cells.insert(3, nbformat.v4.new_code_cell(MESS, id="mess"))
    tampered(notebooks["wrong-and-tampered"])
    for student, notebook in notebooks.items():
        folder = course / "submitted" / student / "elbo"
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / "elbo.ipynb")
    tool.nbgrader("autograde", "elbo", course=course)
    return course


@pytest.fixture(scope="module")
def scores(course):
    """{student: {grade_id: points given by the autograder}}"""
    from nbgrader.api import Gradebook

    found = defaultdict(dict)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for submission in gradebook.assignment_submissions("elbo"):
            assert submission.max_score == 30
            for notebook in submission.notebooks:
                for points in notebook.grades:
                    found[submission.student.id][points.name] = points.auto_score
    return found


def errors(course, student):
    """{grade_id: (message, traceback)} of the cells that failed, as the student's feedback shows them."""
    notebook = nbformat.read(course / "autograded" / student / "elbo" / "elbo.ipynb", as_version=4)
    return {
        grade_id(cell): (output.evalue, "\n".join(output.traceback))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    }


@pytest.mark.parametrize("student", SUBMISSIONS)
def test_points(scores, student):
    names, elbo = SUBMISSIONS[student]
    lost = {f"{VERSIONS[name].function}_{kind}" for name in names for kind in VERSIONS[name].loses}
    lost |= {f"elbo_{kind}" for kind in elbo.split()}
    expected = {name: 0.0 if name in lost else points for name, points in AUTOGRADED.items()}
    assert scores[student] == expected | {
        "hidden_helper": 0.0,
        "lost_half": None,
    }  # None: for a person to read


def test_untouched_notebook_gets_nothing(scores):
    assert scores["untouched"] == dict.fromkeys(AUTOGRADED, 0.0) | {"hidden_helper": 0.0, "lost_half": None}


@pytest.mark.parametrize("student", [student for student in SUBMISSIONS if student.startswith("wrong")])
def test_feedback_names_the_slip(course, student):
    shown = errors(course, student)
    for name in SUBMISSIONS[student][0]:
        version = VERSIONS[name]
        lost = {kind: shown[f"{version.function}_{kind}"][0] for kind in KINDS if kind in version.loses}
        assert version.says
        assert version.says in message_of(lost)


def test_feedback_says_whose_mistake_it_is(course):
    """elbo is right in these, and calls a wrong function."""
    for student in ("wrong-and-tampered", "wrong-4", "wrong-6"):
        assert "one of your own functions that it calls is wrong" in errors(course, student)["elbo_values"][0]


@pytest.mark.parametrize("student", ["untouched", "wrong-3", "wrong-5"])
def test_errors_do_not_quote_the_hidden_helper(course, student):
    shown = errors(course, student)
    assert len(shown) > 5
    for _, traceback in shown.values():
        for line in ("_make_grader", "specs[", "student_code", "kl.kl_divergence", "slogdet"):
            assert line not in traceback


# ---- the student's side


def test_validate_tells_a_finished_notebook_from_an_unfinished_one(course, tool):
    """As a student runs it, on the released notebook as it is and solved."""
    report = tool.nbgrader(
        "validate", "assignments/elbo/elbo.ipynb", "submitted/perfect/elbo/elbo.ipynb", course=course
    )
    unfinished, finished = report.split("Success! Your notebook passes all the tests.")
    assert "VALIDATION FAILED ON 5 CELL(S)" in unfinished  # the visible checks; the hidden ones are comments
    assert unfinished.count("Write this function, and delete this line.") >= 5
    assert "VALIDATION FAILED" not in finished


def test_solved_notebook_runs_top_to_bottom_with_torch_alone(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = solved(read("assignments"))
    imported = re.findall(
        r"^\s*(?:import|from) (\w+)", "\n".join(c.source for c in notebook.cells), re.MULTILINE
    )
    assert set(imported) == {"math", "torch"}
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()  # raises at the first error
