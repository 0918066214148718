"""What happens during a run: data, interventions, evaluations, failures."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plastibench.agents.classifier import Classifier
from plastibench.config.errors import RunError
from plastibench.config.spec import RunSpec
from plastibench.interventions.base import Report
from plastibench.results.accuracy import divergence
from plastibench.training import supervised
from plastibench.training.runner import run
from plastibench.utils.seeding import derive
from tests.support.runs import STATEFUL, assert_same_run, go, watch_updates, weights

Tiny = Callable[..., RunSpec]


def test_runs_are_deterministic_and_depend_on_the_seed(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny("rnr", **STATEFUL)
    for folder in ("one", "two"):
        torch.manual_seed(len(folder))
        go(spec, tmp_path / folder)
    assert_same_run(tmp_path / "one" / spec.id, tmp_path / "two" / spec.id)
    other = tiny("rnr", seed=1, **STATEFUL)
    go(other, tmp_path / "one")
    assert weights(tmp_path / "one" / other.id) != weights(tmp_path / "one" / spec.id)


def test_evaluation_epochs(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(env_options={"epochs": 13, "evaluate_every": 4, "stop_after": 1})
    (task,) = go(spec, tmp_path)["tasks"]
    assert [epoch for epoch, _ in task["curve"]] == [0, 1, 2, 3, 4, 5, 8, 12, 13]


def test_interventions_do_not_change_data_order_augmentation_or_initial_weights(
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


def test_dropout_does_not_change_the_data_order(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[float, list[bytes]] = {0.0: [], 0.2: []}
    watch_updates(monkeypatch, lambda _, batch: seen[dropout].append(batch["image"].numpy().tobytes()))
    for dropout in seen:
        go(tiny(agent_options={"dropout": dropout, "batch_size": 4}), tmp_path)
    assert seen[0.0] == seen[0.2] and len(seen[0.0]) == 2 * (1 + 2 + 3)


def test_task_stream_does_not_depend_on_the_agent(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Any]] = {"vit-nano": [], "mlp": []}
    original = supervised.add_task_data

    def note(replay: Any, images: Any, labels: Any) -> None:
        seen[name].append((images.tobytes(), labels.tolist()))
        original(replay, images, labels)

    monkeypatch.setattr(supervised, "add_task_data", note)
    for name in seen:
        go(tiny(agent=name), tmp_path)
    assert seen["mlp"] == seen["vit-nano"] and len(seen["mlp"]) == 3


def test_every_epoch_contains_each_sample_once_with_its_task_label(
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
    observation, _ = stream.reset(seed=derive(0, "stream"))
    images = [image.tobytes() for image in observation["images"]]
    for first, last in ((0, 1), (2, 3), (4, 7)):
        task = list(zip(images, observation["labels"].tolist(), strict=True))
        half = (last - first + 1) // 2
        for epoch in (updates[first : first + half], updates[first + half : last + 1]):
            assert sorted(pair for batch in epoch for pair in batch) == sorted(task)
        observation = stream.step(stream.evaluation_labels)[0]
        images += [image.tobytes() for image in observation["images"]]


def test_drop_is_measured_on_the_previous_task(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plastibench.interventions.reset import Reset

    outputs: list[torch.Tensor] = []
    acted_after: list[int] = []
    logits, intervene = Classifier.logits, Reset.intervene

    def kept(self: Classifier, images: torch.Tensor, *more: Any) -> torch.Tensor:
        found = logits(self, images, *more)
        if len(images) > 1000:  # the test set, not the representative batch
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
    (number,) = acted_after
    before, after = outputs[number - 1], outputs[number]
    record = result["tasks"][1]
    assert record["before"] == pytest.approx(np.mean(before.argmax(1).numpy() == truth))
    assert record["after"] == pytest.approx(np.mean(after.argmax(1).numpy() == truth))
    assert record["drop"] == record["before"] - record["after"] > 0.05
    assert record["agreement"] == pytest.approx(float((before.argmax(1) == after.argmax(1)).double().mean()))
    assert record["output_kl"] == pytest.approx(divergence(before, after))
    assert record["before"] == result["tasks"][0]["end"]


def test_none_causes_no_drop_at_task_boundaries(tiny: Tiny, tmp_path: Path) -> None:
    for task in go(tiny("none"), tmp_path)["tasks"][1:]:
        assert (task["drop"], task["agreement"]) == (0.0, 1.0)
        assert task["output_kl"] == pytest.approx(0.0, abs=1e-12)


def test_relabel_evaluates_on_the_current_labels(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(env="relabel-digits", agent="mlp", env_options={"epochs": 60}, agent_options={"width": 64, "lr": 0.01})
    for number, task in enumerate(go(spec, tmp_path)["tasks"]):
        assert task["end"] > 0.9 and task["train_accuracy"] == task["end"]  # random labels are memorized
        assert task["curve"][0][1] < 0.4  # new labels are unknown at the start of a task
        if number:
            assert task["before"] == task["after"] > 0.9


@pytest.mark.parametrize(("every", "calls"), [(0, [2, 4]), (3, [3]), (1, [1, 2, 3, 4, 5])])
def test_intervention_schedule(tiny: Tiny, tmp_path: Path, every: int, calls: list[int]) -> None:
    result = go(tiny("redo", every=every), tmp_path)
    assert [report["update"] for report in result["interventions"]] == calls


@pytest.mark.parametrize(("every", "until", "calls"), [(0, 3, [2]), (1, 3, [1, 2, 3]), (0, 4, [2, 4])])
def test_no_intervention_after_until(tiny: Tiny, tmp_path: Path, every: int, until: int, calls: list[int]) -> None:
    result = go(tiny("redo", every=every, until=until), tmp_path)
    assert [report["update"] for report in result["interventions"]] == calls


def test_end_of_task_is_measured_before_a_due_intervention(tiny: Tiny, tmp_path: Path) -> None:
    budget = {"epochs": 40, "train_size": 60, "stop_after": 2}
    options = {"agent": "mlp", "env_options": budget, "agent_options": {"lr": 0.01, "width": 32, "batch_size": 60}}
    plain = go(tiny("none", **options), tmp_path)
    reset = go(tiny("reset", every=40, **options), tmp_path)
    assert [report["update"] for report in reset["interventions"]] == [40]
    assert reset["tasks"][0]["end"] == plain["tasks"][0]["end"] > 0.2
    report = reset["interventions"][0]
    assert report["before"] == reset["tasks"][0]["end"] and report["after"] < 0.2
    assert reset["tasks"][1]["before"] == report["after"]  # the network was already reset at the task boundary


def test_representative_batch_size(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plastibench.interventions.none import NoIntervention

    sizes: list[int] = []
    monkeypatch.setattr(NoIntervention, "intervene", lambda self, network, batch: sizes.append(len(batch)) or Report())
    go(tiny(representative=5), tmp_path)
    go(tiny(representative=2048), tmp_path)
    assert sizes == [5, 5, 8, 12]


def test_hooks_of_an_intervention_are_called(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from plastibench.interventions.none import NoIntervention

    called: list[str] = []
    slow = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.nn.init.zeros_(slow[1].weight)
    slow[1].bias.data.copy_(torch.arange(10.0))  # always predicts class 9
    monkeypatch.setattr(NoIntervention, "prepare", lambda self, network: called.append("prepare"))
    monkeypatch.setattr(NoIntervention, "penalty", lambda self, network, batch: called.append("penalty"))
    monkeypatch.setattr(NoIntervention, "after_update", lambda self, network: called.append("after"))
    monkeypatch.setattr(NoIntervention, "evaluated", lambda self, network: slow)
    spec = tiny("none", env_options={"stop_after": 1})
    result = go(spec, tmp_path)
    assert called == ["prepare", "penalty", "after", "penalty", "after"]
    nines = float(np.mean(spec.create("env").make().dataset.test_labels == 9))
    assert [accuracy for _, accuracy in result["tasks"][0]["curve"]] == pytest.approx([nines] * 3)


def test_run_restores_signal_handlers_and_works_in_a_thread(tiny: Tiny, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    go(tiny(), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(go(tiny(), tmp_path / "thread")))
    thread.start()
    thread.join()
    assert_same_run(tmp_path / tiny().id, tmp_path / "thread" / tiny().id)
    assert found


def test_run_restores_the_number_of_threads(tiny: Tiny, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run(tiny(), runs_dir=tmp_path, quiet=True).origin.threads == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("intervention", "every", "agent"),
    [("none", 0, "mlp"), ("rnr", 1, "vit-nano"), ("redo", 1, "mlp"), ("shrink-perturb", 2, "vit-nano")],
)
def test_non_finite_loss_fails_the_run(tiny: Tiny, tmp_path: Path, intervention: str, every: int, agent: str) -> None:
    wild = {"lr": 1e30, "clip": 0, "warmup": 0, "batch_size": 4}
    spec = tiny(intervention, agent=agent, agent_options=wild, env_options={"train_size": 160}, every=every)
    with pytest.raises(RunError, match=r"try a smaller --agent\.lr") as caught:
        go(spec, tmp_path)
    assert spec.id in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / spec.id / "result.json").exists()


@pytest.mark.parametrize("update", [2, 6])
def test_weights_that_overflow_behind_a_relu_end_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: int
) -> None:
    calls: list[int] = []

    def overflow(agent: Classifier, batch: Any) -> None:
        calls.append(1)
        if len(calls) == update:
            parameters = dict(agent.networks["classifier"].module.named_parameters())
            first = next(name for name in parameters if name.endswith("bias"))
            parameters[first].data[0] = -torch.inf  # a dead unit: outputs and gradients stay finite

    watch_updates(monkeypatch, overflow)
    spec = tiny(agent="mlp")
    with pytest.raises(
        RunError, match=rf"the weights of the classifier are not finite after update {update} \(first: "
    ):
        go(spec, tmp_path)
    assert not (tmp_path / spec.id / "result.json").exists()


@pytest.mark.parametrize("lr", [100.0, 1e20])
def test_a_diverging_transformer_ends_with_a_clear_error(tiny: Tiny, tmp_path: Path, lr: float) -> None:
    spec = tiny(agent_options={"lr": lr, "batch_size": 4}, env_options={"epochs": 6})
    with pytest.raises(RunError, match=r"cl-digits_vit-nano_.*; try a smaller --agent\.lr"):
        go(spec, tmp_path)
