from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark import _started
from plastibench.sweeps.matrix_products import products_of

VIT = {"depth": 1, "dim": 16}


@pytest.mark.parametrize(("agent", "options"), [("mlp", {"width": 16}), ("vit-nano", VIT)])
def test_the_products_alone_are_all_products_of_an_update(agent: str, options: dict[str, int], tmp_path: Path) -> None:
    spec = RunSpec.make("cl-digits", agent, agent_options=options, device="cpu")
    trainer = _started(spec, tmp_path, threads=1)
    with FlopCounterMode(display=False) as of_update:
        trainer.learn()
    products = products_of(trainer.learn)
    weights = [p.detach().clone() for p in trainer.learner.networks["classifier"].module.parameters()]
    with FlopCounterMode(display=False) as of_products:
        products.replay()
    assert of_products.get_total_flops() == of_update.get_total_flops() > 0
    assert trainer.learner.updates == 2  # a replay is no update
    for before, after in zip(weights, trainer.learner.networks["classifier"].module.parameters(), strict=True):
        assert before.equal(after)


def test_bench_prints_text_and_json(say: Any, tmp_path: Path) -> None:
    words = [
        "bench",
        "cl-digits",
        "--agent",
        "mlp",
        "--agent.width",
        "16",
        "--env.train-size",
        "200",
        "--device",
        "cpu",
    ]
    words += ["--updates", "1", "--rounds", "2", "--threads", "1", "--intervention", "reset"]
    said = say(*words)
    assert said.status == 0 and "matrix products alone" in said.out and "reset: " in said.out
    found = json.loads(say(*words, "--json").out)
    assert found["env"] == "cl-digits" and found["threads"] == 1
    for name in ("plastibench", "plain", "ratio", "products", "reached"):
        low, middle, high = found[name]
        assert 0 < low <= middle <= high
    assert found["stack"] == 0 and found["stacked"] is None


def test_bench_of_runs_that_are_updated_together(say: Any, tmp_path: Path) -> None:
    words = "bench relabel-digits --agent mlp --agent.width 16 --env.train-size 200 --device cpu --updates 1 --rounds 2"
    said = say(*words.split(), "--stack", "3", "--threads", "1")
    assert said.status == 0 and "each of 3 together" in said.out and "times as fast as alone" in said.out
    said = say("bench", "cl-digits", "--agent", "vit-nano", "--device", "cpu", "--stack", "3")
    assert said.status == 2 and "vit-nano on cpu cannot be updated together" in said.err
