"""Classes that arrive in groups (class-incremental learning as in Dohare et al. 2024)."""

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
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.envs.task_stream import Task, TaskStream


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
@dataclass(frozen=True)
class Incremental(TaskStreamConfig):
    """The classes, in random order, are split into groups of equal size; each task brings the images of one more.

    The network has an output for every class from the start. As in Dohare et al. 2024 outputs of classes that have
    not arrived take no part in loss and predictions, and accuracy is that on the test images of the classes so far. It
    falls from task to task because there are more classes to tell apart: a network that is reset at every switch says
    what can be reached.
    """

    groups: int = option(5, "groups of classes, each of which is a task", low=1)
    data: Literal["all", "new"] = option(
        "all", "train on the classes so far (all), or on a task's new ones alone (new)"
    )

    @property
    def length(self) -> int:
        """How many tasks the scenario has."""
        return self.groups

    def make(self, data_dir: str | Path = "data") -> TaskStream:
        """The stream itself; loads the data."""
        stream = super().make(data_dir)
        total = len(np.unique(stream.dataset.train_labels))
        if self.groups > total:
            raise UserError(f"env: {total} classes are too few for {self.groups} groups; lower --env.groups")
        untested = np.setdiff1d(stream.dataset.train_labels, stream.dataset.test_labels)
        if len(untested):
            raise UserError(
                f"env: {len(untested)} of {total} classes have no test image; lower --env.train-size or take other data"
            )
        return stream

    def tasks(self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator) -> Iterator[Task]:
        """Generate the tasks."""
        labels = dataset.train_labels
        classes = order.permutation(np.unique(labels))  # a part of the data may lack some
        known, seen = classes[:0], classes[:0]
        for group in np.array_split(classes, self.groups)[: self.task_count]:
            arrivals = order.permutation(np.flatnonzero(np.isin(labels, group)))
            known, seen = np.concatenate([known, group]), np.concatenate([seen, arrivals])
            yield Task(arrivals, labels[seen if self.data == "all" else arrivals], 0.0, classes=known)
