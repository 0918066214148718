"""Metrics on request: what they leave alone, and that their names are the documented ones."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.metrics import GROUPS, METRICS, PLASTICITY, curvature, probes, select
from plastibench.metrics.compute import compute_metrics
from tests.helpers import agent_builder, changed, images, network_of, small_resnet, small_vit, state, train

BUILDERS = {"vit": small_vit(), "mlp": agent_builder("mlp", width=16), "resnet": small_resnet}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "STEPS", 2)
    monkeypatch.setattr(curvature.hessian_trace, "__defaults__", (2,))
    monkeypatch.setattr(curvature.top_eigenvalue, "__defaults__", (2,))
    monkeypatch.setattr(probes.plasticity_probe, "__defaults__", (2,))
    monkeypatch.setattr(probes.next_task_probe, "__defaults__", (2,))
    monkeypatch.setattr(probes, "TARGETS", 1)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_look_changes_nothing_and_finds_what_is_documented(group: str, builder: str) -> None:
    batch = images(24)
    network = train(network_of(BUILDERS[builder], lr=1e-2), batch)
    module = network.module
    for index, child in enumerate(module.modules()):
        child.training = index % 3 > 0
    for index, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if index % 4 else None
        parameter.requires_grad_(index != 2)
    before, samples = state(module), batch.clone()
    modes, gradients = [c.training for c in module.modules()], [p.grad for p in module.parameters()]
    needed = [p.requires_grad for p in module.parameters()]
    hooks = [len(c._forward_hooks) + len(c._forward_pre_hooks) for c in module.modules()]
    moments = [v.clone() for s in network.optimizer.state.values() for v in s.values()]
    attributes = {child: set(child.__dict__) for child in module.modules()}
    randomness = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    own = network.generator.get_state()
    fused, tf32 = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.matmul.allow_tf32

    names = select([group])
    initial = {name: p + 0.1 for name, p in module.state_dict().items()}
    found = compute_metrics(network, batch, names, torch.Generator().manual_seed(3), initial)

    assert set(found.overall) <= set(names) == set(GROUPS[group])
    assert {name for values in found.layers.values() for name in values} <= set(names)
    missing = set(names) - set(found.overall)
    absent = {
        "vit": set(),
        "mlp": {"attention-entropy", "collapsed-head-ratio", *(n for n in names if n.startswith("layernorm"))},
    }
    assert missing == absent["vit" if builder == "vit" else "mlp"] & set(names)
    assert all(np.isfinite(value) for value in found.overall.values())

    assert not changed(before, module)
    assert bool((batch == samples).all())
    assert [c.training for c in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == needed
    assert all(p.grad is g and (g is None or bool((g == 0.5).all())) for p, g in zip(module.parameters(), gradients))  # noqa: B905
    assert [len(c._forward_hooks) + len(c._forward_pre_hooks) for c in module.modules()] == hooks
    now = [v for s in network.optimizer.state.values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(now, moments, strict=True))
    assert {child: set(child.__dict__) for child in module.modules()} == attributes
    assert torch.equal(torch.get_rng_state(), randomness[0]) and random.getstate() == randomness[2]
    assert np.random.get_state()[1].tolist() == randomness[1]  # noqa: NPY002
    assert torch.equal(network.generator.get_state(), own)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.matmul.allow_tf32) == (fused, tf32)
    again = compute_metrics(network, batch, names, torch.Generator().manual_seed(3), initial)
    assert again.overall == found.overall


def test_only_what_is_asked_for_is_measured() -> None:
    network = network_of(small_vit())
    found = compute_metrics(network, images(8), ["fau", "stable-rank"], torch.Generator())
    assert set(found.overall) == {"fau", "stable-rank"}
    assert {name for values in found.layers.values() for name in values} == {"fau"}


def test_groups_and_names_stand_for_metrics_once() -> None:
    assert select(["ranks", "stable-rank", "fau", "dormant-ratio"]) == (*GROUPS["ranks"], "fau")
    assert set(select(["all"])) == set(METRICS) - set(PLASTICITY) - set(select([])) - (
        set(METRICS) - {name for group in GROUPS.values() for name in group}
    )
    assert sum(map(len, GROUPS.values())) == len(select(["all"]))  # no name stands in two groups
    with pytest.raises(UserError, match=r"no metrics 'rank'; did you mean 'ranks'\?"):
        select(["rank"])


def test_the_identity_of_specs_without_metrics_stays() -> None:
    usual = RunSpec.make("cl-digits", "mlp")
    assert "metrics" not in usual.to_toml()
    more = RunSpec.make("cl-digits", "mlp", metrics="weights,fau")
    assert more.run.metrics == ("weights", "fau") and more.id != usual.id
    assert RunSpec.from_toml(more.to_toml()) == more
    with pytest.raises(UserError, match="no metrics 'wieghts'"):
        RunSpec.make("cl-digits", "mlp", metrics="wieghts")
