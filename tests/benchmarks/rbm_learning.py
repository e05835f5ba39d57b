"""What the bias of CD-1 and PCD costs: exact likelihoods of two small machines after 40, 200 and 1,000 epochs.

    python tests/benchmarks/rbm_learning.py

writes rbm_learning.json, which chapter 4 shows. Binarised 8x8 digits, 12 or 16 hidden units, batches of 20, a
rate that falls in a straight line to zero. The ceiling is the exact gradient by L-BFGS, 1,000 iterations. The control,
for 12 units, is SGD on the exact gradient: the same batches, rate and number of updates as PCD.

Six seeds on one split; for 16 units one more seed on each of eight further splits. Each method, size and length has the
rate with the best mean likelihood of a fifth of the first split's training digits, two seeds that are not used again.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from provenance import RESULTS, provenance
from rbm import annealed_sklearn, fresh, likelihood
from sklearn.model_selection import train_test_split
from torch import Tensor

from ebmlib.datasets import digits
from ebmlib.rbm import RBM, exact_log_z
from ebmlib.rbm_training import contrastive_epoch

INPUTS = [
    *(f"ebmlib/{name}.py" for name in ("datasets", "energies", "rbm", "rbm_training")),
    *(f"tests/benchmarks/{name}.py" for name in ("rbm_learning", "rbm", "provenance")),
]
LENGTHS, BATCH_SIZE = (40, 200, 1000), 20
SEEDS, STUDY_SEEDS = (4, 5, 6, 7, 8, 9), (10, 11)
FURTHER = tuple((split, 20 + split) for split in range(1, 9))  # (split, seed)
AT_REST, N_ITERATIONS = "exact gradient, L-BFGS", 1000


class Method(NamedTuple):
    """How to train, and the rates to choose from, by length."""

    rates: dict[int, tuple[float, ...]]
    n_chains: int = 0
    anneal: bool = True
    sizes: tuple[int, ...] = (12,)


SHORT, LONG, CONSTANT = (0.2, 0.4, 0.8, 1.6), (0.1, 0.2, 0.4, 0.8), (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
FALLING = {40: SHORT, 200: LONG, 1000: LONG}
METHODS = {
    "PCD": Method(FALLING, n_chains=100, sizes=(12, 16)),
    "CD-1": Method(FALLING, sizes=(12, 16)),
    "PCD, constant rate": Method({40: CONSTANT}, n_chains=100, anneal=False),
    "CD-1, constant rate": Method({40: CONSTANT}, anneal=False),
    "BernoulliRBM": Method({40: SHORT, 200: LONG}),
}
CONTROL = "exact gradient"  # takes the rates of PCD


def split(number: int) -> tuple[Tensor, Tensor]:
    """Return training and held-out digits."""
    x = (digits()[0] > 8).float()
    train_rows, test_rows = train_test_split(np.arange(len(x)), test_size=0.2, random_state=number)
    return x[train_rows], x[test_rows]


@cache
def bits(n_units: int) -> Tensor:
    return (torch.arange(2**n_units)[:, None] >> torch.arange(n_units) & 1).float()


def exact_moments(w: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[xhᵀ], E[x] and E[h], the gradient of log Z, in a third of the time that differentiating it takes.

    The hidden units are halves (s, t), as in `exact_log_z`. For each four visible units the sum over their 16 states
    is a matrix of all pairs (s, t); its factors give the probability of each of the 16 with each s, and with each t.
    The visible units have to be a multiple of eight, the hidden ones even.
    """
    n = len(b) // 2
    half, four = bits(n), bits(4)
    inputs = torch.stack([w[:, :n] @ half.T + a[:, None], w[:, n:] @ half.T])
    s, t = torch.exp(four @ inputs.view(2, -1, 4, 2**n))  # half; group of four, its state, state of the half
    groups = torch.bmm(s.mT, t)
    log_sums = groups.unflatten(0, (-1, 2)).prod(1).log().sum(0)  # a logarithm costs more than a product
    log_p = (half @ b[:n])[:, None] + half @ b[n:] + log_sums
    p = torch.softmax(log_p.flatten(), 0).view_as(log_p)
    if not torch.isfinite(p).all():
        raise ValueError("the parameters are too large for single precision")
    share = p / groups
    on_s = (four.T @ (torch.bmm(t, share.mT) * s)).view(len(a), -1)  # p(xᵢ = 1, s)
    on_t = (four.T @ (torch.bmm(s, share) * t)).view(len(a), -1)
    return torch.cat([on_s @ half, on_t @ half], 1), on_s.sum(1), torch.cat([p.sum(1) @ half, p.sum(0) @ half])


@torch.no_grad()
def fit_exactly(n_hidden: int, seed: int, x: Tensor, n_epochs: int, rate: float) -> RBM:
    """Return the machine after SGD on the exact gradient."""
    rbm = fresh(seed, x, n_hidden)
    w, a, b = rbm.parameters()
    for epoch in range(n_epochs):
        for rows in x[torch.randperm(len(x))].split(BATCH_SIZE):
            prob = rbm.hidden_prob(rows)
            data = rows.T @ prob / len(rows), rows.mean(0), prob.mean(0)
            for p, of_data, of_model in zip((w, a, b), data, exact_moments(w, a, b), strict=True):
                p.add_(of_data - of_model, alpha=rate * (1 - epoch / n_epochs))
    return rbm


def fit(name: str, n_hidden: int, seed: int, x: Tensor, n_epochs: int, rate: float) -> RBM:
    """Return the machine after training."""
    method = METHODS[name]
    if name == "BernoulliRBM":
        return annealed_sklearn(seed, x, n_epochs, rate, BATCH_SIZE, n_hidden)
    rbm = fresh(seed, x, n_hidden)
    chains = torch.bernoulli(x.mean(0).expand(method.n_chains, 64)) if method.n_chains else None
    for epoch in range(n_epochs):
        rows, now = x[torch.randperm(len(x))], rate * (1 - epoch / n_epochs) if method.anneal else rate
        ends = contrastive_epoch(rbm, rows, now, chains, batch_size=BATCH_SIZE)
        chains = ends if method.n_chains else None
    return rbm


def fit_to_rest(n_hidden: int, seed: int, x: Tensor) -> tuple[RBM, float]:
    """Return the machine by L-BFGS in double precision, and what the last 100 iterations gained in nats."""
    rbm, x = fresh(seed, x, n_hidden).double(), x.double()
    lbfgs = torch.optim.LBFGS(
        rbm.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe", tolerance_change=0
    )

    def closure():
        lbfgs.zero_grad()
        loss = rbm(x).mean() + exact_log_z(rbm)
        loss.backward()
        return loss

    values = []
    for _ in range(N_ITERATIONS // 100):
        lbfgs.step(closure)
        values.append(likelihood(rbm, x))
    return rbm, values[-1] - values[-2]


def best_rate(rows: list[dict[str, Any]], name: str, n_hidden: int, n_epochs: int) -> float:
    """Return the rate with the highest mean on the validation part."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if (row["method"], row["n_hidden"], row["n_epochs"]) == (name, n_hidden, n_epochs):
            values.setdefault(row["rate"], []).append(row["validation"])
    return max(values, key=lambda rate: np.mean(values[rate]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--limit", type=float, default=np.inf, help="CPU seconds after which to stop; call again to go on"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "rbm_learning.json")
    args = parser.parse_args()
    head = provenance("python tests/benchmarks/rbm_learning.py", INPUTS, ("torch", "numpy", "scikit-learn"))
    torch.set_num_threads(1)
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}, "study": [], "rows": []}
    if args.out.exists():
        earlier = json.loads(args.out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("sha256", "versions", "dirty")):
            results = earlier

    def once(kind: str, make: Callable[[], dict[str, float]], **key: Any) -> None:
        """Add a row to the results and write them, unless it is there."""
        if any(all(row[name] == value for name, value in key.items()) for row in results[kind]):
            return
        if time.process_time() > args.limit:
            raise SystemExit("not done: call again")
        start = time.process_time()
        row = key | make()
        row["cpu_seconds"] = time.process_time() - start
        print(kind, row, flush=True)
        results[kind].append(row)
        results["provenance"]["cpu_seconds"] += row["cpu_seconds"]
        args.out.write_text(json.dumps(results, indent=1) + "\n")

    def scored(rbm: RBM, number: int, **more: Any) -> dict[str, float]:
        x, x_test = (part.to(rbm.weight.dtype) for part in split(number))
        return more | {"train": likelihood(rbm, x), "held_out": likelihood(rbm, x_test)}

    def at_rest(n_hidden: int, seed: int) -> dict[str, float]:
        rbm, gain = fit_to_rest(n_hidden, seed, split(0)[0])
        return scored(rbm, 0, rate=None, last_gain=gain)

    def validated(name: str, n_hidden: int, n_epochs: int, rate: float, seed: int) -> dict[str, float]:
        x, judge = train_test_split(split(0)[0], test_size=0.2, random_state=0)
        return {"validation": likelihood(fit(name, n_hidden, seed, x, n_epochs, rate), judge)}

    def trained(name: str, n_hidden: int, n_epochs: int, number: int, seed: int) -> dict[str, float]:
        rate = best_rate(results["study"], "PCD" if name == CONTROL else name, n_hidden, n_epochs)
        train = fit_exactly if name == CONTROL else partial(fit, name)
        return scored(train(n_hidden, seed, split(number)[0], n_epochs, rate), number, rate=rate)

    for n_hidden, seed in itertools.product((12, 16), SEEDS):
        key = {"method": AT_REST, "n_hidden": n_hidden, "n_epochs": None, "split": 0, "seed": seed}
        once("rows", partial(at_rest, n_hidden, seed), **key)
    for name, n_hidden in [(name, size) for name, method in METHODS.items() for size in method.sizes]:
        rates = [(n_epochs, rate) for n_epochs, several in METHODS[name].rates.items() for rate in several]
        for (n_epochs, rate), seed in itertools.product(rates, STUDY_SEEDS):
            key = {"method": name, "n_hidden": n_hidden, "n_epochs": n_epochs, "rate": rate, "seed": seed}
            once("study", partial(validated, name, n_hidden, n_epochs, rate, seed), **key)
    runs = [(name, size, n) for name, method in METHODS.items() for size in method.sizes for n in method.rates]
    for name, n_hidden, n_epochs in [*runs, *((CONTROL, 12, n_epochs) for n_epochs in LENGTHS)]:
        where = [(0, seed) for seed in SEEDS] + list(FURTHER if n_hidden == 16 else ())
        for number, seed in where:
            key = {"method": name, "n_hidden": n_hidden, "n_epochs": n_epochs, "split": number, "seed": seed}
            once("rows", partial(trained, name, n_hidden, n_epochs, number, seed), **key)


if __name__ == "__main__":
    main()
