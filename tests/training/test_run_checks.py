"""What is known before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.training.run_checks import plan
from plastibench.training.runner import run
from tests.support.rl import tiny_rl


def planned(spec: RunSpec) -> Any:
    env = spec.create("env").make("data")
    return plan(spec, env, spec.create("agent").build(env, 0, torch.device("cpu")))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(lambda tiny: tiny("reset"), id="supervised"),
        pytest.param(lambda tiny: tiny_rl("reset", every=20), id="rl"),
        pytest.param(lambda tiny: tiny_rl("reset", env_options={"steps": 241}, every=20), id="rl, odd steps"),
        pytest.param(
            lambda tiny: tiny_rl("reset", "rl-bandit-digits", env_options={"tasks": 2, "steps": 80}), id="rl, two tasks"
        ),
    ],
)
def test_planned_updates_are_made(tiny: Any, tmp_path: Path, spec: Any) -> None:
    made = spec(tiny)
    found, result = planned(made), run(made, runs_dir=tmp_path, quiet=True, threads=1)
    assert found.updates == result.cost.updates
    assert found.first_boundary in (None, min(row.update for row in result.interventions))
    assert result.warnings == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 1000}, r"reset would never act.*--every 1000 is not less than the 6 updates"),
        ({"every": 6}, r"not less than the 6 updates"),  # an intervention after the last update is left out
        ({"until": 0}, r"--until 0 is before the first intervention, which is due after 2 updates"),
        ({"every": 1000, "until": 4}, r"the 6 updates of the run, and --until 4 allows at most 4"),
        ({"every": 1000, "roles": ("critic",)}, r"no network 'critic'.*; also: reset would never act"),
        ({"every": 5, "until": 4}, r"--until 4 is before the first intervention, which is due after 5 updates"),
    ],
)
def test_an_intervention_that_cannot_act_is_refused(
    tiny: Any, tmp_path: Path, options: dict[str, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run(tiny("reset", **options), runs_dir=tmp_path, quiet=True, threads=1)
    assert not list(tmp_path.iterdir())
    options.pop("roles", None)
    run(tiny("none", **options), runs_dir=tmp_path, quiet=True, threads=1)  # the baseline may have any schedule


def test_one_that_also_acts_during_updates_is_warned_about(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    run(tiny("l2-init+reset", every=1000), runs_dir=tmp_path, quiet=True, threads=1)
    assert "l2-init+reset acts only during updates, since --every 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (lambda: tiny_rl("reset"), r"rl-cartpole has one task and no task boundary; add --every N"),
        (lambda: tiny_rl(agent_options={"learning_starts": 240}), r"no update: learning starts after 240 steps"),
        (
            lambda: tiny_rl("reset", every=900, agent_options={"learning_starts": 240}),
            r"no update: .*; also: reset would never act, .*--every 900 is not less than the 116 updates of the run",
        ),
        (lambda: tiny_rl("reset", every=101), r"--every 101 is not less than the 100 updates"),
    ],
)
def test_rl_runs_without_updates_or_interventions_are_refused(tmp_path: Path, spec: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(spec(), runs_dir=tmp_path, quiet=True, threads=1)
    assert not list(tmp_path.iterdir())


def test_an_intervention_that_changes_nothing_is_a_warning_of_the_result(tiny: Any, tmp_path: Path) -> None:
    idle = tiny("redo", {"tau": 0.0})  # no unit of a GELU network is exactly 0
    result = run(idle, runs_dir=tmp_path, quiet=True, threads=1)
    assert result.warnings == ["2 interventions changed nothing in the classifier: the run equals none"]
    same = run(tiny("none"), runs_dir=tmp_path, quiet=True, threads=1)
    assert same.warnings == [] and same.tasks == result.tasks
    assert "warnings" not in same.to_dict()  # files of other runs are as before
