"""The data set of a task as a replay buffer: it grows, or is replaced as a whole."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl otherwise prints a line per buffer

from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement


def make_task_buffer(capacity: int, batch_size: int, device: torch.device, generator: torch.Generator) -> ReplayBuffer:
    """A buffer on ``device`` whose epochs sample without replacement; an epoch's last batch may be short.

    Args:
        capacity: Largest number of samples.
        batch_size: Samples per batch.
        device: Where the data lives.
        generator: Draws the order, on the same device.
    """
    return ReplayBuffer(
        storage=LazyTensorStorage(capacity, device=device),
        sampler=SamplerWithoutReplacement(),
        batch_size=batch_size,
        generator=generator,
    )


def add_task_data(replay: ReplayBuffer, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
    """Take in new images and the labels of all images of the task.

    Args:
        replay: The buffer.
        images: New images, uint8 [n_new, C, H, W]; may be none.
        labels: Labels of old and new images in order of arrival, int64 [n_seen]; or as many as there are new images,
            [n_new], and old ones are forgotten.
    """
    if len(replay) and len(images) == len(labels):
        replay.empty()
    if len(images):
        new = TensorDict({"image": images, "label": labels[-len(images) :]}, batch_size=[len(images)])
        replay.extend(new)
    all_samples(replay)["label"].copy_(torch.from_numpy(labels))


def all_samples(replay: ReplayBuffer) -> TensorDictBase:
    """All samples so far in order of arrival, as a view on the storage."""
    data = replay.storage.get(slice(0, len(replay)))
    assert isinstance(data, TensorDictBase)
    return data


def representative(replay: ReplayBuffer, size: int, generator: torch.Generator) -> TensorDictBase:
    """Up to ``size`` samples drawn without replacement; the epochs' order is not disturbed.

    Args:
        replay: The buffer.
        size: Samples wanted.
        generator: A CPU generator.
    """
    data = all_samples(replay)
    if len(data) <= size:
        return data.clone()
    chosen = torch.randperm(len(data), generator=generator)[:size]
    batch = data[chosen.to(data.device)]
    assert isinstance(batch, TensorDictBase)
    return batch
