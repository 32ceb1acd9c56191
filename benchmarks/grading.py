"""How fast is ``aecourse grade``, against ``nbgrader autograde`` and against the tests alone? Is it exact?

Three questions, with the sandbox on and wrong and right submissions from the lists in ``tests/``:

- throughput: both commands, as an instructor types them, in turn. Of the class nbgrader grades a few, one
  after the other as it does; its start-up is taken off, ours is not. No attacks, which would stop nbgrader.
  For a small assignment with an instructor's own tests, `kl`: one function, ``assert_close`` and
  ``gradcheck``; and for each assignment of this course.
- overhead: each of some submissions of `elbo` through the isolated grader, and its test cells in a bare
  process.
- class: a class of `elbo` with attacks. Does everybody get exactly the points that the lists foresee?

    pip install -e '.[grading]' psutil
    python benchmarks/grading.py                        # all, which takes an hour
    python benchmarks/grading.py --only elbo overhead   # these; the others' results stay as they are
"""

import argparse
import contextlib
import functools
import importlib
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
from support.notebooks import ASSIGNMENTS, solution_cells  # noqa: E402
from support.simulated import LIMITS, NAME, Student, simulated  # noqa: E402

from aecourse.grading import worker  # noqa: E402
from aecourse.grading.worker import Bundle  # noqa: E402

SOURCES = {
    name: (ROOT / "solutions" / name / f"{name}.ipynb").read_text(encoding="utf-8") for name in ASSIGNMENTS
}
# Of this many submissions nbgrader grades so many: 200 of the two that are quoted most, fewer of the others,
# some of whose tests train networks.
SIZES = {"kl": (200, 8), "elbo": (200, 8)} | {name: (40, 3) for name in ASSIGNMENTS if name != "elbo"}
PARTS = (*SIZES, "overhead", "class")
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


def ordinary_class(name: str, count: int, seed: int) -> list[Student]:
    """So many submissions of an assignment, with up to three functions wrong, and no attack."""
    if name == "kl":
        return small_class(count, seed)
    if name == NAME:
        return simulated(count, seed, attacks=0.0)
    draw, versions = random.Random(seed), importlib.import_module(f"mutants.{name}")
    students = []
    for i in range(count):
        notebook = nbformat.reads(SOURCES[name], as_version=4)
        functions = solution_cells(notebook)
        wrong = draw.sample(sorted(functions), min(len(functions), draw.choice([0, 0, 1, 2, 3])))
        for function, cell in functions.items():
            pool = versions.WRONG if function in wrong else versions.RIGHT
            if sources := [version.source for version in pool if version.function == function]:
                cell.source = draw.choice(sources)
        text = nbformat.writes(notebook)
        students.append(Student(f"student-{i}", "ordinary", functools.partial(put, name, text), {}))
    return students


def put(name: str, text: str, folder: Path) -> None:
    (folder / f"{name}.ipynb").write_text(text, encoding="utf-8")


def course(folder: Path, name: str, students: list[Student]) -> Path:
    """A course with these submissions, whose assignment the gradebook knows; nothing has been graded."""
    empty = folder.parent / f"{name}-empty"
    if not empty.exists():
        (empty / "solutions" / name).mkdir(parents=True)
        shutil.copy(ROOT / "nbgrader_config.py", empty)
        put(name, SOURCES[name], empty / "solutions" / name)
        run(empty, "nbgrader", "generate_assignment", name, "--create", "--force")
    shutil.copytree(empty, folder)
    for student in students:
        place = folder / "submitted" / student.name / name
        place.mkdir(parents=True)
        student.hand_in(place)
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
    """Seconds for a submission, of both commands in turn, and medians of the rounds."""
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {"aecourse grade": [], "nbgrader autograde": []}
    for i in range(rounds):
        mine = course(root / f"{name}-ours-{i}", name, students)
        seconds["aecourse grade"].append(ours(mine, name, workers) / len(students))
        chosen = students[i * (few + 1) : (i + 1) * (few + 1)]
        first, all_of_them = (
            course(root / f"{name}-{count}-{i}", name, chosen[:count]) for count in (1, len(chosen))
        )
        start_up = run(first, "nbgrader", "autograde", name)
        each = (run(all_of_them, "nbgrader", "autograde", name) - start_up) / few
        seconds["nbgrader autograde"].append(each)
        print({name: round(values[-1], 3) for name, values in seconds.items()}, file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "submissions": len(students),
        "workers": workers,
        "seconds_per_submission": {name: round(value, 3) for name, value in medians.items()},
        "faster_by": round(medians["nbgrader autograde"] / medians["aecourse grade"], 1),
        "rounds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        **surroundings(load),
    }


def surroundings(load: float) -> dict:
    """Where and with what something was measured; the load is that at its start, of other programs only."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {load:.2f}",
        "versions": {name: version(name) for name in ("torch", "nbgrader")},
        "limits": f"{LIMITS.seconds:g} s, {LIMITS.request_seconds:g} s a cell or test, "
        f"{LIMITS.memory / 2**20:.0f} MB",
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
    load = os.getloadavg()[0]
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
            seconds = time.perf_counter() - start
            alone = tests_alone(notebook, tests)
            if i > 0:  # the first warms up
                isolated.append(seconds)
                bare.append(alone)
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
        **surroundings(load),
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
    load = os.getloadavg()[0]
    folder = course(root / "class", NAME, students)
    memory = Memory()
    memory.start()
    seconds = ours(folder, NAME, workers)
    memory.done.set()
    exact = 0
    for student in students:
        path = folder / ".aecourse" / NAME / "verdicts" / f"{student.name}.json"
        verdict = json.loads(path.read_text(encoding="utf-8"))
        points = {test["name"]: test["points"] for test in verdict["tests"]}
        wanted = student.points, student.status, student.human
        right = (points, verdict["status"], verdict["human"]) == wanted
        exact += right
        if not right:
            print(f"{student.name}: {verdict['status']} {points}", file=sys.stderr)
    kinds = [student.kind for student in students]
    return {
        "submissions": len(students),
        "of_which": {kind: kinds.count(kind) for kind in ("right", "wrong", "attack")},
        "exact_verdicts": exact,
        "seconds": round(seconds, 1),
        "largest_memory_gb": round(memory.largest / 2**30, 2),
        **surroundings(load),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these alone")
    parser.add_argument("--students", type=int, help="of a class (default: 200 of kl and elbo, 40 of others)")
    parser.add_argument(
        "--few", type=int, help="submissions that nbgrader grades in a round (default: 8 or 3)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="aecourse-benchmark-") as folder:
            root = Path(folder)
            if part == "overhead":
                result = {part: overhead(root, simulated(40, options.seed, attacks=0.0))}
            elif part == "class":
                students = simulated(options.students or 200, options.seed)
                result = {part: hostile_class(root, students, options.workers)}
            else:
                count, few = SIZES[part]
                students = ordinary_class(part, options.students or count, options.seed)
                few = options.few or few
                measured = throughput(root, part, students, few, options.rounds, options.workers)
                result = {"throughput": {part: measured}}
        print(json.dumps(result, indent=2), flush=True)
        keep(result)


def keep(result: dict) -> None:
    """Put what was measured into the file of results, in place of what was there of it."""
    path = RESULTS / "grading.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    throughput = known.get("throughput", {}) | result.get("throughput", {})
    ordered = {name: throughput[name] for name in SIZES if name in throughput}
    path.write_text(json.dumps(known | result | {"throughput": ordered}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
