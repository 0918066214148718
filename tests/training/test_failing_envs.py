"""Environments whose code fails: one line with the environment, the moment and the user's line; the run can go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import plastibench.config.registry as registry
from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.relabel import Relabel
from plastibench.envs.task_stream import TaskStream
from plastibench.training.failure import FAILURE_FILE
from plastibench.training.runner import run

FAULT = {"constructor": False, "reset": 0, "step": 0}  # the reset or step of the process at which the simulator fails
COUNT = {"reset": 0, "step": 0}


class Simulator(gymnasium.Env[Any, Any]):
    """Episodes of ten steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        if FAULT["constructor"]:
            raise OSError("no license")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        self._count("reset")
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self._count("step")
        return self._observation(), float(action), self.steps == 10, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)

    def _count(self, what: str) -> None:
        COUNT[what] += 1
        if COUNT[what] == FAULT[what]:
            raise ZeroDivisionError("the robot\nhas left the table")


gymnasium.register("tests/Simulator-v0", entry_point=Simulator, max_episode_steps=50)


@pytest.fixture(autouse=True)
def _healthy() -> Any:
    yield
    FAULT.update(constructor=False, reset=0, step=0)


def spec() -> RunSpec:
    env = {"id": "tests/Simulator-v0", "steps": 200, "envs": 2, "evaluate_every": 100, "evaluation_episodes": 2}
    agent = {"learning_starts": 20, "hidden": "8", "batch_size": 8}
    return RunSpec.make("gym", "dqn-mlp", "none", env_options=env, agent_options=agent, device="cpu")


def fail(where: str, at: int, folder: Path) -> str:
    """The message of a run that fails at the n-th call, counted from the start of the run."""
    COUNT.update(reset=0, step=0)
    FAULT[where] = at
    with pytest.raises(RunError) as raised:
        run(spec(), runs_dir=folder, quiet=True, checkpoint_seconds=0.0)
    FAULT[where] = 0
    return str(raised.value)


def test_a_step_that_fails_names_environment_step_and_line(tmp_path: Path) -> None:
    message = fail("step", 1 + 20 + 2 * 30 + 1, tmp_path)  # 1 in a check, 20 in the first evaluation
    assert "tests/Simulator-v0 failed at step 62: " in message
    assert "test_failing_envs.py:" in message and "ZeroDivisionError in _count: the robot has left" in message
    assert "\n" not in message and message.endswith(f"(traceback in {tmp_path / spec().id / FAILURE_FILE})")
    text = (tmp_path / spec().id / FAILURE_FILE).read_text()
    assert "Traceback" in text and text.splitlines()[-1] in message


def test_the_run_continues_from_its_checkpoint(tmp_path: Path) -> None:
    expected = run(spec(), runs_dir=tmp_path / "undisturbed", quiet=True)
    fail("step", 1 + 20 + 2 * 30 + 1, tmp_path)
    assert any((tmp_path / spec().id).glob("checkpoint*"))
    COUNT.update(reset=0, step=0)
    result = run(spec(), runs_dir=tmp_path, quiet=True)
    assert result.summary == expected.summary and len(result.origin.sessions) == 2
    assert not (tmp_path / spec().id / FAILURE_FILE).exists()


@pytest.mark.parametrize(
    ("where", "at", "moment"),
    [("step", 1 + 5, "at step 3 of an evaluation"), ("reset", 3 + 2, "at the first reset")],
)
def test_evaluations_and_resets_that_fail_name_the_moment(where: str, at: int, moment: str, tmp_path: Path) -> None:
    assert f"tests/Simulator-v0 failed {moment}" in fail(where, at, tmp_path)


def test_a_constructor_that_fails_is_reported_in_one_line(tmp_path: Path) -> None:
    FAULT["constructor"] = True
    with pytest.raises(UserError, match=r"environment 'tests/Simulator-v0' cannot be created: .*\.py:\d+: OSError"):
        run(spec(), runs_dir=tmp_path, quiet=True)
    assert not [*tmp_path.iterdir()]


@dataclass(frozen=True)
class Broken(Relabel):
    """Has no third task."""

    def generate_tasks(self, *arguments: Any) -> Any:
        for number, task in enumerate(super().generate_tasks(*arguments)):
            yield task if number < 2 else None.missing  # type: ignore[attr-defined]


def test_a_task_stream_that_fails_names_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = registry.envs.all()
    monkeypatch.setattr(registry.envs, "_entries", dict(entries))
    registry.register_env("relabel-broken", "fails", **entries["relabel-digits"].defaults)(Broken)
    options = {"tasks": 3, "epochs": 1}
    given = RunSpec.make("relabel-broken", "mlp", "none", env_options=options, device="cpu")
    with pytest.raises(RunError, match=r"relabel-broken failed before the run: .*AttributeError in generate_tasks"):
        run(given, runs_dir=tmp_path, quiet=True)
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(TaskStream, "step", lambda *_: 1 / 0)
    given = RunSpec.make("relabel-digits", "mlp", "none", env_options=options, device="cpu")
    with pytest.raises(RunError, match=r"Relabel failed at the start of task 2: .*ZeroDivisionError in <lambda>"):
        run(given, runs_dir=tmp_path, quiet=True)
