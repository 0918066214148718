from __future__ import annotations

from pathlib import Path

import pytest

from plastibench.config.errors import RunError
from plastibench.utils import atomic_io


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_io.write_text(path, "old")

    def fail() -> None:
        with atomic_io.atomic(path) as file:
            file.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    atomic_io.write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644


def test_a_folder_that_does_not_exist_is_a_run_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(RunError, match=f"cannot write {path}"):
        atomic_io.write_text(path, "text")
