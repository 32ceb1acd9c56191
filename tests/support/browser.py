"""The browser that looks at the site and at the grader's pages."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium found: install chromium to test pages"
)


@contextmanager
def chromium():
    """A browser without a window. Not for a whole session: while it is there, this thread has a running
    event loop, and what wants to start one of its own (nbclient) cannot."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def violations(page, options=""):
    """What axe finds wrong with a page for readers who do not see it, or do not use a mouse.

    Only that comes back: the places where all is well are tens of thousands, and take longer than the rules.
    """
    axe_playwright_python = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    return page.evaluate(
        f"""axe.run({{resultTypes: ['violations'], {options}}}).then((found) =>
            found.violations.map((v) => [v.id, v.nodes.map((node) => node.html.slice(0, 150))]))"""
    )
