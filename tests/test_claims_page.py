"""Checked claims, anchors and running times, from a made-up notebook and a made-up site."""

import claims
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import docutils_namespace

CONF = """
extensions = ["myst_nb", "claims"]
myst_enable_extensions = ["substitution"]
nb_execution_mode = "off"
"""
PAGE = '# Checked claims\n\n{{ n_claims }} claims; {{ seconds["01_made_up"] }}\n\n```{claims}\n```\n'
TIMES = {"iopub.execute_input": "2026-01-01T00:00:00.5Z", "shell.execute_reply": "2026-01-01T00:00:02.0Z"}


def check_cell(printed, first="# Claim: two and two make 4.", **metadata):
    outputs = [new_output("stream", name="stdout", text=line) for line in printed]
    metadata = {"tags": ["check"], "execution": TIMES} | metadata
    return new_code_cell(f"{first}\nassert 2 + 2 == 4", outputs=outputs, metadata=metadata, id="ab12")


def notebook_of(*cells):
    removed = new_code_cell("1", metadata={"tags": ["remove-cell"], "execution": TIMES})  # its index still counts
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    first = new_markdown_cell("# 1. Made up\n\nYou will show\n\n- that it is so.")
    opening = [first, removed, new_markdown_cell("Text.")]
    return new_notebook(cells=[*opening, *cells], metadata=metadata)


def build(folder, notebook):
    source = folder / "source"
    (source / "notebooks").mkdir(parents=True)
    (source / "book").mkdir()
    (source / "conf.py").write_text(CONF)
    (source / "index.md").write_text("# Front\n\n```{toctree}\nnotebooks/01_made_up\nbook/claims\n```\n")
    (source / "book" / "claims.md").write_text(PAGE)
    nbformat.write(notebook, source / "notebooks" / "01_made_up.ipynb")
    with docutils_namespace():
        Sphinx(source, source, folder / "out", folder / "doctrees", "html", status=None, warningiserror=True).build()
    return folder / "out"


def test_a_claim_is_read_with_all_its_lines_over_split_streams():
    cell = check_cell(["sum 4", ".0000  (tolerance 1e-10)\n\n", "  and so on\n"])
    assert claims.read_claims(notebook_of(cell)) == [
        ("Two and two make 4.", ["sum 4.0000  (tolerance 1e-10)", "and so on"], "ab12")
    ]


@pytest.mark.parametrize("text", ["log Z is 1.", "z is 1.", "A sum is 1.", "With a sum, log Z is 1."])
def test_a_claim_is_a_sentence_whose_symbols_keep_their_case(text):
    words = text if text.startswith(("log", "z")) else text[0].lower() + text[1:]
    notebook = notebook_of(check_cell(["1 (tolerance 0)"], first=f"# Claim: {words}"))
    assert claims.read_claims(notebook)[0].text == text


@pytest.mark.parametrize(
    ("printed", "first", "message"),
    [
        ([], "# Claim: all is well.", "no measured number"),
        (["all is well"], "# Claim: all is well.", "no measured number"),
        (["off by 0.1"], "# Claim: all is well.", "no measured number"),
        (["0.1 (tolerance 1)"], "x = 1  # Claim: all is well.", "does not begin with"),
        (["0.1 (tolerance 1)"], "# Claim: ", "does not begin with"),
        (["0.1 (tolerance 1)"], "x = 1", "does not begin with"),
    ],
)
def test_a_check_that_claims_or_measures_nothing_is_an_error(printed, first, message):
    with pytest.raises(ExtensionError, match=message):
        claims.read_claims(notebook_of(check_cell(printed, first=first)))


def test_the_running_time_is_the_sum_over_the_cells():
    assert claims.running_time(notebook_of(check_cell(["4 (4)"]))) == pytest.approx(3.0)


def test_a_cell_without_times_is_an_error():
    with pytest.raises(ExtensionError, match="ab12 was not executed"):
        claims.running_time(notebook_of(check_cell(["4 (4)"], execution={})))


def test_the_page_links_each_claim_to_its_cell(tmp_path):
    out = build(tmp_path, notebook_of(new_code_cell("2", metadata={"execution": TIMES}), check_cell(["4.0 (4)"])))
    page = BeautifulSoup((out / "book" / "claims.html").read_text("utf-8"), "html.parser")
    assert "1 claims; 4 s" in page.get_text()
    (link,) = page.select("dl.claims dt a")
    assert link.get_text() == "Two and two make 4."
    assert link["href"] == "../notebooks/01_made_up.html#check-ab12"
    assert page.select_one("dl.claims dd").get_text(strip=True) == "4.0 (4)"
    chapter = BeautifulSoup((out / "notebooks" / "01_made_up.html").read_text("utf-8"), "html.parser")
    assert "Claim: two and two" in chapter.find(id="check-ab12").get_text()
    assert len(chapter.select("[id^=check-]")) == 1
    assert "that it is so. Running time: 4 s" in " ".join(chapter.select_one("article, section").get_text().split())


def test_a_site_with_a_claim_that_measures_nothing_is_not_built(tmp_path):
    with pytest.raises(ExtensionError, match="01_made_up: .* no measured number"):
        build(tmp_path, notebook_of(check_cell(["all is well"])))
