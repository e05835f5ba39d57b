"""Sabotage: each named bug, put into a copy of the book, must fail at the check cell that claims the opposite.

A check that cannot fail proves nothing. The copy runs only up to that cell.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# Runs the code cells one by one; a failed assertion in a check cell exits with 3 and prints that cell.
RUNNER = """
import json, sys, matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
space = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    tags, source = cell["metadata"].get("tags", []), "".join(cell["source"])
    if cell["cell_type"] != "code" or "remove-cell" in tags:
        continue
    is_last = "check" in tags and sys.argv[2] in source
    try:
        exec(compile(source, "cell", "exec"), space)
    except AssertionError as error:
        if "check" not in tags:
            raise
        print(source, "->", error)
        sys.exit(3)
    if is_last:
        sys.exit(0)
    plt.close("all")
sys.exit("no such check cell")
"""


class Sabotage(NamedTuple):
    """A bug, as one replacement in one file, and the first line of the check cell that it must fail."""

    bug: str
    notebook: str
    claim: str
    file: str  # "notebook", or a module of ebmlib
    old: str
    new: str


ENERGY, LOG_Z = "01_energy_and_density.ipynb", "02_partition_functions.ipynb"
SABOTAGES = [
    Sabotage(
        "flipped sign of the energy",
        ENERGY,
        "# Claim: lower energy is higher density, for every pair of points.",
        "notebook",
        "energy, log_p = ring(places), truth.log_prob(places)",
        "energy, log_p = -ring(places), truth.log_prob(places)",
    ),
    Sabotage(
        "flipped sign of the gradient",
        ENERGY,
        "# Claim: descending the energy raises log p at every start; the wrong sign lowers it.",
        "energies.py",
        "return e.detach(), grad",
        "return e.detach(), -grad",
    ),
    Sabotage(
        "log Z off by a constant",
        ENERGY,
        "# Claim: draws fall into a region with probability Z of the region over Z.",
        "energies.py",
        "math.log(2 * math.pi * std**2) - offset",
        "math.log(2 * math.pi * std**2) - offset + 0.1",
    ),
    Sabotage(
        "temperature upside down",
        ENERGY,
        "# Claim: at temperature T a Gaussian has T times the variance, and ½ log T more log Z.",
        "notebook",
        "return lambda x: energy(x) / temperature",
        "return lambda x: energy(x) * temperature",
    ),
    Sabotage(
        "Jacobian left out",
        ENERGY,
        "# Claim: with the Jacobian both units have one log Z, and the mode moves to exp(-s²).",
        "notebook",
        "return energy_u(x.log()) + x[:, 0].log()",
        "return energy_u(x.log())",
    ),
    Sabotage(
        "confinement that does not confine",
        ENERGY,
        "# Claim: log Z of the confined network settles.",
        "energies.py",
        "x.flatten(1).square().sum(1) / (2 * self.std**2)",
        "x.flatten(1).square().sum(1) * 0",
    ),
    Sabotage(
        "quadrature without the volume of the box",
        LOG_Z,
        "# Claim: quadrature equals the closed form, for a mixture in 1-D, a Gaussian in 2-D.",
        "partition.py",
        " + half.log().sum() - evaluate(energy, x)",
        " - evaluate(energy, x)",
    ),
    Sabotage(
        "enumeration forgets a state",
        LOG_Z,
        "# Claim: enumeration equals the closed form (no couplings) and the transfer matrix (chain).",
        "partition.py",
        "min(s + BLOCK, 2**n_units)",
        "min(s + BLOCK, 2**n_units - 1)",
    ),
    Sabotage(
        "importance sampling averages logarithms",
        LOG_Z,
        "# Claim: in low dimension the estimate of Z is unbiased, and 95 % intervals hold the truth.",
        "partition.py",
        "value = torch.logsumexp(log_w, dim=0) - math.log(n_samples)",
        "value = log_w.mean()",
    ),
    Sabotage(
        "standard error divides by n",
        LOG_Z,
        "# Claim: in low dimension the estimate of Z is unbiased, and 95 % intervals hold the truth.",
        "partition.py",
        "relative.std() / math.sqrt(n_samples)",
        "relative.std() / n_samples",
    ),
    Sabotage(
        "log Z with the wrong sign in a likelihood",
        LOG_Z,
        "# Claim: exactly, A beats B (z-score over data); by importance sampling B mostly beats A.",
        "notebook",
        "gain = energy_gain + runs_a[:, 0] - runs_b[:, 0]",
        "gain = energy_gain - runs_a[:, 0] + runs_b[:, 0]",
    ),
]


def replace_once(text: str, old: str, new: str, where: str) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {where}, not once"
    return text.replace(old, new)


def run_until(claim: str, notebook: Path, package_root: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(package_root), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", RUNNER, str(notebook), claim]
    return subprocess.run(command, cwd=package_root, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s.bug.replace(" ", "-"))
def test_sabotage_fails_at_its_check(sabotage, tmp_path):
    shutil.copytree(ROOT / "ebmlib", tmp_path / "ebmlib")
    content = json.loads((ROOT / "notebooks" / sabotage.notebook).read_text())
    if sabotage.file == "notebook":
        sources = ["".join(cell["source"]) for cell in content["cells"]]
        joined = replace_once("\x00".join(sources), sabotage.old, sabotage.new, sabotage.notebook)
        for cell, source in zip(content["cells"], joined.split("\x00"), strict=True):
            cell["source"] = source
    else:
        path = tmp_path / "ebmlib" / sabotage.file
        path.write_text(replace_once(path.read_text(), sabotage.old, sabotage.new, sabotage.file))
    notebook = tmp_path / sabotage.notebook
    notebook.write_text(json.dumps(content))
    result = run_until(sabotage.claim, notebook, tmp_path)
    assert result.returncode == 3, f"{sabotage.bug} goes unnoticed (exit {result.returncode}): {result.stderr[-2000:]}"
    assert sabotage.claim in result.stdout, f"{sabotage.bug} is caught elsewhere: {result.stdout}"
