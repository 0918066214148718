"""A continual supervised scenario as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from plastibench.envs.datasets import ImageDataset

if TYPE_CHECKING:
    from plastibench.envs.task_stream_config import TaskStreamConfig

Integers = npt.NDArray[np.int64]
Observation = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """A stretch in which the data stays as it is.

    Attributes:
        arrivals: Indices of the training images that arrive now. [n_new]
        labels: The label of every image of the task, in order of arrival, right or wrong: [n_seen] where the arrivals
            join those before them; [n_new], as many as arrive, where they replace them.
        noise: Share of these labels that are wrong.
        pixels: Where in the image each pixel of the arrivals and of all evaluation images comes from, row by row; none
            where they are shown as they are. [H * W]
        classes: The only classes that are asked for; none means all. [c]
    """

    arrivals: Integers
    labels: Integers
    noise: float
    pixels: Integers | None = None
    classes: Integers | None = None


class TaskStream(gymnasium.Env[Observation, Integers]):
    """One step is one task.

    - Observation: ``images``, uint8 [n_new, C, H, W], those that arrive at this switch; ``labels``, int64, as they
      are to be learned during this task, in order of arrival: of all images so far, or of the new ones alone where
      these replace all before them.
    - Action: the class of every image of :attr:`evaluation_images`, int64 [M]: the learner's answer at the end of
      the task. Images may differ from task to task; where they are fewer than the action space has room for, the
      first entries count.
    - Reward: the share of the action that is right, so an episode's return is the number of tasks times the average
      end-of-task accuracy.
    - The episode terminates with the last task; its observation then is empty of new images.
    """

    metadata = {"render_modes": []}

    def __init__(self, dataset: ImageDataset, scenario: TaskStreamConfig) -> None:
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
        whole = (dataset.test_images, dataset.test_labels)
        self._whole = whole if scenario.score_on == "test" else (dataset.train_images, dataset.train_labels)
        #: The images that an action answers for: of the clean test set, or the training set itself. [M, C, H, W]
        self.evaluation_images = self._whole[0]
        self.action_space = spaces.MultiDiscrete([self.classes] * len(self.evaluation_images))
        self._tasks: Iterator[Task] = iter(())
        self._task: Task | None = None
        self._number = -1
        self._arrived: Integers = np.empty(0, np.int64)

    @property
    def evaluation_labels(self) -> Integers:
        """The right answers to :attr:`evaluation_images` during the current task. [M]."""
        assert self._task is not None, "reset() comes first"
        if self.scenario.score_on == "test":
            return self._asked(self._whole[1], self._task)
        answers = np.empty(len(self._arrived), np.int64)
        answers[self._arrived] = self._task.labels
        return answers

    @property
    def evaluation_classes(self) -> Integers | None:
        """The only classes that are right answers during the current task; none means all. [c]."""
        assert self._task is not None, "reset() comes first"
        return self._task.classes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin with the first task; chunks, noise and labels follow from the seed alone."""
        super().reset(seed=seed)
        order, noise = self.np_random.spawn(2)
        self._tasks = self.scenario.tasks(self.dataset, order, noise)
        self._number, self._arrived = -1, np.empty(0, np.int64)
        return self._next(next(self._tasks))

    def sizes(self, seed: int) -> list[int]:
        """Training images of each task after a reset with this seed; the stream itself stays where it is."""
        order, noise = np_random(seed)[0].spawn(2)
        return [len(task.labels) for task in self.scenario.tasks(self.dataset, order, noise)]

    def step(self, action: Integers) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """End the current task with the learner's answers and begin the next."""
        answers = self.evaluation_labels
        reward = float(np.mean(np.asarray(action)[: len(answers)] == answers))
        task = next(self._tasks, None)
        if task is None:
            assert self._task is not None
            empty = self.dataset.train_images[:0]
            return {"images": empty, "labels": self._task.labels.copy()}, reward, True, False, self._info()
        observation, info = self._next(task)
        return observation, reward, False, False, info

    def _next(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        self._task = task
        self._number += 1
        replaces = len(task.arrivals) == len(task.labels)
        self._arrived = task.arrivals if replaces else np.concatenate([self._arrived, task.arrivals])
        self.evaluation_images = _permuted(self._asked(self._whole[0], task), task.pixels)
        images = _permuted(self.dataset.train_images[task.arrivals], task.pixels)
        return {"images": images, "labels": task.labels.copy()}, self._info()

    def _asked(self, whole: npt.NDArray[Any], task: Task) -> npt.NDArray[Any]:
        """Of evaluation images or their labels, those of the classes that the task asks for."""
        return whole if task.classes is None else whole[np.isin(self._whole[1], task.classes)]

    def _info(self) -> dict[str, Any]:
        assert self._task is not None
        return {"task": self._number, "noise": self._task.noise, "samples": len(self._task.labels)}


def _permuted(images: npt.NDArray[np.uint8], pixels: Integers | None) -> npt.NDArray[np.uint8]:
    """Images whose pixels change places, all channels alike. [N, C, H, W]."""
    if pixels is None:
        return images
    return images.reshape(*images.shape[:2], -1)[:, :, pixels].reshape(images.shape)
