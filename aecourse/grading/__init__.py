"""Grading a class. Nothing of the library or the book imports this package."""

import contextlib
import sys

# Where jsonschema, which nbformat and nbgrader import, finds this package, it makes 38 parsers of internet
# addresses: more than a second, for a format that no notebook uses.
if "jsonschema" not in sys.modules and "rfc3987_syntax" not in sys.modules:
    sys.modules["rfc3987_syntax"] = None
    with contextlib.suppress(ImportError):
        import jsonschema  # noqa: F401
    del sys.modules["rfc3987_syntax"]
