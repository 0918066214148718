"""The local engine runs small networks of one kind together, and each alone after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config.spec import RunSpec
from plastibench.sweeps.jobs import Job, RunArguments, prepare
from plastibench.sweeps.local_engine import LocalEngine
from plastibench.sweeps.stacking import make_groups, stack_key
from plastibench.training.failure import FAILURE_FILE
from tests.support.runs import assert_same_run, go

CRASHING = """
import os, signal
from dataclasses import dataclass
import plastibench as pb

@pb.register_intervention("crash", "kills its process")
@dataclass
class Crash(pb.Intervention):
    def after_update(self, network):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def jobs(count: int, agent: str = "mlp", env: str = "relabel-digits", **options: Any) -> list[Job]:
    return [Job(RunSpec.make(env, agent, seed=seed, device="cpu", **options)) for seed in range(count)]


def sizes(jobs: list[Job], slots: int) -> list[int]:
    return [len(group) for group in make_groups(jobs, slots)]


def test_groups_are_divided_among_the_processes() -> None:
    waiting = jobs(12)
    assert make_groups(waiting, 2) == [waiting[:6], waiting[6:]]
    assert sizes(jobs(40), 1) == [16, 16, 8] and sizes(jobs(7), 2) == [4, 3]
    assert sizes(jobs(3), 1) == [1, 1, 1], "a stack of three is not worth it"
    assert sizes(jobs(12), 4) == [1] * 12


def test_only_runs_of_one_kind_share_a_process() -> None:
    mixed = [*jobs(4), *jobs(4, env="permuted-digits"), *jobs(2, agent="vit-nano")]
    assert make_groups(mixed, 1) == [mixed[:4], mixed[4:8], mixed[8:9], mixed[9:]]


@pytest.mark.parametrize("options", [{"compile": "default"}, {"precision": "bfloat16"}])
def test_other_ways_to_compute_are_not_mixed(options: dict[str, Any]) -> None:
    other = stack_key(RunSpec.make("relabel-digits", "mlp", device="cpu", agent_options=options))
    assert other is None or other != stack_key(jobs(1)[0].spec)
    assert stack_key(RunSpec.make("relabel-digits", "mlp", device="cuda")) is None


@pytest.mark.parametrize("env", ["rl-cartpole", "rl-bandit-digits"])
def test_dqn_runs_of_one_kind_share_a_process(env: str) -> None:
    assert sizes(jobs(10, "dqn-mlp", env), 2) == [5, 5]


@pytest.mark.parametrize(
    ("env", "agent", "options"),
    [
        ("rl-cartpole", "dqn-mlp", {"agent_options": {"dueling": True}}),
        ("rl-cartpole", "dqn-mlp", {"agent_options": {"atoms": 51}}),
        ("rl-cartpole", "dqn-mlp", {"agent_options": {"prioritized": True}}),
        ("rl-cartpole", "sac-mlp", {}),
        ("rl-bandit-digits", "dqn-cnn", {}),
        ("gym", "dqn-mlp", {"env_options": {"id": "Own-v0"}}),  # may draw from the generators of the process
    ],
)
def test_other_rl_runs_do_not_share_a_process(env: str, agent: str, options: dict[str, Any]) -> None:
    assert stack_key(RunSpec.make(env, agent, device="cpu", **options)) is None


def test_bench_measures_rl_runs_together(say: Callable[..., Any]) -> None:
    words = "bench stack rl-cartpole --agent dqn-mlp --updates 2 --rounds 2 --threads 1 --device cpu"
    small = "--agent.hidden 8 --agent.batch-size 8 --agent.learning-starts 32 --env.envs 4 --env.evaluation-episodes 1"
    said = say(*words.split(), *small.split(), "--runs", 3, "--json")
    found = json.loads(said.out)
    assert said.status == 0 and found["stack"] == 3
    assert all(0 < found[name][0] <= found[name][1] <= found[name][2] for name in ("alone", "together", "gain"))
    said = say(*words.replace("dqn-mlp", "sac-mlp").split(), "--runs", 3)
    assert said.status == 2 and "cannot be updated together" in said.err


def test_command_stacks_by_itself(say: Callable[..., Any], tmp_path: Path) -> None:
    words = (
        "run relabel-digits --agent mlp --agent.width 8 --env.tasks 3 --env.epochs 2 --env.train-size 40 --seed 0..3"
    )
    words += " --device cpu --jobs 1 --no-plot"
    said = say(*words.split(), "--runs-dir", tmp_path / "stacked")
    assert said.status == 0 and "4 of 4 runs were trained in batched updates" in said.err and "none" in said.out
    for result in (tmp_path / "stacked").glob("*/result.json"):
        assert json.loads(result.read_text())["origin"]["stacked"] == 4
    said = say(*words.split(), "--stack", "off", "--runs-dir", tmp_path / "single")
    assert said.status == 0 and "batched updates" not in said.err
    for folder in (tmp_path / "single").glob("relabel*"):
        assert_same_run(folder, tmp_path / "stacked" / folder.name)


def test_a_crash_ends_only_the_run_that_caused_it(tiny: Callable[..., RunSpec], tmp_path: Path) -> None:
    plugin = tmp_path / "crashing.py"
    plugin.write_text(CRASHING)
    from plastibench.cli.plugins import import_plugins

    import_plugins([str(plugin)])
    specs = [tiny(env="relabel-digits", agent="mlp", seed=seed) for seed in range(3)]
    specs.insert(1, tiny("crash", env="relabel-digits", agent="mlp"))

    made = prepare(specs, tmp_path / "runs")
    engine = LocalEngine(1, tmp_path / "runs", RunArguments(tmp_path, [str(plugin)], threads=1), stack=True)
    engine.run(made, stop=[], on_poll=lambda: None)
    assert [job.state for job in made] == ["complete", "failed", "complete", "complete"]
    assert "SIGKILL" in made[1].message and (tmp_path / "runs" / specs[1].id / FAILURE_FILE).exists()
    for spec in (specs[0], *specs[2:]):
        go(spec, tmp_path / "alone")
        assert_same_run(tmp_path / "runs" / spec.id, tmp_path / "alone" / spec.id)
