"""Out-of-distribution detection on the red wines: one energy, its noise, and rivals, on three kinds of other wines.

    python tests/benchmarks/wine_ood.py [--jobs 2]

Folds 0 to 4 of protocol B (duplicate rows dropped), all in the space u: logarithms, standardised, fitted without the
test part. A detector sees red wines alone; an alarm is a high energy. Its test wines stand against white wines, against
themselves with all columns shuffled independently (20 permutations) and with one column shuffled (each of eleven, 10
permutations). For low grades, detectors are fitted once more to wines graded 5 or better, and meet those of 3 and 4.
What is random has three seeds, for low grades one. `--select` shows the validation likelihoods by which the settings of
the energy were chosen: no shuffled row, no white wine and no test row had a say in them.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from provenance import RESULTS, provenance
from torch import Tensor
from wine_density import LOG_COLUMNS, Fold, chosen, make_fold
from wine_models import (
    DIM,
    Blend,
    FullMixture,
    KernelDensity,
    bagged_mixture,
    fit_energy,
    fit_flow,
    fit_masked_mixtures,
)

from ebmlib.datasets import LogStandardize, Split, kfold, mixture, wine_quality
from ebmlib.energies import Energy
from ebmlib.ood import evaluate_ood
from ebmlib.tilted import TiltedEnergy

MODULES = ("datasets", "energies", "losses", "networks", "ood", "partition", "tilted", "training")
INPUTS = [
    *(f"ebmlib/{name}.py" for name in MODULES),
    *(f"tests/benchmarks/{name}.py" for name in ("provenance", "wine_density", "wine_models", "wine_ood")),
    *(f"ebmlib/data/winequality-{color}.csv" for color in ("red", "white")),
]
FOLDS, SEEDS = range(5), (0, 1, 2)
WHITE, ALL, ONE, GRADES = "white wines", "all columns shuffled", "one column shuffled", "low grades"
BARS = {WHITE: (0.97, 0.985), ALL: (0.93, 0.945), ONE: (0.645, 0.69)}  # AUROC: must, aim
EBM, NOISE = "EBM", "its noise"
MEASURES = ("auroc", "aupr", "fpr95")
# What was weighed, by validation likelihood alone; CHOSEN is the best of them.
CANDIDATES: dict[str, dict[str, Any]] = {
    "bagged mixtures": {"kernels": 0.0},
    "bagged mixtures, bound 8": {"kernels": 0.0, "bound": 8.0},
    "bagged mixtures, no bound": {"kernels": 0.0, "bound": None},
    "half kernels": {"kernels": 0.5},
    "half kernels, bound 8": {"kernels": 0.5, "bound": 8.0},
    "half kernels, no bound": {"kernels": 0.5, "bound": None},
    "three quarters kernels, no bound": {"kernels": 0.75, "bound": None},
}
CHOSEN = "half kernels, no bound"


class SampledKernels(KernelDensity):
    """A kernel density that can be drawn from."""

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        centres = self.centres[torch.randint(len(self.centres), (shape[0],))]
        return torch.linalg.solve(self.whiten.T, (centres + torch.randn(shape[0], DIM)).T).T


def make_noise(fold: Fold, kernels: float, seed: int) -> FullMixture | Blend:
    """Return chapter 3's noise, of which a share may be a kernel density on the training rows."""
    bagged = bagged_mixture(fold.train, 5, 8, seed=100 * seed, tail=0.1)
    if not kernels:
        return bagged
    widths = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
    likes = [SampledKernels(fold.train, width).log_prob(fold.validation.x).mean() for width in widths]
    width = widths[int(torch.stack(likes).argmax())]
    return Blend([bagged, SampledKernels(fold.train, width)], [1 - kernels, kernels])


def fit_candidate(name: str, fold: Fold, seed: int) -> tuple[FullMixture | Blend, TiltedEnergy]:
    """Return the noise and the energy tilted from it."""
    settings = dict(CANDIDATES[name])
    noise = make_noise(fold, settings.pop("kernels"), seed)
    fit = fit_energy(fold.train, fold.validation.x, noise, 1000 * seed, **settings)
    return noise, fit.energy


def fit_against_shuffles(fold: Fold, seed: int) -> Energy:
    """Return a network trained against the training wines with shuffled columns: log m - log p, m their density."""
    noise = Shuffled(fold.train)
    return fit_energy(fold.train, fold.validation.x, noise, seed, tilted=True, bound=None).energy.tilt


class Shuffled:
    """Rows of columns drawn independently. Their density is not needed: it cancels where an energy is tilted."""

    def __init__(self, x: Tensor):
        self.x = x

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        return self.x[torch.randint(len(self.x), (shape[0], DIM)), torch.arange(DIM)]

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))


def local_outlier_factor(x: Tensor) -> Energy:
    from sklearn.neighbors import LocalOutlierFactor

    fit = LocalOutlierFactor(novelty=True).fit(x.numpy())
    return lambda rows: torch.from_numpy(-fit.score_samples(rows.numpy()))


def isolation_forest(x: Tensor, seed: int) -> Energy:
    from sklearn.ensemble import IsolationForest

    fit = IsolationForest(random_state=seed).fit(x.numpy())
    return lambda rows: torch.from_numpy(-fit.score_samples(rows.numpy()))


def detectors(fold: Fold, k: int, seeds: Sequence[int]) -> Iterator[tuple[str, int, Energy]]:
    """Yield (name, seed, energy); what is not random comes with seed 0 alone."""

    def negative(density: Any) -> Energy:
        return lambda x: -density.log_prob(x)

    data = fold.train, fold.validation.x
    yield "Mahalanobis", 0, negative(mixture(fold.nine, 1))
    best_mixture = chosen(lambda x, n: bagged_mixture(x, n, 1), (2, 4, 6, 8, 12, 16), fold)
    yield "Gaussian mixture", 0, negative(best_mixture)
    yield "kernel density", 0, negative(chosen(KernelDensity, (0.15, 0.2, 0.25, 0.3, 0.4, 0.5), fold))
    yield "local outlier factor", 0, local_outlier_factor(fold.nine)
    for seed in seeds:
        number = 100 * seed + k
        yield "isolation forest", seed, isolation_forest(fold.nine, number)
        yield "neural spline flow", seed, negative(fit_flow(*data, number))
        noise, energy = fit_candidate(CHOSEN, fold, number)
        yield NOISE, seed, negative(noise)
        yield EBM, seed, energy
    if len(seeds) == 1:
        return
    # Not rivals in kind: a stronger density, and a network that has seen shuffled columns. One seed each.
    yield "autoregressive networks, 4 mixed", 0, negative(fit_masked_mixtures(*data, 4, k, drop=0.2, together=False))
    yield "a network against shuffled columns", 0, fit_against_shuffles(fold, k)


def shuffled(x: Tensor, columns: Sequence[Sequence[int]], n: int, generator: torch.Generator) -> Tensor:
    """Return n copies of x for each set of columns, with those columns permuted independently."""
    copies = []
    for columns_of_one in columns:
        for _ in range(n):
            rows = x.clone()
            for column in columns_of_one:
                rows[:, column] = x[torch.randperm(len(x), generator=generator), column]
            copies.append(rows)
    return torch.cat(copies)


class Score(NamedTuple):
    """One detector on one task of one fold."""

    task: str
    model: str
    fold: int
    seed: int
    auroc: float
    aupr: float
    fpr95: float


def measure(k: int, reds: Tensor, whites: Tensor, split: Split, seeds: Sequence[int]) -> tuple[list[Score], float]:
    """Return all scores of one fold and the CPU seconds; the last column of the rows is the grade."""
    torch.set_num_threads(1)
    start, scores = time.process_time(), []

    def judge(fold: Fold, seeds: Sequence[int], tasks: dict[str, tuple[Tensor, Tensor]]) -> None:
        for model, seed, energy in detectors(fold, k, seeds):
            for task, (x_in, x_out) in tasks.items():
                with torch.no_grad():
                    report = evaluate_ood(energy(x_in), energy(x_out), n_bootstrap=40)
                scores.append(Score(task, model, k, seed, *report[:3]))

    x = reds[:, :DIM]
    fold, generator = make_fold(x, split, "u"), torch.Generator().manual_seed(k)
    scale = LogStandardize(x[np.concatenate([split.train, split.validation])], LOG_COLUMNS)
    test = fold.test.x
    others = {
        WHITE: scale.forward(whites[:, :DIM]).float(),
        ALL: shuffled(test, [range(DIM)], 20, generator),
        ONE: shuffled(test, [[column] for column in range(DIM)], 10, generator),
    }
    judge(fold, seeds, {task: (test, other) for task, other in others.items()})

    good = reds[:, DIM] >= 5
    parts = Split(*(rows[good[rows].numpy()] for rows in split))
    fold = make_fold(x, parts, "u")
    scale = LogStandardize(x[np.concatenate([parts.train, parts.validation])], LOG_COLUMNS)
    judge(fold, seeds[:1], {GRADES: (fold.test.x, scale.forward(x[~good]).float())})
    return scores, time.process_time() - start


def summary(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def per_fold(scores: list[Score], task: str, model: str, measure: str) -> list[float]:
    """Return the mean over seeds of a measure, fold by fold."""
    ours = [s for s in scores if (s.task, s.model) == (task, model)]
    return [mean(getattr(s, measure) for s in ours if s.fold == k) for k in sorted({s.fold for s in ours})]


def make_rows(scores: list[Score]) -> list[dict[str, Any]]:
    rows = []
    for task, model in dict.fromkeys((s.task, s.model) for s in scores):
        seeds = sorted({s.seed for s in scores if (s.task, s.model) == (task, model)})
        row: dict[str, Any] = {"task": task, "model": model, "n_seeds": len(seeds)}
        for measure in MEASURES:
            values = per_fold(scores, task, model, measure)
            row[f"{measure}_mean"], row[f"{measure}_se"] = summary(values)
            row[f"{measure}_per_fold"] = values
        row["auroc_per_seed"] = [
            mean(s.auroc for s in scores if (s.task, s.model, s.seed) == (task, model, seed)) for seed in seeds
        ]
        rows.append(row)
    return rows


def make_pairs(scores: list[Score]) -> list[dict[str, Any]]:
    """Return how much AUROC the EBM gains over each rival on the same folds, with its standard error."""
    pairs = []
    for task, model in dict.fromkeys((s.task, s.model) for s in scores if s.model != EBM):
        ours, theirs = (per_fold(scores, task, m, "auroc") for m in (EBM, model))
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        gain, se = summary(gains)
        pairs.append({"task": task, "against": model, "gain_mean": gain, "gain_se": se, "per_fold": gains})
    return pairs


def select(reds: Tensor, splits: list[Split], folds: Sequence[int]) -> None:
    """Print the validation log-likelihood of each candidate and of its noise, in nats a wine, in u."""
    torch.set_num_threads(1)
    for name in CANDIDATES:
        likes = []
        for k in folds:
            fold = make_fold(reds[:, :DIM], splits[k], "u")
            noise, energy = fit_candidate(name, fold, 900 + k)
            with torch.no_grad():
                x, x_val = noise.sample((20_000,)), fold.validation.x
                log_q = noise.log_prob(x_val)
                log_z = torch.logsumexp(-energy.tilt(x), 0) - math.log(len(x))
                likes.append((log_q.mean().item(), ((log_q - energy.tilt(x_val)).mean() - log_z).item()))
        of_noise, of_energy = np.mean(likes, 0)
        print(f"{name:36}{of_energy:9.3f}  its noise {of_noise:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--only", type=int, nargs="+", default=FOLDS, help="fold numbers, for a quick look")
    parser.add_argument("--select", action="store_true", help="show how the settings were chosen, and stop")
    parser.add_argument("--out", type=Path, default=RESULTS / "wine_ood.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/wine_ood.py" + (f" --jobs {args.jobs}" if args.jobs > 1 else "")
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn", "zuko"))

    reds, whites = (torch.tensor(wine_quality(c).drop_duplicates().to_numpy(float)) for c in ("red", "white"))
    splits: list[Split] = kfold(len(reds))
    if args.select:
        select(reds, splits, args.only)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # for the processes started below
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(measure, k, reds, whites, splits[k], SEEDS) for k in args.only]
        outcomes = [job.result() for job in jobs]
    scores = [score for of_fold, _ in outcomes for score in of_fold]
    head["cpu_seconds"] = sum(seconds for _, seconds in outcomes)
    rows, pairs = make_rows(scores), make_pairs(scores)
    args.out.parent.mkdir(exist_ok=True)
    content = {"provenance": head, "bars": BARS, "rows": rows, "paired": pairs}
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        figures = "".join(f"  {m} {row[f'{m}_mean']:.3f} ± {row[f'{m}_se']:.3f}" for m in MEASURES)
        print(f"{row['task']:22}{row['model']:36}{figures}")
    for pair in pairs:
        print(f"{pair['task']:22}EBM gains {pair['gain_mean']:+.4f} ± {pair['gain_se']:.4f} over {pair['against']}")


if __name__ == "__main__":
    main()
