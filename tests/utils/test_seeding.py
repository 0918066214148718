from __future__ import annotations

import torch

from plastibench.utils.seeding import derive, generator


def test_seeds_depend_on_seed_and_name() -> None:
    assert derive(0, "init") == derive(0, "init")
    assert len({derive(seed, name) for seed in (0, 1) for name in ("init", "order")}) == 4
    assert 0 <= derive(0, "init") < 2**62


def test_generators_of_the_same_name_draw_the_same_numbers() -> None:
    first, second = (torch.rand(4, generator=generator(3, "order")) for _ in range(2))
    assert torch.equal(first, second)
