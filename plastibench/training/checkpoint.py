"""Save checkpoints atomically, and load them without executing code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plastibench.config.errors import UserError
from plastibench.utils.atomic_io import atomic


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    content = io.BytesIO()  # torch's zip writer hides that a disk is full
    torch.save(state, content)
    with atomic(path) as file:
        file.write(content.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, without executing code from it.

    Raises:
        UserError: The file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in many ways on damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"checkpoint {path} cannot be read ({reason}); delete its folder to start over") from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} contains no state; delete its folder to start over")
    return state


def remove_temporary_files(folder: Path) -> None:
    """Delete the temporary files that a killed process left behind."""
    for name in ("checkpoint.pt", "final.pt", "result.json", "spec.toml"):
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def tensor_bytes(state: Any) -> int:
    """Total size in bytes of all tensors in a nested state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if isinstance(state, list | tuple) else 0
