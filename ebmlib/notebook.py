"""What a notebook needs of its host, be it Jupyter, Colab, CI or the book."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from .plotting import use_style

T = TypeVar("T")


def setup(seed: int) -> torch.device:
    """Seed torch, set the book's figure style and return the device to work on: the GPU, where there is one.

    One CPU thread is set: the book's networks are too small to gain from more, and equal runs give equal bits.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    use_style()
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # a plain Python session
        pass
    else:
        set_matplotlib_formats("svg")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def progress(iterable: Iterable[T], label: str = "") -> Iterable[T]:
    """Return the iterable with a progress bar, which shows after two seconds and leaves nothing behind."""
    return tqdm(iterable, desc=label, delay=2, leave=False)


def glue(name: str, value: object) -> None:
    """Hand a value to the book, so that its pages can quote it; outside the book, do nothing."""
    try:
        from myst_nb import glue as hand_over
    except ImportError:
        return
    hand_over(name, value, display=False)


def benchmark_results(name: str) -> dict[str, Any] | None:
    """Return what a benchmark of the repository wrote, and print its provenance; None where no repository is.

    The provenance ends with the files that differ from what the benchmark read: its figures may differ from what it
    would give now.

    Args:
        name: of the results file, without its folder and ending, such as `wine_density`.
    """
    place = Path("tests", "benchmarks", "results", f"{name}.json")
    roots = [Path.cwd(), *Path.cwd().parents, Path(__file__).parents[1]]
    root = next((root for root in roots if (root / place).exists()), None)
    if root is None:
        print("No clone of the repository here: what the benchmark gave is on the page of the book.")
        return None
    results = json.loads((root / place).read_text("utf-8"))
    origin = results["provenance"]

    def has_changed(file: str, digest: str) -> bool:
        path = root / file
        return not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest

    files = {file: digest for file, digest in origin["sha256"].items() if "/" in file}  # what else was read is not here
    changed = [file for file, digest in files.items() if has_changed(file, digest)]
    print(f"{origin['command']}\ncommit {origin['commit']}, {origin['date']}, {origin['cpu_seconds']:.0f} s of CPU")
    print(", ".join(f"{package} {version}" for package, version in origin["versions"].items()))
    print("changed since:", ", ".join(changed) or f"nothing ({len(files)} files compared)")
    return results
