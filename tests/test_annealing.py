"""Annealed importance sampling where log Z is known: closed forms, quadrature, and machines summed over all states.

A few temperatures and few moves leave the chains far behind the path, where the mean of the weights is right only if
each is taken at its place. A z-score beyond 4.9 has chance 1e-6.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Independent, Normal

from ebmlib.annealing import (
    annealed_importance_sampling,
    bennett_acceptance_ratio,
    geometric_path,
    reverse_annealed_importance_sampling,
)
from ebmlib.energies import GaussianEnergy, NotFinite
from ebmlib.partition import importance_sampling, quadrature, weight_ess
from ebmlib.rbm import RBM, BlockGibbs, SingleFlip, State, exact_log_z
from ebmlib.rbm_exact import exact_samples
from ebmlib.samplers import HMC, MALA, Langevin

F64 = torch.float64
BETAS = [0.0, 0.1, 0.3, 0.6, 1.0]
N = 20_000


class Case(NamedTuple):
    """A path with a known end: the arguments, log Z, and exact draws of the energy."""

    arguments: tuple
    log_z: float
    draw: object
    options: dict = {}


def gaussian(kernel, offset=-2.0):
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=F64)
    energy = GaussianEnergy(torch.tensor([1.0, 0.5], dtype=F64), covariance, offset)
    base = GaussianEnergy(torch.zeros(2, dtype=F64), 1.2 * torch.eye(2, dtype=F64))
    return Case((energy, base, kernel, BETAS), energy.log_z.item(), lambda n: energy.sample((n,)))


def double_well(x):
    """Wells at 1.3 and -1.3, with a Gaussian's tails, without which one direction's weights have no variance."""
    return x[:, 0].square() / 2 + 3 * torch.exp(-x[:, 0].square()) + x[:, 0] / 2


def well(kernel):
    low, high = torch.full((1,), -9.0, dtype=F64), torch.full((1,), 9.0, dtype=F64)
    grid = torch.linspace(-9, 9, 20_001, dtype=F64)[:, None]  # steps far below the width of a well

    def draw(n):
        return grid[torch.multinomial(torch.exp(-double_well(grid)), n, replacement=True)]

    base = Independent(Normal(torch.zeros(1, dtype=F64), 1.2), 1)
    return Case((double_well, base, kernel, BETAS), quadrature(double_well, low, high, 400).value, draw)


def machine(kernel):
    g = torch.Generator().manual_seed(1)
    rbm = RBM.from_parameters(*(torch.randn(shape, generator=g, dtype=F64) for shape in ((6, 4), (6,), (4,))))
    logits = torch.linspace(-1, 1, 6, dtype=F64)
    path = (lambda beta: rbm.tempered(beta, logits)) if isinstance(kernel, BlockGibbs) else None
    base = Independent(Bernoulli(logits=logits), 1)
    return Case((rbm, base, kernel, BETAS), exact_log_z(rbm).item(), lambda n: exact_samples(rbm, n), {"path": path})


CASES = {
    "Gaussian by MALA": (gaussian, MALA(0.2)),
    "Gaussian by HMC": (gaussian, HMC(0.5, 3)),
    "double well by MALA": (well, MALA(0.1)),
    "machine by block Gibbs": (machine, BlockGibbs()),
    "machine by single flips": (machine, SingleFlip()),
}


def forward(case, n_chains, **options):
    return annealed_importance_sampling(*case.arguments, n_chains, **{**case.options, **options})


def backward(case, n_chains, **options):
    return reverse_annealed_importance_sampling(*case.arguments, case.draw(n_chains), **{**case.options, **options})


def z_of_mean(values, truth):
    return ((values.mean() - truth) / (values.std() / math.sqrt(len(values)))).item()


@pytest.fixture(scope="module", params=CASES)
def both(request):
    """A case, and chains of both directions for three seeds."""
    make, kernel = CASES[request.param]
    case, runs = make(kernel), []
    for seed in range(3):
        torch.manual_seed(seed)
        runs.append((forward(case, N), backward(case, N)))
    return case, runs


def test_mean_weights_are_z_and_one_over_z(both):
    """Six z-scores of each case, 30 in all: a false alarm has chance 3e-5."""
    case, runs = both
    for there, back in runs:
        for log_w, sign in ((there.log_w, 1), (back.log_w, -1)):
            assert log_w.shape == (N,) and log_w.dtype == F64
            z = z_of_mean((log_w - sign * case.log_z).exp(), 1)
            assert abs(z) < 4.9, f"z = {z:.1f}, direction {sign}"
            # weights that are all equal prove little, and of too heavy a tail the z-score says nothing
            assert 0.1 * N < weight_ess(log_w) < 0.9 * N, f"ESS {weight_ess(log_w):.0f}, direction {sign}"


def test_ends_stand_for_the_end_of_the_way(both):
    """Weighted means of the ends; up to six coordinates of two directions in five cases: a false alarm, 2e-5."""
    case, runs = both
    there, back = runs[0]
    base = case.arguments[1].sample((N,))
    for result, exact in ((there, case.draw(10 * N)), (back, base)):
        w = (result.log_w - result.log_w.max()).exp()[:, None]
        mean = (w * result.x).sum(0) / w.sum()
        variance = (w * (result.x - mean)).square().sum(0) / w.sum().square() + exact.var(0) / len(exact)
        z = (mean - exact.mean(0)) / variance.sqrt()
        assert z.abs().max() < 4.9, f"z = {z}"


def test_value_error_and_ess_are_those_of_the_weights(both):
    case, runs = both
    for result, sign in zip(runs[0], (1, -1), strict=True):
        w = result.log_w.exp()
        assert result.value == pytest.approx(sign * w.mean().log().item(), abs=1e-9)
        assert result.std_error == pytest.approx((w.std() / w.mean()).item() / math.sqrt(N), rel=1e-9)
        assert result.ess == pytest.approx(weight_ess(result.log_w), rel=1e-9)


def test_few_chains_bracket_the_truth_on_average(both):
    """Estimates of five chains each: forward too low and backward too high on average, by five standard errors."""
    case, runs = both
    for there, back in runs:
        low, high = (result.log_w.view(-1, 5).logsumexp(1) - math.log(5) for result in (there, back))
        assert z_of_mean(low, case.log_z) < -5
        assert z_of_mean(-high, case.log_z) > 5


def test_bennett_is_nearer_than_either_and_its_error_covers(both):
    """400 estimates of 50 chains a side: the mean is within .25, the mean square within 1 ± .35, but for 1e-6."""
    case, runs = both
    forwards, backwards = (log_w.view(-1, 50)[:400] for log_w in (runs[0][0].log_w, runs[0][1].log_w))
    estimates = [bennett_acceptance_ratio(w, v) for w, v in zip(forwards, backwards, strict=True)]
    error = torch.tensor([value for value, _ in estimates], dtype=F64) - case.log_z
    z = error / torch.tensor([std_error for _, std_error in estimates], dtype=F64)
    assert abs(z.mean()) < 0.25, z.mean()
    assert abs(z.square().mean() - 1) < 0.35, z.square().mean()
    either = [forwards.logsumexp(1) - math.log(50), math.log(50) - backwards.logsumexp(1)]
    rmse = [(value - case.log_z).square().mean().sqrt() for value in either]
    assert error.square().mean().sqrt() < 0.95 * min(rmse), f"{error.square().mean().sqrt()}, either {rmse}"


def test_standard_errors_are_honest_where_the_ess_is_large():
    """200 estimates of 200 chains; the mean is within .35, the mean square within 1 ± .5, but for 1e-6."""
    case = gaussian(HMC(0.5, 3))
    torch.manual_seed(3)
    for run, sign in ((forward, 1), (backward, -1)):
        repeats = [run(case, 200) for _ in range(200)]
        assert min(result.ess for result in repeats) > 20
        z = torch.tensor([(result.value - case.log_z) / result.std_error for result in repeats])
        assert abs(z.mean()) < 0.35, f"{z.mean()}, direction {sign}"
        assert abs(z.square().mean() - 1) < 0.5, f"{z.square().mean()}, direction {sign}"


def test_a_kernel_that_is_not_exact_adds_a_bias():
    """At β = 0.6 ULA with steps of 0.5 widens what it draws: the mean weight is no longer Z."""
    case = gaussian(Langevin(0.5))
    torch.manual_seed(0)
    z = [z_of_mean((forward(case, N, n_steps=5).log_w - case.log_z).exp(), 1) for _ in range(3)]
    assert min(map(abs, z)) > 10, z


def test_more_temperatures_and_more_moves_bring_the_ess_up():
    energy, base, kernel, _ = gaussian(MALA(0.2)).arguments
    torch.manual_seed(0)
    few, many, moved = (
        annealed_importance_sampling(energy, base, kernel, torch.linspace(0, 1, n + 1), 2_000, n_steps=steps).ess
        for n, steps in ((4, 1), (64, 1), (4, 16))
    )
    assert few < 1_000 < min(many, moved), (few, many, moved)  # 700, 1650 and 1350, within 30 or so


def test_without_a_temperature_between_it_is_importance_sampling():
    energy, base, kernel, _ = gaussian(MALA(0.2)).arguments
    torch.manual_seed(0)
    estimate = importance_sampling(energy, base, 500)
    torch.manual_seed(0)
    result = annealed_importance_sampling(energy, base, kernel, [0, 1], 500)
    assert result[:3] == pytest.approx(estimate, rel=1e-12)


class Recorder:
    """A kernel that moves each chain up by one, and notes the energies at 0 that it meets."""

    def __init__(self, carries):
        self.carries, self.inits, self.steps = carries, [], []

    def at(self, energy, x):
        return State(x, energy(x) if self.carries else None)

    def init(self, energy, x):
        self.inits.append(energy(torch.zeros(1, 1)).item())
        return self.at(energy, x)

    def step(self, energy, state, generator):
        self.steps.append(energy(torch.zeros(1, 1)).item())
        return self.at(energy, state.x + 1), torch.ones(len(state.x))


@pytest.mark.parametrize("carries", [True, False])
def test_moves_are_made_at_each_temperature_in_turn(carries):
    """E_β(x) = 100β + βx² by a kernel that is no sampler: the weights are a sum by hand, also of constants."""
    base = Independent(Normal(torch.zeros(1), 1e-9), 1)
    path = lambda beta: lambda x: 100 * beta + beta * x[:, 0].square()  # noqa: E731
    kernel = Recorder(carries)
    result = annealed_importance_sampling(path(1), base, kernel, [0, 0.25, 0.5, 1], 2, 3, path)
    assert kernel.steps == [25, 25, 25, 50, 50, 50]
    assert kernel.inits == ([25, 50] if carries else [25]), "what a state carries is of its β"
    assert result.x.tolist() == [[6], [6]]
    start = result.log_w - (0.25 * 9 + 0.5 * (36 - 9) - (100 + 36))  # is -log q at the start, of either chain
    assert (start + 20).abs().max() < 25, "log q(0) = 19.8"
    kernel = Recorder(carries)
    result = reverse_annealed_importance_sampling(path(1), base, kernel, [0, 0.25, 0.5, 1], torch.zeros(2, 1), 3, path)
    assert kernel.steps == [50, 50, 50, 25, 25, 25]
    assert result.x.tolist() == [[6], [6]]


def test_a_constant_in_the_energy_moves_the_value_alone():
    """One so large that the weights themselves would underflow."""
    results = []
    for offset in (-2.0, 4_998.0):
        case = gaussian(MALA(0.2), offset)
        torch.manual_seed(0)
        results.append((forward(case, 100), backward(case, 100)))
    for plain, shifted in zip(*results, strict=True):
        assert shifted.value == pytest.approx(plain.value - 5_000, abs=1e-9)
        assert shifted.std_error == pytest.approx(plain.std_error, rel=1e-8)
        torch.testing.assert_close(shifted.x, plain.x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("run", [forward, backward])
def test_constants_of_the_path_are_nothing(run):
    case, results = gaussian(MALA(0.2)), []
    geometric = geometric_path(*case.arguments[:2])
    for path in (None, geometric, lambda beta: lambda x: geometric(beta)(x) + 1_000 * math.sin(9 * beta)):
        torch.manual_seed(0)
        results.append(run(case, 50, path=path).log_w)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-9)


def test_the_geometric_path_goes_from_the_base_to_the_energy():
    energy, base, *_ = gaussian(None).arguments
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    path = geometric_path(energy, base)
    torch.testing.assert_close(path(0)(x), -base.log_prob(x))
    torch.testing.assert_close(path(1)(x), energy(x))
    torch.testing.assert_close(path(0.25)(x), 0.25 * energy(x) - 0.75 * base.log_prob(x))


def test_draws_come_from_the_generator_and_the_base_from_the_global_one():
    case = gaussian(MALA(0.2))

    def run(seed, seed_of_moves):
        torch.manual_seed(seed)
        return forward(case, 20, generator=torch.Generator().manual_seed(seed_of_moves))

    first, state = run(0, 1), torch.get_rng_state()
    again, other = run(0, 1), run(0, 2)
    assert first[:3] == again[:3] and torch.equal(first.x, again.x) and torch.equal(first.log_w, again.log_w)
    assert not torch.equal(first.x, other.x)
    torch.manual_seed(0)
    case.arguments[1].sample((20,))
    assert torch.equal(torch.get_rng_state(), state), "a move drew from the global generator"
    x_model = case.draw(20)
    back = [
        reverse_annealed_importance_sampling(*case.arguments, x_model, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(back[0].log_w, back[1].log_w) and not torch.equal(back[0].log_w, back[2].log_w)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_states_keep_their_dtype_and_device(dtype):
    energy = GaussianEnergy(torch.ones(2, dtype=dtype), torch.eye(2, dtype=dtype))
    base = GaussianEnergy(torch.zeros(2, dtype=dtype), 2 * torch.eye(2, dtype=dtype))
    x_model, arguments = energy.sample((50,)), (energy, base, MALA(0.2), torch.linspace(0, 1, 5, device="cpu"))
    start = base.sample((50,))
    base.sample = lambda shape: start  # its own draw would be made on the default device
    torch.set_default_device("meta")
    try:
        results = (
            annealed_importance_sampling(*arguments, 50),
            reverse_annealed_importance_sampling(*arguments, x_model),
        )
    finally:
        torch.set_default_device(None)
    for result in results:
        assert result.x.dtype == dtype and result.log_w.dtype == F64
        assert result.x.device == result.log_w.device == torch.device("cpu")


def test_no_gradient_is_recorded_and_starts_are_left_as_they_were():
    mean = torch.ones(2, dtype=F64, requires_grad=True)
    energy = lambda x: (x - mean).square().sum(1)  # noqa: E731
    base = Independent(Normal(torch.zeros(2, dtype=F64, requires_grad=True), 1.0), 1)
    x_model = torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = x_model.detach().clone()
    for result in (
        annealed_importance_sampling(energy, base, MALA(0.2), BETAS, 20),
        reverse_annealed_importance_sampling(energy, base, MALA(0.2), BETAS, x_model),
    ):
        assert not result.log_w.requires_grad and not result.x.requires_grad
    assert mean.grad is None and x_model.grad is None and base.base_dist.loc.grad is None
    assert torch.equal(x_model, before)
    bits, base = torch.ones(4, 1, dtype=F64), Independent(Bernoulli(torch.full((1,), 0.5, dtype=F64)), 1)
    for betas in ([0, 1], BETAS):
        reverse_annealed_importance_sampling(lambda x: x[:, 0], base, SingleFlip(), betas, bits)
        assert torch.equal(bits, torch.ones_like(bits)), "an energy may return a view of the states"


@pytest.mark.parametrize(
    "betas", [[], [0], [1], [0, 0.5], [0.1, 1], [0, 0.5, 0.5, 1], [0, 0.7, 0.3, 1], [1, 0], [0, math.nan, 1]]
)
def test_temperatures_that_do_not_rise_from_0_to_1_are_named(betas):
    energy, base, kernel, _ = gaussian(MALA(0.2)).arguments
    for run in (
        lambda: annealed_importance_sampling(energy, base, kernel, betas, 5),
        lambda: reverse_annealed_importance_sampling(energy, base, kernel, betas, torch.zeros(5, 2, dtype=F64)),
    ):
        with pytest.raises(ValueError, match="betas must rise from 0 to 1; got ") as caught:
            run()
        assert str(betas) in str(caught.value)


def test_bad_input_is_named():
    case = gaussian(MALA(0.2))
    energy, base, kernel, betas = case.arguments
    with pytest.raises(ValueError, match="n_chains must be at least 2, for an error; got 1"):
        forward(case, 1)
    with pytest.raises(ValueError, match=r"2 rows at least, for an error; got shape \(1, 2\)"):
        backward(case, 1)
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        reverse_annealed_importance_sampling(energy, base, kernel, betas, torch.tensor(1.0))
    for run in (forward, backward):
        with pytest.raises(ValueError, match="n_steps must be at least 1; got 0"):
            run(case, 5, n_steps=0)
    bits = machine(BlockGibbs())
    with pytest.raises(ValueError, match="binary"):
        reverse_annealed_importance_sampling(*bits.arguments, torch.full((5, 6), 0.5, dtype=F64), **bits.options)
    column = lambda x: x.square()  # noqa: E731
    with pytest.raises(ValueError, match="one value a row"):
        annealed_importance_sampling(column, base, kernel, betas, 5)
    with pytest.raises(ValueError, match="one value a row"):
        geometric_path(column, base)(0.5)(torch.zeros(5, 2, dtype=F64))
    each = Normal(torch.zeros(2, dtype=F64), 1.0)  # not Independent
    for call in (
        lambda: annealed_importance_sampling(energy, each, kernel, betas, 2),
        lambda: reverse_annealed_importance_sampling(energy, each, kernel, betas, each.sample((2,))),
        lambda: geometric_path(energy, each)(0.5)(each.sample((2,))),
    ):
        with pytest.raises(ValueError, match=r"the base must return shape \(2,\), .*; got \(2, 2\)"):
            call()
    with pytest.raises(ValueError, match="one value a row"):
        forward(bits._replace(options={"path": lambda beta: Column(beta)}), 5)


class Column(RBM):
    def __init__(self, beta):
        super().__init__(6, 4)
        self.double()

    def forward(self, x):
        return super().forward(x)[:, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kernel", [SingleFlip(), BlockGibbs()])
def test_energies_that_are_not_finite_are_named(kernel, bad):
    """At the end of the path, and on the way, where a kernel may pass over an energy that it does not carry."""
    case = machine(kernel)
    rbm, base, _, betas = case.arguments

    class Broken(RBM):
        def forward(self, x):
            return super().forward(x).index_fill(0, torch.tensor([1]), bad)

    broken = Broken.from_parameters(rbm.weight, rbm.visible_bias, rbm.hidden_bias)
    x_model = case.draw(5)
    with pytest.raises(NotFinite, match=f"row 1 of 5 is {bad}"):
        reverse_annealed_importance_sampling(broken, base, kernel, betas, x_model, **case.options)
    with pytest.raises(NotFinite, match=f"of 5 is {bad}"):
        annealed_importance_sampling(broken, base, kernel, betas, 5, **case.options)
    on_the_way = lambda beta: broken  # noqa: E731
    for run in (
        lambda: annealed_importance_sampling(rbm, base, kernel, betas, 5, path=on_the_way),
        lambda: reverse_annealed_importance_sampling(rbm, base, kernel, betas, x_model, path=on_the_way),
    ):
        with pytest.raises(NotFinite, match="1 of 5 "):
            run()


numbers = st.lists(st.floats(-10, 10), min_size=2, max_size=20).map(lambda values: torch.tensor(values, dtype=F64))


@given(w=numbers, v=numbers, shift=st.floats(-1e3, 1e3))
def test_bennett_solves_its_equation_and_moves_with_a_constant(w, v, shift):
    log_z, std_error = bennett_acceptance_ratio(w, v)
    c = math.log(len(w) / len(v))
    left, right = torch.sigmoid(w - log_z - c).sum(), torch.sigmoid(v + log_z + c).sum()
    assert left == pytest.approx(right.item(), rel=1e-9)
    assert std_error >= 0 and math.isfinite(std_error)
    moved = bennett_acceptance_ratio(w + shift, v - shift)
    fixed = 1e-6  # rounding, of the shift too, over the slope at the root, which weights of 10 nats make e^-10
    assert moved == pytest.approx((log_z + shift, std_error), rel=1e-6, abs=fixed)
    assert bennett_acceptance_ratio(v, w) == pytest.approx((-log_z, std_error), rel=1e-6, abs=fixed)


def test_bennett_of_weights_that_agree_is_exact():
    """Also where unequal numbers would tilt it, and where exp overflows."""
    for value in (-3.0, 0.0, 5e4):
        log_z, std_error = bennett_acceptance_ratio(torch.full((7,), value), torch.full((100,), -value))
        assert log_z == pytest.approx(value, abs=1e-9) and std_error == pytest.approx(0, abs=1e-9)


def test_bennett_of_unequal_numbers_has_the_error_that_it_claims():
    """Gaussian log weights that satisfy the identity, w ~ N(log Z - ½s², s²) and v ~ N(-log Z - ½s², s²), s = 2."""
    g = torch.Generator().manual_seed(0)
    w, v = (2 * torch.randn(400, n, generator=g, dtype=F64) - 2 + sign * 7 for n, sign in ((40, 1), (400, -1)))
    z = torch.tensor([(value - 7) / e for value, e in map(bennett_acceptance_ratio, w, v)])
    # as above, the mean of 400 and their mean square but for 1e-6; 40 draws skew the error a little
    assert abs(z.mean()) < 0.25, z.mean()
    assert abs(z.square().mean() - 1) < 0.4, z.square().mean()


@pytest.mark.parametrize("bad", [[1.0], [math.nan, 0.0], [math.inf, 0.0], [-math.inf, 0.0], [[0.0, 1.0]]])
def test_weights_that_bennett_cannot_take_are_named(bad):
    good = torch.zeros(3)
    for pair in ((torch.tensor(bad), good), (good, torch.tensor(bad))):
        with pytest.raises(ValueError, match=r"must be \(n,\), two at least and all finite; got tensor"):
            bennett_acceptance_ratio(*pair)
