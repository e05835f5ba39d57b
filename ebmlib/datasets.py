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
        FileNotFoundError: if the file is missing.

    Source: Cortez, Cerdeira, Almeida, Matos and Reis (2009), CC BY 4.0, doi 10.24432/C56S3T.
    """
    import pandas as pd

    if color not in SHA256:
        raise ValueError(f"color must be one of {list(SHA256)}; got {color!r}")
    path = Path(__file__).parent / "data" / f"winequality-{color}.csv"
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
        x: rows to fit, shape `(n, dim)`, positive in the log columns.
        log_columns: indices of the columns to take logarithms of.

    Raises:
        ValueError: if a log column holds a value that is not positive, or a column is constant.
    """

    def __init__(self, x: Tensor, log_columns: Sequence[int] = ()):
        self.is_log = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        self.is_log[list(log_columns)] = True
        t = self._log(x)
        self.mean, self.std = t.mean(0), t.std(0, correction=0)
        if not (self.std > 0).all():
            raise ValueError(f"column {int(torch.nonzero(~(self.std > 0))[0])} is constant: it cannot be standardised")

    def _log(self, x: Tensor) -> Tensor:
        if not (x[:, self.is_log] > 0).all():
            column = int(torch.nonzero(self.is_log & ~(x > 0).all(0))[0])
            raise ValueError(f"column {column} holds {x[:, column].min().item()}: its logarithm needs positive values")
        # The clamp touches only columns whose logarithm is not used, and keeps NaN out of their gradient.
        return torch.where(self.is_log, x.clamp_min(torch.finfo(x.dtype).tiny).log(), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return u, shape `(n, dim)`."""
        return (self._log(x) - self.mean) / self.std

    def inverse(self, u: Tensor) -> Tensor:
        """Return x, shape `(n, dim)`."""
        t = u * self.std + self.mean
        return torch.where(self.is_log, t.exp(), t)

    def log_abs_det(self, x: Tensor) -> Tensor:
        """Return the log of the absolute determinant of ∂u/∂x at x, in nats, shape `(n,)`."""
        return -self._log(x)[:, self.is_log].sum(1) - self.std.log().sum()


class Split(NamedTuple):
    """Row numbers of one fold."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def kfold(n_rows: int, n_folds: int = 10, seed: int = 0) -> list[Split]:
    """Return `n_folds` splits of shuffled rows: a part tests, a ninth of the rest validates (for ten folds: a part).

    Args:
        n_rows: number of rows; remove duplicate rows first, or they stand in training and test at once.
        n_folds: number of parts.
        seed: of the shuffle; fold k draws its validation rows with seed k.

    Raises:
        ValueError: if there are fewer rows than folds, or fewer than two folds.
    """
    from sklearn.model_selection import KFold, train_test_split

    splits = []
    for k, (rest, test) in enumerate(KFold(n_folds, shuffle=True, random_state=seed).split(np.arange(n_rows))):
        train, validation = train_test_split(rest, test_size=1 / (n_folds - 1), random_state=k)
        splits.append(Split(train, validation, test))
    return splits


def mixture(x: Tensor, n_components: int, seed: int = 0) -> MixtureSameFamily:
    """Return a full-covariance Gaussian mixture fitted to x by EM, as a distribution on x's device.

    Args:
        x: rows to fit, shape `(n, dim)`; more rows than components.
        n_components: number of Gaussians; 1 gives the Gaussian of maximum likelihood.
        seed: of scikit-learn's initialisation.
    """
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(n_components, random_state=seed).fit(x.double().cpu().numpy())
    weights, means, factors = (
        torch.as_tensor(a).to(x) for a in (fit.weights_, fit.means_, np.linalg.cholesky(fit.covariances_))
    )
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, scale_tril=factors))
