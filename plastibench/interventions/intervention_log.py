"""Log what an intervention did, with the plasticity metrics of the network before and after it."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tensordict import TensorDictBase

from plastibench.config.errors import UserError
from plastibench.config.registry import load
from plastibench.interventions.base import Report
from plastibench.nn.network import Network

_SHOWN = ("dormant-ratio", "low-gradient-ratio", "effective-rank", "weight-norm")  # metrics in the one-line form

LogTarget = Any
"""Where to log; see :class:`InterventionLog`."""


class InterventionLog:
    """Writes one entry per intervention.

    The entry has the report's totals and the plasticity metrics of the network right before and right after it, on the
    batch of the intervention. Without a training loss there are no metrics, since some of them need gradients.
    """

    def __init__(self, target: LogTarget, name: str, network: Network) -> None:
        """Check the target.

        Args:
            target: ``"stdout"`` (or True), a text stream such as ``sys.stderr``, a ``logging.Logger``, TensorBoard's
                ``SummaryWriter``, or a logger of Lightning.
            name: Name of the method.
            network: The network, for its weights at the start.

        Raises:
            UserError: The target is none of these.
        """
        self._target = sys.stdout if target is True or target == "stdout" else target
        known = isinstance(target, logging.Logger) or any(
            callable(getattr(self._target, method, None)) for method in ("add_scalar", "log_metrics", "write")
        )
        if not known:
            raise UserError(
                f"log is {target!r}; expected 'stdout', a text stream, a logging.Logger, TensorBoard's SummaryWriter "
                "or a Lightning logger"
            )
        self._name = name
        self._initial = {name: value.detach().clone() for name, value in network.module.named_parameters()}

    def health(self, network: Network, batch: TensorDictBase) -> dict[str, float]:
        """Plasticity metrics of the network; empty if it has no loss or its parameters are frozen."""
        try:
            found = load("plastibench.metrics.plasticity:plasticity_report")(network, batch, self._initial)
        except UserError:
            return {}
        return dict(found.overall)

    def write(self, step: int, report: Report, before: dict[str, float], after: dict[str, float]) -> None:
        """Write the entry of one intervention.

        Args:
            step: Optimizer steps so far.
            report: What the intervention did.
            before: :meth:`health` right before it.
            after: :meth:`health` right after it.
        """
        values = {"revived-fraction": report.revived_fraction, "parameters": report.parameters}
        values["seconds"] = report.seconds
        for when, health in (("before", before), ("after", after)):
            values |= {f"{name}/{when}": value for name, value in health.items()}
        scalars = {f"plastibench/{self._name}/{name}": float(value) for name, value in values.items()}
        if isinstance(self._target, logging.Logger):
            self._target.info("%s", self._line(step, report, before, after))
        elif hasattr(self._target, "add_scalar"):
            for name, value in scalars.items():
                self._target.add_scalar(name, value, step)
        elif hasattr(self._target, "log_metrics"):
            self._target.log_metrics(scalars, step)
        else:
            print(self._line(step, report, before, after), file=self._target, flush=True)

    def _line(self, step: int, report: Report, before: dict[str, float], after: dict[str, float]) -> str:
        changes = [
            f"{name} {before[name]:.3g} → {after[name]:.3g}" for name in _SHOWN if {name} <= before.keys() & after
        ]
        return f"plastibench: step {step:,}: {self._name}: {'; '.join([report.totals(), *changes])}"
