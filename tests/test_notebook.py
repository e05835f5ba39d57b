"""What a notebook gets from its host."""

import builtins
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")

from ebmlib import notebook  # noqa: E402


@pytest.fixture(autouse=True)
def threads_and_style():
    n_threads = torch.get_num_threads()
    with mpl.rc_context():
        yield
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(False)


def test_setup_flushes_what_is_too_small_to_be_fast():
    small, supported = torch.full((9,), 2e-38), torch.set_flush_denormal(True)  # the least normal number is 1.2e-38
    torch.set_flush_denormal(False)
    assert (small / 8).count_nonzero() == 9
    notebook.setup(seed=0)
    assert (small / 8).count_nonzero() == (0 if supported else 9)
    assert (small / 1.5).count_nonzero() == 9


def test_setup_seeds_and_names_the_device():
    device = notebook.setup(seed=3)
    first = torch.randn(4)
    notebook.setup(seed=3)
    assert torch.equal(first, torch.randn(4))
    assert not torch.equal(first, torch.randn(4))
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert torch.get_num_threads() == 1


def test_progress_passes_everything_through(capsys):
    assert list(notebook.progress(range(5), "steps")) == list(range(5))
    assert capsys.readouterr().err == ""  # nothing to see below two seconds


def test_glue_is_silent_where_there_is_no_book(monkeypatch, capsys):
    real_import = builtins.__import__

    def without_myst_nb(name, *args, **kwargs):
        if name.startswith("myst_nb"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_myst_nb)
    for in_shell in (True, False):
        monkeypatch.setattr(notebook, "_in_shell", lambda in_shell=in_shell: in_shell)
        notebook.glue("answer", 42)
    assert capsys.readouterr().out == ""


SCRIPT = """
import pathlib, sys
from ebmlib import notebook
class Mine:
    pass
here = sys.modules["__main__"]
notebook.setup(0)
notebook.glue("answer", 42)
assert sys.modules["__main__"] is here and here.Mine is Mine, "another module calls itself __main__"
assert "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None, "a shell was started"
import torch
torch.save(Mine(), "m")
assert type(torch.load("m", weights_only=False)) is Mine
"""


@pytest.mark.parametrize("preamble", ["", "import IPython\n", "import matplotlib_inline.backend_inline, myst_nb\n"])
def test_a_plain_script_stays_as_it_was(tmp_path, preamble):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(), work.mkdir()
    (work / "script.py").write_text(preamble + SCRIPT)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("IPYTHON", "JUPYTER", "MPL", "XDG"))}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(Path(notebook.__file__).parents[1])}
    command = [sys.executable, "script.py"]
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr
    assert not [path for path in home.rglob("*") if "ipython" in path.name.lower()]


def test_in_a_shell_figures_are_svg_and_values_are_handed_over(tmp_path):
    code = """
from ebmlib import notebook
import myst_nb
given = []
myst_nb.glue = lambda name, value, display: given.append((name, value, display))
notebook.setup(0)
notebook.glue("answer", 42)
shell = get_ipython()
print(given, [t for t, f in shell.display_formatter.formatters.items() if f.type_printers or f.deferred_printers])
from matplotlib.figure import Figure
print("svg:", Figure in shell.display_formatter.formatters["image/svg+xml"])
"""
    environment = os.environ | {"IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(Path(notebook.__file__).parents[1])}
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "('answer', 42, False)" in result.stdout and "svg: True" in result.stdout, result.stdout


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A place where ebmlib stands beside a `sub/moved.py`, and a results file that knows of these and of others."""
    (tmp_path / "ebmlib" / "data" / "results").mkdir(parents=True)
    monkeypatch.setattr(notebook, "__file__", str(tmp_path / "ebmlib" / "notebook.py"))
    for path in (tmp_path / "ebmlib" / "kept.py", tmp_path / "sub" / "moved.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 1\n")
    digest = hashlib.sha256(b"x = 1\n").hexdigest()
    origin = {"command": "python b.py", "commit": "c0ffee", "date": "2026-01-01", "cpu_seconds": 2.4}
    origin |= {"versions": {"torch": "2.13.0"}}
    origin |= {"sha256": {"ebmlib/kept.py": digest, "sub/moved.py": digest, "elsewhere": "not compared"}}
    (tmp_path / "ebmlib/data/results/b.json").write_text(json.dumps({"provenance": origin, "rows": [1]}))
    return tmp_path


def test_benchmark_results_say_what_changed_since(installed, capsys):
    assert notebook.benchmark_results("b")["rows"] == [1]
    printed = capsys.readouterr().out
    for said in ("python b.py", "commit c0ffee, 2026-01-01, 2 s of CPU", "torch 2.13.0", "nothing (2 files compared)"):
        assert said in printed
    assert "not here" not in printed and "elsewhere" not in printed
    (installed / "sub" / "moved.py").write_text("x = 2\n")
    notebook.benchmark_results("b")
    assert "changed since: sub/moved.py\n" in capsys.readouterr().out


def test_benchmark_results_say_what_they_cannot_compare(installed, capsys):
    (installed / "sub" / "moved.py").unlink()
    notebook.benchmark_results("b")
    printed = capsys.readouterr().out
    assert "changed since: nothing (1 files compared)\nnot here to compare: sub/moved.py\n" in printed


def test_results_that_are_not_there_are_named(installed):
    with pytest.raises(FileNotFoundError, match=r"no_such_benchmark.json is missing; there are \['b'\]. A copy needs"):
        notebook.benchmark_results("no_such_benchmark")
