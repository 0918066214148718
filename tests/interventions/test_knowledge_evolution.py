from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.interventions.knowledge_evolution import KnowledgeEvolution
from tests.support.networks import (
    agent_builder,
    changed,
    constant,
    images,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import RL, rl_network

MLP = agent_builder("mlp", width=20)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
FIRST = {"vit": "patch_embed.proj", "hnt": "patch_embed.proj", "mlp": "1", "resnet": "conv1"}
LAST = {"vit": "head", "hnt": "head", "mlp": "5", "resnet": "fc"}
each_level = pytest.mark.parametrize("level", ["weight", "kernel"])


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.weight for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def ready(name: str):
    network, batch = network_of(NETWORKS[name], lr=1e-2), images()
    train(network, batch)
    network._fresh = constant(NETWORKS[name], 3.0)
    return network, batch


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_random_fraction_of_weights_is_kept_each_time(name):
    network, batch = ready(name)
    method, gone = KnowledgeEvolution(0.75), {}
    for attempt in range(2):
        before = state(network.module)
        report = method.intervene(network, batch)
        for key, weight in weights(network.module).items():
            new, old = array(weight), array(before[f"{key}.weight"])
            mask = new == 3.0
            np.testing.assert_array_equal(new[~mask], old[~mask])
            assert mask.mean() == pytest.approx(0.25, abs=4.5 * math.sqrt(0.25 * 0.75 / mask.size))
            moments = array(network.optimizer.state[weight]["exp_avg"])
            assert (moments[mask] == 0).all() and (moments[~mask] != 0).any()
            if attempt:
                np.testing.assert_array_equal(mask, gone[key])
            gone[key] = mask
        assert changed(before, network.module) == {f"{key}.weight" for key in gone}
        assert report.parameters == sum(mask.sum() for mask in gone.values())
        train(network, batch)


@pytest.mark.parametrize("name", NETWORKS)
def test_first_rows_and_columns_are_kept(name):
    network, batch = ready(name)
    KnowledgeEvolution(0.6, "kernel").intervene(network, batch)
    for key, weight in weights(network.module).items():
        stays = (array(weight) != 3.0).reshape(*weight.shape[:2], -1)
        assert (stays.all(2) == stays.any(2)).all()  # kernels are not split
        stays = stays.all(2)
        columns = weight.shape[1] if key == FIRST[name] else math.ceil(0.6 * weight.shape[1])
        parts = np.split(stays, 3 if key.endswith("qkv") else 1)
        for part in parts:
            rows = len(part) if key == LAST[name] else math.ceil(0.6 * len(part))
            expected = np.zeros_like(part)
            expected[:rows, :columns] = True
            np.testing.assert_array_equal(part, expected)


def test_kept_weights_form_a_narrower_network():
    """With all other weights at 0, the outputs are those of the first rows and columns."""
    network, batch = network_of(agent_builder("mlp", width=20)), images()
    network._fresh = constant(MLP, 0.0)
    with torch.no_grad():
        for child in (network.module[1], network.module[3]):
            child.bias.zero_()
    KnowledgeEvolution(0.5, "kernel").intervene(network, batch)
    one, two, three = (network.module[index] for index in (1, 3, 5))
    x = array(batch["image"]).reshape(16, 64)
    hidden = np.maximum(x @ array(one.weight)[:10].T, 0)
    hidden = np.maximum(hidden @ array(two.weight)[:10, :10].T, 0)
    expected = hidden @ array(three.weight)[:, :10].T + array(three.bias)
    np.testing.assert_allclose(array(network.module(batch["image"])), expected, rtol=1e-4, atol=1e-5)


@each_level
@pytest.mark.parametrize(("name", "role"), RL)
def test_rl_agents(name, role, level):
    network, batch = rl_network(name, role)
    network._fresh = constant(network._fresh, 3.0)
    KnowledgeEvolution(0.5, level).intervene(network, batch)
    first = {key for key in weights(network.module) if key.endswith(".0")}
    for key, weight in weights(network.module).items():
        stays = array(weight) != 3.0
        assert 0 < stays.sum() < stays.size
        if level == "kernel":
            assert stays[0].sum() == (stays.shape[1] if key in first else math.ceil(stays.shape[1] / 2))
            assert stays[:, 0].sum() == (len(stays) if key in network.outputs else math.ceil(len(stays) / 2))


@each_level
def test_resume_keeps_the_split(level, tmp_path):
    network, batch = network_of(MLP, lr=1e-2), images()
    method = KnowledgeEvolution(0.5, level)
    method.intervene(network, batch)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed = KnowledgeEvolution(0.5, level)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    before, random = state(network.module), network.generator.get_state()
    method.intervene(network, batch)
    expected = state(network.module)
    network.module.load_state_dict(before)
    network.generator.set_state(random)
    resumed.intervene(network, batch)
    assert not changed(expected, network.module)
    assert changed(before, network.module)
