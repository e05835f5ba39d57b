"""Score matching losses against the closed form of a Gaussian, finite differences and each other.

A z-score beyond 4.9 has chance 1e-6.
"""

import math

import pytest
import torch
from torch import nn

from ebmlib.energies import GaussianEnergy, score
from ebmlib.networks import ConvEnergy, MLPEnergy
from ebmlib.score_matching import denoising_score_matching, exact_score_matching, sliced_score_matching

F64 = torch.float64
LOSSES = {
    "exact": exact_score_matching,
    "sliced": lambda energy, x, g=None: sliced_score_matching(energy, x, 2, g),
    "denoising": lambda energy, x, g=None: denoising_score_matching(energy, x, 0.3, g),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def seeded(name, energy, x, seed=0):
    g = torch.Generator().manual_seed(seed)
    return exact_score_matching(energy, x) if name == "exact" else LOSSES[name](energy, x, g)


def data(n=8, shape=(3,), seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(dim=3):
    torch.manual_seed(0)
    return MLPEnergy(dim, (8, 8)).double()


def gaussian():
    covariance = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.8, -0.2], [0.1, -0.2, 0.6]], dtype=F64)
    return GaussianEnergy(torch.tensor([0.5, -1.0, 0.2], dtype=F64), covariance, offset=0.7)


@every_loss
def test_gradient_against_finite_differences(name):
    energy, x, h = network(), data(), 1e-5
    weights = list(energy.parameters())
    grads = torch.autograd.grad(seeded(name, energy, x), weights, materialize_grads=True)
    for weight, grad in zip(weights, grads, strict=True):
        for i in range(0, weight.numel(), 7):
            flat = weight.data.view(-1)
            flat[i] += h
            above = seeded(name, energy, x).item()
            flat[i] -= 2 * h
            below = seeded(name, energy, x).item()
            flat[i] += h
            assert grad.flatten()[i].item() == pytest.approx((above - below) / (2 * h), abs=1e-6, rel=1e-6)


def test_exact_loss_against_finite_differences_of_the_score():
    energy, x, h = network(), data(), 1e-5
    divergence = sum(
        (score(energy, x + h * e)[:, i] - score(energy, x - h * e)[:, i]) / (2 * h)
        for i, e in enumerate(torch.eye(3, dtype=F64))
    )
    expected = (score(energy, x).square().sum(1) / 2 + divergence).mean()
    assert exact_score_matching(energy, x).item() == pytest.approx(expected.item(), abs=1e-8)


def closed_form(energy, mean, covariance):
    """E ½‖P(x-μ)‖² - tr P for x ~ N(mean, covariance), where P is the precision of the energy."""
    shift = energy.precision @ (mean - energy.mean)
    spread = torch.trace(energy.precision @ covariance @ energy.precision)
    return ((shift @ shift + spread) / 2 - torch.trace(energy.precision)).item()


def test_all_three_agree_on_a_gaussian():
    """The data are another Gaussian; denoising sees it wider by std² and pays d / 2·std²."""
    energy, std, n = gaussian(), 0.4, 40_000
    covariance = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=F64))
    mean = torch.tensor([0.0, -0.5, 1.0], dtype=F64)
    x = mean + data(n) @ covariance.sqrt()
    g = torch.Generator().manual_seed(1)
    wider = covariance + std**2 * torch.eye(3, dtype=F64)
    cases = {
        "exact": (exact_score_matching, closed_form(energy, mean, covariance)),
        "sliced": (lambda e, x: sliced_score_matching(e, x, 1, g), closed_form(energy, mean, covariance)),
        "denoising": (
            lambda e, x: denoising_score_matching(e, x, std, g),
            closed_form(energy, mean, wider) + 3 / (2 * std**2),
        ),
    }
    for name, (loss, expected) in cases.items():
        parts = torch.stack([loss(energy, part).detach() for part in x.chunk(200)])
        z = (parts.mean().item() - expected) / (parts.std().item() / math.sqrt(200))
        assert abs(z) < 4.9, f"{name}: {parts.mean():.3f}, closed form {expected:.3f}, z = {z:.1f}"


def test_the_truth_has_the_lowest_loss():
    """At the mean and covariance of the rows the exact loss is stationary; at another Gaussian it is higher."""
    x = data(500) @ torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=F64)) + 1
    mean = nn.Parameter(x.mean(0))
    precision = nn.Parameter(torch.linalg.inv(torch.cov(x.T, correction=0)))
    energy = lambda x: ((x - mean) @ precision * (x - mean)).sum(1) / 2  # noqa: E731
    loss = exact_score_matching(energy, x)
    for grad in torch.autograd.grad(loss, (mean, precision)):
        assert grad.abs().max() < 1e-9
    with torch.no_grad():
        precision.mul_(1.3)
    assert exact_score_matching(energy, x) > loss + 0.01


def test_one_coordinate_leaves_nothing_to_slice():
    energy, x = network(1), data(shape=(1,))
    assert sliced_score_matching(energy, x).item() == pytest.approx(exact_score_matching(energy, x).item(), abs=1e-12)


def test_more_directions_mean_less_noise():
    """Off the diagonal alone does a direction of ±1 err: its variance is 2 Σ_{i≠j} H_ij² a row."""
    energy, x = gaussian(), data(100)
    off = energy.precision - energy.precision.diagonal().diag()
    for n in (1, 4):
        g = torch.Generator().manual_seed(0)
        values = torch.stack([sliced_score_matching(energy, x, n, g).detach() for _ in range(2000)])
        expected = 2 * off.square().sum() / (100 * n)
        assert values.var().item() == pytest.approx(expected.item(), rel=0.2)  # 6 standard errors
        z = (values.mean() - exact_score_matching(energy, x)) / (values.std() / math.sqrt(2000))
        assert abs(z) < 4.9


@every_loss
def test_images_are_their_flat_rows(name):
    torch.manual_seed(0)
    energy = ConvEnergy((1, 3, 2), (4,)).double()
    x = data(5, (1, 3, 2))
    flat = seeded(name, lambda v: energy(v.reshape(-1, 1, 3, 2)), x.flatten(1))
    assert seeded(name, energy, x).item() == pytest.approx(flat.item(), abs=1e-12)


@every_loss
def test_generator_fixes_the_value(name):
    energy, x = network(), data()
    first, again, other = (seeded(name, energy, x, seed).item() for seed in (0, 0, 1))
    assert first == again
    assert (first == other) == (name == "exact")


@every_loss
def test_the_constant_is_free(name):
    energy, x = network(), data()
    assert seeded(name, lambda v: energy(v) + 50, x).item() == pytest.approx(seeded(name, energy, x).item(), abs=1e-9)


@every_loss
def test_without_gradients_the_value_is_the_same(name):
    energy, x = network(), data()
    with torch.no_grad():
        plain = seeded(name, energy, x)
    assert plain.item() == seeded(name, energy, x).item()


def test_a_linear_energy_has_no_curvature():
    energy = lambda x: x @ x.new_tensor([3.0, 4.0, 0.0])  # noqa: E731
    x = data()
    assert exact_score_matching(energy, x).item() == pytest.approx(12.5)
    assert sliced_score_matching(energy, x).item() == pytest.approx(12.5)


def test_a_relu_energy_is_told_that_flat_is_best():
    torch.manual_seed(0)
    energy, x = MLPEnergy(3, (8, 8), activation=nn.ReLU).double(), data()
    slope = score(energy, x).square().sum(1).mean().item() / 2
    assert exact_score_matching(energy, x).item() == pytest.approx(slope, abs=1e-12)
    assert sliced_score_matching(energy, x).item() == pytest.approx(slope, abs=1e-12)


@every_loss
def test_bad_input_is_named(name):
    energy, x = network(), data()
    with pytest.raises(ValueError, match=r"x_data is empty: \(0, 3\)"):
        seeded(name, energy, x[:0])
    with pytest.raises(ValueError, match="x_data must be floating point; got torch.int64"):
        seeded(name, energy, x.long())
    with pytest.raises(ValueError, match=r"one value a row; got \(8, 3\)"):
        seeded(name, lambda v: v.square(), x)
    with pytest.raises(ValueError, match="the energy of row 2 of 8 is nan"):
        seeded(name, lambda v: v.sum(1) + torch.where(torch.arange(8) == 2, math.nan, 0.0), x)


def test_bad_settings_are_named():
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"std must be positive; got {bad}"):
            denoising_score_matching(network(), data(), bad)
    with pytest.raises(ValueError, match="n_projections must be at least 1; got 0"):
        sliced_score_matching(network(), data(), 0)


@every_loss
def test_the_data_are_left_alone_and_carry_a_gradient_if_asked(name):
    energy, x = network(), data()
    before = x.clone()
    seeded(name, energy, x)
    assert torch.equal(x, before) and not x.requires_grad
    loss = seeded(name, energy, x.requires_grad_())
    assert torch.autograd.grad(loss, x)[0].abs().max() > 0


@every_loss
def test_losses_stay_on_their_device(name):
    x = data()
    with torch.device("meta"):
        loss = LOSSES[name](gaussian_on_cpu, x)
        assert loss.device.type == "cpu" and loss.dtype == F64 and loss.isfinite()


def gaussian_on_cpu(x):
    return x.square().sum(1) / 2
