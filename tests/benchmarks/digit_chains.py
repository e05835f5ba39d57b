"""Tilts of the cut mixture of digits, trained by NCE and by persistent chains; draws of a class; photographs.

    python tests/benchmarks/digit_chains.py [--jobs 2]

Data, splits, models and seeds are those of `digits.py`. The learning rate of the persistent chains is the one of four
that validation prefers on seed 100 (`tried`); other settings are those chosen there. Test images are scored once. The
run is made of blocks that `--jobs` processes share; each is kept as it ends, and the same call goes on from there.

`likelihood`: "tilt of the cut mixture" is that of `digits.py`; "plain" is a convolution without normalisation, by NCE;
"chains" has the same layers, without dropout, trained by persistent chains at temperature 1. log Z is the highest of
three estimates, importance sampling and annealing from both ends, which all stand beside it; errors include its own.
Chains move in s, the logits of pixels / 17, where the cut mixture has no walls.
`draws`: mean tilts of training and test images, of annealed draws and of the buffer, and how well trees tell 256 draws
from 256 test images, five-fold: .5 is perfect. "300 moves from …": chains on the energy of the last step, which they
do not train, from the base, from training images, from the buffer; the mean tilts before and after are of that energy.
`classes`: draws of a class, 36 of each. `met` is the share in which a support vector machine, trained on the same
images, reads the class asked. "joint": the joint network's own energy of the class; "plain": Bayes' rule with the
mixture and the plain network. Chains start at draws of the mixture, or at the best of twenty each; 20 moves of HMC, of
the tuned `step`. `agreed` is the share of the mixture's draws that network and machine take for the same class.
`ood`: as in `digits.py`, on pieces of the two photographs that scikit-learn ships.
"""

import argparse
import copy
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from digit_models import (
    BATCH,
    DIM,
    LEVELS,
    SPACE,
    Cut,
    Data,
    FullMixture,
    Sandwich,
    Tilt,
    convolution,
    copies,
    fit_energy,
    fit_mixture,
    load,
    log_z_by_importance,
)
from digits import CHOSEN, SEEDS, SELECTION_SEED, compare, fit, highest, network, scaled, scores, summary
from digits import INPUTS as OTHERS
from provenance import RESULTS, provenance
from torch import Tensor
from torch.nn.functional import avg_pool2d, log_softmax, logsigmoid

from ebmlib.annealing import (
    annealed_importance_sampling,
    bennett_acceptance_ratio,
    reverse_annealed_importance_sampling,
)
from ebmlib.buffer import ReplayBuffer
from ebmlib.density import Whitened
from ebmlib.energies import Energy
from ebmlib.fitting import train_to_best
from ebmlib.samplers import HMC, run, trace
from ebmlib.tilted import TiltedEnergy
from ebmlib.training import minibatches
from ebmlib.tuning import tune

INPUTS = [*OTHERS, "ebmlib/buffer.py", "ebmlib/density.py", "ebmlib/tuning.py", "tests/benchmarks/digit_chains.py"]
RATES = (2e-4, 4e-4, 8e-4, 1.6e-3)
N_STEPS, N_TEMPS, N_MOVED, N_MOVES, N_DRAWS, CUT_DRAWS = 500, 450, 300, 20, 20, 60_000
CUT = "tilt of the cut mixture"
MODELS = ("mixture, cut", CUT, f"{CUT}, plain", f"{CUT}, chains")
TABLES = ("tried", "likelihood", "draws", "classes", "ood")
PARTS = ("chains", "classes")


# ---------------------------------------------------------------- the cut mixture without walls


class Stretched:
    """The cut mixture as a density of s = logit(pixels / 17), in which its range has no walls.

    Its draws keep off the edges by rounding: that costs less than a hundredth of a nat, and is not counted.
    """

    def __init__(self, cut: Cut):
        self.cut = cut

    @staticmethod
    def y(s: Tensor) -> Tensor:
        return torch.logit(SPACE.alpha + (1 - 2 * SPACE.alpha) * torch.sigmoid(s))

    def log_prob(self, s: Tensor) -> Tensor:
        y = self.y(s)
        slope = math.log(LEVELS) + logsigmoid(s) + logsigmoid(-s)  # log of d pixels / ds
        return self.cut.q.log_prob(y) - self.cut.log_inside + SPACE.log_det(y) + slope.sum(1)

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        pixels = SPACE.pixels(self.cut.sample((2 * shape[0],)))
        within = ((pixels > 0) & (pixels < LEVELS)).all(1)
        return torch.logit(pixels[within][: shape[0]] / LEVELS)


def log_z_of_cut(tilt: Energy, cut: Cut, n_temps: int, n_chains: int = 256) -> tuple[Sandwich, Tensor]:
    """Return log Z of a tilt of the cut mixture, annealed from both ends, and the draws y that the way back starts at.

    These are the forward ends, resampled by their weights and moved on by as many steps again.
    """
    base, kernel, betas = Stretched(cut), HMC(0.35, 3), torch.linspace(0, 1, n_temps + 1)
    energy = TiltedEnergy(base, lambda s: tilt(base.y(s)))

    def path(beta: float) -> Energy:
        return lambda s: beta * energy.tilt(s) - base.log_prob(s)

    there = annealed_importance_sampling(energy, base, kernel, betas, n_chains, path=path)
    chosen = torch.multinomial(torch.softmax(there.log_w, 0), n_chains, replacement=True)
    s = run(kernel, energy, there.x[chosen], n_temps)
    back = reverse_annealed_importance_sampling(energy, base, kernel, betas, s, path=path)
    both = bennett_acceptance_ratio(there.log_w, back.log_w)
    return Sandwich(there.value, there.std_error, there.ess, back.value, back.std_error, *both), base.y(s)


class Persistent(NamedTuple):
    """How training went: validation scores, acceptance in the last tenth, where the chains ended, the last tilt."""

    scores: list[float]
    accepted: float
    y: Tensor
    last: Tilt


def fit_by_chains(
    cut: Cut, tilt: Tilt, y: Tensor, y_validation: Tensor, seed: int, n_steps: int, lr: float
) -> tuple[TiltedEnergy, float, Persistent]:
    """Return the tilted energy, trained by persistent chains at temperature 1, its validation gain, and how it went.

    A step: 128 chains of a buffer of 1,024, none ever restarted, make one move of HMC for the energy as it is; the loss
    is mean tilt of images - mean tilt of chains. The chains start at exact draws, for the tilt starts at zero.
    Optimiser, batches, and what stops on validation are those of NCE.
    """
    torch.manual_seed(seed)
    base, kernel, accepted = Stretched(cut), HMC(0.35, 5), []
    buffer = ReplayBuffer(base.sample((1024,)), lambda n: base.sample((n,)))
    y_fresh, last = cut.sample((10_000,)), copy.deepcopy(tilt)

    def loss(rows: Tensor) -> Tensor:
        index, s = buffer.draw(BATCH)
        chains = trace(kernel, lambda s: tilt(base.y(s)) - base.log_prob(s), s, 1)
        buffer.write(index, chains.x[0])
        accepted.append(chains.accept_prob.mean().item())
        return tilt(rows).mean() - tilt(base.y(chains.x[0])).mean()

    def score() -> Tensor:
        last.load_state_dict(tilt.state_dict())  # the last call is after the last step
        log_z = (-tilt(y_fresh)).logsumexp(0) - math.log(len(y_fresh))
        return (-tilt(y_validation)).mean() - log_z

    adam = torch.optim.AdamW(tilt.parameters(), lr=lr, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    trained = train_to_best(tilt, loss, score, adam, minibatches(y, BATCH), n_steps, cosine, every=50)
    log_z = log_z_by_importance(tilt, cut, 40_000)
    with torch.no_grad():
        validation = -tilt(y_validation).mean().item() - log_z.value
    late = accepted[-max(1, n_steps // 10) :]
    how = Persistent(trained.scores, sum(late) / len(late), base.y(buffer.x), last.eval().requires_grad_(False))
    return TiltedEnergy(cut, tilt), validation, how


def as_image(y: Tensor) -> Tensor:
    """Return the pixels, whole numbers 0 to 16."""
    return SPACE.pixels(y).floor().clamp(0, LEVELS - 1)


def told_apart(images: Tensor, others: Tensor) -> float:
    """Return the accuracy, five-fold, shuffled, of trees that tell two sets of images apart; one half is perfect."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    is_other = np.arange(len(images) + len(others)) >= len(images)
    folds, trees = StratifiedKFold(5, shuffle=True, random_state=0), ExtraTreesClassifier(100, random_state=0)
    return float(cross_val_score(trees, torch.cat([images, others]).numpy(), is_other, cv=folds).mean())


def moved_on(tilt: Tilt, cut: Cut, starts: dict[str, Tensor], n_moves: int, test: Tensor) -> list[dict]:
    """Return where chains on an energy that they do not train end, from each start: mean tilts, and how well told."""
    base, rows = Stretched(cut), []
    energy = TiltedEnergy(base, lambda s: tilt(base.y(s)))
    for name, y in starts.items():
        s = run(HMC(0.35, 3), energy, torch.logit((SPACE.pixels(y) / LEVELS).clamp(1e-6, 1 - 1e-6)), n_moves)
        with torch.no_grad():
            (end, se), start = summary(tilt(base.y(s))), tilt(y).mean().item()
        row = {"draws": f"{n_moves} moves from {name}", "tilt_start": start, "tilt_end": end, "tilt_end_se": se}
        rows.append(row | {"told_apart": told_apart(as_image(base.y(s)), test)})
    return rows


def tilts_of_the_cut(data: Data, seed: int, share: float, lr: float) -> tuple[list[dict], list[dict]]:
    """Return the rows of `likelihood` and `draws`; lr is that of the persistent chains."""
    q = fit_mixture(data.y, data.y_validation)
    torch.manual_seed(seed)
    cut, test = Cut(q), data.pixels_test[:256]
    y = copies(data.pixels_test, N_DRAWS, torch.Generator().manual_seed(1000 + seed))
    log_q = torch.cat([q.log_prob(rows) + SPACE.log_det(rows) for rows in y.split(4000)]).double()
    rows, draws = [], [{"seed": seed, "model": "mixture, cut", "draws": "exact"}]
    draws[0]["told_apart"] = told_apart(as_image(cut.sample((256,))), test)

    def add(name: str, over_base: Tensor, error: float, seconds: float, **more: Any) -> None:
        gain, se = summary(over_base.view(N_DRAWS, -1).mean(0))
        bits, bits_se = summary(-(log_q + over_base).view(N_DRAWS, -1).mean(0) / (DIM * math.log(2)))
        row = {"seed": seed, "model": name, "bits": bits, "bits_se": math.hypot(bits_se, error / (DIM * math.log(2)))}
        row |= {"nats_over_base": gain, "nats_over_base_se": math.hypot(se, error), "cpu_seconds": round(seconds, 1)}
        rows.append(row | more)
        print(f"{seed} {name:32} {gain:+.2f} ± {row['nats_over_base_se']:.2f} nats", flush=True)

    add("mixture, cut", torch.full_like(log_q, -cut.log_inside), cut.std_error, 0.0)
    for name in MODELS[1:]:
        begin, kept = time.process_time(), None
        torch.manual_seed(seed)
        if name.endswith("chains"):
            net, n_steps = convolution(0.0), max(50, round(N_STEPS * share))
            energy, validation, kept = fit_by_chains(cut, net, data.y, data.y_validation, seed, n_steps, lr)
        else:
            setting = {"lr": 6e-3, "norm": False} if name.endswith("plain") else CHOSEN["tilt, convolution"]
            net, n_steps = network("tilt, convolution", setting["norm"]), scaled("tilt, convolution", share)
            energy, validation = fit_energy(cut, net, data.y, data.y_validation, seed, n_steps, setting["lr"])
        used = time.process_time() - begin
        sampled = log_z_by_importance(energy.tilt, cut, max(20_000, round(CUT_DRAWS * share)))
        both, model = log_z_of_cut(energy.tilt, cut, max(20, round(N_TEMPS * share)))
        more = {"ess": sampled.ess, "validation": validation}
        more |= {"log_z_importance": sampled.value, "log_z_importance_se": sampled.std_error}
        more |= {f"annealed_{key}": value for key, value in both._asdict().items()}
        more["log_z_by"], more["log_z"], more["log_z_se"] = highest(more)
        with torch.no_grad():
            tilts = torch.cat([energy.tilt(part).double() for part in y.split(4000)])
            error = math.hypot(cut.std_error, more["log_z_se"])
            add(name, -cut.log_inside - tilts - more["log_z"], error, used, **more)
            sets = {"annealed": model, "train": data.y[: len(data.pixels)], "test": y[: len(data.pixels_test)]}
            row = {"seed": seed, "model": name, "draws": "annealed", "told_apart": told_apart(as_image(model), test)}
            row |= {f"tilt_{key}": energy.tilt(part).mean().item() for key, part in sets.items()}
            draws.append(row | {"tilt_annealed_se": summary(energy.tilt(model))[1]})
            if kept is not None:
                mean, se = summary(energy.tilt(kept.y))
                row = {"seed": seed, "model": name, "draws": "buffer", "tilt_buffer": mean, "tilt_buffer_se": se}
                row |= {"scores": kept.scores, "accepted": kept.accepted}
                draws.append(row | {"told_apart": told_apart(as_image(kept.y[:256]), test)})
                new = Stretched(cut).y(Stretched(cut).sample((256,)))
                starts = {"the base": new, "training images": data.y[:256], "the buffer": kept.y[:256]}
                for row in moved_on(kept.last, cut, starts, max(20, round(N_MOVED * share)), test):
                    draws.append({"seed": seed, "model": name} | row)
    return rows, draws


# ---------------------------------------------------------------- draws of a class


def class_energy(q: FullMixture, net: Tilt, asked: Tensor, joint: bool) -> Energy:
    """Return -log p(y | class) of the class that each row is to have, up to a constant.

    Joint: -logit of the class - log q(y), the network's own energy. Plain: -log p(class | y) - log q(y), Bayes' rule.
    """

    def of(y: Tensor) -> Tensor:
        logits = net(y) if joint else log_softmax(net(y), 1)
        return -logits.gather(1, asked[:, None]).squeeze(1) - q.log_prob(y)

    return of


def class_draws(
    q: FullMixture, net: Tilt, white: Whitened, asked: Tensor, joint: bool, n_moves: int
) -> tuple[dict[tuple[str, str], Tensor], float]:
    """Return starts and ends of chains on a class's energy, a class a row, from two kinds of start, and the step size.

    "any": draws of q as they come. "best of 20": of twenty draws each that whose class the network finds likeliest.
    """
    energy, n = class_energy(q, net, asked, joint), len(asked)
    tries = q.sample((20 * n,))
    with torch.no_grad():
        wanted = log_softmax(net(tries), 1).gather(1, asked.repeat(20)[:, None]).view(20, n)
    starts = {"any": q.sample((n,)), "best of 20": tries.view(20, n, DIM)[wanted.argmax(0), torch.arange(n)]}

    def white_energy(z: Tensor) -> Tensor:
        return energy(white.inverse(z))

    kernel, made = tune(HMC(0.05, 10), white_energy, white(starts["any"]), 0.7, 12), {}
    for name, y in starts.items():
        made[name, "start"] = y
        made[name, "chains"] = white.inverse(run(kernel, white_energy, white(y), n_moves))
    return made, kernel.step_size


def classes(data: Data, q: FullMixture, nets: dict[str, Tilt], seed: int, share: float) -> list[dict]:
    from sklearn.svm import SVC

    judge = SVC(C=10).fit(data.pixels.numpy(), data.labels[: len(data.pixels)].numpy())
    right = float((judge.predict(data.pixels_test.numpy()) == data.labels_test.numpy()).mean())
    asked, white, rows = torch.arange(10).repeat_interleave(36), Whitened(data.y), []
    torch.manual_seed(5000 + seed)
    for model, net in nets.items():
        made, step = class_draws(q, net, white, asked, model == "joint", max(3, round(N_MOVES * share)))
        with torch.no_grad():
            taken = net(made["any", "start"]).argmax(1).numpy()
        agreed = float((judge.predict(as_image(made["any", "start"]).numpy()) == taken).mean())
        for (start, stage), y in made.items():
            images = as_image(y)
            met = float((judge.predict(images.numpy()) == asked.numpy()).mean())
            row = {"seed": seed, "model": model, "start": start, "stage": stage, "n": len(asked), "met": met}
            row |= {"step": step, "agreed": agreed}
            rows.append(row | {"told_apart": told_apart(images, data.pixels_test), "judge_right": right})
            print(rows[-1], flush=True)
    training = told_apart(data.pixels[: len(asked)], data.pixels_test)
    row = {"seed": seed, "model": "training digits", "start": None, "stage": None, "n": len(asked), "met": None}
    return [*rows, row | {"told_apart": training, "judge_right": right}]


# ---------------------------------------------------------------- photographs


def photographs(n: int, generator: torch.Generator) -> Tensor:
    """Return n of the 520 pieces of 32×32 pixels of two photographs, grey, averaged to 8×8, of 17 levels, `(n, 64)`."""
    from sklearn.datasets import load_sample_images

    grey = [torch.tensor(photo).float().mean(2) for photo in load_sample_images().images]
    pieces = torch.cat([photo.unfold(0, 32, 32).unfold(1, 32, 32).reshape(-1, 32, 32) for photo in grey])
    small = avg_pool2d(pieces[:, None], 4).flatten(1)
    return (small * LEVELS / 256).floor()[torch.randperm(len(small), generator=generator)[:n]]


def classes_and_photographs(data: Data, seed: int, share: float) -> tuple[list[dict], list[dict]]:
    q = fit_mixture(data.y, data.y_validation)
    nets = {name: fit(name, data, q, seed, share, CHOSEN[name])[0] for name in ("plain", "joint")}
    rows = classes(data, q, nets, seed, share)
    names = {"tilt": "tilt, MLP", "tilt, convolution": "tilt, convolution"}
    tilts = {short: fit(name, data, q, seed, share, CHOSEN[name])[0] for short, name in names.items()}
    others = {"photographs": photographs(len(data.pixels_test), torch.Generator().manual_seed(seed))}
    return rows, compare(scores(data, q, tilts, nets), data.pixels_test, others, seed, None)


# ---------------------------------------------------------------- the run


def block(seed: int, part: str, share: float, lr: float) -> tuple[dict[str, list[dict]], float]:
    """Return the rows of a part of a seed by table, and the CPU seconds that it took."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start, data = time.process_time(), load(seed)
    made: dict[str, list[dict]] = {}
    if part == "tried":
        cut, n_steps = Cut(fit_mixture(data.y, data.y_validation)), max(50, round(N_STEPS * share))
        torch.manual_seed(seed)
        _, validation, _ = fit_by_chains(cut, convolution(0.0), data.y, data.y_validation, seed, n_steps, lr)
        made["tried"] = [{"seed": seed, "lr": lr, "validation": validation}]
    elif part == "chains":
        made["likelihood"], made["draws"] = tilts_of_the_cut(data, seed, share, lr)
    else:
        made["classes"], made["ood"] = classes_and_photographs(data, seed, share)
    return made, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the steps and draws, for a quick look")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "digit_chains.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/digit_chains.py" + (f" --share {args.share}" if args.share != 1 else "")
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn"))
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0}, "done": []} | {name: [] for name in TABLES}
    if args.out.exists():
        earlier = json.loads(args.out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("command", "sha256", "versions", "dirty")):
            results = earlier

    def finish(pool: ProcessPoolExecutor, order: list[tuple[int, str, float]]) -> None:
        left = [key for key in order if list(key) not in results["done"]]
        runs = {pool.submit(block, *key[:2], args.share, key[2]): key for key in left}
        for run_ in as_completed(runs):
            made, seconds = run_.result()
            for name, rows in made.items():
                results[name] = sorted(results[name] + rows, key=lambda row: row["seed"])
            results["done"].append(list(runs[run_]))
            results["provenance"]["cpu_seconds"] = round(results["provenance"]["cpu_seconds"] + seconds)
            args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
            print(f"{runs[run_]}: {seconds:.0f} CPU seconds", flush=True)

    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        finish(pool, [(SELECTION_SEED, "tried", lr) for lr in RATES])
        lr = max(results["tried"], key=lambda row: row["validation"])["lr"]
        finish(pool, [(seed, part, lr) for part in PARTS for seed in args.seeds])


if __name__ == "__main__":
    main()
