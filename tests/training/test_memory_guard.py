from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.training.memory_guard import MemoryGuard
from plastibench.training.runner import run


def test_the_guard_counts_the_bytes_of_all_parameters() -> None:
    with MemoryGuard("it") as guard:
        module = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(3, 4, 5), nn.LayerNorm(7), nn.Embedding(5, 6))
    assert guard.requested >= 4 * sum(p.numel() for p in module.parameters())
    for create in (
        lambda: torch.zeros(3, 5, dtype=torch.float64),
        lambda: torch.ones((3, 10)),
        lambda: torch.full((30,), 1.0),
        lambda: torch.empty(size=(30,)),
    ):
        with MemoryGuard("it", copies=2, limit=240) as guard:
            create()
        assert guard.requested == 120
        message = "it needs at least 240 B of memory, but only 239 B is available"
        with pytest.raises(UserError, match=message), MemoryGuard("it", copies=2, limit=239):
            create()


@pytest.mark.parametrize(
    ("env", "agent", "options", "what"),
    [
        ("relabel-digits", "mlp", {"width": 4_000}, "agent mlp"),
        ("cl-digits", "vit-nano", {"dim": 2_048}, "agent vit-nano"),
        ("rl-cartpole", "dqn-mlp", {"hidden": (4_000, 4_000)}, "agent dqn-mlp"),
        ("rl-cartpole", "dqn-mlp", {"buffer_size": 10**9}, "the replay buffer"),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str, agent: str, options: dict[str, Any], what: str
) -> None:
    monkeypatch.setattr("plastibench.training.memory_guard.available_memory", lambda: 20_000_000)
    spec = RunSpec.make(env, agent, agent_options=options, device="cpu")
    with pytest.raises(UserError, match=rf"{what} needs at least .* of memory, but only .* is available"):
        run(spec, runs_dir=tmp_path, quiet=True)
    assert not list(tmp_path.glob("*/checkpoint.pt"))
