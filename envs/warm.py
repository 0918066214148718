"""Warm start: train on part of the data, then on all of it (Ash & Adams 2020; Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import ImageDataset
from plastibench.envs.task_stream import Task
from plastibench.envs.task_stream_config import TaskStreamConfig


@register_env(
    "warm-digits",
    "40 digits first, then all 200; seconds with mlp on a CPU",
    dataset="digits",
    train_size=200,
    epochs=400,
    evaluate_every=100,
    augment="none",
    fraction=0.2,
)
@register_env("warm-mnist", "Half of MNIST first, then all of it", dataset="mnist", augment="none")
@register_env(
    "warm-fashion-mnist", "Half of Fashion-MNIST first, then all of it", dataset="fashion-mnist", augment="none"
)
@register_env("warm-cifar10", "Half of CIFAR-10 first, then all of it", dataset="cifar10")
@register_env("warm-cifar100", "Half of CIFAR-100 first, then all of it", dataset="cifar100")
@register_env(
    "warm-tiny-imagenet",
    "Half of Tiny-ImageNet first, then all of it",
    dataset="tiny-imagenet",
    epochs=40,
    evaluate_every=5,
)
@register_env("warm-imagefolder", "Half of your own images first, then all of them (--env.path)", dataset="imagefolder")
@register_env("warm-own", "Part of your own data (--env.path) first, then all of it", dataset="own")
@dataclass(frozen=True)
class WarmStart(TaskStreamConfig):
    """The first task has a random fraction of the training images; the second has all. All labels are correct.

    The quantity of interest is the difference in final test accuracy between a network that was first trained on the
    fraction and one that was not. The intervention ``reset`` at the task boundary gives the latter, with the same data,
    order and number of updates. Ash & Adams use a fraction of one half.
    """

    fraction: float = option(0.5, "fraction of the training images in the first task", low=0, high=1, formerly="share")

    @property
    def full_task_count(self) -> int:
        """Two tasks: part of the data, then all of it."""
        return 2

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks."""
        indices = order.permutation(len(dataset.train_labels))
        first = max(1, round(self.fraction * len(indices)))  # every task needs an image
        for start, end in ((0, first), (first, len(indices)))[: self.task_count]:
            yield Task(indices[start:end], dataset.train_labels[indices[:end]], 0.0)
