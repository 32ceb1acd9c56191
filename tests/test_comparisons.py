"""No number that is none passes a test: planted in what a model solution returns, it costs the test's points.

One call of one hidden test at a time gets another result: NaN or infinity in all or in one entry, a shape
or a kind that is wrong. `make test` tries a sample; with AECOURSE_TEST_SANDBOX=all, every test has them all.
"""

import functools
import importlib
import math
import random
import re
from itertools import product

import pytest
import torch
from support.notebooks import ASSIGNMENTS, AUTOGRADED, SOURCE, grade_id, graded
from support.sandbox import WHOLE

from aecourse import checks
from aecourse.checks import core, kinds, modules

TASKS = [
    (name, task.name, kind)
    for name in ASSIGNMENTS
    for task in importlib.import_module(f"aecourse.checks.{name}").TASKS.values()
    for kind in task.tests
]
UNUSED = ("colab", "together-code", "experiment-cell")


@functools.cache
def namespace(name):
    """The names of a notebook with its model solutions."""
    names = {}
    for cell in SOURCE[name].cells:
        if cell.cell_type == "code" and grade_id(cell) not in AUTOGRADED[name] and cell.id not in UNUSED:
            exec(compile(cell.source, cell.id, "exec"), names)
    return names


@functools.cache
def seeds(name):
    """{(task, kind): seed}"""
    text = "\n".join(cell.source for cell in graded(SOURCE[name]).values())
    found = re.findall(r'grade\("(\w+)", "(\w+)", globals\(\), seed=(\d+)\)', text)
    return {(task, kind): int(seed) for task, kind, seed in found}


# ---- what is planted


def everywhere(value):
    return lambda tensor: tensor * 0 + value


def somewhere(value):
    """In the last entry alone, whatever the others are; the graph is kept."""

    def change(tensor):
        there = torch.zeros(tensor.numel(), dtype=torch.bool)
        there[-1:] = True
        return torch.where(there.reshape(tensor.shape), torch.full_like(tensor, value), tensor)

    return change


PLANTS = {
    "nan": everywhere(math.nan),
    "a nan": somewhere(math.nan),
    "inf": everywhere(math.inf),
    "an inf": somewhere(math.inf),
    "a -inf": somewhere(-math.inf),
    "shape": lambda tensor: tensor[None],
    "kind": lambda tensor: {"value": tensor},
}


def planted(result, plant):
    """A result with something wrong in it: the last of several tensors, or a parameter of a module."""
    change = PLANTS[plant]
    if isinstance(result, tuple | list):
        return type(result)((*result[:-1], planted(result[-1], plant)))
    if isinstance(result, torch.nn.Module):
        with torch.no_grad():
            parameter = next(result.parameters())
            parameter.copy_(change(parameter))
        return result
    if isinstance(result, torch.Tensor):
        return change(result if result.is_floating_point() else result.to(torch.float64))
    number = change(torch.tensor(float(result)))
    return number.item() if isinstance(number, torch.Tensor) and not number.dim() else number


class Calls:
    """Counts what a test asks of a student's code, and plants something in one answer."""

    def __init__(self, at=None, plant=None):
        self.at, self.plant, self.count = at, plant, 0

    def answer(self, result):
        self.count += 1
        return planted(result, self.plant) if self.count - 1 == self.at else result

    def graded(self, name, task, kind):
        """The error of a test of the model solution, whose answers pass through here; mistakes go unnamed."""
        names, function = dict(namespace(name)), namespace(name)[task]
        held = modules.Held.each
        with pytest.MonkeyPatch.context() as patch:
            for namer in (kinds, importlib.import_module(f"aecourse.checks.{name}")):
                for finds in {"diagnose", "lost_digits"} & set(vars(namer)):
                    patch.setattr(namer, finds, lambda *of: core.UNKNOWN)
            if isinstance(function, type):
                patch.setattr(modules.Held, "each", lambda *of: [self.answer(each) for each in held(*of)])
            else:
                names[task] = lambda *given, **keywords: self.answer(function(*given, **keywords))
            try:
                checks.grade(task, kind, names, seed=seeds(name)[task, kind])
            except checks.Wrong as wrong:
                return wrong
        return None


# Tests of a second and more, which are left to the weekly run.
SLOW = {
    *("denoising_loss values", "fit_posterior optimum", "fit_posterior noise", "negative_elbo noise"),
    *(f"log_likelihood {kind}" for kind in ("values", "weights", "bound", "draws", "stability")),
    *(f"train {kind}" for kind in ("seed", "updates", "training")),
    *(f"MendedVAE {letter}" for letter in "ABCDEFG"),
    *("full_gaussian_kl stability", "VAE samples"),
}


# Here values only choose the words; the test of the values looks at them.
UNLOOKED = {"Encoder gradients"}


def trials(name, task, kind):
    """(number of the answer, plant): every plant in the first answer, the last, and some between."""
    chance = random.Random(f"{task} {kind}")
    if not WHOLE:  # how many answers there are is not known, and to find out would take as long again
        return [(chance.randrange(4), plant) for plant in chance.sample(sorted(PLANTS), 2)]
    healthy = Calls()
    assert healthy.graded(name, task, kind) is None
    between = chance.sample(range(healthy.count), min(healthy.count, 5))
    return list(product({0, healthy.count - 1, *between}, PLANTS))


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [key for key in TASKS if " ".join(key[1:]) not in (UNLOOKED if WHOLE else UNLOOKED | SLOW)],
)
def test_what_is_no_number_costs_the_points(name, task, kind):
    passed = []
    for place, plant in trials(name, task, kind):
        calls = Calls(place, plant)
        if calls.graded(name, task, kind) is None and calls.count > place:
            passed.append((place, plant))
    assert passed == []
