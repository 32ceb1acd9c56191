"""The browser that looks at the site and at the grader's pages."""

import json
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


# Contrast takes axe longer than all other rules together, text by text. Texts of the same colours, size and
# weight have the same contrast: a few of each kind are enough.
KINDS_OF_TEXT = """() => {
    const kinds = {};
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
        if (!own.some((node) => node.textContent.trim())) continue;
        const style = getComputedStyle(element);
        let ground = 'none';
        for (let behind = element; behind; behind = behind.parentElement) {
            ground = getComputedStyle(behind).backgroundColor;
            if (ground !== 'rgba(0, 0, 0, 0)') break;
        }
        const { color, fontSize, fontWeight, opacity } = style;
        const kind = [color, ground, fontSize, fontWeight, opacity, element.tagName === 'A'].join();
        (kinds[kind] ??= []).length < 3 && kinds[kind].push(element);
    }
    return Object.values(kinds).flat();
}"""


def violations(page, also=()):
    """What axe finds wrong with a page for readers who do not see it, or do not use a mouse.

    Only that comes back: the places where all is well are tens of thousands, and take longer than the rules.
    """
    axe_playwright_python = pytest.importorskip("axe_playwright_python")
    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text())
    rules = {"color-contrast": {"enabled": False}} | {name: {"enabled": True} for name in also}
    return page.evaluate(
        f"""async () => {{
            const found = [
                await axe.run({{resultTypes: ['violations'], rules: {json.dumps(rules)}}}),
                await axe.run(
                    {{include: ({KINDS_OF_TEXT})()}},
                    {{resultTypes: ['violations'], runOnly: ['color-contrast']}},
                ),
            ].flatMap((run) => run.violations);
            return found.map((v) => [v.id, v.nodes.map((node) => node.html.slice(0, 150))]);
        }}"""
    )
