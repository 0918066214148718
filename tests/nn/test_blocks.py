from __future__ import annotations

import itertools

import pytest
from torch import nn

from plastibench.nn.blocks import fraction_of, input_layers, last_blocks


def layers(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


class Ensemble(nn.Module):
    """Critics that read an encoder."""

    def __init__(self, encoder: nn.Module, critics: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(layers(4, 4, 4, 1) for _ in range(critics))


def module_names(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


@pytest.mark.parametrize(
    ("module", "outputs", "k", "expected", "blocks"),
    [
        (layers(4, 4, 4, 4), ["2"], 2, ["1", "2"], 3),
        (Ensemble(nn.Identity()), ["heads.0.2", "heads.1.2"], 1, ["heads.0.2", "heads.1.2"], 3),
        (Ensemble(nn.Identity(), 1), ["heads.0.2"], 2, ["heads.0.1", "heads.0.2"], 3),
        (
            Ensemble(layers(4, 4, 4)),  # five layers before each output
            ["heads.0.2", "heads.1.2"],
            4,
            ["encoder.1", *(f"heads.{n}.{m}" for n in range(2) for m in range(3))],
            5,
        ),
        (
            Ensemble(nn.Sequential(layers(4, 4), layers(4, 4))),  # blocks, and layers after them
            ["heads.0.2", "heads.1.2"],
            1,
            ["encoder.1.0", *(f"heads.{n}.{m}" for n in range(2) for m in range(3))],
            2,
        ),
    ],
)
def test_last_blocks_are_those_before_each_output(module, outputs, k, expected, blocks):
    assert (lambda found: (module_names(found[0]), found[1]))(last_blocks(module, outputs, lambda _: k)) == (
        expected,
        blocks,
    )
    assert last_blocks(module, outputs, lambda _: blocks + 1) == ([], blocks)
    assert last_blocks(module, outputs, lambda _: 0) == ([], blocks)


@pytest.mark.parametrize(
    ("fraction", "count", "expected"), [(0.5, 4, 2), (0.5, 3, 2), (0.1, 10, 1), (0.3, 10, 3), (1, 7, 7)]
)
def test_fraction_of_blocks_is_rounded_up(fraction, count, expected):
    assert fraction_of(fraction)(count) == expected


@pytest.mark.parametrize(
    ("executed", "outputs", "expected"),
    [
        (["a", "b", "c"], ["c"], {"a"}),
        (["body.0", "advantage", "value"], ["advantage", "value"], {"body.0"}),
        (["heads.0.0", "heads.0.2", "heads.1.0", "heads.1.2"], ["heads.0.2", "heads.1.2"], {"heads.0.0", "heads.1.0"}),
        (["encoder.0", "heads.0.0", "heads.1.0"], ["heads.0.0", "heads.1.0"], {"encoder.0"}),
    ],
)
def test_each_critic_without_a_common_encoder_has_an_input_layer(executed, outputs, expected):
    assert input_layers(executed, outputs) == expected
