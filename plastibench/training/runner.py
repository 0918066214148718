"""Run a spec in its own folder: lock it, restore, train, save checkpoints, and write the result."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.environment_check import naming_environment
from plastibench.results.files import read_result
from plastibench.results.result import Result
from plastibench.results.run_folder import check_code, check_same, clear, run_folder
from plastibench.training import checkpoint
from plastibench.training.assembly import build_agent, check_options, choose_threads
from plastibench.training.failure import FAILURE_FILE, describe_failure, record_failure
from plastibench.training.opened_run import CHECKPOINT_SECONDS, Interrupted, OpenedRun, RunSettings
from plastibench.training.stored_data import warn_if_data_changed
from plastibench.training.trackers.tracker import parse_names
from plastibench.training.trackers.tracking import send_stored
from plastibench.training.videos import check_rendering
from plastibench.utils import atomic_io, digests, distributed
from plastibench.utils.folder_lock import lock_folder, remove_if_unused
from plastibench.utils.runtime import resolve_device, set_up_torch
from plastibench.utils.stop_signals import stop_requests


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
    settings = RunSettings(
        runs_dir=Path(runs_dir),
        data_dir=Path(data_dir),
        quiet=quiet,
        threads=threads,
        announce=announce,
        runs_after=runs_after,
        checkpoint_seconds=checkpoint_seconds,
        stop=stop,
        command=command,
        force=force,
        trackers=parse_names(log),
        videos=videos,
    )
    return run_alone(spec, settings)


def run_alone(spec: RunSpec, settings: RunSettings) -> Result:
    """Run a spec; see :func:`run`."""
    threads_before = torch.get_num_threads()
    try:
        with opened(spec, settings) as found:
            return found if isinstance(found, Result) else found.to_the_end()
    finally:
        torch.set_num_threads(threads_before)  # the next run in this process may have a large network


@contextlib.contextmanager
def opened(spec: RunSpec, settings: RunSettings) -> Iterator[OpenedRun | Result]:
    """Lock the folder of a run and restore its state; an error inside the block is recorded in the folder.

    Yields:
        The run, or its result if it is already complete. The errors are those of :func:`run`.
    """
    distributed.join_processes()
    settings = dataclasses.replace(settings, quiet=settings.quiet or not distributed.is_writer())
    quiet, force, data_dir = settings.quiet, settings.force, settings.data_dir
    device = resolve_device(spec.run.device)
    spec = dataclasses.replace(spec, run=dataclasses.replace(spec.run, device=device))
    folder = run_folder(spec, settings.runs_dir)
    path = folder / "result.json"

    def announce_state(state: str) -> None:
        if not quiet:
            print(f"{settings.announce}{spec.id} {state}", file=sys.stderr)

    def complete() -> Result | None:
        return _stored_result(spec, path) if path.exists() and not force else None

    if (result := distributed.on_first_process(complete)) is not None:
        announce_state("is already complete")
        if distributed.is_writer():
            _remove_leftovers(folder)
            warn_if_data_changed(spec, result, data_dir)
            send_stored(settings.trackers, spec, result, quiet=quiet)
        yield result
        return
    check_code(spec, folder)
    set_up_torch(spec)
    with naming_environment(spec.env[0], "before the run"):
        env = spec.create("env").make(data_dir)
    agent = build_agent(spec, env)
    if settings.videos:
        check_rendering(env)
    with naming_environment(spec.env[0], "before the run"):  # generates all tasks of a stream
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

        result, new = distributed.on_first_process(claim)
        if result is not None:
            yield result
            return
        stop_list = stack.enter_context(stop_requests()) if settings.stop is None else settings.stop
        choose_threads(agent, settings.threads)
        try:
            current = OpenedRun(spec, env, agent, folder, stop_list, settings)
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


def _remove_leftovers(folder: Path) -> None:
    """Delete files left by a process that was killed right after it wrote the result."""
    if checkpoint.saved_checkpoints(folder) or any(folder.glob(".*.tmp")):
        with contextlib.suppress(UserError, OSError), lock_folder(folder):  # another process may be about to do it
            checkpoint.remove_checkpoints(folder)
            atomic_io.remove_temporary_files(folder)
