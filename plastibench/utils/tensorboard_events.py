"""TensorBoard event files: replace those of a folder atomically, or delete them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from plastibench.utils.atomic_io import atomic

Entry = tuple[int, Summary]  # step and summary
_LEFT = 5  # number of emptied files to keep, for TensorBoards that have one of them open


def replace(folder: Path, summaries: Iterable[Entry], start: float | None = None) -> None:
    """Replace all event files of a folder with a new one, atomically.

    A TensorBoard that has read the old files discards their data: the new file sorts after them by name and begins with
    a session start at step 0.

    Args:
        folder: Created if it does not exist.
        summaries: Step and summary of each event.
        start: Start time of the run, in seconds since 1970: TensorBoard sorts runs by it and so chooses their colours.

    Raises:
        RunError: The folder cannot be written; its files are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    name = f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{socket.gethostname()}.{os.getpid()}"
    wall_time = now / 1e9
    with atomic(folder / name) as file:
        records = RecordWriter(file)
        started = wall_time if start is None else start
        records.write(Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
        records.write(Event(wall_time=wall_time, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
        for step, summary in summaries:
            records.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
    # An open TensorBoard continues from the file that it read last and stops updating if that file is deleted, so the
    # latest old files are emptied and kept. A newer file of another process is left alone.
    older = sorted(path for path in folder.glob("events.out.tfevents.*") if path.name < name)
    for path in older[-_LEFT:]:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, 0)
    for path in older[:-_LEFT]:
        path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete the event files of a folder, and the folder if it is then empty."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
