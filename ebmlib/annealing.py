"""log Z along a path of energies, from a base with known draws: annealed importance sampling (AIS), from both ends.

No graph is kept, and no gradient goes back to starts or parameters; the memory is that of one batch of chains.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm

from .energies import Distribution, Energy, NotFinite, evaluate, one_a_row

Path = Callable[[float], Any]  # from β to the energy there, as the kernel takes it
Betas = Sequence[float] | Tensor


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
        log_w: log weights in double precision, `(n_chains,)`; the mean of w is Z forward, 1/Z in reverse.
        x: ends of the chains, `(n_chains, *event)`; so weighted they are draws of the energy, in reverse of the base.
    """

    value: float
    std_error: float
    ess: float
    log_w: Tensor
    x: Tensor


def geometric_path(energy: Energy, base: Distribution) -> Path:
    """Return the path E_β(x) = βE(x) - (1 - β) log q(x), from the base q at β = 0 to the energy at β = 1."""
    return lambda b: lambda x: b * one_a_row(energy(x), x) - (1 - b) * one_a_row(base.log_prob(x), x, "the base")


def annealed_importance_sampling(
    energy: Energy,
    base: Distribution,
    kernel: Kernel,
    betas: Betas,
    n_chains: int,
    n_steps: int = 1,
    path: Path | None = None,
    generator: torch.Generator | None = None,
) -> Annealed:
    """Return log Z by importance sampling on paths, log mean w over chains that start at draws of the base q.

        log w = Σₖ Eₖ₋₁(xₖ) - Eₖ(xₖ),  k = 1 … K,  with E₀ = -log q, E_K = E, x₁ ~ q

    and xₖ₊₁ from xₖ by moves that leave exp(-Eₖ) invariant. The mean of w is Z, whatever K is and however badly the
    chains mix; so log Z is too low on average. Standard error and ESS are those of `partition.importance_sampling`:
    where the chains at hand miss mass, both look fine.

    Args:
        energy: callable `(batch, *event) -> (batch,)`, where the path ends.
        base: distribution q with `log_prob(x)` and `sample((n,))`, positive wherever exp(-E) is.
        kernel: moves the chains. Unadjusted Langevin leaves nothing invariant: it adds a bias.
        betas: 0 = β₀ < β₁ < … < β_K = 1, such as `torch.linspace(0, 1, 1001)`.
        n_chains: number of chains, at least 2.
        n_steps: moves at each β between the ends.
        path: from β in (0, 1) to the energy there, with any constant; the geometric path if None. For block Gibbs on a
            Boltzmann machine it is `lambda beta: rbm.tempered(beta, base_logits)`.
        generator: of the moves. The base draws with the global one.

    Raises:
        ValueError: if the β do not rise from 0 to 1, or there are fewer than two chains or no moves.
        NotFinite: if an energy on the way is NaN or infinite.

    Source: Neal (2001), Statistics and Computing 11, 125-139; in physics the identity is Jarzynski's (1997).
    """
    if n_chains < 2:
        raise ValueError(f"n_chains must be at least 2, for an error; got {n_chains}")
    at, betas = _path(energy, base, betas, path)
    return _annealed(at, betas, kernel, base.sample(torch.Size([n_chains])), n_steps, generator)


def reverse_annealed_importance_sampling(
    energy: Energy,
    base: Distribution,
    kernel: Kernel,
    betas: Betas,
    x_model: Tensor,
    n_steps: int = 1,
    path: Path | None = None,
    generator: torch.Generator | None = None,
) -> Annealed:
    """Return log Z = -log mean w over chains that go the path back, from draws of the model to the base.

    The mean of w is 1/Z, so log Z is too high on average: with `annealed_importance_sampling` it brackets the truth.
    That holds for exact, independent draws: data are none, and chains that have not mixed give none. Where the energy
    outgrows -log q far out, as x⁴ does a Gaussian's, the weights have no variance, and the error says nothing.

    Args:
        x_model: draws of p(x) ∝ exp(-E(x)), shape `(n_chains, *event)`, at least 2; a chain starts at each. The other
            arguments, and what is raised, are those of `annealed_importance_sampling`.

    Source: Grosse, Ghahramani and Adams (2015), arXiv:1511.02543. Burda, Grosse and Salakhutdinov (2015),
    arXiv:1412.8566, go back without exact draws, and bound the likelihood of an approximation instead.
    """
    if x_model.ndim < 1 or len(x_model) < 2:
        raise ValueError(f"x_model must have 2 rows at least, for an error; got shape {tuple(x_model.shape)}")
    at, betas = _path(energy, base, betas, path)
    backward = _annealed(at, betas[::-1], kernel, x_model.detach(), n_steps, generator)
    return backward._replace(value=-backward.value)


def bennett_acceptance_ratio(forward: Tensor, reverse: Tensor) -> tuple[float, float]:
    """Return log Z and its standard error, in nats, from the log weights of both directions of one path.

        Σᵢ σ(wᵢ - log Z - c) = Σⱼ σ(vⱼ + log Z + c),   with c = log n/m and the logistic function σ

    With many independent chains no estimate from both varies less, if each kernel is reversible, as MALA, HMC and block
    Gibbs are. The error is too small where the two sets of weights hardly overlap.

    Args:
        forward: log weights w, shape `(n,)`, of `annealed_importance_sampling`.
        reverse: log weights v, shape `(m,)`, of `reverse_annealed_importance_sampling`.

    Raises:
        ValueError: if there are fewer than two of either, or one is NaN or infinite.

    Source: Bennett (1976), Journal of Computational Physics 22, 245-268.
    """
    w, v = forward.detach().double(), reverse.detach().double()
    for log_w in (w, v):
        if log_w.ndim != 1 or len(log_w) < 2 or not torch.isfinite(log_w).all():
            raise ValueError(f"log weights must be (n,), two at least and all finite; got {log_w}")
    c = math.log(len(w) / len(v))
    ends = torch.cat([w, -v])
    low, high = ends.min().item() - abs(c) - 1, ends.max().item() + abs(c) + 1  # one side is the larger at each
    while low < (log_z := (low + high) / 2) < high:  # to the last bit: the left side falls with log Z, the other rises
        left, right = logsigmoid(w - log_z - c), logsigmoid(v + log_z + c)
        low, high = (log_z, high) if left.logsumexp(0) > right.logsumexp(0) else (low, log_z)
    sides = logsigmoid(w - log_z - c), logsigmoid(v + log_z + c)
    return log_z, math.hypot(*(_log_mean(side)[1] for side in sides))


def _log_mean(log_w: Tensor) -> tuple[float, float, float]:
    """Return log mean w, its standard error by the delta method, sd(w) / (mean w · √n), and the ESS."""
    n = len(log_w)
    value = log_w.logsumexp(0) - math.log(n)
    relative = (log_w - value).exp()
    return value.item(), relative.std().item() / math.sqrt(n), n / relative.square().mean().item()


def _path(energy: Energy, base: Distribution, betas: Betas, path: Path | None) -> tuple[Path, list[float]]:
    """Return what gives the energy at each β, the ends included, and the β as numbers."""
    numbers, inner = [float(beta) for beta in betas], path or geometric_path(energy, base)
    if numbers[:1] != [0] or numbers[-1:] != [1] or not all(a < b for a, b in pairwise(numbers)):
        raise ValueError(f"betas must rise from 0 to 1; got {betas}")

    def at(beta: float) -> Any:
        if beta == 0:
            return lambda x: -one_a_row(base.log_prob(x), x, "the base")
        return energy if beta == 1 else inner(beta)

    return at, numbers


@torch.no_grad()
def _annealed(
    at: Path, betas: list[float], kernel: Kernel, x: Tensor, n_steps: int, generator: torch.Generator | None
) -> Annealed:
    """Return the estimate from chains at x, draws of exp(-E) at the first β, that go to the last."""
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1; got {n_steps}")
    log_w, state = evaluate(at(betas[0]), x).double(), None
    for beta in tqdm(betas[1:-1], delay=2, leave=False):
        energy = at(beta)
        if state is None or state.energy is not None:  # what a state carries is of the β before
            state = kernel.init(energy, x)
        before = state.energy
        for _ in range(n_steps):
            state, _ = kernel.step(energy, state, generator)
        if before is None:  # one call of the energy for both costs less than two
            pair = torch.cat([x, state.x])
            before, after = one_a_row(energy(pair), pair).chunk(2)
        else:
            after = state.energy
        x, log_w = state.x, log_w + (after - before)  # the heat, so that constants of the path cancel
    log_w = log_w - evaluate(at(betas[-1]), x)  # not in place, for an energy may return a view of x
    if len(bad := torch.nonzero(~torch.isfinite(log_w))):  # once lost, never back
        raise NotFinite(f"the energies on the way of chain {int(bad[0])} of {len(x)} add up to {log_w[bad[0]].item()}")
    return Annealed(*_log_mean(log_w), log_w, x)
