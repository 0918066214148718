"""Delete runs, archive them, and restore archived ones."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plastibench.config.errors import RunError, UserError
from plastibench.sweeps.run_folders import RunFolder
from plastibench.utils.atomic_io import atomic
from plastibench.utils.folder_lock import is_locked, lock_folder

ARCHIVE = "archive"  # folder of archived runs; TensorBoard and the leaderboard ignore it


def remove(runs: Sequence[RunFolder]) -> None:
    """Delete runs.

    Raises:
        UserError: One of the runs is running; in that case, nothing is deleted.
        RunError: A folder cannot be deleted.
    """
    check_idle(runs, "removed")
    for run in runs:
        with lock_folder(run.folder):
            hidden = run.folder.with_name(f".{run.id}.removed")  # a deletion that stops halfway leaves no partial run
            try:
                run.folder.rename(hidden)
                shutil.rmtree(hidden)
            except OSError as error:
                raise RunError(f"cannot remove {run.folder}: {error.strerror or error}") from error


def archive(runs: Sequence[RunFolder], runs_dir: Path) -> list[Path]:
    """Pack each run into ``archive/ID.tar.gz`` and delete its folder.

    Raises:
        UserError: One of the runs is running, or an archive with this name exists; in that case, nothing is changed.
        RunError: An archive cannot be written; its run is kept.
    """
    check_idle(runs, "archived")
    folder = runs_dir / ARCHIVE
    paths = [folder / f"{run.id}.tar.gz" for run in runs]
    for path in paths:
        if path.exists() or paths.count(path) > 1:
            raise UserError(f"cannot archive: {path} already exists; rename that file, or remove the run instead")
    folder.mkdir(exist_ok=True)
    for run, path in zip(runs, paths, strict=True):
        with lock_folder(run.folder):
            _pack(run.folder, run.folder.relative_to(runs_dir), path)
        remove([run])
    return paths


def _pack(folder: Path, name: Path, path: Path) -> None:
    """Write a folder without its lock into an archive, under this name."""
    with atomic(path) as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as packed:
        packed.add(folder, name, filter=lambda entry: None if Path(entry.name) == name / "lock" else entry)


def archived(runs_dir: Path) -> list[Path]:
    """All archives of runs."""
    return sorted((runs_dir / ARCHIVE).glob("*.tar.gz"))


def restore(path: Path, runs_dir: Path) -> Path:
    """Unpack an archived run into its folder and delete the archive.

    Raises:
        UserError: The archive is damaged or does not contain a run, or the folder exists; in that case, nothing is
            changed.
    """
    name = path.name.removesuffix(".tar.gz")
    temporary = Path(tempfile.mkdtemp(prefix=".restore-", dir=runs_dir))
    try:
        try:
            with tarfile.open(path) as packed:
                packed.extractall(temporary, filter="data")  # no links out of the folder, no devices
        except (OSError, EOFError, tarfile.TarError) as error:
            raise UserError(f"cannot restore {path}: {error}") from error
        found = [folder for folder in temporary.rglob(name) if folder.is_dir()]
        if len(found) != 1:
            raise UserError(f"cannot restore {path}: it does not contain the run {name}")
        target = runs_dir / found[0].relative_to(temporary)
        if target.exists():
            raise UserError(f"cannot restore {path}: {target} already exists")
        target.parent.mkdir(parents=True, exist_ok=True)
        found[0].rename(target)
    finally:
        shutil.rmtree(temporary)
    path.unlink()
    return target


def check_idle(runs: Sequence[RunFolder], done: str) -> None:
    """Check that no process runs one of these runs.

    Raises:
        UserError: A run is running; ``done`` names the refused action in the message, such as ``removed``.
    """
    for run in runs:
        if is_locked(run.folder):
            raise UserError(f"{run.id} is running and cannot be {done}; stop it first (nothing has been {done})")
