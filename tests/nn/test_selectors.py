from __future__ import annotations

import itertools

import pytest
from torch import nn

from plastibench.nn.blocks import fraction_of, input_layers, last_blocks
from plastibench.nn.selectors import selector
from tests.helpers import agent_builder, small_resnet, small_vit


def layers(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


class Ensemble(nn.Module):
    """Two critics behind an encoder, or without."""

    def __init__(self, encoder: nn.Module, critics: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(layers(4, 4, 4, 1) for _ in range(critics))


def modules(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


@pytest.mark.parametrize(
    ("module", "outputs", "k", "expected", "blocks"),
    [
        (layers(4, 4, 4, 4), ["2"], 2, ["1", "2"], 3),
        (Ensemble(nn.Identity()), ["heads.0.2", "heads.1.2"], 1, ["heads.0.2", "heads.1.2"], 3),
        (Ensemble(nn.Identity(), 1), ["heads.0.2"], 2, ["heads.0.1", "heads.0.2"], 3),
        (
            Ensemble(layers(4, 4, 4)),  # five layers on the way to each output
            ["heads.0.2", "heads.1.2"],
            4,
            ["encoder.1", *(f"heads.{n}.{m}" for n in range(2) for m in range(3))],
            5,
        ),
        (
            Ensemble(nn.Sequential(layers(4, 4), layers(4, 4))),  # blocks, and layers that follow them
            ["heads.0.2", "heads.1.2"],
            1,
            ["encoder.1.0", *(f"heads.{n}.{m}" for n in range(2) for m in range(3))],
            2,
        ),
    ],
)
def test_the_last_blocks_are_those_on_the_way_to_each_output(module, outputs, k, expected, blocks):
    assert (lambda found: (modules(found[0]), found[1]))(last_blocks(module, outputs, lambda _: k)) == (
        expected,
        blocks,
    )
    assert last_blocks(module, outputs, lambda _: blocks + 1) == ([], blocks)
    assert last_blocks(module, outputs, lambda _: 0) == ([], blocks)


@pytest.mark.parametrize(
    ("share", "count", "expected"), [(0.5, 4, 2), (0.5, 3, 2), (0.1, 10, 1), (0.3, 10, 3), (1, 7, 7)]
)
def test_a_share_of_the_blocks_is_rounded_up(share, count, expected):
    assert fraction_of(share)(count) == expected


@pytest.mark.parametrize(
    ("executed", "outputs", "expected"),
    [
        (["a", "b", "c"], ["c"], {"a"}),
        (["body.0", "advantage", "value"], ["advantage", "value"], {"body.0"}),
        (["heads.0.0", "heads.0.2", "heads.1.0", "heads.1.2"], ["heads.0.2", "heads.1.2"], {"heads.0.0", "heads.1.0"}),
        (["encoder.0", "heads.0.0", "heads.1.0"], ["heads.0.0", "heads.1.0"], {"encoder.0"}),
    ],
)
def test_each_critic_without_a_common_encoder_begins_by_itself(executed, outputs, expected):
    assert input_layers(executed, outputs) == expected


@pytest.mark.parametrize(
    ("module", "part", "expected"),
    [
        (small_vit(depth=1)(), "attention", {"blocks.0.attn.qkv", "blocks.0.attn.proj"}),
        (small_vit(depth=1)(), "mlp", {"blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}),
        (small_vit(depth=1)(), "layernorm", {"blocks.0.norm1", "blocks.0.norm2", "norm"}),
        (agent_builder("mlp")(), "mlp", {"1", "3"}),
        (small_resnet(), "attention", set()),
    ],
)
def test_parts_have_the_modules_of_their_names(module, part, expected):
    chosen = selector(part, module, ["head", "5", "fc"])
    found = {name for name, child in module.named_modules() if chosen(name, child)}
    assert {name for name in found if next(module.get_submodule(name).children(), None) is None} >= expected
    assert {name for name in found if list(module.get_submodule(name).parameters(recurse=False))} == expected


def of(module: nn.Module, part: str) -> set[str]:
    outputs = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)][-1:]
    chosen = selector(part, module, outputs)
    found = {name for name, child in module.named_modules() if chosen(name, child)}
    return {name for name in found if list(module.get_submodule(name).parameters(recurse=False))}


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    return nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3))


def torchvision_vit() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    return torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3)


def of_transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small = {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 0}
    made = {
        "Bert": ("BertForMaskedLM", {**sizes, **small}),
        "Llama": ("LlamaForCausalLM", {**sizes, **small}),
        "GPT2": ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, **small}),
        "DistilBert": ("DistilBertForMaskedLM", {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, **small}),
    }
    kind, options = made[name]
    return getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**options))


@pytest.mark.parametrize(
    ("build", "prefix", "mlp", "qkv"),
    [
        (torch_encoder, "0.layers.0", ["linear1", "linear2"], ["self_attn"]),
        (torchvision_vit, "encoder.layers.encoder_layer_0", ["mlp.0", "mlp.3"], ["self_attention"]),
        (
            lambda: of_transformers("Bert"),
            "bert.encoder.layer.0",
            ["intermediate.dense", "output.dense"],
            [f"attention.self.{name}" for name in ("query", "key", "value")],
        ),
        (
            lambda: of_transformers("Llama"),
            "model.layers.0",
            ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
            [f"self_attn.{name}_proj" for name in "qkv"],
        ),
        (lambda: of_transformers("GPT2"), "transformer.h.0", ["mlp.c_fc", "mlp.c_proj"], ["attn.c_attn"]),
        (
            lambda: of_transformers("DistilBert"),
            "distilbert.transformer.layer.0",
            ["ffn.lin1", "ffn.lin2"],
            [f"attention.{name}_lin" for name in "qkv"],
        ),
    ],
    ids=["torch", "torchvision", "bert", "llama", "gpt2", "distilbert"],
)
def test_transformers_of_other_libraries_have_the_same_parts(build, prefix, mlp, qkv):
    module = build()
    assert of(module, "mlp") == {f"{prefix}.{name}" for name in mlp}
    assert of(module, "mlp-qkv") == {f"{prefix}.{name}" for name in (*mlp, *qkv)}
    assert of(module, "attention")
    assert not of(module, "attention") & of(module, "mlp")
