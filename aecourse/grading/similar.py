"""Near-identical submissions: a hint for the instructor, no proof.

Code is compared as fragments of `K` tokens, with comments, layout and the names of variables gone, and
without what the release gives. A fragment weighs the more, the fewer students have it, and nothing once many
do: so two students who both write what everybody writes have nothing in common, and two who share what hardly
anybody else has stand out. Who copies a plain right answer is not found, and cannot be.
"""

import ast
import math
import re
from collections import Counter, defaultdict
from itertools import combinations

K = 8  # tokens of a fragment
RARE = 0.05  # of the class: what more students share weighs nothing
FEW = 6  # the same as a number of students, for small classes
EVIDENCE = 80.0  # rare fragments that a pair must share in all: some six lines
SMALLEST = 10  # students; in a smaller class nothing can be called rare
LONGEST = 20_000  # characters of a cell that are looked at

Sources = dict[str, dict[str, str]]


def pairs(
    sources: Sources, stubs: dict[str, str], threshold: float = 0.7
) -> list[tuple[float, str, str, list[str]]]:
    """Pairs of students who share much that few others have, the most alike first.

    Args:
        sources: for each student the code of each task.
        stubs: what the release gives for each task.
        threshold: in (0, 1], the similarity from which on a task counts as shared.

    Returns:
        (similarity, student, student, tasks): of the rare code of the one who has less of it, the share that
        the other has too, over the tasks in which it reaches the threshold. Empty for classes of fewer than
        `SMALLEST`.

    Raises:
        ValueError: the threshold is no share.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, and is {threshold}.")
    written = {student: tasks for student, tasks in sources.items() if any(tasks.values())}
    if len(written) < SMALLEST:
        return []
    alike: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for task in sorted({task for tasks in written.values() for task in tasks}):
        given = _fragments(stubs.get(task, ""))
        holders = {s: _fragments(tasks.get(task, "")) - given for s, tasks in written.items()}
        for pair, shared, smaller in _shared(holders, max(FEW, RARE * len(written))):
            if shared >= threshold * smaller:
                alike[pair][task] = shared, smaller
    result = []
    for pair, tasks in alike.items():
        shared, smaller = (sum(column) for column in zip(*tasks.values()))
        if shared >= EVIDENCE:
            result.append((shared / smaller, *pair, list(tasks)))
    return sorted(result, key=lambda pair: (-pair[0], pair[1:]))


def _shared(holders: dict[str, set], rare: float):
    """((student, student), weight of what they share, weight of all that the one with less has).

    A fragment that ``rare`` students have weighs 0; one that a pair or a single student has weighs 1. Only
    students who share a rare fragment ever meet: no pair is looked at for the others.
    """
    index = defaultdict(list)
    for student, fragments in sorted(holders.items()):
        for fragment in fragments:
            index[fragment].append(student)
    owned, common = Counter(), Counter()
    for students in index.values():
        weight = min(1.0, math.log(rare / len(students)) / math.log(rare / 2))
        if weight <= 0:
            continue
        for student in students:
            owned[student] += weight
        for pair in combinations(students, 2):
            common[pair] += weight
    for pair, weight in common.items():
        yield pair, weight, min(owned[student] for student in pair)


# --------------------------------------------------------------------------- from code to fragments

TOKEN = re.compile(r"""\d[\w.]*|\0?\w+|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|[^\w\s]""")
COMMENT = re.compile(r"#[^\n]*")
MARK = "\0"  # before a name of the student's own; such a name never matters


def _fragments(code: str) -> set[tuple[str | int, ...]]:
    """All runs of `K` tokens. Own names are numbered in the order in which they appear in the run, so that a
    line more or less elsewhere changes nothing here."""
    tokens = TOKEN.findall(_normal(code[:LONGEST]))
    runs = set()
    for start in range(len(tokens) - K + 1):
        run, numbers = tokens[start : start + K], {}
        runs.add(tuple([numbers.setdefault(t, len(numbers)) if t[0] == MARK else t for t in run]))
    return runs


def _normal(code: str) -> str:
    """Code without docstrings, comments, annotations and layout, own names marked; broken code as text."""
    try:
        tree = ast.parse(code)
        return ast.unparse(_Marked(tree).visit(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return COMMENT.sub("", code.replace(MARK, ""))


class _Marked(ast.NodeTransformer):
    """Mark the names that a tree binds itself, and the attributes and methods that it makes."""

    def __init__(self, tree: ast.AST):
        self.names, self.attributes = set(), set()
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    self.names.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    self.attributes.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.names.add(name)
                    self.attributes.add(name)

    def generic_visit(self, node):
        super().generic_visit(node)
        match node:
            case ast.Name(id=name) if name in self.names:
                node.id = MARK + name
            case ast.arg(arg=name):
                node.arg, node.annotation = MARK + name, None
            case ast.Attribute(attr=name) if name in self.attributes:
                node.attr = MARK + name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                node.name = MARK + name
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(getattr(node, "body", None), list):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
        return node


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
