"""Check what a gymnasium environment returns, so that its bugs are not mistaken for divergence of the agent."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TimeLimit

from plastibench.config.errors import RunError, UserError
from plastibench.config.own_code import describe

_OLD = "as in the API before gymnasium 0.26; it must return"
_STEP = "observation, reward, terminated, truncated, info"

_LARGEST = float(np.finfo(np.float32).max)


def check_spaces(name: str, envs: VectorEnv[Any, Any, Any]) -> None:
    """Check that agents support the observation and action space.

    Raises:
        UserError: A space is not supported; the message names the space and a wrapper that helps.
    """
    seen, acted = envs.single_observation_space, envs.single_action_space
    if not isinstance(seen, spaces.Box):
        helps = isinstance(seen, spaces.Dict | spaces.Tuple | spaces.Discrete | spaces.MultiDiscrete)
        hint = "; wrap the environment in gymnasium.wrappers.FlattenObservation" if helps else ""
        raise UserError(f"{name}: observations must be arrays (Box), not {plain(seen)}{hint}")
    if not isinstance(acted, spaces.Discrete | spaces.Box):
        raise UserError(f"{name}: actions must be Discrete or Box, not {plain(acted)}")
    if isinstance(acted, spaces.Discrete) and acted.start:
        raise UserError(f"{name}: discrete actions must start at 0, not {acted.start}")
    if isinstance(acted, spaces.Box) and acted.dtype.kind != "f":
        raise UserError(f"{name}: Box actions must be floating point, not {acted.dtype}")
    if not np.prod(seen.shape):
        raise UserError(f"{name}: observations of shape {seen.shape} are empty")
    if isinstance(acted, spaces.Box):
        with np.errstate(over="ignore"):
            bounds = np.stack([acted.low, acted.high]).astype(np.float32)
        if acted.low.ndim != 1 or not acted.low.size or not np.isfinite(bounds).all():
            hint = "wrap the environment in gymnasium.wrappers.RescaleAction or give it finite bounds"
            raise UserError(f"{name}: Box actions must be a vector with finite bounds, not {plain(acted)}; {hint}")


def check_api(name: str, envs: VectorEnv[Any, Any, Any]) -> None:
    """Reset and step one environment and check the form of what it returns.

    Args:
        name: The environment's id, for messages.
        envs: Vectorized environments; not checked if they do not expose single environments (``envs.envs``).

    Raises:
        UserError: The environment uses the API from before gymnasium 0.26, returns arrays where numbers are expected,
            leaves its observation space, or fails.
    """
    for env in getattr(envs, "envs", ())[:1]:
        try:
            env.action_space.seed(0)
            first, second = env.reset(seed=0), env.step(env.action_space.sample())
            wrong = _wrong_form(first, second)
        except Exception as error:  # user code may raise anything
            wrong = _reason(env.unwrapped, error)
        if wrong:
            raise UserError(f"{name}: {wrong}")
        (observation, _), (following, *numbers, _) = first, second
        for number, what in zip(numbers, ("reward", "terminated", "truncated"), strict=True):
            if np.ndim(number) or np.asarray(number).dtype.kind not in "buif":
                got = f"an array of shape {np.shape(number)}" if np.ndim(number) else type(number).__name__
                raise UserError(f"{name}: step() returns {what} as {got}; it must be a single number")
        for moment, found in (("reset", observation), ("step", following)):
            _check_observation(name, moment, np.asarray(found), env.observation_space)


def check_finite(
    name: str, observation: npt.NDArray[Any], reward: npt.NDArray[Any] | None, when: str, first: int = 0
) -> None:
    """Check that observations and rewards are finite in float32, in which they are stored.

    Args:
        name: The environment's id, for messages.
        observation: Observations as the agent sees them. [n, ...]
        reward: Rewards [n]; None after a reset.
        when: The moment, for messages: ``at step 1,204``.
        first: Number of the first environment.

    Raises:
        RunError: A value is not finite, or too large for float32; the message names the environment, its number and the
            step.
    """
    for what, values in (("observation", observation), ("reward", reward)):
        if values is None or values.dtype.kind != "f":
            continue
        rows = values.reshape(len(values), -1)
        fits = np.abs(rows) <= _LARGEST  # false for NaN
        if fits.all():
            continue
        env = int(np.flatnonzero(~fits.all(1))[0])
        wrong = rows[env][~fits[env]][0]
        raise RunError(
            f"{name} returned {'an' if what[0] == 'o' else 'a'} {what} that is {wrong} {when} (environment "
            f"{first + env}); correct the environment, or wrap it in one that replaces such values"
        )


@contextlib.contextmanager
def naming_environment(name: str, when: str) -> Iterator[None]:
    """Turn errors of the environment's code inside the block into ``RunError`` with its name and the step.

    Args:
        name: The environment's id.
        when: The moment, for the message: ``at step 1,204``.

    Raises:
        RunError: The block raised an unexpected error, which is the cause.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:  # user code may raise anything
        raise RunError(f"{name} failed {when}: {describe(error)}") from error


def check_action(action: npt.NDArray[Any], when: str) -> None:
    """Check that an agent's actions are finite, so that its divergence is not mistaken for a bug in the environment.

    Raises:
        RunError: They are not.
    """
    if action.dtype.kind == "f" and not np.isfinite(action).all():
        raise RunError(f"the agent chose an action that is not finite {when}; try a smaller --agent.lr")


def note_missing_time_limit(name: str, envs: VectorEnv[Any, Any, Any], limit: int) -> None:
    """Print once that an environment has no time limit, because evaluations can then take very long.

    Args:
        name: The environment's id.
        envs: Vectorized environments.
        limit: Steps after which an evaluation stops.
    """
    for env in getattr(envs, "envs", ())[:1]:
        spec = env.spec
        while env is not env.unwrapped:
            if isinstance(env, TimeLimit):
                return
            env = env.env
        if spec is None or spec.max_episode_steps is None:
            note(
                f"{name} has no time limit; if its episodes can be endless, set --env.max-episode-steps (an evaluation "
                f"stops after {limit:,} steps)"
            )


@functools.cache
def note(text: str) -> None:
    """Print a note to stderr, once per process."""
    print(f"plastibench: {text}", file=sys.stderr)


def plain(value: object) -> str:
    """One short line about an object, without its address in memory."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(value).split()))
    return text if len(text) <= 160 else f"{text[:157]}..."


def _check_observation(name: str, moment: str, found: npt.NDArray[Any], space: Any) -> None:
    if found.shape != space.shape:
        raise UserError(
            f"{name}: {moment}() returns an observation of shape {found.shape}, but the observation space has shape "
            f"{space.shape}"
        )
    if not np.can_cast(found.dtype, space.dtype, "same_kind"):
        raise UserError(
            f"{name}: {moment}() returns an observation of type {found.dtype}, but the observation space has type "
            f"{space.dtype}"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise UserError(f"{name}: {moment}() returns an observation that is not finite")


def _wrong_form(first: Any, second: Any) -> str:
    """Describe what is wrong with the return values of reset and step; empty if they are correct."""
    if not (isinstance(first, tuple) and len(first) == 2):
        return f"reset() returns only an observation, {_OLD} observation, info"
    if not (isinstance(second, tuple) and len(second) == 5):
        count = len(second) if isinstance(second, tuple) else 1
        old = f", {_OLD} {_STEP}" if count == 4 else f"; it must return {_STEP}"
        return f"step() returns {count} value{'s' * (count > 1)}{old}"
    return ""


def _reason(env: Any, error: Exception) -> str:
    """Explain why reset or step failed: the form of its return values, or an error in the user's code."""
    try:
        if wrong := _wrong_form(env.reset(seed=0), env.step(env.action_space.sample())):
            return wrong
    except Exception as again:
        error = again
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {plain(error)} ({Path(frame.filename).name}, line {frame.lineno})"
