"""Do two sets of points come from one distribution? A test in the full space, by nearest neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor


class NeighbourTest(NamedTuple):
    """What the nearest neighbours say of two sets.

    Attributes:
        share: mean share of own neighbours among the k nearest of each point.
        expected: its mean under shuffled labels, in closed form; about one half for equal sets.
        z: share - expected, in standard deviations of shuffled labels.
        p_value: share of the labellings, the true one among them, with at least as large a share.
    """

    share: float
    expected: float
    z: float
    p_value: float


def neighbour_test(
    x: Tensor, y: Tensor, k: int = 5, n_shuffles: int = 200, generator: torch.Generator | None = None
) -> NeighbourTest:
    """Return how many of the k nearest neighbours of a point belong to its own set, against shuffled labels.

    Under one distribution labels are exchangeable, whatever the distribution is: the chance of a p-value at most α is
    at most α. That needs draws that are independent, within and between the sets: copies of one another, pairs and
    chains break it. Euclidean distances: columns count by their spread, and chance decides where distances tie.

    Args:
        x: shape `(n, dim)`.
        y: shape `(m, dim)`.
        k: neighbours of a point, below n + m.
        n_shuffles: number of shuffled labellings; the p-value is at least 1 / (n_shuffles + 1).
        generator: on the CPU.

    Raises:
        ValueError: if the sets are not `(n, dim)` of one dim, are empty, hold NaN or infinite values, or k or
            `n_shuffles` is out of range.

    Source: Schilling (1986), Journal of the American Statistical Association 81.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not (len(x) and len(y)):
        got = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must be (n, dim) and (m, dim), neither empty; got {got}")
    together, n, m = torch.cat([x, y]), len(x), len(y)
    if not torch.isfinite(together).all():
        raise ValueError("x or y holds a NaN or infinite value")
    if not 1 <= k < n + m or n_shuffles < 2:
        raise ValueError(f"k must be between 1 and {n + m - 1}, n_shuffles at least 2; got {k} and {n_shuffles}")
    # By differences, not by products of matrices, which lose the distances of sets far from the origin.
    distance = torch.cdist(together, together, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    order = torch.randperm(n + m, generator=generator)  # of ties the first are taken: in order, those of x
    near = order[distance[:, order.to(distance.device)].topk(k, largest=False).indices.cpu()]
    label = torch.arange(n + m) < n

    def own(label: Tensor) -> Tensor:
        return (label[near] == label[:, None]).double().mean()

    share = own(label)
    chance = torch.stack([own(label[torch.randperm(n + m, generator=generator)]) for _ in range(n_shuffles)])
    expected = (n * (n - 1) + m * (m - 1)) / ((n + m) * (n + m - 1))
    # A share is a multiple of 1 / k (n + m); a millionth forgives its rounding.
    p_value = (1 + (chance >= share - 1e-6 / (k * (n + m))).sum().item()) / (n_shuffles + 1)
    return NeighbourTest(share.item(), expected, ((share - expected) / chance.std()).item(), p_value)
