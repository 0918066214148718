"""Interventions do not disturb training: random state, modes, gradients and optimizer are kept."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.nn.network import Network, as_batch
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)

BUILDERS = {"vit": agent_builder("vit-nano"), "mlp": agent_builder("mlp"), "resnet": small_resnet}
OPTIONS = {  # thresholds that select some units of an almost untrained network
    "redo": {"tau": 1.0},
    "regrama-post": {"tau": 1.0},
    "regrama-weight": {"tau": 1.0},
    "recouple": {"inner_options": ("tau=1",)},
}
ACT_AT_UPDATES_ONLY = {"none", "l2", "l2-decoupled", "l2-init", "l2-init-decoupled", "l2-init-norm", "wasserstein",
                       "weight-clipping", "parseval", "spectral-decoupling", "self-distillation", "soft-shrink-perturb",
                       "shrink-perturb-noise", "noisy-updates", "ema", "continual-backprop",
                       "continual-backprop-adaptable", "self-normalized-resets", "upgd", "upgd-adam",
                       "neuroplastic-expansion", "selective-weight-reinit",
                       "selective-weight-reinit-magnitude"}  # fmt: skip
SELECTS_NOTHING = {("reset-mlp", "resnet"), ("reset-layernorm", "mlp"), ("reset-layernorm", "resnet"),
                   ("reset-mlp-qkv", "resnet"), ("rnr-mlp", "resnet"), ("rnr-attention", "mlp"),
                   ("rnr-attention", "resnet"),
                   ("rnr-layernorm", "mlp"), ("rnr-layernorm", "resnet")}  # fmt: skip
# These change the architecture before training; `intervene` does nothing.
ARCHITECTURAL = {"crelu", "deep-fourier", "layernorm", "layernorm-affine-free", "normalize-and-project"}
NOTHING_TO_CHANGE = {("layernorm", "resnet"), ("layernorm-affine-free", "mlp"), ("layernorm-affine-free", "resnet")}
REBUILD = {"plasticity-injection"}  # `intervene` replaces parameters
IDLE = {*ACT_AT_UPDATES_ONLY, *ARCHITECTURAL}


def registered(name: str) -> Intervention:
    entry = interventions[name]
    return build(entry.load(), {**entry.defaults, **OPTIONS.get(name, {})}, name)


def trained(name: str) -> tuple[Network, object]:
    batch = images(16)
    return train(network_of(BUILDERS[name], lr=1e-2), batch), batch


def random_states() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.mark.sample(16)
@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", [name for name in interventions.all() if name not in REBUILD])
def test_intervention_changes_only_weights(name, builder):
    network, batch = trained(builder)
    module, method = network.module, registered(name)
    if (name, builder) in NOTHING_TO_CHANGE:
        was = state(module)
        with pytest.raises(UserError):
            method.prepare(network)
        assert not changed(was, module)
        return
    method.prepare(network)
    train(network, batch, 1, method)
    for index, child in enumerate(module.modules()):
        child.training = index % 3 > 0
    for index, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if index % 4 else None
    modes, needed = [c.training for c in module.modules()], [p.requires_grad for p in module.parameters()]
    gradients = [p.grad for p in module.parameters()]
    identities = [(id(p), p.data_ptr(), p.dtype) for p in module.parameters()]
    buffers = [(id(b), b.data_ptr()) for b in module.buffers()]
    attributes = {child: set(child.__dict__) for child in module.modules()}
    before, samples, randomness = state(module), batch.clone(), random_states()

    if (name, builder) in SELECTS_NOTHING:
        with pytest.raises(UserError):
            method.intervene(network, batch)
        assert not changed(before, module)
    else:
        report = method.intervene(network, batch)
        assert isinstance(report, Report)
        assert bool(changed(before, module)) == (name not in IDLE)
        assert (report.parameters > 0) == (name not in IDLE)

    assert random_states() == randomness
    assert network.module is module
    assert [(id(p), p.data_ptr(), p.dtype) for p in module.parameters()] == identities
    assert [(id(b), b.data_ptr()) for b in module.buffers()] == buffers
    assert [c.training for c in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()] == needed
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or bool((gradient == 0.5).all())
    assert {child: set(child.__dict__) for child in module.modules()} == attributes
    watched = name.startswith(("continual-backprop", "self-normalized"))  # these monitor every training forward pass
    assert watched or not any(c._forward_hooks or c._forward_pre_hooks or c._backward_hooks for c in module.modules())
    assert all(bool((batch[key] == samples[key]).all()) for key in ("image", "label"))
    assert torch.is_grad_enabled()
    assert all(torch.isfinite(p).all() for p in module.parameters())

    train(network, batch, 2)  # the optimizer still owns the trained parameters
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert {name for name, _ in module.named_parameters()} <= changed(before, module)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", sorted(ARCHITECTURAL | REBUILD))
def test_rebuild_replaces_activations_and_keeps_everything_else(name, builder):
    network, batch = trained(builder)
    module, method = network.module, registered(name)
    if (name, builder) in NOTHING_TO_CHANGE:
        return
    for index, child in enumerate(module.modules()):
        child.training = index % 3 > 0
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    kinds, modes = {n: type(c) for n, c in module.named_modules()}, {n: c.training for n, c in module.named_modules()}
    old = {id(p): (p, p.data_ptr(), p.detach().clone()) for p in module.parameters()}
    was, samples, randomness = str(module), batch.clone(), random_states()
    method.prepare(network)
    method.intervene(network, batch)

    assert random_states() == randomness
    assert network.module is module
    assert all(bool((batch[key] == samples[key]).all()) for key in ("image", "label"))
    for prefix, child in module.named_modules():
        if kinds.get(prefix) is type(child):
            assert child.training == modes[prefix], prefix
    for parameter in module.parameters():
        if id(parameter) in old:
            _, pointer, value = old[id(parameter)]
            assert parameter.data_ptr() == pointer and torch.equal(parameter, value)
            assert (parameter.grad is None) == (not parameter.requires_grad)
    owned = [id(p) for group in network.optimizer.param_groups for p in group["params"]]
    assert owned == [id(p) for p in module.parameters() if p.requires_grad]
    assert {id(p) for p in network.optimizer.state} <= set(owned) & set(old)
    assert not any(c._forward_hooks or c._forward_pre_hooks or c._backward_hooks for c in module.modules())

    fresh = network.fresh()
    assert random_states() == randomness
    assert {n: t.shape for n, t in state(fresh).items()} == {n: t.shape for n, t in state(module).items()}
    now = state(module)
    train(network, batch, 2)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    learned = {n for n, p in module.named_parameters() if p.requires_grad}
    assert learned <= changed(now, module)
    assert not changed(now, module) & {n for n, p in module.named_parameters() if not p.requires_grad}
    if (name, builder) != ("normalize-and-project", "resnet"):  # fully normalized
        assert str(module) != was


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", [name for name in interventions.all() if name != "none"])
def test_intervention_depends_on_the_network_generator_only(name):
    outcomes = []
    for attempt in range(2):
        network, batch = trained("vit")
        method = registered(name)
        method.prepare(network)
        train(network, batch, 1, method)
        torch.manual_seed(attempt)
        method.intervene(network, batch)
        outcomes.append(state(network.module))
    assert all(torch.equal(outcomes[0][key], outcomes[1][key]) for key in outcomes[0])


@pytest.mark.sample(8)
@pytest.mark.parametrize("name", interventions.all())
def test_resume_is_bit_identical(name, tmp_path):
    network, batch = network_of(small_vit(), lr=1e-2), images(16)
    method = registered(name)
    method.prepare(network)
    train(network, batch)
    method.intervene(network, batch)
    train(network, batch, 1)
    saved = {
        "method": method.state_dict(),
        "module": network.module.state_dict(),
        "optimizer": network.optimizer.state_dict(),
        "generator": network.generator.get_state(),
    }
    torch.save(saved, tmp_path / "state.pt")
    method.intervene(network, batch)
    train(network, batch, 1)

    again = network_of(small_vit(), lr=1e-2)
    resumed = registered(name)
    resumed.prepare(again)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(saved["method"])
    again.module.load_state_dict(saved["module"])
    again.optimizer.load_state_dict(saved["optimizer"])
    again.generator.set_state(saved["generator"])
    resumed.intervene(again, batch)
    train(again, batch, 1)
    assert not changed(state(network.module), again.module)


# --- fresh networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_builder", [True, False])
def test_fresh_network_is_a_new_copy_and_keeps_random_state(with_builder):
    network = network_of(BUILDERS["mlp"], fresh=with_builder)
    before, randomness = state(network.module), random_states()
    first, second = network.fresh(), network.fresh()
    assert random_states() == randomness
    assert changed(before, first) == changed(before, second) == changed(state(first), second) == set(before)
    assert not changed(before, network.module)
    bound = 1 / 8
    assert float(first[1].weight.detach().abs().max()) <= bound
    assert float(first[1].weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_what_cannot_be_redrawn_without_a_builder_is_named():
    module = BUILDERS["vit"]()
    module.extra = nn.PReLU()
    assert set(Network(module, None, loss).not_reinitializable()) >= {"cls_token", "pos_embed"}
    assert Network(module, None, loss, fresh=BUILDERS["vit"]).not_reinitializable() == []
    assert Network(BUILDERS["mlp"](), None, loss).not_reinitializable() == []


@pytest.mark.parametrize(
    "batch", [images(12), dict(images(12).items()), images(12).reshape(3, 4)], ids=["flat", "dictionary", "nested"]
)
def test_batches_count_samples_along_their_first_dimension(batch):
    flat = as_batch(batch)
    assert flat.batch_size == torch.Size([12])
    assert torch.equal(flat["image"], images(12)["image"])


def test_overrides_detects_hooks_that_no_part_defines():
    class Penalised(Intervention):
        def penalty(self, network, batch):
            return None

    assert overrides(Penalised(), "penalty")
    assert not overrides(Penalised(), "after_update")
