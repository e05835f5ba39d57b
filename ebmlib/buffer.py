"""A replay buffer: the states of persistent chains, kept from one training step to the next."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ReplayBuffer:
    """States of many chains, of which a few are drawn, moved and written back at each training step.

    Args:
        x: first states, shape `(size, *event)`; copied.
        fresh: maps n to n new states, `(n, *event)`, for the chains that restart.
        restart_prob: probability that a drawn chain restarts, between 0 and 1.
        generator: on x's device; without one, torch's global generator draws.

    Raises:
        ValueError: if the buffer is empty, the probability is out of range, or states have the wrong shape, are not
            finite, or do not fit into x's dtype; a bad state is never stored.

    Source: Tieleman (2008), International Conference on Machine Learning, for chains that persist.
    """

    def __init__(
        self,
        x: Tensor,
        fresh: Callable[[int], Tensor],
        restart_prob: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        if x.ndim < 1 or len(x) < 1:
            raise ValueError(f"x must hold at least one state, (size, *event); got {tuple(x.shape)}")
        if not 0 <= restart_prob <= 1:
            raise ValueError(f"restart_prob must be between 0 and 1; got {restart_prob}")
        self.x, self.fresh, self.restart_prob, self.generator = x.detach().clone(), fresh, restart_prob, generator
        self._good(x)

    def __len__(self) -> int:
        return len(self.x)

    def _good(self, x: Tensor) -> Tensor:
        """Return states as the buffer holds them: detached, on its device, of its dtype."""
        if x.shape[1:] != self.x.shape[1:]:
            raise ValueError(f"a state must have shape {tuple(self.x.shape[1:])}; got {tuple(x.shape[1:])}")
        if not torch.can_cast(x.dtype, self.x.dtype):
            raise ValueError(f"a buffer of {self.x.dtype} cannot hold states of {x.dtype}")
        x = x.detach().to(self.x)
        if (bad := ~torch.isfinite(x)).any():
            raise ValueError(f"state {int(bad.nonzero()[0, 0])} of {len(x)} is not finite, as {x.dtype}")
        return x

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the places `(n,)` of n different chains, and copies of their states `(n, *event)`, some restarted."""
        if not 1 <= n <= len(self):
            raise ValueError(f"n must be between 1 and {len(self)}, the size of the buffer; got {n}")
        index = torch.randperm(len(self), generator=self.generator, device=self.x.device)[:n]
        x = self.x[index]
        if self.restart_prob:
            restart = torch.rand(n, generator=self.generator, device=x.device) < self.restart_prob
            if n_fresh := int(restart.sum()):
                new = self._good(self.fresh(n_fresh))
                if len(new) != n_fresh:
                    raise ValueError(f"fresh({n_fresh}) must return {n_fresh} states; got {len(new)}")
                x[restart] = new
        return index, x

    def write(self, index: Tensor, x: Tensor) -> None:
        """Store the states x `(n, *event)` at the places that `draw` returned."""
        if index.ndim != 1 or len(index) != len(x):
            got = len(index) if index.ndim == 1 else tuple(index.shape)
            raise ValueError(f"index must be (n,), and x of the same length; got {got} and {len(x)}")
        self.x[index] = self._good(x)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the states, and the state of the generator (None where torch's global one draws)."""
        generator = None if self.generator is None else self.generator.get_state()
        return {"x": self.x.clone(), "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`: the next `draw` is bit for bit the one that would have come."""
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError("the saved buffer and this one must both have a generator of their own, or neither")
        if state["x"].shape != self.x.shape:
            raise ValueError(f"the buffer has shape {tuple(self.x.shape)}; the saved one {tuple(state['x'].shape)}")
        x = self._good(state["x"])
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
        self.x = x.clone()  # last, so that a state that is refused changes nothing
