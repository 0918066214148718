"""Run several specs in one process, so that their small networks are updated together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from plastibench.agents.shared_process import can_share_process
from plastibench.config.errors import RunError, UserError
from plastibench.config.spec import RunSpec
from plastibench.results.result import Result
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.opened_run import Interrupted, OpenedRun, RunSettings
from plastibench.training.runner import opened, run_alone
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.trainer_stack import TrainerStack
from plastibench.utils.stop_signals import stop_requests

Outcome = Result | Exception


def run_together(specs: Sequence[RunSpec], settings: RunSettings) -> list[Outcome]:
    """Train several specs in one process. Each has its own folder, and its result is bit-identical to a separate run.

    Args:
        specs: The specs to run. Those whose networks cannot be stacked run one by one, after the others.
        settings: How to run them. All runs checkpoint and stop once ``stop`` is not empty.

    Returns:
        The result of each run, or the error that :func:`plastibench.training.runner.run` would have raised.
    """
    threads_before = torch.get_num_threads()
    with stop_requests() if settings.stop is None else contextlib.nullcontext(settings.stop) as stop:
        members = [_Member(spec, replace(settings, stop=stop)) for spec in specs]
        try:
            waiting = [member for member in members if member.outcome is None and member.can_share]
            if waiting:
                threads = waiting[0].threads
                torch.set_num_threads(threads)
                _train([member for member in waiting if member.threads == threads])
        finally:
            for member in members:
                member.leave()
            torch.set_num_threads(threads_before)
        for member in members:
            if member.outcome is None:  # it cannot share the process, or an update failed, which stops the whole stack
                member.run_alone()
    return [member.outcome for member in members if member.outcome is not None]


class _Member:
    """One of the runs, inside the context that locks its folder and records its errors."""

    def __init__(self, spec: RunSpec, settings: RunSettings) -> None:
        self.spec, self._settings = spec, settings
        self.outcome: Outcome | None = None
        self._context = opened(spec, settings)
        self._inside = False
        self.run: OpenedRun
        self.threads = 0
        try:
            found = self._context.__enter__()
        except (RunError, UserError) as error:
            self.outcome = error
            return
        self._inside = True
        if isinstance(found, Result):
            self.outcome = found
        else:
            self.run, self.threads = found, torch.get_num_threads()  # opening a run has chosen the number
            if self.can_share:
                self.attempt(found.begin)

    @property
    def can_share(self) -> bool:
        """Whether the run is independent of others in its process."""
        return can_share_process(self.trainer.env_config, self.run.agent.config)

    @property
    def trainer(self) -> SupervisedTrainer | OffPolicyTrainer:
        trainer = self.run.trainer
        assert isinstance(trainer, SupervisedTrainer | OffPolicyTrainer)
        return trainer

    def attempt(self, step: Callable[[], object]) -> None:
        """Do a part of the run; if it fails, leave the context with the error."""
        try:
            step()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Leave the context with the error of the run."""
        self._inside, self.outcome = False, error
        try:
            self._context.__exit__(type(error), error, error.__traceback__)
        except RunError as described:
            self.outcome = described

    def after_update(self) -> None:
        """Do what is due after an update; at the end of the run, write its result."""
        self.run.count_cpu(self.trainer.after_update)
        self.run.save_if_due()
        if self.trainer.finished:
            self.outcome = self.run.finish()

    def leave(self) -> None:
        """Close the files and unlock the folder."""
        if self._inside:
            self._inside = False
            if self.outcome is None:
                self.run.continues = True
            self._context.__exit__(None, None, None)

    def run_alone(self) -> None:
        """Run the spec by itself, from its latest checkpoint."""
        try:
            self.outcome = run_alone(self.spec, self._settings)
        except (RunError, UserError, Interrupted) as error:
            self.outcome = error


def _train(members: Sequence[_Member]) -> None:
    """Train all members to their ends. If an update fails, the members that have not ended keep no outcome."""
    stack = TrainerStack()
    while members:
        try:
            updates = stack.learn([member.trainer for member in members])
        except Exception:  # one of the runs failed; it fails again when it runs alone
            return
        for member, update in zip(members, updates, strict=True):
            member.run.add_cpu(update.cpu_seconds)
            member.run.stacked = max(member.run.stacked, update.together)
            if update.error is None:
                member.attempt(member.after_update)
            else:
                member.fail(update.error)
            if member.outcome is not None:
                member.leave()
        members = [member for member in members if member.outcome is None]
