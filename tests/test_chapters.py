"""What every chapter has, what its first cell does on Colab, and where each row of the course is held."""

import ast
import importlib
import importlib.util
import json
import re
import sys
import types
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from anchors import anchors
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
LISTED = [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
CHAPTERS = [chapter["file"] for part in TOC["parts"] if part.get("numbered") for chapter in part["chapters"]]
NOTEBOOKS = sorted(path.stem for path in BOOK.glob("*.ipynb"))


def cells(name: str, kind: str) -> list[str]:
    notebook = json.loads((BOOK / f"{name}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_every_page_is_in_the_table_of_contents():
    pages = {path.stem for pattern in ("*.ipynb", "*.md") for path in BOOK.glob(pattern)}
    assert {TOC["root"], *LISTED} == pages


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_all_its_parts(name):
    text, code = "\n".join(cells(name, "markdown")), "\n".join(cells(name, "code"))
    for part in ("After this chapter you can", "**You need**", "**It takes** about", "Symptom first"):
        assert part in text, part
    headings = ("Common mistakes", "Test yourself", "Exercises", "Summary", "Further reading")
    places = [f"\n{text}".find(f"\n## {heading}") for heading in headings]
    assert -1 not in places, headings[places.index(-1)]
    assert places == sorted(places)
    assert f'questions.show("{name}")' in code, "no questions"
    exercises = set(re.findall(r"(?m)^:label: (ex-[\w-]+)$", text))
    solutions = set(re.findall(r"\{solution(?:-start)?\} (ex-[\w-]+)\n:class: dropdown", text))
    assert len(exercises) >= 2
    assert exercises == solutions
    assert re.search(r"(FrameSlider|GaussianFit|LatentViewer)\(", code), "nothing to move"
    assert len(re.findall(r"\$\$ *\(eq-", text)) >= 1, "no numbered equations"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_page_holds_outputs_or_typed_results(name):
    notebook = json.loads((BOOK / f"{name}.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    shown = {key for text in cells(name, "markdown") for key in re.findall(r"\{glue:text\}`([\w-]+)", text)}
    # Names are mostly literal; those made in a loop share their beginning with what the loop glues.
    source = "\n".join(cells(name, "code"))
    literal = set(re.findall(r"glue\(\s*f?\"([\w-]+)", source))
    beginnings = {key for key in literal if key.endswith("-")}
    lost = {key for key in shown - literal if not key.startswith(tuple(beginnings) or "\0")}
    assert not lost


def only_checks(source: str) -> bool:
    """Whether there is nothing in a cell but assertions and numbers for the text."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # %pip and its like
        return False
    glued = [node for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    glued = [node for node in glued if getattr(node.value.func, "id", "") == "glue"]
    return bool(body) and len(glued) + sum(isinstance(node, ast.Assert) for node in body) == len(body)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_checks_are_closed_everywhere(name):
    """On the website, in JupyterLab and on Colab, which needs a title; tools/collapse_checks.py does it."""
    notebook = json.loads((BOOK / f"{name}.ipynb").read_text())
    for cell in notebook["cells"]:
        source, metadata = "".join(cell["source"]), cell["metadata"]
        left_out = "remove-cell" in metadata.get("tags", []) and "google.colab" not in source
        if cell["cell_type"] != "code" or not (left_out or only_checks(source)):
            continue
        assert "remove-cell" in metadata["tags"], cell["id"]
        assert metadata.get("jupyter", {}).get("source_hidden") is True, cell["id"]
        assert metadata.get("cellView") == "form", cell["id"]
        assert re.match(r"# @title \w.+\n.", source), cell["id"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_first_cell_on_colab_installs_the_library_and_leaves_torch_alone(name, monkeypatch):
    """The code path of Colab, run with a stand-in for its module and for pip."""
    from IPython.core.interactiveshell import InteractiveShell

    first = cells(name, "code")[0]
    shell = InteractiveShell()
    commands = []
    shell.register_magic_function(commands.append, magic_name="pip")

    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    shell.run_cell(first).raise_error()
    assert not commands  # anywhere else it does nothing

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    shell.run_cell(first).raise_error()
    assert len(commands) == 1
    requirement = re.fullmatch(r'install -q "(.+)"', commands[0])[1]
    assert Requirement(requirement).name == "aecourse"
    assert Requirement(requirement).extras == {"book"}


def test_the_library_asks_for_nothing_that_colab_would_have_to_replace():
    """Lower bounds only: an upper one could pull torch or numpy back to an older version."""
    for text in requires("aecourse"):
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": "book"}):
            assert all(part.operator == ">=" for part in needed.specifier), text


# --------------------------------------------------------------------------- coverage

COVERAGE = yaml.safe_load((BOOK / "coverage.yml").read_text())


def test_no_row_of_the_course_is_missing():
    assert set(COVERAGE) == set(range(1, 45))


WITHOUT_PAGES = {*range(32, 40), 42, 43, 44}  # the further models: theirs come next


def found(path: str) -> bool:
    """Whether there is a thing of this name: module.function, module.Class or module.Class.method."""
    thing = importlib.import_module("aecourse")
    for name in path.split(".")[1:]:
        if hasattr(thing, "__path__") and importlib.util.find_spec(f"{thing.__name__}.{name}"):
            thing = importlib.import_module(f"{thing.__name__}.{name}")
        else:
            thing = getattr(thing, name, None)
    return thing is not None


@pytest.mark.parametrize("number", COVERAGE)
def test_a_row_names_its_page_its_code_and_its_test(number):
    row = COVERAGE[number]
    assert set(row) == {"row", "pages", "library", "tests"}
    assert bool(row["pages"]) == (number not in WITHOUT_PAGES)
    assert row["row"]
    assert row["library"]
    assert row["tests"]
    for place in row["pages"]:
        name, _, anchor = place.partition("#")
        assert name in LISTED, place
        assert anchor in anchors(BOOK, name), place
    for path in row["library"]:
        assert found(path), path
    for path in row["tests"]:
        file, _, function = path.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in defined, path
