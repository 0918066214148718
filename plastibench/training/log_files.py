"""Length and digest of the log files that a checkpoint covers, so that a resumed run detects damage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from plastibench.config.errors import UserError

Covered = tuple[int, str]  # length in bytes, and SHA-256 of that part; empty in checkpoints of older versions


class GrowingFile:
    """Length and digest of a file that grows; only its new part is read each time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length, self._digest = 0, hashlib.sha256()

    def covered(self) -> Covered:
        """Length and digest of the file on disk."""
        with open(self.path, "rb") as file:
            file.seek(self._length)
            while block := file.read(1 << 20):
                self._digest.update(block)
                self._length += len(block)
        return self._length, self._digest.hexdigest()


def check(folder: Path, saved: Mapping[str, object]) -> dict[str, Covered]:
    """Check that the files of a folder contain what a checkpoint covers.

    Args:
        folder: The run's folder.
        saved: Name to length and digest, or to the length only in checkpoints of older versions.

    Returns:
        Name to length and digest.

    Raises:
        UserError: A file is missing, shorter, or has other content.
    """
    found: dict[str, Covered] = {}
    for name, value in saved.items():
        length, digest = value if isinstance(value, tuple | list) else (value, "")
        assert isinstance(length, int)
        problem = _problem(folder / name, length, digest)
        if problem:
            raise UserError(f"{folder / name} {problem}; restore it, or delete {folder} to restart the run")
        found[name] = length, digest
    return found


def _problem(path: Path, length: int, digest: str) -> str:
    try:
        with open(path, "rb") as file:
            content = hashlib.sha256()
            while length and (block := file.read(min(length, 1 << 20))):
                content.update(block)
                length -= len(block)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if length:
        return "is shorter than at the last checkpoint"
    return "has changed since the last checkpoint" if digest and content.hexdigest() != digest else ""
