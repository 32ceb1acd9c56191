"""Whether the sandbox is there, and how much goes through it."""

import os
import shutil
import sys

import pytest

CHOSEN = os.environ.get("AECOURSE_TEST_SANDBOX", "")  # empty, 1 or all
INSTALLED = shutil.which("bwrap") is not None
NEEDED = bool(CHOSEN or (os.environ.get("CI") and sys.platform == "linux"))  # missing is a failure, no skip
WHOLE = CHOSEN == "all"  # every attack and every version against all tests: that takes an hour

needs_sandbox = pytest.mark.skipif(
    not INSTALLED and not NEEDED, reason="needs bubblewrap: apt install bubblewrap"
)
