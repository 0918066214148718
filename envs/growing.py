"""Growing data with decreasing label noise: the paper's task stream (paper section 4; Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import ImageDataset
from plastibench.envs.task_stream import Integers, Task
from plastibench.envs.task_stream_config import TaskStreamConfig


@register_env(
    "cl-digits",
    "Small-scale version of the paper's task stream: 200 digits of 8x8 pixels; no download, a minute on a CPU",
    dataset="digits",
    train_size=200,
    epochs=150,
    evaluate_every=50,
    augment="none",
)
@register_env("cl-mnist", "Growing MNIST with decreasing label noise", dataset="mnist", augment="none")
@register_env(
    "cl-fashion-mnist", "Growing Fashion-MNIST with decreasing label noise", dataset="fashion-mnist", augment="none"
)
@register_env("cl-cifar10", "Growing CIFAR-10 with decreasing label noise", dataset="cifar10")
@register_env(
    "cl-cifar100", "The paper's task stream: growing CIFAR-100 with decreasing label noise", dataset="cifar100"
)
@register_env(
    "cl-tiny-imagenet",
    "The paper's second task stream: growing Tiny-ImageNet with decreasing label noise",
    dataset="tiny-imagenet",
    epochs=40,
    evaluate_every=5,
)
@register_env(
    "cl-imagefolder", "Growing set of your own images (--env.path) with decreasing label noise", dataset="imagefolder"
)
@register_env("cl-own", "Growing set of your own data (--env.path) with decreasing label noise", dataset="own")
@dataclass(frozen=True)
class Growing(TaskStreamConfig):
    """The training set grows by one random chunk per task while the label noise decreases.

    The training set is split at random into one chunk per noise ratio; task k contains chunks 1 to k. In each task, a
    fraction of all labels so far is replaced with a wrong class. New wrong labels are drawn for every task, for old
    and new images alike, and stay fixed within the task. The default ratios are those of the official code
    (dojeon-ai/Hare-Tortoise, ``configs/_continual.yaml``); the paper gives only the first (0.5) and the last (0).
    """

    noise: tuple[float, ...] = option(
        (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0), "fraction of wrong labels in each task", low=0, high=1
    )

    def __post_init__(self) -> None:
        if not self.noise:
            raise ValueError("noise is empty; set the fraction of wrong labels for at least one task")

    @property
    def full_task_count(self) -> int:
        """One task per noise ratio."""
        return len(self.noise)

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks."""
        labels, classes = dataset.train_labels, len(dataset.classes)
        if classes < 2 and any(self.noise):
            raise UserError(f"{dataset.name} has only one class, so no label can be wrong; set --env.noise 0")
        chunks = np.array_split(order.permutation(len(labels)), self.full_task_count)
        seen = np.empty(0, np.int64)
        for chunk, ratio in zip(chunks[: self.task_count], self.noise, strict=False):
            seen = np.concatenate([seen, chunk])
            yield Task(chunk, corrupt_labels(labels[seen], ratio, classes, noise), ratio)


def corrupt_labels(labels: Integers, ratio: float, classes: int, generator: np.random.Generator) -> Integers:
    """Replace ``floor(ratio * n)`` randomly chosen labels with a wrong class, drawn uniformly. [n]."""
    count = int(len(labels) * ratio + 1e-9)
    wrong = generator.permutation(len(labels))[:count]
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, classes, size=count)) % classes
    return labels
