"""What a child finds in the sandbox, what it can call, and what it can leave behind: nothing."""

import inspect
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest
import torch

pytest.importorskip("resource", reason="grading is for Linux and macOS")

from support.sandbox import WHOLE, needs_sandbox
from torch.utils.data import DataLoader, TensorDataset

import aecourse
from aecourse.grading import confine, sandbox
from aecourse.grading.sandbox import Limits, Sandbox, SandboxError

pytestmark = needs_sandbox


@pytest.fixture(scope="module")
def warm():
    with Sandbox() as process:
        yield process.ready()


def printed(warm: Sandbox, source: str) -> str:
    """What a cell prints in a fresh child; it must not fail."""
    with warm.open(Limits(), 60) as session:
        session.begin()
        error, _ = session.ask("cell", source)
        assert error is None, error
        return session.take_printed()


# --------------------------------------------------------------------------- nothing is left of a child

LOOKS = """
import os, resource, threading, time
for place in ("/", "/tmp", "/dev", "/proc", os.getcwd(), *(f"/dev/{name}" for name in os.listdir("/dev"))):
    found = os.stat(place)
    age = {name: time.time() - getattr(found, name) < 10**7 for name in ("st_atime", "st_mtime", "st_ctime")}
    print(place, oct(found.st_mode), found.st_uid, found.st_nlink, sorted(age.items()))
    if os.path.isdir(place):
        print(sorted(name for name in os.listdir(place) if name != str(os.getpid())))
    try:
        print(os.listxattr(place))
    except OSError as error:
        print(error.errno)
for folder in ("/tmp", "/dev/shm"):
    print([found for found in os.walk(folder)])
    open(f"{folder}/new", "w").close()
    size = os.statvfs(folder)
    print(os.stat(f"{folder}/new").st_ino, size.f_files, size.f_ffree, size.f_blocks, size.f_bfree)
print(os.getpid(), threading.get_native_id(), os.getpgrp(), os.getppid(), os.sched_getaffinity(0))
limits = [name for name in dir(resource) if name.startswith("RLIMIT")]
limits = [name for name in limits if name not in ("RLIMIT_AS", "RLIMIT_DATA")]
print([resource.getrlimit(getattr(resource, name)) for name in limits])
print(open("/proc/self/status").read().split("SigQ")[1].split("Cpus")[0])
print(os.getpriority(os.PRIO_PROCESS, 0), os.umask(0), sorted(os.environ.items()))
"""
# Every way to leave something that a student might think of; most fail.
LEAVES = """
import contextlib, ctypes, multiprocessing, os, resource, signal, socket, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def threads():
    for _ in range(50):
        threading.Thread(target=time.sleep, args=(0.001,)).start()
def descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))
def deep():
    os.makedirs("/tmp/closed/" + "d" * 200)
    os.chmod("/tmp/closed", 0)
kept = []
places = ["/", "/tmp", "/dev/shm", "/dev", "/dev/null", "/dev/urandom", "/usr", "/inside", "/proc"]
places += [top for root in ("/tmp", "/dev", "/run", "/var") for top, _, _ in os.walk(root)][2:]
tries = [threads, deep]
for place in places:
    tries += [
        lambda place=place: os.setxattr(place, "user.message", b"x" * 1000),
        lambda place=place: os.setxattr(place, "system.posix_acl_default", b"\\2\\0\\0\\0"),
        lambda place=place: os.utime(place, (10**9, 10**9)),
        lambda place=place: os.utime(place),
        lambda place=place: os.chmod(place, 0o1701),
        lambda place=place: os.chown(place, 1, 1),
        lambda place=place: open(place + "/message", "w").write("x"),
        lambda place=place: os.symlink("message", place + "/link"),
        lambda place=place: os.mkfifo(place + "/pipe"),
        lambda place=place: os.mknod(place + "/device", 0o20666, os.makedev(1, 1)),
    ]
for family in range(46):
    for kind in (1, 2, 3, 5):
        tries += [lambda family=family, kind=kind: kept.append(socket.socket(family, kind))]
tries += [
    lambda: kept.append(multiprocessing.Lock()),
    lambda: kept.append(socket.socketpair()),
    lambda: libc.shmget(1234, 4096, 0o1666),
    lambda: libc.msgget(1234, 0o1666),
    lambda: libc.semget(1234, 1, 0o1666),
    lambda: libc.syscall(240, b"message", 0o102, 0o666, 0),  # mq_open
    lambda: libc.syscall(248, b"user", b"message", b"x", 1, -4),  # add_key
    lambda: os.nice(5),
    lambda: os.sched_setaffinity(1, [0]),
    lambda: os.umask(0o77),
    lambda: os.setpgid(0, 0),
    lambda: signal.setitimer(signal.ITIMER_REAL, 100),
    descriptors,
]
done = 0
for attempt in tries:
    with contextlib.suppress(OSError, OverflowError):
        attempt()
        done += 1
print(done)
"""


@pytest.mark.seconds(5)
def test_nothing_is_left_of_a_child(warm):
    before = printed(warm, LOOKS)
    assert int(printed(warm, LEAVES)) > 10  # in folders that are its own
    assert printed(warm, LOOKS) == before


# --------------------------------------------------------------------------- what there is


def test_of_devices_and_proc_nothing_can_be_changed(warm):
    source = """
import errno, os
def fails(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return error.errno in (errno.EROFS, errno.EPERM, errno.EACCES, errno.ENOENT)
print(sorted(os.listdir("/dev")), sorted(set(os.listdir("/proc")) - {str(os.getpid())}))
print(all(fails(f, f"/dev/{name}", *rest) for name in os.listdir("/dev") if name != "shm"
          for f, rest in ((os.chmod, [0o600]), (os.utime, []), (os.utime, [(1, 1)]), (os.unlink, []))))
print([os.path.exists(p) for p in ("/sys", "/proc/sys", "/proc/sysrq-trigger", "/proc/1", "/proc/self/mem")])
print(all(fails(open, f"/proc/self/{name}", "w") for name in ("oom_score_adj", "status", "comm")))
print(len(os.urandom(4)), open("/dev/null", "w").write("x"), open("/dev/zero", "rb").read(2))
def writable():
    for top, folders, files in os.walk("/"):
        if top in ("/usr/share", "/usr/include", "/usr/lib") or top.endswith("-packages"):
            folders.clear()  # there are too many
        for place in (top, *(os.path.join(top, name) for name in files)):
            if os.access(place, os.W_OK) and not os.path.islink(place):
                yield place
print(sorted(place for place in writable() if not place.startswith("/tmp/")))
print([line for line in open("/proc/self/status") if line.startswith(("Uid", "CapEff", "CapPrm", "NoNew"))])
"""
    words = printed(warm, source).splitlines()
    assert words == [
        "['full', 'null', 'random', 'shm', 'urandom', 'zero'] ['cpuinfo', 'meminfo', 'self', 'stat']",
        "True",
        "[False, False, False, False, False]",
        "True",
        "4 1 b'\\x00\\x00'",
        "['/dev/full', '/dev/null', '/dev/random', '/dev/shm', '/dev/urandom', '/dev/zero', '/tmp']",
        "['Uid:\\t65534\\t65534\\t65534\\t65534\\n', 'CapPrm:\\t0000000000000000\\n', "
        "'CapEff:\\t0000000000000000\\n', 'NoNewPrivs:\\t1\\n']",
    ]


def test_files_are_few(warm):
    """However empty they are: each takes memory of the kernel."""
    source = """
import itertools
for folder in ("/tmp", "/dev/shm"):
    try:
        for number in itertools.count():
            open(f"{folder}/{number}", "w").close()
    except OSError as error:
        print(number, error.strerror)
"""
    found = re.findall(r"(?m)^(\d+) (.*)$", printed(warm, source))
    assert [words for _, words in found] == ["No space left on device"] * 2
    assert all(confine.MOST_FILES * 0.9 < int(number) <= confine.MOST_FILES for number, _ in found)


def test_folders_and_descriptors_end_where_they_should(warm):
    """What is written to them can be no program, either."""
    source = """
import mmap, os
for folder in ("/tmp", "/dev/shm"):
    taken = 0
    try:
        for number in range(8):
            with open(f"{folder}/{number}", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 2**25)
                taken += 2**25
    except OSError as error:
        print(taken, error.strerror)
kept = []
try:
    while True:
        kept.append(os.open("/dev/null", 0))
except OSError as error:
    print(max(kept), error.strerror)
    for descriptor in kept:
        os.close(descriptor)
for number in range(8):
    if os.path.exists(f"/tmp/{number}"):
        os.unlink(f"/tmp/{number}")
try:
    with open("/tmp/code", "wb") as file:
        file.write(bytes(4096))
    with open("/tmp/code", "rb") as file:
        mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
except OSError as error:
    print(error.strerror)
"""
    assert printed(warm, source).splitlines() == [
        f"{2**26} No space left on device",
        f"{2**26} No space left on device",
        "63 Too many open files",
        "Operation not permitted",
    ]


def test_a_child_is_the_first_to_go(warm):
    """Where memory runs out after all. The warm process stays."""
    process, scores = warm.process.pid, []
    with warm.open(Limits(), 60) as session:
        session.begin()
        session.ask("cell", "pass")
        while below := Path(f"/proc/{process}/task/{process}/children").read_text().split():
            process = int(below[0])
            scores.append(int(Path(f"/proc/{process}/oom_score_adj").read_text()))
    *others, child = scores
    assert child == 1000
    assert max(others) < 1000


def test_no_process_of_the_sandbox_is_root(warm):
    """Its last one runs the students' code; seen from outside, it is nobody where the grader is root."""
    process = warm.process.pid
    while below := Path(f"/proc/{process}/task/{process}/children").read_text().split():
        process = int(below[0])
    user = os.stat(f"/proc/{process}/limits").st_uid  # those of a process that shows nothing are root's
    status = Path(f"/proc/{process}/status").read_text()
    assert user in (0, os.geteuid())
    expected = sandbox.NOBODY if os.geteuid() == 0 else str(os.geteuid())
    assert re.search(r"^Uid:\t(\d+)\t(\d+)", status, re.MULTILINE).groups() == (expected, expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
def test_root_needs_a_way_to_be_somebody_else(monkeypatch, tmp_path):
    (tmp_path / "bwrap").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="must never run as root"):
        Sandbox()


def test_only_what_is_needed_of_the_course_is_there(warm):
    """Wherever else it is installed."""
    source = """
import importlib, os, sys
names = ["elbo", "vae", "likelihoods", "checks.elbo", "checks.core", "grading.worker", "grading.course"]
def there(name):
    try:
        return importlib.import_module(f"aecourse.{name}")
    except ImportError:
        return None
print([name for name in names if there(name)])
for top, folders, files in os.walk("/"):
    if top in ("/usr/share", "/usr/include", "/usr/lib"):
        folders.clear()
    if os.path.basename(top) == "aecourse" and top != "/inside/aecourse" and "models.py" in files:
        print(top, sorted(files))
    if "site-packages" not in top and ("solutions" in folders or any(n.endswith(".ipynb") for n in files)):
        print(top, files)
"""
    assert printed(warm, source) == "[]\n"


def test_other_copies_are_covered(monkeypatch, tmp_path):
    copy = tmp_path / "site-packages" / "aecourse"
    copy.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(copy.parent)])
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    process = Sandbox.__new__(Sandbox)
    process.folder = type("Folder", (), {"name": "/copies"})
    assert f"--ro-bind /copies/aecourse {copy.resolve()}" in " ".join(process._bubblewrap({}))


def test_an_environment_below_tmp_is_there_and_stays(monkeypatch, tmp_path):
    """It is bound over the empty /tmp, and the folder that holds it is closed after that."""
    monkeypatch.setattr(sys, "prefix", "/tmp/clone/.venv")
    process = Sandbox.__new__(Sandbox)
    process.folder = type("Folder", (), {"name": str(tmp_path)})
    command = " ".join(process._bubblewrap({}))
    places = [
        command.index(words)
        for words in ("--tmpfs /tmp ", "--ro-bind /tmp/clone/.venv ", "--remount-ro /tmp/clone ")
    ]
    assert places == sorted(places)


@pytest.mark.skipif(not WHOLE, reason="starts another sandbox: in the weekly run")
def test_a_child_has_an_environment_below_tmp(monkeypatch, tmp_path):
    """Over the folders of its own the environment is shown again, read-only."""
    if not tmp_path.is_relative_to("/tmp"):
        pytest.skip("is about /tmp")
    venv.create(tmp_path / "env", symlinks=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    more = [str(Path(path).resolve()) for path in sys.path if path.endswith("-packages")]
    (packages / "more.pth").write_text("\n".join(more))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python"))
    own = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    monkeypatch.setattr(sandbox, "_prefixes", lambda: {*own, (tmp_path / "env").resolve()})
    with Sandbox() as process:
        source = f"""
import os, sys
print(sys.prefix, os.path.exists({str(packages)!r}), os.access({str(packages)!r}, os.W_OK))
open("/tmp/x", "w").close()
"""
        for _ in range(2):
            assert printed(process.ready() if _ == 0 else process, source) == f"{tmp_path}/env True False\n"


def test_without_own_mounts_nothing_is_run(monkeypatch):
    """Where something takes the right to mount from the warm process, as some profiles of AppArmor do."""
    command = Sandbox._bubblewrap
    without = "--cap-add", "CAP_SYS_ADMIN"
    monkeypatch.setattr(Sandbox, "_bubblewrap", lambda *a: [w for w in command(*a) if w not in without])
    with pytest.raises(SandboxError, match=r"cannot be made, .* AppArmor .* make mounts of its own"):
        Sandbox().ready()


# --------------------------------------------------------------------------- system calls


def verdict(program: bytes, architecture: int, call: int, arguments=(0,) * 6) -> int:
    """What the filter says of a call: its program, run here as the kernel would."""
    data = struct.pack("<iIQ6Q", call, architecture, 0, *arguments)
    steps = [struct.unpack_from("HBBI", program, 8 * i) for i in range(len(program) // 8)]
    at = value = 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        else:
            holds = {0x15: value == k, 0x35: value >= k, 0x25: value > k, 0x45: bool(value & k)}[code]
            at += yes if holds else no


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h", "/usr/include/asm/unistd_64.h"),
}


@pytest.mark.parametrize("machine", confine.ARCHITECTURE)
def test_system_calls_are_allowed_by_name(machine):
    """Each number is that of its name, in the kernel's own list where this machine has it."""
    text = "".join(path.read_text() for path in map(Path, HEADERS[machine]) if path.is_file())
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR3264_(\w+) (\d+)", text)}
    names = re.findall(r"#define __NR_(\w+) __NR3264_(\w+)", text)
    numbers |= {name: numbers[of_both] for name, of_both in names if of_both in numbers}
    numbers |= {name: int(n) for name, n in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}
    if not numbers:
        pytest.skip("the kernel's headers are not installed")
    calls = [*confine.ALLOWED.split(","), *confine.CHECKED, confine.CLONE]
    new = {"fchmodat2"}  # than some headers
    for call in calls:
        name, number = call.split()[0], confine._number(call, machine)
        if number is not None and not (name in new and name not in numbers):
            assert numbers[name] == number, name
    low, high = confine.ATTRIBUTES[machine]
    assert {n for name, n in numbers.items() if "xattr" in name and n < 400} == set(range(low, high + 1))


@pytest.mark.parametrize("machine", confine.ARCHITECTURE)
def test_filter_of_system_calls(machine):
    """It says yes to what is listed, and no to all else."""
    process, architecture = 1000, confine.ARCHITECTURE[machine]
    program = confine._filter(machine, process)
    allowed = {confine._number(call, machine) for call in confine.ALLOWED.split(",")} - {None}
    checked = {confine._number(call, machine): rule for call, rule in confine.CHECKED.items()}
    clone = confine._number(confine.CLONE, machine)
    for call in [*range(600), 0x40000000, 0x40000001, 2**31 - 1]:
        said = verdict(program, architecture, call)
        if call in checked:
            place, values = checked[call]
            for value in (*range(60), 999, 1000, 1030, 1031, 0x5401, 0x5412, 0x53564D41, 2**32 - 1):
                arguments = [2**32 - 1] * 6
                arguments[place] = value
                right = value in {process if v is None else v for v in values}
                found = verdict(program, architecture, call, arguments)
                assert found == (confine.ALLOW if right else confine.REFUSE)
        elif call == clone:
            assert said == confine.REFUSE
            assert verdict(program, architecture, call, (0x3D0F00, *(0,) * 5)) == confine.ALLOW
        else:
            assert (said == confine.ALLOW) == (call in allowed), call
            if call not in allowed:
                assert said in (confine.REFUSE, confine.UNKNOWN, confine.UNSUPPORTED)
    assert verdict(program, 0x40000003, 0) == confine.REFUSE  # another architecture


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="tries the calls by their numbers")
def test_system_calls_that_fail(warm):
    names = """
socket 41, connect 42, bind 49, fork 57, vfork 58, execve 59, shmget 29, msgget 68, semget 64, flock 73,
ptrace 101, setuid 105, setpriority 141, sched_setscheduler 144, mlock 149, chroot 161, sync 162,
mount 165, reboot 169, setxattr 188, sched_setaffinity 203, io_setup 206, mq_open 240, add_key 248,
keyctl 250, ioprio_set 251, inotify_init 253, unshare 272, perf_event_open 298, name_to_handle_at 303,
setns 308, process_vm_readv 310, memfd_create 319, bpf 321, userfaultfd 323, io_uring_setup 425,
pidfd_open 434, clone3 435, landlock_create_ruleset 444, memfd_secret 447
"""
    refused = {name: int(number) for name, number in map(str.split, names.split(","))}
    source = f"""
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
found = {{}}
for name, number in {refused}.items():
    found[name] = libc.syscall(number, 0, 0, 0, 0, 0), ctypes.get_errno()
found["tkill"] = libc.syscall(200, 1, 9), ctypes.get_errno()
found["kill all"] = libc.kill(-1, 9), ctypes.get_errno()
found["stop tracing"] = libc.prctl(1, 9, 0, 0, 0), ctypes.get_errno()
print(json.dumps(found))
"""
    found = json.loads(printed(warm, source))
    assert {name: result for name, result in found.items() if result[0] != -1} == {}
    assert {error for _, error in found.values()} <= {1, 38, 95}  # EPERM, ENOSYS, EOPNOTSUPP


def test_what_students_use_works(warm):
    """In one process, with threads: files, locks, event loops, figures, saved weights, torch on two cores."""
    source = """
import asyncio, concurrent.futures, multiprocessing, os, shutil, sqlite3, tempfile, threading, time
import matplotlib.pyplot as plt, numpy, torch
async def nap():
    await asyncio.sleep(0.01)
    return 1
assert await nap() == 1
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
with tempfile.TemporaryDirectory() as folder, multiprocessing.Lock():
    torch.save({"a": torch.ones(3)}, folder + "/w.pt")
    shutil.copy2(folder + "/w.pt", folder + "/copy.pt")
    shutil.move(folder + "/copy.pt", "/tmp/moved.pt")
    assert torch.load("/tmp/moved.pt")["a"].sum() == 3
    numpy.save(folder + "/x.npy", numpy.ones(3)); numpy.load(folder + "/x.npy", mmap_mode="r")
    plt.plot([1, 2]); plt.savefig(folder + "/figure.png"); plt.savefig("figure.pdf")
sqlite3.connect(":memory:").execute("create table x (y)")
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
model(torch.randn(2, 1, 8, 8)).sum().backward()
torch.optim.Adam(model.parameters()).step()
torch.linalg.svd(torch.randn(50, 50)); numpy.linalg.inv(numpy.eye(50)); torch.fft.fft(torch.ones(8))
time.sleep(0.001), os.cpu_count(), threading.active_count(), os.times(), time.process_time()
print("all")
"""
    assert printed(warm, source) == "all\n"


# --------------------------------------------------------------------------- workers and the compiler


def test_a_loader_with_workers_gives_the_same_without(warm):
    """The batches of a real one, in the same order, and the same random numbers after them."""
    data = TensorDataset(torch.arange(20), torch.arange(20) ** 2)

    def batches():
        torch.manual_seed(3)
        loader = DataLoader(data, 6, True, None, None, 2, drop_last=True, prefetch_factor=4, timeout=60)
        found = [[column.tolist() for column in batch] for _ in range(2) for batch in loader]
        generator = torch.Generator().manual_seed(5)
        loader = DataLoader(data, batch_size=7, shuffle=True, num_workers=1, generator=generator)
        found += [[column.tolist() for column in batch] for batch in loader]
        return [found, torch.rand(2).tolist(), torch.rand(2, generator=generator).tolist()]

    body = textwrap.dedent(inspect.getsource(batches))
    source = "import torch, json\nfrom torch.utils.data import DataLoader, TensorDataset\n"
    source += "data = TensorDataset(torch.arange(20), torch.arange(20) ** 2)\n"
    assert json.loads(printed(warm, f"{source}{body}print(json.dumps(batches()))")) == batches()
    persistent = (
        "print(sum(1 for _ in range(2) for b in DataLoader(data, 5, num_workers=2, persistent_workers=True)))"
    )
    assert printed(warm, source + persistent) == "8\n"


def test_compiled_functions_and_modules_are_as_they_were(warm):
    source = """
import torch
@torch.compile
def double(x):
    return 2 * x
@torch.compile(fullgraph=True, mode="max-autotune")
def triple(x):
    return 3 * x
model = torch.compile(torch.nn.Linear(2, 2), backend="inductor")
inner = torch.nn.Linear(2, 2)
inner.compile()
x = torch.ones(1, 2)
print(double(x).tolist(), triple(x).tolist(), model(x).shape, sorted(model.state_dict()), inner(x).shape)
"""
    expected = "[[2.0, 2.0]] [[3.0, 3.0]] torch.Size([1, 2]) ['bias', 'weight'] torch.Size([1, 2])\n"
    assert printed(warm, source) == expected


# --------------------------------------------------------------------------- another user


def test_another_user_is_for_root_and_a_package_that_is_closed(monkeypatch):
    """test_grading_container.py has this kind at work."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxError, match="in which you are root"):
        Sandbox("user")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if all(place.stat().st_mode & 0o001 for place in Path(aecourse.__file__).resolve().parents):
        with pytest.raises(SandboxError, match="Every user can read"):
            Sandbox("user")


def test_whether_bubblewrap_works(monkeypatch, tmp_path):
    assert sandbox.works() == (subprocess.run(["bwrap", "--ro-bind", "/", "/", "true"]).returncode == 0)
    (tmp_path / "bwrap").symlink_to("/bin/false")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not sandbox.works()
