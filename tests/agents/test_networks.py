from __future__ import annotations

import pytest
import torch
from torch import nn

from plastibench.agents.vit import VisionTransformer
from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import agents


def module_of(name: str, shape: tuple[int, int, int], classes: int, **options: object) -> nn.Module:
    entry = agents[name]
    return build(entry.load(), {**entry.defaults, **options}, name).module(shape, classes)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def vit_parameters(
    dim: int, depth: int, patch: int, size: int, channels: int, classes: int, *, hnt: bool = False
) -> int:
    tokens = (size // patch) ** 2 + 1
    linear = [(dim, dim), (dim, 4 * dim), (4 * dim, dim)]
    block = sum(i * o + o for i, o in linear) + 3 * dim * dim + (0 if hnt else 3 * dim) + 2 * 2 * dim
    embedding = channels * patch**2 * dim + dim + (2 * channels * patch**2 + 2 * dim if hnt else 0)
    return embedding + dim + tokens * dim + depth * block + 2 * dim + dim * classes + classes


def test_vit_tiny_has_as_many_parameters_as_in_timm() -> None:
    assert count(module_of("vit-tiny", (3, 32, 32), 100)) == 5_380_132  # measured for timm's vit_tiny_patch16_224
    assert vit_parameters(192, 12, 4, 32, 3, 100) == 5_380_132


@pytest.mark.parametrize(
    ("name", "size", "channels", "classes", "formula"),
    [
        ("vit-small", 64, 3, 200, vit_parameters(384, 12, 8, 64, 3, 200)),
        ("vit-small-hnt", 64, 3, 200, vit_parameters(384, 12, 8, 64, 3, 200, hnt=True)),
        ("vit-tiny-hnt", 32, 3, 100, vit_parameters(192, 12, 4, 32, 3, 100, hnt=True)),
        ("vit-nano", 8, 1, 10, vit_parameters(64, 4, 4, 8, 1, 10)),
    ],
)
def test_vit_parameter_counts_match_the_paper(name: str, size: int, channels: int, classes: int, formula: int) -> None:
    assert count(module_of(name, (channels, size, size), classes)) == formula


def test_vit_small_has_21_million_parameters_and_65_tokens() -> None:
    model = module_of("vit-small", (3, 64, 64), 200)
    assert 21.3e6 < count(model) < 21.6e6
    assert model.pos_embed.shape == (1, 65, 384)


def test_default_options_are_those_of_the_paper() -> None:
    tiny, small = (build(agents[n].load(), agents[n].defaults, n) for n in ("vit-tiny", "vit-small"))
    assert (tiny.lr, tiny.weight_decay, tiny.batch_size, tiny.clip, tiny.warmup) == (3e-3, 0.05, 256, 0.5, 0.1)
    assert (tiny.patch_size, tiny.dim, tiny.heads, tiny.depth, tiny.dropout) == (4, 192, 3, 12, 0.1)
    assert (small.lr, small.patch_size, small.dim, small.heads, small.depth) == (1e-4, 8, 384, 6, 12)
    assert (small.weight_decay, small.batch_size, small.schedule) == (0.05, 256, "cosine")


def test_vit_is_initialised_as_in_timm() -> None:
    torch.manual_seed(0)
    model = module_of("vit-tiny", (3, 32, 32), 100, depth=2)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "head.weight", "pos_embed"):
        assert float(parameters[name].std()) == pytest.approx(0.02, rel=0.05), name
    assert float(parameters["cls_token"].abs().max()) < 1e-4
    assert float(parameters["blocks.0.attn.qkv.bias"].abs().max()) == 0
    assert model.norm.eps == 1e-6


def test_hnt_variant_initialisation() -> None:
    torch.manual_seed(0)
    model = module_of("vit-tiny-hnt", (3, 32, 32), 100, depth=2).requires_grad_(False)
    assert all(block.attn.qkv.bias is None for block in model.blocks)
    assert float(model.pos_embed.std()) == pytest.approx(1, abs=0.03)
    assert float(model.pos_embed.mean()) == pytest.approx(0, abs=0.04)
    assert float(model.cls_token.std()) == pytest.approx(1, abs=0.2)
    bound = 192**-0.5  # PyTorch's Linear: uniform within 1/sqrt(inputs), also for the bias
    for weight in (model.blocks[0].attn.qkv.weight, model.blocks[1].mlp.fc1.weight, model.head.weight):
        assert float(weight.abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert 0 < float(model.head.bias.abs().max()) <= bound
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


def test_hnt_patch_embedding_matches_a_reference() -> None:
    torch.manual_seed(0)
    model = module_of("vit-tiny-hnt", (3, 8, 8), 10, depth=1, dim=12)
    images = torch.randn(2, 3, 8, 8)
    embed = model.patch_embed
    found = embed(images)
    assert found.shape == (2, 4, 12)
    for token, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        patch = images[1, :, row : row + 4, column : column + 4].permute(1, 2, 0).reshape(48)  # rows, columns, colours
        expected = embed.norm_out(embed.proj(embed.norm_in(patch)))
        torch.testing.assert_close(found[1, token], expected)


def test_dropout_covers_all_parts_but_the_head() -> None:
    model = module_of("vit-tiny", (3, 32, 32), 100, depth=1, dropout=0.25)
    block = model.blocks[0]
    assert model.pos_drop.p == block.attn.proj_drop.p == block.mlp.drop1.p == block.mlp.drop2.p == 0.25
    assert block.attn.attn_drop.p == 0.25
    assert getattr(model.head_drop, "p", 0.0) == 0.0


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("vit-nano", (1, 8, 8), {"depth": 1}),
        ("mlp", (1, 8, 8), {}),
        ("mlp", (3, 5, 7), {"hidden": 3, "width": 11}),
        ("resnet18", (3, 32, 32), {}),
        ("timm", (3, 32, 32), {"model": "resnet18"}),
        ("timm", (3, 32, 32), {"model": "vit_tiny_patch16_224"}),
    ],
)
def test_every_agent_maps_images_to_one_logit_per_class(name: str, shape: tuple[int, int, int], options: dict) -> None:
    model = module_of(name, shape, 7, **options).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_mlp_has_the_given_depth_and_width() -> None:
    model = module_of("mlp", (1, 8, 8), 10, hidden=3, width=11)
    sizes = [tuple(layer.weight.shape) for layer in model if isinstance(layer, nn.Linear)]
    assert sizes == [(11, 64), (11, 11), (11, 11), (10, 11)]
    assert sum(isinstance(layer, nn.ReLU) for layer in model) == 3


def test_resnet18_has_a_stem_for_small_images() -> None:
    model = module_of("resnet18", (3, 32, 32), 10)
    assert model.conv1.stride == (1, 1) and model.conv1.kernel_size == (3, 3)
    assert isinstance(model.maxpool, nn.Identity)
    assert 11.1e6 < count(model) < 11.3e6  # 11,173,962 in the CIFAR literature
    assert count(model) == 11_173_962


def test_invalid_options_raise_user_errors() -> None:
    with pytest.raises(UserError, match="patch-size 5 does not divide images of 8x8"):
        VisionTransformer(patch_size=5).module((1, 8, 8), 10)
    with pytest.raises(UserError, match="dim 65 is not a multiple of heads 3"):
        build(VisionTransformer, {"dim": 65}, "agent vit-tiny")
    with pytest.raises(UserError, match=r"unknown model 'resnet81'; did you mean 'resnet18'"):
        module_of("timm", (3, 32, 32), 10, model="resnet81")
