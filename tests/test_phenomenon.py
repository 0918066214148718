"""The thing itself: plasticity is lost, and comes back (minutes; `pytest -m slow`)."""

import pytest

from plastibench.runner import run
from plastibench.spec import RunSpec

pytestmark = pytest.mark.slow


def summary(tmp_path, env, agent, intervention, seed=0):
    spec = RunSpec.make(env, agent, intervention, seed=seed, device="cpu")
    return run(spec, runs_dir=tmp_path, quiet=True)["summary"]


def test_an_mlp_on_random_labels_falls_to_chance_and_interventions_prevent_it(tmp_path):
    accuracy = {
        name: summary(tmp_path, "relabel-digits", "mlp", name)["last-three-accuracy"]
        for name in ("none", "reset", "rnr")
    }
    assert accuracy["none"] < 0.15  # chance is 0.10
    assert accuracy["reset"] > 0.45
    assert accuracy["rnr"] > 0.60


def test_a_transformer_on_growing_data_ends_below_its_resets(tmp_path):
    seeds = (0, 1, 2)
    final = {
        name: [summary(tmp_path, "cl-digits", "vit-nano", name, seed)["final-accuracy"] for seed in seeds]
        for name in ("none", "reset")
    }
    assert sum(final["reset"]) / 3 > sum(final["none"]) / 3 + 0.02
