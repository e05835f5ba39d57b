"""The models of the benchmarks are densities, and their results files are what the chapters take them for."""

import ast
import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ebmlib.networks import Confined, MLPEnergy
from ebmlib.ood import evaluate_ood
from ebmlib.rbm import RBM, exact_log_z

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import annealing  # noqa: E402
import blow_up  # noqa: E402
import chains  # noqa: E402
import devices  # noqa: E402
import digit_chains  # noqa: E402
import digit_models  # noqa: E402
import digits  # noqa: E402
import discrete  # noqa: E402
import families  # noqa: E402
import family_models  # noqa: E402
import hybrids  # noqa: E402
import launches  # noqa: E402
import methods  # noqa: E402
import persistent_chains  # noqa: E402
import rbm_learning  # noqa: E402
import rbm_rates  # noqa: E402
import score_learning  # noqa: E402
import score_wine  # noqa: E402
import wine_density  # noqa: E402
import wine_grades  # noqa: E402
import wine_ood  # noqa: E402
import wine_probabilities  # noqa: E402
from grade_models import conditional_draws  # noqa: E402
from wine_models import DIM, Blend, FullMixture, KernelDensity, MaskedMixtures, blend_by_validation  # noqa: E402


def generated(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mixture() -> FullMixture:
    root = 0.3 * generated(3, DIM, DIM)
    return FullMixture(torch.tensor([0.2, 0.3, 0.5]), generated(3, DIM), root @ root.mT + torch.eye(DIM))


def test_full_mixture_is_torchs(mixture):
    torchs = MixtureSameFamily(
        Categorical(mixture.weights), MultivariateNormal(mixture.means, covariance_matrix=mixture.covariances)
    )
    x = 2 * generated(50, DIM)
    torch.testing.assert_close(mixture.log_prob(x), torchs.log_prob(x), rtol=1e-4, atol=1e-3)
    draws = mixture.sample((100_000,))
    z = (draws.mean(0) - torchs.mean) / (torchs.variance / len(draws)).sqrt()
    assert z.abs().max() < 5, f"z = {z}: a false alarm has chance 6e-6"


def test_kernel_density_is_the_mean_of_its_kernels():
    x, at = generated(30, DIM), 0.5 * generated(5, DIM)
    kernels = MultivariateNormal(x, 0.4**2 * torch.cov(x.T))
    expected = torch.logsumexp(kernels.log_prob(at[:, None]), 1) - math.log(30)
    torch.testing.assert_close(KernelDensity(x, 0.4).log_prob(at), expected, rtol=1e-3, atol=1e-2)


def test_autoregressive_networks_are_densities():
    """Importance sampling from a wide Gaussian gives a mass of 1 for random, not only for fresh, weights."""
    torch.manual_seed(0)
    nets = MaskedMixtures(2, hidden=32)
    with torch.no_grad():
        for p in nets.parameters():
            p.add_(0.05 * torch.randn_like(p))
        wide = MultivariateNormal(torch.zeros(DIM), 2.0 * torch.eye(DIM))
        x = wide.sample((200_000,))
        ratio = (nets.each_log_prob(x) - wide.log_prob(x)).double().exp()
        z = (ratio.mean(1) - 1) / (ratio.std(1) / math.sqrt(len(x)))
    assert (ratio.std(1) / math.sqrt(len(x)) < 0.1).all(), "the test has no power"
    assert z.abs().max() < 5, f"z = {z}: a false alarm has chance 1e-6"


def test_the_blend_weighs_by_validation(mixture):
    far = FullMixture(mixture.weights, mixture.means + 20, mixture.covariances)
    blend = blend_by_validation([far, mixture], mixture.sample((200,)))
    assert blend.weights[1] > 0.999
    x = generated(4, DIM)
    even = Blend([far, mixture]).log_prob(x)
    torch.testing.assert_close(even, torch.logaddexp(far.log_prob(x), mixture.log_prob(x)) - math.log(2))


def test_a_mixture_draws_what_is_missing_given_the_rest(mixture):
    """Far from all but one component the conditional is that component's, a Gaussian in closed form."""
    one = FullMixture(torch.ones(1), mixture.means[:1], mixture.covariances[:1])
    x, missing = generated(2, DIM), torch.zeros(2, DIM, dtype=torch.bool)
    missing[0, [1, 4]], missing[1, [0]] = True, True
    torch.manual_seed(0)
    draws = conditional_draws(one, x, missing, 20_000)
    assert (draws[:, ~missing] == x[~missing]).all(), "the known coordinates are held"
    for row, m in enumerate(missing):
        c, known = one.covariances[0], ~m
        gain = c[m][:, known] @ c[known][:, known].inverse()
        mean = one.means[0, m] + gain @ (x[row, known] - one.means[0, known])
        covariance = c[m][:, m] - gain @ c[known][:, m]
        of_row = draws[:, row, m]
        z = (of_row.mean(0) - mean) / (covariance.diagonal() / len(of_row)).sqrt()
        assert z.abs().max() < 4.5, f"z = {z}: a false alarm has chance 2e-5"
        torch.testing.assert_close(torch.cov(of_row.T).reshape(covariance.shape), covariance, rtol=0.05, atol=0.02)


def test_a_mixture_weighs_its_components_by_what_is_known():
    """Two components that differ in the known coordinate alone: their posterior weights are a softmax."""
    means = torch.zeros(2, DIM)
    means[1, 0], means[1, 1] = 1.0, 20.0
    q, x = FullMixture(torch.tensor([0.5, 0.5]), means, torch.eye(DIM).repeat(2, 1, 1)), torch.zeros(1, DIM)
    missing = torch.zeros(1, DIM, dtype=torch.bool)
    missing[0, 1] = True
    torch.manual_seed(0)
    share = (conditional_draws(q, x, missing, 20_000)[:, 0, 1] > 10).double().mean().item()
    expected = 1 / (1 + math.exp(0.5))
    assert abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 20_000)


def test_calibration_error_and_its_floor():
    """A model that says 0.75 and is right in half errs by 0.25; the floor is that of a fair coin of 0.75."""
    p = torch.tensor([[0.75, 0.25]] * 400)
    error, bins = wine_grades.calibration(p, torch.arange(400) % 2 == 0)
    assert error == pytest.approx(0.25) and bins == [{"confidence": 0.75, "accuracy": 0.5, "wines": 400}]
    floor, spread = wine_grades.calibration_floor(p, 300)
    expected = math.sqrt(0.75 * 0.25 / 400) * math.sqrt(2 / math.pi)  # of |a normal|
    assert floor == pytest.approx(expected, abs=5 * spread / math.sqrt(300))


def test_published_folds_are_read(tmp_path):
    block = np.arange(1, 21).reshape(1, 20) % 10
    np.savez(tmp_path / "folds.npz", block=block)
    (split,) = wine_density.published_splits(tmp_path / "folds.npz")
    assert (block[0, split.test] == 0).all() and (block[0, split.validation] == 9).all()
    assert len(split.train) == 16


RESULTS = {
    "annealing": annealing.INPUTS,
    "devices": devices.INPUTS,
    "digit_chains": digit_chains.INPUTS,
    "digits": digits.INPUTS,
    "discrete": discrete.INPUTS,
    "families": families.INPUTS,
    "wine_density": wine_density.INPUTS,
    "persistent_chains": persistent_chains.INPUTS,
    "rbm_learning": rbm_learning.INPUTS,
    "rbm_rates": rbm_rates.INPUTS,
    "blow_up": blow_up.INPUTS,
    "chains": chains.INPUTS,
    "hybrids": hybrids.INPUTS,
    "launches": launches.INPUTS,
    "methods": methods.INPUTS,
    "score_learning": score_learning.INPUTS,
    "score_wine": score_wine.INPUTS,
    "wine_ood": wine_ood.INPUTS,
    "wine_grades": wine_grades.INPUTS,
    "wine_probabilities": wine_probabilities.INPUTS,
}


FOLDER = ROOT / "ebmlib" / "data" / "results"


def test_every_results_file_is_tested():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_results_have_their_provenance(name):
    text = (FOLDER / f"{name}.json").read_text("utf-8")
    origin = json.loads(text)["provenance"]
    assert {"command", "commit", "dirty", "date", "cpu_seconds", "versions", "sha256"} <= set(origin)
    assert set(RESULTS[name]) <= set(origin["sha256"]), "the hashes of all inputs are recorded"
    assert origin["dirty"] is False, "the run was made on a committed state"
    assert str(ROOT) not in text and str(Path.home()) not in text, "it names no path of a machine"


def test_the_wine_table_adds_up():
    results = json.loads((FOLDER / "wine_density.json").read_text("utf-8"))
    assert {row["protocol"] for row in results["rows"]} == {"A", "B"}
    for row in results["rows"]:
        assert len(row["per_fold"]) == 10
        assert row["nats_mean"] == pytest.approx(np.mean(row["per_fold"]))
        assert row["nats_se"] == pytest.approx(np.std(row["per_fold"], ddof=1) / 10**0.5)


def test_the_table_of_discrete_chains_is_whole_and_the_peer_is_no_faster():
    rows = json.loads((FOLDER / "discrete.json").read_text("utf-8"))["rows"]

    def of(part):
        return [row for row in rows if row["part"] == part]

    lattice = {(row["kernel"], round(row["coupling"], 2), row["seed"]) for row in of("lattice")}
    assert len(lattice) == len(of("lattice")) == len(discrete.CONTENDERS) * 3 * len(discrete.SEEDS)
    assert {row["side"] for row in of("scaling")} == {8, 12, 16, 24, 32}
    for part in ("machine", "network", "expansion", "digits"):
        assert {row["seed"] for row in of(part)} == set(discrete.SEEDS), part
    couplings = [(row["mean"], row["n_rows"], row["seed"]) for row in of("couplings")]
    assert sorted(couplings) == sorted((*kind, seed) for kind in discrete.COUPLINGS for seed in range(5))
    for row in of("ebmkit"):
        assert row["ratio"] < 1 and max(row["ours, largest |z|"], row["ebmkit, largest |z|"]) < 4.5, row


def of_a_device(results, part, name):
    return {row["variant"]: row for row in results["rows"] if row["part"] == part and row["device"] == name}


def test_the_table_of_devices_is_whole_and_times_what_has_the_right_law():
    results = json.loads((FOLDER / "devices.json").read_text("utf-8"))
    assert "cpu" in {about["kind"] for about in results["devices"].values()}
    for name, about in results["devices"].items():
        states = [row for row in results["rows"] if row["part"] == "gaussian" and row["device"] == name]
        assert len(states) == 9
        for row in states:
            if row["state"] != "bf16 state":
                assert max(map(abs, row["z"])) < devices.ALARM, row
            elif row["step_size"] == 0.001:
                assert min(row["z"]) > devices.ALARM, row
        for part, n_variants in (("plane", 9), ("images", 10)):
            rows = of_a_device(results, part, name)
            assert len(rows) == n_variants + 2 * (about["kind"] == "cuda")
            for row in rows.values():
                right = row["law"] == "right"
                assert right == (row["why"] == "") == ("step" in row) == ("update" in row)
                assert not right or max(map(abs, row["z"].values())) < devices.ALARM
            seconds = [row["compile_seconds"] for row in rows.values() if "compiled" in row["variant"]]
            assert len(seconds) == 2 and max(seconds) < 3 * min(seconds), "each began with an empty cache"
            assert rows["bf16 state"]["law"] == "wrong", "the checks see what is known to be wrong"
            assert all(row["law"] == "right" for row in rows.values() if "bf16" not in row["variant"])
        loops = of_a_device(results, "tutorial", name)
        assert len(loops) == 5 + 2 * (about["kind"] == "cuda") and "update" in loops["a reader's loop"]


def spoiled(kind):
    """Return a variant of the small case whose chains are wrong, or right, in a way of their own."""

    def make(e):
        chains, stale = devices.frozen(e), copy.deepcopy(e).requires_grad_(False)
        energy = {
            "right": lambda x: chains(x),
            "another temperature": lambda x: 1.3 * chains(x),
            "old weights": lambda x: stale(x),
            "rows that touch": lambda x: chains(x) * (1 + 0.1 * x.mean()),
        }[kind]
        return devices.Variant(energy, e, more=2 if kind == "rows that touch" else 1)

    return make


def test_a_variant_of_a_step_that_is_wrong_is_refused():
    torch.manual_seed(0)
    energy = Confined(devices.scaled(MLPEnergy(2, (8, 8)), 2), 1.0)
    grid, p, _ = devices.grid_of(energy, "cpu")
    x = grid[torch.multinomial(p, 2000, replacement=True)]
    case = devices.Case(energy, x[:100], x, 100, 0.02, 1e-3)
    plain = {"truth": devices.plane_truth(energy, "cpu"), "x_data": generated(100, 2), "halves_differ": 0.5}
    for kind, word in (
        ("right", None),
        ("another temperature", "another law"),
        ("old weights", "weights changed in place"),
        ("rows that touch", "rows touch"),
    ):
        _, wrong = devices.checked(spoiled(kind)(energy), energy, case, plain)
        assert (not wrong) if word is None else any(word in why for why in wrong), (kind, wrong)


def test_the_tables_of_launches_are_whole_and_meet_their_bars():
    results = json.loads((FOLDER / "launches.json").read_text("utf-8"))
    runs = results["runs"]
    assert [(row["script"], row["nodes"], row["runs"]) for row in runs] == list(launches.LAUNCHED)
    for row in runs:
        assert row["failed"] == 0 and row["equal"] == row["runs"], row
    (restarts,) = results["restarts"]
    assert restarts["steps"] == list(launches.KILLS) and restarts["equal"] == restarts["runs"] == 20
    assert restarts["from"] == [(step - 1) // 100 * 100 for step in launches.KILLS], "it had to go back"
    (divergence,) = results["divergence"]
    assert divergence["runs"] == divergence["messages"] == len(divergence["seconds"]) == 10
    assert max(divergence["seconds"]) <= 5 and all(divergence["codes"])
    expected = [(n, 4 * size) for n in (2, 3, 4) for size in launches.SIZES]
    assert [(row["n_ranks"], row["bytes"]) for row in results["collective"]] == expected
    for row in results["collective"]:
        if row["bytes"] >= 308_000:  # n ranks send 2 (n - 1) / n of the message each; headers come on top
            assert 1 <= row["wire"] / (2 * (row["n_ranks"] - 1) * row["bytes"]) < 1.05, row
    of_two = [row for row in results["collective"] if row["n_ranks"] == 2]
    assert results["fit"] == pytest.approx({"n_ranks": 2} | launches.line_of(of_two), rel=1e-9)
    keys = [(k, n) for k in range(launches.WEAK_RUNS) for n in launches.SAMPLER_STEPS]
    assert [(row["run"], row["chain_steps"]) for row in results["weak"]] == keys
    assert results["numbers"] == 2 * 128 + 128 + 128 * 128 + 128 + 128 + 1
    for k in range(launches.WEAK_RUNS):
        run = [row for row in results["weak"] if row["run"] == k]
        assert launches.predicted(run, results["fit"], results["numbers"]) == run
        assert all(row["efficiency"] == row["one_least_ms"] / row["two_least_ms"] for row in run)
    kinds = launches.EQUAL_WORK + launches.EQUAL_STEPS
    rates = [(*kind, lr) for kind in kinds for lr in launches.RATES]
    assert [(row["ranks"], row["steps"], row["lr"]) for row in results["tried"]] == rates
    for kind in kinds:
        tried, rows = (
            [row for row in results[part] if (row["ranks"], row["steps"]) == kind] for part in ("tried", "budget")
        )
        assert [row["seed"] for row in rows] == list(launches.SEEDS)
        assert {row["lr"] for row in rows} == {min(tried, key=lambda row: row["kl"])["lr"]}


def test_launches_are_of_the_scripts_that_the_notebook_writes():
    recorded = json.loads((FOLDER / "launches.json").read_text("utf-8"))["provenance"]["sha256"]
    assert launches.digests(), "the notebook writes scripts"
    assert launches.digests() == {name: digest for name, digest in recorded.items() if "/" not in name}


def test_each_launch_is_of_its_script_and_what_that_imports():
    files = {"a.py": "import os\nimport b", "b.py": "from c import x", "c.py": "x = 1", "d.py": "import a"}
    assert launches.imported("a.py", files) == {"a.py", "b.py", "c.py"}
    results = json.loads((FOLDER / "launches.json").read_text("utf-8"))
    rows = [row for part in launches.OF_SCRIPTS for row in results[part]]
    assert rows
    for row in rows:
        assert row["made_from"] == launches.made_from(row["script"], launches.scripts()), row["script"]


def test_a_notebooks_scripts_are_read_as_it_writes_them(tmp_path):
    from IPython.core.inputtransformer2 import TransformerManager

    source = "%%writefile {folder}/one.py\n# a line\n\nprint('å')"
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)}, {"cell_type": "markdown", "source": []}]
    (tmp_path / "nb.ipynb").write_text(json.dumps({"cells": cells}), "utf-8")
    call = ast.parse(TransformerManager().transform_cell(source)).body[0].value  # what IPython makes of the cell
    assert launches.scripts(tmp_path / "nb.ipynb") == {"one.py": call.args[2].value}


def test_equal_states_are_told_from_others():
    state = {"x": torch.zeros(2), "steps": [1, (2.0, None)]}
    assert launches.equal(state, copy.deepcopy(state))
    for other in ({"x": torch.zeros(2)}, state | {"x": torch.zeros(3)}, state | {"steps": [1, (2.5, None)]}):
        assert not launches.equal(state, other)


def test_a_line_is_found_and_a_prediction_is_what_it_says():
    sizes = [{"bytes": b, "least": 100 + 2e-3 * b} for b in (1e3, 1e5, 1e7)]
    line = launches.line_of(sizes)
    assert line == {"latency_us": pytest.approx(100), "ns_per_byte": pytest.approx(2)}
    rows = launches.predicted([{"one_least_ms": c, "two_least_ms": c + 0.5} for c in (1.0, 10.0)], line, 25_000)
    assert [row["by_line"] for row in rows] == pytest.approx([1 / 1.3, 10 / 10.3])
    assert [row["by_first"] for row in rows] == pytest.approx([1 / 1.5, 10 / 10.5])


def test_the_table_of_annealed_chains_is_whole_and_meets_its_bars():
    rows = json.loads((FOLDER / "annealing.json").read_text("utf-8"))["rows"]
    kinds = [(row["seed"], row["n_temps"]) for row in rows]
    assert kinds == [(seed, n) for seed in annealing.SEEDS for n in annealing.N_TEMPS]
    for n_temps, must in ((100, 0.12), (1000, 0.03)):
        assert max(row["forward"]["rms_error"] for row in rows if row["n_temps"] == n_temps) <= must
    for n_temps in annealing.N_TEMPS[1:]:
        brackets = [row["bracket"] for row in rows if row["n_temps"] == n_temps]
        assert np.mean(brackets) >= 0.99, f"{n_temps} temperatures: {brackets}"


def test_the_table_of_persistent_chains_is_whole_and_meets_its_bars():
    rows = json.loads((FOLDER / "persistent_chains.json").read_text("utf-8"))["rows"]
    kinds = [(row["data"], row["method"], row["seed"]) for row in rows]
    methods, seeds = persistent_chains.METHODS, persistent_chains.SEEDS
    assert sorted(kinds) == sorted((d, m, s) for d in persistent_chains.TOYS for m in methods for s in seeds)
    for data, (must, _) in persistent_chains.BARS.items():
        ours = [row["kl"] for row in rows if row["data"] == data and row["method"] == "pcd"]
        assert np.median(ours) <= must, f"{data}: {ours}"


@pytest.mark.parametrize("n_hidden", [4, 10])
def test_moments_of_a_machine_are_the_gradient_of_its_log_z(n_hidden):
    shapes = (16, n_hidden), (16,), (n_hidden,)
    rbm = RBM.from_parameters(*(generated(*shape) for shape in shapes))
    exact = torch.autograd.grad(exact_log_z(rbm), list(rbm.parameters()))
    moments = rbm_learning.exact_moments(*(p.detach() for p in rbm.parameters()))
    for ours, truth in zip(moments, exact, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


def test_the_table_of_machines_is_whole_and_at_rest():
    results = json.loads((FOLDER / "rbm_learning.json").read_text("utf-8"))
    kinds = [tuple(row[key] for key in ("method", "n_hidden", "n_epochs", "split", "seed")) for row in results["rows"]]
    first = [(0, seed) for seed in rbm_learning.SEEDS]
    expected = [(rbm_learning.AT_REST, size, None, *where) for size in (12, 16) for where in first]
    expected += [(rbm_learning.CONTROL, 12, n_epochs, *where) for n_epochs in rbm_learning.LENGTHS for where in first]
    for name, method in rbm_learning.METHODS.items():
        for size in method.sizes:
            where = first + list(rbm_learning.FURTHER if size == 16 else ())
            expected += [(name, size, n_epochs, *at) for n_epochs in method.rates for at in where]
    assert sorted(kinds, key=str) == sorted(expected, key=str)
    for row in results["rows"]:
        if row["method"] == rbm_learning.AT_REST:
            assert 0 <= row["last_gain"] < 0.02, "the ceiling has all but come to rest"
        else:
            name = "PCD" if row["method"] == rbm_learning.CONTROL else row["method"]
            best = rbm_learning.best_rate(results["study"], name, row["n_hidden"], row["n_epochs"])
            assert row["rate"] == best, "the rate is what the validation part chose"


def test_the_table_of_rates_is_whole_and_agrees_with_that_of_machines():
    results, machines = (
        json.loads((FOLDER / f"{name}.json").read_text("utf-8")) for name in ("rbm_rates", "rbm_learning")
    )
    keys = ("method", "n_hidden", "n_epochs", "split", "seed")
    first = [(0, seed) for seed in rbm_learning.SEEDS]
    expected = [(rbm_rates.STEADY, 12, rbm_rates.N_STEADY, *at) for at in first]
    for name, size in rbm_rates.MACHINES:
        where = first + list(rbm_learning.FURTHER if size == 16 else ())
        expected += [(name, size, rbm_rates.N_EPOCHS, *at) for at in where]
    assert sorted(tuple(row[key] for key in keys) for row in results["rows"]) == sorted(expected)
    known = {(row["rate"], *(row[key] for key in keys)): row["train"] for row in machines["rows"]}
    for row in results["rows"]:
        assert row["rate"] == rbm_rates.best_rate(results["study"], row["method"], row["n_hidden"])
        same = known.get((row["rate"], *(row[key] for key in keys)))
        assert same is None or row["train"] == same, "the same run gave something else"


def test_the_table_of_blow_ups_is_whole():
    rows = json.loads((FOLDER / "blow_up.json").read_text("utf-8"))["rows"]
    kinds = [(row["piece"], row["seed"]) for row in rows]
    assert sorted(kinds) == sorted((piece, seed) for piece in blow_up.PIECES for seed in blow_up.SEEDS)
    for row in rows:
        ended = row["blew_up_at"] is None
        assert ended == (row["kl"] <= blow_up.LOST) and (not ended or row["n_steps"] == blow_up.N_STEPS)
        assert (row["alarm_at"] is not None) == (row["most_stuck"] > blow_up.SHARE)


def test_the_table_of_scores_is_whole_and_meets_its_bar():
    rows = json.loads((FOLDER / "score_learning.json").read_text("utf-8"))["rows"]
    kinds = [(row["loss"], row["seed"]) for row in rows]
    assert sorted(kinds) == sorted((name, seed) for name in score_learning.NOISE for seed in score_learning.SEEDS)
    for name in score_learning.HELD:
        mean = np.mean([row["fisher"] for row in rows if row["loss"] == name])
        assert mean <= score_learning.BAR, f"{name}: {mean}"


def test_the_table_of_methods_is_whole():
    results = json.loads((FOLDER / "methods.json").read_text("utf-8"))
    rows = [row for row in results["rows"] if row["method"] != "noise"]
    where = [(toy, method) for toy in methods.TOYS for method in methods.GRID]
    kinds = sorted((row["data"], row["method"], row["budget"], row["seed"]) for row in rows)
    assert kinds == sorted((*at, budget, seed) for at in where for budget in methods.BUDGETS for seed in methods.SEEDS)
    small, large = methods.BUDGETS
    for at in where:
        tried = {budget: {} for budget in methods.BUDGETS}
        for row in results["tried"]:
            if (row["data"], row["method"]) == at:
                assert row["seed"] == methods.CHOICE_SEED
                tried[row["budget"]][row["lr"], row["option"]] = methods.rank(row)
        assert sorted(tried[small]) == sorted(methods.GRID[at[1]][1])
        assert list(tried[large]) == sorted(tried[small], key=tried[small].get)[: methods.N_AGAIN], "the best go on"
        for row in rows:
            if (row["data"], row["method"]) == at:
                best = tried[row["budget"]]
                assert (row["lr"], row["option"]) == min(best, key=best.get), "the setting is what the other seed chose"
    cost = {(row["method"], row["option"]): row["ms"] for row in results["milliseconds_a_step"]}
    for row in rows:
        assert row["n_steps"] == int(1000 * row["budget"] / cost[row["method"], row["option"]])
        assert row["diverged"] or row["kl"] > 0, "no model is nearer to the data than they are"
    mixtures = [(row["data"], row["seed"]) for row in results["rows"] if row["method"] == "noise"]
    assert mixtures == [(toy, seed) for toy in methods.TOYS for seed in methods.SEEDS]


def test_chains_chosen_again_are_those_that_two_other_seeds_chose():
    results = json.loads((FOLDER / "chains.json").read_text("utf-8"))
    assert set(chains.CHAPTER_7) <= set(chains.SETTINGS) and len(set(chains.SETTINGS)) == len(chains.SETTINGS)
    small, large = methods.BUDGETS
    for toy, method in [(toy, method) for toy in methods.TOYS for method in chains.METHODS]:
        mine = {
            part: [r for r in results[part] if (r["data"], r["method"]) == (toy, method)] for part in ("tried", "rows")
        }
        worse = {budget: {} for budget in methods.BUDGETS}
        for row in mine["tried"]:
            key = (row["lr"], row["option"])
            worse[row["budget"]].setdefault(key, []).append((row["seed"], methods.rank(row)))
        for runs in (*worse[small].values(), *worse[large].values()):
            assert tuple(seed for seed, _ in runs) == chains.CHOICE_SEEDS
        ranks = {b: {k: max(kl for _, kl in runs) for k, runs in worse[b].items()} for b in worse}
        assert set(ranks[small]) == set(chains.SETTINGS)
        assert list(ranks[large]) == sorted(ranks[small], key=ranks[small].get)[: chains.N_AGAIN], "the best go on"
        assert [(r["budget"], r["seed"]) for r in mine["rows"]] == [
            (b, s) for b in methods.BUDGETS for s in methods.SEEDS
        ]
        for row in mine["rows"]:
            best = ranks[row["budget"]]
            assert (row["lr"], row["option"]) == min(best, key=best.get), "the setting is what the other seeds chose"
            assert row["n_steps"] == int(1000 * row["budget"] / results["milliseconds_a_step"][method])
            assert row["diverged"] or row["kl"] > 0, "no model is nearer to the data than they are"


def test_the_tables_of_hybrids_are_whole():
    results = json.loads((FOLDER / "hybrids.json").read_text("utf-8"))
    wine = [("wine", base, seed) for base in hybrids.WINE_BASES for seed in hybrids.SEEDS]
    moons = [("two moons", base, seed) for base in hybrids.MOON_BASES for seed in hybrids.SEEDS]
    assert sorted((row["data"], row["base"], row["seed"]) for row in results["tilted"]) == sorted(wine + moons)
    kinds = sorted((row["target"], row["space"], row["seed"]) for row in results["mixing"])
    assert kinds == sorted((t, s, seed) for t in hybrids.TARGETS for s in hybrids.SPACES for seed in hybrids.SEEDS)
    for row in results["mixing"]:
        best = hybrids.best_settings(results["tried_mixing"], row["target"])[row["space"]]
        assert best == [(row["n_leapfrog"], row["wanted"])], "the trajectory is what the other seed chose"
    priors = ("N(0, I)", *hybrids.PRIORS)
    kinds = sorted((row["beta"], row["prior"], row["seed"]) for row in results["latent"])
    assert kinds == sorted((b, p, seed) for b in hybrids.BETAS for p in priors for seed in hybrids.SEEDS)
    for row in results["latent"]:
        assert row["finer"] == pytest.approx(row["nats"], abs=0.01), "a finer grid changes nothing"
        assert row.get("bound", -math.inf) < row["nats"], "a bound lies below"
        assert row.get("largest_code", 0) < hybrids.SIDE, "the grid holds the codes"
    kinds = sorted((row["model"], row["seed"]) for row in results["added"])
    assert kinds == sorted((model, seed) for model in hybrids.ADDED for seed in hybrids.MORE_SEEDS)


def test_priors_of_hybrids_are_densities():
    torch.manual_seed(0)
    z, log_area = hybrids.plane(201, hybrids.SIDE)
    energy = hybrids.EnergyPrior()
    with torch.no_grad():
        for p in energy.tilt.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for prior in (energy, hybrids.MixturePrior(torch.randn(5, 2))):
            assert (prior(z) + log_area).exp().sum().item() == pytest.approx(1, abs=1e-3)


def test_the_table_of_tilted_wines_is_whole():
    rows = json.loads((FOLDER / "score_wine.json").read_text("utf-8"))["rows"]
    expected = sorted(
        (s, method, fold) for s in score_wine.RATES for method in score_wine.METHODS for fold in range(10)
    )
    assert sorted((row["steps"], row["method"], row["fold"]) for row in rows) == expected
    assert all(row["rate"] in score_wine.RATES[row["steps"]] for row in rows)
    few = [row for row in rows if row["steps"] == 300]
    mean = {m: np.mean([row["kept"] for row in few if row["method"] == m]) for m in score_wine.METHODS}
    for row in few:
        ahead = mean["NCE"] - mean[row["method"]] if row["method"] != "NCE" else 0.1
        assert row["log_z_error"] < ahead / 2, "log Z is known to less than half of what NCE is ahead by"
    told = ("NCE", "both signs, σ = 0.1", "both signs, σ = 0.2")
    worst = max(row["log_z_error"] for row in rows if row["method"] in told)
    assert worst < 0.1, "in the longer runs NCE is not ahead: a tenth of a nat is what the page calls level"


def test_shuffling_keeps_each_column_and_moves_those_named():
    x = generated(30, DIM)
    shuffled = wine_ood.shuffled(x, [[2], range(DIM)], 3, torch.Generator().manual_seed(0)).view(2, 3, 30, DIM)
    torch.testing.assert_close(shuffled.sort(2).values, x.sort(0).values.expand(2, 3, -1, -1))
    others = [column for column in range(DIM) if column != 2]
    assert (shuffled[0][..., others] == x[:, others]).all() and (shuffled[0][..., 2] != x[:, 2]).any()
    assert (shuffled[1] != x).any(1).all(), "every column of every copy is permuted"


def test_sampled_kernels_are_draws_of_their_density():
    kernels = wine_ood.SampledKernels(generated(40, DIM), 0.5)
    torch.manual_seed(0)
    draws = kernels.sample((50_000,))
    covariance = (1 + 0.5**2 - 1 / 40) * torch.cov(generated(40, DIM).T)  # that of the rows, and of the kernels
    assert ((torch.cov(draws.T) - covariance).norm() / covariance.norm()) < 0.05


def test_the_table_of_ood_adds_up_and_meets_its_bars():
    results = json.loads((FOLDER / "wine_ood.json").read_text("utf-8"))
    rows = {(row["task"], row["model"]): row for row in results["rows"]}
    assert {task for task, _ in rows} == {wine_ood.WHITE, wine_ood.ALL, wine_ood.ONE, wine_ood.GRADES}
    for row in rows.values():
        assert len(row["auroc_per_fold"]) == 5
        assert row["auroc_mean"] == pytest.approx(np.mean(row["auroc_per_fold"]))
        assert row["auroc_mean"] == pytest.approx(np.mean(row["auroc_per_seed"]))
    for task, (must, _) in wine_ood.BARS.items():
        assert rows[task, wine_ood.EBM]["auroc_mean"] >= must
        assert rows[task, wine_ood.EBM]["n_seeds"] == 3
    for pair in results["paired"]:
        if pair["against"] == wine_ood.NOISE and pair["task"] in (wine_ood.ALL, wine_ood.ONE):
            assert pair["gain_mean"] >= 2 * pair["gain_se"], pair["task"]


def test_the_table_of_grades_is_whole_and_meets_its_bars():
    results = json.loads((FOLDER / "wine_grades.json").read_text("utf-8"))
    rows = {row["model"]: row for row in results["grades"]}
    for row in rows.values():
        assert len(row["per_fold"]["mae"]) == 10
        assert row["mae"] == pytest.approx(np.mean(row["per_fold"]["mae"]))
        assert row["mae_se"] == pytest.approx(np.std(row["per_fold"]["mae"], ddof=1) / 10**0.5)
    ours = rows[f"{wine_grades.EBM}, mean of 3 seeds"]
    assert ours["mae"] <= 0.455 and ours["accuracy"] >= 0.58 and ours["log_loss"] <= 0.985
    assert max(rows[f"{wine_grades.EBM}, seed {s}"]["ece"] for s in wine_grades.SEEDS) <= 0.05
    errors = {row["method"]: np.array(row["by_column"]) for row in results["imputation"]}
    for rival in ("iterative imputer", "Gaussian mixture", "noise of the EBM, mean of 3 seeds"):
        assert (errors["EBM, mean of 3 seeds"] <= errors[rival]).all(), f"the energy loses to the {rival}"
    z = [value for name in ("mean", "share below the median") for value in results["chains"][name]]
    assert max(map(abs, z)) < 4, "chains agree with quadrature"


def test_probabilities_wine_by_wine_are_those_of_the_table_of_grades():
    results, table = (
        json.loads((FOLDER / f"{n}.json").read_text("utf-8")) for n in ("wine_probabilities", "wine_grades")
    )
    rows = {row["model"]: row["per_fold"].get("log_loss") for row in table["grades"]}
    assert sorted(row for fold in results["folds"] for row in fold["row"]) == list(range(1359))
    for k, fold in enumerate(results["folds"]):
        for ours, theirs in ((wine_grades.EBM, f"{wine_grades.EBM}, seed 0"), ("extra trees", "extra trees")):
            p = torch.tensor(fold["p"][ours])
            torch.testing.assert_close(p.sum(1), torch.ones(len(p)), rtol=0, atol=5e-5)
            assert wine_grades.log_loss(p, torch.tensor(fold["grade"])) == pytest.approx(rows[theirs][k], abs=1e-3)
            assert fold["scores"][ours]["log_loss"] == pytest.approx(rows[theirs][k], abs=1e-5)


def test_the_mixture_of_digits_is_torchs():
    torch.manual_seed(0)
    root = 0.1 * generated(3, 8, 8)
    weights, means, covariances = torch.tensor([0.2, 0.3, 0.5]), generated(3, 8), root @ root.mT + 0.1 * torch.eye(8)
    ours = digit_models.FullMixture(weights, means, covariances)
    torchs = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariance_matrix=covariances))
    y = ours.sample((100_000,))
    torch.testing.assert_close(ours.log_prob(y[:600]), torchs.log_prob(y[:600]), rtol=1e-4, atol=1e-3)
    z = (y.mean(0) - torchs.mean) / (torchs.variance / len(y)).sqrt()
    assert z.abs().max() < 5, f"z = {z}: a false alarm has chance 5e-6"


def test_every_digit_lies_inside_of_the_range_of_pixels():
    data = digit_models.load(0)
    assert digit_models.inside(data.y).all() and digit_models.inside(data.y_validation).all()
    outside = torch.logit(torch.tensor(digit_models.SPACE.alpha)) - 0.1
    assert not digit_models.inside(data.y[:5].index_fill(1, torch.tensor([7]), outside)).any()
    labels = digit_models.load(0, left_out=3).labels
    assert set(labels.tolist()) == set(range(10)) - {3}


def test_a_tilt_with_a_known_log_z_is_summed_without_bias_though_the_draws_outside_are_thinned():
    """E_q[exp(a·y)] of a Gaussian is exp(a·μ + a·Σa/2); some draws are inside of the range, most are not."""
    torch.manual_seed(0)
    mean, slope = torch.full((64,), -1.0), torch.full((64,), 0.05)
    q = digit_models.FullMixture(torch.ones(1), mean[None], 0.6 * torch.eye(64)[None])
    inside = digit_models.inside(q.sample((50_000,)), digit_models.BAND).float().mean()
    assert 0.05 < inside < 0.95, "both kinds of draws matter"
    log_z = digit_models.log_z_by_importance(lambda y: -y @ slope, q, 400_000)
    exact = (mean @ slope + 0.3 * slope @ slope).item()
    assert log_z.std_error < 0.02
    assert abs(log_z.value - exact) < 4.5 * log_z.std_error, "a false alarm has chance 7e-6"


@pytest.mark.parametrize("net", [digit_models.Autoregressive(32, 0.0, 2), digit_models.Levels(32, 0.0)])
def test_networks_that_are_autoregressive_see_earlier_pixels_alone(net):
    z = generated(1, 64)
    jacobian = torch.autograd.functional.jacobian(lambda row: net.net(row)[0], z)[:, 0]
    seen = jacobian.abs().view(64, -1, 64).amax(1)
    assert (seen.triu() == 0).all() and (seen.tril(-1).sum(1)[1:] > 0).all()


def test_levels_of_pixels_are_probabilities():
    """Over all levels of the last pixel P sums to the probability of the others, whatever the last one is."""
    net, pixels = digit_models.Levels(32, 0.0), digit_models.load(0).pixels[:3]
    last = torch.arange(float(digit_models.LEVELS)).repeat(3)
    each = pixels.repeat_interleave(digit_models.LEVELS, 0)
    each[:, -1] = last
    total = net.log_prob(each).view(3, -1).logsumexp(1)
    logits = torch.log_softmax(net.net(pixels / 8 - 1).view(3, 64, -1), -1).gather(2, pixels.long()[..., None])
    torch.testing.assert_close(total, logits[:, :-1].sum((1, 2)), rtol=1e-5, atol=1e-3)


def test_measures_of_ood_are_those_of_the_library():
    e_in, e_out = generated(200).round(decimals=1), (generated(300)[100:] + 0.7).round(decimals=1)  # ties too
    report = evaluate_ood(e_in, e_out, n_bootstrap=40)
    ours = digits.judged(e_in.double(), e_out.double(), e_in.double(), e_out.double())
    assert ours["auroc"] == pytest.approx(report.auroc) and ours["fpr95"] == pytest.approx(report.fpr95)
    assert ours["gain"] == 0 == ours["gain_se"]


def test_images_that_are_no_digits_are_what_they_are_called():
    data = digit_models.load(0)
    pixels, labels = data.pixels_test[:40], data.labels_test[:40]
    others = digit_models.other_images(pixels, labels, torch.Generator().manual_seed(0))
    assert set(others) == set(digits.TRANSFORMED)
    for name, images in others.items():
        assert images.min() >= 0 and images.max() <= 16 and (images == images.round()).all(), name
    assert (others["shuffled pixels"].sort(1).values == pixels.sort(1).values).all()
    assert (others["inverted"] + pixels == 16).all()
    assert (others["rotated"].sort(1).values == pixels.sort(1).values).all()
    moved = digits.shifted(pixels, torch.Generator().manual_seed(0)).view(-1, 8, 8)
    image = pixels.view(-1, 8, 8)
    same = [(moved[:, 1:] == image[:, :-1]), (moved[:, :-1] == image[:, 1:])]
    same += [(moved[:, :, 1:] == image[:, :, :-1]), (moved[:, :, :-1] == image[:, :, 1:])]
    assert torch.stack([part.flatten(1).all(1) for part in same]).any(0).all(), "moved by one pixel"


def test_another_log_z_moves_a_likelihood_and_its_bounds_alike():
    bit = 64 * math.log(2)
    row = {"seed": 0, "model": "tilt", "bits": 2.0, "bits_se": 0.5 / bit, "nats_over_base": 7.0}
    row |= {"nats_over_base_se": 0.5, "log_z": -1.0, "log_z_se": 0.3, "annealed_forward": -0.7}
    row |= {"log_z_importance": -0.5, "log_z_importance_se": 0.0, "annealed_reverse": -1.3}
    bounds = [{"seed": seed, "model": "tilt", "n_draws": 1, "bits": 2.0} for seed in (0, 1)]
    digits.with_highest([row], bounds)
    assert row["nats_over_base"] == 6.5 and row["bits"] == bounds[0]["bits"] == pytest.approx(2 + 0.5 / bit)
    assert bounds[1]["bits"] == 2 and row["nats_over_base_se"] == pytest.approx(0.4)
    assert row["bits_se"] == pytest.approx(0.4 / bit) and row["log_z_by"] == "importance"


def test_the_table_of_digits_is_whole_and_meets_its_bar():
    results = json.loads((FOLDER / "digits.json").read_text("utf-8"))
    assert digits.best_settings(results["tried"]) == digits.CHOSEN, "the settings are what validation chose"
    rows = {(row["seed"], row["model"]): row for row in results["likelihood"]}
    assert sorted(rows) == sorted((seed, model) for seed in digits.SEEDS for model in digits.MODELS)
    for (seed, model), row in rows.items():
        behind = row["bits"] - rows[seed, "mixture"]["bits"]
        assert row["nats_over_base"] == pytest.approx(-behind * 64 * math.log(2), abs=1e-6)
        if not row["exact"]:
            bounds = {
                r["n_draws"]: r["bits"] for r in results["dequantization"] if (r["seed"], r["model"]) == (seed, model)
            }
            assert bounds[1] == pytest.approx(row["bits"]) and bounds[1] > bounds[10] > bounds[100]
    for seed in digits.SEEDS:
        for name in ("tilt, MLP", "tilt, convolution"):
            row = rows[seed, name]
            assert row["nats_over_base"] >= max(2.5, 5 * row["nats_over_base_se"])
            assert row["log_z"] == max(row[k] for k in ("log_z_importance", "annealed_forward", "annealed_reverse"))


def test_the_tables_of_networks_on_digits_are_whole():
    results = json.loads((FOLDER / "digits.json").read_text("utf-8"))
    kinds = [(row["seed"], row["variant"]) for row in results["architecture"]]
    assert sorted(kinds) == sorted((seed, name) for seed in digits.SEEDS for name in digits.VARIANTS)
    assert sorted((row["seed"], row["model"]) for row in results["joint"]) == sorted(
        (seed, name) for seed in digits.SEEDS for name in ("plain", "joint")
    )
    for row in results["ood"]:
        assert 0 <= row["auroc"] <= 1 and 0 <= row["fpr95"] <= 1
        assert (row["task"] == "class left out") == (row["left_out"] is not None)
    for score in ("mixture", "tilt", "LOF", "maximum softmax"):
        ours = [row for row in results["ood"] if row["score"] == score]
        assert sorted(r["left_out"] for r in ours if r["task"] == "class left out") == list(range(10))
        others = [(r["seed"], r["task"]) for r in ours if r["left_out"] is None]
        assert sorted(others) == sorted((seed, task) for seed in digits.SEEDS for task in digits.TRANSFORMED)


def test_the_tables_of_tilts_of_the_cut_mixture_are_whole():
    results = json.loads((FOLDER / "digit_chains.json").read_text("utf-8"))
    assert sorted(row["lr"] for row in results["tried"]) == list(digit_chains.RATES)
    best = max(results["tried"], key=lambda row: row["validation"])["lr"]
    assert {tuple(key) for key in results["done"] if key[1] != "tried"} == {
        (seed, part, best) for seed in digits.SEEDS for part in digit_chains.PARTS
    }, "the chains have the learning rate that validation preferred"
    rows = {(row["seed"], row["model"]): row for row in results["likelihood"]}
    assert sorted(rows) == sorted((seed, model) for seed in digits.SEEDS for model in digit_chains.MODELS)
    kinds = [("mixture, cut", "exact"), (f"{digit_chains.CUT}, chains", "buffer")]
    moved = (f"{digit_chains.N_MOVED} moves from {start}" for start in ("the base", "training images", "the buffer"))
    kinds += [(f"{digit_chains.CUT}, chains", name) for name in moved]
    kinds += [(model, "annealed") for model in digit_chains.MODELS[1:]]
    drawn = [(row["seed"], row["model"], row["draws"]) for row in results["draws"]]
    assert sorted(drawn) == sorted((seed, *kind) for seed in digits.SEEDS for kind in kinds)
    first = json.loads((FOLDER / "digits.json").read_text("utf-8"))["likelihood"]
    for seed in digits.SEEDS:
        of_cut = rows[seed, "mixture, cut"]
        bits_of_base = of_cut["bits"] * 64 * math.log(2) + of_cut["nats_over_base"]
        for model in digit_chains.MODELS[1:]:
            row = rows[seed, model]
            assert row["log_z"] == max(row[k] for k in ("log_z_importance", "annealed_forward", "annealed_reverse"))
            nats = row["bits"] * 64 * math.log(2) + row["nats_over_base"]
            assert nats == pytest.approx(bits_of_base, abs=1e-6), "gains are over the same mixture"
        (before,) = [r for r in first if (r["seed"], r["model"]) == (seed, digit_chains.CUT)]
        assert rows[seed, digit_chains.CUT]["validation"] == pytest.approx(before["validation"], abs=0.5), (
            "it is the energy of digits.json, trained again"
        )


def test_the_tables_of_classes_and_photographs_are_whole():
    results = json.loads((FOLDER / "digit_chains.json").read_text("utf-8"))
    keys = ("seed", "model", "start", "stage")
    made = [tuple(row[key] for key in keys) for row in results["classes"] if row["start"]]
    every = [(m, s, g) for m in ("plain", "joint") for s in ("any", "best of 20") for g in ("start", "chains")]
    assert sorted(made) == sorted((seed, *kind) for seed in digits.SEEDS for kind in every)
    rest = [(row["seed"], row["model"]) for row in results["classes"] if not row["start"]]
    assert sorted(rest) == [(seed, "training digits") for seed in digits.SEEDS]
    assert {row["n"] for row in results["classes"]} == {360}
    first = json.loads((FOLDER / "digits.json").read_text("utf-8"))["ood"]
    names = {row["score"] for row in first if row["left_out"] is None}
    judged = [(row["seed"], row["score"]) for row in results["ood"]]
    assert sorted(judged) == sorted((seed, name) for seed in digits.SEEDS for name in names)
    assert {row["task"] for row in results["ood"]} == {"photographs"}


@pytest.fixture(scope="module")
def cut() -> digit_models.Cut:
    torch.manual_seed(0)
    q = digit_models.FullMixture(torch.ones(1), torch.full((1, 64), -1.0), 0.6 * torch.eye(64)[None])
    return digit_models.Cut(q, n_draws=200_000)


def test_the_stretched_cut_mixture_is_a_density_with_its_jacobian(cut):
    torch.manual_seed(0)
    base = digit_chains.Stretched(cut)
    s = base.sample((200,))
    assert s.isfinite().all() and digit_models.inside(base.y(s)).all() and len(s) == 200
    slope = torch.autograd.functional.jacobian(lambda s: base.y(s).sum(0), s[:5]).diagonal(dim1=0, dim2=2)
    expected = cut.log_prob(base.y(s[:5])) + slope.log().sum(1)
    torch.testing.assert_close(base.log_prob(s[:5]), expected, rtol=1e-4, atol=1e-2)


def test_log_z_of_a_tilt_of_the_cut_mixture_is_annealed_without_bias(cut):
    torch.manual_seed(0)
    slope = torch.full((64,), 0.1)
    exact = digit_models.log_z_by_importance(lambda y: y @ slope, cut, 100_000)
    both, y = digit_chains.log_z_of_cut(lambda y: y @ slope, cut, n_temps=20, n_chains=128)
    for value, error in ((both.forward, both.forward_error), (both.reverse, both.reverse_error)):
        assert abs(value - exact.value) < 4.5 * math.hypot(error, exact.std_error), "a false alarm has chance 7e-6"
    assert y.shape == (128, 64) and digit_models.inside(y).all()


def test_an_energy_of_a_class_is_the_joint_one_or_bayes_rule(cut):
    torch.manual_seed(0)
    net, y, q = digit_models.mlp(0.0, n_out=10).eval(), cut.sample((6,)), cut.q
    torch.nn.init.normal_(net.end.weight)
    every = {}
    for joint in (True, False):
        rows = [digit_chains.class_energy(q, net, torch.full((6,), k), joint)(y) for k in range(10)]
        every[joint] = -torch.stack(rows, 1)
        torch.testing.assert_close(every[joint].log_softmax(1), net(y).log_softmax(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(every[True].logsumexp(1), net(y).logsumexp(1) + q.log_prob(y), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(every[False].logsumexp(1), q.log_prob(y), rtol=1e-4, atol=1e-3)


def test_pieces_of_photographs_are_images_and_trees_tell_them_from_digits():
    pieces = digit_chains.photographs(200, torch.Generator().manual_seed(0))
    assert pieces.shape == (200, 64) and (pieces == pieces.round()).all()
    assert pieces.min() >= 0 and pieces.max() <= 16 and pieces.max() - pieces.min() > 8
    images = digit_models.load(0).pixels
    assert digit_chains.told_apart(pieces, images[:200]) > 0.95
    by_class = images[:400][digit_models.load(0).labels[:400].argsort()]  # class after class, as draws on demand stand
    share = digit_chains.told_apart(by_class[::2], images[400:600])
    assert abs(share - 0.5) < 4.5 * 0.5 / 400**0.5, f"trees tell digits from digits in {share}; false alarms 7e-6"


def all_bits(n: int) -> torch.Tensor:
    return (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).float()


@pytest.mark.parametrize(
    "make",
    [
        lambda: family_models.VAE(6, 1, 8, bits=True),
        lambda: family_models.VAE(6, 2, 8, bits=True),
        lambda: family_models.Autoregressive(6, 16, bits=True),
        lambda: family_models.fit_bit_mixture((generated(40, 6) > 0).float(), 3),
        lambda: family_models.bit_kernels((generated(40, 6) > 0).float(), 0.1),
    ],
)
def test_families_of_bits_are_probabilities_and_draw_what_they_say(make):
    torch.manual_seed(0)
    model, x = make(), all_bits(6)
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)  # far from a coin
    with torch.no_grad():
        p = model.log_prob(x).double().exp()
        draws = model.sample((20_000,))
    assert p.sum().item() == pytest.approx(1, abs=1e-4)
    counts = (draws.long() << torch.arange(6)).sum(1).bincount(minlength=64)
    expected = 20_000 * p
    often = expected > 5
    chi = ((counts - expected).square() / expected)[often].sum().item()
    n = int(often.sum())
    assert n > 5 and chi < n + 5 * math.sqrt(2 * n), f"chi-squared {chi} of {n}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: family_models.VAE(2, 1, 8, bits=False),
        lambda: family_models.VAE(2, 2, 8, bits=False),
        lambda: family_models.Autoregressive(2, 16, bits=False),
        lambda: family_models.Flow(2, 16),
        lambda: family_models.Kernels(generated(60, 2), 0.3),
    ],
)
def test_families_of_vectors_are_densities_and_draw_what_they_say(make):
    torch.manual_seed(0)
    model = make()
    model.n_points = 61  # of a latent grid
    axis = torch.linspace(-7.98, 7.98, 200)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = model.log_prob(x).double().exp() * (axis[1] - axis[0]) ** 2
        draws = model.sample((20_000,))
    assert p.sum().item() == pytest.approx(1, abs=2e-3)
    mean = p @ x.double()
    variance = p @ (x.double() - mean).square()
    z = (draws.double().mean(0) - mean) / (variance / len(draws)).sqrt()
    assert z.abs().max() < 5 and ((draws.var(0) / variance - 1).abs() < 0.1).all()


def test_the_table_of_families_is_whole_and_its_settings_are_what_validation_chose():
    results = json.loads((FOLDER / "families.json").read_text("utf-8"))
    seeds, rows = families.SEEDS, results["rows"]
    expected = [(data, f, s) for data, grids in families.GRIDS.items() for f in grids for s in seeds]
    assert sorted((row["data"], row["family"], row["seed"]) for row in rows) == sorted(expected)
    assert len(results["tried"]) == sum(len(families.GRIDS[data][family]) for data, family, _ in expected)
    for row in rows:
        keys = ("data", "family", "seed")
        tried = [one for one in results["tried"] if all(one[key] == row[key] for key in keys)]
        grid = families.GRIDS[row["data"]][row["family"]]
        assert [{key: one[key] for key in grid[0]} for one in tried] == grid, "all settings of the grid were tried"
        best = max((one for one in tried if one["validation"] is not None), key=lambda one: one["validation"])
        assert row["setting"] == {key: best[key] for key in grid[0]} and row["validation"] == best["validation"]
    nats = {tuple(row[key] for key in keys): row["nats"] for row in rows}
    for row in rows:
        energy = nats[row["data"], "energy, NCE", row["seed"]]
        assert row["ahead"] == pytest.approx(row["nats"] - energy, abs=1e-6)
        assert "annealed_error" not in row or abs(row["annealed_error"]) < 4 * row["annealed_se"]
    runs = [(run["family"], run["seed"], run["lr"]) for run in results["stability"]]
    assert runs == [(f, s, lr) for f in families.STABILITY for s in families.STABILITY_SEEDS for lr in families.RATES]
    for run in results["stability"]:
        assert run["fails"] == (run["short"] is None or run["short"] > run["gaussian"] - 0.1)
        assert run["diverged"] is None or run["short"] is None
    at = [(row["latent"], row["seed"]) for row in results["bounds"]]
    assert {where: at.count(where) for where in at} == dict.fromkeys(families.BOUNDS, 2 * (1 + len(families.N_DRAWS)))


def test_the_bound_lies_below_the_weighted_bound_and_that_below_the_likelihood():
    torch.manual_seed(0)
    vae, x = family_models.VAE(6, 2, 8, bits=True), (generated(50, 6) > 0).float()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(2)
        exact = vae.exact(x).mean()
        bound, few, many = (
            vae.bound(x, 2000).mean(),
            vae.weighted_bound(x, 5).mean(),
            vae.weighted_bound(x, 5000).mean(),
        )
        one = vae.log_weights(x, 20_000).mean()
    assert bound < few < many and abs(many - exact) < 0.01
    assert abs(one - bound) < 0.02, "one weight gives the bound on average"


@pytest.mark.parametrize("name", ["wine", "digits"])
def test_every_setting_of_a_grid_reaches_its_model(name):
    """Two settings give two models: none is written down and then forgotten."""
    data = families.load(name, 5)
    few = data._replace(x=data.x[:160], x_validation=data.x_validation[:60])
    base = families.fit("mixture", families.GRIDS[name]["mixture"][0], few, 0, 1.0)
    for family, grid in families.GRIDS[name].items():
        if name == "wine" and family == "energy, chains":
            continue  # its grid is that of NCE
        seen = []
        for setting in grid:
            model = families.fit(family, setting, few, 0, 0.04, base)  # at 0 five times the steps are as few
            with torch.no_grad():
                seen.append(model.log_prob(few.x_validation[:5]).sum().item())
        assert len({round(value, 4) for value in seen}) == len(grid), f"{family}: {seen}"


def test_the_encoder_keeps_its_width_far_from_the_data():
    vae = family_models.VAE(3, 2, 8, bits=False)
    width = vae.encode(1e6 * generated(20, 3))[1]
    assert (width >= math.exp(-6.01)).all() and (width <= math.exp(1.01)).all()
