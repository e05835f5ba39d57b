"""Every page of build/html in a real browser, in both themes, at a desk and on a phone, with every other host cut off.

It drives Debian's Chromium (`apt install chromium`) through playwright, which downloads no browser here.
"""

import gzip
import io
import threading
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from random import Random
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import matplotlib.image
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import TimeoutError, sync_playwright

FLAGS = [
    *"--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split(),
    *"--disable-component-update --disable-sync".split(),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
WIDTHS = [1280, 390]
FIRST_KIB, NEXT_KIB = 900, 300

# Formulas that MathJax left alone, could not parse, or met an unknown macro in.
UNRENDERED = r"""() => [...document.querySelectorAll('.math')].filter(node => {
    const mathml = node.querySelector('mjx-assistive-mml');
    return !mathml || node.querySelector('mjx-merror') || /\\[a-z]/i.test(mathml.textContent);
}).map(node => node.textContent.trim())"""
# What scrolls sideways, and cannot be reached by the keyboard to do so.
UNREACHABLE = """() => [...document.querySelectorAll('main *')].filter(node =>
    node.scrollWidth > node.clientWidth + 1 && node.tabIndex < 0 && !node.closest('mjx-container')
    && ['auto', 'scroll'].includes(getComputedStyle(node).overflowX)
    && node.checkVisibility()).map(node => node.outerHTML.slice(0, 80))"""
# Words of a table that are broken because their column is narrower.
BROKEN_WORDS = """() => {
    const broken = [], range = document.createRange();
    for (const cell of document.querySelectorAll('main :is(td, th)')) {
        const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            if (texts.currentNode.parentElement.closest('mjx-container, script, style')) continue;
            for (const word of texts.currentNode.data.matchAll(/[^\\s\\-–—/]{2,}/g)) {
                range.setStart(texts.currentNode, word.index);
                range.setEnd(texts.currentNode, word.index + word[0].length);
                if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(word[0]);
            }
        }
    }
    return broken;
}"""
# Wide equations that one first sees from their middle or their end.
HIDDEN_START = """() => [...document.querySelectorAll('div.math')].filter(box =>
    [...box.children].some(part => part.getBoundingClientRect().left < box.getBoundingClientRect().left - 1)
).map(box => box.textContent.trim().slice(0, 60))"""
# Figures that are wider than their box and do not say so.
SILENT_FIGURES = """() => [...document.querySelectorAll('figure')].filter(figure =>
    figure.scrollWidth > figure.clientWidth + 1
    && !/swipe/.test(getComputedStyle(figure.querySelector('figcaption') ?? figure, '::before').content)
).map(figure => figure.id || figure.outerHTML.slice(0, 80))"""
# Code and formulas are nine tenths of a page's nodes: axe gets one token of each kind, and formulas as read aloud.
THIN = """() => {
    const seen = new Set();
    for (const token of document.querySelectorAll('.highlight span[class]')) {
        if (seen.has(token.className)) token.replaceWith(token.textContent);
        seen.add(token.className);
    }
    for (const formula of document.querySelectorAll('mjx-container')) {
        formula.replaceChildren(formula.querySelector('math').textContent);
        formula.style = 'min-width: 0; white-space: normal; overflow-wrap: anywhere';  // as text it is wider
    }
}"""
# After a change of width the page's observers act with the next frame.
NEXT_FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# Contrast is the dear rule, and asks the same of each text in the same colours: one text of each kind is enough.
CONTRAST = """() => {
    const kinds = new Map(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (texts.currentNode.data.trim().length < 2 || !node.checkVisibility()) continue;
        const grounds = new Set();
        for (let up = node; up; up = up.parentElement) {
            const {backgroundColor, opacity} = getComputedStyle(up);
            grounds.add(backgroundColor + opacity);
        }
        const {color, fontSize, fontWeight, textDecorationLine} = getComputedStyle(node);
        const kind = [node.tagName, color, fontSize, fontWeight, textDecorationLine, ...grounds].join();
        if (!kinds.has(kind)) kinds.set(kind, node);
    }
    const options = {runOnly: ['color-contrast', 'link-in-text-block'], resultTypes: ['violations'], preload: false};
    return axe.run({include: [...kinds.values()]}, options).then(found => found.violations);
}"""
ALL_BUT_CONTRAST = """() => axe.run({
    rules: {'color-contrast': {enabled: false}, 'link-in-text-block': {enabled: false}},
    resultTypes: ['violations'], preload: false}).then(found => found.violations)"""


class Visit(NamedTuple):
    problems: list[str]
    files: set[str]


@contextmanager
def served(folder):
    """Yield the address of a folder on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as every host does

        def log_message(self, *args):
            pass

    class Host(ThreadingHTTPServer):
        request_queue_size = 64  # a page asks for forty files at once

    with Host(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(built, tmp_path_factory):
    """The address of the built site, served from a folder of a host as most hosts do."""
    host = tmp_path_factory.mktemp("host")
    (host / "some").mkdir()
    (host / "some" / "book").symlink_to(built / "html")
    with served(host) as address:
        yield f"{address}/some/book"


@contextmanager
def a_page(browser, width, **options):
    context = browser.new_context(viewport={"width": width, "height": 800}, reduced_motion="reduce", **options)
    context.set_default_timeout(120_000)  # a busy machine is slow
    yield context.new_page()
    context.close()


def settle(page):
    """Wait until MathJax, if the page has it, has set its formulas."""
    page.wait_for_load_state("load")
    page.evaluate("window.MathJax?.startup?.promise")


def visit(page, address, widths=WIDTHS):
    """Open a page and return what is wrong with it, and the files it loaded."""
    problems, files = [], set()
    own = urlsplit(address)[:2]

    def on_request(request):
        if urlsplit(request.url)[:2] == own:
            files.add(request.url)
        elif urlsplit(request.url).scheme not in ("data", "blob"):
            problems.append(f"a request to another host: {request.url}")

    listeners = {
        "request": on_request,
        "requestfailed": lambda request: problems.append(f"failed: {request.url} {request.failure}"),
        "response": lambda response: response.status >= 400 and problems.append(f"{response.status}: {response.url}"),
        "console": lambda message: message.type == "error" and problems.append(f"console: {message.text}"),
        "pageerror": lambda error: problems.append(f"script: {error}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    page.goto(address)
    settle(page)
    problems += [f"not rendered: {formula}" for formula in page.evaluate(UNRENDERED)]
    for width in widths:
        page.set_viewport_size({"width": width, "height": 800})
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        problems += [f"at {width} px: scrolls sideways by {over} px"] if over > 0 else []
        with suppress(TimeoutError):  # the theme looks again some time after a change of width
            page.wait_for_function(f"!({UNREACHABLE})().length", timeout=5000)
        problems += [f"at {width} px: scrolls, but not by keyboard: {node}" for node in page.evaluate(UNREACHABLE)]
        problems += [f"at {width} px: a table breaks the word {word}" for word in page.evaluate(BROKEN_WORDS)]
        problems += [
            f"at {width} px: an equation opens past its start: {start}" for start in page.evaluate(HIDDEN_START)
        ]
        problems += [f"at {width} px: a figure scrolls and is silent: {name}" for name in page.evaluate(SILENT_FIGURES)]
    page.evaluate(THIN)
    page.evaluate(Axe().axe_script)
    for width in reversed(widths):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate(NEXT_FRAME)
        violations = [("any", violation) for violation in page.evaluate(ALL_BUT_CONTRAST)]
        for theme in ("light", "dark"):
            page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
            violations += [(theme, violation) for violation in page.evaluate(CONTRAST)]
        for theme, violation in violations:
            nodes = [f"{node['html'][:120]} {node['failureSummary']}" for node in violation["nodes"]]
            found = f"{theme} theme, axe {violation['id']} ({len(nodes)}): {' '.join(nodes[0].split())}"
            problems.append(f"at {width} px: {found}")
    # What comes from the browser's memory makes no request, and a first visit has to load it nevertheless.
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    files.update(name for name in loaded if urlsplit(name)[:2] == own)
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return Visit(problems, files)


def kib(addresses, folder):
    """Return what files weigh on the way to the reader, in KiB: as a host sends them, compressed where that helps."""
    paths = {folder / unquote(urlsplit(address).path).lstrip("/") for address in addresses}
    return sum(min(len(data), len(gzip.compress(data, 6))) for data in (path.read_bytes() for path in paths)) / 1024


def weights(chapters, folder):
    """Return for each chapter its weight on a first visit, and after the chapter that shares the least with it."""
    return {
        name: (kib(files, folder), max(kib(files - other, folder) for other in chapters.values() if other != files))
        for name, files in chapters.items()
    }


def overweight(weighed):
    return [name for name, (first, then) in weighed.items() if first > FIRST_KIB or then > NEXT_KIB]


def test_every_page_is_sound(browser, site, built, capsys):
    folder, problems, chapters = built / "html", [], {}
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    names = [name for name in names if not name.startswith("_static/") and name != "index.html"]  # it only leads on
    with a_page(browser, WIDTHS[0]) as page:
        for name in names:
            found = visit(page, f"{site}/{name}")
            problems += [f"{name} {problem}" for problem in found.problems]
            if name.startswith("notebooks/"):
                chapters[name] = {address.replace(f"{site}/", "http://site/") for address in found.files}
    weighed = weights(chapters, folder)
    with capsys.disabled():
        print(f"\n{len(names)} pages in Chromium; gzip, KiB, first visit (at most {FIRST_KIB}) and next ({NEXT_KIB}):")
        for name, (first, then) in weighed.items():
            print(f"  {name}: {first:.0f}, {then:.0f}")
    assert not problems, "\n".join(problems)
    assert not overweight(weighed)
    assert chapters


@pytest.mark.parametrize("width", WIDTHS)
def test_menu_and_search_lead_to_a_chapter(browser, site, width):
    with a_page(browser, width) as page:
        page.goto(f"{site}/index.html")
        page.wait_for_url("**/book/index.html")
        link = page.locator("nav.bd-docs-nav:visible a", has_text="Partition functions")
        if width < 992:
            assert not link.is_visible()
            page.locator("button.primary-toggle:visible").click()
        link.click()
        page.wait_for_url("**/02_partition_functions.html")
        settle(page)
        page.keyboard.press("Control+k")
        page.locator("#pst-search-dialog input").fill("quadrature")
        page.keyboard.press("Enter")
        page.locator("#search-results li a").first.wait_for()
        assert page.locator("#search-results li a", has_text="Partition functions").count()


def test_the_keyboard_starts_at_a_visible_skip_link(browser, site):
    with a_page(browser, 390) as page:
        page.goto(f"{site}/book/notation.html")
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        assert focused.text_content() == "Skip to main content"
        assert focused.bounding_box()["y"] >= 0
        page.keyboard.press("Enter")
        assert page.url.endswith("#main-content")


def test_figures_follow_the_switch_of_the_theme_against_the_system(browser, site):
    """The background of a figure is white or nearly black, whatever the system prefers."""
    for system, chosen in [("light", "dark"), ("dark", "light")]:
        with a_page(browser, 1280, color_scheme=system) as page:
            page.goto(f"{site}/notebooks/02_partition_functions.html")
            for _ in range(3):  # the switch has three positions
                if page.evaluate("document.documentElement.dataset.mode") != chosen:
                    page.locator("button.theme-switch-button:visible").click()
            shot = page.locator("figure img").first.screenshot()
            corner = matplotlib.image.imread(io.BytesIO(shot))[3, 3, :3].mean()
            assert corner < 0.15 if chosen == "dark" else corner > 0.95


def test_it_opens_from_disk(browser, built):
    with a_page(browser, 1280) as page:
        for name in ["book/index.html", "notebooks/02_partition_functions.html", "search.html"]:
            found = visit(page, (built / "html" / name).as_uri(), widths=[])
            assert not found.problems
            assert found.files


SOUND = (
    '<!doctype html><html lang="en"><title>x</title><link rel="icon" href="data:,">'
    '<meta name="viewport" content="width=device-width"><main><h1>x</h1>'
)
BROKEN = [
    ("another host", '<img alt="a" src="https://cdn.example/a.png">'),
    ("failed", '<img alt="a" src="http://127.0.0.1:9/a.png">'),
    ("404", '<img alt="a" src="missing.png">'),
    ("console", "<script>console.error('lost')</script>"),
    ("script", "<script>lost()</script>"),
    ("not rendered", '<span class="math">\\(x\\)</span>'),
    ("sideways", '<p style="width: 2000px">x</p>'),
    ("keyboard", '<div style="overflow-x: auto"><p style="width: 2000px">x</p></div>'),
    (
        "a table breaks the word",
        '<table style="width: 2em; table-layout: fixed"><tr><td>'
        '<p style="overflow-wrap: anywhere">partition</p></td></tr></table>',
    ),
    (
        "an equation opens past its start",
        '<div class="math" tabindex="0" style="display: flex; flex-direction: '
        'row-reverse; overflow-x: auto"><mjx-container style="min-width: 900px"><math>x</math></mjx-container></div>',
    ),
    (
        "a figure scrolls and is silent",
        '<figure tabindex="0" style="overflow-x: auto"><img alt="a" src="a.svg" '
        'style="width: 900px"><figcaption>x</figcaption></figure>',
    ),
    ("any theme, axe image-alt", '<img src="a.svg">'),
    ("dark theme, axe color-contrast", "<style>html[data-theme=dark] p {color: #eee}</style><p>pale</p>"),
    (
        "light theme, axe color-contrast",
        '<div class="highlight"><pre>a <span style="color: #eee">pale</span></pre></div>',
    ),
]


@pytest.fixture(scope="module")
def one_page(browser, tmp_path_factory):
    """Return what is wrong with a page that has nothing but the given text."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    number = count()
    with served(folder) as address, a_page(browser, 390) as page:

        def check(text):
            name = f"{next(number)}.html"  # a new one each time: the browser keeps pages
            (folder / name).write_text(SOUND + text + "</main></html>")
            return visit(page, f"{address}/{name}").problems

        yield check


def test_a_sound_page_passes(one_page):
    assert one_page("<p>x</p>") == []


@pytest.mark.parametrize(("problem", "text"), BROKEN)
def test_a_broken_page_fails(one_page, problem, text):
    found = one_page(text)
    assert any(problem in line for line in found), found


def test_a_heavy_page_is_named(tmp_path):
    for name, size in [("shared", 700), ("light", 150), ("heavy", 350)]:
        (tmp_path / name).write_bytes(Random(0).randbytes(size * 1024))
    pages = {"light": {"http://x/shared", "http://x/light"}, "heavy": {"http://x/shared", "http://x/heavy"}}
    weighed = weights(pages, tmp_path)
    assert weighed["light"] == pytest.approx((850, 150))
    assert weighed["heavy"] == pytest.approx((1050, 350))
    assert overweight(weighed) == ["heavy"]
