"""Checkpoints: the state of a training run in one file that is always whole, and that loads whole or not at all."""

import copy
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimizers, schedulers, `minibatches`, a `ReplayBuffer`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def save_checkpoint(path: str | os.PathLike[str], parts: Mapping[str, Stateful | torch.Generator]) -> None:
    """Save the state of each part, and of torch's global generators, in one file: what bit-equal resuming needs.

    Args:
        path: file to write; an older one is replaced only once the new one is whole.
        parts: by name, whatever has a `state_dict` (model, optimizer, scheduler, buffer, batches), and generators.
            Numbers of numpy in them are saved as Python's.

    Raises:
        ValueError: if a state holds what could not be read back, such as an array of numpy; it names the place.
    """
    states = _plain(_states(parts), "parts")
    random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    aside = Path(f"{os.fspath(path)}.part")
    try:
        torch.save({"parts": states, "random": random}, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str], parts: Mapping[str, Stateful | torch.Generator]) -> None:
    """Put each part, and torch's global generators, back into the state that `save_checkpoint` saved.

    All or nothing: where a part refuses its state, those before it are put back. The global generators of CUDA are set
    if there are as many devices as there were.

    Args:
        path: file that `save_checkpoint` wrote. It is read as weights only: no code in it is run.
        parts: the same names, with parts built as they were then.

    Raises:
        ValueError: if the file is not a checkpoint, or the names differ from those in it.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if not (isinstance(saved, dict) and saved.keys() == {"parts", "random"}):
        raise ValueError(f"{os.fspath(path)} was not written by save_checkpoint")
    if saved["parts"].keys() != parts.keys():
        raise ValueError(f"the checkpoint holds {sorted(saved['parts'])}, not {sorted(parts)}")
    before = copy.deepcopy(_states(parts))
    try:
        _restore(parts, saved["parts"])
    except BaseException:
        _restore(parts, before)
        raise
    torch.set_rng_state(saved["random"]["cpu"])
    if len(saved["random"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["random"]["cuda"])


def _states(parts: Mapping[str, Stateful | torch.Generator]) -> dict[str, Any]:
    return {
        name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
        for name, part in parts.items()
    }


def _restore(parts: Mapping[str, Stateful | torch.Generator], states: dict[str, Any]) -> None:
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.set_state(states[name])
        else:
            part.load_state_dict(states[name])


def _plain(value: Any, place: str) -> Any:
    """Return value with Python's numbers in place of numpy's, and raise if it could not be read back as weights."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    kind = type(value)
    if kind in (dict, OrderedDict):
        items = [(_plain(key, f"a key of {place}"), _plain(part, f"{place}[{key!r}]")) for key, part in value.items()]
        plain = kind(items)
        if kind is OrderedDict:
            vars(plain).update(vars(value))  # the versions of a module's parts
        return plain
    if kind in (list, tuple):
        return kind(_plain(part, f"{place}[{i}]") for i, part in enumerate(value))
    if kind in (Tensor, bool, int, float, str, type(None)) and not getattr(value, "__dict__", None):
        return value
    try:
        torch.save(value, file := io.BytesIO())
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{place} is a {kind.__module__}.{kind.__qualname__}: it could not be read back") from error
    return value
