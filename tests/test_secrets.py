"""Nothing of a hidden input reaches a student: not by what a function does in the test, nor by what it keeps.

Each way writes ten numbers of what it was given where a message, a page or an output might show them. To see
that a way leads there at all, it is tried once more while nothing is hidden.
"""

import contextlib
import json
import re
from dataclasses import replace
from textwrap import indent

import nbformat
import pytest
import torch
from release_assignments import reseed
from support.notebooks import ASSIGNMENTS, AUTOGRADED, SOURCE, grade_id
from support.sandbox import needs_sandbox

from aecourse import checks
from aecourse.checks import core, telling

HEAD = """\
import sys, warnings
import torch

KEPT = []

def keep(tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.float64 and tensor.numel() >= 10:  # as no visible check has it
        KEPT[:] = [f"{abs(number):.6f}"[-6:].replace("0", "1") for number in tensor.flatten()[:10].tolist()]
    return "x".join(KEPT)

def right(mean, logvar):
    return 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(dim=1)

"""


def codes(tensor):
    """The ten numbers of a tensor as `keep` writes them."""
    return [f"{abs(n):.6f}"[-6:].replace("0", "1") for n in tensor.flatten()[:10].tolist()]


# ---- by what a function does in the test

FUNCTIONS = {
    "the words of an error": "raise ValueError(keep(mean))",
    "the type of an error": "raise type('E' + keep(mean), (Exception,), {})()",
    "a name that is not defined": "raise NameError(name := 'x' + keep(mean), name=name)",
    "an attribute": "return getattr(mean, 'x' + keep(mean))",
    "the key of a dictionary": "return {}['x' + keep(mean)]",
    "what is still to be written": "raise NotImplementedError(keep(mean))",
    "an exit": "raise type('E' + keep(mean), (ArithmeticError,), {})(keep(mean))",
    "the type of a result": "return type('R' + keep(mean), (), {})()",
    "a list of it": "return [type('R' + keep(mean), (), {})()]",
    "the shape of a result": "keep(mean)\nreturn torch.zeros(int(KEPT[0]) if KEPT else 1, 0)",
    "the shapes of several": "keep(mean)\nreturn tuple(torch.zeros(int(code), 0) for code in KEPT)",
    "a factor": "keep(mean)\nreturn right(mean, logvar) * float(KEPT[0][2:] if KEPT else 1)",
    "an offset": "keep(mean)\nreturn right(mean, logvar) + float(KEPT[0][2:] if KEPT else 1)",
    "an import": "import importlib\nreturn importlib.import_module('aecourse.x' + keep(mean))",
    "a backward pass": """
class Tells(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()
    @staticmethod
    def backward(context, slope):
        raise ValueError("x".join(KEPT))
keep(mean)
return right(Tells.apply(mean), logvar)
""",
}
QUIET = ("what is still to be written",)  # its words are shown nowhere, hidden or not


def spying(body, inputs):
    """A `gaussian_kl` with this body in a namespace of its own, which writes down what it is given."""
    names = {}
    exec(HEAD + "def told(mean, logvar):\n" + indent(body.strip(), "    "), names)

    def gaussian_kl(mean, logvar):
        inputs.append(mean.detach().clone())
        return names["told"](mean, logvar)

    return {"gaussian_kl": gaussian_kl}


def message_of(body, kind="values"):
    """What a hidden test says of a function, and the codes of all that it was given."""
    inputs = []
    with pytest.raises(checks.Wrong) as caught:
        checks.grade("gaussian_kl", kind, spying(body, inputs), seed=2**64 - 3)
    wrong = caught.value
    return f"{wrong} {wrong.brief} {wrong.case}", {code for x in inputs for code in codes(x)}


@pytest.mark.parametrize("way", FUNCTIONS)
def test_a_message_holds_nothing_that_the_function_has_chosen(way, monkeypatch):
    kind = "gradients" if way == "a backward pass" else "values"
    message, secret = message_of(FUNCTIONS[way], kind)
    assert [code for code in secret if code[2:] in message] == []  # four digits are told of a factor
    assert message.startswith("gaussian_kl")
    monkeypatch.setattr(checks, "hiding", contextlib.nullcontext)
    message, secret = message_of(FUNCTIONS[way], kind)
    assert any(code[2:] in message for code in secret) == (way not in QUIET)


def test_an_error_is_told_by_the_line_of_the_students_own_cell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.showtraceback = lambda *of, **keywords: None
    shell.run_cell("import torch\n\ndef gaussian_kl(mean, logvar):\n    return mean.sum(dim=2) + logvar")
    function = shell.user_ns["gaussian_kl"]
    with pytest.raises(checks.Wrong, match=re.escape("in line 4 of its cell, at `return mean.sum(dim=2)")):
        checks.grade("gaussian_kl", "values", {"gaussian_kl": function}, seed=1)
    with pytest.raises(checks.Wrong) as caught:
        checks.check("gaussian_kl", function)
    assert "raised IndexError: Dimension out of range" in str(caught.value)
    assert re.search(r"in line 4 of its cell, at `return .*`, where mean is \(5, 3\)", str(caught.value))


def test_a_place_is_a_line_of_a_cell_that_is_not_too_long():
    assert str(telling.Place.of(2, "a\n  b + c")) == "in line 2 of its cell, at `b + c`"
    lines = telling.MOST_LINES
    assert telling.Place.of(lines, "a\n" * lines) is not None
    nowhere = [(lines, "a\n" * (lines + 1)), (0, "a"), (-1, "a"), (2, "a"), (1, " \na")]
    assert [telling.Place.of(*place) for place in nowhere] == [None] * len(nowhere)


def test_factors_that_formulas_have_are_named_and_others_are_not():
    for factor, told in ((3, "3 times"), (-0.125, "-1/8 times"), (1.2345, "constant times")):
        message, _ = message_of(f"return {factor} * right(mean, logvar)")
        assert told in message or "sign" in message


# ---- by what it keeps, through the sandbox


def everything_shown(bundle):
    """All that a student sees of a submission, and the codes of all tensors that went into the sandbox."""
    from aecourse.checks.calling import tensors_of
    from aecourse.grading import pages, remote, worker
    from aecourse.grading.submission import Assignment

    sent, call = [], remote.call
    with pytest.MonkeyPatch.context() as patch:

        def spied(target_of, target, calls):
            sent.extend(tensor.detach().clone() for tensor in tensors_of(list(calls)))
            return call(target_of, target, calls)

        patch.setattr(remote, "call", spied)
        verdict = worker.Verdict.of(worker.grade(bundle))
    assert verdict.status == "graded"
    assert sent
    page = pages.feedback_page(verdict, Assignment.of(bundle.assignment, bundle.source), {})
    cells = json.loads(verdict.notebook)["cells"]
    shown = [page, json.dumps([cell.get("outputs", []) for cell in cells]), *verdict.remarks]
    shown += [f"{test.message} {test.shown} {test.trouble} {test.case}" for test in verdict.tests]
    return "\n".join(shown), {code for x in sent if x.is_floating_point() for code in codes(x)}, verdict


def bundle(name, tests, cells):
    """A submission of these cells (source, or the name of a test) to an assignment with these tests only."""
    from aecourse.grading import worker

    source = [cell for cell in SOURCE[name].cells if grade_id(cell) not in AUTOGRADED[name]]
    found = {grade_id(cell): cell for cell in SOURCE[name].cells}
    notebook = nbformat.v4.new_notebook(cells=[*source, *(found[test] for test in tests)])
    handed_in = [
        found[cell] if cell in tests else nbformat.v4.new_code_cell(cell, id=f"cell-{i}")
        for i, cell in enumerate(cells)
    ]
    texts = [nbformat.writes(nbformat.v4.new_notebook(cells=part)) for part in (notebook.cells, handed_in)]
    return worker.Bundle(name, "student", texts[0], texts[1].encode())


FIRST = f"{HEAD}def gaussian_kl(mean, logvar):\n    keep(mean)\n    return right(mean, logvar)\n"
SECOND = """
def full_gaussian_kl(mean, cov):
    trace, logdet = cov.diagonal(dim1=1, dim2=2).sum(1), torch.linalg.slogdet(cov).logabsdet
    return 0.5 * (trace + mean.square().sum(1) - mean.shape[1] - logdet)
"""
# What stands after the hidden test that has seen the numbers: one or two cells.
LATER = {
    "a cell that prints": ["print('x'.join(KEPT))\nwarnings.warn('x'.join(KEPT))", SECOND],
    "a cell that raises": ["raise ValueError('x'.join(KEPT))", SECOND],
    "an error of its own type": ["raise type('E' + 'x'.join(KEPT), (Exception,), {})()", SECOND],
    "a name that is not defined": ["exec('E' + 'x'.join(KEPT))", SECOND],
    "a cell that ends before its function": ["raise ValueError('x'.join(KEPT))\n" + SECOND],
    "no Python": ["get_ipython().run_cell('1 + ' + 'x'.join(KEPT) + ' 2')\n" + SECOND],
    "a visible check that raises": [
        "def full_gaussian_kl(mean, cov):\n    raise ValueError('x'.join(KEPT))",
    ],
    "a visible check with a shape": [
        "def full_gaussian_kl(mean, cov):\n    return torch.zeros(int(KEPT[0]), 0)",
    ],
    "a visible check with a type": [
        "def full_gaussian_kl(mean, cov):\n    return type('R' + 'x'.join(KEPT), (), {})()",
    ],
}


@needs_sandbox
@pytest.mark.parametrize("way", LATER)
def test_what_was_kept_in_a_hidden_test_is_shown_nowhere(way):
    tests = ["gaussian_kl_values", "full_gaussian_kl_checks"]
    shown, secret, verdict = everything_shown(bundle("elbo", tests, [FIRST, tests[0], *LATER[way], tests[1]]))
    assert verdict.tests[0].message == ""  # it has seen them all
    assert [code for code in secret if code in shown] == []


# Which of many cells does something says as much as what it does.
WHICH = {
    "raises": "if KEPT and int(KEPT[0]) >> {n} & 1: raise ValueError",
    "ends the process": "import os\nif KEPT and int(KEPT[0]) % 8 == {n}: os._exit(0)",
    "had the function": "if KEPT and int(KEPT[0]) % 8 == {n}: raise ValueError({n})\n# full_gaussian_kl",
}


def shown_to_student(bundle, seed):
    """The page, and what nbgrader's own feedback shows of the cells, with hidden inputs from another seed."""
    pytest.importorskip("nbgrader")
    from aecourse.grading import pages, worker
    from aecourse.grading.feedback import HideTests
    from aecourse.grading.submission import Assignment

    bundle = replace(bundle, source=re.sub(r"seed=\d+", f"seed={seed}", bundle.source))
    verdict = worker.Verdict.of(worker.grade(bundle))
    notebook = nbformat.reads(verdict.notebook, 4)
    HideTests().preprocess(notebook, {})
    page = pages.feedback_page(verdict, Assignment.of(bundle.assignment, bundle.source), {})
    return page, [cell.get("outputs") for cell in notebook.cells], verdict.remarks


@needs_sandbox
@pytest.mark.parametrize("way", WHICH)
def test_which_cell_does_something_after_a_hidden_test_is_shown_nowhere(way):
    tests = ["gaussian_kl_values", "full_gaussian_kl_checks"]
    cells = [WHICH[way].format(n=n) for n in range(8)]
    handed_in = bundle("elbo", tests, [FIRST, tests[0], *cells, tests[1]])
    assert shown_to_student(handed_in, seed=111) == shown_to_student(handed_in, seed=222)


@needs_sandbox
def test_a_cell_that_ends_its_process_is_told_where_no_hidden_test_was_run():
    tests = ["gaussian_kl_values", "full_gaussian_kl_checks"]
    ends = "import os\nos._exit(0)"
    page, _, remarks = shown_to_student(bundle("elbo", tests, [FIRST, tests[0], ends, SECOND, tests[1]]), 111)
    assert [r for r in remarks if "ended the whole process" in r and r.endswith("It begins with: import os")]
    assert "below hidden tests" not in page


@needs_sandbox
def test_what_is_shown_in_the_sandbox_is_what_one_process_shows():
    """The ways of `FUNCTIONS`, one after the other, as many functions cannot be in one notebook."""
    for way in ("the words of an error", "a backward pass"):
        body = FUNCTIONS[way]
        source = HEAD + "def gaussian_kl(mean, logvar):\n" + indent(body.strip(), "    ")
        tests = ["gaussian_kl_values", "gaussian_kl_gradients"]
        shown, secret, verdict = everything_shown(bundle("elbo", tests, [source, *tests]))
        assert [code for code in secret if code in shown] == []
        line = next(n for n, text in enumerate(source.splitlines(), 1) if "raise ValueError" in text)
        assert f"in line {line} of its cell, at `raise ValueError(" in verdict.tests[1].message


PARAMETERS = """\
class Encoder(torch.nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.hidden = torch.nn.Linear(sizes[0], sizes[1])
        self.mean, self.logvar = (torch.nn.Linear(sizes[1], sizes[2]) for _ in range(2))
        if KEPT:
            CHANGE
    def forward(self, x):
        keep(x)
        h = self.hidden(x).relu()
        return self.mean(h), self.logvar(h)
"""


@needs_sandbox
@pytest.mark.parametrize(
    "change",
    [
        "self.register_parameter('p' + 'x'.join(KEPT), torch.nn.Parameter(torch.zeros(2)))",
        "self.mean = torch.nn.Linear(sizes[1], int(KEPT[0][:5]))",
        "self.__class__ = type('E' + 'x'.join(KEPT), (dict,), {})",
    ],
)
def test_names_and_shapes_of_parameters_are_not_told(change):
    source = HEAD + PARAMETERS.replace("CHANGE", change)
    tests = ["Encoder_values", "Encoder_gradients"]
    shown, secret, verdict = everything_shown(bundle("vae", tests, [source, *tests]))
    assert any(test.points < test.out_of for test in verdict.tests)
    assert [code for code in secret if code in shown] == []


@needs_sandbox
def test_an_honest_mistake_is_told_in_full_after_hidden_tests_too():
    """What is withheld comes from a child that has seen none."""
    tests = ["gaussian_kl_values", "full_gaussian_kl_checks", "full_gaussian_kl_values"]
    wrong = SECOND.replace("- logdet", "- logdet.sum(dim=3)")
    shown, _, verdict = everything_shown(
        bundle("elbo", tests, [FIRST, tests[0], "print(6 * 7)", wrong, *tests[1:]])
    )
    assert "raised IndexError: Dimension out of range" in verdict.tests[1].message
    assert re.search(
        r"\(a dimension or an entry is not there\) in line 3 of its cell, at `trace, logdet = .*`",
        verdict.tests[2].message,
    )
    assert "42" in shown
    ended = "no_such_name\n" + SECOND
    shown, _, verdict = everything_shown(bundle("elbo", tests, [FIRST, tests[0], ended, *tests[1:]]))
    for test in verdict.tests[1:]:
        assert "(Its cell ended with: NameError: name 'no_such_name' is not defined)" in test.message


def test_nbgraders_own_feedback_shows_nothing_that_came_after_a_hidden_test():
    pytest.importorskip("nbgrader")
    from aecourse.grading.feedback import HideTests

    def stream(text):
        return nbformat.v4.new_output("stream", text=text)

    def error(name, words):
        return nbformat.v4.new_output("error", ename=name, evalue=words, traceback=[f"{name}: {words}"])

    test = "assert f(1) == 2, 'f is wrong'"
    hidden = f"# Hidden tests: values.\n### BEGIN HIDDEN TESTS\n{test}\n### END HIDDEN TESTS"
    sources = [("print(1)", [stream("1")]), (hidden, [stream("2"), error("E222", "333")])]
    sources += [(hidden, [error("AssertionError", "f is wrong")]), (hidden, [error("AssertionError", "444")])]
    sources += [
        (hidden, [error("Wrong", "f: wrong.")]),
        ("print(KEPT)", [stream("555"), error("E666", "777")]),
    ]
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(source, outputs=outputs, id=name)  # a random one may hold any digits
            for name, (source, outputs) in zip("abcdefgh", sources)
        ]
    )
    HideTests().preprocess(notebook, {})
    text = nbformat.writes(notebook)
    assert [digits for digits in ("222", "333", "444", "555", "666", "777") if digits in text] == []
    assert all(words in text for words in ('"1"', "f is wrong", "f: wrong.", "after hidden tests"))


# ---- seeds


def test_seeds_count_with_all_their_bits_and_each_test_has_a_stream_of_its_own():
    streams = [
        ("0.1", "elbo", "values", 1),
        ("0.1", "elbo", "values", 1 + 2**32),
        ("0.1", "elbo", "values", 1 + 2**63),
    ]
    streams += [("0.2", "elbo", "values", 1), ("0.1", "elbo", "gradients", 1), ("0.1", "iwae", "values", 1)]
    numbers = [core.Draw.of(*key)(4).tolist() for key in streams]
    assert len({tuple(row) for row in numbers}) == len(streams)
    assert core.Draw.of(*streams[0])(4).tolist() == numbers[0]
    many = core.Draw.of(*streams[0])(20_000)
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03
    seeds = [core.Draw.of("seeds", number).seed().number for number in range(64)]
    assert max(seeds) > 2**61
    assert len(set(seeds)) == 64


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_hidden_tests_have_long_seeds_of_their_own(name):
    source = "\n".join(cell.source for cell in SOURCE[name].cells)
    seeds = [int(seed) for seed in re.findall(r"globals\(\), seed=(\d+)", source)]
    assert len(seeds) == source.count('\ngrade("') > 8
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) > 2**40  # of 64 bits, a hundred hardly ever hold a smaller one
    assert max(seeds) > 2**62


def test_new_seeds_change_nothing_else(tmp_path):
    folder = tmp_path / "elbo"
    folder.mkdir()
    before = nbformat.writes(SOURCE["elbo"])
    (folder / "elbo.ipynb").write_text(before, encoding="utf-8")
    reseed(tmp_path)
    after = (folder / "elbo.ipynb").read_text(encoding="utf-8")
    assert after != before
    assert re.sub(r"seed=\d+", "", after) == re.sub(r"seed=\d+", "", before)
    assert not set(re.findall(r"seed=\d+", after)) & set(re.findall(r"seed=\d+", before))


def test_a_hidden_test_gives_its_function_what_belongs_to_seed_and_release(monkeypatch):
    def seen():
        inputs = []
        with contextlib.suppress(checks.Wrong):
            checks.grade("gaussian_kl", "values", spying("return right(mean, logvar)", inputs), seed=5)
        return inputs[0]

    first = seen()
    assert torch.equal(first, seen())
    monkeypatch.setattr(checks, "__version__", "another")
    assert not torch.equal(first, seen())
