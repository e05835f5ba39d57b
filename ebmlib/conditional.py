"""Some coordinates given the others, and a discrete one summed out: what completes an incomplete observation.

No Z is needed: as a function of the missing coordinates alone, p(missing | known) ∝ exp(-E(missing, known)).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .energies import Energy, NotFinite, evaluate, one_a_row


def marginal(energy_xy: Callable[[Tensor], Tensor]) -> Energy:
    """Return the energy of x alone, E(x) = -log Σ_y exp(-E(x, y)): the exact sum over a discrete y.

    With it p(y|x) = exp(E(x) - E(x, y)) is a softmax, and Z of E(x) is that of E(x, y).

    Args:
        energy_xy: callable `(batch, *event) -> (batch, n_classes)`, the energies of x with each y.

    Raises:
        ValueError: when called, if the energies are not `(batch, n_classes)`.
    """

    def energy(x: Tensor) -> Tensor:
        e = energy_xy(x)
        if e.ndim != 2 or len(e) != len(x) or e.shape[1] < 1:
            raise ValueError(f"energies of x with each y must be ({len(x)}, n_classes); got {tuple(e.shape)}")
        return -torch.logsumexp(-e, dim=1)

    return energy


def held(energy: Energy, x: Tensor, missing: Tensor) -> Energy:
    """Return the energy of x's missing coordinates, the known ones held: what draws of the conditional need.

        v ↦ E(x'),  x' = v where missing, x elsewhere

    What v has in a known place is ignored: a chain wanders there, for the energy is flat. `torch.where(missing, v, x)`
    puts the known values back.

    Args:
        energy: callable `(batch, dim) -> (batch,)`.
        x: shape `(n, dim)`; what stands in a missing place is ignored, NaN too.
        missing: boolean, shape `(dim,)`, or `(n, dim)` where rows miss different coordinates.

    Returns:
        Callable `(batch, dim) -> (batch,)`; a batch holds all n rows once, or several times, block after block.

    Raises:
        ValueError: if x is not floating point or has no rows, `missing` is not boolean or of another shape, or a known
            value is NaN or infinite; when called, if the batch is no multiple of n.
    """
    _require_rows(x)
    if missing.dtype != torch.bool or missing.shape not in (x.shape[1:], x.shape):
        raise ValueError(
            f"missing must be boolean, {tuple(x.shape[1:])} or {tuple(x.shape)}; "
            f"got {missing.dtype} {tuple(missing.shape)}"
        )
    missing = missing.expand_as(x)
    lost = ~(missing | torch.isfinite(x))
    if lost.any():
        row, column = torch.nonzero(lost)[0].tolist()
        raise NotFinite(f"column {column} of row {row} is {x[row, column].item()}, and not said to be missing")

    def energy_of_missing(v: Tensor) -> Tensor:
        n_blocks, rest = divmod(len(v), len(x))
        if v.shape[1:] != x.shape[1:] or rest:
            raise ValueError(f"v must be (a multiple of {len(x)}, {x.shape[1]}); got {tuple(v.shape)}")
        return one_a_row(energy(torch.where(missing.repeat(n_blocks, 1), v, x.repeat(n_blocks, 1))), v)

    return energy_of_missing


def conditional_log_prob(energy: Energy, x: Tensor, column: int, points: Tensor) -> Tensor:
    """Return log p(x_j = t | all other coordinates) at each point t of a grid, one line of energies a row.

        log p(t | rest) = -E(x with x_j = t) - log ∫ exp(-E(x with x_j = s)) ds,  by the trapezoidal rule

    What lies outside the grid is left out, and nothing reports it.

    Args:
        energy: callable `(batch, dim) -> (batch,)`.
        x: shape `(n, dim)`; its own x_j is ignored.
        column: j.
        points: increasing, shape `(n_points,)`, in x's dtype and on its device.

    Returns:
        Log densities in nats, shape `(n, n_points)`, without a graph.

    Raises:
        ValueError: if x is not floating point or has no rows, the points do not increase or have another dtype, or an
            energy is NaN or infinite.
    """
    _require_rows(x)
    if points.dtype != x.dtype:
        raise ValueError(f"points must have the dtype of x, {x.dtype}; got {points.dtype}")
    with torch.no_grad():
        width = _widths(points)
        lines = x.repeat_interleave(len(points), dim=0)
        lines[:, column] = points.repeat(len(x))
        log_p = -evaluate(energy, lines).reshape(len(x), len(points))
        share = torch.zeros_like(points)
        share[1:] += width / 2
        share[:-1] += width / 2
        return log_p - torch.logsumexp(log_p + share.log(), dim=1, keepdim=True)


def grid_quantiles(points: Tensor, log_prob: Tensor, levels: Sequence[float]) -> Tensor:
    """Return quantiles of densities that are known on a grid, `(n, n_levels)`; 0.5 is the median.

    The distribution function grows by trapezia and is linear between two points.

    Args:
        points: increasing, shape `(n_points,)`.
        log_prob: shape `(n, n_points)`, as `conditional_log_prob` returns it.
        levels: probabilities in (0, 1).

    Raises:
        ValueError: if the shapes disagree, a level is not in (0, 1), the points do not increase, or a row of log
            densities holds NaN or +∞, or no mass.
    """
    level = torch.as_tensor(levels, dtype=log_prob.dtype, device=log_prob.device)
    if not ((level > 0) & (level < 1)).all():
        raise ValueError(f"levels must lie between 0 and 1; got {list(levels)}")
    if log_prob.ndim != 2 or points.shape != log_prob.shape[1:]:
        raise ValueError(
            f"log_prob must be (n, n_points) for points (n_points,); got {tuple(log_prob.shape)}, {tuple(points.shape)}"
        )
    p, points = log_prob.exp(), points.to(log_prob)
    below = ((p[:, 1:] + p[:, :-1]) / 2 * _widths(points)).cumsum(1)
    mass = below[:, -1]
    if len(bad := torch.nonzero(~((mass > 0) & torch.isfinite(mass)))):
        raise ValueError(f"the densities of row {int(bad[0])} sum to {mass[bad[0]].item()}: not to a distribution")
    below = torch.nn.functional.pad(below / below[:, -1:], (1, 0))
    right = (below[:, :, None] <= level).sum(1).clamp(max=len(points) - 1)  # the first point with more mass below it
    low, high = below.gather(1, right - 1), below.gather(1, right)
    return torch.lerp(points[right - 1], points[right], (level - low) / (high - low))


def _require_rows(x: Tensor) -> None:
    if x.ndim != 2 or len(x) < 1 or not x.is_floating_point():
        raise ValueError(f"x must be floating point, (n, dim) with at least one row; got {x.dtype} {tuple(x.shape)}")


def _widths(points: Tensor) -> Tensor:
    width = points.diff()
    if points.ndim != 1 or len(points) < 2 or not ((width > 0) & torch.isfinite(width)).all():
        raise ValueError(f"points must increase, (n_points,) with at least two; got {tuple(points.shape)}")
    return width
