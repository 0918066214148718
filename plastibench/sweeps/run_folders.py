"""List the runs in a folder with their spec, state, progress and tags."""

from __future__ import annotations

import csv
import fnmatch
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from plastibench.config import registry
from plastibench.config.code_digest import short_code
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.identity import begins_digest, digest_of
from plastibench.config.options import build
from plastibench.config.spec import PARTS, changed_options, read_tables
from plastibench.leaderboard import label
from plastibench.leaderboard.naming import details, details_of, states
from plastibench.results.files import read_result_if_complete, run_folders, schedule
from plastibench.results.tags import read_tags
from plastibench.sweeps.jobs import stored_state
from plastibench.training.failure import failure_line
from plastibench.utils.folder_lock import is_locked

State = Literal["running", "interrupted", "failed", "waiting", "complete", "damaged"]
STATES: tuple[State, ...] = ("running", "interrupted", "failed", "waiting", "complete", "damaged")
_SHORT = 8  # characters of a digest that tables show
_TAIL = 4096  # bytes at the end of metrics.csv that contain its last line


@dataclass(frozen=True)
class RunFolder:
    """A run in its folder.

    Attributes:
        folder: The folder.
        names: Names of env, agent and intervention, by part.
        labels: Names with the options that differ from the defaults.
        details: Other words in leaderboard names, see :func:`plastibench.leaderboard.naming.details`.
        codes: Short digests of the code of plugins, by part.
        seed: Seed.
        state: ``waiting``: prepared, but never started; ``interrupted``: continues from its last checkpoint.
        progress: Fraction of the run that is done; None if it is unknown.
        position: ``task 3/10``; empty if it is unknown.
        reason: Why the run failed; empty otherwise.
        changed: Time of the last change, in seconds since 1970.
        tags: Its tags.
        shown: Labels, plus the code if runs with the same label have different code.
    """

    folder: Path
    names: Mapping[str, str]
    labels: Mapping[str, str]
    details: Mapping[str, set[str]]
    codes: Mapping[str, str]
    seed: int | None
    state: State
    progress: float | None
    position: str
    reason: str
    changed: float
    tags: frozenset[str]
    shown: Mapping[str, str]

    @property
    def id(self) -> str:
        """Name of the folder, which is the id of the run."""
        return self.folder.name

    @property
    def short_id(self) -> str:
        """The beginning of the digest at the end of the id, which identifies the run on this machine."""
        return digest_of(self.id)[:_SHORT]


def find_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs below a folder, without reference results and archives, in the order of their last change.

    Raises:
        UserError: The folder does not exist.
    """
    if not runs_dir.is_dir():
        raise UserError(f"the folder {runs_dir} does not exist; run an experiment first, or set --runs-dir")
    folders = {*run_folders(runs_dir, "spec.toml"), *run_folders(runs_dir, "result.json")}
    return sorted(_with_codes([read_run(folder) for folder in folders]), key=lambda run: (run.changed, run.id))


def read_run(folder: Path) -> RunFolder:
    """Read the state of a run from its folder."""
    result = read_result_if_complete(folder)
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "lock"]
    changed = max((path.stat().st_mtime for path in files), default=folder.stat().st_mtime)
    tags = read_tags(folder)
    if result is not None:
        names = {part: getattr(result, part) for part in PARTS}
        labels = {part: label(result, part) for part in PARTS}
        stated = {part: details_of(result, part) for part in PARTS}
        codes = {part: short_code(code) for part, code in result.code.items()}
        changed = (folder / "result.json").stat().st_mtime
        return RunFolder(
            *(folder, names, labels, stated, codes, result.seed, "complete", 1.0, "", "", changed, tags, labels)
        )
    tables = _tables(folder)
    names = {part: str(tables.get(part, {}).get("name", "?")) for part in PARTS}
    state = _state(folder)
    reason = failure_line(folder) if state == "failed" else ""
    progress, position = (None, "") if state in ("waiting", "damaged") else _progress(folder, tables)
    settings, labels = tables.get("run", {}), _labels(tables, names)
    code = {part: str(text) for part, text in tables.get("code", {}).items()}
    stated = {part: details(tables.get(part, {}), code.get(part, "")) for part in PARTS}
    stated["intervention"] |= details(settings)
    return RunFolder(
        folder,
        names,
        labels,
        stated,
        {part: short_code(text) for part, text in code.items()},
        settings.get("seed"),
        state,
        progress,
        position,
        reason,
        changed,
        tags,
        labels,
    )


def _with_codes(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Show the code of runs that have the same label and differ in the code."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for part in PARTS:
            found.setdefault((part, run.labels[part]), set()).add(run.codes.get(part, ""))
    several = {key for key, codes in found.items() if len(codes) > 1}

    def shown(run: RunFolder, part: str) -> str:
        code = run.codes.get(part, "")
        return f"{run.labels[part]} code={code}" if code and (part, run.labels[part]) in several else run.labels[part]

    return [replace(run, shown={part: shown(run, part) for part in PARTS}) for run in runs]


def select(runs: Sequence[RunFolder], patterns: Sequence[str], filters: Mapping[str, str | None]) -> list[RunFolder]:
    """Select the runs that match.

    Args:
        runs: Runs to choose from.
        patterns: Patterns as in :func:`matches`; a run must match one. Empty: all match.
        filters: ``env``, ``agent``, ``intervention`` (name, name as in the leaderboard, or a pattern), ``seed``,
            ``state`` and ``tag``; a run must match all that are not None.

    Raises:
        UserError: A pattern without wildcards matches no run.
    """
    for pattern in patterns:
        if not set("*?[") & set(pattern) and not any(matches(pattern, run.id) for run in runs):
            raise UserError(f"no run '{pattern}'{did_you_mean(pattern, [run.id for run in runs])}")

    def holds(run: RunFolder, key: str, wanted: str) -> bool:
        if key == "tag":
            return any(fnmatch.fnmatchcase(tag, wanted) for tag in run.tags)
        if key in PARTS:
            texts = (run.names[key], run.labels[key], run.shown[key])
            named = any(fnmatch.fnmatchcase(text, wanted) for text in texts)
            return named or states(wanted, run.labels[key], run.details[key])
        return str(getattr(run, key)) == wanted

    return [
        run
        for run in runs
        if (not patterns or any(matches(pattern, run.id) for pattern in patterns))
        and all(holds(run, key, wanted) for key, wanted in filters.items() if wanted is not None)
    ]


def matches(pattern: str, run_id: str) -> bool:
    """Whether a pattern matches a run: a glob such as ``*rnr*``, an id, or the first characters of its digest."""
    return fnmatch.fnmatchcase(run_id, pattern) or begins_digest(pattern, run_id)


def age(changed: float) -> str:
    """Time since a moment: ``5 min``, ``3 h``, ``12 d``."""
    minutes = max(0, int((time.time() - changed) / 60))
    for unit, size in (("d", 24 * 60), ("h", 60)):
        if minutes >= 2 * size:
            return f"{minutes // size} {unit}"
    return f"{minutes} min"


def _state(folder: Path) -> State:
    """The state of a run without a valid result."""
    return "running" if is_locked(folder) else stored_state(folder)


def _tables(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        path = folder / "spec.toml"
        return read_tables(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, UserError):
        return {}


def _labels(tables: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, str]:
    """Names with the options that differ from the defaults, or with all options where the defaults are unknown."""
    found = {}
    for part in PARTS:
        stored = {key: value for key, value in tables.get(part, {}).items() if key != "name"}
        try:
            shown = changed_options(part, names[part], stored)
        except UserError:  # its plugin is not imported
            shown = stored
        if part == "intervention":
            settings = tables.get("run", {})
            shown |= {"every": settings["every"]} if settings.get("every") else {}
            shown |= schedule(settings)
        words = [f"{key.replace('__', '.')}={_text(value)}" for key, value in shown.items()]
        found[part] = " ".join([names[part], *words])
    return found


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def recorded_progress(folder: Path) -> tuple[float | None, str]:
    """Fraction of a run that is recorded, and its position such as ``task 3/10``; None and empty if unknown."""
    return _progress(folder, _tables(folder))


def _progress(folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> tuple[float | None, str]:
    """Fraction of tasks and epochs or steps that are recorded in ``metrics.csv``, and the current task."""
    try:
        with open(folder / "metrics.csv", "rb") as file:
            header = file.readline().decode().strip().split(",")
            file.seek(max(file.tell(), (folder / "metrics.csv").stat().st_size - _TAIL))
            complete, _, _ = file.read().decode(errors="replace").rpartition("\n")  # the last line may be unfinished
            lines = [line for line in complete.splitlines() if line.count(",") >= 4]
        last = dict(zip(header, next(csv.reader(io.StringIO(lines[-1]))), strict=False))
        entry = registry.envs[str(tables["env"]["name"])]
        values = {key: value for key, value in tables["env"].items() if key != "name"}
        config: Any = build(entry.load(), {**entry.defaults, **values}, "env")
        task, count = int(last["task"]), int(config.task_count)
        if "epoch" in last:
            fraction = (task + float(last["epoch"]) / config.epochs) / count
        else:
            fraction = float(next(last[key] for key in last if key.endswith("step") or key == "steps")) / (
                config.steps * count
            )
    except (OSError, LookupError, ValueError, StopIteration, AttributeError, UserError, ZeroDivisionError):
        return None, ""
    return min(1.0, max(0.0, fraction)), f"task {task + 1}/{count}"
