"""The loop does what its docstring says, and stops where it must."""

import math

import pytest
import torch
from torch import nn

from ebmlib.training import Divergence, minibatches, train


def descend(loss_fn, n_steps, **kwargs):
    w = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([w], lr=0.1)
    batches = minibatches(torch.arange(6.0), 2, torch.Generator().manual_seed(0))
    return w, train(lambda batch: loss_fn(w, batch), optimizer, batches, n_steps, **kwargs)


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order():
    batches = minibatches(torch.arange(100), 20, torch.Generator().manual_seed(0))
    first, second = (torch.cat([next(batches) for _ in range(5)]) for _ in range(2))
    assert torch.equal(first.sort().values, torch.arange(100))
    assert torch.equal(second.sort().values, torch.arange(100))
    assert not torch.equal(first, second)


def test_the_incomplete_batch_is_dropped():
    batches = minibatches(torch.arange(10), 4)
    assert all(len(next(batches)) == 4 for _ in range(7))


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_bad_batch_size_is_named(batch_size):
    with pytest.raises(ValueError, match=f"between 1 and 10.*got {batch_size}"):
        minibatches(torch.arange(10), batch_size)


def test_gradient_descent_by_hand():
    w, losses = descend(lambda w, batch: w.square().sum(), 3)
    assert losses == pytest.approx([9.0, 9 * 0.64, 9 * 0.64**2], rel=1e-6)
    assert w.item() == pytest.approx(3 * 0.8**3, rel=1e-6)


def test_clipping_bounds_the_step():
    w, _ = descend(lambda w, batch: 1e3 * w.sum(), 1, max_grad_norm=2.0)
    assert w.item() == pytest.approx(3 - 0.1 * 2.0, rel=1e-5)


def test_the_scheduler_is_stepped():
    w = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(lambda batch: w.sum(), optimizer, minibatches(torch.zeros(4), 2), 3, scheduler)
    assert w.item() == pytest.approx(1 - 1 - 0.5 - 0.25)


def test_a_callback_sees_each_step_and_can_stop():
    seen = []
    _, losses = descend(lambda w, b: w.square().sum(), 10, callback=lambda step, loss: seen.append(step) or step == 3)
    assert seen == [0, 1, 2, 3] and len(losses) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step_and_keeps_the_parameters(bad):
    steps = iter(range(10))
    w = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([w], lr=0.1)

    def loss_fn(batch):
        return w.sum() * (bad if next(steps) == 2 else 1.0)

    with pytest.raises(Divergence, match=f"step 2: loss {bad}, gradient norm"):
        train(loss_fn, optimizer, minibatches(torch.zeros(4), 2), 5)
    assert w.item() == pytest.approx(3 - 2 * 0.1)


def test_an_energy_that_blows_up_is_a_divergence_that_names_the_step():
    steps = iter(range(10))

    def loss_fn(w, batch):
        if next(steps) == 3:
            raise FloatingPointError("the energy of row 5 is nan")
        return w.square().sum()

    with pytest.raises(Divergence, match="step 3: the energy of row 5 is nan"):
        descend(loss_fn, 5)


def test_other_errors_of_the_loss_pass_through():
    def loss_fn(w, batch):
        raise ValueError("a wrong shape")

    with pytest.raises(ValueError, match="a wrong shape"):
        descend(loss_fn, 5)


def test_an_infinite_gradient_of_a_finite_loss_is_a_divergence():
    with pytest.raises(Divergence, match="step 0: loss 0.0, gradient norm"):
        descend(lambda w, batch: (w - 3).abs().sqrt().sum(), 1)


def test_bad_counts_are_named():
    with pytest.raises(ValueError, match="n_steps must not be negative; got -1"):
        descend(lambda w, batch: w.sum(), -1)
    w = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="ended after 2 of 5"):
        train(lambda b: w.sum(), torch.optim.SGD([w]), [torch.zeros(1)] * 2, 5)


def test_batches_of_other_data_do_not_resume():
    batches = minibatches(torch.arange(10), 4)
    next(batches)
    with pytest.raises(ValueError, match="of 10 rows, the data have 12"):
        minibatches(torch.arange(12), 4).load_state_dict(batches.state_dict())


@pytest.fixture
def elsewhere():
    """Another default device than the CPU: a tensor made without a device fails where it meets others."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_batches_do_not_depend_on_the_default_device(elsewhere):
    x = torch.arange(10, device="cpu")
    g = torch.Generator("cpu").manual_seed(0)
    batches = minibatches(x, 5, g)
    batch = torch.cat([next(batches), next(batches)])
    assert batch.device.type == "cpu" and batch.sort().values.tolist() == list(range(10))
    other = minibatches(x, 5, g)
    other.load_state_dict(batches.state_dict())
    assert next(other).device.type == "cpu"


@pytest.mark.parametrize("max_grad_norm", [0.0, -1.0, math.nan])
def test_a_norm_that_is_not_positive_is_named(max_grad_norm):
    with pytest.raises(ValueError, match=f"max_grad_norm must be positive; got {max_grad_norm}"):
        descend(lambda w, batch: w.sum(), 2, max_grad_norm=max_grad_norm)


@pytest.mark.parametrize("lr", [math.inf, math.nan])
def test_a_last_step_into_infinity_is_a_divergence(lr):
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.1)
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(Divergence, match="step 0: after it, parameters are not finite"):
        train(lambda batch: w.sum(), optimizer, minibatches(torch.zeros(4), 2), 1)


def test_small_sizes_and_a_loss_without_the_parameters_are_named():
    w, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"step 1: the batch is empty, of shape \(0, 2\)"):
        train(lambda b: w.sum() * b.mean(), torch.optim.SGD([w]), [torch.ones(3, 2), torch.ones(0, 2)], 2)
    with pytest.raises(ValueError, match="step 0: the loss has no gradient for any parameter"):
        train(lambda b: other.sum(), torch.optim.SGD([w]), [torch.ones(1)], 1)
    with pytest.raises(ValueError, match="step 0: the loss has no gradient for any parameter"):
        train(lambda b: w.sum(), torch.optim.SGD([w.requires_grad_(False)]), [torch.ones(1)], 1)  # all are frozen
    with pytest.raises(ValueError, match="between 1 and 0, the number of rows; got 1"):
        minibatches(torch.zeros(0, 2), 1)
