"""Restricted Boltzmann machines: binary units in two layers, where Gibbs sampling is easy and log Z can be exact."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .energies import Energy, NotFinite, evaluate


class State(NamedTuple):
    """Where chains are: x, and the energy and gradient there where a kernel carries them."""

    x: Tensor
    energy: Tensor | None = None
    grad: Tensor | None = None


class RBM(nn.Module):
    """Free energy of a restricted Boltzmann machine, E(x) = -log Σₕ exp(-E(x, h)), over binary x and h.

        E(x, h) = -aᵀx - bᵀh - xᵀWh,   E(x) = -aᵀx - Σⱼ softplus(bⱼ + xᵀW₍ⱼ₎)

    Args:
        n_visible: number of visible units, x.
        n_hidden: number of hidden units, h.

    W is `weight` (n_visible, n_hidden), drawn from N(0, 0.01²); a is `visible_bias`, b is `hidden_bias`, both zero.

    Raises:
        ValueError: if a number of units is below 1, or x is not `(batch, n_visible)`.
    """

    def __init__(self, n_visible: int, n_hidden: int):
        super().__init__()
        if min(n_visible, n_hidden) < 1:
            raise ValueError(f"both layers need at least one unit; got {n_visible} visible, {n_hidden} hidden")
        self.weight = nn.Parameter(0.01 * torch.randn(n_visible, n_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(n_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden))

    @classmethod
    def from_parameters(cls, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> "RBM":
        """Return the machine with copies of these parameters; no gradient goes back to them."""
        shapes = [tuple(p.shape) for p in (weight, visible_bias, hidden_bias)]
        if weight.ndim != 2 or weight.numel() == 0 or shapes[1:] != [shapes[0][:1], shapes[0][1:]]:
            raise ValueError(f"expected shapes (n_visible, n_hidden), (n_visible,), (n_hidden,); got {shapes}")
        rbm = cls.__new__(cls)  # no random draw
        nn.Module.__init__(rbm)
        rbm.weight, rbm.visible_bias, rbm.hidden_bias = (
            nn.Parameter(p.detach().clone()) for p in (weight, visible_bias, hidden_bias)
        )
        return rbm

    def forward(self, x: Tensor) -> Tensor:
        """Return the free energy in nats, shape `(batch,)`."""
        if x.ndim != 2 or x.shape[1] != len(self.visible_bias):
            raise ValueError(f"x must be (batch, {len(self.visible_bias)}); got {tuple(x.shape)}")
        return -x @ self.visible_bias - softplus(x @ self.weight + self.hidden_bias, threshold=40).sum(1)

    def hidden_prob(self, x: Tensor) -> Tensor:
        """Return p(h = 1 | x), shape `(batch, n_hidden)`."""
        return torch.sigmoid(x @ self.weight + self.hidden_bias)

    def visible_prob(self, h: Tensor) -> Tensor:
        """Return p(x = 1 | h), shape `(batch, n_visible)`."""
        return torch.sigmoid(h @ self.weight.T + self.visible_bias)

    def tempered(self, beta: float, base_logits: Tensor) -> "RBM":
        """Return the machine at β on the path from independent units (β = 0) to this one (β = 1).

        Parameters are βW, βb and (1 - β)·base_logits + βa: a machine again, so that block Gibbs runs on it. At β = 0
        log Z = Σ softplus(base_logits) + n_hidden·log 2. The parameters are copies: no gradient goes back.

        Args:
            beta: β in [0, 1].
            base_logits: logits of the independent units, shape `(n_visible,)`, of the machine's dtype.

        Raises:
            ValueError: if β is outside [0, 1] or the logits have the wrong shape.
        """
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be between 0 and 1; got {beta}")
        visible_bias = (1 - beta) * base_logits + beta * self.visible_bias
        return RBM.from_parameters(beta * self.weight, visible_bias, beta * self.hidden_bias)

    def check_visible(self, x: Tensor) -> None:
        """Raise a `ValueError` unless x is `(batch, n_visible)`, of zeros and ones, with at least one row."""
        check_binary(x, len(self.visible_bias))


def check_binary(x: Tensor, n_units: int) -> None:
    """Raise a `ValueError` unless x is `(batch, n_units)`, of zeros and ones, with at least one row and one unit."""
    if x.ndim != 2 or x.shape[1] != n_units or x.numel() < 1:
        raise ValueError(f"x must be (batch, {n_units}), not empty; got {tuple(x.shape)}")
    if (wrong := (x != 0) & (x != 1)).any():
        row = int(torch.nonzero(wrong)[0, 0])
        raise ValueError(f"x must be binary, 0 or 1; row {row} holds {x[row][wrong[row]][0].item()}")


def sample_bits(prob: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return independent draws, 1 with the given probabilities and else 0: `torch.bernoulli`, several times faster."""
    uniform = torch.rand(prob.shape, generator=generator, dtype=prob.dtype, device=prob.device)
    return uniform.lt_(prob).add_(prob, alpha=0)  # comparing turns NaN into 0; 0·NaN puts it back


@dataclass(frozen=True)
class BlockGibbs:
    """Kernel that redraws all hidden units given x, then all visible units given these. NaN parameters: NaN states."""

    def init(self, energy: RBM, x: Tensor) -> State:
        """Return the state at x, binary, shape `(batch, n_visible)`."""
        energy.check_visible(x)
        return State(x.detach())

    @torch.no_grad()
    def step(self, energy: RBM, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state and the probability of accepting it, which is 1."""
        h = sample_bits(energy.hidden_prob(state.x), generator)
        return State(sample_bits(energy.visible_prob(h), generator)), h.new_ones(len(h))


@dataclass(frozen=True)
class SingleFlip:
    """Metropolis kernel on binary states of any energy: a random unit flips with probability min(1, e^-ΔE).

    A state of energy ∞ is never entered; a start there, NaN, -∞ and another shape than `(batch,)` are errors.
    """

    def init(self, energy: Energy, x: Tensor) -> State:
        """Return the state at x, binary, shape `(batch, n_units)`, with its energy."""
        check_binary(x, x.shape[-1])
        with torch.no_grad():
            return State(x.detach(), evaluate(energy, x))

    @torch.no_grad()
    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state and the probability with which each proposal was accepted."""
        x, e = state.x, evaluate(energy, state.x) if state.energy is None else state.energy
        unit = torch.randint(x.shape[1], (len(x), 1), generator=generator, device=x.device)
        proposal = x.scatter(1, unit, 1 - x.gather(1, unit))
        e_proposal = energy(proposal)
        if e_proposal.shape != x.shape[:1] or not e_proposal.min().item() > -math.inf:
            evaluate(lambda _: e_proposal.clamp(max=3e38), proposal)  # raises, and passes over rows of energy ∞
        accept_prob = torch.exp((e - e_proposal).clamp(max=0))
        accepted = torch.rand(e.shape, generator=generator, dtype=accept_prob.dtype, device=e.device) < accept_prob
        return State(torch.where(accepted[:, None], proposal, x), torch.where(accepted, e_proposal, e)), accept_prob


def _subset_products(factors: Tensor) -> Tensor:
    """Return the products over all subsets of each four rows: `(4n, n_states)` to `(n, 16, n_states)`."""
    products = torch.ones_like(factors[::4, None])
    for factor in factors.view(-1, 4, 1, factors.shape[1]).unbind(1):
        products = torch.cat([products, products * factor], 1)
    return products


def exact_log_z(rbm: RBM) -> Tensor:
    """Return log Z in nats, a scalar in double precision that carries its gradient, by a sum over the smaller layer.

        log Z = log Σₕ exp(bᵀh + Σᵢ log(1 + exp(aᵢ + Wᵢh)))

    The units of the sum are split in halves, h = (s, t), so that exp(aᵢ + Wᵢh) = Sᵢ Tᵢ; over four units i,
    Π (1 + SᵢTᵢ) is the sum over their 16 subsets of ΠSᵢ ΠTᵢ: a matrix product over all pairs (s, t). For the gradient
    all terms are kept, about 4·2^n bytes for each unit of the larger layer; under `no_grad` those of 256 states s.

    Raises:
        ValueError: if both layers have more than 24 units, or parameters are not finite, or too large for float64.
    """
    w, a, b = rbm.weight.double(), rbm.visible_bias.double(), rbm.hidden_bias.double()
    if w.shape[0] < w.shape[1]:
        w, a, b = w.T, b, a
    n = len(b)
    if n > 24:
        raise ValueError(f"the smaller layer has {n} units: a sum over 2^{n} states is too long; 24 is the most")
    fill = -len(a) % 4  # units with bias -inf: they contribute log 1
    w, a = nn.functional.pad(w, (0, 0, 0, fill)), nn.functional.pad(a, (0, fill), value=-math.inf)
    number, unit = (torch.arange(size, device=b.device) for size in (2 ** (n - n // 2), n))
    t = (number[:, None] >> unit[: n - n // 2] & 1).to(b)
    s = t[: 2 ** (n // 2), : n // 2]
    inputs = a[:, None] + w[:, : n // 2] @ s.T, w[:, n // 2 :] @ t.T
    bounds = softplus(inputs[0].amax(1) + inputs[1].amax(1)).view(-1, 4).sum(1).tolist()
    right = inputs[1].exp().split(64)  # few units at a time stay in the cache, as do few states
    totals = []
    for states, factors in zip(s.split(256), inputs[0].exp().split(256, dim=1), strict=True):
        log_terms = (states @ b[: n // 2])[:, None] + t @ b[n // 2 :]
        product, used, bound = torch.ones_like(log_terms), 0.0, iter(bounds)
        for left_units, right_units in zip(factors.split(64), right, strict=True):
            for left, right_group in zip(_subset_products(left_units), _subset_products(right_units), strict=True):
                if (used := used + (most := next(bound))) > 600:  # take the logarithm before exp(600) is passed
                    log_terms, product, used = log_terms + product.log(), torch.ones_like(product), most
                product = product * (left.T @ right_group)
        totals.append(torch.logsumexp((log_terms + product.log()).flatten(), 0))
    log_z = torch.logsumexp(torch.stack(totals), 0)
    if not torch.isfinite(log_z):
        raise NotFinite(f"log Z is {log_z.item()}: parameters are not finite, or too large for double precision")
    return log_z
