"""What is written can be read: a run resumes bit for bit, and a bad state is refused with nothing changed."""

import pickle

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
