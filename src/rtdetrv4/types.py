"""The values that packages exchange: NamedTuples, which DDP, torch.export and ONNX handle as pytrees.

Letters: B batch, Q queries, K classes, L supervised decoder layers, C hidden dim, H×W input size, h×w the stride-32
grid, R = reg_max + 1 bins. Boxes are cxcywh in [0, 1] unless a name says otherwise. Nothing here imports torch at run
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class ClassMap(NamedTuple):
    """Class names and their category ids in the annotations: class index k is category `category_ids[k]`."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return len(self.names)


class ImageInfo(NamedTuple):
    """The image that a sample was made from; evaluation maps boxes back to it."""

    image_id: int
    file_name: str
    height: int
    width: int
    is_readable: bool = True
    """Whether the sample shows the image, which otherwise is damaged or missing, and left out of evaluation."""


class Rectangle(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Targets(NamedTuple):
    """The ground-truth boxes of a batch, concatenated over its images; an image may have none."""

    labels: Tensor
    """(N,) int64 in [0, K)."""
    boxes: Tensor
    """(N, 4) float32, cxcywh in [0, 1]."""
    counts: tuple[int, ...]
    """The number of boxes in each of the B images; they sum to N."""

    @classmethod
    def of(cls, images: Sequence[tuple[Tensor, Tensor]]) -> Targets:
        """Make the targets of a batch from the (labels, boxes) of its images.

        Args:
            images: labels (n,) in [0, K) and boxes (n, 4), cxcywh in [0, 1], of each image; at least one image.

        Raises:
            ValueError: an image has different numbers of labels and boxes.
        """
        counts = tuple(len(labels) for labels, _ in images)
        if counts != (num_boxes := tuple(len(boxes) for _, boxes in images)):
            raise ValueError(f"every box needs one label; got {counts} labels and {num_boxes} boxes per image")
        labels, boxes = images[0]
        # Filled in place instead of by torch.cat, because this module does not import torch.
        targets = cls(labels.new_empty(sum(counts)).long(), boxes.new_empty(sum(counts), 4).float(), counts)
        for own, given in zip(targets.split(), images, strict=True):
            for part, values in zip(own, given, strict=True):
                part.copy_(values)
        return targets

    def split(self) -> list[tuple[Tensor, Tensor]]:
        """Labels (n,) and boxes (n, 4) of each image, as views."""
        return list(zip(self.labels.split(self.counts), self.boxes.split(self.counts), strict=True))


class View(NamedTuple):
    """Where a sample shows an image: the affine map between the two, as shares of their widths and heights."""

    image: int
    """Its index in the split."""
    matrix: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): the point (x, y) of the image, from (0, 0) to (1, 1), is at (a·x + b·y + c, d·x + e·y + f) of
    the sample."""
    shown: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Left, top, right and bottom of the part of the image that the sample shows; it may reach beyond the image."""
    weight: float = 1.0
    """Its share of the sample's pixels there, which MixUp makes less than 1."""


class Batch(NamedTuple):
    """Images with their targets, as a loader yields them."""

    images: Tensor
    """B×3×H×W, RGB: uint8 in [0, 255], or float32 in [0, 1]."""
    targets: Targets
    infos: tuple[ImageInfo, ...]
    views: tuple[tuple[View, ...], ...] = ()
    """What each sample is made of; empty if nobody asked."""


class EncoderOutput(NamedTuple):
    """The output of the hybrid encoder."""

    pyramid: tuple[Tensor, ...]
    """One B×C×H/s×W/s map per stride s, finest first."""
    f5: Tensor
    """B×C×h×w, the output of AIFI, which DSI aligns with the teacher (RT-DETRv4, section 3.2)."""


class HeadOutput(NamedTuple):
    """Predictions of L decoder layers for one set of queries, stacked from the first layer to the last."""

    logits: Tensor
    """L×B×Q×K."""
    boxes: Tensor
    """L×B×Q×4."""
    corners: Tensor | None = None
    """L×B×Q×4×R logits of the edge distributions (left, top, right, bottom), or None for plain box heads."""
    reference: Tensor | None = None
    """B×Q×4, detached: the initial boxes, which the distributions of every layer refine."""
    pre_logits: Tensor | None = None
    """B×Q×K, from the plain head of the first layer."""
    pre_boxes: Tensor | None = None
    """B×Q×4, from the plain head of the first layer."""


class DenoisingGroups(NamedTuple):
    """The layout of the denoising queries: G groups, each of Tmax positives followed by Tmax negatives."""

    num_groups: int
    max_targets: int
    """Tmax, the largest number of boxes in an image of the batch; other images are padded to it."""


class TrainingOutput(NamedTuple):
    """The predictions that the criterion supervises."""

    queries: HeadOutput
    encoder_logits: Tensor
    """B×Q×K, of the encoder cells that query selection chose."""
    encoder_boxes: Tensor
    """B×Q×4."""
    f5: Tensor
    """B×C×h×w."""
    denoising: HeadOutput | None = None
    denoising_groups: DenoisingGroups | None = None


class DetectorOutput(NamedTuple):
    """The predictions of a detector; `training` is None in eval mode."""

    logits: Tensor
    """B×Q×K, before the sigmoid."""
    boxes: Tensor
    """B×Q×4, cxcywh in [0, 1]."""
    training: TrainingOutput | None = None


class PostprocessedBatch(NamedTuple):
    """The best detections of each image, by descending score."""

    scores: Tensor
    """B×N in [0, 1]."""
    labels: Tensor
    """B×N int64 in [0, K)."""
    boxes_xyxy_px: Tensor
    """B×N×4, pixels of the original image."""
