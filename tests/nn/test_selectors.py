from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plastibench.config.errors import UserError
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.nn.selectors import attention_of, require_match, selector
from tests.support.networks import (
    agent_builder,
    changed,
    images,
    method,
    network_of,
    parameters_of,
    small_resnet,
    small_vit,
    state,
)


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


T5 = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
WHISPER = {
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 1), ("ffn_dim", 16))},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 8, "num_mel_bins": 4},
    **{"max_source_positions": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0},
}


def transformers_model(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small = {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 0}
    made = {
        "Bert": ("BertForMaskedLM", {**sizes, **small}),
        "Llama": ("LlamaForCausalLM", {**sizes, **small}),
        "GPT2": ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, **small}),
        "T5": ("T5ForConditionalGeneration", {**T5, **small, "decoder_start_token_id": 0}),
        "Mixtral": ("MixtralForCausalLM", {**sizes, **small, "num_key_value_heads": 2, "num_local_experts": 3}),
        "Whisper": ("WhisperForConditionalGeneration", {**WHISPER, "vocab_size": 9}),
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


def tokens(module: nn.Module, batch: TensorDict) -> Tensor:
    extra = {"decoder_input_ids": batch["ids"]} if module.config.is_encoder_decoder else {}
    inputs = {"input_features": batch["sound"]} if "Whisper" in type(module).__name__ else {"input_ids": batch["ids"]}
    return F.cross_entropy(module(**inputs, **extra).logits.flatten(0, 1), batch["ids"].flatten())


def observed(network: Network, batch: TensorDict, part: str) -> set[str]:
    outputs = [layer.name for layer in trace(network, batch) if layer.output]
    chosen = selector(part, network.module, outputs, attention_of(network, batch))
    found = {name for name, child in network.module.named_modules() if chosen(name, child)}
    return {name for name in found if list(network.module.get_submodule(name).parameters(recurse=False))}


FAMILIES = {
    "Bert": (["attention.self.query", "attention.self.key", "attention.self.value"], ["attention.output.dense"], 2),
    "Llama": (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"], 3),
    "GPT2": (["attn.c_attn"], ["attn.c_proj"], 2),
    "DistilBert": (["attention.q_lin", "attention.k_lin", "attention.v_lin"], ["attention.out_lin"], 2),
    "T5": ([f"Attention.{name}" for name in "qkv"], ["Attention.o"], 4),
    "Mixtral": (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"], 2),
    "Whisper": ([f"attn.{name}_proj" for name in "qkv"], ["attn.out_proj"], 4),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_parts_are_found_by_what_feeds_attention(name, fused):
    qkv, projections, blocks_have = FAMILIES[name]
    module = transformers_model(name)
    if not fused:
        module.set_attn_implementation("eager")
    batch = TensorDict({"ids": torch.randint(1, 9, (2, 4)), "sound": torch.randn(2, 4, 16)}, batch_size=[2])
    network = Network(module, None, tokens)
    mlp, joint, attention = (observed(network, batch, part) for part in ("mlp", "mlp-qkv", "attention"))
    names = [child for child, kind in module.named_modules() if list(kind.parameters(recurse=False))]
    ends = {child for child in names if child.endswith(tuple(qkv))}
    assert ends and joint - mlp == ends
    assert attention == ends | {child for child in names if child.endswith(tuple(projections))}
    assert len(mlp) == blocks_have and not mlp & attention
    assert all(re.search(r"mlp|ffn|DenseReluDense|fc[12]$|intermediate|output.dense", child) for child in mlp)


class Plain(nn.Module):
    """A transformer block whose names say nothing, with a rotary-like function between projections and attention."""

    def __init__(self, manual: bool) -> None:
        super().__init__()
        self.manual = manual
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.e, self.f, self.n = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).reshape(*x.shape[:2], 2, 4).transpose(1, 2) for layer in (self.c, self.a, self.d))
        q, k = self.n(q) * 0.5, torch.cat([-k[..., 2:], k[..., :2]], -1)
        if self.manual:
            y = F.dropout((q @ k.mT + torch.ones(4, 4).triu()).softmax(-1), 0.1, self.training) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.b(y.transpose(1, 2).flatten(2))
        return x + self.f(F.gelu(self.e(x)))


class Named(nn.Module):
    def __init__(self, manual: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Plain(manual) for _ in range(2))
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.reshape(len(x), 4, 16))
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean(1))


@pytest.mark.parametrize("manual", [True, False])
def test_names_do_not_matter_if_attention_is_observed(manual):
    network, batch = network_of(lambda: Named(manual)), images(4)

    def layers(letters: str) -> set[str]:
        return {f"blocks.{block}.{letter}" for block in range(2) for letter in letters}

    assert observed(network, batch, "mlp") == layers("ef")
    assert observed(network, batch, "mlp-qkv") == layers("acdef")
    assert observed(network, batch, "attention") == layers("abcd")
    before = state(network.module)
    method("reset-mlp").intervene(network, batch)
    assert changed(before, network.module) == parameters_of(network.module, layers("ef"))
    report = method("rnr-attention").intervene(network, batch)
    assert {name for name, values in report.modules.items() if "residual" in values} <= layers("abcd")


@pytest.mark.parametrize("part", ["mlp", "mlp-qkv", "attention"])
def test_observed_parts_of_the_built_in_networks_are_those_by_name(part):
    for builder in (small_vit(), small_vit(variant="hnt"), agent_builder("mlp"), small_resnet):
        network = network_of(builder)
        outputs = [layer.name for layer in trace(network, images()) if layer.output]
        chosen = selector(part, network.module, outputs)
        by_name = {name for name, child in network.module.named_modules() if chosen(name, child)}
        assert observed(network, images(), part) == by_name


@pytest.mark.parametrize(("expression", "problem"), [("headd", "modules='headd' matches no layer"), ("[", "modules: ")])
def test_expression_must_be_valid_and_match_a_layer(expression, problem):
    require_match("head", small_vit()(), "modules")
    with pytest.raises(UserError, match=problem):
        require_match(expression, small_vit()(), "modules")


class Checkpointed(Named):
    def __init__(self, reentrant: bool) -> None:
        super().__init__(manual=False)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.reshape(len(x), 4, 16))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.last(x.mean(1))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_have_outputs_and_parts(reentrant):
    network, batch = network_of(lambda: Checkpointed(reentrant)), images(4)
    assert [layer.name for layer in trace(network, batch) if layer.output] == ["last"]
    before = state(network.module)
    method("reset-mlp").intervene(network, batch)
    expected = {f"blocks.{block}.{letter}" for block in range(2) for letter in "ef"}
    assert changed(before, network.module) == parameters_of(network.module, expected)


class TalkingHeads(nn.Module):
    """Attention whose weights are mixed between heads (CaiT), with a temperature for each head (Swin V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.mix = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(2, 2)
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = self.mix((q @ k.mT * self.temperature).softmax(-1).movedim(1, -1)).movedim(-1, 1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mixed(nn.Module):
    """A block with each kind of attention: only the second operation can be observed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for attention in (TalkingHeads(), Fused()):
            block = nn.Module()
            block.attn, block.fc1, block.fc2 = attention, nn.Linear(8, 16), nn.Linear(16, 8)
            self.blocks.append(block)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).view(len(x), 8, 8)
        for block in self.blocks:
            x = x + block.attn(x)
            x = x + block.fc2(F.relu(block.fc1(x)))
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("mlp", {"blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1", "blocks.1.fc2"}),
        (
            "attention",
            {"blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.attn.mix", "blocks.1.attn.qkv", "blocks.1.attn.proj"},
        ),
    ],
)
def test_attention_that_is_not_observed_is_found_by_name(part: str, expected: set[str]) -> None:
    network, batch = network_of(Mixed), images(4)
    assert observed(network, batch, part) == expected
    if part == "mlp":
        assert observed(network, batch, "mlp-qkv") == expected | {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
