"""Conditional distributions against those of a Gaussian, in double precision."""

import math

import pytest
import torch
from torch.distributions import Normal

from ebmlib.conditional import conditional_log_prob, grid_quantiles, held, marginal
from ebmlib.energies import GaussianEnergy, GaussianMixtureEnergy, energy_and_grad, evaluate, score
from ebmlib.networks import MLPEnergy
from ebmlib.samplers import MALA, trace

F64 = torch.float64
COVARIANCE = torch.tensor([[1.0, 0.6, 0.2], [0.6, 1.5, -0.4], [0.2, -0.4, 0.8]], dtype=F64)
ENERGY = GaussianEnergy(torch.tensor([0.5, -1.0, 2.0], dtype=F64), COVARIANCE, offset=3.0)
X = ENERGY.sample((20,), torch.Generator().manual_seed(0))


def truth(x: torch.Tensor, missing: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and covariance of the missing coordinates given the others, in closed form."""
    known = [i for i in range(3) if i not in missing]
    gain = COVARIANCE[missing][:, known] @ COVARIANCE[known][:, known].inverse()
    mean = ENERGY.mean[missing] + (x[:, known] - ENERGY.mean[known]) @ gain.T
    return mean, COVARIANCE[missing][:, missing] - gain @ COVARIANCE[known][:, missing]


@pytest.mark.parametrize("column", [0, 1, 2])
def test_line_and_its_quantiles_are_the_closed_form(column):
    points = torch.linspace(-12, 12, 4001, dtype=F64)
    mean, covariance = truth(X, [column])
    normal = Normal(mean[:, 0], covariance[0].sqrt())
    log_p = conditional_log_prob(ENERGY, X, column, points)
    torch.testing.assert_close(log_p, normal.log_prob(points[:, None]).T, rtol=0, atol=1e-7)
    levels = [0.001, 0.05, 0.5, 0.95, 0.999]
    expected = normal.icdf(torch.tensor(levels, dtype=F64)[:, None]).T
    torch.testing.assert_close(grid_quantiles(points, log_p, levels), expected, rtol=0, atol=1e-4)


def test_quantiles_of_an_uneven_grid():
    """A uniform density on (0, 4) is exact on any grid."""
    points = torch.tensor([0.0, 0.5, 3.0, 4.0], dtype=F64)
    quantiles = grid_quantiles(points, torch.full((2, 4), -math.log(4), dtype=F64), [0.1, 0.5, 0.9])
    torch.testing.assert_close(quantiles, torch.tensor([[0.4, 2.0, 3.6]] * 2, dtype=F64))


def test_the_line_ignores_what_stands_in_its_column():
    points = torch.linspace(-5, 5, 11, dtype=F64)
    gone = X.clone()
    gone[:, 1] = torch.nan
    assert torch.equal(conditional_log_prob(ENERGY, gone, 1, points), conditional_log_prob(ENERGY, X, 1, points))


@pytest.mark.parametrize("by_row", [False, True])
def test_chains_on_the_held_energy_draw_the_conditional(by_row):
    missing = torch.tensor([True, False, True])
    row = X[:1].clone()
    row[:, missing] = torch.nan
    energy = held(ENERGY, row, missing.expand_as(row) if by_row else missing)
    start = torch.zeros(400, 3, dtype=F64)
    draws = trace(MALA(0.15), energy, start, 200, generator=torch.Generator().manual_seed(1)).x[100:]
    mean, covariance = truth(X[:1], [0, 2])
    by_chain = draws[..., missing].mean(0)
    z = (by_chain.mean(0) - mean[0]) / (by_chain.std(0) / math.sqrt(400))
    assert z.abs().max() < 4.5, f"z = {z}: a false alarm has chance 1.4e-5"
    torch.testing.assert_close(torch.cov(draws[..., missing].flatten(0, 1).T), covariance, rtol=0.1, atol=0.03)


def test_each_block_holds_its_own_rows():
    missing = torch.zeros(20, 3, dtype=torch.bool)
    missing[::2, 0], missing[1::2, 2] = True, True
    v = torch.randn(60, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    completed = torch.cat([torch.where(missing, block, X) for block in v.chunk(3)])
    torch.testing.assert_close(held(ENERGY, X, missing)(v), ENERGY(completed))


def test_marginal_of_a_mixture_with_its_labels_is_the_mixture():
    """With E(x, y) = -log w_y - log p(x|y) the sum over y is the mixture, and p(y|x) is Bayes' rule."""
    truth = GaussianMixtureEnergy(
        torch.tensor([[-1.0, 0.0], [1.5, 0.5]], dtype=F64), 0.6, torch.tensor([1.0, 3.0], dtype=F64)
    )
    x = truth.sample((100,), torch.Generator().manual_seed(0))
    squared = (x[:, None] - truth.means).square().sum(-1)
    energy_xy = squared / (2 * truth.std**2) - truth.weights.log()
    energy_x = marginal(lambda _: energy_xy)(x)
    torch.testing.assert_close(energy_x, truth(x), rtol=0, atol=1e-12)
    torch.testing.assert_close((energy_x[:, None] - energy_xy).exp().sum(1), torch.ones(100, dtype=F64))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 0), (3, 4, 1)])
def test_marginal_names_the_shape_of_energies_without_a_class_axis(shape):
    with pytest.raises(ValueError, match=r"must be \(3, n_classes\); got \(" + str(shape[0])):
        marginal(lambda x: torch.zeros(shape))(torch.zeros(3, 2))


def test_bad_input_is_named():
    missing, points = torch.tensor([True, False, False]), torch.linspace(-1, 1, 5, dtype=F64)
    with pytest.raises(ValueError, match=r"boolean, \(3,\) or \(20, 3\); got torch.int64 \(3,\)"):
        held(ENERGY, X, torch.tensor([1, 0, 0]))
    with pytest.raises(ValueError, match=r"got torch.bool \(2,\)"):
        held(ENERGY, X, missing[:2])
    gone = X.clone()
    gone[4, 1] = torch.nan
    with pytest.raises(ValueError, match="column 1 of row 4 is nan, and not said to be missing"):
        held(ENERGY, gone, missing)
    with pytest.raises(ValueError, match=r"a multiple of 20, 3\); got \(30, 3\)"):
        held(ENERGY, X, missing)(torch.zeros(30, 3, dtype=F64))
    with pytest.raises(ValueError, match="points must increase"):
        conditional_log_prob(ENERGY, X, 0, points.flip(0))
    with pytest.raises(ValueError, match=r"row 0 of 100 is nan"):
        conditional_log_prob(lambda x: x[:, 0] * torch.nan, X, 0, points)
    log_p = conditional_log_prob(ENERGY, X, 0, points)
    with pytest.raises(ValueError, match=r"between 0 and 1; got \[0.5, 1.0\]"):
        grid_quantiles(points, log_p, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"got \(20, 5\), \(4,\)"):
        grid_quantiles(points[:4], log_p, [0.5])


def test_integers_are_refused_and_points_have_the_dtype_of_x():
    missing, points = torch.tensor([True, False, False]), torch.linspace(-1, 1, 5, dtype=F64)
    with pytest.raises(ValueError, match=r"floating point, .*got torch.int64 \(20, 3\)"):
        conditional_log_prob(ENERGY, X.long(), 0, points)
    with pytest.raises(ValueError, match=r"floating point, .*got torch.int64 \(20, 3\)"):
        held(ENERGY, X.long(), missing)
    for bad in (torch.arange(5), points.float()):
        with pytest.raises(ValueError, match=f"dtype of x, torch.float64; got {bad.dtype}"):
            conditional_log_prob(ENERGY, X, 0, bad)


def test_empty_batches_are_named():
    missing, points = torch.tensor([True, False, False]), torch.linspace(-1, 1, 5, dtype=F64)
    for call in (lambda x: held(ENERGY, x, missing), lambda x: conditional_log_prob(ENERGY, x, 0, points)):
        with pytest.raises(ValueError, match=r"at least one row; got torch.float64 \(0, 3\)"):
            call(X[:0])
        with pytest.raises(ValueError, match=r"at least one row; got torch.float64 \(3,\)"):
            call(X[0])


def test_several_energies_a_row_are_an_error():
    several, points = MLPEnergy(3, (4,), n_out=2).double(), torch.linspace(-1, 1, 5, dtype=F64)
    energy = held(several, X, torch.tensor([True, False, False]))
    for call in (
        energy,
        lambda x: score(energy, x),
        lambda x: energy_and_grad(energy, x),
        lambda x: evaluate(energy, x),
    ):
        with pytest.raises(ValueError, match=r"must return shape \(20,\), one value a row; got \(20, 2\)"):
            call(X)
    with pytest.raises(ValueError, match=r"one value a row; got \(100, 2\)"):
        conditional_log_prob(several, X, 0, points)


def test_no_graph_and_no_other_device():
    x = X.clone().requires_grad_()
    points = torch.linspace(-9, 9, 301, dtype=F64, requires_grad=True)
    with torch.device("meta"):
        log_p = conditional_log_prob(ENERGY, x, 0, points)
        medians = grid_quantiles(points.detach(), log_p, [0.5])
        e = held(ENERGY, X, torch.tensor([True, False, False], device="cpu"))(X)
    assert not log_p.requires_grad
    assert {t.device.type for t in (log_p, medians, e)} == {"cpu"}
    torch.testing.assert_close(e, ENERGY(X), rtol=0, atol=0)


def test_densities_without_a_number_or_a_mass_have_no_quantiles():
    points, log_p = torch.linspace(0, 4, 5, dtype=F64), torch.full((3, 5), -math.log(4), dtype=F64)
    for bad, named in ((math.nan, "nan"), (math.inf, "inf")):
        log_p[1, 2] = bad
        with pytest.raises(ValueError, match=f"row 1 sum to {named}"):
            grid_quantiles(points, log_p, [0.5])
    log_p[1] = -math.inf
    with pytest.raises(ValueError, match=r"row 1 sum to 0\.0"):
        grid_quantiles(points, log_p, [0.5])
    with pytest.raises(ValueError, match="points must increase"):
        grid_quantiles(points.flip(0), log_p[:1], [0.5])
    for ends in ((math.nan, 4.0), (0.0, math.inf)):
        points[0], points[-1] = ends
        with pytest.raises(ValueError, match="points must increase"):
            conditional_log_prob(ENERGY, X, 0, points)
