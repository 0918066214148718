"""What many tests need: one thread, tiny runs, and commands whose output and status can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from plastibench.cli.main import main
from plastibench.config.spec import RunSpec


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The runner sets the number of threads by itself; everything else here must not take all cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[..., RunSpec]:
    """Specs of runs that take a third of a second."""

    def make(
        intervention: str = "none",
        options: Mapping[str, Any] | None = None,
        *,
        env: str = "cl-digits",
        agent: str = "vit-nano",
        env_options: Mapping[str, Any] | None = None,
        agent_options: Mapping[str, Any] | None = None,
        **run: Any,
    ) -> RunSpec:
        budget = {"epochs": 2, "train_size": 40, **({"stop_after": 3} if env == "cl-digits" else {"tasks": 3})}
        size = {"depth": 1, "dim": 16} if agent == "vit-nano" else {"width": 8}
        return RunSpec.make(
            env,
            agent,
            intervention,
            env_options={**budget, **(env_options or {})},
            agent_options={**size, **(agent_options or {})},
            intervention_options=options or {},
            device="cpu",
            **run,
        )

    return make


@dataclass
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process."""

    def command(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return command
