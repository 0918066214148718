"""Summaries for TensorBoard's tabs, built without torch and without TensorFlow.

TensorBoard's own constructors of these summaries import TensorFlow; the protobuf messages do not.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.text import metadata as text_plugin


@dataclass(frozen=True)
class Column:
    """A metric column of the HParams tab: the tag of its scalars, its heading, and its description."""

    tag: str
    title: str
    meaning: str


@dataclass(frozen=True)
class Band:
    """A line with a margin: the tags of its three scalars, which must have the same steps."""

    value: str
    lower: str
    upper: str


def scalar(tag: str, value: float) -> Summary:
    """A scalar."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value)])


def text(tag: str, markdown: str) -> Summary:
    """Markdown for the Text tab."""
    metadata = text_plugin.create_summary_metadata(display_name=tag, description="")
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=_string(markdown))])


def image(tag: str, png: bytes) -> Summary:
    """A PNG file for the Images tab.

    Raises:
        ValueError: The bytes are not a PNG file.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"image '{tag}' is not a PNG file")
    width, height = struct.unpack(">II", png[16:24])
    content = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=content)])


def layout(categories: Mapping[str, Mapping[str, Band]]) -> Summary:
    """The layout of the Custom Scalars tab.

    A chart draws its band once for each run that has the tags, each run in its own colour. Several bands of one run
    would share a colour.

    Args:
        categories: The band of each chart, by title of the category and title of the chart.
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


def experiment(hyperparameters: Sequence[str], metrics: Sequence[Column]) -> Summary:
    """The columns of the HParams tab. TensorBoard reads them from one run, so only one run may have them.

    Args:
        hyperparameters: Names of text columns. The first five are shown unless the user chooses others.
        metrics: Metrics, in column order; likewise.
    """
    content = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type="DATA_TYPE_STRING", differs=True)  # those that differ are shown first
            for name in hyperparameters
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=c.tag), display_name=c.title, description=c.meaning)
            for c in metrics
        ],
    )
    return _hparams(hparams.EXPERIMENT_TAG, experiment=content)


def session(values: Mapping[str, str], name: str) -> Summary:
    """Make a run a row of the HParams tab; its status is empty until :func:`session_end`.

    Args:
        values: Hyperparameters.
        name: The trial's id. Runs with the same name share a row with the means of their metrics.
    """
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time(), group_name=name)
    for key, value in values.items():
        start.hparams[key].string_value = value
    return _hparams(hparams.SESSION_START_INFO_TAG, session_start_info=start)


def session_end() -> Summary:
    """Marks the run as finished: its row shows success."""
    end = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=time.time())
    return _hparams(hparams.SESSION_END_INFO_TAG, session_end_info=end)


def _string(content: str | bytes) -> TensorProto:
    encoded = content.encode() if isinstance(content, str) else content
    return TensorProto(dtype=DT_STRING, string_val=[encoded])


def _hparams(tag: str, **content: Any) -> Summary:
    data = plugin_data_pb2.HParamsPluginData(version=hparams.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(plugin_name=hparams.PLUGIN_NAME, content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
