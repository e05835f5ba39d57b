"""Hygiene of the notebooks, read as they stand in the repository; where they were executed, of their figures too."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_LINES = 25
MAX_SCRIPT_LINES = 45  # of a cell that writes a script: it has to stand alone

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def repository() -> str:
    """Return the repository's address from the one place where it stands."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def install_cell() -> str:
    """Return the cell by which a notebook fetches on Colab what Colab lacks."""
    pinned = re.findall(r"^(?:zuko|arviz-stats)==\S+", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    return (
        "# Where ebmlib is missing, as on Colab, fetch it and what else Colab lacks; elsewhere this does nothing.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("ebmlib") is None:\n'
        f'    %pip install -q --no-deps "ebmlib @ git+{repository()}@main" {" ".join(pinned)}'
    )


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def alternative_text(cell):
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").strip()


def test_is_committed_without_outputs(path):
    for cell in code_cells(path):
        assert not cell.outputs, f"cell {cell.id} has outputs: nbstripout --keep-id {path.name}"
        assert cell.execution_count is None, f"cell {cell.id} has an execution count"
        assert "execution" not in cell.metadata, f"cell {cell.id} has execution times"


def test_format(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    ids = [cell.get("id") for cell in notebook.cells]
    assert all(ids) and len(set(ids)) == len(ids), "every cell needs an id of its own"


def test_is_in_the_table_of_contents(path):
    assert re.search(rf"file: notebooks/{path.stem}$", (ROOT / "_toc.yml").read_text("utf-8"), re.MULTILINE)
    assert f"notebooks/{path.name}" in (ROOT / "book/index.md").read_text("utf-8"), "the front page's map lacks it"


def test_opens_on_colab(path):
    first = code_cells(path)[0]
    assert first.source == install_cell()
    assert "remove-cell" in tags(first)


def test_calls_setup_with_a_seed(path):
    assert any(re.search(r"\bsetup\(seed=", cell.source) for cell in code_cells(path))


def test_has_a_check_for_each_thing_that_it_will_show(path):
    opening = next(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert opening.startswith("# "), "the first cell has the title"
    match = re.search(r"you will show.*?\n\s*((?:^[-*] .*\n?(?:^[ \t]+.*\n?)*)+)", opening, re.I | re.M | re.S)
    assert match, "the first cell lists, under 'you will show', two or three bullets"
    promised = len(re.findall(r"^[-*] ", match.group(1), re.MULTILINE))
    checks = [cell for cell in code_cells(path) if "check" in tags(cell)]
    assert 1 <= promised <= len(checks), f"{promised} bullets and {len(checks)} check cells"
    for cell in checks:
        assert re.search(r"^\s*assert ", cell.source, re.MULTILINE), f"check cell {cell.id} asserts nothing"


def test_every_figure_has_an_alternative_text(path):
    for cell in code_cells(path):
        if re.search(r"plt\.(subplots|figure)\(", cell.source):
            assert alternative_text(cell), f"cell {cell.id} draws: give it metadata mystnb.image.alt"


def test_every_image_has_an_alternative_text(path, built):
    for cell in code_cells(built / "executed" / path.name):
        if any(mime.startswith("image/") for output in cell.outputs for mime in output.get("data", {})):
            assert alternative_text(cell), f"cell {cell.id} shows an image: give it metadata mystnb.image.alt"


def test_no_alternative_text_is_unfinished(path):
    for cell in code_cells(path):
        assert not re.search(r"\b(ALT|TODO|XXX)\b", alternative_text(cell)), f"cell {cell.id} has a placeholder"


def test_the_bibliography_has_what_the_chapter_cites(path):
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    references = prose.partition("## References")[2]
    cited = re.findall(r"arxiv\.org/abs/([^\s)]+)|doi\.org/([^\s)]+)", references)
    listed = (ROOT / "book" / "references.bib").read_text("utf-8").lower()
    missing = [arxiv or doi for arxiv, doi in cited if (arxiv or doi).lower() not in listed]
    assert cited and not missing, f"{missing} not in book/references.bib"


def test_a_cell_that_writes_a_script_does_not_show_where(path):
    for cell in code_cells(path):
        if cell.source.startswith("%%writefile"):
            assert "remove-output" in tags(cell), f"cell {cell.id} would print a path: tag it remove-output"


def test_cells_are_short_and_import_by_name(path):
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        lines = lines[1:] if lines and lines[0].startswith("#") else lines
        limit = MAX_SCRIPT_LINES if cell.source.startswith("%%writefile") else MAX_LINES
        assert len(lines) <= limit, f"cell {cell.id} has {len(lines)} lines: move what it can spare to ebmlib"
        python = re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), f"cell {cell.id}: import {node.module} by name"


def prose(path):
    """Yield the text cells without links, formulas and code: what is left names things by words alone."""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            yield re.sub(r"\[[^\]]*\]\([^)]*\)|\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", cell.source, flags=re.S)


def test_a_chapter_is_named_by_a_link_or_said_to_be_planned(path):
    written = {int(other.stem[:2]) for other in NOTEBOOKS}
    for text in prose(path):
        for match in re.finditer(r"\b[Cc]hapters?\s+(\d+(?:\s*(?:,|and|or|to|–|-)\s*\d+)*)(\s*\(planned\))?", text):
            numbers = {int(number) for number in re.findall(r"\d+", match[1])}
            assert not numbers & written, f"{match[0]!r}: name a chapter that exists by a link to its notebook"
            assert match[2], f"{match[0]!r}: say that it is planned"


def test_the_prose_names_no_running_time(path):
    """The site shows the measured one."""
    times = r"running time|(?:about|some|in|takes?) (?:\w+ ){0,2}(?:seconds|minutes)\b|on (?:two|one) (?:CPU )?cores?"
    for text in prose(path):
        match = re.search(times, text, re.I)
        assert not match, f"{match[0]!r} goes stale"


def test_sections_carry_no_numbers(path):
    for text in prose(path):
        assert not re.search(r"^##+ \d", text, re.M), "a number in a heading: the others have none"


def test_what_is_folded_is_a_solution(path):
    """The site folds cells tagged hide-cell under the word Solution."""
    heading = ""
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+ (.*)", cell.source, re.M)
            heading = headings[-1] if headings else heading
        elif "hide-cell" in tags(cell):
            assert heading.startswith("Exercise"), f"cell {cell.id} is folded under {heading!r}"


def test_a_batch_script_in_the_text_starts_as_its_scheduler_asks(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for script in re.findall(r"```bash\n(.*?)```", cell.source, re.DOTALL):
            assert "#SBATCH" not in script or script.startswith("#!/bin/bash\n")
