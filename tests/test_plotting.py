"""Each function draws on the axes it is given and returns them."""

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from ebmlib.energies import GaussianEnergy  # noqa: E402
from ebmlib.plotting import (  # noqa: E402
    COLORS,
    INK,
    embedding,
    energy_contours,
    energy_histogram,
    image_grid,
    trajectories,
    use_style,
)


@pytest.fixture
def ax():
    with mpl.rc_context():
        use_style()
        figure, ax = plt.subplots()
        yield ax
        plt.close(figure)


def test_contours_put_the_minimum_where_it_is_and_low_energy_dark(ax):
    energy = GaussianEnergy(torch.tensor([1.0, -1.0]), torch.eye(2))
    assert energy_contours(energy, [-3, -3], [3, 3], ax) is ax
    filled = ax.collections[0]
    lowest = filled.get_paths()[0].vertices
    assert abs(lowest[:, 0].mean() - 1) < 0.2 and abs(lowest[:, 1].mean() + 1) < 0.2
    luminance = filled.cmap([0.0, 1.0])[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert luminance[0] < luminance[1]
    assert "nats" in ax.figure.axes[1].get_ylabel()


def test_histogram_gives_each_set_its_colour(ax):
    energies = {"data": torch.randn(100), "model": torch.randn(50, requires_grad=True) + 1}
    assert energy_histogram(energies, ax) is ax
    for container, name in zip(ax.containers, energies, strict=True):
        assert container[0].get_facecolor()[:3] == mpl.colors.to_rgb(COLORS[name])
        area = sum(bar.get_height() * bar.get_width() for bar in container)
        assert area == pytest.approx(1, abs=1e-5)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(energies)


def test_style_uses_one_ink(ax):
    assert {mpl.rcParams[k] for k in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color")} == {INK}


def test_image_grid_places_each_image(ax):
    images = torch.arange(5 * 2 * 3.0).reshape(5, 2, 3)
    assert image_grid(images, ax, n_columns=2) is ax
    sheet = ax.images[0].get_array()
    assert sheet.shape == (8, 7)
    assert (sheet[:2, 4:] == images[1].numpy()).all() and (sheet[6:, :3] == images[4].numpy()).all()
    assert sheet.mask[2].all() and sheet.mask[:, 3].all() and sheet.mask[6:, 4:].all()
    assert ax.images[0].cmap(1.0)[0] < ax.images[0].cmap(0.0)[0], "high is dark"


@pytest.mark.parametrize("shape, n_columns", [((4, 4), 2), ((0, 2, 2), 2), ((3, 2, 2), 0)])
def test_image_grid_refuses_what_is_not_images(ax, shape, n_columns):
    with pytest.raises(ValueError, match="images must be"):
        image_grid(torch.zeros(shape), ax, n_columns)


def test_trajectories_begin_and_end_where_the_chains_do(ax):
    x = torch.randn(20, 3, 2, requires_grad=True)
    assert trajectories(x, ax) is ax
    *paths, begin, end = ax.lines
    assert len(paths) == 3
    for i, line in enumerate(paths):
        assert torch.allclose(torch.tensor(line.get_xydata(), dtype=x.dtype), x[:, i])
    for line, states in ((begin, x[0]), (end, x[-1])):
        assert torch.allclose(torch.tensor(line.get_xydata(), dtype=x.dtype), states)


class FirstTwo:
    """A reducer that shows what it was fitted to."""

    def fit_transform(self, x):
        self.n = len(x)
        return x[:, :2] - x[:, :2].mean(0)


def test_embedding_reduces_all_sets_together(ax):
    x = {"data": torch.randn(30, 5, requires_grad=True), "model": torch.randn(20, 5) + 3}
    reducer = FirstTwo()
    assert embedding(x, reducer, ax) is ax
    assert reducer.n == 50
    shift = torch.cat(list(x.values()))[:, :2].mean(0)
    for line, (name, states) in zip(ax.lines, x.items(), strict=True):
        shown = torch.tensor(line.get_xydata(), dtype=states.dtype)
        assert torch.allclose(shown, states[:, :2] - shift, atol=1e-6)
        assert line.get_color() == COLORS[name]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(x)


def test_embedding_refuses_sets_of_several_dimensions(ax):
    with pytest.raises(ValueError, match="one dimension"):
        embedding({"data": torch.zeros(3, 4), "model": torch.zeros(3, 5)}, FirstTwo(), ax)
