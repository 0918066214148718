"""Find a run by its id, or by the beginning of the digest in its id."""

from __future__ import annotations

from pathlib import Path

from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.identity import begins_digest


def find_run(name: str, runs_dir: Path) -> str:
    """Return the id of a run: the name of its folder.

    Args:
        name: An id, or at least six characters of the digest at its end.
        runs_dir: Folder of all runs.

    Raises:
        UserError: There is no such run, or more than one.
    """
    if (runs_dir / name / "spec.toml").is_file():
        return name
    known = sorted(path.parent.name for path in runs_dir.glob("*/spec.toml"))
    found = [run for run in known if begins_digest(name, run)]
    if len(found) > 1:
        raise UserError(f"'{name}' matches several runs in {runs_dir}: {', '.join(found[:3])}; use more characters")
    if not found:
        raise UserError(f"no run '{name}' in {runs_dir}{did_you_mean(name, known)}")
    return found[0]
