from __future__ import annotations

import pytest
import torch

from plastibench.envs.scenario import make_stream
from plastibench.replay import arrive, everything, growing_replay
from plastibench.seeds import derive
from plastibench.spec import RunSpec
from plastibench.subject import data_of_task


@pytest.mark.parametrize("env", ["cl-digits", "relabel-digits", "permuted-digits", "warm-digits", "incremental-digits"])
@pytest.mark.parametrize("task", [0, 1])
def test_the_data_of_a_task_is_what_a_run_learns_from_then(env: str, task: int) -> None:
    options = {"data": "new"} if env == "incremental-digits" else {}  # which replaces what was there, as permuted does
    spec = RunSpec.make(env, "mlp", "none", env_options={"train_size": 40, **options}, seed=3)
    stream = make_stream(env, train_size=40, **options)
    found = data_of_task(make_stream(env, train_size=40, **options), spec, task)

    replay = growing_replay(40, 8, torch.device("cpu"), torch.Generator())
    observation, _ = stream.reset(seed=derive(3, "stream"))
    arrive(replay, observation["images"], observation["labels"])
    for _ in range(task):
        observation = stream.step(stream.evaluation_labels)[0]
        arrive(replay, observation["images"], observation["labels"])
    learned = everything(replay)
    assert torch.equal(found["image"], learned["image"]) and torch.equal(found["label"], learned["label"])
