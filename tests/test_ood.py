"""The conformal promise holds where the naive quantile breaks it; the report agrees with definitions written out."""

import math

import pytest
import torch
from scipy import stats

from ebmlib.ood import _measures, conformal_threshold, evaluate_ood, two_sided


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def false_alarms(threshold, n: int, n_sets: int = 10_000) -> torch.Tensor:
    """Return the exact rate of false alarms of each of many calibration sets of standard normal energies."""
    thresholds = torch.tensor([threshold(e) for e in normal(n_sets, n)], dtype=torch.float64)
    return torch.special.ndtr(-thresholds)


@pytest.mark.parametrize("n, alpha", [(200, 0.05), (19, 0.05), (100, 0.3)])
def test_the_mean_rate_of_false_alarms_is_the_promised_one(n, alpha):
    k = math.ceil(round((n + 1) * (1 - alpha), 9))
    rates = false_alarms(lambda e: conformal_threshold(e, alpha), n)
    z = (rates.mean() - (1 - k / (n + 1))) / (rates.std() / len(rates) ** 0.5)
    assert abs(z) < 4, f"{rates.mean()} is {z} standard errors off: a false alarm has chance 6e-5"


def test_the_naive_quantile_breaks_the_promise():
    rates = false_alarms(lambda e: e.quantile(0.95), 200)
    z = (rates.mean() - 10 / 201) / (rates.std() / len(rates) ** 0.5)
    assert z > 4, f"the naive quantile is only {z} standard errors above"


def test_the_rates_of_single_sets_follow_the_beta_distribution():
    rates = false_alarms(lambda e: conformal_threshold(e, 0.05), 200)
    assert stats.kstest(rates.numpy(), stats.beta(10, 191).cdf).pvalue > 1e-4
    assert stats.kstest(rates.numpy(), stats.beta(11, 190).cdf).pvalue < 1e-4, "the test has no power"


def test_threshold_is_the_kth_smallest_energy():
    e = torch.arange(1.0, 20.0)[torch.randperm(19)]
    assert conformal_threshold(e, 0.05) == 19.0
    assert conformal_threshold(e, 0.1) == 18.0
    assert conformal_threshold(e, 0.5) == 10.0


@pytest.mark.parametrize("n, alpha, k", [(99, 0.29, 71), (99, 0.07, 93), (9, 0.1, 9), (999, 0.001, 999)])
def test_alpha_is_what_is_written(n, alpha, k):
    """Rounding in (n + 1)(1 - α) must not cost a place: 100 · 0.29 is 28.999… in floating point."""
    assert conformal_threshold(torch.arange(1, n + 1), alpha) == k


def test_a_computed_alpha_is_the_number_that_was_meant():
    e = torch.arange(1, 10_001)
    assert conformal_threshold(e[:9], 1 - 0.9) == 9 and conformal_threshold(e[:19], 1 - 0.9) == 18
    for i in range(1, 1000):
        meant = conformal_threshold(e[:999], i / 1000)
        assert meant == 1000 - i
        sums = [1 - (1 - i / 1000), sum([0.001] * i), (1 - (1000 - i) * 0.001), 0.3 + i / 1000 - 0.3, i * 1e-3]
        assert {conformal_threshold(e[:999], alpha) for alpha in sums} == {meant}, f"alpha = {i}/1000"


def test_fractions_that_no_decimal_writes_have_their_rank():
    e = torch.arange(1, 1000)
    for q in range(2, 60):
        for p in range(1, q):
            assert conformal_threshold(e[: q - 1], p / q) == q - p


def test_an_alpha_near_a_fraction_is_not_taken_for_it():
    e = torch.arange(1, 10)
    assert conformal_threshold(e, 0.2 + 1e-12) == 8 and conformal_threshold(e, 0.2 - 1e-12) == 9
    assert conformal_threshold(e, 1 - 1e-9) == 1, "the rate allowed is not one"
    with pytest.raises(ValueError, match="needs at least 14285714 calibration energies"):
        conformal_threshold(e, 7e-8)


def test_the_default_device_plays_no_part():
    e_in, e_out = normal(60), 1 + normal(60, seed=1)
    expected = conformal_threshold(e_in, 0.1), evaluate_ood(e_in, e_out, n_bootstrap=40)
    with torch.device("meta"):
        assert (conformal_threshold(e_in, 0.1), evaluate_ood(e_in, e_out, n_bootstrap=40)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.float32])
def test_other_precisions_are_exact(dtype):
    e_in, e_out = (10 * normal(60)).to(dtype), (5 + 10 * normal(60, seed=1)).to(dtype)
    assert conformal_threshold(e_in, 0.1) == e_in.double().sort().values[54]
    assert evaluate_ood(e_in, e_out, 40) == evaluate_ood(e_in.double(), e_out.double(), 40)


def test_ties_only_lower_the_rate():
    threshold = conformal_threshold(torch.tensor([1.0] * 10 + [2.0] * 30), 0.5)
    assert threshold == 2.0


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        conformal_threshold(normal(50), alpha)


def test_too_few_calibration_energies_are_refused():
    with pytest.raises(ValueError, match="needs at least 99 calibration energies; got 98"):
        conformal_threshold(normal(98), 0.01)
    assert conformal_threshold(normal(99), 0.01) == normal(99).max()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_energies_that_are_not_finite_are_refused(bad):
    e = normal(50)
    e[7] = bad
    with pytest.raises(ValueError, match=f"energies row 7 is {bad}"):
        conformal_threshold(e, 0.1)
    with pytest.raises(ValueError, match=f"energies_in row 7 is {bad}"):
        evaluate_ood(e, normal(50))
    with pytest.raises(ValueError, match=f"energies_out row 7 is {bad}"):
        evaluate_ood(normal(50), e)


def test_empty_sets_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"energies must be \(n,\)"):
        conformal_threshold(torch.empty(0), 0.1)
    with pytest.raises(ValueError, match="energies_out must be .* not empty"):
        evaluate_ood(normal(50), torch.empty(0))
    with pytest.raises(ValueError, match="energies_in must be .* not empty"):
        evaluate_ood(torch.empty(0), normal(50))
    with pytest.raises(ValueError, match=r"energies_out must be .* got \(5, 10\)"):
        evaluate_ood(normal(50), normal(5, 10))
    with pytest.raises(ValueError, match="n_bootstrap must be at least 40"):
        evaluate_ood(normal(50), normal(50), n_bootstrap=10)


def test_report_agrees_with_the_definitions():
    e_in, e_out = normal(200), 1.5 + normal(80, seed=1)
    e_out[:5] = e_in[:5]  # ties
    report = evaluate_ood(e_in, e_out, n_bootstrap=40)
    pairs = (e_out[:, None] > e_in).double() + 0.5 * (e_out[:, None] == e_in)
    assert report.auroc == pytest.approx(pairs.mean().item(), abs=1e-12)
    accepts_95 = e_in.sort().values[math.ceil(0.95 * 200) - 1]
    assert report.fpr95 == pytest.approx((e_out <= accepts_95).double().mean().item(), abs=1e-12)
    levels = torch.cat([e_in, e_out]).unique().flip(0)
    recall = torch.stack([(e_out >= t).double().mean() for t in levels])
    precision = torch.stack([(e_out >= t).sum() / ((e_out >= t).sum() + (e_in >= t).sum()) for t in levels])
    steps = torch.diff(recall, prepend=torch.zeros(1))
    assert report.aupr == pytest.approx((steps * precision).sum().item(), abs=1e-6)


@pytest.mark.parametrize("n_in", [136, 20, 19, 7])
def test_fpr95_accepts_at_least_95_percent(n_in):
    e_in, e_out = normal(n_in), 1 + normal(500, seed=1)
    accepts_95 = e_in.sort().values[math.ceil(0.95 * n_in) - 1]
    expected = (e_out <= accepts_95).double().mean().item()
    assert evaluate_ood(e_in, e_out, n_bootstrap=40).fpr95 == pytest.approx(expected, abs=1e-12)


def test_fpr95_accepts_at_least_95_percent_of_a_million():
    """A share of 5 % and a millionth would accept one alarm too many."""
    e_in = torch.arange(1_000_000.0, dtype=torch.float64)
    e_out = torch.tensor([949_998.5, 949_999.5])  # 949,999 is the 950,000th smallest
    assert _measures(e_in, e_out)[2] == 0.5


def test_the_order_of_the_energies_is_all_that_counts():
    e_in, e_out = normal(100), 1 + normal(100, seed=1)
    report = evaluate_ood(e_in, e_out, n_bootstrap=40)
    assert evaluate_ood(3 * e_in - 7, 3 * e_out - 7, n_bootstrap=40) == report
    assert evaluate_ood(-e_in, -e_out, n_bootstrap=40).auroc == pytest.approx(1 - report.auroc)


def test_extremes():
    apart = evaluate_ood(normal(50), 100 + normal(50), n_bootstrap=40)
    assert (apart.auroc, apart.aupr, apart.fpr95) == (1, 1, 0)
    assert apart.auroc_interval == (1, 1)
    constant = evaluate_ood(torch.zeros(50), torch.zeros(50), n_bootstrap=40)
    assert (constant.auroc, constant.aupr, constant.fpr95) == (0.5, 0.5, 1)


def test_the_interval_is_as_wide_as_repeated_experiments_vary():
    report = evaluate_ood(normal(400), 1 + normal(300, seed=1), n_bootstrap=400)
    repeats = torch.stack(
        [(1 + normal(300, seed=2 * i + 11)[:, None] > normal(400, seed=2 * i + 10)).double().mean() for i in range(400)]
    )
    low, high = report.auroc_interval
    assert low < report.auroc < high
    assert (high - low) / (2 * 1.96 * repeats.std().item()) == pytest.approx(1, abs=0.25)
    truth = torch.special.ndtr(torch.tensor(0.5**0.5)).item()
    assert repeats.mean().item() == pytest.approx(truth, abs=4 * repeats.std().item() / 20)


def test_equal_seeds_give_equal_intervals():
    e_in, e_out = normal(60), 1 + normal(60, seed=1)
    assert evaluate_ood(e_in, e_out, n_bootstrap=40) == evaluate_ood(e_in, e_out, n_bootstrap=40)
    other = evaluate_ood(e_in, e_out, n_bootstrap=40, seed=1)
    assert other.auroc == evaluate_ood(e_in, e_out, n_bootstrap=40).auroc
    assert other.auroc_interval != evaluate_ood(e_in, e_out, n_bootstrap=40).auroc_interval


def test_two_sided_bounds_keep_the_promise_on_both_sides():
    bounds = torch.tensor([two_sided(e, 0.1) for e in normal(5_000, 200)], dtype=torch.float64)
    promised = 1 - math.ceil(201 * 0.95) / 201
    for rates in (torch.special.ndtr(bounds[:, 0]), torch.special.ndtr(-bounds[:, 1])):
        z = (rates.mean() - promised) / (rates.std() / len(rates) ** 0.5)
        assert abs(z) < 4, f"{rates.mean()} is {z} standard errors off"
    assert two_sided(torch.arange(1.0, 40.0), 0.1) == (2.0, 38.0)
    with pytest.raises(ValueError, match="needs at least 39 calibration energies; got 38"):
        two_sided(normal(38), 0.05)


def test_groups_of_one_row_each_change_nothing():
    e_in, e_out = normal(60), 1 + normal(40, seed=1)
    alone = torch.arange(60), 60 + torch.arange(40)
    assert evaluate_ood(e_in, e_out, 40, groups=alone) == evaluate_ood(e_in, e_out, 40)


def paired(n: int, copies: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return energies of wines, of copies of them half a nat higher but for a little noise, and the wines' numbers."""
    wines = normal(n, seed=seed)
    labels = torch.arange(n)
    out = wines.repeat(copies) + 0.5 + 0.1 * normal(n * copies, seed=seed + 1)
    return wines, out, (labels, labels.repeat(copies))


def test_the_interval_of_pairs_is_that_of_repeated_experiments():
    """Drawn apart, wines and their own copies would seem to differ by chance, and do not: far too wide an interval."""
    e_in, e_out, labels = paired(150, copies=5, seed=0)
    spread = torch.tensor([_measures(*paired(150, 5, seed=2 * i + 10)[:2])[0] for i in range(200)]).std().item()
    together, apart = evaluate_ood(e_in, e_out, groups=labels), evaluate_ood(e_in, e_out)
    assert together[:3] == apart[:3]
    widths = [(r.auroc_interval[1] - r.auroc_interval[0]) / (2 * 1.96) for r in (together, apart)]
    assert widths[0] / spread == pytest.approx(1, abs=0.3)
    assert widths[1] / spread > 1.5, "the test has no power"


def test_each_kind_of_group_keeps_its_number():
    """All energies tie, so that the AUPR is the share of OOD: 20 of 70 in each resampling."""
    groups = torch.arange(50), torch.arange(40, 60)  # 40 normal, 10 of both, 10 OOD
    report = evaluate_ood(torch.zeros(50), torch.zeros(20), 40, groups=groups)
    assert report.aupr_interval == pytest.approx((2 / 7, 2 / 7))


def test_groups_of_other_shapes_are_refused():
    with pytest.raises(
        ValueError, match=r"groups must be \(50,\) and \(40,\), one label a row; got \(50,\) and \(39,\)"
    ):
        evaluate_ood(normal(50), normal(40), groups=(torch.arange(50), torch.arange(39)))
