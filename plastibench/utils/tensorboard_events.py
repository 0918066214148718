"""TensorBoard's files: summaries for its tabs, and event files, without torch and without TensorFlow.

TensorBoard's own constructors of these summaries import TensorFlow; the messages themselves do not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.text import metadata as text_plugin
from tensorboard.summary.writer.record_writer import RecordWriter

from plastibench.utils.atomic_io import atomic

Entry = tuple[int, Summary]  # with its step
_LEFT = 5  # emptied files that stay for those who have one of them open


@dataclass(frozen=True)
class Column:
    """A metric in the HParams tab: the tag of the scalars that hold it, its heading, what it means."""

    tag: str
    title: str
    meaning: str


@dataclass(frozen=True)
class Band:
    """A line with a margin, as the tags of its three scalars, which must have the same steps."""

    value: str
    lower: str
    upper: str


def scalar(tag: str, value: float) -> Summary:
    """A number."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value)])


def text(tag: str, markdown: str) -> Summary:
    """Markdown for the Text tab."""
    metadata = text_plugin.create_summary_metadata(display_name=tag, description="")
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=_string(markdown))])


def image(tag: str, png: bytes) -> Summary:
    """A PNG file for the Images tab.

    Raises:
        ValueError: These bytes are no PNG file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"picture '{tag}' is not PNG")
    width, height = struct.unpack(">II", png[16:24])
    content = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def layout(categories: Mapping[str, Mapping[str, Band]]) -> Summary:
    """The page of the Custom Scalars tab.

    A chart draws its band once for every run that has the tags, each run in its own colour. Several bands of one run
    would share a colour.

    Args:
        categories: Title of a category to the titles of its charts and the band of each.
    """
    page = layout_pb2.Layout()
    for title, charts in categories.items():
        category = page.category.add(title=title)
        for name, band in charts.items():
            series = layout_pb2.MarginChartContent.Series(value=band.value, lower=band.lower, upper=band.upper)
            category.chart.add(title=name, margin=layout_pb2.MarginChartContent(series=[series]))
    metadata = custom_scalar.create_summary_metadata()
    tensor = _string(page.SerializeToString())
    return Summary(value=[Summary.Value(tag=custom_scalar.CONFIG_SUMMARY_TAG, metadata=metadata, tensor=tensor)])


def session(values: Mapping[str, str | float], columns: Sequence[Column], shown: Collection[str] = ()) -> list[Summary]:
    """What makes a run a row of the HParams tab, which stands without a status until :func:`session_end`.

    Args:
        values: Hyperparameters. TensorBoard takes the columns from any one run: all runs need the same names, with
            values of the same types.
        columns: Metrics, in the order of their columns.
        shown: Hyperparameters that come first; TensorBoard shows five until more are ticked.
    """
    kinds = {name: "STRING" if isinstance(value, str) else "FLOAT64" for name, value in values.items()}
    experiment = api_pb2.Experiment(
        hparam_infos=[  # sorted by what differs, then by name
            api_pb2.HParamInfo(name=name, type=f"DATA_TYPE_{kind}", differs=name in shown)
            for name, kind in kinds.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=c.tag), display_name=c.title, description=c.meaning)
            for c in columns
        ],
    )
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in values.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    return [
        _hparams(hparams.EXPERIMENT_TAG, experiment=experiment),
        _hparams(hparams.SESSION_START_INFO_TAG, session_start_info=start),
    ]


def session_end() -> Summary:
    """The run has come to its end: its row shows success."""
    end = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=time.time())
    return _hparams(hparams.SESSION_END_INFO_TAG, session_end_info=end)


def replace(folder: Path, summaries: Iterable[Entry], turn: int = 0) -> None:
    """Write one event file that takes the place of all that are in a folder, atomically.

    A TensorBoard that has read the old ones forgets them: the new file comes later in the order of names, and begins
    with the mark of a restart at step 0.

    Args:
        folder: Made if it is missing.
        summaries: Step and summary of each event.
        turn: Place among runs that are written together: TensorBoard lists runs by the time of their first event.

    Raises:
        RunError: The folder cannot be written; what was there is untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    name = f"events.out.tfevents.{now // 10**9:010d}.{now % 10**9:09d}.{socket.gethostname()}.{os.getpid()}"
    wall_time = now / 1e9 + turn
    with atomic(folder / name) as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
        records.write(Event(wall_time=wall_time, session_log=SessionLog(status=SessionLog.START)).SerializeToString())
        for step, summary in summaries:
            records.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
    # A TensorBoard that is open reads on from the file that it has read last, and stands still where that is gone.
    # Another process may have put a newer one there meanwhile: that one stays.
    older = sorted(path for path in folder.glob("events.out.tfevents.*") if path.name < name)
    for path in older[-_LEFT:]:
        with contextlib.suppress(FileNotFoundError):
            os.truncate(path, 0)
    for path in older[:-_LEFT]:
        path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete the event files of a folder, and the folder where nothing else is left."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _string(content: str | bytes) -> TensorProto:
    encoded = content.encode() if isinstance(content, str) else content
    return TensorProto(dtype=DT_STRING, string_val=[encoded])


def _hparams(tag: str, **content: Any) -> Summary:
    data = plugin_data_pb2.HParamsPluginData(version=hparams.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(plugin_name=hparams.PLUGIN_NAME, content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
