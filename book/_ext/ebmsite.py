"""What the theme does not do: MathJax beside the pages, and figures that follow the theme."""

import importlib.util
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from ebmlib.plotting import INK, PAPER

# Figures have text and axes in one ink on one paper; on the site both depend on the colour scheme of the page.
STYLE = (
    f"<style>:root{{color-scheme:light dark;--ink:{INK};--paper:#ffffff}}"
    "@media (prefers-color-scheme:dark){:root{--ink:#ced6dd;--paper:#121212}}</style>"
)


def copy_mathjax(out: Path) -> None:
    """Copy the component that the pages load and its fonts: 1.6 of the package's 24 MB."""
    source = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    fonts = "output/chtml/fonts/woff-v2"
    shutil.copytree(source / fonts, out / fonts, dirs_exist_ok=True)
    shutil.copy(source / "tex-chtml.js", out)


def follow_theme(svg: str) -> str:
    """Let a figure by matplotlib take its ink and its paper from the colour scheme of the page that shows it."""
    head, tag, body = svg.partition("<defs>")
    if not tag or INK not in body:
        return svg
    return head + STYLE + tag + body.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")


def finish(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    copy_mathjax(out / "_static" / "mathjax")
    for figure in (out / "_images").glob("*.svg"):
        figure.write_text(follow_theme(figure.read_text("utf-8")), "utf-8")


def skip_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out what a named tuple says of its own fields ("Alias for field number 0"): the class documents them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
