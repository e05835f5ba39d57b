"""A tilted density against its closed form."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from ebmlib.energies import GaussianEnergy, evaluate, score
from ebmlib.networks import MLPEnergy
from ebmlib.partition import quadrature
from ebmlib.tilted import TiltedEnergy

F64 = torch.float64


def test_a_linear_tilt_of_a_gaussian_shifts_it():
    base = GaussianEnergy(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    slope = torch.tensor([1.0, -0.5], dtype=F64)
    tilted = TiltedEnergy(base, lambda x: -(x @ slope))
    # q(x) exp(a·x) is N(a, I) times exp(‖a‖²/2)
    low = torch.full((2,), -12.0, dtype=F64)
    log_z = quadrature(tilted, low, -low, 100).value
    assert abs(log_z - float(slope @ slope) / 2) < 1e-10
    shifted = GaussianEnergy(slope, torch.eye(2, dtype=F64))
    x = base.sample((20,))
    torch.testing.assert_close(-tilted(x) - log_z, shifted.log_prob(x), rtol=0, atol=1e-10)


def test_a_zero_tilt_is_the_base():
    base = MultivariateNormal(torch.zeros(3), torch.eye(3))
    tilted = TiltedEnergy(base, MLPEnergy(3, (8,), zero_last=True))
    x = base.sample((10,))
    torch.testing.assert_close(-tilted(x), base.log_prob(x))


def test_a_base_that_is_a_module_is_frozen_and_lets_gradients_through_to_x():
    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Parameter(torch.zeros(2))

        def log_prob(self, x):
            return -0.5 * (x - self.mean).square().sum(1) - math.log(2 * math.pi)

        def sample(self, shape):
            return torch.randn(*shape, 2)

    tilted = TiltedEnergy(Base(), MLPEnergy(2, (4,)))
    x = torch.randn(3, 2, requires_grad=True)
    tilted(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    trainable = [name for name, p in tilted.named_parameters() if p.requires_grad]
    assert trainable and all(name.startswith("tilt.") for name in trainable)


def test_what_would_broadcast_is_an_error():
    base, x = MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.zeros(3, 2)
    for tilt, shape in ((MLPEnergy(2, (4,), n_out=3), "3, 3"), (lambda x: x[:, :1], "3, 1"), (lambda x: x.sum(), "")):
        for call in (evaluate, score, lambda energy, x: energy(x)):
            with pytest.raises(ValueError, match=rf"must return shape \(3,\), one value a row; got \({shape}\)"):
                call(TiltedEnergy(base, tilt), x)
    of_the_batch = Independent(Normal(torch.zeros(3, 2), 1.0), 2)
    for base, shape in ((Normal(0.0, 1.0), "3, 2"), (of_the_batch, "")):
        with pytest.raises(ValueError, match=rf"must return shape \(3,\), one value a row; got \({shape}\)"):
            TiltedEnergy(base, lambda x: x[:, 0])(x)


def test_dtype_and_device_are_those_of_x():
    base = GaussianEnergy(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    with torch.device("meta"):
        e = TiltedEnergy(base, lambda x: x[:, 0])(torch.ones(3, 2, dtype=F64, device="cpu"))
    torch.testing.assert_close(e, torch.full((3,), 2 + math.log(2 * math.pi), dtype=F64))
