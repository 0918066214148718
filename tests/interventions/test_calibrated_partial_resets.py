from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.interventions.calibrated_partial_resets import CalibratedPartialResets
from plastibench.nn.network import Network
from tests.support.networks import (
    agent_builder,
    changed,
    constant,
    double,
    images,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array
from tests.support.rl import RL, rl_network

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
LAST = {"vit": "head", "hnt": "head", "mlp": "5", "resnet": "fc"}
READERS = {  # hidden modules and the modules that read their units
    "vit": {f"blocks.{n}.mlp.fc1": [f"blocks.{n}.mlp.fc2"] for n in range(2)},
    "hnt": {f"blocks.{n}.mlp.fc1": [f"blocks.{n}.mlp.fc2"] for n in range(2)},
    "mlp": {"1": ["3"], "3": ["5"]},
    "resnet": {
        "conv1": ["layer1.0.conv1", "layer1.0.downsample.0"],  # from 64 channels to 4
        **{f"layer{n}.{m}.conv1": [f"layer{n}.{m}.conv2"] for n in range(1, 5) for m in range(2)},
    },
}


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.weight for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def step(network: Network, batch, method: CalibratedPartialResets) -> dict[str, np.ndarray]:
    """Make an update, and return the gradients of the weights."""
    network.module.eval()
    network.optimizer.zero_grad()
    assert method.penalty(network, batch) is None
    network.loss(network.module, batch).backward()
    network.optimizer.step()
    gradients = {name: array(weight.grad).copy() for name, weight in weights(network.module).items()}
    method.after_update(network)
    network.module.train()
    return gradients


def averaged(history: list[dict[str, np.ndarray]], decay: float) -> dict[str, np.ndarray]:
    scores = {name: np.ones(len(gradient)) for name, gradient in history[0].items()}
    for gradients in history:
        for name, gradient in gradients.items():
            size = np.abs(gradient).reshape(len(gradient), -1).mean(1)
            scores[name] = decay * scores[name] + (1 - decay) * size / max(size.mean(), 1e-300)
    return scores


def shares(score: np.ndarray, rate: float, sharpness: float) -> np.ndarray:
    return rate * np.minimum(2 / (1 + np.exp(sharpness * (score - 1))), 1)


def moved(
    before: dict[str, np.ndarray], share: dict[str, np.ndarray], order: list[str], readers: dict[str, list[str]]
) -> dict[str, np.ndarray]:
    """Move incoming weights towards 3 and readers' columns towards 0, module by module."""
    after = {name: weight.copy() for name, weight in before.items()}
    for name in order:
        p = share[name].reshape(-1, *[1] * (before[name].ndim - 1))
        after[name] = (1 - p) * after[name] + p * 3.0
        for reader in readers.get(name, []):
            after[reader] = after[reader] * (1 - share[name]).reshape(1, -1, *[1] * (before[reader].ndim - 2))
    return after


@pytest.mark.parametrize("name", NETWORKS)
def test_units_move_by_the_formula(name):
    builder = double(NETWORKS[name])
    network, batch = network_of(builder, lr=1e-3), images().double()
    batch["label"] = batch["label"].long()
    method = CalibratedPartialResets(rate=0.2, decay=0.5)
    history = [step(network, batch, method) for _ in range(3)]
    network._fresh = constant(builder, 3.0)
    before = state(network.module)
    report = method.intervene(network, batch)
    scores = averaged(history, 0.5)
    share = {key: shares(score, 0.2, 16) for key, score in scores.items() if key != LAST[name]}
    old = {key: array(before[f"{key}.weight"]).copy() for key in scores}
    expected = moved(old, share, [key for key in scores if key in share], READERS[name])
    for key, weight in weights(network.module).items():
        np.testing.assert_allclose(array(weight), expected[key], rtol=1e-5, atol=1e-7)
    untouched = {f"{LAST[name]}.weight"} - {
        f"{reader}.weight" for readers in READERS[name].values() for reader in readers
    }
    assert changed(before, network.module) == {f"{key}.weight" for key in scores} - untouched
    assert all(report.modules[key]["moved_fraction"] == pytest.approx(value.mean()) for key, value in share.items())
    largest = np.concatenate(list(share.values()))
    assert largest.max() == 0.2 and largest.min() < 0.02  # units below and above the mean


def test_scores_are_reset_after_an_intervention():
    network, batch = network_of(double(MLP), lr=1e-3), images().double()
    batch["label"] = batch["label"].long()
    method = CalibratedPartialResets(rate=0.25, decay=0.5)
    step(network, batch, method)
    method.intervene(network, batch)
    network._fresh = constant(double(MLP), 3.0)
    before = state(network.module)
    method.intervene(network, batch)  # scores are 1, so every unit moves by the full rate
    expected = 0.75 * array(before["1.weight"]) + 0.25 * 3
    np.testing.assert_allclose(array(network.module[1].weight), expected, rtol=1e-6)


def test_optimizer_state_is_kept_as_in_the_source():
    network, batch = network_of(MLP, lr=1e-2), images()
    train(network, batch)
    before = {p: s["exp_avg"].clone() for p, s in network.optimizer.state.items()}
    CalibratedPartialResets().intervene(network, batch)
    assert all(torch.equal(network.optimizer.state[p]["exp_avg"], moment) for p, moment in before.items())


def test_resets_every_n_updates():
    network, batch = network_of(MLP, lr=0.0), images()
    method = CalibratedPartialResets(rate=0.5, every=3)
    for update in range(1, 8):
        before = state(network.module)
        step(network, batch, method)
        acted = changed(before, network.module)
        assert acted == ({"1.weight", "3.weight", "5.weight"} if update % 3 == 0 else set())


def test_without_a_batch_it_cannot_act_by_itself():
    network, batch = network_of(MLP, lr=1e-2), images()
    method = CalibratedPartialResets(every=1)
    step(network, batch, method)
    with pytest.raises(UserError, match="penalty"):
        method.after_update(network)


def test_global_random_state_is_kept():
    network, batch = network_of(MLP, lr=1e-2), images()
    method, before = CalibratedPartialResets(every=2), torch.get_rng_state()
    for _ in range(4):
        step(network, batch, method)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("every", [0, 2])
def test_resume_is_bit_identical(every, tmp_path):
    method, outcomes = CalibratedPartialResets(rate=0.3, every=every), []
    network, batch = network_of(MLP, lr=1e-2), images()
    for _ in range(3):
        step(network, batch, method)
    torch.save(
        [method.state_dict(), network.module.state_dict(), network.optimizer.state_dict()], tmp_path / "state.pt"
    )
    random = network.generator.get_state()
    for again in range(2):
        if again:
            saved = torch.load(tmp_path / "state.pt", weights_only=True)
            method = CalibratedPartialResets(rate=0.3, every=every)
            method.load_state_dict(saved[0])
            network.module.load_state_dict(saved[1])
            network.optimizer.load_state_dict(saved[2])
            network.generator.set_state(random)
        for _ in range(3):
            step(network, batch, method)
        method.intervene(network, batch)
        outcomes.append(state(network.module))
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


@pytest.mark.parametrize(("name", "role"), RL)
def test_rl_agents(name, role):
    network, batch = rl_network(name, role)
    network._fresh = constant(network._fresh, 3.0)
    before = state(network.module)
    CalibratedPartialResets(rate=0.25).intervene(network, batch)
    every = weights(network.module)
    chains = {key: key.removesuffix(key[-1]) + str(int(key[-1]) + 2) for key in every if key[-1].isdigit()}
    order = [key for key in every if key not in network.outputs]
    readers = {key: [reader] for key, reader in chains.items() if reader in every}
    old = {key: array(before[f"{key}.weight"]) for key in every}
    share = {key: np.full(len(old[key]), 0.25) for key in order}
    expected = moved(old, share, order, readers)
    inner = [key for key in every if key not in network.outputs]
    for key in inner:
        np.testing.assert_allclose(array(every[key]), expected[key], rtol=1e-5, atol=1e-6)
    for key in network.outputs:  # output layers change only in their columns
        np.testing.assert_allclose(array(every[key]), 0.75 * old[key], rtol=1e-5)
