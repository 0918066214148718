"""Draw the plot of the README from the reference results: ``python docs/draw_images.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from scipy import stats

from plastibench import load_results

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "none": ("none (no intervention)", "black", "o"),
    "reset": ("reset (full reset)", "#0072b2", "s"),
    "redo": ("redo (ReDo)", "#009e73", "D"),
    "rnr": ("rnr (Revive And Recouple)", "#d55e00", "^"),
}


def half_width(values: np.ndarray) -> np.ndarray:
    """Half-width of the 95 % confidence interval of the mean over seeds. [S, ...] -> [...]."""
    return stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))


def main() -> None:
    """Draw accuracy after each task, and final accuracy against the drop at an intervention."""
    found = [result for result in load_results(ROOT / "runs/reference/digits") if not result.changed.intervention]
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), width_ratios=(3, 2), layout="constrained")
    for name, (label, color, marker) in METHODS.items():
        runs = [result for result in found if result.intervention == name]
        ends = 100 * np.array([[task.end for task in run.tasks] for run in runs if run.env == "relabel-digits"])
        mean, half = ends.mean(0), half_width(ends)
        tasks = np.arange(1, ends.shape[1] + 1)
        left.plot(tasks, mean, color=color, marker=marker, markersize=4, label=label)
        left.fill_between(tasks, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        growing = [run.summary for run in runs if run.env == "cl-digits"]
        final, drop = (100 * np.array([getattr(s, key) for s in growing]) for key in ("final_accuracy", "mean_drop"))
        errors = {"xerr": half_width(drop), "yerr": half_width(final)}
        # redo and none have the same values here
        hollow = (
            {"fillstyle": "none", "markersize": 11} if name == "redo" else {"markersize": 7}
        )  # redo equals none here
        right.errorbar(drop.mean(), final.mean(), **errors, color=color, marker=marker, capsize=3, **hollow)
    left.set(title="relabel-digits, MLP: new labels in each task", xlabel="task")
    left.set_ylabel("accuracy at the end of a task, %")
    left.set_xticks(range(2, 21, 2))
    right.set(title="cl-digits, ViT: growing data, 10 tasks", ylabel="final accuracy, %")
    right.set_xlabel("drop, percentage points")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(ROOT / "docs/images/plasticity-loss.png", dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    matplotlib.use("agg")
    main()
