"""The Ising torus in double precision, against sums over all states."""

import math

import pytest
import torch

from ebmlib.discrete import binary_states, flip_changes, taylor_changes
from ebmlib.energies import by_autograd, energy_and_grad
from ebmlib.ising import Checkerboard, IsingEnergy, SwendsenWang, kaufman_log_z, transfer_matrix
from ebmlib.samplers import run

F64 = torch.float64
CRITICAL = math.log(1 + math.sqrt(2)) / 2
STATES = binary_states(16, torch.empty(0, dtype=F64))


def couplings(scale=0.5):
    return scale * torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_energy_counts_each_bond_once():
    energy, x = IsingEnergy(3, 4, 0.7), binary_states(12, torch.empty(0, dtype=F64))[::37]
    s, e = (2 * x - 1).view(-1, 3, 4), torch.zeros(len(x), dtype=F64)
    for i in range(3):
        for j in range(4):
            e -= 0.7 * s[:, i, j] * (s[:, (i + 1) % 3, j] + s[:, i, (j + 1) % 4])
    torch.testing.assert_close(energy(x), e)
    assert energy(torch.ones(1, 12, dtype=F64)).item() == pytest.approx(-0.7 * 24)


@pytest.mark.parametrize("coupling", [0.4, couplings()], ids=["one", "each"])
def test_gradient_by_hand_and_changes(coupling):
    energy, x = IsingEnergy(4, 4, coupling), STATES[::501]
    for hand, graph in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(hand, graph)
    for exact, first_order in zip(flip_changes(energy, x), taylor_changes(energy, x), strict=True):
        torch.testing.assert_close(exact, first_order, rtol=0, atol=1e-12)
    p = torch.sigmoid(2 * energy.field(energy.spins(x)).flatten(1))
    torch.testing.assert_close(torch.where(x > 0, p, 1 - p), torch.sigmoid(flip_changes(energy, x)[1]))


@pytest.mark.parametrize("coupling", [-0.3, 0.0, 0.2, CRITICAL, 0.6])
def test_transfer_matrix_is_the_sum_over_all_states(coupling):
    e, m = IsingEnergy(4, 4, coupling)(STATES), (2 * STATES - 1).sum(1)
    log_z = torch.logsumexp(-e, 0)
    p = (-e - log_z).exp()
    torus = transfer_matrix(4, 4, coupling)
    assert abs(torus.log_z - log_z) < 1e-10
    assert abs(torus.energy - p @ e) < 1e-10 and abs(torus.square_magnetisation - p @ m**2) < 1e-9


def test_transfer_matrix_knows_rows_from_columns():
    wide, tall = transfer_matrix(3, 8, 0.4), transfer_matrix(8, 3, 0.4)
    for a, b in zip(wide, tall, strict=True):
        assert a == pytest.approx(b, abs=1e-9)
    states = binary_states(15, torch.empty(0, dtype=F64))
    brute = torch.logsumexp(-IsingEnergy(3, 5, 0.4)(states), 0).item()
    assert transfer_matrix(3, 5, 0.4).log_z == pytest.approx(brute, abs=1e-10)


@pytest.mark.parametrize("sides", [(4, 4), (5, 8), (6, 3)])
@pytest.mark.parametrize("coupling", [0.2, CRITICAL, 0.7])
def test_kaufmans_sum_is_the_transfer_matrix(sides, coupling):
    j = torch.tensor(coupling, dtype=F64, requires_grad=True)
    log_z, torus = kaufman_log_z(*sides, j), transfer_matrix(*sides, coupling)
    (slope,) = torch.autograd.grad(log_z, j)
    assert abs(log_z.item() - torus.log_z) < 1e-10
    assert abs(-coupling * slope.item() - torus.energy) < 1e-9


def test_kaufmans_sum_has_a_gradient_at_a_weak_coupling():
    """There one of its halves rounds to zero."""
    j = torch.tensor(0.1, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(kaufman_log_z(32, 32, j), j)
    step = 1e-4
    expected = (kaufman_log_z(32, 32, 0.1 + step) - kaufman_log_z(32, 32, 0.1 - step)) / (2 * step)
    assert slope.item() == pytest.approx(expected.item(), rel=1e-6)


def test_large_tori_come_near_onsagers_energy():
    """At the critical point the infinite lattice has -J √2 a site; a torus is off by a multiple of 1/side."""
    off = []
    for side in (16, 64, 256):
        j = torch.tensor(CRITICAL, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(kaufman_log_z(side, side, j), j)
        off.append(side * (slope.item() / side**2 - math.sqrt(2)))
    assert off[0] == pytest.approx(off[1], rel=0.01) and off[1] == pytest.approx(off[2], rel=0.01), off


@pytest.mark.parametrize("kernel", [Checkerboard(), SwendsenWang()], ids=str)
@pytest.mark.parametrize("coupling", [0.3, 0.6, -0.4, couplings()], ids=["weak", "strong", "negative", "mixed"])
def test_kernels_leave_the_torus_invariant(kernel, coupling):
    """From exact draws: energy, M² and the 32 bonds after 2 steps. A false alarm in all runs has chance 2e-5."""
    energy, g, n = IsingEnergy(4, 4, coupling), torch.Generator().manual_seed(1), 40_000
    p = torch.softmax(-energy(STATES), 0)
    x = run(kernel, energy, STATES[torch.multinomial(p, n, replacement=True, generator=g)], 2, g)

    def statistics(x):
        s = energy.spins(x)
        bonds = torch.cat([(s * s.roll(-1, 2)).flatten(1), (s * s.roll(-1, 1)).flatten(1)], 1)
        return torch.cat([bonds, energy(x)[:, None], s.sum((1, 2))[:, None] ** 2], 1)

    truth = statistics(STATES)
    mean = p @ truth
    std = (p @ (truth - mean) ** 2).sqrt()
    z = (statistics(x).mean(0) - mean) / std * math.sqrt(n)
    assert z.abs().max() < 5.5, f"z = {z}"


@pytest.mark.parametrize("kernel, n_steps", [(Checkerboard(), 400), (SwendsenWang(), 60)], ids=str)
def test_kernels_reach_the_torus(kernel, n_steps):
    """From one state. A false alarm has chance 1e-5."""
    energy, g = IsingEnergy(4, 4, CRITICAL), torch.Generator().manual_seed(2)
    x = run(kernel, energy, torch.zeros(4_000, 16, dtype=F64), n_steps, g)
    torus = transfer_matrix(4, 4, CRITICAL)
    for value, mean in ((energy(x), torus.energy), ((2 * x - 1).sum(1) ** 2, torus.square_magnetisation)):
        z = (value.mean() - mean) / value.std() * math.sqrt(len(x))
        assert abs(z) < 4.6, f"z = {z}"


def test_clusters_of_a_frozen_lattice_are_whole():
    """With J = 50 all bonds hold: all spins of a chain flip together, and each chain by its own coin."""
    energy = IsingEnergy(6, 5, 50.0)
    x = run(SwendsenWang(), energy, torch.ones(400, 30, dtype=F64), 1, torch.Generator().manual_seed(3))
    assert ((x.sum(1) == 0) | (x.sum(1) == 30)).all()
    assert abs((x[:, 0].mean() - 0.5) / 0.025) < 5


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 3"):
        IsingEnergy(2, 4, 0.3)
    with pytest.raises(ValueError, match="coupling"):
        IsingEnergy(4, 4, torch.zeros(3))
    energy = IsingEnergy(4, 5, 0.3)
    with pytest.raises(ValueError, match="20"):
        energy(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="odd"):
        Checkerboard().init(energy, torch.zeros(2, 20))
    for kernel, energy in ((Checkerboard(), IsingEnergy(4, 4, 0.3)), (SwendsenWang(), IsingEnergy(4, 4, 0.3))):
        for bad in (torch.full((2, 16), 0.5), torch.zeros(0, 16), torch.full((2, 16), math.nan)):
            with pytest.raises(ValueError, match="0 or 1"):
                kernel.init(energy, bad)
    for call in (lambda: transfer_matrix(4, 13, 0.3), lambda: transfer_matrix(2, 4, 0.3)):
        with pytest.raises(ValueError, match="sides"):
            call()
    for bad in (0.0, -0.3, math.nan):
        with pytest.raises(ValueError, match="positive"):
            kaufman_log_z(4, 4, bad)
