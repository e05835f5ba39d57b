"""A training loop that one can read, that stops with a clear error when it diverges, and that can resume."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm


class Divergence(RuntimeError):
    """Training has diverged: the message names the step, and what was not finite in it."""


class minibatches:  # an iterator, in lower case as `range` and `zip` are
    """Batches of rows for ever, reshuffled at each pass; an incomplete last batch is dropped.

    Its `state_dict` holds the place within the pass, so that a run can resume in its middle; the state of the
    generator is saved beside it (`checkpoint.save_checkpoint`).

    Args:
        x: data, shape `(n, ...)`.
        batch_size: rows a batch, at most n.
        generator: on the CPU.

    Raises:
        ValueError: if `batch_size` is not between 1 and n.
    """

    def __init__(self, x: Tensor, batch_size: int, generator: torch.Generator | None = None):
        if not 1 <= batch_size <= len(x):
            raise ValueError(f"batch_size must be between 1 and {len(x)}, the number of rows; got {batch_size}")
        self.x, self.batch_size, self.generator = x, batch_size, generator
        self.order, self.start = torch.empty(0, dtype=torch.long, device="cpu"), 0

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self.start + self.batch_size > len(self.order):
            self.order, self.start = torch.randperm(len(self.x), generator=self.generator, device="cpu"), 0
        rows = self.order[self.start : self.start + self.batch_size]
        self.start += self.batch_size
        return self.x[rows.to(self.x.device)]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["order"]) not in (0, len(self.x)):
            raise ValueError(f"the state is of {len(state['order'])} rows, the data have {len(self.x)}")
        self.order, self.start = state["order"], state["start"]


def train(
    loss_fn: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Tensor],
    n_steps: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    max_grad_norm: float | None = None,
    callback: Callable[[int, float], bool | None] | None = None,
) -> list[float]:
    """Minimise a loss by `n_steps` steps of the optimizer. A bar shows after two seconds.

    Args:
        loss_fn: maps a batch to a scalar loss.
        optimizer: holds the parameters to train.
        batches: yields batches; a step uses one.
        n_steps: number of steps.
        scheduler: stepped once a step.
        max_grad_norm: gradients are rescaled to at most this norm, above 0, if given.
        callback: called as `callback(step, loss)` after each step; returning True stops the training.

    Returns:
        The loss at each step.

    Raises:
        ValueError: if `n_steps` is negative, the norm not positive, a batch empty, the batches end too early, or no
            parameter gets a gradient.
        Divergence: if the loss or the norm of its gradient is not finite, or if computing the loss raises
            FloatingPointError; the parameters are those before that step. Or if the last step ends at parameters
            that are not finite.
    """
    if n_steps < 0:
        raise ValueError(f"n_steps must not be negative; got {n_steps}")
    max_norm = math.inf if max_grad_norm is None else max_grad_norm
    if not max_norm > 0:
        raise ValueError(f"max_grad_norm must be positive; got {max_grad_norm}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses: list[float] = []
    batches = iter(batches)
    for step in tqdm(range(n_steps), delay=2, leave=False):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {step} of {n_steps} steps")
        if isinstance(batch, Tensor) and batch.numel() == 0:
            raise ValueError(f"step {step}: the batch is empty, of shape {tuple(batch.shape)}")
        optimizer.zero_grad()
        try:
            loss = loss_fn(batch)
        except FloatingPointError as error:  # what the energies and samplers of this book raise at a NaN
            raise Divergence(f"step {step}: {error}") from error
        if loss.requires_grad:
            loss.backward()
        if all(p.grad is None for p in parameters):
            raise ValueError(f"step {step}: the loss has no gradient for any parameter of the optimizer")
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        if not (torch.isfinite(loss) and torch.isfinite(grad_norm)):
            raise Divergence(f"step {step}: loss {loss.item()}, gradient norm {grad_norm.item()}")
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
        if callback is not None and callback(step, losses[-1]):
            break
    if losses and not all(torch.isfinite(p).all() for p in parameters):
        raise Divergence(f"step {len(losses) - 1}: after it, parameters are not finite")
    return losses
