from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plastibench import plotting
from plastibench.config.errors import UserError
from tests.plotting.made import accuracies, results_of, rl_result, supervised_result


def drawn(axis, colour: str):
    """The thick line of a colour, and the corners of the bands of this colour."""
    from matplotlib.colors import to_hex

    (line,) = [line for line in axis.lines if to_hex(line.get_color()) == colour.lower() and line.get_linewidth() > 1]
    bands = [band for band in axis.collections if to_hex(band.get_facecolor()[0]) == colour.lower()]
    return line, [band.get_paths()[0].vertices for band in bands]


def test_a_line_is_the_mean_over_seeds_with_its_interval_as_a_band() -> None:
    figure = plotting.draw("curves", results_of("none", "reset", seeds=5))
    (axis,) = figure.axes
    line, (band,) = drawn(axis, "#0072B2")
    ends = 100 * np.array([accuracies(seed, "reset[]") for seed in range(5)])
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(line.get_ydata(), ends.mean(0))
    low, high = stats.t.interval(0.95, 4, loc=ends.mean(0), scale=stats.sem(ends))
    for task in range(4):
        at = band[band[:, 0] == task + 1, 1]
        assert (at.min(), at.max()) == pytest.approx((low[task], high[task]))
    assert axis.get_ylabel() == "accuracy at end of task (%)" and axis.get_title() == "cl-digits, vit-nano"


def test_two_seeds_are_drawn_each_without_a_band() -> None:
    (axis,) = plotting.draw("curves", results_of("none", seeds=2)).axes
    assert len(axis.lines) == 3 and not axis.collections
    np.testing.assert_allclose(axis.lines[1].get_ydata(), 100 * accuracies(0, "none[]"))


def test_each_setting_has_a_panel_with_the_same_colours() -> None:
    found = [
        *results_of("none", "rnr"),
        *results_of("rnr", "none", env="relabel-digits", agent="mlp"),
        rl_result("rnr"),
    ]
    first, second, third, empty = plotting.draw("curves", found).axes
    assert [axis.get_title() for axis in (first, second, third)] == [
        *("cl-digits, vit-nano", "relabel-digits, mlp", "rl-cartpole, dqn-mlp"),
    ]
    assert not empty.get_visible() and third.get_ylabel() == "return"
    colours = [{line.get_color() for line in axis.lines} for axis in (first, second, third)]
    assert colours[0] == colours[1] == {"#000000", *colours[2]}


def test_a_metric_is_drawn_at_the_end_of_each_task_and_ratios_in_percent() -> None:
    figure = plotting.draw("curves", results_of("none"), metric="dormant-ratio")
    (axis,) = figure.axes
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 15 + np.arange(4))  # 10 % times mean seed 1.5, 1 % a task
    assert axis.get_ylabel() == "dormant-ratio (%)"
    assert "E|h_i|" in figure.texts[0].get_text()  # its definition
    (axis,) = plotting.draw("curves", results_of("none"), metric="srank").axes
    assert axis.get_ylabel() == "srank" and set(axis.lines[0].get_ydata()) == {5.0}


def test_a_metric_of_an_rl_agent_is_that_of_its_first_network() -> None:
    (axis,) = plotting.draw("curves", [rl_result(seed=seed) for seed in range(3)], metric="low-gradient-ratio").axes
    np.testing.assert_allclose(axis.lines[0].get_xydata(), [[1000, 10], [2000, 20]])


def test_an_unknown_metric_raises_an_error_with_the_recorded_ones() -> None:
    with pytest.raises(
        UserError, match=r"no run has the metric 'dormant-rate'; did you mean 'dormant-ratio'\? \(recorded: "
    ):
        plotting.draw("curves", [supervised_result()], metric="dormant-rate")


def test_gains_in_the_overview_are_paired_by_seed() -> None:
    found = [*results_of("none", seeds=3), *results_of("reset", seeds=4)]
    left, middle, right = plotting.draw("overview", found).axes
    line, (band,) = drawn(middle, "#0072B2")
    gains = 100 * np.array([accuracies(s, "reset[]") - accuracies(s, "none[]") for s in range(3)])
    np.testing.assert_allclose(line.get_ydata(), gains.mean(0))
    half = stats.t.ppf(0.975, 2) * stats.sem(gains)
    assert band[:, 1].max() == pytest.approx((gains.mean(0) + half).max())
    np.testing.assert_allclose(
        drawn(left, "#0072B2")[0].get_ydata(), 100 * np.mean([accuracies(s, "reset[]") for s in range(4)], 0)
    )
    assert right.get_xlabel() == "mean drop (percentage points)"


def test_the_overview_of_an_rl_agent_shows_its_critic() -> None:
    _, middle, right = plotting.draw("overview", [rl_result("rnr", seed) for seed in range(3)]).axes
    assert "critic" in middle.get_title() and right.get_visible()
    np.testing.assert_allclose(middle.lines[0].get_ydata(), [10, 20])
    assert len(plotting.draw("overview", [rl_result()]).axes) == 2  # no interventions, no drops
    axes = plotting.draw("overview", [rl_result(), supervised_result()]).axes
    assert [axis.get_visible() for axis in axes] == [True] * 5 + [False]
