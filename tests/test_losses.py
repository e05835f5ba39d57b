"""Losses against closed forms, and what they say of bad input."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ebmlib.energies import GaussianEnergy, NotFinite
from ebmlib.losses import (
    conditional_noise_contrastive,
    contrastive_divergence,
    energy_penalty,
    nce_from_logits,
    noise_contrastive,
)
from ebmlib.networks import MLPEnergy

F64 = torch.float64


@pytest.fixture
def noise():
    return MultivariateNormal(torch.zeros(2, dtype=F64), 4 * torch.eye(2, dtype=F64))


@pytest.fixture
def truth():
    return GaussianEnergy(torch.tensor([1.0, 0.0], dtype=F64), torch.eye(2, dtype=F64), offset=0.7)


@pytest.mark.parametrize("nu", [1, 4, 0.5])
def test_undecided_classifier(nu):
    zero = torch.zeros(6, dtype=F64)
    expected = math.log1p(nu) + nu * math.log1p(1 / nu)
    assert nce_from_logits(zero, zero, nu).item() == pytest.approx(expected, abs=1e-12)


def test_loss_is_the_negative_log_posterior_of_the_classes(truth, noise):
    """The Bayes posterior of 'data' at prior odds 1 : ν, written out from the densities."""
    x_data, x_noise = truth.sample((30,)), noise.sample((90,))
    loss = noise_contrastive(truth, truth.log_z, x_data, x_noise, noise)
    p, q = (lambda x: truth.log_prob(x).exp()), (lambda x: noise.log_prob(x).exp())
    is_data, is_noise = p(x_data) / (p(x_data) + 3 * q(x_data)), 3 * q(x_noise) / (p(x_noise) + 3 * q(x_noise))
    expected = -is_data.log().mean() - 3 * is_noise.log().mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_gradient_vanishes_at_the_truth_and_the_constant_finds_log_z(truth, noise):
    log_z = nn.Parameter(torch.tensor(0.0, dtype=F64))
    n = 40_000
    torch.manual_seed(0)
    x_data, x_noise = truth.sample((n,)), noise.sample((5 * n,))
    optimizer = torch.optim.LBFGS([log_z], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = noise_contrastive(truth, log_z, x_data, x_noise, noise)
        loss.backward()
        return loss

    optimizer.step(closure)
    # the standard error follows from the variance of the estimating equation, h = σ(u - log ν)
    u = (-truth(x_data) - truth.log_z - noise.log_prob(x_data)).detach()
    v = (-truth(x_noise) - truth.log_z - noise.log_prob(x_noise)).detach()
    miss, hit = torch.sigmoid(math.log(5) - u), torch.sigmoid(v - math.log(5))
    slope = (miss * (1 - miss)).mean() + 5 * (hit * (1 - hit)).mean()
    std_error = (miss.var() / n + 25 * hit.var() / (5 * n)).sqrt() / slope
    z = (log_z - truth.log_z).item() / std_error
    assert abs(z) < 4.5, f"z = {z:.2f}, standard error {std_error:.4f}: a false alarm has chance 7e-6"
    assert std_error < 0.02


def test_conditional_loss_of_a_flat_and_of_a_steep_energy():
    x = torch.zeros(50, 2, dtype=F64)
    flat = conditional_noise_contrastive(lambda x: 0 * x[:, 0], x, std=0.3, nu=4)
    assert flat.item() == pytest.approx(2 * math.log(2), abs=1e-12)
    # at the minimum of a steep bowl every noisy copy is told apart
    assert conditional_noise_contrastive(lambda x: 1e6 * x.square().sum(1), x, std=1.0).item() < 1e-3


def test_conditional_loss_pairs_each_datum_with_its_own_copies():
    x = torch.tensor([[0.0], [100.0]], dtype=F64)
    loss = conditional_noise_contrastive(lambda x: x[:, 0], x, std=1e-9, nu=3)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)


def test_conditional_loss_is_invariant_to_the_constant(truth):
    x = truth.sample((20,))
    a, b = (
        conditional_noise_contrastive(lambda x, c=c: truth(x) + c, x, 0.5, 2, torch.Generator().manual_seed(1))
        for c in (0.0, 50.0)
    )
    assert a.item() == pytest.approx(b.item(), abs=1e-12)


def test_bad_input_is_named(truth, noise):
    x = truth.sample((4,))
    log_z = torch.zeros(())
    with pytest.raises(ValueError, match="nu must be positive; got 0"):
        nce_from_logits(x[:, 0], x[:, 0], 0)
    with pytest.raises(NotFinite, match="logit of noise row 1 is nan"):
        nce_from_logits(x[:, 0], torch.tensor([0.0, math.nan]), 1)
    with pytest.raises(ValueError, match="row 3 of 4 is inf"):
        noise_contrastive(lambda x: torch.tensor([0, 0, 0, math.inf]), log_z, x, x, noise)
    with pytest.raises(ValueError, match=r"one value a row; got \(4, 2\)"):
        noise_contrastive(lambda x: x, log_z, x, x, noise)
    # a density for each coordinate instead of one for the row: (4, 1) would broadcast to (4, 4)
    with pytest.raises(ValueError, match=r"one a row, \(n,\); got \(4, 4\)"):
        noise_contrastive(lambda x: x[:, 0], log_z, x[:, :1], x[:, :1], torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="std must be positive; got 0"):
        conditional_noise_contrastive(truth, x, std=0)
    with pytest.raises(ValueError, match="nu must be at least 1; got -2"):
        conditional_noise_contrastive(truth, x, std=1, nu=-2)


def test_noise_without_the_support_of_the_data_is_named(truth):
    class Box:
        def log_prob(self, x):
            return torch.where((x.abs() < 1).all(1), -math.log(4), -torch.inf)

    x = torch.tensor([[0.0, 0.0], [0.0, 5.0]], dtype=F64)
    with pytest.raises(ValueError, match="cover the data.*row 1 is -inf"):
        noise_contrastive(truth, torch.zeros(()), x, x[:1], Box())


def test_contrastive_divergence_has_the_gradient_of_the_likelihood():
    """For N(m, 1), log Z does not depend on m: the exact gradient of -mean log p is m - mean x_data. z-score: 7e-6."""
    m = nn.Parameter(torch.tensor(1.5, dtype=F64))
    energy = lambda x: 0.5 * (x - m).square().sum(1)  # noqa: E731
    g = torch.Generator().manual_seed(0)
    x_data = torch.randn(1000, 1, dtype=F64, generator=g)
    x_model = m.detach() + torch.randn(100_000, 1, dtype=F64, generator=g)
    (grad,) = torch.autograd.grad(contrastive_divergence(energy, x_data, x_model), m)
    exact = m.detach() - x_data.mean()
    z = (grad - exact) * math.sqrt(100_000)
    assert abs(z) < 4.5, f"gradient {grad:.4f}, exact {exact:.4f}"
    assert exact > 1, "a flipped sign would show"


def test_no_gradient_flows_through_the_chain(truth):
    x_model = truth.sample((4,)).requires_grad_()
    x_data = truth.sample((4,)).requires_grad_()
    for loss in (contrastive_divergence, energy_penalty):
        grads = torch.autograd.grad(loss(truth, x_data, x_model), (x_data, x_model), allow_unused=True)
        assert grads[0] is not None and grads[1] is None


def test_energy_penalty_is_the_mean_square():
    energy = lambda x: x[:, 0]  # noqa: E731
    a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[-2.0], [4.0], [0.0]])
    assert energy_penalty(energy, a, b).item() == pytest.approx(5 + 20 / 3)
    assert contrastive_divergence(energy, a, b).item() == pytest.approx(2 - 2 / 3)


def test_bad_energies_are_named_in_both_terms():
    x, bad = torch.zeros(3, 1), torch.full((2, 1), math.nan)
    for loss in (contrastive_divergence, energy_penalty):
        with pytest.raises(ValueError, match="row 0 of 2 is nan"):
            loss(lambda x: x[:, 0], bad, x)
        with pytest.raises(ValueError, match="row 0 of 2 is nan"):
            loss(lambda x: x[:, 0], x, bad)
        with pytest.raises(ValueError, match=r"one value a row; got \(3, 1\)"):
            loss(lambda x: x, x, x)


def test_empty_batches_are_named(truth, noise):
    x, empty = truth.sample((4,)), torch.zeros(0, 2, dtype=F64)
    log_z = torch.zeros(())
    for a, b, name in ((empty, x, "x_data"), (x, empty, "x_noise")):
        with pytest.raises(ValueError, match=rf"{name} is empty: \(0, 2\)"):
            noise_contrastive(truth, log_z, a, b, noise)
    for loss in (contrastive_divergence, energy_penalty):
        for a, b, name in ((empty, x, "x_data"), (x, empty, "x_model")):
            with pytest.raises(ValueError, match=rf"{name} is empty: \(0, 2\)"):
                loss(truth, a, b)
    with pytest.raises(ValueError, match=r"x_data is empty: \(0, 2\)"):
        conditional_noise_contrastive(truth, empty, 0.5)
    for a, b, name in ((empty[:, 0], x[:, 0], "data"), (x[:, 0], empty[:, 0], "noise")):
        with pytest.raises(ValueError, match=rf"logits of {name} must be one a row, \(n,\); got \(0,\)"):
            nce_from_logits(a, b, 1)


def test_batches_of_one_have_a_loss(truth, noise):
    x = torch.ones(1, 2, dtype=F64)
    u = truth.log_prob(x) - noise.log_prob(x)
    expected = torch.log1p(torch.exp(-u)) + torch.log1p(torch.exp(u))
    assert noise_contrastive(truth, truth.log_z, x, x, noise).item() == pytest.approx(expected.item(), abs=1e-12)
    assert contrastive_divergence(truth, x, 0 * x).item() == pytest.approx((truth(x) - truth(0 * x)).item(), abs=1e-12)


def test_a_density_that_would_broadcast_is_named(truth, noise):
    class Summed:
        def __init__(self, shape):
            self.shape = shape

        def log_prob(self, x):
            return noise.log_prob(x).sum().reshape(self.shape)

    x = truth.sample((4,))
    for shape in ((), (1,)):
        with pytest.raises(ValueError, match=r"one log density a row, \(4,\); got \("):
            noise_contrastive(truth, torch.zeros(()), x, x, Summed(shape))


def test_what_is_infinite_or_an_integer_is_named(truth):
    x = truth.sample((4,))
    with pytest.raises(ValueError, match="nu must be positive; got inf"):
        nce_from_logits(x[:, 0], x[:, 0], math.inf)
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"std must be positive; got {bad}"):
            conditional_noise_contrastive(lambda x: x[:, 0].tanh(), x, std=bad)
    with pytest.raises(ValueError, match="floating point; got torch.int64"):
        conditional_noise_contrastive(truth, torch.ones(4, 2, dtype=torch.int64), std=1.0)


def test_several_energies_a_row_are_an_error(truth, noise):
    x = truth.sample((3,))
    several = MLPEnergy(2, (4,), n_out=3).double()
    for loss in (
        lambda: noise_contrastive(several, torch.zeros(()), x, x, noise),
        lambda: conditional_noise_contrastive(several, x, 0.5),
        lambda: contrastive_divergence(several, x, x),
        lambda: energy_penalty(several, x, x),
    ):
        with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \(3, 3\)"):
            loss()


def test_losses_stay_on_their_device(truth):
    x = truth.sample((4,))
    with torch.device("meta"):
        for loss in (
            conditional_noise_contrastive(truth, x, 0.5, nu=2),
            contrastive_divergence(truth, x, x),
            energy_penalty(truth, x, x),
            noise_contrastive(truth, truth.log_z, x, x, truth),
        ):
            assert loss.device.type == "cpu" and loss.dtype == F64 and loss.isfinite()
