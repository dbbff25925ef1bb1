"""What crosses the borders between packages: small NamedTuples, native pytrees for DDP, torch.export and ONNX.

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
    """Class names and the category ids they had in the annotations; class k inside is `category_ids[k]` outside."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.names)


class ImageInfo(NamedTuple):
    """Where a sample came from: what evaluation needs to go back to the original image."""

    image_id: int
    file_name: str
    height: int
    width: int


class Targets(NamedTuple):
    """The true boxes of a batch, those of all images in one row; an image may have none."""

    labels: Tensor
    """(N,) int64 in [0, K)."""
    boxes: Tensor
    """(N, 4) float32, cxcywh in [0, 1]."""
    counts: tuple[int, ...]
    """The number of boxes of each of the B images; their sum is N."""

    @classmethod
    def of(cls, images: Sequence[tuple[Tensor, Tensor]]) -> Targets:
        """Make the targets of a batch from (labels, boxes) of each image.

        Args:
            images: for each of at least one image, labels (n,) in [0, K) and boxes (n, 4), cxcywh in [0, 1].

        Raises:
            ValueError: an image has more labels than boxes, or fewer.
        """
        counts = tuple(len(labels) for labels, _ in images)
        if counts != (num_boxes := tuple(len(boxes) for _, boxes in images)):
            raise ValueError(f"every box needs one label; got {counts} labels and {num_boxes} boxes per image")
        labels, boxes = images[0]
        # Filled in place, because this module cannot call torch.cat: it imports no torch.
        targets = cls(labels.new_empty(sum(counts)).long(), boxes.new_empty(sum(counts), 4).float(), counts)
        for own, given in zip(targets.split(), images, strict=True):
            for part, values in zip(own, given, strict=True):
                part.copy_(values)
        return targets

    def split(self) -> list[tuple[Tensor, Tensor]]:
        """Labels (n,) and boxes (n, 4) of each image, as views."""
        return list(zip(self.labels.split(self.counts), self.boxes.split(self.counts), strict=True))


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor
    """B×3×H×W, RGB: uint8 in [0, 255], or float32 in [0, 1]."""
    targets: Targets
    infos: tuple[ImageInfo, ...]


class EncoderOutput(NamedTuple):
    """What the hybrid encoder returns."""

    pyramid: tuple[Tensor, ...]
    """One B×C×H/s×W/s map per stride s, finest first."""
    f5: Tensor
    """B×C×h×w, the output of AIFI: what DSI aligns with the teacher (RT-DETRv4, section 3.2)."""


class HeadOutput(NamedTuple):
    """Predictions of L decoder layers for one set of queries, stacked, last layer last."""

    logits: Tensor
    """L×B×Q×K."""
    boxes: Tensor
    """L×B×Q×4."""
    corners: Tensor | None = None
    """L×B×Q×4×R logits of the edge distributions (left, top, right, bottom), or None for plain box heads."""
    reference: Tensor | None = None
    """B×Q×4, detached: the initial boxes that the distributions of every layer refine."""
    pre_logits: Tensor | None = None
    """B×Q×K, from the first layer's plain head."""
    pre_boxes: Tensor | None = None
    """B×Q×4, from the first layer's plain head."""


class DenoisingGroups(NamedTuple):
    """How the denoising queries of a batch are laid out: G groups of Tmax positives followed by Tmax negatives."""

    num_groups: int
    max_targets: int
    """Tmax, the largest number of boxes in an image of the batch; the others are padded up to it."""


class TrainingOutput(NamedTuple):
    """Everything that is supervised."""

    queries: HeadOutput
    encoder_logits: Tensor
    """B×Q×K, of the memory cells that query selection chose."""
    encoder_boxes: Tensor
    """B×Q×4."""
    f5: Tensor
    """B×C×h×w."""
    denoising: HeadOutput | None = None
    denoising_groups: DenoisingGroups | None = None


class DetectorOutput(NamedTuple):
    """What a detector returns. In eval mode `training` is None."""

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
