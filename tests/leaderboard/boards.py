"""Synthetic runs for the leaderboard in TensorBoard, and a TensorBoard server to query."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plastibench.config.spec import RunSpec
from plastibench.results.files import compose_result, write_result
from plastibench.results.result import Result
from plastibench.training.recorder import Recorder
from tests.leaderboard.made import ORIGIN

# Accuracy at the end of three tasks for seeds 0, 1, 2; `reset` has one seed and the highest final accuracy.
ACCURACIES = {
    "none": [[0.2, 0.4, 0.6], [0.2, 0.5, 0.7], [0.2, 0.3, 0.65]],
    "rnr quantile=0.2": [[0.3, 0.5, 0.81], [0.3, 0.6, 0.79], [0.3, 0.7, 0.77]],
    "reset": [[0.3, 0.6, 0.9]],
}
DROPS = {"none": 0.0, "rnr quantile=0.2": 0.125, "reset": 0.5}
RETURNS = {"none": [[1.0, 2.0, 4.0], [1.0, 3.0, 6.0]], "reset": [[1.0, 9.0, 8.0], [1.0, 5.0, 10.0]]}


def make(runs_dir: Path) -> list[Result]:
    """Write finished runs of two settings with the recorder, and one unfinished run."""
    found = []
    for intervention, curves in ACCURACIES.items():
        for seed, ends in enumerate(curves):
            found.append(_supervised(runs_dir, intervention, seed, ends))
    for intervention, curves in RETURNS.items():
        for seed, values in enumerate(curves):
            found.append(_rl(runs_dir, intervention, seed, values))
    spec = _spec("cl-digits", "mlp", "none", 7)
    recorder = Recorder(_folder(runs_dir, spec), spec)
    recorder.scalars(0, 0, 0, "training", {"accuracy": 0.1})
    recorder.flush()
    recorder.close()
    return found


def _spec(env: str, agent: str, intervention: str, seed: int) -> RunSpec:
    name, *options = intervention.split()
    return RunSpec.make(
        env,
        agent,
        name,
        intervention_options=dict(option.split("=") for option in options),
        seed=seed,
        device="cpu",
    )


def _folder(runs_dir: Path, spec: RunSpec) -> Path:
    folder = runs_dir / spec.id
    folder.mkdir(parents=True)
    return folder


def _supervised(runs_dir: Path, intervention: str, seed: int, ends: list[float]) -> Result:
    drops = [None, *([DROPS[intervention]] * (len(ends) - 1))]
    same = {"samples": 10, "noise": 0.0, "before": None, "after": None, "recovery": None}
    tasks = [
        {**same, "task": number, "curve": [(0.0, end)], "end": end, "drop": drop, "auc": end}
        for number, (end, drop) in enumerate(zip(ends, drops, strict=True))
    ]
    summary = {
        "final_accuracy": ends[-1],
        "average_accuracy": sum(ends) / len(ends),
        "auc": sum(ends) / len(ends),
        "mean_drop": DROPS[intervention],
        "mean_recovery_epochs": 2.0,
        "unrecovered_fraction": 0.25,
    }
    return _finish(runs_dir, _spec("cl-digits", "mlp", intervention, seed), {"summary": summary, "tasks": tasks})


def _rl(runs_dir: Path, intervention: str, seed: int, values: list[float]) -> Result:
    points = [{"task": 0, "steps": 1000 * i, "value": value, "bias": 0.0} for i, value in enumerate(values)]
    summary = {
        "final_return": values[-1],
        "average_return": sum(values) / len(values),
        "mean_drop": 0.0,
        "mean_lowest": 1.0,
        "mean_recovery_steps": None,
        "unrecovered_fraction": 1.0,
        "final_q_bias": 0.0,
    }
    trainer = {"summary": summary, "returns": points, "events": []}
    return _finish(runs_dir, _spec("rl-cartpole", "dqn-mlp", intervention, seed), trainer)


def _finish(runs_dir: Path, spec: RunSpec, trainer: dict[str, Any]) -> Result:
    cost = {"seconds": 8.0, "intervention_seconds": 2.0, "metric_seconds": 0.5, "updates": 60}
    result = compose_result(spec, trainer, [], [], cost, ORIGIN, 1, "0123456789ab")
    folder = _folder(runs_dir, spec)
    recorder = Recorder(folder, spec, data="0123456789ab")
    for step, value in enumerate([0.125, 0.25, 0.5]):
        recorder.scalars(step, 0, step, "training", {"accuracy": value})
    recorder.finish(60, result)
    write_result(folder, result)
    return result


def png(width: int, height: int) -> bytes:
    """A PNG file of one colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x20\x60\xa0" * width) * height
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@dataclass
class Served:
    """A running TensorBoard."""

    address: str
    runs_dir: Path
    found: list[Result]

    def get(self, path: str, **query: Any) -> Any:
        """Get a data route: parsed JSON, or bytes."""
        return self._read(f"{self.address}data/{path}?{urllib.parse.urlencode(query)}")

    def post(self, path: str, body: Any) -> Any:
        """Post JSON to a data route."""
        kind = {"Content-Type": "application/json"}
        return self._read(urllib.request.Request(f"{self.address}data/{path}", json.dumps(body).encode(), kind))

    def _read(self, request: Any) -> Any:
        with urllib.request.urlopen(request, timeout=20) as answer:
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content


@contextlib.contextmanager
def serve(runs_dir: Path, found: list[Result]) -> Iterator[Served]:
    """Serve TensorBoard on a free port; it has loaded all runs and reloads every second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs_dir), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--load_fast=false", "--reload_interval=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        served = Served(f"http://127.0.0.1:{port}/", runs_dir, found)
        expected = len({path.parent for path in runs_dir.glob("**/events.out.tfevents.*")})
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if len(served.get("runs")) == expected:
                    break
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                said = process.communicate()[1].decode(errors="replace")
                raise RuntimeError(f"TensorBoard does not show {expected} runs: {said[-500:]}")
            time.sleep(0.2)
        yield served
    finally:
        process.kill()
        process.communicate()
