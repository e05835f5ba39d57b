"""Training a restricted Boltzmann machine by contrastive divergence, fast: one matrix, three products a batch."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from .energies import NotFinite

if TYPE_CHECKING:
    from .rbm import RBM

NOISE = 2**20  # uniform draws at a time: one call for many batches, in bounded memory


@torch.no_grad()
def contrastive_epoch(
    rbm: "RBM",
    x_data: Tensor,
    learning_rate: float,
    chains: Tensor | None = None,
    n_steps: int = 1,
    batch_size: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Train on each row once, in order, and return where the chains ended.

    A batch is one step down the gradient of mean E(x_data) - mean E(x_model). The chains x_model take k = `n_steps`
    block Gibbs steps a batch, from the batch itself (CD-k) or, if `chains` are given, from where they are (PCD).

    Args:
        rbm: changed in place.
        x_data: binary, shape `(n, n_visible)`.
        learning_rate: step size, for gradients that are means over a batch.
        chains: binary, shape `(n_chains, n_visible)`, left untouched; pass the returned ones at the next call.
        n_steps: k.
        batch_size: rows a batch; the last one may have fewer.
        generator: on the machine's device.

    Raises:
        ValueError: if states are not binary or of the wrong shape, a count is below 1, or the rate is not positive and
            finite.
        NotFinite: if parameters are NaN or infinite, or become so; the machine keeps those that it had.
    """
    n_chains = min(batch_size, len(x_data)) if chains is None else len(chains)
    if min(len(x_data), n_chains, n_steps, batch_size) < 1 or not 0 < learning_rate < math.inf:
        got = f"{len(x_data)} rows, {n_chains} chains, {n_steps=}, {batch_size=}, {learning_rate=}"
        raise ValueError(f"counts and rate must be positive and finite; got {got}")
    for x in (x_data,) if chains is None else (x_data, chains):
        rbm.check_visible(x)
    # A bias is the weight of a unit that is always on: one matrix holds all parameters. Its corner keeps both of these
    # on. It has to outweigh the biases of the others, x·a and h·b, which come to -40 and less in trained machines.
    joint = torch.cat([rbm.weight, rbm.visible_bias[:, None]], 1)
    joint = torch.cat([joint, pad(rbm.hidden_bias, (0, 1), value=1e4)[None]])
    batches = pad(x_data.to(joint), (0, 1), value=1.0).split(batch_size)
    _require_finite(joint, "before")
    dtype, device = joint.dtype, joint.device

    def uniform() -> Iterator[tuple[Tensor, Tensor]]:
        n_rounds, at_once = len(batches) * n_steps + 1, max(1, NOISE // (n_chains * sum(joint.shape)))
        for start in range(0, n_rounds, at_once):
            x_and_h = (
                torch.rand(min(at_once, n_rounds - start), n_chains, n, generator=generator, dtype=dtype, device=device)
                for n in joint.shape
            )
            yield from zip(*x_and_h, strict=True)

    def up(x: Tensor) -> Tensor:
        return torch.mm(x, joint).sigmoid_()

    def draw(prob: Tensor) -> tuple[Tensor, Tensor]:  # h, and the uniform draws that will make x
        uniform_x, uniform_h = next(noise)
        if len(prob) < n_chains:  # the last batch
            uniform_x, uniform_h = uniform_x[: len(prob)], uniform_h[: len(prob)]
        return uniform_h.lt_(prob), uniform_x

    def down(h: Tensor, uniform_x: Tensor) -> Tensor:
        return uniform_x.lt_(torch.mm(h, joint.T).sigmoid_())

    noise = uniform()
    if chains is not None:
        h = draw(up(pad(chains.to(joint), (0, 1), value=1.0)))
    for x in batches:
        if chains is None:
            h = draw(up(x))
        x_model = down(*h)
        for _ in range(n_steps - 1):
            x_model = down(*draw(up(x_model)))
        both = torch.cat([x, x_model])
        prob = up(both)
        prob_model = prob[len(x) :]
        if chains is not None:
            h = draw(prob_model)
        prob_model.mul_(-len(x) / len(x_model))  # the model's rows count negative, and as much as the data's
        joint.addmm_(both.T, prob, alpha=learning_rate / len(x))
    _require_finite(joint, "after")  # once lost, never back
    rbm.weight.copy_(joint[:-1, :-1])
    rbm.visible_bias.copy_(joint[:-1, -1])
    rbm.hidden_bias.copy_(joint[-1, :-1])
    return x_model[:, :-1].clone()  # a view would keep the noise


def _require_finite(joint: Tensor, when: str) -> None:
    if not (finite := torch.isfinite(joint)).all():
        raise NotFinite(f"{int((~finite).sum())} of {joint.numel() - 1} parameters are not finite {when} the epoch")
