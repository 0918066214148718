"""Let several trainers learn together if their networks are small and have the same architecture."""

from __future__ import annotations

from collections.abc import Sequence

from plastibench.training.offpolicy import OffPolicyTrainer
from plastibench.training.offpolicy_stack import OffPolicyStack
from plastibench.training.shared_update import Update
from plastibench.training.supervised import SupervisedTrainer
from plastibench.training.supervised_stack import SupervisedStack


class TrainerStack:
    """Trains several trainers side by side; those with the same shapes share batched passes.

    Each trainer keeps its own data, order and position, and learns exactly what it would learn alone.
    """

    def __init__(self) -> None:
        self._supervised, self._offpolicy = SupervisedStack(), OffPolicyStack()

    def learn(self, trainers: Sequence[SupervisedTrainer | OffPolicyTrainer]) -> list[Update]:
        """Let every trainer ``learn()`` once, and return the outcome for each."""
        supervised = [trainer for trainer in trainers if isinstance(trainer, SupervisedTrainer)]
        offpolicy = [trainer for trainer in trainers if isinstance(trainer, OffPolicyTrainer)]
        updates: dict[object, Update] = {
            **dict(zip(supervised, self._supervised.learn(supervised), strict=True)),
            **dict(zip(offpolicy, self._offpolicy.learn(offpolicy), strict=True)),
        }
        return [updates[trainer] for trainer in trainers]
