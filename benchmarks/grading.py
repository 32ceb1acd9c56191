"""How fast is ``aecourse grade``, against ``nbgrader autograde`` and against the tests alone? Is it exact?

Three questions, with the sandbox on and wrong and right submissions from the lists in ``tests/``:

- throughput: both commands, as an instructor types them, in turn. Of the class nbgrader grades a few, one
  after the other as it does; its start-up is taken off, ours is not. No attacks, which would stop nbgrader.
  Once for a small assignment with an instructor's own tests, `kl`: one function, ``assert_close`` and
  ``gradcheck``; and once for `elbo` of this course, whose 19 tests take some tenths of a second themselves.
- overhead: each of some submissions through the isolated grader, and its test cells in a bare process.
- a class with attacks: does everybody get exactly the points that the lists foresee?

    pip install -e '.[grading]' psutil
    python benchmarks/grading.py
"""

import argparse
import contextlib
import functools
import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import nbformat
import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT / "tests"))

from mutants import elbo  # noqa: E402
from support.notebooks import solution_cells  # noqa: E402
from support.simulated import LIMITS, NAME, Student, simulated  # noqa: E402

from aecourse.grading import worker  # noqa: E402
from aecourse.grading.worker import Bundle  # noqa: E402

SOURCES = {NAME: (ROOT / "solutions" / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8")}
ENVIRONMENT = os.environ | {
    "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",  # for both
}


def small_assignment() -> nbformat.NotebookNode:
    """`kl`: one function to write, and two tests as any instructor would write them."""

    def cell(grade_id: str, source: str, **flags) -> nbformat.NotebookNode:
        flags = {"grade": False, "solution": False, "task": False, "locked": False} | flags
        found = nbformat.v4.new_code_cell(source, id=grade_id.replace("_", "-"))
        found.metadata.nbgrader = {"schema_version": 3, "grade_id": grade_id} | flags
        return found

    solution = solution_cells(nbformat.reads(SOURCES[NAME], as_version=4))["gaussian_kl"].source
    head = "import math\n\nimport torch"
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(head, id="imports"),
            cell("gaussian_kl", solution, solution=True),
            cell("gaussian_kl_visible", VISIBLE, grade=True, locked=True, points=1),
            cell("gaussian_kl_hidden", HIDDEN, grade=True, locked=True, points=2),
        ]
    )


VISIBLE = """\
found = gaussian_kl(torch.zeros(3, 2), torch.zeros(3, 2))
torch.testing.assert_close(found, torch.zeros(3))
"""
HIDDEN = """\
### BEGIN HIDDEN TESTS
torch.manual_seed(0)
mean, logvar = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
q = torch.distributions.Normal(mean, torch.exp(logvar / 2))
p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
right = torch.distributions.kl_divergence(q, p).sum(1)
torch.testing.assert_close(gaussian_kl(mean, logvar), right)
assert torch.autograd.gradcheck(gaussian_kl, (mean, logvar))
### END HIDDEN TESTS
"""
SOURCES["kl"] = nbformat.writes(small_assignment())


def small_class(count: int, seed: int) -> list[Student]:
    """So many submissions of `kl`, drawn from the versions of its function."""
    draw = random.Random(seed)
    pool = [version for version in elbo.RIGHT + elbo.WRONG if version.function == "gaussian_kl"]
    students = []
    for i in range(count):
        notebook = small_assignment()
        notebook.cells[1].source = draw.choice(pool).source
        text = nbformat.writes(notebook)
        students.append(Student(f"student-{i}", "ordinary", functools.partial(put, "kl", text), {}))
    return students


def put(name: str, text: str, folder: Path) -> None:
    (folder / f"{name}.ipynb").write_text(text, encoding="utf-8")


def course(folder: Path, name: str, students: list[Student]) -> Path:
    """A course with these submissions, whose assignment the gradebook knows; nothing has been graded."""
    (folder / "solutions" / name).mkdir(parents=True)
    shutil.copy(ROOT / "nbgrader_config.py", folder)
    put(name, SOURCES[name], folder / "solutions" / name)
    for student in students:
        place = folder / "submitted" / student.name / name
        place.mkdir(parents=True)
        student.hand_in(place)
    run(folder, "nbgrader", "generate_assignment", name, "--create", "--force")
    return folder


def run(folder: Path, *command: str) -> float:
    """The wall-clock seconds of a command; exit status 2 of ``aecourse grade`` asks for a human eye."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def ours(folder: Path, name: str, workers: int) -> float:
    limits = ["--seconds", LIMITS.seconds, "--test-seconds", LIMITS.request_seconds]
    limits += ["--memory", LIMITS.memory / 2**30]
    command = [sys.executable, "-m", "aecourse.cli", "grade", name, "--quiet", "--workers", workers, *limits]
    return run(folder, *map(str, command))


def throughput(root: Path, name: str, students: list[Student], few: int, rounds: int, workers: int) -> dict:
    """Seconds for a submission, of both commands in turn."""
    seconds: dict[str, list[float]] = {"aecourse grade": [], "nbgrader autograde": []}
    for i in range(rounds):
        mine = course(root / f"{name}-ours-{i}", name, students)
        seconds["aecourse grade"].append(ours(mine, name, workers) / len(students))
        chosen = students[i * (few + 1) : (i + 1) * (few + 1)]
        one, more = (course(root / f"{name}-{count}-{i}", name, chosen[:count]) for count in (1, len(chosen)))
        start_up = run(one, "nbgrader", "autograde", name)
        seconds["nbgrader autograde"].append((run(more, "nbgrader", "autograde", name) - start_up) / few)
        print({name: round(values[-1], 3) for name, values in seconds.items()}, file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "submissions": len(students),
        "workers": workers,
        "seconds_per_submission": {name: round(value, 3) for name, value in medians.items()},
        "faster_by": round(medians["nbgrader autograde"] / medians["aecourse grade"], 1),
        "rounds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
    }


def tests_alone(notebook: nbformat.NotebookNode, tests: dict) -> float:
    """Seconds that the instructor's test cells take in this process, after the student's cells."""
    namespace, seconds = {"__name__": "__main__"}, 0.0
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells]
    last = max(i for i, name in enumerate(names) if name in tests)  # the cells below it are not graded
    for name, cell in zip(names[: last + 1], notebook.cells):
        if cell.cell_type == "code":
            source = tests[name].source if name in tests else cell.source
            start = time.perf_counter()
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, "cell", "exec"), namespace)
            seconds += time.perf_counter() - start if name in tests else 0.0
    return seconds


def overhead(root: Path, students: list[Student]) -> dict:
    """Each submission's grading time, as a multiple of the time of its test cells alone; in turn."""
    folder = root / "overhead"
    folder.mkdir()
    worker.warm()
    tests = worker.Assignment.of(NAME, SOURCES[NAME]).tests
    ratios, isolated, bare = [], [], []
    for i, student in enumerate(students):
        student.hand_in(folder)
        data = (folder / f"{NAME}.ipynb").read_bytes()
        notebook = nbformat.reads(data.decode(), as_version=4)
        for _ in range(3):
            start = time.perf_counter()
            worker.grade(Bundle(NAME, student.name, SOURCES[NAME], data, limits=LIMITS))
            one = time.perf_counter() - start
            other = tests_alone(notebook, tests)
            if i > 0:  # the first warms up
                isolated.append(one)
                bare.append(other)
        if i > 0:
            ratios.append(statistics.median(isolated[-3:]) / statistics.median(bare[-3:]))
    worker.close()
    return {
        "submissions": len(ratios),
        "seconds_isolated": round(statistics.median(isolated), 3),
        "seconds_of_the_tests": round(statistics.median(bare), 3),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_largest": round(max(ratios), 2),
        "ratio_at_most_2": sum(ratio <= 2 for ratio in ratios),
    }


class Memory(threading.Thread):
    """Watches what this process and all it started hold in memory of their own, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.largest, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            total = 0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().uss
            self.largest = max(self.largest, total)


def hostile_class(root: Path, students: list[Student], workers: int) -> dict:
    """The class with attacks: time, memory, and how many got exactly what they must."""
    folder = course(root / "class", NAME, students)
    memory = Memory()
    memory.start()
    seconds = ours(folder, NAME, workers)
    memory.done.set()
    exact = 0
    for student in students:
        path = folder / ".aecourse" / NAME / "verdicts" / f"{student.name}.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        points = {test["name"]: test["points"] for test in found["tests"]}
        right = (points, found["status"], found["human"]) == (student.points, student.status, student.human)
        exact += right
        if not right:
            print(f"{student.name}: {found['status']} {points}", file=sys.stderr)
    kinds = [student.kind for student in students]
    return {
        "submissions": len(students),
        "of_which": {kind: kinds.count(kind) for kind in ("right", "wrong", "attack")},
        "exact_verdicts": exact,
        "seconds": round(seconds, 1),
        "largest_memory_gb": round(memory.largest / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--few", type=int, default=8, help="submissions that nbgrader grades in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ordinary = simulated(options.students, options.seed, attacks=0.0)
    with tempfile.TemporaryDirectory(prefix="aecourse-benchmark-") as folder:
        root = Path(folder)
        result = {
            "throughput": {
                name: throughput(root, name, students, options.few, options.rounds, options.workers)
                for name, students in (("kl", small_class(options.students, options.seed)), (NAME, ordinary))
            },
            "overhead": overhead(root, ordinary[:40]),
            "class": hostile_class(root, simulated(options.students, options.seed), options.workers),
            "limits": f"{LIMITS.seconds:g} s, {LIMITS.request_seconds:g} s a cell or test, "
            f"{LIMITS.memory / 2**20:.0f} MB",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.2f}",
            "versions": {name: version(name) for name in ("torch", "nbgrader")},
        }
    print(json.dumps(result, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "grading.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
