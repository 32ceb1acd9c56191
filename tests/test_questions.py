"""The self-tests of the chapters: whole, equally long, not to be answered by style, open to a keyboard."""

import math
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support.browser import chromium, needs_chromium, violations

from aecourse import questions
from aecourse.questions import formulas

ROOT = Path(__file__).resolve().parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [chapter["file"] for part in TOC["parts"] if part.get("numbered") for chapter in part["chapters"]]
ALL = {name: questions.show(name) for name in questions.CHAPTERS}
EACH = {f"{name}-{question.name}": question for name, test in ALL.items() for question in test.questions}


def test_every_chapter_has_its_questions():
    assert set(CHAPTERS) == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_chapter_has_four_to_six_questions(name):
    assert 4 <= len(ALL[name].questions) <= 6


@pytest.mark.parametrize("question", EACH.values(), ids=EACH)
def test_the_options_of_a_question_are_equally_long(question):
    lengths = [len(formulas.to_text(option.text)) for option in question.options]
    assert max(lengths) <= 1.2 * min(lengths), lengths
    assert all(option.text.endswith(".") and option.reason.endswith(".") for option in question.options)
    assert question.text.endswith("?")


# ------------------------------------------------------------------------- what gives an answer away


def asked() -> list[tuple[str, str, list[str], int]]:
    """Of every question its chapter, its text, its options and which of them is right."""
    return [
        (
            name,
            formulas.to_text(question.text),
            [formulas.to_text(option.text) for option in question.options],
            questions.LETTERS.index(question.answer),
        )
        for name, test in ALL.items()
        for question in test.questions
    ]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


HEDGES = set(
    "about all alone always any can could each every exactly hardly least may might most must never no none "
    "nothing often only perhaps some too usually".split()
)

CONJUNCTIONS = "as because if since so until where which while with".split()


def shared(text: str, others: list[str]) -> int:
    return sum(len(words(text) & words(other)) for other in others)


def conjunction(option: str) -> str:
    return next((word for word in re.findall(r"\w+", option) if word in CONJUNCTIONS), "")


# What a reader can go by who has not understood the question: a number for each option; the largest is taken.
STYLES = {
    "letters": lambda text, options: [len(option) for option in options],
    "words": lambda text, options: [len(option.split()) for option in options],
    "hedges": lambda text, options: [len(words(option) & HEDGES) for option in options],
    "digits": lambda text, options: [sum(map(str.isdigit, option)) for option in options],
    "like the question": lambda text, options: [shared(option, [text]) for option in options],
    "like the others": lambda text, options: [shared(option, options) for option in options],
    "built like the others": lambda text, options: [
        sum(conjunction(option) == conjunction(other) for other in options) for option in options
    ],
    **{
        f"at {letter}": lambda text, options, place=place: [i == place for i in range(len(options))]
        for place, letter in enumerate(questions.LETTERS)
    },
}


def z_score(asked, style, sign=1) -> float:
    """How much better than chance this style answers, in standard deviations. In a tie it guesses."""
    hits = 0.0
    for _, text, options, right in asked:
        values = [sign * value for value in style(text, options)]
        best = [place for place, value in enumerate(values) if value == max(values)]
        hits += (right in best) / len(best)
    return (hits - len(asked) / 4) / math.sqrt(len(asked) * 3 / 16)


@pytest.mark.parametrize("sign", [1, -1], ids=["most", "fewest"])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_no_question_can_be_answered_by_style(style, sign):
    assert abs(z_score(asked(), style, sign)) < 2.5


def learnt(others):
    """A style that was learnt from questions whose answers are known: which words stand in right options."""
    counts = {True: Counter(), False: Counter()}
    for _, _, options, right in others:
        for place, option in enumerate(options):
            counts[place == right].update(words(option))

    def surprise(word):
        odds = (counts[True][word] + 0.5) / (counts[False][word] + 1.5)
        return math.log(3 * odds)

    return lambda text, options: [sum(map(surprise, words(option))) for option in options]


def by_learning(asked) -> float:
    """As `z_score`, for one who has seen the answers of all other chapters."""
    chapters = {name for name, *_ in asked}
    scores = [
        z_score(of_it, learnt([q for q in asked if q[0] != name])) * math.sqrt(len(of_it))
        for name in chapters
        for of_it in [[q for q in asked if q[0] == name]]
    ]
    return sum(scores) / math.sqrt(len(asked))


def test_the_answers_of_other_chapters_do_not_give_these_away():
    assert abs(by_learning(asked())) < 2.5


def test_a_style_would_be_seen():
    honest = asked()
    for word in (" always", " by and large", " as well, in most of the cases that occur"):
        told = [
            (name, text, [o + word * (place == right) for place, o in enumerate(options)], right)
            for name, text, options, right in honest
        ]
        assert z_score(told, STYLES["letters"]) > 2.5
        assert by_learning(told) > 2.5
    assert z_score([(n, t, o, 0) for n, t, o, _ in honest], STYLES["at A"]) > 2.5


# ------------------------------------------------------------------------- reading and writing them

GOOD = "## a-name\n\nWhy $x_1 < 2$?\n\n" + "".join(
    f"- [{'x' if n == 2 else ' '}] Option {n}.\n  - Reason {n}.\n" for n in range(4)
)


def test_a_text_is_read_and_its_options_are_in_an_order_of_nobodys_choice():
    (question,) = questions.parse(GOOD, "any")
    assert (question.name, question.text) == ("a-name", "Why $x_1 < 2$?")
    assert {option.text: option.reason for option in question.options} == {
        f"Option {n}.": f"Reason {n}." for n in range(4)
    }
    assert [option.text for option in question.options if option.right] == ["Option 2."]
    assert question.options[questions.LETTERS.index(question.answer)].right
    # Whatever their order in the file.
    head, *options = re.split(r"(?m)^(?=- )", GOOD)
    assert questions.parse(head + "".join(reversed(options)), "any") == (question,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("[x]", "[ ]"), "any.md, a-name: a question has 4 options, and one of them is right"),
        (GOOD.replace("[ ] Option 3", "[x] Option 3"), "one of them is right"),
        (GOOD.replace("- [ ] Option 3.\n  - Reason 3.\n", ""), "4 options"),
        (GOOD.replace("\n  - Reason 1.", ""), "each option a text and a reason"),
        (GOOD.replace("Why $x_1 < 2$?", ""), "a question has a text"),
        (GOOD.replace("Reason 1", "Reason 0"), "two options or two reasons are the same"),
        (GOOD + GOOD, "a-name is the name of two questions"),
        (GOOD.replace("a-name", "A name"), "small letters with hyphens"),
        (GOOD.replace("$x_1 < 2$", r"$\foo$"), r"a-name: the formula \$\\foo\$ has \\foo"),
    ],
)
def test_refuses_a_text_with_a_slip(text, message):
    with pytest.raises(ValueError, match=message):
        questions.parse(text, "any")


def test_refuses_a_chapter_without_questions():
    with pytest.raises(ValueError, match="chapter is 'vea' but must be one of climbing, "):
        questions.show("vea")


@pytest.mark.parametrize(
    ("text", "shown", "plain"),
    [
        ("a < b & `c < d`, *no*", "a &lt; b &amp; <code>c &lt; d</code>, <em>no</em>", "a < b & c < d, no"),
        (r"$x^2$", "<i>x</i><sup>2</sup>", "x^2"),
        (r"$q_\phi(\mathbf z | x)$", "<i>q</i><sub><i>φ</i></sub>(<b>z</b>|<i>x</i>)", "q_φ(z|x)"),
        (r"$-1 < a-b$", "−1\xa0&lt;\xa0<i>a</i>\u202f−\u202f<i>b</i>", "−1\xa0<\xa0a\u202f−\u202fb"),
        (r"$10^{-7}$", "10<sup>−7</sup>", "10^{−7}"),
        (r"$\tfrac12 \log x^10$", "½\u202flog\u202f<i>x</i><sup>1</sup>0", "½\u202flog\u202fx^10"),
        (r"$\hat{\mathbf x}$", "<b>x\u0302</b>", "x\u0302"),
        (r"$\sqrt{a/b} + \sqrt 2$", "√(<i>a</i>/<i>b</i>)\u202f+\u202f√2", "√(a/b)\u202f+\u202f√2"),
        (r"$\operatorname{KL}(p \,\|\, q)$", "KL(<i>p</i>\u202f‖\u202f<i>q</i>)", "KL(p\u202f‖\u202fq)"),
    ],
)
def test_formulas(text, shown, plain):
    assert re.sub(r'<span class="aq-formula">|</span>', "", formulas.to_html(text)) == shown
    assert formulas.to_text(text) == plain


@pytest.mark.parametrize("formula", ["a}", "a_", "{a", r"\frac1"])
def test_formulas_that_are_not_whole(formula):
    with pytest.raises(ValueError, match=r"ends too early|does not open"):
        formulas.to_html(f"${formula}$")


@pytest.mark.parametrize("name", ALL)
def test_on_paper_the_answers_come_after_all_questions(name):
    test = ALL[name]
    for text, convert in ((repr(test), formulas.to_text), (test._repr_markdown_(), str)):
        before, after = re.split(r"(?m)^\W*Answers\W*$", text)
        for number, question in enumerate(test.questions, 1):
            assert convert(question.text) in before
            assert re.findall(rf"(?m)^{number} ([A-D])\. \W*Right", after) == [question.answer]
            for option in question.options:
                assert convert(option.text) in before
                assert convert(option.reason) in after
                assert convert(option.reason) not in before
    assert "$" not in repr(test)


# ------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def show(browser, *names, **options):
    context = browser.new_context(**options)
    page = context.new_page()
    body = "".join(ALL[name]._repr_html_() for name in names)
    page.set_content(
        f"<!doctype html><html lang=en><title>Questions</title><main><h1>Questions</h1>{body}</main></html>"
    )
    return page


def heard(page) -> dict[str, str]:
    """What a screen reader has of the page: each text, and whether it is read out when it appears."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    nodes = {node["nodeId"]: node for node in tree}

    def live(node) -> str:
        own = [p["value"]["value"] for p in node.get("properties", []) if p["name"] == "live"]
        return own[0] if own else live(nodes[node["parentId"]]) if "parentId" in node else ""

    return {
        node["name"]["value"]: live(node)
        for node in tree
        if not node["ignored"] and node["role"]["value"] == "StaticText"
    }


@needs_chromium
@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_a_keyboard_chooses_and_the_reason_is_read_out(browser, scripts):
    page = show(browser, "vae", java_script_enabled=scripts)
    first, second = ALL["vae"].questions[0].options[:2]
    before = heard(page)
    assert page.locator("details[open]").count() == 0
    assert not any(text.startswith(("Right.", "No.")) for text in before)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second option, without a word about the first
    assert page.locator("details[open]").count() == 1
    reason = page.locator("details[open] > p")
    assert reason.is_visible()
    verdict = "Right." if second.right else "No."
    assert reason.inner_text() == f"{verdict} {formulas.to_text(second.reason)}"
    appeared = {text: live for text, live in heard(page).items() if text not in before}
    assert appeared.pop(verdict) == "polite"
    assert set(appeared.values()) == {"polite"}
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert page.locator("details[open]").count() == 2
    assert first.reason[:9] in page.locator("details[open] > p").first.inner_text()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_questions_are_accessible_and_fit_a_phone(browser, scheme):
    page = show(browser, *ALL, viewport={"width": 360, "height": 900})
    if scheme == "dark":
        page.add_style_tag(content="body { background: #121212; color: #ced6dd; }")
    for answer in page.locator(".aq-question:first-of-type summary").all()[:8]:
        answer.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not violations(page)
    ids = page.locator("[id]").evaluate_all("all => all.map((element) => element.id)")
    assert len(ids) == len(set(ids)) == len(EACH)


@needs_chromium
def test_a_printed_page_has_the_answers_below(browser):
    page = show(browser, "vae")
    answers = page.locator(".aq-answers")
    assert not answers.is_visible()
    page.emulate_media(media="print")
    shown = re.findall(r"(\d) ([A-D])", answers.inner_text())
    assert shown == [(str(n), question.answer) for n, question in enumerate(ALL["vae"].questions, 1)]
