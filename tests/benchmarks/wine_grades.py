"""Grades of red wines, and their missing columns: joint energies beside trees, boosting, SVR and imputers.

    python tests/benchmarks/wine_grades.py [--only 0 1] [--out FILE]

Protocol B: duplicate rows dropped, ten folds. Eight parts train the energies, three seeds; the ninth gives the margins
of their intervals and chooses what a rival has to choose; what needs no ninth part is then fitted to all nine. Settings
were chosen on validation parts; a test part is scored once. See README.md beside this.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from grade_models import (
    N_GRADES,
    Parts,
    boosting,
    class_frequencies,
    conditional_draws,
    fit_grade_energy,
    impute_iteratively,
    impute_neighbours,
    log_loss,
    logistic,
    mixed_with_prior,
    nearest_neighbours,
    support_vectors,
)
from provenance import RESULTS, provenance
from torch import Tensor
from wine_models import DIM, bagged_mixture

from ebmlib.conditional import conditional_log_prob, grid_quantiles, held, marginal
from ebmlib.datasets import LogStandardize, kfold, wine_quality
from ebmlib.energies import Energy
from ebmlib.ood import conformal_threshold
from ebmlib.samplers import MALA, trace

MODULES = ("conditional", "datasets", "energies", "losses", "networks", "ood", "samplers", "training")
INPUTS = [
    *(f"ebmlib/{name}.py" for name in MODULES),
    *(f"tests/benchmarks/{name}.py" for name in ("grade_models", "provenance", "wine_grades", "wine_models")),
    "ebmlib/data/winequality-red.csv",
]
LOG_COLUMNS = [0, 1, 3, 4, 5, 6, 9, 10]  # all but citric acid (often zero), density and pH
SEEDS = (0, 1, 2)
FITS = {"NCE": 0.0, "NCE + cross-entropy": 1.0}  # the weight of the cross-entropy
EBM = "EBM, NCE + cross-entropy"
LEVELS = (0.05, 0.5, 0.95)
N_BINS = 10
MISSING = (3, 5)  # how many columns are missing at once
ONE, MANY = MALA(0.05), MALA(0.03)  # for one missing column and for several

frame = wine_quality("red")
COLUMNS = list(frame.columns[:DIM])


class Fold:
    """The wines of one fold in the transformed space, fitted to the eight parts that train."""

    def __init__(self, x: Tensor, grade: Tensor, k: int):
        self.k, self.rows = k, kfold(len(x))[k]
        self.scale = LogStandardize(x[self.rows.train], LOG_COLUMNS)
        parts = [part for rows in self.rows for part in (self.scale.forward(x[rows]).float(), grade[rows])]
        self.split = Parts(*parts)
        report = LogStandardize(x[np.concatenate(self.rows[:2])])  # errors are in standard deviations of a column
        self.std = report.std

    def error(self, filled: Tensor, truth: Tensor) -> Tensor:
        """Return absolute errors of transformed wines, in standard deviations of the columns as they are."""
        return (self.scale.inverse(filled.double()) - self.scale.inverse(truth.double())).abs() / self.std


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return make(), time.process_time() - start


# ---------------------------------------------------------------- grades


def grades_of_fold(fold: Fold) -> tuple[dict[str, dict[str, Any]], list]:
    """Return test predictions of every model, and the three energies with cross-entropy."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

    s, k, results = fold.split, fold.k, {}

    def add(name: str, p: Tensor, seconds: float, **more: Any) -> None:
        results[name] = {"p": p, "grade": s.grade_test, "seconds": seconds, **more}

    add("class frequencies", class_frequencies(s.nine[1]).expand(len(s.grade_test), -1), 0.0)
    add("logistic regression", *timed(lambda: logistic(s)))
    for name, forest in (("random forest", RandomForestClassifier), ("extra trees", ExtraTreesClassifier)):
        make = lambda forest=forest: forest(300, random_state=k)  # noqa: E731
        (plain, mixed, weight), seconds = timed(lambda make=make: mixed_with_prior(make, s))
        add(name, plain, seconds)
        add(f"{name}, mixed with class frequencies", mixed, seconds, weight=weight)
    add("gradient boosting", *timed(lambda: boosting(s, k)))
    values, seconds = timed(lambda: support_vectors(s))
    results["support vector regression"] = {"value": values, "grade": s.grade_test, "seconds": seconds}
    kept = []
    for seed in SEEDS:
        noise, seconds_noise = timed(lambda seed=seed: bagged_mixture(s.x, 5, 8, 100 * seed + k, tail=0.1))
        for name, weight in FITS.items():
            if name == "NCE" and seed != SEEDS[0]:
                continue  # one seed shows what the cross-entropy adds
            energy, seconds = timed(
                lambda w=weight, q=noise, seed=seed: fit_grade_energy(s.x, s.grade, q, 100 * seed + k, w)
            )
            add(f"EBM, {name}, seed {seed}", energy.log_prob_grade(s.x_test).exp(), seconds + seconds_noise)
            if name == "NCE + cross-entropy":
                kept.append(energy)
    return results, kept


def with_duplicates(k: int) -> dict[str, dict[str, Any]]:
    """Return what extra trees and SVR reach on all 1,599 rows in random folds: a quarter of the test is in training."""
    from sklearn.ensemble import ExtraTreesClassifier

    x, grade = torch.tensor(frame.to_numpy()[:, :DIM]), torch.tensor(frame["quality"].to_numpy()) - 3
    s = Fold(x, grade, k).split
    plain, _, _ = mixed_with_prior(lambda: ExtraTreesClassifier(300, random_state=k), s)
    return {
        "extra trees, duplicates kept": {"p": plain, "grade": s.grade_test, "seconds": 0.0},
        "support vector regression, duplicates kept": {
            "value": support_vectors(s),
            "grade": s.grade_test,
            "seconds": 0.0,
        },
    }


def calibration(p: Tensor, right: Tensor) -> tuple[float, list[dict[str, float]]]:
    """Return the top-label expected calibration error in equal bins, and the bins that hold wines."""
    top = p.max(1).values
    index = (top * N_BINS).long().clamp(max=N_BINS - 1)
    bins = []
    for b in index.unique():
        inside = index == b
        shown = {"confidence": top[inside].mean().item(), "accuracy": right[inside].float().mean().item()}
        bins.append(shown | {"wines": int(inside.sum())})
    return sum(b["wines"] / len(p) * abs(b["confidence"] - b["accuracy"]) for b in bins), bins


def calibration_floor(p: Tensor, n_repeats: int = 500) -> tuple[float, float]:
    """Return mean and standard deviation of that error, were grades drawn from these very probabilities."""
    generator = torch.Generator().manual_seed(0)
    top = p.argmax(1)
    drawn = (torch.multinomial(p, 1, generator=generator)[:, 0] for _ in range(n_repeats))
    errors = [calibration(p, grade == top)[0] for grade in drawn]
    return mean(errors), stdev(errors)


def summary(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def grade_row(name: str, folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one model's row: means over folds with standard errors; kappa and calibration over all wines at once."""
    from sklearn.metrics import cohen_kappa_score

    per_fold: dict[str, list[float]] = {}
    for f in folds:
        grade = f["grade"]
        if "p" in f:
            value = f["p"] @ torch.arange(N_GRADES).float()
            median, likeliest = (f["p"].cumsum(1) < 0.5).sum(1), f["p"].argmax(1)
        else:
            value = f["value"]
            median = likeliest = value.round().long().clamp(0, N_GRADES - 1)
        f["median"] = median
        off, real = (median - grade).abs().float(), (value - grade).abs()
        scores = {
            "mae": off.mean(),
            "accuracy": (likeliest == grade).float().mean(),
            "within_one": (off <= 1).float().mean(),
            "real_mae": real.mean(),
            "real_within_half": (real <= 0.5).float().mean(),
            "real_within_one": (real <= 1).float().mean(),
        }
        if "p" in f:
            scores["log_loss"] = torch.tensor(log_loss(f["p"], grade))
        for key, score in scores.items():
            per_fold.setdefault(key, []).append(score.item())
    row: dict[str, Any] = {"model": name, "per_fold": per_fold}
    for key, scores_of in per_fold.items():
        row[key], row[f"{key}_se"] = summary(scores_of)
    grade, median = (torch.cat([f[key] for f in folds]) for key in ("grade", "median"))
    row["kappa"] = float(cohen_kappa_score(grade, median, weights="quadratic", labels=range(N_GRADES)))
    if "p" in folds[0]:
        p = torch.cat([f["p"] for f in folds])
        row["ece"], row["bins"] = calibration(p, p.argmax(1) == grade)
        row["ece_floor"], row["ece_floor_std"] = calibration_floor(p)
    if "weight" in folds[0]:
        row["weights"] = [f["weight"] for f in folds]
    return row | {"cpu_s_per_fold": mean(f["seconds"] for f in folds)}


# ---------------------------------------------------------------- one missing column


def line_medians(energy: Energy, x: Tensor) -> Tensor:
    """Return conditional quantiles of each coordinate given the ten others, `(n, dim, n_levels)`, by quadrature."""
    points = torch.linspace(-6, 6, 161)
    blocks = []
    for j in range(DIM):
        log_p = torch.cat([conditional_log_prob(energy, part, j, points) for part in x.split(64)])
        blocks.append(grid_quantiles(points, log_p.double(), LEVELS))
    return torch.stack(blocks, dim=1).float()


def interval_margins(quantiles: Tensor, truth: Tensor) -> Tensor:
    """Return by how much to widen each column's 90 % interval, `(dim,)`: conformal, from wines that did not train."""
    low, _, high = quantiles.unbind(2)
    beyond = torch.maximum(low - truth, truth - high)
    return torch.tensor([conformal_threshold(column, 0.1) for column in beyond.T])


def impute_one(fold: Fold, energies: list) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return absolute errors `(n, dim)` by method, and whether intervals hold the truth, by interval."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    s, errors, covered = fold.split, {}, {}
    nine = s.nine[0]

    def add(name: str, filled: Tensor) -> None:
        errors[name] = fold.error(filled, s.x_test)

    add("median of the column", nine.median(0).values.expand_as(s.x_test))
    add("iterative imputer", impute_iteratively(IterativeImputer(random_state=fold.k).fit(nine.numpy()), s.x_test))
    trees = IterativeImputer(ExtraTreesRegressor(100, random_state=fold.k), random_state=fold.k)
    add("iterative imputer, extra trees", impute_iteratively(trees.fit(nine.numpy()), s.x_test))
    k, weights = nearest_neighbours(s, fold.error)
    add(
        "nearest neighbours",
        torch.stack([impute_neighbours(nine, s.x_test, j, k, weights) for j in range(DIM)], dim=1),
    )
    for name, n in (("Gaussian", 1), ("Gaussian mixture", chosen_components(s))):
        q = bagged_mixture(nine, n, 1, fold.k)
        add(name, line_medians(lambda x, q=q: -q.log_prob(x), s.x_test)[..., 1])
    for seed, energy in zip(SEEDS, energies, strict=True):
        add(f"noise of the EBM, seed {seed}", line_medians(lambda x, q=energy.noise: -q.log_prob(x), s.x_test)[..., 1])
        alone = marginal(energy)
        margin = interval_margins(line_medians(alone, s.x_validation), s.x_validation)
        quantiles = line_medians(alone, s.x_test)
        add(f"EBM, seed {seed}", quantiles[..., 1])
        low, _, high = quantiles.unbind(2)
        for kind, widen in (("raw", 0.0), ("conformal", margin)):
            inside = (low - widen <= s.x_test) & (s.x_test <= high + widen)
            covered[f"{kind}, seed {seed}"] = inside.double()
            covered[f"width, {kind}, seed {seed}"] = (high - low + 2 * widen).double()
    return errors, covered


def chosen_components(s: Parts) -> int:
    """Return the number of Gaussians that, fitted to eight parts, the ninth likes best."""
    options = (2, 3, 4, 5, 6, 8)
    likes = [bagged_mixture(s.x, n, 1).log_prob(s.x_validation).mean().item() for n in options]
    return options[int(np.argmax(likes))]


def chains_against_lines(fold: Fold, energy: Any, n_chains: int = 1) -> dict[str, Tensor]:
    """Return by wine and column how far chains are from quadrature: in the mean, and in the share below the median.

    Each chain moves one coordinate, the ten others held. It starts at a draw of the noise's conditional.
    """
    x, points = fold.split.x_test, torch.linspace(-6, 6, 241)
    alone, off = marginal(energy), {"mean": [], "share below the median": [], "acceptance": []}
    for j in range(DIM):
        missing = torch.zeros_like(x, dtype=torch.bool)
        missing[:, j] = True
        start = conditional_draws(energy.noise, x, missing, n_chains).flatten(0, 1)
        draws, accepted = trace(ONE, held(alone, x, missing), start, 200)
        draws = draws[50:, :, j].reshape(150, n_chains, len(x))
        log_p = conditional_log_prob(alone, x, j, points).double()
        expected = torch.trapezoid(log_p.exp() * points, points, dim=1)
        median = grid_quantiles(points, log_p, [0.5])[:, 0]
        off["mean"].append(draws.double().mean((0, 1)) - expected)
        off["share below the median"].append((draws < median).double().mean((0, 1)) - 0.5)
        off["acceptance"].append(accepted.mean(0).reshape(n_chains, -1).mean(0))
    return {name: torch.stack(columns, dim=1) for name, columns in off.items()}


# ---------------------------------------------------------------- several missing columns


def impute_several(fold: Fold, energy: Any, n_missing: int, n_chains: int = 4) -> dict[str, Tensor]:
    """Return each wine's mean absolute error over its missing columns, by method; the columns are drawn at random."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer

    s, nine = fold.split, fold.split.nine[0]
    generator = torch.Generator().manual_seed(1000 * n_missing + fold.k)
    missing = torch.rand(s.x_test.shape, generator=generator).argsort(1) < n_missing
    gone = torch.where(missing, torch.nan, s.x_test)
    together = torch.cat([nine, gone]).numpy()
    errors = {}

    def add(name: str, filled: Tensor) -> None:
        off = fold.error(torch.where(missing, filled, s.x_test), s.x_test)
        errors[name] = off.sum(1) / n_missing

    def by(imputer: Any) -> Tensor:
        return torch.as_tensor(imputer.fit_transform(together))[len(nine) :].float()

    add("median of the column", nine.median(0).values.expand_as(gone))
    add("iterative imputer", by(IterativeImputer(random_state=fold.k)))
    trees = ExtraTreesRegressor(30, random_state=fold.k)
    add("iterative imputer, extra trees", by(IterativeImputer(trees, max_iter=2, random_state=fold.k)))
    k, weights = nearest_neighbours(s, fold.error)
    add("nearest neighbours", by(KNNImputer(n_neighbors=k, weights=weights)))
    q = bagged_mixture(nine, chosen_components(s), 1, fold.k)
    add("Gaussian mixture", conditional_draws(q, s.x_test, missing, 400).median(0).values)
    draws = conditional_draws(energy.noise, s.x_test, missing, 400)
    add("noise of the EBM", draws.median(0).values)
    chains = trace(MANY, held(marginal(energy), gone, missing), draws[:n_chains].flatten(0, 1), 100, thin=2)
    add("EBM", chains.x[25:].reshape(-1, *gone.shape).median(0).values)
    return errors


# ---------------------------------------------------------------- the tables


def column_rows(folds: list[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """Return a row for each method: error by column, mean over folds."""
    rows = []
    for name in folds[0]:
        per_fold = torch.stack([f[name].mean(0) for f in folds])
        rows.append({"method": name, "per_fold": per_fold.tolist(), "by_column": per_fold.mean(0).tolist()})
    return rows


def mean_of_seeds(rows: list[dict[str, Any]], name: str, key: str) -> list[float]:
    """Return the mean over seeds of a list-valued entry of the rows that start so."""
    return np.mean([row[key] for row in rows if row[key_of(row)].startswith(f"{name}, seed")], axis=0).tolist()


def key_of(row: dict[str, Any]) -> str:
    return "model" if "model" in row else "method"


def seeds_row(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the mean of a model's seeds; a standard error is that of the seeds' mean over folds."""
    seeds = [row for row in rows if row["model"].startswith(f"{name}, seed")]
    per_fold = {key: np.mean([r["per_fold"][key] for r in seeds], axis=0).tolist() for key in seeds[0]["per_fold"]}
    row: dict[str, Any] = {"model": f"{name}, mean of {len(seeds)} seeds", "per_fold": per_fold}
    for key, values in per_fold.items():
        row[key], row[f"{key}_se"] = summary(values)
    for key in ("kappa", "ece", "ece_floor", "ece_floor_std", "cpu_s_per_fold"):
        row[key] = mean(r[key] for r in seeds)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", default=range(10), help="fold numbers, for a quick look")
    parser.add_argument("--out", type=Path, default=RESULTS / "wine_grades.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1"}
    packages = ("torch", "numpy", "scikit-learn")
    head = provenance("python tests/benchmarks/wine_grades.py", INPUTS, packages)  # what the run starts from
    start = time.process_time()

    unique = frame.drop_duplicates()
    x, grade = torch.tensor(unique.to_numpy()[:, :DIM]), torch.tensor(unique["quality"].to_numpy()) - 3
    grades, ones, intervals, chains = [], [], [], []
    several: dict[int, list] = {n: [] for n in MISSING}
    for k in args.only:
        fold = Fold(x, grade, k)
        results, energies = grades_of_fold(fold)
        blend = torch.stack([e.log_prob_grade(fold.split.x_test).exp() for e in energies]).mean(0)
        seconds = sum(results[f"{EBM}, seed {seed}"]["seconds"] for seed in SEEDS)
        results["EBM, 3 seeds mixed"] = {"p": blend, "grade": fold.split.grade_test, "seconds": seconds}
        grades.append(results | with_duplicates(k))
        errors, covered = impute_one(fold, energies)
        ones.append(errors)
        intervals.append(covered)
        chains.append(chains_against_lines(fold, energies[0]))
        for n in MISSING:
            several[n].append(impute_several(fold, energies[0], n))
        print(f"fold {k}: {time.process_time() - start:.0f} s of CPU", flush=True)

    rows = [grade_row(name, [f[name] for f in grades]) for name in grades[0]]
    rows.append(seeds_row(rows, EBM))
    imputation = column_rows(ones)
    for name in ("EBM", "noise of the EBM"):
        entry = {key: mean_of_seeds(imputation, name, key) for key in ("per_fold", "by_column")}
        imputation.append({"method": f"{name}, mean of 3 seeds", **entry})
    coverage = column_rows(intervals)
    z = {}
    for name in ("mean", "share below the median"):
        off = torch.cat([c[name] for c in chains])
        z[name] = (off.mean(0) / (off.std(0) / math.sqrt(len(off)))).tolist()
    z["acceptance"] = torch.cat([c["acceptance"] for c in chains]).mean(0).tolist()
    many = [
        {"n_missing": n, "method": name, **dict(zip(("error", "error_se"), summary(values), strict=True))}
        | {"per_fold": values}
        for n, folds in several.items()
        for name in folds[0]
        for values in [[f[name].mean().item() for f in folds]]
    ]
    head["cpu_seconds"] = time.process_time() - start
    tables = {"columns": COLUMNS, "grades": rows, "imputation": imputation, "coverage": coverage}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"provenance": head, **tables, "chains": z, "several": many}, indent=1) + "\n")
    show(rows, imputation, coverage, z, many)


def show(rows: list, imputation: list, coverage: list, z: dict, many: list) -> None:
    for row in rows:
        shown = {key: row.get(key, math.nan) for key in ("mae", "accuracy", "within_one", "log_loss", "kappa", "ece")}
        print(f"{row['model']:45s}", "  ".join(f"{key} {value:.3f}" for key, value in shown.items()))
    for row in imputation + coverage:
        print(f"{row['method']:35s}", " ".join(f"{v:.3f}" for v in row["by_column"]), f"{mean(row['by_column']):.3f}")
    for name, values in z.items():
        print(f"{name:35s}", " ".join(f"{v:+.2f}" for v in values))
    for row in many:
        print(f"{row['n_missing']} missing, {row['method']:35s} {row['error']:.3f} ± {row['error_se']:.3f}")


if __name__ == "__main__":
    main()
