"""What every page must keep: whole in one file, silent in a browser, printable on A4; and a notebook to make one of."""

import itertools
import json
import re
from html.parser import HTMLParser

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe

from nafld_utils.report import pictures

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one red pixel
)
A4_WIDTH = 680  # pixels of CSS between the margins
A4_POINTS = (594.96, 841.92)  # as Chromium writes it, upright


LOADING = {"src", "data", "poster", "srcset", "background"}


class Addresses(HTMLParser):
    """Every address that a page loads or links to."""

    def __init__(self):
        super().__init__()
        self.loaded, self.linked, self.scripts, self.handlers = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.append(value)
            if name in LOADING or (name == "href" and tag == "link"):
                self.loaded.append(value or "")
            elif name == "href":
                self.linked.append(value or "")


def addresses(page):
    parser = Addresses()
    parser.feed(page)
    return parser


def assert_self_contained(page):
    """No script, no style sheet, no image that lies outside the file."""
    found = addresses(page)
    assert not found.scripts
    assert not found.handlers
    assert "default-src 'none'" in page.partition("<style>")[0].replace("&#39;", "'")
    assert all(address.startswith("data:") for address in found.loaded), found.loaded
    assert not re.search(r"@import|url\((?!['\"]?data:)", page)


def executed(stage, cells=(), duration=83.2):
    """An executed notebook with a figure, a table, a widget and a script in its outputs."""
    image = nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    html = nbformat.v4.new_output(
        "execute_result", {"text/html": "<table class='dataframe'><tr><td>1</td></tr></table>"}
    )
    widget = nbformat.v4.new_output(
        "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "interactive()"}
    )
    script = nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)"})
    cells = [
        nbformat.v4.new_markdown_cell(f"# {stage[:2]} · Does it *help*?\n\nDo synthetic images help a classifier?"),
        nbformat.v4.new_code_cell("1 < 2", outputs=[html, widget, script]),
        nbformat.v4.new_markdown_cell("## Image-level AUC over the mixing rate"),
        nbformat.v4.new_code_cell("plot()", outputs=[image], metadata={"tags": [pictures.KEY_FIGURE]}),
        nbformat.v4.new_markdown_cell("Boxes are over **seeds**, not patients.\n\nMore text."),
        nbformat.v4.new_code_cell("other()", outputs=[image]),
        *cells,
    ]
    note = {"duration": duration, "end_time": "2026-01-02T03:04:05.6"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"papermill": note})


def open_and_look(browser, path, sheets=1):
    """Open a page from disk: no request leaves, no message appears in the console, nothing is wider than the page, and
    it prints on A4, `sheets` or more."""
    requests, messages = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert len(set(page.screenshot())) > 50
    assert page.title()
    assert_accessible(page)
    assert serious(page) == []
    assert_readable(page)
    page.set_viewport_size({"width": 360, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "a phone scrolls sideways"
    page.emulate_media(media="screen", color_scheme="dark")
    assert luminance(page, "background-color") < 0.2
    assert luminance(page, "color") > 0.6
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(page, "background-color") == 1
    assert luminance(page, "color") < 0.2
    assert page.evaluate("[...document.querySelectorAll('nav, details.code')].every(part => part.offsetHeight === 0)")
    assert_whole_in_print(page)
    assert json.loads(page.evaluate("JSON.stringify(document.body.innerText.length)")) > 100
    assert_prints_on_a4(page.pdf(prefer_css_page_size=True, print_background=True), path.name, sheets)
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert not messages
    page.close()


def assert_whole_in_print(page):
    """Nothing is wider than a sheet of A4, in the look of print, which `page` has already."""
    page.set_viewport_size({"width": A4_WIDTH, "height": 1000})
    cut = page.evaluate(
        """() => {
             const right = part => {
               if (!part.matches('tr > *')) return part.getBoundingClientRect().right
               const text = document.createRange()  // of a cell its text, which may stand over
               text.selectNodeContents(part)
               return text.getBoundingClientRect().right
             }
             return [...document.querySelectorAll('table, tr > :last-child, img, pre, p, dl')].filter(part => {
               const room = part.closest('.very-wide') ? 1.45 * innerWidth : innerWidth  // on their side
               return right(part) > room + 1
             }).map(part => part.closest('[aria-label]')?.ariaLabel ?? part.outerHTML.slice(0, 200))
           }"""
    )
    assert not cut, f"cut off in print: {cut}"


def assert_prints_on_a4(pdf, name, least=1, most=60):
    """A page as PDF has a plausible number of sheets, all A4, upright or on their side."""
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    sheets = re.findall(rb"/Type /Page\b(?!s)", pdf)
    assert least <= len(sheets) <= most, f"{name}: {len(sheets)} sheets"
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert len(boxes) == len(sheets)
    for box in boxes:
        assert sorted(map(float, box)) == pytest.approx(A4_POINTS, abs=1), f"{name}: {box} points"


def serious(page, context=None):
    """What axe finds on a page that keeps somebody out, a line each; `context` is a selector of a part of it."""
    found = Axe().run(page, context, {"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{one['id']}: {one['help']}, e.g. {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def assert_readable(page):
    """No table scrolls in a window of 1200 pixels or on a phone; no row of the claims has more than three lines."""
    too_wide = """() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1)
                        .map(box => box.ariaLabel)"""
    page.evaluate("document.querySelectorAll('details:not(.code)').forEach(part => { part.open = true })")
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(too_wide) == [], f"cut off at {width} pixels"
    page.set_viewport_size({"width": 1280, "height": 900})
    long = page.evaluate(
        """() => [...document.querySelectorAll('.front table.claims:not(.alone) tr')].filter(row => {
             const line = parseFloat(getComputedStyle(row).lineHeight)
             return [...row.cells].some(cell => {
               const text = document.createRange()
               text.selectNodeContents(cell)
               return text.getBoundingClientRect().height > 3.2 * line
             })
           }).map(row => row.innerText)"""
    )
    assert long == [], "more than three lines"
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = false })")


def luminance(page, name):
    """Mean of red, green and blue of a colour of the page's body, 0 to 1."""
    colour = page.evaluate(f"getComputedStyle(document.body).getPropertyValue('{name}')")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765


def assert_accessible(page):
    """Headings step down one level at a time, images and tables say what they are, head cells name their direction."""
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(part => Number(part.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert page.evaluate("[...document.images].every(image => image.alt.length > 8)")
    assert page.evaluate("[...document.querySelectorAll('thead th')].every(cell => cell.scope === 'col')")
    assert page.evaluate("[...document.querySelectorAll('tbody th')].every(cell => cell.scope.startsWith('row'))")
    box = "[role=region][tabindex='0']"
    boxed = f"[...document.querySelectorAll('table')].every(part => part.closest(`{box}`)?.ariaLabel)"
    assert page.evaluate(boxed), "a table that cannot be reached and scrolled by keyboard"
    links = page.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map(link => link.hash.slice(1))")
    assert page.evaluate("names => names.filter(name => !document.getElementById(name))", links) == []
    assert page.evaluate("document.documentElement.lang") == "en"


RANDOM = {
    "autoencoder.class.source=random": "is the class model's autoencoder; no number",
    "quality.features=random sweep.weights=random": "are the network of the metrics and the classifiers' frozen",
}
