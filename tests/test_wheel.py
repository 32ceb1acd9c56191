"""What a stranger gets: the wheel, in a clean environment, and the files that go with a release.

The environment is a new one that sees the wheel, its core dependencies and what these need, and nothing else.
They are links to the packages of the environment that the tests run in: PyTorch is not downloaded again.
"""

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import aecourse
from aecourse.reference import RECIPES

REPOSITORY = Path(__file__).parents[1]
WORKFLOWS = REPOSITORY / ".github" / "workflows"


# --------------------------------------------------------------------------- building it


def build(kind: str, project: Path, folder: Path) -> Path:
    """Build the "wheel" or the "sdist" of a project into an empty folder, with the backend that is here."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the sdist: those in AECOURSE_TEST_DIST, which are about to be published, or new ones."""
    pytest.importorskip("hatchling", reason='needs the build backend: pip install "aecourse[dev]"')
    if given := os.environ.get("AECOURSE_TEST_DIST"):
        (wheel,), (sdist,) = Path(given).glob("*.whl"), Path(given).glob("*.tar.gz")
        return {"wheel": wheel, "sdist": sdist}
    return {kind: build(kind, REPOSITORY, tmp_path_factory.mktemp(kind)) for kind in ("wheel", "sdist")}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def files(dist) -> dict[str, bytes]:
    """The files of the wheel."""
    return contents(dist["wheel"])


@pytest.fixture(scope="module")
def declared(files) -> list[Requirement]:
    """What the wheel says that it requires, with and without extras."""
    (name,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    lines = files[name].decode().partition("\n\n")[0].splitlines()
    return [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if "Requires-Dist: " in line]


# --------------------------------------------------------------------------- what is in it


KINDS = {".js", ".css", ".html", ".md", ".safetensors", ".sh", ".yml", ""}  # of files that are no code


def test_the_wheel_holds_the_package_and_nothing_else(files):
    folder = REPOSITORY / "aecourse"
    package = {
        path.relative_to(REPOSITORY).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in package} == {".py"} | KINDS  # a new kind is added to KINDS
    about = f"aecourse-{aecourse.__version__}.dist-info"
    others = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert set(files) == package | others | {f"{about}/licenses/LICENSE"}
    for word in ("widgets/latent_viewer.js", "grading/templates/page.html"):
        assert f"aecourse/{word}" in files
    for name in RECIPES:
        for kind in ("safetensors", "md"):
            assert f"aecourse/weights/{name}.{kind}" in files


SECRET = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\bgh[pousr]_\w{36}|\bgithub_pat_\w{50}|\bpypi-AgE\w{40}"
    rb"|\bAKIA[0-9A-Z]{16}\b|\b(hf|sk)[_-]\w{32}|https?://[^\s/:@\"'{}]+:[^\s/@\"'{}]+@"
)


def test_the_wheel_holds_no_secret_no_solution_and_no_path_of_this_machine(files, dist):
    assert SECRET.search(b"url = https://teacher:pass@example.org/gradebook")
    assert SECRET.search(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    with tarfile.open(dist["sdist"]) as archive:
        sources = {f.name: archive.extractfile(f).read() for f in archive if f.isfile()}
    for name, content in (files | sources).items():
        assert not SECRET.search(content), name
        assert str(REPOSITORY).encode() not in content, name
        # What opens a model answer or a hidden test in an instructor's notebook stands alone on its line, as
        # it does not in the grader, which looks for it.
        assert not re.search(rb"^\W*### BEGIN (SOLUTION|HIDDEN TESTS)\W*$", content, re.M), name


def test_the_sdist_holds_what_a_wheel_needs_and_makes_the_same(dist, files, tmp_path):
    with tarfile.open(dist["sdist"]) as archive:
        root = f"aecourse-{aecourse.__version__}"
        top = {Path(name).parts[1] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked")
    texts = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md"}
    assert top == {"aecourse", ".gitignore", "PKG-INFO", "pyproject.toml"} | texts
    (tmp_path / "built").mkdir()
    again = contents(build("wheel", tmp_path / "unpacked" / root, tmp_path / "built"))
    assert again == files


# --------------------------------------------------------------------------- a clean environment


@functools.cache
def installed(name: str) -> tuple[importlib.metadata.Distribution, list[Requirement]]:
    """A distribution and what it requires."""
    distribution = importlib.metadata.distribution(name)
    return distribution, [Requirement(line) for line in distribution.requires or ()]


def brought(requirements: list[Requirement], *extras: str) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that these requirements, and those of the extras, bring: {name: it}."""
    todo = [(requirement, extra) for requirement in requirements for extra in ("", *extras)]
    seen, distributions = set(), {}
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for asked in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, asked) not in seen:
                seen.add((name, asked))
                distributions[name], required = installed(name)
                todo += [(further, asked) for further in required]
    return distributions


def entries(distribution: importlib.metadata.Distribution) -> set[str]:
    """What a distribution has in site-packages: folders and files."""
    return {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}


@pytest.fixture(scope="module")
def clean(dist, declared, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Run something of the clean environment: ``clean("python", "-c", "...", extras=("book",))``.

    It runs in an empty folder, with a home that is empty, too, and without the settings of these tests.
    """
    root = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
    scripts = root / "venv" / ("Scripts" if os.name == "nt" else "bin")
    command = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--quiet"]
    command += ["--disable-pip-version-check", "--no-deps", "--no-index", str(dist["wheel"])]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})

    def linked(*extras: str) -> Path:
        """A folder with links to what the core and these extras need."""
        folder = root / "-".join(["core", *extras])
        if not folder.is_dir():
            folder.mkdir()
            for distribution in brought(declared, *extras).values():
                for name in entries(distribution):
                    if not (folder / name).exists():
                        (folder / name).symlink_to(distribution.locate_file(name))
        return folder

    def run(program: str, *arguments: str, extras: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        home = tmp_path_factory.mktemp("home")
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "TMPDIR") if name in os.environ}
        settings = {"PYTHONPATH": str(linked(*extras)), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        return subprocess.run(
            [str(scripts / program), *arguments],
            cwd=home,
            env={**kept, **settings, "HOME": str(home), "USERPROFILE": str(home)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="module")
def absent(declared) -> dict[str, str]:
    """The modules that only an extra brings, and the distribution of each."""
    core = brought(declared)
    optional = [requirement.name for requirement in declared if requirement.marker]
    modules = {}
    for name in optional:
        if canonicalize_name(name) not in core:
            for entry in entries(importlib.metadata.distribution(name)):
                if not entry.endswith((".dist-info", ".libs", ".pth", ".data", ".so")):
                    modules[entry.removesuffix(".py")] = name
    assert {"matplotlib", "sklearn", "skimage", "torchvision", "pyro", "safetensors"} <= modules.keys()
    assert {"nbgrader", "nbformat", "ipywidgets", "anywidget", "distributed", "psycopg2"} <= modules.keys()
    return modules


# What needs an extra, as a reader comes to it, and the extra. In the folder `here` is a broken file of MNIST.
NEEDS = {
    "data.load('digits')": "book",
    "data.load('faces')": "book",
    "data.load('mnist', here)": "book",
    "data.load('cifar10', here)": "book",
    "data.fetch('fashion-mnist', here)": "book",
    "aecourse.plots": "book",
    "from aecourse import plots": "book",
    "from aecourse.widgets import FrameSlider": "book",
    "from aecourse.widgets.latent_viewer import LatentViewer": "book",
    "from aecourse import pyro_vae": "book",
    "book.source(aecourse.VAE)": "book",
    "reference.load()": "book",
    "reference.load_features()": "book",
    "reference.train('mnist_vae', here)": "book",
    "evaluate.probe_accuracy(codes, labels, codes, labels, per_class=1, repeats=2)": "book",
    "disentanglement.beta_vae_score(codes, factors)": "book",
    "disentanglement.dci(codes, factors)": "book",
    "command('fetch', 'mnist')": "book",
    "command('train', 'vae', '--data', 'digits', '--folder', 'run')": "book",
    "command('train-reference', 'mnist_vae')": "book",
    "command('grade', 'elbo')": "grading",
    "command('check-submission', 'elbo.ipynb')": "check",
}
TRY = """
import contextlib, importlib.util, io, json, sys
from importlib import resources
from pathlib import Path
import torch, aecourse
from aecourse import book, cli, data, disentanglement, evaluate, reference

here = Path("data")
for name in ("MNIST", "cifar-10-batches-py"):
    (here / name / "raw").mkdir(parents=True)
(here / "MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(b"damaged")
torch.manual_seed(0)
factors = torch.arange(8).repeat(50).view(-1, 1).expand(-1, 2) // torch.tensor([4, 1]) % torch.tensor([2, 4])
codes, labels = factors + 0.01 * torch.randn(400, 2), factors[:, 0]

def command(*words):
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        status = cli.main(words)
    if status:
        raise RuntimeError(printed.getvalue())

def outcome(code):
    try:
        exec(code, globals())
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["", ""]

todo = json.loads(sys.argv[1])
print(json.dumps({
    "outcomes": {code: outcome(code) for code in todo["codes"]},
    "there": [name for name in todo["modules"] if importlib.util.find_spec(name)],
    "from": aecourse.__file__,
    "info": cli.info(),
    "sizes": {name: len((resources.files("aecourse") / name).read_bytes()) for name in todo["data"]},
}))
"""


def tried(clean, codes, modules=(), data=(), extras=()) -> dict:
    """What `TRY` prints in the clean environment with these extras."""
    todo = json.dumps({"codes": list(codes), "modules": list(modules), "data": list(data)})
    done = clean("python", "-W", "ignore", "-c", TRY, todo, extras=extras)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def without_extras(clean, absent, files) -> dict:
    data = [name.removeprefix("aecourse/") for name in files if name.startswith("aecourse/")]
    return tried(clean, NEEDS, absent, [name for name in data if not name.endswith(".py")])


def test_the_environment_has_the_wheel_and_no_optional_package(without_extras):
    assert without_extras["there"] == []
    assert "site-packages" in Path(without_extras["from"]).parts
    assert REPOSITORY not in Path(without_extras["from"]).parents


def test_the_command_is_installed(clean):
    done = clean("aecourse", "--help")
    assert done.returncode == 0, done.stderr
    assert "versions and devices" in done.stdout


def test_data_files_are_read_through_the_package(without_extras, files):
    sizes = without_extras["sizes"]
    assert sizes == {name: len(files[f"aecourse/{name}"]) for name in sizes}
    assert {Path(name).suffix for name in sizes} == KINDS


@pytest.mark.parametrize(("code", "extra"), NEEDS.items(), ids=NEEDS)
def test_without_its_extra_one_sentence_says_what_to_install(code, extra, without_extras):
    kind, words = without_extras["outcomes"][code]
    if code.startswith("command"):
        assert words.startswith("aecourse: ")
        assert words.count("\n") == 1
    else:
        assert kind == "ImportError"
    assert re.fullmatch(rf'[^.\n]+: pip install "aecourse\[{extra}\]"\.\n?', words)


# Not what would download or train for long, nor what asks for torchvision, which takes seconds to import.
SLOW = re.compile(r"fetch|load\('(mnist|cifar10)|'train'|check-submission")
QUICK = [code for code in NEEDS if not SLOW.search(code)]
COURSE = "Path('nbgrader_config.py').touch(); from aecourse.grading import course; "
SERVERS = {
    COURSE + "course.Course(Path(), 'postgresql://localhost/grades').gradebook()": "postgres",
    COURSE + "next(course.cluster([], 'tcp://127.0.0.1:1'))": "cluster",
}


@pytest.fixture(scope="module")
def with_extras(clean) -> dict[str, list[str]]:
    """Two extras in one process, because importing PyTorch again takes longer than all the rest."""
    return tried(clean, [*QUICK, *SERVERS], extras=("book", "grading"))["outcomes"]


@pytest.mark.parametrize("code", QUICK)
def test_the_extra_that_the_sentence_names_is_enough(code, with_extras):
    # Past all imports: a command then asks for data or for a course, which an empty folder has not.
    asks = {
        "command('train-reference', 'mnist_vae')": "mnist is not under ",
        "reference.train('mnist_vae', here)": "mnist is not under ",
        "command('grade', 'elbo')": "holds no nbgrader_config.py",
    }
    kind, words = with_extras[code]
    assert asks.get(code, "") in words
    assert (kind == "") == (code not in asks)


def test_each_extra_alone_brings_what_its_sentences_promise(declared):
    for extra, names in {
        "book": {"anywidget", "ipython", "matplotlib", "safetensors", "scikit-image", "scikit-learn"},
        "check": {"ipykernel", "jupyter-client", "nbclient", "nbformat"},
        "grading": {"jinja2", "nbgrader", "sqlalchemy", "traitlets"},
        "cluster": {"distributed"},
        "postgres": {"psycopg2-binary"},
    }.items():
        assert names <= brought(declared, extra).keys()
    assert {"pyro-ppl", "torchvision"} <= brought(declared, "book").keys()


@pytest.mark.parametrize(("code", "extra"), SERVERS.items(), ids=SERVERS.values())
def test_grading_names_the_extras_of_a_database_server_and_of_a_cluster(code, extra, with_extras):
    kind, words = with_extras[code]
    assert kind in ("CourseError", "ImportError")
    assert "\n" not in words
    assert words.endswith(f'pip install "aecourse[{extra}]".')


def test_info_works_without_extras(without_extras, declared):
    rows = dict(re.split(" {2,}", row, maxsplit=1) for row in without_extras["info"].splitlines())
    assert rows["aecourse"] == aecourse.__version__
    assert rows["torch"] == importlib.metadata.version("torch")
    assert rows["scikit-learn"] == 'not installed: pip install "aecourse[book]"'
    assert rows["nbgrader"] == 'not installed: pip install "aecourse[grading]"'
    assert rows["psycopg2-binary"] == 'not installed: pip install "aecourse[postgres]"'
    developers = {requirement.name for requirement in declared if "dev" in str(requirement.marker)}
    assert developers
    assert rows.keys() & developers == set()


# --------------------------------------------------------------------------- a release


def test_the_version_is_written_once_and_every_text_agrees(files):
    version = aecourse.__version__
    assert f"aecourse-{version}.dist-info/METADATA" in files  # which the backend read from __init__.py
    assert f'"{version}"' not in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def released() -> list[tuple[str, str]]:
    """Versions and dates of the changelog, the newest first."""
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.findall(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", text, re.M)


def test_the_changelog_begins_with_what_is_to_come_and_ends_with_this_version():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[0] == "[Unreleased]"
    assert len(headings) == 1 + len(released())
    assert released()[0][0] == aecourse.__version__
    for heading in headings:
        name = heading.partition("]")[0].strip("[")
        assert re.search(rf"^\[{re.escape(name)}\]: https://github\.com/aecourse/aecourse/", text, re.M)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["date-released"]) == released()[0]
    assert [author["name"] for author in citation["authors"]] == ["the aecourse authors"]
    assert "the aecourse authors" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def release() -> dict:
    return yaml.safe_load((WORKFLOWS / "release.yml").read_text(encoding="utf-8"))


def test_a_tag_and_nothing_else_makes_a_release(release):
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as a truth value
    build, publish, attach = release["jobs"].values()
    assert publish["needs"] == "build"
    assert attach["needs"] == "publish"
    steps = [step.get("run", "") for step in build["steps"]]
    order = ["hatchling version", "hatchling build", "tests/test_wheel.py"]
    places = [next(i for i, step in enumerate(steps) if word in step) for word in order]
    assert places == sorted(places)
    assert "AECOURSE_TEST_DIST" in build["steps"][places[-1]]["env"]
    assert "GITHUB_REF_NAME" in steps[places[0]]


def test_publishing_is_trusted_and_needs_no_token(release):
    text = (WORKFLOWS / "release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text
    assert "password:" not in text
    assert release["permissions"] == {}
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"] == "pypi"
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    for name in ("build", "attach"):
        assert "id-token" not in release["jobs"][name]["permissions"]


def test_every_action_of_a_release_is_pinned_to_a_commit(release):
    used = [step["uses"] for job in release["jobs"].values() for step in job["steps"] if "uses" in step]
    assert len(used) >= 5
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
