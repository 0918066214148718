"""Find the folder of a run, and check that its content belongs to this run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plastibench.config.errors import UserError
from plastibench.config.spec import PARTS, RunSpec
from plastibench.results.files import read_result, read_result_if_complete
from plastibench.results.result import Result
from plastibench.utils.digests import read_signed

# What a run writes; the result first.
_WRITTEN = (
    "result.json*",
    "checkpoint*",
    "final*",
    "metrics.csv*",
    "events.out.tfevents.*",
    "failure.txt*",
    "layernorm-*",
    "trackers.toml",
    "videos/*.gif",
)


def run_folder(run: RunSpec | Result, runs_dir: Path) -> Path:
    """The folder of a run, which may not exist yet.

    Its name is the run's id, or a shorter id if an earlier version created it.

    Raises:
        UserError: The folder contains another run.
    """
    folder = runs_dir / run.id
    if not _is_used(folder):
        for name in run.legacy_ids():
            if _is_used(runs_dir / name) and _content(runs_dir / name) == run.content:
                return runs_dir / name
    stored = folder / "spec.toml"
    if stored.is_file():
        found = read_spec(stored)
        if found.content != run.content:
            reason = difference(run.content, found.content)
            raise UserError(f"{stored} describes a different run ({reason}); delete its folder to start over")
    return folder


def find_result(spec: RunSpec, runs_dir: Path) -> Result | None:
    """The result of a run, or None if its folder has no valid ``result.json``.

    Raises:
        UserError: The folder of the run contains another run.
    """
    folder = run_folder(spec, runs_dir)
    result = read_result_if_complete(folder)
    if result is not None:
        check_same(spec, result, folder / "result.json")
    return result


def check_same(spec: RunSpec, result: Result, path: Path) -> None:
    """Check that a result belongs to a run.

    Raises:
        UserError: It is the result of another run.
    """
    if result.run and result.content != spec.content:
        found = f"{result.id} with other options" if result.id == spec.id else result.id
        raise UserError(f"{path} is the result of a different run ({found}); delete it to rerun")


def check_code(spec: RunSpec, folder: Path) -> None:
    """Check that a run would use the code that its spec records.

    Raises:
        UserError: The code of a plugin, or the version of an env or agent, has changed.
    """
    now = spec.current()
    for part in PARTS:
        if spec.code.get(part) != now.code.get(part):
            name = getattr(spec, part)[0]
            recorded, present = (each.code.get(part, "version 1 or not recorded") for each in (spec, now))
            raise UserError(
                f"the code of {part} {name} has changed since {spec.id} was defined ({recorded}, now {present}); "
                f"restore it, or start a new run with plastibench run --spec {folder / 'spec.toml'}"
            )


def read_spec(path: Path) -> RunSpec:
    """Read the ``spec.toml`` of a run.

    Raises:
        UserError: The file cannot be read or is not a valid spec.
    """
    return RunSpec.from_toml(read_signed(path), str(path))


def difference(one: str, other: str) -> str:
    """Describe the first difference between the contents of two runs, such as ``agent.lr is 0.1 instead of 0.01``."""
    ours, theirs = _flat(one), _flat(other)
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            return f"{key} is {theirs.get(key, 'not set')} instead of {ours.get(key, 'not set')}"
    return "the same run"


def clear(folder: Path) -> None:
    """Delete everything that a run has written to its folder, so that it starts from the beginning.

    The result is deleted first, because a run without a result counts as incomplete.
    """
    for pattern in _WRITTEN:
        for path in sorted(folder.glob(pattern)):
            path.unlink(missing_ok=True)


def _is_used(folder: Path) -> bool:
    return (folder / "spec.toml").is_file() or (folder / "result.json").is_file()


def _content(folder: Path) -> str | None:
    """Return the content that identifies the run in a folder; None if its files are damaged."""
    try:
        stored = folder / "spec.toml"
        found: RunSpec | Result = read_spec(stored) if stored.is_file() else read_result(folder / "result.json")
        return found.content if isinstance(found, RunSpec) or found.run else None
    except UserError:
        return None


def _flat(content: str) -> dict[str, Any]:
    *parts, run, code = [*json.loads(content), {}][:5]
    found: dict[str, Any] = {part: name for part, (name, _) in zip(PARTS, parts, strict=True)}
    for part, (_, options) in zip(PARTS, parts, strict=True):
        found |= {f"{part}.{name}": value for name, value in options.items()}
    return {**found, **run, **{f"the code of the {part}": digest for part, digest in code.items()}}
