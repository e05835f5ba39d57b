"""Toys have the density that they claim, and draw from it."""

import math

import pytest
import torch

from ebmlib import toys
from ebmlib.partition import quadrature

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
