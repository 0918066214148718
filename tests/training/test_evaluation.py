"""Evaluations: on part of the test set, never twice of the same network, with progress and their share of the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.agents import classifier
from plastibench.agents.classifier import Classifier
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.results.result import Result
from plastibench.training import offpolicy, rollout
from plastibench.training.assembly import make_trainer
from plastibench.training.learner import Learner
from tests.support.rl import tiny_rl
from tests.support.runs import go

TINY: dict[str, Any] = {"stop_after": 3, "epochs": 2, "train_size": 60}


class Shown:
    """A log that keeps the lines of progress."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def scalars(self, *_: Any, **__: Any) -> None:
        """Ignore."""

    def histogram(self, *_: Any) -> None:
        """Ignore."""

    def progress(self, done: int, count: int, position: str, value: str, *, milestone: bool = False) -> None:
        """Keep."""
        self.lines.append((position, value))


def spec_of(intervention: str = "none", env: str = "cl-digits", **options: Any) -> RunSpec:
    env_options = {**TINY, **options}
    return RunSpec.make(env, "mlp", intervention, env_options=env_options, agent_options={"width": 8}, device="cpu")


def test_only_part_of_the_test_set_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "test_size" not in spec_of().env[1]
    full, part = spec_of(), spec_of(test_size=50)
    assert full.id != part.id and full.group() != part.group()
    sizes: set[int] = set()
    logits = Classifier.logits

    def noted(self: Classifier, images: torch.Tensor, *more: Any) -> torch.Tensor:
        sizes.add(len(images))
        return logits(self, images, *more)

    monkeypatch.setattr(Classifier, "logits", noted)
    found = go(part, tmp_path)
    assert 50 in sizes and not any(size > 60 for size in sizes)
    assert all((50 * accuracy) % 1 == pytest.approx(0) for task in found["tasks"] for _, accuracy in task["curve"])
    env = part.create("env").make()
    assert torch.from_numpy(env.dataset.test_labels).bincount().tolist() == [5] * 10


def test_a_part_of_the_test_set_needs_a_stream_that_is_evaluated_on_it() -> None:
    with pytest.raises(UserError, match="test-size has no effect here"):
        spec_of(env="relabel-digits", test_size=50).create("env").make()


@pytest.mark.parametrize("intervention", ["none", "l2-init", "reset"])
def test_an_unchanged_network_is_not_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intervention: str
) -> None:
    seen: list[tuple[bytes, int]] = []
    logits = Classifier.logits

    def noted(self: Classifier, images: torch.Tensor, module: Any, *more: Any) -> torch.Tensor:
        weights = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
        seen.append((weights, len(images)))
        return logits(self, images, module, *more)

    monkeypatch.setattr(Classifier, "logits", noted)
    found = go(spec_of(intervention), tmp_path / "once")
    assert len(seen) == len(set(seen))
    monkeypatch.setattr(Learner, "acts", True)  # evaluate before and after, whatever the method does
    before = len(seen)
    again = go(spec_of(intervention), tmp_path / "twice")
    assert (len(seen) - before) - before == (0 if intervention == "reset" else 2)
    assert again["tasks"] == found["tasks"]


@pytest.mark.parametrize(("intervention", "calls"), [("l2-init", 1), ("reset", 2)])
def test_an_unchanged_policy_is_not_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intervention: str, calls: int
) -> None:
    counted: list[int] = []
    evaluate = rollout.evaluate_policy

    def noted(*arguments: Any, **more: Any) -> Any:
        counted.append(1)
        return evaluate(*arguments, **more)

    monkeypatch.setattr(offpolicy, "evaluate_policy", noted)
    spec = tiny_rl(intervention, every=90, env_options={"evaluate_every": 80})
    found = go(spec, tmp_path)
    assert len(found["events"]) == 1
    assert len(counted) == len(found["returns"]) + calls
    assert (found["events"][0]["drop"] == 0) or intervention == "reset"


def test_long_evaluations_show_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "_EVALUATION_BATCH", 250)
    spec, log = spec_of(), Shown()
    env = spec.create("env").make()
    trainer = make_trainer(spec, env, spec.create("agent").build(env, 0, torch.device("cpu")), log)
    trainer.begin()
    total = len(env.dataset.test_images)
    assert log.lines[:2] == [("task 1/3, epoch 0/2", f"evaluating {100 * done // total} %") for done in (250, 500)]
    monkeypatch.setattr(rollout, "_SHOWN", 5)
    spec, log = tiny_rl(), Shown()
    env = spec.create("env").make()
    trainer = make_trainer(spec, env, spec.create("agent").build(env, 0, torch.device("cpu")), log)
    trainer.begin()
    trainer.close()
    assert log.lines[0] == ("step 0", "evaluating: 0 of 2 episodes, step 5")


def test_the_time_of_evaluations_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (spec_of(), tiny_rl()):
        found = go(spec, tmp_path)
        assert 0 < found["cost"]["evaluation_seconds"] <= found["cost"]["seconds"]
        old = json.loads(json.dumps(found))
        del old["cost"]["evaluation_seconds"]
        assert Result.from_dict({"schema": 3, **old}).cost.evaluation_seconds is None
