"""Make the students' version of assignments, as `nbgrader generate_assignment` does, from solutions/.

    python tools/release_assignments.py                 # all of them, into assignments/
    python tools/release_assignments.py elbo --output release
    python tools/release_assignments.py --reseed class/solutions   # new seeds for a class's hidden tests

nbgrader works on a copy of the course in a temporary folder, so that neither its database nor anything else
is left in the repository, and with a configuration folder of its own, so that the result depends on nothing
but nbgrader_config.py and solutions/.
"""

import argparse
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SEED_BITS = 64  # with half of them, a seed that fits what a function was given is found by trying all
ROOT = Path(__file__).resolve().parent.parent


def nbgrader(*arguments, course):
    """Run nbgrader in the folder `course` with no settings but the course's; raise if it fails."""
    settings = Path(course) / ".jupyter"
    environment = os.environ | {
        "HOME": str(settings),
        "IPYTHONDIR": str(settings / "ipython"),
        "JUPYTER_CONFIG_DIR": str(settings),
        "JUPYTER_DATA_DIR": str(settings / "data"),
        # nbgrader starts `alembic` by its bare name, which is found only where the environment is activated.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": "1",  # the tensors are small, and threads that wait for a busy core are slow
    }
    done = subprocess.run(
        # aecourse.grading before it saves more than a second of each start: it says how.
        [sys.executable, "-c", "import aecourse.grading, nbgrader.__main__", *map(str, arguments)],
        cwd=course,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise RuntimeError(f"nbgrader {' '.join(map(str, arguments))} failed:\n{done.stdout}")
    return done.stdout


def copy_course(course):
    """Copy what nbgrader needs of the repository, the configuration and the solutions, to `course`."""
    shutil.copy(ROOT / "nbgrader_config.py", course)
    skip = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    shutil.copytree(ROOT / "solutions", Path(course) / "solutions", ignore=skip)


def release(names, output):
    """Write the students' versions of the named assignments to output/<name>/, replacing what is there."""
    with tempfile.TemporaryDirectory() as course:
        copy_course(course)
        for name in names:
            # --force: nbgrader skips, silently, an assignment whose release exists without a database.
            nbgrader("generate_assignment", name, "--create", "--force", course=course)
            shutil.rmtree(Path(output) / name, ignore_errors=True)
            shutil.copytree(Path(course) / "assignments" / name, Path(output) / name)


def reseed(solutions):
    """Give every hidden test in this folder of sources a seed that nobody knows; nothing else changes."""
    for path in sorted(Path(solutions).glob("*/*.ipynb")):
        text = path.read_text(encoding="utf-8")
        fresh = re.sub(
            r"(globals\(\), seed=)\d+", lambda found: f"{found[1]}{secrets.randbits(SEED_BITS)}", text
        )
        path.write_text(fresh, encoding="utf-8")


def main():
    known = sorted(path.name for path in (ROOT / "solutions").iterdir() if path.is_dir())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all, that is {', '.join(known)}")
    parser.add_argument("--output", type=Path, default=ROOT / "assignments", help="default: assignments/")
    parser.add_argument(
        "--reseed", type=Path, metavar="SOLUTIONS", help="renew the seeds in this folder, and stop"
    )
    arguments = parser.parse_args()
    if arguments.reseed:
        if not list(arguments.reseed.glob("*/*.ipynb")):
            parser.error(f"{arguments.reseed} holds no <name>/<name>.ipynb")
        return reseed(arguments.reseed)
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no such assignment in solutions/: {', '.join(sorted(unknown))}")
    release(arguments.names or known, arguments.output)


if __name__ == "__main__":
    main()
