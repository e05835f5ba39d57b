"""Whitened coordinates, and a kernel density in them."""

import math

import torch
from torch import Tensor, nn


class Whitened(nn.Module):
    """Invertible map z = L⁻¹ (x - mean), with L Lᵀ the covariance of the rows given here; of these z has I.

    In front of a network (`nn.Sequential(Whitened(x), net)`) it magnifies the directions in which the rows hardly
    vary, which their coordinates hide. A density over z becomes one over x by log p(x) = log p(z) + log_abs_det(x).

    Args:
        x: rows to fit, shape `(n, dim)`: give training rows, never test rows.

    Raises:
        ValueError: if x is not `(n, dim)` with n above dim, or a column is a linear function of others.
    """

    mean: Tensor
    factor: Tensor
    whiten: Tensor

    def __init__(self, x: Tensor):
        super().__init__()
        if x.ndim != 2 or len(x) <= x.shape[1]:
            raise ValueError(f"x must be (n, dim) with more rows than columns; got {tuple(x.shape)}")
        covariance = x.double().T.cov().reshape(x.shape[1], -1)
        factor, _ = torch.linalg.cholesky_ex(covariance)
        unexplained = factor.diagonal().square() / covariance.diagonal()  # by the columns before
        if not (unexplained > 1e-12).all():
            column = int(torch.nonzero(~(unexplained > 1e-12))[0])
            raise ValueError(f"column {column} is constant or a linear function of those before it")
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("factor", factor.to(x))
        self.register_buffer("whiten", torch.linalg.inv(factor).T.to(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return z, shape `(batch, dim)`."""
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ValueError(f"x must be (batch, {len(self.mean)}); got {tuple(x.shape)}")
        return (x - self.mean) @ self.whiten

    def inverse(self, z: Tensor) -> Tensor:
        """Return x, shape `(batch, dim)`."""
        return z @ self.factor.T + self.mean

    def log_abs_det(self, x: Tensor) -> Tensor:
        """Return the log of the absolute determinant of ∂z/∂x, in nats, shape `(batch,)`: the same for each row."""
        return -self.factor.diagonal().log().sum().expand(len(x))


class KernelDensity(nn.Module):
    """Gaussian kernels on the rows of x, of their covariance Σ times the bandwidth squared: a density, and an energy.

        p(x) = mean_i N(x; xᵢ, h² Σ),  E(x) = -log p(x),  log Z = 0

    Args:
        x: the rows, shape `(n, dim)`.
        bandwidth: h, without unit; `best_bandwidth` finds one.

    Raises:
        ValueError: if h is not positive; as `Whitened`.
    """

    centres: Tensor

    def __init__(self, x: Tensor, bandwidth: float):
        super().__init__()
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be positive; got {bandwidth}")
        self.whitened, self.bandwidth = Whitened(x), bandwidth
        self.register_buffer("centres", self.whitened(x) / bandwidth)

    def forward(self, x: Tensor) -> Tensor:
        return -self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape `(batch,)`."""
        dim = self.centres.shape[1]
        log_scale = -math.log(len(self.centres)) - dim * math.log(self.bandwidth * math.sqrt(2 * math.pi))
        z = self.whitened(x) / self.bandwidth
        blocks = [torch.logsumexp(-_squared_distances(rows, self.centres) / 2, dim=1) for rows in z.split(4096)]
        return log_scale + torch.cat(blocks) + self.whitened.log_abs_det(x)

    def sample(self, shape: tuple[int, ...] = (), generator: torch.Generator | None = None) -> Tensor:
        """Return exact draws, shape `(*shape, dim)`; the generator is on the device of the rows."""
        n, c = math.prod(shape), self.centres
        index = torch.randint(len(c), (n,), generator=generator, device=c.device)
        noise = torch.randn(n, c.shape[1], generator=generator, dtype=c.dtype, device=c.device)
        return self.whitened.inverse(self.bandwidth * (c[index] + noise)).reshape(*shape, c.shape[1])


def best_bandwidth(x: Tensor, x_validation: Tensor) -> float:
    """Return the bandwidth of a `KernelDensity` on x that maximises the likelihood of the validation rows, by EM.

        h² ← mean over validation rows of Σᵢ rᵢ ‖z - zᵢ‖² / dim,  rᵢ the share of kernel i in the density at z

    No step lowers the likelihood; they go on until h moves by less than a millionth of itself. They start from h = 1:
    of several maxima they find the one that is next below or above.

    Args:
        x: shape `(n, dim)`.
        x_validation: shape `(n_validation, dim)`.

    Raises:
        ValueError: if every validation row stands in x, so that the likelihood has no maximum, or one holds a NaN or
            infinite value; as `Whitened`.
        RuntimeError: if 10,000 steps do not suffice.
    """
    if not torch.isfinite(x_validation).all():
        raise ValueError("x_validation holds a NaN or infinite value")
    if (x_validation[:, None] == x).all(2).any(1).all():
        raise ValueError("every validation row stands in x: the narrower the kernels, the likelier they are")
    whitened = Whitened(x.double())
    squared = _squared_distances(whitened(x_validation.double()), whitened(x.double())).clamp_min(0)
    h2 = 1.0
    for _ in range(10_000):
        share = torch.softmax(-squared / (2 * h2), dim=1)
        h2, before = (share * squared).sum(1).mean().item() / x.shape[1], h2
        if abs(h2 / before - 1) < 2e-6:
            return math.sqrt(h2)
    raise RuntimeError(f"the bandwidth still moves after 10,000 steps of EM; it is {math.sqrt(h2)}")


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖a - b‖² of all pairs by one product of matrices: faster than differences, and twice differentiable."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
