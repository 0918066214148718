"""A TensorDict replay buffer that stores every frame once."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import MemoryMappedTensor, TensorDict, TensorDictBase
from torch import Tensor

from plastibench.config.errors import UserError

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")  # torchrl otherwise prints a line per buffer

from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorStorage
from torchrl.data import ReplayBuffer as TorchRLReplayBuffer
from torchrl.data.replay_buffers.samplers import PrioritizedSampler, RandomSampler

Array = npt.NDArray[Any]
_TREES = ("_sum_tree", "_min_tree")


@dataclass(frozen=True)
class BufferSpec:
    """Size and content of a replay buffer.

    Attributes:
        capacity: Number of transitions; rounded down to a multiple of ``envs``.
        envs: Number of environments that are stepped together.
        frame: Shape and dtype of the frame that one environment returns at a step.
        action: Dtype of an action.
        stack: Number of consecutive frames in an observation; frames before the start of the episode are zero, as in
            gymnasium's ``FrameStackObservation(padding_type="zero")``. 0: a frame is an observation.
        n_step: Number of rewards summed in a transition.
        gamma: Discount per step.
    """

    capacity: int
    envs: int
    frame: tuple[tuple[int, ...], torch.dtype]
    action: torch.dtype
    stack: int = 0
    n_step: int = 1
    gamma: float = 0.99

    @property
    def rows(self) -> int:
        """Capacity in transitions per environment."""
        return max(1, self.capacity // self.envs)


class ReplayBuffer:
    """Uniform or prioritized replay of n-step transitions from vectorized environments.

    Each frame is stored once, in a ring. A transition is a row of a torchrl buffer and refers to its frames by their
    index in the ring. The final frame of a truncated episode is stored separately: the ring continues with the first
    frame of the next episode, but the value of the final state is still needed for bootstrapping.

    A sampled batch contains ``observation``, ``action``, ``reward`` (the discounted sum of ``span`` rewards),
    ``next_observation`` and ``discount`` (gamma^span, or 0 after a terminal state). With priorities it also contains
    ``weight`` and ``index``.
    """

    def __init__(
        self,
        spec: BufferSpec,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator,
        *,
        priority: tuple[float, float] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Create an empty buffer.

        Args:
            spec: Size and content.
            batch_size: Transitions per batch.
            device: Device of the data.
            generator: Draws samples; on the same device, or on the CPU with priorities.
            priority: Exponents alpha and beta of prioritized replay (Schaul et al. 2016); None: uniform replay.
            folder: Store the data in memory-mapped files in this folder; requires ``device`` to be the CPU.

        Raises:
            UserError: Prioritized replay needs torchrl's compiled extension, which cannot be loaded.
        """
        self.spec = spec
        self._device, self._folder, self._batch_size = device, folder, batch_size
        capacity = spec.rows * spec.envs
        sampler = _prioritized(capacity, *priority) if priority else RandomSampler()
        storage = (
            _TensorColumns(capacity, device=device)
            if folder is None
            else _MappedColumns(capacity, scratch_dir=str(folder / "transitions"))
        )
        self.buffer = TorchRLReplayBuffer(storage=storage, sampler=sampler, generator=generator)
        self.prioritized = priority is not None
        # A transition refers to frames up to n steps after it and one stack before it.
        self._rows = spec.rows + spec.n_step + max(spec.stack, 1)
        self._frames = self._allocate(self._rows * spec.envs)
        self._env_index = np.arange(spec.envs, dtype=np.int32)
        self._no_final = np.full(spec.envs, -1, np.int32)
        self.clear()

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def bytes(self) -> int:
        """Size in bytes of the transitions and frames of a full buffer, without the priorities."""
        transition = self.buffer.storage.get(slice(0, 1)).bytes() if len(self) else 0
        frames = self._frames.nbytes + self._final.nbytes
        return int(transition * self.spec.rows * self.spec.envs + frames)

    def clear(self) -> None:
        """Remove all transitions and frames."""
        self.buffer.empty()
        self._row = -1
        self._age = np.zeros(self.spec.envs, np.uint8)  # earlier frames of the episode, at most stack - 1
        self._pending: deque[dict[str, Array]] = deque()
        self._final = self._allocate(0)
        self._free: list[int] = []
        self._used: deque[tuple[int, int]] = deque()  # (row, index in self._final), oldest first

    def start_episodes(self, frames: Array) -> None:
        """Start new episodes in all environments after a reset; unfinished episodes count as truncated.

        Args:
            frames: The first frames. [envs, ...]
        """
        if self._row >= 0:
            self._truncate_episodes()
        self._age = np.zeros(self.spec.envs, np.uint8)
        self._store_frames(frames)

    def add(self, action: Array, reward: Array, terminated: Array, truncated: Array, frames: Array, final: Any) -> None:
        """Add one step of all environments.

        Args:
            action: Actions. [envs, ...]
            reward: Rewards. [envs]
            terminated: Whether a terminal state was reached. [envs]
            truncated: Whether the episode was truncated. [envs]
            frames: Current frames; after the end of an episode, the first frame of the next one. [envs, ...]
            final: Final frames of truncated episodes, by index of the environment.
        """
        ended = terminated | truncated
        final_index = self._no_final
        if truncated.any():
            final_index = final_index.copy()
            for env in np.flatnonzero(truncated & ~terminated):
                final_index[env] = self._store_final_frame(final[env])
        frame_index = self._env_index + (self._row % self._rows) * self.spec.envs
        step = {"action": action, "reward": np.asarray(reward, np.float64), "terminated": terminated, "ended": ended}
        self._pending.append({**step, "final_index": final_index, "frame_index": frame_index, "age": self._age})
        if self.spec.stack > 1:
            self._age = np.where(ended, 0, np.minimum(self._age + 1, self.spec.stack - 1)).astype(np.uint8)
        self._store_frames(frames)
        if len(self._pending) == self.spec.n_step:
            self.buffer.extend(self._oldest_transitions())
            self._pending.popleft()

    def sample(self, count: int = 1) -> Iterator[TensorDictBase]:
        """Sample ``count`` batches: uniform ones together, prioritized ones one by one with the current priorities."""
        if self.prioritized:
            for _ in range(count):
                found, info = self.buffer.sample(self._batch_size, return_info=True)
                batch = self._to_batch(found)
                batch["index"] = torch.as_tensor(info["index"])
                batch["weight"] = torch.as_tensor(info["priority_weight"]).to(self._device)
                yield batch
        else:
            index, _ = self.buffer.sampler.sample(self.buffer.storage, count * self._batch_size)
            yield from self._to_batch(self.buffer.storage.columns_at(index)).split(self._batch_size)

    def sample_without_replacement(self, size: int, generator: torch.Generator) -> TensorDictBase:
        """Draw up to ``size`` transitions uniformly without replacement; :meth:`sample` is unaffected.

        Args:
            size: Number of transitions.
            generator: A CPU generator.
        """
        index = torch.randperm(len(self), generator=generator)[:size]
        return self._to_batch(self.buffer.storage.get(index.to(self._device)))

    def update_priority(self, batch: TensorDictBase) -> None:
        """Update the priorities of a sampled batch from its ``td_error`` [B]; does nothing without priorities."""
        if self.prioritized:
            self.buffer.update_priority(batch["index"], batch["td_error"].detach().abs().cpu())

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume, of about :attr:`bytes` bytes."""
        stored = min(self._row + 1, self._rows) * self.spec.envs
        found = self.buffer.storage.get(slice(0, len(self))) if len(self) else {}
        return {
            "transitions": {name: column.clone() for name, column in found.items()},
            "frames": torch.empty_like(self._frames[:stored], device="cpu").copy_(self._frames[:stored]),
            "final": self._final.clone(),
            "free": self._free,
            "used": [[row, index] for row, index in self._used],
            "row": self._row,
            "age": torch.from_numpy(self._age),
            "pending": [{name: torch.from_numpy(value) for name, value in step.items()} for step in self._pending],
            "writer": self.buffer.writer.state_dict(),
            "sampler": self.sampler_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`; the buffer must be empty."""
        if state["transitions"]:
            self.buffer.extend(TensorDict(state["transitions"], batch_size=[len(state["transitions"]["frame_index"])]))
        self._frames[: len(state["frames"])] = state["frames"].to(self._device)
        self._final = state["final"].to(self._device)
        self._free, self._row = list(state["free"]), state["row"]
        self._used = deque((row, index) for row, index in state["used"])
        self._age = state["age"].numpy()
        self._pending = deque({name: value.numpy() for name, value in step.items()} for step in state["pending"])
        self.buffer.writer.load_state_dict(state["writer"])
        self.load_sampler_state(state["sampler"])

    def sampler_state(self) -> dict[str, Any]:
        """The priorities, if any. All other state is restored by adding the same steps again."""
        if not self.prioritized or not len(self):
            return {}
        state = self.buffer.sampler.state_dict()
        index = torch.arange(len(self))
        trees = {name: torch.as_tensor(state[name][index]) for name in _TREES}
        largest = [None if value is None else float(value) for value in state["_max_priority"]]
        return {**trees, "_max_priority": largest}

    def load_sampler_state(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`sampler_state`; the number of transitions must be the same."""
        if not state:
            return
        full = self.buffer.sampler.state_dict()
        index = torch.arange(len(self))
        for name in _TREES:
            full[name][index] = state[name]
        value, position = state["_max_priority"]
        full["_max_priority"] = (value, None if position is None else int(position))
        self.buffer.sampler.load_state_dict(full)

    # Frames -------------------------------------------------------------------------------------------------------

    def _allocate(self, count: int) -> Tensor:
        shape, dtype = self.spec.frame
        if self._folder is None or not count:
            return torch.zeros((count, *shape), dtype=dtype, device=self._device)
        self._folder.mkdir(parents=True, exist_ok=True)
        return MemoryMappedTensor.zeros((count, *shape), dtype=dtype, filename=str(self._folder / "frames.memmap"))

    def _store_frames(self, frames: Array) -> None:
        self._row += 1
        start = (self._row % self._rows) * self.spec.envs
        self._frames[start : start + self.spec.envs] = torch.as_tensor(frames).to(self._device)

    def _store_final_frame(self, frame: Array) -> int:
        """Store a final frame in a free slot; slots that no transition refers to any more become free."""
        overwritten = self._row - self.spec.rows - self.spec.n_step
        while self._used and self._used[0][0] < overwritten:
            self._free.append(self._used.popleft()[1])
        if not self._free:
            old = len(self._final)
            grown = self._allocate(0).new_zeros((max(8, 2 * old), *self.spec.frame[0]))
            grown[:old] = self._final
            self._final = grown
            self._free.extend(range(len(grown) - 1, old - 1, -1))
        index = self._free.pop()
        self._final[index] = torch.as_tensor(frame).to(self._device)
        self._used.append((self._row, index))
        return index

    def _truncate_episodes(self) -> None:
        """End all unfinished episodes, and free the ring's latest row for the first frames of the new episodes.

        A new row would have no transition, and the ring of frames would run ahead of the transitions.
        """
        if len(self) or self._pending:
            start = (self._row % self._rows) * self.spec.envs
            latest = self._frames[start : start + self.spec.envs]
            final_index = np.array([self._store_final_frame(frame) for frame in latest], np.int32)
            self._end_latest_transitions(torch.from_numpy(final_index).to(self._device))
            if self._pending:
                last = self._pending[-1]
                last["final_index"] = np.where(last["ended"], last["final_index"], final_index)
                last["ended"] = np.ones_like(last["ended"])
            while self._pending:
                self.buffer.extend(self._oldest_transitions())
                self._pending.popleft()
        self._row -= 1

    def _end_latest_transitions(self, final_index: Tensor) -> None:
        """Let the latest transitions of unfinished episodes end in the given final frames. [envs]."""
        if len(self):
            envs, capacity = self.spec.envs, self.spec.rows * self.spec.envs
            index = (self.buffer.writer._cursor - envs + torch.arange(envs, device=self._device)) % capacity
            stored = self.buffer.storage.get(slice(0, len(self)))  # a view
            unfinished = ~stored["terminated"][index] & (stored["final_index"][index] < 0)
            stored["final_index"][index] = torch.where(unfinished, final_index, stored["final_index"][index])

    def _oldest_transitions(self) -> TensorDict:
        """N-step transitions that start at the oldest pending step of each environment."""
        first = self._pending[0]
        reward, terminated, final_index = first["reward"], first["terminated"], first["final_index"]
        span = np.ones(self.spec.envs, np.uint8)
        alive = ~first["ended"]
        for distance, step in enumerate(itertools.islice(self._pending, 1, None), 1):
            reward = reward + alive * self.spec.gamma**distance * step["reward"]
            terminated = terminated | (alive & step["terminated"])
            final_index = np.where(alive, step["final_index"], final_index)
            span = span + alive
            alive = alive & ~step["ended"]
        columns: dict[str, Array] = {
            "action": first["action"],
            "reward": reward.astype(np.float32),
            "terminated": terminated,
            "final_index": final_index,
            "frame_index": first["frame_index"],
        }
        if self.spec.n_step > 1:
            columns["span"] = span.astype(np.uint8)
        if self.spec.stack > 1:
            columns["age"] = first["age"]
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()}
        tensors["action"] = tensors["action"].to(self.spec.action)
        return TensorDict(tensors, batch_size=[self.spec.envs])

    def _to_batch(self, found: Mapping[str, Tensor] | TensorDictBase) -> TensorDictBase:
        """Look up the frames of transitions, and build a batch."""
        frame_index = found["frame_index"].long()
        span = found["span"].long() if self.spec.n_step > 1 else 1
        gamma = self.spec.gamma**span
        alive = (~found["terminated"]).float()
        if self.spec.stack:
            age = found["age"].long() if self.spec.stack > 1 else torch.zeros_like(frame_index)
            observation = self._stack_frames(frame_index, age)
            next_age = (age + span).clamp_max(self.spec.stack - 1)
            following = self._stack_frames(frame_index + span * self.spec.envs, next_age)
        else:
            observation = self._frames.index_select(0, frame_index)
            following = self._frames.index_select(0, (frame_index + span * self.spec.envs) % len(self._frames))
        if len(self._final):
            final_index = found["final_index"].long()
            latest = following[:, -1] if self.spec.stack else following
            truncated = (final_index >= 0).view(-1, *[1] * (latest.ndim - 1))
            latest.copy_(torch.where(truncated, self._final.index_select(0, final_index.clamp_min(0)), latest))
        columns = {
            "observation": observation,
            "action": found["action"],
            "reward": found["reward"],
            "next_observation": following,
            "discount": gamma * alive,
        }
        return TensorDict(columns, batch_size=frame_index.shape)

    def _stack_frames(self, index: Tensor, age: Tensor) -> Tensor:
        """Stack the frames at ``index`` [B] and those before them, oldest first. [B, stack, ...]."""
        back = torch.arange(self.spec.stack - 1, -1, -1, device=self._device)
        frames = self._frames[(index[:, None] - back * self.spec.envs) % len(self._frames)]
        exists = back <= age[:, None]
        return frames * exists.view(*exists.shape, *[1] * (frames.ndim - 2))


class _Columns(TensorStorage):  # type: ignore[misc]
    """Writes and reads the columns of a storage one by one: TensorDict's own way takes longer than the copies."""

    def set(self, cursor: Any, data: Any, *, set_cursor: bool = True) -> None:
        """Write transitions into the rows ``cursor``."""
        if not self.initialized:  # the first transitions define the columns
            super().set(cursor, data, set_cursor=set_cursor)
            return
        if set_cursor:
            self._set_last_cursor(cursor)
            self._get_new_len(data, cursor)
        rows = torch.as_tensor(cursor, device=self.device)
        for name, column in self._storage.items():
            column.index_copy_(0, rows, data[name].to(self.device))
        self._bump_mutation_revision()

    def columns_at(self, index: Tensor) -> dict[str, Tensor]:
        """The rows ``index`` of every column."""
        return {name: column.index_select(0, index) for name, column in self._storage.items()}


class _TensorColumns(_Columns, LazyTensorStorage):  # type: ignore[misc]
    pass


class _MappedColumns(_Columns, LazyMemmapStorage):  # type: ignore[misc]
    pass


def _prioritized(capacity: int, alpha: float, beta: float) -> PrioritizedSampler:
    try:  # released builds of torchrl have no GPU trees, so the sampler and its generator stay on the CPU
        return PrioritizedSampler(capacity, alpha, beta, device="cpu")
    except RuntimeError as error:
        raise UserError(
            f"prioritized: torchrl {version('torchrl')} was not compiled for torch {torch.__version__} and cannot load "
            "its extension; install matching versions, or turn off prioritized"
        ) from error
