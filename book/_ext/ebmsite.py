"""What the theme does not do: MathJax at hand, few bytes, numbers by chapter, figures that follow the theme."""

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fontTools import subset
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector

from ebmlib.plotting import INK, PAPER

# What the formulas of the book need of MathJax: 150 of the 260 KiB of its common bundle, which has a menu besides.
MATHJAX = ["core.js", "startup.js", "input/tex.js", "output/chtml.js", "a11y/assistive-mml.js"]
# Figures have text and axes in one ink on one paper; on the site both depend on the colour scheme of the page.
STYLE = (
    f"<style>:root{{color-scheme:light dark;--ink:{INK};--paper:#ffffff}}"
    "@media (prefers-color-scheme:dark){:root{--ink:#ced6dd;--paper:#121212}}</style>"
)


def copy_mathjax(out: Path) -> None:
    """Copy the components that the pages load and their fonts: 0.9 of the package's 24 MB."""
    source = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    fonts = "output/chtml/fonts"
    shutil.copytree(source / fonts / "woff-v2", out / fonts / "woff-v2", dirs_exist_ok=True)
    for name in [*MATHJAX, f"{fonts}/tex.js"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, out / name)


def slim_icons(out: Path) -> None:
    """Keep one Font Awesome of the theme's two, with the icons that pages and scripts name: 5 of 820 KiB."""
    static = out / "_static"
    (static / "scripts" / "fontawesome.js").write_text("")
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    css = re.sub(r'url\([^)]*\.woff2\) format\("woff2"\),', "", sheet.read_text("utf-8"))
    sheet.write_text(css, "utf-8")
    sources = [*out.rglob("*.html"), *static.glob("*.js"), *static.glob("scripts/*.js"), *static.glob("*.css")]
    named = {name for path in sources for name in re.findall(r"\bfa-[\w-]+", path.read_text("utf-8"))}
    rules = re.findall(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\(\w+)"\}', css)
    icons = {code for selectors, code in rules if named & set(re.findall(r"\.(fa-[\w-]+)", selectors))}
    icons |= set(re.findall(r'"\\(f[0-9a-f]{3})"', css)) - {code for _, code in rules}  # the theme's own
    for font in (static / "vendor" / "fontawesome" / "webfonts").iterdir():
        if font.suffix == ".ttf":
            keep = ",".join(sorted(icons))
            subset.main([str(font), f"--unicodes={keep}", f"--output-file={font}.slim", "--name-IDs=0,13,14"])
            font.with_suffix(".ttf.slim").replace(font)
        else:
            font.unlink()


def follow_theme(svg: str) -> str:
    """Let a figure by matplotlib take its ink and its paper from the colour scheme of the page that shows it."""
    head, tag, body = svg.partition("<defs>")
    if not tag or INK not in body:
        return svg
    return head + STYLE + tag + body.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")


def slim_path(path: str) -> str:
    """Return the data of a path by matplotlib, from point to point and in twentieths of a point, half a thin line."""
    pen, made = [0, 0], ""
    for command, numbers in re.findall(r"([MLQCz])([^MLQCz]*)", path):
        to = [round(float(number) * 20) for number in numbers.split()]
        steps = to if command == "M" else [x - pen[i % 2] for i, x in enumerate(to)]
        made += (command if command == "M" else command.lower()) + " ".join(f"{step / 20:g}" for step in steps)
        pen = to[-2:] or pen  # what follows a z starts anew
    return made.replace(" -", "-")


def slim_figure(svg: str) -> str:
    """Write the paths of a figure, which is most of it, in fewer letters; markers stay to hundredths of a point."""
    svg = re.sub(r'(?<= d=")[MLQCz\d\s.e-]+', lambda path: slim_path(path[0]), svg)
    return re.sub(r'(?<= [xy]=")-?\d+\.\d{3,}', lambda number: f"{float(number[0]):.2f}", svg)


def mend(page: str) -> str:
    """Mend what keeps readers with a screen reader from a page of the theme, and name the folded cells: solutions."""
    page = page.replace("Show code cell content", "Solution").replace("Hide code cell content", "Hide the solution")
    page = page.replace(
        '<div id="pst-primary-sidebar"', '<div id="pst-primary-sidebar" role="complementary" aria-label="Book"'
    )
    page = page.replace(' role="doc-biblioentry"', "").replace(
        '<div role="list" class="citation-list"', '<div class="citation-list"'
    )
    return re.sub(r"<th[^>]*>\s*(?:<p>\s*</p>)?\s*</th>", "<td></td>", page)  # a header without a word heads nothing


def finish(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    copy_mathjax(out / "_static" / "mathjax")
    slim_icons(out)
    for page in out.rglob("*.html"):
        page.write_text(mend(page.read_text("utf-8")), "utf-8")
    for figure in (out / "_images").glob("*.svg"):
        figure.write_text(follow_theme(slim_figure(figure.read_text("utf-8"))), "utf-8")


def by_chapter(assign: Callable[[TocTreeCollector, BuildEnvironment], list[str]]) -> Callable[..., list[str]]:
    """Let Sphinx number figures and equations within the chapter whose file name starts with its number."""

    def assign_figure_numbers(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        before = env.toc_secnumbers
        numbers = {doc: re.match(r"notebooks/(\d+)_", doc) for doc in env.all_docs}
        env.toc_secnumbers = {doc: {"": (int(number[1]),)} for doc, number in numbers.items() if number}
        try:
            return assign(self, env)
        finally:
            env.toc_secnumbers = before  # the titles carry their numbers already

    return assign_figure_numbers


def skip_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what a named tuple says of its own fields ("Alias for field number 0"): the class documents them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def without_made_up_arguments(app: Sphinx, what: str, name: str, obj: object, *_: object) -> tuple[str, str] | None:
    """Show a protocol without the `(*args, **kwargs)` that typing gives it: nobody calls it."""
    return ("", "") if getattr(obj, "_is_protocol", False) else None


def setup(app: Sphinx) -> dict[str, bool]:
    TocTreeCollector.assign_figure_numbers = by_chapter(TocTreeCollector.assign_figure_numbers)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", without_made_up_arguments)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
