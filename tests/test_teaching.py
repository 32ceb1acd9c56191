"""The pages for students and instructors: their tables and links, and their commands run as they stand."""

import os
import re
import subprocess
import sysconfig
import zipfile

import nbformat
import pytest
from notebooks import ASSIGNMENTS, POINTS, ROOT, WRITTEN, read, solution_cells
from test_assignments import solved
from test_chapters import headings, slug

from aecourse.checks.core import find

STUDENTS, GUIDE = ((ROOT / "book" / f"{name}.md").read_text() for name in ("assignments", "teaching"))


def test_table_of_assignments():
    rows = re.findall(r"(?m)^\| \[`(\w+)`\]\((.+?)\) \| .+ \| (\d+) \| (.+?) \|$", STUDENTS)
    assert {name for name, *_ in rows} == set(ASSIGNMENTS)
    for name, link, points, time in rows:
        assert link.endswith(f"blob/main/assignments/{name}/{name}.ipynb")
        assert float(points) == sum(POINTS[name].values())
        assert f"**Time:** {time}" in re.sub(r"\s+", " ", read("solutions", name).cells[0].source)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_messages_and_texts_point_to_headings_that_exist(name):
    notebook = read("solutions", name)
    text = "\n".join(cell.source for cell in notebook.cells)
    places = re.findall(r"aecourse\.github\.io/aecourse/(\w+)\.html#?([\w-]*)", text)
    places += [find(function).read.split("#") for function in solution_cells(notebook)]
    for page, anchor in places:
        assert anchor in {"", *map(slug, headings(page))}, f"{page}#{anchor}"


def downloads(course, names):
    """What a learning platform packs: one archive of everybody's file."""
    folder = course / "downloaded" / "elbo" / "archive"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "submissions.zip", "w") as archive:
        for name in names:
            archive.writestr(name, nbformat.writes(solved("elbo")))


def test_moodle_pattern():
    (pattern,) = re.findall(r"(?m)^\.\*_.+assignsubmission.+$", GUIDE)
    for folder in ("Alice Ash_1234_assignsubmission_file", "Bob_7_assignsubmission_file_"):
        found = re.match(pattern, f"downloaded/elbo/extracted/archive/{folder}/elbo.ipynb")
        assert found["student_id"] in ("1234", "7")
        assert found["file_id"] == "elbo"


def marked_by_hand(course, student, points=None):
    """The points of elbo's written question in the gradebook, after giving some as the formgrader does."""
    from nbgrader.api import Gradebook

    (question,) = WRITTEN["elbo"]
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        grade = gradebook.find_grade(question, "elbo", "elbo", student)
        if points is not None:
            grade.manual_score, grade.needs_manual_grade = points, False
            gradebook.db.commit()
        return grade.manual_score


def test_guide_from_an_empty_folder_to_returned_feedback(tmp_path):
    """The guide's commands in order; only the students' part is played here."""
    pytest.importorskip("nbgrader")
    environment = os.environ | {
        "AECOURSE": str(ROOT),
        "HOME": str(tmp_path / "home"),
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    folder, course = tmp_path, tmp_path / "class"
    for command in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL):
        if "zip_collect" in command:
            downloads(course, ["ashalice_1234_5678_elbo.ipynb", "brownbob_LATE_99_5679_elbo-1.ipynb"])
        if "--student=alice" in command:
            command = command.replace("alice", "ashalice")
            marked_by_hand(course, "ashalice", 1.5)
        done = subprocess.run(
            ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        folder = course
    source, notebook = (course / "solutions/elbo/elbo.ipynb", course / "assignments/elbo/elbo.ipynb")
    assert source.read_text() != (ROOT / "solutions/elbo/elbo.ipynb").read_text()  # other seeds
    assert notebook.read_bytes() == (ROOT / "assignments/elbo/elbo.ipynb").read_bytes()
    assert sorted(path.name for path in (course / "submitted").iterdir()) == ["ashalice", "brownbob"]
    for student in ("ashalice", "brownbob"):
        assert "HIDDEN" not in (course / "feedback" / student / "elbo" / "elbo.html").read_text()
    assert len(re.findall(r"(?m)^elbo,.*,(ashalice|brownbob),", (course / "grades.csv").read_text())) == 2
    assert marked_by_hand(course, "ashalice") == 1.5  # though graded again
