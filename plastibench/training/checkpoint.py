"""Save checkpoints atomically, detect damage with a digest, and load them without executing code."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from plastibench.config.errors import UserError
from plastibench.utils.atomic_io import atomic

LATEST, PREVIOUS, FINAL = "checkpoint.pt", "checkpoint.previous.pt", "final.pt"
_END = 22  # bytes of the last record of a zip file; its last two are the length of the comment that follows
_SIGNATURE = b"PK\x05\x06"  # signature of this record
_COMMENT = re.compile(rb"sha256:[0-9a-f]{64}")
_COMMENT_BYTES = 71


def save(path: Path, state: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint atomically, with the SHA-256 of its content as the comment of the zip file.

    Args:
        path: The file.
        state: Nested dicts, lists and tensors.
        previous: Keep the replaced checkpoint under this name.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    content = io.BytesIO()  # torch's zip writer hides that a disk is full, and its reader checks no checksum
    torch.save(state, content)
    content.seek(-2, io.SEEK_END)
    content.write(_COMMENT_BYTES.to_bytes(2, "little"))
    with atomic(path, previous=previous) as file:
        file.write(content.getbuffer())
        file.write(b"sha256:" + hashlib.sha256(content.getbuffer()).hexdigest().encode())


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, without executing code from it.

    Raises:
        UserError: The file is damaged.
    """
    try:
        with open(path, "rb") as file:
            _check_digest(file)
            with warnings.catch_warnings():  # about odd pickles, which are refused in one line
                warnings.simplefilter("ignore")
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails in many ways on damaged files
        reason = str(error).partition("\n")[0]
        raise UserError(f"checkpoint {path} cannot be read ({reason}); delete its folder to start over") from error
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path} contains no state; delete its folder to start over")
    return state


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of an unfinished run, newest first."""
    return [path for path in (folder / LATEST, folder / PREVIOUS) if path.exists()]


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that is complete."""
    for path in saved_checkpoints(folder):
        path.unlink(missing_ok=True)


def tensor_bytes(state: Any) -> int:
    """Total size in bytes of all tensors in a nested state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(tensor_bytes, state.values()))
    return sum(map(tensor_bytes, state)) if isinstance(state, list | tuple) else 0


def _check_digest(file: IO[bytes]) -> None:
    """Compare the content with its digest, if there is one, and rewind the file.

    Files from older versions end with an empty comment, and files in torch's old format are not zip files.

    Raises:
        ValueError: The content does not match the digest.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _COMMENT_BYTES - _END))
    ending = file.read()
    file.seek(0)
    comment = ending[-_COMMENT_BYTES:]
    if not _COMMENT.fullmatch(comment):
        _, mark, rest = ending.rpartition(_SIGNATURE)
        if mark and len(mark + rest) != _END:
            raise ValueError("the end of the file is damaged")
        return
    found = hashlib.sha256()
    left = size - _COMMENT_BYTES
    while left and (block := file.read(min(left, 1 << 20))):
        found.update(block)
        left -= len(block)
    file.seek(0)
    if comment != b"sha256:" + found.hexdigest().encode():
        raise ValueError("its content does not match its SHA-256, so it is damaged")
