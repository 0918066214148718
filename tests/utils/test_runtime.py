from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.utils.runtime import GPU_SHARE, resolve_device, set_up_torch


def test_devices_are_resolved() -> None:
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(UserError, match="device 'cuda:99' is not available"):
        resolve_device("cuda:99")


def test_gpu_memory_fraction_applies_to_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec.make("cl-digits", "mlp", device="cuda:1")
    limits: list[tuple[float, int | None]] = []
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    set_up_torch(spec)
    monkeypatch.setenv(GPU_SHARE, "0.25")
    for device in ("cuda:1", "cuda", "cpu"):
        set_up_torch(replace(spec, run=replace(spec.run, device=device)))
    assert limits == [(0.25, 1), (0.25, None)]
