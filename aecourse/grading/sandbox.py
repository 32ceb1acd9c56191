"""Student code in a sandbox: no network, no files but Python's own, limits on all it can take.

A `Sandbox` is a warm process inside bubblewrap (or a container); `open` makes it fork a child for one
submission, and a `session.Session` talks to that child. The rest of the machine is not there: no home folder,
no solutions, no gradebook, no environment variables, and of this package a handful of files.

A sandbox takes seconds to start, so nothing here needs torch: it can be started before anything else.
"""

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aecourse
from aecourse.grading.server import END, LIMITS, READY

if TYPE_CHECKING:
    from aecourse.grading.session import Session

HERE = "/inside"  # where the sandbox shows the files below, and the socket of this side

# What student code finds of the course. `check` does nothing there: it runs outside.
FILES = (
    *("models.py", "checks/parts.py", "checks/bans.py", "checks/modules.py"),
    *("grading/server.py", "grading/confine.py", "grading/calls.py", "grading/wire.py"),
)
STUB = "def check(name, function):\n    pass\n"
SETTINGS = {
    "PATH": "/usr/bin:/bin",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "LANG": "C.UTF-8",
}
# The working folder is no place to import from. (Python 3.10 has no option -P.)
PROGRAM = """
import sys
sys.path[:] = filter(None, sys.path)
from aecourse.grading import server
server.main(*sys.argv[1:])
"""
NOBODY = "65534"
USERS = range(61184, 65520)  # kept free for such use, by systemd too
DEVICES = ("null", "zero", "full", "random", "urandom")


class SandboxError(RuntimeError):
    """The sandbox cannot be made, or is gone."""


def _homes(folder: str) -> dict[str, str]:
    """Settings that keep what Python's packages write at home in the scratch folder."""
    return {"HOME": folder, "IPYTHONDIR": f"{folder}/.ipython", "MPLCONFIGDIR": f"{folder}/.mpl"}


def _prefixes() -> set[Path]:
    """Where Python is."""
    return {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"))}


def _copies() -> list[Path]:
    """The folders of this package: the one in use, and others that are installed."""
    places = [Path(aecourse.__file__).parent, *(Path(folder) / "aecourse" for folder in sys.path)]
    return sorted({place.resolve() for place in places if place.is_dir()})


def works() -> bool:
    """Whether bubblewrap is there and may make namespaces."""
    command = "bwrap --unshare-all --unshare-user --ro-bind / / --proc /proc true".split()
    return shutil.which("bwrap") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _another_user() -> int:
    """The number of a user to whom nothing belongs, and who cannot read this package.

    Raises:
        SandboxError: there can be none.
    """
    if os.geteuid() != 0:
        raise SandboxError("The sandbox of another user is for a container in which you are root.")
    package = Path(aecourse.__file__).resolve().parent
    if all(place.stat().st_mode & 0o001 for place in (package, *package.parents)):
        raise SandboxError(
            f"Every user can read {package}, and with it what the tests compare with. Close its folder: "
            f"chmod go-rwx {package.parent}."
        )
    taken = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            taken.add(folder.stat().st_uid)
    # Not by `random`: workers that are forked from one process would all draw the same.
    return secrets.choice([user for user in USERS if user not in taken])


def _end_all(user: int) -> None:
    """Kill whatever a user runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == user:
                os.kill(int(folder.name), signal.SIGKILL)


def _as_nobody(places: list[Path]) -> list[str]:
    """What makes a command run as nobody, where this is root: root in a sandbox could write the kernel's
    settings. A first bubblewrap shows nobody these places, even where they are in a folder of root's own."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise SandboxError(
            "You are root, and student code must never run as root. Grade as another user, or install "
            "setpriv (apt install util-linux), with which the sandbox becomes nobody."
        )
    command = "bwrap --dev-bind / / --die-with-parent --cap-drop ALL".split()
    command += "--cap-add CAP_SETUID --cap-add CAP_SETGID".split()
    for place in sorted(places):
        above = list(reversed(place.parents))
        closed = [i for i, folder in enumerate(above) if not folder.stat().st_mode & 0o001]
        if closed:
            if str(above[closed[0]]) not in command:  # once, before all that is shown in it
                command += ["--tmpfs", str(above[closed[0]])]
            for folder in above[closed[0] + 1 :]:
                command += ["--dir", str(folder)]
            command += ["--ro-bind", str(place), str(place)]
    command += ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "KILL"]
    return command


@dataclass(frozen=True)
class Limits:
    """What a submission may take.

    Attributes:
        seconds: wall-clock time for all of it, restarts included.
        request_seconds: for one cell, or for one test.
        cpu_seconds: processor time of one process.
        memory: bytes beyond those of the warm process.
        output: characters printed by one cell.
        file: bytes of a file, in a scratch folder that is lost.
    """

    seconds: float = 180.0
    request_seconds: float = 60.0
    cpu_seconds: int = 120
    memory: int = 2 * 2**30
    output: int = 20_000
    file: int = 32 * 2**20


class Sandbox:
    """A warm process that forks one child per submission. A context manager.

    It starts at once, and is of use from `ready` on. In between it may change hands: a process that is forked
    from this one calls `ready`, and all others `leave`.

    Args:
        kind: ``"bubblewrap"``; ``"docker:IMAGE"`` or ``"podman:IMAGE"``, with an image that holds Python,
            torch and IPython; ``"user"`` inside a container that can make no sandbox: another user, who sees
            what everybody may see there; ``"unsafe"`` for none at all: a process of yours, with its limits,
            that can read and write what you can.
        scratch: bytes of the scratch folder.

    Raises:
        SandboxError: it cannot be made; the message says what to install. Nothing is run without it.
    """

    def __init__(self, kind: str = "bubblewrap", scratch: int = 64 * 2**20):
        self.folder = tempfile.TemporaryDirectory(prefix="aecourse-inside-")
        memory = "/dev/shm" if kind == "user" and os.path.isdir("/dev/shm") else None  # as large as it may be
        self.scratch = tempfile.TemporaryDirectory(prefix="aecourse-scratch-", dir=memory)  # of some kinds
        self.kind = kind
        self.user = None  # whose processes these are; default: of whoever runs this
        command, environment = self._command(kind, scratch)
        root = Path(self.folder.name)
        here = Path(aecourse.__file__).parent
        for name in ("", "checks", "grading"):
            (root / "aecourse" / name).mkdir()
            (root / "aecourse" / name / "__init__.py").write_text(STUB if name == "checks" else "")
        for name in FILES:
            shutil.copy(here / name, root / "aecourse" / name)
        root.chmod(0o755)  # a container may run as somebody else
        self.control = socket.socket(socket.AF_UNIX)
        self.control.bind(str(root / "control"))
        (root / "control").chmod(0o777)
        self.control.listen(1)
        try:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the grader, which then closes this
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )
        except OSError as error:
            raise SandboxError(f"The sandbox cannot be started: {error}") from None

    def ready(self, imports: tuple[str, ...] = ()) -> "Sandbox":
        """Wait until it is warm and has imported these modules, once for all; this sandbox.

        Raises:
            SandboxError: it did not start; with the words that it left.
        """
        words, deadline = b"", time.monotonic() + 120
        while time.monotonic() < deadline:
            # Whoever did not start the process cannot ask for its state: its end is the end of its words.
            calling, _, _ = select.select([self.control, self.process.stderr], [], [], 0.2)
            if self.process.stderr in calling:
                if not (part := os.read(self.process.stderr.fileno(), 2**16)):
                    break
                words += part
            elif calling:
                if self._answers(imports, deadline):
                    self.folder.cleanup()  # all of it has been imported, and nothing can be left behind
                    return self
                break
        self._kill()
        words += self.process.stderr.read()
        self.close()
        raise SandboxError(f"The sandbox did not start:\n{words.decode(errors='replace')[-2000:]}")

    def _answers(self, imports: tuple[str, ...], deadline: float) -> bool:
        listener = self.control
        self.control, _ = listener.accept()
        listener.close()
        try:
            self.control.settimeout(deadline - time.monotonic())
            self.control.sendall(",".join(imports).encode() + END)
            answer = self.control.recv(len(READY))
            self.control.settimeout(120)
        except OSError:
            return False
        return answer == READY

    def _command(self, kind: str, scratch: int) -> tuple[list[str], dict]:
        """What to run, and with which environment."""
        tool, _, image = kind.partition(":")
        if tool not in ("bubblewrap", "docker", "podman", "user", "unsafe") or bool(image) != (
            tool in ("docker", "podman")
        ):
            raise SandboxError(
                f"There is no sandbox {kind!r}: bubblewrap, docker:IMAGE, podman:IMAGE and user are. The "
                "image needs torch and IPython."
            )
        program = ["-c", PROGRAM]
        if tool in ("user", "unsafe"):
            folder = Path(self.scratch.name, "own")
            folder.mkdir(mode=0o700)
            folders = [str(folder)]
            if tool == "user":
                self.user = _another_user()
                folder.parent.chmod(0o755)
                os.chown(folder, self.user, self.user)
                folders += ["/dev/shm", "/tmp", "/var/tmp"]  # where everybody may write
            own = SETTINGS | _homes(folders[0]) | {"PYTHONPATH": self.folder.name, "TMPDIR": folders[0]}
            return [sys.executable, *program, tool, str(scratch), *filter(os.path.isdir, folders)], own
        name = "bwrap" if tool == "bubblewrap" else tool
        if shutil.which(name) is None:
            raise SandboxError(
                f"{name} is not installed, and without it student code would run as you, on your files. "
                "Install bubblewrap (apt install bubblewrap), or choose a container: --sandbox docker:IMAGE."
            )
        settings = SETTINGS | _homes("/tmp") | {"PYTHONPATH": HERE}
        program += ["mounts" if tool == "bubblewrap" else "folders", str(scratch), "/tmp", "/dev/shm"]
        if tool == "bubblewrap":
            path = {"PATH": os.environ.get("PATH", "")}
            python = Path(sys.executable)  # of an environment behind a link the place itself is shown
            program = [str(python.parent.resolve() / python.name), *program]
            program = [*self._bubblewrap(settings), *program]
            return [*_as_nobody([*_prefixes(), Path(self.folder.name)]), *program], path
        return [*self._container(tool, settings, scratch), image, *program], dict(os.environ)

    def _container(self, tool: str, settings: dict[str, str], scratch: int) -> list[str]:
        """The command up to the image's name. Where its Python is, the image itself says."""
        command = [tool, "run", "--rm", "--pull", "never", "--entrypoint", "python3"]
        command += ["--network", "none", "--hostname", "sandbox", "--read-only", "--cap-drop", "ALL"]
        command += ["--security-opt", "no-new-privileges", "--user", f"{NOBODY}:{NOBODY}"]
        command += ["--workdir", "/tmp", "--tmpfs", f"/tmp:size={scratch},mode=1777"]
        command += ["--tmpfs", "/dev/mqueue:ro", "--shm-size", str(scratch)]
        command += ["--volume", f"{self.folder.name}:{HERE}:ro"]
        if tool == "podman":  # which else shows the host's names and proxies, and adds places to write in
            command += ["--http-proxy=false", "--no-hosts", "--read-only-tmpfs=false"]
        for name, value in settings.items():
            if name != "PATH":
                command += ["--env", f"{name}={value}"]
        return command

    def _bubblewrap(self, settings: dict[str, str]) -> list[str]:
        """The command up to the program. The right to mount is the warm process's, for the folders of its
        children, which give it up."""
        prefixes = _prefixes()
        command = "bwrap --unshare-all --unshare-user --die-with-parent --new-session --as-pid-1".split()
        command += f"--clearenv --uid {NOBODY} --gid {NOBODY} --hostname sandbox".split()
        command += "--cap-drop ALL --cap-add CAP_SYS_ADMIN".split()
        command += "--ro-bind /usr /usr --proc /proc --tmpfs /dev --dir /dev/shm --tmpfs /tmp".split()
        for name in DEVICES:
            command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        command += ["--remount-ro", "/dev"]
        for name in ("lib", "lib64", "bin", "sbin"):
            path = Path("/") / name
            if path.is_symlink():
                command += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                command += ["--ro-bind", str(path), str(path)]
        for name in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"):
            command += ["--ro-bind-try", name, name]
        # An environment below /tmp stands in a read-only folder there, which nobody can move away.
        below = sorted({f"/tmp/{prefix.parts[2]}" for prefix in prefixes if prefix.is_relative_to("/tmp")})
        for folder in below:
            command += ["--tmpfs", folder]
        for prefix in sorted(prefixes):
            if not prefix.is_relative_to("/usr"):
                command += ["--ro-bind", str(prefix), str(prefix)]
        for folder in below:
            command += ["--remount-ro", folder]
        for installed in _copies():
            if any(installed.is_relative_to(prefix) for prefix in {*prefixes, Path("/usr")}):
                command += ["--ro-bind", f"{self.folder.name}/aecourse", str(installed)]  # not the references
        command += ["--ro-bind", self.folder.name, HERE, "--remount-ro", "/", "--chdir", "/tmp"]
        for name, value in settings.items():
            command += ["--setenv", name, value]
        return command

    @contextlib.contextmanager
    def open(self, limits: Limits, seconds: float) -> Iterator["Session"]:
        """A `Session` with a fresh child that has so many seconds; then it and all it started are killed.

        Raises:
            SandboxError: the warm process is gone.
        """
        ours, theirs = socket.socketpair()
        with ours:
            content = LIMITS.pack(limits.memory, limits.cpu_seconds, limits.output, limits.file)
            try:
                with theirs:
                    socket.send_fds(self.control, [content], [theirs.fileno()])
            except OSError:
                raise SandboxError("The sandbox is gone.") from None
            from aecourse.grading.session import Session  # needs torch

            session = Session(ours, time.monotonic() + seconds, limits)
            try:
                yield session
            finally:
                ours.close()
                session.signal = self._reap()

    def _reap(self) -> str:
        """End the child; the name of the signal that it had died of, or nothing."""
        try:
            self.control.sendall(b"x")
            content = self.control.recv(8)
            (status,) = struct.unpack("<q", content)
        except (OSError, struct.error):
            raise SandboxError("The sandbox is gone.") from None
        number = status & 127 if status >= 0 else 0
        with contextlib.suppress(ValueError):  # some have no name
            return signal.Signals(number).name if number else ""
        return f"signal {number}"

    def leave(self) -> None:
        """Have nothing more to do with it: another process has it now."""
        self.control.close()
        self.process.stderr.close()

    def _kill(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    self.process.pid, signal.SIGKILL
                )  # Popen's own leaves alone what it did not start here
            self.process.wait()

    def close(self) -> None:
        """End it, and all that is in it."""
        self._kill()
        if self.user is not None:
            _end_all(self.user)
        self.leave()
        self.folder.cleanup()
        self.scratch.cleanup()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextlib.contextmanager
def early(kind: str, count: int) -> Iterator[tuple[Sandbox, ...]]:
    """So many sandboxes, which start while the caller imports what it needs, and end with this; fewer where
    there can be none: whoever comes to need one is told why."""
    with contextlib.ExitStack() as sandboxes:
        started = []
        with contextlib.suppress(SandboxError):
            for _ in range(count):
                started.append(sandboxes.enter_context(Sandbox(kind)))
        yield tuple(started)
