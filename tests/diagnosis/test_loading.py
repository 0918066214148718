from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from plastibench.agents.classifier import Classifier
from plastibench.config.spec import RunSpec
from plastibench.diagnosis.loading import DiagnosisTarget, networks_of_run
from plastibench.envs.task_stream_config import make_task_stream
from plastibench.nn.network import eval_mode
from plastibench.training.runner import run
from plastibench.training.saved_run import data_of_task
from plastibench.training.task_buffer import add_task_data, all_samples, make_task_buffer
from plastibench.utils.seeding import derive


def test_classes_that_have_not_arrived_are_masked(tmp_path: Path) -> None:
    budget = {"train_size": 200, "epochs": 30, "stop_after": 2}
    spec = RunSpec.make("incremental-digits", "mlp", "none", env_options=budget, device="cpu")
    run(spec, runs_dir=tmp_path, quiet=True, threads=1)
    (found,) = networks_of_run(tmp_path / spec.id, None, "cpu", samples=0, data_dir=Path("data"))
    module, batch = found.network.module, found.batch
    arrived = batch["label"].unique()
    assert len(arrived) == 4
    with eval_mode(module), torch.no_grad():
        logits = Classifier.logits(agent_of(found), batch["image"])
        expected = F.cross_entropy(logits[:, arrived], torch.searchsorted(arrived, batch["label"]))
        assert float(found.network.loss(module, batch)) == pytest.approx(float(expected), rel=1e-4)
    assert float(F.cross_entropy(logits, batch["label"])) > 1.05 * float(expected)


def agent_of(target: DiagnosisTarget) -> Any:
    """The agent that the loss of the network belongs to."""
    return target.network.loss.__self__  # type: ignore[attr-defined]


@pytest.mark.parametrize("env", ["cl-digits", "relabel-digits", "permuted-digits", "warm-digits", "incremental-digits"])
@pytest.mark.parametrize("task", [0, 1])
def test_data_of_task_is_what_a_run_trains_on(env: str, task: int) -> None:
    options = {"data": "new"} if env == "incremental-digits" else {}  # new data replaces the old
    spec = RunSpec.make(env, "mlp", "none", env_options={"train_size": 40, **options}, seed=3)
    stream = make_task_stream(env, train_size=40, **options)
    found = data_of_task(make_task_stream(env, train_size=40, **options), spec, task)

    replay = make_task_buffer(40, 8, torch.device("cpu"), torch.Generator())
    observation, _ = stream.reset(seed=derive(3, "stream"))
    add_task_data(replay, observation["images"], observation["labels"])
    for _ in range(task):
        observation = stream.step(stream.evaluation_labels)[0]
        add_task_data(replay, observation["images"], observation["labels"])
    learned = all_samples(replay)
    assert torch.equal(found["image"], learned["image"]) and torch.equal(found["label"], learned["label"])
