"""The paper's Figure 3: how the average gradients of LayerNorms' features are distributed in three networks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastibench.config.errors import UserError
from plastibench.leaderboard import label
from plastibench.plotting.caption import caption
from plastibench.plotting.layernorm_gradients import of_run
from plastibench.plotting.over_seeds import Array, contests, interval
from plastibench.plotting.style import COLOURS, Style, finish, handles, panels, plain, styles, title
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Networks = dict[str, Array]  # none, reset, fresh to E[∂L/∂z_i] [seeds, H]
_TRAINED = ("none", "reset")
_FRESH: Style = {"color": COLOURS[2], "marker": "D", "linestyle": (0, (1, 1.2))}
_BINS = 41
_PLACES = 401  # at which a cumulative distribution is drawn
_DECADES = 1.5  # between the widest and the narrowest distribution, beyond which no common linear axis shows both


def fig3(found: Sequence[Result], *, data_dir: Path | None = None, device: str = "auto") -> Figure:
    """A row per env and agent: distributions over features of E[∂L/∂z_i] at the last two LayerNorms, and their spread.

    Three kinds of networks stand side by side: those of ``none`` and of ``reset`` at the end of their runs, and freshly
    initialised ones of the same seeds.

    Args:
        found: Results with their folders.
        data_dir: Where data sets are, for runs whose gradients are not kept yet.
        device: Where to compute.

    Raises:
        UserError: No run has what the figure shows.
    """
    from plastibench.utils.runtime import resolve_device

    data_dir = data_dir or Path(os.environ.get("PLASTIBENCH_DATA", "data"))
    chosen = [run for run in found if label(run) in _TRAINED and not run.is_rl and run.folder]
    device = resolve_device(device)
    rows: dict[tuple[str, str], dict[str, Networks]] = {}
    shown: list[Result] = []
    for names, results in contests(chosen).items():
        gradients = [(run, of_run(run, data_dir, device)) for run in results]
        having = [(run, layers) for run, layers in gradients if layers]
        if having:
            rows[names] = _by_layer(having)
            shown += [run for run, _ in having]
    if not rows:
        raise UserError(
            "no finished run of none or reset whose network has LayerNorms and is kept (layernorm-gradients.json or "
            "final.pt); make some with: plastibench sweep fig3"
        )
    return _draw(rows, shown)


def _by_layer(runs: Sequence[tuple[Result, Mapping[str, Mapping[str, Array]]]]) -> dict[str, Networks]:
    """LayerNorm to the gradients of each network, a row per seed; a fresh network is the same in all runs of a seed."""
    layers: dict[str, Networks] = {}
    for layer in runs[0][1]:
        rows: dict[str, dict[int, Array]] = {}
        for run, gradients in runs:
            if layer in gradients:
                rows.setdefault(label(run), {})[run.seed] = gradients[layer]["trained"]
                rows.setdefault("fresh", {})[run.seed] = gradients[layer]["fresh"]
        order = [name for name in (*_TRAINED, "fresh") if name in rows]
        layers[layer] = {name: np.stack([rows[name][seed] for seed in sorted(rows[name])]) for name in order}
    return layers


def _draw(rows: Mapping[tuple[str, str], Mapping[str, Networks]], shown: Sequence[Result]) -> Figure:
    looks = {**styles(shown), "fresh": _FRESH}
    columns = max(map(len, rows.values()))
    figure, axes = panels(2 * len(rows), columns, height=2.1, gridspec_kw={"height_ratios": [3, 1] * len(rows)})
    bent = False
    for number, (names, layers) in enumerate(rows.items()):
        for (layer, networks), above, below in zip(
            layers.items(), axes[2 * number], axes[2 * number + 1], strict=False
        ):
            bent |= _distributions(above, networks, looks)
            _spreads(below, networks, looks)
            title(above, f"{', '.join(names)}: {layer}", 52)
    entries = handles({name: {**looks[name], "marker": None} for name in looks})
    words = [
        "E[∂L/∂z_i] of each feature of the last LayerNorms in the order of execution: the average, with its sign, over "
        "all training samples of the last task and all positions, in eval mode. none and reset: at the end of the run; "
        "fresh: the network with which the run of that seed began, on the same data. Below: standard deviation over "
        "features, a dot per seed."
    ]
    if bent:
        words.append("Above: cumulative distribution; its x axis is logarithmic on both sides of 0.")
    return finish(figure, entries, caption(shown, *words, intervals="bands and bars"))


def _distributions(axis: Axes, networks: Networks, looks: Mapping[str, Style]) -> bool:
    """How the features of each network are distributed; returns whether the axis is logarithmic.

    Where one linear axis shows all networks, as in the paper, a histogram with the same bins for all. Where their
    widths differ by decades, the cumulative distribution: bins of any kind would draw humps where there are none.
    """
    spreads = [float(values.std(1).mean()) for values in networks.values()]
    largest = 1.05 * max(float(np.abs(values).max()) for values in networks.values()) or 1.0
    narrowest = min((spread for spread in spreads if spread > 0), default=1.0)
    bent = any(spreads) and math.log10(max(spreads) / narrowest) > _DECADES
    places = np.linspace(-largest, largest, _BINS + 1)
    if bent:
        places = _logarithmic(axis, largest, 10.0 ** round(math.log10(narrowest)))
    for name, values in networks.items():
        shares = np.array([_cumulative(row, places) if bent else _histogram(row, places) for row in values])
        mean, half = interval(shares)
        low, high = np.maximum(mean - half, 0), np.minimum(mean + half, 100)  # a share is neither below nor above
        look = {"color": looks[name]["color"], "linestyle": looks[name]["linestyle"]}
        at = places if bent else np.repeat(places, 2)[1:-1]
        each = 1 if bent else 2  # the outline of a histogram has two corners to a bin
        axis.plot(at, np.repeat(mean, each), label=plain(name), **look)
        if not np.isnan(half).any():
            axis.fill_between(at, np.repeat(low, each), np.repeat(high, each), color=look["color"], alpha=0.13, lw=0)
    axis.set(xlabel="E[∂L/∂z_i]", ylabel="% of features up to here" if bent else "% of features per bin")
    axis.set_xlim(places[0], places[-1])
    axis.set_ylim(bottom=0)
    return bent


def _histogram(values: Array, edges: Array) -> Array:
    """% of values in each bin. [bins]."""
    return 100 * np.histogram(values, edges)[0] / len(values)


def _cumulative(values: Array, places: Array) -> Array:
    """% of values up to each place. [P]."""
    return 100 * np.searchsorted(np.sort(values), places, side="right") / len(values)


def _logarithmic(axis: Axes, largest: float, threshold: float) -> Array:
    """Make the x axis logarithmic on both sides of 0, linear up to a threshold; returns places at even steps of it."""
    axis.set_xscale("symlog", linthresh=threshold)
    transform = axis.xaxis.get_transform()
    ends = transform.transform(np.array([-largest, largest]))
    powers = range(round(math.log10(threshold)), math.floor(math.log10(largest)) + 1)
    axis.set_xticks([0.0, *(sign * 10.0**power for sign in (-1, 1) for power in powers[::2])])
    axis.minorticks_off()
    return np.asarray(transform.inverted().transform(np.linspace(ends[0], ends[1], _PLACES)))


def _spreads(axis: Axes, networks: Networks, looks: Mapping[str, Style]) -> None:
    """Standard deviation over features of each network."""
    axis.set_xscale("log")
    for height, (name, values) in enumerate(reversed(networks.items())):
        spreads = values.std(1)
        mean, half = interval(spreads)
        colour = looks[name]["color"]
        axis.plot(spreads, np.full(len(spreads), height), ".", color=colour, alpha=0.45, markersize=4)
        # a bar that reached 0 would have no end on this axis
        below = min(float(half), 0.999 * float(mean)) if not np.isnan(half) else 0.0
        bar = None if np.isnan(half) else [[below], [float(half)]]
        axis.errorbar(mean, height, xerr=bar, color=colour, marker=looks[name]["marker"], capsize=2, markersize=5)
    axis.set_yticks(range(len(networks)), list(networks)[::-1])
    axis.set_ylim(-0.6, len(networks) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("standard deviation over features")
