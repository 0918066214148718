from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.interventions.reset import Reset
from plastibench.interventions.shrink_perturb import ShrinkPerturb
from plastibench.nn.network import Network, eval_mode
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    logits,
    loss,
    network_of,
    parameters_of,
    small_resnet,
    small_vit,
    state,
    train,
)
from tests.support.rl import rl_network

VIT = agent_builder("vit-nano")
HNT = agent_builder("vit-nano", variant="hnt")
MLP = agent_builder("mlp", width=32)
BUILDERS = {"vit": VIT, "hnt": HNT, "mlp": MLP, "resnet": small_resnet}


def in_blocks(*parts: str, blocks: range = range(4)) -> list[str]:
    return [f"blocks.{block}.{part}" for block in blocks for part in parts]


FC = in_blocks("mlp.fc1", "mlp.fc2")
EXPECTED = {  # (network, selection, k) -> prefixes of reinitialized parameters
    ("vit", "mlp", 1): FC,
    ("vit", "mlp-qkv", 1): [*FC, *in_blocks("attn.qkv")],
    ("vit", "linear", 1): [*FC, *in_blocks("attn.qkv", "attn.proj"), "head"],
    ("vit", "layernorm", 1): [*in_blocks("norm1", "norm2"), "norm"],
    ("vit", "head", 1): ["head"],
    ("vit", "last-k", 1): ["blocks.3", "norm", "head"],
    ("vit", "last-k", 2): ["blocks.2", "blocks.3", "norm", "head"],
    ("vit", "last-k", 4): ["blocks", "norm", "head"],
    ("hnt", "mlp", 1): FC,
    ("hnt", "mlp-qkv", 1): [*FC, *in_blocks("attn.qkv")],
    ("hnt", "linear", 1): [*FC, *in_blocks("attn.qkv", "attn.proj"), "head", "patch_embed.proj"],
    ("hnt", "layernorm", 1): [*in_blocks("norm1", "norm2"), "norm", "patch_embed.norm_in", "patch_embed.norm_out"],
    ("hnt", "head", 1): ["head"],
    ("hnt", "last-k", 1): ["blocks.3", "norm", "head"],
    ("hnt", "last-k", 2): ["blocks.2", "blocks.3", "norm", "head"],
    ("mlp", "mlp", 1): ["1", "3"],
    ("mlp", "mlp-qkv", 1): ["1", "3"],
    ("mlp", "linear", 1): ["1", "3", "5"],
    ("mlp", "head", 1): ["5"],
    ("mlp", "last-k", 1): ["5"],
    ("mlp", "last-k", 2): ["3", "5"],
    ("resnet", "linear", 1): ["fc"],
    ("resnet", "head", 1): ["fc"],
    ("resnet", "last-k", 1): ["layer4.1", "fc"],
    ("resnet", "last-k", 2): ["layer4", "fc"],
    ("resnet", "last-k", 3): ["layer3.1", "layer4", "fc"],
    ("vit", "later", 1): ["blocks.2", "blocks.3", "norm", "head"],
    ("hnt", "later", 1): ["blocks.2", "blocks.3", "norm", "head"],
    ("mlp", "later", 1): ["3", "5"],
    ("resnet", "later", 1): ["layer3", "layer4", "fc"],
}


def trained(name: str) -> tuple[Network, Tensor]:
    """Train so that parameters and statistics leave their initial values, and optimizer state exists."""
    network, batch = network_of(BUILDERS[name], lr=1e-2), images(16)
    train(network, batch)
    with torch.no_grad():
        network.module.train()
        network.module(batch["image"])
    return network, batch


def assert_reset(network: Network, batch, reset: Reset, expected: set[str]) -> None:
    """Check that exactly the expected parameters change and lose their optimizer state."""
    before = state(network.module)
    report = reset.intervene(network, batch)
    assert changed(before, network.module) == expected
    parameters = dict(network.module.named_parameters())
    assert {name for name, p in parameters.items() if p not in network.optimizer.state} == expected & set(parameters)
    assert report.parameters == sum(parameters[name].numel() for name in expected & set(parameters))
    revived = {name for name, mask in report.units.items() if mask.all()}
    rows = {name for name in revived if f"{name}.weight" in expected}
    assert revived == rows == set(report.units)
    for name in revived:
        assert len(report.units[name]) == len(parameters[f"{name}.weight"])


@pytest.mark.sample(10)
@pytest.mark.parametrize(("name", "select", "k"), EXPECTED, ids=lambda value: str(value))
def test_reset_reinitializes_exactly_the_selection(name, select, k):
    network, batch = trained(name)
    expected = parameters_of(network.module, EXPECTED[name, select, k])
    assert_reset(network, batch, Reset(select, k), expected)


@pytest.mark.parametrize(
    ("name", "share", "prefixes"),
    [
        ("vit", 0.75, ["blocks.1", "blocks.2", "blocks.3", "norm", "head"]),
        ("vit", 0.26, ["blocks.2", "blocks.3", "norm", "head"]),
        ("vit", 1.0, ["blocks", "norm", "head"]),
        ("resnet", 0.25, ["layer4", "fc"]),
        ("mlp", 0.1, ["5"]),
    ],
)
def test_later_layers_are_a_fraction_of_the_blocks_rounded_up(name, share, prefixes):
    network, batch = trained(name)
    assert_reset(network, batch, Reset("later", fraction=share), parameters_of(network.module, prefixes))


@pytest.mark.parametrize(
    ("name", "role", "options", "reset", "prefixes"),
    [
        ("dqn-mlp", "critic", {}, Reset("later"), ["body.2", "body.4", "advantage"]),
        ("dqn-dueling", "critic", {}, Reset("later"), ["body.2", "body.4", "advantage", "value"]),
        ("dqn-dueling", "critic", {}, Reset("last-k"), ["body.4", "advantage", "value"]),
        ("sac-mlp", "critic", {}, Reset("later"), ["heads.0.4", "heads.0.6", "heads.1.4", "heads.1.6"]),
        ("sac-mlp", "critic", {}, Reset("last-k"), ["heads.0.6", "heads.1.6"]),
        ("sac-mlp", "critic", {"critics": 1}, Reset("later"), ["heads.0.4", "heads.0.6"]),
        ("sac-mlp", "actor", {}, Reset("later"), ["body.2", "body.4", "policy"]),
    ],
    ids=str,
)
def test_last_layers_of_each_critic_in_an_ensemble_are_reset(name, role, options, reset, prefixes):
    network, batch = rl_network(name, role, **options)
    assert_reset(network, batch, reset, parameters_of(network.module, prefixes))


@pytest.mark.parametrize("name", BUILDERS)
def test_full_reset_reinitializes_every_parameter_and_buffer(name):
    network, batch = trained(name)
    assert_reset(network, batch, Reset("all"), set(state(network.module)))


def test_full_reset_resets_batchnorm_statistics():
    network, batch = trained("resnet")
    norm = network.module.bn1
    assert float(norm.running_mean.abs().max()) > 0
    Reset("all").intervene(network, batch)
    assert float(norm.running_mean.abs().max()) == 0
    assert (norm.running_var == 1).all()
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("select", "norms"),
    [("linear", ()), ("head", ()), ("last-k", ("layer4.1.",)), ("later", ("layer3.", "layer4."))],
)
def test_partial_reset_resets_statistics_of_selected_norms(select, norms):
    network, batch = trained("resnet")
    before = {key: buffer.clone() for key, buffer in network.module.named_buffers()}
    Reset(select).intervene(network, batch)
    for key, buffer in network.module.named_buffers():
        if key.startswith(norms):
            assert torch.equal(buffer, torch.full_like(buffer, float(key.endswith("var")))), key
        else:
            assert torch.equal(buffer, before[key]), key


def test_loss_stays_bounded_after_a_reset_of_later_layers_in_a_resnet():
    network, batch = trained("resnet")
    Reset("later").intervene(network, batch)
    with eval_mode(network.module), torch.no_grad():
        assert float(loss(network.module, batch)) < 2 * math.log(10)


@pytest.mark.parametrize("method", [Reset("all"), Reset("later"), Reset("linear"), ShrinkPerturb(0.5, 0.5)])
def test_frozen_parameters_are_kept(method):
    network, batch = trained("vit")
    block = network.module.blocks[1].requires_grad_(False)
    before = state(network.module)
    method.intervene(network, batch)
    moved = changed(before, network.module)
    assert "head.weight" in moved
    assert not {name for name in moved if name.startswith("blocks.1.")}
    assert all(torch.equal(value, before[f"blocks.1.{name}"]) for name, value in block.state_dict().items())


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (r"attn\.proj|pos_embed", [*in_blocks("attn.proj"), "pos_embed"]),
        (r"blocks\.0.*bias$", None),
        (r"^cls_token$", ["cls_token"]),
    ],
)
def test_match_selects_parameters_by_name_and_overrides_select(match, expected):
    network, batch = trained("vit")
    names = parameters_of(network.module, expected) if expected else {
        name for name, _ in network.module.named_parameters() if name.startswith("blocks.0.") and name.endswith("bias")
    }  # fmt: skip
    before = state(network.module)
    Reset("all", match=match).intervene(network, batch)
    assert changed(before, network.module) == names


# --- initialization ---------------------------------------------------------------------------------------------------


def deviation(*parameters: Tensor) -> float:
    return float(torch.cat([p.detach().flatten() for p in parameters]).std())


def linears(module: nn.Module) -> list[nn.Linear]:
    return [child for child in module.modules() if isinstance(child, nn.Linear)]


def norms(module: nn.Module) -> list[nn.Module]:
    return [child for child in module.modules() if isinstance(child, nn.LayerNorm | nn.BatchNorm2d)]


def redrawn(name: str) -> nn.Module:
    network, batch = trained(name)
    Reset("all").intervene(network, batch)
    return network.module


def test_timm_vit_uses_its_truncated_normal_initialization():
    module = redrawn("vit")
    assert deviation(*(linear.weight for linear in linears(module))) == pytest.approx(0.02, rel=0.02)
    assert all((linear.bias == 0).all() for linear in linears(module))
    assert deviation(module.pos_embed) == pytest.approx(0.02, rel=0.15)
    assert deviation(module.cls_token) < 1e-5
    bound = 1 / math.sqrt(16)  # default initialization of the patch projection, a convolution
    assert deviation(module.patch_embed.proj.weight) == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("name", ["hnt", "mlp"])
def test_linears_of_hnt_and_mlp_use_the_default_initialization(name):
    module = redrawn(name)
    for linear in linears(module):
        bound = 1 / math.sqrt(linear.in_features)
        assert float(linear.weight.detach().abs().max()) <= bound
        assert deviation(linear.weight) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        if linear.bias is not None:
            assert 0 < float(linear.bias.detach().abs().max()) <= bound
    if name == "hnt":
        assert deviation(module.pos_embed) == pytest.approx(1.0, rel=0.2)
        assert deviation(module.cls_token) == pytest.approx(1.0, rel=0.4)


def test_resnet_stem_uses_the_initialization_of_its_agent():
    builder = agent_builder("resnet18")
    network = network_of(builder)
    nn.init.zeros_(network.module.conv1.weight)
    Reset(match=r"^conv1\.").intervene(network, images())
    assert deviation(network.module.conv1.weight) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)


@pytest.mark.parametrize("name", BUILDERS)
def test_norms_are_reset_to_the_identity(name):
    for norm in norms(redrawn(name)):
        assert (norm.bias == 0).all()
        if not hasattr(norm, "running_mean"):
            assert (norm.weight == 1).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_two_resets_draw_different_weights(name):
    network, batch = trained(name)
    Reset("all").intervene(network, batch)
    first, output = state(network.module), logits(network.module, batch)
    Reset("all").intervene(network, batch)
    random = {n for n, p in network.module.named_parameters() if p.ndim > 1}
    assert random <= changed(first, network.module)
    assert not torch.allclose(output, logits(network.module, batch), atol=1e-3)


def test_two_networks_with_equal_generators_draw_equal_weights():
    networks = []
    for _ in range(2):
        network, batch = trained("vit")
        Reset("linear").intervene(network, batch)
        networks.append(state(network.module))
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reset"),
    [
        ("mlp", Reset("layernorm")),
        ("resnet", Reset("layernorm")),
        ("resnet", Reset("mlp")),
        ("vit", Reset(match="nothing-like-this")),
        ("vit", Reset("last-k", k=5)),
        ("mlp", Reset("last-k", k=9)),
        ("vit", Reset("later", fraction=0.0)),
        ("resnet", Reset("last-k", k=9)),
        ("vit", Reset(match="(")),
    ],
    ids=str,
)
def test_invalid_selection_is_a_user_error_and_changes_nothing(name, reset):
    network, batch = trained(name)
    before = state(network.module)
    with pytest.raises(UserError):
        reset.intervene(network, batch)
    assert not changed(before, network.module)


def test_without_a_builder_parameters_of_unknown_origin_are_an_error():
    network, batch = network_of(small_vit(), fresh=False), images()
    before = state(network.module)
    with pytest.raises(UserError, match=r"cls_token|pos_embed"):
        Reset("all").intervene(network, batch)
    assert not changed(before, network.module)


def test_without_a_builder_known_modules_are_redrawn_by_their_own_rule():
    network, batch = network_of(small_vit(), fresh=False), images()
    before = state(network.module)
    Reset("mlp").intervene(network, batch)
    expected = parameters_of(network.module, in_blocks("mlp.fc1", "mlp.fc2", blocks=range(2)))
    assert changed(before, network.module) == expected
    assert deviation(network.module.blocks[0].mlp.fc1.weight) == pytest.approx(1 / math.sqrt(3 * 16), rel=0.1)
