"""Every known version of every function, wrong or right, graded by the notebook's own test cells.

A wrong version must lose exactly the points it should, and hear why; a right one must lose none. A sample of
them goes through the isolated grader, too: with AECOURSE_TEST_SANDBOX=all, all of them, which takes an hour.
"""

import copy
import functools
import importlib
import json
import re
import time
import warnings

import nbformat
import pytest
import torch
from mutants import Version
from support.notebooks import ASSIGNMENTS, AUTOGRADED, SOURCE, grade_id, graded, solution_cells
from support.sandbox import WHOLE, needs_sandbox

from aecourse import checks

MUTANTS = {name: importlib.import_module(f"mutants.{name}") for name in ASSIGNMENTS}
UNUSED = ("colab", "together-code", "experiment-cell")  # an installation, and demonstrations


def failures(name, version):
    """{kind: error} of the graded cells that fail when `version` replaces the model solution.

    The version is defined after all model solutions, as a student's cell is run again after a change."""
    lost, namespace = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in SOURCE[name].cells:
            if cell.cell_type == "code" and grade_id(cell) not in AUTOGRADED[name] and cell.id not in UNUSED:
                exec(compile(cell.source, cell.id, "exec"), namespace)
        exec(version.source, namespace)
        for task, cell in graded(SOURCE[name]).items():
            function, _, kind = task.rpartition("_")
            if function == version.function and task in AUTOGRADED[name]:
                try:
                    exec(compile(cell.source, cell.id, "exec"), namespace)
                except Exception as error:
                    lost[kind] = error
    return lost


def grade(name, version):
    """{kind: message}, as `failures`."""
    return {kind: f"{type(error).__name__}: {error}" for kind, error in failures(name, version).items()}


def message_of(lost):
    """What the first hidden cell to fail says."""
    return next((message for kind, message in lost.items() if kind != "checks"), "")


WRONG = [(name, version) for name in ASSIGNMENTS for version in MUTANTS[name].WRONG]
RIGHT = [(name, version) for name in ASSIGNMENTS for version in MUTANTS[name].RIGHT]


def label(value):
    return value if isinstance(value, str) else value.name


@pytest.mark.parametrize(("name", "version"), WRONG, ids=label)
def test_wrong_version_loses_its_points_and_hears_why(name, version):
    kinds = {
        task.rpartition("_")[2] for task in AUTOGRADED[name] if task.rpartition("_")[0] == version.function
    }
    errors = failures(name, version)
    assert set(errors) == version.loses & kinds
    assert len(errors) > 0
    lost = {kind: f"{type(error).__name__}: {error}" for kind, error in errors.items()}
    message = message_of(lost) or lost["checks"]
    assert version.says in message
    assert all(text.startswith("Wrong: ") for text in lost.values())  # ours, in words
    assert not re.search(r"\d\.\d{6}", message), "a message must not give the right numbers away"
    slips = filed(name, version, errors)
    assert all(any(words in slip for slip in slips) for words in version.filed.split("; "))


def filed(name, version, errors):
    """What the report of a class lists for a submission with these failed checks: the slips by name."""
    pytest.importorskip("nbgrader")
    from aecourse.grading import pages, submission, worker

    tests = [
        worker.Test(f"{version.function}_{kind}", 0.0, 1.0, error.sentence, **worker.parts_of(error))
        for kind, error in errors.items()
    ]
    verdict = worker.Verdict(name, "alice", "key", tests=tests)
    verdict = worker.Verdict.of(json.loads(json.dumps(verdict.as_dict())))
    assignment = submission.Assignment(name, SOURCE[name])
    return [slip["message"].words for slip in pages._slips([verdict], assignment)]


@pytest.mark.parametrize(("name", "version"), RIGHT, ids=label)
def test_right_version_loses_nothing(name, version):
    assert grade(name, version) == {}


SETTINGS = {
    "torch.distributions.Distribution.set_default_validate_args(False)": lambda: (
        torch.distributions.Distribution._validate_args
    ),
    "torch.set_default_dtype(torch.float64)": torch.get_default_dtype,
    "torch.set_grad_enabled(False)": torch.is_grad_enabled,
}


@pytest.mark.parametrize("statement", SETTINGS)
def test_settings_that_a_function_leaves_behind_reach_no_other(statement):
    reached = []

    def gaussian_kl(mean, logvar):
        exec(statement)
        reached.append(SETTINGS[statement]())
        return 0.5 * (mean**2 + logvar.exp() - logvar - 1).sum(1)

    before = SETTINGS[statement]()
    checks.grade("gaussian_kl", "values", {"gaussian_kl": gaussian_kl}, seed=1)
    assert reached[-1] != before
    assert SETTINGS[statement]() == before


def test_a_call_that_raises_comes_at_its_turn():
    """All calls of a test are made at once; what is told is the first that is wrong."""
    task, draw = checks.find("gaussian_kl"), checks.Draw(1)
    calls = [(case.arguments, {}, case.label) for case in task.cases(draw)]

    def gaussian_kl(mean, logvar):
        if mean is calls[1][0][0]:
            raise ValueError("the second")
        return mean.sum(1)

    results = checks.Student(task, {"gaussian_kl": gaussian_kl}).each(calls)
    assert torch.equal(next(results), calls[0][0][0].sum(1))
    with pytest.raises(checks.Wrong, match=re.escape(f"({calls[1][2]}) raised ValueError: the second")):
        next(results)


# ---- in the sandbox


@functools.cache
def parts(name, function):
    """The cells that a version of a function needs, and the function's tests."""
    cells = [cell for cell in SOURCE[name].cells if cell.cell_type == "code" and cell.id not in UNUSED]
    before = [cell for cell in cells if grade_id(cell) not in AUTOGRADED[name]]
    return before, [cell for cell in cells if (grade_id(cell) or "").rpartition("_")[0] == function]


def isolated(name, version):
    """As `grade`, with the version in the sandbox and the tests outside."""
    from aecourse.grading import worker

    before, tests = parts(name, version.function)
    written = nbformat.v4.new_code_cell(version.source, id="version")
    source, handed_in = (
        nbformat.writes(nbformat.v4.new_notebook(cells=copy.deepcopy(cells)))
        for cells in ([*before, *tests], [*before, written, *tests])
    )
    verdict = worker.grade(worker.Bundle(name, "student", source, handed_in.encode()))
    assert verdict["status"] == "graded"
    lost = [test for test in verdict["tests"] if test["points"] < test["out_of"]]
    return {test["name"].rpartition("_")[2]: f"Wrong: {test['message']}" for test in lost}


EVERY = 1 if WHOLE else 60


@needs_sandbox
@pytest.mark.parametrize("name", ASSIGNMENTS)
@pytest.mark.seconds(6)
def test_versions_get_the_same_in_the_sandbox(name):
    for version in [*MUTANTS[name].WRONG, *MUTANTS[name].RIGHT][::EVERY]:
        lost = isolated(name, version)
        assert set(lost) == version.loses & {
            grade_id(c).rpartition("_")[2] for c in parts(name, version.function)[1]
        }
        assert version.says in (message_of(lost) or lost.get("checks", "")), version.name


@needs_sandbox
@pytest.mark.parametrize("name", ASSIGNMENTS)
@pytest.mark.seconds(6)
def test_model_solutions_get_all_points_in_the_sandbox(name):
    for function in solution_cells(SOURCE[name]):
        assert isolated(name, Version(function, function, "", frozenset(), "")) == {}


# ---- the lists


@pytest.mark.parametrize("name", ASSIGNMENTS)
@pytest.mark.seconds(3)
def test_model_solutions_are_graded_in_less_than_a_minute(name):
    start, lost = time.process_time(), {}
    for function in solution_cells(SOURCE[name]):
        lost |= grade(name, Version(function, function, "", frozenset(), ""))
    assert lost == {}
    assert time.process_time() - start < 60


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_function_has_wrong_and_right_versions(name):
    mutants = MUTANTS[name]
    functions = set(solution_cells(SOURCE[name]))
    assert {version.function for version in mutants.WRONG} == functions
    assert {version.function for version in mutants.RIGHT} == functions
    names = [version.name for version in mutants.WRONG + mutants.RIGHT]
    assert len(names) == len(set(names))


def test_most_slips_are_named():
    """test_wrong_version_... holds each message to `says`; here, that few are left without one."""
    assert len(WRONG) >= 120
    assert len(RIGHT) >= 50
    assert sum(bool(version.says) for _, version in WRONG) >= 0.8 * len(WRONG)
