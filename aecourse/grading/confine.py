"""What the child of a submission may do inside the sandbox: limits, and a filter of its system calls."""

import contextlib
import ctypes
import os
import resource
import struct
import sys

LINUX = sys.platform == "linux"

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
