"""State dicts that others saved: read without executing anything, unwrapped, and fitted to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "ema_state_dict", "params")
_DEEPEST = 8  # wrappers around wrappers


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of what ``torch.save`` wrote, by name.

    Dicts around them (``{"state_dict": …}``, ``{"model": …}``) are opened.

    Raises:
        UserError: It cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # rubbish makes readers fail in many ways
        reason = " ".join(str(error).split()).partition(".")[0][:120]
        advice = "" if path.suffix == ".safetensors" else "; save model.state_dict(), not the model itself"
        raise UserError(
            f"{path}: no weights that can be read safely ({type(error).__name__}: {reason}){advice}"
        ) from error
    for _ in range(_DEEPEST):  # a dict may hold itself
        if not isinstance(found, Mapping):
            break
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    state = found if isinstance(found, Mapping) else {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        hint = "; of a run of plastibench name the folder" if "networks" in state else ""
        raise UserError(f"{path}: holds no state dict, under none of the keys {', '.join(_WRAPPERS)}{hint}")
    return tensors


def without_prefix(state: Mapping[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """The state under the names of a model: ``module.``, ``_orig_mod.``, ``model.`` and the like are cut off.

    Of all leading parts of names, and of none, those are cut off with which most names are known; of several such
    (``model.`` and ``model_ema.``) the shortest, and the first by the alphabet. Names that are known as they are stay.
    """
    prefixes = {""}
    for name in state:
        parts = name.split(".")
        prefixes.update(".".join(parts[:count]) + "." for count in range(1, min(4, len(parts))))
    fitting = {p: sum(name.removeprefix(p) in known for name in state) for p in prefixes}
    best = max(sorted(prefixes, key=lambda prefix: (len(prefix), prefix)), key=lambda prefix: fitting[prefix])
    if not fitting[best]:
        return dict(state)
    return {
        name.removeprefix(best): value for name, value in sorted(state.items(), key=lambda i: i[0].startswith(best))
    }


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Write weights into a module; return what a person should know of how they fit.

    Raises:
        UserError: They belong to another architecture.
    """
    own = module.state_dict()
    state = without_prefix(state, set(own))
    common = [name for name in own if name in state]
    parameters = {name for name, _ in module.named_parameters()}
    if len(parameters & set(common)) * 2 < len(parameters):
        first = next(iter(state), "nothing")
        raise UserError(
            f"{path}: {len(parameters & set(common))} of the model's {len(parameters)} parameters are in it (it begins "
            f"with '{first}'); name the model that it was saved from"
        )
    for name in common:
        if own[name].shape != state[name].shape:
            shapes = f"{list(state[name].shape)} where the model has {list(own[name].shape)}"
            raise UserError(f"{path}: '{name}' has shape {shapes}; is it another model, or another --image-size?")
    module.load_state_dict({name: state[name] for name in common}, strict=False)
    notes = []
    if missing := sorted(parameters - set(common)):
        notes.append(f"{len(missing)} parameters are not in the file and stay as initialised: {_few(missing)}")
    counted = {name for name in own if not name.endswith("num_batches_tracked")}  # it changes no output
    if missing := sorted(counted - parameters - set(common)):
        notes.append(f"{len(missing)} buffers are not in the file and stay as initialised: {_few(missing)}")
    if left := [name for name in state if name not in own]:
        notes.append(f"{len(left)} tensors of the file belong to nothing in the model: {_few(left)}")
    return notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
