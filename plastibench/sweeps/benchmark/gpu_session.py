"""Measure the rows of ``bench gpu`` within a time budget; a second call continues with the rows that are missing."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plastibench.config.errors import UserError
from plastibench.sweeps.benchmark.gpu_measures import MEASURES, NotSupported
from plastibench.sweeps.benchmark.gpu_report import MARKDOWN_FILE, GpuReport
from plastibench.sweeps.benchmark.gpu_rows import MODES, Row, Sizes, all_rows
from plastibench.sweeps.benchmark.gpu_runs import train
from plastibench.utils import provenance
from plastibench.utils.wording import plural

_SECONDS_TO_STOP = 15.0  # that training runs need to checkpoint
_SECONDS_TO_START = 45.0  # shorter training runs would not get far
_LONGEST_REASON = 200  # characters


def measure_gpu(
    folder: Path, sizes: Sizes, minutes: float, data_dir: Path, only: str = "", say: Callable[[str], None] | None = None
) -> GpuReport:
    """Measure row by row, and write the files after each.

    A row starts if the time that is left covers the longest row of its kind and mode so far. A row that fails is
    recorded with its error, and repeated by the next call; if the GPU is unusable afterwards, this call ends.

    Args:
        folder: Folder of the files; it may hold those of an earlier call.
        sizes: Device and sizes.
        minutes: The budget.
        data_dir: Folder of datasets, for the training runs.
        only: Measure only rows whose name contains this text.
        say: Receives a line of progress.

    Raises:
        UserError: The folder cannot be continued, or no row has this name.
    """
    deadline = time.monotonic() + 60 * minutes
    rows = [row for row in all_rows() if only in row.name]
    if not rows:
        raise UserError(f"--only {only}: no row has this in its name, such as {all_rows()[0].name}")
    session = {
        "command": provenance.command(),
        "started": provenance.now(),
        "updates": sizes.updates,
        "rounds": sizes.rounds,
        **provenance.session(sizes.device),
    }
    report = GpuReport(folder, session, [row.name for row in rows], sizes.rehearsal)
    rows.sort(key=lambda row: report.has_failed(row.name))  # earlier failures may repeat: last
    for number, row in enumerate(rows, 1):
        if report.is_done(row.name):
            continue
        left = deadline - time.monotonic()
        if left <= 0 or left < _longest(report, row):
            continue
        start = time.monotonic()
        record = _measure(row, sizes, report, data_dir, deadline)
        record["took"] = time.monotonic() - start
        report.add(row.name, record)
        if say is not None:
            text = record.get("reason", record["status"])
            say(f"{number}/{len(rows)}  {row.name}: {text} ({record['took']:.1f} s)")
        if not _usable(sizes.device):
            break
    report.write()
    return report


def _measure(row: Row, sizes: Sizes, report: GpuReport, data_dir: Path, deadline: float) -> dict[str, Any]:
    """Measure a row; errors become a record."""
    threads = torch.get_num_threads()
    try:
        if row.kind == "runs":
            row = replace(row, mode=_mode_of_runs(report, row))
            values = train(row, sizes, report.folder / "runs", data_dir, deadline - _SECONDS_TO_STOP)
            values["mode"] = row.mode
            if not values["complete"]:
                return {**values, "status": "incomplete", "reason": "stopped when the time was over"}
        else:
            values = MEASURES[row.kind](row, sizes)
        return {**values, "status": "measured"}
    except NotSupported as error:
        return {"status": "not supported", "reason": str(error)}
    except Exception as error:  # of a kernel, a compiler, memory, …
        return {"status": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]}
    finally:
        torch.set_num_threads(threads)
        if row.mode != "eager":
            torch.compiler.reset()
        if sizes.device.startswith("cuda") and _usable(sizes.device):
            gc.collect()
            torch.cuda.empty_cache()


def _longest(report: GpuReport, row: Row) -> float:
    """Seconds of the longest row of the same kind and mode; training runs stop by themselves."""
    if row.kind == "runs":
        return _SECONDS_TO_START
    alike = [each.name for each in all_rows() if (each.kind, each.mode) == (row.kind, row.mode)]
    return max((report.records[name]["took"] for name in alike if name in report.records), default=0.0)


def _mode_of_runs(report: GpuReport, row: Row) -> str:
    """The mode of training runs that were already started, or the fastest one measured."""
    if started := report.records.get(row.name, {}).get("mode"):
        return str(started)
    names = {mode: replace(row, kind="update", mode=mode).name for mode in MODES}
    measured = {mode: report.records.get(name, {}).get("plastibench") for mode, name in names.items()}
    times = {mode: seconds[1] for mode, seconds in measured.items() if seconds}
    return min(times, key=lambda mode: times[mode], default="eager")


def _usable(device: str) -> bool:
    """Whether a GPU still works; after an illegal access, every later call in this process fails."""
    if device.startswith("cuda"):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def summary(report: GpuReport) -> str:
    """What was measured, and where it is."""
    count = dict.fromkeys(("measured", "incomplete", "failed", "not supported"), 0)
    for record in report.records.values():
        count[record["status"]] += 1
    missing = sum(not report.is_done(name) for name in report.names)
    parts = [f"{number} {status}" for status, number in count.items() if number]
    if missing:
        parts.append(f"{plural(missing, 'row')} to do: repeat the command to continue")
    return f"{', '.join(parts)}\n{report.folder / MARKDOWN_FILE}"
