from __future__ import annotations

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from plastibench.config.errors import RunError, UserError
from plastibench.utils.folder_lock import (
    is_locked,
    lock_folder,
    lock_holder,
    lock_warning,
    remove_if_unused,
    wait_for_lock,
)


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with lock_folder(tmp_path / "a"):
        with pytest.raises(UserError, match="a is being run by another process"), lock_folder(tmp_path / "a"):
            pass
        with lock_folder(tmp_path / "b"):
            pass
    with lock_folder(tmp_path / "a"):
        pass


def test_locks_of_others_are_seen_without_taking_them(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    assert not is_locked(tmp_path / "a")
    with lock_folder(tmp_path / "a"):
        assert is_locked(tmp_path / "a")
    assert not is_locked(tmp_path / "a")


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    inside: list[int] = []

    def write(number: int) -> None:
        with wait_for_lock(tmp_path / "a"):
            inside.append(number)
            assert len(inside) == 1
            inside.remove(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    a, held = tmp_path / "a", "another process has been writing to"
    with wait_for_lock(a), pytest.raises(RunError, match=held), wait_for_lock(a, 0.1):
        pass
    with pytest.raises(RunError, match="cannot write to"), wait_for_lock(tmp_path / "a" / ".lock" / "b"):
        pass


def test_a_file_in_place_of_the_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot use"), lock_folder(tmp_path / "file" / "run"):
        pass


def test_only_folders_without_results_are_removed(tmp_path: Path) -> None:
    unused, used = tmp_path / "unused", tmp_path / "used"
    for folder in (unused, used):
        with lock_folder(folder):
            (folder / "spec.toml").touch()
    (used / "checkpoint.pt").touch()
    for folder in (unused, used, tmp_path / "missing"):
        remove_if_unused(folder)
    assert not unused.exists() and used.exists()


def test_the_lock_says_who_holds_it(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    holder = f"{socket.gethostname()} {os.getpid()}"
    with lock_folder(tmp_path):
        assert lock_holder(tmp_path) == holder
        with pytest.raises(UserError, match=f"another process \\({holder}\\)"), lock_folder(tmp_path):
            pass
    with lock_folder(tmp_path):
        assert lock_holder(tmp_path) == holder  # once


@pytest.fixture
def like_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS turns flock into a lock of the server, which it refuses for files that are not open for writing."""
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock

    def flock_of_nfs(file: IO[str], operation: int) -> None:
        if not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)


def test_locks_are_seen_on_nfs(tmp_path: Path, like_nfs: None) -> None:
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
        assert lock_holder(tmp_path)  # asking does not change the file
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="its file system has no locks"), lock_folder(tmp_path):
        pass
    assert not is_locked(tmp_path)


@pytest.mark.parametrize(
    ("mounts", "warning"),
    [
        ("server:/a {0} nfs4 rw,local_lock=none 0 0", ""),
        ("server:/a {0} nfs rw,nolock,local_lock=all 0 0", "mounted with local_lock=all"),
        ("server:/a / nfs rw,nolock 0 0\n/dev/x {0} ext4 rw 0 0", ""),  # the nearest mount counts
        ("server:/a / nfs rw,nolock 0 0\n/dev/x {0}-other ext4 rw 0 0", "/ is mounted with nolock"),
        ("mds@tcp:/l {0} lustre rw,localflock 0 0", "mounted with localflock"),
    ],
)
def test_mounts_whose_locks_are_local_are_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, warning: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: mounts.format(tmp_path))
    said = lock_warning(tmp_path / "runs")
    assert warning in said and bool(said) is bool(warning)
