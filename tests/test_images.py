import math

import pytest
import torch

from ebmlib.images import LogitPixels


def test_pixels_come_back():
    space = LogitPixels(17)
    pixels = torch.arange(17.0, dtype=torch.float64).expand(300, 17)
    v = space.pixels(space.dequantize(pixels))
    torch.testing.assert_close(v.floor(), pixels)
    z = (v - pixels - 0.5).mean() * math.sqrt(12 * v.numel())
    assert abs(z) < 4  # one run in 16,000


def test_log_det_is_that_of_autograd():
    space = LogitPixels(17, 0.1)
    v = torch.rand(5, 6, dtype=torch.float64) * 17

    def forward(v):
        return torch.logit(0.1 + 0.8 * v / 17)

    slopes = torch.stack([torch.autograd.functional.jacobian(forward, row).diagonal() for row in v])
    torch.testing.assert_close(space.log_det(forward(v)), slopes.log().sum(1))


@pytest.mark.parametrize("shape", [(7, 4), (7, 1, 2, 2)])
def test_uniform_pixels_cost_log2_of_the_levels(shape):
    # The density on y under which every pixel is uniform: p(y) = 1/|dy/du| / n_levels^d. Its bits are exact.
    space = LogitPixels(17)
    y = space.dequantize(torch.full(shape, 3.0, dtype=torch.float64))
    d = math.prod(shape[1:])
    log_p = -space.log_det(y) - d * math.log(17)
    bits = -(log_p + space.log_det(y)) / (d * math.log(2))
    torch.testing.assert_close(bits, torch.full((7,), math.log2(17), dtype=torch.float64))


def test_the_generator_makes_the_draw():
    space = LogitPixels(2)
    pixels = torch.tensor([[0.0, 1.0]])
    first, second = (space.dequantize(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, space.dequantize(pixels, torch.Generator().manual_seed(2)))


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="got 0"):
        LogitPixels(0)
    with pytest.raises(ValueError, match="0.5"):
        LogitPixels(17, 0.5)
    for pixels in (torch.tensor([[17.0]]), torch.tensor([[-1.0]]), torch.tensor([[0.5]])):
        with pytest.raises(ValueError, match=str(pixels.item())):
            LogitPixels(17).dequantize(pixels)
