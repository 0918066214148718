"""Send the metrics of a run to trackers; a failing tracker never affects the run.

Trackers follow ``metrics.csv``: its new rows are sent after each checkpoint and at the end. A run that resumes from its
checkpoint therefore sends no point twice, and a tracker that is added later receives all earlier points. The file
``trackers.toml`` in the run's folder stores the id of the run in each tracker and the number of rows sent.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from plastibench.config.errors import UserError
from plastibench.config.identity import digest_of
from plastibench.config.short_names import own_name, tables_of
from plastibench.config.spec import PARTS, RunSpec, read_toml
from plastibench.results import metrics_csv
from plastibench.results.metrics_csv import Row
from plastibench.results.result import Result
from plastibench.training.trackers.tracker import LoggedStep, RunInfo, Status, Tracker, start, steps_of
from plastibench.utils import atomic_io, digests

STATE_FILE = "trackers.toml"
_LONGEST_REASON = 150  # characters of a tracker's error message


class Tracking:
    """The trackers of one run. A tracker that fails is no longer used, and a line on stderr says so.

    A run with trackers has the same result as one without: they only receive what has been written already.

    Attributes:
        failed: Names of the trackers that failed.
    """

    def __init__(self, names: Sequence[str], spec: RunSpec, folder: Path, *, axis: str, quiet: bool = False) -> None:
        """Start or continue a run in each tracker, unless its run is complete there.

        Args:
            names: Names of trackers, from :func:`~plastibench.training.trackers.tracker.parse_names`.
            spec: The spec of the run.
            folder: Its folder; ``metrics.csv`` ends where the run continues.
            axis: What positions count: ``epoch`` or ``steps``.
            quiet: Do not print where the tracker shows the run.
        """
        self._spec, self._folder, self._axis = spec, folder, axis
        self._state = _read_state(folder / STATE_FILE)
        self.failed: set[str] = set()
        self._open: dict[str, Tracker] = {}
        self._rows: list[Row] = []  # rows that some tracker still needs
        self._first = 0  # number of the first of them in the file
        left = [name for name in names if not self._state.get(name, {}).get("finished")]
        if left and (folder / metrics_csv.NAME).exists():
            try:
                self._rows = list(metrics_csv.read(folder / metrics_csv.NAME))
            except UserError as error:
                self._report(", ".join(left), error)
                left = []
        config = {**tables_of(spec), "plastibench": {"id": spec.id, "group": spec.group()}}
        for name in left:
            with self._survive(name):
                known = self._state.get(name)
                tracker = start(name, _info(spec, folder), None if known is None else known["id"])
                if known is None:
                    self._save_state(name, id=tracker.id, rows=0, finished=False)
                tracker.log_config(config)
                self._open[name] = tracker
                if not quiet:
                    print(f"plastibench: {name}: {tracker.location}", file=sys.stderr)

    def scalars(
        self, update: int, task: int, position: float, phase: str, values: Mapping[str, float | None], prefix: str = ""
    ) -> None:
        """Keep scalars until the next :meth:`send`; see :meth:`plastibench.training.recorder.Recorder.scalars`."""
        if self._open:
            self._rows += metrics_csv.rows_of(update, task, position, phase, values, prefix)

    def send(self) -> None:
        """Send all rows that were not sent before; call it when a checkpoint covers them."""
        end = self._first + len(self._rows)
        for name, tracker in list(self._open.items()):
            sent = self._state[name]["rows"]
            if sent < end:  # more were sent if the newest checkpoint is damaged and the one before it is used
                with self._survive(name, rows=sent):
                    self._save_state(
                        name, rows=end
                    )  # saved first: if the process is killed now, no point is sent twice
                    tracker.log_scalars(steps_of(self._rows[sent - self._first :], sent, self._axis))
        self._rows, self._first = [], end

    def finish(self, result: Result) -> None:
        """Send what is left, then the summary and the costs of the result, as scalars and as a table."""
        self.send()
        end, updates = self._first, result.cost.updates
        groups = {"result": result.summary, "cost": result.cost}
        found = {
            f"{group}/{name}": float(value)
            for group, values in groups.items()
            for name, value in values.model_dump(exclude_none=True).items()
        }
        for name, tracker in list(self._open.items()):
            with self._survive(name):
                tracker.log_scalars([LoggedStep(end, updates, found)])
                tracker.log_table("result", updates, ("metric", "value"), list(found.items()))
                tracker.close("finished")
                self._save_state(name, finished=True)
                del self._open[name]

    def close(self, status: Status) -> None:
        """Close the trackers of a run that did not finish. If the run failed, send all rows first."""
        if status == "failed":
            self.send()
        for name, tracker in list(self._open.items()):
            with self._survive(name):
                tracker.close(status)
        self._open = {}

    @contextlib.contextmanager
    def _survive(self, name: str, **before: Any) -> Iterator[None]:
        """Report an exception of a tracker in one line, and stop using the tracker.

        Args:
            name: Name of the tracker.
            before: What to restore in the stored state, so that it is sent again later.
        """
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self.failed.add(name)
            if before:
                with contextlib.suppress(Exception):
                    self._save_state(name, **before)
            self._report(name, error)

    def _report(self, name: str, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        print(
            f"plastibench: {self._spec.id}: {name} tracking stopped; the run continues ({reason}). Rerun the same "
            "command to send the rest",
            file=sys.stderr,
        )

    def _save_state(self, name: str, **values: Any) -> None:
        self._state[name] = {**self._state.get(name, {}), **values}
        atomic_io.write_text(self._folder / STATE_FILE, digests.signed(tomli_w.dumps(self._state)))


def send_stored(names: Sequence[str], spec: RunSpec, result: Result, *, quiet: bool = False) -> tuple[str, ...]:
    """Send a complete run to the trackers that do not have all of it; return the trackers that did not fail."""
    if not names or result.folder is None:
        return tuple(names)
    tracking = Tracking(names, spec, result.folder, axis="steps" if result.is_rl else "epoch", quiet=quiet)
    tracking.finish(result)
    return tuple(name for name in names if name not in tracking.failed)


def _info(spec: RunSpec, folder: Path) -> RunInfo:
    env, agent, intervention = (getattr(spec, part)[0] for part in PARTS)
    name = own_name(spec)
    tags = {"env": env, "agent": agent, "intervention": intervention, "seed": str(spec.run.seed)}
    return RunInfo(f"{name}·s{spec.run.seed}", f"{env}·{agent}·{name}", digest_of(spec.id), tags, folder.parent)


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    """The stored state of each tracker; empty if the file is damaged, so that a new run starts in each tracker."""
    if not path.exists():
        return {}
    try:
        digests.read_signed(path)
        state = read_toml(path)
    except UserError as error:
        print(f"plastibench: {error}; a new run starts in each tracker", file=sys.stderr)
        return {}
    kinds = {"id": str, "rows": int, "finished": bool}
    return {
        name: values
        for name, values in state.items()
        if isinstance(values, dict) and all(type(values.get(key)) is kind for key, kind in kinds.items())
    }
