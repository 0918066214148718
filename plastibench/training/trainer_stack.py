"""Updates of several trainers, made together where their networks are small and of one architecture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from torch import Tensor

from plastibench.agents.classifier_stack import StackableClassifier, stackable_classifier, update_together
from plastibench.training.supervised import SupervisedTrainer

_Item = tuple[SupervisedTrainer, StackableClassifier, Tensor]  # and the indices of its batch


class TrainerStack:
    """Makes the updates of several trainers, together where their agents and batches have the same shapes.

    Each trainer keeps its own data, order and position, and learns the same as by itself.
    """

    def __init__(self) -> None:
        self._members: dict[SupervisedTrainer, StackableClassifier | None] = {}

    def learn(self, trainers: Sequence[SupervisedTrainer]) -> None:
        """Make one update of every trainer."""
        groups: dict[Hashable, list[_Item]] = {}
        for trainer in trainers:
            if (member := self._member(trainer)) is None:
                trainer.learn()
                continue
            indices = trainer.draw_indices()
            groups.setdefault((member.key, len(indices)), []).append((trainer, member, indices))
        for group in groups.values():
            _learn_together(group)

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
