"""Continual supervised learning as a gymnasium environment: one step is one task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from plastibench.envs.datasets import ImageDataset

Integers = npt.NDArray[np.int64]
Observation = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """A period with a fixed data distribution.

    Attributes:
        new_indices: Indices of the training images that this task adds. [n_new]
        labels: Labels of all training images of the task, in the order in which the images were added; some may be
            wrong. [n_seen] if the new images join the earlier ones; [n_new] if they replace them.
        noise: Fraction of these labels that are wrong.
        pixel_order: Source position of each pixel, row by row, for the new images and all evaluation images; None
            leaves images unchanged. [H * W]
        classes: The classes evaluated in this task; None means all. [c]
    """

    new_indices: Integers
    labels: Integers
    noise: float
    pixel_order: Integers | None = None
    classes: Integers | None = None


class TaskSource(Protocol):
    """Interface that a task stream needs from its config.

    See :class:`~plastibench.envs.task_stream_config.TaskStreamConfig`.
    """

    @property
    def augment_pad(self) -> int:
        """Pixels of padding before the random crop; 0 disables augmentation."""

    @property
    def score_on(self) -> str:
        """Images that are evaluated: ``test`` or ``train``."""

    @property
    def task_count(self) -> int:
        """Number of tasks."""

    def generate_tasks(
        self, dataset: ImageDataset, order: np.random.Generator, noise: np.random.Generator
    ) -> Iterator[Task]:
        """Generate the tasks."""


class TaskStream(gymnasium.Env[Observation, Integers]):
    """A sequence of image classification tasks; one step is one task.

    - Observation: ``images``, uint8 [n_new, C, H, W], the images that the task adds; ``labels``, int64, the training
      labels of the task in the order in which the images were added: of all images so far, or only of the new ones
      if these replace the earlier ones.
    - Action: the predicted class of every image in :attr:`evaluation_images` at the end of the task, int64 [M]. The
      number of evaluation images can differ between tasks; only the first entries of the action are used.
    - Reward: the fraction of correct predictions. The return of an episode is the number of tasks times the average
      end-of-task accuracy.
    - The episode terminates after the last task; the final observation contains no new images.
    """

    metadata = {"render_modes": []}

    def __init__(self, dataset: ImageDataset, config: TaskSource) -> None:
        """Create the stream of the tasks that ``config`` defines over ``dataset``."""
        self.dataset = dataset
        self.config = config
        self.num_classes = len(dataset.classes)
        self.image_shape: tuple[int, int, int] = dataset.train_images.shape[1:]
        self.augment_pad = config.augment_pad
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            images=spaces.Sequence(spaces.Box(0, 255, self.image_shape, np.uint8), stack=True),
            labels=spaces.Sequence(spaces.Discrete(self.num_classes), stack=True),
        )
        test = (dataset.test_images, dataset.test_labels)
        self._evaluation_set = test if config.score_on == "test" else (dataset.train_images, dataset.train_labels)
        #: Images that the next action must classify: the clean test set or the training set. [M, C, H, W]
        self.evaluation_images = self._evaluation_set[0]
        self.action_space = spaces.MultiDiscrete([self.num_classes] * len(self.evaluation_images))
        self._tasks: Iterator[Task] = iter(())
        self._task: Task | None = None
        self._number = -1
        self._seen: Integers = np.empty(0, np.int64)

    @property
    def evaluation_labels(self) -> Integers:
        """Correct classes of :attr:`evaluation_images` in the current task. [M]."""
        assert self._task is not None, "call reset() first"
        if self.config.score_on == "test":
            return self._restrict(self._evaluation_set[1], self._task)
        labels = np.empty(len(self._seen), np.int64)
        labels[self._seen] = self._task.labels
        return labels

    @property
    def evaluation_classes(self) -> Integers | None:
        """Classes that can be correct in the current task; None means all. [c]."""
        assert self._task is not None, "call reset() first"
        return self._task.classes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the first task. The seed determines all tasks."""
        super().reset(seed=seed)
        order, noise = self.np_random.spawn(2)
        self._tasks = self.config.generate_tasks(self.dataset, order, noise)
        self._number, self._seen = -1, np.empty(0, np.int64)
        return self._start(next(self._tasks))

    def task_sizes(self, seed: int) -> list[int]:
        """Number of training images of each task after ``reset(seed=seed)``. The state of the stream is unchanged."""
        order, noise = np_random(seed)[0].spawn(2)
        return [len(task.labels) for task in self.config.generate_tasks(self.dataset, order, noise)]

    def step(self, action: Integers) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Score the predictions for the current task and start the next task."""
        labels = self.evaluation_labels
        reward = float(np.mean(np.asarray(action)[: len(labels)] == labels))
        task = next(self._tasks, None)
        if task is None:
            assert self._task is not None
            empty = self.dataset.train_images[:0]
            return {"images": empty, "labels": self._task.labels.copy()}, reward, True, False, self._info()
        observation, info = self._start(task)
        return observation, reward, False, False, info

    def _start(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        self._task = task
        self._number += 1
        replaces = len(task.new_indices) == len(task.labels)
        self._seen = task.new_indices if replaces else np.concatenate([self._seen, task.new_indices])
        self.evaluation_images = _permute_pixels(self._restrict(self._evaluation_set[0], task), task.pixel_order)
        images = _permute_pixels(self.dataset.train_images[task.new_indices], task.pixel_order)
        return {"images": images, "labels": task.labels.copy()}, self._info()

    def _restrict(self, array: npt.NDArray[Any], task: Task) -> npt.NDArray[Any]:
        """Select the rows of the evaluation images or labels whose class the task evaluates."""
        return array if task.classes is None else array[np.isin(self._evaluation_set[1], task.classes)]

    def _info(self) -> dict[str, Any]:
        assert self._task is not None
        return {"task": self._number, "noise": self._task.noise, "samples": len(self._task.labels)}


def _permute_pixels(images: npt.NDArray[np.uint8], order: Integers | None) -> npt.NDArray[np.uint8]:
    """Permute the pixels of every image; all channels of a pixel move together. [N, C, H, W]."""
    if order is None:
        return images
    return images.reshape(*images.shape[:2], -1)[:, :, order].reshape(images.shape)
