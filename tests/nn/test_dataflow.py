from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastibench.nn.activations import for_each_activation
from plastibench.nn.dataflow import trace
from plastibench.nn.traced_layer import TracedLayer
from plastibench.nn.unit_statistics import measure_units
from plastibench.nn.units import has_units
from tests.helpers import agent_builder, images, network_of, small_vit


def traced(builder, shape=(1, 8, 8), count: int = 4) -> dict[str, TracedLayer]:
    return {unit.name: unit for unit in trace(network_of(builder), images(count, shape))}


def numbered(builder, shape=(1, 8, 8)) -> list[str]:
    return list(traced(builder, shape))


def block_names(blocks: int) -> list[str]:
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    return [f"blocks.{block}.{part}" for block in range(blocks) for part in parts]


# --- order ------------------------------------------------------------------------------------------------------------


def test_vit_tiny_of_the_paper_has_75_modules_in_execution_order():
    network = network_of(agent_builder("vit-tiny", (3, 32, 32), 100))
    assert sum(p.numel() for p in network.module.parameters()) == 5_380_132
    names = [unit.name for unit in trace(network, images(4, (3, 32, 32), 100))]
    assert names == ["patch_embed.proj", *block_names(12), "norm", "head"]
    assert len(names) == 75


def test_the_hnt_variant_has_norms_around_its_patch_projection():
    names = numbered(small_vit(variant="hnt"))
    assert names == [
        "patch_embed.norm_in",
        "patch_embed.proj",
        "patch_embed.norm_out",
        *block_names(2),
        "norm",
        "head",
    ]


class HeadFirst(nn.Module):
    """Registers in the reverse of the order in which it runs, and one module that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10)
        self.unused = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(6)
        self.second = nn.Linear(8, 6)
        self.first = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(F.relu(self.second(F.relu(self.first(x.flatten(1)))))))


def test_the_order_is_that_of_execution_and_modules_that_never_run_are_left_out():
    assert numbered(HeadFirst) == ["first", "second", "norm", "head"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.shared = nn.Linear(8, 8)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x.flatten(1))))))))


def test_a_module_that_runs_twice_is_listed_once_and_reads_itself():
    units = traced(Twice)
    assert list(units) == ["first", "shared", "last"]
    assert units["first"].readers == ["shared"]
    assert units["shared"].readers == ["shared", "last"]


class Positions(nn.Module):
    """Adds a learned function of positions, whose rows belong to no sample."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(positions, 5))
        self.bias_net = nn.Linear(5, 16)
        self.embed = nn.Linear(64, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.embed(x.flatten(1)) + self.bias_net(self.table).mean(0)))


@pytest.mark.parametrize("positions", [5, 6, 12])
def test_a_module_whose_rows_are_no_samples_is_left_out(positions):
    assert numbered(lambda: Positions(positions)) == ["embed", "head"]


def test_one_sample_is_enough():
    assert list(traced(small_vit(), count=1)) == numbered(small_vit())


# --- who reads whom ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_flow_of_a_vit_block(variant):
    units = traced(small_vit(variant=variant))
    readers = {name.removeprefix("blocks.1."): unit.readers for name, unit in units.items() if "blocks.1." in name}
    assert readers == {
        "norm1": ["blocks.1.attn.qkv"],
        "attn.qkv": [],  # the softmax mixes tokens
        "attn.proj": [],  # all that follows reads the stream it writes to
        "norm2": ["blocks.1.mlp.fc1"],
        "mlp.fc1": ["blocks.1.mlp.fc2"],
        "mlp.fc2": [],
    }
    assert units["norm"].readers == ["head"]
    assert units["head"].readers == []


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_residual_writers_of_a_vit(variant):
    writers = {name for name, unit in traced(small_vit(variant=variant)).items() if unit.residual}
    embedding = {"timm": "patch_embed.proj", "hnt": "patch_embed.norm_out"}[variant]
    assert writers == {embedding} | {
        f"blocks.{block}.{part}" for block in range(2) for part in ("attn.proj", "mlp.fc2")
    }


@pytest.mark.parametrize("variant", ["timm", "hnt"])
def test_only_fc1_of_a_vit_is_activated_and_hidden(variant):
    units = traced(small_vit(variant=variant)).values()
    expected = {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}
    assert {unit.name for unit in units if unit.activated} == expected
    assert {unit.name for unit in units if unit.hidden} == expected


def test_layer_scale_does_not_hide_residual_writers():
    import timm

    def scaled() -> nn.Module:
        return timm.models.vision_transformer.VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=1, num_heads=2, init_values=1e-5
        )

    writers = {name for name, unit in traced(scaled).items() if unit.residual}
    assert {"blocks.0.attn.proj", "blocks.0.mlp.fc2"} <= writers


def test_flow_of_an_mlp():
    units = traced(agent_builder("mlp"))
    assert {name: unit.readers for name, unit in units.items()} == {"1": ["3"], "3": ["5"], "5": []}
    assert [unit.hidden for unit in units.values()] == [True, True, False]
    assert not any(unit.residual for unit in units.values())


@pytest.mark.parametrize("norm", [nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.LayerNorm(8, elementwise_affine=False)])
def test_norms_that_have_no_units_of_their_own_pass_units_on(norm):
    units = traced(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), norm, nn.Linear(8, 10)))
    assert units["1"].hidden
    assert list(units["1"].outgoing) == units["1"].readers == ["4"]


def test_flow_of_a_resnet():
    build = agent_builder("resnet18")
    units = traced(build)
    convolutions = [name for name, module in build().named_modules() if isinstance(module, nn.Conv2d)]
    assert set(units) == {*convolutions, "fc"}
    inner = {name for name in convolutions if name.startswith("layer") and name.endswith("conv1")}
    assert len(inner) == 8
    assert {name for name, unit in units.items() if unit.hidden} == inner
    assert all(units[name].readers == [name.replace("conv1", "conv2")] for name in inner)
    assert {name for name, unit in units.items() if unit.residual} == set(convolutions) - inner
    assert units["conv1"].readers == ["layer1.0.conv1"]  # and the shortcut, hence residual
    assert {name: unit.batch_norms for name, unit in units.items() if unit.batch_norms} == {
        name: [name.replace("conv", "bn").replace("downsample.0", "downsample.1")] for name in convolutions
    }


class Flattened(nn.Module):
    """Convolutions, a pooling, and a Linear behind a flattened map."""

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
def test_flow_through_convolutions_batchnorm_pooling_dropout_and_flattening(in_place):
    units = traced(lambda: Flattened(in_place))
    assert {name: unit.readers for name, unit in units.items()} == {"conv1": ["conv2"], "conv2": ["head"], "head": []}
    assert [unit.activated for unit in units.values()] == [True, True, False]


class Functional(nn.Module):
    def __init__(self, activation) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.head = nn.Linear(8, 10)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.first(x.flatten(1))))


ACTIVATIONS = {
    "F.relu": F.relu,
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "relu in place": lambda x: F.relu(x, inplace=True),
    "F.gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": lambda x: x.sigmoid(),
    "elu": F.elu,
    "leaky": F.leaky_relu,
    "softplus": F.softplus,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
    "sin": torch.sin,
    "module": nn.GELU(approximate="tanh"),
    "prelu": nn.PReLU(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
def test_activations_are_seen_however_they_are_called(activation):
    unit = traced(lambda: Functional(activation))["first"]
    assert unit.activated
    assert unit.readers == ["head"]


GATES = {
    "x sigmoid": (lambda x: x * torch.sigmoid(x), F.silu),
    "sigmoid x": (lambda x: x.sigmoid() * x, F.silu),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x: F.silu(1.702 * x) / 1.702),
    "hardswish": (lambda x: x * F.hardsigmoid(x), F.hardswish),
}


@pytest.mark.parametrize(("gated", "plain"), GATES.values(), ids=GATES.keys())
def test_a_nonlinearity_written_as_a_gate_is_measured_as_the_product(gated, plain):
    batch, found = images(30), []
    for activation in (gated, lambda x: plain(x)):
        network = network_of(lambda activation=activation: Functional(activation))
        with torch.no_grad():
            network.module.first.weight[:3] = 0.0
            network.module.first.bias[:3] = 0.0  # h is 0, and the gate 1/2
        units = trace(network, batch)
        assert units[0].activated and units[0].readers == ["head"]
        seen = []
        for_each_activation(network, batch, units[:1], lambda unit, h, seen=seen: seen.append(h.clone()))
        found.append((measure_units(network, batch, units[:1])["first"], torch.cat(seen)))
    (mine, rows), (reference, expected) = found
    assert (mine.activation[:3] == 0).all()
    factor = (rows / expected)[:, 3:].mean()  # functions that differ by a constant factor have the same dead units
    torch.testing.assert_close(rows, expected * factor, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine.activation, reference.activation * factor, atol=1e-6, rtol=1e-4)
    if factor.isclose(torch.tensor(1.0)):
        torch.testing.assert_close(mine.post_gradient, reference.post_gradient, atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(mine.pre_gradient, reference.pre_gradient, atol=1e-7, rtol=1e-4)


def test_a_gate_on_something_else_is_the_nonlinearity_itself():
    class Excite(nn.Module):
        """Squeeze and excite: another module's output is the gate."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(self.first(x.flatten(1)))
            return self.head(z * torch.sigmoid(self.gate(z)))

    network, batch = network_of(Excite), images(20)
    units = {unit.name: unit for unit in trace(network, batch)}
    assert units["gate"].activated and not units["gate"].columns and not units["gate"].hidden
    z = F.relu(network.module.first(batch["image"].flatten(1)))
    expected = torch.sigmoid(network.module.gate(z)).mean(0).double()
    torch.testing.assert_close(
        measure_units(network, batch, [units["gate"]])["gate"].activation, expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("nothing", [nn.Identity(), lambda x: 2 * x, lambda x: x.softmax(-1)])
def test_what_is_no_activation_is_not_taken_for_one(nothing):
    assert not traced(lambda: Functional(nothing))["first"].activated


@pytest.mark.parametrize(
    "merge",
    [
        lambda a, b: a + b,
        lambda a, b: torch.add(b, a),
        lambda a, b: torch.cat([b, a], 1)[:, :8],
        lambda a, b: torch.stack([a, b]).sum(0),
        lambda a, b: b.clone().add_(a),
        lambda a, b: b - a,
    ],
)
def test_merging_into_a_stream_is_seen_however_it_is_written(merge):
    stream = torch.ones(1, 8)

    def activation(x: Tensor) -> Tensor:
        return merge(x, stream.expand(len(x), 8))

    unit = traced(lambda: Functional(activation))["first"]
    assert unit.residual
    assert not unit.hidden
    assert unit.readers == []


# --- which modules have units -----------------------------------------------------------------------------------------


def test_units_are_rows_filters_and_features_only():
    yes = [nn.Linear(2, 3), nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.LayerNorm(4, bias=False)]
    no = [
        nn.LayerNorm((2, 4)),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.BatchNorm2d(3),
        nn.GroupNorm(1, 3),
        nn.Embedding(3, 4),
        nn.Sequential(nn.Linear(2, 3)),
    ]
    assert all(map(has_units, yes))
    assert not any(map(has_units, no))


def hooks_and_patches(module: nn.Module) -> list[object]:
    return [
        found
        for child in module.modules()
        for found in (*child._forward_hooks.values(), *child._forward_pre_hooks.values(), child.__dict__.get("forward"))
        if found is not None
    ]


def test_tracing_leaves_nothing_behind():
    network = network_of(small_vit(dropout=0.5))
    network.module.blocks[0].eval()
    modes = [child.training for child in network.module.modules()]
    random = torch.get_rng_state()
    trace(network, images())
    assert hooks_and_patches(network.module) == []
    assert [child.training for child in network.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in network.module.parameters())


def test_tracing_leaves_nothing_behind_when_the_loss_raises():
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
