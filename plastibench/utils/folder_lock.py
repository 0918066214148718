"""Lock a run folder, so that only one process writes to it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plastibench.config.errors import RunError, UserError

LOCK = ".lock"  # of a folder that processes write one after the other
IN_USE = "is being run by another process"
_ATTEMPTS = 5  # attempts to lock a folder: is_locked() holds the lock for an instant
_PAUSE = 0.02  # seconds between attempts


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


def remove_if_unused(folder: Path) -> None:
    """Delete the folder of a run that could not start, if it contains only its spec and lock."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} == {"lock", "spec.toml"}:
            (folder / "spec.toml").unlink()
            (folder / "lock").unlink()
            folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    try:
        with open(folder / "lock") as file:
            return not _try_lock(file)
    except OSError:  # no such file or folder
        return False


@contextlib.contextmanager
def wait_for_lock(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """Create the folder if needed and lock it inside the block; wait for the process that holds the lock.

    Raises:
        RunError: The folder cannot be written, or stays locked for more than a few seconds.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "w")  # noqa: SIM115 - closed below, and open inside the whole block
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file:
        end = time.monotonic() + seconds
        while not _try_lock(file):
            if time.monotonic() > end:
                raise RunError(f"another process has been writing to {folder} for {seconds:.0f} seconds")
            time.sleep(_PAUSE)
        yield


def _lock(file: IO[str], folder: Path) -> None:
    for attempt in range(_ATTEMPTS):
        if _try_lock(file):
            return
        if attempt + 1 < _ATTEMPTS:
            time.sleep(_PAUSE)
    raise UserError(f"{folder.name} {IN_USE}; wait for it or choose another --runs-dir")


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed; False if another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
