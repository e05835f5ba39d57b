"""Data are UCI's bytes; scaling is exact and sees training rows alone."""

import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture

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
    with pytest.raises(
        FileNotFoundError, match=r"winequality-white.csv is missing: copy ebmlib/data/winequality-white"
    ):
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
    with pytest.raises(ValueError, match="row 1, column 1 holds 0.0: x must be positive"):
        LogStandardize(x, [1])
    with pytest.raises(ValueError, match="row 0, column 0 holds -1.0: x must be positive"):
        LogStandardize(x, [0]).forward(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match="column 1 is constant"):
        LogStandardize(torch.tensor([[1.0, 2.0], [2.0, 2.0]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row, column", [(0, 0), (3, 1), (39, 2)])
def test_log_standardize_names_row_and_column_of_what_is_not_finite(bad, row, column):
    x = 1 + torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    transform = LogStandardize(x, [1])
    broken = x.index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(bad, dtype=F64))
    for call in (lambda x: LogStandardize(x, [1]), transform.forward, transform.inverse, transform.log_abs_det):
        with pytest.raises(ValueError, match=f"row {row}, column {column} holds {bad}"):
            call(broken)


def test_an_inverse_beyond_the_precision_is_named():
    transform = LogStandardize(torch.tensor([[1.0, 1.0], [2.0, 3.0]]), [0])
    for value in (500.0, -500.0):
        with pytest.raises(ValueError, match=f"row 1, column 0 holds {value}: its x must be positive and finite"):
            transform.inverse(torch.tensor([[0.0, 0.0], [value, 0.0]]))


@pytest.mark.parametrize("value", [0.1, 1e-8, -3e5, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_constant_is_seen_whatever_its_standard_deviation_rounds_to(value, dtype):
    x = torch.full((1000, 1), value, dtype=dtype)
    with pytest.raises(ValueError, match="column 0 is constant"):
        LogStandardize(x)
    for step in (1, 3, 999):
        x[::step] = torch.nextafter(x[0], torch.tensor(math.inf, dtype=dtype))
        with pytest.raises(ValueError, match="column 0 is constant"):
            LogStandardize(x)


def test_a_column_whose_logarithm_is_constant_is_seen():
    x = torch.tensor([[1e8], [1e8 + 8]])
    assert x[0] != x[1] and x[0].log() == x[1].log()
    with pytest.raises(ValueError, match="column 0 is constant"):
        LogStandardize(x, [0])


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_small_and_large_scales_are_standardised(scale):
    x = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    u = LogStandardize(scale * x).forward(scale * x)
    torch.testing.assert_close(u, LogStandardize(x).forward(x), rtol=1e-5, atol=1e-5)


def test_a_column_whose_mean_is_beyond_the_precision_is_named():
    with pytest.raises(ValueError, match="column 0 is too large for torch.float32"):
        LogStandardize(torch.tensor([[2e38], [3e38], [3e38]]))


def test_a_denormal_number_keeps_its_logarithm():
    x = torch.tensor([[1e-40], [1.0], [2.0]])
    transform = LogStandardize(x, [0])
    assert (transform.forward(x) * transform.std + transform.mean)[0].item() == pytest.approx(math.log(1e-40), rel=1e-5)


def test_large_values_of_a_column_without_logarithm_leave_its_gradient_alone():
    transform = LogStandardize(torch.tensor([[1.0, 100.0], [2.0, 300.0]]), [0])
    u = torch.tensor([[0.0, 1.0]], requires_grad=True)
    transform.inverse(u).sum().backward()
    assert u.grad[0, 1].item() == 100.0 and u.grad.isfinite().all()


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, 2).int(), torch.rand(3, 2).half(), torch.rand(3, 2).bfloat16(), torch.rand(3), torch.empty(0, 2)],
    ids=["integers", "float16", "bfloat16", "vector", "empty"],
)
def test_log_standardize_refuses_other_shapes_and_precisions(x):
    with pytest.raises(ValueError, match="x must be "):
        LogStandardize(x)
    transform = LogStandardize(torch.rand(9, 2))
    if len(x):
        for call, name in ((transform.forward, "x"), (transform.inverse, "u"), (transform.log_abs_det, "x")):
            with pytest.raises(ValueError, match=rf"{name} must be \(n, 2\), float32 or float64; got "):
                call(x)


def test_one_column_is_not_spread_over_all_and_no_row_is_no_error():
    transform = LogStandardize(torch.rand(9, 2), [1])
    with pytest.raises(ValueError, match=r"x must be \(n, 2\).*got \(5, 1\)"):
        transform.forward(torch.rand(5, 1))
    empty = torch.empty(0, 2)
    assert transform.forward(empty).shape == transform.inverse(empty).shape == (0, 2)
    assert transform.log_abs_det(empty).shape == (0,)


def test_kfold_parts():
    splits = kfold(1359)
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(1359))
    for split in splits:
        assert sorted(np.concatenate(split)) == list(range(1359))
        assert abs(len(split.validation) - len(split.test)) <= 1
    assert not np.array_equal(kfold(1359, seed=1)[0].test, splits[0].test)


@pytest.mark.parametrize("n_rows, n_folds", [(20, 2), (20, 1), (20, 0), (5, 10), (0, 10), (2, 3)])
def test_kfold_names_a_number_of_folds_that_leaves_a_part_empty(n_rows, n_folds):
    with pytest.raises(ValueError, match=f"n_folds must be 3 or more .* got n_folds = {n_folds}, n_rows = {n_rows}"):
        kfold(n_rows, n_folds)


@pytest.mark.parametrize("n_rows, n_folds", [(3, 3), (10, 10), (4, 3), (50, 50), (1359, 10), (101, 7)])
def test_every_part_of_every_fold_has_rows(n_rows, n_folds):
    for split in kfold(n_rows, n_folds):
        assert sorted(np.concatenate(split)) == list(range(n_rows))
        assert min(map(len, split)) >= 1 and len(split.validation) == math.ceil(
            (n_rows - len(split.test)) / (n_folds - 1)
        )


def test_mixture_of_one_is_the_maximum_likelihood_gaussian():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.tensor([1.0, 2.0, 3.0])
    centred = x - x.mean(0)
    exact = torch.distributions.MultivariateNormal(x.mean(0), centred.T @ centred / len(x))
    torch.testing.assert_close(mixture(x, 1).log_prob(x), exact.log_prob(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("c", [1e-12, 1e-3, 7.0, 1e9])
@pytest.mark.parametrize("n_components", [1, 3])
def test_a_mixture_follows_the_units_of_its_data(c, n_components):
    x = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.tensor([1.0, 3.0])
    x = x + 8 * (torch.arange(1500)[:, None] % 3)
    in_other_units = mixture(c * x, n_components).log_prob(c * x) + 2 * math.log(c)
    torch.testing.assert_close(in_other_units, mixture(x, n_components).log_prob(x), rtol=0, atol=1e-9)


def test_variances_of_small_columns_are_right():
    """Scikit-learn alone adds 1e-6 to each variance, whatever its unit: twice too much for the first column here."""
    c = torch.tensor([1e-3, 1.0, 1e3], dtype=F64)
    x = c * torch.randn(5000, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    fitted = mixture(x, 1).component_distribution.covariance_matrix[0]
    torch.testing.assert_close(
        fitted / (c[:, None] * c), torch.cov(x.T, correction=0) / (c[:, None] * c), rtol=2e-6, atol=1e-9
    )


@pytest.mark.parametrize("n_components", [1, 5])
def test_on_standardised_columns_a_mixture_is_scikit_learns(n_components):
    x = torch.as_tensor(wine_quality("red").to_numpy()[:, :11])
    u = LogStandardize(x).forward(x)
    theirs = GaussianMixture(n_components, random_state=3).fit(u.numpy()).score_samples(u.numpy())
    torch.testing.assert_close(mixture(u, n_components, seed=3).log_prob(u), torch.as_tensor(theirs), rtol=0, atol=1e-9)


def test_a_mixture_names_what_it_cannot_fit():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="row 4, column 1 holds nan"):
        mixture(x.index_put((torch.tensor(4), torch.tensor(1)), torch.tensor(math.nan)), 2)
    with pytest.raises(ValueError, match="column 0 is constant"):
        mixture(torch.cat([torch.ones(30, 1), x], 1), 2)
    with pytest.raises(ValueError, match="float16"):
        mixture(x.half(), 2)
    with pytest.raises(ValueError, match="3 components need as many different rows"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # k-means says so, too
        mixture(x[:2].repeat(9, 1), 3)
    with pytest.raises(ValueError, match="n_samples=2"):
        mixture(x[:2], 3)


def test_a_mixture_stays_with_its_data_whatever_the_default_device_is():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    with torch.device("meta"):
        fitted, scale = mixture(x, 2), LogStandardize(x)
        assert fitted.log_prob(x).device == x.device and scale.inverse(scale.forward(x)).device == x.device
    torch.testing.assert_close(fitted.log_prob(x), mixture(x, 2).log_prob(x))


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
