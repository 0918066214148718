"""The training data of a task as a replay buffer; new data extends or replaces it."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl otherwise prints a line per buffer

from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement


def make_task_buffer(capacity: int, batch_size: int, device: torch.device, generator: torch.Generator) -> ReplayBuffer:
    """Create an empty buffer that samples epochs without replacement; the last batch of an epoch may be smaller.

    Args:
        capacity: Maximum number of samples.
        batch_size: Samples per batch.
        device: Device of the data.
        generator: Draws the order of the samples; on the same device.
    """
    return ReplayBuffer(
        storage=LazyTensorStorage(capacity, device=device),
        sampler=SamplerWithoutReplacement(),
        batch_size=batch_size,
        generator=generator,
    )


def add_task_data(replay: ReplayBuffer, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
    """Add the images of a new task, and set the labels of all images.

    Args:
        replay: The buffer.
        images: New images, uint8 [n_new, C, H, W]; may be empty.
        labels: Labels of all images in the order in which they were added, int64 [n_seen]. If there are only as many
            labels as new images, [n_new], the new images replace the earlier ones.
    """
    if len(replay) and len(images) == len(labels):
        replay.empty()
    if len(images):
        new = TensorDict({"image": images, "label": labels[-len(images) :]}, batch_size=[len(images)])
        replay.extend(new)
    all_samples(replay)["label"].copy_(torch.from_numpy(labels))


def all_samples(replay: ReplayBuffer) -> TensorDictBase:
    """All samples in the order in which they were added, as a view of the storage."""
    data = replay.storage.get(slice(0, len(replay)))
    assert isinstance(data, TensorDictBase)
    return data


def draw_indices(replay: ReplayBuffer, batch_size: int) -> Tensor:
    """Draw the next batch as indices into :func:`all_samples`. [B]"""
    indices: Tensor = replay.sampler.sample(replay.storage, batch_size)[0]
    return indices


def batch_at(data: TensorDictBase, indices: Tensor) -> TensorDict:
    """Copy the samples at some indices. This is much faster than the buffer's own way of sampling."""
    columns = {name: column.index_select(0, indices.to(column.device)) for name, column in data.items()}
    return TensorDict(columns, batch_size=[len(indices)])


def representative(replay: ReplayBuffer, size: int, generator: torch.Generator) -> TensorDictBase:
    """Draw up to ``size`` samples without replacement; the order of the epochs is unaffected.

    Args:
        replay: The buffer.
        size: Number of samples.
        generator: A CPU generator.
    """
    data = all_samples(replay)
    if len(data) <= size:
        return data.clone()
    chosen = torch.randperm(len(data), generator=generator)[:size]
    batch = data[chosen.to(data.device)]
    assert isinstance(batch, TensorDictBase)
    return batch
