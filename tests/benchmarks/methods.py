"""Every way to train one energy, against one truth: KL(data‖model) by quadrature, for equal CPU time.

    python tests/benchmarks/methods.py

Four toys whose density is known, three seeds, two budgets. All contenders train the same network on the same pool of
draws, by Adam along a cosine, and are judged by a running average of the weights. A budget of CPU seconds is turned
into a number of steps by the cost of a step, measured beforehand, all methods in turns; so what else the machine does
falls on all alike, and a run can be repeated. Each method has six settings; for each toy the best at the small budget
on seed 100 is taken. For the large budget the best three of these are tried again, at that length: some are too bold
there. All that was tried is in the results. `noise` is the fitted mixture itself, 32 components by expectation
maximisation: the plainest rival. A run that is stopped goes on where it was when it is called again.

- `exact`: descends the KL on one of many grids, moved within a cell: what no method can do in general.
- `levels` learns E(x, σ) at many noise levels at once; its model is that of the smallest σ.
- `kl`, `log_z_error` (learned constant less quadrature) in nats; `missed` is the data's mass where the model has less
  than a tenth of the density.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from persistent_chains import grid, make_energy
from provenance import RESULTS, provenance
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ebmlib.buffer import ReplayBuffer
from ebmlib.datasets import mixture
from ebmlib.energies import Energy, score
from ebmlib.losses import conditional_noise_contrastive, contrastive_divergence, nce_from_logits
from ebmlib.networks import MLPEnergy
from ebmlib.samplers import MALA, run
from ebmlib.score_matching import denoising_score_matching, exact_score_matching, sliced_score_matching
from ebmlib.toys import checkerboard, eight_gaussians, rings, two_moons
from ebmlib.training import Divergence, minibatches, train

MODULES = "buffer datasets energies losses networks samplers score_matching toys training".split()
INPUTS = [
    *(f"ebmlib/{name}.py" for name in MODULES),
    *(f"tests/benchmarks/{n}.py" for n in ("methods", "persistent_chains", "provenance")),
]
TOYS: dict[str, Any] = {
    "two moons": two_moons(),
    "rings": rings(),
    "eight Gaussians": eight_gaussians(),
    "checkerboard": checkerboard(),
}
SEEDS, CHOICE_SEED, BUDGETS = (0, 1, 2), 100, (5.0, 20.0)
BATCH, POOL, FITTED, NU = 256, 200_000, 20_000, 4
N_AGAIN = 3  # settings that are tried at the large budget too


Blocks = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # what was tried for a method on a toy, and found


class Setting(NamedTuple):
    """What is chosen for a method and a toy."""

    lr: float
    option: float  # its meaning is the method's


RATES = (3e-3, 1e-2, 3e-2)
MORE_RATES = (2e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)  # of a method without an option
# Method: what its option is, and the six settings that are tried.
GRID: dict[str, tuple[str, list[Setting]]] = {
    "exact": ("none", [Setting(lr, 0) for lr in MORE_RATES]),
    "NCE, Gaussian": ("width over the data's", [Setting(lr, o) for lr in RATES for o in (1.0, 1.5)]),
    "NCE, mixture": ("components", [Setting(lr, o) for lr in RATES for o in (8, 32)]),
    "conditional NCE": ("width of the kernel", [Setting(lr, o) for lr in RATES for o in (0.2, 0.5)]),
    "CD": ("step size of the chain", [Setting(lr, o) for lr in RATES for o in (0.01, 0.03)]),
    "PCD": ("step size of the chain", [Setting(lr, o) for lr in RATES for o in (0.01, 0.03)]),
    "score matching": ("none", [Setting(lr, 0) for lr in MORE_RATES]),
    "sliced": ("none", [Setting(lr, 0) for lr in MORE_RATES]),
    "denoising": ("σ", [Setting(lr, o) for lr in RATES for o in (0.05, 0.1)]),
    "levels": ("smallest σ", [Setting(lr, o) for lr in RATES for o in (0.05, 0.1)]),
}
N_CHAIN_STEPS, LARGEST_SIGMA, N_GRIDS = 3, 2.0, 64


@torch.no_grad()
def judge(toy: Any, energy: Energy) -> dict[str, float]:
    """Return KL(data‖model), log Z and the missed mass, by the midpoint rule on 240² points."""
    x, area = grid(240)
    log_p, e = toy.log_prob(x).double(), energy(x).double()
    log_z = torch.logsumexp(-e, 0).item() + math.log(area)
    p, log_model = log_p.exp() * area, -e - log_z
    held = p > 0
    nats = (p * (log_p - log_model))[held].sum() - p.sum().log()  # a checkerboard's edges lie on the cells' edges
    missed = p[held & (log_model < log_p - math.log(10))].sum() / p.sum()
    return {"kl": nats.item(), "log_z": log_z, "missed": missed.item()}


class Levels(nn.Module):
    """E(x, σ): a network of x and log σ, over √σ, for the energy of sharper data is steeper; confined."""

    def __init__(self, sigma: float):
        super().__init__()
        self.net, self.sigma = MLPEnergy(3, (64, 64)), sigma

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        sigma = x.new_full((len(x), 1), self.sigma) if sigma is None else sigma
        confined = x.square().sum(1) / (2 * (4 + sigma.square().squeeze(1)))
        return self.net(torch.cat([x, sigma.log()], 1)) / sigma.squeeze(1).sqrt() + confined


def make_model(method: str, option: float) -> nn.Module:
    """Return the network of `persistent_chains`, or with the noise as an input; the first layer starts as large."""
    if method != "levels":
        return make_energy()
    model = Levels(option)
    first: Any = model.net.net[0]
    with torch.no_grad():
        for p in first.parameters():
            p.mul_(2)
    return model


def make_loss(
    method: str, option: float, toy: Any, energy: Any, log_z: Tensor, x: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the loss of a batch; x is the pool of data, on which noise is fitted and in which chains start."""
    coarse, area = grid(64)
    kernel = MALA(option or 1.0)  # of the chains alone
    buffer = ReplayBuffer(x[:2000] + 0.3 * torch.randn(2000, 2), lambda n: 2 * torch.randn(n, 2))

    shifted = [coarse + (torch.rand(2) - 0.5) * math.sqrt(area) for _ in range(N_GRIDS if method == "exact" else 0)]
    grids = [
        (points, torch.softmax(toy.log_prob(points), 0)) for points in shifted
    ]  # the toy's own cost counts for none

    def exact(_: Tensor) -> Tensor:
        points, p = grids[int(torch.randint(len(grids), ()))]
        e = energy(points)
        return p @ e + torch.logsumexp(-e, 0)

    def persistent(x_data: Tensor) -> Tensor:
        index, x_model = buffer.draw(len(x_data))
        x_model = run(kernel, energy, x_model, N_CHAIN_STEPS)
        buffer.write(index, x_model)
        return contrastive_divergence(energy, x_data, x_model)

    def levels(x_data: Tensor) -> Tensor:
        sigma = option * (LARGEST_SIGMA / option) ** torch.rand(len(x_data), 1)
        xi = torch.randn_like(x_data)
        s = score(lambda y: energy(y, sigma), x_data + sigma * xi)
        return (sigma * s + xi).square().sum(1).mean() / 2  # each level weighs the same

    if method.startswith("NCE"):
        gaussian = MultivariateNormal(x.mean(0), option**2 * x.T.cov())
        noise: Any = mixture(x[:FITTED], int(option)) if "mixture" in method else gaussian
        draws = noise.sample((POOL,))
        of_noise = minibatches(torch.cat([draws, noise.log_prob(draws)[:, None]], 1), NU * BATCH)

        def contrast(x_data: Tensor) -> Tensor:
            x_noise, log_q = next(of_noise).split([2, 1], 1)
            logit_noise = -energy(x_noise) - log_z - log_q.squeeze(1)
            return nce_from_logits(-energy(x_data) - log_z - noise.log_prob(x_data), logit_noise, NU)

        return contrast
    return {
        "exact": exact,
        "conditional NCE": lambda x_data: conditional_noise_contrastive(energy, x_data, option, NU),
        "CD": lambda x_data: contrastive_divergence(energy, x_data, run(kernel, energy, x_data, N_CHAIN_STEPS)),
        "PCD": persistent,
        "score matching": lambda x_data: exact_score_matching(energy, x_data),
        "sliced": lambda x_data: sliced_score_matching(energy, x_data),
        "denoising": lambda x_data: denoising_score_matching(energy, x_data, option),
        "levels": levels,
    }[method]


def fit(toy_name: str, method: str, setting: Setting, seed: int, n_steps: int) -> dict[str, Any]:
    """Return the outcome of one training."""
    torch.manual_seed(seed)
    toy, energy = TOYS[toy_name], make_model(method, setting.option)
    log_z = nn.Parameter(torch.zeros(()))
    x = toy.sample((POOL,))
    loss = make_loss(method, setting.option, toy, energy, log_z, x)
    momentum = 0.0 if method in ("CD", "PCD") else 0.9
    parameters = [*energy.parameters(), *([log_z] if method.startswith("NCE") else [])]
    optimizer = torch.optim.Adam(parameters, setting.lr, betas=(momentum, 0.99), fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    averaged = AveragedModel(energy, multi_avg_fn=get_ema_multi_avg_fn(min(0.995, 1 - 20 / (n_steps + 20))))
    start, diverged = time.process_time(), None
    try:
        train(
            loss,
            optimizer,
            minibatches(x, BATCH),
            n_steps,
            scheduler,
            max_grad_norm=10.0,
            callback=lambda step, value: averaged.update_parameters(energy),
        )
    except Divergence as error:
        diverged = str(error)
    row = {"data": toy_name, "method": method, "seed": seed, "n_steps": n_steps, **setting._asdict()}
    row |= {"cpu_seconds": time.process_time() - start, "diverged": diverged} | judge(toy, averaged)
    learned = log_z.item() if method.startswith("NCE") else None
    return row | {"log_z_error": None if learned is None else learned - judge(toy, energy)["log_z"]}


def rank(row: dict[str, Any]) -> float:
    """Return the KL, or infinity of a run that diverged or ended in NaN."""
    return row["kl"] if row["diverged"] is None and math.isfinite(row["kl"]) else math.inf


def milliseconds(n_steps: int = 40, n_rounds: int = 5) -> dict[tuple[str, float], float]:
    """Return the CPU time of a step for each method and option: the median of rounds in which all take their turn."""
    asked = [(method, option) for method, (_, s) in GRID.items() for option in dict.fromkeys(o.option for o in s)]
    rounds = []
    for _ in range(n_rounds):
        rounds.append([fit("rings", m, Setting(1e-3, o), 7, n_steps)["cpu_seconds"] / n_steps for m, o in asked])
    return {key: 1000 * median(times) for key, times in zip(asked, zip(*rounds, strict=True), strict=True)}


def chosen(toy_name: str, method: str, steps: dict[tuple[str, float], list[int]]) -> Blocks:
    """Return what was tried for a method on a toy, and the rows of the settings that were best, a budget each."""
    tried: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    settings = GRID[method][1]
    for i, budget in enumerate(BUDGETS):
        ranks = {}
        for s in settings:
            row = fit(toy_name, method, s, CHOICE_SEED, steps[method, s.option][i])
            tried.append({"budget": budget} | row)
            ranks[s] = rank(row)
        settings = sorted(ranks, key=ranks.__getitem__)[:N_AGAIN]
        n_steps = steps[method, settings[0].option][i]
        rows += [{"budget": budget} | fit(toy_name, method, settings[0], seed, n_steps) for seed in SEEDS]
    return tried, rows


def plain(toy_name: str) -> Blocks:
    """Return rows of the mixture."""
    rows = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        noise = mixture(TOYS[toy_name].sample((FITTED,)), 32).log_prob
        row = {"data": toy_name, "method": "noise", "seed": seed}
        rows.append(row | judge(TOYS[toy_name], lambda x, noise=noise: -noise(x)))
    return [], rows


def block(toy_name: str, method: str, steps: dict[tuple[str, float], list[int]]) -> tuple[Blocks, float]:
    """Return what belongs to a method on a toy, and the CPU seconds that it took."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start = time.process_time()
    made = plain(toy_name) if method == "noise" else chosen(toy_name, method, steps)
    return made, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of each budget, for a quick look")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/methods.py" + (f" --share {args.share}" if args.share != 1 else "")
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn"))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    results: dict[str, Any] = {
        "provenance": head | {"cpu_seconds": 0.0},
        "options": {m: o for m, (o, _) in GRID.items()},
    }
    if args.out.exists():
        earlier = json.loads(args.out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("command", "sha256", "versions", "dirty")):
            results = earlier
    if "tried" not in results:
        rounds = [{"method": m, "option": o, "ms": ms} for (m, o), ms in milliseconds().items()]
        results |= {"milliseconds_a_step": rounds, "tried": [], "rows": []}
    cost = {(row["method"], row["option"]): row["ms"] for row in results["milliseconds_a_step"]}
    steps = {key: [max(2, int(args.share * 1000 * budget / ms)) for budget in BUDGETS] for key, ms in cost.items()}
    order = [(toy_name, method) for toy_name in TOYS for method in (*GRID, "noise")]
    there = {(row["data"], row["method"]) for row in results["rows"]}
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        runs = {pool.submit(block, *key, steps): key for key in order if key not in there}
        for run_ in as_completed(runs):
            (tried, rows), seconds = run_.result()
            results["provenance"]["cpu_seconds"] += seconds
            for name, new in (("tried", tried), ("rows", rows)):
                results[name] = sorted(results[name] + new, key=lambda row: order.index((row["data"], row["method"])))
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{runs[run_][0]:16}{runs[run_][1]:16}", *(f"{row['kl']:8.4f}" for row in rows), flush=True)


if __name__ == "__main__":
    main()
