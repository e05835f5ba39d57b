"""A reader can copy a module, with what the table in README.md and book/api.md names beside it, and use it as it is."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ebmlib"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
PAGES = [ROOT / "README.md", ROOT / "book" / "api.md"]
BOUNDS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
DEPENDENCIES = {bound.partition(">=")[0] for bound in BOUNDS} - {"torch"}  # each module needs torch
NONE = "–"
IN_SHELLS = {"matplotlib-inline"}  # imported only where a shell of IPython runs, which brings it

# Code that uses what a module reads from beside itself; {m} is the module.
USES = {
    "notebook": "assert {m}.benchmark_results('wine_density')['rows']",
    "datasets": "assert len({m}.wine_quality('red')) == 1599 and len({m}.wine_quality('white')) == 4898",
    "lattice_widget": "assert {m}.ising_lattice(3, [1, 2], {{}}).html.count('<script') == 1",
    "widget": """
import torch
class GaussianEnergy:  # the reader's own: known by its name
    mean, factor, offset = torch.zeros(2), torch.eye(2), 0.0
assert {m}.landscape(GaussianEnergy(), (-1, -1), (1, 1)).html.count("<script") == 1
""",
}


def running(tree: ast.AST, optional: bool = True) -> list[ast.stmt]:
    """Return the imports that run, at whatever depth; with `optional` also those whose failure is caught."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(handler) for handler in node.handlers):
            node.body = node.body if optional else []
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def source(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))


@cache
def distributions() -> Mapping[str, list[str]]:
    """Return which packages of PyPI bring a name that can be imported; it takes a second, hence once."""
    return importlib.metadata.packages_distributions()


def siblings(module: str) -> set[str]:
    """Return the modules of the package that a module imports when it runs."""
    relative = [node for node in running(source(module)) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.module for node in relative), (
        f"{module}: write `from .sibling import name`, which is easy to change"
    )
    return {node.module for node in relative}


def needed(module: str) -> set[str]:
    """Return the siblings of a module, and theirs."""
    return siblings(module).union(*(needed(name) for name in siblings(module)))


def third_party(tree: ast.AST, own: frozenset[str] = frozenset()) -> set[str]:
    """Return the packages of PyPI, but for torch, whose absence would stop the code when it runs; `own` are modules."""
    names = set()
    for node in running(tree, optional=False):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif not node.level:
            names.add(node.module.partition(".")[0])
    names -= {*sys.stdlib_module_names, "torch", "ebmlib", *own}
    return {distributions()[name][0].lower().replace("_", "-") for name in names}


def brought_by(packages: set[str]) -> set[str]:
    """Return the packages and what they require."""
    required = [
        re.match(r"[\w.-]+", line).group() for name in packages for line in importlib.metadata.requires(name) or []
    ]
    return packages | {name.lower().replace("_", "-") for name in required}


def files(module: str) -> set[str]:
    """Return what a module reads from beside itself: entries of the package that it names, or its own other endings."""
    nodes = list(ast.walk(source(module)))
    if not any(isinstance(node, ast.Name) and node.id == "__file__" for node in nodes):
        return set()
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    entries = [
        path for path in PACKAGE.iterdir() if path.suffix not in (".py", ".typed") and path.name != "__pycache__"
    ]
    named = [path for path in entries if path.name in strings or (path.stem == module and path.suffix in strings)]
    return {path.name + "/" * path.is_dir() for path in named}


def row(module: str) -> str:
    """Return the table's row for a module, from what the code does."""
    copied = [module, *sorted(needed(module))]
    beside = [f"{name}.py" for name in copied[1:]] + sorted(set().union(*(files(name) for name in copied)))
    packages = set().union(*(third_party(source(name)) for name in copied)) - IN_SHELLS
    listed = packages & DEPENDENCIES
    assert packages <= brought_by(listed), (
        f"{module} imports {packages - brought_by(listed)}: name it in pyproject.toml"
    )
    return f"| `{module}` | {', '.join(f'`{name}`' for name in beside) or NONE} | {', '.join(sorted(listed)) or NONE} |"


def table(page: Path) -> dict[str, str]:
    """Return the rows of a page's table by their module."""
    return {name: line for line, name in re.findall(r"^(\| `(\w+)` \|.*\|)$", page.read_text("utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_table_says_what_to_copy(page):
    rows, right = table(page), {module: row(module) for module in MODULES}
    wrong = [line for module, line in right.items() if rows.get(module) != line]
    assert not wrong, f"{page.relative_to(ROOT)}: its table of what to copy needs these rows:\n" + "\n".join(wrong)
    assert list(rows) == list(right), f"{page.relative_to(ROOT)}: its table has rows of no module, or is not in order"


@pytest.mark.parametrize("module", MODULES)
def test_module_stands_with_what_the_table_names(module, tmp_path):
    assert len(needed(module)) <= 1, f"{module} needs {sorted(needed(module))}: a reader would have to copy them all"
    assert module in USES or not files(module), f"{module} reads files: add to USES a line of code that does so"
    assert module in table(PAGES[0]), f"README.md and book/api.md: their table needs this row:\n{row(module)}"
    beside = re.findall(r"`([^`]+)`", table(PAGES[0])[module])[1:]
    for folder in (tmp_path / "mine", tmp_path / "flat"):
        folder.mkdir()
        for name in (f"{module}.py", *beside):
            if name.endswith("/"):
                shutil.copytree(PACKAGE / name, folder / name)
            else:
                shutil.copy(PACKAGE / name, folder / name)
    for path in (tmp_path / "flat").glob("*.py"):
        text = path.read_text("utf-8")
        for sibling in siblings(path.stem):  # the change that the README names
            text = text.replace(f"from .{sibling} import", f"from {sibling} import")
        path.write_text(text, "utf-8")
    check = "import sys\n"
    for where, name in (("", f"mine.{module}"), ("flat", module)):
        use = USES.get(module, "").format(m=name)
        check += f"sys.path.insert(0, {where!r})\nimport {name}\n{use}\n"
    check += "assert 'ebmlib' not in sys.modules, 'it still imports ebmlib'"
    result = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_change_for_a_flat_copy_is_named():
    for page in PAGES:
        assert "`from .energies import` becomes `from energies import`" in " ".join(page.read_text("utf-8").split())


@pytest.mark.parametrize("module", MODULES)
def test_module_can_be_read_in_one_sitting(module):
    n_lines = len((PACKAGE / f"{module}.py").read_text("utf-8").splitlines())
    assert n_lines <= 200, f"{module}.py has {n_lines} lines"
