"""Run a spec in its own folder: lock it, restore, train, save checkpoints, and write the result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.environment_check import failing_as
from plastibench.results.files import compose_result, read_result, write_result
from plastibench.results.result import Result
from plastibench.results.run_folder import check_code, check_same, clear, run_folder
from plastibench.training import checkpoint
from plastibench.training.assembly import build_agent, check_options, choose_threads, make_trainer, seed_dropout
from plastibench.training.failure import FAILURE_FILE, describe_failure, record_failure
from plastibench.training.log_files import Covered, check
from plastibench.training.memory_guard import MemoryGuard
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.recorder import Recorder
from plastibench.training.stored_data import warn_if_data_changed
from plastibench.training.trackers.tracker import parse_names
from plastibench.training.trackers.tracking import Tracking, send_stored
from plastibench.training.videos import FOLDER, check_rendering
from plastibench.utils import atomic_io, digests, distributed, provenance
from plastibench.utils.folder_lock import lock_folder, remove_if_unused
from plastibench.utils.progress import Progress
from plastibench.utils.runtime import resolve_device, set_up_torch
from plastibench.utils.stop_signals import stop_requests
from plastibench.utils.wording import plural

CHECKPOINT_SECONDS = 60.0
_STOP = 2  # larger than 1, which asks for a checkpoint only


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
    runs_after: int = 0,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stop: list[int] | None = None,
    command: str = "",
    force: bool = False,
    log: str | Sequence[str] = (),
    videos: int = 0,
) -> Result:
    """Run a spec to its end, continuing from its checkpoint if there is one.

    Under torchrun, all processes train one network together. The first one reads and writes the files, and prints.

    Args:
        spec: What to run.
        runs_dir: Folder that contains the run folders.
        data_dir: Folder of datasets.
        quiet: Do not print progress.
        threads: CPU threads; 0: one for a small network, PyTorch's default for a large one.
        announce: Prefix of the first line of progress.
        runs_after: Number of similar runs that follow; the remaining time shown includes them.
        checkpoint_seconds: Seconds between checkpoints; increased if saving takes long.
        stop: The run checkpoints and stops once this list is not empty; by default SIGINT and SIGTERM fill it.
        command: The command recorded in the result; by default this process's command line.
        force: Start from the beginning, even if the run is complete or has a checkpoint.
        log: Trackers that also receive the metrics, such as ``"wandb,mlflow"``. They do not change the run.
        videos: RL: record an episode of every Nth evaluation and of the last one, in ``videos``; 0: none.

    Returns:
        The result, which is also in ``result.json``; ``reused`` says whether the run was already complete.

    Raises:
        UserError: The spec or the data is invalid.
        RunError: The run itself failed, for example with NaN or a full disk.
        Interrupted: The run was stopped; the same call continues it.
    """
    threads_before = torch.get_num_threads()
    try:
        with open_run(
            spec,
            runs_dir=runs_dir,
            data_dir=data_dir,
            quiet=quiet,
            threads=threads,
            announce=announce,
            runs_after=runs_after,
            checkpoint_seconds=checkpoint_seconds,
            stop=stop,
            command=command,
            force=force,
            log=log,
            videos=videos,
        ) as opened:
            return opened if isinstance(opened, Result) else opened.to_the_end()
    finally:
        torch.set_num_threads(threads_before)  # the next run in this process may have a large network


@contextlib.contextmanager
def open_run(
    spec: RunSpec,
    *,
    runs_dir: str | Path,
    data_dir: str | Path,
    quiet: bool = False,
    threads: int = 0,
    announce: str = "",
    runs_after: int = 0,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stop: list[int] | None = None,
    command: str = "",
    force: bool = False,
    log: str | Sequence[str] = (),
    videos: int = 0,
) -> Iterator[OpenRun | Result]:
    """Lock the folder of a run and restore its state; an error inside the block is recorded in the folder.

    Yields:
        The run, or its result if it is already complete. The arguments and errors are those of :func:`run`.
    """
    distributed.join_processes()
    quiet = quiet or not distributed.is_writer()
    trackers = parse_names(log)
    device = resolve_device(spec.run.device)
    spec = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=device))
    folder = run_folder(spec, Path(runs_dir))
    path = folder / "result.json"

    def announce_state(state: str) -> None:
        if not quiet:
            print(f"{announce}{spec.id} {state}", file=sys.stderr)

    def complete() -> Result | None:
        return _stored_result(spec, path) if path.exists() and not force else None

    if (result := distributed.first_decides(complete)) is not None:
        announce_state("is already complete")
        if distributed.is_writer():
            _remove_leftovers(folder)
            warn_if_data_changed(spec, result, Path(data_dir))
            send_stored(trackers, spec, result, quiet=quiet)
        yield result
        return
    check_code(spec, folder)
    set_up_torch(spec)
    with failing_as(spec.env[0], "before the run"):
        env = spec.create("env").make(data_dir)
    agent = build_agent(spec, env)
    if videos:
        check_rendering(env)
    with failing_as(spec.env[0], "before the run"):  # generates all tasks of a stream
        warnings = check_options(spec, env, agent)
    for warning in warnings if distributed.is_writer() else ():
        print(f"plastibench: {spec.id}: {warning}", file=sys.stderr)
    with contextlib.ExitStack() as stack:

        def claim() -> tuple[Result | None, bool]:
            """Lock the folder and prepare it; the result if another process has finished the run in the meantime."""
            stack.enter_context(lock_folder(folder))
            if (result := complete()) is not None:
                return result, False
            atomic_io.remove_temporary_files(folder)
            (folder / FAILURE_FILE).unlink(missing_ok=True)
            if force or not any(folder.glob("checkpoint*")):
                clear(folder)
            new = not (folder / "spec.toml").exists()
            if new:
                atomic_io.write_text(folder / "spec.toml", digests.signed(spec.to_toml()))
            return None, new

        result, new = distributed.first_decides(claim)
        if result is not None:
            yield result
            return
        stop_list = stack.enter_context(stop_requests()) if stop is None else stop
        choose_threads(agent, threads)
        try:
            current = OpenRun(
                spec, env, agent, folder, stop_list, quiet, checkpoint_seconds, command, runs_after, threads, trackers
            )
            if videos and isinstance(current.trainer, OffPolicyTrainer):
                current.trainer.videos = folder / FOLDER, videos
            announce_state("continues" if current.resumed else "starts")
            new = False
            with contextlib.closing(current):
                yield current
        except RunError as error:
            explained = isinstance(error.__cause__, OSError | None)  # a full disk has no room for a traceback
            where = "" if explained else f" (traceback in {folder / FAILURE_FILE})"
            _record(folder, error, f"{spec.id}: {error}")
            raise RunError(f"{spec.id}: {error}{where}") from error
        except UserError as error:
            if not new:
                _record(folder, error, f"{spec.id}: {error}")
            elif distributed.is_writer():
                remove_if_unused(folder)
            raise
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:  # a plugin may call sys.exit
            if not distributed.is_writer():
                raise  # the first process cannot know the reason
            line = f"{spec.id}: {describe_failure(spec, error)}"
            _record(folder, error, line)
            raise RunError(f"{line} (traceback in {folder / FAILURE_FILE})") from error


def _record(folder: Path, error: BaseException, line: str) -> None:
    if distributed.is_writer():
        record_failure(folder, error, line)


def _stored_result(spec: RunSpec, path: Path) -> Result:
    """The result of a complete run.

    Raises:
        UserError: The file is damaged, or is the result of another run.
    """
    try:
        result = read_result(path)
    except UserError as error:
        raise UserError(f"{error}; delete it to rerun") from error
    check_same(spec, result, path)
    result._reused = True
    return result


class OpenRun:
    """A run in its folder: records metrics, saves checkpoints and restores from them."""

    def __init__(
        self,
        spec: RunSpec,
        env: Any,
        agent: Any,
        folder: Path,
        stop: list[int],
        quiet: bool,
        checkpoint_seconds: float,
        command: str,
        runs_after: int,
        threads: int,
        trackers: Sequence[str] = (),
    ) -> None:
        self.spec, self.agent, self.folder, self.stop = spec, agent, folder, stop
        self.command = command or provenance.command()
        self.threads = threads
        self.sessions: list[dict[str, Any]] = []  # the processes that ran part of the run, this one last
        self.checkpoint_seconds = checkpoint_seconds
        self.seconds = 0.0
        # Of begin() and advance(); not counted if several processes share the work and repeat parts of it.
        self.cpu_seconds: float | None = 0.0 if distributed.world_size() == 1 else None
        self.stacked = 1  # runs that were updated together with this one, itself included
        self.continues = False  # whether the run goes on after it is closed
        with MemoryGuard("the replay buffer", copies=1):
            self.trainer = make_trainer(spec, env, agent, folder=folder)
        covered = self._restore()
        self.resumed = bool(covered)
        self.sessions.append(provenance.session(spec.run.device))  # now: the code on disk may change during the run
        self.env_version = getattr(self.trainer.env_config, "version", 1)
        self.recorder: Recorder | None = None  # only the first process writes
        self.tracking: Tracking | None = None
        if distributed.is_writer():
            self.recorder = Recorder(folder, spec, covered, self.trainer.axis, self.env_version, self.trainer.data)
            self.tracking = Tracking(trackers, spec, folder, axis=self.trainer.axis, quiet=quiet)
        name = f"{spec.intervention[0]} seed {spec.run.seed}"
        self.progress = Progress(name, self.trainer.length, quiet, self.trainer.unit, runs_after, spec.id)
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
        due = time.monotonic() - self.saved > self.checkpoint_seconds * max(1.0, self.saving)
        action = distributed.largest(_STOP if self.stop else int(due))  # all processes do the same
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
            "command": self.command,
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

        distributed.first_decides(write)
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

        size = distributed.first_decides(write)
        self.saving = time.monotonic() - self.saved
        start = time.monotonic()
        if self.tracking is not None:
            self.tracking.send()
        self.clock += time.monotonic() - start  # not part of the run's time
        return size

    def _restore(self) -> dict[str, Covered]:
        """Restore from the newest intact checkpoint, if there is one; return the log files that it covers."""
        found = distributed.first_decides(self._newest_intact)
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
                f"checkpoint {path} does not fit ({type(error).__name__}: {reason}); delete its folder to start over"
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
        if not self.threads:
            torch.set_num_threads(first)
        elif self.threads != first and distributed.is_writer():
            print(
                f"plastibench: {self.spec.id} was started with --threads {first}; with {self.threads} it will not be "
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


def _remove_leftovers(folder: Path) -> None:
    """Delete files left by a process that was killed right after it wrote the result."""
    if checkpoint.saved_checkpoints(folder) or any(folder.glob(".*.tmp")):
        with contextlib.suppress(UserError, OSError), lock_folder(folder):  # another process may be about to do it
            checkpoint.remove_checkpoints(folder)
            atomic_io.remove_temporary_files(folder)
