"""The checks of the assignments: visible ones for students, hidden ones for grading.

A student runs ``check("gaussian_kl", gaussian_kl)`` below each task; the hidden test cells of a notebook
call ``grade("gaussian_kl", "values", globals(), seed=...)``. Both name the mistake: a wrong result is
compared with those of the mistakes that people make.

What is secret is the seed of the hidden inputs, not this source, so that anyone may see what is asked. One
module per assignment holds its tasks; ``core`` says what a task is, ``parts`` has the callables (encoders,
integrands) that tests hand to a student's function.
"""

from collections.abc import Callable

import torch

from aecourse import __version__
from aecourse.checks.core import Cause, Draw, Wrong, find, stopped
from aecourse.checks.naming import ELSEWHERE, diagnose
from aecourse.checks.student import Student
from aecourse.checks.telling import hiding

__all__ = ["Wrong", "check", "grade"]


def check(name: str, function: Callable) -> None:
    """Run the visible checks of a task and print what holds; raise `Wrong` at the first that does not.

    Args:
        name: the task, for example ``"gaussian_kl"``.
        function: your function.

    Raises:
        Wrong: a property does not hold; the message says which, and names the mistake where it can.
        ValueError: there is no such task.
    """
    task = find(name)
    student = Student(task, {name: function}, quiet=False)
    with torch.random.fork_rng(devices=[]):
        try:
            for what, why in task.properties(student):
                if why:
                    print(f"  ✗ {what}")
                    cause = diagnose(task, student, Draw(0))
                    raise Wrong(f"{why}.", Cause() if cause == ELSEWHERE else cause)
                print(f"  ✓ {what}")
        except Wrong as wrong:
            raise wrong.about(task) from None
    print(f"{name} passes its visible checks. The hidden tests look closer: see the comments in their cells.")


def grade(name: str, kind: str, namespace: dict, *, seed: int) -> None:
    """Run one hidden test of a task on the function in a notebook's namespace.

    Args:
        name: the task.
        kind: which of its tests, for example ``"values"``.
        namespace: the notebook's ``globals()``.
        seed: of the inputs; this is the secret.

    Raises:
        Wrong: with a sentence for the student, which holds no expected value, and nothing that the function
            has chosen.
        ValueError: there is no such task or kind of test.
    """
    task = find(name)
    if kind not in task.tests:
        raise ValueError(f"{name} has the tests {', '.join(task.tests)}, and no {kind!r}.")
    with hiding(), torch.random.fork_rng(devices=[]):  # what is drawn there is drawn for this test alone
        try:
            # A new release has other inputs, and no test has those of another.
            task.tests[kind](task, Student(task, namespace), Draw.of(__version__, name, kind, seed))
        except Wrong as wrong:
            raise wrong.about(task) from None
        except Exception as error:  # of a backward pass that a test has asked for, or a mistake of the test's
            raise stopped(error).about(task) from None
