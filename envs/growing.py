"""The paper's scenario: data that grows while its labels become cleaner (paper section 4; Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plastibench.config.errors import UserError
from plastibench.config.options import option
from plastibench.config.registry import register_env
from plastibench.envs.datasets import ImageDataset
from plastibench.envs.task_stream_config import TaskStreamConfig
from plastibench.envs.task_stream import Integers, Task


@register_env(
    "cl-digits",
    "Small-scale version of the paper's task stream: 200 8x8 digits; no download, about a minute on a CPU",
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
@dataclass(frozen=True)
class Growing(TaskStreamConfig):
    """The training set is cut at random into as many chunks as there are noise ratios; task k holds chunks 1..k.

    In each task a share of all labels so far is wrong: drawn anew for every task over old and new images alike, always
    a wrong class, and fixed within the task. The ratios are those of the scenario's official code
    (dojeon-ai/Hare-Tortoise, ``configs/_continual.yaml``); the paper gives only their ends, 0.5 and 0.
    """

    noise: tuple[float, ...] = option(
        (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0), "share of wrong labels in each task", low=0, high=1
    )

    def __post_init__(self) -> None:
        if not self.noise:
            raise ValueError("noise is empty; it needs the share of each task")

    @property
    def length(self) -> int:
        """How many tasks the scenario has."""
        return len(self.noise)

    def tasks(self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator) -> Iterator[Task]:
        """Generate the tasks."""
        labels, classes = dataset.train_labels, len(dataset.classes)
        if classes < 2 and any(self.noise):
            raise UserError(f"{dataset.name} has one class, so that no label can be wrong; take --env.noise 0")
        chunks = np.array_split(order.permutation(len(labels)), self.length)
        seen = np.empty(0, np.int64)
        for chunk, ratio in zip(chunks[: self.task_count], self.noise, strict=False):
            seen = np.concatenate([seen, chunk])
            yield Task(chunk, corrupt_labels(labels[seen], ratio, classes, noise), ratio)


def corrupt_labels(labels: Integers, ratio: float, classes: int, generator: np.random.Generator) -> Integers:
    """The labels with ``floor(ratio·n)`` of them, chosen at random, replaced by a wrong class drawn uniformly."""
    count = int(len(labels) * ratio + 1e-9)
    wrong = generator.permutation(len(labels))[:count]
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, classes, size=count)) % classes
    return labels
