"""Out-of-distribution detection by energy: an alarm is raised where the energy is above a threshold."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def conformal_threshold(energies: Tensor, alpha: float) -> float:
    """Return the threshold above which a normal observation falls with probability at most α.

        threshold = the k-th smallest of n calibration energies,  k = ⌈(n + 1)(1 - α)⌉

    The k-th place and not the share 1 - α itself: the new observation takes a rank among n + 1. With energies without
    ties the probability is exactly 1 - k / (n + 1). It is an average over calibration sets: for a single one the rate
    of false alarms follows Beta(n + 1 - k, k).

    Args:
        energies: of normal observations that neither trained the energy nor chose anything, shape `(n,)`; an
            observation is exchangeable with them, if it is normal.
        alpha: α, the rate of false alarms to allow, in (0, 1). A number within 1e-14 of a fraction whose denominator
            is at most ten million means that fraction: 1 - 0.9, which is 0.09999999999999998, means a tenth.

    Raises:
        ValueError: if α is not in (0, 1), n is below 1/α - 1 (no threshold can then promise α), or an energy is NaN
            or infinite.

    Source: Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha}")
    energies = _checked(energies, "energies")
    n, exact = len(energies), _meant(float(alpha))
    k = math.ceil((n + 1) * (1 - exact))
    if k > n:
        raise ValueError(
            f"alpha = {alpha} needs at least {math.ceil(1 / exact) - 1} calibration energies; got {n}. "
            f"With fewer no finite threshold keeps the promise"
        )
    return energies.sort().values[k - 1].item()


def two_sided(energies: Tensor, alpha: float) -> tuple[float, float]:
    """Return the bounds (low, high) that a normal observation leaves, on either side, with probability at most α.

    Half of α is spent above, half below: -E is an energy too. The lower bound finds what is more plausible than normal
    observations are, such as averages of them.

    Args:
        energies: as `conformal_threshold`; at least 2/α - 1 of them.
        alpha: α, the rate of false alarms to allow, in (0, 1).

    Raises:
        ValueError: as `conformal_threshold`, with α/2.
    """
    return -conformal_threshold(-energies, alpha / 2), conformal_threshold(energies, alpha / 2)


def _meant(alpha: float) -> Fraction:
    """Return the number that a float was meant to be: rounding must not cost a place."""
    written = Fraction(repr(alpha))
    nearest = written.limit_denominator(10**7)  # two of these are 1e-14 apart, or more
    return nearest if 0 < nearest < 1 and abs(nearest - written) < Fraction(1, 10**14) else written


class OODReport(NamedTuple):
    """How well energies tell out-of-distribution (OOD) observations, the positives, from normal ones.

    Attributes:
        auroc: probability that an OOD energy exceeds a normal one, ties counting half.
        aupr: average precision of the alarms; its chance level is the share of OOD among all, so it moves with that.
        fpr95: share of OOD accepted by the lowest threshold that accepts at least 95 % of the normal energies.
        auroc_interval: 95 % interval (low, high), as the other two.
        aupr_interval: at the same share of OOD.
        fpr95_interval: includes that the threshold is uncertain.
    """

    auroc: float
    aupr: float
    fpr95: float
    auroc_interval: tuple[float, float]
    aupr_interval: tuple[float, float]
    fpr95_interval: tuple[float, float]


def evaluate_ood(
    energies_in: Tensor,
    energies_out: Tensor,
    n_bootstrap: int = 300,
    seed: int = 0,
    groups: tuple[Tensor, Tensor] | None = None,
) -> OODReport:
    """Return AUROC, AUPR and FPR95 of an alarm at high energy, by scikit-learn, with bootstrap intervals.

    The intervals lie between the 2.5 % and 97.5 % quantiles over resampled observations, normal and OOD each with
    replacement. They know nothing of what retraining would change, and have no width where no energies overlap.

    Rows that belong together, such as a wine and its own shuffled copies, are no independent observations. With
    `groups`, rows of one label are drawn together, normal and OOD alike: labels in both sets are resampled among
    themselves, and so are those in the normal set alone and in the OOD set alone.

    Args:
        energies_in: energies of normal observations, shape `(n_in,)`, in nats or any other unit.
        energies_out: energies of OOD observations, shape `(n_out,)`.
        n_bootstrap: number of resamplings.
        seed: of the resampling.
        groups: labels of the rows of both sets, whole numbers of shapes `(n_in,)` and `(n_out,)`; None gives each row
            a label of its own.

    Raises:
        ValueError: if either set is empty, is not one energy a row, or holds a NaN or infinite value, or
            `n_bootstrap` is below 40, where the quantiles would be the extremes, or the groups have other shapes.

    Source: scikit-learn's `roc_curve` and `average_precision_score`; Efron and Tibshirani (1993), An Introduction to
    the Bootstrap.
    """
    if n_bootstrap < 40:
        raise ValueError(f"n_bootstrap must be at least 40; got {n_bootstrap}")
    e_in, e_out = _checked(energies_in, "energies_in"), _checked(energies_out, "energies_out")
    cpu = torch.device("cpu")  # where the energies are now, whatever the default device is
    generator = torch.Generator(cpu).manual_seed(seed)
    if groups is None:
        groups = torch.arange(len(e_in), device=cpu), len(e_in) + torch.arange(len(e_out), device=cpu)
    if (groups[0].shape, groups[1].shape) != (e_in.shape, e_out.shape):
        got = f"{tuple(groups[0].shape)} and {tuple(groups[1].shape)}"
        raise ValueError(f"groups must be ({len(e_in)},) and ({len(e_out)},), one label a row; got {got}")
    labels, index = torch.cat(groups).cpu().unique(return_inverse=True)
    index_in, index_out = index[: len(e_in)], index[len(e_in) :]
    in_in, in_out = (torch.isin(torch.arange(len(labels), device=cpu), part) for part in (index_in, index_out))
    strata = [part.nonzero()[:, 0] for part in (in_in & ~in_out, in_out & ~in_in, in_in & in_out) if part.any()]

    def resampled() -> tuple[Tensor, Tensor]:
        drawn = [part[torch.randint(len(part), (len(part),), generator=generator, device=cpu)] for part in strata]
        counts = torch.cat(drawn).bincount(minlength=len(labels))
        return e_in.repeat_interleave(counts[index_in]), e_out.repeat_interleave(counts[index_out])

    draws = [_measures(*resampled()) for _ in range(n_bootstrap)]
    levels = torch.tensor([0.025, 0.975], dtype=torch.float64, device=cpu)
    bounds = torch.tensor(draws, dtype=torch.float64, device=cpu).quantile(levels, dim=0).T.tolist()
    return OODReport(*_measures(e_in, e_out), *((low, high) for low, high in bounds))


def _measures(e_in: Tensor, e_out: Tensor) -> tuple[float, float, float]:
    """Return AUROC, AUPR and FPR95."""
    from sklearn.metrics import auc, average_precision_score, roc_curve

    energies = torch.cat([e_in, e_out]).numpy()
    is_out = np.arange(len(energies)) >= len(e_in)
    rates_in, rates_out, _ = roc_curve(is_out, energies, drop_intermediate=False)
    # Whole numbers of alarms: rates would be summed, and compared with 5 %, up to rounding alone.
    alarms_in, alarms_out = np.rint(rates_in * len(e_in)), np.rint(rates_out * len(e_out))
    area = auc(alarms_in, alarms_out) / (len(e_in) * len(e_out))
    accepted = 1 - alarms_out[alarms_in <= len(e_in) // 20].max() / len(e_out)
    return float(area), float(average_precision_score(is_out, energies)), float(accepted)


def _checked(energies: Tensor, name: str) -> Tensor:
    """Return the energies in double precision on the CPU, if there is one a row and all are finite."""
    if energies.ndim != 1 or len(energies) == 0:
        raise ValueError(f"{name} must be (n,), one a row, and not empty; got {tuple(energies.shape)}")
    if not torch.isfinite(energies).all():
        row = int(torch.nonzero(~torch.isfinite(energies))[0])
        raise ValueError(f"{name} row {row} is {energies[row].item()}")
    return energies.detach().double().cpu()
