"""Energies beside the other families of densities: likelihood, time, draws, completion, stability, and a VAE's bound.

    python tests/benchmarks/families.py

Three data sets: `two modes` in the plane, whose density is known (2,000 rows train, 500 validate, 2,000 test), `wine`
(protocol B of `wine_density.py`, folds 0 to 2, eight parts train, the ninth validates) and `digits` (binarised 8x8
images, a permutation a seed, 1,257 train, 180 validate, 360 test). Seed s draws, permutes or takes fold s, and seeds
the models. Every family gets the same rows and a grid of its own (`GRIDS`): eight settings if it is trained by
gradients, two rates and two sizes with the steps of `STEPS` and with five times as many (three rates in the plane),
five if it has one number to choose; validation stops each fit by gradients and chooses the setting, anew for each seed.
A test part is scored once. All that was tried is in `tried`. In the plane energies are tilted from N(0, 9 I), which
knows nothing of the modes; elsewhere from one Gaussian or from the mixture.

`rows`: nats a row with its standard error over rows; for wines in the standardised raw space (Jacobian added back),
`moved` the same for wines moved within their rounding cells. `gain` is over the mixture, paired by rows; `ahead` that
of "energy, NCE", likewise. `short` is the true log density less the model's, where there is a truth. `train_s`: CPU
seconds of one fit of the chosen setting; `log_z_s` those of its constant; `draws_s`, `likelihoods_s`: of 1,000 of each.
`neighbours_z`: test rows against as many draws, in standard deviations of shuffled labels; `ood`: AUROC of -log p for
white wines, rotated digits, and test rows whose columns are shuffled. Completion hides a measurement of a wine (each of
three in turn) or a column of eight pixels: `completed` is -log p(hidden | rest) in nats, `median_error` the mean
absolute error of the conditional median in standard deviations. `gap`, `right`: mass between the modes, |x₁| < 1, and
of the right one (truth .3).
`stability`: last weights of a constant number of CPU seconds, no stopping, on rings. A run fails if it diverged, or
came less than a tenth of a nat nearer to the data than one Gaussian.
`bounds`: VAEs on digits, likelihood by a sum over the latent space, beside bounds of more and more draws.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from family_models import (
    VAE,
    Autoregressive,
    ChainLoss,
    Flow,
    Kernels,
    Normalized,
    bit_kernels,
    chain_score,
    fit_bit_mixture,
    fit_by_gradient,
    make_tilt,
    tuned,
)
from provenance import RESULTS, provenance
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from wine_density import LATTICE, LOG_COLUMNS
from wine_models import adapted, bagged_mixture

from ebmlib.annealing import annealed_importance_sampling
from ebmlib.buffer import ReplayBuffer
from ebmlib.conditional import conditional_log_prob, grid_quantiles
from ebmlib.datasets import LogStandardize, digits, kfold, mixture, wine_quality
from ebmlib.energies import GaussianMixtureEnergy
from ebmlib.fitting import fit_tilt
from ebmlib.losses import nce_from_logits
from ebmlib.partition import importance_sampling, quadrature
from ebmlib.rbm import RBM, BlockGibbs, SingleFlip, exact_log_z
from ebmlib.rbm_training import contrastive_epoch
from ebmlib.score_matching import exact_score_matching
from ebmlib.toys import rings
from ebmlib.training import Divergence, minibatches, train
from ebmlib.two_sample import neighbour_test

MODULES = "annealing buffer conditional datasets energies fitting losses networks partition rbm rbm_training samplers"
INPUTS = [
    *(f"ebmlib/{name}.py" for name in [*MODULES.split(), "score_matching", "tilted", "toys", "training", "tuning"]),
    *("ebmlib/two_sample.py", "ebmlib/data/winequality-red.csv", "ebmlib/data/winequality-white.csv"),
    *(f"tests/benchmarks/{n}.py" for n in ("families", "family_models", "provenance", "wine_density", "wine_models")),
]
SEEDS, DATA = (0, 1, 2), ("wine", "digits", "two modes")
RIGHT, GAP, STD = 0.3, 1.0, 0.4  # two modes at ±3: weight of the right one, half width of the gap, their width
LOW, HIGH = (-6.0, -5.0), (6.0, 5.0)  # of the plane that is summed over
JITTER = 0.05  # of training wines, about their rounding
HIDDEN_COLUMNS = (8, 9, 10)  # pH, sulphates, alcohol
PIXELS, N_COMPLETED = list(range(3, 64, 8)), 120  # the fourth column of an image, hidden in so many

TOY_RATES = [{"lr": lr} for lr in (3e-3, 1e-2, 3e-2)]
COUNTS = [{"n": n} for n in (2, 4, 8, 16, 32)]
WIDTHS = [{"bandwidth": h} for h in (0.02, 0.03, 0.05, 0.08, 0.12)]


def pairs(name: str, values: tuple[Any, ...], rates: tuple[float, ...] = (3e-3, 1e-2)) -> list[dict[str, Any]]:
    return [{"lr": lr, name: value, "times": times} for times in (1, 5) for lr in rates for value in values]


PLANE: dict[str, list[dict[str, Any]]] = {
    "Gaussian": [{}],
    "mixture": COUNTS,
    "kernel density": WIDTHS,
    "VAE": TOY_RATES,
    "flow": TOY_RATES,
    "autoregressive": TOY_RATES,
    "energy, NCE": TOY_RATES,
    "energy, chains": TOY_RATES,
    "energy, CD": TOY_RATES,
    "energy, score matching": TOY_RATES,
}
GRIDS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "two modes": PLANE,
    "wine": {
        "Gaussian": [{}],
        "mixture": [{"n": n} for n in (2, 4, 8, 12, 16)],
        "kernel density": [{"bandwidth": h} for h in (0.2, 0.25, 0.3, 0.4, 0.5)],
        "VAE": pairs("latent", (4, 8)),
        "flow": pairs("hidden", (32, 64)),
        "autoregressive": pairs("drop", (0.1, 0.3)),
        "energy, NCE": pairs("base", ("Gaussian", "mixture")),
        "energy, chains": pairs("base", ("Gaussian", "mixture")),
    },
    "digits": {
        "independent bits": [{}],
        "mixture": [{"n": n} for n in (10, 20, 40, 60, 80)],
        "kernel density": [{"flip": p} for p in (0.04, 0.06, 0.08, 0.1, 0.12)],
        "VAE": pairs("latent", (2, 8)),
        "autoregressive": pairs("drop", (0.1, 0.3)),
        "energy, NCE": pairs("drop", (0.2, 0.5)),
        "energy, chains": pairs("hidden", (12, 16), (0.05, 0.1)),
    },
}
STEPS = {"VAE": 1500, "flow": 300, "autoregressive": 500, "energy, NCE": 500, "energy, chains": 250}
STEPS |= {"energy, CD": 250, "energy, score matching": 250, "epochs": 150}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STABILITY = ("VAE", "flow", "autoregressive", "energy, NCE", "energy, chains")
STABILITY_SEEDS, BUDGET = range(3), 2.0  # CPU seconds a run
N_DRAWS = (1, 10, 100, 1000, 5000)
BOUNDS = [(latent, seed) for latent in (1, 2) for seed in SEEDS]


class Data(NamedTuple):
    """Rows in a model's space; `jacobian` turns log p of a test row there into that of the reporting space."""

    kind: str
    x: Tensor
    x_validation: Tensor
    x_test: Tensor
    jacobian: Tensor
    moved: tuple[Tensor, Tensor] | None = None  # test wines moved within their rounding cells, and their Jacobian
    others: Tensor | None = None  # what is no datum of this kind
    truth: Any = None

    @property
    def dim(self) -> int:
        return self.x.shape[1]


# ---------------------------------------------------------------- data


def two_modes() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), STD, torch.tensor([1 - RIGHT, RIGHT]))


def load_wine(k: int) -> Data:
    table = wine_quality("red").drop_duplicates()
    x = torch.tensor(table.drop(columns="quality").to_numpy())
    split = kfold(len(x))[k]
    nine = x[np.concatenate([split.train, split.validation])]
    report, scale = LogStandardize(nine), LogStandardize(nine, LOG_COLUMNS)

    def part(rows: Tensor) -> tuple[Tensor, Tensor]:
        return scale.forward(rows).float(), scale.log_abs_det(rows) - report.log_abs_det(rows)

    test = x[split.test]
    shift = torch.rand(test.shape, generator=torch.Generator().manual_seed(k)).double() - 0.5
    white = wine_quality("white").drop_duplicates().drop(columns="quality").sample(400, random_state=k)
    return Data(
        "wine",
        part(x[split.train])[0],
        part(x[split.validation])[0],
        *part(test),
        part(test + shift * torch.tensor(LATTICE, dtype=x.dtype)),
        part(torch.tensor(white.to_numpy()))[0],
    )


def load(name: str, seed: int) -> Data:
    """Return a data set; its rows are drawn or permuted by the seed alone."""
    if name == "wine":
        return load_wine(seed)
    if name == "digits":
        x = (digits()[0] > 8).float()
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
        test = x[1437:]
        turned = test.view(-1, 8, 8).rot90(1, (1, 2)).flatten(1)
        return Data(name, x[:1257], x[1257:1437], test, torch.zeros(len(test)), None, turned)
    truth: Any = rings() if name == "rings" else two_modes()
    x = truth.sample((4500,), generator=torch.Generator().manual_seed(seed))
    return Data(name, x[:2000], x[2000:2500], x[2500:], torch.zeros(2000), truth=truth)


# ---------------------------------------------------------------- fits


def scaled(name: str, share: float) -> int:
    return max(40, round(STEPS[name] * share))


def fit(family: str, setting: dict[str, Any], data: Data, seed: int, share: float, base: Any = None) -> Any:
    """Return a trained model; `base` is the mixture that validation chose, for energies that are tilted from one."""
    torch.manual_seed(seed)
    share *= setting.get("times", 1)
    x, bits = data.x, data.kind == "digits"
    plane = data.truth is not None
    lr = setting.get("lr", 0.0)
    if family == "Gaussian":
        return mixture(x, 1)
    if family == "independent bits":
        return fit_bit_mixture(x, 1)
    if family == "mixture":
        if bits:
            return fit_bit_mixture(x, setting["n"])
        return mixture(x, setting["n"], seed) if plane else bagged_mixture(x, setting["n"], 1, seed)
    if family == "kernel density":
        return bit_kernels(x, **setting) if bits else Kernels(x, **setting)
    if family.startswith("energy"):
        return fit_energy(family, setting, data, seed, share, base)
    module: nn.Module
    if family == "VAE":
        module = VAE(data.dim, setting.get("latent", 2), 64, bits)
        loss, score = (lambda rows: -module.bound(rows).mean()), lambda: module.bound(data.x_validation, 20).mean()
    else:
        if family == "flow":
            module = Flow(data.dim, setting.get("hidden", 64))
        else:
            module = Autoregressive(data.dim, 128, bits, setting.get("drop", 0.0))
        loss, score = (lambda rows: -module.log_prob(rows).mean()), lambda: module.log_prob(data.x_validation).mean()
    jitter = JITTER if data.kind == "wine" else 0.0
    fit_by_gradient(module, loss, score, x, scaled(family, share), lr, jitter)
    return module.requires_grad_(False)


def fit_machine(setting: dict[str, Any], data: Data, share: float) -> RBM:
    """Return a restricted Boltzmann machine trained by persistent chains, the best of its exact validation values."""
    rbm = RBM(data.dim, setting["hidden"])
    with torch.no_grad():
        rbm.visible_bias.copy_(torch.logit(data.x.mean(0).clamp(0.01, 0.99)))
    n_epochs = max(4, round(STEPS["epochs"] * share))
    best, kept, chains = -math.inf, rbm, (torch.rand(10, data.dim) < data.x.mean(0)).float()
    for epoch in range(n_epochs):
        rows = data.x[torch.randperm(len(data.x))]
        chains = contrastive_epoch(rbm, rows, setting["lr"] * (1 - epoch / n_epochs), chains)
        if (epoch + 1) % max(1, n_epochs // 15) == 0:
            value = (-rbm(data.x_validation).mean() - exact_log_z(rbm)).item()
            if value > best:
                best, kept = value, RBM.from_parameters(*(p.detach() for p in rbm.parameters()))
    return kept.requires_grad_(False)


def fit_energy(family: str, setting: dict[str, Any], data: Data, seed: int, share: float, base: Any) -> Any:
    """Return an energy with its log Z, `log_z_s` the CPU seconds that this takes."""
    x, lr, n_steps = data.x, setting["lr"], scaled(family, share)
    if data.kind == "digits" and family == "energy, chains":
        rbm = fit_machine(setting, data, share)
        start = time.process_time()
        log_z = exact_log_z(rbm).item()
        starts = fit_bit_mixture(x, 1)
        model = Normalized(rbm, log_z, starts, BlockGibbs(), 500)
        return with_notes(model, time.process_time() - start, math.inf, 0.0)
    plane = data.truth is not None
    if plane:  # a base that was told nothing of the weights of the modes
        base = MultivariateNormal(torch.zeros(2), 9 * torch.eye(2))
    elif setting.get("base") == "Gaussian":
        base = bagged_mixture(x, 1, 1)
    energy = make_tilt(base, data.dim, 64 if plane else 128, 0.0 if plane else setting.get("drop", 0.2))
    jitter = JITTER if data.kind == "wine" else 0.0
    if family == "energy, NCE":
        fit_tilt(energy, x, data.x_validation, n_steps, lr, weight_decay=0.01, jitter=jitter, every=20, patience=15)
    else:
        loss: Callable[[Tensor], Tensor]
        if family == "energy, score matching":
            loss = partial(exact_score_matching, energy)
        else:
            buffer = ReplayBuffer(base.sample(torch.Size([2000])), lambda n: base.sample(torch.Size([n])))
            loss = ChainLoss(energy, buffer if family == "energy, chains" else None)
        score = chain_score(energy, data.x_validation)
        betas = (0.9, 0.999) if family == "energy, score matching" else (0.0, 0.99)
        fit_by_gradient(energy.tilt, loss, score, x, n_steps, lr, jitter, betas)
    energy.eval().requires_grad_(False)
    start = time.process_time()
    if plane:
        z = quadrature(energy, LOW, HIGH, 240)
    else:
        z = importance_sampling(energy, adapted(base, energy) if data.kind == "wine" else base, 60_000)
    seconds = time.process_time() - start
    kernel: Any = SingleFlip() if data.kind == "digits" else tuned(energy, base.sample(torch.Size([500])))
    model = Normalized(energy, z.value, base, kernel, 640 if data.kind == "digits" else 300)
    return with_notes(model, seconds, z.ess / 60_000, z.std_error)


def with_notes(model: Normalized, seconds: float, ess: float, error: float) -> Normalized:
    model.notes = {"log_z_s": seconds, "log_z_se": error}  # type: ignore[attr-defined]
    if math.isfinite(ess):
        model.notes["ess_share"] = ess  # type: ignore[attr-defined]
    return model


# ---------------------------------------------------------------- what is measured


def cpu(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return run(), time.process_time() - start


def shuffled(x: Tensor) -> Tensor:
    """Return rows whose columns are permuted independently: marginals kept, dependence lost."""
    return torch.stack([column[torch.randperm(len(x))] for column in x.T], 1)


def auroc(model: Any, x: Tensor, others: Tensor) -> float:
    log_p = torch.cat([model.log_prob(x), model.log_prob(others)])
    return float(roc_auc_score([0] * len(x) + [1] * len(others), -log_p.numpy()))


@torch.no_grad()
def complete_wine(model: Any, data: Data) -> dict[str, float]:
    """Return -log p(hidden | rest) and the error of the conditional median, over test wines and columns."""
    nats, errors = [], []
    for column in HIDDEN_COLUMNS:
        low, high = data.x[:, column].min().item() - 1, data.x[:, column].max().item() + 1
        points = torch.linspace(low, high, 61)
        log_p = conditional_log_prob(lambda x: -model.log_prob(x), data.x_test, column, points)
        hidden = data.x_test[:, column]
        place = ((hidden - low) / (high - low) * 60).clamp(0, 59.999)
        left = place.long()[:, None]
        p = torch.lerp(log_p.gather(1, left).exp(), log_p.gather(1, left + 1).exp(), (place - left[:, 0])[:, None])
        nats.append(-p.log().mean().item())
        errors.append((grid_quantiles(points, log_p, [0.5])[:, 0] - hidden).abs().mean().item())
    return {"completed": float(np.mean(nats)), "median_error": float(np.mean(errors))}


@torch.no_grad()
def complete_digits(model: Any, data: Data) -> dict[str, float]:
    """Return -log P(eight pixels | the other 56), and the share of images of which all eight are guessed."""
    each = (torch.arange(256)[:, None] >> torch.arange(8) & 1).float()
    log_p = []
    if isinstance(model, VAE):
        model.n_points = 81  # of the many likelihoods that are asked for
    test = data.x_test[:N_COMPLETED]
    for rows in test.split(30):
        filled = rows.repeat_interleave(256, 0)
        filled[:, PIXELS] = each.repeat(len(rows), 1)
        log_p.append(model.log_prob(filled).view(len(rows), 256).log_softmax(1))
    true = (test[:, PIXELS].long() << torch.arange(8)).sum(1, keepdim=True)
    log_p_all = torch.cat(log_p)
    right = (log_p_all.argmax(1, keepdim=True) == true).float().mean().item()
    return {"completed": -log_p_all.gather(1, true).mean().item(), "right_columns": right}


@torch.no_grad()
def topology(model: Any) -> dict[str, float]:
    """Return the mass in the gap, of the right mode, and in all, by quadrature."""
    if isinstance(model, VAE):  # x given z is Gaussian: a normal distribution function, summed over z
        z, log_mass = model.grid(241)
        mean, std = (out[:, 0] for out in model.decode(z))

        def below(t: float) -> Tensor:
            return torch.special.ndtr((t - mean) / std)

        share = log_mass.exp()
        gap, right, whole = below(GAP) - below(-GAP), 1 - below(0.0), torch.ones(())
        return {"gap": (share @ gap).item(), "right": (share @ right).item(), "mass": (share * whole).sum().item()}
    n_points = (720, 300)
    step = [(b - a) / n for a, b, n in zip(LOW, HIGH, n_points, strict=True)]
    axes = [a + h * (torch.arange(n) + 0.5) for a, h, n in zip(LOW, step, n_points, strict=True)]
    x = torch.cartesian_prod(*axes)
    p = torch.cat([model.log_prob(rows) for rows in x.split(20_000)]).double().exp() * step[0] * step[1]
    whole_mass = p.sum().item()
    return {"gap": p[x[:, 0].abs() < GAP].sum().item(), "right": p[x[:, 0] > 0].sum().item(), "mass": whole_mass}


def judge(model: Any, data: Data, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Return what a chosen model scores on test rows, and its nats at each."""
    torch.manual_seed(1000 + seed)
    n = len(data.x_test)
    with torch.no_grad():
        log_p, seconds = cpu(lambda: model.log_prob(data.x_test))
        nats = log_p.double() + data.jacobian
    draws, draw_s = cpu(lambda: model.sample((1000,)))
    row = {"nats": nats.mean().item(), "nats_se": nats.std().item() / math.sqrt(n)}
    row |= {"draws_s": draw_s, "likelihoods_s": 1000 * seconds / n}
    tie = 1e-3 if data.kind == "digits" else 0.0  # equal distances of bits are told apart at random
    m = min(n, 1000)
    ours, theirs = (rows[:m] + tie * torch.randn(m, data.dim) for rows in (draws, data.x_test))
    row["neighbours_z"] = neighbour_test(ours, theirs, generator=torch.Generator().manual_seed(seed)).z
    if data.truth is not None:
        short = data.truth.log_prob(data.x_test).double() - nats
        row |= {"short": short.mean().item(), "short_se": short.std().item() / math.sqrt(n)}
        if data.kind == "two modes":
            row |= topology(model) | {"right_drawn": (draws[:, 0] > 0).float().mean().item()}
        return row, nats
    with torch.no_grad():
        if data.moved is not None:
            row["moved"] = (model.log_prob(data.moved[0]).double() + data.moved[1]).mean().item()
        row["ood"] = auroc(model, data.x_test, data.others)  # type: ignore[arg-type]
        row["ood_shuffled"] = auroc(model, data.x_test, shuffled(data.x_test))
    if isinstance(model, VAE):
        model.n_weights = 300  # of the many densities that completion asks for
    return row | (complete_wine if data.kind == "wine" else complete_digits)(model, data), nats


def compare(name: str, seed: int, share: float) -> dict[str, list[dict[str, Any]]]:
    """Return rows of all families on a data set, and what was tried."""
    data = load(name, seed)
    rows, tried, nats, base = [], [], {}, None
    for family, grid in GRIDS[name].items():
        best: tuple[float, Any, dict[str, Any], float] = (-math.inf, None, {}, 0.0)
        spent = 0.0
        for setting in grid:
            head = {"data": name, "family": family, "seed": seed} | setting
            try:
                model, seconds = cpu(partial(fit, family, setting, data, seed, share, base))
                if isinstance(model, VAE):
                    model.n_weights = 300
                with torch.no_grad():
                    value = model.log_prob(data.x_validation).mean().item()
            except Divergence as error:
                tried.append(head | {"validation": None, "diverged": str(error)})
                continue
            spent += seconds
            tried.append(head | {"validation": value, "train_s": seconds})
            if value > best[0]:
                best = (value, model, setting, seconds)
        value, model, setting, seconds = best
        if isinstance(model, VAE):
            model.n_weights = 5000
        if family == "mixture":
            base = model
        row, nats[family] = judge(model, data, seed)
        notes = getattr(model, "notes", {})
        row |= {"data": name, "family": family, "seed": seed, "setting": setting, "validation": value}
        rows.append(row | {"train_s": seconds - notes.get("log_z_s", 0.0), "tried_s": spent} | notes)
        if name == "digits" and family == "energy, chains":
            rows[-1] |= annealed(model)
    for row in rows:
        for key, against in (("gain", "mixture"), ("ahead", "energy, NCE")):
            gain = nats[row["family"]] - nats[against]
            row |= {key: gain.mean().item(), f"{key}_se": gain.std().item() / math.sqrt(len(gain))}
    return {"rows": rows, "tried": tried}


def annealed(model: Normalized) -> dict[str, float]:
    """Return log Z of the machine by annealed importance sampling, less the exact one, and its standard error."""
    rbm: Any = model.energy
    starts: Any = model.base
    logits = starts.logit[0]
    base = torch.distributions.Independent(torch.distributions.Bernoulli(logits=logits), 1)
    got = annealed_importance_sampling(
        rbm,
        base,
        BlockGibbs(),
        torch.linspace(0, 1, 1001),
        200,
        path=lambda beta: rbm.tempered(beta, logits),
    )
    return {"annealed_error": got.value - model.log_z, "annealed_se": got.std_error}


# ---------------------------------------------------------------- stability


class Contrast(nn.Module):
    """The loss of noise contrastive estimation against the base, with its constant; log q cancels."""

    def __init__(self, energy: Any, nu: int = 10):
        super().__init__()
        self.tilt, self.log_z, self.nu = energy.tilt, nn.Parameter(torch.zeros(())), nu
        self.noise = energy.base.sample(torch.Size([40_000]))

    def forward(self, rows: Tensor) -> Tensor:
        x_noise = self.noise[torch.randint(len(self.noise), (self.nu * len(rows),))]
        u = -self.tilt(torch.cat([rows, x_noise])) - self.log_z
        return nce_from_logits(u[: len(rows)], u[len(rows) :], self.nu)


def last_weights(family: str, lr: float, seed: int, n_steps: int) -> tuple[dict[str, Any], float]:
    """Return how short the last weights of a training are of the truth, and the CPU seconds of the training."""
    data = load("rings", seed)
    data = data._replace(x_test=data.x_test[:1000])
    torch.manual_seed(seed)
    module: Any
    betas = (0.9, 0.999)
    if family.startswith("energy"):
        energy = make_tilt(mixture(data.x, 1), 2, 64, 0.0)
        module = Contrast(energy)
        loss: Any = module
        if family == "energy, chains":
            base = energy.base
            buffer = ReplayBuffer(base.sample(torch.Size([2000])), lambda n: base.sample(torch.Size([n])))
            module, loss, betas = energy.tilt, ChainLoss(energy, buffer), (0.0, 0.99)
    elif family == "VAE":
        module = VAE(2, 2, 64, False)
        loss = lambda rows: -module.bound(rows).mean()  # noqa: E731
    else:
        module = Flow(2, 64) if family == "flow" else Autoregressive(2, 128, False)
        loss = lambda rows: -module.log_prob(rows).mean()  # noqa: E731
    adam = torch.optim.AdamW(module.parameters(), lr, betas=betas, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    start, diverged = time.process_time(), None
    try:
        train(loss, adam, minibatches(data.x, 128), n_steps, cosine)
    except (Divergence, FloatingPointError, ValueError, AssertionError) as error:
        diverged = f"{type(error).__name__}: {error}"[:100]
    seconds = time.process_time() - start
    row: dict[str, Any] = {"family": family, "lr": lr, "seed": seed, "n_steps": n_steps, "diverged": diverged}
    short = math.nan
    if diverged is None:
        with torch.no_grad():
            if family.startswith("energy"):
                energy.eval()
                log_p = -energy(data.x_test) - quadrature(energy, LOW, HIGH, 240).value
            else:
                module.eval()
                module.n_points = 161  # of a VAE
                log_p = module.log_prob(data.x_test)
            short = (data.truth.log_prob(data.x_test) - log_p).mean().item()
    gaussian = (data.truth.log_prob(data.x_test) - mixture(data.x, 1).log_prob(data.x_test)).mean().item()
    fails = not math.isfinite(short) or short > gaussian - 0.1
    return row | {"short": short if math.isfinite(short) else None, "gaussian": gaussian, "fails": fails}, seconds


def milliseconds(n_steps: int = 60, n_rounds: int = 3) -> dict[str, float]:
    """Return the CPU time of a step of each family: the median of rounds in which all take their turn."""
    rounds = [[last_weights(f, 1e-3, 7, n_steps)[1] for f in STABILITY] for _ in range(n_rounds)]
    return {f: 1000 * median(times) / n_steps for f, times in zip(STABILITY, zip(*rounds, strict=True), strict=True)}


def stable(family: str, n_steps: int, seeds: range) -> dict[str, list[dict[str, Any]]]:
    rows = []
    for seed in seeds:
        for lr in RATES:
            row, seconds = last_weights(family, lr, seed, n_steps)
            rows.append(row | {"cpu_seconds": seconds})
    return {"stability": rows}


# ---------------------------------------------------------------- the bound


def bounds(latent: int, seed: int, share: float) -> dict[str, list[dict[str, Any]]]:
    """Return the likelihood of a VAE by quadrature, and how far below it bounds of n draws are."""
    data = load("digits", seed)
    vae = fit("VAE", {"lr": 3e-3, "latent": latent}, data, seed, share)
    rows = []
    for part, x in (("train", data.x[:360]), ("test", data.x_test)):
        n_points = {1: 4801, 2: 241}[latent]
        exact = vae.exact(x, n_points).double()
        finer = vae.exact(x, 2 * n_points - 1).double()
        mean, width = vae.encode(x)
        head = {"latent": latent, "seed": seed, "part": part, "exact": exact.mean().item()}
        head |= {"grid_error": (finer - exact).abs().max().item(), "reach": (mean.abs() + 3 * width).max().item()}
        gaps = {"bound": exact - vae.bound(x, 200).double()}
        gaps |= {f"weighted, {n}": exact - vae.weighted_bound(x, n).double() for n in N_DRAWS}
        for name, gap in gaps.items():
            rows.append(head | {"of": name, "gap": gap.mean().item(), "gap_se": gap.std().item() / math.sqrt(len(x))})
    return {"bounds": rows}


# ---------------------------------------------------------------- main


def work(task: tuple[Any, ...], share: float, steps: dict[str, int]) -> tuple[dict[str, list[Any]], float]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start = time.process_time()
    kind, *key = task
    if kind == "compare":
        made = compare(*key, share)
    elif kind == "stability":
        made = stable(key[0], steps[key[0]], range(2) if share < 1 else STABILITY_SEEDS)
    else:
        made = bounds(*key, share)
    return made, time.process_time() - start


def dumps(results: dict[str, Any]) -> str:
    """Return the results as JSON, a row a line."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list):
            inner = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f' "{name}": [\n{inner}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value, indent=1, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, one seed: a look, not a result")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "families.json")
    args = parser.parse_args()
    share, seeds = (0.05, SEEDS[:1]) if args.quick else (1.0, SEEDS)
    command = "python tests/benchmarks/families.py" + (" --quick" if args.quick else "")
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn", "zuko"))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    names = ("rows", "tried", "stability", "bounds")
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}, "done": []} | {name: [] for name in names}
    if args.out.exists():
        earlier = json.loads(args.out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("command", "sha256", "versions", "dirty")):
            results = earlier
    if "milliseconds_a_step" not in results:
        results["milliseconds_a_step"] = milliseconds()
    steps = {f: max(20, int(share * 1000 * BUDGET / ms)) for f, ms in results["milliseconds_a_step"].items()}
    tasks: list[tuple[Any, ...]] = [("compare", name, s) for name in DATA for s in seeds]
    tasks += [("stability", family) for family in STABILITY]
    tasks += [("bounds", *key) for key in BOUNDS if key[1] in seeds]
    tasks = [task for task in tasks if list(task) not in results["done"]]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        runs = {pool.submit(work, task, share, steps): task for task in tasks}
        for future in as_completed(runs):
            made, seconds = future.result()
            results["done"].append(list(runs[future]))
            results["provenance"]["cpu_seconds"] += seconds
            for name, rows in made.items():
                results[name] += rows
            args.out.write_text(dumps(results), "utf-8")
            print(*runs[future], f"{seconds:.0f} s", flush=True)
            for row in made.get("rows", []):
                print(
                    f"  {row['family']:24}{row['nats']:9.3f}{row['train_s']:8.2f} s {row['neighbours_z']:7.1f}",
                    flush=True,
                )
    order = {name: i for i, name in enumerate(DATA)}
    for name in ("rows", "tried"):
        results[name].sort(key=lambda row: (order[row["data"]], row["seed"]))
    results["stability"].sort(key=lambda row: STABILITY.index(row["family"]))
    results["bounds"].sort(key=lambda row: (row["latent"], row["seed"]))
    args.out.write_text(dumps(results), "utf-8")


if __name__ == "__main__":
    main()
