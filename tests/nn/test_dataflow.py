from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.dataflow import trace
from plastibench.nn.traced_layer import TracedLayer
from tests.support.networks import agent_builder, images, method, network_of, small_vit


def traced(builder, shape=(1, 8, 8), count: int = 4) -> dict[str, TracedLayer]:
    return {layer.name: layer for layer in trace(network_of(builder), images(count, shape))}


def traced_names(builder, shape=(1, 8, 8)) -> list[str]:
    return list(traced(builder, shape))


def block_names(blocks: int) -> list[str]:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [f"blocks.{block}.{part}" for block in range(blocks) for part in parts]


# --- order ------------------------------------------------------------------------------------------------------------


def test_vit_tiny_of_the_paper_has_75_layers_in_execution_order():
    network = network_of(agent_builder("vit-tiny", (3, 32, 32), 100))
    assert sum(p.numel() for p in network.module.parameters()) == 5_380_132
    names = [layer.name for layer in trace(network, images(4, (3, 32, 32), 100))]
    assert names == ["patch_embed.proj", *block_names(12), "norm", "head"]
    assert len(names) == 75


def test_hnt_variant_has_norms_around_its_patch_projection():
    names = traced_names(small_vit(variant="hnt"))
    assert names == [
        "patch_embed.norm_in",
        "patch_embed.proj",
        "patch_embed.norm_out",
        *block_names(2),
        "norm",
        "head",
    ]


class HeadFirst(nn.Module):
    """Registers its layers in reverse execution order, and one layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10)
        self.unused = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(6)
        self.second = nn.Linear(8, 6)
        self.first = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.relu(self.second(F.relu(self.first(x.flatten(1)))))))


def test_order_is_execution_order_without_layers_that_never_run():
    assert traced_names(HeadFirst) == ["first", "second", "norm", "head"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.shared = nn.Linear(8, 8)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x.flatten(1))))))))


def test_layer_that_runs_twice_is_listed_once_and_reads_itself():
    layers = traced(Twice)
    assert list(layers) == ["first", "shared", "last"]
    assert layers["first"].readers == ["shared"]
    assert layers["shared"].readers == ["shared", "last"]


class Positions(nn.Module):
    """Adds a learned function of positions, whose rows are not samples."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(positions, 5))
        self.bias_net = nn.Linear(5, 16)
        self.embed = nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.embed(x.flatten(1)) + self.bias_net(self.table).mean(0)))


@pytest.mark.parametrize("positions", [5, 6, 12])
def test_layer_whose_rows_are_not_samples_is_left_out(positions):
    assert traced_names(lambda: Positions(positions)) == ["embed", "head"]


def test_trace_needs_only_one_sample():
    assert list(traced(small_vit(), count=1)) == traced_names(small_vit())


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_readers_in_a_vit_block(variant):
    layers = traced(small_vit(variant=variant))
    readers = {name.removeprefix("blocks.1."): layer.readers for name, layer in layers.items() if "blocks.1." in name}
    assert readers == {
        "norm1": ["blocks.1.attn.qkv"],
        "attn.qkv": [],  # the softmax mixes tokens
        "attn.proj": [],  # later layers read the residual stream, not this layer
        "norm2": ["blocks.1.mlp.fc1"],
        "mlp.fc1": ["blocks.1.mlp.fc2"],
        "mlp.fc2": [],
    }
    assert layers["norm"].readers == ["head"]
    assert layers["head"].readers == []


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_residual_layers_of_a_vit(variant):
    residual = {name for name, layer in traced(small_vit(variant=variant)).items() if layer.residual}
    embedding = {"timm": "patch_embed.proj", "hnt": "patch_embed.norm_out"}[variant]
    assert residual == {embedding} | {
        f"blocks.{block}.{part}" for block in range(2) for part in ("attn.proj", "mlp.fc2")
    }


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_only_fc1_of_a_vit_is_activated_and_hidden(variant):
    layers = traced(small_vit(variant=variant)).values()
    expected = {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}
    assert {layer.name for layer in layers if layer.activated} == expected
    assert {layer.name for layer in layers if layer.hidden} == expected


def test_layer_scale_does_not_hide_residual_layers():
    import timm

    def scaled() -> nn.Module:
        return timm.models.vision_transformer.VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=1, num_heads=2, init_values=1e-5
        )

    residual = {name for name, layer in traced(scaled).items() if layer.residual}
    assert {"blocks.0.attn.proj", "blocks.0.mlp.fc2"} <= residual


def test_readers_in_an_mlp():
    layers = traced(agent_builder("mlp"))
    assert {name: layer.readers for name, layer in layers.items()} == {"1": ["3"], "3": ["5"], "5": []}
    assert [layer.hidden for layer in layers.values()] == [True, True, False]
    assert not any(layer.residual for layer in layers.values())


@pytest.mark.parametrize("norm", [nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.LayerNorm(8, elementwise_affine=False)])
def test_norms_without_units_pass_units_on(norm):
    layers = traced(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), norm, nn.Linear(8, 10)))
    assert layers["1"].hidden
    assert list(layers["1"].outgoing) == layers["1"].readers == ["4"]


def test_readers_in_a_resnet():
    build = agent_builder("resnet18")
    layers = traced(build)
    convolutions = [name for name, module in build().named_modules() if isinstance(module, nn.Conv2d)]
    assert set(layers) == {*convolutions, "fc"}
    inner = {name for name in convolutions if name.startswith("layer") and name.endswith("conv1")}
    assert len(inner) == 8
    assert {name for name, layer in layers.items() if layer.hidden} == inner
    assert all(layers[name].readers == [name.replace("conv1", "conv2")] for name in inner)
    assert {name for name, layer in layers.items() if layer.residual} == set(convolutions) - inner
    assert layers["conv1"].readers == ["layer1.0.conv1"]  # the shortcut reads it as well, so it is residual
    assert {name: layer.batch_norms for name, layer in layers.items() if layer.batch_norms} == {
        name: [name.replace("conv", "bn").replace("downsample.0", "downsample.1")] for name in convolutions
    }


class Flattened(nn.Module):
    """Convolutions, pooling, and a Linear that reads a flattened feature map."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=in_place)
        self.conv2 = nn.Conv2d(3, 4, 2, bias=False)
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv1(x)))
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 3)
        return self.head(self.drop(x).flatten(1))


@pytest.mark.parametrize("in_place", [False, True])
def test_readers_through_batchnorm_pooling_dropout_and_flattening(in_place):
    layers = traced(lambda: Flattened(in_place))
    assert {name: layer.readers for name, layer in layers.items()} == {
        "conv1": ["conv2"],
        "conv2": ["head"],
        "head": [],
    }
    assert [layer.activated for layer in layers.values()] == [True, True, False]


# --- no side effects -------------------------------------------------------------------------------------------------


def hooks_and_patches(module: nn.Module) -> list[object]:
    return [
        found
        for child in module.modules()
        for found in (*child._forward_hooks.values(), *child._forward_pre_hooks.values(), child.__dict__.get("forward"))
        if found is not None
    ]


def test_trace_has_no_side_effects():
    network = network_of(small_vit(dropout=0.5))
    network.module.blocks[0].eval()
    modes = [child.training for child in network.module.modules()]
    random = torch.get_rng_state()
    trace(network, images())
    assert hooks_and_patches(network.module) == []
    assert [child.training for child in network.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in network.module.parameters())


def test_trace_has_no_side_effects_when_the_loss_raises():
    network = network_of(small_vit())
    modes = [child.training for child in network.module.modules()]

    def broken(module: nn.Module, batch: object) -> Tensor:
        module(batch["image"])
        raise ArithmeticError

    network.loss = broken
    with pytest.raises(ArithmeticError):
        trace(network, images())
    assert hooks_and_patches(network.module) == []
    assert [child.training for child in network.module.modules()] == modes
    assert isinstance(torch.ones(1) + 1, Tensor)
    assert torch.overrides._get_current_function_mode_stack() == []


# --- outputs ----------------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """A class and a distillation head, a layer that no loss sees, and an auxiliary head in the middle."""

    def __init__(self, auxiliary: bool = True, frozen: bool = False) -> None:
        super().__init__()
        self.auxiliary = auxiliary
        self.first, self.early = nn.Linear(64, 8), nn.Linear(8, 10)
        self.second, self.head, self.head_dist = nn.Linear(8, 8), nn.Linear(8, 10), nn.Linear(8, 10)
        self.scale = nn.Parameter(torch.ones(10))
        self.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.flatten(1)), inplace=True)
        early = self.early(x)
        x = F.relu(self.second(x), inplace=True)
        out = (self.head(x) + self.head_dist(x).mul_(self.scale)) / 2
        return out + early if self.auxiliary else out


def outputs_of(layers: dict[str, TracedLayer]) -> set[str]:
    return {name for name, layer in layers.items() if layer.output}


@pytest.mark.parametrize("frozen", [False, True])
def test_every_layer_that_the_loss_reads_directly_is_an_output(frozen):
    assert outputs_of(traced(lambda: TwoHeads(True, frozen))) == {"early", "head", "head_dist"}
    assert outputs_of(traced(lambda: TwoHeads(False, frozen))) == {"head", "head_dist"}
    named = network_of(TwoHeads)
    named.outputs = ("head",)
    assert [layer.name for layer in trace(named, images(4)) if layer.output] == ["head"]


class Functional(nn.Module):
    """An output layer without a module of its own, which uses the weight of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 8)
        self.table = nn.Embedding(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return F.linear(x + self.second(F.relu(x)), self.table.weight)


def test_layers_before_an_output_without_a_module_are_no_outputs():
    assert outputs_of(traced(Functional)) == set()


def test_last_layer_is_the_output_of_a_loss_without_gradient():
    network = network_of(TwoHeads)
    network.loss = lambda module, batch: module(batch["image"]).detach().mean()
    assert [layer.name for layer in trace(network, images(4)) if layer.output] == ["head_dist"]


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("deit_tiny_distilled_patch16_224", {"head", "head_dist"}),
        ("levit_128s", {"head.linear", "head_dist.linear"}),
    ],
)
def test_rnr_reinitializes_no_logit_of_distilled_networks(name, heads):
    import timm

    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2} if "deit" in name else {}

    def build():
        if "levit" in name:
            return timm.models.levit.LevitDistilled(
                img_size=64, num_classes=10, in_chans=1, embed_dim=(16, 24), key_dim=8, depth=(1, 1), num_heads=(1, 2)
            )
        return timm.create_model(name, num_classes=10, in_chans=1, **small)

    network = network_of(build)
    batch = images(8, (1, 64, 64) if "levit" in name else (1, 32, 32))
    assert {layer.name for layer in trace(network, batch) if layer.output} == heads
    report = method("rnr").intervene(network, batch)
    assert report.units and not heads & report.units.keys()
    assert heads <= report.modules.keys()  # refitted
