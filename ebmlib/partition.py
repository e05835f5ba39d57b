"""Estimators of log Z = log ∫ exp(-E(x)) dx, in nats, each with what it says of its own error."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .energies import Distribution, Energy, evaluate

BLOCK = 2**16  # states evaluated at a time: bounds the memory of the exact sums


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


def quadrature(energy: Energy, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor, n_points: int) -> LogZ:
    """Return log Z over a box by Gauss-Legendre quadrature on a product grid.

    The cost is n_points^dim energies. What lies outside the box is left out, and nothing reports it.

    Args:
        energy: callable `(batch, dim) -> (batch,)`.
        low: lower corner, `(dim,)`; a tensor fixes the device and the dtype of the grid (else the default dtype:
            single precision gives six digits).
        high: upper corner, `(dim,)`.
        n_points: nodes along each axis.

    Returns:
        `LogZ` with a standard error of 0.

    Raises:
        ValueError: if the box is empty, `n_points` is below 1, or an energy is NaN or infinite.
    """
    low, high = torch.as_tensor(low), torch.as_tensor(high)
    low = low.to(torch.promote_types(low.dtype, torch.get_default_dtype()))
    if low.ndim != 1 or low.shape != high.shape or not (low < high).all():
        raise ValueError(f"low and high must be (dim,) with low < high; got {low.tolist()} and {high.tolist()}")
    if n_points < 1:
        raise ValueError(f"n_points must be at least 1; got {n_points}")
    node, weight = (torch.as_tensor(a).to(low) for a in np.polynomial.legendre.leggauss(n_points))
    half = (high - low) / 2
    dim, total = len(low), n_points ** len(low)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, total, BLOCK):
            flat = torch.arange(start, min(start + BLOCK, total), device=low.device)
            index = flat[:, None] // n_points ** torch.arange(dim, device=low.device) % n_points
            x = low + half * (node[index] + 1)
            yield weight.log()[index].sum(1) + half.log().sum() - evaluate(energy, x)

    return _total(blocks())


def enumeration(energy: Energy, n_units: int, device: torch.device | str | None = None) -> LogZ:
    """Return log Z = log Σ exp(-E(x)) over all binary states x in {0, 1}^n_units.

    Args:
        energy: callable `(batch, n_units) -> (batch,)`.
        n_units: number of binary units; each doubles the cost.
        device: where the states are made.

    Returns:
        `LogZ` with a standard error of 0.

    Raises:
        ValueError: if `n_units` is below 1 or above 30, or an energy is NaN or infinite.
    """
    if not 1 <= n_units <= 30:
        raise ValueError(f"n_units must be between 1 and 30, for 2^n_units states are summed; got {n_units}")
    bits = torch.arange(n_units, device=device)
    states = (torch.arange(s, min(s + BLOCK, 2**n_units), device=device) for s in range(0, 2**n_units, BLOCK))
    return _total(-evaluate(energy, (state[:, None] >> bits & 1).to(torch.get_default_dtype())) for state in states)


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
    with torch.no_grad():
        x = proposal.sample(torch.Size([n_samples]))
        log_w = (-evaluate(energy, x) - evaluate(proposal.log_prob, x)).double()
        value = torch.logsumexp(log_w, dim=0) - math.log(n_samples)
        relative = (log_w - value).exp()
        std_error = relative.std() / math.sqrt(n_samples)
        return LogZ(value.item(), std_error.item(), n_samples / relative.square().mean().item())
