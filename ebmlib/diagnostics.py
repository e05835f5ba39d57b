"""What chains and energies say of themselves: necessary conditions, none of them sufficient."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .energies import Energy, energy_and_grad, evaluate


class Summary(NamedTuple):
    """Of each coordinate, in tensors of shape `event` (double precision, CPU).

    Attributes:
        mean: over all draws of all chains.
        mcse: Monte Carlo standard error of that mean.
        ess_bulk: effective number of draws for the centre of the distribution.
        ess_tail: for its 5 % and 95 % quantiles, the smaller of the two.
        r_hat: rank-normalised split R-hat; above 1.01 the chains disagree.
    """

    mean: Tensor
    mcse: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    r_hat: Tensor


class Check(NamedTuple):
    """A mean over draws, its standard error, and the value that it must have where all is well."""

    value: float
    std_error: float
    expected: float

    @property
    def z(self) -> float:
        """The distance from the expected value in standard errors; by chance beyond 4 in 6 of 100,000 cases.

        Where the error is 0, as for a flat energy, it is infinite, and NaN at the expected value.
        """
        distance = self.value - self.expected
        return distance / self.std_error if self.std_error else distance * math.inf


class Checklist(NamedTuple):
    """What the draws of chains say of themselves; `summary` is of each coordinate in turn and, last, of the energy.

    `r_hat` is the largest and `ess` (bulk or tail) the smallest in the summary; `gap` is None without data.
    """

    r_hat: float
    ess: float
    stein: Check
    gap: Check | None
    summary: Summary

    def alarms(self, r_hat: float = 1.01, ess: float = 400, z: float = 4) -> list[str]:
        """Return the names of the fields that ring: R-hat not below, ESS not above, the size of z not below the bar."""
        fine = {"r_hat": self.r_hat < r_hat, "ess": self.ess > ess, "stein": abs(self.stein.z) < z}
        fine["gap"] = self.gap is None or abs(self.gap.z) < z
        return [name for name, silent in fine.items() if not silent]


def summarize(chains: Tensor) -> Summary:
    """Return mean, Monte Carlo standard error, effective sample sizes and R-hat of each coordinate, by arviz-stats.

    Each number belongs to one statistic: for the error of a mean of squares, summarize the squares. R-hat does not see
    one stuck chain among many, nor chains that share their random numbers: these are errors, but for a lag between
    them. A statistic of two values, such as whether x > 3, counts as stuck only where no coordinate of a chain moves.

    Args:
        chains: draws, shape `(n_draws, n_chains, *event)`, as `trace(...).x` has them, burn-in removed.

    Raises:
        ValueError: with fewer than two chains or four draws, no coordinate, or a value that is not finite; where a
            chain never moves, in a coordinate of more than two values or in all; where two chains are equal in all
            draws of the second half, as those become that start apart and share a seed.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Bayesian Analysis 16(2).
    """
    from arviz_stats.base import array_stats

    if chains.ndim < 2 or chains.shape[0] < 4 or chains.shape[1] < 2 or chains.numel() == 0:
        raise ValueError(
            f"chains must be (n_draws, n_chains, *event), at least 4 draws of 2 chains; got {tuple(chains.shape)}"
        )
    if not torch.isfinite(chains).all():
        draw, chain = torch.nonzero(~torch.isfinite(chains))[0, :2].tolist()
        raise ValueError(f"draw {draw} of chain {chain} is not finite")
    flat = chains.detach().double().cpu().flatten(2) if chains.ndim > 2 else chains.detach().double().cpu()[..., None]
    _require_chains(flat)
    draws, axes = flat.numpy(), {"chain_axis": 1, "draw_axis": 0}
    numbers = (
        draws.mean((0, 1)),
        array_stats.mcse(draws, method="mean", **axes),
        array_stats.ess(draws, method="bulk", **axes),
        array_stats.ess(draws, method="tail", prob=(0.05, 0.95), **axes),
        array_stats.rhat(draws, method="rank", **axes),
    )
    return Summary(*(torch.from_numpy(np.asarray(n)).reshape(chains.shape[2:]) for n in numbers))


def _require_chains(x: Tensor) -> None:
    """Raise where chains, `(n_draws, n_chains, dim)`, never move or are equal."""
    still = (x == x[0]).all(0)  # of each chain, each coordinate
    low, high = x.amin((0, 1)), x.amax((0, 1))
    if still.all(0).any():
        coordinate = int(still.all(0).nonzero()[0])
        what = "has one value in all draws" if low[coordinate] == high[coordinate] else "never moves, in no chain"
        raise ValueError(f"coordinate {coordinate} of {len(low)} {what}")
    graded = ((x > low) & (x < high)).any(0).any(0)  # more than two values
    stuck = (still & graded) | still.all(1, keepdim=True)
    if stuck.any():
        chain, coordinate = stuck.nonzero()[0].tolist()
        value = x[0, chain, coordinate].item()
        raise ValueError(f"chain {chain} never moves: its coordinate {coordinate} is {value} in all draws")
    late = x[len(x) // 2 :].transpose(0, 1).flatten(1)
    _, kind, n_equal = late.unique(dim=0, return_inverse=True, return_counts=True)
    for chain in (n_equal[kind] > 1).nonzero()[:, 0].tolist():
        if (x[len(x) // 2 :, chain] != x[-1, chain]).any():  # two that stand still may well agree
            equal = (kind == kind[chain]).nonzero()[:, 0].tolist()
            raise ValueError(f"chains {equal} are equal in all draws of the second half: do they share a seed?")


def energy_gap(energy: Energy, x_data: Tensor, x_model: Tensor) -> Check:
    """Return mean E(x_model) - mean E(x_data), in nats: zero on average where the model has the data's distribution.

    Above zero the chains have not reached where the data lie; below zero they have found something deeper.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x_data: independent draws, shape `(n_data, *event)`.
        x_model: independent draws, `(n_model, *event)`, or the draws of chains, `(n_draws, n_chains, *event)`.

    Raises:
        ValueError: if there are fewer than two draws of either, or the energy returns another shape, or a NaN or
            infinite value; for chains as `summarize`.
    """
    if min(len(x_data), len(x_model)) < 2:
        raise ValueError(f"the error of a gap needs two draws of each at least; got {len(x_data)}, {len(x_model)}")
    with torch.no_grad():
        e_data = evaluate(energy, x_data).double()
        if x_model.ndim == x_data.ndim + 1:
            s = summarize(_of_each_draw(lambda x: evaluate(energy, x), x_model))
            mean, std_error = s.mean.item(), s.mcse.item()
        else:
            e = evaluate(energy, x_model).double()
            mean, std_error = e.mean().item(), e.std().item() / math.sqrt(len(e))
    return Check(mean - e_data.mean().item(), math.hypot(std_error, e_data.std().item() / math.sqrt(len(e_data))), 0.0)


def stein_check(energy: Energy, chains: Tensor) -> Check:
    """Return the mean of (x - c)·∇E(x): the number d of coordinates, for draws from exp(-E), whatever E is.

    Integration by parts gives E_p[(x - c)·∇E] = d for any fixed c; here it is the mean of the other chains. Draws from
    exp(-E/T) give T d, so value / d is the temperature that the chains have. It is blind to a mode without draws and
    to a shift of all draws.

    Args:
        energy: callable `(batch, *event) -> (batch,)`, without jumps; exp(-E) must vanish far out.
        chains: draws, shape `(n_draws, n_chains, *event)`, as `trace(...).x` has them, burn-in removed.

    Raises:
        ValueError: as `summarize`.

    Source: Gorham and Mackey (2015), Advances in Neural Information Processing Systems 28.
    """
    own = chains.mean(0)
    centre = (own.sum(0) - own) / (chains.shape[1] - 1)
    s = summarize(_of_each_draw(lambda x: ((x - centre) * energy_and_grad(energy, x)[1]).flatten(1).sum(1), chains))
    return Check(s.mean.item(), s.mcse.item(), float(chains[0, 0].numel()))


def checklist(energy: Energy, chains: Tensor, x_data: Tensor | None = None) -> Checklist:
    """Return what to look at before an average of chains is quoted; its method `alarms` names what rings.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        chains: draws, shape `(n_draws, n_chains, *event)`, burn-in removed; from dispersed starts.
        x_data: independent draws, `(n_data, *event)`, of what the energy should have learned.

    Raises:
        ValueError: as `summarize`; if an energy is NaN or infinite.
    """
    with torch.no_grad():
        e = _of_each_draw(lambda x: evaluate(energy, x), chains)
    s = summarize(torch.cat([chains.flatten(2), e[..., None]], 2))
    gap = None if x_data is None else energy_gap(energy, x_data, chains)
    ess = torch.minimum(s.ess_bulk, s.ess_tail).min().item()
    return Checklist(s.r_hat.max().item(), ess, stein_check(energy, chains), gap, s)


def _of_each_draw(statistic: Energy, chains: Tensor) -> Tensor:
    if chains.ndim < 3 or not chains.numel():
        raise ValueError(f"chains must be (n_draws, n_chains, *event), not empty; got {tuple(chains.shape)}")
    return torch.stack([statistic(x) for x in chains])
