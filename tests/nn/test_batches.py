from __future__ import annotations

import torch

from plastibench.nn.batches import chunks, minibatches
from tests.support.networks import images


def test_chunks_cover_the_batch_in_order():
    batch = images(10)
    parts = list(chunks(batch, 4))
    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat(parts)["image"], batch["image"])


def test_minibatches_sample_without_replacement_and_reshuffle():
    batch = images(10)
    batch["index"] = torch.arange(10)
    endless = minibatches(batch, 4, torch.Generator().manual_seed(0))
    passes = [torch.cat([next(endless)["index"], next(endless)["index"]]).tolist() for _ in range(5)]
    assert all(len(set(drawn)) == 8 for drawn in passes)  # the remainder of 2 is dropped
    assert len({tuple(drawn) for drawn in passes}) == 5


def test_minibatches_are_at_most_the_batch():
    assert len(next(minibatches(images(3), 8, torch.Generator()))) == 3
