"""A known density, corrected by a learned energy."""

from torch import Tensor, nn

from .energies import Distribution, Energy, one_a_row


class TiltedEnergy(nn.Module):
    """Exponential tilting of a base density q, E(x) = tilt(x) - log q(x), so that p(x) ∝ q(x) exp(-tilt(x)).

    A zero tilt is q itself, with log Z = 0.

    Args:
        base: distribution with `log_prob(x) -> (batch,)` and `sample((n,))`; frozen, if it is a module.
        tilt: energy, callable `(batch, *event) -> (batch,)`.

    Raises:
        ValueError: when called, if the tilt or the base gives another shape than one value a row.
    """

    def __init__(self, base: Distribution, tilt: Energy):
        super().__init__()
        self.base = base.requires_grad_(False) if isinstance(base, nn.Module) else base
        self.tilt = tilt

    def forward(self, x: Tensor) -> Tensor:
        return one_a_row(self.tilt(x), x) - one_a_row(self.base.log_prob(x), x, "the base")
