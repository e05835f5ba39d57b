"""Energies against closed forms and quadrature, in double precision."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ebmlib.energies import (
    GaussianEnergy,
    GaussianMixtureEnergy,
    NotFinite,
    by_autograd,
    by_hand,
    energy_and_grad,
    evaluate,
    one_a_row,
    score,
)
from ebmlib.partition import quadrature

F64 = torch.float64


def gaussian(dim: int, offset: float = 0.0) -> GaussianEnergy:
    generator = torch.Generator().manual_seed(dim)
    root = torch.randn(dim, dim, generator=generator, dtype=F64)
    return GaussianEnergy(torch.arange(dim, dtype=F64), root @ root.T + torch.eye(dim, dtype=F64), offset)


def mixture(offset: float = 0.0) -> GaussianMixtureEnergy:
    means = torch.tensor([[-1.0, 0.0], [1.5, 0.5]], dtype=F64)
    return GaussianMixtureEnergy(means, 0.6, torch.tensor([1.0, 3.0], dtype=F64), offset)


@pytest.mark.parametrize("dim", [1, 2, 5, 11])
def test_gaussian_log_prob_is_torchs(dim):
    ours = gaussian(dim, offset=3.0)
    theirs = torch.distributions.MultivariateNormal(ours.mean, ours.factor @ ours.factor.T)
    x = theirs.sample((50,))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("energy", [gaussian(1), gaussian(2, 2.5), mixture(), mixture(-1.0)])
def test_log_z_is_quadratures(energy):
    dim = energy.sample((1,)).shape[1]
    low = torch.full((dim,), -14.0, dtype=F64)
    truth = quadrature(energy, low, -low + dim, 400).value
    assert abs(energy.log_z - truth) < 1e-10


@given(offset=st.floats(-100, 100))
def test_an_offset_moves_log_z_and_leaves_p(offset):
    x = torch.linspace(-3, 3, 20, dtype=F64).reshape(10, 2)
    plain, moved = mixture(), mixture(offset)
    torch.testing.assert_close(moved.log_prob(x), plain.log_prob(x), rtol=0, atol=1e-10)
    assert moved.log_z.item() == pytest.approx(plain.log_z.item() - offset, abs=1e-10)


@pytest.mark.parametrize("energy", [gaussian(3), mixture()])
def test_samples_have_the_moments_of_the_density(energy):
    n = 200_000
    x = energy.sample((n,), torch.Generator().manual_seed(0))
    if isinstance(energy, GaussianEnergy):
        mean, variance = energy.mean, (energy.factor @ energy.factor.T).diagonal()
    else:
        mean = energy.weights @ energy.means
        variance = energy.std**2 + energy.weights @ (energy.means - mean).square()
    z = (x.mean(0) - mean) / (variance / n).sqrt()
    assert z.abs().max() < 5.0, f"z = {z.tolist()}: a false alarm has chance 2e-6"
    spread = (x - mean).square()
    z = (spread.mean(0) - variance) / (spread.std(0) / math.sqrt(n))
    assert z.abs().max() < 5.0, f"z = {z.tolist()}: a false alarm has chance 2e-6"


@pytest.mark.parametrize("energy", [gaussian(2), mixture()])
def test_sample_shapes(energy):
    assert energy.sample().shape == (2,)
    assert energy.sample((3,)).shape == (3, 2)
    assert energy.sample((3, 4)).shape == (3, 4, 2)
    assert energy.sample((0,)).shape == (0, 2) and energy.sample((3, 0)).shape == (3, 0, 2)


def test_gradients_are_the_closed_form():
    energy = gaussian(4, offset=1.0)
    x = energy.sample((7,))
    e, grad = energy_and_grad(energy, x)
    exact = (x - energy.mean) @ torch.cholesky_inverse(energy.factor)
    torch.testing.assert_close(e, energy(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(score(energy, x), -exact, rtol=0, atol=1e-10)
    assert not e.requires_grad and not grad.requires_grad and not x.requires_grad


@pytest.mark.parametrize("energy", [gaussian(3, offset=1.0), mixture()])
def test_the_gradient_by_hand_is_autograds(energy):
    x = 5 * energy.sample((50,))
    for a, b in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_gradient_by_hand_is_used_and_its_shape_checked():
    class Energy:
        def __call__(self, x):
            raise AssertionError("not needed")

        def energy_and_grad(self, x):
            return x.sum(1), torch.ones_like(x)

    e, grad = energy_and_grad(Energy(), torch.ones(3, 2))
    assert e.tolist() == [2, 2, 2] and grad.tolist() == [[1, 1]] * 3
    Energy.energy_and_grad = lambda self, x: (x, x)
    with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \(3, 2\)"):
        energy_and_grad(Energy(), torch.ones(3, 2))


@pytest.mark.parametrize("energy_and_grad", [energy_and_grad, by_autograd])
def test_gradients_are_taken_under_no_grad_too(energy_and_grad):
    energy = gaussian(2)
    with torch.no_grad():
        _, grad = energy_and_grad(energy, torch.zeros(3, 2, dtype=F64))
        assert grad.abs().sum() > 0
        assert score(energy, torch.ones(3, 2, dtype=F64)).abs().sum() > 0


def test_score_keeps_its_graph():
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    score(net, torch.randn(5, 2)).square().sum().backward()
    assert next(net.parameters()).grad is not None


def test_evaluate_names_what_is_wrong():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"\(4,\).*got \(4, 1\)"):
        evaluate(lambda x: x[:, :1], x)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"row 2 of 4 is {bad}"):
            evaluate(lambda x, bad=bad: torch.tensor([0.0, 1.0, bad, bad]), x)


def test_bad_parameters_are_named():
    mean, covariance = torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="order 2"):
        GaussianEnergy(mean, covariance)
    with pytest.raises(ValueError, match="not symmetric: see row 0, column 1"):
        GaussianEnergy(mean, torch.tensor([[1.0, 0.3], [0.5, 1.0]]))
    GaussianEnergy(mean, torch.tensor([[1.0, 0.5 + 1e-6], [0.5, 1.0]]))  # rounding
    with pytest.raises(ValueError, match=r"\(2,\), \(3, 3\)"):
        GaussianEnergy(mean, torch.eye(3))
    with pytest.raises(ValueError, match="std must be positive; got 0"):
        GaussianMixtureEnergy(torch.zeros(1, 2), 0)
    with pytest.raises(ValueError, match=r"\(3, 2\), \(2,\)"):
        GaussianMixtureEnergy(torch.zeros(3, 2), 1.0, torch.ones(2))
    with pytest.raises(ValueError, match="smallest is -1"):
        GaussianMixtureEnergy(torch.zeros(2, 2), 1.0, torch.tensor([1.0, -1.0]))


def test_gradient_of_an_energy_of_the_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \(3, 2\)"):
        energy_and_grad(lambda x: x, torch.zeros(3, 2))


def parameters(*shapes):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator, dtype=F64).add_(0.5).requires_grad_() for shape in shapes]


def test_the_gaussian_carries_the_gradient_of_torchs():
    mean, root, offset = parameters((3,), (3, 3), ())
    covariance = root @ root.T + torch.eye(3, dtype=F64)
    x = torch.randn(9, 3, dtype=F64)
    ours = GaussianEnergy(mean, covariance, offset)
    theirs = torch.distributions.MultivariateNormal(mean, covariance)
    got = torch.autograd.grad(ours.log_prob(x).sum(), (mean, root, offset), retain_graph=True)
    expected = torch.autograd.grad(theirs.log_prob(x).sum(), (mean, root))
    torch.testing.assert_close(got[:2], expected, rtol=1e-10, atol=1e-10)
    assert got[2].abs() < 1e-12, "the offset moves no density"
    assert torch.autograd.grad(ours.log_z, offset)[0] == -1


def test_the_mixture_carries_the_gradient_of_torchs():
    means, std, weights, offset = parameters((4, 2), (), (4,), ())
    x = torch.randn(9, 2, dtype=F64)
    ours = GaussianMixtureEnergy(means, std, weights, offset)
    parts = torch.distributions.Independent(torch.distributions.Normal(means, std.expand(4, 2)), 1)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(ours.log_prob(x).sum(), (means, std, weights, offset))
    expected = torch.autograd.grad(theirs.log_prob(x).sum(), (means, std, weights))
    torch.testing.assert_close(got[:3], expected, rtol=1e-10, atol=1e-10)
    assert got[3].abs() < 1e-12


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "mixture, built once"])
def test_maximum_likelihood_by_adam_finds_the_variance_of_the_data(kind):
    x = torch.randn(400, 1, dtype=F64, generator=torch.Generator().manual_seed(0)) * 2 + 1
    x = x - x.mean()
    log_std, std = torch.zeros((), dtype=F64, requires_grad=True), torch.ones((), dtype=F64, requires_grad=True)
    mean = torch.zeros(1, dtype=F64)
    once = GaussianMixtureEnergy(mean[None], std)
    build = {
        "gaussian": lambda: GaussianEnergy(mean, (2 * log_std).exp()[None, None]),
        "mixture": lambda: GaussianMixtureEnergy(mean[None], log_std.exp()),
        "mixture, built once": lambda: once,
    }[kind]
    optimizer = torch.optim.Adam([log_std, std], lr=0.02)
    for _ in range(1000):
        optimizer.zero_grad()
        (-build().log_prob(x).mean()).backward()
        optimizer.step()
    variance = std.item() ** 2 if build() is once else math.exp(2 * log_std.item())
    assert variance == pytest.approx(x.square().mean().item(), rel=1e-5)
    at_zero = build().log_prob(torch.zeros(1, 1, dtype=F64)).exp().item()
    assert at_zero == pytest.approx(1 / math.sqrt(2 * math.pi * variance), rel=1e-10), "it no longer integrates to one"


def test_a_covariance_that_took_a_step_is_not_used_silently():
    covariance = torch.eye(2, dtype=F64).requires_grad_()
    energy = GaussianEnergy(torch.zeros(2, dtype=F64), covariance)
    energy.log_prob(torch.ones(3, 2, dtype=F64)).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        energy.log_prob(torch.ones(3, 2, dtype=F64)).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_log_z_has_the_dtype_and_the_device_of_the_parameters(dtype):
    for device in ("cpu", "meta"):
        means = torch.zeros(3, 2, dtype=dtype, device=device)
        weights = torch.ones(3, dtype=dtype)  # a check reads them
        mixture = GaussianMixtureEnergy(torch.zeros(3, 2, dtype=dtype), 0.5, weights)
        mixture.means = means
        assert (mixture.log_z.dtype, mixture.log_z.device.type, mixture.log_z.shape) == (dtype, device, ())
    with torch.device("meta"):
        mean = torch.zeros(2, dtype=dtype, device="cpu")
        energy = GaussianEnergy(mean, torch.eye(2, dtype=dtype, device="cpu"), offset=1.0)
        mixture = GaussianMixtureEnergy(mean[None], 0.5, offset=1.0)
        for known in (energy, mixture):
            x = known.sample((4,))
            e, grad = energy_and_grad(known, x)
            found = (known.log_z, x, e, grad, known.log_prob(x), score(known, x), evaluate(known, x))
            assert {(t.dtype, t.device.type) for t in found} == {(dtype, "cpu")}


def trainable(kind):
    means, covariance, std = torch.zeros(2, 2, dtype=F64), torch.eye(2, dtype=F64), torch.ones((), dtype=F64)
    if kind == "gaussian":
        return GaussianEnergy(means[0].requires_grad_(), covariance.requires_grad_())
    return GaussianMixtureEnergy(means.requires_grad_(), std.requires_grad_())


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_a_chain_of_ones_own_keeps_no_graph(kind):
    energy = trainable(kind)
    x = torch.ones(3, 2, dtype=F64, requires_grad=True)
    for _ in range(3):
        e, grad = energy.energy_and_grad(x)
        assert e.grad_fn is None and grad.grad_fn is None and not (e.requires_grad or grad.requires_grad)
        x = x.detach() - 0.01 * grad
    torch.testing.assert_close(x, torch.full((3, 2), 0.99**3, dtype=F64), rtol=1e-12, atol=0)
    assert not energy.sample((3,)).requires_grad


def test_a_gradient_by_hand_that_keeps_a_graph_comes_back_detached():
    scale = torch.ones((), dtype=F64, requires_grad=True)

    class Bowl:
        def __call__(self, x):
            return scale * x.square().sum(1)

        def energy_and_grad(self, x):
            return self(x), 2 * scale * x

    e, grad = energy_and_grad(Bowl(), torch.ones(3, 2, dtype=F64))
    assert not (e.requires_grad or grad.requires_grad)


class TwiceGaussian(GaussianEnergy):
    def __call__(self, x):
        return 2 * super().__call__(x)


class TwiceMixture(GaussianMixtureEnergy):
    def __call__(self, x):
        return 2 * super().__call__(x)


class TwiceBoth(GaussianEnergy):
    def __call__(self, x):
        return 2 * super().__call__(x)

    def energy_and_grad(self, x):
        e, grad = super().energy_and_grad(x)
        return 2 * e, 2 * grad


class Named(GaussianEnergy):
    name = "changes nothing"


MEAN, COVARIANCE = torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)


@pytest.mark.parametrize("kind", [TwiceGaussian, TwiceMixture, TwiceBoth, Named])
def test_a_subclass_has_the_gradient_of_its_own_call(kind):
    energy = kind(MEAN[None], 0.7) if kind is TwiceMixture else kind(MEAN, COVARIANCE, 0.3)
    x = torch.randn(4, 2, dtype=F64)
    expected = by_autograd(energy, x)
    torch.testing.assert_close(energy_and_grad(energy, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(energy.energy_and_grad(x), expected, rtol=1e-12, atol=1e-12)


class ByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(2, 1, bias=False).double()

    def forward(self, x):
        return self.scale(x)[:, 0]

    def energy_and_grad(self, x):
        return self(x), self.scale.weight.expand_as(x)


class Newer(ByHand):
    def forward(self, x):
        return super().forward(x) ** 2


def hook_on_all(energy):
    return nn.modules.module.register_module_forward_hook(lambda module, x, out: 10 * out)


@pytest.mark.parametrize(
    "change",
    [
        lambda energy: energy.register_forward_hook(lambda module, x, out: 10 * out),
        lambda energy: energy.register_forward_pre_hook(lambda module, x: 3 * x[0]),
        lambda energy: energy.scale.register_forward_hook(lambda module, x, out: 10 * out),
        lambda energy: setattr(energy, "forward", lambda x: x.square().sum(1)),
        hook_on_all,
    ],
)
def test_what_changes_a_call_changes_the_gradient_of_anothers_module_too(change):
    energy, x = ByHand(), torch.randn(3, 2, dtype=F64)
    before = energy_and_grad(energy, x)[1]
    torch.testing.assert_close(before, energy.scale.weight.detach().expand_as(x))
    handle = change(energy)
    try:
        torch.testing.assert_close(energy_and_grad(energy, x), by_autograd(energy, x), rtol=0, atol=0)
        assert not torch.allclose(energy_and_grad(energy, x)[1], before)
    finally:
        if handle is not None:
            handle.remove()


def test_a_forward_newer_than_the_gradient_by_hand_wins():
    energy, x = Newer(), torch.randn(3, 2, dtype=F64)
    torch.testing.assert_close(energy_and_grad(energy, x), by_autograd(energy, x), rtol=0, atol=0)


class Wrapped:
    """Twice another energy; whatever else it is asked for, it gives the other's."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, x):
        return 2 * self.inner(x)


def test_a_gradient_by_hand_of_another_energy_is_not_taken():
    energy, x = Wrapped(gaussian(2)), torch.randn(3, 2, dtype=F64)
    torch.testing.assert_close(energy_and_grad(energy, x), by_autograd(energy, x), rtol=0, atol=0)


@pytest.mark.parametrize("energy", [gaussian(4), GaussianMixtureEnergy(torch.eye(4, dtype=F64), 0.6)])
@pytest.mark.parametrize("event", [(2, 2), (1, 4), (4, 1)])
def test_the_gradient_by_hand_takes_the_states_of_the_call(energy, event):
    x = energy.sample((5,))
    e, grad = energy.energy_and_grad(x.view(5, *event))
    assert torch.equal(e, energy.energy_and_grad(x)[0])
    assert torch.equal(grad, energy.energy_and_grad(x)[1].view(5, *event))


def test_by_hand_serves_a_class_of_ones_own():
    class Bowl:
        width = 2.0

        def __call__(self, x):
            return (x / self.width).square().sum(1)

        @by_hand
        def energy_and_grad(self, x):
            return self(x), 2 * x / self.width**2

    class Tilted(Bowl):
        def __call__(self, x):
            return super().__call__(x) + x[:, 0]

    x = torch.randn(3, 2, dtype=F64)
    torch.testing.assert_close(Bowl().energy_and_grad(x)[1], x / 2)
    torch.testing.assert_close(Tilted().energy_and_grad(x)[1], x / 2 + torch.tensor([1.0, 0.0], dtype=F64))


@pytest.mark.parametrize("energy", [gaussian(2), mixture()])
def test_gradients_have_the_dtype_of_x_under_autocast_and_among_dtypes(energy):
    x = energy.sample((5,))
    exact = energy_and_grad(energy, x)[1]
    e, grad = energy_and_grad(energy, x.float())
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-4)
    single = GaussianMixtureEnergy(torch.tensor([[-1.0, 0.0], [1.5, 0.5]]), 0.6)
    e, grad = energy_and_grad(single, x)
    torch.testing.assert_close((e, grad), by_autograd(single, x), rtol=1e-12, atol=1e-12)
    assert grad.dtype == F64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(energy_and_grad(single, x.float()), by_autograd(single, x.float()), rtol=0, atol=0)


@pytest.mark.parametrize("energy", [gaussian(2), mixture()])
def test_states_of_another_width_or_of_integers_are_refused(energy):
    for x in (torch.zeros(4, 1, dtype=F64), torch.zeros(4, 3, dtype=F64)):
        for call in (energy, energy.log_prob, lambda x: energy_and_grad(energy, x), energy.energy_and_grad):
            with pytest.raises(RuntimeError, match="invalid for input|must match|cannot be multiplied|dimension"):
                call(x)
    with pytest.raises(RuntimeError, match="floating point"):
        energy_and_grad(energy, torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="floating point"):
        score(energy, torch.zeros(4, 2, dtype=torch.int64))


def test_the_score_of_several_energies_a_row_is_an_error():
    x = torch.zeros(3, 2)
    for energy in (lambda x: x, lambda x: x[:, :1], lambda x: x.sum()):
        with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \("):
            score(energy, x)
        with pytest.raises(ValueError, match=r"must return shape \(3,\), one value a row; got \("):
            one_a_row(energy(x), x)


def test_empty_batches_have_empty_energies():
    x = torch.zeros(0, 2, dtype=F64)
    for energy in (gaussian(2), mixture()):
        e, grad = energy_and_grad(energy, x)
        assert e.shape == (0,) and grad.shape == (0, 2) and score(energy, x).shape == (0, 2)
        assert evaluate(energy, x).shape == (0,) and energy.log_prob(x).shape == (0,)


def test_infinite_and_nan_parameters_are_named():
    mean = torch.zeros(2)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="positive definite from order 2"):
            GaussianEnergy(mean, torch.tensor([[1.0, 0.0], [0.0, bad]]))
        with pytest.raises(ValueError, match=f"std must be positive; got {bad}"):
            GaussianMixtureEnergy(mean[None], bad)
        with pytest.raises(ValueError, match=f"the largest {bad}"):
            GaussianMixtureEnergy(mean[None], 1.0, torch.tensor([bad]))
    with pytest.raises(NotFinite, match="row 0 of 1 is nan"):
        evaluate(GaussianEnergy(mean * math.nan, torch.eye(2)), torch.zeros(1, 2))
