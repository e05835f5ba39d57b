"""Distributions in the plane whose density is known: data with a truth to measure against.

They draw in `dtype` and on `device`, torch's defaults if None; a log density has the dtype of its x.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .energies import GaussianMixtureEnergy

Device = torch.device | str | None


class Toy:
    """A 2-D distribution whose log density is known, as a closed form or to rounding.

    Args:
        log_prob: callable `(batch, 2) -> (batch,)`.
        sample: callable, a number n and a generator to exact draws `(n, 2)`.
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], sample: Callable[[int, torch.Generator | None], Tensor]):
        self._log_prob, self._sample = log_prob, sample

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `(batch,)`."""
        if x.ndim != 2 or x.shape[1] != 2 or not x.is_floating_point():
            raise ValueError(f"x must be floating point, (batch, 2); got {x.dtype} {tuple(x.shape)}")
        wide = torch.promote_types(x.dtype, torch.float32)  # half precision would lose the digits of a density
        return self._log_prob(x.to(wide)).to(x.dtype)

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, 2)`."""
        return self._sample(math.prod(shape), generator).reshape(*shape, 2)


def eight_gaussians(
    radius: float = 2.0, std: float = 0.2, device: Device = None, dtype: torch.dtype | None = None
) -> GaussianMixtureEnergy:
    """Return eight equal Gaussians on a circle: an energy and a distribution, log Z exact."""
    angle = torch.arange(8, **_fixed(device, dtype)) * math.pi / 4
    return GaussianMixtureEnergy(radius * torch.stack([angle.cos(), angle.sin()], 1), std)


def rings(
    radii: Sequence[float] = (1.0, 2.0, 3.0), std: float = 0.15, device: Device = None, dtype: torch.dtype | None = None
) -> Toy:
    """Return concentric rings: a ring with equal chance, a uniform angle, a radius from N(radius, std²)."""
    if len(radii) < 1 or not all(0 < value < math.inf for value in (*radii, std)):
        raise ValueError(f"rings need one radius at least, radii and std must be positive; got {radii}, {std}")
    fixed = _fixed(device, dtype)
    centre = torch.tensor(radii, **fixed)

    def log_prob(x: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True)
        # A drawn radius below zero lands on the opposite side: the second term, negligible where std << radius.
        squared = torch.stack([r - centre, r + centre]).square()
        mixture = torch.logsumexp(-squared / (2 * std**2), dim=(0, 2)) - math.log(len(radii) * std)
        return mixture - 1.5 * math.log(2 * math.pi) - r[:, 0].log()

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        ring = torch.randint(len(radii), (n,), generator=generator, device=centre.device)
        radius = centre[ring] + std * torch.randn(n, generator=generator, **fixed)
        angle = 2 * math.pi * torch.rand(n, generator=generator, **fixed)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)

    return Toy(log_prob, sample)


def two_moons(std: float = 0.1, device: Device = None, dtype: torch.dtype | None = None) -> Toy:
    """Return two half circles of radius 1 blurred by N(0, std²); the density is a sum over the arcs (std >= 0.05)."""
    if not 0.05 <= std < math.inf:
        raise ValueError(f"std must be at least 0.05, for the sum over the arcs to be right; got {std}")
    fixed = _fixed(device, dtype)

    def moons(angle: Tensor) -> Tensor:
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
        return torch.cat([upper, -upper])

    node, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(128))
    centres, weights = moons((node + 1) * math.pi / 2), weight.repeat(2)

    def log_prob(x: Tensor) -> Tensor:
        return GaussianMixtureEnergy(centres.to(x), std, weights.to(x)).log_prob(x)

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        angle = math.pi * torch.rand(n, generator=generator, **fixed)
        upper = torch.randint(2, (n, 1), generator=generator, device=fixed["device"]).bool()
        top, bottom = moons(angle).chunk(2)
        noise = torch.randn(n, 2, generator=generator, **fixed)
        return torch.where(upper, top, bottom) + std * noise

    return Toy(log_prob, sample)


def checkerboard(device: Device = None, dtype: torch.dtype | None = None) -> Toy:
    """Return the uniform distribution on the eight dark unit squares of the board [-2, 2]²; log p is -∞ elsewhere."""
    fixed = _fixed(device, dtype)

    def log_prob(x: Tensor) -> Tensor:
        cell = x.floor()
        dark = (cell.sum(1) % 2 == 0) & (cell >= -2).all(1) & (cell < 2).all(1)
        log_p = x.new_full((len(x),), -math.log(8.0)).masked_fill(~dark, -math.inf)
        return log_p.masked_fill(x.isnan().any(1), math.nan)

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        column = torch.randint(4, (n,), generator=generator, device=fixed["device"]) - 2
        row = 2 * torch.randint(2, (n,), generator=generator, device=fixed["device"]) - 2 + column % 2
        return torch.stack([column, row], 1) + torch.rand(n, 2, generator=generator, **fixed)

    return Toy(log_prob, sample)


def _fixed(device: Device, dtype: torch.dtype | None) -> dict[str, Any]:
    # torch's defaults as they are when a toy is built: they may be others when it draws
    like = torch.empty(0, device=device, dtype=dtype)
    return {"device": like.device, "dtype": like.dtype}
