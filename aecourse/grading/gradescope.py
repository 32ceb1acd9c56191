"""``aecourse gradescope``: an autograder for Gradescope, and what runs in its container.

The archive holds the Python files of this package, the instructor's notebook and Gradescope's two scripts. In
the container root grades one submission; the student's code is another user's, in a sandbox of kind ``user``
where no better one can be made.
"""

import json
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import aecourse
from aecourse.grading.submission import Assignment, content, find

VISIBILITIES = ("hidden", "after_published", "after_due_date", "visible")
# What is installed in the container: what grading needs, and what students like to import.
REQUIREMENTS = "torch>=2.6 numpy>=1.26 tqdm>=4.60 ipython>=8.10 nbformat>=5.2 matplotlib>=3.8".split()


def write_archive(path: Path, name: str, source: str, hidden: str = "hidden") -> None:
    """Write the autograder of an assignment, a zip file to upload at Gradescope.

    Args:
        path: of the file.
        name: of the assignment.
        source: the text of the instructor's notebook.
        hidden: who sees the results of hidden tests, in Gradescope's words: one of `VISIBILITIES`.

    Raises:
        ValueError: the notebook has no tests.
    """
    if not Assignment.of(name, source).tests:
        raise ValueError(f"The notebook of {name} has no tests.")
    templates = files("aecourse.grading") / "templates"
    contents = {script: (templates / script).read_text() for script in ("setup.sh", "run_autograder")}
    contents["requirements.txt"] = "\n".join([*REQUIREMENTS, ""])
    contents["autograder.json"] = json.dumps({"assignment": name, "hidden": hidden}, indent=1) + "\n"
    contents[f"{name}.ipynb"] = source
    package = Path(aecourse.__file__).parent
    for module in sorted(package.rglob("*.py")):
        contents[f"aecourse/{module.relative_to(package)}"] = module.read_text(encoding="utf-8")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in contents.items():
            entry = zipfile.ZipInfo(file)  # of no date: the same notebook makes the same file
            entry.external_attr = (0o755 if file in ("setup.sh", "run_autograder") else 0o644) << 16
            archive.writestr(entry, text, zipfile.ZIP_DEFLATED)


def main(root: Path) -> dict:
    """Grade the submission in Gradescope's folder and write its ``results.json``; these results."""
    from aecourse.grading import sandbox, worker  # after the sandbox nothing else takes so long to import

    settings = json.loads((root / "source" / "autograder.json").read_text())
    name = settings["assignment"]
    source = (root / "source" / f"{name}.ipynb").read_text(encoding="utf-8")
    data, remarks, problem = None, [], ""
    try:
        path, remarks = find(root / "submission", name)
        data = content(path)
    except ValueError as error:
        problem = str(error)
    kind = "bubblewrap" if sandbox.works() else "user"
    bundle = worker.Bundle(name, "submission", source, data, tuple(remarks), problem, sandbox=kind)
    try:
        verdict = worker.Verdict.of(worker.grade(bundle))
    finally:
        worker.close()
    found = results(verdict, Assignment.of(name, source), settings["hidden"])
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def results(verdict, assignment: Assignment, hidden: str) -> dict:
    """A verdict in Gradescope's form. Visible checks are visible; ``hidden``: who sees the other tests."""
    from aecourse.checks.core import with_link

    tests = []
    for test in verdict.tests:
        is_hidden = "BEGIN HIDDEN TESTS" in assignment.tests[test.name].source
        tests.append(
            {
                "name": test.name,
                "score": test.points,
                "max_score": test.out_of,
                "status": "passed" if test.points == test.out_of else "failed",
                "output": with_link(test.message, test.read) if test.message else "All points.",
                "output_format": "text",
                "visibility": hidden if is_hidden else "visible",
                "extra_data": {"misconceptions": test.slips},
            }
        )
    return {
        "tests": tests,
        "output": "\n".join(verdict.remarks),
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "execution_time": round(verdict.seconds),
        "extra_data": {"status": verdict.status, "needs_a_person": verdict.human},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
