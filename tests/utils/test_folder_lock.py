from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plastibench.config.errors import RunError, UserError
from plastibench.utils.folder_lock import is_locked, lock_folder, remove_if_unused, wait_for_lock


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
