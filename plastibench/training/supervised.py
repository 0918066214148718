"""Train a classifier on a task stream: epochs over each task's data, and the events at task boundaries."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torch import Tensor

from plastibench.agents.classifier import Classifier, mask_logits
from plastibench.config.errors import RunError
from plastibench.config.spec import RunOptions
from plastibench.envs.environment_check import naming_environment
from plastibench.envs.task_stream import TaskStream
from plastibench.results.accuracy import TaskRecord, comparison, fraction, mean, summary, task_values
from plastibench.training.learner import Learner
from plastibench.training.task_buffer import (
    add_task_data,
    all_samples,
    batch_at,
    draw_indices,
    make_task_buffer,
    representative,
)
from plastibench.training.trainer import Log, Trainer
from plastibench.utils import distributed
from plastibench.utils.seeding import derive, generator

EARLY_EPOCHS = 5  # evaluate each of the first epochs of a task, to measure the recovery
PROBE = 512  # samples for the plasticity metrics


@dataclass(frozen=True)
class EvalSet:
    """The evaluation data of a task.

    Attributes:
        source: The images as the task stream provides them, uint8 [M, C, H, W].
        images: The same images on the device.
        labels: Their classes. [M]
        masked_classes: True for classes that are not evaluated, bool [K], or None.
    """

    source: npt.NDArray[np.uint8]
    images: Tensor
    labels: Tensor
    masked_classes: Tensor | None

    @classmethod
    def of(cls, env: TaskStream, device: torch.device, previous: EvalSet | None) -> EvalSet:
        """The evaluation set of the current task; images are copied to the device only if they have changed."""
        source, classes = env.evaluation_images, env.evaluation_classes
        same = previous if previous is not None and previous.source is source else None
        images = same.images if same else torch.from_numpy(source).to(device)
        masked = None
        if classes is not None:
            masked = torch.ones(env.num_classes, dtype=torch.bool)
            masked[torch.from_numpy(classes)] = False
            masked = masked.to(device)
        return cls(source, images, torch.from_numpy(env.evaluation_labels).to(device), masked)


class SupervisedTrainer(Trainer):
    """Trains a classifier on the tasks of a stream, one after the other."""

    axis = "epoch"
    unit = "samples"

    def __init__(self, env: TaskStream, learner: Learner, options: RunOptions, log: Log | None = None) -> None:
        super().__init__(learner, options, log)
        assert isinstance(learner.agent, Classifier)
        self.env, self.agent = env, learner.agent
        self.device = torch.device(options.device)
        self.order = generator(options.seed, "order", self.device)
        self.draws = generator(options.seed, "representative")
        self.buffer = make_task_buffer(len(env.dataset.train_images), self.agent.batch_size, self.device, self.order)
        self.update = 0  # within the task
        self.samples = self.samples_before = 0
        self._finished = False
        self.eval_set: EvalSet
        self.evaluated = -1, torch.empty(0)  # update at which logits were last computed, and the logits
        self.records: list[TaskRecord] = []

    @property
    def env_config(self) -> Any:
        """The options of the task stream."""
        return self.env.config

    @property
    def data(self) -> str:
        """Digest of the dataset that the task stream draws from."""
        return self.env.dataset.digest

    @property
    def position(self) -> float:
        """Epochs since the start of the task."""
        return self.update / self.updates_per_epoch()

    @property
    def finished(self) -> bool:
        """Whether the last task has ended."""
        return self._finished

    def begin(self) -> None:
        """Receive the first task."""
        with naming_environment(type(self.env_config).__name__, "at the first task"):
            observation, info = self.env.reset(seed=derive(self.options.seed, "stream"))
        self._add_data(observation)
        self._renew_eval_set(None)
        self.records.append(TaskRecord(0, info["samples"], info["noise"]))
        self.agent.begin_task(self._updates())
        self._evaluate()
        self.measure("after")

    def advance(self) -> None:
        """Make one update, then run everything that is due after it."""
        self.learn()
        self.after_update()

    def after_update(self) -> None:
        """Intervene, evaluate or end the task if it is time.

        If an intervention is due at the last update of a task, the task's results are measured first.
        """
        per_epoch, ends = self.updates_per_epoch(), self.update == self._updates()
        if self.learner.due() and not ends:
            self._intervene_in_mid_task()
        if self.update % per_epoch == 0:
            self._end_epoch(self.update // per_epoch)
        if ends:
            self._end_task()

    def learn(self) -> None:
        """Make one update on the next batch."""
        batch = batch_at(self.stored, self.draw_indices())
        self.learner.learn(batch)
        self._count(len(batch))

    def draw_indices(self) -> Tensor:
        """The next batch, as indices into :attr:`stored`. [B]"""
        return draw_indices(self.buffer, self.agent.batch_size)

    def count_update(self, samples: int) -> None:
        """Count an update that was made outside :meth:`learn`, on a batch of ``samples`` samples."""
        self.learner.updates += 1
        self._count(samples)

    def _count(self, samples: int) -> None:
        self.update += 1
        self.samples += samples

    def representative(self) -> TensorDictBase:
        """Samples drawn from all data so far."""
        return representative(self.buffer, self.options.representative, self.draws)

    def probe(self) -> TensorDictBase:
        """The samples that arrived first, with their current labels."""
        return self.stored[:PROBE]

    def counts(self) -> dict[str, int]:
        """Samples consumed, for the result's ``cost``."""
        return {"samples": self.samples}

    def result(self) -> dict[str, Any]:
        """Return tasks and summary.

        If interventions happen within tasks, drops are measured at interventions instead of at task boundaries.
        """
        found = summary(self.records)
        if self.options.every:
            found.update(_drops_in_mid_task(self.reports))
        return {"summary": found, "tasks": [task_values(record) for record in self.records]}

    # Epochs and tasks --------------------------------------------------------------------------------------------

    def _end_epoch(self, epoch: int) -> None:
        last = self.env_config.epochs
        if epoch <= EARLY_EPOCHS or epoch % self.env_config.evaluate_every == 0 or epoch == last:
            self._evaluate()
        accuracy = self.records[-1].curve[-1][1] if self.records[-1].curve else None
        value = "" if accuracy is None else f"accuracy {100 * accuracy:5.1f} %"
        samples = self.samples - self.samples_before
        if self.log is not None:
            self.log.progress(self.learner.updates, samples, self._where(), value, milestone=epoch == last)

    def _end_task(self) -> None:
        record = self.records[-1]
        record.train_accuracy = self._train_accuracy()
        self.record("end", {"accuracy": record.end, "train-accuracy": record.train_accuracy})
        self.measure("end")
        if self.task + 1 == self.env_config.task_count:
            self._finished = True
            return
        if self.learner.due():
            self._intervene_in_mid_task()
        self._begin_next_task()

    def _begin_next_task(self) -> None:
        """Cross a task boundary: evaluate, receive data, intervene, renew the optimizer, evaluate again."""
        previous, (evaluated_at, logits) = self.eval_set, self.evaluated
        before = logits if evaluated_at == self.learner.updates else self._logits()
        with naming_environment(type(self.env_config).__name__, f"at the start of task {self.task + 2}"):
            observation, _, _, _, info = self.env.step(before.argmax(1).cpu().numpy())
        self._add_data(observation)
        self._renew_eval_set(previous)
        self.task, self.update = self.task + 1, 0
        if changes := self.learner.due_at_boundary():
            self.intervene()
        self.agent.begin_task(self._updates())
        after = self._logits(previous) if changes and self.learner.acts else before
        found = comparison(before, after, previous.labels)
        self.records.append(TaskRecord.after_boundary(self.task, info["samples"], info["noise"], found))
        self._record_comparison(found)
        self._evaluate(after if self.eval_set.images is previous.images else None)
        self.measure("after")

    def _intervene_in_mid_task(self) -> None:
        """Intervene. Measure the drop only if interventions are rare enough that two extra evaluations are cheap."""
        self.evaluated = -1, torch.empty(0)
        if self.options.every < self.updates_per_epoch():
            self.intervene()
            return
        before = self._logits()
        self.intervene()
        after = self._logits() if self.learner.acts else before
        found = comparison(before, after, self.eval_set.labels)
        self.reports[-1].update(found)
        self._record_comparison(found)

    # Evaluation ---------------------------------------------------------------------------------------------------

    def _add_data(self, observation: dict[str, Any]) -> None:
        add_task_data(self.buffer, observation["images"], observation["labels"])
        self.stored = all_samples(self.buffer)
        self.stored_images, self.stored_labels = self.stored["image"], self.stored["label"]
        self._per_epoch = max(1, math.ceil(len(self.stored) / self.agent.batch_size))

    def _renew_eval_set(self, previous: EvalSet | None) -> None:
        self.eval_set = EvalSet.of(self.env, self.device, previous)
        self.agent.masked_classes = self.eval_set.masked_classes

    def _logits(self, eval_set: EvalSet | None = None) -> Tensor:
        """Logits on the current task's evaluation set, or on another. [M, K]."""
        eval_set = eval_set or self.eval_set
        with self.measuring():
            return mask_logits(self._outputs(eval_set.images), eval_set.masked_classes)

    def _outputs(self, images: Tensor) -> Tensor:
        rows, _ = distributed.shard(len(images))
        with self.evaluating():
            module = self.learner.evaluated_modules()["classifier"]
            logits = self.agent.logits(images[rows], module, self._show_evaluation)
            return distributed.gather_rows(logits)[: len(images)]

    def _show_evaluation(self, done: int, total: int) -> None:
        if self.log is not None:
            value = f"evaluating {100 * done // total} %"
            self.log.progress(self.learner.updates, self.samples - self.samples_before, self._where(), value)

    def _where(self) -> str:
        epoch = self.update // self.updates_per_epoch()
        return f"task {self.task + 1}/{self.env_config.task_count}, epoch {epoch}/{self.env_config.epochs}"

    def _evaluate(self, logits: Tensor | None = None) -> None:
        """Record the accuracy on the current task, and the training averages since the last evaluation."""
        averages = self.learner.pop_averages()
        logits = self._logits() if logits is None else logits
        self.evaluated = self.learner.updates, logits
        if not bool(logits.isfinite().all()):
            raise RunError(
                f"the network's outputs are not finite in task {self.task + 1} after update {self.learner.updates}; "
                "try a smaller --agent.lr"
            )
        accuracy = fraction(logits.argmax(1) == self.eval_set.labels)
        self.records[-1].curve.append((self.position, accuracy))
        self.record("evaluation", {"accuracy": accuracy})
        self.record("training", averages)

    def _train_accuracy(self) -> float:
        with self.measuring():
            batch = self.representative()
            logits = mask_logits(self._outputs(batch["image"]), self.eval_set.masked_classes)
            return fraction(logits.argmax(1) == batch["label"])

    def _record_comparison(self, found: dict[str, float]) -> None:
        shown = {"accuracy-after": found["after"], "agreement": found["agreement"], "output-kl": found["output_kl"]}
        self.record("after", {**shown, "drop": found["before"] - found["after"]})

    # Arithmetic of updates ----------------------------------------------------------------------------------------

    def updates_per_epoch(self) -> int:
        """Updates in one pass over the data so far; the last batch may be short."""
        return self._per_epoch

    def _updates(self) -> int:
        return self.updates_per_epoch() * self.env_config.epochs

    @property
    def length(self) -> int:
        """Updates of all tasks."""
        sizes = self.env.task_sizes(derive(self.options.seed, "stream"))
        return sum(math.ceil(size / self.agent.batch_size) for size in sizes) * self.env_config.epochs

    # Saving and restoring -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State for an exact resume; the data itself comes from the task stream again."""
        return {
            **super().state_dict(),
            "position": [self.update, self.samples, self._finished],
            "records": [dataclasses.asdict(record) for record in self.records],
            "sampler": dict(self.buffer.sampler.state_dict()),
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.update, self.samples, self._finished = state["position"]
        self.samples_before = self.samples
        observation, _ = self.env.reset(seed=derive(self.options.seed, "stream"))
        self._add_data(observation)
        for _ in range(self.task):
            observation = self.env.step(self.env.evaluation_labels)[0]
            self._add_data(observation)
        self._renew_eval_set(None)
        self.records = [TaskRecord(**record) for record in state["records"]]
        for record in self.records:
            record.curve = [(epoch, accuracy) for epoch, accuracy in record.curve]
        self.buffer.sampler.load_state_dict(state["sampler"])
        self.order.set_state(state["order"])
        self.draws.set_state(state["draws"])


def _drops_in_mid_task(reports: list[dict[str, Any]]) -> dict[str, float | None]:
    measured = [report for report in reports if "before" in report]
    return {
        "mean_drop": mean([report["before"] - report["after"] for report in measured]),
        "mean_agreement": mean([report["agreement"] for report in measured]),
        "mean_output_kl": mean([report["output_kl"] for report in measured]),
    }
