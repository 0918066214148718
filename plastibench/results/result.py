"""The result of a run: the typed content of ``result.json``.

Fractions and accuracies are numbers between 0 and 1. A position counts epochs or environment steps.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, JsonValue, PrivateAttr, Strict, ValidationError, field_validator, model_validator

from plastibench.config import identity, renamed
from plastibench.config.errors import UserError
from plastibench.config.registry import load
from plastibench.results.tags import read_tags
from plastibench.utils.tables import printable
from plastibench.utils.wording import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = 4  # 1 has no data digest, env version and run options; 1 and 2 mix `-` and `_`; 1 to 3 have short ids
_LARGEST = 1e15  # plots cannot show larger numbers
_SHOWN_KEYS = 6  # keys shown of the path to a wrong value

Number = Annotated[float, Strict(), Field(allow_inf_nan=False, gt=-_LARGEST, lt=_LARGEST)]
AnyNumber = Annotated[float, Strict()]  # None if it is not finite; older versions wrote NaN and Infinity
Positive = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0, lt=_LARGEST)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
Count = Annotated[int, Strict(), Field(ge=0, lt=_LARGEST)]
Text = Annotated[str, Strict()]
if TYPE_CHECKING:
    Options = dict[str, Any]
else:
    Options = dict[str, JsonValue]  # refuses what is nested too deeply


class Summary(BaseModel):
    """The values that the leaderboard compares; None if a run does not have a value.

    Attributes:
        final_accuracy: Accuracy at the end of the last task.
        average_accuracy: Mean accuracy over the ends of all tasks.
        first_three_accuracy: The same over the first three tasks.
        last_three_accuracy: The same over the last three tasks.
        auc: Mean over tasks of the area under the accuracy curve, divided by the number of epochs.
        final_train_accuracy: Accuracy on the training labels at the end of the last task.
        mean_agreement: Mean fraction of predictions that an intervention did not change.
        mean_output_kl: Mean KL divergence from the outputs before an intervention to those after it, in nats.
        mean_recovery_epochs: Mean number of epochs until accuracy recovers to its value before the task boundary.
        final_return: Mean of the last evaluations of the last task, at most three; without the one at its start.
        average_return: Mean return over all evaluations.
        average_task_return: Mean over tasks of the return at the end of each.
        normalized_return: Final return, scaled so that a random policy has 0 and an optimal policy 1.
        mean_lowest: Mean of the lowest return between an intervention and the next one.
        mean_recovery_steps: Mean number of steps until the return recovers to its value before an intervention.
        final_q_bias: Mean bias of the critic over the same evaluations.
        mean_drop: Mean accuracy or return lost right at an intervention.
        unrecovered_fraction: Fraction of interventions after which the previous value is never reached again.
    """

    final_accuracy: Number | None = None
    average_accuracy: Number | None = None
    first_three_accuracy: Number | None = None
    last_three_accuracy: Number | None = None
    auc: Number | None = None
    final_train_accuracy: Number | None = None
    mean_agreement: Number | None = None
    mean_output_kl: Number | None = None
    mean_recovery_epochs: Number | None = None
    final_return: Number | None = None
    average_return: Number | None = None
    average_task_return: Number | None = None
    normalized_return: Number | None = None
    mean_lowest: Number | None = None
    mean_recovery_steps: Number | None = None
    final_q_bias: Number | None = None
    mean_drop: Number | None = None
    unrecovered_fraction: Number | None = None


class Task(BaseModel):
    """The evaluations of one task; see :class:`~plastibench.results.accuracy.TaskRecord` for the measured values.

    Attributes:
        end: Accuracy at the end of the task.
        drop: ``before - after``; None for the first task.
        recovery: Epochs until the accuracy before the task boundary is reached again; None if it never is.
        auc: Area under the accuracy curve, divided by the number of epochs.
    """

    task: Count
    samples: Annotated[Count, Field(ge=1)]
    noise: Fraction
    before: Fraction | None
    after: Fraction | None
    agreement: Fraction | None = None
    output_kl: Number | None = None
    curve: Annotated[list[tuple[Positive, Fraction]], Field(min_length=1)]
    train_accuracy: Fraction | None = None
    end: Fraction
    drop: Annotated[Number, Field(ge=-1, le=1)] | None
    recovery: Positive | None
    auc: Number


class ReturnPoint(BaseModel):
    """An evaluation of an RL agent; see :class:`plastibench.results.returns.Evaluation`."""

    task: Count
    steps: Count
    value: Number
    bias: AnyNumber | None


class Event(BaseModel):
    """An intervention on an RL agent that was evaluated; see :class:`plastibench.results.returns.Event`.

    Attributes:
        drop: ``before - after``.
        lowest: Lowest return between this intervention and the next one.
        recovery: Steps until the return before the intervention is reached again; None if it never is.
    """

    task: Count
    steps: Count
    update: Count
    before: Number
    after: Number
    drop: Number | None = None
    lowest: Number | None = None
    recovery: Count | None = None


class InterventionRecord(BaseModel):
    """What an intervention did to one network.

    Attributes:
        task: Number of the task, from 0.
        update: Updates before the intervention.
        role: Role of the network, such as ``critic``.
        seconds: Wall-clock time.
        revived_fraction: Fraction of units that were reinitialized.
        parameters: Number of scalars that were changed.
        mean_residual: Mean residual of the refitted modules; None if none was refitted.
        largest_norm_ratio: Largest growth of a refitted weight's norm.
        position: Epochs since the start of the task, or agent steps; None if an old file does not have it.
        before: Accuracy right before the intervention. This and the next three are recorded only for interventions
            within a task.
        after: Accuracy right after it.
        agreement: Fraction of predictions that did not change.
        output_kl: KL divergence from the outputs before to those after, in nats.
    """

    task: Count
    update: Count
    role: Text
    seconds: Positive
    revived_fraction: Fraction | None
    parameters: Count
    mean_residual: AnyNumber | None = None
    largest_norm_ratio: AnyNumber | None = None
    position: Positive | None = None
    before: Fraction | None = None
    after: Fraction | None = None
    agreement: Fraction | None = None
    output_kl: AnyNumber | None = None


class PlasticityRecord(BaseModel):
    """Plasticity metrics of one network at one moment.

    Attributes:
        task: Number of the task, from 0.
        phase: ``after`` the start of a task, at its ``end``, or at an ``evaluation`` (RL; ``training`` in old files).
        position: Epochs since the start of the task, or environment steps since the start of the run; None if an old
            file does not have it.
        role: Role of the network, such as ``critic``.
        metrics: Metric name to value; names are in :data:`plastibench.metrics.METRICS`.
    """

    task: Count
    phase: Text
    position: Number | None = None
    role: Text
    metrics: dict[Text, AnyNumber | None]


class Cost(BaseModel):
    """Time, updates, data and memory that a run used.

    Attributes:
        seconds: Wall-clock time of the run.
        intervention_seconds: Wall-clock time of interventions.
        metric_seconds: Wall-clock time of plasticity metrics.
        cpu_seconds: CPU time of training and interventions, summed over threads and over all sessions of an interrupted
            run. It excludes evaluations, plasticity metrics and checkpoints, which are the same for every method. If
            several runs share a process at the same time, it includes the other runs. None in old files.
        intervention_cpu_seconds: CPU time of interventions.
        intervention_gpu_seconds: GPU time of interventions; None without a GPU.
        evaluation_seconds: Wall-clock time of evaluations; None in results of older versions.
        updates: Updates of the agent.
        samples: Training samples, counted once per use (supervised runs).
        agent_steps: Steps of the agent (RL runs).
        environment_steps: Frames of the environment (RL runs).
        memory_bytes: Size of the replay buffer (RL runs).
        network_bytes: Size of all parameters and buffers.
        intervention_bytes: Size of the state that interventions keep between updates.
    """

    seconds: Positive
    intervention_seconds: Positive
    metric_seconds: Positive = 0.0
    cpu_seconds: Positive | None = None
    evaluation_seconds: Positive | None = None
    intervention_cpu_seconds: Positive | None = None
    intervention_gpu_seconds: Positive | None = None
    updates: Count
    samples: Count | None = None
    agent_steps: Count | None = None
    environment_steps: Count | None = None
    memory_bytes: Count | None = None
    network_bytes: Count | None = None
    intervention_bytes: Count | None = None

    @property
    def intervention_fraction(self) -> float:
        """Fraction of the run's CPU time that interventions took.

        On a GPU and in old files, it is the fraction of wall-clock time.
        """
        if self.cpu_seconds and self.intervention_cpu_seconds is not None and self.intervention_gpu_seconds is None:
            return min(1.0, self.intervention_cpu_seconds / self.cpu_seconds)
        return self.intervention_seconds / max(self.seconds, 1e-9)


class Hardware(BaseModel):
    """Processor, its cores, and the device that a run used."""

    processor: Text
    cores: Count | None = None
    device: Text


class Session(BaseModel):
    """A process that ran part of a run: its code, torch version, CPU threads and hardware."""

    commit: Text | None
    version: Text
    torch: Text
    threads: Annotated[Count, Field(ge=1)]
    hardware: Hardware


class Origin(BaseModel):
    """Where a result comes from: command, code, versions of packages, hardware, threads, precision.

    Attributes:
        finished: When the run ended, in UTC; None in results of 0.1.0.
        sessions: If the run was interrupted, all processes that ran part of it, in order. The other attributes describe
            the last process.
        stacked: Number of runs that were updated together, this one included; see :mod:`plastibench.nn.stack`.
    """

    command: Text
    commit: Text | None
    versions: dict[Text, Text]
    hardware: Hardware
    threads: Annotated[Count, Field(ge=1)]
    precision: Text
    finished: Text | None = None
    sessions: list[Session] = []
    stacked: Annotated[Count, Field(ge=1)] = 1

    @field_validator("versions")
    @classmethod
    def _has_versions(cls, versions: dict[str, str]) -> dict[str, str]:
        for package in ("plastibench", "torch"):
            if package not in versions:
                raise ValueError(f"{package} is missing")
        return versions


class PartOptions(BaseModel):
    """Option name to value for each part of a run."""

    env: Options
    agent: Options
    intervention: Options


class Result(BaseModel):
    """The result of a run. It has either ``tasks`` (supervised) or ``returns`` and ``events`` (RL).

    Attributes:
        id: Name of the run, and of its folder.
        group: The same for all seeds.
        env: Name of the environment or task stream.
        agent: Name of the agent.
        intervention: Name of the intervention.
        seed: Seed of all random generators.
        options: All options of env, agent and intervention.
        changed: The options that differ from the defaults of these names.
        every: Updates between interventions; 0: at task boundaries.
        schedule: The other options of the run that decide when and on which networks interventions act.
        run: All options of the run; empty if an old file does not have them.
        env_version: Version of the environment or task stream. Only results of the same version are comparable.
        agent_version: Version of the agent; likewise.
        code: Digest of the code of plugins, and versions other than 1, by part; see
            :func:`plastibench.config.code_digest.code_of`.
        data_digest: Digest of the dataset; None if there is none or it is unknown.
        summary: The values that the leaderboard compares.
        tasks: Evaluations by task.
        returns: Evaluations of an RL agent.
        events: Interventions on an RL agent.
        interventions: What each intervention did.
        plasticity: Plasticity metrics over the run.
        cost: Time, updates, data and memory.
        origin: Command, code, versions, hardware.
        not_finite: Measured values that were NaN or infinite and are None in the result: path to value.
        warnings: Why the result may be misleading, for example because interventions changed nothing.
    """

    id: Text
    group: Text
    env: Text
    agent: Text
    intervention: Text
    seed: Count
    options: PartOptions
    changed: PartOptions
    every: Count
    schedule: Options = {}
    run: Options = {}
    env_version: Annotated[int, Strict(), Field(ge=1, lt=_LARGEST)] = 1
    agent_version: Annotated[int, Strict(), Field(ge=1, lt=_LARGEST)] = 1
    code: dict[Text, Text] = {}
    data_digest: Text | None = None
    summary: Summary
    tasks: Annotated[list[Task], Field(min_length=1)] = []
    returns: Annotated[list[ReturnPoint], Field(min_length=1)] = []
    events: list[Event] = []
    interventions: list[InterventionRecord]
    plasticity: list[PlasticityRecord]
    cost: Cost
    origin: Origin
    not_finite: dict[Text, Text] = {}
    warnings: list[Text] = []
    _folder: Path | None = PrivateAttr(None)
    _reused: bool = PrivateAttr(False)

    @model_validator(mode="after")
    def _is_supervised_or_rl(self) -> Result:
        if bool(self.tasks) == bool(self.returns):
            raise ValueError("expected either tasks or returns")
        name = "final_return" if self.returns else "final_accuracy"
        if getattr(self.summary, name) is None:
            raise ValueError(f"summary.{name} is missing")
        if self.returns and "events" not in self.model_fields_set:
            raise ValueError("events is missing")
        return self

    @classmethod
    def from_dict(cls, content: Any) -> Result:
        """Make a result from the content of a ``result.json`` of any schema.

        Raises:
            UserError: The content is not a result. The message, such as ``cost.seconds is missing``, does not name the
                file.
        """
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema is None:
            raise UserError("not a result of plastibench: it has no schema")
        if schema not in range(1, SCHEMA + 1):
            newer = isinstance(schema, int) and schema > SCHEMA
            hint = "; update plastibench to read it" if newer else f" (expected 1 to {SCHEMA})"
            raise UserError(f"unknown schema {reprlib.repr(schema)}{hint}")
        try:
            found = cls.model_validate(_upgraded(content, schema))
        except ValidationError as error:
            raise UserError(_mistake(error)) from error
        return found if schema == SCHEMA else _identified(found)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``result.json``; fields that were not set are omitted."""
        return {"schema": SCHEMA, **self.model_dump(exclude_unset=True)}

    def __repr__(self) -> str:
        name = "final_return" if self.is_rl else "final_accuracy"
        updates = plural(self.cost.updates, "update")
        return f"Result({self.id}, {name}={self.final:.4g}, {updates}, {self.cost.seconds:.1f} s)"

    __str__ = __repr__

    @property
    def folder(self) -> Path | None:
        """The folder that the result was read from or written to."""
        return self._folder

    @property
    def tags(self) -> frozenset[str]:
        """Tags of the run, from its folder (``plastibench runs tag``)."""
        return read_tags(self._folder)

    @property
    def reused(self) -> bool:
        """Whether the run was already complete, so that the call that returned this result did not repeat it."""
        return self._reused

    @property
    def content(self) -> str:
        """Content that identifies the run; equal to :attr:`plastibench.RunSpec.content` of its spec."""
        return identity.content(self._parts, self.run, self.code)

    def legacy_ids(self) -> tuple[str, ...]:
        """The ids that earlier versions gave to this run."""
        return identity.legacy_ids(self._parts, self.run)

    @property
    def _parts(self) -> identity.Parts:
        return [(getattr(self, part), getattr(self.options, part)) for part in identity.PARTS]

    @property
    def is_rl(self) -> bool:
        """Whether an RL agent was trained, so that the result has returns instead of accuracies."""
        return self.summary.final_return is not None

    @property
    def final(self) -> float:
        """Accuracy at the end of the last task, or final return."""
        found = self.summary.final_return if self.is_rl else self.summary.final_accuracy
        assert found is not None
        return found

    def curve(self) -> tuple[list[float], list[float]]:
        """All evaluations in order.

        Returns:
            Positions since the start of the run (epochs or environment steps), and accuracies or returns. At a task
            boundary there are two values at the same position: of the old task and of the new one.
        """
        points = [(position, value) for _, position, value in self.evaluations()]
        return [position for position, _ in points], [value for _, value in points]

    def evaluations(self) -> list[tuple[int, float, float]]:
        """All evaluations in order: number of the task, position since the start of the run, accuracy or return."""
        if self.is_rl:
            return [(point.task, point.steps, point.value) for point in self.returns]
        starts = itertools.accumulate((task.curve[-1][0] for task in self.tasks), initial=0.0)
        return [
            (task.task, start + epoch, accuracy)
            for task, start in zip(self.tasks, starts, strict=False)
            for epoch, accuracy in task.curve
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot accuracy or return over the run, with the drops at interventions and a line at each task boundary.

        Args:
            ax: Axes to draw into; by default those of a new figure.

        Returns:
            The axes.

        Raises:
            UserError: matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise UserError("plots need matplotlib: pip install 'plastibench[figures]'") from error
        if ax is None:
            _, ax = pyplot.subplots()
        load("plastibench.plotting.timeline:plot_run")(ax, self)
        return ax


def _upgraded(content: dict[str, Any], schema: int) -> dict[str, Any]:
    """Convert the content of a file to the current schema. Types are validated later, by the model."""
    if schema == SCHEMA:
        return content
    if schema == 3:
        return {**content, "summary": _renamed(content.get("summary"))}
    new = _renamed(content)
    for key in ("summary", "cost"):
        new[key] = _renamed(new.get(key))
    for key, convert in (("interventions", _renamed), ("plasticity", _with_metrics)):
        if isinstance(new.get(key), list):
            new[key] = [convert(row) for row in new[key]]
    scenario = new.pop("scenario", {})
    if not isinstance(scenario, dict):
        raise UserError(f"scenario is {reprlib.repr(scenario)}")
    return {**new, "env_version": scenario.get("version", 1), "data_digest": scenario.get("data")}


def _identified(result: Result) -> Result:
    """Convert a result of schema 1 to 3 to the current option names, id and group.

    The id is replaced only if it matches the stored options. Schema 1 does not store the options of the run; options
    that match the id are added.
    """
    guesses = [result.run] if result.run else [_default_run(result, device) for device in ("cpu", "cuda")]
    fitting = [run for run in guesses if _has_id_of(result, run)]
    options, changed = {}, {}
    for part, (name, values) in zip(identity.PARTS, result._parts, strict=True):
        renames = identity.renames(part, name)
        options[part], changed[part] = renames.apply(values), renames.apply(getattr(result.changed, part))
    code = {} if result.env_version == 1 else {"env": f"version {result.env_version}"}
    update: dict[str, Any] = {"options": PartOptions(**options), "changed": PartOptions(**changed), "code": code}
    for run in fitting[:1]:
        if identity.has_idle_schedule(result.intervention, options["agent"], run):
            run = {name: value for name, value in {**run, **identity.IDLE}.items() if value is not None}
            update |= {"every": 0, "schedule": {}}
        known = (
            [(name, options[part]) for part, (name, _) in zip(identity.PARTS, result._parts, strict=True)],
            run,
            code,
        )
        update |= {"run": run, "id": identity.run_id(*known), "group": identity.group_id(*known)}
    return result.model_copy(update=update)


def _has_id_of(result: Result, run: Mapping[str, Any]) -> bool:
    return "device" in run and "seed" in run and result.id == identity.id_before(result._parts, run)


def _default_run(result: Result, device: str) -> dict[str, Any]:
    shared = {"representative": 2048, "device": device, "deterministic": False}
    return {"seed": result.seed, "every": result.every, **shared, **result.schedule}


def _renamed(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    spelled = {key.replace("-", "_"): value for key, value in values.items()}
    return {renamed.RESULT_KEYS.get(key, key): value for key, value in spelled.items()}


def _with_metrics(row: Any) -> Any:
    """Collect the metrics of a plasticity record; schemas 1 and 2 mix them with its other keys."""
    if not isinstance(row, dict):
        return row
    others = {key: row[key] for key in ("task", "phase", "place", "role") if key in row}
    metrics = {renamed.METRICS.get(key, key): value for key, value in row.items() if key not in others}
    return {**_renamed(others), "metrics": metrics}


def _mistake(error: ValidationError) -> str:
    """The first error in one line: ``cost.seconds is missing``, ``tasks[1].end is 'high'; it should be a number``."""
    first = error.errors(include_url=False)[0]
    keys = first["loc"][:_SHOWN_KEYS]
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    said = first["msg"]
    if first["type"] == "value_error":
        said = said.removeprefix("Value error, ")
        return printable(f"{where}: {said}" if where else said)
    if first["type"] == "missing" or first["input"] is None:
        return printable(f"{where} is missing")
    return printable(f"{where} is {reprlib.repr(first['input'])}; {said.replace('Input should', 'it should')}")
