"""The densities and energies that `digits.py` compares, over the 64 logits of a dequantised 8×8 digit.

Each density has `log_prob(y)`; what serves as noise or as proposal has `sample((n,))` too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ebmlib.annealing import (
    annealed_importance_sampling,
    bennett_acceptance_ratio,
    geometric_path,
    reverse_annealed_importance_sampling,
)
from ebmlib.datasets import digits
from ebmlib.energies import Distribution, Energy
from ebmlib.fitting import fit_flow, fit_tilt, train_to_best
from ebmlib.images import LogitPixels
from ebmlib.networks import SoftSteps
from ebmlib.partition import weight_ess
from ebmlib.samplers import MALA, run
from ebmlib.tilted import TiltedEnergy
from ebmlib.training import minibatches

DIM, N_CLASSES, LEVELS, NU, BATCH = 64, 10, 17, 4, 128
SPACE = LogitPixels(LEVELS)
N_COPIES, N_VALIDATION_COPIES = 10, 4  # dequantised copies of an image that models are trained on, and stopped on
BAND, THIN = 0.2, 20  # see `log_z_by_importance`


class Data(NamedTuple):
    """One split: logits and labels of all copies, and the images themselves.

    Copies stand block after block, so that the first block holds every image once.
    """

    y: Tensor
    labels: Tensor
    y_validation: Tensor
    labels_validation: Tensor
    pixels: Tensor
    pixels_validation: Tensor
    pixels_test: Tensor
    labels_test: Tensor


def copies(pixels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return torch.cat([SPACE.dequantize(pixels, generator) for _ in range(n)])


def load(seed: int, left_out: int | None = None) -> Data:
    """Return the split of a seed: 1,257 images to train on, 180 to validate, 360 to test; a class may be left out of
    the first two."""
    pixels, labels = digits()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    train, validation, test = order[:1257], order[1257:1437], order[1437:]
    if left_out is not None:
        train, validation = (rows[labels[rows] != left_out] for rows in (train, validation))
    generator = torch.Generator().manual_seed(seed)
    return Data(
        copies(pixels[train], N_COPIES, generator),
        labels[train].repeat(N_COPIES),
        copies(pixels[validation], N_VALIDATION_COPIES, generator),
        labels[validation].repeat(N_VALIDATION_COPIES),
        pixels[train],
        pixels[validation],
        pixels[test],
        labels[test],
    )


# ---------------------------------------------------------------- mixtures


class FullMixture:
    """A mixture of full Gaussians; all components whiten y in one product, and torch's takes gigabytes to draw from."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        self.weights, self.means = weights.float(), means.float()
        factors = torch.linalg.cholesky(covariances.double())
        inverse = torch.linalg.inv(factors)
        self.factors = factors.float()
        self.whiten = inverse.permute(2, 0, 1).flatten(1).float()
        self.shift = torch.einsum("kij,kj->ki", inverse, means.double()).float()
        log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        self.log_scale = (weights.double().log() - log_det - means.shape[1] / 2 * math.log(2 * math.pi)).float()

    def log_prob(self, y: Tensor) -> Tensor:
        def part(rows: Tensor) -> Tensor:
            z = (rows @ self.whiten).view(len(rows), *self.shift.shape) - self.shift
            return torch.logsumexp(self.log_scale - 0.5 * z.square().sum(2), dim=1)

        return torch.cat([part(rows) for rows in y.split(512)])

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        counts = torch.multinomial(self.weights, shape[0], replacement=True).bincount(minlength=len(self.weights))
        parts = zip(self.means, self.factors, counts.tolist(), strict=True)
        y = torch.cat([mean + torch.randn(n, len(mean)) @ factor.T for mean, factor, n in parts])
        return y[torch.randperm(len(y))]


def fit_mixture(y: Tensor, y_validation: Tensor, sizes: tuple[int, ...] = (10, 20, 30)) -> FullMixture:
    """Return the mixture whose number of components, and share of the pooled covariance, validation chose."""
    from sklearn.mixture import GaussianMixture

    best, kept = -math.inf, None
    for size in sizes:
        fit = GaussianMixture(size, reg_covar=0.03, random_state=0, max_iter=50).fit(y.double().numpy())
        weights, means, own = (torch.from_numpy(a) for a in (fit.weights_, fit.means_, fit.covariances_))
        pooled = (weights[:, None, None] * own).sum(0)
        for share in (0.0, 0.1, 0.2, 0.3):
            q = FullMixture(weights, means, (1 - share) * own + share * pooled)
            if (value := q.log_prob(y_validation).mean().item()) > best:
                best, kept = value, q
    assert kept is not None
    return kept


class PCAMixture:
    """A mixture on the first principal coordinates; the others are independent Gaussians of their own variances."""

    def __init__(self, y: Tensor, y_validation: Tensor, n_kept: int):
        values, vectors = torch.linalg.eigh(torch.cov(y.T.double()))
        self.mean, self.axes = y.mean(0), vectors.flip(1).float()
        self.n_kept, self.rest = n_kept, values.flip(0)[n_kept:].float()
        kept, kept_validation = (((z - self.mean) @ self.axes)[:, :n_kept] for z in (y, y_validation))
        self.first = fit_mixture(kept, kept_validation, (20,))

    def log_prob(self, y: Tensor) -> Tensor:
        z = (y - self.mean) @ self.axes
        rest = z[:, self.n_kept :].square() / self.rest + self.rest.log() + math.log(2 * math.pi)
        return self.first.log_prob(z[:, : self.n_kept]) - 0.5 * rest.sum(1)


class Cut:
    """A mixture without what lies outside of the range of pixels, where no image is: log P(inside) by draws."""

    def __init__(self, q: FullMixture, n_draws: int = 1_000_000, block: int = 50_000):
        n_inside = sum(int(inside(q.sample((block,))).sum()) for _ in range(n_draws // block))
        self.q, self.log_inside = q, math.log(n_inside / n_draws)
        self.std_error = math.sqrt(1 / n_inside - 1 / n_draws)

    def log_prob(self, y: Tensor) -> Tensor:
        return torch.where(inside(y), self.q.log_prob(y) - self.log_inside, -math.inf)

    def sample(self, shape: tuple[int, ...], block: int = 50_000) -> Tensor:
        kept: list[Tensor] = []
        while sum(map(len, kept)) < shape[0]:
            y = self.q.sample((block,))
            kept.append(y[inside(y)])
        return torch.cat(kept)[: shape[0]]


def inside(y: Tensor, band: float = 0.0) -> Tensor:
    """Return whether every pixel lies in [0, 17], widened by a band; float logits of 0 may round to just below it."""
    pixels, band = SPACE.pixels(y), band + 1e-4
    return ((pixels > -band) & (pixels < LEVELS + band)).all(1)


# ---------------------------------------------------------------- networks that are normalised by construction


class Standardized(nn.Module):
    """A density of y, given one of its standardised coordinates: a module that, called, returns a density."""

    def __init__(self, net: nn.Module, y: Tensor):
        super().__init__()
        self.net, self.mean, self.std = net, y.mean(0), y.std(0)

    def forward(self) -> "Standardized":
        return self

    def log_prob(self, y: Tensor) -> Tensor:
        return self.net().log_prob((y - self.mean) / self.std) - self.std.log().sum()


class Autoregressive(nn.Module):
    """p(z) = Π p(zᵢ | those before it), pixel after pixel: zuko's masked MLP gives each a mixture of Gaussians."""

    def __init__(self, hidden: int, drop: float, n_components: int = 5):
        import zuko

        super().__init__()
        before = torch.ones(DIM, DIM).tril(-1).bool().repeat_interleave(3 * n_components, 0)
        self.net = zuko.nn.MaskedMLP(before, (hidden, hidden), lambda: nn.Sequential(nn.SiLU(), nn.Dropout(drop)))
        start = torch.zeros(DIM, 3, n_components)
        start[:, 1] = torch.randn(DIM, n_components)  # spreads the means
        self.start = nn.Parameter(start)

    def forward(self) -> "Autoregressive":
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        logit, mean, raw = (self.net(z).view(len(z), *self.start.shape) + self.start).unbind(2)
        std = softplus(raw) + 0.02
        log_p = torch.log_softmax(logit, -1) - 0.5 * ((z[..., None] - mean) / std).square() - std.log()
        return torch.logsumexp(log_p, -1).sum(-1) - DIM / 2 * math.log(2 * math.pi)


class Levels(nn.Module):
    """P(pixels) = Π P(pixel | those before it), a softmax over levels: a likelihood that needs no dequantisation."""

    def __init__(self, hidden: int, drop: float):
        import zuko

        super().__init__()
        before = torch.ones(DIM, DIM).tril(-1).bool().repeat_interleave(LEVELS, 0)
        self.net = zuko.nn.MaskedMLP(before, (hidden, hidden), lambda: nn.Sequential(nn.SiLU(), nn.Dropout(drop)))

    def forward(self) -> "Levels":
        return self

    def log_prob(self, pixels: Tensor) -> Tensor:
        log_p = torch.log_softmax(self.net(pixels / 8 - 1).view(len(pixels), DIM, LEVELS), -1)
        return log_p.gather(2, pixels.long()[..., None]).sum((1, 2))


def fit_levels(data: Data, seed: int, n_steps: int, lr: float, drop: float) -> Distribution:
    torch.manual_seed(seed)
    return fit_flow(Levels(256, drop), data.pixels, data.pixels_validation, n_steps, lr, patience=20)


def fit_autoregressive(data: Data, seed: int, n_steps: int, lr: float, drop: float) -> Distribution:
    torch.manual_seed(seed)
    net = Standardized(Autoregressive(256, drop), data.y)
    return fit_flow(net, data.y, data.y_validation, n_steps, lr, patience=20)


def fit_spline_flow(data: Data, seed: int, n_steps: int, lr: float, hidden: int) -> Distribution:
    """Return zuko's neural spline flow of two autoregressive transforms."""
    import zuko

    torch.manual_seed(seed)
    net = Standardized(zuko.flows.NSF(DIM, transforms=2, bins=8, hidden_features=(hidden, hidden)), data.y)
    one_copy = data.y_validation[: len(data.y_validation) // N_VALIDATION_COPIES]
    return fit_flow(net, data.y, one_copy, n_steps, lr, patience=20)


# ---------------------------------------------------------------- tilts


class PixelView(nn.Module):
    """The logits and four functions of the pixel that they stand for: below the range, above it, not black, white.

    In the logits alone, the edge of what can be an image, and of the darkest level, takes a network long to find.
    """

    n_channels = 5

    def forward(self, y: Tensor) -> Tensor:
        p = SPACE.pixels(y) / LEVELS
        edges = 20 * torch.relu(-p), 20 * torch.relu(p - 1)
        levels = torch.sigmoid(40 * (p - 1 / LEVELS)), torch.sigmoid(40 * (p - 1 + 1 / LEVELS))
        return torch.stack([(y + 1) / 1.5, *edges, *levels], 1).view(len(y), self.n_channels, 8, 8)


class LogitView(nn.Module):
    """The logits alone."""

    n_channels = 1

    def forward(self, y: Tensor) -> Tensor:
        return ((y + 1) / 1.5).view(len(y), 1, 8, 8)


class Tilt(nn.Module):
    """A view, a body that makes features of it, and a linear end that starts at zero; a number a class with n_out."""

    def __init__(self, body: nn.Module, n_features: int, view: nn.Module, n_out: int = 1):
        super().__init__()
        self.view, self.body, self.end = view, body, nn.Linear(n_features, n_out)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def forward(self, y: Tensor) -> Tensor:
        out = self.end(self.body(self.view(y)))
        return out.squeeze(1) if out.shape[1] == 1 else out


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


class SumOverPlaces(nn.Module):
    """(n, channels, height, width) to (n, channels): what is seen counts wherever it stands."""

    def forward(self, h: Tensor) -> Tensor:
        return h.sum((2, 3)) / 4


def mlp(
    drop: float,
    view: type = PixelView,
    norm: type[nn.Module] | None = None,
    residual: bool = False,
    n_out: int = 1,
    width: int = 256,
) -> Tilt:
    def layer(n_in: int) -> list[nn.Module]:
        normal = [norm(width)] if norm else []
        return [nn.Linear(n_in, width), *normal, nn.SiLU(), nn.Dropout(drop)]

    second = layer(width)
    later = [Residual(*second)] if residual else second
    return Tilt(nn.Sequential(nn.Flatten(), *layer(DIM * view.n_channels), *later), width, view(), n_out)


def convolution(drop: float, pooled: bool = False, view: type = PixelView, norm: bool = False) -> Tilt:
    def layer(n_in: int, n_out: int, stride: int) -> list[nn.Module]:
        normal = [nn.BatchNorm2d(n_out)] if norm else []
        return [nn.Conv2d(n_in, n_out, 3, stride, padding=1), *normal, nn.SiLU()]

    first = layer(view.n_channels, 8, 1)
    if pooled:
        return Tilt(nn.Sequential(*first, *layer(8, 32, 1), SumOverPlaces(), nn.Dropout(drop)), 32, view())
    body = nn.Sequential(*first, *layer(8, 16, 2), *layer(16, 64, 2), nn.Flatten(), nn.Dropout(drop))
    return Tilt(body, 256, view())


class Frozen(nn.Module):
    """Features that are not trained along with the energy."""

    def __init__(self, features: Callable[[Tensor], Tensor]):
        super().__init__()
        self.features = [features]  # in a list, so that its parameters are none of this module's

    def forward(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self.features[0](y)


def principal_features(y: Tensor, n_kept: int = 40, n_steps: int = 7) -> Callable[[Tensor], Tensor]:
    """Return y ↦ soft steps of its first principal coordinates: what is linear in them is a curve of each."""
    values, vectors = torch.linalg.eigh(torch.cov(y.T.double()))
    axes = (vectors / values.sqrt()).flip(1)[:, :n_kept].float()
    steps = SoftSteps((y - y.mean(0)) @ axes, n_steps)
    return lambda rows: steps((rows - y.mean(0)) @ axes)


def fit_energy(
    q: FullMixture | Cut, tilt: Tilt, y: Tensor, y_validation: Tensor, seed: int, n_steps: int, lr: float
) -> tuple[TiltedEnergy, float]:
    """Return the tilted energy, trained by NCE against q and stopped on validation, and its validation gain.

    The score that stops it has log Z from ten thousand draws, too few once the energy is sharp: the gain that is
    returned, and that chooses among settings, has log Z from half a million.
    """
    torch.manual_seed(seed)
    energy = TiltedEnergy(q, tilt)
    fit_tilt(energy, y, y_validation, n_steps, lr, nu=NU, batch_size=BATCH, n_noise=40_000, every=25)
    log_z = log_z_by_importance(tilt, q, 500_000 if isinstance(q, FullMixture) else 40_000)
    with torch.no_grad():
        return energy, -tilt(y_validation).mean().item() - log_z.value


# ---------------------------------------------------------------- log Z


class ThinnedLogZ(NamedTuple):
    """log Z, its standard error, and the ESS of the draws that were looked at."""

    value: float
    std_error: float
    ess: float
    n_looked_at: int


@torch.no_grad()
def log_z_by_importance(tilt: Energy, q: FullMixture | Cut, n_draws: int, block: int = 20_000) -> ThinnedLogZ:
    """Return log E_q[exp(-tilt)]: of the draws outside of the range of pixels, every twentieth is looked at.

    An energy that has learned the range gives nearly all weight to the few draws in it, or near. One in twenty of the
    others, counted twenty times, keeps the estimate of Z free of bias.
    """
    log_w = []
    for _ in range(n_draws // block):
        y = q.sample((block,))
        near = inside(y, BAND)
        for rows, weight in ((y[near], 1), (y[~near][::THIN], THIN)):
            log_w += [-tilt(part).double() + math.log(weight) for part in rows.split(5000)]
    all_log_w = torch.cat(log_w)
    value = torch.logsumexp(all_log_w, 0).item() - math.log(n_draws // block * block)
    ess = weight_ess(all_log_w)
    return ThinnedLogZ(
        value, 1 / math.sqrt(ess), ess, len(all_log_w)
    )  # few draws count: their number varies as Poisson


class Sandwich(NamedTuple):
    """log Z from both ends of one path, and Bennett's from both."""

    forward: float
    forward_error: float
    forward_ess: float
    reverse: float
    reverse_error: float
    both: float
    both_error: float


def log_z_by_annealing(
    energy: TiltedEnergy, q: FullMixture, n_chains: int = 400, n_temps: int = 200, step_size: float = 0.02
) -> Sandwich:
    """Return log Z by annealed importance sampling forward, and back from draws of the model.

    The draws are the forward ends, resampled by their weights and moved on by as many steps again.
    """
    kernel, betas = MALA(step_size), torch.linspace(0, 1, n_temps + 1)
    path = geometric_path(energy, q)
    there = annealed_importance_sampling(energy, q, kernel, betas, n_chains, path=path)
    chosen = torch.multinomial(torch.softmax(there.log_w, 0), n_chains, replacement=True)
    y = run(kernel, energy, there.x[chosen], n_temps)
    back = reverse_annealed_importance_sampling(energy, q, kernel, betas, y, path=path)
    both = bennett_acceptance_ratio(there.log_w, back.log_w)
    return Sandwich(there.value, there.std_error, there.ess, back.value, back.std_error, *both)


# ---------------------------------------------------------------- a classifier, and one that is an energy


def fit_classifier(
    q: FullMixture, data: Data, seed: int, n_steps: int, lr: float, drop: float, joint: bool
) -> tuple[Tilt, float]:
    """Return a network of ten logits, and its best validation score in nats an image.

    Plain: trained by cross-entropy. Joint: p(y, class) ∝ q(y) exp(logit of the class), so that the tilt of q is
    -logsumexp(logits) and the class given the image stays a softmax. The loss is the sum of the NCE loss of that tilt,
    with q as noise, and the cross-entropy: the two parts of log p(y) + log p(class | y). Validation stops each by what
    it is trained for: log p(class | y), and, if joint, log p(y) - log q(y) besides. Both take the same steps.
    """
    torch.manual_seed(seed)
    net = mlp(drop, n_out=N_CLASSES)
    net.log_z = nn.Parameter(torch.tensor(math.log(N_CLASSES)))  # of equal logits
    noise, fresh = q.sample((40_000,)), q.sample((10_000,))

    def loss(index: Tensor) -> Tensor:
        y, labels, n = data.y[index], data.labels[index], len(index)
        if not joint:
            return cross_entropy(net(y), labels)
        logits = net(torch.cat([y, noise[torch.randint(len(noise), (NU * n,))]]))
        u = logits.logsumexp(1) - net.log_z - math.log(NU)
        return softplus(-u[:n]).mean() + NU * softplus(u[n:]).mean() + cross_entropy(logits[:n], labels)

    def score() -> Tensor:
        logits = net(data.y_validation)
        value = -cross_entropy(logits, data.labels_validation)
        if joint:
            value = value + logits.logsumexp(1).mean() - net(fresh).logsumexp(1).logsumexp(0) + math.log(len(fresh))
        return value

    others = [p for name, p in net.named_parameters() if name != "log_z"]
    groups = [{"params": others, "weight_decay": 0.01}, {"params": [net.log_z], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups if joint else groups[:1], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, n_steps)
    batches = minibatches(torch.arange(len(data.y)), BATCH)
    fit = train_to_best(net, loss, score, adam, batches, n_steps, cosine, every=25)
    return net, fit.score


@torch.no_grad()
def hidden_features(net: Tilt) -> Callable[[Tensor], Tensor]:
    """Return what a network's last hidden layer makes of y."""
    net = net.eval()
    return lambda y: net.body(net.view(y))


def calibration_error(p: Tensor, labels: Tensor, n_bins: int = 10) -> float:
    """Return the mean over rows of |accuracy - confidence| of their bin; the bins of confidence are equally wide."""
    confidence, guess = p.max(1)
    right = (guess == labels).to(p.dtype)
    index = (confidence * n_bins).long().clamp(max=n_bins - 1)
    gaps = torch.zeros(n_bins, dtype=p.dtype).index_add(0, index, right - confidence)
    return (gaps.abs().sum() / len(p)).item()


# ---------------------------------------------------------------- images that are no digits, and rival scores


def other_images(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return kinds of images made of digits, whole numbers 0 to 16, `(n, 64)` each, and the 17 constant images."""
    image = pixels.view(-1, 1, 8, 8)
    blurred = torch.nn.functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    partner = torch.stack(
        [
            (labels != own).nonzero()[torch.randint(int((labels != own).sum()), (), generator=generator), 0]
            for own in labels
        ]
    )
    places = torch.stack([torch.randperm(DIM, generator=generator) for _ in pixels])
    return {
        "inverted": LEVELS - 1 - pixels,
        "rotated": image.rot90(1, (2, 3)).flatten(1),
        "blurred": blurred.round().flatten(1),
        "averaged": ((pixels + pixels[partner]) / 2).round(),
        "shuffled pixels": pixels.gather(1, places),
        "constant": torch.arange(float(LEVELS))[:, None].expand(-1, DIM).clone(),
    }


def middles(pixels: Tensor) -> Tensor:
    """Return the logits of the middles of the cells: what methods without a density are given."""
    return torch.logit(SPACE.alpha + (1 - 2 * SPACE.alpha) * (pixels + 0.5) / LEVELS)


def zipped_bits(pixels: Tensor) -> Tensor:
    """Return the length of each image, compressed by zlib, in bits."""
    import zlib

    return torch.tensor([8.0 * len(zlib.compress(row.astype(np.uint8).tobytes(), 9)) for row in pixels.numpy()])


def rivals(pixels: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return scores of images, high where unusual, fitted to the middles of training images."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

    x = middles(pixels).double().numpy()
    lof, near, pca = LocalOutlierFactor(novelty=True).fit(x), NearestNeighbors(n_neighbors=5).fit(x), PCA(20).fit(x)

    def rows(images: Tensor) -> np.ndarray:
        return middles(images).double().numpy()

    def reconstruction(images: Tensor) -> Tensor:
        z = rows(images)
        return torch.from_numpy(((pca.inverse_transform(pca.transform(z)) - z) ** 2).sum(1))

    return {
        "LOF": lambda images: torch.from_numpy(-lof.score_samples(rows(images))),
        "k nearest neighbours": lambda images: torch.from_numpy(near.kneighbors(rows(images))[0].mean(1)),
        "PCA reconstruction": reconstruction,
        "complexity": zipped_bits,
    }
