"""Whitened coordinates and kernel densities against mixtures written out, and the bandwidth against its condition."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebmlib.density import KernelDensity, Whitened, best_bandwidth

F64 = torch.float64


def rows(n: int, seed: int = 0) -> torch.Tensor:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    mixing = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.2, 0.0], [-0.3, 0.1, 2.0]], dtype=F64)
    return z @ mixing.T + torch.tensor([1.0, -2.0, 3.0], dtype=F64)


def written_out(x: torch.Tensor, h: float) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(torch.ones(len(x), dtype=F64)), MultivariateNormal(x, h**2 * x.T.cov()))


def test_whitened_rows_have_unit_covariance_and_come_back():
    x = rows(200)
    whitened = Whitened(x)
    z = whitened(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(3, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(whitened.inverse(z), x)
    jacobian = torch.autograd.functional.jacobian(lambda v: whitened(v[None])[0], x[0])
    torch.testing.assert_close(whitened.log_abs_det(x[:4]), torch.linalg.slogdet(jacobian)[1].expand(4))


def test_rows_that_cannot_be_whitened_are_refused():
    with pytest.raises(ValueError, match="more rows than columns; got"):
        Whitened(rows(3))
    x = rows(50)
    x[:, 1] = 2 * x[:, 0]
    with pytest.raises(ValueError, match="column 1 is constant or a linear function"):
        Whitened(x)


def test_a_kernel_density_is_the_mixture_written_out():
    x, at = rows(60), rows(5000, seed=1)  # more rows than a block
    density = KernelDensity(x, 0.4)
    torch.testing.assert_close(density.log_prob(at), written_out(x, 0.4).log_prob(at), rtol=0, atol=1e-10)
    torch.testing.assert_close(density(at), -density.log_prob(at))


def test_its_second_derivatives_exist_at_a_kernel():
    x = rows(60)
    density, truth = KernelDensity(x, 0.4), written_out(x, 0.4)
    ours, theirs = (
        torch.autograd.functional.hessian(lambda v, q=q: q.log_prob(v[None])[0], x[0]) for q in (density, truth)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_draws_have_the_moments_of_the_density():
    x, h, n = rows(60), 0.5, 40_000
    draws = KernelDensity(x, h).sample((n // 2, 2), torch.Generator().manual_seed(2)).flatten(0, 1)
    covariance = x.T.cov(correction=0) + h**2 * x.T.cov()
    z = (draws.mean(0) - x.mean(0)) / (covariance.diagonal() / n).sqrt()
    assert z.abs().max() < 4.5, f"the mean is {z} standard errors off: a false alarm has chance 2e-5"
    # The covariance in coordinates where it is I: an entry has a standard error of √(2/n) at most, for short tails.
    back = torch.linalg.inv(torch.linalg.cholesky(covariance))
    off = (back @ draws.T.cov() @ back.T - torch.eye(3, dtype=F64)).abs().max()
    assert off < 4.5 * (2 / n) ** 0.5


def test_the_best_bandwidth_maximises_the_validation_likelihood():
    x, held_out = rows(150), rows(80, seed=1)
    h = best_bandwidth(x, held_out)
    likes = [KernelDensity(x, h * factor).log_prob(held_out).mean() for factor in (0.98, 1, 1.02)]
    assert likes[1] > likes[0] and likes[1] > likes[2], f"{h} is no maximum: {likes}"
    assert all(KernelDensity(x, k).log_prob(held_out).mean() <= likes[1] for k in (0.1, 0.2, 0.5, 1.0, 2.0))


def test_far_from_all_rows_the_best_bandwidth_has_a_closed_form():
    """All kernels on two points ±1 of one axis, seen from far above: h² = mean ‖z - zᵢ‖² in their middle."""
    x = torch.tensor([[-1.0], [1.0]], dtype=F64)  # variance 2, so z = x / √2
    held_out = torch.tensor([[0.0]], dtype=F64)
    assert best_bandwidth(x, held_out) == pytest.approx(math.sqrt(0.5), rel=1e-5)


def test_rows_of_another_width_are_refused():
    x = rows(50)
    for call in (Whitened(x), KernelDensity(x, 0.4), KernelDensity(x, 0.4).log_prob):
        for bad in (x[:, :1], x[0], x[None]):
            with pytest.raises(ValueError, match=r"x must be \(batch, 3\); got \("):
                call(bad)


def test_sample_shapes():
    for shape in ((), (0,), (2, 0), (2, 4)):
        assert KernelDensity(rows(50), 0.4).sample(shape).shape == (*shape, 3)


def test_bad_bandwidths_are_refused():
    held_out = rows(10, seed=1)
    held_out[3, 1] = math.nan
    with pytest.raises(ValueError, match="x_validation holds a NaN"):
        best_bandwidth(rows(50), held_out)
    with pytest.raises(ValueError, match="bandwidth must be positive; got 0.0"):
        KernelDensity(rows(50), 0.0)
    with pytest.raises(ValueError, match="every validation row stands in x"):
        best_bandwidth(rows(50), rows(50)[:10])
