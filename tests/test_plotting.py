"""Each function draws on the axes it is given and returns them."""

import math

import matplotlib as mpl
import numpy as np
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


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_contours_name_the_point_of_an_energy_that_is_not_finite(ax, bad):
    def energy(x):
        e = x.square().sum(1)
        e[(x == torch.tensor([1.0, -1.0])).all(1)] = bad
        return e

    with pytest.raises(ValueError, match=rf"the energy at \[1.0, -1.0\] is {bad}"):
        energy_contours(energy, [-2, -2], [2, 2], ax, n_points=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tensors", ["both", "low", "high"])
def test_contours_keep_the_precision_of_the_corners(ax, dtype, tensors):
    seen = []

    def energy(x):
        seen.append(x)
        return net(x)[:, 0]

    net = torch.nn.Linear(2, 1).to(dtype)
    low, high = torch.full((2,), -1 / 3, dtype=dtype), torch.full((2,), 1 / 3, dtype=dtype)
    low = low.tolist() if tensors == "high" else low
    energy_contours(energy, low, high.tolist() if tensors == "low" else high, ax, n_points=3)
    assert seen[0].dtype == dtype
    side = (
        torch.linspace(-1 / 3, 1 / 3, 3, dtype=dtype)
        if tensors != "both"
        else torch.linspace(*map(float, (low[0], high[0])), 3, dtype=dtype)
    )
    assert torch.equal(seen[0], torch.cartesian_prod(side, side))


def test_contours_see_wells_on_a_high_plateau_and_in_half_precision(ax):
    centre = torch.zeros(2, dtype=torch.float64)
    energy_contours(lambda x: 1e9 + (x - centre).square().sum(1), centre - 1, centre + 1, ax, n_points=9)
    high = ax.collections[0].get_paths()
    assert sum(len(path.vertices) > 0 for path in high) > 1, "levels are nats above the lowest, in double precision"
    energy_contours(lambda x: x.square().sum(1), torch.full((2,), -1.0).bfloat16(), [1, 1], ax, n_points=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": [-1, 1]}, "low and high must be two corners"),
        ({"low": [-1, -math.inf]}, "low and high must be two corners"),
        ({"high": [1, math.nan]}, "low and high must be two corners"),
        ({"low": [-1] * 3, "high": [1] * 3}, "low and high must be two corners"),
        ({"span": 0.0}, "span must be positive"),
        ({"span": math.inf}, "span must be positive"),
        ({"n_points": 1}, "n_points at least 2"),
        ({"energy": lambda x: x.sum(1, keepdim=True)}, r"energy must return shape \(3600,\) .* got \(3600, 1\)"),
    ],
)
def test_contours_name_a_wrong_argument(ax, options, message):
    with pytest.raises(ValueError, match=message):
        energy_contours(**{"energy": lambda x: x.sum(1), "low": [-1, -1], "high": [1, 1], "ax": ax} | options)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e8, 1e12])
@pytest.mark.parametrize("n_sets", [1, 2])
def test_equal_energies_are_a_bar_to_be_seen(ax, value, n_sets):
    energies = {f"set {i}": torch.full((7,), value, dtype=torch.float64) for i in range(n_sets)}
    energy_histogram(energies, ax)
    left, right = ax.get_xlim()
    for bars in ax.containers:
        (bar,) = (bar for bar in bars if bar.get_height() > 0)
        assert bar.get_width() > 0.01 * (right - left) and bar.get_height() > 0.9 * ax.get_ylim()[1]
        assert bar.get_x() <= value <= bar.get_x() + bar.get_width()
        assert bar.get_width() * bar.get_height() == pytest.approx(1)


@pytest.mark.parametrize("offset, width", [(-1e6, 1e-3), (1e9, 1e-4), (0.0, 1e-12)])
def test_energies_close_together_keep_their_shape(ax, offset, width):
    energies = offset + width * torch.linspace(0, 1, 1001, dtype=torch.float64)
    energy_histogram({"data": energies}, ax, n_bins=10)
    heights = np.array([bar.get_height() for bar in ax.containers[0]])
    assert heights == pytest.approx(1 / (energies.max() - energies.min()).item(), rel=0.05)
    energy_histogram(
        {"data": torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))]).double() + 1e15}, ax
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_histogram_names_what_it_cannot_draw(ax, bad):
    with pytest.raises(ValueError, match=rf"energies of 'model', row \[2\] is {bad}"):
        energy_histogram({"data": torch.zeros(3), "model": torch.tensor([0.0, 1.0, bad])}, ax)
    for energies in (
        {},
        {"data": torch.empty(0)},
        {"data": torch.zeros(3, 1)},
        {"data": torch.zeros(3), "b": torch.empty(0)},
    ):
        with pytest.raises(ValueError, match=r"energies must be \(n,\), not empty"):
            energy_histogram(energies, ax)
    with pytest.raises(ValueError, match="n_bins positive"):
        energy_histogram({"data": torch.zeros(3)}, ax, n_bins=0)


def test_style_uses_set_its_colour(ax):
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


def test_image_grid_keeps_faint_contrast_and_shows_a_constant_as_grey(ax):
    images = 1e9 + torch.arange(4.0, dtype=torch.float64).reshape(1, 2, 2)
    image_grid(images, ax)
    assert len(np.unique(ax.images[0].get_array())) == 4
    image_grid(torch.full((2, 3, 3), 5.0), ax)
    assert ax.images[1].norm(5.0) == 0.5


def test_image_grid_puts_a_title_over_the_middle_of_each_column(ax):
    image_grid(torch.arange(5 * 2 * 3.0).reshape(5, 2, 3), ax, n_columns=2, titles=["a", "b"])
    sheet = ax.images[0].get_array()
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [("a", 1), ("b", 5)]
    assert all(text.get_position()[1] < -0.5 and text.get_va() == "bottom" for text in ax.texts), "above the images"
    assert not sheet.mask[:, [0, 1, 2, 4, 5, 6]].all(0).any() and sheet.mask[:, 3].all()
    with pytest.raises(ValueError, match=r"2 columns need as many titles, or none; got \['a'\]"):
        image_grid(torch.zeros(5, 2, 3), ax, n_columns=2, titles=["a"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_pixel_that_is_not_finite_is_named(ax, bad):
    images = torch.zeros(3, 4, 5)
    images[1, 2, 3] = bad
    with pytest.raises(ValueError, match=rf"image, row, column \[1, 2, 3\] is {bad}"):
        image_grid(images, ax)


@pytest.mark.parametrize("shape, n_columns", [((4, 4), 2), ((0, 2, 2), 2), ((2, 0, 2), 2), ((3, 2, 2), 0)])
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


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (5, 3, 3), (5, 2), (5,)])
def test_trajectories_refuse_what_are_not_paths(ax, shape):
    with pytest.raises(ValueError, match=r"x must be \(n_draws, n_chains, 2\)"):
        trajectories(torch.zeros(shape), ax)


def test_a_path_that_is_not_finite_is_named(ax):
    x = torch.zeros(5, 3, 2)
    x[4, 1, 0] = math.nan
    with pytest.raises(ValueError, match=r"draw, chain, coordinate \[4, 1, 0\] is nan"):
        trajectories(x, ax)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.float64])
def test_everything_is_drawn_in_any_precision_whatever_the_default_device_is(ax, dtype):
    g = torch.Generator().manual_seed(0)
    x = (10 * torch.randn(12, 3, 2, generator=g)).to(dtype)
    corner = torch.full((2,), 2.0)
    with torch.device("meta"):
        energy_contours(lambda x: x.square().sum(1), -corner, corner, ax, n_points=5)
        energy_histogram({"data": x[:, 0, 0], "model": x[:, 0, 1].double()}, ax)
        image_grid(x, ax)
        trajectories(x, ax)
        embedding({"data": x[:, 0], "model": x[:, 1]}, FirstTwo(), ax)
    assert (ax.images[0].get_array()[:3, :2] == x[0].double().numpy()).all()


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


def test_embedding_names_what_it_cannot_draw(ax):
    x = torch.zeros(4, 3)
    for sets in ({}, {"data": x[:0]}, {"data": x, "model": x[:0]}, {"data": x[:, :0]}, {"data": x[0]}):
        with pytest.raises(ValueError, match=r"all sets must be \(n, dim\)"):
            embedding(sets, FirstTwo(), ax)
    x[2, 1] = math.inf
    with pytest.raises(ValueError, match=r"'model', row, column \[2, 1\] is inf"):
        embedding({"data": torch.zeros(4, 3), "model": x}, FirstTwo(), ax)

    class Three:
        def fit_transform(self, x):
            return x

    with pytest.raises(ValueError, match=r"the reducer must return \(4, 2\); got \(4, 3\)"):
        embedding({"data": torch.zeros(4, 3)}, Three(), ax)
