"""Plant known mistakes in a module, one at a time, and see whether its tests find them.

``tests/planted/NAME.toml`` lists what people got wrong, with sources: a piece of the module's text as it is,
and as they wrote it. Each is planted in a copy of the repository, where the module's tests then run until one
fails. A mistake that no test finds is a test that is missing.

    python tools/plant.py                     # all of them, in as many processes as there are cores
    python tools/plant.py vqvae ladder_vae    # these modules
    python tools/plant.py vqvae --only beta   # mistakes whose name holds "beta"
    python tools/plant.py --write             # and write tests/planted/found.json, the table

Exit status: 0 when every mistake was found.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch  # noqa: F401 (for the processes that are forked)

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it along
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[1]
LISTS = REPOSITORY / "tests" / "planted"
TABLE = LISTS / "found.json"
LIMIT = 300  # seconds for one test run; a mistake that makes it hang is found, too


class Planted(NamedTuple):
    """One mistake: where ``old`` stands, exactly once, somebody wrote ``new``."""

    name: str
    file: str
    tests: tuple[str, ...]
    source: str
    old: str
    new: str

    def plant(self, root: Path) -> None:
        """Write the mistake into the copy of the repository at ``root``.

        Raises:
            ValueError: the text to replace is not there, or more than once.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its text stands {times} times in {self.file}, and must once.")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


def planted(name: str) -> list[Planted]:
    """The mistakes listed in ``tests/planted/NAME.toml``; each may name its own ``file`` or ``tests``."""
    listed = tomllib.loads((LISTS / f"{name}.toml").read_text(encoding="utf-8"))
    mistakes = []
    for mistake in listed["mistake"]:
        file, tests = (mistake.get(key, listed[key]) for key in ("file", "tests"))
        tests = (tests,) if isinstance(tests, str) else tuple(tests)
        old, new = mistake["old"].strip("\n"), mistake["new"].strip("\n")
        mistakes.append(Planted(mistake["name"], file, tests, mistake["source"], old, new))
    return mistakes


def run(mistake: Planted | None, tests: tuple[str, ...], root: Path) -> int:
    """Start a process that plants a mistake, or none, in a copy of the repository, and tests that.

    It is forked: PyTorch, which takes longer to import than most of these tests take, is there already.

    Returns:
        Its number.
    """
    for part in ("aecourse", "tests", "tools"):
        shutil.copytree(REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    if mistake is not None:
        mistake.plant(root)
    sys.stdout.flush()
    if number := os.fork():
        return number
    status = 3
    try:
        with open(root / "output", "w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        signal.alarm(LIMIT)  # it ends the process
        os.chdir(root)
        os.environ["PYTHONPATH"] = str(root)
        sys.path.insert(0, str(root))
        sys.dont_write_bytecode = True
        status = int(pytest.main([*"-x -q -p no:cacheprovider -p no:xdist".split(), *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def first_failure(root: Path, status: int) -> str:
    """The first test that failed, "" if none did.

    Raises:
        RuntimeError: the tests did not run.
    """
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return f"no end within {LIMIT} s"
    if status == 0:
        return ""
    output = (root / "output").read_text(encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) \S*?tests/(\S+)", output, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"The tests did not run:\n{output[-3000:]}")
    return failed[1]


def found_by(
    runs: Iterable[tuple[Planted | None, tuple[str, ...]]], jobs: int
) -> Iterator[tuple[str, float]]:
    """For each run the first test that fails and the seconds it took; in their order, several at a time."""
    waiting, running, results, place = deque(enumerate(runs)), {}, {}, 0
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        try:
            while waiting or running or results:
                while waiting and len(running) < jobs:
                    number, (mistake, tests) = waiting.popleft()
                    root = Path(folder, str(number))
                    running[run(mistake, tests, root)] = number, root, time.perf_counter()
                while place in results:
                    yield results.pop(place)
                    place += 1
                if running:
                    process, status = os.wait()
                    number, root, began = running.pop(process)
                    results[number] = first_failure(root, status), time.perf_counter() - began
                    shutil.rmtree(root)
        finally:
            for process in running:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    names = sorted(path.stem for path in LISTS.glob("*.toml"))
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(names)}")
    parser.add_argument("--only", default="", metavar="TEXT", help="mistakes whose name holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(REPOSITORY)}")
    options = parser.parse_args(arguments)
    if unknown := sorted({*options.modules} - {*names}):
        parser.error(f"{unknown[0]} is none of {', '.join(names)}")
    if options.write and options.only:
        parser.error("--write needs whole modules, without --only")

    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    missed = 0
    for name in options.modules or names:
        mistakes = [mistake for mistake in planted(name) if options.only in mistake.name]
        tests = tuple(dict.fromkeys(test for mistake in mistakes for test in mistake.tests))
        results = found_by([(None, tests), *((mistake, mistake.tests) for mistake in mistakes)], options.jobs)
        failing, seconds = next(results)
        if failing:
            print(f"{name}: {failing} fails with nothing planted")
            return 2
        print(f"{name}: the tests pass in {seconds:.0f} s; {len(mistakes)} mistakes", flush=True)
        table[name] = {}
        for mistake, (test, seconds) in zip(mistakes, results, strict=True):
            print(f"  {mistake.name}: {test or 'NOT FOUND'} ({seconds:.0f} s)", flush=True)
            table[name][mistake.name] = {"source": mistake.source, "found by": test}
            missed += not test
    if options.write:
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
