from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.data import ReplayBuffer

from plastibench.training.task_buffer import add_task_data, all_samples, make_task_buffer, representative
from plastibench.utils.seeding import derive, generator


def images_of(numbers: range) -> np.ndarray:
    """One image per number, which it carries in its first two pixels."""
    images = np.zeros((len(numbers), 1, 2, 2), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = [n % 256 for n in numbers], [n // 256 for n in numbers]
    return images


def numbers_in(batch: object) -> list[int]:
    image = batch["image"].long()
    return (image[:, 0, 0, 0] + 256 * image[:, 0, 0, 1]).tolist()


def filled(count: int, batch_size: int = 4, seed: int = 0, capacity: int = 1000) -> ReplayBuffer:
    replay = make_task_buffer(capacity, batch_size, torch.device("cpu"), torch.Generator().manual_seed(seed))
    add_task_data(replay, images_of(range(count)), np.arange(count) % 7)
    return replay


def epoch(replay: ReplayBuffer, batch_size: int = 4) -> list[list[int]]:
    return [numbers_in(replay.sample()) for _ in range(-(-len(replay) // batch_size))]


@pytest.mark.parametrize("count", [1, 3, 4, 10, 12, 101])
def test_epoch_contains_every_sample_once_and_may_end_with_a_smaller_batch(count: int) -> None:
    replay = filled(count)
    orders = []
    for _ in range(3):
        batches = epoch(replay)
        assert [len(batch) for batch in batches[:-1]] == [4] * (len(batches) - 1)
        assert len(batches[-1]) == (count - 1) % 4 + 1
        orders.append([number for batch in batches for number in batch])
        assert sorted(orders[-1]) == list(range(count))
    if count > 10:
        assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])


def test_epochs_contain_new_data() -> None:
    replay = filled(10)
    for _ in range(2):
        epoch(replay)
    add_task_data(replay, images_of(range(10, 23)), np.zeros(23, np.int64))
    for _ in range(2):
        batches = epoch(replay)
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
        assert sorted(number for batch in batches for number in batch) == list(range(23))


def test_first_sample_is_uniform() -> None:
    replay = filled(8, batch_size=8)
    first = np.bincount([numbers_in(replay.sample())[0] for _ in range(800)], minlength=8)
    assert float(((first - 100) ** 2 / 100).sum()) < 29  # 7 degrees of freedom: p = 0.0001


def test_order_depends_only_on_the_generator() -> None:
    torch.manual_seed(0)
    one = [epoch(replay) for replay in [filled(20, seed=5)] for _ in range(2)]
    torch.manual_seed(1)
    same = [epoch(replay) for replay in [filled(20, seed=5)] for _ in range(2)]
    assert one == same
    assert one != [epoch(replay) for replay in [filled(20, seed=6)] for _ in range(2)]


@pytest.mark.parametrize("already", [0, 1, 3, 5, 7])
def test_order_is_restored_within_an_epoch(already: int) -> None:
    def start() -> tuple[ReplayBuffer, torch.Generator]:
        order = torch.Generator().manual_seed(3)
        replay = make_task_buffer(100, 4, torch.device("cpu"), order)
        add_task_data(replay, images_of(range(18)), np.zeros(18, np.int64))
        return replay, order

    replay, order = start()
    for _ in range(already):
        replay.sample()
    sampler, state = dict(replay.sampler.state_dict()), order.get_state()
    ahead = [numbers_in(replay.sample()) for _ in range(12)]
    fresh, order = start()
    fresh.sampler.load_state_dict(sampler)
    order.set_state(state)
    assert [numbers_in(fresh.sample()) for _ in range(12)] == ahead


def test_images_keep_their_labels() -> None:
    replay = filled(50)
    batch = replay.sample()
    assert batch["label"].tolist() == [number % 7 for number in numbers_in(batch)]
    assert batch["image"].dtype == torch.uint8 and batch["label"].dtype == torch.int64


def test_new_data_updates_old_labels() -> None:
    replay = filled(6)
    add_task_data(replay, images_of(range(6, 9)), np.arange(9) + 20)
    assert all_samples(replay)["label"].tolist() == [n + 20 for n in range(9)]
    assert numbers_in(all_samples(replay)) == list(range(9))
    for _ in range(2):
        for _ in range(3):
            batch = replay.sample()
            assert batch["label"].tolist() == [number + 20 for number in numbers_in(batch)]


def test_labels_can_be_updated_without_new_images() -> None:
    replay = filled(6)
    add_task_data(replay, images_of(range(0)), np.full(6, 9))
    assert len(replay) == 6 and all_samples(replay)["label"].tolist() == [9] * 6
    assert numbers_in(all_samples(replay)) == list(range(6))


def test_new_images_replace_old_ones_if_labels_are_only_for_them() -> None:
    replay = filled(10)
    replay.sample()  # in the middle of an epoch
    for first, count in ((10, 7), (40, 13), (60, 2)):
        add_task_data(replay, images_of(range(first, first + count)), np.arange(count) + 20)
        assert numbers_in(all_samples(replay)) == list(range(first, first + count))
        assert all_samples(replay)["label"].tolist() == [n + 20 for n in range(count)]
        for _ in range(2):
            assert sorted(n for batch in epoch(replay) for n in batch) == list(range(first, first + count))
    add_task_data(replay, images_of(range(90, 93)), np.arange(5))  # and then it may grow again
    assert numbers_in(all_samples(replay)) == [60, 61, 90, 91, 92]


def test_added_arrays_are_copied() -> None:
    replay = make_task_buffer(100, 4, torch.device("cpu"), torch.Generator())
    images, labels = images_of(range(5)), np.arange(5)
    add_task_data(replay, images, labels)
    images[:], labels[:] = 77, 77
    assert numbers_in(all_samples(replay)) == list(range(5))
    assert all_samples(replay)["label"].tolist() == list(range(5))


def test_representative_batch_is_uniform_without_replacement() -> None:
    replay, draws = filled(300), torch.Generator().manual_seed(0)
    chosen = [numbers_in(representative(replay, 100, draws)) for _ in range(200)]
    assert all(len(set(numbers)) == 100 for numbers in chosen)
    assert chosen[0] != chosen[1]
    counts = np.bincount(np.concatenate(chosen), minlength=300)  # each: binomial(200, 1/3), deviation 6.7
    assert counts.min() > 66.7 - 5 * 6.7 and counts.max() < 66.7 + 5 * 6.7


@pytest.mark.parametrize("size", [300, 301, 2048])
def test_representative_batch_of_all_data_is_a_copy(size: int) -> None:
    replay = filled(300)
    batch = representative(replay, size, torch.Generator())
    assert sorted(numbers_in(batch)) == list(range(300))
    batch["label"].fill_(99)
    assert all_samples(replay)["label"].max() == 6


def test_representative_batch_of_a_subset_is_a_copy() -> None:
    replay = filled(300)
    representative(replay, 10, torch.Generator())["label"].fill_(99)
    assert all_samples(replay)["label"].max() == 6


def test_representative_batch_does_not_affect_epochs_or_global_random_state() -> None:
    undisturbed = filled(20)
    expected = [numbers_in(undisturbed.sample()) for _ in range(10)]
    replay, draws = filled(20), torch.Generator().manual_seed(1)
    state = torch.get_rng_state()
    found = []
    for _ in range(10):
        representative(replay, 7, draws)
        representative(replay, 100, draws)
        found.append(numbers_in(replay.sample()))
    assert found == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_derived_seeds_differ_and_fit_into_62_bits() -> None:
    names = ["init", "order", "augmentation", "intervention", "representative", "dropout", "stream"]
    seeds = {derive(seed, name) for seed in range(50) for name in names}
    assert len(seeds) == 350
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert max(seeds) > 2**61


def test_derived_seeds_do_not_change_between_releases() -> None:
    import zlib

    words = np.random.SeedSequence([3, zlib.crc32(b"order")]).generate_state(2, np.uint32).tolist()
    assert derive(3, "order") == words[0] * 2**30 + words[1] // 4
    assert derive(0, "init") == 3759328099864786488


def test_generators_are_independent() -> None:
    one, other = generator(0, "order"), generator(0, "augmentation")
    expected = torch.rand(5, generator=generator(0, "augmentation"))
    alone = torch.rand(5, generator=generator(0, "order"))
    assert not torch.equal(torch.rand(5, generator=one), expected)
    assert torch.equal(torch.rand(5, generator=other), expected)
    assert not torch.equal(alone, expected)
