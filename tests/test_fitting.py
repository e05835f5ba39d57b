"""Fits that stop on validation, against exponential tilts and Gaussians whose answers are known in closed form."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from ebmlib.fitting import fit_flow, fit_tilt, train_to_best
from ebmlib.losses import nce_from_logits
from ebmlib.partition import importance_sampling
from ebmlib.tilted import TiltedEnergy
from ebmlib.training import Divergence

F64 = torch.float64


class Ramp(nn.Module):
    """The tilt -a·x + level."""

    def __init__(self, dim: int, level: float = 0.0):
        super().__init__()
        self.a, self.level = nn.Parameter(torch.zeros(dim, dtype=F64)), level

    def forward(self, x):
        return self.level - x @ self.a


class Affine(nn.Module):
    """The smallest normalising flow: called, it is a Gaussian with learned means and widths."""

    def __init__(self, dim: int):
        super().__init__()
        self.mean, self.log_std = (nn.Parameter(torch.zeros(dim, dtype=F64)) for _ in range(2))

    def forward(self):
        return Independent(Normal(self.mean, self.log_std.exp()), 1)


def standard_normal(dim: int) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(dim, dtype=F64), torch.eye(dim, dtype=F64))


def test_a_fitted_tilt_of_a_gaussian_moves_it_onto_the_data():
    """exp(a·x) N(x; 0, I) is N(a, I) with log Z = ‖a‖²/2, and log p - log q is ‖a‖²/2 on average over N(a, I)."""
    torch.manual_seed(0)
    a = torch.tensor([1.0, -0.5], dtype=F64)
    x = a + torch.randn(6000, 2, dtype=F64)
    energy = TiltedEnergy(standard_normal(2), Ramp(2))
    fit = fit_tilt(energy, x[:4000], x[4000:], n_steps=400, lr=0.05, weight_decay=0.0)
    # NCE with ν = 10 has about the variance of maximum likelihood, 1/√4000 a coordinate; five of them.
    assert (energy.tilt.a - a).abs().max() < 5 / 4000**0.5
    truth = float(energy.tilt.a.detach().square().sum()) / 2
    std_error = importance_sampling(energy, energy.base, 40_000).std_error  # the pool, seen as a proposal
    assert abs(fit.log_z - truth) < 5 * std_error
    assert abs(fit.score - 0.625) < 5 * (1.25 / 2000) ** 0.5
    assert not energy.tilt.training


def test_the_loss_is_that_of_the_losses_module():
    energy = TiltedEnergy(standard_normal(1), Ramp(1, level=3.0))
    x = torch.randn(200, 1, dtype=F64)
    fit = fit_tilt(energy, x, x, n_steps=1, nu=7)
    expected = nce_from_logits(torch.full((128,), -3.0), torch.full((7 * 128,), -3.0), 7.0)
    assert fit.losses[0] == pytest.approx(expected.item(), rel=1e-6)


def test_the_learned_constant_is_not_decayed():
    """It would be pulled to 0: with this decay to -0.96, where the decayed tilt has -2.53."""
    torch.manual_seed(0)
    energy = TiltedEnergy(standard_normal(1), Ramp(1, level=3.0))
    x = 2 + torch.randn(500, 1, dtype=F64)
    fit = fit_tilt(energy, x, x, n_steps=600, lr=0.05, weight_decay=1.0, n_noise=20_000)
    a = energy.tilt.a.item()
    assert a < 1.5, f"the weight decay does nothing to the tilt: {a}"
    assert abs(fit.log_z - (a**2 / 2 - 3)) < 0.5  # 0.16: the constant pays for what the tilt lacks


class Points:
    """Draws that are all at 0 at the first call, at 1 at the next, and so on."""

    def __init__(self):
        self.calls = 0

    def sample(self, shape):
        self.calls += 1
        return torch.full((*shape, 1), self.calls - 1.0, dtype=F64)

    def log_prob(self, x):
        return torch.zeros(len(x), dtype=x.dtype)


def test_the_score_takes_log_z_from_draws_of_its_own():
    energy = TiltedEnergy(Points(), Ramp(1))
    energy.tilt.a.data.fill_(2.0)
    x = torch.full((200, 1), 5.0, dtype=F64)
    assert fit_tilt(energy, x, x, n_steps=1).scores[0] == pytest.approx(2 * 5 - 2 * 1)


def test_jitter_is_added_to_data_alone():
    energy, seen = TiltedEnergy(Points(), Ramp(1)), []
    energy.tilt.register_forward_pre_hook(lambda tilt, x: seen.append(x[0]) if tilt.training else None)
    x = torch.ones(200, 1, dtype=F64)
    fit_tilt(energy, x, x, n_steps=1, nu=3, jitter=0.1, batch_size=100)
    (rows,) = seen
    assert (rows[100:] == 0).all() and rows[:100].std().item() == pytest.approx(0.1, rel=0.4)  # 5.6 standard errors


def test_the_best_step_is_kept_and_the_start_counts():
    weight = nn.Parameter(torch.zeros(()))
    module = nn.ParameterList([weight])
    sgd = torch.optim.SGD([weight], lr=0.1)  # each step adds 0.1

    def fit(score, n_steps, **options):
        return train_to_best(module, lambda _: -weight, score, sgd, iter([torch.zeros(1)] * 100), n_steps, **options)

    result = fit(lambda: -(weight - 0.6).square(), 20, every=2)
    assert result.step == 6 and weight.item() == pytest.approx(0.6) and not module.training
    assert result.score == max(result.scores) and len(result.scores) == 11 and len(result.losses) == 20
    assert fit(lambda: -weight, 10, every=1).step == 0 and weight.item() == pytest.approx(0.6)
    stopped = fit(lambda: -weight, 50, every=2, patience=3)
    assert len(stopped.losses) == 6 and len(stopped.scores) == 4


def test_scores_are_taken_in_evaluation_mode_and_training_is_not():
    module = nn.Linear(1, 1)
    modes: dict[str, set] = {"loss": set(), "score": set()}

    def loss(x):
        modes["loss"].add(module.training)
        return module(x).square().mean()

    def score():
        modes["score"].add((module.training, torch.is_grad_enabled()))
        return torch.zeros(())

    train_to_best(module, loss, score, torch.optim.SGD(module.parameters()), iter([torch.ones(1, 1)] * 9), 9, every=3)
    assert modes == {"loss": {True}, "score": {(False, False)}}


@pytest.mark.parametrize("options", [{"every": 0}, {"patience": 0}])
def test_nonsense_is_refused(options):
    module = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="must be at least 1"):
        train_to_best(module, lambda x: x.sum(), lambda: 0.0, torch.optim.SGD(module.parameters()), [], 1, **options)
    energy = TiltedEnergy(standard_normal(1), lambda x: x.sum(1))
    with pytest.raises(ValueError, match="must be a torch.nn.Module to be trained; got function"):
        fit_tilt(energy, torch.randn(200, 1), torch.randn(9, 1), 1)


def test_a_score_that_is_not_a_number_is_a_divergence():
    module = nn.Linear(1, 1)
    with pytest.raises(Divergence, match="after 0 steps the validation score is nan"):
        train_to_best(module, lambda x: x.sum(), lambda: math.nan, torch.optim.SGD(module.parameters()), [], 1)


def test_a_flow_that_is_a_gaussian_finds_mean_and_width():
    torch.manual_seed(0)
    mean, std = torch.tensor([2.0, -1.0], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)
    x = mean + std * torch.randn(4000, 2, dtype=F64)
    q = fit_flow(Affine(2), x, x, n_steps=600, lr=0.05)  # other rows would choose what is best for them: .03 away
    assert ((q.mean - x.mean(0)) / std).abs().max() < 0.02
    assert (q.stddev / x.std(0) - 1).abs().max() < 0.02
    assert not q.mean.requires_grad


def test_a_flow_of_zuko_bends_where_a_gaussian_cannot():
    import zuko

    torch.manual_seed(0)
    sign = torch.randint(2, (3000, 1)) * 4.0 - 2.0
    x = torch.cat([sign + 0.5 * torch.randn(3000, 1), torch.randn(3000, 1)], 1)
    flow = zuko.flows.NSF(2, transforms=1, hidden_features=(32, 32))
    q = fit_flow(flow, x[:2000], x[2000:], n_steps=150, lr=1e-2)
    # One Gaussian is beaten by log 2.06 / 0.5 - log 2 = 0.72 nats at best: two wells of width 0.5 and weight 1/2.
    gaussian = MultivariateNormal(x[:2000].mean(0), x[:2000].T.cov())
    gain = (q.log_prob(x[2000:]) - gaussian.log_prob(x[2000:])).mean().item()
    best = 0.5 * math.log(4.25) - math.log(0.5) - math.log(2)
    assert 0.5 < gain < best + 0.15, f"the flow gains {gain} nats of {best}"
