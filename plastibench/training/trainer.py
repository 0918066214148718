"""Base class of the trainers: recording, plasticity measurements and interventions."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.spec import RunOptions
from plastibench.interventions.base import Report
from plastibench.metrics import select
from plastibench.metrics.compute import compute_metrics
from plastibench.metrics.plasticity import plasticity_report
from plastibench.nn.dataflow import trace
from plastibench.training.learner import Learner
from plastibench.utils.seeding import generator


class Log(Protocol):
    """Where a trainer sends its metrics and its progress."""

    def scalars(
        self, update: int, task: int, position: float, phase: str, values: dict[str, Any], prefix: str = ""
    ) -> None:
        """Record values under ``prefix/name``."""

    def histogram(self, update: int, name: str, values: Tensor) -> None:
        """Record a distribution."""

    def progress(self, done: int, count: int, position: str, value: str, *, milestone: bool = False) -> None:
        """Show how far the run is."""


class Trainer(ABC):
    """Drives one run: owns the environment, the buffer and the position, and hands batches to the learner.

    Attributes:
        axis: What :attr:`position` counts; the name of a column in ``metrics.csv``.
        unit: What the rate in the progress line counts.
        learner: What learns.
        options: Seed, schedule and sizes of the run.
        log: Where metrics and progress go; None discards them.
        task: Number of the current task, from 0.
        reports: A summary of what each intervention did.
        plasticity: Plasticity metrics at each measurement.
        metric_seconds: Time spent in plasticity metrics so far.
        evaluation_seconds: Time spent in evaluations so far.
        measuring_cpu_seconds: CPU time spent in evaluations and plasticity metrics so far.
    """

    axis: ClassVar[str]
    unit: ClassVar[str]

    def __init__(self, learner: Learner, options: RunOptions, log: Log | None = None) -> None:
        self.learner, self.options, self.log = learner, options, log
        self.task = 0
        self.reports: list[dict[str, Any]] = []
        self.plasticity: list[dict[str, Any]] = []
        self.metric_seconds = self.evaluation_seconds = self.measuring_cpu_seconds = 0.0
        self._measuring = False

    @property
    @abstractmethod
    def env_config(self) -> Any:
        """The options of the environment; its ``version`` counts incompatible changes of the tasks."""

    @property
    def data(self) -> str | None:
        """Digest of the dataset, or None if the environment itself is the source."""
        return None

    @property
    @abstractmethod
    def position(self) -> float:
        """Position on the axis of the curves: epochs since the start of the task, or agent steps."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the run is complete."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Length of the run in updates or steps, to estimate the remaining time."""

    @abstractmethod
    def begin(self) -> None:
        """Start the first task."""

    @abstractmethod
    def advance(self) -> None:
        """Train until the next point at which the state can be saved."""

    @abstractmethod
    def representative(self) -> TensorDictBase:
        """Draw a representative batch with everything that the networks' losses need."""

    @abstractmethod
    def probe(self) -> TensorDictBase:
        """The batch on which plasticity is measured."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Samples or steps consumed, for the result's ``cost``."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The trainer's part of the result: its ``summary`` and the values behind it."""

    def close(self) -> None:  # noqa: B027 - optional
        """Release resources."""

    # Shared ------------------------------------------------------------------------------------------------------

    def record(self, phase: str, values: dict[str, Any], prefix: str = "") -> None:
        """Record values at the current position."""
        if self.log is not None:
            self.log.scalars(self.learner.updates, self.task, self.position, phase, values, prefix)

    def intervene(self) -> dict[str, Report]:
        """Let the interventions act on a fresh representative batch, and record what they did."""
        reports = self.learner.intervene(self.representative())
        for role, report in reports.items():
            moment = {"task": self.task, "position": self.position, "update": self.learner.updates, "role": role}
            self.reports.append({**moment, **_summarize(report)})
            totals = {
                "seconds": report.seconds,
                "revived-fraction": report.revived_fraction,
                "parameters": float(report.parameters),
                "cpu-seconds": report.cpu_seconds,
                "gpu-seconds": report.gpu_seconds,
            }
            self.record("after", totals, prefix=f"intervention-{role}")
            for module, values in report.modules.items():
                self.record("after", values, prefix=f"intervention-{role}/{module}")
        return reports

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the CPU time of a block as evaluation, which is not part of a method's cost."""
        if self._measuring:  # nested
            yield
            return
        self._measuring, start = True, time.process_time()
        try:
            yield
        finally:
            self._measuring = False
            self.measuring_cpu_seconds += time.process_time() - start

    def measure(self, phase: str) -> None:
        """Measure the plasticity of every network, on the same data for every method.

        Raises:
            RunError: The weights have diverged.
        """
        with self.measuring():
            self._measure(phase)

    def _measure(self, phase: str) -> None:
        start = time.monotonic()
        self.learner.check_weights()
        probe = self.probe()
        names = select(self.options.metrics or ())
        for role, network in self.learner.networks.items():
            layers, initial = trace(network, probe), self.learner.initial[role]
            found = plasticity_report(network, probe, initial, layers)
            if names:
                moment = "training" if phase == "evaluation" else phase  # the name in the seeds of earlier versions
                purpose = f"metrics-{role}-{self.task}-{moment}-{self.position}"
                draws = generator(self.options.seed, purpose)
                found.add(compute_metrics(network, probe, names, draws, initial, layers))
            record = {"task": self.task, "phase": phase, "position": self.position, "role": role}
            self.plasticity.append({**record, "metrics": found.overall})
            self.record(phase, found.overall, prefix=f"plasticity-{role}")
            for layer, values in found.layers.items():
                self.record(phase, values, prefix=f"layers-{role}/{layer}")
            if self.log is not None:
                for layer, gradients in found.layernorm_gradients.items():
                    self.log.histogram(self.learner.updates, f"layernorm-gradient-{phase}/{layer}", gradients)
        self.metric_seconds += time.monotonic() - start

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time inside the block as evaluation."""
        start = time.monotonic()
        try:
            with self.measuring():
                yield
        finally:
            self.evaluation_seconds += time.monotonic() - start

    def warnings(self) -> dict[str, list[str]]:
        """``warnings`` for the result: reasons why it may be misleading; may be empty."""
        found = self.learner.complaints()
        if not self.learner.updates:
            found.insert(0, "no update was made, so the networks are untrained")
        return {"warnings": found} if found else {}

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume, the learner's included; a subclass adds its own."""
        return {
            "task": self.task,
            "reports": self.reports,
            "plasticity": self.plasticity,
            "metric-seconds": self.metric_seconds,
            "evaluation-seconds": self.evaluation_seconds,
            "measuring-cpu-seconds": self.measuring_cpu_seconds,
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        self.task = state["task"]
        self.reports, self.plasticity = state["reports"], state["plasticity"]
        self.metric_seconds = state["metric-seconds"]
        self.evaluation_seconds = state.get("evaluation-seconds", 0.0)
        self.measuring_cpu_seconds = state.get("measuring-cpu-seconds", 0.0)  # older checkpoints lack it
        self.learner.load_state_dict(state["learner"])


def _summarize(report: Report) -> dict[str, Any]:
    """Summarize a report; its values per module are in ``metrics.csv`` and TensorBoard."""
    residuals = [values["residual"] for values in report.modules.values() if "residual" in values]
    ratios = [values["norm_ratio"] for values in report.modules.values() if "norm_ratio" in values]
    return {
        "seconds": report.seconds,
        "revived_fraction": report.revived_fraction,
        "parameters": report.parameters,
        "mean_residual": sum(residuals) / len(residuals) if residuals else None,
        "largest_norm_ratio": max(ratios) if ratios else None,
    }
