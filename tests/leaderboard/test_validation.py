from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plastibench.config import identity
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.leaderboard.validation import add
from plastibench.results.files import read_result, write_result
from plastibench.results.result import Result
from plastibench.training.runner import run
from tests.leaderboard.made import submitted, submitted_acting

Change = Callable[[dict[str, Any]], Any]


def file(folder: Path, content: Any) -> Path:
    path = folder / "sent.json"
    content = content.to_dict() if isinstance(content, Result) else content
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("made", [submitted("reset", drop=0.2), submitted("rnr", every=9), submitted_acting("reset")])
def test_a_valid_result_is_added(made: Result, tmp_path: Path) -> None:
    path = file(tmp_path, {**made.to_dict(), "note": "unknown keys are kept in the file"})
    added, unchecked = add(path, tmp_path / "runs")
    assert read_result(added).to_dict() == made.to_dict() and unchecked == []
    assert added.read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="has already been added as"):
        add(path, tmp_path / "runs")


def changed(path: str, value: Any) -> Change:
    def change(made: dict[str, Any]) -> None:
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in way:
            made = made[key]
        made[last] = value

    return change


BAD = {
    "summary/final_accuracy": (0.99, "summary.final_accuracy is 0.99, but the tasks give 0.5"),
    "summary/mean_drop": (None, "summary.mean_drop is None"),
    "tasks/2/end": (1.7, r"tasks\[2\].end is 1.7; it should be less than or equal to 1"),
    "tasks/1/curve/1/1": ("high", r"tasks\[1\].curve\[1\]\[1\] is 'high'; it should be a valid number"),
    "tasks/1/task": (5, "tasks are not numbered"),
    "tasks/1/before": (0.9, r"tasks\[1\].before is 0.9, but the previous task ends at 0.3"),
    "seed": (3, "seed or every differs"),
    "options/agent/lr": (0.1, "but its names and options give"),
    "id": ("../../evil", r"id is '../../evil'; String should match pattern"),
    "run": ({}, "run.device is missing"),
    "cost/intervention_seconds": (11.0, "cost.intervention_seconds is more than cost.seconds"),
    "cost/metric_seconds": (10.5, "cost.intervention_seconds plus cost.metric_seconds is more than cost.seconds"),
    "changed/intervention": (
        {"force": 3},
        "changed.intervention does not match the options that differ from the defaults of reset",
    ),
    "schedule": ({"until": 7}, "schedule does not match run"),
    "summary": ({}, "summary.final_accuracy is missing"),
    "cost/seconds": (-1, "cost.seconds is -1; it should be greater than or equal to 0"),
    "cost/updates": (0, "cost.updates is 0"),
    "origin/versions": ({}, "origin.versions: plastibench is missing"),
    "data_digest": ("<script>", "data_digest is '<script>'; String should match"),
    "schema": (5, "unknown schema 5; update plastibench"),
    "interventions": (
        [{"task": 0, "update": 99, "role": "a", "seconds": 1, "revived_fraction": 1, "parameters": 1}],
        "interventions has update 99, but cost.updates is 6",
    ),
    "tasks/1/drop": (0.05, r"tasks\[1\].drop is 0.05, but its evaluations give 0.2"),
    "tasks/1/auc": (0.99, r"tasks\[1\].auc is 0.99, but its evaluations give 0.2"),
    "tasks/1/recovery": (1e14, r"tasks\[1\].recovery is 1\d*.0, but its evaluations give 2.0"),
    "tasks/1/end": (0.41, r"tasks\[1\].end is 0.41, but its evaluations give 0.4"),
    "tasks/1/samples": (21, r"cost.samples is 120, but the tasks give 122"),
    "tasks/1/curve": ([(0.0, 0.1), (2.0, 0.4)], r"tasks\[1\].curve has other epochs than cl-digits evaluates"),
    "cost/samples": (119, "cost.samples is 119, but the tasks give 120"),
    "cost/updates 1e9": (10**9, "cost.updates is 1000000000, but the tasks give 6"),
    "interventions emptied": ([], "interventions has 0 records of the classifier, not those of the schedule"),
    "plasticity": ([], "plasticity has 0 measurements, not those after the start and at the end"),
    "interventions/0/update": (3, "interventions has 2 records of the classifier, not those of the schedule"),
    "interventions/0/seconds": (0.4, "cost.intervention_seconds is 0.5, but the interventions took 0.65"),
    "plasticity/0/metrics/dormant-ratio": (
        55.0,
        r"plasticity\[0\].metrics.dormant-ratio is 55.0, but must be between 0",
    ),
    "plasticity/0/metrics/srank": (-1.0, r"plasticity\[0\].metrics.srank is -1.0, but must be at least 0"),
}
BAD_ACTING = {
    "returns doubled": (
        lambda made: made["returns"].extend(made["returns"]),
        "returns has other steps than rl-cartpole evaluates",
    ),
    "a return": (lambda made: made["returns"][2].update(value=1000.0), "summary.final_return is 66.6.*but the evalua"),
    "updates": (lambda made: made["cost"].update(updates=10**9), "cost.updates is 1000000000, but .* give about 1000"),
    "steps": (lambda made: made["cost"].update(agent_steps=1), "cost.agent_steps is 1, but rl-cartpole with these"),
    "frames": (lambda made: made["cost"].update(environment_steps=1), "cost.environment_steps is 1, but rl-cartpole"),
    "plasticity": (lambda made: made["plasticity"].clear(), "plasticity has no measurement at the end, step 3000"),
    "interventions": (
        lambda made: made["interventions"].append(
            {"task": 0, "update": 3, "role": "critic", "seconds": 0.0, "revived_fraction": 0.0, "parameters": 1}
        ),
        "interventions has 1 record of the critic",
    ),
    "events": (
        lambda made: made["events"].append(
            {"task": 0, "steps": 1, "update": 1, "before": 3.0, "after": 1.0, "drop": 9.0}
        ),
        r"events\[0\].drop is 9.0, but the evaluations give 2.0",
    ),
}


@pytest.mark.parametrize("name", BAD_ACTING)
def test_an_invalid_rl_result_is_rejected(name: str, tmp_path: Path) -> None:
    change, message = BAD_ACTING[name]
    made = json.loads(json.dumps(submitted_acting("reset").to_dict()))
    change(made)
    with pytest.raises(UserError, match=message):
        add(file(tmp_path, made), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("env", "agent", "options"),
    [
        ("cl-digits", "mlp", {}),
        ("cl-digits", "mlp", {"every": 3}),  # every second one is at the end of a task
        ("relabel-digits", "mlp", {"every": 1, "until": 3}),
        ("permuted-digits", "mlp", {"every": 20}),
        ("incremental-digits", "mlp", {}),
        ("warm-digits", "mlp", {}),
        ("rl-cartpole", "dqn-mlp", {"every": 20}),
        ("rl-cartpole", "sac-mlp", {"every": 60, "offline_updates": 2, "roles": ("critic",)}),
        ("rl-bandit-digits", "dqn-mlp", {}),
    ],
)
def test_our_own_results_are_accepted(env: str, agent: str, options: dict[str, Any], tmp_path: Path) -> None:
    if env.startswith("rl"):
        env_options = {"steps": 240, "envs": 4, "evaluate_every": 80, "evaluation_episodes": 1}
        agent_options = {"hidden": (8, 8), "batch_size": 8, "learning_starts": 40, "replay_ratio": 0.5}
        if env == "rl-cartpole":
            env_options["max_episode_steps"] = 20
        else:
            env_options["tasks"] = 3
    else:
        env_options = {"epochs": 6, "evaluate_every": 6, "train_size": 40}
        env_options |= {"switches": 2} if env.startswith(("relabel", "permuted")) else {"stop_after": 3}
        agent_options = {"width": 8, "batch_size": 16}
    spec = RunSpec.make(
        env, agent, "redo", env_options=env_options, agent_options=agent_options, device="cpu", **options
    )
    made = run(spec, runs_dir=tmp_path / "runs", quiet=True, threads=1)
    path = tmp_path / "runs" / made.id / "result.json"
    added, _ = add(path, tmp_path / "others")
    assert added.read_bytes() == path.read_bytes()


def test_a_damaged_result_is_rejected(tmp_path: Path) -> None:
    write_result(tmp_path, submitted("reset"))
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 2'))
    with pytest.raises(UserError, match="does not match its sha256"):
        add(path, tmp_path / "runs")


@pytest.mark.parametrize("path", BAD)
def test_an_invalid_result_is_rejected(path: str, tmp_path: Path) -> None:
    value, message = BAD[path]
    made = json.loads(json.dumps(submitted("reset", drop=0.2).to_dict()))
    changed(path.partition(" ")[0], value)(made)
    with pytest.raises(UserError, match=message) as told:
        add(file(tmp_path, made), tmp_path / "runs")
    assert "\n" not in str(told.value) and "sent.json" in str(told.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[1]", "not a result of plastibench"),
        ('{"schema": 4}', "id is missing"),
        ('{"schema": 2}', "id is missing"),
        ('{"schema": 1}', "schema 1 lacks values"),
        ('{"schema": 4, "cost": NaN}', "NaN is not a number"),
        ("[" * 200_000, "cannot be read"),
        ('{"schema": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)
def test_other_files_are_rejected(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        add(file(tmp_path, content), tmp_path / "runs")


def test_missing_tasks_and_drops_of_none_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tasks\[1\].drop is not 0, although the intervention is none"):
        add(file(tmp_path, submitted("none", drop=0.2)), tmp_path / "runs")
    with pytest.raises(UserError, match=r"tasks has 3 tasks, but cl-digits with these options has 2"):
        add(file(tmp_path, submitted("none", env_options={"stop_after": 2})), tmp_path / "runs")


def test_a_different_result_of_the_same_run_is_rejected(tmp_path: Path) -> None:
    kept, _ = add(file(tmp_path, submitted("none", final=0.5)), tmp_path / "runs")
    with pytest.raises(UserError, match=r"same run \(final_accuracy 0.5 and final_accuracy 0.6\)"):
        add(file(tmp_path, submitted("none", final=0.6)), tmp_path / "runs")
    assert read_result(kept).final == 0.5


def test_a_result_of_an_unfinished_run_is_rejected(tmp_path: Path) -> None:
    made = submitted("none")
    folder = tmp_path / "runs" / made.id
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_text("")
    with pytest.raises(UserError, match="contains the same run, which is unfinished"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_an_unknown_intervention_is_added_with_a_note(tmp_path: Path) -> None:
    made = submitted("reset")
    made.intervention, made.options.intervention = "theirs", {"force": 3}
    parts = [(getattr(made, part), getattr(made.options, part)) for part in identity.PARTS]
    made.id = made.group = identity.run_id(parts, made.run, {})
    _, (unchecked,) = add(file(tmp_path, made), tmp_path / "runs")
    assert "intervention theirs is unknown" in unchecked


def test_an_undeclared_option_is_rejected(tmp_path: Path) -> None:
    made = submitted("rnr", intervention_options={"quantile": 0.2})
    assert made.changed.intervention == {"quantile": 0.2}
    made.changed.intervention = {}
    with pytest.raises(UserError, match=r"changed.intervention does not match"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_a_wrong_normalized_return_is_rejected(tmp_path: Path) -> None:
    made = submitted_acting("reset")
    made.summary.normalized_return += 0.1
    with pytest.raises(UserError, match=r"summary.normalized_return is .*, but the evaluations give"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_a_missing_value_is_rejected(tmp_path: Path) -> None:
    made = submitted("reset", drop=0.2).to_dict()
    del made["summary"]["mean_drop"]
    with pytest.raises(UserError, match=r"summary.mean_drop is None"):
        add(file(tmp_path, made), tmp_path / "runs")


def test_a_result_of_schema_2_is_added_unchanged(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    published = sorted((pytestconfig.rootpath / "runs" / "reference").glob("**/result.json"))
    path = next(path for path in published if json.loads(path.read_text())["schema"] == 2)
    added, _ = add(path, tmp_path / "runs")
    assert added.read_bytes() == path.read_bytes() and added.parent.name == read_result(path).id
