"""How fast a run goes, measured before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from rtdetrv4.data.batch import pack, prepare_batch
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.distillation import DistillationStudent, Teacher
from rtdetrv4.losses import TermsOf, weighted_sum
from rtdetrv4.training.optimizer import adamw
from rtdetrv4.training.teacher_features import TeacherFeatures, alignment
from rtdetrv4.training.training_data import UnlabeledData
from rtdetrv4.types import Batch

NUM_STEPS, LONGEST = 4, 10.0
"""Steps to measure after a first one, and the seconds after which no further one begins."""
EPOCH_OVERHEAD = 1.0
"""Seconds for checkpoints and logs of an epoch."""
FINISH = 15.0
"""Seconds for the last report and its pictures."""
SECONDS_TO_MATCH = 0.002
"""Seconds to match an image's detections with its boxes."""


class Pace(NamedTuple):
    """Seconds that parts of a run take."""

    step: float
    """An optimizer step, with loading its images."""
    evaluation: float
    """All validation images; 0 without any."""

    def duration(self, epochs: int, steps_per_epoch: int, evaluate_every: int) -> float:
        """Seconds of a run, with a last evaluation and the report."""
        num_evaluations = math.ceil(epochs / evaluate_every) + 1
        return epochs * (steps_per_epoch * self.step + EPOCH_OVERHEAD) + num_evaluations * self.evaluation + FINISH


def most_epochs(
    pace: Pace, seconds: float, steps_per_epoch: int, evaluate_every: Callable[[int], int], most: int
) -> int:
    """The largest number of epochs, from 1 to `most`, with which a run takes at most that many seconds; else 1.

    Args:
        pace: of the run.
        seconds: available for all of it.
        steps_per_epoch: optimizer steps.
        evaluate_every: from a number of epochs to the epochs between two evaluations.
        most: the largest number to consider.
    """
    fits = (
        epochs
        for epochs in range(most, 1, -1)
        if pace.duration(epochs, steps_per_epoch, evaluate_every(epochs)) <= seconds
    )
    return next(fits, 1)


def measure_pace(
    student: DistillationStudent,
    criterion: TermsOf,
    weights: Mapping[str, float],
    samples: DetectionDataset,
    *,
    batch: int,
    accumulate: int,
    workers: int,
    num_val: int,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
    unlabeled: UnlabeledData | None = None,
    features: TeacherFeatures | None = None,
    pseudo_share: float = 0.0,
) -> Pace:
    """Time a few steps on real images; a collective call, which returns the slowest rank's times.

    The student and the state of random number generators are left unchanged.

    Args:
        student: on the device.
        criterion: the run's criterion.
        weights: weights of its terms.
        samples: training images, with the strongest augmentation of the run.
        batch: images of this rank in a forward pass.
        accumulate: forward passes per optimizer step.
        workers: processes that load images.
        num_val: validation images of this rank.
        accelerator: device and number format.
        teacher: teaches in every step if there is one.
        unlabeled: images without labels, for `teacher`.
        features: the teacher's features of `samples` on disk.
        pseudo_share: images with pseudo-labels for each with labels, on average over the run. They take as long as
            these, and before that are loaded and labeled.
    """
    device = accelerator.device
    loaded, load = _load(samples, batch)
    prepared = prepare_batch(loaded, samples.image_size, device)
    others, load_others = None, 0.0
    if unlabeled is not None and teacher is not None:
        some, load_others = _load(unlabeled.loader.dataset, unlabeled.loader.batch_size or 1)
        others = prepare_batch(some, samples.image_size, device)

    def step() -> None:
        with accelerator.autocast():
            output, projected = student(prepared.images, prepared.targets)
        terms = criterion(output, prepared.targets)
        if projected is not None and teacher is not None:
            terms = {**terms, **alignment(projected, prepared, teacher, features, accelerator)}
        weighted_sum(terms, {**weights, "distill": 1.0}).backward()

    def step_without_labels(batch: Batch) -> None:
        assert teacher is not None and unlabeled is not None, "nothing to learn"
        with accelerator.autocast():
            projected = student.projected_f5(batch.images)
        alignment(projected, batch, teacher, unlabeled.features, accelerator)["distill"].backward()

    @torch.no_grad()
    def detect() -> None:
        student.detector(prepared.images)

    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            student.train()
            compute = _seconds(step, NUM_STEPS, device)
            compute_others = 0.0
            if others is not None:
                compute_others = _seconds(lambda: step_without_labels(others), NUM_STEPS, device)
            student.eval()
            detection = _seconds(detect, 1, device) / batch if num_val or pseudo_share else 0.0
    finally:
        student.train()
        for name, buffer in student.named_buffers():
            buffer.data.copy_(before[name])
        student.zero_grad()

    # Workers load during the computation; on a CPU they take time from it.
    loading = load / max(workers, 1)

    def passes(compute: float, images: int, loading: float) -> float:
        is_beside = workers and device.type != "cpu"
        return max(compute, images * loading) if is_beside else compute + images * loading

    spent = accumulate * passes(compute, batch, loading)
    spent += pseudo_share * (spent + accumulate * batch * (detection + loading))
    if unlabeled is not None and others is not None:
        images = len(others.images)
        spent += unlabeled.per_step * passes(compute_others, images, load_others / max(workers, 1))
    pace = torch.tensor(
        [spent + _update(student, device), num_val * (detection + loading + SECONDS_TO_MATCH)],
        device=device,
    )
    gathered = accelerator.gather(pace)
    assert isinstance(gathered, Tensor)
    return Pace(*gathered.view(-1, 2).amax(dim=0).tolist())


def _load(samples: DetectionDataset, batch: int) -> tuple[Batch, float]:
    """A batch of images from all over the data set, and the seconds that loading one takes."""
    number = len(samples)
    chosen = [samples[index * number // batch % number] for index in range(batch)]  # also warms up
    repeated = max(4, batch)
    start = time.perf_counter()
    for index in range(repeated):
        samples[(index * number // repeated + 1) % number]
    return pack(chosen), (time.perf_counter() - start) / repeated


def _update(student: DistillationStudent, device: torch.device) -> float:
    """The seconds that AdamW and the moving average take, measured on copies of the parameters."""
    copies = [p.detach().clone().requires_grad_() for p in student.parameters() if p.requires_grad]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = adamw([{"params": copies, "lr": 0.0}])
    return 1.5 * _seconds(optimizer.step, 1, device)


def _seconds(function: Callable[[], object], most: int, device: torch.device) -> float:
    """The mean time of up to `most` calls, after a first one that is slow."""

    def call() -> float:
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    call()
    times: list[float] = []
    while len(times) < most and sum(times) < LONGEST:
        times.append(call())
    return sum(times) / len(times)
