from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.agents.classifier import Classifier
from plastibench.cli.main import main
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.interventions.upgd import UPGD
from plastibench.sweeps import survey_table
from plastibench.sweeps.benchmark import timing
from plastibench.sweeps.benchmark.intervention_cost import Cost, cost
from plastibench.sweeps.benchmark.started_trainer import start_trainer
from plastibench.training.checkpoint import tensor_bytes
from tests.leaderboard.made import result


def test_a_survey_tabulates_results_costs_and_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "relabel-digits",
        "--agent",
        "mlp",
        "--agent.width",
        "16",
        "--env.epochs",
        "1",
        "--env.stop-after",
        "2",
    ]
    arguments += ["--intervention", "none,shrink-perturb-keep20,reset-layernorm", "--seed", "0", "--jobs", "2"]
    options = ["--runs-dir", str(tmp_path / "r"), "--out", str(tmp_path / "table.md"), "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit) as exit_:
        main(["survey", *arguments, *options])
    assert exit_.value.code == 0
    output = capsys.readouterr()
    written = (tmp_path / "table.md").read_text()
    assert written.startswith("`plastibench survey relabel-digits --agent mlp ")
    assert written.splitlines()[2] in output.out
    assert re.search(r"2 runs: commit.*torch\s\d.*on\scpu;\sthreads\seach:\s1;\sprecision\sfloat32", written, re.S)
    rows = [line.split("|")[1:-1] for line in written.splitlines() if line.startswith("| `")]
    assert {row[0].strip() for row in rows} == {"`none` (1)", "`shrink-perturb-keep20` (1)"}
    keeps = {row[0].strip(): float(row[-1]) for row in rows}
    assert keeps == {"`none` (1)": 0, "`shrink-perturb-keep20` (1)": 1}
    assert re.search(r"`reset-layernorm` failed: .*'layernorm'", written)


def test_costs_measure_memory_and_slowdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own, on which an update takes 1 second, and what the method does in it half a second."""
    now = [0.0]

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return function(*args, **kwargs)

        return timed

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Classifier, "update", taking(1.0, Classifier.update))
    monkeypatch.setattr(UPGD, "before_update", taking(0.5, UPGD.before_update))
    monkeypatch.setattr(UPGD, "intervene", taking(3.0, UPGD.intervene))
    found = cost(RunSpec.make("cl-digits", "mlp", "upgd", device="cpu"), tmp_path, updates=2, rounds=4)
    assert found.update == (1.5, 1.5, 1.5)
    assert found.updates_each == 3.0  # updates without the method
    assert found.memory == pytest.approx(1, abs=0.15)  # the utilities; the rest is the state of its noise


def test_tensor_bytes_counts_nested_tensors() -> None:
    state = {"a": torch.zeros(3, dtype=torch.float64), "b": [torch.zeros(2), (torch.zeros(1, dtype=torch.uint8), 5)]}
    assert tensor_bytes(state) == 24 + 8 + 1


def test_a_survey_includes_all_interventions_but_families() -> None:
    names = survey_table.all_interventions()
    assert not any(name.endswith("*") for name in names)
    assert {"none", "rnr", "redo", "upgd"} <= set(names) <= set(registry.interventions.all())


def test_rows_are_sorted_and_have_costs() -> None:
    runs = [result("none", 0, 0.2), result("reset", 0, 0.8, drop=0.01), result("reset", 1, 0.9, drop=0.01)]
    rows = survey_table.table(runs, {"reset": Cost((1.0, 1.125, 1.5), 12.34, 2.0)}, []).splitlines()[2:]
    assert rows == [
        "| `reset` (2) | 85.0 ± 63.5 | 1.0 ± 0.0 | 2.0 epochs | 75.0 ± 63.5 | 1.12 (1.00–1.50) | 12.3 | 2 |",
        "| `none` (1) | 20.0 | 0.0 | 0.0 epochs | 10.0 | – | – | – |",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_a_terminal_fits_with_a_legend_of_its_columns(width: int) -> None:
    runs = [result("none", seed, 0.2) for seed in (0, 1)] + [
        result("shrink-perturb-keep80", seed, 0.8) for seed in (0, 1)
    ]
    costs = {"none": Cost((1.0, 1.125, 1.5), 12.34, 2.0)}
    text, count = survey_table.terminal_table(runs, costs, ["`fire` failed: " + "a reason " * 20], width)
    assert max(map(len, text.splitlines())) <= width
    header = text.splitlines()[0]
    assert header.startswith("intervention (seeds)") and ("update time" in header) == (width == 120)
    legend = survey_table.legend(runs, count)
    assert (
        ("update time" in legend) == (width == 120) and ("memory" in legend) == (width == 120) and "final: " in legend
    )
    everything, count = survey_table.terminal_table(runs, costs, [], 300)
    assert count == 7 and "memory" in everything and "memory: " in survey_table.legend(runs)


def test_costs_are_stored_per_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def timing(spec: RunSpec, data_dir: Path) -> Cost:
        timed.append(spec.agent[0])
        return Cost((1.0, float(len(timed)), 9.0), 1.0, 0.0)

    monkeypatch.setattr(survey_table, "cost", timing)
    path = tmp_path / survey_table.COSTS_FILE
    found = [
        survey_table.measure_costs(
            [RunSpec.make("cl-digits", agent, "reset", device="cpu")], tmp_path, path, quiet=True
        )
        for agent in ("mlp", "vit-nano", "mlp")
    ]
    assert timed == ["mlp", "vit-nano"]
    assert [costs["reset"].update[1] for costs in found] == [1.0, 2.0, 1.0]


def test_updates_are_timed_in_the_precision_of_the_run(tmp_path: Path) -> None:
    spec = RunSpec.make("cl-digits", "mlp", device="cpu", agent_options={"precision": "tf32", "width": 8})
    try:
        start_trainer(spec, tmp_path, 1)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with pytest.raises(UserError, match="rl-cartpole"):
        start_trainer(RunSpec.make("rl-cartpole", "dqn-mlp", device="cpu"), tmp_path, 1)


def test_a_survey_of_rl_agents_shows_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rl-bandit-digits", "--agent", "dqn-mlp", "--env.steps", "128", "--env.tasks", "2"]
    arguments += ["--env.evaluate-every", "64", "--agent.learning-starts", "32", "--intervention", "none,reset"]
    options = ["--seed", "0", "--jobs", "1", "--runs-dir", str(tmp_path / "r"), "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit) as exit_:
        main(["survey", *arguments, *options])
    output = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "| intervention (seeds) | final | drop | recovered in | average |" in output
    assert {"| `none` (1) ", "| `reset` (1) "} <= {line[: line.index(")") + 2] for line in output.splitlines()
                                                   if line.startswith("| `")}  # fmt: skip


def test_damaged_costs_are_reported_and_kept(tmp_path: Path) -> None:
    path = tmp_path / survey_table.COSTS_FILE
    for text in ('{"a', "[]", '{"x": {"update": [1, 2], "updates_each": 1, "memory": 0}}', '{"x": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"costs\.json cannot be read .* delete it"):
            survey_table.measure_costs([], tmp_path, path)
        assert path.read_text() == text


@pytest.mark.slow
def test_failures_name_seeds_if_others_are_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["relabel-digits", "--agent", "mlp", "--agent.width", "16", "--env.epochs", "1"]
    arguments += ["--env.stop-after", "2", "--intervention", "none", "--jobs", "1", "--device", "cpu", "--quiet"]
    arguments += ["--runs-dir", str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["survey", *arguments, "--seed", "0"])
    (complete,) = (path.parent for path in tmp_path.glob("*/result.json"))
    (complete / "failure.txt").write_text("out of memory, once\n")
    lost = RunSpec.from_toml((complete / "spec.toml").read_text().replace("seed = 0", "seed = 1"))
    (tmp_path / lost.id).mkdir()
    (tmp_path / lost.id / "result.json").write_text('{"schema": 2, "id')
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["survey", *arguments, "--seed", "0,1"])
    output = capsys.readouterr()
    assert "out of memory" not in output.out and "` failed: " not in output.out
    assert "- `none` failed with seed 1: " in output.out and "delete it" in output.out
    assert (tmp_path / lost.id / "result.json").read_text() == '{"schema": 2, "id'
    with pytest.raises(SystemExit) as exit_:
        main(["run", *arguments[:-3], *arguments[-2:], "--seed", "0,1", "--quiet", "--jobs", "2"])
    output = capsys.readouterr()
    assert exit_.value.code == 2 and "none" in output.out and output.err.count("delete it") == 1
