"""The site's own Sphinx extension: a trustworthy cache, accessible pages, no dead scripts.

Three jobs, each of which Jupyter Book leaves open:

1. Its execution cache looks at a notebook alone and would show old output after a change in the library.
   Here the cache's key includes the library and the data set.
2. The theme's pages have accessibility errors that axe-core finds. They are mended in the finished HTML.
3. A figure without alternative text passes unseen. Here it is a warning, and the build runs with -W.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.util import logging

import aecourse
from aecourse import data

logger = logging.getLogger(__name__)


def setup(app):
    app.add_config_value("aecourse_fingerprint", "", "env")  # "env": a new value re-reads every page
    app.connect("config-inited", key_cache)
    app.connect("doctree-resolved", check_alternative_text)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def key_cache(app, config):
    """Give each state of library, benchmark results and data an execution cache of its own."""
    digest = hashlib.sha256()
    package = Path(aecourse.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    for path in sorted((Path(app.srcdir).parent / "benchmarks" / "results").glob("*.json")):
        digest.update(path.name.encode() + path.read_bytes())
    name = data.chosen_name()
    place = data.data_root() if name in data.DOWNLOADED else ""
    digest.update(f"{name} {place} torch {version('torch')}".encode())
    config.aecourse_fingerprint = digest.hexdigest()[:16]
    config.nb_execution_cache_path = str(Path(app.outdir).parent / "cache" / config.aecourse_fingerprint)
    logger.info("chapters run on the data set %r", name)


def check_alternative_text(app, doctree, docname):
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                "an image has no alternative text (%s): set the cell's metadata mystnb.image.alt",
                image["uri"],
                location=(docname, image.line),
            )


def mend_pages(app, exception):
    if exception is None and app.builder.name == "html":
        for path in Path(app.outdir).glob("*.html"):
            before = path.read_text(encoding="utf-8")
            after = mend(before)
            if after != before:
                path.write_text(after, encoding="utf-8")


def mend(html: str) -> str:
    """One page, mended; mending it twice changes nothing more."""
    page = BeautifulSoup(html, "html.parser")
    for script in page.find_all("script"):
        # Live code through Thebe asks a CDN for its program; here Colab does that job.
        dead = "THEBE_JS_URL" in script.text or "sphinx-thebe" in script.get("src", "")
        if dead or script.get("type") == "text/x-thebe-config" or script.text.startswith("kernelName"):
            script.decompose()
    # Colab opens notebooks; a page that is a text file would be an error there.
    if link := page.select_one("a[href^='https://colab.research.google.com/'][href$='.md']"):
        link.find_parent(class_="dropdown-launch-buttons").decompose()
    if advertisement := page.find(id="ethical-ad-placement"):
        advertisement.parent.decompose()
    # region: the brand stands outside every landmark, so the sidebar becomes one.
    if sidebar := page.find(id="pst-primary-sidebar"):
        sidebar["role"], sidebar["aria-label"] = "region", "Sidebar"
    # label-content-name-mismatch: the name a voice user would say must be the text that is shown.
    for button in page.select("button.search-button-field[aria-label]"):
        del button["aria-label"]
    for summary in page.select("summary[aria-label]"):
        del summary["aria-label"]
    for icon in page.select("button.theme-switch-button i[title]"):
        del icon["title"]
    # aria-required-children, aria-deprecated-role: docutils' roles for a bibliography fit no element.
    for entry in page.select(".citation-list[role], .citation[role]"):
        del entry["role"]
    return str(page)
