"""CPU time of a run: training and interventions count, evaluations and metrics do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plastibench.agents.classifier import Classifier
from plastibench.agents.dqn import DQNAgent
from plastibench.interventions.reset import Reset
from plastibench.results.result import Cost
from plastibench.training import offpolicy, trainer
from plastibench.training.opened_run import Interrupted
from plastibench.training.runner import run
from plastibench.training.supervised import SupervisedTrainer
from plastibench.utils.stopwatch import stopwatch
from tests.support.rl import tiny_rl


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU time that advances only in the patched functions: 1 an update, 10 an intervention, 1000 a measurement."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def costs(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            now[0] += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    costs(Classifier, "update", 1)
    costs(DQNAgent, "update", 1)
    costs(Reset, "intervene", 10)
    costs(SupervisedTrainer, "_outputs", 1000)
    costs(offpolicy, "evaluate_policy", 1000)
    costs(trainer, "plasticity_report", 1000)
    return now


@pytest.mark.parametrize("kind", ["supervised", "supervised, every", "rl"])
def test_cpu_time_is_that_of_training_and_interventions(
    clock: list[float], tiny: Any, tmp_path: Path, kind: str
) -> None:
    made: dict[str, Callable[[], Any]] = {
        "supervised": lambda: tiny("reset"),
        "supervised, every": lambda: tiny("reset", every=2),
        "rl": lambda: tiny_rl("reset", every=30),
    }
    result = run(made[kind](), runs_dir=tmp_path, quiet=True, threads=1)
    cost, count = result.cost, len(result.interventions)
    assert count > 0 and clock[0] > 1000
    assert cost.intervention_cpu_seconds == 10 * count
    assert cost.cpu_seconds == cost.updates + 10 * count
    assert cost.intervention_fraction == pytest.approx(10 * count / (cost.updates + 10 * count))
    assert cost.intervention_gpu_seconds is None


def test_cpu_time_adds_up_over_an_interruption(clock: list[float], tiny: Any, tmp_path: Path) -> None:
    spec, stop = tiny("reset"), [15]
    for _ in range(100):
        try:
            result = run(spec, runs_dir=tmp_path, quiet=True, threads=1, stop=stop)
            break
        except Interrupted:
            clock[0] += 500  # of another process
    assert result.cost.cpu_seconds == result.cost.updates + 20


def test_a_checkpoint_of_an_older_version_leaves_the_time_unknown(
    clock: list[float], tiny: Any, tmp_path: Path
) -> None:
    spec = tiny("reset")
    with pytest.raises(Interrupted):
        run(spec, runs_dir=tmp_path, quiet=True, threads=1, stop=[15])
    path = tmp_path / spec.id / "checkpoint.pt"
    state = torch.load(path, weights_only=False)
    del state["cpu-seconds"], state["trainer"]["measuring-cpu-seconds"]
    for name in ("intervention-cpu-seconds", "intervention-gpu-seconds", "effects"):
        del state["trainer"]["learner"][name]
    torch.save(state, path)
    cost = run(spec, runs_dir=tmp_path, quiet=True, threads=1).cost
    assert cost.cpu_seconds is None and cost.intervention_cpu_seconds is None
    assert cost.intervention_fraction == pytest.approx(cost.intervention_seconds / cost.seconds)


@pytest.mark.parametrize("name", ["none", "l2-init"])
def test_a_method_that_never_intervenes_has_no_cost_of_interventions(name: str, tiny: Any, tmp_path: Path) -> None:
    cost = run(tiny(name), runs_dir=tmp_path, quiet=True, threads=1).cost
    assert cost.cpu_seconds and cost.intervention_cpu_seconds == cost.intervention_seconds == 0


def test_on_a_gpu_the_fraction_is_of_wall_clock_time() -> None:
    times = {"seconds": 10.0, "intervention_seconds": 1.0, "cpu_seconds": 4.0, "intervention_cpu_seconds": 2.0}
    assert Cost(**times, updates=1).intervention_fraction == 0.5
    assert Cost(**times, updates=1, intervention_gpu_seconds=0.5).intervention_fraction == 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_time_excludes_what_was_queued_before() -> None:
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device)
    with stopwatch(device) as one:
        a @ a
    for _ in range(50):
        a @ a
    with stopwatch(device) as other:
        a @ a
    assert one.gpu is not None and other.gpu is not None
    assert 0 < other.gpu < 20 * one.gpu
