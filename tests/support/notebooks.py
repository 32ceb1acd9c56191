"""The assignments' notebooks as the tests see them: their cells, points, kinds and secrets."""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = sorted(path.name for path in (ROOT / "solutions").iterdir() if path.is_dir())


def read(folder, name):
    return nbformat.read(ROOT / folder / name / f"{name}.ipynb", as_version=4)


def grade_id(cell):
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def graded(notebook):
    """{grade_id: cell} of the cells with points, the written tasks included."""
    return {
        grade_id(cell): cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("points")
    }


def solution_cells(notebook):
    return {grade_id(c): c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")}


def secret_lines(notebook):
    """The lines between the markers of solutions, hidden tests and marking schemes."""
    for cell in notebook.cells:
        for region in re.findall(r"### BEGIN [A-Z ]+\n(.*?)### END", cell.source, flags=re.DOTALL):
            lines = (line.strip() for line in region.splitlines())
            yield from (line for line in lines if len(line) > 20 and not line.startswith("def "))


SOURCE = {name: read("solutions", name) for name in ASSIGNMENTS}
POINTS = {
    name: {task: cell.metadata.nbgrader.points for task, cell in graded(notebook).items()}
    for name, notebook in SOURCE.items()
}
WRITTEN = {
    name: {grade_id(c) for c in notebook.cells if c.metadata.get("nbgrader", {}).get("task")}
    for name, notebook in SOURCE.items()
}
AUTOGRADED = {
    name: {task: points for task, points in POINTS[name].items() if task not in WRITTEN[name]}
    for name in ASSIGNMENTS
}
