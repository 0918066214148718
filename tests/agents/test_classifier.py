from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.agents.classifier import Classifier
from plastibench.agents.images import Normalize, crop_and_flip
from plastibench.config.options import build
from plastibench.config.registry import agents
from plastibench.envs.task_stream import TaskStream
from plastibench.envs.task_stream_config import make_task_stream
from plastibench.interventions.attach import Attached
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.utils.seeding import generator


@pytest.fixture(scope="module")
def plain() -> TaskStream:
    return make_task_stream("cl-digits", train_size=40)


@pytest.fixture(scope="module")
def augmented() -> TaskStream:
    return make_task_stream("cl-digits", train_size=40, augment="crop-flip")


def classifier(env: TaskStream, name: str = "mlp", seed: int = 0, **options: Any) -> Classifier:
    size: Mapping[str, Any] = {"mlp": {"width": 8}, "vit-nano": {"depth": 1, "dim": 16}}[name]
    entry = agents[name]
    return build(entry.load(), {**entry.defaults, **size, **options}, name).build(env, seed, torch.device("cpu"))


def batches(env: TaskStream, count: int, size: int = 16) -> list[TensorDict]:
    images, labels = torch.from_numpy(env.dataset.train_images), torch.from_numpy(env.dataset.train_labels)
    chosen = [torch.randperm(len(images), generator=torch.Generator().manual_seed(i))[:size] for i in range(count)]
    return [TensorDict({"image": images[c], "label": labels[c]}, batch_size=[size]) for c in chosen]


def normalised(env: TaskStream, images: Tensor) -> Tensor:
    return (images.float() / 255 - env.dataset.mean[0]) / env.dataset.std[0]


def rates(agent: Classifier, env: TaskStream, updates: int) -> list[float]:
    agent.begin_task(updates)
    found = []
    for batch in batches(env, 1) * updates:
        agent.update(batch)
        found.append(agent.networks["classifier"].optimizer.param_groups[0]["lr"])
    return found


def test_cosine_schedule_with_warmup(plain: TaskStream) -> None:
    found = rates(classifier(plain, lr=2.0, warmup=0.1, schedule="cosine"), plain, 20)
    #           0    1    2 (peak) ... cos² of k·5° for update 2 + k
    by_hand = {0: 0.0, 1: 1.0, 2: 2.0, 5: 1.8660254, 8: 1.5, 11: 1.0, 14: 0.5, 17: 0.1339746, 19: 0.0151922}
    for update, rate in by_hand.items():
        assert found[update] == pytest.approx(rate, abs=1e-6), update
    assert found[2:] == sorted(found[2:], reverse=True)


def test_constant_schedule_with_warmup(plain: TaskStream) -> None:
    found = rates(classifier(plain, lr=0.4, warmup=0.25, schedule="constant"), plain, 16)
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3] + [0.4] * 12)


def test_schedule_without_warmup_starts_at_the_peak(plain: TaskStream) -> None:
    assert rates(classifier(plain, lr=0.4, warmup=0.0, schedule="cosine"), plain, 2) == pytest.approx([0.4, 0.2])
    assert rates(classifier(plain, lr=0.4, warmup=0.0, schedule="constant"), plain, 3) == [0.4] * 3


def test_schedule_of_very_short_tasks(plain: TaskStream) -> None:
    assert rates(classifier(plain, lr=0.4, warmup=0.1), plain, 1) == [0.4]
    assert rates(classifier(plain, lr=0.4, warmup=1.0), plain, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_every_task_starts_with_a_new_optimizer_and_schedule(plain: TaskStream) -> None:
    agent = classifier(plain, lr=1.0, warmup=0.1, schedule="cosine")
    first = rates(agent, plain, 10)
    optimizer = agent.networks["classifier"].optimizer
    assert len(optimizer.state) == 6
    agent.begin_task(10)
    assert agent.networks["classifier"].optimizer is not optimizer
    assert len(agent.networks["classifier"].optimizer.state) == 0
    assert rates(agent, plain, 10) == first


class ReferenceAdamW:
    """Reference AdamW with gradient clipping and decoupled weight decay on all parameters, as in the papers."""

    def __init__(self, module: nn.Module, decay: float, clip: float) -> None:
        self.module, self.decay, self.clip = module, decay, clip
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in module.parameters()]
        self.steps = 0

    def step(self, loss: Tensor, rate: float) -> float:
        parameters = list(self.module.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        norm = float(torch.sqrt(sum((g.double() ** 2).sum() for g in gradients)))
        scale = min(1.0, self.clip / norm) if self.clip else 1.0
        self.steps += 1
        with torch.no_grad():
            for parameter, gradient, (first, second) in zip(parameters, gradients, self.moments, strict=True):
                first.mul_(0.9).add_(0.1 * scale * gradient)
                second.mul_(0.999).add_(0.001 * (scale * gradient) ** 2)
                parameter.mul_(1 - rate * self.decay)
                unbiased = first / (1 - 0.9**self.steps), second / (1 - 0.999**self.steps)
                parameter.sub_(rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8))
        return norm


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"weight_decay": 0.05, "clip": 0.4}),
        ("mlp", {"weight_decay": 0.0, "clip": 0.0}),
        ("vit-nano", {"clip": 0.5, "dropout": 0.3}),
    ],
)
def test_updates_match_a_reference_adamw_with_clipping(
    augmented: TaskStream, name: str, options: dict[str, Any]
) -> None:
    agent = classifier(augmented, name, seed=2, lr=0.01, warmup=0.0, schedule="constant", **options)
    network = agent.networks["classifier"]
    module = copy.deepcopy(network.module).train()
    twin = ReferenceAdamW(module, agent.config.weight_decay, agent.config.clip)
    crops = generator(2, "augmentation")
    agent.begin_task(6)
    network.module.train()
    losses, norms = [], []
    for number, batch in enumerate(batches(augmented, 6)):
        torch.manual_seed(number)  # for dropout
        agent.update(batch)
        torch.manual_seed(number)
        images = normalised(augmented, crop_and_flip(batch["image"], 4, crops))
        loss = F.cross_entropy(module(images), batch["label"])
        losses.append(loss.item())
        norms.append(twin.step(loss, 0.01))
    if agent.config.clip:
        assert max(norms) > agent.config.clip  # otherwise clipping would not be tested
    for (parameter_name, found), expected in zip(network.module.named_parameters(), module.parameters(), strict=True):
        if parameter_name.endswith(
            "qkv.bias"
        ):  # softmax cancels the bias of the keys, so its gradient is rounding noise
            found, expected = (torch.cat([bias[:16], bias[32:]]) for bias in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5, msg=parameter_name)
    averages = agent.pop_averages()
    assert averages["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert averages["gradient-norm"] == pytest.approx(np.mean(norms), rel=1e-3)
    assert agent.pop_averages() == {}


def test_dropout_is_only_active_in_training(plain: TaskStream) -> None:
    agent = classifier(plain, "vit-nano", dropout=0.5)
    images = torch.from_numpy(plain.dataset.test_images[:50])
    module = agent.networks["classifier"].module
    assert module.training
    assert torch.equal(agent.logits(images), agent.logits(images))
    assert module.training
    x = normalised(plain, images)
    assert not torch.equal(module(x), module(x))


def test_logits_are_computed_in_eval_mode_in_several_batches(plain: TaskStream) -> None:
    agent = classifier(plain)
    images = torch.from_numpy(plain.dataset.test_images)
    assert len(images) > 1024  # several batches
    module = agent.networks["classifier"].module
    expected = module(normalised(plain, images))
    found = agent.logits(images)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


def test_logits_of_another_module(plain: TaskStream) -> None:
    agent = classifier(plain)
    other = copy.deepcopy(agent.networks["classifier"].module)
    with torch.no_grad():
        other[-1].weight.zero_()
        other[-1].bias.copy_(torch.arange(10.0))
    images = torch.from_numpy(plain.dataset.test_images[:3])
    assert agent.logits(images, other).tolist() == [list(range(10))] * 3


def test_evaluation_restores_the_mode_of_every_submodule(plain: TaskStream) -> None:
    agent = classifier(plain)
    module = agent.networks["classifier"].module.train()
    module[1].eval()  # as users do to freeze batch norms
    agent.logits(torch.from_numpy(plain.dataset.test_images[:3]))
    assert [child.training for child in module] == [True, False, True, True, True, True]


class SumOfWeights(Intervention):
    def penalty(self, network: Network, batch: Any) -> Any:
        return 3 * sum(p.sum() for p in network.module.parameters())


def test_penalties_are_not_part_of_the_recorded_loss(plain: TaskStream) -> None:
    with_penalty, without = (classifier(plain, lr=0.1, clip=0.0) for _ in range(2))
    weights = list(with_penalty.networks["classifier"].module.parameters())
    for method in (SumOfWeights(), Intervention()):
        Attached(method, with_penalty.networks["classifier"])
    (batch,) = batches(plain, 1)
    for agent in (with_penalty, without):
        agent.begin_task(5)
        agent.update(batch)
    shared = zip(weights, without.networks["classifier"].module.parameters(), strict=True)
    for gradient, plain_gradient in shared:
        torch.testing.assert_close(gradient.grad, plain_gradient.grad + 3)
    assert with_penalty.pop_averages()["loss"] == without.pop_averages()["loss"]


def test_gradients_do_not_accumulate_between_updates(plain: TaskStream) -> None:
    agent = classifier(plain, lr=0.0, clip=0.0)
    (batch,) = batches(plain, 1)
    agent.begin_task(5)
    gradients = []
    for _ in range(3):
        agent.update(batch)
        gradients.append([p.grad.clone() for p in agent.networks["classifier"].module.parameters()])
    for later in gradients[1:]:
        for one, other in zip(gradients[0], later, strict=True):
            torch.testing.assert_close(one, other)


def test_initial_weights_depend_only_on_the_seed(plain: TaskStream) -> None:
    def weights(seed: int) -> Tensor:
        module = classifier(plain, "vit-nano", seed).networks["classifier"].module
        return nn.utils.parameters_to_vector(module.parameters())

    torch.manual_seed(0)
    first = weights(1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_fresh_networks_have_the_same_shapes_and_new_weights(plain: TaskStream) -> None:
    network = classifier(plain, "vit-nano").networks["classifier"]
    one, other = network.fresh(), network.fresh()
    for name, parameter in network.module.named_parameters():
        assert one.get_parameter(name).shape == parameter.shape
    assert not torch.equal(one.head.weight, network.module.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_augmentation_and_interventions_use_separate_generators(augmented: TaskStream) -> None:
    def after(calls_of_fresh: int) -> list[list[float]]:
        agent = classifier(augmented, seed=3)
        agent.begin_task(4)
        for batch in batches(augmented, 4):
            for _ in range(calls_of_fresh):
                agent.networks["classifier"].fresh()
            agent.update(batch)
        return [p.tolist() for p in agent.networks["classifier"].module.parameters()]

    assert after(0) == after(3)


def test_resume_from_state_dict_is_bit_identical(augmented: TaskStream) -> None:
    def train(agent: Classifier, numbers: range) -> None:
        for batch in batches(augmented, 8)[numbers.start : numbers.stop]:
            agent.update(batch)

    whole, part = (classifier(augmented, "vit-nano", lr=0.01) for _ in range(2))
    for agent in (whole, part):
        agent.begin_task(8)
    train(whole, range(8))
    train(part, range(3))
    state = copy.deepcopy(part.state_dict())
    resumed = classifier(augmented, "vit-nano", seed=99, lr=0.01)
    resumed.load_state_dict(state)
    train(resumed, range(3, 8))
    for one, other in zip(*(a.networks["classifier"].module.parameters() for a in (whole, resumed)), strict=True):
        assert torch.equal(one, other)
    assert whole.pop_averages() == resumed.pop_averages()


def test_bfloat16_keeps_weights_and_logits_in_float32(plain: TaskStream) -> None:
    exact, rounded = (classifier(plain, precision=precision) for precision in ("float32", "bfloat16"))
    images = torch.from_numpy(plain.dataset.test_images[:64])
    one, other = exact.logits(images), rounded.logits(images)
    assert other.dtype == torch.float32 and not torch.equal(one, other)
    assert float((one - other).abs().max()) < 0.05 * float(one.abs().max())
    (batch,) = batches(plain, 1)
    rounded.begin_task(2)
    rounded.update(batch)
    assert {p.dtype for p in rounded.networks["classifier"].module.parameters()} == {torch.float32}


def test_constant_channels_are_normalised_to_zero() -> None:
    normalise = Normalize((0.5, 0.2), (0.0, 0.1), torch.device("cpu"))
    images = torch.full((2, 2, 3, 3), 127.5)
    images[:, 1] = 0.3 * 255
    found = normalise(images)
    torch.testing.assert_close(found, torch.stack([torch.zeros(2, 3, 3), torch.ones(2, 3, 3)], 1), atol=1e-5, rtol=0)
