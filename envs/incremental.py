"""Class-incremental learning: classes are added in groups (Dohare et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import ImageDataset
from plastibench.envs.task_stream import Task, TaskStream
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.utils.wording import plural


@register_env(
    "incremental-digits",
    "200 digits whose classes arrive in five pairs; seconds with mlp on a CPU",
    dataset="digits",
    train_size=200,
    evaluate_every=50,
    augment="none",
)
@register_env("incremental-mnist", "MNIST whose classes arrive in 5 groups", groups=5, dataset="mnist", augment="none")
@register_env(
    "incremental-fashion-mnist",
    "Fashion-MNIST whose classes arrive in 5 groups",
    groups=5,
    dataset="fashion-mnist",
    augment="none",
)
@register_env("incremental-cifar10", "CIFAR-10 whose classes arrive in 5 groups", groups=5, dataset="cifar10")
@register_env("incremental-cifar100", "CIFAR-100 whose classes arrive in 20 groups", groups=20, dataset="cifar100")
@register_env(
    "incremental-tiny-imagenet",
    "Tiny-ImageNet whose classes arrive in 40 groups",
    groups=40,
    dataset="tiny-imagenet",
    epochs=40,
    evaluate_every=5,
)
@register_env(
    "incremental-imagefolder",
    "Your own images (--env.path) whose classes arrive in 5 groups",
    groups=5,
    dataset="imagefolder",
)
@register_env("incremental-own", "Your own data (--env.path) whose classes arrive in 2 groups", groups=2, dataset="own")
@dataclass(frozen=True)
class Incremental(TaskStreamConfig):
    """Each task adds the images of one group of classes; the class order is random.

    The network has an output for every class from the start. As in Dohare et al. 2024, outputs of classes that have
    not been added yet are excluded from the loss and from predictions, and accuracy is measured on the test images of
    the classes so far. Accuracy falls from task to task because there are more classes to distinguish. A network that
    is reset at every task boundary (intervention ``reset``) shows what accuracy is possible.
    """

    groups: int = option(5, "number of class groups; each group is one task", low=1)
    data: Literal["all", "new"] = option("all", "training data: all classes so far (all) or the task's new ones (new)")

    @property
    def full_task_count(self) -> int:
        """One task per group."""
        return self.groups

    def make(self, data_dir: str | Path = "data") -> TaskStream:
        """Load the data and build the task stream.

        Raises:
            UserError: There are fewer classes than groups, or a class has no test image.
        """
        stream = super().make(data_dir)
        total = len(np.unique(stream.dataset.train_labels))
        if self.groups > total:
            raise UserError(
                f"env: {plural(total, 'class is', 'classes are')} too few for {plural(self.groups, 'group')}; "
                "lower --env.groups"
            )
        untested = np.setdiff1d(stream.dataset.train_labels, stream.dataset.test_labels)
        if len(untested):
            raise UserError(
                f"env: {len(untested)} of {plural(total, 'class', 'classes')} have no test image; "
                "lower --env.train-size or use another dataset"
            )
        return stream

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks."""
        labels = dataset.train_labels
        classes = order.permutation(np.unique(labels))  # a subset of the data may lack some classes
        known, seen = classes[:0], classes[:0]
        for group in np.array_split(classes, self.groups)[: self.task_count]:
            new = order.permutation(np.flatnonzero(np.isin(labels, group)))
            known, seen = np.concatenate([known, group]), np.concatenate([seen, new])
            yield Task(new, labels[seen if self.data == "all" else new], 0.0, classes=known)
