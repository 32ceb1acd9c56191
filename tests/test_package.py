"""The package as a whole: what importing it costs, and who may know whom."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import aecourse

REPOSITORY = Path(__file__).parents[1]
CORE = {"aecourse", "numpy", "torch", "tqdm"}

# A module may import those it is listed with, besides `extras`, which says what to install, and nothing else
# of the course: the chapters' order.
MAY_IMPORT = {
    "extras": set(),
    "models": set(),
    "contracts": set(),
    "distributed": set(),
    "likelihoods": {"contracts", "distributed"},
    "bounds": {"contracts"},
    "nets": {"contracts"},
    "mixtures": {"contracts"},
    "bayesian_mixtures": {"contracts", "mixtures"},
    "gradients": {"contracts", "bounds", "likelihoods"},
    "linear": {"contracts", "bounds", "likelihoods"},
    "linear_gaussian": {"contracts"},
    "autoencoders": {"contracts", "bounds", "likelihoods", "nets"},
    "vae": {"contracts", "bounds", "likelihoods", "nets"},
    "iwae": {"bounds", "distributed", "gradients", "vae"},
    "inference": {"contracts", "bounds", "evaluate", "likelihoods", "linear", "mixtures"},
    "evaluate": {"contracts", "bounds", "likelihoods", "nets"},
    "compression": {"contracts", "evaluate", "likelihoods", "vae"},
    "disentanglement": {"contracts", "evaluate"},
    "sprites": set(),
    "downloads": set(),
    "data": {"contracts", "downloads", "mixtures", "sprites"},
    "checkpoint": {"distributed"},
    "train": {"bounds", "checkpoint", "contracts", "distributed"},
    "questions/__init__": {"questions"},
    "questions/formulas": set(),
    "pyro_vae": {"likelihoods", "vae"},
    "plots": {"contracts", "train", "vae"},
}

# A further model is made of the parts above, and of no other further model.
PARTS = {"contracts", "distributed", "likelihoods", "bounds", "nets", "gradients", "vae"}
MAY_IMPORT |= {f"zoo/{path.stem}": PARTS for path in (REPOSITORY / "aecourse" / "zoo").glob("[!_]*.py")}
# A prior over codes is made of masked convolutions, and is trained after the codes.
MAY_IMPORT["zoo/two_stage_vae"] = PARTS | {"zoo.stages"}
MAY_IMPORT["zoo/code_priors"] = PARTS | {"zoo.lossy_vae", "zoo.stages"}
MAY_IMPORT["zoo/vqvae"] = PARTS | {"zoo.code_priors"}

PACKAGES = ("aecourse.checks", "aecourse.grading")


def imports(module: str, top_level: bool) -> set[str]:
    """Names of the modules that a module of the course imports, at its top level or anywhere."""
    tree = ast.parse((REPOSITORY / "aecourse" / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ("aecourse", *PACKAGES):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_importing_the_package_imports_nothing_slow_or_optional():
    modules = (
        "import sys, aecourse; [getattr(aecourse, name) for name in aecourse.__all__ if name != 'plots']"
    )
    script = f"{modules}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert "torch" in loaded
    optional = {
        "matplotlib",
        "sklearn",
        "skimage",
        "torchvision",
        "ipywidgets",
        "anywidget",
        "IPython",
        "pyro",
        "nbgrader",
        "nbformat",
        "sqlalchemy",
        "distributed",
    }
    assert loaded & optional == set()
    assert run.stderr == ""


@pytest.mark.seconds(10)
def test_importing_the_package_costs_little_beyond_torch():
    # In one process each, so that nothing is shared; the best of five, because machines are noisy.
    script = """
import time, torch
began = time.perf_counter()
import aecourse
print(time.perf_counter() - began)
"""
    command = [sys.executable, "-c", script]
    seconds = [
        float(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    assert min(seconds) < 0.05


def test_everything_in_all_exists():
    assert len(set(aecourse.__all__)) == len(aecourse.__all__)
    for name in aecourse.__all__:
        assert getattr(aecourse, name) is not None


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_know_only_what_comes_before_them(module):
    of_the_course = {name for name in imports(module, top_level=False) if name.split(".")[0] == "aecourse"}
    assert of_the_course <= {f"aecourse.{name}" for name in {*MAY_IMPORT[module], "extras"}}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_the_core_needs_three_packages(module):
    needed = {name.split(".")[0] for name in imports(module, top_level=True)} - set(sys.stdlib_module_names)
    assert needed <= CORE


def modules(pattern: str) -> list[str]:
    """Those of the package, as `imports` names them."""
    folder = REPOSITORY / "aecourse"
    return [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.glob(pattern))]


def test_nothing_but_the_command_line_knows_the_grader():
    others = [name for name in modules("**/*.py") if name != "cli" and not name.startswith("grading/")]
    assert {"vae", "widgets/latent_viewer", "checks/core"} <= set(others)
    for name in others:
        assert not any(found.startswith("aecourse.grading") for found in imports(name, top_level=False)), name
    assert not any(found.startswith("aecourse.grading") for found in imports("cli", top_level=True))
    for folder in ("book", "solutions", "assignments"):
        for path in (REPOSITORY / folder).rglob("*.ipynb"):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
            assert not any("aecourse.grading" in source for source in code), path


def test_the_grader_imports_what_its_extras_declare():
    extras = project()["optional-dependencies"]
    declared = {r.split(">")[0].strip() for name in ("grading", "cluster") for r in extras[name]}
    used = set().union(*(imports(name, top_level=False) for name in modules("grading/*.py")))
    used = {name.split(".")[0].lower() for name in used} - set(sys.stdlib_module_names)
    assert declared - used == set()
    assert used - declared <= CORE
    at_once = set().union(*(imports(name, top_level=True) for name in modules("grading/*.py")))
    assert "distributed" not in {name.split(".")[0] for name in at_once}  # few have a cluster


def test_what_runs_in_the_sandbox_is_all_there():
    """Student code finds these files of the course, and an image needs torch and IPython alone."""
    sandbox = pytest.importorskip("aecourse.grading.sandbox", exc_type=ImportError)
    shown = {f"aecourse.{file.removesuffix('.py').replace('/', '.')}" for file in sandbox.FILES}
    for file in sandbox.FILES:
        found = imports(file.removesuffix(".py"), top_level=False)
        assert {name for name in found if name.startswith("aecourse")} <= shown
        others = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names)
        assert others <= {"aecourse", "torch", "IPython"}


def test_grading_without_its_packages_says_what_to_install():
    script = "import sys; sys.modules['nbgrader'] = None; from aecourse import cli; sys.exit(cli.main())"
    run = subprocess.run(
        [sys.executable, "-c", script, "grade", "elbo"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert 'pip install "aecourse[grading]"' in run.stderr
    assert len(run.stderr.splitlines()) == 1


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml with tomllib, of Python 3.11")
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_three_packages_are_the_declared_ones():
    names = {requirement.split(">")[0].strip() for requirement in project()["dependencies"]}
    assert names == CORE - {"aecourse"}


def test_what_is_imported_where_it_is_used_is_declared_as_an_extra():
    book = {requirement.split(">")[0].strip() for requirement in project()["optional-dependencies"]["book"]}
    assert {"matplotlib", "scikit-learn", "scikit-image", "torchvision"} <= book
