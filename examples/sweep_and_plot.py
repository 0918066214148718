"""Compare methods over seeds from Python, and plot the results.

python examples/sweep_and_plot.py                     # small: a few seconds per run
python examples/sweep_and_plot.py --tasks 20 --seeds 5
"""

from __future__ import annotations

import argparse

import plastibench as pb

METHODS = ["none", "reset", "shrink-perturb-keep80", "rnr"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    for method in METHODS:
        for seed in range(given.seeds):
            pb.train(
                "relabel-digits",
                agent="mlp",
                intervention=method,
                seed=seed,
                env_options={"tasks": given.tasks, "epochs": 20},
                runs_dir="sweep",
                progress=False,
            )
    table = pb.load_results("sweep").to_pandas()
    print(table.groupby("intervention")["final_accuracy"].agg(["mean", "std", "count"]).round(3))
    axes = None
    for result in pb.load_results("sweep"):
        if result.seed == 0:
            axes = result.plot(axes)
    axes.legend()
    axes.figure.savefig("sweep.png")
    print("sweep.png")


if __name__ == "__main__":
    main()
