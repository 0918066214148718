"""Runs in one process end as each of them ends by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plastibench.agents import classifier_stack
from plastibench.agents.classifier import Classifier
from plastibench.agents.classifier_stack import stackable_classifier
from plastibench.agents.mlp import MLP
from plastibench.config import registry
from plastibench.config.errors import RunError, UserError
from plastibench.config.registry import interventions
from plastibench.config.spec import RunSpec
from plastibench.interventions.l2 import L2
from plastibench.results.result import Result
from plastibench.sweeps.stacking import stack_key
from plastibench.training import checkpoint, supervised_stack, trainer_stack
from plastibench.training.opened_run import Interrupted, RunSettings
from plastibench.training.run_together import run_together
from plastibench.training.runner import run
from tests.support.runs import Stopped, assert_same_run, crash_at, go

Make = Callable[..., RunSpec]
# One method of each kind; options make them act within a tiny run.
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "reset": {},
    "rnr": {},
    "redo": {"tau": 1.0},
    "shrink-perturb": {},
    "l2-init": {},
    "upgd-adam": {},
    "continual-backprop": {"rate": 0.1, "maturity": 1},
    "hare-tortoise": {"momentum": 0.5},
    "weight-clipping": {"kappa": 0.5},
    "plasticity-injection": {},
    "crelu": {},
    "l2-init+rnr": {},
}


@pytest.fixture
def small(tiny: Make) -> Make:
    def make(intervention: str = "none", options: Any = None, **run_options: Any) -> RunSpec:
        return tiny(intervention, options, env="relabel-digits", agent="mlp", **run_options)

    return make


def together(specs: list[RunSpec], folder: Path, **options: Any) -> list[Any]:
    return run_together(specs, RunSettings(folder, Path("data"), quiet=True, threads=1, **options))


def assert_as_alone(specs: list[RunSpec], folder: Path, tmp_path: Path) -> None:
    for spec in specs:
        go(spec, tmp_path / "alone")
        assert_same_run(folder / spec.id, tmp_path / "alone" / spec.id)


def test_every_kind_of_method(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = classifier_stack.update_together

    def counted(members: Any, *arguments: Any) -> None:
        sizes.append(len(members))
        original(members, *arguments)

    monkeypatch.setattr(supervised_stack, "update_together", counted)
    specs = [small(name, options) for name, options in METHODS.items()]
    results = together(specs, tmp_path / "together")
    assert all(isinstance(result, Result) for result in results)
    assert max(sizes) >= len(specs) - 3  # all but those with hooks in the forward pass or another architecture
    assert {result.origin.stacked for result in results} == {1, max(sizes)}
    assert_as_alone(specs, tmp_path / "together", tmp_path)


@pytest.mark.slow
def test_every_registered_method(small: Make, tmp_path: Path) -> None:
    names = [name for name in interventions.all() if not name.endswith("*")]
    specs = [small(name, METHODS.get(name, {})) for name in names]
    outcomes = together(specs, tmp_path / "together")
    complete = [spec for spec, outcome in zip(specs, outcomes, strict=True) if isinstance(outcome, Result)]
    assert len(complete) >= len(specs) - 5  # some methods need normalization layers or a vision transformer
    assert_as_alone(complete, tmp_path / "together", tmp_path)


def test_streams_of_different_sizes(small: Make, tmp_path: Path) -> None:
    env_options = [{}, {"train_size": 70}, {"train_size": 65}, {"train_size": 40, "epochs": 3}]  # batches of 6, of 1
    specs = [small("shrink-perturb", seed=seed, env_options=each) for seed, each in enumerate(env_options)]
    together(specs, tmp_path / "together")
    assert_as_alone(specs, tmp_path / "together", tmp_path)


def test_interrupted_and_continued(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [small(name, METHODS[name]) for name in ("none", "rnr", "continual-backprop", "hare-tortoise")]
    stop: list[int] = []
    original, updates = trainer_stack.TrainerStack.learn, [0]

    def stop_once(self: Any, trainers: Any) -> Any:
        updates[0] += 1
        if updates[0] == 3:
            stop.append(15)
        return original(self, trainers)

    monkeypatch.setattr(trainer_stack.TrainerStack, "learn", stop_once)
    outcomes = together(specs, tmp_path / "together", stop=stop)
    assert all(isinstance(outcome, Interrupted) for outcome in outcomes)
    assert go(specs[0], tmp_path / "together")["origin"]["commit"]  # alone, the others together
    stop.clear()
    results = together(specs, tmp_path / "together", stop=stop)
    assert results[0].reused and not results[1].reused and results[1].origin.sessions
    assert_as_alone(specs, tmp_path / "together", tmp_path)


def test_killed_and_continued(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [small(name, METHODS[name]) for name in ("none", "rnr", "l2-init")]
    crash_at(monkeypatch, 4, trainer_stack.TrainerStack, "learn")
    with pytest.raises(Stopped):
        together(specs, tmp_path / "together", checkpoint_seconds=0)
    assert all((tmp_path / "together" / spec.id / checkpoint.LATEST).exists() for spec in specs)
    together(specs, tmp_path / "together")
    assert_as_alone(specs, tmp_path / "together", tmp_path)


def test_a_run_that_fails_does_not_affect_the_others(small: Make, tmp_path: Path) -> None:
    specs = [small(), small(agent_options={"lr": 1e30}), small("rnr")]
    outcomes = together(specs, tmp_path / "together")
    assert isinstance(outcomes[1], RunError) and "try a smaller --agent.lr" in str(outcomes[1])
    assert "try a smaller" in (tmp_path / "together" / specs[1].id / "failure.txt").read_text()
    assert_as_alone([specs[0], specs[2]], tmp_path / "together", tmp_path)


def test_an_error_inside_an_update(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, network: Any, batch: Any) -> Any:
        raise KeyError("lost")

    specs = [small(), small("l2-init"), small("rnr")]
    with monkeypatch.context() as patch:
        patch.setattr(L2, "penalty", broken)
        outcomes = together(specs, tmp_path / "together")
    assert isinstance(outcomes[1], RunError | UserError) and "lost" in str(outcomes[1])
    assert (tmp_path / "together" / specs[1].id / "failure.txt").exists()
    assert all(isinstance(outcomes[number], Result) for number in (0, 2))
    assert_as_alone([specs[0], specs[2]], tmp_path / "together", tmp_path)


class OwnClassifier(Classifier):
    """A classifier whose update is its own."""


def test_other_agents_and_hooks_on_a_chain_are_not_stacked(small: Make) -> None:
    spec = small()
    env = spec.create("env").make()
    agent = Classifier(spec.create("agent"), env, 0, torch.device("cpu"))
    found = stackable_classifier(agent)
    assert found is not None and found.is_current()
    agent.networks["classifier"].module.register_forward_hook(lambda *_: None)
    assert not found.is_current() and stackable_classifier(agent) is None
    assert stackable_classifier(OwnClassifier(spec.create("agent"), env, 0, torch.device("cpu"))) is None


def test_networks_that_cannot_be_stacked_run_alone(tiny: Make, tmp_path: Path) -> None:
    """Dropout masks come from one generator of the process, so such runs must not take turns."""
    options = {"dropout": 0.2, "dim": 16, "depth": 1}
    specs = [tiny(env="relabel-digits", agent="vit-nano", agent_options=options, seed=seed) for seed in range(2)]
    results = together(specs, tmp_path / "together")
    assert all(result.origin.stacked == 1 for result in results)
    assert_as_alone(specs, tmp_path / "together", tmp_path)


def test_an_agent_derived_from_one_that_can_be_stacked(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may build another network: here one with dropout, whose masks come from the generator of the process."""
    monkeypatch.setattr(registry.agents, "_entries", dict(registry.agents.all()))

    @registry.register_agent("mlp-dropout-test", "for a test")
    @dataclass(frozen=True)
    class WithDropout(MLP):
        def module(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            built: Any = super().module(shape, classes)
            return nn.Sequential(*built[:-1], nn.Dropout(0.5), built[-1])

    specs = [tiny(env="relabel-digits", agent="mlp-dropout-test", seed=seed) for seed in range(2)]
    together(specs, tmp_path / "together")
    assert_as_alone(specs, tmp_path / "together", tmp_path)
    assert [stack_key(spec) for spec in specs] == [None, None]


def test_invalid_and_complete_runs(small: Make, tmp_path: Path) -> None:
    complete = small()
    first = run(complete, runs_dir=tmp_path, quiet=True)
    invalid = small("reset", every=10**6)
    outcomes = together([complete, invalid, small("rnr")], tmp_path)
    assert outcomes[0].reused and outcomes[0].id == first.id
    assert isinstance(outcomes[1], Exception) and "every" in str(outcomes[1])
    assert isinstance(outcomes[2], Result) and outcomes[2].origin.stacked == 1
