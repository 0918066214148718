from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.interventions.revive import Revive
from plastibench.nn.dataflow import trace
from tests.support.networks import (
    add_noise,
    agent_builder,
    changed,
    constant,
    drawn,
    images,
    logits,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array, gradient_scores, lowest, seen

MLP = agent_builder("mlp", width=12)
NETWORKS = {"vit": small_vit(), "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
each_network = pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS.keys())


def marked(builder, seed: int = 0):
    """A trained network whose reinitialized entries are all 7."""
    network = network_of(builder, seed=seed)
    add_noise(network.module, 0.1)
    network._fresh = constant(builder, 7.0)
    return network


@each_network
def test_low_gradient_quantile_reinitializes_the_lowest_fraction_of_every_module_but_the_last(builder):
    network, batch = marked(builder), images(24)
    names = [unit.name for unit in trace(network, batch)]
    expected = {name: lowest(gradient_scores(network.module, name, batch), 0.4) for name in names[:-1]}
    before = state(network.module)
    report = Revive(quantile=0.4).intervene(network, batch)
    assert list(report.units) == names[:-1]
    touched = set()
    for name, mask in expected.items():
        np.testing.assert_array_equal(report.units[name].numpy(), mask.numpy(), err_msg=name)
        for key, parameter in network.module.get_submodule(name).named_parameters(prefix=name):
            assert (parameter[mask] == 7).all()
            assert torch.equal(parameter[~mask], before[key][~mask])
            touched.add(key)
    assert changed(before, network.module) == touched
    assert report.parameters == sum(int((parameter == 7).sum()) for parameter in network.module.parameters())
    share = sum(int(m.sum()) for m in expected.values()) / sum(len(m) for m in expected.values())
    assert report.revived_fraction == pytest.approx(share)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_regrama_reinitializes_units_below_the_mean_gradient_of_their_layer(tau):
    network, batch = marked(small_vit()), images(24)
    names = [unit.name for unit in trace(network, batch)][:-1]
    expected = {}
    for name in names:
        scores = gradient_scores(network.module, name, batch)
        expected[name] = scores / scores.mean() <= tau
    report = Revive(criterion="regrama", tau=tau).intervene(network, batch)
    for name in names:
        np.testing.assert_array_equal(report.units[name].numpy(), expected[name], err_msg=name)


def dead_unit_network():
    """An MLP in which some units never fire."""
    network = marked(MLP)
    with torch.no_grad():
        network.module[1].bias[[2, 5]] = -1e4
        network.module[3].bias[4] = -1e4
    return network


def test_redo_reinitializes_silent_units_and_zeroes_their_readers():
    network, batch = dead_unit_network(), images(24)
    before = state(network.module)
    dead = {
        name: np.flatnonzero(array(seen(network.module, relu, batch)[1]).max(0) == 0).tolist()
        for name, relu in (("1", "2"), ("3", "4"))
    }
    assert {2, 5} <= set(dead["1"])
    assert 4 in dead["3"]
    assert len(dead["1"] + dead["3"]) < 8
    report = Revive("redo", tau=0.0, modules="hidden", outgoing="zero").intervene(network, batch)
    for name, reader in (("1", "3"), ("3", "5")):
        assert report.units[name].nonzero().flatten().tolist() == dead[name]
        assert (network.module.get_parameter(f"{name}.bias")[dead[name]] == 7).all()
        columns = network.module.get_parameter(f"{reader}.weight")[:, dead[name]]
        assert (columns == 0).all()
    kept = torch.tensor([index not in dead["1"] for index in range(12)])
    rows = torch.tensor([index not in dead["3"] for index in range(12)])
    assert torch.equal(network.module[1].weight[kept], before["1.weight"][kept])
    assert torch.equal(network.module[3].weight[rows][:, kept], before["3.weight"][rows][:, kept])
    assert torch.equal(network.module[5].bias, before["5.bias"])


@pytest.mark.parametrize("modules", ["hidden", "all"])
def test_unit_after_a_layernorm_is_reinitialized_with_its_row(modules):
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 10))

    network = marked(build)
    with torch.no_grad():
        network.module[2].bias[[1, 4]] = -1e4
    before = state(network.module)
    report = Revive("redo", tau=0.0, modules=modules, outgoing="zero").intervene(network, images(24))
    assert report.units["2"].nonzero().flatten().tolist() == [1, 4]
    assert (network.module[2].bias[[1, 4]] == 7).all()
    assert bool((network.module[1].weight[[1, 4]] == 7).all()) == (modules == "hidden")
    assert torch.equal(network.module[1].weight[[0, 2, 3, 5]], before["1.weight"][[0, 2, 3, 5]])
    assert not network.module[4].weight[:, [1, 4]].any()
    assert report.units.get("1", torch.zeros(6)).any() == (modules == "hidden")  # so that Recouple keeps the rows


def test_redo_revives_a_filter_silenced_by_its_batchnorm():
    def build() -> nn.Module:
        layers = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)
        return nn.Sequential(*layers)

    network, batch = network_of(build), images(24)
    network.module[1].bias.data[2] = -20.0
    before = logits(network.module, batch)
    report = Revive("redo", tau=0.0, modules="hidden", outgoing="zero").intervene(network, batch)
    assert report.units["0"].nonzero().flatten().tolist() == [2]
    torch.testing.assert_close(logits(network.module, batch), before)
    network.module.eval()
    assert bool((network.module[:3](batch["image"])[:, 2] > 0).any())


def test_redo_with_tau_zero_preserves_the_outputs_of_a_relu_network():
    network, batch = dead_unit_network(), images(24)
    network._fresh = lambda: drawn(MLP, 9)
    before = logits(network.module, batch)
    Revive("redo", tau=0.0, modules="hidden", outgoing="zero").intervene(network, batch)
    torch.testing.assert_close(logits(network.module, batch), before, rtol=1e-5, atol=1e-5)


def test_redo_scores_the_outputs_of_the_nonlinearity():
    network, batch = marked(small_vit()), images(24)
    scores = {}
    for name in ("blocks.0.mlp", "blocks.1.mlp"):
        outputs = array(seen(network.module, f"{name}.act", batch)[1]).reshape(-1, 64)
        scores[f"{name}.fc1"] = np.abs(outputs).mean(0) / np.abs(outputs).mean()
    report = Revive("redo", tau=0.8, modules="hidden").intervene(network, batch)
    assert set(report.units) == set(scores)
    for name, values in scores.items():
        np.testing.assert_array_equal(report.units[name].numpy(), values <= 0.8)
        assert 0 < report.units[name].sum() < 64


def test_weight_norm_takes_the_shortest_rows():
    network = marked(MLP)
    norms = np.linalg.norm(array(network.module[1].weight), axis=1)
    report = Revive("weight-norm", quantile=0.5).intervene(network, images())
    assert torch.equal(report.units["1"], lowest(norms, 0.5))


@pytest.mark.sample(8)
@pytest.mark.parametrize("criterion", ["redo", "regrama", "regrama-post", "regrama-weight", "low-gradient-quantile",
                                       "random", "weight-norm"])  # fmt: skip
@each_network
def test_output_layer_is_never_revived(builder, criterion):
    network, batch = marked(builder), images()
    head = [unit.name for unit in trace(network, batch)][-1]
    before = state(network.module)
    report = Revive(criterion, tau=1e9, quantile=1.0).intervene(network, batch)
    assert head not in report.units
    assert all(mask.all() for mask in report.units.values())
    assert not {name for name in changed(before, network.module) if name.startswith(f"{head}.")}


def test_random_masks_depend_on_the_network_generator_only():
    masks = []
    for seed in (1, 1, 2):
        network = marked(MLP)
        network.generator.manual_seed(seed)
        torch.manual_seed(len(masks))  # the global random state does not matter
        masks.append(torch.cat(list(Revive("random", quantile=0.5).intervene(network, images()).units.values())))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_split_qkv_scores_q_k_and_v_separately():
    network, batch = marked(small_vit()), images(24)
    name = "blocks.0.attn.qkv"
    with torch.no_grad():
        network.module.get_submodule(name).weight[:32] *= 1e-3  # attention is uniform, so q and k hardly matter
    scores = gradient_scores(network.module, name, batch)
    assert scores[:32].max() < scores[32:].min()
    joint = Revive(modules=r"blocks\.0\.attn\.qkv", quantile=0.5)
    apart = Revive(modules=r"blocks\.0\.attn\.qkv", quantile=0.5, split_qkv=True)
    units = trace(network, batch)
    assert torch.equal(joint.select(network, batch, units)[name], lowest(scores, 0.5))
    expected = torch.cat([lowest(part, 0.5) for part in np.split(scores, 3)])
    assert torch.equal(apart.select(network, batch, units)[name], expected)


@pytest.mark.parametrize(
    ("modules", "residual_writers", "expected"),
    [
        ("hidden", True, {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}),
        (r"norm1$", True, {"blocks.0.norm1", "blocks.1.norm1"}),
        ("fc2|norm2", False, {"blocks.0.norm2", "blocks.1.norm2"}),
        (r"\.1\.", False, {"blocks.1.norm1", "blocks.1.attn.qkv", "blocks.1.norm2", "blocks.1.mlp.fc1"}),
    ],
)
def test_modules_selects_by_name_or_kind(modules, residual_writers, expected):
    network = marked(small_vit())
    before = state(network.module)
    report = Revive(modules=modules, residual_writers=residual_writers, quantile=0.5).intervene(network, images())
    assert set(report.units) == expected
    touched = {name.rpartition(".")[0] for name in changed(before, network.module)}
    assert touched == expected


@pytest.mark.parametrize("modules", ["nothing-like-this", "head"])
def test_modules_without_a_match_are_a_user_error(modules):
    with pytest.raises(UserError, match="matches no module"):
        Revive(modules=modules).intervene(marked(small_vit()), images())


def test_invalid_regular_expression_is_a_user_error():
    with pytest.raises(UserError):
        Revive(modules="(").intervene(marked(small_vit()), images())


def test_reinitialized_units_differ_each_time():
    network = network_of(MLP)
    Revive("weight-norm", quantile=1.0, modules="^1$").intervene(network, images())
    first = state(network.module)
    Revive("weight-norm", quantile=1.0, modules="^1$").intervene(network, images())
    assert {"1.weight", "1.bias"} <= changed(first, network.module)
    assert not torch.isclose(network.module[1].weight, first["1.weight"]).any(dim=1).all()


@pytest.mark.parametrize(("rule", "step"), [("mean", 3), ("zero", 3), ("restart", 0)])
def test_moments_of_reinitialized_units_follow_the_rule(rule, step):
    batch = images(24)
    network = train(network_of(MLP, lr=1e-2), batch)
    weight = network.module[1].weight
    before = {name: value.clone() for name, value in network.optimizer.state[weight].items()}
    mask = Revive(quantile=0.5, modules="^1$", moments=rule).intervene(network, batch).units["1"]
    after = network.optimizer.state[weight]
    assert float(after["step"]) == step
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[name][~mask], before[name][~mask])
    assert (after["exp_avg"][mask] == 0).all()
    second = before["exp_avg_sq"][~mask].mean() if rule == "mean" else torch.tensor(0.0)
    torch.testing.assert_close(after["exp_avg_sq"][mask], second.expand_as(after["exp_avg_sq"][mask]))


@pytest.mark.parametrize("plain", [True, False])
def test_batch_can_be_a_dictionary_of_tensors(plain):
    network, batch = marked(MLP), images()
    report = Revive(quantile=0.5).intervene(network, dict(batch.items()) if plain else batch.reshape(4, 4))
    expected = Revive(quantile=0.5).intervene(marked(MLP), batch)
    assert all(torch.equal(mask, expected.units[name]) for name, mask in report.units.items())


def test_network_stays_a_plain_module():
    network = marked(small_vit())
    Revive(quantile=0.5).intervene(network, images())
    assert all("forward" not in child.__dict__ for child in network.module.modules())
    assert isinstance(network.module, nn.Module)
    assert not any(child._forward_hooks for child in network.module.modules())
