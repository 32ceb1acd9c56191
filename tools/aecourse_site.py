"""The site's own Sphinx extension: a trustworthy and quickly filled cache, accessible pages, two tables.

Six jobs, each of which Jupyter Book leaves open:

1. Its execution cache looks at a notebook alone and would show old output after a change in the library.
   Here the cache's key includes the library and the data set.
2. The theme's pages have accessibility errors that axe-core finds. They are mended in the finished HTML.
3. A figure without alternative text passes unseen. Here it is a warning, and the build runs with -W.
4. Chapters are executed one after the other. Here there are as many at a time as the machine has cores.
5. The executed chapters are left in ``_build/executed``, with their outputs, for a test that runs some again.
6. ``coverage-table`` shows what the course covers and where; ``version-table`` what ran the pages.
"""

import hashlib
import os
import platform
import shutil
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import requires, version
from pathlib import Path

import nbformat
import yaml
from anchors import anchors
from bs4 import BeautifulSoup
from docutils import nodes
from jupyter_cache import get_cache
from jupyter_cache.executors.basic import ExecutionWorkerLocalMProc, ProcessData
from myst_nb.core.read import is_myst_markdown_notebook
from packaging.requirements import Requirement
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import aecourse
from aecourse import data

logger = logging.getLogger(__name__)


def setup(app):
    app.add_config_value("aecourse_fingerprint", "", "env")  # "env": a new value re-reads every page
    app.add_directive("coverage-table", CoverageTable)
    app.add_directive("version-table", VersionTable)
    app.connect("config-inited", key_cache)
    app.connect("builder-inited", fill_cache)
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
    digest.update(f"{name} {place} {versions()}".encode())
    config.aecourse_fingerprint = digest.hexdigest()[:16]
    config.nb_execution_cache_path = str(Path(app.outdir).parent / "cache" / config.aecourse_fingerprint)
    logger.info("chapters run on the data set %r", name)


def fill_cache(app):
    """Execute the pages that the cache lacks, the longest first, each on a core of its own.

    One that fails is executed again, alone, when its page is read: there its error is reported.
    """
    if app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    left_out = app.config.nb_execution_excludepatterns
    readers = {str(path): reader_of(path) for path in sorted(Path(app.srcdir).iterdir())}
    readers = {path: how for path, how in readers.items() if how and not any(map(Path(path).match, left_out))}
    for record in cache.list_project_records():
        if record.uri not in readers:  # a page that is gone
            cache.remove_nb_from_project(record.pk)
    for path, reader in readers.items():
        cache.add_nb_to_project(path, read_data=reader)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # How long a page will take is not known before; one of more text and code usually takes longer.
    records = sorted(cache.list_unexecuted(), key=lambda record: -Path(record.uri).stat().st_size)
    timeout = app.config.nb_execution_timeout
    work = [ProcessData(record.pk, record.uri, cache, timeout, allow_errors=False) for record in records]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for status, path in pool.map(ExecutionWorkerLocalMProc(), work):
            if status:
                logger.info("%s failed and will be executed again", path)
    leave_executed(cache, Path(app.outdir).parent / "executed")


def reader_of(path: Path) -> dict | None:
    """How jupyter-cache reads a page that is executed; None for any other file."""
    if path.suffix == ".ipynb":
        return {"type": "plugin", "name": "nbformat"}
    if path.suffix == ".md" and is_myst_markdown_notebook(path.read_text(encoding="utf-8")):
        return {"type": "plugin", "name": "myst_nb_md"}
    return None


def leave_executed(cache, folder: Path) -> None:
    """Write each notebook of the cache's project with its outputs into a folder, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for record in cache.list_project_records():
        if record.uri.endswith(".ipynb") and cache.get_cached_project_nb(record.uri):
            _, notebook = cache.merge_match_into_notebook(cache.get_project_notebook(record.uri).nb)
            nbformat.write(notebook, folder / Path(record.uri).name)


def versions() -> dict[str, str]:
    """What the chapters run on: Python, and every package that the library or its ``book`` extra asks for."""
    found = {"Python": platform.python_version()}
    for text in requires("aecourse"):
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": "book"}):
            found[needed.name] = version(needed.name)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


class VersionTable(SphinxDirective):
    """The versions that every page of this build was executed with; the cache's key holds them all."""

    def run(self):
        return [
            table(
                ("Package", "Version"),
                [list(map(words, item)) for item in versions().items()],
            )
        ]


class CoverageTable(SphinxDirective):
    """Each row of coverage.yml: where the book shows it, what does it, and the test that holds it."""

    def run(self):
        path = Path(self.env.srcdir) / "coverage.yml"
        self.env.note_dependency(str(path))
        self.env.note_reread()  # titles of pages may have changed
        rows = []
        for number, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            places = []
            for place in row["pages"]:
                name, _, anchor = place.partition("#")
                title = anchors(path.parent, name).get(anchor, anchor)
                places.append(nodes.reference("", title, internal=True, refuri=f"{name}.html#{anchor}"))
            code = [
                nodes.literal("", text.removeprefix("aecourse.")) for text in row["library"] + row["tests"]
            ]
            places = places or [nodes.Text("to come")]
            cells = [nodes.paragraph("", "", *lines(parts)) for parts in (places, code)]
            rows.append([words(str(number)), words(row["row"]), *cells])
        header = ("#", "What", "Where", "Code, and the test of it")
        return [nodes.container("", table(header, rows), classes=["coverage"])]


def words(text: str) -> nodes.paragraph:
    return nodes.paragraph("", text)


def lines(parts: list[nodes.Node]) -> list[nodes.Node]:
    """Parts on lines of their own."""
    return [node for part in parts for node in (part, nodes.raw("", "<br>", format="html"))][:-1]


def table(header, rows) -> nodes.table:
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]
    head, body = nodes.thead(), nodes.tbody()
    for part, cells_of_rows in (
        (head, [[words(name) for name in header]]),
        (body, rows),
    ):
        for cells in cells_of_rows:
            row = nodes.row()
            row += [nodes.entry("", cell) for cell in cells]
            part += row
    group += [head, body]
    return nodes.table("", group)


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
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(mend_page, sorted(Path(app.outdir).glob("*.html"))))


def mend_page(path: Path) -> None:
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
    # duplicate ids: sphinx-proof gives the content of every theorem the same one, which nothing links to.
    for content in page.select("section#proof-content"):
        del content["id"]
    # aria-required-children, aria-deprecated-role: docutils' roles for a bibliography fit no element.
    for entry in page.select(".citation-list[role], .citation[role]"):
        del entry["role"]
    # empty-table-header: the corner of a table whose rows have names heads nothing.
    for corner in page.select("th"):
        if not corner.get_text(strip=True):
            corner.name = "td"
    return str(page)
