"""The built website, in a real browser: what no warning of the build would show.

`make test` builds the site first. Without Chromium or without a site these tests skip and say so.
"""

import functools
import html
import http.server
import json
import math
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from support.browser import chromium, needs_chromium, violations

from aecourse import questions, reference

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
PAGES = sorted(path.stem for path in SITE.glob("*.html") if path.stem != "index")
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))
SLOWEST = 15_000  # milliseconds to wait for something to appear, on a busy machine

pytestmark = [
    pytest.mark.skipif(not PAGES, reason="there is no built site: run make book"),
    needs_chromium,
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def open_in(context, address, path):
    """A page of the site, or a file; what goes wrong on it is listed in its ``problems``."""
    page = context.new_page()
    page.set_default_timeout(SLOWEST)
    page.problems, page.bytes, page.own_bytes = [], 0, 0

    def record(response):
        if response.status >= 400:
            page.problems.append(f"{response.status} {response.url}")
        elif response.url.startswith(address):
            size = int(response.headers.get("content-length", 0))
            page.bytes += size
            page.own_bytes += 0 if "/_static/" in response.url else size

    def request(sent):
        if not sent.url.startswith((address, "data:", "blob:", "file:")):
            page.problems.append(f"third-party request: {sent.url}")

    page.on("response", record)
    page.on("request", request)
    page.on("pageerror", lambda error: page.problems.append(f"script error: {error}"))
    page.goto(path if "://" in path else f"{address}/{path}", wait_until="load")
    return page


@pytest.fixture
def visit(browser, address):
    """Open a page for one test alone. Its formulas stay TeX: they would take longer than the test."""
    contexts = []

    def open_page(path, *, width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        contexts[-1].route("**/mathjax/**", lambda route: route.abort())
        return open_in(contexts[-1], address, path)

    yield open_page
    for context in contexts:
        context.close()


def scroll_through(page):
    """Bring every part of the page into view once, so that what waits to be seen starts."""
    page.evaluate(
        """async () => {
            for (let y = 0; y < document.body.scrollHeight; y += 900) {
                window.scrollTo(0, y);
                await new Promise((done) => setTimeout(done, 30));
            }
        }"""
    )


@pytest.fixture(scope="module", params=PAGES)
def page(request, browser, address):
    """Each page in turn, opened on a phone, for the four tests that follow; they run in this order."""
    context = browser.new_context(viewport={"width": 360, "height": 900}, color_scheme="light")
    page = open_in(context, address, f"{request.param}.html")
    page.name = request.param
    scroll_through(page)  # widgets have no width before they start
    page.wait_for_load_state("networkidle")  # pictures and third parties have been asked for
    page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    for place in page.locator(".widget-place").all():
        place.locator(".aecourse-widget").wait_for(state="attached")
    # A colour on its way has no contrast yet.
    page.add_style_tag(content="* { transition: none !important; }")
    yield page
    context.close()


def test_page_fits_a_phone_and_asks_nobody_else(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.problems


def test_page_is_complete(page):
    """Formulas are set, pictures have arrived and are described, and the page is not too heavy."""
    # From here on nothing waits for the browser to paint: it has failed to after a change of size.
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.locator("article .math:not(:has(mjx-container))").count() == 0  # none is left as TeX
    assert page.locator("mjx-merror, .cell_output .output.error").count() == 0
    pictures = page.locator("article img").evaluate_all("all => all.map((i) => [i.alt, i.naturalWidth])")
    assert all(len(alt) > 30 and width > 0 for alt, width in pictures), pictures
    if page.name in CHAPTERS:
        assert len(pictures) >= (1 if page.name in ("intro", "errata") else 3)
    assert page.own_bytes < 2e6
    assert page.bytes < 6e6  # with the theme and MathJax, which a reader fetches once for all pages


# axe takes a minute for a chapter of twenty thousand elements, nearly all pieces of formulas and words of
# programs. Formulas become a word of the text around them, and of the words of one kind a few are kept.
THIN_OUT = """() => {
    for (const formula of document.querySelectorAll('mjx-container'))
        (formula.closest('.math') ?? formula).replaceWith('formula');
    const seen = {};
    for (const word of document.querySelectorAll('pre span[class]')) {
        seen[word.className] = (seen[word.className] || 0) + 1;
        if (seen[word.className] > 5) word.replaceWith(...word.childNodes);
    }
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.evaluate(f"document.documentElement.dataset.theme = '{scheme}'")  # which would follow, see below
    if page.name != "notation":  # one page with all its formulas will do
        page.evaluate(THIN_OUT)
    # One rule that axe leaves off by default, and that voice control depends on.
    assert not violations(page, also=["label-content-name-mismatch"])


def test_a_page_follows_the_colours_of_the_system(visit):
    page = visit("intro.html", color_scheme="light")
    for scheme in ("light", "dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme


def test_internal_links_lead_somewhere():
    texts = {path.name: path.read_text() for path in SITE.glob("*.html")}
    anchors = {name: set(re.findall(r'\sid="([^"]+)"', text)) for name, text in texts.items()}
    broken = []
    for name, text in texts.items():
        for link in set(re.findall(r'<a\b[^>]*?\shref="([^"]*)"', text)):
            url = urlsplit(html.unescape(link))
            if url.scheme or url.netloc:
                continue
            target, anchor = unquote(url.path) or name, unquote(url.fragment)
            there = (SITE / target).is_file()
            if not there or (anchor and target in anchors and anchor not in anchors[target]):
                broken.append(f"{name}: {link}")
    assert not broken


@pytest.mark.parametrize("name", PAGES)
def test_colab_opens_chapters_and_assignments(name):
    found = re.findall(
        r'href="https://colab\.research\.google\.com/github/aecourse/aecourse/blob/main/([^"]+)"',
        (SITE / f"{name}.html").read_text(),
    )
    notebooks = {str(path.relative_to(ROOT)) for path in ROOT.glob("assignments/*/*.ipynb")}
    if name != "assignments":
        notebooks = {f"book/{name}.ipynb"} if name in CHAPTERS else set()
    assert set(found) == notebooks


def test_search_finds_a_word_of_a_chapter(visit):
    page = visit("search.html?q=reparameterisation")
    page.wait_for_selector("#search-results li a")
    assert any("vae.html" in a.get_attribute("href") for a in page.locator("#search-results li a").all())


class TestLatentSlider:
    """The slider on the static page: by mouse, by keyboard, and right to the pixel."""

    @pytest.fixture
    def page(self, visit):
        page = visit("vae.html")
        self.bring_into_view(page)
        return page

    @staticmethod
    def bring_into_view(page):
        """The host starts a widget when the reader comes near it."""
        page.locator(".widget-place").scroll_into_view_if_needed()
        page.locator(".latent-viewer").wait_for()

    @staticmethod
    def grey(page):
        """The picture on the canvas, ``(28, 28)``, ink as in the model: 1 is black."""
        values = page.locator(".lv-picture").evaluate(
            "(c) => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        )
        return 1 - torch.tensor(values).view(28, 28, 4)[..., 0] / 255

    @staticmethod
    def position(page):
        sliders = page.locator(".latent-viewer input[type=range]")
        return torch.tensor([[float(slider.input_value()) for slider in sliders.all()]])

    def assert_shows_the_model(self, page):
        expected = reference.load().vae.decode(self.position(page))[0, 0].detach()
        error = (self.grey(page) - expected).abs()
        assert error.max() < 0.12  # what 8-bit weights and 8-bit grey values may cost: see test_widgets.py
        assert error.mean() < 0.005

    def test_picture_is_what_the_model_decodes(self, page):
        self.assert_shows_the_model(page)
        assert self.grey(page).max() > 0.5  # there is ink

    def test_mouse_moves_it(self, page):
        before, start = self.grey(page), self.position(page)
        slider = page.locator(".latent-viewer input[type=range]").first
        box = slider.bounding_box()
        page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
        assert self.position(page)[0, 0] > start[0, 0] + 1
        assert (self.grey(page) - before).abs().max() > 0.3
        self.assert_shows_the_model(page)

    def test_keyboard_moves_it(self, page):
        start = self.position(page)
        page.locator(".latent-viewer input[type=range]").first.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowLeft")
        moved = self.position(page) - start
        torch.testing.assert_close(moved, torch.tensor([[0.2, -0.05]]), atol=1e-4, rtol=0)
        self.assert_shows_the_model(page)

    def test_plane_can_be_clicked_and_dragged(self, page):
        box = page.locator(".lv-plane").bounding_box()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"])
        page.mouse.down()
        torch.testing.assert_close(self.position(page), torch.tensor([[1.5, -1.5]]), atol=0.06, rtol=0)
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
        page.mouse.up()
        torch.testing.assert_close(self.position(page), torch.tensor([[-1.5, 0.0]]), atol=0.06, rtol=0)
        self.assert_shows_the_model(page)

    def test_buttons_draw_and_return(self, page):
        page.get_by_role("button", name="Draw z from the prior").click()
        drawn = self.position(page)
        assert drawn.abs().max() > 0
        page.get_by_role("button", name="Back to 0").click()
        assert self.position(page).abs().max() == 0
        self.assert_shows_the_model(page)

    def test_names_and_words_for_those_who_do_not_see_it(self, page):
        assert page.get_by_role("slider", name="z1").count() == 1
        label = page.locator(".lv-picture").get_attribute("aria-label")
        assert re.search(r"z = \(−0\.90, −0\.30\), where most test images nearby show a \d", label)

    def test_page_opened_from_disk(self, visit):
        page = visit((SITE / "vae.html").as_uri())
        self.bring_into_view(page)
        page.locator(".latent-viewer input[type=range]").first.press("ArrowRight")
        self.assert_shows_the_model(page)

    def test_without_scripts_a_still_figure_stands_in(self, visit):
        page = visit("vae.html", java_script_enabled=False)
        assert page.locator(".latent-viewer").count() == 0
        assert page.get_by_text("The sliders need scripts").is_visible()
        figure = page.locator("#fig-vae-reference img")
        assert figure.is_visible()
        assert "decoded from a grid" in figure.get_attribute("alt")


def start_widget(page, kind):
    """Bring the first widget of this kind into view and return it."""
    for place in page.locator(".widget-place").all():
        place.scroll_into_view_if_needed()
        place.locator(".aecourse-widget").wait_for()
    return page.locator(f".aecourse-widget.{kind}").first


def saved_state(page, trait):
    """What the notebook saved of the first widget that has this trait."""
    tag = page.locator("script[type='application/vnd.jupyter.widget-state+json']")
    models = json.loads(tag.text_content())["state"].values()
    return next(model["state"] for model in models if trait in model["state"])


def divergences(p, mean, std):
    """KL(p || q) and KL(q || p) of a mixture and a Gaussian, by quadrature."""
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    weights, means, stds = (
        torch.tensor(p[name], dtype=torch.float64) for name in ("weights", "means", "stds")
    )
    log_p = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), torch.distributions.Normal(means, stds)
    ).log_prob(x)
    log_q = torch.distributions.Normal(mean, std).log_prob(x)
    return [torch.trapezoid(a.exp() * (a - b), x).item() for a, b in ((log_p, log_q), (log_q, log_p))]


def shown_numbers(widget):
    return [float(cell.text_content().replace("\u2212", "-")) for cell in widget.locator("td").all()]


def position_of_q(widget):
    mean, log_std = (float(slider.input_value()) for slider in widget.locator("input").all())
    return mean, math.exp(log_std)


def test_gaussian_fit_shows_both_divergences(visit):
    page = visit("evidence.html")
    widget, p = start_widget(page, "gaussian-fit"), saved_state(page, "std_range")
    before = shown_numbers(widget)
    widget.locator("input").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    after = shown_numbers(widget)
    assert after != before
    # The sliders' steps are the only error of q that is read off them.
    assert after == pytest.approx(divergences(p, *position_of_q(widget)), abs=0.02)
    widget.get_by_role("button", name="Descend the forward KL").click()
    mean = sum(w * m for w, m in zip(p["weights"], p["means"]))
    spread = sum(w * (m**2 + s**2) for w, m, s in zip(p["weights"], p["means"], p["stds"])) - mean**2
    exact = divergences(p, mean, math.sqrt(spread))[0]  # moment matching
    assert shown_numbers(widget)[0] == pytest.approx(exact, abs=2e-3)


def test_gaussian_fit_of_a_posterior_splits_the_evidence(visit):
    page = visit("elbo.html")
    widget, p = start_widget(page, "gaussian-fit"), saved_state(page, "std_range")
    for _ in range(2):
        evidence, bound, gap = shown_numbers(widget)
        assert evidence == pytest.approx(p["log_evidence"], abs=1e-3)
        assert bound + gap == pytest.approx(evidence, abs=2e-3)
        widget.get_by_role("button", name="Climb the ELBO").click()
    assert shown_numbers(widget)[1] >= bound


def test_frame_slider_by_keyboard_and_by_itself(visit):
    page = visit("linear.html")
    widget = start_widget(page, "frame-slider")
    slider, picture = widget.locator("input"), widget.locator("img")
    first = picture.get_attribute("alt")
    assert len(first) > 30
    assert first == widget.locator(".aw-caption").text_content()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert picture.get_attribute("alt") != first
    assert slider.get_attribute("aria-valuetext") == widget.locator("output").text_content()
    page.keyboard.press("End")
    assert widget.locator("output").text_content() == saved_state(page, "sizes")["values"][-1]
    widget.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.frame-slider input').value > 0")
    widget.get_by_role("button", name="Pause").click()
    assert picture.evaluate("(image) => image.naturalWidth") > 100


def test_every_question_is_asked_once():
    asked = [
        f"question-{name}-{q.name}" for name in questions.CHAPTERS for q in questions.show(name).questions
    ]
    pages = "".join((SITE / f"{name}.html").read_text() for name in CHAPTERS)
    assert sorted(re.findall(r'id="(question-[\w-]+)"', pages)) == sorted(asked)


def test_questions_answer_a_keyboard_without_scripts(visit):
    page = visit("vae.html", java_script_enabled=False)
    options = page.locator(".aecourse-questions details")
    reasons = page.locator(".aecourse-questions details > p")
    assert options.count() == reasons.count() == 4 * len(questions.show("vae").questions)
    assert not any(reason.is_visible() for reason in reasons.all())
    options.first.locator("summary").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert [reason.is_visible() for reason in reasons.all()[:3]] == [False, True, False]
