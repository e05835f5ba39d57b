"""Peak memory in bytes, as the system counts it in a fresh process: blocks and draws do not add up."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from pathlib import Path
import torch
from ebmlib.annealing import annealed_importance_sampling
from ebmlib.energies import GaussianEnergy
from ebmlib.networks import Confined, MLPEnergy
from ebmlib.partition import enumeration, importance_sampling, quadrature
from ebmlib.rbm import RBM, BlockGibbs, SingleFlip, exact_log_z
from ebmlib.rbm_training import contrastive_epoch
from ebmlib.samplers import HMC, MALA, Langevin, run, trace

def peak():
    status = Path("/proc/self/status")  # of this program; on Linux, maxrss begins at what its parent had
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

def own_loop(n_steps):
    x = torch.zeros(1000, 2)
    for _ in range(n_steps):
        _, grad = net.energy_and_grad(x)
        x = x - 0.01 * grad

def trained(n_rows, n_chains, **counts):
    chains = None if n_chains is None else torch.zeros(n_chains, 784)
    return contrastive_epoch(RBM(784, 64), torch.zeros(n_rows, 784), 0.1, chains, **{"batch_size": 20} | counts)

def every_kernel(function, n):
    start = torch.zeros(1000, 2, requires_grad=True)
    bits, rbm = torch.zeros(1000, 64, requires_grad=True), RBM(64, 16)
    smooth = [function(kernel, net, start, n) for kernel in (Langevin(0.01), MALA(0.01), HMC(0.1, 2))]
    return smooth, [function(kernel, rbm, bits, n) for kernel in (BlockGibbs(), SingleFlip())]

def annealed(n_temps):
    rbm, bits = RBM(64, 16), torch.distributions.Bernoulli(torch.full((64,), 0.5))
    path, betas = lambda beta: rbm.tempered(beta, torch.zeros(64)), torch.linspace(0, 1, n_temps)
    base = torch.distributions.Independent(bits, 1)
    return annealed_importance_sampling(rbm, base, BlockGibbs(), betas, 1000, path=path)

torch.set_num_threads(1)
torch.manual_seed(0)
net = MLPEnergy(2, (64, 64))
normal = GaussianEnergy(torch.zeros(2), torch.eye(2))
WARM
before = peak()
kept = CALL
print(peak() - before)
"""

CORNERS = "[-4.0, -4.0], [4.0, 4.0]"
CASES = {  # call: (a smaller one that warms up, MiB allowed). Where a graph or all noise is kept, it is 500 and more.
    "quadrature": (f"quadrature(Confined(net, 1.0), {CORNERS}, 2048)", f"quadrature(net, {CORNERS}, 2)", 150),
    "enumeration": ("enumeration(RBM(20, 64), 20)", "enumeration(RBM(2, 64), 2)", 200),
    "importance sampling": ("importance_sampling(net, normal, 2**21)", "importance_sampling(net, normal, 2)", 200),
    "log Z": ("torch.no_grad()(exact_log_z)(RBM(100, 20))", "exact_log_z(RBM(5, 4))", 60),
    "persistent chains": ("trained(2000, 1000)", "trained(20, 10)", 80),
    "contrastive divergence of many steps": ("trained(100, None, n_steps=500)", "trained(20, None)", 40),
    "a batch larger than the data": ("trained(100, None, batch_size=10**6)", "trained(20, None)", 40),
    "annealing": ("annealed(1000)", "annealed(3)", 40),
    "own loop": ("own_loop(1000)", "own_loop(2)", 40),
    "run": ("every_kernel(run, 300)", "every_kernel(run, 2)", 40),
    "trace": ("every_kernel(trace, 20)", "every_kernel(trace, 2)", 60),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_bounded(case):
    call, warm, limit = CASES[case]
    script = SCRIPT.replace("WARM", warm).replace("CALL", call)
    # What is freed goes back at once: else the gaps that glibc keeps count as well, some runs 100 MiB, some 500.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < limit, f"{call} took {float(result.stdout):.0f} MiB; {limit} are allowed"
