"""Environments to act in: their spaces, their autoreset, and what changes from task to task."""

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


def scenario(name: str, **options: Any) -> Any:
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
def test_what_an_agent_sees_and_does(name: str, frame: tuple[Any, Any], actions: int) -> None:
    made = scenario(name).make()
    assert (made.frame[0], made.frame[1].type) == frame and made.actions == actions
    if not actions:
        assert (made.low < made.high).all() and made.low.dtype == np.float32
    assert made.observation_shape == ((4, 84, 84) if "atari-" in name and "min" not in name else frame[0])


@pytest.mark.parametrize("name", ["rl-cartpole", "rl-minatar-breakout", "rl-atari-pong"])
def test_the_same_seed_and_actions_give_the_same_frames_and_other_seeds_others(name: str) -> None:
    def play(seed: int) -> bytes:
        one = scenario(name)
        vector = one.vector(0, 2)
        observation, _ = vector.reset(seed=seed)
        actions = [np.array([step % 2, (step // 2) % 2]) for step in range(60)]
        frames = [one.observe(0, observation), *(one.observe(0, vector.step(action)[0]) for action in actions)]
        vector.close()
        return np.stack(frames).tobytes()

    assert play(1) == play(1) != play(2)


def test_an_episode_that_ends_shows_its_final_frame_and_the_first_of_the_next_in_one_step() -> None:
    vector = scenario("rl-cartpole", max_episode_steps=5).vector(0, 2)
    vector.reset(seed=0)
    for step in range(5):
        observation, _, terminated, truncated, info = vector.step(np.array([step % 2, step % 2]))
    assert truncated.all() and not terminated.any()
    fresh = CartPoleEnv().observation_space.high[0] > 1 and np.abs(observation).max() <= 0.05  # resets are that small
    assert fresh and all(np.abs(info["final_obs"][env]).max() > 0.05 for env in range(2))


def test_channels_come_first_and_are_permuted_from_the_second_task_on() -> None:
    one = build(PermutedMinAtar, {"tasks": 4}, "test")
    vector = one.vector(0, 3)
    observation, _ = vector.reset(seed=0)
    plain = one.observe(0, observation)
    assert (plain == observation.transpose(0, 3, 1, 2)).all() and one.task_count == 4
    orders = [tuple(one.permutation(task, 4)) for task in range(4)]
    assert orders[0] == (0, 1, 2, 3) and len(set(orders)) == 4
    many = [tuple(one.permutation(task, 3)) for task in range(20)]
    assert all(len(set(many[start : start + 6])) == 6 for start in range(15))  # none again before all others
    for task in range(4):
        assert (one.observe(task, observation) == plain[:, list(orders[task])]).all()
    other = build(PermutedMinAtar, {"tasks": 4, "permutation_seed": 1}, "test")
    assert orders != [tuple(other.permutation(task, 4)) for task in range(4)]


def test_games_follow_one_another_in_one_space() -> None:
    one = build(MinAtarSequence, {"games": ("breakout", "seaquest"), "rounds": 2}, "test")
    assert one.task_count == 4
    shown = []
    for task in range(4):
        vector = one.vector(task, 1)
        assert vector.single_action_space.n == 6  # type: ignore[attr-defined]
        observation, _ = vector.reset(seed=0)
        frames = one.observe(task, observation)
        assert frames.shape == (1, 10, 10, 10)
        shown.append((observation.shape[-1], frames[:, observation.shape[-1] :].any()))
    assert shown == [(4, False), (10, False), (4, False), (10, False)]


def test_every_game_of_minatar_has_a_name() -> None:
    for game in GAMES:
        name = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in game)
        assert scenario(f"rl-minatar{name}").make().frame[0][1:] == (10, 10)


def test_the_ants_ground_changes_in_the_simulation_itself() -> None:
    one = build(SlipperyAnt, {"tasks": 3}, "test")
    frictions = [one.friction(task) for task in range(3)]
    assert frictions[0] == 1.0 and len(set(frictions)) == 3 and all(0.02 <= value <= 2 for value in frictions)
    reached = []
    for task in (0, 1, 2):
        vector: Any = one.vector(task, 2)
        for env in vector.envs:
            assert (env.unwrapped.model.geom_friction[:, 0] == frictions[task]).all()
        vector.reset(seed=0)
        rng = np.random.default_rng(0)
        for _ in range(40):
            observation = vector.step(rng.uniform(-1, 1, (2, 8)).astype(np.float32))[0]
        reached.append(observation)
        vector.close()
    assert np.abs(reached[0] - reached[1]).max() > 1e-3


def test_a_stack_of_the_library_is_what_an_agent_sees() -> None:
    """As gymnasium's wrapper stacks frames; the memory's own test compares with the same rule."""
    env = FrameStackObservation(gymnasium.make("CartPole-v1"), 3, padding_type="zero")
    one = scenario("rl-atari-pong", frames=3)
    expected, _ = env.reset(seed=0)
    found = one.first_seen(expected[-1][None])
    for step in range(60):
        assert (found[0] == expected).all()
        expected, _, terminated, _, _ = env.step(step % 2)
        if terminated:
            expected, _ = env.reset()
        found = one.next_seen(found, expected[-1][None], np.array([terminated]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gym", {"id": "CartPole-v9"}, "CartPole"),
        ("gym", {"id": "Cartpole-v1"}, "did you mean 'CartPole-v1'"),
        ("gym", {"id": "Taxi-v4"}, "must be arrays"),
        ("rl-atari-brakout", {}, "did you mean 'breakout'"),
        ("rl-mujoco-hoper", {}, "did you mean 'Hopper'"),
        ("rl-minatar-sequence", {"games": ("breakout", "pong")}, "no MinAtar game 'pong'"),
    ],
)
def test_what_does_not_exist_or_does_not_fit_is_told(name: str, options: dict[str, Any], words: str) -> None:
    def make_all() -> None:
        one = scenario(name, **options)
        [one.make(), *(one.vector(task, 1) for task in range(one.task_count))]

    with pytest.raises(UserError, match=words):
        make_all()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'plastibench\[minatar\]'"):
        PermutedMinAtar().vector(0, 1)


def test_the_bandit_shows_every_image_once_a_round_and_pays_for_one_action() -> None:
    one = scenario("rl-bandit-digits", images=60)
    made = one.make()
    assert (made.frame[0], made.actions, one.task_count) == ((1, 8, 8), 10, 10)
    vector = one.vector(0, 20)
    shown, _ = vector.reset(seed=0)
    pays: dict[bytes, int] = {}
    rounds = []
    for step in range(30):  # ten rounds of 60 images, one action for all in each
        rounds.append(shown)
        following, reward, terminated, truncated, info = vector.step(np.full(20, step // 3))
        assert terminated.all() and not truncated.any() and (info["final_obs"] == shown).all()
        pays.update({image.tobytes(): step // 3 for image, paid in zip(shown, reward, strict=True) if paid})
        shown = following
    for first in range(0, 30, 3):
        assert len({image.tobytes() for image in np.concatenate(rounds[first : first + 3])}) == 60
    assert len(pays) == 60 and len(set(pays.values())) == 10


def test_what_pays_changes_with_the_task_and_not_with_the_run() -> None:
    one = scenario("rl-bandit-digits", images=60)
    one.make()

    def paid(task: int, seed: int) -> float:
        vector = one.vector(task, 60)
        vector.reset(seed=seed)
        best: Any = one.vector(0, 60)
        return float(np.mean(vector.step(best._paying[vector._shown])[1]))  # type: ignore[attr-defined]

    assert paid(0, seed=1) == paid(0, seed=2) == 1.0 and paid(1, seed=1) < 0.4
