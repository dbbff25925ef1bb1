"""The module that is trained, and that DDP wraps: the detector with the injector beside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rtdetrv4.distillation.injector import Injector
from rtdetrv4.types import DetectorOutput, Targets


class DistillationStudent(nn.Module):
    """A detector and, unless distillation is off, the projector of its F5.

    Args:
        detector: returns a `DetectorOutput`; its `f5` computes F5 alone.
        injector: None trains without distillation.
    """

    def __init__(self, detector: nn.Module, injector: Injector | None = None) -> None:
        super().__init__()
        self.detector = detector
        self.injector = injector

    @property
    def aifi(self) -> nn.Module:
        """The module that outputs F5; GAM watches its share of the gradient."""
        return self.detector.get_submodule("hybrid_encoder.aifi")

    def forward(self, images: Tensor, targets: Targets) -> tuple[DetectorOutput, Tensor | None]:
        """B×3×H×W images in [0, 1] → the detector's output, and F5 in the teacher's space (B×D×h×w)."""
        output: DetectorOutput = self.detector(images, targets)
        if self.injector is None or output.training is None:
            return output, None
        return output, self.injector(output.training.f5)

    def projected_f5(self, images: Tensor) -> Tensor:
        """B×3×H×W images in [0, 1] → F5 in the teacher's space (B×D×h×w), in either mode; no other part runs."""
        assert self.injector is not None, "a student without a projector"
        detector: Any = self.detector
        return self.injector(detector.f5(images))
