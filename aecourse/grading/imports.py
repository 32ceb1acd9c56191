"""What a notebook imports, and what becomes of it where the grader has no such module."""

import ast
import contextlib
import functools
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator

from aecourse.grading.words import in_a_line, listed

MOST = 200_000  # characters of code that is looked into: Python's parser takes seconds for a million
MAGIC = re.compile(r"(?m)^([ \t]*)[%!].*$")
# What git leaves around and between two versions.
CONFLICT = [re.compile(mark, re.M) for mark in (r"^<{7} ", r"^={7}\r?$", r"^>{7} ")]


def tree_of(source: str) -> ast.Module | None:
    """The code of a cell, its magics aside; None if it is no Python."""
    if len(source) > MOST:
        return None
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse(MAGIC.sub(r"\1pass", source))
    return None


def in_conflict(text: str) -> bool:
    """Whether git has left a merge conflict in a text. (One pattern for all would take hours for some.)"""
    place = 0
    for mark in CONFLICT:
        if (found := mark.search(text, place)) is None:
            return False
        place = found.end()
    return True


def modules(node: ast.AST) -> set[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module}
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()


# Put before the student's cells. A module that is imported and is not there is then one that does nothing.
STAND_IN = """\
# Put here by the grader: where one of these modules is missing, nothing stands in for it, and all else runs.
def _stand_in(names):
    import importlib.abc, importlib.machinery, sys, types

    class Nothing(types.ModuleType):
        def __init__(self, name):
            super().__init__(name)
            self.__path__ = []

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Nothing(name)

        def __call__(self, *arguments, **keywords):  # a decorator leaves a function as it is
            plain = len(arguments) == 1 and not keywords and callable(arguments[0])
            return arguments[0] if plain and type(arguments[0]) is not Nothing else Nothing("nothing")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def __iter__(self):
            return iter(())

        def __getitem__(self, key):
            return Nothing("nothing")

        def __setitem__(self, key, value):
            pass

        def __bool__(self):
            return False

        def __mro_entries__(self, bases):
            return ()

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            if any(f"{one}.".startswith(f"{other}.") for k in names for one, other in ((name, k), (k, name))):
                print(name, "is not here: nothing stands in for it.")
                return importlib.machinery.ModuleSpec(name, self, is_package=True)

        def create_module(self, spec):
            return Nothing(spec.name)

        def exec_module(self, module):
            pass

    sys.meta_path.append(Finder())


_stand_in(NAMES)
"""
OURS = {"aecourse", "torch", "numpy", "tqdm", "IPython", *sys.stdlib_module_names}


def stand_in(names: list[str]) -> str:
    """The source of a cell after which these modules can be imported, wherever they are missing."""
    return STAND_IN.replace("NAMES", repr(names))


def foreign(tree: ast.Module, brought: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The modules that a cell imports and that neither Python nor the assignment brings: (name, always).

    Not what stands in a ``try``, which tells by the error where it runs. What a condition decides on is not
    always imported.
    """
    brought = OURS | {name.partition(".")[0] for name in brought}

    def below(statements: list, always: bool) -> Iterator[tuple[str, bool]]:
        for node in statements:
            if isinstance(node, ast.Try) and node.handlers:
                continue
            yield from ((n, always) for n in sorted(modules(node)) if n.partition(".")[0] not in brought)
            for part in ("body", "orelse", "finalbody"):
                inner = getattr(node, part, None)
                inner = inner if isinstance(inner, list) else []
                yield from below(inner, always and not isinstance(node, ast.If))

    yield from below(tree.body, True)


@functools.lru_cache(maxsize=1000)  # the names are the student's
def missing(module: str) -> bool:
    """Whether a module is not installed. Nothing is imported to find out."""
    first, _, rest = module.partition(".")
    try:
        spec = importlib.util.find_spec(first)
        if spec is not None and spec.loader is None and rest:  # a folder that several packages share
            path = list(spec.submodule_search_locations or ())
            spec = importlib.machinery.PathFinder.find_spec(f"{first}.{rest.partition('.')[0]}", path)
    except (ImportError, ValueError, AttributeError):
        return first not in sys.modules
    return spec is None


NEWER = re.compile(
    r"^[ \t]*type[ \t]+\w+[^\n=]*=|^[ \t]*(?:async[ \t]+)?def[ \t]+\w+\[|^[ \t]*class[ \t]+\w+\["
    r"|^[ \t]*except[ \t]+\w+[ \t]*,|\bt[\"']",
    re.M,
)


LOOK_INTO = re.compile(rf"\bimport\b|^<{{7}} |[fF][rR]?[\"']|{NEWER.pattern}", re.M)


def newer_python(source: str) -> str:
    """The syntax of a newer Python than this that keeps a cell from being read; empty if there is none."""
    try:
        ast.parse(MAGIC.sub(r"\1pass", source[:MOST]))
    except SyntaxError as error:
        if "f-string" in str(error.msg):
            return "an f-string with quotes or backslashes inside its braces"
        lines = source.splitlines() or [""]
        line = lines[min(error.lineno or 1, len(lines)) - 1]
        return in_a_line(line, 60) if NEWER.search(line) else ""
    except (ValueError, RecursionError, MemoryError):
        pass
    return ""


def looked_into(sources: Iterable[str], brought: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of the student's cells: the modules that may be missing where they run, and remarks."""
    names, absent, remarks, left = set(), {}, [], MOST
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for source in sources:
        if not LOOK_INTO.search(source):
            continue  # to parse every cell takes as long as all else here
        if (left := left - len(source)) < 0:
            break
        cell = f"the cell that begins with: {in_a_line(source)}"
        if (tree := tree_of(source)) is None:
            if in_conflict(source):
                remarks.append(f"A merge conflict of git (<<<<<<<, =======, >>>>>>>) is in {cell}")
            elif syntax := newer_python(source):
                remarks.append(f"Python {version}, which grades, cannot read {syntax} in {cell}")
        elif "import" in source:
            for module, always in foreign(tree, brought):
                names.add(module)
                if always and missing(module):
                    absent.setdefault(cell, []).append(module)
    for cell, found in absent.items():
        words = f"{listed(list(dict.fromkeys(found)))} is not there when work is graded."
        remarks.append(f"{words} The import, and what would be done with it, was passed over in {cell}")
    return sorted(names), remarks
