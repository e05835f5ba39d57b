"""Draws of binary x from p(x) ∝ exp(-E(x)): chains that redraw a unit, or flip what the energy's changes suggest.

Kernels have the interface of `samplers`: `init(energy, x)` makes a state, `step(energy, state, generator)` the next one
and its acceptance probability. A flip of unit i changes the energy by Δᵢ = E(x with xᵢ flipped) - E(x): exactly
by `flip_changes`, or to first order by `taylor_changes`, which needs an energy that has values between 0 and 1 too.
Two losses made of the Δᵢ need neither Z nor chains. The blind flip is `rbm.SingleFlip`.
A state of energy ∞ is never entered. `ValueError` is raised for x that is not binary, `(batch, n_units)`; `NotFinite`
for an energy that is NaN or -∞, for a start at ∞, and for a change that is NaN or infinite where E is not.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .energies import Energy, NotFinite, energy_and_grad, one_a_row


class State(NamedTuple):
    """Chains at x `(batch, n_units)`, E(x) `(batch,)`, and the Δᵢ `(batch, n_units)` or, for Gibbs, nothing."""

    x: Tensor
    energy: Tensor
    change: Tensor


def binary_states(n_units: int, like: Tensor | None = None) -> Tensor:
    """Return all binary states, `(2^n_units, n_units)`, unit 0 fastest, with the dtype and device of `like`."""
    if not 1 <= n_units <= 24:
        raise ValueError(f"n_units must be between 1 and 24, for 2^n_units states are listed; got {n_units}")
    states = torch.arange(2**n_units)[:, None] >> torch.arange(n_units) & 1
    return states.to(torch.empty(0) if like is None else like)


def flip_changes(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E(x) `(batch,)` and Δ `(batch, n_units)`, by n_units + 1 energies a row; parameters keep their graph."""
    flips = (x[:, None] - torch.eye(x.shape[1], dtype=x.dtype, device=x.device)).abs().flatten(0, 1)
    e, changed = one_a_row(energy(x), x), one_a_row(energy(flips), flips).view(x.shape)
    return e, changed - e[:, None]


def taylor_changes(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E(x) `(batch,)` and (1 - 2xᵢ) ∂E/∂xᵢ `(batch, n_units)`, detached, by one gradient.

    This is Δ where E is linear in each unit by itself, as in a Boltzmann machine of pairs; in a network it is not.
    """
    e, grad = energy_and_grad(energy, x)
    return e, (1 - 2 * x.detach()) * grad


def pseudo_likelihood(energy: Energy, x: Tensor) -> Tensor:
    """Return the mean of -Σᵢ log p(xᵢ | x₋ᵢ) = Σᵢ softplus(-Δᵢ), a scalar (Besag, 1975, The Statistician 24)."""
    return softplus(-flip_changes(energy, _check(x))[1]).sum(1).mean()


def ratio_matching(energy: Energy, x: Tensor) -> Tensor:
    """Return the mean of Σᵢ (1 - p(xᵢ | x₋ᵢ))² = Σᵢ σ(-Δᵢ)², a scalar (Hyvärinen, 2007, CSDA 51)."""
    return torch.sigmoid(-flip_changes(energy, _check(x))[1]).square().sum(1).mean()


@dataclass(frozen=True)
class Gibbs:
    """Single-site Gibbs: a unit is redrawn given all others, p(flip) = σ(-Δᵢ), at one energy a unit.

    Args:
        in_order: a step redraws all units once, from the first to the last; if False, one that is drawn at random.
            Each redraw leaves p invariant, so any order does. Detailed balance holds for the random one alone.

    Source: Geman and Geman (1984), IEEE Transactions on Pattern Analysis and Machine Intelligence 6(6).
    """

    in_order: bool = False

    @torch.no_grad()
    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x, with its energy."""
        return _start(State(x, one_a_row(energy(_check(x)), x), x.new_empty(0)))

    @torch.no_grad()
    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state and the probability of accepting it, which is 1."""
        x, e, change = state
        one = torch.ones(len(x), 1, dtype=torch.long, device=x.device)
        for i in range(x.shape[1]) if self.in_order else (None,):
            unit = one.random_(x.shape[1], generator=generator) if i is None else one.fill_(i)
            y = x.scatter(1, unit, 1 - x.gather(1, unit))
            e_y = _above(one_a_row(energy(y), y))
            flip = _uniform(e, generator) < torch.sigmoid(e - e_y)
            x, e = torch.where(flip[:, None], y, x), torch.where(flip, e_y, e)
        return State(x, e, change), torch.ones_like(e)


@dataclass(frozen=True)
class InformedFlip:
    """One flip to y, of a unit from q(i | x) ∝ exp(-Δᵢ/2), accepted by min(1, exp(E(x) - E(y)) q(i | y) / q(i | x)).

    Args:
        exact: Δ by `flip_changes`, at n_units + 1 energies a step: Zanella's locally balanced proposal with √t. If
            False by `taylor_changes`, at one gradient a step: Gibbs with gradients. The test uses exact energies in
            both, so p is left invariant however bad the expansion is.

    Source: Zanella (2020), JASA 115(530); Grathwohl, Swersky, Hashemi, Duvenaud and Maddison (2021), ICML, PMLR 139.
    """

    exact: bool = False

    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x, with its energy and the changes."""
        return _start(State(*_with_changes(energy, _check(x), self.exact)))

    @torch.no_grad()
    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state, and the acceptance probability of each proposal, `(batch,)`."""
        x, _, change = state
        log_q = torch.log_softmax(change / -2, 1)
        share = log_q.exp().cumsum(1)
        unit = (share < _uniform(share[:, :1], generator) * share[:, -1:]).sum(1, keepdim=True)
        new = _with_changes(energy, x.scatter(1, unit, 1 - x.gather(1, unit)), self.exact)
        back = torch.log_softmax(new[2] / -2, 1)
        return _tested(state, new, (back - log_q).gather(1, unit)[:, 0], generator)


@dataclass(frozen=True)
class DiscreteLangevin:
    """All units at once: each flips by itself with probability σ(-Δᵢ/2 - 1/(2α)), with Δ to first order.

    Args:
        step_size: α > 0; a small one flips few units.
        test: accept with the Metropolis-Hastings probability, so that p is left invariant; else all is accepted, and
            the chain draws from something near p: the nearer, the smaller α, where first order is exact.

    Source: Zhang, Liu and Liu (2022), ICML, PMLR 162.
    """

    step_size: float
    test: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite; got {self}")

    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x, with its energy and first-order changes."""
        return _start(State(*_with_changes(energy, _check(x), False)))

    @torch.no_grad()
    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state, and the acceptance probability of each proposal, `(batch,)`; ones without the test."""
        x, _, change = state
        logit = (change + 1 / self.step_size) / -2
        flip = _uniform(x, generator) < torch.sigmoid(logit)
        new = _with_changes(energy, torch.where(flip, 1 - x, x), False)
        if not self.test:
            return _start(State(*new)), torch.ones_like(new[1])
        back = (new[2] + 1 / self.step_size) / -2
        log_ratio = torch.where(flip, back - logit, 0).sum(1) + (softplus(logit) - softplus(back)).sum(1)
        return _tested(state, new, log_ratio, generator)


@torch.no_grad()
def _with_changes(energy: Energy, x: Tensor, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    return x, *(flip_changes if exact else taylor_changes)(energy, x)


def _tested(
    old: State, new: tuple[Tensor, Tensor, Tensor], log_ratio: Tensor, generator: torch.Generator | None
) -> tuple[State, Tensor]:
    """Return the state after the test; log_ratio is log q(x | y) - log q(y | x)."""
    entered = _above(new[1]) < math.inf
    if not math.isfinite(new[2].sum().item()) and not torch.isfinite(new[2][entered]).all():
        raise NotFinite("a change of the energy is NaN or infinite, where the energy is finite")
    accept_prob = torch.where(entered, (old.energy - new[1] + log_ratio).clamp(max=0).exp(), 0)
    accept = _uniform(accept_prob, generator) < accept_prob
    kept = (torch.where(accept.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True))
    return State(*kept), accept_prob


def _start(state: State) -> State:
    if not all(torch.isfinite(value).all() for value in state):
        raise NotFinite("where a chain is, the energy or a change of it is NaN or infinite")
    return state._replace(x=state.x.detach())


def _check(x: Tensor) -> Tensor:
    if x.ndim != 2 or x.numel() < 1 or not x.is_floating_point() or ((x != 0) & (x != 1)).any():
        raise ValueError(f"x must be floats, 0 or 1, (batch, n_units), not empty; got {x.dtype} {tuple(x.shape)}")
    return x


def _above(e: Tensor) -> Tensor:
    if not e.min().item() > -math.inf:  # the smallest of a NaN is a NaN
        raise NotFinite("an energy is NaN or -∞")
    return e


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
