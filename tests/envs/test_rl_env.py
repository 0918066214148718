"""RL environments: spaces, autoreset, and the changes between tasks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import FrameStackObservation

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import envs
from plastibench.envs.minatar import GAMES, MinAtarSequence, PermutedMinAtar
from plastibench.envs.mujoco import SlipperyAnt


def make_config(name: str, **options: Any) -> Any:
    entry = envs[name]
    return build(entry.load(), {**entry.defaults, **options}, name)


@pytest.mark.parametrize(
    ("name", "frame", "actions"),
    [
        ("rl-cartpole", ((4,), np.float32), 2),
        ("rl-pendulum", ((3,), np.float32), 0),
        ("rl-minatar-breakout", ((4, 10, 10), np.bool_), 3),
        ("rl-minatar-permuted", ((4, 10, 10), np.bool_), 3),
        ("rl-minatar-sequence", ((10, 10, 10), np.bool_), 6),
        ("rl-atari-pong", ((84, 84), np.uint8), 6),
        ("rl-mujoco-hopper", ((11,), np.float32), 0),
    ],
)
def test_observation_and_action_spaces(name: str, frame: tuple[Any, Any], actions: int) -> None:
    env = make_config(name).make()
    assert (env.frame_shape, env.frame_dtype.type) == frame and env.num_actions == actions
    if not actions:
        assert (env.action_low < env.action_high).all() and env.action_low.dtype == np.float32
    assert env.observation_shape == ((4, 84, 84) if "atari-" in name and "min" not in name else frame[0])


@pytest.mark.parametrize("name", ["rl-cartpole", "rl-minatar-breakout", "rl-atari-pong"])
def test_frames_are_determined_by_seed_and_actions(name: str) -> None:
    def play(seed: int) -> bytes:
        config = make_config(name)
        vector = config.make_vec(0, 2)
        observation, _ = vector.reset(seed=seed)
        actions = [np.array([step % 2, (step // 2) % 2]) for step in range(60)]
        frames = [
            config.preprocess(0, observation),
            *(config.preprocess(0, vector.step(action)[0]) for action in actions),
        ]
        vector.close()
        return np.stack(frames).tobytes()

    assert play(1) == play(1) != play(2)


def test_autoreset_returns_the_final_and_the_next_first_frame_in_one_step() -> None:
    vector = make_config("rl-cartpole", max_episode_steps=5).make_vec(0, 2)
    vector.reset(seed=0)
    for step in range(5):
        observation, _, terminated, truncated, info = vector.step(np.array([step % 2, step % 2]))
    assert truncated.all() and not terminated.any()
    assert CartPoleEnv().observation_space.high[0] > 1 and np.abs(observation).max() <= 0.05  # an initial state
    assert all(np.abs(info["final_obs"][env]).max() > 0.05 for env in range(2))


def test_channels_are_permuted_from_the_second_task_on() -> None:
    config = build(PermutedMinAtar, {"tasks": 4}, "test")
    vector = config.make_vec(0, 3)
    observation, _ = vector.reset(seed=0)
    plain = config.preprocess(0, observation)
    assert (plain == observation.transpose(0, 3, 1, 2)).all() and config.task_count == 4
    orders = [tuple(config.permutation(task, 4)) for task in range(4)]
    assert orders[0] == (0, 1, 2, 3) and len(set(orders)) == 4
    many = [tuple(config.permutation(task, 3)) for task in range(20)]
    assert all(len(set(many[start : start + 6])) == 6 for start in range(15))  # all six before one repeats
    for task in range(4):
        assert (config.preprocess(task, observation) == plain[:, list(orders[task])]).all()
    other = build(PermutedMinAtar, {"tasks": 4, "permutation_seed": 1}, "test")
    assert orders != [tuple(other.permutation(task, 4)) for task in range(4)]


def test_game_sequence_shares_one_observation_space() -> None:
    config = build(MinAtarSequence, {"games": ("breakout", "seaquest"), "rounds": 2}, "test")
    assert config.task_count == 4
    shown = []
    for task in range(4):
        vector = config.make_vec(task, 1)
        assert vector.single_action_space.n == 6  # type: ignore[attr-defined]
        observation, _ = vector.reset(seed=0)
        frames = config.preprocess(task, observation)
        assert frames.shape == (1, 10, 10, 10)
        shown.append((observation.shape[-1], frames[:, observation.shape[-1] :].any()))
    assert shown == [(4, False), (10, False), (4, False), (10, False)]


def test_every_minatar_game_is_registered() -> None:
    for game in GAMES:
        name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in game)
        assert make_config(f"rl-minatar{name}").make().frame_shape[1:] == (10, 10)


def test_slippery_ant_changes_friction_in_the_simulation() -> None:
    config = build(SlipperyAnt, {"tasks": 3}, "test")
    frictions = [config.friction(task) for task in range(3)]
    assert frictions[0] == 1.0 and len(set(frictions)) == 3 and all(0.02 <= value <= 2 for value in frictions)
    reached = []
    for task in (0, 1, 2):
        vector: Any = config.make_vec(task, 2)
        for env in vector.envs:
            assert (env.unwrapped.model.geom_friction[:, 0] == frictions[task]).all()
        vector.reset(seed=0)
        rng = np.random.default_rng(0)
        for _ in range(40):
            observation = vector.step(rng.uniform(-1, 1, (2, 8)).astype(np.float32))[0]
        reached.append(observation)
        vector.close()
    assert np.abs(reached[0] - reached[1]).max() > 1e-3


def test_frame_stacking_matches_gymnasium() -> None:
    """Compare with gymnasium's wrapper; the test of the replay buffer uses the same rule."""
    env = FrameStackObservation(gymnasium.make("CartPole-v1"), 3, padding_type="zero")
    config = make_config("rl-atari-pong", frames=3)
    expected, _ = env.reset(seed=0)
    found = config.stack_first(expected[-1][None])
    for step in range(60):
        assert (found[0] == expected).all()
        expected, _, terminated, _, _ = env.step(step % 2)
        if terminated:
            expected, _ = env.reset()
        found = config.stack_next(found, expected[-1][None], np.array([terminated]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gym", {"id": "CartPole-v9"}, "CartPole"),
        ("gym", {"id": "Cartpole-v1"}, "did you mean 'CartPole-v1'"),
        ("gym", {"id": "Taxi-v4"}, r"must be arrays \(Box\), not Discrete\(500\); wrap .*FlattenObservation"),
        ("gym", {"id": "no_such_module:Env-v0"}, r"cannot import no_such_module \(ModuleNotFoundError"),
        ("rl-atari-pong", {"channels": "last"}, "channels has no effect here"),
        ("rl-minatar-breakout", {"channels": "last"}, "channels has no effect here"),
        ("rl-atari-brakout", {}, "did you mean 'breakout'"),
        ("rl-mujoco-hoper", {}, "did you mean 'Hopper'"),
        ("rl-minatar-sequence", {"games": ("breakout", "pong")}, "unknown MinAtar game 'pong'"),
    ],
)
def test_unknown_or_unsupported_environments_raise(name: str, options: dict[str, Any], words: str) -> None:
    def make_all() -> None:
        config = make_config(name, **options)
        [config.make(), *(config.make_vec(task, 1) for task in range(config.task_count))]

    with pytest.raises(UserError, match=words):
        make_all()


def test_missing_package_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'plastibench\[minatar\]'"):
        PermutedMinAtar().make_vec(0, 1)


def test_bandit_shows_each_image_once_per_round_and_rewards_one_action() -> None:
    config = make_config("rl-bandit-digits", images=60)
    env = config.make()
    assert (env.frame_shape, env.num_actions, config.task_count) == ((1, 8, 8), 10, 10)
    vector = config.make_vec(0, 20)
    shown, _ = vector.reset(seed=0)
    rewarded: dict[bytes, int] = {}
    rounds = []
    for step in range(30):  # ten rounds of 60 images, the same action for all images
        rounds.append(shown)
        following, reward, terminated, truncated, info = vector.step(np.full(20, step // 3))
        assert terminated.all() and not truncated.any() and (info["final_obs"] == shown).all()
        rewarded.update({image.tobytes(): step // 3 for image, r in zip(shown, reward, strict=True) if r})
        shown = following
    for first in range(0, 30, 3):
        assert len({image.tobytes() for image in np.concatenate(rounds[first : first + 3])}) == 60
    assert len(rewarded) == 60 and len(set(rewarded.values())) == 10


def test_rewarded_actions_depend_on_the_task_only() -> None:
    config = make_config("rl-bandit-digits", images=60)
    config.make()

    def mean_reward(task: int, seed: int) -> float:
        vector = config.make_vec(task, 60)
        vector.reset(seed=seed)
        best: Any = config.make_vec(0, 60)
        return float(np.mean(vector.step(best._rewarded[vector._shown])[1]))  # type: ignore[attr-defined]

    assert mean_reward(0, seed=1) == mean_reward(0, seed=2) == 1.0 and mean_reward(1, seed=1) < 0.4
