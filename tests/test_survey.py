from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from plastibench import registry, survey
from plastibench.benchmark import Cost, cost
from plastibench.checkpoint import tensor_bytes
from plastibench.cli import main
from plastibench.spec import RunSpec


def test_a_survey_compares_times_and_says_what_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    places = ["--runs-dir", str(tmp_path / "r"), "--out", str(tmp_path / "table.md"), "--device", "cpu", "--quiet"]
    with pytest.raises(SystemExit) as exit_:
        main(["survey", *arguments, *places])
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
    assert "`reset-layernorm` does not run here: reset: 'layernorm' selects no parameter" in written


def test_costs_count_what_is_kept_and_slowed_down(tmp_path: Path) -> None:
    def slow(network) -> None:
        for _ in range(200):
            torch.ones(100, 100).exp()

    spec = RunSpec.make("cl-digits", "mlp", "upgd", device="cpu")
    found = cost(spec, tmp_path, updates=2, rounds=4)
    assert found.memory == pytest.approx(1, abs=0.15)  # utilities; the rest is the state of its noise
    assert found.update[0] <= found.update[1] <= found.update[2]
    from plastibench.interventions.upgd import UPGD

    before = UPGD.before_update
    UPGD.before_update = lambda self, network: (slow(network), before(self, network))[1]
    try:
        slower = cost(spec, tmp_path, updates=2, rounds=4)
    finally:
        UPGD.before_update = before
    assert slower.update[1] > 1.5 * found.update[1]


def test_bytes_are_those_of_all_tensors_within() -> None:
    state = {"a": torch.zeros(3, dtype=torch.float64), "b": [torch.zeros(2), (torch.zeros(1, dtype=torch.uint8), 5)]}
    assert tensor_bytes(state) == 24 + 8 + 1


def test_a_survey_is_of_everything_that_stands_for_itself() -> None:
    names = survey.every_intervention()
    assert {"none", "rnr", "redo", "upgd"} <= set(names) <= set(registry.interventions.all())


def test_rows_are_in_order_and_have_their_costs() -> None:
    def result(name: str, seed: int, final: float) -> dict[str, object]:
        summary = {"final-accuracy": final, "average-accuracy": 0.5, "mean-drop": 0.01, "mean-recovery-epochs": 2.0}
        summary["unrecovered-share"] = 0.0
        part = {"env": "e", "agent": "a", "intervention": name}
        changed = {"env": {}, "agent": {}, "intervention": {}}
        return {**part, "group": name, "seed": seed, "changed": changed, "every": 0, "summary": summary}

    runs = [result("low", 0, 0.2), result("high", 0, 0.8), result("high", 1, 0.9)]
    rows = survey.table(runs, {"high": Cost((1.0, 1.125, 1.5), 12.34, 2.0)}, {}).splitlines()[2:]
    assert rows == [
        "| `high` (2) | 85.0 ± 7.1 | 50.0 ± 0.0 | 1.0 ± 0.0 | 2.0 | 1.12 (1.00–1.50) | 12.3 | 2 |",
        "| `low` (1) | 20.0 | 50.0 | 1.0 | 2.0 | – | – | – |",
    ]
