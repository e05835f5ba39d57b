"""Held-out log-likelihood of the red wines: baselines, the levers of chapter 3, the EBM, and blends.

    python tests/benchmarks/wine_density.py [--folds red_wine_folds.npz] [--jobs 2] [--out FILE]

Ten folds. Protocol B (duplicate rows dropped) always; protocol A (the published folds of all rows) with `--folds`.
Nats a wine in the raw space standardised by the nine parts that do not test, whatever space a model lives in: the
Jacobian is added back. Eight parts train and the ninth stops the training; what needs no stopping fits all nine.
Hyperparameters were chosen on validation parts; a test part scores what validation kept. See README.md beside this.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from provenance import RESULTS, provenance
from torch import Tensor
from torch.distributions import MultivariateNormal
from wine_models import (
    DIM,
    Blend,
    Fit,
    KernelDensity,
    Normalized,
    bagged_mixture,
    blend_by_validation,
    fit_energy,
    fit_flow,
    fit_masked_mixtures,
)

from ebmlib.datasets import LogStandardize, Split, kfold, mixture, wine_quality

MODULES = ("datasets", "energies", "losses", "networks", "partition", "tilted", "training")
INPUTS = [
    *(f"ebmlib/{name}.py" for name in MODULES),
    *(f"tests/benchmarks/{name}.py" for name in ("wine_density", "wine_models", "provenance")),
    "ebmlib/data/winequality-red.csv",
]
LOG_COLUMNS = [0, 1, 3, 4, 5, 6, 9, 10]  # all but citric acid (often zero), density and pH
LATTICE = [0.1, 0.005, 0.01, 0.1, 0.001, 1.0, 1.0, 1e-5, 0.01, 0.01, 0.1]  # the step each column is rounded to
SEEDS = (0, 1, 2)
N_NETWORKS = 20

EBM = "EBM (NCE, energy tilted from its noise)"
NOISE = "its noise: 8 bagged mixtures of 5 Gaussians, tails"
NETWORKS = f"autoregressive networks, {N_NETWORKS} mixed"
BLEND = "blend: networks and the EBM, weight by validation"
PLAIN = {"tilted": False, "whitened": False, "nu": 1, "drop": 0.0, "weight_decay": 0.0, "jitter": 0.0, "bound": None}
# Each step changes one thing and keeps what the steps before it changed: name, space, noise, settings.
LADDER: list[tuple[str, str, str, dict[str, Any]]] = [
    ("raw features, noise N(0, I), nu = 1", "raw", "standard", PLAIN),
    ("+ scale: standardised", "standardised", "standard", {}),
    ("+ energy tilted from log q", "standardised", "standard", {"tilted": True}),
    ("+ log-transform", "u", "standard", {}),
    ("+ noise: full Gaussian", "u", "gaussian", {}),
    ("+ noise: mixture of 8 Gaussians", "u", "mixture", {}),
    ("+ nu = 10", "u", "mixture", {"nu": 10}),
    ("+ dropout .2, weight decay .01", "u", "mixture", {"drop": 0.2, "weight_decay": 0.01}),
    ("+ whitened view", "u", "mixture", {"whitened": True}),
    ("+ jitter .1", "u", "mixture", {"jitter": 0.1}),
    ("+ bounded to 4 nats", "u", "mixture", {"bound": 4.0}),
]
# Noise from bagged mixtures makes the last step the EBM. From there, one thing at a time:
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("EBM, nu = 1", "bagged", {"nu": 1}),
    ("EBM, nu = 20", "bagged", {"nu": 20}),
    ("EBM, no dropout, no weight decay", "bagged", {"drop": 0.0, "weight_decay": 0.0}),
    ("EBM, not tilted", "bagged", {"tilted": False, "bound": None}),
    ("EBM, noise: neural spline flow", "flow", {}),
    ("EBM, conditional NCE, width .6", "bagged", {"conditional": 0.6}),
]


class Part(NamedTuple):
    """Wines in a model's space, with what turns log p there into log p in the reporting space."""

    x: Tensor
    jacobian: Tensor


class Fold(NamedTuple):
    """One fold; `dequantised` holds the test wines moved within their rounding cells, where combs gain nothing."""

    space: str
    train: Tensor
    validation: Part
    nine: Tensor
    test: Part
    dequantised: Part


class Result(NamedTuple):
    """What one model gives on one fold: nats a wine on three parts, CPU seconds, and the energy's constant."""

    space: str
    test: float
    dequantised: float
    validation: float
    seconds: float
    fit: Fit | None = None


def make_fold(x: Tensor, split: Split, space: str) -> Fold:
    """Return a fold in the space `raw`, `standardised` or `u` (log-transform, standardised)."""
    nine = x[np.concatenate([split.train, split.validation])]
    report = LogStandardize(nine)
    scale = LogStandardize(nine, LOG_COLUMNS) if space == "u" else report

    def part(rows: Tensor) -> Part:
        if space == "raw":
            return Part(rows.float(), -report.log_abs_det(rows))
        return Part(scale.forward(rows).float(), scale.log_abs_det(rows) - report.log_abs_det(rows))

    test = x[split.test]
    shift = torch.rand(test.shape, generator=torch.Generator().manual_seed(0)).double() - 0.5
    moved = test + shift * torch.tensor(LATTICE, dtype=x.dtype)
    train, validation = part(x[split.train]).x, part(x[split.validation])
    return Fold(space, train, validation, part(nine).x, part(test), part(moved))


def score(log_prob: Callable[[Tensor], Tensor], fold: Fold, seconds: float, fit: Fit | None = None) -> Result:
    with torch.no_grad():
        parts = fold.test, fold.dequantised, fold.validation
        nats = [(log_prob(part.x).double() + part.jacobian).mean().item() for part in parts]
    return Result(fold.space, *nats, seconds, fit and fit._replace(energy=None))


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return make(), time.process_time() - start


def chosen(fit: Callable[[Tensor, Any], Any], options: Sequence, fold: Fold) -> Any:
    """Return the option that, fitted to eight parts, the ninth likes best, refitted to all nine."""
    likes = [fit(fold.train, option).log_prob(fold.validation.x).mean().item() for option in options]
    return fit(fold.nine, options[int(np.argmax(likes))])


def standard_normal() -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(DIM), torch.eye(DIM))


def measure(protocol: str, k: int, x: Tensor, split: Split) -> dict[str, Result]:
    """Return all results of one fold, in the order of the table."""
    torch.set_num_threads(1)
    folds = {space: make_fold(x, split, space) for space in ("raw", "standardised", "u")}
    fold, results = folds["u"], {}
    data = fold.train, fold.validation.x

    def add(name: str, model: Any, seconds: float, fold: Fold = fold, fit: Fit | None = None) -> None:
        results[name] = score(model.log_prob, fold, seconds, fit)

    # Baselines: fitted to nine parts, or stopped on the ninth; what is random is also mixed over fits, as the EBM is.
    seeds = [100 * seed + k for seed in SEEDS]
    add("Gaussian, raw", *timed(lambda: mixture(folds["standardised"].nine, 1)), folds["standardised"])
    add("Gaussian", *timed(lambda: mixture(fold.nine, 1)))
    add("Gaussian mixture", *timed(lambda: chosen(lambda x, n: bagged_mixture(x, n, 1), (2, 4, 6, 8, 12, 16), fold)))
    add("Gaussian mixtures, 16 bagged", *timed(lambda: chosen(lambda x, n: bagged_mixture(x, n, 16), (6, 12), fold)))
    add("kernel density, whitened", *timed(lambda: chosen(KernelDensity, (0.15, 0.2, 0.25, 0.3, 0.4, 0.5), fold)))
    flows = [timed(lambda s=s: fit_flow(*data, s)) for s in seeds[:2]]
    add("neural spline flow", *flows[0])
    add("neural spline flows, 2 mixed", Blend([f for f, _ in flows]), sum(s for _, s in flows))
    four, seconds = timed(lambda: fit_masked_mixtures(*data, 4, k, drop=0.2, together=False))
    results["autoregressive network"] = score(lambda x: four.each_log_prob(x)[0], fold, seconds / 4)
    add("autoregressive networks, 4 mixed", four, seconds)
    networks, seconds_networks = timed(lambda: fit_masked_mixtures(*data, N_NETWORKS, k, drop=0.1, together=True))
    add(NETWORKS, networks, seconds_networks)

    # The EBM, three seeds, each with noise of its own.
    members, seconds_ebm = [], 0.0
    for seed, s in zip(SEEDS, seeds, strict=True):
        noise, seconds = timed(lambda s=s: bagged_mixture(fold.train, 5, 8, s, tail=0.1))
        fit = fit_energy(*data, noise, s, adapt=True)
        members.append(Normalized(fit.energy, fit.log_z.value))
        add(f"{NOISE}, seed {seed}", noise, seconds)
        add(f"{EBM}, seed {seed}", members[-1], seconds + fit.seconds, fit=fit)
        seconds_ebm += seconds + fit.seconds
        if seed == 0:
            bagged = noise
    add("EBM, 3 mixed", Blend(members), seconds_ebm)
    blend = blend_by_validation([networks, members[0]], fold.validation.x)
    seconds = seconds_networks + results[f"{NOISE}, seed 0"].seconds + results[f"{EBM}, seed 0"].seconds
    add(BLEND, blend, seconds)

    if protocol == "B":
        noises = {"bagged": bagged, "flow": flows[0][0], "standard": standard_normal()}
        noises |= {"gaussian": bagged_mixture(fold.train, 1, 1), "mixture": bagged_mixture(fold.train, 8, 1, k)}
        settings: dict[str, Any] = {}
        for name, space, noise_name, change in LADDER:
            settings |= change
            # N(0, I) alone is a proposal that misses data: half of the draws come from a mixture.
            part, noise = folds[space], noises[noise_name]
            proposal = Blend([noise, mixture(part.train, 8)]) if noise_name == "standard" else None
            fit = fit_energy(part.train, part.validation.x, noise, k, proposal, **settings)
            add(name, Normalized(fit.energy, fit.log_z.value), fit.seconds, part, fit)
        for name, noise_name, change in VARIANTS:
            fit = fit_energy(*data, noises[noise_name], k, **change)
            add(name, Normalized(fit.energy, fit.log_z.value), fit.seconds, fit=fit)
    return results


# ---------------------------------------------------------------- the table


def group(name: str) -> str:
    if name.startswith("blend"):
        return "blend"
    if name in [step[0] for step in LADDER] or name in [variant[0] for variant in VARIANTS]:
        return "lever"
    return "ebm" if name.startswith((EBM, NOISE, "EBM")) else "baseline"


def fits(name: str) -> str:
    if name.startswith(("Gaussian", "kernel")):
        return "9 parts"
    return "8 parts" if name.startswith(NOISE) else "8 parts, stopped on the ninth"


def summary(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def make_row(protocol: str, name: str, results: list[Result]) -> dict[str, Any]:
    nats_mean, nats_se = summary([r.test for r in results])
    ours = [r.fit for r in results if r.fit]
    log_z = {
        "learned_minus_is": [f.learned - f.log_z.value for f in ours],
        "learned_jointly_minus_is": [f.learned_jointly - f.log_z.value for f in ours],
        "std_error": [f.log_z.std_error for f in ours],
        "ess_fraction": [f.ess_fraction for f in ours],
    }
    if "conditional" in name:  # conditional NCE learns no constant
        del log_z["learned_minus_is"], log_z["learned_jointly_minus_is"]
    return {
        "protocol": protocol,
        "group": group(name),
        "model": name,
        "space": results[0].space,
        "fits": fits(name),
        "nats_mean": nats_mean,
        "nats_se": nats_se,
        "per_fold": [r.test for r in results],
        "dequantised_mean": mean(r.dequantised for r in results),
        "validation_mean": None if fits(name) == "9 parts" else mean(r.validation for r in results),
        "cpu_s_per_fold": mean(r.seconds for r in results),
        "log_z": log_z if ours else None,
    }


def mean_of_rows(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the row of a model whose seeds have a row each: the mean over seeds of each figure, fold by fold."""
    seeds = [row for row in rows if row["model"].startswith(f"{name}, seed")]
    per_fold = [mean(values) for values in zip(*(row["per_fold"] for row in seeds), strict=True)]
    nats_mean, nats_se = summary(per_fold)
    figures = ("dequantised_mean", "validation_mean", "cpu_s_per_fold")
    means = {figure: mean(row[figure] for row in seeds) for figure in figures}
    head = {"model": f"{name}, mean of {len(seeds)} seeds", "nats_mean": nats_mean, "nats_se": nats_se}
    return seeds[0] | head | {"per_fold": per_fold, "log_z": None} | means


def mean_of_seeds(folds: list[dict[str, Result]], name: str) -> list[float]:
    return [mean(fold[f"{name}, seed {seed}"].test for seed in SEEDS) for fold in folds]


def make_pairs(protocol: str, folds: list[dict[str, Result]]) -> list[dict[str, Any]]:
    """Return differences on the same folds, with their standard error."""

    def test(name: str) -> list[float]:
        return [fold[name].test for fold in folds]

    seed0 = f"{EBM}, seed 0"
    pairs = [
        (f"{EBM}, mean of 3 seeds", NOISE, mean_of_seeds(folds, EBM), mean_of_seeds(folds, NOISE)),
        ("EBM, 3 mixed", "Gaussian mixtures, 16 bagged", test("EBM, 3 mixed"), test("Gaussian mixtures, 16 bagged")),
        (BLEND, NETWORKS, test(BLEND), test(NETWORKS)),
    ]
    if protocol == "B":
        steps = [step[0] for step in LADDER] + [seed0]
        pairs += [(new, old, test(new), test(old)) for old, new in zip(steps, steps[1:], strict=False)]
        pairs += [(name, seed0, test(name), test(seed0)) for name, _, _ in VARIANTS]
    rows = []
    for model, against, new, old in pairs:
        gains = [a - b for a, b in zip(new, old, strict=True)]
        gain, se = summary(gains)
        z = gain / se
        rows.append(
            {"protocol": protocol, "model": model, "against": against, "gain_mean": gain, "gain_se": se, "z": z}
        )
        rows[-1]["per_fold"] = gains
    return rows


def published_splits(path: Path) -> list[Split]:
    """Return the ten folds of a file with one array `block`: 0 tests, 1–8 train, 9 validates."""
    blocks = np.load(path)["block"]
    return [Split(*(np.flatnonzero(part) for part in ((b > 0) & (b < 9), b == 9, b == 0))) for b in blocks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=Path, help="the published folds (npz); adds protocol A")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--only", type=int, nargs="+", default=range(10), help="fold numbers, for a quick look")
    parser.add_argument("--out", type=Path, default=RESULTS / "wine_density.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/wine_density.py" + (" --folds red_wine_folds.npz" if args.folds else "")
    command += f" --jobs {args.jobs}" if args.jobs > 1 else ""
    others = {"published folds": args.folds} if args.folds else {}
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn", "zuko"), others)  # before anything changes

    frame = wine_quality("red")
    unique = torch.tensor(frame.drop_duplicates().to_numpy()[:, :DIM])
    protocols = {"B": (unique, kfold(len(unique)))}
    if args.folds:
        protocols["A"] = (torch.tensor(frame.to_numpy()[:, :DIM]), published_splits(args.folds))
    rows, pairs = [], []
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # for the processes started below
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        jobs = {
            p: [pool.submit(measure_timed, p, k, x, splits[k]) for k in args.only]
            for p, (x, splits) in protocols.items()
        }
        done = {p: [job.result() for job in of_protocol] for p, of_protocol in jobs.items()}
    for protocol, outcomes in done.items():
        folds = [results for results, _ in outcomes]
        rows += [make_row(protocol, name, [fold[name] for fold in folds]) for name in folds[0]]
        rows += [mean_of_rows([r for r in rows if r["protocol"] == protocol], name) for name in (NOISE, EBM)]
        pairs += make_pairs(protocol, folds)
    head["cpu_seconds"] = sum(seconds for outcomes in done.values() for _, seconds in outcomes)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"provenance": head, "rows": rows, "paired": pairs}, indent=1) + "\n")

    for row in rows:
        z = row["log_z"]
        extra = f"  ESS ≥ {min(z['ess_fraction']):.0%}, se ≤ {max(z['std_error']):.4f}" if z else ""
        if z and "learned_minus_is" in z:
            extra += f", learned - IS in {min(z['learned_minus_is']):+.3f} … {max(z['learned_minus_is']):+.3f}"
        figures = f"{row['nats_mean']:9.3f} ± {row['nats_se']:.3f}  {row['cpu_s_per_fold']:5.1f} s"
        print(f"{row['protocol']} {row['model']:52s} {figures}{extra}")
    for pair in pairs:
        gain = f"{pair['gain_mean']:+8.3f} ± {pair['gain_se']:.3f} (z = {pair['z']:.1f})"
        print(f"{pair['protocol']} {pair['model']:52s} {gain} against {pair['against']}")


def measure_timed(*args: Any) -> tuple[dict[str, Result], float]:
    import sklearn.mixture  # noqa: F401
    import zuko  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # as the imports above: not the models' seconds
    return timed(lambda: measure(*args))


if __name__ == "__main__":
    main()
