"""What a TensorBoard server answers for its tabs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from plastibench.leaderboard import tensorboard
from plastibench.leaderboard.standings import standings
from plastibench.results.hparams import GROUP, METRICS, metric_values
from tests.leaderboard import boards

_SHOWN = [
    "env",
    "intervention",
    "seed",
]  # what differs: each env has one agent, and all runs of rnr have the same quantile


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boards.Served]:
    runs_dir = tmp_path_factory.mktemp("runs")
    found = boards.make(runs_dir)
    tensorboard.write(runs_dir, standings(found), {"fig 2/left": boards.png(30, 20)})
    with boards.serve(runs_dir, found) as served:
        yield served


def rows(served: boards.Served, sort_by: str | None = None, order: str = "ORDER_DESC") -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = [{"metric": {"tag": f"{GROUP}/{metric.name}"}} for metric in METRICS]
    for column in columns:
        if column["metric"]["tag"] == f"{GROUP}/{sort_by}":
            column["order"] = order
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    request = {"allowedStatuses": statuses, "colParams": columns, "startIndex": 0, "sliceSize": 100}
    answer = served.post("plugin/hparams/session_groups", request)
    return answer["sessionGroups"]


def values_of(row: dict[str, Any]) -> dict[str, float]:
    return {value["name"]["tag"].removeprefix(f"{GROUP}/"): value["value"] for value in row["metricValues"]}


def test_columns_are_those_that_differ(served: boards.Served) -> None:
    experiment = served.post("plugin/hparams/experiment", {})
    assert [(info["name"], info["differs"]) for info in experiment["hparamInfos"]] == [(name, True) for name in _SHOWN]
    titles = [info["displayName"] for info in experiment["metricInfos"]]
    assert titles == [metric.name for metric in METRICS]  # of both kinds of runs


def test_each_run_has_a_row_with_a_short_name_and_the_values_of_its_result(served: boards.Served) -> None:
    found = rows(served)
    shown = {row["sessions"][0]["name"]: row for row in found}
    running = [name for name in shown if "_s7_" in name]
    assert sorted(shown) == sorted([*(result.id for result in served.found), *running]) and len(running) == 1
    assert len({row["name"] for row in found}) == len(found)
    for result in served.found:
        row = shown[result.id]
        expected = metric_values(result.summary, result.cost)
        assert values_of(row) == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
        assert (row["hparams"]["intervention"], row["hparams"]["seed"]) == (result.intervention, str(result.seed))
        assert row["hparams"]["data"] == "0123456789ab"
        quantile = "·q=0.2" if result.intervention == "rnr" else ""
        assert row["name"] == f"{result.intervention}{quantile}·s{result.seed}·{result.id.rpartition('_')[2][:8]}"
    assert {row["hparams"].get("quantile") for row in found} == {None, "0.2"}
    assert {row["hparams"]["env"] for row in found} == {"cl-digits", "rl-cartpole"}


def test_only_finished_runs_have_a_status(served: boards.Served) -> None:
    for row in rows(served):
        (session,) = row["sessions"]
        is_running = "_s7_" in session["name"]
        assert session["status"] == ("STATUS_UNKNOWN" if is_running else "STATUS_SUCCESS")
        assert ({"final %", "final return"}.isdisjoint(values_of(row))) == is_running


@pytest.mark.parametrize("name", ["final %", "recovered in"])
def test_rows_are_sorted_with_empty_cells_last(served: boards.Served, name: str) -> None:
    for order, direction in (("ORDER_DESC", -1), ("ORDER_ASC", 1)):
        values = [values_of(row).get(name) for row in rows(served, name, order)]
        present = [value for value in values if value is not None]
        assert 0 < len(present) < len(values) and values[: len(present)] == present
        assert present == sorted(present, key=lambda value: direction * value)


def test_scalars_of_a_run_are_served(served: boards.Served) -> None:
    name = served.found[0].id
    points = served.get("plugin/scalars/scalars", run=name, tag="accuracy")
    assert [(step, value) for _, step, value in points] == [(0, 0.125), (1, 0.25), (2, 0.5)]


def test_charts_contain_means_and_intervals_over_seeds(served: boards.Served) -> None:
    from scipy import stats

    layout = served.get("plugin/custom_scalars/layout")
    charts = {c["title"]: {one["title"]: one["margin"]["series"] for one in c["chart"]} for c in layout["category"]}
    assert {title: len(found) for title, found in charts.items()} == {"cl-digits, mlp": 2, "rl-cartpole, dqn-mlp": 1}
    (series,) = charts["cl-digits, mlp"]["accuracy at the end of each task, %"]
    for run, curves in boards.ACCURACIES.items():
        answer = served.get("plugin/custom_scalars/scalars", run=f"leaderboard/{run}", tag=series["value"])
        assert answer["regex_valid"]
        drawn = {
            kind: [(step, value) for _, step, value in answer["tag_to_events"][series[kind]]]
            for kind in ("lower", "value", "upper")
        }
        for task, ends in enumerate(zip(*curves, strict=True)):
            percents = [100 * end for end in ends]
            mean, lower, upper = sum(percents) / len(percents), sum(percents) / len(percents), None
            if len(ends) > 1:
                error = stats.sem(percents)
                lower, upper = stats.t.interval(0.95, len(ends) - 1, mean, error) if error else (mean, mean)
            expected = {"lower": lower, "value": mean, "upper": lower if upper is None else upper}
            for kind, value in expected.items():
                assert drawn[kind][task] == (task + 1, pytest.approx(value, rel=1e-5))
    (series,) = charts["cl-digits, mlp"]["accuracy drop at the boundary to each task, percentage points"]
    answer = served.get("plugin/custom_scalars/scalars", run="leaderboard/rnr quantile=0.2", tag=series["value"])
    assert [(step, value) for _, step, value in answer["tag_to_events"][series["value"]]] == [(2, 12.5), (3, 12.5)]
    (series,) = charts["rl-cartpole, dqn-mlp"]["return over steps"]
    answer = served.get("plugin/custom_scalars/scalars", run="leaderboard/reset", tag=series["value"])
    points = [(step, value) for _, step, value in answer["tag_to_events"][series["value"]]]
    assert points == [(0, 1.0), (1000, 7.0), (2000, 9.0)]


def test_text_tab_contains_the_tables(served: boards.Served) -> None:
    assert set(served.get("plugin/text/tags")["leaderboard"]) == {
        *("all results", "cl-digits mlp", "rl-cartpole dqn-mlp")
    }
    (text,) = served.get("plugin/text/text", run="leaderboard", tag="cl-digits mlp")
    assert text["text"].count("<th>") == 6 and "65.0\N{NO-BREAK SPACE}±" in text["text"]
    order = [text["text"].index(f"<code>{name}</code>") for name in ("rnr quantile=0.2", "none", "reset")]
    assert order == sorted(order) and "rl-cartpole" not in text["text"]


def test_images_tab_contains_the_plots(served: boards.Served) -> None:
    tags = served.get("plugin/images/tags")["leaderboard/~plots"]
    assert set(tags) == {"figures/fig 2/left"}
    (picture,) = served.get("plugin/images/images", run="leaderboard/~plots", tag="figures/fig 2/left", sample=0)
    assert served.get(f"plugin/images/individualImage?{picture['query']}&") == boards.png(30, 20)


def test_an_open_board_is_updated(served: boards.Served) -> None:
    """Last in this file, as it changes what other tests read."""
    kept = [result for result in served.found if result.intervention != "rnr"]
    none = next(result for result in kept if result.intervention == "none" and result.env == "cl-digits")
    none.tasks[2].end = 0.9  # (90 + 70 + 65) / 3
    tensorboard.write(served.runs_dir, standings(kept))
    end = time.monotonic() + 30
    while True:
        points = served.get("plugin/scalars/scalars", run="leaderboard/none", tag="cl-digits mlp/accuracy")
        if [(step, round(value, 3)) for _, step, value in points] == [(1, 20.0), (2, 40.0), (3, 75.0)]:
            break
        assert time.monotonic() < end, points
        time.sleep(0.3)
    (text,) = served.get("plugin/text/text", run="leaderboard", tag="cl-digits mlp")
    assert "quantile" not in text["text"]
