from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import plastibench.envs  # noqa: F401 - registers the streams in gymnasium
from plastibench.config.errors import UserError
from plastibench.envs.datasets import load_dataset
from plastibench.envs.growing import Growing, corrupt_labels
from plastibench.envs.task_stream import TaskStream
from plastibench.envs.task_stream_config import make_task_stream

NOISE = (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0)  # dojeon-ai/Hare-Tortoise, configs/_continual.yaml


def episode(stream: TaskStream, seed: int = 0) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Observation and info of every task."""
    yield stream.reset(seed=seed)
    while True:
        observation, _, terminated, _, info = stream.step(stream.evaluation_labels)
        if terminated:
            return
        yield observation, info


def fingerprint(stream: TaskStream, seed: int) -> str:
    digest = hashlib.sha256()
    for observation, _ in episode(stream, seed):
        digest.update(observation["images"].tobytes() + observation["labels"].tobytes())
    return digest.hexdigest()


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module")
def growing() -> TaskStream:
    return make_task_stream("cl-digits", train_size=203)


def true_labels(stream: TaskStream) -> dict[bytes, int]:
    """Map each image to its correct label; no two equal digits have different labels."""
    return dict(zip(rows(stream.dataset.train_images), stream.dataset.train_labels.tolist(), strict=True))


@pytest.mark.parametrize("name", ["cl-digits", "relabel-digits"])
def test_gymnasium_env_checker_raises_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(f"plastibench/{name}-v0", train_size=30)
        check_env(env.unwrapped, skip_render_check=True)
        observation, _ = env.reset(seed=1)  # through gymnasium's own passive checker
        assert env.observation_space.contains(observation)
        terminated = False
        while not terminated:
            observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation)
            assert isinstance(reward, float) and not truncated


def test_every_task_stream_has_a_gymnasium_id() -> None:
    from plastibench.config.registry import envs
    from plastibench.envs.task_stream_config import TaskStreamConfig

    streams = [name for name, entry in envs.all().items() if issubclass(entry.load(), TaskStreamConfig)]
    assert len(streams) >= 8 and {f"plastibench/{name}-v0" for name in streams} <= set(gymnasium.registry)


def test_gymnasium_make_rejects_unknown_options() -> None:
    with pytest.raises(UserError, match=r"'train_sizes'; did you mean 'train-size'"):
        gymnasium.make("plastibench/cl-digits-v0", train_sizes=30)


def test_default_noise_equals_the_official_code() -> None:
    assert make_task_stream("cl-digits", train_size=30).config.noise == NOISE
    assert Growing().noise == NOISE


def test_each_task_has_exactly_floor_n_times_ratio_wrong_labels(growing: TaskStream) -> None:
    truth = true_labels(growing)
    seen: list[bytes] = []
    sizes = [21, 21, 21, 20, 20, 20, 20, 20, 20, 20]  # 203 in ten chunks
    for number, (observation, info) in enumerate(episode(growing)):
        seen += rows(observation["images"])
        total = sum(sizes[: number + 1])
        assert len(seen) == total == len(observation["labels"]) == info["samples"]
        wrong = sum(truth[image] != label for image, label in zip(seen, observation["labels"].tolist(), strict=True))
        assert wrong == total * round(10 * NOISE[number]) // 10
        assert info["noise"] == NOISE[number] and info["task"] == number
        assert observation["labels"].dtype == np.int64 and observation["images"].dtype == np.uint8
        assert observation["labels"].min() >= 0 and observation["labels"].max() <= 9
    assert number == 9


@pytest.mark.parametrize(
    ("count", "ratio", "wrong"), [(100, 0.29, 29), (10, 0.3, 3), (7, 0.5, 3), (9, 1.0, 9), (5, 0, 0)]
)
def test_number_of_wrong_labels_is_robust_to_rounding(count: int, ratio: float, wrong: int) -> None:
    labels = np.arange(count) % 10
    noisy = corrupt_labels(labels, ratio, 10, np.random.default_rng(0))
    assert int((noisy != labels).sum()) == wrong
    assert labels.tolist() == (np.arange(count) % 10).tolist()  # the input is unchanged


def test_wrong_labels_are_uniform_over_classes_and_positions() -> None:
    labels = np.random.default_rng(1).integers(10, size=40_000)
    noisy = corrupt_labels(labels, 0.5, 10, np.random.default_rng(2))
    changed = noisy != labels
    shift = (noisy - labels)[changed] % 10
    counts = np.bincount(shift, minlength=10)
    assert counts[0] == 0
    expected = 20_000 / 9
    chi_square = float(((counts[1:] - expected) ** 2 / expected).sum())
    assert chi_square < 30  # 8 degrees of freedom: p = 0.0002
    for part in np.array_split(changed, 10):
        assert abs(part.mean() - 0.5) < 0.04  # 5 standard deviations: all positions are affected
    for true_class in range(10):
        assert len(np.unique(noisy[changed & (labels == true_class)])) == 9


def test_with_two_classes_the_wrong_label_is_the_other_class() -> None:
    labels = np.array([0, 1] * 10)
    assert corrupt_labels(labels, 1.0, 2, np.random.default_rng(0)).tolist() == [1, 0] * 10


def test_noise_is_redrawn_for_every_task_over_old_and_new_samples(growing: TaskStream) -> None:
    truth = true_labels(growing)
    seen: list[bytes] = []
    wrong_sets: list[set[int]] = []
    for observation, _ in episode(growing):
        old = len(seen)
        seen += rows(observation["images"])
        wrong = {i for i, image in enumerate(seen) if truth[image] != observation["labels"][i]}
        wrong_sets.append(wrong)
        if old > 0 and len(wrong) > 20:
            assert any(i < old for i in wrong) and any(i >= old for i in wrong)
    # Tasks 4 and 5 (30 %) share samples 0..83: independent draws agree in only some of them.
    fourth, fifth = wrong_sets[3], {i for i in wrong_sets[4] if i < 83}
    assert 0 < len(fourth & fifth) < 0.7 * len(fourth)
    corrected = wrong_sets[0] - wrong_sets[1]
    assert corrected and wrong_sets[1] - wrong_sets[0]


def test_different_seeds_corrupt_different_labels() -> None:
    def wrong(seed: int) -> list[list[int]]:
        stream = make_task_stream("cl-digits", train_size=100)
        truth, seen, found = true_labels(stream), [], []
        for observation, _ in episode(stream, seed):
            seen += rows(observation["images"])
            found.append([i for i, image in enumerate(seen) if truth[image] != observation["labels"][i]])
        return found

    assert all(one != other for one, other in zip(wrong(0)[:9], wrong(1)[:9], strict=True))


def test_labels_are_fixed_within_a_task() -> None:
    stream = make_task_stream("relabel-digits", train_size=30)
    observation, _ = stream.reset(seed=0)
    given, correct = observation["labels"].copy(), stream.evaluation_labels.copy()
    assert all(np.array_equal(stream.evaluation_labels, correct) for _ in range(3))
    stream.step(correct)
    np.testing.assert_array_equal(observation["labels"], given)  # returned arrays are not overwritten
    assert not np.array_equal(stream.evaluation_labels, correct)


def test_chunks_are_random_and_partition_the_training_set(growing: TaskStream) -> None:
    added: list[bytes] = []
    for observation, _ in episode(growing):
        added += rows(observation["images"])
    all_images = rows(growing.dataset.train_images)
    assert sorted(added) == sorted(all_images)
    assert added != all_images
    first = growing.reset(seed=0)[0]["images"]
    other = growing.reset(seed=1)[0]["images"]
    assert len(set(rows(first)) & set(rows(other))) < len(first) / 2


def test_all_labels_of_the_last_task_are_correct(growing: TaskStream) -> None:
    seen: list[bytes] = []
    for observation, _ in episode(growing):
        seen += rows(observation["images"])
        last = observation["labels"]
    truth = true_labels(growing)
    assert [truth[image] for image in seen] == last.tolist()


@pytest.mark.parametrize("name", ["cl-digits", "relabel-digits"])
def test_stream_depends_on_the_seed_only(name: str) -> None:
    stream = make_task_stream(name, train_size=50)
    same = [fingerprint(stream, 3), fingerprint(stream, 3), fingerprint(make_task_stream(name, train_size=50), 3)]
    assert len(set(same)) == 1
    assert fingerprint(stream, 4) != same[0]
    np.random.seed(0)  # noqa: NPY002 - the global generator must not matter
    assert fingerprint(stream, 3) == same[0]


def test_stream_does_not_depend_on_the_actions(growing: TaskStream) -> None:
    growing.reset(seed=5)
    right = [growing.step(growing.evaluation_labels)[0]["labels"].tolist() for _ in range(4)]
    growing.reset(seed=5)
    wrong = [growing.step((growing.evaluation_labels + 1) % 10)[0]["labels"].tolist() for _ in range(4)]
    assert right == wrong


def test_stop_after_does_not_change_the_labels_of_earlier_tasks() -> None:
    def start(**options: Any) -> list[list[int]]:
        stream = make_task_stream("cl-digits", train_size=50, **options)
        return [observation["labels"].tolist() for observation, _ in episode(stream)]

    assert start(stop_after=3) == start()[:3]


def test_reward_is_accuracy_on_the_clean_test_set(growing: TaskStream) -> None:
    growing.reset(seed=0)
    truth = growing.dataset.test_labels
    assert growing.evaluation_images is growing.dataset.test_images
    half = truth.copy()
    half[: len(half) // 4] = (half[: len(half) // 4] + 1) % 10
    assert growing.step(truth)[1] == 1.0
    assert growing.step((truth + 1) % 10)[1] == 0.0
    assert growing.step(half)[1] == pytest.approx(1 - (len(half) // 4) / len(half), abs=1e-12)


def test_episode_terminates_after_the_last_task_without_new_images(growing: TaskStream) -> None:
    growing.reset(seed=0)
    ends = [growing.step(growing.evaluation_labels)[2:4] for _ in range(9)]
    assert ends == [(False, False)] * 9
    observation, reward, terminated, truncated, info = growing.step(growing.evaluation_labels)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert len(observation["images"]) == 0 and len(observation["labels"]) == 203
    assert growing.observation_space.contains(observation)
    assert info["task"] == 9


@pytest.mark.parametrize(("stop_after", "tasks"), [(0, 10), (1, 1), (4, 4), (10, 10), (99, 10)])
def test_stop_after_does_not_change_the_chunks(stop_after: int, tasks: int) -> None:
    stream = make_task_stream("cl-digits", train_size=100, stop_after=stop_after)
    sizes = [info["samples"] for _, info in episode(stream)]
    assert sizes == [10 * (task + 1) for task in range(tasks)]
    assert stream.config.task_count == tasks


@pytest.mark.parametrize("noise", [(0.0,), (0.5, 0.0), (0.9, 0.6, 0.1, 0.0)])
def test_one_task_per_noise_ratio(noise: tuple[float, ...]) -> None:
    stream = make_task_stream("cl-digits", train_size=60, noise=list(noise))
    truth, seen = true_labels(stream), []
    for (observation, info), ratio in zip(episode(stream), noise, strict=True):
        seen += rows(observation["images"])
        wrong = sum(truth[image] != label for image, label in zip(seen, observation["labels"].tolist(), strict=True))
        assert wrong == int(info["samples"] * ratio + 1e-9)
    assert len(seen) == 60


def test_empty_noise_list_raises_a_user_error() -> None:
    with pytest.raises(UserError, match="noise"):
        make_task_stream("cl-digits", train_size=60, noise=[]).reset(seed=0)


def test_with_more_tasks_than_samples_late_chunks_are_empty() -> None:
    stream = make_task_stream("cl-digits", train_size=5)
    assert [info["samples"] for _, info in episode(stream)] == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5]


def test_relabel_adds_all_images_at_once_and_redraws_labels_uniformly() -> None:
    stream = make_task_stream("relabel-digits", train_size=1200, tasks=8)
    labels = []
    for number, (observation, info) in enumerate(episode(stream)):
        assert len(observation["images"]) == (1200 if number == 0 else 0)
        labels.append(observation["labels"])
        assert info["samples"] == 1200
    drawn = np.stack(labels)
    assert drawn.shape == (8, 1200)
    counts = np.bincount(drawn.ravel(), minlength=10)
    assert float(((counts - 960) ** 2 / 960).sum()) < 33  # 9 degrees of freedom: p = 0.0001
    for one in range(8):
        for other in range(one):
            assert 0.05 < np.mean(drawn[one] == drawn[other]) < 0.15  # independent draws agree in one tenth


def test_relabel_evaluates_training_images_in_dataset_order() -> None:
    stream = make_task_stream("relabel-digits", train_size=100)
    observation, info = stream.reset(seed=0)
    assert stream.evaluation_images is stream.dataset.train_images
    shuffled, stored = rows(observation["images"]), rows(stream.dataset.train_images)
    assert shuffled != stored and sorted(shuffled) == sorted(stored)
    for _ in range(3):
        label_of = dict(zip(shuffled, observation["labels"].tolist(), strict=True))
        assert stream.evaluation_labels.tolist() == [label_of[image] for image in stored]
        truth = stream.dataset.train_labels
        assert info["noise"] == pytest.approx(float(np.mean(stream.evaluation_labels != truth)))
        observation, reward, _, _, info = stream.step(stream.evaluation_labels)
        assert reward == 1.0


def test_relabel_reward_uses_the_labels_of_the_task_that_ends() -> None:
    stream = make_task_stream("relabel-digits", train_size=200, tasks=2)
    stream.reset(seed=0)
    first = stream.evaluation_labels
    stream.step(first)
    action = first.copy()
    assert stream.step(action)[1] == pytest.approx(float(np.mean(first == stream.evaluation_labels)))


def test_spaces_follow_the_dataset() -> None:
    stream = make_task_stream("cl-digits", train_size=50)
    assert (stream.image_shape, stream.num_classes) == ((1, 8, 8), 10)
    assert stream.action_space.shape == (len(load_dataset("digits", train_size=50).test_labels),)
    assert stream.augment_pad == 0
    assert make_task_stream("cl-digits", train_size=50, augment="crop-flip").augment_pad == 4
