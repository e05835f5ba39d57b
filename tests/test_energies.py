"""Energies against closed forms and quadrature, in double precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ebmlib.energies import GaussianEnergy, GaussianMixtureEnergy, energy_and_grad, evaluate, marginal, score
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


def test_gradients_are_taken_under_no_grad_too():
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


def test_marginal_of_a_mixture_with_its_labels_is_the_mixture():
    """With E(x, y) = -log w_y - log p(x|y) the sum over y is the mixture, and p(y|x) is Bayes' rule."""
    truth = mixture()
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
