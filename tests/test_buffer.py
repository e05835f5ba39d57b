"""The buffer draws without replacement, keeps what is written, restarts as often as told, and resumes bit for bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmlib.buffer import ReplayBuffer


def numbered(size):
    return torch.arange(float(size))[:, None].expand(size, 2)


def fresh(n):
    return torch.full((n, 2), -1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(size=st.integers(1, 30), data=st.data())
def test_draw_is_without_replacement_and_write_goes_back_to_the_place(size, data):
    buffer = ReplayBuffer(numbered(size), fresh, generator=generator())
    n = data.draw(st.integers(1, size))
    index, x = buffer.draw(n)
    assert index.shape == (n,) and len(index.unique()) == n
    assert torch.equal(x, numbered(size)[index])
    buffer.write(index, x + 100)
    everything = buffer.draw(size)
    order = everything[0].argsort()
    expected = numbered(size).clone()
    expected[index] += 100
    assert torch.equal(everything[1][order], expected)


def test_every_place_is_drawn_alike():
    buffer = ReplayBuffer(numbered(10), fresh, generator=generator())
    counts = torch.stack([buffer.draw(3)[0] for _ in range(5000)]).flatten().bincount(minlength=10)
    z = (counts - 1500) / math.sqrt(5000 * 0.3 * 0.7)
    assert z.abs().max() < 4.5, f"z = {z.abs().max():.1f}: a false alarm has chance 7e-5"


def test_nothing_is_shared_with_what_comes_in_or_goes_out():
    x = numbered(4).clone().requires_grad_()
    buffer = ReplayBuffer(x, fresh, generator=generator())
    index, drawn = buffer.draw(4)
    drawn.zero_()
    with torch.no_grad():
        x.zero_()
    states = buffer.draw(4)[1]
    assert not states.requires_grad
    assert sorted(states[:, 0].tolist()) == [0, 1, 2, 3]
    buffer.write(index, drawn.requires_grad_())
    assert not buffer.draw(4)[1].requires_grad


@pytest.mark.parametrize("restart_prob", [0.0, 0.05, 1.0])
def test_share_of_restarts(restart_prob):
    buffer = ReplayBuffer(numbered(2000), fresh, restart_prob, generator())
    restarted = torch.stack([(buffer.draw(2000)[1] == -1).all(1) for _ in range(10)]).double().mean()
    spread = math.sqrt(restart_prob * (1 - restart_prob) / 20_000)
    assert abs(restarted - restart_prob) <= 4.5 * spread  # false alarm: 7e-6
    assert not (buffer.x == -1).any(), "a restart is stored when it is written, not before"


def test_resume_is_bit_equal():
    buffer = ReplayBuffer(numbered(50), fresh, 0.3, generator(1))
    index, x = buffer.draw(20)
    buffer.write(index, x + 0.5)
    saved = buffer.state_dict()
    then = [buffer.draw(10) for _ in range(3)]
    buffer.write(*then[0])  # what comes later does not reach into what was saved
    other = ReplayBuffer(torch.zeros(50, 2), fresh, 0.3, generator(99))
    other.load_state_dict(saved)
    for (index, x), (again, x_again) in zip(then, [other.draw(10) for _ in range(3)], strict=True):
        assert torch.equal(index, again) and torch.equal(x, x_again)


def test_without_a_generator_the_global_one_draws():
    buffer = ReplayBuffer(numbered(50), fresh, 0.3)
    saved = buffer.state_dict()
    torch.manual_seed(5)
    first = buffer.draw(10)
    buffer.load_state_dict(saved)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, buffer.draw(10), strict=True))
    with pytest.raises(ValueError, match="must both have a generator of their own, or neither"):
        ReplayBuffer(numbered(50), fresh, 0.3, generator()).load_state_dict(saved)


def test_bad_input_is_named():
    buffer = ReplayBuffer(numbered(5), lambda n: torch.zeros(n, 3), 1.0)
    with pytest.raises(ValueError, match=r"\(size, \*event\); got \(0, 2\)"):
        ReplayBuffer(numbered(5)[:0], fresh)
    with pytest.raises(ValueError, match="between 0 and 1; got 1.5"):
        ReplayBuffer(numbered(5), fresh, 1.5)
    with pytest.raises(ValueError, match="state 1 of 2 is not finite"):
        ReplayBuffer(torch.tensor([[0.0], [math.nan]]), fresh)
    with pytest.raises(ValueError, match="between 1 and 5, the size of the buffer; got 6"):
        buffer.draw(6)
    with pytest.raises(ValueError, match=r"must have shape \(2,\); got \(3,\)"):
        buffer.draw(2)
    with pytest.raises(ValueError, match="same length; got 1 and 2"):
        buffer.write(torch.tensor([0]), numbered(2))
    with pytest.raises(ValueError, match=r"must have shape \(2,\); got \(1,\)"):
        buffer.write(torch.tensor([0]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="state 0 of 1 is not finite"):
        buffer.write(torch.tensor([0]), torch.full((1, 2), math.inf))
    with pytest.raises(ValueError, match=r"has shape \(5, 2\); the saved one \(6, 2\)"):
        buffer.load_state_dict(ReplayBuffer(numbered(6), fresh).state_dict())
    assert torch.equal(buffer.x, numbered(5)), "a refused state was stored"


def test_a_state_is_checked_as_it_would_be_stored():
    single = ReplayBuffer(numbered(3), fresh)
    with pytest.raises(ValueError, match="state 1 of 2 is not finite, as torch.float32"):
        single.write(torch.tensor([0, 1]), torch.tensor([[1.0, 1.0], [1e300, 0.0]], dtype=torch.float64))
    whole = ReplayBuffer(numbered(3).long(), lambda n: torch.full((n, 2), 0.5), 1.0)
    with pytest.raises(ValueError, match="a buffer of torch.int64 cannot hold states of torch.float32"):
        whole.write(torch.tensor([0]), torch.full((1, 2), 0.7))
    with pytest.raises(ValueError, match="torch.int64 cannot hold states of torch.float32"):
        whole.draw(2)
    double = ReplayBuffer(numbered(3).double() * 1e300, fresh).state_dict()
    with pytest.raises(ValueError, match="state 1 of 3 is not finite, as torch.float32"):
        single.load_state_dict(double)
    assert torch.equal(single.x, numbered(3)) and torch.equal(whole.x, numbered(3).long())


def test_nothing_is_broadcast():
    buffer = ReplayBuffer(numbered(5), lambda n: torch.zeros(1, 2), 1.0)
    with pytest.raises(ValueError, match=r"fresh\(3\) must return 3 states; got 1"):
        buffer.draw(3)
    with pytest.raises(ValueError, match=r"index must be \(n,\).*got \(2, 1\) and 2"):
        buffer.write(torch.tensor([[0], [1]]), numbered(2))


def test_no_graph_comes_in_with_fresh_states():
    w = torch.ones(2, requires_grad=True)
    assert not ReplayBuffer(numbered(5), lambda n: w.expand(n, 2), 1.0).draw(3)[1].requires_grad


def test_states_that_are_numbers_and_empty_writes():
    buffer = ReplayBuffer(torch.arange(4.0), lambda n: torch.zeros(n))
    buffer.write(torch.tensor([], dtype=torch.long), torch.zeros(0))
    buffer.write(torch.tensor([2]), torch.tensor([7.0]))
    assert buffer.x.tolist() == [0, 1, 7, 3]
    with pytest.raises(ValueError, match="between 1 and 4, the size of the buffer; got 0"):
        buffer.draw(0)


def test_a_refused_state_changes_nothing():
    buffer = ReplayBuffer(numbered(5), fresh, generator=generator())
    saved = buffer.state_dict() | {"x": numbered(5) + 1, "generator": torch.zeros(3, dtype=torch.uint8)}
    with pytest.raises(RuntimeError):
        buffer.load_state_dict(saved)
    assert torch.equal(buffer.x, numbered(5))
