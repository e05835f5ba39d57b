"""What a results file says of its origin: command, commit, date, versions, and hashes of the files it was made from."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def provenance(command: str, inputs: Sequence[str], packages: Sequence[str] = ("torch", "numpy")) -> dict[str, Any]:
    """Return the origin of a run that starts now; `dirty` says whether an input differs from the commit.

    Args:
        command: what was typed.
        inputs: files of the repository that the results depend on, relative to its root.
        packages: whose versions to record.
    """

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return {
        "command": command,
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--", *inputs)),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one thread a process",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "sha256": {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in inputs},
    }
