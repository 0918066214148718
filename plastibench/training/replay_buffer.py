"""What an off-policy agent remembers: a TensorDict replay buffer that stores every observation once."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
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

from torchrl.data import LazyMemmapStorage, LazyTensorStorage
from torchrl.data import ReplayBuffer as TorchRLReplayBuffer
from torchrl.data.replay_buffers.samplers import PrioritizedSampler, RandomSampler

Array = npt.NDArray[Any]
_TREES = ("_sum_tree", "_min_tree")


@dataclass(frozen=True)
class BufferSpec:
    """What is remembered, and how it is given back.

    Attributes:
        capacity: Transitions; rounded down to a multiple of ``envs``.
        envs: Environments that are stepped together.
        frame: Shape and type of what one environment shows in one step.
        action: Type of an action.
        stack: So many consecutive frames make an observation, missing ones being zero as in
            gymnasium's ``FrameStackObservation(padding_type="zero")``; 0: a frame is an observation.
        n_step: Rewards summed in a transition.
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
        """Transitions of one environment that fit in."""
        return max(1, self.capacity // self.envs)


class ReplayBuffer:
    """Uniform or prioritized replay of n-step transitions from vectorised environments.

    A transition is a row in a torchrl buffer that names the places of its frames in a ring of frames; the frame after a
    step is the frame before the next. Only where an episode is cut off (truncated), its final frame lies apart, because
    the environment has moved on to a new episode and yet the value of the final state counts.

    A sampled batch holds ``observation``, ``action``, ``reward`` (the discounted sum of ``span`` rewards),
    ``next_observation`` and ``discount`` (gamma^span, or 0 after a terminal state); with priorities also ``weight`` and
    ``index``.
    """

    def __init__(
        self,
        layout: BufferSpec,
        batch_size: int,
        device: torch.device,
        generator: torch.Generator,
        *,
        priority: tuple[float, float] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Make an empty memory.

        Args:
            layout: What is remembered.
            batch_size: Transitions in a sample.
            device: Where it is kept.
            generator: Draws samples; on the same device, or on the CPU where there are priorities.
            priority: Exponents alpha and beta of prioritized replay (Schaul et al. 2016); None: uniform.
            folder: Keep it in memory-mapped files in this folder; ``device`` must be the CPU then.

        Raises:
            UserError: Priorities are wanted, but torchrl's compiled part is not there.
        """
        self.layout = layout
        self._device, self._folder, self._batch_size = device, folder, batch_size
        capacity = layout.rows * layout.envs
        sampler = _prioritized(capacity, *priority) if priority else RandomSampler()
        storage = (
            LazyTensorStorage(capacity, device=device)
            if folder is None
            else LazyMemmapStorage(capacity, scratch_dir=str(folder / "transitions"))
        )
        self.buffer = TorchRLReplayBuffer(storage=storage, sampler=sampler, generator=generator)
        self.prioritized = priority is not None
        # A transition's frames reach n steps ahead of it and one stack behind it.
        self._rows = layout.rows + layout.n_step + max(layout.stack, 1)
        self._frames = self._allocate(self._rows * layout.envs)
        self._first = np.arange(layout.envs, dtype=np.int32)
        self._no_place = np.full(layout.envs, -1, np.int32)
        self.clear()

    def __len__(self) -> int:
        return len(self.buffer)

    @property
    def bytes(self) -> int:
        """Bytes that transitions and frames take when the memory is full, without the trees of the priorities."""
        transition = self.buffer.storage.get(slice(0, 1)).bytes() if len(self) else 0
        frames = self._frames.nbytes + self._final.nbytes
        return int(transition * self.layout.rows * self.layout.envs + frames)

    def clear(self) -> None:
        """Forget everything."""
        self.buffer.empty()
        self._row = -1
        self._age = np.zeros(self.layout.envs, np.uint8)  # frames of the episode before the present one, up to a stack
        self._pending: deque[dict[str, Array]] = deque()
        self._final = self._allocate(0)
        self._free: list[int] = []
        self._taken: deque[tuple[int, int]] = deque()  # (row, place in self._final), oldest first

    def begin(self, frames: Array) -> None:
        """All environments were reset; episodes that were under way are cut off, as by a truncation.

        Args:
            frames: What they show now. [envs, ...]
        """
        if self._row >= 0:
            self._cut_off()
        self._age = np.zeros(self.layout.envs, np.uint8)
        self._show(frames)

    def add(self, action: Array, reward: Array, terminated: Array, truncated: Array, frames: Array, final: Any) -> None:
        """Remember one step of all environments.

        Args:
            action: What was done. [envs, ...]
            reward: [envs]
            terminated: Whether a terminal state was reached. [envs]
            truncated: Whether the episode was cut off. [envs]
            frames: What is shown now: after the end of an episode the first frame of the next. [envs, ...]
            final: Where an episode was truncated, what it showed last, by index of the environment.
        """
        ended = terminated | truncated
        place = self._no_place
        if truncated.any():
            place = place.copy()
            for env in np.flatnonzero(truncated & ~terminated):
                place[env] = self._keep_final(final[env])
        at = self._first + (self._row % self._rows) * self.layout.envs
        step = {"action": action, "reward": np.asarray(reward, np.float64), "terminated": terminated, "ended": ended}
        self._pending.append({**step, "place": place, "at": at, "age": self._age})
        if self.layout.stack > 1:
            self._age = np.where(ended, 0, np.minimum(self._age + 1, self.layout.stack - 1)).astype(np.uint8)
        self._show(frames)
        if len(self._pending) == self.layout.n_step:
            self.buffer.extend(self._transition())
            self._pending.popleft()

    def sample(self, count: int = 1) -> Iterator[TensorDictBase]:
        """``count`` batches, drawn uniformly, all at once for speed, or by the priorities of the moment, one by one."""
        if self.prioritized:
            for _ in range(count):
                found, info = self.buffer.sample(self._batch_size, return_info=True)
                batch = self._complete(found)
                batch["index"] = torch.as_tensor(info["index"])
                batch["weight"] = torch.as_tensor(info["priority_weight"]).to(self._device)
                yield batch
        else:
            yield from self._complete(self.buffer.sample(count * self._batch_size)).split(self._batch_size)

    def draw(self, size: int, generator: torch.Generator) -> TensorDictBase:
        """Up to ``size`` transitions drawn uniformly without replacement; the order of samples is not disturbed.

        Args:
            size: Transitions wanted.
            generator: A CPU generator.
        """
        index = torch.randperm(len(self), generator=generator)[:size]
        return self._complete(self.buffer.storage.get(index.to(self._device)))

    def update_priority(self, batch: TensorDictBase) -> None:
        """Renew the priorities of a sampled batch from its ``td_error``. [B]."""
        if self.prioritized:
            self.buffer.update_priority(batch["index"], batch["td_error"].detach().abs().cpu())

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered, in about as many bytes as :attr:`bytes` says."""
        shown = min(self._row + 1, self._rows) * self.layout.envs
        found = self.buffer.storage.get(slice(0, len(self))) if len(self) else {}
        return {
            "transitions": {name: column.clone() for name, column in found.items()},
            "frames": torch.empty_like(self._frames[:shown], device="cpu").copy_(self._frames[:shown]),
            "final": self._final.clone(),
            "free": self._free,
            "taken": [[row, place] for row, place in self._taken],
            "row": self._row,
            "age": torch.from_numpy(self._age),
            "pending": [{name: torch.from_numpy(value) for name, value in step.items()} for step in self._pending],
            "writer": self.buffer.writer.state_dict(),
            "sampler": self.sampler_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned, into an empty memory."""
        if state["transitions"]:
            self.buffer.extend(TensorDict(state["transitions"], batch_size=[len(state["transitions"]["at"])]))
        self._frames[: len(state["frames"])] = state["frames"].to(self._device)
        self._final = state["final"].to(self._device)
        self._free, self._row = list(state["free"]), state["row"]
        self._taken = deque((row, place) for row, place in state["taken"])
        self._age = state["age"].numpy()
        self._pending = deque({name: value.numpy() for name, value in step.items()} for step in state["pending"])
        self.buffer.writer.load_state_dict(state["writer"])
        self.load_sampler_state(state["sampler"])

    def sampler_state(self) -> dict[str, Any]:
        """Priorities, where there are any: what cannot be had by remembering the same steps again."""
        if not self.prioritized or not len(self):
            return {}
        state = self.buffer.sampler.state_dict()
        index = torch.arange(len(self))
        trees = {name: torch.as_tensor(state[name][index]) for name in _TREES}
        largest = [None if value is None else float(value) for value in state["_max_priority"]]
        return {**trees, "_max_priority": largest}

    def load_sampler_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`sampler_state` returned; as many transitions are here as were there."""
        if not state:
            return
        whole = self.buffer.sampler.state_dict()
        index = torch.arange(len(self))
        for name in _TREES:
            whole[name][index] = state[name]
        value, place = state["_max_priority"]
        whole["_max_priority"] = (value, None if place is None else int(place))
        self.buffer.sampler.load_state_dict(whole)

    # Frames -------------------------------------------------------------------------------------------------------

    def _allocate(self, count: int) -> Tensor:
        shape, dtype = self.layout.frame
        if self._folder is None or not count:
            return torch.zeros((count, *shape), dtype=dtype, device=self._device)
        self._folder.mkdir(parents=True, exist_ok=True)
        return MemoryMappedTensor.zeros((count, *shape), dtype=dtype, filename=str(self._folder / "frames.memmap"))

    def _show(self, frames: Array) -> None:
        self._row += 1
        start = (self._row % self._rows) * self.layout.envs
        self._frames[start : start + self.layout.envs] = torch.as_tensor(frames).to(self._device)

    def _keep_final(self, frame: Array) -> int:
        """Put a final frame where none is that a transition may still refer to."""
        forgotten = self._row - self.layout.rows - self.layout.n_step
        while self._taken and self._taken[0][0] < forgotten:
            self._free.append(self._taken.popleft()[1])
        if not self._free:
            old = len(self._final)
            grown = self._allocate(0).new_zeros((max(8, 2 * old), *self.layout.frame[0]))
            grown[:old] = self._final
            self._final = grown
            self._free.extend(range(len(grown) - 1, old - 1, -1))
        place = self._free.pop()
        self._final[place] = torch.as_tensor(frame).to(self._device)
        self._taken.append((self._row, place))
        return place

    def _cut_off(self) -> None:
        """Let the new episodes' first frames take the row of those that the environments show now.

        A row more would be one without a transition, and the ring of frames would get ahead of the buffer's.
        """
        if len(self) or self._pending:
            start = (self._row % self._rows) * self.layout.envs
            shown = self._frames[start : start + self.layout.envs]
            place = np.array([self._keep_final(frame) for frame in shown], np.int32)
            self._end_newest(torch.from_numpy(place).to(self._device))
            if self._pending:
                last = self._pending[-1]
                last["place"] = np.where(last["ended"], last["place"], place)
                last["ended"] = np.ones_like(last["ended"])
            while self._pending:
                self.buffer.extend(self._transition())
                self._pending.popleft()
        self._row -= 1

    def _end_newest(self, place: Tensor) -> None:
        """Have those of the newest transitions that no end of an episode closes end in final frames. [envs]."""
        if len(self):
            envs, capacity = self.layout.envs, self.layout.rows * self.layout.envs
            at = (self.buffer.writer._cursor - envs + torch.arange(envs, device=self._device)) % capacity
            stored = self.buffer.storage.get(slice(0, len(self)))  # a view
            going_on = ~stored["terminated"][at] & (stored["place"][at] < 0)
            stored["place"][at] = torch.where(going_on, place, stored["place"][at])

    def _transition(self) -> TensorDict:
        """The oldest pending step of every environment, with the rewards that followed it in its episode."""
        first = self._pending[0]
        reward, terminated, place = first["reward"], first["terminated"], first["place"]
        span = np.ones(self.layout.envs, np.uint8)
        alive = ~first["ended"]
        for distance, step in enumerate(itertools.islice(self._pending, 1, None), 1):
            reward = reward + alive * self.layout.gamma**distance * step["reward"]
            terminated = terminated | (alive & step["terminated"])
            place = np.where(alive, step["place"], place)
            span = span + alive
            alive = alive & ~step["ended"]
        columns: dict[str, Array] = {
            "action": first["action"],
            "reward": reward.astype(np.float32),
            "terminated": terminated,
            "place": place,
            "at": first["at"],
        }
        if self.layout.n_step > 1:
            columns["span"] = span.astype(np.uint8)
        if self.layout.stack > 1:
            columns["age"] = first["age"]
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()}
        tensors["action"] = tensors["action"].to(self.layout.action)
        return TensorDict(tensors, batch_size=[self.layout.envs])

    def _complete(self, found: TensorDictBase) -> TensorDictBase:
        """From places of frames to observations."""
        at = found["at"].long()
        span = found["span"].long() if self.layout.n_step > 1 else 1
        gamma = self.layout.gamma**span
        alive = (~found["terminated"]).float()
        if self.layout.stack:
            age = found["age"].long() if self.layout.stack > 1 else torch.zeros_like(at)
            observation = self._stacked(at, age)
            following = self._stacked(at + span * self.layout.envs, (age + span).clamp_max(self.layout.stack - 1))
        else:
            observation = self._frames[at]
            following = self._frames[(at + span * self.layout.envs) % len(self._frames)]
        if len(self._final):
            place = found["place"].long()
            latest = following[:, -1] if self.layout.stack else following
            kept = (place >= 0).view(-1, *[1] * (latest.ndim - 1))
            latest.copy_(torch.where(kept, self._final[place.clamp_min(0)], latest))
        columns = {
            "observation": observation,
            "action": found["action"],
            "reward": found["reward"],
            "next_observation": following,
            "discount": gamma * alive,
        }
        return TensorDict(columns, batch_size=found.batch_size)

    def _stacked(self, at: Tensor, age: Tensor) -> Tensor:
        """The frames at these places and those before them, oldest first. [B, stack, ...]."""
        back = torch.arange(self.layout.stack - 1, -1, -1, device=self._device)
        frames = self._frames[(at[:, None] - back * self.layout.envs) % len(self._frames)]
        there = back <= age[:, None]
        return frames * there.view(*there.shape, *[1] * (frames.ndim - 2))


def _prioritized(capacity: int, alpha: float, beta: float) -> PrioritizedSampler:
    try:  # PyPI's torchrl has no trees for a GPU; they stay on the CPU, and so does what draws from them
        return PrioritizedSampler(capacity, alpha, beta, device="cpu")
    except RuntimeError as error:
        raise UserError(
            f"prioritized: torchrl {version('torchrl')} was not compiled for torch {torch.__version__}, and its trees "
            "do not load; install versions made for each other, or leave it out"
        ) from error
