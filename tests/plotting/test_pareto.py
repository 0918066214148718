from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from plastibench import plotting
from plastibench.config.errors import UserError
from plastibench.plotting.pareto import front
from plastibench.plotting.style import get_renderer
from plastibench.results.result import Result
from tests.plotting.made import results_of, rl_result, supervised_result


def test_no_point_dominates_a_member_of_the_front() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        points = generator.integers(0, 6, (12, 2)).astype(float)  # with ties
        members = front(points[:, 0], points[:, 1])
        for number, (drop, final) in enumerate(points):
            better = [(d, f) for d, f in points if d <= drop and f >= final and (d, f) != (drop, final)]
            assert (number in members) == (not better)
        assert points[members, 0].tolist() == sorted(points[members, 0])


def result(name: str, seed: int, final: float, drop: float | None) -> Result:
    return supervised_result(name, seed, summary={"final_accuracy": final, "mean_drop": drop})


POINTS = {"none": (0.5, 0.0), "reset": (0.9, 0.5), "rnr": (0.88, 0.1), "redo": (0.6, 0.3), "regrama": (0.88, 0.11)}


def made() -> list[Result]:
    wobble = {0: -0.01, 1: 0.0, 2: 0.01}
    return [result(n, seed, f + w, d + 2 * w) for n, (f, d) in POINTS.items() for seed, w in wobble.items()]


def test_means_intervals_front_and_labels() -> None:
    figure = plotting.draw("pareto", made())
    (axis,) = figure.axes
    means = [container[0].get_xydata()[0] for container in axis.containers]
    np.testing.assert_allclose(means, [(100 * drop, 100 * final) for final, drop in POINTS.values()], atol=1e-9)
    _, _, (across, upwards) = axis.containers[1]
    half = stats.t.ppf(0.975, 2) * 1 / np.sqrt(3)  # final accuracies have a standard deviation of 1 percentage point
    assert upwards.get_segments()[0][:, 1] == pytest.approx([90 - half, 90 + half])
    assert across.get_segments()[0][:, 0] == pytest.approx([50 - 2 * half, 50 + 2 * half])
    (line,) = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    np.testing.assert_allclose(line.get_xydata(), [[0, 50], [10, 88], [50, 90]], atol=1e-9)
    assert [text.get_text() for text in axis.texts] == ["none", "rnr", "reset"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(POINTS)


def test_labels_stay_inside_and_overlap_neither_each_other_nor_points() -> None:
    # all on the front: eight that almost touch, and one far away
    crowd = [result(f"method-{n}", 0, 0.5 + 0.004 * n, 0.003 * n) for n in range(8)] + [result("best", 0, 0.9, 0.9)]
    figure = plotting.draw("pareto", crowd)
    (axis,) = figure.axes
    figure.draw_without_rendering()
    renderer = get_renderer(figure)
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(text, renderer) for text in axis.texts]
    assert len(boxes) == 9
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    points = axis.transData.transform([container[0].get_xydata()[0] for container in axis.containers])
    inside = axis.get_window_extent(renderer)
    for box in boxes:
        assert not any(box.contains(*point) for point in points)
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_rl_runs_have_returns_and_settings_without_interventions_no_panel() -> None:
    found = [rl_result(name, seed) for name in ("none", "rnr") for seed in range(3)]
    (axis,) = plotting.draw("pareto", found).axes
    assert axis.get_ylabel() == "final return" and len(axis.containers) == 2
    assert axis.containers[0][0].get_xdata()[0] == 0  # no drop without interventions
    (axis,) = plotting.draw("pareto", [*results_of("reset"), rl_result()]).axes
    assert axis.get_title() == "cl-digits, vit-nano"
    with pytest.raises(UserError, match="no run has a drop"):
        plotting.draw("pareto", [rl_result()])
