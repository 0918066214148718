"""Read what trackers have stored on this machine."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = dict[str, list[tuple[int, float]]]  # chart to (update, value)

_BLOCK, _HEADER = 1 << 15, 7  # bytes of a block of LevelDB's log format, and of the header of each chunk and of a file


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records in the ``.wandb`` file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("run-*.wandb")
    data, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # complete, or the last chunk
            yield Record.FromString(parts)
            parts = b""


def wandb_points(folder: Path) -> tuple[Points, list[int]]:
    """The charts of all offline runs in a folder, oldest first, with ``update`` as x-axis; and wandb's own steps."""
    found: Points = defaultdict(list)
    steps = []
    for run in sorted(folder.glob("wandb/offline-run-*")):
        for record in wandb_records(run):
            if record.WhichOneof("record_type") != "history":
                continue
            items = [(item.key or item.nested_key[0], len(item.nested_key), item) for item in record.history.item]
            values = {name: json.loads(item.value_json) for name, depth, item in items if depth < 2}  # no tables
            steps.append(record.history.step.num)
            for name, value in values.items():
                if not name.startswith("_") and name != "update":
                    found[name].append((values["update"], value))
    return found, steps


def mlflow_points(client: Any, run_id: str) -> Points:
    """The charts of a run, in the order in which they were sent."""
    names = client.get_run(run_id).data.metrics
    return {
        name: [
            (metric.step, metric.value)
            for metric in sorted(client.get_metric_history(run_id, name), key=lambda metric: metric.timestamp)
        ]
        for name in names
    }


def trackio_points(project: str, run_id: str) -> Points:
    """The charts of a run."""
    from trackio.sqlite_storage import SQLiteStorage

    found: Points = defaultdict(list)
    for row in SQLiteStorage.get_logs(project, run_id=run_id):
        for name, value in row.items():
            if name not in ("step", "timestamp") and not isinstance(value, dict | list):
                found[name].append((row["step"], value))
    return found
