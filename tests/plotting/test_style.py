from __future__ import annotations

import itertools

import matplotlib
import pytest

from plastibench.plotting import style


def test_twenty_eight_styles_differ_even_without_colour() -> None:
    styles = [style.slot_style(number) for number in range(28)]
    assert len({(one["marker"], one["linestyle"]) for one in styles}) == 28
    assert len({(one["color"], one["linestyle"]) for one in styles}) == 28


def test_none_is_black_and_reset_always_looks_the_same() -> None:
    alone = style.method_styles(["reset"])
    among = style.method_styles(["zeta", "reset", "alpha", "none", "rnr"])
    assert among["none"]["color"] == "#000000" and list(among) == ["none", "zeta", "reset", "alpha", "rnr"]
    assert alone["reset"] == among["reset"] and list(alone) == ["reset"]


def test_styles_depend_only_on_names_and_are_distinct() -> None:
    names = ["reset", "rnr", "reset-mlp", "reset-linear", *(f"method-{n}" for n in range(14)), "none"]
    styles = style.method_styles(names)
    assert styles == style.method_styles(names[::-1])
    for one, other in itertools.combinations(styles.values(), 2):
        assert (one["marker"], one["linestyle"]) != (other["marker"], other["linestyle"])


@pytest.mark.parametrize("count", [1, 7, 24])
def test_legend_and_caption_fit_below_the_panels(count: int) -> None:
    with matplotlib.rc_context(style.RC):
        figure, axes = style.subplots(1, 2, height=2)
        axes[0, 0].set_xlabel("task")
        entries = style.legend_handles(style.method_styles(f"a-rather-long-name-{n}" for n in range(count)))
        style.finish(figure, entries, "Words of a caption that is too long for one line. " * 8)
        figure.draw_without_rendering()
    renderer = style.get_renderer(figure)
    (legend,), (caption,) = figure.legends, figure.texts
    boxes = [box.get_window_extent(renderer) for box in (caption, legend)]
    boxes += [axis.get_tightbbox(renderer) for axis in axes.flat]
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 + 1
    assert boxes[0].y1 <= boxes[1].y0 and boxes[1].y1 <= min(boxes[2].y0, boxes[3].y0)
    assert len(legend.get_texts()) == count
    assert caption.get_text().replace("\n", " ") == ("Words of a caption that is too long for one line. " * 8).strip()
