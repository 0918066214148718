"""What people's own gymnasium environments get wrong is reported in one line that names the environment."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from plastibench.config.errors import RunError, UserError
from plastibench.envs import environment_check
from plastibench.training.learner import Learner
from plastibench.training.offpolicy import OffPolicyTrainer
from tests.support import environments  # noqa: F401 - registers them
from tests.support.rl import make_env, tiny_rl


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the options of tests/Odd-v0, and return its id."""

    def choose(**options: Any) -> str:
        environment_check.note.cache_clear()
        monkeypatch.setattr(gymnasium.registry["tests/Odd-v0"], "kwargs", options)
        return "tests/Odd-v0"

    return choose


def image_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "seen", "axis"),
    [
        ((3, 40, 48), (3, 40, 48), "first"),
        ((4, 84, 84), (4, 84, 84), "first"),
        ((1, 40, 48), (1, 40, 48), "first"),
        ((40, 48, 3), (3, 40, 48), "last"),
        ((84, 84, 12), (12, 84, 84), "last"),
        ((10, 10, 10), (10, 10, 10), "last"),
        ((8, 8, 111), (111, 8, 8), "last"),  # planes of a board
        ((17, 9, 9), (17, 9, 9), "first"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_the_axis_of_channels_is_read_from_the_shape_and_said_once(
    odd: Any, capsys: Any, shape: Any, seen: Any, axis: str, dtype: Any
) -> None:
    env_id = odd(space=spaces.Box(0, 100, shape, dtype))
    envs = [make_env("gym", id=env_id, max_episode_steps=9) for _ in range(2)]
    said = capsys.readouterr().err
    other = "last" if axis == "first" else "first"
    assert said.count("\n") == 1
    assert f"images with channels {axis}; if this is wrong, set --env.channels {other}" in said
    assert envs[0].observation_shape == seen
    assert envs[0].frame_dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    vector = envs[0].config.make_vec(0, 2)
    raw, _ = vector.reset(seed=0)
    expected = raw if axis == "first" else raw.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(envs[0].config.preprocess(0, raw), expected.astype(envs[0].frame_dtype))


@pytest.mark.parametrize(("channels", "seen"), [("first", (40, 48, 3)), ("last", (3, 40, 48))])
def test_an_option_overrides_the_axis_of_channels(odd: Any, capsys: Any, channels: str, seen: Any) -> None:
    env = make_env("gym", id=odd(space=image_space(40, 48, 3)), channels=channels, max_episode_steps=9)
    assert env.observation_shape == seen
    assert capsys.readouterr().err == ""


def test_observations_without_a_dimension_become_vectors(odd: Any) -> None:
    env = make_env("gym", id=odd(space=spaces.Box(-1, 1, (), np.float32)))
    assert env.observation_shape == (1,)
    assert env.config.preprocess(0, np.array([1.0, 2.0], np.float32)).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mistake": "old step"}, "step() returns 4 values, as in the API before gymnasium 0.26; it must return"),
        ({"mistake": "old reset"}, "reset() returns only an observation, as in the API before gymnasium 0.26"),
        ({"mistake": "array reward"}, "step() returns reward as an array of shape (1,); it must be a single number"),
        ({"mistake": "error"}, "KeyError: 'speed' (environments.py, line "),
        ({"mistake": "shape"}, "step() returns an observation of shape (3,), but the observation space has shape (2,)"),
        ({"mistake": "dtype"}, "step() returns an observation of type complex64, but the observation space has type"),
        ({"mistake": "nan observation", "at": 1}, "step() returns an observation that is not finite"),
        ({"space": spaces.Dict(a=spaces.Box(0, 1, (2,)))}, "not Dict('a': Box(0.0, 1.0, (2,), float32)); wrap"),
        ({"space": spaces.Tuple([spaces.Discrete(3)])}, "not Tuple(Discrete(3)); wrap the environment in"),
        ({"space": spaces.Box(0, 1, (0,))}, "observations of shape (0,) are empty"),
        ({"space": spaces.Text(3)}, "observations must be arrays (Box), not Text"),
    ],
)
def test_mistakes_of_an_environment_are_one_line(odd: Any, options: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_env("gym", id=odd(**options))
    message = str(caught.value)
    assert message.startswith("tests/Odd-v0: ") and words in message, message
    assert "\n" not in message and not re.search("0x[0-9a-f]", message) and len(message) < 300


class NamelessSpace(spaces.Space[Any]):
    """A space without a text form of its own."""


def test_messages_contain_no_addresses(odd: Any) -> None:
    with pytest.raises(UserError) as caught:
        make_env("gym", id=odd(space=NamelessSpace()))
    assert "NamelessSpace" in str(caught.value) and "0x" not in str(caught.value)


def trainer_for(env_id: str, **options: Any) -> OffPolicyTrainer:
    spec = tiny_rl(env="gym", env_options={"id": env_id, **options})
    env = spec.create("env").make()
    agent = spec.create("agent").build(env, 0, torch.device("cpu"))
    return OffPolicyTrainer(env, Learner(agent), spec.run)


def run_on(trainer: OffPolicyTrainer) -> None:
    while not trainer.finished:
        trainer.advance()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("nan reward", "returned a reward that is nan at step 120 (environment 0)"),
        ("nan observation", "returned an observation that is nan at step 120 (environment 0)"),
        ("huge reward", "returned a reward that is 1e+300 at step 120 (environment 0)"),
        ("inf final", "returned an observation that is inf at step 120 (environment 0)"),
    ],
)
def test_values_that_are_not_finite_name_environment_and_step(odd: Any, mistake: str, words: str) -> None:
    trainer = trainer_for(odd(mistake=mistake, at=30), evaluate_every=10_000)
    trainer._enter(0)
    with pytest.raises(RunError) as caught:
        run_on(trainer)
    assert "tests/Odd-v0" in str(caught.value) and words in str(caught.value)
    assert "--agent.lr" not in str(caught.value)


def test_values_that_are_not_finite_in_an_evaluation_are_reported(odd: Any) -> None:
    trainer = trainer_for(odd(mistake="nan reward", at=5))
    with pytest.raises(RunError, match=r"reward that is nan at step 5 of an evaluation \(environment 0\)"):
        trainer.begin()


def test_a_diverged_agent_is_not_reported_as_a_fault_of_the_environment() -> None:
    spec = tiny_rl(env="rl-pendulum", agent="sac-mlp")
    env = spec.create("env").make()
    agent = spec.create("agent").build(env, 0, torch.device("cpu"))
    trainer = OffPolicyTrainer(env, Learner(agent), spec.run)
    trainer.begin()
    with torch.no_grad():
        agent.networks["actor"].module.policy.bias.fill_(torch.nan)
    with pytest.raises(RunError, match=r"action that is not finite at step 40; try a smaller --agent.lr"):
        run_on(trainer)


def test_a_missing_time_limit_is_said_once_and_names_the_option(
    odd: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_id = odd(endless=True)
    for _ in range(2):
        make_env("gym", id=env_id)
    said = capsys.readouterr().err
    assert said.count("--env.max-episode-steps") == 1 and "27,000 steps" in said
    make_env("gym", id=env_id, max_episode_steps=50)
    make_env("rl-cartpole")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("plastibench.training.rollout.MAX_STEPS", 25)
    trainer_for(env_id, max_episode_steps=0).begin()
    assert "an evaluation stopped after 25 steps, before all episodes had ended" in capsys.readouterr().err
