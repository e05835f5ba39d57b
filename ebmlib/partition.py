"""Estimators of log Z = log ∫ exp(-E(x)) dx, in nats, each with what it says of its own error.

They return plain numbers: no gradient is kept, and memory is that of `BLOCK` states.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .energies import Distribution, Energy, evaluate

BLOCK = 2**16  # states evaluated at a time: bounds the memory


class LogZ(NamedTuple):
    """An estimate of log Z.

    Attributes:
        value: log Z in nats.
        std_error: its standard error in nats, as estimated from the same draws; 0 for a deterministic sum.
        ess: effective number of draws; infinite for a deterministic sum.
    """

    value: float
    std_error: float
    ess: float


def _total(log_terms: Iterator[Tensor]) -> LogZ:
    """Return the log of the sum of exp over all blocks, in double precision."""
    blocks = torch.stack([torch.logsumexp(block.double(), dim=0) for block in log_terms])
    return LogZ(torch.logsumexp(blocks, dim=0).item(), 0.0, math.inf)


@torch.no_grad()
def quadrature(energy: Energy, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor, n_points: int) -> LogZ:
    """Return log Z over a box by Gauss-Legendre quadrature on a product grid.

    The cost is n_points^dim energies. What lies outside the box is left out, and nothing reports it.

    Args:
        energy: callable `(batch, dim) -> (batch,)`.
        low: lower corner, `(dim,)`.
        high: upper corner, `(dim,)`. The grid has the device and the floating dtype of the corners that are tensors,
            else the defaults; single precision gives six digits.
        n_points: nodes along each axis.

    Returns:
        `LogZ` with a standard error of 0.

    Raises:
        ValueError: if the box is empty or infinite, `n_points` is below 1, or an energy is NaN or infinite.
    """
    low, high = _corners(low, high)
    fits = low.ndim == 1 and low.shape == high.shape and len(low) > 0
    if not (fits and (low < high).all() and (high - low).isfinite().all()):
        raise ValueError(f"low and high must be (dim,), finite, low < high; got {low.tolist()} and {high.tolist()}")
    if n_points < 1:
        raise ValueError(f"n_points must be at least 1; got {n_points}")
    node, weight = (low.new_tensor(a) for a in np.polynomial.legendre.leggauss(n_points))
    half = (high - low) / 2
    dim, total = len(low), n_points ** len(low)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, total, BLOCK):
            flat = torch.arange(start, min(start + BLOCK, total), device=low.device)
            index = flat[:, None] // n_points ** torch.arange(dim, device=low.device) % n_points
            x = low + half * (node[index] + 1)
            yield weight.log()[index].sum(1) + half.log().sum() - evaluate(energy, x)

    return _total(blocks())


def _corners(low: Sequence[float] | Tensor, high: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Return both as tensors of the floating dtype of those that have one; plain numbers are rounded once, to it."""
    typed = [
        corner if isinstance(corner, Tensor) else torch.as_tensor(corner)
        for corner in (low, high)
        if hasattr(corner, "dtype") or any(hasattr(number, "dtype") for number in corner)
    ]
    dtypes = [corner.dtype for corner in typed if corner.is_floating_point()] or [torch.get_default_dtype()]
    dtype, device = torch.promote_types(dtypes[0], dtypes[-1]), typed[0].device if typed else None
    low, high = (
        corner.to(dtype) if isinstance(corner, Tensor) else torch.as_tensor(corner, dtype=dtype, device=device)
        for corner in (low, high)
    )
    return low, high


@torch.no_grad()
def enumeration(
    energy: Energy, n_units: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> LogZ:
    """Return log Z = log Σ exp(-E(x)) over all binary states x in {0, 1}^n_units.

    Args:
        energy: callable `(batch, n_units) -> (batch,)`.
        n_units: number of binary units; each doubles the cost.
        device: where the states are made.
        dtype: of the states, as of the energy's parameters; the default dtype if None.

    Returns:
        `LogZ` with a standard error of 0.

    Raises:
        ValueError: if `n_units` is below 1 or above 30, or an energy is NaN or infinite.
    """
    if not 1 <= n_units <= 30:
        raise ValueError(f"n_units must be between 1 and 30, for 2^n_units states are summed; got {n_units}")
    bits, dtype = torch.arange(n_units, device=device), dtype or torch.get_default_dtype()
    states = (torch.arange(s, min(s + BLOCK, 2**n_units), device=device) for s in range(0, 2**n_units, BLOCK))
    return _total(-evaluate(energy, (state[:, None] >> bits & 1).to(dtype)) for state in states)


@torch.no_grad()
def importance_sampling(energy: Energy, proposal: Distribution, n_samples: int) -> LogZ:
    """Return log Z by importance sampling, log mean w with w = exp(-E(x)) / q(x) and x ~ q.

    The standard error is by the delta method, sd(w) / (mean w · √n). Both it and the ESS see only the draws at hand:
    where q misses mass of p, they stay small while log Z is too low.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        proposal: distribution q with `log_prob(x)` and `sample((n,))`; positive wherever p is.
        n_samples: number of draws, at least 2.

    Returns:
        `LogZ` whose `ess` is (Σw)² / Σw².

    Raises:
        ValueError: if `n_samples` is below 2, or an energy or log density is NaN or infinite.
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2; got {n_samples}")
    blocks = []
    for start in range(0, n_samples, BLOCK):
        x = proposal.sample(torch.Size([min(BLOCK, n_samples - start)]))
        blocks.append((-evaluate(energy, x) - evaluate(proposal.log_prob, x, "the proposal")).double())
    log_w = torch.cat(blocks)
    value = torch.logsumexp(log_w, dim=0) - math.log(n_samples)
    relative = (log_w - value).exp()
    std_error = relative.std() / math.sqrt(n_samples)
    return LogZ(value.item(), std_error.item(), n_samples / relative.square().mean().item())


def weight_ess(log_w: Tensor) -> float:
    """Return the effective number among weighted draws, (Σ w)² / Σ w²: n if all weights are equal, 1 if one rules.

    Args:
        log_w: logarithms of the weights, shape `(n,)`, up to a common constant; -∞ is a weight of zero.

    Raises:
        ValueError: if a weight is NaN or infinite, or all are zero.

    Source: Kong (1992), Technical Report 348, University of Chicago.
    """
    if log_w.ndim != 1 or not len(log_w) or torch.isnan(log_w).any() or not torch.isfinite(log_w.max()):
        raise ValueError(f"log_w must be (n,), not NaN and with a finite largest value; got {log_w}")
    log_w = log_w.detach().double()
    return (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp().item()


def pareto_k(log_w: Tensor) -> float:
    """Return Pareto k̂ of importance weights: the shape of their upper tail, as fitted by arviz-stats.

    Above 0.7 the weights are too heavy-tailed for a mean of this many draws. It sees only the draws at hand.

    Args:
        log_w: logarithms of the weights, shape `(n,)` with n ≥ 25, up to a common constant.

    Raises:
        ValueError: if a weight is NaN, infinite or zero, or the largest are fewer than five different numbers.

    Source: Vehtari and others (2024), Journal of Machine Learning Research 25(72).
    """
    from arviz_stats.base import array_stats

    if log_w.ndim != 1 or len(log_w) < 25 or not torch.isfinite(log_w).all():
        raise ValueError(f"log_w must be (n,), with 25 finite values at least; got {log_w}")
    log_w = log_w.detach().double().cpu()
    n_tail = min(len(log_w) // 5, math.ceil(3 * math.sqrt(len(log_w))))
    if len(log_w.topk(n_tail).values.unique()) < 5:
        raise ValueError(
            f"the {n_tail} largest weights are fewer than five different numbers: they have no tail to fit"
        )
    return float(array_stats.psislw(-log_w.numpy())[1])  # it takes negative log weights
