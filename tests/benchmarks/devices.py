"""What one device gives: a Langevin step and an update of persistent chains, written in several ways.

    python tests/benchmarks/devices.py [--device cuda]

writes devices.json, which chapter 17 shows. Each device adds its own rows, under its name; rows of another device stay
if they come from the same files. A variant is timed only after it has shown, on the case it is timed on, that

- its chains end where the plain chains end, given the same noise (rounding aside), wherever it can be given it;
- its chains have the right law: z-scores of the means of E, x and x² after `law_steps` steps, one number a chain. The
  truth is quadrature in the plane, and an independent plain run on images; the plain chains are held to it too;
- two calls draw different noise, and weights that an optimizer changes in place are followed;
- the gradient of an update differs from the plain one, given the same noise, by less than two halves of a batch do.

A variant that fails has `law` "wrong", says why, and has no times. Where bfloat16 rounds the network, chains are paired
with plain ones by their noise, and `shift` says by how many nats their mean energy differs, ± its standard error. "bf16
state" differs from "bf16 network" by the state alone. What is compiled are the chains; the loss of an update is not.
"8 × the chains" has the z of the variant that it repeats: checked anew is that rows do not touch each other.
Times are CPU seconds of this process on a CPU, and elapsed seconds between synchronisations on a GPU; the contenders
take turns, and a ratio is the median over turns, with quartiles. `compile_seconds` are CPU seconds of torch.compile
until the first gradient, with those of the compilers that it starts, each in a process of its own and from an empty
cache: a process that has compiled once keeps the kernels in memory. Nothing was chosen here. A run that is stopped
goes on when it is called again; `--quick` is a look.
"""

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # before torch: else it starts a pool of processes

import torch  # noqa: E402
from provenance import RESULTS, provenance  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from ebmlib.energies import energy_and_grad  # noqa: E402
from ebmlib.networks import Confined, MLPEnergy  # noqa: E402
from ebmlib.samplers import Langevin, State  # noqa: E402

INPUTS = ["tests/benchmarks/devices.py", *(f"ebmlib/{name}.py" for name in ("energies", "networks", "samplers"))]
ALARM = 4.5  # of |z|; a false alarm has chance 7e-6 a number
Energy = Callable[[Tensor], Tensor]


class ImageEnergy(nn.Module):
    """The network of the UvA tutorial on energy-based models: four convolutions of stride 2, two linear layers."""

    def __init__(self, width: int = 32):
        super().__init__()
        a, b, c = width // 2, width, 2 * width
        convolutions = [nn.Conv2d(1, a, 5, 2, 4), nn.Conv2d(a, b, 3, 2, 1), nn.Conv2d(b, c, 3, 2, 1)]
        layers: list[nn.Module] = []
        for layer in (*convolutions, nn.Conv2d(c, c, 3, 2, 1)):
            layers += [layer, nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * c, c), nn.SiLU(), nn.Linear(c, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)


class Case(NamedTuple):
    """An energy, and how many chains take how many steps where."""

    energy: nn.Module
    x: Tensor  # starts, (n, *event)
    law_x: Tensor
    law_steps: int
    step_size: float
    tolerance: float  # between states of two float32 variants, given the same noise
    n_steps: int = 10  # of an update


class Variant(NamedTuple):
    """The energy that chains run on and the one that trains, of the same weights."""

    chains: Any
    loss: Energy
    more: int = 1  # times as many chains
    dtype: torch.dtype = torch.float32
    rounded: bool = False
    graph: bool = False
    backward: bool = False
    compile_seconds: float | None = None


def moved(energy: Any, x: Tensor, n: int, step_size: float) -> Tensor:
    """Return x after n Langevin steps, as ebmlib's `run` makes them."""
    kernel, state = Langevin(step_size), State(x)  # without the check of `init`, which waits for a GPU
    for _ in range(n):
        state, _ = kernel.step(energy, state)
    return state.x


def moved_by_backward(energy: nn.Module, x: Tensor, n: int, step_size: float) -> Tensor:
    """The same by `backward()`, which gives the weights gradients as well that no one reads."""
    for _ in range(n):
        x = x.detach().requires_grad_()
        energy(x).sum().backward()
        x = x.detach() - step_size * x.grad + math.sqrt(2 * step_size) * torch.randn(x.shape, device=x.device)
    return x


class Graph:
    """A walk of chains, recorded once as a CUDA graph and started as a whole."""

    def __init__(self, walk: Callable[[Tensor], Tensor], x: Tensor):
        self.x = x.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose and allocate before they are recorded
            for _ in range(3):
                walk(self.x)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):  # the default generator is recorded as one that goes on
            self.end = walk(self.x)

    def __call__(self, x: Tensor) -> Tensor:
        self.x.copy_(x)
        self.graph.replay()
        return self.end.clone()


def walker(variant: Variant, case: Case, n: int, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what moves states like x by n steps."""
    by = moved_by_backward if variant.backward else moved

    def walk(x: Tensor) -> Tensor:
        return by(variant.chains, x.to(variant.dtype), n, case.step_size)

    return Graph(walk, x) if variant.graph else walk


def frozen(energy: nn.Module) -> nn.Module:
    """Return the same energy on the same memory, whose weights ask for no gradient: for chains."""
    twin = copy.deepcopy(energy).requires_grad_(False)
    for ours, theirs in zip(twin.parameters(), energy.parameters(), strict=True):
        ours.data = theirs.data
    return twin


def in_bf16(energy: Energy, kind: str) -> Energy:
    """The network in bfloat16 by autocast; state, noise, the confining bowl and the sum stay float32."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16):
            return energy(x).float()

    return forward


def cpu_seconds() -> float:
    """Of this process and of the compilers that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compiled(energy: nn.Module) -> Energy:
    """Return the compiled energy as a plain function, whose gradient is that of autograd."""
    torch.compiler.reset()
    module = torch.compile(energy)
    return lambda x: module(x)


def seconds_of_compiling(case: str, kind: str, bf16: bool) -> float:
    """Return what a fresh process with an empty cache needs until its first compiled gradient."""
    command = [sys.executable, __file__, "--compile", case, "--device", kind, *(["--bf16"] if bf16 else [])]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def compile_alone(case: str, kind: str, bf16: bool) -> float:
    """Return the CPU seconds until the first compiled gradient of a case: what that fresh process does."""
    if case == "tutorial":
        energy, x = scaled(ImageEnergy(), 2).to(kind).to(memory_format=torch.channels_last), torch.rand(N, 1, 28, 28)
    else:
        made = (plane if case == "plane" else images)(kind, 0.0)
        energy, x = made.energy.to(memory_format=torch.channels_last) if case == "images" else made.energy, made.x
    start = cpu_seconds()
    quick = compiled(frozen(energy))
    energy_and_grad(in_bf16(quick, kind) if bf16 else quick, x.to(kind))
    return cpu_seconds() - start


def variants(name: str, case: Case, kind: str) -> dict[str, tuple[nn.Module, Callable[[nn.Module], Variant]]]:
    """Return by name the module whose weights are trained, and what makes the variant of it; the plain one first."""

    def plain(e: nn.Module, **more: Any) -> Variant:
        chains = frozen(e)
        return Variant(lambda x: chains(x), e, **more)  # a function: its gradient is autograd's

    def bf16(e: nn.Module, **more: Any) -> Variant:
        return Variant(in_bf16(frozen(e), kind), in_bf16(e, kind), rounded=True, **more)

    def by_compiler(e: nn.Module) -> Variant:
        return Variant(compiled(frozen(e)), e, compile_seconds=seconds_of_compiling(name, kind, False))

    def bf16_compiled(e: nn.Module) -> Variant:
        seconds = seconds_of_compiling(name, kind, True)
        return Variant(in_bf16(compiled(frozen(e)), kind), in_bf16(e, kind), rounded=True, compile_seconds=seconds)

    def all_bf16(e: nn.Module) -> Variant:
        return bf16(e, dtype=torch.bfloat16)

    images = case.x.ndim == 4
    first = copy.deepcopy(case.energy)
    last = copy.deepcopy(case.energy).to(memory_format=torch.channels_last)
    best = last if images else first
    table: dict[str, tuple[nn.Module, Callable[[nn.Module], Variant]]] = {
        "autograd": (first, plain),
        "backward()": (first, lambda e: Variant(e, e, backward=True)),
    }
    if not images:
        table["by hand"] = (first, lambda e: Variant(frozen(e), e))
    table["8 × the chains"] = (first, lambda e: plain(e, more=8))
    if images:
        table |= {"channels last": (last, plain), "channels last, 8 × the chains": (last, lambda e: plain(e, more=8))}
    table |= {
        "compiled": (best, by_compiler),
        "bf16 network": (best, bf16),
        "bf16 network, compiled": (best, bf16_compiled),
        "bf16 network, 8 × the chains": (best, lambda e: bf16(e, more=8)),
        "bf16 state": (best, all_bf16),
    }
    if kind == "cuda":
        table |= {
            "CUDA graph": (best, lambda e: plain(e, graph=True)),
            "CUDA graph, bf16 network": (best, lambda e: bf16(e, graph=True)),
        }
    return table


def statistics_of(energy: Energy, x: Tensor) -> dict[str, Tensor]:
    """Return one number a chain."""
    with torch.no_grad():
        e = torch.cat([energy(rows) for rows in x.float().split(2048)])
    rows = x.double().flatten(1)
    return {"E": e.double(), "x": rows.mean(1), "x²": rows.square().mean(1)}


def grid_of(energy: Energy, device: str) -> tuple[Tensor, Tensor, float]:
    """Return points of a grid that holds all but a 1e-9 of exp(-E) / Z, their shares of it, and their distance."""
    axis = torch.linspace(-12, 12, 801, device=device)
    grid = torch.cartesian_prod(axis, axis)
    p = torch.softmax(-statistics_of(energy, grid)["E"], 0)
    assert p[(grid.abs() > 11.9).any(1)].sum() < 1e-9, "the grid is too small"
    return grid, p, 24 / 800


def plane_truth(energy: Energy, device: str) -> dict[str, tuple[float, float]]:
    """Return the means over exp(-E) / Z by that grid, with an error of zero."""
    grid, p, _ = grid_of(energy, device)
    return {name: ((p * value).sum().item(), 0.0) for name, value in statistics_of(energy, grid).items()}


def estimated(of: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    return {name: (v.mean().item(), (v.std() / math.sqrt(len(v))).item()) for name, v in of.items()}


def update_gradient(variant: Variant, module: nn.Module, case: Case, x_data: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of contrastive divergence after the chains have moved."""
    x = walker(variant, case, case.n_steps, x)(x).float()
    loss = variant.loss(x_data).mean() - variant.loss(x).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def checked(variant: Variant, module: nn.Module, case: Case, plain: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what the checks measured, and what is wrong."""
    found: dict[str, Any] = {}
    wrong: list[str] = []
    if variant.more == 1:
        torch.manual_seed(1)
        end = walker(variant, case, case.law_steps, case.law_x)(case.law_x)
        of = statistics_of(case.energy, end)
        ours, truth = estimated(of), plain["truth"]
        found["z"] = {k: (ours[k][0] - truth[k][0]) / math.hypot(ours[k][1], truth[k][1]) for k in ours}
        if not max(map(abs, found["z"].values())) < ALARM:
            wrong.append("another law: z " + ", ".join(f"{k} {z:+.1f}" for k, z in found["z"].items()))
        plain.setdefault("end", end)
        plain.setdefault("E", of["E"])
        if variant.dtype == torch.float32:  # a state of bfloat16 draws other noise from the same seed
            found["states_differ"] = (end - plain["end"]).abs().max().item()
            if not variant.rounded and not found["states_differ"] <= case.tolerance:
                wrong.append(f"same noise, ends {found['states_differ']:.1e} off")
            if variant.rounded:
                shift = of["E"] - plain["E"]
                found["shift"] = [shift.mean().item(), (shift.std() / math.sqrt(len(shift))).item()]
    x = case.x.repeat(variant.more, *[1] * (case.x.ndim - 1))
    go = walker(variant, case, case.n_steps, x)
    if torch.equal(go(x), go(x)):
        wrong.append("two calls draw the same noise")
    if variant.more > 1:  # the noise of a chain is another; that rows do not touch each other can be had without it
        parts = torch.cat([energy_and_grad(variant.chains, rows)[1] for rows in x.split(len(case.x) // 2)])
        found["rows_differ"] = (parts - energy_and_grad(variant.chains, x)[1]).abs().max().item()
        if not variant.rounded and not found["rows_differ"] <= case.tolerance:
            wrong.append(f"rows touch each other: {found['rows_differ']:.1e}")
    if variant.dtype != torch.float32:
        return found, wrong
    x_data = plain["x_data"]
    torch.manual_seed(2)
    gradient = update_gradient(variant, module, case, x_data, case.x)
    plain.setdefault("gradient", gradient)
    found["gradient_differs"] = ((gradient - plain["gradient"]).norm() / plain["gradient"].norm()).item()
    if not found["gradient_differs"] <= (plain["halves_differ"] if variant.rounded else 1e-3):
        wrong.append(f"the gradient of an update is {found['gradient_differs']:.1e} off")
    weights = [p.detach().clone() for p in module.parameters()]
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.1)
    torch.manual_seed(3)
    after = go(x)
    torch.manual_seed(3)
    off = (after - moved(module, x, case.n_steps, case.step_size)).abs().max().item()
    torch.manual_seed(3)
    before = (after - moved(case.energy, x, case.n_steps, case.step_size)).abs().max().item()
    with torch.no_grad():
        for p, saved in zip(module.parameters(), weights, strict=True):
            p.copy_(saved)
    found["new_weights"] = [off, before]  # distance from chains on the new weights, and on the old
    if not off < (0.5 * before if variant.rounded else case.tolerance):
        wrong.append(f"weights changed in place, ends {off:.1e} off")
    return found, wrong


def clock(kind: str) -> float:
    if kind == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(contenders: dict[str, tuple[Callable[[], Any], int]], rounds: int, kind: str) -> dict[str, dict[str, Any]]:
    """Return seconds a call over the number given, and ratios to the first contender."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(-2, rounds):  # two turns warm up
        for name in list(contenders)[:: 1 if k % 2 else -1]:
            go, share = contenders[name]
            start = clock(kind)
            go()
            if k >= 0:
                seconds[name].append((clock(kind) - start) / share)
    base = seconds[next(iter(contenders))]
    rows = {}
    for name, each in seconds.items():
        ratio = [a / b for a, b in zip(each, base, strict=True)]
        low, _, high = quantiles(ratio, n=4)
        rows[name] = {"seconds": median(each), "ratio": median(ratio), "quartiles": [low, high]}
    return rows


def trainer(variant: Variant, module: nn.Module, case: Case) -> Callable[[], None]:
    """Return one update of persistent chains: steps, contrastive divergence, Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-6)  # so small that all go on with the same network
    n = len(case.x) * variant.more
    chains = case.x.repeat(variant.more, *[1] * (case.x.ndim - 1))
    go, x_data = walker(variant, case, case.n_steps, chains), torch.randn(chains[:n].shape, device=chains.device)

    def update() -> None:
        nonlocal chains
        chains = go(chains).detach().float()
        optimizer.zero_grad()
        (variant.loss(x_data).mean() - variant.loss(chains).mean()).backward()
        optimizer.step()

    return update


def compare(name_of_case: str, case: Case, kind: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row a variant."""
    device = case.x.device.type
    torch.manual_seed(100)
    plain: dict[str, Any] = {"x_data": torch.randn(case.x.shape, device=device)}
    if case.x.ndim == 2:
        plain["truth"] = plane_truth(case.energy, device)
    else:
        end = moved(lambda x: case.energy(x), case.law_x.repeat(4, 1, 1, 1), case.law_steps, case.step_size)
        plain["truth"] = estimated(statistics_of(case.energy, end))
    reference = Variant(frozen(case.energy), case.energy)
    halves = [update_gradient(reference, case.energy, case, *pair) for pair in _halves(plain["x_data"], case.x)]
    plain["halves_differ"] = ((halves[0] - halves[1]).norm() / (sum(halves) / 2).norm()).item()
    rows, steps, updates = [], {}, {}
    for name, (module, make) in variants(name_of_case, case, kind).items():
        variant = make(module)
        found, wrong = checked(variant, module, case, plain)
        if variant.more > 1:
            base = next(row for row in rows if row["variant"] == (name.partition("8 ×")[0].strip(", ") or "autograd"))
            found["z"] = base["z"]
            wrong += [base["why"]] if base["law"] == "wrong" else []
        if wrong and not rows:
            raise RuntimeError(f"the plain chains fail their own checks: {wrong}")
        row = {"variant": name, "law": "wrong" if wrong else "right", "why": "; ".join(wrong)} | found
        if variant.compile_seconds is not None:
            row["compile_seconds"] = variant.compile_seconds
        rows.append(row)
        print(row, flush=True)
        if not wrong:
            x = case.x.repeat(variant.more, *[1] * (case.x.ndim - 1))
            go = walker(variant, case, case.n_steps, x)
            steps[name] = (lambda go=go, x=x: go(x)), case.n_steps * variant.more
            updates[name] = trainer(variant, module, case), variant.more
    for part, contenders in (("step", steps), ("update", updates)):
        for name, times in in_turns(contenders, rounds, kind).items():
            next(row for row in rows if row["variant"] == name)[part] = times
    return rows


def _halves(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.chunk(2) for t in tensors), strict=True))


def scaled(net: nn.Module, by: float) -> nn.Module:
    """Return the network with larger weights: fresh ones hardly tell one x from another."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(by)
    return net


def plane(device: str, share: float) -> Case:
    torch.manual_seed(0)
    energy = Confined(scaled(MLPEnergy(2, (128, 128)), 4), 1.0).to(device)
    torch.manual_seed(200)
    grid, p, width = grid_of(energy, device)
    x = grid[torch.multinomial(p, 2000, replacement=True)]
    x += width * (torch.rand(x.shape, device=device) - 0.5)  # draws of p, but for what it bends within a cell
    return Case(energy, x[:1000], x, round(3000 * share), 0.001, 1e-3)


def images(device: str, share: float) -> Case:
    torch.manual_seed(0)
    energy = Confined(scaled(ImageEnergy(), 3), 1.0).to(device)
    torch.manual_seed(200)
    x = moved(energy, torch.randn(128, 1, 28, 28, device=device), round(300 * share), 0.02)
    return Case(energy, x, x, round(1000 * share), 0.003, 1e-3)


def gaussian(device: str, share: float) -> list[dict[str, Any]]:
    """Return variances of states that draw from N(0, 1), against 1 / (1 - η/2), which the steps of size η have."""
    low = torch.bfloat16
    ways: dict[str, tuple[torch.dtype, Energy]] = {
        "float32": (torch.float32, lambda x: 0.5 * x.square().sum(1)),
        "bf16 energy": (torch.float32, lambda x: 0.5 * x.to(low).square().sum(1).float()),
        "bf16 state": (low, lambda x: 0.5 * x.square().sum(1)),
    }
    rows = []
    for step_size in (0.1, 0.01, 0.001):
        for name, (dtype, energy) in ways.items():
            torch.manual_seed(0)
            truth, now = 1 / (1 - step_size / 2), 0.0
            x = (math.sqrt(truth) * torch.randn(100_000, 1, device=device)).to(dtype)
            row: dict[str, Any] = {"state": name, "step_size": step_size, "truth": truth}
            row |= {"time": [], "variance": [], "z": []}
            for until in (1.0, 3.0, 10.0):  # time is the sum of η
                x = moved(energy, x, max(10, round((until - now) * share / step_size)), step_size)
                of, now = x.double().square(), until
                row["time"].append(until)
                row["variance"].append(of.mean().item())
                row["z"].append(((of.mean() - truth) / (of.std() / math.sqrt(len(of)))).item())
            rows.append(row)
            print(row, flush=True)
    return rows


# The tutorial's recipe, by its description: 128 images; 60 steps along -10 times a gradient clipped at .03, with noise
# of .005, inside [-1, 1]; a buffer of 8,192 images, of which one in twenty starts anew; a penalty of .1 on squares; the
# gradient of an update clipped at .1; Adam at 1e-4 without momentum. This is no sampler of exp(-E): chapter 7.
N, STEPS, RATE, CLIP, NOISE, ALPHA, SIZE = 128, 60, 10.0, 0.03, 0.005, 0.1, 8192


class Loop:
    """As a reader would write it: a list of images as the buffer, `backward()`, `.data` and `.grad`."""

    def __init__(self, energy: nn.Module):
        self.energy, self.device = energy, next(energy.parameters()).device
        self.images = [2 * torch.rand(1, 1, 28, 28) - 1 for _ in range(SIZE)]
        self.adam = torch.optim.Adam(energy.parameters(), lr=1e-4, betas=(0.0, 0.999))

    def walk(self, start: Tensor) -> Tensor:
        for p in self.energy.parameters():
            p.requires_grad = False
        x = start.clone().to(self.device)
        x.requires_grad = True
        noise = torch.empty(x.shape, device=self.device)
        for _ in range(STEPS):
            noise.normal_(0, NOISE)
            x.data.add_(noise)
            x.data.clamp_(-1, 1)
            self.energy(x).sum().backward()
            x.grad.data.clamp_(-CLIP, CLIP)
            x.data.add_(-RATE * x.grad.data)
            x.grad.zero_()
            x.data.clamp_(-1, 1)
        for p in self.energy.parameters():
            p.requires_grad = True
        return x.detach()

    def draw(self) -> Tensor:
        n_fresh = int((torch.rand(N) < 0.05).sum())
        old = [self.images[i] for i in torch.randint(len(self.images), (N - n_fresh,)).tolist()]
        return torch.cat([2 * torch.rand(n_fresh, 1, 28, 28) - 1, *old])

    def learn(self, x_data: Tensor, fake: Tensor) -> None:
        self.images = (list(fake.cpu().chunk(N)) + self.images)[:SIZE]
        real, false = self.energy(torch.cat([x_data, fake])).chunk(2)
        loss = real.mean() - false.mean() + ALPHA * (real**2 + false**2).mean()
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.energy.parameters(), 0.1)
        self.adam.step()

    def update(self, x_data: Tensor) -> None:
        self.learn(x_data, self.walk(self.draw()))


class Faster(Loop):
    """The same recipe: the buffer one tensor on the device, gradients to x alone, and a variant of the network."""

    def __init__(self, energy: nn.Module, kind: str = "", graph: bool = False, quick: Energy | None = None):
        super().__init__(energy)
        self.buffer = torch.cat(self.images).to(self.device)
        self.loss = in_bf16(energy, kind) if kind else energy
        self.chains: Any = quick or (in_bf16(frozen(energy), kind) if kind else frozen(energy))
        self.go: Any = Graph(self.steps, self.buffer[:N]) if graph else self.steps

    def steps(self, x: Tensor) -> Tensor:
        for _ in range(STEPS):
            x = torch.add(x, torch.randn(x.shape, device=x.device), alpha=NOISE).clamp_(-1, 1)
            grad = energy_and_grad(lambda x: self.chains(x), x)[1].clamp_(-CLIP, CLIP)
            x = x.sub_(grad, alpha=RATE).clamp_(-1, 1)
        return x

    def walk(self, start: Tensor) -> Tensor:
        return self.go(start)

    def draw(self) -> Tensor:
        self.places = torch.randint(SIZE, (N,), device=self.device)
        fresh = torch.rand(N, 1, 1, 1, device=self.device) < 0.05
        return torch.where(fresh, 2 * torch.rand(N, 1, 28, 28, device=self.device) - 1, self.buffer[self.places])

    def learn(self, x_data: Tensor, fake: Tensor) -> None:
        self.buffer[self.places] = fake
        real, false = self.loss(torch.cat([x_data, fake])).chunk(2)
        loss = real.mean() - false.mean() + ALPHA * (real.square() + false.square()).mean()
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.energy.parameters(), 0.1)
        self.adam.step()


def tutorial(device: str, share: float) -> list[dict[str, Any]]:
    """Return a row a way of the tutorial's 60 steps and an update; law and gradient against the loop of a reader."""
    torch.manual_seed(0)
    first = scaled(ImageEnergy(), 2).to(device)
    last = copy.deepcopy(first).to(memory_format=torch.channels_last)
    copies = iter([copy.deepcopy(last) for _ in range(6)])
    ways: dict[str, Callable[[], Loop]] = {
        "a reader's loop": lambda: Loop(copy.deepcopy(first)),
        "gradient to x alone": lambda: Faster(copy.deepcopy(first)),
        "and channels last": lambda: Faster(next(copies)),
        "and bf16 network": lambda: Faster(next(copies), device),
    }

    ways["channels last, compiled"] = lambda: Faster(energy := next(copies), quick=compiled(frozen(energy)))
    if device == "cuda":
        ways |= {
            "channels last, CUDA graph": lambda: Faster(next(copies), graph=True),
            "bf16 network, CUDA graph": lambda: Faster(next(copies), device, graph=True),
        }
    generator = torch.Generator().manual_seed(1)
    starts, x_data = (2 * torch.rand(N, 1, 28, 28, generator=generator).to(device) - 1 for _ in range(2))
    n_walks = max(2, round(8 * share))
    rows, contenders, plain = [], {}, {}
    for name, make in ways.items():
        torch.manual_seed(2)
        way = make()
        if not plain:
            torch.manual_seed(3)
            others = torch.cat([way.walk(starts) for _ in range(n_walks)])
            plain["truth"] = estimated(statistics_of(first, others))
        torch.manual_seed(4)
        end = torch.cat([way.walk(starts) for _ in range(n_walks)])
        of = statistics_of(first, end)
        ours = estimated(of)
        z = {k: (ours[k][0] - plain["truth"][k][0]) / math.hypot(ours[k][1], plain["truth"][k][1]) for k in ours}
        way.draw()
        plain.setdefault("end", end)
        plain.setdefault("E", of["E"])
        way.learn(x_data, plain["end"][:N])
        gradient = torch.cat([p.grad.flatten() for p in way.energy.parameters()])
        plain.setdefault("gradient", gradient)
        shift = of["E"] - plain["E"]
        row: dict[str, Any] = {"variant": name, "z": z, "states_differ": (end - plain["end"]).abs().max().item()}
        row["shift"] = [shift.mean().item(), (shift.std() / math.sqrt(len(shift))).item()]
        row["gradient_differs"] = ((gradient - plain["gradient"]).norm() / plain["gradient"].norm()).item()
        rounded = "bf16" in name
        fine = max(map(abs, z.values())) < ALARM and row["gradient_differs"] < (0.1 if rounded else 1e-3)
        row["law"] = "right" if fine and (rounded or row["states_differ"] < 1e-2) else "wrong"
        if "compiled" in name:
            row["compile_seconds"] = seconds_of_compiling("tutorial", device, False)
        rows.append(row)
        print(row, flush=True)
        if row["law"] == "right":
            contenders[name] = (lambda way=way: way.update(x_data)), 1
    for name, times in in_turns(contenders, max(2, round(9 * share)), device).items():
        next(row for row in rows if row["variant"] == name)["update"] = times
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps: a look, not a result")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--compile", choices=("plane", "images", "tutorial"), help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        torch.set_num_threads(1)
        print(compile_alone(args.compile, args.device, args.bf16))
        return
    out = args.out or (Path("devices_quick.json") if args.quick else RESULTS / "devices.json")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    kind = args.device
    head = provenance("python tests/benchmarks/devices.py", INPUTS)
    name = torch.cuda.get_device_name() if kind == "cuda" else processor()
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}, "devices": {}, "rows": []}
    if out.exists():
        earlier = json.loads(out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("sha256", "dirty")):
            results = earlier
    about = {"kind": kind, "torch": head["versions"]["torch"], "date": head["date"], "commit": head["commit"]}
    about["capability"] = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else torch.version.cuda
    results["devices"].setdefault(name, about | {"cpu_seconds": 0.0})
    share, rounds = (0.05, 3) if args.quick else (1.0, 9)
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "gaussian": lambda: gaussian(kind, share),
        "plane": lambda: compare("plane", plane(kind, share), kind, rounds),
        "images": lambda: compare("images", images(kind, share), kind, rounds),
        "tutorial": lambda: tutorial(kind, share),
    }
    for part, make in parts.items():
        if any(row["part"] == part and row["device"] == name for row in results["rows"]):
            continue
        start = cpu_seconds()
        results["rows"] += [{"part": part, "device": name} | row for row in make()]
        for record in (results["provenance"], results["devices"][name]):
            record["cpu_seconds"] += cpu_seconds() - start
        out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{part}: {cpu_seconds() - start:.0f} CPU s", flush=True)


def processor() -> str:
    """Return what the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
