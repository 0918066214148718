"""Environments: task streams over image data, and reinforcement learning. Importing this package registers names."""

from __future__ import annotations

from typing import Any

import gymnasium

from plastibench.config.registry import envs

_GROWING = "plastibench.envs.growing:Growing"
_RELABEL = "plastibench.envs.relabel:Relabel"
_PERMUTED = "plastibench.envs.permuted:Permuted"
_WARM = "plastibench.envs.warm:WarmStart"
_INCREMENTAL = "plastibench.envs.incremental:Incremental"
_TINY = {"epochs": 40, "evaluate_every": 5}  # paper, section 4

envs.add(
    "cl-digits",
    _GROWING,
    "the paper's growing, ever cleaner data in small: 200 8x8 digits; no download, about a minute on a CPU",
    dataset="digits",
    train_size=200,
    epochs=150,
    evaluate_every=50,
    augment="none",
)
envs.add("cl-mnist", _GROWING, "growing, ever cleaner MNIST", dataset="mnist", augment="none")
envs.add("cl-fashion-mnist", _GROWING, "growing, ever cleaner Fashion-MNIST", dataset="fashion-mnist", augment="none")
envs.add("cl-cifar10", _GROWING, "growing, ever cleaner CIFAR-10", dataset="cifar10")
envs.add("cl-cifar100", _GROWING, "the paper's scenario: growing, ever cleaner CIFAR-100", dataset="cifar100")
envs.add(
    "cl-tiny-imagenet",
    _GROWING,
    "the paper's second scenario: growing, ever cleaner Tiny-ImageNet",
    dataset="tiny-imagenet",
    **_TINY,
)
envs.add("cl-imagefolder", _GROWING, "growing, ever cleaner images of your own (--env.path)", dataset="imagefolder")
envs.add(
    "relabel-digits",
    _RELABEL,
    "1,200 digits whose labels are drawn at random anew for each of 20 tasks; seconds on a CPU",
    dataset="digits",
    train_size=1200,
)

envs.add(
    "permuted-digits",
    _PERMUTED,
    "200 of 1,200 digits in each of 50 tasks, pixels change places anew; ten seconds with mlp on a CPU",
    dataset="digits",
    samples=200,
)
envs.add(
    "warm-digits",
    _WARM,
    "40 digits, then 200; seconds with mlp on a CPU",
    dataset="digits",
    train_size=200,
    epochs=400,
    evaluate_every=100,
    augment="none",
    share=0.2,
)
envs.add(
    "incremental-digits",
    _INCREMENTAL,
    "200 digits whose classes arrive in five pairs; seconds with mlp on a CPU",
    dataset="digits",
    train_size=200,
    evaluate_every=50,
    augment="none",
)

_DATA = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny-ImageNet",
    "imagefolder": "images of your own (--env.path)",
}
_GROUPS = {"cifar100": 20, "tiny-imagenet": 40}  # of five classes
for _data, _title in _DATA.items():
    _options: dict[str, Any] = {"dataset": _data, **(_TINY if _data == "tiny-imagenet" else {})}
    if "mnist" in _data:
        _options["augment"] = "none"
    _few = {} if _data == "imagefolder" else {"train_size": 1200}
    envs.add(f"relabel-{_data}", _RELABEL, f"random labels, drawn anew for each task: {_title}", dataset=_data, **_few)
    envs.add(f"permuted-{_data}", _PERMUTED, f"pixels change places anew for each task: {_title}", dataset=_data)
    envs.add(f"warm-{_data}", _WARM, f"half of the data, then all of it: {_title}", **_options)
    _groups = _GROUPS.get(_data, 5)
    envs.add(f"incremental-{_data}", _INCREMENTAL, f"classes arrive in groups: {_title}", groups=_groups, **_options)

for _name in envs.builtin:
    gymnasium.register(
        f"plastibench/{_name}-v0",
        entry_point="plastibench.envs.task_stream_config:make_task_stream",
        kwargs={"name": _name},
    )

_CONTROL = "plastibench.envs.rl_env:RLEnvConfig"
_MINATAR = "plastibench.envs.minatar:MinAtar"

envs.add("gym", _CONTROL, "any gymnasium environment (--env.id)")
envs.add(
    "rl-cartpole",
    _CONTROL,
    "CartPole-v1; two minutes with dqn-mlp on a CPU",
    id="CartPole-v1",
    steps=500_000,
    envs=32,
    evaluate_every=25_000,
)
envs.add(
    "rl-pendulum", _CONTROL, "Pendulum-v1; four minutes with sac-mlp on a CPU", id="Pendulum-v1", steps=20_000, envs=4
)
for _game in ("asterix", "breakout", "freeway", "seaquest", "space-invaders"):
    envs.add(f"rl-minatar-{_game}", _MINATAR, f"MinAtar {_game}: 10x10 cells", id=_game)
envs.add(
    "rl-minatar-permuted",
    "plastibench.envs.minatar:PermutedMinAtar",
    "MinAtar Breakout whose channels change places at every switch",
)
envs.add(
    "rl-minatar-sequence", "plastibench.envs.minatar:MinAtarSequence", "MinAtar games one after another, six actions"
)
envs.add(
    "rl-bandit-digits",
    "plastibench.envs.bandit:DigitsBandit",
    "400 digits, each with a paying action that is drawn anew for each of 10 tasks; two minutes on a CPU",
)
envs.add("rl-slippery-ant", "plastibench.envs.mujoco:SlipperyAnt", "MuJoCo ant whose ground changes its friction")
envs.add_family("rl-atari-", "plastibench.envs.atari:Atari", "any Atari game of the ALE: rl-atari-breakout, …", "id")
envs.add_family("rl-mujoco-", "plastibench.envs.mujoco:MuJoCo", "a MuJoCo robot: rl-mujoco-half-cheetah, …", "id")
