"""Held-out nats that score matching adds to a mixture on the red wines, beside noise contrastive estimation.

    python tests/benchmarks/score_wine.py

Protocol B: duplicate rows dropped, ten folds. The wines are log-transformed and standardised; a gain over the base is
the same in every space. The base is a mixture of five Gaussians; each method trains the same tilt of it, from zero,
with the same steps and batches, at three learning rates. Validation, with log Z by importance sampling from the base,
stops each run and chooses the rate; a test part is scored once. `kept` is the gain in nats a wine at the best step,
`moved` the same at test wines moved within their rounding cells, where a comb on the lattice gains nothing, `last` that
at the last step of the chosen run, had nothing stopped it; `ess` is that of 50,000 draws for log Z at the kept step.
Denoising comes with each noise once, with two noises a wine, and with one noise of both signs, at the cost of two.
"""

import argparse
import copy
import json
import math
import time
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
RATES, N_STEPS, EVERY, BATCH, NU = (5e-3, 2e-2, 5e-2), 300, 20, 128, 10
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


def fit(method: str, rate: float, x: Tensor, x_validation: Tensor, base: Any, seed: int) -> dict[str, Any]:
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

    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, N_STEPS)
    batches = minibatches(x, BATCH)
    train(lambda rows: loss(method, energy, log_z, rows, x_noise), adam, batches, N_STEPS, cosine, callback=look)
    return best | {"last": energy.tilt, "rate": rate}


def judged(tilt: MLPEnergy, base: Any, *tests: Tensor) -> tuple[list[float], LogZ]:
    """Return the gain of a tilt over its base at each set of test wines, and its log Z."""
    energy = TiltedEnergy(base, tilt).eval()
    log_z = importance_sampling(energy, base, 50_000)
    return [gain(energy, x, log_z.value) for x in tests], log_z


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "score_wine.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    origin = provenance("python tests/benchmarks/score_wine.py", INPUTS, ("torch", "numpy", "scikit-learn"))
    table = wine_quality("red").drop_duplicates()
    wines = torch.tensor(table.drop(columns="quality").to_numpy(), dtype=torch.float32)
    rows = []
    for k, split in enumerate(kfold(len(wines))):
        x, x_validation, x_test, x_moved = parts(wines, split, k)
        base = mixture(x, 5)
        for method in METHODS:
            runs = [fit(method, rate, x, x_validation, base, seed=k) for rate in RATES]
            chosen = max(runs, key=lambda run: run["validation"])
            (kept, moved), log_z = judged(chosen["tilt"], base, x_test, x_moved)
            (last,), _ = judged(chosen["last"], base, x_test)
            row = {"method": method, "fold": k, "rate": chosen["rate"], "kept": kept, "moved": moved, "last": last}
            rows.append(row | {"ess": log_z.ess, "log_z_error": log_z.std_error})
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    origin["cpu_seconds"] = round(time.process_time())
    out.write_text(json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
