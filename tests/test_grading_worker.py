"""The trusted process has limits, too: what a student sends can be large, or take long to look at."""

import itertools
import time

import nbformat
import pytest
import torch
from support.sandbox import needs_sandbox

from aecourse.grading import submission, worker
from aecourse.grading.session import Gone


def test_a_submission_takes_no_more_memory_than_there_is_for_it():
    with worker._limited():
        torch.ones(2**20)
        with pytest.raises(RuntimeError, match="memory"):
            torch.zeros(worker.MEMORY // 4 + 2**20)  # of four bytes each
    with worker._limited():  # and the next one has as much
        torch.ones(2**20)


def test_what_is_computed_from_answers_ends(monkeypatch):
    monkeypatch.setattr(worker, "SECONDS", 0.2)
    with pytest.raises(Gone, match="time"), worker._timed():
        any(number < 0 for number in itertools.count())
    with worker._timed():
        pass
    start = time.process_time()
    while time.process_time() < start + 0.3:  # the clock has been stopped
        pass


def assignment(*tests):
    """An instructor's notebook with a function to write and these tests."""
    cells = [nbformat.v4.new_code_cell("def f():\n    return 1", id="f")]
    cells[0].metadata["nbgrader"] = {"grade_id": "f", "solution": True, "grade": False}
    for number, test in enumerate(tests):
        flags = {"grade_id": f"f_test{number}", "grade": True, "solution": False, "points": 1}
        cells.append(nbformat.v4.new_code_cell(test, id=f"test-{number}", metadata={"nbgrader": flags}))
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells))


def graded(*tests):
    source = assignment(*tests)
    return worker.grade(worker.Bundle("own", "student", source, source.encode()))


@needs_sandbox
def test_a_test_that_takes_too_long_here_costs_itself(monkeypatch):
    monkeypatch.setattr(worker, "SECONDS", 0.3)
    verdict = graded("while f() == 1:\n    sum(range(1000))", "assert f() == 2", "assert f() == 1")
    assert [test["points"] for test in verdict["tests"]] == [0, 0, 0]  # the function is not tried again
    assert verdict["status"] == "time"
    assert "did not finish" in verdict["tests"][0]["message"]


@needs_sandbox
def test_a_test_of_the_instructors_own_says_in_secret_what_stands_in_its_source():
    hidden = "### BEGIN HIDDEN TESTS\n{}\n### END HIDDEN TESTS".format
    said = {
        "assert f() == 2, 'f is to be 2'": "f is to be 2",
        "assert f() == 2, f'{f()} is wrong'": "This test failed.",
        "torch.testing.assert_close(torch.tensor(f()), torch.tensor(12345))": "This test failed.",
        "absent()": "absent is not defined. Run its cell, and keep the name.",
        "[][f()]": "The test was stopped by an error. Your instructor has been told.",
    }
    verdict = graded(*map(hidden, said), "assert f() == 2, f'{f()} is wrong'")
    assert [test["message"] for test in verdict["tests"]] == [*said.values(), "1 is wrong"]
    assert verdict["tests"][4]["error"] == "IndexError: list index out of range"
    assert verdict["human"]


def test_a_notebook_for_which_there_is_no_memory_is_none(monkeypatch):
    def prepare(data, of):
        raise MemoryError

    monkeypatch.setattr(submission, "prepare", prepare)
    verdict = graded("assert f() == 1")
    assert verdict["status"] == "unreadable"
    assert "too large" in verdict["remarks"][0]
