"""Random labels, drawn anew for every task: the plainest test of trainability (Zhang et al. 2017; Lyle et al. 2023)."""

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
@dataclass(frozen=True)
class Relabel(TaskStreamConfig):
    """All images are there from the first task on; at each switch every label is drawn uniformly at random.

    Nothing can be transferred between tasks, so the score is how well the labels of the current task are learned:
    accuracy on the training images. A network that keeps its plasticity reaches the same score in every task.
    """

    epochs: int = option(20, "passes over the data in each task", low=1)
    evaluate_every: int = option(5, "epochs between evaluations; the first five are always evaluated", low=1)
    augment: Literal["none", "crop-flip"] = option("none", "random crop after padding by 4 pixels, and flip")
    switches: int = option(20, "number of tasks", low=1)

    score_on = "train"

    @property
    def length(self) -> int:
        """How many tasks the scenario has."""
        return self.switches

    def tasks(self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator) -> Iterator[Task]:
        """Generate the tasks."""
        labels, classes = dataset.train_labels, len(dataset.classes)
        arrivals = order.permutation(len(labels))
        for number in range(self.task_count):
            drawn = noise.integers(classes, size=len(labels))
            wrong = float(np.mean(drawn != labels[arrivals]))
            yield Task(arrivals if number == 0 else arrivals[:0], drawn, wrong)
