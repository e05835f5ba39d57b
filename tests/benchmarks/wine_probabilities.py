"""What every red wine is given by a model that did not see it: probabilities of its grade, wine by wine.

    python tests/benchmarks/wine_probabilities.py [--only 0 1] [--out FILE]

Folds, settings and seeds are those of `wine_grades.py`, whose table has the means over folds: the joint energy (seed 0)
and extra trees give each test wine a distribution over grades. Beside them stand the scores of the networks of that
energy trained by cross-entropy alone (three seeds): no noise, no density, a plain classifier. And the log-loss of the
joint energy's grade where one measurement is missing: integrated out, filled in by its conditional median, or by the
median of the column. See README.md beside this.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from grade_models import DIM, N_GRADES, Tilt, class_frequencies, fit_grade_energy, log_loss, probabilities
from provenance import RESULTS, provenance
from torch import Tensor
from torch.nn.functional import cross_entropy
from wine_grades import COLUMNS, EBM, INPUTS, SEEDS, Fold, frame
from wine_models import BATCH, bagged_mixture

from ebmlib.conditional import conditional_log_prob, grid_quantiles, marginal
from ebmlib.training import minibatches, train

INPUTS = [*INPUTS, "tests/benchmarks/wine_probabilities.py"]
ALONE = "cross-entropy alone"


def fit_classifier(x: Tensor, grade: Tensor, seed: int) -> Any:
    """Return p(y|x) as a function: the networks of `fit_grade_energy` for the grade, its steps, batches and penalties.

    What does not depend on the grade, the network for the wine, cancels in the softmax and is left out.
    """
    torch.manual_seed(seed)
    net = Tilt(x, n_members=4, hidden=(64, 64), n_steps=8, drop_in=0.5, drop=0.5, drop_wine=0.2, bound=4.0)
    log_q0 = class_frequencies(grade).log()

    def each(x: Tensor) -> Tensor:
        steps = net.steps(x)
        b = torch.stack([member(steps) for member in net.members])
        return log_q0 - net.bound * torch.tanh(b / net.bound)

    def loss(rows: Tensor) -> Tensor:
        x_data = x[rows] + 0.1 * torch.randn(len(rows), DIM)
        return len(net.members) * cross_entropy(each(x_data).flatten(0, 1), grade[rows].repeat(len(net.members)))

    n_updates = 60 * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(net.members.parameters(), lr=0.01, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, n_updates, pct_start=0.1, cycle_momentum=False)
    train(loss, optimizer, minibatches(torch.arange(len(x)), BATCH), n_updates, scheduler)
    net.eval().requires_grad_(False)
    return lambda x: torch.softmax(each(x).mean(0), 1)


def without_one(energy: Any, x: Tensor, x_train: Tensor, grade: Tensor) -> dict[str, list[float]]:
    """Return the log-loss of the grade with each column missing, by what is done about it."""
    points, alone = torch.linspace(-6, 6, 121), marginal(energy)
    loss: dict[str, list[float]] = {"integrated": [], "median given the rest": [], "median of the column": []}
    for j in range(DIM):
        log_p = conditional_log_prob(alone, x, j, points)
        lines = x.repeat_interleave(len(points), 0)
        lines[:, j] = points.repeat(len(x))
        p = energy.log_prob_grade(lines).exp().reshape(len(x), len(points), N_GRADES)
        loss["integrated"].append(log_loss(torch.trapezoid(log_p.exp()[..., None] * p, points, dim=1), grade))
        filled = {"median given the rest": grid_quantiles(points, log_p.double(), [0.5])[:, 0].float()}
        filled["median of the column"] = x_train[:, j].median()
        for name, value in filled.items():
            plugged = x.clone()
            plugged[:, j] = value
            loss[name].append(log_loss(energy.log_prob_grade(plugged).exp(), grade))
    return loss


def of_fold(k: int) -> dict[str, Any]:
    """Return what each test wine of a fold is given, and the scores of the fold."""
    from sklearn.ensemble import ExtraTreesClassifier

    unique = frame.drop_duplicates()
    x, grade = torch.tensor(unique.to_numpy()[:, :DIM]), torch.tensor(unique["quality"].to_numpy()) - 3
    fold = Fold(x, grade, k)
    s = fold.split
    noise = bagged_mixture(s.x, 5, 8, k, tail=0.1)
    energy = fit_grade_energy(s.x, s.grade, noise, k, cross_entropy_weight=1.0)
    trees = ExtraTreesClassifier(300, random_state=k).fit(*(part.numpy() for part in s.nine))
    given = {EBM: energy.log_prob_grade(s.x_test).exp(), "extra trees": probabilities(trees, s.x_test)}
    scores: dict[str, dict[str, float]] = {}
    alone = {f"{ALONE}, seed {seed}": fit_classifier(s.x, s.grade, 100 * seed + k)(s.x_test) for seed in SEEDS}
    for name, p in (given | alone).items():
        off = ((p.cumsum(1) < 0.5).sum(1) - s.grade_test).abs().float()
        scores[name] = {"mae": off.mean().item(), "log_loss": log_loss(p, s.grade_test)}
    return {
        "p": {name: [[round(v, 5) for v in row] for row in p.tolist()] for name, p in given.items()},
        "row": fold.rows.test.tolist(),
        "grade": s.grade_test.tolist(),
        "scores": scores,
        "log_loss_without": without_one(energy, s.x_test, s.x, s.grade_test),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", default=range(10), help="fold numbers, for a quick look")
    parser.add_argument("--out", type=Path, default=RESULTS / "wine_probabilities.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1"}
    packages = ("torch", "numpy", "scikit-learn")
    head = provenance("python tests/benchmarks/wine_probabilities.py", INPUTS, packages)
    start = time.process_time()
    folds = []
    for k in args.only:
        folds.append(of_fold(k))
        print(f"fold {k}: {time.process_time() - start:.0f} s of CPU", flush=True)
    head["cpu_seconds"] = time.process_time() - start
    tables = {"provenance": head, "columns": COLUMNS, "folds": folds}
    args.out.write_text(json.dumps(tables, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
