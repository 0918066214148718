from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plastibench.agents.classifier import Classifier
from plastibench.config import registry
from plastibench.config.errors import RunError, UserError
from plastibench.config.options import option
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.interventions.base import Intervention, Report
from plastibench.nn.network import Network
from plastibench.results.accuracy import divergence
from plastibench.training import checkpoint, runner, supervised, trainer
from plastibench.training.runner import Interrupted, run
from plastibench.utils import atomic_io

Tiny = Callable[..., RunSpec]
STATEFUL = {  # everything at once that an exact resume must bring back
    "agent_options": {"dropout": 0.2, "batch_size": 8, "lr": 0.01},
    "env_options": {"augment": "crop-flip"},
    "representative": 6,  # fewer than there are, so that they are drawn
}


class Stopped(BaseException):
    """Stands for a crash: nothing may catch it."""


def go(spec: RunSpec, runs_dir: Path, **options: Any) -> dict[str, Any]:
    """Run to the end; the result as JSON knows it."""
    return json.loads(json.dumps(run(spec, runs_dir=runs_dir, quiet=True, threads=1, **options).to_dict()))


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the seconds, the only figures that two runs of a spec may differ in."""
    kept = {**result, "cost": {k: v for k, v in result["cost"].items() if "seconds" not in k}, "origin": None}
    kept["interventions"] = [{**report, "seconds": None} for report in result["interventions"]]
    return kept


def timeless_rows(folder: Path) -> list[dict[str, str]]:
    return [row for row in table(folder) if not row["metric"].endswith("seconds")]


def weights(folder: Path) -> bytes:
    state = torch.load(folder / "final.pt", weights_only=True)
    return b"".join(value.numpy().tobytes() for network in state["networks"] for value in network.values())


def assert_same_run(one: Path, other: Path) -> None:
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert timeless(results[0]) == timeless(results[1])
    assert timeless_rows(one) == timeless_rows(other)
    assert weights(one) == weights(other)


def crash_at(monkeypatch: pytest.MonkeyPatch, update: int) -> None:
    """Raise in the agent's update number ``update`` from now on, counted from 1."""
    done = [0]
    original = Classifier.update

    def counted(self: Classifier, batch: Any) -> None:
        done[0] += 1
        if done[0] == update:
            monkeypatch.setattr(Classifier, "update", original)
            raise Stopped
        original(self, batch)

    monkeypatch.setattr(Classifier, "update", counted)


def watch_updates(monkeypatch: pytest.MonkeyPatch, note: Callable[[Classifier, Any], None]) -> None:
    original = Classifier.update

    def watched(self: Classifier, batch: Any) -> None:
        note(self, batch)
        original(self, batch)

    monkeypatch.setattr(Classifier, "update", watched)


# What a run leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intervention", ["none", "rnr"])
def test_a_run_leaves_its_files_whole_and_no_checkpoint(tiny: Tiny, tmp_path: Path, intervention: str) -> None:
    spec = tiny(intervention)
    result = go(spec, tmp_path, checkpoint_seconds=0)
    folder = tmp_path / spec.id
    assert list(tmp_path.iterdir()) == [folder]
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {"spec.toml", "metrics.csv", "result.json", "final.pt", "lock"}
    assert RunSpec.from_toml((folder / "spec.toml").read_text()) == spec
    assert json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail) == result
    module = spec.create("agent").build(spec.create("env").make(), 0, torch.device("cpu")).networks["classifier"].module
    state = torch.load(folder / "final.pt", weights_only=True)
    module.load_state_dict(state["networks"][0])


def test_the_result_says_what_was_run_and_where(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr", {"quantile": 0.25}, seed=4)
    result = go(spec, tmp_path)
    assert (result["id"], result["group"], result["seed"]) == (spec.id, spec.group(), 4)
    assert (result["env"], result["agent"], result["intervention"]) == ("cl-digits", "vit-nano", "rnr")
    assert result["options"] == {part: dict(getattr(spec, part)[1]) for part in ("env", "agent", "intervention")}
    assert result["changed"]["intervention"] == {"quantile": 0.25}
    assert result["origin"]["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert result["origin"]["hardware"]["device"] == "cpu" and result["origin"]["precision"] == "float32"
    # 4, 8 and 12 samples of 40 in ten chunks; 2 epochs each; batches of 64
    assert [task["samples"] for task in result["tasks"]] == [4, 8, 12]
    assert [task["noise"] for task in result["tasks"]] == [0.5, 0.4, 0.4]
    assert result["cost"]["updates"] == 6 and result["cost"]["samples"] == 2 * (4 + 8 + 12)
    assert len(result["interventions"]) == 2
    assert 0 < result["cost"]["intervention_seconds"] < result["cost"]["seconds"]


def test_running_again_says_complete_and_returns_the_same_result_untouched(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny()
    first = go(spec, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / spec.id).iterdir()}
    monkeypatch.setattr(TaskStreamConfig, "make", lambda *_: pytest.fail("the run began again"))
    again = run(spec, runs_dir=tmp_path)
    assert json.loads(json.dumps(again.to_dict())) == first
    assert {path: path.read_bytes() for path in (tmp_path / spec.id).iterdir()} == before
    assert f"{spec.id} is already complete" in capsys.readouterr().err


def test_two_runs_of_a_spec_are_bit_identical_and_another_seed_is_not(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr", **STATEFUL)
    for place in ("one", "two"):
        torch.manual_seed(len(place))
        go(spec, tmp_path / place)
    assert_same_run(tmp_path / "one" / spec.id, tmp_path / "two" / spec.id)
    other = tiny("rnr", seed=1, **STATEFUL)
    go(other, tmp_path / "one")
    assert weights(tmp_path / "one" / other.id) != weights(tmp_path / "one" / spec.id)


def test_metrics_are_the_same_in_the_table_and_in_the_result(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr")
    result = go(spec, tmp_path)
    rows = table(tmp_path / spec.id)
    curve = [
        (float(row["epoch"]), float(row["value"]))
        for row in rows
        if (row["metric"], row["phase"], row["task"]) == ("accuracy", "training", "1")
    ]
    assert [list(point) for point in curve] == result["tasks"][1]["curve"]
    assert [epoch for epoch, _ in curve] == [0, 1, 2]
    drops = [float(row["value"]) for row in rows if row["metric"] == "drop"]
    assert drops == [task["drop"] for task in result["tasks"][1:]]
    assert [int(row["update"]) for row in rows] == sorted(int(row["update"]) for row in rows)
    assert not {row["value"] for row in rows} & {"nan", "inf"}


def test_evaluations_are_in_every_early_epoch_then_as_often_as_told_and_at_the_end(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(env_options={"epochs": 13, "evaluate_every": 4, "stop_after": 1})
    (task,) = go(spec, tmp_path)["tasks"]
    assert [epoch for epoch, _ in task["curve"]] == [0, 1, 2, 3, 4, 5, 8, 12, 13]


# The loop -------------------------------------------------------------------------------------------------------------


def test_data_order_augmentation_and_first_weights_are_the_same_under_every_intervention(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Any]] = {}
    first_weights: dict[str, list[bytes]] = {}

    def note(agent: Classifier, batch: Any) -> None:
        if not seen[name]:
            parameters = agent.networks["classifier"].module.parameters()
            first_weights[name] = [parameter.detach().numpy().tobytes() for parameter in parameters]
        crops = agent._augmentation.get_state().numpy().tobytes()
        seen[name].append((batch["image"].numpy().tobytes(), batch["label"].tolist(), crops))

    watch_updates(monkeypatch, note)
    for name in ("none", "reset", "rnr", "redo", "shrink-perturb"):
        seen[name] = []
        go(tiny(name, **STATEFUL), tmp_path)
        assert len(seen[name]) == 2 * (1 + 1 + 2)
        assert seen[name] == seen["none"] and first_weights[name] == first_weights["none"]


def test_the_order_of_the_data_does_not_depend_on_what_else_is_drawn(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[float, list[bytes]] = {0.0: [], 0.2: []}
    watch_updates(monkeypatch, lambda _, batch: seen[dropout].append(batch["image"].numpy().tobytes()))
    for dropout in seen:
        go(tiny(agent_options={"dropout": dropout, "batch_size": 4}), tmp_path)
    assert seen[0.0] == seen[0.2] and len(seen[0.0]) == 2 * (1 + 2 + 3)


def test_the_stream_is_the_same_for_every_agent(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {"vit-nano": [], "mlp": []}
    original = supervised.add_task_data

    def note(replay: Any, images: Any, labels: Any) -> None:
        seen[name].append((images.tobytes(), labels.tolist()))
        original(replay, images, labels)

    monkeypatch.setattr(supervised, "add_task_data", note)
    for name in seen:
        go(tiny(agent=name), tmp_path)
    assert seen["mlp"] == seen["vit-nano"] and len(seen["mlp"]) == 3


def test_every_epoch_of_a_task_shows_every_sample_once_with_the_labels_of_the_task(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[list[tuple[bytes, int]]] = []
    watch_updates(
        monkeypatch,
        lambda _, batch: updates.append(
            [(image.numpy().tobytes(), int(label)) for image, label in zip(batch["image"], batch["label"], strict=True)]
        ),
    )
    spec = tiny(agent_options={"batch_size": 8})
    go(spec, tmp_path)
    assert [len(batch) for batch in updates] == [4, 4, 8, 8, 8, 4, 8, 4]
    stream = spec.create("env").make()
    observation, _ = stream.reset(seed=runner.derive(0, "stream"))
    images = [image.tobytes() for image in observation["images"]]
    for first, last in ((0, 1), (2, 3), (4, 7)):
        task = list(zip(images, observation["labels"].tolist(), strict=True))
        half = (last - first + 1) // 2
        for epoch in (updates[first : first + half], updates[first + half : last + 1]):
            assert sorted(pair for batch in epoch for pair in batch) == sorted(task)
        observation = stream.step(stream.evaluation_labels)[0]
        images += [image.tobytes() for image in observation["images"]]


def test_before_and_after_are_accuracies_around_the_intervention_on_the_task_that_ended(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plastibench.interventions.reset import Reset

    outputs: list[torch.Tensor] = []
    acted_after: list[int] = []
    logits, intervene = Classifier.logits, Reset.intervene

    def kept(self: Classifier, images: torch.Tensor, module: Any = None) -> torch.Tensor:
        found = logits(self, images, module)
        if len(images) > 1000:  # the test set and not the representative batch
            outputs.append(found)
        return found

    def noted(*arguments: Any) -> Any:
        acted_after.append(len(outputs))
        return intervene(*arguments)

    monkeypatch.setattr(Classifier, "logits", kept)
    monkeypatch.setattr(Reset, "intervene", noted)
    budget = {"stop_after": 2, "epochs": 20, "train_size": 400}
    spec = tiny("reset", agent="mlp", env_options=budget, agent_options={"lr": 0.01, "width": 32})
    result = go(spec, tmp_path)
    truth = spec.create("env").make().dataset.test_labels
    (place,) = acted_after
    before, after = outputs[place - 1], outputs[place]
    record = result["tasks"][1]
    assert record["before"] == pytest.approx(np.mean(before.argmax(1).numpy() == truth))
    assert record["after"] == pytest.approx(np.mean(after.argmax(1).numpy() == truth))
    assert record["drop"] == record["before"] - record["after"] > 0.05
    assert record["agreement"] == pytest.approx(float((before.argmax(1) == after.argmax(1)).double().mean()))
    assert record["output_kl"] == pytest.approx(divergence(before, after))
    assert record["before"] == result["tasks"][0]["end"]


def test_no_intervention_changes_nothing_at_a_switch(tiny: Tiny, tmp_path: Path) -> None:
    for task in go(tiny("none"), tmp_path)["tasks"][1:]:
        assert (task["drop"], task["agreement"]) == (0.0, 1.0)
        assert task["output_kl"] == pytest.approx(0.0, abs=1e-12)


def test_relabel_measures_on_the_labels_of_each_moment(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(env="relabel-digits", agent="mlp", env_options={"epochs": 60}, agent_options={"width": 64, "lr": 0.01})
    for number, task in enumerate(go(spec, tmp_path)["tasks"]):
        assert task["end"] > 0.9 and task["train_accuracy"] == task["end"]  # random labels are learned by heart
        assert task["curve"][0][1] < 0.4  # and at the start of a task the new ones are unknown
        if number:
            assert task["before"] == task["after"] > 0.9


@pytest.mark.parametrize(("every", "calls"), [(0, [2, 4]), (3, [3]), (1, [1, 2, 3, 4, 5]), (100, [])])
def test_interventions_act_at_switches_or_every_so_many_updates_but_not_after_the_last(
    tiny: Tiny, tmp_path: Path, every: int, calls: list[int]
) -> None:
    result = go(tiny("redo", every=every), tmp_path)
    assert [report["update"] for report in result["interventions"]] == calls


@pytest.mark.parametrize(("every", "until", "calls"), [(0, 0, []), (0, 3, [2]), (1, 3, [1, 2, 3]), (0, 4, [2, 4])])
def test_no_intervention_comes_after_its_time(
    tiny: Tiny, tmp_path: Path, every: int, until: int, calls: list[int]
) -> None:
    result = go(tiny("redo", every=every, until=until), tmp_path)
    assert [report["update"] for report in result["interventions"]] == calls


def test_what_a_task_has_come_to_is_measured_before_an_intervention_at_its_end(tiny: Tiny, tmp_path: Path) -> None:
    budget = {"epochs": 40, "train_size": 60, "stop_after": 2}
    options = {"agent": "mlp", "env_options": budget, "agent_options": {"lr": 0.01, "width": 32, "batch_size": 60}}
    plain = go(tiny("none", **options), tmp_path)
    reset = go(tiny("reset", every=40, **options), tmp_path)
    assert [report["update"] for report in reset["interventions"]] == [40]
    assert reset["tasks"][0]["end"] == plain["tasks"][0]["end"] > 0.2
    report = reset["interventions"][0]
    assert report["before"] == reset["tasks"][0]["end"] and report["after"] < 0.2
    assert reset["tasks"][1]["before"] == report["after"]  # the switch itself finds a network that was reset


def test_the_representative_batch_has_the_size_that_was_asked_for(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plastibench.interventions.none import NoIntervention

    sizes: list[int] = []
    monkeypatch.setattr(NoIntervention, "intervene", lambda self, network, batch: sizes.append(len(batch)) or Report())
    go(tiny(representative=5), tmp_path)
    go(tiny(representative=2048), tmp_path)
    assert sizes == [5, 5, 8, 12]


def test_the_hooks_of_an_intervention_are_called(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plastibench.interventions.none import NoIntervention

    called: list[str] = []
    slow = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.nn.init.zeros_(slow[1].weight)
    slow[1].bias.data.copy_(torch.arange(10.0))  # always says 9
    monkeypatch.setattr(NoIntervention, "prepare", lambda self, network: called.append("prepare"))
    monkeypatch.setattr(NoIntervention, "penalty", lambda self, network, batch: called.append("penalty"))
    monkeypatch.setattr(NoIntervention, "after_update", lambda self, network: called.append("after"))
    monkeypatch.setattr(NoIntervention, "evaluated", lambda self, network: slow)
    spec = tiny("none", env_options={"stop_after": 1})
    result = go(spec, tmp_path)
    assert called == ["prepare", "penalty", "after", "penalty", "after"]
    nines = float(np.mean(spec.create("env").make().dataset.test_labels == 9))
    assert [accuracy for _, accuracy in result["tasks"][0]["curve"]] == pytest.approx([nines] * 3)


def test_a_run_leaves_signal_handlers_as_they_were_and_works_in_a_thread(tiny: Tiny, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    go(tiny(), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(go(tiny(), tmp_path / "thread")))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / tiny().id, tmp_path / "thread" / tiny().id)
    assert found


# Exact resume -----------------------------------------------------------------------------------------------------

ACTING: dict[str, dict[str, Any]] = {  # options under which eight updates show what a method does
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
def test_a_run_that_crashed_at_any_update_ends_bit_identical(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    intervention: str,
    options: dict[str, Any],
    run_options: dict[str, Any],
) -> None:
    spec = tiny(intervention, options, **STATEFUL, **run_options)
    whole = go(spec, tmp_path / "whole")
    assert whole["cost"]["updates"] == 8
    for number, update in enumerate((2, 2, 3)):  # counted from the restart: updates 2, 3 and 5 of eight
        crash_at(monkeypatch, update)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "part", checkpoint_seconds=0)
        assert (tmp_path / "part" / spec.id / "checkpoint.pt").exists(), number
        with open(tmp_path / "part" / spec.id / "metrics.csv", "a", encoding="utf-8") as file:
            file.write("what the crashed try wrote after its last checkpoint\n" * 2000)
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


@dataclass
class EmaCopy(Intervention):
    """A method whose state follows the training: it cannot be had back from the seed."""

    rate: float = option(0.5, "how fast the slow copy follows")

    def prepare(self, network: Network) -> None:
        self.slow = copy.deepcopy(network.module)
        self.updates = 0

    @torch.no_grad()
    def after_update(self, network: Network) -> None:
        self.updates += 1
        for slow, fast in zip(self.slow.parameters(), network.module.parameters(), strict=True):
            slow.lerp_(fast, self.rate)

    @torch.no_grad()
    def intervene(self, network: Network, batch: Any) -> Report:
        for slow, fast in zip(self.slow.parameters(), network.module.parameters(), strict=True):
            fast.copy_(slow)
        return Report(parameters=self.updates)

    def evaluated(self, network: Network) -> torch.nn.Module:
        return self.slow

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slow.load_state_dict(state["slow"])
        self.updates = state["updates"]


def test_the_state_of_an_intervention_is_resumed(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.interventions, "_entries", dict(registry.interventions.all()))
    registry.interventions.register("slow-copy")(EmaCopy)
    spec = tiny("slow-copy", **STATEFUL)
    go(spec, tmp_path / "whole")
    crash_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "part", checkpoint_seconds=0)
    result = go(spec, tmp_path / "part")
    assert [report["parameters"] for report in result["interventions"]] == [2, 4]
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


def test_a_run_that_crashed_before_its_first_checkpoint_begins_anew(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny("rnr")
    go(spec, tmp_path / "whole")
    crash_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        go(spec, tmp_path / "part")
    assert not (tmp_path / "part" / spec.id / "checkpoint.pt").exists()
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


@pytest.mark.parametrize("moment", ["evaluate", "measure", "intervene", "finish", "result", "weights"])
def test_a_crash_between_updates_costs_nothing_but_time(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    spec = tiny("rnr", **STATEFUL)
    go(spec, tmp_path / "whole")
    from plastibench.interventions.rnr import RnR

    places: dict[str, tuple[Any, str, int]] = {
        "evaluate": (Classifier, "logits", 7),
        "measure": (trainer, "plasticity_report", 4),
        "intervene": (RnR, "intervene", 2),
        "finish": (runner.Recorder, "finish", 1),
        "result": (runner, "write_result", 1),
        "weights": (atomic_io, "save", 1),
    }
    owner, name, call = places[moment]
    original, calls = getattr(owner, name), [0]

    def once(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += moment != "weights" or arguments[0].name == "final.pt"
        if calls[0] == call:
            raise Stopped
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once)
        with pytest.raises(Stopped):
            go(spec, tmp_path / "part", checkpoint_seconds=0)
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)
    names = {path.name.partition(".tfevents")[0] for path in (tmp_path / "part" / spec.id).iterdir()}
    assert names == {"spec.toml", "metrics.csv", "result.json", "final.pt", "lock", "events.out"}


def test_a_stop_request_saves_and_the_same_call_continues(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny("rnr", **STATEFUL)
    go(spec, tmp_path / "whole")
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
            go(spec, tmp_path / "part")
    assert updates[0] == 5
    go(spec, tmp_path / "part")
    assert_same_run(tmp_path / "whole" / spec.id, tmp_path / "part" / spec.id)


def stopped_run(spec: RunSpec, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path | str = "data") -> Path:
    """The folder of a run that was asked to stop after its fifth update."""
    stop: list[int] = []
    with monkeypatch.context() as patch:
        watch_updates(patch, lambda agent, batch: stop.append(1) if agent._update else None)
        with pytest.raises(Interrupted):
            go(spec, runs_dir, stop=stop, data_dir=data_dir)
    return runs_dir / spec.id


def test_a_run_does_not_go_on_with_other_data(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("cat", "mouse"):
        for part, count in (("train", 12), ("test", 3)):
            (tmp_path / "images" / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), 10 * number + len(label + part)).save(
                    tmp_path / "images" / part / label / f"{number}.png"
                )
    source = {"dataset": "imagefolder", "path": str(tmp_path / "images"), "image_size": 8, "train_size": 20}
    spec = tiny("none", agent="mlp", env_options=source, agent_options={"batch_size": 2})
    folder = stopped_run(spec, tmp_path / "runs", monkeypatch, tmp_path / "data")
    (tmp_path / "images" / "train" / "cat").rename(tmp_path / "images" / "train" / "zebra")
    (tmp_path / "images" / "test" / "cat").rename(tmp_path / "images" / "test" / "zebra")
    with pytest.raises(UserError, match="the data has changed since its checkpoint"):
        go(spec, tmp_path / "runs", data_dir=tmp_path / "data")
    assert (folder / "checkpoint.pt").exists()


def test_a_lost_log_is_named(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny()
    folder = stopped_run(spec, tmp_path, monkeypatch)
    (folder / "metrics.csv").unlink()
    with pytest.raises(RunError, match=r"metrics\.csv is missing; delete .* to restart the run"):
        go(spec, tmp_path)


def test_a_run_leaves_the_number_of_threads_as_it_was(tiny: Tiny, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run(tiny(), runs_dir=tmp_path, quiet=True).origin.threads == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_command_is_the_one_that_was_typed(tiny: Tiny, tmp_path: Path) -> None:
    assert go(tiny(), tmp_path, command="plastibench sweep x.toml")["origin"]["command"] == "plastibench sweep x.toml"


def test_time_is_added_up_over_tries(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def tick(agent: Classifier, batch: Any) -> None:
        now[0] += 10.0

    watch_updates(monkeypatch, tick)
    crash_at(monkeypatch, 4)
    with pytest.raises(Stopped):
        go(tiny(), tmp_path, checkpoint_seconds=15)  # saves after updates 2 and 4; the fourth does not come
    now[0] += 1000.0  # nothing runs meanwhile
    assert go(tiny(), tmp_path)["cost"]["seconds"] == 60.0


def test_the_samples_shown_as_progress_are_those_of_this_try(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []
    original = runner.Progress.show

    def show(self: Any, done: int, samples: int, *arguments: Any, **keywords: Any) -> None:
        shown.append(samples)
        original(self, done, samples, *arguments, **keywords)

    crash_at(monkeypatch, 6)
    with pytest.raises(Stopped):
        go(tiny(), tmp_path, checkpoint_seconds=0)
    monkeypatch.setattr(runner.Progress, "show", show)
    go(tiny(), tmp_path)
    assert shown == [12]  # one update was left; a rate over all 48 samples would be far too high


def test_another_card_of_the_same_kind_goes_on_with_a_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny()
    crash_at(monkeypatch, 6)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0)
    other = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device="cpu:0"))
    assert other.id == spec.id
    assert go(other, tmp_path)["cost"]["updates"] == go(spec, tmp_path / "whole")["cost"]["updates"]


def test_the_time_left_is_told_by_what_was_done_since_the_first_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("plastibench.utils.progress.time.monotonic", lambda: now[0])
    progress = runner.Progress("x", 100)
    for seconds, done in ((5.0, 10), (7.0, 20), (9.0, 30)):  # five seconds before the first, then five a second
        now[0] = seconds
        progress.show(done, done, "", "", milestone=True)
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[0] and lines[1].endswith("0:16 left") and lines[2].endswith("0:14 left")


def test_a_run_that_another_process_finished_meanwhile_is_not_run_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny()
    original, finished = TaskStreamConfig.make, []

    def slow_make(self: TaskStreamConfig, *arguments: Any) -> Any:  # loading takes long, and the other one is faster
        monkeypatch.setattr(TaskStreamConfig, "make", original)
        finished.append(go(spec, tmp_path))
        return original(self, *arguments)

    monkeypatch.setattr(TaskStreamConfig, "make", slow_make)
    assert go(spec, tmp_path) == finished[0]


# Checkpoints that are not what they should be ---------------------------------------------------------------------


@pytest.fixture
def interrupted(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunSpec, Path]:
    spec = tiny()
    crash_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        go(spec, tmp_path, checkpoint_seconds=0)
    return spec, tmp_path / spec.id / "checkpoint.pt"


def refused(spec: RunSpec, path: Path) -> str:
    damaged = path.read_bytes()
    with pytest.raises(UserError) as caught:
        go(spec, path.parent.parent)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "delete" in message
    assert path.read_bytes() == damaged and not (path.parent / "result.json").exists()
    return message


def test_a_truncated_checkpoint_is_refused_wherever_it_ends(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    whole = path.read_bytes()
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(spec, path)


def test_a_checkpoint_with_flipped_bytes_is_refused(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    whole = path.read_bytes()
    with_zip = [whole.index(b"data.pkl") + 200, whole.index(b"/data/0") + 150, len(whole) - 30]
    for place in with_zip:
        path.write_bytes(whole[:place] + bytes(255 - byte for byte in whole[place : place + 8]) + whole[place + 8 :])
        refused(spec, path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"\x80\x04K\x01.", b"\x80\x02}q\x00.", bytes(range(256)), b"PK\x03\x04" + bytes(100)],
)
def test_a_checkpoint_of_rubbish_is_refused(interrupted: tuple[RunSpec, Path], content: bytes) -> None:
    spec, path = interrupted
    path.write_bytes(content)
    refused(spec, path)


@pytest.mark.parametrize("state", [[1, 2], {}, {"a": 1}, {"position": [0, 1, 1, 4]}])
def test_a_checkpoint_of_something_else_is_refused(interrupted: tuple[RunSpec, Path], state: Any) -> None:
    spec, path = interrupted
    torch.save(state, path)
    refused(spec, path)


def test_the_checkpoint_of_another_run_is_refused(
    tiny: Tiny, interrupted: tuple[RunSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = interrupted
    other = tiny(agent_options={"dim": 32})
    crash_at(monkeypatch, 3)
    with pytest.raises(Stopped):
        go(other, path.parent.parent, checkpoint_seconds=0)
    path.write_bytes((path.parent.parent / other.id / "checkpoint.pt").read_bytes())
    refused(spec, path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_malicious_checkpoint_is_refused_and_not_executed(interrupted: tuple[RunSpec, Path]) -> None:
    spec, path = interrupted
    trap = path.parent / "executed"
    pickle.loads(pickle.dumps(Bomb(trap)))
    assert trap.exists()  # the bomb is live
    trap.unlink()
    for save in (torch.save, lambda state, file: file.write_bytes(pickle.dumps(state))):
        save({"position": Bomb(trap)}, path)
        refused(spec, path)
        assert not trap.exists()


def test_a_damaged_result_is_told_and_not_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny()
    path = tmp_path / spec.id / "result.json"
    path.parent.mkdir()
    for text in ("", "{", "[]", '{"schema": 99}'):
        path.write_text(text)
        with pytest.raises(UserError, match="result"):
            go(spec, tmp_path)
        assert path.read_text() == text


# Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervention", "every", "agent"),
    [("none", 0, "mlp"), ("rnr", 1, "vit-nano"), ("redo", 1, "mlp"), ("shrink-perturb", 2, "vit-nano")],
)
def test_a_loss_that_is_not_finite_ends_the_run_in_one_line_and_leaves_no_result(
    tiny: Tiny, tmp_path: Path, intervention: str, every: int, agent: str
) -> None:
    wild = {"lr": 1e30, "clip": 0, "warmup": 0, "batch_size": 4}
    spec = tiny(intervention, agent=agent, agent_options=wild, env_options={"train_size": 160}, every=every)
    with pytest.raises(RunError, match=r"try a smaller --agent\.lr") as caught:
        go(spec, tmp_path)
    assert spec.id in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / spec.id / "result.json").exists()


def test_a_full_disk_leaves_the_previous_checkpoint_whole(
    tiny: Tiny, interrupted: tuple[RunSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = interrupted
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_io.os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        go(spec, path.parent.parent, checkpoint_seconds=0)
    assert path.read_bytes() == before
    assert not [name for name in path.parent.iterdir() if name.name.startswith(".")]
    monkeypatch.undo()
    assert math.isfinite(go(spec, path.parent.parent)["summary"]["final_accuracy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_options": {"patch_size": 3}}, "patch-size 3 does not divide"),
        ({"env_options": {"train_size": 5000}}, "train_size 5000 is outside"),
        ({"env_options": {"dataset": "digist"}}, "did you mean 'digits'"),
    ],
)
def test_parts_that_do_not_fit_together_are_told_and_leave_nothing_behind(
    tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        go(tiny(**options), tmp_path / "runs")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_atomic_writing_leaves_the_old_file_where_the_new_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_io.write_text(path, "old")

    def fail(text: bytes) -> None:
        with atomic_io.atomic(path) as file:
            file.write(text)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(b"half of the new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    atomic_io.write_text(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o644


def test_checkpoints_return_what_was_saved(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": [1, 2.5, "x", None], "c": {"d": (True, {"e": torch.ones(2)})}}
    checkpoint.save(tmp_path / "c.pt", state)
    found = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(found["a"], state["a"]) and found["b"] == state["b"]
    assert torch.equal(found["c"]["d"][1]["e"], torch.ones(2))


def test_more_metrics_are_recorded_and_change_nothing_else(tiny: Any, tmp_path: Path) -> None:
    usual = run(tiny("rnr", agent="vit-nano"), runs_dir=tmp_path, quiet=True)
    more = run(tiny("rnr", agent="vit-nano", metrics=("weights", "fau", "gradients")), runs_dir=tmp_path, quiet=True)
    assert more.tasks == usual.tasks and more.id != usual.id
    for plain, rich in zip(usual.plasticity, more.plasticity, strict=True):
        assert {name: rich.metrics[name] for name in plain.metrics} == plain.metrics
        assert {"fau", "weight-cosine", "gradient-cosine"} <= set(rich.metrics)
    first, second, *_ = (record.metrics for record in more.plasticity)
    assert "effective-learning-rate" in second and "effective-learning-rate" not in first
    names = {line.split(",")[4] for line in (tmp_path / more.id / "metrics.csv").read_text().splitlines()}
    assert {"plasticity-classifier/fau", "layers-classifier/blocks.0.mlp.fc1/fau"} <= names
