"""Networks as energies: flexible, and with no log Z in closed form."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .energies import Energy, NotFinite, by_autograd, by_hand, energy_and_grad, one_a_row


class MLPEnergy(nn.Module):
    """Fully connected energy of a flat state.

    Args:
        dim: number of coordinates of x.
        hidden: widths of the hidden layers, such as `(128, 128)`.
        activation: class of the activation; SiLU by default, because a sampler needs a gradient that varies smoothly.
        dropout: probability of dropping a hidden unit while training.
        n_out: 1 gives an energy `(batch,)`; more give one energy a class, `(batch, n_out)`.
        zero_last: start from E = 0 everywhere, so that a tilt starts from its base.

    Raises:
        ValueError: if a width or `n_out` is below one.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        activation: type[nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        n_out: int = 1,
        zero_last: bool = False,
    ):
        super().__init__()
        widths = [dim, *hidden, n_out]
        if min(widths) < 1:
            raise ValueError(f"dim, hidden widths and n_out must be at least 1; got {widths}")
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-2], widths[1:-1], strict=True):
            layers += [nn.Linear(fan_in, fan_out), activation()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        last = nn.Linear(widths[-2], n_out)
        if zero_last:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.dim, self.n_out = dim, n_out
        self.net = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        out = self.net(x)
        return out.squeeze(1) if self.n_out == 1 else out

    @by_hand
    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x), detached: the chain rule by hand, a tenth to a third faster than autograd.

        Where the layers are not just linear ones and SiLU, ending in one number, autograd does it.
        """
        layers: list[Any] = list(self.net) if type(self.net) is nn.Sequential else []
        plain = len(layers) > 1 and {*map(type, layers)} <= {nn.Linear, nn.SiLU}
        if not plain or self.n_out != 1 or getattr(layers[-1], "out_features", 0) != 1:
            return by_autograd(functools.partial(MLPEnergy.forward, self), x)
        self._check(x)
        h, slopes = x, []
        for layer in layers[:-1]:
            if isinstance(layer, nn.SiLU):  # silu(z) = z s with s = sigmoid(z), and silu'(z) = s + silu(z) (1 - s)
                s = torch.sigmoid(h)
                h = h * s
                slopes.append(torch.lerp(s, s.new_ones(()), h))
            else:
                h = linear(h, layer.weight, layer.bias)
        last = layers[-1]
        grad = last.weight.expand(len(x), -1)
        for layer in reversed(layers[:-1]):
            grad = slopes.pop() * grad if isinstance(layer, nn.SiLU) else grad @ layer.weight
        return linear(h, last.weight, last.bias).squeeze(1), grad

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be (batch, {self.dim}); got {tuple(x.shape)}")


class SoftSteps(nn.Module):
    """The coordinates with soft steps of each: a smooth view of x in which what a tree asks, "above t?", is linear.

        x ↦ (x, tanh(sharpness (x - t₁)), …, tanh(sharpness (x - t_k)))

    The places t of the steps are quantiles of each column of the rows given here: give training rows.

    Args:
        x: shape `(n, dim)`, standardised.
        n_steps: k, steps a column; `dim (1 + k)` coordinates come out.
        sharpness: of a step, in one over a unit of x.

    Raises:
        ValueError: if `n_steps` is below one, the sharpness not positive, or x without rows.
        NotFinite: if a value of x is NaN or infinite.
    """

    places: Tensor

    def __init__(self, x: Tensor, n_steps: int, sharpness: float = 2.0):
        super().__init__()
        if n_steps < 1 or not 0 < sharpness < math.inf:
            raise ValueError(f"n_steps must be at least 1; got {n_steps}, and sharpness positive; got {sharpness}")
        if x.ndim != 2 or len(x) < 1:
            raise ValueError(f"x must be (n, dim), with at least one row; got {tuple(x.shape)}")
        if len(bad := torch.nonzero(~torch.isfinite(x))):
            raise NotFinite(f"column {int(bad[0, 1])} of row {int(bad[0, 0])} is {x[tuple(bad[0])].item()}")
        levels = torch.linspace(0, 1, n_steps + 2, dtype=x.dtype, device=x.device)[1:-1]
        self.register_buffer("places", torch.quantile(x, levels, dim=0))
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.places.shape[1]:
            raise ValueError(f"x must be (batch, {self.places.shape[1]}); got {tuple(x.shape)}")
        return torch.cat([x, torch.tanh(self.sharpness * (x[:, None] - self.places)).flatten(1)], dim=1)


class Confined(nn.Module):
    """Energy plus ‖x‖² / 2·std²: a network that grows slower than that now has a finite Z.

    Args:
        energy: callable `(batch, *event) -> (batch,)`, bounded below or falling at most linearly.
        std: width of the confining Gaussian, in the units of x.

    Raises:
        ValueError: if `std` is not positive.
    """

    def __init__(self, energy: Energy, std: float):
        super().__init__()
        if not 0 < std < math.inf:
            raise ValueError(f"std must be positive; got {std}")
        self.energy, self.std = energy, std

    def forward(self, x: Tensor) -> Tensor:
        return one_a_row(self.energy(x), x) + self._bowl(x)

    @by_hand
    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return E(x) and ∇E(x) = ∇energy(x) + x / std², detached."""
        if not hasattr(self.energy, "energy_and_grad"):
            return by_autograd(functools.partial(Confined.forward, self), x)
        e, grad = energy_and_grad(self.energy, x)
        return e + self._bowl(x), torch.add(grad, x, alpha=1 / self.std**2)

    def _bowl(self, x: Tensor) -> Tensor:
        return x[:, None].flatten(1).square().sum(1) / (2 * self.std**2)


class ConvEnergy(nn.Module):
    """Convolutional energy of an image: 3×3 convolutions of stride 2, each with a SiLU, then one linear number.

    Args:
        shape: of one image, `(n_channels, height, width)`.
        channels: output channels of each convolution, such as `(32, 64, 64)`; each halves height and width, rounded up.

    Raises:
        ValueError: if the shape has not three entries, or an entry or a number of channels is below one.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int]):
        super().__init__()
        if len(shape) != 3 or min(*shape, *channels) < 1:
            raise ValueError(f"shape must be (n_channels, height, width), channels at least 1; got {shape}, {channels}")
        self.shape = tuple(shape)
        fan_in, height, width = shape
        layers: list[nn.Module] = []
        for fan_out in channels:
            layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), nn.SiLU()]
            fan_in, height, width = fan_out, (height + 1) // 2, (width + 1) // 2
        net: Any = nn.Sequential(*layers, nn.Flatten(), nn.Linear(fan_in * height * width, 1))
        self.net = net.to(memory_format=torch.channels_last)  # the same numbers, a tenth to a fifth faster on a CPU

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != self.shape:
            raise ValueError(f"x must be (batch, {', '.join(map(str, self.shape))}); got {tuple(x.shape)}")
        return self.net(x).squeeze(1)
