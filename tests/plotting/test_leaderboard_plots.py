from __future__ import annotations

import io

import numpy as np
from PIL import Image

from plastibench.leaderboard.standings import standings
from plastibench.plotting.leaderboard_plots import pictures
from tests.leaderboard.made import acting, result


def test_every_contest_has_its_curves_and_what_cost_something_its_trade_off() -> None:
    names = ("none", "reset", "rnr", "redo")
    found = [result(name, seed, 0.5 + 0.1 * n, drop=0.1 * n) for n, name in enumerate(names) for seed in range(3)]
    found += [acting(name, seed, 100.0 + seed) for name in ("none", "reset") for seed in range(3)]
    shown = standings(found)
    supervised, control = (contest.title for contest, _ in shown.tables)
    drawn = pictures(shown)
    assert [what.split(":")[0] for what, _ in drawn[supervised]] == [
        "Learning curves of the best",
        "What they reach, against what they lose at once",
    ]
    assert len(drawn[control]) == 1
    for _, png in (picture for of_contest in drawn.values() for picture in of_contest):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert pixels.shape[1] == 900 and pixels.std() > 10


def test_of_very_many_the_best_are_drawn(monkeypatch) -> None:
    names = ("none", "reset", "rnr", "redo", "fire", "dash", "l2", "ema", "upgd", "crelu", "l2-init", "parseval")
    found = [result(name, seed, 0.3 + 0.01 * n) for n, name in enumerate(names) for seed in range(2)]
    asked: list[set[str]] = []
    monkeypatch.setattr("plastibench.plotting.draw", lambda kind, runs: asked.append({r.intervention for r in runs}))
    monkeypatch.setattr("plastibench.plotting.png", lambda figure, dpi: b"")
    pictures(standings(found))
    assert asked == [{"none", "reset", *names[4:]}]
