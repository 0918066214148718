"""Two processes that train one network do what one process does, and only the first writes files."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plastibench.config.spec import RunSpec
from plastibench.training.assembly import build_agent, check_options, make_trainer
from tests.support.processes import together

METHODS: dict[str, dict[str, Any]] = {  # options with which methods act within a few updates
    "none": {},
    "shrink-perturb": {},
    "redo": {"tau": 0.5},
    "rnr": {},
    "continual-backprop": {"rate": 0.1, "maturity": 2},
    "upgd": {},
    "l2-init": {"strength": 0.1},
    "hare-tortoise": {"momentum": 0.5},
    "spectral-decoupling": {"strength": 0.1},
    "self-normalized-resets": {"longest": 2, "retune": 3},
    "plasticity-injection": {},
}
# Of 27 images, the last batch of each epoch has a single one, which is fewer than there are processes.
SPEC = {"env_options": {"epochs": 2, "train_size": 27, "tasks": 2}, "agent_options": {"batch_size": 13, "width": 8}}


def spec_of(name: str, agent: str = "mlp", **options: Any) -> RunSpec:
    merged = {**SPEC, **options}
    return RunSpec.make("relabel-digits", agent, name, intervention_options=METHODS[name], device="cpu", **merged)


def train(spec: RunSpec) -> dict[str, Any]:
    """Train to the end; return everything that must not depend on the number of processes."""
    env = spec.create("env").make("data")
    agent = build_agent(spec, env)
    check_options(spec, env, agent)
    trainer = make_trainer(spec, env, agent)
    masks: list[dict[str, torch.Tensor]] = []
    intervene = trainer.intervene

    def intervene_and_note() -> Any:
        reports = intervene()
        masks.append(reports["classifier"].units)
        return reports

    trainer.intervene = intervene_and_note  # type: ignore[method-assign]
    trainer.begin()
    losses = []
    while not trainer.finished:
        trainer.advance()
        losses.append(agent.pop_averages().get("loss"))
    attached = trainer.learner.attached["classifier"]
    return {
        "weights": dict(attached.network.module.state_dict()),
        "evaluated": dict(attached.evaluated.state_dict()),
        "state": attached.intervention.state_dict(),
        "masks": masks,
        "losses": losses,
        "curve": [record.curve for record in trainer.records],
    }


def train_all() -> dict[str, Any]:
    return {name: train(spec_of(name)) for name in METHODS}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All methods in one process, and in two."""
    return train_all(), together(train_all, folder=tmp_path_factory.mktemp("both"))


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(name: str, both: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, (first, second) = both[0][name], (found[name] for found in both[1])
    assert_equal(first, second, exactly=True)
    assert_equal(alone, first, exactly=False)


def assert_equal(one: Any, other: Any, *, exactly: bool) -> None:
    """Compare nested values: floats within rounding unless ``exactly``, and everything else exactly."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], exactly=exactly)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b, exactly=exactly)
    elif isinstance(one, torch.Tensor) and one.is_floating_point() and not exactly:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, float) and not exactly:
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    else:
        assert one == other


def test_methods_act_in_these_runs(both: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    alone, _ = both
    for name in METHODS.keys() - {"none"}:
        assert any(
            not torch.equal(value, alone["none"]["weights"][key])
            for key, value in alone[name]["weights"].items()
            if key in alone["none"]["weights"]
        ), name
    for name in ("redo", "rnr"):
        assert any(bool(mask.any()) for masks in alone[name]["masks"] for mask in masks.values())
