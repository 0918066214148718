"""Write, atomically replace, or delete the TensorBoard event files of a folder."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from plastibench.utils.atomic_io import atomic, remove_temporary_files

_VERSION = "brain.Event:2"
Entry = tuple[int, Summary]  # step and summary
_LEFT = 5  # number of emptied files to keep, for TensorBoards that have one of them open


class EventFile:
    """A new event file, which sorts after all others of its folder.

    Attributes:
        path: The file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / _next_name(folder)
        self._file = open(self.path, "xb")  # noqa: SIM115 - open until close()
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version=_VERSION).SerializeToString())
        self._file.flush()  # TensorBoard reports empty files

    def add(self, step: int, summary: Summary) -> None:
        """Write a summary."""
        self._records.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())

    def flush(self) -> None:
        """Flush the file to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def replace(folder: Path, summaries: Iterable[Entry], start: float | None = None) -> None:
    """Replace all event files of a folder with a new one, atomically.

    A TensorBoard that has read the old files discards their data: the new file sorts after them by name and begins with
    a session start at step 0. Only one process may write to the folder.

    Args:
        folder: Created if it does not exist.
        summaries: Step and summary of each event.
        start: Start time of the run, in seconds since 1970: TensorBoard sorts runs by it and so chooses their colours.

    Raises:
        RunError: The folder cannot be written; its files are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    older = sorted(event_files(folder))
    name = _next_name(folder)
    wall_time = time.time()
    with atomic(folder / name) as file:
        records = RecordWriter(file)
        started = wall_time if start is None else start
        records.write(Event(wall_time=started, file_version=_VERSION).SerializeToString())
        records.write(Event(wall_time=wall_time, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
        for step, summary in summaries:
            records.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
    # An open TensorBoard continues from the file that it read last and stops updating if that file is deleted, so the
    # latest old files are emptied and kept.
    for path in older[-_LEFT:]:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, 0)
    for path in older[:-_LEFT]:
        path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete the event files of a folder, and the folder if it is then empty."""
    for path in event_files(folder):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder."""
    return list(folder.glob("events.out.tfevents.*"))


def _next_name(folder: Path) -> str:
    """Return a name that sorts after all other event files: TensorBoard reads files by name, not by time."""
    found = (re.match(r"events\.out\.tfevents\.(\d{10})\.(\d{9}\b)?", path.name) for path in event_files(folder))
    stamps = (int(match[1]) * 10**9 + int(match[2] or 10**9 - 1) for match in found if match)
    stamp = max(time.time_ns(), max(stamps, default=0) + 1)
    seconds, nanoseconds = divmod(stamp, 10**9)
    return f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
