"""Sabotage: each named mistake, put into a copy of the book, must fail at the check cell that claims the opposite.

A check that cannot fail proves nothing, so each claim has at least one. `sabotages/NN_name.toml` lists those of a
notebook: the bug, the claim that must fail, the file that it is put into ("notebook", or a module of ebmlib), and one
replacement, `old` by `new`.

A notebook is run once, in one process, as far as the last mistake. Where a mistake goes into a cell, the process forks:
the child runs the cell with its mistake and then, of the cells that follow, those that the claim rests on. A mistake in
ebmlib forks before ebmlib is imported. Where cells were left out, the same cells have to pass without the mistake.
"""

import ast
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import symtable
import sys
import tempfile
import tomllib
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PREFIX = "# Claim: "
SCRIPT = "%%writefile {folder}/"  # a cell that writes a script, into a folder whose name is in `folder`
PASSED, CAUGHT, BROKEN = 0, 3, 4  # exit status of a child: it passed, the check's own assertion failed, else
LIMIT = 240  # seconds for one child


class Sabotage(NamedTuple):
    """A mistake, as one replacement in one file, and the claim that must fail."""

    bug: str
    claim: str
    file: str  # "notebook", or a module of ebmlib
    old: str
    new: str


class Cell(NamedTuple):
    source: str
    is_check: bool

    @property
    def is_script(self) -> bool:
        return self.source.startswith(SCRIPT)

    @property
    def python(self) -> str:
        """What runs: of a cell that writes a script, the writing."""
        if not self.is_script:
            return self.source
        name, _, script = self.source.removeprefix(SCRIPT).partition("\n")
        return f"(folder / {name!r}).write_text({script + chr(10)!r}, 'utf-8')"

    @property
    def claim(self) -> str:
        return self.source.partition("\n")[0].removeprefix(PREFIX) if self.is_check else ""


def read_sabotages(notebook: Path) -> list[Sabotage]:
    path = ROOT / "tests" / "sabotages" / f"{notebook.stem}.toml"
    return [Sabotage(**entry) for entry in tomllib.loads(path.read_text("utf-8"))["sabotage"]] if path.exists() else []


def read_cells(notebook: Path) -> list[Cell]:
    """Return the code cells that a reader runs."""
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    return [
        Cell("".join(cell["source"]), "check" in tag)
        for cell, tag in zip(cells, tags, strict=True)
        if "remove-cell" not in tag
    ]


def flow(statement: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """Return the names that a statement binds, those that it changes in place, and those that it reads."""

    def read(table: symtable.SymbolTable, is_top: bool) -> set[str]:
        here = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (is_top or s.is_global())}
        return here.union(*(read(child, False) for child in table.get_children()))

    top = symtable.symtable(ast.unparse(statement), "cell", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    stores = [n for n in ast.walk(statement) if isinstance(getattr(n, "ctx", None), ast.Store)]
    parts = [n for n in stores if isinstance(n, ast.Attribute | ast.Subscript)]
    changed = {i.id for n in parts for i in ast.walk(n) if isinstance(i, ast.Name)}
    if isinstance(statement, ast.AugAssign):
        changed |= bound
    used = read(top, True)
    if isinstance(statement, ast.For):  # its own variables are set before its body reads them
        used -= {n.id for n in ast.walk(statement.target) if isinstance(n, ast.Name)}
        used |= {n.id for n in ast.walk(statement.iter) if isinstance(n, ast.Name)}
    return bound - changed, changed, used | changed


def needed(cells: list[Cell], first: int, last: int) -> list[int]:
    """Return the places of the check cell `last` and of the cells since `first` that it rests on, with all scripts."""
    kept: list[int] = []
    wanted: set[str] = set()
    for place in range(last, first - 1, -1):
        flows = [flow(statement) for statement in ast.parse(cells[place].python).body]
        if place == last or cells[place].is_script or any((bound | changed) & wanted for bound, changed, _ in flows):
            kept.insert(0, place)
            for bound, _, used in reversed(flows):
                wanted = (wanted - bound) | used
    return kept


def in_child(cells: list[Cell], places: list[int], space: dict[str, Any], package: str = "") -> tuple[int, str]:
    """Return how the cells at these places end in a process of their own, and what is to be said of it.

    `package` is a folder with the ebmlib to import, if it is not the repository's.
    """
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as report:
        child = os.fork()
        if child == 0:
            signal.alarm(LIMIT)
            status = BROKEN
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(report.fileno(), 2)
                sys.path[:0] = [package] if package else []
                for place in places[:-1]:
                    exec(compile(cells[place].python, f"cell {place}", "exec"), space)
                try:
                    exec(compile(cells[places[-1]].python, "check cell", "exec"), space)
                    status = PASSED
                except AssertionError:
                    status = CAUGHT
            except BaseException:  # whatever it is, it is reported, and the child ends here
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        report.seek(0)
        return status, report.read()[-1500:]


def replace_once(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise ValueError(f"{old!r} stands there {text.count(old)} times, not once")
    return text.replace(old, new)


def mistaken(sabotage: Sabotage, cells: list[Cell], folder: Path) -> tuple[int, list[Cell], str]:
    """Return where a mistake starts, the cells with it, and the folder of the ebmlib with it, if it goes there."""
    if sabotage.file == "notebook":
        sources = replace_once("\0".join(cell.source for cell in cells), sabotage.old, sabotage.new).split("\0")
        bad = [cell._replace(source=source) for cell, source in zip(cells, sources, strict=True)]
        return next(i for i, cell in enumerate(cells) if bad[i] != cell), bad, ""
    shutil.copytree(ROOT / "ebmlib", folder / "ebmlib", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "ebmlib" / sabotage.file
    path.write_text(replace_once(path.read_text("utf-8"), sabotage.old, sabotage.new), "utf-8")
    return 0, cells, str(folder)


def run(notebook: Path) -> list[str]:
    """Run a notebook with all its sabotages; return what is wrong with each that its claim does not catch."""
    import arviz_stats.base  # noqa: F401  once for all children, as the next ones; ebmlib is left to the cells
    import matplotlib as mpl
    import pandas  # noqa: F401
    import sklearn.mixture  # noqa: F401
    import zuko  # noqa: F401
    from IPython.display import display

    mpl.use("Agg")
    sys.path.insert(0, str(ROOT))
    cells, problems, waiting, controls = read_cells(notebook), [], [], {}
    space: dict[str, Any] = {"__name__": "__main__", "display": display}
    with tempfile.TemporaryDirectory() as folder:
        for i, sabotage in enumerate(read_sabotages(notebook)):
            try:
                last = next(i for i, cell in enumerate(cells) if cell.claim == sabotage.claim)
                waiting.append((sabotage, last, *mistaken(sabotage, cells, Path(folder) / str(i))))
            except (StopIteration, ValueError) as error:
                problems.append(f"{sabotage.bug}: {error or 'no such claim'}")
        end = max((first for _, _, first, _, _ in waiting), default=-1) + 1  # nothing forks from what follows
        for place, cell in enumerate(cells[:end]):
            for sabotage, last, first, bad, package in waiting:
                if first != place:
                    continue
                places, before = sorted({place, *needed(bad, place, last)}), os.times()
                status, said = in_child(bad, places, space, package)
                if status != CAUGHT:
                    problems.append(f"{sabotage.bug}: {'unnoticed' if status == PASSED else said or 'too long'}")
                elif len(places) < last + 1 - place:  # cells were left out
                    key = tuple(places)
                    controls[key] = controls.get(key) or in_child(cells, places, space)
                    if controls[key][0] != PASSED:
                        problems.append(f"{sabotage.bug}: fails without it, too, on cells {key}: {controls[key][1]}")
                print(f"{os.times().children_user - before.children_user:6.1f} s of CPU: {sabotage.bug}", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(cell.python, f"cell {place}", "exec"), space)
    return problems


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_has_a_sabotage(notebook):
    claims = {cell.claim for cell in read_cells(notebook) if cell.is_check}
    sabotaged = {sabotage.claim for sabotage in read_sabotages(notebook)}
    assert not sabotaged - claims, "sabotages of claims that are not there"
    assert not claims - sabotaged, "claims without a mistake that fails them"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_sabotage_fails_at_its_claim(notebook):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a script and its mistaken copy may share size and second
    command = [sys.executable, __file__, str(notebook)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]


if __name__ == "__main__":
    found = run(Path(sys.argv[1]))
    print("\n".join(found))
    sys.exit(bool(found))
