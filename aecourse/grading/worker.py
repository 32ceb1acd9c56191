"""One submission in, one verdict out: a pure function of a bundle, for any process on any machine.

The student's cells run in the sandbox. The instructor's test cells run here, in the place that the notebook
gives them, with a stand-in for each name that the student has defined. What comes back is plain data.
"""

import ast
import builtins
import contextlib
import copy
import functools
import gc
import hashlib
import importlib
import io
import json
import os
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import nbformat
import torch

from aecourse.checks import core
from aecourse.grading import submission
from aecourse.grading.remote import RemoteFunction
from aecourse.grading.sandbox import Gone, Limits, Sandbox, SandboxError, Session, StudentError
from aecourse.grading.submission import Assignment, Submission

VERSION = 2  # of the verdicts: a change of how they come about grades everything anew
MOST_CHILDREN = 20  # of one submission


@dataclass(frozen=True)
class Bundle:
    """All that grading one submission needs.

    Attributes:
        assignment, student: names.
        source: the instructor's notebook, as text.
        data: the bytes of the student's file; None when there is none.
        remarks: what finding the file has shown.
        problem: why there is no file to read; empty if there is.
    """

    assignment: str
    student: str
    source: str
    data: bytes | None
    remarks: tuple[str, ...] = ()
    problem: str = ""
    limits: Limits = field(default_factory=Limits)
    sandbox: str = "bubblewrap"

    def key(self) -> str:
        """What the verdict depends on, in 32 hexadecimal digits."""
        found = hashlib.sha256()
        for part in (self.source, self.problem, *self.remarks, str(asdict(self.limits)), str(VERSION)):
            found.update(hashlib.sha256(part.encode(errors="replace")).digest())
        found.update(self.data or b"")
        return found.hexdigest()[:32]


@dataclass
class Test:
    """What one test cell gave: the points, and what to tell the student when they are not all there.

    Attributes:
        message: the whole sentence, but for where to read again. Of a test of the instructor's own it is all
            there is; the other attributes are those of `core.Wrong`.
        slips: the mistakes that the message names, each under its own name.
        trouble: the kind of the error that stopped the test itself; its words are no word of ours, and could
            quote what is compared.
        shown: what the cell printed.
    """

    name: str
    points: float
    out_of: float
    message: str = ""
    shown: str = ""
    seconds: float = 0.0
    function: str = ""
    case: str = ""
    slips: list[str] = field(default_factory=list)
    brief: str = ""
    reason: str = ""
    read: str = ""
    trouble: str = ""


@dataclass
class Verdict:
    """The result of a submission, plain data. ``status``: graded, unreadable, missing, time, or crash.

    ``trouble`` is the grader's own error, for the instructor alone.
    """

    assignment: str
    student: str
    key: str
    status: str = "graded"
    tests: list[Test] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    human: bool = False
    notebook: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    trouble: str = ""

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, found: dict) -> "Verdict":
        return cls(**found | {"tests": [Test(**test) for test in found["tests"]]})

    @property
    def points(self) -> float:
        return sum(test.points for test in self.tests)


def grade(bundle: Bundle) -> dict:
    """The verdict on a submission, as plain data.

    Raises:
        SandboxError: there is no sandbox. Nothing that a student hands in raises.
    """
    start = time.monotonic()
    assignment = _assignment(bundle.assignment, bundle.source)
    verdict = Verdict(bundle.assignment, bundle.student, bundle.key(), remarks=list(bundle.remarks))
    if bundle.data is None:
        handed_in = Submission(unreadable=bundle.problem, human=True)
        verdict.status = "missing"
    else:
        handed_in = submission.prepare(bundle.data, assignment)
        verdict.status = "unreadable" if handed_in.unreadable else "graded"
    verdict.human = handed_in.human or bool(bundle.remarks)
    verdict.remarks += [handed_in.unreadable] if handed_in.unreadable else handed_in.remarks
    verdict.sources, verdict.answers = handed_in.sources, handed_in.answers
    points = assignment.points()
    if handed_in.unreadable:
        verdict.tests = [Test(name, 0.0, points[name], handed_in.unreadable) for name in assignment.tests]
    else:
        with _alone, _own_state():
            run = _Run(bundle, assignment, handed_in)
            run.all()
        order = list(assignment.tests)
        verdict.tests = sorted(run.tests, key=lambda test: order.index(test.name))
        verdict.remarks += run.remarks
        verdict.human |= run.human
        verdict.status = run.status or verdict.status
        verdict.notebook = json.dumps(run.notebook())
    verdict.seconds = round(time.monotonic() - start, 3)
    return verdict.as_dict()


@functools.lru_cache(maxsize=8)
def _assignment(name: str, source: str) -> Assignment:
    return Assignment.of(name, source)


_sandboxes: dict[tuple, Sandbox] = {}
_alone = threading.Lock()  # one submission at a time in a process, whatever a cluster's worker makes of it


def _sandbox(kind: str, imports: tuple[str, ...]) -> Sandbox:
    """This process's sandbox of this kind; not one of the process that it was forked from."""
    key = os.getpid(), kind, imports
    if key not in _sandboxes:
        close()  # that of another assignment
        _sandboxes[key] = Sandbox(kind, imports)
    return _sandboxes[key]


def close() -> None:
    """End this process's sandbox; the next submission gets a new one."""
    for key in [key for key in _sandboxes if key[0] == os.getpid()]:
        _sandboxes.pop(key).close()


@contextlib.contextmanager
def _own_state():
    """torch as a submission's tests find it and as the next one's should."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def _imports(assignment: Assignment) -> dict:
    """What the instructor's own cells import, for test cells that use it; `check` is the outer one."""
    namespace = {"__name__": "__main__", "__builtins__": builtins, "torch": torch}
    for cell in assignment.notebook.cells:
        if cell.cell_type != "code" or cell in assignment.tests.values():
            continue
        with contextlib.suppress(SyntaxError):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    with contextlib.suppress(ImportError):
                        exec(compile(ast.Module([node], []), cell.get("id", "cell"), "exec"), namespace)
    return namespace


class _Run:
    """The steps of one submission, over as many children as it takes.

    The last test is the last step: no point depends on what comes after it.

    A cell or a test that ends the child, or its time, costs itself; the rest goes on in a new child, in which
    the cells before it have been run again. A function whose tests ran out of time once, or ended the child
    twice, is not tried again.
    """

    def __init__(self, bundle: Bundle, assignment: Assignment, handed_in: Submission):
        self.bundle, self.assignment, self.handed_in = bundle, assignment, handed_in
        self.limits = bundle.limits
        self.deadline = time.monotonic() + self.limits.seconds
        self.tests: list[Test] = []
        self.remarks: list[str] = []
        self.outputs: dict[int, str] = {}  # what the cell at a step printed
        self.failed: dict[str, str] = {}  # the error of a step's cell, by its source
        self.skipped: set[int] = set()  # cells that end the child
        self.ends: Counter[str] = Counter()  # how often a function ended the child
        self.lost: dict[str, str] = {}  # functions that are not tried again, and why
        self.human, self.status = False, ""
        self.base = _imports(assignment)
        self.names: dict[str, str] = {}  # what the cells so far have defined

    def all(self) -> None:
        position, children, broken = 0, 0, 0
        tests = [i for i, (kind, _) in enumerate(self.handed_in.steps) if kind == "test"]
        self.end = max(tests, default=-1) + 1
        while position < self.end:
            left = self.deadline - time.monotonic()
            if left <= 0.05:
                used = f"Your notebook has used up its {self.limits.seconds:.0f} seconds before this test."
                return self._give_up(position, "time", used)
            if children > MOST_CHILDREN or broken > 2:
                ended = "Your notebook has ended its process too often to go on to this test."
                return self._give_up(position, "crash", ended)
            sandbox = _sandbox(self.bundle.sandbox, self.assignment.imports)
            before = {name: copy.copy(value) for name, value in vars(self).items()}
            try:
                with sandbox.open(self.limits, left) as session:
                    reached = self._from(session, position)
                position = reached
            except SandboxError:  # it was there, and is gone: nothing that came of it counts
                close()
                vars(self).update(before)
                broken += 1
            children += 1

    def _give_up(self, position: int, status: str, words: str) -> None:
        self.status, self.human = status, True
        for kind, name in self.handed_in.steps[position:]:
            if kind == "test":
                self._record(name, 0.0, words)

    def _from(self, session: Session, position: int) -> int:
        """Go on at a step, in a new child; the step at which to go on in the next."""
        self.names = {}
        for i, (kind, what) in enumerate(self.handed_in.steps[: self.end]):
            if i >= position and kind == "test":
                if not self._test(session, what):
                    return i + 1
            elif kind == "cell" and i not in self.skipped and not self._cell(session, i, what):
                return i + 1 if i >= position else position
        return self.end

    def _cell(self, session: Session, i: int, source: str) -> bool:
        """Run a cell; whether the child is still there."""
        session.begin()
        try:
            answer = session.ask("cell", source)
            error, names = answer if type(answer) is tuple and len(answer) == 2 else ("", {})
            self.names = names if type(names) is dict else {}
            self.outputs[i] = session.take_printed()
            if error and isinstance(error, str):
                self.failed[source] = _line(error, -1)[:300]
            return True
        except StudentError as error:  # the shell itself failed
            self.failed[source] = f"{error.kind}: {error}"[:300]
            return True
        except Gone as gone:
            self.skipped.add(i)
            words = self._words(gone.reason, "A cell")
            self.failed[source] = words
            self.remarks.append(_clean(f"{words} It begins with: {_line(source, 0)[:80]}"))
            self.status, self.human = self.status or _status(gone.reason), True
            return False

    def _test(self, session: Session, name: str) -> bool:
        """Run a test; whether the child is still there."""
        cell = self.assignment.tests[name]
        function = name.rpartition("_")[0]
        if function in self.lost:
            self._record(name, 0.0, self.lost[function])
            return True
        session.begin()
        shown, start = io.StringIO(), time.monotonic()
        message, there, about = "", True, {}
        try:
            namespace = self._namespace(session, cell.source)
            with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
                exec(compile(cell.source, name, "exec"), namespace)
        except Gone as gone:
            there = False
            message = self._words(gone.reason, function or "The test")
            self.status, self.human = self.status or _status(gone.reason), True
            self.ends[function] += 1
            if gone.reason == "time" or self.ends[function] > 1:
                self.lost[function] = message
        except core.Wrong as wrong:
            message, about = self._explained(wrong), parts_of(wrong)
        except AssertionError as error:  # a test of the instructor's own
            message = str(error)[:1000] or "This test failed."
        except NameError as error:
            wrong = core.undefined(str(error.name))
            message, about = self._explained(wrong), parts_of(wrong)
            self.human |= error.name not in self.assignment.tasks
        except Exception as error:
            message, about = f"{type(error).__name__}: {str(error)[:500]}", {"trouble": type(error).__name__}
            self.human = True
        seconds = time.monotonic() - start
        self._record(name, 0.0 if message else None, message, shown.getvalue(), seconds, **about)
        session.take_printed()
        return there

    def _namespace(self, session: Session, source: str) -> dict:
        """The names of a test cell: the notebook's imports, and a stand-in for what the student defined."""
        namespace = dict(self.base)
        for name, kind in self.names.items():
            taken = name in self.base or hasattr(builtins, name) or name.startswith("_")
            if taken and name not in self.assignment.tasks:
                continue  # torch, check or sum are ours, whatever a student's notebook calls so
            if kind == "callable":
                namespace[name] = RemoteFunction(session, name, _forbidden(name))
            elif name in source:
                with contextlib.suppress(StudentError):
                    namespace[name] = session.ask("value", name)
        return namespace

    def _words(self, reason: str, who: str) -> str:
        if reason == "time":
            seconds = f"{self.limits.request_seconds:.0f} seconds"
            return f"{who} did not finish within {seconds}. Is there an endless loop?"
        if reason == "crash":
            return (
                f"{who} ended the whole process: by an exit, or because memory or processor time ran out "
                f"(there are {self.limits.memory / 2**30:.0f} GB and {self.limits.cpu_seconds} seconds)."
            )
        return f"{who} gave an answer that is none. Return tensors, numbers, or tuples of these."

    def _explained(self, wrong: core.Wrong) -> str:
        """The message; where a function is missing, with the error of the cells that may have defined it."""
        if wrong.reason != core.UNDEFINED:
            return wrong.sentence
        errors = [error for source, error in self.failed.items() if wrong.function in source]
        return f"{wrong.sentence} (Its cell ended with: {errors[0]})" if errors else wrong.sentence

    def _record(
        self, name: str, points: float | None, message: str, shown: str = "", seconds: float = 0.0, **about
    ) -> None:
        """``about``: more attributes of the `Test`."""
        out_of = self.assignment.points()[name]
        got = out_of if points is None else points
        message = _clean(message[:2000])
        self.tests.append(Test(name, got, out_of, message, shown[:5000], round(seconds, 3), **about))

    def notebook(self) -> nbformat.NotebookNode:
        """The notebook as it was graded: the student's cells and the tests, each with what it printed."""
        results = {test.name: test for test in self.tests}
        originals = {submission.grade_id(cell): cell for cell in self.assignment.notebook.cells}
        names = {source: name for name, source in self.handed_in.sources.items()}
        found = []  # (kind, source, metadata, printed, error)
        for i, (kind, what) in enumerate(self.handed_in.steps):
            if kind == "test":
                test, cell = results[what], originals[what]
                message = core.with_link(test.message, test.read)
                found.append(("code", cell.source, cell.metadata, test.shown, message))
            else:
                metadata = originals[names[what]].metadata if what in names else {}
                found.append(("code", what, metadata, self.outputs.get(i, ""), self.failed.get(what, "")))
        for name, answer in self.handed_in.answers.items():
            cell = originals[name]
            found += [("markdown", cell.source, cell.metadata, "", ""), ("markdown", answer, {}, "", "")]
        cells = []
        for i, (kind, source, metadata, printed, error) in enumerate(found):
            cells.append(submission.new_cell(kind, source, metadata, f"cell-{i}"))
            if printed:
                cells[-1].outputs.append({"output_type": "stream", "name": "stdout", "text": printed})
            if error:
                words = {"ename": "Wrong", "evalue": error, "traceback": [error]}
                cells[-1].outputs.append({"output_type": "error", **words})
        return submission.new_notebook(cells)


def parts_of(wrong: core.Wrong) -> dict:
    """What a `Test` keeps of a failed check beside its message."""
    return {
        "function": wrong.function,
        "case": _clean(wrong.case),
        "slips": [_clean(slip) for slip in wrong.cause.slips],
        "brief": _clean(wrong.brief[:2000]),
        "reason": wrong.reason,
        "read": wrong.read,
    }


def _line(text: str, number: int) -> str:
    return (text.strip().splitlines() or [""])[number]


def _clean(text: str) -> str:
    """The text without control characters, which a student may have put into an error's words."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _status(reason: str) -> str:
    return {"time": "time"}.get(reason, "crash")


def _forbidden(name: str) -> tuple[str, ...]:
    """The ready-made answers of a task, which refuse in the sandbox too."""
    try:
        return core.find(name).forbidden
    except ValueError:
        return ()


def warm() -> None:
    """Import all that tests use; before a pool forks its processes."""
    for name in core.ASSIGNMENTS:
        importlib.import_module(f"aecourse.checks.{name}")
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # what it imports, gradcheck does, too
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # looking through all this for garbage takes a tenth of a second each time
