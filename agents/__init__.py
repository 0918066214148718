"""Agents: networks with their optimizers and updates. Importing this package registers names and imports none."""

from plastibench.registry import agents

_VIT = "plastibench.agents.vit:VisionTransformer"
_SMALL = {"patch_size": 8, "dim": 384, "heads": 6, "lr": 1e-4}

agents.add("vit-tiny", _VIT, "ViT-Tiny of the paper (A.2): patch 4, 192 wide, 12 blocks, 3 heads, lr 3e-3")
agents.add("vit-small", _VIT, "ViT-Small of the paper (A.2): patch 8, 384 wide, 12 blocks, 6 heads, lr 1e-4", **_SMALL)
agents.add("vit-tiny-hnt", _VIT, "vit-tiny as the scenario's authors built it (Lee et al. 2024)", variant="hnt")
agents.add("vit-small-hnt", _VIT, "vit-small in the manner of Lee et al. 2024", variant="hnt", **_SMALL)
agents.add(
    "vit-nano",
    _VIT,
    "4 blocks, 64 wide, for 8x8 images; trains on a CPU in seconds",
    dim=64,
    depth=4,
    heads=2,
    dropout=0.0,
    batch_size=64,
)
agents.add("mlp", "plastibench.agents.mlp:MLP", "plain ReLU network, two hidden layers of 128")
agents.add("resnet18", "plastibench.agents.resnet:ResNet18", "ResNet-18 with a 3x3 stem for small images")
agents.add("timm", "plastibench.agents.timm_model:TimmModel", "any timm model by name (--agent.model)")
