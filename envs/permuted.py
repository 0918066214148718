"""Pixels that change places at every switch: inputs are new, the problem is the same (Goodfellow et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import ImageDataset
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.envs.task_stream import Task


@register_env(
    "permuted-digits",
    "200 of 1,200 digits in each of 50 tasks, with a new pixel permutation; ten seconds with mlp on a CPU",
    dataset="digits",
    samples=200,
)
@register_env("permuted-mnist", "MNIST with a new pixel permutation in each task", dataset="mnist")
@register_env(
    "permuted-fashion-mnist", "Fashion-MNIST with a new pixel permutation in each task", dataset="fashion-mnist"
)
@register_env("permuted-cifar10", "CIFAR-10 with a new pixel permutation in each task", dataset="cifar10")
@register_env("permuted-cifar100", "CIFAR-100 with a new pixel permutation in each task", dataset="cifar100")
@register_env(
    "permuted-tiny-imagenet", "Tiny-ImageNet with a new pixel permutation in each task", dataset="tiny-imagenet"
)
@register_env(
    "permuted-imagefolder",
    "Your own images (--env.path) with a new pixel permutation in each task",
    dataset="imagefolder",
)
@dataclass(frozen=True)
class Permuted(TaskStreamConfig):
    """In each task the pixels of all images, of training and evaluation, change places in one new way at random.

    As in Dohare et al. 2024, the first task is permuted too, labels are right, and the data of a task replaces that of
    the one before. Theirs shows each image once and is scored while it is learned; here a task has epochs and is scored
    on the test set in the task's permutation. All channels of a pixel move together. Every task is equally hard, so a
    network that keeps its plasticity reaches the same score in each.
    """

    epochs: int = option(20, "passes over the data in each task", low=1)
    evaluate_every: int = option(5, "epochs between evaluations; the first five are always evaluated", low=1)
    augment: Literal["none"] = option("none", "none: a crop of permuted pixels means nothing")
    switches: int = option(50, "number of tasks", low=1)
    samples: int = option(0, "images drawn anew for each task; 0: the whole training set", low=0)

    @property
    def length(self) -> int:
        """How many tasks the scenario has."""
        return self.switches

    def tasks(self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator) -> Iterator[Task]:
        """Generate the tasks."""
        total, pixels = len(dataset.train_labels), dataset.train_images[0, 0].size
        for _ in range(self.task_count):
            arrivals = order.permutation(total)[: self.samples or total]
            yield Task(arrivals, dataset.train_labels[arrivals], 0.0, pixels=order.permutation(pixels))
