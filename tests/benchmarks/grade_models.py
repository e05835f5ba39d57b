"""The joint energies of a wine and its grade that `wine_grades.py` measures, and their rivals.

Wines are rows of eleven transformed columns, grades are 0 to 5 for 3 to 8.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from wine_models import BATCH, DIM, FullMixture, SharedDropout

from ebmlib.losses import nce_from_logits
from ebmlib.networks import MLPEnergy, SoftSteps
from ebmlib.training import minibatches, train

N_GRADES = 6
N_POOL = 50_000  # noise wines that training draws from
TINY = 1e-6  # a probability of zero is scored as this


def class_frequencies(grade: Tensor) -> Tensor:
    """Return the share of each grade, with one wine added to each."""
    counts = torch.bincount(grade, minlength=N_GRADES) + 1.0
    return counts / counts.sum()


class InputDropout(nn.Module):
    """Dropout with one mask for a datum and its noise samples, as `SharedDropout` for hidden units."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        mask = torch.bernoulli(torch.full((BATCH, x.shape[1]), 1 - self.p)) / (1 - self.p)
        return (x.view(-1, BATCH, x.shape[1]) * mask).flatten(0, 1)


class Whitened(nn.Module):
    """The coordinates and the whitened coordinates, side by side."""

    def __init__(self, x: Tensor):
        super().__init__()
        values, vectors = torch.linalg.eigh(torch.cov(x.T.double()))
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("whiten", (vectors / values.sqrt()).float())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, (x - self.mean) @ self.whiten], 1)


class Tilt(nn.Module):
    """f_y(x) = a(x) + b_y(x): one network for the wine, and the mean of several of soft steps for its grade.

    Each of the two terms stays within ±bound nats.
    """

    def __init__(
        self,
        x: Tensor,
        n_members: int,
        hidden: Sequence[int],
        n_steps: int,
        drop_in: float,
        drop: float,
        drop_wine: float,
        bound: float,
    ):
        super().__init__()

        def member() -> nn.Module:
            net = MLPEnergy((1 + n_steps) * DIM, hidden, partial(SharedDropout, drop), n_out=N_GRADES, zero_last=True)
            return nn.Sequential(InputDropout(drop_in), net)

        wine = MLPEnergy(2 * DIM, (128, 128), partial(SharedDropout, drop_wine), zero_last=True)
        self.wine, self.steps = nn.Sequential(Whitened(x), wine), SoftSteps(x, n_steps)
        self.members = nn.ModuleList(member() for _ in range(n_members))
        self.log_z = nn.Parameter(torch.zeros(n_members))
        self.bound = bound

    def each(self, x: Tensor) -> Tensor:
        """Return f with every member's b, `(n_members, n, n_grades)`."""
        steps = self.steps(x)
        b = torch.stack([net(steps) for net in self.members])
        return self.bound * (torch.tanh(b / self.bound) + torch.tanh(self.wine(x) / self.bound)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).mean(0)


class GradeEnergy(nn.Module):
    """E(x, y) = f_y(x) - log q(x) - log q0(y), for all grades y at once, `(n, n_grades)`."""

    def __init__(self, f: nn.Module, noise: FullMixture, frequencies: Tensor):
        super().__init__()
        self.f, self.noise, self.log_q0 = f, noise, frequencies.log()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) - self.noise.log_prob(x)[:, None] - self.log_q0

    def log_prob_grade(self, x: Tensor) -> Tensor:
        """Return log p(y|x), `(n, n_grades)`: exact, for neither q(x) nor Z depends on y."""
        return torch.log_softmax(self.log_q0 - self.f(x), dim=1)


def fit_grade_energy(
    x: Tensor,
    grade: Tensor,
    noise: FullMixture,
    seed: int,
    cross_entropy_weight: float,
    n_members: int = 4,
    hidden: Sequence[int] = (64, 64),
    n_steps: int = 8,
    drop_in: float = 0.5,
    drop: float = 0.5,
    drop_wine: float = 0.2,
    jitter: float = 0.1,
    lr: float = 0.01,
    weight_decay: float = 0.01,
    n_epochs: int = 60,
    nu: int = 5,
    bound: float = 4.0,
) -> GradeEnergy:
    """Train E(x, y) by NCE against q(x) q0(y), plus a multiple of the exact cross-entropy -log p(y|x)."""
    torch.manual_seed(seed)
    frequencies = class_frequencies(grade)
    net = Tilt(x, n_members, hidden, n_steps, drop_in, drop, drop_wine, bound)
    energy = GradeEnergy(net, noise, frequencies)
    x_noise = noise.sample((N_POOL,))

    def loss(rows: Tensor) -> Tensor:
        x_data = x[rows] + jitter * torch.randn(len(rows), DIM)
        index = torch.randint(N_POOL, (nu * len(rows),))
        y_noise = torch.multinomial(frequencies, len(index), replacement=True)
        f = net.each(torch.cat([x_data, x_noise[index]]))
        pick = torch.cat([grade[rows], y_noise]).expand(n_members, -1)[..., None]
        logit = -f.gather(2, pick)[..., 0] - net.log_z[:, None]  # q(x) q0(y) cancels
        total = sum(nce_from_logits(u[: len(rows)], u[len(rows) :], nu) for u in logit)
        if cross_entropy_weight:
            log_p = frequencies.log() - f[:, : len(rows)]
            labels = grade[rows].repeat(n_members)
            total = total + cross_entropy_weight * n_members * cross_entropy(log_p.flatten(0, 1), labels)
        return total

    n_updates = n_epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, n_updates, pct_start=0.1, cycle_momentum=False)
    train(loss, optimizer, minibatches(torch.arange(len(x)), BATCH), n_updates, scheduler)
    return energy.eval().requires_grad_(False)


# ---------------------------------------------------------------- rivals for the grade


class Parts(NamedTuple):
    """Wines and grades of the parts of one fold, transformed; `nine` is train and validation together."""

    x: Tensor
    grade: Tensor
    x_validation: Tensor
    grade_validation: Tensor
    x_test: Tensor
    grade_test: Tensor

    @property
    def nine(self) -> tuple[Tensor, Tensor]:
        return torch.cat([self.x, self.x_validation]), torch.cat([self.grade, self.grade_validation])


def log_loss(p: Tensor, grade: Tensor) -> float:
    return -p.clamp_min(TINY).log().gather(1, grade[:, None]).mean().item()


def probabilities(classifier, x: Tensor) -> Tensor:
    """Return p(y|x) of a scikit-learn classifier; a grade that it never saw has none."""
    p = torch.zeros(len(x), N_GRADES)
    p[:, torch.as_tensor(classifier.classes_)] = torch.as_tensor(classifier.predict_proba(x.numpy())).float()
    return p


def mixed_with_prior(make: Callable, s: Parts) -> tuple[Tensor, Tensor, float]:
    """Return a classifier's test probabilities as they come, the same mixed with the class frequencies, the weight.

    The weight is what the validation wines like best of a fit to the other eight parts; then all nine are fitted.
    """
    p = probabilities(make().fit(s.x, s.grade), s.x_validation)
    prior = class_frequencies(s.grade)
    weights = [0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
    weight = min(weights, key=lambda w: log_loss((1 - w) * p + w * prior, s.grade_validation))
    plain = probabilities(make().fit(*s.nine), s.x_test)
    return plain, (1 - weight) * plain + weight * class_frequencies(s.nine[1]), weight


def boosting(s: Parts, seed: int) -> Tensor:
    """Return test probabilities of scikit-learn's gradient boosting; validation says how many rounds."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    def make(n_rounds: int) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=n_rounds, max_leaf_nodes=15, early_stopping=False, random_state=seed
        )

    tried = make(150).fit(s.x.numpy(), s.grade.numpy())
    staged = [log_loss(torch.as_tensor(p).float(), s.grade_validation) for p in staged_full(tried, s.x_validation)]
    return probabilities(make(int(np.argmin(staged)) + 1).fit(*(a.numpy() for a in s.nine)), s.x_test)


def staged_full(classifier, x: Tensor):
    """Yield probabilities of all grades after each round of boosting."""
    for p in classifier.staged_predict_proba(x.numpy()):
        full = np.zeros((len(x), N_GRADES))
        full[:, classifier.classes_] = p
        yield full


def logistic(s: Parts) -> Tensor:
    """Return test probabilities of multinomial logistic regression, its penalty chosen by validation."""
    from sklearn.linear_model import LogisticRegression

    def make(c: float) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=2000)

    def validated(c: float) -> float:
        return log_loss(probabilities(make(c).fit(s.x, s.grade), s.x_validation), s.grade_validation)

    best = min([0.003, 0.01, 0.03, 0.1, 0.3, 1.0], key=validated)
    return probabilities(make(best).fit(*s.nine), s.x_test)


def support_vectors(s: Parts) -> Tensor:
    """Return real-valued test predictions of support vector regression, its settings chosen by validation."""
    from sklearn.svm import SVR

    grid = [(c, g, e) for c in (0.3, 1.0, 3.0) for g in (0.05, 0.1, 0.2) for e in (0.2,)]

    def make(c: float, g: float, e: float) -> SVR:
        return SVR(C=c, gamma=g, epsilon=e)

    def validated(setting: tuple) -> float:
        predicted = make(*setting).fit(s.x, s.grade).predict(s.x_validation)
        return np.abs(np.rint(predicted) - s.grade_validation.numpy()).mean()

    best = min(grid, key=validated)
    return torch.as_tensor(make(*best).fit(*s.nine).predict(s.x_test)).float()


# ---------------------------------------------------------------- imputation


def conditional_draws(q: FullMixture, x: Tensor, missing: Tensor, n_draws: int) -> Tensor:
    """Return draws of the missing coordinates given the known ones under a mixture, `(n_draws, n, dim)`; exact.

    Args:
        missing: boolean, `(n, dim)`; the known places of a draw hold what x holds.
    """
    draws = x.repeat(n_draws, 1, 1)
    for i, m in enumerate(missing):
        k = ~m
        c_kk, c_mk = q.covariances[:, k][:, :, k], q.covariances[:, m][:, :, k]
        residual = x[i, k] - q.means[:, k]
        factor = torch.linalg.cholesky(c_kk)
        z = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
        log_w = q.weights.log() - 0.5 * z.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        gain = torch.cholesky_solve(c_mk.mT, factor).mT
        mean = q.means[:, m] + (gain @ residual[..., None])[..., 0]
        spread = torch.linalg.cholesky(q.covariances[:, m][:, :, m] - gain @ c_mk.mT)
        component = torch.multinomial(torch.softmax(log_w, 0), n_draws, replacement=True)
        xi = torch.randn(n_draws, int(m.sum()), 1)
        draws[:, i, m] = mean[component] + (spread[component] @ xi)[..., 0]
    return draws


def nearest_neighbours(s: Parts, scale: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, str]:
    """Return number and weighting of neighbours that impute one missing column of the validation wines best.

    Args:
        scale: maps two sets of wines to their absolute errors, `(n, dim)`.
    """

    def error(setting: tuple[int, str]) -> float:
        filled = [impute_neighbours(s.x, s.x_validation, j, *setting) for j in range(DIM)]
        completed = torch.stack(filled, dim=1)
        return scale(completed, s.x_validation).mean().item()

    return min([(k, w) for k in (3, 5, 8, 12, 20) for w in ("uniform", "distance")], key=error)


def impute_neighbours(x: Tensor, incomplete: Tensor, column: int, n_neighbors: int, weights: str) -> Tensor:
    from sklearn.impute import KNNImputer

    gone = incomplete.clone()
    gone[:, column] = torch.nan
    imputer = KNNImputer(n_neighbors=n_neighbors, weights=weights).fit(x.numpy())
    return torch.as_tensor(imputer.transform(gone.numpy()))[:, column]


def impute_iteratively(imputer, x: Tensor) -> Tensor:
    """Return each column of x predicted from the ten others by an imputer fitted to complete wines."""
    filled = []
    for column in range(DIM):
        gone = x.clone()
        gone[:, column] = torch.nan
        filled.append(torch.as_tensor(imputer.transform(gone.numpy()))[:, column].float())
    return torch.stack(filled, dim=1)
