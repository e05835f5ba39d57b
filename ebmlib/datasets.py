"""Data: the wine files, scikit-learn's digits, scaling fitted on training rows alone, splits, and mixtures as noise."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

if TYPE_CHECKING:
    import pandas as pd

SHA256 = {
    "red": "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
    "white": "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
}


def wine_quality(color: str = "red") -> "pd.DataFrame":
    """Return the UCI Wine Quality table: eleven measurements and the grade, a wine a row, in UCI's order and units.

    Args:
        color: `"red"` (1,599 rows) or `"white"` (4,898 rows).

    Raises:
        ValueError: if the colour is unknown or the file is not UCI's original.
        FileNotFoundError: if the file is missing, as where this module was copied without it.

    Source: Cortez, Cerdeira, Almeida, Matos and Reis (2009), CC BY 4.0, doi 10.24432/C56S3T.
    """
    import pandas as pd

    if color not in SHA256:
        raise ValueError(f"color must be one of {list(SHA256)}; got {color!r}")
    path = Path(__file__).parent / "data" / f"winequality-{color}.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: copy ebmlib/data/{path.name} there, into a folder data beside the code"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[color]:
        raise ValueError(f"{path.name} is damaged: its SHA-256 is {digest}, expected {SHA256[color]}")
    return pd.read_csv(io.BytesIO(content), sep=";")


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's handwritten digits: pixels `(1797, 64)`, 0 to 16, row by row of 8x8, and labels `(1797,)`.

    These are the test part of the UCI data set by Alpaydin and Kaynak (1998), CC BY 4.0, doi 10.24432/C50P49.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.get_default_dtype()), torch.tensor(labels)


class LogStandardize:
    """Invertible scaling, u = (t(x) - mean) / std; t is the logarithm in the named columns, the identity elsewhere.

    Mean and standard deviation (divisor n) come from the rows given here: give training rows, never test rows.
    A density over u becomes one over x by log p(x) = log p(u) + log_abs_det(x).

    Args:
        x: rows to fit, shape `(n, dim)`, in single or double precision, positive in the log columns.
        log_columns: indices of the columns to take logarithms of.

    Raises:
        ValueError: if shape or precision is another, a value is NaN, infinite or, in a log column, not positive, or a
            column is constant: its smallest and largest t are equal, or but a few units in the last place apart.
    """

    def __init__(self, x: Tensor, log_columns: Sequence[int] = ()):
        if x.ndim != 2 or len(x) == 0:
            raise ValueError(f"x must be (n, dim) with a row at least; got {tuple(x.shape)}")
        self.is_log = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        self.is_log[list(log_columns)] = True
        t = self._log(x)
        self.mean, self.std = t.mean(0), t.std(0, correction=0)
        # Values a few units in the last place apart are the rounding of a constant; std, rounded too, need not be zero.
        rounding = 4 * torch.finfo(t.dtype).eps * t.abs().amax(0)
        varies = (t.amax(0) - t.amin(0) > rounding) & (self.std > 0)
        fits = self.mean.isfinite() & self.std.isfinite()
        if not (varies & fits).all():
            column = int(torch.nonzero(~(varies & fits))[0])
            low, high = x[:, column].min().item(), x[:, column].max().item()
            why = "is constant" if fits[column] else "is too large"
            raise ValueError(f"column {column} {why} for {x.dtype}, from {low} to {high}: it cannot be standardised")

    def _require(self, good: Tensor, x: Tensor, name: str) -> None:
        if not good.all():
            row, column = torch.nonzero(~good)[0].tolist()
            wants = ("positive and " if self.is_log[column] else "") + "finite"
            raise ValueError(f"row {row}, column {column} holds {x[row, column].item()}: {name} must be {wants}")

    def _matches(self, x: Tensor, name: str) -> None:
        if x.ndim != 2 or x.shape[1] != len(self.is_log) or x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} must be (n, {len(self.is_log)}), float32 or float64; got {tuple(x.shape)}, {x.dtype}"
            )

    def _log(self, x: Tensor) -> Tensor:
        self._matches(x, "x")
        # The ones stand where no logarithm is used, and keep NaN out of the gradient.
        t = torch.where(self.is_log, torch.where(self.is_log, x, 1).log(), x)
        self._require(t.isfinite(), x, "x")
        return t

    def forward(self, x: Tensor) -> Tensor:
        """Return u, shape `(n, dim)`."""
        return (self._log(x) - self.mean) / self.std

    def inverse(self, u: Tensor) -> Tensor:
        """Return x, shape `(n, dim)`; an error names a u whose x is not finite or, in a log column, rounds to zero."""
        self._matches(u, "u")
        t = u * self.std + self.mean
        x = torch.where(self.is_log, torch.where(self.is_log, t, 0).exp(), t)
        self._require(x.isfinite() & ((x > 0) | ~self.is_log), u, "its x")
        return x

    def log_abs_det(self, x: Tensor) -> Tensor:
        """Return the log of the absolute determinant of ∂u/∂x at x, in nats, shape `(n,)`."""
        return -self._log(x)[:, self.is_log].sum(1) - self.std.log().sum()


class Split(NamedTuple):
    """Row numbers of one fold."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def kfold(n_rows: int, n_folds: int = 10, seed: int = 0) -> list[Split]:
    """Return `n_folds` splits of shuffled rows: a part tests, as many of the rest validate, the others train.

    Args:
        n_rows: number of rows; remove duplicate rows first, or they stand in training and test at once.
        n_folds: number of parts, three at least: one to test, one to validate, one to train.
        seed: of the shuffle; fold k draws its validation rows with seed k.

    Raises:
        ValueError: if there are fewer rows than folds, or fewer than three folds.
    """
    from sklearn.model_selection import KFold, train_test_split

    if not 3 <= n_folds <= n_rows:
        raise ValueError(f"n_folds must be 3 or more and at most n_rows; got n_folds = {n_folds}, n_rows = {n_rows}")
    splits = []
    for k, (rest, test) in enumerate(KFold(n_folds, shuffle=True, random_state=seed).split(np.arange(n_rows))):
        n_validation = -(-len(rest) // (n_folds - 1))
        train, validation = train_test_split(rest, test_size=n_validation, random_state=k)
        splits.append(Split(train, validation, test))
    return splits


def mixture(x: Tensor, n_components: int, seed: int = 0) -> MixtureSameFamily:
    """Return a full-covariance Gaussian mixture fitted to x by EM, as a distribution on x's device.

    A millionth of a column's variance is added to each component's, so that none collapses. The law follows the units
    of x: a mixture of c·x is that of x, scaled by c.

    Args:
        x: rows to fit, shape `(n, dim)`, in single or double precision; more rows than components, no constant column.
        n_components: number of Gaussians; 1 gives the Gaussian of maximum likelihood.
        seed: of the initialisation by k-means.

    Raises:
        ValueError: if x is another, has a value that is not finite, or fewer different rows than components.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    LogStandardize(x)  # raises what is said above
    rows = x.detach().double().cpu().numpy()
    mean, std = rows.mean(0), rows.std(0)
    z = (rows - mean) / std
    # k-means sees the columns as they are, but for powers of two that bring them to about one scale.
    balanced = rows / 2.0 ** np.round(np.log2(std / np.exp(np.log(std).mean())))
    labels = KMeans(n_components, n_init=1, random_state=seed).fit(balanced).labels_
    groups = [z[labels == k] for k in range(n_components)]
    if not all(map(len, groups)):
        raise ValueError(f"{n_components} components need as many different rows; got fewer among {len(z)}")
    ridge = 1e-6 * np.eye(z.shape[1])
    fit = GaussianMixture(
        n_components,
        reg_covar=1e-6,
        init_params="random",  # without effect: all three are given
        random_state=seed,
        weights_init=[len(group) / len(z) for group in groups],
        means_init=[group.mean(0) for group in groups],
        precisions_init=[np.linalg.inv(np.atleast_2d(np.cov(group.T, bias=True)) + ridge) for group in groups],
    ).fit(z)
    factors = std[:, None] * np.linalg.cholesky(fit.covariances_)
    weights, means, factors = (torch.from_numpy(a).to(x) for a in (fit.weights_, mean + std * fit.means_, factors))
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, scale_tril=factors))
