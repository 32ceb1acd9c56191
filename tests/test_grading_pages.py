"""What comes out of grading a class: pages, exports, hints at copies. From made-up verdicts."""

import csv
import html
import importlib
import io
import json
import random
import re

import pytest
from support.browser import chromium, needs_chromium, violations
from support.notebooks import ASSIGNMENTS, ROOT, SOURCE, graded, read, solution_cells

pytest.importorskip("jinja2")
pytest.importorskip("nbformat")
pytest.importorskip("resource", reason="grading is for Linux and macOS")

from aecourse.checks.core import FOLLOWS, UNWRITTEN, Cause, Wrong
from aecourse.grading import export, pages, similar, worker
from aecourse.grading.submission import Assignment

READ = "vae#the-price-of-a-code"
BOOK = "https://aecourse.github.io/aecourse/vae.html#the-price-of-a-code"
HOSTILE = '<script>alert("1")</script>'
ELBO = Assignment.of("elbo", (ROOT / "solutions/elbo/elbo.ipynb").read_text())


def assignment(name):
    return Assignment.of(name, (ROOT / "solutions" / name / f"{name}.ipynb").read_text())


def wrong(function, *slips, dtype="float64", words="wrong.", **others):
    """What the worker keeps of a check that failed like this."""
    cause = Cause.of(slips)
    failed = Wrong(words, cause, case=f"images (4, 2, 3), beta=0, {dtype}", function=function, **others)
    failed.read = READ
    return {"message": failed.sentence, **worker.parts_of(failed)}


def verdict(student, messages=(), of=ELBO, **others):
    """A verdict with these messages, {test: a message or attributes of the test}; other tests are passed."""
    points, tests = of.points(), []
    for name in of.tests:
        about = dict(messages).get(name)
        about = {"message": about} if isinstance(about, str) else about
        got = points[name] if about is None else 0.0
        tests.append(worker.Test(name, got, points[name], **(about or {})))
    found = worker.Verdict(of.name, student, "key", tests=tests, **others)
    return worker.Verdict.of(json.loads(json.dumps(found.as_dict())))  # as it comes from another process


def report(*verdicts, pairs=()):
    return pages.report_page(ELBO, verdicts, {v.student: v.points for v in verdicts}, list(pairs))


def text_of(page):
    """What is read on a page."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))


# ---- the student's page


def test_feedback_says_what_passed_what_did_not_and_where_to_read():
    half = wrong("gaussian_kl", "the half in front is missing")
    page = pages.feedback_page(
        verdict("alice", {"gaussian_kl_values": half}, sources={"gaussian_kl": "def gaussian_kl(): pass"}),
        ELBO,
        {"lost_half": (1.5, "Nearly.")},
    )
    text = text_of(page)
    assert "27.5 of 30 points" in text
    assert "values: not passed (0 of 2)" in text
    assert "visible checks: passed (1 of 1)" in text
    assert "the half in front is missing." in text
    assert f'<a href="{BOOK}">vae, the price of a code</a>' in page
    assert "1.5 of 2 points" in text
    assert "Nearly." in text
    assert "def gaussian_kl(): pass" in text
    titles = [html.unescape(title) for title in re.findall(r'<h2 id="task-\d">(.*?)</h2>', page)]
    assert titles[0] == "1. The KL divergence of a diagonal Gaussian"
    assert titles[-1] == "6. A lost half"


def test_feedback_tells_marked_from_not_yet_marked():
    assert "28 of 30 points, and 2 that are not yet marked" in text_of(
        pages.feedback_page(verdict("a"), ELBO, {"lost_half": (None, "")})
    )
    assert "not yet marked" not in text_of(pages.feedback_page(verdict("a"), ELBO, {"lost_half": (0.0, "")}))


def test_feedback_on_an_unreadable_file_says_why_once():
    why = "The file is no notebook: it has no cells."
    found = verdict("a", dict.fromkeys(ELBO.tests, why), status="unreadable", remarks=[why])
    assert text_of(pages.feedback_page(found, ELBO, {})).count(why) == 1


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_feedback_holds_no_line_of_hidden_tests_and_marking_schemes(name):
    of = assignment(name)
    stubs = {task: cell.source for task, cell in solution_cells(read("assignments", name)).items()}
    failed = verdict("a", dict.fromkeys(of.tests, "Not so."), of, sources=stubs)
    text = text_of(pages.feedback_page(failed, of, {}))
    secrets = {
        re.sub(r"\s+", " ", line.strip())
        for cell in SOURCE[name].cells
        for region in re.findall(r"### BEGIN [A-Z ]+\n(.*?)### END", cell.source, flags=re.DOTALL)
        for line in region.splitlines()
        if len(line.strip()) > 12
    }
    assert any("seed=" in line for line in secrets)
    secrets -= {line.strip() for stub in stubs.values() for line in stub.splitlines()}
    assert [line for line in secrets if line in text] == []
    for cell in graded(SOURCE[name]).values():  # those of visible checks may be shown
        if "check(" in cell.source and "HIDDEN" not in cell.source:
            assert re.sub(r"\s+", " ", cell.source).strip() in text


def test_a_heading_of_a_marking_scheme_is_no_title():
    scheme = "Explain.\n### BEGIN MARK SCHEME\n# Secret\n### END MARK SCHEME"
    notebook = read("solutions", "elbo")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = scheme
    page = pages.feedback_page(verdict("a"), Assignment("elbo", notebook), {})
    assert "Secret" not in page
    assert 'id="task-1">gaussian_kl</h2>' in page  # no title, so the task's own name


def test_an_error_of_a_hidden_test_is_not_quoted():
    """Its words could hold what is compared; the instructor reads them in the report."""
    error = {"message": "ValueError: expected 3.14159", "trouble": "ValueError"}
    found = verdict("a", {"elbo_values": error}, human=True, trouble="KeyError: 2.71828")
    page = text_of(pages.feedback_page(found, ELBO, {}))
    assert "3.14159" not in page
    assert "2.71828" not in page
    assert "The test stopped with a ValueError. Your instructor has been told." in page
    whole = text_of(report(found))
    assert "elbo_values stopped: ValueError: expected 3.14159" in whole
    assert "2.71828" in whole


@pytest.mark.parametrize(
    "address", [BOOK, "javascript:alert(1)", "https://example.org/x", f'{BOOK}"onclick="x']
)
def test_no_address_in_a_message_becomes_a_link(address):
    """Errors of students are in messages, too. Where to read is an attribute of the test."""
    words = f"raised E: To read again: {address}"
    found = verdict("a", {"elbo_values": {**wrong("elbo", words=words, joint=" "), "read": ""}})
    page = pages.feedback_page(found, ELBO, {})
    assert words in text_of(page)
    assert '<a href="http' not in page
    assert '<a href="javascript' not in page


def test_what_was_late_and_the_pictures_of_an_answer_are_shown():
    picture = "data:image/png;base64,iVBORw0KGgo="
    found = verdict("a", remarks=["Handed in 1 day late."], pictures={"lost_half": [picture]})
    page = pages.feedback_page(found, ELBO, {"lost_half": (2.0, "")}, deduction=3.0)
    assert f'<img src="{picture}"' in page
    assert "There is none." not in page
    assert "27 of 30 points" in text_of(page)
    assert "Taken off for being late −3" in text_of(page).replace("late−", "late −")
    whole = pages.report_page(ELBO, [found], {"a": 27.0}, [], [("a", 1, 3.0, "Handed in 1 day late.")])
    assert "Late submissions" in whole
    assert "Late submissions" not in pages.report_page(ELBO, [found], {"a": 27.0}, [])


def test_feedback_refuses_what_belongs_to_another_assignment():
    with pytest.raises(ValueError, match="on 'elbo', not on 'vae'"):
        pages.feedback_page(verdict("a"), assignment("vae"), {})
    with pytest.raises(ValueError, match="no question or task nonsense"):
        pages.feedback_page(verdict("a"), ELBO, {"nonsense": (1.0, "")})


def test_hostile_words_stay_words():
    """Of names, code, answers, remarks, messages and comments; and what is no character can be written."""
    found = verdict(
        HOSTILE,
        {
            "elbo_values": wrong("elbo", HOSTILE, words=f"raised E: {HOSTILE}", brief=HOSTILE),
            "elbo_checks": {"message": "ValueError: \ud800\x00", "trouble": HOSTILE},
            "gaussian_kl_values": HOSTILE,
        },
        sources={"elbo": f"{HOSTILE}\x00\ud800", "gaussian_kl": "x" * 10**6},
        answers={"lost_half": f"</pre>{HOSTILE}"},
        remarks=[f"{HOSTILE}\x1b[2J\u202e"],
        human=True,
    )
    feedback = pages.feedback_page(found, ELBO, {"lost_half": (1.0, HOSTILE)})
    assert "\x1b" not in feedback
    for page in (feedback, report(found, verdict("b"), pairs=[(1.0, HOSTILE, "b", [HOSTILE])])):
        page.encode()
        assert "<script" not in page
        assert html.escape(HOSTILE, quote=False).split("(")[0] in page
        assert not re.search("[\x00-\x08]", page)
        assert len(page) < 10**5


# ---- the instructor's page


def misconceptions(page):
    rows = re.findall(r'<tr class="slip">(.*?)</tr>', page, flags=re.DOTALL)
    found = {}
    for row in rows:
        words, count = re.search(r"<p>(.*?)</p>.*<td class=\"n\">(\d+)", row, flags=re.DOTALL).groups()
        found[text_of(words)] = int(count)
    return found


def test_a_misconception_counts_once_for_each_submission():
    half, sign = "the half in front is missing", "the sign is flipped"
    one = {
        "gaussian_kl_checks": wrong("gaussian_kl", half, words="negative."),
        "gaussian_kl_values": wrong("gaussian_kl", half),
        "gaussian_kl_gradients": wrong("gaussian_kl", words="Repair these first.", reason=FOLLOWS),
        "gaussian_kl_stability": wrong("gaussian_kl", words="not precise. Stay with it."),
    }
    two = {"gaussian_kl_values": wrong("gaussian_kl", half, sign, dtype="float32")}
    other = {"elbo_values": wrong("elbo", half)}
    cut = {"elbo_gradients": wrong("elbo", words="no gradient reaches mean, of shape (3, 1).")}
    blank = {"elbo_values": wrong("elbo", words="is still to be written.", reason=UNWRITTEN)}
    own = {"elbo_values": "Anything that a student's assertion says."}
    raised = {
        "elbo_values": wrong("elbo", words="raised Joke: all of this is mine.", joint=" "),
        "gaussian_kl_stability": wrong("gaussian_kl", words="raised TypeError: mine too.", joint=" "),
        "full_gaussian_kl_values": wrong("full_gaussian_kl", words="a Joke is returned, not a tensor."),
    }
    page = report(
        *(
            verdict(f"s{i}", messages)
            for i, messages in enumerate([one, two, other, cut, blank, own, raised])
        ),
        verdict(
            "s9", {"elbo_values": "The file is empty."}, status="unreadable", remarks=["The file is empty."]
        ),
    )
    assert misconceptions(page) == {
        f"gaussian_kl: {half}": 2,
        f"gaussian_kl: {sign}": 1,
        f"elbo: {half}": 1,
        "elbo: no gradient reaches mean, of shape (…).": 1,
        "elbo: A test of the instructor's own is not passed.": 1,
        "elbo: raised an error": 1,
        "gaussian_kl: raised TypeError": 1,
        "full_gaussian_kl: something else is returned, not a tensor.": 1,
    }
    assert "(1 left it blank)" in page


def test_report_counts_scores_and_says_who_needs_a_look():
    lost = dict.fromkeys(ELBO.tests, "No folder was handed in.")
    page = report(
        verdict("full", seconds=1.0),
        verdict(
            "half", dict.fromkeys([t for t in ELBO.tests if not t.startswith("gaussian")], "no"), seconds=9
        ),
        verdict("loop", {"elbo_values": "elbo did not finish."}, status="time", human=True, seconds=2.0),
        verdict("gone", lost, status="missing", human=True, remarks=["No folder was handed in."]),
        pairs=[(0.93, "full", "half", ["elbo"])],
    )
    text = text_of(page)
    assert "4 submissions: 2 graded, 1 ran out of time, 1 no notebook." in text
    assert "over the 3 with a notebook" in text
    mean = (28 + 11 + 26) / 3
    assert f"mean{mean:.2f}" in text.replace(" ", "")
    assert "median26" in text.replace(" ", "")
    assert "0–3: 0; 3–6: 0; 6–9: 0; 9–12: 1;" in text
    assert "24–27: 1; 27–30: 1." in text
    assert "Median 2 s a submission, 12 s in all" in text
    assert re.search(r"half ?graded ?9 .*loop ?ran out of time ?2 ", text[text.index("The slowest") :])
    assert "elbo did not finish." in text
    assert re.search(r"full and half ?93 % ?elbo", text)
    assert "A hint and no proof" in text


def test_report_on_nobody_and_report_without_a_score():
    assert "0 submissions" in report()
    with pytest.raises(ValueError, match="no score of alice"):
        pages.report_page(ELBO, [verdict("alice")], {}, [])


# ---- similar submissions

UNUSUAL = {
    "full_gaussian_kl": '''def full_gaussian_kl(mean, cov):
    """With a Cholesky factor, by hand."""
    rows = []
    for m, c in zip(mean, cov):
        factor = torch.linalg.cholesky(c)
        logs = torch.log(torch.diagonal(factor))  # half of the log-determinant
        spread = sum((column * column).sum() for column in factor.T)
        rows.append(0.5 * (spread + torch.dot(m, m) - m.numel() - 2 * logs.sum()))
    return torch.stack(rows)
''',
    "gaussian_kl": "def gaussian_kl(mean, logvar):\n"
    "    each = torch.expm1(logvar) - logvar + torch.pow(mean, 2)\n"
    "    return torch.einsum('bk,k->b', each, torch.full_like(each[0], 0.5))\n",
}
RENAMED = {
    "full_gaussian_kl": """def full_gaussian_kl(mu, sigma):
    # my own idea
    out = []
    for one_mean, one_cov in zip(mu, sigma):
        low = torch.linalg.cholesky(
            one_cov
        )
        print("here")
        d = torch.log(torch.diagonal(low))
        tr = sum(((v * v)).sum() for v in low.T)
        out.append(0.5 * (tr + torch.dot(one_mean, one_mean) - one_mean.numel() - 2 * d.sum()))
    return torch.stack(out)
""",
    "gaussian_kl": UNUSUAL["gaussian_kl"].replace("each", "terms_of_it"),
}


def a_class(size, name="elbo", seed=0):
    """{student: {task: code}}: right answers, each drawn from those that the tests know."""
    right = importlib.import_module(f"mutants.{name}").RIGHT
    model = {task: cell.source for task, cell in solution_cells(SOURCE[name]).items()}
    pool = {task: [model[task]] + [v.source for v in right if v.function == task] for task in model}
    draw = random.Random(seed)
    return {f"s{i:03}": {task: draw.choice(ways) for task, ways in pool.items()} for i in range(size)}


STUBS = {task: cell.source for task, cell in solution_cells(read("assignments", "elbo")).items()}


@pytest.mark.parametrize("size", [40, 200])
def test_a_renamed_copy_is_found_and_independent_right_answers_are_not(size):
    sources = a_class(size)
    assert similar.pairs(sources, STUBS) == []
    sources["s003"] |= UNUSUAL
    sources["s017"] |= RENAMED
    found = similar.pairs(sources, STUBS)
    assert [pair[1:3] for pair in found] == [("s003", "s017")]
    similarity, *_, tasks = found[0]
    assert similarity > 0.8
    assert tasks == ["full_gaussian_kl", "gaussian_kl"]


def test_plain_code_blank_code_and_broken_code_are_no_hint():
    sources = a_class(30)
    for student in ("s001", "s002"):  # the most plain of all
        sources[student] = {task: cell.source for task, cell in solution_cells(SOURCE["elbo"]).items()}
    for student in ("s003", "s004"):
        sources[student] = dict(STUBS)
    sources["s005"] = dict.fromkeys(STUBS, "def f(:\n\x00" + "(" * 5000)
    sources["s006"] = {}
    assert similar.pairs(sources, STUBS) == []


def test_what_the_release_gives_is_no_hint():
    sources = a_class(30)
    for student in ("s003", "s004"):  # all others have replaced it
        sources[student] |= UNUSUAL
    assert similar.pairs(sources, STUBS) != []
    assert similar.pairs(sources, STUBS | UNUSUAL) == []


def test_broken_copies_are_compared_as_text():
    sources = a_class(30)
    broken = UNUSUAL["full_gaussian_kl"].replace("zip(mean, cov):", "zip(mean, cov)")
    sources["s001"] = {"full_gaussian_kl": broken}
    sources["s002"] = {"full_gaussian_kl": "# mine\n" + broken.replace("  # half of the log-determinant", "")}
    assert [pair[1:3] for pair in similar.pairs(sources, STUBS)] == [("s001", "s002")]


def test_in_a_tiny_class_nothing_is_rare_and_a_threshold_is_a_share():
    sources = a_class(similar.SMALLEST - 1)
    sources["s003"] = sources["s004"] = dict(UNUSUAL)
    assert similar.pairs(sources, STUBS) == []
    with pytest.raises(ValueError, match="threshold"):
        similar.pairs(sources, STUBS, threshold=90)


# ---- exports

PEOPLE = {
    "alice": {"first_name": "Alice", "last_name": "Ash", "email": "alice@example.org"},
    "bob": {"first_name": '=HYPERLINK("http://x")', "last_name": "O, Brien", "email": "bob@example.org"},
    "carol": {"first_name": "Alice", "last_name": "Ash", "email": "carol@example.org"},
}
SCORES = {"alice": 27.5, "bob": 30.0, "carol": None}


def rows_of(text):
    return list(csv.reader(io.StringIO(text)))


def test_own_csv_has_points_per_task_and_leaves_unmarked_questions_empty():
    verdicts = [verdict("bob"), verdict("alice", {"elbo_values": "no"})]
    head, *rows = rows_of(export.csv(ELBO, verdicts, {"alice": {"lost_half": (1.5, "fine")}}))
    assert head == ["student", "status", *ELBO.tasks, "lost_half", "total", "out_of"]
    assert rows == [
        ["alice", "graded", "6", "7", "6", "5", "2", "1.5", "27.5", "30"],
        ["bob", "graded", "6", "7", "6", "5", "4", "", "28", "30"],
    ]


def test_own_csv_says_what_being_late_costs():
    head, row = rows_of(export.csv(ELBO, [verdict("a")], None, {"a": (2, 5.6)}))
    assert head[-4:] == ["late_days", "taken_off", "total", "out_of"]
    assert row[-4:] == ["2", "5.6", "22.4", "30"]


def test_canvas():
    text = export.canvas(SCORES, PEOPLE | {"bob": {**PEOPLE["bob"], "id": "77"}}, "elbo (4711)", 30.0)
    assert rows_of(text) == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "elbo (4711)"],
        ["    Points Possible", "", "", "", "", "30"],
        ["Ash, Alice (alice)", "", "", "alice", "", "27.5"],  # two of one name: by login or not at all
        ['O, Brien, \'=HYPERLINK("http://x")', "77", "", "bob", "", "30"],
        ["Ash, Alice (carol)", "", "", "carol", "", ""],
    ]


def test_moodle():
    text = export.moodle(SCORES, PEOPLE, "elbo")
    assert rows_of(text) == [
        ["Email address", "elbo"],
        ["alice@example.org", "27.5"],
        ["bob@example.org", "30"],
        ["carol@example.org", "-"],
    ]
    assert rows_of(export.moodle({"alice": 1.0}, {}, "elbo", identifier="username"))[1] == ["alice", "1"]
    with pytest.raises(ValueError, match="no email address of dave"):
        export.moodle({"dave": 1.0}, PEOPLE, "elbo")
    with pytest.raises(ValueError, match="identifier"):
        export.moodle(SCORES, PEOPLE, "elbo", identifier="name")


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r\n=1", " =1", "a;=1", "a,-1", "＝1", "\u202e=1", "\x1b]=1"],
)
def test_no_cell_is_a_formula(cell):
    texts = [
        export.csv(ELBO, [verdict(cell)]),
        export.canvas({"a": 1.0}, {"a": {"last_name": cell}}, cell, 30),
        export.moodle({cell: 1.0}, {}, cell, identifier="username"),
    ]
    for text in texts:
        for row in rows_of(text):
            for found in row:
                assert not re.search(r"(^|[;,])\s*[=+\-@＝]", found)
                assert "\n" not in found


# ---- in a browser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both pages, with something in each of their parts."""
    folder = tmp_path_factory.mktemp("pages")
    clause = wrong("elbo", "the unit is bits, not nats")
    one = verdict(
        "a-student-with-a-rather-long-name@example.org",
        {"elbo_values": clause, "elbo_checks": wrong("elbo", words="no.")},
        sources={"elbo": "x = 1  # " + "long " * 50},
        answers={"lost_half": "Half.\n" * 3},
        remarks=["The cell of gaussian_kl is missing."],
        human=True,
    )
    others = [verdict(f"s{i}", {"elbo_values": clause}, seconds=i) for i in range(12)]
    pair = (0.9, one.student, "s1", ["elbo", "full_gaussian_kl"])
    (folder / "feedback.html").write_text(pages.feedback_page(one, ELBO, {"lost_half": (1.0, "Good.")}))
    (folder / "report.html").write_text(report(one, *others, pairs=[pair]))
    return folder


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["feedback", "report"])
def test_page_is_accessible_fits_a_phone_and_asks_nobody(made, name, scheme):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 900}, color_scheme=scheme)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((made / f"{name}.html").as_uri())
        assert asked == [(made / f"{name}.html").as_uri()]
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not violations(page)
