"""Toys have the density that they claim, and draw from it."""

import math

import pytest
import torch

from ebmlib import toys
from ebmlib.energies import energy_and_grad
from ebmlib.partition import quadrature

F64 = torch.float64
TOYS = {name: getattr(toys, name)() for name in ("eight_gaussians", "rings", "two_moons", "checkerboard")}


@pytest.mark.parametrize("name", ["eight_gaussians", "rings", "two_moons"])
def test_toy_densities_integrate_to_one(name):
    toy = TOYS[name]
    estimate = quadrature(lambda x: -toy.log_prob(x), [-4.5, -4.5], [4.5, 4.5], 500)
    assert abs(estimate.value) < 1e-5  # single precision


@pytest.mark.parametrize("name", TOYS)
def test_toy_samples_follow_the_density(name):
    """Counts in the cells of a grid against the integral of the density, by χ²."""
    n, toy = 100_000, TOYS[name]
    x = toy.sample((n,), torch.Generator().manual_seed(0))
    assert x.shape == (n, 2)
    edge = torch.linspace(-4, 4, 17)
    counts = torch.histogramdd(x, [edge, edge]).hist
    fine = (torch.arange(320) + 0.5) / 40 - 4
    density = toy.log_prob(torch.cartesian_prod(fine, fine)).exp().reshape(16, 20, 16, 20)
    expected = n * density.sum((1, 3)) / 40**2
    kept = expected > 20
    chi2 = ((counts - expected).square() / expected)[kept].sum()
    n_cells = kept.sum()
    assert chi2 < n_cells + 6 * (2 * n_cells).sqrt(), f"χ² {chi2:.0f} in {n_cells} cells: six standard deviations"
    assert abs(counts[~kept].sum() - expected[~kept].sum()) < 60


def test_toy_shapes():
    for toy in TOYS.values():
        assert toy.sample((3, 4)).shape == (3, 4, 2)
    assert TOYS["checkerboard"].log_prob(torch.tensor([[0.5, 0.5], [0.5, 1.5], [2.5, 0.5]])).tolist() == pytest.approx(
        [-math.log(8), -math.inf, -math.inf]
    )


NAMES = list(TOYS)


@pytest.mark.parametrize("name", ["eight_gaussians", "rings", "two_moons"])
def test_toy_densities_integrate_to_one_in_double_precision(name):
    toy = getattr(toys, name)(dtype=F64)
    corner = torch.full((2,), 4.5, dtype=F64)
    estimate = quadrature(lambda x: -toy.log_prob(x), -corner, corner, 600)
    assert abs(estimate.value) < {"rings": 1e-6}.get(name, 1e-12), "the rings have a pole of tiny mass at the origin"


def test_log_densities_are_the_formulas_in_double_precision():
    x = torch.tensor([[0.3, 0.4], [-1.2, 1.6]], dtype=F64)
    r, radii = x.norm(dim=1), torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    parts = [torch.distributions.Normal(radii * side, 0.15).log_prob(r[:, None]).exp() for side in (1, -1)]
    expected = (sum(parts).mean(1) / (2 * math.pi * r)).log()
    torch.testing.assert_close(toys.rings().log_prob(x), expected, rtol=1e-12, atol=1e-12)
    angle = torch.linspace(0, math.pi, 20_001, dtype=F64)
    arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    squared = torch.stack([(x[:, None] - side * arc).square().sum(-1) for side in (1, -1)])
    density = torch.trapezoid((-squared / 0.02).exp(), angle, dim=-1).mean(0) / math.pi / (2 * math.pi * 0.01)
    torch.testing.assert_close(toys.two_moons().log_prob(x), density.log(), rtol=0, atol=1e-8)
    assert toys.checkerboard().log_prob(x[:1]).item() == -math.log(8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_toy_has_one_dtype_and_one_device_whatever_the_defaults_are_later(name, dtype):
    plain, same = getattr(toys, name)(), getattr(toys, name)(dtype=dtype)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            draws = [toy.sample((5,)) for toy in (plain, same)]
            log_p = [same.log_prob(draws[1]), plain.log_prob(draws[1])]
    finally:
        torch.set_default_dtype(torch.float32)
    assert [d.dtype for d in draws] == [torch.float32, dtype] and {d.device.type for d in draws} == {"cpu"}
    assert {(p.dtype, p.device.type) for p in log_p} == {(dtype, "cpu")}
    with torch.device("meta"):
        built = getattr(toys, name)(device="cpu", dtype=dtype)
        assert built.sample((5,)).device.type == "cpu" and built.log_prob(draws[1]).isfinite().all()


@pytest.mark.parametrize("name", ["rings", "two_moons", "checkerboard"])
def test_half_precision_and_integers(name):
    x = torch.tensor([[0.5, 1.5], [1.25, 0.75]], dtype=torch.float16)
    log_p = TOYS[name].log_prob(x)
    assert log_p.dtype == torch.float16
    torch.testing.assert_close(log_p, TOYS[name].log_prob(x.double()).half())
    for bad in (x.long(), x[:, :1], x[0], torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"floating point, \(batch, 2\); got torch"):
            TOYS[name].log_prob(bad)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_has_no_density(name):
    x = torch.tensor([[math.nan, 0.5], [0.5, math.nan], [0.5, 0.5]], dtype=F64)
    assert TOYS[name].log_prob(x).isnan().tolist() == [True, True, False]
    far = TOYS[name].log_prob(torch.full((1, 2), math.inf, dtype=F64))
    assert far.item() == -math.inf


@pytest.mark.parametrize("name", NAMES)
def test_draws_of_no_size(name):
    for shape in ((), (0,), (2, 0), (1,)):
        assert TOYS[name].sample(shape).shape == (*shape, 2)
    assert TOYS[name].log_prob(torch.zeros(0, 2)).shape == (0,)


def test_the_energy_of_a_toy_in_single_precision_has_gradients_in_double():
    e, grad = energy_and_grad(toys.eight_gaussians(), torch.ones(3, 2, dtype=F64))
    assert e.dtype == grad.dtype == F64


def test_bad_sizes_are_named():
    for radii, std in (((), 0.1), ((1.0, -1.0), 0.1), ((1.0,), 0.0), ((1.0,), math.nan)):
        with pytest.raises(ValueError, match="radii and std must be positive; got"):
            toys.rings(radii, std)
    for std in (0.04, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"std must be at least 0.05.*got {std}"):
            toys.two_moons(std)
