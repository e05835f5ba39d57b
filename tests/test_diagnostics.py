"""Diagnostics against autoregressive chains, whose effective sample size is known, and against closed forms."""

import math

import pytest
import torch

from ebmlib.diagnostics import Check, checklist, energy_gap, stein_check, summarize
from ebmlib.energies import GaussianEnergy, GaussianMixtureEnergy

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


def test_energy_gap_is_zero_on_average_and_has_its_sign_and_its_error():
    truth = GaussianEnergy(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64), offset=4.0)
    g = torch.Generator().manual_seed(0)
    a, b = truth.sample((20_000,), g), truth.sample((5_000,), g)
    gap = energy_gap(truth, a, b)
    assert gap.std_error == pytest.approx(math.sqrt(1.5 / 20_000 + 1.5 / 5_000), rel=0.05)  # the variance of E is d/2
    assert abs(gap.z) < 4.5 and gap.expected == 0
    wide = energy_gap(truth, a, 2 * b)
    assert wide.value == pytest.approx(4.5, abs=0.2), "draws twice as wide have an energy of 4 · d/2"
    assert energy_gap(truth, 2 * b, a).value == pytest.approx(-wide.value)


def test_energy_gap_of_chains_has_their_error():
    """The energy of an autoregressive chain decays with φ²."""
    bell = standard_normal(1)
    chains, data = autoregressive(0.9), bell.sample((10**6,), torch.Generator().manual_seed(1))
    gap = energy_gap(bell, data, chains)
    assert gap.value == pytest.approx((chains.square().mean() - data.square().mean()).item() / 2)
    assert gap.std_error == pytest.approx(math.sqrt(0.5 / (16_000 * (1 - 0.81) / (1 + 0.81))), rel=0.15)


def standard_normal(dim):
    return GaussianEnergy(torch.zeros(dim, dtype=F64), torch.eye(dim, dtype=F64))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("origin", [0.0, 1e4])
def test_stein_check_measures_the_temperature_wherever_the_origin_lies(temperature, origin):
    g = torch.Generator().manual_seed(2)
    factor = torch.randn(3, 3, dtype=F64, generator=g)
    energy = GaussianEnergy(torch.full((3,), origin, dtype=F64), factor @ factor.T)
    x = origin + temperature**0.5 * (energy.sample((500, 8), g) - origin)
    check = stein_check(energy, x)
    assert check.expected == 3
    assert check.std_error == pytest.approx(temperature * math.sqrt(6 / 4000), rel=0.15)  # x·∇E / T is χ² with 3
    assert abs(check.value - 3 * temperature) < 4.5 * check.std_error
    assert (abs(check.z) > 10) == (temperature != 1)


def test_stein_check_keeps_its_promise_over_many_runs():
    """Over 150 runs z has mean 0 and spread 1; tolerances of 4.5 standard errors, and 0.05 as an MCSE is estimated."""
    quartic = lambda x: x.square().sum(1).square() / 4  # noqa: E731  radius r: density ∝ r exp(-r⁴/4) in the plane
    g = torch.Generator().manual_seed(3)
    z = []
    for _ in range(150):
        squared = math.sqrt(2) * torch.randn(100, 4, dtype=F64, generator=g).abs()  # r² is half normal
        angle = 2 * math.pi * torch.rand(100, 4, dtype=F64, generator=g)
        z.append(stein_check(quartic, squared.sqrt()[..., None] * torch.stack([angle.cos(), angle.sin()], -1)).z)
    z = torch.tensor(z)
    assert abs(z.mean()) < 4.5 / math.sqrt(150)
    assert abs(z.std() - 1) < 4.5 / math.sqrt(300) + 0.05


def test_stein_check_does_not_see_a_missed_mode():
    wells = GaussianMixtureEnergy(torch.tensor([[0.0], [10.0]], dtype=F64), std=1.0)
    one_well = stein_check(wells, autoregressive(0.5))
    assert abs(one_well.z) < 4.5 and one_well.expected == 1


def test_stein_check_counts_all_coordinates_of_an_event():
    x = torch.randn(400, 4, 2, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(4))
    check = stein_check(lambda x: x.square().flatten(1).sum(1) / 2, x)
    assert check.expected == 30 and abs(check.z) < 4.5


def test_checklist_names_what_rings():
    """R-hat of the healthy has room: 0.002 expected in excess of one; z beyond 4.5 in 7 of a million."""
    bell, g = standard_normal(2), torch.Generator().manual_seed(5)
    healthy, data = bell.sample((2000, 8), g), bell.sample((4000,), g)
    assert checklist(bell, healthy, data).alarms(z=4.5) == []
    assert checklist(bell, healthy[:40], data).alarms(r_hat=1.1, z=4.5) == ["ess"]
    assert checklist(bell, 1.2 * healthy, data).alarms(z=4.5) == ["stein", "gap"]
    assert checklist(bell, 1.2 * healthy).alarms(z=4.5) == ["stein"]
    assert checklist(bell, healthy, data + 1).alarms(z=4.5) == ["gap"]
    assert "r_hat" in checklist(bell, healthy + torch.arange(8)[:, None] % 2, data).alarms()


def test_checklist_takes_the_worst_of_coordinates_and_energy():
    chains = torch.cat([autoregressive(0.0), autoregressive(0.9, seed=1)], 2)
    found = checklist(standard_normal(2), chains)
    alone = summarize(torch.cat([chains, chains.square().sum(2, keepdim=True) / 2], 2))
    assert all(torch.allclose(a, b) for a, b in zip(found.summary, alone, strict=True))
    assert found.r_hat == alone.r_hat.max()
    assert found.ess == min(alone.ess_bulk.min(), alone.ess_tail.min()) < alone.ess_bulk[0] / 3
    assert found.stein == stein_check(standard_normal(2), chains) and found.gap is None


def test_an_alarm_that_is_no_number_rings():
    nothing = Check(math.nan, math.nan, 0.0)
    found = checklist(standard_normal(1), autoregressive(0.0))._replace(r_hat=math.nan, stein=nothing, gap=nothing)
    assert found.alarms() == ["r_hat", "stein", "gap"]


def test_a_check_without_an_error_has_no_finite_z():
    flat = energy_gap(lambda x: torch.zeros(len(x)), torch.zeros(9, 2), torch.zeros(9, 2))
    assert flat.std_error == 0 and math.isnan(flat.z)
    assert (Check(1.0, 0.0, 2.0).z, Check(3.0, 0.0, 2.0).z) == (-math.inf, math.inf)


@pytest.mark.parametrize("judge", [stein_check, checklist])
def test_chains_that_cannot_be_judged_are_named(judge):
    with pytest.raises(ValueError, match=r"at least 4 draws of 2 chains; got \("):
        judge(standard_normal(1), autoregressive(0.0, n_draws=3))
    with pytest.raises(ValueError, match="an energy must return shape"):
        judge(lambda x: x, autoregressive(0.0, n_draws=10))
