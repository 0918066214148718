"""Videos of evaluation episodes: animated GIFs in the run's folder. They do not change the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import VectorEnv
from torch import nn

from plastibench.agents.offpolicy_agent import OffPolicyAgent
from plastibench.config.errors import UserError
from plastibench.envs.rl_env import MAX_STEPS, RLEnvConfig, RLEnvironment
from plastibench.envs.vector_envs import rendering
from plastibench.training.rollout import to_tensor
from plastibench.utils.atomic_io import atomic

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "videos"
_MOST = 200  # frames of a video; of a longer episode, every 2nd, 4th, … frame is kept
_SMALLEST, _LARGEST = 160, 320  # pixels of the longer side; smaller frames are enlarged, larger ones reduced
_FASTEST = 20  # milliseconds per frame; browsers slow down faster GIFs


def check_rendering(env: Any) -> None:
    """Check that the environments of a run can be rendered, before it starts.

    Raises:
        UserError: They cannot, or the env is a task stream.
    """
    if not isinstance(env, RLEnvironment):
        raise UserError("--videos is for RL environments; a task stream has no episodes to record")
    config = env.config
    try:
        with rendering():
            envs = config.make_vec(0, 1)
        observation, _ = envs.reset(seed=0)
        _frame(config, envs, observation)
        envs.close()
    except Exception as error:  # raised by the environment or its renderer
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--videos: {config.id} cannot be rendered with render_mode='rgb_array': {reason}") from error


def record_episode(
    config: RLEnvConfig, task: int, agent: OffPolicyAgent, modules: dict[str, nn.Module], seed: int, path: Path
) -> None:
    """Replay the first episode of an evaluation in a separate environment, and save it as an animated GIF.

    Args:
        config: Creates the environment.
        task: Number of the task.
        agent: The agent; its random generators do not advance.
        modules: The modules that act, by role.
        seed: Seed of the evaluation.
        path: The file.
    """
    with rendering():
        envs = config.make_vec(task, 1)
    observation, _ = envs.reset(seed=seed)
    seen = config.stack_first(config.preprocess(task, observation))
    frames, stride = [_frame(config, envs, observation)], 1
    for step in range(1, MAX_STEPS + 1):
        batch = np.repeat(seen, config.evaluation_episodes, 0)  # as in evaluations: other shapes may round differently
        action = agent.act(to_tensor(batch, agent.device), greedy=True, modules=modules).cpu().numpy()[:1]
        observation, _, terminated, truncated, _ = envs.step(action)
        ended = terminated | truncated
        if ended[0]:  # what can be rendered now is the next episode
            break
        seen = config.stack_next(seen, config.preprocess(task, observation), ended)
        if step % stride == 0:
            frames.append(_frame(config, envs, observation))
        if len(frames) > _MOST:
            frames, stride = frames[::2], 2 * stride
    fps = float((envs.metadata or {}).get("render_fps") or 30)
    envs.close()
    duration = max(_FASTEST, round(1000 * stride / fps))
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)


def _frame(config: RLEnvConfig, envs: VectorEnv[Any, Any, Any], observation: npt.NDArray[Any]) -> Image.Image:
    """The current picture of the first environment, in a size for a screen."""
    from PIL import Image

    picture = np.asarray(config.picture(envs, observation))
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"the rendered frame has shape {picture.shape} instead of [height, width, 3]")
    if picture.dtype.kind == "f":  # MinAtar: 0 to 1
        picture = 255 * picture
    image = Image.fromarray(picture.astype(np.uint8))
    longer = max(image.size)
    if longer < _SMALLEST:
        return image.resize([side * -(-_SMALLEST // longer) for side in image.size], Image.Resampling.NEAREST)
    image.thumbnail((_LARGEST, _LARGEST))
    return image
