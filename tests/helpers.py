"""Networks and batches shared by the tests, and references in numpy that know nothing of plastibench."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from plastibench.config.errors import UserError
from plastibench.config.options import build
from plastibench.config.registry import agents, envs, interventions
from plastibench.interventions.base import Intervention
from plastibench.nn.network import Network
from plastibench.training.replay_buffer import BufferSpec, ReplayBuffer

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


def drawn(builder: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module whose weights follow from the seed, the global random state left as it was."""
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
    """timm's ResNet-18 with few channels and the stem of the agent."""
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
    """A network with known weights; with ``lr`` it has AdamW."""
    module = drawn(builder, seed)
    optimizer = None if lr is None else torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed + 100)
    return Network(module, optimizer, loss, fresh=builder if fresh else None, generator=generator)


def rl_agent(name: str = "dqn-mlp", env: str = "rl-cartpole", **options: object) -> Any:
    """A small off-policy agent."""
    entry = agents[name]
    config = build(entry.load(), {**entry.defaults, "hidden": (12, 12), **options}, name)
    return config.build(build(envs[env].load(), envs[env].defaults, env).make(), 0, torch.device("cpu"))


def transitions(agent: Any, count: int = 16, actions: int = 2, seed: int = 0) -> TensorDict:
    """Transitions of noise with all that the agent's losses need."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *agent.shape)
    batch = TensorDict(
        {
            "observation": torch.randn(shape, generator=generator),
            "next_observation": torch.randn(shape, generator=generator),
            "action": torch.randint(actions, (count,), generator=generator, dtype=torch.int32),
            "reward": 3 * torch.randn(count, generator=generator),
            "discount": torch.full((count,), 0.9),
        },
        batch_size=[count],
    )
    return agent.add_targets(batch)


def method(name: str, **options: object) -> Any:
    """A registered intervention, by name."""
    entry = interventions[name]
    return build(entry.load(), {**entry.defaults, **options}, name)


def constant(builder: Callable[[], nn.Module], value: float) -> Callable[[], nn.Module]:
    """Builds the module with every parameter equal to ``value``: reinitialized entries can be recognized."""

    def build_constant() -> nn.Module:
        module = builder()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(value)
        return module

    return build_constant


def train(network: Network, batch: TensorDict, steps: int = 3, method: Intervention | None = None) -> Network:
    """A few steps, so that every parameter has left its initial value and the optimizer has state.

    With ``method``, its hooks are called at every update where agents call them.
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
    """One update with every hook of an intervention, as an agent makes it."""
    assert network.optimizer is not None
    total = network.loss(network.module, batch)
    extra = method.penalty(network, batch)
    network.optimizer.zero_grad(set_to_none=True)
    (total if extra is None else total + extra).backward()
    method.before_update(network)
    network.optimizer.step()
    method.after_update(network)


def add_noise(module: nn.Module, size: float = 0.3, seed: int = 5) -> nn.Module:
    """Add noise to every parameter: biases leave 0 and LayerNorms leave the identity."""
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
    """Names of the tensors that are not bit-identical to what they were."""
    return {name for name, tensor in state(module).items() if not torch.equal(tensor, before[name])}


def parameters_of(module: nn.Module, prefixes: Iterable[str]) -> set[str]:
    """Names of the parameters and buffers below any of the prefixes (whole dotted parts)."""
    starts = tuple(f"{prefix}." for prefix in prefixes)
    return {name for name in module.state_dict() if f"{name}.".startswith(starts)}


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def with_ones(rows: np.ndarray) -> np.ndarray:
    return np.hstack([rows, np.ones((len(rows), 1))])


def stacked(module: nn.Linear | nn.Conv2d) -> np.ndarray:
    """Weights and bias of a module as the matrix S of rows @ S = outputs. [p(+1), H]."""
    matrix = array(module.weight).reshape(len(module.weight), -1).T
    return matrix if module.bias is None else np.vstack([matrix, array(module.bias)])


def delta_ridge(rows: np.ndarray, targets: np.ndarray, current: np.ndarray, ridge: float) -> np.ndarray:
    """argmin ||rows·S - targets||² + λ||S - current||², with λ relative, as one augmented lstsq (no Gram matrix)."""
    penalty = ridge * np.mean(np.sum(rows**2, axis=0))
    columns = rows.shape[1]
    wide = np.vstack([rows, np.sqrt(penalty) * np.eye(columns)])
    right = np.vstack([targets, np.sqrt(penalty) * current])
    return np.linalg.lstsq(wide, right, rcond=None)[0]


def patches(module: nn.Conv2d, inputs: Tensor) -> np.ndarray:
    """Receptive fields, cut out by hand. [B·y·x, C·kh·kw]."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = module.kernel_size, module.stride, module.padding, module.dilation
    padded = np.pad(array(inputs), ((0, 0), (0, 0), (py, py), (px, px)))
    height = (padded.shape[2] - dy * (kh - 1) - 1) // sy + 1
    width = (padded.shape[3] - dx * (kw - 1) - 1) // sx + 1
    rows = [
        image[:, y * sy : y * sy + dy * (kh - 1) + 1 : dy, x * sx : x * sx + dx * (kw - 1) + 1 : dx].ravel()
        for image in padded
        for y in range(height)
        for x in range(width)
    ]
    return np.array(rows)


def layer_norm(rows: np.ndarray, eps: float) -> np.ndarray:
    """x̂ of rows [n, H], without scale and shift."""
    return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + eps)


def seen(module: nn.Module, name: str, batch: TensorDict) -> tuple[Tensor, Tensor]:
    """What the named module receives and returns when it first runs on the batch, in eval mode."""
    calls: list[tuple[Tensor, Tensor]] = []
    place = module.get_submodule(name)
    handle = place.register_forward_hook(lambda _, args, output: calls.append((args[0].clone(), output.clone())))
    logits(module, batch)
    handle.remove()
    return calls[0]


def refitted(module: nn.Module, inputs: Tensor, targets: Tensor, ridge: float) -> np.ndarray:
    """The parameters [p(+1), H] that turn inputs into targets best: delta-ridge, and per feature for a LayerNorm."""
    if isinstance(module, nn.Conv2d):
        rows, wanted = patches(module, inputs), array(targets).transpose(0, 2, 3, 1).reshape(-1, len(module.weight))
    else:
        rows = array(inputs).reshape(-1, inputs.shape[-1])
        wanted = array(targets).reshape(-1, targets.shape[-1])
    if isinstance(module, nn.LayerNorm):
        lines = [np.polyfit(x, y, 1) for x, y in zip(layer_norm(rows, module.eps).T, wanted.T, strict=True)]
        return np.array(lines).T
    rows = rows if module.bias is None else with_ones(rows)
    return delta_ridge(rows, wanted, stacked(module), ridge)


@torch.no_grad()
def write(module: nn.Module, solution: np.ndarray) -> None:
    """Write the matrix that :func:`refitted` returned into the module."""
    weight = torch.from_numpy(solution[:-1] if module.bias is not None else solution)
    module.weight.copy_(weight.T.reshape(module.weight.shape))
    if module.bias is not None:
        module.bias.copy_(torch.from_numpy(solution[-1]))


@torch.no_grad()
def copy_units(module: nn.Module, source: nn.Module, mask: Tensor) -> None:
    """Copy the masked rows of weight and bias from another module."""
    module.weight[mask] = source.weight[mask]
    if module.bias is not None:
        module.bias[mask] = source.bias[mask]


def gradient_scores(module: nn.Module, name: str, batch: TensorDict) -> np.ndarray:
    """E|∂L/∂z_i| of the named module, by autograd on its retained output."""
    kept: list[Tensor] = []
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    place = module.get_submodule(name)

    def keep(_: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output)
        output.retain_grad()
        return output * 1.0  # what an in-place activation writes into

    handle = place.register_forward_hook(keep)
    loss(module, batch).backward()
    handle.remove()
    module.zero_grad(set_to_none=True)
    for child, mode in modes:
        child.training = mode
    gradient = array(kept[0].grad).__abs__() * len(batch)
    axes = (0, 2, 3) if isinstance(place, nn.Conv2d) else tuple(range(gradient.ndim - 1))
    return gradient.mean(axes)


def lowest(scores: np.ndarray, quantile: float) -> Tensor:
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(scores, kind="stable")[: int(np.floor(quantile * len(scores) + 1e-9))]] = True
    return torch.from_numpy(mask)


def need_priorities() -> None:
    """Skip the test where torchrl's compiled part does not load: it was made for another torch."""
    try:
        ReplayBuffer(
            BufferSpec(1, 1, ((1,), torch.float32), torch.int32),
            1,
            torch.device("cpu"),
            torch.Generator(),
            priority=(1, 1),
        )
    except UserError as error:
        pytest.skip(str(error))
