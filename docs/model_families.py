"""Try plastibench on models of other libraries and write the table of ``reference/models.md``.

``python docs/model_families.py`` needs timm, torchvision and transformers and takes a few minutes. All models are small
and untrained; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.diagnosis.diagnose import diagnose
from plastibench.diagnosis.loading import DiagnosisTarget
from plastibench.interventions.attach import attach
from plastibench.nn.coverage import coverage
from plastibench.nn.network import Network, eval_mode, seeded

PAGE = Path(__file__).parent / "reference" / "models.md"
MARKS = "<!-- table: python docs/model_families.py -->", "<!-- end of table -->"
COLUMNS = ("coverage", "reset", "redo", "rnr: drift", "diagnose")
SAMPLES = 16
VOCABULARY = 40


@dataclass(frozen=True)
class Family:
    """A small model of a family.

    Attributes:
        library: Where it comes from.
        make: Builds it.
        batch: Draws a batch of this many samples.
        loss: Its training loss.
    """

    library: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], TensorDict]
    loss: Callable[[nn.Module, TensorDictBase], Tensor]


# Batches and losses ---------------------------------------------------------------------------------------------------


def _images(size: int) -> Callable[[int], TensorDict]:
    def draw(count: int) -> TensorDict:
        image, label = torch.randn(count, 3, size, size), torch.randint(10, (count,))
        return TensorDict({"image": image, "label": label}, batch_size=[count])

    return draw


def _tokens(count: int) -> TensorDict:
    tokens, labels = torch.randint(3, VOCABULARY, (count, 8)), torch.randint(3, VOCABULARY, (count, 8))
    return TensorDict({"input_ids": tokens, "labels": labels}, batch_size=[count])


def _sound(count: int) -> TensorDict:
    features, labels = torch.randn(count, 8, 16), torch.randint(3, VOCABULARY, (count, 6))
    return TensorDict({"input_features": features, "labels": labels}, batch_size=[count])


def _pairs(count: int) -> TensorDict:
    return TensorDict({**_images(32)(count), "input_ids": _tokens(count)["input_ids"]}, batch_size=[count])


def _classify(module: nn.Module, batch: TensorDictBase) -> Tensor:
    found = module(batch["image"])
    return F.cross_entropy(getattr(found, "logits", found), batch["label"])


def _own_loss(module: nn.Module, batch: TensorDictBase) -> Tensor:
    loss: Tensor = module(**batch).loss
    return loss


def _match(module: nn.Module, batch: TensorDictBase) -> Tensor:
    """Distance of the embeddings of an image and its text; the contrastive loss would compare samples."""
    found = module(input_ids=batch["input_ids"], pixel_values=batch["image"])
    return 1 - F.cosine_similarity(found.image_embeds, found.text_embeds).mean()


# Models ---------------------------------------------------------------------------------------------------------------


def _timm(name: str, size: int = 32, **options: Any) -> Family:
    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=10, **options)
        return model

    return Family("timm", make, _images(size), _classify)


def _levit() -> nn.Module:
    from timm.models.levit import LevitDistilled

    model: nn.Module = LevitDistilled(
        img_size=32, num_classes=10, embed_dim=(16, 24), key_dim=8, depth=(1, 1), num_heads=(1, 2)
    )
    return model


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    model: nn.Module = MlpMixer(num_classes=10, img_size=32, patch_size=8, embed_dim=16, num_blocks=2)
    return model


def _torchvision(make: Callable[[Any], nn.Module], size: int = 32) -> Family:
    def build_model() -> nn.Module:
        import torchvision

        return make(torchvision.models)

    return Family("torchvision", build_model, _images(size), _classify)


def _convnext(models: Any) -> nn.Module:
    block = models.convnext.CNBlockConfig
    made: nn.Module = models.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=10)
    return made


def _transformers(
    kind: str,
    batch: Callable[[int], TensorDict] = _tokens,
    loss: Callable[[nn.Module, TensorDictBase], Tensor] = _own_loss,
    **options: Any,
) -> Family:
    def make() -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()
        cls = getattr(transformers, kind)
        model: nn.Module = cls(cls.config_class(**options))
        return model

    return Family("transformers", make, batch, loss)


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
_SIZES = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "max_position_embeddings": 16,
}
_KV = {**_SIZES, "num_key_value_heads": 1}
_WHISPER = {
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 1), ("ffn_dim", 32))},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16, "num_mel_bins": 8},
    **{
        "max_source_positions": 8,
        "max_target_positions": 8,
        "vocab_size": VOCABULARY,
        "decoder_start_token_id": 1,
        "suppress_tokens": None,
    },
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "begin_suppress_tokens": None},
}
_SWIN = {"image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
_TOWER = {name: _SIZES[name] for name in list(_SIZES)[:4]}

FAMILIES: dict[str, Family] = {
    "ViT": _timm("vit_tiny_patch16_224", **_VIT),
    "DeiT, distilled": _timm("deit_tiny_distilled_patch16_224", **_VIT),
    "EVA-02": _timm("eva02_tiny_patch14_224", **_VIT),
    "Swin": _timm(
        "swin_tiny_patch4_window7_224",
        **{"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
    ),
    "LeViT, distilled": Family("timm", _levit, _images(32), _classify),
    "MLP-Mixer": Family("timm", _mixer, _images(32), _classify),
    "ConvNeXt": _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 16, 24)),
    "ResNet": _timm("resnet18", channels=(4, 4, 8, 8)),
    "ByobNet": _timm("test_byobnet"),
    "EfficientNet": _timm("test_efficientnet"),
    "NFNet": _timm("test_nfnet"),
    "DenseNet": _timm("densenet121", growth_rate=4, block_config=(2, 2)),
    "MNASNet": _torchvision(lambda models: models.MNASNet(0.1, num_classes=10)),
    "SqueezeNet": _torchvision(lambda models: models.squeezenet1_1(num_classes=10)),
    "DenseNet (torchvision)": _torchvision(lambda models: models.DenseNet(4, (2, 2), 8, num_classes=10)),
    "MobileNetV2": _torchvision(lambda models: models.mobilenet_v2(num_classes=10, width_mult=0.1)),
    "ShuffleNetV2": _torchvision(
        lambda models: models.ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 48], num_classes=10), 64
    ),
    "ConvNeXt (torchvision)": _torchvision(_convnext),
    "ViT (torchvision)": _torchvision(lambda models: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)),
    "Swin (torchvision)": _torchvision(
        lambda models: models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=10)
    ),
    "BERT": _transformers("BertForMaskedLM", **_SIZES),
    "RoBERTa": _transformers("RobertaForMaskedLM", **_SIZES),
    "ELECTRA": _transformers("ElectraForMaskedLM", embedding_size=16, **_SIZES),
    "GPT-2": _transformers(
        "GPT2LMHeadModel",
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Llama": _transformers("LlamaForCausalLM", **_KV),
    "Qwen2": _transformers("Qwen2ForCausalLM", **_KV),
    "Mixtral": _transformers("MixtralForCausalLM", num_local_experts=4, **_KV),
    "T5": _transformers(
        "T5ForConditionalGeneration",
        **{"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY},
        **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
    ),
    "Whisper": _transformers("WhisperForConditionalGeneration", _sound, **_WHISPER),
    "Swin (transformers)": _transformers("SwinForImageClassification", _images(32), _classify, num_labels=10, **_SWIN),
    "CLIP": _transformers(
        "CLIPModel",
        _pairs,
        _match,
        text_config=_SIZES,
        vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    ),
    "Mamba": _transformers(
        "MambaForCausalLM",
        **{"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "state_size": 4},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}


# What is tried --------------------------------------------------------------------------------------------------------


def examine(family: Family) -> list[str]:
    """The cells of a row: ✓, a value, or the sentence that plastibench prints.

    Raises:
        AssertionError: A method that refuses has changed the model.
        Exception: Anything but a ``UserError``, which is a bug of plastibench.
    """
    network, batch, other = _prepared(family)
    return [
        _said(network, lambda: f"{100 * coverage(network, batch).fraction:.0f} %"),
        _said(network, lambda: _applied("reset", network, batch)),
        _said(network, lambda: _applied("redo", network, batch)),
        _said(network, lambda: _drift(family, other)),
        _said(network, lambda: diagnose(DiagnosisTarget("", network, batch, "noise")).verdict and "✓"),
    ]


def _prepared(family: Family) -> tuple[Network, TensorDict, TensorDict]:
    with seeded(0):
        module, batch, other = family.make(), family.batch(SAMPLES), family.batch(SAMPLES)
        with torch.no_grad():  # as after training: no output layer and no residual branch is zero
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return Network(module, None, family.loss, fresh=family.make), batch, other


def _said(network: Network, act: Callable[[], str]) -> str:
    """Run an action and return its result, or the message if it refuses; a refusal must not change the network."""
    before = copy.deepcopy(network.module.state_dict())
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return act()
    except UserError as error:
        after = network.module.state_dict()
        assert all(torch.equal(before[name], value) for name, value in after.items()), "half changed"
        return str(error)
    finally:
        network.module.load_state_dict(before)


def _applied(name: str, network: Network, batch: TensorDict) -> str:
    options = {"tau": 1.0} if name == "redo" else {}
    with attach(name, network, **options) as attached:
        return "✓" if attached.intervene(batch).parameters else "changes nothing"


def _drift(family: Family, other: TensorDict) -> str:
    """Relative change of the outputs on another batch, without and with recoupling."""
    found = []
    for name in ("low-gradient-quantile", "rnr"):
        network, batch, _ = _prepared(family)
        before = _outputs(network, other)
        with attach(name, network) as attached:
            attached.intervene(batch)
        found.append(float((_outputs(network, other) - before).norm() / before.norm()))
    return f"{found[0]:.2f} → {found[1]:.2f}"


@torch.no_grad()
def _outputs(network: Network, batch: TensorDict) -> Tensor:
    """The outputs of the module on a batch: logits or embeddings."""
    seen: list[Any] = []
    hook = network.module.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with eval_mode(network.module), seeded(0):
            network.loss(network.module, batch)
    finally:
        hook.remove()
    output = seen[0]
    if isinstance(output, Tensor):
        return output.flatten(1)
    names = [name for name in ("logits", "image_embeds", "text_embeds") if output.get(name) is not None]
    return torch.cat([output[name].flatten(1) for name in names], 1)


def table(names: list[str] | None = None) -> str:
    """The table as Markdown."""
    lines = ["| model | library | " + " | ".join(COLUMNS) + " |", "| :-- | :-- |" + " :-- |" * len(COLUMNS)]
    notes: list[str] = []
    for name in names or list(FAMILIES):
        cells = [_cell(cell, notes) for cell in examine(FAMILIES[name])]
        lines.append(f"| {name} | {FAMILIES[name].library} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. `{note}`" for number, note in enumerate(notes, 1))])


def _cell(text: str, notes: list[str]) -> str:
    """Long sentences go below the table."""
    if len(text) < 20:
        return text
    if text not in notes:
        notes.append(text)
    return f"refused ({notes.index(text) + 1})"


def main() -> None:
    """Replace the table in the page."""
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
