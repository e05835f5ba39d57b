"""Machines small enough to sum over all their states, in double precision."""

import itertools
import math

import pytest
import torch

from ebmlib.energies import NotFinite
from ebmlib.rbm import RBM, BlockGibbs, SingleFlip, State, exact_log_z, sample_bits
from ebmlib.samplers import run, trace

F64 = torch.float64


def states(n_units):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n_units)), dtype=F64)


def machine(n_visible, n_hidden, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (n_visible, n_hidden), (n_visible,), (n_hidden,)
    return RBM.from_parameters(*(scale * torch.randn(shape, generator=g, dtype=F64) for shape in shapes))


def joint_energy(rbm, x, h):
    return -(x @ rbm.weight * h).sum(-1) - x @ rbm.visible_bias - h @ rbm.hidden_bias


def joint_table(rbm):
    """log p(x, h) for all pairs, shape (n_x, n_h), by brute force."""
    x, h = states(len(rbm.visible_bias)), states(len(rbm.hidden_bias))
    log_p = -joint_energy(rbm, x[:, None], h[None])
    return log_p - torch.logsumexp(log_p.flatten(), 0)


def test_free_energy_sums_the_hidden_units_out():
    rbm = machine(5, 3)
    x, h = states(5), states(3)
    expected = -torch.logsumexp(-joint_energy(rbm, x[:, None], h[None]), 1)
    torch.testing.assert_close(rbm(x), expected, rtol=0, atol=1e-12)


def test_conditionals_are_those_of_the_joint():
    rbm = machine(4, 3)
    p = joint_table(rbm).exp()
    given_x = p @ states(3) / p.sum(1, keepdim=True)
    given_h = p.T @ states(4) / p.sum(0)[:, None]
    torch.testing.assert_close(rbm.hidden_prob(states(4)), given_x, rtol=0, atol=1e-12)
    torch.testing.assert_close(rbm.visible_prob(states(3)), given_h, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (5, 7), (11, 4), (9, 9), (17, 1), (2, 12)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_exact_log_z_is_the_brute_sum(shape, scale):
    rbm = machine(*shape, scale)
    brute = torch.logsumexp(-rbm(states(shape[0])), 0)
    assert abs(exact_log_z(rbm) - brute) < 1e-9


def test_exact_log_z_takes_logarithms_in_time():
    """Each unit has up to 110 nats: products of more than five would overflow."""
    rbm = machine(150, 3, scale=30.0)
    h = states(3)
    brute = torch.logsumexp(
        h @ rbm.hidden_bias + torch.logaddexp(h @ rbm.weight.T + rbm.visible_bias, h[:1, :1]).sum(1), 0
    )
    torch.testing.assert_close(exact_log_z(rbm), brute, rtol=1e-13, atol=0)


def test_exact_log_z_takes_the_logarithm_below_the_largest_number():
    """Two groups of four units have 400 nats each: exp(800) is infinite."""
    rbm = RBM.from_parameters(torch.zeros(8, 2), torch.full((8,), 100.0), torch.zeros(2))
    assert exact_log_z(rbm).item() == pytest.approx(800 + 2 * math.log(2), abs=1e-9)


def test_exact_log_z_of_many_states():
    rbm = machine(24, 19)
    tied = RBM.from_parameters(torch.zeros_like(rbm.weight), rbm.visible_bias, rbm.hidden_bias)
    closed = torch.nn.functional.softplus(torch.cat([rbm.visible_bias, rbm.hidden_bias])).sum()
    assert abs(exact_log_z(tied) - closed) < 1e-9


def test_exact_log_z_carries_the_gradient():
    rbm = machine(6, 4)
    exact_log_z(rbm).backward()
    p = joint_table(rbm).exp()
    torch.testing.assert_close(rbm.weight.grad, states(6).T @ p @ states(4), rtol=0, atol=1e-10)
    torch.testing.assert_close(rbm.visible_bias.grad, p.sum(1) @ states(6), rtol=0, atol=1e-10)
    torch.testing.assert_close(rbm.hidden_bias.grad, p.sum(0) @ states(4), rtol=0, atol=1e-10)


def test_single_precision_machines_are_summed_in_double():
    rbm = RBM(6, 4)
    assert exact_log_z(rbm).dtype == F64


def test_tempered_ends_at_the_base_and_at_the_machine():
    rbm, logits = machine(5, 3), torch.linspace(-1, 1, 5, dtype=F64)
    x = states(5)
    base, half, same = (rbm.tempered(beta, logits) for beta in (0.0, 0.5, 1.0))
    torch.testing.assert_close(same(x), rbm(x), rtol=0, atol=1e-12)
    units = torch.distributions.Independent(torch.distributions.Bernoulli(logits=logits), 1)
    closed = torch.nn.functional.softplus(logits).sum() + 3 * torch.log(torch.tensor(2.0, dtype=F64))
    assert abs(exact_log_z(base) - closed) < 1e-12
    torch.testing.assert_close(-base(x) - closed, units.log_prob(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(half.weight.data, rbm.weight.data / 2)
    torch.testing.assert_close(half.visible_bias.data, (logits + rbm.visible_bias.data) / 2)
    before = torch.get_rng_state()
    rbm.tempered(0.3, logits)
    assert torch.equal(before, torch.get_rng_state()), "a path draws no random numbers"


@pytest.mark.parametrize("beta", [0.4, 1.0])
@pytest.mark.parametrize(
    "kernel, n_steps", [(BlockGibbs(), 1), (BlockGibbs(), 3), (SingleFlip(), 1), (SingleFlip(), 5)]
)
def test_kernels_leave_the_machine_invariant(kernel, n_steps, beta):
    """Exact draws as starts; 16 states counted at the end. One z beyond 5.2 in all 8 runs has chance 3e-5."""
    rbm = machine(4, 3, scale=1.5).tempered(beta, torch.ones(4, dtype=F64))
    p = torch.softmax(-rbm(states(4)), 0)
    g = torch.Generator().manual_seed(1)
    n = 200_000
    state = kernel.init(rbm, states(4)[torch.multinomial(p, n, replacement=True, generator=g)])
    for _ in range(n_steps):
        state, accept_prob = kernel.step(rbm, state, g)
    assert accept_prob.shape == (n,) and 0 <= accept_prob.min() and accept_prob.max() <= 1
    number = (state.x @ (2.0 ** torch.arange(3, -1, -1, dtype=F64))).long()
    share = torch.bincount(number, minlength=16) / n
    z = (share - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < 5.2, f"z = {z}"
    if state.energy is not None:
        torch.testing.assert_close(state.energy, rbm(state.x))


def test_kernels_follow_the_conditionals():
    """From one start, the next state has the exact distribution of one block: what invariance alone does not show."""
    rbm = machine(3, 2, scale=2.0)
    g = torch.Generator().manual_seed(2)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=F64).expand(200_000, 3)
    state, _ = BlockGibbs().step(rbm, BlockGibbs().init(rbm, x), g)
    h = states(2)
    on = rbm.hidden_prob(x[:1])
    p_h = (h * on + (1 - h) * (1 - on)).prod(1)
    expected = p_h @ rbm.visible_prob(h)
    z = (state.x.mean(0) - expected) / (expected * (1 - expected) / len(x)).sqrt()
    assert z.abs().max() < 5, f"z = {z}: a false alarm has chance 2e-6"


def test_a_flip_changes_at_most_one_unit_and_leaves_its_input():
    rbm, g = machine(6, 2), torch.Generator().manual_seed(3)
    x = sample_bits(torch.full((500, 6), 0.5, dtype=F64), g)
    before = x.clone()
    state = SingleFlip().init(rbm, x)
    new, accept_prob = SingleFlip().step(rbm, state, g)
    assert torch.equal(x, before)
    flips = (new.x != x).sum(1)
    assert flips.max() == 1 and (flips[accept_prob == 1] == 1).all()


def test_single_flip_runs_on_any_energy_and_reaches_its_law():
    bias = torch.tensor([-1.0, 0.5, 2.0], dtype=F64)
    g = torch.Generator().manual_seed(4)
    state = SingleFlip().init(lambda x: -x @ bias, torch.zeros(20_000, 3, dtype=F64))
    for _ in range(100):
        state, _ = SingleFlip().step(lambda x: -x @ bias, state, g)
    p = bias.sigmoid()
    z = (state.x.mean(0) - p) / (p * (1 - p) / 20_000).sqrt()
    assert z.abs().max() < 5


def test_sample_bits_are_bits_of_the_right_frequency():
    p = torch.tensor([0.0, 0.1, 0.9, 1.0], dtype=F64).expand(100_000, 4)
    bits = sample_bits(p, torch.Generator().manual_seed(5))
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert bits[:, 0].sum() == 0 and bits[:, 3].min() == 1
    assert ((bits.mean(0) - p[0]).abs() < 5 * (0.09 / 100_000) ** 0.5).all()


@pytest.mark.parametrize(
    "x", [torch.full((2, 3), 0.5), torch.zeros(2, 4), torch.zeros(3), torch.full((2, 3), torch.nan)]
)
def test_states_that_are_not_binary_or_do_not_fit_are_refused(x):
    rbm = RBM(3, 2)
    with pytest.raises(ValueError, match=r"must be binary|must be \(batch, 3\)"):
        BlockGibbs().init(rbm, x)
    if x.shape[1:] != (3,):
        with pytest.raises(ValueError, match=r"\(batch, 3\)"):
            rbm(x)
    else:
        with pytest.raises(ValueError, match="binary"):
            SingleFlip().init(rbm, x)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at least one unit"):
        RBM(4, -1)
    with pytest.raises(ValueError, match="expected shapes"):
        RBM.from_parameters(torch.zeros(3, 2), torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="beta"):
        RBM(3, 2).tempered(1.5, torch.zeros(3))
    with pytest.raises(ValueError, match="expected shapes"):
        RBM(3, 2).tempered(0.5, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="2\\^25"):
        exact_log_z(RBM(25, 30))
    with pytest.raises(ValueError, match="too large"):
        exact_log_z(machine(4, 3, scale=1e5))


@pytest.mark.parametrize("name", ["weight", "visible_bias", "hidden_bias"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_parameters_that_are_not_finite_are_named(name, bad):
    rbm = machine(4, 3)
    getattr(rbm, name).data.view(-1)[0] = bad
    with pytest.raises(NotFinite, match=r"log Z is (nan|inf): parameters are not finite"):
        exact_log_z(rbm)
    with pytest.raises(NotFinite, match="the energy of row"):
        run(SingleFlip(), rbm, torch.ones(5, 4, dtype=F64), 3)
    if bad != bad:  # an infinite bias means a unit that is always on
        for repeat in (run, trace):
            with pytest.raises(NotFinite, match=r"after 10 steps of BlockGibbs\(\): the state of chain 0 of 5"):
                repeat(BlockGibbs(), rbm, torch.zeros(5, 4, dtype=F64), 10)


def test_a_unit_with_infinite_bias_is_always_on():
    rbm = RBM.from_parameters(torch.zeros(2, 1), torch.tensor([torch.inf, -torch.inf]), torch.zeros(1))
    assert run(BlockGibbs(), rbm, torch.zeros(5, 2), 3).tolist() == [[1, 0]] * 5


def test_bits_of_nan_are_nan():
    p = torch.tensor([0.0, torch.nan, 1.0])
    torch.testing.assert_close(sample_bits(p), p, equal_nan=True)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_single_flip_names_an_energy_that_becomes_bad_on_its_way(bad):
    """Good at the start, ∞ in row 0 and bad in row 1 after any flip."""

    def energy(x):
        moved = x.sum(1) > 0
        return torch.where(moved, torch.tensor([torch.inf, bad]), 0.0)

    with pytest.raises(NotFinite, match=f"the energy of row 1 of 2 is {bad}"):
        run(SingleFlip(), energy, torch.zeros(2, 3), 1)


def test_single_flip_never_enters_a_state_of_infinite_energy():
    """All states but (1, 1, 1), each with the same probability."""
    g = torch.Generator().manual_seed(6)
    energy = lambda x: torch.where(x.sum(1) == 3, torch.inf, 0.0).double()  # noqa: E731
    x = run(SingleFlip(), energy, torch.zeros(20_000, 3, dtype=F64), 60, g)
    count = torch.bincount((x @ torch.tensor([1.0, 2, 4], dtype=F64)).long(), minlength=8)
    assert count[7] == 0
    z = (count[:7] / 20_000 - 1 / 7) / (6 / 49 / 20_000) ** 0.5
    assert z.abs().max() < 5, f"z = {z}: a false alarm has chance 4e-6"
    with pytest.raises(NotFinite, match="the energy of row 0 of 1 is inf"):
        run(SingleFlip(), energy, torch.ones(1, 3, dtype=F64), 1)


def test_energies_of_another_shape_are_refused():
    x = torch.zeros(5, 6)
    for energy in (lambda x: x.sum(1, keepdim=True), lambda x: x.sum()):
        with pytest.raises(ValueError, match=r"must return shape \(5,\)"):
            run(SingleFlip(), energy, x, 1)
        with pytest.raises(ValueError, match=r"must return shape \(5,\)"):
            SingleFlip().step(energy, State(x, torch.zeros(5)))


@pytest.mark.parametrize("kernel", [BlockGibbs(), SingleFlip()])
def test_empty_starts_are_refused_and_graphs_are_left_behind(kernel):
    with pytest.raises(ValueError, match=r"not empty; got \(0, 3\)"):
        kernel.init(RBM(3, 2), torch.zeros(0, 3))
    assert not run(kernel, RBM(3, 2), torch.zeros(4, 3, requires_grad=True), 0).requires_grad
    assert trace(kernel, RBM(3, 2), torch.zeros(4, 3, requires_grad=True), 2).x.shape == (2, 4, 3)


def test_single_flip_takes_whole_numbers():
    chains = trace(SingleFlip(), lambda x: x.sum(1).double(), torch.zeros(5, 6, dtype=torch.long), 4, thin=2)
    assert chains.x.dtype == torch.long and chains.accept_prob.dtype == torch.float32
    assert ((0 < chains.accept_prob) & (chains.accept_prob <= 1)).all()
    with pytest.raises(ValueError, match=r"not empty; got \(5, 0\)"):
        SingleFlip().init(lambda x: x.sum(1), torch.zeros(5, 0))
