"""Networks as energies: shapes, options, and errors that name what is wrong."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ebmlib.networks import Confined, MLPEnergy
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


def test_confined_is_a_gaussian_when_the_energy_is_flat():
    energy = Confined(lambda x: torch.zeros(len(x), dtype=x.dtype), 2.0)
    low = torch.full((2,), -20.0, dtype=F64)
    assert quadrature(energy, low, -low, 200).value == pytest.approx(math.log(2 * math.pi * 4), abs=1e-10)
