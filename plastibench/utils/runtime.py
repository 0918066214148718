"""Set up this process for a run: device, memory, numeric precision, determinism."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from plastibench.config.errors import UserError
from plastibench.config.spec import RunSpec

GPU_SHARE = "PLASTIBENCH_GPU_SHARE"  # environment variable: fraction of GPU memory that this process may use


def resolve_device(name: str) -> str:
    """Resolve ``auto`` to ``cuda`` or ``cpu``, and check that any other device exists.

    Raises:
        UserError: The device is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        torch.Generator(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device '{name}' is not available here ({str(error).partition(chr(10))[0]}); try cpu"
        ) from error
    return name


def set_up_torch(spec: RunSpec) -> None:
    """Configure memory, precision and determinism of this process as the spec requires."""
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        spec.agent[1].get("precision", "float32") != "float32"
    )
    fraction = os.environ.get(GPU_SHARE)
    if fraction and spec.run.device.startswith("cuda"):  # a run that needs more memory fails without affecting others
        torch.cuda.set_per_process_memory_fraction(float(fraction), torch.device(spec.run.device).index)
    torch.use_deterministic_algorithms(spec.run.deterministic)
    if spec.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)


def keep_freed_memory() -> None:
    """Make glibc reuse large freed blocks instead of returning them to the system.

    By default each training step of a ViT maps and unmaps its activations: over a million page faults per step.
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # from malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_max, 0)
    except (OSError, AttributeError):  # another C library
        return
