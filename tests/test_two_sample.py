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


def test_a_narrower_set_is_found():
    assert neighbour_test(normal(300, 11, seed=0), 0.6 * normal(300, 11, seed=1)).z > 5


@pytest.mark.parametrize(
    "x, y, k, message",
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), 1, "must be"),
        (torch.zeros(5), torch.zeros(5), 1, "must be"),
        (torch.full((5, 2), math.nan), torch.zeros(5, 2), 1, "NaN"),
        (torch.zeros(5, 2), torch.zeros(5, 2), 10, "k must be between 1 and 9"),
    ],
)
def test_bad_sets_are_refused(x, y, k, message):
    with pytest.raises(ValueError, match=message):
        neighbour_test(x, y, k)
