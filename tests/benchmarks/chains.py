"""CD and PCD once more, with more care than `methods.py` gave each method: the toys, budgets and judge are the same.

    python tests/benchmarks/chains.py --jobs 2

The optimizer is that of chapter 7 (`persistent_chains.py`): 512 chains, three moves a step, second moments over a
thousand steps, gradients clipped at 1; both of its settings are among the eight. Settings are judged on two seeds, by
the worse run; for the large budget the best two of the small one are tried again, at that length. Seconds are those of
`methods.py`, whatever the machine: a step of CD and one of PCD are timed in turns with four of its own, and their price
is what they cost relative to these, times what these cost there. A run that is stopped goes on where it was.
"""

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import methods
import torch
from methods import BUDGETS, POOL, SEEDS, TOYS, Setting, judge, rank
from persistent_chains import BUFFER, DECAY, N_CHAINS, make_energy
from provenance import RESULTS, provenance
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ebmlib.buffer import ReplayBuffer
from ebmlib.losses import contrastive_divergence
from ebmlib.samplers import MALA, run
from ebmlib.training import Divergence, minibatches, train

INPUTS = [*methods.INPUTS, "tests/benchmarks/chains.py", "ebmlib/data/results/methods.json"]
METHODS = ("CD", "PCD")
# Learning rate and step size of the chain. The first two are chapter 7's, of eight Gaussians and of rings.
CHAPTER_7 = (Setting(2e-3, 0.05), Setting(1e-2, 0.02))
SETTINGS = (
    *CHAPTER_7,
    *(Setting(2e-3, size) for size in (0.01, 0.02)),
    *(Setting(5e-3, size) for size in (0.01, 0.02, 0.05)),
    Setting(1e-2, 0.01),
)
CHOICE_SEEDS, N_AGAIN, N_CHAIN_STEPS = (100, 101), 2, 3


def fit(toy_name: str, method: str, setting: Setting, seed: int, n_steps: int) -> dict[str, Any]:
    """Return the outcome of one training."""
    torch.manual_seed(seed)
    toy, energy, kernel = TOYS[toy_name], make_energy(), MALA(setting.option)
    x = toy.sample((POOL,))
    buffer = ReplayBuffer(x[:BUFFER] + 0.3 * torch.randn(BUFFER, 2), lambda n: 2 * torch.randn(n, 2))

    def from_data(x_data: Tensor) -> Tensor:
        return contrastive_divergence(energy, x_data, run(kernel, energy, x_data, N_CHAIN_STEPS))

    def persistent(x_data: Tensor) -> Tensor:
        index, x_model = buffer.draw(len(x_data))
        x_model = run(kernel, energy, x_model, N_CHAIN_STEPS)
        buffer.write(index, x_model)
        return contrastive_divergence(energy, x_data, x_model)

    optimizer = torch.optim.Adam(energy.parameters(), setting.lr, betas=(0.0, 0.999), fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    decay = min(DECAY, 1 - 20 / (n_steps + 20))  # a short training averages over less
    averaged: nn.Module = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(decay))
    start, diverged = time.process_time(), None
    try:
        train(
            from_data if method == "CD" else persistent,
            optimizer,
            minibatches(x, N_CHAINS),
            n_steps,
            scheduler,
            max_grad_norm=1.0,
            callback=lambda step, loss: averaged.update_parameters(energy),
        )
    except Divergence as error:
        diverged = str(error)
    seconds = time.process_time() - start
    row = {"data": toy_name, "method": method, "seed": seed, "n_steps": n_steps, **setting._asdict()}
    return row | {"cpu_seconds": seconds, "diverged": diverged} | judge(toy, averaged)


CLOCK = (("NCE, Gaussian", 1.0), ("NCE, Gaussian", 1.5), ("CD", 0.01), ("CD", 0.03))  # of methods.py


def milliseconds(n_steps: int = 60, n_rounds: int = 9) -> dict[str, float]:
    """Return the cost of a step of each method on the clock of methods.json: the median of rounds in turns."""
    stored = json.loads((RESULTS / "methods.json").read_text("utf-8"))["milliseconds_a_step"]
    there = sum(row["ms"] for row in stored if (row["method"], row["option"]) in CLOCK)

    def cost(train_once: Any, method: str, option: float) -> float:
        return train_once("rings", method, Setting(1e-3, option), 7, n_steps)["cpu_seconds"]

    prices = []
    for _ in range(n_rounds):
        here = sum(cost(methods.fit, *key) for key in CLOCK)
        prices.append([there / here * cost(fit, method, 0.02) for method in METHODS])
    return {method: median(of_one) for method, of_one in zip(METHODS, zip(*prices, strict=True), strict=True)}


def chosen(toy_name: str, method: str, steps: list[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Return what was tried for a method on a toy, the rows of what was best, a budget each, and the CPU seconds."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start = time.process_time()
    tried: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    settings = list(SETTINGS)
    for budget, n_steps in zip(BUDGETS, steps, strict=True):
        worse = {}
        for s in settings:
            runs = [{"budget": budget} | fit(toy_name, method, s, seed, n_steps) for seed in CHOICE_SEEDS]
            tried += runs
            worse[s] = max(map(rank, runs))
        settings = sorted(worse, key=worse.__getitem__)[:N_AGAIN]
        rows += [{"budget": budget} | fit(toy_name, method, settings[0], seed, n_steps) for seed in SEEDS]
    return tried, rows, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of each budget, for a quick look")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "chains.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/chains.py" + (f" --share {args.share}" if args.share != 1 else "")
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn"))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}, "tried": [], "rows": []}
    if args.out.exists():
        earlier = json.loads(args.out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("command", "sha256", "versions", "dirty")):
            results = earlier
    if "milliseconds_a_step" not in results:
        results["milliseconds_a_step"] = milliseconds()
    price = results["milliseconds_a_step"]
    order = [(toy_name, method) for toy_name in TOYS for method in METHODS]
    there = {(row["data"], row["method"]) for row in results["rows"]}
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        steps = {m: [max(2, math.floor(args.share * 1000 * b / price[m])) for b in BUDGETS] for m in METHODS}
        runs = {pool.submit(chosen, *key, steps[key[1]]): key for key in order if key not in there}
        for run_ in as_completed(runs):
            tried, rows, seconds = run_.result()
            results["provenance"]["cpu_seconds"] += seconds
            for name, new in (("tried", tried), ("rows", rows)):
                results[name] = sorted(results[name] + new, key=lambda row: order.index((row["data"], row["method"])))
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{runs[run_][0]:16}{runs[run_][1]:6}", *(f"{row['kl']:8.4f}" for row in rows), flush=True)


if __name__ == "__main__":
    main()
