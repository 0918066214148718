from __future__ import annotations

import os
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
    assert path.read_text() == "new"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic_io.write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("links", [True, False])
def test_the_replaced_file_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def link(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", link)
    for text in ("one", "two", "three"):
        with atomic_io.atomic(tmp_path / "file", previous=tmp_path / "before") as file:
            file.write(text.encode())
    assert (tmp_path / "file").read_text() == "three" and (tmp_path / "before").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 2


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for name in (".checkpoint.pt.0a1b2c3d.tmp", ".result.json.0a1b2c3d.tmp", "checkpoint.pt", ".other", "a.tmp"):
        (tmp_path / name).touch()
    atomic_io.remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".other", "a.tmp"}


def test_a_folder_that_does_not_exist_is_a_run_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(RunError, match=f"cannot write {path}"):
        atomic_io.write_text(path, "text")
