"""A known density, corrected by a learned energy."""

from torch import Tensor, nn

from .energies import Distribution, Energy


class TiltedEnergy(nn.Module):
    """Exponential tilting of a base density q, E(x) = tilt(x) - log q(x), so that p(x) ∝ q(x) exp(-tilt(x)).

    A zero tilt is q itself, with log Z = 0.

    Args:
        base: distribution with `log_prob(x) -> (batch,)` and `sample((n,))`; frozen, if it is a module.
        tilt: energy, callable `(batch, *event) -> (batch,)`.
    """

    def __init__(self, base: Distribution, tilt: Energy):
        super().__init__()
        self.base = base.requires_grad_(False) if isinstance(base, nn.Module) else base
        self.tilt = tilt

    def forward(self, x: Tensor) -> Tensor:
        return self.tilt(x) - self.base.log_prob(x)
