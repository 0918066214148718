"""Real images, where the folder in PLASTIBENCH_TEST_DATA holds them (`pytest -m data`)."""

import os

import pytest

from plastibench.config.spec import RunSpec
from plastibench.training.runner import run

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif("PLASTIBENCH_TEST_DATA" not in os.environ, reason="PLASTIBENCH_TEST_DATA is not set"),
]


@pytest.mark.parametrize(("env", "agent"), [("cl-cifar100", "vit-tiny"), ("cl-tiny-imagenet", "vit-small")])
def test_rnr_acts_at_the_first_switch_on_real_images(tmp_path, env, agent):
    spec = RunSpec.make(
        env,
        agent,
        "rnr",
        env_options={"epochs": 1, "stop_after": 2, "train_size": 640},
        agent_options={"depth": 2, "batch_size": 32},
        representative=128,
        device="cpu",
    )
    result = run(spec, runs_dir=tmp_path, data_dir=os.environ["PLASTIBENCH_TEST_DATA"], quiet=True)
    (record,) = result.interventions
    assert 0.3 < record.revived_fraction < 0.41
    assert result.tasks[1].samples == 128
    assert result.tasks[1].agreement < 1
