"""Energies: any callable `(batch, *event) -> (batch,)`, with log p(x) = -E(x) - log Z.

Here are the checked call, the two derivatives, and energies whose log Z is known in closed form.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]


class NotFinite(ValueError, FloatingPointError):
    """A value that must be finite is NaN or infinite: the arguments are bad, or a computation has blown up."""


class Distribution(Protocol):
    """What serves as base, noise, proposal or known truth: the interface of `torch.distributions`."""

    def log_prob(self, x: Tensor) -> Tensor: ...

    def sample(self, shape: torch.Size) -> Tensor: ...


def evaluate(energy: Energy, x: Tensor) -> Tensor:
    """Return E(x), checked at the boundary.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x: states, shape `(batch, *event)`.

    Returns:
        Energies in nats, shape `(batch,)`.

    Raises:
        ValueError: if the energy returns another shape.
        NotFinite: if it returns a NaN or infinite value; that is a ValueError too.
    """
    e = energy(x)
    _require_one_a_row(e, x)
    if not torch.isfinite(e).all():
        row = int(torch.nonzero(~torch.isfinite(e))[0])
        raise NotFinite(f"the energy of row {row} of {len(x)} is {e[row].item()}")
    return e


def _require_one_a_row(e: Tensor, x: Tensor) -> None:
    if e.shape != x.shape[:1]:
        raise ValueError(f"an energy must return shape {tuple(x.shape[:1])}, one value a row; got {tuple(e.shape)}")


def energy_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E(x) and ∇E(x), both detached: what a sampler needs.

    An energy that has a method `energy_and_grad(x)` gives both itself; of any other, autograd takes the gradient.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x: states, shape `(batch, *event)`; left untouched.

    Returns:
        Energies `(batch,)` and gradients `(batch, *event)`; parameters of the energy collect none.

    Raises:
        ValueError: if the energy returns another shape.
    """
    by_hand = getattr(energy, "energy_and_grad", None)
    if by_hand is None:
        return by_autograd(energy, x)
    with torch.no_grad():
        e, grad = by_hand(x)
    _require_one_a_row(e, x)
    return e, grad


def by_autograd(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `energy_and_grad` returns, by autograd whatever methods the energy has."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        e = energy(x)
        _require_one_a_row(e, x)
        (grad,) = torch.autograd.grad(e.sum(), x)
    return e.detach(), grad


def score(energy: Energy, x: Tensor) -> Tensor:
    """Return the score ∇ log p(x) = -∇E(x), with its graph kept, so that a loss can be built on it.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x: states, shape `(batch, *event)`, as the scores.
    """
    with torch.enable_grad():
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    return -grad


class GaussianEnergy:
    """Quadratic energy, E(x) = ½ (x-μ)ᵀ Σ⁻¹ (x-μ) + offset.

    log Z = d/2 log 2π + ½ log det Σ - offset, in nats.

    Args:
        mean: μ, shape `(dim,)`.
        covariance: Σ, shape `(dim, dim)`, positive definite.
        offset: constant added to the energy; it moves log Z and leaves p unchanged.

    Raises:
        ValueError: if the shapes disagree or the covariance is not positive definite.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, offset: float = 0.0):
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            got = f"{tuple(mean.shape)}, {tuple(covariance.shape)}"
            raise ValueError(f"mean must be (dim,) and covariance (dim, dim); got {got}")
        factor, info = torch.linalg.cholesky_ex(covariance)
        if info:
            raise ValueError(f"the covariance is not positive definite: its leading minor of order {int(info)} is not")
        self.mean, self.factor, self.offset = mean, factor, offset
        self.precision = torch.cholesky_inverse(factor)
        self.log_z = 0.5 * len(mean) * math.log(2 * math.pi) + factor.diagonal().log().sum().item() - offset

    def __call__(self, x: Tensor) -> Tensor:
        residual = torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False)
        return 0.5 * residual.square().sum(0) + self.offset

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x) = Σ⁻¹ (x-μ)."""
        residual = x - self.mean
        grad = residual @ self.precision
        return 0.5 * torch.linalg.vecdot(residual, grad) + self.offset, grad

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `(batch,)`."""
        return -self(x) - self.log_z

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, dim)`."""
        noise = torch.randn(*shape, len(self.mean), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + noise @ self.factor.T


class GaussianMixtureEnergy:
    """Mixture of isotropic Gaussians as an energy, E(x) = -log Σₖ wₖ exp(-‖x-μₖ‖² / 2σ²) + offset.

    log Z = d/2 log 2πσ² - offset, in nats: all components share one σ, so the weights drop out.

    Args:
        means: μ, shape `(n_components, dim)`.
        std: σ > 0, shared by all components and directions.
        weights: w, shape `(n_components,)`, positive, rescaled to sum to one; equal if None.
        offset: constant added to the energy; it moves log Z and leaves p unchanged.

    Raises:
        ValueError: if a shape is wrong, σ is not positive or a weight is not positive.
    """

    def __init__(self, means: Tensor, std: float, weights: Tensor | None = None, offset: float = 0.0):
        weights = torch.ones_like(means[:, 0]) if weights is None else weights
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            got = f"{tuple(means.shape)}, {tuple(weights.shape)}"
            raise ValueError(f"means must be (n_components, dim), weights (n_components,); got {got}")
        if not std > 0:
            raise ValueError(f"std must be positive; got {std}")
        if not (weights > 0).all():
            raise ValueError(f"weights must be positive; the smallest is {weights.min().item()}")
        self.means, self.std, self.weights, self.offset = means, std, weights / weights.sum(), offset
        self.log_z = 0.5 * means.shape[1] * math.log(2 * math.pi * std**2) - offset

    def __call__(self, x: Tensor) -> Tensor:
        return self.offset - torch.logsumexp(self._log_joint(x), dim=1)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x) = (x - Σₖ rₖ μₖ) / σ², where rₖ is the share of component k in the density at x."""
        log_joint = self._log_joint(x)
        log_sum = torch.logsumexp(log_joint, dim=1)
        share = (log_joint - log_sum[:, None]).exp()
        return self.offset - log_sum, (x - share @ self.means) / self.std**2

    def _log_joint(self, x: Tensor) -> Tensor:
        squared = (x[:, None] - self.means).square().sum(-1)
        return self.weights.log() - squared / (2 * self.std**2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `(batch,)`."""
        return -self(x) - self.log_z

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, dim)`."""
        n = math.prod(shape)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        centre = self.means[component]
        noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        return (centre + self.std * noise).reshape(*shape, -1)
