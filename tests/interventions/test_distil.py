from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.distil import Distil
from plastibench.interventions.none import NoIntervention
from plastibench.interventions.rehearse import Rehearse
from plastibench.interventions.reset import Reset
from plastibench.interventions.shrink_perturb import ShrinkPerturb
from plastibench.nn.finetune import finetune
from tests.support.networks import (
    agent_builder,
    changed,
    double,
    images,
    logits,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array, gradient_scores, lowest
from tests.support.rl import RL, rl_network

MLP = agent_builder("mlp", width=8)
NETWORKS = {"vit": small_vit(), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def registered(name: str, **options: object):
    entry = interventions[name]
    return build(entry.load(), {**entry.defaults, **options}, name)


def adam(parameters: list[np.ndarray], gradients: list[np.ndarray], moments: list, step: int, lr: float) -> None:
    """Take one step of Adam (Kingma & Ba 2015) in place."""
    for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
        m += 0.1 * (g - m)
        v += 0.001 * (g * g - v)
        p -= lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)


@pytest.mark.parametrize("kind", [Distil, Rehearse])
@each_network
def test_steps_are_adam_steps_on_the_error_or_the_loss(builder, kind):
    """Use full batches, so that their order does not matter, and a manual Adam."""
    network, batch = network_of(double(builder)), images(12).double()
    batch["label"] = batch["label"].long()
    before = logits(network.module, batch)
    by_hand = copy.deepcopy(network.module).eval()
    with torch.no_grad():
        for p in by_hand.parameters():
            p.mul_(0.5)
    parameters = [p.detach().numpy() for p in by_hand.parameters()]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    for step in range(1, 4):
        by_hand.zero_grad()
        error = F.mse_loss(by_hand(batch["image"]), before) if kind is Distil else loss(by_hand, batch)
        error.backward()
        adam(parameters, [array(p.grad) for p in by_hand.parameters()], moments, step, 0.01)
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    report = kind(ShrinkPerturb(0.5, 0.0), steps=3, lr=0.01, minibatch=12).intervene(network, batch)
    for p, expected in zip(network.module.parameters(), parameters, strict=True):
        np.testing.assert_allclose(array(p), expected, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in network.module.named_buffers())
    assert [figures["steps"] for figures in report.modules.values()] == [3.0]


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["distil", "shrink-perturb-distil", "reset-distil"])
@each_network
def test_distilled_outputs_are_closer_to_the_old_ones(builder, name):
    errors = {}
    for steps in (0, 20):
        network, batch = network_of(builder, lr=1e-2), images(64)
        train(network, batch)
        before = logits(network.module, batch)
        registered(name, steps=steps).intervene(network, batch)
        errors[steps] = float((logits(network.module, batch) - before).square().mean())
    assert errors[20] < 0.8 * errors[0]


@pytest.mark.parametrize("name", ["rehearse", "reset-rehearse"])
@each_network
def test_rehearse_improves_accuracy_on_the_new_labels(builder, name):
    losses = {}
    for steps in (0, 20):
        network, batch = network_of(builder, lr=1e-2), images(64)
        registered(name, steps=steps).intervene(network, batch)
        losses[steps] = float(loss(network.module.eval(), batch).detach())
    assert losses[20] < losses[0] - 0.01


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("distil", "low-gradient-quantile"),
        ("shrink-perturb-distil", "shrink-perturb"),
        ("reset-distil", "reset"),
        ("rehearse", "low-gradient-quantile"),
        ("reset-rehearse", "reset"),
    ],
)
def test_without_steps_a_control_is_its_inner_intervention(name, inner):
    outcomes = []
    for method in (registered(name, steps=0), registered(inner)):
        network, batch = network_of(MLP), images()
        method.intervene(network, batch)
        outcomes.append(state(network.module))
    assert all(torch.equal(value, outcomes[1][key]) for key, value in outcomes[0].items())


def test_minibatches_cover_the_batch_before_a_sample_repeats():
    network, batch, seen = network_of(MLP), images(20), []
    inner = network.loss

    def spy(module, part):
        seen.append(part["image"])
        return inner(module, part)

    network.loss = spy
    method = Rehearse(NoIntervention(), steps=4, minibatch=8)
    calls = len(seen)
    method.intervene(network, batch)
    parts = [part for part in seen[calls:] if len(part) == 8]
    assert len(parts) == 4
    for first, second in (parts[:2], parts[2:]):  # two minibatches of 8 fit into 20 samples
        rows = torch.cat([first, second]).flatten(1)
        assert len(torch.unique(rows, dim=0)) == 16
    assert not torch.equal(parts[0], parts[2])


@pytest.mark.parametrize("kind", [Distil, Rehearse])
def test_dropout_is_off_and_only_weights_change(kind):
    network, batch = network_of(small_vit(dropout=0.5), lr=1e-2), images()
    train(network, batch)
    gradients = []
    for number, p in enumerate(network.module.parameters()):
        p.grad = torch.full_like(p, 0.5) if number % 2 else None
        gradients.append(p.grad)
    random, before = torch.get_rng_state(), state(network.module)
    kind(NoIntervention(), steps=2).intervene(network, batch)
    assert torch.equal(torch.get_rng_state(), random)
    assert network.module.training and network.module.blocks[0].attn.training
    for p, gradient in zip(network.module.parameters(), gradients, strict=True):
        assert p.grad is gradient and (gradient is None or bool((gradient == 0.5).all()))
    assert not network.optimizer.state
    if kind is Distil:  # the error and its gradient are 0
        assert not changed(before, network.module)


def test_steps_can_be_limited_by_time():
    network, batch, now = network_of(MLP), images(), [100.0]

    def clock() -> float:
        now[0] += 0.125  # read once at the start and once before each step
        return now[0]

    limits = {"steps": 20, "lr": 1e-3, "minibatch": 8, "clock": clock}
    assert finetune(network, batch, lambda part: loss(network.module, part), seconds=4.0, **limits) == 31
    assert finetune(network, batch, lambda part: loss(network.module, part), seconds=None, **limits) == 20
    none = Distil(Reset("head"), seconds=0.0).intervene(network, batch)
    assert none.modules["5"]["steps"] == 0


@pytest.mark.parametrize("kind", [Distil, Rehearse])
def test_frozen_parameters_are_kept(kind):
    network, batch = network_of(MLP), images()
    network.module[1].requires_grad_(False)
    before = state(network.module)
    kind(Reset("head"), steps=2).intervene(network, batch)
    assert changed(before, network.module) == {"3.weight", "3.bias", "5.weight", "5.bias"}


@pytest.mark.parametrize(("name", "role"), RL)
def test_rl_agents_are_distilled_to_all_output_layers(name, role):
    errors = {}
    for steps in (0, 40):
        network, batch = rl_network(name, role)
        before = [captured(network, output, batch) for output in network.outputs]
        Distil(ShrinkPerturb(0.5, 0.5), steps=steps, lr=1e-2).intervene(network, batch)
        after = [captured(network, output, batch) for output in network.outputs]
        errors[steps] = [float((a - b).square().mean()) for a, b in zip(after, before, strict=True)]
    assert len(errors[0]) == len(network.outputs)
    assert all(b < 0.5 * a for a, b in zip(errors[0], errors[40], strict=True))


def captured(network, name: str, batch) -> torch.Tensor:
    seen = []
    handle = network.module.get_submodule(name).register_forward_hook(lambda _, args, output: seen.append(output))
    with torch.no_grad():
        network.loss(network.module, batch)
    handle.remove()
    return seen[0]


def test_state_contains_the_inner_intervention(tmp_path):
    network, batch = network_of(MLP, lr=1e-2), images()
    method = Distil("shrink-perturb-keep20", steps=2)
    method.prepare(network)
    train(network, batch)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed = Distil("shrink-perturb-keep20", steps=2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    before, random = state(network.module), network.generator.get_state()
    method.intervene(network, batch)
    expected = state(network.module)
    network.module.load_state_dict(before)
    network.generator.set_state(random)
    resumed.intervene(network, batch)
    assert not changed(expected, network.module)


@pytest.mark.parametrize(("kind", "named"), [(Distil, "inside distil"), (Rehearse, "inside rehearse")])
def test_wrong_inner_options_name_the_culprit(kind, named):
    with pytest.raises(UserError, match=named):
        kind("redo", ("nothing=1",))


# --- revive-zero ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "name", "reader"),
    [
        (small_vit(), "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"),
        (MLP, "1", "3"),
        (small_resnet, "layer1.0.conv1", "layer1.0.conv2"),
    ],
    ids=["vit", "mlp", "resnet"],
)
def test_revive_zero_zeroes_the_readers_of_the_units_that_rnr_revives(builder, name, reader):
    network, batch = network_of(double(builder)), images(32).double()
    batch["label"] = batch["label"].long()
    mask = lowest(gradient_scores(network.module, name, batch), 0.4)
    before = state(network.module)
    report = registered("revive-zero").intervene(network, batch)
    assert torch.equal(report.units[name], mask)
    weight, old = network.module.get_parameter(f"{reader}.weight"), before[f"{reader}.weight"]
    kept = ~report.units[reader]
    assert bool((weight[:, mask] == 0).all())
    assert torch.equal(weight[kept][:, ~mask], old[kept][:, ~mask])
    incoming, was = network.module.get_parameter(f"{name}.weight"), before[f"{name}.weight"]
    assert bool((incoming[mask] != was[mask]).any())
