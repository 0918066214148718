from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text

from plastibench import plotting
from plastibench.config.errors import UserError
from plastibench.plotting.heatmap import read_layers
from plastibench.results.result import Result
from tests.plotting.made import supervised_result

HEADER = "update,task,epoch,phase,metric,value\n"


def table(folder: Path, rows: list[tuple[int, str, str, float]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"7,{task},1.5,{phase},{metric},{value}\n" for task, phase, metric, value in rows]
    (folder / "metrics.csv").write_text(HEADER + "".join(lines), encoding="utf-8")
    return folder


def run(tmp_path: Path, name: str, seed: int, shift: float) -> Result:
    """A run with two tasks and the layers z (executed first) and a."""
    rows = [
        (0, "after", "layers-classifier/z/dormant-ratio", 0.9),
        (0, "training", "accuracy", 0.9),
        *(
            (t, "end", f"layers-classifier/{n}/dormant-ratio", shift + 0.1 * t + 0.01 * (n == "a"))
            for t in (0, 1)
            for n in "za"
        ),
        *((t, "end", f"layers-classifier/{n}/weight-norm", 3.0) for t in (0, 1) for n in ("z", "a", "head")),
    ]
    rows.append((1, "after", "layers-classifier/z/dormant-ratio", 0.9))  # not the end of a task
    return supervised_result(name, seed, folder=table(tmp_path / f"{name}{seed}", rows))


def test_cells_are_means_over_seeds_by_layer_and_task(tmp_path: Path) -> None:
    found = [
        run(tmp_path, name, seed, 0.1 * seed + bias)
        for name, bias in (("reset", 0.2), ("none", 0.0))
        for seed in (0, 1)
    ]
    figure = plotting.draw("heatmap", found)
    first, second, bar = figure.axes
    assert [axis.get_title() for axis in (first, second)] == ["none", "reset"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["z", "a"]
    np.testing.assert_allclose(first.images[0].get_array(), [[5, 15], [6, 16]])
    np.testing.assert_allclose(second.images[0].get_array(), [[25, 35], [26, 36]])
    assert first.images[0].get_extent() == [0.5, 2.5, 1.5, -0.5]  # task 1 at x = 1, the first layer on top
    assert first.images[0].get_clim() == second.images[0].get_clim() == pytest.approx((0.0, 36.0))
    assert bar.get_ylabel() == "dormant-ratio (%)"
    assert "cl-digits, vit-nano: dormant-ratio of each layer" in figure.texts[0].get_text().replace("\n", " ")


def test_another_metric_has_other_layers_and_no_percentages(tmp_path: Path) -> None:
    axis, bar = plotting.draw("heatmap", [run(tmp_path, "none", 0, 0.0)], metric="weight-norm").axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        "z",
        "a",
        "head",
    ] and bar.get_ylabel() == "weight-norm"
    assert set(np.ravel(axis.images[0].get_array())) == {3.0}


def test_a_layer_without_a_value_stays_empty(tmp_path: Path) -> None:
    one = supervised_result(folder=table(tmp_path / "x", [
        (0, "end", "layers-classifier/fc/dormant-ratio", 0.5),
        (1, "end", "layers-classifier/fc/dormant-ratio", 0.5),
        (1, "end", "layers-classifier/new/dormant-ratio", 0.25),
    ]))  # fmt: skip
    values = plotting.draw("heatmap", [one]).axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(values.astype(float), np.nan), [[50, 50], [np.nan, 25]])


def test_the_last_measurement_in_each_task_is_read_for_each_network(tmp_path: Path) -> None:
    rows = [(0, "training", f"layers-{role}/fc/srank", value) for value in (1.0, 2.0) for role in ("critic", "actor")]
    path = table(tmp_path / "x", rows) / "metrics.csv"
    assert read_layers(path) == {"srank": {("critic: fc", 0): 2.0, ("actor: fc", 0): 2.0}}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("envs", "methods", "layers", "tasks"),
    [(1, 1, 1, 2), (1, 2, 2, 3), (4, 1, 2, 3), (4, 4, 2, 3), (2, 3, 9, 1), (1, 2, 40, 12)],
)
@pytest.mark.parametrize("metric", ["dormant-ratio", "layernorm-gradient-spread"])
def test_panels_and_texts_have_room(
    tmp_path: Path, envs: int, methods: int, layers: int, tasks: int, metric: str
) -> None:
    rows = [
        (task, "end", f"layers-classifier/body.{layer}/{metric}", 0.1 * layer)
        for task in range(tasks)
        for layer in range(layers)
    ]
    folder = table(tmp_path / "x", rows)
    found = [
        supervised_result(f"method-{method}", env=f"a-long-name-of-an-env-{env}", folder=folder)
        for env in range(envs)
        for method in range(methods)
    ]
    figure = plotting.draw("heatmap", found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns if panels have no room
        figure.draw_without_rendering()
    *panels, bar = [axis for axis in figure.axes if axis.get_visible()]
    assert len(panels) == envs * methods
    for axis in panels:
        assert axis.get_window_extent().height / figure.dpi >= 0.12 * layers
        apart(axis.get_yticklabels())
        low, high = axis.get_xlim()
        ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)
        apart(axis.get_xticklabels())
    apart([axis.title for axis in panels])
    low, high = bar.get_ylim()
    apart([text for text in bar.get_yticklabels() if low <= text.get_position()[1] <= high])
    label = bar.yaxis.label.get_window_extent()
    assert bar.get_window_extent().height >= label.height
    for text in (bar.yaxis.label, *(axis.title for axis in panels)):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def apart(texts: Sequence[Text]) -> None:
    """Check that no two texts overlap."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_errors_name_the_file_or_the_recorded_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result has a metrics\.csv next to it"):
        plotting.draw("heatmap", [supervised_result(), supervised_result("reset", folder=tmp_path)])
    found = [run(tmp_path, "none", 0, 0.0)]
    with pytest.raises(
        UserError, match=r"'dormant'; did you mean 'dormant-ratio'\? \(recorded: dormant-ratio, weight-norm\)"
    ):
        plotting.draw("heatmap", found, metric="dormant")
    (tmp_path / "none0" / "metrics.csv").write_text(HEADER + "7,zero,1,end,layers-classifier/z/srank,1\n")
    with pytest.raises(UserError, match=r"metrics\.csv cannot be read \(ValueError"):
        plotting.draw("heatmap", found)
