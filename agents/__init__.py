"""Agents: networks with their optimizers and updates. Importing this package registers names and imports none."""

from plastibench.config.registry import agents

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

_DQN = "plastibench.agents.dqn:DQN"
_SAC = "plastibench.agents.sac:SAC"
_IMAGES = {"hidden": (128,), "lr": 3e-4, "batch_size": 32}

agents.add(
    "dqn-mlp",
    _DQN,
    "double DQN, hidden layers of 120 and 84, tuned to CartPole as in CleanRL",
    hidden=(120, 84),
    lr=2.5e-4,
    replay_ratio=0.1,
    target_every=50,
    exploration=0.5,
    buffer_size=10_000,
    learning_starts=10_000,
)
agents.add("dqn-cnn", _DQN, "double DQN on images: the network of MinAtar or of Nature", encoder="cnn", **_IMAGES)
agents.add("dqn-impala", _DQN, "double DQN with the residual network of IMPALA", encoder="impala", **_IMAGES)
agents.add("dqn-vit", _DQN, "double DQN with a small vision transformer", encoder="vit", **_IMAGES)
agents.add("sac-mlp", _SAC, "soft actor-critic, two critics with two hidden layers of 256; any actions")
agents.add("sac-cnn", _SAC, "soft actor-critic on images", encoder="cnn", **_IMAGES)
agents.add("sac-vit", _SAC, "soft actor-critic with a small vision transformer", encoder="vit", **_IMAGES)
