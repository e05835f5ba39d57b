"""Networks as energies: shapes, options, and errors that name what is wrong."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from ebmlib.energies import NotFinite, by_autograd, energy_and_grad, evaluate, score
from ebmlib.networks import Confined, ConvEnergy, MLPEnergy, SoftSteps
from ebmlib.partition import quadrature

F64 = torch.float64


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="std must be positive; got -1"):
        Confined(MLPEnergy(2, (4,)), -1)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"std must be positive; got {bad}"):
            Confined(MLPEnergy(2, (4,)), bad)
    with pytest.raises(ValueError, match=r"\[2, 0, 1\]"):
        MLPEnergy(2, (0,))
    with pytest.raises(ValueError, match=r"\(batch, 2\); got \(5, 3\)"):
        MLPEnergy(2, (4,))(torch.zeros(5, 3))


@given(dim=st.integers(1, 5), widths=st.lists(st.integers(1, 6), max_size=3), n_out=st.integers(1, 4))
def test_mlp_shapes(dim, widths, n_out):
    out = MLPEnergy(dim, widths, n_out=n_out)(torch.zeros(3, dim))
    assert out.shape == ((3,) if n_out == 1 else (3, n_out))


def test_mlp_options():
    assert (MLPEnergy(2, (8,), zero_last=True)(torch.randn(5, 2)) == 0).all()
    kinds = [type(layer) for layer in MLPEnergy(2, (8, 8), activation=nn.ReLU, dropout=0.2).net]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


@given(dim=st.integers(1, 3), widths=st.lists(st.integers(1, 6), max_size=3), confined=st.booleans())
def test_the_gradient_by_hand_is_autograds(dim, widths, confined):
    energy = MLPEnergy(dim, widths).double()
    x = 3 * torch.randn(4, dim, dtype=F64)
    start = x.clone()
    for a, b in zip(energy.energy_and_grad(x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    if confined:
        energy = Confined(energy, 1.5)
        for a, b in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (x == start).all() and all(p.grad is None for p in energy.parameters())


class Twice(MLPEnergy):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "energy",
    [
        MLPEnergy(2, (4,), activation=nn.Tanh),
        MLPEnergy(2, (4,), dropout=0.5).eval(),
        Twice(2, (4,)),
        Confined(Twice(2, (4,)), 1.0),
        Confined(lambda x: torch.zeros(len(x)), 1.0),
    ],
)
def test_what_the_hand_does_not_know_goes_to_autograd(energy):
    x = torch.randn(3, 2)
    for a, b in zip(energy_and_grad(energy, x), by_autograd(energy, x), strict=True):
        torch.testing.assert_close(a, b)


def test_spectral_normalisation_goes_to_autograd():
    """Its weight changes with each reading in training mode: by hand, forward and backward would use two."""
    energy = MLPEnergy(2, (4,))
    nn.utils.parametrizations.spectral_norm(energy.net[0])
    x = torch.randn(3, 2)
    energy(x)
    energy.eval()
    torch.testing.assert_close(energy_and_grad(energy, x)[1], by_autograd(energy, x)[1])
    assert type(energy.net[0]) is not nn.Linear


def test_confined_is_a_gaussian_when_the_energy_is_flat():
    energy = Confined(lambda x: torch.zeros(len(x), dtype=x.dtype), 2.0)
    low = torch.full((2,), -20.0, dtype=F64)
    assert quadrature(energy, low, -low, 200).value == pytest.approx(math.log(2 * math.pi * 4), abs=1e-10)


def test_confined_takes_states_without_coordinates():
    energy, x = Confined(lambda x: x**3, 2.0), torch.randn(5, dtype=F64)
    torch.testing.assert_close(energy(x), x**3 + x.square() / 8)
    torch.testing.assert_close(energy_and_grad(energy, x)[1], 3 * x.square() + x / 4)


def test_soft_steps_stand_at_quantiles_and_are_smooth():
    x = torch.linspace(0, 4, 41, dtype=F64)[:, None] * torch.tensor([1.0, -2.0], dtype=F64)
    steps = SoftSteps(x, 3, sharpness=5.0)
    torch.testing.assert_close(steps.places, torch.tensor([[1.0, -6.0], [2.0, -4.0], [3.0, -2.0]], dtype=F64))
    out = steps(torch.tensor([[2.0, -4.0], [9.0, 9.0]], dtype=F64))
    one = math.tanh(5.0)
    torch.testing.assert_close(out[0], torch.tensor([2, -4, one, math.tanh(10), 0, 0, -one, -math.tanh(10)], dtype=F64))
    torch.testing.assert_close(out[1], torch.tensor([9, 9, 1, 1, 1, 1, 1, 1], dtype=F64))
    assert torch.autograd.gradcheck(steps, torch.randn(4, 2, dtype=F64, requires_grad=True))
    with pytest.raises(ValueError, match="n_steps must be at least 1; got 0"):
        SoftSteps(x, 0)
    for bad in (x[:, :1], x[0], x[None]):
        with pytest.raises(ValueError, match=r"x must be \(batch, 2\); got \("):
            steps(bad)


@given(shape=st.tuples(*[st.integers(1, 9)] * 3), channels=st.lists(st.integers(1, 4), max_size=4))
def test_conv_shapes(shape, channels):
    energy = ConvEnergy(shape, channels)
    assert energy(torch.zeros(3, *shape)).shape == (3,)
    assert [layer.out_channels for layer in energy.net if isinstance(layer, nn.Conv2d)] == channels


def test_conv_is_smooth_and_sees_every_pixel():
    torch.manual_seed(0)
    energy = ConvEnergy((1, 28, 28), (8, 8)).double()
    x = torch.rand(2, 1, 28, 28, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    assert (grad != 0).all()
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert (second != 0).any(), "a gradient that is constant in pieces would have none"


def test_conv_errors_are_named():
    with pytest.raises(ValueError, match=r"got \(28, 28\), \(4,\)"):
        ConvEnergy((28, 28), (4,))
    with pytest.raises(ValueError, match=r"got \(1, 8, 8\), \(0,\)"):
        ConvEnergy((1, 8, 8), (0,))
    with pytest.raises(ValueError, match=r"\(batch, 1, 8, 8\); got \(5, 8, 8\)"):
        ConvEnergy((1, 8, 8), (4,))(torch.zeros(5, 8, 8))


def tenfold(module, *_):
    return module.register_forward_hook(lambda module, x, out: 10 * out)


def doubled(module, *_):
    return module.register_forward_pre_hook(lambda module, x: 2 * x[0])


def turned(module, *_):
    return module.register_full_backward_hook(lambda module, grad_in, grad_out: (-grad_in[0],))


def turned_before(module, *_):
    return module.register_full_backward_pre_hook(lambda module, grad_out: (-grad_out[0],))


def replaced(module, *_):
    old = module.forward
    module.forward = lambda x: 3 * old(x)


def pruned(energy, module):
    prune.l1_unstructured(energy.net[2], "weight", amount=0.5)


def old_weight_norm(energy, module):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(energy.net[2])
    with torch.no_grad():
        energy.net[2].weight_g.mul_(3)  # the plain weight is stale until a call


def orthogonal(energy, module):
    nn.utils.parametrizations.orthogonal(energy.net[2])


class Steep(nn.Linear):
    def forward(self, x):
        return 5 * super().forward(x)


class Residual(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x.sum(1, keepdim=True)


def steep(energy, module):
    energy.net[2] = Steep(4, 4).double()


def residual(energy, module):
    energy.net = Residual(*energy.net)


def batch_norm(energy, module):
    energy.net.insert(1, nn.BatchNorm1d(4).double())


def ends_in_silu(energy, module):
    energy.net.append(nn.SiLU())


def one_activation(energy, module):
    energy.net[3] = energy.net[1]


CHANGES = [pruned, old_weight_norm, orthogonal, steep, residual, batch_norm, ends_in_silu, one_activation]
HOOKED = [tenfold, doubled, turned, turned_before, replaced]


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize(
    ("change", "where"),
    [(change, "") for change in CHANGES]
    + [(change, where) for change in HOOKED for where in ("", "net", "net.2", "net.1")],
)
def test_what_changes_a_call_changes_the_gradient(change, where, confined):
    torch.manual_seed(0)
    inner = MLPEnergy(2, (4, 4)).double()
    energy = Confined(inner, 1.5) if confined else inner
    plain = copy.deepcopy(energy)
    x = torch.randn(5, 2, dtype=F64)
    if change in CHANGES:
        change(inner, inner)
    else:
        change(inner.get_submodule(where))
    expected = by_autograd(energy, x)
    torch.testing.assert_close(energy_and_grad(energy, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(energy.energy_and_grad(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected[0], energy(x).detach(), rtol=1e-12, atol=1e-12)
    if change not in (one_activation, orthogonal):
        assert not torch.allclose(expected[1], plain.energy_and_grad(x)[1]), "the change would not show"


@pytest.mark.parametrize("change", HOOKED)
def test_a_hook_on_the_bowl_around_an_energy_counts(change):
    energy, x = Confined(MLPEnergy(2, (4, 4)).double(), 1.5), torch.randn(5, 2, dtype=F64)
    change(energy)
    torch.testing.assert_close(energy.energy_and_grad(x), by_autograd(energy, x), rtol=1e-12, atol=1e-12)


def test_a_hook_on_all_modules_counts():
    energy, x = MLPEnergy(2, (4, 4)).double(), torch.randn(5, 2, dtype=F64)
    plain = energy.energy_and_grad(x)
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, out: 1.5 * out)
    try:
        changed = energy.energy_and_grad(x)
        torch.testing.assert_close(changed, by_autograd(energy, x), rtol=1e-12, atol=1e-12)
    finally:
        handle.remove()
    assert not torch.allclose(changed[0], plain[0])
    torch.testing.assert_close(energy.energy_and_grad(x), plain, rtol=0, atol=0)


class TwiceByHand(MLPEnergy):
    def forward(self, x):
        return 2 * super().forward(x)

    def energy_and_grad(self, x):
        e, grad = super().energy_and_grad(x)
        return 2 * e, 2 * grad


class WiderBowl(Confined):
    def forward(self, x):
        return self.energy(x)


@pytest.mark.parametrize(
    "energy",
    [
        TwiceByHand(2, (4,)),
        TwiceByHand(2, (4,), activation=nn.Tanh),
        WiderBowl(MLPEnergy(2, (4,)), 0.1),
        MLPEnergy(2, ()),
    ],
)
def test_a_subclass_has_the_gradient_of_its_own_call(energy):
    energy, x = copy.deepcopy(energy).double(), torch.randn(5, 2, dtype=F64)
    expected = by_autograd(energy, x)
    torch.testing.assert_close(energy_and_grad(energy, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(energy.energy_and_grad(x), expected, rtol=1e-12, atol=1e-12)


def test_dropout_while_training_goes_to_autograd():
    """Forward and backward must drop the same units: the energy of a positive sum is its own slope times x."""
    energy, x = MLPEnergy(1, (64,), activation=nn.ReLU, dropout=0.5).double(), torch.ones(1, 1, dtype=F64)
    for layer in (energy.net[0], energy.net[-1]):
        nn.init.zeros_(layer.bias)
    seen = [energy_and_grad(energy, x) for _ in range(20)]
    assert len({e.item() for e, _ in seen}) > 1, "nothing was dropped"
    for e, grad in seen:
        torch.testing.assert_close(grad[0, 0], e[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrap", [lambda energy: torch.compile(energy, backend="eager"), nn.DataParallel])
def test_wrapped_energies_keep_working(wrap):
    energy, x = MLPEnergy(2, (4,)).double(), torch.randn(3, 2, dtype=F64)
    wrapped = wrap(energy)
    torch.testing.assert_close(energy_and_grad(wrapped, x), energy.energy_and_grad(x), rtol=1e-12, atol=1e-12)
    bowl = Confined(wrapped, 2.0)
    torch.testing.assert_close(bowl.energy_and_grad(x), by_autograd(bowl, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("hidden", [(), (4,), (4, 4)])
@pytest.mark.parametrize("confined", [False, True])
def test_a_chain_of_ones_own_keeps_no_graph(hidden, confined):
    energy = MLPEnergy(2, hidden)
    energy = Confined(energy, 2.0) if confined else energy
    x = torch.randn(1, 2, requires_grad=True)
    start = {name: p.clone() for name, p in energy.named_parameters()}
    e, grad = energy.energy_and_grad(x)
    assert not (e.requires_grad or grad.requires_grad) and e.grad_fn is None and grad.grad_fn is None
    grad.mul_(0)
    assert all(torch.equal(p, start[name]) for name, p in energy.named_parameters()), "a gradient shared a weight"


def test_under_autocast_the_gradient_is_that_of_the_call():
    energy, x = MLPEnergy(2, (4, 4)), torch.randn(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e, grad = energy.energy_and_grad(x)
        torch.testing.assert_close((e, grad), by_autograd(energy, x), rtol=0, atol=0)
    assert grad.dtype == torch.float32


def test_a_bowl_may_learn_its_width():
    std = torch.tensor(1.5, dtype=F64, requires_grad=True)
    energy, x = Confined(MLPEnergy(2, (4,)).double(), std), torch.randn(5, 2, dtype=F64)
    torch.testing.assert_close(energy.energy_and_grad(x), by_autograd(energy, x), rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(energy(x).sum(), std)
    assert grad.item() == pytest.approx(-(x.square().sum() / 1.5**3).item(), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_several_energies_a_row_are_an_error_wherever_one_is_needed(n):
    x, classes = torch.randn(n, 2), MLPEnergy(2, (8,), n_out=3)
    message = rf"must return shape \({n},\), one value a row; got \({n}, 3\)"
    bowl = Confined(classes, 1.0)
    for energy, call in [
        (classes, score),
        (classes, evaluate),
        (classes, energy_and_grad),
        (bowl, score),
        (bowl, evaluate),
    ]:
        with pytest.raises(ValueError, match=message):
            call(energy, x)
    for call in (classes.energy_and_grad, bowl, bowl.energy_and_grad):
        with pytest.raises(ValueError, match=message):
            call(x)
    with pytest.raises(ValueError, match=rf"must return shape \({n},\), one value a row; got \(\)"):
        Confined(lambda x: x.sum(), 1.0)(x)


def test_empty_batches_have_empty_energies():
    x = torch.zeros(0, 2)
    for energy in (MLPEnergy(2, (4,)), MLPEnergy(2, ()), Confined(MLPEnergy(2, (4,)), 1.0)):
        e, grad = energy_and_grad(energy, x)
        assert e.shape == (0,) and grad.shape == (0, 2)


def test_soft_steps_name_bad_rows():
    x = torch.randn(6, 2)
    x[4, 1] = math.nan
    with pytest.raises(NotFinite, match="column 1 of row 4 is nan"):
        SoftSteps(x, 2)
    for bad in (torch.zeros(0, 2), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"at least one row; got \("):
            SoftSteps(bad, 2)
    for sharpness in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"sharpness positive; got {sharpness}"):
            SoftSteps(torch.randn(5, 2), 2, sharpness)
    with torch.device("meta"):
        assert SoftSteps(torch.randn(5, 2, device="cpu", dtype=F64), 2).places.device.type == "cpu"
