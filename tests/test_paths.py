"""Paths in a bent valley whose minima, pass and curvatures are known in closed form."""

import math

import pytest
import torch

from ebmlib.energies import GaussianEnergy
from ebmlib.paths import across, hessian, relaxed_path, respaced, stationary_point, straight_path

F64 = torch.float64
A, B, C = 3.0, 10.0, 1.0
MINIMA = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64)


def valley(x):
    """Minima (±1, 0) at 0, pass (0, c) at height a with Hessian diag(-4a, 2b), floor x₂ = c (1 - x₁²)."""
    return A * (x[:, 0].square() - 1).square() + B * (x[:, 1] - C * (1 - x[:, 0].square())).square()


def test_respaced_points_lie_on_the_line_at_equal_distances():
    path = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [3.0, 1.0], [3.0, 4.0]], dtype=F64)
    expected = torch.tensor([[0.0, 0.0], [1.75, 0.0], [3.0, 0.5], [3.0, 2.25], [3.0, 4.0]], dtype=F64)
    torch.testing.assert_close(respaced(path), expected)
    line = straight_path(*MINIMA, 7)
    torch.testing.assert_close(respaced(line), line)


def test_paths_without_length_or_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="the length of the path is 0.0"):
        respaced(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"path must be \(n_points, dim\) with at least two points; got \(1, 2\)"):
        respaced(torch.zeros(1, 2))


def test_the_path_relaxes_into_the_valley_and_leads_over_the_pass():
    line = straight_path(*MINIMA, 40)
    path = relaxed_path(valley, line, 600, 0.01)
    torch.testing.assert_close(path[[0, -1]], MINIMA, rtol=0, atol=0)
    assert valley(line).max().item() == pytest.approx(A + B * C**2, abs=0.05)
    assert valley(path).max().item() == pytest.approx(A, abs=0.02)
    top = stationary_point(valley, path[valley(path).argmax()])
    torch.testing.assert_close(top.x, torch.tensor([0.0, C], dtype=F64), rtol=0, atol=1e-8)
    assert top.energy == pytest.approx(A, abs=1e-10) and top.slope <= 1e-8
    torch.testing.assert_close(top.curvatures, torch.tensor([-4 * A, 2 * B], dtype=F64), rtol=0, atol=1e-8)


def test_the_gradient_across_is_that_of_the_closed_form_and_falls_as_the_path_relaxes():
    line = straight_path(*MINIMA, 40)
    x1 = line[1:-1, 0]
    torch.testing.assert_close(across(valley, line), 2 * B * C * (1 - x1.square()))  # ∂E/∂x₂ at x₂ = 0
    rest = [across(valley, relaxed_path(valley, line, n, 0.01)).max() for n in (10, 100, 600)]
    assert rest[0] > 10 * rest[1] and rest[1] >= rest[2], f"largest gradients across: {rest}"
    finer = across(valley, relaxed_path(valley, straight_path(*MINIMA, 80), 1200, 0.005)).max()
    assert finer < 0.6 * rest[2], f"{finer} is left with half the spacing and half the step, {rest[2]} before"


def test_too_large_a_step_is_an_error():
    with pytest.raises(ValueError, match="step_size 1.0 is too large"):
        relaxed_path(valley, straight_path(*MINIMA, 40), 600, 1.0)


def test_minimum_and_hessian_of_a_gaussian():
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    bowl = GaussianEnergy(torch.tensor([1.0, -2.0], dtype=F64), covariance, offset=0.7)
    bottom = stationary_point(bowl, torch.tensor([30.0, 40.0], dtype=F64))
    torch.testing.assert_close(bottom.x, bowl.mean)
    assert bottom.energy == pytest.approx(0.7)
    torch.testing.assert_close(hessian(bowl, bottom.x), torch.linalg.inv(covariance))
    rebuilt = bottom.directions @ bottom.curvatures.diag() @ bottom.directions.T
    torch.testing.assert_close(rebuilt, torch.linalg.inv(covariance))


def test_newton_that_does_not_arrive_is_an_error():
    with pytest.raises(RuntimeError, match="has a slope of"):
        stationary_point(lambda x: x.square().sum(1).add(1).sqrt(), torch.tensor([3.0], dtype=F64), n_steps=2)
    assert math.isclose(stationary_point(valley, MINIMA[0] + 0.1).x[0].item(), -1.0, abs_tol=1e-8)
