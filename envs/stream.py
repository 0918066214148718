"""A continual supervised scenario as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from plastibench.envs.datasets import ImageDataset

if TYPE_CHECKING:
    from plastibench.envs.scenario import Scenario

Integers = npt.NDArray[np.int64]
Observation = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """A stretch in which the data stays as it is.

    Attributes:
        arrivals: Indices of the training images that join the data now. [n_new]
        labels: The label of every image so far, in order of arrival, right or wrong. [n_seen]
        noise: Share of these labels that are wrong.
    """

    arrivals: Integers
    labels: Integers
    noise: float


class TaskStream(gymnasium.Env[Observation, Integers]):
    """One step is one task.

    - Observation: ``images``, uint8 [n_new, C, H, W], those that join the data at this switch; ``labels``,
      int64 [n_seen], of all images so far in order of arrival, as they are to be learned during this task.
    - Action: the class of every image of :attr:`evaluation_images`, int64 [M]: the learner's answer at the end of
      the task.
    - Reward: the share of the action that is right, so an episode's return is the number of tasks times the average
      end-of-task accuracy.
    - The episode terminates with the last task; its observation then is empty of new images.
    """

    metadata = {"render_modes": []}

    def __init__(self, dataset: ImageDataset, scenario: Scenario) -> None:
        """Make a stream of a scenario's tasks over a data set."""
        self.dataset = dataset
        self.scenario = scenario
        self.classes = len(dataset.classes)
        self.image_shape: tuple[int, int, int] = dataset.train_images.shape[1:]
        self.augment_pad = scenario.augment_pad
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            images=spaces.Sequence(spaces.Box(0, 255, self.image_shape, np.uint8), stack=True),
            labels=spaces.Sequence(spaces.Discrete(self.classes), stack=True),
        )
        self.action_space = spaces.MultiDiscrete([self.classes] * len(self.evaluation_images))
        self._tasks: Iterator[Task] = iter(())
        self._task: Task | None = None
        self._number = -1
        self._arrived: Integers = np.empty(0, np.int64)

    @property
    def evaluation_images(self) -> npt.NDArray[np.uint8]:
        """The images that an action answers for: the clean test set, or the training set itself. [M, C, H, W]."""
        return self.dataset.test_images if self.scenario.score_on == "test" else self.dataset.train_images

    @property
    def evaluation_labels(self) -> Integers:
        """Their right answers during the current task. [M]."""
        if self.scenario.score_on == "test":
            return self.dataset.test_labels
        assert self._task is not None, "reset() comes first"
        answers = np.empty(len(self._arrived), np.int64)
        answers[self._arrived] = self._task.labels
        return answers

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin with the first task; chunks, noise and labels follow from the seed alone."""
        super().reset(seed=seed)
        order, noise = self.np_random.spawn(2)
        self._tasks = self.scenario.tasks(self.dataset.train_labels, self.classes, order, noise)
        self._number, self._arrived = -1, np.empty(0, np.int64)
        return self._next(next(self._tasks))

    def step(self, action: Integers) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """End the current task with the learner's answers and begin the next."""
        reward = float(np.mean(np.asarray(action) == self.evaluation_labels))
        task = next(self._tasks, None)
        if task is None:
            assert self._task is not None
            empty = self.dataset.train_images[:0]
            return {"images": empty, "labels": self._task.labels}, reward, True, False, self._info()
        observation, info = self._next(task)
        return observation, reward, False, False, info

    def _next(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        self._task = task
        self._number += 1
        self._arrived = np.concatenate([self._arrived, task.arrivals])
        return {"images": self.dataset.train_images[task.arrivals], "labels": task.labels}, self._info()

    def _info(self) -> dict[str, Any]:
        assert self._task is not None
        return {"task": self._number, "noise": self._task.noise, "samples": len(self._task.labels)}
