"""The memory against a reference that keeps whole episodes in lists and knows nothing of rings."""

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
from tests.helpers import need_priorities

GAMMA = 0.9


@dataclass
class Episode:
    frames: list[int]
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False


@dataclass
class World:
    """Several environments with numbered frames, stepped together into a memory and into lists."""

    memory: ReplayBuffer
    envs: int
    rng: np.random.Generator
    past: list[list[tuple[Episode, int]]] = field(default_factory=list)  # of each env: (episode, place in it)
    counter: int = 0
    left: int = 0  # steps before the environments were last left

    def __post_init__(self) -> None:
        self.now = [self.fresh() for _ in range(self.envs)]
        self.past = [[] for _ in range(self.envs)]
        self.memory.start_episodes(self.shown())

    def number(self) -> int:
        self.counter += 1
        return self.counter

    def fresh(self) -> Episode:
        return Episode([self.number()])

    def shown(self) -> np.ndarray[Any, Any]:
        return np.array([[episode.frames[-1]] for episode in self.now], np.float32)

    def step(self) -> None:
        actions = self.rng.integers(0, 5, self.envs)
        rewards = self.rng.normal(size=self.envs)
        terminated, truncated = self.rng.random(self.envs) < 0.15, self.rng.random(self.envs) < 0.15
        final = {}
        for env, episode in enumerate(self.now):
            self.past[env].append((episode, len(episode.actions)))
            episode.actions.append(int(actions[env]))
            episode.rewards.append(float(rewards[env]))
            episode.frames.append(self.number())
            episode.terminated = bool(terminated[env])
            if terminated[env] or truncated[env]:
                final[env] = np.array([episode.frames[-1]], np.float32)
                self.now[env] = self.fresh()
        self.memory.add(actions, rewards, terminated, truncated, self.shown(), final)

    def leave(self) -> None:
        """Go on in new episodes, as in another task."""
        self.now = [self.fresh() for _ in range(self.envs)]
        self.left = len(self.past[0])
        self.memory.start_episodes(self.shown())

    def expected(self, rows: int, n_step: int, stack: int) -> list[tuple[Any, ...]]:
        """The transitions that a memory of so many rows should hold, of all environments."""
        found = []
        for env in range(self.envs):
            complete = self.past[env][: max(self.left, len(self.past[env]) - n_step + 1)]
            for episode, place in complete[-rows:]:
                # Rewards up to n steps, but not beyond what the episode had.
                last = min(place + n_step, len(episode.actions))
                reward = sum(GAMMA**i * episode.rewards[place + i] for i in range(last - place))
                over = episode.terminated and last == len(episode.actions)
                found.append(
                    (
                        self.seen(episode, place, stack),
                        episode.actions[place],
                        round(reward, 3),
                        None if over else self.seen(episode, last, stack),
                        0.0 if over else round(GAMMA ** (last - place), 3),
                    )
                )
        return sorted(found, key=str)

    @staticmethod
    def seen(episode: Episode, place: int, stack: int) -> tuple[int, ...]:
        if not stack:
            return (episode.frames[place],)
        return tuple(episode.frames[i] if i >= 0 else 0 for i in range(place - stack + 1, place + 1))


def held(memory: ReplayBuffer) -> list[tuple[Any, ...]]:
    batch = memory._to_batch(memory.buffer.storage.get(slice(0, len(memory))))
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


def make(envs: int = 2, capacity: int = 24, n_step: int = 1, stack: int = 0, **options: Any) -> ReplayBuffer:
    if options.get("priority"):
        need_priorities()
    layout = BufferSpec(capacity, envs, ((1,), torch.float32), torch.int32, stack, n_step, GAMMA)
    options = {"batch_size": 4, "device": torch.device("cpu"), "generator": torch.Generator().manual_seed(0), **options}
    return ReplayBuffer(layout, **options)


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("n_step", [1, 2, 5])
@pytest.mark.parametrize("stack", [0, 1, 4])
@pytest.mark.parametrize("leaving", [0, 3, 11])
def test_transitions_are_those_of_the_episodes_whatever_the_ring_has_overwritten(
    envs: int, n_step: int, stack: int, leaving: int
) -> None:
    memory = make(envs, 24, n_step, stack)
    world = World(memory, envs, np.random.default_rng(envs + 10 * n_step + 100 * stack))
    for steps in range(1, 120):
        world.step()
        if leaving and steps % leaving == 0:
            world.leave()
        if steps % 7 == 0 and len(memory):
            assert held(memory) == world.expected(24 // envs, n_step, stack)
    assert len(memory) == 24


def test_a_new_beginning_cuts_episodes_off_and_mixes_none() -> None:
    memory = make(1, 24, n_step=3, stack=2)
    for frame in (1.0, 10.0):
        memory.start_episodes(np.array([[frame]], np.float32))
        for step in range(1, 5):
            nothing = np.zeros(1, bool)
            memory.add(np.zeros(1), np.ones(1), nothing, nothing, np.array([[frame + step]], np.float32), {})
    assert [item[0] for item in held(memory)] == [(0, 1), (0, 10), (1, 2), (10, 11), (2, 3), (3, 4)]
    assert [item[3] for item in held(memory)] == [(3, 4), (12, 13), (4, 5), (13, 14), (4, 5), (4, 5)]
    assert [item[4] for item in held(memory)] == [0.729, 0.729, 0.729, 0.729, 0.81, 0.9]


def test_samples_are_uniform_follow_the_generator_and_batches_drawn_together_differ() -> None:
    def filled() -> ReplayBuffer:
        memory = make(2, 24)
        world = World(memory, 2, np.random.default_rng(0))
        for _ in range(20):
            world.step()
        return memory

    one, other = filled(), filled()
    batches, again = list(one.sample(500)), list(other.sample(500))
    assert all((a["observation"] == b["observation"]).all() for a, b in zip(batches, again, strict=True))
    assert not (batches[0]["observation"] == batches[1]["observation"]).all()
    drawn = torch.cat([batch["observation"] for batch in batches]).flatten().int().tolist()
    counts = np.array([drawn.count(frame) for frame in set(drawn)])
    assert len(counts) == 24 and len(drawn) == 2000
    assert ((counts - 2000 / 24) ** 2 / (2000 / 24)).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_drawing_a_representative_batch_does_not_disturb_the_samples() -> None:
    memory, other = make(), make()
    for each in (memory, other):
        world = World(each, 2, np.random.default_rng(0))
        for _ in range(20):
            world.step()
    drawn = memory.sample_without_replacement(10, torch.Generator().manual_seed(1))
    assert len(set(drawn["observation"].flatten().tolist())) == 10
    (a,), (b,) = memory.sample(), other.sample()
    assert (a["observation"] == b["observation"]).all()


def filled_by_priority(beta: float = 0.4) -> ReplayBuffer:
    memory = make(2, 24, priority=(0.6, beta))
    world = World(memory, 2, np.random.default_rng(0))
    for _ in range(12):
        world.step()
    return memory


def test_priorities_decide_how_often_a_transition_is_drawn_and_how_much_it_weighs() -> None:
    memory = filled_by_priority()
    memory.update_priority({"index": torch.arange(24), "td_error": torch.arange(1.0, 25.0)})  # type: ignore[arg-type]
    counts, weights = np.zeros(24), np.zeros(24)
    for batch in memory.sample(4000):
        for index, weight in zip(batch["index"].tolist(), batch["weight"].tolist(), strict=True):
            counts[index] += 1
            weights[index] = weight
    probability = np.arange(1.0, 25.0) ** 0.6
    probability /= probability.sum()
    assert np.abs(counts / counts.sum() - probability).max() < 0.01
    np.testing.assert_allclose(weights, (probability / probability.min()) ** -0.4, rtol=1e-3)


def test_new_transitions_have_the_largest_priority() -> None:
    memory = filled_by_priority()
    memory.update_priority({"index": torch.arange(24), "td_error": torch.full((24,), 1e-3)})  # type: ignore[arg-type]
    memory.update_priority({"index": torch.tensor([5]), "td_error": torch.tensor([3.0])})  # type: ignore[arg-type]
    nothing = np.zeros(2, bool)
    memory.add(np.zeros(2), np.zeros(2), nothing, nothing, np.zeros((2, 1), np.float32), {})
    drawn = torch.cat([batch["index"] for batch in memory.sample(200)])
    share = {int(index): float((drawn == index).float().mean()) for index in drawn.unique()}
    newest = sorted(share, key=share.get, reverse=True)[:3]  # type: ignore[arg-type]
    assert set(newest) == {0, 1, 5}  # the ring has overwritten 0 and 1


def test_torchrl_without_its_compiled_part_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_priorities_come_back_exactly() -> None:
    memory, other = filled_by_priority(), filled_by_priority()
    for batch in memory.sample(5):
        batch["td_error"] = torch.rand(4, generator=torch.Generator().manual_seed(3))
        memory.update_priority(batch)
    other.load_sampler_state(memory.sampler_state())
    other.buffer._rng.set_state(memory.buffer._rng.get_state())
    for a, b in zip(memory.sample(20), other.sample(20), strict=True):
        assert (a["index"] == b["index"]).all() and (a["weight"] == b["weight"]).all()


@pytest.mark.parametrize("steps", [0, 1, 5, 40])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("priority", [None, (0.6, 0.4)])
def test_a_memory_that_was_saved_goes_on_as_the_one_that_was_not(
    tmp_path: Path, steps: int, mapped: bool, priority: Any
) -> None:
    memory = make(2, 24, 3, 2, priority=priority, folder=tmp_path / "a" if mapped else None)
    world = World(memory, 2, np.random.default_rng(5))
    for step in range(steps):
        world.step()
        if priority and step > 20:
            batch = next(memory.sample())
            batch["td_error"] = torch.arange(4.0)
            memory.update_priority(batch)
    checkpoint.save(tmp_path / "state.pt", memory.state_dict())
    other = make(2, 24, 3, 2, priority=priority, folder=tmp_path / "b" if mapped else None)
    other.load_state_dict(checkpoint.load(tmp_path / "state.pt"))
    assert held(other) == held(memory) if steps > 2 else len(other) == len(memory) == 0
    other.buffer._rng.set_state(memory.buffer._rng.get_state())
    twin = World(memory, 2, np.random.default_rng(6))  # both are left and entered anew
    copy = World(other, 2, np.random.default_rng(6))
    for _ in range(9):
        twin.step()
        copy.step()
    assert held(other) == held(memory)
    for a, b in zip(memory.sample(5), other.sample(5), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "stack"),
    [((4, 10, 10), torch.bool, 0), ((10, 10, 10), torch.bool, 0), ((84, 84), torch.uint8, 4)],
)
def test_memory_takes_at_most_five_percent_more_than_the_raw_bytes(
    shape: tuple[int, ...], dtype: torch.dtype, stack: int
) -> None:
    capacity, envs = 2000, 4
    layout = BufferSpec(capacity, envs, (shape, dtype), torch.int32, stack)
    memory = ReplayBuffer(layout, 4, torch.device("cpu"), torch.Generator())
    frames = np.zeros((envs, *shape), bool if dtype is torch.bool else np.uint8)
    memory.start_episodes(frames)
    nothing = np.zeros(envs, bool)
    for step in range(capacity // envs + 50):
        cut = np.full(envs, step % 500 == 499)
        memory.add(np.zeros(envs), np.zeros(envs), nothing, cut, frames, dict(enumerate(frames)))
    raw = capacity * (frames[0].nbytes + 4 + 4 + 1)  # each frame once, action, reward, end
    assert len(memory) == capacity and raw < memory.bytes <= 1.05 * raw


def test_final_frames_take_no_more_room_than_episodes_that_are_remembered() -> None:
    memory = make(1, 8)
    memory.start_episodes(np.zeros((1, 1), np.float32))
    cut, nothing = np.ones(1, bool), np.zeros(1, bool)
    for step in range(1000):
        memory.add(np.zeros(1), np.zeros(1), nothing, cut, np.zeros((1, 1), np.float32), {0: np.full(1, step)})
    assert len(memory._final) <= 16
    assert sorted(item[3] for item in held(memory)) == [(step,) for step in range(992, 1000)]


def test_a_memory_in_files_holds_the_same(tmp_path: Path) -> None:
    memory, mapped = make(2, 24, 2, 3), make(2, 24, 2, 3, folder=tmp_path)
    for each in (memory, mapped):
        world = World(each, 2, np.random.default_rng(5))
        for _ in range(40):
            world.step()
    assert held(mapped) == held(memory)
    assert (tmp_path / "frames.memmap").stat().st_size == mapped._frames.nbytes
