"""The Ising model on a torus: exact sums, and moves that know the lattice.

    E(x) = -Σ J_ij s_i s_j over neighbours,  s = 2x - 1,

with x binary, `(batch, height·width)`, row by row. Each site has a bond to the right and one down, around the edges.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .energies import by_hand


class State(NamedTuple):
    """Chains at x, binary, `(batch, n_sites)`; these kernels carry no energy."""

    x: Tensor
    energy: Tensor | None = None


class IsingEnergy:
    """The energy above, of states `(batch, height·width)`.

    Args:
        height: rows of the lattice, at least 3.
        width: columns, at least 3.
        coupling: J: one number, or `(2, height, width)`, of the bonds to the right and of those down. A tensor keeps
            its graph.
    """

    def __init__(self, height: int, width: int, coupling: float | Tensor):
        if min(height, width) < 3:
            raise ValueError(f"height and width must be at least 3, or a bond counts twice; got {height}, {width}")
        if isinstance(coupling, Tensor) and coupling.shape not in ((), (2, height, width)):
            raise ValueError(f"coupling must be a number or (2, {height}, {width}); got {tuple(coupling.shape)}")
        self.height, self.width, self.coupling = height, width, coupling
        right, down = coupling if isinstance(coupling, Tensor) and coupling.ndim else (coupling, coupling)
        self.right, self.down = right, down

    def spins(self, x: Tensor) -> Tensor:
        """Return 2x - 1, -1 or 1, as `(batch, height, width)`."""
        if x.ndim != 2 or x.shape[1] != self.height * self.width:
            raise ValueError(f"x must be (batch, {self.height * self.width}); got {tuple(x.shape)}")
        return (2 * x - 1).view(-1, self.height, self.width)

    def __call__(self, x: Tensor) -> Tensor:
        s = self.spins(x)
        return -(s * (self.right * s.roll(-1, 2) + self.down * s.roll(-1, 1))).sum((1, 2))

    def field(self, s: Tensor) -> Tensor:
        """Return what the neighbours ask of each spin, Σ_j J_ij s_j: p(s_i = 1 | others) = σ(2 field)."""
        if self.right is self.down:
            return self.coupling * (s.roll(-1, 2) + s.roll(1, 2) + s.roll(-1, 1) + s.roll(1, 1))
        ahead = self.right * s.roll(-1, 2) + self.down * s.roll(-1, 1)
        return ahead + (self.right * s).roll(1, 2) + (self.down * s).roll(1, 1)

    @by_hand
    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x), detached."""
        s = self.spins(x)
        field = self.field(s)
        return (s * field).sum((1, 2)) / -2, -2 * field.flatten(1)


@dataclass(frozen=True)
class Checkerboard:
    """Gibbs of all black sites, then of all white ones: sites of a colour are independent given the other colour."""

    def init(self, energy: IsingEnergy, x: Tensor) -> State:
        """Return the state at x; the lattice's sides must be even."""
        if energy.height % 2 or energy.width % 2:
            raise ValueError(f"around an odd side equal colours meet; got {energy.height} and {energy.width}")
        return State(_binary(energy, x))

    @torch.no_grad()
    def step(self, energy: IsingEnergy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the state after a sweep and the probability of accepting it, which is 1."""
        s = energy.spins(state.x)
        rows, columns = (torch.arange(n, device=s.device) for n in s.shape[1:])
        black = (rows[:, None] + columns) % 2 == 0
        logit = torch.rand(s.shape, generator=generator, dtype=s.dtype, device=s.device).logit_()
        for colour in (black, ~black):
            s = torch.where(colour, (logit < 2 * energy.field(s)).to(s) * 2 - 1, s)
        return State((s.flatten(1) + 1) / 2), s.new_ones(len(s))


@dataclass(frozen=True)
class SwendsenWang:
    """Clusters: bonds of spins as J wants them hold with probability 1 - exp(-2|J|); a coin flips each cluster or not.

    Source: Swendsen and Wang (1987), Physical Review Letters 58(2), 86-88.
    """

    def init(self, energy: IsingEnergy, x: Tensor) -> State:
        """Return the state at x."""
        return State(_binary(energy, x))

    @torch.no_grad()
    def step(self, energy: IsingEnergy, state: State, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Return the next state and the probability of accepting it, which is 1."""
        s = energy.spins(state.x)
        site = torch.arange(s.numel(), device=s.device).view(s.shape)
        ends = []
        for coupling, axis in ((energy.right, 2), (energy.down, 1)):
            granted = (2 * coupling * s * s.roll(-1, axis)).clamp(min=0)
            held = torch.rand(s.shape, generator=generator, dtype=s.dtype, device=s.device) < -torch.expm1(-granted)
            ends.append(torch.stack([site[held], site.roll(-1, axis)[held]]))
        root = _clusters(torch.cat(ends, 1), s.numel())
        coin = torch.rand(s.numel(), generator=generator, dtype=s.dtype, device=s.device) < 0.5
        x = torch.where(coin[root].view(state.x.shape), 1 - state.x, state.x)
        return State(x), s.new_ones(len(s))


def _clusters(bonds: Tensor, n_sites: int) -> Tensor:
    """Return for each site the lowest site that bonds `(2, n_bonds)` connect it to."""
    root = torch.arange(n_sites, device=bonds.device)
    while bonds.shape[1]:
        a, b = root[bonds]
        open_ = a != b
        bonds, a, b = bonds[:, open_], a[open_], b[open_]
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(up := root[root], root):
            root = up
    return root


def _binary(energy: IsingEnergy, x: Tensor) -> Tensor:
    energy.spins(x)
    if x.numel() < 1 or not x.is_floating_point() or ((x != 0) & (x != 1)).any():
        raise ValueError(f"x must be floats, 0 or 1, not empty; got {x.dtype} {tuple(x.shape)}")
    return x.detach()


class Torus(NamedTuple):
    """Exact numbers of a torus: log Z, the mean energy, and the mean of M², M = Σ s, per state and not per site."""

    log_z: float
    energy: float
    square_magnetisation: float


def transfer_matrix(height: int, width: int, coupling: float, device: torch.device | str | None = None) -> Torus:
    """Return exact numbers of a torus with one coupling, from the 2^width states of a row: Z = tr T^height.

    T(r, r') = exp(V(r)/2 + J r·r' + V(r')/2), V(r) = J Σ r_k r_k+1. In its eigenbasis, with D the rows' sums,
    E[M²] = height Σ_k tr(D T^k D T^(height - k)) / Z.

    Args:
        width: at most 12; the cost is that of the eigenvectors of a matrix with 2^width rows.
    """
    if min(height, width) < 3 or width > 12 or not math.isfinite(coupling):
        raise ValueError(f"sides must be at least 3, width at most 12; got {height}, {width}, coupling {coupling}")
    unit = torch.arange(width, device=device)
    row = 2.0 * (torch.arange(2**width, device=device)[:, None] >> unit & 1).double() - 1
    within, between = (row * row.roll(1, 1)).sum(1), row @ row.T
    exponent = (within[:, None] + within) / 2 + between
    value, vector = torch.linalg.eigh((coupling * exponent - abs(coupling) * 2 * width).exp())
    total = (value / (most := value.abs().max())).pow(height).sum()
    log_z = height * (most.log() + abs(coupling) * 2 * width) + total.log()
    slope = torch.einsum(
        "ri,rs,si->i", vector, exponent * (coupling * exponent - abs(coupling) * 2 * width).exp(), vector
    )
    energy = -coupling * height * ((value / most).pow(height - 1) * slope / most).sum() / total
    magnet = (vector.T @ (row.sum(1)[:, None] * vector)).square()
    powers = torch.stack([(value / most).pow(k) for k in range(height + 1)])
    square = height * torch.einsum("ki,ij,kj->", powers[:-1], magnet, powers.flip(0)[:-1]) / total
    return Torus(log_z.item(), energy.item(), square.item())


def kaufman_log_z(height: int, width: int, coupling: float | Tensor) -> Tensor:
    """Return log Z of a torus of any size with one coupling J > 0, a scalar in double precision, with J's gradient.

    The mean energy is -J ∂ log Z / ∂J.

    Source: Kaufman (1949), Physical Review 76(8), 1232-1243.
    """
    j = torch.as_tensor(coupling, dtype=torch.float64) if not isinstance(coupling, Tensor) else coupling.double()
    if min(height, width) < 1 or not 0 < j.item() < math.inf:
        raise ValueError(f"sides and coupling must be positive; got {height}, {width}, {coupling}")
    angle = torch.arange(1, 2 * width, device=j.device).double() * math.pi / width
    gamma = torch.acosh(torch.cosh(2 * j) / torch.tanh(2 * j) - torch.cos(angle))
    gamma = torch.cat([(2 * j + torch.tanh(j).log())[None], gamma]) * height / 2  # the first has a sign
    halves = [
        (g.abs() + softplus(-2 * g.abs())).sum() + torch.log1p(product)
        for g in (gamma[::2], gamma[1::2])
        if (product := g.tanh().prod()) > -1  # else its weight is 0, whose logarithm has no gradient
    ]
    return torch.logsumexp(torch.stack(halves), 0) - math.log(2) + height * width / 2 * (2 * torch.sinh(2 * j)).log()
