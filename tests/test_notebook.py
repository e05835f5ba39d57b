"""What a notebook gets from its host."""

import builtins
import hashlib
import json

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
    notebook.glue("answer", 42)
    assert capsys.readouterr().out == ""


def test_benchmark_results_say_what_changed_since(tmp_path, monkeypatch, capsys):
    kept, moved = tmp_path / "kept.py", tmp_path / "sub" / "moved.py"
    moved.parent.mkdir()
    for path in (kept, moved):
        path.write_text("x = 1\n")
    digest = hashlib.sha256(b"x = 1\n").hexdigest()
    files = {"./kept.py": digest, "sub/moved.py": digest, "elsewhere": "not compared"}
    origin = {"command": "python b.py", "commit": "c0ffee", "date": "2026-01-01", "cpu_seconds": 2.4}
    origin |= {"versions": {"torch": "2.13.0"}, "sha256": files}
    folder = tmp_path / "tests" / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "b.json").write_text(json.dumps({"provenance": origin, "rows": [1]}))
    monkeypatch.chdir(moved.parent)

    assert notebook.benchmark_results("b")["rows"] == [1]
    printed = capsys.readouterr().out
    for said in ("python b.py", "commit c0ffee, 2026-01-01, 2 s of CPU", "torch 2.13.0", "nothing (2 files compared)"):
        assert said in printed
    moved.write_text("x = 2\n")
    notebook.benchmark_results("b")
    assert "changed since: sub/moved.py\n" in capsys.readouterr().out
    kept.unlink()
    notebook.benchmark_results("b")
    assert "changed since: ./kept.py, sub/moved.py\n" in capsys.readouterr().out


def test_benchmark_results_are_none_where_there_is_no_repository(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert notebook.benchmark_results("no_such_benchmark") is None
    assert "No clone of the repository" in capsys.readouterr().out
