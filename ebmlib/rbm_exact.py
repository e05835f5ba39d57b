"""Independent exact draws from a small restricted Boltzmann machine: the truth that its chains are judged by."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .energies import NotFinite

if TYPE_CHECKING:
    from .rbm import RBM

BLOCK = 2**14  # states whose energies are computed at a time


def transposed(rbm: "RBM") -> "RBM":
    """Return the machine with its layers in each other's place: the energy of h alone, with the same log Z."""
    return type(rbm).from_parameters(rbm.weight.T, rbm.hidden_bias, rbm.visible_bias)


@torch.no_grad()
def exact_samples(rbm: "RBM", n_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Return independent draws of x from p(x), no chain: the smaller layer from the list of its states, then the other.

        h ~ p(h) = exp(-E(h)) / Z,  x ~ p(x | h)

    Args:
        rbm: one of its layers has at most 24 units.
        n_samples: number of draws.
        generator: on the machine's device.

    Returns:
        Binary states, shape `(n_samples, n_visible)`.

    Raises:
        ValueError: if both layers have more than 24 units, or `n_samples` is below 1.
        NotFinite: if an energy is NaN or infinite.
    """
    n_visible, n_hidden = rbm.weight.shape
    n_units = min(n_visible, n_hidden)
    if n_units > 24:
        raise ValueError(f"the smaller layer has {n_units} units: 2^{n_units} states are too many; 24 is the most")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1; got {n_samples}")
    energy = rbm if n_visible <= n_hidden else transposed(rbm)
    unit = torch.arange(n_units, device=rbm.weight.device)

    def states(number: Tensor) -> Tensor:
        return (number[:, None] >> unit & 1).to(rbm.weight)

    numbers = torch.arange(2**n_units, device=rbm.weight.device)
    energies = torch.cat([energy(states(block)).double() for block in numbers.split(BLOCK)])
    if not torch.isfinite(energies).all():
        raise NotFinite("an energy is NaN or infinite: the machine has no probabilities to draw from")
    drawn = torch.multinomial(torch.softmax(-energies, 0), n_samples, replacement=True, generator=generator)
    smaller = states(drawn)
    if n_visible <= n_hidden:
        return smaller
    return torch.bernoulli(rbm.visible_prob(smaller), generator=generator)
