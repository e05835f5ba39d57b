"""The nearest-neighbour test keeps its level under one distribution, and finds two."""

import math

import pytest
import torch

from ebmlib.two_sample import neighbour_test


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_neighbours_counted_by_hand():
    """On a line at 0, 1, 3 (x) and 3.5, 10 (y): the nearest are 1, 0, 3.5, 3 and 3.5: three of five are their own."""
    x, y = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[3.5], [10.0]])
    result = neighbour_test(x, y, k=1)
    assert result.share == pytest.approx(3 / 5)
    assert result.expected == pytest.approx((3 * 2 + 2 * 1) / 20)


def test_sets_that_are_far_apart_keep_to_themselves():
    result = neighbour_test(normal(40, 3, seed=0), 100 + normal(40, 3, seed=1), n_shuffles=99)
    assert result.share == 1 and result.z > 10 and result.p_value == 1 / 100


def test_under_one_distribution_z_is_standard_and_the_p_value_uniform():
    n = 300
    results = [
        neighbour_test(
            normal(40, 4, seed=3 * i), normal(60, 4, seed=3 * i + 1), 5, 99, torch.Generator().manual_seed(i)
        )
        for i in range(n)
    ]
    z = torch.tensor([r.z for r in results])
    assert abs(z.mean()) < 4 / n**0.5, f"mean z {z.mean()}: a false alarm has chance 6e-5"
    assert abs(z.std() - 1) < 0.25  # the deviation of 99 shuffles adds 7 %
    for alpha in (0.05, 0.5):
        share = sum(r.p_value <= alpha for r in results) / n
        assert share < alpha + 4 * math.sqrt(alpha * (1 - alpha) / n), f"p ≤ {alpha} in a share {share}"


def test_the_p_value_keeps_its_level_where_distances_tie():
    """Points on four corners: were ties broken by row number, p ≤ 0.2 would have a share of 0.6."""
    n, g = 300, torch.Generator().manual_seed(0)
    corners = [(torch.rand(60, 2, generator=g) < 0.5).float() for _ in range(n)]
    p_values = [neighbour_test(d[:15], d[15:], n_shuffles=39, generator=g).p_value for d in corners]
    for alpha in (0.05, 0.2):
        share = sum(p <= alpha for p in p_values) / n
        assert share < alpha + 4 * math.sqrt(alpha * (1 - alpha) / n), f"p ≤ {alpha} in a share {share}"


def test_the_origin_plays_no_part_in_single_precision():
    x, y = normal(40, 3, seed=0), 2 + normal(40, 3, seed=1)
    near, far = (neighbour_test((x + shift).float(), (y + shift).float(), n_shuffles=9) for shift in (0, 1e4))
    assert far.share == pytest.approx(near.share, abs=0.02)  # rows are rounded to a thousandth


def test_a_narrower_set_is_found():
    assert neighbour_test(normal(300, 11, seed=0), 0.6 * normal(300, 11, seed=1)).z > 5


@pytest.mark.parametrize(
    "x, y, k, message",
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), 1, "must be"),
        (torch.zeros(5), torch.zeros(5), 1, "must be"),
        (torch.zeros(5, 2), torch.zeros(0, 2), 1, r"neither empty; got \(5, 2\) and \(0, 2\)"),
        (torch.zeros(0, 2), torch.zeros(5, 2), 1, "neither empty"),
        (torch.full((5, 2), math.nan), torch.zeros(5, 2), 1, "NaN"),
        (torch.zeros(5, 2), torch.zeros(5, 2), 10, "k must be between 1 and 9"),
    ],
)
def test_bad_sets_are_refused(x, y, k, message):
    with pytest.raises(ValueError, match=message):
        neighbour_test(x, y, k)
