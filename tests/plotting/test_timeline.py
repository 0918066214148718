from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from plastibench import plotting
from plastibench.results.result import Result
from plastibench.results.table import Results
from tests.plotting.made import rl_result, supervised_result

LOST = {"none": 0.0, "reset": 0.4, "rnr": 0.1}  # accuracy right at a boundary


def stream(name: str, seed: int = 0, tasks: int = 4, **other: object) -> Result:
    """A run whose accuracy rises from 0.2 to 0.8 (plus 0.01 per seed) in each task of 4 epochs."""
    end, lost = 0.8 + 0.01 * seed, LOST.get(name, 0.0)
    curve = [(0.0, 0.2), (1.0, 0.4), (4.0, end)]
    task = {"samples": 10, "noise": 0.0, "curve": curve, "end": end, "auc": 0.5, "recovery": 4.0}
    first = {"task": 0, "before": None, "after": None, "drop": None}
    later = {"before": end, "after": end - lost, "drop": lost}
    made = [{**task, **(first if n == 0 else later), "task": n} for n in range(tasks)]
    return supervised_result(name, seed, tasks=made, **other)


def line(axis, colour: str = "#0072b2"):
    """Vertices of the only thick line of a colour."""
    (found,) = [
        drawn
        for drawn in axis.lines
        if to_hex(drawn.get_color()) == colour and drawn.get_linewidth() > 1 and len(drawn.get_xdata()) > 2
    ]
    return found.get_xydata()


def test_the_line_of_a_run_shows_every_epoch_the_drop_and_the_gap_between_tasks() -> None:
    left, _ = plotting.draw("timeline", [stream("none"), stream("reset")]).axes
    expected = [(0, 20), (1, 40), (4, 80), (4, 40), (4, np.nan), (4, 20), (5, 40), (8, 80), (8, 40), (8, np.nan)]
    np.testing.assert_allclose(line(left)[:10], expected)
    assert line(left)[-1].tolist() == [16, 80]
    assert not np.isin(40, line(left, "#000000")[2:4, 1])  # none loses nothing
    boundaries = [drawn.get_xdata()[0] for drawn in left.lines if list(drawn.get_ydata()) == [0, 1]]
    assert boundaries == [4, 8, 12]


def test_lines_are_means_over_seeds_with_their_interval() -> None:
    left, right = plotting.draw("timeline", [stream("reset", seed) for seed in range(5)]).axes
    ends = 80 + np.arange(5.0)
    assert line(left)[2].tolist() == [4, ends.mean()]
    for axis, at in ((left, 4), (right, 4)):
        (band,) = axis.collections
        corners = np.concatenate([path.vertices for path in band.get_paths()])
        half = stats.t.ppf(0.975, 4) * stats.sem(ends)
        assert corners[corners[:, 0] == at][:, 1].max() == pytest.approx(ends.mean() + half)


def test_the_second_panel_is_the_mean_over_boundaries() -> None:
    _, right = plotting.draw("timeline", [stream("none"), stream("reset"), stream("rnr")]).axes
    np.testing.assert_allclose(line(right)[1:], [(0, 80), (0, 40), (0, np.nan), (0, 20), (1, 40), (4, 80)])
    assert line(right, "#d55e00")[2].tolist() == [0, pytest.approx(70)]
    levels = [drawn.get_ydata()[0] for drawn in right.lines if drawn.get_linestyle() == ":"]
    assert levels == pytest.approx([80, 80, 80])  # the accuracy to recover


@pytest.mark.parametrize(
    ("tasks", "methods", "detail"), [(20, 2, True), (21, 2, False), (20, 7, False), (100, 1, False)]
)
def test_long_streams_and_many_methods_are_drawn_by_task(tasks: int, methods: int, detail: bool) -> None:
    found = [stream(f"method-{number}", tasks=tasks) for number in range(methods)]
    figure = plotting.draw("timeline", found)
    left, right = figure.axes
    assert left.get_xlabel() == ("epoch" if detail else "task") and right.get_title() == "drop and recovery"
    assert ("Lines break" in figure.texts[0].get_text()) == detail


def test_the_best_of_many_methods_are_drawn_beside_none_and_reset() -> None:
    found = [stream("none"), stream("reset"), *(stream(f"m{number:02}") for number in range(20))]
    for result in found[2:]:
        result.summary.final_accuracy = 0.01 * int(result.intervention[1:])
    figure = plotting.draw("timeline", found)
    shown = {text.get_text() for text in figure.legends[0].get_texts()}
    assert shown == {"none", "reset", *(f"m{number:02}" for number in range(10, 20))}
    assert "Of 22 methods" in " ".join(figure.texts[0].get_text().split())


def test_interventions_within_a_task_are_marked_where_they_happened() -> None:
    record = {"update": 9, "role": "classifier", "seconds": 0.1, "revived_fraction": 1.0, "parameters": 9}
    records = [{**record, "task": 1, "position": 0.5, "before": 0.3, "after": 0.1}]
    left, right = plotting.draw("timeline", [stream("rnr", interventions=records, every=5)]).axes
    assert right.get_title() == "after a task boundary"
    vertices = line(left, "#d55e00").tolist()
    at = vertices.index([4.5, pytest.approx(30)])
    assert vertices[at + 1] == [4.5, pytest.approx(10)] and vertices[at + 2] == [5, 40]
    (ticks,) = [drawn for drawn in left.lines if drawn.get_marker() == "|"]
    assert list(ticks.get_xdata()) == [4.5]
    left, _ = plotting.draw("timeline", [stream("none", interventions=records, every=5)]).axes
    assert not [drawn for drawn in left.lines if drawn.get_marker() == "|"]  # it only seems to intervene


def test_returns_fall_where_an_agent_was_intervened_on() -> None:
    figure = plotting.draw("timeline", [rl_result("rnr", seed) for seed in range(3)])
    (axis,) = figure.axes
    vertices = line(axis, "#d55e00").tolist()
    at = vertices.index([1000, 9])
    assert vertices[at + 1] == [1000, 8] and axis.get_ylabel() == "return" and axis.get_xlabel() == "agent steps"
    (ticks,) = [drawn for drawn in axis.lines if drawn.get_marker() == "|"]
    assert list(ticks.get_xdata()) == [1000, 2000] and "Marks above the x axis" in figure.texts[0].get_text()
    (axis,) = plotting.draw("timeline", [rl_result("none", tasks=2)]).axes
    assert np.isnan(line(axis, "#000000")).any()  # interrupted at the task boundary


def test_results_draw_the_timeline_and_other_kinds() -> None:
    found = Results([stream("none"), stream("reset")])
    assert len(found.plot().axes) == 2
    assert found.plot()._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    assert found.plot("curves", metric="drop").axes[0].get_ylabel() == "drop (percentage points)"
