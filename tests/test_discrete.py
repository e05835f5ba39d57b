"""Chains on binary states, in double precision, against sums over all states."""

import math

import pytest
import torch
from torch import nn

from ebmlib.discrete import (
    DiscreteLangevin,
    Gibbs,
    InformedFlip,
    binary_states,
    flip_changes,
    pseudo_likelihood,
    ratio_matching,
    taylor_changes,
)
from ebmlib.energies import NotFinite
from ebmlib.samplers import run, trace

F64 = torch.float64
N = 5
TESTED = [
    (Gibbs(), 1),
    (Gibbs(), 4),
    (Gibbs(in_order=True), 1),
    (InformedFlip(), 1),
    (InformedFlip(), 4),
    (InformedFlip(exact=True), 1),
    (InformedFlip(exact=True), 4),
    (DiscreteLangevin(0.5), 1),
    (DiscreteLangevin(2.0), 3),
]


def network(n=N, seed=0):
    """An energy whose changes a gradient misses."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[2].weight.mul_(4)
    return lambda x: net(x)[:, 0]


def quadratic(n=N):
    g = torch.Generator().manual_seed(1)
    j = torch.randn(n, n, generator=g, dtype=F64).triu(1)
    a = torch.randn(n, generator=g, dtype=F64)
    return lambda x: -((x @ j) * x).sum(1) - x @ a


def exact(energy, n=N):
    x = binary_states(n, torch.empty(0, dtype=F64))
    return x, torch.softmax(-energy(x), 0).detach()


def test_all_states_once():
    x = binary_states(3, torch.empty(0, dtype=F64))
    assert x.dtype == F64 and len(x.unique(dim=0)) == 8 and x[1].tolist() == [1, 0, 0]
    assert binary_states(2).dtype == torch.get_default_dtype()
    with pytest.raises(ValueError, match="n_units"):
        binary_states(25)


def test_changes_are_differences_of_energies():
    energy, (x, _) = network(), exact(network())
    e, change = flip_changes(energy, x)
    for i in range(N):
        y = x.clone()
        y[:, i] = 1 - y[:, i]
        torch.testing.assert_close(change[:, i], energy(y) - energy(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(e, energy(x))
    assert change.requires_grad and not taylor_changes(energy, x)[1].requires_grad


def test_first_order_is_exact_for_pairs_and_not_for_a_network():
    x, _ = exact(quadratic())
    for a, b in zip(flip_changes(quadratic(), x), taylor_changes(quadratic(), x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    missed = flip_changes(network(), x)[1] - taylor_changes(network(), x)[1]
    assert missed.abs().max() > 1


@pytest.mark.parametrize("kernel, n_steps", TESTED, ids=str)
def test_kernels_leave_the_distribution_invariant(kernel, n_steps):
    """Exact draws as starts, 32 states counted at the end. One z beyond 5.5 in all 9 runs has chance 1e-5."""
    energy = network()
    states, p = exact(energy)
    g, n = torch.Generator().manual_seed(2), 60_000
    state = kernel.init(energy, states[torch.multinomial(p, n, replacement=True, generator=g)])
    for _ in range(n_steps):
        state, accept_prob = kernel.step(energy, state, g)
    assert accept_prob.shape == (n,) and 0 <= accept_prob.min() and accept_prob.max() <= 1
    share = torch.bincount((state.x @ 2.0 ** torch.arange(N, dtype=F64)).long(), minlength=2**N) / n
    z = (share - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < 5.5, f"z = {z}"
    torch.testing.assert_close(state.energy, energy(state.x).detach())
    if not isinstance(kernel, Gibbs):
        changes = flip_changes if getattr(kernel, "exact", False) else taylor_changes
        torch.testing.assert_close(state.change, changes(energy, state.x)[1].detach())


@pytest.mark.parametrize("kernel", [kernel for kernel, n in TESTED if n == 1], ids=str)
def test_kernels_reach_the_distribution(kernel):
    """From one state; 300 steps of 3 units mix. A false alarm has chance 1e-6 a kernel."""
    energy = network(3)
    states, p = exact(energy, 3)
    g, n = torch.Generator().manual_seed(3), 20_000
    x = run(kernel, energy, states[:1].expand(n, 3), 300, g)
    share = torch.bincount((x @ 2.0 ** torch.arange(3, dtype=F64)).long(), minlength=8) / n
    z = (share - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < 5.4, f"z = {z}"


def test_a_proposal_follows_its_density():
    """Informed flips: what moves, and how often, from one state, is q(i | x) times the acceptance probability."""
    energy, n = network(), 200_000
    x = torch.tensor([[1.0, 0, 1, 1, 0]], dtype=F64)
    for kernel, changes in ((InformedFlip(), taylor_changes), (InformedFlip(exact=True), flip_changes)):
        g = torch.Generator().manual_seed(4)
        state, _ = kernel.step(energy, kernel.init(energy, x.expand(n, N)), g)
        flips = (x - torch.eye(N, dtype=F64)).abs()
        q = torch.softmax(-changes(energy, x)[1] / 2, 1)[0].detach()
        back = torch.softmax(-changes(energy, flips)[1] / 2, 1).diagonal().detach()
        expected = q * (energy(x) - energy(flips)).exp().mul(back / q).clamp(max=1).detach()
        moved = (state.x != x).double().mean(0)
        z = (moved - expected) / (expected * (1 - expected) / n).sqrt()
        assert z.abs().max() < 5, f"{kernel}: z = {z}"


def test_untested_langevin_is_biased_and_less_so_with_small_steps():
    """Its stationary distribution by powers of its matrix: far from p at α = 2, nearer at .2, where E is quadratic."""
    energy = quadratic()
    states, p = exact(energy)
    away = []
    for step_size in (2.0, 0.5, 0.2):
        logit = (taylor_changes(energy, states)[1] + 1 / step_size) / -2
        flips = (states[:, None] != states[None]).to(F64)
        matrix = torch.where(flips > 0, torch.sigmoid(logit)[:, None], torch.sigmoid(-logit)[:, None]).prod(2)
        q = torch.linalg.matrix_power(matrix, 4096)[0]
        away.append((q - p).abs().sum().item() / 2)
        g, n = torch.Generator().manual_seed(5), 100_000
        kernel = DiscreteLangevin(step_size, test=False)
        start = states[torch.multinomial(q, n, replacement=True, generator=g)]
        state, accept_prob = kernel.step(energy, kernel.init(energy, start), g)
        share = torch.bincount((state.x @ 2.0 ** torch.arange(N, dtype=F64)).long(), minlength=2**N) / n
        z = (share - q) / (q * (1 - q) / n).sqrt()
        assert z.abs().max() < 5, f"z = {z}"
        assert (accept_prob == 1).all()
    assert away[0] > 0.05 and away[0] > away[1] > 2 * away[2], away


def test_losses_are_sums_of_conditionals():
    energy = network()
    x, p = exact(energy)
    log_p = p.log()
    index = torch.arange(len(x))
    pseudo, ratio = torch.zeros(len(x), dtype=F64), torch.zeros(len(x), dtype=F64)
    for i in range(N):
        log_conditional = log_p - torch.logaddexp(log_p, log_p[index ^ 2**i])
        pseudo -= log_conditional
        ratio += (1 - log_conditional.exp()) ** 2
    torch.testing.assert_close(pseudo_likelihood(energy, x).detach(), pseudo.mean())
    torch.testing.assert_close(ratio_matching(energy, x).detach(), ratio.mean())


def test_losses_are_least_at_the_truth():
    """Gradients of both in the parameters vanish in expectation under the model."""
    j = torch.randn(N, N, generator=torch.Generator().manual_seed(6), dtype=F64).triu(1).requires_grad_()

    def energy(x):
        return -((x @ j) * x).sum(1)

    x, p = exact(energy)
    for loss in (pseudo_likelihood, ratio_matching):
        mean = sum(weight * loss(energy, row[None]) for weight, row in zip(p, x, strict=True))
        (grad,) = torch.autograd.grad(mean, j)
        assert grad.triu(1).abs().max() < 1e-12, loss


def test_states_of_infinite_energy_are_never_entered():
    def energy(x):
        return torch.where(x[:, 0] > 0, math.inf, 0.0) + 0 * x.sum(1)

    for kernel in (Gibbs(), Gibbs(in_order=True)):
        draws = trace(kernel, energy, torch.zeros(50, 4, dtype=F64), 40, generator=torch.Generator().manual_seed(7)).x
        assert (draws[..., 0] == 0).all() and draws[-1, :, 1:].mean() > 0.3
    with pytest.raises(NotFinite):
        Gibbs().init(energy, torch.ones(2, 4, dtype=F64))


@pytest.mark.parametrize("kernel", [Gibbs(), InformedFlip(), InformedFlip(exact=True), DiscreteLangevin(1.0)], ids=str)
def test_bad_input_is_named(kernel):
    x = torch.zeros(4, 3, dtype=F64)
    for bad in (x[0], x[:0], x + 0.5, x.long(), x * torch.nan):
        with pytest.raises(ValueError, match="x must be floats, 0 or 1"):
            kernel.init(lambda v: v.sum(1), bad)
    with pytest.raises(ValueError, match="one value a row"):
        kernel.init(lambda v: v, x)
    for lost in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite):
            kernel.init(lambda v, lost=lost: v.sum(1) * 0 + lost, x)
    state = kernel.init(lambda v: v.sum(1), x)
    for lost in (math.nan, -math.inf):
        with pytest.raises(NotFinite):
            kernel.step(lambda v, lost=lost: v.sum(1) * 0 + lost, state)
    before = state.x.clone()
    kernel.step(lambda v: v.sum(1), state)
    assert torch.equal(state.x, before) and torch.equal(x, torch.zeros_like(x))


def test_step_size_is_positive():
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="step_size"):
            DiscreteLangevin(bad)
