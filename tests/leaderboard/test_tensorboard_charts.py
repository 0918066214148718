from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plastibench.cli import board_update
from plastibench.config.errors import RunError
from plastibench.config.spec import RunSpec
from plastibench.leaderboard import tensorboard
from plastibench.leaderboard.standings import standings
from plastibench.leaderboard.tensorboard import COLORS, _order
from plastibench.results.files import find_results
from tests.leaderboard import boards


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    read = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in read.Scalars(tag)]


def test_a_new_board_replaces_the_old_one_with_its_lines(tmp_path: Path) -> None:
    found = boards.make(tmp_path)
    before = find_results(tmp_path)
    for _ in range(8):
        folder = tensorboard.write(tmp_path, standings(found))
    assert find_results(tmp_path) == before
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["none", "reset", "rnr quantile=0.2"]
    sizes = [path.stat().st_size for path in sorted((folder / "none").iterdir())]
    assert sizes[-1] > 0 and set(sizes[:-1]) == {0} and len(sizes) == 6
    mean = pytest.approx(100 * (0.6 + 0.7 + 0.65) / 3)
    assert scalars(folder / "none", "cl-digits mlp/accuracy")[-1] == (3, mean)
    (folder / "reset" / "note.txt").write_text("of the user")
    tensorboard.write(tmp_path, standings([result for result in found if result.intervention == "none"]))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["none", "reset"]
    assert [path.name for path in (folder / "reset").iterdir()] == ["note.txt"]


def test_labels_become_unique_folders_inside_of_the_board(tmp_path: Path) -> None:
    found = boards.make(tmp_path)
    long = {"weights": "../../a/b.pt", "names": ["block"] * 40}
    for result in found[:3]:
        result.changed.intervention = {**long, "tau": result.seed}
        result.group += str(result.seed)
    folder = tensorboard.write(tmp_path / "deep" / "runs", standings(found))
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    assert len(names) == 5 and all(len(name) <= 60 for name in names)  # a chart shows four methods and none
    assert len({name for name in names if "~" in name}) == 2
    assert [path.name for path in (tmp_path / "deep" / "runs").iterdir()] == ["leaderboard"]


def test_an_invalid_plot_or_folder_is_reported(tmp_path: Path) -> None:
    found = boards.make(tmp_path)
    folder = tensorboard.write(tmp_path, standings(found))
    there = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(ValueError, match="fig2' is not a PNG file"):
        tensorboard.write(tmp_path, standings(found), {"fig2": b"<svg/>"})
    assert sorted(path.name for path in folder.rglob("*")) == there
    tensorboard.write(tmp_path, standings(found), {"fig2": boards.png(3, 2)})
    tensorboard.write(tmp_path, standings(found))  # keeps the plots
    assert EventAccumulator(str(folder / "~plots")).Reload().Tags()["images"] == ["figures/fig2"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "leaderboard").write_text("a file")
    with pytest.raises((RunError, OSError)):
        tensorboard.write(tmp_path / "other", standings(found))


def test_commands_update_the_board_and_report_a_failure(
    tiny: Callable[..., RunSpec], say: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plastibench.utils.atomic_io import write_text

    specs = [tiny("none", agent="mlp", seed=seed) for seed in (0, 1, 2)]
    for spec in specs:
        (tmp_path / spec.id).mkdir()
        write_text(tmp_path / spec.id / "spec.toml", spec.to_toml())
    places = ("--runs-dir", tmp_path, "--quiet")
    assert say("resume", specs[0].id, "--for-command", "plastibench run", *places).status == 0
    assert not (tmp_path / "leaderboard").exists()
    assert say("resume", specs[1].id, *places).status == 0
    assert len(scalars(tmp_path / "leaderboard" / "none", "cl-digits mlp/accuracy")) == 3

    def fail(*_: Any) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(tensorboard, "write", fail)
    said = say("resume", specs[2].id, *places)
    assert (said.status, said.err) == (0, "plastibench: TensorBoard's leaderboard is not up to date: no space left\n")


def repeated_colors(charts: list[list[str]], order: list[str]) -> int:
    colors = {name: number % COLORS for number, name in enumerate(order)}
    return sum(len(chart) - len({colors[name] for name in chart}) for chart in charts)


@pytest.mark.parametrize("others", [4, 8, 12])
def test_lines_of_a_chart_share_few_colors(others: int) -> None:
    draws = random.Random(others)
    names = [f"m{number}" for number in range(others)]
    charts = [["none", "reset", "rnr", *draws.sample(names, 4)] for _ in range(4)]
    order = _order(charts)
    everything = sorted({name for chart in charts for name in chart})
    assert sorted(order) == everything
    if len(everything) <= COLORS:
        assert repeated_colors(charts, order) == 0
    else:
        assert repeated_colors(charts, order) < repeated_colors(charts, everything)


def test_the_board_is_the_first_run_in_the_order_of_its_colors(tmp_path: Path) -> None:
    found = boards.make(tmp_path)
    folder = tensorboard.write(tmp_path, standings(found), {"x": boards.png(3, 2)})
    starts = {
        path.name: EventAccumulator(str(path)).Reload().FirstEventTimestamp()
        for path in (folder, *(path for path in folder.iterdir() if path.is_dir()))
    }
    assert sorted(starts, key=lambda name: starts[name])[0] == "leaderboard" and max(starts.values()) < 1000
    assert max(starts, key=lambda name: starts[name]) == "~plots" and len(set(starts.values())) == len(starts)


def test_run_fills_the_images_tab(tiny: Callable[..., RunSpec], say: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spec = tiny("none", agent="mlp")
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    done = say("run", "--spec", tmp_path / "spec.toml", "--runs-dir", tmp_path / "r", "--quiet")
    assert done.status == 0 and "regexInput=leaderboard" in done.out
    assert EventAccumulator(str(tmp_path / "r" / "leaderboard" / "~plots")).Reload().Tags()["images"]


def test_an_update_plots_only_the_latest_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    found = boards.make(tmp_path)
    for number, run in enumerate(found):  # the RL runs are the older ones
        moment = number + (1000 if not run.is_rl else 0)
        os.utime(run.folder / "result.json", (moment, moment))
    monkeypatch.setattr(board_update, "_MOST_PLOTTED", 1)
    board_update.update_board(tmp_path, plots=True)
    images = EventAccumulator(str(tmp_path / "leaderboard" / "~plots")).Reload().Tags()["images"]
    assert images and all("cl-digits" in title for title in images)
