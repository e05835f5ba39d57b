"""What a results file says of its origin: command, commit, date, versions, and hashes of the files it was made from."""

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "ebmlib" / "data" / "results"  # they travel in the wheel, so that notebooks find them anywhere


def provenance(
    command: str,
    inputs: Sequence[str],
    packages: Sequence[str] = ("torch", "numpy"),
    others: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Return the origin of a run that starts now; `dirty` says whether an input differs from the commit.

    Args:
        command: what was typed.
        inputs: files of the repository that the results depend on, relative to its root.
        packages: whose versions to record.
        others: files from elsewhere whose hashes to record, by a name without a path.
    """
    files = {name: ROOT / name for name in inputs} | dict(others or {})

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {
        "command": command,
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--", *inputs)),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one thread a process",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
    }
