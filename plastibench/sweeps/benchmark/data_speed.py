"""Time how fast training images are drawn: task buffer and augmentation, against a DataLoader with workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader

from plastibench.agents.images import Normalize, crop_and_flip
from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec
from plastibench.envs.task_stream import TaskStream
from plastibench.sweeps.benchmark.loader_loop import AugmentedImages
from plastibench.sweeps.benchmark.timing import Quartiles, alternate, quartiles, ratio, repeated, shown
from plastibench.training.task_buffer import add_task_data, all_samples, batch_at, draw_indices, make_task_buffer
from plastibench.utils.machine import cores
from plastibench.utils.tables import text_table
from plastibench.utils.wording import plural


@dataclasses.dataclass(frozen=True)
class DataSpeed:
    """Seconds per batch; each value has quartiles over alternating rounds.

    Attributes:
        env: Name of the env.
        device: The device.
        threads: CPU threads.
        batch_size: Images per batch; fewer than the agent's batch size if the first task has fewer.
        images: Images of the first task.
        buffer: Seconds to draw a batch from the task buffer.
        augmented: Seconds to draw, augment and normalize a batch.
        loader: Seconds per batch of a DataLoader with torchvision's transforms, copied to the device.
        gain: ``loader`` relative to ``augmented``.
        workers: Worker processes of the DataLoader.
    """

    env: str
    device: str
    threads: int
    batch_size: int
    images: int
    buffer: Quartiles
    augmented: Quartiles
    loader: Quartiles
    gain: Quartiles
    workers: int

    def to_text(self) -> str:
        """A table of at most 80 columns."""
        rows = {
            "task buffer": self.buffer,
            "with augmentation": self.augmented,
            f"DataLoader, {plural(self.workers, 'worker')}": self.loader,
        }
        table = [
            [name, shown(seconds, 1e3), f"{1 / seconds[1]:,.0f}", f"{self.batch_size / seconds[1]:,.0f}"]
            for name, seconds in rows.items()
        ]
        return "\n".join(
            [
                f"{self.env}, {self.device}, {plural(self.threads, 'thread')}",
                f"batches of {self.batch_size} out of {plural(self.images, 'image')}",
                "",
                text_table(["source", "ms per batch (quartiles)", "batches/s", "images/s"], table),
                "",
                f"plastibench is {shown(self.gain, digits=1)} times as fast as the DataLoader",
            ]
        )


def measure_data(
    spec: RunSpec,
    data_dir: Path,
    batches: int = 20,
    rounds: int = 5,
    threads: int = 0,
    *,
    workers: int | None = None,
) -> DataSpeed:
    """Time batches of the first task of a task stream.

    A DataLoader is timed over epochs of ``batches`` batches, so that no worker loads ahead between two measurements.

    Args:
        spec: A run, which has the env, the batch size and the device.
        data_dir: Folder of datasets.
        batches: Batches per measurement.
        rounds: Number of rounds, at least 2.
        threads: CPU threads; 0: one, as for small networks.
        workers: Workers of the DataLoader (default: one per core, at most 4).

    Raises:
        UserError: The env is not a task stream.
    """
    stream = spec.create("env").make(data_dir)
    if not isinstance(stream, TaskStream):
        raise UserError(f"{spec.env[0]} is not a task stream; bench data is for cl-*, relabel-*, …")
    batch_size: int = spec.create("agent").batch_size
    torch.set_num_threads(threads or 1)
    on = torch.device(spec.run.device)
    observation, _ = stream.reset(seed=0)
    order = torch.Generator(on).manual_seed(0)
    buffer = make_task_buffer(len(stream.dataset.train_images), batch_size, on, order)
    add_task_data(buffer, observation["images"], observation["labels"])
    drawn = min(batch_size, len(buffer))
    mean, std, pad = stream.dataset.mean, stream.dataset.std, stream.augment_pad
    normalize, draws = Normalize(mean, std, on), torch.Generator(on).manual_seed(0)

    stored = all_samples(buffer)

    def draw() -> TensorDict:
        return batch_at(stored, draw_indices(buffer, batch_size))

    def augmented() -> None:
        images = draw()["image"]
        normalize(crop_and_flip(images, pad, draws) if pad else images)

    labels = observation["labels"][-len(observation["images"]) :]
    data = AugmentedImages(observation["images"], labels, mean, std, pad, batches * drawn)
    workers = min(4, cores()) if workers is None else workers
    pinned = on.type == "cuda"
    loader = DataLoader(
        data, drawn, shuffle=True, num_workers=workers, pin_memory=pinned, persistent_workers=workers > 0
    )

    def loaded() -> None:
        for images, targets in loader:
            images.to(on, non_blocking=True)
            targets.to(on, non_blocking=True)

    blocks = {"buffer": repeated(draw, batches), "augmented": repeated(augmented, batches), "loader": loaded}
    measured = alternate(blocks, rounds, on)
    seconds = {name: [value / batches for value in values] for name, values in measured.items()}
    return DataSpeed(
        env=spec.env[0],
        device=spec.run.device,
        threads=torch.get_num_threads(),
        batch_size=drawn,
        images=len(observation["images"]),
        buffer=quartiles(seconds["buffer"]),
        augmented=quartiles(seconds["augmented"]),
        loader=quartiles(seconds["loader"]),
        gain=ratio(seconds["loader"], seconds["augmented"]),
        workers=workers,
    )
