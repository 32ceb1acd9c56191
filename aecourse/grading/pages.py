"""The two pages that grading ends in: the student's feedback and the instructor's report.

Both are one file that asks nobody for anything and needs no script. All that students wrote reaches them
through the templates' escaping; a feedback page is made from one student's verdict and holds nothing else.
"""

import builtins
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from aecourse.checks.core import FOLLOWS, UNWRITTEN, address
from aecourse.grading.submission import Assignment, grade_id
from aecourse.grading.words import shown

if TYPE_CHECKING:
    from aecourse.grading.worker import Test, Verdict

LONGEST = 20_000  # characters of a student's code that a page shows
STATUS = {
    "graded": "graded",
    "time": "ran out of time",
    "crash": "ended its process",
    "unreadable": "cannot be read",
    "missing": "no notebook",
}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("aecourse.grading"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "share": _share,
        "status": lambda status: STATUS.get(status, status),
    }
    return environment


def _render(template: str, **values) -> str:
    return shown(_environment().get_template(template).render(values))


def _number(value: float) -> str:
    return f"{round(value, 2):g}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def function_of(test: str) -> str:
    """The function that a test cell looks at: tests are called ``<function>_<kind>``."""
    return test.rpartition("_")[0] or test


def _kind(test: str) -> str:
    kind = test.rpartition("_")[2]
    return "visible checks" if kind == "checks" else kind


# --------------------------------------------------------------------------- messages


@dataclass(frozen=True)
class Message:
    """What a test says: the words, and where to read again: ``page#anchor`` of the book, or nothing."""

    words: str
    read: str = ""

    @property
    def address(self) -> str:
        return address(self.read) if self.read else ""

    @property
    def place(self) -> str:
        """Where to read again, in words: page and section."""
        page, _, anchor = self.read.partition("#")
        return ", ".join(filter(None, (page, anchor.replace("-", " "))))


def _for_student(test: "Test", hidden: bool) -> Message:
    if test.trouble and hidden:
        return Message(f"The test stopped with a {test.trouble}. Your instructor has been told.")
    return Message(test.message, test.read)


# --------------------------------------------------------------------------- the student's page


@dataclass
class _Section:
    """A task or a written question on the student's page."""

    name: str
    title: str
    out_of: float = 0.0
    points: float | None = 0.0  # None: not yet marked
    written: bool = False
    tests: list[dict] = field(default_factory=list)
    code: str = ""
    answer: str = ""
    pictures: list[str] = field(default_factory=list)  # addresses that hold them
    comment: str = ""

    @property
    def complete(self) -> bool:
        return self.points is not None and self.points >= self.out_of


def feedback_page(
    verdict: "Verdict",
    assignment: Assignment,
    marks: dict[str, tuple[float | None, str]],
    deduction: float = 0.0,
) -> str:
    """The HTML page that a student gets.

    Args:
        verdict: the student's.
        assignment: the instructor's notebook, for titles, order and the source of visible checks.
        marks: for each written question the points that a person gave (None: not yet) and a comment; for
            tasks, (None, comment).
        deduction: points taken off for being late.

    Raises:
        ValueError: verdict or marks are of another assignment.
    """
    if verdict.assignment != assignment.name:
        raise ValueError(f"The verdict is on {verdict.assignment!r}, not on {assignment.name!r}.")
    if unknown := sorted(set(marks) - set(assignment.written) - set(assignment.tasks)):
        raise ValueError(f"{assignment.name} has no question or task {', '.join(unknown)}.")
    sections = _sections(verdict, assignment, marks)
    return _render(
        "feedback.html",
        assignment=assignment.name,
        student=verdict.student,
        readable=verdict.status not in ("unreadable", "missing"),
        remarks=list(dict.fromkeys(verdict.remarks)),
        sections=sections,
        points=sum(section.points or 0 for section in sections) - deduction,
        deduction=deduction,
        out_of=sum(section.out_of for section in sections),
        unmarked=sum(section.out_of for section in sections if section.points is None),
    )


def _sections(verdict: "Verdict", assignment: Assignment, marks: dict) -> list[_Section]:
    titles, points, cells = _titles(assignment), assignment.points(), assignment.tests
    sections: dict[str, _Section] = {}
    tests = {test.name: test for test in verdict.tests}
    for name in titles:
        if name in assignment.written:
            mark, comment = marks.get(name, (None, ""))
            sections[f"written {name}"] = _Section(
                name,
                titles[name],
                points[name],
                mark,
                written=True,
                answer=_cut(verdict.answers.get(name, "")),
                pictures=verdict.pictures.get(name, []),
                comment=comment or "",
            )
        elif name in tests:
            function, test = function_of(name), tests[name]
            section = sections.setdefault(function, _Section(function, titles.get(function, titles[name])))
            section.points += test.points
            section.out_of += test.out_of
            section.tests.append(_shown(test, cells[name].source))
    for function, section in sections.items():
        if not section.written:
            source = verdict.sources.get(function, "")
            section.comment = marks.get(function, (None, ""))[1]
            section.code = _cut(source)
    return list(sections.values())


def _cut(text: str) -> str:
    return text[:LONGEST] + ("\n… (cut here)" if len(text) > LONGEST else "")


def _shown(test: "Test", source: str) -> dict:
    """A test as the student may see it: never the source of one with hidden lines."""
    hidden = re.search(r"BEGIN\s+HIDDEN", source, re.IGNORECASE) is not None
    failed = test.points < test.out_of
    return {
        "kind": _kind(test.name),
        "points": test.points,
        "out_of": test.out_of,
        "passed": not failed,
        "message": _for_student(test, hidden) if failed else None,
        "source": "" if hidden or not failed else source,
    }


def _titles(assignment: Assignment) -> dict[str, str]:
    """The heading above each cell with a grade id, in the notebook's order."""
    titles, heading = {}, ""
    for cell in assignment.notebook.cells:
        if cell.cell_type == "markdown":
            public = re.split(r"(?m)^.*BEGIN (?:MARK SCHEME|HIDDEN TESTS|SOLUTION)", cell.source)[0]
            headings = re.findall(r"(?m)^#{1,6} +(.+?)(?: \(written.*\))? *$", public)
            heading = headings[0] if headings else heading
        if name := grade_id(cell):
            titles[name] = heading or name
    return titles


# --------------------------------------------------------------------------- the instructor's page


def report_page(
    assignment: Assignment,
    verdicts: Iterable["Verdict"],
    scores: dict[str, float],
    similar: list[tuple[float, str, str, list[str]]],
    overdue: Iterable[tuple[str, int, float, str]] = (),
) -> str:
    """The HTML page with which an instructor starts.

    Args:
        assignment: the instructor's notebook.
        verdicts: of all submissions, missing ones included.
        scores: each student's points, with what was given by hand so far.
        similar: what `similar.pairs` has found.
        overdue: of late submissions the student, the days, the points taken off and a sentence.

    Raises:
        ValueError: a verdict is of another assignment, or there is no score for it.
    """
    verdicts = sorted(verdicts, key=lambda verdict: verdict.student)
    for verdict in verdicts:
        if verdict.assignment != assignment.name:
            raise ValueError(f"The verdict on {verdict.student} is of another assignment.")
        if verdict.student not in scores:
            raise ValueError(f"There is no score of {verdict.student}.")
    there = [verdict for verdict in verdicts if verdict.status != "missing"]
    points = assignment.points()
    counts = Counter(verdict.status for verdict in verdicts)
    out_of = sum(points.values())
    return _render(
        "report.html",
        assignment=assignment.name,
        count=len(verdicts),
        there=len(there),
        statuses=[(words, counts[status]) for status, words in STATUS.items() if counts[status]],
        out_of=out_of,
        by_hand=sum(points[name] for name in assignment.written),
        summary=_summary([scores[verdict.student] for verdict in there]),
        chart=_chart([scores[verdict.student] for verdict in there], out_of),
        tasks=_tasks(there, assignment),
        slips=_slips(there, assignment),
        times=_times(there),
        overdue=list(overdue),
        human=[(verdict, _reasons(verdict)) for verdict in verdicts if verdict.human],
        similar=sorted(similar, key=lambda pair: -pair[0])[:50],
        more_similar=max(0, len(similar) - 50),
    )


def _summary(scores: list[float]) -> list[tuple[str, float]]:
    if not scores:
        return []
    lower, middle, upper = (
        statistics.quantiles(scores, n=4, method="inclusive") if len(scores) > 1 else scores * 3
    )
    return [
        ("mean", statistics.fmean(scores)),
        ("lowest", min(scores)),
        ("lower quartile", lower),
        ("median", middle),
        ("upper quartile", upper),
        ("highest", max(scores)),
    ]


@dataclass(frozen=True)
class _Bar:
    """A column of the chart, in the units of its picture: 700 wide, 260 high."""

    label: str
    count: int
    x: float
    width: float
    height: float


def _chart(scores: list[float], out_of: float) -> list[_Bar]:
    """The distribution of scores, in some ten columns of equal width; the last one holds the maximum."""
    width = max(1, math.ceil(out_of / 10))
    number = max(1, math.ceil(out_of / width))
    counts = Counter(min(number - 1, max(0, int(score // width))) for score in scores)
    highest = max(counts.values(), default=1)
    ends = [f"{i * width}–{_number(min((i + 1) * width, out_of))}" for i in range(number)]
    step = 700 / number
    return [
        _Bar(ends[i], counts[i], i * step + 4, step - 8, 180 * counts[i] / highest) for i in range(number)
    ]


def _tasks(verdicts: list["Verdict"], assignment: Assignment) -> list[dict]:
    """For each function its tests with the mean share of their points, and who left it unwritten."""
    shares = defaultdict(list)
    unwritten = Counter()
    for verdict in verdicts:
        for test in verdict.tests:
            shares[test.name].append(test.points / test.out_of if test.out_of else 1.0)
        unwritten.update({function_of(t.name) for t in verdict.tests if t.reason == UNWRITTEN})
    points, groups = assignment.points(), defaultdict(list)
    for name in assignment.tests:
        if shares[name]:
            groups[function_of(name)].append((_kind(name), points[name], shares[name]))
    rows = []
    for function, tests in groups.items():
        total = sum(out_of for _, out_of, _ in tests)
        means = [(kind, out_of, statistics.fmean(each)) for kind, out_of, each in tests]
        mean = sum(out_of * share for _, out_of, share in means) / total if total else 1.0
        rows.append(
            {
                "name": function,
                "tests": means,
                "out_of": total,
                "share": mean,
                "unwritten": unwritten[function],
            }
        )
    return rows


# --------------------------------------------------------------------------- misconceptions

ASKED_CLOSER = ("checks", "values", "gradients", "stability")  # each looks closer at the same formula


def _filed_under(test: "Test", source: str) -> str:
    """The words that stand for a failed test without a slip: those of the course, and never a student's."""
    if not test.brief:  # a test of the instructor's own
        return test.message if test.message in source else "A test of the instructor's own is not passed."
    if error := re.match(r"raised (\w+): ", test.brief):
        return f"raised {error[1]}" if hasattr(builtins, error[1]) else "raised an error"
    return re.sub(
        r"^an? (\w+) (?=is (?:returned|made))",
        lambda kind: kind[0] if hasattr(builtins, kind[1]) else "something else ",
        test.brief,
    )


def _slips_of(verdict: "Verdict", assignment: Assignment) -> dict[tuple[str, str], str]:
    """{(function, slip): where to read} of one submission, each slip once however many tests meet it.

    Where the tests of the common kinds name no slip, the first message stands for all of these, since the
    later tests meet the same slip again.
    """
    slips: dict[tuple[str, str], str] = {}
    first: dict[str, tuple[str, str]] = {}
    named = set()
    for test in verdict.tests:
        function, kind = function_of(test.name), test.name.rpartition("_")[2]
        if test.points >= test.out_of or test.trouble or test.reason in (UNWRITTEN, FOLLOWS):
            continue
        if test.slips:
            slips |= {(function, slip): test.read for slip in test.slips}
            named |= {function} if kind in ASKED_CLOSER else set()
        elif kind in ASKED_CLOSER:
            first.setdefault(function, (_filed_under(test, assignment.tests[test.name].source), test.read))
        else:
            slips[function, _filed_under(test, assignment.tests[test.name].source)] = test.read
    for function, (words, read) in first.items():
        if function not in named:
            slips[function, words] = read
    return slips


def _slips(verdicts: list["Verdict"], assignment: Assignment, most: int = 30) -> list[dict]:
    """The most common misconceptions, over the submissions that could be graded."""
    who, where = defaultdict(list), {}
    graded = [verdict for verdict in verdicts if verdict.status != "unreadable"]
    for verdict in graded:
        for key, read in _slips_of(verdict, assignment).items():
            who[key].append(verdict.student)
            where[key] = where.get(key) or read
    ordered = sorted(who, key=lambda key: (-len(who[key]), key))[:most]
    return [
        {
            "function": key[0],
            "count": len(who[key]),
            "share": len(who[key]) / len(graded),
            "message": Message(key[1], where[key]),
            "students": who[key][:3],
        }
        for key in ordered
    ]


# --------------------------------------------------------------------------- run times, and who needs a look


def _times(verdicts: list["Verdict"]) -> dict | None:
    if not verdicts:
        return None
    slowest = sorted(verdicts, key=lambda verdict: -verdict.seconds)[:10]
    seconds = [verdict.seconds for verdict in verdicts]
    return {"median": statistics.median(seconds), "sum": sum(seconds), "slowest": slowest}


def _reasons(verdict: "Verdict") -> list[str]:
    """Why somebody should look at a submission, in sentences."""
    reasons = [*verdict.remarks, verdict.trouble] if verdict.trouble else list(verdict.remarks)
    stopped = [test for test in verdict.tests if test.trouble]
    reasons += [f"The test {test.name} stopped: {test.error or test.message}" for test in stopped]
    if not reasons and verdict.status != "graded":
        reasons = [test.message for test in verdict.tests if test.points < test.out_of][:1]
    return list(dict.fromkeys(reasons)) or [f"The submission {STATUS.get(verdict.status, verdict.status)}."]
