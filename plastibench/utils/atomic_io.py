"""Files that are whole or not there: atomic writing, and checkpoints that load without executing anything."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from plastibench.config.errors import RunError, UserError


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under ``path``, complete and on disk, only if the block succeeds.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; what was there before is untouched") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def clean_up(folder: Path) -> None:
    """Delete what processes left that were killed while they wrote."""
    for name in ("checkpoint.pt", "final.pt", "result.json", "spec.toml"):
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    import torch

    content = io.BytesIO()  # torch's zip writer would hide that a disk is full
    torch.save(state, content)
    with atomic(path) as file:
        file.write(content.getbuffer())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        UserError: The file is damaged.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # rubbish makes the unpickler fail in many ways
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"checkpoint {path} cannot be read ({reason}); delete its folder to start the run anew"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds no state; delete its folder to start the run anew")
    return state


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in a state, however deep."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if isinstance(state, list | tuple) else 0
