from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps import plan
from plastibench.sweeps.plan import Plan, check_fit, interventions_of, plan_runs
from plastibench.training.runner import run

MLP = {"epochs": 2, "train_size": 40, "tasks": 3}


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_CALIBRATION_STEPS", 3)


@pytest.mark.parametrize(
    ("env", "agent", "env_options", "agent_options", "run_options"),
    [
        ("relabel-digits", "mlp", MLP, {"width": 8}, {}),
        ("relabel-digits", "mlp", MLP, {"width": 8}, {"every": 2}),
        ("relabel-digits", "mlp", MLP, {"width": 8}, {"every": 1, "until": 3}),
        ("relabel-digits", "mlp", MLP, {"width": 8}, {"until": 2}),
        ("cl-digits", "mlp", {"epochs": 1, "stop_after": 3, "train_size": 50}, {"width": 8, "batch_size": 7}, {}),
        (
            "rl-cartpole",
            "dqn-mlp",
            {"steps": 400, "envs": 4, "evaluate_every": 400, "evaluation_episodes": 1},
            {"hidden": (8,), "learning_starts": 100, "batch_size": 8},
            {"every": 12},
        ),
    ],
)
def test_a_plan_states_what_the_run_then_does(
    tmp_path: Path, env: str, agent: str, env_options: Any, agent_options: Any, run_options: Any
) -> None:
    spec = RunSpec.make(
        env, agent, "reset", env_options=env_options, agent_options=agent_options, device="cpu", **run_options
    )
    (planned,) = plan_runs([spec], tmp_path, tmp_path, threads=1)
    result = run(spec, runs_dir=tmp_path, data_dir=tmp_path, quiet=True, threads=1)
    assert planned.updates == pytest.approx(result.cost.updates, abs=1)
    assert planned.interventions == len(result.interventions)
    assert planned.parameters * 4 == result.cost.network_bytes
    assert planned.seconds is not None and planned.seconds > 0
    folder = sum(path.stat().st_size for path in (tmp_path / spec.id).rglob("*") if path.is_file())
    assert folder < 3 * planned.disk
    (again,) = plan_runs([replace(spec, run=replace(spec.run, seed=1))], tmp_path, tmp_path, threads=1)
    assert again.source == "earlier results" and again.seconds == result.cost.seconds
    none = replace(spec, intervention=RunSpec.make(env, agent).intervention)
    (other,) = plan_runs([none], tmp_path, tmp_path, threads=1)
    assert other.source == "earlier results of other interventions" and other.interventions == 0


def test_a_dry_run_starts_nothing(tmp_path: Path, say: Any) -> None:
    words = [
        "run",
        "relabel-digits",
        "--agent",
        "mlp",
        "--env.epochs",
        "2",
        "--env.train-size",
        "40",
        "--device",
        "cpu",
    ]
    said = say(*words, "--intervention", "none,reset", "--dry-run", "--runs-dir", tmp_path / "r")
    assert said.status == 0 and not (tmp_path / "r").exists()
    assert "2 runs, " in said.out and "from a calibration of" in said.out
    assert [line.split()[0] for line in said.out.splitlines()[2:4]] == ["none·s0", "reset·s0"]
    assert "memory:" in said.out and "disk:" in said.out


def test_the_memory_of_a_plan_grows_with_network_and_batch(tmp_path: Path) -> None:
    def memory(**options: int) -> int:
        spec = RunSpec.make("relabel-digits", "mlp", env_options=MLP, agent_options=options, device="cpu")
        return plan_runs([spec], tmp_path, tmp_path, threads=1)[0].memory

    small, wide = memory(width=8), memory(width=1000)
    assert wide - small > 4 * 2_000_000
    assert memory(width=1000, batch_size=20) < wide


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_runs_that_do_not_fit_are_refused(tmp_path: Path, resource: str) -> None:
    spec = RunSpec.make("relabel-digits", "mlp", device="cpu")
    fits = Plan(spec, 1, 0, 1, 1_000, 1_000, 1.0, "")
    check_fit([fits], tmp_path)
    with pytest.raises(UserError, match=f"need.* about .* (of {resource}|in .*free)"):
        check_fit([fits, replace(fits, **{resource: 10**18})], tmp_path)


def test_interventions_after_the_limit_are_not_counted() -> None:
    spec = RunSpec.make("cl-digits", "mlp", "reset", device="cpu")
    assert interventions_of(spec, 100, 5) == 4
    assert interventions_of(replace(spec, run=replace(spec.run, until=40)), 100, 5) == 2
    assert interventions_of(replace(spec, run=replace(spec.run, every=200)), 100, 5) == 0
