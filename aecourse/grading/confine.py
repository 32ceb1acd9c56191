"""What the child of a submission may do inside the sandbox: its own mounts, limits, and a list of the system
calls that are left to it.

Nothing that a child leaves behind may reach the next one. Where the sandbox may make mounts (bubblewrap),
each child gets folders that are gone with it, with all of their files, times and attributes; elsewhere the
folders are emptied, and the list of calls has none that changes an attribute.
"""

import contextlib
import ctypes
import os
import resource
import struct
import sys

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None, use_errno=True)
MOST_FILES = 10_000  # in a folder of a child: each takes a kilobyte of the kernel's memory, however empty

# --------------------------------------------------------------------------- system calls

# What Python, NumPy and torch need in one process with threads: name, number on x86_64, number on aarch64.
# All that is not here is refused: processes and programs, sockets but pairs, attributes, locks on files that
# others see, keys, shared memory by name, watching files, other processes, the kernel's own workings.
ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -,
select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227, madvise 28 233, dup 32 23, dup2 33 -,
pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172,
sendfile 40 71, sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, shutdown 48 210,
getsockname 51 204, getpeername 52 205, getsockopt 55 209, exit 60 93, wait4 61 260, uname 63 160,
fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49,
fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -, unlink 87 -, symlink 88 -,
readlink 89 -, chmod 90 -, fchmod 91 52, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgid 121 155, getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, utime 132 -, statfs 137 43, fstatfs 138 44, getpriority 140 141,
sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, arch_prctl 158 -, setrlimit 160 164, gettid 186 178, time 201 -,
futex 202 98, sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115,
exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, utimes 235 -, waitid 247 95, openat 257 56,
mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36,
readlinkat 267 78, fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73,
set_robust_list 273 99, utimensat 280 88, epoll_pwait 281 22, fallocate 285 47, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, getcpu 309 168,
renameat2 316 276, getrandom 318 278, copy_file_range 326 285, statx 332 291, rseq 334 293,
close_range 436 436, faccessat2 439 439, fchmodat2 452 452
"""
# And these if an argument, by its place, is one of a few values: oneself (None), a command without effect on
# others, a pair of sockets within the process.
CHECKED = {
    "kill 62 129": (0, [None]),
    "tgkill 234 131": (0, [None]),
    "prlimit64 302 261": (0, [0]),
    "socketpair 53 199": (0, [1]),  # AF_UNIX
    "fcntl 72 25": (1, [0, 1, 2, 3, 4, 1030]),  # F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL F_DUPFD_CLOEXEC
    "ioctl 16 29": (1, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451]),  # TCGETS TIOCGWINSZ FIO...
    "prctl 157 167": (0, [3, 15, 16, 51, 0x53564D41]),  # PR_GET_DUMPABLE PR_*ET_NAME PR_SVE_GET_VL PR_SET_VMA
}
ATTRIBUTES = {"x86_64": (188, 199), "aarch64": (5, 16)}  # setxattr to fremovexattr: of no file system in here
CLONE = "clone 56 220"  # with CLONE_THREAD
RECENT = 424  # calls from here on are said not to exist, upon which the C library takes older ones
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# ALLOW, EPERM, ENOSYS, EOPNOTSUPP
ALLOW, REFUSE, UNKNOWN, UNSUPPORTED = 0x7FFF0000, 0x00050001, 0x00050026, 0x0005005F


def _number(call: str, machine: str) -> int | None:
    number = call.split()[1 if machine == "x86_64" else 2]
    return None if number == "-" else int(number)


def _filter(machine: str, process: int) -> bytes:
    """A program (BPF) that says of each system call of a process whether it may be made.

    clone fails without CLONE_THREAD; clone3, whose flags a filter cannot see, is said not to exist.
    """
    load, equal, least, more, anyof, answer = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
    first = 16  # where the first argument is, its lower half; all that is looked at here has 32 bits
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, ARCHITECTURE[machine]),
        (answer, 0, 0, REFUSE),
        (load, 0, 0, 0),  # the number of the call
        (least, 0, 1, 0x40000000),  # on x86_64 those of another ABI
        (answer, 0, 0, REFUSE),
    ]
    ranges = [(*numbers, ALLOW) for numbers in _ranges(machine)]
    for low, high, verdict in [*ranges, (*ATTRIBUTES[machine], UNSUPPORTED)]:
        steps += [(least, 0, 2, low), (more, 1, 0, high), (answer, 0, 0, verdict)]
    for call, (place, values) in CHECKED.items():
        steps += [(equal, 0, len(values) * 2 + 2, _number(call, machine)), (load, 0, 0, first + 8 * place)]
        for value in values:
            steps += [(equal, 0, 1, process if value is None else value), (answer, 0, 0, ALLOW)]
        steps += [(answer, 0, 0, REFUSE)]
    steps += [
        (equal, 0, 4, _number(CLONE, machine)),
        (load, 0, 0, first),
        (anyof, 0, 1, 0x00010000),  # CLONE_THREAD
        (answer, 0, 0, ALLOW),
        (answer, 0, 0, REFUSE),
        (least, 0, 1, RECENT),
        (answer, 0, 0, UNKNOWN),
        (answer, 0, 0, REFUSE),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _ranges(machine: str) -> list[tuple[int, int]]:
    """The numbers of the calls that are always allowed, as pairs of a first and a last one."""
    ranges = []
    for number in sorted(n for call in ALLOWED.split(",") if (n := _number(call, machine)) is not None):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return ranges


# --------------------------------------------------------------------------- limits


def confine(memory: int, cpu: int, file: int) -> None:
    """Limits on memory (bytes beyond what is in use), CPU seconds and files; threads but no new processes.

    Off Linux, where there is no sandbox either, only the CPU time is limited.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    if not LINUX:
        return
    with open("/proc/self/statm") as sizes:
        pages = [int(number) * resource.getpagesize() for number in sizes.read().split()]
    for kind, limit in (
        (resource.RLIMIT_DATA, pages[5] + memory),
        (resource.RLIMIT_AS, pages[0] + memory + memory // 2),  # shared memory too; stacks of threads
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        resource.setrlimit(kind, (limit, limit))
    program = _filter(os.uname().machine, os.getpid())
    memory_of_it = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(memory_of_it))
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER
    if LIBC.prctl(38, 1, 0, 0, 0) or LIBC.prctl(22, 2, ctypes.c_char_p(header), 0, 0):
        os._exit(3)


def first_to_go() -> None:
    """If memory runs out after all, the child goes first, and the warm process stays."""
    LIBC.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, without which the next file cannot be written
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


# --------------------------------------------------------------------------- files

RULESET, RULE, RESTRICT = 444, 445, 446  # landlock_create_ruleset, landlock_add_rule, landlock_restrict_self
TO_READ = 0b1101  # EXECUTE, READ_FILE, READ_DIR
OF_FILES = 0b100_0000_0000_0111  # EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE
READABLE = (
    *("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo"),
)


def only_files(folders: tuple[str, ...]) -> bool:
    """Let this process open no file but those of Python, to read, and those in the folders; whether the
    kernel can do that (Landlock, from Linux 5.13 on)."""
    version = LIBC.syscall(RULESET, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    rules = LIBC.syscall(RULESET, struct.pack("Q", rights), 8, 0)
    python = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    places = dict.fromkeys((*READABLE, *python), TO_READ)
    for place, right in (places | dict.fromkeys(folders, rights) | {"/dev/null": OF_FILES}).items():
        with contextlib.suppress(OSError):
            beneath = os.open(place, os.O_PATH)
            of_it = right & rights if os.path.isdir(place) else right & rights & OF_FILES
            LIBC.syscall(RULE, rules, 1, struct.pack("=Qi", of_it, beneath), 0)
            os.close(beneath)
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    done = rules >= 0 and LIBC.syscall(RESTRICT, rules, 0) == 0
    os.close(rules)
    return done


# --------------------------------------------------------------------------- mounts

READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, PRIVATE, REC = 1, 2, 4, 8, 32, 4096, 1 << 18, 1 << 14
OF_PROC = ("cpuinfo", "meminfo", "stat")  # what libraries read of the machine
OF_PROCESS = ("maps", "stat", "statm", "status")  # and of their own process
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


def _mount(source: str, target: str, flags: int, kind: str = "", options: str = "") -> None:
    words = [word.encode() or None for word in (source, target, kind)]
    if LIBC.mount(*words, ctypes.c_ulong(flags), options.encode() or None):
        raise OSError(ctypes.get_errno(), f"cannot mount {target}: {os.strerror(ctypes.get_errno())}")


def close_devices() -> None:
    """Keep mounts to ourselves, and let nobody in here change mode or times of a device, which is one of the
    machine's."""
    _mount("", "/", PRIVATE | REC)
    for name in sorted(os.listdir("/dev")):
        path = f"/dev/{name}"
        if not os.path.isdir(path) and not os.path.islink(path):
            _mount("", path, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_EXEC)


def own_mounts(folders: tuple[str, ...], size: int) -> None:
    """Give this process folders of its own, empty, of so many bytes each, and of /proc what harms nobody;
    then take the right to mount away from it.

    What is mounted in a folder already is an environment of Python, and is shown again.
    """
    if LIBC.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "cannot make mounts of its own")
    for folder in folders:
        mounted = [name for name in os.listdir(folder) if os.path.ismount(f"{folder}/{name}")]
        kept = {name: os.open(f"{folder}/{name}", os.O_PATH) for name in mounted}
        _tmpfs(folder, f"size={size},nr_inodes={MOST_FILES},mode=700", NO_EXEC)
        for name, descriptor in kept.items():
            os.mkdir(f"{folder}/{name}")
            _mount(f"/proc/self/fd/{descriptor}", f"{folder}/{name}", BIND | REC)
            os.close(descriptor)
    os.chdir(folders[0])
    _own_proc(folders[0])
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)  # _LINUX_CAPABILITY_VERSION_3
    if LIBC.capset(header, nothing):
        raise OSError(ctypes.get_errno(), "cannot give its rights up")


def _tmpfs(folder: str, options: str, flags: int = 0) -> None:
    _mount("tmpfs", folder, flags | NO_SUID | NO_DEV, "tmpfs", options)


def _own_proc(place: str) -> None:
    """A few files of /proc in place of all: no other process, no host's path, no setting."""
    process = str(os.getpid())
    new = f"{place}/proc"
    os.mkdir(new)
    _tmpfs(new, "size=64k,nr_inodes=64,mode=755")
    os.mkdir(f"{new}/{process}")
    os.symlink(process, f"{new}/self")
    for name in (*OF_PROC, *(f"{process}/{name}" for name in OF_PROCESS)):
        os.close(os.open(f"{new}/{name}", os.O_CREAT))
        _mount(f"/proc/{name}", f"{new}/{name}", BIND)  # none of them can be written
    _mount("", new, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV)
    _mount(new, "/proc", 8192)  # MS_MOVE
    os.rmdir(new)
