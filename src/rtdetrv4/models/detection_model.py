"""The detector: backbone → hybrid encoder → query selection → decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtdetrv4.models.backbone import Backbone
from rtdetrv4.models.decoder import BoxDecoder, DistributionDecoder
from rtdetrv4.models.denoising import ContrastiveDenoising, attention_allowed
from rtdetrv4.models.hybrid_encoder import HybridEncoder, LiteEncoder
from rtdetrv4.models.query_selection import QuerySelection
from rtdetrv4.types import DetectorOutput, EncoderOutput, HeadOutput, Targets, TrainingOutput


class DetectionModel(nn.Module):
    """Images in, class logits and boxes out. A plain module, unaware of the training loop, DSI and files.

    Args:
        memory_projections: one module per level, from the encoder's width to the decoder's; None passes the pyramid on.
        denoising: None trains without denoising queries.
    """

    def __init__(
        self,
        backbone: Backbone,
        hybrid_encoder: HybridEncoder | LiteEncoder,
        query_selection: QuerySelection,
        decoder: DistributionDecoder | BoxDecoder,
        *,
        memory_projections: nn.ModuleList | None = None,
        denoising: ContrastiveDenoising | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.hybrid_encoder = hybrid_encoder
        self.memory_projections = memory_projections
        self.query_selection = query_selection
        self.denoising = denoising
        self.decoder = decoder

    def f5(self, images: Tensor) -> Tensor:
        """B×3×H×W, RGB in [0, 1] → F5 alone (B×C×h×w), in either mode."""
        x = self.backbone(images)[-1]
        for module in self.hybrid_encoder.f5_path().values():
            x = module(x)
        return x

    def forward(self, images: Tensor, targets: Targets | None = None) -> DetectorOutput:
        """Detect.

        Args:
            images: B×3×H×W, RGB in [0, 1]; H and W multiples of 32.
            targets: boxes of the batch, from which denoising queries are made in train mode.

        Returns:
            Logits B×Q×K and boxes B×Q×4 (cxcywh in [0, 1]) of the last layer; in train mode also `training`.
        """
        encoded: EncoderOutput = self.hybrid_encoder(self.backbone(images))
        pyramid = encoded.pyramid
        if self.memory_projections is not None:
            pyramid = tuple(project(level) for project, level in zip(self.memory_projections, pyramid, strict=True))
        selected = self.query_selection(pyramid)
        content, reference = selected.content, selected.reference_logits
        if not self.training:
            head: HeadOutput = self.decoder(content, reference, pyramid)
            return DetectorOutput(head.logits[-1], head.boxes[-1])

        if self.denoising is None or targets is None:
            head = self.decoder(content, reference, pyramid)
            training = TrainingOutput(head, selected.logits, selected.boxes, encoded.f5)
        else:
            noised = self.denoising(targets)
            allowed = attention_allowed(noised.groups, content.shape[1], device=content.device)
            both: HeadOutput = self.decoder(
                torch.cat((noised.content.to(content.dtype), content), dim=1),
                torch.cat((noised.reference_logits, reference), dim=1),
                pyramid,
                allowed,
            )
            denoised, head = _split_queries(both, noised.content.shape[1])
            training = TrainingOutput(head, selected.logits, selected.boxes, encoded.f5, denoised, noised.groups)
        return DetectorOutput(head.logits[-1], head.boxes[-1], training)


class SemanticPath(nn.Module):
    """What computes F5 in a detector: backbone, the projection of its last map, and AIFI or what stands for it.

    The modules are the detector's own, and so are the names of its tensors. It stands in for a detector that is trained
    by L_DSI alone.
    """

    def __init__(self, backbone: Backbone, hybrid_encoder: HybridEncoder | LiteEncoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.hybrid_encoder: nn.Module = nn.Module()
        path = hybrid_encoder.f5_path()
        for name, module in path.items():
            parent, _, child = name.rpartition(".")
            self.hybrid_encoder.add_module(*((parent, nn.ModuleDict({child: module})) if parent else (child, module)))
        self._order = tuple(path)

    def f5(self, images: Tensor) -> Tensor:
        """B×3×H×W, RGB in [0, 1] → B×C×h×w."""
        x = self.backbone(images)[-1]
        for name in self._order:
            x = self.hybrid_encoder.get_submodule(name)(x)
        return x

    def forward(self, images: Tensor, targets: Targets | None = None) -> DetectorOutput:
        """Detect nothing: no queries (B×0×0 and B×0×4); in train mode, F5 is in `training`, as for a detector."""
        del targets
        f5 = self.f5(images)
        logits, boxes = f5.new_zeros(len(f5), 0, 0), f5.new_zeros(len(f5), 0, 4)
        training = TrainingOutput(HeadOutput(logits[None], boxes[None]), logits, boxes, f5) if self.training else None
        return DetectorOutput(logits, boxes, training)


def _split_queries(head: HeadOutput, first: int) -> tuple[HeadOutput, HeadOutput]:
    """The predictions for the first `first` queries, and for the others."""

    def part(keep: slice) -> HeadOutput:
        return HeadOutput(
            head.logits[:, :, keep],
            head.boxes[:, :, keep],
            None if head.corners is None else head.corners[:, :, keep],
            None if head.reference is None else head.reference[:, keep],
            None if head.pre_logits is None else head.pre_logits[:, keep],
            None if head.pre_boxes is None else head.pre_boxes[:, keep],
        )

    return part(slice(None, first)), part(slice(first, None))
