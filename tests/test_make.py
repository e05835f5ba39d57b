"""`make` looks at the Python before it makes .venv: it refuses one that is too old, and leaves nothing half made."""

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOWEST = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"].removeprefix(">=")
MINOR = int(LOWEST.removeprefix("3."))

# It runs code as the real one does but for the version, and makes an environment of itself, with a pip that only notes
# what it is asked; where it `fails` it stops half-way, as Debian's does where python3-venv is missing.
FAKE = """#!/bin/sh
set -e
if [ "$1" = -c ]; then exec {real} -c "import sys; sys.version_info = (3, {minor}, 0); $2"; fi
if [ "$2" = ensurepip ]; then
    printf '#!/bin/sh\\necho "$@" >> pip.log\\n' > .venv/bin/pip
    chmod +x .venv/bin/pip
    exit
fi
if [ "$2 $3 $4" != "venv --clear .venv" ]; then exit 2; fi
rm -rf .venv
mkdir -p .venv/bin
cp "$0" .venv/bin/python
{fails}
.venv/bin/python -m ensurepip
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with a space in its name that has what make reads before it runs anything."""
    clone = tmp_path / "a clone"
    clone.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, clone)
    return clone


def fake(path, minor, fails=False):
    """Write a script that passes for Python 3.`minor`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = FAKE.format(real=shlex.quote(sys.executable), minor=minor, fails="echo no ensurepip >&2; exit 1" * fails)
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    return path


def make(clone, *arguments):
    """Run make where `python3` is the one in the clone's folder of commands, and no outer make is heard."""
    path = f"{clone.parent / 'commands'}:/usr/bin:/bin"
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", *(arguments or [".venv/.done"])]
    return subprocess.run(command, cwd=clone, env=clean | {"PATH": path}, capture_output=True, text=True)


def refuses(result, *words):
    """Hold that make ended with one line of ours, beside its own, and that the line has the words."""
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert all(word in line for word in words), line
    return True


def python3(clone, *arguments):
    return fake(clone.parent / "commands" / "python3", *arguments)


@pytest.mark.parametrize("target", ["book", "test", "links", ".venv/.done"])
def test_an_old_python_is_refused_and_leaves_nothing(clone, target):
    before = set(clone.iterdir())
    python3(clone, MINOR - 1)
    assert refuses(make(clone, target), "python3", f"3.{MINOR - 1}", LOWEST, "make PYTHON=")
    assert set(clone.iterdir()) == before
    python3(clone, MINOR)
    assert make(clone).returncode == 0, "the right one still works"


def test_the_lowest_python_makes_the_environment(clone):
    python3(clone, MINOR)
    result = make(clone)
    assert result.returncode == 0, result.stderr
    assert (clone / ".venv" / ".done").exists()
    assert (clone / "pip.log").read_text("utf-8").splitlines() == [
        "install -qq -r requirements.txt",
        "install -qq --no-deps -e .",
    ]


def test_another_python_is_taken_by_its_path(clone):
    python3(clone, MINOR - 1)
    other = fake(clone.parent / "other place" / "python3", MINOR + 1)
    assert make(clone, ".venv/.done", f"PYTHON={other}").returncode == 0
    assert make(clone).returncode == 0, "later calls use the .venv that is there"


def test_a_python_that_is_not_there_is_named(clone):
    assert refuses(make(clone, "book", "PYTHON=/no/where/python3"), "/no/where/python3 is no Python", LOWEST)
    assert not (clone / ".venv").exists()


def test_an_environment_that_cannot_be_made_is_taken_away(clone):
    python3(clone, MINOR, True)
    assert refuses(make(clone), "no ensurepip")
    assert not (clone / ".venv").exists()
    python3(clone, MINOR)
    assert make(clone).returncode == 0


def test_an_environment_of_an_old_python_is_named(clone):
    python3(clone, MINOR)
    fake(clone / ".venv" / "bin" / "python", MINOR - 2)
    assert refuses(make(clone), f".venv/bin/python is Python 3.{MINOR - 2}", LOWEST, "rm -rf .venv")
    shutil.rmtree(clone / ".venv")
    assert make(clone).returncode == 0


@pytest.mark.parametrize("left", ["nothing", "a link to a Python that is gone", "no pip"])
def test_an_environment_that_was_left_half_made_is_finished(clone, left):
    python3(clone, MINOR)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "kept").touch()
    python = clone / ".venv" / "bin" / "python"
    if left == "no pip":
        fake(python, MINOR)
    elif left != "nothing":
        python.symlink_to("/no/where/python3")
        (clone / ".venv" / "bin" / "pip").write_text("#!/no/where/python3\n", "utf-8")
        (clone / ".venv" / "bin" / "pip").chmod(0o755)
    result = make(clone)
    assert result.returncode == 0, result.stderr
    assert (clone / ".venv" / "kept").exists() == (left == "no pip"), "only what cannot be used is made anew"
