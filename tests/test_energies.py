"""Energies against closed forms and quadrature, in double precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ebmlib.energies import GaussianEnergy, GaussianMixtureEnergy, by_autograd, energy_and_grad, evaluate, score
from ebmlib.partition import quadrature

F64 = torch.float64


def gaussian(dim: int, offset: float = 0.0) -> GaussianEnergy:
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn(dim, dim, generator=generator, dtype=F64)
    return GaussianEnergy(torch.arange(dim, dtype=F64), root @ root.T + torch.eye(dim, dtype=F64), offset)


def mixture(offset: float = 0.0) -> GaussianMixtureEnergy:
    means = torch.tensor([[-1.0, 0.0], [1.5, 0.5]], dtype=F64)
    return GaussianMixtureEnergy(means, 0.6, torch.tensor([1.0, 3.0], dtype=F64), offset)


@pytest.mark.parametrize("dim", [1, 2, 5, 11])
def test_gaussian_log_prob_is_torchs(dim):
    ours = gaussian(dim, offset=3.0)
    theirs = torch.distributions.MultivariateNormal(ours.mean, ours.factor @ ours.factor.T)
    x = theirs.sample((50,))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("energy", [gaussian(1), gaussian(2, 2.5), mixture(), mixture(-1.0)])
def test_log_z_is_quadratures(energy):
    dim = energy.sample((1,)).shape[1]
    low = torch.full((dim,), -14.0, dtype=F64)
    truth = quadrature(energy, low, -low + dim, 400).value
    assert abs(energy.log_z - truth) < 1e-10


@given(offset=st.floats(-100, 100))
def test_an_offset_moves_log_z_and_leaves_p(offset):
    x = torch.linspace(-3, 3, 20, dtype=F64).reshape(10, 2)
    plain, moved = mixture(), mixture(offset)
    torch.testing.assert_close(moved.log_prob(x), plain.log_prob(x), rtol=0, atol=1e-10)
    assert moved.log_z == pytest.approx(plain.log_z - offset, abs=1e-10)


@pytest.mark.parametrize("energy", [gaussian(3), mixture()])
def test_samples_have_the_moments_of_the_density(energy):
    n = 200_000
    x = energy.sample((n,), torch.Generator().manual_seed(0))
    if isinstance(energy, GaussianEnergy):
        mean, variance = energy.mean, (energy.factor @ energy.factor.T).diagonal()
    else:
        mean = energy.weights @ energy.means
        variance = energy.std**2 + energy.weights @ (energy.means - mean).square()
    z = (x.mean(0) - mean) / (variance / n).sqrt()
    assert z.abs().max() < 5.0, f"z = {z.tolist()}: a false alarm has chance 2e-6"
    spread = (x - mean).square()
    z = (spread.mean(0) - variance) / (spread.std(0) / math.sqrt(n))
    assert z.abs().max() < 5.0, f"z = {z.tolist()}: a false alarm has chance 2e-6"


@pytest.mark.parametrize("energy", [gaussian(2), mixture()])
def test_sample_shapes(energy):
    assert energy.sample().shape == (2,)
    assert energy.sample((3,)).shape == (3, 2)
    assert energy.sample((3, 4)).shape == (3, 4, 2)


def test_gradients_are_the_closed_form():
    energy = gaussian(4, offset=1.0)
    x = energy.sample((7,))
    e, grad = energy_and_grad(energy, x)
    exact = (x - energy.mean) @ torch.cholesky_inverse(energy.factor)
    torch.testing.assert_close(e, energy(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(score(energy, x), -exact, rtol=0, atol=1e-10)
    assert not e.requires_grad and not grad.requires_grad and not x.requires_grad


@pytest.mark.parametrize("energy", [gaussian(3, offset=1.0), mixture()])
def test_the_gradient_by_hand_is_autograds(energy):
    x = 5 * energy.sample((50,))
    for a, b in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_gradient_by_hand_is_used_and_its_shape_checked():
    class Energy:
        def __call__(self, x):
            raise AssertionError("not needed")

        def energy_and_grad(self, x):
            return x.sum(1), torch.ones_like(x)

    e, grad = energy_and_grad(Energy(), torch.ones(3, 2))
    assert e.tolist() == [2, 2, 2] and grad.tolist() == [[1, 1]] * 3
    Energy.energy_and_grad = lambda self, x: (x, x)
    with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \(3, 2\)"):
        energy_and_grad(Energy(), torch.ones(3, 2))


@pytest.mark.parametrize("energy_and_grad", [energy_and_grad, by_autograd])
def test_gradients_are_taken_under_no_grad_too(energy_and_grad):
    energy = gaussian(2)
    with torch.no_grad():
        _, grad = energy_and_grad(energy, torch.zeros(3, 2, dtype=F64))
        assert grad.abs().sum() > 0
        assert score(energy, torch.ones(3, 2, dtype=F64)).abs().sum() > 0


def test_score_keeps_its_graph():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    score(net, torch.randn(5, 2)).square().sum().backward()
    assert next(net.parameters()).grad is not None


def test_evaluate_names_what_is_wrong():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"\(4,\).*got \(4, 1\)"):
        evaluate(lambda x: x[:, :1], x)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"row 2 of 4 is {bad}"):
            evaluate(lambda x, bad=bad: torch.tensor([0.0, 1.0, bad, bad]), x)


def test_bad_parameters_are_named():
    mean, covariance = torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="order 2"):
        GaussianEnergy(mean, covariance)
    with pytest.raises(ValueError, match=r"\(2,\), \(3, 3\)"):
        GaussianEnergy(mean, torch.eye(3))
    with pytest.raises(ValueError, match="std must be positive; got 0"):
        GaussianMixtureEnergy(torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match=r"\(3, 2\), \(2,\)"):
        GaussianMixtureEnergy(torch.zeros(3, 2), 1.0, torch.ones(2))
    with pytest.raises(ValueError, match="smallest is -1"):
        GaussianMixtureEnergy(torch.zeros(2, 2), 1.0, torch.tensor([1.0, -1.0]))


def test_gradient_of_an_energy_of_the_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \(3, 2\)"):
        energy_and_grad(lambda x: x, torch.zeros(3, 2))
