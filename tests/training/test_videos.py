"""Videos of evaluation episodes: what they show, and that they change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from plastibench.config.errors import UserError
from plastibench.training import videos
from plastibench.training.learner import Learner
from plastibench.training.runner import run
from tests.support.environments import Float64Actions
from tests.support.rl import tiny_rl
from tests.support.runs import Stopped, assert_same_run, crash_at, go


class Counter(Float64Actions):
    """Draws its step number in red, and ends after 20 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space: Any = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        assert self.render_mode == "rgb_array"
        return np.full((40, 20, 3), (10 * self.steps, 0, 0), np.uint8)


gymnasium.register("tests/Counter-v0", entry_point=Counter)
COUNTER = {"id": "tests/Counter-v0", "max_episode_steps": 0}


def saved(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "videos").iterdir())}


def test_a_video_shows_the_steps_of_an_episode(tmp_path: Path) -> None:
    spec = tiny_rl(env="gym", env_options=COUNTER)
    run(spec, runs_dir=tmp_path, quiet=True, threads=1, videos=1)
    assert list(saved(tmp_path / spec.id)) == [f"task-1-step-{step}.gif" for step in (0, 160, 240, 80)]
    with Image.open(tmp_path / spec.id / "videos/task-1-step-80.gif") as video:
        assert (video.n_frames, video.size, video.info["duration"]) == (20, (80, 160), 100)
        for step in range(20):
            video.seek(step)
            assert video.convert("RGB").getpixel((30, 30)) == (10 * step, 0, 0)


def test_a_long_episode_is_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_MOST", 8)
    spec = tiny_rl(env="gym", env_options=COUNTER)
    run(spec, runs_dir=tmp_path, quiet=True, threads=1, videos=9)  # the first and the last evaluation
    assert list(saved(tmp_path / spec.id)) == ["task-1-step-0.gif", "task-1-step-240.gif"]
    with Image.open(tmp_path / spec.id / "videos/task-1-step-0.gif") as video:
        assert (video.n_frames, video.info["duration"]) == (5, 400)
        video.seek(4)
        assert video.convert("RGB").getpixel((30, 30)) == (160, 0, 0)  # every 4th step


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("env", "agent", "options"),
    [("gym", "dqn-mlp", COUNTER), ("rl-minatar-permuted", "dqn-cnn", {"tasks": 2, "steps": 120})],
)
def test_videos_do_not_change_the_run_and_survive_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, agent: str, options: dict[str, Any]
) -> None:
    spec = tiny_rl("reset", env, agent, env_options=options, every=0 if "tasks" in options else 25)
    go(spec, tmp_path / "without")
    run(spec, runs_dir=tmp_path / "with", quiet=True, threads=1, videos=2)
    assert_same_run(tmp_path / "without" / spec.id, tmp_path / "with" / spec.id)
    crash_at(monkeypatch, 20, Learner, "learn")
    with pytest.raises(Stopped):
        run(spec, runs_dir=tmp_path / "resumed", quiet=True, threads=1, videos=2, checkpoint_seconds=0)
    run(spec, runs_dir=tmp_path / "resumed", quiet=True, threads=1, videos=2)
    assert_same_run(tmp_path / "without" / spec.id, tmp_path / "resumed" / spec.id)
    assert saved(tmp_path / "with" / spec.id) == saved(tmp_path / "resumed" / spec.id) != {}
    run(spec, runs_dir=tmp_path / "with", quiet=True, threads=1, force=True)
    assert saved(tmp_path / "with" / spec.id) == {}, "--force replaces the files of a run"


def test_atari_shows_what_the_agent_sees(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    config = tiny_rl(env="rl-atari-pong", agent="dqn-cnn").create("env")
    envs = config.make_vec(0, 1)
    observation, _ = envs.reset(seed=0)
    picture = config.picture(envs, observation)
    envs.close()
    assert picture.shape == (84, 84, 3) and (picture == observation[0, -1][:, :, None]).all() and picture.std() > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda tiny: tiny("none"), "--videos is for RL environments"),
        (lambda tiny: tiny_rl(env="rl-bandit-digits", env_options={"steps": 80}), "digits cannot be rendered"),
        (
            lambda tiny: tiny_rl(env="gym", env_options={"id": "tests/Float64Actions-v0"}, agent="sac-mlp"),
            "rendered with",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(tiny: Any, tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(make(tiny), runs_dir=tmp_path, quiet=True, threads=1, videos=1)
    assert not list(tmp_path.iterdir())
