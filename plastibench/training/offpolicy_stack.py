"""Steps of several RL trainers side by side: their agents act and are updated together, all else is their own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tensordict import TensorDictBase
from torch import Tensor

from plastibench.agents.dqn_stack import StackableDQN, act_together, stackable_dqn, update_together
from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.shared_update import Update


class _Turn:
    """A trainer's step: its CPU time so far, and the error that ended it."""

    def __init__(self, trainer: OffPolicyTrainer) -> None:
        self.trainer = trainer
        self.together, self.cpu_seconds = 1, 0.0
        self.error: Exception | None = None

    def attempt(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """Do a part that concerns no other trainer; if it fails, the step of this trainer ends."""
        with _shared_time([self]):
            try:
                return part(*arguments)
            except Exception as error:
                self.error = error


class OffPolicyStack:
    """Trains several RL trainers; those with the same shapes share the passes through their networks."""

    def __init__(self) -> None:
        self._members: WeakKeyDictionary[OffPolicyTrainer, StackableDQN | None] = WeakKeyDictionary()

    def learn(self, trainers: Sequence[OffPolicyTrainer]) -> list[Update]:
        """Let every trainer ``learn()`` once, and return the outcome for each."""
        turns = [_Turn(trainer) for trainer in trainers]
        self._step(turns)
        remaining = {turn: turn.trainer.due_batches() for turn in turns if turn.error is None}
        while remaining:
            batches = {turn: turn.attempt(next, due, None) for turn, due in remaining.items()}
            remaining = {turn: due for turn, due in remaining.items() if batches[turn] is not None}
            self._update({turn: batches[turn] for turn in remaining})
        return [Update(turn.together, turn.cpu_seconds, turn.error) for turn in turns]

    def _step(self, turns: Sequence[_Turn]) -> None:
        """Choose the actions of all trainers, and step the environments of each."""
        observations = {turn: turn.attempt(turn.trainer.observe) for turn in turns}
        actions: dict[_Turn, Tensor] = {}
        for members in self._groups({turn: seen for turn, seen in observations.items() if seen is not None}):
            seen = [observations[turn] for turn in members]
            if len(members) == 1:
                (turn,) = members
                actions[turn] = turn.attempt(turn.trainer.agent.act, seen[0], False)
                continue
            with _shared_time([*members]):
                actions.update(zip(members, act_together([*members.values()], seen), strict=True))
        for turn in turns:
            if turn.error is None:
                turn.attempt(turn.trainer.step, actions.get(turn))

    def _update(self, batches: dict[_Turn, TensorDictBase]) -> None:
        """Make one update of every trainer that has a batch."""
        for members in self._groups(batches):
            if len(members) == 1:
                (turn,) = members
                turn.attempt(turn.trainer.learner.learn, batches[turn])
                continue
            with _shared_time([*members]):
                update_together([*members.values()], [batches[turn] for turn in members])
            for turn in members:
                turn.trainer.learner.updates += 1
                turn.together = max(turn.together, len(members))

    def _groups(self, inputs: dict[_Turn, Any]) -> list[dict[_Turn, Any]]:
        """Divide trainers into groups whose agents can be stacked with inputs of one length."""
        groups: dict[Hashable, dict[_Turn, Any]] = {}
        for turn, data in inputs.items():
            member = self._member(turn.trainer)
            key = turn if member is None else (member.key, len(data))
            groups.setdefault(key, {})[turn] = member
        return [*groups.values()]

    def _member(self, trainer: OffPolicyTrainer) -> StackableDQN | None:
        member = self._members.get(trainer)
        if member is None or not member.is_current():
            member = self._members[trainer] = stackable_dqn(trainer.agent)
        return member


@contextlib.contextmanager
def _shared_time(turns: Sequence[_Turn]) -> Iterator[None]:
    """Divide the CPU time of a block equally among trainers."""
    start = time.process_time()
    try:
        yield
    finally:
        each = (time.process_time() - start) / len(turns)
        for turn in turns:
            turn.cpu_seconds += each
