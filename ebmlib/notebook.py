"""What a notebook needs of its host, be it Jupyter, Colab, CI or the book."""

from collections.abc import Iterable
from typing import TypeVar

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
