"""Diagnostics against autoregressive chains, whose effective sample size is known, and against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmlib.diagnostics import energy_gap, summarize, weight_ess
from ebmlib.energies import GaussianEnergy

F64 = torch.float64


def autoregressive(phi, n_draws=2000, n_chains=8, seed=0):
    """x' = φ x + √(1-φ²) ξ from exact starts: N(0, 1), and n (1-φ)/(1+φ) effective draws for the mean."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n_chains, 1, dtype=F64, generator=g)
    draws = []
    for _ in range(n_draws):
        x = phi * x + math.sqrt(1 - phi**2) * torch.randn(n_chains, 1, dtype=F64, generator=g)
        draws.append(x)
    return torch.stack(draws)


@pytest.mark.parametrize("phi", [-0.4, 0.0, 0.5, 0.9])
def test_ess_and_mcse_of_an_autoregressive_chain(phi):
    """The tolerance of 15 % is about four times the spread of these estimates over seeds."""
    result = summarize(autoregressive(phi))
    ess = 16_000 * (1 - phi) / (1 + phi)
    assert result.ess_bulk.item() == pytest.approx(ess, rel=0.15)
    assert result.mcse.item() == pytest.approx(1 / math.sqrt(ess), rel=0.1)
    assert abs(result.mean.item()) < 4.5 / math.sqrt(ess)  # false alarm: 7e-6
    assert result.r_hat.item() < 1.01
    assert 0 < result.ess_tail.item() < 1.2 * 16_000


def test_the_square_has_an_ess_of_its_own():
    """The squares of an autoregressive chain decay with φ²."""
    squares = summarize(autoregressive(0.9, n_draws=4000).square())
    assert squares.mcse.item() == pytest.approx(math.sqrt(2 / (32_000 * (1 - 0.81) / (1 + 0.81))), rel=0.15)


def test_r_hat_sees_chains_that_disagree():
    x = autoregressive(0.0)
    assert summarize(x + 2 * (torch.arange(8)[:, None] % 2)).r_hat.item() > 1.3


def test_coordinates_keep_their_shape_and_place():
    x = torch.randn(50, 4, 2, 3, generator=torch.Generator().manual_seed(1)) + torch.arange(6.0).reshape(2, 3) * 10
    result = summarize(x)
    assert all(field.shape == (2, 3) for field in result)
    assert torch.allclose(result.mean, x.double().mean((0, 1)))
    for i in range(2):
        for j in range(3):
            one = summarize(x[:, :, i, j])
            assert all(torch.allclose(a[i, j], b) for a, b in zip(result, one, strict=True))


def test_chains_without_an_answer_are_named():
    x = autoregressive(0.0, n_draws=10)
    for few in (x[:, :1], x[:3], x[:, 0, 0]):
        with pytest.raises(ValueError, match=r"at least 4 draws of 2 chains; got \("):
            summarize(few)
    with pytest.raises(ValueError, match="draw 3 of chain 2 is not finite"):
        summarize(x.index_put((torch.tensor(3), torch.tensor(2)), torch.tensor(math.nan, dtype=F64)))
    with pytest.raises(ValueError, match="coordinate 1 of 2 has one value in all draws"):
        summarize(torch.cat([x, torch.ones_like(x)], 2))


@pytest.mark.parametrize("n_chains", [2, 50, 200])
def test_a_chain_that_never_moves_is_named(n_chains):
    x = torch.randn(100, n_chains, 2, generator=torch.Generator().manual_seed(0))
    one = x.clone()
    one[:, 1, 1] = x[0, 1, 1]  # in one coordinate
    with pytest.raises(ValueError, match="chain 1 never moves: its coordinate 1 is"):
        summarize(one)
    x[:, -1] = x[0, -1]
    for chains in (x, x[..., 0], 1e-6 * x, (x > 0).float()):
        with pytest.raises(ValueError, match=f"chain {n_chains - 1} never moves: its coordinate 0 is"):
            summarize(chains)
    with pytest.raises(ValueError, match="coordinate 0 of 2 never moves, in no chain"):
        summarize(x[:1].expand(100, -1, -1))


def test_an_indicator_may_stay_the_same_beside_a_coordinate_that_moves():
    x = autoregressive(0.0, n_draws=100)
    rare = (x > 2.2).double()
    assert (rare == rare[0]).all(0).any() and not (rare == rare[0]).all()
    with pytest.raises(ValueError, match="never moves"):
        summarize(rare)
    assert summarize(torch.cat([rare, x], 2)).mean[0] == rare.mean()


@pytest.mark.parametrize("equal", [[0, 1, 2, 3], [1, 3], [0, 2]])
def test_equal_chains_are_named(equal):
    x = autoregressive(0.5, n_draws=200, n_chains=4)
    x[:, equal] = x[:, equal[:1]]
    for chains in (x, (x > 0).double(), torch.cat([x, x.square()], 2)):
        with pytest.raises(ValueError, match=rf"chains \{equal} are equal"):
            summarize(chains)
    assert summarize(torch.cat([x[:, :1], x[:, :1].roll(1, 0)], 1)).r_hat < 1.01, "a lag is not looked for"


def test_chains_that_start_apart_and_share_their_seed_are_named():
    x, draws = torch.tensor([[-3.0], [0.0], [3.0]], dtype=F64), []
    g = torch.Generator().manual_seed(0)
    for _ in range(1000):
        x = 0.8 * x + 0.6 * torch.randn(1, dtype=F64, generator=g)
        draws.append(x)
    with pytest.raises(ValueError, match=r"chains \[0, 1, 2\] are equal in all draws of the second half"):
        summarize(torch.stack(draws))


def test_summarize_takes_any_precision_and_default_device():
    x = torch.randn(60, 4, 2, generator=torch.Generator().manual_seed(0)).half()
    expected = summarize(x.double())
    with torch.device("meta"):
        for chains in (x, x.double().requires_grad_()):
            assert all(torch.equal(a, b) for a, b in zip(summarize(chains), expected, strict=True))
    whole = torch.randint(9, (60, 4), generator=torch.Generator().manual_seed(0))
    assert summarize(whole).mean == whole.double().mean()
    with pytest.raises(ValueError, match=r"got \(60, 4, 0\)"):
        summarize(x[..., :0])


def test_energy_gap_is_zero_on_average_and_has_its_sign():
    truth = GaussianEnergy(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64), offset=4.0)
    g = torch.Generator().manual_seed(0)
    a, b = truth.sample((20_000,), g), truth.sample((20_000,), g)
    z = energy_gap(truth, a, b) / math.sqrt(2 * 1.5 / 20_000)  # the variance of E is d/2
    assert abs(z) < 4.5
    wide = energy_gap(truth, a, 2 * b)
    assert wide == pytest.approx(4.5, abs=0.2), "draws twice as wide have an energy of 4 · d/2"
    assert energy_gap(truth, 2 * b, a) == pytest.approx(-wide)


@given(n=st.integers(1, 50), shift=st.floats(-1e4, 1e4))
def test_weight_ess_of_equal_weights_is_their_number(n, shift):
    assert weight_ess(torch.full((n,), shift)) == pytest.approx(n, rel=1e-6)


def test_weight_ess_of_unequal_weights():
    w = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    assert weight_ess(w.log() + 900) == pytest.approx(36 / 14, rel=1e-9)
    assert weight_ess(torch.tensor([0.0, -math.inf, -800.0])) == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf], [[0.0, 1.0]]])
def test_weights_that_are_none_are_named(bad):
    with pytest.raises(ValueError, match="finite largest value; got tensor"):
        weight_ess(torch.tensor(bad))
