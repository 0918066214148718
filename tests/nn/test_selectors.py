from __future__ import annotations

import pytest
from torch import nn

from plastibench.config.errors import UserError
from plastibench.nn.selectors import require_match, selector
from tests.support.networks import agent_builder, small_resnet, small_vit


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
def test_parts_of_the_built_in_networks(module, part, expected):
    chosen = selector(part, module, ["head", "5", "fc"])
    found = {name for name, child in module.named_modules() if chosen(name, child)}
    assert {name for name in found if next(module.get_submodule(name).children(), None) is None} >= expected
    assert {name for name in found if list(module.get_submodule(name).parameters(recurse=False))} == expected


def select(module: nn.Module, part: str) -> set[str]:
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


def transformers_model(name: str) -> nn.Module:
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
            lambda: transformers_model("Bert"),
            "bert.encoder.layer.0",
            ["intermediate.dense", "output.dense"],
            [f"attention.self.{name}" for name in ("query", "key", "value")],
        ),
        (
            lambda: transformers_model("Llama"),
            "model.layers.0",
            ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
            [f"self_attn.{name}_proj" for name in "qkv"],
        ),
        (lambda: transformers_model("GPT2"), "transformer.h.0", ["mlp.c_fc", "mlp.c_proj"], ["attn.c_attn"]),
        (
            lambda: transformers_model("DistilBert"),
            "distilbert.transformer.layer.0",
            ["ffn.lin1", "ffn.lin2"],
            [f"attention.{name}_lin" for name in "qkv"],
        ),
    ],
    ids=["torch", "torchvision", "bert", "llama", "gpt2", "distilbert"],
)
def test_parts_of_transformers_from_other_libraries(build, prefix, mlp, qkv):
    module = build()
    assert select(module, "mlp") == {f"{prefix}.{name}" for name in mlp}
    assert select(module, "mlp-qkv") == {f"{prefix}.{name}" for name in (*mlp, *qkv)}
    assert select(module, "attention")
    assert not select(module, "attention") & select(module, "mlp")


@pytest.mark.parametrize(("expression", "problem"), [("headd", "modules='headd' matches no layer"), ("[", "modules: ")])
def test_expression_must_be_valid_and_match_a_layer(expression, problem):
    require_match("head", small_vit()(), "modules")
    with pytest.raises(UserError, match=problem):
        require_match(expression, small_vit()(), "modules")
