"""Turn logits and boxes into the best detections of each image, without NMS."""

from __future__ import annotations

from torch import Tensor

from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.types import PostprocessedBatch


def postprocess(logits: Tensor, boxes: Tensor, sizes_hw: Tensor, num_top: int = 300) -> PostprocessedBatch:
    """The `num_top` best (query, class) pairs of each image, by descending score.

    One query may give two labels: keeping only the best label of each query would cost AP.

    Args:
        logits: B×Q×K.
        boxes: B×Q×4, cxcywh in [0, 1].
        sizes_hw: B×2, height and width of the original images in pixels.
        num_top: at most Q·K are returned.
    """
    num_classes = logits.shape[-1]
    flat = logits.float().sigmoid().flatten(1)
    scores, index = flat.topk(min(num_top, flat.shape[1]), dim=1)
    query = index // num_classes  # torch.div would be exported as a division of floats, which float16 engines round
    chosen = xyxy_from_cxcywh(boxes.float()).gather(1, query[..., None].expand(-1, -1, 4))
    scale = sizes_hw.flip(-1).repeat(1, 2)[:, None].type_as(chosen)  # unlike `to`, names no device in a trace
    return PostprocessedBatch(scores, index % num_classes, chosen * scale)
