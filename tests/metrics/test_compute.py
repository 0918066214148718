"""Metrics on request: no side effects, documented names, and selection by name."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.metrics import (
    GROUPS,
    MEASUREMENTS,
    METRICS,
    PERFORMANCE,
    PLASTICITY,
    REQUESTED,
    RETURNS,
    Measurement,
    _current,
    curvature,
    probes,
    select,
)
from plastibench.metrics.compute import compute_metrics
from plastibench.metrics.metric_inputs import MetricInputs
from tests.support.networks import agent_builder, changed, images, network_of, small_resnet, small_vit, state, train

BUILDERS = {"vit": small_vit(), "mlp": agent_builder("mlp", width=16), "resnet": small_resnet}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature.hutchinson, "__defaults__", (2,))
    monkeypatch.setattr(curvature.lanczos, "__defaults__", (2,))
    monkeypatch.setattr(probes.plasticity_probe, "__defaults__", (2,))
    monkeypatch.setattr(probes.next_task_probe, "__defaults__", (2,))
    monkeypatch.setattr(probes, "TARGETS", 1)


@pytest.mark.sample(6)
@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("group", GROUPS)
def test_metrics_have_no_side_effects_and_documented_names(group: str, builder: str) -> None:
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


def test_only_requested_metrics_are_computed() -> None:
    network = network_of(small_vit())
    found = compute_metrics(network, images(8), ["fau", "stable-rank"], torch.Generator())
    assert set(found.overall) == {"fau", "stable-rank"}
    assert {name for values in found.layers.values() for name in values} == {"fau"}


def test_select_expands_groups_without_duplicates() -> None:
    assert select(["ranks", "stable-rank", "fau", "dormant-ratio"]) == (*GROUPS["ranks"], "fau")
    assert select(["all"]) == tuple(REQUESTED)
    with pytest.raises(UserError, match=r"metric 'rank'; did you mean 'ranks'\?"):
        select(["rank"])


def test_no_metric_is_defined_twice() -> None:
    parts = (PERFORMANCE, RETURNS, PLASTICITY, *(each.definitions for each in MEASUREMENTS))
    assert sum(map(len, parts)) == len(METRICS)


@pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda measurement: measurement.function)
def test_a_measurement_returns_the_metrics_that_it_declares(measurement: Measurement) -> None:
    module, _, function = measurement.function.partition(".")
    compute = getattr(importlib.import_module(f"plastibench.metrics.{module}"), function)
    network = train(network_of(small_vit(), lr=1e-2), images(24))
    initial = {name: p + 0.1 for name, p in network.module.state_dict().items()}
    found = compute(MetricInputs.of(network, images(24), initial=initial))
    assert set(found.overall) == set(measurement.definitions)
    assert {name for values in found.layers.values() for name in values} <= set(measurement.definitions)


def test_old_metric_names_work_with_one_deprecation_line(capsys: pytest.CaptureFixture[str]) -> None:
    _current.cache_clear()
    for _ in range(2):
        assert select(["layer-rank-share", "plasticity-probe-redrawn-gap"]) == (
            "layer-rank-fraction",
            "plasticity-probe-fresh-gap",
        )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "'layer-rank-share' is deprecated; use 'layer-rank-fraction'" in lines[0]


def test_importing_the_definitions_does_not_import_torch() -> None:
    code = "import sys, plastibench.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_specs_without_metrics_keep_their_id() -> None:
    usual = RunSpec.make("cl-digits", "mlp")
    assert "metrics" not in usual.to_toml()
    more = RunSpec.make("cl-digits", "mlp", metrics="weights,fau")
    assert more.run.metrics == ("weights", "fau") and more.id != usual.id
    assert RunSpec.from_toml(more.to_toml()) == more
    with pytest.raises(UserError, match="metric 'wieghts'"):
        RunSpec.make("cl-digits", "mlp", metrics="wieghts")
