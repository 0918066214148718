"""``attach`` with DistributedDataParallel and with FSDP2 in two processes gives the weights of one process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from plastibench import Network, apply, attach
from plastibench.config.errors import UserError
from plastibench.config.registry import interventions
from plastibench.nn import memory, refit
from plastibench.utils import distributed
from tests.support import networks
from tests.support.processes import together

METHODS: dict[str, dict[str, Any]] = {  # options with which methods act within a few updates
    "none": {},
    "shrink-perturb": {},
    "redo": {"tau": 0.5},
    "rnr": {},
    "continual-backprop": {"rate": 0.1, "maturity": 2},
    "self-normalized-resets": {"longest": 2, "retune": 3},
    "upgd-adam": {},
    "l2-init": {"strength": 0.1},
    "spectral-decoupling": {"strength": 0.1},
    "hare-tortoise": {"momentum": 0.5},
    "noisy-updates": {},
}
QUICK = ("rnr", "continual-backprop", "upgd-adam", "l2-init", "hare-tortoise", "spectral-decoupling")
WRAPPERS = ("ddp", "fsdp")


def mlp() -> nn.Module:
    first, second, last = nn.Linear(64, 13), nn.Linear(13, 12), nn.Linear(12, 10)  # 13 rows cannot be divided evenly
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)


def wrap(module: nn.Module, wrapper: str) -> nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(module)
    if wrapper == "fsdp":
        for child in module:
            if isinstance(child, nn.Linear):
                fully_shard(child)
        fully_shard(module)
    return module


def own_rows(batch: TensorDict) -> TensorDict:
    rows, _ = distributed.shard(len(batch))
    return batch[rows]


def train(name: str, wrapper: str = "", accumulate: int = 1) -> dict[str, Any]:
    """Make six updates with two interventions; return full weights, optimizer state and masks."""
    module = wrap(networks.drawn(mlp, 0 if wrapper == "fsdp" else distributed.rank()), wrapper)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(5 + distributed.rank())
    network = Network(module, optimizer, networks.loss, generator=generator)
    handle = attach(name, network, **METHODS.get(name, {}))
    masks = []
    for update in range(6):
        optimizer.zero_grad()
        for part in range(accumulate):
            batch = own_rows(networks.images(16, seed=10 * update + part))
            with without_sync(module, wrapper, part < accumulate - 1):
                loss = networks.loss(module, batch) + handle.penalty(batch)
                (loss / accumulate).backward()
        optimizer.step()
        if update % 3 == 2:
            masks.append(handle.intervene(own_rows(networks.images(32, seed=500 + update))).units)
    assert handle.steps == 6
    inner = module.module if wrapper == "ddp" else module
    found = {f"weight {n}": full(p) for n, p in inner.named_parameters()}
    for number, state in enumerate(optimizer.state.values()):
        found |= {f"optimizer {number} {n}": full(v) for n, v in state.items()}
    found |= {f"evaluated {n}": full(v) for n, v in handle.evaluated.state_dict().items()}
    return {"tensors": found, "masks": masks, "state": handle.intervention.state_dict()}


def full(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


@contextlib.contextmanager
def without_sync(module: Any, wrapper: str, wanted: bool) -> Any:
    if wrapper == "fsdp":
        module.set_requires_gradient_sync(not wanted)
    with module.no_sync() if wrapper == "ddp" and wanted else contextlib.nullcontext():
        yield


def train_all(names: tuple[str, ...], wrappers: tuple[str, ...]) -> dict[str, Any]:
    found = {f"{name} {wrapper}": train(name, wrapper) for wrapper in wrappers for name in names}
    return found | {f"accumulated {wrapper}": train("continual-backprop", wrapper, 2) for wrapper in wrappers}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensor in one["tensors"].items():
        torch.testing.assert_close(tensor, other["tensors"][name], rtol=1e-3, atol=1e-4, msg=name)
    assert len(one["masks"]) == len(other["masks"]) == 2
    for mine, theirs in zip(one["masks"], other["masks"], strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mask, theirs[n]) for n, mask in mine.items())


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    found = together(train_all, QUICK, WRAPPERS, folder=tmp_path / "group")
    for wrapper in WRAPPERS:
        for name in QUICK:
            for rank in (0, 1):
                assert_same(train(name), found[rank][f"{name} {wrapper}"])
        assert_same(train("continual-backprop", "", 2), found[0][f"accumulated {wrapper}"])


def train_streamed() -> dict[str, Any]:
    memory.MEMORY = 1e-6  # GiB
    with mock.patch.object(refit, "refit_streamed", wraps=refit.refit_streamed) as streamed:
        found = {wrapper: train("rnr", wrapper) for wrapper in WRAPPERS}
    return found | {"calls": streamed.call_count}


@pytest.mark.slow
def test_a_refit_that_is_streamed_in_two_processes_equals_one_pass(tmp_path: Path) -> None:
    for found in together(train_streamed, folder=tmp_path / "group"):
        assert found["calls"] == 4
        for wrapper in WRAPPERS:
            assert_same(train("rnr"), found[wrapper])


ALL = tuple(name for name in interventions.all() if not name.endswith("*"))


def train_or_refuse(wrapper: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ALL:
        try:
            found[name] = train(name, wrapper)
        except UserError as error:
            found[name] = str(error)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_method_equals_one_process_or_is_refused(wrapper: str, tmp_path: Path) -> None:
    alone = train_or_refuse("")
    different, refused = [], []
    for found in together(train_or_refuse, wrapper, folder=tmp_path / "group"):
        for name, expected in alone.items():
            if isinstance(expected, str):
                assert found[name] == expected
            elif isinstance(found[name], str):
                assert "changes the architecture" in found[name] and "\n" not in found[name]
                refused.append(name)
            else:
                try:
                    assert_same(expected, found[name])
                except AssertionError as error:
                    different.append(f"{name}: {error}")
    assert not different
    assert "plasticity-injection" in refused and "rnr" not in refused


def complaint(call: Any) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def wrong_uses() -> list[str]:
    def shape_of(rank: int) -> dict[str, torch.Tensor]:
        return {"image": torch.zeros(4, 1, 8, 8 + rank), "label": torch.zeros(4, dtype=torch.long)}

    plain, ddp, sharded = (wrap(mlp(), wrapper) for wrapper in ("", "ddp", "fsdp"))
    flat = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # it needs a GPU to be complete
    nn.Module.__init__(flat)
    flat._modules["_fsdp_wrapped_module"] = mlp()
    handle = attach("redo", ddp, None, networks.loss)
    return [
        complaint(lambda: attach("plasticity-injection", plain, None, networks.loss)),
        complaint(lambda: attach("layernorm", ddp, None, networks.loss)),
        complaint(lambda: attach("l2+layernorm", sharded, None, networks.loss)),
        complaint(lambda: attach("redo", nn.Sequential(mlp(), flat), None, networks.loss)),
        complaint(lambda: handle.intervene(shape_of(distributed.rank()))),
        complaint(lambda: apply("redo", sharded, shape_of(0), networks.loss)),
    ]


def test_mistakes_are_reported_in_one_line_by_every_process(tmp_path: Path) -> None:
    first, second = together(wrong_uses, folder=tmp_path / "group")
    assert first == second
    injection, ddp, sharded, flat, shapes, fine = first
    assert injection.startswith("attach: plasticity-injection changes the architecture during training, which Distr")
    assert ddp.endswith("changes the architecture; attach it before DistributedDataParallel(model)")
    assert "changes the architecture, which fully_shard does not allow" in sharded
    assert flat == "attach: FullyShardedDataParallel (FSDP1) is not supported; use fully_shard (FSDP2)"
    assert shapes.startswith("the batches of the processes differ in 'image': [1, 8, 8] float32 and [1, 8, 9] float32")
    assert fine == ""
