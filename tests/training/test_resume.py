"""A run that was interrupted ends exactly like one that was not."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from plastibench.agents.classifier import Classifier
from plastibench.config import registry
from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.spec import RunSpec
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.network import Network
from plastibench.training import checkpoint, opened_run, trainer
from plastibench.training.opened_run import Interrupted
from tests.support.runs import STATEFUL, Stopped, assert_same_run, crash_at, flip, go, watch_updates

Tiny = Callable[..., RunSpec]


ACTING: dict[str, dict[str, Any]] = {  # options with which methods act within eight updates
    "continual-backprop": {"rate": 0.1, "maturity": 1},
    "continual-backprop-adaptable": {"rate": 0.1, "maturity": 1},
    "self-normalized-resets": {"longest": 2, "check": 1, "retune": 3},
    "neuroplastic-expansion": {"every": 2, "grow": 0.3},
    "calibrated-partial-resets": {"every": 2},
    "hare-tortoise": {"momentum": 0.5},
    "ema": {"momentum": 0.5},
    "wasserstein": {"every": 2},
    "weight-clipping": {"kappa": 0.5},
    "redo": {"tau": 1.0},
    "regrama-post": {"tau": 1.0},
    "regrama-weight": {"tau": 1.0},
    "distil": {"steps": 3},
    "rehearse": {"steps": 3},
}


@pytest.mark.sample(12)
@pytest.mark.parametrize(
    ("intervention", "options", "run_options"),
    [
        ("rnr", {}, {"every": 3}),
        ("shrink-perturb-keep20", {}, {}),
        ("recouple", {"inner": "shrink-perturb-keep20"}, {"every": 3}),
        ("low-gradient-quantile", {}, {"seed": 2}),
        ("self-distillation+shrink-perturb-noise", {"self-distillation.momentum": 0.5}, {}),
        *((name, ACTING.get(name, {}), {}) for name in registry.interventions.all()),
    ],
)
def test_resume_is_bit_identical(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    intervention: str,
    options: dict[str, Any],
    run_options: dict[str, Any],
) -> None:
    spec = tiny(intervention, options, **STATEFUL, **run_options)
    uninterrupted = go(spec, tmp_path / "uninterrupted")
    assert uninterrupted["cost"]["updates"] == 8
    for number, update in enumerate((2, 2, 3)):  # counted from each restart: updates 2, 3 and 5 of 8
        crash_at(monkeypatch, update)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "resumed", checkpoint_seconds=0)
        assert (tmp_path / "resumed" / spec.id / "checkpoint.pt").exists(), number
        with open(tmp_path / "resumed" / spec.id / "metrics.csv", "a", encoding="utf-8") as file:
            file.write("what the crashed process wrote after its last checkpoint\n" * 2000)
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


@dataclass
class EmaCopy(Intervention):
    """A method with state that depends on training, so that the seed alone cannot restore it."""

    rate: float = option(0.5, "weight of the network in each update of the copy")

    def prepare(self, network: Network) -> None:
        self.copy = copy.deepcopy(network.module)
        self.updates = 0

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        self.updates += 1
        for averaged, trained in zip(self.copy.parameters(), network.module.parameters(), strict=True):
            averaged.lerp_(trained, self.rate)

    @torch.no_grad()
    def intervene(self, network: Network, batch: Any) -> Report:
        for averaged, trained in zip(self.copy.parameters(), network.module.parameters(), strict=True):
            trained.copy_(averaged)
        return Report(parameters=self.updates)

    def evaluated(self, network: Network) -> torch.nn.Module:
        return self.copy

    def state_dict(self) -> dict[str, Any]:
        return {"copy": self.copy.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.copy.load_state_dict(state["copy"])
        self.updates = state["updates"]


def test_intervention_state_is_resumed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.interventions, "_entries", dict(registry.interventions.all()))
    registry.interventions.register("ema-copy")(EmaCopy)
    spec = tiny("ema-copy", **STATEFUL)
    go(spec, tmp_path / "uninterrupted")
    crash_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "resumed", checkpoint_seconds=0)
    result = go(spec, tmp_path / "resumed")
    assert [report["parameters"] for report in result["interventions"]] == [2, 4]
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


def test_crash_before_the_first_checkpoint_restarts_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny("rnr")
    go(spec, tmp_path / "uninterrupted")
    crash_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / spec.id / "checkpoint.pt").exists()
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


@pytest.mark.sample(2)
@pytest.mark.parametrize("moment", ["evaluate", "measure", "intervene", "finish", "result", "weights"])
def test_resume_after_a_crash_between_updates_is_bit_identical(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    spec = tiny("rnr", **STATEFUL)
    go(spec, tmp_path / "uninterrupted")
    from plastibench.interventions.rnr import RnR

    moments: dict[str, tuple[Any, str, int]] = {
        "evaluate": (Classifier, "logits", 7),
        "measure": (trainer, "plasticity_report", 4),
        "intervene": (RnR, "intervene", 2),
        "finish": (opened_run.Recorder, "finish", 1),
        "result": (opened_run, "write_result", 1),
        "weights": (checkpoint, "save", 1),
    }
    owner, name, call = moments[moment]
    original, calls = getattr(owner, name), [0]

    def once(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += moment != "weights" or arguments[0].name == "final.pt"
        if calls[0] == call:
            raise Stopped
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "resumed", checkpoint_seconds=0)
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)
    names = {path.name.partition(".tfevents")[0] for path in (tmp_path / "resumed" / spec.id).iterdir()}
    assert names == {"spec.toml", "metrics.csv", "result.json", "final.pt", "lock", "events.out"}


def test_stop_request_saves_a_checkpoint(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny("rnr", **STATEFUL)
    go(spec, tmp_path / "uninterrupted")
    updates = [0]

    def stop_once(agent: Classifier, batch: Any) -> None:
        updates[0] += 1
        if updates[0] == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        watch_updates(patch, stop_once)
        with pytest.raises(
            Interrupted, match=rf"{spec.id} stopped in task 3 after 5 updates; its state \(0\.\d MB\) is saved"
        ):
            go(spec, tmp_path / "resumed")
    assert updates[0] == 5
    go(spec, tmp_path / "resumed")
    assert_same_run(tmp_path / "uninterrupted" / spec.id, tmp_path / "resumed" / spec.id)


def test_resume_on_another_device_index(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny()
    crash_at(monkeypatch, 6)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0)
    other = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device="cpu:0"))
    assert other.id == spec.id
    assert go(other, tmp_path)["cost"]["updates"] == go(spec, tmp_path / "uninterrupted")["cost"]["updates"]


def test_run_time_excludes_time_between_attempts(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(opened_run.time, "monotonic", lambda: now[0])

    def tick(agent: Classifier, batch: Any) -> None:
        now[0] += 10.0

    watch_updates(monkeypatch, tick)
    crash_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        go(tiny(), tmp_path, checkpoint_seconds=15)  # saves after update 2; update 4 crashes
    now[0] += 1000.0  # time between the attempts
    assert go(tiny(), tmp_path)["cost"]["seconds"] == 60.0


def test_progress_counts_samples_since_the_resume(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    original = opened_run.Progress.show

    def show(self: Any, done: int, samples: int, *arguments: Any, **keywords: Any) -> None:
        shown.append(samples)
        original(self, done, samples, *arguments, **keywords)

    crash_at(monkeypatch, 6)
    with pytest.raises(Stopped):
        go(tiny(), tmp_path, checkpoint_seconds=0)
    monkeypatch.setattr(opened_run.Progress, "show", show)
    go(tiny(), tmp_path)
    assert set(shown) == {12}  # only the samples of the last update, not all 48


def stopped_run(spec: RunSpec, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path | str = "data") -> Path:
    """The folder of a run that was stopped in the middle of a task."""
    stop: list[int] = []
    with monkeypatch.context() as patch:
        watch_updates(patch, lambda agent, batch: stop.append(1) if agent._update else None)
        with pytest.raises(Interrupted):
            go(spec, runs_dir, stop=stop, data_dir=data_dir)
    return runs_dir / spec.id


def test_resume_refuses_changed_data(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("cat", "mouse"):
        for resumed, count in (("train", 12), ("test", 3)):
            (tmp_path / "images" / resumed / label).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), 10 * number + len(label + resumed)).save(
                    tmp_path / "images" / resumed / label / f"{number}.png"
                )
    source = {"dataset": "imagefolder", "path": str(tmp_path / "images"), "image_size": 8, "train_size": 20}
    spec = tiny("none", agent="mlp", env_options=source, agent_options={"batch_size": 2})
    folder = stopped_run(spec, tmp_path / "runs", monkeypatch, tmp_path / "data")
    (tmp_path / "images" / "train" / "cat").rename(tmp_path / "images" / "train" / "zebra")
    (tmp_path / "images" / "test" / "cat").rename(tmp_path / "images" / "test" / "zebra")
    with pytest.raises(UserError, match="the data has changed since its checkpoint"):
        go(spec, tmp_path / "runs", data_dir=tmp_path / "data")
    assert (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", ["metrics.csv", "events.out.tfevents.*"])
@pytest.mark.parametrize("harm", ["is missing", "is shorter than", "has changed since"])
def test_resume_refuses_damaged_logs(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: str
) -> None:
    spec = tiny()
    folder = stopped_run(spec, tmp_path, monkeypatch)
    (path,) = folder.glob(name)
    if harm == "is missing":
        path.unlink()
    elif harm == "is shorter than":
        os.truncate(path, path.stat().st_size - 1)
    else:
        flip(path, 4 * path.stat().st_size)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    with pytest.raises(UserError, match=rf"{re.escape(path.name)} {harm}.*; restore it, or delete .* to restart"):
        go(spec, tmp_path)
    assert {each.name: each.read_bytes() for each in folder.iterdir() if each.name != "failure.txt"} == before


def test_logs_of_checkpoints_without_digests_are_checked_by_length(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny()
    folder = stopped_run(spec, tmp_path, monkeypatch)
    state = checkpoint.load(folder / "checkpoint.pt")
    torch.save({**state, "files": {name: length for name, (length, _) in state["files"].items()}}, folder / "old.pt")
    os.replace(folder / "old.pt", folder / "checkpoint.pt")
    length = (folder / "metrics.csv").stat().st_size
    os.truncate(folder / "metrics.csv", length - 1)
    with pytest.raises(UserError, match=r"metrics\.csv is shorter than"):
        go(spec, tmp_path)
    with open(folder / "metrics.csv", "a") as file:
        file.write("\n")
    go(spec, tmp_path)
