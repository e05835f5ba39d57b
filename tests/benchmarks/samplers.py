"""CPU time of the samplers beside torchebm, ebmkit and blackjax: one run, interleaved, medians of ratios.

    python tests/benchmarks/samplers.py [--rounds 15]

First: a Langevin and a MALA step over one forward pass, one backward pass to x and one `randn`, with weights in
PyTorch's usual layout (a `ConvEnergy` has its channels last; all samplers get it so). Then: HMC of 10
leapfrogs on a 50-D Gaussian with eigenvalues from 1 to 1e-2, smallest ESS of x and x² a CPU second. Where an energy of
ours has its gradient by hand, it is timed with it and, as a mere function, without: the peers take autograd's. A peer
that is not installed is skipped. `requirements.txt` beside this has the versions.
"""

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ebmlib.diagnostics import summarize
from ebmlib.energies import GaussianEnergy
from ebmlib.networks import ConvEnergy, MLPEnergy
from ebmlib.samplers import HMC, MALA, Langevin, trace

N_LEAPFROG, STEP, N_CHAINS, N_DRAWS = 10, 0.1, 20, 400


def peer(name: str) -> Any:
    """Return the module, or None with a message."""
    try:
        return import_module(name)
    except ImportError as error:
        print(f"skipped: {name} ({error})")
        return None


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each contender by round; all run once before, untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for go in contenders.values():
        go()
    for _ in range(rounds):
        for name, go in contenders.items():
            start = time.process_time()
            go()
            seconds[name].append(time.process_time() - start)
    return seconds


def steps(energy: nn.Module, x: Tensor, n: int, torchebm: Any, ebm: Any) -> dict[str, Callable]:
    """Return what runs n steps, by name; the first is the yardstick."""
    eta = 1e-4
    plain = copy.deepcopy(energy).to(memory_format=torch.contiguous_format)

    def yardstick() -> None:
        for _ in range(n):
            y = x.detach().requires_grad_()
            torch.autograd.grad(plain(y).sum(), y)
            torch.randn(x.shape)

    def ours(kernel: Langevin | MALA, energy: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        start = kernel.init(energy, x)

        def go() -> None:
            state = start
            for _ in range(n):
                state, _ = kernel.step(energy, state, None)

        return go

    contenders: dict[str, Callable[[], None]] = {"yardstick": yardstick}
    for kernel in (Langevin(eta), MALA(eta)):
        name = f"ebmlib {type(kernel).__name__}"
        contenders[name] = ours(kernel, lambda x: energy(x))  # a function: its gradient is autograd's
        if hasattr(energy, "energy_and_grad"):
            contenders[f"{name}, gradient by hand"] = ours(kernel, energy)
    if torchebm is not None:
        sampler = torchebm.samplers.LangevinDynamics(model=wrap(torchebm, energy), step_size=eta)
        contenders["torchebm Langevin"] = lambda: sampler.sample(x=x.clone(), n_steps=n)
    if ebm is not None:
        contenders["ebmkit Langevin"] = lambda: ebm.samplers.LangevinDynamics(eta).sample(energy, x, steps=n)
        contenders["ebmkit MALA"] = lambda: ebm.samplers.MALA(eta).sample(energy, x, steps=n)
    return contenders


def wrap(torchebm: Any, energy: Callable[[Tensor], Tensor]) -> Any:
    """Return the energy as torchebm wants it."""

    class Model(torchebm.core.BaseModel):
        def forward(self, x: Tensor, **_: Any) -> Tensor:
            return energy(x)

    return Model()


def trajectories(torchebm: Any, ebm: Any) -> dict[str, Callable[[], Tensor]]:
    """Return what draws `(n_draws, n_chains, 50)` by HMC, by name; same target, step and starts."""
    rotation = torch.linalg.qr(torch.randn(50, 50))[0]
    precision = rotation * torch.logspace(0, 2, 50) @ rotation.T
    covariance = rotation * torch.logspace(0, -2, 50) @ rotation.T
    x = GaussianEnergy(torch.zeros(50), covariance).sample((N_CHAINS,))  # exact draws

    def energy(x: Tensor) -> Tensor:
        return 0.5 * ((x @ precision) * x).sum(1)

    closed_form = GaussianEnergy(torch.zeros(50), covariance)
    contenders: dict[str, Callable[[], Tensor]] = {
        "ebmlib": lambda: trace(HMC(STEP, N_LEAPFROG), closed_form, x, N_DRAWS).x,
        "ebmlib, autograd": lambda: trace(HMC(STEP, N_LEAPFROG), energy, x, N_DRAWS).x,
    }
    if torchebm is not None:
        theirs = torchebm.samplers.HamiltonianMonteCarlo(wrap(torchebm, energy), STEP, N_LEAPFROG)
        contenders["torchebm"] = lambda: theirs.sample(x=x.clone(), n_steps=N_DRAWS, return_trajectory=True).mT.permute(
            2, 0, 1
        )
    if ebm is not None:
        sampler = ebm.samplers.HMC(STEP, N_LEAPFROG, steps=N_DRAWS)

        def ebmkit() -> Tensor:
            draws, state = [], x
            for _ in range(N_DRAWS):
                state = sampler.step(energy, state)
                draws.append(state)
            return torch.stack(draws)

        contenders["ebmkit"] = ebmkit
    if (blackjax := peer("blackjax")) is not None:
        contenders["blackjax"] = jax_trajectories(blackjax, precision, x)
    return contenders


def jax_trajectories(blackjax: Any, precision: Tensor, x: Tensor) -> Callable[[], Tensor]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    matrix, starts = jnp.asarray(precision.numpy()), jnp.asarray(x.numpy())
    kernel = blackjax.hmc(
        lambda x: -0.5 * x @ matrix @ x,
        step_size=STEP,
        inverse_mass_matrix=jnp.ones(50),
        num_integration_steps=N_LEAPFROG,
    )

    @jax.jit
    def draw(key: Any, states: Any) -> Any:
        def one(states: Any, key: Any) -> Any:
            states, _ = jax.vmap(kernel.step)(jax.random.split(key, N_CHAINS), states)
            return states, states.position

        return jax.lax.scan(one, states, jax.random.split(key, N_DRAWS))[1]

    states = jax.vmap(kernel.init)(starts)
    return lambda: torch.from_numpy(np.array(draw(jax.random.key(0), states)))


def smallest_ess(draws: Tensor) -> float:
    """Return the smallest ESS of the means of x and x²: variance over squared MCSE."""
    worst = math.inf
    for values in (draws, draws.square()):
        variance = values.double().var((0, 1))
        worst = min(worst, (variance / summarize(values).mcse ** 2).min().item())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torchebm, ebm = peer("torchebm"), peer("ebm")
    for module in ("torchebm.samplers", "torchebm.core", "ebm.samplers"):
        if {"torchebm": torchebm, "ebm": ebm}[module.split(".")[0]] is not None:
            import_module(module)
    cases = {
        "2-D MLP 128², 1,000 chains": (MLPEnergy(2, (128, 128)), torch.randn(1000, 2), 40),
        "11-D MLP 256², 512 chains": (MLPEnergy(11, (256, 256)), torch.randn(512, 11), 30),
        "conv 28×28, 64 chains": (ConvEnergy((1, 28, 28), (32, 64, 64)), torch.randn(64, 1, 28, 28), 10),
    }
    for case, (energy, x, n) in cases.items():
        seconds = interleaved(steps(energy.requires_grad_(False), x, n, torchebm, ebm), rounds)
        base = seconds.pop("yardstick")
        print(f"{case}: yardstick {1e3 * median(base) / n:.2f} ms a step")
        for name, times in seconds.items():
            print(f"  {name:34} {median(a / b for a, b in zip(times, base, strict=True)):.3f}")
    contenders = trajectories(torchebm, ebm)
    draws: dict[str, list[Tensor]] = {name: [] for name in contenders}
    keeping = {name: (lambda name=name, go=go: draws[name].append(go())) for name, go in contenders.items()}
    seconds = interleaved(keeping, max(5, rounds // 3))
    # The smallest of 100 ESS is a noisy number: that of all rounds' chains together, shared out by their number.
    ess = {name: smallest_ess(torch.cat(runs, 1)) / len(runs) for name, runs in draws.items()}
    print(f"HMC, {N_LEAPFROG} leapfrogs of {STEP}, {N_CHAINS} chains of {N_DRAWS}: smallest ESS a CPU second")
    for name, times in seconds.items():
        faster = median(a / b for a, b in zip(times, seconds["ebmlib"], strict=True))
        rate, ratio = ess[name] / median(times), faster * ess["ebmlib"] / ess[name]
        text = f"ESS {ess[name]:6.0f} in {median(times):.2f} s: {rate:7.0f} a second"
        print(f"  {name:18} {text}; ebmlib over it {ratio:.2f}")


if __name__ == "__main__":
    main()
