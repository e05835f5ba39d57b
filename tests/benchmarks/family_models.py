"""The families that `families.py` compares. Each has `log_prob(x)` in nats and `sample((n,))`, over vectors or bits.

What is random uses torch's global generator.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.nn.functional import dropout, logsigmoid, softplus

from ebmlib.buffer import ReplayBuffer
from ebmlib.energies import Distribution, Energy
from ebmlib.fitting import Fit, train_to_best
from ebmlib.losses import contrastive_divergence
from ebmlib.networks import MLPEnergy
from ebmlib.samplers import MALA, Kernel, run
from ebmlib.tilted import TiltedEnergy
from ebmlib.training import minibatches
from ebmlib.tuning import tune

PAIRS = 2**21  # of rows and latent points whose densities are held at a time
HALF = 6.0  # the latent grid covers ±HALF in each direction
NARROWEST = 0.05  # least width of a Gaussian that a decoder or a conditional gives, in the units of x


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log N(x; mean, std²) summed over the last axis."""
    return (-0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def layers(*widths: int) -> nn.Sequential:
    """Return linear layers with a SiLU between two."""
    made: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        made += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*made[:-1])


# ---------------------------------------------------------------- variational autoencoder


class VAE(nn.Module):
    """z ~ N(0, I), x | z ~ Gaussians or bits with parameters by a network, and an encoder q(z | x) with Gaussians.

    The logarithm of the encoder's widths stays within [-6, 1]: far from the data it would run away otherwise.

    Args:
        latent: dimension of z; 1 or 2 makes log p(x) a sum over a grid, else it is an importance weighted bound.
        n_weights: draws of z a row in that bound.
    """

    def __init__(self, dim: int, latent: int, hidden: int, bits: bool, n_weights: int = 5000):
        super().__init__()
        self.dim, self.latent, self.bits, self.n_weights, self.n_points = dim, latent, bits, n_weights, 241
        self.encoder = layers(dim, hidden, hidden, 2 * latent)
        self.decoder = layers(latent, hidden, hidden, dim if bits else 2 * dim)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and width of q(z | x)."""
        mean, log_width = self.encoder(x).chunk(2, -1)
        return mean, log_width.clamp(-6.0, 1.0).exp()

    def decode(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return logits of bits, or mean and width of Gaussians."""
        out = self.decoder(z)
        if self.bits:
            return (out,)
        mean, raw = out.chunk(2, -1)
        return mean, softplus(raw) + NARROWEST

    def log_given(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z), of shapes that broadcast."""
        if self.bits:
            (logit,) = self.decode(z)
            return (x * logit - softplus(logit)).sum(-1)
        return log_normal(x, *self.decode(z))

    def log_weights(self, x: Tensor, n: int) -> Tensor:
        """Return log p(x, z) - log q(z | x) at n draws of z from q, shape `(batch, n)`."""
        mean, width = self.encode(x)
        z = mean[:, None] + width[:, None] * torch.randn(len(x), n, self.latent)
        prior = log_normal(z, torch.zeros(()), torch.ones(()))
        return self.log_given(x[:, None], z) + prior - log_normal(z, mean[:, None], width[:, None])

    def bound(self, x: Tensor, n: int = 1) -> Tensor:
        """Return E_q[log p(x | z)] over n draws, less KL(q(z | x) ‖ N(0, I)) in closed form: at most log p(x)."""
        mean, width = self.encode(x)
        z = mean[:, None] + width[:, None] * torch.randn(len(x), n, self.latent)
        kl = 0.5 * (mean.square() + width.square() - 1).sum(1) - width.log().sum(1)
        return self.log_given(x[:, None], z).mean(1) - kl

    @torch.no_grad()
    def weighted_bound(self, x: Tensor, n: int) -> Tensor:
        """Return the importance weighted bound, log of the mean of n weights, whose mean is at most log p(x)."""
        rows = max(1, PAIRS // (n * self.dim))
        return torch.cat([self.log_weights(part, n).logsumexp(1) - math.log(n) for part in x.split(rows)])

    @torch.no_grad()
    def grid(self, n_points: int) -> tuple[Tensor, Tensor]:
        """Return a grid of latent points and the logarithms of their prior masses."""
        axis = torch.linspace(-HALF, HALF, n_points)
        z = torch.cartesian_prod(*[axis] * self.latent).reshape(-1, self.latent)
        log_mass = log_normal(z, torch.zeros(()), torch.ones(())) + self.latent * math.log(2 * HALF / (n_points - 1))
        return z, log_mass

    @torch.no_grad()
    def exact(self, x: Tensor, n_points: int = 241) -> Tensor:
        """Return log p(x) as a sum over a grid of z."""
        z, log_mass = self.grid(n_points)
        out = self.decode(z)

        def part(rows: Tensor) -> Tensor:
            if self.bits:
                log_given = rows @ out[0].T - softplus(out[0]).sum(1)
            else:  # a column at a time: no array of rows, points and columns
                log_given = torch.zeros(len(rows), len(z))
                for column, mean, std in zip(rows.T, out[0].T, out[1].T, strict=True):
                    log_given -= 0.5 * ((column[:, None] - mean) / std).square_()
                log_given -= out[1].log().sum(1) + self.dim / 2 * math.log(2 * math.pi)
            return (log_given + log_mass).logsumexp(1)

        return torch.cat([part(rows) for rows in x.split(max(1, PAIRS // len(z)))])

    def log_prob(self, x: Tensor) -> Tensor:
        return self.exact(x, self.n_points) if self.latent <= 2 else self.weighted_bound(x, self.n_weights)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...]) -> Tensor:
        out = self.decode(torch.randn(shape[0], self.latent))
        return torch.bernoulli(out[0].sigmoid()) if self.bits else out[0] + out[1] * torch.randn(out[0].shape)


# ---------------------------------------------------------------- autoregressive


class Autoregressive(nn.Module):
    """p(x) = Π p(xᵢ | x₁ … xᵢ₋₁) by zuko's masked network: logits of bits, or mixtures of `n_components` Gaussians."""

    def __init__(self, dim: int, hidden: int, bits: bool, drop: float = 0.0, n_components: int = 5):
        super().__init__()
        self.dim, self.bits, self.drop, self.n_components = dim, bits, drop, n_components
        self.n_out = 1 if bits else 3 * n_components
        earlier = torch.ones(dim, dim).tril(-1).bool().repeat_interleave(self.n_out, 0)
        self.net = zuko.nn.MaskedMLP(earlier, (hidden, hidden), nn.SiLU)
        with torch.no_grad():
            last: Any = self.net[-1]
            bias = last.bias.view(dim, self.n_out)
            if not bits:
                bias[:, n_components : 2 * n_components] = torch.randn(dim, n_components)  # spreads the means

    def conditionals(self, x: Tensor) -> Tensor:
        """Return what each coordinate's conditional is made of, shape `(batch, dim, n_out)`."""
        x = 2 * x - 1 if self.bits else x
        for layer in self.net:
            x = layer(x)
            if self.drop and isinstance(layer, nn.SiLU):
                x = dropout(x, self.drop, self.training)
        return x.view(len(x), self.dim, self.n_out)

    def mixtures(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, mean, raw = out.unflatten(-1, (3, self.n_components)).unbind(-2)
        return torch.log_softmax(logit, -1), mean, softplus(raw) + NARROWEST

    def log_prob(self, x: Tensor) -> Tensor:
        out = self.conditionals(x)
        if self.bits:
            return logsigmoid((2 * x - 1) * out.squeeze(-1)).sum(1)
        log_w, mean, std = self.mixtures(out)
        return torch.logsumexp(log_w + log_normal(x[..., None, None], mean[..., None], std[..., None]), -1).sum(1)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...]) -> Tensor:
        x = torch.zeros(shape[0], self.dim)
        for i in range(self.dim):
            out = self.conditionals(x)[:, i]
            if self.bits:
                x[:, i] = torch.bernoulli(out.squeeze(-1).sigmoid())
            else:
                log_w, mean, std = self.mixtures(out)
                k = torch.multinomial(log_w.exp(), 1)
                x[:, i] = (mean.gather(1, k) + std.gather(1, k) * torch.randn(len(x), 1)).squeeze(1)
        return x


class Flow(nn.Module):
    """zuko's neural spline flow, three coupling layers, as a distribution."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.flow = zuko.flows.NSF(dim, transforms=3, hidden_features=(hidden, hidden), passes=2)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...]) -> Tensor:
        return self.flow().sample(shape)


# ---------------------------------------------------------------- kernels, and a mixture of bits


class Kernels:
    """Gaussian kernels on the rows of x, shaped by their covariance and scaled by a bandwidth."""

    def __init__(self, x: Tensor, bandwidth: float):
        self.x, self.factor = x, bandwidth * torch.linalg.cholesky(torch.cov(x.T))
        self.log_scale = math.log(len(x)) + self.factor.diagonal().log().sum() + x.shape[1] / 2 * math.log(2 * math.pi)
        self.centres = self.whiten(x)

    def whiten(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, x.T, upper=False).T

    def log_prob(self, x: Tensor) -> Tensor:
        rows = self.whiten(x).split(max(1, PAIRS // len(self.x)))
        return torch.cat([(-0.5 * torch.cdist(z, self.centres).square()).logsumexp(1) for z in rows]) - self.log_scale

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        z = torch.randn(shape[0], self.x.shape[1])
        return self.x[torch.randint(len(self.x), shape)] + z @ self.factor.T


class BitMixture:
    """A mixture of independent bits, Σₖ wₖ Πᵢ Bernoulli(xᵢ; pₖᵢ)."""

    def __init__(self, weights: Tensor, prob: Tensor):
        self.weights, self.prob, self.logit = weights, prob, torch.logit(prob)
        self.log_off = weights.log() + torch.log1p(-prob).sum(1)

    def joint(self, x: Tensor) -> Tensor:
        """Return log p(x, k), shape `(n, n_components)`."""
        return x @ self.logit.T + self.log_off

    def log_prob(self, x: Tensor) -> Tensor:
        return self.joint(x).logsumexp(1)

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        return torch.bernoulli(self.prob[torch.multinomial(self.weights, shape[0], replacement=True)])


def fit_bit_mixture(x: Tensor, n_components: int, n_steps: int = 60) -> BitMixture:
    """Return a mixture of bits by EM from random rows; half a row of each value is added to each count."""
    prob = 0.2 + 0.6 * x[torch.randperm(len(x))[:n_components]]
    model = BitMixture(torch.full((n_components,), 1 / n_components), prob)
    for _ in range(n_steps):
        r = model.joint(x).softmax(1)
        total = r.sum(0)
        model = BitMixture((total + 1) / (len(x) + n_components), (r.T @ x + 0.5) / (total[:, None] + 1))
    return model


def bit_kernels(x: Tensor, flip: float) -> BitMixture:
    """Return the training rows, each bit flipped with a given probability: a kernel density of bits."""
    return BitMixture(torch.full((len(x),), 1 / len(x)), x * (1 - flip) + (1 - x) * flip)


# ---------------------------------------------------------------- energies


class Normalized:
    """An energy with its log Z: a density, which draws by chains that start at draws of a base.

    Args:
        kernel: moves the chains; each start takes `n_steps`.
    """

    def __init__(self, energy: Energy, log_z: float, base: Distribution, kernel: Kernel, n_steps: int):
        self.energy, self.log_z, self.base, self.kernel, self.n_steps = energy, log_z, base, kernel, n_steps

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) - self.log_z

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        return run(self.kernel, self.energy, self.base.sample(torch.Size(shape)), self.n_steps)


class ChainLoss:
    """The loss of contrastive divergence; chains take a few MALA steps, at data (CD) or where they were (PCD).

    The step follows the acceptance towards .6. Dropout is off in the chains.
    """

    def __init__(self, energy: TiltedEnergy, buffer: ReplayBuffer | None, n_steps: int = 5, step_size: float = 0.05):
        self.energy, self.buffer, self.n_steps, self.log_step = energy, buffer, n_steps, math.log(step_size)

    def __call__(self, x_data: Tensor) -> Tensor:
        index, x = (None, x_data) if self.buffer is None else self.buffer.draw(len(x_data))
        self.energy.tilt.eval()  # type: ignore[union-attr]
        kernel = MALA(math.exp(self.log_step))
        state = kernel.init(self.energy, x)
        for _ in range(self.n_steps):
            state, accepted = kernel.step(self.energy, state)
            self.log_step += 0.02 * (accepted.mean().item() - 0.6)
        self.energy.tilt.train()  # type: ignore[union-attr]
        if self.buffer is not None:
            self.buffer.write(index, state.x)
        return contrastive_divergence(self.energy, x_data, state.x)


def make_tilt(base: Distribution, dim: int, hidden: int, drop: float) -> TiltedEnergy:
    return TiltedEnergy(base, MLPEnergy(dim, (hidden, hidden), dropout=drop, zero_last=True))


def fit_by_gradient(
    module: nn.Module,
    loss: Callable[[Tensor], Tensor],
    score: Callable[[], Tensor],
    x: Tensor,
    n_steps: int,
    lr: float,
    jitter: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    patience: int | None = 15,
) -> Fit:
    """Train by AdamW along a cosine, stop on a validation score, and keep the best: the recipe of all families."""

    def moved() -> Iterator[Tensor]:
        for rows in minibatches(x, 128):
            yield rows + jitter * torch.randn(rows.shape) if jitter else rows

    adam = torch.optim.AdamW(module.parameters(), lr, betas=betas, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    return train_to_best(module, loss, score, adam, moved(), n_steps, cosine, every=20, patience=patience)


def chain_score(energy: TiltedEnergy, x_validation: Tensor, n: int = 10_000) -> Callable[[], Tensor]:
    """Return the mean of log p - log q on validation rows, log Z by draws of the base q that train nothing."""
    x_fresh = energy.base.sample(torch.Size([n]))
    tilt: Any = energy.tilt
    return lambda: -tilt(x_validation).mean() - (-tilt(x_fresh)).logsumexp(0) + math.log(n)


def tuned(energy: Energy, x: Tensor) -> MALA:
    """Return MALA at an acceptance of .6 from x."""
    return tune(MALA(0.05), energy, x, 0.6, 80)
