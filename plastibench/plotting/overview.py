"""An overview of each setting in one row: scores, gains over ``none``, and final score against drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from plastibench.leaderboard import method_names
from plastibench.plotting.caption import caption
from plastibench.plotting.panels import DROP, first_run, plot_gains, plot_metric, plot_scores, plot_trade_off
from plastibench.plotting.series import methods_by_setting
from plastibench.plotting.style import finish, legend_handles, method_styles, set_title, subplots
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overview(results: Sequence[Result]) -> Figure:
    """One row per env and agent: accuracy at the end of each task, gain over ``none``, final accuracy against drop.

    For RL: return over steps, fraction of low-gradient units in the critic, final return against drop if there were
    interventions.

    Args:
        results: Results.
    """
    styles, settings = method_styles(method_names(results).values()), methods_by_setting(results)
    with_drops = [
        title
        for title, groups in settings.items()
        if any(not run.is_rl or run.events for runs in groups.values() for run in runs)
    ]
    figure, axes = subplots(len(settings), 3 if with_drops else 2, height=2.8)
    for (title, groups), row in zip(settings.items(), axes, strict=True):
        plot_scores(row[0], groups, styles)
        set_title(row[0], title)
        if first_run(groups).is_rl:
            plot_metric(row[1], groups, styles, "low-gradient-ratio", "critic")
            row[1].set_title("low-gradient units in the critic")
        else:
            plot_gains(row[1], groups, styles)
        if title in with_drops:
            plot_trade_off(row[2], groups, styles)
        elif with_drops:
            row[2].set_visible(False)
    sentences, intervals = ([DROP], "bands and bars") if with_drops else ([], "bands")
    return finish(figure, legend_handles(styles), caption(results, *sentences, intervals=intervals))
