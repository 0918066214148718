"""Random labels, re-randomized at every task: a direct test of trainability (Zhang et al. 2017; Lyle et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import ImageDataset
from plastibench.envs.task_stream import Task
from plastibench.envs.task_stream_config import TaskStreamConfig


@register_env(
    "relabel-digits",
    "1,200 digits with new random labels in each of 20 tasks; seconds on a CPU",
    dataset="digits",
    train_size=1200,
)
@register_env("relabel-mnist", "MNIST with new random labels in each task", dataset="mnist", train_size=1200)
@register_env(
    "relabel-fashion-mnist",
    "Fashion-MNIST with new random labels in each task",
    dataset="fashion-mnist",
    train_size=1200,
)
@register_env("relabel-cifar10", "CIFAR-10 with new random labels in each task", dataset="cifar10", train_size=1200)
@register_env("relabel-cifar100", "CIFAR-100 with new random labels in each task", dataset="cifar100", train_size=1200)
@register_env(
    "relabel-tiny-imagenet",
    "Tiny-ImageNet with new random labels in each task",
    dataset="tiny-imagenet",
    train_size=1200,
)
@register_env(
    "relabel-imagefolder", "Your own images (--env.path) with new random labels in each task", dataset="imagefolder"
)
@register_env("relabel-own", "Your own data (--env.path) with new random labels in each task", dataset="own")
@dataclass(frozen=True)
class Relabel(TaskStreamConfig):
    """The images stay the same; every task draws all labels uniformly at random.

    Nothing transfers between tasks. Accuracy is measured on the training images, so it shows how well the network
    learns the labels of the current task. A network that keeps its plasticity reaches the same accuracy in every task.
    """

    epochs: int = option(20, "epochs per task", low=1)
    evaluate_every: int = option(5, "epochs between evaluations; the first five are always evaluated", low=1)
    augment: Literal["none", "crop-flip"] = option("none", "crop-flip: random crop (padding 4) and horizontal flip")
    tasks: int = option(20, "number of tasks", low=1, high=1_000_000, formerly="switches")

    score_on = "train"

    @property
    def full_task_count(self) -> int:
        """The number of tasks set by ``tasks``."""
        return self.tasks

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks."""
        labels, classes = dataset.train_labels, len(dataset.classes)
        indices = order.permutation(len(labels))
        for number in range(self.task_count):
            drawn = noise.integers(classes, size=len(labels))
            wrong = float(np.mean(drawn != labels[indices]))
            yield Task(indices if number == 0 else indices[:0], drawn, wrong)
