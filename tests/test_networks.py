"""Networks as energies: shapes, options, and errors that name what is wrong."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ebmlib.energies import by_autograd, energy_and_grad
from ebmlib.networks import Confined, ConvEnergy, MLPEnergy, SoftSteps
from ebmlib.partition import quadrature

F64 = torch.float64


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="std must be positive; got -1"):
        Confined(MLPEnergy(2, (4,)), -1)
    with pytest.raises(ValueError, match=r"\[2, 0, 1\]"):
        MLPEnergy(2, (0,))
    with pytest.raises(ValueError, match=r"\(batch, 2\); got \(5, 3\)"):
        MLPEnergy(2, (4,))(torch.zeros(5, 3))


@given(dim=st.integers(1, 5), widths=st.lists(st.integers(1, 6), max_size=3), n_out=st.integers(1, 4))
def test_mlp_shapes(dim, widths, n_out):
    out = MLPEnergy(dim, widths, n_out=n_out)(torch.zeros(3, dim))
    assert out.shape == ((3,) if n_out == 1 else (3, n_out))


def test_mlp_options():
    assert (MLPEnergy(2, (8,), zero_last=True)(torch.randn(5, 2)) == 0).all()
    kinds = [type(layer) for layer in MLPEnergy(2, (8, 8), activation=nn.ReLU, dropout=0.2).net]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


@given(dim=st.integers(1, 3), widths=st.lists(st.integers(1, 6), max_size=3), confined=st.booleans())
def test_the_gradient_by_hand_is_autograds(dim, widths, confined):
    energy = MLPEnergy(dim, widths).double()
    x = 3 * torch.randn(4, dim, dtype=F64)
    start = x.clone()
    for a, b in zip(energy.energy_and_grad(x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if confined:
        energy = Confined(energy, 1.5)
        for a, b in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (x == start).all() and all(p.grad is None for p in energy.parameters())


class Twice(MLPEnergy):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "energy",
    [
        MLPEnergy(2, (4,), activation=nn.Tanh),
        MLPEnergy(2, (4,), dropout=0.5).eval(),
        Twice(2, (4,)),
        Confined(Twice(2, (4,)), 1.0),
        Confined(lambda x: torch.zeros(len(x)), 1.0),
    ],
)
def test_what_the_hand_does_not_know_goes_to_autograd(energy):
    x = torch.randn(3, 2)
    for a, b in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(a, b)


def test_spectral_normalisation_goes_to_autograd():
    """Its weight changes with each reading in training mode: by hand, forward and backward would use two."""
    energy = MLPEnergy(2, (4,))
    nn.utils.parametrizations.spectral_norm(energy.net[0])
    x = torch.randn(3, 2)
    energy(x)
    energy.eval()
    torch.testing.assert_close(energy_and_grad(energy, x)[1], by_autograd(energy, x)[1])
    assert type(energy.net[0]) is not nn.Linear


def test_confined_is_a_gaussian_when_the_energy_is_flat():
    energy = Confined(lambda x: torch.zeros(len(x), dtype=x.dtype), 2.0)
    low = torch.full((2,), -20.0, dtype=F64)
    assert quadrature(energy, low, -low, 200).value == pytest.approx(math.log(2 * math.pi * 4), abs=1e-10)


def test_soft_steps_stand_at_quantiles_and_are_smooth():
    x = torch.linspace(0, 4, 41, dtype=F64)[:, None] * torch.tensor([1.0, -2.0], dtype=F64)
    steps = SoftSteps(x, 3, sharpness=5.0)
    torch.testing.assert_close(steps.places, torch.tensor([[1.0, -6.0], [2.0, -4.0], [3.0, -2.0]], dtype=F64))
    out = steps(torch.tensor([[2.0, -4.0], [9.0, 9.0]], dtype=F64))
    one = math.tanh(5.0)
    torch.testing.assert_close(out[0], torch.tensor([2, -4, one, math.tanh(10), 0, 0, -one, -math.tanh(10)], dtype=F64))
    torch.testing.assert_close(out[1], torch.tensor([9, 9, 1, 1, 1, 1, 1, 1], dtype=F64))
    assert torch.autograd.gradcheck(steps, torch.randn(4, 2, dtype=F64, requires_grad=True))
    with pytest.raises(ValueError, match="n_steps must be at least 1; got 0"):
        SoftSteps(x, 0)


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), channels=st.lists(st.integers(1, 4), max_size=4))
def test_conv_shapes(shape, channels):
    energy = ConvEnergy(shape, channels)
    assert energy(torch.zeros(3, *shape)).shape == (3,)
    assert [layer.out_channels for layer in energy.net if isinstance(layer, nn.Conv2d)] == channels


def test_conv_is_smooth_and_sees_every_pixel():
    torch.manual_seed(0)
    energy = ConvEnergy((1, 28, 28), (8, 8)).double()
    x = torch.rand(2, 1, 28, 28, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    assert (grad != 0).all()
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert (second != 0).any(), "a gradient that is constant in pieces would have none"


def test_conv_errors_are_named():
    with pytest.raises(ValueError, match=r"got \(28, 28\), \(4,\)"):
        ConvEnergy((28, 28), (4,))
    with pytest.raises(ValueError, match=r"got \(1, 8, 8\), \(0,\)"):
        ConvEnergy((1, 8, 8), (0,))
    with pytest.raises(ValueError, match=r"\(batch, 1, 8, 8\); got \(5, 8, 8\)"):
        ConvEnergy((1, 8, 8), (4,))(torch.zeros(5, 8, 8))
