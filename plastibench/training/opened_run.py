"""A run that is open in its folder: train, record metrics, save checkpoints and restore from them, write the result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.results.files import compose_result, write_result
from plastibench.results.result import Result
from plastibench.training import checkpoint
from plastibench.training.assembly import make_trainer, seed_dropout
from plastibench.training.log_files import Covered, check
from plastibench.training.memory_guard import MemoryGuard
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.recorder import Recorder
from plastibench.training.trackers.tracking import Tracking
from plastibench.training.videos import FOLDER
from plastibench.utils import distributed, provenance
from plastibench.utils.progress import Progress
from plastibench.utils.wording import plural

CHECKPOINT_SECONDS = 60.0
_STOP = 2  # larger than 1, which asks for a checkpoint only


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass(frozen=True)
class RunSettings:
    """Settings that do not change the result of a run; see :func:`plastibench.training.runner.run`."""

    runs_dir: Path
    data_dir: Path
    quiet: bool = False
    threads: int = 0
    announce: str = ""
    runs_after: int = 0
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    stop: list[int] | None = None
    command: str = ""
    force: bool = False
    trackers: Sequence[str] = ()
    videos: int = 0


class OpenedRun:
    """A run in its folder: records metrics, saves checkpoints and restores from them."""

    def __init__(
        self, spec: RunSpec, env: Any, agent: Any, folder: Path, stop: list[int], settings: RunSettings
    ) -> None:
        self.spec, self.agent, self.folder, self.stop, self._settings = spec, agent, folder, stop, settings
        self.sessions: list[dict[str, Any]] = []  # the processes that ran part of the run, this one last
        self.seconds = 0.0
        # Of begin() and advance(); not counted if several processes share the work and repeat parts of it.
        self.cpu_seconds: float | None = 0.0 if distributed.world_size() == 1 else None
        self.stacked = 1  # runs that were updated together with this one, itself included
        self.continues = False  # whether the run continues after it is closed
        with MemoryGuard("the replay buffer", copies=1):
            self.trainer = make_trainer(spec, env, agent, folder=folder)
        if settings.videos and isinstance(self.trainer, OffPolicyTrainer):
            self.trainer.videos = folder / FOLDER, settings.videos
        covered = self._restore()
        self.resumed = bool(covered)
        self.sessions.append(provenance.session(spec.run.device))  # now: the code on disk may change during the run
        self.env_version = getattr(self.trainer.env_config, "version", 1)
        self.recorder: Recorder | None = None  # only the first process writes
        self.tracking: Tracking | None = None
        if distributed.is_writer():
            self.recorder = Recorder(folder, spec, covered, self.trainer.axis, self.env_version, self.trainer.data)
            self.tracking = Tracking(settings.trackers, spec, folder, axis=self.trainer.axis, quiet=settings.quiet)
        name = f"{spec.intervention[0]} seed {spec.run.seed}"
        length, after = self.trainer.length, settings.runs_after
        self.progress = Progress(name, length, settings.quiet, self.trainer.unit, after, spec.id)
        if self.recorder is not None and self.tracking is not None:
            self.trainer.log = _RunLog(self.recorder, self.tracking, self.progress)
        self.clock = self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the latest checkpoint took

    def to_the_end(self) -> Result:
        """Train to the end, saving checkpoints on the way; return the result."""
        self.begin()
        while not self.trainer.finished:
            self.count_cpu(self.trainer.advance)
            self.save_if_due()
        return self.finish()

    def begin(self) -> None:
        """Start the first task, unless the run was resumed."""
        if not self.resumed:
            self.count_cpu(self.trainer.begin)

    def save_if_due(self) -> None:
        """Save a checkpoint if it is time.

        Raises:
            Interrupted: The run was asked to stop; its state is saved.
        """
        due = time.monotonic() - self.saved > self._settings.checkpoint_seconds * max(1.0, self.saving)
        action = distributed.all_reduce_max(_STOP if self.stop else int(due))  # all processes do the same
        if not action:
            return
        size = self._save()
        if action == _STOP:
            raise Interrupted(
                f"{self.spec.id} stopped in task {self.trainer.task + 1} after "
                f"{plural(self.trainer.learner.updates, 'update')}; its state ({size / 1e6:.1f} MB) is saved"
            )

    def count_cpu(self, step: Callable[[], object]) -> None:
        """Do a part of the run, and count its CPU time."""
        start = time.process_time()
        step()
        self.add_cpu(time.process_time() - start)

    def add_cpu(self, seconds: float) -> None:
        """Count CPU time, unless that of an earlier process is unknown."""
        if self.cpu_seconds is not None:
            self.cpu_seconds += seconds

    def close(self) -> None:
        """Close the files and trackers."""
        self.progress.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.tracking is not None:
            self.tracking.close("stopped" if self.stop or self.continues else "failed")
        self.trainer.close()

    def finish(self) -> Result:
        """Write the result of a run whose last task has ended."""
        trainer, learner = self.trainer, self.trainer.learner
        learner.check_weights()
        self._count_seconds()
        latest = self.sessions[-1]
        origin = {
            "command": self._settings.command or provenance.command(),
            "commit": latest["commit"],
            "versions": provenance.versions(),
            "hardware": latest["hardware"],
            "threads": latest["threads"],
            "precision": self.agent.config.precision,
            "finished": provenance.now(),
            **({"stacked": self.stacked} if self.stacked > 1 else {}),
            **({"sessions": self.sessions} if len(self.sessions) > 1 else {}),
        }
        states = learner.intervention_states()
        modules = [network.module.state_dict() for network in learner.networks.values()]
        final = {"networks": modules, "interventions": states, "extra": self.agent.extra_state()}
        cost = {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds and max(0.0, self.cpu_seconds - trainer.measuring_cpu_seconds),
            "intervention_cpu_seconds": learner.intervention_cpu_seconds,
            "intervention_gpu_seconds": learner.intervention_gpu_seconds,
            "intervention_seconds": learner.intervention_seconds,
            "metric_seconds": trainer.metric_seconds,
            "evaluation_seconds": trainer.evaluation_seconds,
            "updates": learner.updates,
            **trainer.counts(),
            "network_bytes": checkpoint.tensor_bytes(modules),
            "intervention_bytes": checkpoint.tensor_bytes(states),
        }
        result = compose_result(
            self.spec,
            {**trainer.result(), **trainer.warnings()},
            trainer.reports,
            trainer.plasticity,
            {name: value for name, value in cost.items() if value is not None},
            origin,
            self.env_version,
            trainer.data,
            getattr(self.agent.config, "version", 1),
        )

        def write() -> None:
            assert self.recorder is not None
            self.recorder.finish(learner.updates, result)
            checkpoint.save(self.folder / checkpoint.FINAL, final)
            write_result(self.folder, result)  # last: a run folder with a result is complete
            checkpoint.remove_checkpoints(self.folder)

        distributed.on_first_process(write)
        if self.tracking is not None:
            self.tracking.finish(result)
        return result

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now

    def _save(self) -> int:
        """Save a checkpoint and return its size in bytes."""
        self._count_seconds()
        self.saved = self.clock
        generators = distributed.gather_objects(_dropout_state())

        def write() -> int:
            assert self.recorder is not None
            state = {
                "spec": self.spec.to_toml(),
                "seconds": self.seconds,
                "cpu-seconds": self.cpu_seconds,
                "files": self.recorder.flush(),
                "trainer": self.trainer.state_dict(),
                "data": self.trainer.data,
                "sessions": self.sessions,
                "stacked": self.stacked,
                **generators[0],
                "other-processes": generators[1:],
            }
            path, previous = self.folder / checkpoint.LATEST, self.folder / checkpoint.PREVIOUS
            checkpoint.save(path, state, previous=previous)
            return path.stat().st_size

        size = distributed.on_first_process(write)
        self.saving = time.monotonic() - self.saved
        start = time.monotonic()
        if self.tracking is not None:
            self.tracking.send()
        self.clock += time.monotonic() - start  # not part of the run's time
        return size

    def _restore(self) -> dict[str, Covered]:
        """Restore from the newest intact checkpoint, if there is one; return the log files that it covers."""
        found = distributed.on_first_process(self._newest_intact)
        if found is None:
            return {}
        path, state, covered = found
        if state.get("data", self.trainer.data) != self.trainer.data:
            raise UserError(
                f"{self.spec.id}: the data has changed since its checkpoint was saved; restore the data, or delete "
                f"{self.folder} to start over"
            )
        try:
            self.trainer.load_state_dict(state["trainer"])
            self.seconds = state["seconds"]
            if self.cpu_seconds is not None:
                self.cpu_seconds = state.get("cpu-seconds")  # older checkpoints lack it
            self.sessions = [dict(session) for session in state.get("sessions", [])]
            self.stacked = state.get("stacked", 1)
            self._keep_threads()
            others, rank = state.get("other-processes", []), distributed.rank()
            if rank > len(others):  # the run had fewer processes
                seed_dropout(self.spec, self.trainer.learner.updates)
            else:
                _set_dropout_state(others[rank - 1] if rank else state)
        except UserError as error:
            raise UserError(f"{self.spec.id}: {error}") from error
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"checkpoint {path} does not match the run ({type(error).__name__}: {reason}); delete its folder to "
                "start over"
            ) from error
        if path.name != checkpoint.LATEST and distributed.is_writer():  # the next one must replace the damaged one
            os.replace(path, self.folder / checkpoint.LATEST)
        return covered

    def _newest_intact(self) -> tuple[Path, dict[str, Any], dict[str, Covered]] | None:
        """Return the newest checkpoint with intact content and log files, its state, and these files.

        Raises:
            UserError: There are checkpoints, but none is intact, or they belong to another run.
        """
        damage: UserError | None = None
        for path in checkpoint.saved_checkpoints(self.folder):
            try:
                state = checkpoint.load(path)
                mine = self._is_mine(state)
                covered = check(self.folder, state["files"]) if mine else {}
            except UserError as error:
                damage = damage or error
                continue
            if not mine:
                raise UserError(f"checkpoint {path} belongs to another run; delete its folder to start over")
            if damage is not None:
                reason = str(damage).partition(";")[0]
                print(f"plastibench: {reason}; continuing from {path.name} instead", file=sys.stderr)
            return path, state, covered
        if damage is not None:
            raise damage
        return None

    def _keep_threads(self) -> None:
        """Use the first process's number of threads, unless the user set another number.

        Sums are split between threads, so a different number changes the last bits.
        """
        first = self.sessions[0]["threads"] if self.sessions else torch.get_num_threads()
        threads = self._settings.threads
        if not threads:
            torch.set_num_threads(first)
        elif threads != first and distributed.is_writer():
            print(
                f"plastibench: {self.spec.id} was started with --threads {first}; with {threads} it will not be "
                "bit-identical to an uninterrupted run (the result says so)",
                file=sys.stderr,
            )

    def _is_mine(self, state: dict[str, Any]) -> bool:
        try:  # compare what identifies a run, which does not include the device index
            return RunSpec.from_toml(state["spec"]).content == self.spec.content
        except (LookupError, TypeError, UserError):
            return False


def _dropout_state() -> dict[str, Any]:
    """The states of the global generators of this process."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"dropout": torch.get_rng_state(), "dropout-cuda": cuda}


def _set_dropout_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["dropout"])
    if torch.cuda.is_available() and state["dropout-cuda"]:
        torch.cuda.set_rng_state_all(state["dropout-cuda"])


class _RunLog:
    """Sends a trainer's metrics to the recorder and to trackers, and its progress to the terminal."""

    def __init__(self, recorder: Recorder, tracking: Tracking, progress: Progress) -> None:
        self._sinks = recorder.scalars, tracking.scalars
        self.histogram = recorder.histogram
        self.progress = progress.show

    def scalars(
        self, update: int, task: int, position: float, phase: str, values: dict[str, Any], prefix: str = ""
    ) -> None:
        for sink in self._sinks:
            sink(update, task, position, phase, values, prefix)
