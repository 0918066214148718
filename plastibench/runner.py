"""The loop: a stream emits data, the agent learns from replay, an intervention acts, metrics are recorded."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase

from plastibench import checkpoint, machine, results
from plastibench.errors import RunError, UserError
from plastibench.interventions.base import Intervention, Report, overrides
from plastibench.metrics.performance import TaskRecord, comparison, share
from plastibench.metrics.plasticity import health
from plastibench.process import only_one, resolve_device, set_up_torch, stop_requests
from plastibench.progress import Progress
from plastibench.recorder import Recorder
from plastibench.replay import arrive, everything, growing_replay, representative
from plastibench.seeds import derive, generator
from plastibench.spec import RunSpec

if TYPE_CHECKING:
    from plastibench.agents.classifier import Classifier
    from plastibench.envs.stream import TaskStream

EARLY_EPOCHS = 5  # epochs after a switch that are all evaluated, to see the recovery
CHECKPOINT_SECONDS = 60.0
_PROBE = 512  # samples for the plasticity metrics
_SMALL = 1_000_000  # networks with fewer parameters train no faster on two threads than on one


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
) -> dict[str, Any]:
    """Run a spec to its end, continuing where an earlier try stopped.

    Args:
        spec: What to run.
        runs_dir: The run's folder is made in here.
        data_dir: Where data sets are.
        quiet: Show no progress.
        threads: CPU threads; 0 means one for a small network, and as PyTorch chooses for a large one.
        announce: What the first line of progress begins with.
        checkpoint_seconds: At most this much work is lost in a crash.

    Returns:
        The content of ``result.json``.

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
        tell("is complete already")
        return results.read(path)
    set_up_torch(spec)
    env = spec.create("env").make(data_dir)
    agent = spec.create("agent").build(env, spec.run.seed, torch.device(device))
    with only_one(folder), stop_requests() as stop:
        if path.exists():  # another process has finished it meanwhile
            return results.read(path)
        checkpoint.clean_up(folder)
        tell("continues" if (folder / "checkpoint.pt").exists() else "begins")
        if not (folder / "spec.toml").exists():
            checkpoint.write_text(folder / "spec.toml", spec.to_toml())
        return Run(spec, env, agent, folder, stop, quiet, threads, checkpoint_seconds).to_the_end()


class Run:
    """One run under way; its attributes are what a checkpoint holds."""

    def __init__(
        self,
        spec: RunSpec,
        env: TaskStream,
        agent: Classifier,
        folder: Path,
        stop: list[int],
        quiet: bool,
        threads: int,
        checkpoint_seconds: float,
    ) -> None:
        self.spec, self.env, self.folder, self.stop = spec, env, folder, stop
        self.checkpoint_seconds = checkpoint_seconds
        seed, device = spec.run.seed, torch.device(spec.run.device)
        self.scenario = env.scenario
        self.agent = agent
        self.networks = list(self.agent.networks.values())
        size = sum(p.numel() for network in self.networks for p in network.module.parameters())
        if threads or size < _SMALL:
            torch.set_num_threads(threads or 1)
        self.interventions: list[Intervention] = [spec.create("intervention") for _ in self.networks]
        self.order = generator(seed, "order", device)
        self.draws = generator(seed, "representative")
        capacity = len(env.dataset.train_images)
        self.replay = growing_replay(capacity, self.agent.batch_size, device, self.order)
        self.evaluation_images = torch.from_numpy(env.evaluation_images).to(device)
        torch.manual_seed(derive(seed, "dropout"))  # dropout draws from the global generator, and nothing else does
        self.initial = [{k: p.detach().clone() for k, p in n.module.named_parameters()} for n in self.networks]
        for network, intervention in zip(self.networks, self.interventions, strict=True):
            intervention.prepare(network)
            if overrides(intervention, "penalty"):
                network.penalties.append(intervention.penalty)
        self.each_update = overrides(self.interventions[0], "after_update")

        self.task = 0
        self.update = 0  # within the task
        self.total = 0  # since the start
        self.samples = 0
        self.evaluated = -1, self.evaluation_images  # at which update the outputs were last computed, and these
        self.records: list[TaskRecord] = []
        self.reports: list[dict[str, Any]] = []
        self.plasticity: list[dict[str, Any]] = []
        self.cost = {"seconds": 0.0, "intervention-seconds": 0.0, "metric-seconds": 0.0}
        lengths = self._restore()
        self.samples_before = self.samples
        self.recorder = Recorder(folder, spec, lengths)
        self.clock = time.monotonic()
        self.saved = self.clock
        self.progress = Progress(f"{spec.intervention[0]} seed {seed}", self.updates_of_all_tasks(), quiet)

    # The course of a run -----------------------------------------------------------------------------------------

    def to_the_end(self) -> dict[str, Any]:
        """Learn all tasks; return the result."""
        try:
            if not self.records:
                self.begin()
            while True:
                self._learn_task()
                if self.task + 1 == self.scenario.task_count:
                    return self._finish()
                self._switch()
        finally:
            self.close()

    def close(self) -> None:
        """Close files and progress; the state stays as it was last saved."""
        self.progress.close()
        self.recorder.close()

    def begin(self) -> None:
        """Receive the first task."""
        observation, info = self.env.reset(seed=derive(self.spec.run.seed, "stream"))
        arrive(self.replay, observation["images"], observation["labels"])
        self.records.append(TaskRecord(0, info["samples"], info["noise"]))
        self.agent.begin_task(self._updates())
        self._evaluate()
        self._measure("after")

    def _learn_task(self) -> None:
        """Train on the current task from wherever it stands to its end."""
        updates, per_epoch, every = self._updates(), self.updates_per_epoch(), self.spec.run.every
        while self.update < updates:
            self.learn()
            if every and self.total % every == 0:
                self._intervene_in_mid_task()
            if self.update % per_epoch == 0:
                self._end_epoch(self.update // per_epoch)
            if self.stop or time.monotonic() - self.saved > self.checkpoint_seconds:
                self._save()
                if self.stop:
                    raise Interrupted(f"{self.spec.id} stopped in task {self.task + 1} after {self.total} updates")
        self.records[-1].train_accuracy = self._train_accuracy()
        self._record("end", {"accuracy": self.records[-1].end, "train-accuracy": self.records[-1].train_accuracy})
        self._measure("end")

    def learn(self) -> None:
        """One update on the next batch; nothing in here waits for the device."""
        batch = self.replay.sample()
        self.agent.update(batch)
        self.update += 1
        self.total += 1
        self.samples += len(batch)
        if self.each_update:
            for network, intervention in zip(self.networks, self.interventions, strict=True):
                intervention.after_update(network)

    def _end_epoch(self, epoch: int) -> None:
        last = self.scenario.epochs
        if epoch <= EARLY_EPOCHS or epoch % self.scenario.evaluate_every == 0 or epoch == last:
            self._evaluate()
        place = f"task {self.task + 1}/{self.scenario.task_count}, epoch {epoch}/{last}"
        accuracy = self.records[-1].curve[-1][1] if self.records[-1].curve else None
        self.progress.show(self.total, self.samples - self.samples_before, place, accuracy, milestone=epoch == last)

    def _switch(self) -> None:
        """End a task and begin the next: evaluate, receive data, intervene, renew the optimizer, evaluate."""
        evaluated_at, logits = self.evaluated
        answers, before = self._answers(), logits if evaluated_at == self.total else self._logits()
        observation, _, _, _, info = self.env.step(before.argmax(1).cpu().numpy())
        arrive(self.replay, observation["images"], observation["labels"])
        self.task, self.update = self.task + 1, 0
        if not self.spec.run.every:
            self.intervene()
        self.agent.begin_task(self._updates())
        after = self._logits()
        found = comparison(before, after, answers)
        self.records.append(
            TaskRecord(
                self.task,
                info["samples"],
                info["noise"],
                before=found["before"],
                after=found["after"],
                agreement=found["agreement"],
                output_kl=found["output_kl"],
            )
        )
        self._record_comparison(found)
        self._evaluate(after)
        self._measure("after")

    def _intervene_in_mid_task(self) -> None:
        """Intervene, and see what it cost where two evaluations more are a small part of the interval."""
        if self.spec.run.every < self.updates_per_epoch():
            self.intervene()
            return
        before = self._logits()
        self.intervene()
        found = comparison(before, self._logits(), self._answers())
        self.reports[-1].update(found)
        self._record_comparison(found)

    def _finish(self) -> dict[str, Any]:
        self.cost["seconds"] += time.monotonic() - self.clock
        self.clock = time.monotonic()
        origin = {
            "command": shlex.join(["plastibench", *sys.argv[1:]]),
            "commit": machine.commit(),
            "versions": machine.versions(),
            "hardware": machine.hardware(self.spec.run.device),
            "threads": torch.get_num_threads(),
            "precision": self.agent.label,
        }
        cost = {**self.cost, "updates": self.total, "samples": self.samples}
        result = results.compose(self.spec, self.records, self.reports, self.plasticity, cost, origin)
        self.recorder.finish(self.total, {**result["summary"], "seconds": self.cost["seconds"]})
        checkpoint.save(self.folder / "final.pt", {"networks": [n.module.state_dict() for n in self.networks]})
        results.write(self.folder, result)  # last: a folder with a result is a run that is complete
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return result

    # Evaluation and intervention ----------------------------------------------------------------------------------

    def _logits(self) -> torch.Tensor:
        network, intervention = self.networks[0], self.interventions[0]
        logits: torch.Tensor = self.agent.logits(self.evaluation_images, intervention.evaluated(network))
        return logits

    def _answers(self) -> torch.Tensor:
        return torch.from_numpy(self.env.evaluation_labels).to(self.evaluation_images.device)

    def _evaluate(self, logits: torch.Tensor | None = None) -> None:
        """Accuracy on the current task's own answers, and the averages of training since the last time."""
        averages = self.agent.take_averages()
        if not all(map(math.isfinite, averages.values())):
            raise RunError(
                f"{self.spec.id}: the loss became {averages['loss']} in task {self.task + 1}, "
                f"before update {self.update}; try a smaller --agent.lr"
            )
        logits = self._logits() if logits is None else logits
        self.evaluated = self.total, logits
        accuracy = share(logits.argmax(1) == self._answers())
        self.records[-1].curve.append((self.update / self.updates_per_epoch(), accuracy))
        self._record("training", {"accuracy": accuracy, **averages})

    def _train_accuracy(self) -> float:
        batch = self._representative()
        logits = self.agent.logits(batch["image"], self.interventions[0].evaluated(self.networks[0]))
        return share(logits.argmax(1) == batch["label"])

    def _measure(self, phase: str) -> None:
        """Plasticity metrics of every network, on the same images for every method."""
        start = time.monotonic()
        probe = everything(self.replay)[:_PROBE]
        for network, initial in zip(self.networks, self.initial, strict=True):
            found = health(network, probe, initial)
            self.plasticity.append({"task": self.task, "phase": phase, "role": network.role, **found.overall})
            self._record(phase, found.overall, prefix=f"plasticity-{network.role}")
            for layer, values in found.layers.items():
                self._record(phase, values, prefix=f"layers-{network.role}/{layer}")
            for layer, gradients in found.layernorm_gradients.items():
                self.recorder.histogram(self.total, f"layernorm-gradient-{phase}/{layer}", gradients)
        self.cost["metric-seconds"] += time.monotonic() - start

    def intervene(self) -> None:
        """Have the interventions act on every network, on a fresh representative batch."""
        batch = self._representative()
        for network, intervention in zip(self.networks, self.interventions, strict=True):
            start = time.monotonic()
            try:
                report = intervention.intervene(network, batch)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                loss = self.agent.take_averages().get("loss", math.nan)
                raise RunError(
                    f"{self.spec.id}: the loss became {loss} in task {self.task + 1}, and {network.role} cannot be "
                    f"worked on after update {self.update}; try a smaller --agent.lr"
                ) from error
            if network.device.type == "cuda":
                torch.cuda.synchronize(network.device)
            report.seconds = time.monotonic() - start
            self.cost["intervention-seconds"] += report.seconds
            self.reports.append(_plain(report, self.task, self.total, network.role))
            totals = {"seconds": report.seconds, "revived-share": report.revived_share}
            self._record(
                "after", {**totals, "parameters": float(report.parameters)}, prefix=f"intervention-{network.role}"
            )
            for module, figures in report.modules.items():
                self._record("after", figures, prefix=f"intervention-{network.role}/{module}")

    def _representative(self) -> TensorDictBase:
        return representative(self.replay, self.spec.run.representative, self.draws)

    def _record_comparison(self, found: dict[str, float]) -> None:
        shown = {"accuracy-after": found["after"], "agreement": found["agreement"], "output-kl": found["output_kl"]}
        self._record("after", {**shown, "drop": found["before"] - found["after"]})

    def _record(self, phase: str, values: dict[str, Any], prefix: str = "") -> None:
        self.recorder.scalars(self.total, self.task, self.update / self.updates_per_epoch(), phase, values, prefix)

    # Arithmetic of updates ----------------------------------------------------------------------------------------

    def updates_per_epoch(self) -> int:
        """Updates in one pass over the data so far; the last batch may be short."""
        return max(1, math.ceil(len(self.replay) / self.agent.batch_size))

    def _updates(self) -> int:
        return self.updates_per_epoch() * self.scenario.epochs

    def updates_of_all_tasks(self) -> int:
        """For the time left; knows the sizes of coming tasks from a second stream of the same seed."""
        stream = type(self.env)(self.env.dataset, self.scenario)
        _, info = stream.reset(seed=derive(self.spec.run.seed, "stream"))
        switches = range(self.scenario.task_count - 1)
        sizes = [info["samples"], *(stream.step(stream.evaluation_labels)[4]["samples"] for _ in switches)]
        return sum(math.ceil(size / self.agent.batch_size) for size in sizes) * self.scenario.epochs

    # Saving and restoring -----------------------------------------------------------------------------------------

    def _save(self) -> None:
        now = time.monotonic()
        self.cost["seconds"] += now - self.clock
        self.clock = self.saved = now
        sampler = self.replay.sampler.state_dict()
        state = {
            "spec": self.spec.to_toml(),
            "position": [self.task, self.update, self.total, self.samples],
            "records": [dataclasses.asdict(record) for record in self.records],
            "reports": self.reports,
            "plasticity": self.plasticity,
            "cost": self.cost,
            "files": self.recorder.flush(),
            "agent": self.agent.state_dict(),
            "interventions": [intervention.state_dict() for intervention in self.interventions],
            "initial": self.initial,
            "sampler": dict(sampler),
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout-cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoint.save(self.folder / "checkpoint.pt", state)

    def _restore(self) -> dict[str, int]:
        """Continue from a checkpoint, where there is one; return how many bytes of which files it covers."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return {}
        state = checkpoint.load(path)
        if state.get("spec") != self.spec.to_toml():
            raise UserError(f"checkpoint {path} belongs to another run; delete its folder to start the run anew")
        try:
            return self._take_back(state)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"checkpoint {path} does not fit ({type(error).__name__}: {reason}); delete its folder to start anew"
            ) from error

    def _take_back(self, state: dict[str, Any]) -> dict[str, int]:
        self.task, self.update, self.total, self.samples = state["position"]
        observation, _ = self.env.reset(seed=derive(self.spec.run.seed, "stream"))
        arrive(self.replay, observation["images"], observation["labels"])
        for _ in range(self.task):
            observation = self.env.step(self.env.evaluation_labels)[0]
            arrive(self.replay, observation["images"], observation["labels"])
        self.records = [TaskRecord(**record) for record in state["records"]]
        for record in self.records:
            record.curve = [(epoch, accuracy) for epoch, accuracy in record.curve]
        self.reports, self.plasticity, self.cost = state["reports"], state["plasticity"], state["cost"]
        self.agent.load_state_dict(state["agent"])
        for intervention, saved in zip(self.interventions, state["interventions"], strict=True):
            intervention.load_state_dict(saved)
        device = self.networks[0].device
        self.initial = [{name: value.to(device) for name, value in initial.items()} for initial in state["initial"]]
        self.replay.sampler.load_state_dict(state["sampler"])
        self.order.set_state(state["order"])
        self.draws.set_state(state["draws"])
        torch.set_rng_state(state["dropout"])
        if torch.cuda.is_available() and state["dropout-cuda"]:
            torch.cuda.set_rng_state_all(state["dropout-cuda"])
        return dict(state["files"])


def _plain(report: Report, task: int, update: int, role: str) -> dict[str, Any]:
    """A report in a few numbers; its figures module by module are in ``metrics.csv`` and TensorBoard."""
    residuals = [figures["residual"] for figures in report.modules.values() if "residual" in figures]
    growth = [figures["norm_ratio"] for figures in report.modules.values() if "norm_ratio" in figures]
    return {
        "task": task,
        "update": update,
        "role": role,
        "seconds": report.seconds,
        "revived-share": report.revived_share,
        "parameters": report.parameters,
        "mean-residual": sum(residuals) / len(residuals) if residuals else None,
        "largest-norm-ratio": max(growth) if growth else None,
    }
