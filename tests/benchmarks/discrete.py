"""Chains on binary states: mixing, its growth with a lattice, couplings and digits learned, and a peer.

    pip install --no-deps ebmkit==0.16.0
    python tests/benchmarks/discrete.py

writes discrete.json, which chapter 16 shows. Times are CPU seconds of the steps alone. A chain's statistics are its
energy, a number m, the sum of spins or 2x - 1, and |m|; an ESS is that of 16 chains, by arviz-stats. Chains of a torus
start where 300 cluster moves from random spins ended, those of digits where 2,000 informed flips from the base ended.
The step size of discrete Langevin is the one that moves most units a step, on seed 100; the number of training steps
is the one with the best validation likelihood, on seed 100, log Z by annealing. Seeds 0 to 2 are reported, of
couplings 0 to 4. A run that is stopped goes on when it is called again. `--quick` is a look at each part.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent

from ebmlib.annealing import annealed_importance_sampling, reverse_annealed_importance_sampling
from ebmlib.datasets import digits
from ebmlib.diagnostics import summarize
from ebmlib.discrete import (
    DiscreteLangevin,
    Gibbs,
    InformedFlip,
    binary_states,
    flip_changes,
    pseudo_likelihood,
    ratio_matching,
    taylor_changes,
)
from ebmlib.energies import by_hand
from ebmlib.ising import Checkerboard, IsingEnergy, SwendsenWang
from ebmlib.networks import MLPEnergy
from ebmlib.rbm import RBM, BlockGibbs, SingleFlip
from ebmlib.rbm_training import contrastive_epoch
from ebmlib.samplers import run

MODULES = "annealing datasets diagnostics discrete energies ising networks rbm rbm_training samplers".split()
INPUTS = ["tests/benchmarks/discrete.py", *(f"ebmlib/{name}.py" for name in MODULES)]
CRITICAL = math.log(1 + math.sqrt(2)) / 2
SEEDS, SEED_OF_CHOICE = (0, 1, 2), 100
STEP_SIZES = (0.15, 0.2, 0.3, 0.4, 0.6, 1.0)
COUPLINGS = ((0.3, 300), (0.3, 1000), (0.3, 10_000), (0.6, 10_000))  # mean of the bonds, rows
LENGTHS = {"pseudo-likelihood": (200, 400, 800), "ratio matching": (200, 400, 800), "PCD": (600, 900)}


def measured(kernel: Any, energy: Any, x: Tensor, n_draws: int, thin: int, of: Any = None) -> dict[str, Any]:
    """Return ESS and means of the energy, of m and of |m| over chains from x; `of` is the energy recorded."""
    state, draws, seconds, accepted = kernel.init(energy, x), [], 0.0, 0.0
    with torch.no_grad():
        for _ in range(n_draws):
            start = time.process_time()
            for _ in range(thin):
                state, accept_prob = kernel.step(energy, state, None)
            seconds += time.process_time() - start
            accepted += accept_prob.mean().item() / n_draws
            m = (2 * state.x - 1).sum(1)
            draws.append(torch.stack([(of or energy)(state.x), m, m.abs()], 1))
    s = summarize(torch.stack(draws))
    each = {"mean": s.mean.tolist(), "mcse": s.mcse.tolist(), "ess": s.ess_bulk.tolist(), "r_hat": s.r_hat.tolist()}
    return each | {"steps": n_draws * thin, "chains": len(x), "step_seconds": seconds, "accept": accepted}


def best_step_size(energy: Any, x: Tensor) -> float:
    """Return the step size whose tested moves change most units."""
    torch.manual_seed(SEED_OF_CHOICE)
    moved = {}
    for step_size in STEP_SIZES:
        kernel, total = DiscreteLangevin(step_size), 0.0
        state = kernel.init(energy, x)
        for _ in range(200):
            new, _ = kernel.step(energy, state)
            total, state = total + (new.x != state.x).sum().item(), new
        moved[step_size] = total
    return max(moved, key=moved.get)


class ByAutograd:
    """The same energy, without its own gradient."""

    def __init__(self, energy: Any):
        self.energy = energy

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(x)


def torus_chains(side: int, coupling: float, seed: int, n_chains: int = 16) -> tuple[IsingEnergy, Tensor]:
    torch.manual_seed(seed)
    energy = IsingEnergy(side, side, coupling)
    return energy, run(SwendsenWang(), energy, torch.bernoulli(torch.full((n_chains, side * side), 0.5)), 300)


CONTENDERS: dict[str, tuple[Any, int, float]] = {  # kernel, steps a draw, energies or gradients of a state a step
    "checkerboard Gibbs": (Checkerboard(), 1, 2),
    "clusters": (SwendsenWang(), 1, 1),
    "Gibbs, random site": (Gibbs(), 20, 1),
    "Gibbs, in order": (Gibbs(in_order=True), 1, 0),
    "random flips": (SingleFlip(), 20, 1),
    "informed flips, by hand": (InformedFlip(), 10, 1),
    "informed flips, autograd": (InformedFlip(), 10, 1),
    "informed flips, exact": (InformedFlip(exact=True), 5, 0),
    "discrete Langevin, tested": (None, 5, 1),
}
FAST = (Checkerboard(), SwendsenWang())


def lattice(name: str, coupling: float, seed: int, budget: float) -> dict[str, Any]:
    """Return how a kernel mixes on the 10×10 torus in a budget of CPU seconds."""
    energy, x = torus_chains(10, coupling, seed)
    kernel, thin, calls = CONTENDERS[name]
    more = {}
    if kernel is None:
        more["step_size"] = best_step_size(energy, x)
        kernel = DiscreteLangevin(more["step_size"])
    target: Any = ByAutograd(energy) if "autograd" in name else energy
    torch.manual_seed(seed + 10)
    pilot = measured(kernel, target, x, 10, thin, energy)
    n_draws = max(50, round(10 * budget / pilot["step_seconds"]))
    calls = calls or {"Gibbs, in order": 100, "informed flips, exact": 101}[name]
    return more | {"calls": calls} | measured(kernel, target, x, n_draws, thin, energy)


def scaling(name: str, side: int, seed: int, budget: float) -> dict[str, Any]:
    """Return how a kernel mixes on a critical torus."""
    energy, x = torus_chains(side, CRITICAL, seed)
    kernel = CONTENDERS[name][0]
    torch.manual_seed(seed + 10)
    pilot = measured(kernel, energy, x, 10, 1)
    return measured(kernel, energy, x, max(200, round(10 * budget / pilot["step_seconds"])), 1)


def split() -> tuple[Tensor, Tensor, Tensor]:
    """Return the binarised digits: 1,257 to train, 180 to validate, 360 to test."""
    x = (digits()[0] > 8).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation, test = (x[rows] for rows in order.split([1257, 180, 360]))
    return train, validation, test


def independent(x: Tensor) -> Independent:
    logits = torch.logit((x.sum(0) + 0.5) / (len(x) + 1))
    return Independent(Bernoulli(logits=logits, validate_args=False), 1)


class DigitEnergy(nn.Module):
    """E(x) = β net(x) - xᵀ logits: a network on top of independent pixels, and the path between them."""

    def __init__(self, net: nn.Module, logits: Tensor, beta: float = 1.0):
        super().__init__()
        self.net, self.logits, self.beta = net, logits, beta

    def forward(self, x: Tensor) -> Tensor:
        return self.beta * self.net(x) - x @ self.logits

    @by_hand
    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        e, grad = self.net.energy_and_grad(x)
        return self.beta * e - x @ self.logits, self.beta * grad - self.logits

    def at(self, beta: float) -> "DigitEnergy":
        return DigitEnergy(self.net, self.logits, beta)


@cache
def trained(method: str, seed: int, n_steps: int) -> tuple[DigitEnergy, float]:
    """Return a network trained on digits, and the CPU seconds of it."""
    x = split()[0]
    torch.manual_seed(seed)
    base = independent(x)
    energy = DigitEnergy(MLPEnergy(64, (64, 64), zero_last=True), base.base_dist.logits)
    optimizer = torch.optim.AdamW(energy.parameters(), lr=5e-3 if method == "PCD" else 3e-3, weight_decay=1e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    chains, start = base.sample(torch.Size([200])), time.process_time()
    for _ in range(n_steps):
        rows = x[torch.randint(len(x), (100,))]
        if method == "PCD":
            chains = run(InformedFlip(), energy.requires_grad_(False), chains, 20)
            energy.requires_grad_(True)
            loss = energy(rows).mean() - energy(chains).mean()
        else:
            loss = (pseudo_likelihood if method == "pseudo-likelihood" else ratio_matching)(energy, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    return energy.requires_grad_(False), time.process_time() - start


def digits_learned(method: str, seed: int, n_steps: int, n_temps: int, both: bool = True) -> dict[str, Any]:
    """Return energies of held-out digits, with log Z by annealing from both ends or, of validation, from one."""
    train, validation, test = split()
    energy, seconds = trained(method, seed, n_steps)
    base, kernel, betas = independent(train), InformedFlip(), torch.linspace(0, 1, n_temps + 1)
    torch.manual_seed(seed + 10)
    forward = annealed_importance_sampling(energy, base, kernel, betas, 400, 2, path=energy.at)
    if not both:
        return {"validation": (-energy(validation).mean() - forward.value).item(), "train_seconds": seconds}
    x_model = run(kernel, energy, forward.x[torch.multinomial(forward.log_w.softmax(0), 400, True)], 2 * n_temps)
    reverse = reverse_annealed_importance_sampling(energy, base, kernel, betas, x_model, 2, path=energy.at)
    row: dict[str, Any] = {"train_seconds": seconds, "chains": 400}
    for name, found in (("forward", forward), ("reverse", reverse)):
        row[name] = {"log_z": found.value, "std_error": found.std_error, "ess": found.ess}
    for name, x in (("train", train), ("validation", validation), ("test", test)):
        row[f"energy_{name}"] = energy(x).mean().item()
    row["test_std_error"] = (energy(test).std() / math.sqrt(len(test))).item()
    return row


def digit_chains(target: str, name: str, seed: int, budget: float, n_steps: int) -> dict[str, Any]:
    """Return how a kernel mixes on an energy over digits."""
    x = split()[0]
    if target == "machine":
        energy: Any = machine(seed)
    else:
        energy = trained("pseudo-likelihood", seed, n_steps)[0]
    torch.manual_seed(seed)
    starts = run(InformedFlip(), energy, independent(x).sample(torch.Size([16])), 2000)
    kernel, thin, calls = CONTENDERS.get(name, (BlockGibbs(), 1, 1))
    more: dict[str, Any] = {"calls": calls or 65}
    if kernel is None:
        more["step_size"] = best_step_size(energy, starts)
        kernel = DiscreteLangevin(more["step_size"])
    torch.manual_seed(seed + 10)
    pilot = measured(kernel, energy, starts, 10, thin)
    return more | measured(kernel, energy, starts, max(50, round(10 * budget / pilot["step_seconds"])), thin)


@cache
def machine(seed: int) -> RBM:
    """Return chapter 8's machine of 16 hidden units, trained by PCD."""
    x = split()[0]
    torch.manual_seed(seed)
    rbm = RBM(64, 16)
    with torch.no_grad():
        rbm.visible_bias.copy_(independent(x).base_dist.logits)
    chains = independent(x).sample(torch.Size([100]))
    for epoch in range(60):
        chains = contrastive_epoch(rbm, x[torch.randperm(len(x))], 0.4 * (1 - epoch / 60), chains, batch_size=20)
    return rbm.requires_grad_(False)


def expansion(seed: int, n_steps: int) -> dict[str, Any]:
    """Return first-order against exact changes of the energy, and the acceptance of both proposals, at model draws."""
    energy = trained("pseudo-likelihood", seed, n_steps)[0]
    torch.manual_seed(seed)
    x = run(InformedFlip(), energy, independent(split()[0]).sample(torch.Size([500])), 2000)
    (_, exact), (_, first) = flip_changes(energy, x), taylor_changes(energy, x)
    row = {"correlation": torch.corrcoef(torch.stack([exact.flatten(), first.flatten()]))[0, 1].item()}
    row["rms_exact"], row["rms_error"] = (
        exact.square().mean().sqrt().item(),
        (first - exact).square().mean().sqrt().item(),
    )
    for name, kernel in (("first order", InformedFlip()), ("exact", InformedFlip(exact=True)), ("blind", SingleFlip())):
        state, total = kernel.init(energy, x), 0.0
        for _ in range(20):
            state, accept_prob = kernel.step(energy, state)
            total += accept_prob.mean().item() / 20
        row[f"accept, {name}"] = total
    return row


def couplings(seed: int, mean: float, n_rows: int, methods: tuple[str, ...]) -> dict[str, Any]:
    """Return the root-mean-square error of the 32 bonds of a 4×4 torus, by each method, from exact draws."""
    generator = torch.Generator().manual_seed(seed)
    truth = mean + 0.2 * torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    states = binary_states(16, truth)
    spins = (2 * states - 1).view(-1, 4, 4)
    bonds = torch.stack([spins * spins.roll(-1, 2), spins * spins.roll(-1, 1)], 1).flatten(1)
    p = torch.softmax(bonds @ truth.flatten(), 0)
    x = states[torch.multinomial(p, n_rows, replacement=True, generator=generator)]
    row: dict[str, Any] = {}
    for name in methods:
        torch.manual_seed(seed)
        start = time.process_time()
        found = LEARNERS[name](x, bonds)
        row[name] = (found - truth).square().mean().sqrt().item()
        row[f"{name}, seconds"] = time.process_time() - start
    return row


def by_lbfgs(loss: Callable[[Tensor], Tensor], n: int = 32) -> Tensor:
    parameters = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS([parameters], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        value = loss(parameters)
        value.backward()
        return value

    lbfgs.step(closure)
    return parameters.detach()


def learned(x: Tensor, bonds: Tensor, loss: Callable[[IsingEnergy, Tensor], Tensor]) -> Tensor:
    return by_lbfgs(lambda j: loss(IsingEnergy(4, 4, j.view(2, 4, 4)), x)).view(2, 4, 4)


def likelihood(energy: IsingEnergy, x: Tensor, bonds: Tensor) -> Tensor:
    return energy(x).mean() + torch.logsumexp(bonds @ energy.coupling.flatten(), 0)


def by_nce(x: Tensor, bonds: Tensor, nu: int = 10) -> Tensor:
    """Noise: fair coins, the single bits of a model without fields; the 33rd parameter is log Z."""
    noise = torch.bernoulli(torch.full((nu * len(x), 16), 0.5, dtype=torch.float64))
    log_noise = -16 * math.log(2)

    def loss(j: Tensor) -> Tensor:
        energy = IsingEnergy(4, 4, j[:32].view(2, 4, 4))
        data, model = (-energy(v) - j[32] - log_noise - math.log(nu) for v in (x, noise))
        return -(nn.functional.logsigmoid(data).mean() + nu * nn.functional.logsigmoid(-model).mean())

    return by_lbfgs(loss, 33)[:32].view(2, 4, 4)


def by_chains(x: Tensor, bonds: Tensor, kernel: Any, k: int, persistent: bool, n_updates: int = 600) -> Tensor:
    """Stochastic gradient, rate from .1 to zero; each update has 500 rows, and 500 chains of k steps."""
    j = torch.zeros(2, 4, 4, dtype=torch.float64)
    chains = torch.bernoulli(torch.full((500, 16), 0.5, dtype=torch.float64))
    for t in range(n_updates):
        rows = x[torch.randint(len(x), (500,))]
        energy = IsingEnergy(4, 4, j)
        chains = run(kernel, energy, chains if persistent else rows, k)
        (s, r) = (energy.spins(v) for v in (rows, chains))
        step = torch.stack([(v * v.roll(-1, axis)).mean(0) for axis in (2, 1) for v in (s, r)])
        j = j + 0.1 * (1 - t / n_updates) * (step[::2] - step[1::2])
    return j


LEARNERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact likelihood": lambda x, b: learned(x, b, lambda e, v: likelihood(e, v, b)),
    "pseudo-likelihood": lambda x, b: learned(x, b, pseudo_likelihood),
    "ratio matching": lambda x, b: learned(x, b, ratio_matching),
    "NCE, independent bits": by_nce,
    "CD, one informed flip": lambda x, b: by_chains(x, b, InformedFlip(), 1, False),
    "CD, one sweep": lambda x, b: by_chains(x, b, Checkerboard(), 1, False),
    "PCD, four informed flips": lambda x, b: by_chains(x, b, InformedFlip(), 4, True),
}


def peer(target: str, seed: int, n_turns: int) -> dict[str, Any]:
    """Return the CPU time of a step over ebmkit's, in turns, and z-scores of both after steps from exact draws."""
    from ebm.nets import IsingEnergy as TheirIsing
    from ebm.samplers import GibbsWithGradients

    torch.manual_seed(seed)
    if target == "their lattice, 4×4":
        theirs = TheirIsing(CRITICAL).requires_grad_(False)
        energy: Any = lambda x: theirs(x.view(-1, 4, 4))  # noqa: E731
        n = 16
    elif target == "our lattice, 4×4":
        energy, n = IsingEnergy(4, 4, CRITICAL), 16
    else:
        energy, n = MLPEnergy(16, (64, 64)).requires_grad_(False), 16
        with torch.no_grad():
            energy.net[-1].weight.mul_(20)
    states = binary_states(n)
    with torch.no_grad():
        e = torch.cat([energy(rows) for rows in states.split(4096)]).double()
    p = torch.softmax(-e, 0)
    starts = states[torch.multinomial(p, 16, replacement=True)]
    ours, sampler = InformedFlip(), GibbsWithGradients(100)
    seconds: dict[str, list[float]] = {"ours": [], "ebmkit": []}
    for _ in range(n_turns):
        for name, go in (
            ("ours", lambda: run(ours, energy, starts, 100)),
            ("ebmkit", lambda: sampler.sample(energy, starts)),
        ):
            start = time.process_time()
            go()
            seconds[name].append((time.process_time() - start) / 100)
    ratio = torch.tensor(seconds["ours"]) / torch.tensor(seconds["ebmkit"])
    row: dict[str, Any] = {f"{name}, µs": 1e6 * torch.tensor(each).median().item() for name, each in seconds.items()}
    row |= {"ratio": ratio.median().item(), "quartiles": ratio.quantile(torch.tensor([0.25, 0.75])).tolist()}
    truth = torch.cat([states.double(), e[:, None]], 1)
    mean = p @ truth
    std = (p @ (truth - mean) ** 2).sqrt()
    many = states[torch.multinomial(p, 20_000, replacement=True)]
    for name, x in (("ours", run(ours, energy, many, 5)), ("ebmkit", sampler.sample(energy, many, steps=5))):
        with torch.no_grad():
            now = torch.cat([x.double(), energy(x).double()[:, None]], 1)
        row[f"{name}, largest |z|"] = ((now.mean(0) - mean) / std * math.sqrt(len(x))).abs().max().item()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the length, one seed")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or (Path("discrete_quick.json") if args.quick else RESULTS / "discrete.json")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    packages = ["torch", "numpy", "scikit-learn", "arviz-stats"]
    try:
        import ebm  # noqa: F401

        packages.append("ebmkit")
    except ImportError:
        print("skipped: ebmkit is not installed")
    head = provenance("python tests/benchmarks/discrete.py", INPUTS, packages)
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}, "rows": []}
    if out.exists():
        earlier = json.loads(out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("sha256", "versions", "dirty")):
            results = earlier
    share, seeds = (0.1, SEEDS[:1]) if args.quick else (1.0, SEEDS)

    def once(part: str, make: Callable[[], dict[str, Any]], **key: Any) -> None:
        """Add a row to the results and write them, unless it is there."""
        key = {"part": part} | key
        if any(all(row.get(name) == value for name, value in key.items()) for row in results["rows"]):
            return
        start = time.process_time()
        row = key | make()
        row["cpu_seconds"] = time.process_time() - start
        print(row, flush=True)
        results["rows"].append(row)
        results["provenance"]["cpu_seconds"] += row["cpu_seconds"]
        out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")

    def chosen(method: str) -> int:
        """Return the number of steps that validation prefers."""
        tried = [row for row in results["rows"] if row["part"] == "study" and row["method"] == method]
        return max(tried, key=lambda row: row["validation"])["n_steps"]

    n_temps = round(500 * share)
    for method, lengths in LENGTHS.items():
        for length in lengths if not args.quick else (100,):
            make = partial(digits_learned, method, SEED_OF_CHOICE, length, n_temps, False)
            once("study", make, method=method, n_steps=length, seed=SEED_OF_CHOICE)
    n_steps = chosen("pseudo-likelihood")
    for seed in seeds:
        for coupling in (0.3, CRITICAL, 0.5):
            for name in CONTENDERS:
                key = {"coupling": coupling, "kernel": name, "seed": seed}
                once(
                    "lattice",
                    partial(lattice, name, coupling, seed, (0.6 if CONTENDERS[name][0] in FAST else 1.7) * share),
                    **key,
                )
        for side, budget in ((8, 0.4), (12, 0.6), (16, 1.2), (24, 2.4), (32, 4.0)):
            for name in ("checkerboard Gibbs", "clusters"):
                part = budget if name == "checkerboard Gibbs" else budget / 2
                once("scaling", partial(scaling, name, side, seed, part * share), side=side, kernel=name, seed=seed)
        for name in ("block Gibbs", "random flips", "informed flips, autograd", "discrete Langevin, tested"):
            once("machine", partial(digit_chains, "machine", name, seed, 1.5 * share, n_steps), kernel=name, seed=seed)
        for name in (
            "random flips",
            "Gibbs, random site",
            "informed flips, by hand",
            "informed flips, exact",
            "discrete Langevin, tested",
        ):
            make = partial(digit_chains, "network", name, seed, 2 * share, n_steps)
            once("network", make, kernel=name, seed=seed)
        once("expansion", partial(expansion, seed, n_steps), seed=seed)
        for method in LENGTHS:
            make = partial(digits_learned, method, seed, chosen(method), n_temps)
            once("digits", make, method=method, n_steps=chosen(method), seed=seed)
    for seed in range(5 if not args.quick else 1):
        for mean, n_rows in COUPLINGS:
            make = partial(couplings, seed, mean, n_rows, tuple(LEARNERS))
            once("couplings", make, mean=mean, n_rows=n_rows, seed=seed)
    if "ebmkit" in packages:
        for target in ("their lattice, 4×4", "our lattice, 4×4", "network, 16-64-64"):
            once("ebmkit", partial(peer, target, 0, 15), target=target)


if __name__ == "__main__":
    main()
