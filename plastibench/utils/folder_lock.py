"""Lock a run folder, so that only one process writes to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plastibench.config.errors import UserError


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder if needed and lock it inside the block.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115 - closed below, and open inside the whole block
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot use {folder}: {reason}; choose another folder with --runs-dir") from error
    with file:
        _lock(file, folder)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process runs in this folder: it holds the lock. False where there are no such locks (Windows)."""
    try:
        with open(folder / "lock", "r+") as file:
            _lock(file, folder)  # for a moment
    except UserError:
        return True
    except OSError:  # there is no lock, or it cannot be opened
        return False
    return False


def remove_if_unused(folder: Path) -> None:
    """Delete the folder of a run that could not start, if it contains only its spec and lock."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} == {"lock", "spec.toml"}:
            (folder / "spec.toml").unlink()
            (folder / "lock").unlink()
            folder.rmdir()


def _lock(file: IO[str], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder.name} is being run by another process; wait for it or choose another --runs-dir"
        ) from None
