from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.networks import add_noise, agent_builder, images, method, network_of, small_resnet, small_vit, state
from tests.support.references import array
from tests.support.rl import make_agent

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def clipped_by_hand(module: nn.Module, before: dict, bounds: dict[str, float]) -> dict[str, np.ndarray]:
    return {
        key: np.clip(array(before[key]), -bounds[key], bounds[key]) if key in bounds else array(before[key])
        for key, _ in module.named_parameters()
    }


def bounds_of(module: nn.Module, kappa: float, largest: dict | None = None) -> dict[str, float]:
    """Compute bounds from shapes, 1/√(columns of the flattened weight), or from the largest initial magnitude."""
    found = {}
    for key, parameter in module.named_parameters():
        prefix, _, kind = key.rpartition(".")
        if kind == "weight" and parameter.ndim > 1:
            fan_in = np.prod(parameter.shape[1:])
            both = [abs(array(value)).max() for name, value in (largest or {}).items() if name.startswith(f"{prefix}.")]
            for name, _ in module.get_submodule(prefix).named_parameters():
                found[f"{prefix}.{name}"] = kappa * (max(both) if largest else fan_in**-0.5)
    return found


@pytest.mark.parametrize("bound", ["fan-in", "initial"])
@each_network
def test_weights_are_clamped_to_their_modules_bound_and_nothing_else_is(builder, bound):
    network = network_of(builder)
    initial = state(network.module)
    acting = method("weight-clipping", kappa=1.5, bound=bound)
    acting.prepare(network)
    add_noise(network.module, size=1.0)
    before = state(network.module)
    acting.after_update(network)
    bounds = bounds_of(network.module, 1.5, initial if bound == "initial" else None)
    assert len(bounds) > 3
    for key, expected in clipped_by_hand(network.module, before, bounds).items():
        np.testing.assert_allclose(array(network.module.get_parameter(key)), expected, rtol=1e-6, err_msg=key)
    spared = [key for key, _ in network.module.named_parameters() if key not in bounds]
    for key in spared:  # LayerNorm, BatchNorm, class token, position embedding
        assert torch.equal(network.module.get_parameter(key), before[key])
    if builder is NETWORKS["vit"]:
        assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.norm1.bias"} <= set(spared)


def test_default_initialization_is_within_its_bound():
    network = network_of(MLP)
    acting = method("weight-clipping", kappa=1.0)
    acting.prepare(network)
    before = state(network.module)
    acting.after_update(network)
    assert all(torch.equal(p, before[key]) for key, p in network.module.named_parameters())


def test_initial_bound_leaves_room_for_zero_biases():
    network = network_of(small_vit())
    assert float(network.module.head.bias.detach().abs().max()) == 0
    acting = method("weight-clipping", kappa=1.0, bound="initial")
    acting.prepare(network)
    largest = float(network.module.head.weight.detach().abs().max())
    with torch.no_grad():
        network.module.head.bias.fill_(10.0)
    acting.after_update(network)
    np.testing.assert_allclose(array(network.module.head.bias), largest, rtol=1e-6)


def test_output_layer_can_be_excluded():
    network = network_of(MLP)
    acting = method("weight-clipping", kappa=0.1, output=False)
    acting.prepare(network)
    before = state(network.module)
    acting.after_update(network)
    same = {key: torch.equal(p, before[key]) for key, p in network.module.named_parameters()}
    assert same == {"1.weight": False, "1.bias": False, "3.weight": False, "3.bias": False, "5.weight": True,
                    "5.bias": True}  # fmt: skip


def test_output_layers_are_those_named_by_the_network():
    critic = make_agent(dueling=True).networks["critic"]
    assert set(critic.outputs) == {"advantage", "value"}
    for bound in ("fan-in", "initial"):
        acting = method("weight-clipping", bound=bound, output=False)
        acting.prepare(critic)
        assert list(acting.clipped(critic)) == ["body.0", "body.2"]


def test_state_contains_the_initial_bound():
    network = network_of(MLP)
    acting = method("weight-clipping", kappa=1.0, bound="initial")
    acting.prepare(network)
    largest = {key: abs(array(p)).max() for key, p in network.module.named_parameters()}
    again = method("weight-clipping", kappa=1.0, bound="initial")
    again.load_state_dict(acting.state_dict())
    add_noise(network.module)
    again.after_update(network)
    for name in ("1", "3", "5"):
        bound = max(largest[f"{name}.weight"], largest[f"{name}.bias"])
        assert abs(array(network.module.get_parameter(f"{name}.weight"))).max() == pytest.approx(bound, rel=1e-6)


def test_fraction_of_clipped_entries_is_reported():
    network = network_of(MLP)
    acting = method("weight-clipping", kappa=1.0)
    acting.prepare(network)
    add_noise(network.module, size=0.2)
    before = state(network.module)
    outside = {}
    for name in ("1", "3", "5"):
        both = [array(before[f"{name}.weight"]).ravel(), array(before[f"{name}.bias"])]
        fan_in = before[f"{name}.weight"].shape[1]
        outside[name] = (abs(np.concatenate(both)) > fan_in**-0.5).mean()
    assert all(0.05 < share < 0.95 for share in outside.values())
    acting.after_update(network)
    report = acting.intervene(network, images(2))
    assert {name: figures["clipped"] for name, figures in report.modules.items()} == pytest.approx(outside, rel=1e-6)
    assert all(isinstance(share, torch.Tensor) for share in acting.clipped(network).values())
