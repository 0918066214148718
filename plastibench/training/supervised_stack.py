"""Update several supervised trainers together if their networks are small and have the same architecture."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

from torch import Tensor

from plastibench.agents.classifier_stack import StackableClassifier, stackable_classifier, update_together
from plastibench.training.shared_update import Update
from plastibench.training.supervised import SupervisedTrainer

_Item = tuple[SupervisedTrainer, StackableClassifier, Tensor]  # and the indices of its batch


class SupervisedStack:
    """Updates several trainers; those with the same shapes share one batched pass."""

    def __init__(self) -> None:
        self._members: WeakKeyDictionary[SupervisedTrainer, StackableClassifier | None] = WeakKeyDictionary()

    def learn(self, trainers: Sequence[SupervisedTrainer]) -> list[Update]:
        """Make one update of every trainer, and return the outcome for each."""
        groups: dict[Hashable, list[_Item]] = {}
        updates: dict[SupervisedTrainer, Update] = {}
        for trainer in trainers:
            if (member := self._member(trainer)) is None:
                start = time.process_time()
                trainer.learn()
                updates[trainer] = Update(1, time.process_time() - start)
                continue
            indices = trainer.draw_indices()
            groups.setdefault((member.key, len(indices)), []).append((trainer, member, indices))
        for group in groups.values():
            start = time.process_time()
            _learn_together(group)
            each = Update(len(group), (time.process_time() - start) / len(group))
            updates.update((trainer, each) for trainer, _, _ in group)
        return [updates[trainer] for trainer in trainers]

    def _member(self, trainer: SupervisedTrainer) -> StackableClassifier | None:
        member = self._members.get(trainer)
        if member is None or not member.is_current():
            member = self._members[trainer] = stackable_classifier(trainer.agent)
        return member


def _learn_together(group: Sequence[_Item]) -> None:
    update_together(
        [member for _, member, _ in group],
        [trainer.stored_images.index_select(0, indices) for trainer, _, indices in group],
        [trainer.stored_labels.index_select(0, indices) for trainer, _, indices in group],
        lambda number: group[number][0].stored[group[number][2]],
    )
    for trainer, _, indices in group:
        trainer.count_update(len(indices))
