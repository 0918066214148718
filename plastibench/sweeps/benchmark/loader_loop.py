"""The loop that a user would write: timm or torch, a DataLoader with workers, and torchvision's transforms.

It runs in a process of its own, because plastibench changes how its process allocates memory.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from plastibench.config.errors import RunError
from plastibench.config.spec import RunSpec
from plastibench.training.supervised import SupervisedTrainer


@dataclass
class AugmentedImages(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's datasets return them: one by one, through Pillow and transforms.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        mean: Mean per channel, of values in [0, 1].
        std: Standard deviation per channel.
        pad: Pixels of padding before the random crop; 0: no augmentation.
        size: Number of items; images are repeated or left out accordingly.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    size: int

    def __post_init__(self) -> None:
        from torchvision import transforms

        crop = [transforms.RandomCrop(self.images.shape[2:], padding=self.pad), transforms.RandomHorizontalFlip()]
        std = tuple(value or 1.0 for value in self.std)
        self._transform = transforms.Compose(
            [*(crop if self.pad else []), transforms.ToTensor(), transforms.Normalize(self.mean, std)]
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        pixels = self.images[index % len(self.images)].transpose(1, 2, 0)  # [H, W, C]
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        return self._transform(image), int(self.labels[index % len(self.labels)])


class LoaderLoop:
    """A process that trains with a DataLoader, one epoch whenever it is asked to.

    An epoch starts its own iterator, as in a user's program, so that no worker loads batches between two epochs.
    """

    def __init__(self, trainer: SupervisedTrainer, spec: RunSpec, updates: int, workers: int, threads: int) -> None:
        """Start the process and train for one epoch, to warm up.

        Args:
            trainer: Supplies the images of its current task.
            spec: The run, which has the agent and its options.
            updates: Updates per epoch.
            workers: Worker processes of the DataLoader; 0: load in the training process.
            threads: CPU threads of the training process; 0: PyTorch's default.

        Raises:
            RunError: The process failed.
        """
        stored, dataset = trainer.stored, trainer.env.dataset
        batch_size = mean_batch(trainer)
        data = AugmentedImages(
            stored["image"].cpu().numpy(),
            stored["label"].cpu().numpy(),
            dataset.mean,
            dataset.std,
            trainer.env.augment_pad,
            updates * batch_size,
        )
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = other, data, spec, batch_size, len(dataset.classes), workers, threads
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        other.close()
        self.run_epoch()

    def __enter__(self) -> LoaderLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()  # the process ends when it reads the next request
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()

    def run_epoch(self) -> None:
        """Train for one epoch.

        Raises:
            RunError: The process failed.
        """
        try:
            self._connection.send(True)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RunError("the process of the loop with a DataLoader ended unexpectedly") from error
        if isinstance(answer, str):
            raise RunError(f"the loop with a DataLoader failed: {answer}")


def mean_batch(trainer: SupervisedTrainer) -> int:
    """Mean samples per update, rounded; the last batch of an epoch may be smaller than the others."""
    return round(len(trainer.stored) / trainer.updates_per_epoch())


def _serve(
    connection: Connection,
    data: AugmentedImages,
    spec: RunSpec,
    batch_size: int,
    classes: int,
    workers: int,
    threads: int,
) -> None:
    """Train for an epoch at each request, and answer when it is over; with a text if it failed."""
    try:
        if threads:
            torch.set_num_threads(threads)
        epoch = _training_loop(data, spec, batch_size, classes, workers)
        while connection.recv():
            epoch()
            connection.send(True)
    except EOFError:
        return
    except Exception as error:  # reported by the parent process
        connection.send(f"{type(error).__name__}: {error}")


def _training_loop(
    data: AugmentedImages, spec: RunSpec, batch_size: int, classes: int, workers: int
) -> Callable[[], None]:
    """Create a function that trains for an epoch, written as in PyTorch's tutorials."""
    config: Any = spec.create("agent")
    device = torch.device(spec.run.device)
    on_gpu = device.type == "cuda"
    tf32 = config.precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    shape = data.images.shape[1], data.images.shape[2], data.images.shape[3]
    model = config.module(shape, classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    loader = DataLoader(
        data,
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
    )
    forward: Callable[[torch.Tensor], torch.Tensor] = model
    if config.compile != "no":
        forward = torch.compile(model, mode=None if config.compile == "default" else config.compile)

    def epoch() -> None:
        model.train()
        total = 0.0
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf)
            optimizer.step()
            scheduler.step()
            total += loss.item()

    return epoch
