"""One pass of training takes the steps that autograd gives, and its chains are block Gibbs chains."""

import pytest
import torch

from ebmlib import rbm_training
from ebmlib.energies import NotFinite
from ebmlib.rbm import RBM, BlockGibbs, exact_log_z
from ebmlib.rbm_training import contrastive_epoch

F64 = torch.float64


def machine(n_visible=4, n_hidden=3, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (n_visible, n_hidden), (n_visible,), (n_hidden,)
    return RBM.from_parameters(*(scale * torch.randn(shape, generator=g, dtype=F64) for shape in shapes))


def bits(*shape, seed=0):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(F64)


def parameters(rbm):
    return [p.detach().clone() for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)]


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("n_chains", [None, 5, 40])
def test_a_batch_is_one_step_down_the_contrast_of_free_energies(n_chains, n_steps):
    """The chains of a single batch come back: autograd at these x_model gives the step that was taken."""
    rbm, x = machine(), bits(20, 4)
    before = RBM.from_parameters(rbm.weight, rbm.visible_bias, rbm.hidden_bias)
    chains = None if n_chains is None else bits(n_chains, 4, seed=1)
    x_model = contrastive_epoch(rbm, x, 0.3, chains, n_steps, 20, torch.Generator().manual_seed(2))
    assert x_model.shape == (n_chains or 20, 4) and ((x_model == 0) | (x_model == 1)).all()
    (before(x).mean() - before(x_model).mean()).backward()
    for new, old in zip(parameters(rbm), (before.weight, before.visible_bias, before.hidden_bias), strict=True):
        torch.testing.assert_close(new, old.data - 0.3 * old.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_chains_take_k_gibbs_steps_from_data_or_from_where_they_were(persistent, n_steps):
    """The mean of x_model against that of `BlockGibbs` from the same start: |z| > 5 in one of 16 has chance 1e-5."""
    n, g = 100_000, torch.Generator().manual_seed(3)
    rbm = machine(scale=2.0)
    start, other = bits(1, 4, seed=4).expand(n, 4), bits(1, 4, seed=5).expand(n, 4)
    state = BlockGibbs().init(rbm, start)
    for _ in range(n_steps):
        state, _ = BlockGibbs().step(rbm, state, g)
    data, chains = (other, start) if persistent else (start, None)
    x_model = contrastive_epoch(rbm, data, 1e-9, chains, n_steps, n, g)
    difference = x_model.mean(0) - state.x.mean(0)
    z = difference / ((x_model.var(0) + state.x.var(0)) / n).sqrt().clamp(min=1e-9)
    assert z.abs().max() < 5, f"z = {z}"


@pytest.mark.parametrize("persistent", [False, True])
def test_biases_that_add_up_to_much_stay_on(persistent):
    """Of the units that are on, the biases x·a or h·b add up to far below -40; the next x is all but certain."""
    ones = torch.ones(3, 3, dtype=F64)
    turns_off = RBM.from_parameters(20 * ones[:, :1], -30 * ones[0], 0 * ones[0, :1])  # x·a = -90; W h + a = -10
    x_model = contrastive_epoch(turns_off, ones, 1e-9, ones if persistent else None, batch_size=3)
    assert x_model.sum() == 0, "chance 4e-4"
    stays = RBM.from_parameters(40 * ones[:1], 0 * ones[0, :1], -20 * ones[0])  # h·b = -60; xW + b = 20; W h = 120
    contrastive_epoch(stays, ones[:, :1], 0.1, ones[:, :1] if persistent else None, batch_size=3)
    torch.testing.assert_close(stays.hidden_bias.data, -20 * ones[0], rtol=0, atol=1e-6)


def test_every_row_counts_once_and_the_last_batch_may_be_smaller():
    rbm, x = RBM(3, 2).double(), torch.ones(7, 3, dtype=F64)
    x_model = contrastive_epoch(rbm, x, 0.1, torch.zeros(4, 3, dtype=F64), batch_size=5)
    assert x_model.shape == (4, 3)
    assert contrastive_epoch(rbm, x, 0.1, batch_size=5).shape == (2, 3)
    assert contrastive_epoch(rbm, x, 0.1, batch_size=50).shape == (7, 3)


def test_a_smaller_batch_has_the_mean_of_its_own_rows():
    ends = []
    for batch_size in (7, 50):
        rbm = machine()
        contrastive_epoch(rbm, bits(7, 4), 0.1, batch_size=batch_size, generator=torch.Generator().manual_seed(0))
        ends.append(parameters(rbm))
    assert all(map(torch.equal, *ends))


def test_it_is_reproducible_and_leaves_its_inputs():
    x, chains = bits(30, 4), bits(10, 4, seed=6)
    kept = x.clone(), chains.clone()
    ends = []
    for _ in range(2):
        rbm = machine()
        x_model = contrastive_epoch(rbm, x, 0.1, chains, generator=torch.Generator().manual_seed(7))
        ends.append([x_model, *parameters(rbm)])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(x, kept[0]) and torch.equal(chains, kept[1])


@pytest.mark.parametrize("persistent", [False, True])
def test_it_learns_a_distribution(persistent):
    """Two patterns, equally often: the exact log-likelihood ends near -log 2, from below -2."""
    torch.manual_seed(0)
    x = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=F64).repeat(100, 1)
    rbm, chains = RBM(4, 3).double(), bits(100, 4) if persistent else None
    for epoch in range(60):
        ends = contrastive_epoch(rbm, x, 0.2 * (1 - epoch / 60), chains, batch_size=20)
        chains = ends if persistent else None
    likelihood = -(rbm(x).mean() + exact_log_z(rbm)).item()
    assert -1.0 < likelihood < -0.69314, likelihood


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_data": torch.full((3, 4), 0.5)}, "binary"),
        ({"x_data": torch.zeros(3, 5)}, r"\(batch, 4\)"),
        ({"x_data": torch.zeros(4)}, r"\(batch, 4\)"),
        ({"x_data": torch.zeros(0, 4)}, "0 rows"),
        ({"chains": torch.full((3, 4), 2.0)}, "binary"),
        ({"chains": torch.zeros(3, 5)}, r"\(batch, 4\)"),
        ({"n_steps": 0}, "n_steps=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"chains": torch.zeros(0, 4)}, "0 chains"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"rbm": machine(), "x_data": torch.zeros(3, 4), "learning_rate": 0.1}
    with pytest.raises(ValueError, match=message):
        contrastive_epoch(**(good | change))


@pytest.mark.parametrize("name", ["weight", "visible_bias", "hidden_bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_parameters_that_are_not_finite_are_named(name, bad):
    rbm = machine()
    getattr(rbm, name).data.view(-1)[1] = bad
    with pytest.raises(NotFinite, match="1 of 19 parameters are not finite before the epoch"):
        contrastive_epoch(rbm, bits(6, 4), 0.1)


@pytest.mark.parametrize("rate", [1e308, 1e300])
def test_parameters_that_overflow_are_named_and_the_machine_stays(rate):
    rbm = RBM(3, 2)
    before = parameters(rbm)
    x = torch.ones(40, 3)
    with pytest.raises((NotFinite, RuntimeError), match="not finite after the epoch|without overflow"):
        contrastive_epoch(rbm, x, rate, batch_size=2)
    double = (
        machine()
    )  # hidden units are on without data and off with it: the first step adds the rate to a visible bias
    for parameter, value in ((double.weight, -1.7e308), (double.hidden_bias, 1e3), (double.visible_bias, 1e308)):
        parameter.data.fill_(value)
    kept = parameters(double)
    with pytest.raises(NotFinite, match="parameters are not finite after the epoch"):
        contrastive_epoch(double, torch.ones(40, 4, dtype=F64), 1e308, torch.zeros(5, 4), batch_size=2)
    for new, old in zip(parameters(rbm) + parameters(double), before + kept, strict=True):
        assert torch.equal(new, old)


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("n_chains", [None, 7])
def test_noise_in_pieces_is_new_noise(n_chains, n_steps, monkeypatch):
    """With noise for one batch at a time, the chains still move as those of `BlockGibbs`: 5 z-scores, chance 3e-6."""
    monkeypatch.setattr(rbm_training, "NOISE", 1)
    rbm, x, g = machine(scale=2.0), bits(35, 4), torch.Generator().manual_seed(9)
    if n_chains is None:
        ends = [contrastive_epoch(rbm, x, 1e-12, None, n_steps, 7, g) for _ in range(2000)]
        start, n_moves = x[-7:], n_steps
    else:
        start, n_moves = bits(7, 4, seed=1), 5 * n_steps
        ends = [contrastive_epoch(rbm, x, 1e-12, start, n_steps, 7, g) for _ in range(2000)]
    ends = torch.cat(ends)
    state = BlockGibbs().init(rbm, start.repeat(2000, 1))
    for _ in range(n_moves):
        state, _ = BlockGibbs().step(rbm, state, g)
    z = (ends.mean(0) - state.x.mean(0)) / ((ends.var(0) + state.x.var(0)) / len(ends)).sqrt()
    assert z.abs().max() < 5, f"z = {z}"
    assert len(ends.reshape(2000, -1).unique(dim=0)) > 100, "the same noise again and again"


def test_what_comes_back_holds_no_noise():
    ends = contrastive_epoch(machine(), bits(35, 4), 0.1, bits(7, 4))
    assert ends.untyped_storage().nbytes() == 7 * 4 * 8
