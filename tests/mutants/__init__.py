"""Wrong and right versions of the functions of the assignments, one module each, for test_assignments.py."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import indent

LOSES = {
    "ALL": "checks values gradients stability",
    "SOME": "values gradients stability",  # the visible checks do not see it
}


@dataclass(frozen=True)
class Version:
    """One way to write a function.

    loses: the kinds of its graded cells that must fail; no other may. A kind that the function does not have
    is left out.
    says: words from the message of the first hidden cell that fails, which name the slip. Empty when the
    tests notice the slip but cannot name it.
    filed: words from what the report of a class files it under; as a rule those above.
    """

    name: str
    function: str
    source: str
    loses: frozenset
    says: str
    filed: str = ""


def versions_of(starts: dict[str, str]) -> Callable[[str, str], list[Version]]:
    """A reader of versions: ``versions(function, text)``.

    starts: for each function the lines that all its versions begin with.
    text: blocks of "# name | loses | says | filed" (only the name for a right one; filed only where it is
    not the same as says) and a body, which stands for itself when it holds a whole function or class.
    """

    def versions(function: str, text: str) -> list[Version]:
        found = []
        for block in text.strip().removeprefix("# ").split("\n# "):
            head, body = block.split("\n", 1)
            name, loses, says, filed = (part.strip() for part in (head + " | | | ").split("|")[:4])
            whole = re.search(r"(?m)^(def|class) ", body)
            source = body if whole else starts[function] + indent(body, "    ")
            kinds = frozenset(LOSES.get(loses, loses).split())
            found.append(Version(name, function, source + "\n", kinds, says, filed or says))
        return found

    return versions
