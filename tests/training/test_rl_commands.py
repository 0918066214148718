"""The command line with RL agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.rl import QUICK


def test_rl_runs_can_be_compared_ranked_and_plotted(say: Any, tmp_path: Path) -> None:
    flags = [f"--env.{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    flags += ["--agent.hidden=8,8", "--agent.batch-size=8", "--agent.learning-starts=40", "--runs-dir", str(tmp_path)]
    done = say("run", "rl-cartpole", "--agent", "dqn-mlp", "--intervention", "none,rnr", "--every", "10",
               "--intervention.roles", "critic", "--quiet", "--device", "cpu", *flags)  # fmt: skip
    assert done.status == 0, done.err
    assert "return after steps" in done.out and "rnr every=10 roles=critic" in done.out
    board = say("leaderboard", "--runs-dir", str(tmp_path))
    assert board.status == 0 and "Q bias" in board.out and "rl-cartpole" in board.out
    figure = say("plot", "overview", tmp_path / "f.png", "--runs-dir", tmp_path)
    assert figure.status == 0 and (tmp_path / "f.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rl-cartpole", "--agent", "dqn-mlp", "--roles", "critics"], "no network 'critics'; did you mean 'critic'"),
        (["rl-cartpole", "--agent", "vit-nano"], "a classifier needs a task stream"),
        (["cl-digits", "--agent", "dqn-mlp"], "need an RL environment"),
        (["rl-pendulum", "--agent", "dqn-mlp"], "needs discrete actions"),
        (["rl-cartpole", "--agent", "dqn-vit"], "needs images"),
        (["gym", "--env.id", "Nothing-v0", "--agent", "dqn-mlp"], "unknown gymnasium environment 'Nothing-v0'"),
        (["rl-minatar-pong", "--agent", "dqn-mlp"], "unknown env 'rl-minatar-pong'"),
        (["rl-cartpole", "--agent", "dqn-mlp", "--agent.v-min", "20"], "is not below v-max"),
        (["rl-cartpole", "--agent", "dqn-mlp", "--agent.random-shift", "2"], "random-shift needs images"),
        (["rl-minatar-breakout", "--agent", "dqn-vit", "--agent.heads", "3"], "dim 64 is not a multiple of heads 3"),
        (["rl-minatar-sequence", "--agent", "dqn-mlp", "--env.games", "breakout,pong"], "unknown MinAtar game 'pong'"),
        (["rl-slippery-ant", "--agent", "sac-mlp", "--env.low", "3"], "low 3.0 is above high 2.0"),
        (["rl-atari-pong", "--agent", "dqn-cnn", "--env.frames", "300"], "frames is 300"),
        (
            ["gym", "--env.id", "tests/ActionsFromOne-v0", "--agent", "dqn-mlp"],
            "actions must start at 0, not 1",
        ),
        (["gym", "--env.id", "tests/IntegerBox-v0", "--agent", "sac-mlp"], "Box actions must be floating point"),
    ],
)
def test_invalid_requests_fail_with_one_line(say: Any, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = say("run", *arguments, "--runs-dir", str(tmp_path), "--quiet")
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1, done.err
