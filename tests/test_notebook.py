"""What a notebook gets from its host."""

import builtins

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
