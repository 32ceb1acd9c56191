"""Every known version of every function, wrong or right, graded by the notebook's own test cells.

A wrong version must lose exactly the points it should, and hear why; a right one must lose none. A sample of
them goes through the isolated grader, too: with AECOURSE_TEST_SANDBOX=all, all of them, which takes an hour.
"""

import contextlib
import copy
import functools
import importlib
import json
import os
import re
import time
import types
import warnings
from itertools import pairwise

import nbformat
import pytest
import torch
from mutants import Version
from support.notebooks import ASSIGNMENTS, AUTOGRADED, SOURCE, grade_id, graded, solution_cells
from support.sandbox import WHOLE, needs_sandbox

from aecourse import checks

MUTANTS = {name: importlib.import_module(f"mutants.{name}") for name in ASSIGNMENTS}
UNUSED = ("colab", "together-code", "experiment-cell")  # an installation, and demonstrations


def failures(name, version, kinds=()):
    """{kind: error} of the graded cells, or of these kinds of them, that fail when `version` replaces the
    model solution.

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
            if function == version.function and task in AUTOGRADED[name] and kind in (kinds or {kind}):
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
        if torch.equal(mean, calls[1][0][0]):
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
    """As in one process, cell by cell and word by word, which is what stock nbgrader gives.

    Only the place of an error is told in the sandbox alone: here a version is no cell."""
    place = re.compile(r",? in line \d+ of its cell, at `.*?`")
    for version in [*MUTANTS[name].WRONG, *MUTANTS[name].RIGHT][::EVERY]:
        here = {kind: f"Wrong: {error.sentence}" for kind, error in failures(name, version).items()}
        there = {kind: place.sub("", words) for kind, words in isolated(name, version).items()}
        assert there == here, version.name


@needs_sandbox
@pytest.mark.parametrize("name", ASSIGNMENTS)
@pytest.mark.seconds(6)
def test_model_solutions_get_all_points_in_the_sandbox(name):
    for function in solution_cells(SOURCE[name]):
        assert isolated(name, Version(function, function, "", frozenset(), "")) == {}


# ---- one submission after another

# What the answers of a function can do to what it is given, and to what outlives a call.
HARM = {
    "other_numbers": "t.mul_(1.7)",
    "far_numbers": "t.fill_(1e300 if t.dtype == torch.float64 else 1e30)",
    "not_a_number": "t.fill_(float('nan'))",
    "through_a_view": "t.view(-1)[:] = 0",
    "another_shape": "t.resize_(t.numel() + 3)",
    "other_memory": "t.set_(torch.zeros(2, dtype=t.dtype))",
    "other_data": "t.data = torch.ones(1)",
    "requires_gradients": "t.requires_grad_()",
    "slopes": "(2 * t.requires_grad_()).sum().backward()",
    "random_state": "torch.manual_seed(7); torch.rand(3)",
    "settings": "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)",
    "generators": "[g.manual_seed(3) for g in given if isinstance(g, torch.Generator)]",
}
HARMFUL = """
def _harm(function):
    def wrapped(*given, **keywords):
        try:
            return function(*given, **keywords)
        finally:
            for thing in [*given, *keywords.values()]:
                for t in getattr(thing, "tensors", [thing]):
                    if isinstance(t, torch.Tensor) and t.is_floating_point():
                        with torch.set_grad_enabled({grad}):
                            try:
                                {harm}
                            except RuntimeError:
                                pass
    return wrapped
"""
METHODS = """
for _name, _method in list(vars({name}).items()):
    if callable(_method) and _name != "__init__":
        setattr({name}, _name, _harm(_method))
"""


def harmful(name, function, harm):
    """The model solution, which does this to all it is given."""
    source = solution_cells(SOURCE[name])[function].source
    grad = harm == "slopes" or harm == "requires_gradients"
    source += HARMFUL.format(harm=HARM[harm], grad=grad)
    source += (
        METHODS.format(name=function) if f"class {function}" in source else f"{function} = _harm({function})"
    )
    return name, Version(f"{function}_{harm}", function, source, frozenset(), "")


QUICK = ["elbo", "gradients", "linear"]  # assignments
VICTIMS = [
    *(("elbo", "gaussian_kl"), ("gradients", "score_function_gradient"), ("gradients", "pathwise_gradient")),
    *(("linear", "reconstruct"), ("vae", "Decoder")),
]


def neighbours():
    """Versions to be graded one after the other: harmful ones, and some from the lists."""
    hurt = [harmful(*VICTIMS[i % len(VICTIMS)], harm) for i, harm in enumerate(HARM)]
    if WHOLE:
        known = [*WRONG, *RIGHT]
        return [*hurt, *known[:: len(known) // (60 - len(hurt)) + 1]]
    quick = [(name, version) for name, version in [*WRONG, *RIGHT] if name in QUICK]
    return [*hurt[::3], *quick[:: len(quick) // 5]][:10]


def in_all_orders(count):
    """The numbers up to count such that each comes right after each other once."""
    pairs = [number for i in range(count) for j in range(i + 1, count) for number in (i, j)]
    return [*pairs, 0]


def verdict_of_a_fresh_worker(name, version):
    """From a process that has graded nothing since it was forked from this one."""
    from aecourse.grading import worker

    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            for (_, *kind), sandbox in list(worker._sandboxes.items()):
                worker._sandboxes[(os.getpid(), *kind)] = sandbox
            os.write(theirs, json.dumps(isolated(name, version)).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        content = answer.read()
    os.waitpid(child, 0)
    return json.loads(content)


def constants():
    """The bytes of all tensors that live as long as the modules of the checks."""
    found, seen = [], set()
    left = [(name, vars(importlib.import_module(f"aecourse.checks.{name}"))) for name in ASSIGNMENTS]
    while left:
        where, thing = left.pop()
        if id(thing) in seen or isinstance(thing, types.ModuleType | types.FunctionType):
            continue
        seen.add(id(thing))
        if type(thing) is torch.Tensor:
            content = hash(thing.detach().numpy().tobytes())
            found.append((where, tuple(thing.shape), thing.requires_grad, thing.grad is None, content))
        elif isinstance(thing, dict):
            left += [(f"{where}[{key}]", value) for key, value in thing.items()]
        elif isinstance(thing, tuple | list | set | frozenset):
            left += [(where, item) for item in thing]
        elif type(thing).__module__.startswith("aecourse.checks"):
            left += [(f"{where}.{key}", value) for key, value in getattr(thing, "__dict__", {}).items()]
    return found


@needs_sandbox
@pytest.mark.seconds(20)
def test_no_submission_changes_the_next_ones_verdict(monkeypatch):
    """Any two, one after the other in one worker and in both orders, get what each gets in a fresh one."""
    from aecourse.grading import worker

    sandbox = worker._sandbox("bubblewrap", ())
    monkeypatch.setattr(worker, "_sandbox", lambda kind, imports: sandbox)
    versions = neighbours()
    right = [verdict_of_a_fresh_worker(*each) for each in versions]
    assert any(right)
    assert not all(right)
    before = constants()
    assert before
    for number in in_all_orders(len(versions)):
        name, version = versions[number]
        assert isolated(name, version) == right[number], version.name
    assert set(before) <= set(constants())


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_orders_are_all(count):
    order = in_all_orders(count)
    pairs = list(pairwise(order))
    assert len(pairs) == len(set(pairs)) == count * (count - 1)


@pytest.mark.parametrize("harm", HARM if WHOLE else ["other_numbers", "far_numbers", "slopes"])
def test_what_one_version_does_stays_with_it(harm):
    """In one process, and in a test that hands out constants of its module."""
    before = constants()
    number = list(HARM).index(harm)
    for victim, kinds in ((VICTIMS[number % len(VICTIMS)], ()), (("vae", "MendedVAE"), {"B"})):
        failures(*harmful(*victim, harm), kinds)
        assert set(before) <= set(constants())
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()


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
