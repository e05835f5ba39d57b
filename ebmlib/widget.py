"""An energy in the plane as a picture that lives in the page: no kernel, no request, no library.

The browser draws the contours and moves particles by Langevin steps; `widget.js`, beside this file, is all it runs.
"""

import json
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SCRIPT = Path(__file__).with_suffix(".js")
ACTIVATIONS = {nn.SiLU: "silu", nn.ReLU: "relu", nn.ELU: "elu", nn.Softplus: "softplus", nn.Tanh: "tanh"}


class Html(NamedTuple):
    """What Jupyter, VS Code, Colab and the book display as HTML."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Html({len(self.html)} characters)"


def landscape(
    energy: Any,
    low: Sequence[float],
    high: Sequence[float],
    step_size: float = 0.02,
    temperature: float = 1.0,
    sampler: str = "ULA",
    n_particles: int = 500,
    span: float = 10.0,
    label: str = "Live energy landscape",
) -> Html:
    """Return a live picture of a 2-D energy: contours, Langevin particles, their energies beside the exact ones.

    The reader sets step size and temperature T, chooses ULA, x ← x - η ∇E(x) + √(2ηT) ξ, or MALA, which tests that move
    for exp(-E/T), scatters the particles, and pauses. Exact is an integral on a grid over a frame three times as wide
    and high as the picture: what lies outside that is left out.

    Args:
        energy: MLPEnergy, Confined, GaussianEnergy or GaussianMixtureEnergy, of two coordinates, on any device.
        low: lower left corner of the picture.
        high: upper right corner.
        step_size: η at the start, 0.001 to 1.
        temperature: T at the start, 0.1 to 4.
        sampler: "ULA" or "MALA".
        n_particles: number of particles.
        span: nats shown, from the lowest energy of the picture; what is higher takes the last colour.
        label: name of the picture for a screen reader.

    Raises:
        TypeError: if the energy is another one, or a network with layers, hooks or a `forward` of its own that the
            browser does not know.
        ValueError: if the energy has not two coordinates or a weight that is not finite, or a setting is out of range.
        FileNotFoundError: if `widget.js` is missing, as where this module was copied without it.
    """
    if not SCRIPT.exists():
        raise FileNotFoundError(f"{SCRIPT} is missing: copy ebmlib/widget.js there, beside the code")
    corners = [a.item() if isinstance(a, Tensor) else float(a) for a in [*low, *high]]
    sides = list(zip(corners[:2], corners[2:], strict=False))
    if len(low) != 2 or len(high) != 2 or not all(-math.inf < a < b < math.inf for a, b in sides):
        raise ValueError(f"low and high must be two corners, each of low's numbers below high's; got {low}, {high}")
    if not (0.001 <= step_size <= 1 and 0.1 <= temperature <= 4):
        raise ValueError(f"step_size must be in [0.001, 1], temperature in [0.1, 4]; got {step_size}, {temperature}")
    if sampler not in ("ULA", "MALA") or n_particles < 1 or not 0 < span < math.inf:
        raise ValueError(
            f"sampler must be ULA or MALA, n_particles and span positive; got {sampler}, {n_particles}, {span}"
        )
    payload = {
        "energy": _payload(energy),
        "low": corners[:2],
        "high": corners[2:],
        "step_size": float(step_size),
        "temperature": float(temperature),
        "sampler": sampler,
        "n_particles": operator.index(n_particles),
        "span": float(span),
        "label": label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;"),  # the script sets it as HTML
    }
    data = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    data = data.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;")
    return Html(
        f"<div class=\"ebm-landscape\" data-landscape='{data}'>"
        "<p>A live picture. It needs JavaScript, and in Jupyter a notebook that is trusted.</p></div>\n"
        f'<script type="module">\n{SCRIPT.read_text("utf-8")}</script>'
    )


def _payload(energy: Any) -> dict[str, Any]:
    """Return an energy as what widget.js computes it from; known by the name of its class, so copies are, too."""
    kind = type(energy).__name__
    if isinstance(energy, nn.Module):
        _require_plain(energy)
    if kind == "Confined":
        return {"kind": "confined", "energy": _payload(energy.energy), "std": _number(energy.std)}
    if kind == "MLPEnergy":
        _require_plane(energy.dim)
        return {"kind": "mlp", **_layers(energy)}
    if kind == "GaussianEnergy":
        _require_plane(len(energy.mean))
        precision = torch.cholesky_inverse(energy.factor.detach().cpu().double())
        mean = _numbers(energy.mean)
        return {"kind": "gaussian", "mean": mean, "precision": _numbers(precision), "offset": _number(energy.offset)}
    if kind == "GaussianMixtureEnergy":
        _require_plane(energy.means.shape[1])
        means, log_weights = _numbers(energy.means), _numbers(energy.weights.log())
        return {"kind": "mixture", "means": means, "std": _number(energy.std), "log_weights": log_weights} | {
            "offset": _number(energy.offset)
        }
    raise TypeError(f"landscape draws MLPEnergy, Confined, GaussianEnergy and GaussianMixtureEnergy; got {kind}")


def _layers(energy: Any) -> dict[str, Any]:
    modules = [module for module in energy.net if not isinstance(module, nn.Dropout)]
    linear, activations = modules[::2], modules[1::2]
    names = {ACTIVATIONS.get(type(module)) for module in activations}
    plain = all(getattr(module, "alpha", 1.0) == 1.0 == getattr(module, "beta", 1.0) for module in activations)
    if energy.n_out != 1 or len(names) != 1 or None in names or not plain:
        raise TypeError(
            f"landscape draws one energy, with one activation of {sorted(ACTIVATIONS.values())}; got {energy}"
        )
    layers = [{"weight": _numbers(layer.weight), "bias": _numbers(layer.bias)} for layer in linear]
    return {"activation": names.pop(), "layers": layers}


def _require_plain(energy: nn.Module) -> None:
    """Raise where a call does more than the weights say: hooks, as those of pruning, or a forward put in place."""
    for name, module in energy.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise TypeError(f"landscape draws weights alone; {name or 'the energy'} has a hook or a forward of its own")


def _require_plane(dim: int) -> None:
    if dim != 2:
        raise ValueError(f"landscape draws energies of two coordinates; this one has {dim}")


def _number(x: Any) -> float:
    """Return a finite number."""
    if not math.isfinite(x):
        raise ValueError(f"the energy has a parameter that is {float(x)}")
    return float(x)


def _numbers(x: Tensor) -> Any:
    """Return a tensor as nested lists, in as many digits as give single precision back exactly."""
    if not torch.isfinite(x).all():
        raise ValueError("the energy has a parameter that is not finite")
    digits = 9 if x.dtype == torch.float32 else 17

    def rounded(value: Any) -> Any:
        return [rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.{digits}g}")

    return rounded(x.detach().cpu().double().tolist())
