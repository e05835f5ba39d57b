"""An Ising lattice that lives in the page: spins, a temperature to set, running means beside the exact ones.

The browser draws the spins by heat-bath or cluster sweeps; `lattice.js`, beside this file, is all it runs: no kernel,
no request, no library.
"""

import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .widget import Html

SCRIPT = Path(__file__).with_name("lattice.js")
RANGES = {"energy": (-2.0, 2.0), "abs_magnetisation": (0.0, 1.0), "squared_magnetisation": (0.0, 1.0)}
MOVES = ("heat bath", "clusters")

Values = Mapping[str, Sequence[float] | Tensor]


def ising_lattice(
    side: int,
    temperatures: Sequence[float] | Tensor,
    exact: Values,
    infinite: Values | None = None,
    temperature: float | None = None,
    move: str = "heat bath",
    seed: int = 1,
    label: str = "Live Ising lattice",
) -> Html:
    """Return a live Ising model on a square lattice that closes on itself, with its running means beside exact values.

    The energy is E(s) = -Σ sᵢ sⱼ over the 2 side² pairs of neighbours, s = ±1, and the states have p(s) ∝ exp(-E(s)/T).
    The reader sets T among the given temperatures, so that an exact value stands beside every mean; chooses the sweep,
    one spin after the other by heat bath, or clusters (Swendsen and Wang); starts from equal or from random spins; and
    pauses. Means start anew after each change, 100 sweeps later. Their standard errors are those of 16 to 31 batches:
    too small where a batch is shorter than the chain's memory. The picture changes at most six times a second, so that
    nothing flashes.

    Args:
        side: spins along a side, 3 to 64.
        temperatures: values of T, rising: the positions of the slider.
        exact: means on this lattice, one at each temperature: "energy" (E / side²), "abs_magnetisation" (of the mean
            spin m the absolute value) and "squared_magnetisation" (m²). What is not given has no exact value beside it.
        infinite: the same for the infinite lattice, where the reader is to see both.
        temperature: T at the start: the nearest of the given; the middle one if None.
        move: "heat bath" or "clusters", at the start.
        seed: of the spins and the sweeps, a whole number from 0 to 2³² - 1: it gives the same run in every browser.
        label: name of the picture for a screen reader.

    Raises:
        ValueError: if a setting is out of range, the temperatures do not rise, a quantity is unknown, has another
            number of values than there are temperatures, or one that no lattice has, as an energy that is not a spin's.
        FileNotFoundError: if `lattice.js` is missing, as where this module was copied without it.
    """
    if not SCRIPT.exists():
        raise FileNotFoundError(f"{SCRIPT} is missing: copy ebmlib/lattice.js there, beside the code")
    side, seed = operator.index(side), operator.index(seed)
    if not 3 <= side <= 64 or not 0 <= seed < 2**32 or move not in MOVES:
        raise ValueError(f"side must be 3 to 64, seed 0 to 2**32 - 1, move one of {MOVES}; got {side}, {seed}, {move}")
    ts = _floats(temperatures)
    pairs = list(zip(ts, ts[1:], strict=False))
    if not pairs or not all(0 < a < b < math.inf for a, b in pairs):
        raise ValueError(f"temperatures must be two or more, positive and rising; got {ts}")
    start = ts[len(ts) // 2] if temperature is None else float(temperature)
    if not ts[0] <= start <= ts[-1]:
        raise ValueError(f"temperature must be in [{ts[0]}, {ts[-1]}], as the given ones are; got {start}")
    known, nearest = _values(exact, len(ts)), min(range(len(ts)), key=lambda k: abs(ts[k] - start))
    payload = {
        "side": side,
        "temperatures": ts,
        "exact": known,
        "infinite": _values(infinite or {}, len(ts)),
        "start": nearest,
        "move": move,
        "seed": seed,
        "label": _escape(label),  # the script sets it as HTML
    }
    data = _escape(json.dumps(payload, separators=(",", ":"), allow_nan=False))
    means = ", ".join(f"{name.replace('_', ' ')} {values[nearest]:.4f}" for name, values in known.items())
    said = f"Exact at T = {ts[nearest]:.4g}, a spin: {means}. " if known else ""
    return Html(
        f"<div class=\"ebm-lattice\" data-lattice='{data}'>"
        f"<p>A live Ising lattice of {side} × {side} spins. {said}"
        "It needs JavaScript, and in Jupyter a notebook that is trusted.</p></div>\n"
        f'<script type="module">\n{SCRIPT.read_text("utf-8")}</script>'
    )


def _values(given: Values, n: int) -> dict[str, list[float]]:
    """Return means by quantity as lists, each with one possible value at each of n temperatures."""
    found: dict[str, list[float]] = {}
    for name, values in given.items():
        if name not in RANGES:
            raise ValueError(f"quantities are {sorted(RANGES)}; got {name}")
        found[name] = _floats(values)
        low, high = RANGES[name]
        if len(found[name]) != n or not all(low - 1e-9 <= value <= high + 1e-9 for value in found[name]):
            raise ValueError(f"{name} must have {n} values a spin, in [{low}, {high}]; got {found[name]}")
    return found


def _floats(values: Sequence[float] | Tensor) -> list[float]:
    return [float(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def _escape(text: str) -> str:
    """Return a text that stands for itself in HTML, and in an attribute between quotes of either kind."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;").replace("'", "&#39;")
