"""The front page's figure, made when the site is built: data, the energy learned from them, its density, its draws."""

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.config import Config
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ebmlib.energies import Energy
from ebmlib.losses import noise_contrastive
from ebmlib.networks import Confined, MLPEnergy
from ebmlib.partition import quadrature
from ebmlib.plotting import COLORS, use_style
from ebmlib.toys import Toy, two_moons
from ebmlib.training import train

WINDOW = (-2.0, 2.0)  # what the panels show, in x and in y


class Fit(NamedTuple):
    """An energy trained on draws from a known density, and how far it is from that density."""

    data: Toy
    energy: Energy
    log_z: float
    log_z_error: float
    divergence: float


def fit(n_steps: int = 500) -> Fit:
    """Return an energy trained on two moons by noise contrastive estimation, measured by quadrature."""
    torch.manual_seed(1)
    data, noise = two_moons(std=0.15), Independent(Normal(torch.zeros(2), 1.0), 1)
    network, constant = Confined(MLPEnergy(2, (64, 64)), std=8.0), nn.Parameter(torch.zeros(()))
    adam = torch.optim.Adam([*network.parameters(), constant], lr=0.02)
    batches = (data.sample((256,)) for _ in range(n_steps))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)

    def energy(x: Tensor) -> Tensor:
        return network(4 * x)  # a network of this size learns wide shapes faster than narrow ones

    train(
        lambda x: noise_contrastive(energy, constant, x, noise.sample((1024,)), noise), adam, batches, n_steps, cosine
    )
    log_z = quadrature(energy, [-5.0, -5.0], [5.0, 5.0], n_points=200).value
    fresh = data.sample((20_000,))
    with torch.no_grad():
        divergence = (data.log_prob(fresh) + energy(fresh) + log_z).mean().item()
    return Fit(data, energy, log_z, constant.item() - log_z, divergence)


def grid(energy: Energy, n_points: int) -> tuple[Tensor, Tensor]:
    """Return the centres of n_points² cells of the window along one axis, and the energies there: [row y, column x]."""
    edges = torch.linspace(*WINDOW, n_points + 1)
    centre = (edges[1:] + edges[:-1]) / 2
    with torch.no_grad():
        return centre, energy(torch.cartesian_prod(centre, centre)).reshape(n_points, n_points).T


def draw(energy: Energy, n: int) -> Tensor:
    """Return n draws from exp(-E)/Z in the window: a cell of a fine grid by its share, a uniform place within it."""
    centre, e = grid(energy, 400)
    cell = torch.multinomial(torch.softmax(-e.flatten(), 0), n, replacement=True)
    x = torch.stack([centre[cell % 400], centre[cell // 400]], 1)
    return x + (torch.rand(n, 2) - 0.5) * (centre[1] - centre[0])


def panels(folder: Path, model: Fit, n_draws: int = 400) -> None:
    """Write the four panels, front-data.svg to front-draws.svg. They hold no text, so that any width will do."""

    def points(ax: Axes, x: Tensor, color: str) -> None:
        ax.scatter(*x.T.numpy(), s=16, color=COLORS[color], alpha=0.8, linewidths=0)

    def contours(ax: Axes, values: Tensor, levels: list[float], **kwargs: object) -> None:
        ax.contourf(centre, centre, values, levels=levels, **kwargs)

    centre, e = grid(model.energy, 60)
    density = (-e - model.log_z).exp()
    clear, full = to_rgba(COLORS["model"], 0), to_rgba(COLORS["model"])
    shades = LinearSegmentedColormap.from_list("density", [clear, full])
    top = density.max().item()
    drawings = {
        "data": lambda ax: points(ax, model.data.sample((n_draws,)), "data"),
        "energy": lambda ax: contours(ax, e - e.min(), [float(level) for level in range(0, 13)], extend="max"),
        "density": lambda ax: contours(ax, density, [top * k / 10 for k in range(1, 11)], cmap=shades),
        "draws": lambda ax: points(ax, draw(model.energy, n_draws), "model"),
    }
    with mpl.rc_context():
        use_style()
        for name, onto in drawings.items():
            figure = Figure(figsize=(2.4, 2.4))
            figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01)
            ax = figure.subplots()
            onto(ax)
            ax.set(xlim=WINDOW, ylim=WINDOW, aspect="equal", xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set(visible=True, alpha=0.35, linewidth=0.8)
            figure.savefig(folder / f"front-{name}.svg", metadata={"Date": None})


def make(app: Sphinx, config: Config) -> None:
    """Draw the panels beside the front page and hand it what was measured."""
    model = fit()
    panels(Path(app.srcdir) / "book", model)
    measured = {"kl": f"{model.divergence:.2f}", "log_z_error": f"{abs(model.log_z_error):.3f}"}
    config.myst_substitutions = {**config.myst_substitutions, **measured}


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", make)
    app.add_css_file("front.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
