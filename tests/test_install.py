"""The install cell of a notebook, run where torch and numpy are there already and ebmlib is not."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
from test_notebooks import NOTEBOOKS, install_cell, repository

ROOT = Path(__file__).resolve().parents[1]
BOTH = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
STATE = """
import importlib.metadata, importlib.util
for name in ("numpy", "torch"):
    print(importlib.util.find_spec(name).origin, importlib.metadata.version(name), end=" ")
"""
USE = """
import importlib, pkgutil
import ebmlib.datasets, ebmlib.notebook
from pathlib import Path
names = sorted(module.name for module in pkgutil.iter_modules(ebmlib.__path__))
for name in names:
    importlib.import_module(f"ebmlib.{name}")
assert len(ebmlib.datasets.wine_quality("white")) == 4898
for path in (Path(ebmlib.__file__).parent / "data" / "results").glob("*.json"):
    ebmlib.notebook.benchmark_results(path.stem)
print("USE", ebmlib.__file__, *names)
"""


def run(*command, **environment):
    """Run a command that knows nothing of this checkout, and return what it printed, errors too."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "GIT_"))}
    result = subprocess.run(command, env=inherited | environment, cwd="/", text=True, **BOTH)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture
def python(tmp_path):
    """An environment with all packages of this one but ebmlib, and with a numpy that calls itself too old for it."""
    preinstalled = tmp_path / "preinstalled"
    preinstalled.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix == ".pth" or "ebmlib" in entry.name or entry.name == "__pycache__":
            continue
        if not (entry.name.startswith("numpy-") and entry.suffix == ".dist-info"):
            (preinstalled / entry.name).symlink_to(entry)
    old = preinstalled / "numpy-1.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env"))
    (site_packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site_packages / "preinstalled.pth").write_text(f"{preinstalled}\n")
    return tmp_path / "env" / "bin" / "python"


@pytest.fixture
def clone(tmp_path):
    """A clone of what the repository holds of ebmlib, as it stands in the working tree, on a branch `main`."""
    clone = tmp_path / "clone"
    git = ["git", f"--git-dir={clone}/.git", f"--work-tree={ROOT}", "-c", "user.name=x", "-c", "user.email=x@x"]
    run("git", "init", "-q", "-b", "main", str(clone))
    run(*git, "-C", str(ROOT), "add", "ebmlib", "pyproject.toml", "README.md", "LICENSE")
    run(*git, "commit", "-q", "-m", "x")
    return clone


def install(python, clone, cell):
    """Run a cell as IPython does; git takes the clone for the published repository, and there is no package index."""
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "IPYTHONDIR": str(python.parent),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{clone}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository(),
    }
    # All that differs from the notebook: setuptools and what is pinned are taken as they are here.
    cell = re.sub(r"==\S+", "", cell.replace("%pip install", "%pip install --no-build-isolation"))
    return run(str(python), "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", cell, **settings)


def test_the_install_cell_adds_ebmlib_and_touches_nothing_else(python, clone):
    (site_packages,) = python.parents[1].glob("lib/python*/site-packages")
    had, before = {path.name for path in site_packages.iterdir()}, run(str(python), "-c", STATE)
    printed = install(python, clone, install_cell())
    added = {path.name for path in site_packages.iterdir()} - had
    assert {name.partition("-")[0] for name in added} == {"ebmlib"}, f"{printed}\nit added {added}"
    assert run(str(python), "-c", STATE) == before, "torch or numpy has changed"
    provenance, _, used = run(str(python), "-c", USE).rpartition("USE ")
    where, *modules = used.split()
    results = list((ROOT / "ebmlib" / "data" / "results").glob("*.json"))
    assert provenance.count("s of CPU") == len(results) > 0, "what benchmarks gave is there without the repository"
    assert "not here to compare: tests/benchmarks/" in provenance
    assert Path(where).parent == site_packages / "ebmlib"
    assert modules == sorted(path.stem for path in (ROOT / "ebmlib").glob("*.py") if path.stem != "__init__")
    assert install(python, clone, install_cell()) == "", "where ebmlib is there, the cell does nothing"


def test_without_no_deps_the_install_cell_would_reach_for_numpy(python, clone):
    printed = install(python, clone, install_cell().replace(" --no-deps", ""))
    assert "No matching distribution found for numpy" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_install_cell_is_not_on_the_page_and_is_in_the_download(path, built):
    text = (built / "html" / "notebooks" / f"{path.stem}.html").read_text("utf-8")
    assert "find_spec" not in text and "%pip" not in text
    assert f'href="../_sources/notebooks/{path.name}"' in text
    download = nbformat.read(built / "html" / "_sources" / "notebooks" / path.name, as_version=4)
    assert any(cell.source == install_cell() for cell in download.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_opens_its_notebook_on_colab_and_binder(path, built):
    slug = repository().removeprefix("https://github.com/")
    text = (built / "html" / "notebooks" / f"{path.stem}.html").read_text("utf-8")
    assert f'href="https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}"' in text
    assert f'href="https://mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/notebooks/{path.name}"' in text
