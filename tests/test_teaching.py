"""The pages for students and instructors: their tables and links, and their commands run as they stand."""

import csv
import html
import io
import os
import re
import subprocess
import sysconfig
import zipfile

import nbformat
import pytest
from anchors import anchors
from support.notebooks import (
    ASSIGNMENTS,
    AUTOGRADED,
    POINTS,
    ROOT,
    WRITTEN,
    read,
    secret_lines,
    solution_cells,
)
from support.sandbox import needs_sandbox
from support.submissions import VERSIONS, solved

from aecourse.checks.core import find

collect = pytest.importorskip("aecourse.grading.collect", reason="needs nbformat, of aecourse[grading]")

STUDENTS, GUIDE = ((ROOT / "book" / f"{name}.md").read_text() for name in ("assignments", "teaching"))
ASH, BROWN = "ashalice", "brownbob"
SLIPS, COMMENT = ("kl_logvar_as_std", "full_log_det"), "Half a point short."


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
        assert anchor in {"", *anchors(ROOT / "book", page)}, f"{page}#{anchor}"


def downloads(course, notebooks):
    """What a learning platform packs: one archive of everybody's file."""
    with zipfile.ZipFile(course / "submissions.zip", "w") as archive:
        for name, notebook in notebooks.items():
            archive.writestr(name, nbformat.writes(notebook))


def test_names_in_archives_are_as_the_guide_says():
    rows = re.findall(r"(?m)^  \| (\w+) \| `(.+?)` \| (\d*) ?\|$", GUIDE)
    assert {platform.lower() for platform, *_ in rows} == set(collect.PLATFORMS)
    for platform, name, number in rows:
        item = collect.PLATFORMS[platform.lower()](name.split("/"), None, None)
        assert item.number == number
        assert {"ashalice", "Alice Ash"} & set(item.who)
        assert item.name in ("elbo.ipynb", "elbo-1.ipynb")


def marked_by_hand(course, student, points=None):
    """The points of elbo's written question in the gradebook, after giving some as the formgrader does."""
    from nbgrader.api import Gradebook

    (question,) = WRITTEN["elbo"]
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        grade = gradebook.find_grade(question, "elbo", "elbo", student)
        if points is not None:
            grade.manual_score, grade.needs_manual_grade = points, False
            gradebook.find_comment(question, "elbo", "elbo", student).manual_comment = COMMENT
            gradebook.db.commit()
        return grade.manual_score


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """A course after the guide's commands in order; only the students' and the marker's part is played here.

    Gives the course's folder and a list of what `aecourse grade` left each time: {path in the folder: text}.
    """
    pytest.importorskip("nbgrader")
    top = tmp_path_factory.mktemp("guide")
    folder, course, left = top, top / "class", []
    environment = os.environ | {
        "AECOURSE": str(ROOT),
        "HOME": str(top / "home"),
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    for command in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL):
        if "aecourse collect" in command:
            names = ("ashalice_1234_5678_elbo.ipynb", "brownbob_LATE_99_5679_elbo-1.ipynb")
            downloads(course, dict(zip(names, (solved("elbo"), solved("elbo", SLIPS)))))
        if "aecourse grade" in command and left:
            marked_by_hand(course, ASH, 1.5)
        done = subprocess.run(
            ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        folder = course
        if "aecourse grade" in command:
            found = [*course.glob("feedback/*/*/*.html"), *course.glob("*.csv"), course / "report.html"]
            left.append({str(path.relative_to(course)): path.read_text() for path in found})
    return course, left


def text_of(page: str) -> str:
    page = re.sub(r"<style>.*?</style>|<[^>]+>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(page))


def points_in(table: str) -> dict[str, dict[str, str]]:
    return {row["student"]: row for row in csv.DictReader(io.StringIO(table))}


@needs_sandbox
@pytest.mark.seconds(45)
def test_guide_from_an_empty_folder_to_returned_feedback(guided):
    course, left = guided
    source, notebook = (course / "solutions/elbo/elbo.ipynb", course / "assignments/elbo/elbo.ipynb")
    assert source.read_text() != (ROOT / "solutions/elbo/elbo.ipynb").read_text()  # other seeds
    assert notebook.read_bytes() == (ROOT / "assignments/elbo/elbo.ipynb").read_bytes()
    assert sorted(path.name for path in (course / "submitted").iterdir()) == [ASH, BROWN]
    assert len(left) == 2
    first, second = left
    pages = {f"feedback/{student}/elbo/elbo.html" for student in (ASH, BROWN)}
    files = {"report.html", "points.csv", "canvas.csv", "moodle.csv", "students.csv"}
    assert set(first) == set(second) == pages | files

    # A feedback page names the slip, and holds nothing of a hidden test.
    page = text_of(first[f"feedback/{BROWN}/elbo/elbo.html"])
    for name in SLIPS:
        assert VERSIONS[name].says
        assert VERSIONS[name].says in page
    assert "To read again: " in page
    hidden = set(secret_lines(nbformat.read(source, as_version=4)))
    hidden -= {line.strip() for cell in solved("elbo").cells for line in cell.source.splitlines()}
    assert any("seed=" in line for line in hidden)
    for name in pages:
        text = html.unescape(first[name])
        assert [line for line in hidden if line in text] == []
        assert "seed=" not in text

    # All exports have the same points.
    tests, question = sum(AUTOGRADED["elbo"].values()), sum(POINTS["elbo"].values())
    table = points_in(first["points.csv"])
    assert {student: row["status"] for student, row in table.items()} == {ASH: "graded", BROWN: "graded"}
    assert (float(table[ASH]["total"]), float(table[ASH]["out_of"])) == (tests, question)
    lost = float(table[BROWN]["total"])
    assert 0 < lost < tests
    assert f'"Ash, Alice","","","{ASH}","",{tests:g}\n' in first["canvas.csv"]
    assert f'"Brown, Bob","","","{BROWN}","",{lost:g}\n' in first["canvas.csv"]
    assert f'"alice@example.org",{tests:g}\n' in first["moodle.csv"]
    assert f"{tests:g} of {question:g} points, and" in text_of(first[f"feedback/{ASH}/elbo/elbo.html"])


@needs_sandbox
def test_guide_brings_marks_into_feedback_and_exports(guided):
    _, (first, second) = guided
    total = sum(AUTOGRADED["elbo"].values()) + 1.5
    page = f"feedback/{ASH}/elbo/elbo.html"
    assert COMMENT not in first[page]
    assert COMMENT in second[page]
    assert f"{total:g} of {sum(POINTS['elbo'].values()):g} points" in text_of(second[page])
    assert points_in(second["points.csv"])[ASH]["total"] == f"{total:g}"
    assert f",{total:g}\n" in second["canvas.csv"]
    assert f'"alice@example.org",{total:g}\n' in second["moodle.csv"]
    assert second[f"feedback/{BROWN}/elbo/elbo.html"] == first[f"feedback/{BROWN}/elbo/elbo.html"]


@needs_sandbox
def test_guide_with_nbgrader_alone(guided):
    """Its last commands: the same points, and the mark that was given before."""
    course, (_, second) = guided
    for student in (ASH, BROWN):
        page = (course / "feedback" / student / "elbo" / "elbo.html").read_text()
        assert page != second[f"feedback/{student}/elbo/elbo.html"]
        assert "HIDDEN" not in page
    with open(course / "grades.csv", newline="") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    table = points_in(second["points.csv"])
    assert scores == {student: float(row["total"]) for student, row in table.items()}
    assert marked_by_hand(course, ASH) == 1.5  # though graded again
