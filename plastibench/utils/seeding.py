"""Named random generators, one per source of randomness, so that all methods see the same data."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive(seed: int, name: str) -> int:
    """Derive a 62-bit seed for a named purpose of a run: ``init``, ``order``, ``augmentation``, ``intervention``, …"""
    words = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(2, np.uint32)
    return int(words[0]) << 30 | int(words[1]) >> 2


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` for a named purpose of a run."""
    return torch.Generator(device).manual_seed(derive(seed, name))
