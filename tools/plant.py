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
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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


def found_by(mistake: Planted | None, tests: tuple[str, ...]) -> tuple[str, float]:
    """The first test that fails, "" if none does, and seconds; without a mistake, of the module as it is."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        root = Path(folder)
        for part in ("aecourse", "tests", "tools"):
            shutil.copytree(REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", root)
        if mistake is not None:
            mistake.plant(root)
        command = [sys.executable, "-m", "pytest", *"-x -q -p no:cacheprovider -p no:xdist".split(), *tests]
        settings = {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        began = time.perf_counter()
        try:
            run = subprocess.run(
                command, cwd=root, env=os.environ | settings, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"no end within {LIMIT} s", LIMIT
        seconds = time.perf_counter() - began
        if run.returncode == 0:
            return "", seconds
        failed = re.search(r"^(?:FAILED|ERROR) \S*?tests/(\S+)", run.stdout, re.MULTILINE)
        if failed is None:
            raise RuntimeError(f"The tests did not run:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
        return failed[1], seconds


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
    with ThreadPoolExecutor(options.jobs) as pool:
        for name in options.modules or names:
            mistakes = [mistake for mistake in planted(name) if options.only in mistake.name]
            tests = tuple(dict.fromkeys(test for mistake in mistakes for test in mistake.tests))
            runs = pool.map(found_by, [None, *mistakes], [tests, *(m.tests for m in mistakes)])
            (failing, seconds), *runs = runs
            if failing:
                print(f"{name}: {failing} fails with nothing planted")
                return 2
            print(f"{name}: the tests pass in {seconds:.0f} s; {len(mistakes)} mistakes")
            for mistake, (test, seconds) in zip(mistakes, runs):
                print(f"  {mistake.name}: {test or 'NOT FOUND'} ({seconds:.0f} s)", flush=True)
                missed += not test
            results = zip(mistakes, runs)
            table[name] = {m.name: {"source": m.source, "found by": test} for m, (test, _) in results}
    if options.write:
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
