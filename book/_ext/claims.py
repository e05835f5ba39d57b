"""What the executed notebooks say of themselves: their checked claims, each with an anchor, and their running times.

A check cell is tagged `check`, begins with `# Claim: …` and prints what it measured with the bound in parentheses.
Pages get `{{ n_claims }}`, `{{ seconds["NN_name"] }}` and the directive `claims`; a notebook's page gets its time.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

FOLDER = "notebooks"
MEASURED = re.compile(r"\d.*\(.+\)")  # a number, and in parentheses its tolerance or bound


class Claim(NamedTuple):
    """A claim, the lines that its check printed, and the id of the cell."""

    text: str
    printed: list[str]
    cell: str


def read_notebooks(source: Path) -> dict[str, NotebookNode]:
    """Return the executed notebooks of a Sphinx source folder by name, in the order of the chapters."""
    return {path.stem: nbformat.read(path, as_version=4) for path in sorted((source / FOLDER).glob("*.ipynb"))}


def read_claims(notebook: NotebookNode) -> list[Claim]:
    """Return the claims of an executed notebook; a check cell that claims or measures nothing is an error."""
    claims = []
    for cell in notebook.cells:
        if "check" not in cell.metadata.get("tags", []):
            continue
        first, mark, text = cell.source.partition("\n")[0].partition("# Claim: ")
        if first or not mark or not text.strip():
            raise ExtensionError(f"check cell {cell.id} does not begin with '# Claim: …'")
        streams = [output.text for output in cell.outputs if output.get("name") == "stdout"]
        printed = [line.strip() for line in "".join(streams).splitlines() if line.strip()]
        if not any(MEASURED.search(line) for line in printed):
            raise ExtensionError(f"check cell {cell.id} prints no measured number with its tolerance in parentheses")
        sentence = re.sub(r"^(?:a\b|(?!log\b)[a-z](?=[a-z]))", lambda letter: letter[0].upper(), text.strip())
        claims.append(Claim(sentence, printed, cell.id))
    return claims


def running_time(notebook: NotebookNode) -> float:
    """Return the seconds that the cells of an executed notebook took, by the clock of the machine that ran them."""
    seconds = 0.0
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            times = cell.metadata.get("execution", {})
            if not {"iopub.execute_input", "shell.execute_reply"} <= times.keys():
                raise ExtensionError(f"cell {cell.id} was not executed, or its times were not recorded")
            start, end = (datetime.fromisoformat(times[k]) for k in ("iopub.execute_input", "shell.execute_reply"))
            seconds += (end - start).total_seconds()
    return seconds


class Claims(SphinxDirective):
    """A section for each chapter: its claims, each linked to its cell, with what was printed there."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name, notebook in read_notebooks(Path(self.env.srcdir)).items():
            heading = notebook.cells[0].source.partition("\n")[0].removeprefix("# ")
            section = nodes.section("", nodes.title("", heading), ids=[f"claims-{name}"], names=[f"claims {name}"])
            listed = nodes.definition_list(classes=["claims"])
            for claim in read_claims(notebook):
                target = {"refdomain": "std", "reftype": "ref", "reftarget": f"{name}/{claim.cell}"}
                link = addnodes.pending_xref("", refdoc=self.env.docname, refexplicit=True, refwarn=True, **target)
                link += nodes.inline("", claim.text)
                lines = nodes.line_block("", *[nodes.line("", line) for line in claim.printed])
                listed += nodes.definition_list_item("", nodes.term("", "", link), nodes.definition("", lines))
            section += listed
            sections.append(section)
        return sections


def complete(app: Sphinx, doctree: nodes.document) -> None:
    """Give a notebook's page its running time, and make each check cell a target, `#check-<id of the cell>`."""
    folder, _, name = app.env.docname.rpartition("/")
    if folder != FOLDER:
        return
    notebook = nbformat.read(app.env.doc2path(app.env.docname), as_version=4)
    for promises in list(doctree.findall(nodes.bullet_list))[:1]:  # "You will show"
        time = f"Running time: {running_time(notebook):.0f} s, for the run that this page shows."
        promises.parent.insert(promises.parent.index(promises) + 1, nodes.paragraph("", time))
    for box in doctree.findall(lambda node: node.get("nb_element") == "cell_code" if hasattr(node, "get") else False):
        cell = notebook.cells[box["cell_index"]]
        if "check" in cell.metadata.get("tags", []):
            box["ids"].append(f"check-{cell.id}")
            app.env.get_domain("std").anonlabels[f"{name}/{cell.id}"] = app.env.docname, f"check-{cell.id}"


def count(app: Sphinx, config: Config) -> None:
    """Hand the pages what was counted and timed."""
    n_claims, seconds = 0, {}
    for name, notebook in read_notebooks(Path(app.srcdir)).items():
        try:
            n_claims += len(read_claims(notebook))
            seconds[name] = f"{running_time(notebook):.0f} s"
        except ExtensionError as error:
            raise ExtensionError(f"{name}: {error}") from None
    config.myst_substitutions = {**config.myst_substitutions, "n_claims": n_claims, "seconds": seconds}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", count)
    app.connect("doctree-read", complete)
    app.add_directive("claims", Claims)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
