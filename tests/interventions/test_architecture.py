"""CReLU, deep Fourier features, norms before nonlinearities, and Normalize-and-Project."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import interventions
from plastibench.interventions.base import Intervention
from plastibench.interventions.layer_norm import AffineFree, LayerNorms
from plastibench.interventions.normalize_project import NormalizeAndProject
from plastibench.interventions.paired_activations import PairedActivations
from plastibench.metrics.plasticity import plasticity_report
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.nonlinearity_sites import find_sites
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    logits,
    loss,
    network_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.references import array, layer_norm, seen
from tests.support.rl import make_agent, transitions

MLP = agent_builder("mlp", width=16)
VIT = small_vit()
BUILDERS = {"vit": VIT, "hnt": small_vit(variant="hnt"), "mlp": MLP, "resnet": small_resnet}
FEATURES = {
    "crelu": lambda z: np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)], 1),
    "deep-fourier": lambda z: np.concatenate([np.sin(z), np.cos(z)], 1),
}


def convolutional(norm: type[nn.Module] | None = nn.BatchNorm2d) -> nn.Module:
    norms = [norm(8) if norm is not nn.GroupNorm else norm(2, 8)] if norm is not None else []
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), *norms, nn.ReLU(True), nn.Flatten()),
        *(nn.Linear(288, 12), nn.LayerNorm(12), nn.Tanh(), nn.Dropout(0.0)),
        nn.Linear(12, 10),
    )


def method_of(name: str, **options: object) -> Intervention:
    entry = interventions[name]
    return build(entry.load(), {**entry.defaults, **options}, name)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# Nonlinearities --------------------------------------------------------------------------------------------------


def places(module: nn.Module) -> list[tuple[str, str | None, str, int]]:
    return [(site.layer, site.norm, site.activation, site.width) for site in find_sites(module)]


def test_nonlinearities_are_found_by_structure() -> None:
    assert places(MLP()) == [("1", None, "2", 16), ("3", None, "4", 16)]
    assert places(VIT()) == [(f"blocks.{b}.mlp.fc1", None, f"blocks.{b}.mlp.act", 64) for b in range(2)]
    assert places(convolutional()) == [("0", "1", "2", 8), ("4", "5", "6", 12)]
    residual = places(small_resnet())
    assert residual[0] == ("conv1", "bn1", "act1", 64)
    assert [place[0] for place in residual[1:]] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)]


@pytest.mark.parametrize("name", ["dqn-mlp", "sac-mlp"])
def test_nonlinearities_of_rl_agents_are_found(name: str) -> None:
    learner = make_agent(name, layer_norm=True)
    prefixes = ["body."] if name == "dqn-mlp" else ["heads.0.", "heads.1."]
    expected = [(f"{p}{3 * i}", f"{p}{3 * i + 1}", f"{p}{3 * i + 2}", 16) for p in prefixes for i in range(2)]
    assert places(learner.networks["critic"].module) == expected


def test_bottleneck_has_two_nonlinearities_before_its_addition() -> None:
    import timm

    module = timm.create_model("resnet26", in_chans=1, num_classes=3, channels=(4, 4, 4, 4))
    block = [place[:3] for place in places(module) if place[0].startswith("layer1.0.")]
    assert block == [(f"layer1.0.conv{i}", f"layer1.0.bn{i}", f"layer1.0.act{i}") for i in (1, 2)]


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 3),
        nn.Sequential(nn.ReLU(), nn.Linear(3, 3)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)),
    ],
)
@pytest.mark.parametrize("name", ["crelu", "deep-fourier", "layernorm", "normalize-and-project"])
def test_network_without_a_suitable_module_is_a_user_error(name: str, module: nn.Module) -> None:
    before = state(module)
    with pytest.raises(UserError, match="no activation module"):
        method_of(name).prepare(Network(module, None, loss))
    assert not changed(before, module)


# Paired activations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEATURES)
def test_outputs_are_those_of_half_the_units_with_two_features_each(name: str) -> None:
    network, batch = network_of(MLP), images()
    before = state(network.module)
    method_of(name).prepare(network)
    x = array(batch["image"]).reshape(16, 64)
    z = x @ array(before["1.weight"])[:8].T + array(before["1.bias"])[:8]
    z = FEATURES[name](z) @ array(before["3.weight"])[:8].T + array(before["3.bias"])[:8]
    expected = FEATURES[name](z) @ array(before["5.weight"]).T + array(before["5.bias"])
    np.testing.assert_allclose(array(logits(network.module, batch)), expected, atol=1e-5)


@pytest.mark.parametrize("name", FEATURES)
def test_convolutions_and_norms_are_halved_and_features_doubled(name: str) -> None:
    network, batch = network_of(convolutional, lr=1e-2), images()
    method_of(name).prepare(network)
    module = network.module
    _, z = seen(module, "1", batch)
    _, h = seen(module, "2", batch)
    assert z.shape == (16, 4, 6, 6)
    np.testing.assert_allclose(array(h), FEATURES[name](array(z)), atol=1e-6)
    assert (module[1].num_features, len(module[1].running_mean), module[5].normalized_shape) == (4, 4, (6,))
    assert (module[0].out_channels, module[4].out_features, module[4].in_features) == (4, 6, 288)
    module.train()(batch["image"])


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("builder", BUILDERS)
def test_readers_keep_their_fan_in_and_parameters_do_not_increase(builder: str, name: str) -> None:
    network = network_of(BUILDERS[builder])
    before = {n: m for n, m in network.module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    weights, was = state(network.module), size(network.module)
    halved = {site.layer for site in find_sites(network.module)}
    method_of(name).prepare(network)
    for module_name, old in before.items():
        new = network.module.get_submodule(module_name)
        assert new.weight.shape[1:] == old.weight.shape[1:]
        assert len(new.weight) == len(old.weight) // (1 + (module_name in halved))
        assert torch.equal(new.weight, weights[f"{module_name}.weight"][: len(new.weight)])
    assert size(network.module) < was
    assert {n: p.shape for n, p in network.fresh().named_parameters()} == {
        n: p.shape for n, p in network.module.named_parameters()
    }


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU()), "0 has 5 outputs"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU()), "2 has 3 outputs"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU()), "grouped"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm([4, 6, 6]), nn.ReLU()), "1 normalizes"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU()), "4 groups"),
    ],
)
def test_what_cannot_be_halved_is_a_users_error_and_left_as_it_was(module: nn.Module, words: str) -> None:
    before = state(module)
    with pytest.raises(UserError, match=words):
        PairedActivations().prepare(Network(module, None, loss))
    assert not changed(before, module)


def test_paired_activations_cannot_be_combined() -> None:
    network = network_of(MLP)
    PairedActivations().prepare(network)
    with pytest.raises(UserError, match="already"):
        PairedActivations("fourier").prepare(network)


@pytest.mark.parametrize("name", FEATURES)
def test_units_of_halved_layers_own_both_features(name: str) -> None:
    network, batch = network_of(MLP, lr=1e-2), images()
    method_of(name).prepare(network)
    units = {unit.name: unit for unit in trace(network, batch)}
    assert [unit.name for unit in units.values() if unit.hidden] == ["1", "3"]
    assert units["1"].columns["3"].tolist() == [*range(8), *range(8)]
    with torch.no_grad():  # a unit with zero weights has constant features
        network.module[1].weight[2], network.module[1].bias[2] = 0.0, 0.0
    found = plasticity_report(network, batch)
    assert found.layers["1"]["dormant-ratio"] == (1 / 8 if name == "crelu" else 0.0)
    reviver = method_of("redo", tau=0.5 if name == "crelu" else 0.0)
    before = state(network.module)
    report = reviver.intervene(network, batch)
    assert report.units["1"].tolist() == [name == "crelu" and index == 2 for index in range(8)]
    if name == "crelu":
        assert (network.module[3].weight[:, [2, 10]] == 0).all()
        others = [column for column in range(16) if column not in (2, 10)]
        assert torch.equal(network.module[3].weight[:, others], before["3.weight"][:, others])


# Norms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
def test_layernorm_is_added_before_each_nonlinearity(affine: bool) -> None:
    network, batch = network_of(MLP), images()
    LayerNorms(affine).prepare(network)
    module = network.module
    x = array(batch["image"]).reshape(16, 64)
    for layer in (module[1], module[3]):
        x = np.maximum(layer_norm(x @ array(layer.weight).T + array(layer.bias), 1e-5), 0)
    expected = x @ array(module[5].weight).T + array(module[5].bias)
    np.testing.assert_allclose(array(logits(module, batch)), expected, atol=1e-5)
    assert {n for n, _ in module.named_parameters() if n.count(".") > 1} == (
        {f"{i}.0.{p}" for i in (2, 4) for p in ("weight", "bias")} if affine else set()
    )


def test_norm_after_a_convolution_normalizes_channels_and_positions_together() -> None:
    network, batch = network_of(lambda: convolutional(None)), images()
    LayerNorms().prepare(network)
    _, z = seen(network.module, "0", batch)
    _, h = seen(network.module, "1.0", batch)
    rows = array(z).reshape(16, -1)
    np.testing.assert_allclose(array(h).reshape(16, -1), layer_norm(rows, 1e-5), atol=1e-5)
    assert network.module[1][0].weight.shape == (8,)
    assert isinstance(network.module[5], nn.Tanh)  # after an existing LayerNorm


def test_hidden_units_of_vit_mlps_are_normalized() -> None:
    network, batch = network_of(VIT, lr=1e-2), images()
    LayerNorms().prepare(network)
    train(network, batch)
    _, z = seen(network.module, "blocks.1.mlp.fc1", batch)
    _, h = seen(network.module, "blocks.1.mlp.act", batch)
    norm = network.module.blocks[1].mlp.act[0]
    rows = layer_norm(array(z).reshape(-1, 64), 1e-5) * array(norm.weight) + array(norm.bias)
    np.testing.assert_allclose(array(h).reshape(-1, 64), array(F.gelu(torch.from_numpy(rows))), atol=1e-5)


def test_where_every_nonlinearity_is_normalised_there_is_nothing_to_do() -> None:
    for builder in (small_resnet, convolutional):
        with pytest.raises(UserError, match="already"):
            LayerNorms().prepare(network_of(builder))
    network = network_of(MLP)
    LayerNorms().prepare(network)
    with pytest.raises(UserError, match="already"):
        LayerNorms().prepare(network)


def test_layernorms_and_paired_activations_combine_in_any_order() -> None:
    outcomes = []
    for names in (("layernorm", "crelu"), ("crelu", "layernorm")):
        network, batch = network_of(MLP), images()
        for name in names:
            method_of(name).prepare(network)
        outcomes.append(logits(network.module, batch))
        assert network.module[2][0].normalized_shape == (8,)
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("builder", ["vit", "hnt"])
def test_removing_layernorm_parameters_preserves_outputs(builder: str) -> None:
    network, batch = network_of(BUILDERS[builder], lr=1e-2), images()
    before, expected = set(state(network.module)), logits(network.module, batch)
    gone = {
        f"{n}.{p}" for n, m in network.module.named_modules() if isinstance(m, nn.LayerNorm) for p in ("weight", "bias")
    }
    AffineFree().prepare(network)
    assert set(state(network.module)) == before - gone == set(state(network.fresh())) and gone
    torch.testing.assert_close(logits(network.module, batch), expected)
    train(network, batch)
    with pytest.raises(UserError, match="no LayerNorm"):
        AffineFree().prepare(network)


# Normalize-and-Project --------------------------------------------------------------------------------------------


def stepped(builder: str, method: NormalizeAndProject, steps: int = 5) -> tuple[Network, dict[str, torch.Tensor]]:
    network, batch = network_of(BUILDERS[builder], lr=1e-2), images()
    method.prepare(network)
    start = state(network.module)
    for _ in range(steps):
        train(network, batch, 1)
        method.after_update(network)
    return network, start


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("builder", BUILDERS)
def test_each_matrix_has_its_initial_norm_after_every_update(builder: str, output: bool) -> None:
    network, start = stepped(builder, NormalizeAndProject(output=output))
    head = {"mlp": "5", "resnet": "fc"}.get(builder, "head")
    count = 0
    for name, child in network.module.named_modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            lengths = [np.linalg.norm(array(w)) for w in (child.weight, start[f"{name}.weight"])]
            kept = abs(lengths[0] / lengths[1] - 1) < 1e-5
            assert kept == (output or name != head), name
            assert not torch.equal(child.weight, start[f"{name}.weight"])
            count += 1
    assert count > 2


def test_norms_and_embeddings_are_not_projected() -> None:
    method = NormalizeAndProject("keep")
    network, batch = network_of(VIT, lr=1e-2), images()
    method.prepare(network)
    train(network, batch)
    before = state(network.module)
    method.after_update(network)
    touched = changed(before, network.module)
    assert touched == {
        *(f"blocks.{b}.{n}.weight" for b in range(2) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        *(f"blocks.{b}.mlp.fc1.bias" for b in range(2)),
        "patch_embed.proj.weight",
    }


def test_projection_before_a_norm_preserves_outputs() -> None:
    network, batch = network_of(MLP, lr=1e-2), images()
    method = NormalizeAndProject()
    method.prepare(network)
    train(network, batch)
    with torch.no_grad():
        for index in (1, 3):
            network.module[index].weight.mul_(3.0)
            network.module[index].bias.mul_(3.0)
    expected = logits(network.module, batch)
    method.after_update(network)
    torch.testing.assert_close(logits(network.module, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("affine", "left"), [("remove", 0), ("keep", 2 * (2 * 2 + 1 + 2))])
def test_scales_and_offsets_are_removed_or_kept(affine: str, left: int) -> None:
    network = network_of(VIT)
    NormalizeAndProject(affine).prepare(network)
    norms = [child for child in network.module.modules() if isinstance(child, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 1 + 2
    assert sum(len(list(norm.parameters())) for norm in norms) == left


def test_initially_zero_matrices_are_not_projected() -> None:
    def builder() -> nn.Module:
        module = MLP()
        nn.init.zeros_(module[3].weight)
        return module

    network, batch = network_of(builder, lr=1e-2), images()
    method = NormalizeAndProject()
    method.prepare(network)
    train(network, batch)
    before = state(network.module)
    method.after_update(network)
    assert changed(before, network.module) == {"1.weight", "1.bias"}
    assert float(network.module[3].weight.detach().norm()) > 0


def test_state_contains_the_initial_norms(tmp_path) -> None:
    method, resumed = NormalizeAndProject(), NormalizeAndProject()
    network, _ = stepped("mlp", method)
    torch.save(method.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(network, images(), 1)
    before = state(network.module)
    method.after_update(network)
    expected = state(network.module)
    network.module.load_state_dict(before)
    resumed.after_update(network)
    assert not changed(expected, network.module) and changed(before, network.module)


# Combination with the rest ----------------------------------------------------------------------------------------


@pytest.mark.sample(5)
@pytest.mark.parametrize("builder", ["vit", "mlp", "resnet"])
@pytest.mark.parametrize("name", ["crelu", "deep-fourier", "layernorm", "layernorm-affine-free",
                                  "normalize-and-project"])  # fmt: skip
def test_metrics_and_unit_level_methods_work_on_rebuilt_networks(builder: str, name: str) -> None:
    network, batch = network_of(BUILDERS[builder], lr=1e-2), images()
    try:
        method_of(name).prepare(network)
    except UserError:
        assert (name, builder) in {
            ("layernorm", "resnet"),
            ("layernorm-affine-free", "mlp"),
            ("layernorm-affine-free", "resnet"),
        }
        return
    train(network, batch)
    assert np.isfinite(list(plasticity_report(network, batch, state(network.module)).overall.values())).all()
    for other in ("redo", "rnr", "reset"):
        before = state(network.module)
        method_of(other, **({"tau": 1.0} if other == "redo" else {})).intervene(network, batch)
        assert changed(before, network.module), other
        assert torch.isfinite(logits(network.module, batch)).all()


@pytest.mark.parametrize("name", ["crelu", "deep-fourier", "layernorm", "normalize-and-project"])
@pytest.mark.parametrize(("role", "env"), [("dqn-mlp", "rl-cartpole"), ("sac-mlp", "rl-pendulum")])
def test_target_networks_are_rebuilt_with_their_networks(name: str, role: str, env: str) -> None:
    learner = make_agent(role, env, target_every=1, tau=0.5)
    for network in learner.networks.values():
        method_of(name).prepare(network)
    for each, target in learner.targets.items():
        mine, its = learner.networks[each].module.state_dict(), target.module.state_dict()
        assert list(mine) == list(its) and all(torch.equal(mine[key], its[key]) for key in mine)
        method_of(name).prepare(target)  # as target-policy=same does, after the rebuild
        assert list(its) == list(target.module.state_dict())
    for seed in range(3):
        learner.update(transitions(env, seed=seed))


def test_no_output_layer_is_projected() -> None:
    def build() -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
        module.add_module("head", nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)))
        return module

    network = Network(build(), None, lambda m, b: m(b).sum(), fresh=build, outputs=("head",))
    method = NormalizeAndProject()
    method.prepare(network)
    assert method._norms and not any(name.startswith("head") for name in method._norms)
