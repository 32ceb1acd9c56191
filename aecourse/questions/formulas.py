"""Sentences with a little mathematics, as HTML that needs no MathJax, and as plain text.

A published page has MathJax and so has JupyterLab, but on Colab an output in HTML has not. What a question
needs is little: indices and exponents, bold letters, Greek ones and a few signs. All else is refused.
"""

import html
import re
import unicodedata
from collections.abc import Callable

SIGNS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "theta": "θ",
    "lambda": "λ", "mu": "μ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "chi": "χ",
    "Sigma": "Σ", "le": "≤", "ge": "≥", "ne": "≠", "approx": "≈", "sim": "∼", "in": "∈", "to": "→",
    "infty": "∞", "cdot": "·", "times": "×", "pm": "±", "odot": "⊙", "circ": "∘", "sum": "∑", "nabla": "∇",
    "psi": "ψ", "top": "⊤", "|": "‖", ",": "\u202f", "%": "%",
}  # fmt: skip
WORDS = {"log", "exp", "sin", "cos", "max", "min", "det"}
BOLD = {"mathbf", "boldsymbol"}
UPRIGHT = {"operatorname", "text", "mathcal", "mathbb"}
ACCENTS = {"hat": "\u0302", "tilde": "\u0303", "bar": "\u0304"}  # stand behind the letter
FRACTIONS = {"1/2": "½", "1/3": "⅓", "2/3": "⅔", "1/4": "¼", "3/4": "¾"}
RELATIONS, OPERATORS, OPENING = "=<>≤≥≠≈∼∈→", "+−·×±⊙∘", "([,‖|/∇∑"

_TOKEN = re.compile(r"\\([A-Za-z]+|.)\s*|(\d+(?:\.\d+)*|[^\s\\])|(\s+)")


class _Html:
    """What stands before and behind each kind of piece."""

    code, emphasis, letter, bold, below, above = (
        (f"<{tag}>", f"</{tag}>") for tag in ("code", "em", "i", "b", "sub", "sup")
    )
    formula = '<span class="aq-formula">', "</span>"
    escape = staticmethod(html.escape)


class _Text:
    code = emphasis = letter = bold = formula = "", ""
    below, above = ("_", ""), ("^", "")
    escape = staticmethod(str)


def to_html(text: str) -> str:
    """A sentence of Markdown, with emphasis, code and formulas, as HTML.

    Raises:
        ValueError: a formula has a command that is not known, or its braces do not match.
    """
    return _convert(text, _Html)


def to_text(text: str) -> str:
    """The same sentence without marks: indices after an underline, exponents after a circumflex.

    Raises:
        ValueError: a formula has a command that is not known, or its braces do not match.
    """
    return _convert(text, _Text)


def _convert(text: str, marks: type) -> str:
    readers: dict[str, Callable[[str], str]] = {
        "$": lambda inner: _formula(inner, marks),
        "`": lambda inner: _around(marks.escape(inner), marks.code),
        "*": lambda inner: _around(marks.escape(inner), marks.emphasis),
    }
    parts = re.split(r"(\$[^$]+\$|`[^`]+`|\*[^*]+\*)", text)
    plain, marked = map(marks.escape, parts[::2]), (readers[part[0]](part[1:-1]) for part in parts[1::2])
    return "".join(piece for pair in zip(plain, [*marked, ""]) for piece in pair)


def _formula(source: str, marks: type) -> str:
    read = _Formula(source, marks).read()
    # A short one stays on its line; a long one has to break somewhere on a phone.
    return _around(read.replace(" ", "\u00a0") if len(source) <= 20 else read, marks.formula)


def _around(text: str, mark: tuple[str, str]) -> str:
    return mark[0] + text + mark[1]


class _Formula:
    """Reads a formula from left to right."""

    def __init__(self, source: str, marks: type):
        self.source, self.marks = source, marks
        # Commands keep their backslash, so that \| and | are two tokens.
        self.tokens = [
            f"\\{command}" if command else one or " " for command, one, _ in _TOKEN.findall(source.strip())
        ]
        self.before = ""  # the sign before the present one

    def read(self, end: str = "", upright: bool = False) -> str:
        """All up to a token, or to the end of the formula."""
        parts = []
        while self.tokens and self.tokens[0] != end:
            parts.append(self.piece(upright))
        if end:
            self.next()
        return "".join(parts)

    def next(self) -> str:
        if not self.tokens:
            raise ValueError(f"the formula ${self.source}$ ends too early.")
        return self.tokens.pop(0)

    def piece(self, upright: bool = False) -> str:
        """The next sign, or what stands in the next braces."""
        token = self.next()
        if token == " ":
            return " " if upright else ""
        if token == "{":
            return self.read("}", upright)
        if token == "}":
            raise ValueError(f"the formula ${self.source}$ has a brace that does not open.")
        if token in ("_", "^"):
            return self.script(self.marks.below if token == "_" else self.marks.above)
        return self.command(token[1:], upright) if token[0] == "\\" else self.sign(token, upright)

    def script(self, mark: tuple[str, str]) -> str:
        inner = self.read_one()
        if self.marks is _Text and len(inner) > 1 and not inner.isdigit():
            inner = f"{{{inner}}}"  # or nobody could say where it ends
        return _around(inner, mark)

    def read_one(self, upright: bool = False) -> str:
        """What a command or an index takes: the first digit of a number, as TeX does, or a piece."""
        self.before = ""
        while self.tokens and self.tokens[0] == " ":
            self.next()
        if self.tokens and self.tokens[0][:2].isdigit() and len(self.tokens[0]) > 1:
            self.tokens[:1] = [self.tokens[0][0], self.tokens[0][1:]]
        inner = self.piece(upright)
        self.before = inner
        return inner

    def sign(self, sign: str, upright: bool) -> str:
        sign = "−" if sign == "-" else sign
        before, self.before = self.before, sign
        if sign in RELATIONS:
            return f" {self.marks.escape(sign)} "
        if sign in OPERATORS:  # between two things, or before one
            between = before and before not in RELATIONS + OPERATORS + OPENING
            return f"\u202f{sign}\u202f" if between else sign
        if sign == ",":
            return ", "
        slanted = unicodedata.category(sign[0]) == "Ll" or (sign.isascii() and sign.isalpha())
        return _around(self.marks.escape(sign), self.marks.letter if slanted and not upright else ("", ""))

    def command(self, name: str, upright: bool) -> str:
        if name in SIGNS:
            return self.sign(SIGNS[name], upright)
        if name in WORDS:
            parted = self.before and self.before not in RELATIONS + OPERATORS + OPENING
            self.before = ""
            follows = self.tokens and self.tokens[0] not in ("(", "^", "_")
            return ("\u202f" if parted else "") + name + ("\u202f" if follows else "")
        if name == "sqrt":
            inner = self.read_one()
            return (
                f"√({inner})" if re.search(rf"[/{OPERATORS}]", re.sub(r"<[^>]+>", "", inner)) else f"√{inner}"
            )
        if name in BOLD:
            return _around(self.read_one(upright=True), self.marks.bold)
        if name in UPRIGHT:
            return self.read_one(upright=True)
        if name in ("frac", "tfrac"):
            fraction = f"{self.read_one()}/{self.read_one()}"
            return FRACTIONS.get(fraction, fraction)
        if name in ACCENTS:  # over the last letter, ahead of the tags that end it
            return re.sub(r"((?:</\w+>)*)$", ACCENTS[name] + r"\1", self.read_one(upright), count=1)
        raise ValueError(f"the formula ${self.source}$ has \\{name}, which questions do not know.")
