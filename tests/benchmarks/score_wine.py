"""Held-out nats that score matching adds to a mixture on the red wines, beside noise contrastive estimation.

    python tests/benchmarks/score_wine.py [--jobs 2]

Protocol B: duplicate rows dropped, ten folds. The wines are log-transformed and standardised; a gain over the base is
the same in every space. The base is a mixture of five Gaussians; each method trains the same tilt of it, from zero,
with the same steps and batches: 300 at four learning rates, and 1,500 at the lower three. Validation, with log Z by
importance sampling from the base, stops each run and chooses the rate of each number of steps; of a run so chosen a
test part is scored once. `kept` is the gain in nats a wine at the best step,
`moved` the same at test wines moved within their rounding cells, where a comb on the lattice gains nothing, `last` that
at the last step of the chosen run, had nothing stopped it; `ess` is that of 50,000 draws for log Z at the kept step.
Denoising comes with each noise once, with two noises a wine, and with one noise of both signs, at the cost of two.
"""

import argparse
import copy
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, provenance
from torch import Tensor

from ebmlib.datasets import LogStandardize, Split, kfold, mixture, wine_quality
from ebmlib.energies import score
from ebmlib.losses import nce_from_logits
from ebmlib.networks import MLPEnergy
from ebmlib.partition import LogZ, importance_sampling
from ebmlib.score_matching import denoising_score_matching, sliced_score_matching
from ebmlib.tilted import TiltedEnergy
from ebmlib.training import minibatches, train

MODULES = ("datasets", "energies", "losses", "networks", "partition", "score_matching", "tilted", "training")
INPUTS = [
    *(f"ebmlib/{name}.py" for name in MODULES),
    *(f"tests/benchmarks/{name}.py" for name in ("score_wine", "provenance")),
    "ebmlib/data/winequality-red.csv",
]
LOG_COLUMNS = [0, 1, 3, 4, 5, 6, 9, 10]
METHODS = (
    *("NCE", "sliced", "denoising, σ = 0.1", "denoising, σ = 0.3", "two noises, σ = 0.1"),
    *("both signs, σ = 0.05", "both signs, σ = 0.1", "both signs, σ = 0.2"),
)
RATES = {300: (1e-3, 5e-3, 2e-2, 5e-2), 1500: (1e-3, 5e-3, 2e-2)}  # by the number of steps
EVERY, BATCH, NU = 20, 128, 10
LATTICE = [0.1, 0.005, 0.01, 0.1, 0.001, 1.0, 1.0, 1e-5, 0.01, 0.01, 0.1]  # the step each column is rounded to


def parts(wines: Tensor, split: Split, seed: int) -> tuple[Tensor, ...]:
    """Return training, validation and test wines in the space of the nine parts that do not test, and the test wines
    moved at random within their rounding cells.
    """
    space = LogStandardize(wines[np.concatenate([split.train, split.validation])], LOG_COLUMNS)
    test = wines[split.test]
    shift = torch.rand(test.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    moved = test + shift * torch.tensor(LATTICE)
    return tuple(space.forward(x) for x in (wines[split.train], wines[split.validation], test, moved))


def loss(method: str, energy: TiltedEnergy, log_z: Tensor, x: Tensor, x_noise: Tensor) -> Tensor:
    if method == "NCE":  # log q cancels
        rows = x_noise[torch.randint(len(x_noise), (NU * len(x),))]
        return nce_from_logits(-energy.tilt(x) - log_z, -energy.tilt(rows) - log_z, NU)
    if method == "sliced":
        return sliced_score_matching(energy, x)
    std = float(method.rpartition(" ")[2])
    if method.startswith("both signs"):
        xi = torch.randn(x.shape)
        s = score(energy, torch.cat([x + std * xi, x - std * xi]))
        return (s + torch.cat([xi, -xi]) / std).square().sum(1).mean() / 2
    return denoising_score_matching(energy, x.repeat(2, 1) if method.startswith("two noises") else x, std)


@torch.no_grad()
def gain(energy: TiltedEnergy, x: Tensor, log_z: float) -> float:
    """Return the mean of log p - log q over wines, in nats."""
    energy.eval()
    value = -energy.tilt(x).mean().item() - log_z
    energy.train()
    return value


def fit(
    method: str, rate: float, n_steps: int, x: Tensor, x_validation: Tensor, base: Any, seed: int
) -> dict[str, Any]:
    """Return the tilts at the best and at the last step, and the validation gain of the best."""
    torch.manual_seed(seed)
    energy = TiltedEnergy(base, MLPEnergy(x.shape[1], (128, 128), dropout=0.2, zero_last=True))
    log_z = torch.nn.Parameter(torch.zeros(()))
    with torch.no_grad():
        x_noise, x_fresh = base.sample((40_000,)), base.sample((10_000,))
    adam = torch.optim.AdamW(
        [{"params": energy.tilt.parameters(), "weight_decay": 0.01}, {"params": [log_z], "weight_decay": 0.0}], lr=rate
    )
    best: dict[str, Any] = {"validation": 0.0, "tilt": copy.deepcopy(energy.tilt)}

    def look(step: int, _: float) -> None:
        if (step + 1) % EVERY == 0:
            energy.eval()
            with torch.no_grad():
                estimate = torch.logsumexp(-energy.tilt(x_fresh), 0).item() - math.log(len(x_fresh))
            value = gain(energy, x_validation, estimate)
            if value > best["validation"]:
                best.update(validation=value, tilt=copy.deepcopy(energy.tilt))

    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    batches = minibatches(x, BATCH)
    train(lambda rows: loss(method, energy, log_z, rows, x_noise), adam, batches, n_steps, cosine, callback=look)
    return best | {"last": energy.tilt, "rate": rate}


def judged(tilt: MLPEnergy, base: Any, *tests: Tensor) -> tuple[list[float], LogZ]:
    """Return the gain of a tilt over its base at each set of test wines, and its log Z."""
    energy = TiltedEnergy(base, tilt).eval()
    log_z = importance_sampling(energy, base, 50_000)
    return [gain(energy, x, log_z.value) for x in tests], log_z


def measure(fold: int, wines: Tensor, split: Split) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of one fold, and the CPU seconds they took."""
    start = time.process_time()
    torch.set_num_threads(1)
    x, x_validation, x_test, x_moved = parts(wines, split, fold)
    base = mixture(x, 5)
    rows = []
    for n_steps, rates in RATES.items():
        for method in METHODS:
            runs = [fit(method, rate, n_steps, x, x_validation, base, seed=fold) for rate in rates]
            chosen = max(runs, key=lambda run: run["validation"])
            (kept, moved), log_z = judged(chosen["tilt"], base, x_test, x_moved)
            (last,), _ = judged(chosen["last"], base, x_test)
            row = {"method": method, "steps": n_steps, "fold": fold, "rate": chosen["rate"], "kept": kept}
            rows.append(row | {"moved": moved, "last": last, "ess": log_z.ess, "log_z_error": log_z.std_error})
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one thread")
    parser.add_argument("--out", type=Path, default=RESULTS / "score_wine.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/score_wine.py" + (f" --jobs {args.jobs}" if args.jobs > 1 else "")
    origin = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn"))
    table = wine_quality("red").drop_duplicates()
    wines = torch.tensor(table.drop(columns="quality").to_numpy(), dtype=torch.float32)
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}  # for the processes started below
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        jobs = [pool.submit(measure, k, wines, split) for k, split in enumerate(kfold(len(wines)))]
        outcomes = [job.result() for job in jobs]
    origin["cpu_seconds"] = round(sum(seconds for _, seconds in outcomes))
    rows = [row for of_fold, _ in outcomes for row in of_fold]
    args.out.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
