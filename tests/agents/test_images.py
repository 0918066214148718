from __future__ import annotations

import numpy as np
import pytest
import torch

from plastibench.agents.images import Normalize, crop_and_flip


def draws(seed: int, count: int, pad: int) -> tuple[list[int], list[int], list[bool]]:
    """Rows, columns and flips, drawn as in the function."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)[:, :, 0]
    flip = torch.rand(count, 1, generator=generator)[:, 0] < 0.5
    return offset[0].tolist(), offset[1].tolist(), flip.tolist()


def found_offsets(pad: int, count: int, size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and flips, read from images whose pixels contain their own position (0 is padding)."""
    rows, columns = torch.meshgrid(torch.arange(1, size + 1), torch.arange(1, size + 1), indexing="ij")
    image = torch.stack([rows, columns]).to(torch.uint8)
    out = crop_and_flip(image.expand(count, -1, -1, -1), pad, torch.Generator().manual_seed(1)).numpy()
    middle = out[:, :, size // 2, size // 2].astype(int)
    beside = out[:, 1, size // 2, size // 2 + 1].astype(int)
    flipped = beside < middle[:, 1]
    down = middle[:, 0] - 1 + pad - size // 2
    column = np.where(flipped, size - 1 - size // 2, size // 2)
    return down, middle[:, 1] - 1 + pad - column, flipped


@pytest.mark.parametrize("shape", [(9, 3, 32, 32), (5, 1, 8, 8), (4, 2, 6, 10)])
@pytest.mark.parametrize("pad", [4, 2])
def test_crop_and_flip_matches_a_reference(shape: tuple[int, ...], pad: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = crop_and_flip(torch.from_numpy(images), pad, torch.Generator().manual_seed(7))
    _, _, height, width = shape
    assert found.dtype == torch.uint8 and found.shape == shape
    for sample, (row, column, flip) in enumerate(zip(*draws(7, shape[0], pad), strict=True)):
        padded = np.pad(images[sample], ((0, 0), (pad, pad), (pad, pad)))
        expected = padded[:, row : row + height, column : column + width]
        expected = expected[:, :, ::-1] if flip else expected
        np.testing.assert_array_equal(found[sample].numpy(), expected)


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    pad, count = 4, 18_000
    rows, columns, flips = found_offsets(pad, count)
    joint = np.zeros((9, 9, 2), int)
    np.add.at(joint, (rows, columns, flips.astype(int)), 1)  # fails outside 0..8
    expected = count / joint.size
    assert float(((joint - expected) ** 2 / expected).sum()) < 161 + 5 * np.sqrt(2 * 161)


def test_augmentation_depends_only_on_the_generator() -> None:
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    first, second = crop_and_flip(images, 4, generator), crop_and_flip(images, 4, generator)
    assert torch.equal(first, crop_and_flip(images, 4, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, second)


def test_augmentation_does_not_change_its_input_or_global_random_state() -> None:
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    crop_and_flip(images, 4, torch.Generator().manual_seed(0)).fill_(0)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_normalisation_matches_a_reference() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
    found = Normalize(mean, std, torch.device("cpu"))(torch.from_numpy(images))
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)
