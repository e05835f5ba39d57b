"""Estimators of log Z against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, MultivariateNormal, Normal

from ebmlib.energies import GaussianEnergy, GaussianMixtureEnergy
from ebmlib.partition import BLOCK, enumeration, importance_sampling, pareto_k, quadrature, weight_ess
from ebmlib.rbm import RBM, exact_log_z

F64 = torch.float64


def box(dim: int, half: float) -> tuple[torch.Tensor, torch.Tensor]:
    high = torch.full((dim,), half, dtype=F64)
    return -high, high


@pytest.mark.parametrize("dim, n_points", [(1, 100), (2, 100), (3, 50)])
def test_quadrature_of_a_gaussian(dim, n_points):
    energy = GaussianEnergy(torch.zeros(dim, dtype=F64), torch.eye(dim, dtype=F64), offset=-2.0)
    estimate = quadrature(energy, *box(dim, 9.0), n_points)
    assert abs(estimate.value - energy.log_z) < 1e-10
    assert estimate.std_error == 0 and estimate.ess == math.inf


def test_quadrature_spans_blocks():
    assert BLOCK < 300**2
    energy = GaussianMixtureEnergy(torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=F64), 0.5)
    assert abs(quadrature(energy, *box(2, 8.0), 300).value - energy.log_z) < 1e-10


@given(degree=st.integers(0, 9), n_points=st.integers(5, 8))
def test_quadrature_is_exact_for_polynomials(degree, n_points):
    """n nodes integrate degree 2n-1 exactly: ∫ over [0, 2] of x^degree."""
    low, high = torch.zeros(1, dtype=F64), torch.full((1,), 2.0, dtype=F64)
    estimate = quadrature(lambda x: -degree * x[:, 0].log(), low, high, n_points)
    assert estimate.value == pytest.approx(math.log(2 ** (degree + 1) / (degree + 1)), abs=1e-10)


def test_quadrature_takes_plain_numbers_and_anisotropic_boxes():
    assert quadrature(lambda x: torch.zeros(len(x)), [0, 0], [2, 5], 4).value == pytest.approx(math.log(10), abs=1e-6)


@given(bias=st.lists(st.floats(-20, 20), min_size=1, max_size=10))
@settings(max_examples=50)
def test_enumeration_of_independent_units(bias):
    b = torch.tensor(bias, dtype=F64)
    expected = torch.nn.functional.softplus(b).sum().item()
    assert enumeration(lambda x: -(x.double() @ b), len(bias)).value == pytest.approx(expected, abs=1e-10)


def test_enumeration_spans_blocks_and_visits_each_state_once():
    assert BLOCK < 2**18
    seen = []
    estimate = enumeration(lambda x: (seen.append(x.double() @ 2.0 ** torch.arange(18).double()), 0 * x[:, 0])[1], 18)
    assert estimate.value == pytest.approx(18 * math.log(2), abs=1e-10)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(2**18).double())


def test_importance_sampling_with_the_model_itself_is_exact():
    energy = GaussianEnergy(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64), offset=1.5)
    estimate = importance_sampling(energy, energy, 100)
    assert estimate.value == pytest.approx(energy.log_z.item(), abs=1e-12)
    assert estimate.std_error < 1e-12 and estimate.ess == pytest.approx(100)


def test_importance_sampling_error_bar_is_honest_where_the_proposal_is_wider():
    """Over repeats, the error in units of its own standard error is a standard normal."""
    energy = GaussianEnergy(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    proposal = MultivariateNormal(torch.zeros(2, dtype=F64), 2 * torch.eye(2, dtype=F64))
    torch.manual_seed(0)
    repeats = [importance_sampling(energy, proposal, 4_000) for _ in range(400)]
    z = torch.tensor([(r.value - energy.log_z) / r.std_error for r in repeats])
    # the mean of 400 is within .25 and the mean square within 1 ± .35 but for chances of 6e-7 and 1e-6
    assert abs(z.mean()) < 0.25, z.mean()
    assert abs(z.square().mean() - 1) < 0.35, z.square().mean()
    exact_ess = 4_000 / (4 / 3)  # n Z² / E w², with E w² / Z² = ∫ p² / q = (4/3)^(dim/2)
    assert sum(r.ess for r in repeats) / 400 == pytest.approx(exact_ess, rel=0.02)


def test_importance_sampling_underflows_nowhere():
    energy = GaussianEnergy(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64), offset=5_000.0)
    proposal = Independent(Normal(torch.zeros(1, dtype=F64), 1.5), 1)
    torch.manual_seed(0)
    estimate = importance_sampling(energy, proposal, 50_000)
    assert abs(estimate.value - energy.log_z) < 5 * estimate.std_error


def test_bad_input_is_named():
    flat = lambda x: torch.zeros(len(x))  # noqa: E731
    normal = Independent(Normal(torch.zeros(2), 1.0), 1)
    with pytest.raises(ValueError, match=r"\[1.0\] and \[0.0\]"):
        quadrature(flat, [1.0], [0.0], 5)
    with pytest.raises(ValueError, match=r"low and high"):
        quadrature(flat, [0.0, 0.0], [1.0], 5)
    with pytest.raises(ValueError, match="n_points must be at least 1; got -3"):
        quadrature(flat, [0.0], [1.0], -3)
    with pytest.raises(ValueError, match="got 31"):
        enumeration(flat, 31)
    with pytest.raises(ValueError, match="got -1"):
        enumeration(flat, -1)
    with pytest.raises(ValueError, match="n_samples must be at least 2; got -5"):
        importance_sampling(flat, normal, -5)
    for bad in (math.nan, math.inf, -math.inf):
        broken = lambda x, bad=bad: torch.full((len(x),), bad)  # noqa: E731
        for estimate in (
            lambda e: quadrature(e, [0.0], [1.0], 5),
            lambda e: enumeration(e, 3),
            lambda e: importance_sampling(e, normal, 10),
        ):
            with pytest.raises(ValueError, match=f"row 0 .* is {bad}"):
                estimate(broken)
    with pytest.raises(ValueError, match="an energy must return .* one value a row"):
        importance_sampling(lambda x: x, normal, 10)
    with pytest.raises(ValueError, match=r"the proposal must return shape \(10,\), .*; got \(10, 2\)"):
        importance_sampling(flat, Normal(torch.zeros(2), 1.0), 10)


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


def test_the_grid_has_the_dtype_and_the_device_of_the_corners_that_are_tensors():
    """A plain 0.1 is rounded once: in float64 log 0.1 is right to the last digits."""
    low, exact = torch.zeros(1, dtype=F64), math.log(0.1)
    seen = []

    def flat(x):
        seen.append(x.dtype)
        return torch.zeros_like(x[:, 0])

    for corners in ((low, [0.1]), ([-0.1], low), (low, torch.full((1,), 0.1, dtype=F64)), (np.zeros(1), [0.1])):
        assert quadrature(flat, *corners, 5).value == pytest.approx(exact, abs=1e-14)
    assert quadrature(flat, torch.zeros(1), torch.ones(1, dtype=F64), 5).value == pytest.approx(0, abs=1e-14)
    assert quadrature(flat, torch.zeros(1, dtype=torch.long), low + 0.1, 5).value == pytest.approx(exact, abs=1e-14)
    assert set(seen) == {F64}
    seen.clear()
    quadrature(flat, [0.0], [1.0], 5)
    quadrature(flat, torch.tensor([0]), torch.tensor([1]), 5)
    assert set(seen) == {torch.float32}
    seen.clear()
    torch.set_default_dtype(F64)
    try:
        quadrature(flat, torch.zeros(1, dtype=torch.float32), [1.0], 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert set(seen) == {torch.float32}


def test_the_default_device_does_not_matter_where_a_tensor_is_given():
    low, high = box(2, 9.0)
    energy = GaussianEnergy(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    torch.set_default_device("meta")
    try:
        values = quadrature(energy, low, high, 60).value, quadrature(energy, low, [9, 9], 60).value
        units = enumeration(lambda x: x.sum(1), 3, device="cpu").value
    finally:
        torch.set_default_device(None)
    assert values == pytest.approx(2 * (energy.log_z.item(),), abs=1e-10)
    assert units == pytest.approx(3 * math.log1p(math.exp(-1)), abs=1e-6)


def test_enumeration_makes_states_of_the_dtype_that_is_asked_for():
    torch.manual_seed(0)
    rbm = RBM(6, 3).double()
    rbm.weight.data *= 100
    assert enumeration(rbm, 6, dtype=F64).value == pytest.approx(exact_log_z(rbm).item(), abs=1e-12)


@pytest.mark.parametrize("corners", [([-math.inf], [math.inf]), ([0.0], [math.inf]), ([math.nan], [1.0]), ([], [])])
def test_a_box_that_is_not_finite_or_has_no_side_is_named(corners):
    with pytest.raises(ValueError, match="low and high must be"):
        quadrature(lambda x: torch.zeros(len(x)), *corners, 5)


def test_importance_sampling_spans_blocks():
    n, sizes = 2 * BLOCK + 5, []

    class Proposal(GaussianEnergy):
        def sample(self, shape):
            sizes.append(shape[0])
            return super().sample(shape)

    energy = Proposal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), offset=1.5)
    estimate = importance_sampling(energy, energy, n)
    assert sizes == [BLOCK, BLOCK, 5]
    assert estimate.value == pytest.approx(energy.log_z.item(), abs=1e-10) and estimate.ess == pytest.approx(n)


def test_no_graph_is_built():
    w = torch.ones(1, dtype=F64, requires_grad=True)
    graphs = []
    energy = lambda x: (graphs.append((e := w * x.square().sum(1)).requires_grad), e)[1]  # noqa: E731
    quadrature(energy, *box(1, 3.0), 5)
    enumeration(energy, 3)
    importance_sampling(energy, Independent(Normal(torch.zeros(1, dtype=F64), 1.0), 1), 5)
    assert graphs == [False] * 3


@pytest.mark.parametrize("shape", [0.3, 1.0, 2.0])
def test_pareto_k_is_the_shape_of_a_pareto_tail(shape):
    """Weights u^(-k) have it exactly; over 50 fits of 300 tail draws, each (1 + k)/√300 wide, the mean is within 6."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(50, 10_000, generator=generator, dtype=F64)
    mean = sum(pareto_k(-shape * row.log() + 700) for row in u) / 50
    shrunk = (300 * shape + 5) / 310  # its weak prior is worth ten draws at one half
    assert abs(mean - shrunk) < 6 * (1 + shape) / math.sqrt(300 * 50), mean


def test_pareto_k_tells_a_narrow_proposal_from_a_wide_one():
    """log w is r²/2 · (1/σ² - 1): for σ² < 1/2 the weights have no variance, and k is above one half."""
    r2 = torch.randn(4_000, generator=torch.Generator().manual_seed(0), dtype=F64).square()
    assert pareto_k(r2 * 0.25**2 / 2 * (1 / 0.25**2 - 1)) > 0.5  # k = 1 - σ² far out
    assert pareto_k(r2 * 2**2 / 2 * (1 / 2**2 - 1)) < 0.5


def test_weights_without_a_tail_are_named():
    for bad in (torch.zeros(24), torch.full((30,), math.nan), torch.full((30,), -math.inf), torch.zeros(30, 2)):
        with pytest.raises(ValueError, match="25 finite values at least; got tensor"):
            pareto_k(bad)
    with pytest.raises(ValueError, match="the 20 largest weights are fewer than five"):
        pareto_k(torch.cat([torch.zeros(99), torch.full((1,), 800.0)]))
