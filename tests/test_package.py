"""The wheel carries every module and the data, byte for byte."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_is_whole(tmp_path):
    source = tmp_path / "source"  # a copy: the build leaves its traces there
    shutil.copytree(ROOT / "ebmlib", source / "ebmlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("ebmlib-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in (ROOT / "ebmlib").glob("*.py"):
            assert f"ebmlib/{path.name}" in names
        data = [path for path in (ROOT / "ebmlib" / "data").rglob("*") if path.is_file()]
        assert {path.suffix for path in data} == {".csv", ".json", ".md"}, "wines, results and what they are"
        for path in [*data, ROOT / "ebmlib" / "widget.js"]:
            name = path.relative_to(ROOT).as_posix()
            assert archive.read(name) == path.read_bytes(), f"{path.name} is not the original"
    assert not {name.split("/")[0] for name in names} - {"ebmlib"} - {wheel.stem.rsplit("-", 3)[0] + ".dist-info"}
