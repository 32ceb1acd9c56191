"""One submission in, one verdict out: a pure function of a bundle, for any process on any machine.

The student's cells run in the sandbox. The instructor's test cells run here, in the place that the notebook
gives them, with a stand-in for each name that the student has defined. What comes back is plain data.
"""

import ast
import builtins
import contextlib
import functools
import gc
import hashlib
import importlib
import io
import json
import os
import re
import resource
import signal
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace

import nbformat
import torch

from aecourse.checks import core, telling
from aecourse.checks.bans import Refused
from aecourse.grading import submission
from aecourse.grading.remote import RemoteFunction
from aecourse.grading.sandbox import Limits, Sandbox, SandboxError
from aecourse.grading.session import Gone, Session, StudentError
from aecourse.grading.submission import Assignment, Submission
from aecourse.grading.words import shown as safe  # shown, here, is what a cell printed

VERSION = 4  # of the verdicts: a change of how they come about grades everything anew
MOST_CHILDREN = 20  # of one submission
MEMORY = 4 * 2**30  # bytes that this process may take for a submission, beyond what it has
SECONDS = 60.0  # of processor time that a test may take here; the longest needs ten
HIDDEN = re.compile(r"BEGIN\s+HIDDEN", re.IGNORECASE)  # in the source of a test whose inputs are secret
BELOW, BEGINS = " It stands below hidden tests.", " It begins with: "  # what is said of a cell
UNSHOWN = "What this cell and those below put out is not shown: they ran after hidden tests.\n"


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
        digest = hashlib.sha256()
        for part in (self.source, self.problem, *self.remarks, str(asdict(self.limits)), str(VERSION)):
            digest.update(hashlib.sha256(part.encode(errors="replace")).digest())
        digest.update(self.data or b"")
        return digest.hexdigest()[:32]


@dataclass
class Test:
    """What one test cell gave: the points, and what to tell the student when they are not all there.

    Attributes:
        message: the whole sentence, but for where to read again. Of a test of the instructor's own it is all
            there is; the other attributes are those of `core.Wrong`.
        slips: the mistakes that the message names, each under its own name.
        trouble: the kind of the error that stopped the test itself.
        error: what it said, for the instructor alone: no word of ours, it could quote what is compared.
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
    error: str = ""


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
    pictures: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    trouble: str = ""

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict) -> "Verdict":
        """The verdict of what `as_dict` gave."""
        return cls(**plain | {"tests": [Test(**test) for test in plain["tests"]]})

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
        try:
            with _limited():
                handed_in = submission.prepare(bundle.data, assignment)
        except MemoryError:
            handed_in = Submission(unreadable="The notebook is too large to be read.", human=True)
        verdict.status = "unreadable" if handed_in.unreadable else "graded"
    verdict.human = handed_in.human or bool(bundle.remarks)
    verdict.remarks += [handed_in.unreadable] if handed_in.unreadable else handed_in.remarks
    verdict.sources, verdict.answers = handed_in.sources, handed_in.answers
    verdict.pictures = handed_in.pictures
    points = assignment.points()
    if handed_in.unreadable:
        verdict.tests = [Test(name, 0.0, points[name], handed_in.unreadable) for name in assignment.tests]
    else:
        with _alone, _limited(), _own_state():
            run = _told(_Run(bundle, assignment, handed_in, _imports(bundle.assignment, bundle.source)))
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
_adopted: dict[tuple[int, str], Sandbox] = {}
_alone = threading.Lock()  # one submission at a time in a process, whatever a cluster's worker makes of it


def _sandbox(kind: str, imports: tuple[str, ...]) -> Sandbox:
    """This process's sandbox of this kind; not one of the process that it was forked from."""
    key = os.getpid(), kind, imports
    if key not in _sandboxes:
        close()  # that of another assignment
        sandbox = _adopted.pop((os.getpid(), kind), None) or Sandbox(kind)
        _sandboxes[key] = sandbox.ready(imports)
    return _sandboxes[key]


def adopt(sandbox: Sandbox) -> None:
    """Take over a sandbox that the process has started from which this one was forked."""
    _adopted[os.getpid(), sandbox.kind] = sandbox


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


@contextlib.contextmanager
def _limited():
    """A limit on the memory of this process, which looks at what students send; where the system knows one.

    What goes beyond fails as on a machine that has no more, and costs the submission a test, and no other.
    """
    if not (taken := _taken()):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard, taken + MEMORY) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _taken() -> int:
    """The bytes of this process's data; 0 where the system does not say."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next((1024 * int(line.split()[1]) for line in file if line.startswith("VmData:")), 0)
    return 0


_compiled = functools.lru_cache(maxsize=1000)(compile)  # an assignment's test cells, for a whole class


@contextlib.contextmanager
def _timed():
    """Raise `Gone` when a test takes too much of this process's time: its session sees to late answers, and
    this to what is computed from them. Only a main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_):
        raise Gone("time")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1.0)  # again, should it meet a place that cannot raise
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@functools.lru_cache(maxsize=8)
def _imports(name: str, source: str) -> dict:
    """What the instructor's own cells import, for test cells that use it; `check` is the outer one."""
    assignment = _assignment(name, source)
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


@dataclass
class _Run:
    """How far the steps of one submission have come, over as many children as it takes.

    The last test is the last step: no point depends on what comes after it.

    A cell or a test that ends the child, or its time, costs itself; the rest goes on in a new child, in which
    the cells before it have been run again. A function whose tests ran out of time once, or ended the child
    twice, is not tried again.

    What student code puts out after a hidden test in the same child could be made of that test's inputs. So
    it is withheld: outputs and errors of cells, and what visible checks would say of errors and results.

    Attributes:
        base: what the instructor's cells import.
        position: the step at which to go on.
        outputs: what the cell at a step printed.
        failed: the error of a step's cell, by its source.
        missing: for tests that found no function, the message without what its cell ended with.
        withheld: the names of tests, and the sources of cells, that would say more.
        ended: whether one of these cells has ended the child.
        unshown: steps whose output is withheld.
        skipped: cells that end the child.
        ends: how often a function ended the child.
        lost: functions that are not tried again, and why.
        names: what the cells so far have defined in the present child.
        secrets: whether that child has seen the inputs of a hidden test.
    """

    bundle: Bundle
    assignment: Assignment
    handed_in: Submission
    base: dict
    position: int = 0
    tests: list[Test] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    outputs: dict[int, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing: dict[str, core.Wrong] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)
    ended: bool = False
    unshown: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)
    lost: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    secrets: bool = False
    human: bool = False
    status: str = ""

    def __post_init__(self):
        self.limits, self.points = self.bundle.limits, self.assignment.points()
        self.end = 1 + max(
            (i for i, (kind, _) in enumerate(self.handed_in.steps) if kind == "test"), default=-1
        )

    def copy(self) -> "_Run":
        """Another record of the same progress, which can go on without changing this one."""
        return replace(
            self,
            tests=self.tests.copy(),
            remarks=self.remarks.copy(),
            outputs=self.outputs.copy(),
            failed=self.failed.copy(),
            missing=self.missing.copy(),
            withheld=self.withheld.copy(),
            unshown=self.unshown.copy(),
            skipped=self.skipped.copy(),
            ends=self.ends.copy(),
            lost=self.lost.copy(),
        )

    def give_up(self, status: str, words: str) -> None:
        """No points for the tests that are left."""
        self.status, self.human = status, True
        for kind, name in self.handed_in.steps[self.position :]:
            if kind == "test":
                self._record(name, 0.0, words)
        self.position = self.end

    def go_on(self, session: Session) -> None:
        """Go on in a new child, to the end or to the end of the child."""
        self.names, self.secrets = {}, False
        for i, (kind, what) in enumerate(self.handed_in.steps[: self.end]):
            if i >= self.position and kind == "test":
                there = self._test(session, what)
            else:
                there = kind == "test" or i in self.skipped or self._cell(session, i, what)
            self.position = max(self.position, i + 1)
            if not there:
                return

    def _cell(self, session: Session, i: int, source: str) -> bool:
        """Run a cell; whether the child is still there."""
        session.begin()
        session.cells.append(source)
        try:
            answer = session.ask("cell", source)
            failure, names = answer if type(answer) is tuple and len(answer) == 2 else (None, {})
            self.names = names if type(names) is dict else {}
            error = None if failure is None else session.error(failure)
        except StudentError as failure:  # the shell itself failed
            error = StudentError(failure.kind, f"{failure.kind}: {failure}", failure.place)
        except Gone as gone:
            self.skipped.add(i)
            words = self._words(gone.reason, "A cell")
            self.failed[source] = words
            if self.secrets:
                self.ended, self.withheld = True, self.withheld | {source}
                remark = words + BELOW
            else:
                remark = safe(f"{words}{BEGINS}{_line(source, 0)[:80]}")
            self.remarks += [remark] if remark not in self.remarks else []
            self.status, self.human = self.status or _status(gone.reason), True
            return False
        printed, words = session.take_printed(), str(error)
        if self.secrets:
            words = f"an error {error.place}" if error and error.place else "an error"
            self.unshown.add(i)
            self.withheld |= {source} if error else set()
        else:
            self.outputs[i] = printed
            self.unshown.discard(i)
            self.withheld.discard(source)
        if error is not None:
            self.failed[source] = _line(words, -1)[:300]
        return True

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
        visible = HIDDEN.search(cell.source) is None
        self.secrets |= not visible
        try:
            namespace = self._namespace(session, cell.source)
            with (
                _timed(),
                telling.hiding(self.secrets),
                contextlib.redirect_stdout(shown),
                contextlib.redirect_stderr(shown),
            ):
                exec(_compiled(cell.source, name, "exec"), namespace)
        except Gone as gone:
            there = False
            message = self._words(gone.reason, function or "The test")
            self.status, self.human = self.status or _status(gone.reason), True
            self.ends[function] += 1
            if gone.reason == "time" or self.ends[function] > 1:
                self.lost[function] = message
        except core.Wrong as wrong:
            message, about = self.explained(name, wrong), parts_of(wrong)
            self.human |= wrong.reason == core.STOPPED
        except Exception as error:  # of a test of the instructor's own
            message, about = self._own(name, error, cell.source)
        if self.secrets:
            ours = visible and _is_ours(cell.source)
            shown = shown if ours else io.StringIO()
            if visible and message and (telling.withheld(message) or not ours):
                self.withheld.add(name)
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

    def explained(self, name: str, wrong: core.Wrong) -> str:
        """The message; where a function is missing, with the error of the cells that may have defined it."""
        if wrong.reason != core.UNDEFINED:
            return wrong.sentence
        self.missing[name] = wrong
        sources = [source for source in self.failed if wrong.function in source]
        if not sources:
            return wrong.sentence
        known = [self.failed[source] for source in sources if source not in self.withheld]
        self.withheld |= set() if known else {name}  # which of its cells it is could tell much
        return f"{wrong.sentence} (Its cell ended with: {known[0] if known else 'an error'})"

    def _own(self, name: str, error: Exception, source: str) -> tuple[str, dict]:
        """The message of a test of the instructor's own, and more attributes of the `Test`.

        While there are secrets an assertion says what stands in the test's source, and no more.
        """
        words = str(error)
        if isinstance(error, Refused):
            return telling.refusal(error, _forbidden(name.rpartition("_")[0])), {}
        if isinstance(error, AssertionError):
            known = words in source if self.secrets else bool(words)
            return words[:1000] if known and words else "This test failed.", {}
        if isinstance(error, NameError) and str(error.name) in source:
            self.human |= error.name not in self.assignment.tasks
            wrong = core.undefined(error.name)
            return self.explained(name, wrong), parts_of(wrong)
        self.human, wrong = True, core.stopped(error)
        return (f"T{wrong.words[1:]}" if self.secrets else wrong.trouble), parts_of(wrong)

    def _record(
        self, name: str, points: float | None, message: str, shown: str = "", seconds: float = 0.0, **about
    ) -> None:
        """``about``: more attributes of the `Test`."""
        out_of = self.points[name]
        got = out_of if points is None else points
        message = safe(message[:2000])
        self.tests.append(Test(name, got, out_of, message, shown[:5000], round(seconds, 3), **about))

    def notebook(self) -> nbformat.NotebookNode:
        """The notebook as it was graded: the student's cells and the tests, each with what it printed, and
        all that the student wrote in words."""
        results = {test.name: test for test in self.tests}
        originals = {submission.grade_id(cell): cell for cell in self.assignment.notebook.cells}
        names = {source: name for name, source in self.handed_in.sources.items()}
        cells = []
        for i, (kind, what) in enumerate([*self.handed_in.steps, ("end", "")]):
            cells += self.handed_in.between.get(i, ())
            if kind == "test":
                test, cell = results[what], originals[what]
                message = core.with_link(test.message, test.read)
                cells.append(_with_outputs(cell.source, cell.metadata, test.shown, message))
            elif kind == "cell":
                metadata = originals[names[what]].metadata if what in names else {}
                printed = UNSHOWN if i == min(self.unshown, default=None) else self.outputs.get(i, "")
                cells.append(_with_outputs(what, metadata, printed, self.failed.get(what, "")))
        for i, cell in enumerate(cells):
            cell["id"] = f"cell-{i}"
        return submission.new_notebook(cells)


def _with_outputs(source: str, metadata: dict, printed: str, error: str) -> nbformat.NotebookNode:
    """A code cell with what it printed and the error that ended it."""
    cell = submission.new_cell("code", source, metadata, "")
    if printed:
        cell.outputs.append({"output_type": "stream", "name": "stdout", "text": printed})
    if error:
        words = {"ename": "Wrong", "evalue": error, "traceback": [error]}
        cell.outputs.append({"output_type": "error", **words})
    return cell


def parts_of(wrong: core.Wrong) -> dict:
    """What a `Test` keeps of a failed check beside its message."""
    return {
        "function": wrong.function,
        "case": safe(wrong.case),
        "slips": [safe(slip) for slip in wrong.cause.slips],
        "brief": safe(wrong.brief[:2000]),
        "reason": wrong.reason,
        "read": wrong.read,
        "trouble": "failure" if wrong.trouble else "",
        "error": safe(wrong.trouble[:500]),
    }


def _told(run: _Run) -> _Run:
    """The run at its end. What its tests have withheld is taken from another run without the hidden ones.

    Few submissions need that, and half of the time is enough for it.
    """
    deadline = time.monotonic() + run.limits.seconds
    run = _finished(run, deadline)
    withheld = run.withheld & set(run.assignment.tests)
    if not (withheld or run.ended) or time.monotonic() > deadline - run.limits.seconds / 2:
        return run
    steps = [
        (i, (kind, what))
        for i, (kind, what) in enumerate(run.handed_in.steps[: run.end])
        if kind == "cell" or HIDDEN.search(run.assignment.tests[what].source) is None
    ]
    handed_in = replace(run.handed_in, steps=[step for _, step in steps])
    other = _finished(_Run(run.bundle, run.assignment, handed_in, run.base), deadline)
    run.outputs |= {steps[i][0]: printed for i, printed in other.outputs.items()}
    run.unshown -= set(run.outputs)
    run.failed |= other.failed
    run.withheld -= set(other.failed)
    known = {remark.partition(BEGINS)[0] + BELOW for remark in other.remarks} | set(other.remarks)
    run.remarks = [remark for remark in run.remarks if remark not in known] + other.remarks
    said = {test.name: test for test in other.tests if test.message}
    for number, test in enumerate(run.tests):
        if test.name in run.missing:
            test.message = safe(run.explained(test.name, run.missing[test.name]))
        elif test.name in withheld & set(said):
            run.tests[number] = replace(said[test.name], points=test.points, seconds=test.seconds)
    return run


def _finished(run: _Run, deadline: float) -> _Run:
    """The run at its end. What a child did counts only when its session has ended well: if the sandbox itself
    is lost on the way, the run goes on from where it was before."""
    children, broken = 0, 0
    while run.position < run.end:
        left = deadline - time.monotonic()
        if left <= 0.05:
            run.give_up(
                "time", f"Your notebook has used up its {run.limits.seconds:.0f} seconds before this test."
            )
        elif children > MOST_CHILDREN or broken > 2:
            run.give_up("crash", "Your notebook has ended its process too often to go on to this test.")
        else:
            sandbox = _sandbox(run.bundle.sandbox, run.assignment.imports)
            further = run.copy()
            try:
                with sandbox.open(run.limits, left) as session:
                    further.go_on(session)
                run = further
            except SandboxError:  # it was there, and is gone
                close()
                broken += 1
            children += 1
    return run


@functools.lru_cache(maxsize=1000)
def _is_ours(source: str) -> bool:
    """Whether a test only calls `check` and `grade`, and so prints no result of a student's code."""
    calls = [node for node in ast.parse(source).body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return all(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id in ("check", "grade")
        for node in calls
    )


def _line(text: str, number: int) -> str:
    return (text.strip().splitlines() or [""])[number]


def _status(reason: str) -> str:
    return {"time": "time"}.get(reason, "crash")


@functools.lru_cache(maxsize=1000)  # the names are the student's
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
