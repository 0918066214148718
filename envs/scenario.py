"""What every supervised scenario has in common: its data, its budget, and how it becomes a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plastibench.config.options import build, option
from plastibench.config.registry import envs
from plastibench.envs.datasets import ImageDataset, load_dataset
from plastibench.envs.task_stream import Task, TaskStream


@dataclass(frozen=True)
class TaskStreamConfig:
    """Options of every task stream; a subclass says what the tasks are."""

    kind = "task stream"

    dataset: str = option("digits", "digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet or imagefolder")
    path: str | None = option(None, "for imagefolder: a folder with train/<class>/* and test/<class>/*")
    image_size: int | None = option(None, "for imagefolder: side of the images after resizing (32)", low=1)
    train_size: int | None = option(None, "use only so many training images", low=1)
    epochs: int = option(100, "passes over the data in each task", low=1)
    evaluate_every: int = option(10, "epochs between evaluations; the first five are always evaluated", low=1)
    augment: Literal["none", "crop-flip"] = option("crop-flip", "random crop after padding by 4 pixels, and flip")
    stop_after: int = option(0, "end after so many tasks; 0: run them all", low=0)

    score_on = "test"
    version = 1  # another one whenever the same options come to mean another task: results are not compared across

    @property
    def augment_pad(self) -> int:
        """Pixels of padding before the random crop; 0 means no augmentation."""
        return 4 if self.augment == "crop-flip" else 0

    @property
    def task_count(self) -> int:
        """How many tasks a run has."""
        return min(self.stop_after or self.length, self.length)

    @property
    def length(self) -> int:
        """How many tasks the scenario has."""
        raise NotImplementedError

    def tasks(self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator) -> Iterator[Task]:
        """Generate the tasks.

        Args:
            dataset: Where arrivals come from, and the right labels.
            order: Draws what arrives when.
            noise: Draws which labels are wrong, and how.
        """
        raise NotImplementedError

    def make(self, data_dir: str | Path = "data") -> TaskStream:
        """The stream itself; loads the data."""
        dataset = load_dataset(
            self.dataset, data_dir, path=self.path, image_size=self.image_size, train_size=self.train_size
        )
        return TaskStream(dataset, self)


def make_task_stream(name: str, data_dir: str | Path = "data", **options: Any) -> TaskStream:
    """The stream registered as ``name``: the entry point of ``gymnasium.make("plastibench/<name>-v0", …)``."""
    entry = envs[name]
    scenario: Any = build(entry.load(), {**entry.defaults, **options}, f"env {name}")
    assert isinstance(scenario, TaskStreamConfig)
    return scenario.make(data_dir)
