from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plastibench.agents.images import Normalize
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.sweeps.benchmark import timing
from plastibench.sweeps.benchmark.loader_loop import AugmentedImages
from plastibench.sweeps.benchmark.matrix_products import products_of
from plastibench.sweeps.benchmark.plain_loop import plain_loop
from plastibench.sweeps.benchmark.plain_rl import plain_rl_loop
from plastibench.sweeps.benchmark.rl_speed import start_rl_trainer
from plastibench.sweeps.benchmark.stacked_reference import stacked_reference
from plastibench.sweeps.benchmark.started_trainer import start_trainer

VIT = {"depth": 1, "dim": 16}
CPU = torch.device("cpu")
TINY = "--agent mlp --agent.width 16 --env.train-size 200 --device cpu --rounds 2 --threads 1"


def flops(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


# Timing -----------------------------------------------------------------------------------------------------------


def test_each_round_measures_every_block_twice_in_opposite_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    now, called = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def block(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            called.append(name)
            now[0] += seconds

        return work

    found = timing.alternate({"a": block("a", 1.0), "b": block("b", 2.0)}, 3, CPU)
    assert "".join(called) == "abba" * 4  # one round warms up
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_the_cpu_clock_does_not_count_waiting() -> None:
    event = __import__("threading").Event()
    assert (
        timing.time_block(lambda: event.wait(0.2), CPU, "cpu") < 0.1 <= timing.time_block(lambda: event.wait(0.2), CPU)
    )


# Updates of classifiers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agent", "options"), [("mlp", {"width": 16}), ("vit-nano", VIT)])
def test_plain_loop_and_products_do_the_products_of_an_update(
    agent: str, options: dict[str, int], tmp_path: Path
) -> None:
    trainer = start_trainer(RunSpec.make("cl-digits", agent, agent_options=options, device="cpu"), tmp_path, 1)
    plain = plain_loop(trainer)
    ours = flops(trainer.learn)
    products = products_of(plain)
    assert ours == flops(plain) == flops(products.replay) > 0


def test_a_replay_of_products_is_no_update(tmp_path: Path) -> None:
    trainer = start_trainer(RunSpec.make("cl-digits", "mlp", device="cpu"), tmp_path, 1)
    products = products_of(trainer.learn)
    weights = [p.detach().clone() for p in trainer.learner.networks["classifier"].module.parameters()]
    products.replay()
    assert trainer.learner.updates == 1
    for before, after in zip(weights, trainer.learner.networks["classifier"].module.parameters(), strict=True):
        assert before.equal(after)


def test_bench_train_prints_text_and_json(say: Any, tmp_path: Path) -> None:
    words = [*f"bench train cl-digits {TINY} --updates 1 --loops plain,products --intervention reset".split()]
    said = say(*words, "--json", tmp_path / "found.json")
    assert said.status == 0 and "matrix products alone" in said.out and "reset: one intervention" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["env"] == "cl-digits" and found["threads"] == 1 and found["loader"] is None
    assert found["batch_size"] == 20  # all images of the first task
    for name in ("plastibench", "plain", "ratio", "products", "reached"):
        low, middle, high = found[name]
        assert 0 < low <= middle <= high
    assert found["stack"] == 0 and found["stacked"] is None
    assert found.keys() == json.loads(say(*words, "--json").out).keys()


@pytest.mark.slow  # starts two processes, of which one imports PyTorch
def test_bench_train_compares_with_a_loop_of_its_own_process(say: Any) -> None:
    said = say(*f"bench train relabel-digits {TINY} --updates 1 --loops loader --workers 1".split())
    assert said.status == 0 and "DataLoader, 1 worker " in said.out and "times as fast as the loop" in said.out


def test_bench_stack_measures_runs_that_are_updated_together(say: Any) -> None:
    said = say(*f"bench stack relabel-digits {TINY} --updates 1 --loops none --runs 3".split())
    assert said.status == 0 and "each of 3 together" in said.out and "times as fast as alone" in said.out
    said = say("bench", "stack", "cl-digits", "--agent", "vit-nano", "--device", "cpu", "--runs", "3")
    assert said.status == 2 and "vit-nano on cpu cannot be updated together" in said.err


def test_the_old_form_measures_the_same_with_a_note(say: Any) -> None:
    said = say(*f"bench relabel-digits {TINY} --updates 1 --loops none --stack 2 --intervention reset".split())
    assert said.status == 0 and "each of 2 together" in said.out and "reset: one intervention" in said.out
    assert "'bench …' is now 'bench train …'" in said.err and said.err.count("\n") == 1


def test_vmapped_networks_get_the_updates_of_plain_ones(tmp_path: Path) -> None:
    """The reference does the matrix products of as many plain loops, with clipping per network."""
    spec = RunSpec.make("relabel-digits", "mlp", agent_options={"width": 8}, device="cpu")
    trainer = start_trainer(spec, tmp_path, 1)
    step = stacked_reference(trainer, 3)
    assert flops(step) == 3 * flops(plain_loop(trainer))


# Data -------------------------------------------------------------------------------------------------------------


def test_torchvision_normalizes_as_plastibench_does() -> None:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (3, 3, 8, 8), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)
    data = AugmentedImages(images, np.arange(3), mean, std, pad=0, size=5)
    expected = Normalize(mean, std, CPU)(torch.from_numpy(images))
    for index in range(5):
        image, label = data[index]
        assert label == index % 3 and torch.allclose(image, expected[index % 3], atol=1e-5)
    assert len(data) == 5


def test_torchvision_crops_within_the_padding() -> None:
    image = np.full((1, 1, 8, 8), 255, np.uint8)
    data = AugmentedImages(image, np.zeros(1, np.int64), (0.0,), (1.0,), pad=4, size=64)
    torch.manual_seed(0)
    filled = [int((data[index][0] == 1).sum()) for index in range(64)]
    assert min(filled) >= 16 and max(filled) <= 64 and len(set(filled)) > 5


def test_bench_data_prints_batches_per_second(say: Any) -> None:
    words = "bench data relabel-digits --agent mlp --device cpu --rounds 2 --updates 2 --workers 0"
    said = say(*words.split())
    assert said.status == 0 and "DataLoader, 0 workers" in said.out and "batches of 64" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    said = say("bench", "data", "rl-cartpole", "--agent", "mlp", "--device", "cpu")
    assert said.status == 2 and "rl-cartpole is not a task stream" in said.err


# Interventions ----------------------------------------------------------------------------------------------------


def test_bench_intervene_lists_costs_and_what_does_not_work(say: Any) -> None:
    said = say(*f"bench intervene cl-digits {TINY} --updates 1 --intervention upgd,reset,reset-layernorm".split())
    assert said.status == 0 and max(map(len, said.out.splitlines()[:6])) <= 80
    first = [line.split()[0] for line in said.out.splitlines() if line]
    assert {"upgd", "reset", "reset-layernorm:"} <= set(first)
    said = say(*f"bench intervene cl-digits {TINY} --intervention reset-layernorm".split())
    assert said.status == 2 and "layernorm" in said.err


def test_bench_accepts_roles(say: Any) -> None:
    words = f"bench intervene cl-digits {TINY} --updates 1 --intervention reset".split()
    assert say(*words, "--intervention.roles", "classifier").status == 0
    said = say(*words, "--intervention.roles", "critic")
    assert said.status == 2 and "'critic'" in said.err
    assert say(*words, "--roles", "classifier").status == 0


# RL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env", "agent"), [("rl-cartpole", "dqn-mlp"), ("rl-pendulum", "sac-mlp")])
def test_an_update_of_the_plain_rl_loop_does_the_same_products(env: str, agent: str, tmp_path: Path) -> None:
    options = {"learning_starts": 64, "hidden": (16, 16), "batch_size": 32}
    spec = RunSpec.make(env, agent, env_options={"envs": 4}, agent_options=options, device="cpu")
    trainer = start_rl_trainer(spec, tmp_path, 1)
    plain = plain_rl_loop(trainer)
    for _ in range(20):
        plain.step()
    (batch,) = trainer.buffer.sample()
    module, inputs = trainer.learner.networks["critic"].module, [batch["observation"], batch["action"]]
    # A plain backward pass of the actor's loss also computes the gradients of the critics' weights.
    unused = flops(lambda: module(*inputs)) if agent == "sac-mlp" else 0
    assert flops(lambda: trainer.learner.learn(batch)) == flops(plain.update) - unused > 0
    plain.close()
    trainer.close()


def test_the_plain_rl_loop_updates_as_often_as_the_replay_ratio_says(tmp_path: Path) -> None:
    options = {"learning_starts": 64, "hidden": (8,), "batch_size": 8, "replay_ratio": 0.5}
    spec = RunSpec.make("rl-cartpole", "dqn-mlp", env_options={"envs": 4}, agent_options=options, device="cpu")
    trainer = start_rl_trainer(spec, tmp_path, 1)
    plain = plain_rl_loop(trainer)
    before = trainer.learner.updates
    for _ in range(10):
        trainer.advance()
        plain.advance()
    assert trainer.learner.updates - before == plain.updates == 20
    plain.close()
    trainer.close()


def test_bench_rl_prints_rates(say: Any) -> None:
    words = "bench rl rl-cartpole --agent dqn-mlp --agent.hidden 8 --agent.batch-size 8 --agent.learning-starts 64"
    words += " --env.envs 4 --device cpu --rounds 2 --updates 2 --threads 1 --clock cpu"
    said = say(*words.split())
    assert said.status == 0 and "training, agent steps/s" in said.out and "measured in CPU time" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("env", "agent", "options", "message"),
    [
        ("rl-cartpole", "dqn-mlp", {"n_step": 3}, "no --agent.n-step"),
        ("rl-cartpole", "sac-mlp", {}, "for sac-\\* only"),
        ("cl-digits", "mlp", {}, "not an RL environment"),
    ],
)
def test_what_has_no_plain_rl_loop(env: str, agent: str, options: dict[str, int], message: str, tmp_path: Path) -> None:
    small = {} if agent == "mlp" else {"learning_starts": 64, "hidden": (8,)}
    spec = RunSpec.make(env, agent, agent_options={**small, **options}, device="cpu")
    with pytest.raises(UserError, match=message):
        plain_rl_loop(start_rl_trainer(spec, tmp_path, 1))


# The command ------------------------------------------------------------------------------------------------------


def test_every_part_has_help_and_completions(say: Any) -> None:
    from plastibench.cli.bench import SUMMARIES
    from plastibench.cli.completion import candidates
    from plastibench.cli.main import MODULES

    for part, summary in SUMMARIES.items():
        done = say("bench", part, "--help")
        assert done.status == 0 and done.out.startswith(f"usage: plastibench bench {part}")
        assert summary[1:] in " ".join(say("bench", "--help").out.split())
    assert candidates(["bench", "in"], MODULES) == ["intervene"]
    assert candidates(["bench", "gpu", "--min"], MODULES) == ["--minutes"]
    assert "cl-digits" in candidates(["bench", "train", "cl-di"], MODULES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench trian", "bench: unknown part 'trian'; did you mean 'train'?"),
        ("bench train --loops plane", "unknown loop 'plane'"),
        ("bench train --json cl-digits", "'cl-digits' does not end in .json"),
        ("bench train --json nosuch/x.json", "the folder nosuch does not exist"),
        ("bench train cl-digits --minutes 3", "unknown argument '--minutes'"),
        ("bench gpu --minutes 0", "'0' is not a number of minutes"),
        ("bench gpu --device cpu", "add --rehearse"),
    ],
)
def test_wrong_words_give_one_line(say: Any, words: str, message: str) -> None:
    said = say(*words.split())
    assert said.status == 2 and message in said.err and said.err.count("\n") == 1


@pytest.mark.slow
def test_bench_all_measures_every_part(say: Any, tmp_path: Path) -> None:
    said = say(*f"bench all --device cpu --rounds 2 --json {tmp_path / 'all.json'}".split())
    assert said.status == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert [*found] == ["train", "stack", "intervene", "data", "rl"]
    assert found["stack"]["stack_gain"][1] > 0 and found["rl"]["update_ratio"][1] > 0
