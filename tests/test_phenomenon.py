"""The thing itself: plasticity is lost, and comes back (minutes; `pytest -m slow`)."""

import pytest

from plastibench.config.spec import RunSpec
from plastibench.training.runner import run

pytestmark = pytest.mark.slow


def summary(tmp_path, env, agent, intervention, seed=0):
    spec = RunSpec.make(env, agent, intervention, seed=seed, device="cpu")
    return run(spec, runs_dir=tmp_path, quiet=True).summary


def test_an_mlp_on_random_labels_falls_to_chance_and_interventions_prevent_it(tmp_path):
    accuracy = {
        name: summary(tmp_path, "relabel-digits", "mlp", name).last_three_accuracy for name in ("none", "reset", "rnr")
    }
    assert accuracy["none"] < 0.15  # chance is 0.10
    assert accuracy["reset"] > 0.45
    assert accuracy["rnr"] > 0.60


def test_a_transformer_on_growing_data_ends_below_its_resets(tmp_path):
    seeds = (0, 1, 2)
    final = {
        name: [summary(tmp_path, "cl-digits", "vit-nano", name, seed).final_accuracy for seed in seeds]
        for name in ("none", "reset")
    }
    assert sum(final["reset"]) / 3 > sum(final["none"]) / 3 + 0.02


def test_pixels_that_change_places_and_classes_that_arrive_leave_a_network_below_its_resets(tmp_path):
    for env, lr, gap in (("permuted-digits", 0.01, 0.3), ("incremental-digits", 3e-3, 0.015)):
        found = {}
        for name in ("none", "reset"):
            specs = [RunSpec.make(env, "mlp", name, agent_options={"lr": lr}, seed=s, device="cpu") for s in (0, 1, 2)]
            runs = [run(spec, runs_dir=tmp_path, quiet=True) for spec in specs]
            found[name] = sum(result.summary.last_three_accuracy for result in runs) / 3
        assert found["none"] < found["reset"] - gap, env


def test_a_critic_whose_rewards_change_stops_learning_and_interventions_prevent_it(tmp_path):
    agent = {"learning_starts": 200, "lr": 1e-3, "hidden": (128, 128), "batch_size": 64, "replay_ratio": 0.5}
    agent |= {"epsilon": 0.5, "exploration": 0.0, "buffer_size": 8000, "clip": 0.0}
    found = {}
    for name in ("none", "reset"):
        spec = RunSpec.make(
            "rl-bandit-digits", "dqn-mlp", name, env_options={"tasks": 8}, agent_options=agent, device="cpu"
        )
        curve = run(spec, runs_dir=tmp_path, quiet=True).returns
        ends = {point.task: point.value for point in curve}
        found[name] = [ends[task] for task in sorted(ends)]
    assert found["none"][0] == found["reset"][0] > 0.8
    assert found["none"][-1] < 0.25  # chance is 0.10
    assert found["reset"][-1] > 0.75


@pytest.mark.parametrize(
    ("env", "agent", "steps", "least"),
    [("rl-cartpole", "dqn-mlp", 100_000, 150), ("rl-pendulum", "sac-mlp", 8_000, -300)],
)
def test_off_policy_agents_learn(tmp_path, env, agent, steps, least):
    spec = RunSpec.make(env, agent, env_options={"steps": steps}, device="cpu")
    assert run(spec, runs_dir=tmp_path, quiet=True).final > least
