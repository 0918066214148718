from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from plastibench.config.errors import UserError
from plastibench.integrations.callback_schedule import Schedule, collate


class Noisy(Dataset):
    """Squares with noise from every global generator, as augmentations draw it."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, float]:
        noise = torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002
        return {"index": index, "noise": torch.tensor(noise)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_are_drawn_without_replacement_and_collated_once() -> None:
    calls: list[int] = []

    def count(samples: list[dict[str, float]]) -> torch.Tensor:
        calls.append(len(samples))
        return torch.tensor([sample["index"] for sample in samples])

    loader = DataLoader(Noisy(), batch_size=3, collate_fn=count)
    batch = collate(loader, 8, generator())
    assert calls == [8] and len(set(batch.tolist())) == 8
    assert batch.tolist() != sorted(batch.tolist())
    assert sorted(collate(loader, 99, generator()).tolist()) == list(range(20))


def test_batches_depend_only_on_the_generator() -> None:
    loader = DataLoader(Noisy())
    source = generator()
    first, second = collate(loader, 8, source), collate(loader, 8, source)
    assert not torch.equal(first["index"], second["index"]) and not torch.equal(first["noise"], second["noise"])
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    again = collate(loader, 8, generator())
    assert torch.equal(first["index"], again["index"]) and torch.equal(first["noise"], again["noise"])


def test_collate_does_not_affect_training_data() -> None:
    def epoch(disturb: bool) -> list[torch.Tensor]:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
        loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
        found = []
        for batch in loader:
            found += [batch["index"], batch["noise"]]
            if disturb:
                collate(loader, 8, generator())
        return found

    for plain, disturbed in zip(epoch(False), epoch(True), strict=True):
        assert torch.equal(plain, disturbed)


def test_random_states_are_restored_after_an_error() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> dict[str, float]:
            raise OSError("gone")

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    with pytest.raises(OSError, match="gone"):
        collate(DataLoader(Broken()), 2, generator())
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_iterable_data_sets_need_a_draw_function() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(UserError, match="draw="):
        collate(DataLoader(Stream()), 2, generator())


def test_schedule_counts_steps_and_epochs_from_one() -> None:
    assert [step for step in range(1, 10) if Schedule(every=3).due(step)] == [3, 6, 9]
    assert [step for step in range(1, 10) if Schedule(steps=(2, 5)).due(step)] == [2, 5]
    assert [epoch for epoch in range(5) if Schedule(epochs=(1, 3)).due(7, epoch)] == [1, 3]
    assert not any(Schedule().due(step, step) for step in range(5))
