"""The loop that every run shares, and what it keeps: interventions, figures, cost, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from plastibench.config.errors import RunError, UserError, did_you_mean
from plastibench.config.spec import RunSpec
from plastibench.envs.stream import TaskStream
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.metrics import select
from plastibench.metrics.groups import measure_groups
from plastibench.metrics.plasticity import plasticity_report
from plastibench.nn.dataflow import trace
from plastibench.nn.network import Network
from plastibench.results.files import compose_result, read_result, write_result
from plastibench.results.result import Result
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.recorder import Recorder
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.trainer import Trainer
from plastibench.utils import atomic_io, provenance
from plastibench.utils.progress import Progress
from plastibench.utils.runtime import only_one, remove_if_unused, resolve_device, set_up_torch, stop_requests
from plastibench.utils.seeding import derive, generator

CHECKPOINT_SECONDS = 60.0
_SMALL = 30_000_000  # parameters times samples per update; below, two threads are no faster than one


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


def run(
    spec: RunSpec,
    *,
    runs_dir: str | Path = "runs",
    data_dir: str | Path = "data",
    quiet: bool = False,
    threads: int = 0,
    announce: str = "",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stop: list[int] | None = None,
    command: str = "",
) -> Result:
    """Run a spec to its end, continuing where an earlier try stopped.

    Args:
        spec: What to run.
        runs_dir: The run's folder is made in here.
        data_dir: Where data sets are.
        quiet: Show no progress.
        threads: CPU threads; 0 means one for a small network, and as PyTorch chooses for a large one.
        announce: What the first line of progress begins with.
        checkpoint_seconds: At most this much work is lost in a crash; as many times more as seconds go by in saving.
        stop: Becomes true when the run shall save its state and end; by default SIGINT and SIGTERM ask for that.
        command: What the result says that it was made by; by default the command line of this process.

    Returns:
        The result, which is also in ``result.json``.

    Raises:
        UserError: Something in the spec or the data does not fit.
        RunError: The run itself failed, through a NaN or a full disk.
        Interrupted: SIGINT or SIGTERM arrived; the same call continues.
    """
    device = resolve_device(spec.run.device)
    spec = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=device))
    folder = Path(runs_dir) / spec.id
    path = folder / "result.json"

    def tell(state: str) -> None:
        if not quiet:
            print(f"{announce}{spec.id} {state}", file=sys.stderr)

    if path.exists():
        try:
            result = read_result(path)
        except UserError as error:
            raise UserError(f"{error}; delete it, and the run is made anew") from error
        tell("is complete already")
        return result
    set_up_torch(spec)
    env = spec.create("env").make(data_dir)
    agent = spec.create("agent").build(env, spec.run.seed, torch.device(device))
    check_options(spec, env, agent)
    with only_one(folder), stop_requests() if stop is None else contextlib.nullcontext(stop) as asked:
        if path.exists():  # another process has finished it meanwhile
            return read_result(path)
        atomic_io.clean_up(folder)
        new = not (folder / "spec.toml").exists()
        if new:
            atomic_io.write_text(folder / "spec.toml", spec.to_toml())
        before = torch.get_num_threads()
        try:
            under_way = Run(spec, env, agent, folder, asked, quiet, threads, checkpoint_seconds, command)
            tell("continues" if under_way.begun else "begins")
            new = False
            return under_way.to_the_end()
        except UserError:
            if new:
                remove_if_unused(folder)
            raise
        finally:
            torch.set_num_threads(before)  # the next run of this process may be a large one


class Run:
    """One run under way: the networks and what works on them, the figures, and the state that a checkpoint holds."""

    def __init__(
        self,
        spec: RunSpec,
        env: Any,
        agent: Any,
        folder: Path,
        stop: list[int],
        quiet: bool,
        threads: int,
        checkpoint_seconds: float,
        command: str = "",
    ) -> None:
        self.spec, self.agent, self.folder, self.stop = spec, agent, folder, stop
        self.command = command or provenance.command()
        self.checkpoint_seconds = checkpoint_seconds
        self.networks: list[Network] = list(agent.networks.values())
        size = sum(p.numel() for network in self.networks for p in network.module.parameters())
        if threads or size * agent.batch_size < _SMALL:
            torch.set_num_threads(threads or 1)
        self.interventions = [
            spec.create("intervention") if self.works_on(role) else Intervention() for role in agent.networks
        ]
        torch.manual_seed(derive(spec.run.seed, "dropout"))  # dropout alone draws from the global generator
        for network, intervention in zip(self.networks, self.interventions, strict=True):
            intervention.prepare(network)
            if overrides(intervention, "penalty"):
                network.penalties.append(intervention.penalty)
            if overrides(intervention, "before_update"):
                network.before_steps.append(intervention.before_update)
        self.initial = [{k: p.detach().clone() for k, p in n.module.named_parameters()} for n in self.networks]
        self._after_update = [
            (network, intervention)
            for network, intervention in zip(self.networks, self.interventions, strict=True)
            if overrides(intervention, "after_update")
        ]

        self.commit = provenance.commit()  # of the code that runs; by the end there may be another on disk
        self.total = 0  # updates since the start
        self.reports: list[dict[str, Any]] = []
        self.plasticity: list[dict[str, Any]] = []
        self.cost = {"seconds": 0.0, "intervention_seconds": 0.0, "metric_seconds": 0.0}
        self.trainer: Trainer = (SupervisedTrainer if isinstance(env, TaskStream) else OffPolicyTrainer)(
            self, env, agent
        )
        lengths = self._restore()
        self.begun = bool(lengths)
        self.scenario = {"version": getattr(self.trainer.scenario, "version", 1), "data": self.trainer.data}
        self.recorder = Recorder(folder, spec, lengths, self.trainer.axis, self.scenario)
        self.clock = time.monotonic()
        self.saved = self.clock
        self.saving = 0.0  # seconds that the latest checkpoint took
        self.progress = Progress(
            f"{spec.intervention[0]} seed {spec.run.seed}", self.trainer.length, quiet, self.trainer.unit
        )

    def to_the_end(self) -> Result:
        """Go through the whole course; return the result."""
        try:
            if not self.begun:
                self.trainer.begin()
            while not self.trainer.finished:
                self.trainer.advance()
                if self.stop or time.monotonic() - self.saved > self.checkpoint_seconds * max(1.0, self.saving):
                    self._save()
                    if self.stop:
                        place = f"task {self.trainer.task + 1} after {self.total} updates"
                        size = (self.folder / "checkpoint.pt").stat().st_size / 1e6
                        raise Interrupted(f"{self.spec.id} stopped in {place}, its state of {size:.1f} MB is saved")
            return self._finish()
        finally:
            self.close()

    def close(self) -> None:
        """Close files and progress; the state stays as it was last saved."""
        self.progress.close()
        self.recorder.close()
        self.trainer.close()

    # What courses call -------------------------------------------------------------------------------------------

    def learn(self, batch: TensorDictBase) -> None:
        """One update of the agent; nothing in here waits for the device."""
        self.agent.update(batch)
        self.total += 1
        for network, intervention in self._after_update:
            intervention.after_update(network)

    def works_on(self, role: str) -> bool:
        """Whether the network of this role is intervened on."""
        return self.spec.run.roles is None or role in self.spec.run.roles

    def due(self) -> bool:
        """Whether the schedule asks for an intervention after this update."""
        every = self.spec.run.every
        return bool(every) and self.total % every == 0 and self._in_time()

    def due_at_switch(self) -> bool:
        """Whether it asks for one at this task switch."""
        return not self.spec.run.every and self._in_time()

    def _in_time(self) -> bool:
        until = self.spec.run.until
        return until is None or self.total <= until

    def averages(self) -> dict[str, float]:
        """Means of the training figures since the last call.

        Raises:
            RunError: One is not finite.
        """
        averages: dict[str, float] = self.agent.pop_averages()
        for name, value in averages.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{self.spec.id}: the {name} became {value} in task {self.trainer.task + 1}, "
                    f"before update {self.total}; try a smaller --agent.lr"
                )
        return averages

    def intervene(self) -> None:
        """Have the interventions act on every network, on a fresh representative batch."""
        batch = self.trainer.representative()
        for network, intervention, initial in zip(self.networks, self.interventions, self.initial, strict=True):
            if not self.works_on(network.role):
                continue
            start = time.monotonic()
            try:
                report = intervention.intervene(network, batch)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                loss = self.agent.pop_averages().get("loss", math.nan)
                raise RunError(
                    f"{self.spec.id}: the loss became {loss} in task {self.trainer.task + 1}, and {network.role} "
                    f"cannot be worked on after update {self.total}; try a smaller --agent.lr"
                ) from error
            if network.device.type == "cuda":
                torch.cuda.synchronize(network.device)
            report.seconds = time.monotonic() - start
            for name, parameter in network.module.named_parameters():  # what it has added begins here
                if name not in initial:
                    initial[name] = parameter.detach().clone()
            self.cost["intervention_seconds"] += report.seconds
            self.reports.append(_plain(report, self.trainer.task, self.total, network.role))
            totals = {"seconds": report.seconds, "revived-share": report.revived_share}
            self.record(
                "after", {**totals, "parameters": float(report.parameters)}, prefix=f"intervention-{network.role}"
            )
            for module, figures in report.modules.items():
                self.record("after", figures, prefix=f"intervention-{network.role}/{module}")

    def measure(self, phase: str) -> None:
        """Plasticity metrics of every network, on the same data for every method."""
        start = time.monotonic()
        probe = self.trainer.probe()
        for network, initial in zip(self.networks, self.initial, strict=True):
            units = trace(network, probe)
            found = plasticity_report(network, probe, initial, units)
            if more := select(self.spec.run.metrics or ()):
                name = f"metrics-{network.role}-{self.trainer.task}-{phase}-{self.trainer.place}"
                draws = generator(self.spec.run.seed, name)
                found.add(measure_groups(network, probe, more, draws, initial, units))
            moment = {"task": self.trainer.task, "phase": phase, "position": self.trainer.place, "role": network.role}
            self.plasticity.append({**moment, "metrics": found.overall})
            self.record(phase, found.overall, prefix=f"plasticity-{network.role}")
            for layer, values in found.layers.items():
                self.record(phase, values, prefix=f"layers-{network.role}/{layer}")
            for layer, gradients in found.layernorm_gradients.items():
                self.recorder.histogram(self.total, f"layernorm-gradient-{phase}/{layer}", gradients)
        self.cost["metric_seconds"] += time.monotonic() - start

    def record(self, phase: str, values: dict[str, Any], prefix: str = "") -> None:
        """Record figures at the present place."""
        self.recorder.scalars(self.total, self.trainer.task, self.trainer.place, phase, values, prefix)

    # The end, saving and restoring -------------------------------------------------------------------------------

    def _finish(self) -> Result:
        self.cost["seconds"] += time.monotonic() - self.clock
        self.clock = time.monotonic()
        origin = {
            "command": self.command,
            "commit": self.commit,
            "versions": provenance.versions(),
            "hardware": provenance.hardware(self.spec.run.device),
            "threads": torch.get_num_threads(),
            "precision": self.agent.label,
        }
        states = [intervention.state_dict() for intervention in self.interventions]  # they may decide the architecture
        modules = [network.module.state_dict() for network in self.networks]
        final = {"networks": modules, "interventions": states, "extra": self.agent.extra_state()}
        kept = {
            "network_bytes": atomic_io.tensor_bytes(modules),
            "intervention_bytes": atomic_io.tensor_bytes(states),
        }
        cost = {**self.cost, "updates": self.total, **self.trainer.counts(), **kept}
        version = getattr(self.trainer.scenario, "version", 1)
        result = compose_result(
            self.spec, self.trainer.result(), self.reports, self.plasticity, cost, origin, version, self.trainer.data
        )
        self.recorder.finish(self.total, result)
        atomic_io.save(self.folder / "final.pt", final)
        write_result(self.folder, result)  # last: a folder with a result is a run that is complete
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return result

    def _save(self) -> None:
        now = time.monotonic()
        self.cost["seconds"] += now - self.clock
        self.clock = self.saved = now
        state = {
            "spec": self.spec.to_toml(),
            "total": self.total,
            "reports": self.reports,
            "plasticity": self.plasticity,
            "cost": self.cost,
            "files": self.recorder.flush(),
            "agent": self.agent.state_dict(),
            "interventions": [intervention.state_dict() for intervention in self.interventions],
            "initial": self.initial,
            "course": self.trainer.state_dict(),
            "data": self.trainer.data,
            "dropout": torch.get_rng_state(),
            "dropout-cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        atomic_io.save(self.folder / "checkpoint.pt", state)
        self.saving = time.monotonic() - now

    def _restore(self) -> dict[str, int]:
        """Continue from a checkpoint, where there is one; return how many bytes of which files it covers."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return {}
        state = atomic_io.load(path)
        if not self._is_mine(state):
            raise UserError(f"checkpoint {path} belongs to another run; delete its folder to start the run anew")
        if state.get("data", self.trainer.data) != self.trainer.data:
            raise UserError(
                f"{self.spec.id}: the data have changed since its checkpoint was saved; bring them back, or delete "
                f"{self.folder} to start the run anew"
            )
        try:
            return self._take_back(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"checkpoint {path} does not fit ({type(error).__name__}: {reason}); delete its folder to start anew"
            ) from error

    def _is_mine(self, state: dict[str, Any]) -> bool:
        try:  # by its name, in which cuda:0 is cuda:1
            return RunSpec.from_toml(state["spec"]).id == self.spec.id
        except (LookupError, TypeError, UserError):
            return False

    def _take_back(self, state: dict[str, Any]) -> dict[str, int]:
        self.total = state["total"]
        self.reports, self.plasticity, self.cost = state["reports"], state["plasticity"], state["cost"]
        for intervention, saved in zip(self.interventions, state["interventions"], strict=True):
            intervention.load_state_dict(saved)  # before the weights: it may have changed the architecture in mid-run
        self.agent.load_state_dict(state["agent"])
        device = self.networks[0].device
        self.initial = [{name: value.to(device) for name, value in initial.items()} for initial in state["initial"]]
        self.trainer.load_state_dict(state["course"])
        torch.set_rng_state(state["dropout"])
        if torch.cuda.is_available() and state["dropout-cuda"]:
            torch.cuda.set_rng_state_all(state["dropout-cuda"])
        return dict(state["files"])


def check_options(spec: RunSpec, env: Any, agent: Any) -> None:
    """See that the options of the run fit its env and agent.

    Raises:
        UserError: A network that the agent has not, or an option that only agents that act have.
    """
    for role in spec.run.roles or ():
        if role not in agent.networks:
            known = list(agent.networks)
            hint = did_you_mean(role, known)
            raise UserError(f"{spec.agent[0]} has no network '{role}'{hint} (it has: {', '.join(known)})")
    if isinstance(env, TaskStream):
        for name, value in (
            ("offline-updates", spec.run.offline_updates),
            ("checkpoint-memory", spec.run.checkpoint_memory),
        ):
            if value:
                raise UserError(f"--{name} is for agents that act (rl-*); {spec.env[0]} is a task stream")


def _plain(report: Report, task: int, update: int, role: str) -> dict[str, Any]:
    """A report in a few numbers; its figures module by module are in ``metrics.csv`` and TensorBoard."""
    residuals = [figures["residual"] for figures in report.modules.values() if "residual" in figures]
    growth = [figures["norm_ratio"] for figures in report.modules.values() if "norm_ratio" in figures]
    return {
        "task": task,
        "update": update,
        "role": role,
        "seconds": report.seconds,
        "revived_fraction": report.revived_share,
        "parameters": report.parameters,
        "mean_residual": sum(residuals) / len(residuals) if residuals else None,
        "largest_norm_ratio": max(growth) if growth else None,
    }
