"""The wheel carries every module, the data and the marker of types, byte for byte; so does the sdist, without tests."""

import os
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
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)  # from 3.11.4 on
        archive.extractall(folder)
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


MODULES = ", ".join(path.stem for path in FILES if path.suffix == ".py" and path.stem != "__init__")


@pytest.mark.parametrize(
    ("last", "without", "said"),
    [
        (f"print({MODULES})", None, "Success"),
        ("print(ood.conformal_threshold(None, 'many'))", None, "[arg-type]"),
        ("print(partition.no_such_name)", None, "[attr-defined]"),
        (f"print({MODULES})", "py.typed", "[import-untyped]"),
    ],
)
def test_a_users_script_is_strictly_typed(wheel, tmp_path, last, without, said):
    """mypy reads the types of an installed package only if that announces them; no other package is installed here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site_packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    if without:
        (site_packages / "ebmlib" / without).unlink()
    (tmp_path / "script.py").write_text(f"from ebmlib import {MODULES}\n\n{last}\n", "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", tmp_path / "env" / "bin" / "python"]
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
    result = subprocess.run([*command, "script.py"], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert said in result.stdout, result.stdout + result.stderr


def test_what_a_build_leaves_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"/build/", "/dist/", "*.egg-info/", "/.venv/"} <= set(ignored)
