"""The models of the wine benchmark are densities, and its results file is what chapter 3 takes it for."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

import persistent_chains  # noqa: E402
import wine_density  # noqa: E402
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


def test_published_folds_are_read(tmp_path):
    block = np.arange(1, 21).reshape(1, 20) % 10
    np.savez(tmp_path / "folds.npz", block=block)
    (split,) = wine_density.published_splits(tmp_path / "folds.npz")
    assert (block[0, split.test] == 0).all() and (block[0, split.validation] == 9).all()
    assert len(split.train) == 16


RESULTS = {"wine_density": wine_density.INPUTS, "persistent_chains": persistent_chains.INPUTS}


def test_every_results_file_is_tested():
    assert {path.stem for path in (ROOT / "tests/benchmarks/results").glob("*.json")} == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_results_have_their_provenance(name):
    text = (ROOT / f"tests/benchmarks/results/{name}.json").read_text("utf-8")
    origin = json.loads(text)["provenance"]
    assert {"command", "commit", "dirty", "date", "cpu_seconds", "versions", "sha256"} <= set(origin)
    assert set(RESULTS[name]) <= set(origin["sha256"]), "the hashes of all inputs are recorded"
    assert origin["dirty"] is False, "the run was made on a committed state"
    assert str(ROOT) not in text and str(Path.home()) not in text, "it names no path of a machine"


def test_the_wine_table_adds_up():
    results = json.loads((ROOT / "tests/benchmarks/results/wine_density.json").read_text("utf-8"))
    assert {row["protocol"] for row in results["rows"]} == {"A", "B"}
    for row in results["rows"]:
        assert len(row["per_fold"]) == 10
        assert row["nats_mean"] == pytest.approx(np.mean(row["per_fold"]))
        assert row["nats_se"] == pytest.approx(np.std(row["per_fold"], ddof=1) / 10**0.5)


def test_the_table_of_persistent_chains_is_whole_and_meets_its_bars():
    rows = json.loads((ROOT / "tests/benchmarks/results/persistent_chains.json").read_text("utf-8"))["rows"]
    kinds = [(row["data"], row["method"], row["seed"]) for row in rows]
    methods, seeds = persistent_chains.METHODS, persistent_chains.SEEDS
    assert sorted(kinds) == sorted((d, m, s) for d in persistent_chains.TOYS for m in methods for s in seeds)
    for data, (must, _) in persistent_chains.BARS.items():
        ours = [row["kl"] for row in rows if row["data"] == data and row["method"] == "pcd"]
        assert np.median(ours) <= must, f"{data}: {ours}"
