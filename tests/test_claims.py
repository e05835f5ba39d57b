"""Sabotage: each named bug, put into a copy of the book, must fail at the check cell that claims the opposite.

A check that cannot fail proves nothing. Of the copy run only the check cell and the cells that it rests on.
"""

import ast
import json
import os
import shutil
import subprocess
import symtable
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
CAUGHT = 3  # exit status of `run` where the check cell's assertion fails


class Sabotage(NamedTuple):
    """A bug, as one replacement in one file, and the first line of the check cell that it must fail."""

    bug: str
    notebook: str
    claim: str
    file: str  # "notebook", or a module of ebmlib
    old: str
    new: str


PERSISTENT = "07_persistent_chains.ipynb"
ENERGY, LOG_Z, WINE = "01_energy_and_density.ipynb", "02_partition_functions.ipynb", "03_noise_contrastive_wine.ipynb"
LANGEVIN = "05_langevin_sampling.ipynb"
CHAINS = "06_trusting_chains.ipynb"
BOLTZMANN = "04_boltzmann_machines.ipynb"
OOD = "10_out_of_distribution.ipynb"
PICTURES = "12_visualization.ipynb"
COMPLETING = "11_completing_wines.ipynb"
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
        "networks.py",
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
    Sabotage(
        "duplicates kept",
        WINE,
        "# Claim: a random test fold shares a quarter of its rows with training; without duplicates none.",
        "notebook",
        "unique = frame.drop_duplicates()\n",
        "unique = frame\n",
    ),
    Sabotage(
        "nu forgotten in the logit",
        WINE,
        "# Claim: the constant is log Z up to the error that theory predicts, which grows with distance.",
        "notebook",
        "offset = -noise.log_prob(x) - math.log(nu)",
        "offset = -noise.log_prob(x)",
    ),
    Sabotage(
        "log Z left out at the noise",
        WINE,
        "# Claim: a network's learned constant agrees with quadrature, and its density with the truth.",
        "losses.py",
        "logit_noise = -evaluate(energy, x_noise) - log_z - noise",
        "logit_noise = -evaluate(energy, x_noise) - noise",
    ),
    Sabotage(
        "flipped sign of the classifier",
        WINE,
        "# Claim: a network's learned constant agrees with quadrature, and its density with the truth.",
        "losses.py",
        "softplus(log_nu - logit_data).mean()",
        "softplus(logit_data - log_nu).mean()",
    ),
    Sabotage(
        "Jacobian of the wines left out",
        WINE,
        "# Claim: the ruler is right: the pin is hit, the Jacobian exact, and no test row leaks into it.",
        "notebook",
        "log_det = scale.log_abs_det(x) - to_z.log_abs_det(x) + torch.linalg.slogdet(rotation)[1]",
        "log_det = torch.zeros_like(scale.log_abs_det(x))",
    ),
    Sabotage(
        "unstandardised features",
        WINE,
        "# Claim: the ruler is right: the pin is hit, the Jacobian exact, and no test row leaks into it.",
        "notebook",
        "return (scale.forward(x) @ rotation).float(), log_det",
        "return (x @ rotation).float(), log_det",
    ),
    Sabotage(
        "test rows leak into the scaling",
        WINE,
        "# Claim: the ruler is right: the pin is hit, the Jacobian exact, and no test row leaks into it.",
        "notebook",
        "    seen = rows[np.concatenate([split.train, split.validation])]\n    to_z",
        "    seen = rows\n    to_z",
    ),
    Sabotage(
        "noise of root eta",
        LANGEVIN,
        "# Claim: the variance of unadjusted Langevin on N(0, 1) is 1 / (1 - η/2).",
        "samplers.py",
        "math.sqrt(2 * self.step_size * self.temperature)",
        "math.sqrt(self.step_size * self.temperature)",
    ),
    Sabotage(
        "standard error as if draws were independent",
        CHAINS,
        "# Claim: 95 % intervals by the MCSE hold the truth, naive ones as rarely as theory predicts.",
        "diagnostics.py",
        'array_stats.mcse(draws, method="mean", **axes)',
        "draws.std((0, 1)) / np.sqrt(draws.shape[0] * draws.shape[1])",
    ),
    Sabotage(
        "R-hat computed from one start",
        CHAINS,
        "# Claim: starts in one well pass every diagnostic, wrong by over 100 MCSE; starts in both do not.",
        "notebook",
        "starts = near(*[0.0] * 4), near(0.0, 0.0, 10.0, 10.0)",
        "starts = near(*[0.0] * 4), near(*[0.0] * 4)",
    ),
    Sabotage(
        "R-hat without ranks and folding",
        CHAINS,
        "# Claim: these lines are the R-hat that summarize reports.",
        "notebook",
        "return torch.maximum(*(split_r_hat(s) for s in scores)).cpu()",
        "return split_r_hat(chains).cpu()",
    ),
    Sabotage(
        "noise of the Langevin step without its factor two",
        CHAINS,
        "# Claim: each statistic has the ESS that theory gives it; HMC's is above n for x, below for x².",
        "samplers.py",
        "math.sqrt(2 * self.step_size * self.temperature)",
        "math.sqrt(self.step_size * self.temperature)",
    ),
    Sabotage(
        "MALA without its correction",
        LANGEVIN,
        "# Claim: MALA and HMC leave p invariant; the unadjusted step does not.",
        "samplers.py",
        "h - new_h, -math.inf).clamp_(max=0)",
        "torch.zeros_like(h), -math.inf)",
    ),
    Sabotage(
        "MALA without the densities of its proposal",
        LANGEVIN,
        "# Claim: MALA and HMC leave p invariant; the unadjusted step does not.",
        "notebook",
        "(e_x - e_y + log_q_back - log_q_there).exp()",
        "(e_x - e_y).exp()",
    ),
    Sabotage(
        "leapfrog that is not reversible",
        LANGEVIN,
        "# Claim: turned round, a leapfrog glide leads back to where it began.",
        "samplers.py",
        "alpha=step_size if i < n_steps else step_size / 2)",
        "alpha=step_size)",
    ),
    Sabotage(
        "temperature of a recipe without the two",
        LANGEVIN,
        "# Claim: steps α with noise σ draw at temperature σ²/2α: variance T / (1 - α/2) on N(0, 1).",
        "notebook",
        "    temperature = sigma**2 / (2 * alpha)\n    x =",
        "    temperature = sigma**2 / alpha\n    x =",
    ),
    Sabotage(
        "swaps that are always accepted",
        LANGEVIN,
        "# Claim: parallel tempering reaches the true weights from the wrong well.",
        "notebook",
        "device=x.device) < log_ratio.exp()",
        "device=x.device) < 1",
    ),
    Sabotage(
        "step size tuned the wrong way",
        CHAINS,
        "# Claim: a step tuned to the textbook acceptance is within 20 % of the best; tiny ones are not.",
        "notebook",
        "(accept_prob.mean().item() - target)",
        "(target - accept_prob.mean().item())",
    ),
    Sabotage(
        "log Z without the visible bias",
        BOLTZMANN,
        "# Claim: log Z is the sum over hidden states, and its gradient is minus the mean energy's.",
        "rbm.py",
        "inputs = a[:, None] + w[",
        "inputs = 0 * a[:, None] + w[",
    ),
    Sabotage(
        "hidden units without their bias",
        BOLTZMANN,
        "# Claim: both chains leave exact draws as they are. 65 z-scores each: 1 false alarm in 13,000.",
        "rbm.py",
        "torch.sigmoid(x @ self.weight + self.hidden_bias)",
        "torch.sigmoid(x @ self.weight)",
    ),
    Sabotage(
        "flipped sign of contrastive divergence",
        BOLTZMANN,
        "# Claim: one epoch of CD-1 or of PCD, from a blank machine, raises the likelihood by 3 nats.",
        "rbm_training.py",
        "alpha=learning_rate / len(x)",
        "alpha=-learning_rate / len(x)",
    ),
    Sabotage(
        "persistent chains never written back",
        BOLTZMANN,
        "# Claim: annealed PCD ends within 0.65 nats of the exact gradient.",
        "rbm_training.py",
        "            h = next(noise_h).lt_(prob_model)",
        "            next(noise_h)",
    ),
    Sabotage(
        "KL without the area of a cell",
        PERSISTENT,
        "# Claim: the ruler is right: against a Gaussian it gives the closed form, against itself zero.",
        "notebook",
        "log_z = torch.logsumexp(-e, 0) + math.log(area)",
        "log_z = torch.logsumexp(-e, 0)",
    ),
    Sabotage(
        "flipped sign of contrastive divergence",
        PERSISTENT,
        "# Claim: persistent chains find the maximum-likelihood width; fresh noise does not.",
        "losses.py",
        "return evaluate(energy, x_data).mean() - evaluate(energy, x_model.detach()).mean()",
        "return evaluate(energy, x_model.detach()).mean() - evaluate(energy, x_data).mean()",
    ),
    Sabotage(
        "buffer never written back",
        PERSISTENT,
        "# Claim: persistent chains find the maximum-likelihood width; fresh noise does not.",
        "buffer.py",
        "self.x[index] = x.detach().to(self.x)",
        "x.detach().to(self.x)",
    ),
    Sabotage(
        "generator left out when resuming",
        PERSISTENT,
        "# Claim: a blow-up stops with the step that made it, and a resumed run is equal bit for bit.",
        "training.py",
        'torch.set_rng_state(saved["random"]["cpu"])',
        'saved["random"]["cpu"]',
    ),
    Sabotage(
        "scaler fitted on all rows",
        OOD,
        "# Claim: test wines leave the scaling alone, and the energy beats its noise on held-out wines.",
        "notebook",
        "return LogStandardize(x[seen], LOG_COLUMNS)",
        "return LogStandardize(x, LOG_COLUMNS)",
    ),
    Sabotage(
        "shuffled columns seen in training",
        OOD,
        "# Claim: test wines leave the scaling alone, and the energy beats its noise on held-out wines.",
        "notebook",
        "tilt = fit_tilt(u[training], u[split.validation], lambda n: q.sample((n,)), seed=10)",
        "tilt = fit_tilt(\n    u[training],\n    u[split.validation],\n"
        "    lambda n: u[training][torch.randint(len(training), (n, 11)), torch.arange(11)],\n    seed=10,\n)",
    ),
    Sabotage(
        "threshold set on test data",
        OOD,
        "# Claim: on wines that trained nothing the alarm keeps its rate too.",
        "notebook",
        "calibrating, testing = energies[order[:N]], energies[order[N:]]",
        "calibrating, testing = energies[order[N:]], energies[order[N:]]",
    ),
    Sabotage(
        "conformal threshold that forgets the new observation",
        OOD,
        "# Claim: the conformal threshold keeps its rate on average, and the naive quantile breaks it.",
        "ood.py",
        "k = math.ceil((n + 1) * (1 - exact))",
        "k = math.ceil(n * (1 - exact))",
    ),
    Sabotage(
        "threshold taken from the data",
        PICTURES,
        "# Claim: two shares of energies name each failure made on purpose, and miss the stuck chains.",
        "notebook",
        'e["model"].quantile(0.99)',
        'e["data"].quantile(0.99)',
    ),
    Sabotage(
        "string whose points slide into the wells",
        PICTURES,
        "# Claim: path, saddle and curvature are those of the closed form.",
        "notebook",
        "path = respaced(torch.cat([path[:1], moved[1:-1], path[-1:]]))",
        "path = torch.cat([path[:1], moved[1:-1], path[-1:]])",
    ),
    Sabotage(
        "farthest for nearest neighbours",
        PICTURES,
        "# Claim: decoys that share every point of the picture fail the test in the full space.",
        "notebook",
        "distance.topk(k, largest=False)",
        "distance.fill_diagonal_(0).topk(k, largest=True)",
    ),
    Sabotage(
        "turn that is an average",
        PICTURES,
        "# Claim: the middle of two Gaussian points has half their energy, the middle of a turn all of it.",
        "notebook",
        "(x + y) / math.sqrt(2)",
        "(x + y) / 2.0",
    ),
    Sabotage(
        "sum over classes left out",
        COMPLETING,
        "# Claim: the sum over classes is exact: Z is that of x alone, p(y|x) is Bayes' rule.",
        "conditional.py",
        "return -torch.logsumexp(-e, dim=1)",
        "return e.min(dim=1).values",
    ),
    Sabotage(
        "noise draws other classes than it says",
        COMPLETING,
        "# Claim: the sum over classes is exact: Z is that of x alone, p(y|x) is Bayes' rule.",
        "notebook",
        "y_noise = torch.multinomial(q0_small, len(x_noise), replacement=True)",
        "y_noise = torch.multinomial(shares, len(x_noise), replacement=True)",
    ),
    Sabotage(
        "scale fitted to all wines",
        COMPLETING,
        "# Claim: the scale of the wines comes from training wines alone.",
        "notebook",
        "scale = LogStandardize(x_raw[split.train], LOG_COLUMNS)",
        "scale = LogStandardize(x_raw, LOG_COLUMNS)",
    ),
    Sabotage(
        "known coordinates of another wine",
        COMPLETING,
        "# Claim: chains that hold the known coordinates draw what quadrature gives.",
        "conditional.py",
        "x.repeat(n_blocks, 1)))",
        "x.roll(1, 0).repeat(n_blocks, 1)))",
    ),
    Sabotage(
        "a missing value that stays known",
        COMPLETING,
        "# Claim: with two coordinates missing the chains draw the joint conditional of the grid.",
        "notebook",
        "missing[pair] = True",
        "missing[pair[0]] = True",
    ),
]


def flow(statement: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """Return the names that a statement binds, those that it changes in place, and those that it reads."""

    def read(table: symtable.SymbolTable, is_top: bool) -> set[str]:
        here = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (is_top or s.is_global())}
        return here.union(*(read(child, False) for child in table.get_children()))

    top = symtable.symtable(ast.unparse(statement), "cell", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    stores = [n for n in ast.walk(statement) if isinstance(getattr(n, "ctx", None), ast.Store)]
    parts = [n for n in stores if isinstance(n, ast.Attribute | ast.Subscript)]
    changed = {i.id for n in parts for i in ast.walk(n) if isinstance(i, ast.Name)}
    if isinstance(statement, ast.AugAssign):
        changed |= bound
    used = read(top, True)
    if isinstance(statement, ast.For):  # its own variables are set before its body reads them
        used -= {n.id for n in ast.walk(statement.target) if isinstance(n, ast.Name)}
        used |= {n.id for n in ast.walk(statement.iter) if isinstance(n, ast.Name)}
    return bound - changed, changed, used | changed


def cells_for(claim: str, notebook: Path) -> list[str]:
    """Return the check cell that begins with the claim, behind the earlier cells that it rests on."""
    cells = [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    cells = [cell for cell in cells if "remove-cell" not in cell["metadata"].get("tags", [])]
    sources = ["".join(cell["source"]) for cell in cells]
    last = next(i for i, source in enumerate(sources) if source.startswith(claim))
    assert "check" in cells[last]["metadata"]["tags"], "a claim stands in a cell tagged check"
    kept: list[str] = []
    wanted: set[str] = set()
    for source in reversed(sources[: last + 1]):
        flows = [flow(statement) for statement in ast.parse(source).body]
        if source is sources[last] or any((bound | changed) & wanted for bound, changed, _ in flows):
            kept.insert(0, source)
            for bound, _, used in reversed(flows):
                wanted = (wanted - bound) | used
    return kept


def run(claim: str, notebook: Path) -> None:
    """Run the cells of a claim; exit with CAUGHT if its own assertion fails, with an error if anything else does."""
    import matplotlib as mpl

    mpl.use("Agg")
    *before, check = cells_for(claim, notebook)
    space = {"__name__": "__main__"}
    for source in before:
        exec(compile(source, "cell", "exec"), space)
    try:
        exec(compile(check, "check cell", "exec"), space)
    except AssertionError as error:
        print(error)
        sys.exit(CAUGHT)


def outcome(claim: str, notebook: Path, package_root: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(package_root), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, __file__, claim, str(notebook)]
    return subprocess.run(command, cwd=package_root, env=environment, capture_output=True, text=True, timeout=300)


def replace_once(text: str, old: str, new: str, where: str) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {where}, not once"
    return text.replace(old, new)


@pytest.mark.parametrize("notebook, claim", dict.fromkeys((s.notebook, s.claim) for s in SABOTAGES))
def test_claim_stands_by_itself(notebook, claim, tmp_path):
    """Without a bug the check passes, on no more cells than the sabotage will run."""
    shutil.copytree(ROOT / "ebmlib", tmp_path / "ebmlib")
    result = outcome(claim, ROOT / "notebooks" / notebook, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s.bug.replace(" ", "-"))
def test_sabotage_fails_at_its_check(sabotage, tmp_path):
    shutil.copytree(ROOT / "ebmlib", tmp_path / "ebmlib")
    notebook = tmp_path / sabotage.notebook
    content = json.loads((ROOT / "notebooks" / sabotage.notebook).read_text("utf-8"))
    if sabotage.file == "notebook":
        sources = "\0".join("".join(cell["source"]) for cell in content["cells"])
        sources = replace_once(sources, sabotage.old, sabotage.new, sabotage.notebook)
        for cell, source in zip(content["cells"], sources.split("\0"), strict=True):
            cell["source"] = source
    else:
        path = tmp_path / "ebmlib" / sabotage.file
        path.write_text(replace_once(path.read_text("utf-8"), sabotage.old, sabotage.new, sabotage.file), "utf-8")
    notebook.write_text(json.dumps(content), "utf-8")
    result = outcome(sabotage.claim, notebook, tmp_path)
    assert result.returncode == CAUGHT, f"{sabotage.bug} goes unnoticed: {result.stdout}{result.stderr[-2000:]}"


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
