"""Gymnasium environments with known behaviour, registered for tests."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Float64Actions(gymnasium.Env[Any, Any]):
    """Takes float64 actions. The reward depends on their last bits; observations do not depend on actions."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space: Any = gymnasium.spaces.Box(-1, 1, (2,), np.float64)

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observation(), float(np.sin(100 * action).sum()), False, self.steps >= 20, {}


class ActionsFromOne(Float64Actions):
    """Has actions 1, 2 and 3."""

    action_space = gymnasium.spaces.Discrete(3, start=1)


class IntegerBox(Float64Actions):
    """Has a box of integers as action space."""

    action_space = gymnasium.spaces.Box(0, 5, (2,), np.int64)


class Target(gymnasium.Env[Any, Any]):
    """Rewards actions that are 0.6 of the way from the middle of each range to its end; the observation is constant.

    With bounds of the form ±2^k, everything but the actions is the same bit for bit, whatever k is.
    """

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, low: Any = -1.0, high: Any = 1.0, dtype: Any = np.float32) -> None:
        self.action_space: Any = gymnasium.spaces.Box(np.asarray(low, dtype), np.asarray(high, dtype), dtype=dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action} is outside {self.action_space}"
        self.steps += 1
        low, high = self.action_space.low.astype(np.float64), self.action_space.high.astype(np.float64)
        free = high > low
        scaled = (action - (low + high) / 2)[free] / ((high - low) / 2)[free]
        return (
            np.ones(1, np.float32),
            -float(np.square(scaled - 0.6).sum() / max(1, free.sum())),
            self.steps >= 5,
            False,
            {},
        )


gymnasium.register("tests/Target-v0", entry_point=Target)

for _kind in (Float64Actions, ActionsFromOne, IntegerBox):
    gymnasium.register(f"tests/{_kind.__name__}-v0", entry_point=_kind)


class Counter(gymnasium.Env[Any, Any]):
    """Observes 100 times the episode number plus the step. Episodes end after seven steps: truncated or terminated.

    With ``noisy``, observations differ between two environments of the same seed.
    """

    def __init__(self, terminal: bool, noisy: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.terminal, self.count = terminal, 0
        self.noise = float(np.random.default_rng().random()) if noisy else 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count += 100 - self.count % 100
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        over = self.count % 100 == 7
        return self._observation(), 1.0, over and self.terminal, over and not self.terminal, {}

    def _observation(self) -> Any:
        return np.array([self.count + self.noise], np.float32)


for _name, _options in (
    ("Truncated", {"terminal": False}),
    ("Terminated", {"terminal": True}),
    ("Nondeterministic", {"terminal": True, "noisy": True}),
):
    gymnasium.register(f"tests/{_name}-v0", entry_point=Counter, kwargs=_options)


class Odd(gymnasium.Env[Any, Any]):
    """Makes one mistake, or has one unusual space.

    Args:
        mistake: ``old step``, ``old reset``, ``array reward``, ``nan reward``, ``huge reward``, ``nan observation``,
            ``inf final``, ``error``, ``shape``, ``dtype``, or nothing.
        at: The step from which on NaN or infinite values are returned.
        space: The observation space.
        endless: Never end an episode.
    """

    def __init__(self, mistake: str = "", at: int = 30, space: Any = None, endless: bool = False) -> None:
        self.observation_space = space if space is not None else gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.mistake, self.at, self.endless, self.count = mistake, at, endless, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        observation = self.observation_space.sample()
        return observation if self.mistake == "old reset" else (observation, {})

    def step(self, action: Any) -> Any:
        self.steps, self.count = self.steps + 1, self.count + 1
        observation, reward, over = self.observation_space.sample(), 1.0, not self.endless and self.steps >= 10
        late = self.count >= self.at
        match self.mistake:
            case "old step":
                return observation, reward, over, {}
            case "error":
                raise KeyError("speed")
            case "array reward":
                return observation, np.ones(1), over, False, {}
            case "shape":
                return np.zeros(3, np.float32), reward, over, False, {}
            case "dtype":
                return np.zeros(2, np.complex64), reward, over, False, {}
            case "nan reward" if late:
                reward = float("nan")
            case "huge reward" if late:
                reward = 1e300
            case "nan observation" if late:
                observation = np.array([0.0, np.nan], np.float32)
            case "inf final" if late and over:
                return np.array([np.inf, 0.0], np.float32), reward, False, True, {}
        return observation, reward, False, over, {}


gymnasium.register("tests/Odd-v0", entry_point=Odd, disable_env_checker=True)
