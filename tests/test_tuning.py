"""The tuned step against acceptances that can be measured, and where nothing can be tuned."""

from dataclasses import dataclass

import pytest
import torch

from ebmlib.energies import GaussianEnergy
from ebmlib.samplers import HMC, MALA, Langevin, State, trace
from ebmlib.tuning import tune

F64 = torch.float64
BALL = GaussianEnergy(torch.zeros(10, dtype=F64), torch.eye(10, dtype=F64))


@pytest.mark.parametrize("start", [1e-3, 5.0])
@pytest.mark.parametrize("kernel, target", [(MALA(1.0), 0.574), (HMC(1.0, 4), 0.8), (MALA(1.0), 0.3)])
def test_the_tuned_step_is_accepted_as_wanted(kernel, target, start):
    g = torch.Generator().manual_seed(0)
    x = BALL.sample((100,), g)
    tuned = tune(type(kernel)(**{**vars(kernel), "step_size": start}), BALL, x, target, generator=g)
    accepted = trace(tuned, BALL, BALL.sample((500,), g), 40, generator=g).accept_prob.mean().item()
    assert accepted == pytest.approx(target, abs=0.03)
    assert type(tuned) is type(kernel) and vars(tuned) == {**vars(kernel), "step_size": tuned.step_size}


def test_the_chains_move_on_during_the_search():
    starts = []

    @dataclass(frozen=True)
    class Walk:
        step_size: float

        def init(self, energy, x):
            starts.append(x.item())
            return State(x, x[:, 0], x)

        def step(self, energy, state, generator):
            return self.init(energy, state.x + 1), torch.tensor([0.5])

    tune(Walk(1.0), BALL, torch.zeros(1, 1), 0.5, 3)
    assert starts == [0, 1, 1, 2, 2, 3]


def test_the_search_repeats_and_leaves_the_starts_alone():
    x = BALL.sample((10,), torch.Generator().manual_seed(1))
    before = x.clone()
    first, second = (tune(MALA(0.1), BALL, x, 0.6, 20, torch.Generator().manual_seed(2)) for _ in range(2))
    assert first == second and torch.equal(x, before)


def test_what_cannot_be_tuned_is_named():
    x = torch.zeros(4, 10, dtype=F64)
    for target in (0.0, 1.0, 57.4):
        with pytest.raises(ValueError, match=f"target must be between 0 and 1; got {target}"):
            tune(MALA(0.1), BALL, x, target)
    with pytest.raises(ValueError, match="n_steps must be at least 2; got 1"):
        tune(MALA(0.1), BALL, x, 0.6, n_steps=1)
    with pytest.raises(ValueError, match="every proposal was accepted, up to Langevin"):
        tune(Langevin(1e-4), BALL, x, 0.6, n_steps=10)
