from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import plastibench as pb
from plastibench.config.errors import UserError
from plastibench.interventions.base import Report
from plastibench.metrics.plasticity import plasticity_report
from plastibench.nn.network import Network
from tests.support import networks

MLP = {"depth": 2, "width": 16}


def network() -> Network:
    module = networks.drawn(
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    )
    optimizer = torch.optim.Adam(module.parameters())
    return Network(module, optimizer, lambda m, b: nn.functional.cross_entropy(m(b["x"]), b["y"]))


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(32, 6, generator=generator), "y": torch.arange(32) % 3}


def acted(log: Any = None) -> tuple[Report, Network, dict[str, float], dict[str, float]]:
    """Intervene once; return the report, the network and its metrics before and after."""
    made = network()
    initial = {name: value.clone() for name, value in made.module.named_parameters()}
    handle = pb.attach("rnr", made, log=log)
    packed = pb.nn.network.as_batch(batch())
    before = plasticity_report(made, packed, initial).overall
    report = handle.intervene(batch(), expect_steps=False)
    return report, made, before, plasticity_report(made, packed, initial).overall


def test_a_writer_gets_the_report_and_the_health_before_and_after(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        report, _, before, after = acted(writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    values = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    for name, value in {
        **{f"{n}/before": v for n, v in before.items()},
        **{f"{n}/after": v for n, v in after.items()},
    }.items():
        assert values[f"plastibench/rnr/{name}"] == pytest.approx(value), name
    assert values["plastibench/rnr/parameters"] == report.parameters > 0
    assert before["weight-norm"] != after["weight-norm"]


@pytest.mark.parametrize("target", ["stdout", True, "stream", "logger"])
def test_text_targets_get_a_line_per_intervention(target: Any, capsys: Any, caplog: Any) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("own")
    with caplog.at_level(logging.INFO, logger="own"):
        report, _, before, after = acted({"stream": stream, "logger": logger}.get(target, target))
    text = {"stream": stream.getvalue(), "logger": caplog.text}.get(str(target), capsys.readouterr().out)
    assert text.count("\n") == 1 and "step 0: rnr: " in text and f"{report.parameters:,} parameters changed" in text
    assert f"weight-norm {before['weight-norm']:.3g} → {after['weight-norm']:.3g}" in text


def test_a_lightning_logger_gets_metrics_with_the_step() -> None:
    class Logger:
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.metrics, self.step = metrics, step

    logger = Logger()
    _, _, before, _ = acted(logger)
    assert logger.step == 0 and logger.metrics["plastibench/rnr/srank/before"] == before["srank"]


def test_logging_changes_nothing_and_is_off_by_default(capsys: Any) -> None:
    _, plain, *_ = acted()
    assert capsys.readouterr().out == ""
    state = torch.get_rng_state()
    _, logged, *_ = acted("stdout")
    assert torch.equal(state, torch.get_rng_state())
    assert not networks.changed(networks.state(plain.module), logged.module)
    assert all(parameter.grad is None for parameter in logged.module.parameters())


def test_without_a_loss_the_report_alone_is_logged(capsys: Any) -> None:
    handle = pb.attach("reset", nn.Linear(2, 2), log="stdout")
    handle.intervene({"x": torch.zeros(2, 2)}, expect_steps=False)
    assert capsys.readouterr().out.endswith(" s\n")


def test_another_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"log is 'file.txt'; expected 'stdout'"):
        pb.attach("reset", nn.Linear(2, 2), log="file.txt")


def test_a_report_prints_in_three_lines_at_most() -> None:
    report = Report(units={f"blocks.{n}.mlp.fc1": torch.arange(300) < 12 for n in range(40)}, parameters=1_234_567)
    for number in range(40):
        report.note(f"blocks.{number}.mlp.fc1", **{f"value-{letter}": float(number) for letter in "abcdefghijklmnop"})
    for text in (str(report), repr(report), str(Report())):
        assert text.count("\n") <= 2 and max(map(len, text.split("\n"))) <= 120
    assert "480 of 12,000 units reinitialized (4.0 %), 1,234,567 parameters changed" in str(report)
    assert "mean over 40 modules: value-a 19.5" in str(report)
