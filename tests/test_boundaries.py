"""What every public function and class makes of inputs at the edge: a table, made complete by the names of ebmlib.

`boundaries.txt` has a row a name and a column a kind of input, given in place of the usual six float32 rows:

    same      the value for the usual rows, with the input's dtype
    graph     the same, and it carries the gradient of an input that requires one; without a graph it is "same"
    drawn     random: of the right dtype, and finite; the module's own tests judge the values
    some      finite, and rightly another value: of integers, or of one row where a value belongs to all
    none      empty, as the input is
    row       NaN for the NaN row alone, and the other rows as they were
    Error     the error's name; `dtype` is torch's own error, where it refuses or lacks a dtype and says so
    -         no such input

A new public name fails here until it has its case and its row. `python tests/test_boundaries.py` prints what is.
"""

import dis
import importlib
import inspect
import pkgutil
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import ebmlib
from ebmlib import (
    annealing,
    buffer,
    checkpoint,
    conditional,
    datasets,
    density,
    diagnostics,
    discrete,
    energies,
    fitting,
    images,
    ising,
    lattice_widget,
    losses,
    networks,
    ood,
    partition,
    paths,
    plotting,
    rbm,
    rbm_exact,
    rbm_training,
    samplers,
    score_matching,
    tilted,
    toys,
    training,
    tuning,
    two_sample,
    widget,
)

mpl.use("Agg")
TABLE = Path(__file__).with_name("boundaries.txt")
COLUMNS = "empty one nan integer float64 float16 gradient strided column".split()
# How torch says that it refuses a dtype, or mixed ones, or does not implement one.
REFUSED = r"not implemented for|[Ll]ow precision dtypes|dtype|data type|scalar type|floating point|Input type"
OURS = {"ValueError", "NotFinite", "TypeError", "Divergence"}
# Without an input that has rows.
WITHOUT_ROWS = {
    *"annealing.Kernel discrete.binary_states ising.Torus ising.kaufman_log_z ising.transfer_matrix".split(),
    *"checkpoint.Stateful energies.Distribution samplers.Kernel energies.NotFinite training.Divergence".split(),
    *"datasets.wine_quality datasets.digits datasets.kfold datasets.Split".split(),
    *"notebook.setup notebook.progress notebook.glue notebook.benchmark_results plotting.use_style".split(),
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def rows(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float()


def gaussian(x: Tensor) -> energies.GaussianEnergy:
    x = rows(x)
    return energies.GaussianEnergy(x.new_zeros(2), torch.eye(2, dtype=x.dtype))


def quadratic(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


def live_lattice(values: Tensor) -> Any:
    return lattice_widget.ising_lattice(3, [1.0, 2.0], {"abs_magnetisation": values})


def seeded(module: Callable[[], torch.nn.Module], x: Tensor) -> torch.nn.Module:
    torch.manual_seed(0)
    return module().to(rows(x).dtype)


def network(x: Tensor) -> torch.nn.Module:
    return seeded(lambda: networks.MLPEnergy(2, (4,)), x)


def machine(x: Tensor) -> rbm.RBM:
    return seeded(lambda: rbm.RBM(2, 3), x)


def machine_of(x: Tensor) -> rbm.RBM:
    return rbm.RBM.from_parameters(rows(x), rows(x)[:, 0], rows(x).new_zeros(2))


def torus() -> ising.IsingEnergy:
    return ising.IsingEnergy(4, 4, 0.4)


def lattice(x: Tensor) -> Tensor:
    return x.repeat(1, 8)


def drawn_ax(draw: Callable[[Any], Any]) -> float:
    figure, ax = plt.subplots()
    try:
        draw(ax)
        figure.canvas.draw()
    finally:
        plt.close(figure)
    return 1.0


def kernel_cases(kernel: Any) -> Callable[[Tensor, Any], Any]:
    return lambda x, e: kernel.step(e, kernel.init(e, x), generator())[0].x


def per_class(x: Tensor, e: Any) -> Callable[[Tensor], Tensor]:
    """Energies of x with each of two classes; where an energy returns a column, of no class at all."""
    return lambda v: torch.stack([e(v), 2 * e(v)], 1)


def conditional_grid(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 5, dtype=x.dtype) if x.is_floating_point() else torch.arange(5)


def trained(x: Tensor, e: Any) -> float:
    parameter = torch.nn.Parameter(rows(x).new_zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    training.train(lambda batch: (batch - parameter).square().mean(), optimizer, iter([x, x]), 2)
    return parameter.detach()


def one_epoch(x: Tensor, e: Any) -> Tensor:
    batches = training.minibatches(x, len(x), generator())
    return next(batches)[batches.order.argsort()]


def checkpointed(x: Tensor, e: Any) -> Tensor:
    states = buffer.ReplayBuffer(x, fresh=lambda n: x[:n])
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_checkpoint(f"{folder}/c", {"states": states})
        states.x = states.x + 1
        checkpoint.load_checkpoint(f"{folder}/c", {"states": states})
    return states.x


def fitted(x: Tensor, e: Any) -> float:
    energy = tilted.TiltedEnergy(gaussian(x), network(x))
    return fitting.fit_tilt(energy, x, x, n_steps=2, batch_size=1, n_noise=8).score


class Base(torch.nn.Module):
    """The least normalising flow: called, it returns a distribution."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.mean = torch.nn.Parameter(rows(x).new_zeros(2))

    def forward(self) -> Any:
        return energies.GaussianEnergy(self.mean, torch.eye(2, dtype=self.mean.dtype))


def annealed(x: Tensor, e: Any) -> tuple[Tensor, Tensor]:
    """What the chains forward give; they start at draws of their own."""
    return annealing.annealed_importance_sampling(e, gaussian(x), samplers.MALA(0.1), [0, 0.5, 1], 8)[3:]


def annealed_back(x: Tensor, e: Any) -> tuple[Tensor, Tensor]:
    return annealing.reverse_annealed_importance_sampling(e, gaussian(x), samplers.MALA(0.1), [0, 0.5, 1], x)[3:]


CASES: dict[str, Callable[[Tensor, Any], Any]] = {
    "annealing.Annealed": annealed,
    "annealing.annealed_importance_sampling": annealed,
    "annealing.reverse_annealed_importance_sampling": annealed_back,
    "annealing.bennett_acceptance_ratio": lambda x, e: annealing.bennett_acceptance_ratio(x[:, 0], -x[:, 1]),
    "annealing.geometric_path": lambda x, e: annealing.geometric_path(e, gaussian(x))(0.3)(x),
    "buffer.ReplayBuffer": lambda x, e: buffer.ReplayBuffer(x, fresh=lambda n: x[:n]).x,
    "checkpoint.save_checkpoint": checkpointed,
    "checkpoint.load_checkpoint": checkpointed,
    "conditional.marginal": lambda x, e: conditional.marginal(per_class(x, e))(x),
    "conditional.held": lambda x, e: energies.evaluate(conditional.held(e, x, torch.tensor([False, True])), x),
    "conditional.conditional_log_prob": lambda x, e: conditional.conditional_log_prob(e, x, 1, conditional_grid(x)),
    "conditional.grid_quantiles": lambda x, e: conditional.grid_quantiles(conditional_grid(x)[:2], x, [0.5]),
    "datasets.LogStandardize": lambda x, e: datasets.LogStandardize(x).forward(x),
    "datasets.mixture": lambda x, e: datasets.mixture(x, 1).log_prob(x),
    "density.Whitened": lambda x, e: density.Whitened(x)(x),
    "density.KernelDensity": lambda x, e: density.KernelDensity(x, 0.5).log_prob(x),
    "density.best_bandwidth": lambda x, e: density.best_bandwidth(x, x + 0.3),
    "diagnostics.Summary": lambda x, e: diagnostics.summarize(x[:, :, None]),
    "diagnostics.summarize": lambda x, e: diagnostics.summarize(x[:, :, None]).mean,
    "diagnostics.Check": lambda x, e: diagnostics.energy_gap(e, x, x.flip(0)),
    "diagnostics.Checklist": lambda x, e: diagnostics.checklist(e, x[:, :, None]).stein,
    "diagnostics.checklist": lambda x, e: diagnostics.checklist(e, x[:, :, None]).stein,
    "diagnostics.stein_check": lambda x, e: diagnostics.stein_check(e, x[:, :, None]),
    "diagnostics.energy_gap": lambda x, e: diagnostics.energy_gap(e, x, x.flip(0)),
    "partition.pareto_k": lambda x, e: partition.pareto_k(x.repeat(40, 1)[:, 0] + torch.arange(40 * len(x)) / 1000),
    "partition.weight_ess": lambda x, e: partition.weight_ess(x[:, 0]),
    "energies.evaluate": lambda x, e: energies.evaluate(e, x),
    "energies.energy_and_grad": lambda x, e: energies.energy_and_grad(e, x),
    "energies.by_hand": lambda x, e: energies.by_hand(lambda _, v: (v.square().sum(1) / 2, v))(e, x),
    "energies.one_a_row": lambda x, e: energies.one_a_row(e(x), x),
    "energies.by_autograd": lambda x, e: energies.by_autograd(e, x),
    "energies.score": lambda x, e: energies.score(e, x),
    "discrete.DiscreteLangevin": kernel_cases(discrete.DiscreteLangevin(1.0)),
    "discrete.Gibbs": kernel_cases(discrete.Gibbs()),
    "discrete.InformedFlip": kernel_cases(discrete.InformedFlip()),
    "discrete.State": lambda x, e: discrete.Gibbs().init(e, x).x,
    "discrete.flip_changes": lambda x, e: discrete.flip_changes(e, x),
    "discrete.pseudo_likelihood": lambda x, e: discrete.pseudo_likelihood(e, x),
    "discrete.ratio_matching": lambda x, e: discrete.ratio_matching(e, x),
    "discrete.taylor_changes": lambda x, e: discrete.taylor_changes(e, x),
    "energies.GaussianEnergy": lambda x, e: gaussian(x).log_prob(x),
    "energies.GaussianMixtureEnergy": lambda x, e: energies.GaussianMixtureEnergy(
        rows(x).new_tensor([[0.0, 0.0], [1.0, 1.0]]), 1.0
    ).log_prob(x),
    "fitting.train_to_best": fitted,
    "fitting.Fit": fitted,
    "fitting.fit_tilt": fitted,
    "fitting.fit_flow": lambda x, e: fitting.fit_flow(Base(x), x.repeat(40, 1), x, n_steps=2).log_prob(x),
    "images.LogitPixels": lambda x, e: (images.LogitPixels(17).pixels(x), images.LogitPixels(17).log_det(x)),
    "lattice_widget.ising_lattice": lambda x, e: (live_lattice(x[0]), 1.0)[1],
    "losses.nce_from_logits": lambda x, e: losses.nce_from_logits(x[:, 0], x[:, 1], 1.0),
    "losses.noise_contrastive": lambda x, e: losses.noise_contrastive(e, torch.zeros(()), x, x.flip(1), gaussian(x)),
    "ising.Checkerboard": lambda x, e: samplers.run(ising.Checkerboard(), torus(), lattice(x), 2, generator()),
    "ising.IsingEnergy": lambda x, e: torus()(lattice(x)),
    "ising.State": lambda x, e: ising.Checkerboard().init(torus(), lattice(x)).x,
    "ising.SwendsenWang": lambda x, e: samplers.run(ising.SwendsenWang(), torus(), lattice(x), 2, generator()),
    "losses.conditional_noise_contrastive": lambda x, e: losses.conditional_noise_contrastive(
        e, x, 0.1, generator=generator()
    ),
    "losses.contrastive_divergence": lambda x, e: losses.contrastive_divergence(e, x, x.flip(1)),
    "losses.energy_penalty": lambda x, e: losses.energy_penalty(e, x, x.flip(1)),
    "networks.MLPEnergy": lambda x, e: network(x)(x),
    "networks.SoftSteps": lambda x, e: networks.SoftSteps(x, 3).places,
    "networks.Confined": lambda x, e: energies.evaluate(networks.Confined(e, 1.0), x),
    "networks.ConvEnergy": lambda x, e: seeded(lambda: networks.ConvEnergy((1, 1, 2), (2,)), x)(x[:, None, None]),
    "ood.conformal_threshold": lambda x, e: ood.conformal_threshold(x[:, 0], 0.5),
    "ood.two_sided": lambda x, e: ood.two_sided(x[:, 0], 0.7),
    "ood.evaluate_ood": lambda x, e: ood.evaluate_ood(x[:, 0], x[:, 1], 40)[:3],
    "ood.OODReport": lambda x, e: ood.evaluate_ood(x[:, 0], x[:, 1], 40)[:3],
    "partition.quadrature": lambda x, e: partition.quadrature(e, x[0], x[0] + 1, 8),
    "partition.enumeration": lambda x, e: partition.enumeration(e, 2, dtype=x.dtype),
    "partition.importance_sampling": lambda x, e: partition.importance_sampling(e, gaussian(x), 8).ess,
    "partition.LogZ": lambda x, e: partition.quadrature(e, x[0], x[0] + 1, 8),
    "paths.straight_path": lambda x, e: paths.straight_path(x[0], x[-1], 5),
    "paths.respaced": lambda x, e: paths.respaced(x),
    "paths.relaxed_path": lambda x, e: paths.relaxed_path(e, x, 2, 0.01),
    "paths.across": lambda x, e: paths.across(e, x),
    "paths.hessian": lambda x, e: paths.hessian(e, x[0]),
    "paths.stationary_point": lambda x, e: paths.stationary_point(e, x[0], tolerance=1e-3).energy,
    "paths.StationaryPoint": lambda x, e: paths.stationary_point(e, x[0], tolerance=1e-3).x,
    "plotting.energy_contours": lambda x, e: drawn_ax(
        lambda ax: plotting.energy_contours(e, x[0], x[0] + 1, ax, n_points=4)
    ),
    "plotting.energy_histogram": lambda x, e: drawn_ax(lambda ax: plotting.energy_histogram({"data": x[:, 0]}, ax)),
    "plotting.image_grid": lambda x, e: drawn_ax(lambda ax: plotting.image_grid(x[:, None], ax)),
    "plotting.trajectories": lambda x, e: drawn_ax(lambda ax: plotting.trajectories(x[:, None], ax)),
    "plotting.embedding": lambda x, e: drawn_ax(lambda ax: plotting.embedding({"data": x}, Plane(), ax)),
    "rbm.RBM": lambda x, e: machine(x)(x),
    "rbm.State": lambda x, e: rbm.SingleFlip().init(e, x).x,
    "rbm.check_binary": lambda x, e: (rbm.check_binary(x, 2), x)[1],
    "rbm.sample_bits": lambda x, e: rbm.sample_bits(x, generator()),
    "rbm.BlockGibbs": lambda x, e: samplers.run(rbm.BlockGibbs(), machine(x), x, 2, generator()),
    "rbm.SingleFlip": lambda x, e: samplers.run(rbm.SingleFlip(), e, x, 2, generator()),
    "rbm.exact_log_z": lambda x, e: rbm.exact_log_z(machine_of(x)),
    "rbm_exact.transposed": lambda x, e: rbm.exact_log_z(rbm_exact.transposed(machine_of(x))),
    "rbm_exact.exact_samples": lambda x, e: rbm_exact.exact_samples(machine_of(x), 5, generator()),
    "rbm_training.contrastive_epoch": lambda x, e: rbm_training.contrastive_epoch(
        machine(x), x, 0.1, generator=generator()
    ),
    "samplers.State": lambda x, e: samplers.MALA(0.1).init(e, x),
    "samplers.Chains": lambda x, e: samplers.trace(samplers.MALA(0.1), e, x, 2, generator=generator()).x,
    "samplers.Langevin": lambda x, e: samplers.run(samplers.Langevin(0.1), e, x, 2, generator()),
    "samplers.MALA": lambda x, e: samplers.run(samplers.MALA(0.1), e, x, 2, generator()),
    "samplers.HMC": lambda x, e: samplers.run(samplers.HMC(0.1, 2), e, x, 2, generator()),
    "samplers.run": lambda x, e: samplers.run(samplers.Langevin(0.1, 0.0), e, x, 2),
    "samplers.trace": lambda x, e: samplers.trace(samplers.Langevin(0.1, 0.0), e, x, 2).x[1],
    "samplers.leapfrog": lambda x, e: samplers.leapfrog(e, x, x, x, 0.1, 2),
    "score_matching.exact_score_matching": lambda x, e: score_matching.exact_score_matching(e, x),
    "score_matching.sliced_score_matching": lambda x, e: score_matching.sliced_score_matching(e, x, 1, generator()),
    "score_matching.denoising_score_matching": lambda x, e: score_matching.denoising_score_matching(
        e, x, 0.3, generator()
    ),
    "tilted.TiltedEnergy": lambda x, e: tilted.TiltedEnergy(gaussian(x), e)(x),
    "toys.Toy": lambda x, e: toys.rings().log_prob(x),
    "toys.eight_gaussians": lambda x, e: toys.eight_gaussians().log_prob(x),
    "toys.rings": lambda x, e: toys.rings().log_prob(x),
    "toys.two_moons": lambda x, e: toys.two_moons().log_prob(x),
    "toys.checkerboard": lambda x, e: toys.checkerboard().log_prob(x),
    "training.minibatches": one_epoch,
    "training.train": trained,
    "tuning.tune": lambda x, e: tuning.tune(samplers.HMC(1.0, 2), e, x, 0.7, 20, generator()).step_size,
    "two_sample.neighbour_test": lambda x, e: two_sample.neighbour_test(x, x + 0.3, 1, 2, generator()).share,
    "two_sample.NeighbourTest": lambda x, e: two_sample.neighbour_test(x, x + 0.3, 1, 2, generator()).share,
    "widget.landscape": lambda x, e: (widget.landscape(gaussian(x), x[0], x[0] + 1), 1.0)[1],
    "widget.Html": lambda x, e: (widget.landscape(gaussian(x), x[0], x[0] + 1), 1.0)[1],
}
RANDOM = {
    *"annealing.Annealed annealing.annealed_importance_sampling".split(),
    *"annealing.reverse_annealed_importance_sampling".split(),
    *"discrete.Gibbs discrete.InformedFlip discrete.DiscreteLangevin ising.Checkerboard ising.SwendsenWang".split(),
    *"fitting.Fit fitting.train_to_best fitting.fit_tilt fitting.fit_flow losses.conditional_noise_contrastive".split(),
    *"partition.importance_sampling rbm.BlockGibbs rbm.SingleFlip rbm.sample_bits".split(),
    *"rbm_exact.exact_samples rbm_training.contrastive_epoch".split(),
    *"score_matching.sliced_score_matching score_matching.denoising_score_matching".split(),
    *"tuning.tune samplers.Chains samplers.Langevin samplers.MALA samplers.HMC".split(),
}
BINARY = {
    *"discrete.Gibbs discrete.InformedFlip discrete.DiscreteLangevin discrete.State discrete.flip_changes".split(),
    *"discrete.pseudo_likelihood discrete.ratio_matching discrete.taylor_changes".split(),
    *"ising.Checkerboard ising.IsingEnergy ising.State ising.SwendsenWang".split(),
    *"rbm.RBM rbm.State rbm.check_binary rbm.sample_bits rbm.BlockGibbs rbm.SingleFlip".split(),
    *"rbm_training.contrastive_epoch partition.enumeration".split(),
}
WITHOUT_ENERGY = {name for name, case in CASES.items() if all(i.argval != "e" for i in dis.get_instructions(case))}
OF_NO_ROW = {  # they make their own
    *"annealing.Annealed annealing.annealed_importance_sampling".split(),
    *"partition.enumeration partition.importance_sampling".split(),
}
OF_ONE_ROW = {name for name, case in CASES.items() if "x[0]" in inspect.getsource(case)}  # there is none


class Plane:
    def fit_transform(self, x: Any) -> Any:
        return x


def inputs(name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the usual rows and each other kind of input."""
    x = torch.tensor([[0.3, 0.9], [0.1, 0.2], [0.5, 0.4], [0.8, 0.7], [0.2, 0.6], [0.7, 0.1]])
    x = x.round() if name in BINARY else x
    lost = x.clone()
    lost[0, 0] = torch.nan
    yield "usual", x
    yield "empty", x[:0]
    yield "one", x[:1]
    yield "nan", lost
    yield "integer", (4 * x).long() if name not in BINARY else x.long()
    yield "float64", x.double()
    yield "float16", x.half()
    yield "gradient", x.clone().requires_grad_()
    yield "strided", x.T.contiguous().T
    yield "column", x


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in tensors(part)]
    return [value if isinstance(value, Tensor) else torch.tensor(float(value))]


def outcome(name: str, kind: str, x: Tensor, usual: list[Tensor]) -> str:
    """Return the word of the table for what a case makes of an input."""
    try:
        found = CASES[name](x, (lambda v: quadratic(v)[:, None]) if kind == "column" else quadratic)
    except Exception as error:  # its name is what is asked
        name_of_error = type(error).__name__
        return "dtype" if name_of_error not in OURS and re.search(REFUSED, str(error)) else name_of_error
    found = tensors(found)
    if any(torch.promote_types(value.dtype, x.dtype) != value.dtype for value in found if value.ndim):
        return "precision"
    if kind == "empty" and all(value.numel() == 0 for value in found):
        return "none"
    if kind == "nan":
        if all(v.ndim and len(v) == len(x) and v[1:].isfinite().all() and v[0].isnan().any() for v in found):
            return "row"
        return "spread" if any(value.isnan().any() for value in found) else "silent"
    if any(value.isnan().any() for value in found):
        return "NaN"
    if name in RANDOM or kind == "integer":
        return "drawn" if name in RANDOM else "some"
    if kind == "one" and not any(value.ndim and len(value) == 6 for value in usual):
        return "some"
    usual = [value[:1] if kind == "one" and value.ndim and len(value) == 6 else value for value in usual]
    near = 2e-2 if kind == "float16" else 1e-4
    if len(found) != len(usual) or any(a.shape != b.shape for a, b in zip(found, usual, strict=True)):
        return "shape"
    if not all(torch.allclose(a.double(), b.double(), near, near) for a, b in zip(found, usual, strict=True)):
        return "other"
    carried = [value.sum() for value in found if value.requires_grad]
    reaches = carried and kind == "gradient" and torch.autograd.grad(sum(carried), x, allow_unused=True)[0] is not None
    return "graph" if reaches else "same"


def table() -> dict[str, list[str]]:
    lines = {}
    for name in sorted(CASES):
        kinds = inputs(name)
        torch.manual_seed(0)
        usual = [value.detach() for value in tensors(CASES[name](next(kinds)[1], quadratic))]
        lines[name] = [
            "-"
            if name
            in (
                WITHOUT_ENERGY
                if kind == "column"
                else OF_ONE_ROW
                if kind == "empty"
                else OF_NO_ROW
                if kind == "nan"
                else ()
            )
            else outcome(name, kind, x, usual)
            for kind, x in kinds
        ]
    return lines


def public_names() -> set[str]:
    names = set()
    for info in pkgutil.iter_modules(ebmlib.__path__):
        module = importlib.import_module(f"ebmlib.{info.name}")
        for name, thing in vars(module).items():
            if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", None) == module.__name__:
                names.add(f"{info.name}.{name}")
    return names


def read_table() -> dict[str, list[str]]:
    lines = [line.split() for line in TABLE.read_text("utf-8").splitlines() if line.strip()]
    assert lines[0] == ["name", *COLUMNS]
    return {name: outcomes for name, *outcomes in lines[1:]}


def test_every_public_name_has_its_row():
    names = public_names() - WITHOUT_ROWS
    assert set(CASES) == names, f"a case is missing, or stands for nothing: {set(CASES) ^ names}"
    assert set(read_table()) == names, f"a row is missing, or stands for nothing: {set(read_table()) ^ names}"


def test_what_comes_back_is_what_the_table_says():
    written = read_table()
    for name, outcomes in table().items():
        assert outcomes == written[name], f"{name}: {outcomes}, not {written[name]}"


def test_no_input_gives_a_wrong_value_or_an_error_that_is_not_ours():
    good = OURS | {"same", "graph", "drawn", "some", "none", "row", "dtype", "-"}
    for name, outcomes in read_table().items():
        for column, word in zip(COLUMNS, outcomes, strict=True):
            assert word in good, f"{name}, {column}: {word}"


if __name__ == "__main__":
    width = max(map(len, CASES)) + 2
    for name, words in {"name": COLUMNS, **table()}.items():
        print(f"{name:{width}}" + "".join(f"{word:12}" for word in words).rstrip())
    sys.exit()
