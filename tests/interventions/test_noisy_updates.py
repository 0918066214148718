from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.networks import agent_builder, changed, double, method, network_of, small_resnet, small_vit, state
from tests.support.references import array
from tests.support.rl import make_agent

MLP = agent_builder("mlp", width=64)
NETWORKS = {"vit": small_vit(), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def differences(after: dict, before: dict) -> np.ndarray:
    return np.concatenate([(array(after[key]) - array(before[key])).ravel() for key in before])


def is_normal(values: np.ndarray, sigma: float) -> bool:
    """Check mean, standard deviation and tail fraction, each within five standard errors."""
    count, scaled = len(values), values / sigma
    beyond = (abs(scaled) > 2).mean()
    return bool(
        abs(scaled.mean()) < 5 / count**0.5
        and abs(scaled.std() - 1) < 5 / (2 * count) ** 0.5
        and abs(beyond - 0.0455) < 5 * (0.0455 / count) ** 0.5
    )


@each_network
def test_noise_on_weights_is_normal_with_sigma_and_differs_each_time(builder):
    network = network_of(double(builder), lr=1e-2)
    acting = method("noisy-updates", on="weights", sigma=1e-3)
    acting.prepare(network)
    names = [key for key, _ in network.module.named_parameters()]
    draws, states = [], [state(network.module)]
    for _ in range(2):
        acting.before_update(network)
        acting.after_update(network)
        states.append(state(network.module))
        draws.append(differences(*({key: each[key] for key in names} for each in (states[-1], states[-2]))))
        assert is_normal(draws[-1], 1e-3)
        assert all((array(states[-1][key]) != array(states[-2][key])).all() for key in names)
    assert abs(np.corrcoef(*draws)[0, 1]) < 5 / len(draws[0]) ** 0.5
    assert all(torch.equal(b, states[0][key]) for key, b in network.module.named_buffers())


@each_network
def test_noise_on_gradients_changes_neither_weights_nor_missing_gradients(builder):
    network = network_of(double(builder), lr=1e-2)
    acting = method("noisy-updates", sigma=0.1)
    acting.prepare(network)
    parameters = list(network.module.parameters())
    for parameter in parameters[1:]:
        parameter.grad = torch.full_like(parameter, 0.5)
    before = state(network.module)
    acting.before_update(network)
    acting.after_update(network)
    assert not changed(before, network.module)
    assert parameters[0].grad is None
    assert is_normal(np.concatenate([array(p.grad).ravel() - 0.5 for p in parameters[1:]]), 0.1)


def test_noise_can_be_scaled_by_the_learning_rate_of_each_group():
    found = {}
    for times_lr in (False, True):
        network = network_of(double(MLP))
        first, *others = network.module.parameters()
        network.optimizer = torch.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others, "lr": 0.25}])
        acting = method("noisy-updates", on="weights", times_lr=times_lr, sigma=1.0)
        acting.prepare(network)
        before = state(network.module)
        acting.after_update(network)
        found[times_lr] = {key: array(p) - array(before[key]) for key, p in network.module.named_parameters()}
    for key, plain in found[False].items():
        rate = 0.5 if key == "1.weight" else 0.25
        np.testing.assert_allclose(found[True][key], rate * plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norms", [False, True])
@each_network
def test_decay_skips_normalization_layers(builder, norms):
    network = network_of(double(builder), lr=0.1)
    acting = method("shrink-perturb-noise", sigma=0.0, decay=0.5, norms=norms)
    acting.prepare(network)
    before = state(network.module)
    acting.after_update(network)
    for key, parameter in network.module.named_parameters():
        normalises = any(part in key for part in ("norm", "bn", "downsample.1"))
        factor = 1.0 if normalises and not norms else 0.95
        np.testing.assert_allclose(array(parameter), factor * array(before[key]), rtol=1e-12)


def test_shrink_perturb_noise_is_decay_and_noise_on_weights():
    acting = method("shrink-perturb-noise")
    assert (acting.on, acting.decay, acting.sigma, acting.times_lr) == ("weights", 5e-4, 1e-5, False)


def test_one_draw_from_the_network_generator_seeds_all_noise():
    outcomes, generators = [], []
    for seed in (3, 3, 4):
        network = network_of(MLP, lr=1e-2)
        network.generator.manual_seed(seed)
        acting = method("noisy-updates", on="weights", sigma=1.0)
        acting.prepare(network)
        drawn = network.generator.get_state()
        for _ in range(3):
            acting.after_update(network)
        assert torch.equal(network.generator.get_state(), drawn)
        outcomes.append(state(network.module))
        generators.append(drawn)
    assert all(torch.equal(outcomes[0][key], outcomes[1][key]) for key in outcomes[0])
    assert not any(torch.equal(outcomes[0][key], outcomes[2][key]) for key in outcomes[0])


def test_rl_critic():
    network = make_agent(hidden=(64, 64)).networks["critic"]
    acting = method("noisy-updates", on="weights", sigma=0.1)
    acting.prepare(network)
    before = state(network.module)
    acting.after_update(network)
    assert is_normal(differences(state(network.module), before), 0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_noise_is_drawn_and_resumed_on_the_device(tmp_path):
    network = network_of(MLP)
    network.module.cuda()
    acting = method("noisy-updates", on="weights", sigma=1.0)
    acting.prepare(network)
    acting.after_update(network)
    torch.save(acting.state_dict(), tmp_path / "state.pt")
    before = state(network.module)
    acting.after_update(network)
    expected = state(network.module)
    again = method("noisy-updates", on="weights", sigma=1.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu"))
    network.module.load_state_dict(before)
    again.after_update(network)
    assert not changed(expected, network.module)
