from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.config.spec import RunSpec
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.interventions.combined import Combined
from plastibench.interventions.wrapper import Wrapper
from plastibench.nn.network import Network
from tests.support.networks import agent_builder, images, network_of, state
from tests.support.references import array

MLP = agent_builder("mlp", width=8)


def combined(name: str, **options: object) -> Combined:
    return build(interventions[name].load(), options, name)


def test_parts_act_in_the_order_of_their_names():
    batch, outcomes = images(), {}
    for name in ("shrink-perturb+reset-head", "reset-head+shrink-perturb"):
        network = network_of(MLP)
        before = state(network.module)
        report = combined(name, **{"shrink-perturb.keep": 0.5, "shrink-perturb.noise": 0.0}).intervene(network, batch)
        outcomes[name] = state(network.module)
        np.testing.assert_allclose(array(network.module[1].weight), 0.5 * array(before["1.weight"]), rtol=1e-6)
        assert (
            report.parameters
            == sum(p.numel() for p in network.module.parameters()) + network.module[5].weight.numel() + 10
        )
        assert list(report.units) == ["5"]
    last_drawn, last_shrunk = (array(outcome["5.weight"]) for outcome in outcomes.values())
    assert last_drawn.std() == pytest.approx(2 * last_shrunk.std(), rel=0.3)


def test_options_are_prefixed_and_keep_the_defaults_of_each_name():
    method = combined("redo+shrink-perturb-keep20", **{"redo.tau": "0.3"})
    redo, shrink = method.parts.values()
    assert (redo.criterion, redo.tau, redo.outgoing) == ("redo", 0.3, "zero")
    assert (shrink.keep, shrink.noise, shrink.source) == (0.2, 0.8, "initial")
    with pytest.raises(UserError, match=r"no option 'redo.tua'; did you mean 'redo.tau'"):
        combined("redo+reset", **{"redo.tua": 1})
    with pytest.raises(UserError, match="unknown intervention 'rest'; did you mean 'reset'"):
        interventions["redo+rest"]
    with pytest.raises(UserError, match="twice"):
        interventions["redo+redo"]


def test_spec_with_a_combination_survives_toml():
    spec = RunSpec.make("cl-digits", "mlp", "redo+reset-head", intervention_options={"redo.tau": 0.25})
    again = RunSpec.from_toml(spec.to_toml())
    assert again == spec
    assert again.id == spec.id
    assert spec.changed("intervention") == {"redo__tau": 0.25}
    assert spec.create("intervention").parts["redo"].tau == 0.25


class Penalised(Intervention):
    def __init__(self, weight: float, slow: nn.Module | None = None) -> None:
        self.weight, self.slow, self.seen = weight, slow, []

    def penalty(self, network, batch):
        return self.weight * sum(p.square().sum() for p in network.module.parameters()) if self.weight else None

    def before_update(self, network):
        self.seen.append("before")

    def after_update(self, network):
        self.seen.append("after")

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]


class Slow(Penalised):
    def evaluated(self, network):
        return self.slow


def of(**parts: Intervention) -> Combined:
    method = Combined()
    method.parts = parts
    return method


def test_penalties_are_summed_and_every_hook_is_forwarded():
    network, batch, slow = network_of(MLP), images(), nn.Identity()
    method = of(a=Penalised(1.0), none=Penalised(0.0), b=Slow(2.0, slow), c=Penalised(0.0))
    whole = sum(float(p.detach().square().sum()) for p in network.module.parameters())
    assert method.penalty(network, batch).item() == pytest.approx(3 * whole, rel=1e-5)
    assert of(none=Penalised(0.0)).penalty(network, batch) is None
    method.before_update(network)
    method.after_update(network)
    assert all(part.seen == ["before", "after"] for part in method.parts.values())
    assert method.evaluated(network) is slow
    assert of(a=Penalised(1.0)).evaluated(network) is network.module
    saved = method.state_dict()
    method.parts["b"].weight = 9.0
    method.load_state_dict(saved)
    assert method.parts["b"].weight == 2.0


def test_reports_are_merged():
    first = Report(units={"a": torch.tensor([True, False])}, parameters=3)
    first.note("a", revived=1.0)
    second = Report(units={"a": torch.tensor([False, True]), "b": torch.tensor([False])}, parameters=4)
    second.note("a", residual=0.5)
    first.add(second)
    assert first.units["a"].tolist() == [True, True]
    assert first.units["b"].tolist() == [False]
    assert (first.parameters, first.modules) == (7, {"a": {"revived": 1.0, "residual": 0.5}})


def test_what_forwards_a_hook_has_it_where_its_parts_do() -> None:
    @dataclass
    class Outer(Wrapper):
        def after_update(self, network: Network) -> None:
            """Override the hook."""

    def has(method: Intervention, *hooks: str) -> bool:
        every = {"penalty", "before_update", "after_update", "evaluated"}
        return {hook for hook in every if overrides(method, hook)} == set(hooks)

    assert has(Intervention()) and has(Outer("redo"), "after_update")
    assert has(Outer("continual-backprop"), "penalty", "after_update")
    for name, hooks in {
        "redo+rnr": [],
        "redo+upgd": ["before_update", "after_update"],
        "recouple": [],
        "redo+continual-backprop": ["penalty", "after_update"],
    }.items():
        assert has(build(interventions[name].load(), {}, name), *hooks), name
