"""The training loop. Whatever changes the numbers is a line in this file; observers only watch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rtdetrv4.data.batch import mix_up, prepare_batch, split_images
from rtdetrv4.distillation import DistillationStudent, Modulation, Teacher
from rtdetrv4.distillation.modulation import gradient_share
from rtdetrv4.errors import ConfigError, RTDETRError, WeightsError, first_line
from rtdetrv4.evaluation import Metrics
from rtdetrv4.losses import TermsOf, weighted_sum
from rtdetrv4.ops.collectives import mean_over_ranks
from rtdetrv4.ops.device import is_out_of_memory
from rtdetrv4.ops.networks import statistics_kept
from rtdetrv4.training.accelerator import synchronize_norms
from rtdetrv4.training.batch_sheets import BatchSheets
from rtdetrv4.training.checkpoint import BEST_FILE, LAST_FILE, load_checkpoint, save_checkpoint
from rtdetrv4.training.clock import Clock
from rtdetrv4.training.ema import ModelEma
from rtdetrv4.training.interrupt import Interrupt
from rtdetrv4.training.nonfinite import nonfinite_error, nonfinite_terms
from rtdetrv4.training.plan import Plan, Stage
from rtdetrv4.training.position import Position
from rtdetrv4.training.pseudo_labels import PseudoLabels
from rtdetrv4.training.reports import EpochReport, Observer, RunInfo, RunResult, StepReport
from rtdetrv4.training.state import RunState
from rtdetrv4.training.teacher_features import TeacherFeatures, alignment
from rtdetrv4.training.training_data import TrainingData, UnlabeledData
from rtdetrv4.types import Batch
from rtdetrv4.weights import save_weights
from rtdetrv4.weights.files import WEIGHTS_FILE

logger: logging.Logger = logging.getLogger(__name__)

SURE_AFTER = 0.15
"""Share of a run's time after which its own pace is known: the first epochs may be slow by chance."""


class StepBatches(NamedTuple):
    """This rank's batches of an optimizer step, by what counts on them."""

    labeled: Sequence[Batch]
    unlabeled: Sequence[Batch] = ()
    """L_DSI alone."""
    pseudo: Sequence[Batch] = ()
    """The criterion, with pseudo-labels."""

    @property
    def num_images(self) -> int:
        """Images of all batches."""
        return sum(len(batch.images) for batches in self for batch in batches)

    def in_parts(self, number: int) -> StepBatches:
        """The same with every batch cut into so many parts."""
        return StepBatches(*([part for batch in batches for part in split_images(batch, number)] for batches in self))


class Losses(NamedTuple):
    """The losses of a step, and what GAM needs to know of their gradients."""

    names: list[str]
    """The weighted sum is the first."""
    values: Tensor
    """(n,)."""
    share: Tensor | None
    """AIFI's share of the gradient of the labeled images, in percent; None if nobody asks."""


class Asked(NamedTuple):
    """What any rank asks for after a step."""

    stop: bool
    save: bool


@dataclass(kw_only=True)
class Trainer:
    """A training run, assembled from its parts.

    Args:
        student: the detector with its injector, on the device.
        ema: average of `student`.
        optimizer: optimizer of `student`, with `initial_lr` in every group.
        plan: stages, learning rates, lengths.
        data: training batches.
        criterion: loss terms of the labels, unweighted.
        weights: weights of these terms, by base name. Without `modulation`, also of "distill"; with several teachers,
            also of "teacher", whose terms are only to be logged: 0.
        evaluate: function from a detector to its metrics; on several ranks a collective call with the same result on
            each. None without validation data: then the last weights count as the best.
        accelerator: device, number format, ranks.
        out: run folder, which rank 0 writes to.
        teacher: None trains without distillation. On the device; neither wrapped by DDP nor saved.
        modulation: owner of λ, the weight of the distillation loss; with a teacher, that or a weight is needed.
        teach_every: use the teacher in every `teach_every`-th step, starting with the first.
        teach_epochs: number of epochs that use the teacher; None for all.
        unlabeled: images on which only L_DSI counts; every step that uses the teacher takes some.
        unlabeled_weight: weight of L_DSI on these images.
        pseudo_labels: owner of what the average finds in images without labels, and the criterion counts on.
        features: the teacher's features of the images on disk; None asks the teacher in every step.
        observers: notified on rank 0.
        sheets: pictures of the first batches of each stage, drawn on rank 0.
        pseudo_sheets: likewise of the first images with pseudo-labels.
        clip_norm: maximum gradient norm; 0 disables clipping.
        accumulate: batches per optimizer step. Losses are normalized by the boxes of each batch, then averaged.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        evaluate_start: evaluate the starting weights too, before the first step.
        patience: after this many evaluations in a row without a better score, go straight to the next phase, in which
            the learning rate falls or refinement starts; in the last phase, stop. Each phase counts anew. None for
            never.
        deadline: `time.monotonic()` at which the run should end. When only the phases after the flat learning rate
            still fit before it, the rest of the flat one is skipped; and once the learning rate is at its lowest, which
            it keeps, the run ends there. None for no limit.
        max_skipped: give up after this many steps in a row with a NaN or infinite loss or gradient.
        save_seconds: within an epoch, save the state when the last time is so long ago.
        seed: seed of everything random in the model; each rank adds its own number.
        recipe: plain values that describe how the run was made; stored in checkpoints.
        metadata: plain values that describe how to build and use the detector; stored in weights.safetensors.
    """

    student: DistillationStudent
    ema: ModelEma[DistillationStudent]
    optimizer: torch.optim.Optimizer
    plan: Plan
    data: TrainingData
    criterion: TermsOf
    weights: Mapping[str, float]
    evaluate: Callable[[nn.Module], Metrics] | None
    accelerator: Accelerator
    out: Path
    teacher: Teacher | None = None
    modulation: Modulation | None = None
    teach_every: int = 1
    teach_epochs: int | None = None
    unlabeled: UnlabeledData | None = None
    unlabeled_weight: float = 0.0
    pseudo_labels: PseudoLabels | None = None
    features: TeacherFeatures | None = None
    observers: Sequence[Observer] = ()
    sheets: BatchSheets | None = None
    pseudo_sheets: BatchSheets | None = None
    clip_norm: float = 0.1
    accumulate: int = 1
    eval_every: int = 1
    evaluate_start: bool = False
    patience: int | None = None
    deadline: float | None = None
    max_skipped: int = 10
    save_seconds: float = math.inf
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.teacher is not None and self.modulation is None and "distill" not in self.weights:
            raise ConfigError("A teacher needs a modulation, which owns the weight of the distillation loss.")
        if self.teacher is None and self.unlabeled is not None:
            raise ConfigError("Images without labels need a teacher.")
        synchronize_norms(self.student, self.accelerator)
        self.model: Any
        self.model, self.optimizer = self.accelerator.prepare(self.student, self.optimizer)
        self.state: RunState = RunState(
            self.student,
            self.ema,
            self.optimizer,
            self.modulation,
            self.plan,
            self.accelerator,
            self.recipe,
            self.metadata,
            self.pseudo_labels,
        )
        self.parameters: list[nn.Parameter] = [p for p in self.student.parameters() if p.requires_grad]
        self.num_parts: int = 1
        """Into how many parts each batch is cut, because memory ran out."""
        self._unlabeled_batches: Iterator[Batch] = iter(())
        self._unlabeled_number = -1
        """Of the batch that `_unlabeled_batches` yields next."""
        self._saved = time.monotonic()
        self._unsaved: OSError | None = None
        """Why the latest state could not be saved."""
        self._silent_observers: set[Observer] = set()
        """Those that could not write, which was said once."""
        self.interrupt: Interrupt = Interrupt()
        self.clock: Clock = Clock(self.accelerator.device)
        if not self.accelerator.is_main_process:
            self.observers, self.sheets, self.pseudo_sheets = (), None, None

    @property
    def position(self) -> Position:
        """Current epoch, step and best score."""
        return self.state.position

    @property
    def _teacher_is_active(self) -> bool:
        """Whether a teacher would be used in this epoch."""
        return self.teach_epochs is None or self.position.epoch < self.teach_epochs

    def _resume_from(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: it is of a run with another plan.
            WeightsError: it is damaged, or of another run.
        """
        state = load_checkpoint(path)
        try:
            self.state.load_state_dict(state)
        except RTDETRError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise WeightsError(
                f"{path} does not hold the state of this run ({type(error).__name__}: {first_line(error)}); start a "
                "new run."
            ) from error

    def run(self, resume: Path | None = None) -> RunResult:
        """Train to the end of the plan, from the checkpoint `resume` if given.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; last.pt was written, and the message says how to resume.
            NonFiniteError: too many steps in a row were not finite.
            ConfigError: the run ended, but its state could not be saved.
        """
        set_seed(self.seed, device_specific=True)
        if resume is not None:
            self._resume_from(resume)
        is_complete = False
        self.begun: float = time.monotonic()
        self.num_epochs: int = 0
        self.is_out_of_time: bool = False
        info = self._info(self._start_metrics())
        self._saved = time.monotonic()
        with ExitStack() as stack:
            for observer in self.observers:
                observer.run_start(info)
                stack.callback(
                    lambda each=observer: self._tell(lambda this: this.run_end(self._result(is_complete)), each)
                )
            with self.interrupt:
                while self.position.epoch < self.plan.epochs and not self.position.is_out_of_patience(self.patience):
                    self._train_epoch()
                    self._finish_epoch()
            if self._unsaved is not None:
                raise ConfigError(
                    f"The run has come to its end, but {self._how_unsaved()} Make room, and resume to repeat what is "
                    "missing."
                ) from self._unsaved
            is_complete = True
        return self._result(is_complete)

    def _train_epoch(self) -> None:
        position, stage = self.position, self.plan.stage(self.position.epoch)
        if position.step == 0 and position.epoch == self.plan.refine_from:
            self._restart_from_best()
        if self.sheets is not None and position.step == 0 and self.plan.starts_stage(position.epoch):
            self.sheets.begin(stage.name, is_first=position.epoch == 0)
        self.started: float = time.monotonic()
        self.num_images: int = 0
        if self.pseudo_labels is not None and position.step == 0:
            self._label_images(self.pseudo_labels, stage)
        batches = iter(self.data.batches(position.epoch, stage, position.step * self.accumulate))
        pseudo = iter(()) if self.pseudo_labels is None else self.pseudo_labels.batches(position.step)
        self.model.train()
        while position.step < self.plan.steps_per_epoch:
            with self.clock("data"):
                read = StepBatches(
                    list(islice(batches, self.accumulate)), self._read_unlabeled(), self._read_pseudo(pseudo)
                )
            report, asked = self._step(read, stage)
            position.step += 1
            self._tell(lambda observer, report=report: observer.step_end(report))
            if asked.stop:
                self._stop()
            if asked.save:
                self._save()
            if self.is_out_of_time:
                break
        self.seconds: float = time.monotonic() - self.started

    def _read_unlabeled(self) -> list[Batch]:
        """The images without labels for the next step; none if it does not use the teacher."""
        position = self.position
        step = position.epoch * self.plan.steps_per_epoch + position.step
        if self.unlabeled is None or not self._teacher_is_active or step % self.teach_every:
            return []
        # The number follows from the step, so that a resumed run goes on where it was.
        number = step // self.teach_every * self.unlabeled.per_step
        if number != self._unlabeled_number:
            self._unlabeled_batches = self.unlabeled.batches(number)
        self._unlabeled_number = number + self.unlabeled.per_step
        return list(islice(self._unlabeled_batches, self.unlabeled.per_step))

    def _label_images(self, pseudo: PseudoLabels, stage: Stage) -> None:
        """Label what this epoch will see of the images without labels, if it sees any."""
        if self.position.epoch not in pseudo.epochs:
            pseudo.forget()
            return
        detector, is_first = self.ema.module.detector, pseudo.epoch is None
        broadcast(list(self.ema.module.buffers()))  # batch norm statistics differ between ranks
        with self._interruptible(), self.clock("teacher"):
            if pseudo.thresholds is None:  # the weights have not been evaluated since the epochs before
                assert self.evaluate is not None, "no validation to measure thresholds in"
                self.evaluate(detector)
                pseudo.measure()
            pseudo.label(detector, self.position.epoch)
        if is_first and self.pseudo_sheets is not None:
            self.pseudo_sheets.begin(stage.name, is_first=True)
        if not (is_first and self.accelerator.is_main_process):
            return
        if pseudo.is_waiting:
            logger.warning(
                "No pseudo-labels yet: the averaged weights find too few objects in the validation images to teach "
                "with (pseudo_labels.least_f1 %g). They begin after the first validation that is good enough.",
                pseudo.least_f1,
            )
        elif not pseudo.num_steps:
            logger.warning(
                "The averaged weights find too little in the images without labels to learn from: objects in %d of %d.",
                len(pseudo.labels),
                pseudo.num_images,
            )

    def _read_pseudo(self, batches: Iterator[Batch]) -> list[Batch]:
        """The images with pseudo-labels for the next step."""
        pseudo = self.pseudo_labels
        if pseudo is None or not pseudo.takes(self.position.step):
            return []
        return list(islice(batches, pseudo.per_step))

    def _step(self, batches: StepBatches, stage: Stage) -> tuple[StepReport, Asked]:
        """One optimizer step."""
        position, accelerator, student = self.position, self.accelerator, self.student
        assert batches.labeled, "the loader has fewer batches than the plan"
        step = position.epoch * self.plan.steps_per_epoch + position.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr(step, group["initial_lr"])
        weights = dict(self.weights)
        if self.modulation is not None:
            weights["distill"] = self.modulation.weight if self._teacher_is_active else 0.0
        size = self.data.size(position.epoch, position.step, stage)
        teaches = weights.get("distill", 0.0) > 0 and step % self.teach_every == 0
        backward = partial(self._backward, size=size, stage=stage, weights=weights, teaches=teaches)
        names, values, share = self._within_memory(batches, backward)
        with self.clock("optimizer"):
            accelerator.unscale_gradients(self.optimizer)
            if self.modulation is not None and share is not None:
                self.modulation.record(share)
            norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])

        # The only point where a step waits for the device. All ranks decide on the same averages.
        is_time_to_save = time.monotonic() - self._saved > self.save_seconds
        asks = [self.interrupt.requested, is_time_to_save, self._may_not_go_on(step)]
        stacked = torch.hstack([values, norm, norm.new_tensor([float(asked) for asked in asks])])
        *means, mean_norm, mean_stop, mean_save, mean_late = mean_over_ranks(stacked).tolist()
        self.is_out_of_time = mean_late > 0
        self.clock.collect()
        losses = dict(zip(names, means, strict=True))
        is_finite = math.isfinite(losses["loss"]) and math.isfinite(mean_norm)
        if is_finite:
            with self.clock("optimizer"):
                if self.clip_norm:
                    clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
                self.optimizer.step()
                self.ema.update(student)
            position.add(losses)
        else:
            self._skip(losses, batches)

        num_images = accelerator.num_processes * batches.num_images
        self.num_images += num_images
        report = StepReport(
            epoch=position.epoch + 1,
            step=step + 1,
            losses=losses,
            grad_norm=mean_norm,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            distill_weight=None if self.modulation is None else weights["distill"],
            num_images=num_images,
            is_finite=is_finite,
        )
        return report, Asked(stop=mean_stop > 0, save=mean_save > 0)

    def _within_memory(self, batches: StepBatches, backward: Callable[[StepBatches], Losses]) -> Losses:
        """The result of `backward` on the batches of a step, or on parts of them.

        If memory runs out, the step begins anew with its batches cut into more parts: nothing has been updated yet.
        """
        while True:
            parts = batches.in_parts(self.num_parts)
            try:
                return backward(parts)
            except (RuntimeError, MemoryError) as error:
                # With several ranks, the others would wait for this one's gradients.
                is_last_resort = len(parts.labeled) == sum(len(batch.images) for batch in batches.labeled)
                if not is_out_of_memory(error) or is_last_resort or self.accelerator.num_processes > 1:
                    raise
            # Not within `except`, where the error keeps the tensors of the failed step alive.
            self.optimizer.zero_grad()
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
            self.num_parts *= 2
            logger.warning(
                "Out of memory in epoch %d, step %d; going on with each batch in %d parts. A larger run.accumulate "
                "or a smaller image size avoids this.",
                self.position.epoch + 1,
                self.position.step + 1,
                self.num_parts,
            )

    def _backward(
        self,
        batches: StepBatches,
        *,
        size: tuple[int, int],
        stage: Stage,
        weights: Mapping[str, float],
        teaches: bool,
    ) -> Losses:
        """Accumulate the gradients of a step; the losses are means over its batches."""
        position, accelerator = self.position, self.accelerator
        self.optimizer.zero_grad()
        names: list[str] = []
        values = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(batches.labeled, start=position.step * self.accumulate * self.num_parts):
            is_last = batch is batches.labeled[-1]
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                with self.clock("data"):
                    batch = prepare_batch(batch, size, accelerator.device)
                    if (ratio := self.data.mixup(position.epoch, number, stage)) is not None:
                        batch = mix_up(batch, ratio)
                if self.sheets is not None:
                    self.sheets.add(batch)
                with self.clock("forward"):
                    output, projected = self.model(batch.images, batch.targets)  # float32, whatever computed it
                with self.clock("loss"):
                    terms = self.criterion(output, batch.targets)
                if projected is not None and teaches:
                    with self.clock("teacher"):
                        terms = {**terms, **self._alignment(projected, batch, self.features)}
                loss = weighted_sum(terms, weights)
                if projected is not None and not teaches:
                    loss = loss + 0 * projected.sum()  # DDP expects a gradient of the injector
                with self.clock("backward"):
                    accelerator.backward(loss / len(batches.labeled))
            names = ["loss", *terms]
            values = values + torch.stack([loss, *terms.values()]).detach() / len(batches.labeled)
        share = None
        if self.modulation is not None and self._teacher_is_active:
            # Before the images without labels, which say nothing about the balance of teacher and labels. A share does
            # not depend on the scale of the loss.
            share = gradient_share(self.student.aifi, self.student)
        if batches.unlabeled:
            distance = self._backward_unlabeled(batches.unlabeled, size)
            names = [*names, "distill_unlabeled"]
            values = torch.hstack([values[0] + self.unlabeled_weight * distance, values[1:], distance])
        if batches.pseudo and self.pseudo_labels is not None:
            terms = self._backward_pseudo(batches.pseudo, size, self.pseudo_labels.weight)
            names = [*names, *terms]
            total = values[0] + self.pseudo_labels.weight * terms["pseudo_loss"]
            values = torch.hstack([total, values[1:], *terms.values()])
        if (batches.unlabeled or batches.pseudo) and accelerator.num_processes > 1:
            # DDP has averaged the gradients of the labeled images, which are the same on all ranks by now.
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(mean_over_ranks(parameter.grad))
        return Losses(names, values, share)

    def _backward_unlabeled(self, batches: Sequence[Batch], size: tuple[int, int]) -> Tensor:
        """Add this rank's gradients of L_DSI on images without labels, and return its mean over the batches.

        Only what computes F5 runs. That is less than DDP waits for, so its wrapper is left out. What is validated and
        deployed sees images like the labeled ones, so running statistics stay those.
        """
        accelerator = self.accelerator
        total = torch.zeros((), device=accelerator.device)
        with statistics_kept(self.student):
            for batch in batches:
                with self.clock("data"):
                    batch = prepare_batch(batch, size, accelerator.device)
                with self.clock("forward"), accelerator.autocast():
                    projected = self.student.projected_f5(batch.images)
                with self.clock("teacher"):
                    features = None if self.unlabeled is None else self.unlabeled.features
                    distance = self._alignment(projected, batch, features)["distill"]
                with self.clock("backward"):
                    accelerator.backward(self.unlabeled_weight * distance / len(batches))
                total = total + distance.detach() / len(batches)
        return total

    def _backward_pseudo(self, batches: Sequence[Batch], size: tuple[int, int], weight: float) -> dict[str, Tensor]:
        """Add this rank's gradients of the detection loss on images with pseudo-labels; return what to log.

        The projector has no part in it, and DDP would wait for its gradient, so the wrapper is left out.
        """
        accelerator = self.accelerator
        sums: dict[str, Tensor] = {}
        for batch in batches:
            with self.clock("data"):
                batch = prepare_batch(batch, size, accelerator.device)
            if self.pseudo_sheets is not None:
                self.pseudo_sheets.add(batch)
            with self.clock("forward"), accelerator.autocast():
                output = self.student.detector(batch.images, batch.targets)
            with self.clock("loss"):
                terms = self.criterion(output, batch.targets)
                loss = weighted_sum(terms, self.weights)
            with self.clock("backward"):
                accelerator.backward(weight * loss / len(batches))
            logged = {"loss": loss, **{name: terms[name] for name in self.weights if name in terms}}
            logged["boxes"] = loss.new_tensor(len(batch.targets.labels) / len(batch.targets.counts))
            for name, value in logged.items():
                sums[f"pseudo_{name}"] = sums.get(f"pseudo_{name}", 0.0) + value.detach() / len(batches)
        return sums

    def _alignment(self, projected: Tensor, batch: Batch, features: TeacherFeatures | None) -> dict[str, Tensor]:
        """L_DSI on a batch."""
        assert self.teacher is not None, "an injector without a teacher"
        return alignment(projected, batch, self.teacher, features, self.accelerator)

    def _skip(self, losses: Mapping[str, float], batches: StepBatches) -> None:
        """Skip the update of a step that was not finite; give up after too many of these in a row."""
        position, scaler = self.position, self.accelerator.scaler
        position.num_skipped += 1
        position.num_skipped_in_row += 1
        self.ema.restore_buffers(self.student)  # the forward pass has put NaN into batch norm statistics
        bad = nonfinite_terms(losses)
        if scaler is not None:
            scaler.update()
        if scaler is None or bad != ["gradient"]:  # in fp16, the scaler finds its scale by overflows
            logger.warning(
                "Epoch %d, step %d skipped: %s not finite.", position.epoch + 1, position.step + 1, ", ".join(bad)
            )
        if position.num_skipped_in_row >= self.max_skipped:
            path = self.out / "nonfinite.json"
            read = [batch for part in batches for batch in part]
            raise nonfinite_error(path, position, losses, self.student, read, self.accelerator.mixed_precision)

    def _finish_epoch(self) -> None:
        """End the epoch: validate, adapt λ, and save."""
        position, plan = self.position, self.plan
        metrics = self._validate()  # first, because it may be interrupted
        before = replace(position)
        if self.evaluate is None:
            is_best = position.judge(None, {})
        else:
            is_best = metrics is not None and position.judge(metrics.ap, metrics.to_dict())
        self.num_epochs += 1
        steps_done = position.epoch * plan.steps_per_epoch + position.step
        if metrics is not None or self.evaluate is None:  # or the last steps would be lost
            self.is_out_of_time |= self._is_true_anywhere(self._may_not_go_on(steps_done - 1))
        is_late = self._is_late()
        following = self._following_epoch(is_late)
        weight = modulated = None
        if self.modulation is not None and not self._teacher_is_active:
            weight = 0.0
        elif self.modulation is not None:
            weight = self.modulation.weight
            modulated = self.modulation.end_epoch(refinement=plan.stage(following).refinement)
        # A resumed run counts unreadable images from 0 again.
        others = [each.num_unreadable for each in (self.unlabeled, self.pseudo_labels) if each is not None]
        num_unreadable = self.data.num_unreadable + max(others, default=0)  # both read the same files
        pseudo_labels = None if self.pseudo_labels is None else self.pseudo_labels.report()
        if metrics is not None and self.pseudo_labels is not None and following in self.pseudo_labels.epochs:
            self.pseudo_labels.measure()
        position.num_unreadable = max(position.num_unreadable, num_unreadable)
        report = EpochReport(
            epoch=position.epoch + 1,
            step=steps_done,
            stage=plan.stage(position.epoch).name,
            losses=position.means(),
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            metrics={} if metrics is None else metrics.to_dict(),
            best_score=position.best_score,
            is_best=is_best,
            distill_weight=weight,
            modulation=modulated,
            num_skipped=position.num_skipped,
            num_unreadable=position.num_unreadable,
            is_late=is_late or self.is_out_of_time,
            seconds=time.monotonic() - self.started,
            images_per_second=self.num_images / self.seconds,
            shares={phase: spent / self.seconds for phase, spent in self.clock.take().items()},
            pseudo_labels=pseudo_labels,
        )
        position.begin(following)
        if is_best and not self._save_best(report):
            position.forget_best(before)
            report = report._replace(is_best=False, best_score=position.best_score)
        self._save()
        self._tell(lambda observer: observer.epoch_end(report))

    def _may_not_go_on(self, step: int) -> bool:
        """Whether the time is up after this step, and the run may end here: with all phases begun, at the lowest LR."""
        return (
            self.deadline is not None
            and time.monotonic() > self.deadline
            and self.plan.first_lowest_step <= step < self.plan.total_steps - 1
            and self.plan.next_phase(self.position.epoch + 1) is None
        )

    def _is_late(self) -> bool:
        """Whether the rest of the flat phase must be skipped, for the learning rate to have fallen by the deadline."""
        following, fall = self.position.epoch + 1, math.ceil(self.plan.flat_epoch)
        if self.deadline is None or fall <= following or self.plan.next_phase(following) != fall:
            return False
        now = time.monotonic()
        passed, left = now - self.begun, self.deadline - now
        is_late = (self.plan.epochs - fall) * passed / self.num_epochs > left and passed > SURE_AFTER * (passed + left)
        return self._is_true_anywhere(is_late)

    def _is_true_anywhere(self, value: bool) -> bool:
        """Whether it is so on any rank; a collective call."""
        return mean_over_ranks(torch.tensor(float(value), device=self.accelerator.device)).item() > 0

    def _following_epoch(self, is_late: bool) -> int:
        """The epoch that follows: the next one, or the start of the next phase if patience or time are used up."""
        position, following = self.position, self.position.epoch + 1
        if self.is_out_of_time:
            return self.plan.epochs
        phase = self.plan.next_phase(following)
        if phase is None or not (phase == following or is_late or position.is_out_of_patience(self.patience)):
            return following
        position.evaluations_without_gain = 0
        return phase

    def _start_metrics(self) -> Metrics | None:
        """Metrics of the starting weights, if they are wanted and nothing has been trained yet."""
        is_new = self.position.epoch == self.position.step == 0
        if self.evaluate is None or not self.evaluate_start or not is_new:
            return None
        if self.accelerator.is_main_process:
            logger.info("Evaluating the starting weights.")
        return self.evaluate(self.ema.module.detector)

    def _validate(self) -> Metrics | None:
        """Metrics of the EMA, or None if this epoch is not evaluated."""
        number = self.position.epoch + 1
        is_last = self.is_out_of_time or number == self.plan.epochs
        if self.evaluate is None or (number % self.eval_every and not is_last):
            return None
        broadcast(list(self.ema.module.buffers()))  # batch norm statistics differ between ranks
        with self._interruptible():
            return self.evaluate(self.ema.module.detector)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Work that changes no state before its end: the first Ctrl-C stops the run at once.

        With several ranks it waits for the end of the work, and of the step that follows.
        """
        if self.accelerator.num_processes > 1:
            yield
            return
        try:
            with self.interrupt.raising():
                yield
        except KeyboardInterrupt:
            self._stop()

    def _restart_from_best(self) -> None:
        """Begin the refinement stage from the best weights so far, which rank 0 reads and broadcasts."""
        path = self.out / BEST_FILE
        if self.position.best_epoch is not None and self.accelerator.is_main_process:
            try:
                self.ema.module.load_state_dict(load_checkpoint(path)["ema"]["module"])
            except WeightsError as error:
                logger.warning("Refinement continues from the last weights: %s", error)
        broadcast(list(self.ema.module.state_dict().values()))
        self.ema.restart(self.student, self.plan.ema_restart_decay)

    def _save(self) -> None:
        """Save the state, or say why not; a collective call."""
        state = self.state.state_dict()
        if self.accelerator.is_main_process:
            self._unsaved = self._write(LAST_FILE, lambda: save_checkpoint(state, self.out / LAST_FILE))
        self._saved = time.monotonic()

    def _save_best(self, report: EpochReport) -> bool:
        """Save the best weights and the state they come from, and return whether that worked; a collective call.

        They come before the state to resume from: that must not know of a best epoch that is not on the disk.
        """
        state, failure = self.state.state_dict(), None
        if self.accelerator.is_main_process:
            metadata = {"trained": True, **self.metadata, "epoch": report.epoch, "metrics": report.metrics}

            def write() -> None:  # the weights first: a run may go on from best.pt
                save_weights(self.ema.module.detector.state_dict(), self.out / WEIGHTS_FILE, metadata)
                save_checkpoint(state, self.out / BEST_FILE)

            failure = self._write(BEST_FILE, write)
        return not self._is_true_anywhere(failure is not None)

    def _write(self, name: str, write: Callable[[], None]) -> OSError | None:
        """Write a file; a disk that is full or gone does not end the run, which may outlast it."""
        try:
            write()
        except OSError as error:
            logger.error(
                "%s could not be written (%s); the one before it stays, and training goes on.",
                self.out / name,
                error.strerror or first_line(error),
            )
            return error
        return None

    def _how_unsaved(self) -> str:
        assert self._unsaved is not None
        return f"{self.out / LAST_FILE} could not be written ({self._unsaved.strerror or self._unsaved})."

    def _tell(self, notify: Callable[[Observer], None], *observers: Observer) -> None:
        """Notify observers. One that cannot write does not end the run."""
        for observer in observers or self.observers:
            try:
                notify(observer)
            except OSError as error:
                if observer not in self._silent_observers:
                    self._silent_observers.add(observer)
                    logger.error("%s cannot write: %s", type(observer).__name__, error.strerror or first_line(error))

    def _stop(self) -> NoReturn:
        self._save()
        stopped = (
            f"Stopped in epoch {self.position.epoch + 1} of {self.plan.epochs} after {self.position.step} of "
            f"{self.plan.steps_per_epoch} steps."
        )
        if self._unsaved is not None:
            raise KeyboardInterrupt(f"{stopped} {self._how_unsaved()} An earlier state may be there to resume from.")
        raise KeyboardInterrupt(
            f"{stopped} The training state is in {self.out / LAST_FILE}; "
            "the same command with --resume continues from there."
        )

    def _result(self, is_complete: bool) -> RunResult:
        position = self.position
        return RunResult(self.out, position.best_epoch, position.best_score, position.best_metrics, is_complete)

    def _info(self, start_metrics: Metrics | None) -> RunInfo:
        accelerator = self.accelerator
        ranks = f" × {accelerator.num_processes}" if accelerator.num_processes > 1 else ""
        return RunInfo(
            out=self.out,
            plan=self.plan,
            epoch=self.position.epoch,
            step=self.position.epoch * self.plan.steps_per_epoch + self.position.step,
            hardware=f"{accelerator.device}{ranks}, {accelerator.mixed_precision.replace('no', 'float32')}",
            num_parameters=sum(p.numel() for p in self.parameters),
            teacher=None if self.teacher is None else self.teacher.name,
            eval_every=None if self.evaluate is None else self.eval_every,
            start_metrics={} if start_metrics is None else start_metrics.to_dict(),
        )
