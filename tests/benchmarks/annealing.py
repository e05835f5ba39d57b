"""log Z of Boltzmann machines by annealed importance sampling, 200 repeats against the exact value.

    python tests/benchmarks/annealing.py

writes annealing.json, which chapter 8 shows. Three machines of 16 hidden units, trained by PCD on binarised digits as
in the chapter; a repeat has 100 chains. All repeats run as one batch, and their log weights are split afterwards. A
bracket holds where the exact log Z is between forward - 3 se and reverse + 3 se, a coverage is that of 1.96 se.
Reverse chains start at exact draws. Nothing was chosen.
"""

import json
import math
import time
from typing import Any

import torch
from provenance import RESULTS, provenance
from torch import Tensor
from torch.distributions import Bernoulli, Independent

from ebmlib.annealing import (
    annealed_importance_sampling,
    bennett_acceptance_ratio,
    reverse_annealed_importance_sampling,
)
from ebmlib.datasets import digits
from ebmlib.rbm import RBM, BlockGibbs, exact_log_z
from ebmlib.rbm_exact import exact_samples
from ebmlib.rbm_training import contrastive_epoch

MODULES = ("annealing", "datasets", "energies", "rbm", "rbm_exact", "rbm_training")
INPUTS = ["tests/benchmarks/annealing.py", *(f"ebmlib/{name}.py" for name in MODULES)]
SEEDS, N_TEMPS, N_REPEATS, N_CHAINS = (8, 9, 10), (1, 3, 10, 30, 100, 300, 1000), 200, 100


def trained(x: Tensor, logits: Tensor, seed: int) -> RBM:
    """Return the chapter's machine: PCD with 100 chains, 60 epochs, a rate that falls from .4 to zero."""
    torch.manual_seed(seed)
    rbm = RBM(64, 16)
    with torch.no_grad():
        rbm.visible_bias.copy_(logits)
    chains = Independent(Bernoulli(logits=logits, validate_args=False), 1).sample(torch.Size([100]))
    for epoch in range(60):
        rows = x[torch.randperm(len(x))]
        chains = contrastive_epoch(rbm, rows, 0.4 * (1 - epoch / 60), chains, batch_size=20)
    return rbm


def estimates(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log mean w, its claimed error and the ESS, one for each repeat."""
    groups = log_w.reshape(-1, N_CHAINS)
    value = groups.logsumexp(1) - math.log(N_CHAINS)
    w = (groups - value[:, None]).exp()
    return value, w.std(1) / math.sqrt(N_CHAINS), N_CHAINS / w.square().mean(1)


def quality(error: Tensor, claimed: Tensor) -> dict[str, float]:
    """Return what 200 repeats say of an estimate."""
    return {
        "mean_error": error.mean().item(),
        "rms_error": error.square().mean().sqrt().item(),
        "claimed": claimed.median().item(),
        "coverage": (error.abs() <= 1.96 * claimed).double().mean().item(),
    }


def main() -> None:
    torch.set_num_threads(1)
    head = provenance("python tests/benchmarks/annealing.py", INPUTS, ("torch", "numpy", "scikit-learn"))
    begun = time.process_time()
    x = (digits()[0] > 8).float()
    logits = torch.logit((x.sum(0) + 0.5) / (len(x) + 1))
    base = Independent(Bernoulli(logits=logits, validate_args=False), 1)
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        rbm = trained(x, logits, seed)
        with torch.no_grad():
            truth = exact_log_z(rbm).item()
        for n_temps in N_TEMPS:
            betas = torch.linspace(0, 1, n_temps + 1)
            shared = (rbm, base, BlockGibbs(), betas)

            def path(beta: float, rbm: RBM = rbm) -> RBM:
                return rbm.tempered(beta, logits)

            seconds = []
            for _ in range(5):  # a repeat by itself, as a user would run it
                start = time.process_time()
                annealed_importance_sampling(*shared, N_CHAINS, path=path)
                seconds.append(time.process_time() - start)
            n = N_REPEATS * N_CHAINS
            there = annealed_importance_sampling(*shared, n, path=path).log_w
            back = reverse_annealed_importance_sampling(*shared, exact_samples(rbm, n), path=path).log_w
            (low, low_error, ess), (high, high_error, ess_back) = estimates(there), estimates(back)
            high = -high
            pairs = zip(there.reshape(-1, N_CHAINS), back.reshape(-1, N_CHAINS), strict=True)
            both = torch.tensor([bennett_acceptance_ratio(*pair) for pair in pairs], dtype=torch.float64)
            inside = (low - 3 * low_error <= truth) & (truth <= high + 3 * high_error)
            row = {"seed": seed, "n_temps": n_temps, "log_z": truth, "cpu_ms": 1e3 * min(seconds)}
            row |= {"bracket": inside.double().mean().item()}
            row |= {"forward": quality(low - truth, low_error) | {"ess": ess.median().item()}}
            row |= {"reverse": quality(high - truth, high_error) | {"ess": ess_back.median().item()}}
            row |= {"both": quality(both[:, 0] - truth, both[:, 1])}
            print(row, flush=True)
            rows.append(row)
    head["cpu_seconds"] = time.process_time() - begun
    (RESULTS / "annealing.json").write_text(json.dumps({"provenance": head, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
