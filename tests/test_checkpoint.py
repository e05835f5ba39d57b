"""What is written can be read: a run resumes bit for bit, and a bad state is refused with nothing changed."""

import copy
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ebmlib.checkpoint import load_checkpoint, save_checkpoint
from ebmlib.training import minibatches, train


def a_run(seed: int):
    """Return a small run with momentum, dropout, a schedule and a generator of its own, and its parts."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    batches = minibatches(torch.arange(30.0).reshape(10, 3), 3, generator)
    parts = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "batches": batches,
        "generator": generator,
    }

    def advance(n_steps: int) -> list[float]:
        noise = torch.randn(3, generator=generator)
        return train(lambda x: (model(x) - noise).square().mean(), optimizer, batches, n_steps, scheduler)

    return parts, advance


def test_resuming_is_bit_equal(tmp_path):
    parts, advance = a_run(seed=0)
    advance(7)  # in the middle of a pass
    save_checkpoint(tmp_path / "run.pt", parts)
    onward = advance(10)
    resumed, advance = a_run(seed=1)
    load_checkpoint(tmp_path / "run.pt", resumed)
    assert advance(10) == onward
    for mine, theirs in zip(resumed["model"].parameters(), parts["model"].parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("left_out", ["model", "optimizer", "scheduler", "batches", "generator"])
def test_resuming_without_a_part_is_an_error(tmp_path, left_out):
    parts, _ = a_run(seed=0)
    save_checkpoint(tmp_path / "run.pt", parts)
    with pytest.raises(ValueError, match=f"holds .*'{left_out}'"):
        load_checkpoint(tmp_path / "run.pt", {name: part for name, part in parts.items() if name != left_out})


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code in a checkpoint was run",))

    torch.save({"parts": {"model": Trap()}, "random": {}}, tmp_path / "trap.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path / "trap.pt", {"model": nn.Linear(1, 1)})


class Holder:
    """A part whose state is what it is given."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


class Halving:
    """A schedule that is an object, not a function: its attributes are saved."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, epoch):
        return self.factor**epoch


def a_part(lr, schedule):
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.Adam([w], lr=lr, betas=(np.float64(0.5), np.float64(0.999)))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    w.square().sum().backward()
    optimizer.step()
    scheduler.step()
    return optimizer, scheduler


@pytest.mark.parametrize(
    "schedule", [lambda e: 0.5 * (1 + np.cos(np.float64(e))), lambda e: np.float32(0.5) ** e, Halving(np.float64(0.5))]
)
def test_rates_that_numpy_computed_are_read_back(tmp_path, schedule):
    optimizer, scheduler = a_part(np.float64(1e-3), schedule)
    save_checkpoint(tmp_path / "c", {"o": optimizer, "s": scheduler})
    other, its_scheduler = a_part(0.7, schedule)
    load_checkpoint(tmp_path / "c", {"o": other, "s": its_scheduler})
    group, its_group = optimizer.param_groups[0], other.param_groups[0]
    assert its_group["lr"] == group["lr"] == pytest.approx(1e-3 * schedule(1)) and type(its_group["lr"]) is float
    assert its_group["betas"] == (0.5, 0.999) and its_scheduler.get_last_lr() == scheduler.get_last_lr()


def test_numbers_of_numpy_become_numbers_wherever_they_are(tmp_path):
    state = {
        np.int64(3): [np.int64(4), (np.bool_(True), {"deep": np.float32(0.5)})],
        "complex": np.complex128(1j),
        "text": np.str_("a"),
        "scalar": np.array(2.5),
        "kept": {1, 2},
        "torch": (torch.float16, torch.device("cpu"), torch.Size([2]), nn.Parameter(torch.ones(1)), None, b"raw"),
    }
    save_checkpoint(tmp_path / "c", {"h": Holder(state)})
    part = Holder({})
    load_checkpoint(tmp_path / "c", {"h": part})
    assert part.state[3] == [4, (True, {"deep": 0.5})] and type(part.state[3][1][0]) is bool
    assert part.state["complex"] == 1j and part.state["text"] == "a" and part.state["scalar"] == 2.5
    assert part.state["kept"] == {1, 2} and part.state["torch"] == state["torch"]
    assert type(state[3][0]) is np.int64, "the state itself was changed"


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.array([1.0]),
        np.longdouble(1),
        np.datetime64("2020-01-01"),
        np.random.default_rng(0),
        lambda x: x,
        len,
        Holder({}),
        frozenset([1]),
        defaultdict(list, {1: [2]}),
        range(3),
        {np.float64(1.0)},
        Path("a"),
        torch.Generator(),
    ],
)
def test_what_could_not_be_read_back_is_refused_by_place(tmp_path, value):
    path = tmp_path / "c"
    save_checkpoint(path, {"h": Holder({"a": 1})})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"parts\['h'\]\['a'\]\[1\] is a .*could not be read back"):
        save_checkpoint(path, {"h": Holder({"a": [0, value]})})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_subclass_of_tensor_and_a_key_are_refused_too(tmp_path):
    class Mine(torch.Tensor):
        pass

    with pytest.raises(ValueError, match=r"parts\['h'\]\['a'\] is a .*Mine"):
        save_checkpoint(tmp_path / "c", {"h": Holder({"a": torch.zeros(2).as_subclass(Mine)})})
    with pytest.raises(ValueError, match=r"a key of parts\['h'\] is a builtins.frozenset"):
        save_checkpoint(tmp_path / "c", {"h": Holder({frozenset([1]): 1})})


def test_versions_of_a_module_are_kept(tmp_path):
    seen = []

    class Versioned(nn.Linear):
        _version = 7

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            seen.append(metadata.get("version"))
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    save_checkpoint(tmp_path / "c", {"m": Versioned(1, 1)})
    load_checkpoint(tmp_path / "c", {"m": Versioned(1, 1)})
    assert seen == [7]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save_checkpoint(path, {"h": Holder({"a": 1})})
    before = path.read_bytes()

    def full(states, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"h": Holder({"a": 2})})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_part_that_refuses_its_state_leaves_all_as_they_were(tmp_path):
    parts, advance = a_run(seed=0)
    advance(3)
    save_checkpoint(tmp_path / "c", parts | {"last": nn.Linear(2, 2)})
    (other, advance), last = a_run(seed=1), nn.Linear(2, 3)
    advance(2)
    parts = other | {"last": last}
    before, rng = copy.deepcopy({name: _state(part) for name, part in parts.items()}), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(tmp_path / "c", parts)
    after = {name: _state(part) for name, part in parts.items()}
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), rng)


def _state(part):
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def test_another_file_of_weights_is_named(tmp_path):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt was not written by save_checkpoint"):
        load_checkpoint(tmp_path / "weights.pt", {"m": nn.Linear(1, 1)})
