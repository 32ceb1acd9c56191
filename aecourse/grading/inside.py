"""The program that runs inside the sandbox, with nothing of the course but the files that `sandbox` names.

It imports torch once and then makes a child for every submission, by a fork, which takes milliseconds. As the
first process of its namespace it cannot be killed from inside, and it kills whatever a submission leaves
behind. A child reads requests from its own socket: run this cell, call that function, give me a
vector-Jacobian product. The tests are not here; a child sees their inputs when it is called, and no more.
"""

import array
import contextlib
import ctypes
import gc
import importlib
import io
import itertools
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path

LINUX = sys.platform == "linux"
LIMITS = struct.Struct("<QQQQ")  # memory, CPU seconds, characters of output, bytes of a file
READY = b"ready"
MOST_THREADS = 500
FEW = 5  # submissions, after which it pays to make forks quicker


# --------------------------------------------------------------------------- one process per submission


def main(imports: str, *scratch: str) -> None:
    """Fork a child for each socket that arrives, until the trusted side closes the control socket.

    imports: names of modules, with commas between them. scratch: folders to empty after each child; it
    works in the first.
    """
    shell = warm_up([name for name in imports.split(",") if name])
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(Path(__file__).parents[2] / "control"))
    if LINUX:
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no process in here may trace this one
    os.chdir(scratch[0])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a handler of ours would make it deadly to this process
    control.sendall(READY)
    for number in itertools.count():
        if number == FEW:
            huge_pages()
        message, descriptors = _receive_descriptor(control)
        if not message:
            return
        memory, cpu, output, file = LIMITS.unpack(message)
        child = os.fork()
        if child == 0:
            control.close()
            with contextlib.suppress(BaseException):
                os.setsid()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                null = os.open(os.devnull, os.O_RDWR)
                for standard in (0, 1, 2):  # the pipe of errors is for those of the start
                    os.dup2(null, standard)
                os.close(null)
                confine(memory, cpu, file)
                gc.enable()
                serve(shell, socket.socket(fileno=descriptors[0]), output)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        while not select.select([control], [], [], 0.1)[0]:  # until it is done, or out of time
            if threads(child) > MOST_THREADS:  # the whole machine has some 30000 numbers for them
                os.kill(child, signal.SIGKILL)
        control.recv(1)
        status = reap(child)
        for folder in scratch:
            empty(folder)
        control.sendall(struct.pack("<q", status))


def huge_pages() -> None:
    """Have this process's memory in pages of 2 MB, if the kernel can: it takes a second, and from then on a
    fork copies a table of some hundred entries, and not one of a hundred thousand."""
    size, collapse = 2**21, 25  # MADV_COLLAPSE, Linux 6.1
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps.readlines():
            places, kind, _, _, file = line.split()[:5]
            start, end = (int(place, 16) for place in places.split("-"))
            if kind == "rw-p" and file == "0":  # memory of our own, behind no file
                for place in range(-(-start // size) * size, end - size + 1, size):
                    madvise(ctypes.c_void_p(place), ctypes.c_size_t(size), collapse)


def threads(process: int) -> int:
    """How many threads a process has."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[17])
    return 0


def _receive_descriptor(control: socket.socket) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(array.array("i").itemsize)
    message, ancillary, _, _ = control.recvmsg(LIMITS.size, space)
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return message, list(descriptors)


def reap(child: int) -> int:
    """Kill the child and all that is left of it; its wait status."""
    status = -1
    everyone = [-1] if os.getpid() == 1 else [child, -child]  # all of the namespace, or of the child's group
    while True:
        for target in everyone:
            with contextlib.suppress(OSError):
                os.kill(target, signal.SIGKILL)
        try:
            while True:
                found, code = os.waitpid(-1, 0)
                status = code if found == child else status
        except ChildProcessError:
            return status


def empty(folder: str) -> None:
    """Remove all that is in a folder, however deep: what is in a folder of it is moved up first."""

    def is_folder(path: str) -> bool:
        return os.path.isdir(path) and not os.path.islink(path)

    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
    done = True
    while done:
        done = False
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if is_folder(path):
                    os.chmod(path, 0o700)
                    for inner in os.listdir(path):
                        below = os.path.join(path, inner)
                        if is_folder(below):
                            os.chmod(below, 0o700)  # moving a folder changes it
                        os.rename(below, os.path.join(folder, os.urandom(16).hex()))
                    os.rmdir(path)
                else:
                    os.unlink(path)
                done = True


def warm_up(imports: list[str]):
    """Import and make what every submission needs, so that its child need not; the IPython shell."""
    import torch
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell

    from aecourse.checks import bans, modules  # noqa: F401
    from aecourse.grading import wire  # noqa: F401

    sys.meta_path.append(_Refusing())
    torch.set_num_threads(1)  # threads do not survive a fork
    with torch.no_grad():  # a backward pass would start a thread
        torch.distributions.Normal(0.0, 1.0).log_prob(torch.randn(2, 2) @ torch.ones(2, 2))
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # what it imports, a gradient does, too
    for name in ("torch.nested._internal.nested_tensor", *imports):  # the first: for the first gradient
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    HistoryManager.enabled = False  # a database and a thread
    shell = InteractiveShell.instance()
    shell.showtraceback = shell.showsyntaxerror = lambda *arguments, **keywords: None
    shell.run_cell("pass", store_history=False)
    gc.disable()
    gc.collect()
    gc.freeze()  # a child that looked through all this for garbage would copy it
    return shell


class _Refusing:
    """The last of the import finders: what is left of the course's library is a polite refusal."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith("aecourse."):
            from aecourse.checks.bans import REFUSED, Refused

            raise Refused(f"{name} {REFUSED}")


# --------------------------------------------------------------------------- confinement of a child

# System calls, by machine. Those that make processes are refused but for threads; the others would outlast
# the submission (shared memory and queues by key, keyrings) or reach for the kernel.
PROCESSES = {"x86_64": (56, 57, 58, 435), "aarch64": (220, None, None, 435)}  # clone, fork, vfork, clone3
REFUSED_CALLS = {
    # shmget semget msgget mq_open add_key request_key keyctl ptrace unshare setns bpf perf_event_open
    # userfaultfd io_uring_setup process_vm_readv process_vm_writev memfd_create
    # and what would slow down the warm process: setpriority sched_setparam sched_setscheduler
    # sched_setaffinity ioprio_set sched_setattr
    "x86_64": (
        *(29, 64, 68, 240, 248, 249, 250, 101, 272, 308, 321, 298, 323, 425, 310, 311, 319),
        *(141, 142, 144, 203, 251, 314),
    ),
    "aarch64": (
        *(194, 190, 186, 180, 217, 218, 219, 117, 97, 268, 280, 241, 282, 425, 270, 271, 279),
        *(140, 118, 119, 122, 30, 274),
    ),
}
LIMIT_CALL = {"x86_64": 302, "aarch64": 261}  # prlimit64: for oneself only, not for the warm process
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def confine(memory: int, cpu: int, file: int) -> None:
    """Limits on memory (bytes beyond what is in use), CPU seconds and files; threads but no new processes.

    Off Linux, where there is no sandbox either, only the CPU time is limited.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    if not LINUX:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, without which the next file cannot be written
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # if memory runs out after all, this goes first
    with open("/proc/self/statm") as sizes:
        pages = [int(number) * resource.getpagesize() for number in sizes.read().split()]
    for kind, limit in (
        (resource.RLIMIT_DATA, pages[5] + memory),
        (resource.RLIMIT_AS, pages[0] + memory + memory // 2),  # shared memory too; stacks of threads
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    program = _filter(os.uname().machine)
    memory_of_it = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(memory_of_it))
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0):
        os._exit(3)


def _filter(machine: str) -> bytes:
    """A program (BPF) that says of each system call whether it may be made.

    clone fails without CLONE_THREAD; clone3, whose flags a filter cannot see, is said not to exist, upon
    which the C library uses clone.
    """
    clone, fork, vfork, clone3 = PROCESSES[machine]
    first = 16  # where the first argument is, its lower half
    load, equal, anyof, answer = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026  # ALLOW, EPERM, ENOSYS
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, ARCHITECTURE[machine]),
        (answer, 0, 0, refuse),
        (load, 0, 0, 0),  # the number of the call
        (equal, 0, 1, clone3),
        (answer, 0, 0, unknown),
    ]
    for call in (fork, vfork, *REFUSED_CALLS[machine]):
        if call is not None:
            steps += [(equal, 0, 1, call), (answer, 0, 0, refuse)]
    if machine == "x86_64":  # numbers from 2^30 on are those of another ABI
        steps += [(0x35, 0, 1, 0x40000000), (answer, 0, 0, refuse)]
    steps += [
        (equal, 0, 4, LIMIT_CALL[machine]),
        (load, 0, 0, first),
        (equal, 0, 1, 0),  # oneself
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
        (equal, 1, 0, clone),
        (answer, 0, 0, allow),
        (load, 0, 0, first),
        (anyof, 0, 1, 0x00010000),  # CLONE_THREAD
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


# --------------------------------------------------------------------------- a child at work


class Output(io.TextIOBase):
    """What a submission prints, up to a number of characters."""

    def __init__(self, most: int):
        self.most, self.left, self.pieces = most, most, []

    def write(self, text: str) -> int:
        if self.left > 0:
            self.pieces.append(text[: self.left])
        self.left -= len(text)
        return len(text)

    def writable(self) -> bool:
        return True

    def take(self) -> str:
        text = "".join(self.pieces) + (" … (and more)" if self.left < 0 else "")
        self.pieces, self.left = [], self.most
        return text


class Child:
    """Answers requests about one submission.

    A request is (action, arguments); an answer is ("ok", result, printed) or ("error", kind, words, printed).
    Graphs of results and modules are kept under numbers until the trusted side says that they may go.
    """

    def __init__(self, shell):
        self.shell, self.graphs, self.modules, self.count = shell, {}, {}, 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def cell(self, source: str) -> tuple[str, dict[str, str]]:
        """Run a cell of the notebook; the last line of its error's traceback, or nothing, and `names`."""
        done = self.shell.run_cell(source, store_history=False)
        error = done.error_before_exec or done.error_in_exec
        return _last_line(error), self.names()

    def names(self) -> dict[str, str]:
        """What the notebook has defined: for each name "callable" or "data"."""
        found = {name: thing for name, thing in self.shell.user_ns.items() if not name.startswith("_")}
        hidden = self.shell.user_ns_hidden
        return {
            str(name): "callable" if callable(thing) else "data"
            for name, thing in found.items()
            if hidden.get(name) is not thing and type(thing) is not type(sys)
        }

    def value(self, name: str):
        return self.shell.user_ns[name]

    def call(self, target: list, calls: list, forbidden: tuple, state) -> tuple:
        """Call a function by name, or a method of a module by number, once for each of ``calls``.

        target: [name] or [number, method]. calls: pairs of positional and keyword arguments. forbidden: the
        names of ready-made answers. state: of torch's global random numbers and gradient mode.
        Returns (result, effects on its arguments) of each call, the number of their graph, the random state
        if it is another, and (kind, words) of the error that ended them early.
        """
        import torch

        from aecourse.checks.bans import banned

        random, differentiable = state
        if random is not None:
            torch.set_rng_state(random)
        before = torch.get_rng_state()
        with torch.set_grad_enabled(differentiable), banned(forbidden):
            if len(target) == 1:
                function = self.shell.user_ns[target[0]]
            else:
                function = getattr(self.modules[target[0]].module, target[1])
            results, outputs, leaves, failure = [], [], [], None
            for arguments, keywords in calls:
                try:
                    results.append(self._call(function, arguments, keywords, outputs, leaves))
                except BaseException as error:  # SystemExit and KeyboardInterrupt of a student included
                    failure = _words(error)
                    break
        number = 0
        if outputs and leaves:
            number = self.number()
            self.graphs[number] = (outputs, leaves)
        after = torch.get_rng_state()
        return results, number, None if torch.equal(before, after) else after, failure

    def _call(self, function, arguments: tuple, keywords: dict, outputs: list, leaves: list) -> tuple:
        """One call: what crosses of its result, and of its effects. Its graph goes to outputs and leaves."""
        import torch

        from aecourse.grading import wire

        given = wire.tensors_of((arguments, keywords))
        before = [(tensor.detach().clone(), tensor.requires_grad) for tensor in given]
        leaf_of = [_leaf(tensor) for tensor in given]
        own = [leaf for leaf in leaf_of if leaf.requires_grad]
        result = function(*arguments, **keywords)
        found = [_effect(now, leaf.grad, *then) for now, leaf, then in zip(given, leaf_of, before)]
        effects = {str(i): effect for i, effect in enumerate(found) if effect is not None}
        generators = [a for a in (*arguments, *keywords.values()) if type(a) is torch.Generator]
        if isinstance(result, torch.nn.Module):
            from aecourse.checks.modules import Held

            number = self.number()
            self.modules[number] = Held(result)
            result = {"module": number}
        elif not isinstance(result, wire.KNOWN):
            result = {"object": type(result).__name__[:80]}
        try:  # what cannot cross is this call's error, not that of all
            wire.describe(result, [])
        except (AttributeError, RuntimeError, TypeError) as error:
            raise wire.WireError("something that cannot be read") from error
        leaves += own
        outputs += [tensor for tensor in wire.tensors_of(result) if tensor.requires_grad]
        return result, effects, generators

    def pull(self, number: int, gradients: list) -> list:
        """The vector-Jacobian product of a call: a gradient, or None, for each differentiable input."""
        import torch

        outputs, leaves = self.graphs[number]
        pairs = [(output, slope) for output, slope in zip(outputs, gradients) if slope is not None]
        if not pairs:
            return [None] * len(leaves)
        outputs, slopes = zip(*pairs)
        return list(torch.autograd.grad(outputs, leaves, slopes, retain_graph=True, allow_unused=True))

    def module(self, number: int, operation: str, arguments: tuple, forbidden: tuple):
        """An operation of `Held` on a module."""
        from aecourse.checks.bans import banned

        with banned(forbidden):
            return getattr(self.modules[number], operation)(*arguments)

    def drop(self, numbers: list) -> None:
        for number in numbers:
            self.graphs.pop(number, None)
            self.modules.pop(number, None)


def serve(shell, channel: socket.socket, most_output: int) -> None:
    """Answer requests until the socket closes."""
    from aecourse.grading import wire

    output, child = Output(most_output), Child(shell)
    while True:
        try:
            action, arguments, dropped = wire.receive(channel, graphs=True)
        except EOFError:
            return
        child.drop(dropped)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                answer = ("ok", getattr(child, action)(*arguments), output.take())
            except BaseException as error:
                answer = ("error", *_words(error), output.take())
        try:
            wire.send(channel, answer)
        except wire.WireError as error:
            wire.send(channel, ("error", *_words(error), ""))
        except (AttributeError, RuntimeError, TypeError, ValueError):  # nothing has been sent yet
            wire.send(channel, ("error", "Returned", "something that cannot be read", ""))


def _last_line(error: BaseException | None) -> str:
    try:
        return "" if error is None else "".join(traceback.format_exception_only(error))[:2000]
    except BaseException:  # an error may be of a student's own kind
        return "an error that cannot be shown"


def _leaf(tensor):
    """The tensor itself, or the leaf that it is a copy of."""
    return tensor if tensor.is_leaf else tensor.grad_fn.next_functions[0][0].variable


def _effect(now, slope, then, required: bool) -> tuple | None:
    """What a call did to a tensor: its numbers, whether it requires gradients, its slope; or nothing."""
    import torch

    changed = now.shape == then.shape and not torch.equal(now, then) and not (now != now).any()
    if slope is None and now.requires_grad == required and not changed:
        return None
    return now.detach(), now.requires_grad, slope


def _words(error: BaseException) -> tuple[str, str]:
    """The kind and the words of an error; "Returned" stands for a result that cannot cross."""
    from aecourse.grading.wire import WireError

    try:
        return "Returned" if type(error) is WireError else type(error).__name__[:80], str(error)[:600]
    except BaseException:
        return "Exception", "an error that cannot be shown"
