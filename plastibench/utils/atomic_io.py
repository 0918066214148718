"""Write files atomically: the old file stays until the new one is complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from plastibench.config.errors import RunError


@contextmanager
def atomic(path: Path, *, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces ``path``, flushed to disk, if the block succeeds.

    Args:
        path: The file.
        previous: Keep the replaced file under this name.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:  # unlike mkstemp(), this respects the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; the previous file is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Delete the temporary files that killed processes left in a folder; no other process may be writing to it."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that it always has one; rename it if the file system has no hard links."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:
        os.replace(path, previous)
