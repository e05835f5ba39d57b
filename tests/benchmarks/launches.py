"""Several processes on one machine: do the scripts of chapter 17 end, resume and stop, and what does averaging cost?

    python tests/benchmarks/launches.py

writes launches.json, which chapter 17 shows. It takes the scripts from the `%%writefile` cells of the notebook, records
the SHA-256 of each, and starts them as the notebook does, in a folder of their own, through gloo on the loopback. Each
row has the commit that it was made at; `made_from` is the SHA-256 of the script that was launched and of those that it
imports.

- runs: each script that is launched, a hundred times in a row. It `failed` if it had not ended after `LIMIT` seconds (a
  hang), or with an exit code that is not zero, or the message of an abort (a crash); `equal` counts runs that left the
  files of the first, bit for bit. `nodes` 2 are two launchers that meet at an address, as two machines do; they are
  started thirty times.
- restarts: rank 1 of `train.py` is killed at steps 20, 40, …, 400; does the restarted run end, and with every part of
  its last checkpoint (weights, optimizer, chains, generators) bit-equal to that of the undisturbed run?
- divergence: seconds from the exception of rank 1 of `train.py` until all processes had ended.
- collective: an all-reduce by size, on 2, 3 and 4 processes (this machine has `cores`), and the bytes that crossed the
  loopback meanwhile (`wire`). `fits` are lines through the least times, by least squares of relative errors; `fit` is
  of 2. The medians stand beside.
- weak: an update of persistent chains, 256 rows a process, by the number of MALA steps: one process alone, both at once
  without averaging, both wrapped by DistributedDataParallel and told not to average, two that average. `efficiency` is
  one over two, least times; `predicted` explains the two predictions beside it. Measured five times (`run`).
- budget: R ranks and S steps, played by one process with R times the rows and chains: at R S = 1,600, and at S = 400.
  KL(data‖model) by quadrature, seeds 0 to 2; each (R, S) has the learning rate that was best on seed 100 (`tried`).

Elapsed seconds mean something on a quiet machine alone, so collective and weak work in short turns, each of which waits
until other programs rest, and records the share of the processors that they took; the quieter half of the turns counts,
and `others` is the largest share in it. A run that is stopped goes on when it is called again; `--quick` is a look.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from provenance import RESULTS, ROOT, provenance
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ebmlib.buffer import ReplayBuffer
from ebmlib.losses import contrastive_divergence
from ebmlib.networks import Confined, MLPEnergy
from ebmlib.partition import quadrature
from ebmlib.samplers import MALA, run
from ebmlib.toys import eight_gaussians
from ebmlib.training import minibatches, train

MODULES = "annealing buffer checkpoint energies losses networks partition samplers score_matching toys training".split()
INPUTS = ["tests/benchmarks/launches.py", *(f"ebmlib/{name}.py" for name in MODULES)]
NOTEBOOK = ROOT / "notebooks" / "17_scaling_up.ipynb"
LIMIT = 120
ABORTS = ("terminate called", "SIGSEGV", "SIGABRT", "Aborted", "core dumped", "Fatal Python error")
SIZES = (250, 2_500, 25_000, 77_000, 250_000, 1_000_000)  # float32 numbers of an all-reduce
SAMPLER_STEPS, WEAK_RUNS = (0, 1, 3, 10, 30, 100), 5
EQUAL_WORK, EQUAL_STEPS = ((16, 100), (8, 200), (4, 400), (1, 1600)), ((1, 400), (16, 400))
LAUNCHED = (("gradient.py", 1, 100), ("traps.py", 1, 100), ("train.py", 1, 100), ("ais.py", 1, 100), ("ais.py", 2, 30))
OF_SCRIPTS = ("runs", "restarts", "divergence")
KILLS = range(20, 401, 20)
RATES, SEEDS, SEED_OF_CHOICE = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2), (0, 1, 2), 100


def scripts(notebook: Path = NOTEBOOK) -> dict[str, str]:
    """Return the files that the notebook writes, by name."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    found = {}
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        if source.startswith("%%writefile "):
            head, _, body = source.partition("\n")
            found[Path(head.split()[-1]).name] = body.rstrip("\n") + "\n"
    return found


def digests(notebook: Path = NOTEBOOK) -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in scripts(notebook).items()}


def imported(script: str, files: dict[str, str]) -> set[str]:
    """Return the names of a script and of those of the files that it imports, at any depth."""
    found, left = set(), [script]
    while left:
        name = left.pop()
        if name in files and name not in found:
            found.add(name)
            left += [f"{module}.py" for module in re.findall(r"^(?:from|import) (\w+)", files[name], re.MULTILINE)]
    return found


def made_from(script: str, files: dict[str, str]) -> str:
    """Return the SHA-256 of a script and of what it imports of the files."""
    return hashlib.sha256("".join(files[name] for name in sorted(imported(script, files))).encode()).hexdigest()


def launched(file: Path, args: list[str], *options: str, n: int = 2, limit: float = LIMIT) -> dict[str, Any]:
    """Return how a launch of n processes ended."""
    return ended([[*options, "--standalone", f"--nproc-per-node={n}", str(file), *args]], file.parent, limit)


def on_two_nodes(file: Path) -> dict[str, Any]:
    """Return how two launchers of one process each ended, which meet on the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    meet = ["--nnodes=2", "--rdzv-id=17", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", "--nproc-per-node=1"]
    return ended([[*meet, str(file)]] * 2, file.parent, LIMIT)


def ended(commands: list[list[str]], folder: Path, limit: float) -> dict[str, Any]:
    """Start launchers; return their worst exit code (None for a hang), what they printed, seconds, and when it was."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # else a restart may meet a stale address
    before, start = os.times(), time.monotonic()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launchers = [
        subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *c], env=environment, cwd=folder, **pipes)
        for c in commands
    ]
    out = err = ""
    codes: list[int | None] = []
    for launcher in launchers:
        try:
            said = launcher.communicate(timeout=max(1, start + limit - time.monotonic()))
            codes.append(launcher.returncode)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # it takes its workers with it
            said = launcher.communicate()
            codes.append(None)
        out, err = out + said[0], err + said[1]
    at, elapsed, after = time.time(), time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    code = None if None in codes else max(codes, key=abs)
    aborted = any(word in out + err for word in ABORTS)
    return {"code": code, "out": out, "err": err, "aborted": aborted, "elapsed": elapsed, "cpu": cpu, "at": at}


def written(folder: Path) -> Path:
    """Return the folder, with the scripts in it."""
    for name, text in scripts().items():
        (folder / name).write_text(text, "utf-8")
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """Return what the run of a script saved there, by file."""
    return {file.name: torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pt"))}


def repeated(script: str, nodes: int, n_runs: int) -> list[dict[str, Any]]:
    """Return how n_runs launches of a script in a row ended."""
    ends, n_equal, first = [], 0, None
    with tempfile.TemporaryDirectory() as name:
        folder = written(Path(name))
        for i in range(n_runs):
            arguments = [f"run{i}"] if script == "train.py" else []
            ends.append(launched(folder / script, arguments) if nodes == 1 else on_two_nodes(folder / script))
            left = contents(folder / f"run{i}" if arguments else folder)
            first = first or left
            n_equal += bool(left) and equal(first, left)
            for file in folder.glob("*.pt"):
                file.unlink()
    hangs = sum(end["code"] is None for end in ends)
    crashes = sum(end["code"] not in (0, None) or end["aborted"] for end in ends)
    row = {"script": script, "arguments": "FOLDER" if script == "train.py" else "", "nodes": nodes, "runs": n_runs}
    row |= {"failed": hangs + crashes, "hangs": hangs, "crashes": crashes, "equal": n_equal}
    return [row | {"cpu_seconds": median(e["cpu"] for e in ends), "elapsed": median(e["elapsed"] for e in ends)}]


def equal(a: Any, b: Any) -> bool:
    """Return whether two states are the same, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def killed(steps: list[int]) -> dict[str, Any]:
    """Return what became of runs whose rank 1 was killed at these steps."""
    found: dict[str, Any] = {"runs": len(steps), "equal": 0, "steps": steps, "from": [], "codes": []}
    with tempfile.TemporaryDirectory() as name:
        folder = written(Path(name))

        def last(run: str) -> dict[str, Any]:
            return {file: kept["parts"] for file, kept in contents(folder / run).items() if file.startswith("400-")}

        if (end := launched(folder / "train.py", ["whole"]))["code"] != 0:
            raise RuntimeError(f"the undisturbed run ended with {end['code']}:\n{end['err'][-2000:]}")
        for step in steps:
            end = launched(folder / "train.py", [f"run{step}", "kill", str(step)], "--max-restarts=1")
            starts = [int(line.split()[-1]) for line in end["out"].splitlines() if "go on from step" in line]
            found["from"].append(starts[-1] if len(starts) == 2 else None)  # None: it was not restarted
            found["codes"].append(end["code"])
            found["equal"] += end["code"] == 0 and len(starts) == 2 and equal(last("whole"), last(f"run{step}"))
    return found


def diverged(n_runs: int) -> dict[str, Any]:
    """Return seconds from the exception of a rank to the end of all, and how often its message was seen."""
    found: dict[str, Any] = {"runs": n_runs, "seconds": [], "messages": 0, "codes": []}
    for _ in range(n_runs):
        with tempfile.TemporaryDirectory() as name:
            folder = written(Path(name))
            end = launched(folder / "train.py", ["bad", "bad", "row"])
            raised = folder / "raised-1"
            found["seconds"].append(end["at"] - raised.stat().st_mtime if raised.exists() else None)
            found["messages"] += "Divergence:" in end["out"] + end["err"]
            found["codes"].append(end["code"])
    return found


# --- workers, which torchrun starts from this very file


def line_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return microseconds = latency + bytes · per byte, by least squares of relative errors, from the least times."""
    t = torch.tensor([row["least"] for row in rows], dtype=torch.float64)
    x = torch.tensor([[1.0, row["bytes"]] for row in rows], dtype=torch.float64)
    latency, per_byte = torch.linalg.lstsq(x / t[:, None], torch.ones_like(t)[:, None]).solution[:, 0].tolist()
    return {"latency_us": latency, "ns_per_byte": 1e3 * per_byte}


def on_the_loopback() -> int | None:
    """Return the bytes that the loopback has carried, by Linux's own count."""
    table = Path("/proc/net/dev")
    lines = table.read_text("utf-8").splitlines() if table.exists() else []
    return next((int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:")), None)


def busy_seconds() -> float:
    """Return the CPU seconds of all programs since the machine started, by Linux's own count, or NaN."""
    table = Path("/proc/stat")
    if not table.exists():
        return math.nan
    user, nice, system, _, _, irq, soft, stolen = map(int, table.read_text("utf-8").split()[1:9])
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")


class Turns:
    """Turns that all ranks begin at once, when other programs rest, and that know what these took in the end."""

    def __init__(self, folder: Path, patience: float):
        self.folder, self.patience, self.count = folder, patience, 0

    def begin(self) -> None:
        """Rank 0 waits until others left the processors alone for .15 s, at most 10 s; the rest sleep meanwhile."""
        dist.barrier()
        self.count += 1
        flag, start = self.folder / f"turn{self.count}", time.monotonic()
        if dist.get_rank() == 0:
            busy = 1.0
            while busy > 0.05 and self.patience > 0 and time.monotonic() < start + 10:
                before = busy_seconds()
                time.sleep(0.15)
                busy = (busy_seconds() - before) / 0.15 if before == before else 0.0
            self.patience -= time.monotonic() - start
            flag.touch()
        while not flag.exists():
            time.sleep(0.005)
        dist.barrier()
        self.busy, self.own, self.start = busy_seconds(), time.process_time(), time.monotonic()

    def end(self) -> float:
        """Return the share of the processors that other programs took."""
        own = torch.tensor(time.process_time() - self.own, dtype=torch.float64)
        busy, elapsed = busy_seconds() - self.busy, time.monotonic() - self.start
        dist.all_reduce(own)
        share = torch.tensor((busy - own.item()) / (elapsed * (os.cpu_count() or 1)), dtype=torch.float64)
        dist.broadcast(share, 0)
        return max(0.0, share.item())


def quiet(turns: list[tuple[float, list[float]]]) -> dict[str, Any]:
    """Return what the quieter half of the turns measured, and the share of others in the worst of them."""
    kept = sorted(turns, key=lambda turn: turn[0])[: (len(turns) + 1) // 2]
    seconds = [value for _, each in kept for value in each]
    return {"min": min(seconds), "median": median(seconds), "n": len(seconds), "others": kept[-1][0]}


def worker_collective(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Time all-reduces of several sizes; a call lasts as long as on the slowest rank."""
    turns, sizes = Turns(folder, 0 if is_quick else 60), []
    for size in SIZES:
        x, made = torch.ones(size), []
        for _ in range(2 if is_quick else 10):
            turns.begin()
            seconds = []
            for _ in range(60):
                dist.barrier()
                start = time.perf_counter()
                dist.all_reduce(x)
                seconds.append(time.perf_counter() - start)
            others = turns.end()
            slowest = torch.tensor(seconds[10:], dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            made.append((others, slowest.tolist()))
        wire = []
        for _ in range(5):  # others use the loopback, too: the least of five
            dist.barrier()
            before = on_the_loopback()
            dist.barrier()
            for _ in range(20):
                dist.all_reduce(x)
            dist.barrier()
            after = on_the_loopback()
            dist.barrier()
            if before is not None and after is not None:
                wire.append((after - before) / 20)
        found, n = quiet(made), dist.get_world_size()
        row = {"n_ranks": n, "bytes": 4 * size, "microseconds": 1e6 * found["median"], "least": 1e6 * found["min"]}
        sizes.append(row | {"n": found["n"], "others": found["others"], "wire": min(wire) if wire else None})
    return {"rows": sizes}


KINDS = ("one", "both", "wrapped", "two")


def worker_weak(folder: Path, is_quick: bool) -> dict[str, Any]:
    """Time updates of persistent chains: alone, both at once, both wrapped without averaging, both averaging."""
    turns, rank, rows = Turns(folder, 0 if is_quick else 240), dist.get_rank(), []
    torch.manual_seed(0)
    energy = Confined(MLPEnergy(2, (128, 128)), 4.0)
    ddp = DistributedDataParallel(energy)
    torch.manual_seed(1 + rank)
    x_data, chains = torch.randn(256, 2), torch.randn(256, 2)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-6)  # so small that all turns see the same network

    def update(wrapped: nn.Module, n: int) -> float:
        nonlocal chains
        start = time.perf_counter()
        chains = run(MALA(0.01), energy, chains, n)
        optimizer.zero_grad()
        contrastive_divergence(wrapped, x_data, chains).backward()
        optimizer.step()
        return time.perf_counter() - start

    def turn(kind: str, n: int) -> list[float]:
        if kind == "one" and rank > 0:
            while not (folder / "done").exists():  # off the processor while rank 0 works
                time.sleep(0.005)
            return []
        count = 3 + max(4, 60 // (1 + n))
        with ddp.no_sync() if kind == "wrapped" else nullcontext():
            seconds = [update(ddp if kind in ("wrapped", "two") else energy, n) for _ in range(count)]
        if kind == "one":
            (folder / "done").touch()
        return seconds[3:]

    for n in SAMPLER_STEPS:
        made: dict[str, list[tuple[float, list[float]]]] = {kind: [] for kind in KINDS}
        for k in range(2 if is_quick else 10):
            for kind in KINDS[:: 1 if k % 2 else -1]:
                turns.begin()
                seconds = turn(kind, n)
                made[kind].append((turns.end(), seconds))
                (folder / "done").unlink(missing_ok=True)
        if rank == 0:
            found = {kind: quiet(each) for kind, each in made.items()}
            row: dict[str, Any] = {"chain_steps": n} | {f"{kind}_ms": 1e3 * found[kind]["median"] for kind in KINDS}
            row |= {f"{kind}_least_ms": 1e3 * found[kind]["min"] for kind in KINDS}
            row |= {f"{kind}_others": found[kind]["others"] for kind in KINDS}
            rows.append(row | {"efficiency": row["one_least_ms"] / row["two_least_ms"]})
    return {"numbers": sum(p.numel() for p in energy.parameters()), "rows": rows}


def worker(name: str, out: Path, is_quick: bool) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    result = {"collective": worker_collective, "weak": worker_weak}[name](out.parent, is_quick)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(result), "utf-8")
    gc.collect()  # a wrapped module sits in a circle of references, and must go before the group
    dist.destroy_process_group()


def by_workers(name: str, n: int, is_quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        args = ["--worker", name, "--out", str(out), *(["--quick"] if is_quick else [])]
        end = launched(Path(__file__).resolve(), args, n=n, limit=900)
        if end["code"] != 0:
            raise RuntimeError(f"{name} on {n} processes ended with {end['code']}:\n{end['err'][-2000:]}")
        return json.loads(out.read_text("utf-8"))


# --- ranks against steps, in this process


def learned(n_ranks: int, n_steps: int, lr: float, seed: int) -> float:
    """Return KL(data‖model) in nats after n_steps of persistent chains on n_ranks times 64 rows and chains."""
    torch.manual_seed(seed)
    toy, rows = eight_gaussians(), 64 * n_ranks
    energy = Confined(MLPEnergy(2, (64, 64)), 4.0)
    x = toy.sample((20_000,))
    batches = minibatches(x, rows, torch.Generator().manual_seed(seed))
    buffer = ReplayBuffer(x[: 625 * n_ranks] + 0.3 * torch.randn(625 * n_ranks, 2), toy.sample)
    optimizer = torch.optim.Adam(energy.parameters(), lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)

    def loss(x_data: Tensor) -> Tensor:
        index, chains = buffer.draw(len(x_data))
        chains = run(MALA(0.02), energy, chains, 5)
        buffer.write(index, chains)
        return contrastive_divergence(energy, x_data, chains)

    train(loss, optimizer, batches, n_steps, cosine)
    with torch.no_grad():
        log_z = quadrature(energy, (-8.0, -8.0), (8.0, 8.0), 400).value
        axis = torch.linspace(-4, 4, 401)
        grid = torch.cartesian_prod(axis, axis)
        log_p = toy.log_prob(grid).double()
        p = torch.softmax(log_p, 0)
        return (p * (log_p + energy(grid).double() + log_z)).sum().item()


def predicted(rows: list[dict[str, Any]], line: dict[str, float], numbers: int) -> list[dict[str, Any]]:
    """Return the rows of weak scaling with two predictions C / (C + t) of their efficiency, C the least time of one.

    `by_line` has t of the line of all-reduces, which knew nothing of these runs; `by_first` has t of the update without
    sampler steps, and predicts the others.
    """
    times = {"by_line": (line["latency_us"] + 4e-3 * numbers * line["ns_per_byte"]) / 1e3}
    times["by_first"] = rows[0]["two_least_ms"] - rows[0]["one_least_ms"]
    return [row | {name: row["one_least_ms"] / (row["one_least_ms"] + t) for name, t in times.items()} for row in rows]


def same(earlier: dict[str, Any], now: dict[str, Any], files: Iterable[str]) -> bool:
    """Return whether two runs have the same versions and these files alike."""
    alike = all(earlier["sha256"].get(name) == now["sha256"][name] for name in files)
    return alike and all(earlier[key] == now[key] for key in ("versions", "dirty"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs, one seed: a look, not a result")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.out, args.quick)
        return
    out = args.out or (Path("launches_quick.json") if args.quick else RESULTS / "launches.json")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as name:
        files = {file.name: file for file in written(Path(name)).iterdir()}
        head = provenance("python tests/benchmarks/launches.py", INPUTS, others=files)
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}}
    if out.exists():
        earlier = json.loads(out.read_text("utf-8"))
        if same(earlier["provenance"], head, INPUTS):
            results = earlier
            for part in OF_SCRIPTS:  # where a script has changed, what it did is gone
                rows = results.get(part, [])
                results[part] = [row for row in rows if row["made_from"] == made_from(row["script"], scripts())]
            results["provenance"] |= {key: head[key] for key in ("commit", "date", "sha256")}

    def once(part: str, make: Callable[[], list[dict[str, Any]]], **key: Any) -> list[dict[str, Any]]:
        """Return the rows of this key; where there are none, make and write them."""
        rows = results.setdefault(part, [])
        there = [row for row in rows if all(row.get(name) == value for name, value in key.items())]
        if there:
            return there
        before = os.times()
        made = [key | row | {"commit": head["commit"]} for row in make()]
        print(part, *made, sep="\n  ", flush=True)
        rows += made
        results["provenance"]["cpu_seconds"] += sum(os.times()[:4]) - sum(before[:4])
        save()
        return made

    def save() -> None:
        out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")

    for script, nodes, n_runs in LAUNCHED:
        make = partial(repeated, script, nodes, 2 if args.quick else n_runs)
        once("runs", make, script=script, nodes=nodes, made_from=made_from(script, scripts()))
    results["runs"].sort(key=lambda row: [kind[:2] for kind in LAUNCHED].index((row["script"], row["nodes"])))
    for part, run_all in (
        ("restarts", lambda: killed(list(KILLS)[:: 10 if args.quick else 1])),
        ("divergence", lambda: diverged(1 if args.quick else 10)),
    ):
        key = {"script": "train.py", "made_from": made_from("train.py", scripts())}
        once(part, lambda run_all=run_all: [run_all()], **key)
    for ranks, steps in EQUAL_WORK + EQUAL_STEPS:

        def kl(lr: float, seed: int, ranks: int = ranks, steps: int = steps) -> list[dict[str, Any]]:
            return [{"kl": learned(ranks, steps if not args.quick else 20, lr, seed)}]

        key = {"ranks": ranks, "steps": steps}
        tried = {lr: once("tried", partial(kl, lr, SEED_OF_CHOICE), lr=lr, **key)[0]["kl"] for lr in RATES}
        lr = min(tried, key=lambda lr: math.inf if math.isnan(tried[lr]) else tried[lr])
        for seed in SEEDS[: 1 if args.quick else None]:
            once("budget", partial(kl, lr, seed), lr=lr, seed=seed, **key)
    results |= {"cores": os.cpu_count(), "fits": {}}
    for n in (2, 3, 4):
        rows = once("collective", lambda n=n: by_workers("collective", n, args.quick)["rows"], n_ranks=n)
        results["fits"][str(n)] = {"n_ranks": n} | line_of(rows)
    results["fit"] = results["fits"]["2"]

    def weak() -> list[dict[str, Any]]:
        found = by_workers("weak", 2, args.quick)
        results["numbers"] = found["numbers"]  # of the gradient
        return predicted(found["rows"], results["fit"], found["numbers"])

    for k in range(WEAK_RUNS):
        once("weak", weak, run=k)
    save()


if __name__ == "__main__":
    main()
