"""Data-parallel training in several processes, started by ``torchrun``; does nothing in a single process.

Every process holds the same weights and draws the same random numbers. Only the rows of a batch are divided.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.config.errors import RunError, UserError
from plastibench.utils.torchrun import launched_processes

T = TypeVar("T")


def join_processes() -> None:
    """Join the processes that torchrun has started, unless this process has joined them already.

    CPU tensors are exchanged with gloo, and CUDA tensors with NCCL. The current CUDA device becomes the one with this
    process's local rank.
    """
    if launched_processes() == 1 or is_initialized():
        return
    local = int(os.environ["LOCAL_RANK"])
    if local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(_leave)


def check_device(device: str) -> None:
    """Check that every process can have its own device.

    Raises:
        UserError: The device has an index, or this machine has fewer GPUs than processes.
    """
    if world_size() == 1 or not device.startswith("cuda"):
        return
    if ":" in device:
        raise UserError(f"--device {device} is one device for {world_size()} processes; use --device cuda")
    local, count = int(os.environ.get("LOCAL_WORLD_SIZE", world_size())), torch.cuda.device_count()
    if local > count:
        raise UserError(f"{local} processes need {local} GPUs, but this machine has {count}; lower --nproc-per-node")


def is_initialized() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def is_writer() -> bool:
    """Whether this process writes files and prints: the first one."""
    return rank() == 0


def shard(count: int) -> tuple[slice, float]:
    """Return the rows of a batch that this process computes, and the weight of their mean in the mean of all rows.

    The shards do not overlap and cover the batch. If there are fewer rows than processes, each process computes all
    rows.

    Args:
        count: Rows of the batch.
    """
    number, size = rank(), world_size()
    if count < size:
        return slice(0, count), 1 / size
    start, stop = number * count // size, (number + 1) * count // size
    return slice(start, stop), (stop - start) / count


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor with its sum over the processes, in place; the result is identical in all processes."""
    if world_size() == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in same])
        found = _for_transport(flat)
        dist.all_reduce(found)
        parts = found.to(flat.device).split([tensor.numel() for tensor in same])
        for tensor, part in zip(same, parts, strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def all_reduce_max(value: int) -> int:
    """The largest value among the processes."""
    if world_size() == 1:
        return value
    found = _for_transport(torch.tensor(value))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gather_objects(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, in the order of their ranks: [N_r, ...] -> [sum of N_r, ...]."""
    if world_size() == 1:
        return rows
    sizes = [_for_transport(torch.tensor(0)) for _ in range(world_size())]
    dist.all_gather(sizes, _for_transport(torch.tensor(len(rows))))
    counts = [int(size) for size in sizes]
    flat = rows.detach().reshape(len(rows), -1).contiguous()
    flat = flat.view(torch.uint8) if flat.numel() else flat.new_zeros(len(rows), 0, dtype=torch.uint8)
    padded = flat.new_zeros(max(counts), flat.shape[1])
    padded[: len(rows)] = flat
    padded = _for_transport(padded)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)
    return joined.view(rows.dtype).reshape(len(joined), *rows.shape[1:]) if joined.numel() else joined.to(rows.dtype)


def gather_batch(batch: TensorDictBase) -> TensorDictBase:
    """Concatenate the batches of all processes, in the order of their ranks.

    Raises:
        UserError: The batches have different entries, or entries of different shapes.
    """
    if world_size() == 1:
        return batch
    layouts = gather_objects({str(name): (value.shape[1:], value.dtype) for name, value in _leaves(batch).items()})
    for other in layouts[1:]:
        for name in {**layouts[0], **other}:
            one, two = layouts[0].get(name), other.get(name)
            if one != two:
                raise UserError(
                    f"the batches of the processes differ in '{name}': {_described(one)} and {_described(two)}; "
                    "pass samples of the same shape in every process (pad sequences to the same length)"
                )
    gathered = {name: gather_rows(value) for name, value in _leaves(batch).items()}
    count = len(next(iter(gathered.values())))
    found = batch.empty()
    found.batch_size = torch.Size([count])
    for name, value in gathered.items():
        found[name] = value
    return found


def on_first_process(decide: Callable[[], T]) -> T:
    """Call a function in the first process only; all processes return its value, or raise its error."""
    if world_size() == 1:
        return decide()
    found: list[Any] = [None, None]
    raised: Exception | None = None
    if is_writer():
        try:
            found[0] = decide()
        except Exception as error:
            raised = error
            found[1] = (
                error if isinstance(error, UserError | RunError) else RunError(f"{type(error).__name__}: {error}")
            )
    dist.broadcast_object_list(found, src=0)
    if raised is not None:
        raise raised
    if found[1] is not None:
        raise found[1]
    return found[0]


@torch.no_grad()
def broadcast_from_first(tensors: Mapping[str, Tensor]) -> None:
    """Copy the values of the first process into tensors of all processes, in place.

    Raises:
        RunError: The processes have different tensors.
    """
    if world_size() == 1:
        return
    layouts = gather_objects({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    for other in layouts[1:]:
        if other != layouts[0]:
            name = next(n for n in {**layouts[0], **other} if layouts[0].get(n) != other.get(n))
            raise RunError(
                f"the processes hold different networks or optimizers (first difference: {name}); build the same ones "
                "in every process"
            )
    for name in layouts[0]:
        found = _for_transport(tensors[name].detach().contiguous())
        dist.broadcast(found, src=0)
        tensors[name].copy_(found)


def _leaves(batch: TensorDictBase) -> dict[Any, Tensor]:
    return {name: value for name, value in batch.items(True, True) if isinstance(value, Tensor)}


def _described(layout: tuple[torch.Size, torch.dtype] | None) -> str:
    return "missing" if layout is None else f"{list(layout[0])} {str(layout[1]).removeprefix('torch.')}"


def _for_transport(tensor: Tensor) -> Tensor:
    """The tensor where the process group can exchange it: NCCL alone accepts no CPU tensors."""
    return tensor.cuda() if tensor.device.type == "cpu" and dist.get_backend() == "nccl" else tensor


def _leave() -> None:
    if is_initialized():
        dist.destroy_process_group()
