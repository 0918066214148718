from __future__ import annotations

import io

import numpy as np
from PIL import Image

from plastibench.leaderboard.standings import standings
from plastibench.plotting.leaderboard_plots import plot_settings
from tests.leaderboard.made import acting, result


def test_each_setting_has_curves_and_those_with_drops_a_pareto_front() -> None:
    names = ("none", "reset", "rnr", "redo")
    found = [result(name, seed, 0.5 + 0.1 * n, drop=0.1 * n) for n, name in enumerate(names) for seed in range(3)]
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(3)]
    shown = standings(found)
    supervised, control = (setting.title for setting, _ in shown.tables)
    drawn = plot_settings(shown)
    assert [caption.split(":")[0] for caption, _ in drawn[supervised]] == [
        "Learning curves of the best methods",
        "Final score vs. drop of the best methods",
    ]
    assert len(drawn[control]) == 1
    for _, png in (plot for plots in drawn.values() for plot in plots):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert pixels.shape[1] == 900 and pixels.std() > 10


def test_only_the_best_of_many_methods_are_drawn(monkeypatch) -> None:
    names = ("none", "reset", "rnr", "redo", "fire", "dash", "l2", "ema", "upgd", "crelu", "l2-init", "parseval")
    found = [result(name, seed, 0.3 + 0.01 * n) for n, name in enumerate(names) for seed in range(2)]
    asked: list[set[str]] = []
    monkeypatch.setattr("plastibench.plotting.draw", lambda kind, runs: asked.append({r.intervention for r in runs}))
    monkeypatch.setattr("plastibench.plotting.png", lambda figure, dpi: b"")
    plot_settings(standings(found))
    assert asked == [{"none", "reset", *names[4:]}]
