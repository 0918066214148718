"""Many runs: a grid of specs from one file, and a bounded pool of processes that works through them."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from plastibench.config import registry
from plastibench.config.errors import UserError, did_you_mean
from plastibench.config.options import field_name, is_list, options_of
from plastibench.config.spec import PARTS, RunOptions, RunSpec, check_run_options, read_toml, seeds_of
from plastibench.results.files import read_result_if_complete
from plastibench.utils import atomic_io, provenance
from plastibench.utils.runtime import GPU_SHARE

_TABLES = (*PARTS, "run")
_REFRESH = 0.5  # seconds between looks at the processes
_PLAIN = 60.0  # seconds between lines where output is no terminal
_LAST_WORDS = 5.0  # seconds in which what an ended process said is read; a child of its own may keep the pipe open
FAILURE = "failure.txt"


def read(path: Path) -> list[RunSpec]:
    """The specs of a sweep file.

    Tables ``[env]``, ``[agent]``, ``[intervention]`` and ``[run]`` hold what all runs share; each ``[[grid]]`` adds
    runs, with tables of the same names that win. Every option that is given a list, names and seeds included, is an
    axis of the grid; the runs are all combinations, each once.

    Raises:
        UserError: The file cannot be read, or something in it does not fit.
    """
    content = read_toml(path)
    grids = content.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise UserError(f"{path}: grid must be written [[grid]]")
    found: dict[str, RunSpec] = {}
    for grid in grids:
        for spec in _combinations(_merged(content, grid, path), path):
            found.setdefault(spec.id, spec)
    if not found:
        raise UserError(f"{path} describes no runs")
    return list(found.values())


@dataclass
class Job:
    """A run and what became of it."""

    spec: RunSpec
    state: str = "waiting"  # then running, and complete, failed or stopped
    line: str = ""  # the last that its process said
    process: subprocess.Popen[str] | None = None
    listener: threading.Thread | None = None
    lines: list[str] = field(default_factory=list)
    card: int | None = None  # the GPU that it was given, where there are several
    asked: bool = False  # to save its state and end; a second signal would kill it before it has
    begun: float = 0.0  # by the monotonic clock
    seconds: float | None = None  # that its process took, where it is complete


def work_through(
    specs: Sequence[RunSpec],
    *,
    jobs: int,
    runs_dir: Path,
    data_dir: Path,
    plugins: Sequence[str] = (),
    threads: int = 0,
    stop: Sequence[int] = (),
    quiet: bool = False,
) -> list[Job]:
    """Run all specs that have no result yet, at most ``jobs`` at a time, each as a resumable process of its own.

    A run that fails leaves its reason in ``<run>/failure.txt`` and does not stop the others.

    Args:
        specs: What to run.
        jobs: Processes at a time.
        runs_dir: Where results go.
        data_dir: Where data sets are.
        plugins: What every process imports first.
        threads: CPU threads of each; 0: one for a small network, the cores shared out for a large one.
        stop: Becomes true when the processes shall save their state and end.
        quiet: Show nothing.
    """
    pool = prepare(specs, runs_dir)
    options = ["--runs-dir", str(runs_dir), "--data-dir", str(data_dir), "--threads", str(threads)]
    shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))}
    options += [word for plugin in plugins for word in ("--plugin", plugin)]
    show = _Show(pool, jobs, quiet)
    try:
        while any(job.state in ("waiting", "running") for job in pool):
            for job in (job for job in pool if job.state == "running"):
                _look_after(job, runs_dir)
            if stop:
                for job in pool:
                    if job.state == "waiting":
                        job.state = "stopped"
            free = jobs - sum(job.state == "running" for job in pool)
            for job in [job for job in pool if job.state == "waiting"][:free]:
                _start(job, options, {**shared, **_on_gpu(job, pool, jobs)})
            if stop:
                for job in pool:
                    if job.process is not None and job.state == "running" and not job.asked:
                        job.process.terminate()
                        job.asked = True
            show.update()
            time.sleep(_REFRESH)
    finally:
        for job in pool:
            if job.process is not None and job.process.poll() is None and not job.asked:
                job.process.terminate()
        show.close()
    return pool


def prepare(specs: Sequence[RunSpec], runs_dir: Path) -> list[Job]:
    """Write the spec of every run that has none yet; ``plastibench resume`` then runs it, here or under any scheduler.

    Args:
        specs: What to run.
        runs_dir: Where results go.
    """
    pool = [Job(spec) for spec in specs]
    for job in pool:
        folder = runs_dir / job.spec.id
        if read_result_if_complete(folder) is not None:
            job.state = "complete"
        elif not (folder / "spec.toml").exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot use {folder}: {reason}; choose another place with --runs-dir") from error
            atomic_io.write_text(folder / "spec.toml", job.spec.to_toml())
    return pool


def _on_gpu(job: Job, pool: Sequence[Job], jobs: int) -> dict[str, str]:
    """What the environment says of GPUs: the one with the fewest runs, and how much of its memory is the run's."""
    if not job.spec.run.device.startswith("cuda"):
        return {}
    cards = _cards()
    found = {GPU_SHARE: str(1 / math.ceil(jobs / max(1, cards)))}
    if job.spec.run.device == "cuda" and cards > 1:
        busy = [other.card for other in pool if other.state == "running"]
        job.card = min(range(cards), key=busy.count)
        found["CUDA_VISIBLE_DEVICES"] = str(job.card)
    return found


def _start(job: Job, options: list[str], share: dict[str, str]) -> None:
    # A session of its own: Ctrl-C reaches this process alone, which then asks the others to save.
    job.process = subprocess.Popen(
        [sys.executable, "-m", "plastibench", "resume", job.spec.id, "--for-command", provenance.command(), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",  # whoever writes to stderr may do so in another encoding
        env={**os.environ, **share},
        start_new_session=True,
    )
    job.state, job.begun = "running", time.monotonic()
    job.listener = threading.Thread(target=_listen, args=(job,), daemon=True)
    job.listener.start()


def _listen(job: Job) -> None:
    assert job.process is not None and job.process.stderr is not None
    for line in job.process.stderr:
        job.line = line.strip() or job.line
        job.lines = [*job.lines[-20:], line.rstrip()]


def _look_after(job: Job, runs_dir: Path) -> None:
    assert job.process is not None and job.listener is not None
    status = job.process.poll()
    if status is None:
        return
    job.listener.join(_LAST_WORDS)
    job.state = {0: "complete", 130: "stopped"}.get(status, "stopped" if job.asked else "failed")
    if job.state == "complete":
        job.seconds = time.monotonic() - job.begun
    note = runs_dir / job.spec.id / FAILURE
    if job.state == "failed":
        if status < 0:
            job.line = f"killed by {signal.Signals(-status).name}" + (
                ", as it is where memory runs out" if status == -signal.SIGKILL else ""
            )
            job.lines.append(job.line)
        reason = "\n".join(job.lines) or f"exit status {status}"
        atomic_io.write_text(note, f"{reason}\n")
    else:
        note.unlink(missing_ok=True)


def _cards() -> int:
    """GPUs that a process of ours would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return 0  # whoever chose them chose them for every run
    import torch

    return torch.cuda.device_count()


def time_left(pool: Sequence[Job], jobs: int, now: float) -> int | None:
    """Seconds until the last run ends, if each takes as long as those completed so far did on average.

    Args:
        pool: All runs.
        jobs: Processes at a time.
        now: By the monotonic clock.
    """
    took = [job.seconds for job in pool if job.seconds is not None]
    if not took:
        return None
    usual = sum(took) / len(took)
    ends = [max(0.0, usual - (now - job.begun)) for job in pool if job.state == "running"]
    ends += [0.0] * (jobs - len(ends))
    for _ in range(sum(job.state == "waiting" for job in pool)):
        ends[ends.index(min(ends))] += usual  # the next one begins where a process ends first
    return round(max(ends))


class _Show:
    """One live table in a terminal, a line a minute elsewhere. Writes to stderr."""

    def __init__(self, pool: list[Job], jobs: int, quiet: bool) -> None:
        self._pool, self._jobs, self._quiet = pool, jobs, quiet
        self._last = time.monotonic()
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not quiet else None
        if self._live is not None:
            self._live.start()

    def update(self) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif time.monotonic() - self._last > _PLAIN:
            self._last = time.monotonic()
            print(self.summary(), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        elif not self._quiet:
            print(self.summary(), file=sys.stderr, flush=True)

    def summary(self) -> str:
        """``12 of 40 complete, 2 running, 1 failed, 0:31:00 left``."""
        count = {state: sum(job.state == state for job in self._pool) for state in ("complete", "running", "failed")}
        parts = [f"{count['complete']} of {len(self._pool)} complete"]
        parts += [f"{count[state]} {state}" for state in ("running", "failed") if count[state]]
        seconds = time_left(self._pool, self._jobs, time.monotonic())
        if seconds:
            parts.append(f"about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left")
        return ", ".join(parts)

    def _table(self) -> Table:
        table = Table(title=self.summary(), title_justify="left", box=None, show_header=False)
        rank = {"running": 0, "failed": 1, "stopped": 2, "waiting": 3, "complete": 4}
        rows = sorted(self._pool, key=lambda job: rank[job.state])
        room = max(4, Console(stderr=True).height - 4)
        for job in rows[:room]:
            table.add_row(job.state, job.spec.id, job.line if job.state in ("running", "failed") else "")
        if len(rows) > room:
            table.add_row("", f"and {len(rows) - room} more", "")
        return table


# The grid --------------------------------------------------------------------------------------------------------


def _merged(shared: Mapping[str, Any], grid: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for source in (shared, grid):
        for table, content in source.items():
            if table not in _TABLES:
                raise UserError(f"{path}: no table [{table}]{did_you_mean(table, (*_TABLES, 'grid'))}")
            if not isinstance(content, dict):
                raise UserError(f"{path}: {table} must be a table, as in [{table}]")
            if content.get("name", tables.get(table, {}).get("name")) != tables.get(table, {}).get("name"):
                tables[table] = {}  # options of another env, agent or intervention do not carry over
            tables[table] = {**tables.get(table, {}), **content}
    for part in ("env", "agent"):
        if "name" not in tables.get(part, {}):
            raise UserError(f"{path}: [{part}] has no name")
    check_run_options(tables.get("run", {}), str(path))
    return tables


def _combinations(tables: dict[str, dict[str, Any]], path: Path) -> Iterator[RunSpec]:
    tables.setdefault("intervention", {}).setdefault("name", "none")
    run = tables.pop("run", {})
    seeds = seeds_of(run.pop("seed", 0))
    axes: list[list[tuple[str, dict[str, Any]]]] = []
    for part in PARTS:
        names = tables[part]["name"] if isinstance(tables[part]["name"], list) else [tables[part]["name"]]
        values = {key: value for key, value in tables[part].items() if key != "name"}
        choices = []
        for name in names:
            if not isinstance(name, str):
                raise UserError(f"{path}: [{part}] name is {name!r}; expected text")
            cls = getattr(registry, f"{part}s")[name].load()
            choices += [(name, options) for options in _expanded(cls, values)]
        axes.append(choices)
    runs = list(_expanded(RunOptions, run))
    for (env, agent, intervention), options, seed in itertools.product(itertools.product(*axes), runs, seeds):
        yield RunSpec.make(
            env[0],
            agent[0],
            intervention[0],
            env_options=env[1],
            agent_options=agent[1],
            intervention_options=intervention[1],
            seed=seed,
            **options,
        )


def _expanded(cls: type, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All combinations of the options that were given lists; a list is one value where the option itself is a list."""

    def choices(name: str, value: Any) -> list[Any]:
        several = isinstance(value, list) and not (field_name(name) in options_of(cls) and is_list(cls, name))
        return value if several else [value]

    axes = [choices(name, value) for name, value in values.items()]
    for combination in itertools.product(*axes):
        yield dict(zip(values, combination, strict=True))
