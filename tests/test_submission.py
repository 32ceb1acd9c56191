"""Reading and mending what students hand in, and what they can find out themselves beforehand. No sandbox."""

import contextlib
import io
import json
import os
import re
import shutil

import nbformat
import pytest
from support.notebooks import ASSIGNMENTS, ROOT, grade_id, solution_cells
from support.submissions import solved

from aecourse import cli
from aecourse.grading import preflight, submission
from aecourse.grading.submission import Assignment, Submission, prepare

NAME, TARGET = "elbo", "full_gaussian_kl"


def text(folder, name=NAME):
    return (ROOT / folder / name / f"{name}.ipynb").read_text(encoding="utf-8")


SOURCE, RELEASE = Assignment.of(NAME, text("solutions")), Assignment.of(NAME, text("assignments"))


def prepared(notebook) -> Submission:
    return prepare(json.dumps(notebook).encode(), SOURCE)


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if grade_id(cell) == name)


# ---- the instructor's notebook


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_assignment_knows_its_cells(name):
    source, release = (Assignment.of(name, text(folder, name)) for folder in ("solutions", "assignments"))
    assert list(source.known) == list(release.known)
    assert set(source.tasks) == set(solution_cells(source.notebook))
    assert not source.tests.keys() & source.tasks.keys()
    assert source.points() == release.points()
    assert set(source.points()) == source.tests.keys() | source.written.keys()


# ---- files


def test_find_and_content(tmp_path):
    folder = tmp_path / "eve" / NAME
    with pytest.raises(ValueError, match="No folder was handed in"):
        submission.find(folder, NAME)
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("x")
    (folder / ".elbo-checkpoint.ipynb").write_text("x")
    with pytest.raises(ValueError, match=r"elbo\.ipynb is missing"):
        submission.find(folder, NAME)
    (folder / "mine.ipynb").write_bytes(b"x")
    path, (remark,) = submission.find(folder, NAME)
    assert path == folder / "mine.ipynb"
    assert remark.startswith("The notebook is called mine.ipynb and not elbo.ipynb")
    (folder / "other.ipynb").write_text("x")
    with pytest.raises(ValueError, match=r"which of mine\.ipynb, other\.ipynb is meant"):
        submission.find(folder, NAME)
    (folder / "elbo.ipynb").write_bytes(b"y")
    path, remarks = submission.find(folder, NAME)
    assert (path.name, remarks) == ("elbo.ipynb", [])
    assert submission.content(path) == b"y"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_links_and_pipes_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "secret")
    (tmp_path / "loop.ipynb").symlink_to(tmp_path / "loop.ipynb")
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "folder.ipynb").mkdir()
    for name, words in {
        "link": "is a link",
        "loop": "is a link",
        "pipe": "no file",
        "folder": "no file",
    }.items():
        with pytest.raises(ValueError, match=words):
            submission.content(tmp_path / f"{name}.ipynb")
    with open(tmp_path / "large.ipynb", "wb") as file:
        file.truncate(submission.LARGEST + 1)
    with pytest.raises(ValueError, match="Clear the outputs"):
        submission.content(tmp_path / "large.ipynb")


def test_encodings():
    for encoding, words in {"utf-8": "", "utf-8-sig": "in utf-8-sig and", "utf-16": "in utf-16 and"}.items():
        found, remarks = submission.decoded("Größe".encode(encoding))
        assert found == "Größe"
        assert words in "".join(remarks)
    with pytest.raises(ValueError, match="not UTF-8"):
        submission.decoded("Größe".encode("latin-1"))
    with pytest.raises(ValueError, match="empty"):
        submission.decoded(b" \n")


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "3", '"x"', "{}", "\ufeff", "\0", "9" * 10**4, "[" * 10**5),
        *('{"cells": 3}', '{"cells": NaN}', '{"worksheets": [3]}', '{"worksheets": [{}]}'),
        '{"cells": [' + "[" * 900 + "]" * 900 + "]",
    ],
)
def test_what_is_no_notebook_gets_a_sentence(content):
    found = prepare(content.encode(), SOURCE)
    assert found.unreadable.endswith(".")
    assert found.human
    assert not found.steps


@pytest.mark.parametrize("junk", [None, 3, "x", [], {}, {"cell_type": []}, {"cell_type": "code", "id": 3}])
@pytest.mark.parametrize("key", ["cells", "source", "metadata", "id", "nbgrader", "grade_id", "outputs"])
def test_any_junk_in_place_of_anything(key, junk):
    """Never an exception, and the other cells count."""
    notebook = json.loads(json.dumps(solved(NAME)))
    cell = next(cell for cell in notebook["cells"] if cell["id"] == "gaussian-kl")
    if key == "cells":
        notebook["cells"].insert(0, junk)
    elif key == "nbgrader":
        cell["metadata"]["nbgrader"] = junk
    elif key == "grade_id":
        cell["metadata"]["nbgrader"]["grade_id"] = junk
    else:
        cell[key] = junk
    found = prepare(json.dumps(notebook).encode(), SOURCE)
    assert not found.unreadable
    assert [name for kind, name in found.steps if kind == "test"] == list(SOURCE.tests)
    assert TARGET in found.sources
    assert ("gaussian_kl" in found.sources) or key == "source"
    nbformat.validate(nbformat.from_dict(submission.mended(notebook, *places_of(notebook))))


def places_of(notebook):
    places, _ = submission.repaired(submission.parsed(submission.opened(json.dumps(notebook))), RELEASE)
    return places, RELEASE


def test_half_characters_cannot_reach_a_file():
    notebook = solved(NAME)
    notebook.cells[0].source = cell_of(notebook, TARGET).source = "x = '\ud800'"
    written = "".join(source for _, source in prepared(notebook).steps)
    assert "x = '" in written  # the cell is there
    assert written.encode().decode() == written  # which half a character, a lone surrogate, would not be


# ---- cells


def test_a_sound_notebook():
    found = prepared(solved(NAME))
    assert (found.remarks, found.human, found.unreadable) == ([], False, "")
    assert list(found.sources) == list(SOURCE.tasks)
    assert [name for kind, name in found.steps if kind == "test"] == list(SOURCE.tests)
    places = [what for _, what in found.steps]
    assert places.index(found.sources[TARGET]) < places.index(f"{TARGET}_checks")
    assert found.answers == {"lost_half": "*Your answer here.*"}


def without_metadata(cell):
    cell.metadata = {}


def without_anything(cell):
    cell.metadata, cell["id"] = {}, "new"


def renamed(cell):
    cell.metadata.nbgrader.grade_id = "mine"


@pytest.mark.parametrize("change", [without_metadata, without_anything, renamed])
@pytest.mark.parametrize("name", [TARGET, f"{TARGET}_checks", f"{TARGET}_values"])
def test_lost_metadata_are_recognised(name, change):
    notebook = solved(NAME)
    change(cell_of(notebook, name))
    found = prepared(notebook)
    assert found.remarks == [f"The grading metadata of {name} were lost. They were recognised and put back."]
    assert found.human
    assert found.steps == prepared(solved(NAME)).steps
    assert TARGET in found.sources


def test_a_deleted_test_is_put_back_and_a_deleted_function_named():
    notebook = solved(NAME)
    for name in (TARGET, f"{TARGET}_values"):
        notebook.cells.remove(cell_of(notebook, name))
    found = prepared(notebook)
    assert found.steps[-1] == ("test", f"{TARGET}_values")
    assert found.remarks == [
        f"The cell of {TARGET} is missing.",
        f"The test cell {TARGET}_values was deleted or renamed. It was put back.",
    ]


def test_of_several_the_last_counts():
    notebook = solved(NAME)
    copy = nbformat.from_dict(cell_of(notebook, TARGET))
    copy.source = f"def {TARGET}(mean, cov):\n    return 7"
    notebook.cells += [copy, nbformat.from_dict(cell_of(notebook, f"{TARGET}_checks"))]
    found = prepared(notebook)
    assert found.sources[TARGET] == copy.source
    assert found.steps.count(("test", f"{TARGET}_checks")) == 1
    assert found.steps.index(("cell", copy.source)) < found.steps.index(("test", f"{TARGET}_checks"))
    assert found.remarks == [f"There is more than one cell {TARGET}_checks, {TARGET}. The last one counts."]


def test_a_scratch_cell_that_defines_the_function_again_stands_for_nothing():
    notebook = solved(NAME)
    notebook.cells.insert(1, nbformat.v4.new_code_cell(f"def {TARGET}(mean, cov):\n    return 7"))
    assert prepared(notebook).remarks == []


def test_answers_are_the_cells_below_the_questions():
    notebook = solved(NAME)
    i = notebook.cells.index(cell_of(notebook, "lost_half"))
    notebook.cells[i + 1].source = "Half of it."
    assert prepared(notebook).answers == {"lost_half": "Half of it."}
    del notebook.cells[i + 1 :]
    assert prepared(notebook).answers == {"lost_half": ""}


# ---- mending


def mended(notebook):
    raw = json.loads(json.dumps(notebook))
    places, _ = places_of(raw)
    found = nbformat.from_dict(submission.mended(raw, places, RELEASE))
    nbformat.validate(found)
    return found


def test_mending_gives_back_what_nbgrader_needs():
    notebook = solved(NAME)
    output = nbformat.v4.new_output("stream", text="mine")
    for i, cell in enumerate(notebook.cells):
        cell.metadata, cell["id"] = {"mine": i}, f"new-{i}"
        if cell.cell_type == "code":
            cell.outputs = [output]
    notebook.cells[0].source = "My notes."
    notebook.metadata = {}
    found = mended(notebook)
    assert found.metadata == RELEASE.notebook.metadata
    assert [cell.source for cell in found.cells] == [cell.source for cell in notebook.cells]
    for cell, original in zip(found.cells, RELEASE.notebook.cells):
        if grade_id(original) and original.cell_type == "code":
            assert {key: value for key, value in cell.metadata.items() if key != "mine"} == original.metadata
            assert cell.outputs == [output]


def test_mending_a_sound_notebook_changes_no_cell():
    assert mended(solved(NAME)).cells == solved(NAME).cells


def test_mending_puts_tests_and_questions_where_they_were():
    notebook = solved(NAME)
    whole = [grade_id(cell) for cell in notebook.cells if grade_id(cell)]
    gone = [name for name in SOURCE.known if name.endswith(("checks", "values")) or name == "lost_half"]
    notebook.cells = [cell for cell in notebook.cells if grade_id(cell) not in gone]
    for cell in notebook.cells:
        if (grade_id(cell) or "").endswith("stability"):
            cell.source = "pass"
    found = mended(notebook)
    assert [grade_id(cell) for cell in found.cells if grade_id(cell)] == whole
    sources = {grade_id(cell): cell.source for cell in RELEASE.notebook.cells}
    for cell in found.cells:
        if grade_id(cell) in SOURCE.tests:
            assert cell.source == sources[grade_id(cell)]


def test_mending_leaves_one_cell_of_each_name():
    notebook = solved(NAME)
    notebook.cells += [nbformat.from_dict(cell) for cell in notebook.cells if grade_id(cell)]
    found = [grade_id(cell) for cell in mended(notebook).cells if grade_id(cell)]
    assert sorted(found) == sorted(SOURCE.known)


def test_mending_adds_no_function():
    notebook = solved(NAME)
    notebook.cells.remove(cell_of(notebook, TARGET))
    assert TARGET not in [grade_id(cell) for cell in mended(notebook).cells]


# ---- the preflight


@pytest.fixture
def check(tmp_path, monkeypatch):
    """check(notebook or bytes, ...) as text: a line for each finding."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def check(content, name=f"{NAME}.ipynb", **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else nbformat.writes(content).encode())
        found = preflight.check(path, text("assignments"), name=NAME, **options)
        return "\n".join(f"{finding.kind}: {finding.words}" for finding in found)

    return check


@pytest.fixture
def unrun(monkeypatch):
    monkeypatch.setattr(preflight, "_run", lambda notebook, seconds: iter(()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Status and output of the command on a finished notebook, as Jupyter writes it. The release is in the
    present folder."""
    pytest.importorskip("nbclient")
    folder = tmp_path_factory.mktemp("finished")
    (folder / "assignments" / NAME).mkdir(parents=True)
    shutil.copy(ROOT / "assignments" / NAME / f"{NAME}.ipynb", folder / "assignments" / NAME)
    nbformat.write(solved(NAME), folder / f"{NAME}.ipynb")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        status = command(f"{NAME}.ipynb")
    return status, printed.getvalue()


def test_preflight_of_a_finished_notebook(finished):
    found = re.sub(" {2,}", " ", finished[1])
    assert "fine: elbo.ipynb is a notebook of the assignment elbo." in found
    assert f"fine: All {len(SOURCE.known)} cells that count are there." in found
    assert "fine: It runs from top to bottom" in found
    assert "note: The question lost_half has no answer yet." in found
    assert "problem" not in found


def test_preflight_of_an_unfinished_notebook(check):
    """Runs the cells that can be run, and has the course's words for those that cannot."""
    pytest.importorskip("nbclient")
    notebook = solved(NAME)
    cell_of(notebook, TARGET).source = cell_of(RELEASE.notebook, TARGET).source
    cell_of(notebook, "elbo").source = "def elbo(x, logits, mean, logvar, beta=1.0):\n    return x.sum(1)"
    notebook.cells.append(nbformat.v4.new_code_cell("open('data.csv')"))
    found = check(notebook)
    assert f"problem: Still to be written: {TARGET}. Each gets no points as it is." in found
    assert f"problem: The cell {TARGET}_checks fails: {TARGET} is still to be written." in found
    assert "problem: The cell elbo_checks fails: elbo: expected one number per example" in found
    assert "(open('data.csv')) fails: FileNotFoundError" in found
    assert found.count("fails: ") == 3


@pytest.mark.parametrize(
    ("source", "words", "seconds"),
    [
        ("while True:\n    pass", "was not done after 2 seconds", 2),
        ("import os\nos._exit(1)", "ended Python itself", 10),
    ],
)
def test_preflight_of_what_does_not_end_or_ends_at_once(check, source, words, seconds):
    pytest.importorskip("nbclient")
    notebook = solved(NAME)
    notebook.cells = [nbformat.v4.new_code_cell(source), *notebook.cells]
    assert f"problem: Cell 1 ({source.splitlines()[0]}) {words}" in check(notebook, seconds=seconds)


def test_preflight_of_what_is_no_notebook(check, unrun):
    assert check(b"") == "problem: The file is empty."
    assert check(b"{}").startswith("problem: The file is no notebook")
    other = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    assert "Is it the right file?" in check(other)


def test_preflight_says_what_is_not_as_it_should_be(check, unrun):
    notebook = solved(NAME)
    cell_of(notebook, TARGET).metadata = {}
    notebook.cells.remove(cell_of(notebook, "elbo"))
    notebook.cells.remove(cell_of(notebook, "elbo_values"))
    notebook.cells.append(
        nbformat.v4.new_code_cell("from aecourse.vae import VAE\nfrom aecourse.checks import check")
    )
    found = check(notebook, name="my elbo.ipynb")
    assert "note: Hand it in under the name elbo.ipynb." in found
    assert f"The grading metadata of {TARGET} were lost. They can be recognised and put back." in found
    assert "problem: The cell of elbo is missing." in found
    assert "The test cell elbo_values was deleted or renamed. It can be put back." in found
    assert "--repair NEW.ipynb" in found
    assert "problem: aecourse.vae is not there when your work is graded" in found


def test_preflight_repairs_into_a_new_file(check, unrun, tmp_path):
    notebook = solved(NAME)
    for cell in notebook.cells:
        cell.metadata = {}
    new = tmp_path / "new.ipynb"
    before = nbformat.writes(notebook).encode()
    assert f"fine: The repaired notebook is {new}" in check(notebook, repair=new)
    assert (tmp_path / "elbo.ipynb").read_bytes() == before
    assert nbformat.read(new, as_version=4).cells == solved(NAME).cells
    content = new.read_bytes()
    assert "exists already, and was left as it is" in check(notebook, repair=new)
    assert "exists already, and was left as it is" in check(notebook, repair=tmp_path / "elbo.ipynb")
    assert (tmp_path / "elbo.ipynb").read_bytes() == before
    assert new.read_bytes() == content


@pytest.fixture
def handed_out(tmp_path, monkeypatch):
    """The assignment as students get it, in a folder of their own that is the present one."""
    release = tmp_path / "assignments" / NAME / f"{NAME}.ipynb"
    release.parent.mkdir(parents=True)
    shutil.copy(ROOT / release.relative_to(tmp_path), release)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return release


def command(*arguments) -> int:
    return cli.main(["check-submission", *map(str, arguments)])


def test_command_on_a_good_notebook(finished):
    status, printed = finished
    assert status == 0
    assert "fine:    It runs from top to bottom" in printed
    assert f"of {preflight.SECONDS:.0f} seconds, and the visible checks pass." in printed
    assert printed.endswith("Ready to hand in. The hidden tests look closer than the visible checks do.\n")


def test_preflight_gives_the_time_that_the_grader_gives():
    sandbox = pytest.importorskip("aecourse.grading.sandbox")
    assert sandbox.Limits().seconds == preflight.SECONDS


def test_command_repairs(handed_out, unrun, capsys):
    notebook = solved(NAME)
    for cell in notebook.cells:
        cell.metadata = {}
    nbformat.write(notebook, "mine.ipynb")
    assert command("mine.ipynb", "--assignment", NAME, "--repair", "new.ipynb") == 0
    printed = capsys.readouterr().out
    assert "and 19 more were lost. They can be recognised and put back." in printed
    assert "The repaired notebook is new.ipynb. Look at it, then hand it in as elbo.ipynb." in printed
    assert nbformat.read("new.ipynb", as_version=4).cells == solved(NAME).cells


def test_command_on_a_notebook_without_a_cell(handed_out, unrun, capsys):
    notebook = solved(NAME)
    notebook.cells.remove(cell_of(notebook, TARGET))
    nbformat.write(notebook, f"{NAME}.ipynb")
    assert command(f"{NAME}.ipynb") == 1
    printed = capsys.readouterr().out
    assert f"problem: The cell of {TARGET} is missing." in printed
    assert "There is one thing to look at." in printed


def test_command_asks_for_what_was_handed_out(handed_out, unrun, capsys):
    """The release is never the file itself: who has worked in it is asked for another copy."""
    fresh = shutil.copy(handed_out, "fresh.ipynb")
    nbformat.write(solved(NAME), handed_out)
    assert command(handed_out) == 1
    assert re.search("You have worked in .* itself.*name that file with --release", capsys.readouterr().err)
    assert command(handed_out, "--release", fresh) == 0
    handed_out.unlink()
    nbformat.write(solved(NAME), f"{NAME}.ipynb")
    assert command(f"{NAME}.ipynb") == 1
    assert "There is nothing to compare elbo.ipynb with." in capsys.readouterr().err
    assert command(f"{NAME}.ipynb", "--release", "none.ipynb") == 1
    assert "The release none.ipynb cannot be read" in capsys.readouterr().err
    assert command("other.ipynb") == 1
    assert capsys.readouterr().err == "aecourse: There is no file other.ipynb.\n"
