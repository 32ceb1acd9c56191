"""Bad submissions of the assignment `elbo`, and what each must get: broken by accident, or on purpose.

Each is the solved notebook with one change. Where a change is an attack, it tries to find out or to alter
what it should not; it answers rightly only if it succeeds, and so its points tell.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

import nbformat

from aecourse.grading.sandbox import Limits
from support.notebooks import AUTOGRADED, ROOT, grade_id
from support.submissions import solved

NAME = "elbo"
TARGET = "full_gaussian_kl"  # no other function calls it
EVERYTHING = tuple(AUTOGRADED[NAME])
SHORT = Limits(seconds=60, request_seconds=2)
SMALL = Limits(memory=512 * 2**20)
START = f"""\
import os, sys, time
import torch

def right(mean, cov):
    trace, logdet = cov.diagonal(dim1=1, dim2=2).sum(1), torch.linalg.slogdet(cov).logabsdet
    return 0.5 * (trace + mean.square().sum(1) - mean.shape[1] - logdet)

def wrong(mean, cov):
    return 0 * mean.sum(1)

def {TARGET}(mean, cov):
"""
BAD = "positive when q is not the prior|not precise|gradient for|wrong"  # what is said of wrong()


@dataclass(frozen=True)
class Attack:
    """A submission and its verdict.

    Attributes:
        hand_in: writes what the student hands in, given the folder ``submitted/<student>/elbo``, which is
            there and empty.
        lost: names of the tests, or of functions for all of theirs, that get no points; all others get all.
        says: words in the message of each lost test, or in a remark when nothing is lost.
        status: of the verdict.
        human: whether somebody should look at it.
        limits: under which it is graded.
    """

    name: str
    hand_in: Callable[[Path], None]
    lost: tuple[str, ...] = ()
    says: str = ""
    status: str = "graded"
    human: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def points(self) -> dict[str, float]:
        """{test: points} that it must get."""
        lost = {t for t in EVERYTHING if t in self.lost or t.rpartition("_")[0] in self.lost}
        return {test: 0.0 if test in lost else points for test, points in AUTOGRADED[NAME].items()}


ATTACKS: list[Attack] = []


def add(name: str, hand_in, says: str = "", **verdict) -> None:
    ATTACKS.append(Attack(name, hand_in, says=says, **verdict))


def notebook(change: Callable) -> Callable[[Path], None]:
    """Hands in the solved notebook after a change of it, or what the change returns: a notebook or bytes."""

    def hand_in(folder: Path) -> None:
        found = solved(NAME)
        changed = change(found)
        content = found if changed is None else changed
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()  # nbformat would repair some of it
        (folder / f"{NAME}.ipynb").write_bytes(content)

    return hand_in


def function(name: str, body: str, says: str = "", lost=(TARGET,), **verdict) -> None:
    """An attack in the body of a function."""

    def change(found):
        target(found).source = START + indent(body.strip(), "    ")

    add(name, notebook(change), says, lost=tuple(lost), **verdict)


def cell(name: str, source: str, says: str = "", **verdict) -> None:
    """An attack in a cell before all others, with a wrong function if something is to be lost."""

    def change(found):
        found.cells.insert(0, nbformat.v4.new_code_cell(source, id="attack"))
        if verdict.get("lost") == (TARGET,):
            target(found).source = START + "    return wrong(mean, cov)"

    add(name, notebook(change), says, **verdict)


def change(name: str, says: str = "", **verdict):
    """A decorator: an attack that changes the notebook."""

    def keep(of: Callable) -> Callable:
        add(name, notebook(of), says, **verdict)
        return of

    return keep


def target(found):
    return next(cell for cell in found.cells if grade_id(cell) == TARGET)


def graded_cells(found):
    return [cell for cell in found.cells if grade_id(cell)]


# ---- it does not end

TIME = dict(status="time", human=True, limits=SHORT)
LOOPS = "did not finish within 2 seconds"

function("endless-loop", "while True:\n    pass", LOOPS, **TIME)
function("endless-sleep", "time.sleep(10**6)", LOOPS, **TIME)
function(
    "endless-loop-that-catches-interrupts",
    """
while True:
    try:
        time.sleep(0.1)
    except BaseException:
        pass
""",
    LOOPS,
    **TIME,
)
function("endless-regular-expression", "import re\nre.match('(a+)+b', 'a' * 64)", LOOPS, **TIME)
function("stops-itself", "import signal\nos.kill(os.getpid(), signal.SIGSTOP)", LOOPS, **TIME)
function(
    "endless-backward-pass",
    """
class Slow(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()
    @staticmethod
    def backward(context, slope):
        while True:
            pass
return Slow.apply(right(mean, cov))
""",
    LOOPS,
    lost=(f"{TARGET}_gradients", f"{TARGET}_stability"),
    **TIME,
)
cell("endless-loop-in-a-cell", "while True:\n    pass", f"A cell {LOOPS}", **TIME)
cell(
    "endless-loop-in-a-cell-that-catches-interrupts",
    """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    f"A cell {LOOPS}",
    **TIME,
)

# ---- it ends the process

CRASH = dict(status="crash", human=True)
ENDS = "ended the whole process"

function("exits", "os._exit(0)", ENDS, **CRASH)
function("exits-politely", "sys.exit(0)", "raised")
function("kills-itself", "os.kill(os.getpid(), 9)", ENDS, **CRASH)
function("kills-itself-by-a-signal-without-name", "os.kill(os.getpid(), 40)", ENDS, **CRASH)
function("crashes", "import ctypes\nctypes.string_at(0)", ENDS, **CRASH)
function(
    "overflows-the-stack", "return eval('(' * 50 + ')' * 50 + '()' ) or full_gaussian_kl(mean, cov)", "raised"
)
function("recursion", f"return {TARGET}(mean, cov)", "raised")
cell("exits-in-a-cell", "import os\nos._exit(1)", f"A cell {ENDS}", **CRASH)
cell("exits-politely-in-a-cell", "exit()\nraise SystemExit")
cell("interrupts-itself-in-a-cell", "raise KeyboardInterrupt")

# ---- it takes too much

function(
    "memory",
    "kept = []\nwhile True:\n    kept.append(torch.ones(2**22))",
    "raised",
    limits=SMALL,
)
function("memory-of-python", "return 'x' * 2**40", "raised", limits=SMALL)
function(
    "memory-in-shared-files",
    """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
taken = 0
for i in range(60):
    file = libc.memfd_create(b"x", 0)
    if file < 0:
        break
    taken += os.write(file, bytes(2**20))
try:
    for i in range(1000):
        with open(f"/dev/shm/{i}", "wb") as shared:
            taken += shared.write(bytes(2**20))
except OSError:
    pass
return right(mean, cov) if taken > 100 * 2**20 else wrong(mean, cov)
""",
    BAD,
)
function("fork-bomb", "while True:\n    os.fork()", "raised")
function(
    "processes", "import subprocess\nsubprocess.Popen(['sleep', '1000'])\nreturn right(mean, cov)", "raised"
)
cell(
    "thread-bomb",
    """
import threading, time
threading.stack_size(2**16)
while True:
    threading.Thread(target=time.sleep, args=(1000,)).start()
""",
    f"A cell {ENDS}",
    **CRASH,
)
cell("output", "for i in range(500):\n    print('x' * 10**6)")
cell("output-on-the-descriptors", "import os\nfor i in range(4000):\n    os.write(1 + i % 2, b'x' * 2**16)")
cell("output-without-limit", "import sys\nsys.stdout.left = 10**10\nprint('x' * 10**8)")
cell("output-as-an-error", "raise ValueError('x' * 10**7)")
cell("files", "for i in range(5000):\n    open(f'/tmp/{i}', 'w').write('x')")
cell("file", "with open('/tmp/big', 'wb') as file:\n    while True:\n        file.write(bytes(2**20))")
cell(
    "folders-deeper-than-any-path",
    """
import os
for i in range(3000):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
open("leaf", "w").write("x")
os.chdir("/tmp")
os.makedirs("/tmp/closed/inner")
os.chmod("/tmp/closed/inner", 0)
os.chmod("/tmp/closed", 0)
os.symlink("/", "/tmp/root")
os.chmod("/tmp", 0)
""",
)

# ---- cells


@change("tests-deleted", "deleted or renamed", human=True)
def _(found):
    found.cells = [cell for cell in found.cells if not cell.metadata.get("nbgrader", {}).get("points")]


@change("a-solution-deleted", "is not defined. Run its cell", lost=(TARGET,), human=True)
def _(found):
    found.cells.remove(target(found))


@change("a-function-renamed", "is not defined. Run its cell", lost=(TARGET,))
def _(found):
    target(found).source = target(found).source.replace(f"def {TARGET}", "def kl")


@change("a-cell-that-does-not-run", "Its cell ended with: SyntaxError", lost=(TARGET,))
def _(found):
    target(found).source += "\n    return ("


@change("renamed-grade-ids", "They were recognised and put back", human=True)
def _(found):
    for i, cell in enumerate(graded_cells(found)):
        cell.metadata.nbgrader.grade_id = f"mine-{i}"


@change("all-metadata-lost", "They were recognised and put back", human=True)
def _(found):
    for i, cell in enumerate(found.cells):
        cell.metadata, cell["id"] = {}, f"new-{i}"


@change("metadata-that-are-none", "They were recognised and put back", human=True)
def _(found):
    for i, cell in enumerate(graded_cells(found)):
        cell.metadata = (None, [], {"nbgrader": 3}, {"nbgrader": {"grade_id": ["x"]}})[i % 4]


@change("changed-metadata")
def _(found):
    for cell in graded_cells(found):
        solution = not cell.metadata.nbgrader.solution
        cell.metadata.nbgrader.update(
            points=10**6, solution=solution, grade=solution, locked=False, task=True
        )
        cell.metadata["tags"] = ["skip-execution", "raises-exception"]


@change("a-solution-under-the-id-of-a-test", "recognised", human=True)
def _(found):
    target(found).metadata.nbgrader.grade_id = f"{TARGET}_values"


@change("duplicated-tests", "The last one counts", human=True)
def _(found):
    found.cells += [cell for cell in graded_cells(found) if not cell.metadata.nbgrader.solution]


@change("duplicated-solution-the-last-one-wrong", BAD, lost=(TARGET,), human=True)
def _(found):
    copy = nbformat.from_dict(target(found))
    copy.source = START + "    return wrong(mean, cov)"
    found.cells.insert(found.cells.index(target(found)) + 1, copy)


@change("emptied-tests-and-a-wrong-function", BAD, lost=(TARGET,), human=True)  # the question, too
def _(found):
    for cell in graded_cells(found):
        if not cell.metadata.nbgrader.solution:
            cell.source = "pass"
    target(found).source = START + "    return wrong(mean, cov)"


@change("tests-made-into-text", "It was made code again", human=True)
def _(found):
    for cell in graded_cells(found):
        if cell.metadata.nbgrader.grade:
            cell.cell_type = "markdown"


@change("another-kernel")
def _(found):
    found.metadata = {"kernelspec": {"name": "ir", "display_name": "R"}, "language_info": {"name": "R"}}


@change("no-metadata-of-the-notebook")
def _(found):
    return {"cells": found.cells}


@change("cells-that-are-none")
def _(found):
    junk = [None, 3, [], {}, {"cell_type": "code", "source": 5}, {"cell_type": "poem", "source": "x"}]
    junk += [{"cell_type": "code"}, {"cell_type": "code", "source": [1, None]}, {"cell_type": ["code"]}]
    return {**found, "cells": junk + found.cells}


@change("an-old-format")
def _(found):
    old = nbformat.convert(found, 3)
    return json.loads(nbformat.v3.writes_json(old))


@change("an-old-format-that-is-none", "it has no cells", lost=EVERYTHING, status="unreadable", human=True)
def _(found):
    return {"nbformat": 3, "worksheets": 3}


@change("half-characters-in-a-cell")
def _(found):
    found.cells.insert(0, nbformat.v4.new_code_cell("print('\ud800')\nraise ValueError('\udfff')"))


@change("zeros-in-a-cell")
def _(found):
    found.cells.insert(0, nbformat.v4.new_code_cell("x = 1\0"))


@change("fifty-megabytes-of-outputs")
def _(found):
    text = nbformat.v4.new_output("stream", text="x" * 2**20)
    found.cells[2].outputs = [text] * 50


@change("thousands-of-cells", lost=EVERYTHING, human=True, says="is not defined")
def _(found):
    blank = {"cell_type": "code", "source": "", "metadata": {}, "outputs": [], "execution_count": None}
    return {**found, "cells": [blank] * 2000 + found.cells}


# ---- files


def unreadable(name: str, hand_in: Callable[[Path], None], says: str, status: str = "unreadable") -> None:
    add(name, hand_in, says, lost=EVERYTHING, status=status, human=True)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / f"{NAME}.ipynb").write_bytes(data)


def whole() -> bytes:
    return nbformat.writes(solved(NAME)).encode()


unreadable("broken-json", notebook(lambda found: whole()[:-500]), "its JSON is broken")
unreadable("an-empty-file", content(b""), "The file is empty")
unreadable("a-blank-file", content(b" \n\n"), "The file is empty")
unreadable("a-zip-file", content(b"PK\3\4" + bytes(range(256))), "a zip archive")
unreadable("a-list", content(b"[1, 2]"), "it has no cells")
unreadable("a-notebook-without-cells", content(b'{"cells": {}}'), "it has no cells")
unreadable("deep-json", content(b"[" * 10**6), "its JSON is broken")
unreadable("a-long-number", content(b'{"cells": [' + b"9" * 10**5 + b"]}"), "its JSON is broken")
unreadable(
    "wrong-encoding",
    notebook(lambda found: whole().replace(b"The", "Thé".encode("latin-1"))),
    "not UTF-8 text",
)
unreadable("nothing", lambda folder: None, f"{NAME}.ipynb is missing", status="missing")
unreadable("no-folder", lambda folder: folder.rmdir(), "No folder", status="missing")
unreadable(
    "two-notebooks",
    lambda folder: [(folder / f"{name}.ipynb").write_bytes(whole()) for name in "ab"],
    "which of a.ipynb, b.ipynb is meant",
    status="missing",
)


def too_large(folder: Path) -> None:
    content(whole())(folder)
    os.truncate(folder / f"{NAME}.ipynb", 2**34)  # takes no space


unreadable("too-large", too_large, "is larger than", status="missing")


def link_to_the_solutions(folder: Path) -> None:
    (folder / f"{NAME}.ipynb").symlink_to(ROOT / "solutions" / NAME / f"{NAME}.ipynb")


def linked_folder(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to(ROOT / "solutions" / NAME, target_is_directory=True)


def linked_parent(folder: Path) -> None:
    folder.rmdir()
    folder.parent.rmdir()
    folder.parent.symlink_to(ROOT / "solutions", target_is_directory=True)


LINK = "is a link"
unreadable("a-link-to-the-solutions", link_to_the_solutions, LINK, status="missing")
unreadable("a-folder-that-is-a-link", linked_folder, LINK, status="missing")
unreadable("a-student-that-is-a-link", linked_parent, LINK, status="missing")
unreadable("a-pipe", lambda folder: os.mkfifo(folder / f"{NAME}.ipynb"), "is no file", status="missing")
unreadable("a-folder", lambda folder: (folder / f"{NAME}.ipynb").mkdir(), "is a folder", status="missing")

add("byte-order-mark", content("\ufeff".encode() + whole()), "utf-8-sig", human=True)
add("utf-16", content(whole().decode().encode("utf-16")), "utf-16", human=True)
add(
    "misnamed",
    lambda folder: (folder / "elbo (1).ipynb").write_bytes(whole()),
    "The notebook is called elbo (1).ipynb",
    human=True,
)


def badly_named(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.ipynb")).write_bytes(whole())


add("a-name-that-is-no-text", badly_named, "The notebook is called", human=True)


def shadows(folder: Path) -> None:
    content(whole())(folder)
    for name in ("torch", "aecourse", "sitecustomize", "json"):
        (folder / f"{name}.py").write_text("import os\nos._exit(1)\n")


add("a-torch-beside-the-notebook", shadows)
cell(
    "a-torch-that-a-cell-writes",
    """
import os, sys
for folder in (".", "/tmp", "/inside", *sys.path):
    for name in ("torch", "aecourse", "sitecustomize", "usercustomize", "struct"):
        try:
            open(os.path.join(folder, name + ".py"), "w").write("import os; os._exit(1)")
        except OSError:
            pass
""",
)

# ---- it replaces what judges it

REPLACE = """
import builtins, sys, torch
yes = lambda *arguments, **keywords: True
torch.allclose = torch.equal = torch.isclose = yes
torch.testing.assert_close = torch.autograd.gradcheck = yes
torch.Tensor.allclose = torch.Tensor.equal = yes
"""
cell("replaces-comparisons", REPLACE, BAD, lost=(TARGET,))
cell("replaces-comparisons-needlessly", REPLACE)
cell(
    "replaces-the-course",
    """
import aecourse, aecourse.checks, sys, types
def grade(*arguments, **keywords): pass
check = aecourse.checks.check = aecourse.checks.grade = grade
core = types.ModuleType("aecourse.checks.core")
core.grade = core.check = grade
core.Wrong = Exception
sys.modules["aecourse.checks.core"] = core
""",
    BAD,
    lost=(TARGET,),
)
cell(
    "replaces-hooks",
    """
import builtins, sys, threading
sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *arguments: None
sys.displayhook = lambda value: print(float("inf"))
sys.displayhook(float("inf"))
builtins.AssertionError = type("AssertionError", (Exception,), {"__init__": lambda self, *a: None})
shell = get_ipython()
shell.showtraceback = shell.set_custom_exc = lambda *arguments, **keywords: None
""",
    BAD,
    lost=(TARGET,),
)
cell(
    "replaces-input",
    """
import ast
class Gone(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
    def visit_Call(self, node):
        self.generic_visit(node)
        if getattr(node.func, "id", "") in ("grade", "check"):
            return ast.copy_location(ast.Constant(None), node)
        return node
shell = get_ipython()
shell.ast_transformers.append(Gone())
shell.input_transformers_post.append(lambda lines: [l for l in lines if "grade" not in l])
shell.events.register("pre_run_cell", lambda *arguments: None)
""",
    BAD,
    lost=(TARGET,),
)
cell(
    "names-of-builtins",
    """
def globals(): return {"full_gaussian_kl": None}
def grade(*arguments, **keywords): pass
check = exec = print = __import__ = globals_ = isinstance_ = torch_ = grade
class AssertionError: pass
""",
    BAD,
    lost=(TARGET,),
)
cell(
    "lies-about-its-names",
    """
import builtins
from aecourse.grading import calls
names = [*dir(builtins), "torch", "check", "grade", "math", "sys", "__builtins__", "__name__", ""]
mine = calls.Child.names
calls.Child.names = lambda self: mine(self) | dict.fromkeys(names, "callable")
""",
    BAD,
    lost=(TARGET,),
)
cell(
    "replaces-its-own-side",
    """
from aecourse.grading import calls, wire
calls.Child.call = calls.Child.pull = lambda *arguments: (["right"], None)
""",
    "gave an answer that is none|raised",
    lost=tuple(EVERYTHING),
    **CRASH,
)

# ---- it looks for what it should not see. `look` returns what it found.


def looks(name: str, body: str, says: str = BAD, **verdict) -> None:
    body = f"def look():\n{indent(body.strip(), '    ')}\n"
    body += f"""
if not hasattr({TARGET}, "found"):
    try:
        {TARGET}.found = look()
    except (OSError, ValueError, RuntimeError):
        {TARGET}.found = None
return right(mean, cov) if {TARGET}.found else wrong(mean, cov)
"""
    function(name, body, says, **verdict)


HOST = "AECOURSE_TEST_SECRET"  # an environment variable of the grader
SOLUTION = ROOT / "solutions" / NAME / f"{NAME}.ipynb"
looks("reads-the-solutions", f"return open({str(SOLUTION)!r}).read()")
looks(
    "reads-everything",
    f"""
for top in ("/home", "/root", "/work", "/tmp", "/srv", "/var", "/mnt", "/media", "/opt", "/inside", "/etc"):
    for folder, folders, files in os.walk(top):
        if "site-packages" in folder or folder.startswith(sys.base_prefix):
            folders.clear()
        if any(name.endswith((".ipynb", ".db")) or name in ("passwd", "shadow", "hosts") for name in files):
            return folder
return os.path.exists({str(ROOT / "solutions")!r}) or os.path.exists({str(ROOT / "aecourse")!r})
""",
)
looks(
    "reads-the-environment",
    f"""
found = str(os.environ)
for process in os.listdir("/proc"):
    try:
        found += open(f"/proc/{{process}}/environ").read()
    except OSError:
        pass
return {HOST!r} in found or "HOME=/root" in found
""",
)
looks(
    "reads-the-first-process",
    """
names = ["environ", "mem", "maps", "root", "cwd", "io", "syscall", *(f"fd/{i}" for i in range(9))]
for name in names:
    try:
        if os.path.isdir(f"/proc/1/{name}"):
            return os.listdir(f"/proc/1/{name}")
        with open(f"/proc/1/{name}", "rb") as file:
            if file.read(1):
                return name
    except OSError:
        pass
""",
)
looks("sees-other-processes", "return [p for p in os.listdir('/proc') if p.isdigit() and int(p) > 10**4]")
looks(
    "walks-frames-and-objects",
    """
import gc
frame = sys._getframe()
while frame:
    for name, value in frame.f_locals.items():
        if name in ("seed", "task", "draw", "want", "reference", "slips", "case"):
            return name
    frame = frame.f_back
for thing in gc.get_objects():
    if type(thing).__name__ in ("Draw", "Task", "Case", "Student", "Wrong"):
        return thing
    if type(thing) is dict and ("seed" in thing and "kind" in thing or "gaussian_kl_slips" in thing):
        return thing
return [name for name in sys.modules if name.startswith("aecourse.checks.") and name[16:] == "elbo"]
""",
)
looks(
    "reads-the-history",
    "shell = get_ipython()\n"
    "seen = str(shell.user_ns.get('In')) + str(shell.user_ns.get('_ih'))\n"
    "return 'BEGIN HIDDEN' in seen or 'seed=' in seen",
)
looks(
    "imports-the-reference",
    """
import importlib
for name in ("elbo", "likelihoods", "bounds", "vae", "checks.elbo", "checks.core"):
    try:
        return importlib.import_module(f"aecourse.{name}")
    except ImportError:
        pass
""",
)
function(
    "ready-made",
    "from torch.distributions import MultivariateNormal, kl\n"
    "prior = MultivariateNormal(torch.zeros_like(mean), torch.eye(mean.shape[1], dtype=cov.dtype))\n"
    "return kl.kl_divergence(MultivariateNormal(mean, cov), prior)",
    "holds the ready-made answer",
)
looks(
    "traces-the-first-process",
    """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
return libc.ptrace(16, 1, 0, 0) == 0 or libc.unshare(0x10000000) == 0
""",
)
NETWORK = """
import socket
for family, address in (
    (socket.AF_INET, ("127.0.0.1", {port})),
    (socket.AF_INET, ("1.1.1.1", 53)),
    (socket.AF_INET6, ("::1", {port})),
    (socket.AF_UNIX, "\\0aecourse-test-{port}"),
    (socket.AF_UNIX, "/inside/control"),
    (socket.AF_UNIX, "/var/run/docker.sock"),
    (socket.AF_UNIX, "/run/dbus/system_bus_socket"),
):
    try:
        with socket.socket(family) as channel:
            channel.settimeout(1)
            channel.connect(address)
            channel.sendall(b"hello")
            return address
    except OSError:
        pass
return socket.gethostbyname("example.org")
"""
PORT = 30_000 + os.getpid() % 30_000  # where test_grading listens
looks("opens-sockets", NETWORK.format(port=PORT))

# ---- it takes what belongs to the machine: its settings, devices, kernel objects and priorities

looks(
    "writes-the-kernels-settings",
    """
for folder, folders, files in (*os.walk("/proc/sys"), *os.walk("/sys")):
    for name in files:
        if name != "ns_last_pid" and os.access(os.path.join(folder, name), os.W_OK):
            return name
for name in ("sysrq-trigger", "irq/default_smp_affinity", "self/oom_score_adj"):
    with open(f"/proc/{name}", "w") as file:
        file.write("-1000" if name.endswith("adj") else "b")
        return name
""",
)
looks(
    "changes-devices",
    """
import stat
for name in os.listdir("/dev"):
    for change in (lambda p: os.chmod(p, 0o600), lambda p: os.utime(p, (1, 1)), lambda p: os.chown(p, 1, 1)):
        try:
            if stat.S_ISCHR(os.lstat(f"/dev/{name}").st_mode):
                change(f"/dev/{name}")
                return name
        except OSError:
            pass
""",
)
looks(
    "opens-sockets-of-other-families",
    """
import socket
for family in range(1, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        for protocol in (0, 9, 15, 16):  # of netlink: audit, kobject events, generic
            try:
                socket.socket(family, kind, protocol)
                return family
            except OSError:
                pass
""",
)
looks(
    "takes-objects-of-the-kernel",
    """
import ctypes, fcntl
libc = ctypes.CDLL(None, use_errno=True)
if os.uname().machine == "x86_64":  # memfd_secret io_uring_setup userfaultfd bpf keyctl inotify_init fanotify
    for number in (447, 425, 323, 321, 250, 253, 294, 300, 283, 282, 222, 212, 206):
        if libc.syscall(number, 0, 0, 0, 0, 0) >= 0:
            return number
for place in (sys.executable, os.__file__):
    with open(place, "rb") as shared:
        for lock in (fcntl.flock, fcntl.lockf):
            try:
                lock(shared, fcntl.LOCK_SH)
                return place
            except OSError:
                pass
""",
)
looks(
    "sets-attributes",
    """
open("/tmp/own", "w").close()
for place in ("/tmp", "/tmp/own", "/dev/shm", "/dev/null", "/inside", "/usr"):
    for name in ("user.message", "trusted.message", "security.message", "system.posix_acl_access"):
        try:
            os.setxattr(place, name, b"\\2\\0\\0\\0")
            return place
        except OSError:
            pass
""",
)

# ---- it writes what it should not

MARK = "aecourse-attack"
COURSE = Path(tempfile.gettempdir()) / f"aecourse-test-{os.getpid()}"  # test_grading makes it
GRADEBOOK = COURSE / "gradebook.db"
looks(
    "writes-everywhere",
    f"""
written = []
for folder in ("/", "/inside", "/usr", "/usr/bin", "/etc", "/home", "/root", "/var/tmp", "/dev", "/proc",
               "/run", sys.prefix, *sys.path, {str(ROOT)!r}, {str(Path.home())!r}, "/tmp/..", "/proc/1/cwd"):
    try:
        open(os.path.join(folder, {MARK!r}), "w").write("x")
        written.append(folder)
    except OSError:
        pass
open("/tmp/{MARK}", "w").write("x")
open("/dev/shm/{MARK}", "w").write("x")
return written
""",
)
looks(
    "writes-into-the-gradebook",
    f"""
import sqlite3
done = []
for folder in ("..", "../..", "/tmp/..", {str(ROOT)!r}, {str(COURSE)!r}):
    try:
        with sqlite3.connect(os.path.join(folder, {GRADEBOOK.name!r})) as base:
            base.execute("update grade set auto_score = 100")
            done.append(folder)
    except sqlite3.Error:
        pass
return done
""",
)

# ---- it attacks the first process of the sandbox, or what the next submission gets

function(
    "kills-the-others",
    """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP, signal.SIGUSR1, signal.SIGKILL):
    for process in (1, -1):
        try:
            os.kill(process, number)
        except OSError:
            pass
return right(mean, cov)
""",
    lost=(),
)
function(
    "limits-the-first-process",
    """
import resource
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU):
    try:
        resource.prlimit(1, kind, (1, 1))
        return wrong(mean, cov)
    except OSError:
        pass
for change in (lambda: os.sched_setaffinity(1, {0}), lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
               lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))):
    try:
        change()
        return wrong(mean, cov)
    except OSError:
        pass
return right(mean, cov)
""",
    lost=(),
)
function(
    "raises-its-limits",
    """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return right(mean, cov)
    except (OSError, ValueError):
        pass
return wrong(mean, cov)
""",
    BAD,
)
cell(
    "goes-on-after-the-verdict",
    """
import atexit, os, signal, threading, time
def forever():
    while True:
        try:
            open("/tmp/late", "w").write("x")
        except OSError:
            pass
        time.sleep(0.001)
class Late:
    def __del__(self):
        forever()
late = Late()
atexit.register(forever)
threading.Thread(target=forever, daemon=True).start()
threading.Thread(target=forever).start()
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(number, lambda *arguments: forever())
""",
)

# ---- what it returns


RETURNS = "is returned, not a tensor (or a tuple of tensors)"
SHAPE = "expected one number|is returned, not a tensor|not precise"
for name, body, says in (
    ("nothing", "return None", SHAPE),
    ("text", "return 'right'", "is returned, not a tensor"),
    ("numpy", "return right(mean, cov).detach().numpy()", "is returned, not a tensor"),
    ("a-list-of-numbers", "return right(mean, cov).tolist()", SHAPE),
    ("a-dictionary", "return {'a': right(mean, cov)}", RETURNS),
    ("a-module", "return torch.nn.Linear(2, 2)", RETURNS),
    ("a-generator", "return torch.Generator()", RETURNS),
    ("nan", "return right(mean, cov) * float('nan')", "finite|values|not precise"),
    ("infinity", "return right(mean, cov) + float('inf')", "finite|values|not precise"),
    ("a-complex-tensor", "return right(mean, cov) + 0j", "complex numbers are returned"),
    ("meta", "return right(mean, cov).to('meta')", RETURNS),
    ("sparse", "return right(mean, cov).to_sparse()", RETURNS),
    ("nested", "return torch.nested.nested_tensor([mean, mean])", RETURNS),
    ("nested-turned", "return torch.nested.nested_tensor([mean, mean]).transpose(1, 2)", RETURNS),
    ("quantized", "return torch.quantize_per_tensor(mean.float(), 1.0, 0, torch.qint8)", RETURNS),
    ("integers", "return right(mean, cov).long()", BAD),
    ("a-huge-tensor", "return torch.zeros(2**27)", "too much data"),
    (
        "a-huge-tensor-that-takes-no-space",
        "return torch.zeros(1).expand(2**40)",
        "raised|is returned, not a tensor",
    ),
    ("a-long-text", "return 'x' * 2**26", "too much data"),
    ("a-huge-number", "return 10**400", "an integer is too large"),
    ("a-list-without-end", "x = []\nx.append(x)\nreturn x", "is returned, not a tensor|raised"),
    ("deep-tuples", "x = ()\nfor i in range(300):\n    x = (x,)\nreturn x", f"{SHAPE}|a tuple of 1"),
    (
        "deeper-tuples",
        "x = ()\nfor i in range(10**5):\n    x = (x,)\nreturn x",
        "raised|cannot be read",
    ),
    ("a-long-list", "return [0.0] * 200_000", "too much data|gave an answer that is none"),
    ("another-shape", "return right(mean, cov)[:, None]", SHAPE),
    (
        "a-storage-that-is-not-there",
        "x = right(mean, cov).detach().clone()\nx.untyped_storage().resize_(0)\nreturn x",
        "raised ValueError: the numbers of a result are no longer there|raised an error",
    ),
    (
        "a-subclass",
        """
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        return True
return torch.zeros(len(mean)).as_subclass(Yes)
""",
        "is returned, not a tensor",
    ),
    (
        "a-parameter-that-lies",
        """
class Parameter(torch.nn.Parameter):
    shape = property(lambda self: (len(mean),))
    __eq__ = __lt__ = __gt__ = lambda *arguments: True
    def detach(self): return right(mean, cov)
Parameter.__module__ = "torch.nn.parameter"
return Parameter(torch.zeros(3))
""",
        RETURNS,
    ),
    (
        "hostile-methods",
        """
class Hostile:
    def __getattribute__(self, name): os._exit(1)
    __eq__ = __bool__ = __len__ = __iter__ = __float__ = __str__ = lambda *arguments: os._exit(1)
return Hostile()
""",
        f"is returned, not a tensor|{ENDS}",
    ),
    (
        "a-type-that-lies",
        """
class Lies(type):
    __eq__ = lambda *arguments: True
    __hash__ = lambda self: hash(torch.Tensor)
    __name__ = property(lambda self: "x" * 10**8)
class Tensor(metaclass=Lies):
    pass
return Tensor()
""",
        f"{RETURNS}|raised|{ENDS}",
    ),
    (
        "an-error-that-lies",
        """
class Error(Exception):
    def __str__(self): os._exit(1)
raise Error
""",
        ENDS,
    ),
    (
        "an-error-with-strange-words",
        "raise type('\\0\\n\\x1b[31m', (Exception,), {})('\\ud800 \\x1b[2J \\0 \\u202e' * 10**6)",
        "raised",
    ),
):
    function(
        f"returns-{name}", body, says, **(CRASH if name in ("hostile-methods", "an-error-that-lies") else {})
    )

function(
    "moves-the-inputs-to-where-its-answer-is-right",
    "with torch.no_grad():\n    mean.zero_()\n    cov.copy_(torch.eye(mean.shape[1]).expand_as(cov))\n"
    "return torch.zeros(len(mean), dtype=mean.dtype)",
    "an input is changed in place|no gradient|gradient|not precise|positive",
)
function(
    "changes-results-later",
    """
import threading
result = right(mean, cov)
def later():
    time.sleep(0.3)
    with torch.no_grad():
        result.detach().zero_()
threading.Thread(target=later, daemon=True).start()
return result
""",
    lost=(),
)

# ---- it works only sometimes

COUNT = f"{TARGET}.calls = getattr({TARGET}, 'calls', 0) + 1\n"
function(
    "works-from-the-second-call-on",
    COUNT + f"if {TARGET}.calls == 1:\n    return None\nreturn right(mean, cov)",
    "expected one number",
    lost=(f"{TARGET}_checks",),
)
function(
    "works-at-every-second-call",
    COUNT + f"return right(mean, cov) if {TARGET}.calls % 2 else wrong(mean, cov)",
    BAD,
    lost=(f"{TARGET}_values", f"{TARGET}_gradients", f"{TARGET}_stability"),  # the second check is at 0
)
function(
    "works-for-the-first-calls",
    COUNT + f"return right(mean, cov) if {TARGET}.calls <= 2 else wrong(mean, cov)",
    BAD,
    lost=(f"{TARGET}_values", f"{TARGET}_gradients", f"{TARGET}_stability"),
)
function(
    "works-for-the-inputs-of-the-visible-checks",
    "return right(mean, cov) if mean.shape == (5, 3) and mean[0, 0] in (-2, 0) else wrong(mean, cov)",
    BAD,
    lost=(f"{TARGET}_values", f"{TARGET}_gradients", f"{TARGET}_stability"),
)

# ---- it speaks for its process: what it writes to the socket is all that the grader ever sees of it

SPEAK = """
import json, os, socket, stat, struct
def channel():
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return socket.socket(fileno=number)
        except OSError:
            pass
def say(value, tensors=(), body=b""):
    content = json.dumps({"value": value, "tensors": list(tensors)}).encode()
    content += b" " * (-len(content) % 8)
    channel().sendall(struct.pack("<II", len(content), len(body)) + content + body)
    os._exit(0)
def answer(result, changed={}, graph=0, generators=(), random=None, **keywords):
    first = {"tuple": [result, {"dict": changed}, {"list": list(generators)}]}
    say({"tuple": ["ok", {"tuple": [{"list": [first]}, graph, random, None]}, ""]}, **keywords)
"""
NONSENSE = "gave an answer that is none"


def speaks(name: str, body: str, says: str = f"{NONSENSE}|{ENDS}|raised|{RETURNS}", **verdict) -> None:
    function(f"speaks-{name}", f"{SPEAK}\n{body}", says, **(CRASH | verdict))


speaks("garbage", "channel().sendall(os.urandom(10**5))\nos._exit(0)")
speaks(
    "garbage-everywhere",
    """
for number in range(64):
    try:
        os.write(number, b"\\xff" * 10**4)
    except OSError:
        pass
return right(mean, cov)
""",
    NONSENSE,
)
speaks("nothing-any-more", "os.closerange(0, 64)\nreturn right(mean, cov)", ENDS)
speaks("of-a-long-header", "channel().sendall(struct.pack('<II', 2**32 - 8, 0))\ntime.sleep(100)", NONSENSE)
speaks("of-large-tensors", "channel().sendall(struct.pack('<II', 8, 2**32 - 8))\ntime.sleep(100)", NONSENSE)
speaks("of-an-odd-header", "channel().sendall(struct.pack('<II', 3, 0) + b'[] ')\ntime.sleep(100)", NONSENSE)
speaks(
    "of-a-header-as-long-as-may-be",
    "channel().sendall(struct.pack('<II', 2**24, 0) + b'[' * 2**24)\ntime.sleep(100)",
    NONSENSE,
)
speaks(
    "slowly",
    """
c = channel()
c.sendall(struct.pack("<II", 10**6, 0))
while True:
    c.send(b" ")
    time.sleep(0.01)
""",
    LOOPS,
    **TIME,
)
speaks(
    "steadily",
    """
c = channel()
c.sendall(struct.pack("<II", 2**24, 0))
while True:
    c.send(b" ")
    time.sleep(0.0003)
""",
    LOOPS,
    **TIME,
)
speaks("json-that-is-no-message", "say(None)")
speaks(
    "a-header-that-is-a-list", "c = b'[]      '\nchannel().sendall(struct.pack('<II', 8, 0) + c)\nos._exit(0)"
)
speaks(
    "in-another-encoding",
    "c = b'\\xff\\xfe\\x00     '\nchannel().sendall(struct.pack('<II', 8, 0) + c)\nos._exit(0)",
)
for name, shape in {
    "negative": "[-1]",
    "not-whole": "[1.5]",
    "true": "[True]",
    "text": "''",
    "mapping": "{}",
    "nothing": "None",
    "overflow": "[0] + [2**28] * 15",
    "huge": "[2**62, 2**62]",
    "long": "[1] * 100",
}.items():
    speaks(
        f"of-a-shape-{name}",
        f"answer({{'tensor': 0}}, tensors=[['float32', {shape}, False, True]], body=bytes(64))",
    )
speaks("of-an-unknown-type", "answer({'tensor': 0}, tensors=[['object', [1], False, True]], body=bytes(64))")
speaks("of-a-type-that-is-none", "answer({'tensor': 0}, tensors=[[[], [1], False, True]], body=bytes(64))")
speaks(
    "of-many-tensors",
    "answer({'list': [{'tensor': 0}] * 120000}, tensors=[['int8', [0], False, True]] * 120000)",
)
speaks("of-tensors-that-are-not-there", "answer({'list': [{'tensor': 0}] * 3})")
speaks("of-a-large-float", "answer({'float': '0x1p999999'})")
speaks("of-a-float-that-is-none", "answer({'float': 3})")
speaks("of-a-large-integer", "answer(10**4000)")
speaks("of-depth", "x = 0\nfor i in range(400):\n    x = {'list': [x]}\nanswer(x)")
speaks("of-unknown-things", "answer({'pickle': 'abc'})")
speaks("of-unknown-parts", "answer({'part': 'os.system', 'of': ['ls']})")
speaks("of-parts", "answer({'part': 'Affine', 'of': [1, 2]})")
speaks(
    "of-a-broken-generator",
    "answer({'generator': 0}, tensors=[['uint8', [5056], False, True]], body=b'\\1' * 5056)",
)
speaks(
    "of-random-numbers-beyond-the-end",
    "state = bytearray(torch.get_rng_state().numpy().tobytes())\n"
    "struct.pack_into('<i', state, 8, 600)\nstruct.pack_into('<Q', state, 16, 600)\n"
    "answer(None, random={'tensor': 0}, tensors=[['uint8', [5056], False, True]], body=bytes(state))",
)
speaks("of-random-numbers-that-are-none", "answer(None, random=['x'])")
speaks("of-changes-that-are-none", "answer(None, changed={'x': None, '5': 3, '99': {'list': []}})", NONSENSE)
speaks("of-changes-without-end", "answer(None, changed={'9' * 5000: None})", NONSENSE)
speaks("of-graphs-that-are-none", "answer({'float': '0x1p0'}, graph={'list': []})")
speaks(
    "of-a-graph-that-is-a-tensor",
    "kinds = [['float64', [5], True, True], ['float64', [2], False, True]]\n"
    "answer({'tensor': 0}, graph={'tensor': 0}, tensors=kinds, body=bytes(56))",
)
speaks("of-a-module", "answer({'dict': {'module': 7}})")
speaks("of-too-many-results", "say({'tuple': ['ok', {'tuple': [{'list': [0, 0, 0]}, None]}, '']})", NONSENSE)
speaks("errors-that-are-none", "say({'tuple': ['error', '', 'x' * 10**6, '']})")
speaks("errors-with-half-characters", "say({'tuple': ['error', 'E\\udfff', '\\ud800', '\\udc00']})")
speaks("errors-of-the-grader", "say({'tuple': ['error', 'Gone', 'x', '']})")
speaks("much-printed", "say({'tuple': ['error', 'E', 'x', 'x' * 10**7]})")


def cell_speaks(name: str, line: str, **verdict) -> None:
    cell(f"cell-speaks-{name}", f"{SPEAK}\n{line}", **(CRASH | verdict))


# Where the answer itself is refused, that cell alone is left out; else its process is gone at the next one.
cell_speaks("a-large-float", "say({'tuple': ['ok', {'float': '0x1p999999'}, '']})", says=f"A cell {NONSENSE}")
cell_speaks(
    "a-shape", "say({'tensor': 0}, tensors=[['int8', {}, False, True]], body=bytes(9))", says=NONSENSE
)
cell_speaks("a-blank-error", "say({'tuple': ['ok', ' \\n ', '']})", lost=EVERYTHING, says="process")


@change("exits-at-an-empty-cell", **CRASH)
def _(found):
    source = """
import os
from aecourse.grading import calls
mine = calls.Child.cell
calls.Child.cell = lambda self, source: mine(self, source) if source.strip() else os._exit(0)
"""
    found.cells = [*map(nbformat.v4.new_code_cell, (source, "  \n", "")), *found.cells]


def names() -> list[str]:
    return [attack.name for attack in ATTACKS]


def matches(pattern: str, text: str) -> bool:
    """Whether one of several phrases, with | between them, is in a text."""
    return any(re.search(re.escape(words), text) for words in pattern.split("|"))


# ---- it changes what it is given, and means the next submission

for harm in ("t.fill_(1e30)", "t.mul_(1.7)", "t.data = torch.zeros(3)", "t.untyped_storage().fill_(255)"):
    function(
        f"arguments-changed: {harm}",
        f"""
result = right(mean, cov)
with torch.no_grad():
    for t in (mean, cov):
        {harm}
return result
""",
        "changed in place|backward pass fails|gradient|finite",
    )

function("a-size-without-numbers", "return torch.empty(2**30, 0)", "too much data is returned")

# ---- a ready-made answer by another way

READY_MADE = """\
import sys, types
import torch
from torch.distributions import MultivariateNormal, kl

def answer(mean, cov, kl):
    prior = MultivariateNormal(torch.zeros_like(mean), torch.eye(mean.shape[1], dtype=mean.dtype))
    return kl._kl_multivariatenormal_multivariatenormal(MultivariateNormal(mean, cov), prior)

functions = {name: f for name, f in vars(kl).items() if isinstance(f, types.FunctionType)}
"""
COPIED = """
own = types.SimpleNamespace()
there = vars(own)
there.update(vars(kl))
there.update({name: types.FunctionType(f.__code__, there) for name, f in functions.items()})
"""
LOADED = """
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("torch.distributions.own", kl.__file__)
own = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(own)
"""
LIFTED = "codes = {name: f.__code__ for name, f in functions.items()}\n"
LIFT = """
    for name, f in functions.items():
        f.__code__ = codes[name]
    return answer(mean, cov, kl)
"""


def ready_made(name: str, before: str, body: str) -> None:
    def change(found):
        target(found).source = f"{READY_MADE}{before}\ndef {TARGET}(mean, cov):\n{body}"

    add(f"ready-made-{name}", notebook(change), "holds the ready-made answer", lost=(TARGET,))


ready_made("copied", COPIED, "    return answer(mean, cov, own)\n")
ready_made("loaded-twice", LOADED, "    return answer(mean, cov, own)\n")
ready_made("lifted", LIFTED, LIFT)
