"""The report of a run that gave up because of NaN or infinite values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rtdetrv4.errors import NonFiniteError
from rtdetrv4.training.position import Position
from rtdetrv4.types import Batch


def nonfinite_terms(losses: Mapping[str, float]) -> list[str]:
    """Names of the loss terms that are NaN or infinite; "gradient" if all losses are finite."""
    return [name for name, value in losses.items() if not math.isfinite(value)] or ["gradient"]


def nonfinite_error(
    path: Path, at: Position, losses: Mapping[str, float], model: nn.Module, batches: Sequence[Batch], amp: str
) -> NonFiniteError:
    """Write a report on the last step to `path`, and return the error to raise.

    Args:
        path: JSON file to write the report to.
        at: epoch and step.
        losses: losses of the step, means over ranks.
        model: the model with the gradients of the step.
        batches: batches of the step on this rank.
        amp: number format of the forward pass.
    """
    bad = nonfinite_terms(losses)
    report: dict[str, Any] = {
        "epoch": at.epoch + 1,
        "step_of_epoch": at.step + 1,
        "terms_not_finite": bad,
        # JSON cannot represent NaN and infinity.
        "losses": {name: value if math.isfinite(value) else str(value) for name, value in losses.items()},
        "gradients_not_finite": [
            name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
        ],
        "images": [info.file_name for batch in batches for info in batch.infos],
        "amp": amp,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return NonFiniteError(
        f"{at.num_skipped_in_row} training steps in a row had a NaN or infinite {', '.join(bad[:3])}; they were not "
        f'taken. {path} says more. Resume from last.pt with amp="off", or start again with a lower learning rate.'
    )
