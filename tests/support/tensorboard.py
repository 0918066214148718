"""Read what a run has written for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(folder: Path) -> EventAccumulator:
    """All events of a run, as TensorBoard reads them."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    return found.Reload()


def content(folder: Path) -> dict[str, list[Any]]:
    """All scalars and histograms by tag, without times."""
    events = read(folder)
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith("seconds") and "seconds/" not in tag and tag != "leaderboard/cost %"
    }
    histograms = {
        tag: [(event.step, event.histogram_value) for event in events.Histograms(tag)]
        for tag in events.Tags()["histograms"]
    }
    return {**scalars, **histograms}
