"""The densities that `wine_density.py` compares, over the eleven transformed columns of a wine.

Each has `log_prob(x)`; what serves as noise or as proposal has `sample((n,))` too.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu, softplus

from ebmlib.energies import Distribution, Energy
from ebmlib.losses import conditional_noise_contrastive, nce_from_logits
from ebmlib.networks import MLPEnergy
from ebmlib.partition import LogZ, importance_sampling
from ebmlib.tilted import TiltedEnergy
from ebmlib.training import minibatches, train

DIM = 11
BATCH = 256
N_POOL = 100_000  # noise samples that training draws from
N_LOG_Z = 50_000  # samples of the last importance sampling; three times as many from an adapted proposal


class Normalized(NamedTuple):
    """An energy with its log Z: a density."""

    energy: Energy
    log_z: float

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) - self.log_z


class Blend:
    """The density Σ wₖ pₖ(x) of members that each have `log_prob` (and `sample`, if the blend is to be drawn from)."""

    def __init__(self, members: Sequence, weights: Sequence[float] | None = None):
        self.members = members
        self.weights = torch.tensor(weights or [1 / len(members)] * len(members))

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(torch.stack([m.log_prob(x) for m in self.members], 1) + self.weights.log(), dim=1)

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        counts = torch.multinomial(self.weights, shape[0], replacement=True).bincount(minlength=len(self.members))
        return torch.cat([m.sample((int(n),)) for m, n in zip(self.members, counts, strict=True)])


def blend_by_validation(members: Sequence, x_validation: Tensor) -> Blend:
    """Return the blend whose weights maximise the validation likelihood, by EM."""
    with torch.no_grad():
        log_p = torch.stack([m.log_prob(x_validation) for m in members], 1).double()
    w = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    for _ in range(500):
        w = torch.softmax(log_p + w.log(), dim=1).mean(0)
    return Blend(members, w.tolist())


# ---------------------------------------------------------------- mixtures and kernels


class FullMixture:
    """`MixtureSameFamily` of `MultivariateNormal` at a tenth of its cost: all components whiten x in one product."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        self.weights, self.means, self.covariances = weights.float(), means.float(), covariances.float()
        factors = torch.linalg.cholesky(covariances.double())
        inverse = torch.linalg.inv(factors)
        self.factors = factors.float()
        self.whiten = inverse.permute(2, 0, 1).flatten(1).float()
        self.shift = torch.einsum("kij,kj->ki", inverse, means.double()).float()
        log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1).float()
        self.log_scale = self.weights.log() - log_det - DIM / 2 * math.log(2 * math.pi)

    def joint(self, x: Tensor) -> Tensor:
        """Return log p(x, k), shape `(n, n_components)`."""

        def part(rows: Tensor) -> Tensor:
            z = (rows @ self.whiten).view(len(rows), *self.shift.shape) - self.shift
            return self.log_scale - 0.5 * z.square().sum(2)

        return torch.cat([part(rows) for rows in x.split(512)])  # what stays in the cache takes half of the time

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logsumexp(self.joint(x), dim=1)

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        k = torch.multinomial(self.weights, shape[0], replacement=True)
        return self.means[k] + torch.einsum("nij,nj->ni", self.factors[k], torch.randn(shape[0], DIM))


def bagged_mixture(x: Tensor, n_components: int, n_bags: int, seed: int = 0, tail: float = 0.0) -> FullMixture:
    """Return the average of mixtures fitted to bootstraps of x, as one large mixture (one bag: fitted to x itself).

    A share `tail` of the density goes to components of twice the covariance: noise where the data thin out.
    """
    from sklearn.mixture import GaussianMixture

    rng, rows = np.random.default_rng(seed), x.double().numpy()
    bags = [rows] if n_bags == 1 else [rows[rng.integers(len(rows), size=len(rows))] for _ in range(n_bags)]
    fits = [GaussianMixture(n_components, reg_covar=0.01, random_state=seed + i).fit(bag) for i, bag in enumerate(bags)]
    shares = [(1 - tail, 1.0), (tail, 2.0)] if tail else [(1.0, 1.0)]
    parts = [(share * f.weights_ / n_bags, f.means_, scale * f.covariances_) for share, scale in shares for f in fits]
    return FullMixture(*(torch.as_tensor(np.concatenate(a)) for a in zip(*parts, strict=True)))


def adapted(q: FullMixture, energy: Energy, n_steps: int = 4, n_samples: int = 20_000) -> Blend:
    """Return a proposal closer to p ∝ exp(-E) than q: EM steps on draws weighted by importance.

    A fifth of the proposal stays q, so that no weight exceeds five times what it is under q.
    """
    proposal, moved = q, q
    for _ in range(n_steps):
        with torch.no_grad():
            x = proposal.sample((n_samples,))
            w = torch.softmax(-energy(x) - proposal.log_prob(x), dim=0)
            r = w[:, None] * torch.softmax(moved.joint(x), dim=1)
        # A ten-thousandth of the old component keeps one that has lost its draws well defined.
        weights = r.sum(0) + 1e-4
        means = (r.T @ x + 1e-4 * moved.means) / weights[:, None]
        scatter = torch.stack([(r[:, [k]] * (x - mean)).T @ (x - mean) for k, mean in enumerate(means)])
        covariances = (scatter + 1e-4 * moved.covariances) / weights[:, None, None]
        moved = FullMixture(weights / weights.sum(), means, covariances)
        proposal = Blend([moved, q], [0.8, 0.2])
    return proposal


class KernelDensity:
    """Gaussian kernels on the rows of x, shaped by their covariance (whitened) and scaled by a bandwidth."""

    def __init__(self, x: Tensor, bandwidth: float):
        factor = torch.linalg.cholesky(torch.cov(x.T))
        self.whiten = torch.linalg.inv(factor).T / bandwidth
        self.centres = x @ self.whiten
        log_det = factor.diagonal().log().sum() + DIM * math.log(bandwidth)
        self.log_scale = -math.log(len(x)) - log_det - DIM / 2 * math.log(2 * math.pi)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_scale + torch.logsumexp(-0.5 * torch.cdist(x @ self.whiten, self.centres).square(), dim=1)


# ---------------------------------------------------------------- training


class Stop:
    """A callback that keeps the parameters of the best validation value and stops after `patience` looks without one.

    Where `validate` returns a value for each of several networks, stacked along the first axis, each keeps its own.
    """

    def __init__(self, module: nn.Module, validate: Callable[[], Tensor], every: int, patience: int):
        self.module, self.validate, self.every, self.patience = module, validate, every, patience
        self.best, self.misses = torch.tensor(-torch.inf), 0
        self.kept = [p.detach().clone() for p in module.parameters()]

    def __call__(self, step: int, loss: float) -> bool:
        if (step + 1) % self.every:
            return False
        self.module.eval()
        with torch.no_grad():
            value = self.validate()
            better = value > self.best
            self.best = torch.where(better, value, self.best)
            for kept, p in zip(self.kept, self.module.parameters(), strict=True):
                kept.copy_(torch.where(better.reshape(better.shape + (1,) * (p.ndim - better.ndim)), p, kept))
        self.module.train()
        self.misses = 0 if better.any() else self.misses + 1
        return self.misses >= self.patience

    def restore(self) -> None:
        self.module.eval()
        with torch.no_grad():
            for kept, p in zip(self.kept, self.module.parameters(), strict=True):
                p.copy_(kept)


def descend(
    loss_fn: Callable[[Tensor], Tensor],
    stop: Stop,
    x: Tensor,
    batch_size: int,
    n_epochs: int,
    lr: float,
    weight_decay: float = 0.01,
) -> None:
    """Train `stop.module` by AdamW with one cycle of the learning rate, and leave it at its best."""
    n_steps = n_epochs * (len(x) // batch_size)
    optimizer = torch.optim.AdamW(stop.module.parameters(), lr=lr, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, n_steps, pct_start=0.1, cycle_momentum=False)
    train(loss_fn, optimizer, minibatches(x, batch_size), n_steps, scheduler, callback=stop)
    stop.restore()


def jittered(x: Tensor, std: float) -> Tensor:
    """Return x moved by noise about as wide as the rounding: a density so trained cannot settle on the lattice."""
    return x + std * torch.randn(x.shape)


# ---------------------------------------------------------------- networks that are normalised by construction


def fit_flow(x_train: Tensor, x_validation: Tensor, seed: int) -> Distribution:
    """Return zuko's neural spline flow (coupling), stopped on the validation part."""
    import zuko

    torch.manual_seed(seed)
    flow = zuko.flows.NSF(DIM, transforms=3, bins=8, hidden_features=(64, 64), passes=2)
    stop = Stop(flow, lambda: flow().log_prob(x_validation).mean(), every=16, patience=6)
    descend(lambda x: -flow().log_prob(jittered(x, 0.05)).mean(), stop, x_train, 128, 50, lr=5e-3)
    return flow.requires_grad_(False)()


class MaskedMixtures(nn.Module):
    """An ensemble of autoregressive networks, p(x) = Π p(xᵢ | those before it), side by side by batched products.

    Each network has its own random order of the columns; a masked MLP gives every conditional, a mixture of Gaussians.
    """

    def __init__(self, n_networks: int, hidden: int = 128, n_components: int = 5, min_std: float = 0.02):
        super().__init__()
        self.n_components, self.min_std = n_components, min_std
        place = torch.stack([torch.randperm(DIM).argsort() for _ in range(n_networks)])
        unit = (torch.arange(hidden) % (DIM - 1)).expand(n_networks, -1)
        head = place.repeat_interleave(3 * n_components, dim=1)
        # A unit of degree k sees the columns in places 0 … k; the column in place i is told by units of degree < i.
        pairs = [(place, unit, 1), (unit, unit, 1), (unit, head, 0), (place, head, 0)]
        self.masks = [(a[:, :, None] < b[:, None] + closed).float() for a, b, closed in pairs]
        self.weights = nn.ParameterList(
            gain * torch.randn(m.shape) / m.sum(1, keepdim=True).clamp_min(1).sqrt()
            for gain, m in zip((1.4, 1.4, 0.1, 0.0), self.masks, strict=True)
        )
        start = torch.zeros(n_networks, 1, DIM, 3, n_components)
        start[:, :, :, 1] = torch.randn(n_networks, 1, DIM, n_components)  # spreads the means
        biases = [torch.zeros(n_networks, 1, hidden), torch.zeros(n_networks, 1, hidden), start.flatten(2)]
        self.biases = nn.ParameterList(biases)

    def each_log_prob(self, x: Tensor, drop: float = 0.0) -> Tensor:
        """Return log p of every network, shape `(n_networks, n)`; x is `(n, dim)`, or a batch for each network."""
        x = x.expand(len(self.masks[0]), *x.shape[-2:])
        first, second, last, direct = (w * m for w, m in zip(self.weights, self.masks, strict=True))
        h = dropout(silu(torch.baddbmm(self.biases[0], x, first)), drop)
        h = dropout(silu(torch.baddbmm(self.biases[1], h, second)), drop)
        out = torch.baddbmm(self.biases[2], h, last) + torch.bmm(x, direct)
        logit, mean, raw = out.view(*x.shape, 3, self.n_components).unbind(3)
        std = softplus(raw) + self.min_std
        log_p = torch.log_softmax(logit, -1) - 0.5 * ((x[..., None] - mean) / std).square() - std.log()
        return torch.logsumexp(log_p, -1).sum(-1) - DIM / 2 * math.log(2 * math.pi)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log of the mean of the networks' densities."""
        log_p = self.each_log_prob(x)
        return torch.logsumexp(log_p, 0) - math.log(len(log_p))


def fit_masked_mixtures(
    x_train: Tensor, x_validation: Tensor, n_networks: int, seed: int, drop: float, together: bool
) -> MaskedMixtures:
    """Return the ensemble, stopped on the validation likelihood of the mixture (`together`) or of each network.

    What is mixed may overfit more than what stands alone: the mixture averages it out.
    """
    torch.manual_seed(seed)
    nets = MaskedMixtures(n_networks)

    def validate() -> Tensor:
        return nets.log_prob(x_validation).mean() if together else nets.each_log_prob(x_validation).mean(1)

    def loss(x: Tensor) -> Tensor:
        return -nets.each_log_prob(jittered(x.expand(n_networks, -1, -1), 0.05), drop).mean(1).sum()

    descend(loss, Stop(nets, validate, every=16, patience=6), x_train, 128, 60, lr=0.01)
    return nets


# ---------------------------------------------------------------- the energy


class SharedDropout(nn.Module):
    """SiLU, then dropout with one mask for a datum and its ν noise samples (row i of each block of `BATCH` rows).

    It regularises as `nn.Dropout` does, with a (ν+1)-th of the random numbers, which cost half of the training time.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, h: Tensor) -> Tensor:
        h = silu(h)
        if not (self.training and self.p):
            return h
        mask = torch.bernoulli(torch.full((BATCH, h.shape[1]), 1 - self.p)) / (1 - self.p)
        return (h.view(-1, BATCH, h.shape[1]) * mask).flatten(0, 1)


class TwoViews(nn.Module):
    """An MLP energy of the coordinates and of the whitened coordinates, side by side; zero at the start.

    Whitening magnifies the directions in which the data hardly vary, which the coordinates alone hide.
    With a bound, the energy stays within ±bound nats: tilted from its noise, no importance weight can then exceed
    exp(bound) / Z, however rare the place where it is drawn.
    """

    def __init__(self, x: Tensor, drop: float, whitened: bool, bound: float | None):
        super().__init__()
        values, vectors = torch.linalg.eigh(torch.cov(x.T.double()))
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("whiten", (vectors / values.sqrt()).float() if whitened else torch.empty(DIM, 0))
        n_inputs = DIM + self.whiten.shape[1]
        self.net = MLPEnergy(n_inputs, (128, 128), partial(SharedDropout, drop), zero_last=True)
        self.log_z = nn.Parameter(torch.zeros(()))
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        energy = self.net(torch.cat([x, (x - self.mean) @ self.whiten], 1))
        return self.bound * torch.tanh(energy / self.bound) if self.bound else energy


class Fit(NamedTuple):
    """A trained energy, its log Z by importance sampling and as NCE learned it, and the CPU seconds of all that."""

    energy: Energy
    log_z: LogZ
    learned: float
    learned_jointly: float
    ess_fraction: float
    seconds: float


def learn_constant(log_ratio_data: Tensor, log_ratio_noise: Tensor) -> float:
    """Return the constant that NCE learns for a frozen energy from all data and all noise: ν as large as it gets.

    The constant learned along with the network pays for dropout and for a classifier that knows its training rows,
    and the larger ν, the less; for ν → ∞ NCE's constant is that of importance sampling from the noise.
    """
    log_z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_z], max_iter=100, line_search_fn="strong_wolfe")
    nu = len(log_ratio_noise) / len(log_ratio_data)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nce_from_logits(log_ratio_data.double() - log_z, log_ratio_noise.double() - log_z, nu)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_z.item()


def fit_energy(
    x_train: Tensor,
    x_validation: Tensor,
    noise: Distribution,
    seed: int,
    proposal: Distribution | None = None,
    adapt: bool = False,
    nu: int = 10,
    tilted: bool = True,
    whitened: bool = True,
    drop: float = 0.2,
    weight_decay: float = 0.01,
    jitter: float = 0.1,
    bound: float | None = 4.0,
    conditional: float | None = None,
) -> Fit:
    """Train E(x) = net(x) - log q(x), or net(x) alone, by NCE against q, stopped on the validation part.

    Args:
        proposal: for importance sampling; the noise itself if None.
        adapt: for the last importance sampling, move the noise (a `FullMixture`) towards the trained energy.
        bound: nats within which the network stays; for a tilted energy alone, since a plain one then has no Z.
        conditional: width of the kernel of conditional NCE, which then takes the place of NCE.
    """
    start = time.process_time()
    torch.manual_seed(seed)
    net = TwoViews(x_train, drop, whitened, bound)
    energy = TiltedEnergy(noise, net) if tilted else net
    proposal = proposal or noise

    def log_base_ratio(x: Tensor, q: Distribution) -> Tensor:
        """What -E(x) - log q(x) holds besides the network; log q cancels where q is what was tilted."""
        if tilted and q is noise:
            return torch.zeros(len(x))
        return (noise.log_prob(x) if tilted else 0.0) - q.log_prob(x)

    with torch.no_grad():
        x_noise, x_held = noise.sample((N_POOL,)), proposal.sample((10_000,))
        ratio_noise, ratio_held = log_base_ratio(x_noise, noise), log_base_ratio(x_held, proposal)

    def loss(x: Tensor) -> Tensor:
        x = jittered(x, jitter) if jitter else x
        if conditional:
            return conditional_noise_contrastive(energy, x, conditional, nu)
        index = torch.randint(N_POOL, (nu * len(x),))
        log_model = -net(torch.cat([x, x_noise[index]])) - net.log_z
        logit_data = log_model[: len(x)] + log_base_ratio(x, noise)
        return nce_from_logits(logit_data, log_model[len(x) :] + ratio_noise[index], nu)

    def validate() -> Tensor:  # but for the mean of log q where the energy is tilted, which training leaves alone
        log_z = torch.logsumexp(ratio_held - net(x_held), 0) - math.log(len(x_held))
        return -net(x_validation).mean() - log_z

    stop = Stop(net, validate, every=8, patience=10)
    descend(loss, stop, x_train, BATCH, 100, lr=0.01, weight_decay=weight_decay)
    with torch.no_grad():
        logit_data = log_base_ratio(x_train, noise) - net(x_train)
        logit_noise = ratio_noise - net(x_noise)
    learned = learn_constant(logit_data, logit_noise)
    n_samples = 3 * N_LOG_Z if adapt else N_LOG_Z
    log_z = importance_sampling(energy, adapted(noise, energy) if adapt else proposal, n_samples)
    seconds = time.process_time() - start
    return Fit(energy, log_z, learned, net.log_z.item(), log_z.ess / n_samples, seconds)
