"""Distributions in the plane whose density is known: data with a truth to measure against."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .energies import GaussianMixtureEnergy


class Toy:
    """A 2-D distribution whose log density is known, as a closed form or to rounding."""

    def __init__(self, log_prob: Callable[[Tensor], Tensor], sample: Callable[[int, torch.Generator | None], Tensor]):
        self.log_prob, self._sample = log_prob, sample

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, 2)`."""
        return self._sample(math.prod(shape), generator).reshape(*shape, 2)


def eight_gaussians(
    radius: float = 2.0, std: float = 0.2, device: torch.device | str | None = None
) -> GaussianMixtureEnergy:
    """Return eight equal Gaussians on a circle: an energy and a distribution, log Z exact."""
    angle = torch.arange(8, device=device) * math.pi / 4
    return GaussianMixtureEnergy(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def rings(radii: Sequence[float] = (1.0, 2.0, 3.0), std: float = 0.15, device: torch.device | str | None = None) -> Toy:
    """Return concentric rings: a ring with equal chance, a uniform angle, a radius from N(radius, std²)."""
    centre = torch.tensor(radii, device=device)

    def log_prob(x: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True)
        # A drawn radius below zero lands on the opposite side: the second term, negligible where std << radius.
        squared = torch.stack([r - centre, r + centre]).square()
        mixture = torch.logsumexp(-squared / (2 * std**2), dim=(0, 2)) - math.log(len(radii) * std)
        return mixture - 1.5 * math.log(2 * math.pi) - r[:, 0].log()

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        ring = torch.randint(len(radii), (n,), generator=generator, device=device)
        radius = centre[ring] + std * torch.randn(n, generator=generator, device=device)
        angle = 2 * math.pi * torch.rand(n, generator=generator, device=device)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)

    return Toy(log_prob, sample)


def two_moons(std: float = 0.1, device: torch.device | str | None = None) -> Toy:
    """Return two half circles of radius 1 blurred by N(0, std²); the density is a sum over the arcs (std >= 0.05)."""

    def moons(angle: Tensor) -> Tensor:
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
        return torch.cat([upper, -upper])

    like = torch.empty(0, device=device)
    node, weight = (torch.as_tensor(a).to(like) for a in np.polynomial.legendre.leggauss(128))
    blurred = GaussianMixtureEnergy(moons((node + 1) * math.pi / 2), std, weight.repeat(2))

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        angle = math.pi * torch.rand(n, generator=generator, device=device)
        upper = torch.randint(2, (n, 1), generator=generator, device=device).bool()
        top, bottom = moons(angle).chunk(2)
        noise = torch.randn(n, 2, generator=generator, device=device)
        return torch.where(upper, top, bottom) + std * noise

    return Toy(blurred.log_prob, sample)


def checkerboard(device: torch.device | str | None = None) -> Toy:
    """Return the uniform distribution on the eight dark unit squares of the board [-2, 2]²; log p is -∞ elsewhere."""

    def log_prob(x: Tensor) -> Tensor:
        cell = x.floor()
        dark = (cell.sum(1) % 2 == 0) & (cell >= -2).all(1) & (cell < 2).all(1)
        return torch.where(dark, -math.log(8.0), -torch.inf)

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        column = torch.randint(4, (n,), generator=generator, device=device) - 2
        row = 2 * torch.randint(2, (n,), generator=generator, device=device) - 2 + column % 2
        return torch.stack([column, row], 1) + torch.rand(n, 2, generator=generator, device=device)

    return Toy(log_prob, sample)
