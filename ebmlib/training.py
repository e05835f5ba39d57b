"""A training loop that one can read, and that stops with a clear error when it diverges."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm


class Divergence(RuntimeError):
    """Training has diverged: the message names the step, the loss and the norm of the gradient."""


def minibatches(x: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield batches of rows for ever, reshuffled at each pass; an incomplete last batch is dropped.

    Args:
        x: data, shape `(n, ...)`.
        batch_size: rows a batch, at most n.
        generator: on the CPU.

    Raises:
        ValueError: if `batch_size` is not between 1 and n.
    """
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must be between 1 and {len(x)}, the number of rows; got {batch_size}")

    def endless() -> Iterator[Tensor]:
        while True:
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for start in range(0, len(x) - batch_size + 1, batch_size):
                yield x[order[start : start + batch_size]]

    return endless()


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
        max_grad_norm: gradients are rescaled to at most this norm, if given.
        callback: called as `callback(step, loss)` after each step; returning True stops the training.

    Returns:
        The loss at each step.

    Raises:
        ValueError: if `n_steps` is negative or the batches end too early.
        Divergence: if the loss or the norm of its gradient is not finite; the parameters are those before that step.
    """
    if n_steps < 0:
        raise ValueError(f"n_steps must not be negative; got {n_steps}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses: list[float] = []
    batches = iter(batches)
    for step in tqdm(range(n_steps), delay=2, leave=False):
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"the batches ended after {step} of {n_steps} steps")
        optimizer.zero_grad()
        loss = loss_fn(batch)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, torch.inf if max_grad_norm is None else max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(grad_norm)):
            raise Divergence(f"step {step}: loss {loss.item()}, gradient norm {grad_norm.item()}")
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
        if callback is not None and callback(step, losses[-1]):
            break
    return losses
