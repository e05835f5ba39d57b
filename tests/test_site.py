"""Each check of check_site.py passes a sound page and fails one that is broken for the purpose."""

import io
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import check_site
import ebmsite
import matplotlib
import numpy as np
import pydata_sphinx_theme
import pytest
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure

from ebmlib.plotting import INK, PAPER, use_style

FRONT = '<nav><a href="page.html">Page</a></nav><h1 id="top">Front</h1>'
SOUND = '<a href="index.html#top">up</a> <a href="https://example.org/">out</a> <img src="a.svg" alt="A bowl">'


def write_site(folder, page, extra=()):
    (folder / "index.html").write_text(FRONT)
    (folder / "page.html").write_text(page)
    (folder / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    for name, text in dict(extra).items():
        (folder / name).write_text(text)
    return folder


def test_a_sound_site_passes(tmp_path, capsys):
    assert check_site.main(write_site(tmp_path, SOUND)) == 0
    assert "2 pages, 1 images; foreign hosts 0, broken links 0" in capsys.readouterr().out


def test_an_empty_site_fails(tmp_path):
    assert check_site.main(tmp_path) == 1


BROKEN = [
    ("foreign_hosts", '<script src="https://cdn.example/a.js"></script>'),
    ("foreign_hosts", '<script type="module">import x from "https://cdn.example/a.js"</script>'),
    ("foreign_hosts", '<script type="module">import "//cdn.example/a.js"</script>'),
    ("foreign_hosts", '<script>fetch("https://cdn.example/a.json")</script>'),
    ("foreign_hosts", '<link rel="stylesheet" href="//cdn.example/a.css">'),
    ("foreign_hosts", '<link rel="preconnect" href="https://fonts.example">'),
    ("foreign_hosts", '<img alt="A bowl" src="http://cdn.example/a.png">'),
    ("foreign_hosts", '<img alt="A bowl" src="a.svg" srcset="https://cdn.example/a.png 2x">'),
    ("foreign_hosts", '<iframe src="https://cdn.example/"></iframe>'),
    ("foreign_hosts", '<style>@import "https://cdn.example/a.css";</style>'),
    ("foreign_hosts", '<p style="background: url(https://cdn.example/a.png)">x</p>'),
    ("broken_links", '<a href="missing.html">x</a>'),
    ("broken_links", '<a href="index.html#missing">x</a>'),
    ("broken_links", '<a href="#missing">x</a>'),
    ("broken_links", '<a href="/page.html">x</a>'),
    ("broken_links", '<img alt="A bowl" src="missing.svg">'),
    ("broken_links", '<script src="missing.js"></script>'),
    ("missing_alt_texts", '<img src="a.svg">'),
    ("missing_alt_texts", '<img src="a.svg" alt=" ">'),
    ("missing_alt_texts", '<img src="a.svg" alt="_images/a.svg">'),
    ("raw_markup", "<p>See {numref}`fig-bowl`.</p>"),
    ("raw_markup", "<p>:::{note} Mind the sign. :::</p>"),
    ("raw_markup", "<p>```{figure} a.svg</p>"),
    ("raw_markup", r"<p>where \frac{1}{Z} is small</p>"),
    ("raw_markup", '<div class="system-message">Unknown role</div>'),
    ("builder_paths", "<p>/home/builder/book/a.py:3: UserWarning</p>"),
    ("builder_paths", f"<p>{check_site.ROOT}/ebmlib/energies.py</p>"),
    ("builder_paths", "<p>/tmp/ipykernel_1/2.py</p>"),
    ("builder_paths", '<a href="file:///srv/a.html">x</a>'),
]


@pytest.mark.parametrize(("check", "page"), BROKEN)
def test_a_broken_page_fails_its_check_alone(tmp_path, capsys, check, page):
    assert check_site.main(write_site(tmp_path, page)) == 1
    found = capsys.readouterr().out
    assert found.startswith("page.html: ")
    for other in check_site.CHECKS:
        count = f"{other.__name__.replace('_', ' ')} {int(other.__name__ == check)}"
        assert count in found


@pytest.mark.parametrize(
    ("check", "name", "text"),
    [
        ("foreign_hosts", "a.css", "p { background: url('https://cdn.example/a.png') }"),
        ("foreign_hosts", "a.js", 'script.src = "https://cdn.example/a.js"'),
        ("foreign_hosts", "b.svg", '<svg><image href="https://cdn.example/a.png"/></svg>'),
        ("pages_out_of_toc", "orphan.html", "<p>Nobody finds this page.</p>"),
        ("builder_paths", "b.svg", "<svg><!-- /home/builder/a.py --></svg>"),
    ],
)
def test_a_broken_file_beside_the_pages_fails(tmp_path, capsys, check, name, text):
    assert check_site.main(write_site(tmp_path, SOUND, {name: text})) == 1
    found = capsys.readouterr().out
    assert found.startswith(f"{name}: ")
    assert f"{check.replace('_', ' ')} 1" in found


def test_a_site_without_a_front_page_fails(tmp_path):
    (tmp_path / "page.html").write_text("<p>x</p>")
    assert "no front page" in " ".join(check_site.pages_out_of_toc(check_site.read_pages(tmp_path), tmp_path))


def test_figures_take_ink_and_paper_from_the_theme():
    with matplotlib.rc_context():
        use_style()
        figure, svg = Figure(), io.StringIO()
        figure.subplots().set_title("An energy")
        figure.savefig(svg, format="svg")
    themed = ebmsite.follow_theme(svg.getvalue())
    ET.fromstring(themed)
    assert "fill: var(--ink)" in themed
    assert "fill: var(--paper)" in themed
    assert INK not in themed.replace(ebmsite.STYLE, "")
    assert PAPER not in themed


def test_paths_go_in_steps_that_add_up_and_nothing_else_changes():
    svg = '<svg width="1.23456pt"><path d="M 12.345678 -0.001 \nL 7.999999 3 \nL 0.53 1.25 z M 1e-05 2" id="M 1.234"/>'
    slim = ebmsite.slim_figure(svg + '<use x="12.345678" y="-0.001" width="0.1234"/></svg>')
    path = "M12.35 0l-4.35 3l-7.45-1.75zM0 2"
    assert (
        slim == f'<svg width="1.23456pt"><path d="{path}" id="M 1.234"/><use x="12.35" y="-0.00" width="0.1234"/></svg>'
    )


def test_a_long_path_does_not_drift():
    x, y = np.cumsum(np.random.default_rng(0).normal(scale=0.03, size=(2, 1000)), axis=1)
    path = "M 0 0 " + "".join(f"\nL {a:.6f} {b:.6f} " for a, b in zip(x, y, strict=True))
    steps = [float(z) for z in re.findall(r"-?[.\d]+", ebmsite.slim_path(path))]
    assert np.cumsum(steps[2::2]) == pytest.approx(x, abs=0.025 + 1e-6)
    assert np.cumsum(steps[3::2]) == pytest.approx(y, abs=0.025 + 1e-6)


def test_pages_are_mended_for_screen_readers():
    page = '<table><tr><th class="head"><p></p></th><th>nats</th></tr></table><div role="list" class="citation-list">'
    assert ebmsite.mend(page) == '<table><tr><td></td><th>nats</th></tr></table><div class="citation-list">'
    assert 'role="complementary"' in ebmsite.mend('<div id="pst-primary-sidebar" class="bd-sidebar">')


def test_figures_are_numbered_within_the_chapter_of_their_file():
    env = SimpleNamespace(all_docs=["book/index", "notebooks/07_persistent_chains"], toc_secnumbers={"book/index": {}})
    seen = ebmsite.by_chapter(lambda collector, env: [env.toc_secnumbers])(None, env)
    assert seen == [{"notebooks/07_persistent_chains": {"": (7,)}}]
    assert env.toc_secnumbers == {"book/index": {}}


def test_icons_keep_what_is_named_alone(tmp_path):
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static"
    shutil.copytree(theme, tmp_path / "_static")
    (tmp_path / "index.html").write_text('<i class="fa-solid fa-rocket"></i>')
    ebmsite.slim_icons(tmp_path)
    fonts = tmp_path / "_static/vendor/fontawesome/webfonts"
    icons = TTFont(fonts / "fa-solid-900.ttf").getBestCmap()
    assert 0xF135 in icons  # rocket
    assert 0xF0F3 not in icons  # bell
    assert sum(font.stat().st_size for font in fonts.iterdir()) < 20_000
    assert "Font Awesome" not in str(TTFont(fonts / "fa-solid-900.ttf")["name"].getDebugName(1))


def test_a_drawing_by_hand_is_left_alone():
    assert ebmsite.follow_theme("<svg><path/></svg>") == "<svg><path/></svg>"
