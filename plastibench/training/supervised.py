"""The course of a run on a task stream: epochs over the data so far, a switch between tasks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.agents.classifier import without
from plastibench.config.errors import RunError
from plastibench.results.accuracy import TaskRecord, comparison, mean, share, summary, task_figures
from plastibench.training.task_buffer import add_task_data, all_samples, make_task_buffer, representative
from plastibench.utils.seeding import derive, generator

if TYPE_CHECKING:
    from plastibench.agents.classifier import Classifier
    from plastibench.envs.stream import TaskStream
    from plastibench.training.runner import Run

EARLY_EPOCHS = 5  # epochs after a switch that are all evaluated, to see the recovery
PROBE = 512  # samples for the plasticity metrics


@dataclass(frozen=True)
class EvalSet:
    """What the network is asked during a task.

    Attributes:
        shown: The images as the stream has them, uint8 [M, C, H, W].
        images: The same on the device.
        answers: Their right classes. [M]
        closed: True for classes that are not asked for, bool [K], or none.
    """

    shown: npt.NDArray[np.uint8]
    images: Tensor
    answers: Tensor
    closed: Tensor | None

    @classmethod
    def of(cls, env: TaskStream, device: torch.device, before: EvalSet | None) -> EvalSet:
        """Those of the current task; images are moved only where they differ from those of the questions before."""
        shown, classes = env.evaluation_images, env.evaluation_classes
        kept = before if before is not None and before.shown is shown else None
        images = kept.images if kept else torch.from_numpy(shown).to(device)
        closed = None
        if classes is not None:
            closed = torch.ones(env.classes, dtype=torch.bool)
            closed[torch.from_numpy(classes)] = False
            closed = closed.to(device)
        return cls(shown, images, torch.from_numpy(env.evaluation_labels).to(device), closed)


class SupervisedTrainer:
    """A classifier learns the tasks of a stream, one after the other."""

    axis = "epoch"
    unit = "samples"

    def __init__(self, run: Run, env: TaskStream, agent: Classifier) -> None:
        self.run, self.env, self.agent, self.scenario = run, env, agent, env.scenario
        seed, self.device = run.spec.run.seed, torch.device(run.spec.run.device)
        self.order = generator(seed, "order", self.device)
        self.draws = generator(seed, "representative")
        self.replay = make_task_buffer(len(env.dataset.train_images), agent.batch_size, self.device, self.order)
        self.task = 0
        self.update = 0  # within the task
        self.samples = self.samples_before = 0
        self.finished = False
        self.questions: EvalSet
        self.evaluated = -1, torch.empty(0)  # at which update the outputs were last computed, and these
        self.records: list[TaskRecord] = []

    @property
    def place(self) -> float:
        """Epochs since the start of the task."""
        return self.update / self.updates_per_epoch()

    def begin(self) -> None:
        """Receive the first task."""
        observation, info = self.env.reset(seed=derive(self.run.spec.run.seed, "stream"))
        add_task_data(self.replay, observation["images"], observation["labels"])
        self._ask_anew(None)
        self.records.append(TaskRecord(0, info["samples"], info["noise"]))
        self.agent.begin_task(self._updates())
        self._evaluate()
        self.run.measure("after")

    def advance(self) -> None:
        """One update, and what falls due after it: an intervention, an evaluation, the end of the task.

        What a task has come to is measured before an intervention that falls due at its very end.
        """
        self.learn()
        per_epoch, ends = self.updates_per_epoch(), self.update == self._updates()
        if self.run.due() and not ends:
            self._intervene_in_mid_task()
        if self.update % per_epoch == 0:
            self._end_epoch(self.update // per_epoch)
        if ends:
            self._end_task()

    def learn(self) -> None:
        """One update on the next batch."""
        batch = self.replay.sample()
        self.run.learn(batch)
        self.update += 1
        self.samples += len(batch)

    def representative(self) -> TensorDictBase:
        """Samples drawn from all data so far."""
        return representative(self.replay, self.run.spec.run.representative, self.draws)

    def probe(self) -> TensorDictBase:
        """The samples that came first, with their present labels."""
        return all_samples(self.replay)[:PROBE]

    @property
    def data(self) -> str:
        """Stands for the data that the stream draws from."""
        return self.env.dataset.digest

    def counts(self) -> dict[str, int]:
        """What was consumed, for the result's ``cost``."""
        return {"samples": self.samples}

    def result(self) -> dict[str, Any]:
        """Tasks and summary. Where interventions act in mid-task, drops are counted there and not at the switches."""
        found = summary(self.records)
        if self.run.spec.run.every:
            found.update(_drops_in_mid_task(self.run.reports))
        return {"summary": found, "tasks": [task_figures(record) for record in self.records]}

    def close(self) -> None:
        """Nothing is held open."""

    # Epochs and tasks ---------------------------------------------------------------------------------------------

    def _end_epoch(self, epoch: int) -> None:
        last = self.scenario.epochs
        if epoch <= EARLY_EPOCHS or epoch % self.scenario.evaluate_every == 0 or epoch == last:
            self._evaluate()
        place = f"task {self.task + 1}/{self.scenario.task_count}, epoch {epoch}/{last}"
        accuracy = self.records[-1].curve[-1][1] if self.records[-1].curve else None
        figure = "" if accuracy is None else f"accuracy {100 * accuracy:5.1f} %"
        samples = self.samples - self.samples_before
        self.run.progress.show(self.run.total, samples, place, figure, milestone=epoch == last)

    def _end_task(self) -> None:
        record = self.records[-1]
        record.train_accuracy = self._train_accuracy()
        self.run.record("end", {"accuracy": record.end, "train-accuracy": record.train_accuracy})
        self.run.measure("end")
        if self.task + 1 == self.scenario.task_count:
            self.finished = True
            return
        if self.run.due():
            self._intervene_in_mid_task()
        self._switch()

    def _switch(self) -> None:
        """Begin the next task: evaluate, receive data, intervene, renew the optimizer, evaluate."""
        asked, (evaluated_at, logits) = self.questions, self.evaluated
        before = logits if evaluated_at == self.run.total else self._logits()
        observation, _, _, _, info = self.env.step(before.argmax(1).cpu().numpy())
        add_task_data(self.replay, observation["images"], observation["labels"])
        self._ask_anew(asked)
        self.task, self.update = self.task + 1, 0
        if self.run.due_at_switch():
            self.run.intervene()
        self.agent.begin_task(self._updates())
        after = self._logits(asked)
        found = comparison(before, after, asked.answers)
        self.records.append(TaskRecord.after_switch(self.task, info["samples"], info["noise"], found))
        self._record_comparison(found)
        self._evaluate(after if self.questions.images is asked.images else None)
        self.run.measure("after")

    def _intervene_in_mid_task(self) -> None:
        """Intervene, and see what it cost where two evaluations more are a small part of the interval."""
        self.evaluated = -1, torch.empty(0)
        if self.run.spec.run.every < self.updates_per_epoch():
            self.run.intervene()
            return
        before = self._logits()
        self.run.intervene()
        found = comparison(before, self._logits(), self.questions.answers)
        self.run.reports[-1].update(found)
        self._record_comparison(found)

    # Evaluation ---------------------------------------------------------------------------------------------------

    def _ask_anew(self, before: EvalSet | None) -> None:
        """Take the current task's questions from the stream."""
        self.questions = EvalSet.of(self.env, self.device, before)
        self.agent.closed = self.questions.closed

    def _logits(self, asked: EvalSet | None = None) -> Tensor:
        """Outputs for the questions of the current task, or for others."""
        asked = asked or self.questions
        return without(self._outputs(asked.images), asked.closed)

    def _outputs(self, images: Tensor) -> Tensor:
        network, intervention = self.run.networks[0], self.run.interventions[0]
        return self.agent.logits(images, intervention.evaluated(network))

    def _evaluate(self, logits: Tensor | None = None) -> None:
        """Accuracy on the current task's own answers, and the averages of training since the last time."""
        averages = self.run.averages()
        logits = self._logits() if logits is None else logits
        self.evaluated = self.run.total, logits
        if not bool(logits.isfinite().all()):
            raise RunError(
                f"{self.run.spec.id}: the network returned values that are not finite in task {self.task + 1}, after "
                f"update {self.run.total}; try a smaller --agent.lr"
            )
        accuracy = share(logits.argmax(1) == self.questions.answers)
        self.records[-1].curve.append((self.place, accuracy))
        self.run.record("training", {"accuracy": accuracy, **averages})

    def _train_accuracy(self) -> float:
        batch = self.representative()
        logits = without(self._outputs(batch["image"]), self.questions.closed)
        return share(logits.argmax(1) == batch["label"])

    def _record_comparison(self, found: dict[str, float]) -> None:
        shown = {"accuracy-after": found["after"], "agreement": found["agreement"], "output-kl": found["output_kl"]}
        self.run.record("after", {**shown, "drop": found["before"] - found["after"]})

    # Arithmetic of updates ----------------------------------------------------------------------------------------

    def updates_per_epoch(self) -> int:
        """Updates in one pass over the data so far; the last batch may be short."""
        return max(1, math.ceil(len(self.replay) / self.agent.batch_size))

    def _updates(self) -> int:
        return self.updates_per_epoch() * self.scenario.epochs

    @property
    def length(self) -> int:
        """Updates of all tasks."""
        sizes = self.env.sizes(derive(self.run.spec.run.seed, "stream"))
        return sum(math.ceil(size / self.agent.batch_size) for size in sizes) * self.scenario.epochs

    # Saving and restoring -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs; the data itself comes from the stream again."""
        return {
            "position": [self.task, self.update, self.samples, self.finished],
            "records": [dataclasses.asdict(record) for record in self.records],
            "sampler": dict(self.replay.sampler.state_dict()),
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.task, self.update, self.samples, self.finished = state["position"]
        self.samples_before = self.samples
        observation, _ = self.env.reset(seed=derive(self.run.spec.run.seed, "stream"))
        add_task_data(self.replay, observation["images"], observation["labels"])
        for _ in range(self.task):
            observation = self.env.step(self.env.evaluation_labels)[0]
            add_task_data(self.replay, observation["images"], observation["labels"])
        self._ask_anew(None)
        self.records = [TaskRecord(**record) for record in state["records"]]
        for record in self.records:
            record.curve = [(epoch, accuracy) for epoch, accuracy in record.curve]
        self.replay.sampler.load_state_dict(state["sampler"])
        self.order.set_state(state["order"])
        self.draws.set_state(state["draws"])


def _drops_in_mid_task(reports: list[dict[str, Any]]) -> dict[str, float | None]:
    acted = [report for report in reports if "before" in report]
    return {
        "mean_drop": mean([report["before"] - report["after"] for report in acted]),
        "mean_agreement": mean([report["agreement"] for report in acted]),
        "mean_output_kl": mean([report["output_kl"] for report in acted]),
    }
