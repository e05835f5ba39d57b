"""What chains, energies and weights say of themselves: necessary conditions, none of them sufficient."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .energies import Energy, evaluate


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


def summarize(chains: Tensor) -> Summary:
    """Return mean, Monte Carlo standard error, effective sample sizes and R-hat of each coordinate, by arviz-stats.

    Each number belongs to one statistic: for the error of a mean of squares, summarize the squares. R-hat does not see
    one stuck chain among many, nor chains that share their random numbers; these are errors. What may rightly stay the
    same, a statistic of two values such as whether x > 3, counts as stuck only where no coordinate of a chain moves;
    give a rare event beside one that does. Chains that repeat each other later on (a lag) are not looked for.

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


def energy_gap(energy: Energy, x_data: Tensor, x_model: Tensor) -> float:
    """Return mean E(x_model) - mean E(x_data), in nats: zero on average where the model has the data's distribution.

    Above zero the chains have not reached where the data lie; below zero they have found something deeper.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x_data: shape `(n_data, *event)`.
        x_model: shape `(n_model, *event)`.

    Raises:
        ValueError: if the energy returns another shape, or a NaN or infinite value.
    """
    with torch.no_grad():
        return (evaluate(energy, x_model).mean() - evaluate(energy, x_data).mean()).item()


def weight_ess(log_w: Tensor) -> float:
    """Return the effective number among weighted draws, (Σ w)² / Σ w²: n if all weights are equal, 1 if one rules.

    Args:
        log_w: logarithms of the weights, shape `(n,)`, up to a common constant; -∞ is a weight of zero.

    Raises:
        ValueError: if a weight is NaN or infinite, or all are zero.

    Source: Kong (1992), Technical Report 348, University of Chicago.
    """
    if log_w.ndim != 1 or torch.isnan(log_w).any() or not torch.isfinite(log_w.max()):
        raise ValueError(f"log_w must be (n,), not NaN and with a finite largest value; got {log_w}")
    log_w = log_w.detach().double()
    return (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp().item()
