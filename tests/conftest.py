"""Settings and fixtures that all tests share; which run together, in which order, and what took how long."""

import functools
import json
import os
import tempfile
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import settings

from aecourse.checks.bans import settings_kept

pytest.register_assert_rewrite("support")
matplotlib.use("Agg")  # a test machine has no screen; not by MPLBACKEND, which notebooks would inherit

# The same examples in every run, so that a failure on one machine is a failure on all.
settings.register_profile("aecourse", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("aecourse")

# The models here are too small to gain from threads, and a shared machine is slowed down by them.
torch.set_num_threads(1)

PACKAGE = Path(__file__).resolve().parent.parent / "aecourse"
SLOW = 5  # seconds: what takes longer says so with the mark `seconds`
GROUPS = Path(tempfile.gettempdir(), f"aecourse-tests-{os.getpid()}.json")  # of this run


def pytest_addoption(parser):
    parser.addoption(
        "--sample",
        action="store_true",
        help=f"the core; of any other function one case; nothing that takes over {SLOW} s",
    )


def seconds(item):
    mark = item.get_closest_marker("seconds")
    if mark:
        return mark.args[0]
    return 0 if isinstance(item, pytest.Function) else 1  # the cells of a chapter take some time


def together(item):
    """The name of what must stay in one process: the tests of a file that use a fixture which the file makes
    once, or once for each of its parameters; and a notebook's cells. Any other test is alone."""
    if not isinstance(item, pytest.Function):
        return item.path.stem
    definitions = item._fixtureinfo.name2fixturedefs
    shared = [name for name in item.fixturenames if name in definitions]
    shared = sorted(name for name in shared if definitions[name][-1].scope in ("module", "class"))
    if not shared:
        return item.nodeid
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return ":".join([item.path.stem, *(str(parameters[name]) for name in shared if name in parameters)])


def sample(items, group):
    """Those for every save: the core, and of any other function one case; nothing slow."""
    slow = {group[item] for item in items if seconds(item) > SLOW}
    families = defaultdict(list)
    for item in items:
        if group[item] not in slow:
            families[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for family in families.values():
        of_the_core = (PACKAGE / f"{family[0].path.stem.removeprefix('test_')}.py").is_file()
        kept.update(family if of_the_core else family[:1])
    return kept


@pytest.hookimpl(wrapper=True)  # after pytest's own order
def pytest_collection_modifyitems(config, items):
    """Start with what takes longest, so that no process is left alone with it at the end."""
    group = {item: together(item) for item in items}
    if config.getoption("sample"):
        kept = sample(items, group)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]
    result = yield
    cost, first = Counter(), {}
    for place, item in enumerate(items):
        cost[group[item]] += seconds(item)
        first.setdefault(group[item], place)
    items.sort(key=lambda item: (-cost[group[item]], first[group[item]]))
    if getattr(config, "workerinput", {}).get("workerid") == "gw0":  # all have collected the same
        groups = {item.nodeid: group[item] for item in items}
        Path(config.workerinput["groups"]).write_text(json.dumps(groups), encoding="utf-8")
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """pytest-xdist is about to start a process: where that writes which tests stay together."""
    node.workerinput["groups"] = str(GROUPS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One group after the other, in our order, to the process that has room.

    `--dist loadgroup` would do, but pytest-xdist 3.8 writes the groups where pytest 9.2 does not read them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        @functools.cached_property
        def groups(self):
            return json.loads(GROUPS.read_text(encoding="utf-8"))

        def _split_scope(self, nodeid):
            return self.groups[nodeid]

    config.option.loadscopereorder = False
    return Groups(config, log)


def pytest_unconfigure():
    GROUPS.unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter, config):
    """Seconds by file and by process, where more than a few files ran."""
    files, workers, tests = Counter(), Counter(), Counter()
    for report in chain(*terminalreporter.stats.values()):
        if hasattr(report, "duration"):
            files[report.nodeid.split("::")[0]] += report.duration
            tests[report.nodeid.split("::")[0]] += report.when == "call"
            workers[getattr(report, "worker_id", "here")] += report.duration
    if len(files) > 3:
        terminalreporter.section("seconds by file")
        for file, total in files.most_common():
            terminalreporter.line(f"{total:7.1f}  {file} ({tests[file]} tests)")
        terminalreporter.line("by process: " + ", ".join(f"{s:.0f}" for _, s in sorted(workers.items())))


@pytest.fixture(autouse=True)
def as_imported():
    """A test's random numbers and torch's settings do not depend on the tests that ran before it."""
    torch.manual_seed(0)
    with settings_kept():
        yield


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder that holds ``MNIST/raw``; tests that need the real files are skipped without it."""
    named = os.environ.get("AECOURSE_TEST_DATA") or os.environ.get("AECOURSE_DATA")
    if not named:
        pytest.skip("needs MNIST: set AECOURSE_TEST_DATA to a folder that holds MNIST/raw")
    root = Path(named)
    if not list((root / "MNIST" / "raw").glob("train-images-idx3-ubyte*")):
        pytest.skip(f"needs MNIST: there is no MNIST/raw/train-images-idx3-ubyte(.gz) under {root}")
    return root
