"""Warm start, permuted pixels, random labels and class groups: the data of each task and its evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from plastibench.agents.classifier import Classifier
from plastibench.config.errors import UserError
from plastibench.config.registry import envs
from plastibench.config.spec import RunSpec
from plastibench.envs.datasets import DATASETS
from plastibench.envs.task_stream import TaskStream
from plastibench.envs.task_stream_config import make_task_stream
from plastibench.training import supervised
from plastibench.training.runner import run

NAMES = ("warm", "permuted", "incremental", "relabel")
SMALL: dict[str, dict[str, Any]] = {  # several different tasks in a third of a second
    "warm-digits": {"train_size": 40},
    "permuted-digits": {"train_size": 60, "samples": 24, "tasks": 3},
    "incremental-digits": {"train_size": 60, "groups": 4, "stop_after": 3},
    "relabel-digits": {"train_size": 40, "tasks": 3},
}
NEW_ONLY = {**SMALL["incremental-digits"], "data": "new"}
CASES = [*SMALL.items(), ("incremental-digits", NEW_ONLY)]


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
        for array in (*observation.values(), stream.evaluation_images, stream.evaluation_labels):
            digest.update(array.tobytes())
    return digest.hexdigest()


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


def truth(stream: TaskStream) -> dict[bytes, int]:
    """Map each image to its correct label; no two equal digits have different labels."""
    return dict(zip(rows(stream.dataset.train_images), stream.dataset.train_labels.tolist(), strict=True))


def multisets(images: np.ndarray) -> list[bytes]:
    """Sorted pixel values per channel: equal for images that differ only by a permutation."""
    return [np.sort(image.reshape(len(image), -1), axis=1).tobytes() for image in images]


# As environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gymnasium_env_checker_raises_no_warning(name: str, options: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(f"plastibench/{name}-v0", **options)
        check_env(env.unwrapped, skip_render_check=True)
        observation, _ = env.reset(seed=1)  # through gymnasium's own passive checker
        assert env.observation_space.contains(observation)
        terminated, tasks = False, 0
        while not terminated:
            action = env.action_space.sample()
            correct = env.unwrapped.evaluation_labels
            expected = sum(a == b for a, b in zip(action, correct, strict=False)) / len(correct)
            observation, reward, terminated, truncated, _ = env.step(action)
            assert reward == pytest.approx(expected)
            assert env.observation_space.contains(observation)
            assert not truncated
            tasks += 1
        assert tasks == env.unwrapped.config.task_count


@pytest.mark.parametrize(("name", "options"), CASES)
def test_stream_depends_on_the_seed_only(name: str, options: dict) -> None:
    stream = make_task_stream(name, **options)
    first = fingerprint(stream, 3)
    np.random.seed(0)  # noqa: NPY002 - the global generator must not matter
    assert first == fingerprint(stream, 3) == fingerprint(make_task_stream(name, **options), 3)
    assert first != fingerprint(stream, 4)


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_exists_for_every_dataset(name: str) -> None:
    for data in DATASETS:
        config = RunSpec.make(f"{name}-{data}", "mlp").create("env")
        assert config.dataset == data and config.task_count >= 2
    assert envs[f"{name}-mnist"].load() is envs[f"{name}-digits"].load()


def test_augmentation_defaults_follow_the_data() -> None:
    def pad(name: str) -> int:
        return RunSpec.make(name, "mlp").create("env").augment_pad

    assert pad("warm-cifar10") == pad("incremental-tiny-imagenet") == 4
    assert {pad(f"{name}-mnist") for name in NAMES} == {0} == {pad("permuted-cifar10"), pad("relabel-cifar10")}
    with pytest.raises(UserError, match="augment"):
        RunSpec.make("permuted-cifar10", "mlp", env_options={"augment": "crop-flip"})


# Warm start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "first"), [(0.5, 20), (0.25, 10), (0.0, 1), (1.0, 40)])
def test_warm_start_has_a_fraction_then_all_images_with_correct_labels(share: float, first: int) -> None:
    stream = make_task_stream("warm-digits", train_size=40, fraction=share)
    known, seen = truth(stream), []
    for (observation, info), size in zip(episode(stream), (first, 40), strict=True):
        seen += rows(observation["images"])
        assert len(seen) == len(set(seen)) == size == info["samples"]
        assert observation["labels"].tolist() == [known[image] for image in seen] and info["noise"] == 0
        assert stream.evaluation_images is stream.dataset.test_images
    assert sorted(seen) == sorted(known) and seen != list(known)


# Permuted pixels --------------------------------------------------------------------------------------------------


def test_permute_pixels_task_applies_one_pixel_permutation_to_all_images() -> None:
    stream = make_task_stream("permuted-digits", train_size=60, samples=0, tasks=3)
    train, test = stream.dataset.train_images, stream.dataset.test_images
    order = np.random.default_rng(7).spawn(2)[0]  # reference: the same generator, with loops
    orders = []
    for observation, info in episode(stream, 7):
        indices, pixels = order.permutation(60), order.permutation(64)
        orders.append(pixels.tolist())
        for shown, plain in ((observation["images"], train[indices]), (stream.evaluation_images, test)):
            expected = np.empty_like(plain)
            for target, source in enumerate(pixels):
                expected[:, :, target // 8, target % 8] = plain[:, :, source // 8, source % 8]
            np.testing.assert_array_equal(shown, expected)
        np.testing.assert_array_equal(observation["labels"], stream.dataset.train_labels[indices])
        np.testing.assert_array_equal(stream.evaluation_labels, stream.dataset.test_labels)
        assert info["samples"] == 60 and info["noise"] == 0
    assert len(orders) == 3 and all(sorted(pixels) == list(range(64)) != pixels for pixels in orders)
    assert orders[0] != orders[1] != orders[2]
    assert np.array_equal(train, make_task_stream("permuted-digits", train_size=60).dataset.train_images)  # unchanged


def test_permute_pixels_samples_replace_those_of_the_previous_task() -> None:
    stream = make_task_stream("permuted-digits", train_size=60, samples=24, tasks=4)
    available = set(multisets(stream.dataset.train_images))
    parts = []
    for observation, info in episode(stream):
        found = multisets(observation["images"])
        assert len(found) == len(observation["labels"]) == info["samples"] == 24
        assert set(found) <= available
        parts.append(frozenset(found))
    assert len(set(parts)) == 4


def test_channels_of_a_pixel_move_together() -> None:
    from plastibench.envs.task_stream import _permute_pixels

    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2)
    moved = _permute_pixels(images, np.array([2, 0, 3, 1]))
    assert moved[0].tolist() == [[[2, 0], [3, 1]], [[6, 4], [7, 5]], [[10, 8], [11, 9]]]
    assert moved.dtype == np.uint8 and _permute_pixels(images, None) is images


# Class groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["all", "new"])
def test_incremental_evaluates_only_the_classes_so_far(data: str) -> None:
    stream = make_task_stream("incremental-digits", train_size=100, groups=4, data=data)
    known, seen, classes = truth(stream), [], set()
    test_images, test_labels = stream.dataset.test_images, stream.dataset.test_labels
    for (observation, info), size in zip(episode(stream, 1), (3, 3, 2, 2), strict=True):
        added = rows(observation["images"])
        new = {known[image] for image in added}
        assert len(new) == size and not new & classes
        classes |= new
        assert sorted(added) == sorted(image for image, label in known.items() if label in new)
        assert added != [image for image in known if known[image] in new]  # shuffled
        seen = seen + added if data == "all" else added
        assert observation["labels"].tolist() == [known[image] for image in seen] and info["samples"] == len(seen)
        evaluated = [index for index, label in enumerate(test_labels) if label in classes]
        np.testing.assert_array_equal(stream.evaluation_images, test_images[evaluated])
        np.testing.assert_array_equal(stream.evaluation_labels, test_labels[evaluated])
        assert sorted(stream.evaluation_classes.tolist()) == sorted(classes)
    assert classes == set(range(10)) and len(evaluated) == len(test_labels)


def test_class_order_follows_the_seed_and_groups_are_limited() -> None:
    stream = make_task_stream("incremental-digits", groups=10)
    orders = [[int(observation["labels"][-1]) for observation, _ in episode(stream, seed)] for seed in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    with pytest.raises(UserError, match=r"10 classes are too few for 11 groups; lower --env\.groups"):
        make_task_stream("incremental-digits", groups=11)


def test_missing_classes_make_no_empty_task() -> None:
    stream = make_task_stream("incremental-digits", train_size=8, groups=3)
    missing = set(range(10)) - set(stream.dataset.train_labels.tolist())
    assert missing
    for observation, _ in episode(stream):
        assert len(observation["images"]) and not missing & set(stream.evaluation_labels.tolist())


# In runs ----------------------------------------------------------------------------------------------------------


def spec(name: str, options: dict[str, Any], intervention: str = "none", **changes: Any) -> RunSpec:
    agent = {"width": 16, "batch_size": 8, "lr": 0.01, **changes.pop("agent_options", {})}
    return RunSpec.make(
        name,
        "mlp",
        intervention,
        env_options={"epochs": 2, **options},
        agent_options=agent,
        device="cpu",
        representative=10,
        **changes,
    )


def go(wanted: RunSpec, folder: Path, **options: Any) -> dict[str, Any]:
    result = json.loads(json.dumps(run(wanted, runs_dir=folder, quiet=True, threads=1, **options).to_dict()))
    kept = {key: result[key] for key in ("summary", "tasks", "plasticity")}
    state = torch.load(folder / wanted.id / "final.pt", weights_only=True)
    return {**kept, "weights": [value.tolist() for value in state["networks"][0].values()]}


@pytest.mark.sample(2)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_resume_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict) -> None:
    class Stopped(BaseException):
        pass

    wanted = spec(name, options, "shrink-perturb-keep20")
    expected = go(wanted, tmp_path / "full")
    total = json.loads((tmp_path / "full" / wanted.id / "result.json").read_text())["cost"]["updates"]
    update, done = Classifier.update, [0]
    stops = {total // 2, total - 1}

    def crash(self: Classifier, batch: Any) -> None:
        done[0] += 1
        if done[0] in stops:
            stops.remove(done[0])
            done[0] -= 2  # this update and the previous one, after which the state was saved, run again
            raise Stopped
        update(self, batch)

    monkeypatch.setattr(Classifier, "update", crash)
    for _ in range(2):
        with pytest.raises(Stopped):
            go(wanted, tmp_path / "part", checkpoint_seconds=0)
    assert not stops and go(wanted, tmp_path / "part") == expected


@pytest.mark.sample(2)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_all_methods_train_on_the_same_batches_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict
) -> None:
    seen: dict[str, list[Any]] = {}
    update = Classifier.update

    def watched(self: Classifier, batch: Any) -> None:
        seen[method].append((batch["image"].numpy().tobytes(), batch["label"].tolist()))
        update(self, batch)

    monkeypatch.setattr(Classifier, "update", watched)
    for method in ("none", "reset", "rnr"):
        seen[method] = []
        go(spec(name, options, method), tmp_path)
    assert seen["none"] == seen["reset"] == seen["rnr"]
    stream = make_task_stream(name, **options, epochs=2)
    held, updates = [], iter(seen["none"])
    for observation, info in episode(stream, supervised.derive(0, "stream")):
        images = rows(observation["images"])
        held = images if len(images) == len(observation["labels"]) else held + images
        pairs = sorted(zip(held, observation["labels"].tolist(), strict=True))
        for _ in range(2):  # each epoch covers every image of the task once, with its label
            size, found = len(held[0]), []
            for _ in range(-(-info["samples"] // 8)):
                batch, labels = next(updates)
                found += [(batch[i * size : (i + 1) * size], label) for i, label in enumerate(labels)]
            assert sorted(found) == pairs
    assert next(updates, None) is None


@pytest.mark.sample(2)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_accuracies_at_a_task_boundary_are_those_of_the_ended_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict
) -> None:
    """Recompute the accuracies before and after from copies of the weights and the images of the stream."""
    import copy

    from plastibench.interventions.reset import Reset

    copies: list[tuple[torch.nn.Module, torch.nn.Module]] = []
    ends: list[torch.nn.Module] = []
    intervene, measure = Reset.intervene, supervised.SupervisedTrainer._end_task

    def noted(self: Reset, network: Any, batch: Any) -> Any:
        old = copy.deepcopy(network.module)
        report = intervene(self, network, batch)
        copies.append((old, copy.deepcopy(network.module)))
        return report

    def ended(self: supervised.SupervisedTrainer) -> None:
        ends.append(copy.deepcopy(self.learner.networks["classifier"].module))
        measure(self)

    monkeypatch.setattr(Reset, "intervene", noted)
    monkeypatch.setattr(supervised.SupervisedTrainer, "_end_task", ended)
    wanted = spec(name, {**options, "epochs": 20}, "reset")
    tasks = go(wanted, tmp_path)["tasks"]
    stream = make_task_stream(name, **options)

    def accuracy(module: torch.nn.Module) -> float:
        images = torch.from_numpy(stream.evaluation_images).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (stream.dataset.mean, stream.dataset.std))
        with torch.no_grad():
            logits = module((images - mean) / std).numpy()
        classes = stream.evaluation_classes
        classes = np.arange(10) if classes is None else np.sort(classes)
        found = classes[logits[:, classes].argmax(1)]  # among the classes so far
        return float(np.mean(found == stream.evaluation_labels))

    for number, (task, _) in enumerate(zip(tasks, episode(stream, supervised.derive(0, "stream")), strict=True)):
        assert task["end"] == pytest.approx(accuracy(ends[number]))
        if number:
            assert task["curve"][0][1] == pytest.approx(accuracy(copies[number - 1][1]))
        if number + 1 < len(tasks):
            old, new = copies[number]
            assert tasks[number + 1]["before"] == pytest.approx(accuracy(old)) == task["end"]
            assert tasks[number + 1]["after"] == pytest.approx(accuracy(new))
            assert tasks[number + 1]["drop"] > 0.2  # a reset loses accuracy
            assert 0 < tasks[number + 1]["output_kl"] < 100
            assert 0 <= task["auc"] <= 1


@pytest.mark.parametrize(("name", "options"), CASES)
def test_without_an_intervention_nothing_drops_at_a_task_boundary(tmp_path: Path, name: str, options: dict) -> None:
    tasks = go(spec(name, options), tmp_path)["tasks"]
    for task in tasks[1:]:
        assert (task["drop"], task["agreement"]) == (0.0, 1.0)
        assert task["output_kl"] == pytest.approx(0.0, abs=1e-12)


def test_a_new_permutation_lowers_the_curve_but_not_the_drop(tmp_path: Path) -> None:
    options = {"train_size": 300, "samples": 0, "tasks": 2, "epochs": 10}
    first, second = go(spec("permuted-digits", options, agent_options={"width": 64}), tmp_path)["tasks"]
    assert first["end"] > 0.8 and second["before"] == second["after"] == first["end"]
    assert second["curve"][0][1] < 0.5 and second["end"] > 0.8


def test_outputs_of_future_classes_are_not_trained(tmp_path: Path) -> None:
    options = {"train_size": 200, "groups": 5, "stop_after": 1, "epochs": 10}
    wanted = spec("incremental-digits", options)
    go(wanted, tmp_path)
    env = wanted.create("env").make()
    env.reset(seed=supervised.derive(0, "stream"))
    known = env.evaluation_classes.tolist()
    closed = [label for label in range(10) if label not in known]
    fresh = wanted.create("agent").build(env, 0, torch.device("cpu")).networks["classifier"].module.state_dict()
    state = torch.load(tmp_path / wanted.id / "final.pt", weights_only=True)["networks"][0]
    *_, weight, bias = state
    for name in (weight, bias):
        assert torch.equal(state[name][closed], fresh[name][closed])
        assert not torch.isclose(state[name][known], fresh[name][known]).any()


def test_loss_ignores_masked_classes() -> None:
    stream = make_task_stream("incremental-digits", train_size=30)
    agent = RunSpec.make("incremental-digits", "mlp").create("agent").build(stream, 0, torch.device("cpu"))
    agent.masked_classes = torch.tensor([False, False, True, False] + [True] * 6)
    batch = {"image": torch.from_numpy(stream.dataset.train_images[:5]), "label": torch.tensor([0, 1, 3, 3, 0])}
    network = agent.networks["classifier"]
    logits = agent.logits(batch["image"]).double().numpy()[:, [0, 1, 3]]
    position = np.array([0, 1, 2, 2, 0])
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), position]
    assert network.loss(network.module, batch).item() == pytest.approx(expected.mean(), rel=1e-5)


# Compatibility --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "agent", "digest"),
    [
        ("cl-digits", "mlp", "cb181f"),
        ("cl-digits", "vit-nano", "4dc75e"),
        ("cl-cifar100", "mlp", "0f3c0b"),
        ("cl-tiny-imagenet", "vit-nano", "f35c79"),
        ("relabel-digits", "mlp", "e1e218"),
        ("relabel-digits", "vit-nano", "0d0ba2"),
    ],
)
def test_published_results_are_known_by_their_id(env: str, agent: str, digest: str) -> None:
    assert f"{env}_{agent}_none_s0_{digest}" in RunSpec.make(env, agent, device="cpu").legacy_ids()


@pytest.mark.parametrize(("name", "options"), [*CASES, ("cl-digits", {"train_size": 50, "stop_after": 4})])
def test_task_sizes_predict_the_tasks(name: str, options: dict[str, Any]) -> None:
    stream = make_task_stream(name, **options)
    expected = [info["samples"] for _, info in episode(stream, 3)]
    stream.reset(seed=0)
    before = stream.evaluation_labels
    assert stream.task_sizes(3) == expected and len(expected) == stream.config.task_count
    assert np.array_equal(stream.evaluation_labels, before)


def test_noise_needs_more_than_one_class() -> None:
    stream = make_task_stream("cl-digits", train_size=20)
    stream.dataset = dataclasses.replace(stream.dataset, classes=("all",), train_labels=np.zeros(20, np.int64))
    with pytest.raises(UserError, match="only one class, so no label can be wrong"):
        stream.reset(seed=0)
