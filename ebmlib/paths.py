"""Paths between points of a landscape: the string method, the pass on the way, and the curvature there."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .energies import Energy, NotFinite, energy_and_grad, evaluate


def straight_path(start: Tensor, end: Tensor, n_points: int) -> Tensor:
    """Return evenly spaced points from `start` to `end`, both of shape `(dim,)` and finite, as `(n_points, dim)`."""
    if start.ndim != 1 or start.shape != end.shape or not (start.isfinite() & end.isfinite()).all():
        raise ValueError(f"start and end must be (dim,) and finite; got {start.tolist()} and {end.tolist()}")
    share = torch.linspace(0, 1, n_points, dtype=start.dtype, device=start.device)
    return torch.lerp(start, end, share[:, None])


def respaced(path: Tensor) -> Tensor:
    """Return as many points at equal distances along the broken line through the points of a path.

    Args:
        path: shape `(n_points, dim)`, at least two points, not all equal.

    Raises:
        ValueError: if the path has another shape or no length.
    """
    if path.ndim != 2 or len(path) < 2:
        raise ValueError(f"path must be (n_points, dim) with at least two points; got {tuple(path.shape)}")
    length = torch.cat([path.new_zeros(1), (path[1:] - path[:-1]).norm(dim=1).cumsum(0)])
    if not length[-1] > 0:
        raise ValueError(f"the length of the path is {length[-1].item()}")
    at = torch.linspace(0, 1, len(path), dtype=path.dtype, device=path.device) * length[-1]
    right = torch.searchsorted(length, at).clamp(1, len(path) - 1)
    share = (at - length[right - 1]) / (length[right] - length[right - 1])
    return torch.cat([path[:1], torch.lerp(path[right - 1], path[right], share[:, None])[1:-1], path[-1:]])


def relaxed_path(energy: Energy, path: Tensor, n_steps: int, step_size: float) -> Tensor:
    """Return a path relaxed towards one of minimal energy by the string method: x ← x - η ∇E(x), then even spacing.

    On a minimum energy path the gradient has no component across: `across` measures how far this one has come. The two
    ends stay where they are. Another start may relax to another pass.

    Args:
        energy: callable `(batch, dim) -> (batch,)`.
        path: shape `(n_points, dim)`, such as a `straight_path`.
        n_steps: number of steps; a direction of curvature λ relaxes in about 1 / (λ η) of them.
        step_size: η, below 2 / λ of the stiffest direction.

    Raises:
        ValueError: as `respaced`, or if the path becomes NaN or infinite: the step size is too large.

    Source: E, Ren and Vanden-Eijnden (2007), Journal of Chemical Physics 126, 164103.
    """
    for step in range(n_steps):
        moved = path - step_size * energy_and_grad(energy, path)[1]
        if not torch.isfinite(moved).all():
            raise ValueError(f"the path is not finite after step {step}: step_size {step_size} is too large")
        path = respaced(torch.cat([path[:1], moved[1:-1], path[-1:]]))
    return path


def across(energy: Energy, path: Tensor) -> Tensor:
    """Return the norm of the gradient's component across a path at each inner point: 0 on a minimum energy path.

    Args:
        energy: callable `(batch, dim) -> (batch,)`.
        path: shape `(n_points, dim)`; the direction at a point is that from the point before it to the one after it.

    Returns:
        Norms in nats over a unit of x, shape `(n_points - 2,)`. Where a path bends a rest stays, however many steps it
        relaxes: halving both the spacing and the step size about halves it.
    """
    if path.ndim != 2 or not path.isfinite().all():
        raise ValueError("path must be (n_points, dim) and finite")
    tangent = torch.nn.functional.normalize(path[2:] - path[:-2], dim=1)
    grad = energy_and_grad(energy, path[1:-1])[1]
    return (grad - (grad * tangent).sum(1, keepdim=True) * tangent).norm(dim=1)


def hessian(energy: Energy, x: Tensor) -> Tensor:
    """Return the second derivatives of the energy at one point x of shape `(dim,)`, as `(dim, dim)`."""
    evaluate(energy, x[None])  # names a wrong shape and a value that is not finite
    return torch.autograd.functional.hessian(lambda v: energy(v[None])[0], x.detach())


class StationaryPoint(NamedTuple):
    """A point where ∇E = 0; a minimum if all curvatures are positive, a pass if one is negative.

    Attributes:
        x: the point, shape `(dim,)`.
        energy: E(x), in nats.
        slope: the norm of ∇E(x), that is left.
        curvatures: eigenvalues of the Hessian, from the lowest, shape `(dim,)`; a width is 1 / √curvature.
        directions: its eigenvectors, in the columns of `(dim, dim)`.
    """

    x: Tensor
    energy: float
    slope: float
    curvatures: Tensor
    directions: Tensor


def stationary_point(energy: Energy, x: Tensor, n_steps: int = 30, tolerance: float = 1e-8) -> StationaryPoint:
    """Return the stationary point that Newton's method on ∇E = 0, x ← x - H⁻¹ ∇E, reaches from x.

    It goes to whatever is near, minimum, pass or top: the curvatures say which.

    Args:
        energy: callable `(batch, dim) -> (batch,)`, twice differentiable.
        x: start, shape `(dim,)`; in double precision, or no slope falls to 1e-8.
        n_steps: most steps to take.
        tolerance: slope to reach, in nats over a unit of x.

    Raises:
        NotFinite: if the slope is NaN or infinite.
        RuntimeError: if the slope stays above the tolerance, or a Hessian is singular: start nearer, or in double
            precision.
    """
    for step in range(n_steps + 1):
        e, grad = energy_and_grad(energy, x[None])
        slope = grad.norm().item()
        if not math.isfinite(slope):
            raise NotFinite(f"the slope after {step} of Newton's steps is {slope}")
        if slope <= tolerance:
            return StationaryPoint(x, e.item(), slope, *torch.linalg.eigh(hessian(energy, x)))
        if step < n_steps:
            x = x - torch.linalg.solve(hessian(energy, x), grad[0])
    raise RuntimeError(f"Newton's method has a slope of {slope} left after {n_steps} steps; {tolerance} was asked for")
