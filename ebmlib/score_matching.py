"""Score matching: losses that fit ∇E to data, so that neither Z nor draws of the model are needed.

The score of a model is s(x) = ∇ log p(x) = -∇E(x). Each loss is, up to a constant, half the Fisher divergence
½ E_data‖s(x) - ∇ log p_data(x)‖², at the data or at data with noise. A second derivative must exist: the gradient of a
ReLU network changes at its kinks alone, which no draw meets, so that the first two losses tell it to be flat.
"""

import functools
import math

import torch
from torch import Tensor

from .energies import Energy, evaluate, score


def exact_score_matching(energy: Energy, x_data: Tensor) -> Tensor:
    """Return the score matching loss, with all second derivatives on the diagonal; cost: d backward passes.

        J = mean_data ½ ‖∇E(x)‖² - tr ∇²E(x)

    By parts this is the Fisher divergence less a constant, where p_data ∇E vanishes at infinity. For data on a lattice,
    or fewer than the energy can tell apart, it has no lower bound.

    Args:
        energy: callable `(batch, *event) -> (batch,)`, twice differentiable; a row's energy depends on that row alone.
        x_data: shape `(batch, *event)`; d is the number of coordinates of a row.

    Returns:
        Loss, a scalar, in nats over squared units of x; its sign means nothing.

    Raises:
        ValueError: if x_data is empty or not floating point, or an energy is NaN or infinite.

    Source: Hyvärinen (2005), Journal of Machine Learning Research 6.
    """
    x = _ready(x_data)
    with torch.enable_grad():
        s = score(functools.partial(evaluate, energy), x)
        columns = s.flatten(1).unbind(1)
        divergence = sum(_slope(column.sum(), x).flatten(1)[:, i] for i, column in enumerate(columns))
    return (s.flatten(1).square().sum(1) / 2 + divergence).mean()


def sliced_score_matching(
    energy: Energy, x_data: Tensor, n_projections: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Return the score matching loss with the trace estimated along random directions, one backward pass each.

        J = mean_data ½ ‖∇E(x)‖² - mean_v vᵀ ∇²E(x) v,  each entry of v is ±1 with equal chance

    Its mean is `exact_score_matching`. The first term is exact, for E[vvᵀ] = I: what the source calls variance-reduced.

    Args:
        energy: callable `(batch, *event) -> (batch,)`, twice differentiable; a row's energy depends on that row alone.
        x_data: shape `(batch, *event)`.
        n_projections: directions v a datum.
        generator: on x's device.

    Returns:
        Loss, a scalar, in nats over squared units of x; its sign means nothing.

    Raises:
        ValueError: if `n_projections` is below one, x_data is empty or not floating point, or an energy is NaN or
            infinite.

    Source: Song, Garg, Shi and Ermon (2019), Uncertainty in Artificial Intelligence.
    """
    if n_projections < 1:
        raise ValueError(f"n_projections must be at least 1; got {n_projections}")
    x = _ready(x_data)
    curvature = x.new_zeros(len(x))
    with torch.enable_grad():
        s = score(functools.partial(evaluate, energy), x)
        for _ in range(n_projections):
            v = torch.randint(2, x.shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1
            curvature = curvature + (_slope((s * v).sum(), x) * v).flatten(1).sum(1)
    return (s.flatten(1).square().sum(1) / 2 + curvature / n_projections).mean()


def denoising_score_matching(
    energy: Energy, x_data: Tensor, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return the denoising score matching loss: the score at a noisy datum should point back to the datum.

        J = mean ½ ‖ξ / std - ∇E(x + std·ξ)‖²,  ξ ~ N(0, I)

    No second derivative is taken of the energy in x. The best energy is that of the data convolved with N(0, std²),
    not of the data; J is on average `exact_score_matching` on such noisy data, plus d / 2·std².

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x_data: shape `(batch, *event)`.
        std: width of the Gaussian noise, in the units of x.
        generator: on x's device.

    Returns:
        Loss, a scalar, in nats over squared units of x.

    Raises:
        ValueError: if `std` is not positive, x_data is empty or not floating point, or an energy is NaN or infinite.

    Source: Vincent (2011), Neural Computation 23(7).
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive; got {std}")
    x = _ready(x_data)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    s = score(functools.partial(evaluate, energy), x + std * noise)
    return (s + noise / std).flatten(1).square().sum(1).mean() / 2


def _ready(x_data: Tensor) -> Tensor:
    if len(x_data) < 1:
        raise ValueError(f"x_data is empty: {tuple(x_data.shape)}; the mean over no rows is no loss")
    if not x_data.is_floating_point():
        raise ValueError(f"x_data must be floating point; got {x_data.dtype}")
    return x_data if x_data.requires_grad else x_data.detach().requires_grad_()


def _slope(value: Tensor, x: Tensor) -> Tensor:
    """Return the derivative of a sum of scores by x: zero, where the score does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
    return slope
