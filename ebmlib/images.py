"""Images of few grey levels as points of a continuous space, with the Jacobian that likelihoods need."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class LogitPixels:
    """Uniform dequantisation, then a logit: y = logit(α + (1 − 2α) (pixel + u) / n_levels), with u uniform on [0, 1).

    A density p(y) gives an image the likelihood P(pixels) = E_u[p(y) exp(log_det(y))], and by Jensen
    log P ≥ E_u[log p(y) + log_det(y)]. Divided by −d log 2 that is the bound in bits a pixel.

    Args:
        n_levels: number of grey levels, 0 to n_levels − 1.
        alpha: keeps the logit of the darkest and the brightest pixel finite.

    Raises:
        ValueError: if n_levels is below 1 or alpha is outside (0, 1/2).

    Source: Theis, van den Oord and Bethge (2016) for the dequantisation; Dinh, Sohl-Dickstein and Bengio (2017) for
    the logit.
    """

    n_levels: int
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if self.n_levels < 1 or not 0 < self.alpha < 0.5:
            raise ValueError(f"n_levels must be at least 1, alpha in (0, 1/2); got {self.n_levels}, {self.alpha}")

    def dequantize(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return y, of the shape of `pixels`, whole numbers 0 to n_levels − 1 as floats; a new u each time.

        Raises:
            ValueError: if a pixel is no whole number of that range.
        """
        if bool(((pixels != pixels.floor()) | (pixels < 0) | (pixels >= self.n_levels)).any()):
            low, high = pixels.min().item(), pixels.max().item()
            raise ValueError(f"pixels must be whole, 0 to {self.n_levels - 1}; they reach from {low} to {high}")
        u = torch.rand(pixels.shape, generator=generator, device=pixels.device, dtype=pixels.dtype)
        return torch.logit(self.alpha + (1 - 2 * self.alpha) * (pixels + u) / self.n_levels)

    def pixels(self, y: Tensor) -> Tensor:
        """Return pixel + u, of the shape of y; where y is no image, outside [0, n_levels), and not clamped."""
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha) * self.n_levels

    def log_det(self, y: Tensor) -> Tensor:
        """Return the log of the absolute determinant of ∂y/∂u in nats, `(batch, *event) -> (batch,)`."""
        slope = math.log((1 - 2 * self.alpha) / self.n_levels) - logsigmoid(y) - logsigmoid(-y)
        return slope.flatten(1).sum(1)
