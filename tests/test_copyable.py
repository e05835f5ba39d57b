"""A reader can copy a module, with at most one sibling, into a package of another name."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ebmlib"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def siblings(module: str) -> set[str]:
    """Return the modules of the package that a module imports when it runs, at whatever depth of its code."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {node.module for node in imports if node.module}


@pytest.mark.parametrize("module", MODULES)
def test_module_stands_with_one_sibling(module, tmp_path):
    needed = siblings(module)
    assert len(needed) <= 1, f"{module} needs {sorted(needed)}: a reader would have to copy them all"
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in {module, *needed}:
        shutil.copy(PACKAGE / f"{name}.py", package)
    check = f"import sys, mine.{module}; assert 'ebmlib' not in sys.modules, 'it still imports ebmlib'"
    result = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", MODULES)
def test_module_can_be_read_in_one_sitting(module):
    n_lines = len((PACKAGE / f"{module}.py").read_text().splitlines())
    assert n_lines <= 200, f"{module}.py has {n_lines} lines"
