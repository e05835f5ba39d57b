"""CD-1 beside PCD at the rates that are best on training digits; the exact gradient at a constant rate.

    python tests/benchmarks/rbm_rates.py

writes rbm_rates.json, which chapter 4 shows. In rbm_learning.py rates are chosen on digits that were not trained on:
a lead on training digits is in part a difference of rates. Here, for 200 epochs, a method has the rate with the
best mean likelihood of the digits that it trained on, two seeds that are not used again.

The exact gradient has no bias: what it pays for a rate that never falls, in 40 epochs, is the price of SGD. That rate
is chosen as for the others at a constant rate, on a fifth of the training digits. Seeds and splits are those of
rbm_learning.py.
"""

import itertools
import json
import time
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, provenance
from rbm import fresh, likelihood
from rbm_learning import BATCH_SIZE, CONTROL, FURTHER, INPUTS, SEEDS, STUDY_SEEDS, exact_moments, fit, split
from sklearn.model_selection import train_test_split
from torch import Tensor

from ebmlib.rbm import RBM

INPUTS = [*INPUTS, "tests/benchmarks/rbm_rates.py"]
MACHINES = tuple(itertools.product(("CD-1", "PCD"), (12, 16)))
RATES, N_EPOCHS = (0.2, 0.4, 0.8, 1.6), 200
STEADY, STEADY_RATES, N_STEADY = f"{CONTROL}, constant rate", (0.05, 0.1, 0.2, 0.4), 40


@torch.no_grad()
def fit_steadily(seed: int, x: Tensor, rate: float) -> RBM:
    """Return the machine of 12 hidden units after SGD on the exact gradient at a constant rate."""
    rbm = fresh(seed, x, 12)
    w, a, b = rbm.parameters()
    for _ in range(N_STEADY):
        for rows in x[torch.randperm(len(x))].split(BATCH_SIZE):
            prob = rbm.hidden_prob(rows)
            data = rows.T @ prob / len(rows), rows.mean(0), prob.mean(0)
            for p, of_data, of_model in zip((w, a, b), data, exact_moments(w, a, b), strict=True):
                p.add_(of_data - of_model, alpha=rate)
    return rbm


def best_rate(study: list[dict[str, Any]], name: str, n_hidden: int) -> float:
    """Return the rate with the highest mean score."""
    scores: dict[float, list[float]] = {}
    for row in study:
        if (row["method"], row["n_hidden"]) == (name, n_hidden):
            scores.setdefault(row["rate"], []).append(row["score"])
    return max(scores, key=lambda rate: np.mean(scores[rate]))


def main() -> None:
    torch.set_num_threads(1)
    head = provenance("python tests/benchmarks/rbm_rates.py", INPUTS, ("torch", "numpy", "scikit-learn"))
    start = time.process_time()
    study: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def add(to: list[dict[str, Any]], **row: Any) -> None:
        print(row, flush=True)
        to.append(row)

    x = split(0)[0]
    for (name, n_hidden), rate, seed in itertools.product(MACHINES, RATES, STUDY_SEEDS):
        score = likelihood(fit(name, n_hidden, seed, x, N_EPOCHS, rate), x)
        add(study, method=name, n_hidden=n_hidden, n_epochs=N_EPOCHS, rate=rate, seed=seed, score=score)
    part, judge = train_test_split(x, test_size=0.2, random_state=0)
    for rate, seed in itertools.product(STEADY_RATES, STUDY_SEEDS):
        score = likelihood(fit_steadily(seed, part, rate), judge)
        add(study, method=STEADY, n_hidden=12, n_epochs=N_STEADY, rate=rate, seed=seed, score=score)

    def score_all(rbm: RBM, number: int) -> dict[str, float]:
        return {"train": likelihood(rbm, split(number)[0]), "held_out": likelihood(rbm, split(number)[1])}

    first = [(0, seed) for seed in SEEDS]
    for name, n_hidden in MACHINES:
        rate = best_rate(study, name, n_hidden)
        for number, seed in first + list(FURTHER if n_hidden == 16 else ()):
            key = {"method": name, "n_hidden": n_hidden, "n_epochs": N_EPOCHS, "rate": rate}
            scores = score_all(fit(name, n_hidden, seed, split(number)[0], N_EPOCHS, rate), number)
            add(rows, **key, split=number, seed=seed, **scores)
    rate = best_rate(study, STEADY, 12)
    for number, seed in first:
        key = {"method": STEADY, "n_hidden": 12, "n_epochs": N_STEADY, "rate": rate}
        add(rows, **key, split=number, seed=seed, **score_all(fit_steadily(seed, x, rate), number))
    head["cpu_seconds"] = time.process_time() - start
    (RESULTS / "rbm_rates.json").write_text(
        json.dumps({"provenance": head, "study": study, "rows": rows}, indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
