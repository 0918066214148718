from __future__ import annotations

from pathlib import Path

import pytest

from plastibench.config.errors import UserError
from plastibench.utils.folder_lock import lock_folder, remove_if_unused


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with lock_folder(tmp_path / "a"):
        with pytest.raises(UserError, match="a is being run by another process"), lock_folder(tmp_path / "a"):
            pass
        with lock_folder(tmp_path / "b"):
            pass
    with lock_folder(tmp_path / "a"):
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
