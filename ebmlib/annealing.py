"""log Z along a path of energies from a base with known draws: annealed importance sampling (AIS), from both ends.

No gradient goes back to a start or a parameter, and no graph is kept: memory is that of one batch of chains.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .energies import Distribution, Energy, evaluate

Path = Callable[[float], Any]  # the energy at β, for the kernel to move by


class Kernel(Protocol):
    """What moves the chains, such as MALA, HMC or BlockGibbs: it must leave exp(-E) invariant."""

    def init(self, energy: Any, x: Tensor) -> Any: ...
    def step(self, energy: Any, state: Any, generator: torch.Generator | None) -> tuple[Any, Tensor]: ...


class Annealed(NamedTuple):
    """An estimate of log Z from annealed chains.

    Attributes:
        value: log Z in nats.
        std_error: its standard error in nats, from the same chains.
        ess: effective number of chains, (Σw)² / Σw².
        log_w: logarithms of the chains' weights, shape `(n_chains,)`, in double precision.
        x: where the chains ended, before a move at the last β: forward, weighted draws of the energy.
    """

    value: float
    std_error: float
    ess: float
    log_w: Tensor
    x: Tensor


def geometric_path(energy: Energy, base: Distribution) -> Path:
    """Return the path E_β(x) = βE(x) - (1 - β) log q(x), from the base q at β = 0 to the energy at β = 1."""
    return lambda beta: lambda x: beta * energy(x) - (1 - beta) * base.log_prob(x)


def annealed_importance_sampling(
    energy: Energy,
    base: Distribution,
    kernel: Kernel,
    betas: Sequence[float],
    n_chains: int,
    n_steps: int = 1,
    path: Path | None = None,
    generator: torch.Generator | None = None,
) -> Annealed:
    """Return log Z by importance sampling on paths, log mean w over chains that start at draws of the base q.

        log w = Σₖ E_{k-1}(xₖ) - E_k(xₖ),   with E₀ = -log q, x₁ ~ q, and xₖ₊₁ from xₖ by moves that leave exp(-E_k) invariant

    The mean of w is Z, whatever the number of temperatures and however badly the chains mix; so log Z is too low on
    average. Error and ESS are made from the chains at hand: where these miss mass, both stay small.

    Args:
        energy: callable `(batch, *event) -> (batch,)`, the path's end.
        base: distribution q with `log_prob(x)` and `sample((n,))`, positive wherever the energy is finite.
        kernel: moves the chains between two temperatures; ULA leaves nothing invariant, and its estimate has a bias.
        betas: 0 = β₀ < β₁ < … < β_K = 1, such as `torch.linspace(0, 1, 1001)`.
        n_chains: number of chains, at least 2.
        n_steps: moves at each temperature.
        path: the energy at each β in (0, 1); the geometric path if None; for BlockGibbs `lambda b: rbm.tempered(b, logits)`.
        generator: of the moves; draws of the base use the global one.

    Raises:
        ValueError: if the β do not rise from 0 to 1, there are fewer than two chains, no step, or an energy on the way
            is NaN or infinite.

    Source: Neal (2001), Statistics and Computing 11(2), 125-139.
    """
    if n_chains < 2:
        raise ValueError(f"n_chains must be at least 2, for an error; got {n_chains}")
    energies = _energies(energy, base, betas, path)
    x, log_w = _walk(energies, kernel, base.sample(torch.Size([n_chains])), n_steps, generator)
    return _summary(x, log_w, 1)


def reverse_annealed_importance_sampling(
    energy: Energy,
    base: Distribution,
    kernel: Kernel,
    betas: Sequence[float],
    x_model: Tensor,
    n_steps: int = 1,
    path: Path | None = None,
    generator: torch.Generator | None = None,
) -> Annealed:
    """Return log Z from chains that go the path backwards, from draws of the model to the base: too high on average.

    The mean of exp(-log Z) over them is 1/Z. That holds for exact draws only: data are none, and chains that have not
    mixed are none.

    Args:
        x_model: draws of p(x) ∝ exp(-E(x)), shape `(n_chains, *event)`; one chain starts at each.

    The other arguments, and what is raised, are those of `annealed_importance_sampling`; `log_w` are the logarithms of
    the weights of the way back, whose mean is 1/Z.

    Source: Grosse, Ghahramani and Adams (2015), arXiv:1511.02543; Burda, Grosse and Salakhutdinov (2015).
    """
    if len(x_model) < 2:
        raise ValueError(f"x_model must have two rows at least, for an error; got {tuple(x_model.shape)}")
    energies = _energies(energy, base, betas, path)
    x, log_w = _walk(energies[::-1], kernel, x_model.detach(), n_steps, generator)
    return _summary(x, log_w, -1)


def bennett_acceptance_ratio(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Return log Z and its standard error, in nats, from the log weights of both directions on one path.

    With n and m of them it solves Σᵢ σ(wᵢ - log Z - c) = Σⱼ σ(vⱼ + log Z + c), where c = log n/m and σ is the logistic
    function: the estimate of least variance from both, if they are independent (Bennett, 1976).

    Args:
        forward: log weights w, shape `(n,)`, of `annealed_importance_sampling`.
        reverse: log weights v, shape `(m,)`, of `reverse_annealed_importance_sampling`.

    Raises:
        ValueError: if there are fewer than two of either, or one is NaN or infinite.

    Source: Bennett (1976), Journal of Computational Physics 22(2); the error by Shirts and others (2003), Physical
    Review Letters 91(14).
    """
    w, v = (log_w.detach().double() for log_w in (forward, reverse))
    if any(log_w.ndim != 1 or len(log_w) < 2 or not torch.isfinite(log_w).all() for log_w in (w, v)):
        raise ValueError(f"log weights must be (n,), two at least and finite; got {forward}, {reverse}")
    c = math.log(len(w) / len(v))
    low, high = min(w.min().item(), -v.max().item()) - abs(c) - 50, max(w.max().item(), -v.min().item()) + abs(c) + 50
    while (middle := (low + high) / 2) not in (low, high):  # the left side falls with log Z, the right side rises
        rising = torch.sigmoid(w - middle - c).sum() > torch.sigmoid(v + middle + c).sum()
        low, high = (middle, high) if rising else (low, middle)
    return middle, math.sqrt(sum(_relative_variance(torch.sigmoid(s)) for s in (w - middle - c, v + middle + c)))


def _relative_variance(values: Tensor) -> float:
    """Return the squared standard error of a mean, over the squared mean."""
    return (values.var() / values.mean().square() / len(values)).item()


def _energies(energy: Energy, base: Distribution, betas: Sequence[float], path: Path | None) -> list[Callable[[], Any]]:
    """Return what makes E₀ = -log q, the energies of the path between, and the energy, each when it is called."""
    values = [float(beta) for beta in betas]
    if (
        len(values) < 2
        or values[0] != 0
        or values[-1] != 1
        or any(a >= b for a, b in zip(values, values[1:], strict=False))
    ):
        raise ValueError(f"betas must rise from 0 to 1; got {betas}")
    at = path or geometric_path(energy, base)
    inner = [lambda beta=beta: at(beta) for beta in values[1:-1]]
    return [lambda: lambda x: -base.log_prob(x), *inner, lambda: energy]


@torch.no_grad()
def _walk(
    energies: list[Callable[[], Any]], kernel: Kernel, x: Tensor, n_steps: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return where chains from x end, and the sum over the energies of what the change to the next takes off them."""
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; got {n_steps}")
    here = evaluate(energies[0](), x)
    log_w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for make in tqdm(energies[1:-1], delay=3, leave=False):
        energy = make()
        state = kernel.init(energy, x)
        log_w += here - (energy(x) if state.energy is None else state.energy)
        for _ in range(n_steps):
            state, _ = kernel.step(energy, state, generator)
        x = state.x
        here = energy(x) if state.energy is None else state.energy
    log_w += here - evaluate(energies[-1](), x)
    if not torch.isfinite(log_w).all():
        raise ValueError(f"log weight of chain {int((~torch.isfinite(log_w)).nonzero()[0])} is not finite")
    return x, log_w


def _summary(x: Tensor, log_w: Tensor, sign: int) -> Annealed:
    log_mean = torch.logsumexp(log_w, 0) - math.log(len(log_w))
    relative = (log_w - log_mean).exp()
    error, ess = relative.std() / math.sqrt(len(log_w)), len(log_w) / relative.square().mean()
    return Annealed(sign * log_mean.item(), error.item(), ess.item(), log_w, x)
