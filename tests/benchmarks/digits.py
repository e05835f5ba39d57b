"""Likelihoods of 8×8 digits by a tilted energy and by rivals, what architecture matters, a joint model, and OOD images.

    python tests/benchmarks/digits.py --select
    python tests/benchmarks/digits.py

The images of scikit-learn's digits, dequantised and mapped to logits (`LogitPixels(17)`); seed s permutes them, 1,257
train, 180 validate, 360 test. The first call tries each model's grid of four settings on seed 100, and keeps the table
of validation values as `tried`; the second takes the best of each (`CHOSEN`) to seeds 0 to 2. Validation stops every
fit; test images are scored once.

`likelihood`: bits a pixel, a bound by Jensen that is averaged over 100 dequantisations of a test image; its standard
error is over images, and that of the gain over the mixture includes that of log Z. log Z of a tilt is the highest of
three estimates, which all stand beside it, so that no gain is flattered; in the tables below, and for the cut mixture,
it is by importance sampling alone, and the smaller the ESS that stands beside it the more a gain may be flattered.
"mixture, cut" is the mixture without what lies outside of the pixels' range, where no image is, and "tilt of the cut
mixture" a convolutional tilt of that; "autoregressive, 17 levels" gives an exact probability, and no bound.
`dequantization`: the same images, by the logarithm of the mean likelihood over n draws.
`architecture`: each variant of the tilt with the same base, steps and draws of log Z, its learning rate tried.
`joint`: one network of ten logits by cross-entropy alone, and as energies p(y, class) ∝ q(y) exp(logit), by NCE with
the mixture q as noise plus cross-entropy.
`ood`: `alarm_rate` is the share of alarms at a threshold that half of the test images set to a tenth, by the conformal
rank; `false_alarm` is that among the other half. `gain` is the AUROC above that of the mixture on the same images, its
standard error by DeLong. `nats` is how much less likely than test images the others are on average, where a score is a
log density. "tilt" is the MLP. A class is left out with models of its own, all ten over the seeds.
`complexity`: Spearman's correlation of each score with the length of the image as zlib packs it, over test images.
"""

import argparse
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from digit_models import (
    N_CLASSES,
    SPACE,
    Cut,
    Data,
    Frozen,
    FullMixture,
    LogitView,
    PCAMixture,
    Tilt,
    calibration_error,
    convolution,
    copies,
    fit_autoregressive,
    fit_classifier,
    fit_energy,
    fit_levels,
    fit_mixture,
    fit_spline_flow,
    hidden_features,
    load,
    log_z_by_annealing,
    log_z_by_importance,
    mlp,
    other_images,
    principal_features,
    rivals,
    zipped_bits,
)
from provenance import RESULTS, provenance
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ebmlib.ood import conformal_threshold
from ebmlib.tilted import TiltedEnergy

MODULES = ("annealing", "datasets", "energies", "fitting", "images", "networks", "ood", "partition", "samplers")
INPUTS = [
    *(f"ebmlib/{name}.py" for name in (*MODULES, "tilted", "training")),
    *(f"tests/benchmarks/{name}.py" for name in ("digit_models", "digits", "provenance")),
]
SEEDS, SELECTION_SEED = (0, 1, 2), 100
LEFT_OUT = {0: (0, 1, 2, 3), 1: (4, 5, 6), 2: (7, 8, 9)}  # every class once
N_DRAWS, LOG_Z_DRAWS, CUT_DRAWS, ARCHITECTURE_DRAWS = 100, 2_000_000, 60_000, 500_000
STEPS = {"autoregressive": 800, "autoregressive, 17 levels": 800, "flow": 500, "tilt, MLP": 700}
STEPS |= {"tilt, convolution": 700, "architecture": 250, "classifier": 500, "left out": 250}
ALPHA = 0.1
MODELS = (
    *("Gaussian", "mixture", "mixture, cut", "mixture on PCA", "autoregressive", "flow", "autoregressive, 17 levels"),
    *("tilt, MLP", "tilt, convolution", "tilt of the cut mixture"),
)
TRANSFORMED = ("inverted", "rotated", "blurred", "averaged", "shuffled pixels", "constant")

# Each grid has four settings, a network's two learning rates in it; CHOSEN is what validation on seed 100 preferred.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "mixture on PCA": [{"n_kept": n} for n in (15, 30, 45, 60)],
    "autoregressive": [{"lr": lr, "drop": drop} for lr in (3e-3, 1e-2) for drop in (0.1, 0.3)],
    "autoregressive, 17 levels": [{"lr": lr, "drop": drop} for lr in (3e-3, 1e-2) for drop in (0.3, 0.5)],
    "flow": [{"lr": lr, "hidden": hidden} for lr in (3e-3, 1e-2) for hidden in (64, 128)],
    "tilt, MLP": [{"lr": lr, "norm": norm} for lr in (2e-3, 6e-3) for norm in (False, True)],
    "tilt, convolution": [{"lr": lr, "norm": norm} for lr in (2e-3, 6e-3) for norm in (False, True)],
    "plain": [{"lr": lr, "drop": drop} for lr in (1e-3, 3e-3) for drop in (0.2, 0.4)],
    "joint": [{"lr": lr, "drop": drop} for lr in (1e-3, 3e-3) for drop in (0.2, 0.4)],
}
VARIANTS = (
    *("MLP", "MLP, augmented by shifts", "MLP of the logits alone", "residual", "layer normalisation"),
    *(
        "batch normalisation",
        "convolution, flattened",
        "convolution, global pooling",
        "convolution of the logits alone",
    ),
    *("convolution, batch normalisation", "features of PCA, linear", "random features, linear"),
    "features of a classifier, linear",
)
RATES, LINEAR_RATES = (2e-3, 6e-3), (1e-2, 5e-2)
CHOSEN: dict[str, dict[str, Any]] = {
    "autoregressive": {"lr": 0.01, "drop": 0.3},
    "autoregressive, 17 levels": {"lr": 0.01, "drop": 0.5},
    "flow": {"lr": 0.003, "hidden": 128},
    "mixture on PCA": {"n_kept": 60},
    "tilt, MLP": {"lr": 0.006, "norm": False},
    "tilt, convolution": {"lr": 0.006, "norm": True},
    "plain": {"lr": 0.003, "drop": 0.4},
    "joint": {"lr": 0.003, "drop": 0.2},
    **{name: {"lr": 0.006} for name in VARIANTS},
    **{name: {"lr": 0.002} for name in ("MLP, augmented by shifts", "MLP of the logits alone")},
    **{name: {"lr": 0.05} for name in VARIANTS if name.endswith("linear")},
}


def scaled(name: str, share: float) -> int:
    return max(50, round(STEPS[name] * share))


def network(name: str, norm: bool) -> Tilt:
    if name == "tilt, MLP":
        return mlp(0.2, norm=nn.BatchNorm1d if norm else None)
    return convolution(0.2, norm=norm)


def fit(name: str, data: Data, q: FullMixture, seed: int, share: float, setting: dict[str, Any]) -> tuple[Any, float]:
    """Return a model of the table of likelihoods, and its validation value in nats an image."""
    if name in ("tilt, MLP", "tilt, convolution"):
        torch.manual_seed(seed)
        net = network(name, setting["norm"])
        return fit_energy(q, net, data.y, data.y_validation, seed, scaled(name, share), setting["lr"])
    if name in ("plain", "joint"):
        return fit_classifier(q, data, seed, scaled("classifier", share), joint=name == "joint", **setting)
    if name == "mixture on PCA":
        model: Any = PCAMixture(data.y, data.y_validation, **setting)
    elif name == "autoregressive":
        model = fit_autoregressive(data, seed, scaled(name, share), **setting)
    elif name == "flow":
        model = fit_spline_flow(data, seed, scaled(name, share), **setting)
    else:
        model = fit_levels(data, seed, scaled(name, share), **setting)
        return model, model.log_prob(data.pixels_validation).mean().item()
    return model, (model.log_prob(data.y_validation)).mean().item()


# ---------------------------------------------------------------- likelihood


def summary(values: Tensor) -> tuple[float, float]:
    """Return the mean over images and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


@torch.no_grad()
def log_likelihoods(log_prob: Any, y: Tensor) -> Tensor:
    """Return log p(y) + log |dy/du|, nats an image, `(n_draws, n_images)`, of y `(n_draws, n_images, 64)`."""
    return torch.stack([(log_prob(rows) + SPACE.log_det(rows)).double() for rows in y])


def likelihood(data: Data, seed: int, share: float) -> tuple[list[dict], list[dict], dict[str, Any]]:
    """Return rows of both tables, and the mixture and the two energies by name."""
    rows, bounds = [], []
    draws = max(4, round(N_DRAWS * share))
    generator = torch.Generator().manual_seed(1000 + seed)
    y = copies(data.pixels_test, draws, generator).view(draws, -1, data.y.shape[1])
    start = time.process_time()
    q = fit_mixture(data.y, data.y_validation)
    log_q, seconds = log_likelihoods(q.log_prob, y), time.process_time() - start
    models: dict[str, Any] = {"mixture": q}

    def add(name: str, log_p: Tensor, seconds: float, error: float = 0.0, exact: bool = False, **more: Any) -> None:
        each = log_p.mean(0)
        bits, bits_se = summary(-each / (y.shape[2] * math.log(2)))
        gain, gain_se = summary(each - log_q.mean(0))
        row = {"seed": seed, "model": name, "bits": bits, "nats_over_base": gain, "cpu_seconds": round(seconds, 1)}
        row["bits_se"] = math.hypot(bits_se, error / (y.shape[2] * math.log(2)))
        row |= {"nats_over_base_se": math.hypot(gain_se, error), "log_z_se": error, "ess": None, "exact": exact} | more
        rows.append(row)
        print(f"{seed} {name:28} {bits:.4f} bits  {gain:+.2f} ± {row['nats_over_base_se']:.2f} nats", more, flush=True)
        for n in () if exact else (1, 10, 100):
            if n <= draws:
                grouped = log_p[: draws // n * n].view(-1, n, log_p.shape[1])
                value = (grouped.logsumexp(1) - math.log(n)).mean().item()
                bounds.append({"seed": seed, "model": name, "n_draws": n, "bits": -value / (y.shape[2] * math.log(2))})

    begin = time.process_time()
    covariance = torch.cov(data.y.T)[None]
    gaussian = FullMixture(torch.ones(1), data.y.mean(0, keepdim=True), covariance)
    add("Gaussian", log_likelihoods(gaussian.log_prob, y), time.process_time() - begin)
    add("mixture", log_q, seconds)
    begin = time.process_time()
    cut = Cut(q)
    add("mixture, cut", log_likelihoods(cut.log_prob, y), time.process_time() - begin, cut.std_error)
    for name in ("mixture on PCA", "autoregressive", "flow"):
        begin = time.process_time()
        model, _ = fit(name, data, q, seed, share, CHOSEN[name])
        used = time.process_time() - begin
        add(name, log_likelihoods(model.log_prob, y), used)
    begin = time.process_time()
    levels, _ = fit("autoregressive, 17 levels", data, q, seed, share, CHOSEN["autoregressive, 17 levels"])
    used = time.process_time() - begin
    with torch.no_grad():
        log_p = levels.log_prob(data.pixels_test).double()[None]
    add("autoregressive, 17 levels", log_p, used, exact=True)
    for name in ("tilt, MLP", "tilt, convolution"):
        begin = time.process_time()
        energy, validation = fit(name, data, q, seed, share, CHOSEN[name])
        used = time.process_time() - begin
        models[name] = energy
        sampled = log_z_by_importance(energy.tilt, q, max(200_000, round(LOG_Z_DRAWS * share)))
        both = log_z_by_annealing(energy, q, n_temps=max(20, round(200 * share)))
        more = {"ess": sampled.ess, "n_looked_at": sampled.n_looked_at, "validation": validation}
        more |= {"log_z_importance": sampled.value, "log_z_importance_se": sampled.std_error}
        more |= {f"annealed_{key}": value for key, value in both._asdict().items()}
        more["log_z_by"], more["log_z"], error = highest(more)
        with torch.no_grad():
            log_p = log_q - torch.stack([energy.tilt(part).double() for part in y]) - more["log_z"]
        add(name, log_p, used, error, **more)
    begin, setting = time.process_time(), CHOSEN["tilt, convolution"]
    torch.manual_seed(seed)
    net, n_steps = network("tilt, convolution", setting["norm"]), scaled("tilt, convolution", share)
    energy, validation = fit_energy(cut, net, data.y, data.y_validation, seed, n_steps, setting["lr"])
    used = time.process_time() - begin
    sampled = log_z_by_importance(energy.tilt, cut, max(20_000, round(CUT_DRAWS * share)))
    with torch.no_grad():
        log_p = log_q - cut.log_inside - torch.stack([energy.tilt(part).double() for part in y]) - sampled.value
    error = math.hypot(cut.std_error, sampled.std_error)
    more = {"ess": sampled.ess, "n_looked_at": sampled.n_looked_at, "validation": validation}
    add("tilt of the cut mixture", log_p, used, error, **more)
    return rows, bounds, models


def highest(row: dict) -> tuple[str, float, float]:
    """Return the name, value and standard error of the highest of three estimates of log Z: a gain is not flattered.

    Importance sampling and forward annealing are too low on average where few weights rule, as here. The reverse is too
    high on average from exact draws; it starts at forward ends, resampled and moved on, which are none, and so
    Bennett's estimate, which needs them too, is not among the three.
    """
    names = {
        "importance": "log_z_importance",
        "annealing": "annealed_forward",
        "annealing, reverse": "annealed_reverse",
    }
    name = max(names, key=lambda n: row[names[n]])
    error = "log_z_importance_se" if name == "importance" else f"{names[name]}_error"
    return name, row[names[name]], row[error]


def with_highest(rows: list[dict], bounds: list[dict]) -> None:
    """Let log Z of tilts be the highest of a finished run's estimates; the first run took Bennett's."""
    bit = 64 * math.log(2)
    for row in rows:
        if "log_z" not in row:
            continue
        row["log_z_by"], log_z, error = highest(row)
        nats = log_z - row["log_z"]
        for name, unit in (("bits", bit), ("nats_over_base", 1.0)):
            of_images = row[f"{name}_se"] ** 2 - (row["log_z_se"] / unit) ** 2
            row[f"{name}_se"] = math.sqrt(of_images + (error / unit) ** 2)
        row["bits"], row["nats_over_base"] = row["bits"] + nats / bit, row["nats_over_base"] - nats
        row["log_z"], row["log_z_se"] = log_z, error
        for bound in bounds:
            if (bound["seed"], bound["model"]) == (row["seed"], row["model"]):
                bound["bits"] += nats / bit


# ---------------------------------------------------------------- architecture


def shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images moved by one pixel up, down, left or right, each its own way; black comes in."""
    padded = nn.functional.pad(pixels.view(-1, 8, 8), (1, 1, 1, 1))
    ways = torch.stack([padded[:, 1 + i : 9 + i, 1 + j : 9 + j] for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))])
    way = torch.randint(4, (len(pixels),), generator=generator)
    return ways[way, torch.arange(len(pixels))].flatten(1)


def variant(name: str, data: Data, classifier: Tilt) -> Tilt:
    """Return a tilt of zero; dropout is .2 in all that have it."""
    if name == "features of PCA, linear":
        features = principal_features(data.y)
        return Tilt(Frozen(features), features(data.y[:1]).shape[1], nn.Identity())
    if name == "random features, linear":
        return Tilt(Frozen(hidden_features(mlp(0.0))), 256, nn.Identity())
    if name == "features of a classifier, linear":
        return Tilt(Frozen(hidden_features(classifier)), 256, nn.Identity())
    makers: dict[str, Any] = {
        "MLP": lambda: mlp(0.2),
        "MLP, augmented by shifts": lambda: mlp(0.2),
        "MLP of the logits alone": lambda: mlp(0.2, LogitView),
        "residual": lambda: mlp(0.2, residual=True),
        "layer normalisation": lambda: mlp(0.2, norm=nn.LayerNorm),
        "batch normalisation": lambda: mlp(0.2, norm=nn.BatchNorm1d),
        "convolution, flattened": lambda: convolution(0.2),
        "convolution, global pooling": lambda: convolution(0.2, pooled=True),
        "convolution of the logits alone": lambda: convolution(0.2, view=LogitView),
        "convolution, batch normalisation": lambda: convolution(0.2, norm=True),
    }
    return makers[name]()


def fit_variant(
    name: str, data: Data, q: FullMixture, classifier: Tilt, seed: int, share: float, lr: float
) -> tuple[TiltedEnergy, float]:
    y = data.y
    if name == "MLP, augmented by shifts":  # a third of the images that train
        generator = torch.Generator().manual_seed(seed)
        y = torch.cat([y, *(copies(shifted(data.pixels, generator), 1, generator) for _ in range(5))])
    torch.manual_seed(seed)
    tilt = variant(name, data, classifier)
    return fit_energy(q, tilt, y, data.y_validation, seed, scaled("architecture", share), lr)


def architecture(data: Data, q: FullMixture, classifier: Tilt, seed: int, share: float) -> list[dict]:
    rows = []
    y = copies(data.pixels_test, 4, torch.Generator().manual_seed(2000 + seed))
    for name in VARIANTS:
        begin = time.process_time()
        energy, validation = fit_variant(name, data, q, classifier, seed, share, **CHOSEN[name])
        used = time.process_time() - begin
        torch.manual_seed(3000 + seed)  # the same draws of q for all
        log_z = log_z_by_importance(energy.tilt, q, max(200_000, round(ARCHITECTURE_DRAWS * share)))
        with torch.no_grad():
            each = -energy.tilt(y).double().view(4, -1).mean(0) - log_z.value
        gain, se = summary(each)
        n_parameters = sum(p.numel() for p in energy.tilt.parameters())
        row = {"seed": seed, "variant": name, "nats_over_base": gain, "log_z_se": log_z.std_error, "ess": log_z.ess}
        row |= {"nats_over_base_se": math.hypot(se, log_z.std_error), "validation": validation}
        rows.append(row | {"n_parameters": n_parameters, "cpu_seconds": round(used, 1)})
        print(f"{seed} {name:34} {gain:+.2f} ± {row['nats_over_base_se']:.2f}  {used:.0f} s", flush=True)
    return rows


# ---------------------------------------------------------------- a joint model


def joint(data: Data, q: FullMixture, plain: Tilt, seed: int, share: float) -> tuple[list[dict], Tilt]:
    """Return a row for each of both networks, and the joint one."""
    begin = time.process_time()
    net, _ = fit("joint", data, q, seed, share, CHOSEN["joint"])
    used = time.process_time() - begin
    log_z = log_z_by_importance(lambda y: -net(y).logsumexp(1), q, max(200_000, round(ARCHITECTURE_DRAWS * share)))
    y, labels = copies(data.pixels_test, 4, torch.Generator().manual_seed(2000 + seed)), data.labels_test
    rows = []
    for name, model in (("plain", plain), ("joint", net)):
        with torch.no_grad():
            logits = model(y).double()
            p = torch.softmax(logits, 1).view(4, -1, logits.shape[1]).mean(0)  # a mean over the unknown u
        nll, nll_se = summary(-p.log().gather(1, labels[:, None]).squeeze(1))
        row = {"seed": seed, "model": name, "accuracy": (p.argmax(1) == labels).double().mean().item(), "nll": nll}
        row |= {
            "nll_se": nll_se,
            "ece": calibration_error(p, labels),
            "nll_one_u": cross_entropy(logits, labels.repeat(4)).item(),
        }
        if name == "joint":
            gain, se = summary(logits.logsumexp(1).view(4, -1).mean(0) - log_z.value)
            row |= {"nats_over_base": gain, "nats_over_base_se": math.hypot(se, log_z.std_error), "ess": log_z.ess}
            row["cpu_seconds"] = round(used, 1)
        rows.append(row)
        print(row, flush=True)
    return rows, net


# ---------------------------------------------------------------- images that are no digits


def placements(e_in: Tensor, e_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each OOD energy the share of normal ones below it, of each normal one the share of OOD above it; ties
    count half. The mean of either is the AUROC."""
    wins = (e_out[:, None] > e_in).double() + 0.5 * (e_out[:, None] == e_in)
    return wins.mean(1), wins.mean(0)


def fpr95(e_in: Tensor, e_out: Tensor) -> float:
    """Return the share of OOD accepted by the lowest threshold that accepts at least 95 % of the normal energies."""
    threshold = e_in.sort().values[math.ceil(len(e_in) * 19 / 20) - 1]
    return (e_out <= threshold).double().mean().item()


def judged(e_in: Tensor, e_out: Tensor, base_in: Tensor, base_out: Tensor) -> dict[str, Any]:
    """Return the measures of a score, and its paired gain over the base's."""
    half = len(e_in) // 2
    threshold = conformal_threshold(e_in[:half], ALPHA)
    mine, base = placements(e_in, e_out), placements(base_in, base_out)
    differences = [a - b for a, b in zip(mine, base, strict=True)]
    return {
        "auroc": mine[0].mean().item(),
        "fpr95": fpr95(e_in, e_out),
        "alarm_rate": (e_out > threshold).double().mean().item(),
        "false_alarm": (e_in[half:] > threshold).double().mean().item(),
        "gain": differences[0].mean().item(),
        "gain_se": math.sqrt(sum((d.var() / len(d)).item() for d in differences)),
    }


def scores(data: Data, q: FullMixture, tilts: dict[str, TiltedEnergy], nets: dict[str, Tilt]) -> dict[str, Any]:
    """Return functions (pixels, y) -> score, high where unusual; densities' are energies without Jacobian of y(u)."""

    def energy_of(log_prob: Any) -> Any:  # of the pixels, not of the logits: nats of log p(y) + log |dy/du|
        return lambda pixels, y: -log_prob(y) - SPACE.log_det(y)

    table: dict[str, Any] = {"mixture": energy_of(q.log_prob)}
    table |= {name: energy_of(lambda y, e=energy: -e(y)) for name, energy in tilts.items()}
    table["mixture less complexity"] = lambda pixels, y: table["mixture"](pixels, y) - math.log(2) * zipped_bits(pixels)
    table |= {name: lambda pixels, y, f=f: f(pixels) for name, f in rivals(data.pixels).items()}
    table["classifier logsumexp"] = lambda pixels, y: -nets["plain"](y).logsumexp(1)
    table["maximum softmax"] = lambda pixels, y: -torch.log_softmax(nets["plain"](y).double(), 1).max(1).values
    if "joint" in nets:
        table["joint"] = energy_of(lambda y: q.log_prob(y) + nets["joint"](y).logsumexp(1))
        table["joint logsumexp"] = lambda pixels, y: -nets["joint"](y).logsumexp(1)
        table["joint maximum softmax"] = lambda pixels, y: (
            -torch.log_softmax(nets["joint"](y).double(), 1).max(1).values
        )
    return table


DENSITIES = ("mixture", "tilt", "tilt, convolution", "joint")


@torch.no_grad()
def compare(
    table: dict[str, Any], normal: Tensor, others: dict[str, Tensor], seed: int, left_out: int | None
) -> list[dict]:
    generator = torch.Generator().manual_seed(4000 + seed)
    rows, y_in = [], copies(normal, 1, generator)
    y_out = {task: copies(images, 1, generator) for task, images in others.items()}
    for name, score in table.items():
        e_in, base_in = score(normal, y_in).double(), table["mixture"](normal, y_in).double()
        for task, images in others.items():
            e_out, base_out = (table[n](images, y_out[task]).double() for n in (name, "mixture"))
            row = {"seed": seed, "task": task, "left_out": left_out, "score": name}
            row |= judged(e_in, e_out, base_in, base_out)
            row["nats"] = (e_out.mean() - e_in.mean()).item() if name in DENSITIES else None
            rows.append(row)
    return rows


def complexity(table: dict[str, Any], normal: Tensor, seed: int) -> list[dict]:
    from scipy.stats import spearmanr

    y, bits = copies(normal, 1, torch.Generator().manual_seed(4000 + seed)), zipped_bits(normal)
    rows = []
    with torch.no_grad():
        for name, score in table.items():
            rows.append({"seed": seed, "score": name, "correlation": float(spearmanr(score(normal, y), bits)[0])})
    return rows


def ood(
    data: Data, models: dict[str, Any], nets: dict[str, Tilt], seed: int, share: float, left_out: tuple[int, ...]
) -> tuple[list[dict], list[dict]]:
    tilts = {"tilt": models["tilt, MLP"], "tilt, convolution": models["tilt, convolution"]}
    others = other_images(data.pixels_test, data.labels_test, torch.Generator().manual_seed(seed))
    table = scores(data, models["mixture"], tilts, nets)
    rows, correlations = compare(table, data.pixels_test, others, seed, None), complexity(table, data.pixels_test, seed)
    for digit in left_out:
        part = load(seed, digit)
        q = fit_mixture(part.y, part.y_validation, (20,))
        setting, steps = CHOSEN["tilt, MLP"], scaled("left out", share)
        torch.manual_seed(seed)
        net = network("tilt, MLP", setting["norm"])
        tilt, _ = fit_energy(q, net, part.y, part.y_validation, seed, steps, setting["lr"])
        plain, _ = fit("plain", part, q, seed, share, CHOSEN["plain"])
        table = scores(part, q, {"tilt": tilt}, {"plain": plain})
        is_new = part.labels_test == digit
        rows += compare(table, part.pixels_test[~is_new], {"class left out": part.pixels_test[is_new]}, seed, digit)
        print(seed, "without", digit, {r["score"]: round(r["auroc"], 3) for r in rows[-len(table) :]}, flush=True)
    return rows, correlations


# ---------------------------------------------------------------- what was tried, and the run


def select(share: float, names: list[str]) -> list[dict]:
    """Return the validation values of every setting of the named models, or of all, on the selection seed."""
    data, rows = load(SELECTION_SEED), []
    q = fit_mixture(data.y, data.y_validation)

    def note(model: str, setting: dict[str, Any], validation: float, seconds: float) -> None:
        rows.append({"model": model, "setting": setting, "validation": validation, "cpu_seconds": round(seconds, 1)})
        print(rows[-1], flush=True)

    for name in [name for name in GRIDS if name in names or not names]:
        for setting in GRIDS[name]:
            begin = time.process_time()
            _, value = fit(name, data, q, SELECTION_SEED, share, setting)
            note(name, setting, value, time.process_time() - begin)
    variants = [name for name in VARIANTS if name in names or not names]
    classifier = mlp(0.0, n_out=N_CLASSES)
    if variants:
        setting = best_settings(rows)["plain"] if not names else CHOSEN["plain"]
        classifier, _ = fit("plain", data, q, SELECTION_SEED, share, setting)
    for name in variants:
        for lr in LINEAR_RATES if name.endswith("linear") else RATES:
            begin = time.process_time()
            _, value = fit_variant(name, data, q, classifier, SELECTION_SEED, share, lr)
            note(name, {"lr": lr}, value, time.process_time() - begin)
    return rows


def best_settings(tried: list[dict]) -> dict[str, dict[str, Any]]:
    """Return the setting of each model that validation preferred."""
    names = dict.fromkeys(row["model"] for row in tried)
    return {n: max((r for r in tried if r["model"] == n), key=lambda r: r["validation"])["setting"] for n in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--select", nargs="*", metavar="MODEL", help="try the settings, of these models or of all, and keep that table"
    )
    parser.add_argument("--highest", action="store_true", help="`with_highest` of the tables that are there")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps and draws, for a quick look")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "digits.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = provenance("python tests/benchmarks/digits.py", INPUTS, ("torch", "numpy", "scikit-learn", "zuko"))
    content = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    if args.highest:
        with_highest(content["likelihood"], content["dequantization"])
        content["provenance"]["log_z"] = {key: head[key] for key in ("commit", "dirty", "date")}
        content["provenance"]["log_z"]["command"] = head["command"] + " --highest"
    elif args.select is not None:
        tried = select(args.share, args.select)
        again = {row["model"] for row in tried}
        content["tried"] = [row for row in content.get("tried", []) if row["model"] not in again] + tried
        print(best_settings(content["tried"]))
    else:
        content = {"provenance": head, "tried": content.get("tried", [])}
        content |= {name: [] for name in ("likelihood", "dequantization", "architecture", "joint", "ood", "complexity")}
        for seed in args.seeds:
            data, marks = load(seed), [time.process_time()]
            rows, bounds, models = likelihood(data, seed, args.share)
            content["likelihood"] += rows
            content["dequantization"] += bounds
            marks.append(time.process_time())
            plain, _ = fit("plain", data, models["mixture"], seed, args.share, CHOSEN["plain"])
            content["architecture"] += architecture(data, models["mixture"], plain, seed, args.share)
            marks.append(time.process_time())
            both, net = joint(data, models["mixture"], plain, seed, args.share)
            content["joint"] += both
            marks.append(time.process_time())
            nets = {"plain": plain, "joint": net}
            classes = LEFT_OUT[seed] if args.share == 1 else LEFT_OUT[seed][:1]
            others, correlations = ood(data, models, nets, seed, args.share, classes)
            content["ood"] += others
            content["complexity"] += correlations
            marks.append(time.process_time())
            head["cpu_seconds"] = round(time.process_time())
            args.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")  # a seed is not lost
            print("CPU seconds of the four parts:", [round(b - a) for a, b in pairwise(marks)], flush=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
