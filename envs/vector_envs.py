"""Create vectorized gymnasium environments, with helpful errors for unknown names and missing packages."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.own_code import describe
from plastibench.utils.user_imports import import_own

_SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}  # the default mode adds a step without a transition


_IS_RENDERED = ContextVar("is_rendered", default=False)


@contextlib.contextmanager
def rendering() -> Iterator[None]:
    """Within this context, :func:`make_gymnasium_vec` creates environments with ``render_mode="rgb_array"``."""
    token = _IS_RENDERED.set(True)
    try:
        yield
    finally:
        _IS_RENDERED.reset(token)


def make_gymnasium_vec(
    env_id: str, num_envs: int, max_episode_steps: int = 0, **options: Any
) -> VectorEnv[Any, Any, Any]:
    """Create copies of a gymnasium environment, with autoreset in the same step.

    Args:
        env_id: The gymnasium id.
        num_envs: Number of copies.
        max_episode_steps: Truncate episodes after this many steps; 0 keeps the limit of the environment.
        **options: Passed to the environment.

    Raises:
        UserError: The environment does not exist, its package is not installed, or its constructor fails.
    """
    if ":" in env_id:
        import_own(env_id.partition(":")[0], f"environment '{env_id}'")
    if _IS_RENDERED.get():
        options |= {"render_mode": "rgb_array", "disable_env_checker": True}  # it warns about MinAtar's pictures
    try:
        return gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs=_SAME_STEP,
            max_episode_steps=max_episode_steps or None,
            **options,
        )
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise UserError(f"environment '{env_id}' needs a package that is missing: {_first_line(error)}") from error
    except gymnasium.error.Error as error:
        hint = did_you_mean(env_id, gymnasium.registry)
        raise UserError(f"unknown gymnasium environment '{env_id}'{hint}: {_first_line(error)}") from error
    except Exception as error:  # its constructor may raise anything
        raise UserError(f"environment '{env_id}' cannot be created: {describe(error)}") from error


def import_extra(module: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Raises:
        UserError: It is not installed; the message names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} is not installed; pip install 'plastibench[{extra}]'") from error


def match_name(name: str, known: list[str], kind: str) -> str:
    """Return the element of ``known`` that equals ``name`` up to hyphens, underscores and case.

    Raises:
        UserError: There is none.
    """
    for candidate in known:
        if _plain(candidate) == _plain(name):
            return candidate
    raise UserError(f"unknown {kind} '{name}'{did_you_mean(name, known)} (available: {', '.join(sorted(known))})")


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
