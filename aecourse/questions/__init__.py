"""The self-tests of the chapters: multiple-choice questions that explain each of their options.

The questions of a chapter are a text file beside this one, ``vae.md`` for instance, which can be read and
changed without knowing any Python::

    ## silent-unit

    The KL of a unit is zero for every example. What does the decoder learn from it?

    - [x] Nothing about the example.
      - Its posterior is the prior, whatever the example is.
    - [ ] The mean of the data.
      - That is in the decoder's biases, and the unit is pure noise.

A heading names the question. After the text come its options, each with the reason why it is right or wrong;
the right one has a cross. ``$...$`` holds mathematics, in the small part of TeX that
:mod:`aecourse.questions.formulas` knows. They are shown in an order of nobody's choice.

A page shows them with ``questions.show("vae")``. Each option is a disclosure of HTML's own, ``<details>``,
that opens on its reason. So one output serves JupyterLab, Colab and a published page, without kernel or
script, by mouse, by keyboard and read aloud. Radio buttons would not do: the arrow keys that move through
them choose on the way, and whoever has no mouse would be told about A and B before coming to C.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aecourse.questions import formulas

FOLDER = Path(__file__).parent
CHAPTERS = sorted(path.stem for path in FOLDER.glob("*.md"))
LETTERS = "ABCD"


@dataclass(frozen=True)
class Option:
    """One of the answers to choose from, with the reason why it is right or not.

    text, reason: Markdown with emphasis, code and formulas and nothing else.
    """

    text: str
    reason: str
    right: bool


@dataclass(frozen=True)
class Question:
    """A question with four options, in the order in which they are shown."""

    name: str
    text: str
    options: tuple[Option, ...]

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return next(letter for letter, option in zip(LETTERS, self.options) if option.right)


@dataclass(frozen=True)
class SelfTest:
    """The questions of a chapter; a notebook that has one as a cell's value shows it.

    Printed, or as Markdown where there is no HTML, it is all questions and then all answers.
    """

    chapter: str
    questions: tuple[Question, ...]

    def _repr_html_(self) -> str:
        style = (FOLDER / "style.css").read_text(encoding="utf-8")
        groups = [self._group(number, question) for number, question in enumerate(self.questions, 1)]
        answers = ", ".join(f"{number} {q.answer}" for number, q in enumerate(self.questions, 1))
        # Enter and Space mean something else to JupyterLab, unless this attribute keeps them here.
        return "\n".join(
            [
                '<div class="aecourse-questions" data-lm-suppress-shortcuts="true">',
                f"<style>\n{style}</style>",
                *groups,
                f'<p class="aq-answers">Answers: {answers}.</p>',
                "</div>",
            ]
        )

    def _group(self, number: int, question: Question) -> str:
        label = f"question-{self.chapter}-{question.name}"
        lines = [
            f'<div class="aq-question" role="group" aria-labelledby="{label}">',
            f'<p id="{label}"><b>{number}.</b> {formulas.to_html(question.text)}</p>',
        ]
        for letter, option in zip(LETTERS, question.options):
            verdict, kind = ("Right.", "aq-right") if option.right else ("No.", "aq-wrong")
            # What appears in a live region is read out: the reason, once its option is open.
            lines += [
                f'<details class="{kind}" aria-live="polite">',
                f"<summary><b>{letter}</b><span>{formulas.to_html(option.text)}</span></summary>",
                f"<p><b>{verdict}</b> {formulas.to_html(option.reason)}</p>",
                "</details>",
            ]
        return "\n".join([*lines, "</div>"])

    def _repr_markdown_(self) -> str:
        return self._as_text(lambda text: text, bold="**")

    def __repr__(self) -> str:
        return self._as_text(formulas.to_text)

    def _as_text(self, convert: Callable[[str], str], bold: str = "") -> str:
        asked, answered = [], []
        for number, question in enumerate(self.questions, 1):
            asked.append(f"{bold}{number}.{bold} {convert(question.text)}")
            for letter, option in zip(LETTERS, question.options):
                asked.append(f"{letter}. {convert(option.text)}")
                verdict = "Right." if option.right else "No."
                answered.append(f"{number} {letter}. {bold}{verdict}{bold} {convert(option.reason)}")
        return "\n\n".join([*asked, f"{bold}Answers{bold}", *answered])


def show(chapter: str) -> SelfTest:
    """The questions of a chapter, as the last value of a cell.

    Args:
        chapter: the name of its page, "vae" for instance.

    Raises:
        ValueError: there are no questions of this name, or their file has a slip, which the message names.
    """
    if chapter not in CHAPTERS:
        raise ValueError(f"chapter is {chapter!r} but must be one of {', '.join(CHAPTERS)}.")
    return SelfTest(chapter, parse((FOLDER / f"{chapter}.md").read_text(encoding="utf-8"), chapter))


def parse(text: str, chapter: str) -> tuple[Question, ...]:
    """The questions in a text; see the head of this module for what it looks like.

    Raises:
        ValueError: a question has not four options, one of them right, each with a reason of its own; a name
            stands twice; a formula holds more than :mod:`aecourse.questions.formulas` knows.
    """
    questions: dict[str, Question] = {}
    for block in re.split(r"(?m)^## ", text)[1:]:
        name, _, rest = block.partition("\n")
        if name in questions:
            raise ValueError(f"{chapter}.md: {name} is the name of two questions.")
        try:
            questions[name] = _question(name, rest)
        except ValueError as error:
            raise ValueError(f"{chapter}.md, {name}: {error}") from None
    return tuple(questions.values())


def _question(name: str, rest: str) -> Question:
    asked, *parts = re.split(r"(?m)^- \[([ x])\] ", rest)
    options = []
    for mark, part in zip(parts[::2], parts[1::2]):
        words, _, reason = part.partition("\n  - ")
        options.append(Option(_one_line(words), _one_line(reason), mark == "x"))
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError("a name is small letters with hyphens.")
    if len(options) != len(LETTERS) or sum(option.right for option in options) != 1:
        raise ValueError(f"a question has {len(LETTERS)} options, and one of them is right.")
    texts, reasons = [option.text for option in options], [option.reason for option in options]
    if not all([asked.strip(), *texts, *reasons]):
        raise ValueError("a question has a text, and each option a text and a reason.")
    if len({*texts, *reasons}) < 2 * len(options):
        raise ValueError("two options or two reasons are the same.")
    for words in (asked, *texts, *reasons):
        formulas.to_text(words)  # or says which formula cannot be shown
    # In an order that nobody chose, and that is the same on every machine.
    options.sort(key=lambda option: hashlib.sha256(f"{name} {option.text}".encode()).digest())
    return Question(name, _one_line(asked), tuple(options))


def _one_line(text: str) -> str:
    return " ".join(text.split())
