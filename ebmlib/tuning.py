"""The step size of a sampler, before its draws count."""

import dataclasses
import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .energies import Energy
    from .samplers import HMC, MALA

    AnyKernel = TypeVar("AnyKernel", MALA, HMC)


def tune(
    kernel: "AnyKernel",
    energy: "Energy",
    x: Tensor,
    target: float,
    n_steps: int = 150,
    generator: torch.Generator | None = None,
) -> "AnyKernel":
    """Return the kernel with the step size at which its proposals from x are accepted as often as wanted.

    At step t, log step_size ← log step_size + 3 (acceptance - target) / √t, with the mean over the chains, which move
    on meanwhile. The result is the geometric mean over the second half of the search. Draws that count need a step that
    stays: one that goes on adapting to its chain need not leave exp(-E) invariant.

    Args:
        kernel: frozen dataclass with a `step_size`, that accepts or rejects, as MALA and HMC.
        energy: callable `(batch, *event) -> (batch,)`.
        x: starts, shape `(batch, *event)`, best where the chains will be: at data, or at the end of an earlier run.
        target: acceptance probability, between 0 and 1; in high dimension 0.574 for MALA, 0.651 for HMC.
        n_steps: steps of the search.

    Raises:
        ValueError: if the target is not between 0 and 1, n_steps is below 2, or nothing was ever rejected.

    Source: Robbins and Monro (1951), The Annals of Mathematical Statistics 22(3); for the targets Roberts and Rosenthal
    (1998), Journal of the Royal Statistical Society B 60(1), and Beskos and others (2013), Bernoulli 19(5A).
    """
    if not 0 < target < 1:
        raise ValueError(f"target must be between 0 and 1; got {target}")
    if n_steps < 2:
        raise ValueError(f"n_steps must be at least 2; got {n_steps}")
    log_step, kept, lowest = math.log(kernel.step_size), [], 1.0
    for t in range(1, n_steps + 1):
        state, accept_prob = kernel.step(energy, kernel.init(energy, x), generator)
        x, accepted = state.x, accept_prob.mean().item()
        log_step += 3 * (accepted - target) / math.sqrt(t)
        kernel, lowest = dataclasses.replace(kernel, step_size=math.exp(log_step)), min(lowest, accepted)
        if t > n_steps // 2:
            kept.append(log_step)
    if lowest == 1:
        raise ValueError(f"every proposal was accepted, up to {kernel}: it cannot be tuned so, or needs more steps")
    return dataclasses.replace(kernel, step_size=math.exp(sum(kept) / len(kept)))
