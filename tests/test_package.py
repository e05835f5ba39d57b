"""The wheel carries every module, the data and the marker of types, byte for byte; so does the sdist, without tests."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "ebmlib").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
NAMES = {path.relative_to(ROOT).as_posix() for path in FILES}
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


def build(kind, source, folder):
    """Return what setuptools built, and hold that it warned of nothing."""
    result = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind), folder], cwd=source, capture_output=True, text=True, check=True
    )
    assert "Warning" not in result.stdout + result.stderr, result.stdout + result.stderr
    (built,) = folder.glob("ebmlib-*")
    return built


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # a copy: the build leaves its traces there
    for name in ("ebmlib", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_has_what_the_wheel_is_built_from_and_no_tests(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    extra = {name for name in names if not name.startswith("ebmlib.egg-info/")} - NAMES
    assert extra == {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert names >= NAMES


def test_the_wheel_is_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in FILES:
            assert archive.read(path.relative_to(ROOT).as_posix()) == path.read_bytes(), (
                f"{path.name} is not the original"
            )
    assert {name.partition("/")[0] for name in names - NAMES} == {wheel.stem.rsplit("-", 3)[0] + ".dist-info"}


def test_types_are_announced(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("ebmlib/py.typed") == b""


def test_what_a_build_leaves_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"/build/", "/dist/", "*.egg-info/", "/.venv/"} <= set(ignored)
