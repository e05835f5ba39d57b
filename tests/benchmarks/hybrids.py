"""An energy on top of a flow or an autoencoder: what it gains, over three seeds or more.

    python tests/benchmarks/hybrids.py --jobs 2

- `tilted`: E(x) = f(x) - log q(x) on bases q from weak to strong: red wine, protocol B, one fold a seed, nats a wine
  gained on the test part, with a paired standard error that has the error of log Z in it; two moons, KL by quadrature.
- `mixing`: HMC on a known target in the space of the data and in the latent space of a flow fitted to its draws: ESS a
  gradient, the smallest over five moments, and each moment's z. Both spaces try the same trajectory lengths and
  acceptances; the best on seed 100 is reported on other seeds.
- `latent`: a VAE with two latent dimensions on binarised digits, its likelihood by quadrature, and priors there: an
  energy by exact maximum likelihood, the same by NCE on the aggregate posterior, a mixture of as many parameters.
- `added`: two moons by a VAE with one latent dimension, by the same with an energy that tilts it (VAEBM), and with an
  energy added to its bound; five seeds.

Settings were chosen on seed 100 (wine: fold 9) by validation, and what was tried is in the results. A run that is
stopped goes on where it was.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import zuko
from provenance import RESULTS, provenance
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from wine_density import make_fold

from ebmlib.datasets import digits, kfold, wine_quality
from ebmlib.diagnostics import summarize
from ebmlib.fitting import fit_tilt, train_to_best
from ebmlib.networks import MLPEnergy
from ebmlib.partition import importance_sampling
from ebmlib.samplers import HMC, trace
from ebmlib.tilted import TiltedEnergy
from ebmlib.toys import Toy, rings, two_moons
from ebmlib.training import minibatches
from ebmlib.tuning import tune

MODULES = "datasets diagnostics energies fitting losses networks partition samplers tilted toys training tuning".split()
INPUTS = [
    *(f"ebmlib/{name}.py" for name in MODULES),
    *(f"tests/benchmarks/{name}.py" for name in ("hybrids", "provenance", "wine_density", "wine_models")),
    "ebmlib/data/winequality-red.csv",
]
SEEDS, MORE_SEEDS, CHOICE = (0, 1, 2), (0, 1, 2, 3, 4), 100
RATES = (3e-3, 1e-2)
LENGTHS = {"banana": (3, 10, 30), "rings": (3, 10)}
ACCEPTED = {"banana": (0.8, 0.95), "rings": (0.8,)}
BETAS = (1.0, 0.1)
TARGETS, SPACES = ("banana", "rings"), ("data", "latent")
WINE_BASES = ("one Gaussian", "affine flow, 1 layer", "spline flow, 2 layers")
MOON_BASES = ("one Gaussian", "affine flow, 1 layer", "spline flow, 2 layers")
ADDED = ("VAE", "VAE, twice the steps", "VAEBM", "energy added")
PRIORS = ("energy", "energy by NCE", "mixture")
SIDE = 8.0  # of the latent plane, which holds all encodings
QUICK = False


def steps(n: int) -> int:
    return max(20, n // 20) if QUICK else n


def fitted(flow: nn.Module, x: Tensor, x_validation: Tensor, n_steps: int, lr: float, batch: int) -> Any:
    """Return a flow fitted by maximum likelihood, stopped on validation, frozen."""
    adam = torch.optim.AdamW(flow.parameters(), lr=lr, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)

    def loss(rows: Tensor) -> Tensor:
        return -flow().log_prob(rows).mean()

    def score() -> Tensor:
        return flow().log_prob(x_validation).mean()

    train_to_best(flow, loss, score, adam, minibatches(x, batch), n_steps, cosine, every=20)
    return flow.requires_grad_(False)()


def make_flow(name: str, dim: int) -> nn.Module:
    n_layers = int(name.split(", ")[1][0])
    kind = {"transforms": n_layers, "hidden_features": (64, 64), "activation": nn.SiLU}
    return zuko.flows.MAF(dim, **kind) if "affine" in name else zuko.flows.NSF(dim, bins=8, **kind)


def make_base(name: str, x: Tensor, x_validation: Tensor, lr: float) -> Any:
    if name == "one Gaussian":
        return MultivariateNormal(x.mean(0), x.T.cov())
    return fitted(make_flow(name, x.shape[1]), x, x_validation, steps(400), lr, 256)


def tilt_of(base: Any, x: Tensor, x_validation: Tensor, lr: float, dropout: float) -> tuple[TiltedEnergy, float]:
    energy = TiltedEnergy(base, MLPEnergy(x.shape[1], (128, 128), dropout=dropout, zero_last=True))
    fit = fit_tilt(energy, x, x_validation, steps(400), lr=lr, nu=4, every=20, batch_size=128, n_noise=16_000)
    return energy, fit.score


def wine_part(seed: int) -> dict[str, Tensor]:
    """Return a fold of protocol B in log-standardised units; training rows in ten copies, moved by noise of 0.1."""
    table = wine_quality("red").drop_duplicates()
    x = torch.tensor(table.drop(columns="quality").to_numpy(), dtype=torch.float64)
    fold = make_fold(x, kfold(len(x))[9 if seed == CHOICE else seed], "u")
    rows = fold.train.repeat(10, 1)
    return {
        "train": rows + 0.1 * torch.randn_like(rows),
        "validation": fold.validation.x,
        "test": fold.test.x,
        "jacobian": fold.test.jacobian,
    }


def wine(seed: int, rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return what was tried for one fold, and the gains of the tilt where there is one setting of each base."""
    torch.manual_seed(seed)
    part, rows, tried = wine_part(seed), [], []
    for name in WINE_BASES:
        best: Any = None
        for rate in rates.get(f"{name}, base", RATES if "flow" in name else (0.0,)):
            start = time.process_time()
            q = make_base(name, part["train"], part["validation"], rate)
            score, seconds = q.log_prob(part["validation"]).mean().item(), time.process_time() - start
            tried.append({"of": f"{name}, base", "rate": rate, "validation": score})
            best = max(best or (-math.inf,), (score, rate, q, seconds), key=lambda kept: kept[0])
        q, seconds = best[2], best[3]
        for rate in rates.get(f"{name}, tilt", RATES):
            start = time.process_time()
            energy, score = tilt_of(q, part["train"], part["validation"], rate, 0.2)
            tried.append({"of": f"{name}, tilt", "rate": rate, "validation": score})
            spent = time.process_time() - start
        if seed == CHOICE:
            continue
        n_samples = 20_000 if "flow" in name else 50_000
        log_z = importance_sampling(energy, q, n_samples)
        with torch.no_grad():
            gain = (-energy.tilt(part["test"]) - log_z.value).double()
            base = (q.log_prob(part["test"]).double() + part["jacobian"]).mean().item()
        error = math.hypot((gain.std() / len(gain) ** 0.5).item(), log_z.std_error)
        rows.append(
            {"data": "wine", "base": name, "seed": seed, "base_nats": base, "gain": gain.mean().item()}
            | {"std_error": error, "log_z_error": log_z.std_error, "ess": log_z.ess / n_samples}
            | {"base_seconds": seconds, "tilt_seconds": spent}
        )
    return {"tried": tried, "tilted": rows}


def plane(n: int, side: float) -> tuple[Tensor, float]:
    """Return n² points of the square of that half side, and the log of the area that stands for each."""
    axis = torch.linspace(-side, side, n)
    return torch.cartesian_prod(axis, axis), 2 * math.log(2 * side / (n - 1))


@torch.no_grad()
def judge(toy: Any, log_density: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Return KL both ways in nats, log Z, and the mass outside of the smallest set of 99 % of the data: 240² points."""
    x, log_area = plane(240, 5.0)
    log_p, log_m = toy.log_prob(x).double(), log_density(x).double()
    log_z = log_m.logsumexp(0).item() + log_area
    log_m = log_m - log_z
    p, m = (log_p + log_area).exp(), (log_m + log_area).exp()
    order = log_p.argsort(descending=True)
    inside = order[p[order].cumsum(0) < 0.99]
    forward, back = (p * (log_p - log_m)).sum().item(), (m * (log_m - log_p)).sum().item()
    return {"kl": forward, "kl_back": back, "log_z": log_z, "outside": 1 - m[inside].sum().item()}


def negative(energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: -energy(x)


def moons(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    toy, rows = two_moons(), []
    x, x_validation = toy.sample((10_000,)), toy.sample((2_000,))
    for name in MOON_BASES:
        q = make_base(name, x, x_validation, 1e-2)
        energy, _ = tilt_of(q, x, x_validation, 1e-2, 0.0)
        row = {"data": "two moons", "base": name, "seed": seed}
        rows.append(row | {"base_kl": judge(toy, q.log_prob)["kl"], "kl": judge(toy, negative(energy))["kl"]})
    return {"tilted": rows}


def banana(bend: float, std: float) -> Toy:
    """Return x_1 from N(0, 1) and x_2 = bend (x_1² - 1) + std ξ."""

    def log_prob(x: Tensor) -> Tensor:
        off = (x[:, 1] - bend * (x[:, 0].square() - 1)) / std
        return -(x[:, 0].square() + off.square()) / 2 - math.log(2 * math.pi * std)

    def sample(n: int, generator: torch.Generator | None) -> Tensor:
        x, noise = torch.randn(2, n, generator=generator)
        return torch.stack([x, bend * (x.square() - 1) + std * noise], 1)

    return Toy(log_prob, sample)


def moments(x: Tensor) -> Tensor:
    return torch.cat([x, x.square(), x[..., :1] * x[..., 1:]], -1)


BEND, STD = 0.5, 0.3
RING = (1 + 4 + 9) / 3 + 0.15**2  # E r²
KNOWN = {"banana": [0, 0, 1, 2 * BEND**2 + STD**2, 0], "rings": [0, 0, RING / 2, RING / 2, 0]}
FLOWS = {"banana": "affine flow, 1 layer", "rings": "spline flow, 2 layers"}


def chains(target: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Return rows of HMC in both spaces; `settings` has trajectories and acceptances for each."""
    torch.manual_seed(seed)
    toy: Any = banana(BEND, STD) if target == "banana" else rings()
    x, x_validation = toy.sample((10_000,)), toy.sample((2_000,))
    start = time.process_time()
    q = fitted(make_flow(FLOWS[target], 2), x, x_validation, steps(600), 1e-2, 512)
    flow_seconds = time.process_time() - start
    back, rows = q.transform.inv, []

    def energy(x: Tensor) -> Tensor:
        return -toy.log_prob(x)

    def latent(z: Tensor) -> Tensor:
        x, log_det = back.call_and_ladj(z)
        return energy(x) - log_det

    starts = toy.sample((50,))
    weights = importance_sampling(energy, q, 20_000)
    common = {"target": target, "seed": seed, "flow_seconds": flow_seconds, "flow_ess": weights.ess / 20_000}
    common["flow_kl"] = (toy.log_prob(x_validation) - q.log_prob(x_validation)).mean().item()
    for space in SPACES:
        e, at = (energy, starts) if space == "data" else (latent, q.transform(starts).detach())
        for n_leapfrog, wanted in settings[space]:
            kernel = tune(HMC(0.1, n_leapfrog), e, at, wanted, n_steps=40)
            n_draws, began = max(50, steps(1200) // n_leapfrog), time.process_time()
            draws = trace(kernel, e, at, n_draws)
            seconds = time.process_time() - began
            v = draws.x
            if space == "latent":
                v = back(v.flatten(0, 1)).view_as(v).detach()
            n_gradients = n_draws * n_leapfrog * len(at)
            row = common | {"space": space, "n_leapfrog": n_leapfrog, "wanted": wanted, "step_size": kernel.step_size}
            row |= {"accepted": draws.accept_prob.mean().item(), "seconds": seconds, "gradients": n_gradients}
            try:
                s = summarize(moments(v))
                z = (s.mean - torch.tensor(KNOWN[target])) / s.mcse
                row |= {"ess": s.ess_bulk.min().item(), "z": z.tolist(), "r_hat": s.r_hat.max().item()}
            except ValueError as error:  # a chain that never moved: no effective draw is claimed
                row |= {"ess": 0.0, "z": None, "r_hat": None, "stuck": str(error)}
            rows.append(row)
    return {"mixing": rows}


class VAE(nn.Module):
    """Encoder N(mean, diagonal), decoder of independent pixels, latent plane."""

    def __init__(self, width: int = 128):
        super().__init__()
        inner = nn.Linear(width, width), nn.SiLU()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.SiLU(), *inner, nn.Linear(width, 4))
        inner = nn.Linear(width, width), nn.SiLU()
        self.decoder = nn.Sequential(nn.Linear(2, width), nn.SiLU(), *inner, nn.Linear(width, 64))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, (log_variance / 2).exp()

    def bound(self, x: Tensor, beta: float = 1.0) -> Tensor:
        mean, std = self.posterior(x)
        logits = self.decoder(mean + std * torch.randn_like(mean))
        log_p = -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return log_p - beta * (mean.square() + std.square() - 1 - 2 * std.log()).sum(1) / 2

    def log_p_given(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z) of all pairs, (len(x), len(z))."""
        logits = self.decoder(z)
        return x @ logits.T - softplus(logits).sum(1)


def log_normal(z: Tensor) -> Tensor:
    return -z.square().sum(-1) / 2 - z.shape[-1] / 2 * math.log(2 * math.pi)


@torch.no_grad()
def log_likelihood(vae: VAE, x: Tensor, log_prior: Callable[[Tensor], Tensor], n: int = 241) -> Tensor:
    """Return log p(x) by the sum over n² points of the plane."""
    z, log_area = plane(n, SIDE)
    log_p_z = log_prior(z) + log_area
    return torch.cat([(vae.log_p_given(rows, z) + log_p_z).logsumexp(1) for rows in x.split(60)])


@torch.no_grad()
def importance_bound(vae: VAE, x: Tensor, n: int) -> Tensor:
    """Return the importance-weighted bound with n draws of the encoder for each image."""
    bounds = []
    for row in x.split(1):
        mean, std = vae.posterior(row)
        xi = torch.randn(n, 2)
        z = mean + std * xi
        log_w = vae.log_p_given(row, z)[0] + log_normal(z) - log_normal(xi) + std.log().sum()
        bounds.append(log_w.logsumexp(0) - math.log(n))
    return torch.stack(bounds)


def digit_parts() -> list[Tensor]:
    """Return binary digits: 1257 that train, 180 that validate, and the 360 that chapter 4 tests on."""
    pixels, _ = digits()
    rest, test = train_test_split((pixels > 8).float(), test_size=0.2, random_state=0)
    return [*train_test_split(rest, test_size=180, random_state=0), test]


def fit_vae(seed: int, beta: float, width: int, lr: float) -> tuple[VAE, float]:
    torch.manual_seed(seed)
    x, x_validation, _ = digit_parts()
    vae, n_steps = VAE(width), steps(2500)
    adam = torch.optim.Adam(vae.parameters(), lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)

    def score() -> Tensor:
        return log_likelihood(vae, x_validation, log_normal, 101).mean()

    fit = train_to_best(
        vae, lambda rows: -vae.bound(rows, beta).mean(), score, adam, minibatches(x, 128), n_steps, cosine, 250
    )
    return vae.requires_grad_(False), fit.score


class MixturePrior(nn.Module):
    """Gaussians of diagonal covariance; a standard deviation is 0.25 at least, more than the grid's spacing."""

    def __init__(self, means: Tensor):
        super().__init__()
        self.weights, self.means = nn.Parameter(torch.zeros(len(means))), nn.Parameter(means.clone())
        self.log_std = nn.Parameter(torch.full_like(means, math.log(0.5)))

    def forward(self, z: Tensor) -> Tensor:
        log_std = self.log_std.clamp(min=math.log(0.25))
        precision = (-2 * log_std).exp()
        squared = z.square() @ precision.T - 2 * z @ (self.means * precision).T
        squared = squared + (self.means.square() * precision).sum(1)
        return (self.weights.log_softmax(0) - log_std.sum(1) - squared / 2).logsumexp(1) - math.log(2 * math.pi)


class EnergyPrior(nn.Module):
    """E(z) = tilt(z) + ‖z‖²/2 in the plane; `forward` is -E(z) - log Z, with Z by quadrature."""

    def __init__(self) -> None:
        super().__init__()
        self.tilt = MLPEnergy(2, (32, 32), zero_last=True)

    def log_z(self) -> Tensor:
        z, log_area = plane(101, SIDE)
        return (log_normal(z) - self.tilt(z)).logsumexp(0) + log_area

    def forward(self, z: Tensor) -> Tensor:
        return log_normal(z) - self.tilt(z) - self.log_z()


def fit_prior(vae: VAE, prior: nn.Module, lr: float, x: Tensor, x_validation: Tensor) -> float:
    """Train a prior by exact maximum likelihood on 101² points, the decoder held; return the validation score."""
    z, log_area = plane(101, SIDE)
    terms = []
    for rows in (x, x_validation):
        log_p = torch.cat([vae.log_p_given(block, z) for block in rows.split(200)])
        top = log_p.amax(1, keepdim=True)
        terms.append(((log_p - top).exp(), top.squeeze(1)))

    def mean_log_p(which: int) -> Tensor:
        return ((terms[which][0] @ (prior(z) + log_area).exp()).log() + terms[which][1]).mean()

    adam, n_steps = torch.optim.Adam(prior.parameters(), lr), steps(300)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    whole = minibatches(torch.zeros(1, 1), 1)
    fit = train_to_best(prior, lambda _: -mean_log_p(0), lambda: mean_log_p(1), adam, whole, n_steps, cosine, every=20)
    prior.requires_grad_(False)
    return fit.score


def hole(vae: VAE, x: Tensor, prior: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Return KL(aggregate posterior‖prior), and the prior's mass where it is over ten times the aggregate posterior."""
    mean, std = vae.posterior(x)

    def log_aggregate(z: Tensor) -> Tensor:
        each = [log_normal((v[:, None] - mean) / std) - std.log().sum(1) for v in z.split(500)]
        return torch.cat([rows.logsumexp(1) for rows in each]) - math.log(len(mean))

    z_data = mean + std * torch.randn_like(mean)
    kl = (log_aggregate(z_data) - prior(z_data)).mean().item()
    points, log_area = plane(241, SIDE)
    cell = torch.multinomial((prior(points) + log_area).exp(), 5_000, replacement=True)
    z_prior = points[cell] + (torch.rand(5_000, 2) - 0.5) * math.exp(log_area / 2)
    empty = log_aggregate(z_prior) < prior(z_prior) - math.log(10)
    return {"kl_to_aggregate": kl, "hole": empty.double().mean().item()}


def make_prior(name: str, vae: VAE, lr: float, x: Tensor, x_validation: Tensor) -> tuple[Any, float]:
    mean, std = (t.detach() for t in vae.posterior(x))
    if name == "mixture":
        prior: Any = MixturePrior(mean[torch.randperm(len(mean))[:237]])  # 1,185 parameters, as the energy has
        return prior, fit_prior(vae, prior, lr, x, x_validation)
    prior = EnergyPrior()
    if name == "energy":
        return prior, fit_prior(vae, prior, lr, x, x_validation)
    z = mean.repeat(10, 1) + std.repeat(10, 1) * torch.randn(10 * len(mean), 2)
    z_mean, z_std = (t.detach() for t in vae.posterior(x_validation))
    energy = TiltedEnergy(MultivariateNormal(torch.zeros(2), torch.eye(2)), prior.tilt)
    fit_tilt(energy, z, z_mean + z_std * torch.randn_like(z_mean), steps(800), lr=lr, nu=4, every=50, batch_size=256)
    prior.requires_grad_(False)
    return prior, log_likelihood(vae, x_validation, prior, 101).mean().item()


def latent(seed: int, rates: dict[str, list[Any]]) -> dict[str, Any]:
    x, x_validation, x_test = digit_parts()
    rows, tried = [], []
    settings: Any = [(128, lr) for lr in (1e-3, 3e-3)]
    for beta in BETAS:
        best: Any = None
        for width, lr in rates.get(f"VAE, {beta:g}", settings):
            start = time.process_time()
            vae, score = fit_vae(seed, beta, int(width), lr)
            seconds = time.process_time() - start
            tried.append({"of": f"VAE, {beta:g}", "rate": [width, lr], "validation": score})
            best = max(best or (-math.inf,), (score, vae, seconds), key=lambda kept: kept[0])
        vae, seconds = best[1], best[2]
        plain = log_likelihood(vae, x_test, log_normal)
        row = {"beta": beta, "seed": seed, "prior": "N(0, I)", "nats": plain.mean().item(), "seconds": seconds}
        if seed != CHOICE:
            row["bound"] = torch.stack([vae.bound(x_test) for _ in range(50)]).mean().item()
            if beta == 1:
                row["importance"] = importance_bound(vae, x_test, steps(5000)).mean().item()
            row["finer"] = log_likelihood(vae, x_test, log_normal, 361).mean().item()
            row["largest_code"] = vae.posterior(x)[0].abs().max().item()
            rows.append(row | hole(vae, x, log_normal))
        for name in PRIORS:
            torch.manual_seed(seed)
            for lr in rates.get(f"{name}, {beta:g}", (1e-2, 3e-2)):
                start = time.process_time()
                prior, score = make_prior(name, vae, lr, x, x_validation)
                seconds = time.process_time() - start
                tried.append({"of": f"{name}, {beta:g}", "rate": lr, "validation": score})
            if seed == CHOICE:
                continue
            gain = (log_likelihood(vae, x_test, prior) - plain).double()
            row = {"beta": beta, "seed": seed, "prior": name, "nats": (plain + gain).mean().item(), "seconds": seconds}
            row |= {"gain": gain.mean().item(), "std_error": (gain.std() / len(gain) ** 0.5).item()}
            row["finer"] = log_likelihood(vae, x_test, prior, 361).mean().item()
            rows.append(row | hole(vae, x, prior))
    return {"tried": tried, "latent": rows}


NODES = torch.linspace(-6, 6, 1201)[:, None]


def mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, n_out))


class LineVAE(nn.Module):
    """Points of the plane from one latent dimension: `log_prob(x)`, by a sum over the line, and `sample((n,))`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.log_std = mlp(2, 2), mlp(1, 2), nn.Parameter(torch.tensor(-1.0))

    def bound(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        log_p = log_normal((x - self.decoder(z)) / self.log_std.exp()) - 2 * self.log_std
        return log_p - (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2

    def log_prob(self, x: Tensor) -> Tensor:
        centre, log_w = self.decoder(NODES), log_normal(NODES) + math.log(12 / 1200)
        each = [torch.cdist(rows, centre).square() for rows in x.split(2000)]
        log_p = [(log_w - d / 2 * (-2 * self.log_std).exp()).logsumexp(1) for d in each]
        return torch.cat(log_p) - 2 * self.log_std - math.log(2 * math.pi)

    def sample(self, shape: Any) -> Tensor:
        centre = self.decoder(torch.randn(shape[0], 1))
        return centre + self.log_std.exp() * torch.randn_like(centre)


def fit_line(x: Tensor, weight: float, n_steps: int, lr: float) -> LineVAE:
    """Train a VAE; with a weight, an energy is trained to be low at data and high at draws, and added to the bound."""
    vae, energy = LineVAE(), mlp(2, 1)
    adam = torch.optim.Adam([*vae.parameters(), *energy.parameters()], lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    batches = minibatches(x, 256)
    for _ in range(n_steps):
        rows = next(batches)
        loss = -vae.bound(rows).mean()
        if weight:
            draws = vae.sample((256,))
            energy.requires_grad_(False)
            loss = loss + weight * energy(draws).mean()  # it pulls draws to where the energy is low
            energy.requires_grad_(True)
            e_data, e_draws = energy(rows), energy(draws.detach())
            loss = loss + (e_data - e_draws).mean() + 0.1 * (e_data.square() + e_draws.square()).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        cosine.step()
    return vae.requires_grad_(False)


def added(seed: int, rates: dict[str, list[float]]) -> dict[str, Any]:
    toy, rows, tried = two_moons(), [], []
    kinds = {"VAE": (0.0, 1), "VAE, twice the steps": (0.0, 2), "energy added": (1.0, 1)}
    for name, (weight, times) in kinds.items():
        for lr in rates.get(name, RATES):
            torch.manual_seed(seed)
            x, x_validation = toy.sample((5_000,)), toy.sample((2_000,))
            start = time.process_time()
            vae = fit_line(x, weight, times * steps(800), lr)
            seconds = time.process_time() - start
            tried.append({"of": name, "rate": lr, "validation": vae.log_prob(x_validation).mean().item()})
        row = {"model": name, "seed": seed, "seconds": seconds}
        rows.append(row | judge(toy, vae.log_prob))
        if name == "VAE" and seed != CHOICE:
            start = time.process_time()
            energy, _ = tilt_of(vae, x, x_validation, 1e-2, 0.0)
            row = {"model": "VAEBM", "seed": seed, "seconds": seconds + time.process_time() - start}
            rows.append(row | judge(toy, negative(energy)))
    return {"tried": tried} if seed == CHOICE else {"added": rows}


def chosen(tried: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return, for each of what was tried, a list of the one setting that validation preferred."""
    best: dict[str, dict[str, Any]] = {}
    for row in tried:
        if row["of"] not in best or row["validation"] > best[row["of"]]["validation"]:
            best[row["of"]] = row
    return {name: [row["rate"]] for name, row in best.items()}


def best_settings(rows: list[dict[str, Any]], target: str) -> dict[str, list[tuple[int, float]]]:
    """Return for each space the trajectory and the acceptance of most ESS a gradient."""
    here = [row for row in rows if row["target"] == target]
    each = {space: [row for row in here if row["space"] == space] for space in SPACES}
    best = {space: max(r, key=lambda row: row["ess"] / row["gradients"]) for space, r in each.items()}
    return {space: [(row["n_leapfrog"], row["wanted"])] for space, row in best.items()}


BLOCKS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[int, ...]]] = {
    "latent": (latent, SEEDS),
    "wine": (wine, SEEDS),
    "banana": (chains, SEEDS),
    "rings": (chains, SEEDS),
    "added": (added, MORE_SEEDS),
    "moons": (moons, SEEDS),
}


def work(name: str, seed: int, known: Any, quick: bool) -> tuple[dict[str, Any], float]:
    """Return the rows of one block and the CPU seconds that it took."""
    global QUICK
    QUICK = quick
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start, do = time.process_time(), BLOCKS[name][0]
    torch.set_grad_enabled(True)
    if name in TARGETS:
        every = [(length, wanted) for length in LENGTHS[name] for wanted in ACCEPTED[name]]
        made = do(name, seed, dict.fromkeys(SPACES, every) if seed == CHOICE else best_settings(known, name))
        made = {"tried_mixing" if seed == CHOICE else "mixing": made["mixing"]}
    elif name == "moons":
        made = do(seed)
    else:
        made = do(seed, {} if seed == CHOICE else chosen(known))
        made = {key: rows for key, rows in made.items() if (key == "tried") == (seed == CHOICE)}
    return made, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, for a look")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "hybrids.json")
    args = parser.parse_args()
    command = "python tests/benchmarks/hybrids.py" + (" --quick" if args.quick else "")
    head = provenance(command, INPUTS, ("torch", "numpy", "scikit-learn", "zuko", "arviz-stats"))
    parts = ("tried", "tried_mixing", "tilted", "mixing", "latent", "added")
    results: dict[str, Any] = {"provenance": head | {"cpu_seconds": 0.0}, "done": []} | {part: [] for part in parts}
    if args.out.exists():
        earlier = json.loads(args.out.read_text("utf-8"))
        if all(earlier["provenance"][key] == head[key] for key in ("command", "sha256", "versions", "dirty")):
            results = earlier
    first = [(name, CHOICE) for name in BLOCKS if name != "moons"]
    then = [(name, seed) for name, (_, seeds) in BLOCKS.items() for seed in seeds]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for stage in (first, then):
            waiting = [key for key in stage if list(key) not in results["done"]]
            runs = {
                pool.submit(work, *key, results["tried_mixing" if key[0] in TARGETS else "tried"], args.quick): key
                for key in waiting
            }
            for run in as_completed(runs):
                made, seconds = run.result()
                results["provenance"]["cpu_seconds"] += seconds
                results["done"] = sorted([*results["done"], list(runs[run])])
                for part, rows in made.items():
                    results[part] = sorted(results[part] + rows, key=lambda row: json.dumps(row, sort_keys=True))
                args.out.write_text(json.dumps(results, indent=1) + "\n")
                print(*runs[run], f"{seconds:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
