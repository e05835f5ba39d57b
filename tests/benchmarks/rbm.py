"""Restricted Boltzmann machines beside scikit-learn's BernoulliRBM: time of an epoch, exact likelihood, time of log Z.

Last, log Z by annealed importance sampling beside ebmkit's, on one trained machine whose log Z is exact.

    python tests/benchmarks/rbm.py

Contenders take turns within one run. Times are CPU seconds, ratios are medians over the turns.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.neural_network import BernoulliRBM
from torch.distributions import Bernoulli, Independent

from ebmlib.annealing import annealed_importance_sampling
from ebmlib.datasets import digits
from ebmlib.rbm import RBM, BlockGibbs, SingleFlip, exact_log_z
from ebmlib.rbm_training import contrastive_epoch

N_HIDDEN, SEEDS = 16, (0, 1, 2)


def cpu(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def split() -> tuple[torch.Tensor, torch.Tensor]:
    x = (digits()[0] > 8).float()
    train_rows, test_rows = train_test_split(np.arange(len(x)), test_size=0.2, random_state=0)
    return x[train_rows], x[test_rows]


def epoch_times(x: torch.Tensor, n_turns: int) -> None:
    print("\nepoch of PCD-1, CPU time over BernoulliRBM (must 1.3 / 1.0, aim 0.60 / 0.50)")
    print(f"{'precision':10}{'batch':>6}{'sklearn ms':>12}{'ours ms':>9}{'ratio':>7}{'quartiles':>14}")
    for dtype in (torch.float32, torch.float64):
        for batch_size in (10, 128):
            rows = x.to(dtype)
            array = rows.numpy()
            sk = BernoulliRBM(N_HIDDEN, learning_rate=0.05, batch_size=batch_size, n_iter=5, random_state=0)
            rbm, chains = RBM(64, N_HIDDEN).to(dtype), torch.zeros(batch_size, 64, dtype=dtype)

            def ours(rbm=rbm, rows=rows, chains=chains, batch_size=batch_size):
                for _ in range(5):
                    chains = contrastive_epoch(rbm, rows, 0.05, chains, batch_size=batch_size)

            turns = np.array([(cpu(lambda sk=sk, array=array: sk.fit(array)), cpu(ours)) for _ in range(n_turns)])[1:]
            assert sk.components_.dtype == array.dtype
            ratio = turns[:, 1] / turns[:, 0]
            low, mid, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            ms = 200 * np.median(turns, 0)
            print(f"{str(dtype)[6:]:10}{batch_size:6}{ms[0]:12.2f}{ms[1]:9.2f}{mid:7.2f}{low:8.2f}{high:6.2f}")


def fresh(seed: int, x: torch.Tensor, n_hidden: int = N_HIDDEN) -> RBM:
    torch.manual_seed(seed)
    rbm = RBM(64, n_hidden)
    with torch.no_grad():
        rbm.visible_bias.copy_(torch.logit((x.sum(0) + 0.5) / (len(x) + 1)))
    return rbm


def likelihood(rbm: RBM, x: torch.Tensor) -> float:
    with torch.no_grad():
        return (-rbm(x).mean() - exact_log_z(rbm)).item()


def ours(seed: int, x: torch.Tensor, n_epochs: int, rate: float, n_chains: int, batch_size: int) -> RBM:
    """PCD whose rate falls in a straight line to zero."""
    rbm = fresh(seed, x)
    chains = torch.bernoulli(x.mean(0).expand(n_chains, 64))
    for epoch in range(n_epochs):
        rows = x[torch.randperm(len(x))]
        chains = contrastive_epoch(rbm, rows, rate * (1 - epoch / n_epochs), chains, batch_size=batch_size)
    return rbm


def annealed_sklearn(
    seed: int, x: torch.Tensor, n_epochs: int, rate: float, batch_size: int, n_hidden: int = N_HIDDEN
) -> RBM:
    """BernoulliRBM from the same start, annealed too, in single precision and without the checks of its input.

    Its update adds sums over the batch and over as many chains: a last batch with fewer rows is left out.
    """
    start = fresh(seed, x, n_hidden)
    sk = BernoulliRBM(n_hidden, batch_size=batch_size)
    order, rows = np.random.default_rng(seed), x.numpy()
    sk.components_ = np.asarray(start.weight.detach().numpy().T, order="F")
    sk.intercept_visible_ = start.visible_bias.detach().numpy().copy()
    sk.intercept_hidden_ = start.hidden_bias.detach().numpy().copy()
    sk.h_samples_, random = np.zeros((batch_size, n_hidden), rows.dtype), np.random.RandomState(seed)
    for epoch in range(n_epochs):
        sk.learning_rate = rate * (1 - epoch / n_epochs)
        shuffled = order.permutation(rows)
        for first in range(0, len(rows) - batch_size + 1, batch_size):
            sk._fit(shuffled[first : first + batch_size], random)  # what fit calls for each batch
    parts = sk.components_.T, sk.intercept_visible_, sk.intercept_hidden_
    return RBM.from_parameters(*(torch.tensor(part).float() for part in parts))


def exact_gradient(seed: int, x: torch.Tensor, n_iterations: int) -> RBM:
    """Maximum likelihood by L-BFGS on the exact gradient: the ceiling of what sampling stands in for."""
    rbm = fresh(seed, x)
    lbfgs = torch.optim.LBFGS(rbm.parameters(), max_iter=n_iterations, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        loss = rbm(x).mean() + exact_log_z(rbm)
        loss.backward()
        return loss

    lbfgs.step(closure)
    return rbm


def candidates() -> list[tuple]:
    """Return (name, fit, settings) of what is tried on the validation part: 200 epochs, in two sizes of batch."""
    rates = {10: (0.05, 0.1, 0.2, 0.4), 20: (0.1, 0.2, 0.4, 0.8)}
    pcd = [(200, rate, n_chains, size) for size in rates for n_chains in (size, 5 * size) for rate in rates[size]]
    sklearn = [(200, rate, size) for size in rates for rate in rates[size]]
    exact = [(50,), (100,), (250,)]
    contenders = ("exact", exact_gradient, exact), ("BernoulliRBM", annealed_sklearn, sklearn), ("PCD", ours, pcd)
    return [(name, fit, settings) for name, fit, grid in contenders for settings in grid]


def select(x: torch.Tensor, seeds: tuple[int, ...] = (10, 11)) -> None:
    """Print each candidate's likelihood of a fifth of the training digits, fitted on the rest with other seeds."""
    fit_rows, validation_rows = train_test_split(np.arange(len(x)), test_size=0.2, random_state=0)
    for name, fit, settings in candidates():
        start = time.process_time()
        values = [likelihood(fit(seed, x[fit_rows], *settings), x[validation_rows]) for seed in seeds]
        seconds = (time.process_time() - start) / len(seeds)
        each = " ".join(f"{value:.2f}" for value in values)
        print(f"{np.mean(values):8.3f}  {each:16}{seconds:6.2f} s  {name} {settings}", flush=True)


CHOSEN = {  # the best of each on the validation part (--select), frozen before the held-out part was scored
    "exact gradient, L-BFGS, 250": (exact_gradient, (250,)),
    "BernoulliRBM, annealed, 200 epochs": (annealed_sklearn, (200, 0.4, 20)),
    "PCD, annealed, 200 epochs": (ours, (200, 0.4, 100, 20)),
}


def likelihoods(x: torch.Tensor, x_test: torch.Tensor) -> None:
    print("\nexact log-likelihood of held-out digits, nats (must within 0.25 of the exact gradient, aim 0.10 in 1.5 s)")
    print(f"{'method':34}{'mean':>8}  {'seeds':22}{'train':>8}{'CPU s':>8}")
    print(f"{'independent pixels':34}{likelihood(fresh(0, x), x_test):8.2f}")
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CHOSEN}
    for seed in SEEDS:
        for name, (fit, settings) in CHOSEN.items():
            start = time.process_time()
            rbm = fit(seed, x, *settings)
            seconds = time.process_time() - start
            runs[name].append((likelihood(rbm, x_test), likelihood(rbm, x), seconds))
    for name, rows in runs.items():
        test, train, seconds = np.array(rows).T
        each = " ".join(f"{value:.2f}" for value in test)
        print(f"{name:34}{test.mean():8.2f}  {each:22}{train.mean():8.2f}{np.median(seconds):8.2f}")


def log_z_times(n_turns: int) -> None:
    print("\nexact log Z, 16 hidden units (must 30 ms)")
    for n_visible in (64, 784):
        torch.manual_seed(0)
        shapes = (n_visible, N_HIDDEN), (n_visible,), (N_HIDDEN,)
        rbm = RBM.from_parameters(*(0.5 * torch.randn(shape) for shape in shapes)).requires_grad_(False)
        times = 1000 * np.array([cpu(lambda rbm=rbm: exact_log_z(rbm)) for _ in range(n_turns)])
        print(f"{n_visible:4} visible: median {np.median(times):.1f} ms, fastest {times.min():.1f} ms")


def annealed_log_z(x: torch.Tensor, n_turns: int, n_temps: int = 1000, n_chains: int = 100) -> None:
    """Print error and time of AIS from the digits' independent pixels, one move at each temperature.

    ebmkit's path is a function, so that block Gibbs, which needs a machine, does not run on it: its moves are single
    flips informed by the gradient. Ours are made twice, by block Gibbs and by blind single flips.
    """
    print(
        f"\nlog Z by AIS, {n_temps} temperatures, {n_chains} chains (must: no worse, and at most a quarter of the time)"
    )
    rbm = exact_gradient(0, x, 50).requires_grad_(False)
    truth, logits = exact_log_z(rbm).item(), torch.logit(x.mean(0).clamp(0.01, 0.99))
    base: Any = Independent(Bernoulli(logits=logits, validate_args=False), 1)
    betas = torch.linspace(0, 1, n_temps + 1)
    blocks = {"kernel": BlockGibbs(), "path": lambda beta: rbm.tempered(beta, logits)}
    contenders: dict[str, Callable[[], float]] = {
        "block Gibbs": lambda: annealed_importance_sampling(rbm, base, betas=betas, n_chains=n_chains, **blocks).value,
        "single flips": lambda: annealed_importance_sampling(rbm, base, SingleFlip(), betas, n_chains).value,
    }
    try:
        from ebm.ais import ais_log_z
        from ebm.samplers import GibbsWithGradients
    except ImportError as error:
        print(f"skipped: ebmkit ({error})")
    else:
        contenders["ebmkit, informed flips"] = lambda: (
            ais_log_z(rbm, (64,), base=base, n_temps=n_temps, n_chains=n_chains, sampler=GibbsWithGradients(1)).log_z
        )
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(n_turns):
        torch.manual_seed(turn)
        for name, estimate in contenders.items():
            start = time.process_time()
            error = estimate() - truth
            runs[name].append((error, time.process_time() - start))
    slowest = np.array(runs[list(runs)[-1]])[:, 1]
    print(f"{'moves':24}{'mean error':>11}{'rmse':>7}{'CPU ms':>8}{'of the last':>13}")
    for name, rows in runs.items():
        errors, seconds = np.array(rows).T
        rmse, ms, share = np.sqrt((errors**2).mean()), 1000 * np.median(seconds), np.median(seconds / slowest)
        print(f"{name:24}{errors.mean():11.3f}{rmse:7.3f}{ms:8.0f}{share:13.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns of each timing")
    parser.add_argument("--select", action="store_true", help="score the settings on a validation part, and stop")
    args = parser.parse_args()
    n_turns = args.turns
    torch.set_num_threads(1)
    x, x_test = split()
    if args.select:
        select(x)
        raise SystemExit
    epoch_times(x, n_turns)
    log_z_times(n_turns)
    annealed_log_z(x, n_turns)
    likelihoods(x, x_test)
