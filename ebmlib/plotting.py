"""Pictures of energies. Each takes an `ax`, returns it and never calls `show()`; low energy is dark everywhere."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
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
        "legend.frameon": False,
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
        low: lower left corner; a tensor fixes the device.
        high: upper right corner.
        ax: axes to draw on.
        span: nats shown; what is higher takes the last colour.
        n_points: grid points along each axis.
    """
    device = low.device if isinstance(low, Tensor) else None
    axes = [torch.linspace(float(a), float(b), n_points, device=device) for a, b in zip(low, high, strict=True)]
    grid = torch.cartesian_prod(*axes)
    with torch.no_grad():
        e = energy(grid).reshape(n_points, n_points).T.cpu()
    levels = torch.linspace(0, span, 11).tolist()
    filled = ax.contourf(axes[0].cpu(), axes[1].cpu(), e - e.min(), levels=levels, extend="max")
    ax.figure.colorbar(filled, ax=ax, label="energy above its lowest (nats)", format="%g")
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    ax.grid(False)
    return ax


def energy_histogram(energies: Mapping[str, Tensor], ax: "Axes", n_bins: int = 50) -> "Axes":
    """Draw one histogram for each named set of energies, over common bins.

    Args:
        energies: energies `(n,)` in nats by name; the names of `COLORS` get their colours.
        ax: axes to draw on.
        n_bins: number of bins over the common range.
    """
    together = torch.cat([e.detach().flatten().cpu() for e in energies.values()])
    bins = torch.linspace(float(together.min()), float(together.max()), n_bins + 1).tolist()
    for name, e in energies.items():
        ax.hist(e.detach().cpu().numpy(), bins, density=True, alpha=0.55, label=name, color=COLORS.get(name))
    ax.set(xlabel="energy (nats)", ylabel="density")
    ax.legend()
    return ax


def image_grid(images: Tensor, ax: "Axes", n_columns: int = 8) -> "Axes":
    """Draw grey images side by side, row by row, on one common scale: the highest value is dark.

    Args:
        images: shape `(n, height, width)`.
        ax: axes to draw on; its frame goes.
        n_columns: images a row.

    Raises:
        ValueError: if there is no image, the shape is another, or `n_columns` is below 1.
    """
    if images.ndim != 3 or len(images) == 0 or n_columns < 1:
        raise ValueError(
            f"images must be (n, height, width), n_columns positive; got {tuple(images.shape)}, {n_columns}"
        )
    images = images.detach().float().cpu()
    n, height, width = images.shape
    n_columns = min(n_columns, n)
    n_rows = -(-n // n_columns)
    sheet = torch.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1), torch.nan)
    for i, image in enumerate(images):
        top, left = i // n_columns * (height + 1), i % n_columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    ax.imshow(sheet.numpy(), cmap="gray_r", interpolation="none")
    ax.set_axis_off()
    return ax


def trajectories(x: Tensor, ax: "Axes", color: str = "white") -> "Axes":
    """Draw the paths of chains in the plane, an open circle where each begins and a dot where it ends.

    Args:
        x: states, shape `(n_draws, n_chains, 2)`, as `trace(...).x` has them.
        ax: axes to draw on, such as those of `energy_contours`.
        color: of the paths.
    """
    path = x.detach().cpu()
    ax.plot(path[..., 0], path[..., 1], color=color, lw=0.8, alpha=0.8)
    ax.plot(*path[0].T, "o", color=color, mfc="none", ms=6)
    ax.plot(*path[-1].T, "o", color=color, mec=INK, ms=6)
    return ax


def embedding(x: Mapping[str, Tensor], reducer: Any, ax: "Axes") -> "Axes":
    """Draw several sets of states in the plane that one reducer, fitted to all of them together, puts them in.

    Args:
        x: states `(n, dim)` by name; the names of `COLORS` get their colours.
        reducer: has `fit_transform(array) -> (n, 2)`, as scikit-learn's `PCA(2)` and `TSNE(2)` do.
        ax: axes to draw on.

    Raises:
        ValueError: if the sets differ in dimension.
    """
    widths = {name: tuple(v.shape[1:]) for name, v in x.items()}
    if len(set(widths.values())) != 1:
        raise ValueError(f"all sets must have one dimension; got {widths}")
    together = torch.cat([v.detach().cpu().double() for v in x.values()])
    points = torch.as_tensor(reducer.fit_transform(together.numpy())).split([len(v) for v in x.values()])
    for name, xy in zip(x, points, strict=True):
        ax.plot(*xy.T, ".", ms=3, alpha=0.6, color=COLORS.get(name), label=name, rasterized=len(together) > 3000)
    ax.set(xlabel="first coordinate", ylabel="second coordinate")
    ax.legend(markerscale=3)
    return ax
