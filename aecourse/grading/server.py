"""The program that runs inside the sandbox, with nothing of the course but the files that `sandbox` names.

It imports torch once and then makes a child for every submission, by a fork, which takes milliseconds. As the
first process of its namespace it cannot be killed from inside, and it kills whatever a submission leaves
behind. What a child does is in `calls`, what it may do in `confine`.
"""

import array
import contextlib
import ctypes
import functools
import gc
import importlib
import inspect
import itertools
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

LIMITS = struct.Struct("<QQQQ")  # memory, CPU seconds, characters of output, bytes of a file
END, READY = b"\n", b"ready"
MOST_THREADS = 500
FEW = 5  # submissions, after which it pays to make forks quicker
FIRST = 1000  # the number of a child, so that it does not tell how many threads others had


def main(kind: str, size: str, *scratch: str) -> None:
    """Fork a child for each socket that arrives, until the trusted side closes the control socket.

    kind: "mounts" if each child can have folders of its own. Otherwise they are emptied after it: "folders"
    of a container, or of a "user" to whom nothing else belongs, or "unsafe" ones among those of others.
    size: bytes that a child may have in a folder. scratch: these folders; it works in the first.
    """
    from aecourse.grading import confine

    mounts, most = kind == "mounts", int(size)
    counted = {"folders": scratch, "user": scratch[:1]}.get(kind, ())  # what holds no files of others

    def enter(memory: int, cpu: int, file: int) -> None:
        """What a child does before anything of a submission runs in it."""
        if confine.LINUX:
            confine.first_to_go()
        if mounts:
            confine.own_mounts(scratch, most)
        if kind == "user":
            confine.only_files(scratch)
        confine.confine(memory, cpu, file)

    if mounts:
        try_out(enter)
        confine.close_devices()
    shell = warm_up()
    from aecourse.grading.calls import serve  # needs torch, and the trusted side reads this file without it

    control = socket.socket(socket.AF_UNIX)
    control.connect(str(Path(__file__).parents[2] / "control"))
    words = b""  # the first: names of modules, with commas between them
    while not words.endswith(END):
        if not (part := control.recv(2**16)):
            return
        words += part
    settle(words.removesuffix(END).decode().split(","))
    if confine.LINUX:
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
        if mounts:
            count_from(FIRST)
        before = taken(counted)
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
                enter(memory, cpu, file)
                gc.enable()
                serve(shell, socket.socket(fileno=descriptors[0]), output)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        while not select.select([control], [], [], 0.1)[0]:  # until it is done, or out of time
            files, size = (now - then for now, then in zip(taken(counted), before))
            full = files > confine.MOST_FILES or size > most * len(counted)
            if full or threads(child) > MOST_THREADS:  # the whole machine has some 30000 numbers for them
                os.kill(child, signal.SIGKILL)
        control.recv(1)
        # All of the namespace, or of the user, or of the child's group.
        status = reap(child, [-1] if os.getpid() == 1 or kind == "user" else [child, -child])
        for folder in () if mounts else scratch:
            empty(folder)
        control.sendall(struct.pack("<q", status))


def try_out(enter) -> None:
    """See that a child can enter; why it cannot, somebody should read.

    Raises:
        SystemExit: it cannot.
    """
    child = os.fork()
    if child == 0:
        try:
            enter(2**30, 60, 2**20)
        except OSError as error:
            words = "A submission's own process cannot be made, which a profile of AppArmor may forbid"
            print(f"{words}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)


def count_from(number: int) -> None:
    """Give the next process this number, where the kernel can."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(number - 1))


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


def taken(folders: tuple[str, ...]) -> tuple[int, int]:
    """How many files and bytes the file systems of these folders hold."""
    systems = [os.statvfs(folder) for folder in folders]
    return (
        sum(system.f_files - system.f_ffree for system in systems),
        sum((system.f_blocks - system.f_bfree) * system.f_frsize for system in systems),
    )


def reap(child: int, everyone: list[int]) -> int:
    """Kill the child and all that is left of it; its wait status."""
    status = -1
    while True:
        for target in everyone:
            with contextlib.suppress(OSError):
                os.kill(target, signal.SIGKILL)
        try:
            while True:
                process, code = os.waitpid(-1, 0)
                status = code if process == child else status
        except ChildProcessError:
            return status


def empty(folder: str) -> None:
    """Remove all that is this user's in a folder, however deep: what is in a folder of it is moved up first.
    Then it looks as it did before."""

    def is_folder(path: str) -> bool:
        return os.path.isdir(path) and not os.path.islink(path)

    with contextlib.suppress(OSError):  # it may be another user's, whose mode and times are safe
        os.chmod(folder, 0o700)
    done = True
    while done:
        done = False
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if os.lstat(path).st_uid != os.geteuid():
                    continue
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
    with contextlib.suppress(OSError):
        os.utime(folder, (0, 0))


def warm_up():
    """Import and make what every submission needs, so that its child need not; the IPython shell."""
    import torch
    from IPython.core.history import HistoryManager
    from IPython.core.interactiveshell import InteractiveShell

    sys.meta_path.append(_Refusing())
    torch.compile = compiled
    loader = torch.utils.data.DataLoader
    loader.__init__ = without_workers(loader.__init__)
    torch.set_num_threads(1)  # threads do not survive a fork
    with torch.no_grad():  # a backward pass would start a thread
        torch.distributions.Normal(0.0, 1.0).log_prob(torch.randn(2, 2) @ torch.ones(2, 2))
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # what it imports, a gradient does, too
    with contextlib.suppress(ImportError):
        importlib.import_module("torch.nested._internal.nested_tensor")  # for the first gradient
    HistoryManager.enabled = False  # a database and a thread
    shell = InteractiveShell.instance()
    shell.showtraceback = shell.showsyntaxerror = lambda *arguments, **keywords: None
    shell.run_cell("pass", store_history=False)
    return shell


def compiled(model=None, **options):
    """`torch.compile`, where no compiler can be started: the function or module as it is."""
    return (lambda model: model) if model is None else model


def without_workers(initialise):
    """The initialiser of a `DataLoader` that loads without other processes, since there can be none here: the
    same examples come in the same order (of shuffling persistent workers, in the first epoch)."""
    signature = inspect.signature(initialise)
    of_workers = "num_workers timeout multiprocessing_context prefetch_factor persistent_workers".split()

    @functools.wraps(initialise)
    def initialise_without(*arguments, **keywords):
        given = signature.bind(*arguments, **keywords).arguments
        initialise(**{name: value for name, value in given.items() if name not in of_workers})

    return initialise_without


def settle(imports: list[str]) -> None:
    """Import these modules, and leave all that is there to all children."""
    for name in filter(None, imports):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.disable()
    gc.collect()
    gc.freeze()  # a child that looked through all this for garbage would copy it


class _Refusing:
    """The last of the import finders: what is left of the course's library is a polite refusal."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith("aecourse."):
            from aecourse.checks.bans import REFUSED, Refused

            raise Refused(f"{name} {REFUSED}")
