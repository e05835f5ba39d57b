"""Data are UCI's bytes; scaling is exact and sees training rows alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmlib import datasets
from ebmlib.datasets import LogStandardize, digits, kfold, mixture, wine_quality

F64 = torch.float64


@pytest.mark.parametrize("color, n_rows, n_distinct", [("red", 1599, 1359), ("white", 4898, 3961)])
def test_wine_is_whole(color, n_rows, n_distinct):
    frame = wine_quality(color)
    assert frame.shape == (n_rows, 12)
    assert len(frame.drop_duplicates()) == n_distinct
    assert frame.columns[-1] == "quality" and not frame.isna().any().any()


def test_equal_wines_have_equal_grades():
    frame = wine_quality("red")
    assert (frame.groupby(list(frame.columns[:11]))["quality"].nunique() == 1).all()


def test_digits_are_whole():
    pixels, labels = digits()
    assert pixels.shape == (1797, 64) and labels.shape == (1797,)
    assert pixels.min() == 0 and pixels.max() == 16 and (pixels == pixels.round()).all()
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A copy of the package's data folder, which a test may damage."""
    source = Path(datasets.__file__)
    shutil.copytree(source.parent / "data", tmp_path / "data")
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / source.name))
    return tmp_path / "data"


def test_a_damaged_file_is_named(data_folder):
    path = data_folder / "winequality-red.csv"
    path.write_bytes(path.read_bytes().replace(b"7.4", b"7.5", 1))
    with pytest.raises(ValueError, match="winequality-red.csv is damaged: its SHA-256 is .*expected 4a402cf0"):
        wine_quality("red")


def test_a_missing_file_is_named(data_folder):
    (data_folder / "winequality-white.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"winequality-white.csv"):
        wine_quality("white")


def test_an_unknown_color_is_named():
    with pytest.raises(ValueError, match="'rose'"):
        wine_quality("rose")


@given(scale=st.floats(0.1, 100), shift=st.floats(0.5, 50))
def test_log_standardize_round_trip_and_jacobian(scale, shift):
    x = shift + scale * torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    transform = LogStandardize(x, log_columns=[0, 2])
    u = transform.forward(x)
    torch.testing.assert_close(transform.inverse(u), x)
    torch.testing.assert_close(u.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(u.std(0, correction=0), torch.ones(3, dtype=F64))
    one = lambda row: transform.forward(row[None])[0]  # noqa: E731
    jacobian = torch.stack([torch.autograd.functional.jacobian(one, row) for row in x[:3]])
    torch.testing.assert_close(transform.log_abs_det(x[:3]), torch.linalg.slogdet(jacobian).logabsdet)


def test_log_standardize_turns_densities():
    """A log-normal is a normal in u: both densities agree through log_abs_det."""
    normal = torch.distributions.LogNormal(torch.tensor(1.0, dtype=F64), torch.tensor(0.5, dtype=F64))
    x = normal.sample((500, 1))
    transform = LogStandardize(x, log_columns=[0])
    t = torch.distributions.Normal((1.0 - transform.mean) / transform.std, 0.5 / transform.std)
    log_prob = t.log_prob(transform.forward(x))[:, 0] + transform.log_abs_det(x)
    torch.testing.assert_close(log_prob, normal.log_prob(x)[:, 0])


def test_log_standardize_names_what_it_cannot_do():
    x = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    with pytest.raises(ValueError, match="column 1 holds 0.0"):
        LogStandardize(x, [1])
    with pytest.raises(ValueError, match="column 0 holds -1.0"):
        LogStandardize(x, [0]).forward(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match="column 1 is constant"):
        LogStandardize(torch.tensor([[1.0, 2.0], [2.0, 2.0]]))


def test_kfold_parts():
    splits = kfold(1359)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(1359))
    for split in splits:
        assert sorted(np.concatenate(split)) == list(range(1359))
        assert abs(len(split.validation) - len(split.test)) <= 1
    assert not np.array_equal(kfold(1359, seed=1)[0].test, splits[0].test)
    with pytest.raises(ValueError):
        kfold(5, n_folds=10)


def test_mixture_of_one_is_the_maximum_likelihood_gaussian():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.tensor([1.0, 2.0, 3.0])
    centred = x - x.mean(0)
    exact = torch.distributions.MultivariateNormal(x.mean(0), centred.T @ centred / len(x))
    torch.testing.assert_close(mixture(x, 1).log_prob(x), exact.log_prob(x), rtol=0, atol=1e-4)


def test_mixture_finds_two_clusters_and_keeps_the_dtype():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([8.0, 0.0]) * (
        torch.arange(400)[:, None] % 2
    )
    two = mixture(x, 2)
    assert two.sample((5,)).shape == (5, 2) and two.log_prob(x).dtype == x.dtype
    assert two.log_prob(x).mean() > mixture(x, 1).log_prob(x).mean() + 0.5


def test_the_pin_of_the_wine_benchmark():
    """A full Gaussian on nine parts of the duplicate-free red wines, tested on the tenth, standardised raw space."""
    x = torch.as_tensor(wine_quality("red").drop_duplicates().to_numpy()[:, :11])
    per_fold = []
    for split in kfold(len(x)):
        rest = np.concatenate([split.train, split.validation])
        scale = LogStandardize(x[rest])
        noise = mixture(scale.forward(x[rest]), 1)
        per_fold.append(noise.log_prob(scale.forward(x[split.test])).mean())
    assert torch.stack(per_fold).mean().item() == pytest.approx(-13.22, abs=0.01)
