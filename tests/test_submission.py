"""Reading and mending what students hand in, and what they can find out themselves beforehand. No sandbox."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from textwrap import indent

import nbformat
import pytest
from support.notebooks import ASSIGNMENTS, ROOT, grade_id, solution_cells
from support.sandbox import WHOLE
from support.submissions import solved

from aecourse import cli
from aecourse.grading import people, preflight, submission
from aecourse.grading.submission import KINDS, Assignment, Submission, prepare
from aecourse.grading.words import harmless, in_a_line

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


@pytest.mark.parametrize(
    "sign", "\xad\u034f\u115f\u1160\u180e\u200b\u202e\u3164\ufeff\uffa0\U0001d173\x9b\x1b\ud800"
)
def test_a_name_shows_all_that_it_is(sign):
    """Two that look alike would be taken for one another."""
    assert people.objection("ash") == ""
    assert people.objection(f"ash{sign}") != ""
    assert in_a_line(f"a{sign}b") in ("a\ufffdb", "a b")


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
    assert found.answers == {"lost_half": ""}  # no more than what the course has put there


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


# ---- written answers

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
QUESTION, PLACE = "lost_half", "lost-half-answer"


def text_cell(source, **attachments):
    cell = nbformat.v4.new_markdown_cell(source)
    if attachments:
        cell["attachments"] = {name.replace("_", "."): data for name, data in attachments.items()}
    return cell


def answered(change):
    """A notebook after a change, which gets its cells and the position of the answer's own."""
    notebook = solved(NAME)
    change(notebook.cells, next(i for i, cell in enumerate(notebook.cells) if cell.id == PLACE))
    return notebook


def in_its_place(cells, at):
    cells[at].source = "Half of it."


def below_it(cells, at):
    cells.insert(at + 1, text_cell("Half of it."))


def in_several(cells, at):
    cells[at].source = "Half of"
    cells.insert(at + 1, text_cell("it."))


def in_the_question(cells, at):
    cells[at - 1].source += "\n\nHalf of it."


def in_its_deleted_place(cells, at):
    cells[at] = text_cell("Half of it.")


def in_the_text_below(cells, at):
    cells[at + 1].source = "Half of it.\n\n" + cells[at + 1].source
    del cells[at]


def as_a_comment(cells, at):
    cells[at] = nbformat.v4.new_code_cell("# Half of it.")


def moved_up(cells, at):
    cells[at].source = "Half of it."
    cells.insert(3, cells.pop(at))


def in_a_copy(cells, at):
    """With the same id, of which the last is as it was."""
    cells.insert(3, nbformat.from_dict(cells[at]))
    cells[3].source = "Half of it."


def as_a_heading(cells, at):
    """Which the format does not know any more."""
    cells[at].source, cells[at].cell_type = "Half of it.", "heading"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (in_its_place, ""),
        (as_a_heading, ""),
        (in_its_deleted_place, ""),
        (below_it, "in cells below"),
        (in_several, "in cells below"),
        (in_the_question, "in the question itself"),
        (in_the_text_below, "in a text of the course"),
        (as_a_comment, "in cells below"),
        (moved_up, "elsewhere"),
        (in_a_copy, "elsewhere"),
    ],
)
def test_an_answer_is_kept_wherever_it_stands(change, where):
    """And what is not where it should be is said, and asks for a person."""
    notebook = answered(change)
    found = prepared(notebook)
    assert found.answers[QUESTION].split() in (
        ["Half", "of", "it."],
        ["```", "#", "Half", "of", "it.", "```"],
    )
    said = [remark for remark in found.remarks if f"The answer to {QUESTION} stands not only" in remark]
    assert len(said) == bool(where)
    assert where in "".join(said)
    assert found.human == bool(where)
    shown = [cell.source for cells in found.between.values() for cell in cells]
    shown += [what for kind, what in found.steps if kind == "cell"]
    assert "Half of" in "\n".join(shown)  # whoever marks sees it
    assert cell_of(SOURCE.notebook, QUESTION).source in shown
    for cell in mended(notebook).cells:  # --repair deletes nothing of it
        if grade_id(cell) == QUESTION:
            assert cell.source == cell_of(RELEASE.notebook, QUESTION).source
    assert "Half of" in "\n".join(cell.source for cell in mended(notebook).cells)


def test_the_course_is_not_the_author_of_an_answer():
    notebook = answered(lambda cells, at: cells.pop(at))
    found = prepared(notebook)
    assert found.answers == {QUESTION: ""}
    assert found.remarks == [f"The cell for the answer to {QUESTION} was deleted, and no other was found."]
    notebook = answered(lambda cells, at: cells.pop(at - 1))  # the question itself
    found = prepared(notebook)
    assert found.answers == {QUESTION: ""}
    assert f"The question {QUESTION} was deleted. It was put back." in found.remarks


def test_an_answer_without_ids_is_the_cell_below():
    """As of programs that keep no ids; nothing about it is odd."""
    notebook = answered(in_its_place)
    for cell in notebook.cells:
        del cell["id"]
    found = prepared(notebook)
    assert (found.answers[QUESTION], found.remarks) == ("Half of it.", [])


@pytest.mark.parametrize(
    "source",
    [
        "As here: ![my photo](attachment:my%20photo.png)",
        f"As here: ![image.png](data:image/png;base64,{PIXEL})",
        f"As here: ![][image1]\n\n[image1]: <data:image/png;base64,{PIXEL}>",
        f'As here: <img src="data:image/png;base64,{PIXEL}">',
        "As here.",
    ],
    ids=["attached", "in-the-text", "as-colab", "in-html", "not-named"],
)
def test_pictures_of_an_answer_are_kept(source):
    def change(cells, at):
        cells[at].source = source
        if "data:" not in source:
            cells[at]["attachments"] = {"my photo.png": {"image/png": PIXEL}}

    found = prepared(answered(change))
    assert found.pictures == {QUESTION: [f"data:image/png;base64,{PIXEL}"]}
    assert found.remarks == []
    assert PIXEL not in found.answers[QUESTION]
    (cell,) = [cell for cells in found.between.values() for cell in cells if "As here" in cell.source]
    assert list(cell.attachments) == ["picture-1.png"]
    assert "](attachment:picture-1.png)" in cell.source


def test_pictures_are_not_taken_for_one_another():
    """Even if they are called as ours are, of a notebook that was graded before."""

    def change(cells, at):
        cells[at].source = "First ![](attachment:picture-2.png), then ![](attachment:picture-1.png)"
        other = base64.b64encode(base64.b64decode(PIXEL) + b"x").decode()
        cells[at]["attachments"] = {
            "picture-2.png": {"image/png": PIXEL},
            "picture-1.png": {"image/png": other},
        }

    found = prepared(answered(change))
    assert (
        found.answers[QUESTION] == "First ![](attachment:picture-1.png), then ![](attachment:picture-2.png)"
    )
    assert found.pictures[QUESTION][0] == f"data:image/png;base64,{PIXEL}"
    assert len(found.pictures[QUESTION]) == 2


def test_an_answer_in_place_of_the_question_is_whole():
    """The words that both have are the student's."""
    words = "Half of the prior is lost in the decoder: the squared error is a density up to the constant."

    def change(cells, at):
        cells[at - 1].source = words

    assert prepared(answered(change)).answers[QUESTION] == words


def test_what_a_picture_is_not_is_said():
    script = {"image/svg+xml": "<svg onload='alert(1)'/>", "text/html": "<script>"}

    def change(cells, at):
        cells[at].source = "![a](attachment:a.svg) ![b](photo.jpg) ![c](https://example.org/c.png)"
        cells[at]["attachments"] = {"a.svg": script, "b.png": {"image/png": "no picture"}, "c": 3}

    found = prepared(answered(change))
    assert found.pictures == {QUESTION: []}
    assert found.remarks == [
        f"The answer to {QUESTION} has a picture that cannot be shown. It is in the file that was handed in.",
        f"The answer to {QUESTION} shows pictures that are not in the notebook: photo.jpg, "
        "https://example.org/c.png.",
    ]


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a <\nimg src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](java&#115;cript:alert(1))",
    "[x][y]\n\n[y]: javascript:alert(1)",
    "[y]\n\n[y]:\n javascript:alert(1)",
    "![x](attachment:none.png)",
    "![x](https://example.org/seen.png)",
    '![x" onerror="alert(1)](attachment:picture-1.png)',
    '[x](https://example.org/" onmouseover="alert(1))',
    "<javascript:alert(1)>",
    '```mermaid\ngraph TD; A-->B; click A href "javascript:alert(1)"\n```',
    "~~~ mermaid\n&lt;img src=x onerror=alert(1)&gt;\n~~~",
    r"$\href{javascript:alert(1)}{x}$ and $$\style{position:fixed}{x}$$ \begin{x}<b>\end{x}",
    "# <b onclick=alert(1)>x",
    "| a | b |\n|---|---|\n| <i onclick=alert(1)> | `<u>` |",
    "\u202e<s\u200bcript>\x1b[2J",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_marker_is_shown_is_words(attack):
    """As nbconvert makes a page of it, and so the formgrader."""
    nbconvert = pytest.importorskip("nbconvert.filters.markdown_mistune")
    bs4 = pytest.importorskip("bs4")
    text = harmless(f"Before. {attack}\n\n{attack}", ["picture-1.png"])
    renderer = nbconvert.IPythonRenderer(
        escape=False, attachments={"picture-1.png": {"image/png": PIXEL}}, anchor_link_text=""
    )
    page = bs4.BeautifulSoup(nbconvert.MarkdownWithMath(renderer=renderer).render(text), "html.parser")
    for tag in page.find_all(True):
        assert tag.name not in ("script", "b", "i", "u", "s")
        assert not any(name.startswith("on") for name in tag.attrs)
        assert "mermaid" not in tag.get("class", [])
        for name in {"href", "src"} & tag.attrs.keys():
            assert re.match(r"https://|data:image/png;base64,|#", tag[name])
            assert tag.name != "img" or tag[name].startswith("data:")
    assert not re.search(r"\\(href|style)", str(page))
    assert not re.search("[\x1b\u202e\u200b]", str(page))


def test_words_formulas_and_links_of_an_answer_stay():
    text = (
        "**So** $a < b$, $x_{i} \\le [0, 1]$ and\n\n$$\n\\begin{aligned} a &= b \\\\ c &= d\\end{aligned}\n"
        "$$\n\n"
        "- `x[0]` and [a page](https://example.org/a#b), if 1 < 2.\n\n![](attachment:picture-1.png)"
    )
    assert harmless(text, ["picture-1.png"]) == text


# ---- cells of another kind


def as_markdown(source):
    return source


def fenced(source):
    return f"My solution:\n\n```python\n{source}\n```\n"


def indented(source):
    return indent(source, "    ")


@pytest.mark.parametrize("kind", ["markdown", "raw"])
@pytest.mark.parametrize("written", [as_markdown, fenced, indented])
@pytest.mark.parametrize("lost", [False, True])
def test_a_solution_that_became_text_is_code_again(kind, written, lost):
    notebook = solved(NAME)
    cell = cell_of(notebook, TARGET)
    source, cell.cell_type = cell.source, kind
    cell.source = written(source)
    if lost:
        cell.metadata, cell["id"] = {}, "new"
    found = prepared(notebook)
    assert found.steps == prepared(solved(NAME)).steps
    assert f"The cell of {TARGET} had become {KINDS[kind]}. It was made code again." in found.remarks
    assert found.human
    assert [(c.cell_type, c.source) for c in mended(notebook).cells] == [
        (c.cell_type, c.source) for c in solved(NAME).cells
    ]


@pytest.mark.parametrize("kind", ["code", "markdown", "raw"])
@pytest.mark.parametrize("lost", [False, True])
def test_every_cell_of_the_course_gets_its_kind_back(kind, lost):
    notebook = solved(NAME)
    for i, cell in enumerate(notebook.cells):
        cell.cell_type = kind
        if lost:
            cell.metadata, cell["id"] = {}, f"new-{i}"
    found = prepared(notebook)
    whole = prepared(solved(NAME))
    assert (found.steps, found.sources, found.answers) == (whole.steps, whole.sources, whole.answers)
    assert any("had become" in remark for remark in found.remarks)


def test_a_students_own_cell_keeps_its_kind():
    """A note with code in it is no solution while that is there."""
    notebook = solved(NAME)
    notebook.cells.insert(3, text_cell(fenced(cell_of(notebook, TARGET).source)))
    found = prepared(notebook)
    assert (found.remarks, found.steps) == ([], prepared(solved(NAME)).steps)


# ---- imports that cannot be satisfied, and what is no Python here


def setup_of(notebook):
    return next(cell for cell in notebook.cells if cell.id == "setup")


NOT_HERE = """\
from google.colab import drive, files
import wandb as w, math
from nowhere_at_all.deep import rearrange, Base
drive.mount("/content/drive")
for name in files.upload():
    print(name)
run = w.init(project="x", config={"lr": 1e-3})
with w.watch(run) as watched:
    run.log({"loss": 1.0})
@rearrange
def square(x):
    return x * x
class Mine(Base):
    pass
assert square(3) == 9 and Mine() and not w.run
"""


def test_imports_that_cannot_be_satisfied_stand_in_for_nothing():
    notebook = solved(NAME)
    setup_of(notebook).source = NOT_HERE + setup_of(notebook).source
    found = prepared(notebook)
    (remark,) = found.remarks
    assert remark == (
        "google.colab, wandb, nowhere_at_all.deep is not there when work is graded. The import, and what "
        "would be done with it, was passed over in the cell that begins with: from google.colab import "
        "drive, files import wandb as w, math from nowhere_at_a…"
    )
    assert found.human
    _, stand_in = found.steps[0]
    before = list(sys.meta_path)
    try:
        namespace = {}
        exec(stand_in, namespace)
        exec(setup_of(notebook).source, namespace)
        assert namespace["torch"].ones(1) == 1
        with pytest.raises(ImportError):
            exec("import another_that_is_nowhere", namespace)
    finally:
        sys.meta_path[:] = before
        for name in [
            name for name in sys.modules if name.startswith(("google.colab", "wandb", "nowhere_at"))
        ]:
            del sys.modules[name]


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import google.colab\n    COLAB = True\nexcept ImportError:\n    COLAB = False",
        "import sys\nif 'google.colab' in sys.modules:\n    from google.colab import drive",
        "%matplotlib inline\nimport matplotlib.pyplot as plt, json, numpy as np\n!ls",
        "def f():\n    import torch.nn.functional as F",
    ],
)
def test_imports_that_are_right_or_ask_first_are_left_alone(source):
    notebook = solved(NAME)
    notebook.cells.insert(3, nbformat.v4.new_code_cell(source))
    assert prepared(notebook).remarks == []


def test_code_that_this_python_cannot_read_is_named():
    notebook = solved(NAME)
    for source in (
        "def first[T](x: list[T]) -> T:\n    return x[0]",
        "type Pair = tuple[int, int]",
        'print(f"{"a" + "b"}")',
        "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> theirs",
        "x = = 1",
    ):
        notebook.cells.insert(3, nbformat.v4.new_code_cell(source))
    found = prepared(notebook).remarks
    newer = [remark for remark in found if "which grades, cannot read" in remark]
    assert len(newer) == (3 if sys.version_info < (3, 12) else 0)
    assert len([remark for remark in found if "A merge conflict of git" in remark]) == 1
    assert len(found) == len(newer) + 1  # the last is no more than wrong


# ---- too much of anything


@contextlib.contextmanager
def stopped_after(seconds):
    """An error after so many seconds of this process's time, for what might not end. (Not on Windows.)"""

    def stop(*_):
        raise TimeoutError

    if not hasattr(signal, "SIGVTALRM"):
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_a_notebook_of_an_old_version_is_read_at_once():
    """nbformat's own reader takes a minute and gigabytes for two megabytes of it."""
    old = nbformat.convert(solved(NAME), 3)
    old.worksheets[0].cells += [nbformat.v3.new_code_cell(input="x = 1")] * 10_000
    start = time.process_time()
    found = prepare(json.dumps(old).encode(), SOURCE)
    assert time.process_time() - start < 3
    assert list(found.sources) == list(SOURCE.tasks)


def test_megabytes_of_code_are_not_looked_into():
    notebook = solved(NAME)
    code = "def f(x):\n    return [x, (x, {x: x})]\n" * 4000
    notebook.cells += [nbformat.v4.new_code_cell(code) for _ in range(80)]
    start = time.process_time()
    found = prepared(notebook)
    assert time.process_time() - start < 4
    assert any(remark.endswith(f"Only {submission.MOST_TEXT} were read.") for remark in found.remarks)
    assert list(found.sources) == list(SOURCE.tasks)


@pytest.mark.parametrize(
    "content",
    [
        "<!---->" * 60 + "x",
        "<<<<<<< a\n" * 2000 + "=======\n" * 2000,
        {"cell_type": "code", "source": "<<<<<<< a\n" * 2000 + "=======\n" * 2000 + "import x"},
        {"cell_type": "markdown", "source": "<img " * 20_000},
        {
            "cell_type": "markdown",
            "source": "attachment:x " * 10_000,
            "attachments": {f"a{i}": 0 for i in range(50_000)},
        },
    ],
    ids=["comments", "conflict", "conflict-in-a-cell", "pictures", "attachments"],
)
def test_no_pattern_takes_long(content):
    """The cells are read where no limit of time is, and one that takes hours would hold up the class."""
    if isinstance(content, dict):
        notebook = answered(lambda cells, at: cells.insert(at + 1, content))
        content = json.dumps(notebook)
    start = time.process_time()
    with stopped_after(3):
        prepare(content.encode(), SOURCE)
    assert time.process_time() - start < 3


def test_a_notebook_of_millions_of_parts_is_refused():
    with pytest.raises(ValueError, match="too many parts"):
        submission.opened('{"cells": [' + "0," * submission.MOST_PARTS + "0]}")


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


def test_preflight_says_what_the_grader_may_not_have(check, unrun):
    notebook = solved(NAME)
    setup_of(notebook).source = NOT_HERE + setup_of(notebook).source
    cell_of(notebook, TARGET).cell_type = "markdown"
    conflict = "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> theirs"
    for source in ("def first[T](x: T): ...", conflict):
        notebook.cells.append(nbformat.v4.new_code_cell(source))
    found = check(notebook)
    assert "note: google.colab, nowhere_at_all.deep, wandb may be missing where your work is graded." in found
    assert f"note: The cell of {TARGET} had become text. It can be made code again." in found
    assert "note: The cell def first[T](x: T): ... uses syntax of Python 3.12 or later" in found
    assert "problem: A merge conflict of git is in the cell <<<<<<< HEAD" in found


def test_preflight_asks_whether_the_computer_is_busy():
    took = {"Cell 4 (import torch)": 60.0, "Cell 5": 1.0}
    words = preflight._too_slow("The cell elbo_values", 3.0, took, 70.0)
    assert "Cell 4 (import torch) took the longest, 60." in words
    assert "loop" not in words
    assert "endless loop?" in preflight._too_slow("The cell elbo_values", 60.0, took, 70.0)


@pytest.mark.skipif(not WHOLE, reason="takes seconds of two processes: AECOURSE_TEST_SANDBOX=all")
def test_preflight_prints_no_traceback_of_a_kernel_that_is_stopped(tmp_path):
    """While it is writing: its own process would say so on our terminal."""
    pytest.importorskip("nbclient")
    notebook = solved(NAME)
    notebook.cells = [nbformat.v4.new_code_cell("while True:\n    print('x' * 100)"), *notebook.cells]
    nbformat.write(notebook, tmp_path / f"{NAME}.ipynb")
    release = ROOT / "assignments" / NAME / f"{NAME}.ipynb"
    arguments = ["check-submission", tmp_path / f"{NAME}.ipynb", "--release", release, "--seconds", 2]
    done = subprocess.run(
        [sys.executable, "-m", "aecourse.cli", *map(str, arguments)],
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "was not done after 2 seconds" in done.stdout
    assert "Traceback" not in done.stdout


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
    for junk in ("[1]", '{"cells": []}', '{"cells": [3], "nbformat": 4, "nbformat_minor": 5}', "{"):
        (handed_out.parent / "junk.ipynb").write_text(junk)
        assert command(f"{NAME}.ipynb", "--release", handed_out.parent / "junk.ipynb") == 1
        assert re.fullmatch(r"aecourse: The release .*\n", capsys.readouterr().err)
    assert command("other.ipynb") == 1
    assert capsys.readouterr().err == "aecourse: There is no file other.ipynb.\n"
