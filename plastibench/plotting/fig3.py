"""The paper's Figure 3: distributions of the mean gradients of LayerNorm features in three kinds of networks."""

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
from plastibench.plotting.layernorm_gradients import gradients_of_run
from plastibench.plotting.panels import Styles
from plastibench.plotting.series import Array, mean_and_interval, runs_by_setting
from plastibench.plotting.style import (
    COLOURS,
    Style,
    escape,
    finish,
    legend_handles,
    method_styles,
    set_title,
    subplots,
)
from plastibench.results.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Networks = dict[str, Array]  # none, reset, fresh to E[∂L/∂z_i] [seeds, H]
Rows = dict[str, dict[str, Networks]]  # title of a setting to LayerNorm to networks
_TRAINED = ("none", "reset")
_FRESH: Style = {"color": COLOURS[2], "marker": "D", "linestyle": (0, (1, 1.2))}
_BINS = 41
_POSITIONS = 401  # number of points of a cumulative distribution
_MAX_DECADES = 1.5  # a linear axis is used up to this log10 ratio of the widest to the narrowest


def fig3(results: Sequence[Result], *, data_dir: Path | None = None, device: str = "auto") -> Figure:
    """One row per env and agent: E[∂L/∂z_i] over the features of the last two LayerNorms, and its standard deviation.

    Three kinds of networks are compared: those of ``none`` and of ``reset`` at the end of their runs, and freshly
    initialized ones of the same seeds.

    Args:
        results: Results with their folders.
        data_dir: Folder of datasets, needed for runs whose gradients are not saved yet.
        device: Device to compute on.

    Raises:
        UserError: No run has what the plot shows.
    """
    from plastibench.utils.runtime import resolve_device

    data_dir = data_dir or Path(os.environ.get("PLASTIBENCH_DATA", "data"))
    chosen = [run for run in results if label(run) in _TRAINED and not run.is_rl and run.folder]
    with_norms = [run for run in chosen if _may_have_layernorms(run)]
    if chosen and not with_norms:
        agents = ", ".join(sorted({run.agent for run in chosen}))
        raise UserError(
            f"fig3 shows LayerNorms, but the networks of {agents} have none; create suitable runs with: "
            "plastibench sweep fig3"
        )
    chosen, device = with_norms, resolve_device(device)
    rows: Rows = {}
    shown: list[Result] = []
    for title, runs in runs_by_setting(chosen).items():
        gradients = [(run, gradients_of_run(run, data_dir, device)) for run in runs]
        with_gradients = [(run, layers) for run, layers in gradients if layers]
        if with_gradients:
            rows[title] = _by_layer(with_gradients)
            shown += [run for run, _ in with_gradients]
    if not rows:
        raise UserError(
            "no finished run of none or reset has LayerNorms and a saved network (layernorm-gradients.json or "
            "final.pt); create such runs with: plastibench sweep fig3"
        )
    return _draw(rows, shown)


def _may_have_layernorms(run: Result) -> bool:
    """Whether the network has LayerNorms, according to the run's metrics; True if an old file does not record them."""
    return not run.plasticity or any("layernorm-gradient-spread" in record.metrics for record in run.plasticity)


def _by_layer(runs: Sequence[tuple[Result, Mapping[str, Mapping[str, Array]]]]) -> dict[str, Networks]:
    """LayerNorm to the gradients of each network, one row per seed; all runs of a seed have the same fresh network."""
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


def _draw(rows: Rows, shown: Sequence[Result]) -> Figure:
    styles = {**method_styles(map(label, shown)), "fresh": _FRESH}
    columns = max(map(len, rows.values()))
    figure, axes = subplots(2 * len(rows), columns, height=2.1, gridspec_kw={"height_ratios": [3, 1] * len(rows)})
    any_logarithmic = False
    for number, (setting, layers) in enumerate(rows.items()):
        above, below = axes[2 * number], axes[2 * number + 1]
        for (layer, networks), upper, lower in zip(layers.items(), above, below, strict=False):
            any_logarithmic |= _plot_distributions(upper, networks, styles)
            _plot_spreads(lower, networks, styles)
            set_title(upper, f"{setting}: {layer}")
    handles = legend_handles({name: {**style, "marker": None} for name, style in styles.items()})
    sentences = [
        "E[∂L/∂z_i] of each feature i of the last LayerNorms in order of execution: signed mean over all training "
        "samples of the last task and all positions, in eval mode. none and reset: at the end of the run; fresh: the "
        "initial network of the same seed, on the same data. Bottom: standard deviation over features, one dot per "
        "seed."
    ]
    if any_logarithmic:
        sentences.append("Top: cumulative distribution on a symmetric logarithmic axis.")
    return finish(figure, handles, caption(shown, *sentences, intervals="bands and bars"))


def _plot_distributions(axis: Axes, networks: Networks, styles: Styles) -> bool:
    """Plot the distribution over features in each network; return whether the x axis is logarithmic.

    If a linear axis shows all networks, as in the paper, histograms with the same bins. If their widths differ by
    decades, cumulative distributions, since a histogram on a symmetric logarithmic axis has artificial modes.
    """
    spreads = [float(values.std(1).mean()) for values in networks.values()]
    largest = 1.05 * max(float(np.abs(values).max()) for values in networks.values()) or 1.0
    narrowest = min((spread for spread in spreads if spread > 0), default=1.0)
    logarithmic = any(spreads) and math.log10(max(spreads) / narrowest) > _MAX_DECADES
    positions = np.linspace(-largest, largest, _BINS + 1)
    if logarithmic:
        positions = _logarithmic_positions(axis, largest, 10.0 ** round(math.log10(narrowest)))
    for name, values in networks.items():
        distribution = _cumulative if logarithmic else _histogram
        mean, half = mean_and_interval(np.array([distribution(row, positions) for row in values]))
        low, high = np.maximum(mean - half, 0), np.minimum(mean + half, 100)
        line = {"color": styles[name]["color"], "linestyle": styles[name]["linestyle"]}
        x = positions if logarithmic else np.repeat(positions, 2)[1:-1]
        corners = 1 if logarithmic else 2  # corners of the outline per bin
        axis.plot(x, np.repeat(mean, corners), label=escape(name), **line)
        if not np.isnan(half).any():
            low, high = np.repeat(low, corners), np.repeat(high, corners)
            axis.fill_between(x, low, high, color=line["color"], alpha=0.13, lw=0)
    axis.set(xlabel="E[∂L/∂z_i]", ylabel="features up to x (%)" if logarithmic else "features per bin (%)")
    axis.set_xlim(positions[0], positions[-1])
    if not logarithmic:
        axis.ticklabel_format(axis="x", scilimits=(-2, 3))
    axis.set_ylim(bottom=0)
    return logarithmic


def _histogram(values: Array, edges: Array) -> Array:
    """Percentage of the values in each bin. [bins]."""
    return 100 * np.histogram(values, edges)[0] / len(values)


def _cumulative(values: Array, positions: Array) -> Array:
    """Percentage of the values up to each position. [P]."""
    return 100 * np.searchsorted(np.sort(values), positions, side="right") / len(values)


def _logarithmic_positions(axis: Axes, largest: float, threshold: float) -> Array:
    """Make the x axis symmetric logarithmic, linear within a threshold; return positions that are even on it."""
    axis.set_xscale("symlog", linthresh=threshold)
    transform = axis.xaxis.get_transform()
    ends = transform.transform(np.array([-largest, largest]))
    powers = range(round(math.log10(threshold)), math.floor(math.log10(largest)) + 1)
    axis.set_xticks([0.0, *(sign * 10.0**power for sign in (-1, 1) for power in powers[::2])])
    axis.minorticks_off()
    return np.asarray(transform.inverted().transform(np.linspace(ends[0], ends[1], _POSITIONS)))


def _plot_spreads(axis: Axes, networks: Networks, styles: Styles) -> None:
    """Plot the standard deviation over features of each network."""
    axis.set_xscale("log")
    for height, (name, values) in enumerate(reversed(networks.items())):
        spreads = values.std(1)
        mean, half = mean_and_interval(spreads)
        colour = styles[name]["color"]
        axis.plot(spreads, np.full(len(spreads), height), ".", color=colour, alpha=0.45, markersize=4)
        below = min(float(half), 0.999 * float(mean)) if not np.isnan(half) else 0.0  # 0 is not on a logarithmic axis
        bar = None if np.isnan(half) else [[below], [float(half)]]
        axis.errorbar(mean, height, xerr=bar, color=colour, marker=styles[name]["marker"], capsize=2, markersize=5)
    axis.set_yticks(range(len(networks)), list(networks)[::-1])
    axis.set_ylim(-0.6, len(networks) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("standard deviation over features")
