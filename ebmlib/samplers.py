"""Draws from p(x) ∝ exp(-E(x)) without Z: chains that move by the gradient of the energy.

A kernel is a frozen dataclass: `init(energy, x)` makes a state, `step(energy, state, generator)` the next one and its
acceptance probability; `run` and `trace` repeat that. No gradient goes back to starts or parameters. `ValueError` is
raised for bad sizes, an energy that returns another shape than `(batch,)`, and a start or a chain that is not finite.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .energies import Energy, NotFinite, energy_and_grad


class State(NamedTuple):
    """Chains at x `(batch, *event)`; E(x) `(batch,)` and ∇E(x) where the kernel carries them."""

    x: Tensor
    energy: Tensor | None = None
    grad: Tensor | None = None


class Chains(NamedTuple):
    """What `trace` records: x `(n_draws, batch, *event)`, and accept_prob `(n_draws, batch)`."""

    x: Tensor
    accept_prob: Tensor


class Kernel(Protocol):
    def init(self, energy: Energy, x: Tensor) -> State: ...
    def step(self, energy: Energy, state: State, generator: torch.Generator | None) -> tuple[State, Tensor]: ...


@dataclass(frozen=True)
class Langevin:
    """Unadjusted Langevin algorithm (ULA): x ← x - η ∇E(x) + √(2ηT) ξ, with ξ ~ N(0, I).

    It draws from exp(-E(x)/T) with a bias that grows with η: a Gaussian of variance 1 gets 1 / (1 - η/2) at T = 1.

    Args:
        step_size: η > 0, in squared units of x.
        temperature: T ≥ 0; 0 is gradient descent.

    Source: Roberts and Tweedie (1996), Bernoulli 2(4).
    """

    step_size: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.step_size < math.inf and 0 <= self.temperature < math.inf):
            raise ValueError(f"step_size must be positive and finite, temperature not negative; got {self}")

    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x; the energy is not evaluated yet."""
        return State(_checked(x))

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state, and ones `(batch,)`: every proposal is accepted."""
        x = torch.add(state.x.detach(), energy_and_grad(energy, state.x)[1], alpha=-self.step_size)  # not in place
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return State(x.add_(xi, alpha=math.sqrt(2 * self.step_size * self.temperature))), x.new_ones(len(x))


@dataclass(frozen=True)
class MALA:
    """Metropolis-adjusted Langevin algorithm: Langevin's proposal y, accepted so that p is left invariant exactly.

    With q(y|x) = N(x - η ∇E(x), 2η I) the acceptance probability is min(1, exp(E(x) - E(y)) q(x|y) / q(y|x)).
    That is HMC with one leapfrog step of length √(2η), and is computed so.

    Args:
        step_size: η > 0, in squared units of x.

    Source: Roberts and Tweedie (1996), Bernoulli 2(4); for the equivalence Neal (2011), Handbook of MCMC, chapter 5.
    """

    step_size: float

    def __post_init__(self) -> None:
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite; got {self}")

    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x, with its energy and gradient."""
        return _carried(energy, x)

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state, and the acceptance probability of each proposal, `(batch,)`."""
        return _metropolis(energy, state, generator, math.sqrt(2 * self.step_size), 1)


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo: a glide of `n_leapfrog` steps, accepted so that p is left invariant exactly.

    With a fresh momentum v ~ N(0, I), each step is v ← v - ε/2 ∇E(x); x ← x + ε v; v ← v - ε/2 ∇E(x).
    The end (x', v') is accepted with probability min(1, exp(H(x, v) - H(x', v'))), where H = E(x) + ½ ‖v‖².

    Args:
        step_size: ε > 0, in units of x; ε²/2 is Langevin's η.
        n_leapfrog: steps, and gradients, of a trajectory; at least 1.

    Source: Neal (2011), Handbook of Markov Chain Monte Carlo, chapter 5.
    """

    step_size: float
    n_leapfrog: int

    def __post_init__(self) -> None:
        if not (0 < self.step_size < math.inf and self.n_leapfrog >= 1):
            raise ValueError(f"step_size must be positive and finite, n_leapfrog at least 1; got {self}")

    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x, with its energy and gradient."""
        return _carried(energy, x)

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state, and the acceptance probability of each proposal, `(batch,)`."""
        return _metropolis(energy, state, generator, self.step_size, self.n_leapfrog)


def run(kernel: Kernel, energy: Energy, x: Tensor, n_steps: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the last states of chains that start at x `(batch, *event)`, detached; x is left untouched."""
    if n_steps < 0:
        raise ValueError(f"n_steps must not be negative; got {n_steps}")
    state = kernel.init(energy, x)
    for _ in range(n_steps):
        state, _ = kernel.step(energy, state, generator)
    return _require_finite(state.x, f"after {n_steps} steps of {kernel}: the state")


def trace(
    kernel: Kernel, energy: Energy, x: Tensor, n_draws: int, thin: int = 1, generator: torch.Generator | None = None
) -> Chains:
    """Return every `thin`-th state of chains that start at x, without the starts; accept_prob is a mean over `thin`."""
    if n_draws < 1 or thin < 1:
        raise ValueError(f"n_draws and thin must be at least 1; got {n_draws} and {thin}")
    state = kernel.init(energy, x)
    draws, dtype = state.x.new_empty(n_draws, *state.x.shape), torch.result_type(state.x, 1.0)
    accepted = state.x.new_zeros(n_draws, len(x), dtype=dtype)
    for i in range(n_draws):
        for _ in range(thin):
            state, accept_prob = kernel.step(energy, state, generator)
            accepted[i].add_(accept_prob, alpha=1 / thin)
        draws[i] = state.x
    _require_finite(state.x, f"after {n_draws * thin} steps of {kernel}: the state")  # once lost, never back
    return Chains(draws, accepted)


def leapfrog(energy: Energy, x: Tensor, v: Tensor, grad: Tensor, step_size: float, n_steps: int) -> tuple[Tensor, ...]:
    """Return x, v, E(x), ∇E(x), detached, at the end of a glide from x, v, ∇E(x); from x, -v it would lead back."""
    if n_steps < 1 or not x.shape == v.shape == grad.shape:
        raise ValueError(f"shapes must agree, n_steps be at least 1; got {x.shape}, {v.shape}, {grad.shape}, {n_steps}")
    x, v = x.detach(), torch.add(v, grad, alpha=-step_size / 2).detach()
    for i in range(1, n_steps + 1):
        x = torch.add(x, v, alpha=step_size)
        e, grad = energy_and_grad(energy, x)
        v.sub_(grad, alpha=step_size if i < n_steps else step_size / 2)  # between two steps, two halves in one
    return x, v, e, grad


def _metropolis(
    energy: Energy, start: State, generator: torch.Generator | None, step_size: float, n_leapfrog: int
) -> tuple[State, Tensor]:
    x, e, grad = start
    assert e is not None and grad is not None, "a state is made by init"
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    new_x, new_v, new_e, new_grad = leapfrog(energy, x, v, grad, step_size, n_leapfrog)
    v, new_v = v.reshape(len(x), -1), new_v.reshape(len(x), -1)
    h = torch.add(e, torch.linalg.vecdot(v, v), alpha=0.5)
    new_h = torch.add(new_e, torch.linalg.vecdot(new_v, new_v), alpha=0.5)
    # A proposal without a finite energy is rejected; -∞ too, for a chain would never leave it.
    accept_prob = torch.where(new_h.abs() < math.inf, h - new_h, -math.inf).clamp_(max=0).exp_()
    accept = torch.rand(e.shape, generator=generator, dtype=e.dtype, device=e.device) < accept_prob
    row = accept.view(-1, *[1] * (x.ndim - 1))
    new_x, new_e, new_grad = torch.where(row, new_x, x), torch.where(accept, new_e, e), torch.where(row, new_grad, grad)
    return State(new_x, new_e, new_grad), accept_prob


def _carried(energy: Energy, x: Tensor) -> State:
    e, grad = energy_and_grad(energy, _checked(x))
    return State(x.detach(), _require_finite(e, "energy at the start"), _require_finite(grad, "gradient at the start"))


def _checked(x: Tensor) -> Tensor:
    if x.ndim < 1 or x.numel() < 1 or not x.is_floating_point():
        raise ValueError(f"starts must be floating point, (batch, *event); got {x.dtype} {tuple(x.shape)}")
    return _require_finite(x, "the start").detach()


def _require_finite(value: Tensor, name: str) -> Tensor:
    bad = ~torch.isfinite(value.reshape(len(value), -1)).all(1)
    if bad.any():
        raise NotFinite(f"{name} of chain {int(bad.nonzero()[0])} of {len(value)} is not finite")
    return value
