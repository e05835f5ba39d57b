"""Training a restricted Boltzmann machine by contrastive divergence, fast: one matrix, three products a batch."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .rbm import RBM, check_binary


@torch.no_grad()
def contrastive_epoch(
    rbm: RBM,
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
        generator: on the data's device.

    Raises:
        ValueError: if states are not binary or of the wrong shape, a count is below 1, or the rate is not positive.
    """
    if min(len(x_data), n_steps, batch_size) < 1 or not learning_rate > 0:
        raise ValueError(
            f"counts and rate must be positive; got {len(x_data)} rows, {n_steps=}, {batch_size=}, {learning_rate=}"
        )
    for x in (x_data,) if chains is None else (x_data, chains):
        check_binary(x, len(rbm.visible_bias))
    # A bias is the weight of a unit that is always on: one matrix holds all parameters. Its corner keeps both of these
    # on. It has to outweigh the biases of the others, x·a and h·b, which come to -40 and less in trained machines.
    joint = torch.cat([rbm.weight, rbm.visible_bias[:, None]], 1)
    joint = torch.cat([joint, pad(rbm.hidden_bias, (0, 1), value=1e4)[None]])
    batches = pad(x_data.to(joint), (0, 1), value=1.0).split(batch_size)
    n_chains = batch_size if chains is None else len(chains)
    # All uniform draws at once, as many as the data have numbers: one call instead of thousands.
    device, n_rounds = joint.device, len(batches) * n_steps + 1
    noise_x, noise_h = (
        iter(torch.rand(n_rounds, n_chains, n, generator=generator, dtype=joint.dtype, device=device))
        for n in joint.shape
    )

    def up(x: Tensor) -> Tensor:
        return torch.mm(x, joint).sigmoid_()

    def down(h: Tensor) -> Tensor:
        return next(noise_x)[: len(h)].lt_(torch.mm(h, joint.T).sigmoid_())

    if chains is not None:
        h = next(noise_h).lt_(up(pad(chains.to(joint), (0, 1), value=1.0)))
    for x in batches:
        if chains is None:
            h = next(noise_h)[: len(x)].lt_(up(x))
        x_model = down(h)
        for _ in range(n_steps - 1):
            x_model = down(next(noise_h)[: len(h)].lt_(up(x_model)))
        both = torch.cat([x, x_model])
        prob = up(both)
        prob_model = prob[len(x) :]
        if chains is not None:
            h = next(noise_h).lt_(prob_model)
        prob_model.mul_(-len(x) / len(h))  # the model's rows count negative, and as much as the data's
        joint.addmm_(both.T, prob, alpha=learning_rate / len(x))
    rbm.weight.copy_(joint[:-1, :-1])
    rbm.visible_bias.copy_(joint[:-1, -1])
    rbm.hidden_bias.copy_(joint[-1, :-1])
    return x_model[:, :-1]
