"""Fits that stop on validation: of any module, of a tilt by noise contrastive estimation, of a normalising flow.

Dropout, the draws of noise and the batches use torch's global generator.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .training import Divergence, minibatches, train

if TYPE_CHECKING:
    from .energies import Distribution
    from .tilted import TiltedEnergy


class Fit(NamedTuple):
    """How a fit went.

    Attributes:
        score: the best validation score; as the best of many it flatters a little, so a test set is to judge.
        step: steps after which it was reached; 0 if training never improved on the start.
        scores: every score, that of the start first.
        losses: the training loss at each step.
        log_z: the constant that `fit_tilt` learned along with the tilt, as it was at that step; else None.
    """

    score: float
    step: int
    scores: list[float]
    losses: list[float]
    log_z: float | None = None


def train_to_best(
    module: nn.Module,
    loss_fn: Callable[[Tensor], Tensor],
    score: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    n_steps: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    every: int = 10,
    patience: int | None = None,
) -> Fit:
    """Train by `training.train`, and leave the module in evaluation mode as it was at its best validation score.

    Args:
        module: what is trained, scored and restored; training puts all of it in training mode, a frozen part too.
        loss_fn, optimizer, batches, n_steps, scheduler: as `training.train`.
        score: called without arguments, returns a scalar of the module as it is, higher is better; the module is then
            in evaluation mode, and no gradient is kept.
        every: steps from one score to the next. Scored are the start and the states after `every`, 2 `every`, … steps,
            up to `n_steps`; steps after the last of these are taken, and never kept.
        patience: training stops after that many scores in a row that are not the best; None takes all steps.

    Raises:
        ValueError: if `every` or `patience` is below 1.
        Divergence: as `training.train`, or if a score is NaN or infinite.
    """
    if every < 1 or (patience is not None and patience < 1):
        raise ValueError(f"every and patience must be at least 1; got {every} and {patience}")
    scores: list[float] = []
    best_step, best_state = 0, copy.deepcopy(module.state_dict())

    def look(step: int) -> None:
        nonlocal best_step, best_state
        module.eval()
        with torch.no_grad():
            value = float(score())
        module.train()
        if not math.isfinite(value):
            raise Divergence(f"after {step} steps the validation score is {value}")
        if scores and value > max(scores):
            best_step, best_state = step, copy.deepcopy(module.state_dict())
        scores.append(value)

    def callback(step: int, loss: float) -> bool:
        if (step + 1) % every:
            return False
        look(step + 1)
        return patience is not None and step + 1 - best_step >= patience * every

    look(0)
    losses = train(loss_fn, optimizer, batches, n_steps, scheduler, callback=callback)
    module.load_state_dict(best_state)
    module.eval()
    return Fit(max(scores), best_step, scores, losses)


class _LogRatio(nn.Module):
    """log p - log q of an energy tilted from q, in which log q cancels: -tilt(x) - log Z, with a learned log Z."""

    def __init__(self, tilt: nn.Module, log_z: Tensor):
        super().__init__()
        self.tilt, self.log_z = tilt, nn.Parameter(log_z)

    def forward(self, x: Tensor) -> Tensor:
        return -self.tilt(x) - self.log_z


def fit_tilt(
    energy: "TiltedEnergy",
    x: Tensor,
    x_validation: Tensor,
    n_steps: int,
    lr: float = 1e-2,
    nu: int = 10,
    weight_decay: float = 0.01,
    jitter: float = 0.0,
    batch_size: int = 128,
    n_noise: int = 40_000,
    every: int = 10,
    patience: int | None = None,
) -> Fit:
    """Fit the tilt of E(x) = tilt(x) - log q(x), and log Z, by NCE against q itself, and keep the best on validation.

        u(x) = -tilt(x) - log Z,  J = mean_data softplus(log ν - u) + ν · mean_noise softplus(u - log ν)

    the loss `losses.noise_contrastive`, in which log q cancels: of the base only draws are needed. AdamW, its learning
    rate annealed by half a cosine. The learned log Z is under no weight decay. The score, in nats, is the mean over
    validation rows of log p - log q = -tilt(x) - log Z, with log Z from draws of q that train nothing. It chooses; to
    report, take `importance_sampling(energy, energy.base, n)`, and look how far the learned log Z is from it.

    Args:
        energy: its tilt is trained in place, and left in evaluation mode; a module `(batch, *event) -> (batch,)`.
        x: training rows, shape `(n, *event)`.
        x_validation: rows that stop the training, shape `(n_validation, *event)`.
        n_steps: number of steps.
        lr: learning rate at the start.
        nu: ν, noise samples a datum.
        weight_decay: of the tilt's parameters.
        jitter: standard deviation of Gaussian noise added to the training rows, in the units of x: about the rounding
            of the data, where they are rounded.
        batch_size: training rows a step, at most n.
        n_noise: draws from q to train on, with replacement; a quarter as many again for the score.
        every, patience: as `train_to_best`.

    Raises:
        ValueError: if the tilt is no module, or a number is out of range.
        Divergence: as `train_to_best`.

    Source: Gutmann and Hyvärinen (2012), Journal of Machine Learning Research 13.
    """
    if not isinstance(energy.tilt, nn.Module):
        raise ValueError(f"the tilt must be a torch.nn.Module to be trained; got {type(energy.tilt).__name__}")
    if nu < 1 or n_noise < 4:
        raise ValueError(f"nu must be at least 1 and n_noise at least 4; got {nu} and {n_noise}")
    tilt, log_nu = energy.tilt, math.log(nu)
    ratio = _LogRatio(tilt, torch.zeros((), dtype=x.dtype, device=x.device))
    with torch.no_grad():
        x_noise, x_fresh = (energy.base.sample(torch.Size([n])) for n in (n_noise, n_noise // 4))

    def loss(rows: Tensor) -> Tensor:
        if jitter:
            rows = rows + jitter * torch.randn_like(rows)
        index = torch.randint(n_noise, (nu * len(rows),), device=x_noise.device)
        u = ratio(torch.cat([rows, x_noise[index]]))
        return softplus(log_nu - u[: len(rows)]).mean() + nu * softplus(u[len(rows) :] - log_nu).mean()

    def score() -> Tensor:
        log_z = (-tilt(x_fresh)).logsumexp(0) - math.log(len(x_fresh))
        return (-tilt(x_validation)).mean() - log_z

    decayed = {"params": list(tilt.parameters()), "weight_decay": weight_decay}
    adam = torch.optim.AdamW([decayed, {"params": [ratio.log_z], "weight_decay": 0.0}], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    fit = train_to_best(ratio, loss, score, adam, minibatches(x, batch_size), n_steps, cosine, every, patience)
    return fit._replace(log_z=ratio.log_z.item())


def fit_flow(
    flow: nn.Module, x: Tensor, x_validation: Tensor, n_steps: int, lr: float = 5e-3, patience: int | None = None
) -> "Distribution":
    """Return a normalising flow fitted by maximum likelihood and frozen, as a distribution.

    Args:
        flow: called without arguments it returns a distribution, as zuko's do: `zuko.flows.MAF(11, transforms=3)`.
        x: training rows, shape `(n, dim)`, at least 128.
        x_validation: rows whose mean log-likelihood is the score, shape `(n_validation, dim)`.

    The other arguments, all settings not named, and the errors are those of `fit_tilt`.
    """

    def loss(rows: Tensor) -> Tensor:
        return -flow().log_prob(rows).mean()

    def score() -> Tensor:
        return flow().log_prob(x_validation).mean()

    adam = torch.optim.AdamW(flow.parameters(), lr=lr, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    train_to_best(flow, loss, score, adam, minibatches(x, 128), n_steps, cosine, patience=patience)
    return cast("Distribution", flow.requires_grad_(False)())
