"""Small networks, batches and interventions for tests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.config.options import build
from plastibench.config.registry import agents, interventions
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network

torch.set_num_threads(1)


def images(count: int = 16, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, seed: int = 0) -> TensorDict:
    """A batch of noise with labels, drawn without the global random state."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDict(
        {
            "image": torch.randn(count, *shape, generator=generator),
            "label": torch.randint(classes, (count,), generator=generator),
        },
        batch_size=[count],
    )


def loss(module: nn.Module, batch: TensorDict) -> Tensor:
    return F.cross_entropy(module(batch["image"]), batch["label"])


def vectors(count: int = 16, features: int = 10, classes: int = 3) -> TensorDict:
    """A batch of noise vectors with labels, drawn without the global random state."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, features, generator=generator)
    return TensorDict({"x": x, "y": torch.randint(classes, (count,), generator=generator)}, [count])


def vector_loss(module: nn.Module, batch: TensorDict) -> Tensor:
    return F.cross_entropy(module(batch["x"]), batch["y"])


def drawn(builder: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module with weights that depend only on the seed; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder()


def agent_builder(
    name: str, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, **options: object
) -> Callable[[], nn.Module]:
    entry = agents[name]
    config = build(entry.load(), {**entry.defaults, **options}, name)
    return functools.partial(config.module, shape, classes)


def small_vit(**options: object) -> Callable[[], nn.Module]:
    """vit-nano with two narrow blocks."""
    return agent_builder("vit-nano", **{"dim": 16, "depth": 2, "heads": 2, **options})


def small_resnet() -> nn.Module:
    """timm's ResNet-18 with few channels and the agent's stem."""
    import timm

    model = timm.create_model("resnet18", in_chans=1, num_classes=10, channels=(4, 4, 8, 8))
    model.conv1 = nn.Conv2d(1, 64, kernel_size=3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def double(builder: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: builder().double()


def network_of(
    builder: Callable[[], nn.Module], *, seed: int = 0, lr: float | None = None, fresh: bool = True
) -> Network:
    """A network whose weights depend only on the seed; with ``lr``, it has an AdamW optimizer."""
    module = drawn(builder, seed)
    optimizer = None if lr is None else torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed + 100)
    return Network(module, optimizer, loss, fresh=builder if fresh else None, generator=generator)


def method(name: str, **options: object) -> Any:
    """A registered intervention, by name."""
    entry = interventions[name]
    return build(entry.load(), {**entry.defaults, **options}, name)


def constant(builder: Callable[[], nn.Module], value: float) -> Callable[[], nn.Module]:
    """A builder that sets every parameter to ``value``, to recognize reinitialized entries."""

    def build_constant() -> nn.Module:
        module = builder()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(value)
        return module

    return build_constant


def train(network: Network, batch: TensorDict, steps: int = 3, method: Intervention | None = None) -> Network:
    """Make a few updates, so that every parameter has changed and the optimizer has state.

    With ``method``, call its hooks at every update, as agents do.
    """
    assert network.optimizer is not None
    network.module.eval()  # no dropout, no running statistics: deterministic
    for _ in range(steps):
        total = network.loss(network.module, batch)
        extra = method.penalty(network, batch) if method is not None else None
        total = total if extra is None else total + extra
        network.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if method is not None:
            method.before_update(network)
        network.optimizer.step()
        if method is not None:
            method.after_update(network)
    network.optimizer.zero_grad(set_to_none=True)
    network.module.train()
    return network


def update(network: Network, method: Intervention, batch: TensorDict) -> None:
    """Make one update and call every hook of an intervention, as agents do."""
    assert network.optimizer is not None
    total = network.loss(network.module, batch)
    extra = method.penalty(network, batch)
    network.optimizer.zero_grad(set_to_none=True)
    (total if extra is None else total + extra).backward()
    method.before_update(network)
    network.optimizer.step()
    method.after_update(network)


def add_noise(module: nn.Module, size: float = 0.3, seed: int = 5) -> nn.Module:
    """Add noise to every parameter, so that no bias is 0 and no LayerNorm the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module


@torch.no_grad()
def logits(module: nn.Module, batch: TensorDict) -> Tensor:
    """What the module returns in eval mode."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    output = module(batch["image"])
    for child, mode in modes:
        child.training = mode
    return output


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names of the parameters and buffers that are not bit-identical to ``before``."""
    return {name for name, tensor in state(module).items() if not torch.equal(tensor, before[name])}


def parameters_of(module: nn.Module, prefixes: Iterable[str]) -> set[str]:
    """Names of the parameters and buffers below any of the prefixes (whole dotted parts)."""
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return {name for name in module.state_dict() if f"{name}.".startswith(starts)}


def parameters(module: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [p.detach().clone() for p in module.parameters()]


def same_tensors(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Whether all tensors are bit-identical."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
