"""Losses that train an energy. Each returns a scalar to minimise; none needs Z."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .energies import Distribution, Energy, NotFinite, evaluate


def nce_from_logits(logit_data: Tensor, logit_noise: Tensor, nu: float) -> Tensor:
    """Return the noise contrastive loss from the log-ratios of model to noise.

    With u = log p(x) - log q(x) = -E(x) - log Z - log q(x), and ν noise samples a datum:

        J = mean_data softplus(log ν - u) + ν · mean_noise softplus(u - log ν)

    the logistic loss of a classifier that tells data from noise; over all functions u, log p_data - log q minimises it.

    Args:
        logit_data: u at data, shape `(n_data,)`.
        logit_noise: u at noise samples, shape `(n_noise,)`.
        nu: ν, the number of noise samples that stand for a datum; it need not be n_noise / n_data.

    Returns:
        Loss in nats a datum, a scalar.

    Raises:
        ValueError: if ν is not positive, or there is more than one logit a row, or none at all.
        NotFinite: if a logit is NaN or infinite.

    Source: Gutmann and Hyvärinen (2012), Journal of Machine Learning Research 13.
    """
    if not 0 < nu < math.inf:
        raise ValueError(f"nu must be positive; got {nu}")
    for name, logit in (("data", logit_data), ("noise", logit_noise)):
        if logit.ndim != 1 or len(logit) < 1:
            raise ValueError(f"the logits of {name} must be one a row, (n,); got {tuple(logit.shape)}")
        if not torch.isfinite(logit).all():
            row = int(torch.nonzero(~torch.isfinite(logit))[0])
            raise NotFinite(f"the logit of {name} row {row} is {logit[row].item()}")
    log_nu = math.log(nu)
    return softplus(log_nu - logit_data).mean() + nu * softplus(logit_noise - log_nu).mean()


def noise_contrastive(energy: Energy, log_z: Tensor, x_data: Tensor, x_noise: Tensor, noise: Distribution) -> Tensor:
    """Return the noise contrastive loss of an energy and of the constant that stands for its log Z.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        log_z: learned constant, a scalar parameter that the caller owns and gives to the optimizer.
        x_data: shape `(n_data, *event)`.
        x_noise: draws from `noise`, shape `(n_noise, *event)`; ν = n_noise / n_data.
        noise: distribution with `log_prob(x)`, positive wherever data can be.

    Returns:
        Loss in nats a datum, a scalar; see `nce_from_logits`.

    Raises:
        ValueError: if an energy is NaN or infinite, the noise has no density at a datum, either gives another shape
            than one value a row, or a batch is empty.

    Source: Gutmann and Hyvärinen (2012), Journal of Machine Learning Research 13.
    """
    _require_rows(x_data=x_data, x_noise=x_noise)
    log_q_data, noise_log_q = noise.log_prob(x_data), noise.log_prob(x_noise)
    for log_q, x in ((log_q_data, x_data), (noise_log_q, x_noise)):
        if log_q.shape[:1] != x.shape[:1]:
            raise ValueError(f"the noise must give one log density a row, ({len(x)},); got {tuple(log_q.shape)}")
    if not torch.isfinite(log_q_data).all():
        row = int(torch.nonzero(~torch.isfinite(log_q_data))[0])
        raise ValueError(
            f"the noise must cover the data; its log density at data row {row} is {log_q_data[row].item()}"
        )
    logit_data = -evaluate(energy, x_data) - log_z - log_q_data
    logit_noise = -evaluate(energy, x_noise) - log_z - noise_log_q
    return nce_from_logits(logit_data, logit_noise, len(x_noise) / len(x_data))


def conditional_noise_contrastive(
    energy: Energy, x_data: Tensor, std: float, nu: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Return the conditional noise contrastive loss: which of x and x + std·ξ is the datum?

    With a symmetric kernel the noise density cancels, and so does Z:

        J = 2 mean softplus(E(x) - E(x + std·ξ)),  ξ ~ N(0, I)

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x_data: shape `(batch, *event)`.
        std: width of the Gaussian kernel, in the units of x.
        nu: noisy copies of each datum.
        generator: on x's device.

    Returns:
        Loss in nats, a scalar; 2 log 2 for a constant energy.

    Raises:
        ValueError: if `std` or `nu` is not positive, x_data is empty or not floating point, or an energy is NaN or
            infinite.

    Source: Ceylan and Gutmann (2018), International Conference on Machine Learning.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std must be positive; got {std}")
    if nu < 1:
        raise ValueError(f"nu must be at least 1; got {nu}")
    _require_rows(x_data=x_data)
    if not x_data.is_floating_point():
        raise ValueError(f"x_data must be floating point; got {x_data.dtype}")
    shape = (nu, *x_data.shape)
    noise = torch.randn(shape, generator=generator, dtype=x_data.dtype, device=x_data.device)
    x_noise = (x_data + std * noise).flatten(0, 1)
    return 2 * softplus(evaluate(energy, x_data).repeat(nu) - evaluate(energy, x_noise)).mean()


def contrastive_divergence(energy: Energy, x_data: Tensor, x_model: Tensor) -> Tensor:
    """Return the loss whose gradient estimates that of -mean log p(x_data), from draws of the model.

        L = mean E(x_data) - mean E(x_model),  ∇L ≈ E_data[∇E] - E_p[∇E]

    The value itself is no likelihood and no sign of progress: only its gradient means something, and that is right as
    far as x_model are draws from p. They are held fixed: no gradient flows through the chain.

    Args:
        energy: callable `(batch, *event) -> (batch,)`.
        x_data: shape `(n_data, *event)`.
        x_model: last states of chains, shape `(n_model, *event)`; where they start makes it CD or persistent CD.

    Returns:
        Loss in nats, a scalar.

    Raises:
        ValueError: if an energy is NaN or infinite, there is more than one a row, or a batch is empty.

    Source: Hinton (2002), Neural Computation 14(8).
    """
    _require_rows(x_data=x_data, x_model=x_model)
    return evaluate(energy, x_data).mean() - evaluate(energy, x_model.detach()).mean()


def energy_penalty(energy: Energy, x_data: Tensor, x_model: Tensor) -> Tensor:
    """Return mean E(x_data)² + mean E(x_model)²: times a small weight, added to a loss, it keeps energies near zero.

    It settles the free constant of the energy and holds its scale; the price is a bias that grows with the weight.

    Args: as `contrastive_divergence`, with the same errors.

    Source: Du and Mordatch (2019), Advances in Neural Information Processing Systems 32.
    """
    _require_rows(x_data=x_data, x_model=x_model)
    return evaluate(energy, x_data).square().mean() + evaluate(energy, x_model.detach()).square().mean()


def _require_rows(**batches: Tensor) -> None:
    for name, x in batches.items():
        if len(x) < 1:
            raise ValueError(f"{name} is empty: {tuple(x.shape)}; the mean over no rows is no loss")
