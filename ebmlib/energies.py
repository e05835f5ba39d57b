"""Energies: any callable `(batch, *event) -> (batch,)`, in nats, with log p(x) = -E(x) - log Z; some with known Z."""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Energy = Callable[[Tensor], Tensor]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotFinite(ValueError, FloatingPointError):
    """A value that must be finite is NaN or infinite: the arguments are bad, or a computation has blown up."""


class Distribution(Protocol):
    """What serves as base, noise, proposal or known truth: the interface of `torch.distributions`."""

    def log_prob(self, x: Tensor) -> Tensor: ...
    def sample(self, shape: torch.Size) -> Tensor: ...


def evaluate(energy: Energy, x: Tensor, who: str = "an energy") -> Tensor:
    """Return E(x), shape `(batch,)`, checked at the boundary: NotFinite, if a value is NaN or infinite."""
    e = one_a_row(energy(x), x, who)
    if len(bad := torch.nonzero(~torch.isfinite(e))):
        raise NotFinite(f"the energy of row {int(bad[0])} of {len(x)} is {e[bad[0]].item()}")
    return e


def one_a_row(e: Tensor, x: Tensor, who: str = "an energy") -> Tensor:
    """Return e, the energies of x or what else `who` returned, whose shape must be `(batch,)`."""
    if e.shape != x.shape[:1]:
        raise ValueError(f"{who} must return shape {tuple(x.shape[:1])}, one value a row; got {tuple(e.shape)}")
    return e


def energy_and_grad(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return E(x) `(batch,)` and ∇E(x), shaped as x, both detached; parameters of the energy collect no gradient.

    By its own method `energy_and_grad(x)`, not older than its call (`by_hand`) nor of what it wraps; or by autograd.
    """
    method: Any = getattr(energy, "energy_and_grad", None)
    if getattr(method, "__self__", energy) is not energy or not (hasattr(method, "by_hand") or _as_written(energy)):
        return by_autograd(energy, x)
    e, grad = method(x)
    return one_a_row(e, x).detach(), grad.detach()


def by_autograd(energy: Energy, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `energy_and_grad` returns, by autograd whatever methods the energy has; not in `inference_mode`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        e = one_a_row(energy(x), x)
        (grad,) = torch.autograd.grad(e.sum(), x)
    return e.detach(), grad


def by_hand(gradient: Callable[[Any, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Any, Tensor], tuple[Tensor, Tensor]]:
    """Decorate a method `energy_and_grad`, the chain rule of its class written out: it builds no graph.

    Autograd takes over where a subclass or the instance has a newer `forward` or `__call__`, where a hook sits on the
    energy, on a module within or on all, and where the results have not the dtype and shape of x (as under autocast).
    """

    @functools.wraps(gradient)
    def energy_and_grad(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if _as_written(self):
            with torch.no_grad():
                e, grad = gradient(self, x)
            if e.dtype == grad.dtype == x.dtype and grad.shape == x.shape:
                return e, grad
        return by_autograd(self, x)

    energy_and_grad.by_hand = True  # type: ignore[attr-defined]
    return energy_and_grad


def _as_written(energy: Any) -> bool:
    for newest in type(energy).__mro__:
        if newest.__dict__.keys() & {"energy_and_grad", "forward", "__call__"}:
            break
    for module in energy.modules() if isinstance(energy, nn.Module) else ():
        if "forward" in module.__dict__ or any(map(module.__dict__.get, _HOOKS)):
            return False
    return "energy_and_grad" in newest.__dict__ and not any(vars(torch_module)["_global" + name] for name in _HOOKS)


def score(energy: Energy, x: Tensor) -> Tensor:
    """Return the score ∇ log p(x) = -∇E(x), shaped as x, with its graph kept, so that a loss can be built on it."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(one_a_row(energy(x), x).sum(), x, create_graph=True)
    return -grad


class GaussianEnergy:
    """Quadratic energy, E(x) = ½ (x-μ)ᵀ Σ⁻¹ (x-μ) + offset; log Z = d/2 log 2π + ½ log det Σ - offset.

    Args:
        mean: μ, shape `(dim,)`.
        covariance: Σ, shape `(dim, dim)`, symmetric, positive definite; read once: after a step on it, build another.
        offset: constant added to the energy; it moves log Z and leaves p unchanged.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, offset: float | Tensor = 0.0):
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            got = f"{tuple(mean.shape)}, {tuple(covariance.shape)}"
            raise ValueError(f"mean must be (dim,) and covariance (dim, dim); got {got}")
        factor, info = torch.linalg.cholesky_ex(covariance)
        if info or factor.isinf().any():
            raise ValueError(f"the covariance is not positive definite from order {int(info) or len(mean)} on")
        std = covariance.diagonal().sqrt()
        if len(bad := torch.nonzero((covariance - covariance.T).abs() > 1e-3 * std.outer(std))):
            raise ValueError(f"the covariance is not symmetric: see row {int(bad[0, 0])}, column {int(bad[0, 1])}")
        self.mean, self.factor, self.precision = mean, factor, torch.cholesky_inverse(factor)
        self.offset = torch.as_tensor(offset, dtype=mean.dtype, device=mean.device)
        self.log_z = 0.5 * len(mean) * math.log(2 * math.pi) + factor.diagonal().log().sum() - self.offset

    def __call__(self, x: Tensor) -> Tensor:
        residual = x.reshape(len(x), len(self.mean)) - self.mean
        residual = torch.linalg.solve_triangular(self.factor, residual.T, upper=False)
        return 0.5 * residual.square().sum(0) + self.offset

    @by_hand
    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x) = Σ⁻¹ (x-μ), detached; x may be `(batch, *event)` with dim coordinates a row."""
        residual = x.reshape(len(x), len(self.mean)) - self.mean
        grad = residual @ self.precision
        return torch.add(self.offset, torch.linalg.vecdot(residual, grad), alpha=0.5), grad.reshape(x.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `(batch,)`."""
        return -self(x) - self.log_z

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, dim)`, without a graph."""
        noise = torch.randn(*shape, len(self.mean), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + noise @ self.factor.T


class GaussianMixtureEnergy:
    """Mixture of isotropic Gaussians, E(x) = -log Σₖ wₖ exp(-‖x-μₖ‖² / 2σ²) + offset; log Z = d/2 log 2πσ² - offset.

    Args:
        means: μ, shape `(n_components, dim)`.
        std: σ > 0, shared by all components and directions: so the weights drop out of log Z.
        weights: w, shape `(n_components,)`, positive, read once and rescaled to sum to one; equal if None.
        offset: constant added to the energy; it moves log Z and leaves p unchanged.
    """

    def __init__(self, means: Tensor, std: float | Tensor, weights: Tensor | None = None, offset: float | Tensor = 0.0):
        weights = means.new_ones(len(means)) if weights is None else weights
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            got = f"{tuple(means.shape)}, {tuple(weights.shape)}"
            raise ValueError(f"means must be (n_components, dim), weights (n_components,); got {got}")
        if not 0 < std < math.inf:
            raise ValueError(f"std must be positive; got {std}")
        if not ((weights > 0) & (weights < math.inf)).all():
            raise ValueError(f"weights must be positive; the smallest is {weights.min()}, the largest {weights.max()}")
        self.means, self.std, self.weights, self.offset = means, std, weights / weights.sum(), offset

    @property
    def log_z(self) -> Tensor:
        std = torch.as_tensor(self.std, dtype=self.means.dtype, device=self.means.device)
        return 0.5 * self.means.shape[1] * torch.log(2 * math.pi * std**2) - self.offset

    def __call__(self, x: Tensor) -> Tensor:
        return self.offset - torch.logsumexp(self._log_joint(x.reshape(len(x), self.means.shape[1])), dim=1)

    @by_hand
    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x) = (x - Σₖ rₖ μₖ) / σ², detached; rₖ is the share of component k in the density at x."""
        if x.dtype != self.means.dtype:
            return by_autograd(self, x)
        flat = x.reshape(len(x), self.means.shape[1])  # x may be `(batch, *event)`, as for the Gaussian
        log_joint = self._log_joint(flat)
        grad = torch.addmm(flat, log_joint.softmax(1), self.means, alpha=-1).div_(self.std**2)
        return self.offset - torch.logsumexp(log_joint, dim=1), grad.reshape(x.shape)

    def _log_joint(self, x: Tensor) -> Tensor:
        squared = (x[:, None] - self.means).square().sum(-1)
        return self.weights.log() - squared / (2 * self.std**2)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `(batch,)`."""
        return -self(x) - self.log_z

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, dim)`, without a graph."""
        n = math.prod(shape)
        centre = self.means[torch.multinomial(self.weights, max(n, 1), replacement=True, generator=generator)[:n]]
        noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        return (centre + self.std * noise).reshape(*shape, self.means.shape[1])
