"""A container as others make them, in which nobody can make a namespace: root in it, system calls filtered.

Run as a program it forbids namespaces and mounts, as Docker does, and then runs a command.
"""

import ctypes
import os
import shutil
import struct
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "/autograder/tests/support/container.py"  # this file, in there
CLOSED = "/autograder/source"  # where the course is, for root alone
POSSIBLE = os.geteuid() == 0 and sys.platform == "linux" and shutil.which("bwrap") is not None
# mount umount2 pivot_root unshare setns, and with a kernel or a Docker of some age the Landlock calls
FORBIDDEN = {"x86_64": (165, 166, 155, 272, 308), "aarch64": (40, 39, 41, 97, 268)}
CLONES = {"x86_64": (56, 435), "aarch64": (220, 435)}
NAMESPACES = 0x7E020000


def inside(*command: str, landlock: bool, folders: dict[str, Path] | None = None) -> list[str]:
    """The command that runs another one in such a container, as root. Folders: more places, {there: here}."""
    outer = "bwrap --die-with-parent --unshare-pid --unshare-ipc --ro-bind /usr /usr --proc /proc".split()
    for name in ("lib", "lib64", "bin", "sbin"):
        path = Path("/", name)
        outer += ["--symlink", os.readlink(path), str(path)] if path.is_symlink() else []
    outer += "--dev /dev --size 67108864 --tmpfs /dev/shm --chmod 1777 /dev/shm".split()
    outer += "--perms 1777 --tmpfs /tmp --ro-bind /etc/ld.so.cache /etc/ld.so.cache".split()
    prefixes = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"))}
    for prefix in sorted(prefixes):
        if not prefix.is_relative_to("/usr"):
            for folder in list(reversed(prefix.parents))[1:]:
                outer += ["--dir", str(folder)]
            outer += ["--ro-bind", str(prefix), str(prefix)]
    outer += [*"--dir /root --dir /autograder --perms 0700 --dir".split(), CLOSED]
    outer += ["--ro-bind", __file__, PROGRAM]
    for name in ("aecourse", "tests", "solutions", "assignments", "pyproject.toml"):
        outer += ["--ro-bind", str(ROOT / name), f"{CLOSED}/{name}"]
    for there, here in (folders or {}).items():
        outer += ["--bind", str(here), there]
    outer += ["--chdir", CLOSED, "--setenv", "PYTHONPATH", f"{CLOSED}:{CLOSED}/tests"]
    outer += ["--setenv", "HOME", "/root"]
    python = Path(sys.executable)
    python = str(python.parent.resolve() / python.name)
    return [*outer, python, PROGRAM, str(int(landlock)), *command]


def _forbid(landlock: bool) -> None:
    machine = os.uname().machine
    clone, clone3 = CLONES[machine]
    steps = [(0x20, 0, 0, 0)]
    for call in FORBIDDEN[machine]:
        steps += [(0x15, 0, 1, call), (0x06, 0, 0, 0x00050001)]
    for call in (clone3,) if landlock else (clone3, 444, 445, 446):
        steps += [(0x15, 0, 1, call), (0x06, 0, 0, 0x00050026)]
    steps += [(0x15, 0, 3, clone), (0x20, 0, 0, 16), (0x45, 0, 1, NAMESPACES), (0x06, 0, 0, 0x00050001)]
    steps += [(0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    memory = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(memory))
    libc = ctypes.CDLL(None)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0):
        sys.exit("no filter")


if __name__ == "__main__":
    _forbid(sys.argv[1] == "1")
    arguments = [sys.executable if word == "python" else word for word in sys.argv[2:]]
    os.execvp(arguments[0], arguments)
