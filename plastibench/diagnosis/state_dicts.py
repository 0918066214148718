"""Third-party checkpoints: read without executing code, unwrap, and match to a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.nn.parameters import saved_tensors
from plastibench.utils.wording import plural

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "ema_state_dict", "params")
_MAX_DEPTH = 8  # maximum depth of nested wrappers


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a file of ``torch.save``.

    Wrappers such as ``{"state_dict": …}`` and ``{"model": …}`` are removed.

    Raises:
        UserError: The file cannot be read safely, or contains no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            with warnings.catch_warnings():  # about odd files, which are refused in one line
                warnings.simplefilter("ignore")
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make readers fail in many ways
        reason = " ".join(str(error).split()).partition(".")[0][:120]
        advice = "" if path.suffix == ".safetensors" else "; save model.state_dict(), not the model itself"
        raise UserError(f"cannot load weights safely from {path} ({type(error).__name__}: {reason}){advice}") from error
    for _ in range(_MAX_DEPTH):  # a dict may contain itself
        if not isinstance(found, Mapping):
            break
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    state = found if isinstance(found, Mapping) else {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        hint = "; for a run of plastibench, pass its folder" if "networks" in state else ""
        raise UserError(
            f"{path} contains no state dict, neither at the top level nor under {', '.join(_WRAPPERS)}{hint}"
        )
    for name, value in tensors.items():
        kinds = {
            "sparse": value.layout != torch.strided,
            "without values": value.is_meta,
            "quantized": value.is_quantized,
            "complex": value.is_complex(),
        }
        if kind := next((kind for kind, found in kinds.items() if found), None):
            raise UserError(f"{path}: '{name}' is {kind}; save a state dict of dense real tensors")
    return tensors


def without_prefix(state: Mapping[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Remove a prefix such as ``module.``, ``_orig_mod.`` or ``model.`` from the names of a state dict.

    Picks the prefix (possibly empty) with which most names match the model. Ties, such as ``model.`` and
    ``model_ema.``, are broken by length, then alphabetically. Names without the prefix stay as they are.

    Args:
        state: Name to tensor.
        known: Names of the model.
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
    """Load the weights whose names match into a module.

    Args:
        module: The module.
        state: Name to tensor, with or without a prefix.
        path: The file, for messages.

    Returns:
        Notes about missing and unused tensors.

    Raises:
        UserError: The weights belong to another architecture.
    """
    own = saved_tensors(module)
    state = without_prefix(state, set(own))
    common = [name for name in own if name in state]
    parameters = {name for name, _ in module.named_parameters()}
    if len(parameters & set(common)) * 2 < len(parameters):
        first = next(iter(state), "nothing")
        raise UserError(
            f"{path} contains only {len(parameters & set(common))} of the model's "
            f"{plural(len(parameters), 'parameter')} (its first tensor is '{first}'); use the model that the file was "
            "saved from"
        )
    for name in common:
        if own[name].shape != state[name].shape:
            shapes = f"{list(state[name].shape)}, but the model has {list(own[name].shape)}"
            raise UserError(f"{path}: '{name}' has shape {shapes}; check the model and --image-size")
    module.load_state_dict({name: state[name] for name in common}, strict=False)
    notes = []
    if missing := sorted(parameters - set(common)):
        notes.append(f"{plural(len(missing), 'parameter')} not in the file, so not changed: {_few(missing)}")
    counted = {name for name in own if not name.endswith("num_batches_tracked")}  # does not affect the output
    if missing := sorted(counted - parameters - set(common)):
        notes.append(f"{plural(len(missing), 'buffer')} not in the file, so not changed: {_few(missing)}")
    if left := [name for name in state if name not in own]:
        notes.append(f"ignored {plural(len(left), 'tensor')} of the file that the model does not have: {_few(left)}")
    return notes


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
