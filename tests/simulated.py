"""A class of `elbo`, drawn from the right and wrong versions of its functions and from the attacks.

Every submission comes with the exact points that it must get. Used by test_grading_class.py, with few
students, and by benchmarks/grading.py.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from attacks import ATTACKS
from mutants import Version, elbo
from notebooks import AUTOGRADED, SOURCE, solution_cells
from test_assignments import solved

from aecourse.grading.sandbox import Limits

NAME = "elbo"
FUNCTIONS = tuple(solution_cells(SOURCE[NAME]))
LIMITS = Limits(seconds=60, request_seconds=4, memory=2**30)  # of everybody: attacks use them up
# The model solution calls two of the student's other functions; who has one of these wrong writes it out.
CALLED = {"gaussian_kl", "bernoulli_log_likelihood"}
WRITTEN_OUT = """\
def elbo(x, logits, mean, logvar, beta=1.0):
    likelihood = (x * logits - torch.logaddexp(logits, torch.zeros_like(logits))).flatten(1).sum(1)
    return likelihood - beta * 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1)
"""


@dataclass(frozen=True)
class Student:
    """A student of the class and the verdict that the submission must get.

    Attributes:
        kind: "right", "wrong" or "attack".
        hand_in: writes the submission into the student's folder, which is there and empty.
        points: {test: points}.
        status, human: as in `worker.Verdict`.
    """

    name: str
    kind: str
    hand_in: Callable[[Path], None]
    points: dict[str, float]
    status: str = "graded"
    human: bool = False


def simulated(count: int, seed: int = 0, attacks: float = 0.2) -> list[Student]:
    """So many students, always the same for a seed; ``attacks`` is the share of those who hand in one."""
    draw = random.Random(seed)
    hostile = [attack for attack in ATTACKS if attack.name != "no-folder"]  # without one, nobody is graded
    chosen = draw.sample(hostile, round(attacks * count))
    students = [
        Student(f"{attack.name}-{i}", "attack", attack.hand_in, attack.points, attack.status, attack.human)
        for i, attack in enumerate(chosen)
    ]
    students += [_ordinary(f"student-{i}", draw) for i in range(count - len(chosen))]
    draw.shuffle(students)
    return students


def _ordinary(name: str, draw: random.Random) -> Student:
    """Up to three functions wrong, the others right, each in a way of its own."""
    wrong = set(draw.sample(FUNCTIONS, draw.choice([0, 0, 1, 2, 3])))
    if "elbo" in wrong and wrong & CALLED:
        wrong.remove("elbo")  # its points would depend on how the mistakes meet
    versions = {
        function: draw.choice([v for v in pool if v.function == function])
        for function, pool in ((f, elbo.WRONG if f in wrong else elbo.RIGHT) for f in FUNCTIONS)
    }
    notebook = solved(NAME)
    for function, cell in solution_cells(notebook).items():
        cell.source = versions[function].source
    if wrong & CALLED:
        solution_cells(notebook)["elbo"].source = WRITTEN_OUT
    lost = {test for function in wrong for test in lost_tests(versions[function])}
    points = {test: 0.0 if test in lost else points for test, points in AUTOGRADED[NAME].items()}
    text = nbformat.writes(notebook)
    return Student(
        name,
        "wrong" if wrong else "right",
        lambda folder: (folder / f"{NAME}.ipynb").write_text(text, encoding="utf-8") and None,
        points,
    )


def lost_tests(version: Version) -> set[str]:
    return {f"{version.function}_{kind}" for kind in version.loses} & set(AUTOGRADED[NAME])
