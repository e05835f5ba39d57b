"""What a notebook needs of its host, be it Jupyter, Colab, CI or the book."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from .plotting import use_style

T = TypeVar("T")


def setup(seed: int) -> torch.device:
    """Seed torch, set the book's figure style and return the device to work on: the GPU, where there is one.

    One CPU thread is set: the book's networks are too small to gain from more, and equal runs give equal bits. Numbers
    below 1e-38 (single precision) become zero where the CPU can do so, for gradients that vanish slow it down.
    Figures become SVG where an IPython shell runs; a plain script starts none.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    use_style()
    if _in_shell():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _in_shell() -> bool:
    """Return whether an IPython shell runs; to ask for one would start it, in the place of `__main__`."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def progress(iterable: Iterable[T], label: str = "") -> Iterable[T]:
    """Return the iterable with a progress bar, which shows after two seconds and leaves nothing behind."""
    return tqdm(iterable, desc=label, delay=2, leave=False)


def glue(name: str, value: object) -> None:
    """Hand a value to the book, so that its pages can quote it; outside the book, do nothing."""
    if not _in_shell():
        return
    try:
        from myst_nb import glue as hand_over
    except ImportError:
        return
    hand_over(name, value, display=False)


def benchmark_results(name: str) -> dict[str, Any]:
    """Return what a benchmark of the repository wrote, and print its provenance.

    The provenance ends with the files that differ from what the benchmark read: its figures may differ from what it
    would give now. An installed ebmlib has not all of these files; what cannot be compared is named.

    Args:
        name: of the results file, without its folder and ending, such as `wine_density`.

    Raises:
        FileNotFoundError: if there is no such file, as where this module was copied without it.
    """
    folder = Path(__file__).parent / "data" / "results"
    path = folder / f"{name}.json"
    if not path.exists():
        there = sorted(file.stem for file in folder.glob("*.json"))
        raise FileNotFoundError(
            f"{path} is missing; there are {there}. A copy needs ebmlib/data/results beside the code"
        )
    results = json.loads(path.read_text("utf-8"))
    origin = results["provenance"]
    root = Path(__file__).parents[1]  # of the repository, or the folder that packages are installed into
    known = {file: digest for file, digest in origin["sha256"].items() if "/" in file}  # what else was read is not here
    here = {file: digest for file, digest in known.items() if (root / file).exists()}
    changed = [
        file for file, digest in here.items() if hashlib.sha256((root / file).read_bytes()).hexdigest() != digest
    ]
    print(f"{origin['command']}\ncommit {origin['commit']}, {origin['date']}, {origin['cpu_seconds']:.0f} s of CPU")
    print(", ".join(f"{package} {version}" for package, version in origin["versions"].items()))
    print("changed since:", ", ".join(changed) or f"nothing ({len(here)} files compared)")
    if len(here) < len(known):
        print("not here to compare:", ", ".join(file for file in known if file not in here))
    return results
