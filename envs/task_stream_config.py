"""Base class of task stream configs: shared options, and the method that builds the environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plastibench.config.errors import UserError
from plastibench.config.options import build, option
from plastibench.config.registry import envs
from plastibench.envs.datasets import ImageDataset, load_dataset
from plastibench.envs.task_stream import Task, TaskStream


@dataclass(frozen=True)
class TaskStreamConfig:
    """Options of every task stream. A subclass defines the tasks."""

    kind = "task stream"

    dataset: str = option(
        "digits", "digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagefolder or own"
    )
    path: str | None = option(
        None,
        "imagefolder and own: a folder with train/<class>/* and test/<class>/*; own: also FILE.npz, module:function",
    )
    image_size: int | None = option(
        None, "image folders only: height and width after resizing (default: 32)", low=1, high=4_096
    )
    train_size: int | None = option(None, "number of training images to use (default: all)", low=1)
    test_size: int | None = option(
        None, "number of test images to evaluate; every run uses the same stratified subset (default: all)", low=1
    )
    epochs: int = option(100, "epochs per task", low=1)
    evaluate_every: int = option(10, "epochs between evaluations; the first five are always evaluated", low=1)
    augment: Literal["none", "crop-flip"] = option(
        "crop-flip", "crop-flip: random crop (padding 4) and horizontal flip"
    )
    stop_after: int = option(0, "stop after this many tasks (0: run all tasks)", low=0)

    score_on = "test"
    version = 1  # raise it when the same options define different tasks: versions are never compared

    @property
    def augment_pad(self) -> int:
        """Pixels of padding before the random crop; 0 disables augmentation."""
        return 4 if self.augment == "crop-flip" else 0

    @property
    def task_count(self) -> int:
        """Number of tasks in a run."""
        return min(self.stop_after or self.full_task_count, self.full_task_count)

    @property
    def full_task_count(self) -> int:
        """Number of tasks in the stream when ``stop_after`` does not shorten it."""
        raise NotImplementedError

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks.

        Args:
            dataset: Supplies the images and their correct labels.
            order: Draws which images belong to which task, and in which order.
            noise: Draws the wrong labels.
        """
        old: Any = getattr(self, "tasks", None)
        if callable(old):  # name of this method in 0.1.0
            return iter(old(dataset, order, noise))
        raise NotImplementedError

    def make(self, data_dir: str | Path = "data") -> TaskStream:
        """Load the data and build the task stream.

        Raises:
            UserError: The data is missing or damaged, or ``test_size`` has no effect on this stream.
        """
        if self.test_size is not None and self.score_on != "test":
            raise UserError("test-size has no effect here: this task stream evaluates on its training images")
        dataset = load_dataset(
            self.dataset,
            data_dir,
            path=self.path,
            image_size=self.image_size,
            train_size=self.train_size,
            test_size=self.test_size,
        )
        return TaskStream(dataset, self)


def make_task_stream(name: str, data_dir: str | Path = "data", **options: Any) -> TaskStream:
    """Build the task stream registered as ``name``; entry point of ``gymnasium.make("plastibench/<name>-v0", ...)``."""
    entry = envs[name]
    config: Any = build(entry.load(), options, f"env {name}", entry.defaults)
    assert isinstance(config, TaskStreamConfig)
    return config.make(data_dir)
