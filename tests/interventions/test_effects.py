from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import plastibench as pb
from plastibench.interventions.attach import Attached, create
from plastibench.interventions.effects import Effects
from plastibench.nn.network import Network


def attached(method: pb.Intervention) -> Attached:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    network = Network(module, torch.optim.Adam(module.parameters()), lambda m, b: m(b["x"]).square().mean())
    handle = Attached(method, network)
    handle.effects = Effects(method)
    return handle


def own(hook: str, body: Callable[..., object]) -> pb.Intervention:
    return type("Own", (pb.Intervention,), {hook: body, "__module__": "shrink"})()


def shrink(self, network, *batch):
    with torch.no_grad():
        next(network.module.parameters()).mul_(0.5)
    return pb.Report()


def reset_moments(self, network, *batch):
    network.optimizer.state.clear()
    return pb.Report()


def nothing(self, network, *batch):
    return pb.Report()


def scale_gradients(self, network):
    for parameter in network.module.parameters():
        parameter.grad.mul_(2)


@pytest.mark.parametrize(
    ("hook", "body", "complaint"),
    [
        ("intervene", nothing, "2 interventions changed nothing in the net: the run equals none"),
        ("intervene", shrink, ""),
        ("intervene", reset_moments, ""),
        ("after_update", nothing, "3 calls of after_update changed nothing in the net: the run equals none"),
        ("after_update", shrink, ""),
        ("before_update", nothing, "3 calls of before_update changed nothing in the net: the run equals none"),
        ("before_update", scale_gradients, ""),
        ("penalty", lambda *_: None, "3 calls of penalty changed nothing in the net: the run equals none"),
        ("penalty", lambda self, network, batch: next(network.module.parameters()).sum(), ""),
    ],
)
def test_a_method_without_effect_is_noticed(hook: str, body: Callable[..., object], complaint: str) -> None:
    handle = attached(own(hook, body))
    batch = {"x": torch.ones(4, 2)}
    for _ in range(3):
        handle.network.update(handle.network.loss(handle.network.module, batch), batch)
    for _ in range(2):
        handle.intervene(batch)
    assert handle.effects is not None and handle.effects.complaint("net") == complaint


def test_a_method_that_was_never_called_is_noticed() -> None:
    handle = attached(own("intervene", shrink))
    assert handle.effects is not None
    assert handle.effects.complaint("net") == "never acted on the net: the run equals none"
    assert attached(create("none")).effects.complaint("net") == ""  # type: ignore[union-attr]


def test_methods_that_act_during_updates_are_not_suspected_for_an_idle_intervene() -> None:
    handle = attached(create("weight-clipping"))  # its `intervene` only reports
    handle.intervene({"x": torch.ones(4, 2)})
    assert handle.effects is not None and handle.effects.complaint("net") == ""


def test_what_was_seen_survives_a_resume() -> None:
    first, second = attached(own("intervene", shrink)), attached(own("intervene", nothing))
    first.intervene({"x": torch.ones(4, 2)})
    assert first.effects is not None and second.effects is not None
    second.effects.load_state_dict(first.effects.state_dict())
    second.intervene({"x": torch.ones(4, 2)})
    assert second.effects.calls == {"intervene": 2} and second.effects.complaint("net") == ""
