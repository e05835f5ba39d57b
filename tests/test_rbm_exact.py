"""Draws beside the probabilities of all states, in double precision."""

import itertools

import pytest
import torch

from ebmlib.energies import NotFinite
from ebmlib.rbm import RBM, exact_log_z
from ebmlib.rbm_exact import exact_samples, transposed

F64 = torch.float64


def states(n_units):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n_units)), dtype=F64)


def machine(n_visible, n_hidden, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (n_visible, n_hidden), (n_visible,), (n_hidden,)
    return RBM.from_parameters(*(1.5 * torch.randn(shape, generator=g, dtype=F64) for shape in shapes))


def test_the_mirror_has_the_same_log_z_and_the_law_of_h():
    rbm = machine(5, 3)
    mirror = transposed(rbm)
    assert abs(exact_log_z(mirror) - exact_log_z(rbm)) < 1e-12
    x, h = states(5), states(3)
    log_joint = (x @ rbm.weight) @ h.T + (x @ rbm.visible_bias)[:, None] + h @ rbm.hidden_bias
    torch.testing.assert_close(-mirror(h), torch.logsumexp(log_joint, 0), rtol=0, atol=1e-12)
    with torch.no_grad():
        mirror.weight.zero_()
    assert rbm.weight.abs().min() > 0, "the mirror holds copies"


@pytest.mark.parametrize("shape", [(4, 3), (4, 6), (4, 1), (1, 4)])
def test_draws_have_the_exact_law(shape):
    """Counts of all states; one z beyond 5.2 among the 50 of four machines has chance 1e-5."""
    rbm, n = machine(*shape), 200_000
    x = states(shape[0])
    p = torch.softmax(-rbm(x), 0)
    draws = exact_samples(rbm, n, torch.Generator().manual_seed(1))
    assert draws.shape == (n, shape[0]) and draws.dtype == F64
    number = (draws @ (2.0 ** torch.arange(shape[0] - 1, -1, -1, dtype=F64))).long()
    share = torch.bincount(number, minlength=2 ** shape[0]) / n
    z = (share - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < 5.2, f"z = {z}"


def test_draws_of_many_blocks_have_the_exact_means():
    """2^15 states are two blocks; 20 z-scores, a false alarm has chance 1e-5."""
    rbm = machine(20, 15)
    (mean,) = torch.autograd.grad(exact_log_z(rbm), rbm.visible_bias)
    draws = exact_samples(rbm, 100_000, torch.Generator().manual_seed(2))
    z = (draws.mean(0) - mean) / (mean * (1 - mean) / len(draws)).sqrt()
    assert z.abs().max() < 5, f"z = {z}"


def test_single_precision_machines_give_single_precision_draws():
    assert exact_samples(RBM(6, 4), 3).dtype == torch.float32


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="2\\^25"):
        exact_samples(RBM(30, 25), 5)
    with pytest.raises(ValueError, match="n_samples must be at least 1; got 0"):
        exact_samples(RBM(3, 2), 0)
    rbm = machine(4, 3)
    with torch.no_grad():
        rbm.weight[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="NaN or infinite"):
        exact_samples(rbm, 5)
