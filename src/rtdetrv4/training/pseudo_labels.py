"""Pseudo-labels: what the averaged weights find in images without labels becomes the targets of the student.

References:
    Self-training with a threshold and strong augmentation: STAC, arXiv 2005.04757. Averaged weights that label while
    the student trains: Unbiased Teacher, arXiv 2102.09480; Soft Teacher, arXiv 2106.09018.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from rtdetrv4.data.dataset import LabeledIndex
from rtdetrv4.data.loader import ListLoader
from rtdetrv4.data.records import Record
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.evaluation.coco_evaluator import ImageDetections
from rtdetrv4.evaluation.matching import find_overlaps
from rtdetrv4.evaluation.operating_curves import best_confidence, operating_curves
from rtdetrv4.runtime.selection import Selection, drop_duplicates
from rtdetrv4.training.plan import Plan
from rtdetrv4.training.reports import PseudoLabelReport
from rtdetrv4.training.validation import find_objects
from rtdetrv4.types import Batch, ImageInfo

logger: logging.Logger = logging.getLogger(__name__)

UNSEEN_THRESHOLD = 0.5
"""For classes without validation boxes, whose F1 nobody knows."""
STRONG = Augmentation(photometric=0.5, zoom_out=0.5, iou_crop=0.8)
"""The published probabilities of what changes an image for the student, apart from flips."""
SAME_OBJECT_IOU = 0.7
"""Two labels of one class that overlap this much are one object. A second box of an object does little harm in what
`predict` returns, but would teach the student to find it twice. Among 13,721 annotated boxes of blood cells, faces and
sea animals, nine pairs of one class overlap this much, most of them cells drawn twice.
"""
MIN_SIDE = 1.0
"""Pixels; thinner boxes are nothing to learn from."""
_DRAW_STREAM = 4


def usual_epochs(plan: Plan) -> range:
    """The epochs with pseudo-labels if nobody says otherwise: while the learning rate falls.

    They begin when the labels have been learned, which the plan takes to be where the learning rate starts to fall and
    where early stopping goes when the score rises no more, or, if it never falls, at half of the run. They end where
    refinement or the lowest learning rate begins, so that the last epochs see true labels alone.
    """
    falls = plan.lr_gamma < 1 and plan.flat_epoch < plan.epochs
    start = math.ceil(plan.flat_epoch) if falls else plan.epochs // 2
    return range(start, min(plan.refine_from, math.floor(plan.epochs - plan.no_aug_epochs), plan.epochs))


def class_thresholds(
    records: Sequence[Record],
    detections: Sequence[ImageDetections],
    num_classes: int,
    floor: float,
    least_f1: float = 0.0,
) -> NDArray[np.float64]:
    """The confidence from which a detection of each class counts as a label, (K,).

    It is the one with the best F1 on validation images, as for `conf="best"` in `predict`, or `floor` if that is more;
    `UNSEEN_THRESHOLD`, or `floor`, for a class without validation boxes; and infinite for one that has some, none of
    which is found at any confidence: whatever is taken for it would teach mistakes. All are infinite for weights that
    are not good enough yet.

    Args:
        records: the ground truth of each validation image.
        detections: what was found in each, in the same order.
        num_classes: K.
        floor: the lowest threshold. Where precision is low at every confidence, the best F1 may be at a very low one.
        least_f1: the mean of the classes' best F1 from which on there are labels. With fewer objects found, the many
            that are missed are taught away.
    """
    curves = operating_curves(find_overlaps(records, detections), num_classes)
    reached = np.nan_to_num(curves.f1[curves.num_boxes > 0]).max(axis=1)
    if len(reached) and reached.mean() < least_f1:
        return np.full(num_classes, math.inf)
    best = [
        (math.inf if confidence is None else confidence) if num_boxes else UNSEEN_THRESHOLD
        for num_boxes, confidence in zip(curves.num_boxes, map(best_confidence, curves.f1), strict=True)
    ]
    return np.maximum(best, floor)


class FoundLabels(NamedTuple):
    """The pseudo-labels of an image."""

    boxes_xyxy_px: NDArray[np.float32]
    """(n, 4), inside the original image."""
    labels: NDArray[np.int64]
    """(n,) in [0, K)."""


def choose_labels(found: ImageDetections, info: ImageInfo, selection: Selection) -> FoundLabels:
    """The detections that become labels: those that `predict` would return, with one box per object, cut at the edges.

    Args:
        found: detections by descending score.
        info: the image.
        selection: drops exact duplicates, and what is not confident enough.
    """
    chosen = selection(found.scores, found.labels, found.boxes_xyxy_px)
    chosen = chosen[drop_duplicates(found.labels[chosen], found.boxes_xyxy_px[chosen], SAME_OBJECT_IOU)]
    boxes = found.boxes_xyxy_px[chosen].clip(0, np.array([info.width, info.height] * 2, dtype=np.float32))
    is_large = np.all(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE, axis=1)
    return FoundLabels(boxes[is_large], found.labels[chosen][is_large])


def draw_images(num_images: int, start: int, count: int, seed: int) -> NDArray[np.int64]:
    """Numbers `start` to `start + count` of an endless sequence of images: one shuffled pass after the other.

    Args:
        num_images: images of a pass.
        start: the first number.
        count: how many.
        seed: of all passes.
    """
    first, last = start // num_images, (start + count - 1) // num_images
    passes = [
        np.random.default_rng((seed, number, _DRAW_STREAM)).permutation(num_images) for number in range(first, last + 1)
    ]
    return np.concatenate(passes)[start - first * num_images :][:count]


@dataclass
class PseudoLabels:
    """The owner of pseudo-labels: it labels images at the start of an epoch, and yields them in batches.

    An epoch draws as many images as its steps have room for, and labels these alone, each rank its part. The labels
    are those of the weights at that moment, cost one forward pass per image, and are known to all ranks before the
    first step. So images in which nothing is found can be left out, and the others fill whole batches: every rank takes
    part in the same steps, which are spread evenly over the epoch. To resume in the middle of an epoch, whose weights
    are gone by then, a checkpoint holds the labels.

    Images without labels are left out because a box that was missed would teach the student that its object is
    background, and where nothing was found at all, that is all there would be to learn.

    Args:
        loader: strongly augmented samples of the images, in this rank's batches.
        plain: the same images as in validation.
        augment: of `loader`, in every stage.
        names: of K classes.
        epochs: in which there are pseudo-labels.
        steps_per_epoch: optimizer steps.
        per_step: batches of this rank in a step.
        weight: of the detection loss on these images.
        threshold: the minimum confidence of every class; None: the best ones in validation.
        floor: see `class_thresholds`; so for `least_f1`.
        evaluator: holds the detections of the last validation; needed without a `threshold`.
        seed: of the draws.
        rank: this process.
        ranks: number of processes.
    """

    loader: ListLoader
    plain: ListLoader
    augment: Augmentation
    names: tuple[str, ...]
    epochs: range
    steps_per_epoch: int
    per_step: int = 1
    weight: float = 1.0
    threshold: float | None = None
    floor: float = 0.0
    least_f1: float = 0.0
    evaluator: CocoEvaluator | None = None
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    thresholds: NDArray[np.float64] | None = field(default=None, init=False)
    """(K,); None until they are measured."""
    epoch: int | None = field(default=None, init=False)
    """The last one for which images were labeled."""
    num_images: int = field(default=0, init=False)
    """Different images that it has drawn."""
    labels: dict[int, FoundLabels] = field(default_factory=dict, init=False)
    """Of those in which something was found, by index."""

    def __post_init__(self) -> None:
        if self.threshold is not None:
            self.thresholds = np.full(len(self.names), self.threshold)
        self._samples: Sequence[LabeledIndex] = ()
        """Of all ranks, in order."""

    def measure(self) -> None:
        """Set the thresholds from the last validation, unless they are fixed."""
        if self.threshold is None:
            assert self.evaluator is not None, "no validation to measure thresholds in"
            records, detections = self.evaluator.records, self.evaluator.detections
            self.thresholds = class_thresholds(records, detections, len(self.names), self.floor, self.least_f1)

    @property
    def is_waiting(self) -> bool:
        """Whether the weights are not good enough yet to label anything."""
        return self.thresholds is not None and not np.isfinite(self.thresholds).any()

    def label(self, detector: nn.Module, epoch: int) -> None:
        """Label the images that an epoch draws, in eval mode and float32 as in validation; a collective call.

        The thresholds are those of these numbers, and another number format would shift them.

        Args:
            detector: the averaged weights, equal on all ranks.
            epoch: one of `epochs`.
        """
        assert self.thresholds is not None, "the thresholds have not been measured"
        if self.is_waiting:
            self.labels, self.epoch, self.num_images = {}, epoch, 0
            self._arrange()
            return
        minimum = {
            name: float(each) for name, each in zip(self.names, self.thresholds, strict=True) if math.isfinite(each)
        }
        selection = Selection(self.names, conf=minimum)
        images = np.unique(self._drawn(epoch))
        own = images[self.rank :: self.ranks].tolist()
        self.plain.sampler.samples = own
        dataset, coming, found = self.plain.dataset, iter(own), list[tuple[int, FoundLabels]]()
        for infos, best in find_objects(detector, self.plain, image_size=dataset.image_size, resize=dataset.resize):
            boxes, scores, labels = (each.cpu().numpy() for each in (best.boxes_xyxy_px, best.scores, best.labels))
            for info, *arrays in zip(infos, boxes, scores, labels, strict=True):
                index, chosen = next(coming), choose_labels(ImageDetections(*arrays), info, selection)
                if info.is_readable and len(chosen.labels):
                    found.append((index, chosen))
        self.labels = dict(sorted(gather_object(found), key=lambda each: each[0]))
        self.epoch, self.num_images = epoch, len(images)
        self._arrange()

    def forget(self) -> None:
        """Drop the labels, in an epoch without any."""
        self.labels, self.num_images = {}, 0
        self._arrange()

    @property
    def num_steps(self) -> int:
        """Steps of the epoch that have pseudo-labels."""
        return len(self._samples) // self._step_size

    def takes(self, step: int) -> bool:
        """Whether a step of the epoch has pseudo-labels."""
        return self._taken_before(step + 1) > self._taken_before(step)

    def batches(self, step: int) -> Iterator[Batch]:
        """This rank's batches from a step of the epoch on: uint8, at the size of the dataset."""
        if not self.num_steps:
            return
        assert self.epoch is not None, "nothing has been labeled"
        own = self._samples[self.rank : self.num_steps * self._step_size : self.ranks]
        self.loader.dataset.set_epoch(self.epoch, self.augment)
        self.loader.sampler.samples = own[self._taken_before(step) * (self._step_size // self.ranks) :]
        yield from self.loader

    @property
    def num_unreadable(self) -> int:
        """Images that could not be decoded so far; they get no labels."""
        return self.plain.dataset.num_unreadable

    def report(self) -> PseudoLabelReport | None:
        """What was labeled in the epoch, or None if it has no pseudo-labels."""
        if self.thresholds is None or not self.num_images:
            return None
        return PseudoLabelReport(
            num_images=self.num_images,
            num_labeled=len(self.labels),
            num_boxes=sum(len(each.labels) for each in self.labels.values()),
            num_steps=self.num_steps,
            thresholds=dict(zip(self.names, self.thresholds.tolist(), strict=True)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Thresholds, and the labels of the epoch."""
        found = list(self.labels.values())
        return {
            "thresholds": None if self.thresholds is None else torch.from_numpy(self.thresholds),
            "epoch": self.epoch,
            "num_images": self.num_images,
            "images": torch.tensor(list(self.labels), dtype=torch.int64),
            "counts": [len(each.labels) for each in found],
            "boxes_xyxy_px": torch.from_numpy(np.concatenate([np.zeros((0, 4), np.float32), *(f[0] for f in found)])),
            "labels": torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *(f[1] for f in found)])),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.thresholds = None if state["thresholds"] is None else state["thresholds"].numpy()
        self.epoch, self.num_images = state["epoch"], state["num_images"]
        boxes, labels = (state[name].split(state["counts"]) for name in ("boxes_xyxy_px", "labels"))
        found = [FoundLabels(each.numpy(), own.numpy()) for each, own in zip(boxes, labels, strict=True)]
        self.labels = dict(zip(state["images"].tolist(), found, strict=True))
        self._arrange()

    @property
    def _step_size(self) -> int:
        """Images of all ranks in a step that has pseudo-labels."""
        assert self.loader.batch_size is not None, "a loader without batches"
        return self.per_step * self.loader.batch_size * self.ranks

    def _taken_before(self, step: int) -> int:
        """How many of the steps before this one have pseudo-labels."""
        return step * self.num_steps // self.steps_per_epoch

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """The images that an epoch draws, in order; more than once where there are few."""
        count = self.steps_per_epoch * self._step_size
        return draw_images(len(self.plain.dataset), (epoch - self.epochs.start) * count, count, self.seed)

    def _arrange(self) -> None:
        """Arrange the samples of the epoch, which follow from its draws and labels."""
        samples, repetitions, total = list[LabeledIndex](), Counter[int](), len(self.plain.dataset)
        for image in self._drawn(self.epoch).tolist() if self.epoch is not None and self.labels else ():
            if (found := self.labels.get(image)) is not None:
                samples.append(LabeledIndex(image + repetitions[image] * total, *found))
                repetitions[image] += 1
        self._samples = samples
