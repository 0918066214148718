"""The replay buffer against a reference that keeps complete episodes in lists."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plastibench.config.errors import UserError
from plastibench.training import checkpoint
from plastibench.training.replay_buffer import BufferSpec, ReplayBuffer
from tests.support.rl import need_priorities

GAMMA = 0.9


@dataclass
class Episode:
    frames: list[int]
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


@dataclass
class World:
    """Several environments with numbered frames; every step is added to a buffer and to lists."""

    buffer: ReplayBuffer
    envs: int
    rng: np.random.Generator
    past: list[list[tuple[Episode, int]]] = field(default_factory=list)  # per environment: (episode, step in it)
    counter: int = 0
    restarted: int = 0  # steps before the latest restart

    def __post_init__(self) -> None:
        self.current = [self.new_episode() for _ in range(self.envs)]
        self.past = [[] for _ in range(self.envs)]
        self.buffer.start_episodes(self.frames())

    def number(self) -> int:
        self.counter += 1
        return self.counter

    def new_episode(self) -> Episode:
        return Episode([self.number()])

    def frames(self) -> np.ndarray[Any, Any]:
        return np.array([[episode.frames[-1]] for episode in self.current], np.float32)

    def step(self) -> None:
        actions = self.rng.integers(0, 5, self.envs)
        rewards = self.rng.normal(size=self.envs)
        terminated, truncated = self.rng.random(self.envs) < 0.15, self.rng.random(self.envs) < 0.15
        final = {}
        for env, episode in enumerate(self.current):
            self.past[env].append((episode, len(episode.actions)))
            episode.actions.append(int(actions[env]))
            episode.rewards.append(float(rewards[env]))
            episode.frames.append(self.number())
            episode.terminated = bool(terminated[env])
            if terminated[env] or truncated[env]:
                final[env] = np.array([episode.frames[-1]], np.float32)
                self.current[env] = self.new_episode()
        self.buffer.add(actions, rewards, terminated, truncated, self.frames(), final)

    def restart(self) -> None:
        """Start new episodes, as in another task."""
        self.current = [self.new_episode() for _ in range(self.envs)]
        self.restarted = len(self.past[0])
        self.buffer.start_episodes(self.frames())

    def expected(self, rows: int, n_step: int, stack: int) -> list[tuple[Any, ...]]:
        """The transitions of all environments that a buffer with this many rows should contain."""
        found = []
        for env in range(self.envs):
            complete = self.past[env][: max(self.restarted, len(self.past[env]) - n_step + 1)]
            for episode, step_number in complete[-rows:]:
                # Up to n rewards, but not beyond the end of the episode.
                last = min(step_number + n_step, len(episode.actions))
                reward = sum(GAMMA**i * episode.rewards[step_number + i] for i in range(last - step_number))
                over = episode.terminated and last == len(episode.actions)
                found.append(
                    (
                        self.observation(episode, step_number, stack),
                        episode.actions[step_number],
                        round(reward, 3),
                        None if over else self.observation(episode, last, stack),
                        0.0 if over else round(GAMMA ** (last - step_number), 3),
                    )
                )
        return sorted(found, key=str)

    @staticmethod
    def observation(episode: Episode, step_number: int, stack: int) -> tuple[int, ...]:
        if not stack:
            return (episode.frames[step_number],)
        return tuple(episode.frames[i] if i >= 0 else 0 for i in range(step_number - stack + 1, step_number + 1))


def content(buffer: ReplayBuffer) -> list[tuple[Any, ...]]:
    batch = buffer._to_batch(buffer.buffer.storage.get(slice(0, len(buffer))))
    found = []
    for item in batch:
        over = float(item["discount"]) == 0
        found.append(
            (
                tuple(item["observation"].flatten().int().tolist()),
                int(item["action"]),
                round(float(item["reward"]), 3),
                None if over else tuple(item["next_observation"].flatten().int().tolist()),
                round(float(item["discount"]), 3),
            )
        )
    return sorted(found, key=str)


def make_buffer(envs: int = 2, capacity: int = 24, n_step: int = 1, stack: int = 0, **options: Any) -> ReplayBuffer:
    if options.get("priority"):
        need_priorities()
    spec = BufferSpec(capacity, envs, ((1,), torch.float32), torch.int32, stack, n_step, GAMMA)
    options = {"batch_size": 4, "device": torch.device("cpu"), "generator": torch.Generator().manual_seed(0), **options}
    return ReplayBuffer(spec, **options)


@pytest.mark.sample(12)
@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize("stack", [0, 1, 4])
@pytest.mark.parametrize("restart_every", [0, 3, 11])
def test_transitions_match_a_reference_after_overwriting(
    envs: int, n_step: int, stack: int, restart_every: int
) -> None:
    buffer = make_buffer(envs, 24, n_step, stack)
    world = World(buffer, envs, np.random.default_rng(envs + 10 * n_step + 100 * stack))
    for steps in range(1, 120):
        world.step()
        if restart_every and steps % restart_every == 0:
            world.restart()
        if steps % 7 == 0 and len(buffer):
            assert content(buffer) == world.expected(24 // envs, n_step, stack)
    assert len(buffer) == 24


def test_starting_new_episodes_truncates_old_ones() -> None:
    buffer = make_buffer(1, 24, n_step=3, stack=2)
    for frame in (1.0, 10.0):
        buffer.start_episodes(np.array([[frame]], np.float32))
        for step in range(1, 5):
            nothing = np.zeros(1, bool)
            buffer.add(np.zeros(1), np.ones(1), nothing, nothing, np.array([[frame + step]], np.float32), {})
    assert [item[0] for item in content(buffer)] == [(0, 1), (0, 10), (1, 2), (10, 11), (2, 3), (3, 4)]
    assert [item[3] for item in content(buffer)] == [(3, 4), (12, 13), (4, 5), (13, 14), (4, 5), (4, 5)]
    assert [item[4] for item in content(buffer)] == [0.729, 0.729, 0.729, 0.729, 0.81, 0.9]


def test_samples_are_uniform_and_depend_only_on_the_generator() -> None:
    def filled() -> ReplayBuffer:
        buffer = make_buffer(2, 24)
        world = World(buffer, 2, np.random.default_rng(0))
        for _ in range(20):
            world.step()
        return buffer

    one, other = filled(), filled()
    batches, again = list(one.sample(500)), list(other.sample(500))
    assert all((a["observation"] == b["observation"]).all() for a, b in zip(batches, again, strict=True))
    assert not (batches[0]["observation"] == batches[1]["observation"]).all()
    drawn = torch.cat([batch["observation"] for batch in batches]).flatten().int().tolist()
    counts = np.array([drawn.count(frame) for frame in set(drawn)])
    assert len(counts) == 24 and len(drawn) == 2000
    assert ((counts - 2000 / 24) ** 2 / (2000 / 24)).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_sampling_without_replacement_does_not_affect_samples() -> None:
    buffer, other = make_buffer(), make_buffer()
    for each in (buffer, other):
        world = World(each, 2, np.random.default_rng(0))
        for _ in range(20):
            world.step()
    drawn = buffer.sample_without_replacement(10, torch.Generator().manual_seed(1))
    assert len(set(drawn["observation"].flatten().tolist())) == 10
    (a,), (b,) = buffer.sample(), other.sample()
    assert (a["observation"] == b["observation"]).all()


def filled_by_priority(beta: float = 0.4) -> ReplayBuffer:
    buffer = make_buffer(2, 24, priority=(0.6, beta))
    world = World(buffer, 2, np.random.default_rng(0))
    for _ in range(12):
        world.step()
    return buffer


def test_priorities_determine_frequencies_and_importance_weights() -> None:
    buffer = filled_by_priority()
    buffer.update_priority({"index": torch.arange(24), "td_error": torch.arange(1.0, 25.0)})  # type: ignore[arg-type]
    counts, weights = np.zeros(24), np.zeros(24)
    for batch in buffer.sample(4000):
        for index, weight in zip(batch["index"].tolist(), batch["weight"].tolist(), strict=True):
            counts[index] += 1
            weights[index] = weight
    probability = np.arange(1.0, 25.0) ** 0.6
    probability /= probability.sum()
    assert np.abs(counts / counts.sum() - probability).max() < 0.01
    np.testing.assert_allclose(weights, (probability / probability.min()) ** -0.4, rtol=1e-3)


def test_new_transitions_have_the_highest_priority() -> None:
    buffer = filled_by_priority()
    buffer.update_priority({"index": torch.arange(24), "td_error": torch.full((24,), 1e-3)})  # type: ignore[arg-type]
    buffer.update_priority({"index": torch.tensor([5]), "td_error": torch.tensor([3.0])})  # type: ignore[arg-type]
    nothing = np.zeros(2, bool)
    buffer.add(np.zeros(2), np.zeros(2), nothing, nothing, np.zeros((2, 1), np.float32), {})
    drawn = torch.cat([batch["index"] for batch in buffer.sample(200)])
    frequency = {int(index): float((drawn == index).float().mean()) for index in drawn.unique()}
    newest = sorted(frequency, key=frequency.get, reverse=True)[:3]  # type: ignore[arg-type]
    assert set(newest) == {0, 1, 5}  # the ring has overwritten 0 and 1


def test_missing_torchrl_extension_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("SumSegmentTreeFp32 is not available. See warning above.")

    monkeypatch.setattr("plastibench.training.replay_buffer.PrioritizedSampler", fail)
    with pytest.raises(UserError, match=r"prioritized: torchrl .* was not compiled for torch"):
        ReplayBuffer(
            BufferSpec(8, 1, ((1,), torch.float32), torch.int32),
            4,
            torch.device("cpu"),
            torch.Generator(),
            priority=(0.6, 0.4),
        )


def test_priorities_are_restored_exactly() -> None:
    buffer, other = filled_by_priority(), filled_by_priority()
    for batch in buffer.sample(5):
        batch["td_error"] = torch.rand(4, generator=torch.Generator().manual_seed(3))
        buffer.update_priority(batch)
    other.load_sampler_state(buffer.sampler_state())
    other.buffer._rng.set_state(buffer.buffer._rng.get_state())
    for a, b in zip(buffer.sample(20), other.sample(20), strict=True):
        assert (a["index"] == b["index"]).all() and (a["weight"] == b["weight"]).all()


@pytest.mark.parametrize("steps", [0, 1, 5, 40])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("priority", [None, (0.6, 0.4)])
def test_restored_buffer_is_identical(tmp_path: Path, steps: int, mapped: bool, priority: Any) -> None:
    buffer = make_buffer(2, 24, 3, 2, priority=priority, folder=tmp_path / "a" if mapped else None)
    world = World(buffer, 2, np.random.default_rng(5))
    for step in range(steps):
        world.step()
        if priority and step > 20:
            batch = next(buffer.sample())
            batch["td_error"] = torch.arange(4.0)
            buffer.update_priority(batch)
    checkpoint.save(tmp_path / "state.pt", buffer.state_dict())
    other = make_buffer(2, 24, 3, 2, priority=priority, folder=tmp_path / "b" if mapped else None)
    other.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
    assert content(other) == content(buffer) if steps > 2 else len(other) == len(buffer) == 0
    other.buffer._rng.set_state(buffer.buffer._rng.get_state())
    twin = World(buffer, 2, np.random.default_rng(6))  # both start new episodes
    copy = World(other, 2, np.random.default_rng(6))
    for _ in range(9):
        twin.step()
        copy.step()
    assert content(other) == content(buffer)
    for a, b in zip(buffer.sample(5), other.sample(5), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "stack"),
    [((4, 10, 10), torch.bool, 0), ((10, 10, 10), torch.bool, 0), ((84, 84), torch.uint8, 4)],
)
def test_buffer_overhead_is_at_most_five_percent(shape: tuple[int, ...], dtype: torch.dtype, stack: int) -> None:
    capacity, envs = 2000, 4
    spec = BufferSpec(capacity, envs, (shape, dtype), torch.int32, stack)
    buffer = ReplayBuffer(spec, 4, torch.device("cpu"), torch.Generator())
    frames = np.zeros((envs, *shape), bool if dtype is torch.bool else np.uint8)
    buffer.start_episodes(frames)
    nothing = np.zeros(envs, bool)
    for step in range(capacity // envs + 50):
        cut = np.full(envs, step % 500 == 499)
        buffer.add(np.zeros(envs), np.zeros(envs), nothing, cut, frames, dict(enumerate(frames)))
    raw = capacity * (frames[0].nbytes + 4 + 4 + 1)  # each frame once, action, reward, end
    assert len(buffer) == capacity and raw < buffer.bytes <= 1.05 * raw


def test_slots_of_final_frames_are_reused() -> None:
    buffer = make_buffer(1, 8)
    buffer.start_episodes(np.zeros((1, 1), np.float32))
    cut, nothing = np.ones(1, bool), np.zeros(1, bool)
    for step in range(1000):
        buffer.add(np.zeros(1), np.zeros(1), nothing, cut, np.zeros((1, 1), np.float32), {0: np.full(1, step)})
    assert len(buffer._final) <= 16
    assert sorted(item[3] for item in content(buffer)) == [(step,) for step in range(992, 1000)]


def test_memory_mapped_buffer_has_the_same_content(tmp_path: Path) -> None:
    buffer, mapped = make_buffer(2, 24, 2, 3), make_buffer(2, 24, 2, 3, folder=tmp_path)
    for each in (buffer, mapped):
        world = World(each, 2, np.random.default_rng(5))
        for _ in range(40):
            world.step()
    assert content(mapped) == content(buffer)
    assert (tmp_path / "frames.memmap").stat().st_size == mapped._frames.nbytes
