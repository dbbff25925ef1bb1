"""Training batches, image sizes and MixUp ratios, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rtdetrv4.data.batch import draw_mixup, draw_size
from rtdetrv4.data.loader import DetectionLoader
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.training.plan import Stage
from rtdetrv4.training.teacher_features import TeacherFeatures
from rtdetrv4.types import Batch


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A loader driven by the plan. Randomness depends on the seed, the epoch and the step only.

    Args:
        loader: this rank's loader of training images.
        augment: the recipe's augmentations, applied in the stages that allow them.
        image_size: (H, W) at which images are loaded.
        multi_scale_repeat: see `data.batch.multi_scales`; None trains at one size.
        seed: seed of sizes and MixUp.
        rank: this process; ranks share sizes but not MixUp.
    """

    loader: DetectionLoader
    augment: Augmentation
    image_size: tuple[int, int]
    multi_scale_repeat: int | None = None
    seed: int = 0
    rank: int = 0

    def batches(self, epoch: int, stage: Stage, start: int) -> Iterable[Batch]:
        """The batches of an epoch, starting with number `start`: uint8, at `image_size`."""
        self.loader.dataset.set_epoch(epoch, self.allowed(stage))  # type: ignore[attr-defined]
        self.loader.sampler.set_epoch(epoch, start)
        return self.loader

    def size(self, epoch: int, step: int, stage: Stage) -> tuple[int, int]:
        """(H, W) to train at in an optimizer step."""
        repeat = self.multi_scale_repeat if stage.multi_scale else None
        return draw_size(self.image_size, repeat, self.seed, epoch, step)

    def mixup(self, epoch: int, number: int, stage: Stage) -> float | None:
        """The share of its own image that each sample keeps in batch `number`, or None for no MixUp."""
        return draw_mixup(self.allowed(stage).mixup, self.seed, epoch, number, self.rank)

    def allowed(self, stage: Stage) -> Augmentation:
        """The recipe's augmentations that the stage allows; every stage allows flips."""
        augment = self.augment
        return augment._replace(
            mosaic=augment.mosaic * stage.mosaic,
            mixup=augment.mixup * stage.mixup,
            photometric=augment.photometric * stage.photometric,
            zoom_out=augment.zoom_out * stage.geometric,
            iou_crop=augment.iou_crop * stage.geometric,
        )

    @property
    def num_unreadable(self) -> int:
        """Images that could not be decoded so far."""
        return self.loader.dataset.num_unreadable  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class UnlabeledData:
    """Batches of images without labels, one pass over them after the other. What a batch holds depends on its number.

    Args:
        loader: this rank's loader.
        augment: of every image.
        per_step: batches of this rank in an optimizer step.
        features: the teacher's features of these images on disk, if there are any.
    """

    loader: DetectionLoader
    augment: Augmentation
    per_step: int = 1
    features: TeacherFeatures | None = None

    def batches(self, start: int) -> Iterator[Batch]:
        """All batches from number `start` on, without end: uint8, at the size of the dataset."""
        number, first = divmod(start, len(self.loader))
        while True:
            self.loader.dataset.set_epoch(number, self.augment)
            self.loader.sampler.set_epoch(number, first)
            yield from self.loader
            number, first = number + 1, 0

    @property
    def num_unreadable(self) -> int:
        """Images that could not be decoded so far."""
        return self.loader.dataset.num_unreadable
