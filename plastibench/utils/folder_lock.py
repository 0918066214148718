"""Lock a run folder, so that only one process writes to it.

The lock uses ``flock``, which the kernel releases when the process ends, even by a crash. It works between machines on
NFS (unless mounted with ``nolock`` or ``local_lock``), Lustre (mounted with ``flock``), CephFS and GPFS. A file system
without locks raises ``UserError``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from plastibench.config.errors import RunError, UserError

LOCK = ".lock"  # lock file of a folder to which processes write one after the other
IN_USE = "is being run by another process"
_ATTEMPTS = 5  # attempts to lock a folder: is_locked() holds the lock for an instant
_PAUSE = 0.02  # seconds between attempts
_LOCAL_LOCKS = {"nolock", "localflock", "local_lock=all", "local_lock=flock"}  # mount options of NFS and Lustre
_HELD = (errno.EAGAIN, errno.EACCES)  # NFS may report either if another process holds the lock


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder if needed and lock it inside the block.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+")  # noqa: SIM115 - closed below, and open inside the whole block
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot use {folder}: {reason}; choose another folder with --runs-dir") from error
    with file:
        _lock(file, folder)
        with contextlib.suppress(OSError):  # information for users; a full disk must not prevent the run
            file.truncate(0)
            os.write(
                file.fileno(), f"{socket.gethostname()} {os.getpid()}\n".encode()
            )  # a buffer would fail again later
            os.fsync(file.fileno())  # NFS would keep it on this machine until the file is closed
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
        path = folder / "lock"
        with open(path, "r+" if os.access(path, os.W_OK) else "r") as file:  # NFS locks only files open for writing
            return not _try_lock(file)
    except (OSError, UserError):  # no such file or folder, or no locks
        return False


def lock_holder(folder: Path) -> str:
    """Host and process id of the last process that locked a folder, such as ``node7 4242``; empty if unknown."""
    try:
        return (folder / "lock").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def lock_warning(folder: Path) -> str:
    """Why locks in a folder do not stop processes on other machines; empty if no reason is known.

    The reason is an option with which the folder's file system is mounted (Linux).
    """
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    mounts = [(Path(line.split()[1].replace("\\040", " ")), line.split()[3].split(",")) for line in lines]
    above = [mount for mount in mounts if folder.absolute().is_relative_to(mount[0])]
    point, options = max(above, key=lambda mount: len(mount[0].parts), default=(Path(), []))
    found = sorted(_LOCAL_LOCKS.intersection(options))
    if not found:
        return ""
    return f"{point} is mounted with {found[0]}, so its locks have no effect on other machines"


@contextlib.contextmanager
def wait_for_lock(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """Create the folder if needed and lock it inside the block; wait for the process that holds the lock.

    Raises:
        RunError: The folder cannot be written, or stays locked for longer than ``seconds``.
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
    holder = f" ({lock_holder(folder)})" if lock_holder(folder) else ""
    raise UserError(f"{folder.name} {IN_USE}{holder}; wait for that process or choose another --runs-dir")


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file until it is closed; False if another process holds the lock.

    Raises:
        UserError: The file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise UserError(
            f"cannot lock {file.name}: {error.strerror}; its file system has no locks, so choose a folder on another "
            "file system with --runs-dir"
        ) from error
    return True
