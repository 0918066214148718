"""Permuted pixels: each task applies a new pixel permutation to the same problem (Goodfellow et al. 2013)."""

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
@register_env("permuted-own", "Your own data (--env.path) with permuted pixels in each task", dataset="own")
@dataclass(frozen=True)
class Permuted(TaskStreamConfig):
    """Each task permutes the pixels of all training and evaluation images with a new random permutation.

    As in Dohare et al. 2024, the first task is permuted too, all labels are correct, and the data of a task replaces
    that of the previous task. Their version shows each image once and measures accuracy during training; here a task
    has several epochs and is evaluated on the test set under the same permutation. All channels of a pixel move
    together. All tasks are equally hard, so a network that keeps its plasticity reaches the same accuracy in each.
    """

    epochs: int = option(20, "epochs per task", low=1)
    evaluate_every: int = option(5, "epochs between evaluations; the first five are always evaluated", low=1)
    augment: Literal["none"] = option("none", "always none: permuted pixels cannot be cropped or flipped")
    tasks: int = option(50, "number of tasks", low=1, high=1_000_000, formerly="switches")
    samples: int = option(0, "training images per task, drawn at random for each (0: the full training set)", low=0)

    @property
    def full_task_count(self) -> int:
        """The number of tasks set by ``tasks``."""
        return self.tasks

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks."""
        total, pixels = len(dataset.train_labels), dataset.train_images[0, 0].size
        for _ in range(self.task_count):
            new = order.permutation(total)[: self.samples or total]
            yield Task(new, dataset.train_labels[new], 0.0, pixel_order=order.permutation(pixels))
