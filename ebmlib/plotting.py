"""Pictures of energies. Each takes an `ax`, returns it and never calls `show()`; low energy is dark everywhere."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from cycler import cycler
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .energies import Energy

# Colour-blind-safe (Okabe and Ito): what a colour means never changes within the book.
COLORS = {"data": "#0072b2", "model": "#d55e00", "noise": "#009e73", "truth": "#24292f"}
INK, PAPER = "#24292f", "#fefefe"  # the site recolours exactly these two to follow its theme


def use_style() -> None:
    """Set the style of the book's figures, for the whole session."""
    style: dict[Any, Any] = {
        "figure.figsize": (6.0, 3.4),
        "figure.constrained_layout.use": True,
        "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "axes.facecolor": "none",
        "axes.prop_cycle": cycler(color=[*list(COLORS.values())[:3], "#cc79a7", "#e69f00", "#56b4e9"]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.alpha": 0.15,
        **{"legend.facecolor": PAPER, "legend.framealpha": 1, "legend.edgecolor": "0.6"},  # no marker of its seems data
        "font.size": 10,
        "image.cmap": "viridis",
        "lines.linewidth": 1.8,
        "svg.hashsalt": "ebmlib",  # equal figures are equal files
    }
    inked = "text.color axes.labelcolor axes.edgecolor xtick.color ytick.color grid.color patch.edgecolor".split()
    mpl.rcParams.update(style | dict.fromkeys(inked, INK))


def energy_contours(
    energy: "Energy", low: Sequence[float], high: Sequence[float], ax: "Axes", span: float = 10.0, n_points: int = 60
) -> "Axes":
    """Draw filled contours of a 2-D energy, from its lowest value on the grid to `span` nats above.

    Args:
        energy: callable `(batch, 2) -> (batch,)`.
        low: lower left corner; a tensor, here or in `high`, fixes the device, and the precision if it has floats.
        high: upper right corner.
        ax: axes to draw on.
        span: nats shown; what is higher takes the last colour.
        n_points: grid points along each axis.

    Raises:
        ValueError: if `low` is not below `high`, `span` or `n_points` is too small, or the energy returns another
            shape, a NaN or an infinite value.
    """
    corners = (corner.tolist() if isinstance(corner, Tensor) else corner for corner in (low, high))
    sides = [(float(a), float(b)) for a, b in zip(*corners, strict=True)]
    if len(sides) != 2 or not all(-math.inf < a < b < math.inf for a, b in sides):
        raise ValueError(f"low and high must be two corners, low below high; got {low}, {high}")
    if not 0 < span < math.inf or n_points < 2:
        raise ValueError(f"span must be positive and n_points at least 2; got {span}, {n_points}")
    tensors: list[Any] = [corner for corner in (low, high) if isinstance(corner, Tensor)]
    device = tensors[0].device if tensors else None
    dtype = next((corner.dtype for corner in tensors if corner.is_floating_point()), None)
    grid = torch.cartesian_prod(*(torch.linspace(*side, n_points, device=device, dtype=dtype) for side in sides))
    with torch.no_grad():
        e = energy(grid)
    if e.shape != (len(grid),):
        raise ValueError(f"energy must return shape ({len(grid)},) for {len(grid)} points; got {tuple(e.shape)}")
    if not torch.isfinite(e).all():
        point = int(torch.nonzero(~torch.isfinite(e))[0])
        raise ValueError(f"the energy at {grid[point].tolist()} is {e[point].item()}: it cannot be drawn")
    x, y, height = (_finite(a, "").reshape(n_points, n_points).T for a in (*grid.T, e))
    filled = ax.contourf(x, y, height - height.min(), levels=np.linspace(0, span, 11), extend="max")
    ax.figure.colorbar(filled, ax=ax, label="energy above its lowest (nats)", format="%g")
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    ax.grid(False)
    return ax


def energy_histogram(energies: Mapping[str, Tensor], ax: "Axes", n_bins: int = 50) -> "Axes":
    """Draw one histogram for each named set of energies, over common bins.

    Args:
        energies: energies `(n,)` in nats by name; the names of `COLORS` get their colours.
        ax: axes to draw on.
        n_bins: number of bins over the common range; where all energies are equal, the range is a nat wide.

    Raises:
        ValueError: if there is no set or no bin, or a set is empty, of another shape or not finite.
    """
    if not energies or n_bins < 1 or any(e.ndim != 1 or len(e) == 0 for e in energies.values()):
        shapes = {name: tuple(e.shape) for name, e in energies.items()}
        raise ValueError(f"energies must be (n,), not empty, and n_bins positive; got {shapes}, {n_bins}")
    checked = {name: _finite(e, f"energies of {name!r}, row ") for name, e in energies.items()}
    low, high = (float(pick([pick(e) for e in checked.values()])) for pick in (np.min, np.max))
    bins = np.linspace(low, high, n_bins + 1)
    if not (np.diff(bins) > 0).all():  # equal, or apart by rounding alone: bins of no width would show nothing
        half = max(0.5, 1e-9 * abs(low))
        bins = np.linspace(low - half, high + half, n_bins + 1)
    for name, e in checked.items():
        ax.hist(e, bins.tolist(), density=True, alpha=0.55, label=name, color=COLORS.get(name))
    ax.set(xlabel="energy (nats)", ylabel="density")
    ax.legend()
    return ax


def image_grid(images: Tensor, ax: "Axes", n_columns: int = 8, titles: Sequence[str] = ()) -> "Axes":
    """Draw grey images side by side, row by row, on one common scale: the highest value is dark, a single one grey.

    Args:
        images: shape `(n, height, width)`.
        ax: axes to draw on; its frame goes.
        n_columns: images a row.
        titles: of the columns, one each, or none at all.

    Raises:
        ValueError: if a shape is another, there is no pixel or no column, a value is not finite, or a title is missing.
    """
    if images.ndim != 3 or images.numel() == 0 or n_columns < 1:
        got = f"{tuple(images.shape)}, {n_columns}"
        raise ValueError(f"images must be (n, height, width), n_columns positive; got {got}")
    values = _finite(images, "image, row, column ")
    n, height, width = values.shape
    n_columns = min(n_columns, n)
    if len(titles) not in (0, n_columns):
        raise ValueError(f"{n_columns} columns need as many titles, or none; got {list(titles)}")
    n_rows = -(-n // n_columns)
    sheet = np.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1), np.nan)
    for i, image in enumerate(values):
        top, left = i // n_columns * (height + 1), i % n_columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    shown = ax.imshow(sheet, cmap="gray_r", interpolation="none")
    if values.min() == values.max():
        shown.set_clim(values.min() - 1, values.max() + 1)
    for i, title in enumerate(titles):
        ax.text(i * (width + 1) + (width - 1) / 2, -1, title, ha="center", va="bottom")
    ax.set_axis_off()
    return ax


def trajectories(x: Tensor, ax: "Axes", color: str = "white") -> "Axes":
    """Draw the paths of chains in the plane, an open circle where each begins and a dot where it ends.

    Args:
        x: states, shape `(n_draws, n_chains, 2)`, as `trace(...).x` has them.
        ax: axes to draw on, such as those of `energy_contours`.
        color: of the paths.

    Raises:
        ValueError: if there is no state, the shape is another, or a value is not finite.
    """
    if x.ndim != 3 or x.shape[2] != 2 or x.numel() == 0:
        raise ValueError(f"x must be (n_draws, n_chains, 2) and not empty; got {tuple(x.shape)}")
    path = _finite(x, "draw, chain, coordinate ")
    ax.plot(path[..., 0], path[..., 1], color=color, lw=0.8, alpha=0.8)
    ax.plot(*path[0].T, "o", color=color, mfc="none", ms=6)
    ax.plot(*path[-1].T, "o", color=color, mec="#222222", ms=6)
    return ax


def embedding(x: Mapping[str, Tensor], reducer: Any, ax: "Axes") -> "Axes":
    """Draw several sets of states in the plane that one reducer, fitted to all of them together, puts them in.

    Args:
        x: states `(n, dim)` by name; the names of `COLORS` get their colours.
        reducer: has `fit_transform(array) -> (n, 2)`, as scikit-learn's `PCA(2)` and `TSNE(2)` do.
        ax: axes to draw on.

    Raises:
        ValueError: if the sets differ in dimension, one is empty or not finite, or the reducer returns another shape.
    """
    shapes = {name: tuple(v.shape) for name, v in x.items()}
    if len({shape[1:] for shape in shapes.values()}) != 1 or any(len(s) != 2 or 0 in s for s in shapes.values()):
        raise ValueError(f"all sets must be (n, dim) of one dimension, and not empty; got {shapes}")
    together = np.concatenate([_finite(v, f"{name!r}, row, column ") for name, v in x.items()])
    points = np.asarray(reducer.fit_transform(together))
    if points.shape != (len(together), 2):
        raise ValueError(f"the reducer must return ({len(together)}, 2); got {points.shape}")
    for name, xy in zip(x, np.split(points, np.cumsum([len(v) for v in x.values()])[:-1]), strict=True):
        ax.plot(*xy.T, ".", ms=3, alpha=0.6, color=COLORS.get(name), label=name, rasterized=len(together) > 3000)
    ax.set(xlabel="first coordinate", ylabel="second coordinate")
    ax.legend(markerscale=3)
    return ax


def _finite(x: Tensor, name: str) -> np.ndarray:
    """Return what is to be drawn, in double precision, if all of it is finite."""
    if not torch.isfinite(x).all():
        index = torch.nonzero(~torch.isfinite(x))[0].tolist()
        raise ValueError(f"{name}{index} is {x[tuple(index)].item()}: it cannot be drawn")
    return x.detach().cpu().double().numpy()
