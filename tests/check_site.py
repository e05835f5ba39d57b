"""Static checks of the built site: python tests/check_site.py build/html

Each check takes the site's pages and yields what is wrong, one line each; test_site.py breaks a page for each of them.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).resolve().parents[1]
# What a browser fetches by itself, as opposed to what a reader may click.
FETCHED = ("src", "srcset", "poster", "data", "xlink:href")
FETCHING_LINKS = {"stylesheet", "preload", "prefetch", "modulepreload", "icon", "manifest", "preconnect"}
FOREIGN = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
FOREIGN_IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s;]+)""", re.IGNORECASE)
FOREIGN_IN_SCRIPT = re.compile(
    r"""(?:\bimport\b[^;"']*|\bfrom|\bfetch\(|\.src\s*=|\bimportScripts\()\s*["'`]((?:https?:)?//[^"'`]+)"""
)
FOREIGN_IN_SVG = re.compile(r"""(?:href\s*=\s*["']|url\(["']?)((?:https?:)?//[^"')]+)""")
RAW_MARKUP = re.compile(r"\{[a-z][\w:+-]*\}`|:{3,}\s*\{|`{3,}|\\(?:begin|end|frac|log|mathbf|mathrm|sum|int)\b")
BUILDER_PATH = re.compile(rf"{re.escape(str(ROOT))}|file://|(?<![\w.:/-])/(?:root|tmp|home|Users)/[\w.-]+")
GENERATED = {"genindex.html", "search.html", "py-modindex.html"}


class Page(NamedTuple):
    path: Path
    name: str
    text: str
    soup: BeautifulSoup


Pages = dict[Path, Page]


def read_pages(site: Path) -> Pages:
    """Return the parsed pages of a site by their path."""
    pages = {}
    for path in sorted(site.resolve().rglob("*.html")):
        text = path.read_text("utf-8")
        name = path.relative_to(site.resolve()).as_posix()
        if name.startswith("_static/"):  # templates that the theme leaves there
            continue
        pages[path] = Page(path, name, text, BeautifulSoup(text, "html.parser"))
    return pages


def foreign_hosts(pages: Pages, site: Path) -> Iterator[str]:
    """Yield each request to another host that a page, a style sheet, a script or a figure would make."""
    for page in pages.values():
        for attribute in FETCHED:
            for node in page.soup.find_all(attrs={attribute: FOREIGN}):
                yield f"{page.name}: <{node.name}> fetches {node[attribute]}"
        for node in page.soup.find_all("link", href=FOREIGN):
            if FETCHING_LINKS & {rel.lower() for rel in node.get("rel", [])}:
                yield f"{page.name}: <link> fetches {node['href']}"
        styles = [node.get_text() for node in page.soup.find_all("style")]
        styles += [node["style"] for node in page.soup.find_all(style=True)]
        for url in FOREIGN_IN_CSS.findall("\n".join(styles)):
            yield f"{page.name}: a style fetches {url}"
        for node in page.soup.find_all("script", src=False):
            for url in FOREIGN_IN_SCRIPT.findall(node.get_text()):
                yield f"{page.name}: a script fetches {url}"
    for suffix, pattern in [("css", FOREIGN_IN_CSS), ("js", FOREIGN_IN_SCRIPT), ("svg", FOREIGN_IN_SVG)]:
        for path in sorted(site.rglob(f"*.{suffix}")):
            for url in pattern.findall(path.read_text("utf-8", errors="replace")):
                yield f"{path.relative_to(site)}: fetches {url}"


def broken_links(pages: Pages, site: Path) -> Iterator[str]:
    """Yield each internal link, script, style or image whose file or anchor does not exist."""
    anchors = {
        path: {node[key] for key in ("id", "name") for node in page.soup.find_all(attrs={key: True})}
        for path, page in pages.items()
    }
    for page in pages.values():
        for node in page.soup.find_all(lambda tag: tag.get("href") or tag.get("src")):
            address = urlsplit(node.get("href") or node.get("src"))
            if address.scheme or address.netloc or node.name in ("image", "use"):
                continue
            target = (page.path.parent / unquote(address.path)).resolve() if address.path else page.path
            if target.is_dir():
                target /= "index.html"
            if address.path.startswith("/"):
                yield f"{page.name}: {address.path} is absolute, and breaks where the site lies in a folder"
            elif not target.is_file():
                yield f"{page.name}: no file {address.path}"
            elif address.fragment and target in anchors and unquote(address.fragment) not in anchors[target]:
                yield f"{page.name}: no anchor {address.path}#{address.fragment}"


def missing_alt_texts(pages: Pages, site: Path) -> Iterator[str]:
    """Yield each image that a reader who does not see it gets nothing of; a file's name says nothing."""
    for page in pages.values():
        for image in page.soup.find_all("img"):
            alt = str(image.get("alt", "")).strip()
            if not alt or alt.rsplit("/", 1)[-1] == str(image.get("src")).rsplit("/", 1)[-1]:
                yield f"{page.name}: no alternative text for {image.get('src')}"


def pages_out_of_toc(pages: Pages, site: Path) -> Iterator[str]:
    """Yield each page that the menu of the front page does not list."""
    front = pages.get(site.resolve() / "index.html")
    if front is None:
        yield "index.html: there is no front page"
        return
    refresh = front.soup.find("meta", attrs={"http-equiv": re.compile("refresh", re.IGNORECASE)})
    if isinstance(refresh, Tag):  # the root only leads to the front page
        front = pages[(site / str(refresh["content"]).partition("url=")[2]).resolve()]
    listed = {front.path, site.resolve() / "index.html"}
    for link in front.soup.select("nav a[href]"):
        listed.add((front.path.parent / unquote(urlsplit(str(link["href"])).path)).resolve())
    for path, page in pages.items():
        if path not in listed and page.name not in GENERATED and not page.name.startswith("_modules/"):
            yield f"{page.name}: not in the table of contents"


def raw_markup(pages: Pages, site: Path) -> Iterator[str]:
    """Yield each directive, role or formula that reached the reader as its source, and each error in the text."""
    for page in pages.values():
        soup = BeautifulSoup(page.text, "html.parser")
        for node in soup.select("script, style, pre, code, .math, .MathJax"):
            node.decompose()
        for match in RAW_MARKUP.finditer(soup.get_text()):
            around = soup.get_text()[max(0, match.start() - 20) : match.end() + 30]
            yield f"{page.name}: raw markup: {' '.join(around.split())}"
        for node in soup.select(".system-message, .problematic"):
            yield f"{page.name}: an error in the text: {node.get_text(' ', strip=True)[:80]}"


def builder_paths(pages: Pages, site: Path) -> Iterator[str]:
    """Yield each absolute path of the machine that built the site."""
    files = [path for suffix in ("html", "svg", "ipynb", "md", "txt") for path in site.resolve().rglob(f"*.{suffix}")]
    for path in sorted(files):
        for match in BUILDER_PATH.findall(path.read_text("utf-8", errors="replace")):
            yield f"{path.relative_to(site.resolve())}: names the builder's {match}"


CHECKS = [foreign_hosts, broken_links, missing_alt_texts, pages_out_of_toc, raw_markup, builder_paths]


def main(site: Path) -> int:
    """Print what is wrong, then the counts; return how many problems there are, as an exit code."""
    pages = read_pages(site)
    problems = {check.__name__: sorted(set(check(pages, site))) for check in CHECKS}
    for lines in problems.values():
        print(*lines, sep="\n", end="\n" if lines else "")
    counts = ", ".join(f"{name.replace('_', ' ')} {len(lines)}" for name, lines in problems.items())
    images = sum(len(page.soup.find_all("img")) for page in pages.values())
    print(f"{site}: {len(pages)} pages, {images} images; {counts}")
    return int(any(problems.values()) or not pages)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
